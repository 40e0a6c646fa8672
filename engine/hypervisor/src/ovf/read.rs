//! Reading a descriptor that anybody may have written.
//!
//! A document with a document type is refused, so there are no entities to expand. The text's length bounds all that comes
//! of it. What is said of the machine is taken as far as it is understood; what is said of disks must be understood.

use super::{OWN, OvfVersion, VMWARE, resource, units};
use crate::nbd_address::decode;
use crate::{DiskFormat, Firmware, Mac};
use blocks::{ByteLen, Error, ErrorKind, Result};
use roxmltree::{Document, Node, ParsingOptions};
use std::collections::BTreeMap;

/// The longest descriptor: far above any that was seen.
pub(crate) const DESCRIPTOR_BYTES_MAX: u64 = 4 << 20;
/// Elements and texts in it.
const NODES_MAX: u32 = 100_000;
/// Declarations of namespaces in the whole document, and attributes of one element.
const NAMESPACES_MAX: usize = 256;
const ATTRIBUTES_MAX: usize = 64;
const VERSION_0_9: &str = "http://www.vmware.com/schema/ovf/1/envelope";

/// What a descriptor says of one machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Which envelope it is in.
    pub version: OvfVersion,
    /// The machine's name, or its identifier where it has none. Anything.
    pub name: String,
    /// Processors, where it says so.
    pub cpus: Option<u32>,
    /// Memory, where it says so.
    pub memory: Option<ByteLen>,
    /// How it boots, where it says so.
    pub firmware: Option<Firmware>,
    /// The addresses of its network cards, of those that have one.
    pub nics: Vec<Mac>,
    /// Its disks, in the order in which they are described.
    pub disks: Vec<DescribedDisk>,
    /// Every file that is referred to, by its name beside the descriptor, in the order of the references.
    pub files: Vec<String>,
}

/// A disk of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DescribedDisk {
    /// Its identifier.
    pub id: String,
    /// Its file, by its name beside the descriptor; `None` for a disk that is empty.
    pub file: Option<String>,
    /// How long its file is, where it says so.
    pub file_len: Option<u64>,
    /// How long the disk is, where it says so.
    pub capacity: Option<ByteLen>,
    /// What the file looks like inside; `Err` has the address by which an unknown format is named.
    pub format: std::result::Result<DiskFormat, String>,
    /// Its serial number, where one of ours wrote it.
    pub serial: Option<String>,
}

/// A file as the references have it.
struct Reference {
    name: String,
    len: Option<u64>,
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::corrupt(what)
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, what)
}

/// What a stranger wrote, short enough for a message.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    format!("'{}'", short.escape_debug())
}

