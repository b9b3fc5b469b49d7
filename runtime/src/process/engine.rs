//! The engine of a process: what its workers share, and how the endpoint's owner works.
//!
//! ```text
//!   Engine
//!    |-- token: OwnerToken<Core { endpoint, serve }>     one owner at a time
//!    |-- outbox: what the others want done with it       drained by the owner
//!    +-- shared: state, mailbox, world, registry, crew   anybody's
//! ```

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use praas_transport::clock;
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use praas_transport::sync::{Owned, OwnerToken};
use praas_transport::{
    BufPool, Endpoint, Identity, Incarnation, StatsPage, StatsWord, TimesReader, WaitMode, Waker,
};

use super::batch::{BatchCall, Batches};
use super::builtin::Builtin;
use super::crew::{Crew, Delivery, Worker};
use super::lazy::Wanted;
use super::limits::Limited;
use super::links::Links;
use super::one_way::{OWNER_NONE, OneWayCall, OneWayCalls};
use super::persist::Persister;
use super::serve::{Callee, ReadyJob, Serve};
use super::settings::ProcessSettings;
use super::stepped::Meanwhile;
use super::timers::Timers;
use crate::client::{CallId, CallOptions};
use crate::files::{FilesDir, FilesError};
use crate::function::Registry;
use crate::invocation::{InvokeError, Payload, PutBody, Status};
use crate::mailbox::{MailMessage, Mailbox, Put, PutId};
use crate::state::StateStore;
use crate::swap::Base;
use crate::world::WorldView;

/// What all workers use at any time.
pub(super) struct Shared {
    pub identity: Identity,
    pub settings: ProcessSettings,
    pub registry: Registry,
    /// Limits of functions, by number; none of most.
    pub limits: Vec<Option<Box<Limited>>>,
    /// What is to happen at some time.
    pub timers: Timers,
    pub state: StateStore,
    pub world: WorldView,
    pub crew: Crew,
    /// Channels between this process and others.
    pub links: Links,
    pub pool: BufPool,
    pub waker: Waker,
    /// Where the endpoint's time goes.
    pub times: TimesReader,
    pub mailbox: Mutex<Mailbox>,
    pub outbox: SegQueue<Post>,
    /// The process's directory, once somebody has wanted it.
    pub files: OnceLock<FilesDir>,
    pub files_making: Mutex<()>,
    /// The incarnation whose final image this process began with: what it does not know of never
    /// ran there. Of what a process did after a checkpoint nothing is known.
    pub restored_from: Option<Incarnation>,
    /// Incarnations before that one whose invocations are known, too.
    pub vouched: Vec<u64>,
    /// The process has ended: threads leave.
    pub ended: AtomicBool,
    /// The leader blocks in the kernel; nobody needs to watch it.
    pub leader_asleep: AtomicBool,
    /// The monitor sleeps until the leader wakes it.
    pub monitor_asleep: AtomicBool,
    /// What is counted, for others to look at: invocations answered since the start, and more.
    pub page: Arc<StatsPage>,
    /// One-way invocations that began since the start, and those of them that failed, with those to
    /// other processes that did not begin.
    pub one_way: AtomicU64,
    pub one_way_failed: AtomicU64,
    /// The next number of a job of the process's own.
    pub own_jobs: AtomicU64,
    /// The process is about to end, and takes no more of those.
    pub one_way_closed: AtomicBool,
    /// Somebody waits for functions to finish.
    pub quiet_wanted: AtomicBool,
    pub quiet: (Mutex<()>, Condvar),
    /// The transfer that is under way is called off: whoever waits for its sake waits no longer.
    pub transfer_cancelled: AtomicBool,
    /// The engine itself, for starting spares.
    pub engine: OnceLock<Weak<Engine>>,
    /// State objects to be fetched from storage.
    pub wanted: Wanted,
    /// What is to be written through.
    pub persister: Persister,
    /// What is in storage already; held by whoever commits an image, one at a time.
    pub base: Mutex<Option<Base>>,
    /// There are no threads, and this goes on in place of a wait.
    pub stepped: Option<Meanwhile>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// What a worker without the endpoint wants done with it.
pub(super) enum Post {
    /// Answer an invocation.
    Reply {
        session: usize,
        client: u128,
        sequence: u64,
        status: Status,
        payload: Payload,
    },
    /// Call another process for a function.
    Call {
        worker: usize,
        stamp: u32,
        call: Outgoing,
        options: CallOptions,
    },
    /// Call another process one-way, as soon as there is room.
    OneWay(OneWayCall),
    /// Call another process with many inputs.
    Batch(BatchCall),
    /// Give up on the batch of a worker's wait.
    BatchCancel { worker: usize, stamp: u32 },
    /// Give up on a call.
    Cancel(CallId),
    /// Close the regions of state objects that were replaced.
    Retired,
    /// Anything else.
    Control(Control),
}

/// Work for the endpoint's owner.
type Control = Box<dyn FnOnce(&mut Core) + Send>;

/// A call to another process.
#[derive(Debug)]
pub(super) enum Outgoing {
    Invoke {
        process: String,
        function: String,
        input: Payload,
    },
    Put {
        process: String,
        body: PutBody,
    },
    Read {
        process: String,
        key: String,
    },
}

/// What the token owns.
#[derive(Debug)]
pub(super) struct Core {
    pub endpoint: Endpoint,
    pub serve: Serve,
    /// One-way calls of functions that wait for room.
    pub one_ways: OneWayCalls,
    /// Batches of functions.
    pub batches: Batches,
}

/// A running process.
pub(super) struct Engine {
    pub shared: Arc<Shared>,
    pub token: OwnerToken<Core>,
}

impl Shared {
    /// The process's directory, which is made when it is first wanted: in the run directory if there
    /// is one.
    pub fn files_dir(&self) -> Result<&FilesDir, FilesError> {
        let _one_at_a_time = self
            .files_making
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = self.files.get() {
            return Ok(files);
        }
        let base = std::env::var_os("PRAAS_RUN_DIR").map_or_else(std::env::temp_dir, Into::into);
        let made = FilesDir::create(&base)?;
        Ok(self.files.get_or_init(|| made))
    }

