//! Both ends of the connections: one opens, sends and closes, the other echoes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_transport::sync::atomic::{AtomicBool, Ordering};
use praas_transport::wire::Incarnation;
use praas_transport::{
    Address, Buf, ChannelId, ChannelInfo, CloseReason, Credential, Dial, Disposition, Endpoint,
    Flow, Handler, Identity, Incoming, Keyring, LargeMessage, Listen, Message, Ops, Posted,
    PostedBuf, Role, Secret, SendFailure, Ticket, TransportConfig, TransportKind, UnixPlace,
    WaitMode,
};

use crate::memory;

const APPLICATION: &str = "connections";
const AM: u8 = 1;
const MESSAGE: [u8; 8] = [1; 8];
/// How long a wait lasts before it is looked whether all is well.
const WAIT: Duration = Duration::from_millis(5);

fn error(what: impl std::fmt::Display) -> String {
    what.to_string()
}

fn endpoint(config: TransportConfig, keyring: Option<Arc<Keyring>>) -> Result<Endpoint, String> {
    let identity = Identity {
        application: APPLICATION.into(),
        name: "".into(),
        incarnation: Incarnation(0),
        client_id: u128::from(std::process::id()) + 1,
    };
    let auth = keyring.map(|ring| ring as Arc<dyn praas_transport::Authenticator>);
    Endpoint::new(config, identity, auth).map_err(error)
}

/// The default settings, with room for the connections.
fn config(connections: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.channels_max = config.channels_max.max(connections as usize + 16);
    config
}

fn listener(
    transport: TransportKind,
    secret: &Secret,
    connections: u32,
) -> Result<(Endpoint, Address), String> {
    let ring = Keyring::new();
    ring.insert(APPLICATION, 1, secret.clone());
    let mut endpoint = endpoint(config(connections), Some(Arc::new(ring)))?;
    let listen = match transport {
        TransportKind::Mem => Listen::Mem(APPLICATION.into()),
        TransportKind::Shm => Listen::Shm { name: None },
        TransportKind::Unix => Listen::Unix(UnixPlace::Abstract(None)),
        TransportKind::Verbs => Listen::Verbs(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
        TransportKind::Tcp => Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
    };
    let address = endpoint.listen(&listen).map_err(error)?;
    Ok((endpoint, address))
}

/// Counts what comes; the listening side sends it back.
#[derive(Default)]
struct End {
    echoes: bool,
    opened: u64,
    messages: u64,
    large: u64,
    closed: u64,
    /// Large answers that found no room.
    unsent: VecDeque<(ChannelId, Buf)>,
    failure: Option<String>,
}

impl End {
    fn fail(&mut self, why: impl std::fmt::Display) {
        self.failure.get_or_insert_with(|| why.to_string());
    }

    fn send_large(&mut self, ops: &mut Ops, to: ChannelId, payload: Buf) {
        match ops.send_buf(to, AM, 0, &[], payload, 0) {
            Ok(PostedBuf::Done(_) | PostedBuf::Pending) => {}
            Ok(PostedBuf::Busy(payload)) => self.unsent.push_back((to, payload)),
            Err(why) => self.fail(why),
        }
    }
}

impl Handler for End {
    fn on_open(&mut self, _: &mut Ops, _: ChannelId, _: &ChannelInfo) -> Flow {
        self.opened += 1;
        Flow::Continue
    }

    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        self.messages += 1;
        if self.echoes {
            match ops.send(channel, AM, 0, &[], &[message.payload]) {
                Ok(Posted::Done) => {}
                Ok(Posted::Busy) => {
                    let payload = Buf::from_vec(message.payload.to_vec());
                    self.unsent.push_back((channel, payload));
                }
                Err(why) => self.fail(why),
            }
        }
        Flow::Continue
    }

    fn on_incoming(&mut self, ops: &mut Ops, _: ChannelId, incoming: Incoming<'_>) -> Disposition {
        match usize::try_from(incoming.len).map(|len| ops.pool().alloc(len)) {
            Ok(Ok(into)) => Disposition::Accept(into),
            _ => Disposition::Refuse(1),
        }
    }

    fn on_large(&mut self, ops: &mut Ops, channel: ChannelId, message: LargeMessage) -> Flow {
        self.large += 1;
        if self.echoes {
            self.send_large(ops, channel, message.payload);
        }
        Flow::Continue
    }

    fn on_sent(
        &mut self,
        _: &mut Ops,
        _: ChannelId,
        _: u64,
        _: Buf,
        outcome: Result<(), SendFailure>,
    ) -> Flow {
        if let Err(why) = outcome {
            self.fail(why);
        }
        Flow::Continue
    }

    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        for _ in 0..self.unsent.len() {
            match self.unsent.pop_front() {
                Some((to, payload)) if to == channel => self.send_large(ops, to, payload),
                Some(other) => self.unsent.push_back(other),
                None => break,
            }
        }
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, reason: CloseReason) -> Flow {
        self.closed += 1;
        if !matches!(reason, CloseReason::Closed) {
            self.fail(reason);
        }
        Flow::Continue
    }
}

