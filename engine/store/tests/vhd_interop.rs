//! VHDs of ours under other people's tools (QEMU's and libvhdi's), and theirs under ours.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use blocks::{ByteLen, ByteOffset, Extent, OpenMode, RequestClass, Storage, Volume};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use store::testing::History;
use store::{
    HostStorage, ImageFormat, ImageKind, ImageOptions, copy_volume, create_child, create_image,
    export_volume, merge_image, open_image, open_image_with,
};

const CLASS: RequestClass = RequestClass::Guest;
const MIB: u64 = 1 << 20;

/// Lengths around the boundaries of blocks, of the largest geometry and of the format.
const LENS: [u64; 10] = [
    2 * MIB - 512,
    2 * MIB + 512,
    64 * MIB + 512,
    (2 << 30) - 512,
    (2 << 30) + 512,
    1_000_000_512,
    127 << 30,
    65535 * 16 * 255 * 512 - 512,
    65535 * 16 * 255 * 512 + 512,
    2040 << 30,
];

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

/// Windows at the start, over a block boundary, and at the end.
fn windows(len: u64) -> Vec<Extent> {
    let mut windows = vec![extent(0, len.min(64 << 10))];
    if len > 8 * MIB {
        windows.push(extent(2 * MIB - (64 << 10), 4 * MIB));
        windows.push(extent(len / 1024 * 512, 2 * MIB));
    }
    let tail = len.min(256 << 10);
    windows.push(extent(len - tail, tail));
    windows
}

struct Folder {
    dir: tempfile::TempDir,
    storage: HostStorage,
}

impl Folder {
    fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let storage = HostStorage::new(dir.path()).unwrap();
        Folder { dir, storage }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn create(&self, name: &str, format: ImageFormat, len: u64) -> Arc<dyn Volume> {
        create_image(&self.storage, name, format, ByteLen::new(len)).unwrap()
    }

