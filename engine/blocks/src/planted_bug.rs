//! Bugs that a simulation plants, to show that it would find them.

/// A bug that was planted: what the product must never do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlantedBug {
    /// A write is acknowledged before its sync.
    AcknowledgementBeforeSync,
    /// An index is published before the log that it points into is on the medium.
    IndexBeforeData,
    /// The horizon passes a checkpoint that somebody holds.
    HorizonPassesPin,
    /// Where deltas overlap, the older write wins.
    MergePrefersOlder,
    /// Deltas are merged across a checkpoint that somebody holds.
    MergeCrossesPin,
    /// A record whose payload is torn counts as whole.
    TornRecordTaken,
}

impl PlantedBug {
    /// All of them.
    pub const ALL: [PlantedBug; 6] = [
        PlantedBug::AcknowledgementBeforeSync,
        PlantedBug::IndexBeforeData,
        PlantedBug::HorizonPassesPin,
        PlantedBug::MergePrefersOlder,
        PlantedBug::MergeCrossesPin,
        PlantedBug::TornRecordTaken,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            PlantedBug::AcknowledgementBeforeSync => "acknowledgement-before-sync",
            PlantedBug::IndexBeforeData => "index-before-data",
            PlantedBug::HorizonPassesPin => "horizon-passes-pin",
            PlantedBug::MergePrefersOlder => "merge-prefers-older",
            PlantedBug::MergeCrossesPin => "merge-crosses-pin",
            PlantedBug::TornRecordTaken => "torn-record-taken",
        }
    }

    /// Whether this one was planted, by the simulation that this thread is in. Without the feature `simulation`, which no
    /// program has that users run, this is `false` and what asks is compiled away.
    #[inline]
    #[must_use]
    pub fn is_planted(self) -> bool {
        #[cfg(feature = "simulation")]
        return crate::simulation::planted() == Some(self);
        #[cfg(not(feature = "simulation"))]
        false
    }
}
