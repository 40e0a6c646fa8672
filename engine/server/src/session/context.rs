//! What all sessions of a server share.

use blocks::{ByteLen, Error, Result, Storage};
use nbd_server::{Exports, ListenAddress, NbdUri};
use std::sync::Arc;
use std::time::Duration;

/// What sessions need besides the store.
#[derive(Clone)]
pub struct SessionsOptions {
    /// Where disks are served.
    pub exports: Exports,
    /// Where the exports' server listens, for URIs: the addresses that it really has.
    pub listeners: Vec<ListenAddress>,
    /// Whether clients have to encrypt, which URIs say.
    pub encrypted: bool,
    /// The server's data folder, which holds the store; sessions keep their dirty maps in `sessions/`.
    pub storage: Arc<dyn Storage>,
    /// Tells one boot of the server's host from another; see [`host_boot`].
    pub boot: String,
}

/// The same with what only this module needs.
pub(crate) struct Context {
    pub exports: Exports,
    pub listeners: Vec<ListenAddress>,
    pub encrypted: bool,
    pub storage: Arc<dyn Storage>,
    pub boot: String,
    /// How long an answer of an agent may take before a failback is called off.
    pub answer_timeout: Duration,
    /// A failback's rounds end when no more than this is left.
    pub short_round: ByteLen,
    /// How much a migration copies between two marks.
    pub mark_bytes: ByteLen,
    /// Migrations have no threads: whoever plays the simulation calls their steps.
    #[cfg(feature = "simulation")]
    pub stepped: bool,
    #[cfg(any(test, feature = "simulation"))]
    pub on_step: Option<StepHook>,
}

#[cfg(any(test, feature = "simulation"))]
pub(crate) type StepHook = Arc<dyn Fn(&'static str) + Send + Sync>;

impl Context {
    /// What `options` say.
    pub fn new(options: SessionsOptions) -> Context {
        Context {
            exports: options.exports,
            listeners: options.listeners,
            encrypted: options.encrypted,
            storage: options.storage,
            boot: options.boot,
            answer_timeout: Duration::from_secs(300),
            short_round: ByteLen::new(64 << 20),
            mark_bytes: ByteLen::new(1 << 30),
            #[cfg(feature = "simulation")]
            stepped: false,
            #[cfg(any(test, feature = "simulation"))]
            on_step: None,
        }
    }

    /// How clients reach an export, one URI a listener.
    pub fn uris(&self, export: &str) -> Vec<String> {
        let plain = |address: &ListenAddress| match address {
            ListenAddress::Tcp(address) => NbdUri::tcp(*address, export),
            ListenAddress::Unix(path) => NbdUri::unix(path, export),
        };
        let uri = |address| match self.encrypted {
            true => plain(address).encrypted().to_string(),
            false => plain(address).to_string(),
        };
        self.listeners.iter().map(uri).collect()
    }

    /// A named step was made durable: here a test may have the server die.
    pub fn step(&self, name: &'static str) {
        blocks::crash_point(name);
        #[cfg(any(test, feature = "simulation"))]
        if let Some(hook) = &self.on_step {
            hook(name);
        }
    }
}

/// The kernel's boot id of the host that this runs on.
pub fn host_boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
    Ok(id.trim().to_owned())
}
