//! Messages of one sender under one key are in the mailbox in the order in which they were put.
//!
//! A channel keeps the order of headers only: the payload of a large message comes by another way,
//! and a small one that was put after it would be in the mailbox first. So what is put under the
//! same key as a large message waits until that one is answered; all else goes past it.

use std::collections::VecDeque;

use super::core::CallId;

/// The order of puts to one process over one channel.
#[derive(Debug, Default)]
pub(super) struct PutOrder {
    /// Large ones that are not answered: sequence, call, key.
    large: Vec<(u64, CallId, Box<[u8]>)>,
    /// Those that wait, in order, with their keys.
    held: VecDeque<(CallId, Box<[u8]>)>,
}

impl PutOrder {
    /// Whether a put under `key` must wait.
    #[inline]
    pub fn waits(&self, key: &[u8]) -> bool {
        !self.large.is_empty()
            && (self.large.iter().any(|(_, _, large)| **large == *key)
                || self.held.iter().any(|(_, held)| **held == *key))
    }

    /// A put waits.
    pub fn hold(&mut self, call: CallId, key: &[u8]) {
        self.held.push_back((call, key.into()));
    }

    /// A large put is on its way.
    pub fn large_sent(&mut self, sequence: u64, call: CallId, key: &[u8]) {
        self.large.push((sequence, call, key.into()));
    }

    /// A put is answered: those that may go now, in order.
    #[inline]
    pub fn answered(&mut self, sequence: u64) -> VecDeque<CallId> {
        self.ended(|(of, ..)| *of == sequence)
    }

    /// The receiver takes no part of a large put: those that may go now, in order.
    pub fn refused(&mut self, call: CallId) -> VecDeque<CallId> {
        self.ended(|(_, of, _)| *of == call)
    }

    /// The channel is no more: those that waited, in order.
    pub fn end(&mut self) -> VecDeque<CallId> {
        self.large.clear();
        self.held.drain(..).map(|(call, _)| call).collect()
    }

    fn ended(&mut self, which: impl Fn(&(u64, CallId, Box<[u8]>)) -> bool) -> VecDeque<CallId> {
        let Some(at) = self.large.iter().position(which) else {
            return VecDeque::new();
        };
        let (_, _, key) = self.large.swap_remove(at);
        let (free, held): (VecDeque<_>, _) =
            self.held.drain(..).partition(|(_, held)| *held == key);
        self.held = held;
        free.into_iter().map(|(call, _)| call).collect()
    }
}
