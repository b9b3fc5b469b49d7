//! The peer process: a cloud process whose functions answer pings.
//!
//! ```text
//!   standard input    a socket to who started it: setup, ready; its hang-up ends the peer
//!   standard output   the memory of the raw flag
//!   standard error    what goes wrong
//! ```

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use praas_runtime::abi::Output;
use praas_runtime::client::Directory;
use praas_runtime::context::{Context, FunctionError};
use praas_runtime::directory::Resolved;
use praas_runtime::function::Registry;
use praas_runtime::process::{Process, ProcessConfig, ProcessSettings};
use praas_transport::bare::Bare;
use praas_transport::{
    Address, Credential, Endpoint, Identity, Incarnation, Keyring, Listen, Role, Secret, Ticket,
    TransportConfig, TransportKind, UnixPlace, WaitMode,
};
use serde::{Deserialize, Serialize};

use super::pings::{Channel, Raw, RawListener, RawPlace, bare_serve};
use super::{BenchError, What};

/// The application of both processes, the peer's name, its functions.
const APPLICATION: &str = "bench";
pub(super) const PROCESS: &str = "peer";
pub(super) const SERVE: &str = "bench.serve";
pub(super) const NOOP: &str = "bench.noop";
pub(super) const EXCHANGE: &str = "bench.exchange";
const INCARNATION: Incarnation = Incarnation(1);

/// What the peer needs to know: the first line on its socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    pub(super) transport: TransportKind,
    pub(super) bytes_max: usize,
    pub(super) cpu: Option<usize>,
}

/// The peer's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) process: Resolved,
    pub(super) channel: Address,
    pub(super) raw: Option<RawPlace>,
    pub(super) credential: Credential,
}

/// What the functions answer with.
struct Answers {
    bare: Bare,
    raw: Option<Raw>,
    channel: Channel,
}

static ANSWERS: OnceLock<Mutex<Answers>> = OnceLock::new();

/// The input of [`SERVE`].
pub(super) fn serve_input(what: What, bytes: usize) -> [u8; 9] {
    let mut input = [what as u8; 9];
    input[1..].copy_from_slice(&(bytes as u64).to_le_bytes());
    input
}

/// Answers pings of the floor or the channel until the last one. It is short, though it takes
/// long: the worker keeps the endpoint and its CPU, and nobody else wants either.
#[praas_runtime::function(name = "bench.serve", short)]
fn serve(input: &[u8]) -> Result<(), FunctionError> {
    let wrong = || FunctionError::new("no input of bench.serve");
    let (what, bytes) = input.split_first().ok_or_else(wrong)?;
    let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| wrong())?;
    let bytes = u64::from_le_bytes(bytes) as usize;
    let answers = ANSWERS.get().ok_or_else(wrong)?;
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    let answers = &mut *answers;
    let served = match (*what, &mut answers.raw) {
        (channel, _) if channel == What::Channel as u8 => answers.channel.serve(),
        (_, Some(raw)) => raw.serve(bytes),
        _ => bare_serve(&mut answers.bare, bytes),
    };
    served.map_err(|error| FunctionError::new(error.to_string()))
}

#[praas_runtime::function(name = "bench.noop", short)]
fn noop() {}

/// Output as long as the input, and nothing done with either.
#[praas_runtime::function(name = "bench.exchange", short)]
fn exchange<'a>(context: &'a Context, input: &[u8]) -> Result<Output<'a>, FunctionError> {
    Ok(context.output(input.len())?)
}

praas_runtime::module!(static "bench", [serve, noop, exchange]);

