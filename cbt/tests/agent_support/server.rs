//! A server that speaks the real protocol over a unix socket and keeps a model of each disk.

use blocks::{
    BlockShift, ByteLen, ByteOffset, CheckpointId, DiskIndex, Extent, Generation, Id, MachineId, Seq,
    SessionId, StoreId,
};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use wire::*;

/// What the server knows and was told.
#[derive(Default)]
pub struct Model {
    pub disks: Vec<Vec<u8>>,
    pub durable: Vec<Seq>,
    /// Kept apart: received but not acknowledged is lost with the connection where a test says so.
    pub checkpoints: Vec<(CheckpointReport, Vec<Vec<u8>>)>,
    pub gaps: Vec<GapReport>,
    pub hellos: Vec<Hello>,
    pub heartbeats: Vec<Heartbeat>,
    pub goodbyes: u32,
    pub failed_checkpoints: Vec<(u64, String)>,
    pub bytes_received: u64,
    pub zero_bytes_received: u64,
    pub hashes_received: u64,
    pub verify: Vec<HashReport>,
    pub restore_answers: Vec<AgentMessage>,
    pub order_errors: Vec<String>,
    pub connections: u32,
    next: Vec<Option<Seq>>,
    pub rules: Rules,
}

/// How the server behaves.
#[derive(Clone, Default)]
pub struct Rules {
    /// Closes each connection after that many bytes of data, once for each entry.
    pub cut_after: Vec<u64>,
    /// Acknowledges nothing.
    pub never_ack: bool,
    /// Fenced.
    pub standby: bool,
    pub generation: u64,
    pub refuse: Option<Refusal>,
    /// How long taking in one write takes.
    pub slow: Duration,
    /// Takes in nothing more.
    pub stalled: bool,
    /// Does not keep the data: for pushing a lot through.
    pub forget: bool,
}

pub struct Server {
    pub model: Arc<Mutex<Model>>,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    to_agent: Arc<Mutex<Option<mpsc::UnboundedSender<ServerMessage>>>>,
    stop: Arc<Notify>,
    cut: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

pub fn store_id() -> StoreId {
    StoreId(Id::from_bytes([1; 16]).unwrap())
}

pub fn machine_id() -> MachineId {
    MachineId(Id::from_bytes([2; 16]).unwrap())
}

pub fn session_id() -> SessionId {
    SessionId(Id::from_bytes([3; 16]).unwrap())
}

impl Server {
    pub fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("server.sock");
        let model = Arc::new(Mutex::new(Model {
            rules: Rules { generation: 1, ..Rules::default() },
            ..Model::default()
        }));
        let to_agent = Arc::new(Mutex::new(None));
        let (stop, cut) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&socket).unwrap()
        };
        let shared = (Arc::clone(&model), Arc::clone(&to_agent), Arc::clone(&stop), Arc::clone(&cut));
        let thread = std::thread::spawn(move || {
            let (model, to_agent, stop, cut) = shared;
            runtime.block_on(async {
                tokio::select! {
                    () = stop.notified() => {}
                    () = listen(&listener, &model, &to_agent, &cut) => {}
                }
            });
        });
        Server { model, socket, _folder: folder, to_agent, stop, cut, thread: Some(thread) }
    }

    pub fn address(&self) -> Address {
        Address::Unix(self.socket.clone())
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sends an order over the current connection.
    pub fn order(&self, order: ServerMessage) {
        let to_agent = self.to_agent.lock().unwrap();
        to_agent.as_ref().expect("an agent is connected").send(order).unwrap();
    }

    /// Ends the current connection without a word.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    pub fn wait_connected(&self) {
        super::eventually("the agent connects", || self.to_agent.lock().unwrap().is_some());
    }

    /// Asks for a checkpoint and waits for it; the report and what the model held then.
    pub fn checkpoint(&self, verify: bool) -> (CheckpointReport, Vec<Vec<u8>>) {
        let request = (1 << 63) | (self.model().checkpoints.len() as u64 + 1000);
        self.wait_connected();
        self.order(ServerMessage::TakeCheckpoint { request, name: "asked".into(), verify });
        let mut found = None;
        super::eventually("the checkpoint is reported", || {
            let model = self.model();
            if let Some((_, reason)) = model.failed_checkpoints.iter().find(|(failed, _)| *failed == request)
            {
                panic!("the checkpoint failed: {reason}");
            }
            found = model.checkpoints.iter().find(|(report, _)| report.request == request).cloned();
            found.is_some()
        });
        found.unwrap()
    }

    /// The next answer of a restore that `pick` takes.
    pub fn restore_answer<T>(&self, what: &str, pick: impl Fn(&AgentMessage) -> Option<T>) -> T {
        let mut found = None;
        super::eventually(what, || {
            found = self.model().restore_answers.iter().find_map(&pick);
            found.is_some()
        });
        found.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type ToAgent = Arc<Mutex<Option<mpsc::UnboundedSender<ServerMessage>>>>;

async fn listen(listener: &UnixListener, model: &Arc<Mutex<Model>>, to_agent: &ToAgent, cut: &Notify) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let connection = ServerConnection::new(stream, "agent");
        let (sender, orders) = mpsc::unbounded_channel();
        let served = tokio::select! {
            () = cut.notified() => Ok(()),
            served = serve(connection, model, to_agent, sender, orders) => served,
        };
        *to_agent.lock().unwrap() = None;
        if let Err(error) = served {
            model.lock().unwrap().order_errors.push(error.to_string());
        }
    }
}

