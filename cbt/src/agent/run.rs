//! Connecting, again and again, and carrying messages between the connection and the worker.

use super::advice;
use super::config::AgentConfig;
use super::pace::Pace;
use super::protect::protect_all;
use super::state::State;
use super::stop::Stop;
use super::trouble::Trouble;
use super::vitals::Vitals;
use super::worker::{End, Worker};
use crate::inventory;
use crate::link::{Inbox, Parcel, link};
use crate::reboot;
use crate::session::own_session;
use crate::tracker::{TrackerKind, TrackerWish};
use blocks::{DiskIndex, Error, ErrorKind, Generation, Id, MachineId, Result, Seq};
use rand::Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wire::{
    AgentConnection, AgentMessage, Continuity, Hello, Receiver, Refusal, RefusalKind, Role, Sender,
    ServerMessage, Welcome,
};

/// How long the server may take to answer the hello, and a send may go without moving a byte.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The first wait after a connection was lost.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// How long an agent that was never welcomed takes "another one is connected" for what an earlier run left behind.
const TAKEN_PATIENCE: Duration = Duration::from_secs(15);
/// How long a clean stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The agent.
#[derive(Debug)]
pub struct Agent;

/// How one connection ended.
enum Ended {
    /// Try again.
    Lost(Error),
    /// The server said no.
    Refused(Refusal),
    /// The disks are not what the server was told.
    Changed(String),
    /// A clean stop.
    Stopped,
}

impl Agent {
    /// Protects the disks until `stop` is asked for (then `Ok`) or the agent cannot go on: a disk that cannot be
    /// protected, a final refusal. A lost connection is no reason to end.
    pub async fn run(config: AgentConfig, stop: Stop) -> Result<()> {
        wire::check_machine_name(&config.name)?;
        let config = Arc::new(config);
        if config.restore_only {
            return Agent::serve(config, stop).await;
        }
        if let Err(error) = reboot::forget(&config.state_dir) {
            tracing::warn!("what was planned for a restart cannot be forgotten: {error}");
        }
        Agent::serve(Arc::clone(&config), stop).await?;
        if config.tracker == TrackerWish::Only(TrackerKind::Tap) {
            // It keeps its own log, whatever ends it.
            return Ok(());
        }
        on_thread(move || plan_restart(&config)).await
    }

    async fn serve(config: Arc<AgentConfig>, mut stop: Stop) -> Result<()> {
        let vitals = Arc::new(Vitals::default());
        let opened = Arc::clone(&config);
        let protected = on_thread(move || protect_all(&opened)).await??;
        let state = State::load(&config.state_dir);
        let mut worker = Worker::new(Arc::clone(&config), protected, state, Arc::clone(&vitals));
        let mut backoff = BACKOFF_MIN;
        let mut welcomed = false;
        let mut trouble = Trouble::default();
        let started = Instant::now();
        loop {
            let following = Arc::clone(&config);
            let followed = on_thread(move || {
                let followed = worker.follow_sizes(&following);
                (worker, followed)
            });
            let followed = followed.await?;
            worker = followed.0;
            followed.1?;
            let attempt = Box::pin(one_connection(&config, worker, &vitals, &mut stop, &mut welcomed)).await;
            let attempt = attempt.map_err(advice::ended)?;
            worker = attempt.0;
            if worker.was_connected {
                trouble.is_over();
            }
            match attempt.1 {
                Ended::Changed(reason) => {
                    tracing::warn!("{reason}: telling the server");
                    continue;
                }
                Ended::Stopped => {
                    worker.rest_at_the_end();
                    return Ok(());
                }
                Ended::Lost(error) => {
                    if wire::refused_identity(&error) || error.kind() == ErrorKind::InvalidInput {
                        return Err(advice::unconnectable(error));
                    }
                    trouble.say(format!("{error}; trying again"));
                }
                Ended::Refused(refusal) => {
                    let taken = refusal.kind == RefusalKind::Taken && !welcomed;
                    if is_final(refusal.kind) || (taken && started.elapsed() > TAKEN_PATIENCE) {
                        return Err(advice::refused(&config.server, &refusal));
                    }
                    trouble
                        .say(format!("{} refuses for now: {}; trying again", config.server, refusal.reason));
                }
            }
            if std::mem::take(&mut worker.was_connected) {
                backoff = BACKOFF_MIN;
            }
            let jittered = backoff.mul_f64(rand::rng().random_range(0.5..1.5));
            backoff = (backoff * 2).min(config.backoff_max);
            tokio::select! {
                () = stop.wait() => {
                    worker.rest_at_the_end();
                    return Ok(());
                }
                () = tokio::time::sleep(jittered) => {}
            }
        }
    }
}

