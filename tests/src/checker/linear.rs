//! Whether a history of operations is linearizable: whether each may have happened at one moment
//! between its begin and its end, one after the other, as a model allows.
//!
//! The algorithm is that of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993): take
//! any operation that no other must come before, ask the model, go on; when stuck, go back. With
//! Lowe's memory ("Testing for linearizability", 2017) of what was reached before: the same
//! operations, however ordered, with the same state are not tried again. It is exponential in
//! the operations that overlap, and about linear in the length of the history.
//!
//! Operations of which nobody knows whether they happened are *open*: their end is never, and they
//! may be left out.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use super::history::Time;

/// What a sequence of operations may do.
pub trait Model {
    /// What they change.
    type State: Clone + Eq + Hash + Debug;
    /// An operation with its result.
    type Op: Debug;

    /// The state before the first.
    fn initial(&self) -> Self::State;

    /// The states that there may be after an operation; none if it cannot have its result.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Vec<Self::State>;
}

/// An operation in a history.
#[derive(Debug, Clone)]
pub struct Operation<O> {
    /// It happened after this,
    pub begin: Time,
    /// and before that; `None`: if at all.
    pub end: Option<Time>,
    /// What it did, and its result.
    pub op: O,
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none. The operations of the longest order that was found, and those that could
    /// have been next, none of which fits.
    Impossible {
        /// Indices into the history.
        order: Vec<usize>,
        /// Indices into the history.
        next: Vec<usize>,
    },
    /// The search was given up.
    Unknown,
}

/// States that are tried before the search is given up.
const TRIES_MAX: usize = 4_000_000;

/// What is linearized: of closed operations all below `first`, and some others.
///
/// Open ones come behind all closed ones, so that one that is left out for good holds up nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Front {
    first: usize,
    above: Vec<usize>,
}

impl Front {
    fn has(&self, at: usize) -> bool {
        at < self.first || self.above.binary_search(&at).is_ok()
    }

    fn with(&self, at: usize) -> Self {
        let mut front = self.clone();
        if let Err(place) = front.above.binary_search(&at) {
            front.above.insert(place, at);
        }
        while front.above.first() == Some(&front.first) {
            front.above.remove(0);
            front.first += 1;
        }
        front
    }
}

/// Searches for an order.
pub fn linearize<M: Model>(model: &M, operations: &[Operation<M::Op>]) -> Verdict {
    let mut by_begin: Vec<usize> = (0..operations.len()).collect();
    by_begin.sort_by_key(|at| (operations[*at].end.is_none(), operations[*at].begin));
    let ops: Vec<&Operation<M::Op>> = by_begin.iter().map(|at| &operations[*at]).collect();
    let closed = ops.iter().filter(|op| op.end.is_some()).count();
    let mut search = Search {
        model,
        ops: &ops,
        closed,
        seen: HashSet::new(),
    };
    let found = search.run();
    match found {
        Verdict::Impossible { order, next } => Verdict::Impossible {
            order: order.into_iter().map(|at| by_begin[at]).collect(),
            next: next.into_iter().map(|at| by_begin[at]).collect(),
        },
        other => other,
    }
}

struct Search<'a, M: Model> {
    model: &'a M,
    ops: &'a [&'a Operation<M::Op>],
    /// How many are closed: they come first.
    closed: usize,
    seen: HashSet<(Front, M::State)>,
}

/// One step of the way that is being tried.
struct Step<S> {
    front: Front,
    state: S,
    /// What may come next and was not tried, the last first.
    candidates: Vec<usize>,
    /// An operation that comes next, and states after it that were not tried.
    states: (usize, Vec<S>),
    /// Closed operations that are linearized.
    closed: usize,
    /// The operation that led here.
    by: usize,
}

impl<M: Model> Search<'_, M> {
    fn run(&mut self) -> Verdict {
        let front = Front {
            first: 0,
            above: Vec::new(),
        };
        let (mut longest, mut next) = (Vec::new(), self.candidates(&front));
        let mut way = vec![Step {
            candidates: next.clone(),
            states: (usize::MAX, Vec::new()),
            state: self.model.initial(),
            front,
            closed: 0,
            by: usize::MAX,
        }];
        while let Some(step) = way.last_mut() {
            if step.closed == self.closed {
                return Verdict::Linearizable;
            }
            let Some(state) = step.states.1.pop() else {
                match step.candidates.pop() {
                    Some(at) => {
                        let states = self.model.step(&step.state, &self.ops[at].op);
                        step.states = (at, states);
                    }
                    None => drop(way.pop()),
                }
                continue;
            };
            let at = step.states.0;
            let front = step.front.with(at);
            let closed = step.closed + usize::from(self.ops[at].end.is_some());
            if !self.seen.insert((front.clone(), state.clone())) {
                continue;
            }
            if self.seen.len() > TRIES_MAX {
                return Verdict::Unknown;
            }
            let candidates = self.candidates(&front);
            way.push(Step {
                front,
                state,
                candidates: candidates.clone(),
                states: (usize::MAX, Vec::new()),
                closed,
                by: at,
            });
            if way.len() > longest.len() + 1 {
                longest = way[1..].iter().map(|step| step.by).collect();
                next = candidates;
            }
        }
        next.reverse();
        Verdict::Impossible {
            order: longest,
            next,
        }
    }

    /// What may come next: all that began before the first end of those that are left. What is
    /// tried first is last: what ended first, since that is most often the order; and what need
    /// not have happened only when all else fails.
    fn candidates(&self, front: &Front) -> Vec<usize> {
        let mut end = Time::MAX;
        let mut found = Vec::new();
        for at in front.first..self.closed {
            let op = self.ops[at];
            if op.begin > end {
                break;
            }
            if !front.has(at) {
                end = end.min(op.end.unwrap_or(Time::MAX));
                found.push(at);
            }
        }
        let open = (self.closed..self.ops.len()).filter(|at| !front.has(*at));
        found.extend(open);
        found.retain(|at| self.ops[*at].begin <= end);
        found.sort_by_key(|at| std::cmp::Reverse(self.ops[*at].end.unwrap_or(Time::MAX)));
        found
    }
}
