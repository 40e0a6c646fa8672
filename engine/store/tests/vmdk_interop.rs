//! VMDKs of ours under other people's tools (QEMU's, libvmdk's and 7-Zip), and theirs under ours.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod interop;

use blocks::{ByteLen, ByteOffset, OpenMode, Volume};
use interop::{CLASS, Folder, MIB, Peer, assert_volumes_equal, extent, qemu_writes, run_well, text};
use store::{ImageFormat, ImageKind, ImageOptions, check_image, export_volume, open_image_with};

const FORMAT: ImageFormat = ImageFormat::Vmdk;
const QEMU: &str = "vmdk";
const PEER: Peer = Peer { format: FORMAT, qemu: QEMU, leaks_nothing: true };
const FLAT: ImageKind = ImageKind::Image { format: FORMAT, fixed: true };

/// Lengths around the boundaries of grains and tables, and where the format ends.
const LENS: [u64; 9] = [
    512,
    (64 << 10) - 512,
    (64 << 10) + 512,
    32 * MIB - 512,
    32 * MIB + 512,
    (2 << 30) + 512,
    127 << 30,
    1 << 40,
    2047 << 30,
];

/// QEMU looks at every grain to check or compare a VMDK, so the large ones are looked at where something is.
const COMPARED_MAX: u64 = 1 << 30;

fn libvmdk_knows_the_size(folder: &Folder, name: &str, len: u64) {
    let info = run_well("vmdkinfo", &[text(&folder.path(name))]);
    assert!(info.contains(&format!("{len} bytes")), "{info}");
}

fn libvmdk_reads_the_same(folder: &Folder, name: &str) {
    let mounted = interop::Mounted::new("vmdkmount", &folder.path(name), folder.path("mounted"));
    run_well("cmp", &[text(&mounted.path().join("vmdk1")), text(&folder.path("disk.raw"))]);
}

#[test]
fn qemu_and_libvmdk_see_the_exact_size_and_the_same_bytes() {
    for (seed, len) in LENS.into_iter().enumerate() {
        let folder = Folder::new();
        if len <= COMPARED_MAX {
            folder.written_twice("disk.vmdk", FORMAT, seed as u64, len);
            folder.assert_equal_to_qemu("disk.vmdk", QEMU, "disk.raw");
            libvmdk_reads_the_same(&folder, "disk.vmdk");
            PEER.check_well(&folder, "disk.vmdk");
        } else {
            PEER.reads_at_places(&folder, "disk.vmdk", len);
            let report = check_image(&folder.file("disk.vmdk", OpenMode::Read), None, false).unwrap();
            assert!(report.faults().is_empty(), "{:?}", report.faults());
        }
        libvmdk_knows_the_size(&folder, "disk.vmdk", len);
    }
}

#[test]
fn streams_and_flat_images_are_read_by_others() {
    for (kind, len) in [
        (ImageKind::VmdkStream, 64 * MIB + 512),
        (ImageKind::VmdkStream, 512),
        (ImageKind::VmdkStream, 600 * MIB + 512),
        (FLAT, 64 * MIB + 512),
    ] {
        let folder = Folder::new();
        folder.written_twice("source.vmdk", FORMAT, 5, len);
        let raw = folder.open_raw("disk.raw");
        export_volume(&*raw, &folder.storage, "disk.vmdk", kind, 2, &|_, _| true).unwrap();
        folder.assert_equal_to_qemu("disk.vmdk", QEMU, "disk.raw");
        libvmdk_knows_the_size(&folder, "disk.vmdk", len);
        let options = ImageOptions { folder: folder.beside(), ..ImageOptions::default() };
        let ours = open_image_with(folder.file("disk.vmdk", OpenMode::Read), options).unwrap();
        assert_volumes_equal(&*ours, &*raw);
        if kind == ImageKind::VmdkStream {
            assert!(folder.stored("disk.vmdk") < folder.stored("disk.raw") / 2 + 100_000);
            libvmdk_reads_the_same(&folder, "disk.vmdk");
        } else {
            // vmdkmount takes no monolithicFlat, QEMU's neither.
            PEER.check_well(&folder, "disk.vmdk");
        }
    }
}

#[test]
fn seven_zip_extracts_what_we_write() {
    let folder = Folder::new();
    folder.written_twice("disk.vmdk", FORMAT, 11, 64 * MIB);
    // As a disk image, not as the file system that 7-Zip may see in it.
    PEER.is_extracted_by_seven_zip(&folder, "disk.vmdk", &["-tvmdk"]);
    let raw = folder.open_raw("disk.raw");
    let kind = ImageKind::VmdkStream;
    export_volume(&*raw, &folder.storage, "stream.vmdk", kind, 2, &|_, _| true).unwrap();
    PEER.is_extracted_by_seven_zip(&folder, "stream.vmdk", &["-tvmdk"]);
}

