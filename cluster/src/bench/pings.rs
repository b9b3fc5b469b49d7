//! The two sides of each ping-pong: who sends and waits, and who answers.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client, FunctionRef};
use praas_runtime::invocation::Payload;
use praas_transport::bare::Bare;
use praas_transport::{
    Buf, ChannelId, ChannelInfo, CloseReason, Disposition, Endpoint, Flow, Handler, Incoming,
    LargeMessage, Message, Ops, Posted, PostedBuf, SendFailure, TransportKind, WaitMode,
};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

use super::{BenchError, What};

/// How long one side waits for the other before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Fruitless looks at the flag between two looks at the clock, and turns given to others: more
/// than a large message takes while both sides have a CPU.
const LOOKS: u32 = 1 << 16;
/// The same for a socket, where every look is a system call.
const CALLS: u32 = 1 << 10;

const AM: u8 = 1;
const GO_ON: u64 = 0;
const LAST: u64 = 1;

/// A wait that ends, and that lets others have the CPU if it takes long.
struct Wait {
    count: u32,
    every: u32,
    until: Option<Instant>,
}

impl Wait {
    fn new(every: u32) -> Self {
        Self {
            count: 0,
            every,
            until: None,
        }
    }

    #[inline]
    fn turn(&mut self) -> Result<(), BenchError> {
        self.count += 1;
        match self.count < self.every {
            true => Ok(()),
            false => self.look(),
        }
    }

    #[cold]
    fn look(&mut self) -> Result<(), BenchError> {
        self.count = 0;
        let now = Instant::now();
        if now > *self.until.get_or_insert(now + PATIENCE) {
            return Err(BenchError::Peer("does not answer".into()));
        }
        std::thread::yield_now();
        Ok(())
    }
}

#[inline]
fn bare_wait(bare: &mut Bare, bytes: usize) -> Result<bool, BenchError> {
    let mut wait = Wait::new(LOOKS);
    loop {
        if let Some(last) = bare.receive(bytes) {
            return Ok(last);
        }
        wait.turn()?;
    }
}

/// A round trip of the raw flag.
#[inline]
pub(super) fn bare_ping(bare: &mut Bare, bytes: usize, last: bool) -> Result<(), BenchError> {
    bare.send(bytes, last);
    bare_wait(bare, bytes).map(drop)
}

/// Answers until the other side says that it was the last.
pub(super) fn bare_serve(bare: &mut Bare, bytes: usize) -> Result<(), BenchError> {
    loop {
        let last = bare_wait(bare, bytes)?;
        bare.send(bytes, last);
        if last {
            return Ok(());
        }
    }
}

/// Where a raw socket listens.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum RawPlace {
    Tcp(std::net::SocketAddr),
    /// An abstract name.
    Unix(String),
}

/// A raw socket that waits for its one peer.
pub(super) enum RawListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl RawListener {
    /// Listens, if the floor of this transport is a socket.
    pub(super) fn listen(transport: TransportKind) -> io::Result<Option<(Self, RawPlace)>> {
        match transport {
            TransportKind::Tcp => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                let place = RawPlace::Tcp(listener.local_addr()?);
                Ok(Some((Self::Tcp(listener), place)))
            }
            TransportKind::Unix => {
                let name = format!("praas-bench-{:016x}", fastrand::u64(..));
                let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
                Ok(Some((Self::Unix(listener), RawPlace::Unix(name))))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn accept(&self, bytes_max: usize) -> io::Result<Raw> {
        match self {
            Self::Tcp(listener) => Raw::tcp(listener.accept()?.0, bytes_max),
            Self::Unix(listener) => Raw::unix(listener.accept()?.0, bytes_max),
        }
    }
}

/// A raw socket that spins, and memory for what goes over it.
pub(super) struct Raw {
    stream: OwnedFd,
    memory: Vec<u8>,
}

impl Raw {
    /// Connects to a peer's.
    pub(super) fn connect(to: &RawPlace, bytes_max: usize) -> io::Result<Self> {
        match to {
            RawPlace::Tcp(at) => Self::tcp(TcpStream::connect(at)?, bytes_max),
            RawPlace::Unix(name) => {
                let at = SocketAddr::from_abstract_name(name)?;
                Self::unix(UnixStream::connect_addr(&at)?, bytes_max)
            }
        }
    }

    fn tcp(stream: TcpStream, bytes_max: usize) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self::new(stream.into(), bytes_max))
    }

