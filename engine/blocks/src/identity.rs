//! Names that stay: never a path, an address or a host name.

use std::fmt;
use std::str::FromStr;

/// 128 random bits, written as 32 hexadecimal digits (dashes are allowed when read). Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 16]);

impl Id {
    /// The identity of these bytes; `None` for all zero, which means "no identity" in every format.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Id> {
        if bytes == [0; 16] { None } else { Some(Id(bytes)) }
    }

    /// The bytes, as formats store them.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Id, crate::Error> {
        let wrong = || {
            crate::Error::new(
                crate::ErrorKind::InvalidInput,
                format!("'{text}' is not an identity of 32 hexadecimal digits"),
            )
        };
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        if digits.len() != 32 {
            return Err(wrong());
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Id::from_bytes(bytes).ok_or_else(wrong)
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub Id);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = crate::Error;
            fn from_str(text: &str) -> Result<$name, crate::Error> {
                text.parse().map($name)
            }
        }
    };
}

identity!(
    /// A protected machine; also the identity of its unit.
    MachineId
);
identity!(
    /// One server's store, made when the store is.
    StoreId
);
identity!(
    /// A recovery in progress, and the branch that it writes.
    SessionId
);

/// A checkpoint of a unit; numbers rise in the order of sealing over all branches and are never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CheckpointId(pub u64);

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which disk of a machine, from 0, in the order of registration; stays with the disk for the life of the unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskIndex(pub u16);

impl fmt::Display for DiskIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_read_what_they_write() {
        let id: Id = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(id.to_string().parse::<Id>().unwrap(), id);
        for wrong in ["", "0", "00000000000000000000000000000000", "zz112233445566778899aabbccddeeff"] {
            assert!(wrong.parse::<Id>().is_err(), "{wrong}");
        }
    }
}
