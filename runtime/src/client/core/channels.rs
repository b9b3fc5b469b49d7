//! The channel to a process: found, opened, lost and left, and tried again.
//!
//! ```text
//!   idle --> resolving --> connecting --> open
//!    ^ pause    | failed      | failed     | closed: at once if anything was heard, else a pause
//!    '----------+-------------+------------+ left: a pause
//! ```

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use praas_transport::wire::Incarnation;

use super::{Bond, CallId, ClientCore, Doing, Link, Peer, RETRY_FIRST, STARVED_MAX, Target};
use crate::directory::Resolved;
use crate::invocation::InvokeError;

impl<C: Copy + Eq + Hash + Debug> ClientCore<C> {
    /// The directory's answer.
    pub fn on_resolved<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        answer: Result<Resolved, String>,
    ) {
        let Some(peer) = self.peers.get_mut(target.0 as usize) else {
            return;
        };
        if peer.link != Bond::Resolving {
            return;
        }
        peer.link = Bond::Idle;
        match answer {
            Ok(resolved) => match link.connect(&resolved) {
                Ok(channel) => {
                    peer.link = Bond::Connecting(channel);
                    self.by_channel.insert(channel, target);
                }
                Err(reason) => self.retry_later(link.now(), target, &reason),
            },
            Err(reason) => self.unavailable(target, &reason),
        }
    }

    /// A channel that [`Link::connect`] began is open.
    pub fn on_open<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        incarnation: Incarnation,
    ) {
        let Some(target) = self.by_channel.get(&channel).copied() else {
            return;
        };
        let peer = &mut self.peers[target.0 as usize];
        peer.link = Bond::Open(channel);
        peer.incarnation = incarnation;
        peer.numbers.clear();
        peer.pass_due = !peer.passed.is_empty();
        peer.opened = Some(link.now());
        peer.heard = false;
        self.unsent_send(link, target);
    }

    /// A channel has ended; `graceful` if the process ended it in good order.
    pub fn on_close<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        graceful: bool,
        reason: &str,
    ) {
        let Some(target) = self.by_channel.remove(&channel) else {
            return;
        };
        let peer = &mut self.peers[target.0 as usize];
        let was_open = matches!(peer.link, Bond::Open(_));
        // All that waits is among the calls that were not sent.
        let _ = peer.channel_end();
        peer.hungry.clear();
        if !was_open {
            self.retry_later(link.now(), target, reason);
            return;
        }
        let incarnation = peer.incarnation;
        let mut again = Vec::new();
        let mut lost = Vec::new();
        for index in peer.under_way() {
            let call = &mut self.calls[index as usize];
            let id = CallId {
                index,
                stamp: call.stamp,
            };
            call.large = false;
            if !call.sent {
                again.push((call.sequence, id));
                continue;
            }
            if let Doing::Read { .. } = call.doing {
                call.sent = false;
                again.push((call.sequence, id));
                continue;
            }
            let put = matches!(call.doing, Doing::Put { .. });
            let twice = call.doubt.is_some_and(|doubt| doubt != incarnation);
            let repeat = call.options.idempotent || put && graceful || graceful && !twice;
            if !repeat {
                lost.push(id);
                continue;
            }
            call.sent = false;
            call.doubt.get_or_insert(incarnation);
            again.push((call.sequence, id));
        }
        // Invocations and puts are ordered each; between the two no order is promised.
        again.sort_unstable();
        self.peers[target.0 as usize].unsent = again.into_iter().map(|(_, id)| id).collect();
        for id in lost {
            self.complete(id, Err(InvokeError::OutcomeUnknown));
        }
        let peer = &mut self.peers[target.0 as usize];
        if peer.unsent.is_empty() {
            return;
        }
        if peer.heard {
            return self.resolve(link, target);
        }
        // Who ends each channel without a word, for whatever reason, is not asked for ever, nor
        // faster and faster. One that took so long about it was there.
        let now = link.now();
        let lasted = peer.opened.map(|at| now.saturating_duration_since(at));
        if lasted.is_some_and(|lasted| lasted >= self.limits.reconnect_for) {
            peer.failing_since = None;
        }
        self.retry_later(now, target, reason);
    }

    /// A channel was refused, for a reason that does not pass: what waits for it ends now.
    pub fn on_refused(&mut self, channel: C, reason: &str) {
        let Some(target) = self.by_channel.remove(&channel) else {
            return;
        };
        self.peers[target.0 as usize].link = Bond::Idle;
        self.unavailable(target, reason);
    }

    /// There is room on a channel again.
    pub fn on_writable<L: Link<Channel = C>>(&mut self, link: &mut L, channel: C) {
        if let Some(target) = self.by_channel.get(&channel).copied() {
            self.unsent_send(link, target);
        }
    }

    /// Closes every channel in good order.
    pub fn close_all<L: Link<Channel = C>>(&mut self, link: &mut L) {
        for peer in &mut self.peers {
            if let Bond::Open(channel) = peer.link {
                peer.link = Bond::Idle;
                self.by_channel.remove(&channel);
                link.close(channel);
            }
        }
    }

    pub(super) fn resolve<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        let peer = &mut self.peers[target.0 as usize];
        if peer.link == Bond::Idle && !peer.unsent.is_empty() {
            peer.link = Bond::Resolving;
            peer.retry = None;
            link.resolve(target, &peer.name);
        }
    }

    fn retry_later(&mut self, now: Instant, target: Target, reason: &str) {
        let peer = &mut self.peers[target.0 as usize];
        let since = *peer.failing_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.limits.reconnect_for {
            self.unavailable(target, reason);
            return;
        }
        peer.pause(now);
    }

    /// A process has said something over its present channel.
    #[inline]
    pub(super) fn heard(&mut self, target: Target) {
        let peer = &mut self.peers[target.0 as usize];
        if !peer.heard {
            peer.heard = true;
            peer.backoff = RETRY_FIRST;
            peer.failing_since = None;
        }
    }

    /// Ends everything that waits for a process that is not to be had.
    fn unavailable(&mut self, target: Target, reason: &str) {
        let peer = &mut self.peers[target.0 as usize];
        peer.retry = None;
        peer.backoff = RETRY_FIRST;
        peer.failing_since = None;
        let process = peer.name.to_string();
        for id in std::mem::take(&mut peer.unsent) {
            let Some(call) = self.call(id) else { continue };
            let function = call.doing.function();
            let error = match call.doubt {
                Some(_) => InvokeError::OutcomeUnknown,
                None => InvokeError::Unavailable {
                    process: process.clone(),
                    reason: reason.to_string(),
                },
            };
            if let Some(function) = function {
                self.peers[target.0 as usize].functions.untold(function);
            }
            self.complete(id, Err(error));
        }
    }

    /// A call has ended: it may be the last that a process going away was still to answer. Should
    /// that process stay after all, what it has turned away must not wait for its end.
    #[inline]
    pub(super) fn leave_if_due<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        let peer = &self.peers[target.0 as usize];
        if peer.starved && self.fed(peer) {
            let peer = &mut self.peers[target.0 as usize];
            (peer.starved, peer.dry, peer.retry) = (false, false, None);
            peer.hungry_first();
            self.unsent_send(link, target);
        } else if peer.leaving || peer.starved {
            self.leave(link, target);
        }
    }

    /// Whether a call that a channel had no number for can go on, or has ended.
    #[cold]
    fn fed(&self, peer: &Peer<C>) -> bool {
        let first = match peer.dry {
            true => peer.unsent.front(),
            false => peer.hungry.front(),
        };
        first.is_none_or(|id| self.call(*id).is_none()) || peer.numbers.vacant().is_some()
    }

    /// The channel has no number for a call.
    #[cold]
    pub(super) fn starve<L: Link<Channel = C>>(&mut self, link: &mut L, id: CallId) {
        let target = self.calls[id.index as usize].target;
        let peer = &mut self.peers[target.0 as usize];
        peer.hungry.push_back(id);
        if !std::mem::replace(&mut peer.starved, true) {
            peer.retry = Some(link.now() + STARVED_MAX);
        }
        self.leave_if_due(link, target);
    }

    /// Calls have gone past those without a number for long enough: the channel is to be left.
    pub(super) fn run_dry<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        let peer = &mut self.peers[target.0 as usize];
        if peer.starved && !std::mem::replace(&mut peer.dry, true) {
            peer.hungry_first();
            self.leave_if_due(link, target);
        }
    }

    /// Leaves a process that is going away, once nothing of ours runs there any more.
    pub(super) fn leave<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        let peer = &mut self.peers[target.0 as usize];
        let Bond::Open(channel) = peer.link else {
            return;
        };
        let calls = &self.calls;
        if peer.under_way().any(|index| calls[index as usize].sent) {
            return;
        }
        let held = peer.channel_end();
        peer.pause(link.now());
        peer.hungry_first();
        let mut unsent: Vec<CallId> = peer.unsent.drain(..).chain(held).collect();
        unsent.sort_unstable_by_key(|id| calls.get(id.index as usize).map(|call| call.sequence));
        peer.unsent = unsent.into();
        self.by_channel.remove(&channel);
        link.close(channel);
    }
}
