//! A cloud process: functions on workers, state, a mailbox, a world view, behind one endpoint.
//!
//! ```text
//!   request --> endpoint --> Serve (handler): session, job --> worker: function --> answer
//!                              |                                  |
//!                              +--> mailbox, answers to calls     +--> Services: state, calls
//! ```
//!
//! [`Process::start`] brings one up in this OS process; a host does nothing else.

mod batch;
mod broadcast;
mod builtin;
mod crew;
mod engine;
mod lazy;
mod limits;
mod links;
mod one_way;
mod persist;
mod pull;
mod quiesce;
mod serve;
mod services;
mod settings;
mod stepped;
mod timers;
mod transfer;
mod worker;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_queue::SegQueue;
use praas_transport::clock;
use praas_transport::sync::OwnerToken;
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use praas_transport::{
    Address, Authenticator, BufPool, Credential, Endpoint, Identity, Incarnation, Kinds, Listen,
    StatsPage, StatsWord, TransportError,
};
use serde::{Deserialize, Serialize};

use self::batch::Batches;
pub(crate) use self::builtin::fuzz_inputs;
pub use self::builtin::{
    FUNCTIONS, LINKS, MESSAGE_TAKE, MessageTakeInput, STATE_APPEND, STATE_COMPARE_SWAP,
    STATE_DELETE, STATE_GET, STATE_LIST, STATE_PERSIST, STATE_PUT, StateCompareSwapInput,
    StateListInput, StatePutInput,
};
use self::crew::Crew;
use self::engine::{Core, Engine, Shared};
pub use self::lazy::Restore;
use self::lazy::Wanted;
use self::limits::Limited;
pub use self::links::LinkInfo;
use self::links::Links;
use self::one_way::{OWN_JOBS_FIRST, OneWayCalls};
use self::persist::Persister;
pub use self::persist::{PersistError, PersistTo};
pub use self::pull::{Bound, Prepared, PullFrom};
pub use self::quiesce::QuiesceError;
use self::serve::Serve;
pub use self::settings::{ProcessSettings, SettingsError, StateRead};
#[doc(hidden)]
pub use self::stepped::{Meanwhile, OutStep, SteppedOut, SteppedPull};
use self::timers::Timers;
pub use self::transfer::{TransferError, TransferOffer, TransferStep};
use crate::client::{CoreLimits, Directory, Peers};
use crate::function::Registry;
use crate::mailbox::{Mailbox, MailboxLimits};
use crate::state::{ShownStats, StateStore, versions_floor};
use crate::swap::{ImageKind, ProcessImage};
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
    /// Where functions may write objects through; without it they are told that they cannot.
    pub persist: Option<PersistTo>,
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
    /// Bytes of state objects, as they count against the limit.
    pub state_bytes: u64,
    /// Messages in the mailbox.
    pub messages: u64,
    /// Nanoseconds of busy-polling with nothing to be found; an estimate.
    pub spin_ns: u64,
    /// Nanoseconds that the endpoint's owner was blocked for.
    pub asleep_ns: u64,
    /// Nanoseconds of processor time that the OS process had, but for `spin_ns`.
    pub work_ns: u64,
    /// One-way invocations that have begun since the start.
    pub one_way: u64,
    /// One-way invocations that failed: here, or on their way from here to another process.
    pub one_way_failed: u64,
    /// Invocations past their function's time that still run.
    pub overdue: u64,
    /// State objects that were written through to storage since the start, those that are gone
    /// included.
    pub persisted_objects: u64,
    /// Bytes of those objects.
    pub persisted_bytes: u64,
    /// Writes through that have failed since the start.
    pub persist_failures: u64,
    /// Times that storage was written to for it, each for all objects that waited.
    pub persist_groups: u64,
    /// Nanoseconds that this took.
    pub persist_ns: u64,
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
    pub fn start_from<R: Into<Restore>, E: From<StartError>>(
        config: ProcessConfig,
        restore: impl FnOnce(&BufPool) -> Result<Option<R>, E>,
    ) -> Result<Self, E> {
        Self::start_counted(config, Arc::new(StatsPage::private()), restore)
    }

    /// The same, counting what it does in a page that others may look at.
    ///
    /// # Errors
    /// As [`Process::start_from`].
    pub fn start_counted<R: Into<Restore>, E: From<StartError>>(
        config: ProcessConfig,
        page: Arc<StatsPage>,
        restore: impl FnOnce(&BufPool) -> Result<Option<R>, E>,
    ) -> Result<Self, E> {
        config.settings.check().map_err(StartError::from)?;
        let mut endpoint = endpoint_make(&config)?;
        endpoint.count_in(page);
        let restore = restore(endpoint.pool())?.map(R::into);
        endpoint
            .listen_any(&config.listen)
            .map_err(StartError::from)?;
        let process = Self::start_on(endpoint, config, restore, None, Vec::new())?;
        process.threads_start()?;
        let fetchers = process.fetchers_start();
        fetchers.map_err(StartError::System)?;
        Ok(process)
    }

    fn start_on(
        endpoint: Endpoint,
        config: ProcessConfig,
        restore: Option<Restore>,
        stepped: Option<Meanwhile>,
        vouched: Vec<u64>,
    ) -> Result<Self, StartError> {
        let identity = endpoint.identity().clone();
        let settings = config.settings;
        let addresses = endpoint.addresses().to_vec();
        let limits = CoreLimits {
            reconnect_for: Duration::from_millis(settings.peers_reconnect_ms),
            ..CoreLimits::default()
        };
        let peers = Peers::new(
            config.directory,
            config.credential,
            config.transports,
            limits,
        );
        let (mut shared, sessions) =
            shared_make(identity, settings, config.registry, &endpoint, restore)?;
        shared.persister.to = config.persist;
        if stepped.is_some() {
            shared.stepped = stepped;
            shared.state.one_thread_set();
        }
        shared.vouched = vouched;
        let shared = Arc::new(shared);
        let serve = Serve::new(Arc::clone(&shared), peers, sessions);
        let weak = Arc::downgrade(&shared);
        shared.state.on_retired(move || {
            if let Some(shared) = weak.upgrade() {
                shared.post(engine::Post::Retired);
            }
        });
        let token = OwnerToken::new(Core {
            endpoint,
            serve,
            one_ways: OneWayCalls::default(),
            batches: Batches::default(),
        });
        let engine = Arc::new(Engine { shared, token });
        // Set once, here.
        let _ = engine.shared.engine.set(Arc::downgrade(&engine));
        Ok(Self {
            engine,
            addresses,
            threads: Mutex::new(Vec::new()),
        })
    }

    fn threads_start(&self) -> Result<(), StartError> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..self.engine.shared.crew.threads_first() {
            threads.push(worker::worker_start(&self.engine).map_err(StartError::System)?);
        }
        Ok(())
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
            invocations: shared.page.load(StatsWord::Invocations),
            running: shared.crew.running() as u64,
            blocked: shared.crew.blocked() as u64,
            queued: shared.crew.queued() as u64,
            state_bytes: shared.state.used_bytes(),
            messages: shared.mailbox().len() as u64,
            one_way: shared.one_way.load(Ordering::Relaxed),
            one_way_failed: shared.one_way_failed.load(Ordering::Relaxed),
            overdue: shared.timers.overdue() as u64,
            persisted_objects: shared.page.load(StatsWord::PersistedObjects),
            persisted_bytes: shared.page.load(StatsWord::PersistedBytes),
            persist_failures: shared.page.load(StatsWord::PersistFailures),
            persist_groups: shared.page.load(StatsWord::PersistGroups),
            persist_ns: shared.page.load(StatsWord::PersistNs),
        }
    }

    /// What of its state is shown to peers.
    pub fn state_shown(&self) -> ShownStats {
        self.engine.shared.state.shown()
    }

    fn abandon(&self) {
        self.engine.shared.ended.store(true, Ordering::SeqCst);
        self.engine.shared.waker.wake();
        self.engine.shared.crew.call_all();
        self.engine.shared.persister.wake();
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
    clock::random_fill(&mut client_id)
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
    restore: Option<Restore>,
) -> Result<Restored, StartError> {
    let pool = endpoint.pool().clone();
    let page = endpoint.stats_page();
    let mut state = StateStore::new(pool.clone(), settings.state_max_bytes);
    state.count_in(Arc::clone(&page));
    let mut mailbox = Mailbox::new(MailboxLimits {
        messages_max: settings.mailbox_messages_max,
        bytes_max: settings.mailbox_max_bytes,
    });
    mailbox.count_in(Arc::clone(&page));
    let mut sessions = Vec::new();
    let mut files = Vec::new();
    let (mut restored_from, mut stored) = (None, None);
    if let Some(Restore {
        image,
        absent,
        base,
    }) = restore
    {
        stored = base;
        if (&*image.application, &*image.process) != (&*identity.application, &*identity.name) {
            let text = format!("the image is of {}/{}", image.application, image.process);
            return Err(StartError::Restore(text));
        }
        // Also of what is deleted: what was written since must count as newer than the image.
        state.versions_above(image.state_version);
        restored_from = (image.kind == ImageKind::Final).then_some(image.incarnation);
        match absent {
            None => state.restore(image.state),
            Some(absent) => state.restore_with(image.state, absent),
        }
        let restored = mailbox.restore(image.mailbox);
        restored.map_err(|error| StartError::Restore(error.to_string()))?;
        sessions = image.sessions;
        files = image.files;
    }
    state.versions_above(versions_floor(identity.incarnation.0, clock::unix_ms()));
    let workers = settings.workers_here();
    let shared = Shared {
        links: Links::default(),
        crew: Crew::new(
            workers,
            settings.workers_blocked_max,
            settings.queue_max,
            settings.workers_overdue_max,
            Arc::clone(&page),
        ),
        limits: Limited::of_all(&registry, &settings),
        timers: Timers::default(),
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
        files: OnceLock::new(),
        files_making: Mutex::new(()),
        restored_from,
        vouched: Vec::new(),
        ended: AtomicBool::new(false),
        leader_asleep: AtomicBool::new(false),
        monitor_asleep: AtomicBool::new(false),
        page,
        one_way: AtomicU64::new(0),
        one_way_failed: AtomicU64::new(0),
        own_jobs: AtomicU64::new(OWN_JOBS_FIRST),
        wanted: Wanted::default(),
        persister: Persister::new(stored.as_ref()),
        base: Mutex::new(stored),
        one_way_closed: AtomicBool::new(false),
        quiet_wanted: AtomicBool::new(false),
        quiet: (Mutex::new(()), Condvar::new()),
        transfer_cancelled: AtomicBool::new(false),
        engine: OnceLock::new(),
        stepped: None,
    };
    if !files.is_empty() {
        let restored = shared.files_dir().and_then(|dir| dir.restore(&files));
        restored.map_err(|error| StartError::Restore(error.to_string()))?;
    }
    Ok((shared, sessions))
}

#[cfg(test)]
mod tests;
