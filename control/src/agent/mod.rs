//! Agent and control plane: what they say to one another, and how it is cut into messages.
//!
//! ```text
//!   node agent                                     control plane
//!     | -- dials, Role::Agent, "_cluster" ------------> |
//!     | -- Hello{node, inventory} --------------------> |  first word on every channel
//!     | <------------------------- Applications, World  |
//!     | <-- Start / SwapOut / Stop / DeleteImages ----- |
//!     | <-- Checkpoint -------------------------------- |
//!     | -- Report{state} -----------------------------> |  whenever a host's state changes
//!     | -- Answer{request} ---------------------------> |  after the reports that belong to it
//!     | -- Stats{hosts} ------------------------------> |  every so often, what has changed
//!     | -- Resolve{request} --------------------------> |
//!     | <---------------------------- Resolved{request} |
//! ```
//!
//! What an agent promises, on which it rests that no process ever runs twice:
//! - The inventory names every host that it has begun to start and that may still live. A host
//!   that is not named is dead.
//! - When a channel ends, the agent forgets what came over it and was not acted on, before it
//!   dials again.
//! - `Swapped`, `Failed` and `Gone` are reported only once the host is dead.
//! - Commands are numbered uniquely, also across restarts of the control plane; an answer may come
//!   over a later channel than its command.
//! - A command gets one answer, after the reports that tell its outcome. `Err` to a start means
//!   that no host of this incarnation lives; `Ok` to a stop means the same; `Err` to a swap means
//!   that the host serves on. A stop of what is not there is answered `Ok`.
//! - An agent that is cut off from a control plane which may live, on another node, has ended its
//!   hosts before the control plane's `lease_ms` are over; so have hosts that miss their agent. It
//!   is cut off from the end of a channel until `Applications` has answered its next hello, for
//!   only then is the inventory known to have come in time.
//! - A stop may overtake a start or a swap of the same host, which need no answer then.
//! - A host that was started `from` another one serves only after `TransferServe`, and one that is
//!   frozen only after `TransferThaw`, unless it gave up by itself, which it can for as long as the
//!   other one cannot be prepared. `Err` to a `TransferOut` means that the host serves on; that it
//!   may be fetched from is reported.
//!
//! Messages are serde values through bincode, cut into pieces that a channel carries eagerly, so
//! that they stay in order whatever their size. The tag of a piece is 1 if more follow, else 0.

mod link;

use std::collections::VecDeque;

use praas_transport::ticket::Credential;
use praas_transport::{Address, ChannelId, Ops, Posted, Role, Secret, SendError, Ticket};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::link::{AgentLink, LinkError, LinkEvent, LinkSender};
use crate::api::{CLUSTER_APPLICATION, Checkpoint, Member, ProcessState, ProcessStats, Restored};
use crate::error::Failure;

/// The active message id of this protocol.
pub const AM_CLUSTER: u8 = 5;

/// The key id of the cluster's secret.
pub const CLUSTER_KEY_ID: u32 = 1;

/// Bytes that one message may have, encoded.
pub const MESSAGE_MAX_BYTES: usize = 32 << 20;

/// Bytes of a piece at most, whatever the channel would carry.
const PIECE_MAX_BYTES: usize = 16 << 10;

const TAG_LAST: u64 = 0;
const TAG_MORE: u64 = 1;

/// What an agent knows of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// The application.
    pub application: String,
    /// The process.
    pub process: String,
    /// The incarnation that the host was started as.
    pub incarnation: u64,
    /// The first incarnation of the life of the process that it was started in.
    pub life: u64,
    /// Where it is in its life.
    pub state: ProcessState,
    /// Its process id; zero once it is dead.
    pub pid: u32,
    /// Where it listens; empty before it is ready.
    pub addresses: Vec<Address>,
    /// The generation of the last swap image that is whole; zero if there is none.
    pub swap_generation: u64,
    /// Why it failed; of one that lives, what was wrong with newer swap images than it began with.
    pub error: Option<String>,
    /// Of one that was swapped out: whether it said that it ended with `swap_generation`. Of one
    /// that ended unheard, an image may have been found, and it may have served on after that.
    pub swapped: bool,
    /// What it has to do with a transfer.
    pub transfer: HostTransfer,
}

