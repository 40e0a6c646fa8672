//! What can be done with a stand-in.

use super::Places;
use crate::{Acceleration, Definition, Network};
use blocks::Result;
use std::path::Path;
use std::time::Duration;

/// A stand-in to be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StandIn {
    /// What it is; processors and memory as the host has room for them.
    pub definition: Definition,
    /// Tells it from every other: a UUID, which its guest also finds in its firmware's tables.
    pub identity: String,
    /// Left in its firmware's tables, where an agent in the guest finds that this is a stand-in, and of what.
    pub mark: String,
    /// What its cards are plugged into.
    pub network: Network,
    /// What runs its instructions; `Fallback` has it found out by trying.
    pub acceleration: Acceleration,
    /// The UEFI firmware; found where distributions put it by default.
    pub firmware_code: Option<String>,
    /// The variables that a new one begins with; said where the firmware is.
    pub firmware_vars: Option<String>,
    /// Started in place of what is on the disk, where that does not start on this hardware. Nothing on the disk changes.
    pub kernel: Option<Kernel>,
}

/// A kernel that the hypervisor starts in place of what the disk's boot loader would.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// The kernel's file on the host.
    pub image: String,
    /// The first root file system's.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub append: String,
}

/// How a guest is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GuestState {
    /// It runs.
    Running,
    /// It stands still because somebody said so.
    Paused,
    /// It stands still because a disk could not be read or written; it may go on when that is over.
    DiskTrouble,
    /// It has switched itself off.
    Off,
    /// It stands still for another reason, in the hypervisor's word.
    Stopped(String),
    /// The process is there and does not answer; why.
    Silent(String),
    /// There is no such process; the last that it said, which may be nothing.
    Gone(String),
}

impl GuestState {
    /// Whether there is a process that has the disks open.
    pub fn is_there(&self) -> bool {
        !matches!(self, GuestState::Gone(_))
    }
}

/// Runs stand-ins. Every method blocks, with an end to each wait, and holds nothing between calls: the stand-in is the
/// one in its folder, under the identity that it was started with.
pub trait Hypervisor: Send + Sync + std::fmt::Debug {
    /// Starts one in its folder, which is made anew; it runs when this returns, and goes on when whoever called it has
    /// ended. Returns what is to be said about it. After an error nothing runs. Not for a folder in which one runs.
    fn start(&self, stand_in: &StandIn, places: &Places) -> Result<Vec<String>>;

    /// How it is. Never an error: what cannot be known is a state too.
    fn state(&self, identity: &str, places: &Places) -> GuestState;

    /// Lets it stand still.
    fn pause(&self, identity: &str, places: &Places) -> Result<()>;

    /// Lets it go on, also after trouble with a disk.
    fn resume(&self, identity: &str, places: &Places) -> Result<()>;

    /// Presses its power button and waits until it has switched itself off; `false` where it has not within `patience`.
    fn power_down(&self, identity: &str, places: &Places, patience: Duration) -> Result<bool>;

    /// Ends its process, if there is one, and returns when it is gone. The guest hears nothing of it.
    fn kill(&self, identity: &str, places: &Places) -> Result<()>;

    /// Writes what is on its screen into a new PNG file.
    fn screenshot(&self, identity: &str, places: &Places, file: &Path) -> Result<()>;

    /// Whether a connection to a forwarded port of the host has reached the guest and was taken there.
    fn is_connected(&self, identity: &str, places: &Places, host_port: u16) -> Result<bool>;
}
