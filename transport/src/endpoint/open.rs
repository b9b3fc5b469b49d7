//! From a handshake to an open channel, and the second socket of one over TCP or Unix sockets.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mio::{Interest, Token};

use super::boot::{Boot, BootError, Booted, Gate, Machine};
use super::channel::{Channel, ChannelLimits};
use super::stream::Stream;
use super::types::{ChannelId, ChannelInfo, CloseReason};
use super::{Event, LINGER, Ops, State, TOKEN_BULK};
use crate::address::{Address, TransportKind};
use crate::backend::{AnyWire, RX_BYTES, WireFault};
use crate::clock;
use crate::fault::FaultWire;
use crate::mem::MemWire;
use crate::shm::{self, ShmMemory, ShmSharing, ShmWire};
use crate::tcp::TcpWire;
use crate::ticket::{RefuseReason, Role};
use crate::unix::UnixWire;
use crate::wire::{
    Agreed, Capabilities, HandshakeError, Incarnation, PeerIdentity, WireError, bulk_hello,
};

/// The largest eager payload that a receiver takes, whatever the sender's setting is.
const EAGER_WIRE_MAX: usize = RX_BYTES - 1024;
/// How long a bulk lane that found no room waits before it is dialled again.
const LANE_RETRY: Duration = Duration::from_millis(2);

