//! Stream sockets: one for frames, a second one, opened at the first large message, for bulk.
//!
//! TCP and Unix sockets are instances of [`StreamWire`]; what differs between them (settings,
//! addresses, listeners) is in `tcp.rs` and `unix.rs`.
//!
//! The hot path reads optimistically, with no epoll_wait before it, into a receive buffer that the
//! channel holds only while bytes are pending, and parses frames in place. A frame goes out by one
//! call; what the socket does not take of it is kept (at most one frame) and everything after it
//! is `Busy` until it is out. While it is corked, small frames are kept, too, up to 16 KiB, and go
//! out together.
//!
//! A peer may close in good order while we send. So a socket that takes nothing any more is not
//! the end: sends are `Busy`, what the peer said before is read, and then it is dead.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use zerocopy::IntoBytes;

use crate::backend::{Posted, Received, RxBuf, RxPool, Want, Wire, WireFault};
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, WireError};

/// Up to this many bytes a frame is gathered here rather than by the kernel.
const GATHER_BYTES: usize = 4096;
const PARTS_MAX: usize = 8;
/// Bytes of small frames that are kept to go out by one call.
const CORK_BYTES: usize = 16 << 10;

/// A connected peer over sockets of kind `S`.
pub(crate) struct StreamWire<S> {
    stream: S,
    bulk: Option<S>,
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
    /// Small frames are to go out together.
    corked: bool,
    /// A small frame in one piece.
    gathered: Vec<u8>,
    eager_max: usize,
    /// The peer has hung up one of the sockets: what it sent before is all that comes.
    gone: bool,
    shut: bool,
}

impl<S: AsFd> StreamWire<S> {
    /// A wire over a socket whose handshake is done; `early` are bytes that came right after it.
    pub(crate) fn new(stream: S, eager_max: usize, early: &[u8], pool: &mut RxPool) -> Self {
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
            corked: false,
            gathered: Vec::new(),
            eager_max,
            gone: false,
            shut: false,
        };
        if !early.is_empty() {
            let mut rx = pool.take();
            rx[..early.len()].copy_from_slice(early);
            wire.rx = Some(rx);
        }
        wire
    }

    /// The socket for frames, to be watched or not.
    pub(crate) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    pub(crate) fn into_stream(self) -> S {
        self.stream
    }

    /// Adds the bulk lane; `early` are bytes of it that came with its greeting.
    pub(crate) fn bulk_attach(&mut self, stream: S, early: Vec<u8>) {
        self.bulk = Some(stream);
        self.bulk_early = early;
        self.bulk_drained = false;
    }

    /// Adds the bulk lane that we dial: it may not be connected yet, and begins with `greeting`.
    pub(crate) fn bulk_dial(&mut self, stream: S, greeting: Vec<u8>) -> Result<(), WireFault> {
        self.bulk_greeting = greeting;
        self.bulk_attach(stream, Vec::new());
        self.bulk_greet().map(|_| ())
    }

    /// Whether the greeting is out; goes on with it if it is not.
    fn bulk_greet(&mut self) -> Result<bool, WireFault> {
        let Some(bulk) = &self.bulk else {
            return Ok(false);
        };
        while !self.bulk_greeting.is_empty() {
            match send(bulk, &self.bulk_greeting) {
                Ok(sent) => drop(self.bulk_greeting.drain(..sent)),
                Err(error)
                    if would_block(&error) || error.kind() == io::ErrorKind::NotConnected =>
                {
                    return Ok(false);
                }
                Err(error) => return self.refused(error).map(|()| false),
            }
        }
        Ok(true)
    }

    /// A socket does not take bytes: because the peer hung up, or for a reason of ours.
    #[cold]
    fn refused(&mut self, error: io::Error) -> Result<(), WireFault> {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                self.gone = true;
                Ok(())
            }
            _ => Err(fault(error)),
        }
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
        let read = recv(&self.stream, &mut rx[self.end..]);
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

/// Reads what is there.
#[inline]
fn recv(from: &impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let (read, _) = rustix::net::recv(from, into, RecvFlags::DONTWAIT)?;
    Ok(read)
}

