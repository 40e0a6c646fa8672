//! What a stand-in is made of, in the words of those who run it: a machine's definition, and packages that carry one
//! with its disks. And running one: [`Hypervisor`].
//!
//! A [`Definition`] is written as libvirt's domain XML, as a `.vmx`, as OVF or as QEMU's command line ([`Form`]). A
//! [`Package`] is an OVA or a folder with an OVF descriptor, read with suspicion; [`PackageWriter`] makes an OVA in one
//! pass over each disk. No journal, no image format, no network: files come as [`blocks::StorageFile`].

mod definition;
mod disk_format;
mod form;
#[doc(hidden)]
pub mod fuzzing;
mod libvirt;
mod mac;
mod nbd_address;
mod network;
mod ovf;
mod package;
mod qemu;
mod qmp;
mod shell;
mod source;
mod stand_in;
mod vmx;
mod xml;

pub use definition::{Architecture, Definition, Disk, Firmware};
pub use disk_format::DiskFormat;
pub use form::{Acceleration, Document, Form, FormOptions};
pub use mac::Mac;
pub use nbd_address::{NbdAddress, NbdPlace};
pub use network::{Forward, Network, UserNetwork};
pub use ovf::{DescribedDisk, Descriptor, OvfVersion};
pub use package::{DigestAlgorithm, Package, PackageWriter, Verdict, looks_like_archive};
pub use source::Source;
pub use stand_in::{
    FakeHypervisor, GuestState, HostRoom, Hypervisor, Kernel, Places, Probe, ProbePlace, Qemu, StandIn, fit,
};
