//! The workers of a process: who runs, who waits, who stands in.
//!
//! ```text
//!   leader     owns the endpoint, polls, takes one request, lets go, runs it
//!   monitor    one follower in a timed wait: takes over if nobody has led for takeover_us
//!   parked     the other followers, until there is a job in the queue or the monitor has left
//!   blocked    in an invoke, a get or a put of its function: not counted as running; a spare
//!              is started in its place
//! ```
//!
//! At most `workers` functions run at once and there is one thread more, so that some thread can
//! always lead. Whenever a job is queued, all workers run (and one of them takes the job when it
//! is done), or a follower has been woken for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use crossbeam_utils::CachePadded;
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use praas_transport::{StatsPage, StatsWord};

use super::broadcast::Gather;
use super::serve::ReadyJob;
use crate::client::{CallId, Completed};
use crate::invocation::{InvokeError, Payload};
use crate::mailbox::MailMessage;

/// What a blocked worker was waiting for.
#[derive(Debug)]
pub(super) enum Delivery {
    /// A call of its function has ended; of a read, with the object's version.
    Ended(Result<Payload, InvokeError>, u64),
    /// A message for its function.
    Message(MailMessage),
    /// All calls of a broadcast have ended.
    Gathered(Vec<Result<(), InvokeError>>),
    /// A batch of its function has ended: outcomes in the order of the inputs.
    Batch(Vec<Result<Payload, InvokeError>>),
    /// A place behind a gate.
    Turn,
}

/// What is handed to a blocked worker; a delivery with an old stamp is for a wait that is over.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub stamp: u32,
    pub call: Option<CallId>,
    /// The calls of a broadcast, until all have ended.
    pub gather: Option<Gather>,
    pub delivery: Option<Delivery>,
}

/// A worker, as others see it.
#[derive(Debug)]
pub(super) struct Worker {
    pub thread: Thread,
    /// The job that it runs; zero is none.
    pub job: CachePadded<AtomicU64>,
    /// The job that is to end early.
    pub cancel: Arc<AtomicU64>,
    pub inbox: Mutex<Inbox>,
    /// Set to wake it as a follower.
    pub called: AtomicBool,
}

impl Worker {
    pub fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over what the worker waits for; gives it back if it waits no more.
    pub fn deliver(&self, stamp: u32, delivery: Delivery) -> Option<Delivery> {
        let mut inbox = self.inbox();
        if inbox.stamp != stamp || inbox.delivery.is_some() {
            return Some(delivery);
        }
        inbox.delivery = Some(delivery);
        drop(inbox);
        self.thread.unpark();
        None
    }

    /// A call has ended. A wait that is over has no use for it.
    pub fn ended(&self, stamp: u32, completed: Completed) {
        let Completed {
            call,
            outcome,
            version,
            ..
        } = completed;
        let mut inbox = self.inbox();
        let now = inbox.stamp == stamp;
        let delivery = match inbox.gather.as_mut().filter(|_| now) {
            None => Delivery::Ended(outcome, version),
            Some(gather) => {
                gather.ended(call, outcome.map(|_| ()));
                let Some(outcomes) = gather.outcomes() else {
                    return;
                };
                inbox.gather = None;
                Delivery::Gathered(outcomes)
            }
        };
        drop(inbox);
        drop(self.deliver(stamp, delivery));
    }
}

#[derive(Debug, Default)]
struct Followers {
    workers: Vec<Arc<Worker>>,
    parked: Vec<usize>,
    monitor: Option<usize>,
    queue: VecDeque<ReadyJob>,
    blocked: usize,
    /// Functions past their time that others stand in for.
    overdue: usize,
}

/// The workers of a process.
#[derive(Debug)]
pub(super) struct Crew {
    followers: Mutex<Followers>,
    /// Where those are counted that run, wait in a call, or are queued: others may look.
    page: Arc<StatsPage>,
    /// Functions that may run at once: one more for each that is past its time.
    workers: AtomicUsize,
    blocked_max: usize,
    queue_max: usize,
    overdue_max: usize,
}

impl Crew {
    pub fn new(
        workers: usize,
        blocked_max: usize,
        queue_max: usize,
        overdue_max: usize,
        page: Arc<StatsPage>,
    ) -> Self {
        Self {
            followers: Mutex::new(Followers::default()),
            page,
            workers: AtomicUsize::new(workers),
            blocked_max,
            queue_max,
            overdue_max,
        }
    }

