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
mod handshake;

pub use frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, USER_HEADER_MAX_BYTES};
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

/// Feeds arbitrary bytes to both sides of the handshake: they may refuse, never panic.
#[doc(hidden)]
pub fn fuzz_handshake(bytes: &[u8]) {
    use crate::address::HostId;
    use crate::ticket::{Credential, Keyring, Role, Secret, Ticket};
    let secret = Secret::from_bytes([7; 32]);
    let keyring = Keyring::new();
    keyring.insert("a", 0, secret.clone());
    let local = || Local {
        identity: Identity {
            application: "a".into(),
            name: "".into(),
            incarnation: Incarnation(0),
            client_id: 0,
        },
        caps: Capabilities::default(),
        nonce: [0; 16],
    };
    let ticket = Ticket {
        application: "a".into(),
        role: Role::Client,
        client_id: 0,
        expires_unix_ms: 1,
        key_id: 0,
    };
    let credential = Credential::issue(&secret, &ticket);
    let (_, mut dialler) = Dialler::start(local(), &credential, Incarnation(0), HostId(0));
    let mut listener = Listener::start(local(), HostId(0), Vec::new());
    let mut framed = (bytes.len().min(usize::from(u16::MAX)) as u16)
        .to_le_bytes()
        .to_vec();
    framed.extend_from_slice(bytes);
    for input in [bytes, &framed] {
        let _ = dialler.feed(input);
        let _ = listener.feed(input, Some(&keyring), 0);
        listener = Listener::start(local(), HostId(0), Vec::new());
    }
}

/// Reads arbitrary bytes as a frame header: what is accepted encodes to the same bytes.
#[doc(hidden)]
pub fn fuzz_frame(bytes: &[u8]) {
    use zerocopy::IntoBytes;
    if let Some(chunk) = bytes.first_chunk::<FRAME_HEADER_BYTES>()
        && let Ok((_, header)) = FrameHeader::decode(chunk)
    {
        assert_eq!(header.as_bytes(), chunk);
    }
}
