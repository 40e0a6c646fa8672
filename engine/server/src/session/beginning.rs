//! What a session begins with.

use crate::session::record::MomentRecord;
use blocks::CheckpointId;
use store::Moment;

/// What a session begins with.
#[derive(Debug)]
pub enum Beginning {
    /// A checkpoint.
    Checkpoint(CheckpointId),
    /// A checkpoint and writes behind it.
    Moment {
        /// Which.
        moment: Moment,
        /// In what words it was asked for: the same words mean the same session.
        asked: String,
    },
}

impl From<CheckpointId> for Beginning {
    fn from(checkpoint: CheckpointId) -> Beginning {
        Beginning::Checkpoint(checkpoint)
    }
}

impl Beginning {
    pub(super) fn base(&self) -> CheckpointId {
        match self {
            Beginning::Checkpoint(checkpoint) => *checkpoint,
            Beginning::Moment { moment, .. } => moment.base,
        }
    }

    pub(super) fn record(&self) -> Option<MomentRecord> {
        match self {
            Beginning::Moment { moment, asked } => {
                Some(MomentRecord { time_us: moment.time?.0, writes: moment.writes, asked: asked.clone() })
            }
            Beginning::Checkpoint(_) => None,
        }
    }
}
