//! A hostile peer of an open channel: control frames and bulk bytes in any order.
//!
//! The peer is connected and authenticated, and lies: about lengths, transfers that are not, bytes
//! that nobody asked for. The channel ends with an error or goes on; what was posted comes back
//! exactly once either way.

use smallvec::{SmallVec, smallvec};

use super::channel::{Channel, ChannelLimits};
use super::remote::Started;
use super::transfer::{InDone, OutKind, segments_decode};
use super::types::ChannelInfo;
use crate::address::TransportKind;
use crate::backend::{AnyWire, RxPool, Wire};
use crate::buf::{Buf, BufPool};
use crate::mem::{MemLink, MemWire};
use crate::one_sided::{Access, Completed, OneSidedOp, PutBytes, RegionTable, RemoteKey};
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Incarnation, PeerIdentity};

const LIMIT: u64 = 4096;
const LIMITS: ChannelLimits = ChannelLimits {
    transfers_max: 4,
    ops_max: 4,
    body_max: 64,
};

/// Plays the hostile peer that `bytes` describe.
#[doc(hidden)]
pub fn fuzz_channel(bytes: &[u8]) {
    let mut game = Game::new();
    let mut rest = bytes;
    while let Some((step, more)) = rest.split_first() {
        rest = more;
        if !game.step(*step, &mut rest) {
            break;
        }
    }
    let left = game.channel.out_drain().len();
    let (posted, back) = (game.posted, game.back + left);
    assert_eq!(posted, back, "a posted buffer was lost or came back twice");
    let ops_back = game.ops_back + game.channel.ops.len();
    assert_eq!(
        game.ops_posted, ops_back,
        "an operation was lost or came back twice"
    );
}

struct Game {
    channel: Channel,
    peer: MemWire,
    pool: BufPool,
    rx: RxPool,
    regions: RegionTable,
    key: RemoteKey,
    posted: usize,
    back: usize,
    ops_posted: usize,
    ops_back: usize,
    announced: Vec<(u64, usize)>,
}

impl Game {
    fn new() -> Self {
        let (ours, theirs) = MemLink::pair();
        let info = ChannelInfo {
            peer: PeerIdentity {
                application: "a".into(),
                name: "".into(),
                incarnation: Incarnation(0),
                role: None,
                client_id: 1,
            },
            kind: TransportKind::Mem,
            dialled: true,
            eager_max: 64,
        };
        let wire = AnyWire::Mem(MemWire::new(ours, 64));
        let regions = RegionTable::new(1);
        let region = regions.create(256, Access::ALL).expect("a region");
        Self {
            channel: Channel::new(wire, info, [0; 16], None, LIMITS),
            peer: MemWire::new(theirs, 64),
            pool: BufPool::new(64 << 10),
            rx: RxPool::default(),
            regions,
            key: region.key(),
            posted: 0,
            back: 0,
            ops_posted: 0,
            ops_back: 0,
            announced: Vec::new(),
        }
    }

    /// A step of either side; false if the channel has ended.
    fn step(&mut self, step: u8, rest: &mut &[u8]) -> bool {
        match step % 8 {
            0 => self.frame(rest),
            1 => self.message_post(step),
            2 => {
                if let Some((id, len)) = self.announced.pop()
                    && let Ok(into) = self.pool.alloc(len)
                {
                    // A stale announcement is an error to the user, not to the channel.
                    return self.channel.accept(id, into).is_ok();
                }
                true
            }
            3 => {
                if let Some((id, _)) = self.announced.pop() {
                    drop(self.channel.refuse(id, 1));
                }
                true
            }
            4 => {
                let (now, more) = rest.split_at(rest.len().min(usize::from(step / 8) + 32));
                *rest = more;
                self.peer.bulk_write(now).is_ok()
            }
            5 => self.op_post(step),
            _ => self.round(),
        }
    }

