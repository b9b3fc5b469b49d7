//! An open channel: eager messages, and what is under way on it.
//!
//! Large messages are in `transfer.rs`, one-sided operations in `remote.rs`.

use std::collections::VecDeque;
use std::time::Instant;

use slab::Slab;
use smallvec::SmallVec;

use super::answer::AnswerDue;
use super::remote::{OpState, Order};
use super::transfer::{ChunkIn, ChunkOut, InTransfer, OutTransfer, Target};
use super::types::{ChannelInfo, SendError};
use crate::address::Address;
use crate::backend::{AnyWire, Posted, PullSegment, Want, Wire, WireFault};
use crate::buf::{Buf, BufMut};
use crate::wire::{FrameHeader, FrameKind, WireError};

/// A message of ours that is over.
pub(super) struct OutDone {
    pub(super) context: u64,
    pub(super) parts: SmallVec<[Buf; 1]>,
    /// Whether it was posted as a list.
    pub(super) list: bool,
    pub(super) refused: Option<u32>,
}

pub(super) struct Channel {
    pub(super) wire: AnyWire,
    pub(super) info: ChannelInfo,
    /// Control frames that found no room; bounded by the transfers in flight.
    pub(super) control: VecDeque<FrameHeader>,
    pub(super) out: Slab<OutTransfer>,
    pub(super) out_generation: u32,
    pub(super) sending: VecDeque<usize>,
    pub(super) incoming: Vec<InTransfer>,
    pub(super) chunk_out: Option<ChunkOut>,
    pub(super) chunk_in: ChunkIn,
    /// One-sided operations of ours that are not complete.
    pub(super) ops: Slab<OpState>,
    /// Completions that wait in the endpoint's events.
    pub(super) ops_untold: usize,
    pub(super) order: Order,
    /// What the peer is to be told of its operations; bounded by what it may have in flight.
    pub(super) answers: VecDeque<AnswerDue>,
    pub(super) want_writable: bool,
    pub(super) closing: Option<Instant>,
    close_sent: bool,
    /// The peer said that it sends no more.
    pub(super) peer_closed: bool,
    pub(super) idle: u32,
    pub(super) active: bool,
    /// Whether the socket for frames is registered with the kernel, if there is one.
    pub(super) watched: bool,
    /// Rounds since the endpoint last meant to sleep.
    pub(super) rounds_awake: u32,
    pub(super) session: [u8; 16],
    /// Where to open the bulk lane, if that is ours to do and not yet done.
    pub(super) lane_to: Option<Address>,
    /// When to dial it again, if there was no room for it.
    pub(super) lane_retry: Option<Instant>,
    pub(super) limits: ChannelLimits,
}

/// What bounds a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChannelLimits {
    /// Large messages in flight, each way.
    pub(super) transfers_max: usize,
    /// One-sided operations of ours in flight.
    pub(super) ops_max: usize,
    /// Bytes of the largest payload that a frame can carry, whatever the settings are.
    pub(super) body_max: usize,
}

impl Channel {
    pub(super) fn new(
        wire: AnyWire,
        info: ChannelInfo,
        session: [u8; 16],
        lane_to: Option<Address>,
        limits: ChannelLimits,
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
            chunk_in: ChunkIn::default(),
            ops: Slab::new(),
            ops_untold: 0,
            order: Order::default(),
            answers: VecDeque::new(),
            want_writable: false,
            closing: None,
            close_sent: false,
            peer_closed: false,
            idle: 0,
            active: false,
            watched: true,
            rounds_awake: 0,
            session,
            lane_to,
            lane_retry: None,
            limits,
        }
    }

    /// Whether large payloads are under way, so that the bulk lane is wanted.
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

    /// The peer announces a large message: its transfer's number, or an error if it may not.
    pub(super) fn announced(
        &mut self,
        frame: &FrameHeader,
        header: &[u8],
        segments: SmallVec<[PullSegment; 1]>,
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
        let pullable = segments
            .iter()
            .try_fold(0_u64, |sum, segment| sum.checked_add(segment.len));
        let whole = segments.is_empty() || pullable == Some(frame.len());
        if frame.is_empty() || !whole || !self.transfer_is_new(id) {
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
            segments,
            target: Target::Undecided,
            got: 0,
        });
        Ok(id)
    }

    pub(super) fn accept(
        &mut self,
        id: u64,
        into: BufMut,
    ) -> Result<Result<(), SendError>, WireFault> {
        let transfer = self.incoming.iter_mut().find(|transfer| transfer.id == id);
        let transfer = transfer.filter(|transfer| matches!(transfer.target, Target::Undecided));
        let Some(transfer) = transfer else {
            return Ok(Err(SendError::NoSuchIncoming));
        };
        if into.len() as u64 != transfer.len {
            return Ok(Err(SendError::WrongLength {
                have: into.len(),
                need: transfer.len,
            }));
        }
        let into = match transfer.segments.is_empty() {
            true => Err(into),
            false => self.wire.pull_start(id, &transfer.segments, into)?,
        };
        transfer.target = match into {
            Ok(()) => Target::Pulling,
            Err(into) => {
                let frame = FrameHeader::new(FrameKind::Cts).with_id(id);
                self.control.push_back(frame);
                Target::Buf(into)
            }
        };
        Ok(Ok(()))
    }

    pub(super) fn refuse(&mut self, id: u64, reason: u32) -> Result<(), SendError> {
        let undecided = |transfer: &InTransfer| {
            transfer.id == id && matches!(transfer.target, Target::Undecided)
        };
        let at = self.incoming.iter().position(undecided);
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
                if self.control.len() < self.limits.transfers_max + 4096 {
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
                match self.out[key].may_end(kind) {
                    true => Ok(self.out_finish(key, kind, frame.aux())),
                    false => Err(out_of_place),
                }
            }
            _ => Err(out_of_place),
        }
    }

    /// Whether there is nothing to do but wait for frames.
    #[inline]
    pub(super) fn quiet(&self) -> bool {
        !self.want_writable
            && self.control.is_empty()
            && self.answers.is_empty()
            && self.incoming.is_empty()
            && self.out.is_empty()
            && self.closing.is_none()
            && !self.wire.held_back()
            && !self.wire.works()
    }

    /// What a sleeper on this channel waits for.
    pub(super) fn want(&self) -> Want {
        let due = !self.control.is_empty() || !self.answers.is_empty();
        Want {
            room: self.want_writable || due || self.close_due(),
            bulk_in: self.incoming.iter().any(InTransfer::streams),
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
        Ok(self.close_sent && self.wire.drained()?)
    }

    fn close_due(&self) -> bool {
        self.closing.is_some()
            && !self.close_sent
            && self.out.is_empty()
            && self.ops.is_empty()
            && self.control.is_empty()
            && self.answers.is_empty()
    }
}
