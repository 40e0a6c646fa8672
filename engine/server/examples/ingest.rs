//! Pushes random writes through one disk of a real server; prints rate, syncs and resident memory.
//!
//! `cargo run --release -p understudy-server --example ingest -- [GIB] [KIB] [FOLDER]`: 4 GiB in writes of 4 to 64 KiB (0), or
//! all of that many KiB, into a temporary folder unless said otherwise, with a checkpoint after every GiB. Every write is
//! acknowledged, so durable, when the rate is taken. The agent is in the same process, so its share is counted as well.
//! Exit status 1 where the peak is over 300 MiB.

use anyhow::{Context, bail};
use blocks::{ByteLen, ByteOffset, DiskIndex, Extent, Generation, Id, Seq, WallClock};
use server::{Server, ServerConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use store::testing::{CountingStorage, Random};
use store::{HostStorage, ImageFormat};
use wire::{
    Address, AgentMessage, CheckpointReport, Consistency, Continuity, DiskHello, DiskInstant, Hello, Payload,
    Receiver, Sender, ServerMessage, Write,
};

const MIB: u64 = 1 << 20;
const DISK: ByteLen = ByteLen::new(64 << 30);
const LIMIT_MIB: u64 = 300;
/// What the agent has under way: as much as the server takes before it stops reading. A real agent has no bound of its own,
/// as what is not acknowledged stays marked.
const WINDOW: u64 = 32 * MIB;

struct Load {
    sender: Sender<AgentMessage>,
    receiver: Receiver<ServerMessage>,
    random: Random,
    /// What is written, from a random place on: making it anew each time would be what is measured.
    noise: Vec<u8>,
    /// How long each write is; 0 for 4 to 64 KiB.
    write_bytes: u64,
    seq: u64,
    acked: u64,
    in_flight: std::collections::VecDeque<(u64, u64)>,
    in_flight_bytes: u64,
    peak: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let gib: u64 = arguments.next().map_or(Ok(4), |gib| gib.parse()).context("GIB is a number")?;
    let kib: u64 = arguments.next().map_or(Ok(0), |kib| kib.parse()).context("KIB is a number")?;
    let temporary = tempfile::tempdir()?;
    let data = arguments.next().map_or(temporary.path().to_owned(), PathBuf::from);
    let mut config = ServerConfig::new(&data);
    config.agent_socket = Some(data.join("agent.sock"));
    config.image_format = Some(ImageFormat::Raw);
    let storage =
        Arc::new(CountingStorage::new(Arc::new(HostStorage::new(&data)?), |name| name.ends_with(".log")));
    let running = Server::start_on(config, storage.clone()).await?;
    let mut load = connect(&data, kib << 10).await?;
    let begun = Instant::now();
    for round in 1..=gib {
        let mut sent = 0;
        while sent < 1 << 30 {
            sent += load.write().await?;
        }
        load.settle().await?;
        load.checkpoint(round).await?;
        let (now, seconds) = (resident_mib()?, begun.elapsed().as_secs_f64());
        println!(
            "{round} GiB, {} writes, {:.0} MiB/s, resident {now} MiB, peak {} MiB",
            load.seq,
            (round * 1024) as f64 / seconds,
            load.peak
        );
    }
    let (counts, seconds) = (storage.counts(), begun.elapsed().as_secs_f64());
    println!(
        "durable: {:.0} MiB/s; {} syncs of logs, {:.0} KiB a group; {:.3} bytes written to logs a byte received",
        (gib * 1024) as f64 / seconds,
        counts.file_syncs,
        (counts.written_bytes >> 10) as f64 / counts.file_syncs.max(1) as f64,
        counts.written_bytes as f64 / (gib << 30) as f64,
    );
    running.shutdown().await?;
    if load.peak > LIMIT_MIB {
        bail!("the peak of {} MiB is over {LIMIT_MIB} MiB", load.peak);
    }
    Ok(())
}

async fn connect(data: &std::path::Path, write_bytes: u64) -> anyhow::Result<Load> {
    let connection = wire::connect(&Address::Unix(data.join("agent.sock")), None).await?;
    let (mut sender, mut receiver) = connection.split();
    let hello = Hello {
        machine: None,
        name: "load".into(),
        generation: Generation(0),
        boot: Id::from_bytes([1; 16]).context("not zero")?,
        session: None,
        inventory: "{}".into(),
        disks: vec![DiskHello {
            device: "/dev/load".into(),
            serial: String::new(),
            len: DISK,
            tracker: "none".into(),
            continuity: Continuity::Unknown { reason: "new".into() },
        }],
    };
    sender.send(&AgentMessage::Hello(hello)).await?;
    match receiver.recv().await? {
        Some(ServerMessage::Welcome(_)) => {}
        other => bail!("{other:?}"),
    }
    let in_flight = std::collections::VecDeque::new();
    let mut random = Random::new(1);
    let mut noise = vec![0; 4 << 20];
    random.fill(&mut noise);
    Ok(Load {
        sender,
        receiver,
        random,
        noise,
        write_bytes,
        seq: 0,
        acked: 0,
        in_flight,
        in_flight_bytes: 0,
        peak: 0,
    })
}

impl Load {
    /// One write anywhere; waits while the window is full.
    async fn write(&mut self) -> anyhow::Result<u64> {
        let len = if self.write_bytes == 0 { 4096 << self.random.below(5) } else { self.write_bytes };
        let start = self.random.below((DISK.get() - len) / 4096) * 4096;
        let from = usize::try_from(self.random.below(self.noise.len() as u64 - len))?;
        let data = self.noise[from..from + usize::try_from(len)?].to_vec();
        self.seq += 1;
        let extent = Extent::new(ByteOffset::new(start), ByteLen::new(len))?;
        let write = Write { disk: DiskIndex(0), seq: Seq(self.seq), extent, payload: Payload::Data(data) };
        self.sender.send(&AgentMessage::Write(write)).await?;
        self.in_flight.push_back((self.seq, len));
        self.in_flight_bytes += len;
        while self.in_flight_bytes > WINDOW {
            self.hear().await?;
        }
        if self.seq.is_multiple_of(512) {
            self.peak = self.peak.max(resident_mib()?);
        }
        Ok(len)
    }

    /// Waits until everything is acknowledged.
    async fn settle(&mut self) -> anyhow::Result<()> {
        while self.acked < self.seq {
            self.hear().await?;
        }
        Ok(())
    }

    async fn hear(&mut self) -> anyhow::Result<Option<u64>> {
        match self.receiver.recv().await? {
            Some(ServerMessage::Ack { seq, .. }) => {
                self.acked = seq.0;
                while let Some((_, len)) = self.in_flight.pop_front_if(|(first, _)| *first <= seq.0) {
                    self.in_flight_bytes -= len;
                }
                Ok(None)
            }
            Some(ServerMessage::CheckpointSealed { request, .. }) => Ok(Some(request)),
            other => bail!("{other:?}"),
        }
    }

    async fn checkpoint(&mut self, request: u64) -> anyhow::Result<()> {
        let instant = DiskInstant { seq: Seq(self.seq), len: DISK, excluded: Vec::new() };
        let report = CheckpointReport {
            request,
            name: String::new(),
            consistency: Consistency::Crash,
            taken_at: WallClock::now(),
            frozen_ms: 0,
            disks: vec![instant],
        };
        self.sender.send(&AgentMessage::Checkpoint(report)).await?;
        while self.hear().await? != Some(request) {}
        Ok(())
    }
}

fn resident_mib() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split_whitespace().nth(1).context("statm has two numbers")?.parse()?;
    Ok(pages * 4096 / MIB)
}
