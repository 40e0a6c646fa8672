//! Mutual TLS 1.3, pinned to one authority. docs/design/0005-identity.md says why it is as it is.

use crate::{AgentIdentity, Fingerprint};
use blocks::{Error, ErrorKind, MachineId, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme, version::TLS13,
};
use std::fmt;
use std::sync::Arc;

/// The name in every server's certificate. A server is known by its authority, never by its address, so that it can
/// move without new certificates.
pub const SERVER_NAME: &str = "understudy-server";

/// Who a connection's certificate belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The machine's name, fixed at enrolment.
    pub name: String,
    /// The machine, once its first hello has bound it to the certificate.
    pub machine: Option<MachineId>,
    /// The certificate.
    pub certificate: Fingerprint,
}

/// Knows the certificates that are in force. Asked in every handshake, so it must answer from memory.
pub trait Directory: Send + Sync {
    /// Whose certificate this is; `None` for one that was revoked, replaced or never given out.
    fn machine_of(&self, certificate: Fingerprint) -> Option<PeerIdentity>;
}

/// What a server proves itself with, as PEM.
#[derive(Clone)]
pub struct ServerCredentials {
    /// A certificate for [`SERVER_NAME`] that the authority signed.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
    /// The authority's certificate, which also signs the agents'.
    pub authority_pem: String,
}

/// The server's side of TLS handshakes.
#[derive(Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    directory: Arc<dyn Directory>,
}

impl Acceptor {
    /// Accepts agents whose certificate `directory` knows, and strangers who have none and may only enroll.
    pub fn new(credentials: &ServerCredentials, directory: Arc<dyn Directory>) -> Result<Acceptor> {
        let authority = certificate(&credentials.authority_pem)?;
        let chain = vec![certificate(&credentials.certificate_pem)?, authority.clone()];
        let web = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| invalid("the server's authority", error))?;
        let verifier = KnownAgents { web, directory: directory.clone() };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| invalid("TLS 1.3", error))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(chain, private_key(&credentials.key_pem)?)
            .map_err(|error| invalid("the server's certificate", error))?;
        // A resumed session would not show its certificate again, so a revoked one could come back with it.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Acceptor { config: Arc::new(config), directory })
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    pub(crate) fn machine_of(&self, certificate: &CertificateDer<'_>) -> Option<PeerIdentity> {
        self.directory.machine_of(Fingerprint::of(certificate))
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor(mutual TLS 1.3)")
    }
}

/// Whether a connection failed because one side does not accept who the other is: trying again will not help until
/// the machine is enrolled anew.
pub fn refused_identity(error: &Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        let tls = error.downcast_ref().or_else(|| inner.and_then(|inner| inner.downcast_ref()));
        if let Some(tls) = tls {
            return is_identity_error(tls);
        }
        cause = error.source();
    }
    false
}

fn is_identity_error(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => true,
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError
                | Alert::CertificateRequired
        ),
        _ => false,
    }
}

/// How an enrolled agent connects.
pub(crate) fn agent_config(identity: &AgentIdentity) -> Result<Arc<ClientConfig>> {
    let file = identity.file();
    let config = client_builder()?
        .with_root_certificates(roots(certificate(&file.authority_pem)?)?)
        .with_client_auth_cert(vec![certificate(&file.certificate_pem)?], private_key(&file.key_pem)?)
        .map_err(|error| invalid("the agent's certificate and key", error))?;
    Ok(Arc::new(config))
}

/// How an agent connects that has nothing but a token: no certificate, and exactly that authority.
pub(crate) fn enrolment_config(authority: Fingerprint) -> Result<Arc<ClientConfig>> {
    let config = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority { authority, provider: provider() }))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("the constant is a DNS name")
}

pub(crate) fn certificate(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| invalid("a certificate in PEM form", error))
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| invalid("a private key in PEM form", error))
}

fn roots(authority: CertificateDer<'static>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| invalid("the authority's certificate", error))?;
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| invalid("TLS 1.3", error))
}

fn invalid(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::with_source(ErrorKind::InvalidInput, what, error)
}

/// Accepts a server whose chain holds the authority with this fingerprint and whose certificate that authority signed.
#[derive(Debug)]
struct PinnedAuthority {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.authority)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What the authority signed *and* the directory still knows.
struct KnownAgents {
    web: Arc<dyn ClientCertVerifier>,
    directory: Arc<dyn Directory>,
}

impl fmt::Debug for KnownAgents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownAgents")
    }
}

impl ClientCertVerifier for KnownAgents {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.web.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        let verified = self.web.verify_client_cert(end_entity, intermediates, now)?;
        match self.directory.machine_of(Fingerprint::of(end_entity)) {
            Some(_) => Ok(verified),
            None => Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.web.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.web.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web.supported_verify_schemes()
    }
}
