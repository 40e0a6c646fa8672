//! What breaks in a simulation. To add a fault: a line in [`Play::something_breaks`], and its name in the counts.

use super::failure::Outcome;
use super::host::RESERVE;
use super::machine::Agent;
use super::model::End;
use super::play::Play;
use blocks::ByteLen;
use std::time::Duration;
use store::testing::CrashStorage;

impl Play {
    /// One thing breaks, now or soon.
    pub fn something_breaks(&mut self) -> Outcome {
        let machine = self.below(self.machines.len());
        let soon = 1 + self.random.below(12);
        match self.random.below(26) {
            0..=4 => self.lose_power_soon(End::PowerLoss),
            5 | 6 => self.lose_power_soon(End::Killed),
            7 => self.restart(End::PowerLoss)?,
            8 => self.restart(End::Killed)?,
            9 => self.some_storage().fail_write(soon),
            10 => self.some_storage().fail_sync(soon),
            11 => self.some_storage().fail_sync_dir(1 + soon / 3),
            12 => self.some_storage().fail_read(soon * 2),
            13 | 14 => self.fill_up(),
            15 | 16 => self.cut(machine),
            17 => {
                self.machines[machine].hang_up();
                self.counts.one("fault: the agent hangs up");
            }
            18 => {
                self.machines[machine].kill_agent();
                self.counts.one("fault: the agent is killed");
            }
            19 => {
                self.machines[machine].power_cut();
                self.counts.one("fault: the machine loses power");
            }
            20 => {
                if matches!(self.machines[machine].agent, Agent::Source(_)) {
                    self.machines[machine].misbehave();
                    self.counts.one("fault: an agent writes out of order");
                }
            }
            21 => {
                let at = self.below(4096);
                if self.links[machine].to_server.damage(at) {
                    self.counts.one("fault: a bit turns under way");
                }
            }
            22 | 23 => {
                let now = self.clock.elapsed();
                let wait = Duration::from_millis(self.random.below(25_000));
                self.links[machine].to_server.delay_until(now + wait);
                self.links[machine].to_agent.delay_until(now + wait);
                self.counts.one("fault: the network stalls");
            }
            24 => {
                let each = Duration::from_micros(self.random.below(30_000));
                self.storage.set_latency(each);
                self.counts.one("fault: the storage is slow");
            }
            _ => self.storage.set_latency(Duration::ZERO),
        }
        Ok(())
    }

    fn some_storage(&mut self) -> CrashStorage {
        if self.random.chance(80) { self.storage.clone() } else { self.targets.clone() }
    }

    /// The server ends within a few of its operations.
    fn lose_power_soon(&mut self, end: End) {
        let after = self.random.below(30);
        self.storage.power_off_after(after);
        self.ending = Some(end);
    }

    /// The storage is nearly full, or has room again.
    fn fill_up(&mut self) {
        if self.bounded {
            self.make_room();
            return;
        }
        let pages: u64 = self.storage.files().iter().map(|(_, len)| len.get().div_ceil(4096)).sum();
        let more = self.random.below(RESERVE.get() * 3 / 2);
        self.storage.set_capacity(Some(ByteLen::new(pages * 4096 + more)));
        self.bounded = true;
        self.counts.one("fault: the storage fills up");
    }

    pub fn make_room(&mut self) {
        self.storage.set_capacity(None);
        if std::mem::take(&mut self.bounded) {
            self.counts.one("the storage has room again");
        }
    }

    fn cut(&mut self, machine: usize) {
        let link = &self.links[machine];
        if link.to_server.under_way() + link.to_agent.under_way() > 0 {
            self.counts.one("fault: the connection is cut, bytes are lost");
        } else {
            self.counts.one("fault: the connection is cut");
        }
        link.cut();
    }

    /// Faults of the storage that have struck since it was last replaced.
    pub fn count_faults(&mut self) {
        for storage in [self.storage.clone(), self.targets.clone()] {
            let struck = storage.faults();
            self.counts.add("fault: a read fails", struck.reads);
            self.counts.add("fault: a write fails", struck.writes);
            self.counts.add("fault: a sync fails", struck.syncs);
            self.counts.add("fault: a sync of a folder fails", struck.dir_syncs);
            self.counts.add("fault: a write finds no room", struck.no_space);
        }
    }
}
