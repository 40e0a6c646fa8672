//! What can be typed.

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use store::{ImageFormat, ImageKind};

/// The command line was understood but makes no sense; exit status 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Keeps a live, bootable stand-in of a machine's disks, and the way back.
#[derive(Debug, Parser)]
#[command(
    name = "understudy",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "\
The way through a bad night:
  understudy status                      who is protected, and how far behind
  understudy recover MACHINE             serve its newest checkpoint now, over NBD
  understudy migrate SESSION --to PATH --pivot
  understudy failback SESSION --to MACHINE --cutover

Exit status: 0 done, 1 failed, 2 wrong usage."
)]
pub struct Arguments {
    /// Print JSON instead of words.
    #[arg(long, global = true)]
    pub json: bool,
    /// Configuration file (TOML), by default /etc/understudy.toml where it exists.
    #[arg(long, global = true, env = "UNDERSTUDY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The server's control socket, by default `control.sock` in the server's data folder.
    #[arg(long, global = true, env = "UNDERSTUDY_CONTROL", value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Receive, keep, serve and send back disks.
    #[command(after_help = "\
Example:
  understudy server --data /srv/understudy --listen 0.0.0.0:10810 --nbd 127.0.0.1:10809")]
    Server(ServerArguments),
    /// Protect this machine's disks.
    #[command(after_help = "\
Examples:
  understudy agent --server backup.example:10810 --disk /dev/sda --token understudy1...
  understudy agent --server 127.0.0.1:10810 --disk /dev/sda --disk /dev/sdb --checkpoint-every 30s

The token is needed once; `understudy enroll` on the server prints it. Agents on the server's own
machine need none.")]
    Agent(AgentArguments),
    /// Show machines: lag, backlog, tracker, checkpoints, achieved RPO.
    #[command(after_help = "Example:\n  understudy status web1 --watch")]
    Status {
        /// Only this machine.
        machine: Option<String>,
        /// Show it again every two seconds until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Print what a monitoring system wants to know of a running server, in Prometheus' text format.
    #[command(after_help = "\
Example:
  understudy metrics > /var/lib/node_exporter/understudy.prom.new &&
    mv /var/lib/node_exporter/understudy.prom.new /var/lib/node_exporter/understudy.prom

With --json it prints what `understudy status --json` prints, which has all of it too.")]
    Metrics,
    /// Take a checkpoint now, of a machine or of a session.
    #[command(after_help = "Example:\n  understudy checkpoint web1 --name before-upgrade")]
    Checkpoint {
        /// A machine's name or identity, or a session.
        of: String,
        /// A name to find it by.
        #[arg(long, default_value = "")]
        name: String,
        /// It cannot be deleted before this: YYYY-MM-DD [HH:MM[:SS]] in UTC, RFC 3339, or forever.
        #[arg(long, value_name = "DATE|forever")]
        protect_until: Option<String>,
    },
    /// List a machine's checkpoints and gaps; delete or protect some.
    #[command(
        args_conflicts_with_subcommands = true,
        subcommand_negates_reqs = true,
        after_help = "\
Examples:
  understudy checkpoints web1
  understudy checkpoints delete web1 17 18
  understudy checkpoints protect web1 before-upgrade --until 2027-01-31"
    )]
    Checkpoints {
        /// A name or identity.
        #[arg(required = true)]
        machine: Option<String>,
        /// What to do with them.
        #[command(subcommand)]
        command: Option<CheckpointsCommand>,
    },
    /// List the lines of a machine's history: the main one, sessions, and what failbacks superseded.
    #[command(after_help = "Example:\n  understudy branches web1")]
    Branches {
        /// A name or identity.
        machine: String,
    },
    /// Manage branches.
    #[command(subcommand, after_help = "Example:\n  understudy branch drop web1 3")]
    Branch(BranchCommand),
    /// Make the image files alone hold a checkpoint, and print their paths.
    #[command(after_help = "\
Example:
  understudy settle web1 --at 2026-11-20T03:00:00Z

The history up to that checkpoint is consolidated into the image and is no longer there to go back
to.")]
    Settle {
        /// A name or identity.
        machine: String,
        /// A checkpoint's number or name, or a time (RFC 3339, the server's clock); the newest by default.
        #[arg(long, value_name = "CHECKPOINT|TIME")]
        at: Option<String>,
    },
    /// Serve a machine's disks at a checkpoint, at once, for a stand-in to run on.
    #[command(after_help = "\
