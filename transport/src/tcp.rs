//! TCP: one socket for frames, a second one, opened at the first large message, for bulk.
//!
//! The hot path reads optimistically, with no epoll_wait before it, into a receive buffer that the
//! channel holds only while bytes are pending, and parses frames in place. A frame goes out by one
//! call; what the socket does not take of it is kept (at most one frame) and everything after it
//! is `Busy` until it is out.

use std::io::{self, IoSlice, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;
use socket2::{SockRef, TcpKeepalive};
use zerocopy::IntoBytes;

use crate::backend::{Posted, Received, RxBuf, RxPool, Want, Wire, WireFault};
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, WireError};

/// Up to this many bytes a frame is gathered here rather than by the kernel.
const GATHER_BYTES: usize = 4096;
const PARTS_MAX: usize = 8;

/// Settings of a fresh socket: no delay, and death noticed by the kernel.
pub(crate) fn socket_prepare(stream: &TcpStream, dead_after_ms: u32) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let dead_after = Duration::from_millis(u64::from(dead_after_ms.max(1_000)));
    let third = Duration::from_secs((dead_after.as_secs() / 3).max(1));
    let keepalive = TcpKeepalive::new()
        .with_time(third)
        .with_interval(third)
        .with_retries(2);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(dead_after))
}

/// A connected TCP peer.
pub(crate) struct TcpWire {
    stream: TcpStream,
    bulk: Option<TcpStream>,
    bulk_early: Vec<u8>,
    /// What is to be said on the bulk lane before anything else.
    bulk_greeting: Vec<u8>,
    /// Received and not yet parsed: `rx[start..end]`.
    rx: Option<RxBuf>,
    start: usize,
    end: usize,
    /// Whether the last read emptied the socket.
    drained: bool,
    bulk_drained: bool,
    /// What the socket did not take of the last frame.
    unsent: Vec<u8>,
    unsent_at: usize,
    /// A small frame in one piece.
    gathered: Vec<u8>,
    eager_max: usize,
    shut: bool,
}

