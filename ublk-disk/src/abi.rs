//! The driver's numbers and structures, from linux/ublk_cmd.h, as far as they are used here.

/// Commands of `/dev/ublk-control`, encoded as ioctls are: `_IOR` and `_IOWR` of 'u', a number, a [`ControlCommand`].
pub(crate) mod command {
    pub(crate) const GET_DEV_INFO: u32 = read(0x02);
    pub(crate) const ADD_DEV: u32 = both(0x04);
    pub(crate) const DEL_DEV: u32 = both(0x05);
    pub(crate) const START_DEV: u32 = both(0x06);
    pub(crate) const STOP_DEV: u32 = both(0x07);
    pub(crate) const SET_PARAMS: u32 = both(0x08);
    pub(crate) const START_USER_RECOVERY: u32 = both(0x10);
    pub(crate) const END_USER_RECOVERY: u32 = both(0x11);
    pub(crate) const GET_FEATURES: u32 = read(0x13);

    const fn read(number: u32) -> u32 {
        super::ioctl(2, number, size_of::<super::ControlCommand>())
    }

    const fn both(number: u32) -> u32 {
        super::ioctl(3, number, size_of::<super::ControlCommand>())
    }
}

/// The first request of a tag.
pub(crate) const FETCH_REQ: u32 = ioctl(3, 0x20, size_of::<IoCommand>());
/// The answer to one, and the next.
pub(crate) const COMMIT_AND_FETCH_REQ: u32 = ioctl(3, 0x21, size_of::<IoCommand>());

/// `_IOC` with the type 'u' (asm-generic/ioctl.h); x86 and Arm agree on it.
const fn ioctl(direction: u32, number: u32, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | ((b'u' as u32) << 8) | number
}

/// A server may be replaced.
pub(crate) const F_USER_RECOVERY: u64 = 1 << 3;
/// The one that takes over is asked again what the dead one was asked.
pub(crate) const F_USER_RECOVERY_REISSUE: u64 = 1 << 4;
/// Commands are encoded as ioctls.
pub(crate) const F_CMD_IOCTL_ENCODE: u64 = 1 << 6;

/// States of a device.
pub(crate) mod state {
    /// Not started, or stopped.
    pub(crate) const DEAD: u16 = 0;
    /// Its server is dead, and requests wait for another.
    pub(crate) const QUIESCED: u16 = 2;
}

/// Operations: the low byte of [`Descriptor::op_flags`].
pub(crate) mod op {
    pub(crate) const READ: u8 = 0;
    pub(crate) const WRITE: u8 = 1;
    pub(crate) const FLUSH: u8 = 2;
    pub(crate) const DISCARD: u8 = 3;
    pub(crate) const WRITE_ZEROES: u8 = 5;
}

/// On the medium when it is answered.
pub(crate) const IO_F_FUA: u32 = 1 << 13;
/// Zeroes must keep their room.
pub(crate) const IO_F_NOUNMAP: u32 = 1 << 15;

/// The most requests that a queue can have; descriptors of the next begin behind as many.
pub(crate) const QUEUE_DEPTH_MAX: u64 = 4096;

/// `struct ublksrv_ctrl_cmd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ControlCommand {
    pub(crate) dev_id: u32,
    /// -1: the command is for no queue.
    pub(crate) queue_id: u16,
    /// Of what is at `addr`.
    pub(crate) len: u16,
    pub(crate) addr: u64,
    pub(crate) data: u64,
    /// Of a path at `addr`, and what is reserved: for devices of others than root.
    pub(crate) unused: u64,
}

impl ControlCommand {
    /// As a submission has it, in its 80 bytes for commands.
    pub(crate) fn bytes(&self) -> [u8; 80] {
        let mut bytes = [0; 80];
        bytes[..4].copy_from_slice(&self.dev_id.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.queue_id.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.len.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.addr.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.data.to_ne_bytes());
        bytes
    }
}

/// `struct ublksrv_ctrl_dev_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DeviceInfo {
    pub(crate) nr_hw_queues: u16,
    pub(crate) queue_depth: u16,
    pub(crate) state: u16,
    pub(crate) pad0: u16,
    pub(crate) max_io_buf_bytes: u32,
    pub(crate) dev_id: u32,
    pub(crate) ublksrv_pid: i32,
    pub(crate) pad1: u32,
    pub(crate) flags: u64,
    /// The server's own; the driver keeps it and does not look at it.
    pub(crate) ublksrv_flags: u64,
    pub(crate) owner_uid: u32,
    pub(crate) owner_gid: u32,
    pub(crate) reserved: [u64; 2],
}

/// `struct ublksrv_io_cmd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IoCommand {
    pub(crate) q_id: u16,
    pub(crate) tag: u16,
    /// Bytes done, or an errno below zero.
    pub(crate) result: i32,
    /// Where a write's bytes are put and a read's are taken from.
    pub(crate) addr: u64,
}

impl IoCommand {
    /// As a submission has it.
    pub(crate) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&self.q_id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.tag.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.result.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.addr.to_ne_bytes());
        bytes
    }
}

/// `struct ublksrv_io_desc`: one request, in memory that is shared with the driver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptor {
    pub(crate) op_flags: u32,
    pub(crate) nr_sectors: u32,
    pub(crate) start_sector: u64,
    pub(crate) addr: u64,
}

/// What a device is: `struct ublk_params`, its first two parts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parameters {
    pub(crate) len: u32,
    pub(crate) types: u32,
    pub(crate) basic: Basic,
    pub(crate) discard: Discard,
}

/// [`Parameters::types`]: both parts are there.
pub(crate) const PARAM_TYPES: u32 = 1 | 2;

/// `struct ublk_param_basic`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Basic {
    pub(crate) attrs: u32,
    pub(crate) logical_bs_shift: u8,
    pub(crate) physical_bs_shift: u8,
    pub(crate) io_opt_shift: u8,
    pub(crate) io_min_shift: u8,
    pub(crate) max_sectors: u32,
    pub(crate) chunk_sectors: u32,
    pub(crate) dev_sectors: u64,
    pub(crate) virt_boundary_mask: u64,
}

/// [`Basic::attrs`].
pub(crate) mod attribute {
    pub(crate) const READ_ONLY: u32 = 1 << 0;
    pub(crate) const VOLATILE_CACHE: u32 = 1 << 2;
    pub(crate) const FUA: u32 = 1 << 3;
}

/// `struct ublk_param_discard`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Discard {
    pub(crate) discard_alignment: u32,
    pub(crate) discard_granularity: u32,
    pub(crate) max_discard_sectors: u32,
    pub(crate) max_write_zeroes_sectors: u32,
    pub(crate) max_discard_segments: u16,
    pub(crate) reserved0: u16,
}

const _: () = {
    assert!(size_of::<ControlCommand>() == 32 && size_of::<DeviceInfo>() == 64);
    assert!(size_of::<IoCommand>() == 16 && size_of::<Descriptor>() == 24);
    assert!(size_of::<Basic>() == 32 && size_of::<Discard>() == 20 && size_of::<Parameters>() == 64);
};
