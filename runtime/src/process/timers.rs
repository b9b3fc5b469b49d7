//! What is to happen at some time: runs whose time is over, callers that have not come back.
//!
//! Any thread adds to it; the leader sees to it when it waits. With nothing in it, that costs one
//! look at a number.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use praas_transport::clock;
use praas_transport::sync::atomic::{AtomicUsize, Ordering};

use super::crew::Crew;
use super::engine::{Core, Engine};
use crate::function::FunctionIndex;

/// A run whose function has a limit of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunTimer {
    pub job: u64,
    pub index: FunctionIndex,
    pub session: usize,
    pub client: u128,
    pub sequence: u64,
    pub one_way: bool,
}

#[derive(Debug, Clone, Copy)]
enum Timer {
    Run(RunTimer),
    /// A client without any channel: what it has asked for may be cancelled.
    CallerGone {
        session: usize,
        client: u128,
    },
    /// A job that was neither in a queue nor with a worker when it was cancelled.
    CancelAgain {
        session: usize,
        client: u128,
        job: u64,
    },
}

/// Names a timer. Never used again for another.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimerKey(Instant, u64);

#[derive(Debug, Default)]
struct All {
    due: BTreeMap<(Instant, u64), Timer>,
    /// When the time of a run is over.
    runs: HashMap<u64, Instant>,
    /// Runs past their time, and whether another thread stands in for theirs.
    overdue: HashMap<u64, bool>,
    next: u64,
}

/// All that is to happen.
#[derive(Debug, Default)]
pub(super) struct Timers {
    armed: AtomicUsize,
    all: Mutex<All>,
}

impl Timers {
    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When something is to happen next.
    #[inline(always)]
    pub fn next(&self) -> Option<Instant> {
        match self.armed.load(Ordering::Relaxed) {
            0 => None,
            _ => self.first(),
        }
    }

    #[cold]
    fn first(&self) -> Option<Instant> {
        self.lock().due.keys().next().map(|(at, _)| *at)
    }

    /// A run begins that is to be over at `end`.
    pub fn run_begin(&self, end: Instant, timer: RunTimer) {
        let mut all = self.lock();
        all.due.insert((end, timer.job), Timer::Run(timer));
        all.runs.insert(timer.job, end);
        self.armed.store(all.due.len(), Ordering::Relaxed);
    }

    /// A run has ended; whether that was past its time.
    pub fn run_end(&self, job: u64, crew: &Crew) -> bool {
        let mut all = self.lock();
        if let Some(end) = all.runs.remove(&job) {
            all.due.remove(&(end, job));
            self.armed.store(all.due.len(), Ordering::Relaxed);
            return false;
        }
        let stood_in = all.overdue.remove(&job);
        if stood_in == Some(true) {
            crew.overdue_end();
        }
        stood_in.is_some()
    }

    /// A client has no channel any more; what takes the timer back.
    pub fn caller_gone(&self, at: Instant, session: usize, client: u128) -> TimerKey {
        self.add(at, Timer::CallerGone { session, client })
    }

    /// What was to happen is not to happen any more.
    pub fn take_back(&self, TimerKey(at, number): TimerKey) {
        let mut all = self.lock();
        all.due.remove(&(at, number));
        self.armed.store(all.due.len(), Ordering::Relaxed);
    }

    /// A job is to be looked for again, which was on its way when it was cancelled.
    pub fn cancel_again(&self, at: Instant, session: usize, client: u128, job: u64) {
        let timer = Timer::CancelAgain {
            session,
            client,
            job,
        };
        self.add(at, timer);
    }

    fn add(&self, at: Instant, timer: Timer) -> TimerKey {
        let mut all = self.lock();
        // Apart from the numbers of jobs.
        all.next += 1;
        let number = u64::MAX - all.next;
        all.due.insert((at, number), timer);
        self.armed.store(all.due.len(), Ordering::Relaxed);
        TimerKey(at, number)
    }

    /// Runs past their time that have not ended.
    pub fn overdue(&self) -> usize {
        self.lock().overdue.len()
    }
}

impl Engine {
    /// Does what is due.
    #[cold]
    pub fn timers_fire(&self, core: &mut Core) {
        let now = clock::now();
        loop {
            let (timer, spare) = {
                let timers = &self.shared.timers;
                let mut all = timers.lock();
                let Some(entry) = all.due.first_entry().filter(|entry| entry.key().0 <= now) else {
                    return;
                };
                let timer = entry.remove();
                timers.armed.store(all.due.len(), Ordering::Relaxed);
                let mut spare = false;
                if let Timer::Run(run) = &timer {
                    all.runs.remove(&run.job);
                    // Under the lock, so that a run which ends now gives back what it took.
                    let stands_in = self.shared.crew.overdue_begin();
                    all.overdue.insert(run.job, stands_in.is_some());
                    self.shared.gate_overdue(run.index);
                    spare = stands_in == Some(true);
                    if stands_in.is_none() {
                        tracing::error!(
                            "invocations past their time hold workers that nobody stands in for \
                             (workers_overdue_max)"
                        );
                    }
                }
                (timer, spare)
            };
            match timer {
                Timer::Run(run) => self.run_overdue(core, run, spare),
                Timer::CallerGone { session, client } => {
                    let Core {
                        endpoint, serve, ..
                    } = &mut *core;
                    serve.orphans_cancel(endpoint, session, client);
                }
                Timer::CancelAgain {
                    session,
                    client,
                    job,
                } => {
                    let Core {
                        endpoint, serve, ..
                    } = &mut *core;
                    serve.cancel_again(endpoint, session, client, job);
                }
            }
        }
    }
}
