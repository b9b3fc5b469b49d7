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

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::abi::{Bytes, Guest, MESSAGE_PEEK, Output, View, code};
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

    /// Writes a state object; its new version.
    ///
    /// # Errors
    /// The process's memory limit; a bad key.
    pub fn state_put(&self, key: &str, value: &[u8]) -> Result<u64, CallError> {
        self.guest.state_put(key, value)
    }

    /// Writes a state object that shares the memory of a view, as of a message, an output or
    /// another object; its new version.
    ///
    /// # Errors
    /// As [`state_put`](Self::state_put).
    pub fn state_put_view(&self, key: &str, view: &View) -> Result<u64, CallError> {
        self.guest.state_put_view(key, view)
    }

    /// A state object, without copying.
    ///
    /// # Errors
    /// A bad key.
    pub fn state_view(&self, key: &str) -> Result<Option<View>, CallError> {
        optional(self.guest.state_view(key))
    }

    /// A copy of a state object.
    ///
    /// # Errors
    /// A bad key.
    pub fn state_get(&self, key: &str) -> Result<Option<Vec<u8>>, CallError> {
        Ok(self.state_view(key)?.map(|view| view.to_vec()))
    }

    /// Deletes a state object; whether there was one.
    ///
    /// # Errors
    /// A bad key.
    pub fn state_delete(&self, key: &str) -> Result<bool, CallError> {
        optional(self.guest.state_delete(key)).map(|done| done.is_some())
    }

    /// State objects whose keys begin with `prefix` and come after `after`, in order of their
    /// keys, at most `limit`.
    ///
    /// # Errors
    /// A bad prefix.
    pub fn state_list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StateEntry>, CallError> {
        let view = self.guest.state_list(prefix, after, limit)?;
        let mut fields = Fields { bytes: &view };
        let mut entries = Vec::new();
        while !fields.bytes.is_empty() {
            entries.push(StateEntry {
                key: fields.text()?,
                bytes: fields.word()?,
                version: fields.word()?,
                written_unix_ms: fields.word()?,
            });
        }
        Ok(entries)
    }

    /// Writes a state object if it is at version `expected` (zero: if there is none): the new
    /// version, or the one that stands in the way.
    ///
    /// # Errors
    /// The process's memory limit; a bad key.
    pub fn state_compare_swap(
        &self,
        key: &str,
        expected: u64,
        value: &[u8],
    ) -> Result<Result<u64, u64>, CallError> {
        self.guest.state_compare_swap(key, expected, value)
    }

    /// Adds bytes to a state object; its new length.
    ///
    /// # Errors
    /// The process's memory limit; a bad key.
    pub fn state_append(&self, key: &str, value: &[u8]) -> Result<u64, CallError> {
        self.guest.state_append(key, value)
    }

    /// Replaces a state object by what `write` makes of it, without copying: `write` is given the
    /// value that the object has (nothing, if there is none) and memory of `len` bytes, holding
    /// anything, for the next one. If another function was faster, `write` is called again; if it
    /// returns an error, the object stays as it is. The new version.
    ///
    /// Where `state_max_bytes` has no room for both values at a time, `write` gets memory of the
    /// function's own, which does not count for the limit and is copied.
    ///
    /// # Errors
    /// Those of `write`; the process's memory limit; a bad key; cancelled while others were faster.
    pub fn state_update(
        &self,
        key: &str,
        len: usize,
        mut write: impl FnMut(&[u8], &mut [u8]) -> Result<(), CallError>,
    ) -> Result<u64, CallError> {
        self.guest.state_update(key, len, &mut write)
    }

    /// Has a state object written through to storage as it is now, and waits for it: on return this
    /// version, or a later one, outlives the process's host, though all else goes back to the last
    /// image. If there is no object under the key, that is what is durable: so
    /// [`state_delete`](Self::state_delete) and this delete for good. The version that is durable,
    /// zero for none.
    ///
    /// Another function may run meanwhile, and see the object before it is durable. The first call
    /// in a process without an image takes a checkpoint.
    ///
    /// # Errors
    /// [`CallError::Unavailable`]: the storage fails, or is full, and whether the object is durable is
    /// not known. [`CallError::Forbidden`]: another host is the process by now, and the object is not
    /// durable. [`CallError::LimitReached`]: it has more than `persist_max_bytes`.
    /// [`CallError::Exhausted`]: the function is marked short, or too many wait. The deadline or
    /// cancellation, after which it may become durable. The process has the object as before, in all
    /// cases.
    pub fn state_persist(&self, key: &str) -> Result<u64, CallError> {
        self.guest.state_persist(key, -1)
    }

    /// As [`state_persist`](Self::state_persist), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn state_persist_within(&self, key: &str, timeout: Duration) -> Result<u64, CallError> {
        self.guest.state_persist(key, timeout_us(Some(timeout)))
    }

    /// Writes a state object and has it written through to storage: [`state_put`](Self::state_put),
    /// then [`state_persist`](Self::state_persist). The version that is durable.
    ///
    /// # Errors
    /// Those of either. If the second fails the object is written all the same.
    pub fn state_put_persist(&self, key: &str, value: &[u8]) -> Result<u64, CallError> {
        self.state_put(key, value)?;
        self.state_persist(key)
    }

    /// A state object as a value.
    ///
    /// # Errors
    /// Bytes that are no such value; a bad key.
    pub fn state_load<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CallError> {
        let view = self.state_view(key)?;
        Ok(view.map(|view| codec::decode(&view)).transpose()?)
    }

    /// A directory of the process's own. Its regular files, and those in directories below it, go
    /// into the images of the process and come back with it, under the same names in another
    /// directory: ask for it anew in each invocation. Settings `files_max` and `files_max_bytes`
    /// limit what an image takes; a swap of more fails, and says so.
    ///
    /// # Errors
    /// The system refuses to make it.
    pub fn state_dir(&self) -> Result<PathBuf, CallError> {
        self.guest.state_dir()
    }

    /// Changes a state object as a value: `change` gets what it is (`None`: absent) and gives what
    /// it shall be, again if another function has changed it meanwhile. What was written.
    ///
    /// # Errors
    /// As [`state_load`](Self::state_load) and [`state_store`](Self::state_store); cancellation
    /// and the deadline, between two attempts.
    pub fn state_update_value<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        mut change: impl FnMut(Option<T>) -> T,
    ) -> Result<T, CallError> {
        loop {
            let view = self.state_view(key)?;
            let version = view.as_ref().map_or(0, View::version);
            let old = view.map(|view| codec::decode(&view)).transpose()?;
            let new = change(old);
            let bytes = codec::encode(&new)?;
            if self.state_compare_swap(key, version, &bytes)?.is_ok() {
                return Ok(new);
            }
            if self.cancelled() {
                return Err(CallError::Cancelled);
            }
        }
    }

    /// A state object of another process of this application, read by one-sided operations: no
    /// function runs there, and from the second read on nobody is asked. It is the object as it was
    /// at a moment within the read.
    ///
    /// # Errors
    /// Unknown or dead processes; one that does not show its state ([`CallError::Forbidden`],
    /// setting `state_read`); the deadline; no memory for it.
    pub fn peer_state(&self, process: &str, key: &str) -> Result<Option<View>, CallError> {
        optional(self.guest.peer_state(process, key, -1))
    }

    /// As [`peer_state`](Self::peer_state), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn peer_state_within(
        &self,
        process: &str,
        key: &str,
        timeout: Duration,
    ) -> Result<Option<View>, CallError> {
        optional(
            self.guest
                .peer_state(process, key, timeout_us(Some(timeout))),
        )
    }

    /// As [`peer_state`](Self::peer_state), as a value.
    ///
    /// # Errors
    /// The same; bytes that are no such value.
    pub fn peer_state_load<T: DeserializeOwned>(
        &self,
        process: &str,
        key: &str,
    ) -> Result<Option<T>, CallError> {
        let view = self.peer_state(process, key)?;
        Ok(view.map(|view| codec::decode(&view)).transpose()?)
    }

    /// Writes a value as a state object; its new version.
    ///
    /// # Errors
    /// The process's memory limit; a bad key; a value that cannot be encoded.
    pub fn state_store<T: Serialize>(&self, key: &str, value: &T) -> Result<u64, CallError> {
        self.guest.state_put(key, &codec::encode(value)?)
    }

    /// Puts a message into the mailbox of a process of this application and waits until it is
    /// there, at most until this invocation's deadline.
    ///
    /// # Errors
    /// Unknown or dead processes; a mailbox that stays full; the deadline.
    pub fn message_put(&self, to: &str, key: &str, payload: &[u8]) -> Result<(), CallError> {
        self.guest.message_put(to, key, payload, -1)
    }

    /// As [`message_put`](Self::message_put), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn message_put_within(
        &self,
        to: &str,
        key: &str,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), CallError> {
        self.guest
            .message_put(to, key, payload, timeout_us(Some(timeout)))
    }

    /// Puts one message into the mailboxes of several processes at once (`None`: of all other
    /// members of the application that are not gone) and waits for all of them, at most until this
    /// invocation's deadline: what became of it at each. Its bytes are shared, not copied for each.
    ///
    /// # Errors
    /// A key that cannot be: nobody was sent anything.
    pub fn message_broadcast(
        &self,
        to: Option<&[&str]>,
        key: &str,
        payload: &[u8],
    ) -> Result<Vec<Told>, CallError> {
        Self::outcomes_read(&self.guest.message_broadcast(to, key, payload, -1)?)
    }

    /// As [`message_broadcast`](Self::message_broadcast), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn message_broadcast_within(
        &self,
        to: Option<&[&str]>,
        key: &str,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Vec<Told>, CallError> {
        let timeout = timeout_us(Some(timeout));
        Self::outcomes_read(&self.guest.message_broadcast(to, key, payload, timeout)?)
    }

    fn outcomes_read(view: &View) -> Result<Vec<Told>, CallError> {
        let mut fields = Fields { bytes: view };
        let count = u32::from_le_bytes(fields.take()?);
        let mut outcomes = Vec::new();
        for _ in 0..count {
            let name = fields.text()?;
            let code = i32::from_le_bytes(fields.take()?);
            let text = fields.text()?;
            outcomes.push(Told {
                process: name,
                outcome: match code {
                    code::OK => Ok(()),
                    code => Err(CallError::from_code(code, &text)),
                },
            });
        }
        Ok(outcomes)
    }

    /// Takes a message out of this process's mailbox, from one source or (`None`) from anybody,
    /// waiting for it at most for `timeout` (`None`: this invocation's deadline).
    ///
    /// # Errors
    /// The deadline; cancellation; no worker left to stand in.
    pub fn message_get(
        &self,
        source: Option<&str>,
        key: &str,
        timeout: Option<Duration>,
    ) -> Result<Message, CallError> {
        // Zero would mean "do not wait" to the host.
        let timeout = timeout_us(timeout);
        let timeout = if timeout == 0 { 1 } else { timeout };
        let got = self.guest.message_get(source, key, 0, timeout)?;
        Self::message(got)
    }

    /// Takes a message if one is there.
    ///
    /// # Errors
    /// A bad key.
    pub fn message_try(
        &self,
        source: Option<&str>,
        key: &str,
    ) -> Result<Option<Message>, CallError> {
        optional(self.guest.message_get(source, key, 0, 0))?
            .map(Self::message)
            .transpose()
    }

    /// Looks at the message that [`message_try`](Self::message_try) would take.
    ///
    /// # Errors
    /// A bad key.
    pub fn message_peek(
        &self,
        source: Option<&str>,
        key: &str,
    ) -> Result<Option<Message>, CallError> {
        optional(self.guest.message_get(source, key, MESSAGE_PEEK, 0))?
            .map(Self::message)
            .transpose()
    }

    fn message((source, payload): (View, View)) -> Result<Message, CallError> {
        Ok(Message {
            source: String::from_utf8_lossy(&source).into_owned(),
            payload,
        })
    }

    /// Invokes a function of a process of this application (an empty name: this one, on this
    /// thread) and waits for its output, at most until this invocation's deadline.
    ///
    /// # Errors
    /// What the function returns; unknown or dead processes; the deadline; too deep a nesting.
    pub fn invoke(&self, process: &str, function: &str, input: &[u8]) -> Result<View, CallError> {
        self.guest.invoke(process, function, input, -1)
    }

    /// As [`invoke`](Self::invoke), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn invoke_within(
        &self,
        process: &str,
        function: &str,
        input: &[u8],
        timeout: Duration,
    ) -> Result<View, CallError> {
        self.guest
            .invoke(process, function, input, timeout_us(Some(timeout)))
    }

    /// Invokes a function of a process of this application (an empty name: this one) without
    /// waiting for it and without its output. What it is asked for is never lost silently while
    /// both processes live: failures are counted and logged. It waits only while there is no room
    /// for more.
    ///
    /// # Errors
    /// Names that cannot be; a full queue of this process; the deadline before there was room.
    pub fn invoke_one_way(
        &self,
        process: &str,
        function: &str,
        input: &[u8],
    ) -> Result<(), CallError> {
        self.guest.invoke_one_way(process, function, input, -1)
    }

    /// As [`invoke_one_way`](Self::invoke_one_way), of a function that is not to begin later than
    /// that.
    ///
    /// # Errors
    /// The same.
    pub fn invoke_one_way_within(
        &self,
        process: &str,
        function: &str,
        input: &[u8],
        timeout: Duration,
    ) -> Result<(), CallError> {
        let timeout = timeout_us(Some(timeout));
        self.guest.invoke_one_way(process, function, input, timeout)
    }

    /// Invokes a function with each of the inputs, many at a time, and waits for all of them:
    /// outcomes in the order of the inputs.
    ///
    /// # Errors
    /// Names that cannot be; this invocation's deadline; cancellation; no worker left to stand in.
    pub fn invoke_batch<I: AsRef<[u8]>>(
        &self,
        process: &str,
        function: &str,
        inputs: &[I],
    ) -> Result<Vec<Result<View, CallError>>, CallError> {
        self.batch(process, function, inputs, -1)
    }

    /// As [`invoke_batch`](Self::invoke_batch), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn invoke_batch_within<I: AsRef<[u8]>>(
        &self,
        process: &str,
        function: &str,
        inputs: &[I],
        timeout: Duration,
    ) -> Result<Vec<Result<View, CallError>>, CallError> {
        self.batch(process, function, inputs, timeout_us(Some(timeout)))
    }

    fn batch<I: AsRef<[u8]>>(
        &self,
        process: &str,
        function: &str,
        inputs: &[I],
        timeout_us: i64,
    ) -> Result<Vec<Result<View, CallError>>, CallError> {
        let inputs: Vec<Bytes> = inputs
            .iter()
            .map(|input| Bytes::new(input.as_ref()))
            .collect();
        self.guest
            .invoke_batch(process, function, &inputs, timeout_us)
    }

    /// As [`invoke`](Self::invoke), with values.
    ///
    /// # Errors
    /// The same; values that cannot be encoded or decoded.
    pub fn invoke_value<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        process: &str,
        function: &str,
        input: &I,
    ) -> Result<O, CallError> {
        let output = self.invoke(process, function, &codec::encode(input)?)?;
        Ok(codec::decode(&output)?)
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
