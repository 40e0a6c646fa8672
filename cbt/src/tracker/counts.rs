//! Do three counts of the same writes prove that none was missed? Deciding only; nothing here touches a device.

use super::ledger::Reference;

/// The counts at about one instant, read in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    pub kernel: u64,
    pub queued: u64,
    pub completed: u64,
    /// Read once more after all others: where it has not moved, no write began in between.
    pub queued_after: u64,
}

/// What counts say against a reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Agree,
    CompletedShort(u64),
    QueuedShort(u64),
    /// So much is on its way, or was counted by the tracker alone.
    Unsettled(u64),
    /// More completed than was queued: the counts are no counts of the same thing.
    Nonsense,
}

impl Counts {
    /// The judgement. Every write is counted as queued before it reaches the device, as completed when it is done, and
    /// by the kernel just after that; so of two counts the one that must come first is never smaller, if read last.
    pub fn against(self, reference: Reference) -> Verdict {
        let kernel = self.kernel.wrapping_sub(reference.kernel);
        let queued = self.queued.wrapping_sub(reference.queued);
        let completed = self.completed.wrapping_sub(reference.completed);
        if kernel > queued {
            return Verdict::QueuedShort(kernel - queued);
        }
        if kernel < queued || self.queued_after != self.queued {
            return Verdict::Unsettled(queued - kernel);
        }
        // All that was ever queued has been counted by the kernel as done, and nothing has begun since.
        match completed {
            _ if completed == kernel => Verdict::Agree,
            _ if completed < kernel => Verdict::CompletedShort(kernel - completed),
            _ => Verdict::Nonsense,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: Reference = Reference { queued: 100, completed: 50, kernel: 7000 };

    fn verdict(queued: u64, completed: u64, kernel: u64) -> Verdict {
        let queued = 100 + queued;
        Counts { kernel: 7000 + kernel, queued, completed: 50 + completed, queued_after: queued }
            .against(REFERENCE)
    }

    #[test]
    fn each_way_of_missing_a_write_has_its_verdict() {
        assert_eq!(verdict(0, 0, 0), Verdict::Agree);
        assert_eq!(verdict(8, 8, 8), Verdict::Agree);
        assert_eq!(verdict(8, 4, 8), Verdict::CompletedShort(4));
        assert_eq!(verdict(4, 4, 8), Verdict::QueuedShort(4));
        assert_eq!(verdict(4, 8, 8), Verdict::QueuedShort(4));
        assert_eq!(verdict(8, 4, 4), Verdict::Unsettled(4));
        assert_eq!(verdict(8, 9, 8), Verdict::Nonsense);
    }

    #[test]
    fn a_write_that_begins_between_the_readings_settles_nothing() {
        let counts = Counts { kernel: 7008, queued: 108, completed: 54, queued_after: 112 };
        assert_eq!(counts.against(REFERENCE), Verdict::Unsettled(0));
    }
}
