//! What the interop tests of every format share: a folder, other people's programs, and comparing.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part of it; a test fails by panicking")]

use blocks::{ByteLen, ByteOffset, Extent, OpenMode, RequestClass, Storage, StorageFile, Volume};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use store::testing::History;
use store::{
    HostStorage, ImageFormat, ImageOptions, check_image_with, copy_volume, create_image, open_image_with,
};

pub const CLASS: RequestClass = RequestClass::Guest;
pub const MIB: u64 = 1 << 20;

pub fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

/// Windows at the start, over block boundaries, in the middle, and at the end.
pub fn windows(len: u64) -> Vec<Extent> {
    let mut windows = vec![extent(0, len.min(64 << 10))];
    if len > 8 * MIB {
        windows.push(extent(2 * MIB - (64 << 10), 4 * MIB));
        windows.push(extent(len / 1024 * 512, 2 * MIB));
    }
    let tail = len.min(256 << 10);
    windows.push(extent(len - tail, tail));
    windows
}

pub struct Folder {
    dir: tempfile::TempDir,
    pub storage: HostStorage,
}

impl Folder {
    pub fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let storage = HostStorage::new(dir.path()).unwrap();
        Folder { dir, storage }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn create(&self, name: &str, format: ImageFormat, len: u64) -> Arc<dyn Volume> {
        create_image(&self.storage, name, format, ByteLen::new(len)).unwrap()
    }

    pub fn file(&self, name: &str, mode: OpenMode) -> Arc<dyn StorageFile> {
        self.storage.open(name, mode).unwrap()
    }

    /// Opens what is recognised by itself.
    pub fn open(&self, name: &str) -> Arc<dyn Volume> {
        self.open_as(name, None)
    }

    fn open_as(&self, name: &str, format: Option<ImageFormat>) -> Arc<dyn Volume> {
        let options =
            ImageOptions { format, writable: true, folder: self.beside(), ..ImageOptions::default() };
        open_image_with(self.file(name, OpenMode::ReadWrite), options).unwrap()
    }

    /// The folder, as an image gets it that has data in other files.
    pub fn beside(&self) -> Option<Arc<dyn Storage>> {
        Some(Arc::new(HostStorage::beside(self.path("any")).unwrap()))
    }

    pub fn open_raw(&self, name: &str) -> Arc<dyn Volume> {
        self.open_as(name, Some(ImageFormat::Raw))
    }

    /// The same random history in an image `name` and in `disk.raw`.
    pub fn written_twice(&self, name: &str, format: ImageFormat, seed: u64, len: u64) {
        for (name, format) in [(name, format), ("disk.raw", ImageFormat::Raw)] {
            let image = self.create(name, format, len);
            let mut history = History::new(seed, windows(len));
            (0..80).for_each(|_| history.step(&*image).unwrap());
            history.check(&*image).unwrap();
            image.flush().unwrap();
        }
    }

    pub fn assert_equal_to_qemu(&self, name: &str, qemu: &str, raw: &str) {
        let (image, raw) = (self.path(name), self.path(raw));
        let compared = run_well("qemu-img", &["compare", "-f", qemu, "-F", "raw", text(&image), text(&raw)]);
        assert!(compared.contains("identical"), "{compared}");
    }

    /// How much room the file takes.
    pub fn stored(&self, name: &str) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.path(name)).unwrap().blocks() * 512
    }
}

/// A format under test, and what QEMU calls it.
pub struct Peer {
    pub format: ImageFormat,
    pub qemu: &'static str,
    /// Nothing of a file is leaked either, whoever wrote it.
    pub leaks_nothing: bool,
}

impl Peer {
    /// QEMU's check and ours find nothing.
    pub fn check_well(&self, folder: &Folder, name: &str) {
        let shown = run_well("qemu-img", &["check", "-f", self.qemu, text(&folder.path(name))]);
        assert!(shown.contains("No errors were found"), "{shown}");
        let options =
            ImageOptions { format: Some(self.format), folder: folder.beside(), ..Default::default() };
        let report = check_image_with(&folder.file(name, OpenMode::Read), options).unwrap();
        assert_eq!(report.damaged(), 0, "{:?}", report.faults());
        assert!(report.is_clean() || !self.leaks_nothing, "{:?}", report.faults());
    }

    /// What ours writes at some places of a disk of over 1 GiB, QEMU reads there.
    pub fn reads_at_places(&self, folder: &Folder, name: &str, len: u64) {
        let image = folder.create(name, self.format, len);
        let places = [(1, 0), (2, 1 << 30), (3, len / 4 * 3 / 512 * 512), (4, len - 4096)];
        for (fill, at) in places {
            image.write_at(ByteOffset::new(at), &[fill; 4096], true, CLASS).unwrap();
        }
        drop(image);
        let reads = places.map(|(fill, at)| format!("read -P {fill} {at} 4096"));
        let reads: Vec<&str> = reads.iter().flat_map(|read| ["-c", read.as_str()]).collect();
        run_well("qemu-io", &[&["-r", "-f", self.qemu][..], &reads, &[text(&folder.path(name))]].concat());
    }

