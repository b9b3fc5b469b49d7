//! One suite that holds every backend to the transport's promises.
//!
//! Each promise is a function over [`Backend`]; `tests/conformance.rs` instantiates all of them
//! for each backend by one line. A backend that cannot be had here is skipped with a reason, and
//! `PRAAS_REQUIRE_BACKENDS=shm,tcp` turns that into failure. With `PRAAS_CONFORMANCE_DIR` set, what
//! became of each promise is written there, and the program `conformance-matrix` prints the table.

mod choice;
mod endings;
mod one_sided;
mod promises;
pub mod record;
mod waiting;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_transport::wire::Incarnation;
use praas_transport::{
    Address, Buf, ChannelId, ChannelInfo, CloseReason, Credential, Dial, Disposition, Endpoint,
    Flow, Handler, Identity, Incoming, IncomingId, Keyring, Kinds, LargeMessage, Listen, Message,
    OneSidedDone, Ops, Role, Secret, SendFailure, Ticket, TransportConfig, TransportKind,
    UnixPlace,
};

pub use self::choice::*;
pub use self::endings::*;
pub use self::one_sided::*;
pub use self::promises::*;
use self::record::Outcome;
pub use self::waiting::*;

/// How long anything in this suite may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A backend under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// The transport.
    pub kind: TransportKind,
    /// Whether faults (busy, delay, partial bulk) are injected around it.
    pub faulty: bool,
    /// Whether servers listen over all transports between processes and clients pick; `kind` is
    /// what they are to pick then. With faults there is no memory to share.
    pub any: bool,
}

/// Whether a backend held a promise; what it did not hold has panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It did.
    Yes,
    /// The promise is about something that the backend does not offer, and says so.
    NotOffered(&'static str),
}

impl From<()> for Held {
    fn from((): ()) -> Self {
        Self::Yes
    }
}

/// Holds a backend to a promise, and records what became of it.
///
/// # Panics
/// The promise is broken, or a backend cannot be had here that `PRAAS_REQUIRE_BACKENDS` names.
pub fn hold<H: Into<Held>>(backend: Backend, promise: &str, check: impl FnOnce(Backend) -> H) {
    if let Err(reason) = backend.available() {
        let required = std::env::var("PRAAS_REQUIRE_BACKENDS").unwrap_or_default();
        let name = backend.kinds_name();
        let required = required.split(',').any(|wanted| wanted == name);
        assert!(!required, "{name} is required: {reason}");
        println!("SKIP {name} {promise}: {reason}");
        record::write(backend, promise, &Outcome::Skipped(reason));
        return;
    }
    // What panics leaves this behind.
    record::write(backend, promise, &Outcome::Broken);
    let outcome = match check(backend).into() {
        Held::Yes => Outcome::Held,
        Held::NotOffered(reason) => Outcome::NotOffered(reason.into()),
    };
    record::write(backend, promise, &outcome);
}

/// What a handler saw.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Seen {
    Open(ChannelInfo),
    Message {
        am: u8,
        tag: u64,
        header: Vec<u8>,
        payload: Vec<u8>,
    },
    Incoming {
        id: IncomingId,
        tag: u64,
        len: u64,
    },
    Large {
        am: u8,
        tag: u64,
        header: Vec<u8>,
        payload: Buf,
    },
    Sent {
        context: u64,
        outcome: Result<(), SendFailure>,
    },
    ListSent {
        context: u64,
        parts: Vec<Buf>,
        outcome: Result<(), SendFailure>,
    },
    Immediate {
        value: u64,
        len: u64,
    },
    OneSided(OneSidedDone),
    Writable,
    Close(CloseReason),
}

/// What to do with announced messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Policy {
    Accept,
    Park,
    Refuse(u32),
}

/// A handler that writes down what it sees.
pub struct Recorder {
    /// What was seen and not yet taken.
    pub seen: VecDeque<(ChannelId, Seen)>,
    /// What to do with announced messages.
    pub policy: Policy,
}

impl Handler for Recorder {
    fn on_open(&mut self, _: &mut Ops, channel: ChannelId, info: &ChannelInfo) -> Flow {
        self.seen.push_back((channel, Seen::Open(info.clone())));
        Flow::Continue
    }

    fn on_message(&mut self, _: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        let Message {
            am,
            tag,
            header,
            payload,
        } = message;
        let (header, payload) = (header.to_vec(), payload.to_vec());
        self.seen.push_back((
            channel,
            Seen::Message {
                am,
                tag,
                header,
                payload,
            },
        ));
        Flow::Continue
    }