#[test]
fn we_read_and_go_on_writing_what_qemu_writes() {
    for options in [
        "subformat=monolithicSparse",
        "subformat=monolithicSparse,zeroed_grain=on",
        "subformat=monolithicFlat",
        "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat",
    ] {
        PEER.writes_in_turns_with_qemu(options, 96 * MIB + 512);
    }
}

/// Writes over the boundaries of extents of 2 GiB.
#[test]
fn disks_of_several_extents_are_one_disk() {
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let len = (5 << 30) + 512;
        let folder = Folder::new();
        let path = folder.path("theirs.vmdk");
        let option = format!("subformat={subformat}");
        run_well("qemu-img", &["create", "-q", "-f", QEMU, "-o", &option, text(&path), &len.to_string()]);
        let raw = folder.create("disk.raw", ImageFormat::Raw, len);
        let writes = [(1, (2 << 30) - MIB, 2 * MIB), (2, 0, 512), (3, len - 512, 512)];
        qemu_writes(&path, QEMU, &writes);
        qemu_writes(&folder.path("disk.raw"), "raw", &writes);
        let ours = folder.open("theirs.vmdk");
        assert_eq!(ours.len(), ByteLen::new(len));
        for volume in [&ours, &raw] {
            volume.write_at(ByteOffset::new((4 << 30) - 512), &[7; 1024], false, CLASS).unwrap();
            volume.write_at(ByteOffset::new((2 << 30) - 2 * MIB), &vec![8; 3 << 20], false, CLASS).unwrap();
            volume.discard(extent((2 << 30) - 512, 64 << 10), true, CLASS).unwrap();
        }
        drop((ours, raw));
        folder.assert_equal_to_qemu("theirs.vmdk", QEMU, "disk.raw");
        PEER.check_well(&folder, "theirs.vmdk");
    }
}

#[test]
fn we_read_what_qemu_compresses() {
    let folder = Folder::new();
    folder.written_twice("disk.vmdk", FORMAT, 13, 64 * MIB + 512);
    let (raw, packed) = (folder.path("disk.raw"), folder.path("packed.vmdk"));
    let option = "subformat=streamOptimized";
    run_well("qemu-img", &["convert", "-f", "raw", "-O", QEMU, "-o", option, text(&raw), text(&packed)]);
    let ours = open_image_with(folder.file("packed.vmdk", OpenMode::Read), ImageOptions::default()).unwrap();
    assert_volumes_equal(&*ours, &*folder.open_raw("disk.raw"));
}

#[test]
fn children_of_qemu_are_read_over_their_parents() {
    let folder = Folder::new();
    let len = 64 * MIB;
    folder.written_twice("base.vmdk", FORMAT, 15, len);
    let child = folder.path("child.vmdk");
    let base = text(&folder.path("base.vmdk")).to_owned();
    run_well("qemu-img", &["create", "-q", "-f", QEMU, "-b", &base, "-F", QEMU, text(&child)]);
    let writes = [(1, 30 * MIB, 5 * MIB), (2, 512, 512), (3, len - 1024, 1024)];
    qemu_writes(&child, QEMU, &writes);
    qemu_writes(&folder.path("disk.raw"), "raw", &writes);
    let parents = vec![folder.file("base.vmdk", OpenMode::Read)];
    let options = ImageOptions { parents, ..ImageOptions::default() };
    let ours = open_image_with(folder.file("child.vmdk", OpenMode::Read), options).unwrap();
    assert_volumes_equal(&*ours, &*folder.open_raw("disk.raw"));
}

#[test]
fn qemu_goes_on_writing_what_we_wrote() {
    let folder = Folder::new();
    let len = 64 * MIB + 512;
    folder.written_twice("disk.vmdk", FORMAT, 31, len);
    let writes = [(1, 30 * MIB, 5 * MIB), (2, 512, 512), (3, len - 1024, 1024)];
    qemu_writes(&folder.path("disk.vmdk"), QEMU, &writes);
    qemu_writes(&folder.path("disk.raw"), "raw", &writes);
    assert_volumes_equal(&*folder.open("disk.vmdk"), &*folder.open_raw("disk.raw"));
    PEER.check_well(&folder, "disk.vmdk");
}

#[test]
fn a_copy_is_sparse_and_equal() {
    PEER.copies_sparsely(4 << 30, 32 * MIB);
}
