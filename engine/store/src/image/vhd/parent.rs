//! What a differencing disk remembers of its parent: which disk it was, when it was written last, and where it lay.
//!
//! The places are written for other programs. Ours never follow them: whoever opens a child names the parent.

use super::footer::{Footer, be32, be64, time_stamp};
use blocks::{ByteLen, ByteOffset, Error, Extent, Result, SECTOR_BYTES, StorageFile};

const ID_AT: usize = 40;
const TIME_AT: usize = 56;
const NAME_AT: usize = 64;
const NAME_BYTES: usize = 512;
const LOCATORS_AT: usize = 576;
const LOCATORS: usize = 8;
const LOCATOR_BYTES: usize = 24;
/// A path of Windows that starts from the child's folder, in UTF-16, its least significant byte first.
const RELATIVE_PATH: [u8; 4] = *b"W2ru";

/// A place that a child names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Locator {
    kind: [u8; 4],
    /// Where its text lies in the child's file.
    pub(super) place: Extent,
}

/// The parent, as its child remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Parent {
    pub(super) id: [u8; 16],
    /// When its file was written last, in VHD's seconds; 0 where nobody knew.
    pub(super) time: u32,
    /// Its file's name.
    pub(super) name: String,
    pub(super) locators: Vec<Locator>,
}

impl Parent {
    /// The parent of a new child of `file`, with room for a path at `place`.
    pub(super) fn of(file: &dyn StorageFile, footer: &Footer, name: &str, place: Extent) -> Result<Parent> {
        let time = file.modified()?.map_or(0, time_stamp);
        let locators = vec![Locator { kind: RELATIVE_PATH, place }];
        Ok(Parent { id: footer.id(), time, name: name.to_owned(), locators })
    }

    /// The text that belongs to a new child's one locator.
    pub(super) fn relative_path(&self) -> Vec<u8> {
        format!(".\\{}", self.name).encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    /// Reads the fields of a dynamic header.
    pub(super) fn decode(bytes: &[u8; 1024]) -> Parent {
        let units = bytes[NAME_AT..NAME_AT + NAME_BYTES].chunks_exact(2);
        let units = units.map(|unit| u16::from_be_bytes([unit[0], unit[1]])).take_while(|unit| *unit != 0);
        let name =
            char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        let mut locators = Vec::new();
        for locator in bytes[LOCATORS_AT..].chunks_exact(LOCATOR_BYTES).take(LOCATORS) {
            let kind = [locator[0], locator[1], locator[2], locator[3]];
            let (len, at) = (u64::from(be32(locator, 8)), be64(locator, 16));
            let len = ByteLen::new(len.next_multiple_of(SECTOR_BYTES));
            let place = Extent::new(ByteOffset::new(at), len);
            locators.extend(place.ok().filter(|_| kind != [0; 4]).map(|place| Locator { kind, place }));
        }
        let id = bytes[ID_AT..ID_AT + 16].try_into().expect("sixteen bytes");
        Parent { id, time: be32(bytes, TIME_AT), name, locators }
    }

    /// Writes the fields of a dynamic header. The name was checked.
    pub(super) fn encode(&self, bytes: &mut [u8; 1024]) {
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(ID_AT, &self.id);
        put(TIME_AT, &self.time.to_be_bytes());
        let name: Vec<u8> = self.name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        put(NAME_AT, &name);
        for (number, locator) in self.locators.iter().enumerate() {
            let at = LOCATORS_AT + number * LOCATOR_BYTES;
            let len = u32::try_from(self.relative_path().len()).expect("a name is short");
            put(at, &locator.kind);
            // The specification counts sectors here; every writer counts bytes.
            put(at + 4, &u32::try_from(locator.place.len().get()).expect("one sector or two").to_be_bytes());
            put(at + 8, &len.to_be_bytes());
            put(at + 16, &locator.place.start().get().to_be_bytes());
        }
    }

    /// Whether a name of a parent fits.
    pub(super) fn holds_name(name: &str) -> bool {
        let bytes = name.encode_utf16().count() * 2;
        bytes > 0 && bytes <= NAME_BYTES && !name.contains(['/', '\\', '\0'])
    }

    /// `Corrupt` unless `file` with this footer is the parent, as it was then. `same_time`: its file must not have been
    /// written since.
    pub(super) fn check(
        &self,
        child: (&str, ByteLen),
        file: &dyn StorageFile,
        footer: &Footer,
        same_time: bool,
    ) -> Result<()> {
        let (name, len) = child;
        if footer.id() != self.id {
            return Err(Error::corrupt(format!("{name}: {} is not its parent", file.name())));
        }
        if footer.current_size > len {
            let context = format!("{name}: shorter than its parent, {}", file.name());
            return Err(Error::corrupt(context));
        }
        let found = file.modified()?.map(time_stamp).filter(|_| same_time && self.time != 0);
        match found {
            Some(found) if found != self.time => Err(Error::corrupt(format!(
                "{name}: its parent, {}, was written since (its time is {found}, not {}, in seconds since 2000; a \
                 copy that kept its content needs the time of the original)",
                file.name(),
                self.time
            ))),
            _ => Ok(()),
        }
    }
}
