//! What an agent keeps to be recognised by.

use crate::{Fingerprint, tls, write_private_file};
use blocks::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// An agent's key, its certificate, and the authority that both sides trust. One file, so that no crash leaves a key
/// without its certificate.
#[derive(Clone)]
pub struct AgentIdentity {
    file: IdentityFile,
    certificate: Fingerprint,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct IdentityFile {
    pub version: u32,
    pub name: String,
    pub key_pem: String,
    pub certificate_pem: String,
    pub authority_pem: String,
}

const VERSION: u32 = 1;

impl AgentIdentity {
    /// The identity that [`crate::enroll()`] left in `state_dir`. `NotFound` where no enrolment has succeeded,
    /// `Corrupt` where the file is damaged.
    pub fn load(state_dir: &Path) -> Result<AgentIdentity> {
        let path = AgentIdentity::path(state_dir);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Error::io(format!("reading the agent's identity {}", path.display()), error))?;
        let file: IdentityFile = serde_json::from_str(&text)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, path.display().to_string(), error))?;
        if file.version != VERSION {
            let context = format!("{} has version {}, known is {VERSION}", path.display(), file.version);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        AgentIdentity::from_parts(file.name, file.key_pem, file.certificate_pem, file.authority_pem)
            .map_err(|error| error.context(path.display()))
    }

    /// Where an agent with this folder for its state keeps its identity.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("identity.json")
    }

    /// Checks that the parts belong together before any of them is kept or used.
    pub(crate) fn from_parts(
        name: String,
        key_pem: String,
        certificate_pem: String,
        authority_pem: String,
    ) -> Result<AgentIdentity> {
        let certificate = Fingerprint::of_pem(&certificate_pem)?;
        let identity = AgentIdentity {
            file: IdentityFile { version: VERSION, name, key_pem, certificate_pem, authority_pem },
            certificate,
        };
        tls::agent_config(&identity)?;
        Ok(identity)
    }

    pub(crate) fn save(&self, state_dir: &Path) -> Result<()> {
        let json = serde_json::to_vec(&self.file).expect("an identity is only text");
        write_private_file(&AgentIdentity::path(state_dir), &json)
    }

    pub(crate) fn file(&self) -> &IdentityFile {
        &self.file
    }

    /// The name that this machine was enrolled under.
    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// The certificate's fingerprint, which is what the server knows the agent by.
    pub fn certificate(&self) -> Fingerprint {
        self.certificate
    }

    /// The fingerprint of the server's authority.
    pub fn authority(&self) -> Result<Fingerprint> {
        Fingerprint::of_pem(&self.file.authority_pem)
    }
}

impl fmt::Debug for AgentIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentIdentity({} with certificate {})", self.file.name, self.certificate)
    }
}
