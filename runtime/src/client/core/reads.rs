//! Reads of state objects, as the core sees them: a call that asks where an object is, as often as
//! it takes, and that ends when whoever can reach it there says so.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::{Bond, Call, CallId, CallOptions, ClientCore, Doing, Link, Refusal, Target};
use crate::invocation::{InvokeError, Payload, Status};
use crate::state::KEY_MAX_BYTES;

const READS_INFLIGHT_MAX: usize = 1024;
/// Before an object is asked for again that is still in storage: so long at first, and then twice
/// as long each time, so often.
const READ_PAUSE_MIN: Duration = Duration::from_millis(1);
const READ_PAUSES_MAX: u8 = 6;

impl<C: Copy + Eq + Hash + Debug> ClientCore<C> {
    /// Submits a read of a process's state object. With `known`, whoever submits knows where the
    /// object is on the open channel, and nothing is asked before [`ClientCore::read_again`].
    ///
    /// # Errors
    /// Too many under way, or a key that cannot be.
    pub fn read<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        key: &str,
        known: bool,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        if key.is_empty() || key.len() > KEY_MAX_BYTES {
            let text = format!("a state key has 1 to 255 bytes, not {}", key.len());
            return Err(Refusal::Never(InvokeError::Malformed(text)));
        }
        if !self.room_read(target) {
            return Err(Refusal::Full);
        }
        let id = self.call_add(Call {
            stamp: 0,
            owner,
            target,
            doing: Doing::Read {
                key: key.into(),
                misses: 0,
                pauses: 0,
            },
            sequence: 0,
            payload: Payload::default(),
            options,
            sent: known,
            large: false,
            doubt: None,
        });
        self.peers[target.0 as usize].reads.push(id.index);
        if !known {
            self.call_start(link, id);
        }
        Ok(id)
    }

    /// Whether another read of a target may begin.
    pub fn room_read(&self, target: Target) -> bool {
        self.peers[target.0 as usize].reads.len() < READS_INFLIGHT_MAX
    }

    /// Asks where an object is, since it is not where it was.
    pub fn read_again<L: Link<Channel = C>>(&mut self, link: &mut L, id: CallId) {
        if self.call(id).is_none() {
            return;
        }
        let call = &mut self.calls[id.index as usize];
        call.sent = false;
        if let Doing::Read { misses, .. } = &mut call.doing {
            *misses = misses.saturating_add(1);
        }
        self.call_start(link, id);
    }

    /// The process has the object soon: asks again after a pause, longer each time, and on the same
    /// channel; one that is closed meanwhile starts it anew.
    pub fn read_later(&mut self, now: Instant, id: CallId, channel: C) {
        let Some(target) = self.call(id).map(|call| call.target) else {
            return;
        };
        self.heard(target);
        if let Doing::Read { pauses, .. } = &mut self.calls[id.index as usize].doing {
            let pause = READ_PAUSE_MIN * (1 << *pauses);
            *pauses = (*pauses + 1).min(READ_PAUSES_MAX);
            self.later.push((now + pause, id, channel));
        }
    }

    /// Asks again for what is due.
    pub(super) fn reads_ask<L: Link<Channel = C>>(&mut self, link: &mut L, now: Instant) {
        let mut at = 0;
        while let Some((due, id, channel)) = self.later.get(at).copied() {
            if due > now {
                at += 1;
                continue;
            }
            self.later.swap_remove(at);
            let Some(call) = self.call(id) else { continue };
            let open = self.peers[call.target.0 as usize].link == Bond::Open(channel);
            if open && call.sent {
                self.calls[id.index as usize].sent = false;
                self.call_start(link, id);
            }
        }
    }

    /// The read that a message is about, with its target and key, if it is still waited for.
    pub fn read_of(&self, channel: C, tag: u64) -> Option<(CallId, Target, &str)> {
        let id = CallId::from_u64(tag);
        let call = self.call(id)?;
        let Doing::Read { key, .. } = &call.doing else {
            return None;
        };
        let target = self.by_channel.get(&channel)?;
        (*target == call.target).then_some((id, call.target, key))
    }

    /// A read is done: the object, and its version; zero if there is none.
    pub fn read_done(&mut self, id: CallId, outcome: Result<(Payload, u64), InvokeError>) {
        if let Some(target) = self.call(id).map(|call| call.target) {
            self.heard(target);
            let (outcome, version) = match outcome {
                Ok((object, version)) => (Ok(object), version),
                Err(error) => (Err(error), 0),
            };
            self.complete(id, outcome);
            if let Some(completed) = self.completed.back_mut() {
                completed.version = version;
            }
        }
    }

    /// The process said why it does not show an object.
    pub fn read_refused<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        id: CallId,
        status: Status,
        text: Payload,
    ) {
        if let Some(target) = self.call(id).map(|call| call.target) {
            self.heard(target);
            self.answered(link, id.index, status, text);
        }
    }
}
