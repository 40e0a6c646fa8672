//! What somebody has to do once an agent has ended for good: the last thing that it says.

use blocks::{Error, ErrorKind};
use wire::{Address, Refusal, RefusalKind};

const ENROLL: &str = "remove identity.json from the agent's --state folder, run 'understudy enroll' on the \
                      server and start the agent with the token that it prints (--token)";

/// A refusal that trying again does not mend.
pub(super) fn refused(server: &Address, refusal: &Refusal) -> Error {
    let advice = match refusal.kind {
        RefusalKind::Version => {
            "bring the agent and the server to the same version and start the agent again"
        }
        RefusalKind::Identity => ENROLL,
        RefusalKind::Disks => {
            "start the agent with the disks that the server knows of this machine, or as another machine (--name)"
        }
        RefusalKind::Taken => "stop the other agent, or start this one as another machine (--name)",
        RefusalKind::Busy | RefusalKind::Shutdown => "start the agent again later",
    };
    let context = format!("{server} refuses this agent: {}; {advice}", refusal.reason);
    Error::new(ErrorKind::InvalidInput, context)
}

/// A connection that will fail in the same way each time.
pub(super) fn unconnectable(error: Error) -> Error {
    match wire::refused_identity(&error) {
        true => Error::new(error.kind(), format!("{error}; {ENROLL}")),
        // Says itself what to do.
        false => error,
    }
}

/// An agent that only takes a failback, of a machine that is in charge of itself.
pub(super) fn nothing_to_restore(name: &str) -> Error {
    let context = format!(
        "no session is in charge of '{name}', so there is nothing to restore: 'understudy recover {name}' begins one"
    );
    Error::new(ErrorKind::Unsupported, context)
}

/// Work that cannot go on.
pub(super) fn ended(error: Error) -> Error {
    match error.kind() {
        // Says itself what to do.
        ErrorKind::Unsupported => error,
        kind => Error::new(
            kind,
            format!(
                "{error}; mend the cause and start the agent again: what is written meanwhile stays marked as long as \
                 the machine runs"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let server: Address = "127.0.0.1:7070".parse().unwrap();
        let kinds = [
            (RefusalKind::Version, "same version"),
            (RefusalKind::Identity, "understudy enroll"),
            (RefusalKind::Disks, "disks that the server knows"),
            (RefusalKind::Taken, "stop the other agent"),
            (RefusalKind::Busy, "later"),
        ];
        for (kind, wanted) in kinds {
            let error = refused(&server, &Refusal { kind, reason: "because".into() });
            let text = error.to_string();
            assert!(text.contains("because") && text.contains(wanted), "{text}");
        }
    }
}
