//! VHDXs of ours under other people's tools (QEMU's, libvhdi's and 7-Zip), and theirs under ours.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod interop;

use blocks::{BlockShift, ByteLen, ByteOffset, OpenMode, RequestClass, Volume};
use interop::{CLASS, Folder, MIB, Peer, run_well, text};
use store::{ImageFormat, NewImage, check_image, create_image_with};

const FORMAT: ImageFormat = ImageFormat::Vhdx;
const QEMU: &str = "vhdx";

/// Lengths around the boundaries of blocks, where other formats end, and where our block size changes.
const LENS: [u64; 10] = [
    512,
    8 * MIB - 512,
    8 * MIB + 512,
    (2 << 30) + 512,
    (4 << 30) + 512,
    127 << 30,
    (2040 << 30) + 512,
    4 << 40,
    (4 << 40) + 512,
    64 << 40,
];

const PEER: Peer = Peer { format: FORMAT, qemu: QEMU, leaks_nothing: false };

/// QEMU reads a VHDX from end to end to compare it, so the large ones are looked at where something is.
const COMPARED_MAX: u64 = 3 << 30;

#[test]
fn qemu_and_libvhdi_see_the_exact_size_and_the_same_bytes() {
    for (seed, len) in LENS.into_iter().enumerate() {
        let folder = Folder::new();
        let path = folder.path("disk.vhdx");
        if len <= COMPARED_MAX {
            folder.written_twice("disk.vhdx", FORMAT, seed as u64, len);
            folder.assert_equal_to_qemu("disk.vhdx", QEMU, "disk.raw");
        } else {
            PEER.reads_at_places(&folder, "disk.vhdx", len);
        }
        PEER.check_well(&folder, "disk.vhdx");
        let report = check_image(&folder.file("disk.vhdx", OpenMode::Read), None, false).unwrap();
        assert!(report.faults().is_empty(), "{:?}", report.faults());
        let info = run_well("vhdiinfo", &[text(&path)]);
        assert!(info.contains(&format!("{len} bytes")), "{info}");
    }
}

#[test]
fn fixed_disks_and_large_sectors_are_read_by_others() {
    for (fixed, logical_sector) in [(true, BlockShift::SECTOR), (false, BlockShift::KIB_4)] {
        let folder = Folder::new();
        let len = ByteLen::new(40 * MIB + 4096);
        let new = NewImage { fixed, logical_sector, ..NewImage::new(FORMAT, len) };
        let image = create_image_with(&folder.storage, "disk.vhdx", new).unwrap();
        let model = folder.create("disk.raw", ImageFormat::Raw, len.get());
        for volume in [&image, &model] {
            volume.write_at(ByteOffset::new(40 * MIB), &[5; 4096], false, CLASS).unwrap();
            volume.write_at(ByteOffset::new(7 * MIB), &vec![6; 3 << 20], true, CLASS).unwrap();
        }
        drop((image, model));
        // QEMU takes sectors of 512 bytes only; libvhdi takes both.
        if logical_sector == BlockShift::SECTOR {
            folder.assert_equal_to_qemu("disk.vhdx", QEMU, "disk.raw");
            PEER.check_well(&folder, "disk.vhdx");
        }
        let mounted = interop::Mounted::new("vhdimount", &folder.path("disk.vhdx"), folder.path("mounted"));
        run_well("cmp", &[text(&mounted.path().join("vhdi1")), text(&folder.path("disk.raw"))]);
    }
}

#[test]
fn seven_zip_and_libvhdi_read_what_we_write() {
    let folder = Folder::new();
    folder.written_twice("disk.vhdx", FORMAT, 11, 64 * MIB);
    // As a disk image, not as the file system that 7-Zip may see in it.
    PEER.is_extracted_by_seven_zip(&folder, "disk.vhdx", &["-tvhdx"]);
    let mounted = interop::Mounted::new("vhdimount", &folder.path("disk.vhdx"), folder.path("mounted"));
    run_well("cmp", &[text(&mounted.path().join("vhdi1")), text(&folder.path("disk.raw"))]);
}

#[test]
fn we_read_and_go_on_writing_what_qemu_writes() {
    for options in [
        "subformat=dynamic",
        "subformat=fixed",
        "subformat=dynamic,block_size=1M",
        "subformat=dynamic,log_size=4M,block_state_zero=off",
    ] {
        // QEMU rounds to megabytes where it makes a VHDX.
        PEER.writes_in_turns_with_qemu(options, 96 * MIB);
    }
}

/// A QEMU that is killed leaves a log; we replay it, and QEMU replays ours.
#[test]
fn logs_are_replayed_across_programs() {
    let folder = Folder::new();
    let path = folder.path("theirs.vhdx");
    run_well("qemu-img", &["create", "-q", "-f", QEMU, text(&path), "64M"]);
    let script = format!(
        "qemu-io -f vhdx -c 'write -P 5 3M 1M' -c 'write -P 6 30M 1M' -c flush -c abort {} >/dev/null 2>&1; true",
        text(&path)
    );
    run_well("sh", &["-c", &script]);
    let check = |image: &dyn Volume| {
        let mut bytes = vec![0; 1 << 20];
        for (at, fill) in [(3, 5), (30, 6)] {
            image.read_at(ByteOffset::new(at * MIB), &mut bytes, RequestClass::Guest).unwrap();
            assert!(bytes.iter().all(|byte| *byte == fill), "{at}");
        }
    };
    let read = folder.file("theirs.vhdx", OpenMode::Read);
    check(&*store::open_image(read, None, false).unwrap());
    check(&*folder.open("theirs.vhdx"));
    PEER.check_well(&folder, "theirs.vhdx");
    // Ours, left open as by a process that dies: the file is copied while its log is in use.
    let image = folder.create("ours.vhdx", FORMAT, 64 * MIB);
    image.write_at(ByteOffset::new(3 * MIB), &vec![5; 1 << 20], false, CLASS).unwrap();
    image.write_at(ByteOffset::new(30 * MIB), &vec![6; 1 << 20], false, CLASS).unwrap();
    std::fs::copy(folder.path("ours.vhdx"), folder.path("left.vhdx")).unwrap();
    drop(image);
    let left = folder.path("left.vhdx");
    let refused = interop::run("qemu-io", &["-r", "-f", QEMU, "-c", "read 0 512", text(&left)]);
    assert!(!refused.status.success(), "QEMU sees that the log is in use");
    let reads = ["-c", "read -P 5 3M 1M", "-c", "read -P 6 30M 1M"];
    run_well("qemu-io", &[&["-f", QEMU][..], &reads, &[text(&left)]].concat());
    PEER.check_well(&folder, "left.vhdx");
}

#[test]
fn a_copy_is_sparse_and_equal() {
    PEER.copies_sparsely(1 << 30, 40 * MIB);
}
