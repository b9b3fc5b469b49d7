//! Invocations on the wire; `session.rs` has the record that makes them happen at most once.
//!
//! ```text
//!   request   tag = sequence   0     1      2        4          8            12
//!             user header:     kind  flags  status   function   deadline_us  acked_delta
//!             [ + 8 bytes on a retry: the incarnation of the first attempt ]   payload = input
//!   reply     tag = sequence   kind  zero   status   zero                     payload = output
//! ```
//!
//! The header of a request is 16 bytes, so that with up to 8 bytes of input it is one cache line
//! of a ring. An invocation is named by (client id, process, sequence); sequences of one client
//! to one process are dense. `acked_delta` is the sequence less the number below which the client
//! has all its results: what is below is forgotten, and never run again. Few that take long are
//! named one by one, so that the watermark passes them.
//!
//! A one-way request is answered as soon as its function begins: by an empty output, or by why it
//! does not begin. From then on its caller has no more to do with it.

mod session;

use praas_transport::Buf;
use praas_transport::wire::Incarnation;
use serde::{Deserialize, Serialize};

pub use self::session::{Admit, PASSED_MAX, ResultImage, Session, SessionImage};

/// Active message of invocations.
pub const AM_INVOCATION: u8 = 1;
/// Active message of mailboxes.
pub const AM_MAILBOX: u8 = 2;
/// Active message of the directory.
pub const AM_DIRECTORY: u8 = 3;

/// Functions that have a number on one channel at a time.
pub const CHANNEL_FUNCTIONS_MAX: usize = 4096;

/// Flag of a request: it is answered when its function begins.
pub const FLAG_ONE_WAY: u8 = 1;

/// Bytes of a request's header, and of a retry's.
pub const REQUEST_HEADER_BYTES: usize = 16;
/// Bytes of a retry's header.
pub const RETRY_HEADER_BYTES: usize = 24;
/// Bytes of a reply's header.
pub const REPLY_HEADER_BYTES: usize = 8;

/// What a message on [`AM_INVOCATION`] or [`AM_MAILBOX`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Run a function.
    Request = 1,
    /// How it went.
    Reply = 2,
    /// The payload is a function's name; the tag is its number on this channel from here on.
    Intern = 3,
    /// Stop the invocation that the tag names.
    Cancel = 4,
    /// Put a message; the payload is key and body.
    Put = 5,
    /// What became of a put.
    PutAck = 6,
    /// The client has all results below the tag, but for the sequences (u64 each) that the payload
    /// lists: what runs long does not hold up the watermark.
    Passed = 7,
}

impl Kind {
    /// The kind that `code` stands for.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Request,
            2 => Self::Reply,
            3 => Self::Intern,
            4 => Self::Cancel,
            5 => Self::Put,
            6 => Self::PutAck,
            7 => Self::Passed,
            _ => return None,
        })
    }
}

/// How an invocation or a put ended, as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u16)]
#[non_exhaustive]
pub enum Status {
    /// It was done; the payload is the output.
    Ok = 0,
    /// The function returned an error; the payload is its message.
    FunctionError = 1,
    /// The process has no such function.
    UnknownFunction = 2,
    /// The function panicked; the payload is the message.
    Panicked = 3,
    /// The deadline passed first.
    DeadlineExceeded = 4,
    /// The caller cancelled it.
    Cancelled = 5,
    /// Every worker is blocked, or a limit of the process is reached.
    Exhausted = 6,
    /// The result was there, and is forgotten.
    ResultExpired = 7,
    /// Whether it ran is not known: the process that knew has died.
    OutcomeUnknown = 8,
    /// The process is being swapped out or stopped: ask the directory again.
    Quiescing = 9,
    /// Input or output is above a limit.
    TooLarge = 10,
    /// The request is malformed.
    Malformed = 11,
    /// The mailbox is full.
    MailboxFull = 12,
    /// Whoever asked may not have it.
    Forbidden = 13,
}

