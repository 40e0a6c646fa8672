//! QCOW2s of ours under other people's tools (QEMU's, libqcow's and 7-Zip), and theirs under ours.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod interop;

use blocks::{ByteLen, ByteOffset, Extent, OpenMode, Volume};
use interop::{CLASS, Folder, MIB, Peer, assert_volumes_equal, extent, qemu_writes, run, run_well, text};
use store::{ImageFormat, ImageOptions, check_image, open_image_with};

const FORMAT: ImageFormat = ImageFormat::Qcow2;
const QEMU: &str = "qcow2";

/// Lengths around the boundaries of clusters and L2 tables, and where other formats end.
const LENS: [u64; 10] = [
    512,
    (64 << 10) - 512,
    (64 << 10) + 512,
    512 * MIB - 512,
    512 * MIB + 512,
    (2 << 30) + 512,
    127 << 30,
    2040 << 30,
    (2040 << 30) + 512,
    4 << 40,
];

const PEER: Peer = Peer { format: FORMAT, qemu: QEMU, leaks_nothing: true };

#[test]
fn qemu_and_libqcow_see_the_exact_size_and_the_same_bytes() {
    for (seed, len) in LENS.into_iter().enumerate() {
        let folder = Folder::new();
        folder.written_twice("disk.qcow2", FORMAT, seed as u64, len);
        PEER.check_well(&folder, "disk.qcow2");
        folder.assert_equal_to_qemu("disk.qcow2", QEMU, "disk.raw");
        let info = run_well("qcowinfo", &[text(&folder.path("disk.qcow2"))]);
        assert!(info.contains(&format!("{len} bytes")), "{info}");
    }
}

#[test]
fn seven_zip_extracts_what_we_write() {
    let folder = Folder::new();
    folder.written_twice("disk.qcow2", FORMAT, 11, 64 * MIB + 512);
    PEER.is_extracted_by_seven_zip(&folder, "disk.qcow2", &[]);
}

#[test]
fn libqcow_reads_what_we_write() {
    let folder = Folder::new();
    folder.written_twice("disk.qcow2", FORMAT, 12, 64 * MIB + 512);
    let mounted = interop::Mounted::new("qcowmount", &folder.path("disk.qcow2"), folder.path("mounted"));
    run_well("cmp", &[text(&mounted.path().join("qcow1")), text(&folder.path("disk.raw"))]);
}

#[test]
fn we_read_and_go_on_writing_what_qemu_writes() {
    let options = [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,lazy_refcounts=on",
        "compat=1.1,cluster_size=512,refcount_bits=1",
        "compat=1.1,cluster_size=4096,refcount_bits=64",
        "compat=1.1,cluster_size=2M",
        "preallocation=metadata",
    ];
    for options in options {
        PEER.writes_in_turns_with_qemu(options, 96 * MIB + 512);
    }
}

#[test]
fn we_read_and_overwrite_compressed_clusters() {
    for compression in ["zlib", "zstd"] {
        let folder = Folder::new();
        folder.written_twice("disk.qcow2", FORMAT, 13, 32 * MIB + 512);
        let (raw, packed) = (folder.path("disk.raw"), folder.path("packed.qcow2"));
        let option = format!("compression_type={compression}");
        let arguments = ["convert", "-c", "-f", "raw", "-O", QEMU, "-o", &option, text(&raw), text(&packed)];
        run_well("qemu-img", &arguments);
        let ours = folder.open("packed.qcow2");
        let model = folder.open_raw("disk.raw");
        assert_volumes_equal(&*ours, &*model);
        for volume in [&ours, &model] {
            for at in [0, 512, 40 << 10, MIB + 512, 32 * MIB] {
                volume.write_at(ByteOffset::new(at), &[3; 512], false, CLASS).unwrap();
            }
            volume.discard(extent(2 * MIB, 256 << 10), false, CLASS).unwrap();
            volume.flush().unwrap();
        }
        assert_volumes_equal(&*ours, &*model);
        drop(ours);
        folder.assert_equal_to_qemu("packed.qcow2", QEMU, "disk.raw");
        PEER.check_well(&folder, "packed.qcow2");
    }
}

#[test]
fn internal_snapshots_keep_what_they_hold() {
    let folder = Folder::new();
    let len = 64 * MIB;
    folder.written_twice("disk.qcow2", FORMAT, 14, len);
    let path = folder.path("disk.qcow2");
    run_well("qemu-img", &["snapshot", "-c", "before", text(&path)]);
    let before = folder.path("before.raw");
    std::fs::copy(folder.path("disk.raw"), &before).unwrap();
    let (ours, model) = (folder.open("disk.qcow2"), folder.open_raw("disk.raw"));
    for volume in [&ours, &model] {
        volume.write_at(ByteOffset::new(512), &[3; 1024], false, CLASS).unwrap();
        volume.write_at(ByteOffset::new(2 * MIB), &vec![4; 3 << 20], false, CLASS).unwrap();
        volume.discard(extent(0, 64 << 10), false, CLASS).unwrap();
        volume.discard(extent(20 * MIB + 512, 64 << 10), false, CLASS).unwrap();
        volume.flush().unwrap();
    }
    drop(ours);
    folder.assert_equal_to_qemu("disk.qcow2", QEMU, "disk.raw");
    PEER.check_well(&folder, "disk.qcow2");
    run_well("qemu-img", &["snapshot", "-a", "before", text(&path)]);
    folder.assert_equal_to_qemu("disk.qcow2", QEMU, "before.raw");
    PEER.check_well(&folder, "disk.qcow2");
}

