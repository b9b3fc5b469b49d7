//! `praas host`: an OS process that becomes one cloud process.
//!
//! ```text
//!            stdin: a socket to the agent
//!   Start ------> bind, load modules, swap in, serve ------> Ready
//!                                   |
//!        World, Keys, Stats, Adopted| (serves on)
//!        Checkpoint                 | (serves on) ---> image written beside, on another thread
//!        SwapOut, Stop              | ------> image written, or not ---> end
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
//! was since its last image is lost.

mod checkpoint;
mod link;
mod start;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use praas_runtime::host::{FromHost, HostHello, HostReader, HostStart, ToHost};
use praas_runtime::process::Process;
use praas_runtime::swap::Storage;
use praas_transport::{Keyring, Secret, StatsPage};
use tokio::signal::unix::{SignalKind, signal};

use self::checkpoint::{Checkpointed, Checkpoints};
use self::link::{Event, Link, Links, REDIAL_FIRST, REDIAL_MAX};
use self::start::{Started, host_credential, host_start};
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
    let mut links = Links::new(events_in);
    let link = links.open(socket, reader)?;
    let started = match host_start(&start, Arc::clone(&page.page)) {
        Ok(started) => started,
        Err(error) => {
            let error = error_text(&*error);
            tracing::error!(error, "the process cannot start");
            link.send(&FromHost::Failed { error });
            return Ok(ExitCode::FAILURE);
        }
    };
    link.send(&started.ready());
    let code = Host::new(start, started, links, link, checkpoints).run(&events);
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
    process: Arc<Process>,
    checkpoints: Checkpoints,
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
        started: Started,
        links: Links,
        link: Link,
        checkpoints: Checkpoints,
    ) -> Self {
        let hello = HostHello {
            pid: std::process::id(),
            application: start.application.clone(),
            process: start.process.clone(),
            incarnation: start.incarnation,
            addresses: started.process.addresses().to_vec(),
            swap_generation: started.swap_generation,
            rejected: started.rejected,
        };
        Self {
            start,
            process: Arc::new(started.process),
            checkpoints,
            storage: started.storage,
            keyring: started.keyring,
            hello,
            links,
            agent: Agent::Here(link),
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
            ToHost::World(world) => self.process.world_update(world),
            ToHost::Keys { key_id, secret } => self.keys_change(key_id, secret),
            ToHost::Stats => self.send(&FromHost::Stats(self.process.stats())),
            ToHost::Checkpoint => self.checkpoint_begin(),
            ToHost::Stop => {
                tracing::info!("stopping: the agent asks for it");
                self.process.stop();
                return Some(ExitCode::SUCCESS);
            }
            ToHost::SwapOut => {
                if self.swap_out("the agent asks for it") {
                    return Some(ExitCode::SUCCESS);
                }
            }
        }
        None
    }

    fn checkpoint_begin(&mut self) {
        let config = self.start.swap;
        let said = self.checkpoints.begin(&self.process, &self.storage, config);
        if let Some(said) = said {
            self.send(&said);
        }
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
        self.process.directory_moved(directory);
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
        self.process.credential_changed(credential);
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

    /// Whether the process was swapped out; else it serves on.
    fn swap_out(&mut self, why: &str) -> bool {
        tracing::info!("swapping out: {why}");
        match self.process.swap_out(&*self.storage, &self.start.swap) {
            Ok(committed) => {
                let (generation, bytes) = (committed.generation, committed.bytes);
                tracing::info!(generation, bytes, "swapped out");
                if let Some(error) = committed.untidy {
                    tracing::warn!(error = error_text(&error), "older images are left");
                }
                self.send(&FromHost::Swapped { generation, bytes });
                true
            }
            Err(error) => {
                let error = error_text(&error);
                tracing::error!(error, "not swapped out");
                self.send(&FromHost::SwapFailed { error });
                false
            }
        }
    }

    /// Swaps out and ends, whatever becomes of the swap.
    fn swap_and_end(&mut self, why: &str) -> ExitCode {
        match self.swap_out(why) {
            true => ExitCode::SUCCESS,
            false => EXIT_NOT_SWAPPED.into(),
        }
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
