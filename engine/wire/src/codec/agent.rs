//! What an agent says, in bytes.

use super::parts::{self, broken, check_count, check_extent, check_extents, check_payload, list, write_list};
use super::{Message, parts::DISKS_MAX, parts::HASHES_MAX, unknown_kind};
use crate::{
    AgentMessage, BlockHash, CheckpointReport, Consistency, Continuity, DiskHello, DiskInstant,
    EnrollRequest, GapReport, HashPurpose, HashReport, Heartbeat, Hello, RestoreReady, TargetKnowledge,
    Write, check_machine_name,
};
use blocks::{ByteReader, ByteWriter, Error, MachineId, Result, SessionId};

const KIND_HELLO: u16 = 0x0001;
pub(crate) const KIND_ENROLL: u16 = 0x0002;
const KIND_HEARTBEAT: u16 = 0x0003;
const KIND_WRITE: u16 = 0x0004;
const KIND_CHECKPOINT: u16 = 0x0005;
const KIND_GAP: u16 = 0x0006;
const KIND_HASHES: u16 = 0x0007;
const KIND_GOODBYE: u16 = 0x0008;
const KIND_CHECKPOINT_FAILED: u16 = 0x0009;
const KIND_RESTORE_READY: u16 = 0x000a;
const KIND_RESTORE_FAILED: u16 = 0x000b;
const KIND_RESTORE_SYNCED: u16 = 0x000c;
const KIND_RESTORE_FINISHED: u16 = 0x000d;
const KIND_RESTORE_DATA: u16 = 0x000e;
const KIND_WRITE_IN_ORDER: u16 = 0x000f;

const TEXT_BYTES_MIN: usize = 4;

impl Message for AgentMessage {
    fn kind(&self) -> u16 {
        match self {
            AgentMessage::Hello(_) => KIND_HELLO,
            AgentMessage::Enroll(_) => KIND_ENROLL,
            AgentMessage::Heartbeat(_) => KIND_HEARTBEAT,
            AgentMessage::Write(_) => KIND_WRITE,
            AgentMessage::WriteInOrder { .. } => KIND_WRITE_IN_ORDER,
            AgentMessage::Checkpoint(_) => KIND_CHECKPOINT,
            AgentMessage::Gap(_) => KIND_GAP,
            AgentMessage::Hashes(_) => KIND_HASHES,
            AgentMessage::Goodbye => KIND_GOODBYE,
            AgentMessage::CheckpointFailed { .. } => KIND_CHECKPOINT_FAILED,
            AgentMessage::RestoreReady(_) => KIND_RESTORE_READY,
            AgentMessage::RestoreFailed { .. } => KIND_RESTORE_FAILED,
            AgentMessage::RestoreSynced { .. } => KIND_RESTORE_SYNCED,
            AgentMessage::RestoreFinished { .. } => KIND_RESTORE_FINISHED,
            AgentMessage::RestoreData { .. } => KIND_RESTORE_DATA,
        }
    }

    fn check_kind(kind: u16) -> Result<()> {
        match kind {
            KIND_HELLO..=KIND_WRITE_IN_ORDER => Ok(()),
            other => Err(unknown_kind(other, "an agent")),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            AgentMessage::Hello(hello) => {
                check_count("disks", hello.disks.len(), DISKS_MAX)?;
                check_machine_name(&hello.name)
            }
            AgentMessage::Enroll(request) => check_machine_name(&request.name),
            AgentMessage::Heartbeat(heartbeat) => {
                check_count("disks", heartbeat.backlog.len(), DISKS_MAX)?;
                check_count("disks", heartbeat.churn.len(), DISKS_MAX)?;
                check_count("disks", heartbeat.trackers.len(), DISKS_MAX)
            }
            AgentMessage::Write(write) | AgentMessage::WriteInOrder { write, .. } => {
                check_payload(write.extent, &write.payload)
            }
            AgentMessage::Checkpoint(report) => {
                check_count("disks", report.disks.len(), DISKS_MAX)?;
                check_extents(report.disks.iter().map(|disk| &disk.excluded[..]))
            }
            AgentMessage::Hashes(report) => check_hashes(report),
            AgentMessage::RestoreData { extent, payload, .. } => check_payload(*extent, payload),
            AgentMessage::RestoreReady(ready) => {
                check_count("disks", ready.disks.len(), DISKS_MAX)?;
                check_extents(ready.disks.iter().map(|disk| match disk {
                    TargetKnowledge::Known { changed, .. } => &changed[..],
                    TargetKnowledge::Unknown { .. } => &[],
                }))
            }
            AgentMessage::Gap(_)
            | AgentMessage::Goodbye
            | AgentMessage::CheckpointFailed { .. }
            | AgentMessage::RestoreFailed { .. }
            | AgentMessage::RestoreSynced { .. }
            | AgentMessage::RestoreFinished { .. } => Ok(()),
        }
    }