async fn serve(
    mut connection: ServerConnection,
    model: &Arc<Mutex<Model>>,
    to_agent: &ToAgent,
    sender: mpsc::UnboundedSender<ServerMessage>,
    mut orders: mpsc::UnboundedReceiver<ServerMessage>,
) -> blocks::Result<()> {
    let Some(AgentMessage::Hello(hello)) = connection.recv().await? else { return Ok(()) };
    let answer = model.lock().unwrap().welcome(hello);
    connection.send(&answer).await?;
    if matches!(answer, ServerMessage::Refused(_)) {
        return Ok(());
    }
    *to_agent.lock().unwrap() = Some(sender);
    let (mut writer, mut reader) = connection.split();
    let (answers, mut to_send) = mpsc::unbounded_channel();
    let writing = async {
        loop {
            let message = tokio::select! {
                Some(message) = to_send.recv() => message,
                Some(message) = orders.recv() => message,
                else => return Ok(()),
            };
            writer.send(&message).await?;
        }
    };
    let reading = async {
        let mut received = 0;
        let cut = {
            let mut model = model.lock().unwrap();
            if model.rules.cut_after.is_empty() { None } else { Some(model.rules.cut_after.remove(0)) }
        };
        loop {
            let Some(message) = reader.recv().await? else { return Ok(()) };
            while model.lock().unwrap().rules.stalled {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let slow = model.lock().unwrap().rules.slow;
            if !slow.is_zero()
                && matches!(message, AgentMessage::Write(_) | AgentMessage::WriteInOrder { .. })
            {
                tokio::time::sleep(slow).await;
            }
            if let AgentMessage::Write(Write { payload: Payload::Data(bytes), .. })
            | AgentMessage::WriteInOrder { write: Write { payload: Payload::Data(bytes), .. }, .. } =
                &message
            {
                received += bytes.len() as u64;
                if cut.is_some_and(|cut| received > cut) {
                    return Ok(());
                }
            }
            for answer in model.lock().unwrap().take(message) {
                let _ = answers.send(answer);
            }
        }
    };
    tokio::select! {
        done = writing => done,
        done = reading => done,
    }
}

impl Model {
    fn welcome(&mut self, hello: Hello) -> ServerMessage {
        if let Some(refusal) = self.rules.refuse.clone() {
            return ServerMessage::Refused(refusal);
        }
        self.connections += 1;
        let fresh = self.disks.is_empty();
        if fresh {
            self.disks = hello.disks.iter().map(|disk| vec![0; disk.len.as_usize()]).collect();
            self.durable = vec![Seq(0); hello.disks.len()];
            self.next = vec![None; hello.disks.len()];
        }
        let disks = hello
            .disks
            .iter()
            .zip(&self.durable)
            .map(|(disk, durable)| {
                let start = match &disk.continuity {
                    _ if fresh
                        || (*durable == Seq(0) && self.disks.iter().all(|disk| blocks::is_zero(disk))) =>
                    {
                        StartFrom::Everything
                    }
                    Continuity::Tracked { store, acked, .. } if *store == store_id() && acked <= durable => {
                        StartFrom::Marked
                    }
                    _ => StartFrom::Scan,
                };
                DiskWelcome { durable: *durable, start }
            })
            .collect();
        self.next = vec![None; hello.disks.len()];
        self.hellos.push(hello);
        let role = match self.rules.standby {
            true => Role::Standby { reason: "promoted".into() },
            false => Role::Source,
        };
        let generation = Generation(self.rules.generation);
        ServerMessage::Welcome(Welcome { store: store_id(), machine: machine_id(), generation, role, disks })
    }

    fn take(&mut self, message: AgentMessage) -> Vec<ServerMessage> {
        match message {
            AgentMessage::Write(write) | AgentMessage::WriteInOrder { write, .. } => self.write(write),
            AgentMessage::Checkpoint(report) => {
                for (disk, instant) in report.disks.iter().enumerate() {
                    assert!(
                        instant.seq <= self.durable[disk].max(self.next[disk].unwrap_or_default()),
                        "{instant:?}"
                    );
                }
                let sealed = ServerMessage::CheckpointSealed {
                    request: report.request,
                    checkpoint: CheckpointId(self.checkpoints.len() as u64 + 1),
                };
                self.checkpoints.push((report, self.disks.clone()));
                vec![sealed]
            }
            AgentMessage::Hashes(report) => self.hashes(report),
            AgentMessage::Gap(gap) => {
                self.gaps.push(gap);
                Vec::new()
            }
            AgentMessage::Heartbeat(beat) => {
                self.heartbeats.push(beat);
                Vec::new()
            }
            AgentMessage::Goodbye => {
                self.goodbyes += 1;
                Vec::new()
            }
            AgentMessage::CheckpointFailed { request, reason } => {
                self.failed_checkpoints.push((request, reason));
                Vec::new()
            }
            other => {
                self.restore_answers.push(other);
                Vec::new()
            }
        }
    }

    fn write(&mut self, write: Write) -> Vec<ServerMessage> {
        let disk = usize::from(write.disk.0);
        let before = self.next[disk].replace(write.seq);
        match before {
            Some(before) => assert_eq!(write.seq, before.next(), "numbers rise by one"),
            None => assert!(write.seq > self.durable[disk], "{:?} after {:?}", write.seq, self.durable[disk]),
        }
        let range = write.extent.start().get() as usize..write.extent.end().get() as usize;
        match &write.payload {
            Payload::Data(bytes) => {
                self.bytes_received += bytes.len() as u64;
                if !self.rules.forget {
                    self.disks[disk][range].copy_from_slice(bytes);
                }
            }
            Payload::Zero => {
                self.zero_bytes_received += write.extent.len().get();
                if !self.rules.forget {
                    self.disks[disk][range].fill(0);
                }
            }
        }
        if self.rules.never_ack {
            return Vec::new();
        }
        self.durable[disk] = write.seq;
        vec![ServerMessage::Ack { disk: write.disk, seq: write.seq }]
    }

    fn hashes(&mut self, report: HashReport) -> Vec<ServerMessage> {
        self.hashes_received += report.hashes.len() as u64;
        match report.purpose {
            HashPurpose::Scan => {
                let disk = &self.disks[usize::from(report.disk.0)];
                let differs = |block: &Extent, hash: &Option<BlockHash>| {
                    let bytes = &disk[block.start().get() as usize..block.end().get() as usize];
                    *hash != Some(blake3::hash(bytes).into())
                };
                let blocks = report.range.split(report.block.len()).zip(&report.hashes);
                let extents =
                    blocks.filter(|(block, hash)| differs(block, hash)).map(|(block, _)| block).collect();
                vec![ServerMessage::Differing { disk: report.disk, range: report.range, extents }]
            }
            HashPurpose::Verify { .. } => {
                self.verify.push(report);
                Vec::new()
            }
            HashPurpose::Restore { .. } => {
                self.restore_answers.push(AgentMessage::Hashes(report));
                Vec::new()
            }
        }
    }

    /// Which blocks of the verification's last reports differ from the checkpoint's content, and how many were known.
    pub fn verified(&self, request: u64, content: &[Vec<u8>]) -> (usize, usize) {
        let (mut wrong, mut known) = (0, 0);
        for report in &self.verify {
            let HashPurpose::Verify { request: of, .. } = report.purpose else { continue };
            let disk = &content[usize::from(report.disk.0)];
            for (block, hash) in report.range.split(BlockShift::KIB_64.len()).zip(&report.hashes) {
                let bytes = &disk[block.start().get() as usize..block.end().get() as usize];
                if let Some(hash) = hash.filter(|_| of == request) {
                    known += 1;
                    wrong += usize::from(hash != <BlockHash>::from(blake3::hash(bytes)));
                }
            }
        }
        (wrong, known)
    }

    /// Whether the last report of the verification has come for each disk.
    pub fn verify_done(&self, request: u64) -> bool {
        let last = |report: &&HashReport| report.purpose == HashPurpose::Verify { request, last: true };
        self.verify.iter().filter(last).count() == self.disks.len()
    }

    /// Numbers start afresh from what is durable.
    pub fn restarted(&mut self) {
        self.next.fill(None);
    }

    /// Data that was sent, by disk, as counted.
    pub fn seq(&self, disk: u16) -> Seq {
        self.durable[usize::from(disk)]
    }
}

/// Shorthand.
pub fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

/// What a failback's server would send for disk 0.
pub fn begin(restore: u64, device: &str, len: ByteLen) -> ServerMessage {
    ServerMessage::RestoreBegin(RestoreBegin {
        restore,
        session: session_id(),
        disks: vec![RestoreDisk { disk: DiskIndex(0), device: device.into(), len }],
    })
}

/// Counts by a name, for messages.
pub type Counts = HashMap<String, u64>;
