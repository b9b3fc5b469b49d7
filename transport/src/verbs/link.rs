//! From a handshake over TCP to a queue pair that a frame has passed each way: see `params.rs`.
//!
//! The dialler tries pairs of ports, the likeliest first; each that fails is named with the reason
//! if none is left.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Registry, Token};
use zerocopy::byteorder::little_endian::{U16, U32};

use super::objects::Path;
use super::params::{
    CANDIDATES_MAX, CARD_BYTES, Card, FLAG_ETHERNET, QueueCard, candidates_decode,
};
use super::ports::{self, Port, Ports};
use super::{Choice, Hubs, PeerHandle, VerbsWire};
use crate::backend::{Posted, RxPool, WireFault};
use crate::config::TransportConfig;
use crate::wire::{FrameHeader, FrameKind, WireError};

/// Reads and atomics that a side serves at a time.
const READS_MAX: u8 = 16;
/// How often a packet is sent again before its way counts as cut.
const RETRIES: u8 = 7;
/// How often a send is tried again for which there was no receive, and how long apart: 82 ms, as
/// the header of libibverbs codes it. Credit makes sure that there is one; this is for a peer that
/// takes others' receives before it is found out.
const RNR_RETRIES: u8 = 6;
const RNR_TIMER: u8 = 26;

/// A queue pair that is set up and not proven.
struct Attempt {
    peer: PeerHandle,
    choice: Choice,
    card: QueueCard,
    until: Instant,
    /// What the peer's card says, once the queue pair is connected.
    connected: Option<QueueCard>,
}

enum Side {
    Dialler {
        pairs: VecDeque<(Choice, u8)>,
        offers: u8,
    },
    Listener {
        choices: Vec<Choice>,
        /// How many the dialler has made.
        offers: usize,
    },
}

/// A connection whose queue pairs find each other.
pub(crate) struct Link {
    /// Taken by the wire in the end.
    stream: Option<TcpStream>,
    side: Side,
    /// As they were when the choices were made, which name their places.
    ports: Arc<Ports>,
    application: String,
    place: u32,
    received: Vec<u8>,
    unsent: Vec<u8>,
    attempt: Option<Attempt>,
    rejected: Vec<String>,
    pub(crate) deadline: Instant,
}

/// Where it stands.
pub(crate) enum Linked {
    Waiting,
    Open(Box<VerbsWire>),
    Failed(WireFault),
}

/// What a link works with.
pub(crate) struct LinkContext<'a> {
    pub(crate) hubs: &'a mut Hubs,
    pub(crate) config: &'a TransportConfig,
    pub(crate) registry: &'a Registry,
    pub(crate) token: fn(usize) -> Token,
    pub(crate) now: Instant,
}

fn other(text: String) -> WireFault {
    WireFault::Io(io::Error::other(text))
}

impl Link {
    /// After a handshake: `params` are Accept's, `early` what came right after it.
    pub(crate) fn new(
        stream: TcpStream,
        dialled: bool,
        params: &[u8],
        early: Vec<u8>,
        (application, place): (&str, u32),
        deadline: Instant,
        context: &mut LinkContext<'_>,
    ) -> Result<Self, WireFault> {
        let local = stream.local_addr()?.ip();
        let ports = context.hubs.ports(context.config).map_err(other)?;
        let choices = ports.candidates(local);
        let side = match dialled {
            true => dialler_side(params, &choices, &ports)?,
            false => Side::Listener { choices, offers: 0 },
        };
        Ok(Self {
            stream: Some(stream),
            side,
            ports,
            application: application.into(),
            place,
            received: early,
            unsent: Vec::new(),
            attempt: None,
            rejected: Vec::new(),
            deadline,
        })
    }

    /// When it must be stepped though nothing is heard.
    pub(crate) fn timer(&self) -> Instant {
        let attempt = self.attempt.as_ref().map(|attempt| attempt.until);
        match (&self.side, attempt) {
            (Side::Dialler { .. }, Some(until)) => until.min(self.deadline),
            _ => self.deadline,
        }
    }

    /// Why it took too long.
    pub(crate) fn timeout(&self) -> WireFault {
        let rejected = self.rejected.join(", ");
        other(format!(
            "no RDMA connection within the handshake's time: {rejected}"
        ))
    }

    /// Goes as far as the socket and the queue pair let it.
    pub(crate) fn step(&mut self, context: &mut LinkContext<'_>, pool: &mut RxPool) -> Linked {
        self.step_inner(context, pool)
            .unwrap_or_else(Linked::Failed)
    }

