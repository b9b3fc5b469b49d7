//! One-sided operations on registered memory.
//!
//! A wire does them by its own means if it can. Else the peer's endpoint does them when it makes
//! progress, and what is on the wire is:
//!
//! ```text
//!   initiator                                       target
//!     | Put { op, key, offset } bytes                  |
//!     | Get { op, key, offset, len }                   |
//!     | FetchAdd, CompareSwap { op, key, offset, .. }  |
//!     |----------------------------------------------->|  checks, does it
//!     |<--- Answer { op, outcome, old value } bytes ---|
//!
//!     | PutRts { op, key, offset, len, transfer }      |  large
//!     |----------------------------------------------->|
//!     |<--------------------------- Cts { transfer } --|  or Answer, if it may not be
//!     | == Data { transfer, offset } bytes ... =======>|  bulk lane, into the region
//!     |<--------------------------------- Answer { op }|
//!
//!     | Get { op, .., large }                          |
//!     |----------------------------------------------->|
//!     |<= Data { op, offset } bytes ... ===============|  bulk lane; or Answer, if it may not be
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use smallvec::smallvec;

use super::channel::Channel;
use super::transfer::{GET_BIT, InTransfer, OutKind, OutTransfer, Source, Target, transfer_id};
use super::types::{ChannelId, OneSidedDone, PostedBuf, PostedGet, SendError};
use super::{Event, Ops};
use crate::backend::{Posted, Wire, WireFault};
use crate::buf::{Buf, BufMut};
use crate::one_sided::{
    Access, Atomic, Completed, MemoryRegion, OneSidedError, OneSidedOp, PutBytes, RegionError,
    RemoteKey, RemoteSlice, Returned, Taken, Verb, op_return,
};
use crate::wire::{FrameHeader, FrameKind, WireError};

/// In a Get's `am_id`: the bytes are to come on the bulk lane.
pub(super) const GET_LARGE: u8 = 1;

/// An operation of ours that is not complete.
pub(super) struct OpState {
    context: u64,
    generation: u32,
    /// Its place in the order of operations.
    number: u64,
    at: RemoteSlice,
    /// Whether the peer is to answer by a frame, rather than our wire by itself.
    emulated: bool,
    verb: Verb,
    /// What goes back with the completion.
    returned: Returned,
    /// Where the bytes of a large put are.
    transfer: Option<u64>,
}

/// Which operations must be complete before what.
#[derive(Default)]
pub(super) struct Order {
    /// Operations posted so far that were not complete at once.
    posted: u64,
    /// Later operations wait for those in flight.
    fenced: bool,
    /// One was `Busy` for those in flight: its user is told when one is complete, and may sleep
    /// until then.
    wanted: bool,
    flushes: VecDeque<Flush>,
}

struct Flush {
    context: u64,
    /// It waits for operations below this number, of which so many are in flight.
    below: u64,
    left: usize,
}