    #[inline]
    fn running_word(&self) -> &AtomicU64 {
        self.page.word(StatsWord::Running)
    }

    #[inline]
    fn queued_word(&self) -> &AtomicU64 {
        self.page.word(StatsWord::Queued)
    }

    /// Threads to begin with.
    pub fn threads_first(&self) -> usize {
        self.may_run() + 1
    }

    #[inline]
    fn may_run(&self) -> usize {
        self.workers.load(Ordering::Relaxed)
    }

    /// Adds the calling thread as a worker: its number and itself.
    pub fn join(&self) -> (usize, Arc<Worker>) {
        let worker = Arc::new(Worker {
            thread: std::thread::current(),
            job: CachePadded::new(AtomicU64::new(0)),
            cancel: Arc::new(AtomicU64::new(0)),
            inbox: Mutex::new(Inbox::default()),
            called: AtomicBool::new(false),
        });
        let mut followers = self.lock();
        followers.workers.push(Arc::clone(&worker));
        (followers.workers.len() - 1, worker)
    }

    pub fn worker(&self, number: usize) -> Option<Arc<Worker>> {
        self.lock().workers.get(number).cloned()
    }

    pub fn workers(&self) -> Vec<Arc<Worker>> {
        self.lock().workers.clone()
    }

    /// Counts a function as running, if one more may.
    #[inline]
    pub fn run_try(&self) -> bool {
        let word = self.running_word();
        let mut running = word.load(Ordering::Relaxed);
        while running < self.may_run() as u64 {
            let next = running + 1;
            match word.compare_exchange_weak(running, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => running = now,
            }
        }
        false
    }

    /// A function that ran is done.
    #[inline]
    pub fn run_end(&self) {
        self.running_word().fetch_sub(1, Ordering::SeqCst);
    }

    /// Functions that run now.
    pub fn running(&self) -> usize {
        self.running_word().load(Ordering::SeqCst) as usize
    }

    /// Functions that wait in a call of theirs now.
    pub fn blocked(&self) -> usize {
        self.lock().blocked
    }

    /// Jobs that wait for a worker.
    pub fn queued(&self) -> usize {
        self.queued_word().load(Ordering::SeqCst) as usize
    }

    /// Jobs that wait for a worker and functions that run or are blocked, at one moment: whatever
    /// goes from one to the other does so under the lock, or is counted as both meanwhile.
    pub fn busy(&self) -> usize {
        let followers = self.lock();
        followers.queue.len() + followers.blocked + self.running()
    }

    /// Queues a job for whoever is free; gives it back if the queue is full.
    pub fn queue_push(&self, job: ReadyJob) -> Option<ReadyJob> {
        let mut followers = self.lock();
        if followers.queue.len() >= self.queue_max {
            return Some(job);
        }
        followers.queue.push_back(job);
        self.queued_word().fetch_add(1, Ordering::SeqCst);
        drop(followers);
        if self.running() < self.may_run() {
            self.call_one();
        }
        None
    }

    /// Queues a job that has been accepted before, full or not.
    pub fn queue_add(&self, job: ReadyJob) {
        let mut followers = self.lock();
        followers.queue.push_back(job);
        self.queued_word().fetch_add(1, Ordering::SeqCst);
        drop(followers);
        if self.running() < self.may_run() {
            self.call_one();
        }
    }

    /// A queued job, counted as running, if there is one and one more may run.
    #[inline]
    pub fn queue_pop(&self) -> Option<ReadyJob> {
        if self.queued() == 0 || !self.run_try() {
            return None;
        }
        let job = self.lock().queue.pop_front();
        match job {
            Some(job) => {
                self.queued_word().fetch_sub(1, Ordering::SeqCst);
                Some(job)
            }
            None => {
                self.run_end();
                None
            }
        }
    }

    /// Whether a job waits that somebody could run.
    pub fn queue_waits(&self) -> bool {
        self.queued() > 0 && self.running() < self.may_run()
    }

    /// Takes jobs out of the queue.
    pub fn queue_take(&self, which: impl Fn(&ReadyJob) -> bool) -> Vec<ReadyJob> {
        let mut followers = self.lock();
        let (taken, kept) = std::mem::take(&mut followers.queue)
            .into_iter()
            .partition::<VecDeque<_>, _>(which);
        followers.queue = kept;
        self.queued_word()
            .fetch_sub(taken.len() as u64, Ordering::SeqCst);
        taken.into()
    }