/// The machine may be about to restart. What cannot be planned costs a scan then, and nothing now.
fn plan_restart(config: &AgentConfig) {
    let devices: Vec<_> = config.disks.iter().map(|disk| disk.device.clone()).collect();
    match reboot::plan(&config.state_dir, &devices) {
        Ok(refused) => {
            for (device, error) in refused {
                tracing::info!(
                    "{}: will be scanned after a restart of the machine: {error}",
                    device.display()
                );
            }
        }
        Err(error) => tracing::warn!("the machine's disks will be scanned after its restart: {error}"),
    }
}

/// Whether trying again cannot help.
fn is_final(kind: RefusalKind) -> bool {
    match kind {
        RefusalKind::Version | RefusalKind::Identity | RefusalKind::Disks => true,
        RefusalKind::Taken | RefusalKind::Busy | RefusalKind::Shutdown => false,
    }
}

async fn one_connection(
    config: &Arc<AgentConfig>,
    mut worker: Worker,
    vitals: &Arc<Vitals>,
    stop: &mut Stop,
    welcomed: &mut bool,
) -> Result<(Worker, Ended)> {
    let greeted = tokio::select! {
        () = stop.wait() => return Ok((worker, Ended::Stopped)),
        greeted = greet(config, &worker) => greeted,
    };
    let (connection, welcome) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(refusal)) => return Ok((worker, Ended::Refused(refusal))),
        Err(error) => return Ok((worker, Ended::Lost(error))),
    };
    *welcomed = true;
    worker.was_connected = true;
    if let Err(error) = worker.state.remember(welcome.machine, welcome.generation) {
        tracing::warn!("{error}");
    }
    if config.restore_only && welcome.role == Role::Source {
        let said = tokio::time::timeout(STOP_TIMEOUT, leave(connection)).await;
        return match (worker.restored, said) {
            (true, _) => Ok((worker, Ended::Stopped)),
            (false, _) => Err(advice::nothing_to_restore(&config.name)),
        };
    }
    match &welcome.role {
        Role::Source => tracing::info!("connected to {} as {}", config.server, config.name),
        Role::Standby { reason } => tracing::warn!("standing by, sending nothing: {reason}"),
    }
    carry(config, worker, vitals, stop, connection, welcome).await
}

/// Connects and says hello.
async fn greet(
    config: &AgentConfig,
    worker: &Worker,
) -> Result<std::result::Result<(AgentConnection, Welcome), Refusal>> {
    let mut connection = wire::connect(&config.server, config.identity.as_ref()).await?;
    connection.set_idle_timeout(Some(ANSWER_TIMEOUT));
    connection.set_write_timeout(Some(ANSWER_TIMEOUT));
    connection.send(&AgentMessage::Hello(hello(config, worker)?)).await?;
    match connection.recv().await? {
        Some(ServerMessage::Welcome(welcome)) => {
            if welcome.disks.len() != worker.replicas.len() {
                let context = format!("{} welcomed {} disks", config.server, welcome.disks.len());
                return Err(Error::new(ErrorKind::Io, context));
            }
            Ok(Ok((connection, welcome)))
        }
        Some(ServerMessage::Refused(refusal)) => Ok(Err(refusal)),
        Some(_) => Err(Error::new(
            ErrorKind::Io,
            format!("{} answered the hello with something else", config.server),
        )),
        None => {
            Err(Error::new(ErrorKind::Io, format!("{} closed the connection at the hello", config.server)))
        }
    }
}

