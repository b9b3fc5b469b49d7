//! `praas host`: an OS process that becomes one cloud process.
//!
//! ```text
//!            stdin: a socket to the agent
//!   Start ------> bind, load modules, swap in, serve ------> Ready
//!                                   |
//!        World, Keys, Stats, Adopted| (serves on)
//!        Checkpoint                 | (serves on) ---> image written beside, on another thread
//!        SwapOut, Stop              | ------> image written, or not ---> end
//!        TransferOut                | ------> frozen once another host has all: Stop or TransferThaw
//!        SIGTERM                    | ------> image written ----------> end
//!        agent lost                 | ------> redials for agent_grace_s; then as SIGTERM
//! ```
//!
//! The command line of a host is for people and agents that look for it in /proc; everything it
//! acts on comes over the socket. SIGINT and SIGHUP are not for hosts: a terminal sends them to
//! all that it started. A host leaves nothing behind when it ends, however it ends: its memory and
//! its sockets have no names in any file system.
//!
//! Exit codes: 0 ended as it was told, or was told nothing; 1 did not start, `Failed` says why;
//! 2 was not started by an agent; 3 had to end and could not be swapped out, so what the process
//! was since its last image is lost. A host that was to become the process and has not loses
//! nothing, nor does one that another host was instead of, and ends with 0.

mod checkpoint;
mod link;
mod start;
mod transfer;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use praas_runtime::host::{FromHost, HostHello, HostReader, HostStart, HostTransfer, ToHost};
use praas_runtime::process::QuiesceError;
use praas_runtime::swap::{Storage, SwapError};
use praas_transport::{Keyring, Secret, StatsPage};
use tokio::signal::unix::{SignalKind, signal};

use self::checkpoint::{Checkpointed, Checkpoints};
use self::link::{Event, Link, Links, REDIAL_FIRST, REDIAL_MAX};
use self::start::{Opened, Started, host_credential, host_open, host_start};
use self::transfer::{Late, Life, Outgoing};
use crate::errors::error_text;
use crate::spawn::extra_take;

/// The environment variable that says what a host logs to its standard error.
const LOG_ENV: &str = "PRAAS_LOG";

const EXIT_STARTED_BY_HAND: u8 = 2;
const EXIT_NOT_SWAPPED: u8 = 3;

/// Runs a host, whose agent's socket is the standard input, until it ends.
pub fn host_main() -> ExitCode {
    let page = page_take();
    log_start();
    let socket = match socket_take() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!(
                "praas host is started by agents, with a socket as its standard input: {error}. \
                 To start a process, use `praas process create`."
            );
            return EXIT_STARTED_BY_HAND.into();
        }
    };
    match host_run(socket, page) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{}", error_text(&error));
            ExitCode::FAILURE
        }
    }
}

/// From the first word of the agent to the end of the process.
fn host_run(socket: UnixStream, page: Page) -> std::io::Result<ExitCode> {
    // It fails for the leader of a process group, which an agent may have made us.
    let _ = rustix::process::setsid();
    // Nothing else is to be seen of signals while there is no process: SIGTERM just ends it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let guard = runtime.enter();
    let ignored = [SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let mut reader = HostReader::default();
    let start = match reader.next::<ToHost>(&socket) {
        Ok(None) => return Ok(ExitCode::SUCCESS),
        Ok(Some(ToHost::Start(start))) => *start,
        Ok(Some(other)) => {
            let text = format!("the agent's first word is {other:?}, not Start");
            return Err(std::io::Error::other(text));
        }
        Err(error) => return Err(error),
    };
    let mut terminate = signal(SignalKind::terminate())?;
    drop(guard);
    cpus_bind(&start.cpus);
    let (events_in, events) = std::sync::mpsc::channel();
    let term_in = events_in.clone();
    let checkpoints = Checkpoints::new(events_in.clone());
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let _ignored = ignored;
            while runtime.block_on(terminate.recv()).is_some() {
                if term_in.send(Event::Terminate).is_err() {
                    return;
                }
            }
        })?;
    let mut links = Links::new(events_in.clone());
    let link = links.open(socket, reader)?;
    let begun = host_open(&start, &events_in).and_then(|opened| match &start.from {
        Some(from) => Host::arriving(&start, from, (opened, Arc::clone(&page.page)), &events_in),
        None => host_start(&start, opened, Arc::clone(&page.page)).map(Host::serving),
    });
    let (life, began) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let error = error_text(&*error);
            tracing::error!(error, "the process cannot start");
            link.send(&FromHost::Failed { error });
            return Ok(ExitCode::FAILURE);
        }
    };
    let links = (events_in, links, link);
    let code = Host::new(start, (life, began), links, checkpoints).run(&events);
    drop(page);
    Ok(code)
}