/// Where both sides listen.
fn listen_at(transport: TransportKind) -> Result<Listen, BenchError> {
    match transport {
        TransportKind::Shm => Ok(Listen::Shm { name: None }),
        TransportKind::Unix => Ok(Listen::Unix(UnixPlace::Abstract(None))),
        TransportKind::Verbs => Ok(Listen::Verbs((Ipv4Addr::UNSPECIFIED, 0).into())),
        TransportKind::Tcp => Ok(Listen::Tcp((Ipv4Addr::LOCALHOST, 0).into())),
        TransportKind::Mem => Err(BenchError::Transport(transport)),
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

/// Serves until the socket hangs up.
pub(super) fn peer_run() -> Result<(), BenchError> {
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let socket = socket.map_err(BenchError::system("use standard input as a socket"))?;
    let mut lines = BufReader::new(UnixStream::from(socket));
    let setup: Setup = line_read(&mut lines)?;
    let secret = Secret::generate().map_err(|error| BenchError::Peer(error.to_string()))?;
    let ring = Arc::new(Keyring::new());
    ring.insert(APPLICATION, 1, secret.clone());
    let credential = |role| {
        let ticket = Ticket {
            application: APPLICATION.into(),
            role,
            client_id: 0,
            expires_unix_ms: u64::MAX,
            key_id: 1,
        };
        Credential::issue(&secret, &ticket)
    };
    // Endpoints count the CPUs of this process before it is pinned to one of them.
    let config = TransportConfig::default();
    let mut endpoint = Endpoint::new(config, identity(PROCESS), Some(ring.clone()))?;
    let listen = listen_at(setup.transport)?;
    let channel = endpoint.listen(&listen)?;
    pin(setup.cpu)?;
    let process = process_start(listen, ring, credential(Role::Process))?;
    let raw = RawListener::listen(setup.transport);
    let raw = raw.map_err(BenchError::system("listen on a raw socket"))?;
    let (listener, raw) = raw.unzip();
    let ready = Ready {
        process: Resolved {
            incarnation: INCARNATION,
            addresses: process.addresses().to_vec(),
        },
        channel,
        raw,
        credential: credential(Role::Client),
    };
    line_write(lines.get_mut(), &ready)?;
    let mut channel = Channel::new(endpoint, true);
    channel.open_wait()?;
    let raw = listener.map(|listener| listener.accept(setup.bytes_max));
    let raw = raw.transpose();
    let raw = raw.map_err(BenchError::system("accept a raw socket"))?;
    let bare = Bare::open(io::stdout().as_fd(), setup.bytes_max)
        .map_err(BenchError::system("map the memory of the flag"))?;
    let answers = Answers { bare, raw, channel };
    // Set once, here.
    let _ = ANSWERS.set(Mutex::new(answers));
    line_write(lines.get_mut(), &())?;
    // Whatever comes, and the hang-up, is the end.
    let _ = lines.read_line(&mut String::new());
    Ok(())
}

fn process_start(
    listen: Listen,
    ring: Arc<Keyring>,
    credential: Credential,
) -> Result<Process, BenchError> {
    let mut registry = Registry::new();
    let added = registry.module_add(module());
    added.map_err(|error| BenchError::Peer(error.to_string()))?;
    Process::start(ProcessConfig {
        application: APPLICATION.into(),
        process: PROCESS.into(),
        incarnation: INCARNATION,
        listen: vec![listen],
        authenticator: ring,
        credential,
        directory: Directory::Fixed(BTreeMap::new()),
        force: None,
        settings: ProcessSettings {
            workers: 1,
            wait: WaitMode::Hot,
            ..ProcessSettings::default()
        },
        registry,
        restore: None,
    })
    .map_err(|error| BenchError::Peer(format!("cannot start: {error}")))
}

/// Reads one line of JSON.
pub(super) fn line_read<T: for<'a> Deserialize<'a>>(
    lines: &mut BufReader<UnixStream>,
) -> Result<T, BenchError> {
    let mut line = String::new();
    let read = lines.read_line(&mut line);
    match read.map_err(BenchError::system("read from the other process"))? {
        0 => Err(BenchError::Peer("has ended".into())),
        _ => serde_json::from_str(&line)
            .map_err(|error| BenchError::Peer(format!("makes no sense: {error}"))),
    }
}

/// Writes one line of JSON.
pub(super) fn line_write<T: Serialize>(to: &mut UnixStream, value: &T) -> Result<(), BenchError> {
    let line = serde_json::to_string(value).map_err(io::Error::from);
    line.and_then(|line| to.write_all(format!("{line}\n").as_bytes()))
        .map_err(BenchError::system("write to the other process"))
}