/// What the counts say would be taken for entries of the table, and a repair of the counts would make others of them.
#[test]
fn a_snapshots_table_on_the_counts_is_damage_that_no_repair_ends() {
    let folder = Folder::new();
    folder.written_twice("disk.qcow2", FORMAT, 15, 64 * MIB);
    run_well("qemu-img", &["snapshot", "-c", "before", text(&folder.path("disk.qcow2"))]);
    let file = folder.file("disk.qcow2", OpenMode::ReadWrite);
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_at(ByteOffset::new(at), &mut bytes).unwrap();
        u64::from_be_bytes(bytes)
    };
    let (snapshots_l1, counts) = (number(number(64)), number(number(48)));
    file.write_at(ByteOffset::new(snapshots_l1), &counts.to_be_bytes()).unwrap();
    for repair in [false, true, false] {
        let report = check_image(&file, Some(FORMAT), repair).unwrap();
        let said = report.faults().iter().any(|fault| {
            !fault.repaired && fault.what.contains("snapshot 0: an L2 table lies on another table")
        });
        assert!(said, "{:?}", report.faults());
    }
    drop(file);
    folder.assert_equal_to_qemu("disk.qcow2", QEMU, "disk.raw");
}

#[test]
fn backing_files_of_qemu_are_read_and_written_over() {
    let folder = Folder::new();
    let len = 64 * MIB;
    folder.written_twice("base.qcow2", FORMAT, 15, len);
    let overlay = folder.path("overlay.qcow2");
    let longer = (len + MIB + 512).to_string();
    let base = text(&folder.path("base.qcow2")).to_owned();
    run_well("qemu-img", &["create", "-q", "-f", QEMU, "-b", &base, "-F", QEMU, text(&overlay), &longer]);
    std::fs::File::options()
        .write(true)
        .open(folder.path("disk.raw"))
        .unwrap()
        .set_len(len + MIB + 512)
        .unwrap();
    let parents = vec![folder.file("base.qcow2", OpenMode::Read)];
    let options = ImageOptions { writable: true, parents, ..ImageOptions::default() };
    let ours = open_image_with(folder.file("overlay.qcow2", OpenMode::ReadWrite), options).unwrap();
    let model = folder.open_raw("disk.raw");
    assert_volumes_equal(&*ours, &*model);
    for volume in [&ours, &model] {
        volume.write_at(ByteOffset::new(512), &[3; 1024], false, CLASS).unwrap();
        volume.write_at(ByteOffset::new(len - 512), &[4; 1024], false, CLASS).unwrap();
        volume.discard(extent(0, 4 * MIB), false, CLASS).unwrap();
        volume.discard(extent(30 * MIB + 512, 5 * MIB), false, CLASS).unwrap();
        volume.flush().unwrap();
    }
    assert_volumes_equal(&*ours, &*model);
    drop((ours, model));
    folder.assert_equal_to_qemu("overlay.qcow2", QEMU, "disk.raw");
    PEER.check_well(&folder, "overlay.qcow2");
}

#[test]
fn qemu_goes_on_writing_what_we_wrote() {
    let folder = Folder::new();
    let len = 64 * MIB + 512;
    folder.written_twice("disk.qcow2", FORMAT, 31, len);
    let writes = [(1, 30 * MIB, 5 * MIB), (2, 512, 512), (3, len - 1024, 1024)];
    qemu_writes(&folder.path("disk.qcow2"), QEMU, &writes);
    qemu_writes(&folder.path("disk.raw"), "raw", &writes);
    assert_volumes_equal(&*folder.open("disk.qcow2"), &*folder.open_raw("disk.raw"));
    PEER.check_well(&folder, "disk.qcow2");
}

#[test]
fn a_copy_is_sparse_and_equal() {
    PEER.copies_sparsely(4 << 30, 32 * MIB);
}

/// What QEMU leaves when it is killed: counts that were never written.
#[test]
fn what_a_killed_qemu_leaves_is_read_checked_and_mended() {
    let folder = Folder::new();
    let path = folder.path("killed.qcow2");
    run_well("qemu-img", &["create", "-q", "-f", QEMU, "-o", "lazy_refcounts=on", text(&path), "64M"]);
    let commands =
        ["write -P 5 3M 1M", "flush", "abort"].map(|command| ["-c".to_owned(), command.to_owned()]);
    let mut arguments = vec!["-f".to_owned(), QEMU.to_owned()];
    arguments.extend(commands.into_iter().flatten());
    arguments.push(text(&path).to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    assert!(!run("qemu-io", &arguments).status.success(), "it aborts");
    let file = folder.file("killed.qcow2", OpenMode::ReadWrite);
    assert!(check_image(&file, Some(FORMAT), false).unwrap().damaged() > 0);
    let image = folder.open("killed.qcow2");
    let mut bytes = vec![0; 1 << 20];
    image.read_at(ByteOffset::new(3 * MIB), &mut bytes, CLASS).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 5));
    drop(image);
    let report = check_image(&file, Some(FORMAT), true).unwrap();
    assert!(report.is_clean() && report.repaired() > 0, "{:?}", report.faults());
    PEER.check_well(&folder, "killed.qcow2");
    let whole = Extent::whole(ByteLen::new(64 * MIB)).unwrap();
    assert!(!folder.open("killed.qcow2").status(whole).unwrap().is_empty());
}
