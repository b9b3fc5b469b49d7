//! One-way invocations: how one begins and ends here, and those that functions ask for.
//!
//! ```text
//!   request --> job (queued, may be turned away) --> begins: answered, recorded --> ends: counted
//!   function --+--> own process: the queue of jobs, at once
//!              +--> another: the client's core, as soon as it has room; it sends again until told
//! ```
//!
//! A caller's invocation is its own affair until the answer: what is turned away, or lost with a
//! channel, is sent again. From its beginning on it is this process's, and what becomes of it is
//! counted and logged here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use praas_transport::clock;
use praas_transport::sync::Owned;
use praas_transport::sync::atomic::Ordering;

use super::crew::{Delivery, Worker};
use super::engine::{Core, Engine, Post};
use super::serve::{Callee, ReadyJob};
use crate::client::{CallOptions, Refusal, Target};
use crate::invocation::{InvokeError, Payload, Status};
use crate::services::Job;

/// The session of jobs that the process's own functions have asked for: nobody is answered.
pub(super) const SESSION_NONE: u32 = u32::MAX;

/// The owner of one-way calls to other processes: no worker waits for them.
pub(super) const OWNER_NONE: u64 = u64::MAX;

/// What the numbers of the process's own jobs begin with, apart from those of requests.
pub(super) const OWN_JOBS_FIRST: u64 = 1 << 63;

/// A one-way call to another process that waits for room.
#[derive(Debug)]
pub(super) struct OneWayCall {
    /// Who waits until it is taken on.
    pub worker: usize,
    pub stamp: u32,
    pub process: String,
    pub function: String,
    pub payload: Payload,
    pub deadline: Option<Instant>,
}

/// One-way calls that wait for room, by their processes, the oldest first: a process that is slow,
/// or gone, holds up nobody but who calls it.
#[derive(Debug, Default)]
pub(super) struct OneWayCalls(BTreeMap<Target, VecDeque<OneWayCall>>);

impl OneWayCalls {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl ReadyJob {
    /// Whether a function of this process has asked for it.
    pub fn is_own(&self) -> bool {
        self.session == SESSION_NONE
    }
}

impl Engine {
    /// A one-way invocation begins: its caller hears so, and is not waited for any more. `false` if
    /// it is too late for that.
    #[cold]
    pub fn one_way_begin(&self, job: &mut ReadyJob, owned: &mut Option<Owned<'_, Core>>) -> bool {
        let late = job
            .deadline
            .take()
            .is_some_and(|deadline| deadline <= clock::now());
        let status = match late {
            true => Status::DeadlineExceeded,
            false => Status::Ok,
        };
        self.shared.one_way.fetch_add(1, Ordering::Relaxed);
        if late {
            self.one_way_failed(
                job.callee,
                status,
                b"its deadline has passed before it began",
            );
        }
        if job.is_own() {
            return !late;
        }
        let (session, client, sequence) = (job.session as usize, job.client, job.sequence);
        match owned.as_mut() {
            Some(core) => {
                let Core {
                    endpoint, serve, ..
                } = &mut **core;
                serve.reply(
                    endpoint,
                    session,
                    client,
                    sequence,
                    status,
                    Payload::default(),
                );
                self.replied();
            }
            None => drop(self.finish(session, client, sequence, status, Payload::default())),
        }
        !late
    }

