//! Which request goes where.

use super::api::{Reply, Request};
use super::job::Job;
use super::{
    branches, checkpoints, definition, drills, export, guests, machines, mount, scrub, sessions, settle,
    status, verify,
};
use crate::services::Services;
use crate::stand_in::PATIENCE;
use blocks::Result;
use fuse_fs::MountOptions;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Does what is asked. Must be driven to its end.
pub(crate) async fn dispatch(services: Arc<Services>, request: Request, job: Job) -> Result<Reply> {
    match request {
        Request::Status { machine } => status::status(services, machine).await,
        Request::Enroll { name, rescue, seconds } => machines::enroll(services, name, rescue, seconds).await,
        Request::AdmitMachine { machine } => machines::admit(services, machine).await,
        Request::RemoveMachine { machine } => machines::remove(services, machine).await,
        Request::Checkpoint { of, name, protect_until } => {
            checkpoints::take(services, of, name, protect_until, job).await
        }
        Request::Clone { of, at, name } => branches::clone(services, of, at, name).await,
        Request::ExportDelta { machine, disk, since, at, output } => {
            export::export_delta(services, export::WantedDelta { machine, disk, since, at, output }, job)
                .await
        }
        Request::DeleteCheckpoints { machine, checkpoints } => {
            checkpoints::delete(services, machine, checkpoints, job).await
        }
        Request::ProtectCheckpoint { machine, checkpoint, until } => {
            checkpoints::set_protection(services, machine, checkpoint, until).await
        }
        Request::SetMachine { machine, keep, quota, on_failure, probe, drill_every_ms, drill_boot } => {
            let changes = machines::Changes { keep, quota, on_failure, probe, drill_every_ms, drill_boot };
            machines::set(services, machine, changes).await
        }
        Request::Drill { machine, at, boot } => drills::drill(services, machine, at, boot, job).await,
        Request::Drills { machine } => drills::list(services, machine).await,
        Request::Checkpoints { machine } => checkpoints::list(services, machine).await,
        Request::Branches { machine } => branches::list(services, machine).await,
        Request::DropBranch { machine, branch } => branches::give_up(services, machine, branch).await,
        Request::Settle { machine, at } => settle::settle(services, machine, at, job).await,
        Request::Export { of, disk, at, format, ovf_version, output } => {
            export::export(services, export::Wanted { of, disk, at, format, ovf_version, output }, job).await
        }
        Request::Mount { folder, allow_other, read_only } => {
            mount::mount(services, folder, MountOptions { allow_other, read_only }, job).await
        }
        Request::Definition(wanted) => definition::definition(services, wanted).await,
        Request::Scrub { machine, rate } => scrub::scrub(services, machine, rate, job).await,
        Request::Verify { machine } => verify::verify(services, machine, job).await,
        Request::Recover { machine, at, drill, boot } => {
            sessions::recover(services, sessions::Recovery { machine, at, drill, boot }, job).await
        }
        Request::Boot { session, boot } => guests::boot(services, session, boot, Instant::now(), job).await,
        Request::Guest { session, order } => guests::order(services, session, order).await,
        Request::Screenshot { session, output } => guests::screenshot(services, session, output).await,
        Request::Sessions => sessions::list(services).await,
        Request::Session { session } => sessions::get(services, session).await,
        Request::GuestRestarted { session } => sessions::guest_restarted(services, session).await,
        Request::StopSession { session, discard, patience_ms } => {
            let patience = patience_ms.map_or(PATIENCE, Duration::from_millis);
            sessions::stop(services, session, discard, patience).await
        }
        Request::Migrate { session, disk, to, format, rate, pivot } => {
            sessions::migrate(services, sessions::Wanted { session, disk, to, format, rate, pivot }, job)
                .await
        }
        Request::Failback { session, to, disks, cutover, discard_unsent } => {
            let wanted = sessions::Homecoming { session, to, disks, cutover, discard_unsent };
            sessions::failback(services, wanted, job).await
        }
    }
}
