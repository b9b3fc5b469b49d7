//! The limit: two programs that do the least possible to pass bytes through shared memory.
//!
//! ```text
//!   half 0 (side 0 writes)                  half 1 (side 1 writes)
//!   | flag | up to 56 bytes |               | flag | up to 56 bytes |
//!   | more bytes ...        |               | more bytes ...        |
//!
//!   side 0:  copy half 1 to half 0, raise flag 0        side 1:  see flag 0,
//!                     see flag 1        <------------            copy half 0 to half 1, raise it
//! ```
//!
//! This is what latencies over shared memory are measured against, and nothing else is made of it:
//! one flag, one copy of the payload on its way, both sides trusted, no framing, no sleeping. The
//! copy takes what the other side wrote as its source, so that the bytes do cross between the
//! processors' caches each time; up to 56 of them travel in the flag's own line.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::mm::ProtFlags;

use super::segment::Mapping;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Bytes of payload beside the flag.
const BESIDE_BYTES: usize = 56;
const LINE_BYTES: usize = 64;

/// One side of the bare ping-pong.
pub struct Bare {
    memory: Mapping,
    own: usize,
    other: usize,
    bytes_max: usize,
    sent: u64,
    received: u64,
}

impl std::fmt::Debug for Bare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bare")
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

/// Bytes of a half: a page for the first line, and whole pages for the rest.
fn half_bytes(bytes_max: usize) -> usize {
    (LINE_BYTES + bytes_max).next_multiple_of(4096) + 4096
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
            sent: 0,
            received: 0,
        })
    }

    fn flag(&self, half: usize) -> &AtomicU64 {
        self.memory.word64(half)
    }

    /// Copies `bytes` bytes out of the other side's half and raises the flag; `last` goes with it.
    #[inline]
    pub fn send(&mut self, bytes: usize, last: bool) {
        assert!(bytes <= self.bytes_max);
        let at = match bytes <= BESIDE_BYTES {
            true => 8,
            false => LINE_BYTES,
        };
        self.memory
            .copy_within(self.other + at, self.own + at, bytes);
        self.sent += 1;
        let value = self.sent << 1 | u64::from(last);
        self.flag(self.own).store(value, Ordering::Release);
    }

    /// Whether the other side has sent; and if so, whether it said that this was the last.
    #[inline]
    pub fn receive(&mut self) -> Option<bool> {
        let value = self.flag(self.other).load(Ordering::Acquire);
        if value >> 1 == self.received {
            return None;
        }
        self.received += 1;
        Some(value & 1 == 1)
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_back_and_forth() {
        for bytes in [0, 8, 56, 57, 5000] {
            let (fd, mut one) = Bare::create(5000).unwrap();
            assert!(Bare::open(fd.as_fd(), 9999).is_err());
            let mut two = Bare::open(fd.as_fd(), 5000).unwrap();
            let at = if bytes <= BESIDE_BYTES { 8 } else { LINE_BYTES };
            one.memory.write(one.other + at, &vec![7; bytes]);
            assert_eq!(two.receive(), None);
            one.send(bytes, false);
            assert_eq!(two.receive(), Some(false));
            assert_eq!(two.receive(), None);
            two.send(bytes, true);
            assert_eq!(one.receive(), Some(true));
            let mut got = vec![0; bytes];
            one.memory.read(one.own + at, &mut got);
            assert_eq!(got, vec![7; bytes]);
        }
    }
}
