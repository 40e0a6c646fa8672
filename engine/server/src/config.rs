//! What a server is told at its start.

use crate::ladder::Ladder;
use hypervisor::{Hypervisor, Qemu};
use nbd_server::ListenAddress;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::{ImageFormat, StoreOptions};
use wire::Address;

/// How a server is set up. `new` has what suits most.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The folder that holds the store, the authority and the control socket. Made where it does not exist.
    pub data: PathBuf,
    /// Where agents connect over TCP: TLS, and plain from this machine.
    pub listen: Option<Address>,
    /// Where agents on this machine connect.
    pub agent_socket: Option<PathBuf>,
    /// Where an administrator's commands come in; `control.sock` in the data folder where nothing is said.
    pub control: Option<PathBuf>,
    /// Where recovered disks are served, besides the sockets that a service manager has passed.
    pub nbd: Vec<ListenAddress>,
    /// The mode of unix sockets among them; what the umask leaves where it is missing.
    pub nbd_socket_mode: Option<u32>,
    /// To whom, and with which limits and encryption.
    pub nbd_options: nbd_server::ServerOptions,
    /// How long history is kept, where a machine has no ladder of its own.
    pub keep: Ladder,
    /// A machine that was not heard of for this long has failed; two thirds of it make it late.
    pub heartbeat_deadline: Duration,
    /// What the images of new machines are made of; [`ImageFormat::for_disks`] where nothing is said.
    pub image_format: Option<ImageFormat>,
    /// How many bytes a second background consolidation may read and write; as many as it can where nothing is said, and few
    /// while guests are served.
    pub consolidate_rate: Option<u64>,
    /// How often everything that is stored is read again and checked; never where nothing is said.
    pub scrub_every: Option<Duration>,
    /// How many bytes a second that may take.
    pub scrub_rate: Option<u64>,
    /// Who runs stand-ins.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The store's own.
    pub store: StoreOptions,
}

impl ServerConfig {
    /// A server in this folder that listens nowhere but on its control socket.
    pub fn new(data: impl Into<PathBuf>) -> ServerConfig {
        ServerConfig {
            data: data.into(),
            listen: None,
            agent_socket: None,
            control: None,
            nbd: Vec::new(),
            nbd_socket_mode: None,
            nbd_options: nbd_server::ServerOptions::default(),
            keep: Ladder::default(),
            heartbeat_deadline: Duration::from_secs(15),
            image_format: None,
            consolidate_rate: None,
            scrub_every: Some(Duration::from_secs(7 * 24 * 60 * 60)),
            scrub_rate: Some(32 << 20),
            hypervisor: Arc::new(Qemu::default()),
            store: StoreOptions::default(),
        }
    }

    /// Where an administrator's commands come in.
    pub fn control_socket(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(|| self.data.join("control.sock"))
    }
}
