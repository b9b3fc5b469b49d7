//! Both processes and all that connects them, over one transport.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use praas_runtime::client::{Client, ClientConfig, Directory};
use praas_transport::{
    Dial, Endpoint, Incarnation, Role, Secret, TransportConfig, TransportKind, WaitMode,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::control::{Control, LINE_PATIENCE, Ready, Setup};
use super::links::{Caller, Channel, Connects, Ends, Links, Purpose, Shared};
use super::peer::{self, PROCESS};
use super::plan::Plan;
use super::{Bench, BenchError, Machine, PEER_COMMAND};

/// Who does the other side's part; it ends with this.
enum Peer {
    /// A process that we have started.
    Child(Child, Control),
    /// A thread of ours.
    Thread(Option<JoinHandle<()>>, Control),
    /// A process of another host.
    Remote(Control),
}

impl Peer {
    fn start(
        plan: &Plan,
        transport: TransportKind,
        memory: OwnedFd,
    ) -> Result<(Self, [u8; 32]), BenchError> {
        if let Some(remote) = &plan.remote {
            let (socket, key) = remote.session_open()?;
            return Ok((Self::Remote(Control::new(socket)), key));
        }
        let key = Secret::generate().map_err(|error| BenchError::Secret(error.to_string()))?;
        let pair = UnixStream::pair().map_err(BenchError::system("make a pair of sockets"))?;
        let (ours, theirs) = (Control::new(pair.0.into()), OwnedFd::from(pair.1));
        let peer = match transport {
            TransportKind::Mem => {
                let serve = move || {
                    if let Err(error) = peer::peer_serve(theirs, memory) {
                        eprintln!("the peer of a measurement: {error}");
                    }
                };
                let thread = std::thread::Builder::new().name("bench-peer".into());
                let thread = thread
                    .spawn(serve)
                    .map_err(BenchError::system("start a thread"))?;
                Self::Thread(Some(thread), ours)
            }
            _ => Self::Child(child_start(plan, theirs, memory)?, ours),
        };
        Ok((peer, *key.as_bytes()))
    }

    fn control(&mut self) -> &mut Control {
        match self {
            Self::Child(_, control) | Self::Thread(_, control) | Self::Remote(control) => control,
        }
    }

    /// What failed, or that the peer has ended, which explains it.
    fn explain(&mut self, error: BenchError) -> BenchError {
        match self {
            Self::Child(child, _) if !error.is_usage() => match child.try_wait() {
                Ok(Some(status)) if !status.success() => BenchError::PeerEnded(status),
                _ => error,
            },
            _ => error,
        }
    }
}

fn child_start(plan: &Plan, socket: OwnedFd, memory: OwnedFd) -> Result<Child, BenchError> {
    // This very program, also when its file was replaced since it started.
    let own = "/proc/self/exe".into();
    let program = plan.program.as_ref().unwrap_or(&own);
    Command::new(program)
        .arg0("praas")
        .arg(PEER_COMMAND)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::from(memory))
        .spawn()
        .map_err(BenchError::system(format!("start {}", program.display())))
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.control().end();
        match self {
            // It may have ended by itself, which is as good.
            Self::Child(child, _) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Self::Thread(thread, _) => {
                // It has told what went wrong, if anything did.
                let _ = thread.take().map(JoinHandle::join);
            }
            Self::Remote(_) => {}
        }
    }
}

/// Pins this thread, and lets it run where it did before when dropped.
pub(super) struct Pinned(Option<CpuSet>);

impl Pinned {
    pub(super) fn new(cpu: Option<usize>) -> Result<Self, BenchError> {
        let before = sched_getaffinity(None).ok().filter(|_| cpu.is_some());
        peer::pin(cpu)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // CPUs that were allowed before are so still, or the kernel has moved us already.
            let _ = sched_setaffinity(None, before);
        }
    }
}

/// The CPUs of this side and the other.
type Cpus = (Option<usize>, Option<usize>);

/// The CPUs of the two processes; none where there is no choice. A peer on another host is not
/// pinned unless its CPU is named.
fn cpus_choose(plan: &Plan) -> Cpus {
    match (&plan.remote, plan.pin) {
        (Some(_), None) => (cpus_of(None).0, None),
        (_, pin) => cpus_of(pin),
    }
}

