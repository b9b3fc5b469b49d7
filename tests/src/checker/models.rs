//! What a state object and a queue of messages may do, and what a crash does to them.
//!
//! Linearizability is local: a history is linearizable if what happened to each object is. So
//! each state object, and each queue of one source under one key, is checked by itself. An image
//! is an operation on every object, which notes what it is then; that a process begins from an
//! image after a crash is another one, which makes it that again.

use std::collections::{BTreeMap, VecDeque};

use super::history::Image;
use super::linear::Model;

/// An operation on a state object; results are `None` where nobody knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectOp {
    /// It has this value.
    Read(Option<Option<u64>>),
    /// It gets this value.
    Write(u64),
    /// It gets `value` if it has `expected`.
    CompareSwap {
        /// What it is to have.
        expected: Option<u64>,
        /// What it gets.
        value: u64,
        /// Whether it got it.
        wrote: Option<bool>,
    },
    /// It becomes `sum` by adding.
    Add {
        /// How much is added.
        amount: u64,
        /// What it is then.
        sum: Option<u64>,
    },
    /// An image notes its value.
    Note(Image),
    /// It has the value of an image again, or none.
    Back(Option<Image>),
}

/// A state object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectModel {
    /// Writes are durable at once: a crash takes nothing back.
    pub written_through: bool,
}

/// A value, and what images know of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ObjectState {
    value: Option<u64>,
    noted: BTreeMap<Image, Option<u64>>,
}

impl Model for ObjectModel {
    type State = ObjectState;
    type Op = ObjectOp;

    fn initial(&self) -> ObjectState {
        ObjectState::default()
    }

    fn step(&self, state: &ObjectState, op: &ObjectOp) -> Option<ObjectState> {
        let value = match op {
            ObjectOp::Read(read) => {
                let fits = read.is_none_or(|read| read == state.value);
                return fits.then(|| state.clone());
            }
            ObjectOp::Write(value) => Some(*value),
            ObjectOp::CompareSwap {
                expected,
                value,
                wrote,
            } => {
                let writes = *expected == state.value;
                if wrote.is_some_and(|wrote| wrote != writes) {
                    return None;
                }
                match writes {
                    true => Some(*value),
                    false => state.value,
                }
            }
            ObjectOp::Add { amount, sum } => {
                let value = state.value.unwrap_or(0) + amount;
                if sum.is_some_and(|sum| sum != value) {
                    return None;
                }
                Some(value)
            }
            ObjectOp::Note(image) => {
                let mut state = state.clone();
                state.noted.insert(*image, state.value);
                return Some(state);
            }
            ObjectOp::Back(_) if self.written_through => state.value,
            ObjectOp::Back(None) => None,
            ObjectOp::Back(Some(image)) => *state.noted.get(image)?,
        };
        Some(ObjectState {
            value,
            noted: state.noted.clone(),
        })
    }
}

/// An operation on the messages of one source under one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueOp {
    /// A message comes in; `number` counts the puts of the source.
    Put {
        /// Its place among the puts of its source.
        number: u64,
        /// The message.
        message: u64,
    },
    /// The oldest message is taken, or there is none; `None`: nobody knows.
    Take(Option<Option<u64>>),
    /// The oldest message is looked at, or there is none.
    Peek(Option<u64>),
    /// An image notes what is there.
    Note(Image),
    /// What an image noted is there again, or nothing.
    Back(Option<Image>),
}

/// The messages of one source under one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueModel;

/// What is in a queue, and the place of the last that came in: none comes in before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Queue {
    messages: VecDeque<u64>,
    last: Option<u64>,
}

/// A queue, and what images know of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct QueueState {
    queue: Queue,
    noted: BTreeMap<Image, Queue>,
}

impl Model for QueueModel {
    type State = QueueState;
    type Op = QueueOp;

    fn initial(&self) -> QueueState {
        QueueState::default()
    }

    fn step(&self, state: &QueueState, op: &QueueOp) -> Option<QueueState> {
        let mut state = state.clone();
        match op {
            QueueOp::Put { number, message } => {
                if state.queue.last.is_some_and(|last| last >= *number) {
                    return None;
                }
                state.queue.last = Some(*number);
                state.queue.messages.push_back(*message);
            }
            QueueOp::Take(taken) => {
                let front = state.queue.messages.pop_front();
                if taken.is_some_and(|taken| taken != front) {
                    return None;
                }
            }
            QueueOp::Peek(seen) => {
                if *seen != state.queue.messages.front().copied() {
                    return None;
                }
            }
            QueueOp::Note(image) => {
                state.noted.insert(*image, state.queue.clone());
            }
            QueueOp::Back(None) => state.queue = Queue::default(),
            QueueOp::Back(Some(image)) => state.queue = state.noted.get(image)?.clone(),
        }
        Some(state)
    }
}
