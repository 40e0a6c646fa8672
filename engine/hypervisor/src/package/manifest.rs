//! A package's manifest: a line `ALGORITHM(FILE)= DIGEST` for each file (DSP0243 §5.1).

use super::digest::DigestAlgorithm;
use blocks::{Error, Result};
use std::collections::BTreeMap;

/// The longest manifest.
pub(super) const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What the files of a package must be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Manifest {
    /// Algorithm and digest by file.
    pub files: BTreeMap<String, (DigestAlgorithm, String)>,
}

impl Manifest {
    /// Reads a manifest, with or without blanks around its marks as producers write them. `Corrupt` names the line.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest> {
        let text = String::from_utf8_lossy(bytes);
        let mut manifest = Manifest::default();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |what: &str| Error::corrupt(format!("line {number} of the manifest {what}"));
            let (name, algorithm, digest) = entry(line).ok_or_else(|| wrong("is no file's digest"))?;
            let algorithm = algorithm
                .ok_or_else(|| wrong("has a digest of another kind than SHA1, SHA256 and SHA512"))?;
            if digest.len() != algorithm.digits() {
                return Err(wrong("has a digest that is too short or too long"));
            }
            let before = manifest.files.insert(name.to_owned(), (algorithm, digest.to_ascii_lowercase()));
            if before.is_some() {
                return Err(wrong("names a file that was named before"));
            }
        }
        Ok(manifest)
    }

    /// The manifest as it is written. Its length follows from the files' names and the algorithms alone.
    pub(super) fn line(name: &str, algorithm: DigestAlgorithm, digest: &str) -> String {
        format!("{algorithm}({name})= {digest}\n")
    }
}

/// Name, algorithm if it is known, and digest.
fn entry(line: &str) -> Option<(&str, Option<DigestAlgorithm>, &str)> {
    let (algorithm, rest) = line.split_once('(')?;
    let (name, digest) = rest.rsplit_once('=')?;
    let name = name.trim_end().strip_suffix(')')?;
    let digest = digest.trim();
    if name.is_empty() || digest.is_empty() || !digest.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let word = algorithm.trim().replace('-', "");
    let algorithm = DigestAlgorithm::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(&word));
    Some((name, algorithm, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_producers_way_is_read() {
        let (one, two) = ("a".repeat(40), "B".repeat(64));
        let text = format!("SHA1(a (1).ovf)= {one}\r\n\nSHA256 (b.vmdk) = {two}\nSHA-1(c)={one}");
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.files["a (1).ovf"], (DigestAlgorithm::Sha1, one.clone()));
        assert_eq!(manifest.files["b.vmdk"], (DigestAlgorithm::Sha256, "b".repeat(64)));
        assert_eq!(manifest.files["c"].1, one);
        let line = Manifest::line("x=y)= z", DigestAlgorithm::Sha1, &one);
        assert!(Manifest::parse(line.as_bytes()).unwrap().files.contains_key("x=y)= z"));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        let good = "a".repeat(40);
        for (line, word) in [
            ("hello".to_owned(), "no file's digest"),
            (format!("MD5(a)= {good}"), "another kind"),
            ("SHA1(a)= 12".to_owned(), "too short"),
            (format!("SHA1()= {good}"), "no file's digest"),
            ("SHA1(a)= zz".to_owned(), "no file's digest"),
            (format!("SHA1(x)= {good}"), "before"),
        ] {
            let error =
                Manifest::parse(format!("SHA1(x)= {good}\n{line}").as_bytes()).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(word), "{error}");
        }
    }
}