/// What a host has to do with a transfer of its process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostTransfer {
    /// Nothing.
    #[default]
    None,
    /// It serves, and another host may fetch the process.
    Sending,
    /// It is quiescing: it serves no more, and waits for a word on who does.
    Frozen,
    /// It is starting: it fetches the process from another host.
    Receiving,
    /// It is starting: it has all of the process, and waits for a word on who serves.
    Prepared,
}

/// What an agent says to the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// The first word on a channel.
    Hello {
        /// The node's name.
        node: String,
        /// Processors that hosts may use.
        cpus: u32,
        /// Bytes of memory that hosts may use.
        memory_bytes: u64,
        /// Every host that it has begun to start and that may still live.
        inventory: Vec<HostReport>,
    },
    /// A host's state has changed.
    Report(HostReport),
    /// A client or a host asks for a process.
    Resolve {
        /// Names the question; the agent's choice.
        request: u64,
        /// The application.
        application: String,
        /// The process.
        process: String,
        /// Whether it is to be started or swapped in if it does not run.
        ensure: bool,
    },
    /// The outcome of a command.
    Answer {
        /// The command's number.
        request: u64,
        /// Done, or why not.
        result: Result<(), String>,
    },
    /// What hosts count, of those of which it has changed since it was last said on this channel.
    Stats {
        /// Bytes of memory that all hosts of the node have.
        resident_bytes: u64,
        /// The hosts, at most [`STATS_HOSTS_MAX`].
        hosts: Vec<HostStats>,
    },
}

/// Hosts that one message tells the numbers of, at most: so that none is long.
pub const STATS_HOSTS_MAX: usize = 256;

/// What a host counts, and what is known of its images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStats {
    /// The application.
    pub application: String,
    /// The process.
    pub process: String,
    /// The incarnation.
    pub incarnation: u64,
    /// What it counts.
    pub stats: ProcessStats,
    /// The image that it began with.
    pub restored: Option<Restored>,
    /// Its last checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// Why the last one that was tried is none.
    pub checkpoint_error: Option<String>,
}

/// A host that is to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// Names the command, for the answer.
    pub request: u64,
    /// The application.
    pub application: String,
    /// The process.
    pub process: String,
    /// The incarnation, which was never used before.
    pub incarnation: u64,
    /// The first incarnation of the process's present life, which began when it was last created.
    /// A later one continues from the newest swap image of this life that is whole.
    pub life: u64,
    /// Paths of the shared libraries with its functions.
    pub modules: Vec<String>,
    /// Settings of the host: a JSON object.
    pub settings: String,
    /// The key id of `secret`.
    pub key_id: u32,
    /// The application's data-plane secret.
    pub secret: Secret,
    /// The generation of the last image that was confirmed. If it does not verify any more, an
    /// older one is loaded, and the report of the ready process says so in `error`; that there is
    /// no image at all is an error. Zero: there may be none, and it starts empty then.
    pub swap_generation: u64,
    /// Whether the incarnation before this one is known to have ended by being swapped out as
    /// `swap_generation`: what that image does not tell of was never done then.
    pub swapped: bool,
    /// The host that is the process now: this one fetches the process from there, reports that it
    /// is prepared, and serves when it is told to.
    pub from: Option<StartFrom>,
}

/// Where a host fetches its process from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFrom {
    /// Where the host listens that is the process now.
    pub addresses: Vec<Address>,
    /// Its incarnation.
    pub incarnation: u64,
    /// What that host was told to expect.
    pub token: [u8; 16],
}

