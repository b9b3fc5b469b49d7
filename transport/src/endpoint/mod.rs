//! Endpoints: progress, completions, channels, over all backends at once.
//!
//! ```text
//!   progress(handler)
//!     | every poll_interval_rounds, or when woken: descriptors --> accept, handshakes, doorbells
//!     | every round: active channels --> frames --> handler
//!     |                              --> bulk lanes, a bounded share each
//!     +-- events put off until the handler may see them
//! ```
//!
//! An endpoint has one owner at a time, who has it by `&mut`. Handlers get [`Ops`], with which they
//! may send, accept, refuse and close, but not make progress: so they never nest.

mod boot;
mod channel;
mod stream;
mod types;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token};
use smallvec::SmallVec;

use self::boot::{Boot, BootError, Booted, Machine};
use self::channel::{Channel, OutDone};
use self::stream::Stream;
use self::types::WakerShared;
pub use self::types::{
    ChannelId, ChannelInfo, CloseReason, Dial, Disposition, Flow, Handler, Incoming, IncomingId,
    LargeMessage, Listen, Message, OneSidedDone, PostedBuf, SendError, SendFailure, TransportError,
    WaitMode, Waker,
};
use crate::address::{Address, HostId, TransportKind};
use crate::backend::{AnyWire, Posted, RX_BYTES, Received, RxPool, Wire, WireFault};
use crate::buf::{Buf, BufMut, BufPool};
use crate::config::TransportConfig;
use crate::fault::FaultWire;
use crate::mem::{MemLink, MemListener, MemWire};
use crate::one_sided::{Access, OneSidedError, RegionTable, RemoteKey};
use crate::shm::{self, Layout, ShmMemory, ShmWire};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::tcp::{TcpWire, socket_prepare};
use crate::ticket::{Authenticator, RefuseReason, Role};
use crate::wire::{
    Agreed, Capabilities, Dialler, FrameHeader, FrameKind, HandshakeError, Identity,
    Listener as HandshakeListener, Local, USER_HEADER_MAX_BYTES, bulk_hello,
};

const TOKEN_WAKER: Token = Token(usize::MAX);
const TOKEN_LISTENER: usize = 0;
const TOKEN_CHANNEL: usize = 1;
const TOKEN_BULK: usize = 2;
/// Active channels up to this number are polled for ever; above it idle ones sleep.
const ACTIVE_ALWAYS: usize = 8;
/// Frames of one channel handled before the others get their turn.
const FRAMES_PER_TURN: usize = 64;
const EVENTS_PER_POLL: usize = 256;
const LINGER: Duration = Duration::from_secs(2);
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
/// A round over TCP costs a system call, so it counts for as many.
const TCP_ROUND_WEIGHT: u32 = 16;

enum Listening {
    Mem(Arc<MemListener>),
    Unix(UnixListener),
    Tcp(TcpListener),
}

enum State {
    Free,
    Boot(Box<Boot>),
    Open(Box<Channel>),
    /// Said its last; waits for the peer to hang up, so that nothing is lost to a reset.
    Linger(Stream, Instant),
}

struct Slot {
    generation: u32,
    state: State,
}

enum Event {
    Open(ChannelId),
    Sent(ChannelId, OutDone, bool),
    OneSided(ChannelId, OneSidedDone),
    Closed(ChannelId, CloseReason),
}

/// A place where channels meet: listens, connects, sends, makes progress.
pub struct Endpoint {
    ops: Ops,
    events: Events,
    rounds: u32,
    turn: usize,
}

/// What may be done with an endpoint from within its handler.
pub struct Ops {
    config: TransportConfig,
    identity: Identity,
    auth: Option<Arc<dyn Authenticator>>,
    poll: Poll,
    waker: Waker,
    slots: Vec<Slot>,
    free: Vec<u32>,
    open: usize,
    active: Vec<u32>,
    /// Slots with a deadline: handshakes, lingering and closing channels.
    timed: Vec<u32>,
    listeners: Vec<Listening>,
    addresses: Vec<Address>,
    sessions: HashMap<[u8; 16], ChannelId>,
    pending: VecDeque<Event>,
    rx: RxPool,
    pool: BufPool,
    regions: Arc<RegionTable>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("addresses", &self.ops.addresses)
            .field("channels", &self.ops.open)
            .finish()
    }
}

impl std::ops::Deref for Endpoint {
    type Target = Ops;

    fn deref(&self) -> &Ops {
        &self.ops
    }
}

impl std::ops::DerefMut for Endpoint {
    fn deref_mut(&mut self) -> &mut Ops {
        &mut self.ops
    }
}

impl Endpoint {
    /// An endpoint that speaks as `identity`. Without `auth` it refuses whoever connects.
    ///
    /// # Errors
    /// Settings that cannot be, or a system out of descriptors.
    pub fn new(
        config: TransportConfig,
        identity: Identity,
        auth: Option<Arc<dyn Authenticator>>,
    ) -> Result<Self, TransportError> {
        config.check()?;
        let poll = Poll::new().map_err(TransportError::Setup)?;
        let waker = mio::Waker::new(poll.registry(), TOKEN_WAKER).map_err(TransportError::Setup)?;
        let shared = WakerShared {
            waker,
            asleep: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        };
        let pool = BufPool::new(config.buffers_max_bytes);
        let ops = Ops {
            config,
            identity,
            auth,
            poll,
            waker: Waker {
                shared: Arc::new(shared),
            },
            slots: Vec::new(),
            free: Vec::new(),
            open: 0,
            active: Vec::new(),
            timed: Vec::new(),
            listeners: Vec::new(),
            addresses: Vec::new(),
            sessions: HashMap::new(),
            pending: VecDeque::new(),
            rx: RxPool::default(),
            pool,
            regions: Arc::new(RegionTable::default()),
        };
        Ok(Self {
            ops,
            events: Events::with_capacity(EVENTS_PER_POLL),
            rounds: 0,
            turn: 0,
        })
    }

    /// A waker for blocked waits, usable from any thread.
    pub fn waker(&self) -> Waker {
        self.ops.waker.clone()
    }

    /// A descriptor that is readable when progress is needed, once [`Endpoint::arm`] said so.
    pub fn raw_fd(&self) -> RawFd {
        self.ops.poll.as_raw_fd()
    }

