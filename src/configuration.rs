//! The configuration file: what flags and `UNDERSTUDY_*` variables do not say.

use anyhow::{Context, anyhow};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const DEFAULT_PATH: &str = "/etc/understudy.toml";

/// The whole file. Unknown keys are errors: a misspelt one must not be silently without effect.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Configuration {
    /// Where the control socket is.
    pub control: Option<PathBuf>,
    /// `[server]`
    #[serde(default)]
    pub server: ServerSection,
    /// `[agent]`
    #[serde(default)]
    pub agent: AgentSection,
}

/// The keys are the long flags of `understudy server`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerSection {
    pub data: Option<PathBuf>,
    pub listen: Option<String>,
    pub agent_socket: Option<PathBuf>,
    #[serde(default)]
    pub nbd: Vec<String>,
    pub nbd_certificate: Option<PathBuf>,
    pub nbd_key: Option<PathBuf>,
    pub nbd_client_authorities: Option<PathBuf>,
    pub nbd_tls: Option<String>,
    #[serde(default)]
    pub nbd_allow: Vec<String>,
    pub nbd_socket_mode: Option<String>,
    pub nbd_connections: Option<usize>,
    pub keep: Option<String>,
    pub heartbeat_deadline: Option<String>,
    pub image_format: Option<String>,
    pub reserve: Option<String>,
    pub compress: Option<String>,
    pub consolidate_rate: Option<String>,
    pub scrub_every: Option<String>,
    pub scrub_rate: Option<String>,
}

/// The keys about NBD among those of a [`ServerSection`].
#[derive(Debug, Default)]
pub struct NbdKeys {
    pub nbd_certificate: Option<PathBuf>,
    pub nbd_key: Option<PathBuf>,
    pub nbd_client_authorities: Option<PathBuf>,
    pub nbd_tls: Option<String>,
    pub nbd_allow: Vec<String>,
    pub nbd_connections: Option<usize>,
}

impl ServerSection {
    /// Takes the keys about NBD out.
    pub fn take_nbd_keys(&mut self) -> NbdKeys {
        NbdKeys {
            nbd_certificate: self.nbd_certificate.take(),
            nbd_key: self.nbd_key.take(),
            nbd_client_authorities: self.nbd_client_authorities.take(),
            nbd_tls: self.nbd_tls.take(),
            nbd_allow: std::mem::take(&mut self.nbd_allow),
            nbd_connections: self.nbd_connections.take(),
        }
    }
}

/// The keys are the long flags of `understudy agent`; `disks` lists devices.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentSection {
    pub server: Option<String>,
    #[serde(default)]
    pub disks: Vec<PathBuf>,
    pub name: Option<String>,
    pub tracker: Option<String>,
    pub tap_checkpoint_every: Option<String>,
    pub tap_queue: Option<String>,
    pub tap_through: Option<String>,
    pub send: Option<String>,
    pub compress: Option<String>,
    pub rate: Option<String>,
    pub checkpoint_every: Option<String>,
    pub heartbeat: Option<String>,
    pub freeze_budget: Option<String>,
    pub freeze_hooks: Option<PathBuf>,
    pub hook_timeout: Option<String>,
    pub state: Option<PathBuf>,
}

impl Configuration {
    /// Reads the file that was named, or the usual one where it exists.
    pub fn load(named: Option<&Path>) -> anyhow::Result<Configuration> {
        let path = match named {
            Some(path) => path,
            None if Path::new(DEFAULT_PATH).exists() => Path::new(DEFAULT_PATH),
            None => return Ok(Configuration::default()),
        };
        let text =
            std::fs::read_to_string(path).with_context(|| format!("configuration {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("configuration {}", path.display()))
    }
}

/// A value of the file, by the same rules as the flag of that name.
pub fn parse<T: FromStr>(key: &str, value: Option<String>) -> anyhow::Result<Option<T>>
where
    T::Err: std::fmt::Display,
{
    let parse =
        |text: String| text.parse().map_err(|error| anyhow!("configuration key {key} = '{text}': {error}"));
    value.map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_flags_as_keys_and_refuses_others() {
        let text = "[server]\ndata = '/srv'\nnbd = ['unix:/run/nbd']\nkeep = 'all=2h,daily=7d'\n[agent]\ncheckpoint-every = '30s'\n";
        let read: Configuration = toml::from_str(text).unwrap();
        assert_eq!(read.server.keep.as_deref(), Some("all=2h,daily=7d"));
        assert_eq!(read.agent.checkpoint_every.as_deref(), Some("30s"));
        assert!(toml::from_str::<Configuration>("[server]\ndatta = '/srv'\n").is_err());
    }
}
