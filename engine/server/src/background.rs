//! Work that is done again and again beside everything else.

use crate::stop::Stop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Waits for `pause`, does `work` where it may block, and so on until `stop` is heard. Work that is going on then finds its
/// flag set and is waited for: it comes to rest where it can go on after the next start. `what` is for the log, should
/// it panic; it is done again then.
pub(crate) async fn again_and_again<W>(
    what: &'static str,
    mut stop: Stop,
    pause: impl Fn() -> Duration,
    work: W,
) where
    W: FnMut(&AtomicBool) + Send + 'static,
{
    let stopping = Arc::new(AtomicBool::new(false));
    let work = Arc::new(Mutex::new(work));
    loop {
        tokio::select! {
            () = stop.heard() => return,
            () = tokio::time::sleep(pause()) => {}
        }
        let (work, seen) = (work.clone(), stopping.clone());
        let mut going_on = tokio::task::spawn_blocking(move || {
            let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
            work(&seen);
        });
        tokio::select! {
            () = stop.heard() => {
                stopping.store(true, Ordering::Release);
                if going_on.await.is_err() {
                    tracing::error!("{what} panicked");
                }
                return;
            }
            done = &mut going_on => if done.is_err() {
                tracing::error!("{what} panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::stop;

    #[tokio::test]
    async fn a_panic_is_survived_and_what_goes_on_at_the_end_is_told_and_waited_for() {
        let (sender, hearer) = stop();
        let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
        let mut times = 0;
        let task = tokio::spawn(again_and_again(
            "this test",
            hearer,
            || Duration::ZERO,
            move |stopping| {
                times += 1;
                report.send((times, false)).unwrap();
                assert!(times != 1, "the first time");
                while !stopping.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                report.send((times, true)).unwrap();
            },
        ));
        assert_eq!(reports.recv().await, Some((1, false)));
        assert_eq!(reports.recv().await, Some((2, false)));
        sender.say();
        task.await.unwrap();
        assert_eq!(reports.recv().await, Some((2, true)));
        assert_eq!(reports.recv().await, None, "nothing is done after that");
    }
}
