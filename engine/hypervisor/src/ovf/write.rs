//! Writing a descriptor.
//!
//! Of each kind of hardware the one that the most readers know: an LSI Logic controller, E1000 cards. What OVF has no
//! word for is in attributes of a namespace of ours, which readers pass over.

use super::{CIM, OWN, OvfVersion, VMWARE, resource};
use crate::definition::{Architecture, Definition, Firmware};
use crate::form::Document;
use crate::source::Source;
use crate::xml::Xml;
use crate::{DiskFormat, Mac};
use blocks::{Error, ErrorKind, Result};

/// Controllers that readers take, and disks of each: number 7 is the controller's own.
const CONTROLLERS_MAX: usize = 4;
const DISKS_PER_CONTROLLER: usize = 15;

/// A file that the descriptor refers to.
pub(crate) struct FileEntry {
    /// Its name beside the descriptor.
    pub name: String,
    /// How long it is, where that is known.
    pub len: Option<u64>,
    pub format: DiskFormat,
}

/// A descriptor to lie in the folder of the disks' files.
pub(crate) fn write_beside_files(definition: &Definition, version: OvfVersion) -> Result<Document> {
    let entry = |(number, disk): (usize, &crate::Disk)| match &disk.source {
        Source::File { path, format } => {
            let name = path.rsplit('/').next().unwrap_or(path).to_owned();
            Ok(FileEntry { name, len: None, format: *format })
        }
        Source::Nbd(_) => {
            let context = format!(
                "OVF refers to files, and disk {number} is an NBD export: name its file with --disk-file"
            );
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    };
    let files = definition.disks.iter().enumerate().map(entry).collect::<Result<Vec<_>>>()?;
    let text = write_with_files(definition, version, &files)?;
    let notes = vec![
        "the descriptor belongs into the folder of the disks' files, which it names without their folder"
            .to_owned(),
    ];
    Ok(Document { text, notes })
}

/// A descriptor that refers to these files, one a disk in the disks' order.
pub(crate) fn write_with_files(
    definition: &Definition,
    version: OvfVersion,
    files: &[FileEntry],
) -> Result<String> {
    let (disks, max) = (definition.disks.len(), CONTROLLERS_MAX * DISKS_PER_CONTROLLER);
    if disks > max {
        let context = format!("{disks} disks; what reads OVF has places for {max}");
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let mut xml = Xml::new();
    let storage = format!("{CIM}CIM_StorageAllocationSettingData.xsd");
    let ethernet = format!("{CIM}CIM_EthernetPortAllocationSettingData.xsd");
    let (rasd, vssd) =
        (format!("{CIM}CIM_ResourceAllocationSettingData"), format!("{CIM}CIM_VirtualSystemSettingData"));
    let mut spaces = vec![
        ("xmlns", version.namespace()),
        ("xmlns:ovf", version.namespace()),
        ("xmlns:rasd", &rasd),
        ("xmlns:vssd", &vssd),
        ("xmlns:vmw", VMWARE),
        ("xmlns:understudy", OWN),
    ];
    if version == OvfVersion::Two {
        spaces.extend([
            ("xmlns:sasd", storage.as_str()),
            ("xmlns:epasd", ethernet.as_str()),
            ("ovf:version", "2.0"),
        ]);
    }
    xml.open("Envelope", &spaces);
    references(&mut xml, files);
    disk_section(&mut xml, definition, files)?;
    network_section(&mut xml, &definition.nics);
    virtual_system(&mut xml, definition, version);
    xml.close();
    Ok(xml.finish())
}

fn references(xml: &mut Xml, files: &[FileEntry]) {
    xml.open("References", &[]);
    for (number, file) in (1..).zip(files) {
        let (id, len) = (format!("file{number}"), file.len.map(|len| len.to_string()));
        let mut attributes = vec![("ovf:href", file.name.as_str()), ("ovf:id", &id)];
        attributes.extend(len.as_deref().map(|len| ("ovf:size", len)));
        xml.empty("File", &attributes);
    }
    xml.close();
}

fn disk_section(xml: &mut Xml, definition: &Definition, files: &[FileEntry]) -> Result<()> {
    xml.open("DiskSection", &[]);
    xml.text("Info", &[], "The machine's disks, in their order");
    for ((number, disk), file) in (1..).zip(&definition.disks).zip(files) {
        let format = file.format.specification().ok_or_else(|| {
            let context = format!("disk {} is {}, which OVF has no name for", number - 1, file.format);
            Error::new(ErrorKind::Unsupported, context)
        })?;
        let (capacity, id, file) = (disk.len.to_string(), format!("vmdisk{number}"), format!("file{number}"));
        let mut attributes = vec![
            ("ovf:capacity", capacity.as_str()),
            ("ovf:capacityAllocationUnits", "byte"),
            ("ovf:diskId", &id),
            ("ovf:fileRef", &file),
            ("ovf:format", format),
        ];
        attributes.extend(disk.serial.as_deref().map(|serial| ("understudy:serial", serial)));
        attributes.extend(disk.wwn.as_deref().map(|wwn| ("understudy:wwn", wwn)));
        xml.empty("Disk", &attributes);
    }
    xml.close();
    Ok(())
}

const NETWORK: &str = "network";

fn network_section(xml: &mut Xml, nics: &[Mac]) {
    if nics.is_empty() {
        return;
    }
    xml.open("NetworkSection", &[]);
    xml.text("Info", &[], "Where the machine's network cards lead");
    xml.open("Network", &[("ovf:name", NETWORK)]);
    xml.text("Description", &[], "To be chosen where the machine is set up");
    xml.close();
    xml.close();
}

fn virtual_system(xml: &mut Xml, definition: &Definition, version: OvfVersion) {
    xml.open("VirtualSystem", &[("ovf:id", &definition.name)]);
    xml.text("Info", &[], "A machine");
    xml.text("Name", &[], &definition.name);
    if !definition.host_name.is_empty() {
        xml.open("AnnotationSection", &[]);
        xml.text("Info", &[], "What the machine calls itself");
        xml.text("Annotation", &[], &definition.host_name);
        xml.close();
    }
    // CIM_OperatingSystem, OSType: 101 is Linux of 64 bits on x86, 36 is Linux.
    let system = match definition.architecture {
        Architecture::X86_64 => "101",
        Architecture::Aarch64 => "36",
    };
    xml.open("OperatingSystemSection", &[("ovf:id", system)]);
    xml.text("Info", &[], "What runs on it");
    xml.text("Description", &[], &format!("Linux ({})", definition.architecture));
    xml.close();
    hardware(xml, definition, version);
    xml.close();
}

fn hardware(xml: &mut Xml, definition: &Definition, version: OvfVersion) {
    xml.open("VirtualHardwareSection", &[]);
    xml.text("Info", &[], "What the machine consists of");
    xml.open("System", &[]);
    xml.text("vssd:ElementName", &[], "Virtual Hardware Family");
    xml.text("vssd:InstanceID", &[], "0");
    xml.text("vssd:VirtualSystemIdentifier", &[], &definition.name);
    xml.text("vssd:VirtualSystemType", &[], "vmx-10");
    xml.close();
    let mut items = Items { xml, version, next: 1 };
    let (cpus, memory) = (definition.cpus.to_string(), definition.memory_mib().to_string());
    items.processors(&cpus);
    items.memory(&memory);
    let controllers = definition.disks.len().div_ceil(DISKS_PER_CONTROLLER);
    let first_controller = items.next;
    (0..controllers).for_each(|number| items.controller(number));
    definition.nics.iter().enumerate().for_each(|(number, mac)| items.card(number, mac));
    for number in 0..definition.disks.len() {
        items.disk(
            number,
            first_controller + u32::try_from(number / DISKS_PER_CONTROLLER).unwrap_or_default(),
        );
    }
    let firmware = if definition.firmware == Firmware::Uefi { "efi" } else { "bios" };
    xml.empty("vmw:Config", &[("ovf:required", "false"), ("vmw:key", "firmware"), ("vmw:value", firmware)]);
    xml.close();
}

/// Items of hardware, each with its number. The elements of one come in the order of the alphabet, as the schema has it.
struct Items<'a> {
    xml: &'a mut Xml,
    version: OvfVersion,
    next: u32,
}

impl Items<'_> {
    fn item(&mut self, element: &str, prefix: &str, kind: u32, fields: &[(&str, &str)]) {
        let (instance, kind) = (self.next.to_string(), kind.to_string());
        let mut fields: Vec<_> = fields.to_vec();
        fields.extend([("InstanceID", instance.as_str()), ("ResourceType", kind.as_str())]);
        fields.sort_unstable();
        self.xml.open(element, &[]);
        for (name, text) in fields {
            self.xml.text(&format!("{prefix}:{name}"), &[], text);
        }
        self.xml.close();
        self.next += 1;
    }

    fn processors(&mut self, count: &str) {
        let name = format!("{count} processors");
        let fields =
            [("AllocationUnits", "hertz * 10^6"), ("ElementName", name.as_str()), ("VirtualQuantity", count)];
        self.item("Item", "rasd", resource::PROCESSOR, &fields);
    }

    fn memory(&mut self, mib: &str) {
        let name = format!("{mib} MiB of memory");
        let fields =
            [("AllocationUnits", "byte * 2^20"), ("ElementName", name.as_str()), ("VirtualQuantity", mib)];
        self.item("Item", "rasd", resource::MEMORY, &fields);
    }

    fn controller(&mut self, number: usize) {
        let (address, name) = (number.to_string(), format!("SCSI controller {number}"));
        let fields = [("Address", address.as_str()), ("ElementName", &name), ("ResourceSubType", "lsilogic")];
        self.item("Item", "rasd", resource::SCSI, &fields);
    }

    fn card(&mut self, number: usize, mac: &Mac) {
        let (name, mac) = (format!("Network card {number}"), mac.to_string());
        let fields = [
            ("Address", mac.as_str()),
            ("AutomaticAllocation", "true"),
            ("Connection", NETWORK),
            ("ElementName", &name),
            ("ResourceSubType", "E1000"),
        ];
        let (element, prefix) = match self.version {
            OvfVersion::One => ("Item", "rasd"),
            OvfVersion::Two => ("EthernetPortItem", "epasd"),
        };
        self.item(element, prefix, resource::ETHERNET, &fields);
    }

    fn disk(&mut self, number: usize, controller: u32) {
        let place = number % DISKS_PER_CONTROLLER;
        let unit = if place < 7 { place } else { place + 1 };
        let (unit, parent) = (unit.to_string(), controller.to_string());
        let (name, resource) = (format!("Disk {number}"), format!("ovf:/disk/vmdisk{}", number + 1));
        let fields = [
            ("AddressOnParent", unit.as_str()),
            ("ElementName", &name),
            ("HostResource", &resource),
            ("Parent", &parent),
        ];
        let (element, prefix) = match self.version {
            OvfVersion::One => ("Item", "rasd"),
            OvfVersion::Two => ("StorageItem", "sasd"),
        };
        self.item(element, prefix, resource::DISK, &fields);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Descriptor;
    use super::*;
    use crate::definition::testing::{HOSTILE, definition};

    fn files(machine: &Definition) -> Vec<FileEntry> {
        let entry = |number| FileEntry {
            name: format!("web-1-disk{number}.vmdk"),
            len: Some(100 + number),
            format: DiskFormat::Vmdk,
        };
        (1..=machine.disks.len() as u64).map(entry).collect()
    }

    #[test]
    fn what_is_written_is_read_back_in_both_versions() {
        for version in [OvfVersion::One, OvfVersion::Two] {
            for hostile in HOSTILE {
                let mut machine = Definition { host_name: hostile.to_owned(), ..definition() };
                machine.disks[0].serial = Some(hostile.to_owned());
                let text = write_with_files(&machine, version, &files(&machine)).unwrap();
                let read = Descriptor::parse(text.as_bytes()).unwrap();
                let kept: String = hostile
                    .chars()
                    .map(|c| if "\u{1b}\u{0}\u{ffff}".contains(c) { '\u{fffd}' } else { c })
                    .collect();
                assert_eq!((read.version, read.name.as_str()), (version, "web-1"));
                let tree = roxmltree::Document::parse(&text).unwrap();
                let annotation = tree.descendants().find(|node| node.tag_name().name() == "Annotation");
                assert_eq!(annotation.unwrap().text(), Some(kept.as_str()));
                assert_eq!(read.disks[0].serial.as_deref(), Some(kept.as_str()));
                assert_eq!((read.cpus, read.memory.map(|len| len.get())), (Some(4), Some(2 << 30)));
                assert_eq!((read.firmware, &read.nics), (Some(Firmware::Uefi), &machine.nics));
                assert_eq!(read.disks[1].file.as_deref(), Some("web-1-disk2.vmdk"));
                assert_eq!(read.disks[1].file_len, Some(102));
                assert_eq!(read.disks[1].capacity, Some(machine.disks[1].len));
            }
        }
    }

    #[test]
    fn controllers_take_fifteen_disks_each() {
        let mut machine = definition();
        machine.disks = vec![machine.disks[0].clone(); 60];
        let text = write_with_files(&machine, OvfVersion::One, &files(&machine)).unwrap();
        assert_eq!(text.matches("lsilogic").count(), 4);
        assert!(!text.contains("<rasd:AddressOnParent>7<") && text.contains("<rasd:AddressOnParent>15<"));
        machine.disks.push(machine.disks[0].clone());
        assert!(write_with_files(&machine, OvfVersion::One, &files(&machine)).is_err());
    }

    #[test]
    fn what_ovf_cannot_refer_to_is_refused_by_name() {
        let mut machine = definition();
        machine.disks[1].source = "nbd://a/b".parse().unwrap();
        assert!(write_beside_files(&machine, OvfVersion::One).unwrap_err().to_string().contains("disk 1"));
        machine.disks[1].source = "/srv/b.vhdx".parse().unwrap();
        let error = write_beside_files(&machine, OvfVersion::One).unwrap_err().to_string();
        assert!(error.contains("disk 1") && error.contains("vhdx"), "{error}");
    }
}