impl Ops {
    pub(super) fn boot_step(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize].state;
        if !matches!(place, State::Boot(_)) {
            return;
        }
        // Out of its slot, for who is let in depends on the other slots.
        let State::Boot(mut boot) = std::mem::replace(place, State::Free) else {
            return;
        };
        let admit = |agreed: &Agreed| self.admission_check(agreed);
        let booted = boot.step(&Gate {
            auth: self.auth.as_deref(),
            admit: &admit,
            segment_refused: self
                .config
                .fault
                .as_ref()
                .is_some_and(|plan| plan.segment_refused),
        });
        let dialled = matches!(boot.machine, Machine::Dialler(_));
        let agreed = boot.is_agreed() || matches!(booted, Booted::Open(_));
        self.slots[slot as usize].state = State::Boot(boot);
        if agreed {
            self.handshake_promote(slot);
        }
        match booted {
            Booted::Waiting => {}
            Booted::Open(agreed) => {
                if let Err(reason) = self.channel_open(slot, agreed) {
                    self.boot_failed(slot, dialled, reason);
                }
            }
            Booted::Bulk(token) => self.lane_attach(slot, token),
            Booted::Refused => self.boot_linger(slot),
            Booted::Failed(error) => {
                let reason = match error {
                    BootError::Handshake(HandshakeError::Refused { reason, text }) => {
                        CloseReason::Refused { reason, text }
                    }
                    BootError::Handshake(HandshakeError::Wire(error)) => {
                        CloseReason::Protocol(error)
                    }
                    BootError::Io(error) => CloseReason::Io(Arc::new(error)),
                };
                self.boot_fail(slot, reason);
            }
        }
    }

    /// A handshake failed.
    pub(super) fn boot_fail(&mut self, slot: u32, reason: CloseReason) {
        let dialled = match &self.slots[slot as usize].state {
            State::Boot(boot) => matches!(boot.machine, Machine::Dialler(_)),
            _ => false,
        };
        self.boot_failed(slot, dialled, reason);
    }

    /// Only whoever asked to connect hears that it failed; a stranger's failure is logged.
    pub(super) fn boot_failed(&mut self, slot: u32, dialled: bool, reason: CloseReason) {
        let reason = match self.fallbacks.remove(&slot) {
            None => reason,
            Some(fallback) => match self.fall_back(slot, fallback, reason) {
                None => return,
                Some(reason) => reason,
            },
        };
        let id = ChannelId {
            slot,
            generation: self.slots[slot as usize].generation,
        };
        self.slot_free(slot);
        match dialled {
            true => self.pending.push_back(Event::Closed(id, reason)),
            false => tracing::debug!(%reason, "a peer's handshake failed"),
        }
    }

    fn boot_linger(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        if let State::Boot(boot) = std::mem::replace(&mut place.state, State::Free) {
            if let Stream::Tcp(stream) = &boot.stream {
                // The refusal is sent; what is already gone need not be shut down.
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            place.state = State::Linger(boot.stream, clock::now() + LINGER);
        }
    }

    fn channel_open(&mut self, slot: u32, agreed: Agreed) -> Result<(), CloseReason> {
        let place = &mut self.slots[slot as usize];
        let State::Boot(boot) = std::mem::replace(&mut place.state, State::Free) else {
            return Ok(());
        };
        let dialled = matches!(boot.machine, Machine::Dialler(_));
        let mut boot = *boot;
        let kind = boot.kind;
        let mut body_max = EAGER_WIRE_MAX;
        let lane_to = boot.lane_to.take();
        let (eager_max, wire) = match boot.stream {
            Stream::Mem(link) => {
                let eager_max = self.config.shm_eager_max_bytes;
                (eager_max, AnyWire::Mem(MemWire::new(link, eager_max)))
            }
            Stream::Tcp(stream) if kind == TransportKind::Verbs => {
                let rest = (std::mem::take(&mut boot.received), dialled, boot.deadline);
                return self.link_start(slot, stream, rest, agreed);
            }
            Stream::Tcp(stream) => {
                let eager_max = self.config.tcp_eager_max_bytes;
                let wire = TcpWire::new(stream, EAGER_WIRE_MAX, &boot.received, &mut self.rx);
                (eager_max, AnyWire::Tcp(wire))
            }
            Stream::Unix(stream) if kind == TransportKind::Unix => {
                if !agreed.params.is_empty() {
                    let what = "the listener shares memory where it was asked for a socket only";
                    return Err(CloseReason::Protocol(WireError::Malformed { what }));
                }
                let eager_max = self.config.unix_eager_max_bytes;
                let wire = UnixWire::new(stream, EAGER_WIRE_MAX, &boot.received, &mut self.rx);
                (eager_max, AnyWire::Unix(wire))
            }
            Stream::Unix(stream) => {
                let io = |error| CloseReason::Io(Arc::new(error));
                let mut descriptors = boot.descriptors.into_iter();
                let missing = || io(io::Error::other("the peer sent no descriptors"));
                let (memory, layout) = match boot.memory {
                    Some(memory) => (memory, self.layout()),
                    None => {
                        let layout =
                            shm::layout_decode(&agreed.params).map_err(CloseReason::Protocol)?;
                        let segment = descriptors.next().ok_or_else(missing)?;
                        (ShmMemory::open(segment, layout).map_err(io)?, layout)
                    }
                };
                let life = descriptors.next().ok_or_else(missing)?;
                let barrier = agreed.caps.contains(Capabilities::MEMBARRIER);
                let stream = (stream, &boot.received[..]);
                let sharing = self.shm_sharing(&agreed.peer);
                let wire = ShmWire::new(stream, life, memory, dialled, barrier, sharing);
                let wire = wire.map_err(io)?;
                body_max = EAGER_WIRE_MAX.min(layout.ring_bytes / 2 - 256);
                let eager_max = self.config.shm_eager_max_bytes.min(body_max);
                (eager_max, AnyWire::Shm(wire))
            }
        };
        let bounds = (kind, eager_max, body_max);
        self.channel_install(slot, (wire, bounds), agreed, dialled, lane_to)
    }

    /// Puts a channel over a connected wire into its slot.
    pub(super) fn channel_install(
        &mut self,
        slot: u32,
        (wire, (kind, eager_max, body_max)): (AnyWire, (TransportKind, usize, usize)),
        agreed: Agreed,
        dialled: bool,
        lane_to: Option<Address>,
    ) -> Result<(), CloseReason> {
        let id = ChannelId {
            slot,
            generation: self.slots[slot as usize].generation,
        };
        let wire = match &self.config.fault {
            Some(plan) => AnyWire::Fault(Box::new(FaultWire::new(wire, plan.clone(), slot.into()))),
            None => wire,
        };
        let info = ChannelInfo {
            peer: agreed.peer,
            kind,
            dialled,
            eager_max,
        };
        self.incarnations_check(&info.peer)?;
        let limits = ChannelLimits {
            transfers_max: self.config.transfers_inflight_max,
            ops_max: self.config.ops_inflight_max,
            body_max,
        };
        let channel = Channel::new(wire, info, agreed.session, lane_to, limits);
        self.slots[slot as usize].state = State::Open(Box::new(channel));
        self.fallbacks.remove(&slot);
        if kind.is_stream() && !dialled {
            self.sessions.insert(agreed.session, id);
        }
        self.pending.push_back(Event::Open(id));
        Ok(())
    }

    /// What a peer on this host may have of our memory: processes of one application trust one
    /// another, applications do not.
    fn shm_sharing(&self, peer: &PeerIdentity) -> ShmSharing {
        let attach_min_bytes = self.config.shm_attach_min_bytes;
        ShmSharing {
            trusted: peer.application == self.identity.application,
            pool: self.pool.number(),
            attach_min_bytes: self.config.shm_attach.then_some(attach_min_bytes),
            attach_max_bytes: self.config.shm_attach_max_bytes,
            budget: Arc::clone(&self.maps),
            regions: Arc::clone(&self.regions),
        }
    }

    /// Whether there is a place for a peer that has proven who it is.
    fn admission_check(&self, agreed: &Agreed) -> Result<(), HandshakeError> {
        if self.open >= self.config.channels_max {
            let text = format!("this side has {} channels (channels_max)", self.open);
            let reason = RefuseReason::TooManyChannels;
            return Err(HandshakeError::Refused { reason, text });
        }
        let peer = &agreed.peer;
        let newest = self.lives(peer).map(|(_, life)| life).max();
        match newest.filter(|newest| *newest > peer.incarnation) {
            Some(newest) => Err(HandshakeError::Refused {
                reason: RefuseReason::Superseded,
                text: format!("{} is connected as incarnation {newest}", peer.name),
            }),
            None => Ok(()),
        }
    }

    /// A newer incarnation of a process closes the channels of the older; an older is refused.
    fn incarnations_check(&mut self, peer: &PeerIdentity) -> Result<(), CloseReason> {
        let lives: Vec<_> = self.lives(peer).collect();
        if lives.iter().any(|(_, life)| *life > peer.incarnation) {
            return Err(CloseReason::Superseded);
        }
        for (slot, life) in lives {
            if life < peer.incarnation {
                self.channel_end(slot, Some(CloseReason::Superseded));
            }
        }
        Ok(())
    }

    /// Open channels to incarnations of a process, if `peer` is one.
    fn lives(&self, peer: &PeerIdentity) -> impl Iterator<Item = (u32, Incarnation)> {
        let process = peer.incarnation.0 != 0 && !peer.name.is_empty();
        let slots = self.slots.iter().enumerate().filter(move |_| process);
        slots.filter_map(move |(at, slot)| {
            let State::Open(other) = &slot.state else {
                return None;
            };
            let other = &other.info.peer;
            let same = other.name == peer.name
                && other.application == peer.application
                && other.role != Some(Role::Client);
            same.then_some((at as u32, other.incarnation))
        })
    }

    /// Opens the bulk lane of a channel over sockets that we dialled, once large messages are
    /// wanted.
    pub(super) fn lane_open(&mut self, slot: u32) {
        let State::Open(channel) = &mut self.slots[slot as usize].state else {
            return;
        };
        if !channel.lane_wanted() {
            return;
        }
        let Some(to) = channel.lane_to.take() else {
            return;
        };
        channel.lane_retry = None;
        let greeting = bulk_hello(&channel.session);
        let token = Token((slot as usize) << 2 | TOKEN_BULK);
        let opened = self.stream_dial(&to).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registry = self.poll.registry();
            registry.register(&mut stream, token, interest)?;
            Ok(stream)
        });
        let State::Open(channel) = &mut self.slots[slot as usize].state else {
            return;
        };
        let dialled = match opened {
            Ok(stream) => lane_set(&mut channel.wire, stream, greeting),
            // A Unix socket does not wait for room among those who wait to be taken.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                channel.lane_to = Some(to);
                channel.lane_retry = Some(clock::now() + LANE_RETRY);
                self.timed.push(slot);
                return;
            }
            Err(error) => Err(WireFault::Io(error)),
        };
        if let Err(fault) = dialled {
            self.channel_fault(slot, fault);
        }
    }

    /// A second socket shows the session of a channel: it becomes its bulk lane.
    fn lane_attach(&mut self, slot: u32, session: [u8; 16]) {
        let State::Boot(boot) = self.slot_free(slot) else {
            return;
        };
        let Boot {
            mut stream,
            received,
            ..
        } = *boot;
        let Some(channel) = self.sessions.remove(&session) else {
            tracing::debug!("a bulk lane names no channel");
            return;
        };
        let token = Token((channel.slot as usize) << 2 | TOKEN_BULK);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        if let Err(error) = registry.reregister(&mut stream, token, interest) {
            return self.channel_fault(channel.slot, WireFault::Io(error));
        }
        if let Some(open) = self.channel(channel) {
            match (open.wire.base(), stream) {
                (AnyWire::Tcp(wire), Stream::Tcp(stream)) => wire.bulk_attach(stream, received),
                (AnyWire::Unix(wire), Stream::Unix(stream)) => wire.bulk_attach(stream, received),
                _ => tracing::debug!("a bulk lane comes over another transport than its channel"),
            }
        }
        self.activate(channel.slot);
    }
}

/// Gives a wire the bulk lane that we dialled.
fn lane_set(wire: &mut AnyWire, stream: Stream, greeting: Vec<u8>) -> Result<(), WireFault> {
    match (wire.base(), stream) {
        (AnyWire::Tcp(wire), Stream::Tcp(stream)) => wire.bulk_dial(stream, greeting),
        (AnyWire::Unix(wire), Stream::Unix(stream)) => wire.bulk_dial(stream, greeting),
        // The address that was dialled is the channel's own.
        _ => Ok(()),
    }
}
