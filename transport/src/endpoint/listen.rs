//! Listening, connecting, and taking whoever connects, up to the start of the handshake.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Token};

use super::boot::{Boot, Machine};
use super::fallback::Fallback;
use super::stream::Stream;
use super::types::{ChannelId, Dial, Listen, TransportError};
use super::{ACCEPTS_PER_TURN, Listening, Ops, State, TOKEN_CHANNEL, TOKEN_LISTENER};
use crate::address::{Address, HostId, TransportKind};
use crate::clock;
use crate::mem::{MemLink, MemListener};
use crate::shm::{self, Layout};
use crate::tcp::socket_prepare;
use crate::ticket::RefuseReason;
use crate::unix::{self, UnixBound, peer_user_check};
use crate::wire::{Capabilities, Dialler, Listener as HandshakeListener, Local};

impl Ops {
    /// Listens, from now on until the endpoint is dropped.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub fn listen(&mut self, at: &Listen) -> Result<Address, TransportError> {
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
                self.listener_register(&mut listener).map_err(error)?;
                (Listening::Tcp(listener), Address::Tcp(at))
            }
            Listen::Verbs(at) => {
                let error = |source| TransportError::Listen {
                    address: format!("verbs:{at}"),
                    source,
                };
                let at = self.hubs.listen_address(*at, &self.config).map_err(error)?;
                let mut listener = TcpListener::bind(at).map_err(error)?;
                let at = listener.local_addr().map_err(error)?;
                self.listener_register(&mut listener).map_err(error)?;
                (Listening::Verbs(listener), Address::Verbs(at))
            }
            Listen::Shm { name } => {
                let name = match name {
                    Some(name) => name.clone(),
                    None => unix::name_generate().map_err(TransportError::Random)?,
                };
                let error = |source| TransportError::Listen {
                    address: format!("shm:{name}"),
                    source,
                };
                let mut listener = abstract_address(&name)
                    .and_then(|address| UnixListener::bind_addr(&address))
                    .map_err(error)?;
                self.listener_register(&mut listener).map_err(error)?;
                // Fail here, not at the first peer, if the life page cannot be had.
                shm::life::life_page().map_err(error)?;
                let host = HostId::local();
                (Listening::Shm(listener), Address::Shm { host, name })
            }
            Listen::Unix(place) => {
                let error = |source| TransportError::Listen {
                    address: format!("unix:{place}"),
                    source,
                };
                let mut bound = UnixBound::bind(place).map_err(error)?;
                self.listener_register(&mut bound.listener).map_err(error)?;
                let name = bound.name.clone();
                let host = match name.starts_with('/') {
                    true => HostId::machine(),
                    false => HostId::local(),
                };
                (Listening::Unix(bound), Address::Unix { host, name })
            }
        };
        self.listeners.push(listening);
        self.addresses.push(address.clone());
        Ok(address)
    }

    /// Registers what will be the next of `listeners`.
    fn listener_register(&self, listener: &mut impl Source) -> io::Result<()> {
        let token = Token(self.listeners.len() << 2 | TOKEN_LISTENER);
        let registry = self.poll.registry();
        registry.register(listener, token, Interest::READABLE)
    }

    /// Connects without blocking: [`crate::Handler::on_open`] or [`crate::Handler::on_close`]
    /// follows.
    ///
    /// # Errors
    /// What can be told at once: nobody listens, too many channels.
    pub fn connect(&mut self, to: &Address, dial: Dial) -> Result<ChannelId, TransportError> {
        let boot = self.boot_dial(to, &dial, self.config.handshake_timeout_ms)?;
        self.boot_start(boot, None)
    }

    /// The start of a handshake that we dial.
    pub(super) fn boot_dial(
        &mut self,
        to: &Address,
        dial: &Dial,
        timeout_ms: u64,
    ) -> Result<Boot, TransportError> {
        let error = |source| TransportError::Connect {
            address: to.to_string(),
            source,
        };
        if let Some(why) = to.elsewhere() {
            return Err(error(io::Error::new(io::ErrorKind::HostUnreachable, why)));
        }
        let (stream, descriptors) = match to {
            Address::Mem(name) => {
                let link = MemLink::dial(name, self.waker.clone(), Arc::clone(&self.regions))?;
                (Stream::Mem(link), Vec::new())
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
            Address::Unix { .. } | Address::Tcp(_) | Address::Verbs(_) => {
                let stream = self.stream_dial(to).map_err(error)?;
                (stream, Vec::new())
            }
        };
        let local = self.local()?;
        let (hello, machine) =
            Dialler::start(local, &dial.credential, dial.expect, HostId::local());
        let latest = clock::now() + Duration::from_millis(timeout_ms);
        let deadline = dial
            .deadline
            .map_or(latest, |deadline| deadline.min(latest));
        let layout = self.layout();
        let mut boot = Boot::new(
            stream,
            to.kind(),
            Machine::Dialler(machine),
            hello,
            descriptors,
            deadline,
            layout,
        );
        if to.kind().is_stream() {
            boot.lane_to = Some(to.clone());
        }
        Ok(boot)
    }

    /// A socket to where a listener takes frames, or a second one for bulk.
    pub(super) fn stream_dial(&mut self, to: &Address) -> io::Result<Stream> {
        match to {
            Address::Tcp(at) => {
                let stream = TcpStream::connect(*at)?;
                socket_prepare(&stream, self.config.tcp_dead_after_ms)?;
                Ok(Stream::Tcp(stream))
            }
            Address::Verbs(at) => {
                self.hubs.available(&self.config)?;
                let stream = TcpStream::connect(*at)?;
                socket_prepare(&stream, self.config.verbs_dead_after_ms)?;
                Ok(Stream::Tcp(stream))
            }
            Address::Unix { name, .. } => {
                let address = unix::socket_address(name)?;
                Ok(Stream::Unix(UnixStream::connect_addr(&address)?))
            }
            Address::Mem(_) | Address::Shm { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn local(&self) -> Result<Local, TransportError> {
        let mut nonce = [0; 16];
        clock::random_fill(&mut nonce).map_err(TransportError::Random)?;
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

    /// Begins a handshake, and goes on with what else there is to try if it fails.
    pub(super) fn boot_start(
        &mut self,
        boot: Boot,
        fallback: Option<Fallback>,
    ) -> Result<ChannelId, TransportError> {
        let slot = match boot.machine {
            Machine::Dialler(_) => self.slot_take(State::Free)?,
            Machine::Listener(_) => self.slot_take_handshake(State::Free),
        };
        self.timed.push(slot);
        if let Some(fallback) = fallback {
            self.fallbacks.insert(slot, fallback);
        }
        let id = ChannelId {
            slot,
            generation: self.slots[slot as usize].generation,
        };
        if let Err(error) = self.boot_place(slot, boot) {
            self.slot_free(slot);
            return Err(TransportError::Setup(error));
        }
        Ok(id)
    }

    /// Begins a handshake in a slot that is taken.
    pub(super) fn boot_place(&mut self, slot: u32, mut boot: Boot) -> io::Result<()> {
        let token = Token((slot as usize) << 2 | TOKEN_CHANNEL);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        registry.register(&mut boot.stream, token, interest)?;
        self.slots[slot as usize].state = State::Boot(Box::new(boot));
        self.boot_step(slot);
        Ok(())
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
            let listening = &self.listeners[at];
            let stream = match listening {
                Listening::Mem(listener) => match listener.accept() {
                    Some(link) => {
                        link.adopt(Arc::clone(&self.regions));
                        Ok(Stream::Mem(link))
                    }
                    None => return,
                },
                Listening::Shm(listener) | Listening::Unix(UnixBound { listener, .. }) => {
                    listener.accept().and_then(|(stream, _)| {
                        let peer = shm::peer_process(&stream)?.user;
                        refused = peer_user_check(peer, rustix::process::geteuid())
                            .err()
                            .map(|text| (RefuseReason::WrongUser, text));
                        Ok(Stream::Unix(stream))
                    })
                }
                Listening::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                    socket_prepare(&stream, self.config.tcp_dead_after_ms)?;
                    Ok(Stream::Tcp(stream))
                }),
                Listening::Verbs(listener) => listener.accept().and_then(|(stream, _)| {
                    socket_prepare(&stream, self.config.verbs_dead_after_ms)?;
                    Ok(Stream::Tcp(stream))
                }),
            };
            let kind = listening.kind();
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
            if let Err(error) = self.accept_one(stream, kind, refused) {
                tracing::warn!(%error, "cannot take a peer");
            }
        }
        self.accepting.push(at);
    }

    fn accept_one(
        &mut self,
        stream: Stream,
        kind: TransportKind,
        mut refused: Option<(RefuseReason, String)>,
    ) -> Result<(), TransportError> {
        let params = match kind {
            TransportKind::Shm => shm::layout_encode(self.layout()),
            TransportKind::Verbs => self.link_params(&stream).unwrap_or_else(|why| {
                refused = Some((RefuseReason::NotAccepting, why));
                Vec::new()
            }),
            _ => Vec::new(),
        };
        let machine = HandshakeListener::start(self.local()?, HostId::local(), params);
        let deadline = clock::now() + Duration::from_millis(self.config.handshake_timeout_ms);
        let machine = Machine::Listener(machine);
        let mut boot = Boot::new(
            stream,
            kind,
            machine,
            Vec::new(),
            Vec::new(),
            deadline,
            self.layout(),
        );
        if let Some((reason, text)) = refused {
            boot.refuse(reason, text);
        }
        self.boot_start(boot, None).map(|_| ())
    }
}

fn abstract_address(name: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    std::os::unix::net::SocketAddr::from_abstract_name(name)
}
