//! The definitions of stand-ins that lie beside the disks.

use super::catalogue::{State, Subject};
use crate::definition::{define, inventory};
use blocks::{Error, ErrorKind, Result};
use hypervisor::{DiskFormat, Form, FormOptions, OvfVersion, Source};
use store::Unit;

/// Each file, for whom it is, and the kind of disk that it names.
const FORMS: [(&str, Form, DiskFormat); 4] = [
    ("domain.xml", Form::Libvirt, DiskFormat::Raw),
    ("machine.vmx", Form::Vmx, DiskFormat::Vmdk),
    ("machine.ovf", Form::Ovf(OvfVersion::One), DiskFormat::Vmdk),
    ("qemu.sh", Form::Qemu, DiskFormat::Raw),
];

/// Those that can be written. What one form cannot say does not keep the others from being there.
pub(super) fn texts(subject: &Subject) -> Vec<(&'static str, String)> {
    let written = |(name, form, format): (&'static str, Form, DiskFormat)| match write(subject, form, format)
    {
        Ok(text) => Some((name, text)),
        Err(error) => {
            tracing::debug!("{} of '{}' is not shown: {error}", name, subject.unit.name());
            None
        }
    };
    FORMS.into_iter().filter_map(written).collect()
}

/// The one of that name. `NotFound` where there is none.
pub(super) fn text(subject: &Subject, name: &str) -> Result<String> {
    let found = FORMS.into_iter().find(|(known, ..)| *known == name);
    let (_, form, format) =
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no file {name:?}")))?;
    write(subject, form, format)
}

/// Why there are none of a machine; `None` where nothing is in the way.
pub(super) fn why_none(unit: &Unit) -> Option<String> {
    inventory(unit).err().map(|error| error.to_string())
}

fn write(subject: &Subject, form: Form, format: DiskFormat) -> Result<String> {
    let ending = match format {
        DiskFormat::Vmdk => "vmdk",
        _ => "raw",
    };
    let source = |disk: usize| {
        let name = format!("disk{disk}.{ending}");
        // VMware's readers look beside the file; the others want to know where that is.
        let path = match format {
            DiskFormat::Vmdk => name,
            _ => subject.folder.join(name).to_string_lossy().into_owned(),
        };
        Source::File { path, format }
    };
    let sources = (0..subject.lens.len()).map(source).collect();
    let mut defined = define(&subject.unit, &subject.lens, sources)?;
    if let State::Session(session) = &subject.state {
        // Beside the machine itself, perhaps, on one host.
        defined.definition.name = format!("{}-{}", defined.definition.name, &session.id.to_string()[..8]);
    }
    Ok(form.write(&defined.definition, &FormOptions::default())?.text)
}