    /// Wakes a follower, to lead or to run a queued job.
    pub fn call_one(&self) {
        let mut followers = self.lock();
        let number = followers.parked.pop().or_else(|| followers.monitor.take());
        if let Some(worker) = number.and_then(|number| followers.workers.get(number)) {
            worker.called.store(true, Ordering::Release);
            worker.thread.unpark();
        }
    }

    /// Wakes everybody.
    pub fn call_all(&self) {
        let mut followers = self.lock();
        followers.parked.clear();
        followers.monitor = None;
        for worker in &followers.workers {
            worker.called.store(true, Ordering::Release);
            worker.thread.unpark();
        }
    }

    /// Becomes a follower: the monitor if there is none (`true`), else parked.
    pub fn follow(&self, number: usize) -> bool {
        let mut followers = self.lock();
        if let Some(worker) = followers.workers.get(number) {
            worker.called.store(false, Ordering::Release);
        }
        if followers.monitor.is_none() {
            followers.monitor = Some(number);
            return true;
        }
        followers.parked.push(number);
        false
    }

    /// The monitor takes over, and a parked follower becomes the monitor.
    pub fn monitor_leave(&self, number: usize) {
        let mut followers = self.lock();
        if followers.monitor == Some(number) {
            followers.monitor = None;
        } else {
            followers.parked.retain(|parked| *parked != number);
        }
        if followers.monitor.is_none()
            && let Some(next) = followers.parked.pop()
            && let Some(worker) = followers.workers.get(next)
        {
            worker.called.store(true, Ordering::Release);
            worker.thread.unpark();
        }
    }

    /// Whoever leads now may have been the one to watch: if nobody does, a parked follower will.
    pub fn monitor_call(&self) {
        let mut followers = self.lock();
        if followers.monitor.is_none()
            && let Some(next) = followers.parked.pop()
            && let Some(worker) = followers.workers.get(next)
        {
            worker.called.store(true, Ordering::Release);
            worker.thread.unpark();
        }
    }

    /// Wakes the monitor to look at the leader again.
    pub fn monitor_wake(&self) {
        let followers = self.lock();
        if let Some(worker) = followers
            .monitor
            .and_then(|number| followers.workers.get(number))
        {
            worker.thread.unpark();
        }
    }

    /// Counts a running function as blocked. `Ok(true)` asks for another thread in its place.
    ///
    /// # Errors
    /// As many are blocked as may be.
    pub fn block(&self) -> Result<bool, InvokeError> {
        let mut followers = self.lock();
        if followers.blocked >= self.blocked_max {
            return Err(InvokeError::Exhausted(format!(
                "{} functions of this process are waiting already (workers_blocked_max)",
                followers.blocked
            )));
        }
        followers.blocked += 1;
        self.blocked_tell(&followers);
        let more = followers.workers.len() < self.may_run() + 1 + followers.blocked;
        self.run_end();
        drop(followers);
        if self.queued() > 0 {
            self.call_one();
        }
        Ok(more)
    }

    fn blocked_tell(&self, followers: &Followers) {
        let word = self.page.word(StatsWord::Blocked);
        word.store(followers.blocked as u64, Ordering::Relaxed);
    }

    /// A blocked function goes on. For a moment more than `workers` may run.
    pub fn unblock(&self) {
        let mut followers = self.lock();
        followers.blocked -= 1;
        self.blocked_tell(&followers);
        self.running_word().fetch_add(1, Ordering::SeqCst);
        drop(followers);
    }

    /// A function is past its time, and may never end: one more may run in its stead. `Some(true)`
    /// asks for another thread; `None`: as many are past their time as may be.
    pub fn overdue_begin(&self) -> Option<bool> {
        let mut followers = self.lock();
        if followers.overdue >= self.overdue_max {
            return None;
        }
        followers.overdue += 1;
        let may_run = self.workers.fetch_add(1, Ordering::SeqCst) + 1;
        let more = followers.workers.len() < may_run + 1 + followers.blocked;
        drop(followers);
        if self.queued() > 0 {
            self.call_one();
        }
        Some(more)
    }

    /// A function that was past its time has ended after all.
    pub fn overdue_end(&self) {
        self.lock().overdue -= 1;
        self.workers.fetch_sub(1, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Followers> {
        self.followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
