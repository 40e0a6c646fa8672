//! Who may connect, and to what: certificates, and the rules that map a client's names to exports.

use crate::tls::Tls;
use crate::uri::{Encryption, Place};
use blocks::{Error, ErrorKind, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Where the server's certificate is, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of clients. Where they are named, a client without a certificate of theirs is refused.
    pub client_authorities: Option<PathBuf>,
}

/// Encryption as the server offers it.
///
/// The files are looked at before each handshake and read again where they have changed, so that a new certificate or
/// authority needs no restart. As long as what is there cannot be used, half exchanged perhaps, the last that could is.
#[derive(Debug, Clone)]
pub struct ServerTls {
    files: Arc<TlsFiles>,
    loaded: Arc<Mutex<Loaded>>,
    /// Nothing but `STARTTLS` is answered without it.
    pub(crate) required: bool,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// The files that were read, or tried, last.
    seen: Vec<Option<FileState>>,
}

/// What changes with a file: device, inode, length, and the nanosecond of its last change.
type FileState = (u64, u64, u64, i64, i64);

impl ServerTls {
    /// Reads the files. `required` refuses clients that do not encrypt; otherwise it is their choice. Errors name the
    /// file: missing, without a certificate or key, or a key of another certificate.
    pub fn load(files: &TlsFiles, required: bool) -> Result<ServerTls> {
        // First, so that what changes meanwhile is read again.
        let seen = files.states();
        let config = files.load()?;
        let loaded = Arc::new(Mutex::new(Loaded { config, seen }));
        Ok(ServerTls { files: Arc::new(files.clone()), loaded, required })
    }

    /// What the next handshake goes by.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.files.states();
        if seen != loaded.seen {
            match self.files.load() {
                Ok(config) => {
                    tracing::info!("new certificates are in use: {}", self.files.certificate.display());
                    loaded.config = config;
                }
                Err(error) => tracing::warn!("the certificates that were loaded before stay in use: {error}"),
            }
            loaded.seen = seen;
        }
        loaded.config.clone()
    }
}

impl TlsFiles {
    fn states(&self) -> Vec<Option<FileState>> {
        let state = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.dev(), found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
        };
        [&self.certificate, &self.key].into_iter().chain(&self.client_authorities).map(state).collect()
    }

    fn load(&self) -> Result<Arc<ServerConfig>> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| unusable(&self.key, error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(ErrorKind::Unsupported, error.to_string()))?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|error| unusable(path, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| unusable(path, error))?)
            }
        };
        let config =
            builder.with_single_cert(chain, key).map_err(|error| unusable(&self.certificate, error))?;
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read.map_err(|error| unusable(path, error))? {
        none if none.is_empty() => Err(unusable(path, "there is no certificate in it")),
        found => Ok(found),
    }
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{}: {why}", path.display()))
}

/// A client's side of an encrypted connection. The folder has the files that libnbd and QEMU look for: `ca-cert.pem`
/// (without it nobody could be believed), and `client-cert.pem` with `client-key.pem` where both are there.
pub(crate) fn client_session(encryption: &Encryption, place: &Place) -> Result<Tls> {
    let Some(folder) = &encryption.certificates else {
        let context = "an encrypted NBD target needs tls-certificates=FOLDER (with ca-cert.pem) in its URI";
        return Err(Error::new(ErrorKind::InvalidInput, context));
    };
    let host = match (&encryption.host, place) {
        (Some(host), _) | (None, Place::Tcp { host, .. }) => host.clone(),
        (None, Place::Unix(_)) => "localhost".to_owned(),
    };
    let wrong = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidInput, format!("TLS with '{host}': {error}"))
    };
    let authority = folder.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&authority)? {
        roots.add(certificate).map_err(|error| unusable(&authority, error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?
        .with_root_certificates(roots);
    let (certificate, key) = (folder.join("client-cert.pem"), folder.join("client-key.pem"));
    let config = if certificate.exists() && key.exists() {
        let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| unusable(&key, error))?;
        let chain = certificates(&certificate)?;
        builder.with_client_auth_cert(chain, private).map_err(|error| unusable(&certificate, error))?
    } else {
        builder.with_no_client_auth()
    };
    let name = ServerName::try_from(host.clone()).map_err(|error| wrong(&error))?;
    let session = ClientConnection::new(Arc::new(config), name).map_err(|error| wrong(&error))?;
    Ok(Tls::new(session.into()))
}

/// What clients may open. Without rules, everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    rules: Option<Vec<AccessRule>>,
}

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    /// A name in the client's certificate: its common name, or a DNS name, URI or mail address. `*` is every client, also one
    /// without a certificate.
    pub client: String,
    /// Names of exports; `*` in them stands for any text.
    pub exports: Vec<String>,
    /// Changes are refused.
    pub read_only: bool,
}

