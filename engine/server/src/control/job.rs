//! A request that is being worked on: where its progress goes, and whether anybody still wants it.

use super::api::Progress;
use blocks::{ByteLen, Error, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How often progress of one step is worth a line.
const EVERY: Duration = Duration::from_millis(300);

/// Cheap to clone; every clone is the same request.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    lines: mpsc::Sender<Progress>,
    gone: watch::Receiver<bool>,
    last: Arc<Mutex<Option<(String, Instant)>>>,
}

impl Job {
    /// A job whose progress goes to `lines`; `gone` becomes true when whoever asked has gone.
    pub fn new(lines: mpsc::Sender<Progress>, gone: watch::Receiver<bool>) -> Job {
        Job { lines, gone, last: Arc::default() }
    }

    /// Tells how far the work is, a few times a second at most, and returns whether to go on. Never blocks.
    pub fn report(&self, progress: Progress) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = match &*last {
            Some((step, at)) => *step != progress.step || now.duration_since(*at) >= EVERY,
            None => true,
        };
        if due {
            *last = Some((progress.step.clone(), now));
            // Where the reader is behind, a later line says more.
            let _ = self.lines.try_send(progress);
        }
        self.is_wanted()
    }

    /// The same for one step of known size.
    pub fn step(&self, step: &str, done: ByteLen, total: ByteLen) -> bool {
        self.report(Progress { step: step.into(), done: done.get(), total: total.get() })
    }

    /// Whether whoever asked is still there.
    pub fn is_wanted(&self) -> bool {
        !*self.gone.borrow()
    }

    /// Returns when whoever asked has gone.
    pub async fn called_off(&self) -> Error {
        // An error means that the connection's task is gone, and whoever asked with it.
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
        Error::new(ErrorKind::Cancelled, "called off")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_few_and_a_new_step_is_always_told() {
        let (lines, mut told) = mpsc::channel(8);
        let (gone, seen) = watch::channel(false);
        let job = Job::new(lines, seen);
        for done in 0..100 {
            assert!(job.step("copying", ByteLen::new(done), ByteLen::new(100)));
        }
        job.step("syncing", ByteLen::ZERO, ByteLen::ZERO);
        let steps: Vec<_> =
            std::iter::from_fn(|| told.try_recv().ok()).map(|line| (line.step, line.done)).collect();
        assert_eq!(steps, [("copying".to_string(), 0), ("syncing".to_string(), 0)]);
        gone.send_replace(true);
        assert!(!job.step("syncing", ByteLen::ZERO, ByteLen::ZERO));
    }
}
