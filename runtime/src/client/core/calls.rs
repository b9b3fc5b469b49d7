//! A call from its submission to its end, but for what its process says.
//!
//! ```text
//!   submitted --> unsent --> sent --> complete
//!                    ^ hungry: the channel has no number for its function
//!                    ^ held: puts behind a large one under the same key
//! ```

use std::fmt::Debug;
use std::hash::Hash;

use super::{
    Bond, Call, CallId, CallOptions, ClientCore, Completed, Doing, FunctionId, Link, Peer, Refusal,
    Sent, Target,
};
use crate::invocation::{
    AM_INVOCATION, AM_MAILBOX, InvokeError, Kind, Payload, PutBody, RequestHeader, passed_encode,
    short_header,
};
use crate::locate::{AM_STATE, LOCATE_BYTES, LocateHeader, LocateKind};
use crate::mailbox::PUTS_INFLIGHT_MAX;

impl<C: Copy + Eq + Hash + Debug> ClientCore<C> {
    /// Submits an invocation. `owner` comes back with the result.
    ///
    /// # Errors
    /// Too many under way.
    #[inline]
    pub fn invoke<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        function: FunctionId,
        payload: Payload,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        self.function_begin(target, function)?;
        let function = function.at;
        let doing = Doing::Invoke { function };
        self.invocation_add(link, target, doing, payload, options, owner)
    }

    /// Submits a one-way invocation: it ends when its function has begun, and its deadline is for
    /// that. It is counted in [`ClientCore::one_way`]; it completes as others do only if it is to
    /// be `told`.
    ///
    /// # Errors
    /// Too many under way.
    #[allow(clippy::too_many_arguments)] // Those of an invocation, and one.
    pub fn invoke_one_way<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        function: FunctionId,
        payload: Payload,
        options: CallOptions,
        owner: u64,
        told: bool,
    ) -> Result<CallId, Refusal> {
        self.function_begin(target, function)?;
        let function = function.at;
        let doing = Doing::OneWay { function, told };
        let call = self.invocation_add(link, target, doing, payload, options, owner)?;
        self.one_way.pending += 1;
        Ok(call)
    }

    /// Submits a put of a message.
    ///
    /// # Errors
    /// Too many under way.
    pub fn put<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        body: PutBody,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        let peer = &mut self.peers[target.0 as usize];
        if peer.puts.len() >= PUTS_INFLIGHT_MAX {
            return Err(Refusal::Full);
        }
        let sequence = peer.puts_base + peer.puts.len() as u64;
        let (key_len, payload) = body.into_parts();
        let id = self.call_add(Call {
            stamp: 0,
            owner,
            target,
            doing: Doing::Put { key_len },
            sequence,
            payload,
            options,
            sent: false,
            large: false,
            doubt: None,
        });
        self.peers[target.0 as usize].puts.push_back(Some(id.index));
        self.call_start(link, id);
        Ok(id)
    }

    /// Gives up on a call: its process is told, and the caller hears [`InvokeError::Cancelled`].
    pub fn cancel<L: Link<Channel = C>>(&mut self, link: &mut L, id: CallId) {
        self.give_up(link, id, InvokeError::Cancelled);
    }

    #[inline]
    fn function_begin(&mut self, target: Target, function: FunctionId) -> Result<(), Refusal> {
        let peer = &mut self.peers[target.0 as usize];
        match peer.functions.begin(function) {
            true => Ok(()),
            false => Err(function_forgotten(&peer.name)),
        }
    }

    #[inline]
    fn invocation_add<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        doing: Doing,
        payload: Payload,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        let peer = &mut self.peers[target.0 as usize];
        if !peer.room(self.limits.inflight_max) {
            return Err(Refusal::Full);
        }
        if peer.window.len() >= self.limits.inflight_max {
            peer.pass();
        }
        peer.outstanding += 1;
        let sequence = peer.base + peer.window.len() as u64;
        let id = self.call_add(Call {
            stamp: 0,
            owner,
            target,
            doing,
            sequence,
            payload,
            options,
            sent: false,
            large: false,
            doubt: self.repeats,
        });
        self.peers[target.0 as usize]
            .window
            .push_back(Some(id.index));
        self.call_start(link, id);
        Ok(id)
    }

    #[inline]
    pub(super) fn call_add(&mut self, mut call: Call) -> CallId {
        self.stamp = self.stamp.wrapping_add(1);
        call.stamp = self.stamp;
        let deadline = call.options.deadline;
        let index = self.calls.insert(call) as u32;
        let id = CallId {
            index,
            stamp: self.stamp,
        };
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, id));
        }
        id
    }

    /// Sends a call that is new, or sees to it that it can be sent.
    #[inline]
    pub(super) fn call_start<L: Link<Channel = C>>(&mut self, link: &mut L, id: CallId) {
        let target = self.calls[id.index as usize].target;
        let peer = &mut self.peers[target.0 as usize];
        match peer.link {
            Bond::Open(channel) if peer.unsent.is_empty() => {
                if !self.call_send(link, channel, id) {
                    self.peers[target.0 as usize].unsent.push_back(id);
                    self.leave_if_due(link, target);
                }
            }
            Bond::Idle if peer.retry.is_none() => {
                // Nothing has waited for it: what failed before says little.
                peer.failing_since = None;
                peer.unsent.push_back(id);
                self.resolve(link, target);
            }
            _ => peer.unsent.push_back(id),
        }
    }

    /// Sends a call on an open channel, or sees to it that it is sent in its turn; `false` if there
    /// is no room.
    #[inline]
    fn call_send<L: Link<Channel = C>>(&mut self, link: &mut L, channel: C, id: CallId) -> bool {
        let call = &mut self.calls[id.index as usize];
        let peer = &mut self.peers[call.target.0 as usize];
        let sent = match &call.doing {
            Doing::Invoke { function } | Doing::OneWay { function, .. } => {
                let function = *function;
                if peer.pass_due {
                    let header = short_header(Kind::Passed, 0, 0);
                    let passed = Payload::Buf(passed_encode(peer.passed.keys().copied()).into());
                    match link.send(channel, AM_INVOCATION, peer.base, &header, &passed, 0) {
                        Sent::Done | Sent::Pending => peer.pass_due = false,
                        Sent::Busy => return false,
                        Sent::Dead | Sent::TooLarge(_) => return true,
                    }
                }
                let number = match peer.numbers.number(function) {
                    Some(number) => number,
                    None => match function_tell(link, channel, peer, function) {
                        Told::Number(number) => number,
                        Told::Busy => return false,
                        Told::Dead => return true,
                        Told::None if peer.dry => return false,
                        Told::None => {
                            self.starve(link, id);
                            return true;
                        }
                    },
                };
                let deadline_us = call.options.deadline.map_or(0, |deadline| {
                    let left = deadline.saturating_duration_since(link.now()).as_micros();
                    // What does not fit is further away than the header can say: no deadline there.
                    u32::try_from(left).map_or(0, |left| left.max(1))
                });
                let acked_delta =
                    u32::try_from(call.sequence.saturating_sub(peer.base)).unwrap_or(u32::MAX);
                let header = RequestHeader {
                    function: number,
                    deadline_us,
                    acked_delta,
                    first: call.doubt,
                    one_way: matches!(call.doing, Doing::OneWay { .. }),
                };
                let (header, len) = header.encode();
                let (sequence, context) = (call.sequence, id.to_u64());
                link.send(
                    channel,
                    AM_INVOCATION,
                    sequence,
                    &header[..len],
                    &call.payload,
                    context,
                )
            }
            Doing::Put { key_len } => {
                let key = call.payload.get(..*key_len as usize).unwrap_or_default();
                if peer.order.waits(key) {
                    peer.order.hold(id, key);
                    return true;
                }
                let header = short_header(Kind::Put, 0, *key_len);
                link.send(
                    channel,
                    AM_MAILBOX,
                    call.sequence,
                    &header,
                    &call.payload,
                    id.to_u64(),
                )
            }
            Doing::Read { key, misses, .. } => {
                // An object that changes faster than it can be read comes with the answer, and so
                // does every one where each look at it would be a question, too.
                let whole = *misses > 1 || link.one_sided_is_asked(channel);
                let header = LocateHeader {
                    kind: LocateKind::Locate,
                    flags: if whole { LOCATE_BYTES } else { 0 },
                    status: 0,
                };
                let key = Payload::Inline(smallvec::SmallVec::from_slice(key.as_bytes()));
                let (header, context) = (header.encode(), id.to_u64());
                link.send(channel, AM_STATE, context, &header, &key, context)
            }
        };
        match sent {
            Sent::Done => call.sent = true,
            Sent::Pending => {
                call.sent = true;
                match call.doing {
                    Doing::Put { key_len } => {
                        let key = call.payload.get(..key_len as usize).unwrap_or_default();
                        peer.order.large_sent(call.sequence, id, key);
                    }
                    Doing::Invoke { function } | Doing::OneWay { function, .. } => {
                        peer.numbers.keep(function);
                        call.large = true;
                    }
                    Doing::Read { .. } => {}
                }
            }
            Sent::Busy => return false,
            // The end of the channel is told next, and the call seen to then.
            Sent::Dead => call.sent = true,
            Sent::TooLarge(text) => self.complete(id, Err(InvokeError::TooLarge(text))),
        }
        true
    }

    pub(super) fn unsent_send<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        while let Bond::Open(channel) = self.peers[target.0 as usize].link
            && let Some(id) = self.peers[target.0 as usize].unsent.pop_front()
        {
            if self.call(id).is_some() && !self.call_send(link, channel, id) {
                self.peers[target.0 as usize].unsent.push_front(id);
                return self.leave_if_due(link, target);
            }
        }
    }

    pub(super) fn give_up<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        id: CallId,
        error: InvokeError,
    ) {
        let index = id.index as usize;
        let Some(call) = self.calls.get(index).filter(|call| call.stamp == id.stamp) else {
            return;
        };
        let target = call.target;
        let peer = &mut self.peers[target.0 as usize];
        // A put is not stopped any more, and a read has no number of its own.
        match (call.doing.function(), call.sent, peer.link) {
            (Some(function), true, Bond::Open(channel)) => {
                // If there is no room, the function runs on for nobody; its result is dropped.
                let header = short_header(Kind::Cancel, 0, 0);
                let payload = Payload::default();
                let _ = link.send(channel, AM_INVOCATION, call.sequence, &header, &payload, 0);
                let number = call.large.then(|| peer.numbers.number(function)).flatten();
                let function = peer.functions.id(function);
                peer.given_up.add(call.sequence, id, function, number);
            }
            (Some(function), ..) => peer.functions.untold(function),
            (None, ..) => {}
        }
        self.complete(id, Err(error));
        self.leave_if_due(link, target);
    }

    #[inline]
    pub(super) fn complete(&mut self, id: CallId, outcome: Result<Payload, InvokeError>) {
        if self.call(id).is_none() {
            return;
        }
        let call = self.calls.remove(id.index as usize);
        if let Some(deadline) = call.options.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        let peer = &mut self.peers[call.target.0 as usize];
        match call.doing {
            Doing::Invoke { .. } => peer.done(call.sequence),
            Doing::Put { .. } => peer.put_done(call.sequence),
            Doing::OneWay { function, told } => {
                peer.done(call.sequence);
                let function = peer.functions.name(function);
                self.one_way.ended(&peer.name, function, &outcome);
                if !told {
                    return;
                }
            }
            Doing::Read { .. } => peer.reads.retain(|read| *read != id.index),
        }
        self.completed.push_back(Completed {
            call: id,
            owner: call.owner,
            outcome,
            version: 0,
        });
    }
}

