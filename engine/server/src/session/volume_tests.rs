use super::*;
use blocks::MemoryVolume;
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
