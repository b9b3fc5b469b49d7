//! The seam between the endpoint and its backends: [`Wire`], and the closed enum that mixes them.

use std::io;

use crate::buf::{Buf, BufMut};
use crate::fault::FaultWire;
use crate::mem::MemWire;
use crate::one_sided::{Completed, OneSidedOp, Taken};
use crate::shm::ShmWire;
use crate::tcp::TcpWire;
use crate::unix::UnixWire;
use crate::verbs::{RdmaError, VerbsWire};
use crate::wire::{FrameHeader, FrameKind, WireError};

/// Whether a message was taken. `Busy` is back-pressure: nothing was sent, try again after
/// progress.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// It is on its way.
    Done,
    /// There is no room just now.
    Busy,
}

/// Why a wire is unusable from now on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireFault {
    /// The peer ended without a word.
    #[error("the peer died")]
    Dead,
    /// The peer sent what no correct peer sends.
    #[error(transparent)]
    Protocol(#[from] WireError),
    /// The operating system refuses.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// An RDMA device, ours or the peer's, reports a failure.
    #[error("RDMA: {0}")]
    Rdma(RdmaError),
}

/// Bytes of a receive buffer: the largest eager message with its headers fits.
pub(crate) const RX_BYTES: usize = 128 << 10;

/// Private memory that eager bytes are received into.
pub(crate) type RxBuf = Box<[u8]>;

/// Receive buffers not in use; channels without bytes pending hold none.
#[derive(Debug, Default)]
pub(crate) struct RxPool {
    free: Vec<RxBuf>,
}

impl RxPool {
    const KEPT: usize = 16;

    #[inline]
    pub(crate) fn take(&mut self) -> RxBuf {
        self.free
            .pop()
            .unwrap_or_else(|| vec![0; RX_BYTES].into_boxed_slice())
    }

    #[inline]
    pub(crate) fn give(&mut self, buf: RxBuf) {
        if self.free.len() < Self::KEPT {
            self.free.push(buf);
        }
    }
}

/// A frame that was received: its bytes are in `buf`, in private memory.
#[derive(Default)]
pub(crate) struct Received {
    pub(crate) header: FrameHeader,
    pub(crate) buf: RxBuf,
    /// Where the user's header starts in `buf`; the payload follows it.
    pub(crate) at: usize,
}

impl Received {
    #[inline]
    pub(crate) fn user_header(&self) -> &[u8] {
        &self.buf[self.at..self.at + usize::from(self.header.uhdr_len)]
    }

    /// The payload of an eager message.
    #[inline]
    pub(crate) fn payload(&self) -> &[u8] {
        let start = self.at + usize::from(self.header.uhdr_len);
        &self.buf[start..start + self.header.len() as usize]
    }

    /// What follows the user's header of a frame of this kind.
    #[inline]
    pub(crate) fn body(&self, kind: FrameKind) -> &[u8] {
        let start = self.at + usize::from(self.header.uhdr_len);
        &self.buf[start..start + self.header.body_len(kind) as usize]
    }
}

/// Where a peer finds bytes of ours that it may pull: what our wire tells its wire.
pub(crate) type PullSource = [u8; PULL_SOURCE_BYTES];

/// Bytes of a [`PullSource`].
pub(crate) const PULL_SOURCE_BYTES: usize = 24;

/// A part of a large message that may be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PullSegment {
    pub(crate) source: PullSource,
    pub(crate) len: u64,
}

/// A pull that is over.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// As it was given to [`Wire::pull_start`].
    pub(crate) id: u64,
    pub(crate) into: BufMut,
    /// Whether all bytes are there; else the sender is asked to stream them.
    pub(crate) whole: bool,
}

/// What a sleeper waits for, besides frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Want {
    /// Room to send frames.
    pub(crate) room: bool,
    /// Bytes on the bulk lane.
    pub(crate) bulk_in: bool,
    /// Room on the bulk lane.
    pub(crate) bulk_room: bool,
}

