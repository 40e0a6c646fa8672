//! What every agent's connection shares.

use super::agents::Agents;
use super::homecoming::Homecoming;
use super::liveness::Deadlines;
use super::registration::{Knowledge, Known, KnownDisk, image_format};
use crate::authority::Authority;
use blocks::{DiskIndex, Generation, Id, MachineId, Result, Seq};
use std::sync::Arc;
use store::{DiskSpec, ImageFormat, Store, Unit, UnitSpec};
use wire::Hello;

/// The server as the agents' connections see it.
#[derive(Debug)]
pub(crate) struct AgentContext {
    pub registry: Registry,
    pub authority: Arc<Authority>,
    pub deadlines: Deadlines,
    /// Held while a hello is decided about, so that two of one name cannot both be the first.
    pub registering: tokio::sync::Mutex<()>,
}

/// Which machines there are, as far as the store and its agents know.
#[derive(Debug)]
pub(crate) struct Registry {
    pub store: Arc<Store>,
    pub agents: Arc<Agents>,
    pub image_format: Option<ImageFormat>,
}

impl Registry {
    /// What the store knows that this hello could mean. With `committed`, what was appended is synced first, so that
    /// the numbers in it are durable; only while nobody appends.
    pub fn knowledge(&self, hello: &Hello, committed: bool) -> Result<Knowledge> {
        let by_machine = hello.machine.and_then(|machine| self.store.unit(machine));
        let by_name = self.store.unit_by_name(&hello.name);
        let known = |unit: Option<Arc<Unit>>| unit.map(|unit| self.known(&unit, committed)).transpose();
        Ok(Knowledge {
            store: self.store.id(),
            image_format: self.image_format,
            by_machine: known(by_machine)?,
            by_name: known(by_name)?,
        })
    }

    fn known(&self, unit: &Unit, committed: bool) -> Result<Known> {
        let (machine, branch) = (unit.machine(), unit.main_branch());
        let checkpoints = unit.checkpoints();
        let never_sealed = checkpoints.is_empty();
        let main_line = || checkpoints.iter().filter(|checkpoint| checkpoint.branch == branch);
        let newest = main_line().next_back();
        let history = main_line().map(|checkpoint| checkpoint.generation).max().unwrap_or(Generation::FIRST);
        let home = Homecoming::of(unit)?.filter(|home| home.is_newest(history));
        // A replaced disk has another serial number than the one that was registered.
        let serial = |index: u16, spec: String| {
            let home = home.as_ref().and_then(|home| home.serials.get(usize::from(index)));
            home.cloned().unwrap_or(spec)
        };
        let disk = |(index, spec): (u16, DiskSpec)| {
            let disk = unit.disk(branch, DiskIndex(index))?;
            let durable = if committed { disk.sync()?.into_inner() } else { disk.last_seq() };
            let empty = never_sealed && durable == Seq(0);
            Ok(KnownDisk {
                len: spec.len,
                sealed_len: newest.map_or(spec.len, |newest| newest.lens[usize::from(index)]),
                serial: serial(index, spec.serial),
                device: spec.device,
                durable,
                empty,
            })
        };
        Ok(Known {
            machine,
            name: unit.name(),
            generation: unit.generation(),
            history,
            promoted: self.agents.session_in_charge(machine),
            disks: (0..).zip(unit.disks()).map(disk).collect::<Result<_>>()?,
            home,
        })
    }

    /// Makes the unit of a machine not seen before.
    pub fn register(&self, hello: &Hello, machine: Option<MachineId>) -> Result<Arc<Unit>> {
        let disk = |disk: &wire::DiskHello| DiskSpec {
            len: disk.len,
            serial: disk.serial.clone(),
            device: disk.device.clone(),
        };
        self.store.create_unit(UnitSpec {
            machine: machine.unwrap_or_else(new_machine),
            name: hello.name.clone(),
            definition: hello.inventory.clone().into_bytes(),
            disks: hello.disks.iter().map(disk).collect(),
            image_format: image_format(self.image_format, &hello.disks),
        })
    }
}

fn new_machine() -> MachineId {
    loop {
        if let Some(id) = Id::from_bytes(blocks::random_bytes(rand::random)) {
            return MachineId(id);
        }
    }
}
