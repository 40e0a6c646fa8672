//! The flags of what runs for long: server, NBD, agent.

use super::formats;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// How a server runs.
#[derive(Debug, Args)]
pub struct ServerArguments {
    /// Where everything is kept [default: /var/lib/understudy/server].
    #[arg(long, env = "UNDERSTUDY_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where agents connect, host:port [default: 127.0.0.1:10810]. Mutual TLS for all but loopback.
    #[arg(long, env = "UNDERSTUDY_LISTEN", value_name = "ADDR")]
    pub listen: Option<String>,
    /// A unix socket for agents on this machine.
    #[arg(long, env = "UNDERSTUDY_AGENT_SOCKET", value_name = "PATH")]
    pub agent_socket: Option<PathBuf>,
    /// Where sessions are served: host:port or unix:PATH [default: the sockets that systemd passes, or
    /// 127.0.0.1:10809]. May be repeated.
    #[arg(long, env = "UNDERSTUDY_NBD", value_name = "ADDR|unix:PATH", value_delimiter = ',')]
    pub nbd: Vec<String>,
    #[command(flatten)]
    pub nbd_security: NbdArguments,
    /// How long history is kept: a ladder such as all=4h,hourly=2d,daily=14d (the default), a duration for
    /// every checkpoint, or none: then the images are always brought to the newest.
    #[arg(long, env = "UNDERSTUDY_KEEP", value_name = "LADDER|DURATION|none")]
    pub keep: Option<server::Ladder>,
    /// A machine that was silent for so long has failed [default: 15s].
    #[arg(long, env = "UNDERSTUDY_HEARTBEAT_DEADLINE", value_name = "DURATION")]
    pub heartbeat_deadline: Option<humantime::Duration>,
    /// Format of new machines' images [default: vhd, and vhdx where a disk is larger than 2040 GiB].
    #[arg(long, env = "UNDERSTUDY_IMAGE_FORMAT", value_parser = formats())]
    pub image_format: Option<String>,
    /// Whether logs are compressed: auto (where it was measured to pay), always (for space) or never
    /// [default: auto].
    #[arg(long, env = "UNDERSTUDY_COMPRESS", value_parser = ["auto", "always", "never"])]
    pub compress: Option<String>,
    /// How many bytes a second consolidation may read and write [default: as many as it can]. Less while
    /// guests are served.
    #[arg(long, env = "UNDERSTUDY_CONSOLIDATE_RATE", value_name = "RATE")]
    pub consolidate_rate: Option<bytesize::ByteSize>,
    /// How often everything that is stored is read again and checked, or never [default: 7d].
    #[arg(long, env = "UNDERSTUDY_SCRUB_EVERY", value_name = "DURATION|never")]
    pub scrub_every: Option<String>,
    /// How many bytes a second that may read [default: 32MiB].
    #[arg(long, env = "UNDERSTUDY_SCRUB_RATE", value_name = "RATE")]
    pub scrub_rate: Option<bytesize::ByteSize>,
    /// Room that is always left free in the data folder [default: 256MiB].
    #[arg(long, env = "UNDERSTUDY_RESERVE", value_name = "SIZE")]
    pub reserve: Option<bytesize::ByteSize>,
}

/// Who may reach served disks, and how.
#[derive(Debug, Args)]
pub struct NbdArguments {
    /// Certificate chain (PEM) of the NBD server: with it and --nbd-key, NBD connections are encrypted.
    #[arg(long, env = "UNDERSTUDY_NBD_CERTIFICATE", value_name = "FILE")]
    pub nbd_certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "UNDERSTUDY_NBD_KEY", value_name = "FILE")]
    pub nbd_key: Option<PathBuf>,
    /// Authorities of NBD clients (PEM): clients without a certificate of theirs are refused.
    #[arg(long, env = "UNDERSTUDY_NBD_CLIENT_AUTHORITIES", value_name = "FILE")]
    pub nbd_client_authorities: Option<PathBuf>,
    /// Whether NBD clients must encrypt, or may: required or optional [default: required with a certificate].
    #[arg(long, env = "UNDERSTUDY_NBD_TLS", value_parser = ["required", "optional"])]
    pub nbd_tls: Option<String>,
    /// What a client may open, by a name in its certificate (* for every client) and names of exports (* in them is
    /// any text), `:ro` for reading only: CLIENT=EXPORT[,EXPORT...][:ro]. May be repeated. Once there is one, whatever
    /// none allows does not exist for the client.
    #[arg(long, value_name = "RULE")]
    pub nbd_allow: Vec<String>,
    /// Mode of NBD unix sockets, such as 0660 [default: what the umask leaves].
    #[arg(long, env = "UNDERSTUDY_NBD_SOCKET_MODE", value_name = "MODE")]
    pub nbd_socket_mode: Option<String>,
    /// NBD connections at once [default: 512].
    #[arg(long, env = "UNDERSTUDY_NBD_CONNECTIONS", value_name = "COUNT")]
    pub nbd_connections: Option<usize>,
}