/// One connected peer over one transport. Nothing here blocks.
///
/// Frames travel on the eager lane in order; large payloads travel as a byte stream on the bulk
/// lane, which never delays the eager one. What the stream means is the endpoint's affair.
pub(crate) trait Wire {
    /// Sends a frame whole or not at all. `payload` is gathered; its length is in the header.
    fn send_frame(
        &mut self,
        header: &FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault>;

    /// The next frame, if one is there. The buffer comes back by [`Wire::recycle`].
    fn recv_frame(&mut self, pool: &mut RxPool) -> Result<Option<Received>, WireFault>;

    /// Takes back the buffer of the frame received last.
    fn recycle(&mut self, buf: RxBuf, pool: &mut RxPool);

    /// Writes to the bulk lane: bytes taken, zero if there is no room.
    fn bulk_write(&mut self, bytes: &[u8]) -> Result<usize, WireFault>;

    /// Reads from the bulk lane: bytes read, zero if there are none.
    fn bulk_read(&mut self, into: &mut [u8]) -> Result<usize, WireFault>;

    /// Pushes out what is still held back; whether all is out.
    fn flush(&mut self) -> Result<bool, WireFault> {
        Ok(true)
    }

    /// Whether part of a frame that was taken waits for [`Wire::flush`].
    #[inline]
    fn held_back(&self) -> bool {
        false
    }

    /// Whether small frames may be kept from here on, to go out together by [`Wire::flush`].
    fn cork(&mut self, _corked: bool) {}

    /// From here on the peer is spared: large messages are fetched from its memory where that can be,
    /// also where it would be sooner if the peer sent them.
    fn peer_spare(&mut self) {}

    /// Whether all that was sent has left our hands for good, so that the wire can end.
    fn drained(&mut self) -> Result<bool, WireFault> {
        self.flush()
    }

    /// Before sleeping: whether nothing of what is wanted is there, and the peer will wake us when
    /// that changes.
    fn arm(&mut self, want: Want) -> Result<bool, WireFault>;

    /// Says that we will send no more, once all is flushed.
    fn shutdown(&mut self) {}

    /// A descriptor of this wire is ready; `bulk` tells which.
    fn ready(&mut self, _bulk: bool) -> Result<(), WireFault> {
        Ok(())
    }

    /// Opens a buffer to the peer's pulls, until [`Wire::withdraw`]; `None` if the peer cannot pull
    /// it, or had better not.
    fn expose(&mut self, _buf: &Buf) -> Option<PullSource> {
        None
    }

    /// The peer is done with what was exposed.
    fn withdraw(&mut self, _source: &PullSource) {}

    /// Begins to pull what the peer exposed into a buffer that is as long as the segments are
    /// together; the buffer again if it cannot be.
    fn pull_start(
        &mut self,
        _id: u64,
        _segments: &[PullSegment],
        into: BufMut,
    ) -> Result<Result<(), BufMut>, WireFault> {
        Ok(Err(into))
    }

    /// Goes on with pulls, by about `budget` bytes: bytes moved, and a pull that is over.
    fn pull_poll(&mut self, _budget: usize) -> Result<(usize, Option<Pulled>), WireFault> {
        Ok((0, None))
    }

    /// Does a one-sided operation by the transport's own means. `id` comes back with it.
    fn one_sided<'a>(&mut self, _id: u64, op: OneSidedOp<'a>) -> Result<Taken<'a>, WireFault> {
        Ok(Taken::Unsupported(op))
    }

    /// An operation that was `Pending` and is complete now.
    fn one_sided_poll(&mut self) -> Result<Option<Completed>, WireFault> {
        Ok(None)
    }

    /// The channel ends: operations that were `Pending` and are not complete, each with an error,
    /// after which the transport touches their memory no more.
    fn one_sided_end(&mut self) -> Vec<Completed> {
        Vec::new()
    }

    /// Whether pulls or operations are under way, for the sake of which the wire must be polled.
    #[inline]
    fn works(&self) -> bool {
        false
    }
}

/// Any wire: the one place where backends are mixed at run time.
#[expect(
    clippy::large_enum_variant,
    reason = "a channel is boxed as a whole, and shared memory's is to be reached without a detour"
)]
pub(crate) enum AnyWire {
    Mem(MemWire),
    Shm(ShmWire),
    Unix(UnixWire),
    Tcp(TcpWire),
    Verbs(Box<VerbsWire>),
    Fault(Box<FaultWire>),
}

macro_rules! each {
    ($self:ident, $wire:ident => $call:expr) => {
        match $self {
            AnyWire::Shm($wire) => $call,
            AnyWire::Unix($wire) => $call,
            AnyWire::Tcp($wire) => $call,
            AnyWire::Verbs($wire) => $call,
            AnyWire::Mem($wire) => $call,
            AnyWire::Fault($wire) => $call,
        }
    };
}

impl AnyWire {
    /// The wire below injected faults.
    pub(crate) fn base(&mut self) -> &mut AnyWire {
        match self {
            AnyWire::Fault(fault) => fault.inner(),
            other => other,
        }
    }

