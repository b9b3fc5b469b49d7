//! Agent and host: what they say to one another over a Unix stream socket.
//!
//! ```text
//!   agent                                        host
//!     | -- spawn, one end of a socket pair ------> |
//!     | -- Start{who, functions, secrets, ...} --> |
//!     | <---------------- Ready{addresses} | Failed|
//!     | -- World, Keys, SwapOut, Stop -----------> |
//!     | <---------------- Swapped | SwapFailed     |
//!     | -- Checkpoint ---------------------------> |
//!     | <------ Checkpointed | CheckpointFailed    |
//!     | <-------------------- CheckpointUnasked -- |
//!     x  agent dies                                |
//!     | <-- Hello{who, state} on agent.sock ------ |  redials, for agent_grace_s
//!     | -- Adopted{directory} -------------------> |
//! ```
//!
//! A host that gets SIGTERM, or that no agent adopts in time, swaps out unasked: `Swapped` or
//! `SwapFailed` comes then without a `SwapOut` before it, and the host ends either way.
//!
//! Messages are typed values of the codec behind a 32-bit little-endian length.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use praas_transport::{Address, Kinds, Secret};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::process::{ProcessSettings, ProcessStats};
use crate::swap::SwapConfig;
use crate::world::World;

/// Bytes that one message may have.
pub const HOST_MESSAGE_MAX_BYTES: usize = 16 << 20;

/// All that a host needs to become a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostStart {
    /// Application.
    pub application: String,
    /// Process.
    pub process: String,
    /// Incarnation.
    pub incarnation: u64,
    /// The first incarnation of the process's present life, which began when it was last created.
    /// A later one begins with the newest image of this life that verifies.
    pub life: u64,
    /// Paths of the modules to load.
    pub modules: Vec<String>,
    /// Settings.
    pub settings: ProcessSettings,
    /// Where to listen for TCP, at addresses that others can dial; port zero lets the kernel
    /// choose. Empty is 127.0.0.1. Every host listens on shared memory and a Unix socket besides.
    pub listen: Vec<SocketAddr>,
    /// Where to listen for RDMA, at addresses of RDMA ports; the unspecified one stands for that of
    /// some port. Empty is nowhere.
    pub verbs_listen: Vec<SocketAddr>,
    /// The folder for its Unix socket; without one, the socket is abstract.
    pub unix_dir: Option<String>,
    /// Number of the secret.
    pub key_id: u32,
    /// The application's secret.
    pub secret: Secret,
    /// Where the agent serves the directory.
    pub directory: Vec<Address>,
    /// The transports to reach others by.
    pub transports: Kinds,
    /// Where swap images are kept: a URL for [`storage_open`](crate::swap::storage_open).
    pub storage: String,
    /// How they are written.
    pub swap: SwapConfig,
    /// The generation of the last image that was confirmed; zero: there may be none, and the
    /// process begins empty then. If it does not verify any more, an older one is loaded, and
    /// `Ready` says so; that there is no image at all is an error.
    pub swap_generation: u64,
    /// The agent's socket, to redial.
    pub agent_socket: String,
    /// Seconds that the host goes without an agent before it swaps out and ends.
    pub agent_grace_s: u64,
    /// Processors to run on; empty leaves it to the kernel.
    pub cpus: Vec<u32>,
    /// Whether the process is known to have ended by being swapped out as `swap_generation`, and
    /// no incarnation to have begun since. Only then has it done nothing after that image; of any
    /// other image the process may have served on, and the same that it knows nothing of is
    /// answered OutcomeUnknown unless it is idempotent.
    pub swapped: bool,
    /// The host that is the process now: this one fetches the process from there, and serves once
    /// it is told to.
    pub from: Option<HostFrom>,
}

/// Where a host fetches its process from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFrom {
    /// Where the host listens that is the process now.
    pub addresses: Vec<Address>,
    /// Its incarnation.
    pub incarnation: u64,
    /// What that host was told to expect.
    pub token: [u8; 16],
}

/// What a host has to do with a transfer of its process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostTransfer {
    /// Nothing.
    #[default]
    None,
    /// It serves, and another host may fetch the process.
    Sending,
    /// It serves no more, and waits for a word on who does.
    Frozen,
    /// It fetches the process from another host.
    Receiving,
    /// It has all of the process, and waits for a word on who serves.
    Prepared,
}

/// What an agent says to a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToHost {
    /// Become this process.
    Start(Box<HostStart>),
    /// An agent that was restarted has the host again.
    Adopted {
        /// Where it serves the directory now.
        directory: Vec<Address>,
    },
    /// A newer view of the application.
    World(World),
    /// Another secret of the application; those with lower numbers are void.
    Keys {
        /// Its number.
        key_id: u32,
        /// The secret.
        secret: Secret,
    },
    /// Finish what runs, write the image, end.
    SwapOut,
    /// Finish what runs, end.
    Stop,
    /// Say what you count. Agents do not ask: they read the page that the host counts in.
    Stats,
    /// Write an image of what the process is now, while it serves on.
    Checkpoint,
    /// Let another host fetch the process, and freeze when it has all but a little.
    TransferOut {
        /// That host's incarnation.
        incarnation: u64,
        /// What it will show.
        token: [u8; 16],
    },
    /// There is no transfer (any more): serve on.
    TransferThaw,
    /// The process that was fetched is here now: serve.
    TransferServe,
}

