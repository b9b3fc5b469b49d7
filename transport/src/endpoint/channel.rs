//! An open channel: eager messages, and large ones by rendezvous on the bulk lane.
//!
//! ```text
//!   sender                                      receiver
//!     | Rts { tag, user header, len, transfer }    |
//!     |------------------------------------------->|  accept, park or refuse
//!     |<--------------- Cts { transfer }  or  Rej  |
//!     | == Data { transfer, offset } bytes ... ===>|  bulk lane, straight into the buffer
//!     |<------------------------- Fin { transfer } |
//! ```
//!
//! Only accepted transfers put bytes on the bulk lane, in chunks by turns, so that a parked one
//! stalls nobody and a long one does not starve a short one.

use std::collections::VecDeque;
use std::time::Instant;

use slab::Slab;
use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::types::{ChannelInfo, LargeMessage, SendError};
use crate::backend::{AnyWire, Posted, Want, Wire, WireFault};
use crate::buf::{Buf, BufMut};
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, WireError};

/// Bytes of a chunk on the bulk lane.
const CHUNK_BYTES: u64 = 1 << 20;
/// Bulk bytes moved in one round of progress, each way.
const ROUND_BYTES: usize = 512 << 10;

struct OutTransfer {
    buf: Buf,
    context: u64,
    generation: u32,
    sent: u64,
    accepted: bool,
}

struct InTransfer {
    id: u64,
    am: u8,
    tag: u64,
    header: SmallVec<[u8; 32]>,
    len: u64,
    into: Option<BufMut>,
    got: u64,
}

struct ChunkOut {
    key: usize,
    header: FrameHeader,
    header_sent: usize,
    end: u64,
}

struct ChunkIn {
    header: [u8; FRAME_HEADER_BYTES],
    have: usize,
    /// Index into the incoming transfers, and where the chunk ends.
    current: Option<(usize, u64)>,
}

/// A transfer of ours that is over.
pub(super) struct OutDone {
    pub(super) context: u64,
    pub(super) buf: Buf,
    pub(super) refused: Option<u32>,
}

pub(super) struct Channel {
    pub(super) wire: AnyWire,
    pub(super) info: ChannelInfo,
    /// Control frames that found no room; bounded by the transfers in flight.
    control: VecDeque<FrameHeader>,
    out: Slab<OutTransfer>,
    out_generation: u32,
    sending: VecDeque<usize>,
    incoming: Vec<InTransfer>,
    chunk_out: Option<ChunkOut>,
    chunk_in: ChunkIn,
    pub(super) want_writable: bool,
    pub(super) closing: Option<Instant>,
    close_sent: bool,
    /// The peer said that it sends no more.
    pub(super) peer_closed: bool,
    pub(super) idle: u32,
    pub(super) active: bool,
    pub(super) session: [u8; 16],
    /// Where to open the bulk lane, if that is ours to do and not yet done.
    pub(super) lane_to: Option<std::net::SocketAddr>,
    transfers_max: usize,
}

impl Channel {
    pub(super) fn new(
        wire: AnyWire,
        info: ChannelInfo,
        session: [u8; 16],
        lane_to: Option<std::net::SocketAddr>,
        transfers_max: usize,
    ) -> Self {
        Self {
            wire,
            info,
            control: VecDeque::new(),
            out: Slab::new(),
            out_generation: 0,
            sending: VecDeque::new(),
            incoming: Vec::new(),
            chunk_out: None,
            chunk_in: ChunkIn {
                header: [0; FRAME_HEADER_BYTES],
                have: 0,
                current: None,
            },
            want_writable: false,
            closing: None,
            close_sent: false,
            peer_closed: false,
            idle: 0,
            active: false,
            session,
            lane_to,
            transfers_max,
        }
    }

    /// Whether large messages are under way, so that the bulk lane is wanted.
    pub(super) fn lane_wanted(&self) -> bool {
        !self.out.is_empty() || !self.incoming.is_empty()
    }