    fn open(&self, name: &str) -> Arc<dyn Volume> {
        open_image(self.storage.open(name, OpenMode::ReadWrite).unwrap(), None, true).unwrap()
    }
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn run_well(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let shown =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {shown}");
    shown
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The disk's size in bytes, as QEMU sees it.
fn qemu_size(path: &Path) -> u64 {
    let info = run_well("qemu-img", &["info", "--output=json", "-f", "vpc", text(path)]);
    let field =
        info.lines().find(|line| line.starts_with("    \"virtual-size\"")).expect("qemu-img tells the size");
    field.trim_end_matches(',').rsplit(' ').next().unwrap().parse().unwrap()
}

fn assert_equal_to_qemu(folder: &Folder, vhd: &str, raw: &str) {
    let (vhd, raw) = (folder.path(vhd), folder.path(raw));
    let compared = run_well("qemu-img", &["compare", "-f", "vpc", "-F", "raw", text(&vhd), text(&raw)]);
    assert!(compared.contains("identical"), "{compared}");
}

/// The same random history in a VHD and in a raw file.
fn written_twice(folder: &Folder, seed: u64, len: u64) -> History {
    let mut last = None;
    for (name, format) in [("disk.vhd", ImageFormat::Vhd), ("disk.raw", ImageFormat::Raw)] {
        let image = folder.create(name, format, len);
        let mut history = History::new(seed, windows(len));
        (0..80).for_each(|_| history.step(&*image).unwrap());
        history.check(&*image).unwrap();
        last = Some(history);
    }
    last.unwrap()
}

#[test]
fn qemu_and_libvhdi_see_the_exact_size_and_the_same_bytes() {
    for (seed, len) in LENS.into_iter().enumerate() {
        let folder = Folder::new();
        written_twice(&folder, seed as u64, len);
        let vhd = folder.path("disk.vhd");
        assert_eq!(qemu_size(&vhd), len);
        assert_equal_to_qemu(&folder, "disk.vhd", "disk.raw");
        let info = run_well("vhdiinfo", &[text(&vhd)]);
        assert!(info.contains(&format!("{len} bytes")) && info.contains("Dynamic"), "{info}");
    }
}

#[test]
fn qemu_converts_what_we_write() {
    let folder = Folder::new();
    written_twice(&folder, 11, 64 * MIB + 512);
    let (vhd, out, raw) = (folder.path("disk.vhd"), folder.path("out.raw"), folder.path("disk.raw"));
    run_well("qemu-img", &["convert", "-f", "vpc", "-O", "raw", text(&vhd), text(&out)]);
    assert!(std::fs::read(out).unwrap() == std::fs::read(raw).unwrap());
}

/// A mounted VHD, unmounted when the test ends however it ends.
struct Mounted(PathBuf);

impl Mounted {
    fn new(vhd: &Path, at: PathBuf) -> Mounted {
        std::fs::create_dir(&at).unwrap();
        run_well("vhdimount", &[text(vhd), text(&at)]);
        Mounted(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &[text(&self.0)]);
    }
}

#[test]
fn libvhdi_reads_what_we_write() {
    for (seed, len) in [(21, 2 * MIB + 512), (22, 64 * MIB + 512)] {
        let folder = Folder::new();
        written_twice(&folder, seed, len);
        let mounted = Mounted::new(&folder.path("disk.vhd"), folder.path("mounted"));
        let raw = folder.path("disk.raw");
        run_well("cmp", &[text(&mounted.0.join("vhdi1")), text(&raw)]);
    }
}

/// Writes with qemu-io: pattern, offset, length.
fn qemu_writes(path: &Path, format: &str, writes: &[(u8, u64, u64)]) {
    let commands: Vec<String> =
        writes.iter().map(|(pattern, at, len)| format!("write -P {pattern} {at} {len}")).collect();
    let mut arguments = vec!["-f", format];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(text(path));
    run_well("qemu-io", &arguments);
}

#[test]
fn we_read_and_go_on_writing_what_qemu_writes() {
    for subformat in ["dynamic", "fixed"] {
        let len = 96 * MIB + 512;
        let folder = Folder::new();
        let (vhd, raw) = (folder.path("theirs.vhd"), folder.path("model.raw"));
        let options = format!("subformat={subformat},force_size=on");
        run_well("qemu-img", &["create", "-q", "-f", "vpc", "-o", &options, text(&vhd), &len.to_string()]);
        let model = folder.create("model.raw", ImageFormat::Raw, len);
        let writes = [
            (1, 0, 4096),
            (2, 2 * MIB - 4096, 8192),
            (3, 70 * MIB, 3 * MIB),
            (4, len - 512, 512),
            (5, 512, 512),
        ];
        qemu_writes(&vhd, "vpc", &writes);
        qemu_writes(&raw, "raw", &writes);
        let ours = folder.open("theirs.vhd");
        assert_eq!(ours.len(), ByteLen::new(len), "{subformat}");
        assert_volumes_equal(&*ours, &*model);
        // By turns, over the blocks of the other and into new ones.
        for (at, bytes) in
            [(4 * MIB, vec![7; 4096]), (2 * MIB, vec![8; 512]), (90 * MIB, vec![9; MIB as usize])]
        {
            for volume in [&ours, &model] {
                volume.write_at(ByteOffset::new(at), &bytes, true, CLASS).unwrap();
            }
        }
        drop(ours);
        assert_equal_to_qemu(&folder, "theirs.vhd", "model.raw");
        let more = [(10, 6 * MIB + 512, 1024), (11, 90 * MIB + 512, 512), (12, 50 * MIB, 4 * MIB)];
        qemu_writes(&vhd, "vpc", &more);
        qemu_writes(&raw, "raw", &more);
        let ours = folder.open("theirs.vhd");
        assert_volumes_equal(&*ours, &*model);
        for volume in [&ours, &model] {
            volume.write_at(ByteOffset::new(20 * MIB), &vec![13; 3 * MIB as usize], true, CLASS).unwrap();
            volume.discard(extent(50 * MIB, 2 * MIB), true, CLASS).unwrap();
        }
        assert_volumes_equal(&*ours, &*model);
        assert_equal_to_qemu(&folder, "theirs.vhd", "model.raw");
    }
}

fn assert_volumes_equal(ours: &dyn Volume, model: &dyn Volume) {
    let mut buffers = [vec![0; MIB as usize], vec![0; MIB as usize]];
    for piece in Extent::whole(model.len()).unwrap().split(ByteLen::new(MIB)) {
        let [one, other] = &mut buffers;
        let len = piece.len().as_usize();
        ours.read_at(piece.start(), &mut one[..len], CLASS).unwrap();
        model.read_at(piece.start(), &mut other[..len], CLASS).unwrap();
        assert!(one[..len] == other[..len], "{piece}");
    }
}

#[test]
fn qemu_goes_on_writing_what_we_wrote() {
    let folder = Folder::new();
    let len = 64 * MIB + 512;
    written_twice(&folder, 31, len);
    let (vhd, raw) = (folder.path("disk.vhd"), folder.path("disk.raw"));
    let writes = [(1, 30 * MIB, 5 * MIB), (2, 512, 512), (3, len - 1024, 1024)];
    qemu_writes(&vhd, "vpc", &writes);
    qemu_writes(&raw, "raw", &writes);
    assert_volumes_equal(&*folder.open("disk.vhd"), &*folder.open("disk.raw"));
    assert_equal_to_qemu(&folder, "disk.vhd", "disk.raw");
    let info = run_well("vhdiinfo", &[text(&vhd)]);
    assert!(info.contains(&format!("{len} bytes")), "{info}");
}

#[test]
fn a_copy_is_sparse_and_equal() {
    let folder = Folder::new();
    let len = 4 << 30;
    written_twice(&folder, 41, len);
    let copy = folder.create("copy.vhd", ImageFormat::Vhd, len);
    copy_volume(&*folder.open("disk.raw"), &*copy, &|_, _| true).unwrap();
    assert_equal_to_qemu(&folder, "copy.vhd", "disk.raw");
    let back = folder.create("back.raw", ImageFormat::Raw, len);
    copy_volume(&*copy, &*back, &|_, _| true).unwrap();
    assert_equal_to_qemu(&folder, "copy.vhd", "back.raw");
    use std::os::unix::fs::MetadataExt;
    let stored = |name: &str| std::fs::metadata(folder.path(name)).unwrap().blocks() * 512;
    assert!(stored("copy.vhd") < 32 * MIB, "{} bytes", stored("copy.vhd"));
    assert!(stored("back.raw") < 32 * MIB, "{} bytes", stored("back.raw"));
}

#[test]
fn geometry_is_what_qemu_computes() {
    for asked in
        [MIB, 10 * MIB, 100 * MIB, 300 * MIB, 504 * MIB, 600 * MIB, 3 << 30, 31 << 30, 60 << 30, 126 << 30]
    {
        let folder = Folder::new();
        let theirs = folder.path("theirs.vhd");
        run_well("qemu-img", &["create", "-q", "-f", "vpc", text(&theirs), &asked.to_string()]);
        let len = qemu_size(&theirs);
        folder.create("ours.vhd", ImageFormat::Vhd, len);
        let geometry = |name: &str| std::fs::read(folder.path(name)).unwrap()[56..60].to_vec();
        assert_eq!(geometry("ours.vhd"), geometry("theirs.vhd"), "{len} bytes");
    }
}

#[test]
fn a_fixed_vhd_is_the_same_disk_for_others() {
    let folder = Folder::new();
    let len = 20 * MIB + 512;
    written_twice(&folder, 51, len);
    let raw = open_image(folder.storage.open("disk.raw", OpenMode::Read).unwrap(), None, false).unwrap();
    let kind = ImageKind::Image { format: ImageFormat::Vhd, fixed: true };
    export_volume(&*raw, &folder.storage, "fixed.vhd", kind, 2, &|_, _| true).unwrap();
    assert_eq!(qemu_size(&folder.path("fixed.vhd")), len);
    assert_equal_to_qemu(&folder, "fixed.vhd", "disk.raw");
    let info = run_well("vhdiinfo", &[text(&folder.path("fixed.vhd"))]);
    assert!(info.contains(&format!("{len} bytes")) && info.contains("Fixed"), "{info}");
}

/// libvhdi finds the parent by the name that the child says; QEMU reads no children.
#[test]
fn libvhdi_reads_our_children_and_qemu_what_they_are_merged_into() {
    let folder = Folder::new();
    let mut history = written_twice(&folder, 52, 20 * MIB);
    let parent = folder.storage.open("disk.vhd", OpenMode::Read).unwrap();
    create_child(&folder.storage, "child.vhd", &*parent).unwrap();
    let child = folder.storage.open("child.vhd", OpenMode::ReadWrite).unwrap();
    let options = ImageOptions { writable: true, parents: vec![parent], ..ImageOptions::default() };
    let ours = open_image_with(child, options).unwrap();
    let raw = folder.open("disk.raw");
    let mut same = history.clone();
    (0..30).for_each(|_| history.step(&*ours).unwrap());
    (0..30).for_each(|_| same.step(&*raw).unwrap());
    history.check(&*ours).unwrap();
    drop((ours, raw));
    let info = run_well("vhdiinfo", &[text(&folder.path("child.vhd"))]);
    assert!(info.contains("Differential") && info.contains("disk.vhd"), "{info}");
    {
        let mounted = Mounted::new(&folder.path("child.vhd"), folder.path("mounted"));
        let mut names: Vec<_> =
            std::fs::read_dir(&mounted.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        run_well("cmp", &[text(names.last().unwrap()), text(&folder.path("disk.raw"))]);
    }
    let [child, parent] =
        ["child.vhd", "disk.vhd"].map(|name| folder.storage.open(name, OpenMode::ReadWrite).unwrap());
    merge_image(child, parent, &|_, _| true).unwrap();
    assert_equal_to_qemu(&folder, "disk.vhd", "disk.raw");
}

#[test]
fn a_parent_that_was_written_since_is_refused_and_its_time_can_be_given_back() {
    let folder = Folder::new();
    written_twice(&folder, 53, 4 * MIB);
    let parent = folder.path("disk.vhd");
    let file = folder.storage.open("disk.vhd", OpenMode::Read).unwrap();
    create_child(&folder.storage, "child.vhd", &*file).unwrap();
    let open = || {
        let parents = vec![folder.storage.open("disk.vhd", OpenMode::Read).unwrap()];
        let child = folder.storage.open("child.vhd", OpenMode::Read).unwrap();
        open_image_with(child, ImageOptions { parents, ..ImageOptions::default() }).map(drop)
    };
    open().unwrap();
    let then = std::fs::metadata(&parent).unwrap().modified().unwrap();
    let set = |time| std::fs::File::options().write(true).open(&parent).unwrap().set_modified(time).unwrap();
    set(then + std::time::Duration::from_secs(90));
    let error = open().unwrap_err();
    assert!(error.to_string().contains("disk.vhd") && error.to_string().contains("since"), "{error}");
    set(then);
    open().unwrap();
}
