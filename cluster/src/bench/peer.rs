//! The peer: a cloud process whose functions do the other side's part.
//!
//! ```text
//!   standard input    a socket to who measures: a Unix socket of who started the peer, or a TCP
//!                     connection from another host that has shown that it knows the secret; its
//!                     hang-up ends the peer
//!   standard output   for the former: the memory of a floor; for the latter: the session's key
//!   standard error    what goes wrong
//! ```
//!
//! For a transport within one OS process the peer is a thread, with the same two descriptors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use praas_runtime::abi::Output;
use praas_runtime::client::Directory;
use praas_runtime::codec;
use praas_runtime::context::{Context, FunctionError};
use praas_runtime::directory::Resolved;
use praas_runtime::function::Registry;
use praas_runtime::process::{Process, ProcessConfig, ProcessSettings, StartError, StateRead};
use praas_transport::{
    Access, Credential, Endpoint, Identity, Incarnation, Keyring, Kinds, Listen, Role, Secret,
    Ticket, TransportConfig, TransportKind, UnixPlace, WaitMode,
};

use super::control::{Answer, Control, Ready, Setup};
use super::links::{Channel, Connects, Ends, Links, Purpose, RawEnd, Shared, Turn};
use super::machine::Machine;
use super::{Bench, BenchError};

/// The application of both processes, the peer's name, its functions.
pub(super) const APPLICATION: &str = "bench";
pub(super) const PROCESS: &str = "peer";
pub(super) const SERVE: &str = "bench.serve";
pub(super) const NOOP: &str = "bench.noop";
pub(super) const EXCHANGE: &str = "bench.exchange";
pub(super) const INCARNATION: Incarnation = Incarnation(1);
pub(super) const KEY_ID: u32 = 1;

/// What the functions work with, from a session's setup to its end.
static LINKS: Mutex<Option<Links>> = Mutex::new(None);

/// Does the peer's part of a turn. It is short, though it takes long: the worker keeps the endpoint
/// and its CPU, and nobody else wants either.
#[praas_runtime::function(name = "bench.serve", short)]
fn serve(input: &[u8]) -> Result<(), FunctionError> {
    let failed = |error: &dyn std::fmt::Display| FunctionError::new(error.to_string());
    let turn: Turn = codec::decode(input).map_err(|error| failed(&error))?;
    let mut links = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
    let links = links.as_mut();
    let links = links.ok_or_else(|| FunctionError::new("nothing is set up"))?;
    links.turn_serve(&turn).map_err(|error| failed(&error))
}

#[praas_runtime::function(name = "bench.noop", short)]
fn noop() {}

/// Output as long as the input, and nothing done with either.
#[praas_runtime::function(name = "bench.exchange", short)]
fn exchange<'a>(context: &'a Context, input: &[u8]) -> Result<Output<'a>, FunctionError> {
    Ok(context.output(input.len())?)
}

praas_runtime::module!(static "bench", [serve, noop, exchange]);

/// Where the peer listens; what is on a network, at `ip`.
pub(super) fn listen_at(transport: TransportKind, ip: IpAddr) -> Listen {
    match transport {
        TransportKind::Mem => Listen::Mem(format!("bench-{:016x}", fastrand::u64(..))),
        TransportKind::Shm => Listen::Shm { name: None },
        TransportKind::Unix => Listen::Unix(UnixPlace::Abstract(None)),
        TransportKind::Tcp => Listen::Tcp(SocketAddr::new(ip, 0)),
        TransportKind::Verbs => Listen::Verbs(SocketAddr::new(ip, 0)),
    }
}

/// Pins the calling thread, and those that it starts.
pub(super) fn pin(cpu: Option<usize>) -> Result<(), BenchError> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut cpus = rustix::thread::CpuSet::new();
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        let error = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(BenchError::system(format!("pin to CPU {cpu}"))(error));
    }
    cpus.set(cpu);
    rustix::thread::sched_setaffinity(None, &cpus)
        .map_err(|error| BenchError::system(format!("pin to CPU {cpu}"))(error.into()))
}