    /// One round: never blocks. Returns the number of things that happened.
    pub fn progress<H: Handler>(&mut self, handler: &mut H) -> usize {
        let mut happened = 0;
        if !self.ops.pending.is_empty() {
            match self.deliver(handler) {
                (count, Flow::Continue) => happened += count,
                (count, Flow::Stop) => return count,
            }
        }
        self.rounds = self.rounds.saturating_add(1);
        let woken = &self.ops.waker.shared.woken;
        if self.rounds >= self.ops.config.poll_interval_rounds || woken.load(Ordering::Relaxed) {
            self.poll_descriptors(Some(Duration::ZERO));
        }
        let mut left = self.ops.active.len();
        while left > 0 {
            left -= 1;
            if self.turn >= self.ops.active.len() {
                self.turn = 0;
            }
            let Some(&slot) = self.ops.active.get(self.turn) else {
                break;
            };
            let (count, flow) = self.channel_round(slot, handler);
            happened += count;
            if flow == Flow::Stop {
                return happened;
            }
            // A channel that was closed or put to sleep has left its place to another.
            if self.ops.active.get(self.turn) == Some(&slot) {
                self.turn += 1;
            }
        }
        happened
    }

    /// Makes progress until something happens, the endpoint is woken, or the deadline passes;
    /// zero in the latter two cases.
    pub fn progress_wait<H: Handler>(
        &mut self,
        handler: &mut H,
        deadline: Option<Instant>,
        mode: WaitMode,
    ) -> usize {
        let spin_until = match mode {
            WaitMode::Warm => None,
            WaitMode::Hot => Some(deadline),
            WaitMode::Adaptive => {
                let spin = Instant::now() + Duration::from_micros(self.ops.config.spin_us.into());
                Some(Some(deadline.map_or(spin, |deadline| deadline.min(spin))))
            }
        };
        let mut rounds = 0_u32;
        loop {
            let woken = self.ops.waker.shared.woken.load(Ordering::Relaxed);
            let happened = self.progress(handler);
            if happened > 0 || woken {
                return happened;
            }
            rounds = rounds.wrapping_add(1);
            match spin_until {
                None => break,
                Some(Some(until)) if rounds.is_multiple_of(64) && Instant::now() >= until => break,
                Some(_) => crate::sync::spin_hint(),
            }
        }
        if mode == WaitMode::Hot || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return 0;
        }
        self.wait(deadline);
        self.progress(handler)
    }

    /// Prepares to sleep on [`Endpoint::raw_fd`]; `false` if there is work already.
    pub fn arm(&mut self) -> bool {
        self.ops.waker.shared.asleep.store(true, Ordering::SeqCst);
        let idle = self.ops.pending.is_empty()
            && !self.ops.waker.shared.woken.load(Ordering::SeqCst)
            && !self.ops.listeners.iter().any(|listener| match listener {
                Listening::Mem(listener) => listener.pending(),
                _ => false,
            })
            && self.ops.channels_arm();
        if !idle {
            self.ops.waker.shared.asleep.store(false, Ordering::SeqCst);
        }
        idle
    }

    /// Blocks until there may be work, the endpoint is woken, or the deadline passes.
    pub fn wait(&mut self, deadline: Option<Instant>) {
        if !self.arm() {
            self.poll_descriptors(Some(Duration::ZERO));
            return;
        }
        let timed = self.ops.timed_next();
        let until = match (deadline, timed) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        self.poll_descriptors(timeout);
    }

    fn poll_descriptors(&mut self, timeout: Option<Duration>) {
        self.rounds = 0;
        if let Err(error) = self.ops.poll.poll(&mut self.events, timeout)
            && error.kind() != io::ErrorKind::Interrupted
        {
            // epoll itself fails only when its arguments are wrong; spinning on would hide it.
            tracing::error!(%error, "cannot poll descriptors");
        }
        self.ops.waker.shared.asleep.store(false, Ordering::SeqCst);
        let woken = self.ops.waker.shared.woken.swap(false, Ordering::SeqCst);
        for event in &self.events {
            self.ops.descriptor_ready(event.token());
        }
        if woken {
            self.ops.mem_ready();
        }
        self.ops.timed_step();
    }

    fn deliver<H: Handler>(&mut self, handler: &mut H) -> (usize, Flow) {
        let mut count = 0;
        while let Some(event) = self.ops.pending.pop_front() {
            count += 1;
            let ops = &mut self.ops;
            let flow = match event {
                Event::Open(channel) => match ops.info(channel).cloned() {
                    Some(info) => handler.on_open(ops, channel, &info),
                    None => Flow::Continue,
                },
                Event::Sent(channel, done, alive) => {
                    let outcome = match (done.refused, alive) {
                        (Some(reason), _) => Err(SendFailure::Refused(reason)),
                        (None, true) => Ok(()),
                        (None, false) => Err(SendFailure::Closed),
                    };
                    handler.on_sent(ops, channel, done.context, done.buf, outcome)
                }
                Event::OneSided(channel, done) => handler.on_one_sided(ops, channel, done),
                Event::Closed(channel, reason) => handler.on_close(ops, channel, reason),
            };
            if flow == Flow::Stop {
                return (count, Flow::Stop);
            }
        }
        (count, Flow::Continue)
    }

    /// Frames, bulk and room of one channel.
    #[inline]
    fn channel_round<H: Handler>(&mut self, slot: u32, handler: &mut H) -> (usize, Flow) {
        let mut count = 0;
        for _ in 0..FRAMES_PER_TURN {
            let State::Open(channel) = &mut self.ops.slots[slot as usize].state else {
                return (count, Flow::Continue);
            };
            let received = match channel.wire.recv_frame(&mut self.ops.rx) {
                Ok(Some(received)) => received,
                Ok(None) => break,
                Err(fault) => {
                    self.ops.channel_fault(slot, fault);
                    break;
                }
            };
            count += 1;
            if self.frame(slot, received, handler) == Flow::Stop {
                return (count, Flow::Stop);
            }
        }
        let (more, flow) = self.channel_upkeep(slot, handler, count);
        (count + more, flow)
    }

    fn frame<H: Handler>(&mut self, slot: u32, received: Received, handler: &mut H) -> Flow {
        let id = ChannelId {
            slot,
            generation: self.ops.slots[slot as usize].generation,
        };
        let header = received.header;
        let kind = match header.kind() {
            Ok(kind) => kind,
            Err(error) => {
                self.ops.channel_fault(slot, error.into());
                return Flow::Continue;
            }
        };
        let flow = match kind {
            FrameKind::Eager => {
                let message = Message {
                    am: header.am_id,
                    tag: header.id(),
                    header: received.user_header(),
                    payload: received.payload(),
                };
                handler.on_message(&mut self.ops, id, message)
            }
            FrameKind::Rts => self.announced(id, &received, handler),
            FrameKind::Immediate => {
                handler.on_immediate(&mut self.ops, id, header.id(), header.aux())
            }
            _ => {
                self.ops.control_frame(id, kind, &header);
                Flow::Continue
            }
        };
        match &mut self.ops.slots[slot as usize] {
            Slot {
                generation,
                state: State::Open(channel),
            } if *generation == id.generation => {
                channel.wire.recycle(received.buf, &mut self.ops.rx);
            }
            _ => self.ops.rx.give(received.buf),
        }
        flow
    }

    fn announced<H: Handler>(
        &mut self,
        id: ChannelId,
        received: &Received,
        handler: &mut H,
    ) -> Flow {
        let limit = self.ops.config.message_max_bytes;
        let Some(channel) = self.ops.channel(id) else {
            return Flow::Continue;
        };
        let header = received.user_header();
        let transfer = match channel.announced(&received.header, header, limit) {
            Ok(transfer) => transfer,
            Err(error) => {
                self.ops.channel_fault(id.slot, error.into());
                return Flow::Continue;
            }
        };
        self.ops.lane_open(id.slot);
        let incoming = Incoming {
            id: IncomingId {
                channel: id,
                transfer,
            },
            am: received.header.am_id,
            tag: received.header.id(),
            header,
            len: received.header.len(),
        };
        let incoming_id = incoming.id;
        let outcome = match handler.on_incoming(&mut self.ops, id, incoming) {
            Disposition::Accept(into) => self.ops.accept(incoming_id, into),
            Disposition::Refuse(reason) => self.ops.refuse(incoming_id, reason),
            Disposition::Park => Ok(()),
        };
        if let Err(error) = outcome
            && error != SendError::NotOpen
        {
            // The handler's buffer does not fit: the sender must not wait for ever.
            tracing::error!(%error, "a large message cannot be received");
            let _ = self.ops.refuse(incoming_id, u32::MAX);
        }
        Flow::Continue
    }

    /// What is not frames: bulk, control frames that wait, room, idleness, closing.
    #[inline]
    fn channel_upkeep<H: Handler>(
        &mut self,
        slot: u32,
        handler: &mut H,
        frames: usize,
    ) -> (usize, Flow) {
        let State::Open(channel) = &mut self.ops.slots[slot as usize].state else {
            return (0, Flow::Continue);
        };
        if channel.info.kind == TransportKind::Tcp {
            self.rounds = self.rounds.saturating_add(TCP_ROUND_WEIGHT);
        }
        if channel.quiet() {
            channel.idle = if frames > 0 {
                0
            } else {
                channel.idle.saturating_add(1)
            };
            if self.ops.active.len() > ACTIVE_ALWAYS
                && self.ops.slot_idle(slot) > self.ops.config.idle_polls
            {
                self.ops.channel_rest(slot);
            }
            return (0, Flow::Continue);
        }
        self.channel_work(slot, handler)
    }

    fn channel_work<H: Handler>(&mut self, slot: u32, handler: &mut H) -> (usize, Flow) {
        let id = ChannelId {
            slot,
            generation: self.ops.slots[slot as usize].generation,
        };
        let Some(channel) = self.ops.channel(id) else {
            return (0, Flow::Continue);
        };
        channel.idle = 0;
        let mut done = SmallVec::new();
        let pulled = channel.pull(&mut done);
        let pushed = channel.push();
        let moved = match (pulled, pushed) {
            (Ok(pulled), Ok(pushed)) => usize::from(pulled + pushed > 0),
            (Err(fault), _) | (_, Err(fault)) => {
                self.ops.channel_fault(slot, fault);
                return (1, Flow::Continue);
            }
        };
        let mut count = moved + done.len();
        let mut flow = Flow::Continue;
        for message in done {
            if handler.on_large(&mut self.ops, id, message) == Flow::Stop {
                flow = Flow::Stop;
            }
        }
        let Some(channel) = self.ops.channel(id) else {
            return (count, flow);
        };
        if channel.want_writable {
            match channel.wire.flush() {
                Ok(true) => {
                    channel.want_writable = false;
                    count += 1;
                    if handler.on_writable(&mut self.ops, id) == Flow::Stop {
                        flow = Flow::Stop;
                    }
                }
                Ok(false) => {}
                Err(fault) => self.ops.channel_fault(slot, fault),
            }
        }
        self.ops.close_step(id);
        (count, flow)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        for slot in 0..self.ops.slots.len() as u32 {
            if let State::Open(channel) = &mut self.ops.slots[slot as usize].state
                && !channel.peer_closed
            {
                // A peer that has no room for the word learns of the end by the hang-up.
                channel.closing = Some(Instant::now());
                let _ = channel.push();
                let _ = channel.close_advance();
            }
        }
        for listener in &self.ops.listeners {
            if let Listening::Mem(listener) = listener {
                listener.close();
            }
        }
    }
}