Examples:
  understudy recover web1
  understudy recover web1 --at 2026-11-20T03:00:00Z
  understudy recover web1 --drill
  qemu-system-x86_64 -drive file=nbd://127.0.0.1:10809/web1-1f2e3d4c-disk0,format=raw ...

Prints the session and one NBD URI per disk. From then on the session is in charge and the
machine's agent is fenced, unless it is a drill.")]
    Recover {
        /// A name or identity.
        machine: String,
        /// A checkpoint's number or name, or a time (the newest checkpoint not after it); the newest by default.
        #[arg(long, value_name = "CHECKPOINT|TIME")]
        at: Option<String>,
        /// Leave the machine in charge: a session to look at or to rehearse with.
        #[arg(long)]
        drill: bool,
    },
    /// List sessions.
    #[command(after_help = "Example:\n  understudy sessions")]
    Sessions,
    /// Show or stop one session.
    #[command(subcommand, after_help = "Example:\n  understudy session show 1f2e3d4c")]
    Session(SessionCommand),
    /// Copy a session's disk to production storage while its guest runs; pivot to it.
    #[command(after_help = "\
Examples:
  understudy migrate 1f2e3d4c --to /srv/vm/web1.raw
  understudy migrate 1f2e3d4c --to /srv/vm/web1.vhd --format vhd --rate 100MB --pivot
  understudy migrate 1f2e3d4c --disk 1 --to nbd://san.example/web1-data --pivot
  understudy migrate 1f2e3d4c --pivot

Without --pivot the copy is kept in step until a later `migrate SESSION --pivot`. Interrupting the
command does not stop the migration; repeating it shows how far it is.")]
    Migrate {
        /// A session, or an unambiguous beginning of one.
        session: String,
        /// Which disk, where there are several.
        #[arg(long, value_name = "N")]
        disk: Option<u16>,
        /// A file, a block device or an NBD URI.
        #[arg(long, value_name = "PATH|DEVICE|URI")]
        to: Option<String>,
        /// What a file is to be [default: raw].
        #[arg(long, value_parser = formats())]
        format: Option<String>,
        /// At most so many bytes a second, such as 100MB.
        #[arg(long, value_name = "RATE")]
        rate: Option<bytesize::ByteSize>,
        /// Switch to the copy as soon as it is in step.
        #[arg(long)]
        pivot: bool,
    },
    /// Bring a machine's disks to a session's state by sending only what differs.
    #[command(after_help = "\
Examples:
  understudy failback 1f2e3d4c --to web1
  understudy failback 1f2e3d4c --to web1 --cutover
  understudy failback 1f2e3d4c --to web1 --disk 0=/dev/sdb --cutover

The machine runs `understudy agent` on the disks to be written, which must not be mounted. Without
--cutover differences are sent while the guest goes on, and the machine's disks stay held for the
next call, which sends only what was written since. With it the guest must be shut down first: its
exports end, the rest is sent and verified, and the machine is protected again without a new full
copy. Repeating the command is always safe.")]
    Failback {
        /// A session, or an unambiguous beginning of one.
        session: String,
        /// The machine that writes.
        #[arg(long, value_name = "MACHINE")]
        to: String,
        /// Another device for a disk.
        #[arg(long = "disk", value_name = "N=DEVICE", value_parser = disk_mapping)]
        disks: Vec<(u16, String)>,
        /// End the session and give the machine charge again.
        #[arg(long)]
        cutover: bool,
        /// Overwrite what the machine wrote but never sent, without keeping it as a branch.
        #[arg(long)]
        discard_unsent: bool,
    },
    /// Write a checkpoint or a session into a new image file, or what changed since one.
    #[command(after_help = "\
Example:
  understudy export web1 --at before-upgrade --format vhd -o /srv/web1.vhd
  understudy export web1 --since 17 --at 23 -o /srv/web1-17-23.delta