    /// A one-way invocation has ended; the endpoint, if it is free.
    #[cold]
    pub fn one_way_end<'a>(
        &'a self,
        callee: Callee,
        status: Status,
        output: &[u8],
        owned: Option<Owned<'a, Core>>,
    ) -> Option<Owned<'a, Core>> {
        if status != Status::Ok {
            self.one_way_failed(callee, status, output);
        }
        owned.or_else(|| self.token.try_take())
    }

    pub fn one_way_failed(&self, callee: Callee, status: Status, text: &[u8]) {
        self.shared.one_way_failed.fetch_add(1, Ordering::Relaxed);
        let function = match callee {
            Callee::User(index) | Callee::Limited(index) => {
                self.shared.registry.function(index).name()
            }
            _ => "praas",
        };
        let text = String::from_utf8_lossy(text);
        tracing::warn!(function, ?status, %text, "a one-way invocation failed");
    }

    /// Puts a one-way invocation of this process's own functions into the queue.
    pub fn one_way_own(
        &self,
        function: &str,
        input: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), InvokeError> {
        let exhausted = |text: String| InvokeError::Exhausted(text);
        if self.shared.one_way_closed.load(Ordering::SeqCst) {
            return Err(exhausted("the process is about to end".into()));
        }
        let callee = self.shared.callee(function);
        if callee == Callee::Unknown {
            return Err(InvokeError::UnknownFunction(function.into()));
        }
        let input = Payload::copy_from(input, &self.shared.pool)
            .map_err(|error| exhausted(error.to_string()))?;
        let number = self.shared.own_jobs.fetch_add(1, Ordering::Relaxed);
        let job = ReadyJob {
            job: number,
            callee,
            session: SESSION_NONE,
            client: 0,
            sequence: number,
            input,
            deadline,
            one_way: true,
            inside: false,
        };
        if let Callee::Limited(index) = callee {
            return self.gate_queue(index, job).map_err(exhausted);
        }
        match self.shared.crew.queue_push(job) {
            None => Ok(()),
            Some(_) => Err(exhausted("the queue is full (queue_max)".into())),
        }
    }

    /// Calls another process one-way: this comes back once the call is taken on.
    pub fn one_way_call(
        &self,
        worker: &Arc<Worker>,
        job: &Job,
        (process, function): (&str, &str),
        input: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), InvokeError> {
        let payload = Payload::copy_from(input, &self.shared.pool)
            .map_err(|error| InvokeError::Exhausted(error.to_string()))?;
        let mut call = OneWayCall {
            worker: job.worker,
            stamp: 0,
            process: process.into(),
            function: function.into(),
            payload,
            deadline,
        };
        if let Some(mut core) = self.token.try_take() {
            let target = core.serve.peers.target(process)?;
            // Those that wait already come first.
            if !core.one_ways.0.contains_key(&target) {
                match one_way_start(&mut core, target, &call) {
                    Ok(()) => return Ok(()),
                    Err(Refusal::Never(error)) => return Err(error),
                    Err(Refusal::Full) => {}
                }
            }
        }
        call.stamp = self.wait_begin(worker, job)?;
        self.shared.post(Post::OneWay(call));
        let waited = self.wait(worker, job, deadline.or(job.deadline), None);
        if waited.is_err() {
            self.call_abandon(worker);
        }
        self.wait_end();
        match waited? {
            Delivery::Ended(outcome, _) => outcome.map(drop),
            _ => Err(InvokeError::Malformed("a delivery for another wait".into())),
        }
    }

    /// A one-way call is to be taken on, as soon as there is room.
    #[cold]
    pub fn one_way_queue(&self, core: &mut Core, call: OneWayCall) {
        match core.serve.peers.target(&call.process) {
            Ok(target) => {
                let calls = core.one_ways.0.entry(target).or_default();
                // Whoever calls a process that never has room, and gives up, leaves nothing behind.
                calls.retain(|call| self.one_way_waiter(call).is_some());
                calls.push_back(call);
            }
            Err(error) => self.one_way_taken(&call, Err(error)),
        }
    }

    /// Takes on the one-way calls that waited for room, as far as there is some now.
    #[cold]
    pub fn one_ways_start(&self, core: &mut Core) {
        let mut waiting = std::mem::take(&mut core.one_ways.0);
        waiting.retain(|target, calls| {
            while core.serve.peers.room(*target)
                && let Some(call) = calls.pop_front()
            {
                if self.one_way_waiter(&call).is_none() {
                    continue;
                }
                let begun = match one_way_start(core, *target, &call) {
                    Ok(()) => Ok(Payload::default()),
                    Err(Refusal::Never(error)) => Err(error),
                    Err(Refusal::Full) => {
                        calls.push_front(call);
                        break;
                    }
                };
                self.one_way_taken(&call, begun);
            }
            !calls.is_empty()
        });
        core.one_ways.0 = waiting;
    }

    /// The worker whose function waits until a call is taken on, unless it has given up.
    fn one_way_waiter(&self, call: &OneWayCall) -> Option<Arc<Worker>> {
        let worker = self.shared.crew.worker(call.worker);
        worker.filter(|worker| worker.inbox().stamp == call.stamp)
    }

    fn one_way_taken(&self, call: &OneWayCall, begun: Result<Payload, InvokeError>) {
        if let Some(worker) = self.shared.crew.worker(call.worker) {
            // Nobody waits any more if it cannot be delivered.
            drop(worker.deliver(call.stamp, Delivery::Ended(begun, 0)));
        }
    }
}

/// Hands a one-way call to the client's core, if there is room.
fn one_way_start(core: &mut Core, target: Target, call: &OneWayCall) -> Result<(), Refusal> {
    let Core {
        endpoint, serve, ..
    } = core;
    let peers = &mut serve.peers;
    let function = peers
        .function(target, &call.function)
        .map_err(Refusal::Never)?;
    let options = CallOptions {
        deadline: call.deadline,
        ..CallOptions::default()
    };
    let payload = call.payload.clone();
    peers.invoke_one_way(
        endpoint, target, function, payload, options, OWNER_NONE, true,
    )?;
    Ok(())
}
