//! What an agent is told.

use crate::barrier::BarrierSettings;
use crate::tap::TapSettings;
use crate::tracker::TrackerWish;
use blocks::{ByteLen, Compression, Extent};
use std::path::PathBuf;
use std::time::Duration;
use wire::{Address, AgentIdentity};

/// Where an agent keeps its state unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/understudy/agent";

/// How an agent runs. [`AgentConfig::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where the server is.
    pub server: Address,
    /// Who this agent is; `None` on loopback and unix sockets.
    pub identity: Option<AgentIdentity>,
    /// The machine's name.
    pub name: String,
    /// What is protected; the position is the disk's index.
    pub disks: Vec<DiskConfig>,
    /// Which rung of the tracker ladder.
    pub tracker: TrackerWish,
    /// How disks are tapped, where that is the wish.
    pub tap: TapSettings,
    /// Only takes a failback and ends, as on a rescue system: nothing is ever sent as the machine's.
    pub restore_only: bool,
    /// When changes are sent.
    pub send: SendMode,
    /// Whether what is sent is compressed, where the server understands that.
    pub compress: Compression,
    /// How many bytes a second may be sent; `None`: as many as the line carries. Zero is taken for one.
    pub rate: Option<ByteLen>,
    /// How often a checkpoint is taken.
    pub checkpoint_every: Duration,
    /// How often the server hears from this agent.
    pub heartbeat: Duration,
    /// How checkpoints are taken.
    pub barrier: BarrierSettings,
    /// A folder of programs that bring applications to rest around a checkpoint: each is run with `freeze` and `thaw`.
    pub hooks_dir: PathBuf,
    /// How long one of them may take.
    pub hook_timeout: Duration,
    /// Hints that survive a restart: machine id, generation.
    pub state_dir: PathBuf,
    /// Locks and the watchdog's notes; gone after a restart of the machine.
    pub run_dir: PathBuf,
    /// The program that is started as watchdog, and its first arguments.
    pub watchdog: Vec<String>,
    /// How long the server may leave data unacknowledged and say nothing before the connection counts as dead.
    pub silence_max: Duration,
    /// The longest wait between two attempts to connect.
    pub backoff_max: Duration,
}

/// A disk to protect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Its path: a whole block device.
    pub device: PathBuf,
    /// What no checkpoint promises anything about.
    pub exclude: Vec<Extent>,
}

/// When changes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SendMode {
    /// As they happen.
    #[default]
    Continuous,
    /// All that has gathered, this often (and before each checkpoint).
    Every(Duration),
}

impl AgentConfig {
    /// The defaults for a machine of this name with these disks. The watchdog is this very program, started with
    /// `agent-watchdog`, which must call [`crate::watchdog_main`].
    pub fn new(server: Address, name: impl Into<String>, devices: &[PathBuf]) -> AgentConfig {
        let program = std::env::current_exe().map(|path| path.display().to_string());
        AgentConfig {
            server,
            identity: None,
            name: name.into(),
            disks: devices
                .iter()
                .map(|device| DiskConfig { device: device.clone(), exclude: Vec::new() })
                .collect(),
            tracker: TrackerWish::Auto,
            tap: TapSettings::default(),
            restore_only: false,
            send: SendMode::Continuous,
            compress: Compression::Auto,
            rate: None,
            checkpoint_every: Duration::from_secs(60),
            heartbeat: Duration::from_secs(5),
            barrier: BarrierSettings::default(),
            hooks_dir: PathBuf::from("/etc/understudy/freeze-hook.d"),
            hook_timeout: Duration::from_secs(10),
            state_dir: PathBuf::from(DEFAULT_STATE_DIR),
            run_dir: PathBuf::from("/run/understudy"),
            watchdog: vec![program.unwrap_or_else(|_| "understudy".into()), "agent-watchdog".into()],
            silence_max: Duration::from_secs(60),
            backoff_max: Duration::from_secs(30),
        }
    }
}