    fn message_post(&mut self, step: u8) -> bool {
        let buf = Buf::from_vec(vec![1; 1 + usize::from(step / 8) * 40]);
        let frame = FrameHeader::new(FrameKind::Rts).with_len(buf.len() as u64);
        let kind = OutKind::Message {
            context: 3,
            list: false,
        };
        match self.channel.send_large(frame, &[], smallvec![buf], kind) {
            Ok(sent) => {
                self.posted += usize::from(sent.is_ok());
                true
            }
            Err(_) => false,
        }
    }

    /// A one-sided operation of ours, which the peer is asked to do.
    fn op_post(&mut self, step: u8) -> bool {
        let len = usize::from(step / 16) * 12;
        let (key, offset) = (RemoteKey(1), 8);
        let op = match step & 8 {
            0 => OneSidedOp::Put {
                key,
                offset,
                bytes: PutBytes::Held(Buf::from_vec(vec![2; len])),
                immediate: Some(1),
            },
            _ => match self.pool.alloc(len) {
                Ok(into) => OneSidedOp::Get { key, offset, into },
                Err(_) => return true,
            },
        };
        if self.channel.ops.len() >= LIMITS.ops_max {
            return true;
        }
        match self.channel.op_start(op, 4) {
            Ok(Started::Pending) => {
                self.ops_posted += 1;
                true
            }
            Ok(_) => true,
            Err(_) => false,
        }
    }

    /// A frame from the peer, handled as the endpoint would. A key of one is the region's.
    fn frame(&mut self, rest: &mut &[u8]) -> bool {
        let Some((bytes, more)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            *rest = &[];
            return true;
        };
        *rest = more;
        let Ok((kind, header)) = FrameHeader::decode(bytes) else {
            return false;
        };
        let words = usize::from(header.uhdr_len);
        let body = header.body_len(kind);
        if (more.len() as u64) < body.saturating_add(words as u64) {
            return true;
        }
        let (user, more) = more.split_at(words);
        let (body, more) = more.split_at(body as usize);
        *rest = more;
        let mut user = user.to_vec();
        if let Some(key) = user.first_chunk_mut::<8>()
            && *key == 1_u64.to_le_bytes()
        {
            *key = self.key.0.to_le_bytes();
        }
        match kind {
            FrameKind::Eager | FrameKind::Immediate => true,
            FrameKind::Rts | FrameKind::RtsPull => {
                let segments = match kind {
                    FrameKind::RtsPull => segments_decode(body),
                    _ => smallvec![],
                };
                let Ok(id) = self.channel.announced(&header, &user, segments, LIMIT) else {
                    return false;
                };
                self.announced.push((id, header.len() as usize));
                true
            }
            FrameKind::Answer => match self.channel.answered(&header, body) {
                Ok(completed) => self.op_back(completed),
                Err(_) => false,
            },
            FrameKind::Put
            | FrameKind::PutRts
            | FrameKind::Get
            | FrameKind::FetchAdd
            | FrameKind::CompareSwap => {
                let asked = self
                    .channel
                    .asked(&self.regions, kind, &header, &user, body);
                asked.is_ok()
            }
            _ => match self.channel.control_frame(kind, &header) {
                Ok(done) => {
                    self.back += usize::from(done.is_some());
                    true
                }
                Err(_) => false,
            },
        }
    }

    fn op_back(&mut self, completed: Completed) -> bool {
        let taken = self.channel.op_take(completed.id, completed.returned);
        let (_, returned) = taken.expect("what is completed is under way");
        assert!(
            returned.buf.is_some() != returned.data.is_some(),
            "a buffer was lost"
        );
        self.ops_back += 1;
        true
    }

