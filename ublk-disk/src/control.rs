//! `/dev/ublk-control`: makes, finds and deletes devices.

use crate::abi::{ControlCommand, DeviceInfo, Parameters, command};
use crate::abi::{F_CMD_IOCTL_ENCODE, F_USER_RECOVERY, F_USER_RECOVERY_REISSUE};
use blocks::{Error, ErrorKind, Result};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

pub(crate) const PATH: &str = "/dev/ublk-control";
/// What the driver must be able to do: another server can take over, and is asked again what the dead one was asked.
pub(crate) const FEATURES: u64 = F_USER_RECOVERY | F_USER_RECOVERY_REISSUE | F_CMD_IOCTL_ENCODE;

/// The control device, open. A command blocks its caller until the driver has done it.
pub(crate) struct Control {
    device: File,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
}

impl Control {
    /// Opens it. `Unsupported` without the driver or with one that cannot do what is needed.
    pub(crate) fn open() -> Result<Control> {
        let missing = |why: String| Error::new(ErrorKind::Unsupported, format!("{PATH}: {why}"));
        let device = OpenOptions::new().read(true).write(true).open(PATH);
        let device = device.map_err(|error| missing(format!("{error} (is the ublk_drv module there?)")))?;
        let ring = IoUring::builder().build(4);
        let ring = ring.map_err(|error| missing(format!("{error} (is io_uring allowed here?)")))?;
        let mut control = Control { device, ring };
        let mut features = 0u64;
        let at = (&raw mut features).addr() as u64;
        let asked = ControlCommand { len: 8, addr: at, ..Control::of(u32::MAX) };
        // SAFETY: the driver writes eight bytes to what lives as long as this call.
        unsafe { control.run(command::GET_FEATURES, &asked) }
            .map_err(|error| missing(format!("what it can do: {error} (Linux 6.5 says it)")))?;
        match features & FEATURES {
            FEATURES => Ok(control),
            found => Err(missing(format!("it can do {found:#x} of {FEATURES:#x}: a newer kernel can"))),
        }
    }

    /// What a device is.
    pub(crate) fn info(&mut self, id: u32) -> io::Result<DeviceInfo> {
        let mut info = DeviceInfo::default();
        // SAFETY: the driver writes one such structure, which lives as long as this call.
        unsafe { self.run_with(command::GET_DEV_INFO, id, &raw mut info) }?;
        Ok(info)
    }

    /// Makes a device that shows nothing yet; `info` says how it came out, its number too.
    pub(crate) fn add(&mut self, info: &mut DeviceInfo) -> io::Result<()> {
        // SAFETY: the driver reads and writes one such structure, which lives as long as this call.
        unsafe { self.run_with(command::ADD_DEV, info.dev_id, std::ptr::from_mut(info)) }
    }

    /// Says what the device is to be, before it starts.
    pub(crate) fn set_parameters(&mut self, id: u32, parameters: &mut Parameters) -> io::Result<()> {
        // SAFETY: the driver reads one such structure, which lives as long as this call.
        unsafe { self.run_with(command::SET_PARAMS, id, std::ptr::from_mut(parameters)) }
    }

    /// Any command that passes no memory: starting, stopping, deleting, taking over.
    pub(crate) fn order(&mut self, order: u32, id: u32, data: u64) -> io::Result<()> {
        let wanted = ControlCommand { data, ..Control::of(id) };
        // SAFETY: no memory is passed.
        unsafe { self.run(order, &wanted) }
    }

    fn of(id: u32) -> ControlCommand {
        ControlCommand { dev_id: id, queue_id: u16::MAX, ..ControlCommand::default() }
    }

    /// # Safety
    ///
    /// The command must read and write no more than a `T`.
    unsafe fn run_with<T>(&mut self, order: u32, id: u32, memory: *mut T) -> io::Result<()> {
        let len = u16::try_from(size_of::<T>()).expect("a small structure");
        let wanted = ControlCommand { len, addr: memory.addr() as u64, ..Control::of(id) };
        // SAFETY: the caller's promise.
        unsafe { self.run(order, &wanted) }
    }

    /// # Safety
    ///
    /// What the command points to must be what it reads and writes, until this returns.
    unsafe fn run(&mut self, order: u32, wanted: &ControlCommand) -> io::Result<()> {
        let device = types::Fd(self.device.as_raw_fd());
        let entry = opcode::UringCmd80::new(device, order).cmd(wanted.bytes()).build();
        // SAFETY: what the command points to lives until it is answered, and that is waited for.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::Error::from(io::ErrorKind::Other))?;
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Some(answer) = self.ring.completion().next() {
                return match answer.result() {
                    0.. => Ok(()),
                    errno => Err(io::Error::from_raw_os_error(-errno)),
                };
            }
        }
    }
}
