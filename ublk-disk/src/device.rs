//! A block device, whoever serves it.

use crate::abi::{self, DeviceInfo, Parameters, attribute, command, state};
use crate::control::{self, Control};
use crate::queue::{self, Common};
use crate::workers::Workers;
use blocks::{Error, ErrorKind, Result, SECTOR_SHIFT, Volume};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Queues of a device, where there are as many processors.
const QUEUES_MAX: usize = 4;
/// Requests of a queue, and bytes of a request. As much memory is kept for each queue as both make.
const DEPTH: u16 = 32;
const BUFFER_BYTES: u32 = 256 << 10;
/// The longest discard, and the longest run of zeroes, that is asked for at once.
const ZEROES_BYTES_MAX: u32 = 64 << 20;
/// How long a server that died may take to be gone; the driver looks every five seconds.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Whether devices can be shown here. `Unsupported`, with the reason, where they cannot.
pub fn check() -> Result<()> {
    Control::open().map(drop)
}

/// Whose device it is: the driver keeps it as long as the device is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label(u64);

impl Label {
    /// By a name; devices of others have none of these labels, as far as 64 bits go.
    pub fn of(name: &[u8]) -> Label {
        let known = b"understudy".iter().chain(name);
        // FNV-1a: the same in every version of this program.
        Label(known.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }
}

/// A device, by its number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    id: u32,
}

impl Device {
    /// The device with this label, served or waiting for a server; none where there is no driver.
    pub fn of(label: Label) -> Result<Option<Device>> {
        if !Path::new(control::PATH).exists() {
            return Ok(None);
        }
        Ok(find(&mut Control::open()?, label)?.map(|info| Device { id: info.dev_id }))
    }

    /// What is to be used.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/ublkb{}", self.id))
    }

    /// Its device number, as `st_rdev` has it.
    pub fn number(&self) -> Result<u64> {
        fs::metadata(self.path()).map(|found| found.rdev()).map_err(|error| self.failed("finding", error))
    }

    /// Whether it is mounted, or claimed in another way.
    pub fn is_in_use(&self) -> Result<bool> {
        Ok(self.claim()?.is_none())
    }

    /// Removes it. `Busy` while it is mounted or open; then it stays. Requests that wait for a server end with errors.
    pub fn delete(&self) -> Result<()> {
        let mut control = Control::open()?;
        self.stop(&mut control)?;
        self.forget(&mut control)
    }

    fn stop(&self, control: &mut Control) -> Result<()> {
        let busy = |what: String| Error::new(ErrorKind::Busy, format!("{} {what}", self.path().display()));
        // Until it is stopped, so that nobody mounts it meanwhile.
        let _claim = self.claim()?.ok_or_else(|| busy("is in use".into()))?;
        if let Some(process) = opener(self) {
            return Err(busy(format!("is open in process {process}")));
        }
        control.order(command::STOP_DEV, self.id, 0).map_err(|error| self.failed("stopping", error))
    }

    fn forget(&self, control: &mut Control) -> Result<()> {
        control.order(command::DEL_DEV, self.id, 0).map_err(|error| self.failed("deleting", error))
    }

    fn claim(&self) -> Result<Option<File>> {
        match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(self.path()) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
            Err(error) => Err(self.failed("opening", error)),
        }
    }

    fn failed(&self, doing: &str, error: std::io::Error) -> Error {
        Error::io(format!("{doing} {}", self.path().display()), error)
    }
}

/// A device that this process serves, until it is removed or the process ends: then it waits for another.
pub struct Served {
    device: Device,
    queues: Vec<JoinHandle<()>>,
    common: Arc<Common>,
}

