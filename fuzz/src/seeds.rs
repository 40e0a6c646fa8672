//! What fuzzing starts from, made when it starts: small images by our own code, and by QEMU's for what ours does not make.

use crate::images::{Input, MemoryStorage, Target};
use blocks::{BlockShift, ByteLen, ByteOffset, Extent, OpenMode, RequestClass, Storage, StorageFile, Volume};
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use store::{
    ImageFormat, ImageKind, ImageOptions, NewImage, create_child, create_image_with, export_volume,
    open_image_with,
};

const CLASS: RequestClass = RequestClass::Background;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Does a little of everything.
const SCRIPT: [u8; 16] = [0, 0, 1, 0x40, 0, 0xa0, 8, 0, 1, 0x0a, 4, 6, 0, 4, 0, 0];

/// The inputs that fuzzing of a format starts from, by name.
pub fn seeds(target: &Target, work: &Path) -> Vec<(String, Vec<u8>)> {
    let mut made = ours(target);
    made.extend(qemu(target, work));
    let encoded = |(name, storage): (String, MemoryStorage)| {
        [(1_u8, 0), (2, 1), (3, 2)].map(|(number, kind)| {
            let mut script = SCRIPT;
            script[15] = kind;
            script[14] = number - 1;
            (format!("{name}-{number}"), Input::of(&storage, target.files, script).encode())
        })
    };
    made.into_iter().flat_map(encoded).collect()
}

fn write(volume: &dyn Volume, at: u64, len: usize) {
    volume.write_at(ByteOffset::new(at), &vec![7; len], false, CLASS).expect("a disk in memory");
}

fn made(target: &Target, new: NewImage, fill: impl Fn(&dyn Volume)) -> MemoryStorage {
    let storage = MemoryStorage::default();
    let volume = create_image_with(&storage, target.files[0], new).expect("an image in memory");
    fill(&*volume);
    volume.flush().expect("a file in memory");
    drop(volume);
    storage
}

fn ours(target: &Target) -> Vec<(String, MemoryStorage)> {
    let new = |kib: u64| NewImage::new(target.format, ByteLen::new(kib * KIB));
    let fixed = |kib: u64| NewImage { fixed: true, ..new(kib) };
    let some = |volume: &dyn Volume| {
        let unit = volume.alignment().bytes() as usize;
        write(volume, 4096, unit);
        write(volume, volume.len().get() - 4096, unit);
    };
    let mut all = vec![
        ("empty".to_owned(), made(target, new(5 * KIB), |_| {})),
        ("written".to_owned(), made(target, new(5 * KIB), some)),
    ];
    match target.format {
        ImageFormat::Vhd => {
            all.push(("fixed".to_owned(), made(target, fixed(64), some)));
            all.push(("child".to_owned(), vhd_child(target)));
        }
        ImageFormat::Vhdx => {
            all.push(("fixed".to_owned(), made(target, fixed(4 * KIB), some)));
            let large = NewImage { logical_sector: BlockShift::KIB_4, ..new(5 * KIB) };
            all.push(("4k-sectors".to_owned(), made(target, large, some)));
            all.push(("log-in-use".to_owned(), vhdx_with_a_log(target, new(9 * KIB))));
            all.push(("child".to_owned(), vhdx_child(target, new(64 * KIB))));
        }
        ImageFormat::Vmdk => {
            all.push(("flat".to_owned(), made(target, fixed(64), some)));
            all.push(("stream".to_owned(), vmdk_stream(target)));
        }
        ImageFormat::Qcow2 | ImageFormat::Raw => {}
    }
    all
}

fn vhd_child(target: &Target) -> MemoryStorage {
    let storage = MemoryStorage::default();
    let new = NewImage::new(ImageFormat::Vhd, ByteLen::new(5 * MIB));
    write(&*create_image_with(&storage, target.files[1], new).expect("an image in memory"), 0, 1024);
    let parent = storage.file(target.files[1]);
    create_child(&storage, target.files[0], &*parent).expect("a child in memory");
    let options = ImageOptions { writable: true, parents: vec![parent], ..ImageOptions::default() };
    let child = open_image_with(storage.file(target.files[0]), options).expect("a child in memory");
    write(&*child, 4 * MIB, 512);
    drop(child);
    storage
}

/// As a power cut leaves it: what the log says is not in the table.
fn vhdx_with_a_log(target: &Target, new: NewImage) -> MemoryStorage {
    let storage = MemoryStorage::default();
    let volume = create_image_with(&storage, target.files[0], new).expect("an image in memory");
    write(&*volume, 0, 512);
    let cut = storage.clone();
    drop(volume);
    cut.file(target.files[0]).write_at(ByteOffset::new(3 * MIB), &[0; 8]).expect("a file in memory");
    cut
}

