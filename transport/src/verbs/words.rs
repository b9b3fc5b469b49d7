//! What peers say to each other besides frames, to the byte: `docs/wire.md`, "RDMA".

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::WireError;

/// Kinds of sends, as `hub.rs` has others.
pub(super) const KIND_ASK: u8 = 3;
pub(super) const KIND_TELL: u8 = 4;
pub(super) const KIND_VOID: u8 = 5;
pub(super) const KIND_LANE_OFFER: u8 = 6;
pub(super) const KIND_LANE_ANSWER: u8 = 7;

pub(super) const ACCESS_READ: u8 = 1;
pub(super) const ACCESS_WRITE: u8 = 2;
pub(super) const ACCESS_ATOMIC: u8 = 4;

/// Of a write with an immediate value, which is the other three bytes.
pub(super) const KIND_IMMEDIATE: u8 = 8;
/// Immediate values from here on do not fit there, and follow as a frame.
pub(super) const IMMEDIATE_END: u64 = 1 << 24;

/// What a target tells of a region.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(super) struct Tell {
    pub(super) key: U64,
    pub(super) len: U64,
    pub(super) at: U64,
    pub(super) device_key: U32,
    pub(super) access: u8,
    /// Whether a device can reach it; else it is asked by frames.
    pub(super) native: u8,
    pub(super) reserved: U16,
}

/// A queue pair for operations.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(super) struct LaneWord {
    /// An answer has that of its offer.
    pub(super) offer: U32,
    pub(super) number: U32,
    pub(super) sequence: U32,
}

const _: () = assert!(size_of::<Tell>() == 32);
const _: () = assert!(size_of::<LaneWord>() == 12);

pub(super) fn malformed(what: &'static str) -> WireError {
    WireError::Malformed { what }
}

/// A word of a peer's, of the length that its kind has.
pub(super) fn word_read<T: FromBytes>(bytes: &[u8]) -> Result<T, WireError> {
    T::read_from_bytes(bytes).map_err(|_| malformed("a word of a peer's has the wrong length"))
}