    #[inline]
    pub(super) fn send_eager(
        &mut self,
        am: u8,
        tag: u64,
        header: &[u8],
        payload: &[&[u8]],
        len: usize,
    ) -> Result<Posted, WireFault> {
        let frame = FrameHeader::new(FrameKind::Eager)
            .with_message(am, header.len() as u8)
            .with_id(tag)
            .with_len(len as u64);
        let posted = self.wire.send_frame(&frame, header, payload)?;
        self.want_writable |= posted == Posted::Busy;
        Ok(posted)
    }

    /// Announces a large message; `Err` gives the buffer back as `Busy`.
    pub(super) fn send_large(
        &mut self,
        am: u8,
        tag: u64,
        header: &[u8],
        buf: Buf,
        context: u64,
    ) -> Result<Result<(), Buf>, WireFault> {
        if self.out.len() >= self.transfers_max {
            self.want_writable = true;
            return Ok(Err(buf));
        }
        self.out_generation = self.out_generation.wrapping_add(1);
        let generation = self.out_generation;
        let key = self.out.vacant_key();
        let frame = FrameHeader::new(FrameKind::Rts)
            .with_message(am, header.len() as u8)
            .with_id(tag)
            .with_len(buf.len() as u64)
            .with_aux(transfer_id(key, generation));
        if self.wire.send_frame(&frame, header, &[])? == Posted::Busy {
            self.want_writable = true;
            return Ok(Err(buf));
        }
        self.out.insert(OutTransfer {
            buf,
            context,
            generation,
            sent: 0,
            accepted: false,
        });
        Ok(Ok(()))
    }

    /// The peer announces a large message: its transfer's number, or an error if it may not.
    pub(super) fn announced(
        &mut self,
        frame: &FrameHeader,
        header: &[u8],
        limit: u64,
    ) -> Result<u64, WireError> {
        let id = frame.aux();
        if frame.len() > limit {
            return Err(WireError::TooLong {
                what: "large message",
                len: frame.len(),
                limit,
            });
        }
        if frame.is_empty() || self.incoming.iter().any(|transfer| transfer.id == id) {
            return Err(WireError::OutOfPlace {
                kind: FrameKind::Rts,
                id,
            });
        }
        // A correct peer has at most as many under way as both sides' settings allow; whoever has
        // a smaller setting parks more than that only within the hard limit.
        if self.incoming.len() >= self.transfers_max.max(4096) {
            return Err(WireError::OutOfPlace {
                kind: FrameKind::Rts,
                id,
            });
        }
        self.incoming.push(InTransfer {
            id,
            am: frame.am_id,
            tag: frame.id(),
            header: SmallVec::from_slice(header),
            len: frame.len(),
            into: None,
            got: 0,
        });
        Ok(id)
    }

    pub(super) fn accept(&mut self, id: u64, into: BufMut) -> Result<(), SendError> {
        let transfer = self.incoming.iter_mut().find(|transfer| transfer.id == id);
        let transfer = transfer.filter(|transfer| transfer.into.is_none());
        let transfer = transfer.ok_or(SendError::NoSuchIncoming)?;
        if into.len() as u64 != transfer.len {
            return Err(SendError::WrongLength {
                have: into.len(),
                need: transfer.len,
            });
        }
        transfer.into = Some(into);
        self.control
            .push_back(FrameHeader::new(FrameKind::Cts).with_id(id));
        Ok(())
    }

    pub(super) fn refuse(&mut self, id: u64, reason: u32) -> Result<(), SendError> {
        let at = self.incoming.iter().position(|transfer| transfer.id == id);
        let at = at.filter(|at| self.incoming[*at].into.is_none());
        self.incoming_remove(at.ok_or(SendError::NoSuchIncoming)?);
        let frame = FrameHeader::new(FrameKind::Rej)
            .with_id(id)
            .with_aux(u64::from(reason));
        self.control.push_back(frame);
        Ok(())
    }

