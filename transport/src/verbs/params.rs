//! What both sides tell each other before their queue pairs are connected, to the byte.
//!
//! ```text
//!   dialler                                        listener
//!     |  <= handshake; Accept carries Candidates ==>   |
//!     |-- Card { offer, candidate, queue pair } ------>|  connects its queue pair
//!     |<- Card { answer, queue pair } -----------------|  or Card { reject, why }
//!     |== Ping over the queue pairs ==================>|
//!     |<= Pong ========================================|  open; the socket stays, for its hang-up
//! ```
//!
//! If no Pong comes, or the offer is rejected, the dialler offers the next candidate.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::WireError;

/// Ports that a listener names at most.
pub(super) const CANDIDATES_MAX: usize = 8;
const CANDIDATE_BYTES: usize = 24;
/// Bytes of a [`Card`].
pub(super) const CARD_BYTES: usize = 64;
/// Bytes of a rejection's text.
const TEXT_MAX: usize = CARD_BYTES - 4;

/// Bit of [`Candidate::flags`]: packets go over Ethernet.
pub(super) const FLAG_ETHERNET: u8 = 1;
/// Bit of [`Candidate::flags`]: the GID is the address that the socket is connected to.
pub(super) const FLAG_EXACT: u8 = 2;
/// Bit of [`Candidate::flags`]: the device is near the cores that the listener may use.
pub(super) const FLAG_NEAR: u8 = 4;
/// Bit of [`Candidate::flags`]: RoCE version 2.
pub(super) const FLAG_ROUTABLE: u8 = 8;

/// A port of the listener's that may be connected to.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(super) struct Candidate {
    pub(super) gid: [u8; 16],
    pub(super) lid: U16,
    /// As the header of libibverbs codes it: 256 bytes shifted left by this minus one.
    pub(super) mtu: u8,
    pub(super) flags: u8,
    pub(super) reserved: [u8; 4],
}

const _: () = assert!(size_of::<Candidate>() == CANDIDATE_BYTES);

/// What Accept carries.
pub(super) fn candidates_encode(candidates: &[Candidate]) -> Vec<u8> {
    debug_assert!(candidates.len() <= CANDIDATES_MAX);
    let mut out = vec![candidates.len() as u8, 0, 0, 0];
    for candidate in candidates {
        out.extend_from_slice(candidate.as_bytes());
    }
    out
}

/// Reads what [`candidates_encode`] wrote.
pub(super) fn candidates_decode(bytes: &[u8]) -> Result<Vec<Candidate>, WireError> {
    let malformed = |what| WireError::Malformed { what };
    let wrong = malformed("the list of RDMA ports is malformed");
    let (&[count, 0, 0, 0], rest) = bytes.split_first_chunk::<4>().ok_or(wrong.clone())? else {
        return Err(wrong);
    };
    let count = usize::from(count);
    if count == 0 || count > CANDIDATES_MAX || rest.len() != count * CANDIDATE_BYTES {
        return Err(wrong);
    }
    let read = |bytes: &[u8]| {
        let candidate = Candidate::read_from_bytes(bytes).map_err(|_| wrong.clone())?;
        match mtu_good(candidate.mtu) && candidate.reserved == [0; 4] {
            true => Ok(candidate),
            false => Err(malformed("an RDMA port of the peer has no such MTU")),
        }
    };
    rest.chunks_exact(CANDIDATE_BYTES).map(read).collect()
}

pub(super) fn mtu_good(code: u8) -> bool {
    (1..=5).contains(&code)
}

/// One side's queue pair, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Card {
    Offer(QueueCard),
    Answer(QueueCard),
    Reject { attempt: u8, text: String },
}

/// What the other side must know of a queue pair.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(super) struct QueueCard {
    pub(super) kind: u8,
    /// Which of the listener's candidates it is about.
    pub(super) candidate: u8,
    pub(super) mtu: u8,
    /// Reads and atomics that this side serves at a time.
    pub(super) reads: u8,
    pub(super) lid: U16,
    /// Counts the dialler's offers: an answer has that of its offer.
    pub(super) attempt: u8,
    pub(super) reserved: u8,
    /// The queue pair's number, and the sequence number of its first packet.
    pub(super) number: U32,
    pub(super) sequence: U32,
    /// Frames that the other side may send at first.
    pub(super) credits: U32,
    /// Bytes of the longest frame that this side takes.
    pub(super) frame_max: U32,
    pub(super) gid: [u8; 16],
    pub(super) rest: [u8; 24],
}

const _: () = assert!(size_of::<QueueCard>() == CARD_BYTES);

const KIND_OFFER: u8 = 1;
const KIND_ANSWER: u8 = 2;
const KIND_REJECT: u8 = 3;
/// Numbers of queue pairs and packets have 24 bits.
const NUMBER_MAX: u32 = (1 << 24) - 1;
/// Credits that a card may give.
const CREDITS_MAX: u32 = 1 << 16;
/// The longest frame that a card may speak of.
const FRAME_MAX: u32 = 1 << 20;
/// The shortest: a header, a user's header, and what may be pulled.
const FRAME_MIN: u32 = 320;

impl QueueCard {
    pub(super) fn new(
        candidate: u8,
        attempt: u8,
        number: u32,
        sequence: u32,
        gid: [u8; 16],
    ) -> Self {
        Self {
            kind: 0,
            candidate,
            mtu: 0,
            reads: 0,
            lid: U16::ZERO,
            attempt,
            reserved: 0,
            number: U32::new(number),
            sequence: U32::new(sequence),
            credits: U32::ZERO,
            frame_max: U32::ZERO,
            gid,
            rest: [0; 24],
        }
    }