impl Descriptor {
    /// Reads a descriptor. Errors: `Corrupt` where it is none or contradicts itself, `Unsupported` for what OVF allows and
    /// is not read here; each names what.
    pub fn parse(bytes: &[u8]) -> Result<Descriptor> {
        let too_long = bytes.len() as u64 > DESCRIPTOR_BYTES_MAX;
        if too_long {
            return Err(corrupt(format!(
                "a descriptor of {} bytes; at most {DESCRIPTOR_BYTES_MAX} are read",
                bytes.len()
            )));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            Error::with_source(ErrorKind::Corrupt, "the descriptor is not in UTF-8", error)
        })?;
        check_shape(text)?;
        let options = ParsingOptions { nodes_limit: NODES_MAX, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text.trim_start_matches('\u{feff}'), options)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, "the descriptor's XML", error))?;
        let envelope = document.root_element();
        let version = version(envelope)?;
        let references = references(envelope)?;
        let disks = disks(envelope, &references)?;
        let files = envelope_files(envelope, &references);
        let system = system(envelope)?;
        let mut descriptor = Descriptor {
            version,
            name: name(system),
            cpus: None,
            memory: None,
            firmware: None,
            nics: Vec::new(),
            disks,
            files,
        };
        for section in children(system, "VirtualHardwareSection") {
            descriptor.read_hardware(section)?;
        }
        Ok(descriptor)
    }

    fn read_hardware(&mut self, section: Node<'_, '_>) -> Result<()> {
        for item in section.children().filter(Node::is_element) {
            match item.tag_name().name() {
                "Item" | "EthernetPortItem" | "StorageItem" => self.read_item(item)?,
                "Config" if item.tag_name().namespace() == Some(VMWARE) => self.read_config(item),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_item(&mut self, item: Node<'_, '_>) -> Result<()> {
        let kind = field(item, "ResourceType").and_then(|kind| kind.parse::<u32>().ok());
        match kind {
            Some(resource::PROCESSOR) => {
                self.cpus = field(item, "VirtualQuantity").and_then(|text| text.parse().ok())
            }
            Some(resource::MEMORY) => {
                let quantity = field(item, "VirtualQuantity").unwrap_or_default();
                let units = field(item, "AllocationUnits").unwrap_or_default();
                self.memory = Some(amount(quantity, units, "the memory")?);
            }
            Some(resource::ETHERNET) => {
                self.nics.extend(field(item, "Address").and_then(|address| address.parse::<Mac>().ok()));
            }
            _ => {}
        }
        Ok(())
    }

    fn read_config(&mut self, config: Node<'_, '_>) {
        if attribute(config, "key") == Some("firmware") {
            self.firmware = match attribute(config, "value") {
                Some("efi") => Some(Firmware::Uefi),
                Some("bios") => Some(Firmware::Bios),
                _ => None,
            };
        }
    }
}

/// Refuses what would make a parser work or keep the square of what it reads: a tag with very many attributes, very many
/// declarations of namespaces. Looks at what may be a tag, of which there are no fewer than there are tags.
fn check_shape(text: &str) -> Result<()> {
    if text.matches("xmlns").count() > NAMESPACES_MAX {
        return Err(corrupt(format!("the descriptor declares more than {NAMESPACES_MAX} namespaces")));
    }
    for part in text.split('<').skip(1).filter(|part| !part.starts_with(['/', '!', '?'])) {
        let (mut quote, mut attributes) = (None, 0);
        for c in part.chars() {
            match (quote, c) {
                (None, '>') => break,
                (None, '=') => attributes += 1,
                (None, '"' | '\'') => quote = Some(c),
                (Some(open), c) if c == open => quote = None,
                _ => {}
            }
        }
        if attributes > ATTRIBUTES_MAX {
            return Err(corrupt(format!(
                "the descriptor has an element of more than {ATTRIBUTES_MAX} attributes"
            )));
        }
    }
    Ok(())
}

fn version(envelope: Node<'_, '_>) -> Result<OvfVersion> {
    let namespace = envelope.tag_name().namespace().unwrap_or_default();
    let version =
        [OvfVersion::One, OvfVersion::Two].into_iter().find(|version| version.namespace() == namespace);
    match version {
        _ if envelope.tag_name().name() != "Envelope" => {
            Err(corrupt(format!("{} is no OVF envelope", shown(envelope.tag_name().name()))))
        }
        Some(version) => Ok(version),
        None if namespace == VERSION_0_9 => Err(unsupported("OVF 0.9, which came before the standard")),
        None => Err(unsupported(format!("an OVF envelope of namespace {}", shown(namespace)))),
    }
}

fn children<'a, 'input>(of: Node<'a, 'input>, name: &'static str) -> impl Iterator<Item = Node<'a, 'input>> {
    of.children().filter(move |node| node.is_element() && node.tag_name().name() == name)
}

/// An attribute by its name, whether or not it is qualified: producers do both.
fn attribute<'a>(of: Node<'a, '_>, name: &str) -> Option<&'a str> {
    of.attributes().find(|attribute| attribute.name() == name).map(|attribute| attribute.value())
}

/// The text of an item's element, whichever class of CIM it is of.
fn field<'a>(item: Node<'a, '_>, name: &'static str) -> Option<&'a str> {
    children(item, name).next().and_then(|node| node.text()).map(str::trim)
}

fn references(envelope: Node<'_, '_>) -> Result<BTreeMap<String, Reference>> {
    let mut references = BTreeMap::new();
    for file in children(envelope, "References").flat_map(|section| children(section, "File")) {
        let id = attribute(file, "id").ok_or_else(|| corrupt("a reference without an identifier"))?;
        let href = attribute(file, "href")
            .ok_or_else(|| corrupt(format!("reference {} without a file", shown(id))))?;
        let name = file_name(href)?;
        match attribute(file, "compression") {
            None | Some("" | "identity") => {}
            Some(other) => {
                return Err(unsupported(format!(
                    "{}: a file compressed with {}",
                    shown(&name),
                    shown(other)
                )));
            }
        }
        if attribute(file, "chunkSize").is_some() {
            return Err(unsupported(format!("{}: a file in several pieces", shown(&name))));
        }
        let len = match attribute(file, "size") {
            None => None,
            Some(size) => Some(
                size.trim()
                    .parse()
                    .map_err(|_| corrupt(format!("{}: a file of {} bytes", shown(&name), shown(size))))?,
            ),
        };
        if references.insert(id.to_owned(), Reference { name, len }).is_some() {
            return Err(corrupt(format!("the reference {} is there twice", shown(id))));
        }
    }
    Ok(references)
}