    fn on_incoming(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        incoming: Incoming<'_>,
    ) -> Disposition {
        let Incoming { id, tag, len, .. } = incoming;
        self.seen
            .push_back((channel, Seen::Incoming { id, tag, len }));
        match self.policy {
            Policy::Accept => match ops.pool().alloc(len as usize) {
                Ok(buf) => Disposition::Accept(buf),
                Err(_) => Disposition::Refuse(7),
            },
            Policy::Park => Disposition::Park,
            Policy::Refuse(reason) => Disposition::Refuse(reason),
        }
    }

    fn on_large(&mut self, _: &mut Ops, channel: ChannelId, message: LargeMessage) -> Flow {
        let LargeMessage {
            am,
            tag,
            header,
            payload,
        } = message;
        self.seen.push_back((
            channel,
            Seen::Large {
                am,
                tag,
                header: header.to_vec(),
                payload,
            },
        ));
        Flow::Continue
    }

    fn on_sent(
        &mut self,
        _: &mut Ops,
        channel: ChannelId,
        context: u64,
        _: Buf,
        outcome: Result<(), SendFailure>,
    ) -> Flow {
        self.seen
            .push_back((channel, Seen::Sent { context, outcome }));
        Flow::Continue
    }

    fn on_list_sent(
        &mut self,
        _: &mut Ops,
        channel: ChannelId,
        context: u64,
        parts: Vec<Buf>,
        outcome: Result<(), SendFailure>,
    ) -> Flow {
        let sent = Seen::ListSent {
            context,
            parts,
            outcome,
        };
        self.seen.push_back((channel, sent));
        Flow::Continue
    }

    fn on_writable(&mut self, _: &mut Ops, channel: ChannelId) -> Flow {
        self.seen.push_back((channel, Seen::Writable));
        Flow::Continue
    }

    fn on_immediate(&mut self, _: &mut Ops, channel: ChannelId, value: u64, len: u64) -> Flow {
        self.seen
            .push_back((channel, Seen::Immediate { value, len }));
        Flow::Continue
    }

    fn on_one_sided(&mut self, _: &mut Ops, channel: ChannelId, done: OneSidedDone) -> Flow {
        self.seen.push_back((channel, Seen::OneSided(done)));
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, channel: ChannelId, reason: CloseReason) -> Flow {
        self.seen.push_back((channel, Seen::Close(reason)));
        Flow::Continue
    }
}

/// An endpoint and what its handler saw.
pub struct Node {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Its handler.
    pub recorder: Recorder,
}

impl Node {
    /// An endpoint that speaks as `name`.
    pub fn new(
        config: TransportConfig,
        name: &str,
        incarnation: u64,
        keyring: Option<Arc<Keyring>>,
    ) -> Self {
        let identity = Identity {
            application: "conformance".into(),
            name: name.into(),
            incarnation: Incarnation(incarnation),
            client_id: u128::from(incarnation) + 1,
        };
        let auth = keyring.map(|keyring| keyring as Arc<dyn praas_transport::Authenticator>);
        let endpoint = Endpoint::new(config, identity, auth).expect("endpoint");
        Self {
            endpoint,
            recorder: Recorder {
                seen: VecDeque::new(),
                policy: Policy::Accept,
            },
        }
    }

    /// A round of progress.
    pub fn progress(&mut self) -> usize {
        self.endpoint.progress(&mut self.recorder)
    }

    /// Takes the first thing seen that `pick` wants.
    pub fn take<T>(&mut self, mut pick: impl FnMut(ChannelId, &Seen) -> Option<T>) -> Option<T> {
        for at in 0..self.recorder.seen.len() {
            let (channel, seen) = &self.recorder.seen[at];
            if let Some(found) = pick(*channel, seen) {
                self.recorder.seen.remove(at);
                return Some(found);
            }
        }
        None
    }
}

/// Two connected endpoints in one thread.
pub struct Pair {
    /// The side that connected.
    pub client: Node,
    /// The side that listened.
    pub server: Node,
    /// The client's channel.
    pub to_server: ChannelId,
    /// The server's channel.
    pub to_client: ChannelId,
}

/// The secret of the suite's application.
pub fn secret() -> Secret {
    Secret::from_bytes([42; 32])
}

/// A keyring that knows [`secret`].
pub fn keyring() -> Arc<Keyring> {
    let keyring = Keyring::new();
    keyring.insert("conformance", 1, secret());
    Arc::new(keyring)
}

/// A credential for the suite's application.
pub fn credential(role: Role) -> Credential {
    let ticket = Ticket {
        application: "conformance".into(),
        role,
        client_id: 0,
        expires_unix_ms: u64::MAX,
        key_id: 1,
    };
    Credential::issue(&secret(), &ticket)
}

