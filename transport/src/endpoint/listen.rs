//! Listening, connecting, and taking whoever connects, up to the start of the handshake.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Token};
use rustix::process::Uid;

use super::boot::{Boot, Machine};
use super::stream::Stream;
use super::types::{ChannelId, Dial, Listen, TransportError};
use super::{ACCEPTS_PER_TURN, Listening, Ops, State, TOKEN_CHANNEL, TOKEN_LISTENER};
use crate::address::{Address, HostId};
use crate::mem::{MemLink, MemListener};
use crate::shm::{self, Layout};
use crate::tcp::socket_prepare;
use crate::ticket::RefuseReason;
use crate::wire::{Capabilities, Dialler, Listener as HandshakeListener, Local};

impl Ops {
    /// Listens, from now on until the endpoint is dropped.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub fn listen(&mut self, at: &Listen) -> Result<Address, TransportError> {
        let token = Token(self.listeners.len() << 2 | TOKEN_LISTENER);
        let (listening, address) = match at {
            Listen::Mem(name) => {
                let listener = MemListener::listen(name, self.waker.clone())?;
                (Listening::Mem(listener), Address::Mem(name.clone()))
            }
            Listen::Tcp(at) => {
                let error = |source| TransportError::Listen {
                    address: format!("tcp:{at}"),
                    source,
                };
                let mut listener = TcpListener::bind(*at).map_err(error)?;
                let at = listener.local_addr().map_err(error)?;
                let registry = self.poll.registry();
                registry
                    .register(&mut listener, token, Interest::READABLE)
                    .map_err(error)?;
                (Listening::Tcp(listener), Address::Tcp(at))
            }
            Listen::Shm { name } => {
                let name = match name {
                    Some(name) => name.clone(),
                    None => format!(
                        "praas-{:016x}",
                        getrandom::u64().map_err(TransportError::Random)?
                    ),
                };
                let error = |source| TransportError::Listen {
                    address: format!("shm:{name}"),
                    source,
                };
                let mut listener = abstract_address(&name)
                    .and_then(|address| UnixListener::bind_addr(&address))
                    .map_err(error)?;
                let registry = self.poll.registry();
                registry
                    .register(&mut listener, token, Interest::READABLE)
                    .map_err(error)?;
                // Fail here, not at the first peer, if the life page cannot be had.
                shm::life::life_page().map_err(error)?;
                (
                    Listening::Unix(listener),
                    Address::Shm {
                        host: HostId::local(),
                        name,
                    },
                )
            }
        };
        self.listeners.push(listening);
        self.addresses.push(address.clone());
        Ok(address)
    }

    /// Connects without blocking: [`crate::Handler::on_open`] or [`crate::Handler::on_close`]
    /// follows.
    ///
    /// # Errors
    /// What can be told at once: nobody listens, too many channels.
    pub fn connect(&mut self, to: &Address, dial: Dial) -> Result<ChannelId, TransportError> {
        let error = |source| TransportError::Connect {
            address: to.to_string(),
            source,
        };
        let mut lane_to = None;
        let (stream, descriptors) = match to {
            Address::Mem(name) => {
                let link = MemLink::dial(name, self.waker.clone(), Arc::clone(&self.regions))?;
                (Stream::Mem(link), Vec::new())
            }
            Address::Tcp(at) => {
                let stream = TcpStream::connect(*at).map_err(error)?;
                socket_prepare(&stream, self.config.tcp_dead_after_ms).map_err(error)?;
                lane_to = Some(*at);
                (Stream::Tcp(stream), Vec::new())
            }
            Address::Shm { host, .. } if *host != HostId::local() => {
                return Err(error(io::Error::new(
                    io::ErrorKind::HostUnreachable,
                    format!(
                        "shared memory of another host (this one is {})",
                        HostId::local()
                    ),
                )));
            }
            Address::Shm { name, .. } => {
                let stream = abstract_address(name)
                    .and_then(|address| UnixStream::connect_addr(&address))
                    .map_err(error)?;
                let life = shm::life::life_page()
                    .and_then(|fd| fd.try_clone())
                    .map_err(error)?;
                (Stream::Unix(stream), vec![life])
            }
        };
        let local = self.local()?;
        let (hello, machine) =
            Dialler::start(local, &dial.credential, dial.expect, HostId::local());
        let latest = Instant::now() + Duration::from_millis(self.config.handshake_timeout_ms);
        let deadline = dial
            .deadline
            .map_or(latest, |deadline| deadline.min(latest));
        let layout = self.layout();
        let mut boot = Boot::new(
            stream,
            Machine::Dialler(machine),
            hello,
            descriptors,
            deadline,
            layout,
        );
        boot.lane_to = lane_to;
        self.boot_start(boot)
    }

    fn local(&self) -> Result<Local, TransportError> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(TransportError::Random)?;
        let caps = match shm::membarrier_registered() {
            true => Capabilities::MEMBARRIER,
            false => Capabilities::default(),
        };
        Ok(Local {
            identity: self.identity.clone(),
            caps,
            nonce,
        })
    }

    pub(super) fn layout(&self) -> Layout {
        Layout {
            ring_bytes: self.config.shm_ring_bytes,
            bulk_bytes: self.config.shm_bulk_bytes,
        }
    }

    fn boot_start(&mut self, boot: Boot) -> Result<ChannelId, TransportError> {
        let slot = match boot.machine {
            Machine::Dialler(_) => self.slot_take(State::Boot(Box::new(boot)))?,
            Machine::Listener(_) => self.slot_take_handshake(State::Boot(Box::new(boot))),
        };
        self.timed.push(slot);
        let id = ChannelId {
            slot,
            generation: self.slots[slot as usize].generation,
        };
        let token = Token((slot as usize) << 2 | TOKEN_CHANNEL);
        if let State::Boot(boot) = &mut self.slots[slot as usize].state {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registered = match &mut boot.stream {
                Stream::Tcp(stream) => self.poll.registry().register(stream, token, interest),
                Stream::Unix(stream) => self.poll.registry().register(stream, token, interest),
                Stream::Mem(_) => Ok(()),
            };
            if let Err(error) = registered {
                self.slot_free(slot);
                return Err(TransportError::Setup(error));
            }
        }
        self.boot_step(slot);
        Ok(id)
    }

    pub(super) fn mem_ready(&mut self) {
        for at in 0..self.listeners.len() {
            if let Listening::Mem(_) = self.listeners[at] {
                self.accept_all(at);
            }
        }
    }

    /// Takes who waits at a listener, but not so many that the channels would wait for them.
    pub(super) fn accept_all(&mut self, at: usize) {
        self.accepting.retain(|other| *other != at);
        for _ in 0..ACCEPTS_PER_TURN {
            let mut refused = None;
            let stream = match &self.listeners[at] {
                Listening::Mem(listener) => match listener.accept() {
                    Some(link) => {
                        link.adopt(Arc::clone(&self.regions));
                        Ok(Stream::Mem(link))
                    }
                    None => return,
                },
                Listening::Unix(listener) => listener.accept().and_then(|(stream, _)| {
                    let peer = rustix::net::sockopt::socket_peercred(&stream)?.uid;
                    refused = peer_user_check(peer, rustix::process::geteuid()).err();
                    Ok(Stream::Unix(stream))
                }),
                Listening::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                    socket_prepare(&stream, self.config.tcp_dead_after_ms)?;
                    Ok(Stream::Tcp(stream))
                }),
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // One peer's trouble (reset at once) is not the listener's.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer");
                    let none_left =
                        matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                    if none_left && !self.handshake_evict() {
                        return;
                    }
                    continue;
                }
            };
            if let Err(error) = self.accept_one(stream, refused) {
                tracing::warn!(%error, "cannot take a peer");
            }
        }
        self.accepting.push(at);
    }

    fn accept_one(
        &mut self,
        stream: Stream,
        refused: Option<String>,
    ) -> Result<(), TransportError> {
        let params = match &stream {
            Stream::Unix(_) => shm::layout_encode(self.layout()),
            _ => Vec::new(),
        };
        let machine = HandshakeListener::start(self.local()?, HostId::local(), params);
        let deadline = Instant::now() + Duration::from_millis(self.config.handshake_timeout_ms);
        let machine = Machine::Listener(machine);
        let mut boot = Boot::new(
            stream,
            machine,
            Vec::new(),
            Vec::new(),
            deadline,
            self.layout(),
        );
        if let Some(text) = refused {
            boot.refuse(RefuseReason::WrongUser, text);
        }
        self.boot_start(boot).map(|_| ())
    }
}

fn abstract_address(name: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    std::os::unix::net::SocketAddr::from_abstract_name(name)
}

/// A shared-memory peer belongs to the same user, or to root.
fn peer_user_check(peer: Uid, own: Uid) -> Result<(), String> {
    if peer == own || peer.is_root() || own.is_root() {
        return Ok(());
    }
    Err(format!(
        "the dialler belongs to user {}, not {}",
        peer.as_raw(),
        own.as_raw()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_share_memory() {
        let user = Uid::from_raw;
        for (peer, own) in [(7, 7), (0, 7), (7, 0), (0, 0)] {
            assert_eq!(peer_user_check(user(peer), user(own)), Ok(()));
        }
        let error = peer_user_check(user(8), user(7)).unwrap_err();
        assert_eq!(error, "the dialler belongs to user 8, not 7");
    }
}
