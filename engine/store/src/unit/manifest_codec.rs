//! The bytes of a manifest. docs/formats/store.md has the table.

use crate::image::ImageFormat;
use crate::unit::branch::{BranchId, BranchKind, DeltaId};
use crate::unit::checkpoint::{Checkpoint, Consistency, Gap};
use crate::unit::manifest::{
    Branch, BranchEnd, Delta, DiskSpec, Manifest, MergedIndex, Replay, SealedCheckpoint,
};
use blocks::{
    BlockShift, ByteLen, ByteOffset, ByteReader, ByteWriter, CheckpointId, DiskIndex, Error, ErrorKind,
    Extent, Generation, Id, MachineId, Result, Seq, SessionId, StoreId, WallClock,
};

const MAGIC: [u8; 4] = *b"UMan";
const VERSION: u16 = 3;
/// Before disks could grow.
const VERSION_2: u16 = 2;
/// Before clones, thinning, protection and quotas.
const VERSION_1: u16 = 1;

/// The bytes of that version.
pub(crate) fn encode(manifest: &Manifest) -> Vec<u8> {
    let mut w = ByteWriter::new();
    w.bytes(&MAGIC).u16(VERSION).id(Some(manifest.store.0)).id(Some(manifest.machine.0)).u64(manifest.salt);
    w.text(&manifest.name).blob(&manifest.definition);
    w.u8(match manifest.image_format {
        ImageFormat::Raw => 0,
        ImageFormat::Vhd => 1,
        ImageFormat::Qcow2 => 2,
        ImageFormat::Vhdx => 3,
        ImageFormat::Vmdk => 4,
    });
    list(&mut w, &manifest.disks, |w, disk| {
        w.u64(disk.len.get()).text(&disk.serial).text(&disk.device);
    });
    w.u64(manifest.generation.0).u64(manifest.next_delta).u64(manifest.next_branch);
    w.u64(manifest.next_checkpoint).u64(manifest.main.0);
    w.u64(manifest.horizon.map_or(0, |id| id.0));
    list(&mut w, &manifest.floors, |w, floor| {
        w.u64(floor.0);
    });
    list(&mut w, &manifest.image_lens, |w, len| {
        w.u64(len.get());
    });
    w.bool(manifest.replay.is_some());
    if let Some(replay) = &manifest.replay {
        w.u64(replay.up_to.0);
        list(&mut w, &replay.floors, |w, floor| {
            w.u64(floor.0);
        });
    }
    list(&mut w, &manifest.branches, encode_branch);
    list(&mut w, &manifest.deltas, |w, (id, delta)| {
        w.u64(id.0).u16(delta.disk.0).u64(delta.branch.0).u64(delta.parent.0);
        w.u64(delta.log_len.get()).u64(delta.entries).u64(delta.covered.get()).u32(delta.revision);
    });
    list(&mut w, &manifest.merged, |w, merged| {
        w.u16(merged.disk.0).u64(merged.first.0).u64(merged.last.0).u8(merged.tier).u32(merged.revision);
    });
    list(&mut w, manifest.checkpoints.values(), encode_checkpoint);
    list(&mut w, &manifest.gaps, |w, gap| {
        w.u64(gap.from.0).u64(gap.until.0).text(&gap.cause);
    });
    list(&mut w, &manifest.notes, |w, (key, value)| {
        w.text(key).blob(value);
    });
    w.u64(manifest.quota.map_or(0, ByteLen::get));
    w.checksum();
    w.into_bytes()
}

