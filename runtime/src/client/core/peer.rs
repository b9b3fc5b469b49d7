//! What the core knows of one process: which of its calls have no result, and in what order the
//! others go out.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Bond, CallId, Peer, RETRY_MAX};
use crate::client::order::PutOrder;
use crate::invocation::PASSED_MAX;

impl<C> Peer<C> {
    /// Whether another invocation may begin.
    #[inline]
    pub(super) fn room(&self, inflight_max: usize) -> bool {
        self.window.len() < inflight_max || self.outstanding <= PASSED_MAX.min(inflight_max / 2)
    }

    /// Puts that need not wait any more go before all that was begun after them; whether there are
    /// any. What they waited for is seen to only then: should the process turn it away, and be left,
    /// all that is unsent is put in order.
    pub(super) fn held_free(
        &mut self,
        free: impl FnOnce(&mut PutOrder) -> VecDeque<CallId>,
    ) -> bool {
        let free = free(&mut self.order);
        let any = !free.is_empty();
        for id in free.into_iter().rev() {
            self.unsent.push_front(id);
        }
        any
    }

    /// The hungry are to be the first to go.
    pub(super) fn hungry_first(&mut self) {
        for id in std::mem::take(&mut self.hungry).into_iter().rev() {
            self.unsent.push_front(id);
        }
    }

    /// Its channel is no more, and with it all that was so on this channel only. Puts that waited
    /// come back in order.
    pub(super) fn channel_end(&mut self) -> VecDeque<CallId> {
        self.link = Bond::Idle;
        (self.leaving, self.starved, self.dry) = (false, false, false);
        self.retry = None;
        self.given_up.clear();
        self.order.end()
    }

    /// It is tried again after a pause, longer each time.
    pub(super) fn pause(&mut self, now: Instant) {
        self.retry = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(RETRY_MAX);
    }

    /// Begins a new window: what of the old one has no result takes long.
    pub(super) fn pass(&mut self) {
        let window = std::mem::take(&mut self.window);
        for (sequence, slot) in (self.base..).zip(&window) {
            if let Some(index) = slot {
                self.passed.insert(sequence, *index);
            }
        }
        self.base += window.len() as u64;
        self.pass_due = true;
    }

    /// The call behind an invocation that has no result yet.
    #[inline]
    pub(super) fn waiting(&self, sequence: u64) -> Option<u32> {
        match sequence.checked_sub(self.base) {
            Some(at) => self
                .window
                .get(usize::try_from(at).ok()?)
                .copied()
                .flatten(),
            None => self.passed.get(&sequence).copied(),
        }
    }

    /// The calls of all invocations, puts and reads that are under way.
    pub(super) fn under_way(&self) -> impl Iterator<Item = u32> {
        let invocations = self.passed.values().chain(self.window.iter().flatten());
        let puts = self.puts.iter().flatten();
        invocations.chain(puts).chain(&self.reads).copied()
    }

    /// An invocation has its result.
    #[inline]
    pub(super) fn done(&mut self, sequence: u64) {
        self.outstanding -= 1;
        match sequence.checked_sub(self.base) {
            None => drop(self.passed.remove(&sequence)),
            Some(at) => {
                if let Some(slot) = self.window.get_mut(at as usize) {
                    *slot = None;
                }
                while let Some(None) = self.window.front() {
                    self.window.pop_front();
                    self.base += 1;
                }
            }
        }
    }

    /// A put has its answer.
    pub(super) fn put_done(&mut self, sequence: u64) {
        if let Some(slot) = self.puts.get_mut((sequence - self.puts_base) as usize) {
            *slot = None;
        }
        while let Some(None) = self.puts.front() {
            self.puts.pop_front();
            self.puts_base += 1;
        }
    }
}
