//! The floor of sockets: a raw one that spins.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::wait::{CALLS, Wait};
use crate::bench::BenchError;
use crate::bench::control::{RawAddress, Watch};

/// What the other side's raw socket shows first, so that nobody else's is taken for it.
pub(super) type Token = [u8; 32];

/// Bytes that a stream is read and written by, at least: a bare stream knows no messages.
const CHUNK_BYTES: usize = 64 << 10;

/// Bytes besides the payload, at most.
const HEADER_BYTES_MAX: usize = 64;

/// A raw socket, and memory for what goes over it.
pub(super) struct Raw {
    socket: OwnedFd,
    watch: Watch,
    out: Vec<u8>,
    into: Vec<u8>,
}

/// Waits for raw sockets to connect.
pub(super) struct RawListener {
    socket: OwnedFd,
    address: RawAddress,
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    BenchError::system(what)
}

/// Does a call that does not wait; `None` if it would have to.
#[inline]
fn attempt(done: Result<usize, Errno>) -> Result<Option<usize>, BenchError> {
    match done {
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(Errno::CONNRESET | Errno::PIPE) => Err(BenchError::Peer("has ended".into())),
        Err(error) => Err(failed("use a raw socket")(error.into())),
    }
}

impl Raw {
    fn new(socket: OwnedFd, watch: Watch, bytes_max: usize) -> Self {
        // A request for an operation, and its answer, have a header.
        let bytes = (bytes_max + HEADER_BYTES_MAX).max(CHUNK_BYTES);
        Self {
            socket,
            watch,
            out: vec![0; bytes],
            into: vec![0; bytes],
        }
    }

    /// Connects to the other side, and shows it the session's token.
    pub(super) fn connect(
        to: &RawAddress,
        watch: Watch,
        bytes_max: usize,
        token: &Token,
    ) -> Result<Self, BenchError> {
        let socket = socket_connect(to).map_err(failed("connect a raw socket"))?;
        let mut raw = Self::new(socket, watch, bytes_max);
        raw.out[..token.len()].copy_from_slice(token);
        raw.exchange(token.len(), 0, token.len())?;
        Ok(raw)
    }

    /// Moves `out` bytes to the other side and `into` from it, by as many as `chunk` at once; what
    /// comes lies from the start of `self.into`.
    #[inline]
    pub(super) fn exchange(
        &mut self,
        out: usize,
        into: usize,
        chunk: usize,
    ) -> Result<(), BenchError> {
        let (mut sent, mut got) = (0, 0);
        let mut wait = Wait::new(CALLS, &self.watch);
        while sent < out || got < into {
            let mut moved = false;
            if sent < out {
                let part = &self.out[..chunk.min(out - sent)];
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                if let Some(count) = attempt(send(&self.socket, part, flags))? {
                    sent += count;
                    moved = true;
                }
            }
            if got < into {
                let at = got % chunk;
                let part = &mut self.into[at..chunk.min(at + into - got)];
                match attempt(recv(&self.socket, part, RecvFlags::DONTWAIT).map(|(read, _)| read))?
                {
                    Some(0) => return Err(BenchError::Peer("has ended".into())),
                    Some(count) => {
                        got += count;
                        moved = true;
                    }
                    None => {}
                }
            }
            if !moved {
                wait.turn()?;
            }
        }
        Ok(())
    }

    /// A round trip.
    pub(super) fn ping(&mut self, bytes: usize, last: bool) -> Result<(), BenchError> {
        self.out[0] = u8::from(last);
        self.exchange(bytes, 0, bytes)?;
        self.exchange(0, bytes, bytes)
    }

    /// Answers until the other side says that it was the last.
    pub(super) fn pong(&mut self, bytes: usize) -> Result<(), BenchError> {
        loop {
            self.exchange(0, bytes, bytes)?;
            self.exchange(bytes, 0, bytes)?;
            if self.into[0] != 0 {
                return Ok(());
            }
        }
    }

    /// Waits until the other side has begun.
    pub(super) fn begin(&mut self) -> Result<(), BenchError> {
        self.exchange(0, 1, 1)
    }

    /// Sends a window, receives as many bytes if it goes both ways, and waits for the other side to
    /// say that it has all.
    pub(super) fn window(
        &mut self,
        bytes: usize,
        window: usize,
        both_ways: bool,
    ) -> Result<(), BenchError> {
        let (total, chunk) = (bytes * window, bytes.max(CHUNK_BYTES));
        self.exchange(total, if both_ways { total } else { 0 }, chunk)?;
        self.exchange(0, 1, 1)
    }

