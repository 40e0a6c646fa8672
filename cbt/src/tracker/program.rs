//! The kernel's side: loading the programs of bpf/tracker.bpf.c, pinning them, and taking over what is pinned.

use super::changed::Changed;
use super::disk::{DiskIdentity, Plumbing};
use super::ledger::{LEDGER_BYTES, Ledger};
use super::words::Words;
use blocks::{BlockShift, Error, ErrorKind, Result};
use libbpf_rs::{
    Link, MapCore, MapFlags, MapHandle, MapType, ObjectBuilder, OpenObject, Program, ProgramType,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicU64;

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tracker.bpf.o"));

/// Bios that may be under way at once on a bio-based disk; more raise a flag.
const RANGES_MAX: u32 = 1 << 16;
/// Steps of a loop on kernels without `bpf_loop`: more words than the largest request (4 GiB) has in the finest map.
const STEPS_MAX: u32 = 1 << 15;
/// `struct counters`: where each count is, in words.
const COUNTER_WORDS: usize = 24;
const QUEUED: usize = 0;
const COMPLETED: usize = 8;
const FLAGS: usize = 16;

/// What the kernel's side can raise.
pub(crate) const FLAG_MEDIA_CHANGED: u64 = 1;
pub(crate) const FLAG_BEYOND_END: u64 = 2;
pub(crate) const FLAG_PASSTHROUGH: u64 = 4;
pub(crate) const FLAG_RANGE_LOST: u64 = 8;

/// A deliberate defect of the kernel's side, for the tests that must notice it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
#[cfg_attr(not(debug_assertions), allow(dead_code, reason = "no release build can ask for a defect"))]
pub enum Mutant {
    /// No defect.
    #[default]
    None = 0,
    /// Marks when a write is queued, not when it completes; counts both.
    MarkOnlyQueued = 1,
    /// Neither marks nor counts completions.
    LoseCompletions = 2,
    /// Neither marks nor counts when a write is queued.
    LoseQueued = 3,
    /// No defect: loops as on kernels before 5.17, which have no `bpf_loop`.
    BySteps = 4,
}

/// What is pinned, opened.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub marks: Words,
    pub pending: Words,
    pub since: Words,
    counters: Words,
    ledger: MapHandle,
    /// Keep the programs attached for as long as this process lives, even if somebody removes the pins.
    links: Vec<OwnedFd>,
    programs: Vec<OwnedFd>,
}

/// Loads the programs for the disk of this ledger and pins everything into `folder`. They run from here on.
pub(crate) fn attach(ledger: &Ledger, folder: &Path, mutant: Mutant) -> Result<()> {
    let mut object = ObjectBuilder::default()
        .name("understudy")
        .and_then(|builder| builder.open_memory(OBJECT))
        .map_err(|error| failed("open the tracker's programs", error))?;
    configure(&mut object, ledger, mutant)?;
    let mut object = object.load().map_err(|error| failed("load the tracker's programs", error))?;
    for mut map in object.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if matches!(name.as_str(), "marks" | "counters") {
            map.pin(folder.join(&name)).map_err(|error| failed(&format!("pin {name}"), error))?;
        }
    }
    let words = word_count(ledger)?;
    for name in ["pending", "since"] {
        let flags = libbpf_rs::libbpf_sys::BPF_F_MMAPABLE;
        create(name, 8, words, flags)?.pin(folder.join(name)).map_err(|error| failed(name, error))?;
    }
    let mut book = create("ledger", LEDGER_BYTES as u32, 1, 0)?;
    write_ledger(&book, ledger)?;
    book.pin(folder.join("ledger")).map_err(|error| failed("pin ledger", error))?;
    for program in object.progs_mut().filter(|program| program.autoload()) {
        let name = program.name().to_string_lossy().into_owned();
        let mut link = program.attach().map_err(|error| failed(&format!("attach {name}"), error))?;
        link.pin(folder.join(format!("link_{name}")))
            .map_err(|error| failed(&format!("pin {name}"), error))?;
    }
    Ok(())
}

