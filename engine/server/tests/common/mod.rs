//! A server in a temporary folder, and an agent that does what a test says.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "only tests come here")]

use blocks::{
    ByteLen, ByteOffset, CheckpointId, DiskIndex, Extent, Generation, Id, MachineId, Seq, Storage, StoreId,
    WallClock,
};
use server::control::api::{Event, Progress, Reply, Request};
use server::{RunningServer, Server, ServerConfig};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::testing::Random;
use store::{HostStorage, ImageFormat};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use wire::{
    Address, AgentIdentity, AgentMessage, CheckpointReport, Consistency, Continuity, DiskHello, DiskInstant,
    Heartbeat, Hello, Payload, Receiver, Refusal, RefusalKind, Role, Sender, ServerMessage, StartFrom,
    Welcome, Write,
};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn id(byte: u8) -> Id {
    Id::from_bytes([byte; 16]).unwrap()
}

pub fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

pub fn config(data: &Path) -> ServerConfig {
    let mut config = ServerConfig::new(data);
    config.agent_socket = Some(data.join("agent.sock"));
    config.image_format = Some(ImageFormat::Raw);
    config.heartbeat_deadline = Duration::from_secs(60);
    config.store.reserve = ByteLen::new(1 << 20);
    config
}

pub async fn start(data: &Path) -> RunningServer {
    Server::start(config(data)).await.unwrap()
}

pub async fn start_on(data: &Path, storage: impl Storage + 'static) -> blocks::Result<RunningServer> {
    Server::start_on(config(data), Arc::new(storage)).await
}

/// Asks the running server; an error is its kind and message.
pub async fn ask(data: &Path, request: Request) -> Result<Reply, (String, String)> {
    ask_with_progress(data, request).await.0
}

pub async fn ask_with_progress(
    data: &Path,
    request: Request,
) -> (Result<Reply, (String, String)>, Vec<Progress>) {
    let mut stream = tokio::net::UnixStream::connect(data.join("control.sock")).await.unwrap();
    let mut line = serde_json::to_vec(&request).unwrap();
    line.push(b'\n');
    stream.write_all(&line).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut progress = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        match serde_json::from_str(&line).unwrap() {
            Event::Progress(step) => progress.push(step),
            Event::Done { reply } => return (Ok(reply), progress),
            Event::Failed { kind, message } => return (Err((kind, message)), progress),
        }
    }
    panic!("the server closed without an answer");
}

pub async fn machine_state(data: &Path, name: &str) -> server::control::api::MachineStatus {
    match ask(data, Request::Status { machine: Some(name.into()) }).await.unwrap() {
        Reply::Status(mut status) => status.machines.remove(0),
        other => panic!("{other:?}"),
    }
}