With --since only what changed between both checkpoints is written; see `understudy delta`.")]
    Export {
        /// A machine's name or identity, or a session.
        of: String,
        /// Which disk, where there are several.
        #[arg(long, value_name = "N")]
        disk: Option<u16>,
        /// A checkpoint's number or name, or a time; the newest by default.
        #[arg(long, value_name = "CHECKPOINT|TIME")]
        at: Option<String>,
        /// Only what changed since this checkpoint, as a delta file.
        #[arg(long, value_name = "CHECKPOINT|TIME", conflicts_with = "format")]
        since: Option<String>,
        /// What the file is to be.
        #[arg(long, value_parser = kinds(), default_value = "raw")]
        format: String,
        /// The new file.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Look at, merge and apply delta files, without a server.
    #[command(subcommand, after_help = "Example:\n  understudy delta info web1-17-23.delta")]
    Delta(DeltaCommand),
    /// Serve one image file over NBD, without a server.
    #[command(after_help = "\
Examples:
  understudy serve disk.vhd
  understudy serve disk.raw --nbd unix:/run/disk.sock --read-only")]
    Serve {
        /// An image file of any format, or a block device.
        file: PathBuf,
        /// Where to listen: host:port or unix:PATH [default: the sockets that systemd passes, or 127.0.0.1:10809]. May be
        /// repeated.
        #[arg(long, value_name = "ADDR|unix:PATH")]
        nbd: Vec<String>,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
        /// What the file is; found out by default.
        #[arg(long, value_parser = formats())]
        format: Option<String>,
        #[command(flatten)]
        security: NbdArguments,
    },
    /// Look at, check, convert and make image files, without a server.
    #[command(subcommand, after_help = "Example:\n  understudy image info disk.vhdx")]
    Image(ImageCommand),
    /// Compare a live machine with its stand-in, block by block.
    #[command(after_help = "\
Example:
  understudy verify web1

Takes a checkpoint and compares hashes of every block that was not written since.")]
    Verify {
        /// A name or identity.
        machine: String,
    },
    /// Read everything that is stored again and check it.
    #[command(after_help = "\
Examples:
  understudy scrub
  understudy scrub web1 --rate 50MB

Reads every manifest, index, log and image past the page cache. Damage is shown with its disk,
extent and the checkpoints that it touches, and the exit status is 1. The server does the same on
its own every week (scrub-every); `understudy status` shows what the last one found.")]
    Scrub {
        /// Only this machine.
        machine: Option<String>,
        /// At most so many bytes a second, such as 50MB.
        #[arg(long, value_name = "RATE")]
        rate: Option<bytesize::ByteSize>,
    },
    /// Look after a store that no server has open.
    #[command(subcommand, after_help = "Example:\n  understudy store check /var/lib/understudy/server")]
    Store(StoreCommand),
    /// Print a one-time token with which an agent gets its certificate.
    #[command(after_help = "Example:\n  understudy enroll --name web1")]
    Enroll {
        /// Good only for a machine of this name.
        #[arg(long)]
        name: Option<String>,
        /// How long it is good for.
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        valid: humantime::Duration,
    },
    /// Manage machines.
    #[command(subcommand, after_help = "Example:\n  understudy machine remove web1")]
    Machine(MachineCommand),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  understudy completions bash > /etc/bash_completion.d/understudy")]
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder.
    #[command(after_help = "Example:\n  understudy man /usr/local/share/man/man1")]
    Man {
        /// An existing folder.
        folder: PathBuf,
    },
    /// Thaws what a dying agent left frozen. Started by the agent.
    #[command(hide = true)]
    AgentWatchdog {
        /// What the agent hands over.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// What can be done with delta files.
#[derive(Debug, Subcommand)]
pub enum DeltaCommand {
    /// Show what a delta file is about, having looked through all of it.
    #[command(after_help = "Example:\n  understudy delta info web1-17-23.delta")]
    Info {
        /// A delta file.
        file: PathBuf,
    },
    /// Make one file of several that holds the newest of each byte.
    #[command(after_help = "\
Examples:
  understudy delta merge 17-23.delta 23-31.delta -o 17-31.delta
  understudy delta merge main.delta drill.delta --prefer last -o both.delta

The oldest first. Files that do not follow on one another are of different branches: where they
differ the places are named and nothing is written, unless --prefer says which one counts.")]
    Merge {
        /// Delta files, the oldest first.
        #[arg(required = true, num_args = 2..)]
        files: Vec<PathBuf>,
        /// Which counts where branches differ.
        #[arg(long, value_parser = ["first", "last"])]
        prefer: Option<String>,
        /// The new file.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Bring an image that holds the one checkpoint to the other.
    #[command(after_help = "\
Example:
  understudy delta apply web1-17-23.delta web1.vhd --format vhd

The image must hold the checkpoint that the file starts from. What was interrupted is repeated.")]
    Apply {
        /// A delta file.
        file: PathBuf,
        /// An image.
        image: PathBuf,
        /// Its format; found out by default. A raw disk can be made to look like another: name it.
        #[arg(long, value_parser = formats())]
        format: Option<String>,
    },
}

/// What can be done with checkpoints.
#[derive(Debug, Subcommand)]
pub enum CheckpointsCommand {
    /// Forget checkpoints; what only they held gives its space back.
    #[command(after_help = "\
Example:
  understudy checkpoints delete web1 17 18

All of them or none. Refused, with the holder named, for one that a session, a branch or a view
needs, a protected one, the one that the images hold, and the newest.")]
    Delete {
        /// A name or identity.
        machine: String,
        /// Numbers or names.
        #[arg(required = true)]
        checkpoints: Vec<String>,
    },
    /// Keep a checkpoint from being deleted or consolidated away.
    #[command(after_help = "\
Example:
  understudy checkpoints protect web1 before-upgrade --until 2027-01-31

All history since then stays as well, and takes up its room.")]
    Protect {
        /// A name or identity.
        machine: String,
        /// Its number or name.
        checkpoint: String,
        /// Until when.
        #[arg(long, value_name = "DATE|forever", default_value = "forever")]
        until: String,
    },
    /// Protect a checkpoint no longer.
    #[command(after_help = "Example:\n  understudy checkpoints unprotect web1 before-upgrade")]
    Unprotect {
        /// A name or identity.
        machine: String,
        /// Its number or name.
        checkpoint: String,
    },
}

/// What can be done with a session.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Show a session.
    #[command(after_help = "Example:\n  understudy session show 1f2e3d4c")]
    Show {
        /// A session, or an unambiguous beginning of one.
        session: String,
    },
    /// Serve a held session again: its guest was restarted after the server's host was.
    #[command(after_help = "\
Example:
  understudy session resume 1f2e3d4c

After a crash of the server's host, writes that the guest believes done but never flushed may be
gone. Its disks are held back until somebody says that the guest was restarted since.")]
    Resume {
        /// A session, or an unambiguous beginning of one.
        session: String,
    },
    /// End a session; what its guest wrote is kept as a branch.
    #[command(after_help = "Example:\n  understudy session stop 1f2e3d4c --discard")]
    Stop {
        /// A session, or an unambiguous beginning of one.
        session: String,
        /// Drop what its guest wrote.
        #[arg(long)]
        discard: bool,
    },
}

/// What can be done with image files.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Say what an image file is.
    #[command(after_help = "Example:\n  understudy image info disk.vhd")]
    Info {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
    },
    /// Look at every structure of an image and name what is wrong; exit status 1 if anything is.
    #[command(after_help = "\
Examples:
  understudy image check disk.qcow2
  understudy image check disk.qcow2 --repair

Repairing puts right what has one answer only: counts that follow from the tables, room that
nothing uses, a copy of a structure whose twin is good, a log that waits to be replayed. The rest
is named and left as it is.")]
    Check {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
        /// Put right what needs no guess.
        #[arg(long)]
        repair: bool,
    },
    /// Write an image's disk into a new file.
    #[command(after_help = "\
Examples:
  understudy image convert disk.vhd disk.qcow2 --to qcow2
  understudy image convert overlay.qcow2 disk.raw --to raw --parent base.qcow2
  understudy image convert disk.raw disk.vmdk --to vmdk-stream

Holes and zeroes take no room in the new file.")]
    Convert {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
        /// The new file.
        output: PathBuf,
        /// What the new file is to be. vmdk-flat is two files, vmdk-stream is compressed.
        #[arg(long, value_parser = kinds())]
        to: String,
        /// Reads and writes at a time [default: twice the processors].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
        jobs: Option<u16>,
    },
    /// Compare the disks of two images; exit status 1 if they differ.
    #[command(after_help = "Example:\n  understudy image compare disk.vhd disk.raw")]
    Compare {
        /// One image.
        #[command(flatten)]
        image: ImageArguments,
        /// The other image.
        other: PathBuf,
        /// What the other file is; found out by default.
        #[arg(long, value_parser = formats())]
        other_format: Option<String>,
    },
    /// List which parts of an image's disk hold data.
    #[command(after_help = "Example:\n  understudy image map disk.vhd")]
    Map {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
    },
    /// Make the disk of an image longer, or shorter where nothing but zeroes is cut off.
    #[command(after_help = "\
Example:
  understudy image resize disk.qcow2 --size 200GiB

Nobody else may have the image open. raw and qcow2 grow and shrink, vhdx grows, as far as their
tables have room; the rest is converted into a new image.")]
    Resize {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
        /// The disk's new size, a multiple of 512 bytes.
        #[arg(long)]
        size: bytesize::ByteSize,
    },
    /// Write what a child stores into its parent, which then is the disk that the child was (vhd).
    #[command(after_help = "\
Example:
  understudy image merge child.vhd --into base.vhd

What was interrupted is repeated. The child is left as it is, and can be removed afterwards.")]
    Merge {
        /// The child.
        child: PathBuf,
        /// Its parent.
        #[arg(long, value_name = "FILE")]
        into: PathBuf,
    },
    /// Make an empty image, or a child of one.
    #[command(after_help = "\
Examples:
  understudy image create disk.vhdx --format vhdx --size 100GiB
  understudy image create disk.vhdx --format vhdx --size 8TiB --sector 4096 --fixed
  understudy image create child.vhd --format vhd --parent base.vhd

A child (vhd) stores what is written from now on; the rest shows from the parent, which lies in
the same folder and must not be written any more.")]
    Create {
        /// The new file.
        output: PathBuf,
        /// What it is to be.
        #[arg(long, value_parser = formats())]
        format: String,
        /// The disk's size, a multiple of 512 bytes.
        #[arg(long, required_unless_present = "parent")]
        size: Option<bytesize::ByteSize>,
        /// Make a child of this image (vhd), which then has its size.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["size", "fixed", "sector"])]
        parent: Option<PathBuf>,
        /// Every block has its place from the start (vhd, vhdx, vmdk).
        #[arg(long)]
        fixed: bool,
        /// The sectors by which a guest addresses the disk (4096: vhdx).
        #[arg(long, value_name = "BYTES", value_parser = ["512", "4096"], default_value = "512")]
        sector: String,
    },
}

/// Which image file, and how it is opened.
#[derive(Debug, Args)]
pub struct ImageArguments {
    /// An image file of any format, or a block device.
    pub file: PathBuf,
    /// What the file is; found out by default.
    #[arg(long, value_parser = formats())]
    pub format: Option<String>,
    /// A file that the image may stand on. What the image itself names is never followed. May be repeated.
    #[arg(long = "parent", value_name = "FILE")]
    pub parents: Vec<PathBuf>,
}

/// What can be done with a branch.
#[derive(Debug, Subcommand)]
pub enum BranchCommand {
    /// Make a line that stays, of a checkpoint or of a session as it is now.
    #[command(after_help = "\
Examples:
  understudy branch clone 1f2e3d4c --name after-repair
  understudy branch clone web1 --at 17 --name test-bed
  understudy recover web1 --at test-bed --drill

It outlives its session, and keeps its base from being consolidated until it is dropped.")]
    Clone {
        /// A machine's name or identity, or a session.
        of: String,
        /// A checkpoint's number or name, or a time; the newest, or the session as it is, by default.
        #[arg(long, value_name = "CHECKPOINT|TIME")]
        at: Option<String>,
        /// What it is called, and its first checkpoint.
        #[arg(long)]
        name: String,
    },
    /// Give up a clone or a superseded branch, and what only it holds.
    #[command(after_help = "\
Example:
  understudy branch drop web1 3

A failback leaves what the machine had written after the session's checkpoint as a superseded
branch. It can be recovered and exported like any other history, and keeps its base from being
consolidated, until it is dropped.")]
    Drop {
        /// A name or identity.
        machine: String,
        /// Its number, as `understudy branches` shows it.
        branch: u64,
    },
}

/// What can be done with a store at rest.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Check everything in a data folder, without a server.
    #[command(after_help = "\
Examples:
  understudy store check /var/lib/understudy/server
  understudy store check /var/lib/understudy/server --repair

Changes nothing without --repair. With it, what follows exactly from what is whole is made again
(the index of a delta from its log, indexes of several deltas, the store's marker), torn tails are
cut and what interrupted operations left is removed; what cannot be repaired without guessing is
said. Exit status 1 if something is damaged.")]
    Check {
        /// The server's data folder.
        dir: PathBuf,
        /// Put right what needs no guess.
        #[arg(long)]
        repair: bool,
    },
}

/// What can be done with a machine.
#[derive(Debug, Subcommand)]
pub enum MachineCommand {
    /// Change how long its history is kept and how much room it may take up.
    #[command(after_help = "\
Examples:
  understudy machine set web1 --quota 500GiB
  understudy machine set web1 --keep all=1h,hourly=1d --quota none

Above nine tenths of its quota a machine's history is shortened; where even that does not help,
what it sends is no longer acknowledged until there is room. `status` says how much history a
quota buys.")]
    Set {
        /// A name or identity.
        machine: String,
        /// A ladder, a duration, none, or default for the server's.
        #[arg(long, value_name = "LADDER")]
        keep: Option<String>,
        /// A size such as 500GiB, or none.
        #[arg(long, value_name = "SIZE|none", value_parser = quota)]
        quota: Option<u64>,
    },
    /// Forget a machine and free its space.
    #[command(after_help = "Example:\n  understudy machine remove web1")]
    Remove {
        /// A name or identity.
        machine: String,
    },
}

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
    /// A whole disk to protect. May be repeated; the order numbers the disks.
    #[arg(long = "disk", value_name = "DEVICE")]
    pub disks: Vec<PathBuf>,
    /// The machine's name [default: its host name].
    #[arg(long, env = "UNDERSTUDY_NAME")]
    pub name: Option<String>,
    /// How changes are found: auto, ebpf or scan [default: auto].
    #[arg(long, env = "UNDERSTUDY_TRACKER", value_parser = ["auto", "ebpf", "scan"])]
    pub tracker: Option<String>,
    /// When changes are sent: continuous, or every=DURATION [default: continuous].
    #[arg(long, env = "UNDERSTUDY_SEND", value_name = "continuous|every=DURATION")]
    pub send: Option<String>,
    /// Whether what is sent is compressed: auto (where the link was measured to be the slower one), always or never
    #[arg(long, env = "UNDERSTUDY_COMPRESS", value_parser = ["auto", "always", "never"])]
    pub compress: Option<String>,
    /// How often a checkpoint is taken [default: 60s].
    #[arg(long, env = "UNDERSTUDY_CHECKPOINT_EVERY", value_name = "DURATION")]
    pub checkpoint_every: Option<humantime::Duration>,
    /// How often the server hears from us [default: 5s].
    #[arg(long, env = "UNDERSTUDY_HEARTBEAT", value_name = "DURATION")]
    pub heartbeat: Option<humantime::Duration>,
    /// How long writers may stand still for a checkpoint [default: 2s].
    #[arg(long, env = "UNDERSTUDY_FREEZE_BUDGET", value_name = "DURATION")]
    pub freeze_budget: Option<humantime::Duration>,
    /// One-time token from `understudy enroll`, at the first start.
    #[arg(long, env = "UNDERSTUDY_TOKEN")]
    pub token: Option<String>,
    /// Where certificate and identity are kept [default: /var/lib/understudy/agent].
    #[arg(long, env = "UNDERSTUDY_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// The names of what an image can be made as.
fn kinds() -> PossibleValuesParser {
    PossibleValuesParser::new(ImageKind::ALL.map(ImageKind::name))
}

/// The names of the image formats.
fn formats() -> PossibleValuesParser {
    PossibleValuesParser::new(ImageFormat::ALL.map(ImageFormat::name))
}

/// Bytes; 0 for none.
fn quota(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        size => match size.parse::<bytesize::ByteSize>()?.as_u64() {
            0 => Err("a quota of 0 bytes keeps nothing; say none for no quota".to_owned()),
            bytes => Ok(bytes),
        },
    }
}

fn disk_mapping(text: &str) -> Result<(u16, String), String> {
    let (number, device) = text.split_once('=').ok_or("wants N=DEVICE, such as 0=/dev/sdb")?;
    let number = number.parse().map_err(|_| format!("'{number}' is not a disk's number"))?;
    match device.starts_with('/') {
        true => Ok((number, device.to_owned())),
        false => Err(format!("'{device}' is not an absolute path of a device on that machine")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("understudy "), "{path} --help shows no example");
                let long = help.lines().find(|line| line.len() > 98);
                assert!(long.is_none(), "{path} --help has a line that wraps: {long:?}");
                check(sub, &path);
            }
        }
        check(&Arguments::command(), "understudy");
    }

    #[test]
    fn disk_mappings_name_what_is_wrong() {
        assert_eq!(disk_mapping("0=/dev/sdb"), Ok((0, "/dev/sdb".to_owned())));
        assert!(
            disk_mapping("0").is_err()
                && disk_mapping("x=/dev/sdb").is_err()
                && disk_mapping("0=sdb").is_err()
        );
    }
}