/// Sizes, constants and which programs, before loading.
fn configure(object: &mut OpenObject, ledger: &Ledger, mutant: Mutant) -> Result<()> {
    let prefix = prefix(ledger.plumbing);
    for mut program in object.progs_mut() {
        let wanted = program.name().to_string_lossy().starts_with(prefix);
        program.set_autoload(wanted);
    }
    let words = word_count(ledger)?;
    for mut map in object.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        let done = match name.as_str() {
            "marks" => map.set_max_entries(words),
            "ranges" if ledger.plumbing == Plumbing::Bios => map.set_max_entries(RANGES_MAX),
            "steps" if needs_steps(mutant)? => map.set_max_entries(STEPS_MAX),
            _ if name.ends_with(".rodata") => map.set_initial_value(&config(ledger, mutant)),
            _ => Ok(()),
        };
        done.map_err(|error| failed(&format!("configure {name}"), error))?;
    }
    Ok(())
}

/// Whether the programs will loop over a map. Should this be mistaken, they raise [`FLAG_RANGE_LOST`].
fn needs_steps(mutant: Mutant) -> Result<bool> {
    let has_loop = ProgramType::Kprobe.is_helper_supported(libbpf_rs::libbpf_sys::BPF_FUNC_loop);
    let has_loop = has_loop.map_err(|error| failed("ask for the kernel's helpers", error))?;
    Ok(mutant == Mutant::BySteps || !has_loop)
}

/// `struct config`, as the programs' compiler lays it out.
fn config(ledger: &Ledger, mutant: Mutant) -> Vec<u8> {
    let DiskIdentity { major, minor, diskseq, len, .. } = ledger.identity;
    let mut bytes = Vec::new();
    bytes.extend(major.to_ne_bytes());
    bytes.extend(minor.to_ne_bytes());
    bytes.extend(diskseq.to_ne_bytes());
    bytes.extend(len.blocks(ledger.shift).to_ne_bytes());
    bytes.extend(u32::from(ledger.shift.get()).to_ne_bytes());
    bytes.extend((mutant as u32).to_ne_bytes());
    bytes
}

fn prefix(plumbing: Plumbing) -> &'static str {
    match plumbing {
        Plumbing::Requests => "rq_",
        Plumbing::Bios => "bio_",
    }
}

/// The ledger pinned in `folder`, whatever wrote it.
pub(crate) fn read_ledger(folder: &Path) -> Result<Ledger> {
    let map = open_map(folder, "ledger", LEDGER_BYTES as u32, 1)?;
    let value =
        map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).map_err(|error| failed("read ledger", error))?;
    Ledger::decode(&value.ok_or_else(|| Error::corrupt("the ledger has no entry"))?)
}

impl Pinned {
    /// Opens everything that [`attach`] pinned for this ledger.
    pub fn open(folder: &Path, ledger: &Ledger) -> Result<Pinned> {
        let words = word_count(ledger)?;
        let count = Changed::words_for(ledger.shift, ledger.identity.len);
        let bitmap = |name| Words::mapped(open_map(folder, name, 8, words)?.as_fd(), count);
        let counter_bytes = (COUNTER_WORDS * size_of::<AtomicU64>()) as u32;
        let counters = Words::mapped(open_map(folder, "counters", counter_bytes, 1)?.as_fd(), COUNTER_WORDS)?;
        let names: &[&str] = match ledger.plumbing {
            Plumbing::Requests => &["rq_issue", "rq_requeue", "rq_complete"],
            Plumbing::Bios => &["bio_queue", "bio_remap", "bio_complete"],
        };
        let mut links = Vec::new();
        let mut programs = Vec::new();
        for name in names {
            let (link, program) = open_link(&folder.join(format!("link_{name}")))?;
            links.push(link);
            programs.push(program);
        }
        let ledger = open_map(folder, "ledger", LEDGER_BYTES as u32, 1)?;
        let (marks, pending, since) = (bitmap("marks")?, bitmap("pending")?, bitmap("since")?);
        Ok(Pinned { marks, pending, since, counters, ledger, links, programs })
    }

    /// Takes the bitmaps out, for [`Changed`]; empty ones stay.
    pub fn take_bitmaps(&mut self) -> (Words, Words, Words) {
        let take = |words: &mut Words| std::mem::replace(words, Words::owned(0));
        (take(&mut self.marks), take(&mut self.pending), take(&mut self.since))
    }

    pub fn queued(&self) -> u64 {
        self.counters[QUEUED].load(std::sync::atomic::Ordering::SeqCst)
    }

    pub fn completed(&self) -> u64 {
        self.counters[COMPLETED].load(std::sync::atomic::Ordering::SeqCst)
    }

