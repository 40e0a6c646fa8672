//! Pushes random writes through one disk of a real server and prints its resident memory.
//!
//! `cargo run --release -p understudy-server --example ingest_memory -- [GIB] [FOLDER]`: 4 GiB into a temporary folder
//! unless said otherwise, with a checkpoint after every GiB. The agent is in the same process, so its share is counted
//! as well. Exit status 1 where the peak is over 300 MiB.

use anyhow::{Context, bail};
use blocks::{ByteLen, ByteOffset, DiskIndex, Extent, Generation, Id, Seq, WallClock};
use server::{Server, ServerConfig};
use std::path::PathBuf;
use std::time::Instant;
use store::ImageFormat;
use store::testing::Random;
use wire::{
    Address, AgentMessage, CheckpointReport, Consistency, Continuity, DiskHello, DiskInstant, Hello, Payload,
    Receiver, Sender, ServerMessage, Write,
};

const MIB: u64 = 1 << 20;
const DISK: ByteLen = ByteLen::new(64 << 30);
const LIMIT_MIB: u64 = 300;
/// What the agent has under way.
const WINDOW: u64 = 8 * MIB;

struct Load {
    sender: Sender<AgentMessage>,
    receiver: Receiver<ServerMessage>,
    random: Random,
    seq: u64,
    acked: u64,
    in_flight: std::collections::VecDeque<(u64, u64)>,
    peak: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let gib: u64 = arguments.next().map_or(Ok(4), |gib| gib.parse()).context("GIB is a number")?;
    let temporary = tempfile::tempdir()?;
    let data = arguments.next().map_or(temporary.path().to_owned(), PathBuf::from);
    let mut config = ServerConfig::new(&data);
    config.agent_socket = Some(data.join("agent.sock"));
    config.image_format = ImageFormat::Raw;
    let running = Server::start(config).await?;
    let mut load = connect(&data).await?;
    let begun = Instant::now();
    for round in 1..=gib {
        let mut sent = 0;
        while sent < 1 << 30 {
            sent += load.write().await?;
        }
        load.checkpoint(round).await?;
        let (now, seconds) = (resident_mib()?, begun.elapsed().as_secs_f64());
        println!(
            "{round} GiB, {} writes, {:.0} MiB/s, resident {now} MiB, peak {} MiB",
            load.seq,
            (round * 1024) as f64 / seconds,
            load.peak
        );
    }
    running.shutdown().await?;
    if load.peak > LIMIT_MIB {
        bail!("the peak of {} MiB is over {LIMIT_MIB} MiB", load.peak);
    }
    Ok(())
}

async fn connect(data: &std::path::Path) -> anyhow::Result<Load> {
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
    Ok(Load { sender, receiver, random: Random::new(1), seq: 0, acked: 0, in_flight, peak: 0 })
}

impl Load {
    /// One write of 4 to 64 KiB anywhere; waits while the window is full.
    async fn write(&mut self) -> anyhow::Result<u64> {
        let len = 4096 << self.random.below(5);
        let start = self.random.below((DISK.get() - len) / 4096) * 4096;
        let mut data = vec![0; usize::try_from(len)?];
        self.random.fill(&mut data);
        self.seq += 1;
        let extent = Extent::new(ByteOffset::new(start), ByteLen::new(len))?;
        let write = Write { disk: DiskIndex(0), seq: Seq(self.seq), extent, payload: Payload::Data(data) };
        self.sender.send(&AgentMessage::Write(write)).await?;
        self.in_flight.push_back((self.seq, len));
        while self.in_flight.iter().map(|(_, len)| len).sum::<u64>() > WINDOW {
            self.hear().await?;
        }
        if self.seq.is_multiple_of(512) {
            self.peak = self.peak.max(resident_mib()?);
        }
        Ok(len)
    }

    async fn hear(&mut self) -> anyhow::Result<Option<u64>> {
        match self.receiver.recv().await? {
            Some(ServerMessage::Ack { seq, .. }) => {
                self.acked = seq.0;
                while self.in_flight.front().is_some_and(|(first, _)| *first <= seq.0) {
                    self.in_flight.pop_front();
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