/// How an agent runs.
#[derive(Debug, Args)]
pub struct AgentArguments {
    /// The server: host:port or unix:PATH.
    #[arg(long, env = "UNDERSTUDY_SERVER", value_name = "ADDR")]
    pub server: Option<String>,
    /// A disk to protect (a tap: or a partition). May be repeated; the order numbers them.
    #[arg(long = "disk", value_name = "DEVICE")]
    pub disks: Vec<PathBuf>,
    /// The machine's name [default: its host name].
    #[arg(long, env = "UNDERSTUDY_NAME")]
    pub name: Option<String>,
    /// How changes are found: auto, ebpf, scan, or tap, in the way of the writes: then another device is used
    /// in the disk's place [default: auto].
    #[arg(long, env = "UNDERSTUDY_TRACKER", value_parser = ["auto", "ebpf", "scan", "tap"])]
    pub tracker: Option<String>,
    /// Tap: how far apart the checkpoints that flushes make are at least [default: 5s].
    #[arg(long, env = "UNDERSTUDY_TAP_CHECKPOINT_EVERY", value_name = "DURATION")]
    pub tap_checkpoint_every: Option<humantime::Duration>,
    /// Tap: memory for writes that the server has not acknowledged; past it they are marked [default: 64MiB].
    #[arg(long, env = "UNDERSTUDY_TAP_QUEUE", value_name = "SIZE")]
    pub tap_queue: Option<bytesize::ByteSize>,
    /// Tap: what the disk is shown by: loop (a loop device over FUSE), ublk (of the kernel, where it is and the
    /// program was built with it), or auto: ublk where it can be had [default: auto].
    #[arg(long, env = "UNDERSTUDY_TAP_THROUGH", value_parser = ["auto", "loop", "ublk"])]
    pub tap_through: Option<String>,
    /// Only take a failback, and end: for a rescue system. `enroll --rescue` prints its token.
    #[arg(long)]
    pub restore: bool,
    /// When changes are sent: continuous, or every=DURATION [default: continuous].
    #[arg(long, env = "UNDERSTUDY_SEND", value_name = "continuous|every=DURATION")]
    pub send: Option<String>,
    /// Whether what is sent is compressed: auto (where the link was measured to be the slower one), always or never
    /// [default: auto].
    #[arg(long, env = "UNDERSTUDY_COMPRESS", value_parser = ["auto", "always", "never"])]
    pub compress: Option<String>,
    /// How many bytes a second are sent at most [default: as many as the line carries].
    #[arg(long, env = "UNDERSTUDY_RATE", value_name = "RATE")]
    pub rate: Option<bytesize::ByteSize>,
    /// How often a checkpoint is taken [default: 60s].
    #[arg(long, env = "UNDERSTUDY_CHECKPOINT_EVERY", value_name = "DURATION")]
    pub checkpoint_every: Option<humantime::Duration>,
    /// How often the server hears from us [default: 5s].
    #[arg(long, env = "UNDERSTUDY_HEARTBEAT", value_name = "DURATION")]
    pub heartbeat: Option<humantime::Duration>,
    /// How long writers may stand still for a checkpoint [default: 2s].
    #[arg(long, env = "UNDERSTUDY_FREEZE_BUDGET", value_name = "DURATION")]
    pub freeze_budget: Option<humantime::Duration>,
    /// Programs that bring applications to rest around a checkpoint: each is run with `freeze` and `thaw`
    /// [default: those in /etc/understudy/freeze-hook.d].
    #[arg(long, env = "UNDERSTUDY_FREEZE_HOOKS", value_name = "DIR")]
    pub freeze_hooks: Option<PathBuf>,
    /// How long one of them may take [default: 10s].
    #[arg(long, env = "UNDERSTUDY_HOOK_TIMEOUT", value_name = "DURATION")]
    pub hook_timeout: Option<humantime::Duration>,
    /// One-time token from `understudy enroll`, at the first start.
    #[arg(long, env = "UNDERSTUDY_TOKEN")]
    pub token: Option<String>,
    /// Where certificate and identity are kept [default: /var/lib/understudy/agent].
    #[arg(long, env = "UNDERSTUDY_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// What an agent does beside protecting.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Say what this machine offers, how its disks will be tracked, and what would stop a stand-in from
    /// booting; exit status 1 if anything would. Changes nothing.
    #[command(after_help = "Example:\n  understudy agent doctor --disk /dev/sda")]
    Doctor {
        /// A whole disk to protect. May be repeated [default: those of the configuration, or all that hold
        /// a mounted file system].
        #[arg(long = "disk", value_name = "DEVICE")]
        disks: Vec<PathBuf>,
        /// How changes are to be found [default: auto].
        #[arg(long, value_parser = ["auto", "ebpf", "scan"])]
        tracker: Option<String>,
    },
    /// Record what is known of this machine's disks, so that its next start needs no scan. For systemd's
    /// shutdown hook: the agent has been stopped and nothing is mounted for writing any more.
    #[command(after_help = "Example:\n  understudy agent at-shutdown")]
    AtShutdown {
        /// Where the agent keeps its state [default: as configured].
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
    },
    /// Go on tracking where the last shutdown left off. For the initramfs: nothing has been written and
    /// root is not mounted yet.
    #[command(after_help = "Example:\n  understudy agent at-boot --root /dev/sda1")]
    AtBoot {
        /// The device of the root file system.
        #[arg(long, value_name = "DEVICE")]
        root: PathBuf,
        /// A protected disk. May be repeated [default: as configured].
        #[arg(long = "disk", value_name = "DEVICE")]
        disks: Vec<PathBuf>,
        /// Where the agent keeps its state [default: as configured].
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
    },
}
