//! Who may connect: the server's own certificate authority, the tokens it gives out and the machines it knows.
//!
//! One folder, DATA/authority, held by one process at a time:
//!
//! ```text
//! lock                 locked while an Authority is open
//! authority.json       the authority's key and certificate, mode 0600, made at the first start
//! tokens/ID.json       a token that can be used: a hash of its secret, for whom, until when
//! tokens/ID.used       that it was used, kept for a week so that a second try hears why
//! machines/NAME.json   a machine: its certificate in force, a rescue system's, its identity, whether it was revoked
//! ```
//!
//! docs/design/0005-identity.md has the reasons.

mod certificates;
pub(crate) mod fuzzing;
mod machines;
mod tokens;

#[cfg(test)]
mod tests;

use blocks::{Error, ErrorKind, MachineId, Result, WallClock};
use certificates::Issuer;
use machines::Machines;
use std::fs::{File, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokens::Tokens;
use wire::{
    Acceptor, EnrollReply, EnrollRequest, Fingerprint, Peer, Refusal, RefusalKind, ServerMessage, Token,
    check_machine_name,
};

pub use machines::EnrolledMachine;
pub use tokens::TokenFor;

/// How long a token can be used unless its maker says otherwise.
pub const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(60 * 60);

/// The server's certificate authority. Calls touch small files and may block for a sync; handshakes answer from
/// memory.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer,
    acceptor: Acceptor,
    tokens: Tokens,
    machines: Arc<Machines>,
    /// Held over each enrolment: two that show the same token, or ask for the same name, take turns.
    enrolment: Mutex<()>,
    lock: File,
}