fn hello(config: &AgentConfig, worker: &Worker) -> Result<Hello> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|error| Error::io("the boot id", error))?;
    let boot: Id = boot.trim().parse()?;
    // What is pinned in the kernel is from this boot; what lies on the disk may have been rolled back with it.
    let base = worker.replicas.iter().find_map(|replica| replica.tracker.base());
    let machine: Option<MachineId> = worker.state.machine().or(base.map(|base| base.machine));
    let generation = worker.state.generation().max(base.map_or(Generation(0), |base| base.generation));
    let disks = worker.describe();
    for disk in &disks {
        if let Continuity::Unknown { reason } = &disk.continuity {
            tracing::debug!("{}: {reason}", disk.device);
        }
    }
    let inventory = inventory::collect().to_json();
    Ok(Hello {
        machine,
        name: config.name.clone(),
        generation,
        boot,
        session: own_session(),
        inventory,
        disks,
    })
}

/// Runs the worker and carries its messages until either side ends.
async fn carry(
    config: &Arc<AgentConfig>,
    worker: Worker,
    vitals: &Arc<Vitals>,
    stop: &mut Stop,
    mut connection: AgentConnection,
    welcome: Welcome,
) -> Result<(Worker, Ended)> {
    connection.set_idle_timeout(None);
    let (mut sender, receiver) = connection.split();
    sender.set_compression(config.compress);
    let (link, ends) = link();
    let inbox = ends.inbox;
    let mut worker = worker;
    let work = on_thread(move || {
        let end = worker.work(link, &welcome);
        (worker, end)
    });
    tokio::pin!(work);
    let reading = tokio::spawn(read(receiver, Arc::clone(&inbox)));
    let pulse =
        Pulse { vitals: Arc::clone(vitals), every: config.heartbeat, silence_max: config.silence_max };
    let pace = Pace::new(config.rate);
    let writing = tokio::spawn(write(sender, ends.outgoing, Arc::clone(&inbox), pulse, pace));
    tokio::pin!(reading, writing);
    let (mut ended, mut spare) = (None, None);
    let patience = tokio::time::sleep(Duration::from_secs(1 << 30));
    tokio::pin!(patience);
    let (worker, end) = loop {
        tokio::select! {
            done = &mut work => break done?,
            read = &mut reading, if ended.is_none() => {
                inbox.close();
                // A worker that waits for room in the queue is woken by the writer's end.
                writing.abort();
                ended = Some(flat(read));
            }
            () = stop.wait(), if ended.is_none() => {
                inbox.stop();
                patience.as_mut().reset(tokio::time::Instant::now() + STOP_TIMEOUT);
                ended = Some(Ok(Ended::Stopped));
            }
            () = &mut patience => writing.abort(),
            wrote = &mut writing, if ended.is_none() && spare.is_none() => match wrote {
                // The worker has just let go of its end.
                Ok(Ok(sender)) => spare = Some(sender),
                failed => {
                    inbox.close();
                    ended = Some(failed.map_err(broken).and_then(|wrote| wrote.map(|_| Ended::Lost(lost()))));
                }
            }
        }
    };
    // The worker has let go of its end: the writer sends what is left, and a goodbye where a stop was asked for.
    let stopped = matches!(ended, Some(Ok(Ended::Stopped))) || matches!(end, End::Restored);
    // One that failed has been asked already.
    let may_ask = spare.is_none() && !matches!(ended, Some(Err(_)));
    if may_ask
        && (stopped || ended.is_none())
        && let Ok(Ok(Ok(sender))) = tokio::time::timeout(STOP_TIMEOUT, &mut writing).await
    {
        spare = Some(sender);
    }
    if let Some(mut sender) = spare {
        let _ = tokio::time::timeout(STOP_TIMEOUT, close(&mut sender, stopped)).await;
    }
    writing.abort();
    reading.abort();
    match (end, ended) {
        (End::Final(error), _) => Err(error),
        (End::Restored, _) => Ok((worker, Ended::Stopped)),
        (End::Changed(_), Some(Ok(Ended::Stopped))) => Ok((worker, Ended::Stopped)),
        (End::Changed(reason), _) => Ok((worker, Ended::Changed(reason))),
        (End::Gone, Some(Ok(ended))) => Ok((worker, ended)),
        (End::Gone, Some(Err(error))) => Ok((worker, Ended::Lost(error))),
        (End::Gone, None) => Ok((worker, Ended::Lost(lost()))),
    }
}

