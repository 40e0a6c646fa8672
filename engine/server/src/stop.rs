//! The word that a server ends.

use tokio::sync::watch;

/// Says it; once said, it stays said.
#[derive(Debug)]
pub(crate) struct StopSender(watch::Sender<bool>);

/// Hears it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

/// A word and its hearer.
pub(crate) fn stop() -> (StopSender, Stop) {
    let (sender, receiver) = watch::channel(false);
    (StopSender(sender), Stop(receiver))
}

impl StopSender {
    /// The server ends.
    pub fn say(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Returns when the server ends, or whoever could say so is gone. May be dropped and called again.
    pub async fn heard(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}
