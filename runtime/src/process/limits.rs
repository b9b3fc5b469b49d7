//! Limits of functions: how many invocations of one run at once, for how long, with how much
//! memory.
//!
//! ```text
//!   request --> gate of its function --> queue --> worker: runs, under a timer --> leaves the gate
//!                 |  full: waits, in order of arrival         |                        |
//!                 +<-------------- its turn ------------------|------------------------+
//!                                    time over: the caller is answered, a spare stands in
//! ```
//!
//! A place behind a gate is taken before a job is queued, and handed on to the next that waits when
//! the run ends, so nobody is overtaken. A local invocation waits only if the stack that calls is
//! inside of no gate: whoever is inside never waits for another gate of this process, and so gates
//! cannot be waited for in a circle. Functions without limits meet none of this.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use praas_transport::clock;
use praas_transport::sync::Owned;

use super::crew::{Delivery, Worker};
use super::engine::{Core, Engine, Shared};
use super::serve::{Callee, ReadyJob, Serve};
use super::timers::RunTimer;
use crate::function::{FunctionIndex, FunctionLimits, Registry};
use crate::invocation::{InvokeError, Payload, Status};
use crate::services::{Held, Job};

/// The limits of one function, and who is within them now.
#[derive(Debug)]
pub(super) struct Limited {
    /// None is as many as there are workers.
    concurrency_max: Option<usize>,
    pub time_max: Option<Duration>,
    pub memory_max: Option<u64>,
    waiting_max: usize,
    gate: Mutex<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    inside: usize,
    /// Of those, how many are past their time.
    overdue: usize,
    waiting: VecDeque<Waiter>,
}

/// Who waits for its turn.
#[derive(Debug)]
enum Waiter {
    Job(ReadyJob),
    /// A function of this process, in a local invocation.
    Local {
        worker: usize,
        stamp: u32,
    },
}

/// What becomes of whoever wants to go through a gate.
#[derive(Debug)]
pub(super) enum Entry {
    /// It is inside.
    Inside(ReadyJob),
    /// It waits for its turn.
    Waits,
    /// There is no place, nor will be soon; the text says why.
    Refused(ReadyJob, String),
}

impl Limited {
    /// What limits a function, if anything does.
    fn new(limits: FunctionLimits, waiting_max: usize) -> Option<Self> {
        let concurrency_max = limits.concurrency_max.filter(|max| *max > 0);
        let time_max_ms = limits.time_max_ms.filter(|max| *max > 0);
        let memory_max = limits.memory_max_bytes.filter(|max| *max > 0);
        let any = concurrency_max.is_some() || time_max_ms.is_some() || memory_max.is_some();
        any.then(|| Self {
            concurrency_max: concurrency_max.map(|max| max as usize),
            time_max: time_max_ms.map(Duration::from_millis),
            memory_max,
            waiting_max,
            gate: Mutex::default(),
        })
    }

    /// Those of all functions of a registry, by index. Settings of functions that there are not are
    /// told of.
    pub fn of_all(
        registry: &Registry,
        settings: &super::ProcessSettings,
    ) -> Vec<Option<Box<Limited>>> {
        for name in settings.functions.keys() {
            if registry.find(name).is_none() {
                tracing::warn!(function = name, "limits of a function that no module has");
            }
        }
        let limited = registry.functions().map(|function| {
            let over = settings.functions.get(function.name()).copied();
            let limits = function.limits().overridden(over.unwrap_or_default());
            Self::new(limits, settings.queue_max).map(Box::new)
        });
        limited.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stuck(&self, gate: &Gate) -> bool {
        self.concurrency_max.is_some_and(|max| gate.overdue >= max)
    }

    /// A job wants to go in.
    fn enter(&self, mut job: ReadyJob) -> Entry {
        if let Some(max) = self.memory_max
            && job.input.len() as u64 > max
        {
            let text = format!(
                "an input of {} bytes (memory_max_bytes {max})",
                job.input.len()
            );
            return Entry::Refused(job, text);
        }
        let mut gate = self.lock();
        if self.stuck(&gate) {
            return Entry::Refused(job, STUCK.into());
        }
        match self.concurrency_max {
            Some(max) if gate.inside >= max => {
                if gate.waiting.len() >= self.waiting_max {
                    let text = "too many wait for their turn (queue_max)";
                    return Entry::Refused(job, text.into());
                }
                gate.waiting.push_back(Waiter::Job(job));
                Entry::Waits
            }
            _ => {
                gate.inside += 1;
                job.inside = true;
                Entry::Inside(job)
            }
        }
    }

    /// Jobs that wait for their turn.
    fn jobs_waiting(&self) -> usize {
        let gate = self.lock();
        let jobs = gate.waiting.iter();
        jobs.filter(|waiter| matches!(waiter, Waiter::Job(_)))
            .count()
    }

    /// Takes jobs out that wait for their turn.
    fn waiting_take(&self, which: &dyn Fn(&ReadyJob) -> bool, taken: &mut Vec<ReadyJob>) {
        let mut gate = self.lock();
        for waiter in std::mem::take(&mut gate.waiting) {
            match waiter {
                Waiter::Job(job) if which(&job) => taken.push(job),
                waiter => gate.waiting.push_back(waiter),
            }
        }
    }
}

const STUCK: &str = "all that may run at once are past their time (time_max_ms)";

impl Shared {
    /// The limits of a function that has some.
    pub fn limited(&self, index: FunctionIndex) -> Option<&Limited> {
        self.limits.get(index.number())?.as_deref()
    }

