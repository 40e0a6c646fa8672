//! What the fuzzer changes: some files, written down as what they hold between their holes, so that an image of megabytes
//! is an input of a few hundred bytes, and a script that says what is done with them.
//!
//! ```text
//! 0    1       flags: bit 0, the checksums of structures are left as they are
//! 1    3       not used
//! 4    4 each  lengths of the files in bytes, for five files
//! 24   16      the script
//! 40           pieces until the end: file 1, not used 1, bytes 2, offset in the file 4, then the bytes
//! ```
//!
//! All little-endian. Any bytes are an input: what is missing is zero, what is too much is left out.

use super::MemoryStorage;
use blocks::{ByteLen, ByteOffset, StorageFile};
use store::testing::Random;

const HEAD_BYTES: usize = 40;
const SCRIPT_AT: usize = 24;
const PIECE_HEAD_BYTES: usize = 8;
const FILES: usize = 5;
/// The longest file that is made; everything of a format has its place below that.
const FILE_BYTES_MAX: u64 = 24 << 20;
/// A run of so many zeroes ends a piece.
const HOLE_BYTES_MIN: usize = 24;

/// An input, taken apart.
#[derive(Clone)]
pub struct Input {
    head: [u8; HEAD_BYTES],
    pieces: Vec<Piece>,
}

#[derive(Clone)]
struct Piece {
    file: u8,
    at: u32,
    bytes: Vec<u8>,
}

impl Input {
    pub fn decode(data: &[u8]) -> Input {
        let mut head = [0; HEAD_BYTES];
        let (given, mut rest) = data.split_at(data.len().min(HEAD_BYTES));
        head[..given.len()].copy_from_slice(given);
        let mut pieces = Vec::new();
        while let Some((piece, after)) = rest.split_first_chunk::<PIECE_HEAD_BYTES>() {
            let len = usize::from(u16::from_le_bytes([piece[2], piece[3]])).min(after.len());
            let at = u32::from_le_bytes([piece[4], piece[5], piece[6], piece[7]]);
            let (bytes, behind) = after.split_at(len);
            pieces.push(Piece { file: piece[0], at, bytes: bytes.to_vec() });
            rest = behind;
        }
        Input { head, pieces }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut data = self.head.to_vec();
        for piece in &self.pieces {
            let len = u16::try_from(piece.bytes.len()).expect("pieces are kept short");
            data.extend([piece.file, 0]);
            data.extend(len.to_le_bytes());
            data.extend(piece.at.to_le_bytes());
            data.extend(&piece.bytes);
        }
        data
    }

    /// The input that makes these files.
    pub fn of(storage: &MemoryStorage, names: &[&str], script: [u8; 16]) -> Input {
        let mut input = Input { head: [0; HEAD_BYTES], pieces: Vec::new() };
        input.head[SCRIPT_AT..].copy_from_slice(&script);
        for (number, name) in names.iter().enumerate() {
            let file = storage.file(name);
            let len = file.len().expect("in memory").get();
            assert!(len <= FILE_BYTES_MAX, "a seed of {len} bytes");
            input.head[4 + number * 4..8 + number * 4].copy_from_slice(&(len as u32).to_le_bytes());
            input.take_pieces(number as u8, &*file);
        }
        input
    }

    fn take_pieces(&mut self, number: u8, file: &dyn StorageFile) {
        let mut at = ByteOffset::ZERO;
        while let Some(data) = file.next_data(at).expect("in memory") {
            let mut bytes = vec![0; data.len().as_usize()];
            file.read_at(data.start(), &mut bytes).expect("in memory");
            let mut from = 0;
            while let Some(skip) = bytes[from..].iter().position(|byte| *byte != 0) {
                let start = from + skip;
                let rest = &bytes[start..(start + 4096).min(bytes.len())];
                let hole = rest.windows(HOLE_BYTES_MIN).position(blocks::is_zero);
                let piece = rest[..hole.unwrap_or(rest.len())].to_vec();
                from = start + piece.len();
                let at = u32::try_from(data.start().get()).expect("files are short") + start as u32;
                self.pieces.push(Piece { file: number, at, bytes: piece });
            }
            at = data.end();
        }
    }

