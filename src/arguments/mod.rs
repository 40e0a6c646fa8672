//! What can be typed.

mod boot;
mod definition;
mod history;
mod image;
mod machine;
mod mount;
mod services;

pub use boot::BootArguments;
pub use definition::DefinitionArguments;
pub use history::{BranchCommand, CheckpointsCommand, DeltaCommand};
pub use image::{ImageArguments, ImageCommand};
pub use machine::MachineChanges;
pub use mount::MountArguments;
pub use services::{AgentArguments, AgentCommand, NbdArguments, ServerArguments};

use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use store::ImageFormat;

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
  understudy recover MACHINE --boot      run its newest checkpoint now (or serve it, without --boot)
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
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  understudy agent doctor --disk /dev/sda
  understudy agent --server backup.example:10810 --disk /dev/sda --token understudy1...
  understudy agent --server 127.0.0.1:10810 --disk /dev/sda --disk /dev/sdb --checkpoint-every 30s
  understudy agent --restore --server backup.example:10810 --disk /dev/sda --name web1 --token ...

The token is needed once; `understudy enroll` on the server prints it. Agents on the server's own
machine need none."
    )]
    Agent {
        /// How it runs.
        #[command(flatten)]
        flags: Box<AgentArguments>,
        /// What else it can do.
        #[command(subcommand)]
        command: Option<AgentCommand>,
    },
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
  understudy recover web1 --boot --drill --probe tcp:80
  understudy recover web1 --boot --network user,hostfwd=tcp:127.0.0.1:8080-:80 --probe tcp:80
  qemu-system-x86_64 -drive file=nbd://127.0.0.1:10809/web1-1f2e3d4c-disk0,format=raw ...

Prints the session and one NBD URI per disk. From then on the session is in charge and the
machine's agent is fenced, unless it is a drill. With --boot QEMU runs the stand-in on it, and
goes on when the server is restarted. A drill with a probe is measured, reported and taken away
again; exit status 1 if the probe did not succeed.")]
    Recover {
        /// A name or identity.
        machine: String,
        /// A checkpoint's number or name, or a time (RFC 3339, or `now`): the newest checkpoint not after it and, of
        /// tapped disks, each write up to it; the newest checkpoint by default.
        #[arg(long, value_name = "CHECKPOINT|TIME")]
        at: Option<String>,
        /// Leave the machine in charge: a session to look at or to rehearse with.
        #[arg(long)]
        drill: bool,
        /// Start the stand-in too; in a drill nothing leads out of its network.
        #[arg(long)]
        boot: bool,
        #[command(flatten)]
        guest: Box<BootArguments>,
    },
    /// List what came of a machine's drills.
    #[command(after_help = "\
Example:
  understudy drills web1

A drill is `recover MACHINE --boot --drill --probe PROBE`, by hand or as often as
`machine set --drill-every` says. Reports and pictures are in the server's data folder.")]
    Drills {
        /// A name or identity.
        machine: String,
    },
    /// List sessions.
    #[command(after_help = "Example:\n  understudy sessions")]
    Sessions,
    /// Show or stop one session, or do something with its stand-in.
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
  understudy export web1 --format ova -o /srv/web1.ova
  understudy export web1 --since 17 --at 23 -o /srv/web1-17-23.delta

With --since only what changed between both checkpoints is written; see `understudy delta`. An ova
carries all disks and says what the machine is.")]
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
        #[arg(long, value_parser = image::export_kinds(), default_value = "raw")]
        format: String,
        /// Of an ova [default: 1].
        #[arg(long, value_name = "N", value_parser = ["1", "2"], conflicts_with = "since")]
        ovf_version: Option<String>,
        /// The new file.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Write down what a machine is, for whoever runs a stand-in of it.
    #[command(after_help = "\
Examples:
  understudy definition 1f2e3d4c --as qemu
  understudy definition web1 --as libvirt --disk-file /srv/web1.qcow2 > web1.xml
  understudy definition web1 --as vmx --disk-file /vmfs/volumes/a/web1.vmdk > web1.vmx

A session's disks are its NBD exports; those of a machine are the files that are named. What a
form cannot say is named on standard error.")]
    Definition(DefinitionArguments),
    /// Show every machine's disks as files, at each checkpoint and of each session, until interrupted.
    #[command(after_help = "\
Examples:
  understudy mount /mnt/understudy
  qemu-img convert /mnt/understudy/web1/latest/disk0.vhd -O qcow2 web1.qcow2
  mount -o loop,ro,noload /mnt/understudy/web1/latest/disk0.raw /mnt/web1

MACHINE/checkpoints/TIME/ and MACHINE/latest/ are only read: disk0.raw, .vhd, .vhdx, .vmdk and
.qcow2, made while they are read, and definitions for libvirt, VMware, OVF and QEMU.
MACHINE/sessions/SESSION/ is written: disk0.raw, .vhd and .vmdk. A session's disk is either used
over NBD or through one of its files.")]
    Mount(MountArguments),
    /// Look at, merge and apply delta files, without a server.
    #[command(subcommand, after_help = "Example:\n  understudy delta info web1-17-23.delta")]
    Delta(DeltaCommand),
    /// Serve one image file over NBD, without a server.
    #[command(after_help = "\