    /// The other side of [`Raw::begin`] and of so many windows.
    pub(super) fn windows_serve(
        &mut self,
        bytes: usize,
        window: usize,
        both_ways: bool,
        count: u64,
    ) -> Result<(), BenchError> {
        let (total, chunk) = (bytes * window, bytes.max(CHUNK_BYTES));
        self.exchange(1, 0, 1)?;
        for _ in 0..count {
            self.exchange(if both_ways { total } else { 0 }, total, chunk)?;
            self.exchange(1, 0, 1)?;
        }
        Ok(())
    }
}

/// Connects, accepts and closes: what [`Raw::connect`] and [`RawListener::accept`] do, until the
/// other side has said a byte.
pub(super) fn connect_once(to: &RawAddress, watch: &Watch) -> Result<(), BenchError> {
    let socket = socket_connect(to).map_err(failed("connect a raw socket"))?;
    let mut wait = Wait::new(CALLS, watch);
    loop {
        match attempt(recv(&socket, &mut [0; 1], RecvFlags::DONTWAIT).map(|(read, _)| read))? {
            Some(1) => return Ok(()),
            Some(_) => return Err(BenchError::Peer("has ended".into())),
            None => wait.turn()?,
        }
    }
}

fn socket_connect(to: &RawAddress) -> io::Result<OwnedFd> {
    match to {
        RawAddress::Tcp(address) => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Ok(stream.into())
        }
        RawAddress::Unix(name) => {
            let address = UnixAddress::from_abstract_name(name)?;
            Ok(UnixStream::connect_addr(&address)?.into())
        }
    }
}

impl RawListener {
    /// Listens: on TCP where an address is given, else on a Unix socket.
    pub(super) fn new(tcp: Option<std::net::IpAddr>) -> Result<Self, BenchError> {
        let listening = || -> io::Result<Self> {
            if let Some(at) = tcp {
                let listener = TcpListener::bind((at, 0))?;
                listener.set_nonblocking(true)?;
                let address = RawAddress::Tcp(listener.local_addr()?);
                let socket = listener.into();
                return Ok(Self { socket, address });
            }
            let name = format!(
                "praas-raw-{:016x}",
                getrandom::u64().map_err(io::Error::other)?
            );
            let listener = UnixListener::bind_addr(&UnixAddress::from_abstract_name(&name)?)?;
            listener.set_nonblocking(true)?;
            let socket = listener.into();
            Ok(Self {
                socket,
                address: RawAddress::Unix(name),
            })
        };
        listening().map_err(failed("listen on a raw socket"))
    }

    pub(super) fn address(&self) -> &RawAddress {
        &self.address
    }

    fn accept_socket(&self, watch: &Watch) -> Result<OwnedFd, BenchError> {
        let mut wait = Wait::new(CALLS, watch);
        loop {
            match rustix::net::accept(self.socket.as_fd()) {
                Ok(socket) => return Ok(socket),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => wait.turn()?,
                Err(error) => return Err(failed("accept a raw socket")(error.into())),
            }
        }
    }

    fn accept_any(&self, watch: Watch, bytes_max: usize) -> Result<Raw, BenchError> {
        let socket = self.accept_socket(&watch)?;
        if let RawAddress::Tcp(_) = self.address {
            let set = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
            set.map_err(|error| failed("set up a raw socket")(error.into()))?;
        }
        Ok(Raw::new(socket, watch, bytes_max))
    }

    /// Takes the other side's socket: the one that shows the session's token.
    pub(super) fn accept(
        &self,
        watch: &Watch,
        bytes_max: usize,
        token: &Token,
    ) -> Result<Raw, BenchError> {
        loop {
            let mut raw = self.accept_any(watch.clone(), bytes_max)?;
            let shown = raw.exchange(0, token.len(), token.len());
            // Hashes compare in constant time.
            let same = |shown: &[u8]| {
                blake3::Hash::from_slice(shown)
                    .is_ok_and(|shown| shown == blake3::Hash::from(*token))
            };
            if shown.is_ok() && same(&raw.into[..token.len()]) {
                return Ok(raw);
            }
            watch.look()?;
        }
    }

    /// The other side of [`connect_once`], so many times.
    pub(super) fn connects_serve(&self, watch: &Watch, count: u64) -> Result<(), BenchError> {
        for _ in 0..count {
            let socket = self.accept_socket(watch)?;
            attempt(send(
                &socket,
                &[1],
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ))?;
            let mut wait = Wait::new(CALLS, watch);
            // The other side closes first, as it does where channels are closed.
            while attempt(recv(&socket, &mut [0; 1], RecvFlags::DONTWAIT).map(|(read, _)| read))?
                .is_none()
            {
                wait.turn()?;
            }
        }
        Ok(())
    }
}
