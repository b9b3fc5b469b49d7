//! What processes say to calls.

use std::fmt::Debug;
use std::hash::Hash;

use super::given_up::GivenUp;
use super::{Bond, CallId, ClientCore, Doing, FunctionId, Link, Target};
use crate::invocation::{InvokeError, Payload, Status};

impl<C: Copy + Eq + Hash + Debug> ClientCore<C> {
    /// A reply to an invocation came.
    #[inline]
    pub fn on_reply<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        sequence: u64,
        status: Status,
        payload: Payload,
    ) {
        let Some(target) = self.target_of(channel) else {
            return;
        };
        self.heard(target);
        let Some(index) = self.peers[target.0 as usize].waiting(sequence) else {
            return self
                .nobody_answered(link, target, status, |given_up| given_up.answered(sequence));
        };
        if status == Status::Quiescing {
            // It would have known had it run, there or where it was sent before.
            self.calls[index as usize].doubt = None;
        }
        self.answered(link, index, status, payload);
    }

    /// Whether the result of an invocation is still waited for.
    pub fn wants(&self, channel: C, sequence: u64) -> bool {
        let Some(peer) = self
            .by_channel
            .get(&channel)
            .map(|target| &self.peers[target.0 as usize])
        else {
            return false;
        };
        peer.waiting(sequence).is_some()
    }

    /// A put was answered.
    pub fn on_put_answer<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        sequence: u64,
        status: Status,
    ) {
        let Some(target) = self.by_channel.get(&channel).copied() else {
            return;
        };
        self.heard(target);
        let peer = &mut self.peers[target.0 as usize];
        let freed = peer.held_free(|order| order.answered(sequence));
        let slot = sequence
            .checked_sub(peer.puts_base)
            .and_then(|at| peer.puts.get(at as usize));
        if let Some(Some(index)) = slot.copied() {
            self.answered(link, index, status, Payload::default());
        }
        if freed {
            self.unsent_send(link, target);
        }
    }

    /// The receiver refused a large message; the reason is a [`Status`].
    pub fn on_send_refused<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        context: u64,
        reason: u32,
    ) {
        let Some(target) = self.target_of(channel) else {
            return;
        };
        self.heard(target);
        let id = CallId::from_u64(context);
        let freed = self.peers[target.0 as usize].held_free(|order| order.refused(id));
        if self.call(id).is_some() {
            let status = u16::try_from(reason).ok().and_then(Status::from_code);
            let status = status.unwrap_or(Status::TooLarge);
            self.answered(link, id.index, status, Payload::default());
        } else {
            let refused = Status::Quiescing;
            self.nobody_answered(link, target, refused, |given_up| given_up.refused(id));
        }
        if freed {
            self.unsent_send(link, target);
        }
    }

    /// Whose channel it is; most often of whoever was heard last.
    #[inline]
    fn target_of(&mut self, channel: C) -> Option<Target> {
        let last = self.peers.get(self.heard_last.0 as usize);
        if !last.is_some_and(|peer| matches!(peer.link, Bond::Open(open) if open == channel)) {
            self.heard_last = *self.by_channel.get(&channel)?;
        }
        Some(self.heard_last)
    }

    #[inline]
    pub(super) fn answered<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        index: u32,
        status: Status,
        payload: Payload,
    ) {
        let call = &mut self.calls[index as usize];
        let id = CallId {
            index,
            stamp: call.stamp,
        };
        let text = |payload: &Payload| String::from_utf8_lossy(payload).into_owned();
        let target = call.target;
        let peer = &mut self.peers[target.0 as usize];
        if call.large {
            call.large = false;
            if let Some(function) = call.doing.function() {
                peer.numbers.answered(function);
            }
        }
        let error = match status {
            Status::Ok => {
                self.complete(id, Ok(payload));
                return self.leave_if_due(link, target);
            }
            Status::Quiescing => {
                // Not run, and not going to be: it goes to wherever the process is next.
                call.sent = false;
                peer.leaving = true;
                peer.unsent.push_back(id);
                return self.leave(link, target);
            }
            Status::FunctionError => InvokeError::Function(text(&payload)),
            Status::UnknownFunction => {
                let name = match &call.doing {
                    Doing::Invoke { function } | Doing::OneWay { function, .. } => {
                        peer.functions.unknown(*function);
                        peer.functions.name(*function).to_string()
                    }
                    Doing::Put { .. } | Doing::Read { .. } => String::new(),
                };
                InvokeError::UnknownFunction(name)
            }
            Status::Panicked => InvokeError::Panicked(text(&payload)),
            Status::DeadlineExceeded => InvokeError::DeadlineExceeded,
            Status::Cancelled => InvokeError::Cancelled,
            Status::Exhausted => InvokeError::Exhausted(match payload.is_empty() {
                true => format!("process '{}' has no room for it", peer.name),
                false => text(&payload),
            }),
            Status::ResultExpired => InvokeError::ResultExpired,
            Status::OutcomeUnknown => InvokeError::OutcomeUnknown,
            Status::TooLarge => InvokeError::TooLarge(match payload.is_empty() {
                true => format!("process '{}' takes no message of this size", peer.name),
                false => text(&payload),
            }),
            Status::Malformed => InvokeError::Malformed(text(&payload)),
            Status::MailboxFull => InvokeError::MailboxFull(peer.name.to_string()),
            Status::Forbidden => InvokeError::Forbidden(text(&payload)),
        };
        self.complete(id, Err(error));
        self.leave_if_due(link, target);
    }

    /// An answer came that nobody waits for. What it says of the function's name holds all the
    /// same.
    #[cold]
    fn nobody_answered<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        status: Status,
        which: impl FnOnce(&mut GivenUp) -> Option<(FunctionId, Option<u32>)>,
    ) {
        let peer = &mut self.peers[target.0 as usize];
        let Some((function, number)) = which(&mut peer.given_up) else {
            return;
        };
        if status == Status::UnknownFunction && peer.functions.is(function) {
            peer.functions.unknown(function.at);
        }
        if let Some(number) = number {
            peer.numbers.let_go(number);
            self.leave_if_due(link, target);
        }
    }
}
