//! Where channels live: slots with generations, and which of them are polled.

use std::io;

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::channel::Channel;
use super::types::{ChannelId, ChannelInfo, TransportError};
use super::{Ops, Slot, State, TOKEN_BULK, TOKEN_CHANNEL, TOKEN_HUB, TOKEN_LISTENER, TOKEN_WAKER};
use crate::address::TransportKind;
use crate::backend::{AnyWire, Wire, WireFault};
use crate::clock;

impl Ops {
    /// What is known of a channel; `None` once it is closed.
    #[inline]
    pub fn info(&self, channel: ChannelId) -> Option<&ChannelInfo> {
        match self.slots.get(channel.slot as usize) {
            Some(Slot {
                generation,
                state: State::Open(open),
            }) if *generation == channel.generation => Some(&open.info),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn channel(&mut self, id: ChannelId) -> Option<&mut Channel> {
        match self.slots.get_mut(id.slot as usize) {
            Some(Slot {
                generation,
                state: State::Open(channel),
            }) if *generation == id.generation => Some(channel),
            _ => None,
        }
    }

    pub(super) fn slot_take(&mut self, state: State) -> Result<u32, TransportError> {
        if self.open >= self.config.channels_max {
            return Err(TransportError::TooManyChannels(self.config.channels_max));
        }
        self.open += 1;
        Ok(self.slot_fill(state))
    }

    /// A slot for a peer that connects, which is no channel yet. If there are too many such peers,
    /// the oldest goes: one that has shown a good ticket only if all have.
    pub(super) fn slot_take_handshake(&mut self, state: State) -> u32 {
        if self.handshakes.len() >= self.config.handshakes_max {
            self.handshake_evict();
        }
        let slot = self.slot_fill(state);
        self.handshakes.push_back(slot);
        slot
    }

    /// Ends the oldest handshake of a peer that connected; false if there is none.
    pub(super) fn handshake_evict(&mut self) -> bool {
        let nameless = |slot: &&u32| match &self.slots[**slot as usize].state {
            State::Boot(boot) => !boot.names_ticket(),
            _ => true,
        };
        let oldest = self.handshakes.iter().find(nameless);
        let Some(&slot) = oldest.or(self.handshakes.front()) else {
            return false;
        };
        tracing::debug!("too many handshakes at once: the oldest is ended");
        self.slot_free(slot);
        true
    }

    /// A peer's handshake has come so far that it counts as a channel.
    pub(super) fn handshake_promote(&mut self, slot: u32) {
        if let Some(at) = self.handshakes.iter().position(|other| *other == slot) {
            self.handshakes.remove(at);
            self.open += 1;
        }
    }

    fn slot_fill(&mut self, state: State) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize].state = state;
            return slot;
        }
        self.slots.push(Slot {
            generation: 0,
            state,
        });
        self.slots.len() as u32 - 1
    }

    pub(super) fn slot_free(&mut self, slot: u32) -> State {
        self.active.retain(|active| *active != slot);
        self.fallbacks.remove(&slot);
        let place = &mut self.slots[slot as usize];
        place.generation = place.generation.wrapping_add(1);
        match self.handshakes.iter().position(|other| *other == slot) {
            Some(at) => {
                self.handshakes.remove(at);
            }
            None => self.open -= 1,
        }
        self.free.push(slot);
        std::mem::replace(&mut place.state, State::Free)
    }

    /// Has the kernel tell us what comes on a channel's socket for frames, or not. Registering says
    /// what is there already, so nothing is missed in between.
    pub(super) fn socket_watch(&mut self, slot: u32, watch: bool) {
        let State::Open(channel) = &mut self.slots[slot as usize].state else {
            return;
        };
        if channel.watched == watch {
            return;
        }
        let registry = self.poll.registry();
        let token = Token((slot as usize) << 2 | TOKEN_CHANNEL);
        let done = match channel.wire.base() {
            AnyWire::Tcp(wire) => source_watch(registry, wire.stream_mut(), token, watch),
            AnyWire::Unix(wire) => source_watch(registry, wire.stream_mut(), token, watch),
            _ => return,
        };
        match done {
            Ok(()) => channel.watched = watch,
            Err(error) => self.channel_fault(slot, WireFault::Io(error)),
        }
    }

    pub(super) fn slot_idle(&self, slot: u32) -> u32 {
        match &self.slots[slot as usize].state {
            State::Open(channel) => channel.idle,
            _ => 0,
        }
    }

    pub(super) fn activate(&mut self, slot: u32) {
        if let State::Open(channel) = &mut self.slots[slot as usize].state {
            channel.idle = 0;
            if !std::mem::replace(&mut channel.active, true) {
                self.active.push(slot);
            }
        }
    }

    /// An idle channel leaves the active ones, unless there is something after all.
    pub(super) fn channel_rest(&mut self, slot: u32) {
        let State::Open(channel) = &mut self.slots[slot as usize].state else {
            return;
        };
        channel.idle = 0;
        if !channel.watched {
            self.socket_watch(slot, true);
        }
        let State::Open(channel) = &mut self.slots[slot as usize].state else {
            return;
        };
        match channel.wire.arm(channel.want()) {
            // In-process peers have no descriptor to come back by.
            Ok(true) if channel.info.kind != TransportKind::Mem => {
                channel.active = false;
                self.active.retain(|active| *active != slot);
            }
            Ok(_) => {}
            Err(fault) => self.channel_fault(slot, fault),
        }
    }

    /// Arms every active channel; false if one has something to do.
    pub(super) fn channels_arm(&mut self) -> bool {
        let mut idle = true;
        for at in (0..self.active.len()).rev() {
            let Some(&slot) = self.active.get(at) else {
                continue;
            };
            if let State::Open(channel) = &mut self.slots[slot as usize].state {
                channel.rounds_awake = 0;
            }
            self.socket_watch(slot, true);
            let State::Open(channel) = &mut self.slots[slot as usize].state else {
                continue;
            };
            match channel.wire.arm(channel.want()) {
                Ok(armed) => idle &= armed,
                Err(fault) => {
                    self.channel_fault(slot, fault);
                    idle = false;
                }
            }
        }
        idle
    }

    pub(super) fn descriptor_ready(&mut self, token: Token) {
        if token == TOKEN_WAKER {
            return;
        }
        let (at, what) = (token.0 >> 2, token.0 & 3);
        match what {
            TOKEN_LISTENER => return self.accept_all(at),
            TOKEN_HUB => return self.hubs.ready(at),
            _ => {}
        }
        let slot = at as u32;
        match self.slots.get_mut(at).map(|slot| &mut slot.state) {
            Some(State::Boot(_)) => self.boot_step(slot),
            Some(State::Link(_)) => self.link_step(slot),
            Some(State::Open(channel)) => {
                if let Err(fault) = channel.wire.ready(what == TOKEN_BULK) {
                    return self.channel_fault(slot, fault);
                }
                self.activate(slot);
            }
            Some(State::Linger(..)) => self.linger_step(slot, clock::now()),
            Some(State::Free) | None => {}
        }
    }
}

fn source_watch(
    registry: &Registry,
    source: &mut impl Source,
    token: Token,
    watch: bool,
) -> io::Result<()> {
    match watch {
        true => registry.register(source, token, Interest::READABLE | Interest::WRITABLE),
        false => registry.deregister(source),
    }
}
