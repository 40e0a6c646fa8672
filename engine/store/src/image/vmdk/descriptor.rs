//! The descriptor: a text that says which disk this is and in which files its bytes are.
//!
//! ```text
//! # Disk DescriptorFile
//! version=1
//! CID=123e4567
//! parentCID=ffffffff
//! createType="monolithicSparse"
//! RW 131072 SPARSE "disk.vmdk"
//! ddb.adapterType = "lsilogic"
//! ```
//!
//! It is the first thing that a stranger's file is asked, so it is read strictly: what is said twice, out of range, or
//! not understood where it matters is refused. Keys that change nothing about the bytes are passed over.

use blocks::{ByteLen, Error, ErrorKind, Result, SECTOR_BYTES};
use std::fmt::Write as _;
use std::ops::Range;

/// The longest descriptor that is read: enough for 8192 extents.
pub(super) const DESCRIPTOR_BYTES_MAX: ByteLen = ByteLen::new(1 << 20);
/// How every descriptor begins.
pub(super) const FIRST_LINE: &str = "# Disk DescriptorFile";
/// The identity of "no parent".
const NO_PARENT: u32 = u32::MAX;
const EXTENTS_MAX: usize = 8192;
/// What the largest disk of any hypervisor has: 62 TiB, and room above it.
const LEN_MAX: ByteLen = ByteLen::new(1 << 50);

/// How an extent may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
}

/// How an extent keeps its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExtentType {
    /// In a file, from `at` on.
    Flat { at: ByteLen },
    /// In a file with grain tables.
    Sparse,
    /// Nowhere: zeroes.
    Zero,
}

/// One extent line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub(super) access: Access,
    pub(super) len: ByteLen,
    pub(super) kind: ExtentType,
    /// The file's name; empty for zeroes.
    pub(super) name: String,
}

/// A checked descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) create_type: String,
    /// Changes whenever the content does, so that a child notices.
    pub(super) content_id: u32,
    /// Where the digits of that identity stand in the text.
    pub(super) content_id_at: Range<usize>,
    /// The parent's identity and its path, which is never followed.
    pub(super) parent: Option<(u32, String)>,
    pub(super) extents: Vec<ExtentLine>,
}

impl Descriptor {
    /// Reads a descriptor, which ends at the first zero byte.
    pub(super) fn parse(bytes: &[u8]) -> Result<Descriptor> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = std::str::from_utf8(&bytes[..end])
            .map_err(|_| unsupported("a descriptor that is not UTF-8 is not supported"))?;
        let mut fields = Fields::default();
        let mut at = 0;
        for (number, line) in text.split('\n').enumerate() {
            fields.take(number, line, at).map_err(|error| error.context(format!("line {}", number + 1)))?;
            at += line.len() + 1;
        }
        fields.finish()
    }

    /// The disk's length.
    pub(super) fn len(&self) -> ByteLen {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    /// The text of a new disk's descriptor with one extent.
    pub(super) fn text(create_type: &str, content_id: u32, len: ByteLen, extent: &str) -> String {
        let mut text = format!("{FIRST_LINE}\nversion=1\nCID={content_id:08x}\nparentCID=ffffffff\n");
        let (cylinders, heads, sectors) = geometry(len);
        let written = write!(
            text,
            "createType=\"{create_type}\"\n\n# Extent description\n{extent}\n\n# The Disk Data Base\n#DDB\n\n\
             ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"{sectors}\"\n\
             ddb.adapterType = \"lsilogic\"\n"
        );
        written.expect("a String takes everything");
        text
    }
}

