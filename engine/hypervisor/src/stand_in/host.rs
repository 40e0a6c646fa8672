//! What this host has to give to a stand-in.

use crate::Definition;
use blocks::{ByteLen, Error, Result};

/// What is left to the host of its free memory: one part of this many.
const KEPT_PART: u64 = 8;

/// Processors and memory to give away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRoom {
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: ByteLen,
}

impl HostRoom {
    /// What this host has now.
    pub fn now() -> Result<HostRoom> {
        let cpus = std::thread::available_parallelism()
            .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
        let path = "/proc/meminfo";
        let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        let available =
            kib.ok_or_else(|| Error::corrupt(format!("{path} says nothing of MemAvailable")))? << 10;
        Ok(HostRoom { cpus, memory: ByteLen::new(available - available / KEPT_PART) })
    }
}

/// The machine with processors and memory as they are wanted, or as many as there is room for; what was cut down is
/// said.
pub fn fit(
    mut definition: Definition,
    cpus: Option<u32>,
    memory: Option<ByteLen>,
    room: HostRoom,
) -> (Definition, Vec<String>) {
    let mut notes = Vec::new();
    let mib = |memory: ByteLen| memory.get() >> 20;
    if cpus.is_none() && definition.cpus > room.cpus {
        notes.push(format!(
            "the machine has {} processors, its stand-in gets {}: this host has no more",
            definition.cpus, room.cpus
        ));
        definition.cpus = room.cpus;
    }
    if memory.is_none() && definition.memory > room.memory {
        notes.push(format!(
            "the machine has {} MiB of memory, its stand-in gets {}: this host has no more free",
            mib(definition.memory),
            mib(room.memory)
        ));
        definition.memory = room.memory;
    }
    definition.cpus = cpus.unwrap_or(definition.cpus);
    definition.memory = memory.unwrap_or(definition.memory);
    (definition, notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::testing::definition;

    #[test]
    fn a_machine_gets_what_there_is_or_what_was_said() {
        let room = HostRoom { cpus: 2, memory: ByteLen::new(1 << 30) };
        let (machine, notes) = fit(definition(), None, None, room);
        assert_eq!((machine.cpus, machine.memory, notes.len()), (2, ByteLen::new(1 << 30), 2));
        let (machine, notes) = fit(definition(), Some(8), Some(ByteLen::new(1 << 34)), room);
        assert_eq!((machine.cpus, machine.memory, notes.len()), (8, ByteLen::new(1 << 34), 0));
        let large = HostRoom { cpus: 64, memory: ByteLen::new(1 << 40) };
        assert_eq!(fit(definition(), None, None, large), (definition(), Vec::new()));
        assert!(HostRoom::now().unwrap().cpus >= 1);
    }
}
