//! How disks are served: the flags that `server` and `serve` share.

use crate::arguments::{NbdArguments, UsageError};
use crate::configuration::NbdKeys;
use nbd_server::{Access, AccessRule, ServerOptions, ServerTls, TlsFiles};

/// What flags and configuration say about encryption and access. A flag counts more than the key of its name.
pub fn options(flags: NbdArguments, file: NbdKeys) -> anyhow::Result<ServerOptions> {
    let allow = if flags.nbd_allow.is_empty() { file.nbd_allow } else { flags.nbd_allow };
    let certificate = flags.nbd_certificate.or(file.nbd_certificate);
    let key = flags.nbd_key.or(file.nbd_key);
    let client_authorities = flags.nbd_client_authorities.or(file.nbd_client_authorities);
    let required = match flags.nbd_tls.or(file.nbd_tls).as_deref() {
        None | Some("required") => true,
        Some("optional") => false,
        Some(other) => return usage(format!("--nbd-tls {other}: wants required or optional")),
    };
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            Some(ServerTls::load(&TlsFiles { certificate, key, client_authorities }, required)?)
        }
        (None, None) if client_authorities.is_none() => None,
        _ => return usage("--nbd-certificate and --nbd-key go together".to_owned()),
    };
    let mut options = ServerOptions { tls, ..ServerOptions::default() };
    if !allow.is_empty() {
        let rules = allow.iter().map(|text| rule(text)).collect::<anyhow::Result<_>>()?;
        options.access = Access::only(rules);
    }
    if let Some(connections) = flags.nbd_connections.or(file.nbd_connections) {
        options.limits.connections_max = connections;
    }
    Ok(options)
}

/// The mode of unix sockets, in octal.
pub fn socket_mode(flag: Option<&str>, key: Option<&str>) -> anyhow::Result<Option<u32>> {
    let Some(text) = flag.or(key) else { return Ok(None) };
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(Some(mode)),
        _ => usage(format!("--nbd-socket-mode {text}: wants an octal mode such as 0660")),
    }
}

/// `CLIENT=EXPORT[,EXPORT...][:ro]`
fn rule(text: &str) -> anyhow::Result<AccessRule> {
    let (text_without_mode, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    match text_without_mode.split_once('=') {
        Some((client, exports)) if !client.is_empty() && !exports.is_empty() => Ok(AccessRule {
            client: client.to_owned(),
            exports: exports.split(',').map(str::to_owned).collect(),
            read_only,
        }),
        _ => usage(format!("--nbd-allow {text}: wants CLIENT=EXPORT[,EXPORT...][:ro]")),
    }
}

fn usage<T>(message: String) -> anyhow::Result<T> {
    Err(UsageError(message).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_they_are_documented() {
        let read = rule("backup=web1-*,db1-disk0:ro").unwrap();
        assert_eq!(read.client, "backup");
        assert_eq!(read.exports, ["web1-*", "db1-disk0"]);
        assert!(read.read_only && !rule("*=public").unwrap().read_only);
        for wrong in ["backup", "=x", "backup=", ":ro"] {
            assert!(rule(wrong).unwrap_err().to_string().contains(wrong));
        }
        assert_eq!(socket_mode(Some("0660"), None).unwrap(), Some(0o660));
        assert!(socket_mode(Some("0999"), None).is_err());
    }
}
