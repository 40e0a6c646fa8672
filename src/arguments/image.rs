//! The commands on image files.

use super::formats;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use store::ImageKind;

/// What can be done with image files.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Say what an image file is.
    #[command(after_help = "\
Examples:
  understudy image info disk.vhd
  understudy image info web1.ova")]
    Info {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
    },
    /// Look at every structure of an image and name what is wrong; exit status 1 if anything is.
    #[command(after_help = "\
Examples:
  understudy image check disk.qcow2
  understudy image check disk.qcow2 --repair
  understudy image check web1.ova

Of an OVA the files are compared with its manifest, and every disk is looked at.
Repairing puts right what has one answer only: counts that follow from the tables, room that
nothing uses, a copy of a structure whose twin is good, a log that waits to be replayed. The rest
is named and left as it is.")]
    Check {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
        /// Put right what needs no guess.
        #[arg(long)]
        repair: bool,
    },
    /// Write an image's disk into a new file.
    #[command(after_help = "\
Examples:
  understudy image convert disk.vhd disk.qcow2 --to qcow2
  understudy image convert overlay.qcow2 disk.raw --to raw --parent base.qcow2
  understudy image convert disk.raw disk.vmdk --to vmdk-stream
  understudy image convert web1.ova disk.vhd --disk 0 --to vhd

Holes and zeroes take no room in the new file.")]
    Convert {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
        /// The new file.
        output: PathBuf,
        /// What the new file is to be. vmdk-flat is two files, vmdk-stream is compressed.
        #[arg(long, value_parser = kinds())]
        to: String,
        /// Reads and writes at a time [default: four times the processors, 4 to 16; as many with --no-sync].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
        jobs: Option<u16>,
        /// Do not wait until the image is on the medium: quicker, and gone if the power fails soon after.
        #[arg(long)]
        no_sync: bool,
    },
    /// Compare the disks of two images; exit status 1 if they differ.
    #[command(after_help = "Example:\n  understudy image compare disk.vhd disk.raw")]
    Compare {
        /// One image.
        #[command(flatten)]
        image: ImageArguments,
        /// The other image.
        other: PathBuf,
        /// What the other file is; found out by default.
        #[arg(long, value_parser = formats())]
        other_format: Option<String>,
    },
    /// List which parts of an image's disk hold data.
    #[command(after_help = "Example:\n  understudy image map disk.vhd")]
    Map {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
    },
    /// Make the disk of an image longer, or shorter where nothing but zeroes is cut off.
    #[command(after_help = "\
Example:
  understudy image resize disk.qcow2 --size 200GiB

Nobody else may have the image open. raw, vhd, qcow2 and flat vmdk grow and shrink, vhdx and
sparse vmdk grow; qcow2 and vhdx as far as their tables have room. What stands on another file,
is compressed or has several extents is converted into a new image. An interrupted resize is
repeated.")]
    Resize {
        /// The image.
        #[command(flatten)]
        image: ImageArguments,
        /// The disk's new size, a multiple of 512 bytes.
        #[arg(long)]
        size: bytesize::ByteSize,
    },
    /// Write what a child stores into its parent, which then is the disk that the child was (vhd).
    #[command(after_help = "\
Example:
  understudy image merge child.vhd --into base.vhd

What was interrupted is repeated. The child is left as it is, and can be removed afterwards.")]
    Merge {
        /// The child.
        child: PathBuf,
        /// Its parent.
        #[arg(long, value_name = "FILE")]
        into: PathBuf,
    },
    /// Make an empty image, or a child of one.
    #[command(after_help = "\
Examples:
  understudy image create disk.vhdx --format vhdx --size 100GiB
  understudy image create disk.vhdx --format vhdx --size 8TiB --sector 4096 --fixed
  understudy image create child.vhd --format vhd --parent base.vhd

A child (vhd) stores what is written from now on; the rest shows from the parent, which lies in
the same folder and must not be written any more.")]
    Create {
        /// The new file.
        output: PathBuf,
        /// What it is to be.
        #[arg(long, value_parser = formats())]
        format: String,
        /// The disk's size, a multiple of 512 bytes.
        #[arg(long, required_unless_present = "parent")]
        size: Option<bytesize::ByteSize>,
        /// Make a child of this image (vhd), which then has its size.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["size", "fixed", "sector"])]
        parent: Option<PathBuf>,
        /// Every block has its place from the start (vhd, vhdx, vmdk).
        #[arg(long)]
        fixed: bool,
        /// The sectors by which a guest addresses the disk (4096: vhdx).
        #[arg(long, value_name = "BYTES", value_parser = ["512", "4096"], default_value = "512")]
        sector: String,
    },
}

/// Which image file, and how it is opened.
#[derive(Debug, Args)]
pub struct ImageArguments {
    /// An image file of any format, a block device, an OVA, an OVF descriptor or its folder.
    pub file: PathBuf,
    /// Which disk of an OVA or OVF descriptor, where there are several.
    #[arg(long, value_name = "N")]
    pub disk: Option<u16>,
    /// What the file is; found out by default.
    #[arg(long, value_parser = formats())]
    pub format: Option<String>,
    /// A file that the image may stand on. What the image itself names is never followed. May be repeated.
    #[arg(long = "parent", value_name = "FILE")]
    pub parents: Vec<PathBuf>,
}

/// The names of what an image can be made as.
pub(super) fn kinds() -> PossibleValuesParser {
    PossibleValuesParser::new(ImageKind::ALL.map(ImageKind::name))
}

/// What can be exported: the same, and whole machines.
pub(super) fn export_kinds() -> PossibleValuesParser {
    PossibleValuesParser::new(ImageKind::ALL.map(ImageKind::name).into_iter().chain(["ova"]))
}
