//! State objects that are written through: durable before whoever wanted it goes on.
//!
//! ```text
//!   function: wants a key --> queue          counts as blocked, a spare in its place; waits
//!                               |
//!   a thread of its own:     all that is queued, as it is then --> one write --> all are told
//! ```
//!
//! While one write is under way others queue, and go together in the next. The first write of an
//! incarnation needs an image of this life of the process in storage, for what is written through
//! to go over; if there is none the thread takes a checkpoint. What keeps incarnations apart, and
//! what a restart makes of it, is in `swap::through`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use praas_transport::Incarnation;
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use praas_transport::{StatsWord, clock};

use super::engine::{Engine, Shared};
use crate::invocation::InvokeError;
use crate::services::Job;
use crate::state::{KEY_MAX_BYTES, Moment};
use crate::swap::{
    Base, Committed, Storage, SwapConfig, THROUGH_ENTRIES_MAX, Through, ThroughError, ThroughId,
    ThroughWriter,
};

/// How often a wait looks whether it is cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(20);
/// How long the thread stays when there is nothing to be done.
const LINGER: Duration = Duration::from_secs(1);

/// Where a process writes through, and what it needs for it.
pub struct PersistTo {
    /// The storage of its images.
    pub storage: Arc<dyn Storage>,
    /// How a checkpoint is written, if there is no image yet.
    pub config: SwapConfig,
    /// Told of such a checkpoint.
    pub checkpointed: Box<dyn Fn(&Committed) + Send + Sync>,
}

impl fmt::Debug for PersistTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PersistTo").finish_non_exhaustive()
    }
}

/// Why an object was not written through. Whether it is durable is not known, unless the call
/// itself could not be; the process has it as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PersistError {
    /// A key is empty or too long.
    #[error("a state key has 1 to 255 bytes, not {0}")]
    BadKey(usize),
    /// The object is larger than may be written through.
    #[error("state object '{key}' has {bytes} bytes, above {limit} (persist_max_bytes)")]
    TooLarge {
        /// The object.
        key: String,
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The process has no storage.
    #[error("this process has no storage to write objects through to")]
    NoStorage,
    /// Another incarnation is the process now.
    #[error("{0}")]
    Fenced(String),
    /// The storage failed.
    #[error("cannot write state object '{key}' through: {what}")]
    Storage {
        /// The object.
        key: String,
        /// Why.
        what: String,
    },
    /// It was not waited for to the end, or not at all.
    #[error(transparent)]
    Wait(#[from] InvokeError),
}

/// What becomes of one who wants an object written through.
#[derive(Default)]
struct Ticket {
    outcome: Mutex<Option<Result<u64, PersistError>>>,
    ended: Condvar,
}

impl Ticket {
    fn lock(&self) -> MutexGuard<'_, Option<Result<u64, PersistError>>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, outcome: Result<u64, PersistError>) {
        self.lock().get_or_insert(outcome);
        self.ended.notify_all();
    }
}

/// What somebody waits for: so as many are queued at most as functions may wait at a time
/// (`workers_blocked_max`).
struct Wanted {
    key: Box<str>,
    ticket: Arc<Ticket>,
}

#[derive(Default)]
struct Queue {
    wanted: VecDeque<Wanted>,
    /// Whether there is a thread.
    served: bool,
}

impl Queue {
    /// Those whose turn is next.
    fn take(&mut self) -> Option<Group> {
        let count = self.wanted.len().min(THROUGH_ENTRIES_MAX);
        (count > 0).then(|| Group(self.wanted.drain(..count).collect()))
    }
}

/// What is in storage of what this incarnation has written through and no image has yet.
#[derive(Default)]
struct Written {
    licensed: bool,
    fenced: bool,
    number: u32,
    /// The newest of each key: its version, whether there is an object, and where.
    by_key: HashMap<Box<str>, (u64, bool, ThroughId)>,
    /// Keys whose newest is there.
    live: HashMap<ThroughId, usize>,
    /// Files of incarnations before this one, which no image has yet.
    inherited: usize,
    /// The version up to which an image has all.
    forgotten: u64,
    /// How many files there must be for the next checkpoint, after one that failed.
    again: usize,
}