/// Shows the volume as a block device: the one with this label where its server died, a new one otherwise. What it was asked
/// and did not answer is asked again. Errors: `Unsupported` without the driver, `Busy` where another process serves it.
pub fn serve(volume: Arc<dyn Volume>, label: Label) -> Result<Served> {
    let mut control = Control::open()?;
    if let Some(info) = orphan(&mut control, label)? {
        let served = Served::begin(&info, volume)?;
        served.open(&mut control, command::END_USER_RECOVERY)?;
        return Ok(served);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut info = DeviceInfo {
        nr_hw_queues: u16::try_from(cores.min(QUEUES_MAX)).expect("few"),
        queue_depth: DEPTH,
        max_io_buf_bytes: BUFFER_BYTES,
        dev_id: u32::MAX,
        flags: control::FEATURES,
        ublksrv_flags: label.0,
        ..DeviceInfo::default()
    };
    control.add(&mut info).map_err(|error| Error::io("making a block device", error))?;
    let device = Device { id: info.dev_id };
    let started = control
        .set_parameters(info.dev_id, &mut parameters(&*volume, info.max_io_buf_bytes))
        .map_err(|error| device.failed("describing", error))
        .and_then(|()| Served::begin(&info, volume))
        .and_then(|served| served.open(&mut control, command::START_DEV).map(|()| served));
    if started.is_err() {
        // Ends what was begun of its queues; the driver deletes nothing that is still served.
        let stopped = control.order(command::STOP_DEV, info.dev_id, 0);
        stopped.map_err(|error| device.failed("stopping", error))?;
        device.forget(&mut control)?;
    }
    started
}

impl Served {
    /// Starts threads for its queues; the driver may send requests when this returns.
    fn begin(info: &DeviceInfo, volume: Arc<dyn Volume>) -> Result<Served> {
        let device = Device { id: info.dev_id };
        let path = format!("/dev/ublkc{}", info.dev_id);
        let failed = |error| Error::io(format!("serving {path}"), error);
        let character = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let common = Arc::new(Common {
            character,
            workers: Workers::start(&volume).map_err(failed)?,
            volume,
            depth: info.queue_depth,
            buffer_bytes: info.max_io_buf_bytes as usize,
        });
        let mut queues = Vec::new();
        let (ready, began) = mpsc::channel();
        for number in 0..info.nr_hw_queues {
            let (common, ready) = (Arc::clone(&common), ready.clone());
            let thread = std::thread::Builder::new().name(format!("ublk-queue-{number}"));
            let spawned = thread.spawn(move || {
                queue::serve(number, &common, move |begun| drop(ready.send(begun)));
            });
            queues.push(spawned.map_err(failed)?);
        }
        drop(ready);
        began.iter().collect::<std::io::Result<()>>().map_err(failed)?;
        Ok(Served { device, queues, common })
    }

    /// Has the driver show it, or show it again.
    fn open(&self, control: &mut Control, order: u32) -> Result<()> {
        let process = u64::from(std::process::id());
        control.order(order, self.device.id, process).map_err(|error| self.device.failed("starting", error))
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Removes the device once nobody uses it. `Busy` until then, and it goes on being served.
    pub fn remove(self) -> std::result::Result<(), (Served, Error)> {
        let stopped = Control::open().and_then(|mut control| {
            self.device.stop(&mut control)?;
            Ok(control)
        });
        let mut control = match stopped {
            Ok(control) => control,
            Err(error) => return Err((self, error)),
        };
        let Served { device, queues, common } = self;
        for queue in queues {
            let _ = queue.join();
        }
        // The driver deletes nothing that is open.
        drop(common);
        if let Err(error) = device.forget(&mut control) {
            tracing::warn!("{error}: it shows nothing any more");
        }
        Ok(())
    }
}

/// The device with this label whose server is gone, ready for another, waiting until that one is wholly gone. What was never
/// started is deleted.
fn orphan(control: &mut Control, label: Label) -> Result<Option<DeviceInfo>> {
    let began = Instant::now();
    loop {
        let Some(info) = find(control, label)? else { return Ok(None) };
        let device = Device { id: info.dev_id };
        let is_patient = began.elapsed() < GONE_TIMEOUT;
        match info.state {
            state::QUIESCED => match control.order(command::START_USER_RECOVERY, info.dev_id, 0) {
                Ok(()) => return Ok(Some(info)),
                // Something of the dead one is left.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && is_patient => {}
                Err(error) => return Err(device.failed("taking over", error)),
            },
            state::DEAD => {
                device.forget(control)?;
                return Ok(None);
            }
            _ if is_patient => {}
            _ => {
                let what = format!("{} is served by process {}", device.path().display(), info.ublksrv_pid);
                return Err(Error::new(ErrorKind::Busy, what));
            }
        }
        std::thread::sleep(POLL);
    }
}

fn find(control: &mut Control, label: Label) -> Result<Option<DeviceInfo>> {
    let devices = fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
    let names = devices.filter_map(|entry| entry.file_name().into_string().ok());
    for id in names.filter_map(|name| name.strip_prefix("ublkc")?.parse().ok()) {
        match control.info(id) {
            Ok(info) if info.ublksrv_flags == label.0 => return Ok(Some(info)),
            // Somebody else's, or gone meanwhile.
            _ => {}
        }
    }
    Ok(None)
}

fn parameters(volume: &dyn Volume, buffer_bytes: u32) -> Parameters {
    let shift = volume.alignment().get();
    let read_only = if volume.is_read_only() { attribute::READ_ONLY } else { 0 };
    Parameters {
        len: u32::try_from(8 + size_of::<abi::Basic>() + size_of::<abi::Discard>()).expect("small"),
        types: abi::PARAM_TYPES,
        basic: abi::Basic {
            attrs: attribute::VOLATILE_CACHE | attribute::FUA | read_only,
            logical_bs_shift: shift,
            physical_bs_shift: shift.max(12),
            io_min_shift: shift.max(12),
            io_opt_shift: shift.max(12),
            max_sectors: buffer_bytes >> SECTOR_SHIFT,
            dev_sectors: volume.len().get() >> SECTOR_SHIFT,
            ..abi::Basic::default()
        },
        discard: abi::Discard {
            discard_granularity: 4096,
            max_discard_sectors: ZEROES_BYTES_MAX >> SECTOR_SHIFT,
            max_write_zeroes_sectors: ZEROES_BYTES_MAX >> SECTOR_SHIFT,
            max_discard_segments: 1,
            ..abi::Discard::default()
        },
    }
}

/// Another process that has the device or a partition of it open, if one can be seen: opening does not claim.
fn opener(device: &Device) -> Option<u32> {
    let own = std::process::id();
    let name = format!("ublkb{}", device.id);
    let parts = fs::read_dir(format!("/sys/class/block/{name}")).into_iter().flatten().flatten();
    let parts = parts.map(|entry| entry.file_name()).filter(|part| part.to_string_lossy().starts_with(&name));
    let nodes: Vec<PathBuf> = parts.map(|part| Path::new("/dev").join(part)).chain([device.path()]).collect();
    let numbers: Vec<u64> =
        nodes.iter().filter_map(|node| fs::metadata(node).ok()).map(|found| found.rdev()).collect();
    // Only what is called a device is looked at: others' files may be on mounts that do not answer.
    let is_of_it = |target: &Path| {
        target.starts_with("/dev")
            && fs::metadata(target)
                .is_ok_and(|found| found.file_type().is_block_device() && numbers.contains(&found.rdev()))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    processes.filter(|process| *process != own).find(|process| {
        let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| is_of_it(&target))
    })
}
