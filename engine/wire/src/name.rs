//! What a machine may be called.

use blocks::{Error, ErrorKind, Result};

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// `InvalidInput` unless `name` is 1 to 63 of `a-z A-Z 0-9 . _ -`, beginning with a letter or a digit: good as a file
/// name, in a URI and in a certificate without quoting.
pub fn check_machine_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed) {
        return Ok(());
    }
    let context = format!(
        "'{}' is not a machine name: 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 . _ -, beginning with a letter or a digit",
        name.escape_debug()
    );
    Err(Error::new(ErrorKind::InvalidInput, context))
}

#[cfg(test)]
mod tests {
    use super::check_machine_name;

    #[test]
    fn names_are_safe_everywhere() {
        for good in ["a", "web-1", "db_2.example.org", "0", &"x".repeat(63)] {
            assert!(check_machine_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-x", ".hidden", "a/b", "ä", "a b", "a\0", &"x".repeat(64)] {
            assert!(check_machine_name(bad).is_err(), "{bad}");
        }
    }
}
