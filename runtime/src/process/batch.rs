//! Batches that functions give to other processes: many calls under way for one worker that waits.
//!
//! ```text
//!   worker: Post::Batch --> owner: begins calls while there is room --> each ends: another begins
//!      waits <------------------ all have ended: their outcomes, in order of the inputs
//! ```

use praas_transport::Endpoint;
use slab::Slab;

use super::crew::Delivery;
use super::engine::{Core, Engine};
use crate::client::{CallId, CallOptions, FunctionId, Refusal, Target};
use crate::invocation::{InvokeError, Payload};

/// What tells owners of calls in batches from others: the batch and the number of the input follow.
const OWNERS_FIRST: u64 = 1 << 63;

/// A batch, as its worker gives it.
#[derive(Debug)]
pub(super) struct BatchCall {
    pub worker: usize,
    pub stamp: u32,
    pub process: String,
    pub function: String,
    pub inputs: Vec<Payload>,
    pub options: CallOptions,
}

/// A batch that is under way.
#[derive(Debug)]
struct Batch {
    worker: usize,
    stamp: u32,
    target: Target,
    function: FunctionId,
    /// Those that were not sent yet, the last first.
    inputs: Vec<Payload>,
    options: CallOptions,
    calls: Vec<Option<CallId>>,
    outcomes: Vec<Option<Result<Payload, InvokeError>>>,
    left: usize,
}

/// All batches of a process.
#[derive(Debug, Default)]
pub(super) struct Batches {
    under_way: Slab<Batch>,
    /// Some may have inputs that were not sent.
    due: bool,
}

impl Batches {
    /// Whether there is something to send, if there is room.
    pub fn is_due(&self) -> bool {
        self.due
    }

    /// Whether a call that has ended is one of a batch.
    pub fn owns(owner: u64) -> bool {
        owner >= OWNERS_FIRST
    }
}

impl Engine {
    /// Begins a batch.
    pub fn batch_begin(&self, core: &mut Core, call: BatchCall) {
        let BatchCall {
            worker,
            stamp,
            process,
            function,
            mut inputs,
            options,
        } = call;
        let peers = &mut core.serve.peers;
        let names = peers.target(&process).and_then(|target| {
            let function = peers.function(target, &function)?;
            Ok((target, function))
        });
        let (target, function) = match names {
            Ok(names) => names,
            Err(error) => return self.batch_deliver(worker, stamp, Delivery::Ended(Err(error), 0)),
        };
        let left = inputs.len();
        inputs.reverse();
        core.batches.under_way.insert(Batch {
            worker,
            stamp,
            target,
            function,
            inputs,
            options,
            calls: vec![None; left],
            outcomes: (0..left).map(|_| None).collect(),
            left,
        });
        self.batches_send(core);
    }

    /// Sends of all batches what there is room for.
    #[cold]
    pub fn batches_send(&self, core: &mut Core) {
        core.batches.due = false;
        let numbers: Vec<usize> = core.batches.under_way.iter().map(|(at, _)| at).collect();
        for number in numbers {
            self.batch_send(core, number);
        }
    }

    fn batch_send(&self, core: &mut Core, number: usize) {
        let Core {
            endpoint,
            serve,
            batches,
            ..
        } = core;
        let peers = &mut serve.peers;
        let batch = &mut batches.under_way[number];
        let target = batch.target;
        if !batch.inputs.is_empty() {
            peers.cork(endpoint, target, true);
            while peers.room(target)
                && let Some(input) = batch.inputs.pop()
            {
                let at = batch.calls.len() - batch.inputs.len() - 1;
                let owner = OWNERS_FIRST | (number as u64) << 32 | at as u64;
                let (function, options) = (batch.function, batch.options);
                match peers.invoke(endpoint, target, function, input, options, owner) {
                    Ok(call) => batch.calls[at] = Some(call),
                    Err(refusal) => batch.ended(at, Err(Refusal::into_error(refusal))),
                }
            }
            peers.cork(endpoint, target, false);
        }
        batches.due |= !batch.inputs.is_empty();
        if batch.left == 0 {
            let batch = batches.under_way.remove(number);
            let outcomes = batch.outcomes.into_iter().flatten().collect();
            self.batch_deliver(batch.worker, batch.stamp, Delivery::Batch(outcomes));
        }
    }

    /// A call of a batch has ended.
    #[cold]
    pub fn batch_ended(&self, core: &mut Core, owner: u64, outcome: Result<Payload, InvokeError>) {
        let number = (owner & !OWNERS_FIRST) >> 32;
        let Some(batch) = core.batches.under_way.get_mut(number as usize) else {
            return;
        };
        batch.ended(owner as u32 as usize, outcome);
        if batch.left == 0 || !batch.inputs.is_empty() {
            // Sent when all that has ended is known of, so that it goes out together.
            core.batches.due = true;
        }
    }

    /// Gives up on what a worker does not wait for any more.
    pub fn batch_cancel(&self, core: &mut Core, worker: usize, stamp: u32) {
        let Core {
            endpoint,
            serve,
            batches,
            ..
        } = core;
        let endpoint: &mut Endpoint = endpoint;
        for (_, batch) in &mut batches.under_way {
            if (batch.worker, batch.stamp) != (worker, stamp) {
                continue;
            }
            batches.due = true;
            batch.left -= batch.inputs.len();
            batch.inputs.clear();
            for call in batch.calls.iter().flatten() {
                serve.peers.cancel(endpoint, *call);
            }
        }
    }

    fn batch_deliver(&self, worker: usize, stamp: u32, delivery: Delivery) {
        if let Some(worker) = self.shared.crew.worker(worker) {
            // A wait that is over has no use for it.
            drop(worker.deliver(stamp, delivery));
        }
    }
}

impl Batch {
    fn ended(&mut self, at: usize, outcome: Result<Payload, InvokeError>) {
        if let Some(place) = self.outcomes.get_mut(at)
            && place.is_none()
        {
            *place = Some(outcome);
            self.calls[at] = None;
            self.left -= 1;
        }
    }
}