/// The listening side.
pub struct Server {
    address: Address,
    secret: Secret,
    place: Place,
    /// Descriptors of the other process without connections.
    descriptors: u64,
}

/// So many descriptors more may stay open for all connections together.
const DESCRIPTORS_SLACK: u64 = 8;

enum Place {
    /// Another process, which ends with this.
    Process {
        child: Child,
        /// It ends when this is closed.
        _input: ChildStdin,
    },
    Here(Box<(Endpoint, End)>),
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Place::Process { child, .. } = &mut self.place {
            // It may have ended by itself, which is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    /// Starts it: in another process, if the transport leaves this one.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start(transport: TransportKind, connections: u32) -> Result<Self, String> {
        let secret_bytes = secret_new()?;
        let secret = Secret::from_bytes(secret_bytes);
        if transport == TransportKind::Mem {
            let (endpoint, address) = listener(transport, &secret, connections)?;
            let end = End {
                echoes: true,
                ..End::default()
            };
            let place = Place::Here(Box::new((endpoint, end)));
            return Ok(Self {
                address,
                secret,
                place,
                descriptors: 0,
            });
        }
        let mut child = Command::new("/proc/self/exe")
            .args(["--serve", transport.name()])
            .args(["--connections", &connections.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(error)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (mut input, output) = input.zip(output).ok_or("the other process has no pipes")?;
        let mut line = String::new();
        let told = writeln!(input, "{}", hex(&secret_bytes))
            .and_then(|()| BufReader::new(output).read_line(&mut line));
        let address = told
            .map_err(error)
            .and_then(|_| line.trim().parse().map_err(error));
        let mut server = Self {
            address: Address::Mem(String::new()),
            secret,
            place: Place::Process {
                child,
                _input: input,
            },
            descriptors: 0,
        };
        server.address = address.map_err(|why| format!("the other process: {why}"))?;
        server.descriptors = server.descriptors_count();
        Ok(server)
    }

    /// The processes to look at: this one, and the server's if it has its own.
    pub fn pids(&self) -> Vec<u32> {
        let own = std::process::id();
        match &self.place {
            Place::Process { child, .. } => vec![own, child.id()],
            Place::Here(..) => vec![own],
        }
    }

    fn descriptors_count(&self) -> u64 {
        match &self.place {
            // A process that has ended has none; `round` tells that it has.
            Place::Process { child, .. } => memory::descriptors(child.id()).unwrap_or(0),
            Place::Here(_) => 0,
        }
    }

    /// Whether it has noticed that all connections are closed.
    fn idle(&self) -> bool {
        match &self.place {
            Place::Process { .. } => {
                self.descriptors_count() <= self.descriptors + DESCRIPTORS_SLACK
            }
            Place::Here(here) => here.1.opened == here.1.closed,
        }
    }

    fn round(&mut self) -> Result<(), String> {
        match &mut self.place {
            Place::Process { child, .. } => match child.try_wait().map_err(error)? {
                Some(status) => Err(format!("the other process ended: {status}")),
                None => Ok(()),
            },
            Place::Here(here) => {
                let (endpoint, end) = &mut **here;
                endpoint.progress(end);
                end.failure.take().map_or(Ok(()), Err)
            }
        }
    }
}

fn secret_new() -> Result<[u8; 32], String> {
    let mut bytes = [0; 32];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    match filled.map_err(error)? {
        32 => Ok(bytes),
        _ => Err("the kernel has too little randomness".into()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Text grows; that cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// What the other process does: echoes until its input ends.
///
/// # Errors
/// It cannot listen, or a channel fails.
pub fn serve(transport: TransportKind, connections: u32) -> Result<(), String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(error)?;
    let secret = unhex(line.trim()).ok_or("there is no secret on standard input")?;
    let (mut endpoint, address) = listener(transport, &Secret::from_bytes(secret), connections)?;
    let mut out = std::io::stdout();
    writeln!(out, "{address}")
        .and_then(|()| out.flush())
        .map_err(error)?;
    let (ended, waker) = (Arc::new(AtomicBool::new(false)), endpoint.waker());
    let told = ended.clone();
    std::thread::spawn(move || {
        // Whatever comes, and the hang-up, is the end.
        let _ = std::io::stdin().read_line(&mut String::new());
        told.store(true, Ordering::Release);
        waker.wake();
    });
    let mut end = End {
        echoes: true,
        ..End::default()
    };
    while !ended.load(Ordering::Acquire) {
        endpoint.progress_wait(&mut end, None, WaitMode::Adaptive);
        if let Some(why) = end.failure.take() {
            return Err(why);
        }
    }
    Ok(())
}

/// The side that opens connections, sends, and closes them.
pub struct Client {
    endpoint: Endpoint,
    end: End,
    server: Server,
    channels: Vec<ChannelId>,
    patience: Duration,
    /// How many of this side's handshakes go on at a time.
    opening_max: u64,
}

impl Client {
    /// One without connections.
    ///
    /// # Errors
    /// The endpoint cannot be made.
    pub fn new(server: Server, connections: u32, patience: Duration) -> Result<Self, String> {
        let config = config(connections);
        let opening_max = (config.handshakes_max / 4).max(1) as u64;
        Ok(Self {
            endpoint: endpoint(config, None)?,
            end: End::default(),
            server,
            channels: Vec::with_capacity(connections as usize),
            patience,
            opening_max,
        })
    }

    /// Goes on for a moment.
    ///
    /// # Errors
    /// A channel failed, or the other side did.
    pub fn round(&mut self) -> Result<(), String> {
        match self.server.place {
            // Nobody else would wake this thread.
            Place::Here(..) => self.endpoint.progress(&mut self.end),
            Place::Process { .. } => {
                let until = Some(Instant::now() + WAIT);
                self.endpoint
                    .progress_wait(&mut self.end, until, WaitMode::Adaptive)
            }
        };
        self.server.round()?;
        self.end.failure.take().map_or(Ok(()), Err)
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let begun = Instant::now();
        while !done(self) {
            if begun.elapsed() > self.patience {
                return Err(format!("{what} took too long"));
            }
            self.round()?;
        }
        Ok(())
    }

    /// Opens so many more connections.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn open(&mut self, count: u32) -> Result<(), String> {
        let ticket = Ticket {
            application: APPLICATION.into(),
            role: Role::Client,
            client_id: 0,
            expires_unix_ms: u64::MAX,
            key_id: 1,
        };
        let credential = Credential::issue(&self.server.secret, &ticket);
        let from = self.end.opened;
        for at in 0..u64::from(count) {
            let dial = Dial {
                credential: credential.clone(),
                expect: Incarnation(0),
                deadline: None,
            };
            let channel = self
                .endpoint
                .connect(&self.server.address, dial)
                .map_err(error)?;
            self.channels.push(channel);
            let open = (at + 1).saturating_sub(self.opening_max);
            self.until("opening", |client| client.end.opened >= from + open)?;
        }
        self.until("opening", |client| {
            client.end.opened >= from + u64::from(count)
        })
    }

    /// Sends so many messages over each connection, one at a time, and waits for their echoes.
    ///
    /// # Errors
    /// A channel failed.
    pub fn exchange(&mut self, messages: u32) -> Result<(), String> {
        for _ in 0..messages {
            for at in 0..self.channels.len() {
                self.message_send(self.channels[at])?;
            }
            let all = self.channels.len() as u64;
            self.until("an echo", |client| client.end.messages >= all)?;
            self.end.messages = 0;
        }
        Ok(())
    }

    fn message_send(&mut self, to: ChannelId) -> Result<(), String> {
        let begun = Instant::now();
        while self
            .endpoint
            .send(to, AM, 0, &[], &[&MESSAGE])
            .map_err(error)?
            == Posted::Busy
        {
            if begun.elapsed() > self.patience {
                return Err("sending took too long".into());
            }
            self.round()?;
        }
        Ok(())
    }

    /// Sends so many large messages over each connection, one at a time, and waits for them to
    /// come back.
    ///
    /// # Errors
    /// A channel failed.
    pub fn large(&mut self, bytes: usize, messages: u32) -> Result<(), String> {
        for _ in 0..messages {
            for at in 0..self.channels.len() {
                let payload = self.endpoint.pool().alloc(bytes).map_err(error)?.freeze();
                self.end
                    .send_large(&mut self.endpoint, self.channels[at], payload);
                self.until("a large echo", |client| client.end.large == 1)?;
                self.end.large = 0;
            }
        }
        Ok(())
    }

    /// Closes all connections, and waits until the other side has noticed.
    ///
    /// # Errors
    /// The other side failed meanwhile.
    pub fn close_all(&mut self) -> Result<(), String> {
        let closing = std::mem::take(&mut self.channels);
        for &channel in &closing {
            self.endpoint.close(channel);
        }
        let here = |client: &Self| closing.iter().all(|id| client.endpoint.info(*id).is_none());
        self.until("closing", here)?;
        self.until("closing at the other side", |client| client.server.idle())
    }
}
