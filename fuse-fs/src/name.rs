//! Names of files from names that were chosen for something else.

/// The longest name of a file, less room for what tells two of the same name apart.
const NAME_BYTES_MAX: usize = 200;

/// A name for a file or folder: `name` with every byte percent-escaped that a shell, a URI or a tool that looks for
/// `protocol:` could take for more than a letter. Never empty, never `.` or `..`, never hidden; different names stay
/// different. `None` where what comes of it is too long for a file's name.
pub fn file_name(name: &str) -> Option<String> {
    let mut escaped = String::new();
    for (at, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && at > 0);
        match plain {
            true => escaped.push(char::from(byte)),
            false => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    (!escaped.is_empty() && escaped.len() <= NAME_BYTES_MAX).then_some(escaped)
}

#[cfg(test)]
mod tests {
    use super::file_name;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn names_that_could_mean_something_are_escaped() {
        for (name, escaped) in [
            ("web-1.example.org", "web-1.example.org"),
            ("..", "%2E."),
            (".hidden", "%2Ehidden"),
            ("a/b\0c\nd", "a%2Fb%00c%0Ad"),
            ("nbd:x", "nbd%3Ax"),
            ("100%", "100%25"),
            ("ä", "%C3%A4"),
        ] {
            assert_eq!(file_name(name).as_deref(), Some(escaped));
        }
        assert_eq!(file_name(""), None);
        assert_eq!(file_name(&"x".repeat(200)), Some("x".repeat(200)));
        assert_eq!(file_name(&"ä".repeat(100)), None);
    }

    proptest! {
        #[test]
        fn different_names_stay_different(names in prop::collection::vec("[%.2A-F/a ä]{1,6}", 2..50)) {
            let mut seen = HashMap::new();
            for name in names {
                let escaped = file_name(&name).unwrap();
                prop_assert!(!escaped.contains('/') && !escaped.starts_with('.'));
                let before = seen.insert(escaped, name.clone());
                prop_assert!(before.is_none_or(|before| before == name));
            }
        }
    }
}
