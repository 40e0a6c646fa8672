//! Which checkpoint an administrator means.

use blocks::{CheckpointId, Error, ErrorKind, Result, WallClock, WriteTime};
use std::time::Duration;
use store::Checkpoint;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

const NOW: &str = "now";
const SECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
const MINUTES: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]");

/// The checkpoint that `at` means: a number, a name (the newest of that name), or a time on the server's clock (the
/// newest not after it): RFC 3339, `YYYY-MM-DD HH:MM[:SS]` in UTC, or `now`. Without `at`, the newest. `checkpoints` come by
/// rising number. `NotFound` says what there is instead.
pub(crate) fn choose<'a>(checkpoints: &'a [Checkpoint], at: Option<&str>) -> Result<&'a Checkpoint> {
    let not_found = |what: String| Error::new(ErrorKind::NotFound, what);
    let Some((first, newest)) = checkpoints.first().zip(checkpoints.last()) else {
        return Err(not_found("there is no checkpoint yet".into()));
    };
    let Some(at) = at.map(str::trim).filter(|at| !at.is_empty()) else {
        return Ok(newest);
    };
    if let Some(named) = checkpoints.iter().rev().find(|checkpoint| checkpoint.name == at) {
        return Ok(named);
    }
    if let Ok(number) = at.parse().map(CheckpointId) {
        return checkpoints.iter().find(|checkpoint| checkpoint.id == number).ok_or_else(|| {
            not_found(format!("there is no checkpoint {number}; there are {} to {}", first.id, newest.id))
        });
    }
    let Some(time) = parse_time(at) else {
        return Err(not_found(format!(
            "'{at}' is no checkpoint's name, and neither a number nor a time (RFC 3339, or YYYY-MM-DD HH:MM[:SS] in UTC)"
        )));
    };
    checkpoints.iter().rev().find(|checkpoint| checkpoint.server_time <= time).ok_or_else(|| {
        let oldest = format_time(first.server_time);
        not_found(format!("there is no checkpoint at or before {at}; the oldest is {} of {oldest}", first.id))
    })
}

/// A time as in [`choose`], to the microsecond.
pub(crate) fn parse_write_time(text: &str) -> Option<WriteTime> {
    if text.trim() == NOW {
        return Some(WriteTime::ago(Duration::ZERO));
    }
    u64::try_from(parse_nanos(text.trim())? / 1000).ok().map(WriteTime)
}

pub(crate) fn parse_time(text: &str) -> Option<WallClock> {
    if text == NOW {
        return Some(WallClock::now());
    }
    u64::try_from(parse_nanos(text)? / 1_000_000).ok().map(WallClock)
}

fn parse_nanos(text: &str) -> Option<i128> {
    let local = |format| PrimitiveDateTime::parse(text, format).ok().map(PrimitiveDateTime::assume_utc);
    let time =
        OffsetDateTime::parse(text, &Rfc3339).ok().or_else(|| local(SECONDS)).or_else(|| local(MINUTES))?;
    Some(time.unix_timestamp_nanos())
}

/// The instant before which something is to stay: as in [`choose`], a day alone, or `forever`. `InvalidInput` where it is
/// none, or past.
pub(crate) fn parse_until(text: &str, now: WallClock) -> Result<WallClock> {
    let wrong = |why: &str| Err(Error::new(ErrorKind::InvalidInput, format!("'{text}' {why}")));
    if text == "forever" {
        return Ok(Checkpoint::FOREVER);
    }
    match parse_time(text).or_else(|| parse_time(&format!("{text} 00:00"))) {
        None => wrong("is no time (RFC 3339, or YYYY-MM-DD [HH:MM[:SS]] in UTC, or forever)"),
        Some(until) if until <= now => wrong("is past"),
        Some(until) => Ok(until),
    }
}

