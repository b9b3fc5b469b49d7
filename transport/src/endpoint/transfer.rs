//! Large payloads: messages by rendezvous, and what large one-sided operations move.
//!
//! ```text
//!   sender                                      receiver
//!     | Rts { tag, user header, len, transfer }    |
//!     |------------------------------------------->|  accept, park or refuse
//!     |<--------------- Cts { transfer }  or  Rej  |
//!     | == Data { transfer, offset } bytes ... ===>|  bulk lane, straight into the buffer
//!     |<------------------------- Fin { transfer } |
//!
//!     | RtsPull { ..., segments }                  |
//!     |------------------------------------------->|  accept: the receiver's wire pulls the bytes
//!     |<------------------------- Fin { transfer } |  or, if it cannot, Cts as above
//! ```
//!
//! Only accepted transfers put bytes on the bulk lane, in chunks by turns, so that a parked one
//! stalls nobody and a long one does not starve a short one. Pulled bytes do not use the lane.

use std::sync::Arc;

use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::channel::{Channel, OutDone};
use super::types::LargeMessage;
use crate::backend::{Posted, PullSegment, PullSource, Pulled, RX_BYTES, RxPool, Wire, WireFault};
use crate::buf::{Buf, BufMut};
use crate::one_sided::{Completed, Region, Returned};
use crate::wire::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, PULL_SEGMENT_BYTES, PULL_SEGMENTS_MAX, WireError,
};

/// Bytes of a chunk on the bulk lane.
const CHUNK_BYTES: u64 = 1 << 20;
/// Large bytes moved in one round of progress, each way.
const ROUND_BYTES: usize = 512 << 10;
/// Set in the number of a transfer that a large get asks for, which its initiator chose: the
/// numbers of either side are then never those of the other.
pub(super) const GET_BIT: u64 = 1 << 63;
/// Transfers that a peer may have announced, whatever its settings are.
const ANNOUNCED_MAX: usize = 4096;

/// Control frames that may wait while a peer announces more: for each transfer under way that one is
/// accepted and that it is over, and answers to pings. A peer that does not read would have us keep
/// without end what we refuse.
const CONTROL_MAX: usize = 4 * ANNOUNCED_MAX;

/// Where a transfer's bytes come from.
pub(super) enum Source {
    /// A message's buffers, one after the other.
    Parts(SmallVec<[Buf; 1]>),
    /// A range of a region that a peer gets.
    Region { region: Arc<Region>, offset: usize },
}

/// What a transfer of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutKind {
    /// A message; whether it was posted as a list.
    Message { context: u64, list: bool },
    /// The bytes of a put of ours.
    Put,
    /// The bytes of a peer's get.
    Get,
}

pub(super) struct OutTransfer {
    pub(super) source: Source,
    pub(super) kind: OutKind,
    pub(super) len: u64,
    pub(super) generation: u32,
    /// How Data frames name it.
    pub(super) wire_id: u64,
    pub(super) sent: u64,
    pub(super) accepted: bool,
    /// What the peer may pull, until it says that it has or will not.
    pub(super) exposed: SmallVec<[PullSource; 1]>,
}

impl OutTransfer {
    /// Whether the peer may say that it has it all, or wants none of it.
    pub(super) fn may_end(&self, by: FrameKind) -> bool {
        let message = matches!(self.kind, OutKind::Message { .. });
        let all_sent = self.sent == self.len;
        message
            && match (by, self.accepted) {
                (FrameKind::Fin, true) => all_sent,
                (FrameKind::Fin, false) => !self.exposed.is_empty(),
                (_, accepted) => !accepted,
            }
    }
}

/// Where a transfer's bytes go.
pub(super) enum Target {
    /// It is announced, and neither accepted nor refused.
    Undecided,
    /// A message's buffer, filled from the bulk lane.
    Buf(BufMut),
    /// The wire has the buffer, and fills it.
    Pulling,
    /// A region that a peer puts to.
    Region {
        region: Arc<Region>,
        offset: usize,
        op: u64,
        immediate: Option<u64>,
    },
    /// The buffer of a get of ours.
    Get { op: u64, into: BufMut },
}

pub(super) struct InTransfer {
    pub(super) id: u64,
    pub(super) am: u8,
    pub(super) tag: u64,
    pub(super) header: SmallVec<[u8; 32]>,
    pub(super) len: u64,
    /// What may be pulled, if anything.
    pub(super) segments: SmallVec<[PullSegment; 1]>,
    pub(super) target: Target,
    pub(super) got: u64,
}

