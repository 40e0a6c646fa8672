//! The agent's decoders of what it finds pinned and in its state folder, as functions of bytes from anywhere, for the fuzz targets
//! (tests/support/decoders.rs). Panics where a promise is broken.

use crate::tracker::Ledger;
use blocks::{ByteWriter, ErrorKind};

/// What a tracker of before has left pinned, as it is and with its checksum put right.
pub fn ledger(bytes: &[u8]) {
    both(bytes, read);
}

/// A slot of a tap's activity log, likewise.
pub fn activity_slot(bytes: &[u8]) {
    both(bytes, |bytes| match crate::tap::read_slot_again(bytes) {
        Ok(equal) => assert!(equal, "it reads what it writes"),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
        }
    });
}

/// The record of a shutdown, as it is and with its hash put right.
pub fn shutdown_record(bytes: &[u8]) {
    for bytes in [bytes, &crate::reboot::resealed(bytes)] {
        match crate::reboot::read_record_again(bytes) {
            Ok(equal) => assert!(equal, "it reads what it writes"),
            Err(error) => {
                let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::NotFound];
                assert!(kinds.contains(&error.kind()), "{error:?}");
            }
        }
    }
}

fn both(bytes: &[u8], read: impl Fn(&[u8])) {
    read(bytes);
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return };
    let body_len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX).min(rest.len());
    let Some(body) = body_len.checked_sub(4).and_then(|len| rest.get(..len)) else { return };
    let mut sealed = ByteWriter::new();
    sealed.bytes(body).checksum();
    let mut framed = ByteWriter::new();
    framed.blob(sealed.as_bytes());
    read(framed.as_bytes());
}

fn read(bytes: &[u8]) {
    match Ledger::decode(bytes) {
        Ok(ledger) => {
            let again = Ledger::decode(&ledger.encode()).expect("it reads what it writes");
            assert_eq!(again.identity, ledger.identity, "it reads what it writes");
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
        }
    }
}
