//! One message to many processes: all puts begin at once, and the worker waits for all of them.
//!
//! ```text
//!   broadcast -- one buffer, shared --> put to a, put to b, put to c
//!       |                                   |
//!       waits <---- Gathered <---- Gather: the outcome of each, as it ends
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::crew::{Delivery, Worker};
use super::engine::{Core, Engine, Post};
use crate::client::{CallId, CallOptions, Refusal};
use crate::invocation::{InvokeError, PutBody};
use crate::services::Job;

/// The calls of a broadcast, in the order of its receivers.
#[derive(Debug, Default)]
pub(super) struct Gather {
    outcomes: Vec<Option<Result<(), InvokeError>>>,
    /// Calls under way, each with its place.
    under_way: HashMap<CallId, usize>,
}

impl Gather {
    fn add(&mut self, begun: Result<CallId, InvokeError>) {
        match begun {
            Ok(call) => {
                self.under_way.insert(call, self.outcomes.len());
                self.outcomes.push(None);
            }
            Err(error) => self.outcomes.push(Some(Err(error))),
        }
    }

    /// One of them has ended.
    pub fn ended(&mut self, call: CallId, outcome: Result<(), InvokeError>) {
        if let Some(place) = self.under_way.remove(&call) {
            self.outcomes[place] = Some(outcome);
        }
    }

    /// How all of them ended, once they have.
    pub fn outcomes(&mut self) -> Option<Vec<Result<(), InvokeError>>> {
        let done = self.under_way.is_empty();
        done.then(|| self.give_up(&InvokeError::Cancelled).0)
    }

    /// How they ended, those under way by `error`; and which these are.
    fn give_up(&mut self, error: &InvokeError) -> (Vec<Result<(), InvokeError>>, Vec<CallId>) {
        let outcomes = std::mem::take(&mut self.outcomes).into_iter();
        let outcomes = outcomes.map(|outcome| outcome.unwrap_or_else(|| Err(error.clone())));
        let calls = std::mem::take(&mut self.under_way).into_keys();
        (outcomes.collect(), calls.collect())
    }
}

/// What is sent to whom.
struct Round {
    processes: Vec<String>,
    body: PutBody,
    options: CallOptions,
}

impl Round {
    /// Begins all calls on behalf of a worker that waits with this stamp.
    fn begin(self, core: &mut Core, number: usize, worker: &Worker, stamp: u32) {
        if worker.inbox().stamp != stamp {
            return;
        }
        let owner = (number as u64) << 32 | u64::from(stamp);
        let Core {
            endpoint, serve, ..
        } = core;
        let mut gather = Gather::default();
        for process in &self.processes {
            let begun = serve.peers.target(process).and_then(|target| {
                let body = self.body.clone();
                let begun = serve.peers.put(endpoint, target, body, self.options, owner);
                begun.map_err(Refusal::into_error)
            });
            gather.add(begun);
        }
        let mut inbox = worker.inbox();
        if inbox.stamp != stamp {
            drop(inbox);
            for call in gather.give_up(&InvokeError::Cancelled).1 {
                serve.peers.cancel(endpoint, call);
            }
            return;
        }
        match gather.outcomes() {
            None => inbox.gather = Some(gather),
            Some(outcomes) => {
                drop(inbox);
                drop(worker.deliver(stamp, Delivery::Gathered(outcomes)));
            }
        }
    }
}

impl Engine {
    /// See [`crate::services::Services::message_broadcast`].
    pub(super) fn broadcast(
        &self,
        job: &Job,
        to: &[&str],
        key: &str,
        payload: &[u8],
        deadline: Option<Instant>,
    ) -> Vec<Result<(), InvokeError>> {
        let own = &*self.shared.identity.name;
        let processes: Vec<String> = to
            .iter()
            .filter(|name| **name != own)
            .map(|name| (*name).to_owned())
            .collect();
        let count = processes.len();
        let outcomes = match count {
            0 => Ok(Vec::new()),
            _ => self.others_put(job, processes, key, payload, deadline),
        };
        let mut outcomes = match outcomes {
            Ok(outcomes) => outcomes.into_iter(),
            Err(error) => vec![Err(error); count].into_iter(),
        };
        to.iter()
            .map(|name| match *name == own {
                true => self.own_put(key, payload),
                false => outcomes.next().unwrap_or(Err(InvokeError::Cancelled)),
            })
            .collect()
    }

    fn others_put(
        &self,
        job: &Job,
        processes: Vec<String>,
        key: &str,
        payload: &[u8],
        deadline: Option<Instant>,
    ) -> Result<Vec<Result<(), InvokeError>>, InvokeError> {
        let worker = self.worker_of(job)?;
        let body = PutBody::new(key, payload, &self.shared.pool)?;
        let deadline = deadline.or(job.deadline);
        let options = CallOptions {
            deadline,
            idempotent: false,
        };
        let count = processes.len();
        let round = Round {
            processes,
            body,
            options,
        };
        let stamp = self.wait_begin(&worker, job)?;
        let number = job.worker;
        let owned = match self.token.try_take() {
            Some(mut core) => {
                round.begin(&mut core, number, &worker, stamp);
                Some(core)
            }
            None => {
                let waits = Arc::clone(&worker);
                self.shared.post(Post::Control(Box::new(move |core| {
                    round.begin(core, number, &waits, stamp);
                })));
                None
            }
        };
        let waited = self.wait(&worker, job, deadline, owned);
        let outcome = match waited {
            Ok(Delivery::Gathered(outcomes)) => Ok(outcomes),
            Ok(_) => Err(InvokeError::Malformed(
                "something else for a broadcast".into(),
            )),
            Err(error) => Ok(self.gather_abandon(&worker, &error, count)),
        };
        self.wait_end();
        outcome
    }

    /// The wait for a broadcast is over before all have answered.
    fn gather_abandon(
        &self,
        worker: &Worker,
        error: &InvokeError,
        count: usize,
    ) -> Vec<Result<(), InvokeError>> {
        let (gather, delivery) = {
            let mut inbox = worker.inbox();
            inbox.stamp = inbox.stamp.wrapping_add(1);
            (inbox.gather.take(), inbox.delivery.take())
        };
        if let Some(Delivery::Gathered(outcomes)) = delivery {
            return outcomes;
        }
        let Some(mut gather) = gather else {
            return vec![Err(error.clone()); count];
        };
        let (outcomes, calls) = gather.give_up(error);
        for call in calls {
            self.shared.post(Post::Cancel(call));
        }
        outcomes
    }
}
