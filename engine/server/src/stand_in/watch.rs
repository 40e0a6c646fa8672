//! Seeing what becomes of stand-ins: who has ended is noted, who waits for a disk goes on, no console fills the medium.

use super::manager::{Guest, StandIns, words};
use super::record::{StandInRecord, StandInState};
use crate::background::again_and_again;
use crate::services::Services;
use crate::stop::Stop;
use blocks::{Error, Result};
use hypervisor::{GuestState, Places};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, TryLockError};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A console's log begins anew when it is longer.
const CONSOLE_LOG_BYTES_MAX: u64 = 8 << 20;

/// Looks at every stand-in now and then until `stop` is heard. They go on when the server ends.
pub(crate) async fn run(services: Arc<Services>, stop: Stop) {
    let stand_ins = services.stand_ins.clone();
    let work = move |_: &AtomicBool| stand_ins.look_after();
    again_and_again("looking after stand-ins", stop, || LOOK_EVERY, work).await;
}

impl StandIns {
    /// Looks at each once. One's trouble is not the others'.
    pub(super) fn look_after(&self) {
        for (session, is_served) in self.sessions().served() {
            // One that has just gone is nobody's any more.
            let Ok(guest) = self.guest(&session.to_string()) else { continue };
            if let Err(error) = self.look_at(&guest, is_served) {
                tracing::warn!(session = guest.session, %error, "its stand-in cannot be looked after");
            }
        }
    }

    fn look_at(&self, guest: &Guest, is_served: bool) -> Result<()> {
        let Some(record) = StandInRecord::load(&guest.unit, &guest.session)? else { return Ok(()) };
        if !record.may_run() {
            return Ok(());
        }
        let turn = self.turn(&guest.session);
        let _turn = match turn.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Ok(turn) => turn,
        };
        let state = self.hypervisor().state(&guest.identity, &guest.places);
        match &state {
            GuestState::Off | GuestState::Gone(_) => {
                let why = match words(&state) {
                    (_, last) if last.is_empty() => "QEMU has ended by itself and said nothing".to_owned(),
                    ("ended", last) => format!("QEMU has ended by itself: {last}"),
                    (_, why) => why,
                };
                self.hypervisor().kill(&guest.identity, &guest.places)?;
                tracing::warn!(session = guest.session, "the stand-in has ended: {why}");
                return self.change(guest, |record| record.state = StandInState::Ended { why });
            }
            GuestState::DiskTrouble if is_served => {
                tracing::info!(session = guest.session, "the stand-in goes on after trouble with a disk");
                self.hypervisor().resume(&guest.identity, &guest.places)?;
            }
            _ => {}
        }
        if record.state == StandInState::Starting {
            // The server ended before it could note it.
            self.change(guest, |record| record.state = StandInState::Running)?;
        }
        shorten(&guest.places)
    }
}

/// QEMU appends, so it goes on at the beginning.
fn shorten(places: &Places) -> Result<()> {
    let path = places.console_log();
    let Ok(found) = std::fs::metadata(&path) else { return Ok(()) };
    if found.len() <= CONSOLE_LOG_BYTES_MAX {
        return Ok(());
    }
    let opened = std::fs::OpenOptions::new().write(true).open(&path);
    let shortened = opened.and_then(|file| file.set_len(0));
    shortened.map_err(|error| Error::io(path.display().to_string(), error))
}
