//! The checker: whether what happened is what was promised.
//!
//! ```text
//!   clients, functions, hosts --> Recorder --> History --> check --> violations
//!                                                 |
//!                                                 +-- invocations: at most once, each reply its own
//!                                                 +-- lives: one at a time, from the newest image
//!                                                 +-- objects, queues: linearizable, each by itself
//! ```
//!
//! | promise | how it is checked |
//! |---|---|
//! | an invocation runs at most once, its reply is its caller's, each call ends | by counting: `invocations.rs` |
//! | one life of a process at a time, each from the newest image that is whole | by following them: `lives.rs` |
//! | a state object is linearizable | the search of `linear.rs`, an object at a time |
//! | messages of a source under a key: in order, once, none lost | the same, a queue at a time |
//! | a crash takes a process back to an image, a swap takes nothing back | images and crashes are operations of the search: `models.rs` |
//! | a process that was stopped or deleted is empty when it comes again, and nothing is left of a deleted one | `lives.rs` |
//! | but for objects that were written through | that is an operation, too, which goes over images: `through.rs` |
//!
//! What a caller cannot know (its process died, its deadline passed) may have happened or not: the
//! search tries both.

mod history;
mod invocations;
mod linear;
mod lives;
mod models;
mod real;
mod through;

use std::collections::{BTreeMap, BTreeSet};

pub use self::history::{Action, Call, End, Event, History, Image, Outcome, Recorder, Reply, Time};
pub use self::linear::{Model, Operation, Verdict, linearize};
pub use self::lives::{Life, Lives, Noted, lives};
pub use self::models::{ObjectModel, ObjectOp, ObjectState, QueueModel, QueueOp, QueueState};
pub use self::real::{COUNT, call};
use self::through::ThroughEnds;

/// What is not as it was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub promise: Promise,
    /// What happened.
    pub text: String,
}

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// An invocation runs at most once.
    AtMostOnce,
    /// A caller gets the reply of its own invocation.
    OwnReply,
    /// Every call ends.
    Ends,
    /// A process has one life at a time.
    OneLife,
    /// A life begins from the newest image that is whole.
    NewestImage,
    /// State objects are linearizable, and only a crash takes something back.
    State,
    /// Messages come in order, once, and only a crash takes something back.
    Messages,
    /// Nothing is left of a process that was deleted.
    Deleted,
    /// None: there are too many orders to try them all, so that one that holds may be among them.
    Undecided,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.text)
    }
}

/// All that is not as it was promised.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = invocations::check(history);
    let (lives, wrong) = lives(history);
    found.extend(wrong);
    let calls = invocations::calls(history);
    let mut processes: BTreeSet<&str> = lives.keys().map(String::as_str).collect();
    processes.extend(calls.values().map(|call| call.process));
    for process in processes {
        let none = Vec::new();
        let noted = lives.get(process).map_or(&none, |lives| &lives.noted);
        let part = Part {
            process,
            noted,
            history,
        };
        found.extend(part.objects(&calls));
        found.extend(part.queues(&calls));
    }
    found
}

/// What concerns one process.
struct Part<'a> {
    process: &'a str,
    noted: &'a [Noted],
    history: &'a History,
}

/// An operation on an object of the process, and which.
type Named<K, O> = (K, Operation<O>);

