//! The command that writes down what a machine is.

use clap::Args;

/// Which machine, for whom, and where its disks are to be had.
#[derive(Debug, Args)]
pub struct DefinitionArguments {
    /// A machine's name or identity, or a session.
    pub of: String,
    /// For whom: libvirt's domain XML, VMware's .vmx, an OVF descriptor, or QEMU's command line.
    #[arg(long = "as", value_name = "FORM", value_parser = ["libvirt", "vmx", "ovf", "qemu"])]
    pub form: String,
    /// A checkpoint's number or name, or a time; the newest by default. Not of a session.
    #[arg(long, value_name = "CHECKPOINT|TIME")]
    pub at: Option<String>,
    /// The file of a disk, once for each disk in their order. What it is follows from its ending.
    #[arg(long = "disk-file", value_name = "PATH[:FORMAT]")]
    pub disk_files: Vec<String>,
    /// Of an OVF descriptor [default: 1].
    #[arg(long, value_name = "N", value_parser = ["1", "2"])]
    pub ovf_version: Option<String>,
    /// What runs the guest: KVM where it can be opened and else QEMU's translator, or one of them.
    #[arg(long, value_name = "HOW", value_parser = ["auto", "kvm", "tcg"], default_value = "auto")]
    pub accel: String,
    /// The UEFI firmware that QEMU loads [default: OVMF or AAVMF, where Debian puts it].
    #[arg(long, value_name = "FILE")]
    pub firmware_code: Option<String>,
    /// A copy of the firmware's variables for QEMU to keep; forgotten at the end by default.
    #[arg(long, value_name = "FILE")]
    pub firmware_vars: Option<String>,
}