    fn encode_fields(&self, w: &mut ByteWriter) {
        match self {
            AgentMessage::Hello(hello) => write_hello(w, hello),
            AgentMessage::Enroll(request) => {
                w.text(&request.secret).text(&request.name).text(&request.request_pem);
            }
            AgentMessage::Heartbeat(heartbeat) => write_heartbeat(w, heartbeat),
            AgentMessage::Write(write) => write_write(w, write),
            AgentMessage::WriteInOrder { write, age_us } => {
                write_write(w, write);
                w.u64(*age_us);
            }
            AgentMessage::Checkpoint(report) => write_checkpoint(w, report),
            AgentMessage::Gap(gap) => {
                w.u64(gap.from.0).u64(gap.until.0).text(&gap.cause);
            }
            AgentMessage::Hashes(report) => write_hashes(w, report),
            AgentMessage::Goodbye => {}
            AgentMessage::CheckpointFailed { request, reason } => {
                w.u64(*request).text(reason);
            }
            AgentMessage::RestoreReady(ready) => {
                w.u64(ready.restore);
                write_list(w, &ready.disks, write_knowledge);
            }
            AgentMessage::RestoreFailed { restore, reason } => {
                w.u64(*restore).text(reason);
            }
            AgentMessage::RestoreSynced { restore, sync } => {
                w.u64(*restore).u64(*sync);
            }
            AgentMessage::RestoreFinished { restore } => {
                w.u64(*restore);
            }
            AgentMessage::RestoreData { restore, disk, extent, payload } => {
                w.u64(*restore).u16(disk.0);
                parts::write_extent(w, *extent);
                parts::write_payload(w, payload);
            }
        }
    }

    fn payload(&self) -> &[u8] {
        match self {
            AgentMessage::Write(Write { payload, .. })
            | AgentMessage::WriteInOrder { write: Write { payload, .. }, .. }
            | AgentMessage::RestoreData { payload, .. } => parts::payload_bytes(payload),
            _ => &[],
        }
    }

    fn decode_fields(kind: u16, r: &mut ByteReader<'_>, payload: &mut Vec<u8>) -> Result<AgentMessage> {
        Ok(match kind {
            KIND_HELLO => AgentMessage::Hello(hello(r)?),
            KIND_ENROLL => AgentMessage::Enroll(EnrollRequest {
                secret: parts::text(r)?,
                name: parts::text(r)?,
                request_pem: parts::text(r)?,
            }),
            KIND_HEARTBEAT => AgentMessage::Heartbeat(heartbeat(r)?),
            KIND_WRITE => AgentMessage::Write(write(r, payload)?),
            KIND_WRITE_IN_ORDER => AgentMessage::WriteInOrder { write: write(r, payload)?, age_us: r.u64()? },
            KIND_CHECKPOINT => AgentMessage::Checkpoint(checkpoint(r)?),
            KIND_GAP => AgentMessage::Gap(GapReport {
                from: parts::clock(r)?,
                until: parts::clock(r)?,
                cause: parts::text(r)?,
            }),
            KIND_HASHES => AgentMessage::Hashes(hashes(r)?),
            KIND_GOODBYE => AgentMessage::Goodbye,
            KIND_CHECKPOINT_FAILED => {
                AgentMessage::CheckpointFailed { request: r.u64()?, reason: parts::text(r)? }
            }
            KIND_RESTORE_READY => AgentMessage::RestoreReady(RestoreReady {
                restore: r.u64()?,
                disks: list(r, DISKS_MAX, 5, knowledge)?,
            }),
            KIND_RESTORE_FAILED => AgentMessage::RestoreFailed { restore: r.u64()?, reason: parts::text(r)? },
            KIND_RESTORE_SYNCED => AgentMessage::RestoreSynced { restore: r.u64()?, sync: r.u64()? },
            KIND_RESTORE_FINISHED => AgentMessage::RestoreFinished { restore: r.u64()? },
            KIND_RESTORE_DATA => AgentMessage::RestoreData {
                restore: r.u64()?,
                disk: parts::disk(r)?,
                extent: parts::extent(r)?,
                payload: parts::payload(r, payload)?,
            },
            other => return Err(unknown_kind(other, "an agent")),
        })
    }
}