/// Where the process counts, for its agent to look at.
struct Page {
    page: Arc<StatsPage>,
    /// Kept open under its number, by which an agent that comes later finds it.
    _file: Option<OwnedFd>,
}

/// Takes the page that the agent has made. Without one, nobody looks.
fn page_take() -> Page {
    let file = extra_take();
    let page = file
        .as_ref()
        .and_then(|file| StatsPage::write(file.as_fd()).ok());
    Page {
        page: Arc::new(page.unwrap_or_else(StatsPage::private)),
        _file: file,
    }
}

/// What a start gives besides the process.
struct Began {
    storage: Arc<dyn Storage>,
    keyring: Arc<Keyring>,
    swap_generation: u64,
    rejected: Vec<String>,
}

/// Takes the socket that is the standard input, which is /dev/null from then on, so that what
/// functions start does not inherit it.
fn socket_take() -> std::io::Result<UnixStream> {
    let stdin = rustix::stdio::stdin();
    let domain = rustix::net::sockopt::socket_domain(stdin)?;
    if domain != rustix::net::AddressFamily::UNIX {
        return Err(std::io::Error::other("it is a socket of another family"));
    }
    let socket: OwnedFd = stdin.try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(socket.into())
}

fn log_start() {
    let filter = tracing_subscriber::EnvFilter::try_from_env(LOG_ENV);
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Somebody who runs a host within another program has a subscriber already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        // That it cannot write would be told where it cannot write, and end the process.
        .log_internal_errors(false)
        .try_init();
}

/// Binds this thread, and so all that it starts. What cannot be is worth a warning, not an end:
/// somebody has taken the processors away since the agent looked.
fn cpus_bind(cpus: &[u32]) {
    if cpus.is_empty() {
        return;
    }
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus {
        let cpu = *cpu as usize;
        if cpu < rustix::thread::CpuSet::MAX_CPU {
            set.set(cpu);
        }
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(?cpus, %error, "cannot bind to these CPUs: the kernel chooses");
    }
}

/// A process that serves, and its agent.
struct Host {
    start: HostStart,
    life: Life,
    late: Late,
    outgoing: Option<Outgoing>,
    checkpoints: Checkpoints,
    events: Sender<Event>,
    storage: Arc<dyn Storage>,
    keyring: Arc<Keyring>,
    hello: HostHello,
    links: Links,
    agent: Agent,
}

/// How things stand with the agent.
enum Agent {
    /// It is there.
    Here(Link),
    /// It is gone, or has not adopted the host yet: the host ends at `end`.
    Lost {
        end: Instant,
        /// A socket on which `Hello` was said.
        link: Option<Link>,
        redial: Instant,
        backoff: Duration,
    },
}

impl Host {
    fn new(
        start: HostStart,
        (life, began): (Life, Began),
        (events, links, link): (Sender<Event>, Links, Link),
        checkpoints: Checkpoints,
    ) -> Self {
        let (addresses, transfer) = match life.process() {
            Some(process) => (process.addresses().to_vec(), HostTransfer::None),
            None => (Vec::new(), HostTransfer::Receiving),
        };
        let hello = HostHello {
            pid: std::process::id(),
            application: start.application.clone(),
            process: start.process.clone(),
            incarnation: start.incarnation,
            addresses,
            swap_generation: began.swap_generation,
            rejected: began.rejected,
            transfer,
        };
        let host = Self {
            start,
            life,
            late: Late::default(),
            outgoing: None,
            checkpoints,
            events,
            storage: began.storage,
            keyring: began.keyring,
            hello,
            links,
            agent: Agent::Here(link),
        };
        match host.hello.transfer {
            HostTransfer::None => host.send(&host.ready()),
            state => host.send(&FromHost::Transfer { state, error: None }),
        }
        host
    }

    fn serving(started: Started) -> (Life, Began) {
        let began = Began {
            storage: started.storage,
            keyring: started.keyring,
            swap_generation: started.swap_generation,
            rejected: started.rejected,
        };
        (Life::Serving(Arc::new(started.process)), began)
    }

    fn ready(&self) -> FromHost {
        FromHost::Ready {
            addresses: self.hello.addresses.clone(),
            swap_generation: self.hello.swap_generation,
            rejected: self.hello.rejected.clone(),
        }
    }

