//! A cloud process: functions on workers, state, a mailbox, a world view, behind one endpoint.
//!
//! ```text
//!   request --> endpoint --> Serve (handler): session, job --> worker: function --> answer
//!                              |                                  |
//!                              +--> mailbox, answers to calls     +--> Services: state, calls
//! ```
//!
//! [`Process::start`] brings one up in this OS process; a host does nothing else.

mod builtin;
mod crew;
mod engine;
mod serve;
mod services;
mod settings;
mod worker;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use praas_transport::sync::OwnerToken;
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use praas_transport::{
    Address, Authenticator, BufPool, Credential, Endpoint, Identity, Incarnation, Kinds, Listen,
    TransportError,
};
use serde::{Deserialize, Serialize};

pub use self::builtin::{
    FUNCTIONS, MESSAGE_TAKE, MessageTakeInput, STATE_DELETE, STATE_GET, STATE_LIST, STATE_PUT,
    StateListInput, StatePutInput,
};
use self::crew::Crew;
use self::engine::{Core, Engine, Shared};
use self::serve::Serve;
pub use self::settings::{ProcessSettings, SettingsError};
use crate::client::{CoreLimits, Directory, Peers};
use crate::function::Registry;
use crate::invocation::{Payload, Status};
use crate::mailbox::{Mailbox, MailboxLimits};
use crate::state::StateStore;
use crate::swap::{Committed, ProcessImage, Storage, SwapConfig, SwapError, swap_out};
use crate::world::{World, WorldView};

/// What a process needs to start.
pub struct ProcessConfig {
    /// Application.
    pub application: String,
    /// Name within the application.
    pub process: String,
    /// Which life of the name this is.
    pub incarnation: Incarnation,
    /// Where to listen.
    pub listen: Vec<Listen>,
    /// Who may connect.
    pub authenticator: Arc<dyn Authenticator>,
    /// What the process shows to others.
    pub credential: Credential,
    /// Where it looks others up.
    pub directory: Directory,
    /// The transports to reach others by; the best of them that works is used.
    pub transports: Kinds,
    /// Limits.
    pub settings: ProcessSettings,
    /// Its functions.
    pub registry: Registry,
    /// What it was when it was swapped out.
    pub restore: Option<ProcessImage>,
}

/// Why a process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot be.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The endpoint cannot be made or cannot listen.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The image does not fit.
    #[error("cannot restore the process: {0}")]
    Restore(String),
    /// No threads, or no random bytes.
    #[error("cannot start the process: {0}")]
    System(std::io::Error),
}

/// Why a process was not swapped out; it serves on.
#[derive(Debug, thiserror::Error)]
pub enum QuiesceError {
    /// Functions went on running after they were cancelled.
    #[error("{running} functions still run {waited_ms} ms after the swap began, cancelled or not")]
    StillRunning {
        /// How many.
        running: usize,
        /// For how long they were waited for.
        waited_ms: u64,
    },
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// Its mailbox cannot be written.
    #[error("cannot encode the mailbox: {0}")]
    Encode(#[from] crate::codec::CodecError),
    /// Storage failed.
    #[error(transparent)]
    Swap(#[from] SwapError),
}

/// What a process counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStats {
    /// Invocations answered since the start.
    pub invocations: u64,
    /// Functions that run.
    pub running: u64,
    /// Functions that wait in a call of theirs.
    pub blocked: u64,
    /// Invocations that wait for a worker.
    pub queued: u64,
    /// Bytes of state objects.
    pub state_bytes: u64,
    /// Messages in the mailbox.
    pub messages: u64,
    /// Nanoseconds of busy-polling with nothing to be found; an estimate.
    pub spin_ns: u64,
    /// Nanoseconds that the endpoint's owner was blocked for.
    pub asleep_ns: u64,
    /// Nanoseconds of processor time that the OS process had, but for `spin_ns`.
    pub work_ns: u64,
}

/// A running cloud process.
pub struct Process {
    engine: Arc<Engine>,
    addresses: Vec<Address>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("identity", &self.engine.shared.identity)
            .finish()
    }
}

impl Process {
    /// Starts a process: it serves when this returns.
    ///
    /// # Errors
    /// Settings that cannot be, addresses that are taken, an image that does not fit.
    pub fn start(mut config: ProcessConfig) -> Result<Self, StartError> {
        let restore = config.restore.take();
        Self::start_from(config, |_| Ok(restore))
    }

    /// Starts a process from the image that `restore` makes in the process's own pool, so that what
    /// comes back counts against `buffers_max_bytes` like what is made later. Nobody can connect
    /// until it has returned.
    ///
    /// # Errors
    /// As [`Process::start`], and those of `restore`.
    pub fn start_from<E: From<StartError>>(
        config: ProcessConfig,
        restore: impl FnOnce(&BufPool) -> Result<Option<ProcessImage>, E>,
    ) -> Result<Self, E> {
        config.settings.check().map_err(StartError::from)?;
        let endpoint = endpoint_make(&config)?;
        let image = restore(endpoint.pool())?;
        Ok(Self::start_on(endpoint, config, image)?)
    }