    /// The header comes by value: on the way through shared memory it then stays in registers,
    /// since nobody has its address.
    #[inline(never)]
    fn send_frame_other(
        &mut self,
        header: FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault> {
        each!(self, wire => wire.send_frame(&header, user_header, payload))
    }

    /// Receives the next frame into a place that is used again and again; whether there was one.
    #[inline(always)]
    pub(crate) fn recv_into(
        &mut self,
        pool: &mut RxPool,
        into: &mut Received,
    ) -> Result<bool, WireFault> {
        match self {
            AnyWire::Shm(wire) => wire.recv_into(pool, into),
            other => other.recv_into_other(pool, into),
        }
    }

    #[inline(never)]
    fn recv_into_other(
        &mut self,
        pool: &mut RxPool,
        into: &mut Received,
    ) -> Result<bool, WireFault> {
        let Some(received) = self.recv_frame(pool)? else {
            return Ok(false);
        };
        let kept = std::mem::replace(into, received).buf;
        if !kept.is_empty() {
            pool.give(kept);
        }
        Ok(true)
    }

    /// Takes back the buffer of the frame that was received last, if it belongs to this wire.
    #[inline(always)]
    pub(crate) fn recycle_from(&mut self, received: &mut Received, pool: &mut RxPool) {
        match self {
            AnyWire::Shm(_) => {}
            other => other.recycle(std::mem::take(&mut received.buf), pool),
        }
    }
}

impl Wire for AnyWire {
    #[inline(always)]
    fn send_frame(
        &mut self,
        header: &FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault> {
        match self {
            AnyWire::Shm(wire) => wire.send_frame(header, user_header, payload),
            other => other.send_frame_other(*header, user_header, payload),
        }
    }

    fn recv_frame(&mut self, pool: &mut RxPool) -> Result<Option<Received>, WireFault> {
        each!(self, wire => wire.recv_frame(pool))
    }

    fn recycle(&mut self, buf: RxBuf, pool: &mut RxPool) {
        each!(self, wire => wire.recycle(buf, pool));
    }

    fn bulk_write(&mut self, bytes: &[u8]) -> Result<usize, WireFault> {
        each!(self, wire => wire.bulk_write(bytes))
    }

    fn bulk_read(&mut self, into: &mut [u8]) -> Result<usize, WireFault> {
        each!(self, wire => wire.bulk_read(into))
    }

    fn flush(&mut self) -> Result<bool, WireFault> {
        each!(self, wire => wire.flush())
    }

    fn cork(&mut self, corked: bool) {
        each!(self, wire => wire.cork(corked));
    }

    fn peer_spare(&mut self) {
        each!(self, wire => wire.peer_spare());
    }

    fn drained(&mut self) -> Result<bool, WireFault> {
        each!(self, wire => wire.drained())
    }

    #[inline]
    fn held_back(&self) -> bool {
        each!(self, wire => wire.held_back())
    }

    fn arm(&mut self, want: Want) -> Result<bool, WireFault> {
        each!(self, wire => wire.arm(want))
    }

    fn shutdown(&mut self) {
        each!(self, wire => wire.shutdown());
    }

    fn ready(&mut self, bulk: bool) -> Result<(), WireFault> {
        each!(self, wire => wire.ready(bulk))
    }

    fn expose(&mut self, buf: &Buf) -> Option<PullSource> {
        each!(self, wire => wire.expose(buf))
    }

    fn withdraw(&mut self, source: &PullSource) {
        each!(self, wire => wire.withdraw(source));
    }

    fn pull_start(
        &mut self,
        id: u64,
        segments: &[PullSegment],
        into: BufMut,
    ) -> Result<Result<(), BufMut>, WireFault> {
        each!(self, wire => wire.pull_start(id, segments, into))
    }

    fn pull_poll(&mut self, budget: usize) -> Result<(usize, Option<Pulled>), WireFault> {
        each!(self, wire => wire.pull_poll(budget))
    }

    fn one_sided<'a>(&mut self, id: u64, op: OneSidedOp<'a>) -> Result<Taken<'a>, WireFault> {
        each!(self, wire => wire.one_sided(id, op))
    }

    fn one_sided_poll(&mut self) -> Result<Option<Completed>, WireFault> {
        each!(self, wire => wire.one_sided_poll())
    }

    fn one_sided_end(&mut self) -> Vec<Completed> {
        each!(self, wire => wire.one_sided_end())
    }

    #[inline]
    fn works(&self) -> bool {
        each!(self, wire => wire.works())
    }
}