impl InTransfer {
    /// Whether its bytes come on the bulk lane.
    pub(super) fn streams(&self) -> bool {
        !matches!(self.target, Target::Undecided | Target::Pulling)
    }
}

pub(super) struct ChunkOut {
    key: usize,
    header: FrameHeader,
    header_sent: usize,
    end: u64,
}

#[derive(Default)]
pub(super) struct ChunkIn {
    header: [u8; FRAME_HEADER_BYTES],
    have: usize,
    /// Index into the incoming transfers, and where the chunk ends.
    current: Option<(usize, u64)>,
}

/// A payload that has come whole.
pub(super) enum InDone {
    Message(LargeMessage),
    /// A peer's put: what we are to be told.
    Put {
        immediate: u64,
        len: u64,
    },
    /// A get of ours.
    Op(Completed),
}

impl Channel {
    /// Announces a large message; `Err` gives the parts back as `Busy`.
    pub(super) fn send_large(
        &mut self,
        frame: FrameHeader,
        header: &[u8],
        parts: SmallVec<[Buf; 1]>,
        kind: OutKind,
    ) -> Result<Result<(), SmallVec<[Buf; 1]>>, WireFault> {
        if self.out_is_full() {
            self.want_writable = true;
            return Ok(Err(parts));
        }
        let (segments, exposed) = self.parts_expose(&parts);
        let (id, generation) = self.out_id_next();
        let frame = frame.with_aux(id);
        let posted = match exposed.is_empty() {
            true => self.wire.send_frame(&frame, header, &[])?,
            false => {
                let frame = frame.with_kind(FrameKind::RtsPull);
                let frame = frame.with_segments(exposed.len() as u8);
                self.wire.send_frame(&frame, header, &[&segments])?
            }
        };
        if posted == Posted::Busy {
            self.withdraw_all(&exposed);
            self.want_writable = true;
            return Ok(Err(parts));
        }
        self.out.insert(OutTransfer {
            source: Source::Parts(parts),
            kind,
            len: frame.len(),
            generation,
            wire_id: id,
            sent: 0,
            accepted: false,
            exposed,
        });
        Ok(Ok(()))
    }

    /// Opens the parts to pulls, all of them or none: the segments' bytes, and what is exposed.
    fn parts_expose(
        &mut self,
        parts: &[Buf],
    ) -> (
        SmallVec<[u8; 2 * PULL_SEGMENT_BYTES]>,
        SmallVec<[PullSource; 1]>,
    ) {
        let (mut segments, mut exposed) = (SmallVec::new(), SmallVec::new());
        if parts.len() > PULL_SEGMENTS_MAX {
            return (segments, exposed);
        }
        for part in parts {
            let Some(source) = self.wire.expose(part) else {
                self.withdraw_all(&exposed);
                return (SmallVec::new(), SmallVec::new());
            };
            segments.extend_from_slice(&source);
            segments.extend_from_slice(&(part.len() as u64).to_le_bytes());
            exposed.push(source);
        }
        (segments, exposed)
    }

    fn withdraw_all(&mut self, exposed: &[PullSource]) {
        for source in exposed {
            self.wire.withdraw(source);
        }
    }

    /// The number that the next transfer of ours will have.
    pub(super) fn out_id_next(&mut self) -> (u64, u32) {
        self.out_generation = self.out_generation.wrapping_add(1) & (u32::MAX >> 1);
        let id = transfer_id(self.out.vacant_key(), self.out_generation);
        (id, self.out_generation)
    }

    /// Whether bytes of a transfer have come.
    pub(super) fn begun(&self, transfer: &InTransfer) -> bool {
        let current = self.chunk_in.current.map(|(at, _)| self.incoming[at].id);
        transfer.got > 0 || current == Some(transfer.id)
    }

    /// Whether a peer may give this number to a transfer, and have one more.
    pub(super) fn transfer_is_new(&self, id: u64) -> bool {
        // A correct peer has at most as many under way as its settings allow, which is within the
        // hard limit; what we get is among them, too.
        self.incoming.len() < self.limits.transfers_max + ANNOUNCED_MAX
            && self.control.len() < CONTROL_MAX
            && id & GET_BIT == 0
            && !self.incoming.iter().any(|transfer| transfer.id == id)
    }