impl Descriptor {
    /// The text of the same disk with another length of its one extent; with `geometry` the cylinders follow. `None` where
    /// the text has no such line.
    pub(super) fn with_len(text: &str, len: ByteLen, geometry: bool) -> Option<String> {
        let sectors = len.get() / SECTOR_BYTES;
        let number = |key: &str| text.lines().find_map(|line| value_of(line, key)?.parse::<u64>().ok());
        let track = number("ddb.geometry.heads").zip(number("ddb.geometry.sectors"));
        let cylinders = track.and_then(|(heads, sectors_a_track)| {
            sectors.checked_div(heads.checked_mul(sectors_a_track)?).filter(|_| geometry)
        });
        let mut found = false;
        let lines = text.split('\n').map(|line| {
            let mut words = line.split_whitespace();
            let old = words.next().and_then(access_of).and_then(|_| words.next());
            if let Some(old) = old.filter(|_| !std::mem::replace(&mut found, true)) {
                return line.replacen(old, &sectors.to_string(), 1);
            }
            match value_of(line, "ddb.geometry.cylinders").zip(cylinders) {
                Some((old, new)) => line.replacen(&format!("\"{old}\""), &format!("\"{new}\""), 1),
                None => line.to_owned(),
            }
        });
        let lines: Vec<String> = lines.collect();
        found.then(|| lines.join("\n"))
    }
}

/// What stands in quotes after a key.
fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (found, value) = line.split_once('=')?;
    let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
    found.trim().eq_ignore_ascii_case(key).then_some(value)
}

/// The geometry that VMware gives SCSI disks of this size: it grows in steps, so that older firmware is content.
fn geometry(len: ByteLen) -> (u64, u64, u64) {
    let (heads, sectors) = match len.get() {
        bytes if bytes < 1 << 30 => (64, 32),
        bytes if bytes < 2 << 30 => (128, 32),
        _ => (255, 63),
    };
    (len.get() / SECTOR_BYTES / (heads * sectors), heads, sectors)
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, what)
}

/// What was read so far.
#[derive(Default)]
struct Fields {
    version: Option<()>,
    content_id: Option<(u32, Range<usize>)>,
    parent_id: Option<u32>,
    parent_path: Option<String>,
    create_type: Option<String>,
    extents: Vec<ExtentLine>,
}

