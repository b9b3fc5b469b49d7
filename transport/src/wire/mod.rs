//! What goes over a channel: frame headers and the handshake, to the byte.
//!
//! ```text
//!  0      1       2       3         4         8        16        24        32
//!  | kind | flags | am id | uhdr len| credits | id u64 | len u64 | aux u64 | user header, payload
//! ```
//!
//! Every integer is little-endian. Decoders return errors and never index out of range; what they
//! accept is bounded before anything is allocated. `docs/wire.md` is the full description.

mod frame;
mod fuzz;
mod handshake;

pub use frame::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, PULL_SEGMENT_BYTES, PULL_SEGMENTS_MAX,
    USER_HEADER_MAX_BYTES,
};
pub use fuzz::{fuzz_frame, fuzz_handshake};
pub use handshake::{
    Agreed, Capabilities, Dialler, HANDSHAKE_MESSAGE_MAX_BYTES, HandshakeError, Identity,
    Incarnation, Listener, Local, PeerIdentity, Step, WIRE_VERSION, bulk_hello, refusal,
};

/// Why bytes from a peer were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A frame names a kind that this version does not know.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// A field that must be zero, or one of a few values, is not.
    #[error("frame field {field} holds {value}, which {kind:?} frames do not allow")]
    BadField {
        /// The name of the field.
        field: &'static str,
        /// What it held.
        value: u64,
        /// The kind of the frame.
        kind: FrameKind,
    },
    /// A length is above the limit that both sides agreed on.
    #[error("{what} of {len} bytes is above the limit of {limit} bytes")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Bytes end before what they announce.
    #[error("{what} needs {needed} bytes, {have} are there")]
    Truncated {
        /// What was being decoded.
        what: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// A frame is not allowed in the state the channel or transfer is in.
    #[error("{kind:?} frame for transfer {id} is out of place")]
    OutOfPlace {
        /// The kind of the frame.
        kind: FrameKind,
        /// The transfer that it names.
        id: u64,
    },
    /// Shared memory or a handshake holds something that no correct peer writes.
    #[error("{what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
}