/// Who a host is, when it redials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHello {
    /// Its process id.
    pub pid: u32,
    /// Application.
    pub application: String,
    /// Process.
    pub process: String,
    /// Incarnation.
    pub incarnation: u64,
    /// Where it listens.
    pub addresses: Vec<Address>,
    /// The generation that it began with, as in [`FromHost::Ready`].
    pub swap_generation: u64,
    /// What was wrong with newer generations, as in [`FromHost::Ready`].
    pub rejected: Vec<String>,
    /// What it has to do with a transfer.
    pub transfer: HostTransfer,
}

/// What a host says to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromHost {
    /// The first word after redialling.
    Hello(HostHello),
    /// The process serves.
    Ready {
        /// Where it listens.
        addresses: Vec<Address>,
        /// The generation that it began with; zero is none.
        swap_generation: u64,
        /// Newer generations that do not verify or are missing, and why.
        rejected: Vec<String>,
    },
    /// The process cannot start; the host ends.
    Failed {
        /// Why.
        error: String,
    },
    /// The image is whole; the host ends.
    Swapped {
        /// Its generation.
        generation: u64,
        /// Bytes written.
        bytes: u64,
    },
    /// No image was written; the process serves on if the agent had asked for the swap.
    SwapFailed {
        /// Why.
        error: String,
    },
    /// What the process counts.
    Stats(ProcessStats),
    /// A checkpoint is whole.
    Checkpointed {
        /// Its generation; that of the image before, if nothing had changed since.
        generation: u64,
        /// Bytes written; zero if nothing had changed.
        bytes: u64,
        /// Milliseconds that it took.
        took_ms: u64,
        /// When it was begun, in milliseconds since the Unix epoch.
        written_unix_ms: u64,
    },
    /// No checkpoint was written; the process serves on.
    CheckpointFailed {
        /// Why.
        error: String,
    },
    /// What the host has to do with a transfer from now on.
    Transfer {
        /// What.
        state: HostTransfer,
        /// Why it came to nothing.
        error: Option<String>,
    },
    /// A checkpoint is whole that nobody asked for: something is to be written through, which
    /// needs one, or has taken too many files. Whoever waits for a checkpoint waits on.
    CheckpointUnasked {
        /// Its generation.
        generation: u64,
        /// Bytes written.
        bytes: u64,
        /// Milliseconds that it took.
        took_ms: u64,
        /// When it was begun, in milliseconds since the Unix epoch.
        written_unix_ms: u64,
    },
}

/// Writes a message.
///
/// # Errors
/// The socket's; a message above [`HOST_MESSAGE_MAX_BYTES`].
pub fn host_send<T: Serialize>(mut to: &UnixStream, message: &T) -> io::Result<()> {
    to.write_all(&host_frame(message)?)
}

/// The bytes of a message behind its length, for those who must not block.
///
/// # Errors
/// A message above [`HOST_MESSAGE_MAX_BYTES`].
pub fn host_frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let bytes = crate::codec::encode(message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).ok();
    let length = length.filter(|length| *length as usize <= HOST_MESSAGE_MAX_BYTES);
    let length = length.ok_or_else(|| {
        io::Error::other(format!(
            "a message of {} bytes to or from a host",
            bytes.len()
        ))
    })?;
    let mut framed = Vec::with_capacity(4 + bytes.len());
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(&bytes);
    Ok(framed)
}

/// Puts messages together from what is read.
#[derive(Debug, Default)]
pub struct HostReader {
    bytes: Vec<u8>,
}

impl HostReader {
    /// Reads the next message, blocking as the socket does; `None` at its end. After a timeout of
    /// the socket nothing is lost: call it again.
    ///
    /// # Errors
    /// The socket's, and bytes that are no message.
    pub fn next<T: DeserializeOwned>(&mut self, mut from: &UnixStream) -> io::Result<Option<T>> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(message));
            }
            match from.read(&mut chunk)? {
                0 if self.bytes.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.bytes.extend_from_slice(&chunk[..read]),
            }
        }
    }

    fn whole<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let Some(length) = self.bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > HOST_MESSAGE_MAX_BYTES {
            return Err(invalid(format!("a message of {length} bytes is announced")));
        }
        let Some(message) = self.bytes.get(4..4 + length) else {
            return Ok(None);
        };
        let message = crate::codec::decode(message).map_err(|error| invalid(error.to_string()))?;
        self.bytes.drain(..4 + length);
        Ok(Some(message))
    }
}

/// Reads arbitrary bytes as messages of either side.
#[doc(hidden)]
pub fn fuzz_host(bytes: &[u8]) {
    // What is wrong with them is of no interest here.
    drop(
        HostReader {
            bytes: bytes.to_vec(),
        }
        .whole::<ToHost>(),
    );
    drop(
        HostReader {
            bytes: bytes.to_vec(),
        }
        .whole::<FromHost>(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_cross_a_socket_whole() {
        let (a, b) = UnixStream::pair().unwrap();
        let ready = FromHost::Ready {
            addresses: vec!["tcp:127.0.0.1:1".parse().unwrap()],
            swap_generation: 3,
            rejected: vec!["x".repeat(10_000)],
        };
        host_send(&a, &ready).unwrap();
        host_send(&a, &FromHost::SwapFailed { error: "no".into() }).unwrap();
        drop(a);
        let mut reader = HostReader::default();
        assert_eq!(reader.next::<FromHost>(&b).unwrap(), Some(ready));
        let failed = Some(FromHost::SwapFailed { error: "no".into() });
        assert_eq!(reader.next::<FromHost>(&b).unwrap(), failed);
        assert_eq!(reader.next::<FromHost>(&b).unwrap(), None);
    }

    #[test]
    fn an_announced_length_is_not_believed() {
        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(&u32::MAX.to_le_bytes()).unwrap();
        let error = HostReader::default().next::<ToHost>(&b).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_host(&bytes);
        }
    }
}