impl Status {
    /// The status that `code` stands for.
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            0 => Self::Ok,
            1 => Self::FunctionError,
            2 => Self::UnknownFunction,
            3 => Self::Panicked,
            4 => Self::DeadlineExceeded,
            5 => Self::Cancelled,
            6 => Self::Exhausted,
            7 => Self::ResultExpired,
            8 => Self::OutcomeUnknown,
            9 => Self::Quiescing,
            10 => Self::TooLarge,
            11 => Self::Malformed,
            12 => Self::MailboxFull,
            13 => Self::Forbidden,
            _ => return None,
        })
    }
}

/// Why an invocation or a put gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvokeError {
    /// The function returned an error.
    #[error("the function failed: {0}")]
    Function(String),
    /// The process has no such function.
    #[error("the process has no function '{0}'")]
    UnknownFunction(String),
    /// The function panicked.
    #[error("the function panicked: {0}")]
    Panicked(String),
    /// The deadline passed first.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// The caller cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// Every worker is blocked, or a limit is reached.
    #[error("exhausted: {0}")]
    Exhausted(String),
    /// The result was there, and is forgotten.
    #[error("the result has expired")]
    ResultExpired,
    /// Whether it ran is not known.
    #[error("the process died or was lost; whether the invocation ran is not known")]
    OutcomeUnknown,
    /// Input, output or message is above a limit.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The receiver's mailbox is full.
    #[error("the mailbox of '{0}' is full")]
    MailboxFull(String),
    /// Whoever asks may not have it.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// The directory knows no such process, or cannot bring it up.
    #[error("process '{process}' is not to be had: {reason}")]
    Unavailable {
        /// The process.
        process: String,
        /// What the directory says.
        reason: String,
    },
    /// The other side sent what it should not.
    #[error("malformed: {0}")]
    Malformed(String),
}

/// The fixed part of a message on [`AM_INVOCATION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// The function, by its number on the channel.
    pub function: u32,
    /// Microseconds that the caller still waits; zero is for ever.
    pub deadline_us: u32,
    /// The sequence less the number below which the client has all results.
    pub acked_delta: u32,
    /// On a retry, the incarnation that the first attempt went to.
    pub first: Option<Incarnation>,
    /// The caller waits for its beginning only.
    pub one_way: bool,
}

impl RequestHeader {
    /// The header's bytes and how many of them count.
    #[inline]
    pub fn encode(&self) -> ([u8; RETRY_HEADER_BYTES], usize) {
        let mut out = [0; RETRY_HEADER_BYTES];
        out[0] = Kind::Request as u8;
        out[1] = u8::from(self.one_way) * FLAG_ONE_WAY;
        out[4..8].copy_from_slice(&self.function.to_le_bytes());
        out[8..12].copy_from_slice(&self.deadline_us.to_le_bytes());
        out[12..16].copy_from_slice(&self.acked_delta.to_le_bytes());
        match self.first {
            None => (out, REQUEST_HEADER_BYTES),
            Some(first) => {
                out[16..24].copy_from_slice(&first.0.to_le_bytes());
                (out, RETRY_HEADER_BYTES)
            }
        }
    }

    /// Reads a header whose kind has been looked at.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            bytes
                .get(at..at + 4)?
                .first_chunk::<4>()
                .map(|word| u32::from_le_bytes(*word))
        };
        let first = match bytes.len() {
            REQUEST_HEADER_BYTES => None,
            RETRY_HEADER_BYTES => Some(Incarnation(u64::from_le_bytes(
                *bytes[16..].first_chunk::<8>()?,
            ))),
            _ => return None,
        };
        if bytes[1] & !FLAG_ONE_WAY != 0 {
            return None;
        }
        Some(Self {
            function: word(4)?,
            deadline_us: word(8)?,
            acked_delta: word(12)?,
            first,
            one_way: bytes[1] != 0,
        })
    }
}

