//! The story with kills (-9) of server and agent at random moments. The seed is printed; `UNDERSTUDY_SEED` sets it, and
//! `UNDERSTUDY_STORIES` how many are played (scripts/soak plays many).

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::process::Command;
use std::time::Duration;
use support::disk::Mount;
use support::guest::Guest;
use support::{NAME, Stage, run, sh, uri};

/// Kills processes a random moment after an action has begun.
struct Killer {
    random: StdRng,
    kills: u32,
}

impl Killer {
    /// Runs the action, which is repeated until it succeeds, while server, agent or both are killed.
    fn during(&mut self, stage: &mut Stage, action: impl FnOnce(&mut Stage)) {
        stage.revive();
        let victims =
            [stage.server.as_ref(), stage.agent.as_ref()].map(|process| process.map(|process| process.id()));
        let mut doomed: Vec<u32> = victims.into_iter().flatten().collect();
        if self.random.random_bool(0.7) && doomed.len() > 1 {
            doomed.remove(self.random.random_range(0..doomed.len()));
        }
        let delays: Vec<_> =
            doomed.iter().map(|_| Duration::from_millis(self.random.random_range(0..600))).collect();
        let killers: Vec<_> = doomed
            .into_iter()
            .zip(delays)
            .map(|(process, delay)| {
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    let _ = Command::new("kill").args(["-9", &process.to_string()]).output();
                    wait_for_end(process);
                })
            })
            .collect();
        self.kills += u32::try_from(killers.len()).unwrap();
        action(stage);
        killers.into_iter().for_each(|killer| killer.join().unwrap());
        stage.revive();
    }
}

/// Waits until a child has died with all of its threads, and leaves the asking about it to whoever started it. Its state in
/// /proc would not do: it says "zombie" as soon as the first thread is gone, and `revive` would still take it for alive.
fn wait_for_end(child: u32) {
    let child = Pid::from_raw(child.cast_signed()).unwrap();
    // Whoever was asked about already is no child any more.
    let _ = waitid(WaitId::Pid(child), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
}

#[test]
fn random_kills_lose_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("UNDERSTUDY_SEED").unwrap_or_else(|| rand::rng().random_range(0..1 << 32));
    for seed in first..first + number("UNDERSTUDY_STORIES").unwrap_or(1) {
        println!("UNDERSTUDY_SEED={seed}");
        let kills = play(seed);
        println!("seed {seed}: {kills} kills, nothing lost");
    }
}

fn play(seed: u64) -> u32 {
    let mut killer = Killer { random: StdRng::seed_from_u64(seed), kills: 0 };
    let mut stage = Stage::new(128);
    stage.disk.format();
    let mnt = stage.path("mnt");
    let mount = stage.disk.mount(&mnt);
    stage.start_server(None);
    stage.start_agent(None);
    stage.start_writer(&mnt);
    killer.during(&mut stage, Stage::wait_protected);
    for _ in 0..4 {
        killer.during(&mut stage, |stage| {
            stage.insist(&["checkpoint", NAME]);
        });
    }
    stage.stop_writer();
    drop(mount);
    stage.assert_stand_in_equals_disk("before");

    stage.agent = None;
    killer.during(&mut stage, |stage| {
        let _ = stage.us(&["recover", NAME]);
    });
    let session = stage.insist(&["recover", NAME]);
    let id = session["session"].as_str().unwrap().to_owned();
    let guest = Guest::attach(&uri(&session, 0), &stage.path("guest"));
    let mount = Mount::new(guest.device(), &mnt);
    stage.start_writer(&mnt);
    let target = stage.path("production.raw");
    killer.during(&mut stage, |stage| {
        stage.insist(&["migrate", &id, "--to", target.to_str().unwrap(), "--pivot"]);
    });
    stage.start_agent(None);
    killer.during(&mut stage, |stage| {
        stage.insist(&["failback", &id, "--to", NAME]);
    });
    stage.stop_writer();
    drop(mount);
    drop(guest);
    for _ in 0..2 {
        killer.during(&mut stage, |stage| {
            let _ = stage.us(&["failback", &id, "--to", NAME, "--cutover"]);
        });
    }
    stage.insist(&["failback", &id, "--to", NAME, "--cutover"]);
    run(Command::new("cmp").arg(&target).arg(stage.disk.device()));
    sh(&format!("e2fsck -fn {}", stage.disk.device()));

    let mount = stage.disk.mount(&mnt);
    assert!(stage.check_ledger(&mnt, None) > 0);
    stage.start_writer(&mnt);
    for _ in 0..2 {
        killer.during(&mut stage, |stage| {
            stage.insist(&["checkpoint", NAME]);
        });
    }
    stage.stop_writer();
    drop(mount);
    stage.assert_stand_in_equals_disk("after");
    stage.drop_superseded();
    killer.during(&mut stage, |stage| {
        stage.insist(&["settle", NAME]);
    });
    let settled = stage.insist(&["settle", NAME]);
    sh(&format!(
        "qemu-img compare -f vpc -F raw {} {}",
        settled["images"][0].as_str().unwrap(),
        stage.disk.device()
    ));
    killer.kills
}
