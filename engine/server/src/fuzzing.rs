//! The server's decoders as functions of bytes from anywhere, for the fuzz targets (tests/support/decoders.rs). A target
//! panics where a promise is broken; as in the store's, checksums are also put right, to get past them.

use crate::authority::fuzzing as authority;
use crate::control::api::Request;
use crate::control::at;
use crate::session::fuzzing as session;

/// The dirty map of a pivoted disk.
pub fn dirty_map(bytes: &[u8]) {
    session::dirty_map(bytes);
}

/// The note that a session's record is.
pub fn session_record(bytes: &[u8]) {
    session::session_record(bytes);
}

/// What the server keeps of a token.
pub fn token_file(bytes: &[u8]) {
    authority::token_file(bytes);
}

/// What the server keeps of an enrolled machine.
pub fn machine_file(bytes: &[u8]) {
    authority::machine_file(bytes);
}

/// The certificate signing request of an agent that nobody knows yet.
pub fn signing_request(bytes: &[u8]) {
    authority::signing_request(bytes);
}

/// An administrator's request, and the checkpoint that it names.
pub fn control_request(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let json = serde_json::to_string(&request).expect("a request is text and numbers");
        let again: Request = serde_json::from_str(&json).expect("it reads what it writes");
        assert_eq!(again, request);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = at::choose(&[], Some(text));
        let _ = at::parse_time(text.trim()).map(at::format_time);
    }
}
