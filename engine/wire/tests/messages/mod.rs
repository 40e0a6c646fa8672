//! One fixed message of each kind, and strategies that make any.

#![allow(dead_code, reason = "each test binary uses its part")]

use blocks::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use wire::*;

fn id(byte: u8) -> Id {
    Id::from_bytes([byte; 16]).unwrap()
}

pub fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

/// The fixtures of version 1: what these messages are in bytes must never change.
pub fn agent_samples() -> Vec<(&'static str, AgentMessage)> {
    let disk = |continuity| DiskHello {
        device: "/dev/vda".into(),
        serial: "serial-1".into(),
        len: ByteLen::new(1 << 30),
        tracker: "ebpf".into(),
        continuity,
    };
    vec![
        (
            "hello",
            AgentMessage::Hello(Hello {
                machine: Some(MachineId(id(1))),
                name: "web-1".into(),
                generation: Generation(3),
                boot: id(2),
                session: None,
                inventory: "{\"hostname\":\"web-1\"}".into(),
                disks: vec![
                    disk(Continuity::Unknown { reason: "first start".into() }),
                    disk(Continuity::Tracked { store: StoreId(id(4)), acked: Seq(5), sent: Seq(6) }),
                ],
            }),
        ),
        (
            "enroll",
            AgentMessage::Enroll(EnrollRequest {
                secret: "secret".into(),
                name: "web-1".into(),
                request_pem: "-----BEGIN CERTIFICATE REQUEST-----".into(),
            }),
        ),
        (
            "heartbeat",
            AgentMessage::Heartbeat(Heartbeat {
                now: WallClock(1_700_000_000_000),
                backlog: vec![ByteLen::new(65536)],
                churn: vec![ByteLen::new(1 << 20)],
                trackers: vec!["ebpf, trusted".into()],
            }),
        ),
        (
            "write",
            AgentMessage::Write(Write {
                disk: DiskIndex(1),
                seq: Seq(7),
                extent: extent(4096, 512),
                payload: Payload::Data((0..512).map(|at| at as u8).collect()),
            }),
        ),
        (
            "write-in-order",
            AgentMessage::WriteInOrder {
                write: Write {
                    disk: DiskIndex(1),
                    seq: Seq(8),
                    extent: extent(4096, 512),
                    payload: Payload::Data((0..512).map(|at| (at / 2) as u8).collect()),
                },
                age_us: 2500,
            },
        ),
        (
            "checkpoint",
            AgentMessage::Checkpoint(CheckpointReport {
                request: 1 << 63 | 9,
                name: "before the upgrade".into(),
                consistency: Consistency::FileSystem,
                taken_at: WallClock(1_700_000_000_001),
                frozen_ms: 12,
                disks: vec![DiskInstant {
                    seq: Seq(7),
                    len: ByteLen::new(1 << 30),
                    excluded: vec![extent(8192, 4096)],
                }],
            }),
        ),
        (
            "gap",
            AgentMessage::Gap(GapReport {
                from: WallClock(1),
                until: WallClock(0),
                cause: "the tracker lost count".into(),
            }),
        ),
        (
            "hashes",
            AgentMessage::Hashes(HashReport {
                purpose: HashPurpose::Verify { request: 9, last: true },
                disk: DiskIndex(0),
                range: extent(65536, 9 * 65536 + 512),
                block: BlockShift::KIB_64,
                hashes: (0..10).map(|at| (at % 3 != 1).then_some([at; 32])).collect(),
            }),
        ),
        ("goodbye", AgentMessage::Goodbye),
        (
            "checkpoint-failed",
            AgentMessage::CheckpointFailed { request: 9, reason: "past the budget".into() },
        ),
        (
            "restore-ready",
            AgentMessage::RestoreReady(RestoreReady {
                restore: 11,
                disks: vec![
                    TargetKnowledge::Known {
                        store: StoreId(id(4)),
                        acked: Seq(7),
                        changed: vec![extent(0, 512)],
                    },
                    TargetKnowledge::Unknown { reason: "unclean reboot".into() },
                ],
            }),
        ),
        ("restore-failed", AgentMessage::RestoreFailed { restore: 11, reason: "/dev/vda is mounted".into() }),
        ("restore-synced", AgentMessage::RestoreSynced { restore: 11, sync: 2 }),
        ("restore-finished", AgentMessage::RestoreFinished { restore: 11 }),
        (
            "restore-data",
            AgentMessage::RestoreData {
                restore: 11,
                disk: DiskIndex(1),
                extent: extent(512, 512),
                payload: Payload::Data(vec![0xd5; 512]),
            },
        ),
    ]
}