impl Fields {
    /// Takes a line that starts at byte `at` of the text.
    fn take(&mut self, number: usize, line: &str, at: usize) -> Result<()> {
        let trimmed = line.trim();
        if number == 0 && !trimmed.eq_ignore_ascii_case(FIRST_LINE) {
            return Err(Error::corrupt(format!("a descriptor begins with '{FIRST_LINE}'")));
        }
        if trimmed.is_empty() || trimmed.starts_with('#') {
            return Ok(());
        }
        if let Some(access) = trimmed.split_whitespace().next().and_then(access_of) {
            return self.take_extent(trimmed, access);
        }
        let Some((key, value)) = trimmed.split_once('=') else {
            return Err(Error::corrupt(format!("'{trimmed}' is neither a key nor an extent")));
        };
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "version" => match value {
                "1" | "2" | "3" | "4" => once(&mut self.version, "version", ()),
                _ => Err(unsupported(format!("descriptor version {value} is not known"))),
            },
            "cid" => {
                let end = at + line.trim_end().len();
                once(&mut self.content_id, "CID", (identity(value)?, end - value.len()..end))
            }
            "parentcid" => once(&mut self.parent_id, "parentCID", identity(value)?),
            "parentfilenamehint" => once(&mut self.parent_path, "parentFileNameHint", unquoted(value)?),
            "createtype" => once(&mut self.create_type, "createType", unquoted(value)?),
            _ => Ok(()),
        }
    }

    fn take_extent(&mut self, line: &str, access: Access) -> Result<()> {
        let wrong = || Error::corrupt(format!("'{line}' is not an extent"));
        let (before, quoted) = match line.split_once('"') {
            Some((before, rest)) => (before, Some(rest.split_once('"').ok_or_else(wrong)?)),
            None => (line, None),
        };
        let words: Vec<&str> = before.split_whitespace().collect();
        let [_, sectors, kind] = words[..] else { return Err(wrong()) };
        let sectors: u64 = sectors.parse().map_err(|_| wrong())?;
        let len = sectors.checked_mul(SECTOR_BYTES).map(ByteLen::new);
        let len = len.filter(|len| !len.is_zero() && *len <= LEN_MAX).ok_or_else(wrong)?;
        let (name, rest) = quoted.unwrap_or_default();
        let offset = rest.split_whitespace().next().map_or(Ok(0), str::parse::<u64>).map_err(|_| wrong())?;
        let at = offset.checked_mul(SECTOR_BYTES).map(ByteLen::new).ok_or_else(wrong)?;
        let kind = match kind {
            "FLAT" | "VMFS" => ExtentType::Flat { at },
            "SPARSE" => ExtentType::Sparse,
            "ZERO" => ExtentType::Zero,
            other => return Err(unsupported(format!("extents of type {other} are not supported"))),
        };
        if (kind == ExtentType::Zero) != name.is_empty() {
            return Err(wrong());
        }
        if !name.is_empty() && self.extents.iter().any(|known| known.name == name) {
            return Err(Error::corrupt(format!("'{name}' is named twice")));
        }
        if self.extents.len() == EXTENTS_MAX {
            return Err(unsupported(format!("more than {EXTENTS_MAX} extents are not supported")));
        }
        self.extents.push(ExtentLine { access, len, kind, name: name.to_owned() });
        Ok(())
    }

    fn finish(self) -> Result<Descriptor> {
        let missing = |what: &str| Error::corrupt(format!("the descriptor has no {what}"));
        self.version.ok_or_else(|| missing("version"))?;
        let (content_id, content_id_at) = self.content_id.ok_or_else(|| missing("CID"))?;
        let create_type = self.create_type.ok_or_else(|| missing("createType"))?;
        if self.extents.is_empty() {
            return Err(missing("extent"));
        }
        let total = self.extents.iter().try_fold(ByteLen::ZERO, |total, extent| {
            Some(total + extent.len).filter(|total| *total <= LEN_MAX)
        });
        total.ok_or_else(|| Error::corrupt("its extents are longer than any disk"))?;
        let parent = match (self.parent_id.unwrap_or(NO_PARENT), self.parent_path) {
            (NO_PARENT, _) => None,
            (id, Some(path)) => Some((id, path)),
            (_, None) => return Err(missing("path of the parent that it has")),
        };
        let descriptor = Descriptor { create_type, content_id, content_id_at, parent, extents: self.extents };
        descriptor.check_type()?;
        Ok(descriptor)
    }
}

impl Descriptor {
    /// The type says which extents there are; a disk that says one thing and is another is nobody's.
    fn check_type(&self) -> Result<()> {
        let sparse = self.extents.iter().any(|extent| extent.kind == ExtentType::Sparse);
        let flat = self.extents.iter().any(|extent| matches!(extent.kind, ExtentType::Flat { .. }));
        let lower = self.create_type.to_ascii_lowercase();
        let (one, fits) = match lower.as_str() {
            "monolithicsparse" | "streamoptimized" => (true, !flat),
            "monolithicflat" => (true, !sparse),
            "twogbmaxextentsparse" | "2gbmaxextentsparse" => (false, !flat),
            "twogbmaxextentflat" | "2gbmaxextentflat" | "vmfs" => (false, !sparse),
            _ => return Err(unsupported(format!("disks of type '{}' are not supported", self.create_type))),
        };
        if !fits || (one && self.extents.len() != 1) {
            let context = format!("its extents are not those of a disk of type '{}'", self.create_type);
            return Err(Error::corrupt(context));
        }
        Ok(())
    }
}

fn access_of(word: &str) -> Option<Access> {
    match word {
        "RW" => Some(Access::ReadWrite),
        "RDONLY" => Some(Access::ReadOnly),
        _ => None,
    }
}

fn once<T>(field: &mut Option<T>, name: &str, value: T) -> Result<()> {
    if field.is_some() {
        return Err(Error::corrupt(format!("{name} is said twice")));
    }
    *field = Some(value);
    Ok(())
}

