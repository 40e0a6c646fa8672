use super::*;
use crate::session::dirty_map::{DirtyMap, MapOwner};
use crate::session::pivoted_volume::PivotedVolume;
use blocks::{DiskIndex, Id, MemoryVolume, Place, SessionId};
use std::sync::atomic::AtomicI32;

fn volume_over(inner: Arc<MemoryVolume>) -> (Arc<SessionVolume>, Arc<AtomicI32>) {
    let marks = Arc::new(AtomicI32::new(0));
    let seen = Arc::clone(&marks);
    let hook = move |on| {
        seen.fetch_add(if on { 1 } else { -1 }, Ordering::SeqCst);
        Ok(())
    };
    (Arc::new(SessionVolume::new(inner.len(), inner, false, Box::new(hook))), marks)
}

#[test]
fn a_switch_loses_no_write_of_many_threads() {
    let len = ByteLen::new(8 << 20);
    let (before, after) = (Arc::new(MemoryVolume::new(len)), Arc::new(MemoryVolume::new(len)));
    let (volume, _) = volume_over(Arc::clone(&before));
    let watch = volume.watch();
    let (stop, counter) = (AtomicBool::new(false), AtomicU64::new(1));
    let model = Mutex::new(vec![0_u64; 16384]);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (volume, stop, counter, model) = (&volume, &stop, &counter, &model);
            scope.spawn(move || {
                let mut at = thread;
                while !stop.load(Ordering::SeqCst) {
                    // Each thread has its own sectors, so that the model knows the order of writes to each.
                    at = (at.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407) >> 20)
                        % 4096
                        * 4
                        + thread;
                    let value = counter.fetch_add(1, Ordering::SeqCst);
                    let data = value.to_le_bytes().repeat(64);
                    volume.write_at(ByteOffset::new(at * 512), &data, false, RequestClass::Guest).unwrap();
                    lock(model)[at as usize] = value;
                }
            });
        }
        for round in 0..50 {
            let quiesced = (round == 49).then(|| volume.quiesce());
            for (extent, ()) in watch.take().extents(len).iter() {
                let mut bytes = vec![0; extent.len().as_usize()];
                volume.read_at(extent.start(), &mut bytes, RequestClass::Background).unwrap();
                after.write_at(extent.start(), &bytes, false, RequestClass::Background).unwrap();
            }
            if let Some(quiesced) = quiesced {
                assert_eq!(before.snapshot(), after.snapshot(), "equal at the instant of the switch");
                quiesced.switch(Arc::clone(&after) as Arc<dyn Volume>);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::SeqCst);
    });
    let end = after.snapshot();
    assert_ne!(end, before.snapshot(), "writes went on after the switch");
    for (sector, value) in lock(&model).iter().enumerate() {
        let held = u64::from_le_bytes(end[sector * 512..sector * 512 + 8].try_into().unwrap());
        assert_eq!(held, *value, "sector {sector}");
    }
}

#[test]
fn the_mark_of_unflushed_writes_goes_only_after_a_flush() {
    let (volume, marks) = volume_over(Arc::new(MemoryVolume::new(ByteLen::new(1 << 20))));
    let write = |fua| volume.write_at(ByteOffset::ZERO, &[1; 512], fua, RequestClass::Guest).unwrap();
    write(true);
    assert_eq!(marks.load(Ordering::SeqCst), 0, "a write-through write leaves nothing unflushed");
    write(false);
    write(false);
    assert_eq!(marks.load(Ordering::SeqCst), 1);
    volume.settle_mark(Duration::ZERO).unwrap();
    assert_eq!(marks.load(Ordering::SeqCst), 1, "not flushed yet");
    volume.flush().unwrap();
    volume.settle_mark(Duration::from_secs(3600)).unwrap();
    assert_eq!(marks.load(Ordering::SeqCst), 1, "not idle yet");
    volume.settle_mark(Duration::ZERO).unwrap();
    assert_eq!(marks.load(Ordering::SeqCst), 0);
    write(false);
    assert_eq!(marks.load(Ordering::SeqCst), 1);
}

