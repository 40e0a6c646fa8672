//! A client of QEMU's control protocol: one command at a time, on a connection of its own.

use super::lines::Lines;
use blocks::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

/// Events that are kept for whoever waits for one; the oldest go first.
const EVENTS_MAX: usize = 64;

/// A connection that has agreed on what it speaks. After an error other than QEMU's own it is of no use any more.
pub(crate) struct Qmp {
    lines: Lines,
    last: u64,
    events: VecDeque<Value>,
    patience: Duration,
}

impl Qmp {
    /// Connects; the greeting and each answer may take as long as `patience`. Errors: those of [`Lines`], and
    /// `Corrupt` where whoever answers is no QEMU.
    pub fn connect(path: &Path, patience: Duration) -> Result<Qmp> {
        let mut lines = Lines::connect(path)?;
        let greeting = lines.next(Instant::now() + patience)?;
        if !greeting["QMP"].is_object() {
            return Err(Error::corrupt(format!("{} does not greet as QEMU does", path.display())));
        }
        let mut qmp = Qmp { lines, last: 0, events: VecDeque::new(), patience };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Has QEMU do something; what it returns. QEMU's own refusal is `InvalidInput` with its words.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.last += 1;
        let deadline = Instant::now() + self.patience;
        let mut request = json!({ "execute": command, "id": self.last });
        if arguments.as_object().is_some_and(|arguments| !arguments.is_empty()) {
            request["arguments"] = arguments;
        }
        self.lines.send(&request, deadline)?;
        loop {
            let mut message = self.lines.next(deadline)?;
            if message["event"].is_string() {
                self.keep(message);
                continue;
            }
            if message["id"] != self.last {
                return Err(Error::corrupt(format!("QEMU answers to {command} what was not asked")));
            }
            if let Some(error) = message.get("error") {
                let words: String = error["desc"].as_str().unwrap_or("no reason").chars().take(400).collect();
                return Err(Error::new(ErrorKind::InvalidInput, format!("QEMU refuses {command}: {words}")));
            }
            return match message.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => {
                    Err(Error::corrupt(format!("QEMU answers to {command} with neither result nor error")))
                }
            };
        }
    }

    /// Waits for an event of that name until `deadline`; `Cancelled` where none comes.
    pub fn wait_event(&mut self, name: &str, deadline: Instant) -> Result<()> {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                self.events.remove(at);
                return Ok(());
            }
            let message = self.lines.next(deadline)?;
            if message["event"].is_string() {
                self.keep(message);
            }
        }
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
