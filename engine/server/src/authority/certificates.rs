//! The authority's key, and what is signed with it.

use blocks::{Error, ErrorKind, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKey,
};
use serde::{Deserialize, Serialize};
use std::path::Path;
use wire::{Fingerprint, SERVER_NAME, ServerCredentials, write_private_file};

const VERSION: u32 = 1;

/// The authority: a key and the self-signed certificate that agents pin.
pub(super) struct Issuer {
    issuer: rcgen::Issuer<'static, KeyPair>,
    certificate_pem: String,
    fingerprint: Fingerprint,
}

#[derive(Serialize, Deserialize)]
struct IssuerFile {
    version: u32,
    key_pem: String,
    certificate_pem: String,
}

impl Issuer {
    /// Reads the authority, or makes one where there is none. Key and certificate are one file: no crash parts them.
    pub fn open(path: &Path) -> Result<Issuer> {
        let file = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| damaged(path, error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(path)?,
            Err(error) => return Err(Error::io(format!("reading {}", path.display()), error)),
        };
        if file.version != VERSION {
            let context = format!("{} has version {}, known is {VERSION}", path.display(), file.version);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let key = KeyPair::from_pem(&file.key_pem).map_err(|error| damaged(path, error))?;
        let issuer = rcgen::Issuer::from_ca_cert_pem(&file.certificate_pem, key)
            .map_err(|error| damaged(path, error))?;
        let fingerprint =
            Fingerprint::of_pem(&file.certificate_pem).map_err(|error| error.context(path.display()))?;
        Ok(Issuer { issuer, certificate_pem: file.certificate_pem, fingerprint })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// A key and a certificate for the server, made anew at each start: one secret less on the disk.
    pub fn server_credentials(&self) -> Result<ServerCredentials> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params(SERVER_NAME);
        params.subject_alt_names = vec![rcgen::SanType::DnsName(SERVER_NAME.try_into().map_err(failed)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(ServerCredentials {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            authority_pem: self.certificate_pem.clone(),
        })
    }

    /// An agent's certificate. Nothing in it comes from the agent but the key.
    pub fn sign_agent(&self, public_key: &PublicKey, name: &str) -> Result<String> {
        let mut params = params(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(public_key, &self.issuer).map_err(failed)?.pem())
    }
}

/// The key of a signing request, whose signature proves that the sender has it. `InvalidInput` where the request is
/// malformed, signed by another key, or for another name.
pub(super) fn check_request(request_pem: &str, name: &str) -> Result<PublicKey> {
    let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(|error| {
        Error::with_source(ErrorKind::InvalidInput, "the signing request cannot be accepted", error)
    })?;
    let asked = match request.params.distinguished_name.get(&DnType::CommonName) {
        Some(DnValue::Utf8String(text)) => text.as_str(),
        Some(DnValue::PrintableString(text)) => text.as_str(),
        _ => "",
    };
    if asked != name {
        let context = format!("the signing request is for '{}', not for '{name}'", asked.escape_debug());
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    Ok(request.public_key)
}

fn make(path: &Path) -> Result<IssuerFile> {
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = params("understudy authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    let file =
        IssuerFile { version: VERSION, key_pem: key.serialize_pem(), certificate_pem: certificate.pem() };
    write_private_file(path, &serde_json::to_vec(&file).expect("an authority is only text"))?;
    Ok(file)
}

/// Valid at any time: a machine whose clock is wrong is often exactly the one that needs its stand-in. Revocation,
/// not age, ends a certificate.
fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    params.use_authority_key_identifier_extension = true;
    params
}

fn damaged(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::with_source(ErrorKind::Corrupt, path.display().to_string(), error)
}

fn failed(error: rcgen::Error) -> Error {
    Error::with_source(ErrorKind::Io, "making a certificate", error)
}