/// What a process has to write through.
pub(super) struct Persister {
    pub to: Option<PersistTo>,
    queue: Mutex<Queue>,
    queued: Condvar,
    written: Mutex<Written>,
    /// All writes of state up to this version are in an image.
    covered: AtomicU64,
    /// One of these images is of this incarnation.
    imaged: AtomicBool,
}

/// Those who are told at once; whoever is not told is told in the end that it failed.
struct Group(Vec<Wanted>);

impl Drop for Group {
    fn drop(&mut self) {
        for Wanted { key, ticket } in self.0.drain(..) {
            ticket.end(Err(PersistError::Storage {
                key: key.into(),
                what: "the process has ended, or the storage panicked".into(),
            }));
        }
    }
}

impl Persister {
    /// For a process that began with what is stored.
    pub fn new(stored: Option<&Base>) -> Self {
        let persister = Self {
            to: None,
            queue: Mutex::default(),
            queued: Condvar::new(),
            written: Mutex::default(),
            covered: AtomicU64::new(0),
            imaged: AtomicBool::new(false),
        };
        if let Some(stored) = stored {
            persister.stored(stored);
        }
        persister
    }

    /// The process began with this.
    pub fn stored(&self, stored: &Base) {
        let version = stored.state_version();
        self.covered.fetch_max(version, Ordering::SeqCst);
        let mut written = self.written();
        written.licensed |= stored.is_licensed();
        written.inherited = stored.through();
        written.forgotten = stored.state_version();
    }

    /// This incarnation has committed an image of the state at this version.
    pub fn covered(&self, version: u64) {
        self.covered.fetch_max(version, Ordering::SeqCst);
        self.imaged.store(true, Ordering::SeqCst);
    }

    fn is_imaged(&self) -> bool {
        self.imaged.load(Ordering::SeqCst)
    }

    /// Has the thread look whether the process has ended.
    pub fn wake(&self) {
        self.queued.notify_all();
    }

    /// Whether somebody waits whose turn has not come.
    pub fn is_wanted(&self) -> bool {
        !self.queue().wanted.is_empty()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues one more; whether there has to be a thread for it.
    fn push(&self, key: &str) -> (Arc<Ticket>, bool) {
        let ticket = Arc::new(Ticket::default());
        let mut queue = self.queue();
        queue.wanted.push_back(Wanted {
            key: key.into(),
            ticket: Arc::clone(&ticket),
        });
        let served = std::mem::replace(&mut queue.served, true);
        drop(queue);
        self.queued.notify_one();
        (ticket, !served)
    }

    /// Whoever has this ticket waits no more: unless its turn has come, nothing is done for it.
    fn forget(&self, ticket: &Arc<Ticket>) {
        let mut queue = self.queue();
        queue
            .wanted
            .retain(|wanted| !Arc::ptr_eq(&wanted.ticket, ticket));
    }

    /// All that is queued, once something is; `None` is the end of the thread.
    fn next(&self, shared: &Shared) -> Option<Group> {
        let mut queue = self.queue();
        loop {
            if let Some(group) = queue.take() {
                return Some(group);
            }
            if shared.ended.load(Ordering::SeqCst) {
                queue.served = false;
                return None;
            }
            let waited = self.queued.wait_timeout(queue, LINGER);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            if timeout.timed_out() && queue.wanted.is_empty() {
                queue.served = false;
                return None;
            }
        }
    }
}

impl Written {
    /// Forgets what an image has by now: a commit deletes it, once nobody can begin without it.
    fn forget(&mut self, covered: u64) {
        let live = &mut self.live;
        self.by_key.retain(|_, (version, _, id)| {
            let stays = *version > covered;
            if !stays {
                live_drop(live, *id);
            }
            stays
        });
        if covered > self.forgotten {
            (self.forgotten, self.inherited, self.again) = (covered, 0, 0);
        }
    }