    fn step_inner(
        &mut self,
        context: &mut LinkContext<'_>,
        pool: &mut RxPool,
    ) -> Result<Linked, WireFault> {
        let open = self.socket_read()?;
        while let Some((card, rest)) = self.received.split_first_chunk::<CARD_BYTES>() {
            let card = Card::decode(card)?;
            self.received = rest.to_vec();
            self.card_take(card, context)?;
        }
        if let Some(wire) = self.proof_take(context, pool)? {
            return Ok(Linked::Open(wire));
        }
        if !open {
            return Err(match self.rejected.is_empty() {
                true => WireFault::Dead,
                false => other(format!("the peer gave up: {}", self.rejected.join(", "))),
            });
        }
        if let (Side::Dialler { .. }, None) = (&self.side, &self.attempt) {
            self.offer_next(context)?;
        }
        self.socket_write()?;
        Ok(Linked::Waiting)
    }

    /// Reads what is there; false at the end.
    fn socket_read(&mut self) -> Result<bool, WireFault> {
        let Some(stream) = &mut self.stream else {
            return Ok(true);
        };
        let mut bytes = [0; 4 * CARD_BYTES];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.received.extend_from_slice(&bytes[..count]);
                    if self.received.len() > 16 * CARD_BYTES {
                        return Err(WireError::Malformed {
                            what: "a peer sends more cards than there are ports",
                        }
                        .into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn socket_write(&mut self) -> Result<(), WireFault> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        while !self.unsent.is_empty() {
            match stream.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn card_take(&mut self, card: Card, context: &mut LinkContext<'_>) -> Result<(), WireFault> {
        match (card, &self.side) {
            (Card::Offer(offer), Side::Listener { .. }) => self.offer_take(&offer, context),
            (Card::Answer(answer), Side::Dialler { .. }) => self.answer_take(&answer, context),
            (Card::Reject { attempt, text }, Side::Dialler { .. }) => {
                let current = self.attempt.as_ref();
                if current.is_some_and(|current| current.card.attempt == attempt) {
                    self.attempt_fail(&format!("the peer says: {text}"), context);
                }
                Ok(())
            }
            _ => Err(WireError::Malformed {
                what: "a card is not for this side",
            }
            .into()),
        }
    }

    /// A listener's: sets a queue pair up as the dialler wants it, or says why not.
    fn offer_take(
        &mut self,
        offer: &QueueCard,
        context: &mut LinkContext<'_>,
    ) -> Result<(), WireFault> {
        self.attempt = None;
        let Side::Listener { choices, offers } = &mut self.side else {
            return Ok(());
        };
        *offers += 1;
        if *offers > CANDIDATES_MAX {
            return Err(WireError::Malformed {
                what: "a peer offers more queue pairs than there are ports to try",
            }
            .into());
        }
        let choice = choices.get(usize::from(offer.candidate)).copied();
        let choice = choice.ok_or(WireError::Malformed {
            what: "a peer offers a queue pair for a port that was not named",
        })?;
        let built = self
            .attempt_new(choice, offer.candidate, offer.attempt, context)
            .and_then(|attempt| {
                self.attempt_connect(attempt, offer, context)
                    .map_err(|error| error.to_string())
            });
        let card = match built {
            Ok(attempt) => {
                let card = Card::Answer(attempt.card);
                self.attempt = Some(attempt);
                card
            }
            Err(text) => {
                context.hubs.ports_forget();
                self.rejected.push(text.clone());
                Card::Reject {
                    attempt: offer.attempt,
                    text,
                }
            }
        };
        self.unsent.extend_from_slice(&card.encode());
        Ok(())
    }

    /// A dialler's: offers the next pair of ports.
    fn offer_next(&mut self, context: &mut LinkContext<'_>) -> Result<(), WireFault> {
        loop {
            let Side::Dialler { pairs, offers } = &mut self.side else {
                return Ok(());
            };
            let Some((choice, candidate)) = pairs.pop_front() else {
                return Err(other(format!(
                    "no RDMA connection: {}",
                    self.rejected.join(", ")
                )));
            };
            *offers += 1;
            let number = *offers;
            match self.attempt_new(choice, candidate, number, context) {
                Ok(attempt) => {
                    let card = Card::Offer(attempt.card);
                    self.unsent.extend_from_slice(&card.encode());
                    self.attempt = Some(attempt);
                    return Ok(());
                }
                Err(why) => {
                    context.hubs.ports_forget();
                    self.rejected.push(why);
                }
            }
        }
    }

    /// A dialler's: connects its queue pair to that of the answer, and sends a frame over it.
    fn answer_take(
        &mut self,
        answer: &QueueCard,
        context: &mut LinkContext<'_>,
    ) -> Result<(), WireFault> {
        let current = |attempt: &mut Attempt| {
            attempt.card.attempt == answer.attempt && attempt.connected.is_none()
        };
        // An answer to an offer that was given up is of no use any more.
        let Some(attempt) = self.attempt.take_if(current) else {
            return Ok(());
        };
        let mut attempt = match self.attempt_connect(attempt, answer, context) {
            Ok(attempt) => attempt,
            Err(error) => {
                self.rejected.push(error.to_string());
                return Ok(());
            }
        };
        let ping = FrameHeader::new(FrameKind::Ping).with_id(u64::from(answer.attempt));
        frame_prove(&attempt.peer, &ping)?;
        attempt.until = context.now + self.patience(context);
        self.attempt = Some(attempt);
        Ok(())
    }

    /// Whether a frame has come over the queue pair, which proves the way.
    fn proof_take(
        &mut self,
        context: &mut LinkContext<'_>,
        pool: &mut RxPool,
    ) -> Result<Option<Box<VerbsWire>>, WireFault> {
        let Some(attempt) = &mut self.attempt else {
            return Ok(None);
        };
        let is_dialler = matches!(self.side, Side::Dialler { .. });
        let received = match attempt.connected {
            Some(_) => attempt.peer.frame_recv(pool),
            None => Ok(None),
        };
        match received {
            Ok(Some(received)) => {
                let wanted = match is_dialler {
                    true => FrameKind::Pong,
                    false => FrameKind::Ping,
                };
                let (kind, id) = (received.header.kind()?, received.header.id());
                pool.give(received.buf);
                if kind != wanted {
                    return Err(WireError::OutOfPlace { kind, id }.into());
                }
                self.wire_make().map(Some)
            }
            Ok(None) if is_dialler && context.now >= attempt.until => {
                self.attempt_fail(
                    "nothing came back in time (setting verbs_probe_ms)",
                    context,
                );
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(fault) => {
                self.attempt_fail(&fault.to_string(), context);
                Ok(None)
            }
        }
    }

    fn wire_make(&mut self) -> Result<Box<VerbsWire>, WireFault> {
        let Some((attempt, stream)) = self.attempt.take().zip(self.stream.take()) else {
            return Err(other("there is no queue pair".into()));
        };
        let Some(card) = attempt.connected else {
            return Err(other("the queue pair is not connected".into()));
        };
        if let Side::Listener { .. } = self.side {
            let pong = FrameHeader::new(FrameKind::Pong);
            frame_prove(&attempt.peer, &pong)?;
        }
        Ok(Box::new(VerbsWire::new(
            attempt.peer,
            stream,
            card.frame_max.get() as usize,
        )))
    }

    /// Gives up what is tried, for a reason that is told if nothing else works either.
    fn attempt_fail(&mut self, why: &str, context: &mut LinkContext<'_>) {
        if let Some(attempt) = self.attempt.take() {
            let port = self.port(&attempt.choice);
            self.rejected.push(format!("{port}: {why}"));
        }
        context.hubs.ports_forget();
    }

    /// How long an attempt may take. The likeliest pair of ports has all of its time; the others
    /// share what is left of the handshake's, so that each gets its turn.
    fn patience(&self, context: &LinkContext<'_>) -> Duration {
        let probe = Duration::from_millis(context.config.verbs_probe_ms);
        let left = self.deadline.saturating_duration_since(context.now);
        match &self.side {
            Side::Dialler { pairs, offers } if *offers > 1 => probe.min(shares(left, pairs.len())),
            _ => probe,
        }
    }

    fn port(&self, choice: &Choice) -> &Port {
        &self.ports.usable[choice.port]
    }

    fn attempt_new(
        &self,
        choice: Choice,
        candidate: u8,
        number: u8,
        context: &mut LinkContext<'_>,
    ) -> Result<Attempt, String> {
        let port = self.port(&choice);
        let why = |error: io::Error| format!("{port}: {error}");
        let hub = context.hubs.hub(
            port,
            &self.application,
            context.config,
            context.registry,
            context.token,
        );
        let hub = hub.map_err(why)?;
        let (peer, credits) = PeerHandle::new(hub, self.place, port.number).map_err(why)?;
        let reads = u8::try_from(port.device.attr.max_qp_rd_atom).unwrap_or(READS_MAX);
        let card = QueueCard {
            mtu: port.mtu,
            reads: reads.min(READS_MAX),
            lid: U16::new(port.lid),
            credits: U32::new(credits),
            frame_max: U32::new(peer.frame_max() as u32),
            ..QueueCard::new(
                candidate,
                number,
                peer.queue_number(),
                fastrand::u32(..1 << 24),
                choice.gid.raw,
            )
        };
        Ok(Attempt {
            peer,
            choice,
            card,
            until: context.now + self.patience(context),
            connected: None,
        })
    }

    /// Connects an attempt's queue pair to the one that the peer's card describes.
    fn attempt_connect(
        &self,
        mut attempt: Attempt,
        theirs: &QueueCard,
        context: &mut LinkContext<'_>,
    ) -> Result<Attempt, io::Error> {
        let (own, choice) = (&attempt.card, &attempt.choice);
        let port = self.port(choice);
        let starts = u8::try_from(port.device.attr.max_qp_init_rd_atom).unwrap_or(READS_MAX);
        attempt.peer.connect(
            &Path {
                port: port.number,
                gid_index: choice.gid.index,
                peer_gid: theirs.gid,
                peer_lid: theirs.lid.get(),
                global: choice.named.flags & FLAG_ETHERNET != 0,
                traffic_class: context.config.verbs_traffic_class,
                service_level: context.config.verbs_service_level,
                mtu: own.mtu.min(theirs.mtu),
                peer_number: theirs.number.get(),
                peer_sequence: theirs.sequence.get(),
                sequence: own.sequence.get(),
                reads_served: own.reads,
                reads_started: starts.min(theirs.reads).min(READS_MAX),
                ack_timeout: ack_timeout(context.config.verbs_dead_after_ms),
                retries: RETRIES,
                rnr_timer: RNR_TIMER,
                rnr_retries: RNR_RETRIES,
            },
            theirs.credits.get(),
        )?;
        attempt.connected = Some(*theirs);
        Ok(attempt)
    }
}

/// Sends a frame for which there is always room: the first.
fn frame_prove(peer: &PeerHandle, frame: &FrameHeader) -> Result<(), WireFault> {
    match peer.frame_send(frame, &[], &[])? {
        Posted::Done => Ok(()),
        Posted::Busy => Err(other("there is no room to send a first frame".into())),
    }
}

fn dialler_side(params: &[u8], own: &[Choice], ports: &Ports) -> Result<Side, WireFault> {
    let theirs = candidates_decode(params)?;
    let pairs: VecDeque<_> = ports::pairs(own, &theirs).into();
    if pairs.is_empty() {
        let own: Vec<_> = ports.usable.iter().map(ToString::to_string).collect();
        return Err(other(format!(
            "no RDMA port of ours ({}) can reach one of the peer's {}",
            own.join(", "),
            theirs.len()
        )));
    }
    Ok(Side::Dialler { pairs, offers: 0 })
}

/// What an attempt has of the time that is left, if so many are to come after it.
fn shares(left: Duration, to_come: usize) -> Duration {
    left / (to_come as u32 + 1)
}

/// The code of an acknowledgement's timeout (4.096 µs, doubled so many times), so that all retries
/// together take about so long. Devices take up to four times as long as they are told.
fn ack_timeout(dead_after_ms: u32) -> u8 {
    let once_ns = u64::from(dead_after_ms) * 1_000_000 / (u64::from(RETRIES) + 1) / 2;
    let mut code = 1;
    while code < 31 && 4_096_u64 << (code + 1) <= once_ns {
        code += 1;
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_ports_gets_its_turn() {
        let mut left = Duration::from_secs(3);
        for to_come in (0..7).rev() {
            let share = shares(left, to_come);
            assert!(
                share >= Duration::from_millis(400),
                "{to_come} more: {share:?}"
            );
            left -= share;
        }
    }

    #[test]
    fn all_retries_together_take_no_longer_than_a_peer_may_be_silent() {
        for ms in [100, 1_000, 10_000, 60_000] {
            let once = 4_096_u64 << ack_timeout(ms);
            let all = once * (u64::from(RETRIES) + 1);
            let most = u64::from(ms) * 1_000_000;
            assert!(all <= most / 2 && all >= most / 4, "{ms} ms: {all} ns");
        }
    }
}