impl Part<'_> {
    fn objects(&self, calls: &BTreeMap<Call, invocations::Told<'_>>) -> Vec<Violation> {
        let mut by_key: BTreeMap<String, Vec<Operation<ObjectOp>>> = BTreeMap::new();
        for (key, operation) in self.object_operations(calls) {
            by_key.entry(key).or_default().push(operation);
        }
        let through = self.history.written_through.as_deref();
        let mut found = Vec::new();
        for (key, mut operations) in by_key {
            operations.extend(self.noted.iter().map(|noted| match noted {
                Noted::Image(image, begin, end) => {
                    operation(*begin, Some(*end), ObjectOp::Note(*image))
                }
                Noted::Back(from, begin, end) => {
                    operation(*begin, Some(*end), ObjectOp::Back(*from))
                }
            }));
            let model = ObjectModel {
                written_through: through.is_some_and(|prefix| key.starts_with(prefix)),
            };
            let text = format!("object {key:?} of {:?}", self.process);
            found.extend(judge(&model, &operations, Promise::State, &text));
        }
        found
    }

    fn object_operations(
        &self,
        calls: &BTreeMap<Call, invocations::Told<'_>>,
    ) -> Vec<Named<String, ObjectOp>> {
        let through = ThroughEnds::new(self.history, self.process);
        let mut all = Vec::new();
        for told in calls.values().filter(|told| told.process == self.process) {
            for (begin, end, reply) in told.runs(self.history.functions_tell) {
                let (key, op) = match (told.action, reply) {
                    (Action::Read { key } | Action::Look { key }, reply) => {
                        let value = match reply {
                            Some(Reply::Value(value)) => Some(*value),
                            _ => None,
                        };
                        (key, ObjectOp::Read(value))
                    }
                    (Action::Write { key, value }, _) => (key, ObjectOp::Write(*value)),
                    (Action::Erase { key }, _) => (key, ObjectOp::Erase),
                    (
                        Action::CompareSwap {
                            key,
                            expected,
                            value,
                        },
                        reply,
                    ) => {
                        let op = ObjectOp::CompareSwap {
                            expected: *expected,
                            value: *value,
                            wrote: match reply {
                                Some(Reply::Wrote(wrote)) => Some(*wrote),
                                _ => None,
                            },
                        };
                        (key, op)
                    }
                    (Action::Add { key, amount }, reply) => {
                        let op = ObjectOp::Add {
                            amount: *amount,
                            sum: match reply {
                                Some(Reply::Sum(sum)) => Some(*sum),
                                _ => None,
                            },
                        };
                        (key, op)
                    }
                    (Action::Persist { key, write }, reply) => {
                        let written = write.map(ObjectOp::Write);
                        let written = written.map(|op| operation(begin, end, op));
                        let life = told.incarnation(begin);
                        let through = through.operations((begin, end), life, reply);
                        let all_of_it = written.into_iter().chain(through);
                        all.extend(all_of_it.map(|operation| (key.clone(), operation)));
                        continue;
                    }
                    (
                        Action::Put { .. }
                        | Action::Take { .. }
                        | Action::Peek { .. }
                        | Action::Other,
                        _,
                    ) => continue,
                };
                all.push((key.clone(), operation(begin, end, op)));
            }
        }
        all
    }

    fn queues(&self, calls: &BTreeMap<Call, invocations::Told<'_>>) -> Vec<Violation> {
        let mut queues: BTreeMap<(String, String), Vec<Operation<QueueOp>>> = BTreeMap::new();
        let ours = || calls.values().filter(|told| told.process == self.process);
        let mut numbers: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let mut in_order: Vec<_> = ours().collect();
        in_order.sort_by_key(|told| told.called);
        for told in in_order {
            let Action::Put {
                source,
                key,
                message,
            } = told.action
            else {
                continue;
            };
            let number = numbers.entry((source, key)).or_default();
            *number += 1;
            let (number, message) = (*number, *message);
            let queue = queues.entry((source.clone(), key.clone())).or_default();
            let end = match told.outcome {
                Some((at, Outcome::Ok(_))) => Some(at),
                Some((_, Outcome::NotRun(_))) => continue,
                _ => None,
            };
            queue.push(operation(
                told.called,
                end,
                QueueOp::Put { number, message },
            ));
        }
        for told in ours() {
            let (source, key, peeks) = match told.action {
                Action::Take { source, key } => (source, key, false),
                Action::Peek { source, key } => (source, key, true),
                _ => continue,
            };
            for (begin, end, reply) in told.runs(self.history.functions_tell) {
                let (from, taken) = match reply {
                    Some(Reply::Message(Some((from, message)))) => {
                        (Some(from), Some(Some(*message)))
                    }
                    Some(Reply::Message(None)) => (source.as_ref(), Some(None)),
                    Some(_) => continue,
                    _ => (source.as_ref(), None),
                };
                let op = match (taken, peeks) {
                    (taken, false) => QueueOp::Take(taken),
                    (Some(seen), true) => QueueOp::Peek(seen),
                    (None, true) => continue,
                };
                let take = |queue: &mut Vec<Operation<QueueOp>>| {
                    queue.push(operation(begin, end, op.clone()));
                };
                match from {
                    Some(from) => take(queues.entry((from.clone(), key.clone())).or_default()),
                    // Nobody's message: there was none of anybody.
                    None => queues
                        .iter_mut()
                        .filter(|((_, of), _)| of == key)
                        .for_each(|(_, queue)| take(queue)),
                }
            }
        }
        let mut found = Vec::new();
        for ((source, key), mut operations) in queues {
            self.again_add(&mut operations);
            operations.extend(self.noted.iter().map(|noted| match noted {
                Noted::Image(image, begin, end) => {
                    operation(*begin, Some(*end), QueueOp::Note(*image))
                }
                Noted::Back(from, begin, end) => {
                    operation(*begin, Some(*end), QueueOp::Back(*from))
                }
            }));
            let text = format!("messages of {source:?} under {key:?} at {:?}", self.process);
            found.extend(judge(&QueueModel, &operations, Promise::Messages, &text));
        }
        found
    }
}

impl Part<'_> {
    /// Messages that were taken more than once may have come more than once, if their senders had not
    /// heard of them before a crash.
    fn again_add(&self, operations: &mut Vec<Operation<QueueOp>>) {
        let taken = |message: &u64| {
            let all = operations.iter();
            let takes = all.filter(|of| of.op == QueueOp::Take(Some(Some(*message))));
            takes.count()
        };
        let mut more = Vec::new();
        for put in &*operations {
            let QueueOp::Put { number, message } = put.op else {
                continue;
            };
            if taken(&message) < 2 {
                continue;
            }
            more.extend(self.noted.iter().filter_map(|noted| match noted {
                Noted::Back(_, back, _)
                    if *back >= put.begin && put.end.is_none_or(|end| *back <= end) =>
                {
                    Some(operation(
                        *back,
                        put.end,
                        QueueOp::Again { number, message },
                    ))
                }
                _ => None,
            }));
        }
        operations.extend(more);
    }
}

fn operation<O>(begin: Time, end: Option<Time>, op: O) -> Operation<O> {
    Operation { begin, end, op }
}

/// Whether operations have an order; if not, where it breaks off.
fn judge<M: Model>(
    model: &M,
    operations: &[Operation<M::Op>],
    promise: Promise,
    what: &str,
) -> Option<Violation> {
    let show = |at: &usize| {
        let operation = &operations[*at];
        let end = operation.end.map_or("?".into(), |end| end.to_string());
        format!("{:?} [{}, {end}]", operation.op, operation.begin)
    };
    let (promise, text) = match linearize(model, operations) {
        Verdict::Linearizable => return None,
        Verdict::Unknown => {
            let text = format!("{what}, {promise:?}: too many orders to try them all");
            (Promise::Undecided, text)
        }
        Verdict::Impossible { order, next } => {
            let last: Vec<_> = order.iter().rev().take(6).rev().map(show).collect();
            let next: Vec<_> = next.iter().map(show).collect();
            let text = format!(
                "{what}: after {}, none of these can be next: {}",
                last.join(", "),
                next.join(", ")
            );
            (promise, text)
        }
    };
    Some(Violation { promise, text })
}