/// Who a side's endpoint speaks as.
pub(super) fn identity(name: &str) -> Identity {
    Identity {
        application: APPLICATION.into(),
        name: name.into(),
        incarnation: Incarnation(0),
        client_id: u128::from(fastrand::u64(1..)),
    }
}

/// What a side shows to the other: both have the session's key.
pub(super) fn credential(key: [u8; 32], role: Role) -> Credential {
    let ticket = Ticket {
        application: APPLICATION.into(),
        role,
        client_id: 0,
        expires_unix_ms: u64::MAX,
        key_id: KEY_ID,
    };
    Credential::issue(&Secret::from_bytes(key), &ticket)
}

/// What a raw socket of the session shows first.
pub(super) fn raw_token(key: [u8; 32]) -> [u8; 32] {
    blake3::derive_key("praas bench 2026 raw socket", &key)
}

/// The peer as an OS process.
pub(super) fn peer_run() -> Result<(), BenchError> {
    let descriptor = |from: &dyn AsFd, what| {
        let owned = from.as_fd().try_clone_to_owned();
        owned.map_err(BenchError::system(format!("use standard {what}")))
    };
    let control = descriptor(&io::stdin(), "input")?;
    let memory = descriptor(&io::stdout(), "output")?;
    peer_serve(control, memory)
}

/// Serves who is at the other end of the socket until it hangs up.
pub(super) fn peer_serve(socket: OwnedFd, memory: OwnedFd) -> Result<(), BenchError> {
    let remote = remote_ip(&socket)?;
    let mut control = Control::new(socket);
    let setup: Setup = control.read()?;
    let serving = serving_start(&setup, &control, remote, &memory);
    let (process, ready, links) = match serving {
        Ok(serving) => serving,
        Err(error) => return control.write(&Answer::<Ready>::No(error.to_string())),
    };
    control.write(&Answer::Yes(ready))?;
    match links() {
        Ok(links) => *LINKS.lock().unwrap_or_else(PoisonError::into_inner) = Some(links),
        Err(error) => return control.write(&Answer::<()>::No(error.to_string())),
    }
    control.write(&Answer::Yes(()))?;
    control.end_wait();
    drop(process);
    LINKS.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(())
}

/// Our address as another host sees it, if the socket leads to one.
fn remote_ip(socket: &OwnedFd) -> Result<Option<IpAddr>, BenchError> {
    let own = rustix::net::getsockname(socket)
        .map_err(|error| BenchError::system("use standard input as a socket")(error.into()))?;
    Ok(SocketAddr::try_from(own).ok().map(|address| address.ip()))
}

/// A process that is started, where it is, and how its links are made once who measures knows that.
type Serving<'a> = (
    Process,
    Ready,
    Box<dyn FnOnce() -> Result<Links, BenchError> + 'a>,
);

