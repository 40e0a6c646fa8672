//! How a stand-in is started.

use clap::Args;
use std::path::PathBuf;

/// What is not to be as in the machine, and what is waited for.
#[derive(Debug, Default, PartialEq, Eq, Args)]
pub struct BootArguments {
    /// Memory, such as 4GiB [default: the machine's, or what the host has].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<bytesize::ByteSize>,
    /// Processors [default: the machine's, or what the host has].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: Option<u32>,
    /// What its cards are plugged into: user[,restrict=on][,net=A/BITS][,host=A]
    /// [,hostfwd=tcp:[A]:PORT-[A]:PORT]..., bridge=NAME or none [default: user].
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// What runs it: kvm, tcg (QEMU's translator), or auto: what a trial says.
    #[arg(long, value_name = "HOW", value_parser = ["auto", "kvm", "tcg"])]
    pub accel: Option<String>,
    /// The UEFI firmware [default: where distributions put it].
    #[arg(long, value_name = "FILE", requires = "firmware_vars")]
    pub firmware_code: Option<PathBuf>,
    /// The variables that a copy is made of.
    #[arg(long, value_name = "FILE", requires = "firmware_code")]
    pub firmware_vars: Option<PathBuf>,
    /// Start this kernel in place of what is on the disk, which it leaves as it is.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// With this initrd,
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// and this command line, such as "root=/dev/vda1 ro".
    #[arg(long, value_name = "WORDS", requires = "kernel")]
    pub append: Option<String>,
    /// Wait until it does its work: tcp:PORT is taken, agent answers, or console:TEXT is said.
    #[arg(long, value_name = "PROBE")]
    pub probe: Option<String>,
    /// For so long [default: 5m].
    #[arg(long, value_name = "DURATION", requires = "probe")]
    pub probe_timeout: Option<humantime::Duration>,
}