    /// What a function's name stands for.
    pub fn callee(&self, name: &str) -> Callee {
        if let Some(builtin) = Builtin::from_name(name) {
            return Callee::Builtin(builtin);
        }
        match self.registry.find(name) {
            None => Callee::Unknown,
            Some(index) if self.limited(index).is_some() => Callee::Limited(index),
            Some(index) => Callee::User(index),
        }
    }

    /// Whether running it twice does no harm.
    pub fn idempotent(&self, callee: Callee) -> bool {
        match callee {
            Callee::User(index) | Callee::Limited(index) => {
                self.registry.function(index).flags().idempotent()
            }
            Callee::Builtin(builtin) => builtin.is_idempotent(),
            Callee::Unknown => true,
        }
    }

    /// Tells a running function that it should end; whether any worker runs it.
    pub fn job_cancel(&self, job: u64) -> bool {
        let mut found = false;
        for worker in self.crew.workers() {
            if worker.job.load(Ordering::Acquire) == job {
                worker.cancel.store(job, Ordering::Release);
                worker.thread.unpark();
                found = true;
            }
        }
        found
    }

    pub fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.get().and_then(Weak::upgrade)
    }

    pub fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message into the mailbox, or hands it to the worker that waits for it.
    pub fn mail_put(&self, id: Option<PutId>, message: MailMessage) -> Put {
        let mut mailbox = self.mailbox();
        let (put, handed) = mailbox.put(id, message);
        if let Some((waiter, message)) = handed {
            let worker = self.crew.worker((waiter >> 32) as usize);
            let left = match worker {
                Some(worker) => worker.deliver(waiter as u32, Delivery::Message(message)),
                None => Some(Delivery::Message(message)),
            };
            if let Some(Delivery::Message(message)) = left {
                mailbox.give_back(message);
            }
        }
        put
    }

    /// Whether the mailbox may take a message of this size.
    pub fn mail_room(&self, bytes: u64) -> bool {
        self.mailbox().has_room(bytes)
    }

    /// Leaves work for the endpoint's owner.
    pub fn post(&self, post: Post) {
        self.outbox.push(post);
        self.waker.wake();
    }

    /// A function is done, or waits: whoever waits for quiet looks again.
    #[inline]
    pub fn quiet_notify(&self) {
        if self.quiet_wanted.load(Ordering::Relaxed) {
            let _guard = self.quiet.0.lock().unwrap_or_else(PoisonError::into_inner);
            self.quiet.1.notify_all();
        }
    }
}