    fn unix(stream: UnixStream, bytes_max: usize) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::new(stream.into(), bytes_max))
    }

    fn new(stream: OwnedFd, bytes_max: usize) -> Self {
        Self {
            stream,
            memory: vec![0; bytes_max],
        }
    }

    /// Does `step` until `bytes` bytes are through.
    #[inline]
    fn all(
        &mut self,
        bytes: usize,
        step: impl Fn(&OwnedFd, &mut [u8]) -> rustix::io::Result<usize>,
    ) -> Result<(), BenchError> {
        let (mut done, mut wait) = (0, Wait::new(CALLS));
        while done < bytes {
            match step(&self.stream, &mut self.memory[done..bytes]) {
                Ok(0) => return Err(BenchError::Peer("has ended".into())),
                Ok(count) => done += count,
                Err(Errno::WOULDBLOCK) => wait.turn()?,
                Err(error) => return Err(BenchError::system("use the raw socket")(error.into())),
            }
        }
        Ok(())
    }

    fn send(&mut self, bytes: usize) -> Result<(), BenchError> {
        self.all(bytes, |stream, memory| {
            send(stream, memory, SendFlags::NOSIGNAL)
        })
    }

    fn receive(&mut self, bytes: usize) -> Result<(), BenchError> {
        self.all(bytes, |stream, memory| {
            recv(stream, memory, RecvFlags::empty()).map(|(count, _)| count)
        })
    }

    /// A round trip.
    pub(super) fn ping(&mut self, bytes: usize, last: bool) -> Result<(), BenchError> {
        self.memory[0] = u8::from(last);
        self.send(bytes)?;
        self.receive(bytes)
    }

    /// Answers until the other side says that it was the last.
    pub(super) fn serve(&mut self, bytes: usize) -> Result<(), BenchError> {
        loop {
            self.receive(bytes)?;
            self.send(bytes)?;
            if self.memory[0] != 0 {
                return Ok(());
            }
        }
    }
}

/// One side of a bare channel.
pub(super) struct Channel {
    pub(super) endpoint: Endpoint,
    mail: Mail,
    payload: Buf,
}

/// What came over the channel, and what is to go out.
#[derive(Default)]
struct Mail {
    channel: Option<ChannelId>,
    /// Answers what comes with the same.
    echoes: bool,
    got: bool,
    last: bool,
    unsent: Option<(u64, Buf)>,
    /// Large messages of ours that are under way.
    pending: usize,
    ended: Option<String>,
}

impl Channel {
    pub(super) fn new(endpoint: Endpoint, echoes: bool) -> Self {
        let mail = Mail {
            echoes,
            ..Mail::default()
        };
        Self {
            endpoint,
            mail,
            payload: Buf::default(),
        }
    }

    /// Waits until the channel is open.
    pub(super) fn open_wait(&mut self) -> Result<(), BenchError> {
        self.until(|mail| mail.channel.is_some(), WaitMode::Warm)
    }

    /// Makes progress until it is so.
    #[inline]
    fn until(&mut self, so: impl Fn(&Mail) -> bool, mode: WaitMode) -> Result<(), BenchError> {
        let mut until = None;
        while !so(&self.mail) {
            // The clock is read only once something else than the answer has happened.
            let happened = self.endpoint.progress_wait(&mut self.mail, until, mode);
            if so(&self.mail) {
                return Ok(());
            }
            if let Some(reason) = &self.mail.ended {
                return Err(BenchError::Peer(format!(
                    "has closed the channel: {reason}"
                )));
            }
            let now = Instant::now();
            if happened == 0 && until.is_some_and(|until| until <= now) {
                return Err(BenchError::Peer("does not answer".into()));
            }
            until = Some(now + PATIENCE);
        }
        Ok(())
    }

    /// What the pings to come carry.
    pub(super) fn payload_set(&mut self, bytes: usize) {
        self.payload = Buf::from_vec(vec![1; bytes]);
    }

    /// A round trip.
    #[inline]
    pub(super) fn ping(&mut self, last: bool) -> Result<(), BenchError> {
        self.mail.got = false;
        let Some(channel) = self.mail.channel else {
            return Err(BenchError::Peer("has no channel".into()));
        };
        let tag = if last { LAST } else { GO_ON };
        let bytes = self.payload.len();
        let send = |source| BenchError::Send { bytes, source };
        if bytes <= self.endpoint.eager_max(channel) {
            match self.endpoint.send(channel, AM, tag, &[], &[&self.payload]) {
                Ok(Posted::Done) => {}
                Ok(Posted::Busy) => self.mail.unsent = Some((tag, self.payload.clone())),
                Err(error) => return Err(send(error)),
            }
        } else {
            let payload = self.payload.clone();
            let posted = self.endpoint.send_buf(channel, AM, tag, &[], payload, 0);
            self.mail.posted(tag, posted.map_err(send)?);
        }
        self.until(|mail| mail.got, WaitMode::Hot)
    }

    /// Answers until the other side says that it was the last.
    pub(super) fn serve(&mut self) -> Result<(), BenchError> {
        self.mail.last = false;
        let over = |mail: &Mail| mail.last && mail.unsent.is_none() && mail.pending == 0;
        self.until(over, WaitMode::Hot)
    }
}

