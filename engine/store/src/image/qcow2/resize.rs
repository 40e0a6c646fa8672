//! Another length for a QCOW2: size and number of L1 entries lie in one sector, so either both count or none.

use super::super::resize::only_by_converting;
use super::header::Header;
use blocks::{BlockShift, ByteLen, ByteOffset, Error, Extent, Result, StorageFile};

/// From the size, over the encryption (none), to the number of L1 entries.
const FIELDS_AT: ByteOffset = ByteOffset::new(24);

/// How long the disk can be made in the clusters of its L1 table.
pub(in super::super) fn room(file: &dyn StorageFile) -> Result<ByteLen> {
    let header = Header::read(file)?;
    let entries = l1_room(&header)?.get() / 8;
    let bytes = u128::from(entries) * u128::from(header.cluster.bytes() * header.l2_entries());
    let len_max = super::LEN_MAX.get();
    Ok(ByteLen::new(u64::try_from(bytes).map_or(len_max, |bytes| bytes.min(len_max))))
}

/// Up to the end of the table's last cluster.
fn l1_room(header: &Header) -> Result<ByteLen> {
    Ok(Extent::new(header.l1_at, header.l1_len())?.end().align_up(header.cluster) - header.l1_at)
}

/// Gives the disk another length; see [`super::super::resize_image`].
pub(in super::super) fn resize(file: &dyn StorageFile, len: ByteLen) -> Result<()> {
    let header = Header::read(file)?;
    let name = file.name();
    if header.backing.is_some() {
        return Err(only_by_converting(name, "a QCOW2 on a backing file"));
    }
    if header.snapshots > 0 {
        return Err(only_by_converting(name, "a QCOW2 with snapshots inside"));
    }
    let entries = len.get().div_ceil(header.cluster.bytes() * header.l2_entries()).max(1);
    if ByteLen::new(entries * 8) > l1_room(&header)? {
        return Err(only_by_converting(name, "a QCOW2 whose L1 table has no room left"));
    }
    // Entries of a disk that was longer once stay.
    let entries = u32::try_from(entries).expect("a table in room that is checked").max(header.l1_entries);
    check_unused(file, header.l1_at + header.l1_len(), header.l1_at + ByteLen::new(u64::from(entries) * 8))?;
    if header.autoclear != 0 {
        file.write_at(super::AUTOCLEAR_AT, &0_u64.to_be_bytes())?;
        file.sync()?;
    }
    debug_assert!(FIELDS_AT.get() + 16 <= BlockShift::SECTOR.bytes());
    let fields = [&len.get().to_be_bytes()[..], &0_u32.to_be_bytes(), &entries.to_be_bytes()].concat();
    file.write_at(FIELDS_AT, &fields)?;
    file.sync().map(drop)
}

/// The entries that come to count must lead nowhere.
fn check_unused(file: &dyn StorageFile, from: ByteOffset, to: ByteOffset) -> Result<()> {
    let Some(fresh) = Extent::between(from, to.min(file.len()?.end())) else { return Ok(()) };
    let mut bytes = vec![0; fresh.len().as_usize()];
    file.read_at(fresh.start(), &mut bytes)?;
    if blocks::is_zero(&bytes) {
        return Ok(());
    }
    Err(Error::corrupt(format!("{}: what follows its L1 table is not empty", file.name())))
}
