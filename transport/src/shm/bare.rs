//! The limit: two programs that do the least possible to pass bytes through shared memory.
//!
//! ```text
//!   half 0 (side 0 writes)                  half 1 (side 1 writes)
//!   | flag | up to 56 bytes |               | flag | up to 56 bytes |
//!   | more bytes ...        |               | more bytes ...        |
//!
//!   side 0:  bytes to half 0, raise flag 0              side 1:  see flag 0, take the bytes,
//!                     see flag 1        <------------            bytes to half 1, raise flag 1
//! ```
//!
//! This is what latencies over shared memory are measured against, and nothing else is made of it:
//! one flag, both sides trusted, no framing, no sleeping. Up to 56 bytes travel in the flag's own
//! line. Up to a page is copied once on its way: from where the other side wrote it to where this
//! one writes, so that the bytes do cross between the processors' caches each time. More goes
//! through private memory at both ends, by pieces, the flag raised for each: one side writes while
//! the other reads, which is faster than any single copy between the two. Pieces go round through
//! a megabyte, since what the other processor has just read is slow to write again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::mm::ProtFlags;

pub use super::bare_ring::BareRing;
use crate::buf::mapping::Mapping;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Bytes of payload beside the flag.
const BESIDE_BYTES: usize = 56;
const LINE_BYTES: usize = 64;
/// Up to this many bytes a single copy between the halves is the fastest.
const SINGLE_BYTES_MAX: usize = 4096;
/// Where pieces begin in a half.
const PIECES_AT: usize = 2 * SINGLE_BYTES_MAX;
/// Bytes of a piece of what is larger.
const PIECE_BYTES: usize = 32 << 10;

/// One side of the bare ping-pong.
pub struct Bare {
    memory: Mapping,
    own: usize,
    other: usize,
    bytes_max: usize,
    /// What goes out in pieces, and where what comes so is put.
    private: Vec<u8>,
    /// Raises of the flag, ours and those that were seen.
    sent: u64,
    received: u64,
    /// Pieces sent and received, and bytes of a message in pieces that have come.
    pieces_sent: usize,
    pieces_received: usize,
    got: usize,
}

impl std::fmt::Debug for Bare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bare")
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

/// Places for pieces in a half: enough for the largest message, and no fewer than a megabyte.
fn places(bytes_max: usize) -> usize {
    bytes_max.max(1 << 20).div_ceil(PIECE_BYTES)
}

/// Bytes of a half: what is sent in one, and the places of pieces behind it.
fn half_bytes(bytes_max: usize) -> usize {
    PIECES_AT + places(bytes_max) * PIECE_BYTES
}

impl Bare {
    /// Makes the memory; the descriptor is for the other side.
    ///
    /// # Errors
    /// The system refuses a memfd or a mapping.
    pub fn create(bytes_max: usize) -> io::Result<(OwnedFd, Self)> {
        let fd = memfd_create("praas-bare", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, 2 * half_bytes(bytes_max) as u64)?;
        let side = Self::map(fd.as_fd(), bytes_max, 0)?;
        Ok((fd, side))
    }

    /// Maps the memory that the other side made.
    ///
    /// # Errors
    /// It is not what [`Bare::create`] makes for this size.
    pub fn open(fd: BorrowedFd<'_>, bytes_max: usize) -> io::Result<Self> {
        match fstat(fd)?.st_size as usize == 2 * half_bytes(bytes_max) {
            true => Self::map(fd, bytes_max, 1),
            false => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }

    fn map(fd: BorrowedFd<'_>, bytes_max: usize, side: usize) -> io::Result<Self> {
        let half = half_bytes(bytes_max);
        Ok(Self {
            memory: Mapping::map(fd, 2 * half, ProtFlags::READ | ProtFlags::WRITE)?,
            own: side * half,
            other: (1 - side) * half,
            bytes_max,
            private: vec![1; bytes_max],
            sent: 0,
            received: 0,
            pieces_sent: 0,
            pieces_received: 0,
            got: 0,
        })
    }

    fn flag(&self, half: usize) -> &AtomicU64 {
        self.memory.word64(half)
    }

    fn piece_at(&self, number: usize) -> usize {
        PIECES_AT + number % places(self.bytes_max) * PIECE_BYTES
    }

    #[inline]
    fn raise(&mut self, last: bool) {
        self.sent += 1;
        let value = self.sent << 1 | u64::from(last);
        self.flag(self.own).store(value, Ordering::Release);
    }

    /// Sends `bytes` bytes; `last` goes with them.
    ///
    /// # Panics
    /// If they are more than the memory was made for.
    #[inline]
    pub fn send(&mut self, bytes: usize, last: bool) {
        assert!(bytes <= self.bytes_max);
        let at = match bytes <= BESIDE_BYTES {
            true => 8,
            false => LINE_BYTES,
        };
        if bytes <= SINGLE_BYTES_MAX {
            self.memory
                .copy_within(self.other + at, self.own + at, bytes);
            return self.raise(last);
        }
        for start in (0..bytes).step_by(PIECE_BYTES) {
            let end = bytes.min(start + PIECE_BYTES);
            let at = self.own + self.piece_at(self.pieces_sent);
            self.memory.write(at, &self.private[start..end]);
            self.pieces_sent += 1;
            self.raise(last);
        }
    }

    /// Whether the other side has sent `bytes` bytes; and if so, whether these were the last. Takes
    /// what has come of them.
    #[inline]
    pub fn receive(&mut self, bytes: usize) -> Option<bool> {
        let value = self.flag(self.other).load(Ordering::Acquire);
        if value >> 1 == self.received {
            return None;
        }
        if bytes <= SINGLE_BYTES_MAX {
            self.received += 1;
            return Some(value & 1 == 1);
        }
        self.pieces_take(bytes, value)
    }

    fn pieces_take(&mut self, bytes: usize, value: u64) -> Option<bool> {
        while value >> 1 != self.received && self.got < bytes {
            let end = bytes.min(self.got + PIECE_BYTES);
            let at = self.other + self.piece_at(self.pieces_received);
            self.memory.read(at, &mut self.private[self.got..end]);
            self.pieces_received += 1;
            self.received += 1;
            self.got = end;
        }
        if self.got < bytes {
            return None;
        }
        self.got = 0;
        Some(value & 1 == 1)
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_back_and_forth() {
        for bytes in [0, 8, 56, 57, 4096, 4097, 100_000] {
            let (fd, mut one) = Bare::create(100_000).unwrap();
            assert!(Bare::open(fd.as_fd(), 2 << 20).is_err());
            let mut two = Bare::open(fd.as_fd(), 100_000).unwrap();
            let at = if bytes <= BESIDE_BYTES { 8 } else { LINE_BYTES };
            one.memory.write(one.other + at, &vec![7; bytes]);
            one.private.fill(7);
            assert_eq!(two.receive(bytes), None);
            one.send(bytes, false);
            assert_eq!(two.receive(bytes), Some(false));
            assert_eq!(two.receive(bytes), None);
            two.send(bytes, true);
            assert_eq!(one.receive(bytes), Some(true));
            if bytes > SINGLE_BYTES_MAX {
                assert_eq!(two.private[..bytes], vec![7; bytes]);
                continue;
            }
            let mut got = vec![0; bytes];
            one.memory.read(one.own + at, &mut got);
            assert_eq!(got, vec![7; bytes]);
        }
    }
}
