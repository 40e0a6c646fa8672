//! Trading a token for a certificate, the agent's side.

use crate::connect::connect_to_enroll;
use crate::{
    Address, AgentIdentity, AgentMessage, EnrollReply, EnrollRequest, Fingerprint, RefusalKind,
    ServerMessage, Token, check_machine_name,
};
use blocks::{Error, ErrorKind, Result};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// How long the server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes a key, has the server sign a certificate for it, and keeps both in `state_dir` (made where it is missing),
/// replacing an earlier identity. The key never leaves the machine. The secret of the token is sent only after the
/// server has proved to have the token's authority.
///
/// Errors: `InvalidInput` with the reason for a bad name, another server, or a token that is wrong, used or expired;
/// `AlreadyExists` for a name that the token may not have; `Busy` where the server cannot answer now. After any error nothing in `state_dir` has changed. A token whose answer got lost is used up all the same: ask for another.
pub async fn enroll(address: &Address, token: &Token, name: &str, state_dir: &Path) -> Result<AgentIdentity> {
    check_machine_name(name)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(|error| Error::io(format!("making {}", state_dir.display()), error))?;
    let key = rcgen::KeyPair::generate().map_err(|error| failed("making a key", error))?;
    let request = EnrollRequest {
        secret: token.secret().to_text(),
        name: name.to_owned(),
        request_pem: signing_request(&key, name)?,
    };
    let reply = ask(address, token.authority(), request).await?;
    let identity = identity_of(reply, token.authority(), name, &key)?;
    identity.save(state_dir)?;
    Ok(identity)
}

async fn ask(address: &Address, authority: Fingerprint, request: EnrollRequest) -> Result<EnrollReply> {
    let mut connection = connect_to_enroll(address, authority).await?;
    connection.set_idle_timeout(Some(ANSWER_TIMEOUT));
    connection.set_write_timeout(Some(ANSWER_TIMEOUT));
    let name = request.name.clone();
    connection.send(&AgentMessage::Enroll(request)).await?;
    let answer = connection.recv().await?;
    // The answer is here, so a failure to say goodbye changes nothing.
    let _ = connection.close().await;
    match answer {
        Some(ServerMessage::Enrolled(reply)) => Ok(reply),
        Some(ServerMessage::Refused(refusal)) => {
            let kind = match refusal.kind {
                RefusalKind::Busy | RefusalKind::Shutdown => ErrorKind::Busy,
                RefusalKind::Taken => ErrorKind::AlreadyExists,
                RefusalKind::Version | RefusalKind::Identity | RefusalKind::Disks => ErrorKind::InvalidInput,
            };
            let context = format!("{address} refuses to enroll '{name}': {}", refusal.reason);
            Err(Error::new(kind, context))
        }
        Some(_) => Err(Error::corrupt(format!("{address} answered something else than a certificate"))),
        None => Err(Error::new(ErrorKind::Io, format!("{address} closed the connection without an answer"))),
    }
}

/// The identity in a reply, which must be of the authority that the token names and of the key that we made.
fn identity_of(
    reply: EnrollReply,
    authority: Fingerprint,
    name: &str,
    key: &rcgen::KeyPair,
) -> Result<AgentIdentity> {
    let given = Fingerprint::of_pem(&reply.authority_pem)?;
    if given != authority {
        let context = format!("the server sent the authority {given}, the token names {authority}");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    AgentIdentity::from_parts(
        name.to_owned(),
        key.serialize_pem(),
        reply.certificate_pem,
        reply.authority_pem,
    )
    .map_err(|error| error.context("the certificate that the server sent"))
}

fn signing_request(key: &rcgen::KeyPair, name: &str) -> Result<String> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params
        .serialize_request(key)
        .and_then(|request| request.pem())
        .map_err(|error| failed("making a signing request", error))
}

fn failed(what: &str, error: rcgen::Error) -> Error {
    Error::with_source(ErrorKind::Io, what, error)
}