/// A host that is to let another one fetch its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferCommand {
    /// Names the command, for the answer.
    pub request: u64,
    /// The application.
    pub application: String,
    /// The process.
    pub process: String,
    /// The incarnation that is meant.
    pub incarnation: u64,
    /// That of the other host.
    pub to_incarnation: u64,
    /// What the other host will show.
    pub token: [u8; 16],
}

/// Names a host in a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCommand {
    /// Names the command, for the answer.
    pub request: u64,
    /// The application.
    pub application: String,
    /// The process.
    pub process: String,
    /// The incarnation that is meant: another one is to be left alone.
    pub incarnation: u64,
}

/// The data-plane secret of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationKey {
    /// The application.
    pub application: String,
    /// The key id.
    pub key_id: u32,
    /// The secret.
    pub secret: Secret,
}

/// Where a process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedProcess {
    /// Its incarnation.
    pub incarnation: u64,
    /// Where its host listens.
    pub addresses: Vec<Address>,
}

/// What the control plane says to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Start a host.
    Start(Box<StartCommand>),
    /// Swap a host out: its state goes to storage, the host ends.
    SwapOut(HostCommand),
    /// Stop a host: it finishes what runs and ends, nothing is stored.
    Stop(HostCommand),
    /// Delete what a process, which does not run, has left in storage.
    DeleteImages {
        /// Names the command, for the answer.
        request: u64,
        /// The application.
        application: String,
        /// The process.
        process: String,
        /// Only what incarnations below this one have left: it may have been created again since.
        below: u64,
    },
    /// All applications there are, with their secrets: the agent authenticates clients of its
    /// directory by them. Replaces what was sent before; secrets that are missing are revoked.
    Applications(Vec<ApplicationKey>),
    /// The world view of an application that has hosts on the node. Replaces the one before.
    World {
        /// The application.
        application: String,
        /// Higher with every change.
        generation: u64,
        /// The members, by name.
        members: Vec<Member>,
    },
    /// The answer to `Resolve`.
    Resolved {
        /// The question's number.
        request: u64,
        /// Where the process is, or why it cannot be had.
        result: Result<ResolvedProcess, Failure>,
    },
    /// Take a checkpoint of a host, which serves on. Answered when it is whole, or is none.
    Checkpoint(HostCommand),
    /// Let another host fetch a process that serves here.
    TransferOut(TransferCommand),
    /// There is no transfer (any more): the host serves on.
    TransferThaw(HostCommand),
    /// The process that a host has fetched is there now: it serves.
    TransferServe(HostCommand),
}

/// What an agent shows when it dials the control plane.
///
/// `expires_unix_ms` is in milliseconds since the Unix epoch.
pub fn agent_credential_issue(secret: &Secret, expires_unix_ms: u64) -> Credential {
    let ticket = Ticket {
        application: CLUSTER_APPLICATION.into(),
        role: Role::Agent,
        client_id: 0,
        expires_unix_ms,
        key_id: CLUSTER_KEY_ID,
    };
    Credential::issue(secret, &ticket)
}

/// Why bytes are not a message, or a value is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The value has no encoding.
    #[error("cannot encode: {0}")]
    Encode(String),
    /// The bytes are no such value.
    #[error("cannot decode: {0}")]
    Decode(String),
    /// Bytes are left over after the value.
    #[error("cannot decode: {0} bytes left over")]
    LeftOver(usize),
    /// The message is above [`MESSAGE_MAX_BYTES`].
    #[error("message of {0} bytes is above the limit of {MESSAGE_MAX_BYTES} bytes")]
    TooLong(usize),
    /// A piece has a tag that means nothing.
    #[error("piece of a message has the unknown tag {0}")]
    Tag(u64),
}

/// The bytes of a message.
///
/// # Errors
/// It is above [`MESSAGE_MAX_BYTES`].
#[expect(clippy::disallowed_methods, reason = "this is a codec, with limits")]
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, bincode::config::standard())
        .map_err(|error| CodecError::Encode(error.to_string()))?;
    match bytes.len() {
        len if len > MESSAGE_MAX_BYTES => Err(CodecError::TooLong(len)),
        _ => Ok(bytes),
    }
}