    /// A place behind a gate is free: who waits the longest has it, if anybody does.
    fn gate_leave(&self, limited: &Limited, overdue: bool) {
        let mut gate = limited.lock();
        gate.overdue -= usize::from(overdue);
        while let Some(waiter) = gate.waiting.pop_front() {
            match waiter {
                Waiter::Job(mut job) => {
                    job.inside = true;
                    drop(gate);
                    return self.crew.queue_add(job);
                }
                Waiter::Local { worker, stamp } => {
                    let worker = self.crew.worker(worker);
                    let left = worker.and_then(|worker| worker.deliver(stamp, Delivery::Turn));
                    if left.is_none() {
                        return;
                    }
                }
            }
        }
        gate.inside -= 1;
    }

    /// A run of a function is past its time. To be called while nobody can learn that it was, who
    /// then gives its place back.
    pub fn gate_overdue(&self, index: FunctionIndex) {
        if let Some(limited) = self.limited(index) {
            limited.lock().overdue += 1;
        }
    }

    /// A job is not going to run: its place is free, if it has one.
    pub fn job_gone(&self, job: &ReadyJob) {
        if let Callee::Limited(index) = job.callee
            && job.inside
            && let Some(limited) = self.limited(index)
        {
            self.gate_leave(limited, false);
        }
    }

    /// Takes jobs that have not begun out of gates and the queue.
    pub fn jobs_take(&self, which: impl Fn(&ReadyJob) -> bool) -> Vec<ReadyJob> {
        let mut taken = Vec::new();
        for limited in self.limits.iter().flatten() {
            limited.waiting_take(&which, &mut taken);
        }
        let queued = self.crew.queue_take(which);
        for job in &queued {
            self.job_gone(job);
        }
        taken.extend(queued);
        taken
    }

    /// Whether no function runs, is blocked or waits for a worker or its turn.
    pub fn is_quiet(&self) -> bool {
        // Gates first: who lets a job pass there runs until it is in the queue.
        let limited = self.limits.iter().flatten();
        let at_gates: usize = limited.map(|limited| limited.jobs_waiting()).sum();
        at_gates + self.crew.busy() == 0
    }
}

impl Engine {
    /// Leads the first of the jobs that are ready through the gate of its function; `false` if it
    /// has to wait or is refused.
    #[cold]
    pub fn gate_pass(&self, core: &mut Core, index: FunctionIndex) -> bool {
        let Some(limited) = self.shared.limited(index) else {
            return true;
        };
        let Core {
            endpoint, serve, ..
        } = core;
        let Some(job) = serve.ready.pop_front() else {
            return false;
        };
        match limited.enter(job) {
            Entry::Inside(job) => {
                serve.ready.push_front(job);
                true
            }
            Entry::Waits => false,
            Entry::Refused(job, text) => {
                refuse(serve, endpoint, job, &text);
                false
            }
        }
    }

