//! What a worker does: lead, run, follow.
//!
//! ```text
//!          +--------------------------- token free ------------------------+
//!          v                                                               |
//!   lead: poll, take a request --> let go of the token --> run --> retake, answer
//!          |                                                       | token taken
//!          | token taken                                           v
//!   follow: monitor or parked  <--------------------------- post the answer
//! ```

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use praas_transport::clock;
use praas_transport::sync::Owned;
use praas_transport::sync::atomic::Ordering;

use super::builtin::Builtin;
use super::crew::Worker;
use super::engine::{Core, Engine};
use super::serve::{Callee, ReadyJob};
use crate::invocation::{Payload, Status};
use crate::services::{Job, Services};

/// The longest that the monitor goes without a look at a busy leader.
const MONITOR_MAX: Duration = Duration::from_millis(2);

/// How a function is run by the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Marked short: the leader keeps the endpoint.
    Short,
    /// The endpoint is let go; the monitor takes over if it takes long.
    Usual,
    /// Marked long, or was so lately: a follower is woken to lead at once.
    Long,
}

/// Starts a worker.
///
/// # Errors
/// No thread to be had.
pub(super) fn worker_start(engine: &Arc<Engine>) -> std::io::Result<thread::JoinHandle<()>> {
    let engine = Arc::clone(engine);
    thread::Builder::new()
        .name("praas-worker".into())
        .spawn(move || {
            let (number, worker) = engine.shared.crew.join();
            engine.worker_run(number, &worker);
        })
}

impl Engine {
    fn worker_run(&self, number: usize, worker: &Arc<Worker>) {
        let mut owned: Option<Owned<'_, Core>> = None;
        while !self.shared.ended.load(Ordering::Relaxed) {
            let job = match owned.as_mut() {
                Some(core) => self.lead(core, true, None, || false),
                None => match self.shared.crew.queue_pop() {
                    Some(job) => Some(job),
                    None => {
                        owned = self.token.try_take();
                        match owned {
                            // Called to watch, it leads: somebody else is to watch then.
                            Some(_) => self.shared.crew.monitor_call(),
                            None => self.follow(number, worker),
                        }
                        continue;
                    }
                },
            };
            let Some(job) = job else {
                owned = None;
                continue;
            };
            owned = self.job_run(number, worker, job, owned);
            self.shared.crew.run_end();
            self.shared.quiet_notify();
        }
    }

