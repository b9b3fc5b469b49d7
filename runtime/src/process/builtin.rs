//! Functions that every process has: its state and its mailbox, for clients and the command line.
//!
//! Their inputs and outputs are typed values of the codec.

use praas_transport::Buf;
use serde::{Deserialize, Serialize};

use super::engine::Shared;
use super::persist::PersistError;
use crate::codec;
use crate::invocation::{InvokeError, Payload, Status};
use crate::mailbox::{MailMessage, Put, Source};
use crate::services::Job;
use crate::state::{ObjectMeta, StateError};

/// A function that every process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    StateGet,
    StatePut,
    StateDelete,
    StateList,
    StateAppend,
    StateCompareSwap,
    StatePersist,
    MessageTake,
    Functions,
    Links,
}

/// Reads a state object: input is its key, output the bytes; an error if there is none.
pub const STATE_GET: &str = "praas.state.get";
/// Writes a state object: input is [`StatePutInput`].
pub const STATE_PUT: &str = "praas.state.put";
/// Deletes a state object: input is its key, output whether it was there (`bool`).
pub const STATE_DELETE: &str = "praas.state.delete";
/// Lists state objects: input is [`StateListInput`], output `Vec<(String, ObjectMeta)>`.
pub const STATE_LIST: &str = "praas.state.list";
/// Adds to the end of a state object, which is made if absent: input is [`StatePutInput`], output
/// its length in bytes (`u64`).
pub const STATE_APPEND: &str = "praas.state.append";
/// Writes a state object if it is at a version: input is [`StateCompareSwapInput`], output
/// `Result<u64, u64>`, its new version or the one that it has.
pub const STATE_COMPARE_SWAP: &str = "praas.state.compare_swap";
/// Has a state object written through to storage: input is its key, output (`u64`) the version that
/// is durable; zero if there is no object, which then is durable, too.
pub const STATE_PERSIST: &str = "praas.state.persist";
/// Takes a message if one is there: input is [`MessageTakeInput`], output
/// `Option<(String, Vec<u8>)>`, source and body.
pub const MESSAGE_TAKE: &str = "praas.message.take";
/// Names the functions of the process: no input, output `Vec<String>`.
pub const FUNCTIONS: &str = "praas.functions";

/// Tells of the channels between the process and others: no input, output `Vec<LinkInfo>`.
pub const LINKS: &str = "praas.links";

/// Input of [`STATE_PUT`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatePutInput {
    /// The key.
    pub key: String,
    /// The bytes.
    #[serde(with = "codec::bytes")]
    pub value: Vec<u8>,
}

/// Input of [`STATE_COMPARE_SWAP`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StateCompareSwapInput {
    /// The key.
    pub key: String,
    /// The version that it must have; zero: there must be none.
    pub expected: u64,
    /// The bytes.
    #[serde(with = "codec::bytes")]
    pub value: Vec<u8>,
}

/// [`StatePutInput`], as it lies in the message.
#[derive(Deserialize)]
struct StatePut<'a> {
    key: &'a str,
    value: &'a [u8],
}

/// [`StateCompareSwapInput`], as it lies in the message.
#[derive(Deserialize)]
struct StateCompareSwap<'a> {
    key: &'a str,
    expected: u64,
    value: &'a [u8],
}

/// What [`MESSAGE_TAKE`] gives: source and body.
#[derive(Serialize)]
struct Taken(String, #[serde(serialize_with = "body_serialize")] Buf);

fn body_serialize<S: serde::Serializer>(body: &Buf, serializer: S) -> Result<S::Ok, S::Error> {
    codec::bytes::serialize(body, serializer)
}

/// Reads arbitrary bytes as inputs, both as who sends and as who runs them has them.
pub(crate) fn fuzz_inputs(bytes: &[u8]) {
    let sent = codec::decode::<StatePutInput>(bytes).ok();
    let lies = codec::decode_borrowed::<StatePut<'_>>(bytes).ok();
    let sent = sent.as_ref().map(|put| (&*put.key, &*put.value));
    assert_eq!(sent, lies.map(|put| (put.key, put.value)));
    let sent = codec::decode::<StateCompareSwapInput>(bytes).ok();
    let lies = codec::decode_borrowed::<StateCompareSwap<'_>>(bytes).ok();
    let sent = sent
        .as_ref()
        .map(|swap| (&*swap.key, swap.expected, &*swap.value));
    assert_eq!(sent, lies.map(|swap| (swap.key, swap.expected, swap.value)));
}

/// Input of [`STATE_LIST`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StateListInput {
    /// Keys that start with this.
    pub prefix: String,
    /// Keys after this.
    pub after: Option<String>,
    /// At most this many.
    pub limit: u32,
}

/// Input of [`MESSAGE_TAKE`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MessageTakeInput {
    /// Whose messages.
    pub source: Source,
    /// Under which key.
    pub key: String,
}

