//! The hardware address of a network card.

use blocks::{Error, ErrorKind};
use std::fmt;
use std::str::FromStr;

/// Six bytes that name one card: never a group's address, never all zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = Error;

    /// Six pairs of hexadecimal digits between colons, as Linux writes them.
    fn from_str(text: &str) -> Result<Mac, Error> {
        let wrong = |why: &str| {
            let context = format!("{:?} {why}", text.chars().take(40).collect::<String>());
            Error::new(ErrorKind::InvalidInput, context)
        };
        let mut bytes = [0; 6];
        let mut parts = text.trim().split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()));
            let part = part.ok_or_else(|| wrong("is no Ethernet address"))?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong("is no Ethernet address"))?;
        }
        if parts.next().is_some() {
            return Err(wrong("is no Ethernet address"));
        }
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(wrong("is no address of one card"));
        }
        Ok(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_one_card_are_taken() {
        let mac: Mac = "52:54:00:AB:cd:0f\n".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        for wrong in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:0f:00",
            "52-54-00-ab-cd-0f",
            "+2:54:00:ab:cd:0f",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:00:00:01",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
