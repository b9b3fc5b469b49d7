//! The target's side of one-sided operations that its endpoint does: `remote.rs` has the picture.

use std::sync::Arc;

use smallvec::smallvec;

use super::channel::Channel;
use super::remote::GET_LARGE;
use super::transfer::{GET_BIT, InTransfer, OutKind, OutTransfer, Source, Target};
use crate::backend::{Posted, RX_BYTES, RxPool, Wire, WireFault};
use crate::one_sided::{Atomic, OneSidedError, Region, RegionTable, RemoteKey, RemoteSlice, Verb};
use crate::wire::{FrameHeader, FrameKind, WireError};

/// Operations that a peer may have in flight, whatever its settings are.
const ANSWERS_MAX: usize = 4096;

/// What the peer is to be told of an operation of its.
pub(super) enum AnswerDue {
    Status(FrameHeader),
    /// Bytes, which are read when there is room for them.
    Read {
        op: u64,
        region: Arc<Region>,
        offset: usize,
        len: usize,
    },
}

impl Channel {
    /// The peer asks for an operation: what the user is to be told of a put.
    pub(super) fn asked(
        &mut self,
        regions: &RegionTable,
        kind: FrameKind,
        frame: &FrameHeader,
        header: &[u8],
        body: &[u8],
    ) -> Result<Option<(u64, u64)>, WireError> {
        let op = frame.id();
        let out_of_place = WireError::OutOfPlace { kind, id: op };
        if self.answers.len() >= self.limits.ops_max.max(ANSWERS_MAX) {
            return Err(out_of_place);
        }
        let words = Words::decode(kind, header).ok_or(out_of_place.clone())?;
        let (verb, len) = match kind {
            FrameKind::Put | FrameKind::PutRts => (Verb::Put, frame.len()),
            FrameKind::Get => (Verb::Get, frame.len()),
            _ => (Verb::Atomic, 8),
        };
        let at = RemoteSlice {
            key: RemoteKey(words.key),
            offset: frame.aux(),
            len,
        };
        let region = match regions.check(verb, at) {
            Ok(region) => region,
            Err(error) => {
                self.answer(op, Err(error));
                return Ok(None);
            }
        };
        let offset = at.offset as usize;
        match kind {
            FrameKind::Put => {
                region.write(offset, body);
                self.answer(op, Ok(0));
                return Ok(words.immediate.map(|immediate| (immediate, len)));
            }
            FrameKind::PutRts => {
                if len == 0 || !self.transfer_is_new(words.more[0]) {
                    return Err(out_of_place);
                }
                self.put_receive(op, len, &words, region, offset);
            }
            FrameKind::Get if frame.am_id == GET_LARGE => {
                if len == 0 || op & GET_BIT != 0 || !self.may_serve() {
                    return Err(out_of_place);
                }
                self.get_serve(op, len, region, offset);
            }
            FrameKind::Get => {
                if len > self.limits.body_max as u64 {
                    return Err(out_of_place);
                }
                self.answers.push_back(AnswerDue::Read {
                    op,
                    region,
                    offset,
                    len: len as usize,
                });
            }
            FrameKind::FetchAdd => {
                let old = region.atomic(offset, Atomic::FetchAdd(words.more[0]));
                self.answer(op, Ok(old));
            }
            _ => {
                let [expected, new] = words.more;
                let old = region.atomic(offset, Atomic::CompareSwap { expected, new });
                self.answer(op, Ok(old));
            }
        }
        Ok(None)
    }

    fn put_receive(
        &mut self,
        op: u64,
        len: u64,
        words: &Words,
        region: Arc<Region>,
        offset: usize,
    ) {
        let id = words.more[0];
        self.incoming.push(InTransfer {
            id,
            am: 0,
            tag: 0,
            header: smallvec![],
            len,
            segments: smallvec![],
            target: Target::Region {
                region,
                offset,
                op,
                immediate: words.immediate,
            },
            got: 0,
        });
        self.control
            .push_back(FrameHeader::new(FrameKind::Cts).with_id(id));
    }

    fn get_serve(&mut self, op: u64, len: u64, region: Arc<Region>, offset: usize) {
        let (_, generation) = self.out_id_next();
        let key = self.out.insert(OutTransfer {
            source: Source::Region { region, offset },
            kind: OutKind::Get,
            len,
            generation,
            wire_id: GET_BIT | op,
            sent: 0,
            accepted: true,
            exposed: smallvec![],
        });
        self.sending.push_back(key);
    }

    /// Tells the peer what became of its operation, as soon as there is room.
    pub(super) fn answer(&mut self, op: u64, outcome: Result<u64, OneSidedError>) {
        let frame = outcome_encode(op, outcome);
        self.answers.push_back(AnswerDue::Status(frame));
    }

    /// Sends the answers for which there is room.
    pub(super) fn answers_push(&mut self, rx: &mut RxPool) -> Result<(), WireFault> {
        while let Some(due) = self.answers.front() {
            let posted = match due {
                AnswerDue::Status(frame) => self.wire.send_frame(frame, &[], &[])?,
                AnswerDue::Read { op, region, .. } if region.is_closed() => {
                    let frame = outcome_encode(*op, Err(OneSidedError::Key));
                    self.wire.send_frame(&frame, &[], &[])?
                }
                AnswerDue::Read {
                    op,
                    region,
                    offset,
                    len,
                } => {
                    let mut scratch = rx.take();
                    let bytes = &mut scratch[..(*len).min(RX_BYTES)];
                    region.read(*offset, bytes);
                    let frame = outcome_encode(*op, Ok(0)).with_len(*len as u64);
                    let posted = self.wire.send_frame(&frame, &[], &[bytes]);
                    rx.give(scratch);
                    posted?
                }
            };
            if posted == Posted::Busy {
                break;
            }
            self.answers.pop_front();
        }
        Ok(())
    }
}

/// The words of an operation's header.
struct Words {
    key: u64,
    more: [u64; 2],
    immediate: Option<u64>,
}

impl Words {
    fn decode(kind: FrameKind, header: &[u8]) -> Option<Self> {
        let mut words = [0; 4];
        let (chunks, rest) = header.as_chunks::<8>();
        for (word, bytes) in words.iter_mut().zip(chunks) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [key, one, two, _] = words;
        let (more, immediate) = match (kind, chunks.len()) {
            (FrameKind::Put | FrameKind::Get, 1) => ([0; 2], None),
            (FrameKind::Put, 2) => ([0; 2], Some(one)),
            (FrameKind::PutRts, 2) | (FrameKind::FetchAdd, 2) => ([one, 0], None),
            (FrameKind::PutRts, 3) => ([one, 0], Some(two)),
            (FrameKind::CompareSwap, 3) => ([one, two], None),
            _ => return None,
        };
        rest.is_empty().then_some(Self {
            key,
            more,
            immediate,
        })
    }
}

/// An Answer: its code is zero, or why the operation failed.
fn outcome_encode(op: u64, outcome: Result<u64, OneSidedError>) -> FrameHeader {
    let (code, aux) = match outcome {
        Ok(value) => (0, value),
        Err(OneSidedError::Range { region, .. }) => (2, region),
        Err(OneSidedError::Forbidden) => (3, 0),
        Err(OneSidedError::Misaligned(_)) => (4, 0),
        Err(OneSidedError::Key | OneSidedError::Closed) => (1, 0),
    };
    FrameHeader::new(FrameKind::Answer)
        .with_message(code, 0)
        .with_id(op)
        .with_aux(aux)
}