#[test]
fn a_closed_volume_refuses_writes_and_reads_on() {
    let (volume, _) = volume_over(Arc::new(MemoryVolume::new(ByteLen::new(1 << 20))));
    volume.close(true);
    let error = volume.write_at(ByteOffset::ZERO, &[1; 512], false, RequestClass::Guest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    volume.read_at(ByteOffset::ZERO, &mut [0; 512], RequestClass::Guest).unwrap();
    volume.close(false);
    volume.write_at(ByteOffset::ZERO, &[1; 512], false, RequestClass::Guest).unwrap();
}

/// A disk that has all that arrives put into its memory.
struct Landing(Mutex<Vec<u8>>);

impl Volume for Landing {
    fn len(&self) -> ByteLen {
        ByteLen::of(&lock(&self.0))
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        let from = (offset - ByteOffset::ZERO).as_usize();
        buffer.copy_from_slice(&lock(&self.0)[from..from + buffer.len()]);
        Ok(())
    }
    fn write_at(&self, _: ByteOffset, _: &[u8], _: bool, _: RequestClass) -> Result<()> {
        unreachable!("all lands")
    }
    fn write_zeroes(&self, _: Extent, _: bool, _: bool, _: RequestClass) -> Result<()> {
        unreachable!("all lands")
    }
    fn discard(&self, _: Extent, _: bool, _: RequestClass) -> Result<()> {
        unreachable!("all lands")
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        Ok(vec![ExtentStatus { extent, allocation: blocks::Allocation::Data }])
    }
    fn arrived_len_min(&self) -> Option<ByteLen> {
        Some(ByteLen::new(512))
    }
    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived, _: RequestClass) -> Result<bool> {
        let start = (extent.start() - ByteOffset::ZERO).as_usize();
        let mut memory = lock(&self.0);
        let put = from.put(Place::over(&mut memory[start..start + extent.len().as_usize()]));
        Ok(put.is_ok())
    }
}

/// So many bytes of this value have arrived.
struct Sevens;

impl Arrived for Sevens {
    fn put(&mut self, place: Place<'_>) -> std::io::Result<usize> {
        // SAFETY: the places of this test are plain memory, and nobody else's meanwhile.
        unsafe { place.address().write_bytes(7, place.len()) };
        Ok(place.len())
    }
}

/// After a pivot what a guest writes may land in the target; everything that waits for writes hears of it all the same.
#[test]
fn what_lands_is_watched_marked_and_in_the_dirty_map() {
    let len = ByteLen::new(1 << 20);
    let (volume, marks) = volume_over(Arc::new(MemoryVolume::new(len)));
    let extent = Extent::new(ByteOffset::new(128 << 10), ByteLen::new(64 << 10)).unwrap();
    assert_eq!(volume.arrived_len_min(), None, "a branch takes no payload that way");
    let storage = store::testing::CrashStorage::new();
    let session = SessionId(Id::from_bytes([7; 16]).unwrap());
    let owner = MapOwner { session, disk: DiskIndex(0), len };
    let map = Arc::new(DirtyMap::create(&storage, "map", owner, &BlockSet::new()).unwrap());
    let target = Arc::new(Landing(Mutex::new(vec![0; len.as_usize()])));
    let pivoted = PivotedVolume::new(Arc::clone(&target) as Arc<dyn Volume>, Arc::clone(&map));
    volume.quiesce().switch(Arc::new(pivoted));
    let watch = volume.watch();
    assert!(volume.write_arrived(extent, &mut Sevens, RequestClass::Guest).unwrap());
    let mut read = vec![0; extent.len().as_usize()];
    volume.read_at(extent.start(), &mut read, RequestClass::Guest).unwrap();
    assert!(read.iter().all(|byte| *byte == 7));
    assert_eq!(watch.take().extents(len).iter().map(|(run, ())| run).collect::<Vec<_>>(), [extent]);
    assert_eq!(marks.load(Ordering::SeqCst), 1, "it is not flushed");
    assert_eq!(map.blocks().extents(len).iter().map(|(run, ())| run).collect::<Vec<_>>(), [extent]);
    let past = Extent::new(len.end(), ByteLen::new(512)).unwrap();
    assert!(volume.write_arrived(past, &mut Sevens, RequestClass::Guest).is_err());
    volume.quiesce().close();
    let refused = volume.write_arrived(extent, &mut Sevens, RequestClass::Guest).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
}