    /// QEMU makes an image with these options, and both write it in turns.
    pub fn writes_in_turns_with_qemu(&self, options: &str, len: u64) {
        let folder = Folder::new();
        let (theirs, raw) = (folder.path("theirs.image"), folder.path("model.raw"));
        let len_text = len.to_string();
        run_well("qemu-img", &["create", "-q", "-f", self.qemu, "-o", options, text(&theirs), &len_text]);
        let model = folder.create("model.raw", ImageFormat::Raw, len);
        let writes = [
            (1, 0, 4096),
            (2, 2 * MIB - 4096, 8192),
            (3, 70 * MIB, 3 * MIB),
            (4, len - 512, 512),
            (5, 512, 512),
        ];
        qemu_writes(&theirs, self.qemu, &writes);
        qemu_writes(&raw, "raw", &writes);
        for round in 0..2_u64 {
            let ours = folder.open("theirs.image");
            assert_eq!(ours.len(), ByteLen::new(len), "{options}");
            assert_volumes_equal(&*ours, &*model);
            for volume in [&ours, &model] {
                volume.write_at(ByteOffset::new(4 * MIB), &[7; 4096], true, CLASS).unwrap();
                volume.write_at(ByteOffset::new(2 * MIB), &[8; 512], true, CLASS).unwrap();
                volume.write_at(ByteOffset::new((80 + round) * MIB), &vec![9; 3 << 20], true, CLASS).unwrap();
                volume.discard(extent(70 * MIB + 512, MIB), true, CLASS).unwrap();
            }
            drop(ours);
            folder.assert_equal_to_qemu("theirs.image", self.qemu, "model.raw");
            self.check_well(&folder, "theirs.image");
            let more = [(10, 6 * MIB + 512, 1024), (11, 81 * MIB + 512, 512), (12, 50 * MIB, 4 * MIB)];
            qemu_writes(&theirs, self.qemu, &more);
            qemu_writes(&raw, "raw", &more);
        }
        assert_volumes_equal(&*folder.open("theirs.image"), &*model);
        self.check_well(&folder, "theirs.image");
    }

    /// A copy takes room only for what is there, and is equal for QEMU.
    pub fn copies_sparsely(&self, len: u64, stored_max: u64) {
        let folder = Folder::new();
        folder.written_twice("disk.image", self.format, 41, len);
        let copy = folder.create("copy.image", self.format, len);
        copy_volume(&*folder.open_raw("disk.raw"), &*copy, &|_, _| true).unwrap();
        drop(copy);
        folder.assert_equal_to_qemu("copy.image", self.qemu, "disk.raw");
        assert!(folder.stored("copy.image") < stored_max, "{} bytes", folder.stored("copy.image"));
        self.check_well(&folder, "copy.image");
    }

    /// 7-Zip takes the disk out of an image, as `kind` where what it guesses is not enough.
    pub fn is_extracted_by_seven_zip(&self, folder: &Folder, name: &str, kind: &[&str]) {
        let output = format!("-o{}", text(&folder.path("out")));
        let image = folder.path(name);
        run_well("7zz", &[&["x", "-y"], kind, &[output.as_str(), text(&image)]].concat());
        let extracted = std::fs::read_dir(folder.path("out")).unwrap().next().unwrap().unwrap().path();
        assert!(std::fs::read(extracted).unwrap() == std::fs::read(folder.path("disk.raw")).unwrap());
        std::fs::remove_dir_all(folder.path("out")).unwrap();
    }
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

pub fn run_well(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let shown =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {shown}");
    shown
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes with qemu-io: pattern, offset, length.
pub fn qemu_writes(path: &Path, format: &str, writes: &[(u8, u64, u64)]) {
    let commands: Vec<String> =
        writes.iter().map(|(pattern, at, len)| format!("write -P {pattern} {at} {len}")).collect();
    let mut arguments = vec!["-f", format];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(text(path));
    run_well("qemu-io", &arguments);
}

pub fn assert_volumes_equal(ours: &dyn Volume, model: &dyn Volume) {
    assert_eq!(ours.len(), model.len());
    let mut buffers = [vec![0; MIB as usize], vec![0; MIB as usize]];
    for piece in Extent::whole(model.len()).unwrap().split(ByteLen::new(MIB)) {
        let [one, other] = &mut buffers;
        let len = piece.len().as_usize();
        ours.read_at(piece.start(), &mut one[..len], CLASS).unwrap();
        model.read_at(piece.start(), &mut other[..len], CLASS).unwrap();
        assert!(one[..len] == other[..len], "{piece}");
    }
}

/// An image under one of the libyal mount tools, unmounted when the test ends however it ends.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(program: &str, image: &Path, at: PathBuf) -> Mounted {
        std::fs::create_dir(&at).unwrap();
        run_well(program, &[text(image), text(&at)]);
        Mounted(at)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &[text(&self.0)]);
    }
}
