//! What endpoints take and give: ids, outcomes, errors, and the handler.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Ops;
use crate::address::TransportKind;
use crate::buf::{Buf, BufMut};
use crate::choice::ChooseError;
use crate::config::ConfigError;
use crate::one_sided::OneSidedError;
use crate::sync::atomic::{AtomicBool, Ordering, fence};
use crate::ticket::{Credential, RefuseReason};
use crate::unix::UnixPlace;
use crate::verbs::RdmaError;
use crate::wire::{Incarnation, PeerIdentity, WireError};

/// A channel of an endpoint. An id is never used again: a stale one is an error, not another
/// channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl ChannelId {
    /// The channel's place in its endpoint: small, and used again after the channel has ended.
    #[inline]
    pub fn index(self) -> usize {
        self.slot as usize
    }
}

/// A large message that was announced and not yet accepted or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IncomingId {
    pub(crate) channel: ChannelId,
    pub(crate) transfer: u64,
}

/// What happened to a buffer that was posted.
#[must_use]
#[derive(Debug)]
pub enum PostedBuf {
    /// It was small enough to go at once; here is the buffer again.
    Done(Buf),
    /// It goes by rendezvous: [`Handler::on_sent`] gives it back.
    Pending,
    /// There is no room just now.
    Busy(Buf),
}

/// What happened to a list of buffers that was posted.
#[must_use]
#[derive(Debug)]
pub enum PostedList {
    /// It was small enough to go at once; here are the buffers again.
    Done(Vec<Buf>),
    /// It goes by rendezvous: [`Handler::on_list_sent`] gives them back.
    Pending,
    /// There is no room just now.
    Busy(Vec<Buf>),
}

/// What happened to a get that was posted.
#[must_use]
#[derive(Debug)]
pub enum PostedGet {
    /// [`Handler::on_one_sided`] gives the buffer back.
    Pending,
    /// There is no room just now.
    Busy(BufMut),
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A name within this OS process.
    Mem(String),
    /// An abstract Unix socket; without a name, one that nobody guesses.
    Shm {
        /// The socket's name.
        name: Option<String>,
    },
    /// A Unix stream socket.
    Unix(UnixPlace),
    /// An IP address, over which RDMA connections are set up; the unspecified one stands for that of
    /// an RDMA port, and port zero lets the kernel choose.
    Verbs(std::net::SocketAddr),
    /// An IP address; port zero lets the kernel choose.
    Tcp(std::net::SocketAddr),
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct Dial {
    /// What we show.
    pub credential: Credential,
    /// The incarnation that must answer; zero takes any.
    pub expect: Incarnation,
    /// When to give up; at most the endpoint's `handshake_timeout_ms` from now.
    pub deadline: Option<Instant>,
}

/// What is known of a channel.
#[derive(Debug, Clone)]
pub struct ChannelInfo {
    /// Who is on the other side.
    pub peer: PeerIdentity,
    /// The transport.
    pub kind: TransportKind,
    /// Whether we connected, rather than listened.
    pub dialled: bool,
    /// The largest payload in bytes that goes eagerly.
    pub eager_max: usize,
}

/// A whole message that came eagerly. The bytes are private and last for the call.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Which handler it is for.
    pub am: u8,
    /// The sender's tag.
    pub tag: u64,
    /// The sender's header, at most 32 bytes.
    pub header: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

/// A large message that is announced.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// Names it, for accepting it later.
    pub id: IncomingId,
    /// Which handler it is for.
    pub am: u8,
    /// The sender's tag.
    pub tag: u64,
    /// The sender's header, at most 32 bytes.
    pub header: &'a [u8],
    /// Bytes of payload.
    pub len: u64,
}

/// What to do with a large message that is announced. One above this side's `message_max_bytes` is
/// refused, with `u32::MAX` for a reason unless the handler gives another.
#[derive(Debug)]
pub enum Disposition {
    /// Receive it into this buffer, which is as long as it.
    Accept(BufMut),
    /// Decide later, by [`Ops::accept`] or [`Ops::refuse`]; nothing else waits for it.
    Park,
    /// Do not receive it; the sender is told the reason, whose meaning is the user's.
    Refuse(u32),
}

/// A large message whose payload is all there.
#[derive(Debug)]
pub struct LargeMessage {
    /// Which handler it is for.
    pub am: u8,
    /// The sender's tag.
    pub tag: u64,
    /// The sender's header.
    pub header: smallvec::SmallVec<[u8; 32]>,
    /// The payload.
    pub payload: Buf,
}

/// Why a posted buffer did not arrive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendFailure {
    /// The receiver refused it, for a reason of its own.
    #[error("the receiver refused the message (reason {0})")]
    Refused(u32),
    /// The channel ended first.
    #[error("the channel ended before the message was received")]
    Closed,
}

/// Why a channel ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed it, in good order.
    #[error("the peer closed the channel")]
    Closed,
    /// The peer ended without a word.
    #[error("the peer died")]
    PeerDied,
    /// The handshake was refused.
    #[error("refused: {reason}: {text}")]
    Refused {
        /// Why.
        reason: RefuseReason,
        /// What the refusing side says of it.
        text: String,
    },
    /// The handshake took too long.
    #[error("no answer within the deadline")]
    Timeout,
    /// None of several addresses led to the peer; each is named with the reason.
    #[error("no address leads there: {0}")]
    Unreachable(String),
    /// The peer sent what no correct peer sends.
    #[error("protocol violation: {0}")]
    Protocol(WireError),
    /// A newer incarnation of the peer has connected.
    #[error("superseded by a newer incarnation of the peer")]
    Superseded,
    /// The operating system refuses.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// An RDMA device, ours or the peer's, reports a failure.
    #[error("RDMA: {0}")]
    Rdma(RdmaError),
}