/// The message that all of `bytes` stand for.
///
/// # Errors
/// Anything that [`encode`] would not have written for this type.
#[expect(clippy::disallowed_methods, reason = "this is a codec, with limits")]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MESSAGE_MAX_BYTES {
        return Err(CodecError::TooLong(bytes.len()));
    }
    // Decoded values are larger than their bytes, by their headers; the limit is on what they
    // claim.
    let config = bincode::config::standard().with_limit::<{ 4 * MESSAGE_MAX_BYTES }>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| CodecError::Decode(error.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(CodecError::LeftOver(left)),
    }
}

/// Messages that wait to be sent over one channel. Either side has one per channel.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the first message that are sent.
    sent: usize,
    queued_bytes: usize,
}

impl Outbox {
    /// Adds an encoded message. [`Outbox::pump`] sends it.
    pub fn push(&mut self, message: Vec<u8>) {
        self.queued_bytes += message.len();
        self.queue.push_back(message);
    }

    /// Bytes that wait.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Sends what the channel takes now. To be called after [`Outbox::push`], and from
    /// `on_writable`.
    ///
    /// # Errors
    /// The channel is not open.
    pub fn pump(&mut self, ops: &mut Ops, channel: ChannelId) -> Result<(), SendError> {
        let piece_max = ops.eager_max(channel).min(PIECE_MAX_BYTES);
        if piece_max == 0 {
            return Err(SendError::NotOpen);
        }
        while let Some(message) = self.queue.front() {
            let rest = message.get(self.sent..).unwrap_or_default();
            let (piece, tag) = match rest.split_at_checked(piece_max) {
                Some((piece, more)) if !more.is_empty() => (piece, TAG_MORE),
                _ => (rest, TAG_LAST),
            };
            match ops.send(channel, AM_CLUSTER, tag, &[], &[piece])? {
                Posted::Busy => return Ok(()),
                Posted::Done if tag == TAG_MORE => self.sent += piece.len(),
                Posted::Done => {
                    self.queued_bytes -= message.len();
                    self.sent = 0;
                    self.queue.pop_front();
                }
            }
        }
        Ok(())
    }
}

/// Puts the pieces that come over one channel together again.
#[derive(Debug, Default)]
pub struct Inbox {
    partial: Vec<u8>,
}

impl Inbox {
    /// Takes a piece; the message, if it was the last.
    ///
    /// # Errors
    /// The message becomes too long, or is none. The channel is to be closed then.
    pub fn feed<T: DeserializeOwned>(
        &mut self,
        tag: u64,
        piece: &[u8],
    ) -> Result<Option<T>, CodecError> {
        let len = self.partial.len() + piece.len();
        if len > MESSAGE_MAX_BYTES {
            return Err(CodecError::TooLong(len));
        }
        match tag {
            TAG_MORE => {
                self.partial.extend_from_slice(piece);
                Ok(None)
            }
            TAG_LAST if self.partial.is_empty() => decode(piece).map(Some),
            TAG_LAST => {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(piece);
                decode(&whole).map(Some)
            }
            tag => Err(CodecError::Tag(tag)),
        }
    }
}