impl Ops {
    /// Where the endpoint listens.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Who the endpoint speaks as.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The pool that payloads come from.
    pub fn pool(&self) -> &BufPool {
        &self.pool
    }

    /// The settings.
    pub fn config(&self) -> &TransportConfig {
        &self.config
    }

    /// Listens, from now on until the endpoint is dropped.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub fn listen(&mut self, at: &Listen) -> Result<Address, TransportError> {
        let token = Token(self.listeners.len() << 2 | TOKEN_LISTENER);
        let (listening, address) = match at {
            Listen::Mem(name) => {
                let listener = MemListener::listen(name, self.waker.clone())?;
                (Listening::Mem(listener), Address::Mem(name.clone()))
            }
            Listen::Tcp(at) => {
                let error = |source| TransportError::Listen {
                    address: format!("tcp:{at}"),
                    source,
                };
                let mut listener = TcpListener::bind(*at).map_err(error)?;
                let at = listener.local_addr().map_err(error)?;
                let registry = self.poll.registry();
                registry
                    .register(&mut listener, token, Interest::READABLE)
                    .map_err(error)?;
                (Listening::Tcp(listener), Address::Tcp(at))
            }
            Listen::Shm { name } => {
                let name = match name {
                    Some(name) => name.clone(),
                    None => format!(
                        "praas-{:016x}",
                        getrandom::u64().map_err(TransportError::Random)?
                    ),
                };
                let error = |source| TransportError::Listen {
                    address: format!("shm:{name}"),
                    source,
                };
                let mut listener = abstract_address(&name)
                    .and_then(|address| UnixListener::bind_addr(&address))
                    .map_err(error)?;
                let registry = self.poll.registry();
                registry
                    .register(&mut listener, token, Interest::READABLE)
                    .map_err(error)?;
                // Fail here, not at the first peer, if the life page cannot be had.
                shm::life::life_page().map_err(error)?;
                (
                    Listening::Unix(listener),
                    Address::Shm {
                        host: HostId::local(),
                        name,
                    },
                )
            }
        };
        self.listeners.push(listening);
        self.addresses.push(address.clone());
        Ok(address)
    }

    /// Connects without blocking: [`Handler::on_open`] or [`Handler::on_close`] follows.
    ///
    /// # Errors
    /// What can be told at once: nobody listens, too many channels.
    pub fn connect(&mut self, to: &Address, dial: Dial) -> Result<ChannelId, TransportError> {
        let error = |source| TransportError::Connect {
            address: to.to_string(),
            source,
        };
        let mut lane_to = None;
        let (stream, descriptors) = match to {
            Address::Mem(name) => {
                let link = MemLink::dial(name, self.waker.clone(), Arc::clone(&self.regions))?;
                (Stream::Mem(link), Vec::new())
            }
            Address::Tcp(at) => {
                let stream = TcpStream::connect(*at).map_err(error)?;
                socket_prepare(&stream, self.config.tcp_dead_after_ms).map_err(error)?;
                lane_to = Some(*at);
                (Stream::Tcp(stream), Vec::new())
            }
            Address::Shm { host, .. } if *host != HostId::local() => {
                return Err(error(io::Error::new(
                    io::ErrorKind::HostUnreachable,
                    format!(
                        "shared memory of another host (this one is {})",
                        HostId::local()
                    ),
                )));
            }
            Address::Shm { name, .. } => {
                let stream = abstract_address(name)
                    .and_then(|address| UnixStream::connect_addr(&address))
                    .map_err(error)?;
                let life = shm::life::life_page()
                    .and_then(|fd| fd.try_clone())
                    .map_err(error)?;
                (Stream::Unix(stream), vec![life])
            }
        };
        let local = self.local()?;
        let (hello, machine) =
            Dialler::start(local, &dial.credential, dial.expect, HostId::local());
        let latest = Instant::now() + Duration::from_millis(self.config.handshake_timeout_ms);
        let deadline = dial
            .deadline
            .map_or(latest, |deadline| deadline.min(latest));
        let layout = self.layout();
        let mut boot = Boot::new(
            stream,
            Machine::Dialler(machine),
            hello,
            descriptors,
            deadline,
            layout,
        );
        boot.lane_to = lane_to;
        self.boot_start(boot)
    }

    /// Sends a message eagerly: the payload is copied, and may be reused at once.
    ///
    /// # Errors
    /// The channel is not open, or the message is above the limit.
    #[inline]
    pub fn send(
        &mut self,
        to: ChannelId,
        am: u8,
        tag: u64,
        header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, SendError> {
        let len: usize = payload.iter().map(|part| part.len()).sum();
        let channel = self.sendable(to, header)?;
        if len > channel.info.eager_max {
            let limit = channel.info.eager_max as u64;
            return Err(SendError::TooLarge {
                len: len as u64,
                limit,
            });
        }
        match channel.send_eager(am, tag, header, payload, len) {
            Ok(posted) => Ok(posted),
            Err(fault) => {
                self.channel_fault(to.slot, fault);
                Err(SendError::NotOpen)
            }
        }
    }

    /// The largest payload in bytes that [`Ops::send`] takes; zero if the channel is not open.
    pub fn eager_max(&self, channel: ChannelId) -> usize {
        self.info(channel).map_or(0, |info| info.eager_max)
    }

    /// Sends a buffer of any size, eagerly or by rendezvous.
    ///
    /// # Errors
    /// The channel is not open, or the message is above the limit.
    pub fn send_buf(
        &mut self,
        to: ChannelId,
        am: u8,
        tag: u64,
        header: &[u8],
        payload: Buf,
        context: u64,
    ) -> Result<PostedBuf, SendError> {
        let limit = self.config.message_max_bytes;
        let channel = self.sendable(to, header)?;
        let len = payload.len();
        if len as u64 > limit {
            return Err(SendError::TooLarge {
                len: len as u64,
                limit,
            });
        }
        let posted = match len <= channel.info.eager_max {
            true => {
                channel
                    .send_eager(am, tag, header, &[&payload], len)
                    .map(|posted| match posted {
                        Posted::Done => PostedBuf::Done(payload),
                        Posted::Busy => PostedBuf::Busy(payload),
                    })
            }
            false => channel
                .send_large(am, tag, header, payload, context)
                .map(|sent| match sent {
                    Ok(()) => PostedBuf::Pending,
                    Err(payload) => PostedBuf::Busy(payload),
                }),
        };
        match posted {
            Ok(posted) => {
                if let PostedBuf::Pending = posted {
                    self.lane_open(to.slot);
                    self.activate(to.slot);
                }
                Ok(posted)
            }
            Err(fault) => {
                self.channel_fault(to.slot, fault);
                Err(SendError::NotOpen)
            }
        }
    }

    /// Accepts a large message that was parked.
    ///
    /// # Errors
    /// It is gone, or the buffer has another length.
    pub fn accept(&mut self, incoming: IncomingId, into: BufMut) -> Result<(), SendError> {
        let channel = self.channel(incoming.channel).ok_or(SendError::NotOpen)?;
        channel.accept(incoming.transfer, into)?;
        self.activate(incoming.channel.slot);
        Ok(())
    }

    /// Refuses a large message that was parked.
    ///
    /// # Errors
    /// It is gone.
    pub fn refuse(&mut self, incoming: IncomingId, reason: u32) -> Result<(), SendError> {
        let channel = self.channel(incoming.channel).ok_or(SendError::NotOpen)?;
        channel.refuse(incoming.transfer, reason)?;
        self.activate(incoming.channel.slot);
        Ok(())
    }

    /// Closes in good order: what was posted still goes, then the peer sees the end. There is no
    /// [`Handler::on_close`] for it here; what was in flight from the peer is dropped.
    pub fn close(&mut self, channel: ChannelId) {
        if self.channel(channel).is_some() {
            if let Some(channel) = self.channel(channel) {
                channel
                    .closing
                    .get_or_insert(Instant::now() + CLOSE_DEADLINE);
            }
            self.sessions.retain(|_, of| *of != channel);
            self.timed.push(channel.slot);
            self.activate(channel.slot);
            self.close_step(channel);
        } else if let Some(slot) = self.slots.get(channel.slot as usize)
            && slot.generation == channel.generation
        {
            self.slot_free(channel.slot);
        }
    }

    /// What is known of a channel; `None` once it is closed.
    pub fn info(&self, channel: ChannelId) -> Option<&ChannelInfo> {
        match self.slots.get(channel.slot as usize) {
            Some(Slot {
                generation,
                state: State::Open(open),
            }) if *generation == channel.generation => Some(&open.info),
            _ => None,
        }
    }

    /// Opens memory to peers.
    ///
    /// # Errors
    /// The memory again, if no random key can be had.
    pub fn register(&mut self, memory: BufMut, access: Access) -> Result<RemoteKey, BufMut> {
        self.regions.register(memory, access)
    }

    /// Closes memory to peers: the key is void when this returns.
    pub fn deregister(&mut self, key: RemoteKey) -> Option<BufMut> {
        self.regions.deregister(key)
    }

    /// Writes to a peer's memory; [`Handler::on_one_sided`] tells when it is there.
    pub fn put(&mut self, to: ChannelId, key: RemoteKey, offset: u64, bytes: &[u8], context: u64) {
        let outcome = self
            .peer_regions(to)
            .and_then(|regions| regions.put(key, offset, bytes));
        self.one_sided_done(to, context, outcome.map(|()| 0), None);
    }

    /// Writes to a peer's memory and then tells it so, by [`Handler::on_immediate`] there.
    ///
    /// # Errors
    /// The channel is not open.
    pub fn put_immediate(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        bytes: &[u8],
        value: u64,
        context: u64,
    ) -> Result<Posted, SendError> {
        let outcome = self
            .peer_regions(to)
            .and_then(|regions| regions.put(key, offset, bytes));
        if outcome.is_ok() {
            let channel = self.channel(to).ok_or(SendError::NotOpen)?;
            let frame = FrameHeader::new(FrameKind::Immediate)
                .with_id(value)
                .with_aux(bytes.len() as u64);
            match channel.wire.send_frame(&frame, &[], &[]) {
                Ok(Posted::Done) => {}
                Ok(Posted::Busy) => return Ok(Posted::Busy),
                Err(fault) => {
                    self.channel_fault(to.slot, fault);
                    return Err(SendError::NotOpen);
                }
            }
        }
        self.one_sided_done(to, context, outcome.map(|()| 0), None);
        Ok(Posted::Done)
    }

    /// Reads a peer's memory; [`Handler::on_one_sided`] gives the buffer back, filled.
    pub fn get(
        &mut self,
        from: ChannelId,
        key: RemoteKey,
        offset: u64,
        mut into: BufMut,
        context: u64,
    ) {
        let regions = self.peer_regions(from);
        let outcome = regions.and_then(|regions| regions.read(key, offset, &mut into));
        self.one_sided_done(from, context, outcome.map(|()| 0), Some(into));
    }

    /// Adds to a word of a peer's memory, atomically; its old value comes by
    /// [`Handler::on_one_sided`].
    pub fn fetch_add(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        add: u64,
        context: u64,
    ) {
        let outcome = self
            .peer_regions(to)
            .and_then(|regions| regions.atomic(key, offset, |old| old.wrapping_add(add)));
        self.one_sided_done(to, context, outcome, None);
    }

    /// Sets a word of a peer's memory to `new` if it is `expected`, atomically; its old value
    /// comes by [`Handler::on_one_sided`].
    pub fn compare_swap(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        expected: u64,
        new: u64,
        context: u64,
    ) {
        let outcome = self.peer_regions(to).and_then(|regions| {
            regions.atomic(key, offset, |old| if old == expected { new } else { old })
        });
        self.one_sided_done(to, context, outcome, None);
    }
}