/// The bytes of a short header: kind, status and a word.
#[inline]
pub fn short_header(kind: Kind, status: u16, word: u32) -> [u8; REPLY_HEADER_BYTES] {
    let mut out = [0; REPLY_HEADER_BYTES];
    out[0] = kind as u8;
    out[2..4].copy_from_slice(&status.to_le_bytes());
    out[4..8].copy_from_slice(&word.to_le_bytes());
    out
}

/// Status and word of a short header.
#[inline]
pub fn short_header_read(bytes: &[u8]) -> Option<(u16, u32)> {
    let bytes: &[u8; REPLY_HEADER_BYTES] = bytes.try_into().ok()?;
    let status = u16::from_le_bytes([bytes[2], bytes[3]]);
    Some((
        status,
        u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    ))
}

/// Bytes up to which a payload is kept inline. Payloads are moved a dozen times on their way, and
/// what they are part of is then still moved in registers: twice as much cost 40 ns each way.
pub const PAYLOAD_INLINE_BYTES: usize = 48;

/// Memory of a small payload.
pub type InlineBytes = smallvec::SmallVec<[u8; PAYLOAD_INLINE_BYTES]>;

/// Input or output: inline while small, so that a small invocation allocates nothing.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Up to [`PAYLOAD_INLINE_BYTES`].
    Inline(InlineBytes),
    /// More.
    Buf(Buf),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Inline(smallvec::SmallVec::new())
    }
}

impl std::ops::Deref for Payload {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Inline(bytes) => bytes,
            Self::Buf(buf) => buf,
        }
    }
}

impl Payload {
    /// A copy of `bytes`, from `pool` if it is not small.
    ///
    /// # Errors
    /// The pool's limit.
    #[inline]
    pub fn copy_from(
        bytes: &[u8],
        pool: &praas_transport::BufPool,
    ) -> Result<Self, praas_transport::PoolExhausted> {
        match bytes.len() <= PAYLOAD_INLINE_BYTES {
            true => Ok(Self::Inline(smallvec::SmallVec::from_slice(bytes))),
            false => Ok(Self::Buf(pool.copy_from(bytes)?)),
        }
    }

    /// The bytes as a buffer.
    pub fn into_buf(self) -> Buf {
        match self {
            Self::Inline(bytes) => Buf::from_vec(bytes.to_vec()),
            Self::Buf(buf) => buf,
        }
    }
}

impl From<Buf> for Payload {
    fn from(buf: Buf) -> Self {
        Self::Buf(buf)
    }
}

/// Bytes that a message's key may have.
pub const KEY_MAX_BYTES: usize = 255;

/// A message on its way: key and body in one piece, as they travel, copied once however often it
/// is sent and to however many.
#[derive(Debug, Clone)]
pub struct PutBody {
    key_len: u32,
    joined: Payload,
}

impl PutBody {
    /// Joins key and body.
    ///
    /// # Errors
    /// A key above [`KEY_MAX_BYTES`]; no memory.
    pub fn new(
        key: &str,
        body: &[u8],
        pool: &praas_transport::BufPool,
    ) -> Result<Self, InvokeError> {
        if key.len() > KEY_MAX_BYTES {
            let text = format!("a message's key has at most 255 bytes, not {}", key.len());
            return Err(InvokeError::Malformed(text));
        }
        let key_len = key.len() as u32;
        let len = key.len() + body.len();
        if len <= PAYLOAD_INLINE_BYTES {
            let mut bytes = InlineBytes::from_slice(key.as_bytes());
            bytes.extend_from_slice(body);
            let joined = Payload::Inline(bytes);
            return Ok(Self { key_len, joined });
        }
        let buf = pool.alloc(len);
        let mut buf = buf.map_err(|error| InvokeError::Exhausted(error.to_string()))?;
        buf[..key.len()].copy_from_slice(key.as_bytes());
        buf[key.len()..].copy_from_slice(body);
        let joined = Payload::Buf(buf.freeze());
        Ok(Self { key_len, joined })
    }

