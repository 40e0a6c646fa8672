//! What the benchmarks share.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::path::Path;
use std::sync::Arc;
use store::{HostStorage, Store, StoreOptions};

/// The store in that folder, as a server opens it.
pub fn open(folder: &Path) -> Store {
    let storage = HostStorage::new(folder).expect("a folder");
    Store::open(Arc::new(storage), StoreOptions::default()).expect("a store")
}

/// Whether the kernel let go of its caches, so that what follows is cold.
pub fn drop_caches() -> bool {
    let synced = std::process::Command::new("sync").status().is_ok_and(|status| status.success());
    synced && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// This process's resident memory now.
pub fn resident_kib() -> u64 {
    of_status("VmRSS:")
}

/// The most that it ever was.
pub fn resident_peak_kib() -> u64 {
    of_status("VmHWM:")
}

fn of_status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0)
}