/// The name of a file beside the descriptor; what leads elsewhere is refused.
fn file_name(href: &str) -> Result<String> {
    let name = decode(href).ok_or_else(|| corrupt(format!("the reference {} is no address", shown(href))))?;
    if name.contains("://") {
        return Err(unsupported(format!("{}: a file that is elsewhere", shown(href))));
    }
    let is_good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\n', '\r']);
    match name.split('/').all(is_good) {
        true => Ok(name),
        false => Err(unsupported(format!("the reference {} leads out of the package", shown(href)))),
    }
}

fn envelope_files(envelope: Node<'_, '_>, references: &BTreeMap<String, Reference>) -> Vec<String> {
    let sections = children(envelope, "References").flat_map(|section| children(section, "File"));
    let of = |file: Node<'_, '_>| Some(references.get(attribute(file, "id")?)?.name.clone());
    sections.filter_map(of).collect()
}

fn disks(envelope: Node<'_, '_>, references: &BTreeMap<String, Reference>) -> Result<Vec<DescribedDisk>> {
    let mut disks: Vec<DescribedDisk> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    // "SharedDiskSection" of 2.x has the same elements; its disks are no machine's own.
    for disk in children(envelope, "DiskSection").flat_map(|section| children(section, "Disk")) {
        let described = described_disk(disk, references)?;
        if !seen.insert(described.id.clone()) {
            return Err(corrupt(format!("disk {} is there twice", shown(&described.id))));
        }
        disks.push(described);
    }
    Ok(disks)
}

fn described_disk(disk: Node<'_, '_>, references: &BTreeMap<String, Reference>) -> Result<DescribedDisk> {
    let id = attribute(disk, "diskId").ok_or_else(|| corrupt("a disk without an identifier"))?;
    if let Some(parent) = attribute(disk, "parentRef").filter(|parent| !parent.is_empty()) {
        return Err(unsupported(format!("disk {} stands on another one, {}", shown(id), shown(parent))));
    }
    let reference = match attribute(disk, "fileRef").filter(|file| !file.is_empty()) {
        None => None,
        Some(file) => Some(references.get(file).ok_or_else(|| {
            corrupt(format!("disk {} is in a file {} that nothing refers to", shown(id), shown(file)))
        })?),
    };
    let capacity = match attribute(disk, "capacity") {
        None => None,
        Some(capacity) => {
            let units = attribute(disk, "capacityAllocationUnits").unwrap_or("byte");
            Some(amount(capacity, units, &format!("the capacity of disk {}", shown(id)))?)
        }
    };
    let format = attribute(disk, "format").unwrap_or_default();
    Ok(DescribedDisk {
        id: id.to_owned(),
        file: reference.map(|reference| reference.name.clone()),
        file_len: reference.and_then(|reference| reference.len),
        capacity,
        format: DiskFormat::of_specification(format).ok_or_else(|| format.to_owned()),
        serial: disk.attribute((OWN, "serial")).map(str::to_owned),
    })
}

fn amount(quantity: &str, unit: &str, of: &str) -> Result<ByteLen> {
    let quantity = quantity.trim();
    let whole =
        quantity.bytes().all(|byte| byte.is_ascii_digit()).then(|| quantity.parse::<u64>().ok()).flatten();
    let bytes = whole.and_then(|whole| units::bytes(whole, unit));
    bytes.map(ByteLen::new).ok_or_else(|| {
        corrupt(format!("{of} is {} of {}, which is no number of bytes", shown(quantity), shown(unit)))
    })
}

/// The one machine of the package.
fn system<'a, 'input>(envelope: Node<'a, 'input>) -> Result<Node<'a, 'input>> {
    if children(envelope, "VirtualSystemCollection").next().is_some() {
        return Err(unsupported("a package of several machines"));
    }
    let mut systems = children(envelope, "VirtualSystem");
    let first = systems.next().ok_or_else(|| corrupt("the descriptor has no machine in it"))?;
    match systems.next() {
        None => Ok(first),
        Some(_) => Err(corrupt("the descriptor has more than one machine in it")),
    }
}

fn name(system: Node<'_, '_>) -> String {
    let named = field(system, "Name").filter(|name| !name.is_empty());
    named.or_else(|| attribute(system, "id")).unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
