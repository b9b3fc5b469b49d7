//! What a state object and a queue of messages may do, and what a crash does to them.
//!
//! Linearizability is local: a history is linearizable if what happened to each object is. So
//! each state object, and each queue of one source under one key, is checked by itself. An image
//! is an operation on every object, which notes what it is then; that a process begins from an
//! image after a crash is another one, which makes it that again.
//!
//! What is written through goes over all images that are noted by then. If nobody was told that it
//! is durable it may do so, and at any later crash for the first time: its write may have come to
//! storage when the next life had looked there already.

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
    /// It is no more.
    Erase,
    /// It is durable as it is, which is this; `None`: nobody knows what.
    Through(Option<Option<u64>>),
    /// Somebody wants it to be written through, and is not told that it was.
    ThroughWanted,
    /// Nothing more comes of that.
    ThroughOver,
    /// An image notes its value.
    Note(Image),
    /// It has the value of an image again, or none, and then what was written through.
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
    noted: BTreeMap<Image, Stored>,
    /// Who wants it to be written through, and is not told that it was.
    wanted: u32,
}

/// What a life that begins from an image begins with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Stored {
    value: Option<u64>,
    /// What it may be instead: nobody was told whether this was written through. What comes later
    /// goes before what came earlier.
    perhaps: Vec<Option<u64>>,
}

impl ObjectState {
    fn with(&self, value: Option<u64>) -> Self {
        let mut state = self.clone();
        state.value = value;
        if state.wanted > 0 {
            state.perhaps_note();
        }
        state
    }

    fn perhaps_note(&mut self) {
        for stored in self.noted.values_mut() {
            if stored.perhaps.last() != Some(&self.value) {
                stored.perhaps.push(self.value);
            }
        }
    }

    /// What may be there after a crash.
    fn back(&self, image: Image) -> Vec<Self> {
        let Some(stored) = self.noted.get(&image) else {
            return Vec::new();
        };
        let others = stored.perhaps.iter().enumerate().map(|(at, other)| {
            let mut state = self.clone();
            let perhaps = stored.perhaps[at + 1..].to_vec();
            let value = *other;
            state.noted.insert(image, Stored { value, perhaps });
            state
        });
        let mut states: Vec<_> = others.chain([self.clone()]).collect();
        for state in &mut states {
            state.value = state.noted.get(&image).and_then(|stored| stored.value);
            state.wanted = 0;
        }
        states
    }
}

impl Model for ObjectModel {
    type State = ObjectState;
    type Op = ObjectOp;

    fn initial(&self) -> ObjectState {
        ObjectState::default()
    }

    fn step(&self, state: &ObjectState, op: &ObjectOp) -> Vec<ObjectState> {
        let value = match op {
            ObjectOp::Read(read) => {
                let fits = read.is_none_or(|read| read == state.value);
                return fits.then(|| state.clone()).into_iter().collect();
            }
            ObjectOp::Write(value) => Some(*value),
            ObjectOp::Erase => None,
            ObjectOp::CompareSwap {
                expected,
                value,
                wrote,
            } => {
                let writes = *expected == state.value;
                if wrote.is_some_and(|wrote| wrote != writes) {
                    return Vec::new();
                }
                match writes {
                    true => Some(*value),
                    false => state.value,
                }
            }
            ObjectOp::Add { amount, sum } => {
                let value = state.value.unwrap_or(0) + amount;
                if sum.is_some_and(|sum| sum != value) {
                    return Vec::new();
                }
                Some(value)
            }
            ObjectOp::Through(value) => return self.through(state, *value),
            ObjectOp::ThroughWanted => {
                let mut state = state.clone();
                state.wanted += 1;
                state.perhaps_note();
                return vec![state];
            }
            ObjectOp::ThroughOver => {
                let mut state = state.clone();
                // A crash may have ended it before.
                state.wanted = state.wanted.saturating_sub(1);
                return vec![state];
            }
            ObjectOp::Note(image) => {
                let mut state = state.clone();
                let stored = Stored {
                    value: state.value,
                    perhaps: Vec::new(),
                };
                state.noted.insert(*image, stored);
                return vec![state];
            }
            ObjectOp::Back(_) if self.written_through => state.value,
            ObjectOp::Back(None) => {
                let mut state = state.clone();
                (state.value, state.wanted) = (None, 0);
                return vec![state];
            }
            ObjectOp::Back(Some(image)) => return state.back(*image),
        };
        vec![state.with(value)]
    }
}

impl ObjectModel {
    fn through(&self, state: &ObjectState, value: Option<Option<u64>>) -> Vec<ObjectState> {
        if value.is_some_and(|value| value != state.value) {
            return Vec::new();
        }
        let mut state = state.clone();
        for stored in state.noted.values_mut() {
            stored.value = state.value;
            stored.perhaps.clear();
        }
        vec![state]
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
    /// The same comes in again, or not: a crash may have taken it away before its sender heard that
    /// it was there.
    Again {
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

    fn step(&self, state: &QueueState, op: &QueueOp) -> Vec<QueueState> {
        let mut state = state.clone();
        match op {
            QueueOp::Put { number, message } => {
                if state.queue.last.is_some_and(|last| last >= *number) {
                    return Vec::new();
                }
                state.queue.last = Some(*number);
                state.queue.messages.push_back(*message);
            }
            QueueOp::Again { number, message } => {
                let without = state.clone();
                if state.queue.last.is_some_and(|last| last >= *number) {
                    return vec![without];
                }
                state.queue.last = Some(*number);
                state.queue.messages.push_back(*message);
                return vec![without, state];
            }
            QueueOp::Take(taken) => {
                let front = state.queue.messages.pop_front();
                if taken.is_some_and(|taken| taken != front) {
                    return Vec::new();
                }
            }
            QueueOp::Peek(seen) => {
                if *seen != state.queue.messages.front().copied() {
                    return Vec::new();
                }
            }
            QueueOp::Note(image) => {
                state.noted.insert(*image, state.queue.clone());
            }
            QueueOp::Back(None) => state.queue = Queue::default(),
            QueueOp::Back(Some(image)) => match state.noted.get(image) {
                Some(queue) => state.queue = queue.clone(),
                None => return Vec::new(),
            },
        }
        vec![state]
    }
}
