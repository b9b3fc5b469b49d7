//! From a handshake to an RDMA channel: queue pairs find each other, by cards over the socket of
//! the handshake and then by a frame each way. How, is `verbs/link.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;
use mio::net::TcpStream;

use super::stream::Stream;
use super::types::CloseReason;
use super::{Ops, State, TOKEN_HUB};
use crate::address::TransportKind;
use crate::backend::{AnyWire, Wire, WireFault};
use crate::clock;
use crate::verbs::{Link, LinkContext, Linked};
use crate::wire::Agreed;

/// A peer whose handshake is done.
pub(super) struct Linking {
    link: Link,
    agreed: Agreed,
    dialled: bool,
}

impl Linking {
    /// When it must be looked at though nothing is heard.
    pub(super) fn timer(&self) -> Instant {
        self.link.timer()
    }
}

/// The token of a hub's descriptor.
fn hub_token(at: usize) -> Token {
    Token(at << 2 | TOKEN_HUB)
}

fn reason(fault: WireFault) -> CloseReason {
    match fault {
        WireFault::Dead => CloseReason::PeerDied,
        WireFault::Protocol(error) => CloseReason::Protocol(error),
        WireFault::Io(error) => CloseReason::Io(Arc::new(error)),
        WireFault::Rdma(error) => CloseReason::Rdma(error),
    }
}

impl Ops {
    /// What queue pairs find each other with.
    fn link_context<R>(&mut self, work: impl FnOnce(&mut LinkContext<'_>) -> R) -> R {
        work(&mut LinkContext {
            hubs: &mut self.hubs,
            config: &self.config,
            registry: self.poll.registry(),
            token: hub_token,
            now: clock::now(),
        })
    }

    /// The handshake is done: from here on the socket carries cards.
    pub(super) fn link_start(
        &mut self,
        slot: u32,
        stream: TcpStream,
        boot: (Vec<u8>, bool, Instant),
        agreed: Agreed,
    ) -> Result<(), CloseReason> {
        let (early, dialled, deadline) = boot;
        let place = (&*agreed.peer.application, slot);
        let link = self.link_context(|context| {
            Link::new(
                stream,
                dialled,
                &agreed.params,
                early,
                place,
                deadline,
                context,
            )
        });
        let link = link.map_err(reason)?;
        self.slots[slot as usize].state = State::Link(Box::new(Linking {
            link,
            agreed,
            dialled,
        }));
        self.timed.push(slot);
        self.link_step(slot);
        Ok(())
    }

    /// Goes as far as socket and queue pair let it.
    pub(super) fn link_step(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize].state;
        if !matches!(place, State::Link(_)) {
            return;
        }
        // Out of its slot, for a channel that opens may close others.
        let State::Link(mut linking) = std::mem::replace(place, State::Free) else {
            return;
        };
        let mut rx = std::mem::take(&mut self.rx);
        let linked = self.link_context(|context| match context.now >= linking.link.deadline {
            true => Linked::Failed(linking.link.timeout()),
            false => linking.link.step(context, &mut rx),
        });
        self.rx = rx;
        let dialled = linking.dialled;
        let opened = match linked {
            Linked::Waiting => {
                self.slots[slot as usize].state = State::Link(linking);
                return;
            }
            Linked::Open(wire) => {
                let (eager_max, body_max) = wire.payload_max();
                let bounds = (TransportKind::Verbs, eager_max, body_max);
                let wire = (AnyWire::Verbs(wire), bounds);
                self.channel_install(slot, wire, linking.agreed, dialled, None)
            }
            Linked::Failed(fault) => Err(reason(fault)),
        };
        if let Err(reason) = opened {
            self.boot_failed(slot, dialled, reason);
        }
    }

    /// What Accept carries, for a peer that wants an RDMA connection.
    pub(super) fn link_params(&mut self, stream: &Stream) -> Result<Vec<u8>, String> {
        let Stream::Tcp(stream) = stream else {
            return Err("the socket is not TCP".into());
        };
        let local = stream.local_addr().map_err(|error| error.to_string())?;
        self.hubs.candidates(&self.config, local.ip())
    }

    /// Takes what RDMA devices have completed, and wakes the channels that it is for.
    pub(super) fn hubs_poll(&mut self) {
        let mut woken = std::mem::take(&mut self.woken);
        self.hubs.poll(|slot| woken.push(slot));
        for slot in woken.drain(..) {
            match self.slots.get(slot as usize).map(|slot| &slot.state) {
                Some(State::Link(_)) => self.link_step(slot),
                Some(State::Open(_)) => self.activate(slot),
                _ => {}
            }
        }
        self.woken = woken;
    }

    /// Waits until what was sent by RDMA has arrived, but not long: with its queue pair goes what is
    /// under way, where a kernel would go on with what a socket holds.
    pub(super) fn hubs_drain(&mut self, patience: Duration) {
        if self.hubs.is_empty() {
            return;
        }
        let until = clock::now() + patience;
        loop {
            self.hubs.poll(|_| ());
            let under_way = self.slots.iter_mut().any(|slot| match &mut slot.state {
                State::Open(channel) if channel.info.kind == TransportKind::Verbs => {
                    matches!(channel.wire.drained(), Ok(false))
                }
                _ => false,
            });
            if !under_way || clock::now() >= until {
                return;
            }
            crate::sync::spin_hint();
        }
    }

    /// What the endpoint's RDMA connections have done so far.
    pub fn verbs_counters(&self) -> crate::counters::VerbsCounters {
        self.hubs.counters()
    }
}
