//! A disk whose size changes while it is protected.
//!
//! A tracker is made for one size, and so is what the server was told at the hello. So the connection ends, the disk is
//! opened and tracked anew, and the next hello says its size. Writes behind the old end are not lost by that: a new tracker
//! is not trusted, and the disk is scanned after it is attached.

use super::config::AgentConfig;
use super::protect::protect;
use super::worker::{Session, Worker};
use crate::copy::Replica;
use blocks::{ByteLen, Result};

impl Worker {
    /// Why the server has to be told anew what the disks are. Not while a failback writes to them.
    pub(super) fn other_sizes(&mut self, session: &Session) -> Option<String> {
        if session.restore.is_some() {
            return None;
        }
        if let Some(reason) = self.came_home_longer.take() {
            return Some(reason);
        }
        let changed = self.replicas.iter().find_map(|replica| Some((replica, other_size(replica)?)));
        let (replica, now) = changed?;
        let said =
            format!("{} has {now} bytes now, it had {}", replica.disk.path().display(), replica.disk.len());
        if replica.tap.is_none() {
            return Some(said);
        }
        self.tap_trouble.say(format!(
            "{said}: the tap goes on showing the old size, and protecting it; unmount it and start the agent again for the new \
             one"
        ));
        None
    }

    /// Opens and tracks every disk anew whose size has changed. An error ends the agent: such a disk cannot be protected.
    pub(super) fn follow_sizes(&mut self, config: &AgentConfig) -> Result<()> {
        for position in 0..self.replicas.len() {
            let replica = &self.replicas[position];
            if replica.tap.is_some() || other_size(replica).is_none() {
                continue;
            }
            let device = replica.disk.path().to_owned();
            let (index, exclude) = (replica.index, replica.excluded_by_user.clone());
            // Whoever holds the tracker keeps the next one from its place.
            self.vitals.set(Vec::new());
            let old = self.replicas.remove(position);
            tracing::info!("{}: it had {} bytes; it is opened anew", device.display(), old.disk.len());
            drop(old);
            let disk = super::config::DiskConfig { device, exclude };
            self.replicas.insert(position, protect(config, index, &disk, None)?);
        }
        Ok(())
    }
}

/// The disk's size now, where it is another one; a disk that is gone for the moment has none.
fn other_size(replica: &Replica) -> Option<ByteLen> {
    let now = replica.disk.len_now().ok()?;
    (now != replica.disk.len() && !now.is_zero()).then_some(now)
}
