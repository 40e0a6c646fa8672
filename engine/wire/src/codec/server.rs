//! What a server says, in bytes.

use super::parts::{
    self, DISKS_MAX, check_count, check_extent, check_extents, check_payload, list, write_list,
};
use super::{Message, unknown_kind};
use crate::{
    DiskWelcome, EnrollReply, PAYLOAD_BYTES_MAX, Refusal, RefusalKind, RestoreBegin, RestoreDisk, Role,
    ServerMessage, StartFrom, Welcome,
};
use blocks::{ByteReader, ByteWriter, CheckpointId, Extent, Result};

const KIND_WELCOME: u16 = 0x8001;
const KIND_REFUSED: u16 = 0x8002;
const KIND_ENROLLED: u16 = 0x8003;
const KIND_ACK: u16 = 0x8004;
const KIND_CHECKPOINT_SEALED: u16 = 0x8005;
const KIND_TAKE_CHECKPOINT: u16 = 0x8006;
const KIND_DIFFERING: u16 = 0x8007;
const KIND_HOLD: u16 = 0x8008;
const KIND_RESUME: u16 = 0x8009;
const KIND_RESTORE_BEGIN: u16 = 0x800a;
const KIND_RESTORE_HASH: u16 = 0x800b;
const KIND_RESTORE_WRITE: u16 = 0x800c;
const KIND_RESTORE_SYNC: u16 = 0x800d;
const KIND_RESTORE_FINISH: u16 = 0x800e;
const KIND_RESTORE_ABORT: u16 = 0x800f;
const KIND_RESTORE_READ: u16 = 0x8010;

impl Message for ServerMessage {
    fn kind(&self) -> u16 {
        match self {
            ServerMessage::Welcome(_) => KIND_WELCOME,
            ServerMessage::Refused(_) => KIND_REFUSED,
            ServerMessage::Enrolled(_) => KIND_ENROLLED,
            ServerMessage::Ack { .. } => KIND_ACK,
            ServerMessage::CheckpointSealed { .. } => KIND_CHECKPOINT_SEALED,
            ServerMessage::TakeCheckpoint { .. } => KIND_TAKE_CHECKPOINT,
            ServerMessage::Differing { .. } => KIND_DIFFERING,
            ServerMessage::Hold { .. } => KIND_HOLD,
            ServerMessage::Resume => KIND_RESUME,
            ServerMessage::RestoreBegin(_) => KIND_RESTORE_BEGIN,
            ServerMessage::RestoreHash { .. } => KIND_RESTORE_HASH,
            ServerMessage::RestoreWrite { .. } => KIND_RESTORE_WRITE,
            ServerMessage::RestoreSync { .. } => KIND_RESTORE_SYNC,
            ServerMessage::RestoreFinish { .. } => KIND_RESTORE_FINISH,
            ServerMessage::RestoreAbort { .. } => KIND_RESTORE_ABORT,
            ServerMessage::RestoreRead { .. } => KIND_RESTORE_READ,
        }
    }

    fn check_kind(kind: u16) -> Result<()> {
        match kind {
            KIND_WELCOME..=KIND_RESTORE_READ => Ok(()),
            other => Err(unknown_kind(other, "a server")),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            ServerMessage::Welcome(welcome) => check_count("disks", welcome.disks.len(), DISKS_MAX),
            ServerMessage::Differing { range, extents, .. } => {
                check_extent(*range)?;
                check_extents([&extents[..]])
            }
            ServerMessage::RestoreBegin(begin) => check_count("disks", begin.disks.len(), DISKS_MAX),
            ServerMessage::RestoreHash { range, .. } => check_extent(*range),
            ServerMessage::RestoreRead { range, .. } => check_read(*range),
            ServerMessage::RestoreWrite { extent, payload, .. } => check_payload(*extent, payload),
            ServerMessage::RestoreFinish { seqs, .. } => check_count("disks", seqs.len(), DISKS_MAX),
            ServerMessage::Refused(_)
            | ServerMessage::Enrolled(_)
            | ServerMessage::Ack { .. }
            | ServerMessage::CheckpointSealed { .. }
            | ServerMessage::TakeCheckpoint { .. }
            | ServerMessage::Hold { .. }
            | ServerMessage::Resume
            | ServerMessage::RestoreSync { .. }
            | ServerMessage::RestoreAbort { .. } => Ok(()),
        }
    }