fn write_write(w: &mut ByteWriter, write: &Write) {
    w.u16(write.disk.0).u64(write.seq.0);
    parts::write_extent(w, write.extent);
    parts::write_payload(w, &write.payload);
}

fn write(r: &mut ByteReader<'_>, payload: &mut Vec<u8>) -> Result<Write> {
    Ok(Write {
        disk: parts::disk(r)?,
        seq: parts::seq(r)?,
        extent: parts::extent(r)?,
        payload: parts::payload(r, payload)?,
    })
}

fn write_hello(w: &mut ByteWriter, hello: &Hello) {
    w.id(hello.machine.map(|machine| machine.0)).text(&hello.name).u64(hello.generation.0);
    w.id(Some(hello.boot)).id(hello.session.map(|session| session.0)).text(&hello.inventory);
    write_list(w, &hello.disks, |w, disk| {
        w.text(&disk.device).text(&disk.serial).u64(disk.len.get()).text(&disk.tracker);
        match &disk.continuity {
            Continuity::Unknown { reason } => w.u8(1).text(reason),
            Continuity::Tracked { store, acked, sent } => w.u8(2).id(Some(store.0)).u64(acked.0).u64(sent.0),
        };
    });
}

fn hello(r: &mut ByteReader<'_>) -> Result<Hello> {
    const DISK_BYTES_MIN: usize = 3 * TEXT_BYTES_MIN + 8 + 1 + TEXT_BYTES_MIN;
    Ok(Hello {
        machine: r.id()?.map(MachineId),
        name: parts::text(r)?,
        generation: parts::generation(r)?,
        boot: parts::identity(r)?,
        session: r.id()?.map(SessionId),
        inventory: parts::text(r)?,
        disks: list(r, DISKS_MAX, DISK_BYTES_MIN, |r| {
            Ok(DiskHello {
                device: parts::text(r)?,
                serial: parts::text(r)?,
                len: parts::len(r)?,
                tracker: parts::text(r)?,
                continuity: match r.u8()? {
                    1 => Continuity::Unknown { reason: parts::text(r)? },
                    2 => Continuity::Tracked {
                        store: parts::store(r)?,
                        acked: parts::seq(r)?,
                        sent: parts::seq(r)?,
                    },
                    other => return Err(parts::unknown("continuity", other)),
                },
            })
        })?,
    })
}

fn write_heartbeat(w: &mut ByteWriter, heartbeat: &Heartbeat) {
    w.u64(heartbeat.now.0);
    write_list(w, &heartbeat.backlog, |w, len| _ = w.u64(len.get()));
    write_list(w, &heartbeat.churn, |w, len| _ = w.u64(len.get()));
    write_list(w, &heartbeat.trackers, |w, tracker| _ = w.text(tracker));
}

fn heartbeat(r: &mut ByteReader<'_>) -> Result<Heartbeat> {
    Ok(Heartbeat {
        now: parts::clock(r)?,
        backlog: list(r, DISKS_MAX, 8, parts::len)?,
        churn: list(r, DISKS_MAX, 8, parts::len)?,
        trackers: list(r, DISKS_MAX, TEXT_BYTES_MIN, parts::text)?,
    })
}

fn write_checkpoint(w: &mut ByteWriter, report: &CheckpointReport) {
    w.u64(report.request).text(&report.name);
    w.u8(match report.consistency {
        Consistency::Crash => 1,
        Consistency::FileSystem => 2,
        Consistency::Application => 3,
        Consistency::Fuzzy => 4,
    });
    w.u64(report.taken_at.0).u64(report.frozen_ms);
    write_list(w, &report.disks, |w, disk| {
        w.u64(disk.seq.0).u64(disk.len.get());
        parts::write_extents(w, &disk.excluded);
    });
}