    /// Whether as many transfers of ours are under way as may be. What peers get is not ours: they
    /// could keep us from sending for ever.
    pub(super) fn out_is_full(&self) -> bool {
        let max = self.limits.transfers_max;
        let ours = |(_, out): &(usize, &OutTransfer)| out.kind != OutKind::Get;
        self.out.len() >= max && self.out.iter().filter(ours).take(max).count() >= max
    }

    /// Whether as many large gets of ours are under way as may be. What peers announce, and we
    /// park, is not ours.
    pub(super) fn gets_are_full(&self) -> bool {
        let max = self.limits.transfers_max;
        let ours = |transfer: &&InTransfer| matches!(transfer.target, Target::Get { .. });
        self.incoming.len() >= max && self.incoming.iter().filter(ours).take(max).count() >= max
    }

    /// Whether a peer may ask for one more transfer from us.
    pub(super) fn may_serve(&self) -> bool {
        self.out.len() < self.limits.transfers_max + ANNOUNCED_MAX
    }

    /// Sends what frames wait, and large bytes within the round's budget.
    pub(super) fn push(&mut self, rx: &mut RxPool) -> Result<usize, WireFault> {
        while let Some(frame) = self.control.front() {
            if self.wire.send_frame(frame, &[], &[])? == Posted::Busy {
                break;
            }
            self.control.pop_front();
        }
        if !self.answers.is_empty() {
            self.answers_push(rx)?;
        }
        if self.sending.is_empty() && self.chunk_out.is_none() {
            return Ok(0);
        }
        let mut moved = 0;
        while moved < ROUND_BYTES {
            let Some(chunk) = self.chunk_out.take().or_else(|| self.chunk_next()) else {
                break;
            };
            let (written, chunk) = self.chunk_write(chunk, rx)?;
            let stuck = chunk.is_some();
            self.chunk_out = chunk;
            moved += written;
            if stuck {
                break;
            }
        }
        Ok(moved)
    }

    /// Receives large bytes within the round's budget; what became complete.
    pub(super) fn pull(
        &mut self,
        rx: &mut RxPool,
        done: &mut SmallVec<[InDone; 4]>,
    ) -> Result<usize, WireFault> {
        let mut moved = 0;
        if self.wire.works() {
            moved = self.wire_work(done)?;
        }
        if self.incoming.iter().any(InTransfer::streams) {
            moved += self.bulk_receive(rx, done)?;
        }
        Ok(moved)
    }

    /// What the wire does by itself: pulls, and one-sided operations.
    fn wire_work(&mut self, done: &mut SmallVec<[InDone; 4]>) -> Result<usize, WireFault> {
        while let Some(completed) = self.wire.one_sided_poll()? {
            done.push(InDone::Op(completed));
        }
        let mut moved = 0;
        while moved < ROUND_BYTES {
            let (bytes, pulled) = self.wire.pull_poll(ROUND_BYTES - moved)?;
            moved += bytes;
            match pulled {
                Some(pulled) => done.extend(self.pulled(pulled)),
                None if bytes == 0 => break,
                None => {}
            }
        }
        Ok(moved)
    }

    fn pulled(&mut self, pulled: Pulled) -> Option<InDone> {
        let Pulled { id, into, whole } = pulled;
        let at = self
            .incoming
            .iter()
            .position(|transfer| transfer.id == id)?;
        self.incoming[at].target = Target::Buf(into);
        match whole {
            true => self.transfer_finish(at),
            false => {
                let frame = FrameHeader::new(FrameKind::Cts).with_id(id);
                self.control.push_back(frame);
                None
            }
        }
    }

    fn bulk_receive(
        &mut self,
        rx: &mut RxPool,
        done: &mut SmallVec<[InDone; 4]>,
    ) -> Result<usize, WireFault> {
        let mut moved = 0;
        while moved < ROUND_BYTES {
            let Some((at, end)) = self.chunk_in.current else {
                let read = self
                    .wire
                    .bulk_read(&mut self.chunk_in.header[self.chunk_in.have..])?;
                self.chunk_in.have += read;
                if self.chunk_in.have < FRAME_HEADER_BYTES {
                    break;
                }
                self.chunk_in.have = 0;
                self.chunk_in.current = Some(self.chunk_begin()?);
                continue;
            };
            let read = self.chunk_read(at, end, rx)?;
            if read == 0 {
                break;
            }
            moved += read;
            if self.incoming[at].got == end {
                self.chunk_in.current = None;
                if end == self.incoming[at].len {
                    done.extend(self.transfer_finish(at));
                    if !self.incoming.iter().any(InTransfer::streams) {
                        break;
                    }
                }
            }
        }
        Ok(moved)
    }