pub fn server_samples() -> Vec<(&'static str, ServerMessage)> {
    vec![
        (
            "welcome",
            ServerMessage::Welcome(Welcome {
                store: StoreId(id(4)),
                machine: MachineId(id(1)),
                generation: Generation(3),
                role: Role::Standby { reason: "the stand-in was promoted".into() },
                disks: vec![
                    DiskWelcome { durable: Seq(0), start: StartFrom::Everything },
                    DiskWelcome { durable: Seq(7), start: StartFrom::Marked },
                ],
            }),
        ),
        (
            "refused",
            ServerMessage::Refused(Refusal { kind: RefusalKind::Taken, reason: "web-1 is connected".into() }),
        ),
        (
            "enrolled",
            ServerMessage::Enrolled(EnrollReply {
                certificate_pem: "-----BEGIN CERTIFICATE-----".into(),
                authority_pem: "-----BEGIN CERTIFICATE-----".into(),
            }),
        ),
        ("ack", ServerMessage::Ack { disk: DiskIndex(1), seq: Seq(7) }),
        ("checkpoint-sealed", ServerMessage::CheckpointSealed { request: 9, checkpoint: CheckpointId(12) }),
        (
            "take-checkpoint",
            ServerMessage::TakeCheckpoint { request: 1 << 63, name: "now".into(), verify: true },
        ),
        (
            "differing",
            ServerMessage::Differing {
                disk: DiskIndex(0),
                range: extent(0, 1 << 20),
                extents: vec![extent(0, 65536), extent(131072, 65536)],
            },
        ),
        ("hold", ServerMessage::Hold { reason: "the store is full".into() }),
        ("resume", ServerMessage::Resume),
        (
            "restore-begin",
            ServerMessage::RestoreBegin(RestoreBegin {
                restore: 11,
                session: SessionId(id(8)),
                disks: vec![RestoreDisk {
                    disk: DiskIndex(0),
                    device: "/dev/vdb".into(),
                    len: ByteLen::new(1 << 30),
                }],
            }),
        ),
        (
            "restore-hash",
            ServerMessage::RestoreHash { restore: 11, disk: DiskIndex(0), range: extent(0, 65536) },
        ),
        (
            "restore-write",
            ServerMessage::RestoreWrite {
                restore: 11,
                disk: DiskIndex(0),
                extent: extent(1 << 20, 1 << 30),
                payload: Payload::Zero,
            },
        ),
        ("restore-sync", ServerMessage::RestoreSync { restore: 11, sync: 2 }),
        (
            "restore-finish",
            ServerMessage::RestoreFinish {
                restore: 11,
                generation: Generation(4),
                checkpoint: CheckpointId(13),
                seqs: vec![(DiskIndex(0), Seq(20))],
            },
        ),
        ("restore-abort", ServerMessage::RestoreAbort { restore: 11, reason: "called off".into() }),
        (
            "restore-read",
            ServerMessage::RestoreRead { restore: 11, disk: DiskIndex(1), range: extent(512, 512) },
        ),
    ]
}

fn any_id() -> impl Strategy<Value = Id> {
    any::<[u8; 16]>().prop_filter_map("not all zero", Id::from_bytes)
}

fn any_seq() -> impl Strategy<Value = Seq> {
    any::<u64>().prop_map(Seq)
}

fn any_len() -> impl Strategy<Value = ByteLen> {
    any::<u64>().prop_map(ByteLen::new)
}

fn any_disk() -> impl Strategy<Value = DiskIndex> {
    any::<u16>().prop_map(DiskIndex)
}

fn any_clock() -> impl Strategy<Value = WallClock> {
    any::<u64>().prop_map(WallClock)
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,40}"
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}"
}

fn any_extent() -> impl Strategy<Value = Extent> {
    (0..DISK_BYTES_MAX, 1..DISK_BYTES_MAX)
        .prop_map(|(start, len)| extent(start, len.min(DISK_BYTES_MAX - start)))
}

fn extents() -> impl Strategy<Value = Vec<Extent>> {
    vec(any_extent(), 0..20)
}

fn sectors() -> impl Strategy<Value = (Extent, Payload)> {
    prop_oneof![
        (0..DISK_BYTES_MAX >> 10, 1..DISK_BYTES_MAX >> 10)
            .prop_map(|(start, len)| (extent(start << 9, len << 9), Payload::Zero)),
        (0..DISK_BYTES_MAX >> 10, 1u64..=64, any::<u8>()).prop_map(|(start, len, byte)| {
            (extent(start << 9, len << 9), Payload::Data(vec![byte; (len << 9) as usize]))
        }),
        Just((extent(0, 1 << 20), Payload::Data(vec![0x5a; PAYLOAD_BYTES_MAX as usize]))),
    ]
}