    pub fn flags(&self) -> u64 {
        self.counters[FLAGS].load(std::sync::atomic::Ordering::SeqCst)
    }

    pub fn clear_flags(&self) {
        self.counters[FLAGS].store(0, std::sync::atomic::Ordering::SeqCst);
    }

    pub fn save(&self, ledger: &Ledger) -> Result<()> {
        write_ledger(&self.ledger, ledger)
    }

    /// Runs that the kernel left out because the program was running already on that processor.
    pub fn missed_runs(&self) -> Result<u64> {
        debug_assert_eq!(self.links.len(), self.programs.len());
        self.programs.iter().map(missed_runs).sum()
    }
}

fn missed_runs(program: &OwnedFd) -> Result<u64> {
    let mut info = libbpf_rs::libbpf_sys::bpf_prog_info::default();
    let mut len = size_of_val(&info) as u32;
    let raw: *mut libbpf_rs::libbpf_sys::bpf_prog_info = &mut info;
    // SAFETY: `info` is writable for `len` bytes, and all zero asks for no arrays.
    let done =
        unsafe { libbpf_rs::libbpf_sys::bpf_obj_get_info_by_fd(program.as_raw_fd(), raw.cast(), &mut len) };
    match done {
        0 => Ok(info.recursion_misses),
        _ => Err(Error::io("ask for a program's missed runs", std::io::Error::last_os_error())),
    }
}

fn open_link(path: &Path) -> Result<(OwnedFd, OwnedFd)> {
    let shown = path.display().to_string();
    let link = Link::open(path).map_err(|error| failed(&shown, error))?;
    let info = link.info().map_err(|error| failed(&shown, error))?;
    let program = Program::fd_from_id(info.prog_id).map_err(|error| failed(&shown, error))?;
    // The descriptor alone keeps the link; libbpf's own handle cannot move between threads.
    let link = link.as_fd().try_clone_to_owned().map_err(|error| Error::io(shown, error))?;
    Ok((link, program))
}

fn open_map(folder: &Path, name: &str, value_bytes: u32, entries: u32) -> Result<MapHandle> {
    let path = folder.join(name);
    let shown = path.display();
    let map = MapHandle::from_pinned_path(&path).map_err(|error| failed(&shown.to_string(), error))?;
    if map.value_size() != value_bytes || map.max_entries() != entries {
        let context = format!("{shown}: {} entries of {} bytes", map.max_entries(), map.value_size());
        return Err(Error::corrupt(context));
    }
    Ok(map)
}

fn create(name: &str, value_bytes: u32, entries: u32, flags: u32) -> Result<MapHandle> {
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as libbpf_rs::libbpf_sys::size_t,
        map_flags: flags,
        ..Default::default()
    };
    MapHandle::create(MapType::Array, Some(name), 4, value_bytes, entries, &options)
        .map_err(|error| failed(&format!("create {name}"), error))
}

fn write_ledger(map: &MapHandle, ledger: &Ledger) -> Result<()> {
    map.update(&0_u32.to_ne_bytes(), &ledger.encode(), MapFlags::ANY)
        .map_err(|error| failed("write ledger", error))
}

fn word_count(ledger: &Ledger) -> Result<u32> {
    u32::try_from(Changed::words_for(ledger.shift, ledger.identity.len)).map_err(|error| {
        Error::with_source(ErrorKind::Unsupported, "the disk is too large for its grain", error)
    })
}

/// The finest grain at which a disk of this size needs no more than [`BITS_MAX`] bits.
pub(crate) fn grain_for(len: blocks::ByteLen) -> BlockShift {
    (BlockShift::KIB_4.get()..=30)
        .filter_map(BlockShift::new)
        .find(|shift| len.blocks(*shift) <= BITS_MAX)
        // Past 64 PiB; loading then says that the bitmap is too large.
        .unwrap_or(BlockShift::KIB_64)
}

/// 8 MiB for each bitmap; a disk of 256 GiB still has blocks of 4 KiB.
const BITS_MAX: u64 = 1 << 26;

fn failed(what: &str, error: libbpf_rs::Error) -> Error {
    let kind = match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => ErrorKind::ReadOnly,
        libbpf_rs::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Unsupported,
    };
    Error::with_source(kind, what, error)
}