/// What handlers do not see.
impl Ops {
    fn local(&self) -> Result<Local, TransportError> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(TransportError::Random)?;
        let caps = match shm::membarrier_registered() {
            true => Capabilities::MEMBARRIER,
            false => Capabilities::default(),
        };
        Ok(Local {
            identity: self.identity.clone(),
            caps,
            nonce,
        })
    }

    fn layout(&self) -> Layout {
        Layout {
            ring_bytes: self.config.shm_ring_bytes,
            bulk_bytes: self.config.shm_bulk_bytes,
        }
    }

    #[inline]
    fn channel(&mut self, id: ChannelId) -> Option<&mut Channel> {
        match self.slots.get_mut(id.slot as usize) {
            Some(Slot {
                generation,
                state: State::Open(channel),
            }) if *generation == id.generation => Some(channel),
            _ => None,
        }
    }

    #[inline]
    fn sendable(&mut self, to: ChannelId, header: &[u8]) -> Result<&mut Channel, SendError> {
        if header.len() > USER_HEADER_MAX_BYTES {
            return Err(SendError::HeaderTooLong(header.len()));
        }
        match self.channel(to) {
            Some(channel) if channel.closing.is_none() && !channel.peer_closed => Ok(channel),
            _ => Err(SendError::NotOpen),
        }
    }

    fn peer_regions(&mut self, of: ChannelId) -> Result<Arc<RegionTable>, OneSidedError> {
        let channel = self.channel(of).ok_or(OneSidedError::Unsupported)?;
        let mut wire = &mut channel.wire;
        if let AnyWire::Fault(fault) = wire {
            wire = fault.inner();
        }
        match wire {
            AnyWire::Mem(mem) => mem.link().peer_regions().ok_or(OneSidedError::Unsupported),
            _ => Err(OneSidedError::Unsupported),
        }
    }

    fn one_sided_done(
        &mut self,
        channel: ChannelId,
        context: u64,
        outcome: Result<u64, OneSidedError>,
        data: Option<BufMut>,
    ) {
        let done = OneSidedDone {
            context,
            outcome,
            data,
        };
        self.pending.push_back(Event::OneSided(channel, done));
    }

    fn slot_take(&mut self, state: State) -> Result<u32, TransportError> {
        if self.open >= self.config.channels_max {
            return Err(TransportError::TooManyChannels(self.config.channels_max));
        }
        self.open += 1;
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize].state = state;
            return Ok(slot);
        }
        self.slots.push(Slot {
            generation: 0,
            state,
        });
        Ok(self.slots.len() as u32 - 1)
    }

    fn slot_free(&mut self, slot: u32) -> State {
        self.active.retain(|active| *active != slot);
        let place = &mut self.slots[slot as usize];
        place.generation = place.generation.wrapping_add(1);
        self.open -= 1;
        self.free.push(slot);
        std::mem::replace(&mut place.state, State::Free)
    }

    fn slot_idle(&self, slot: u32) -> u32 {
        match &self.slots[slot as usize].state {
            State::Open(channel) => channel.idle,
            _ => 0,
        }
    }

    fn activate(&mut self, slot: u32) {
        if let State::Open(channel) = &mut self.slots[slot as usize].state {
            channel.idle = 0;
            if !std::mem::replace(&mut channel.active, true) {
                self.active.push(slot);
            }
        }
    }

    /// An idle channel leaves the active ones, unless there is something after all.
    fn channel_rest(&mut self, slot: u32) {
        let State::Open(channel) = &mut self.slots[slot as usize].state else {
            return;
        };
        channel.idle = 0;
        match channel.wire.arm(channel.want()) {
            // In-process peers have no descriptor to come back by.
            Ok(true) if channel.info.kind != TransportKind::Mem => {
                channel.active = false;
                self.active.retain(|active| *active != slot);
            }
            Ok(_) => {}
            Err(fault) => self.channel_fault(slot, fault),
        }
    }

    /// Arms every active channel; false if one has something to do.
    fn channels_arm(&mut self) -> bool {
        let mut idle = true;
        for at in (0..self.active.len()).rev() {
            let Some(&slot) = self.active.get(at) else {
                continue;
            };
            let State::Open(channel) = &mut self.slots[slot as usize].state else {
                continue;
            };
            match channel.wire.arm(channel.want()) {
                Ok(armed) => idle &= armed,
                Err(fault) => {
                    self.channel_fault(slot, fault);
                    idle = false;
                }
            }
        }
        idle
    }

    fn boot_start(&mut self, boot: Boot) -> Result<ChannelId, TransportError> {
        let slot = self.slot_take(State::Boot(Box::new(boot)))?;
        self.timed.push(slot);
        let id = ChannelId {
            slot,
            generation: self.slots[slot as usize].generation,
        };
        let token = Token((slot as usize) << 2 | TOKEN_CHANNEL);
        if let State::Boot(boot) = &mut self.slots[slot as usize].state {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registered = match &mut boot.stream {
                Stream::Tcp(stream) => self.poll.registry().register(stream, token, interest),
                Stream::Unix(stream) => self.poll.registry().register(stream, token, interest),
                Stream::Mem(_) => Ok(()),
            };
            if let Err(error) = registered {
                self.slot_free(slot);
                return Err(TransportError::Setup(error));
            }
        }
        self.boot_step(slot);
        Ok(id)
    }

    fn descriptor_ready(&mut self, token: Token) {
        if token == TOKEN_WAKER {
            return;
        }
        let (at, what) = (token.0 >> 2, token.0 & 3);
        if what == TOKEN_LISTENER {
            return self.accept_all(at);
        }
        let slot = at as u32;
        match self.slots.get_mut(at).map(|slot| &mut slot.state) {
            Some(State::Boot(_)) => self.boot_step(slot),
            Some(State::Open(channel)) => {
                if let Err(fault) = channel.wire.ready(what == TOKEN_BULK) {
                    return self.channel_fault(slot, fault);
                }
                self.activate(slot);
            }
            Some(State::Linger(..)) => self.linger_step(slot, Instant::now()),
            Some(State::Free) | None => {}
        }
    }

    fn mem_ready(&mut self) {
        for at in 0..self.listeners.len() {
            if let Listening::Mem(_) = self.listeners[at] {
                self.accept_all(at);
            }
        }
    }

    fn accept_all(&mut self, at: usize) {
        loop {
            let stream = match &self.listeners[at] {
                Listening::Mem(listener) => match listener.accept() {
                    Some(link) => {
                        link.adopt(Arc::clone(&self.regions));
                        Ok(Stream::Mem(link))
                    }
                    None => return,
                },
                Listening::Unix(listener) => listener.accept().and_then(|(stream, _)| {
                    peer_user_check(&stream)?;
                    Ok(Stream::Unix(stream))
                }),
                Listening::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                    socket_prepare(&stream, self.config.tcp_dead_after_ms)?;
                    Ok(Stream::Tcp(stream))
                }),
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // One peer's trouble (reset at once, foreign user) is not the listener's.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer");
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                        return;
                    }
                    continue;
                }
            };
            if let Err(error) = self.accept_one(stream) {
                tracing::warn!(%error, "cannot take a peer");
            }
        }
    }

    fn accept_one(&mut self, stream: Stream) -> Result<(), TransportError> {
        let params = match &stream {
            Stream::Unix(_) => shm::layout_encode(self.layout()),
            _ => Vec::new(),
        };
        let machine = HandshakeListener::start(self.local()?, HostId::local(), params);
        let deadline = Instant::now() + Duration::from_millis(self.config.handshake_timeout_ms);
        let machine = Machine::Listener(machine);
        let boot = Boot::new(
            stream,
            machine,
            Vec::new(),
            Vec::new(),
            deadline,
            self.layout(),
        );
        self.boot_start(boot).map(|_| ())
    }

    fn boot_step(&mut self, slot: u32) {
        let State::Boot(boot) = &mut self.slots[slot as usize].state else {
            return;
        };
        match boot.step(self.auth.as_deref()) {
            Booted::Waiting => {}
            Booted::Open(agreed) => {
                if let Err(reason) = self.channel_open(slot, agreed) {
                    self.boot_fail(slot, reason);
                }
            }
            Booted::Bulk(token) => self.lane_attach(slot, token),
            Booted::Refused => self.boot_linger(slot),
            Booted::Failed(error) => {
                let reason = match error {
                    BootError::Handshake(HandshakeError::Refused { reason, text }) => {
                        CloseReason::Refused { reason, text }
                    }
                    BootError::Handshake(HandshakeError::Wire(error)) => {
                        CloseReason::Protocol(error)
                    }
                    BootError::Io(error) => CloseReason::Io(Arc::new(error)),
                };
                self.boot_fail(slot, reason);
            }
        }
    }

    /// Only whoever asked to connect hears that it failed; a stranger's failure is logged.
    fn boot_fail(&mut self, slot: u32, reason: CloseReason) {
        let id = ChannelId {
            slot,
            generation: self.slots[slot as usize].generation,
        };
        match self.slot_free(slot) {
            State::Boot(boot) if matches!(boot.machine, Machine::Listener(_)) => {
                tracing::debug!(%reason, "a peer's handshake failed");
            }
            _ => self.pending.push_back(Event::Closed(id, reason)),
        }
    }

    fn boot_linger(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        if let State::Boot(boot) = std::mem::replace(&mut place.state, State::Free) {
            if let Stream::Tcp(stream) = &boot.stream {
                // The refusal is sent; what is already gone need not be shut down.
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            place.state = State::Linger(boot.stream, Instant::now() + LINGER);
        }
    }

    fn channel_open(&mut self, slot: u32, agreed: Agreed) -> Result<(), CloseReason> {
        let id = ChannelId {
            slot,
            generation: self.slots[slot as usize].generation,
        };
        let place = &mut self.slots[slot as usize];
        let State::Boot(boot) = std::mem::replace(&mut place.state, State::Free) else {
            return Ok(());
        };
        let dialled = matches!(boot.machine, Machine::Dialler(_));
        let boot = *boot;
        let (kind, eager_max, wire) = match boot.stream {
            Stream::Mem(link) => {
                let eager_max = self.config.shm_eager_max_bytes;
                (
                    TransportKind::Mem,
                    eager_max,
                    AnyWire::Mem(MemWire::new(link, eager_max)),
                )
            }
            Stream::Tcp(stream) => {
                let eager_max = self.config.tcp_eager_max_bytes;
                let wire = TcpWire::new(stream, EAGER_WIRE_MAX, &boot.received, &mut self.rx);
                (TransportKind::Tcp, eager_max, AnyWire::Tcp(wire))
            }
            Stream::Unix(stream) => {
                let io = |error| CloseReason::Io(Arc::new(error));
                let mut descriptors = boot.descriptors.into_iter();
                let missing = || io(io::Error::other("the peer sent no descriptors"));
                let (memory, layout) = match boot.memory {
                    Some(memory) => (memory, self.layout()),
                    None => {
                        let layout =
                            shm::layout_decode(&agreed.params).map_err(CloseReason::Protocol)?;
                        let segment = descriptors.next().ok_or_else(missing)?;
                        (ShmMemory::open(segment, layout).map_err(io)?, layout)
                    }
                };
                let life = descriptors.next().ok_or_else(missing)?;
                let barrier = agreed.caps.contains(Capabilities::MEMBARRIER);
                let wire = ShmWire::new(stream, life, memory, dialled, barrier).map_err(io)?;
                let eager_max = self
                    .config
                    .shm_eager_max_bytes
                    .min(layout.ring_bytes / 2 - 256);
                (TransportKind::Shm, eager_max, AnyWire::Shm(wire))
            }
        };
        let wire = match &self.config.fault {
            Some(plan) => AnyWire::Fault(Box::new(FaultWire::new(wire, plan.clone(), slot.into()))),
            None => wire,
        };
        let info = ChannelInfo {
            peer: agreed.peer,
            kind,
            dialled,
            eager_max,
        };
        self.incarnations_check(id, &info)?;
        let max = self.config.transfers_inflight_max;
        let channel = Channel::new(wire, info, agreed.session, boot.lane_to, max);
        self.slots[slot as usize].state = State::Open(Box::new(channel));
        if kind == TransportKind::Tcp && !dialled {
            self.sessions.insert(agreed.session, id);
        }
        self.activate(slot);
        self.pending.push_back(Event::Open(id));
        Ok(())
    }

    /// A newer incarnation of a process closes the channels of the older; an older is refused.
    fn incarnations_check(
        &mut self,
        new: ChannelId,
        info: &ChannelInfo,
    ) -> Result<(), CloseReason> {
        let peer = &info.peer;
        if peer.incarnation.0 == 0 || peer.name.is_empty() {
            return Ok(());
        }
        let mut older = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            let State::Open(other) = &slot.state else {
                continue;
            };
            let other = &other.info.peer;
            if at as u32 == new.slot
                || other.name != peer.name
                || other.application != peer.application
                || other.role == Some(Role::Client)
            {
                continue;
            }
            if other.incarnation > peer.incarnation {
                return Err(CloseReason::Refused {
                    reason: RefuseReason::Superseded,
                    text: format!(
                        "{} is connected as incarnation {}",
                        peer.name, other.incarnation
                    ),
                });
            }
            if other.incarnation < peer.incarnation {
                older.push(at as u32);
            }
        }
        for slot in older {
            self.channel_end(slot, Some(CloseReason::Superseded));
        }
        Ok(())
    }

    /// Opens the bulk lane of a TCP channel that we dialled, once large messages are wanted.
    fn lane_open(&mut self, slot: u32) {
        let State::Open(channel) = &mut self.slots[slot as usize].state else {
            return;
        };
        if !channel.lane_wanted() {
            return;
        }
        let Some(to) = channel.lane_to.take() else {
            return;
        };
        let token = Token((slot as usize) << 2 | TOKEN_BULK);
        let opened = lane_connect(to, &channel.session, self.config.tcp_dead_after_ms);
        let opened = opened.and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut stream, token, interest)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                if let Some(tcp) = tcp_wire(&mut channel.wire) {
                    tcp.bulk_attach(stream, Vec::new());
                }
            }
            Err(error) => self.channel_fault(slot, WireFault::Io(error)),
        }
    }

    /// A second socket shows the session of a channel: it becomes its bulk lane.
    fn lane_attach(&mut self, slot: u32, session: [u8; 16]) {
        let State::Boot(boot) = self.slot_free(slot) else {
            return;
        };
        let Stream::Tcp(mut stream) = boot.stream else {
            return;
        };
        let Some(channel) = self.sessions.remove(&session) else {
            tracing::debug!("a bulk lane names no channel");
            return;
        };
        let token = Token((channel.slot as usize) << 2 | TOKEN_BULK);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self
            .poll
            .registry()
            .reregister(&mut stream, token, interest)
        {
            return self.channel_fault(channel.slot, WireFault::Io(error));
        }
        if let Some(open) = self.channel(channel)
            && let Some(tcp) = tcp_wire(&mut open.wire)
        {
            tcp.bulk_attach(stream, boot.received);
        }
        self.activate(channel.slot);
    }

    fn control_frame(&mut self, id: ChannelId, kind: FrameKind, header: &FrameHeader) {
        let Some(channel) = self.channel(id) else {
            return;
        };
        match channel.control_frame(kind, header) {
            Ok(Some(done)) => self.pending.push_back(Event::Sent(id, done, true)),
            Ok(None) if channel.peer_closed => {
                self.channel_end(id.slot, Some(CloseReason::Closed));
            }
            Ok(None) => {}
            Err(error) => self.channel_fault(id.slot, error.into()),
        }
    }

    fn channel_fault(&mut self, slot: u32, fault: WireFault) {
        let reason = match fault {
            WireFault::Dead => CloseReason::PeerDied,
            WireFault::Protocol(error) => {
                tracing::warn!(%error, "closing a channel: protocol violation");
                CloseReason::Protocol(error)
            }
            WireFault::Io(error) => CloseReason::Io(Arc::new(error)),
        };
        self.channel_end(slot, Some(reason));
    }

    /// Ends a channel: what is in flight completes with an error, then the end is told.
    fn channel_end(&mut self, slot: u32, reason: Option<CloseReason>) {
        let id = ChannelId {
            slot,
            generation: self.slots[slot as usize].generation,
        };
        let State::Open(channel) = &mut self.slots[slot as usize].state else {
            return;
        };
        let closing = channel.closing.is_some();
        for done in channel.out_drain() {
            self.pending.push_back(Event::Sent(id, done, false));
        }
        self.sessions.retain(|_, of| *of != id);
        let state = self.slot_free(slot);
        if let (State::Open(mut channel), Some(CloseReason::Closed)) = (state, &reason) {
            channel.wire.shutdown();
        }
        if let Some(reason) = reason
            && !closing
        {
            self.pending.push_back(Event::Closed(id, reason));
        }
    }

    /// Takes a closing channel as far as it goes.
    fn close_step(&mut self, id: ChannelId) {
        let Some(channel) = self.channel(id) else {
            return;
        };
        if channel.closing.is_none() {
            return;
        }
        match channel.close_advance() {
            Ok(false) => {}
            Err(_) => self.channel_end(id.slot, None),
            Ok(true) => {
                let State::Open(channel) = self.slot_free(id.slot) else {
                    return;
                };
                let mut wire = channel.wire;
                wire.shutdown();
                if let AnyWire::Fault(fault) = wire {
                    wire = fault.into_inner();
                }
                if let AnyWire::Tcp(tcp) = wire {
                    self.linger(tcp.into_stream());
                }
            }
        }
    }

    /// Keeps a socket until the peer hangs up, so that unread bytes do not reset it.
    fn linger(&mut self, mut stream: TcpStream) {
        let until = Instant::now() + LINGER;
        let Ok(slot) = self.slot_take(State::Free) else {
            return;
        };
        let token = Token((slot as usize) << 2 | TOKEN_CHANNEL);
        if self
            .poll
            .registry()
            .reregister(&mut stream, token, Interest::READABLE)
            .is_err()
        {
            self.slot_free(slot);
            return;
        }
        self.slots[slot as usize].state = State::Linger(Stream::Tcp(stream), until);
        self.timed.push(slot);
        self.linger_step(slot, Instant::now());
    }

    fn linger_step(&mut self, slot: u32, now: Instant) {
        let State::Linger(stream, until) = &mut self.slots[slot as usize].state else {
            return;
        };
        let mut bytes = [0; 4096];
        let mut descriptors = Vec::new();
        let over = now >= *until
            || loop {
                match stream.read(&mut bytes, &mut descriptors) {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                    Err(_) => break true,
                }
            };
        if over {
            self.slot_free(slot);
        }
    }

    fn timed_next(&self) -> Option<Instant> {
        let deadline = |slot: &u32| match &self.slots[*slot as usize].state {
            State::Boot(boot) => Some(boot.deadline),
            State::Linger(_, until) => Some(*until),
            State::Open(channel) => channel.closing,
            State::Free => None,
        };
        self.timed.iter().filter_map(deadline).min()
    }

    /// Handshakes, lingering and closing channels: goes on with them, ends those out of time.
    fn timed_step(&mut self) {
        if self.timed.is_empty() {
            return;
        }
        let now = Instant::now();
        for slot in self.timed.clone() {
            let id = ChannelId {
                slot,
                generation: self.slots[slot as usize].generation,
            };
            match &self.slots[slot as usize].state {
                State::Boot(boot) if now >= boot.deadline => {
                    self.boot_fail(slot, CloseReason::Timeout);
                }
                State::Boot(_) => self.boot_step(slot),
                State::Linger(..) => self.linger_step(slot, now),
                State::Open(channel) => match channel.closing {
                    Some(deadline) if now >= deadline => self.channel_end(slot, None),
                    Some(_) => self.close_step(id),
                    None => {}
                },
                State::Free => {}
            }
        }
        let slots = &self.slots;
        self.timed
            .retain(|slot| match &slots[*slot as usize].state {
                State::Boot(_) | State::Linger(..) => true,
                State::Open(channel) => channel.closing.is_some(),
                State::Free => false,
            });
        self.timed.sort_unstable();
        self.timed.dedup();
    }
}

