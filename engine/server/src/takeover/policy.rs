//! What a machine's administrator wants done when it fails.

use super::probe::Probe;
use blocks::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use store::Unit;

/// The note of a unit that holds it; where there is none, people are told and nothing else happens.
const NOTE: &str = "takeover";

/// What is done about a machine that has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnFailure {
    /// People are told: status, log, alarm.
    #[default]
    Notify,
    /// Its newest checkpoint is served, and takes charge.
    Recover,
    /// And its stand-in is started.
    Boot,
}

/// A machine's policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub on_failure: OnFailure,
    /// Who is asked for a second opinion before the machine is taken for dead.
    pub probe: Option<Probe>,
}

/// The note's form.
#[derive(Serialize, Deserialize)]
struct Record {
    on_failure: OnFailure,
    probe: Option<String>,
}

impl FromStr for OnFailure {
    type Err = Error;

    fn from_str(text: &str) -> Result<OnFailure> {
        match text {
            "notify" => Ok(OnFailure::Notify),
            "recover" => Ok(OnFailure::Recover),
            "boot" => Ok(OnFailure::Boot),
            _ => {
                let context = format!("'{text}' is nothing to do on a failure: notify, recover or boot");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.on_failure {
            OnFailure::Notify => "notify",
            OnFailure::Recover => "recover",
            OnFailure::Boot => "boot",
        };
        match &self.probe {
            None if self.on_failure == OnFailure::Notify => f.write_str(what),
            None => write!(f, "{what}, by heartbeats alone"),
            Some(probe) => write!(f, "{what}, after asking {probe}"),
        }
    }
}

impl Policy {
    /// The policy of a unit. One that is not understood is an error, so that nobody is recovered by mistake.
    pub fn of(unit: &Unit) -> Result<Policy> {
        let Some(note) = unit.note(NOTE) else { return Ok(Policy::default()) };
        let context = || format!("the policy of '{}'", unit.name());
        let record: Record = serde_json::from_slice(&note)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, context(), error))?;
        let probe = record.probe.as_deref().map(str::parse).transpose();
        Ok(Policy {
            on_failure: record.on_failure,
            probe: probe.map_err(|error: Error| error.context(context()))?,
        })
    }

    /// Keeps it with the unit.
    pub fn keep(&self, unit: &Unit) -> Result<()> {
        let probe = self.probe.as_ref().map(ToString::to_string);
        let record = Record { on_failure: self.on_failure, probe };
        let note = serde_json::to_vec(&record).expect("a policy is text");
        unit.set_note(NOTE, (*self != Policy::default()).then_some(note))
    }

    /// The same with what an administrator changes; `none` takes the probe away. Whoever wants a machine to be recovered by
    /// itself has to say who else is asked whether it is dead, or that nobody is.
    pub fn with(&self, on_failure: Option<&str>, probe: Option<&str>) -> Result<Policy> {
        let changed = Policy {
            on_failure: on_failure.map_or(Ok(self.on_failure), str::parse)?,
            probe: match probe {
                None => self.probe.clone(),
                Some("none") => None,
                Some(text) => Some(text.parse()?),
            },
        };
        let begins = self.on_failure == OnFailure::Notify && changed.on_failure != OnFailure::Notify;
        if begins && changed.probe.is_none() && probe.is_none() {
            let context = "a recovery without a person wants a second opinion: --probe tcp:HOST:PORT or \
                           command:PROGRAM, or --probe none to go by heartbeats alone";
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovering_wants_a_second_opinion_or_a_word_that_there_is_none() {
        let error = Policy::default().with(Some("recover"), None).unwrap_err();
        assert!(error.to_string().contains("second opinion"), "{error}");
        let asked = Policy::default().with(Some("recover"), Some("tcp:web1:22")).unwrap();
        assert_eq!(asked.to_string(), "recover, after asking tcp:web1:22");
        assert_eq!(asked.with(None, None).unwrap(), asked, "nothing changes where nothing is said");
        let alone = asked.with(None, Some("none")).unwrap();
        assert_eq!(alone.to_string(), "recover, by heartbeats alone");
        assert_eq!(alone.with(None, None).unwrap(), alone, "what was said once need not be said again");
        assert_eq!(alone.with(Some("boot"), None).unwrap().to_string(), "boot, by heartbeats alone");
        assert_eq!(alone.with(Some("notify"), None).unwrap(), Policy::default());
        assert!(Policy::default().with(Some("explode"), None).is_err());
        assert!(Policy::default().with(None, Some("carrier pigeon")).is_err());
    }
}