/// Nobody makes these here, so a dynamic one is made into one by hand. The fields of the metadata are those of
/// docs/formats/images.md and of the specification, section 2.6.
fn vhdx_child(target: &Target, new: NewImage) -> MemoryStorage {
    let storage = made(target, new, |volume| write(volume, 0, 2048));
    drop(create_image_with(&storage, target.files[1], new).expect("an image in memory"));
    let parent = storage.file(target.files[1]);
    let mut id = [0; 16];
    parent.read_at(ByteOffset::new((64 << 10) + 32), &mut id).expect("a header");
    let file = storage.file(target.files[0]);
    let patch = |at: u64, bytes: &[u8]| file.write_at(ByteOffset::new(at), bytes).expect("a file in memory");
    let end = file.len().expect("a file in memory").get();
    file.set_len(ByteLen::new(end + MIB)).expect("a file in memory");
    patch(end, &[0b101]);
    patch(3 * MIB, &((4 * MIB) | 7).to_le_bytes());
    patch(3 * MIB + 512 * 8, &(end | 6).to_le_bytes());
    patch(2 * MIB + (64 << 10) + 4, &2_u32.to_le_bytes());
    let locator = locator(&braced(id), "..\\parent");
    patch(2 * MIB + (128 << 10), &locator);
    let entry = 2 * MIB + 32 + 5 * 32;
    const LOCATOR_ID: [u8; 16] =
        [0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c];
    patch(entry, &LOCATOR_ID);
    patch(entry + 16, &(128_u32 << 10).to_le_bytes());
    patch(entry + 20, &(locator.len() as u32).to_le_bytes());
    patch(entry + 24, &4_u32.to_le_bytes());
    patch(2 * MIB + 10, &6_u16.to_le_bytes());
    storage
}

fn braced(id: [u8; 16]) -> String {
    let hex = |order: &[usize]| order.iter().map(|at| format!("{:02x}", id[*at])).collect::<String>();
    let (a, b, c) = (hex(&[3, 2, 1, 0]), hex(&[5, 4]), hex(&[7, 6]));
    format!("{{{a}-{b}-{c}-{}-{}}}", hex(&[8, 9]), hex(&[10, 11, 12, 13, 14, 15]))
}

fn locator(linkage: &str, path: &str) -> Vec<u8> {
    const KIND: [u8; 16] =
        [0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13];
    let mut bytes = vec![0; 20 + 2 * 12];
    bytes[..16].copy_from_slice(&KIND);
    bytes[18] = 2;
    for (index, (key, value)) in
        [("parent_linkage", linkage), ("relative_path", path)].into_iter().enumerate()
    {
        let entry = 20 + index * 12;
        for (field, text) in [key, value].into_iter().enumerate() {
            let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let at = (bytes.len() as u32).to_le_bytes();
            bytes[entry + field * 4..entry + field * 4 + 4].copy_from_slice(&at);
            let len = (text.len() as u16).to_le_bytes();
            bytes[entry + 8 + field * 2..entry + 10 + field * 2].copy_from_slice(&len);
            bytes.extend(text);
        }
    }
    bytes
}

fn vmdk_stream(target: &Target) -> MemoryStorage {
    let storage = MemoryStorage::default();
    let from = create_image_with(&storage, "from", NewImage::new(ImageFormat::Raw, ByteLen::new(MIB)));
    let from = from.expect("an image in memory");
    write(&*from, 4096, 1024);
    write(&*from, 512 * KIB, 512);
    let exported = export_volume(&*from, &storage, target.files[0], ImageKind::VmdkStream, 1, &|_, _| true);
    exported.expect("an image in memory");
    storage
}