impl Mail {
    fn posted(&mut self, tag: u64, posted: PostedBuf) {
        match posted {
            PostedBuf::Done(_) => {}
            PostedBuf::Pending => self.pending += 1,
            PostedBuf::Busy(payload) => self.unsent = Some((tag, payload)),
        }
    }

    fn send_buf(&mut self, ops: &mut Ops, channel: ChannelId, tag: u64, payload: Buf) {
        match ops.send_buf(channel, AM, tag, &[], payload, 0) {
            Ok(posted) => self.posted(tag, posted),
            Err(error) => self.ended = Some(error.to_string()),
        }
    }
}

impl Handler for Mail {
    fn on_open(&mut self, _: &mut Ops, channel: ChannelId, _: &ChannelInfo) -> Flow {
        self.channel = Some(channel);
        Flow::Stop
    }

    #[inline]
    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        (self.got, self.last) = (true, message.tag == LAST);
        if self.echoes {
            match ops.send(channel, AM, message.tag, &[], &[message.payload]) {
                Ok(Posted::Done) => {}
                Ok(Posted::Busy) => {
                    let payload = Buf::from_vec(message.payload.to_vec());
                    self.unsent = Some((message.tag, payload));
                }
                Err(error) => self.ended = Some(error.to_string()),
            }
        }
        Flow::Stop
    }

    fn on_incoming(&mut self, ops: &mut Ops, _: ChannelId, incoming: Incoming<'_>) -> Disposition {
        match usize::try_from(incoming.len).map(|len| ops.pool().alloc(len)) {
            Ok(Ok(into)) => Disposition::Accept(into),
            _ => Disposition::Refuse(1),
        }
    }

    fn on_large(&mut self, ops: &mut Ops, channel: ChannelId, message: LargeMessage) -> Flow {
        (self.got, self.last) = (true, message.tag == LAST);
        if self.echoes {
            self.send_buf(ops, channel, message.tag, message.payload);
        }
        Flow::Stop
    }

    fn on_sent(
        &mut self,
        _: &mut Ops,
        _: ChannelId,
        _: u64,
        _: Buf,
        outcome: Result<(), SendFailure>,
    ) -> Flow {
        self.pending -= 1;
        if let Err(error) = outcome {
            self.ended = Some(error.to_string());
        }
        Flow::Continue
    }

    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        if let Some((tag, payload)) = self.unsent.take() {
            self.send_buf(ops, channel, tag, payload);
        }
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, reason: CloseReason) -> Flow {
        self.ended = Some(reason.to_string());
        Flow::Stop
    }
}

/// The caller's side of invocations.
pub(super) struct Caller {
    client: Client,
    serve: FunctionRef,
    noop: FunctionRef,
    exchange: FunctionRef,
    payload: Payload,
}

/// Up to this many bytes of input an invocation returns nothing.
pub(super) const NOOP_BYTES_MAX: usize = 8;

impl Caller {
    pub(super) fn new(mut client: Client) -> Result<Self, BenchError> {
        let mut function = |name: &'static str| {
            let error = |source| BenchError::Invoke {
                function: name,
                source,
            };
            client.function(super::peer::PROCESS, name).map_err(error)
        };
        Ok(Self {
            serve: function(super::peer::SERVE)?,
            noop: function(super::peer::NOOP)?,
            exchange: function(super::peer::EXCHANGE)?,
            payload: Payload::default(),
            client,
        })
    }

    /// What the calls to come carry.
    pub(super) fn payload_set(&mut self, bytes: usize) -> Result<(), BenchError> {
        let copied = Payload::copy_from(&vec![1; bytes], self.client.pool());
        self.payload = copied.map_err(|error| BenchError::Peer(error.to_string()))?;
        Ok(())
    }

    /// One invocation.
    #[inline]
    pub(super) fn call(&mut self) -> Result<(), BenchError> {
        let (function, name) = match self.payload.len() <= NOOP_BYTES_MAX {
            true => (self.noop, super::peer::NOOP),
            false => (self.exchange, super::peer::EXCHANGE),
        };
        let (payload, options) = (self.payload.clone(), CallOptions::default());
        let call = self.client.submit_payload(function, payload, options);
        match call.and_then(|call| self.client.wait(call)) {
            Ok(_) => Ok(()),
            Err(source) => Err(BenchError::Invoke {
                function: name,
                source,
            }),
        }
    }

    /// Does something while the peer answers the floor's or the channel's pings.
    pub(super) fn served<R>(
        &mut self,
        what: What,
        bytes: usize,
        body: impl FnOnce() -> Result<R, BenchError>,
    ) -> Result<R, BenchError> {
        let error = |source| BenchError::Invoke {
            function: super::peer::SERVE,
            source,
        };
        let input = super::peer::serve_input(what, bytes);
        let options = CallOptions::default();
        let call = self.client.submit(self.serve, &input, options);
        let call = call.map_err(error)?;
        let done = body()?;
        self.client.wait(call).map_err(error)?;
        Ok(done)
    }
}