fn identity(value: &str) -> Result<u32> {
    let digits = !value.is_empty() && value.len() <= 8 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parsed = if digits { u32::from_str_radix(value, 16).ok() } else { None };
    parsed.ok_or_else(|| Error::corrupt(format!("'{value}' is not an identity")))
}

fn unquoted(value: &str) -> Result<String> {
    let inside = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inside.map(str::to_owned).ok_or_else(|| Error::corrupt(format!("{value} is not in quotes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: ByteLen = ByteLen::new(64 << 20);

    fn text() -> String {
        Descriptor::text("monolithicFlat", 0x00c0_ffee, LEN, "RW 131072 FLAT \"a-flat.vmdk\" 0")
    }

    #[test]
    fn what_is_written_is_read() {
        let text = text();
        let read = Descriptor::parse(text.as_bytes()).unwrap();
        assert_eq!((read.len(), read.content_id, &read.parent), (LEN, 0x00c0_ffee, &None));
        assert_eq!(&text[read.content_id_at.clone()], "00c0ffee");
        let with_returns = text.replace('\n', "\r\n");
        let read = Descriptor::parse(with_returns.as_bytes()).unwrap();
        assert_eq!(&with_returns[read.content_id_at], "00c0ffee");
        let padded = [text.as_bytes(), &[0; 100], b"\nnonsense"].concat();
        assert_eq!(Descriptor::parse(&padded).unwrap().extents.len(), 1, "it ends at the first zero");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (what, from, to) in [
            ("no first line", "# Disk", "# Disc"),
            ("another version", "version=1", "version=9"),
            ("no version", "version=1", ""),
            ("no identity", "CID=00c0ffee\nparent", "parent"),
            ("an identity that is too long", "=00c0ffee", "=100c0ffee"),
            ("an identity with a sign", "=00c0ffee", "=+0c0ffee"),
            ("two identities", "parentCID", "CID"),
            ("a parent without a path", "parentCID=ffffffff", "parentCID=12345678"),
            ("a type that is not known", "monolithicFlat", "fullDevice"),
            ("a type without quotes", "\"monolithicFlat\"", "monolithicFlat"),
            ("a type that is not its own", "monolithicFlat", "monolithicSparse"),
            ("no extent", "RW 131072 FLAT \"a-flat.vmdk\" 0", ""),
            ("no size", "RW 131072", "RW"),
            ("an empty extent", "RW 131072", "RW 0"),
            ("a size that overflows", "RW 131072", "RW 36028797018963968"),
            ("a gigantic size", "RW 131072", "RW 18014398509481983"),
            ("a negative size", "RW 131072", "RW -1"),
            ("an extent of a device", "FLAT", "VMFSRDM"),
            ("an extent that may not be read", "RW 131072", "NOACCESS 131072"),
            ("no name", "\"a-flat.vmdk\"", "\"\""),
            ("half a name", "\"a-flat.vmdk\" 0", "\"a-flat.vmdk"),
            ("an offset that overflows", "\" 0", "\" 36028797018963968"),
            ("an odd offset", "\" 0", "\" zero"),
            ("a line of nonsense", "#DDB", "DDB"),
        ] {
            let changed = text().replace(from, to);
            assert_ne!(changed, text(), "{what}");
            let error = Descriptor::parse(changed.as_bytes()).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{what}: {error}");
        }
        let line = "RW 2199023255551 FLAT \"a\"\nRW 1 FLAT \"b\"";
        let two = Descriptor::text("twoGbMaxExtentFlat", 1, LEN, line);
        assert!(Descriptor::parse(two.replace("\"b\"", "\"a\"").as_bytes()).is_err(), "one file twice");
        assert!(Descriptor::parse(two.replace("RW 1 ", "RW 2199023255551 ").as_bytes()).is_err());
        assert!(Descriptor::parse(two.as_bytes()).is_ok());
        assert!(Descriptor::parse(&[text().as_bytes(), b"\xff"].concat()).is_err(), "not UTF-8");
    }
}
