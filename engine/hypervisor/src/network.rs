//! What the network cards of a stand-in are plugged into.

use blocks::{Error, ErrorKind, Result};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// What the network cards are plugged into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Network {
    /// QEMU's own network, which leads out, and in only where a port is forwarded.
    User(UserNetwork),
    /// A bridge of the host.
    Bridge(String),
    /// Nothing.
    Unplugged,
}

/// QEMU's own network.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UserNetwork {
    /// Its addresses, where the guest has one of its own: `192.168.1.0/24`; 10.0.2.0/24 where nothing is said.
    pub net: Option<(Ipv4Addr, u8)>,
    /// The host's address on it, which guests take for their router.
    pub host: Option<Ipv4Addr>,
    /// Ports of the host that lead to the first network card.
    pub forwards: Vec<Forward>,
    /// Nothing leads out: the guest reaches neither the host nor anything behind it. Forwarded ports still lead in.
    pub is_isolated: bool,
}

/// A port of the host that leads to one of the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forward {
    /// UDP and not TCP.
    pub is_udp: bool,
    /// Where the host listens; on all its addresses where nothing is said.
    pub host: Option<Ipv4Addr>,
    /// The host's port.
    pub host_port: u16,
    /// The guest's address; the first that its network gives out where nothing is said.
    pub guest: Option<Ipv4Addr>,
    /// The guest's port.
    pub guest_port: u16,
}

impl Default for Network {
    fn default() -> Network {
        Network::User(UserNetwork::default())
    }
}

impl Network {
    /// The same for a drill: nothing that the guest says reaches anybody. A bridge is left for QEMU's own network.
    pub fn isolated(self) -> Network {
        match self {
            Network::User(user) => Network::User(UserNetwork { is_isolated: true, ..user }),
            Network::Bridge(_) => Network::User(UserNetwork { is_isolated: true, ..UserNetwork::default() }),
            Network::Unplugged => Network::Unplugged,
        }
    }

    /// QEMU's word for what the card of that number is plugged into; `None` for nothing.
    pub(crate) fn netdev(&self, number: u32) -> Option<String> {
        match self {
            Network::Unplugged => None,
            Network::Bridge(name) => Some(format!("bridge,id=net{number},br={name}")),
            Network::User(user) => {
                let mut word = format!("user,id=net{number}");
                if user.is_isolated {
                    word.push_str(",restrict=on");
                }
                if let Some((net, bits)) = user.net {
                    word.push_str(&format!(",net={net}/{bits}"));
                }
                if let Some(host) = user.host {
                    word.push_str(&format!(",host={host}"));
                }
                let forwards = user.forwards.iter().filter(|_| number == 0);
                forwards.for_each(|forward| word.push_str(&format!(",hostfwd={forward}")));
                Some(word)
            }
        }
    }
}

impl fmt::Display for Network {
    /// As [`Network::from_str`] takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::Unplugged => f.write_str("none"),
            Network::Bridge(name) => write!(f, "bridge={name}"),
            Network::User(user) => {
                f.write_str(if user.is_isolated { "user,restrict=on" } else { "user" })?;
                user.net.iter().try_for_each(|(net, bits)| write!(f, ",net={net}/{bits}"))?;
                user.host.iter().try_for_each(|host| write!(f, ",host={host}"))?;
                user.forwards.iter().try_for_each(|forward| write!(f, ",hostfwd={forward}"))
            }
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |address: Option<Ipv4Addr>| address.map(|address| address.to_string()).unwrap_or_default();
        let protocol = if self.is_udp { "udp" } else { "tcp" };
        let (host, guest) = (text(self.host), text(self.guest));
        write!(f, "{protocol}:{host}:{}-{guest}:{}", self.host_port, self.guest_port)
    }
}

fn wrong(text: &str, why: &str) -> Error {
    let text: String = text.chars().take(80).collect();
    Error::new(ErrorKind::InvalidInput, format!("network '{}': {why}", text.escape_debug()))
}

impl FromStr for Network {
    type Err = Error;

