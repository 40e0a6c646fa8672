//! The decoders of the wire as functions of bytes from anywhere, for the fuzz targets (tests/support/decoders.rs). A
//! target panics where a promise is broken; as in the store's, checksums are also put right, to get past them.

use crate::frame::HEADER_BYTES;
use crate::{
    Address, AgentMessage, Fingerprint, Inventory, Message, ServerMessage, Token, TokenSecret, VERSION,
    decode_frame, encode_frame, encode_packed_frame,
};
use blocks::ErrorKind;
use std::fmt::Debug;

/// A frame that an agent or a server may have sent.
pub fn frame(bytes: &[u8]) {
    read_frame::<AgentMessage>(bytes);
    read_frame::<ServerMessage>(bytes);
    let mut sealed = bytes.to_vec();
    if let Some((header, body)) = sealed.split_first_chunk_mut::<HEADER_BYTES>() {
        // The lengths are part of what was mutated; where they leave the frame they are shortened to what is there.
        let fields = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let fields = fields.min(body_len);
        header[8..12].copy_from_slice(&fields.to_le_bytes());
        header[12..16].copy_from_slice(&(body_len - fields).to_le_bytes());
        header[16..20].copy_from_slice(&blocks::crc32c(body).to_le_bytes());
        let crc = blocks::crc32c(&header[..20]);
        header[20..].copy_from_slice(&crc.to_le_bytes());
    }
    read_frame::<AgentMessage>(&sealed);
    read_frame::<ServerMessage>(&sealed);
}

fn read_frame<M: Message + PartialEq + Debug>(bytes: &[u8]) {
    match decode_frame::<M>(bytes) {
        Ok(message) => {
            let again =
                encode_frame(VERSION, &message).expect("what was accepted keeps the rules of its kind");
            assert_eq!(decode_frame::<M>(&again).expect("it reads what it writes"), message);
            let packed =
                encode_packed_frame(&message).expect("what was accepted keeps the rules of its kind");
            assert_eq!(decode_frame::<M>(&packed).expect("it reads what it writes"), message);
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
        }
    }
}

/// What a person pastes, and addresses and fingerprints.
pub fn token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string().parse::<Token>().expect("it reads what it writes"), token);
    }
    if let Ok(secret) = TokenSecret::from_text(text) {
        assert_eq!(TokenSecret::from_text(&secret.to_text()).expect("it reads what it writes"), secret);
    }
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>().expect("it reads what it writes"), address);
    }
    let _ = text.parse::<Fingerprint>();
    let _ = Fingerprint::of_pem(text);
}

/// A machine's inventory.
pub fn inventory(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(inventory) = Inventory::from_json(text) {
        let again = Inventory::from_json(&inventory.to_json()).expect("it reads what it writes");
        assert_eq!(again, inventory);
        let _ = inventory.boot();
    }
}
