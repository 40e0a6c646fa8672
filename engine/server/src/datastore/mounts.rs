//! What is mounted.

use super::catalogue::ServerCatalogue;
use crate::services::Services;
use blocks::Result;
use fuse_fs::{Datastore, Ended, Mount, MountOptions};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The mounts of a server: those that commands keep, and those that were detached while something of them was open.
#[derive(Default)]
pub(crate) struct Mounts {
    all: Mutex<Vec<Arc<Mount>>>,
}

impl std::fmt::Debug for Mounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let folders: Vec<_> = self.lock().iter().map(|mount| mount.folder().to_owned()).collect();
        f.debug_tuple("Mounts").field(&folders).finish()
    }
}

/// A mount that a command keeps.
pub(crate) struct Mounting {
    services: Arc<Services>,
    mount: Arc<Mount>,
}

impl Mounting {
    /// Shows the datastore in a folder; errors as [`Mount::start`].
    pub fn start(services: Arc<Services>, folder: &Path, options: MountOptions) -> Result<Mounting> {
        let shown = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let catalogue = ServerCatalogue::new(&services, shown, options.read_only);
        let mount = Arc::new(Mount::start(Datastore::new(catalogue), folder, options)?);
        tracing::info!("the datastore is mounted at {}", mount.folder().display());
        services.mounts.lock().push(mount.clone());
        Ok(Mounting { services, mount })
    }

    /// Whether somebody else has unmounted it.
    pub fn is_over(&self) -> bool {
        self.mount.is_over()
    }

    /// Takes it from its folder.
    pub fn end(self) -> Result<Ended> {
        let ended = self.mount.unmount()?;
        let folder = self.mount.folder().display();
        match ended {
            Ended::Unmounted => tracing::info!("{folder} is unmounted"),
            Ended::Detached => {
                tracing::warn!("{folder} is detached: what is open is served until it is closed")
            }
        }
        let is_done = |mount: &Arc<Mount>| match ended {
            Ended::Unmounted => Arc::ptr_eq(mount, &self.mount),
            Ended::Detached => false,
        };
        self.services.mounts.lock().retain(|mount| !is_done(mount) && !mount.is_over());
        Ok(ended)
    }
}

impl Mounts {
    /// Ends every mount, whoever uses it: the server ends.
    pub fn end_all(&self) {
        for mount in self.lock().drain(..) {
            if let Err(error) = mount.abort() {
                tracing::error!("{error}");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Mount>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