impl Engine {
    /// Does what others left to do, and tells them what has ended.
    #[inline]
    pub fn outbox_drain(&self, core: &mut Core) {
        // Looking is cheaper than trying: a queue that is empty says so with a fence.
        while !self.shared.outbox.is_empty()
            && let Some(post) = self.shared.outbox.pop()
        {
            match post {
                Post::Reply {
                    session,
                    client,
                    sequence,
                    status,
                    payload,
                } => {
                    let Core {
                        endpoint, serve, ..
                    } = core;
                    serve.reply(endpoint, session, client, sequence, status, payload);
                    self.replied();
                }
                Post::Call {
                    worker,
                    stamp,
                    call,
                    options,
                } => {
                    let begun = self.call_begin(core, worker, stamp, call, options);
                    let Some(worker) = self.shared.crew.worker(worker) else {
                        continue;
                    };
                    match begun {
                        Ok(call) => {
                            let mut inbox = worker.inbox();
                            if inbox.stamp == stamp {
                                inbox.call = Some(call);
                            } else {
                                drop(inbox);
                                core.serve.peers.cancel(&mut core.endpoint, call);
                            }
                        }
                        // Nobody waits any more if it cannot be delivered.
                        Err(error) => drop(worker.deliver(stamp, Delivery::Ended(Err(error), 0))),
                    }
                }
                Post::OneWay(call) => self.one_way_queue(core, call),
                Post::Retired => self.shared.state.retired_close(&mut core.endpoint),
                Post::Batch(call) => self.batch_begin(core, call),
                Post::BatchCancel { worker, stamp } => self.batch_cancel(core, worker, stamp),
                Post::Cancel(call) => core.serve.peers.cancel(&mut core.endpoint, call),
                Post::Control(control) => control(core),
            }
        }
        while let Some(completed) = core.serve.peers.completed() {
            if completed.owner == OWNER_NONE {
                let failed = u64::from(completed.outcome.is_err());
                self.shared
                    .one_way_failed
                    .fetch_add(failed, Ordering::Relaxed);
                continue;
            }
            if Batches::owns(completed.owner) {
                self.batch_ended(core, completed.owner, completed.outcome);
                continue;
            }
            let (worker, stamp) = ((completed.owner >> 32) as usize, completed.owner as u32);
            if let Some(worker) = self.shared.crew.worker(worker) {
                worker.ended(stamp, completed);
            }
        }
        if !core.one_ways.is_empty() {
            self.one_ways_start(core);
        }
        if core.batches.is_due() {
            self.batches_send(core);
        }
    }

    /// Begins a call to another process on behalf of a worker's function.
    pub fn call_begin(
        &self,
        core: &mut Core,
        worker: usize,
        stamp: u32,
        call: Outgoing,
        options: CallOptions,
    ) -> Result<CallId, InvokeError> {
        let owner = (worker as u64) << 32 | u64::from(stamp);
        let Core {
            endpoint, serve, ..
        } = core;
        let peers = &mut serve.peers;
        let begun = match call {
            Outgoing::Invoke {
                process,
                function,
                input,
            } => {
                let target = peers.target(&process)?;
                let function = peers.function(target, &function)?;
                peers.invoke(endpoint, target, function, input, options, owner)
            }
            Outgoing::Put { process, body } => {
                let target = peers.target(&process)?;
                peers.put(endpoint, target, body, options, owner)
            }
            Outgoing::Read { process, key } => {
                let target = peers.target(&process)?;
                peers.state_read(endpoint, target, &key, options, owner)
            }
        };
        begun.map_err(crate::client::Refusal::into_error)
    }

    /// Leads: drains the outbox and makes progress until there is a job to run (only if `runs`),
    /// `stop` says so, the time has come, or the process has ended.
    pub fn lead(
        &self,
        core: &mut Core,
        runs: bool,
        until: Option<Instant>,
        mut stop: impl FnMut() -> bool,
    ) -> Option<ReadyJob> {
        let crew = &self.shared.crew;
        loop {
            self.outbox_drain(core);
            if stop() {
                return None;
            }
            while let Some(first) = core.serve.ready.front() {
                if let Callee::Limited(index) = first.callee
                    && !self.gate_pass(core, index)
                {
                    continue;
                }
                let Some(job) = core.serve.ready.pop_front() else {
                    break;
                };
                // Jobs in the queue came first.
                if runs && crew.queued() == 0 && crew.run_try() {
                    return Some(job);
                }
                if let Some(job) = crew.queue_push(job) {
                    self.shared.job_gone(&job);
                    let text = Payload::Inline((&b"the queue is full (queue_max)"[..]).into());
                    let Core {
                        endpoint, serve, ..
                    } = &mut *core;
                    serve.job_answer(endpoint, &job, Status::Exhausted, text);
                }
            }
            if runs && let Some(job) = crew.queue_pop() {
                return Some(job);
            }
            if self.shared.ended.load(Ordering::Relaxed) {
                return None;
            }
            if until.is_some_and(|until| until <= clock::now()) {
                return None;
            }
            self.core_wait(core, until);
        }
    }

