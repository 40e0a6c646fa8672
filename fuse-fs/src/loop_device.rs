//! A file as a block device.

use blocks::{Error, ErrorKind, Result};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CONTROL: &str = "/dev/loop-control";
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
/// Partitions are looked for; reads and writes go past the page cache.
const FLAGS: u32 = 8 | 16;
/// How often another process may be quicker to take a free device.
const RACES_MAX: u32 = 32;
/// How long the kernel may take to let go of a device that nobody uses.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// An attached loop device. It stays attached when this is dropped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches the file to a free device, in blocks of `block_size` bytes. Errors: `Unsupported` without loop devices.
    pub fn attach(file: &Path, block_size: u32) -> Result<LoopDevice> {
        let failed = |error| Error::io(format!("attaching {}", file.display()), error);
        let backing = OpenOptions::new().read(true).write(true).open(file).map_err(failed)?;
        let control = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|error| {
            Error::new(ErrorKind::Unsupported, format!("{CONTROL}: {error} (is the loop module there?)"))
        })?;
        let mut config = Config {
            fd: u32::try_from(backing.as_raw_fd()).expect("a descriptor is positive"),
            block_size,
            info: Info {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                sizelimit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: FLAGS,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        let name = file.as_os_str().as_encoded_bytes();
        let kept = name.len().min(config.info.file_name.len() - 1);
        config.info.file_name[..kept].copy_from_slice(&name[..kept]);
        for _ in 0..RACES_MAX {
            // SAFETY: takes no memory of ours.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(failed(std::io::Error::last_os_error()));
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
            // SAFETY: the request reads one `struct loop_config`.
            if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
                return Ok(LoopDevice { path });
            }
            match std::io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EBUSY) => {}
                error => return Err(failed(error)),
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("no loop device stays free for {}", file.display())))
    }

    /// The devices that are attached to this file.
    pub fn of(file: &Path) -> Vec<LoopDevice> {
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let is_of = |name: &str| backing(name).is_some_and(|backing| Path::new(&backing) == file);
        let names = devices.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| is_of(name))
            .map(|name| LoopDevice { path: Path::new("/dev").join(name) })
            .collect()
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its device number, as `st_rdev` has it.
    pub fn number(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.path);
        metadata.map(|found| found.rdev()).map_err(|error| Error::io(self.path.display().to_string(), error))
    }

    /// Detaches it. `Busy` while it is mounted or open elsewhere; then it stays, or, where it is only open, goes with the
    /// last close.
    pub fn detach(&self) -> Result<()> {
        let busy = |what: &str| Error::new(ErrorKind::Busy, format!("{} is {what}", self.path.display()));
        let device = self.claim()?.ok_or_else(|| busy("in use"))?;
        // SAFETY: takes no memory of ours.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) } != 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENXIO) => Ok(()),
                _ => Err(Error::io(format!("detaching {}", self.path.display()), error)),
            };
        }
        drop(device);
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let began = Instant::now();
        while backing(&name).is_some() {
            if began.elapsed() > DETACH_TIMEOUT {
                return Err(busy("still open; it goes with the last close"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether it is mounted, or claimed in another way.
    pub fn is_in_use(&self) -> Result<bool> {
        Ok(self.claim()?.is_none())
    }

    fn claim(&self) -> Result<Option<File>> {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&self.path);
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
            Err(error) => Err(Error::io(self.path.display().to_string(), error)),
        }
    }
}

fn backing(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}