fn checkpoint(r: &mut ByteReader<'_>) -> Result<CheckpointReport> {
    Ok(CheckpointReport {
        request: r.u64()?,
        name: parts::text(r)?,
        consistency: match r.u8()? {
            1 => Consistency::Crash,
            2 => Consistency::FileSystem,
            3 => Consistency::Application,
            4 => Consistency::Fuzzy,
            other => return Err(parts::unknown("consistency", other)),
        },
        taken_at: parts::clock(r)?,
        frozen_ms: r.u64()?,
        disks: list(r, DISKS_MAX, 20, |r| {
            Ok(DiskInstant { seq: parts::seq(r)?, len: parts::len(r)?, excluded: parts::extents(r)? })
        })?,
    })
}

fn check_hashes(report: &HashReport) -> Result<()> {
    check_extent(report.range)?;
    if !report.range.start().is_aligned(report.block) {
        return Err(broken(format!("{} does not start at a block", report.range)));
    }
    let blocks = report.range.blocks(report.block);
    if u64::try_from(report.hashes.len()) != Ok(blocks.end - blocks.start) {
        return Err(broken(format!("{} hashes for {}", report.hashes.len(), report.range)));
    }
    check_count("hashes", report.hashes.len(), HASHES_MAX)
}

/// Which blocks have a hash, as bits (lowest first), then only those hashes.
fn write_hashes(w: &mut ByteWriter, report: &HashReport) {
    match report.purpose {
        HashPurpose::Scan => w.u8(1),
        HashPurpose::Verify { request, last } => w.u8(2).u64(request).bool(last),
        HashPurpose::Restore { restore } => w.u8(3).u64(restore),
    };
    w.u16(report.disk.0);
    parts::write_extent(w, report.range);
    w.u8(report.block.get());
    for eight in report.hashes.chunks(8) {
        let bits = eight.iter().rev().fold(0, |bits, hash| bits << 1 | u8::from(hash.is_some()));
        w.u8(bits);
    }
    report.hashes.iter().flatten().for_each(|hash| _ = w.bytes(hash));
}

fn hashes(r: &mut ByteReader<'_>) -> Result<HashReport> {
    let purpose = match r.u8()? {
        1 => HashPurpose::Scan,
        2 => HashPurpose::Verify { request: r.u64()?, last: r.bool()? },
        3 => HashPurpose::Restore { restore: r.u64()? },
        other => return Err(parts::unknown("purpose of hashes", other)),
    };
    let (disk, range, block) = (parts::disk(r)?, parts::extent(r)?, parts::block(r)?);
    // Before the range is used to count blocks.
    check_extent(range)?;
    let blocks = range.blocks(block);
    let count = usize::try_from(blocks.end - blocks.start).unwrap_or(usize::MAX);
    check_count("hashes", count, HASHES_MAX)?;
    let bits = r.bytes(count.div_ceil(8))?;
    let present = |block: usize| bits[block / 8] >> (block % 8) & 1 == 1;
    if (count..bits.len() * 8).any(present) {
        return Err(Error::corrupt("a hash for a block beyond the range"));
    }
    let hashes = (0..count)
        .map(|block| if present(block) { r.array::<32>().map(Some) } else { Ok(None) })
        .collect::<Result<Vec<Option<BlockHash>>>>()?;
    Ok(HashReport { purpose, disk, range, block, hashes })
}

fn write_knowledge(w: &mut ByteWriter, knowledge: &TargetKnowledge) {
    match knowledge {
        TargetKnowledge::Known { store, acked, changed } => {
            w.u8(1).id(Some(store.0)).u64(acked.0);
            parts::write_extents(w, changed);
        }
        TargetKnowledge::Unknown { reason } => {
            w.u8(2).text(reason);
        }
    }
}

fn knowledge(r: &mut ByteReader<'_>) -> Result<TargetKnowledge> {
    Ok(match r.u8()? {
        1 => TargetKnowledge::Known {
            store: parts::store(r)?,
            acked: parts::seq(r)?,
            changed: parts::extents(r)?,
        },
        2 => TargetKnowledge::Unknown { reason: parts::text(r)? },
        other => return Err(parts::unknown("knowledge of a target", other)),
    })
}