    /// `user[,restrict=on][,net=ADDRESS/BITS][,host=ADDRESS][,hostfwd=tcp:[ADDRESS]:PORT-[ADDRESS]:PORT]...`,
    /// `bridge=NAME` or `none`.
    fn from_str(text: &str) -> Result<Network> {
        if text == "none" {
            return Ok(Network::Unplugged);
        }
        if let Some(name) = text.strip_prefix("bridge=") {
            let in_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            return match !name.is_empty() && name.len() < 16 && name.chars().all(in_name) {
                true => Ok(Network::Bridge(name.to_owned())),
                false => Err(wrong(text, "that is no name of a bridge")),
            };
        }
        let mut parts = text.split(',');
        if parts.next() != Some("user") {
            return Err(wrong(text, "there are user, bridge=NAME and none"));
        }
        let mut user = UserNetwork::default();
        for part in parts {
            match part.split_once('=') {
                Some(("net", value)) => {
                    user.net = Some(net(value).ok_or_else(|| wrong(text, "net=ADDRESS/BITS"))?)
                }
                Some(("host", value)) => {
                    user.host = Some(value.parse().map_err(|_| wrong(text, "host=ADDRESS"))?);
                }
                Some(("restrict", "on")) => user.is_isolated = true,
                Some(("hostfwd", value)) => user.forwards.push(forward(value).ok_or_else(|| {
                    wrong(
                        text,
                        "hostfwd=tcp:[ADDRESS]:PORT-[ADDRESS]:PORT, with udp in place of tcp if need be",
                    )
                })?),
                _ => return Err(wrong(text, "after user come restrict=on, net=, host= and hostfwd=")),
            }
        }
        Ok(Network::User(user))
    }
}

fn net(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let bits = bits.parse().ok().filter(|bits| (8..=30).contains(bits))?;
    Some((address.parse().ok()?, bits))
}

fn forward(text: &str) -> Option<Forward> {
    let (protocol, rest) = text.split_once(':')?;
    let is_udp = match protocol {
        "tcp" => false,
        "udp" => true,
        _ => return None,
    };
    let (host, guest) = rest.split_once('-')?;
    let ((host, host_port), (guest, guest_port)) = (end(host)?, end(guest)?);
    Some(Forward { is_udp, host, host_port, guest, guest_port })
}

/// `[ADDRESS]:PORT`
fn end(text: &str) -> Option<(Option<Ipv4Addr>, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let address = if address.is_empty() { None } else { Some(address.parse().ok()?) };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_qemu_is_told() {
        let text = "user,net=192.168.1.0/24,host=192.168.1.1,hostfwd=tcp:127.0.0.1:8080-192.168.1.10:80,\
                    hostfwd=udp::53-:53";
        let network: Network = text.parse().unwrap();
        assert_eq!(network.to_string(), text);
        assert_eq!(network.netdev(0).unwrap(), text.replacen("user", "user,id=net0", 1));
        assert!(!network.netdev(1).unwrap().contains("hostfwd"), "a port leads to one card");
        let isolated = network.isolated();
        assert_eq!(isolated.to_string().parse::<Network>().unwrap(), isolated);
        let isolated = isolated.netdev(0).unwrap();
        assert!(isolated.contains("restrict=on") && isolated.contains(":8080-"), "{isolated}");
        let bridge: Network = "bridge=br0".parse().unwrap();
        assert_eq!(bridge.netdev(1).unwrap(), "bridge,id=net1,br=br0");
        assert_eq!(bridge.isolated().netdev(0).unwrap(), "user,id=net0,restrict=on");
        assert_eq!("none".parse::<Network>().unwrap().netdev(0), None);
    }

    #[test]
    fn nothing_else_gets_through() {
        for wrong in [
            "",
            "users",
            "bridge=",
            "bridge=a,helper=/bin/sh",
            "user,smb=/etc",
            "user,guestfwd=tcp:10.0.2.100:1-cmd:sh",
            "user,hostfwd=tcp::0-:1",
            "user,hostfwd=tcp::1-:2x",
            "user,hostfwd=tcp:a:1-:2",
            "user,net=1.2.3.4/33",
            "user,restrict=off",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong:?}");
        }
    }
}
