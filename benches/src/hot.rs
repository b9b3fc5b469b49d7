//! Small things under load, ready to run: a channel with both sides, a process with a client.

use std::collections::BTreeMap;
use std::sync::Arc;

use praas_runtime::client::{CallOptions, Client, ClientConfig, Directory, FunctionRef};
use praas_runtime::context::{Context, FunctionError};
use praas_runtime::directory::Resolved;
use praas_runtime::function::Registry;
use praas_runtime::process::{Process, ProcessConfig, ProcessSettings};
use praas_transport::{
    ChannelId, ChannelInfo, CloseReason, Credential, Dial, Disposition, Endpoint, Flow, Handler,
    Identity, Incarnation, Incoming, Keyring, Kinds, LargeMessage, Listen, Message, Ops, Role,
    Secret, Ticket, TransportConfig, WaitMode,
};

const APPLICATION: &str = "bench";

fn credential(secret: &Secret, role: Role) -> Credential {
    let ticket = Ticket {
        application: APPLICATION.into(),
        role,
        client_id: 0,
        expires_unix_ms: u64::MAX,
        key_id: 1,
    };
    Credential::issue(secret, &ticket)
}

fn ring_make() -> (Secret, Arc<Keyring>) {
    let secret = Secret::generate().expect("the system has random bytes");
    let ring = Keyring::new();
    ring.insert(APPLICATION, 1, secret.clone());
    (secret, Arc::new(ring))
}

/// One side of a channel, which counts what comes.
#[derive(Debug, Default)]
struct Side {
    channel: Option<ChannelId>,
    got: u64,
}

impl Handler for Side {
    fn on_open(&mut self, _: &mut Ops, channel: ChannelId, _: &ChannelInfo) -> Flow {
        self.channel = Some(channel);
        Flow::Continue
    }

    #[inline]
    fn on_message(&mut self, _: &mut Ops, _: ChannelId, _: Message<'_>) -> Flow {
        self.got += 1;
        Flow::Stop
    }

    fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
        Disposition::Refuse(0)
    }

    fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, reason: CloseReason) -> Flow {
        panic!("the channel ended: {reason}");
    }
}

/// A channel with both sides on one thread, so that over shared memory no time is spent waiting.
#[derive(Debug)]
pub struct ChannelPair {
    sides: [(Endpoint, Side); 2],
    payload: Vec<u8>,
}

impl ChannelPair {
    /// An open channel over shared memory; messages carry `bytes` bytes, few enough to go eagerly.
    ///
    /// # Panics
    /// If no such channel can be had.
    pub fn new(bytes: usize) -> Self {
        Self::at(&Listen::Shm { name: None }, bytes)
    }

    /// As [`ChannelPair::new`], over the transport that is listened at.
    ///
    /// # Panics
    /// If no such channel can be had.
    pub fn at(listen: &Listen, bytes: usize) -> Self {
        let (secret, ring) = ring_make();
        let identity = |name: &str, client_id| Identity {
            application: APPLICATION.into(),
            name: name.into(),
            incarnation: Incarnation(0),
            client_id,
        };
        let endpoint = |name, id, ring| {
            Endpoint::new(TransportConfig::default(), identity(name, id), ring)
                .expect("an endpoint can be made")
        };
        let mut one = endpoint("one", 1, Some(ring as _));
        let mut two = endpoint("", 2, None);
        let address = one.listen(listen).expect("one can listen there");
        let dial = Dial {
            credential: credential(&secret, Role::Client),
            expect: Incarnation(0),
            deadline: None,
        };
        two.connect(&address, dial).expect("somebody listens");
        let mut sides = [(one, Side::default()), (two, Side::default())];
        while sides.iter().any(|(_, side)| side.channel.is_none()) {
            for (endpoint, side) in &mut sides {
                endpoint.progress(side);
            }
        }
        Self {
            sides,
            payload: vec![1; bytes],
        }
    }