    /// Runs a job and answers it; the endpoint again, if it was free then.
    pub(super) fn job_run<'a>(
        &'a self,
        number: usize,
        worker: &Arc<Worker>,
        mut job: ReadyJob,
        mut owned: Option<Owned<'a, Core>>,
    ) -> Option<Owned<'a, Core>> {
        if let Callee::Limited(index) = job.callee {
            return self.limited_run(number, worker, index, job, owned);
        }
        let pace = self.pace(job.callee);
        let (session, client, sequence) = (job.session as usize, job.client, job.sequence);
        let led = owned.is_some();
        let one_way = job.one_way;
        if one_way && !self.one_way_begin(&mut job, &mut owned) {
            return owned;
        }
        if pace != Pace::Short {
            owned = None;
            match pace {
                Pace::Long if led => self.shared.crew.call_one(),
                _ => self.watch(),
            }
        }
        let phase = self.token.phase();
        let started = (pace == Pace::Long).then(clock::now);
        let callee = job.callee;
        let (status, payload) = self.job_execute(number, worker, job, pace == Pace::Short);
        if let (Callee::User(index), true, false) = (callee, led, pace == Pace::Short) {
            let long = match started {
                Some(started) => clock::now() - started >= self.takeover(),
                // Somebody took over while it ran.
                None => self.token.phase() != phase,
            };
            self.shared.registry.function(index).seems_long_set(long);
        }
        if one_way {
            return self.one_way_end(callee, status, &payload, owned);
        }
        if let Some(core) = owned.as_mut() {
            let Core {
                endpoint, serve, ..
            } = &mut **core;
            serve.reply(endpoint, session, client, sequence, status, payload);
            self.replied();
            return owned;
        }
        self.finish(session, client, sequence, status, payload)
    }

    /// The same as [`Engine::job_execute`], apart from the hot path.
    #[inline(never)]
    pub fn job_execute_apart(
        &self,
        number: usize,
        worker: &Arc<Worker>,
        ready: ReadyJob,
    ) -> (Status, Payload) {
        self.job_execute(number, worker, ready, false)
    }

    /// Runs a function to its end; `short` if its caller keeps the endpoint meanwhile.
    #[inline(always)]
    fn job_execute(
        &self,
        number: usize,
        worker: &Arc<Worker>,
        ready: ReadyJob,
        short: bool,
    ) -> (Status, Payload) {
        if ready
            .deadline
            .is_some_and(|deadline| deadline <= clock::now())
        {
            return (Status::DeadlineExceeded, Payload::default());
        }
        let job = |held| Job {
            id: ready.job,
            worker: number,
            depth: 0,
            short,
            held,
            client: ready.client,
            sequence: ready.sequence,
            deadline: ready.deadline,
            cancel: Arc::clone(&worker.cancel),
        };
        // Whoever cancels it finds it here.
        worker.job.store(ready.job, Ordering::Release);
        let done = match ready.callee {
            Callee::Unknown => (Status::UnknownFunction, Payload::default()),
            Callee::Builtin(builtin) => {
                let job = builtin.waits().then(|| job(None));
                builtin.call(&self.shared, job.as_ref(), &ready.input)
            }
            Callee::User(index) | Callee::Limited(index) => {
                let held = match ready.callee {
                    Callee::Limited(index) => self.held(index),
                    _ => None,
                };
                let job = job(held);
                let services: &dyn Services = self;
                self.shared
                    .registry
                    .function(index)
                    .call(services, &job, &ready.input)
            }
        };
        worker.job.store(0, Ordering::Release);
        done
    }

    #[inline]
    fn pace(&self, callee: Callee) -> Pace {
        let index = match callee {
            Callee::User(index) => index,
            // It may have to wait for storage, which nobody may who has the endpoint.
            Callee::Builtin(Builtin::StateGet) if self.shared.state.absent_count() > 0 => {
                return Pace::Usual;
            }
            Callee::Builtin(builtin) if builtin.waits() => return Pace::Usual,
            Callee::Builtin(_) | Callee::Unknown | Callee::Limited(_) => return Pace::Short,
        };
        let function = self.shared.registry.function(index);
        let flags = function.flags();
        match () {
            () if flags.short() => Pace::Short,
            () if flags.long() || function.seems_long() => Pace::Long,
            () => Pace::Usual,
        }
    }

    fn takeover(&self) -> Duration {
        Duration::from_micros(self.shared.settings.takeover_us)
    }

    /// Follows until this worker is needed.
    fn follow(&self, number: usize, worker: &Worker) {
        let crew = &self.shared.crew;
        let monitor = crew.follow(number);
        let needed =
            || worker.called.load(Ordering::Acquire) || self.shared.ended.load(Ordering::Relaxed);
        // A job that was queued before we followed woke nobody.
        if crew.queue_waits() {
            crew.monitor_leave(number);
            return;
        }
        if !monitor {
            while !needed() {
                thread::park();
            }
            return;
        }
        let mut interval = self.takeover();
        let mut seen = self.token.phase();
        while !needed() {
            thread::park_timeout(interval);
            let now = self.token.phase();
            if now.is_multiple_of(2) && now == seen {
                crew.monitor_leave(number);
                return;
            }
            seen = now;
            interval = (interval * 2).min(MONITOR_MAX);
            if self.shared.leader_asleep.load(Ordering::SeqCst) {
                self.monitor_sleep(&needed);
                seen = self.token.phase();
                interval = self.takeover();
            }
        }
    }

    /// The monitor sleeps for as long as the leader does.
    fn monitor_sleep(&self, needed: &dyn Fn() -> bool) {
        self.shared.monitor_asleep.store(true, Ordering::SeqCst);
        while self.shared.leader_asleep.load(Ordering::SeqCst) && !needed() {
            thread::park();
        }
        self.shared.monitor_asleep.store(false, Ordering::SeqCst);
    }
}