    fn good(&self) -> bool {
        mtu_good(self.mtu)
            && (1..=NUMBER_MAX).contains(&self.number.get())
            && self.sequence.get() <= NUMBER_MAX
            && (2..=CREDITS_MAX).contains(&self.credits.get())
            && (FRAME_MIN..=FRAME_MAX).contains(&self.frame_max.get())
            && self.reserved == 0
            && self.rest == [0; 24]
    }
}

impl Card {
    pub(super) fn encode(&self) -> [u8; CARD_BYTES] {
        let of_kind = |card: &QueueCard, kind| zerocopy::transmute!(QueueCard { kind, ..*card });
        match self {
            Self::Offer(card) => of_kind(card, KIND_OFFER),
            Self::Answer(card) => of_kind(card, KIND_ANSWER),
            Self::Reject { attempt, text } => {
                let mut end = text.len().min(TEXT_MAX);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                let mut out = [0; CARD_BYTES];
                out[..3].copy_from_slice(&[KIND_REJECT, *attempt, end as u8]);
                out[4..4 + end].copy_from_slice(&text.as_bytes()[..end]);
                out
            }
        }
    }

    pub(super) fn decode(bytes: &[u8; CARD_BYTES]) -> Result<Self, WireError> {
        let wrong = |what| WireError::Malformed { what };
        let queue: QueueCard = zerocopy::transmute!(*bytes);
        let bare = QueueCard { kind: 0, ..queue };
        match bytes[0] {
            KIND_OFFER | KIND_ANSWER if !queue.good() => {
                Err(wrong("the card of a queue pair is out of range"))
            }
            KIND_OFFER => Ok(Self::Offer(bare)),
            KIND_ANSWER => Ok(Self::Answer(bare)),
            KIND_REJECT => {
                let bad = wrong("a rejection is malformed");
                let len = usize::from(bytes[2]);
                if len > TEXT_MAX || bytes[3] != 0 || bytes[4 + len..].iter().any(|b| *b != 0) {
                    return Err(bad);
                }
                let text = std::str::from_utf8(&bytes[4..4 + len]).map_err(|_| bad)?;
                Ok(Self::Reject {
                    attempt: bytes[1],
                    text: text.into(),
                })
            }
            _ => Err(wrong("a card is of no known kind")),
        }
    }
}

/// Reads arbitrary bytes as what a peer sends before it is connected: what is accepted encodes to
/// the same bytes.
#[doc(hidden)]
pub fn fuzz_verbs(bytes: &[u8]) {
    if let Ok(candidates) = candidates_decode(bytes) {
        assert_eq!(candidates_encode(&candidates), bytes);
    }
    if let Some((card, _)) = bytes.split_first_chunk::<CARD_BYTES>()
        && let Ok(decoded) = Card::decode(card)
    {
        assert_eq!(decoded.encode(), *card);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn card() -> QueueCard {
        QueueCard {
            mtu: 3,
            reads: 16,
            lid: U16::new(7),
            credits: U32::new(4),
            frame_max: U32::new(8256),
            ..QueueCard::new(1, 2, 17, 0xab_cdef, [9; 16])
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_card_or_not(
            kind in 0_u8..5,
            bytes in proptest::collection::vec(any::<u8>(), 0..CARD_BYTES + 8),
        ) {
            fuzz_verbs(&bytes);
            fuzz_verbs(&[&[kind], &bytes[..]].concat());
        }
    }

    #[test]
    fn cards_come_back() {
        let reject = Card::Reject {
            attempt: 3,
            text: "é".repeat(40),
        };
        let cut = Card::Reject {
            attempt: 3,
            text: "é".repeat(30),
        };
        for (card, back) in [
            (Card::Offer(card()), Card::Offer(card())),
            (Card::Answer(card()), Card::Answer(card())),
            (reject, cut),
        ] {
            assert_eq!(Card::decode(&card.encode()), Ok(back));
        }
    }

    #[test]
    fn cards_out_of_range_are_refused() {
        let refused = |change: &dyn Fn(&mut QueueCard)| {
            let mut card = card();
            change(&mut card);
            Card::decode(&Card::Offer(card).encode()).is_err()
        };
        assert!(!refused(&|_| {}));
        assert!(refused(&|card| card.mtu = 6));
        assert!(refused(&|card| card.mtu = 0));
        assert!(refused(&|card| card.number = U32::new(1 << 24)));
        assert!(refused(&|card| card.number = U32::ZERO));
        assert!(refused(&|card| card.sequence = U32::new(1 << 24)));
        assert!(refused(&|card| card.credits = U32::new(1)));
        assert!(refused(&|card| card.frame_max = U32::new(u32::MAX)));
        assert!(refused(&|card| card.rest[23] = 1));
    }

    #[test]
    fn lists_of_ports_come_back() {
        let one = Candidate {
            gid: [1; 16],
            lid: U16::new(2),
            mtu: 5,
            flags: FLAG_ETHERNET | FLAG_EXACT | FLAG_NEAR | FLAG_ROUTABLE,
            reserved: [0; 4],
        };
        let bytes = candidates_encode(&[one; CANDIDATES_MAX]);
        assert_eq!(candidates_decode(&bytes), Ok(vec![one; CANDIDATES_MAX]));
        assert!(candidates_decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(candidates_decode(&candidates_encode(&[])).is_err());
        assert!(candidates_decode(&[]).is_err());
    }
}