/// The version that these bytes are; `Corrupt` or `Unsupported` where they are none.
pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest> {
    let mut r = ByteReader::checksummed(bytes, "a manifest")?;
    if r.array()? != MAGIC {
        return Err(Error::corrupt("not a manifest"));
    }
    let version = r.u16()?;
    if ![VERSION, VERSION_2, VERSION_1].contains(&version) {
        let context = format!("a manifest of version {version}, which is newer than this program");
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let mut manifest = Manifest {
        store: StoreId(some_id(&mut r)?),
        machine: MachineId(some_id(&mut r)?),
        salt: r.u64()?,
        name: r.text()?.to_owned(),
        definition: r.blob()?.to_vec(),
        image_format: match r.u8()? {
            0 => ImageFormat::Raw,
            1 => ImageFormat::Vhd,
            2 => ImageFormat::Qcow2,
            3 => ImageFormat::Vhdx,
            4 => ImageFormat::Vmdk,
            other => return Err(Error::corrupt(format!("image format {other}"))),
        },
        disks: items(&mut r, |r| {
            Ok(DiskSpec {
                len: ByteLen::new(r.u64()?),
                serial: r.text()?.to_owned(),
                device: r.text()?.to_owned(),
            })
        })?,
        generation: Generation(r.u64()?),
        next_delta: r.u64()?,
        next_branch: r.u64()?,
        next_checkpoint: r.u64()?,
        main: BranchId(r.u64()?),
        horizon: optional_checkpoint(&mut r)?,
        floors: items(&mut r, |r| Ok(DeltaId(r.u64()?)))?,
        image_lens: match version {
            VERSION => items(&mut r, |r| Ok(ByteLen::new(r.u64()?)))?,
            _ => Vec::new(),
        },
        replay: match r.bool()? {
            false => None,
            true => Some(Replay {
                up_to: CheckpointId(r.u64()?),
                floors: items(&mut r, |r| Ok(DeltaId(r.u64()?)))?,
            }),
        },
        branches: items(&mut r, |r| decode_branch(r, version))?,
        deltas: items(&mut r, |r| decode_delta(r, version))?,
        merged: items(&mut r, |r| {
            let (disk, first, last) = (DiskIndex(r.u16()?), DeltaId(r.u64()?), DeltaId(r.u64()?));
            Ok(MergedIndex { disk, first, last, tier: r.u8()?, revision: revision(r, version)? })
        })?,
        checkpoints: items(&mut r, |r| decode_checkpoint(r, version))?,
        gaps: items(&mut r, |r| {
            Ok(Gap { from: WallClock(r.u64()?), until: WallClock(r.u64()?), cause: r.text()?.to_owned() })
        })?,
        notes: items(&mut r, |r| Ok((r.text()?.to_owned(), r.blob()?.to_vec())))?,
        quota: match version {
            VERSION_1 => None,
            _ => Some(r.u64()?).filter(|quota| *quota != 0).map(ByteLen::new),
        },
    };
    r.finish()?;
    if version != VERSION {
        manifest.never_grew();
    }
    manifest.check()?;
    Ok(manifest)
}

fn list<I: IntoIterator>(w: &mut ByteWriter, items: I, mut encode: impl FnMut(&mut ByteWriter, I::Item))
where
    I::IntoIter: ExactSizeIterator,
{
    let items = items.into_iter();
    w.u32(u32::try_from(items.len()).expect("lists of a manifest are far shorter"));
    items.for_each(|item| encode(w, item));
}

fn items<T, C: FromIterator<T>>(
    r: &mut ByteReader<'_>,
    mut decode: impl FnMut(&mut ByteReader<'_>) -> Result<T>,
) -> Result<C> {
    (0..r.u32()?).map(|_| decode(r)).collect()
}

fn some_id(r: &mut ByteReader<'_>) -> Result<Id> {
    r.id()?.ok_or_else(|| Error::corrupt("an identity of all zero"))
}

fn revision(r: &mut ByteReader<'_>, version: u16) -> Result<u32> {
    if version == VERSION_1 { Ok(0) } else { r.u32() }
}

fn optional_checkpoint(r: &mut ByteReader<'_>) -> Result<Option<CheckpointId>> {
    Ok(Some(r.u64()?).filter(|id| *id != 0).map(CheckpointId))
}

fn encode_branch(w: &mut ByteWriter, (id, branch): (&BranchId, &Branch)) {
    let (kind, session) = match branch.kind {
        BranchKind::Main => (0, None),
        BranchKind::Session(session) => (1, Some(session.0)),
        BranchKind::Superseded => (2, None),
        BranchKind::Clone => (3, None),
    };
    w.u64(id.0).u8(kind).id(session).u64(branch.base.map_or(0, |id| id.0));
    list(w, &branch.ends, |w, end| {
        w.u64(end.sealed.0).u64(end.sealed_seq.0).u64(end.open.0).u64(end.len.get());
    });
    w.text(&branch.name);
}

fn decode_branch(r: &mut ByteReader<'_>, version: u16) -> Result<(BranchId, Branch)> {
    let id = BranchId(r.u64()?);
    let kind = match (r.u8()?, r.id()?) {
        (0, None) => BranchKind::Main,
        (1, Some(session)) => BranchKind::Session(SessionId(session)),
        (2, None) => BranchKind::Superseded,
        (3, None) => BranchKind::Clone,
        (other, _) => return Err(Error::corrupt(format!("branch kind {other}"))),
    };
    let base = optional_checkpoint(r)?;
    let ends = items(r, |r| {
        Ok(BranchEnd {
            sealed: DeltaId(r.u64()?),
            sealed_seq: Seq(r.u64()?),
            open: DeltaId(r.u64()?),
            len: ByteLen::new(if version == VERSION { r.u64()? } else { 0 }),
        })
    })?;
    let name = if version == VERSION_1 { String::new() } else { r.text()?.to_owned() };
    Ok((id, Branch { kind, name, base, ends }))
}

fn decode_delta(r: &mut ByteReader<'_>, version: u16) -> Result<(DeltaId, Delta)> {
    let id = DeltaId(r.u64()?);
    let delta = Delta {
        disk: DiskIndex(r.u16()?),
        branch: BranchId(r.u64()?),
        parent: DeltaId(r.u64()?),
        log_len: ByteLen::new(r.u64()?),
        entries: r.u64()?,
        covered: ByteLen::new(r.u64()?),
        revision: revision(r, version)?,
    };
    Ok((id, delta))
}

fn encode_checkpoint(w: &mut ByteWriter, sealed: &SealedCheckpoint) {
    let checkpoint = &sealed.checkpoint;
    w.u64(checkpoint.id.0).u64(checkpoint.branch.0).text(&checkpoint.name);
    w.u8(match checkpoint.consistency {
        Consistency::Crash => 0,
        Consistency::FileSystem => 1,
        Consistency::Application => 2,
        Consistency::Fuzzy => 3,
    });
    w.u64(checkpoint.source_time.0).u64(checkpoint.server_time.0).u64(checkpoint.frozen_ms);
    w.u64(checkpoint.generation.0).u64(checkpoint.changed.get());
    list(w, &checkpoint.lens, |w, len| {
        w.u64(len.get());
    });
    list(w, &checkpoint.seqs, |w, seq| {
        w.u64(seq.0);
    });
    list(w, &checkpoint.excluded, |w, extents| {
        list(w, extents, |w, extent| {
            w.u64(extent.start().get()).u64(extent.len().get());
        });
    });
    list(w, &sealed.ends, |w, (delta, seq)| {
        w.u64(delta.0).u64(seq.0);
    });
    w.u64(checkpoint.protected_until.0);
}

fn decode_checkpoint(r: &mut ByteReader<'_>, version: u16) -> Result<(CheckpointId, SealedCheckpoint)> {
    let id = CheckpointId(r.u64()?);
    let branch = BranchId(r.u64()?);
    let name = r.text()?.to_owned();
    let consistency = match r.u8()? {
        0 => Consistency::Crash,
        1 => Consistency::FileSystem,
        2 => Consistency::Application,
        3 => Consistency::Fuzzy,
        other => return Err(Error::corrupt(format!("consistency {other}"))),
    };
    let (source_time, server_time) = (WallClock(r.u64()?), WallClock(r.u64()?));
    let (frozen_ms, generation, changed) = (r.u64()?, Generation(r.u64()?), ByteLen::new(r.u64()?));
    let lens = items(r, |r| Ok(ByteLen::new(r.u64()?)))?;
    let seqs = items(r, |r| Ok(Seq(r.u64()?)))?;
    let excluded =
        items(r, |r| items(r, |r| Ok(Extent::new(ByteOffset::new(r.u64()?), ByteLen::new(r.u64()?))?)))?;
    let ends = items(r, |r| Ok((DeltaId(r.u64()?), Seq(r.u64()?))))?;
    let protected_until = if version == VERSION_1 { WallClock(0) } else { WallClock(r.u64()?) };
    let checkpoint = Checkpoint {
        id,
        branch,
        name,
        consistency,
        source_time,
        server_time,
        frozen_ms,
        generation,
        lens,
        seqs,
        excluded,
        changed,
        protected_until,
    };
    Ok((id, SealedCheckpoint { checkpoint, ends }))
}

impl Manifest {
    /// Fills in what older versions did not say: every disk had one length at all times.
    fn never_grew(&mut self) {
        self.image_lens = self.disks.iter().map(|disk| disk.len).collect();
        for branch in self.branches.values_mut() {
            for (end, disk) in branch.ends.iter_mut().zip(&self.disks) {
                end.len = disk.len;
            }
        }
    }

    /// Whether the lengths go together: nothing is longer than what comes after it on its line.
    fn check_lens(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::corrupt(format!("manifest of {}: {what}", self.name)));
        if self.image_lens.len() != self.disks.len() {
            return wrong(format!("{} disks, {} images", self.disks.len(), self.image_lens.len()));
        }
        for (at, (disk, image)) in self.disks.iter().zip(&self.image_lens).enumerate() {
            if self.branches[&self.main].ends[at].len != disk.len {
                return wrong(format!("the main branch has another length of disk {at} than the unit"));
            }
            let too_short =
                |len: ByteLen| len < *image || !len.is_aligned(BlockShift::SECTOR) || len.is_zero();
            let branches = self.branches.values().map(|branch| branch.ends[at].len);
            let checkpoints = self.checkpoints.values().map(|sealed| sealed.checkpoint.lens[at]);
            if let Some(len) = branches.chain(checkpoints).find(|len| too_short(*len)) {
                return wrong(format!("disk {at} has {len} bytes over an image of {image}"));
            }
        }
        Ok(())
    }

    /// Whether everything that is named exists; after this, code may rely on it.
    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::corrupt(format!("manifest of {}: {what}", self.name)));
        let disks = self.disks.len();
        if disks == 0 || disks > usize::from(u16::MAX) || self.floors.len() != disks {
            return wrong(format!("{disks} disks, {} floors", self.floors.len()));
        }
        if !self.branches.contains_key(&self.main) {
            return wrong("there is no main branch".to_owned());
        }
        // Every delta's parent is there or in the image, so every line is whole that ends with one of them.
        let is_known = |disk: DiskIndex, end: DeltaId| {
            end <= self.floor(disk) || self.deltas.get(&end).is_some_and(|delta| delta.disk == disk)
        };
        for (id, delta) in &self.deltas {
            let possible = delta.parent < *id && usize::from(delta.disk.0) < disks && id.0 < self.next_delta;
            if !possible || !is_known(delta.disk, delta.parent) {
                return wrong(format!("delta {id} cannot be"));
            }
        }
        for merged in &self.merged {
            let known = usize::from(merged.disk.0) < disks && self.deltas.contains_key(&merged.last);
            if !known || merged.first > merged.last || !is_known(merged.disk, merged.last) {
                return wrong(format!("the index of deltas {} to {} cannot be", merged.first, merged.last));
            }
        }
        for (id, branch) in &self.branches {
            if branch.ends.len() != disks {
                return wrong(format!("branch {id} has {} of {disks} disks", branch.ends.len()));
            }
            if branch.base.is_some_and(|base| !self.checkpoints.contains_key(&base)) {
                return wrong(format!("branch {id} starts nowhere"));
            }
            for (disk, end) in self.disk_indexes().zip(&branch.ends) {
                if !is_known(disk, end.sealed) || end.open.0 >= self.next_delta {
                    return wrong(format!("branch {id} has no delta {} of disk {disk}", end.sealed));
                }
            }
        }
        for (id, sealed) in &self.checkpoints {
            if sealed.ends.len() != disks || sealed.checkpoint.lens.len() != disks {
                return wrong(format!("checkpoint {id} has {} of {disks} disks", sealed.ends.len()));
            }
            for (disk, (end, _)) in self.disk_indexes().zip(&sealed.ends) {
                if !is_known(disk, *end) {
                    return wrong(format!("checkpoint {id} has no delta {end} of disk {disk}"));
                }
            }
        }
        if let Some(replay) = &self.replay
            && (replay.floors.len() != disks || !self.checkpoints.contains_key(&replay.up_to))
        {
            return wrong("a replay of other disks, or up to nowhere".to_owned());
        }
        self.check_lens()
    }
}

#[cfg(test)]
#[path = "manifest_codec_tests.rs"]
pub(crate) mod tests;
