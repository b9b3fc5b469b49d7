//! The 32-byte frame header.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::WireError;

/// Bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 32;

/// Bytes that the user's header of a message may have.
pub const USER_HEADER_MAX_BYTES: usize = 32;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A whole message: user header and payload follow. `id` is the user's tag.
    Eager = 1,
    /// Announces a large message: user header follows. `id` is the tag, `len` the payload's
    /// length, `aux` the transfer's number.
    Rts = 2,
    /// The receiver has room for transfer `id`: send its bytes on the bulk lane.
    Cts = 3,
    /// The receiver refuses transfer `id`; `aux` is its reason.
    Rej = 4,
    /// Bytes of transfer `id` at offset `aux` (bulk lane only).
    Data = 5,
    /// The receiver has all bytes of transfer `id`.
    Fin = 6,
    /// The sender will send no more; what came before is whole.
    Close = 7,
    /// Asks for a [`FrameKind::Pong`] with the same `id`.
    Ping = 8,
    /// Answers a [`FrameKind::Ping`].
    Pong = 9,
    /// A one-sided put of `len` bytes is complete here; `id` is its immediate value.
    Immediate = 10,
    /// As [`FrameKind::Rts`], and the receiver may pull the payload itself: user header and
    /// `flags` pull segments follow.
    RtsPull = 11,
    /// Puts `len` bytes, which follow, at `aux` into a region; `id` is the operation's. The user
    /// header has the key, and the immediate value if there is one.
    Put = 12,
    /// Announces a put of `len` bytes at `aux`; `id` is the operation's. The user header has the
    /// key, the transfer's number, and the immediate value if there is one.
    PutRts = 13,
    /// Asks for `len` bytes at `aux` of a region; `id` is the operation's. The user header has the
    /// key.
    Get = 14,
    /// Adds to the word at `aux`. The user header has the key and what to add.
    FetchAdd = 15,
    /// Swaps the word at `aux`. The user header has the key, what is expected, and the new value.
    CompareSwap = 16,
    /// The operation `id` is complete: `am_id` is zero or why it failed, `aux` the word's old
    /// value or the region's length, and `len` bytes that a get asked for follow.
    Answer = 17,
}

/// Pull segments that a [`FrameKind::RtsPull`] has at most.
pub const PULL_SEGMENTS_MAX: usize = 8;

/// Bytes of a pull segment: what the backend says of the memory, then its length.
pub const PULL_SEGMENT_BYTES: usize = 32;

impl FrameKind {
    /// The kind that `code` stands for.
    pub fn from_code(code: u8) -> Result<Self, WireError> {
        Ok(match code {
            1 => Self::Eager,
            2 => Self::Rts,
            3 => Self::Cts,
            4 => Self::Rej,
            5 => Self::Data,
            6 => Self::Fin,
            7 => Self::Close,
            8 => Self::Ping,
            9 => Self::Pong,
            10 => Self::Immediate,
            11 => Self::RtsPull,
            12 => Self::Put,
            13 => Self::PutRts,
            14 => Self::Get,
            15 => Self::FetchAdd,
            16 => Self::CompareSwap,
            17 => Self::Answer,
            other => return Err(WireError::UnknownKind(other)),
        })
    }
}

/// The header of every frame, as it lies on the wire and in a ring's line.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct FrameHeader {
    kind: u8,
    /// How many pull segments follow the user header; zero unless the kind has such.
    pub flags: u8,
    /// The active message's id: which handler the message is for.
    pub am_id: u8,
    /// Bytes of the user's header that follows, at most [`USER_HEADER_MAX_BYTES`].
    pub uhdr_len: u8,
    credits: U32,
    id: U64,
    len: U64,
    aux: U64,
}

const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);
const _: () = assert!(align_of::<FrameHeader>() == 1);

impl FrameHeader {
    /// A header of `kind` with every other field zero.
    #[inline]
    pub fn new(kind: FrameKind) -> Self {
        Self {
            kind: kind as u8,
            flags: 0,
            am_id: 0,
            uhdr_len: 0,
            credits: U32::ZERO,
            id: U64::ZERO,
            len: U64::ZERO,
            aux: U64::ZERO,
        }
    }

    /// Sets the id: the user's tag, or a transfer's number.
    #[inline]
    #[must_use]
    pub fn with_id(mut self, id: u64) -> Self {
        self.id = U64::new(id);
        self
    }

    /// Sets the length in bytes of the payload.
    #[inline]
    #[must_use]
    pub fn with_len(mut self, len: u64) -> Self {
        self.len = U64::new(len);
        self
    }

    /// Sets the auxiliary word, whose meaning hangs on the kind.
    #[inline]
    #[must_use]
    pub fn with_aux(mut self, aux: u64) -> Self {
        self.aux = U64::new(aux);
        self
    }

    /// Sets which handler the message is for and how long the user's header is.
    #[inline]
    #[must_use]
    pub fn with_message(mut self, am_id: u8, uhdr_len: u8) -> Self {
        self.am_id = am_id;
        self.uhdr_len = uhdr_len;
        self
    }

    /// The same header, of another kind.
    #[inline]
    #[must_use]
    pub fn with_kind(mut self, kind: FrameKind) -> Self {
        self.kind = kind as u8;
        self
    }

    /// Sets how many pull segments follow.
    #[inline]
    #[must_use]
    pub fn with_segments(mut self, count: u8) -> Self {
        self.flags = count;
        self
    }

    /// Bytes that follow the user header on the eager lane.
    #[inline(always)]
    pub fn body_len(&self, kind: FrameKind) -> u64 {
        match kind {
            FrameKind::Eager | FrameKind::Put | FrameKind::Answer => self.len.get(),
            FrameKind::RtsPull => u64::from(self.flags) * PULL_SEGMENT_BYTES as u64,
            _ => 0,
        }
    }

    /// The kind, or an error for a code that this version does not know.
    #[inline]
    pub fn kind(&self) -> Result<FrameKind, WireError> {
        FrameKind::from_code(self.kind)
    }

    /// The user's tag, or a transfer's number.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id.get()
    }

    /// Bytes of payload.
    #[inline]
    pub fn len(&self) -> u64 {
        self.len.get()
    }

    /// Whether the payload is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len.get() == 0
    }

    /// The auxiliary word.
    #[inline]
    pub fn aux(&self) -> u64 {
        self.aux.get()
    }

    /// Reads a header and checks everything about it that does not hang on a channel's limits.
    ///
    /// # Errors
    /// Unknown kinds, flags or credits that the kind does not have, and user headers above
    /// [`USER_HEADER_MAX_BYTES`].
    #[inline]
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<(FrameKind, Self), WireError> {
        let header: Self = zerocopy::transmute!(*bytes);
        let kind = header.kind()?;
        if header.flags != 0 || header.credits.get() != 0 || kind == FrameKind::RtsPull {
            let flags = usize::from(header.flags);
            let flags_good = match kind {
                FrameKind::RtsPull => (1..=PULL_SEGMENTS_MAX).contains(&flags),
                _ => flags == 0,
            };
            let (field, value) = match flags_good {
                true => ("credits", u64::from(header.credits.get())),
                false => ("flags", u64::from(header.flags)),
            };
            if !flags_good || value != 0 {
                return Err(WireError::BadField { field, value, kind });
            }
        }
        if usize::from(header.uhdr_len) > USER_HEADER_MAX_BYTES {
            return Err(WireError::TooLong {
                what: "user header",
                len: u64::from(header.uhdr_len),
                limit: USER_HEADER_MAX_BYTES as u64,
            });
        }
        Ok((kind, header))
    }
}