    /// Reads what there is of a chunk to where it belongs.
    fn chunk_read(&mut self, at: usize, end: u64, rx: &mut RxPool) -> Result<usize, WireFault> {
        let transfer = &mut self.incoming[at];
        let (from, to) = (transfer.got as usize, end as usize);
        let read = match &mut transfer.target {
            Target::Buf(into) | Target::Get { into, .. } => {
                self.wire.bulk_read(&mut into[from..to])?
            }
            Target::Region { region, offset, .. } => {
                let mut scratch = rx.take();
                let most = RX_BYTES.min(to - from);
                let read = self.wire.bulk_read(&mut scratch[..most]);
                if let Ok(read) = read {
                    region.write(*offset + from, &scratch[..read]);
                }
                rx.give(scratch);
                read?
            }
            Target::Undecided | Target::Pulling => 0,
        };
        transfer.got += read as u64;
        Ok(read)
    }

    /// Ends every message of ours that is under way, for completing it with an error.
    pub(super) fn out_drain(&mut self) -> Vec<OutDone> {
        let done = |transfer: OutTransfer| match (transfer.kind, transfer.source) {
            (OutKind::Message { context, list }, Source::Parts(parts)) => Some(OutDone {
                context,
                parts,
                list,
                refused: None,
            }),
            _ => None,
        };
        let messages = |transfer: &OutTransfer| matches!(transfer.kind, OutKind::Message { .. });
        let keys: Vec<usize> = self
            .out
            .iter()
            .filter(|(_, out)| messages(out))
            .map(|at| at.0)
            .collect();
        keys.into_iter()
            .filter_map(|key| done(self.out.remove(key)))
            .collect()
    }

    /// Ends a message of ours as the peer says.
    pub(super) fn out_finish(&mut self, key: usize, by: FrameKind, reason: u64) -> Option<OutDone> {
        let transfer = self.out.remove(key);
        self.withdraw_all(&transfer.exposed);
        match (transfer.kind, transfer.source) {
            (OutKind::Message { context, list }, Source::Parts(parts)) => Some(OutDone {
                context,
                parts,
                list,
                refused: (by == FrameKind::Rej).then_some(reason as u32),
            }),
            _ => None,
        }
    }

    /// The transfer of ours that a peer names.
    pub(super) fn transfer_key(&self, id: u64) -> Option<usize> {
        let key = (id & u64::from(u32::MAX)) as usize;
        let transfer = self.out.get(key)?;
        (transfer_id(key, transfer.generation) == id && transfer.kind != OutKind::Get)
            .then_some(key)
    }

    fn chunk_next(&mut self) -> Option<ChunkOut> {
        let key = self.sending.pop_front()?;
        let transfer = &self.out[key];
        let end = transfer.len.min(transfer.sent + CHUNK_BYTES);
        let header = FrameHeader::new(FrameKind::Data)
            .with_id(transfer.wire_id)
            .with_len(end - transfer.sent)
            .with_aux(transfer.sent);
        Some(ChunkOut {
            key,
            header,
            header_sent: 0,
            end,
        })
    }

    /// Writes what goes of a chunk: bytes written, and the chunk again if the lane is full.
    fn chunk_write(
        &mut self,
        mut chunk: ChunkOut,
        rx: &mut RxPool,
    ) -> Result<(usize, Option<ChunkOut>), WireFault> {
        if chunk.header_sent < FRAME_HEADER_BYTES {
            let bytes = &chunk.header.as_bytes()[chunk.header_sent..];
            chunk.header_sent += self.wire.bulk_write(bytes)?;
            if chunk.header_sent < FRAME_HEADER_BYTES {
                return Ok((0, Some(chunk)));
            }
        }
        let mut moved = 0;
        while self.out[chunk.key].sent < chunk.end {
            let (tried, written) = self.source_write(chunk.key, chunk.end, rx)?;
            moved += written;
            if written < tried {
                return Ok((moved, Some(chunk)));
            }
        }
        let transfer = &self.out[chunk.key];
        if transfer.sent < transfer.len {
            self.sending.push_back(chunk.key);
        } else if transfer.kind == OutKind::Get {
            // The initiator sees for itself that it has them all.
            self.out.remove(chunk.key);
        }
        Ok((moved, None))
    }