    fn start_on(
        mut endpoint: Endpoint,
        config: ProcessConfig,
        restore: Option<ProcessImage>,
    ) -> Result<Self, StartError> {
        let identity = endpoint.identity().clone();
        let settings = config.settings;
        endpoint.listen_any(&config.listen)?;
        let addresses = endpoint.addresses().to_vec();
        let limits = CoreLimits::default();
        let peers = Peers::new(
            config.directory,
            config.credential,
            config.transports,
            limits,
        );
        let (shared, sessions) =
            shared_make(identity, settings, config.registry, &endpoint, restore)?;
        let shared = Arc::new(shared);
        let serve = Serve::new(Arc::clone(&shared), peers, sessions);
        let token = OwnerToken::new(Core { endpoint, serve });
        let engine = Arc::new(Engine { shared, token });
        // Set once, here.
        let _ = engine.shared.engine.set(Arc::downgrade(&engine));
        let process = Self {
            engine,
            addresses,
            threads: Mutex::new(Vec::new()),
        };
        for _ in 0..process.engine.shared.crew.threads_first() {
            let thread = worker::worker_start(&process.engine).map_err(StartError::System)?;
            process
                .threads
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(thread);
        }
        Ok(process)
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.engine.shared.identity
    }

    /// Takes a newer view of the application.
    pub fn world_update(&self, world: World) {
        self.engine.shared.world.update(world);
    }

    /// Looks others up elsewhere from now on: the agent has come back at other addresses.
    pub fn directory_moved(&self, addresses: Vec<Address>) {
        self.engine
            .shared
            .post(engine::Post::Control(Box::new(move |core| {
                core.serve.peers.directory_moved(addresses);
            })));
    }

    /// The application's secret was replaced: shows another credential to others from now on, and
    /// closes the channels of those who came with tickets of the old one.
    pub fn credential_changed(&self, credential: Credential) {
        self.engine
            .shared
            .post(engine::Post::Control(Box::new(move |core| {
                core.serve.peers.credential_changed(credential);
                core.serve.callers_close(&mut core.endpoint);
            })));
    }

    /// What it counts.
    pub fn stats(&self) -> ProcessStats {
        let shared = &self.engine.shared;
        let times = shared.times.read();
        ProcessStats {
            spin_ns: times.spin_ns,
            asleep_ns: times.asleep_ns,
            work_ns: cpu_ns().saturating_sub(times.spin_ns),
            invocations: shared.invocations.load(Ordering::Relaxed),
            running: shared.crew.running() as u64,
            blocked: shared.crew.blocked() as u64,
            queued: shared.crew.queued() as u64,
            state_bytes: shared.state.used_bytes(),
            messages: shared.mailbox().len() as u64,
        }
    }

    /// Swaps the process out: running functions finish (or are cancelled after
    /// `quiesce_timeout_ms`), new invocations are turned away, the image is committed. The process
    /// has then ended. If anything fails it serves on, and says why.
    ///
    /// # Errors
    /// Functions that do not end; storage that fails.
    pub fn swap_out(
        &self,
        storage: &dyn Storage,
        config: &SwapConfig,
    ) -> Result<Committed, QuiesceError> {
        let outcome = self
            .quiesce()
            .and_then(|()| self.image())
            .and_then(|image| {
                let image = image?;
                Ok(swap_out(storage, &image, config)?)
            });
        match outcome {
            Ok(committed) => {
                self.end();
                Ok(committed)
            }
            Err(error) => {
                self.engine.with_core(|core| {
                    core.serve.quiescing = false;
                    core.serve.sealed = false;
                });
                Err(error)
            }
        }
    }

    /// Stops the process in good order: as a swap, but nothing is kept. Functions that do not end
    /// are left behind.
    pub fn stop(&self) {
        if let Err(error) = self.quiesce() {
            tracing::warn!(%error, "stopping all the same");
        }
        self.end();
    }

    /// Turns new invocations away and waits until no function runs.
    fn quiesce(&self) -> Result<(), QuiesceError> {
        let engine = &self.engine;
        let begun = engine.with_core(|core| {
            core.serve.quiescing = true;
            let mut turned_away: Vec<_> = core.serve.ready.drain(..).collect();
            turned_away.extend(core.serve.shared.crew.queue_take(None));
            let Core { endpoint, serve } = core;
            for job in turned_away {
                let (client, sequence) = (job.client, job.sequence);
                let (status, none) = (Status::Quiescing, Payload::default());
                serve.reply(endpoint, job.session, client, sequence, status, none);
            }
        });
        begun.ok_or(QuiesceError::Ended)?;
        let patience = Duration::from_millis(engine.shared.settings.quiesce_timeout_ms);
        let quiet = self.quiet_wait(patience);
        let quiet = quiet || {
            for worker in engine.shared.crew.workers() {
                let job = worker.job.load(Ordering::Acquire);
                worker.cancel.store(job, Ordering::Release);
                worker.thread.unpark();
            }
            self.quiet_wait(patience)
        };
        match quiet {
            true => Ok(()),
            false => Err(QuiesceError::StillRunning {
                running: engine.shared.crew.running() + engine.shared.crew.blocked(),
                waited_ms: patience.as_millis() as u64 * 2,
            }),
        }
    }

