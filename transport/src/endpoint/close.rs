//! How channels end: closed by either side, faulty, timed out; and what lingers after.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Interest, Token};

use super::stream::Stream;
use super::types::{ChannelId, CloseReason};
use super::{Event, LINGER, Listening, Ops, State, TOKEN_CHANNEL};
use crate::backend::{AnyWire, Wire, WireFault};
use crate::clock;
use crate::wire::{FrameHeader, FrameKind};

/// How long a closing channel may take to get rid of what was posted.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

impl Ops {
    /// Closes in good order: what was posted still goes, then the peer sees the end. There is no
    /// [`crate::Handler::on_close`] for it here; what was in flight from the peer is dropped.
    pub fn close(&mut self, channel: ChannelId) {
        if self.channel(channel).is_some() {
            if let Some(channel) = self.channel(channel) {
                channel.closing.get_or_insert(clock::now() + CLOSE_DEADLINE);
            }
            self.sessions.retain(|_, of| *of != channel);
            self.timed.push(channel.slot);
            self.activate(channel.slot);
            self.close_step(channel);
        } else if let Some(slot) = self.slots.get(channel.slot as usize)
            && slot.generation == channel.generation
        {
            self.slot_free(channel.slot);
        }
    }

    /// Cuts all channels, and what is to become one, as a broken wire does: for simulations.
    #[doc(hidden)]
    pub fn sever(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            match &self.slots[slot as usize].state {
                State::Open(_) => self.channel_fault(slot, WireFault::Dead),
                State::Boot(_) => self.boot_fail(slot, CloseReason::PeerDied),
                State::Free | State::Link(_) | State::Linger(..) => {}
            }
        }
    }

    /// Ends as a killed process does, without a word to anybody: for simulations. The endpoint is
    /// of no use any more.
    #[doc(hidden)]
    pub fn die(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            if !matches!(self.slots[slot as usize].state, State::Free) {
                self.slot_free(slot);
            }
        }
        self.pending.clear();
        for listener in self.listeners.drain(..) {
            if let Listening::Mem(listener) = listener {
                listener.close();
            }
        }
    }

    pub(super) fn control_frame(&mut self, id: ChannelId, kind: FrameKind, header: &FrameHeader) {
        let Some(channel) = self.channel(id) else {
            return;
        };
        match channel.control_frame(kind, header) {
            Ok(Some(done)) => self.pending.push_back(Event::Sent(id, done, true)),
            Ok(None) if channel.peer_closed => {
                self.channel_end(id.slot, Some(CloseReason::Closed));
            }
            Ok(None) => {}
            Err(error) => self.channel_fault(id.slot, error.into()),
        }
    }

    pub(super) fn channel_fault(&mut self, slot: u32, fault: WireFault) {
        let reason = match fault {
            WireFault::Dead => CloseReason::PeerDied,
            WireFault::Protocol(error) => {
                tracing::warn!(%error, "closing a channel: protocol violation");
                CloseReason::Protocol(error)
            }
            WireFault::Io(error) => CloseReason::Io(Arc::new(error)),
            WireFault::Rdma(error) => CloseReason::Rdma(error),
        };
        self.channel_end(slot, Some(reason));
    }

    /// Ends a channel: what is in flight completes with an error, then the end is told.
    pub(super) fn channel_end(&mut self, slot: u32, reason: Option<CloseReason>) {
        let id = ChannelId {
            slot,
            generation: self.slots[slot as usize].generation,
        };
        let State::Open(channel) = &mut self.slots[slot as usize].state else {
            return;
        };
        let closing = channel.closing.is_some();
        for done in channel.out_drain() {
            self.pending.push_back(Event::Sent(id, done, false));
        }
        self.ops_drain(id);
        self.sessions.retain(|_, of| *of != id);
        let state = self.slot_free(slot);
        if let (State::Open(mut channel), Some(CloseReason::Closed)) = (state, &reason) {
            channel.wire.shutdown();
        }
        if let Some(reason) = reason
            && !closing
        {
            self.pending.push_back(Event::Closed(id, reason));
        }
    }

    /// Takes a closing channel as far as it goes.
    pub(super) fn close_step(&mut self, id: ChannelId) {
        let Some(channel) = self.channel(id) else {
            return;
        };
        if channel.closing.is_none() {
            return;
        }
        match channel.close_advance() {
            Ok(false) => {}
            Err(_) => self.channel_end(id.slot, None),
            Ok(true) => {
                let State::Open(channel) = self.slot_free(id.slot) else {
                    return;
                };
                let watched = channel.watched;
                let mut wire = channel.wire;
                wire.shutdown();
                if let AnyWire::Fault(fault) = wire {
                    wire = fault.into_inner();
                }
                match wire {
                    AnyWire::Tcp(wire) => self.linger(Stream::Tcp(wire.into_stream()), watched),
                    AnyWire::Unix(wire) => self.linger(Stream::Unix(wire.into_stream()), watched),
                    _ => {}
                }
            }
        }
    }

    /// Keeps a socket until the peer hangs up, so that unread bytes do not reset it, and what the
    /// peer still sends does not fail before it has read our last word.
    fn linger(&mut self, mut stream: Stream, watched: bool) {
        let until = clock::now() + LINGER;
        let Ok(slot) = self.slot_take(State::Free) else {
            return;
        };
        let token = Token((slot as usize) << 2 | TOKEN_CHANNEL);
        let registry = self.poll.registry();
        let registered = match watched {
            true => registry.reregister(&mut stream, token, Interest::READABLE),
            false => registry.register(&mut stream, token, Interest::READABLE),
        };
        if registered.is_err() {
            self.slot_free(slot);
            return;
        }
        self.slots[slot as usize].state = State::Linger(stream, until);
        self.timed.push(slot);
        self.linger_step(slot, clock::now());
    }

    pub(super) fn linger_step(&mut self, slot: u32, now: Instant) {
        let State::Linger(stream, until) = &mut self.slots[slot as usize].state else {
            return;
        };
        let mut bytes = [0; 4096];
        let mut descriptors = Vec::new();
        let over = now >= *until
            || loop {
                match stream.read(&mut bytes, &mut descriptors) {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                    Err(_) => break true,
                }
            };
        if over {
            self.slot_free(slot);
        }
    }

    pub(super) fn timed_next(&self) -> Option<Instant> {
        let deadline = |slot: &u32| match &self.slots[*slot as usize].state {
            State::Boot(boot) => Some(boot.deadline),
            State::Link(linking) => Some(linking.timer()),
            State::Linger(_, until) => Some(*until),
            State::Open(channel) => [channel.closing, channel.lane_retry]
                .into_iter()
                .flatten()
                .min(),
            State::Free => None,
        };
        if !self.accepting.is_empty() {
            return Some(clock::now());
        }
        self.timed.iter().filter_map(deadline).min()
    }

    /// Handshakes, lingering and closing channels: goes on with them, ends those out of time.
    pub(super) fn timed_step(&mut self) {
        for at in self.accepting.clone() {
            self.accept_all(at);
        }
        if self.timed.is_empty() {
            return;
        }
        let now = clock::now();
        for slot in self.timed.clone() {
            let id = ChannelId {
                slot,
                generation: self.slots[slot as usize].generation,
            };
            match &self.slots[slot as usize].state {
                State::Boot(boot) if now >= boot.deadline => {
                    self.boot_fail(slot, CloseReason::Timeout);
                }
                // Sockets tell when there is something; in-process peers have none.
                State::Boot(boot) if matches!(boot.stream, Stream::Mem(_)) => {
                    self.boot_step(slot);
                }
                State::Linger(stream, until)
                    if now >= *until || matches!(stream, Stream::Mem(_)) =>
                {
                    self.linger_step(slot, now);
                }
                State::Link(linking) if now >= linking.timer() => self.link_step(slot),
                State::Boot(_) | State::Link(_) | State::Linger(..) => {}
                State::Open(channel) => {
                    let (closing, retry) = (channel.closing, channel.lane_retry);
                    if retry.is_some_and(|retry| now >= retry) {
                        self.lane_open(slot);
                    }
                    match closing {
                        Some(deadline) if now >= deadline => self.channel_end(slot, None),
                        Some(_) => self.close_step(id),
                        None => {}
                    }
                }
                State::Free => {}
            }
        }
        let slots = &self.slots;
        self.timed
            .retain(|slot| match &slots[*slot as usize].state {
                State::Boot(_) | State::Link(_) | State::Linger(..) => true,
                State::Open(channel) => channel.closing.is_some() || channel.lane_retry.is_some(),
                State::Free => false,
            });
        self.timed.sort_unstable();
        self.timed.dedup();
    }
}
