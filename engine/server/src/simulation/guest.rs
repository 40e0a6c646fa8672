//! Sessions as the simulation knows them, and what a pivoted disk must hold.

use super::content::{Content, Version};
use super::failure::{Outcome, ensure};
use super::model::{End, apply};
use store::BranchId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Running,
    Stopped,
}

/// A session.
#[derive(Clone, Debug)]
pub(super) struct SessionModel {
    pub id: String,
    pub machine: usize,
    pub branch: BranchId,
    pub stage: Stage,
    /// A call to end it failed: it may be gone after a restart.
    pub ending: bool,
    /// For each disk that was pivoted, what its target must hold.
    pub targets: Vec<Option<TargetModel>>,
    /// It was held, and its guest could not be said to have been restarted.
    pub held: bool,
    /// Writes were completed that no flush has covered.
    pub unflushed: Vec<bool>,
}

/// A disk of which each sector is as it was at the last flush, or as any write since has made it.
#[derive(Clone, Debug)]
pub(super) struct TargetModel {
    flushed: Content,
    now: Content,
    since: Vec<(usize, Vec<Version>)>,
    /// Writes that failed.
    doubt: Vec<(usize, Vec<Version>)>,
}

impl TargetModel {
    /// A target that holds this on its medium.
    pub fn new(content: Content) -> TargetModel {
        TargetModel { flushed: content.clone(), now: content, since: Vec::new(), doubt: Vec::new() }
    }

    pub fn now(&self) -> &Content {
        &self.now
    }

    /// A write has failed, and may be there in part.
    pub fn is_doubtful(&self) -> bool {
        !self.doubt.is_empty()
    }

    pub fn write(&mut self, first: usize, versions: &[Version]) {
        apply(&mut self.now, first, versions);
        self.since.push((first, versions.to_vec()));
    }

    pub fn fail(&mut self, first: usize, versions: &[Version]) {
        self.doubt.push((first, versions.to_vec()));
    }

    pub fn flush(&mut self) {
        if self.doubt.is_empty() {
            self.flushed.clone_from(&self.now);
            self.since.clear();
        }
    }

    /// Whether what was found is right while the server runs.
    pub fn check(&self, found: &Content) -> Outcome {
        self.check_allowed(found, &self.now, false)
    }

    /// The same after a restart; what was found is what it holds from now on.
    pub fn restart(&mut self, found: Content, end: End) -> Outcome {
        match end {
            // Nothing has put it on the medium meanwhile.
            End::Killed => {
                self.check_allowed(&found, &self.now, false)?;
                self.since.append(&mut self.doubt);
                self.now = found;
            }
            End::PowerLoss => {
                self.check_allowed(&found, &self.flushed, true)?;
                *self = TargetModel::new(found);
            }
        }
        Ok(())
    }

    fn check_allowed(&self, found: &Content, expected: &Content, since: bool) -> Outcome {
        for (sector, (found, expected)) in found.iter().zip(expected).enumerate() {
            if found == expected {
                continue;
            }
            let writes = self.doubt.iter().chain(self.since.iter().filter(|_| since));
            let mut versions =
                writes.filter_map(|(first, versions)| versions.get(sector.checked_sub(*first)?));
            ensure(versions.any(|version| version == found), || {
                format!("sector {sector} of a pivoted disk: version {found} where {expected} must be")
            })?;
        }
        Ok(())
    }
}
