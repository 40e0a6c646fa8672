//! Where a disk of a stand-in is to be had.

use crate::{DiskFormat, NbdAddress};
use blocks::{Error, ErrorKind};
use std::str::FromStr;

/// Where a disk is to be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A file or block device.
    File {
        /// As whoever runs the stand-in opens it.
        path: String,
        /// What it looks like inside.
        format: DiskFormat,
    },
    /// An export of an NBD server.
    Nbd(NbdAddress),
}

impl FromStr for Source {
    type Err = Error;

    /// An NBD URI, or `PATH[:FORMAT]`; a format that is not said follows from the path's ending or is refused.
    fn from_str(text: &str) -> Result<Source, Error> {
        if text.contains("://") {
            return text.parse().map(Source::Nbd);
        }
        let wrong = |why: &str| Err(Error::new(ErrorKind::InvalidInput, format!("{text:?} {why}")));
        let said = text.rsplit_once(':').and_then(|(path, format)| Some((path, format.parse().ok()?)));
        let found = said.or_else(|| Some((text, DiskFormat::of_ending(text)?)));
        match found {
            Some(("", _)) => wrong("names no file"),
            Some((path, format)) if !path.contains(['\0', '\n', '\r']) => {
                Ok(Source::File { path: path.to_owned(), format })
            }
            Some(_) => wrong("is no path that can be written down"),
            None => wrong("does not say what the file is: write PATH:FORMAT, such as disk:raw"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_said_or_follows_from_the_ending_and_is_never_guessed() {
        let file = |path: &str, format| Source::File { path: path.to_owned(), format };
        assert_eq!("/a/b.vhd".parse::<Source>().unwrap(), file("/a/b.vhd", DiskFormat::Vhd));
        assert_eq!("/a/b.vhd:raw".parse::<Source>().unwrap(), file("/a/b.vhd", DiskFormat::Raw));
        assert_eq!("/dev/sdb:raw".parse::<Source>().unwrap(), file("/dev/sdb", DiskFormat::Raw));
        assert_eq!("/a:b.qcow2".parse::<Source>().unwrap(), file("/a:b.qcow2", DiskFormat::Qcow2));
        for wrong in ["/dev/sdb", ":raw", "", "/a/b\n.vhd", "/a/b:cow"] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong:?}");
        }
    }
}