/// Writes what there is room for. A peer that hung up is an error, not a signal.
#[inline]
fn send(to: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(to, bytes, SEND_FLAGS)?)
}

fn send_parts(to: &impl AsFd, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut nothing = SendAncillaryBuffer::default();
    Ok(rustix::net::sendmsg(to, parts, &mut nothing, SEND_FLAGS)?)
}

const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

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

impl<S: AsFd> Wire for StreamWire<S> {
    fn send_frame(
        &mut self,
        header: &FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault> {
        let payload_len: usize = payload.iter().map(|part| part.len()).sum();
        let whole = FRAME_HEADER_BYTES + user_header.len() + payload_len;
        if self.corked && self.unsent.len() + whole <= CORK_BYTES {
            for part in [header.as_bytes(), user_header].iter().chain(payload) {
                self.unsent.extend_from_slice(part);
            }
            return Ok(Posted::Done);
        }
        if !self.unsent.is_empty() && !self.flush()? {
            return Ok(Posted::Busy);
        }
        let sent = if whole <= GATHER_BYTES {
            self.gathered.clear();
            for part in [header.as_bytes(), user_header].iter().chain(payload) {
                self.gathered.extend_from_slice(part);
            }
            send(&self.stream, &self.gathered)
        } else {
            let mut parts: smallvec::SmallVec<[IoSlice<'_>; PARTS_MAX]> = smallvec::SmallVec::new();
            parts.push(IoSlice::new(header.as_bytes()));
            parts.push(IoSlice::new(user_header));
            parts.extend(payload.iter().map(|part| IoSlice::new(part)));
            send_parts(&self.stream, &parts)
        };
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) if would_block(&error) => return Ok(Posted::Busy),
            Err(error) => return self.refused(error).map(|()| Posted::Busy),
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
                return match self.gone {
                    true => Err(WireFault::Dead),
                    false => Ok(None),
                };
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
        let Some(bulk) = &self.bulk else {
            return Ok(0);
        };
        match send(bulk, bytes) {
            Ok(sent) => Ok(sent),
            Err(error) if would_block(&error) || error.kind() == io::ErrorKind::NotConnected => {
                Ok(0)
            }
            Err(error) => self.refused(error).map(|()| 0),
        }
    }

    fn bulk_read(&mut self, into: &mut [u8]) -> Result<usize, WireFault> {
        if !self.bulk_greet()? {
            return Ok(0);
        }
        let Some(bulk) = &self.bulk else {
            return Ok(0);
        };
        if !self.bulk_early.is_empty() {
            let count = self.bulk_early.len().min(into.len());
            into[..count].copy_from_slice(&self.bulk_early[..count]);
            self.bulk_early.drain(..count);
            return Ok(count);
        }
        match recv(bulk, into) {
            Ok(0) => {
                self.gone = true;
                Ok(0)
            }
            Ok(read) => {
                self.bulk_drained = read < into.len();
                Ok(read)
            }
            Err(error) if would_block(&error) || error.kind() == io::ErrorKind::NotConnected => {
                self.bulk_drained = true;
                Ok(0)
            }
            Err(error) => self.refused(error).map(|()| 0),
        }
    }

    fn flush(&mut self) -> Result<bool, WireFault> {
        while self.unsent_at < self.unsent.len() {
            match send(&self.stream, &self.unsent[self.unsent_at..]) {
                Ok(sent) => self.unsent_at += sent,
                Err(error) if would_block(&error) => return Ok(false),
                Err(error) => return self.refused(error).map(|()| false),
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

    fn cork(&mut self, corked: bool) {
        self.corked = corked;
    }

    fn arm(&mut self, want: Want) -> Result<bool, WireFault> {
        // Both sockets are registered edge-triggered: what comes after an empty read wakes us, and
        // so does room after a full write.
        let bulk_there = want.bulk_in && self.bulk.is_some() && !self.bulk_drained;
        Ok(self.drained && !self.gone && !bulk_there && self.frame_next()?.is_none())
    }

    fn shutdown(&mut self) {
        if !self.shut {
            self.shut = true;
            // A socket that is no longer connected has nothing to shut down.
            let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
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