    /// Makes the files.
    pub fn files(&self, names: &[&str]) -> MemoryStorage {
        let storage = MemoryStorage::default();
        let mut lens = [0; FILES];
        for (number, name) in names.iter().enumerate() {
            let len = &self.head[4 + number * 4..8 + number * 4];
            let len = u64::from(u32::from_le_bytes([len[0], len[1], len[2], len[3]])).min(FILE_BYTES_MAX);
            lens[number] = len;
            if len > 0 {
                storage.file(name).set_len(ByteLen::new(len)).expect("a hole");
            }
        }
        for piece in &self.pieces {
            let Some(name) = names.get(usize::from(piece.file)) else { continue };
            let left = lens[usize::from(piece.file)].saturating_sub(u64::from(piece.at));
            let bytes = &piece.bytes[..piece.bytes.len().min(left as usize)];
            if !bytes.is_empty() {
                let at = ByteOffset::new(u64::from(piece.at));
                storage.file(name).write_at(at, bytes).expect("less than there is memory");
            }
        }
        storage
    }

    /// Whether wrong checksums stay so.
    pub fn keeps_sums(&self) -> bool {
        self.head[0] & 1 != 0
    }

    /// What is done with the files.
    pub fn script(&self) -> [u8; 16] {
        self.head[SCRIPT_AT..].try_into().expect("sixteen bytes")
    }

    /// Changes a field, some bytes or a piece. `blindly` is libFuzzer's own mutation, which knows what the code compared
    /// with: it changes the bytes that it gets, of which the second number says how many it may make of them.
    pub fn mutate(&mut self, random: &mut Random, blindly: impl Fn(&mut Vec<u8>, usize)) {
        for _ in 0..1 + random.below(3) {
            let which = random.below(self.pieces.len().max(1) as u64) as usize;
            let choice = if self.pieces.is_empty() { 9 } else { random.below(12) };
            match choice {
                0..3 => {
                    let bytes = &mut self.pieces[which].bytes;
                    let max = (bytes.len() + 16).min(8192);
                    blindly(bytes, max);
                }
                3..8 => self.mutate_field(which, random),
                8 => {
                    let mut head = self.head.to_vec();
                    blindly(&mut head, HEAD_BYTES);
                    head.resize(HEAD_BYTES, 0);
                    self.head.copy_from_slice(&head);
                }
                9 => {
                    let at = SCRIPT_AT + random.below(16) as usize;
                    self.head[at] = random.number() as u8;
                    if random.chance(10) {
                        self.head[0] ^= 1;
                    }
                }
                10 if random.chance(50) => {
                    let piece = &mut self.pieces[which];
                    piece.at = match random.below(3) {
                        0 => piece.at.wrapping_add(512),
                        1 => piece.at.wrapping_sub(512),
                        _ => (random.below(FILE_BYTES_MAX) as u32) & !511,
                    };
                }
                10 => self.pieces.truncate(which.max(1)),
                _ => {
                    let mut piece = self.pieces[which].clone();
                    piece.at = piece.at.wrapping_add(4096 * (1 + random.below(64) as u32));
                    self.pieces.push(piece);
                }
            }
        }
    }

    /// Changes a number of 1, 2, 4 or 8 bytes, in either order of bytes: near what it was, near a bound, or what another
    /// field says.
    fn mutate_field(&mut self, which: usize, random: &mut Random) {
        let width = 1_usize << random.below(4);
        let other = random.below(self.pieces.len() as u64) as usize;
        let copied = field(&self.pieces[other].bytes, width, random);
        let bytes = &mut self.pieces[which].bytes;
        if bytes.len() < width {
            return;
        }
        let step = if random.chance(80) { width } else { 1 };
        let at = (random.below((bytes.len() - width) as u64 + 1) as usize) / step * step;
        let big = random.chance(50);
        let mut number = [0; 8];
        number[..width].copy_from_slice(&bytes[at..at + width]);
        if big {
            number[..width].reverse();
        }
        let value = u64::from_le_bytes(number);
        let near = random.below(17).wrapping_sub(8);
        let value = match random.below(8) {
            0 | 1 => value.wrapping_add(near),
            2 => value ^ (1 << random.below(width as u64 * 8)),
            3 => 0_u64.wrapping_add(near),
            4 => (1_u64 << random.below(64)).wrapping_add(near),
            5 => copied.wrapping_add(near),
            6 => value.wrapping_mul(512),
            _ => random.number() >> random.below(64),
        };
        let mut number = value.to_le_bytes();
        if big {
            number[..width].reverse();
        }
        bytes[at..at + width].copy_from_slice(&number[..width]);
    }
}

fn field(bytes: &[u8], width: usize, random: &mut Random) -> u64 {
    let mut number = [0; 8];
    if bytes.len() >= width {
        let at = random.below((bytes.len() - width) as u64 + 1) as usize;
        number[..width].copy_from_slice(&bytes[at..at + width]);
    }
    let little = u64::from_le_bytes(number);
    if random.chance(50) { little } else { little.swap_bytes() >> (64 - width * 8) }
}
