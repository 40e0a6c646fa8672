//! What the authority reads from its folder and from strangers, as functions of bytes from anywhere.

use super::certificates::check_request;
use super::{machines, tokens};
use blocks::ErrorKind;
use std::path::Path;

pub(crate) fn token_file(bytes: &[u8]) {
    let _ = tokens::decode(bytes, Path::new("token"));
}

pub(crate) fn machine_file(bytes: &[u8]) {
    match machines::decode(bytes, Path::new("web1.json")) {
        Ok(machine) => assert_eq!(machine.name, "web1", "a record is that of its file's name"),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
        }
    }
}

pub(crate) fn signing_request(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(error) = check_request(text, "web1")
    {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    }
}