/// The largest eager payload that a receiver takes, whatever the sender's setting is.
const EAGER_WIRE_MAX: usize = RX_BYTES - 1024;

fn tcp_wire(wire: &mut AnyWire) -> Option<&mut TcpWire> {
    match wire {
        AnyWire::Tcp(tcp) => Some(tcp),
        AnyWire::Fault(fault) => match fault.inner() {
            AnyWire::Tcp(tcp) => Some(tcp),
            _ => None,
        },
        _ => None,
    }
}

fn lane_connect(
    to: std::net::SocketAddr,
    session: &[u8; 16],
    dead_after_ms: u32,
) -> io::Result<TcpStream> {
    // The greeting must be the first bytes, so this connects before it goes on. Peers of a large
    // message are near; a host that is gone has ended the channel's first socket, too.
    let stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    io::Write::write_all(&mut &stream, &bulk_hello(session))?;
    stream.set_nonblocking(true)?;
    let stream = TcpStream::from_std(stream);
    socket_prepare(&stream, dead_after_ms)?;
    Ok(stream)
}

fn abstract_address(name: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    std::os::unix::net::SocketAddr::from_abstract_name(name)
}

/// A shared-memory peer belongs to the same user, or to root.
fn peer_user_check(stream: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?.uid;
    let own = rustix::process::geteuid();
    if peer == own || peer.is_root() || own.is_root() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "peer belongs to user {}, not {}",
            peer.as_raw(),
            own.as_raw()
        ),
    ))
}