/// The CPUs that were asked for, or the first two that may be used.
pub(super) fn cpus_of(pin: Option<(usize, usize)>) -> Cpus {
    if let Some((one, two)) = pin {
        return (Some(one), Some(two));
    }
    let Ok(allowed) = sched_getaffinity(None) else {
        return (None, None);
    };
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    match (cpus.next(), cpus.next()) {
        (Some(one), Some(two)) => (Some(one), Some(two)),
        _ => (None, None),
    }
}

/// Both processes and all that connects them. What is dropped first is what the peer waits for
/// least.
pub(super) struct Rig {
    pub(super) transport: TransportKind,
    pub(super) caller: Caller,
    pub(super) links: Links,
    pub(super) peer_machine: Machine,
    /// The CPUs of this side and the other.
    pub(super) cpus: Cpus,
    _pinned: Pinned,
    peer: Peer,
}

impl Rig {
    pub(super) fn start(plan: &Plan, transport: TransportKind) -> Result<Self, BenchError> {
        let cpus = cpus_choose(plan);
        let (memory, shared) = Shared::create(plan.bench, plan.bytes_max())?;
        let (mut peer, key) = Peer::start(plan, transport, memory)?;
        let built = Self::build(plan, transport, &mut peer, (key, cpus), shared);
        let (caller, links, peer_machine, pinned) = match built {
            Ok(built) => built,
            Err(error) => return Err(peer.explain(error)),
        };
        Ok(Self {
            transport,
            caller,
            links,
            peer_machine,
            cpus,
            _pinned: pinned,
            peer,
        })
    }

    fn build(
        plan: &Plan,
        transport: TransportKind,
        peer: &mut Peer,
        (key, cpus): ([u8; 32], Cpus),
        shared: Shared,
    ) -> Result<(Caller, Links, Machine, Pinned), BenchError> {
        let (own_cpu, peer_cpu) = cpus;
        let control = peer.control();
        control.patience_set(LINE_PATIENCE)?;
        control.write(&Setup {
            bench: plan.bench,
            transport,
            bytes_max: plan.bytes_max(),
            cpu: peer_cpu,
            config: plan.config.clone(),
            // Another host has it, and whoever listens on the way does not.
            key: plan.remote.is_none().then_some(key),
        })?;
        let ready: Ready = control.answer()?;
        // Endpoints count the CPUs of this process before it is pinned to one of them.
        let endpoint = Endpoint::new(plan.config.clone(), peer::identity(""), None)?;
        let client = client_new(plan.config.clone(), &ready, key)?;
        let mut caller = Caller::new(client)?;
        let pinned = Pinned::new(own_cpu)?;
        let purpose = Purpose {
            bench: plan.bench,
            transport,
            bytes_max: plan.bytes_max(),
            watch: control.watch()?,
            token: peer::raw_token(key),
        };
        let ends = ends_dial(plan.bench, endpoint, &ready, key)?;
        let links = Links::dial(purpose, ends, Some(shared), &ready.raw)?;
        control.answer::<()>()?;
        // From here on requests go out at once.
        caller.call()?;
        Ok((caller, links, ready.machine, pinned))
    }

    /// What failed, or that the peer has ended, which explains it.
    pub(super) fn explain(&mut self, error: BenchError) -> BenchError {
        self.peer.explain(error)
    }
}

fn client_new(
    transport: TransportConfig,
    ready: &Ready,
    key: [u8; 32],
) -> Result<Client, BenchError> {
    let process = (PROCESS.to_owned(), ready.process.clone());
    let mut config = ClientConfig::new(
        Directory::Fixed(BTreeMap::from([process])),
        peer::credential(key, Role::Client),
    );
    config.wait = WaitMode::Hot;
    config.transport = transport;
    Ok(Client::new(config)?)
}

/// Our end of what is measured.
fn ends_dial(
    bench: Bench,
    mut endpoint: Endpoint,
    ready: &Ready,
    key: [u8; 32],
) -> Result<Ends, BenchError> {
    let credential = peer::credential(key, Role::Client);
    if bench == Bench::Connect {
        let to = Some((ready.channel.clone(), credential));
        return Ok(Ends {
            connects: Some(Connects::new(endpoint, to)),
            ..Ends::default()
        });
    }
    let dial = Dial {
        credential,
        expect: Incarnation(0),
        deadline: None,
    };
    endpoint.connect(&ready.channel, dial)?;
    let mut channel = Channel::new(endpoint, false);
    channel.open_wait()?;
    Ok(Ends {
        channel: Some(channel),
        key: ready.region,
        ..Ends::default()
    })
}
