//! Where an endpoint listens: `mem:name`, `shm:<host id>/<name>`, `unix:<host id>/<name>`,
//! `tcp:127.0.0.1:4711`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::unix::NAME_MAX_BYTES;

/// The kinds of transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// Within one OS process; the executable specification.
    Mem,
    /// Shared memory on one host.
    Shm,
    /// Unix stream sockets on one host.
    Unix,
    /// RDMA verbs: InfiniBand and RoCE.
    Verbs,
    /// TCP.
    Tcp,
}

impl TransportKind {
    /// All kinds, the preferred ones first.
    pub const ALL: [Self; 5] = [Self::Mem, Self::Shm, Self::Unix, Self::Verbs, Self::Tcp];

    /// The name, as in addresses and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Shm => "shm",
            Self::Unix => "unix",
            Self::Verbs => "verbs",
            Self::Tcp => "tcp",
        }
    }

    /// Whether its peers speak over a stream socket, each look at which is a system call.
    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Unix | Self::Tcp)
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TransportKind {
    type Err = AddressError;

    fn from_str(s: &str) -> Result<Self, AddressError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == s)
            .ok_or_else(|| AddressError::Transport(s.into()))
    }
}

/// Names a host: processes with the same id can share memory.
///
/// It is a hash of the kernel's boot id and the network namespace (abstract sockets do not cross
/// it); `PRAAS_HOST_ID`, 32 hexadecimal digits, overrides it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(pub u128);

impl HostId {
    /// This host's id.
    pub fn local() -> Self {
        static LOCAL: OnceLock<HostId> = OnceLock::new();
        *LOCAL.get_or_init(|| {
            let netns = std::fs::read_link("/proc/self/ns/net");
            Self::new(netns.unwrap_or_default().as_os_str().as_encoded_bytes())
        })
    }

    /// The id of the machine, whatever the network namespace: processes with the same one can reach
    /// each other's Unix sockets at paths that both see.
    pub fn machine() -> Self {
        static MACHINE: OnceLock<HostId> = OnceLock::new();
        *MACHINE.get_or_init(|| Self::new(b""))
    }

    fn new(namespace: &[u8]) -> Self {
        let set = std::env::var("PRAAS_HOST_ID").ok();
        if let Some(id) = set.and_then(|text| text.parse().ok()) {
            return id;
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let mut hasher = blake3::Hasher::new();
        hasher.update(boot.unwrap_or_default().trim().as_bytes());
        hasher.update(namespace);
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        HostId(u128::from_le_bytes(id))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}

impl FromStr for HostId {
    type Err = AddressError;

    fn from_str(s: &str) -> Result<Self, AddressError> {
        if s.len() != 32 {
            return Err(AddressError::HostId(s.into()));
        }
        u128::from_str_radix(s, 16)
            .map(Self)
            .map_err(|_| AddressError::HostId(s.into()))
    }
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The part before the colon names no transport.
    #[error("'{0}' is no transport: use mem, shm, unix, verbs or tcp")]
    Transport(Box<str>),
    /// A host id is 32 hexadecimal digits.
    #[error("'{0}' is no host id (32 hexadecimal digits)")]
    HostId(Box<str>),
    /// What follows the transport does not fit it.
    #[error(
        "'{0}' is no address: use mem:NAME, shm:HOSTID/NAME, unix:HOSTID/NAME, verbs:IP:PORT or \
         tcp:IP:PORT"
    )]
    Form(Box<str>),
}

/// Where an endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A name within this OS process.
    Mem(String),
    /// An abstract Unix socket on a host, over which a shared segment is handed out.
    Shm {
        /// The host.
        host: HostId,
        /// The socket's abstract name.
        name: String,
    },
    /// A Unix stream socket on a host.
    Unix {
        /// The host; of a path, [`HostId::machine`].
        host: HostId,
        /// The socket's abstract name, or its path, which begins with a slash.
        name: String,
    },
    /// An IP address and port, over which RDMA connections are set up.
    Verbs(SocketAddr),
    /// An IP address and port.
    Tcp(SocketAddr),
}

impl Address {
    /// The transport that the address belongs to.
    pub fn kind(&self) -> TransportKind {
        match self {
            Self::Mem(_) => TransportKind::Mem,
            Self::Shm { .. } => TransportKind::Shm,
            Self::Unix { .. } => TransportKind::Unix,
            Self::Verbs(_) => TransportKind::Verbs,
            Self::Tcp(_) => TransportKind::Tcp,
        }
    }
}

impl Address {
    /// Why it cannot be reached from this host, if it belongs to another one.
    pub(crate) fn elsewhere(&self) -> Option<String> {
        let (host, here) = match self {
            Self::Shm { host, .. } => (host, HostId::local()),
            Self::Unix { host, name } if name.starts_with('/') => (host, HostId::machine()),
            Self::Unix { host, .. } => (host, HostId::local()),
            Self::Mem(_) | Self::Verbs(_) | Self::Tcp(_) => return None,
        };
        (*host != here).then(|| format!("another host: this one is {here}"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mem(name) => write!(f, "mem:{name}"),
            Self::Shm { host, name } => write!(f, "shm:{host}/{name}"),
            Self::Unix { host, name } => write!(f, "unix:{host}/{name}"),
            Self::Verbs(at) => write!(f, "verbs:{at}"),
            Self::Tcp(at) => write!(f, "tcp:{at}"),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(s: &str) -> Result<Self, AddressError> {
        let form = || AddressError::Form(s.into());
        let (kind, rest) = s.split_once(':').ok_or_else(form)?;
        match kind.parse()? {
            TransportKind::Mem if !rest.is_empty() => Ok(Self::Mem(rest.into())),
            TransportKind::Shm => {
                let (host, name) = rest.split_once('/').ok_or_else(form)?;
                if name.is_empty() || name.len() > 100 {
                    return Err(form());
                }
                Ok(Self::Shm {
                    host: host.parse()?,
                    name: name.into(),
                })
            }
            TransportKind::Unix => {
                let (host, name) = rest.split_once('/').ok_or_else(form)?;
                if name.is_empty() || name.len() > NAME_MAX_BYTES {
                    return Err(form());
                }
                Ok(Self::Unix {
                    host: host.parse()?,
                    name: name.into(),
                })
            }
            TransportKind::Verbs => rest.parse().map(Self::Verbs).map_err(|_| form()),
            TransportKind::Tcp => rest.parse().map(Self::Tcp).map_err(|_| form()),
            TransportKind::Mem => Err(form()),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Reads arbitrary bytes as an address: what is accepted prints to an address that is the same.
#[doc(hidden)]
pub fn fuzz_address(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(address) = text.parse::<Address>()
    {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_an_address_or_not(
            text in "((mem|shm|unix|verbs|tcp):)?[0-9a-f./:\\[\\]]{0,60}|.{0,40}",
        ) {
            fuzz_address(text.as_bytes());
        }
    }

    #[test]
    fn addresses_print_and_parse() {
        for text in [
            "mem:a",
            "tcp:127.0.0.1:80",
            "tcp:[::1]:9",
            "verbs:10.0.0.1:4711",
            &format!("shm:{}/x", HostId::local()),
            &format!("unix:{}/x", HostId::local()),
            &format!("unix:{}//run/x/y.sock", HostId::machine()),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "tcp",
            "tcp:x",
            "shm:12/x",
            "udp:1",
            "mem:",
            &format!("shm:{:032x}/", 1),
            &format!("unix:{:032x}/", 1),
            &format!("unix:{:032x}/{}", 1, "x".repeat(108)),
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