/// Reads arbitrary bytes as messages of either side.
#[doc(hidden)]
pub fn fuzz_agent(bytes: &[u8]) {
    let _ = decode::<FromAgent>(bytes);
    let _ = decode::<ToAgent>(bytes);
    let _ = Inbox::default().feed::<FromAgent>(TAG_LAST, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    fn report() -> HostReport {
        HostReport {
            application: "app".into(),
            process: "p".into(),
            incarnation: 7,
            life: 1,
            state: ProcessState::Ready,
            pid: 4711,
            addresses: vec!["tcp:127.0.0.1:80".parse().unwrap()],
            swap_generation: 2,
            error: Some("none".into()),
            swapped: true,
            transfer: HostTransfer::Frozen,
        }
    }

    fn host_command() -> HostCommand {
        HostCommand {
            request: 1,
            application: "a".into(),
            process: "p".into(),
            incarnation: 3,
        }
    }

    fn to_agent() -> Vec<ToAgent> {
        let secret = Secret::from_bytes([9; 32]);
        vec![
            ToAgent::Start(Box::new(StartCommand {
                request: 1,
                application: "a".into(),
                process: "p".into(),
                incarnation: 3,
                life: 1,
                modules: vec!["/m.so".into()],
                settings: "{}".into(),
                key_id: 2,
                secret: secret.clone(),
                swap_generation: 1,
                swapped: true,
                from: Some(StartFrom {
                    addresses: vec!["tcp:127.0.0.1:80".parse().unwrap()],
                    incarnation: 2,
                    token: [5; 16],
                }),
            })),
            ToAgent::SwapOut(host_command()),
            ToAgent::Checkpoint(host_command()),
            ToAgent::Stop(host_command()),
            ToAgent::DeleteImages {
                request: 5,
                application: "a".into(),
                process: "p".into(),
                below: 8,
            },
            ToAgent::Applications(vec![ApplicationKey {
                application: "a".into(),
                key_id: 2,
                secret,
            }]),
            ToAgent::World {
                application: "a".into(),
                generation: 4,
                members: vec![Member {
                    name: "p".into(),
                    incarnation: 3,
                    state: ProcessState::Starting,
                    addresses: vec![],
                }],
            },
            ToAgent::Resolved {
                request: 6,
                result: Err(Failure::new(ErrorKind::NotFound, "x")),
            },
            ToAgent::TransferOut(TransferCommand {
                request: 1,
                application: "a".into(),
                process: "p".into(),
                incarnation: 3,
                to_incarnation: 4,
                token: [5; 16],
            }),
            ToAgent::TransferThaw(host_command()),
            ToAgent::TransferServe(host_command()),
        ]
    }

    fn from_agent() -> Vec<FromAgent> {
        vec![
            FromAgent::Hello {
                node: "n".into(),
                cpus: 4,
                memory_bytes: 1 << 30,
                inventory: vec![report()],
            },
            FromAgent::Report(report()),
            FromAgent::Resolve {
                request: 8,
                application: "a".into(),
                process: "p".into(),
                ensure: true,
            },
            FromAgent::Stats {
                resident_bytes: 9,
                hosts: vec![HostStats {
                    application: "a".into(),
                    process: "p".into(),
                    incarnation: 3,
                    stats: ProcessStats::default(),
                    restored: None,
                    checkpoint: None,
                    checkpoint_error: Some("full".into()),
                }],
            },
            FromAgent::Answer {
                request: 1,
                result: Err("no".into()),
            },
        ]
    }

    #[test]
    fn messages_survive_the_codec() {
        for message in to_agent() {
            assert_eq!(decode(&encode(&message).unwrap()), Ok(message));
        }
        for message in from_agent() {
            assert_eq!(decode(&encode(&message).unwrap()), Ok(message));
        }
    }

    #[test]
    fn pieces_come_together() {
        let message = FromAgent::Report(report());
        let bytes = encode(&message).unwrap();
        let mut inbox = Inbox::default();
        for _ in 0..2 {
            let (head, tail) = bytes.split_at(5);
            assert_eq!(inbox.feed::<FromAgent>(TAG_MORE, head), Ok(None));
            assert_eq!(inbox.feed(TAG_LAST, tail), Ok(Some(message.clone())));
        }
        assert_eq!(inbox.feed::<FromAgent>(9, &[]), Err(CodecError::Tag(9)));
        let piece = vec![0; 1 << 20];
        let refused = (0..64).find_map(|_| inbox.feed::<FromAgent>(TAG_MORE, &piece).err());
        assert!(matches!(refused, Some(CodecError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_err(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_agent(&bytes);
        }
    }
}