fn serving_start<'a>(
    setup: &'a Setup,
    control: &Control,
    remote: Option<IpAddr>,
    memory: &'a OwnedFd,
) -> Result<Serving<'a>, BenchError> {
    let key = match (setup.key, remote) {
        (Some(key), None) => key,
        (_, Some(_)) => key_read(memory)?,
        (None, None) => return Err(BenchError::Secret("is missing".into())),
    };
    let ring = Arc::new(Keyring::new());
    ring.insert(APPLICATION, KEY_ID, Secret::from_bytes(key));
    let ip = remote.unwrap_or(Ipv4Addr::LOCALHOST.into());
    // Endpoints count the CPUs of this process before it is pinned to one of them.
    let mut endpoint = Endpoint::new(
        setup.config.clone(),
        identity(PROCESS),
        Some(ring.clone() as _),
    )?;
    let channel = endpoint.listen(&listen_at(setup.transport, ip))?;
    let region = match setup.bench.one_sided() {
        true => {
            let made = endpoint.region_create(setup.bytes_max, Access::ALL);
            let made = made.map_err(|error| BenchError::Memory {
                bytes: setup.bytes_max,
                reason: error.to_string(),
            })?;
            Some(made.key())
        }
        false => None,
    };
    let watch = control.watch()?;
    pin(setup.cpu)?;
    let listen = listen_at(setup.transport, ip);
    let process = process_start(setup, listen, ring, credential(key, Role::Process))?;
    let raw = RawEnd::new(setup.transport, ip)?;
    let ready = Ready {
        process: Resolved {
            incarnation: INCARNATION,
            addresses: process.addresses().to_vec(),
        },
        channel,
        raw: raw.address().clone(),
        region,
        machine: Machine::here(),
    };
    let purpose = Purpose {
        bench: setup.bench,
        transport: setup.transport,
        bytes_max: setup.bytes_max,
        watch,
        token: raw_token(key),
    };
    let links = move || {
        let shared = match remote {
            None => Some(Shared::open(memory, setup.bench, setup.bytes_max)?),
            Some(_) => None,
        };
        let ends = match setup.bench {
            Bench::Connect => Ends {
                connects: Some(Connects::new(endpoint, None)),
                ..Ends::default()
            },
            _ => {
                let mut channel = Channel::new(endpoint, true);
                channel.open_wait()?;
                Ends {
                    channel: Some(channel),
                    ..Ends::default()
                }
            }
        };
        Links::serve(purpose, ends, shared, raw)
    };
    Ok((process, ready, Box::new(links)))
}

/// The key of a session with another host, which the server has put there.
fn key_read(memory: &OwnedFd) -> Result<[u8; 32], BenchError> {
    let failed = || BenchError::system("read the session's key");
    let mut memory = File::from(memory.try_clone().map_err(failed())?);
    let mut key = [0; 32];
    memory.rewind().map_err(failed())?;
    memory.read_exact(&mut key).map_err(failed())?;
    Ok(key)
}

/// Adds the functions that are above.
pub(super) fn functions_add(registry: &mut Registry) -> Result<(), BenchError> {
    let added = registry.module_add(module());
    added
        .map(drop)
        .map_err(|error| BenchError::Peer(error.to_string()))
}

fn process_start(
    setup: &Setup,
    listen: Listen,
    ring: Arc<Keyring>,
    credential: Credential,
) -> Result<Process, BenchError> {
    let mut registry = Registry::new();
    functions_add(&mut registry)?;
    let config = setup.config.clone();
    process_start_with(registry, config, WaitMode::Hot, listen, ring, credential)
}

/// A process of one worker with these functions.
pub(super) fn process_start_with(
    registry: Registry,
    transport: TransportConfig,
    wait: WaitMode,
    listen: Listen,
    ring: Arc<Keyring>,
    credential: Credential,
) -> Result<Process, BenchError> {
    let config = process_config(registry, transport, wait, listen, ring, credential);
    Process::start(config).map_err(start_error)
}

pub(super) fn start_error(error: StartError) -> BenchError {
    BenchError::Peer(format!("cannot start: {error}"))
}

/// What such a process is started with.
pub(super) fn process_config(
    registry: Registry,
    transport: TransportConfig,
    wait: WaitMode,
    listen: Listen,
    ring: Arc<Keyring>,
    credential: Credential,
) -> ProcessConfig {
    ProcessConfig {
        application: APPLICATION.into(),
        process: PROCESS.into(),
        incarnation: INCARNATION,
        listen: vec![listen],
        authenticator: ring,
        credential,
        directory: Directory::Fixed(BTreeMap::new()),
        transports: Kinds::all(),
        settings: ProcessSettings {
            workers: 1,
            wait,
            state_read: StateRead::Clients,
            transport,
            ..ProcessSettings::default()
        },
        registry,
        restore: None,
        persist: None,
    }
}
