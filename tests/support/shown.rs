//! A protected disk, shown as files.

use super::disk::Mount;
use super::process::Process;
use super::{NAME, Stage, program, run};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A stage and its datastore; unmounted at the end, whatever happened.
pub struct Shown {
    pub mount: Option<Process>,
    pub stage: Stage,
    pub folder: PathBuf,
}

impl Shown {
    /// A protected disk with an ext4 file system of some content, and the datastore mounted.
    pub fn new(disk_mib: u64, more: &[&str]) -> Shown {
        let mut stage = Stage::new(disk_mib);
        let device = stage.disk.device().to_owned();
        stage.start_server(None);
        stage.start_agent(None);
        stage.wait_protected();
        let folder = stage.path("fill");
        fs::create_dir(&folder).unwrap();
        bash(&format!("mkfs.ext4 -q -F {device}"));
        // A freeze for a checkpoint may be under way where it is mounted: then it is unmounted a moment later.
        let mount = Mount::new(&device, &folder);
        bash(&format!(
            "dd if=/dev/urandom of={0}/a bs=1M count=9 status=none; cp -r /usr/include/linux {0}/; sync -f {0}",
            folder.display()
        ));
        drop(mount);
        stage.insist(&["checkpoint", NAME, "--name", "filled"]);
        let folder = stage.path("datastore");
        fs::create_dir(&folder).unwrap();
        let mut shown = Shown { mount: None, stage, folder };
        shown.mount(more);
        shown.stage.wait_until("the newest checkpoint", 20, |stage| {
            let list = stage.us(&["checkpoints", NAME]).unwrap();
            fs::read_dir(stage.path("datastore").join(NAME).join("checkpoints")).unwrap().count()
                >= list["checkpoints"].as_array().unwrap().len()
        });
        shown
    }

    /// Mounts the datastore, with these flags more.
    pub fn mount(&mut self, more: &[&str]) {
        let mut command = program();
        command.arg("--control").arg(self.stage.path("store/control.sock")).arg("mount").arg(&self.folder);
        command.args(more);
        self.mount = Some(Process::start(command, None, &self.stage.path("mount.log")));
        let state = self.folder.join(".understudy");
        self.stage.wait_until("the mount", 20, |_| fs::read(&state).is_ok());
    }

    /// The folder of the checkpoint that is called `filled`.
    pub fn filled(&self) -> PathBuf {
        let list = self.stage.us(&["checkpoints", NAME]).unwrap();
        let found =
            list["checkpoints"].as_array().unwrap().iter().find(|one| one["name"] == "filled").unwrap();
        let time = found["time"].as_str().unwrap();
        let seconds = &time[..19].replace(':', "-");
        let folders = fs::read_dir(self.folder.join(NAME).join("checkpoints")).unwrap();
        let ms = found["server_time_ms"].as_u64().unwrap() % 1000;
        let wanted = format!("{seconds}.{ms:03}Z");
        folders.map(|folder| folder.unwrap().path()).find(|path| path.ends_with(&wanted)).unwrap()
    }

    /// A session of it that leaves the machine in charge, and its folder.
    pub fn recover(&mut self) -> (Value, PathBuf) {
        let session = self.stage.insist(&["recover", NAME, "--at", "filled", "--drill"]);
        let folder = self.folder.join(NAME).join("sessions").join(session["session"].as_str().unwrap());
        (session, folder)
    }

    /// What a log of the stage says.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.stage.path(name)).unwrap_or_default()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.kill();
        }
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.folder).status();
    }
}

/// Runs a script that must succeed.
pub fn bash(script: &str) -> String {
    run(Command::new("bash").args(["-ec", script]))
}