    /// The same, for a job of the process's own, which is queued then.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn gate_queue(&self, index: FunctionIndex, job: ReadyJob) -> Result<(), String> {
        let entry = match self.shared.limited(index) {
            Some(limited) => limited.enter(job),
            None => Entry::Inside(job),
        };
        match entry {
            Entry::Waits => Ok(()),
            Entry::Refused(_, text) => Err(text),
            Entry::Inside(job) => match self.shared.crew.queue_push(job) {
                None => Ok(()),
                Some(job) => {
                    self.shared.job_gone(&job);
                    Err("the queue is full (queue_max)".into())
                }
            },
        }
    }

    /// Runs a job of a function with limits, and answers it; the endpoint again, if it was free
    /// then.
    #[cold]
    pub fn limited_run<'a>(
        &'a self,
        number: usize,
        worker: &Arc<Worker>,
        index: FunctionIndex,
        mut job: ReadyJob,
        mut owned: Option<Owned<'a, Core>>,
    ) -> Option<Owned<'a, Core>> {
        let led = owned.is_some();
        let (session, client, sequence) = (job.session as usize, job.client, job.sequence);
        let (id, one_way) = (job.job, job.one_way);
        if one_way && !self.one_way_begin(&mut job, &mut owned) {
            self.shared.job_gone(&job);
            return owned;
        }
        // Whoever leads meanwhile sees to the time, so it is not kept from that.
        drop(owned);
        match self.shared.registry.function(index).flags().long() && led {
            true => self.shared.crew.call_one(),
            false => self.watch(),
        }
        let begun = clock::now();
        let time_max = self
            .shared
            .limited(index)
            .and_then(|limited| limited.time_max);
        if let Some(end) = time_max.and_then(|time| begun.checked_add(time)) {
            job.deadline = Some(job.deadline.map_or(end, |deadline| deadline.min(end)));
            let timer = RunTimer {
                job: id,
                index,
                session,
                client,
                sequence,
                one_way,
            };
            self.shared.timers.run_begin(end, timer);
            self.shared.waker.wake();
        }
        let callee = job.callee;
        let (status, payload) = self.job_execute_apart(number, worker, job);
        let overdue = time_max.is_some() && self.shared.timers.run_end(id, &self.shared.crew);
        if let Some(limited) = self.shared.limited(index) {
            self.shared.gate_leave(limited, overdue);
        }
        if overdue {
            // Its caller has been told long ago.
            return self.token.try_take();
        }
        if one_way {
            return self.one_way_end(callee, status, &payload, self.token.try_take());
        }
        self.finish(session, client, sequence, status, payload)
    }

    /// The time of a run is over: its caller hears so, its thread counts no more, and it should end.
    pub fn run_overdue(&self, core: &mut Core, timer: RunTimer, spare: bool) {
        let function = self.shared.registry.function(timer.index);
        tracing::warn!(
            function = function.name(),
            "an invocation is past its time (time_max_ms): its caller is answered"
        );
        self.shared.job_cancel(timer.job);
        if spare {
            self.spare_start();
        }
        let Core {
            endpoint, serve, ..
        } = core;
        let status = Status::DeadlineExceeded;
        match timer.one_way {
            true => self.one_way_failed(Callee::Limited(timer.index), status, b"past its time"),
            false => {
                let none = Payload::default();
                let RunTimer {
                    session,
                    client,
                    sequence,
                    ..
                } = timer;
                serve.reply(endpoint, session, client, sequence, status, none);
                self.replied();
            }
        }
        let Some(limited) = self.shared.limited(timer.index) else {
            return;
        };
        let mut gate = limited.lock();
        if !limited.stuck(&gate) {
            return;
        }
        let waiting = std::mem::take(&mut gate.waiting);
        drop(gate);
        for waiter in waiting {
            match waiter {
                Waiter::Job(job) => refuse(serve, endpoint, job, STUCK),
                Waiter::Local { worker, stamp } => {
                    let stuck = Err(InvokeError::Exhausted(STUCK.into()));
                    if let Some(worker) = self.shared.crew.worker(worker) {
                        // Whoever waits no more has no use for it.
                        drop(worker.deliver(stamp, Delivery::Ended(stuck, 0)));
                    }
                }
            }
        }
    }

    /// What a run of a function with limits is under.
    #[cold]
    pub fn held(&self, index: FunctionIndex) -> Option<Arc<Held>> {
        let limited = self.shared.limited(index)?;
        let gated = limited.concurrency_max.is_some();
        let held = Held::new(index.number(), gated, limited.memory_max, None);
        Some(Arc::new(held))
    }

    /// Runs a function with limits on the stack of the function that calls it.
    #[cold]
    pub fn limited_local(
        &self,
        job: &Job,
        index: FunctionIndex,
        input: &[u8],
    ) -> Result<(Status, Payload), InvokeError> {
        let function = self.shared.registry.function(index);
        let Some(limited) = self.shared.limited(index) else {
            return Ok(function.call_apart(self, job, input));
        };
        let number = index.number();
        let again = job.held.as_ref().is_some_and(|held| held.holds(number));
        let inside = match limited.concurrency_max {
            Some(_) if !again => {
                self.gate_local(job, limited)?;
                true
            }
            _ => false,
        };
        let end = limited
            .time_max
            .and_then(|time| clock::now().checked_add(time));
        let deadline = [job.deadline, end].into_iter().flatten().min();
        let gated = limited.concurrency_max.is_some();
        let held = Held::new(number, gated, limited.memory_max, job.held.clone());
        let nested = Job {
            deadline,
            held: Some(Arc::new(held)),
            ..job.clone()
        };
        let (mut status, mut payload) = function.call_apart(self, &nested, input);
        if end.is_some_and(|end| end <= clock::now()) {
            (status, payload) = (Status::DeadlineExceeded, Payload::default());
        }
        if inside {
            self.shared.gate_leave(limited, false);
        }
        Ok((status, payload))
    }

    /// Takes a place for a local invocation, waiting for it if nothing can wait for us.
    fn gate_local(&self, job: &Job, limited: &Limited) -> Result<(), InvokeError> {
        let exhausted = |text: &str| InvokeError::Exhausted(text.into());
        let free = |gate: &mut Gate| {
            let free = limited.concurrency_max.is_none_or(|max| gate.inside < max);
            gate.inside += usize::from(free);
            free
        };
        {
            let mut gate = limited.lock();
            if limited.stuck(&gate) {
                return Err(exhausted(STUCK));
            }
            if free(&mut gate) {
                return Ok(());
            }
        }
        if job.held.as_ref().is_some_and(|held| held.any_gate()) {
            let text = "as many as may run at once do (concurrency_max), and whoever is in a \
                        function with such a limit may not wait for another";
            return Err(exhausted(text));
        }
        let worker = self.worker_of(job)?;
        let stamp = self.wait_begin(&worker, job)?;
        {
            let mut gate = limited.lock();
            let stuck = limited.stuck(&gate);
            if stuck || free(&mut gate) {
                drop(gate);
                self.wait_end();
                return match stuck {
                    true => Err(exhausted(STUCK)),
                    false => Ok(()),
                };
            }
            gate.waiting.push_back(Waiter::Local {
                worker: job.worker,
                stamp,
            });
        }
        let mut waited = self.wait(&worker, job, job.deadline, None);
        if waited.is_err() {
            let mut gate = limited.lock();
            let before = gate.waiting.len();
            gate.waiting.retain(|waiter| {
                !matches!(waiter, Waiter::Local { worker, stamp: other }
                    if *worker == job.worker && *other == stamp)
            });
            if gate.waiting.len() == before {
                // It was handed over in this moment.
                drop(gate);
                if let Some(delivery) = worker.inbox().delivery.take() {
                    waited = Ok(delivery);
                }
            }
        }
        self.wait_end();
        match waited? {
            Delivery::Turn => Ok(()),
            Delivery::Ended(Err(error), _) => Err(error),
            _ => Err(InvokeError::Malformed("a delivery for another wait".into())),
        }
    }
}

/// Answers a job that does not run.
fn refuse(serve: &mut Serve, ops: &mut praas_transport::Ops, job: ReadyJob, text: &str) {
    serve.shared.job_gone(&job);
    let text = Payload::Inline(text.as_bytes().into());
    serve.job_answer(ops, &job, Status::Exhausted, text);
}