/// How QEMU makes what ours does not: the arguments, with the format's names for the files.
fn commands(format: ImageFormat) -> &'static [(&'static str, &'static [&'static str])] {
    match format {
        ImageFormat::Vhd => &[("qemu-dynamic", &["create -q -f vpc image 5M", "write vpc image 0 1k"])],
        ImageFormat::Vhdx => &[(
            "qemu-1m-blocks",
            &["create -q -f vhdx -o block_size=1M,log_size=1M image 5M", "write vhdx image 0 1k"],
        )],
        ImageFormat::Qcow2 => &[
            (
                "qemu-v2",
                &["create -q -f qcow2 -o compat=0.10,cluster_size=4k image 1M", "write qcow2 image 8k 1k"],
            ),
            (
                "qemu-small-clusters",
                &["create -q -f qcow2 -o cluster_size=512 image 64k", "write qcow2 image 1k 2k"],
            ),
            (
                "qemu-narrow-counts",
                &[
                    "create -q -f qcow2 -o cluster_size=4k,refcount_bits=1 image 1M",
                    "write qcow2 image 8k 1k",
                ],
            ),
            (
                "qemu-wide-counts",
                &[
                    "create -q -f qcow2 -o cluster_size=4k,refcount_bits=64 image 1M",
                    "write qcow2 image 8k 1k",
                ],
            ),
            (
                "qemu-compressed",
                &[
                    "create -q -f raw raw 1M",
                    "write raw raw 64k 64k",
                    "convert -q -c -f raw -O qcow2 -o cluster_size=16k raw image",
                ],
            ),
            (
                "qemu-snapshot",
                &[
                    "create -q -f qcow2 -o cluster_size=4k image 1M",
                    "write qcow2 image 8k 1k",
                    "snapshot -q -c one image",
                    "write qcow2 image 8k 1k",
                ],
            ),
            (
                "qemu-zero-clusters",
                &[
                    "create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on image 1M",
                    "write qcow2 image 8k 1k",
                    "zero qcow2 image 8k 8k",
                ],
            ),
            (
                "qemu-child",
                &[
                    "create -q -f qcow2 -o cluster_size=4k parent 256k",
                    "write qcow2 parent 0 1k",
                    "create -q -f qcow2 -o cluster_size=4k -F qcow2 -b parent image 1M",
                    "write qcow2 image 4k 1k",
                ],
            ),
            (
                "qemu-child-of-raw",
                &[
                    "create -q -f raw parent 100k",
                    "write raw parent 0 2k",
                    "create -q -f qcow2 -F raw -b parent image 1M",
                    "zero qcow2 image 0 64k",
                ],
            ),
        ],
        ImageFormat::Vmdk => &[
            ("qemu-sparse", &["create -q -f vmdk image 5M", "write vmdk image 64k 1k"]),
            (
                "qemu-zeroed-grains",
                &[
                    "create -q -f vmdk -o zeroed_grain=on image 5M",
                    "write vmdk image 0 1k",
                    "zero vmdk image 0 64k",
                ],
            ),
            (
                "qemu-flat",
                &["create -q -f vmdk -o subformat=monolithicFlat image 64k", "write vmdk image 0 1k"],
            ),
            (
                "qemu-2gb-sparse",
                &["create -q -f vmdk -o subformat=twoGbMaxExtentSparse image 1M", "write vmdk image 0 1k"],
            ),
            (
                "qemu-2gb-flat",
                &["create -q -f vmdk -o subformat=twoGbMaxExtentFlat image 64k", "write vmdk image 0 1k"],
            ),
            (
                "qemu-stream",
                &[
                    "create -q -f raw raw 1M",
                    "write raw raw 64k 64k",
                    "convert -q -f raw -O vmdk -o subformat=streamOptimized raw image",
                ],
            ),
            (
                "qemu-child",
                &[
                    "create -q -f vmdk parent 1M",
                    "write vmdk parent 0 2k",
                    "create -q -f vmdk -F vmdk -b parent image 1M",
                    "write vmdk image 64k 1k",
                ],
            ),
        ],
        ImageFormat::Raw => &[],
    }
}

/// Runs them in a folder. Without QEMU's tools this says so, and fuzzing starts from ours.
fn qemu(target: &Target, work: &Path) -> Vec<(String, MemoryStorage)> {
    let mut made = Vec::new();
    for (name, steps) in commands(target.format) {
        let folder = work.join(format!("{}-{name}", target.name));
        std::fs::create_dir_all(&folder).expect("a folder for files of QEMU");
        let mut is_there = true;
        for step in *steps {
            is_there &= run(step, &folder);
        }
        if is_there {
            made.push(((*name).to_owned(), taken(target, &folder)));
        }
        std::fs::remove_dir_all(&folder).expect("the folder that was just made");
    }
    made
}

fn run(step: &str, folder: &Path) -> bool {
    let words: Vec<&str> = step.split_whitespace().collect();
    let (program, arguments) = match words[0] {
        what @ ("write" | "zero") => {
            let flag = if what == "zero" { "write -z" } else { "write -P 7" };
            let command = format!("{flag} {} {}", words[3], words[4]);
            ("qemu-io", ["-f", words[1], "-c", &command, words[2]].map(str::to_owned).to_vec())
        }
        _ => ("qemu-img", words.iter().map(|word| (*word).to_owned()).collect()),
    };
    let output = match Command::new(program).args(&arguments).current_dir(folder).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("{program} is not there: no seed from '{step}'");
            return false;
        }
        output => output.expect("it can be run"),
    };
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

/// The files of the folder that the target knows by name.
fn taken(target: &Target, folder: &Path) -> MemoryStorage {
    let storage = MemoryStorage::default();
    for name in target.files {
        let Ok(bytes) = std::fs::read(folder.join(name)) else { continue };
        let file: Arc<dyn StorageFile> =
            storage.open(name, OpenMode::CreateNew).expect("a new file in memory");
        file.write_at(ByteOffset::ZERO, &bytes).expect("a file in memory");
        for page in Extent::whole(ByteLen::of(&bytes))
            .into_iter()
            .flat_map(|whole| whole.split(BlockShift::KIB_4.len()))
        {
            let at = page.start().get() as usize;
            if blocks::is_zero(&bytes[at..at + page.len().as_usize()]) {
                file.punch_hole(page).expect("a file in memory");
            }
        }
    }
    storage
}
