//! What a function sees of its process: the safe face of the host table.
//!
//! ```no_run
//! use praas_runtime::prelude::*;
//!
//! #[praas_runtime::function]
//! fn count(context: &Context, step: u64) -> Result<u64, FunctionError> {
//!     let count = context.state_load("count")?.unwrap_or(0u64) + step;
//!     context.state_store("count", &count)?;
//!     Ok(count)
//! }
//! praas_runtime::module!(static "counting", [count]);
//! # fn main() { module(); }
//! ```

mod calls;
mod messages;
mod state;

use std::any::Any;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::abi::{Guest, Output, View, code};
use crate::codec::{self, CodecError};
use crate::invocation::Status;
use crate::world::MemberState;

/// Why something that a function asked of its process did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The function that was called returned an error.
    #[error("{0}")]
    Function(String),
    /// The function that was called panicked.
    #[error("the function panicked: {0}")]
    Panicked(String),
    /// The process has no such function.
    #[error("unknown function: {0}")]
    UnknownFunction(String),
    /// The deadline passed.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// The caller of this function has cancelled it, or its process wants it to end.
    #[error("cancelled")]
    Cancelled,
    /// Too many wait already: no worker is left to stand in.
    #[error("{0}")]
    Exhausted(String),
    /// The called process has died, and whether the function ran is not known.
    #[error("the outcome is not known: {0}")]
    OutcomeUnknown(String),
    /// Above a limit of the transport.
    #[error("{0}")]
    TooLarge(String),
    /// The receiver's mailbox stayed full.
    #[error("{0}")]
    MailboxFull(String),
    /// The other process, or the storage, is not to be had.
    #[error("{0}")]
    Unavailable(String),
    /// This process may not have it.
    #[error("{0}")]
    Forbidden(String),
    /// A state object did not come back from storage as it was written.
    #[error("{0}")]
    Corrupt(String),
    /// A limit of this process is reached.
    #[error("{0}")]
    LimitReached(String),
    /// An argument cannot be.
    #[error("{0}")]
    BadArgument(String),
    /// There is no such object or message.
    #[error("{0}")]
    NotFound(String),
    /// A value cannot be encoded or decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A code that this module does not know.
    #[error("code {code}: {text}")]
    Other {
        /// The code.
        code: i32,
        /// The host's words.
        text: String,
    },
}

impl CallError {
    pub(crate) fn from_code(code: i32, text: &str) -> Self {
        let text = text.to_owned();
        match code {
            code::NOT_FOUND => return Self::NotFound(text),
            code::LIMIT_REACHED => return Self::LimitReached(text),
            code::BAD_ARGUMENT => return Self::BadArgument(text),
            code::UNAVAILABLE => return Self::Unavailable(text),
            code::FORBIDDEN => return Self::Forbidden(text),
            code::CORRUPT => return Self::Corrupt(text),
            _ => {}
        }
        match u16::try_from(code).ok().and_then(Status::from_code) {
            Some(Status::FunctionError) => Self::Function(text),
            Some(Status::UnknownFunction) => Self::UnknownFunction(text),
            Some(Status::Panicked) => Self::Panicked(text),
            Some(Status::DeadlineExceeded) => Self::DeadlineExceeded,
            Some(Status::Cancelled) => Self::Cancelled,
            Some(Status::Exhausted) => Self::Exhausted(text),
            Some(Status::OutcomeUnknown) => Self::OutcomeUnknown(text),
            Some(Status::TooLarge) => Self::TooLarge(text),
            Some(Status::MailboxFull) => Self::MailboxFull(text),
            _ => Self::Other { code, text },
        }
    }
}

/// What a function returns when it fails: a text for its caller. Any error turns into one by `?`;
/// deadlines, cancellation and exhaustion of what it called stay what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionError {
    status: Status,
    text: String,
}

impl FunctionError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            status: Status::FunctionError,
            text: text.into(),
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.status
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for FunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<E: std::error::Error + 'static> From<E> for FunctionError {
    fn from(error: E) -> Self {
        let status = match (&error as &dyn Any).downcast_ref::<CallError>() {
            Some(CallError::DeadlineExceeded) => Status::DeadlineExceeded,
            Some(CallError::Cancelled) => Status::Cancelled,
            Some(CallError::Exhausted(_) | CallError::LimitReached(_)) => Status::Exhausted,
            _ => Status::FunctionError,
        };
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        Self { status, text }
    }
}

/// A message.
#[derive(Debug)]
pub struct Message {
    /// Who put it: a process's name, or a client's.
    pub source: String,
    /// What it carries.
    pub payload: View,
}

impl Message {
    /// The payload as a value.
    ///
    /// # Errors
    /// Bytes that are no such value.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        Ok(codec::decode(&self.payload)?)
    }
}

/// What became of a broadcast at one receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The receiver.
    pub process: String,
    /// Whether the message is in its mailbox.
    pub outcome: Result<(), CallError>,
}

/// A state object, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// Its version: it grows with every write.
    pub version: u64,
    /// When it was written, in milliseconds since the epoch.
    pub written_unix_ms: u64,
}

/// A member of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorldMember {
    /// Its name.
    pub name: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// What it is doing.
    pub state: MemberState,
}

/// The members of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorldMembers {
    /// Grows with every change.
    pub generation: u64,
    /// The members, by name.
    pub members: Vec<WorldMember>,
}