    fn encode_fields(&self, w: &mut ByteWriter) {
        match self {
            ServerMessage::Welcome(welcome) => write_welcome(w, welcome),
            ServerMessage::Refused(refusal) => {
                w.u8(refusal_to_u8(refusal.kind)).text(&refusal.reason);
            }
            ServerMessage::Enrolled(reply) => {
                w.text(&reply.certificate_pem).text(&reply.authority_pem);
            }
            ServerMessage::Ack { disk, seq } => {
                w.u16(disk.0).u64(seq.0);
            }
            ServerMessage::CheckpointSealed { request, checkpoint } => {
                w.u64(*request).u64(checkpoint.0);
            }
            ServerMessage::TakeCheckpoint { request, name, verify } => {
                w.u64(*request).text(name).bool(*verify);
            }
            ServerMessage::Differing { disk, range, extents } => {
                w.u16(disk.0);
                parts::write_extent(w, *range);
                parts::write_extents(w, extents);
            }
            ServerMessage::Hold { reason } => {
                w.text(reason);
            }
            ServerMessage::Resume => {}
            ServerMessage::RestoreBegin(_)
            | ServerMessage::RestoreHash { .. }
            | ServerMessage::RestoreRead { .. }
            | ServerMessage::RestoreWrite { .. }
            | ServerMessage::RestoreSync { .. }
            | ServerMessage::RestoreFinish { .. }
            | ServerMessage::RestoreAbort { .. } => write_restore(w, self),
        }
    }

    fn payload(&self) -> &[u8] {
        match self {
            ServerMessage::RestoreWrite { payload, .. } => parts::payload_bytes(payload),
            _ => &[],
        }
    }

    fn decode_fields(kind: u16, r: &mut ByteReader<'_>, payload: &mut Vec<u8>) -> Result<ServerMessage> {
        Ok(match kind {
            KIND_WELCOME => ServerMessage::Welcome(welcome(r)?),
            KIND_REFUSED => ServerMessage::Refused(Refusal { kind: refusal(r)?, reason: parts::text(r)? }),
            KIND_ENROLLED => ServerMessage::Enrolled(EnrollReply {
                certificate_pem: parts::text(r)?,
                authority_pem: parts::text(r)?,
            }),
            KIND_ACK => ServerMessage::Ack { disk: parts::disk(r)?, seq: parts::seq(r)? },
            KIND_CHECKPOINT_SEALED => {
                ServerMessage::CheckpointSealed { request: r.u64()?, checkpoint: CheckpointId(r.u64()?) }
            }
            KIND_TAKE_CHECKPOINT => {
                ServerMessage::TakeCheckpoint { request: r.u64()?, name: parts::text(r)?, verify: r.bool()? }
            }
            KIND_DIFFERING => ServerMessage::Differing {
                disk: parts::disk(r)?,
                range: parts::extent(r)?,
                extents: parts::extents(r)?,
            },
            KIND_HOLD => ServerMessage::Hold { reason: parts::text(r)? },
            KIND_RESUME => ServerMessage::Resume,
            other => return restore(other, r, payload),
        })
    }
}

fn write_restore(w: &mut ByteWriter, message: &ServerMessage) {
    match message {
        ServerMessage::RestoreBegin(begin) => {
            w.u64(begin.restore).id(Some(begin.session.0));
            write_list(w, &begin.disks, |w, disk| {
                w.u16(disk.disk.0).text(&disk.device).u64(disk.len.get());
            });
        }
        ServerMessage::RestoreHash { restore, disk, range }
        | ServerMessage::RestoreRead { restore, disk, range } => {
            w.u64(*restore).u16(disk.0);
            parts::write_extent(w, *range);
        }
        ServerMessage::RestoreWrite { restore, disk, extent, payload } => {
            w.u64(*restore).u16(disk.0);
            parts::write_extent(w, *extent);
            parts::write_payload(w, payload);
        }
        ServerMessage::RestoreSync { restore, sync } => {
            w.u64(*restore).u64(*sync);
        }
        ServerMessage::RestoreFinish { restore, generation, checkpoint, seqs } => {
            w.u64(*restore).u64(generation.0).u64(checkpoint.0);
            write_list(w, seqs, |w, (disk, seq)| _ = w.u16(disk.0).u64(seq.0));
        }
        ServerMessage::RestoreAbort { restore, reason } => {
            w.u64(*restore).text(reason);
        }
        _ => unreachable!("only restores are written here"),
    }
}