/// What a client may do with an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Read and write.
    All,
    /// Read.
    ReadOnly,
}

impl Access {
    /// Only what a rule allows; an export that none names does not exist for the client. Of several rules that fit, one
    /// that allows writing wins.
    pub fn only(rules: Vec<AccessRule>) -> Access {
        Access { rules: Some(rules) }
    }

    /// What a client with these names may do with the export of that name; `None`: not even know of it.
    pub fn permission(&self, client: &[String], export: &str) -> Option<Permission> {
        let Some(rules) = &self.rules else { return Some(Permission::All) };
        let fits = |rule: &&AccessRule| {
            (rule.client == "*" || client.contains(&rule.client))
                && rule.exports.iter().any(|pattern| matches(pattern, export))
        };
        let mut found = None;
        for rule in rules.iter().filter(fits) {
            match rule.read_only {
                false => return Some(Permission::All),
                true => found = Some(Permission::ReadOnly),
            }
        }
        found
    }
}

/// Whether `text` is what the pattern describes; `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let Some(tail) = parts.pop() else { return false };
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

/// The names in a certificate that was verified: common names, and the alternative names that are text.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let mut names: Vec<String> = common.map(str::to_owned).collect();
    if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
        names.extend(alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
                Some((*text).to_owned())
            }
            _ => None,
        }));
    }
    // A certificate that calls itself a wildcard is not every client.
    names.retain(|name| name != "*");
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, fits) in [
            ("web1", "web1", true),
            ("web1", "web12", false),
            ("*", "", true),
            ("web*", "web1-disk0", true),
            ("*-disk0", "web1-disk0", true),
            ("w*-*0", "web1-disk0", true),
            ("w*x*0", "web1-disk0", false),
            ("a*a", "a", false),
            ("*a*a", "aa", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn rules_allow_and_nothing_else_does() {
        let rule = |client: &str, exports: &[&str], read_only| AccessRule {
            client: client.to_owned(),
            exports: exports.iter().map(|export| (*export).to_owned()).collect(),
            read_only,
        };
        let access = Access::only(vec![
            rule("*", &["public"], true),
            rule("backup", &["*"], true),
            rule("hypervisor", &["web1-*", "public"], false),
        ]);
        let ask = |client: &[&str], export| {
            let client: Vec<String> = client.iter().map(|name| (*name).to_owned()).collect();
            access.permission(&client, export)
        };
        assert_eq!(ask(&[], "public"), Some(Permission::ReadOnly));
        assert_eq!(ask(&[], "web1-disk0"), None);
        assert_eq!(ask(&["backup"], "web1-disk0"), Some(Permission::ReadOnly));
        assert_eq!(ask(&["hypervisor", "backup"], "web1-disk0"), Some(Permission::All));
        assert_eq!(ask(&["hypervisor"], "public"), Some(Permission::All));
        assert_eq!(ask(&["hypervisor"], "db1-disk0"), None);
        assert_eq!(Access::default().permission(&[], "anything"), Some(Permission::All));
        assert_eq!(Access::only(Vec::new()).permission(&["backup".to_owned()], "x"), None);
    }
}