    /// Notes what was written; what nobody needs any more.
    fn note(&mut self, id: ThroughId, written: Vec<(Box<str>, Through)>) -> Vec<ThroughId> {
        let mut dead = Vec::new();
        self.live.insert(id, written.len());
        for (key, through) in written {
            let object = matches!(through, Through::Object(..));
            let now = (through.version(), object, id);
            if let Some((.., before)) = self.by_key.insert(key, now)
                && live_drop(&mut self.live, before)
            {
                dead.push(before);
            }
        }
        dead
    }
}

/// One key fewer has its newest there; whether it was the last.
fn live_drop(live: &mut HashMap<ThroughId, usize>, id: ThroughId) -> bool {
    let Some(count) = live.get_mut(&id) else {
        return false;
    };
    *count -= 1;
    let last = *count == 0;
    if last {
        live.remove(&id);
    }
    last
}

impl Engine {
    /// Has what there is under a key written through, an object or that there is none, and waits
    /// for it; the version that is durable, zero for none.
    pub(super) fn persist(
        &self,
        job: Option<&Job>,
        key: &str,
        deadline: Option<Instant>,
    ) -> Result<u64, PersistError> {
        if key.is_empty() || key.len() > KEY_MAX_BYTES {
            return Err(PersistError::BadKey(key.len()));
        }
        if job.is_some_and(|job| job.short) {
            // It has the endpoint, which an image may be needed from.
            let text = "a function that is marked short may not wait for storage";
            return Err(InvokeError::Exhausted(text.into()).into());
        }
        let shared = &self.shared;
        if shared.persister.to.is_none() {
            return Err(PersistError::NoStorage);
        }
        let deadline = deadline.or(job.and_then(|job| job.deadline));
        shared.block()?;
        let (ticket, thread) = shared.persister.push(key);
        if thread && shared.stepped.is_none() {
            self.persist_thread();
        }
        let outcome = self.ticket_wait(&ticket, job, deadline);
        if outcome.is_err() {
            shared.persister.forget(&ticket);
        }
        shared.crew.unblock();
        outcome
    }

    /// Whether [`Engine::persist_step`] has something to do. It may be asked while that is under
    /// way, or a commit, by whoever waits in their midst: what they would have to let go of first
    /// is not done then.
    pub(super) fn persist_waits(&self) -> bool {
        let persister = &self.shared.persister;
        if self.shared.ended.load(Ordering::SeqCst) || !persister.is_wanted() {
            return false;
        }
        match persister.written.try_lock() {
            Ok(written) => {
                let begun = written.licensed && persister.is_imaged();
                begun || written.fenced || !self.is_committing()
            }
            Err(_) => false,
        }
    }

    /// What the thread does in one go, in a process without threads.
    pub(super) fn persist_step(&self) {
        if self.persist_waits() {
            let group = self.shared.persister.queue().take();
            group
                .into_iter()
                .for_each(|group| self.persist_group(group));
        }
    }

    /// Whether somebody commits.
    pub(super) fn is_committing(&self) -> bool {
        self.shared.base.try_lock().is_err()
    }

