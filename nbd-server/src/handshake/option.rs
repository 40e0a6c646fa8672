//! The data of options, decoded. Strings are UTF-8, without NUL, up to 4096 bytes; anything else is malformed.

use crate::fields::Fields;
use crate::protocol::STRING_BYTES_MAX;

/// The data of `GO` and `INFO`.
#[derive(Debug, PartialEq, Eq)]
pub struct ExportQuery<'a> {
    /// Which export.
    pub name: &'a str,
    /// What the client wants to know about it; may name what we do not know.
    pub wanted: Vec<u16>,
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub struct MetaQuery<'a> {
    /// Which export.
    pub name: &'a str,
    /// The queries, of any namespace.
    pub queries: Vec<&'a str>,
}

/// The data of `EXPORT_NAME`, or a name within other data.
pub fn name(data: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(data).ok()?;
    (text.len() <= STRING_BYTES_MAX && !text.contains('\0')).then_some(text)
}

impl<'a> ExportQuery<'a> {
    /// `None` where the data is not exactly one query.
    pub fn decode(data: &'a [u8]) -> Option<ExportQuery<'a>> {
        let mut fields = Fields::new(data);
        let name = name(fields.blob()?)?;
        let count = fields.u16()?;
        // Grows as the requests turn out to be there, whatever the count says.
        let mut wanted = Vec::new();
        for _ in 0..count {
            wanted.push(fields.u16()?);
        }
        wanted.sort_unstable();
        wanted.dedup();
        fields.is_empty().then_some(ExportQuery { name, wanted })
    }
}

impl<'a> MetaQuery<'a> {
    /// `None` where the data is not exactly one query.
    pub fn decode(data: &'a [u8]) -> Option<MetaQuery<'a>> {
        let mut fields = Fields::new(data);
        let export = name(fields.blob()?)?;
        let count = fields.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(name(fields.blob()?)?);
        }
        fields.is_empty().then_some(MetaQuery { name: export, queries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn blob(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    #[test]
    fn decodes_what_the_specification_lays_out() {
        let go = [blob(b"disk"), vec![0, 2, 0, 3, 0, 1]].concat();
        assert_eq!(ExportQuery::decode(&go), Some(ExportQuery { name: "disk", wanted: vec![1, 3] }));
        let meta = [blob(b""), vec![0, 0, 0, 2], blob(b"base:"), blob(b"x:y")].concat();
        assert_eq!(MetaQuery::decode(&meta), Some(MetaQuery { name: "", queries: vec!["base:", "x:y"] }));
    }

    #[test]
    fn refuses_what_is_cut_short_too_long_or_not_text() {
        let whole = [blob(b"disk"), vec![0, 2, 0, 3, 0, 1]].concat();
        for len in 0..whole.len() {
            assert_eq!(ExportQuery::decode(&whole[..len]), None, "{len} bytes");
        }
        assert_eq!(ExportQuery::decode(&[&whole[..], &[0]].concat()), None);
        assert_eq!(name(b"a\0b"), None);
        assert_eq!(name(&[0xff]), None);
        assert_eq!(name(&[b'a'; 4097]), None);
        let endless = [blob(b"disk"), vec![0xff; 4]].concat();
        assert_eq!(MetaQuery::decode(&endless), None);
    }

    #[test]
    fn random_bytes_never_panic() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..200_000 {
            let mut bytes = vec![0u8; random.random_range(0..64)];
            random.fill(&mut bytes[..]);
            // Small lengths make the decoders go further than a random one, which is nearly always too large.
            if bytes.len() > 4 && random.random_bool(0.8) {
                bytes[..3].fill(0);
                bytes[3] %= 16;
            }
            let (export, meta) = (ExportQuery::decode(&bytes), MetaQuery::decode(&bytes));
            assert!(export.is_none_or(|query| query.name.len() + 6 <= bytes.len()));
            assert!(meta.is_none_or(|query| query.name.len() + 8 + 4 * query.queries.len() <= bytes.len()));
            let mut fields = crate::fields::Fields::new(&bytes);
            while fields.blob().is_some() {}
        }
    }
}