impl TcpWire {
    /// A wire over a socket whose handshake is done; `early` are bytes that came right after it.
    pub(crate) fn new(
        stream: TcpStream,
        eager_max: usize,
        early: &[u8],
        pool: &mut RxPool,
    ) -> Self {
        let mut wire = Self {
            stream,
            bulk: None,
            bulk_early: Vec::new(),
            bulk_greeting: Vec::new(),
            rx: None,
            start: 0,
            end: early.len(),
            drained: false,
            bulk_drained: false,
            unsent: Vec::new(),
            unsent_at: 0,
            gathered: Vec::new(),
            eager_max,
            shut: false,
        };
        if !early.is_empty() {
            let mut rx = pool.take();
            rx[..early.len()].copy_from_slice(early);
            wire.rx = Some(rx);
        }
        wire
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Adds the bulk lane; `early` are bytes of it that came with its greeting.
    pub(crate) fn bulk_attach(&mut self, stream: TcpStream, early: Vec<u8>) {
        self.bulk = Some(stream);
        self.bulk_early = early;
        self.bulk_drained = false;
    }

    /// Adds the bulk lane that we dial: it may not be connected yet, and begins with `greeting`.
    pub(crate) fn bulk_dial(
        &mut self,
        stream: TcpStream,
        greeting: Vec<u8>,
    ) -> Result<(), WireFault> {
        self.bulk_greeting = greeting;
        self.bulk_attach(stream, Vec::new());
        self.bulk_greet().map(|_| ())
    }

    /// Whether the greeting is out; goes on with it if it is not.
    fn bulk_greet(&mut self) -> Result<bool, WireFault> {
        let Some(bulk) = &mut self.bulk else {
            return Ok(false);
        };
        while !self.bulk_greeting.is_empty() {
            match bulk.write(&self.bulk_greeting) {
                Ok(sent) => drop(self.bulk_greeting.drain(..sent)),
                Err(error)
                    if would_block(&error) || error.kind() == io::ErrorKind::NotConnected =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(fault(error)),
            }
        }
        Ok(true)
    }

    /// The header and whole length of the frame at the start of the pending bytes, if all there.
    #[inline]
    fn frame_next(&self) -> Result<Option<(FrameHeader, usize)>, WireError> {
        let Some(rx) = &self.rx else { return Ok(None) };
        let pending = &rx[self.start..self.end];
        let Some(bytes) = pending.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let (_, header) = FrameHeader::decode(bytes)?;
        let payload = frame_payload_len(&header, self.eager_max)?;
        let whole = FRAME_HEADER_BYTES + usize::from(header.uhdr_len) + payload;
        Ok((pending.len() >= whole).then_some((header, whole)))
    }

    /// Reads once; whether bytes came.
    #[inline]
    fn fill(&mut self, pool: &mut RxPool) -> Result<bool, WireFault> {
        let mut rx = self.rx.take().unwrap_or_else(|| pool.take());
        if self.start > 0 {
            rx.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let read = self.stream.read(&mut rx[self.end..]);
        let room = rx.len() - self.end;
        if self.end == 0 && !matches!(read, Ok(n) if n > 0) {
            pool.give(rx);
        } else {
            self.rx = Some(rx);
        }
        match read {
            Ok(0) => Err(WireFault::Dead),
            Ok(n) => {
                self.end += n;
                self.drained = n < room;
                Ok(true)
            }
            Err(error) if would_block(&error) => {
                self.drained = true;
                Ok(false)
            }
            Err(error) => Err(fault(error)),
        }
    }
}

/// Bytes that follow the user header of a frame on the eager lane.
#[inline]
pub(crate) fn frame_payload_len(
    header: &FrameHeader,
    eager_max: usize,
) -> Result<usize, WireError> {
    let len = header.body_len(header.kind()?);
    match len <= eager_max as u64 {
        true => Ok(len as usize),
        false => Err(WireError::TooLong {
            what: "eager payload",
            len,
            limit: eager_max as u64,
        }),
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// A reset or broken pipe is the peer's death; anything else is told as it is.
fn fault(error: io::Error) -> WireFault {
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => WireFault::Dead,
        _ => WireFault::Io(error),
    }
}

impl Wire for TcpWire {
    fn send_frame(
        &mut self,
        header: &FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault> {
        if !self.unsent.is_empty() && !self.flush()? {
            return Ok(Posted::Busy);
        }
        let payload_len: usize = payload.iter().map(|part| part.len()).sum();
        let whole = FRAME_HEADER_BYTES + user_header.len() + payload_len;
        let sent = if whole <= GATHER_BYTES {
            self.gathered.clear();
            for part in [header.as_bytes(), user_header].iter().chain(payload) {
                self.gathered.extend_from_slice(part);
            }
            self.stream.write(&self.gathered)
        } else {
            let mut parts: smallvec::SmallVec<[IoSlice<'_>; PARTS_MAX]> = smallvec::SmallVec::new();
            parts.push(IoSlice::new(header.as_bytes()));
            parts.push(IoSlice::new(user_header));
            parts.extend(payload.iter().map(|part| IoSlice::new(part)));
            self.stream.write_vectored(&parts)
        };
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) if would_block(&error) => return Ok(Posted::Busy),
            Err(error) => return Err(fault(error)),
        };
        if sent < whole {
            // The frame has begun, so the rest of it must follow before anything else.
            let mut skip = sent;
            for part in [header.as_bytes(), user_header].iter().chain(payload) {
                let skipped = skip.min(part.len());
                self.unsent.extend_from_slice(&part[skipped..]);
                skip -= skipped;
            }
        }
        Ok(Posted::Done)
    }

    #[inline]
    fn recv_frame(&mut self, pool: &mut RxPool) -> Result<Option<Received>, WireFault> {
        loop {
            if let Some((header, whole)) = self.frame_next()? {
                let at = self.start + FRAME_HEADER_BYTES;
                self.start += whole;
                let Some(buf) = self.rx.take() else {
                    return Ok(None);
                };
                return Ok(Some(Received { header, buf, at }));
            }
            if !self.fill(pool)? {
                return Ok(None);
            }
        }
    }

    #[inline]
    fn recycle(&mut self, buf: RxBuf, pool: &mut RxPool) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            pool.give(buf);
        } else {
            self.rx = Some(buf);
        }
    }

    fn bulk_write(&mut self, bytes: &[u8]) -> Result<usize, WireFault> {
        if !self.bulk_greet()? {
            return Ok(0);
        }
        let Some(bulk) = &mut self.bulk else {
            return Ok(0);
        };
        match bulk.write(bytes) {
            Ok(sent) => Ok(sent),
            Err(error) if would_block(&error) || error.kind() == io::ErrorKind::NotConnected => {
                Ok(0)
            }
            Err(error) => Err(fault(error)),
        }
    }

    fn bulk_read(&mut self, into: &mut [u8]) -> Result<usize, WireFault> {
        if !self.bulk_greet()? {
            return Ok(0);
        }
        let Some(bulk) = &mut self.bulk else {
            return Ok(0);
        };
        if !self.bulk_early.is_empty() {
            let count = self.bulk_early.len().min(into.len());
            into[..count].copy_from_slice(&self.bulk_early[..count]);
            self.bulk_early.drain(..count);
            return Ok(count);
        }
        match bulk.read(into) {
            Ok(0) => Err(WireFault::Dead),
            Ok(read) => {
                self.bulk_drained = read < into.len();
                Ok(read)
            }
            Err(error) if would_block(&error) || error.kind() == io::ErrorKind::NotConnected => {
                self.bulk_drained = true;
                Ok(0)
            }
            Err(error) => Err(fault(error)),
        }
    }

    fn flush(&mut self) -> Result<bool, WireFault> {
        while self.unsent_at < self.unsent.len() {
            match self.stream.write(&self.unsent[self.unsent_at..]) {
                Ok(sent) => self.unsent_at += sent,
                Err(error) if would_block(&error) => return Ok(false),
                Err(error) => return Err(fault(error)),
            }
        }
        self.unsent.clear();
        self.unsent_at = 0;
        Ok(true)
    }

    #[inline]
    fn held_back(&self) -> bool {
        !self.unsent.is_empty()
    }

    fn arm(&mut self, want: Want) -> Result<bool, WireFault> {
        // Both sockets are registered edge-triggered: what comes after an empty read wakes us, and
        // so does room after a full write.
        let bulk_there = want.bulk_in && self.bulk.is_some() && !self.bulk_drained;
        Ok(self.drained && !bulk_there && self.frame_next()?.is_none())
    }

    fn shutdown(&mut self) {
        if !self.shut {
            self.shut = true;
            // A socket that is no longer connected has nothing to shut down.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
    }

    fn ready(&mut self, bulk: bool) -> Result<(), WireFault> {
        match bulk {
            true => {
                self.bulk_drained = false;
                self.bulk_greet()?;
            }
            false => self.drained = false,
        }
        Ok(())
    }
}
