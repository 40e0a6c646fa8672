//! What a look at every structure of an image has found.

use blocks::{ByteLen, Extent};
use std::fmt;

/// A report names at most so many faults one by one; the rest is counted.
const FAULTS_MAX: usize = 10_000;

/// How bad a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Room that nothing uses: no data is in danger.
    Leak,
    /// What a crash leaves by design, and the next opening for writing puts right by itself.
    Pending,
    /// The structures contradict themselves; data may be lost or may become so by writing.
    Damage,
}

/// One thing that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// How bad it is.
    pub kind: FaultKind,
    /// Where in the file; `None` where the fault has no place.
    pub place: Option<Extent>,
    /// What it is.
    pub what: String,
    /// It was put right.
    pub repaired: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FaultKind::Leak => "leak",
            FaultKind::Pending => "pending",
            FaultKind::Damage => "damage",
        };
        write!(f, "{kind}: {}", self.what)?;
        if let Some(place) = self.place {
            write!(f, " (the file's {place})")?;
        }
        if self.repaired { f.write_str(", repaired") } else { Ok(()) }
    }
}

/// All that a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    faults: Vec<Fault>,
    not_listed: u64,
    damaged: u64,
    leaked: ByteLen,
    repaired: u64,
}

impl CheckReport {
    /// The faults, in the order of their finding; perhaps not all of them, see [`CheckReport::not_listed`].
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// How many faults there are besides those that are listed.
    pub fn not_listed(&self) -> u64 {
        self.not_listed
    }

    /// How many faults are damage that was not repaired.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// How many faults were repaired.
    pub fn repaired(&self) -> u64 {
        self.repaired
    }

    /// How many bytes of the file are used by nothing and were not given back.
    pub fn leaked(&self) -> ByteLen {
        self.leaked
    }

    /// Whether nothing is wrong, or nothing any more.
    pub fn is_clean(&self) -> bool {
        self.damaged == 0 && self.leaked.is_zero()
    }

    pub(super) fn damage(&mut self, place: Option<Extent>, repaired: bool, what: impl Into<String>) {
        self.damaged += u64::from(!repaired);
        self.add(Fault { kind: FaultKind::Damage, place, what: what.into(), repaired });
    }

    pub(super) fn pending(&mut self, place: Option<Extent>, repaired: bool, what: impl Into<String>) {
        self.add(Fault { kind: FaultKind::Pending, place, what: what.into(), repaired });
    }

    pub(super) fn leak(&mut self, place: Extent, repaired: bool, what: impl Into<String>) {
        if !repaired {
            self.leaked += place.len();
        }
        self.add(Fault { kind: FaultKind::Leak, place: Some(place), what: what.into(), repaired });
    }

    fn add(&mut self, fault: Fault) {
        self.repaired += u64::from(fault.repaired);
        match self.faults.len() < FAULTS_MAX {
            true => self.faults.push(fault),
            false => self.not_listed += 1,
        }
    }
}