    /// One message.
    #[inline]
    fn message(&mut self, from: usize) {
        let (endpoint, side) = &mut self.sides[from];
        let channel = side.channel.expect("the channel is open");
        let sent = endpoint.send(channel, 1, 0, &[], &[&self.payload]);
        assert_eq!(sent, Ok(praas_transport::Posted::Done));
        let (endpoint, side) = &mut self.sides[1 - from];
        let before = side.got;
        while side.got == before {
            endpoint.progress_wait(side, None, WaitMode::Hot);
        }
    }

    /// Sends a message there and one back, so many times.
    #[inline]
    pub fn round_trips(&mut self, count: u64) {
        for _ in 0..count {
            self.message(0);
            self.message(1);
        }
    }
}

#[praas_runtime::function(short)]
fn noop() {}

/// Invokes `noop` in its own process, as often as it is told; its input is a count.
#[praas_runtime::function(short)]
fn local(context: &Context, input: &[u8]) -> Result<(), FunctionError> {
    let count = <[u8; 8]>::try_from(input).map(u64::from_le_bytes);
    for _ in 0..count.map_err(|_| FunctionError::new("no count"))? {
        context.invoke("", "noop", b"12345678")?;
    }
    Ok(())
}

praas_runtime::module!(static "hot", [noop, local]);

/// A process in this OS process and a client of it, over shared memory.
#[derive(Debug)]
pub struct InvokePair {
    client: Client,
    noop: FunctionRef,
    local: FunctionRef,
    payload: Vec<u8>,
    _process: Process,
}

impl InvokePair {
    /// A process that serves and a client whose calls carry `bytes` bytes, both hot.
    ///
    /// # Panics
    /// If no process can be started.
    pub fn new(bytes: usize) -> Self {
        Self::waiting(bytes, WaitMode::Hot)
    }

    /// The same, both spinning for a moment and then blocking, as is the default.
    ///
    /// # Panics
    /// If no process can be started.
    pub fn warm(bytes: usize) -> Self {
        Self::waiting(bytes, WaitMode::Adaptive)
    }

    fn waiting(bytes: usize, wait: WaitMode) -> Self {
        let (secret, ring) = ring_make();
        let mut registry = Registry::new();
        registry.module_add(module()).expect("a module of our own");
        let process = Process::start(ProcessConfig {
            application: APPLICATION.into(),
            process: "p".into(),
            incarnation: Incarnation(1),
            listen: vec![Listen::Shm { name: None }],
            authenticator: ring,
            credential: credential(&secret, Role::Process),
            directory: Directory::Fixed(BTreeMap::new()),
            transports: Kinds::all(),
            settings: ProcessSettings {
                workers: 1,
                wait,
                ..ProcessSettings::default()
            },
            registry,
            restore: None,
            persist: None,
        })
        .expect("a process can be started");
        let resolved = Resolved {
            incarnation: Incarnation(1),
            addresses: process.addresses().to_vec(),
        };
        let mut config = ClientConfig::new(
            Directory::Fixed(BTreeMap::from([("p".to_owned(), resolved)])),
            credential(&secret, Role::Client),
        );
        config.wait = wait;
        let mut client = Client::new(config).expect("a client can be made");
        let mut function = |name| client.function("p", name).expect("a name that can be");
        Self {
            noop: function("noop"),
            local: function("local"),
            client,
            payload: vec![1; bytes],
            _process: process,
        }
    }

    /// Invokes a function that does nothing, so many times.
    ///
    /// # Panics
    /// If an invocation fails.
    #[inline]
    pub fn round_trips(&mut self, count: u64) {
        for _ in 0..count {
            let done = self
                .client
                .call(self.noop, &self.payload, CallOptions::default());
            done.expect("it does nothing");
        }
    }

    /// Lets the process invoke the same function itself, so many times.
    ///
    /// # Panics
    /// If an invocation fails.
    pub fn local_calls(&mut self, count: u64) {
        let input = count.to_le_bytes();
        let done = self.client.call(self.local, &input, CallOptions::default());
        done.expect("it does nothing");
    }
}
