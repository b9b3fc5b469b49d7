//! A connection before it is a channel: the handshake, over any stream, without blocking.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::stream::{DESCRIPTORS_MAX, Stream};
use crate::address::{Address, TransportKind};
use crate::clock;
use crate::shm::{Layout, ShmMemory};
use crate::ticket::{Authenticator, RefuseReason};
use crate::wire::{
    Agreed, Dialler, HANDSHAKE_MESSAGE_MAX_BYTES, HandshakeError, Listener, Step, refusal,
};

pub(super) enum Machine {
    Dialler(Dialler),
    Listener(Listener),
}

pub(super) struct Boot {
    pub(super) stream: Stream,
    pub(super) machine: Machine,
    pub(super) deadline: Instant,
    /// The transport of the channel to come.
    pub(super) kind: TransportKind,
    /// Where the bulk lane of a dialled channel goes, if it is a second socket.
    pub(super) lane_to: Option<Address>,
    pub(super) received: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) memory: Option<ShmMemory>,
    layout: Layout,
    unsent: Vec<u8>,
    unsent_descriptors: Vec<OwnedFd>,
    /// Set once all that remains is to send the last bytes.
    done: Option<Agreed>,
    /// Why the peer is refused whatever it says.
    refused: Option<HandshakeError>,
}

/// What an endpoint needs besides the peer's words to let it in.
pub(super) struct Gate<'a> {
    pub(super) auth: Option<&'a dyn Authenticator>,
    /// Asked about who has proven its ticket, before Accept.
    pub(super) admit: &'a dyn Fn(&Agreed) -> Result<(), HandshakeError>,
    /// Segments are not to be had, for tests.
    pub(super) segment_refused: bool,
}

/// Where a handshake stands.
pub(super) enum Booted {
    Waiting,
    Open(Agreed),
    Bulk([u8; 16]),
    /// We refused: the refusal is sent, wait for the dialler to hang up.
    Refused,
    Failed(BootError),
}

pub(super) enum BootError {
    Handshake(HandshakeError),
    Io(io::Error),
}

impl Boot {
    pub(super) fn new(
        stream: Stream,
        kind: TransportKind,
        machine: Machine,
        first: Vec<u8>,
        first_descriptors: Vec<OwnedFd>,
        deadline: Instant,
        layout: Layout,
    ) -> Self {
        Self {
            stream,
            kind,
            machine,
            deadline,
            lane_to: None,
            received: Vec::new(),
            descriptors: Vec::new(),
            memory: None,
            layout,
            unsent: first,
            unsent_descriptors: first_descriptors,
            done: None,
            refused: None,
        }
    }

    /// Refuses the peer as soon as it is stepped.
    pub(super) fn refuse(&mut self, reason: RefuseReason, text: String) {
        self.refused = Some(HandshakeError::Refused { reason, text });
    }

    /// Whether all is agreed, and at most the last bytes are to be sent.
    pub(super) fn is_agreed(&self) -> bool {
        self.done.is_some()
    }

    /// Whether the peer has shown a good ticket, which it may yet fail to prove.
    pub(super) fn names_ticket(&self) -> bool {
        matches!(&self.machine, Machine::Listener(listener) if listener.awaits_proof())
    }

    /// Goes as far as the stream lets it.
    pub(super) fn step(&mut self, gate: &Gate<'_>) -> Booted {
        self.step_inner(gate)
            .unwrap_or_else(|error| Booted::Failed(BootError::Io(error)))
    }

    fn step_inner(&mut self, gate: &Gate<'_>) -> io::Result<Booted> {
        if let Some(error) = self.refused.take() {
            return self.fail(error);
        }
        loop {
            if !self.flush()? {
                return Ok(Booted::Waiting);
            }
            if let Some(agreed) = self.done.take() {
                return Ok(Booted::Open(agreed));
            }
            let fed = match &mut self.machine {
                Machine::Dialler(dialler) => dialler.feed(&self.received),
                Machine::Listener(listener) => {
                    listener.feed(&self.received, gate.auth, clock::unix_ms())
                }
            };
            let (used, step) = match fed {
                Ok(fed) => fed,
                Err(error) => return self.fail(error),
            };
            self.received.drain(..used);
            match step {
                Step::More => {
                    if !self.fill()? {
                        return Ok(Booted::Waiting);
                    }
                }
                Step::Send(bytes) => self.unsent = bytes,
                Step::Bulk(token) => return Ok(Booted::Bulk(token)),
                Step::Done(bytes, agreed) => {
                    if let Machine::Listener(_) = self.machine
                        && let Err(error) = (gate.admit)(&agreed)
                    {
                        return self.fail(error);
                    }
                    if let Err(error) = self.segment_offer(gate) {
                        return self.fail(HandshakeError::Refused {
                            reason: RefuseReason::NoSegment,
                            text: error.to_string(),
                        });
                    }
                    self.unsent = bytes;
                    self.done = Some(agreed);
                }
            }
        }
    }

    /// A listener on shared memory hands over segment and life page with Accept.
    fn segment_offer(&mut self, gate: &Gate<'_>) -> io::Result<()> {
        if let (Machine::Listener(_), TransportKind::Shm) = (&self.machine, self.kind) {
            if gate.segment_refused {
                return Err(io::Error::other("refused by a fault on purpose"));
            }
            let (segment, memory) = ShmMemory::create(self.layout)?;
            self.memory = Some(memory);
            self.unsent_descriptors = vec![
                segment,
                crate::shm::life::life_page()?
                    .as_fd()
                    .try_clone_to_owned()?,
            ];
        }
        Ok(())
    }

    fn fail(&mut self, error: HandshakeError) -> io::Result<Booted> {
        if let Machine::Listener(_) = self.machine {
            tracing::debug!(%error, "refusing a peer");
            self.unsent = refusal(&error);
            // The refusal is a courtesy: a peer that does not take it now goes without.
            return match self.flush() {
                Ok(_) => Ok(Booted::Refused),
                Err(_) => Ok(Booted::Failed(BootError::Handshake(error))),
            };
        }
        Ok(Booted::Failed(BootError::Handshake(error)))
    }

    fn flush(&mut self) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            let fds: Vec<_> = self.unsent_descriptors.iter().map(AsFd::as_fd).collect();
            match self.stream.write(&self.unsent, &fds) {
                Ok(sent) => {
                    self.unsent.drain(..sent);
                    self.unsent_descriptors.clear();
                }
                Err(error) if not_yet(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn fill(&mut self) -> io::Result<bool> {
        let mut bytes = [0; HANDSHAKE_MESSAGE_MAX_BYTES + 2];
        match self.stream.read(&mut bytes, &mut self.descriptors) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                if self.descriptors.len() > DESCRIPTORS_MAX {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the peer sends more descriptors than the handshake has",
                    ));
                }
                self.received.extend_from_slice(&bytes[..count]);
                Ok(true)
            }
            Err(error) if not_yet(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn not_yet(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, NotConnected, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | NotConnected)
        || error.raw_os_error() == Some(libc::EINPROGRESS)
}