Examples:
  understudy serve disk.vhd
  understudy serve disk.raw --nbd unix:/run/disk.sock --read-only
  understudy serve web1.ova --disk 0 --read-only")]
    Serve {
        /// An image file of any format, a block device, or with --disk an OVA or OVF descriptor.
        file: PathBuf,
        /// Which disk of an OVA or OVF descriptor; those are only read.
        #[arg(long, value_name = "N", requires = "read_only")]
        disk: Option<u16>,
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
    #[command(after_help = "\
Examples:
  understudy enroll --name web1
  understudy enroll --name web1 --rescue

A machine that is enrolled again gets a new certificate, and its old one is refused from then on.
With --rescue the old one stays good: it comes home with the disk that a failback brings back.")]
    Enroll {
        /// Good only for a machine of this name.
        #[arg(long)]
        name: Option<String>,
        /// For a rescue system on that machine, until the machine itself speaks again.
        #[arg(long, requires = "name")]
        rescue: bool,
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
    #[command(after_help = "\
Example:
  understudy session stop 1f2e3d4c --discard

A stand-in that runs on it is shut down first, and ended where it does not heed that.")]
    Stop {
        /// A session, or an unambiguous beginning of one.
        session: String,
        /// Drop what its guest wrote.
        #[arg(long)]
        discard: bool,
        /// How long its stand-in may take to shut down.
        #[arg(long, value_name = "DURATION", default_value = "60s")]
        patience: humantime::Duration,
    },
    /// Start the stand-in of a session that is there.
    #[command(after_help = "Example:\n  understudy session boot 1f2e3d4c --memory 4GiB")]
    Boot {
        /// A session, or an unambiguous beginning of one.
        session: String,
        #[command(flatten)]
        guest: Box<BootArguments>,
    },
    /// Press a stand-in's power button, and end it where it does not heed that; the session stays.
    #[command(after_help = "Example:\n  understudy session shutdown 1f2e3d4c --patience 2m")]
    Shutdown {
        /// A session, or an unambiguous beginning of one.
        session: String,
        /// How long it may take.
        #[arg(long, value_name = "DURATION", default_value = "60s")]
        patience: humantime::Duration,
    },
    /// Let a stand-in stand still.
    #[command(after_help = "Example:\n  understudy session pause 1f2e3d4c")]
    Pause {
        /// A session, or an unambiguous beginning of one.
        session: String,
    },
    /// Let a stand-in go on.
    #[command(after_help = "Example:\n  understudy session unpause 1f2e3d4c")]
    Unpause {
        /// A session, or an unambiguous beginning of one.
        session: String,
    },
    /// Attach to a stand-in's serial console; elsewhere than on a terminal, print its socket.
    #[command(after_help = "\
Examples:
  understudy session console 1f2e3d4c
  socat - UNIX-CONNECT:$(understudy session console 1f2e3d4c | cat)

Ctrl-] leaves it. One at a time can be attached; what was said before is shown first.")]
    Console {
        /// A session, or an unambiguous beginning of one.
        session: String,
    },
    /// Write what is on a stand-in's screen into a new PNG file.
    #[command(after_help = "Example:\n  understudy session screenshot 1f2e3d4c -o web1.png")]
    Screenshot {
        /// A session, or an unambiguous beginning of one.
        session: String,
        /// The new file.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
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
    /// Change how long its history is kept, how much room it may take up, what is done when it fails, and
    /// how often it is drilled.
    #[command(after_help = "\
Examples:
  understudy machine set web1 --quota 500GiB
  understudy machine set web1 --keep all=1h,hourly=1d --quota none
  understudy machine set web1 --on-failure boot --probe tcp:web1:22
  understudy machine set web1 --drill-every 7d --drill-probe tcp:80

Above nine tenths of its quota a machine's history is shortened; where even that does not help,
what it sends is no longer acknowledged until there is room. `status` says how much history a
quota buys.

A machine whose heartbeats have stopped counts as failed. With a probe it is asked for a second
opinion: while the machine itself answers (or refuses a connection), or the program ends with 0,
it is not recovered. A machine that was not heard of since the server started never is.")]
    Set {
        /// A name or identity.
        machine: String,
        #[command(flatten)]
        changes: Box<MachineChanges>,
    },
    /// Take the next machine of this name for the one that came home.
    #[command(after_help = "\
Example:
  understudy machine admit web1

After a failback by a rescue system a machine is known by the serial numbers of its disks. Where
they have none it stands by, because it could be an old one that was never brought up to date.")]
    Admit {
        /// A name or identity.
        machine: String,
    },
    /// Forget a machine and free its space.
    #[command(after_help = "Example:\n  understudy machine remove web1")]
    Remove {
        /// A name or identity.
        machine: String,
    },
}

/// The names of the image formats.
fn formats() -> PossibleValuesParser {
    PossibleValuesParser::new(ImageFormat::ALL.map(ImageFormat::name))
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