    /// A round of our progress, and the peer reading what comes.
    fn round(&mut self) -> bool {
        let mut done = SmallVec::new();
        if self.channel.pull(&mut self.rx, &mut done).is_err()
            || self.channel.push(&mut self.rx).is_err()
        {
            return false;
        }
        for done in done {
            match done {
                InDone::Message(message) => assert!(message.payload.len() as u64 <= LIMIT),
                InDone::Put { len, .. } => assert!(len <= 256),
                InDone::Op(completed) => {
                    self.op_back(completed);
                }
            }
        }
        while let Ok(Some(received)) = self.peer.recv_frame(&mut self.rx) {
            self.peer.recycle(received.buf, &mut self.rx);
        }
        let mut bytes = [0; 4096];
        while matches!(self.peer.bulk_read(&mut bytes), Ok(1..)) {}
        true
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// Frames that fit what came before often enough to get somewhere.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let fields = (1..18_u8, 0..6_u64, 0..300_u64, 0..6_u64, 0..5_usize);
        fields.prop_map(|(kind, id, len, aux, words)| {
            // Numbers of transfers have a generation, which counts from one, above the slot;
            // those of operations count from zero.
            let id = (id / 2) | ((id % 2) << 32);
            let kind = FrameKind::from_code(kind).unwrap_or(FrameKind::Data);
            let header = FrameHeader::new(kind)
                .with_id(id)
                .with_len(len)
                .with_message(0, 8 * words as u8);
            let header = match kind {
                FrameKind::Rts => header.with_aux(id + (1 << 32)),
                FrameKind::RtsPull => header.with_aux(id + (1 << 32)).with_segments(1),
                _ => header.with_aux(aux * 40),
            };
            let mut bytes = header.as_bytes().to_vec();
            for word in 0..words as u64 {
                bytes.extend((1 + word * (id + 5)).to_le_bytes());
            }
            let body = header.body_len(kind) as usize;
            bytes.extend(std::iter::repeat_n(3, body));
            bytes
        })
    }

    fn step() -> impl Strategy<Value = Vec<u8>> {
        let then = |step: u8| move |bytes: Vec<u8>| [vec![step], bytes].concat();
        prop_oneof![
            frame().prop_map(then(0)),
            frame().prop_map(then(4)),
            any::<u8>().prop_map(|step| vec![step]),
            (0..8_u8).prop_map(|step| vec![step * 8 + 1]),
            (0..32_u8).prop_map(|step| vec![step * 8 + 5]),
            Just(vec![6]),
            Just(vec![2, 6]),
        ]
    }

    fn announce(game: &mut Game, number: u64) -> bool {
        let header = FrameHeader::new(FrameKind::Rts)
            .with_len(100)
            .with_aux(number);
        let announced = game.channel.announced(&header, &[], smallvec![], LIMIT);
        announced.is_ok()
    }

    #[test]
    fn refusals_that_a_peer_does_not_read_do_not_pile_up() {
        let mut game = Game::new();
        let refused = (1..1_000_000)
            .take_while(|number| {
                announce(&mut game, *number) && game.channel.refuse(*number, 1).is_ok()
            })
            .count();
        assert!((4096..100_000).contains(&refused));
    }

    #[test]
    fn what_a_peer_has_under_way_does_not_keep_us_from_ours() {
        let mut game = Game::new();
        for number in 1..=LIMITS.transfers_max as u64 {
            assert!(announce(&mut game, number), "it is parked");
            let header = FrameHeader::new(FrameKind::Get)
                .with_message(1, 8)
                .with_id(number)
                .with_len(100);
            let words = game.key.0.to_le_bytes();
            let (regions, kind) = (&game.regions, FrameKind::Get);
            let asked = game.channel.asked(regions, kind, &header, &words, &[]);
            assert!(asked.is_ok());
        }
        for _ in 0..LIMITS.transfers_max {
            assert!(!game.channel.out_is_full() && !game.channel.gets_are_full());
            assert!(game.message_post(8) && game.op_post(8 | 0xf0));
        }
        assert_eq!(game.posted, LIMITS.transfers_max);
        assert!(game.channel.out_is_full() && game.channel.gets_are_full());
    }

    proptest! {
        #[test]
        fn a_lying_peer_ends_the_channel_or_nothing(
            steps in proptest::collection::vec(step(), 0..80),
        ) {
            fuzz_channel(&steps.concat());
        }
    }
}
