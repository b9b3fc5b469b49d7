//! What was sent on one channel and is given up, until the process answers it all the same.
//!
//! Nobody hears of such an answer. But it says whether there is a function of that name, and that a
//! large request needs its number no longer.

use std::collections::BTreeMap;

use super::{CallId, FunctionId};

/// So many are remembered. A name or a number of others stays taken: until the process answers
/// another call to it, or the channel ends.
const GIVEN_UP_MAX: usize = 1 << 13;

/// Invocations that nobody waits for.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    /// By sequence: the call, its function, and the number that is kept for it.
    calls: BTreeMap<u64, (CallId, FunctionId, Option<u32>)>,
}

impl GivenUp {
    /// One more; the oldest is forgotten if they are too many.
    pub fn add(&mut self, sequence: u64, call: CallId, function: FunctionId, number: Option<u32>) {
        if self.calls.len() >= GIVEN_UP_MAX {
            self.calls.pop_first();
        }
        self.calls.insert(sequence, (call, function, number));
    }

    /// The process has answered one: its function, and the number that was kept for it.
    pub fn answered(&mut self, sequence: u64) -> Option<(FunctionId, Option<u32>)> {
        let (_, function, number) = self.calls.remove(&sequence)?;
        Some((function, number))
    }

    /// The process takes no part of a large one.
    pub fn refused(&mut self, call: CallId) -> Option<(FunctionId, Option<u32>)> {
        let mut all = self.calls.iter();
        let sequence = *all.find(|(_, (of, ..))| *of == call)?.0;
        self.answered(sequence)
    }

    /// The channel is no more.
    pub fn clear(&mut self) {
        self.calls.clear();
    }
}
