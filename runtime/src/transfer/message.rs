//! What source and target say to one another on [`AM_TRANSFER`](super::AM_TRANSFER).
//!
//! ```text
//!   word     header: 1                     payload: a typed value, always sent eagerly
//!   piece    header: 2, offset u64         tag: the entry; payload: its bytes from there on
//! ```
//!
//! Words are in order with one another and before the pieces of the entries that they announce.
//! Pieces travel by rendezvous if they are large, and may then be whole in any order.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};

const WORD: u8 = 1;
const PIECE: u8 = 2;
/// Bytes of a piece's header.
const PIECE_HEADER_BYTES: usize = 9;

/// Bytes that a word may have: it goes eagerly over any transport.
pub const WORD_MAX_BYTES: usize = 8 << 10;

/// What the host that is to be the process next says to the one that is it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromTarget {
    /// The first word.
    Begin {
        /// What the control plane has told both sides.
        token: [u8; 16],
    },
    /// All that was announced up to this round's end is here.
    Have {
        /// The round.
        round: u32,
    },
    /// All that was announced up to the end is here: nothing more is wanted.
    Complete,
}

/// What the host that is the process says to the one that is to be it next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSource {
    /// What comes next; entries are numbered from zero, through all words.
    Entries(Vec<Entry>),
    /// Objects that were sent and are no more.
    Deleted(Vec<String>),
    /// All objects were looked at once more; the process serves on.
    Round {
        /// Counts from one.
        round: u32,
    },
    /// The process is frozen, and this was all of it.
    End {
        /// Incarnations before it whose invocations it knows all of, the newest last.
        vouched: Vec<u64>,
        /// All versions that its state has given, deletions among them, are up to this one.
        state_version: u64,
    },
    /// The process serves on here: there is no transfer.
    Failed {
        /// Why.
        error: String,
    },
}

/// A part of the process, whose bytes follow as pieces; none do if it has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub what: What,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What a part of a process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A state object; replaces the one of this key that was sent before.
    Object {
        /// Its key.
        key: String,
        /// Its version.
        version: u64,
        /// When it was written, in milliseconds since the Unix epoch.
        written_unix_ms: u64,
    },
    /// The mailbox, as a swap image has it, but for the bodies.
    Mailbox,
    /// A large message's payload, in the order of the mailbox.
    Body,
    /// The sessions, as a swap image has them.
    Sessions,
    /// A file.
    File {
        /// Its name: any bytes.
        name: Vec<u8>,
        /// Who may do what with it: the lowest nine bits of its mode.
        mode: u16,
    },
}

/// What a message is, by its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A typed value.
    Word,
    /// Bytes of an entry.
    Piece {
        /// Where in it they belong.
        offset: u64,
    },
}

/// The header of a word.
pub const WORD_HEADER: [u8; 1] = [WORD];

/// The header of a piece.
pub fn piece_header(offset: u64) -> [u8; PIECE_HEADER_BYTES] {
    let mut header = [PIECE; PIECE_HEADER_BYTES];
    header[1..].copy_from_slice(&offset.to_le_bytes());
    header
}

/// Reads a header.
pub fn shape(header: &[u8]) -> Option<Shape> {
    match header {
        [WORD] => Some(Shape::Word),
        [PIECE, offset @ ..] => {
            let offset = u64::from_le_bytes(offset.try_into().ok()?);
            Some(Shape::Piece { offset })
        }
        _ => None,
    }
}

/// The bytes of a word.
///
/// # Errors
/// It has no encoding.
pub fn word_encode<T: Serialize>(word: &T) -> Result<Vec<u8>, CodecError> {
    codec::encode(word)
}

/// Reads a word.
///
/// # Errors
/// Bytes that are none.
pub fn word_decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.len() {
        len if len > WORD_MAX_BYTES => Err(CodecError::LeftOver(len - WORD_MAX_BYTES)),
        _ => codec::decode(bytes),
    }
}