/// Why something could not be sent. The channel is unusable or the call was wrong; back-pressure
/// is no error but `Busy`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The channel is closed, or not yet open.
    #[error("channel is not open")]
    NotOpen,
    /// The message is above the limit.
    #[error("message of {len} bytes is above the limit of {limit} bytes")]
    TooLarge {
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The user's header is above 32 bytes.
    #[error("header of {0} bytes is above 32")]
    HeaderTooLong(usize),
    /// The announced message is gone: refused, accepted before, or its channel closed.
    #[error("no such announced message")]
    NoSuchIncoming,
    /// The buffer does not have the announced length.
    #[error("buffer of {have} bytes for a message of {need}")]
    WrongLength {
        /// The buffer's length.
        have: usize,
        /// The message's.
        need: u64,
    },
}

/// Why an endpoint cannot be made, listen or connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A setting cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system refuses what every endpoint needs.
    #[error("cannot set up an endpoint: {0}")]
    Setup(#[source] io::Error),
    /// Cannot listen there.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Cannot connect there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// No address of the peer is one that may be used from here.
    #[error(transparent)]
    Choose(#[from] ChooseError),
    /// As many channels as the settings allow are in use.
    #[error("the limit of {0} channels is reached (setting channels_max)")]
    TooManyChannels(usize),
    /// No random bytes.
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
}

/// Whether a round of progress goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End the round here; what is left stays for the next.
    Stop,
}

/// How a one-sided operation ended.
#[derive(Debug)]
pub struct OneSidedDone {
    /// What the initiator gave with the operation.
    pub context: u64,
    /// For atomics the old value, else zero; or why it failed.
    pub outcome: Result<u64, OneSidedError>,
    /// The buffer of a get.
    pub data: Option<BufMut>,
    /// The buffer of a put that held one.
    pub buf: Option<Buf>,
}

/// What a user of an endpoint does with what arrives. Called from within
/// [`super::Endpoint::progress`] only.
pub trait Handler {
    /// A channel is open, ours or a peer's.
    fn on_open(&mut self, ops: &mut Ops, channel: ChannelId, info: &ChannelInfo) -> Flow {
        let _ = (ops, channel, info);
        Flow::Continue
    }

    /// A message came.
    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow;

    /// A large message is announced.
    fn on_incoming(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        incoming: Incoming<'_>,
    ) -> Disposition;

    /// The payload of an accepted message is all there.
    fn on_large(&mut self, ops: &mut Ops, channel: ChannelId, message: LargeMessage) -> Flow;

    /// A buffer that was `Pending` is done with.
    fn on_sent(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        context: u64,
        buf: Buf,
        outcome: Result<(), SendFailure>,
    ) -> Flow {
        let _ = (ops, channel, context, buf, outcome);
        Flow::Continue
    }

    /// A list of buffers that was `Pending` is done with.
    fn on_list_sent(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        context: u64,
        parts: Vec<Buf>,
        outcome: Result<(), SendFailure>,
    ) -> Flow {
        let _ = (ops, channel, context, parts, outcome);
        Flow::Continue
    }

    /// There is room again after a `Busy`.
    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        let _ = (ops, channel);
        Flow::Continue
    }

    /// A peer's put with an immediate value is complete in our memory.
    fn on_immediate(&mut self, ops: &mut Ops, channel: ChannelId, value: u64, len: u64) -> Flow {
        let _ = (ops, channel, value, len);
        Flow::Continue
    }

    /// A one-sided operation of ours is complete: its effect is there.
    fn on_one_sided(&mut self, ops: &mut Ops, channel: ChannelId, done: OneSidedDone) -> Flow {
        let _ = (ops, channel, done);
        Flow::Continue
    }

    /// The channel has ended, after every operation in flight on it was completed.
    fn on_close(&mut self, ops: &mut Ops, channel: ChannelId, reason: CloseReason) -> Flow;
}

/// How to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitMode {
    /// Busy-poll. Blocks only while more endpoints of this node want to spin than it has CPUs.
    Hot,
    /// Block at once.
    Warm,
    /// Busy-poll for the setting `spin_us`, on the same condition, then block.
    Adaptive,
}

/// Wakes an endpoint that blocks, from any thread.
#[derive(Clone)]
pub struct Waker {
    pub(crate) shared: Arc<WakerShared>,
}

pub(crate) struct WakerShared {
    pub(crate) waker: mio::Waker,
    pub(crate) asleep: AtomicBool,
    pub(crate) woken: AtomicBool,
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}

impl Waker {
    /// Makes a blocked wait return. One that does not block finds by itself what the caller has
    /// published before, so this costs a fence then.
    pub(crate) fn wake_sleeper(&self) {
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Makes a blocked wait return, or the next one return at once. Costs a system call only if
    /// the endpoint sleeps.
    pub fn wake(&self) {
        self.shared.woken.store(true, Ordering::SeqCst);
        if self.shared.asleep.swap(false, Ordering::SeqCst)
            && let Err(error) = self.shared.waker.wake()
        {
            tracing::error!(%error, "cannot wake an endpoint");
        }
    }
}
