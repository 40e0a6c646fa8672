//! The tokens that were given out and not yet used.

use blocks::{Error, ErrorKind, Result, WallClock};
use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wire::{SECRET_BYTES, TOKEN_ID_BYTES, TokenSecret, remove_file, write_private_file};

/// How long it is remembered that a token was used or has expired, so that a late try hears the reason.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The folder of tokens.
pub(super) struct Tokens {
    folder: PathBuf,
}

/// Whom a token is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenFor {
    /// A machine of any name that was never enrolled.
    Any,
    /// The machine of this name; the certificate that it gets replaces the one that it has.
    Named(String),
    /// A rescue system on the machine of this name, which was enrolled: it speaks for the machine, whose own certificate,
    /// perhaps only to be found in the backup, stays good. What the rescue system got ends when that one is used again.
    Rescue(String),
}

/// A token that was shown and may be used.
#[derive(Debug)]
pub(super) struct ValidToken {
    id: String,
    /// The only name that it is good for.
    pub name: Option<String>,
    /// For a rescue system of that machine: its own certificate stays in force.
    pub rescue: bool,
}

#[derive(Serialize, Deserialize)]
struct TokenFile {
    /// Hexadecimal; the secret itself is nowhere.
    hash: String,
    name: Option<String>,
    #[serde(default)]
    rescue: bool,
    expires_at_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct UsedFile {
    used_at_ms: u64,
}

impl Tokens {
    pub fn new(folder: PathBuf) -> Tokens {
        Tokens { folder }
    }

    pub fn issue(&self, wanted: TokenFor, now: WallClock, ttl: Duration) -> Result<TokenSecret> {
        self.forget_old(now)?;
        let secret = random_secret()?;
        let (name, rescue) = match wanted {
            TokenFor::Any => (None, false),
            TokenFor::Named(name) => (Some(name), false),
            TokenFor::Rescue(name) => (Some(name), true),
        };
        let file = TokenFile {
            hash: secret.hash().to_hex().to_string(),
            name,
            rescue,
            expires_at_ms: now.0.saturating_add(millis(ttl)),
        };
        write(&self.path(&secret.id(), "json"), &file)?;
        Ok(secret)
    }

    /// The token with this secret. Every refusal comes after the same hashing and the same comparison in constant time;
    /// that a token was used or has expired is only told to who has its number or its secret.
    pub fn find(&self, secret: &str, now: WallClock) -> Result<ValidToken> {
        let refuse = |why: &str| Err(Error::new(ErrorKind::InvalidInput, format!("the token {why}")));
        let secret = TokenSecret::from_text(secret)?;
        let id = secret.id();
        let file: Option<TokenFile> = read(&self.path(&id, "json"))?;
        let used: Option<UsedFile> = read(&self.path(&id, "used"))?;
        let kept = file.as_ref().and_then(|file| blake3::Hash::from_hex(&file.hash).ok());
        let matches = secret.hash() == kept.unwrap_or(blake3::Hash::from_bytes([0; 32]));
        match file {
            _ if used.is_some() => refuse("was used already; each token enrolls one machine"),
            Some(file) if matches && file.expires_at_ms <= now.0 => refuse("has expired; ask for another"),
            Some(file) if matches => Ok(ValidToken { id, name: file.name, rescue: file.rescue }),
            _ => refuse("is not one that this server gave out"),
        }
    }

    /// When it returns, no crash brings the token back.
    pub fn use_up(&self, token: &ValidToken, now: WallClock) -> Result<()> {
        write(&self.path(&token.id, "used"), &UsedFile { used_at_ms: now.0 })?;
        remove_file(&self.path(&token.id, "json"))
    }

    fn path(&self, id: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{id}.{extension}"))
    }

    /// Keeps the folder small. A crash of [`Tokens::use_up`] may have left both files; each goes in its time.
    fn forget_old(&self, now: WallClock) -> Result<()> {
        let failed = |error| Error::io(format!("reading {}", self.folder.display()), error);
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let done_at = match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => read::<TokenFile>(&path)?.map(|file| file.expires_at_ms),
                Some("used") => read::<UsedFile>(&path)?.map(|file| file.used_at_ms),
                _ => None,
            };
            if done_at.is_some_and(|at| at.saturating_add(millis(REMEMBERED)) < now.0) {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

fn random_secret() -> Result<TokenSecret> {
    let (mut id, mut secret) = ([0; TOKEN_ID_BYTES], [0; SECRET_BYTES]);
    for bytes in [&mut id[..], &mut secret] {
        rand::rngs::OsRng.try_fill_bytes(bytes).map_err(|error| {
            Error::with_source(ErrorKind::Io, "the operating system gives no random numbers", error)
        })?;
    }
    Ok(TokenSecret::new(id, secret))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn write(path: &Path, content: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec(content).expect("a token's file is text and numbers");
    write_private_file(path, &json)
}

fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8], path: &Path) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::with_source(ErrorKind::Corrupt, path.display().to_string(), error))
}

/// Reads what may be a token's file or say that one was used: for fuzzing.
pub(super) fn decode(bytes: &[u8], path: &Path) -> Result<()> {
    parse::<TokenFile>(bytes, path).map(drop).or_else(|_| parse::<UsedFile>(bytes, path).map(drop))
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&bytes, path).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("reading {}", path.display()), error)),
    }
}