/// RFC 3339 in UTC with milliseconds, the form that [`choose`] takes back exactly.
pub(crate) fn format_time(at: WallClock) -> String {
    let nanoseconds = i128::from(at.0) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .and_then(|time| time.to_offset(UtcOffset::UTC).format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{} ms", at.0))
}

/// RFC 3339 in UTC with microseconds, the form that [`parse_write_time`] takes back exactly.
pub(crate) fn format_write_time(at_us: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_us) * 1000)
        .ok()
        .and_then(|time| time.to_offset(UtcOffset::UTC).format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{at_us} us"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{ByteLen, Generation};
    use store::{BranchId, Consistency};

    fn checkpoint(id: u64, name: &str, server_time_ms: u64) -> Checkpoint {
        Checkpoint {
            id: CheckpointId(id),
            branch: BranchId(1),
            name: name.into(),
            consistency: Consistency::Crash,
            source_time: WallClock(1),
            server_time: WallClock(server_time_ms),
            frozen_ms: 0,
            generation: Generation(1),
            lens: Vec::new(),
            seqs: Vec::new(),
            excluded: Vec::new(),
            changed: ByteLen::ZERO,
            protected_until: WallClock(0),
        }
    }

    /// 2026-11-20 13:00:00.500, 13:01:00, 13:02:00 and 13:03:00 UTC.
    fn history() -> Vec<Checkpoint> {
        let noon: u64 = 1_795_179_600_000;
        vec![
            checkpoint(3, "nightly", noon + 500),
            checkpoint(4, "", noon + 60_000),
            checkpoint(7, "nightly", noon + 120_000),
            checkpoint(9, "2026", noon + 180_000),
        ]
    }

    fn at(text: &str) -> u64 {
        choose(&history(), Some(text)).unwrap().id.0
    }

    #[test]
    fn numbers_names_and_times() {
        let history = history();
        assert_eq!(choose(&history, None).unwrap().id.0, 9);
        assert_eq!(choose(&history, Some(" ")).unwrap().id.0, 9);
        assert_eq!(at("4"), 4);
        assert_eq!(at("nightly"), 7, "the newest of that name");
        assert_eq!(at("2026"), 9, "a name that looks like a number is a name first");
        assert_eq!(at("2026-11-20T13:01:59Z"), 4);
        assert_eq!(at("2026-11-20T14:01:59+01:00"), 4);
        assert_eq!(at("2026-11-20 13:01"), 4);
        assert_eq!(at("2026-11-20 13:00:59"), 3);
        assert_eq!(at("2026-11-20 13:02:00"), 7);
        assert_eq!(at("2030-01-01 00:00"), 9);
        for checkpoint in &history[..3] {
            assert_eq!(
                at(&format_time(checkpoint.server_time)),
                checkpoint.id.0,
                "what is printed is understood"
            );
        }
    }

    #[test]
    fn times_of_writes_are_taken_back_to_the_microsecond() {
        for at in [1_795_179_600_000_000, 1_795_179_600_123_456] {
            assert_eq!(parse_write_time(&format_write_time(at)), Some(WriteTime(at)));
        }
        assert_eq!(parse_write_time("2026-11-20 13:00"), Some(WriteTime(1_795_179_600_000_000)));
        assert_eq!(parse_write_time("nightly"), None);
        assert!(parse_write_time("now").unwrap() > WriteTime(1_795_179_600_000_000));
        assert_eq!(at("now"), 9);
    }

    #[test]
    fn instants_until_which_something_stays() {
        let now = WallClock(1_795_179_600_000);
        assert_eq!(parse_until("forever", now).unwrap(), Checkpoint::FOREVER);
        let day = parse_until("2026-12-01", now).unwrap();
        assert_eq!(parse_until("2026-12-01T00:00:00Z", now).unwrap(), day);
        for text in ["2026-11-01", "tomorrow", ""] {
            assert_eq!(parse_until(text, now).unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_clearly() {
        let error = |text| {
            let error = choose(&history(), Some(text)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            error.to_string()
        };
        assert!(error("5").contains("there are 3 to 9"), "{}", error("5"));
        assert!(error("weekly").contains("'weekly'"));
        assert!(error("2026-11-20 13:00:00").contains("the oldest is 3"));
        assert!(choose(&[], None).unwrap_err().to_string().contains("no checkpoint yet"));
    }
}