impl Builtin {
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            STATE_GET => Self::StateGet,
            STATE_PUT => Self::StatePut,
            STATE_DELETE => Self::StateDelete,
            STATE_LIST => Self::StateList,
            STATE_APPEND => Self::StateAppend,
            STATE_COMPARE_SWAP => Self::StateCompareSwap,
            STATE_PERSIST => Self::StatePersist,
            MESSAGE_TAKE => Self::MessageTake,
            FUNCTIONS => Self::Functions,
            LINKS => Self::Links,
            _ => return None,
        })
    }

    /// Whether running it twice does no harm.
    pub fn is_idempotent(self) -> bool {
        matches!(
            self,
            Self::StateGet | Self::StateList | Self::StatePersist | Self::Functions | Self::Links
        )
    }

    /// Whether it always waits for storage.
    pub fn waits(self) -> bool {
        self == Self::StatePersist
    }

    /// Runs it; one that waits for storage does so for as long as its `job` may.
    pub fn call(self, shared: &Shared, job: Option<&Job>, input: &[u8]) -> (Status, Payload) {
        match self.run(shared, job, input) {
            Ok(payload) => (Status::Ok, payload),
            Err(Failure(status, text)) => (status, Payload::Buf(text.into_bytes().into())),
        }
    }

    fn run(self, shared: &Shared, job: Option<&Job>, input: &[u8]) -> Result<Payload, Failure> {
        fn value<T: Serialize>(value: &T) -> Result<Payload, Failure> {
            let bytes = codec::encode(value).map_err(|error| error.to_string())?;
            Ok(Payload::Buf(bytes.into()))
        }
        fn read<T: serde::de::DeserializeOwned>(input: &[u8]) -> Result<T, String> {
            codec::decode(input).map_err(|error| format!("the input: {error}"))
        }
        fn lies<'a, T: Deserialize<'a>>(input: &'a [u8]) -> Result<T, String> {
            codec::decode_borrowed(input).map_err(|error| format!("the input: {error}"))
        }
        let key = || std::str::from_utf8(input).map_err(|_| "a key is UTF-8".to_string());
        match self {
            Self::StateGet => {
                let key = key()?;
                let object = shared.object(key).map_err(|error| error.to_string())?;
                let (buf, _) = object.ok_or_else(|| format!("no state object '{key}'"))?;
                Ok(Payload::Buf(buf))
            }
            Self::StatePut => {
                let StatePut { key, value: bytes } = lies(input)?;
                let version = shared.state.put(key, bytes);
                value(&version.map_err(|error| error.to_string())?)
            }
            Self::StateAppend => {
                let StatePut { key, value: bytes } = lies(input)?;
                let appended = shared.state.append(key, bytes);
                value(&appended.map_err(|error| error.to_string())?)
            }
            Self::StateCompareSwap => {
                let StateCompareSwap {
                    key,
                    expected,
                    value: bytes,
                } = lies(input)?;
                match shared.state.compare_swap(key, expected, bytes) {
                    Ok(version) => value(&Ok::<u64, u64>(version)),
                    Err(StateError::Conflict { actual, .. }) => value(&Err::<u64, u64>(actual)),
                    Err(error) => Err(error.to_string().into()),
                }
            }
            Self::StatePersist => {
                let engine = shared.engine();
                let engine = engine.ok_or_else(|| "the process has ended".to_string())?;
                let persisted = engine.persist(job, key()?, None);
                value(&persisted.map_err(Failure::of_persist)?)
            }
            Self::StateDelete => value(&shared.state.delete(key()?)),
            Self::StateList => {
                let StateListInput {
                    prefix,
                    after,
                    limit,
                } = read(input)?;
                let list: Vec<(String, ObjectMeta)> =
                    shared.state.list(&prefix, after.as_deref(), limit as usize);
                value(&list)
            }
            Self::MessageTake => {
                let MessageTakeInput { source, key } = read(input)?;
                let taken = shared.mailbox().take(&source, &key);
                value(&taken.map(
                    |MailMessage {
                         source, payload, ..
                     }| Taken(source, payload),
                ))
            }
            Self::Functions => value(&shared.registry.names()),
            Self::Links => value(&shared.links.list()),
        }
    }
}

/// How one of these functions has failed, and why.
struct Failure(Status, String);

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(Status::FunctionError, text)
    }
}

impl Failure {
    fn of_persist(error: PersistError) -> Self {
        let status = match &error {
            PersistError::Wait(InvokeError::Cancelled) => Status::Cancelled,
            PersistError::Wait(InvokeError::DeadlineExceeded) => Status::DeadlineExceeded,
            _ => Status::FunctionError,
        };
        Self(status, error.to_string())
    }
}

/// Puts a message of the process itself into its own mailbox.
pub(super) fn own_put(shared: &Shared, key: &str, payload: &[u8]) -> Result<Put, String> {
    let payload = shared
        .pool
        .copy_from(payload)
        .map_err(|error| error.to_string())?;
    let source = shared.identity.name.to_string();
    Ok(shared.mail_put(
        None,
        MailMessage {
            source,
            key: key.into(),
            payload,
        },
    ))
}
