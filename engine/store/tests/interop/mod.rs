//! What the interop tests of every format share: a folder, other people's programs, and comparing.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part of it; a test fails by panicking")]

use blocks::{ByteLen, ByteOffset, Extent, OpenMode, RequestClass, Storage, StorageFile, Volume};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use store::testing::History;
use store::{HostStorage, ImageFormat, create_image, open_image};

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
        open_image(self.file(name, OpenMode::ReadWrite), None, true).unwrap()
    }

    pub fn open_raw(&self, name: &str) -> Arc<dyn Volume> {
        open_image(self.file(name, OpenMode::ReadWrite), Some(ImageFormat::Raw), true).unwrap()
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