    /// Writes the next bytes of a transfer that lie together: how many those were, and how many of
    /// them went.
    fn source_write(
        &mut self,
        key: usize,
        end: u64,
        rx: &mut RxPool,
    ) -> Result<(usize, usize), WireFault> {
        let transfer = &mut self.out[key];
        let (from, to) = (transfer.sent as usize, end as usize);
        let (tried, written) = match &transfer.source {
            Source::Parts(parts) => {
                let bytes = parts_at(parts, from, to);
                (bytes.len(), self.wire.bulk_write(bytes)?)
            }
            Source::Region { region, offset } => {
                let mut scratch = rx.take();
                let most = RX_BYTES.min(to - from);
                region.read(offset + from, &mut scratch[..most]);
                let written = self.wire.bulk_write(&scratch[..most]);
                rx.give(scratch);
                (most, written?)
            }
        };
        transfer.sent += written as u64;
        Ok((tried, written))
    }

    fn chunk_begin(&self) -> Result<(usize, u64), WireError> {
        let (kind, header) = FrameHeader::decode(&self.chunk_in.header)?;
        let out_of_place = WireError::OutOfPlace {
            kind,
            id: header.id(),
        };
        let named = |transfer: &InTransfer| transfer.id == header.id();
        let at = self.incoming.iter().position(named);
        let at = at
            .filter(|_| kind == FrameKind::Data)
            .ok_or(out_of_place.clone())?;
        let transfer = &self.incoming[at];
        let end = header.aux().checked_add(header.len());
        let end = end.filter(|end| *end <= transfer.len && !header.is_empty());
        match end {
            Some(end) if transfer.streams() && header.aux() == transfer.got => Ok((at, end)),
            _ => Err(out_of_place),
        }
    }

    fn transfer_finish(&mut self, at: usize) -> Option<InDone> {
        let transfer = self.incoming_remove(at);
        let len = transfer.len;
        match transfer.target {
            Target::Buf(into) => {
                let frame = FrameHeader::new(FrameKind::Fin).with_id(transfer.id);
                self.control.push_back(frame);
                Some(InDone::Message(LargeMessage {
                    am: transfer.am,
                    tag: transfer.tag,
                    header: transfer.header,
                    payload: into.freeze(),
                }))
            }
            Target::Region { op, immediate, .. } => {
                self.answer(op, Ok(0));
                immediate.map(|immediate| InDone::Put { immediate, len })
            }
            Target::Get { op, into } => Some(InDone::Op(Completed {
                id: op,
                outcome: Ok(0),
                returned: Returned {
                    data: Some(into),
                    buf: None,
                },
            })),
            Target::Undecided | Target::Pulling => None,
        }
    }

    /// Removes an incoming transfer; a chunk under way keeps pointing at its own.
    pub(super) fn incoming_remove(&mut self, at: usize) -> InTransfer {
        let last = self.incoming.len() - 1;
        if let Some((current, _)) = &mut self.chunk_in.current
            && *current == last
        {
            *current = at;
        }
        self.incoming.swap_remove(at)
    }
}

/// The bytes from `from` on that lie together, up to `to`.
fn parts_at(parts: &[Buf], from: usize, to: usize) -> &[u8] {
    let mut before = 0;
    for part in parts {
        let end = before + part.len();
        if from < end {
            return &part[from - before..to.min(end) - before];
        }
        before = end;
    }
    &[]
}

/// Reads the pull segments of a frame's body.
pub(super) fn segments_decode(body: &[u8]) -> SmallVec<[PullSegment; 1]> {
    let segment = |bytes: &[u8]| {
        let (source, len) = bytes.split_first_chunk()?;
        let len = u64::from_le_bytes(*len.first_chunk()?);
        Some(PullSegment {
            source: *source,
            len,
        })
    };
    let segments = body.chunks_exact(PULL_SEGMENT_BYTES);
    segments.filter_map(segment).collect()
}

pub(super) fn transfer_id(key: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | key as u64
}