fn restore(kind: u16, r: &mut ByteReader<'_>, payload: &mut Vec<u8>) -> Result<ServerMessage> {
    Ok(match kind {
        KIND_RESTORE_BEGIN => ServerMessage::RestoreBegin(RestoreBegin {
            restore: r.u64()?,
            session: parts::session(r)?,
            disks: list(r, DISKS_MAX, 14, |r| {
                Ok(RestoreDisk { disk: parts::disk(r)?, device: parts::text(r)?, len: parts::len(r)? })
            })?,
        }),
        KIND_RESTORE_HASH => {
            ServerMessage::RestoreHash { restore: r.u64()?, disk: parts::disk(r)?, range: parts::extent(r)? }
        }
        KIND_RESTORE_READ => {
            ServerMessage::RestoreRead { restore: r.u64()?, disk: parts::disk(r)?, range: parts::extent(r)? }
        }
        KIND_RESTORE_WRITE => ServerMessage::RestoreWrite {
            restore: r.u64()?,
            disk: parts::disk(r)?,
            extent: parts::extent(r)?,
            payload: parts::payload(r, payload)?,
        },
        KIND_RESTORE_SYNC => ServerMessage::RestoreSync { restore: r.u64()?, sync: r.u64()? },
        KIND_RESTORE_FINISH => ServerMessage::RestoreFinish {
            restore: r.u64()?,
            generation: parts::generation(r)?,
            checkpoint: CheckpointId(r.u64()?),
            seqs: list(r, DISKS_MAX, 10, |r| Ok((parts::disk(r)?, parts::seq(r)?)))?,
        },
        KIND_RESTORE_ABORT => ServerMessage::RestoreAbort { restore: r.u64()?, reason: parts::text(r)? },
        other => return Err(unknown_kind(other, "a server")),
    })
}

/// The answer must fit one message.
fn check_read(range: Extent) -> Result<()> {
    check_extent(range)?;
    match range.len().get() <= u64::from(PAYLOAD_BYTES_MAX) {
        true => Ok(()),
        false => Err(parts::broken(format!("reading {range} takes more than {PAYLOAD_BYTES_MAX} bytes"))),
    }
}

fn write_welcome(w: &mut ByteWriter, welcome: &Welcome) {
    w.id(Some(welcome.store.0)).id(Some(welcome.machine.0)).u64(welcome.generation.0);
    match &welcome.role {
        Role::Source => w.u8(1),
        Role::Standby { reason } => w.u8(2).text(reason),
    };
    write_list(w, &welcome.disks, |w, disk| {
        w.u64(disk.durable.0).u8(match disk.start {
            StartFrom::Everything => 1,
            StartFrom::Scan => 2,
            StartFrom::Marked => 3,
        });
    });
}

fn welcome(r: &mut ByteReader<'_>) -> Result<Welcome> {
    Ok(Welcome {
        store: parts::store(r)?,
        machine: parts::machine(r)?,
        generation: parts::generation(r)?,
        role: match r.u8()? {
            1 => Role::Source,
            2 => Role::Standby { reason: parts::text(r)? },
            other => return Err(parts::unknown("role", other)),
        },
        disks: list(r, DISKS_MAX, 9, |r| {
            Ok(DiskWelcome {
                durable: parts::seq(r)?,
                start: match r.u8()? {
                    1 => StartFrom::Everything,
                    2 => StartFrom::Scan,
                    3 => StartFrom::Marked,
                    other => return Err(parts::unknown("start", other)),
                },
            })
        })?,
    })
}

fn refusal_to_u8(kind: RefusalKind) -> u8 {
    match kind {
        RefusalKind::Version => 1,
        RefusalKind::Identity => 2,
        RefusalKind::Taken => 3,
        RefusalKind::Disks => 4,
        RefusalKind::Busy => 5,
        RefusalKind::Shutdown => 6,
    }
}

fn refusal(r: &mut ByteReader<'_>) -> Result<RefusalKind> {
    Ok(match r.u8()? {
        1 => RefusalKind::Version,
        2 => RefusalKind::Identity,
        3 => RefusalKind::Taken,
        4 => RefusalKind::Disks,
        5 => RefusalKind::Busy,
        6 => RefusalKind::Shutdown,
        other => return Err(parts::unknown("refusal", other)),
    })
}