/// What came of telling a channel a function's name.
enum Told {
    /// The number that stands for it.
    Number(u32),
    Busy,
    Dead,
    /// No number is to be had.
    None,
}

/// Why a function that was looked up cannot be called.
#[cold]
fn function_forgotten(process: &str) -> Refusal {
    let text = format!(
        "process '{process}' had no such function, and its name was forgotten for others \
         (functions_max): look it up again"
    );
    Refusal::Never(InvokeError::Exhausted(text))
}

/// Tells a channel the name of a function.
#[cold]
fn function_tell<L: Link>(
    link: &mut L,
    channel: L::Channel,
    peer: &mut Peer<L::Channel>,
    function: u32,
) -> Told {
    let Some(number) = peer.numbers.vacant() else {
        return Told::None;
    };
    let header = short_header(Kind::Intern, 0, 0);
    let name = peer.functions.name(function).as_bytes();
    let name = Payload::Inline(smallvec::SmallVec::from_slice(name));
    match link.send(channel, AM_INVOCATION, number.into(), &header, &name, 0) {
        Sent::Done | Sent::Pending => {
            peer.numbers.give(number, function);
            peer.functions.told(function);
            Told::Number(number)
        }
        Sent::Busy => Told::Busy,
        Sent::Dead | Sent::TooLarge(_) => Told::Dead,
    }
}