fn any_hello() -> impl Strategy<Value = AgentMessage> {
    let continuity = prop_oneof![
        text().prop_map(|reason| Continuity::Unknown { reason }),
        (any_id(), any_seq(), any_seq()).prop_map(|(store, acked, sent)| Continuity::Tracked {
            store: StoreId(store),
            acked,
            sent
        }),
    ];
    let disk = (text(), text(), any_len(), text(), continuity).prop_map(
        |(device, serial, len, tracker, continuity)| DiskHello { device, serial, len, tracker, continuity },
    );
    (option::of(any_id()), name(), any::<u64>(), any_id(), option::of(any_id()), text(), vec(disk, 0..5))
        .prop_map(|(machine, name, generation, boot, session, inventory, disks)| {
            let (machine, session) = (machine.map(MachineId), session.map(SessionId));
            let generation = Generation(generation);
            AgentMessage::Hello(Hello { machine, name, generation, boot, session, inventory, disks })
        })
}

fn any_checkpoint() -> impl Strategy<Value = AgentMessage> {
    use Consistency::*;
    let disk =
        (any_seq(), any_len(), extents()).prop_map(|(seq, len, excluded)| DiskInstant { seq, len, excluded });
    let consistency = prop::sample::select(vec![Crash, FileSystem, Application, Fuzzy]);
    (any::<u64>(), text(), consistency, any_clock(), any::<u64>(), vec(disk, 0..5)).prop_map(
        |(request, name, consistency, taken_at, frozen_ms, disks)| {
            AgentMessage::Checkpoint(CheckpointReport {
                request,
                name,
                consistency,
                taken_at,
                frozen_ms,
                disks,
            })
        },
    )
}

fn any_hashes() -> impl Strategy<Value = AgentMessage> {
    let purpose = prop_oneof![
        Just(HashPurpose::Scan),
        (any::<u64>(), any::<bool>()).prop_map(|(request, last)| HashPurpose::Verify { request, last }),
        any::<u64>().prop_map(|restore| HashPurpose::Restore { restore }),
    ];
    let hashes = vec(option::of(any::<[u8; 32]>()), 1..70);
    (purpose, any_disk(), 9u8..=30, 0u64..1 << 31, hashes, any::<u64>()).prop_map(
        |(purpose, disk, shift, first, hashes, cut)| {
            let block = BlockShift::new(shift).unwrap();
            let len = block.bytes() * hashes.len() as u64 - cut % block.bytes();
            let range = extent(first << shift, len);
            AgentMessage::Hashes(HashReport { purpose, disk, range, block, hashes })
        },
    )
}

fn any_ready() -> impl Strategy<Value = AgentMessage> {
    let knowledge = prop_oneof![
        (any_id(), any_seq(), extents()).prop_map(|(store, acked, changed)| TargetKnowledge::Known {
            store: StoreId(store),
            acked,
            changed
        }),
        text().prop_map(|reason| TargetKnowledge::Unknown { reason }),
    ];
    (any::<u64>(), vec(knowledge, 0..5))
        .prop_map(|(restore, disks)| AgentMessage::RestoreReady(RestoreReady { restore, disks }))
}

pub fn any_agent_message() -> impl Strategy<Value = AgentMessage> {
    prop_oneof![
        any_hello(),
        any_checkpoint(),
        any_hashes(),
        any_ready(),
        Just(AgentMessage::Goodbye),
        (text(), name(), text()).prop_map(|(secret, name, request_pem)| {
            AgentMessage::Enroll(EnrollRequest { secret, name, request_pem })
        }),
        (any_clock(), vec(any_len(), 0..5), vec(any_len(), 0..5), vec(text(), 0..5)).prop_map(
            |(now, backlog, churn, trackers)| AgentMessage::Heartbeat(Heartbeat {
                now,
                backlog,
                churn,
                trackers
            })
        ),
        (any_disk(), any_seq(), sectors()).prop_map(|(disk, seq, (extent, payload))| {
            AgentMessage::Write(Write { disk, seq, extent, payload })
        }),
        (any_disk(), any_seq(), sectors(), any::<u64>()).prop_map(
            |(disk, seq, (extent, payload), age_us)| {
                AgentMessage::WriteInOrder { write: Write { disk, seq, extent, payload }, age_us }
            }
        ),
        (any_clock(), any_clock(), text()).prop_map(|(from, until, cause)| AgentMessage::Gap(GapReport {
            from,
            until,
            cause
        })),
        (any::<u64>(), text())
            .prop_map(|(request, reason)| AgentMessage::CheckpointFailed { request, reason }),
        (any::<u64>(), text()).prop_map(|(restore, reason)| AgentMessage::RestoreFailed { restore, reason }),
        any::<(u64, u64)>().prop_map(|(restore, sync)| AgentMessage::RestoreSynced { restore, sync }),
        any::<u64>().prop_map(|restore| AgentMessage::RestoreFinished { restore }),
        (any::<u64>(), any_disk(), sectors()).prop_map(|(restore, disk, (extent, payload))| {
            AgentMessage::RestoreData { restore, disk, extent, payload }
        }),
    ]
}