    /// Waits for the outcome; one who waits no longer does not know it.
    fn ticket_wait(
        &self,
        ticket: &Ticket,
        job: Option<&Job>,
        deadline: Option<Instant>,
    ) -> Result<u64, PersistError> {
        let shared = &self.shared;
        let mut outcome = ticket.lock();
        loop {
            if let Some(outcome) = outcome.take() {
                return outcome;
            }
            let now = clock::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Err(InvokeError::DeadlineExceeded.into());
            }
            if job.is_some_and(Job::cancelled) || shared.ended.load(Ordering::Relaxed) {
                return Err(InvokeError::Cancelled.into());
            }
            if let Some(meanwhile) = shared.stepped {
                drop(outcome);
                self.step_waiting(meanwhile, || false);
                outcome = ticket.lock();
                continue;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
            let wait = left.unwrap_or(CANCEL_LOOK).min(CANCEL_LOOK);
            let waited = ticket.ended.wait_timeout(outcome, wait);
            outcome = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn persist_thread(&self) {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("praas-persist".into());
        let started = thread.spawn(move || {
            let _served = Served(&shared);
            while let Some(group) = shared.persister.next(&shared) {
                if let Some(engine) = shared.engine() {
                    engine.persist_group(group);
                }
            }
        });
        if let Err(error) = started {
            tracing::error!(%error, "no thread to write objects through");
            let mut queue = self.shared.persister.queue();
            queue.served = false;
            drop(Group(queue.wanted.drain(..).collect()));
        }
    }

    /// Writes what is wanted, and tells those who want it.
    fn persist_group(&self, mut group: Group) {
        let persister = &self.shared.persister;
        let Some(to) = &persister.to else {
            return;
        };
        let identity = &self.shared.identity;
        let name = (&*identity.application, &*identity.name);
        let writer = ThroughWriter::new(&*to.storage, name, identity.incarnation);
        let mut written = persister.written();
        let count = |word: StatsWord, more: u64| {
            // Whoever has `written` is the only one who writes it.
            let word = self.shared.page.word(word);
            word.store(word.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        };
        if let Err(error) = self.persist_begin(to, &writer, &mut written) {
            count(StatsWord::PersistFailures, group.0.len() as u64);
            for Wanted { key, ticket } in group.0.drain(..) {
                ticket.end(Err(error.clone().of(&key)));
            }
            return;
        }
        written.forget(persister.covered.load(Ordering::SeqCst));
        while !group.0.is_empty() {
            let (taken, outcomes, entries) = self.persist_take(&mut group, &written);
            let result = match entries.is_empty() {
                true => writer.check().map(|()| Vec::new()),
                false => {
                    written.number += 1;
                    let begun = clock::now();
                    let id = writer.write(written.number, &entries);
                    let took = clock::now().saturating_duration_since(begun);
                    count(StatsWord::PersistGroups, 1);
                    count(StatsWord::PersistNs, took.as_nanos() as u64);
                    id.map(|id| {
                        let bytes = entries
                            .iter()
                            .map(|(_, through)| through.bytes().len() as u64);
                        count(StatsWord::PersistedObjects, entries.len() as u64);
                        count(StatsWord::PersistedBytes, bytes.sum());
                        written.note(id, entries)
                    })
                }
            };
            let (dead, failed) = match result {
                Ok(dead) => (dead, None),
                Err(error) => (Vec::new(), Some(Failed::from(error))),
            };
            written.fenced |= matches!(failed, Some(Failed::Fenced(_)));
            let mut taken = taken;
            for Wanted { key, ticket } in taken.0.drain(..) {
                let outcome = match (&failed, outcomes.get(&key).cloned()) {
                    (_, Some(Err(error))) => Err(error),
                    (None, Some(Ok(version))) => Ok(version),
                    (Some(failed), _) => Err(failed.clone().of(&key)),
                    (None, None) => Ok(0),
                };
                // Counted first: who is told may look.
                count(StatsWord::PersistFailures, outcome.is_err().into());
                ticket.end(outcome);
            }
            writer.delete(dead);
        }
        self.persist_tidy(to, written);
    }

    /// What has to be before anything can be written through.
    fn persist_begin(
        &self,
        to: &PersistTo,
        writer: &ThroughWriter<'_>,
        written: &mut Written,
    ) -> Result<(), Failed> {
        if written.fenced {
            let Incarnation(ours) = self.shared.identity.incarnation;
            return Err(Failed::Fenced(format!(
                "incarnation {ours} is not the process any more"
            )));
        }
        // One of this incarnation covers what lower ones have written, also what they write yet: they
        // may have been taken for dead in the middle of it, and what nobody saw when this one began
        // must not come over what this one says is durable.
        if !self.shared.persister.is_imaged() {
            let committed = self.checkpoint(&*to.storage, &to.config);
            let committed = committed.map_err(|error| {
                let what = causes(&error);
                Failed::Storage(format!("the checkpoint that it needs first: {what}"))
            })?;
            (to.checkpointed)(&committed);
        }
        if written.licensed {
            return Ok(());
        }
        writer
            .license()
            .map_err(Failed::from)
            .inspect_err(|error| {
                written.fenced |= matches!(error, Failed::Fenced(_));
            })?;
        written.licensed = true;
        Ok(())
    }

    /// Those that are written next, what becomes of each key if the write goes well, and what is
    /// to be written.
    #[allow(clippy::type_complexity)] // Three lists about the same keys.
    fn persist_take(
        &self,
        group: &mut Group,
        written: &Written,
    ) -> (
        Group,
        HashMap<Box<str>, Result<u64, PersistError>>,
        Vec<(Box<str>, Through)>,
    ) {
        let settings = &self.shared.settings;
        let covered = self.shared.persister.covered.load(Ordering::SeqCst);
        let mut outcomes = HashMap::new();
        let (mut entries, mut bytes, mut count) = (Vec::new(), 0, 0);
        for Wanted { key, .. } in &group.0 {
            if bytes >= settings.persist_group_max_bytes {
                break;
            }
            count += 1;
            if outcomes.contains_key(key) {
                continue;
            }
            let there = written.by_key.get(key);
            let outcome = match self.shared.state.moment(key) {
                Moment::Object(_, meta) if meta.bytes > settings.persist_max_bytes => {
                    Err(PersistError::TooLarge {
                        key: (**key).into(),
                        bytes: meta.bytes,
                        limit: settings.persist_max_bytes,
                    })
                }
                Moment::Object(buf, meta) => {
                    let durable = there.is_some_and(|(version, ..)| *version == meta.version);
                    if !durable && meta.version > covered {
                        bytes += meta.bytes;
                        entries.push((key.clone(), Through::Object(buf, meta)));
                    }
                    Ok(meta.version)
                }
                Moment::Stored(meta) => Ok(meta.version),
                Moment::Nothing(version) => {
                    if there.is_none_or(|(_, object, _)| *object) {
                        entries.push((key.clone(), Through::Nothing(version)));
                    }
                    Ok(0)
                }
            };
            outcomes.insert(key.clone(), outcome);
        }
        (Group(group.0.drain(..count).collect()), outcomes, entries)
    }

    /// Takes a checkpoint once what was written through lies in too many files.
    fn persist_tidy(&self, to: &PersistTo, mut written: MutexGuard<'_, Written>) {
        let max = self.shared.settings.persist_files_max;
        let files = written.live.len() + written.inherited;
        // Whoever commits in a process without threads does so below us on the stack.
        let below = self.shared.stepped.is_some() && self.is_committing();
        if files <= max.max(written.again) || below {
            return;
        }
        written.again = files + max;
        drop(written);
        match self.checkpoint(&*to.storage, &to.config) {
            Ok(committed) => (to.checkpointed)(&committed),
            Err(error) => {
                let error = causes(&error);
                tracing::warn!(error, "no checkpoint of what was written through");
            }
        }
    }
}

/// Takes note that there is no thread any more, however it ends.
struct Served<'a>(&'a Shared);

impl Drop for Served<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.0.persister.queue();
            queue.served = false;
            drop(Group(queue.wanted.drain(..).collect()));
        }
    }
}

/// Why nothing of a write is durable, as far as is known.
#[derive(Clone)]
enum Failed {
    Fenced(String),
    Storage(String),
}

impl Failed {
    fn of(self, key: &str) -> PersistError {
        match self {
            Self::Fenced(text) => PersistError::Fenced(text),
            Self::Storage(what) => PersistError::Storage {
                key: key.into(),
                what,
            },
        }
    }
}

impl From<ThroughError> for Failed {
    fn from(error: ThroughError) -> Self {
        match &error {
            ThroughError::Fenced { .. } => Self::Fenced(error.to_string()),
            ThroughError::Storage(_) => Self::Storage(causes(&error)),
        }
    }
}

/// An error and its causes, as one text.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