impl Authority {
    /// Opens the authority in `folder`, making folder and authority at the first start. `Busy` while another process
    /// has it open; `Corrupt` where a file of it cannot be read, naming the file.
    pub fn open(folder: &Path) -> Result<Authority> {
        for made in [folder.to_owned(), folder.join("tokens"), folder.join("machines")] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&made)
                .and_then(|()| std::fs::set_permissions(&made, Permissions::from_mode(0o700)))
                .map_err(|error| Error::io(format!("making {} private", made.display()), error))?;
        }
        let lock = lock(&folder.join("lock"))?;
        let issuer = Issuer::open(&folder.join("authority.json"))?;
        let machines = Arc::new(Machines::open(&folder.join("machines"))?);
        let acceptor = Acceptor::new(&issuer.server_credentials()?, machines.clone())?;
        Ok(Authority {
            folder: folder.to_owned(),
            issuer,
            acceptor,
            tokens: Tokens::new(folder.join("tokens")),
            machines,
            enrolment: Mutex::new(()),
            lock,
        })
    }

    /// What agents recognise this server by: the fingerprint of the authority's certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        self.issuer.fingerprint()
    }

    /// For [`wire::accept`].
    pub fn tls_acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }

    /// A token that one machine can enroll with until `ttl` is over. Errors: `InvalidInput` for a bad name; `NotFound` for a
    /// rescue of a machine that was never enrolled, or whose certificate was revoked.
    pub fn issue_token(&self, wanted: TokenFor, ttl: Duration) -> Result<Token> {
        match &wanted {
            TokenFor::Any => {}
            TokenFor::Named(name) => check_machine_name(name)?,
            TokenFor::Rescue(name) => {
                check_machine_name(name)?;
                self.machines.to_be_rescued(name)?;
            }
        }
        let secret = self.tokens.issue(wanted, WallClock::now(), ttl)?;
        Ok(Token::new(self.fingerprint(), secret, None))
    }

    /// Trades a token for a certificate. The token is used up, on the medium, before the certificate is made; it
    /// is not used up where the request itself is refused. Errors: `InvalidInput` for a bad name, a bad signing request
    /// and a token that is wrong, used or expired; `AlreadyExists` for a name that this token may not have.
    pub fn enroll(&self, request: &EnrollRequest) -> Result<EnrollReply> {
        check_machine_name(&request.name)?;
        let _turn = self.enrolment.lock().map_err(|_| poisoned())?;
        let now = WallClock::now();
        let token = self.tokens.find(&request.secret, now)?;
        let public_key = certificates::check_request(&request.request_pem, &request.name)?;
        match &token.name {
            Some(name) if *name != request.name => {
                let context = format!("this token is for '{name}', not for '{}'", request.name);
                return Err(Error::new(ErrorKind::InvalidInput, context));
            }
            None if self.machines.of_name(&request.name).is_some() => {
                let context = format!(
                    "'{0}' has been enrolled before; a token for that name ('understudy enroll --name {0}') replaces \
                     its certificate",
                    request.name
                );
                return Err(Error::new(ErrorKind::AlreadyExists, context));
            }
            Some(name) if token.rescue => drop(self.machines.to_be_rescued(name)?),
            _ => {}
        }
        self.tokens.use_up(&token, now)?;
        let certificate_pem = self.issuer.sign_agent(&public_key, &request.name)?;
        let certificate = Fingerprint::of_pem(&certificate_pem)?;
        match token.rescue {
            true => self.machines.enroll_rescue(&request.name, certificate)?,
            false => self.machines.enroll(&request.name, certificate, now)?,
        }
        Ok(EnrollReply { certificate_pem, authority_pem: self.issuer.certificate_pem().to_owned() })
    }

    /// [`Authority::enroll`], as the message to answer with. Failures of our own (a full disk) are `Busy`.
    pub fn answer(&self, request: &EnrollRequest) -> ServerMessage {
        match self.enroll(request) {
            Ok(reply) => ServerMessage::Enrolled(reply),
            Err(error) => {
                let kind = match error.kind() {
                    ErrorKind::InvalidInput | ErrorKind::NotFound => RefusalKind::Identity,
                    ErrorKind::AlreadyExists => RefusalKind::Taken,
                    _ => RefusalKind::Busy,
                };
                ServerMessage::Refused(Refusal { kind, reason: error.to_string() })
            }
        }
    }

    /// Whether this peer may be the machine that its hello names. `InvalidInput` says why not. A peer on this host
    /// without a certificate may be any machine that was never enrolled. To be asked again while a connection lasts
    /// (at each heartbeat, say): a revocation ends new handshakes at once, but not what is connected.
    pub fn authorize(&self, peer: &Peer, name: &str, machine: Option<MachineId>) -> Result<()> {
        let refuse = |context: String| Err(Error::new(ErrorKind::InvalidInput, context));
        let claimed = machine.and_then(|machine| self.machines.of_machine(machine));
        match peer {
            Peer::Stranger => refuse(format!("'{name}' has no certificate; enroll it first")),
            Peer::Local => match self.machines.of_name(name).or(claimed) {
                Some(enrolled) => refuse(format!(
                    "'{}' was enrolled and must connect with its certificate, over TLS",
                    enrolled.name
                )),
                None => Ok(()),
            },
            Peer::Machine(identity) => {
                let Some(enrolled) = self.machines.of_certificate(identity.certificate) else {
                    return refuse(format!("the certificate of '{}' was revoked or replaced", identity.name));
                };
                if enrolled.name != name {
                    return refuse(format!("the certificate is for '{}', not for '{name}'", enrolled.name));
                }
                match (enrolled.machine, machine, claimed) {
                    (Some(bound), Some(machine), _) if bound != machine => refuse(format!(
                        "the certificate of '{name}' belongs to machine {bound}, not to {machine}"
                    )),
                    (None, Some(machine), Some(other)) => {
                        refuse(format!("machine {machine} has the certificate of '{}'", other.name))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Ties the peer's certificate to its machine, durably: at the first hello, once [`Authority::authorize`] agreed.
    /// Changes nothing for a peer without certificate, or where it is tied already.
    pub fn bind(&self, peer: &Peer, machine: MachineId) -> Result<()> {
        match peer {
            Peer::Machine(identity) => self.machines.bind(identity.certificate, machine),
            Peer::Local | Peer::Stranger => Ok(()),
        }
    }

    /// Refuses this machine's certificate from now on. `NotFound` for a name that was never enrolled; repeating it is
    /// no error. Another certificate takes a token for that name.
    pub fn revoke(&self, name: &str) -> Result<()> {
        self.machines.revoke(name, WallClock::now())
    }

    /// Every machine that was ever enrolled, by name.
    pub fn machines(&self) -> Vec<EnrolledMachine> {
        self.machines.all()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // A program that another thread is just starting has copies of all descriptors until it runs: closing would not do.
        let _ = rustix::fs::flock(&self.lock, rustix::fs::FlockOperation::Unlock);
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({} in {})", self.fingerprint(), self.folder.display())
    }
}

fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io(format!("opening {}", path.display()), error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let context = format!("{}: another server has this authority open", path.display());
            Err(Error::new(ErrorKind::Busy, context))
        }
        Err(error) => Err(Error::io(format!("locking {}", path.display()), error.into())),
    }
}

fn poisoned() -> Error {
    Error::new(ErrorKind::Poisoned, "an earlier change of the authority ended in a panic")
}
