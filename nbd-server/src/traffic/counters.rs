//! What one connection counts while it serves.

use super::latency::{BUCKETS, Latency, bucket};
use super::{Operation, OperationTraffic, Traffic};
use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A connection's counters; its threads share them.
#[derive(Debug)]
pub struct Counters {
    begun: AtomicU64,
    operations: [OperationCounters; Operation::COUNT],
}

#[derive(Debug)]
struct OperationCounters {
    errors: AtomicU64,
    bytes: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
    nanoseconds_max: AtomicU64,
}

impl Default for Counters {
    fn default() -> Counters {
        let operation = |_| OperationCounters {
            errors: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            buckets: array::from_fn(|_| AtomicU64::new(0)),
            nanoseconds: AtomicU64::new(0),
            nanoseconds_max: AtomicU64::new(0),
        };
        Counters { begun: AtomicU64::new(0), operations: array::from_fn(operation) }
    }
}

impl Counters {
    /// A request has arrived.
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// It is answered; `bytes` is `None` where that was with an error.
    pub fn end(&self, operation: Operation, bytes: Option<u64>, took: Duration) {
        let counters = &self.operations[operation as usize];
        match bytes {
            Some(bytes) => counters.bytes.fetch_add(bytes, Ordering::Relaxed),
            None => counters.errors.fetch_add(1, Ordering::Relaxed),
        };
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        counters.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        if nanoseconds > counters.nanoseconds_max.load(Ordering::Relaxed) {
            counters.nanoseconds_max.fetch_max(nanoseconds, Ordering::Relaxed);
        }
        // Last, so that whoever sees the request counted sees the rest of it too.
        counters.buckets[bucket(nanoseconds)].fetch_add(1, Ordering::Release);
    }

    /// What they say now.
    pub fn look(&self) -> Traffic {
        let operations: [OperationTraffic; Operation::COUNT] =
            array::from_fn(|operation| self.operations[operation].look());
        let ended: u64 = operations.iter().map(OperationTraffic::requests).sum();
        let in_flight = self.begun.load(Ordering::Relaxed).saturating_sub(ended);
        Traffic { in_flight, operations }
    }
}

impl OperationCounters {
    fn look(&self) -> OperationTraffic {
        let buckets = array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Acquire));
        let duration = |nanoseconds: &AtomicU64| Duration::from_nanos(nanoseconds.load(Ordering::Relaxed));
        OperationTraffic {
            errors: self.errors.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            latency: Latency {
                buckets,
                sum: duration(&self.nanoseconds),
                longest: duration(&self.nanoseconds_max),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_count_at_once_lose_nothing() {
        let counters = Counters::default();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let counters = &counters;
                scope.spawn(move || {
                    for round in 0..1000 {
                        counters.begin();
                        let bytes = (round % 10 != 0).then_some(512);
                        counters.end(Operation::Write, bytes, Duration::from_micros(1 + thread));
                    }
                });
            }
        });
        counters.begin();
        let seen = counters.look();
        let writes = seen.of(Operation::Write);
        assert_eq!((writes.requests(), writes.errors, writes.bytes), (4000, 400, 3600 * 512));
        assert_eq!((seen.in_flight, seen.requests()), (1, 4000));
        assert_eq!(
            (writes.latency.sum(), writes.latency.longest()),
            (Duration::from_millis(10), Duration::from_micros(4))
        );
        assert_eq!(seen.seen().map(|(operation, _)| operation).collect::<Vec<_>>(), [Operation::Write]);
        let mut twice = seen.clone();
        twice.add(&seen);
        assert_eq!(
            (twice.requests(), twice.in_flight, twice.of(Operation::Write).bytes),
            (8000, 2, 7200 * 512)
        );
    }
}