    /// One wait for something to happen on the endpoint.
    #[inline]
    fn core_wait(&self, core: &mut Core, until: Option<Instant>) {
        let Core {
            endpoint, serve, ..
        } = core;
        let timer = serve.peers.timer_next();
        let until = match (until, timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let own_timer = self.shared.timers.next();
        let until = match (until, own_timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        match self.shared.settings.wait {
            WaitMode::Hot => {
                endpoint.progress_wait(serve, until, WaitMode::Hot);
            }
            WaitMode::Warm => self.core_block(endpoint, serve, until),
            WaitMode::Adaptive => {
                if endpoint.progress(serve) == 0 {
                    let spin = Duration::from_micros(endpoint.config().spin_us.into());
                    let spin = clock::now() + spin;
                    let spin = until.map_or(spin, |until| until.min(spin));
                    let happened = endpoint.progress_wait(serve, Some(spin), WaitMode::Hot);
                    // A wake may be for what only `lead` looks at: the end, or a cancelled wait.
                    if happened == 0 && !endpoint.was_woken() && self.shared.outbox.is_empty() {
                        self.core_block(endpoint, serve, until);
                    }
                }
            }
        }
        if let Some(timer) = timer {
            let now = clock::now();
            if timer <= now {
                serve.peers.tick(endpoint, now);
            }
        }
        if own_timer.is_some() {
            self.timers_fire(core);
        }
    }

    fn core_block(&self, endpoint: &mut Endpoint, serve: &mut Serve, until: Option<Instant>) {
        self.shared.leader_asleep.store(true, Ordering::SeqCst);
        endpoint.progress_wait(serve, until, WaitMode::Warm);
        self.shared.leader_asleep.store(false, Ordering::SeqCst);
    }

    /// The leader is about to run a function: somebody must watch over the endpoint.
    #[inline]
    pub fn watch(&self) {
        if self.shared.monitor_asleep.load(Ordering::SeqCst) {
            self.shared.crew.monitor_wake();
        }
    }

    /// Answers an invocation: at once if the endpoint is free, which is then owned.
    #[inline]
    pub fn finish(
        &self,
        session: usize,
        client: u128,
        sequence: u64,
        status: Status,
        payload: Payload,
    ) -> Option<Owned<'_, Core>> {
        match self.token.try_take() {
            Some(mut owned) => {
                let Core {
                    endpoint, serve, ..
                } = &mut *owned;
                serve.reply(endpoint, session, client, sequence, status, payload);
                self.replied();
                Some(owned)
            }
            None => {
                self.shared.post(Post::Reply {
                    session,
                    client,
                    sequence,
                    status,
                    payload,
                });
                None
            }
        }
    }

    #[inline]
    pub fn replied(&self) {
        // Only the endpoint's owner counts, so that this need not be a read-modify-write.
        let word = self.shared.page.word(StatsWord::Invocations);
        word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Does something with the endpoint and what belongs to it, from any thread but a worker's.
    pub fn with_core<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Core) -> R + Send + 'static,
    ) -> Option<R> {
        if self.shared.stepped.is_some() {
            let mut owned = self.token.try_take()?;
            self.outbox_drain(&mut owned);
            return Some(act(&mut owned));
        }
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.shared.post(Post::Control(Box::new(move |core| {
            // The other side waits for it below.
            let _ = sender.send(act(core));
        })));
        // The sender is dropped with the outbox if the process ends first.
        loop {
            match receiver.recv_timeout(Duration::from_millis(20)) {
                Ok(result) => return Some(result),
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return None,
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {
                    if let Some(mut owned) = self.token.try_take() {
                        self.outbox_drain(&mut owned);
                    }
                }
            }
        }
    }

    /// Ends a worker's wait for a call that is not worth waiting for any more.
    pub fn call_abandon(&self, worker: &Worker) {
        let call = {
            let mut inbox = worker.inbox();
            inbox.stamp = inbox.stamp.wrapping_add(1);
            inbox.delivery = None;
            inbox.call.take()
        };
        if let Some(call) = call {
            self.shared.post(Post::Cancel(call));
        }
    }
}
