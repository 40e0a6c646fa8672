//! An authority and what it signs, in the files that libnbd, QEMU and nbd-client look for.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::path::{Path, PathBuf};

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = params("authority of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        Authority { issuer: Issuer::new(params, key), pem: certificate.pem() }
    }

    /// Writes `ca-cert.pem` and the pair `KIND-cert.pem`, `KIND-key.pem` of that name into the folder.
    pub fn write(&self, dir: &Path, kind: &str, name: &str) -> PathBuf {
        let key = KeyPair::generate().unwrap();
        let mut params = params(name);
        params.extended_key_usages = match kind {
            "server" => vec![ExtendedKeyUsagePurpose::ServerAuth],
            _ => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        if kind == "server" {
            params.subject_alt_names = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])
                .unwrap()
                .subject_alt_names;
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("ca-cert.pem"), &self.pem).unwrap();
        fs::write(dir.join(format!("{kind}-cert.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{kind}-key.pem")), key.serialize_pem()).unwrap();
        dir.to_owned()
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 12, 31);
    params.use_authority_key_identifier_extension = true;
    params
}