    /// Takes a control frame from the peer.
    pub(super) fn control_frame(
        &mut self,
        kind: FrameKind,
        frame: &FrameHeader,
    ) -> Result<Option<OutDone>, WireError> {
        let id = frame.id();
        let out_of_place = WireError::OutOfPlace { kind, id };
        match kind {
            FrameKind::Ping => {
                // A peer that pings without reading answers gets one answer at a time.
                if self.control.len() < self.transfers_max + 4096 {
                    self.control
                        .push_back(FrameHeader::new(FrameKind::Pong).with_id(id));
                }
                Ok(None)
            }
            FrameKind::Pong => Ok(None),
            FrameKind::Close => {
                self.peer_closed = true;
                Ok(None)
            }
            FrameKind::Cts => {
                let key = self.transfer_key(id).ok_or(out_of_place.clone())?;
                if std::mem::replace(&mut self.out[key].accepted, true) {
                    return Err(out_of_place);
                }
                self.sending.push_back(key);
                Ok(None)
            }
            FrameKind::Rej | FrameKind::Fin => {
                let key = self.transfer_key(id).ok_or(out_of_place.clone())?;
                let transfer = &self.out[key];
                let all_sent = transfer.sent == transfer.buf.len() as u64;
                if transfer.accepted != (kind == FrameKind::Fin) || transfer.accepted && !all_sent {
                    return Err(out_of_place);
                }
                let transfer = self.out.remove(key);
                let refused = (kind == FrameKind::Rej).then_some(frame.aux() as u32);
                Ok(Some(OutDone {
                    context: transfer.context,
                    buf: transfer.buf,
                    refused,
                }))
            }
            FrameKind::Eager | FrameKind::Rts | FrameKind::Data | FrameKind::Immediate => {
                Err(out_of_place)
            }
        }
    }

    /// Sends what control frames wait, and bulk bytes within the round's budget.
    pub(super) fn push(&mut self) -> Result<usize, WireFault> {
        while let Some(frame) = self.control.front() {
            if self.wire.send_frame(frame, &[], &[])? == Posted::Busy {
                break;
            }
            self.control.pop_front();
        }
        if self.sending.is_empty() && self.chunk_out.is_none() {
            return Ok(0);
        }
        let mut moved = 0;
        while moved < ROUND_BYTES {
            let Some(chunk) = self.chunk_out.take().or_else(|| self.chunk_next()) else {
                break;
            };
            let (written, chunk) = self.chunk_write(chunk)?;
            let stuck = chunk.is_some();
            self.chunk_out = chunk;
            moved += written;
            if stuck {
                break;
            }
        }
        Ok(moved)
    }

