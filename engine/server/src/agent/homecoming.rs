//! Which disks the newest history came home to.
//!
//! What an agent knows of generations lies on its disk, and comes back from a failback as old as the disk's content. So a
//! machine that boots after one may say an old number on disks that hold the newest state, as does an old primary on
//! disks that nobody brought home. What tells them apart is what was written to: the disks' serial numbers.

use blocks::{Error, ErrorKind, Generation, Result};
use serde::{Deserialize, Serialize};
use store::Unit;
use wire::DiskHello;

/// The note of a unit that holds it.
const NOTE: &str = "homecoming";

/// Good for as long as no newer generation makes history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Homecoming {
    /// The generation that the failback began.
    pub generation: u64,
    /// The serial number of each disk that was written; empty where it has none, or where it is not known.
    pub serials: Vec<String>,
    /// An administrator has said that the next machine of this name is the one.
    pub any: bool,
}

impl Homecoming {
    /// The last one of a unit.
    pub fn of(unit: &Unit) -> Result<Option<Homecoming>> {
        let Some(note) = unit.note(NOTE) else { return Ok(None) };
        let read = serde_json::from_slice(&note).map_err(|error| {
            Error::with_source(ErrorKind::Corrupt, format!("the homecoming of '{}'", unit.name()), error)
        });
        read.map(Some)
    }

    /// Keeps it with the unit.
    pub fn keep(&self, unit: &Unit) -> Result<()> {
        unit.set_note(NOTE, Some(serde_json::to_vec(self).expect("a homecoming is text and numbers")))
    }

    /// Whether these are the disks that hold the newest history, which ends with this generation. The failback's own is
    /// higher until something was sealed under it.
    pub fn is_of(&self, history: Generation, disks: &[DiskHello]) -> bool {
        let same = self.serials.len() == disks.len()
            && self.serials.iter().zip(disks).all(|(then, now)| !then.is_empty() && *then == now.serial);
        self.is_newest(history) && (self.any || same)
    }

    /// Whether nothing has come after it.
    pub fn is_newest(&self, history: Generation) -> bool {
        history <= Generation(self.generation)
    }

    /// A machine was taken for the one that came home: from now on it is known by its disks alone.
    pub fn settle(unit: &Unit, disks: &[DiskHello]) -> Result<()> {
        match Homecoming::of(unit)? {
            Some(known) if known.any => {
                let serials = disks.iter().map(|disk| disk.serial.clone()).collect();
                Homecoming { any: false, serials, ..known }.keep(unit)
            }
            _ => Ok(()),
        }
    }
}