    /// Waits until no function runs, at most for `patience`.
    fn quiet_wait(&self, patience: Duration) -> bool {
        let shared = &self.engine.shared;
        let until = Instant::now() + patience;
        shared.quiet_wanted.store(true, Ordering::SeqCst);
        let mut guard = shared
            .quiet
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let quiet = loop {
            if shared.crew.running() + shared.crew.blocked() == 0 {
                break true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            // A notice may fall between the look and the wait: look again soon.
            let wait = left.min(Duration::from_millis(5));
            let waited = shared.quiet.1.wait_timeout(guard, wait);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(guard);
        shared.quiet_wanted.store(false, Ordering::SeqCst);
        quiet
    }

    fn image(&self) -> Result<Result<ProcessImage, crate::codec::CodecError>, QuiesceError> {
        let image = self.engine.with_core(|core| {
            core.serve.sealed = true;
            let shared = &core.serve.shared;
            Ok(ProcessImage {
                application: shared.identity.application.to_string(),
                process: shared.identity.name.to_string(),
                incarnation: shared.identity.incarnation,
                state: shared.state.snapshot(),
                mailbox: shared.mailbox().image()?,
                sessions: core.serve.sessions_image(),
                files: Vec::new(),
            })
        });
        image.ok_or(QuiesceError::Ended)
    }

    /// Closes everything in good order and lets the threads go.
    fn end(&self) {
        let flushed = Instant::now() + Duration::from_secs(5);
        while Instant::now() < flushed
            && self.engine.with_core(|core| core.serve.backlogged()) == Some(true)
        {
            std::thread::yield_now();
        }
        self.engine.with_core(|core| {
            let Core { endpoint, serve } = core;
            serve.close_all(endpoint);
            // The peers see the end before the sockets are gone.
            let until = Instant::now() + Duration::from_millis(5);
            endpoint.progress_wait(serve, Some(until), praas_transport::WaitMode::Warm);
        });
        self.abandon();
    }

    fn abandon(&self) {
        self.engine.shared.ended.store(true, Ordering::SeqCst);
        self.engine.shared.waker.wake();
        self.engine.shared.crew.call_all();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.abandon();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A function that does not end keeps its thread; waiting for it would hang us.
            if self.engine.shared.crew.running() + self.engine.shared.crew.blocked() == 0 {
                drop(thread.join());
            }
        }
    }
}

/// The endpoint of a process, which does not listen yet.
fn endpoint_make(config: &ProcessConfig) -> Result<Endpoint, StartError> {
    let mut client_id = [0; 16];
    getrandom::fill(&mut client_id)
        .map_err(|error| StartError::System(std::io::Error::other(error.to_string())))?;
    let identity = Identity {
        application: config.application.as_str().into(),
        name: config.process.as_str().into(),
        incarnation: config.incarnation,
        client_id: u128::from_le_bytes(client_id) | 1,
    };
    let transport = config.settings.transport.clone();
    let authenticator = Arc::clone(&config.authenticator);
    Ok(Endpoint::new(transport, identity, Some(authenticator))?)
}

type Restored = (Shared, Vec<crate::invocation::SessionImage>);

/// Processor time of this OS process, which the kernel counts anyway.
fn cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn shared_make(
    identity: Identity,
    settings: ProcessSettings,
    registry: Registry,
    endpoint: &Endpoint,
    restore: Option<ProcessImage>,
) -> Result<Restored, StartError> {
    let pool = endpoint.pool().clone();
    let state = StateStore::new(pool.clone(), settings.state_max_bytes);
    let mut mailbox = Mailbox::new(MailboxLimits {
        messages_max: settings.mailbox_messages_max,
        bytes_max: settings.mailbox_max_bytes,
    });
    let mut sessions = Vec::new();
    let mut restored_from = None;
    if let Some(image) = restore {
        if (&*image.application, &*image.process) != (&*identity.application, &*identity.name) {
            let text = format!("the image is of {}/{}", image.application, image.process);
            return Err(StartError::Restore(text));
        }
        restored_from = Some(image.incarnation);
        state.restore(image.state);
        let restored = mailbox.restore(image.mailbox);
        restored.map_err(|error| StartError::Restore(error.to_string()))?;
        sessions = image.sessions;
    }
    state.versions_above(identity.incarnation.0 << 32);
    let workers = settings.workers_here();
    let shared = Shared {
        crew: Crew::new(workers, settings.workers_blocked_max, settings.queue_max),
        waker: endpoint.waker(),
        times: endpoint.times(),
        identity,
        settings,
        registry,
        state,
        world: WorldView::default(),
        pool,
        mailbox: Mutex::new(mailbox),
        outbox: SegQueue::new(),
        restored_from,
        ended: AtomicBool::new(false),
        leader_asleep: AtomicBool::new(false),
        monitor_asleep: AtomicBool::new(false),
        invocations: AtomicU64::new(0),
        quiet_wanted: AtomicBool::new(false),
        quiet: (Mutex::new(()), Condvar::new()),
        engine: OnceLock::new(),
    };
    Ok((shared, sessions))
}