fn flat(read: std::result::Result<Result<Ended>, tokio::task::JoinError>) -> Result<Ended> {
    read.map_err(broken)?
}

fn broken(error: tokio::task::JoinError) -> Error {
    Error::with_source(ErrorKind::Io, "a task of the connection failed", error)
}

fn lost() -> Error {
    Error::new(ErrorKind::Io, "the connection to the server was lost")
}

/// Takes in what the server says.
async fn read(mut receiver: Receiver<ServerMessage>, inbox: Arc<Inbox>) -> Result<Ended> {
    loop {
        match receiver.recv().await? {
            Some(ServerMessage::Ack { disk, seq }) => inbox.ack(disk, seq),
            Some(ServerMessage::Refused(refusal)) => return Ok(Ended::Refused(refusal)),
            Some(order) => inbox.order(order).await,
            None => return Ok(Ended::Lost(lost())),
        }
    }
}

struct Pulse {
    vitals: Arc<Vitals>,
    every: Duration,
    silence_max: Duration,
}

/// Sends what the worker has, and heartbeats; gives the sender back when the worker has ended.
async fn write(
    mut sender: Sender<AgentMessage>,
    mut outgoing: mpsc::Receiver<Parcel>,
    inbox: Arc<Inbox>,
    pulse: Pulse,
    mut pace: Pace,
) -> Result<Sender<AgentMessage>> {
    let mut beats = tokio::time::interval(pulse.every.max(Duration::from_millis(10)));
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut owed: Option<(DiskIndex, Seq)> = None;
    loop {
        // Decided first, sent afterwards: a send must not be dropped half-way.
        let parcel = tokio::select! {
            biased;
            _ = beats.tick() => {
                if owed.is_some_and(|(disk, seq)| inbox.acked(disk) < seq) && inbox.silence() > pulse.silence_max {
                    let context = format!("the server has said nothing for {:?}", pulse.silence_max);
                    return Err(Error::new(ErrorKind::Io, context));
                }
                Some(vec![AgentMessage::Heartbeat(pulse.vitals.heartbeat())])
            }
            parcel = async { tokio::time::sleep_until(pace.next()).await; outgoing.recv().await } => parcel,
        };
        let Some(parcel) = parcel else { return Ok(sender) };
        let last = parcel.iter().rev().find_map(|message| match message {
            AgentMessage::Write(write) | AgentMessage::WriteInOrder { write, .. } => {
                Some((write.disk, write.seq))
            }
            _ => None,
        });
        if last.is_some() {
            if owed.is_none_or(|(disk, seq)| inbox.acked(disk) >= seq) {
                inbox.heard();
            }
            owed = last;
        }
        let before = sender.sent();
        sender.send_all(&parcel).await?;
        let pause = pace.note(sender.sent() - before);
        sender.note_pause(pause);
        parcel.iter().for_each(note_sent);
    }
}

/// What has gone to the socket may or may not arrive: where a crash hurts.
fn note_sent(message: &AgentMessage) {
    match message {
        AgentMessage::Write(_) | AgentMessage::WriteInOrder { .. } => blocks::crash_point("copy.sent"),
        AgentMessage::RestoreReady(_) => blocks::crash_point("restore.ready"),
        _ => {}
    }
}

/// Gives up the machine's place: that is no failure of it.
async fn leave(mut connection: AgentConnection) -> Result<()> {
    connection.send(&AgentMessage::Goodbye).await?;
    connection.close().await
}

async fn close(sender: &mut Sender<AgentMessage>, goodbye: bool) -> Result<()> {
    if goodbye {
        sender.send(&AgentMessage::Goodbye).await?;
    }
    sender.close().await
}

/// Runs what blocks on a thread of its own.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(broken)
}