impl Ops {
    /// Opens memory of `len` bytes, all zero, to peers; here it is reached by what this returns.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn region_create(
        &mut self,
        len: usize,
        access: Access,
    ) -> Result<MemoryRegion, RegionError> {
        self.regions.create(len, access)
    }

    /// Opens a buffer, whose bytes never change, to peers' gets.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn region_share(&mut self, buf: Buf) -> Result<RemoteKey, RegionError> {
        self.regions.share(buf)
    }

    /// Closes a region to peers: its key is void for what begins after this returns. Whether it
    /// was open.
    pub fn region_close(&mut self, key: RemoteKey) -> bool {
        let was_open = self.regions.close(key);
        self.hubs.region_close(key);
        was_open
    }

    /// Writes to a peer's region. The bytes are copied, and may be reused at once;
    /// [`crate::Handler::on_one_sided`] tells when they are there.
    ///
    /// # Errors
    /// The channel is not open, or there are more bytes than it sends eagerly.
    pub fn put(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        bytes: &[u8],
        context: u64,
    ) -> Result<Posted, SendError> {
        self.put_copied(to, key, offset, bytes, None, context)
    }

    /// As [`Ops::put`], and tells the peer of it, once the bytes are there, by
    /// [`crate::Handler::on_immediate`].
    ///
    /// # Errors
    /// As [`Ops::put`].
    pub fn put_immediate(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        bytes: &[u8],
        value: u64,
        context: u64,
    ) -> Result<Posted, SendError> {
        self.put_copied(to, key, offset, bytes, Some(value), context)
    }

    /// Writes a buffer of any size to a peer's region, and tells the peer of it if there is an
    /// immediate value. The buffer comes back with the completion.
    ///
    /// # Errors
    /// The channel is not open, or the buffer is above the limit.
    pub fn put_buf(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        buf: Buf,
        immediate: Option<u64>,
        context: u64,
    ) -> Result<PostedBuf, SendError> {
        self.size_check(buf.len(), self.config.message_max_bytes)?;
        let op = OneSidedOp::Put {
            key,
            offset,
            bytes: PutBytes::Held(buf),
            immediate,
        };
        Ok(match self.one_sided_post(to, op, context)?.map(op_return) {
            Some(Returned { buf: Some(buf), .. }) => PostedBuf::Busy(buf),
            _ => PostedBuf::Pending,
        })
    }

    /// Reads a peer's region; [`crate::Handler::on_one_sided`] gives the buffer back, filled.
    ///
    /// # Errors
    /// The channel is not open, or the buffer is above the limit.
    pub fn get(
        &mut self,
        from: ChannelId,
        key: RemoteKey,
        offset: u64,
        into: BufMut,
        context: u64,
    ) -> Result<PostedGet, SendError> {
        self.size_check(into.len(), self.config.message_max_bytes)?;
        let op = OneSidedOp::Get { key, offset, into };
        Ok(
            match self.one_sided_post(from, op, context)?.map(op_return) {
                Some(Returned {
                    data: Some(into), ..
                }) => PostedGet::Busy(into),
                _ => PostedGet::Pending,
            },
        )
    }

    /// Adds to a little-endian word of a peer's region, atomically; its old value comes by
    /// [`crate::Handler::on_one_sided`].
    ///
    /// # Errors
    /// The channel is not open.
    pub fn fetch_add(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        add: u64,
        context: u64,
    ) -> Result<Posted, SendError> {
        self.atomic(to, key, offset, Atomic::FetchAdd(add), context)
    }

    /// Sets a word of a peer's region to `new` if it is `expected`, atomically; its old value
    /// comes by [`crate::Handler::on_one_sided`].
    ///
    /// # Errors
    /// The channel is not open.
    pub fn compare_swap(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        expected: u64,
        new: u64,
        context: u64,
    ) -> Result<Posted, SendError> {
        let atomic = Atomic::CompareSwap { expected, new };
        self.atomic(to, key, offset, atomic, context)
    }

    /// Completes, by [`crate::Handler::on_one_sided`], when all operations that were posted before
    /// on this channel are complete.
    ///
    /// # Errors
    /// The channel is not open.
    pub fn flush(&mut self, to: ChannelId, context: u64) -> Result<(), SendError> {
        let channel = self.channel(to).ok_or(SendError::NotOpen)?;
        match channel.ops.is_empty() {
            true => self.one_sided_done(to, context, Ok(0), Returned::default()),
            false => channel.order.flushes.push_back(Flush {
                context,
                below: channel.order.posted,
                left: channel.ops.len(),
            }),
        }
        Ok(())
    }

    /// Orders operations: those posted after it on this channel begin when those before it are
    /// complete. Until then they are `Busy`.
    ///
    /// # Errors
    /// The channel is not open.
    pub fn fence(&mut self, to: ChannelId) -> Result<(), SendError> {
        let channel = self.channel(to).ok_or(SendError::NotOpen)?;
        channel.order.fenced = !channel.ops.is_empty();
        Ok(())
    }

    fn put_copied(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        bytes: &[u8],
        immediate: Option<u64>,
        context: u64,
    ) -> Result<Posted, SendError> {
        let limit = self.channel(to).ok_or(SendError::NotOpen)?.info.eager_max;
        self.size_check(bytes.len(), limit as u64)?;
        let op = OneSidedOp::Put {
            key,
            offset,
            bytes: PutBytes::Copied(bytes),
            immediate,
        };
        Ok(match self.one_sided_post(to, op, context)? {
            Some(_) => Posted::Busy,
            None => Posted::Done,
        })
    }

    fn atomic(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        atomic: Atomic,
        context: u64,
    ) -> Result<Posted, SendError> {
        let op = OneSidedOp::Atomic {
            key,
            offset,
            atomic,
        };
        Ok(match self.one_sided_post(to, op, context)? {
            Some(_) => Posted::Busy,
            None => Posted::Done,
        })
    }

    fn size_check(&self, len: usize, limit: u64) -> Result<(), SendError> {
        let len = len as u64;
        match len <= limit {
            true => Ok(()),
            false => Err(SendError::TooLarge { len, limit }),
        }
    }

    /// Posts an operation; it comes back if there is no room.
    fn one_sided_post<'a>(
        &mut self,
        to: ChannelId,
        op: OneSidedOp<'a>,
        context: u64,
    ) -> Result<Option<OneSidedOp<'a>>, SendError> {
        let channel = self.channel(to).ok_or(SendError::NotOpen)?;
        if channel.closing.is_some() || channel.peer_closed {
            return Err(SendError::NotOpen);
        }
        let order = &mut channel.order;
        order.fenced &= !channel.ops.is_empty();
        // What is complete and not told of counts, too: else whoever posts until it is `Busy` would
        // never come to its end where operations are complete at once.
        let untold = channel.ops.len() + channel.ops_untold;
        if order.fenced || untold >= channel.limits.ops_max {
            order.wanted = true;
            return Ok(Some(op));
        }
        match channel.op_start(op, context) {
            Ok(Started::Done(outcome, returned)) => {
                self.one_sided_done(to, context, outcome, returned);
                Ok(None)
            }
            Ok(Started::Pending) => {
                self.lane_open(to.slot);
                self.activate(to.slot);
                Ok(None)
            }
            Ok(Started::Busy(op)) => Ok(Some(op)),
            Err(fault) => {
                self.channel_fault(to.slot, fault);
                Err(SendError::NotOpen)
            }
        }
    }

    /// An operation of ours is complete.
    pub(super) fn op_finish(&mut self, id: ChannelId, completed: Completed) {
        let Some(channel) = self.channel(id) else {
            return;
        };
        let Some((state, returned)) = channel.op_take(completed.id, completed.returned) else {
            tracing::error!("a wire completed an operation that is not under way");
            return;
        };
        let flushed = channel.order.complete(state.number);
        self.one_sided_done(id, state.context, completed.outcome, returned);
        for context in flushed {
            self.one_sided_done(id, context, Ok(0), Returned::default());
        }
    }

    /// The user is told of an operation: one more may be posted.
    pub(super) fn op_told(&mut self, id: ChannelId) {
        let Some(channel) = self.channel(id) else {
            return;
        };
        channel.ops_untold -= 1;
        if std::mem::take(&mut channel.order.wanted) {
            channel.want_writable = true;
            self.activate(id.slot);
        }
    }

    fn one_sided_done(
        &mut self,
        id: ChannelId,
        context: u64,
        outcome: Result<u64, OneSidedError>,
        returned: Returned,
    ) {
        let done = OneSidedDone {
            context,
            outcome,
            data: returned.data,
            buf: returned.buf,
        };
        if let Some(channel) = self.channel(id) {
            channel.ops_untold += 1;
        }
        self.pending.push_back(Event::OneSided(id, done));
    }

    /// A frame of a one-sided operation came: what the user is to be told of a put.
    pub(super) fn one_sided_frame(
        &mut self,
        id: ChannelId,
        kind: FrameKind,
        frame: &FrameHeader,
        header: &[u8],
        body: &[u8],
    ) -> Option<(u64, u64)> {
        let regions = Arc::clone(&self.regions);
        let channel = self.channel(id)?;
        if kind == FrameKind::Answer {
            match channel.answered(frame, body) {
                Ok(completed) => self.op_finish(id, completed),
                Err(error) => self.channel_fault(id.slot, error.into()),
            }
            return None;
        }
        match channel.asked(&regions, kind, frame, header, body) {
            Ok(told) => {
                self.lane_open(id.slot);
                told
            }
            Err(error) => {
                self.channel_fault(id.slot, error.into());
                None
            }
        }
    }

    /// Ends every operation of a channel with an error.
    pub(super) fn ops_drain(&mut self, id: ChannelId) {
        let Some(channel) = self.channel(id) else {
            return;
        };
        let ops: Vec<u64> = channel
            .ops
            .iter()
            .map(|(key, state)| transfer_id(key, state.generation))
            .collect();
        let mut done = Vec::new();
        let mut ended: HashMap<u64, Returned> = channel
            .wire
            .one_sided_end()
            .into_iter()
            .map(|completed| (completed.id, completed.returned))
            .collect();
        for op in ops {
            let returned = ended.remove(&op).unwrap_or_default();
            if let Some((state, returned)) = channel.op_take(op, returned) {
                done.push((state.number, state.context, returned));
            }
        }
        done.sort_unstable_by_key(|(number, ..)| *number);
        let flushes = std::mem::take(&mut channel.order.flushes);
        let closed = Err(OneSidedError::Closed);
        for (_, context, returned) in done {
            self.one_sided_done(id, context, closed, returned);
        }
        for flush in flushes {
            self.one_sided_done(id, flush.context, closed, Returned::default());
        }
    }
}