    /// Receives bulk bytes within the round's budget; the transfers that became complete.
    pub(super) fn pull(
        &mut self,
        done: &mut SmallVec<[LargeMessage; 4]>,
    ) -> Result<usize, WireFault> {
        if !self.incoming.iter().any(|transfer| transfer.into.is_some()) {
            return Ok(0);
        }
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
            let transfer = &mut self.incoming[at];
            let Some(into) = transfer.into.as_mut() else {
                break;
            };
            let read = self
                .wire
                .bulk_read(&mut into[transfer.got as usize..end as usize])?;
            if read == 0 {
                break;
            }
            moved += read;
            transfer.got += read as u64;
            if transfer.got == end {
                self.chunk_in.current = None;
                if end == transfer.len {
                    done.extend(self.transfer_finish(at));
                    if !self.incoming.iter().any(|transfer| transfer.into.is_some()) {
                        break;
                    }
                }
            }
        }
        Ok(moved)
    }

    /// Whether there is nothing to do but wait for frames.
    #[inline]
    pub(super) fn quiet(&self) -> bool {
        !self.want_writable
            && self.control.is_empty()
            && self.incoming.is_empty()
            && self.out.is_empty()
            && self.closing.is_none()
            && !self.wire.held_back()
    }

    /// What a sleeper on this channel waits for.
    pub(super) fn want(&self) -> Want {
        Want {
            room: self.want_writable || !self.control.is_empty() || self.close_due(),
            bulk_in: self.incoming.iter().any(|transfer| transfer.into.is_some()),
            bulk_room: !self.sending.is_empty() || self.chunk_out.is_some(),
        }
    }

    /// Whether everything is said that a graceful close must say first.
    pub(super) fn close_advance(&mut self) -> Result<bool, WireFault> {
        if self.close_due() {
            let frame = FrameHeader::new(FrameKind::Close);
            if self.wire.send_frame(&frame, &[], &[])? == Posted::Busy {
                return Ok(false);
            }
            self.close_sent = true;
        }
        Ok(self.close_sent && self.wire.flush()?)
    }

    /// The posted buffers, for completing them with an error.
    pub(super) fn out_drain(&mut self) -> Vec<OutDone> {
        let done = |transfer: OutTransfer| OutDone {
            context: transfer.context,
            buf: transfer.buf,
            refused: None,
        };
        self.out.drain().map(done).collect()
    }

    fn close_due(&self) -> bool {
        self.closing.is_some() && !self.close_sent && self.out.is_empty() && self.control.is_empty()
    }

    fn transfer_key(&self, id: u64) -> Option<usize> {
        let key = (id & u64::from(u32::MAX)) as usize;
        let transfer = self.out.get(key)?;
        (transfer_id(key, transfer.generation) == id).then_some(key)
    }

    fn chunk_next(&mut self) -> Option<ChunkOut> {
        let key = self.sending.pop_front()?;
        let transfer = &self.out[key];
        let end = (transfer.buf.len() as u64).min(transfer.sent + CHUNK_BYTES);
        let header = FrameHeader::new(FrameKind::Data)
            .with_id(transfer_id(key, transfer.generation))
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
    fn chunk_write(&mut self, mut chunk: ChunkOut) -> Result<(usize, Option<ChunkOut>), WireFault> {
        if chunk.header_sent < FRAME_HEADER_BYTES {
            let bytes = &chunk.header.as_bytes()[chunk.header_sent..];
            chunk.header_sent += self.wire.bulk_write(bytes)?;
            if chunk.header_sent < FRAME_HEADER_BYTES {
                return Ok((0, Some(chunk)));
            }
        }
        let transfer = &mut self.out[chunk.key];
        let bytes = &transfer.buf[transfer.sent as usize..chunk.end as usize];
        let written = self.wire.bulk_write(bytes)?;
        transfer.sent += written as u64;
        if transfer.sent < chunk.end {
            return Ok((written, Some(chunk)));
        }
        if transfer.sent < transfer.buf.len() as u64 {
            self.sending.push_back(chunk.key);
        }
        Ok((written, None))
    }

    fn chunk_begin(&self) -> Result<(usize, u64), WireError> {
        let (kind, header) = FrameHeader::decode(&self.chunk_in.header)?;
        let out_of_place = WireError::OutOfPlace {
            kind,
            id: header.id(),
        };
        let at = self
            .incoming
            .iter()
            .position(|transfer| transfer.id == header.id());
        let at = at
            .filter(|_| kind == FrameKind::Data)
            .ok_or(out_of_place.clone())?;
        let transfer = &self.incoming[at];
        let end = header.aux().checked_add(header.len());
        let end = end.filter(|end| *end <= transfer.len && !header.is_empty());
        match end {
            Some(end) if transfer.into.is_some() && header.aux() == transfer.got => Ok((at, end)),
            _ => Err(out_of_place),
        }
    }

    fn transfer_finish(&mut self, at: usize) -> Option<LargeMessage> {
        let transfer = self.incoming_remove(at);
        self.control
            .push_back(FrameHeader::new(FrameKind::Fin).with_id(transfer.id));
        Some(LargeMessage {
            am: transfer.am,
            tag: transfer.tag,
            header: transfer.header,
            payload: transfer.into?.freeze(),
        })
    }

    /// Removes an incoming transfer; a chunk under way keeps pointing at its own.
    fn incoming_remove(&mut self, at: usize) -> InTransfer {
        let last = self.incoming.len() - 1;
        if let Some((current, _)) = &mut self.chunk_in.current
            && *current == last
        {
            *current = at;
        }
        self.incoming.swap_remove(at)
    }
}

fn transfer_id(key: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | key as u64
}