/// How to connect with [`credential`].
pub fn dial(role: Role) -> Dial {
    Dial {
        credential: credential(role),
        expect: Incarnation(0),
        deadline: None,
    }
}

impl Backend {
    /// Whether the backend can be had here.
    ///
    /// # Errors
    /// Why not.
    pub fn available(self) -> Result<(), String> {
        let config = TransportConfig::default();
        let mut node = Node::new(config, "probe", 1, None);
        for listen in self.listens() {
            let listening = node.endpoint.listen(&listen);
            listening.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The column of the matrix that it is in.
    pub fn name(self) -> String {
        let name = self.kinds_name();
        match self.faulty {
            true => format!("{name}+faults"),
            false => name.into(),
        }
    }

    fn kinds_name(self) -> &'static str {
        match self.any {
            true => "any",
            false => self.kind.name(),
        }
    }

    /// Where a fresh listener of this backend goes: one place, or several if it is `any`.
    pub fn listens(self) -> Vec<Listen> {
        let between = [TransportKind::Tcp, TransportKind::Unix, TransportKind::Shm];
        match self.any {
            true => between.map(|kind| Self { kind, ..self }.listen()).into(),
            false => vec![self.listen()],
        }
    }

    /// Listens with a server, and says where.
    pub fn listen_with(self, server: &mut Node) -> Vec<Address> {
        let listens = self.listens();
        server.endpoint.listen_any(&listens).expect("listen");
        server.endpoint.addresses().to_vec()
    }

    /// Where a fresh listener goes that is of one kind only.
    pub fn listen(self) -> Listen {
        match self.kind {
            TransportKind::Mem => Listen::Mem(format!("conformance-{:x}", fastrand::u64(..))),
            TransportKind::Shm => Listen::Shm { name: None },
            TransportKind::Unix => Listen::Unix(UnixPlace::Abstract(None)),
            TransportKind::Verbs => Listen::Verbs(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            TransportKind::Tcp => Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        }
    }

    /// Settings for this backend, with a seed for its faults.
    pub fn config(self, seed: u64) -> TransportConfig {
        let mut config = TransportConfig {
            poll_interval_rounds: 16,
            ..Default::default()
        };
        if self.faulty {
            config.fault = Some(praas_transport::fault::FaultPlan {
                seed,
                busy: 20_000,
                delay: 10_000,
                delay_polls_max: 20,
                partial: 4_000,
                die_after_frames: 0,
                segment_refused: self.any,
            });
        }
        config
    }

    /// A connected pair.
    pub fn pair(self) -> Pair {
        self.pair_with(self.config(1), self.config(2))
    }

    /// A connected pair with settings for client and server.
    pub fn pair_with(self, client: TransportConfig, server: TransportConfig) -> Pair {
        let mut server = Node::new(server, "server", 3, Some(keyring()));
        let addresses = self.listen_with(&mut server);
        let client = Node::new(client, "", 0, None);
        let pair = Pair::connect(client, server, &addresses);
        let kind = pair
            .client
            .endpoint
            .info(pair.to_server)
            .map(|info| info.kind);
        assert_eq!(kind, Some(self.kind));
        pair
    }
}

impl Pair {
    /// Connects `client` to `server` at one of `addresses`.
    pub fn connect(mut client: Node, mut server: Node, addresses: &[Address]) -> Self {
        let to_server = client
            .endpoint
            .connect_any(addresses, Kinds::all(), dial(Role::Client))
            .expect("connect");
        let until = Instant::now() + PATIENCE;
        let mut to_client = None;
        let mut open = false;
        while to_client.is_none() || !open {
            assert!(
                Instant::now() < until,
                "no connection: {:?}",
                client.recorder.seen
            );
            client.progress();
            server.progress();
            open |= client
                .take(|id, seen| matches!(seen, Seen::Open(_)).then_some(id))
                .is_some_and(|id| id == to_server);
            let opened = server.take(|id, seen| matches!(seen, Seen::Open(_)).then_some(id));
            to_client = to_client.or(opened);
        }
        Self {
            client,
            server,
            to_server,
            to_client: to_client.expect("checked above"),
        }
    }

    /// Makes progress on both sides until `done` gives something.
    pub fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            assert!(
                Instant::now() < until,
                "hung: client saw {:?}, server saw {:?}",
                self.client.recorder.seen,
                self.server.recorder.seen
            );
            self.client.progress();
            self.server.progress();
        }
    }
}