impl Order {
    /// An operation is complete: the flushes that are, too.
    fn complete(&mut self, number: u64) -> Vec<u64> {
        let mut done = Vec::new();
        for flush in &mut self.flushes {
            flush.left -= usize::from(number < flush.below);
        }
        while let Some(flush) = self.flushes.pop_front_if(|flush| flush.left == 0) {
            done.push(flush.context);
        }
        done
    }
}

/// What became of an operation that was posted.
pub(super) enum Started<'a> {
    Done(Result<u64, OneSidedError>, Returned),
    Pending,
    Busy(OneSidedOp<'a>),
}

impl Channel {
    pub(super) fn op_start<'a>(
        &mut self,
        op: OneSidedOp<'a>,
        context: u64,
    ) -> Result<Started<'a>, WireFault> {
        let generation = (self.order.posted as u32) & (u32::MAX >> 1);
        let id = transfer_id(self.ops.vacant_key(), generation);
        let (verb, at) = (op.verb(), op.at());
        let mut state = OpState {
            context,
            generation,
            number: self.order.posted,
            at,
            emulated: false,
            verb,
            returned: Returned::default(),
            transfer: None,
        };
        match self.wire.one_sided(id, op)? {
            Taken::Done(outcome, returned) => return Ok(Started::Done(outcome, returned)),
            Taken::Pending => {}
            Taken::Busy(op) => {
                self.want_writable = true;
                return Ok(Started::Busy(op));
            }
            Taken::Unsupported(op) => {
                state.emulated = true;
                if let Some(op) = self.op_ask(id, op, &mut state)? {
                    self.want_writable = true;
                    return Ok(Started::Busy(op));
                }
            }
        }
        self.order.posted += 1;
        self.ops.insert(state);
        Ok(Started::Pending)
    }

    /// Asks the peer to do an operation; it comes back if there is no room.
    fn op_ask<'a>(
        &mut self,
        id: u64,
        op: OneSidedOp<'a>,
        state: &mut OpState,
    ) -> Result<Option<OneSidedOp<'a>>, WireFault> {
        match op {
            OneSidedOp::Put {
                key,
                offset,
                bytes: PutBytes::Held(buf),
                immediate,
            } if buf.len() > self.info.eager_max => {
                self.put_ask(id, (key, offset), buf, immediate, state)
            }
            OneSidedOp::Get { key, offset, into } if into.len() > self.info.eager_max => {
                self.get_ask(id, (key, offset), into)
            }
            op => self.op_ask_small(id, op, state),
        }
    }

    fn op_ask_small<'a>(
        &mut self,
        id: u64,
        op: OneSidedOp<'a>,
        state: &mut OpState,
    ) -> Result<Option<OneSidedOp<'a>>, WireFault> {
        let frame = |kind| {
            FrameHeader::new(kind)
                .with_id(id)
                .with_aux(op.at().offset)
                .with_len(op.at().len)
        };
        let key = op.at().key.0;
        let posted = match &op {
            OneSidedOp::Put {
                bytes, immediate, ..
            } => {
                let words = [key, immediate.unwrap_or(0)];
                let count = 1 + usize::from(immediate.is_some());
                let frame = frame(FrameKind::Put);
                self.words_send(frame, &words[..count], bytes.bytes())?
            }
            OneSidedOp::Get { .. } => self.words_send(frame(FrameKind::Get), &[key], &[])?,
            OneSidedOp::Atomic { atomic, .. } => match *atomic {
                Atomic::FetchAdd(add) => {
                    self.words_send(frame(FrameKind::FetchAdd), &[key, add], &[])?
                }
                Atomic::CompareSwap { expected, new } => {
                    let frame = frame(FrameKind::CompareSwap);
                    self.words_send(frame, &[key, expected, new], &[])?
                }
            },
        };
        if posted == Posted::Busy {
            return Ok(Some(op));
        }
        state.returned = op_return(op);
        Ok(None)
    }

    /// Sends a frame whose user header is words.
    fn words_send(
        &mut self,
        frame: FrameHeader,
        words: &[u64],
        body: &[u8],
    ) -> Result<Posted, WireFault> {
        let mut header = [0; 32];
        for (to, word) in header.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let header = &header[..8 * words.len()];
        let frame = frame.with_message(frame.am_id, header.len() as u8);
        self.wire.send_frame(&frame, header, &[body])
    }

    /// Announces a large put.
    fn put_ask<'a>(
        &mut self,
        op: u64,
        (key, offset): (RemoteKey, u64),
        buf: Buf,
        immediate: Option<u64>,
        state: &mut OpState,
    ) -> Result<Option<OneSidedOp<'a>>, WireFault> {
        let (transfer, generation) = self.out_id_next();
        let frame = FrameHeader::new(FrameKind::PutRts)
            .with_id(op)
            .with_aux(offset)
            .with_len(buf.len() as u64);
        let words = [key.0, transfer, immediate.unwrap_or(0)];
        let count = 2 + usize::from(immediate.is_some());
        if self.out_is_full() || self.words_send(frame, &words[..count], &[])? == Posted::Busy {
            let bytes = PutBytes::Held(buf);
            return Ok(Some(OneSidedOp::Put {
                key,
                offset,
                bytes,
                immediate,
            }));
        }
        self.out.insert(OutTransfer {
            len: buf.len() as u64,
            source: Source::Parts(smallvec![buf]),
            kind: OutKind::Put,
            generation,
            wire_id: transfer,
            sent: 0,
            accepted: false,
            exposed: smallvec![],
        });
        state.transfer = Some(transfer);
        Ok(None)
    }

    /// Asks for many bytes.
    fn get_ask<'a>(
        &mut self,
        op: u64,
        (key, offset): (RemoteKey, u64),
        into: BufMut,
    ) -> Result<Option<OneSidedOp<'a>>, WireFault> {
        let len = into.len() as u64;
        let frame = FrameHeader::new(FrameKind::Get)
            .with_message(GET_LARGE, 0)
            .with_id(op)
            .with_aux(offset)
            .with_len(len);
        if self.gets_are_full() || self.words_send(frame, &[key.0], &[])? == Posted::Busy {
            return Ok(Some(OneSidedOp::Get { key, offset, into }));
        }
        self.incoming.push(InTransfer {
            id: GET_BIT | op,
            am: 0,
            tag: 0,
            header: smallvec![],
            len,
            segments: smallvec![],
            target: Target::Get { op, into },
            got: 0,
        });
        Ok(None)
    }

    /// Takes an operation that is over, with its buffers wherever they are.
    pub(super) fn op_take(&mut self, id: u64, returned: Returned) -> Option<(OpState, Returned)> {
        let key = self.op_key(id)?;
        let mut state = self.ops.remove(key);
        let held = std::mem::take(&mut state.returned);
        let mut returned = Returned {
            data: returned.data.or(held.data),
            buf: returned.buf.or(held.buf),
        };
        if let Some(key) = state.transfer.and_then(|id| self.transfer_key(id))
            && let Source::Parts(parts) = self.out.remove(key).source
        {
            returned.buf = parts.into_iter().next();
        }
        let get = |transfer: &InTransfer| transfer.id == GET_BIT | id;
        if let Some(at) = self.incoming.iter().position(get)
            && let Target::Get { into, .. } = self.incoming_remove(at).target
        {
            returned.data = Some(into);
        }
        Some((state, returned))
    }

    fn op_key(&self, id: u64) -> Option<usize> {
        let key = (id & u64::from(u32::MAX)) as usize;
        let state = self.ops.get(key)?;
        (transfer_id(key, state.generation) == id).then_some(key)
    }

    /// The peer says that an operation of ours is complete.
    pub(super) fn answered(
        &mut self,
        frame: &FrameHeader,
        body: &[u8],
    ) -> Result<Completed, WireError> {
        let id = frame.id();
        let out_of_place = WireError::OutOfPlace {
            kind: FrameKind::Answer,
            id,
        };
        let key = self.op_key(id).ok_or(out_of_place.clone())?;
        let state = &mut self.ops[key];
        if !state.emulated {
            return Err(out_of_place);
        }
        let outcome = outcome_decode(frame, state.at).ok_or(out_of_place.clone())?;
        let small_get = state.returned.data.is_some();
        let due = match (state.verb, &outcome) {
            (Verb::Get, Ok(_)) if small_get => state.at.len as usize,
            // The bytes of a large get come on the bulk lane, and are their own answer.
            (Verb::Get, Ok(_)) => return Err(out_of_place),
            _ => 0,
        };
        if body.len() != due {
            return Err(out_of_place);
        }
        if let Some(data) = &mut state.returned.data
            && due > 0
        {
            data.copy_from_slice(body);
        }
        let transfer = state.transfer.and_then(|id| self.transfer_key(id));
        if let Some(key) = transfer
            && !self.out[key].is_over(outcome.is_ok())
        {
            return Err(out_of_place);
        }
        let get = |transfer: &InTransfer| transfer.id == GET_BIT | id;
        if self
            .incoming
            .iter()
            .any(|transfer| get(transfer) && self.begun(transfer))
        {
            return Err(out_of_place);
        }
        Ok(Completed {
            id,
            outcome,
            returned: Returned::default(),
        })
    }
}

impl OutTransfer {
    /// Whether the target may say that a put is over: all of it is there, or it never began.
    fn is_over(&self, good: bool) -> bool {
        match good {
            true => self.accepted && self.sent == self.len,
            false => !self.accepted,
        }
    }
}

fn outcome_decode(frame: &FrameHeader, at: RemoteSlice) -> Option<Result<u64, OneSidedError>> {
    Some(match frame.am_id {
        0 => Ok(frame.aux()),
        1 => Err(OneSidedError::Key),
        2 => Err(OneSidedError::Range {
            offset: at.offset,
            len: at.len,
            region: frame.aux(),
        }),
        3 => Err(OneSidedError::Forbidden),
        4 => Err(OneSidedError::Misaligned(at.offset)),
        _ => return None,
    })
}
