//! Amounts of bytes: a number, and a unit that says of what (DSP0004, programmatic units).

/// `quantity` of `units`, in bytes: `byte`, `byte * 2^30`, `byte*10^9`, `byte * 1024`, and the words of older producers
/// (`KiloBytes`, `MB`, `GigaBytes`). `None` where it is none of them, or more than 64 bits hold.
pub(super) fn bytes(quantity: u64, units: &str) -> Option<u64> {
    let units = units.trim().to_ascii_lowercase();
    let mut factors = units.split('*').map(str::trim);
    let mut product = match factors.next()? {
        "" | "byte" | "bytes" => quantity,
        word => quantity.checked_mul(1 << older(word)?)?,
    };
    for factor in factors {
        product = product.checked_mul(number(factor)?)?;
    }
    Some(product)
}

fn older(word: &str) -> Option<u32> {
    match word {
        "kb" | "kilobyte" | "kilobytes" => Some(10),
        "mb" | "megabyte" | "megabytes" => Some(20),
        "gb" | "gigabyte" | "gigabytes" => Some(30),
        "tb" | "terabyte" | "terabytes" => Some(40),
        _ => None,
    }
}

fn number(text: &str) -> Option<u64> {
    let digits = |text: &str| {
        let text = text.trim();
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten()
    };
    match text.split_once('^') {
        Some((base, exponent)) => digits(base)?.checked_pow(u32::try_from(digits(exponent)?).ok()?),
        None => digits(text),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn every_way_of_saying_it_is_understood() {
        for (units, factor) in [
            ("byte", 1),
            ("", 1),
            ("byte * 2^30", 1 << 30),
            ("byte*2^20", 1 << 20),
            (" Byte * 10^9 ", 1_000_000_000),
            ("byte * 1024", 1024),
            ("byte * 2^10 * 2^10", 1 << 20),
            ("MegaBytes", 1 << 20),
            ("GB", 1 << 30),
        ] {
            assert_eq!(bytes(3, units), Some(3 * factor), "{units}");
        }
        assert_eq!(bytes(0, "byte * 2^63"), Some(0));
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for units in [
            "hertz * 10^6",
            "byte * 2^64",
            "byte * ",
            "byte * 2^",
            "byte * -1",
            "byte / 2",
            "byte * 2^2^2",
            "foo",
        ] {
            assert_eq!(bytes(1, units), None, "{units}");
        }
        assert_eq!(bytes(1 << 40, "byte * 2^30"), None);
        assert_eq!(bytes(u64::MAX, "kb"), None);
    }
}