    /// Serves until something ends it.
    fn run(mut self, events: &Receiver<Event>) -> ExitCode {
        loop {
            let event = match self.timer() {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let end = match event {
                Ok(Event::Message(link, message)) if self.is_current(link) => self.obey(*message),
                Ok(Event::Lost(link)) if self.is_current(link) => self.agent_lost(),
                Ok(Event::Message(..) | Event::Lost(_)) => None,
                Ok(Event::Checkpointed(checkpointed)) => {
                    self.checkpointed(&checkpointed);
                    None
                }
                Ok(Event::Unasked(said)) => {
                    self.checkpoint_unasked(&said);
                    None
                }
                Ok(Event::Arrived(arrived)) => self.arrived(*arrived),
                Ok(Event::Sending(step)) => self.sending(step),
                Ok(Event::Sent(outcome)) => self.sent(outcome),
                Ok(Event::Terminate) => Some(self.swap_and_end("SIGTERM")),
                Err(RecvTimeoutError::Timeout) => self.time_passed(),
                // We hold a sender.
                Err(RecvTimeoutError::Disconnected) => Some(self.swap_and_end("a lost channel")),
            };
            if let Some(code) = end {
                return code;
            }
        }
    }

    fn timer(&self) -> Option<Instant> {
        match &self.agent {
            Agent::Here(_) => None,
            Agent::Lost { end, link, .. } if link.is_some() => Some(*end),
            Agent::Lost { end, redial, .. } => Some(*end.min(redial)),
        }
    }

    fn is_current(&self, number: u64) -> bool {
        match &self.agent {
            Agent::Here(link) => link.number() == number,
            Agent::Lost { link, .. } => link.as_ref().is_some_and(|link| link.number() == number),
        }
    }

    fn obey(&mut self, message: ToHost) -> Option<ExitCode> {
        match message {
            ToHost::Start(_) => tracing::warn!("the agent wants to start what runs: ignored"),
            ToHost::Adopted { directory } => self.adopted(directory),
            ToHost::World(world) => match self.life.process() {
                Some(process) => process.world_update(world),
                None => self.late.world = Some(world),
            },
            ToHost::Keys { key_id, secret } => self.keys_change(key_id, secret),
            ToHost::Stats => {
                let stats = self.life.process().map(|process| process.stats());
                self.send(&FromHost::Stats(stats.unwrap_or_default()));
            }
            ToHost::Checkpoint => self.checkpoint_begin(),
            ToHost::Stop => {
                tracing::info!("stopping: the agent asks for it");
                self.outgoing_end();
                if let Some(process) = self.life.process() {
                    process.stop();
                }
                return Some(ExitCode::SUCCESS);
            }
            ToHost::TransferOut { incarnation, token } => self.transfer_out(incarnation, token),
            ToHost::TransferThaw => self.transfer_thaw(),
            ToHost::TransferServe => return self.transfer_serve(),
            ToHost::SwapOut => {
                return self.swap_out("the agent asks for it");
            }
        }
        None
    }

    fn checkpoint_begin(&mut self) {
        let Some(process) = self.life.process() else {
            let error = "the process is not here yet".into();
            return self.send(&FromHost::CheckpointFailed { error });
        };
        let config = self.start.swap;
        let said = self.checkpoints.begin(process, &self.storage, config);
        if let Some(said) = said {
            self.send(&said);
        }
    }

    fn checkpoint_unasked(&mut self, said: &FromHost) {
        if let FromHost::CheckpointUnasked { generation, .. } = said {
            self.hello.swap_generation = self.hello.swap_generation.max(*generation);
        }
        self.send(said);
    }

    fn checkpointed(&mut self, checkpointed: &Checkpointed) {
        if let FromHost::Checkpointed { generation, .. } = checkpointed.said {
            // What an agent that comes later is told is in storage.
            self.hello.swap_generation = generation;
        }
        let again = self.checkpoints.ended(checkpointed);
        self.send(&checkpointed.said);
        if again {
            self.checkpoint_begin();
        }
    }

    fn adopted(&mut self, directory: Vec<praas_transport::Address>) {
        if let Agent::Lost { link, .. } = &mut self.agent
            && let Some(link) = link.take()
        {
            tracing::info!("an agent has adopted this host");
            self.agent = Agent::Here(link);
        }
        match self.life.process() {
            Some(process) => process.directory_moved(directory),
            None => self.late.directory = Some(directory),
        }
    }

    /// Takes a newer secret: tickets of the older ones are refused from now on, also our own,
    /// which is replaced, and who came with one of them is shown out. An agent that adopts us says
    /// the secret that we have again.
    fn keys_change(&mut self, key_id: u32, secret: Secret) {
        if key_id <= self.start.key_id {
            return;
        }
        self.start.key_id = key_id;
        let application = &self.start.application;
        let credential = host_credential(application, key_id, &secret);
        self.keyring.insert(application, key_id, secret);
        self.keyring.revoke_below(application, key_id);
        match self.life.process() {
            Some(process) => process.credential_changed(credential),
            None => self.late.credential = Some(credential),
        }
    }

    fn send(&self, message: &FromHost) {
        match &self.agent {
            Agent::Here(link)
            | Agent::Lost {
                link: Some(link), ..
            } => {
                link.send(message);
            }
            Agent::Lost { link: None, .. } => {}
        }
    }

    /// How the host ends now that the process is swapped out; else it serves on.
    fn swap_out(&mut self, why: &str) -> Option<ExitCode> {
        tracing::info!("swapping out: {why}");
        self.outgoing_end();
        let Some(process) = self.life.process() else {
            let error = "the process is not here yet".into();
            self.send(&FromHost::SwapFailed { error });
            return None;
        };
        match process.swap_out(&*self.storage, &self.start.swap) {
            Ok(committed) => {
                let (generation, bytes) = (committed.generation, committed.bytes);
                tracing::info!(generation, bytes, "swapped out");
                if let Some(error) = committed.untidy {
                    tracing::warn!(error = error_text(&error), "older images are left");
                }
                self.send(&FromHost::Swapped { generation, bytes });
                Some(ExitCode::SUCCESS)
            }
            // The host that it is frozen for was the process, and has left an image: nobody will
            // ever want this one.
            Err(error @ QuiesceError::Swap(SwapError::Fenced { .. }))
                if self.hello.transfer == HostTransfer::Frozen =>
            {
                let error = error_text(&error);
                tracing::error!(error, "another host was the process: ending");
                self.send(&FromHost::Failed { error });
                Some(ExitCode::SUCCESS)
            }
            Err(error) => {
                let error = error_text(&error);
                tracing::error!(error, "not swapped out");
                self.send(&FromHost::SwapFailed { error });
                None
            }
        }
    }

    /// Swaps out and ends, whatever becomes of the swap.
    fn swap_and_end(&mut self, why: &str) -> ExitCode {
        if self.life.process().is_none() {
            // Another host is the process, or will have to be.
            let error = format!("it ends before it is the process: {why}");
            tracing::warn!("{error}");
            self.send(&FromHost::Failed { error });
            return ExitCode::SUCCESS;
        }
        self.swap_out(why).unwrap_or(EXIT_NOT_SWAPPED.into())
    }

    fn agent_lost(&mut self) -> Option<ExitCode> {
        let now = Instant::now();
        match &mut self.agent {
            Agent::Here(_) => {
                let grace_s = self.start.agent_grace_s;
                tracing::warn!(grace_s, "the agent is gone: looking for another one");
                self.agent = Agent::Lost {
                    end: now + Duration::from_secs(grace_s),
                    link: None,
                    redial: now,
                    backoff: REDIAL_FIRST,
                };
            }
            Agent::Lost {
                link,
                redial,
                backoff,
                ..
            } => {
                *link = None;
                *redial = now + *backoff;
                *backoff = (*backoff * 2).min(REDIAL_MAX);
            }
        }
        None
    }

    /// A timer is due: it is the end, or time to dial.
    fn time_passed(&mut self) -> Option<ExitCode> {
        let now = Instant::now();
        let Agent::Lost {
            end,
            link,
            redial,
            backoff,
        } = &mut self.agent
        else {
            return None;
        };
        if now >= *end {
            return Some(self.swap_and_end("no agent has adopted this host in time"));
        }
        if link.is_some() || now < *redial {
            return None;
        }
        let dialled = self.links.dial(&self.start.agent_socket);
        match dialled {
            Ok(dialled) if dialled.send(&FromHost::Hello(self.hello.clone())) => {
                *link = Some(dialled);
            }
            Ok(_) => {}
            Err(error) => {
                let socket = &self.start.agent_socket;
                tracing::debug!(socket, %error, "no agent answers yet");
            }
        }
        *redial = now + *backoff;
        *backoff = (*backoff * 2).min(REDIAL_MAX);
        None
    }
}
