//! Image files of each format as something to fuzz: what is done with one, and what must hold. Played by fuzz/, which
//! changes inputs by what they reach, and by tests/fuzz.rs, for what was found once.

mod input;
mod memory;
mod mend;
mod target;

pub use input::Input;
pub use memory::MemoryStorage;
pub use target::Target;

use store::ImageFormat;

/// A target for each format that has an inside.
pub static TARGETS: [Target; 4] = [
    Target { name: "vhd", format: ImageFormat::Vhd, files: &["image", "parent"], mend: mend::vhd },
    Target { name: "vhdx", format: ImageFormat::Vhdx, files: &["image", "parent"], mend: mend::vhdx },
    Target {
        name: "vmdk",
        format: ImageFormat::Vmdk,
        // Extents have the names that ours and QEMU's give them.
        files: &["image", "image-flat.vmdk", "image-s001.vmdk", "image-f001.vmdk", "parent"],
        mend: mend::nothing,
    },
    Target { name: "qcow2", format: ImageFormat::Qcow2, files: &["image", "parent"], mend: mend::nothing },
];
