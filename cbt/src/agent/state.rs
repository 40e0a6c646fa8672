//! What the agent remembers on the machine's own disk: hints, never the truth, since that disk is itself replicated
//! and rolled back.

use blocks::{Generation, MachineId, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The agent's memory.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    hints: Hints,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Hints {
    machine: Option<String>,
    generation: u64,
}

impl State {
    /// What an earlier run left; nothing where there was none or it cannot be read.
    pub fn load(state_dir: &Path) -> State {
        let path = state_dir.join("agent.json");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        State { path, hints: serde_json::from_str(&text).unwrap_or_default() }
    }

    /// The machine's identity from an earlier registration.
    pub fn machine(&self) -> Option<MachineId> {
        self.hints.machine.as_deref()?.parse().ok()
    }

    /// The generation that was last learnt; 0 for none.
    pub fn generation(&self) -> Generation {
        Generation(self.hints.generation)
    }

    /// Remembers both. Errors are the caller's to log: the agent works without.
    pub fn remember(&mut self, machine: MachineId, generation: Generation) -> Result<()> {
        let hints = Hints { machine: Some(machine.to_string()), generation: generation.0 };
        if hints == self.hints {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|error| blocks::Error::io(folder.display().to_string(), error))?;
        }
        let json = serde_json::to_vec(&hints).expect("hints are text and numbers");
        wire::write_private_file(&self.path, &json)?;
        self.hints = hints;
        Ok(())
    }
}