fn any_welcome() -> impl Strategy<Value = ServerMessage> {
    let role = prop_oneof![Just(Role::Source), text().prop_map(|reason| Role::Standby { reason })];
    let start = prop::sample::select(vec![StartFrom::Everything, StartFrom::Scan, StartFrom::Marked]);
    let disk = (any_seq(), start).prop_map(|(durable, start)| DiskWelcome { durable, start });
    (any_id(), any_id(), any::<u64>(), role, vec(disk, 0..5)).prop_map(
        |(store, machine, generation, role, disks)| {
            let (store, machine) = (StoreId(store), MachineId(machine));
            ServerMessage::Welcome(Welcome {
                store,
                machine,
                generation: Generation(generation),
                role,
                disks,
            })
        },
    )
}

fn any_restore() -> impl Strategy<Value = ServerMessage> {
    let disk =
        (any_disk(), text(), any_len()).prop_map(|(disk, device, len)| RestoreDisk { disk, device, len });
    prop_oneof![
        (any::<u64>(), any_id(), vec(disk, 0..5)).prop_map(|(restore, session, disks)| {
            ServerMessage::RestoreBegin(RestoreBegin { restore, session: SessionId(session), disks })
        }),
        (any::<u64>(), any_disk(), any_extent())
            .prop_map(|(restore, disk, range)| ServerMessage::RestoreHash { restore, disk, range }),
        (any::<u64>(), any_disk(), 0..DISK_BYTES_MAX / 2, 1..=u64::from(PAYLOAD_BYTES_MAX)).prop_map(
            |(restore, disk, start, len)| ServerMessage::RestoreRead {
                restore,
                disk,
                range: extent(start, len)
            }
        ),
        (any::<u64>(), any_disk(), sectors()).prop_map(|(restore, disk, (extent, payload))| {
            ServerMessage::RestoreWrite { restore, disk, extent, payload }
        }),
        any::<(u64, u64)>().prop_map(|(restore, sync)| ServerMessage::RestoreSync { restore, sync }),
        (any::<[u64; 3]>(), vec((any_disk(), any_seq()), 0..5)).prop_map(
            |([restore, generation, checkpoint], seqs)| ServerMessage::RestoreFinish {
                restore,
                generation: Generation(generation),
                checkpoint: CheckpointId(checkpoint),
                seqs,
            }
        ),
        (any::<u64>(), text()).prop_map(|(restore, reason)| ServerMessage::RestoreAbort { restore, reason }),
    ]
}

pub fn any_server_message() -> impl Strategy<Value = ServerMessage> {
    use RefusalKind::*;
    let kind = prop::sample::select(vec![Version, Identity, Taken, Disks, Busy, Shutdown]);
    prop_oneof![
        any_welcome(),
        any_restore(),
        Just(ServerMessage::Resume),
        (kind, text()).prop_map(|(kind, reason)| ServerMessage::Refused(Refusal { kind, reason })),
        (text(), text()).prop_map(|(certificate_pem, authority_pem)| {
            ServerMessage::Enrolled(EnrollReply { certificate_pem, authority_pem })
        }),
        (any_disk(), any_seq()).prop_map(|(disk, seq)| ServerMessage::Ack { disk, seq }),
        any::<(u64, u64)>().prop_map(|(request, checkpoint)| ServerMessage::CheckpointSealed {
            request,
            checkpoint: CheckpointId(checkpoint)
        }),
        (any::<u64>(), text(), any::<bool>())
            .prop_map(|(request, name, verify)| ServerMessage::TakeCheckpoint { request, name, verify }),
        (any_disk(), any_extent(), extents()).prop_map(|(disk, range, extents)| ServerMessage::Differing {
            disk,
            range,
            extents
        }),
        text().prop_map(|reason| ServerMessage::Hold { reason }),
    ]
}
