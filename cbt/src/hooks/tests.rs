use super::*;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("hooks")).unwrap();
        Machine { folder }
    }

    /// A hook that notes what it is told and then does that.
    fn hook(&self, name: &str, then: &str) {
        let said = self.folder.path().join("said");
        let text = format!("#!/bin/sh\necho {name} $1 >> {}\n{then}\n", said.display());
        let path = self.folder.path().join("hooks").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn hooks(&self) -> Hooks {
        self.hooks_within(Duration::from_secs(60))
    }

    fn hooks_within(&self, patience: Duration) -> Hooks {
        let path = self.folder.path();
        Hooks::new(&path.join("hooks"), &path.join("run"), patience)
    }

    fn said(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("said")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn is_noted(&self) -> bool {
        self.folder.path().join("run").join(NOTE).exists()
    }
}

#[test]
fn applications_rest_in_the_order_of_names_and_go_on_in_reverse() {
    let machine = Machine::new();
    machine.hook("20-database", "");
    machine.hook("10-cache", "");
    let hooks = machine.hooks();
    let rest = hooks.rest().unwrap().unwrap();
    assert!(machine.is_noted());
    assert_eq!(machine.said(), ["10-cache freeze", "20-database freeze"]);
    drop(rest);
    assert_eq!(machine.said()[2..], ["20-database thaw", "10-cache thaw"]);
    assert!(!machine.is_noted());
}

#[test]
fn a_hook_that_says_no_is_named_and_everything_goes_on() {
    let machine = Machine::new();
    machine.hook("1", "");
    machine.hook("2", "[ $1 = thaw ] || { echo no room >&2; exit 3; }");
    machine.hook("3", "");
    let error = machine.hooks().rest().map(drop).unwrap_err().to_string();
    assert!(error.contains("hooks/2 freeze") && error.contains("no room") && error.contains('3'), "{error}");
    assert_eq!(machine.said(), ["1 freeze", "2 freeze", "2 thaw", "1 thaw"]);
    assert!(!machine.is_noted());
}

#[test]
fn a_hook_that_hangs_is_killed_with_what_it_started() {
    let machine = Machine::new();
    let child = machine.folder.path().join("child");
    machine
        .hook("1", &format!("[ $1 = thaw ] && exit; sleep 300 & echo $! > {}; sleep 300", child.display()));
    let began = Instant::now();
    let error = machine.hooks_within(Duration::from_secs(2)).rest().map(drop).unwrap_err().to_string();
    assert!(error.contains("2s"), "{error}");
    let Ok(child) = fs::read_to_string(child) else {
        panic!(
            "the hook was killed before it had started anything: a machine that is too slow for this test"
        );
    };
    // Dead, or gone altogether, depending on who takes orphans.
    let runs = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.trim())).unwrap_or_default();
        status.contains("State:") && !status.contains("State:\tZ")
    };
    while runs() {
        assert!(began.elapsed() < Duration::from_secs(200), "its child goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_a_dead_agent_left_at_rest_goes_on_with_the_next() {
    let machine = Machine::new();
    machine.hook("1", "");
    let hooks = machine.hooks();
    let rest = hooks.rest().unwrap().unwrap();
    machine.hooks().recover();
    assert_eq!(machine.said(), ["1 freeze"], "whoever holds it lives");
    // As the kernel does when a process dies.
    rustix::fs::flock(&rest.note, FlockOperation::Unlock).unwrap();
    std::mem::forget(rest);
    assert!(machine.is_noted());
    machine.hooks().recover();
    assert_eq!(machine.said(), ["1 freeze", "1 thaw"]);
    assert!(!machine.is_noted());
    machine.hooks().recover();
    assert_eq!(machine.said().len(), 2, "nothing was at rest");
}

#[test]
fn what_others_can_write_is_not_run_as_root() {
    let machine = Machine::new();
    machine.hook("1", "");
    let path = machine.folder.path().join("hooks/1");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(machine.hooks().rest().unwrap().is_none());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(machine.hooks().rest().unwrap().is_none(), "it is no program");
    assert!(machine.said().is_empty() && !machine.is_noted());
    assert!(
        Hooks::new(Path::new("/nowhere"), Path::new("/nowhere"), Duration::ZERO).rest().unwrap().is_none()
    );
}