/// Waits until the machine's state is `wanted`.
pub async fn wait_for_state(data: &Path, name: &str, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = machine_state(data, name).await;
        if state.state == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "still {state:?}, not {wanted}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A protected disk with a tracker that forgets nothing.
pub struct Machine {
    pub address: Address,
    pub identity: Option<AgentIdentity>,
    pub name: String,
    pub boot: Id,
    pub machine: Option<MachineId>,
    pub store: Option<StoreId>,
    pub generation: Generation,
    pub disk: Vec<u8>,
    pub sent: u64,
    pub acked: u64,
    /// Sent but not acknowledged.
    pub pending: Vec<(u64, Extent)>,
    pub held: bool,
    pub sealed: Vec<(u64, CheckpointId)>,
    /// What else the server said.
    pub heard: Vec<ServerMessage>,
    pub lost_map: bool,
    requests: u64,
}

/// A connection of it.
pub struct Link {
    pub sender: Sender<AgentMessage>,
    pub receiver: Receiver<ServerMessage>,
    pub welcome: Welcome,
}

impl Machine {
    pub fn new(data: &Path, name: &str, disk_bytes: usize) -> Machine {
        Machine {
            address: Address::Unix(data.join("agent.sock")),
            identity: None,
            name: name.into(),
            boot: id(77),
            machine: None,
            store: None,
            generation: Generation(0),
            disk: vec![0; disk_bytes],
            sent: 0,
            acked: 0,
            pending: Vec::new(),
            held: false,
            sealed: Vec::new(),
            heard: Vec::new(),
            lost_map: false,
            requests: 0,
        }
    }

    pub fn len(&self) -> ByteLen {
        ByteLen::of(&self.disk)
    }

    pub fn hello(&self) -> Hello {
        let continuity = match self.store {
            Some(store) if !self.lost_map => {
                Continuity::Tracked { store, acked: Seq(self.acked), sent: Seq(self.sent) }
            }
            _ => Continuity::Unknown { reason: "a test".into() },
        };
        Hello {
            machine: self.machine,
            name: self.name.clone(),
            generation: self.generation,
            boot: self.boot,
            session: None,
            inventory: "{}".into(),
            disks: vec![DiskHello {
                device: "/dev/test".into(),
                serial: "T1".into(),
                len: self.len(),
                tracker: "test".into(),
                continuity,
            }],
        }
    }

    /// One try; the refusal where there is one.
    pub async fn try_connect(&mut self, hello: Hello) -> Result<Link, Refusal> {
        let connection = wire::connect(&self.address, self.identity.as_ref()).await.unwrap();
        let (mut sender, mut receiver) = connection.split();
        sender.send(&AgentMessage::Hello(hello)).await.unwrap();
        let first = tokio::time::timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap().unwrap();
        match first {
            ServerMessage::Refused(refusal) => Err(refusal),
            ServerMessage::Welcome(welcome) => {
                (self.machine, self.store) = (Some(welcome.machine), Some(welcome.store));
                if welcome.role == Role::Source {
                    self.generation = welcome.generation;
                }
                Ok(Link { sender, receiver, welcome })
            }
            other => panic!("{other:?}"),
        }
    }

    /// Connects, while the connection before is still being noticed dead; sends again what was not acknowledged.
    pub async fn connect(&mut self) -> Link {
        let deadline = Instant::now() + PATIENCE;
        let mut link = loop {
            match self.try_connect(self.hello()).await {
                Ok(link) => break link,
                Err(refusal) => {
                    assert_eq!(refusal.kind, RefusalKind::Taken, "{}", refusal.reason);
                    assert!(Instant::now() < deadline, "{}", refusal.reason);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        let disk = link.welcome.disks[0].clone();
        if self.acked > 0 && !self.lost_map && link.welcome.role == Role::Source {
            assert!(
                disk.durable.0 >= self.acked,
                "acknowledged up to {}, kept {}",
                self.acked,
                disk.durable.0
            );
            assert_eq!(disk.start, StartFrom::Marked, "what was acknowledged need not be looked at again");
        }
        self.sent = self.sent.max(disk.durable.0);
        let again = std::mem::take(&mut self.pending);
        for (_, extent) in again {
            if self.send(&mut link, extent).await.is_err() {
                self.pending.push((u64::MAX, extent));
            }
        }
        link
    }

    /// Sends what the disk holds there.
    pub async fn send(&mut self, link: &mut Link, extent: Extent) -> blocks::Result<()> {
        self.sent += 1;
        self.pending.push((self.sent, extent));
        let at = extent.start().get() as usize;
        let data = self.disk[at..at + extent.len().as_usize()].to_vec();
        let payload = if blocks::is_zero(&data) { Payload::Zero } else { Payload::Data(data) };
        let write = Write { disk: DiskIndex(0), seq: Seq(self.sent), extent, payload };
        link.sender.send(&AgentMessage::Write(write)).await
    }

    /// Changes the disk somewhere and sends it.
    pub async fn write_random(&mut self, link: &mut Link, random: &mut Random) -> blocks::Result<()> {
        let sectors = self.disk.len() as u64 / 512;
        let len = 1 + random.below(64);
        let start = random.below(sectors - len);
        let extent = extent(start * 512, len * 512);
        let range = start as usize * 512..(start + len) as usize * 512;
        if random.chance(15) {
            self.disk[range].fill(0);
        } else {
            random.fill(&mut self.disk[range]);
        }
        self.send(link, extent).await
    }

    /// Takes in one message; `None` where the connection has ended.
    pub async fn hear(&mut self, link: &mut Link) -> Option<()> {
        let message = link.receiver.recv().await.ok()??;
        match message {
            ServerMessage::Ack { seq, .. } => {
                assert!(seq.0 <= self.sent, "acknowledged what was never sent");
                assert!(seq.0 > self.acked, "acknowledgements rise");
                self.acked = seq.0;
                self.pending.retain(|(pending, _)| *pending > seq.0);
            }
            ServerMessage::CheckpointSealed { request, checkpoint } => {
                self.sealed.push((request, checkpoint))
            }
            ServerMessage::Hold { .. } => self.held = true,
            ServerMessage::Resume => self.held = false,
            other => self.heard.push(other),
        }
        Some(())
    }

    /// Takes in what is there now.
    pub async fn hear_what_is_there(&mut self, link: &mut Link) {
        while let Ok(Some(())) = tokio::time::timeout(Duration::from_millis(1), self.hear(link)).await {}
    }

    /// Takes in messages until `done`; false where the connection ended before.
    pub async fn hear_until(&mut self, link: &mut Link, done: impl Fn(&Machine) -> bool) -> bool {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !done(self) {
            match tokio::time::timeout_at(deadline, self.hear(link)).await {
                Ok(Some(())) => {}
                Ok(None) => return false,
                Err(_) => panic!("{}: nothing came; acked {} of {}", self.name, self.acked, self.sent),
            }
        }
        true
    }

    pub async fn report_checkpoint(&mut self, link: &mut Link, request: Option<u64>) -> blocks::Result<u64> {
        self.requests += 1;
        let request = request.unwrap_or(self.requests);
        let report = CheckpointReport {
            request,
            name: format!("c{request}"),
            consistency: Consistency::Crash,
            taken_at: WallClock::now(),
            frozen_ms: 1,
            disks: vec![DiskInstant { seq: Seq(self.sent), len: self.len(), excluded: Vec::new() }],
        };
        link.sender.send(&AgentMessage::Checkpoint(report)).await?;
        Ok(request)
    }

    /// A checkpoint of now, sealed.
    pub async fn checkpoint(&mut self, link: &mut Link) -> CheckpointId {
        let request = self.report_checkpoint(link, None).await.unwrap();
        let is_sealed = move |machine: &Machine| machine.sealed.iter().any(|(sealed, _)| *sealed == request);
        assert!(self.hear_until(link, is_sealed).await, "the connection ended: {:?}", self.heard);
        self.sealed.iter().find(|(sealed, _)| *sealed == request).unwrap().1
    }

    pub async fn heartbeat(&mut self, link: &mut Link) {
        let backlog = self.pending.iter().map(|(_, extent)| extent.len()).sum();
        let heartbeat = Heartbeat {
            now: WallClock::now(),
            backlog: vec![backlog],
            churn: vec![ByteLen::new(self.sent * 512)],
            trackers: vec!["test, trusted".into()],
        };
        link.sender.send(&AgentMessage::Heartbeat(heartbeat)).await.unwrap();
    }
}

/// What the stand-in holds at a checkpoint, by way of an export.
pub async fn exported(data: &Path, name: &str, checkpoint: CheckpointId) -> Vec<u8> {
    let output = data.join(format!("export-{}-{}.raw", checkpoint.0, Random::new(checkpoint.0).number()));
    let _ = std::fs::remove_file(&output);
    let request = Request::Export {
        of: name.into(),
        disk: None,
        at: Some(checkpoint.0.to_string()),
        ovf_version: None,
        format: "raw".into(),
        output: output.to_str().unwrap().into(),
    };
    match ask(data, request).await.unwrap() {
        Reply::Exported { bytes, .. } => {
            let read = std::fs::read(&output).unwrap();
            assert_eq!(read.len() as u64, bytes);
            std::fs::remove_file(&output).unwrap();
            read
        }
        other => panic!("{other:?}"),
    }
}

/// The first difference, which says more than two heaps of bytes.
pub fn assert_same(expected: &[u8], found: &[u8], what: &str) {
    assert_eq!(expected.len(), found.len(), "{what}: length");
    if let Some(at) = expected.iter().zip(found).position(|(a, b)| a != b) {
        panic!("{what}: differs first at byte {at} (sector {})", at / 512);
    }
}

pub fn seed() -> u64 {
    let seed = std::env::var("UNDERSTUDY_SEED").ok().and_then(|seed| seed.parse().ok());
    seed.unwrap_or_else(|| u64::from(std::process::id()) ^ WallClock::now().0)
}

pub fn host_storage(data: &Path) -> HostStorage {
    HostStorage::new(data).unwrap()
}