    /// The key's length, which the header of the put says, and the payload.
    pub fn into_parts(self) -> (u32, Payload) {
        (self.key_len, self.joined)
    }
}

/// Key and body of a put, whose payload is both; the header's word is the key's length.
pub fn put_split(header: &[u8], payload: Payload) -> Option<(String, Buf)> {
    let (_, key_len) = short_header_read(header)?;
    let key_len = usize::try_from(key_len).ok()?;
    let (key, body) = payload
        .split_at_checked(key_len)
        .filter(|_| key_len <= KEY_MAX_BYTES)?;
    let key = std::str::from_utf8(key).ok()?.to_owned();
    let body = match &payload {
        Payload::Inline(_) => Buf::from_vec(body.to_vec()),
        Payload::Buf(buf) => buf.slice(key_len..buf.len())?,
    };
    Some((key, body))
}

/// Writes the payload of a [`Kind::Passed`].
pub fn passed_encode(sequences: impl Iterator<Item = u64>) -> Vec<u8> {
    sequences.flat_map(u64::to_le_bytes).collect()
}

/// Reads the payload of a [`Kind::Passed`].
pub fn passed_decode(bytes: &[u8]) -> Option<Vec<u64>> {
    let (words, rest) = bytes.as_chunks::<8>();
    let sane = rest.is_empty() && words.len() <= PASSED_MAX;
    sane.then(|| words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// Reads arbitrary bytes as headers of this module: what is accepted encodes to the same bytes.
#[doc(hidden)]
pub fn fuzz_headers(bytes: &[u8]) {
    if let Some(header) = RequestHeader::decode(bytes) {
        let (encoded, len) = header.encode();
        assert_eq!(&encoded[4..len], &bytes[4..]);
        assert_eq!(encoded[1], bytes[1]);
    }
    if let Some(passed) = passed_decode(bytes) {
        assert_eq!(passed_encode(passed.into_iter()), bytes);
    }
    if let Some((status, word)) = short_header_read(bytes) {
        let encoded = short_header(Kind::Reply, status, word);
        assert_eq!(&encoded[2..], &bytes[2..]);
    }
}

/// Reads arbitrary bytes as a put: key and body together are the payload.
#[doc(hidden)]
pub fn fuzz_put(bytes: &[u8]) {
    let Some((header, payload)) = bytes.split_at_checked(REPLY_HEADER_BYTES) else {
        return;
    };
    let inline = Payload::Inline(payload.into());
    let split = put_split(header, inline);
    assert_eq!(
        split,
        put_split(header, Payload::Buf(Buf::from_vec(payload.to_vec()))),
        "small and large puts are read alike"
    );
    if let Some((key, body)) = split {
        assert_eq!([key.as_bytes(), &body].concat(), payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_to_many_is_one_piece_of_memory() {
        let pool = praas_transport::BufPool::new(1 << 20);
        let body = PutBody::new("key", &[7; 100_000], &pool).unwrap();
        let (first, second) = (body.clone().into_parts(), body.into_parts());
        assert_eq!((first.0, second.0), (3, 3));
        assert_eq!(first.1.as_ptr(), second.1.as_ptr());
        let header = short_header(Kind::Put, 0, first.0);
        let (key, body) = put_split(&header, first.1).unwrap();
        assert_eq!((&*key, body.len()), ("key", 100_000));
        let small = PutBody::new("k", b"small", &pool).unwrap();
        assert!(matches!(small.into_parts(), (1, Payload::Inline(_))));
        let long = PutBody::new(&"k".repeat(256), b"", &pool);
        assert!(matches!(long, Err(InvokeError::Malformed(_))));
        let large = PutBody::new("k", &[0; 2 << 20], &pool);
        assert!(matches!(large, Err(InvokeError::Exhausted(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            fuzz_headers(&bytes);
        }

        #[test]
        fn any_bytes_are_a_put_or_none(
            len in 0..300_u32,
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let header = short_header(Kind::Put, 0, len);
            fuzz_put(&[&header[..], &payload].concat());
        }
    }
}
