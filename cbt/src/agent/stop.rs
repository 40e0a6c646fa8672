//! Asking an agent to stop.

use tokio::sync::watch;

/// Stops an agent: cleanly, with a goodbye. Dropping it does not.
#[derive(Clone, Debug)]
pub struct StopHandle(watch::Sender<bool>);

/// What the agent listens to.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// A handle and what it stops.
pub fn stop_pair() -> (StopHandle, Stop) {
    let (sender, receiver) = watch::channel(false);
    (StopHandle(sender), Stop(receiver))
}

impl StopHandle {
    /// Asks for a clean stop.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Whether a stop was asked for.
    pub fn asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when a stop is asked for; never where the handle was dropped without.
    pub async fn wait(&mut self) {
        if self.0.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