/// How grave a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed.
    Error = 0,
    /// Something is odd.
    Warning = 1,
    /// Something happened.
    Information = 2,
    /// Detail.
    Debug = 3,
}

/// A running invocation, and the process that it runs in.
#[derive(Debug)]
pub struct Context<'a> {
    guest: Guest<'a>,
}

fn timeout_us(timeout: Option<Duration>) -> i64 {
    timeout.map_or(-1, |timeout| {
        i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX)
    })
}

/// `Ok(None)` for what is not there.
fn optional<T>(outcome: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(CallError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl<'a> Context<'a> {
    pub(crate) fn new(guest: Guest<'a>) -> Self {
        Self { guest }
    }

    /// The application.
    pub fn application(&self) -> &str {
        self.guest.name(0)
    }

    /// The process.
    pub fn process(&self) -> &str {
        self.guest.name(1)
    }

    /// The function.
    pub fn function(&self) -> &str {
        self.guest.name(2)
    }

    /// Which life of the process this is.
    pub fn incarnation(&self) -> u64 {
        self.guest.incarnation()
    }

    /// The invocation's id: its client's, and the client's number for it at this process. A
    /// repetition has the same, and so have local invocations within it.
    ///
    /// # Errors
    /// A host that is older than this module.
    pub fn invocation_id(&self) -> Result<(u128, u64), CallError> {
        self.guest.invocation_id()
    }

    /// Whether the function should end early: its caller no longer waits, or the process is about
    /// to be swapped out. A function that runs long asks now and then.
    pub fn cancelled(&self) -> bool {
        self.guest.cancelled()
    }

    /// How long the caller still waits; `None` is for ever.
    pub fn deadline_left(&self) -> Option<Duration> {
        self.guest.deadline_left_us().map(Duration::from_micros)
    }

    /// Memory for an output of `len` bytes, which the function fills and returns. Once per call.
    ///
    /// # Errors
    /// No memory; asked for twice.
    pub fn output(&self, len: usize) -> Result<Output<'_>, CallError> {
        self.guest.output(len)
    }

    /// The members of the application, as this process knows them.
    ///
    /// # Errors
    /// A host that speaks another version of the table.
    pub fn world(&self) -> Result<WorldMembers, CallError> {
        Self::world_read(&self.guest.world(u64::MAX, 0)?)
    }

    /// Waits until the world's generation is above `after`, at most for `timeout` (`None`: this
    /// invocation's deadline).
    ///
    /// # Errors
    /// The deadline; cancellation; no worker left to stand in.
    pub fn world_wait(
        &self,
        after: u64,
        timeout: Option<Duration>,
    ) -> Result<WorldMembers, CallError> {
        let after = after.min(u64::MAX - 1);
        Self::world_read(&self.guest.world(after, timeout_us(timeout))?)
    }

    fn world_read(view: &View) -> Result<WorldMembers, CallError> {
        let mut fields = Fields { bytes: view };
        let generation = fields.word()?;
        let count = u32::from_le_bytes(fields.take()?);
        let mut members = Vec::new();
        for _ in 0..count {
            let (name, incarnation) = (fields.text()?, fields.word()?);
            let state = match fields.take::<1>()? {
                [0] => MemberState::Starting,
                [1] => MemberState::Ready,
                [2] => MemberState::Swapped,
                _ => MemberState::Gone,
            };
            members.push(WorldMember {
                name,
                incarnation,
                state,
            });
        }
        Ok(WorldMembers {
            generation,
            members,
        })
    }

    /// Writes a line to the host's log.
    pub fn log(&self, level: LogLevel, text: &str) {
        self.guest.log(level as u32, text);
    }

    /// For the attribute macro: the output as bytes.
    ///
    /// # Errors
    /// As for [`output`](Self::output).
    #[doc(hidden)]
    pub fn output_bytes(&self, bytes: &[u8]) -> Result<(), FunctionError> {
        if !bytes.is_empty() {
            self.output(bytes.len())?.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// For the attribute macro: the output as a value.
    ///
    /// # Errors
    /// A value that cannot be encoded; besides those of [`output`](Self::output).
    #[doc(hidden)]
    pub fn output_value<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), FunctionError> {
        let bytes = codec::encode(value)
            .map_err(|error| FunctionError::new(format!("the output: {error}")))?;
        self.output_bytes(&bytes)
    }

    /// For the attribute macro: the input as a value.
    ///
    /// # Errors
    /// Bytes that are no such value.
    #[doc(hidden)]
    pub fn input_value<T: DeserializeOwned>(&self, input: &[u8]) -> Result<T, FunctionError> {
        codec::decode(input).map_err(|error| {
            let function = self.function();
            FunctionError::new(format!("the input of '{function}': {error}"))
        })
    }
}

/// Reads what the table gives as bytes.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], CallError> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or_else(short)?;
        self.bytes = rest;
        Ok(*head)
    }

    fn word(&mut self) -> Result<u64, CallError> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, CallError> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        let (head, rest) = self.bytes.split_at_checked(len).ok_or_else(short)?;
        self.bytes = rest;
        Ok(String::from_utf8_lossy(head).into_owned())
    }
}

fn short() -> CallError {
    CallError::Other {
        code: 0,
        text: "the host's list ends in the middle of an entry".into(),
    }
}
