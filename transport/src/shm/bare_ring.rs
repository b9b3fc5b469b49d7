//! The limit for streams: bytes through a ring of shared memory, or read where the other side has
//! them, with nothing around.
//!
//! ```text
//!   | tail 0 | head 0 | tail 1 | head 1 |   counters, each in lines of its own
//!   | ring 0 (side 0 writes) | ring 1 (side 1 writes) |
//!   | area 0 (side 0's memory) | area 1 (side 1's memory) |
//!
//!   two copies:  private memory --> ring --> private memory      one side writes, the other reads
//!   one copy:    area -----------------------> private memory    the ring says when
//! ```
//!
//! Counters are told to the other side every so many bytes, not for each message: that is what
//! makes a ring fast, and what a program that only wants to move bytes would do. Both sides trust
//! each other; nothing but measurements is made of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::mm::ProtFlags;

use crate::buf::mapping::Mapping;
use crate::sync::atomic::Ordering;

/// Bytes of a ring. What the other processor has just read is slow to write again, so it is larger
/// than what a processor's own cache holds.
const RING_BYTES: usize = 4 << 20;
/// Bytes of the counters of one direction; far enough apart that no two share a pair of lines.
const COUNTER_BYTES: usize = 256;
const COUNTERS_BYTES: usize = 4096;
/// Bytes written or read after which the other side is told, at most.
const STEP_BYTES_MAX: usize = 32 << 10;
const WORD_BYTES: usize = 8;

/// One side of a bare stream.
pub struct BareRing {
    memory: Mapping,
    side: usize,
    area_bytes: usize,
    step: u64,
    /// Bytes written, how many of them the other side knows of, and how many it has read.
    tail: u64,
    tail_told: u64,
    head_seen: u64,
    /// Bytes read, how many of them the other side knows of, and how many there are.
    head: u64,
    head_told: u64,
    tail_seen: u64,
}

impl std::fmt::Debug for BareRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BareRing")
            .field("area_bytes", &self.area_bytes)
            .finish_non_exhaustive()
    }
}

fn area_bytes_whole(area_bytes: usize) -> usize {
    area_bytes.max(1).next_multiple_of(4096)
}

fn memory_bytes(area_bytes: usize) -> usize {
    COUNTERS_BYTES + 2 * RING_BYTES + 2 * area_bytes_whole(area_bytes)
}

impl BareRing {
    /// Makes the memory, with areas of so many bytes; the descriptor is for the other side.
    ///
    /// # Errors
    /// The system refuses a memfd or a mapping.
    pub fn create(area_bytes: usize) -> io::Result<(OwnedFd, Self)> {
        let fd = memfd_create("praas-bare-ring", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, memory_bytes(area_bytes) as u64)?;
        let side = Self::map(fd.as_fd(), area_bytes, 0)?;
        Ok((fd, side))
    }

    /// Maps the memory that the other side made.
    ///
    /// # Errors
    /// It is not what [`BareRing::create`] makes for this size.
    pub fn open(fd: BorrowedFd<'_>, area_bytes: usize) -> io::Result<Self> {
        match fstat(fd)?.st_size as usize == memory_bytes(area_bytes) {
            true => Self::map(fd, area_bytes, 1),
            false => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }

    fn map(fd: BorrowedFd<'_>, area_bytes: usize, side: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        Ok(Self {
            memory: Mapping::map(fd, memory_bytes(area_bytes), protection)?,
            side,
            area_bytes,
            step: STEP_BYTES_MAX as u64,
            tail: 0,
            tail_told: 0,
            head_seen: 0,
            head: 0,
            head_told: 0,
            tail_seen: 0,
        })
    }

    /// From now on counters are told every so many bytes, and by [`BareRing::flush`].
    pub fn step_set(&mut self, bytes: usize) {
        self.step = bytes.clamp(WORD_BYTES, STEP_BYTES_MAX) as u64;
    }

    fn tail_at(direction: usize) -> usize {
        2 * direction * COUNTER_BYTES
    }

    fn head_at(direction: usize) -> usize {
        Self::tail_at(direction) + COUNTER_BYTES
    }

    #[inline]
    fn ring_at(direction: usize, count: u64) -> usize {
        COUNTERS_BYTES + direction * RING_BYTES + count as usize % RING_BYTES
    }

    fn area_at(&self, side: usize) -> usize {
        COUNTERS_BYTES + 2 * RING_BYTES + side * area_bytes_whole(self.area_bytes)
    }

    /// Writes into the ring: bytes that found room.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let mut room = RING_BYTES - (self.tail - self.head_seen) as usize;
        if room < bytes.len() {
            let head = self.memory.word64(Self::head_at(self.side));
            self.head_seen = head.load(Ordering::Acquire);
            room = RING_BYTES - (self.tail - self.head_seen) as usize;
        }
        let at = Self::ring_at(self.side, self.tail);
        let end = COUNTERS_BYTES + (self.side + 1) * RING_BYTES;
        let count = bytes.len().min(room).min(end - at);
        self.memory.write(at, &bytes[..count]);
        self.tail += count as u64;
        if self.tail - self.tail_told >= self.step {
            self.tail_tell();
        }
        count
    }

    /// Reads out of the ring: bytes that were there.
    #[inline]
    pub fn pull(&mut self, into: &mut [u8]) -> usize {
        let direction = 1 - self.side;
        let mut there = (self.tail_seen - self.head) as usize;
        if there < into.len() {
            let tail = self.memory.word64(Self::tail_at(direction));
            self.tail_seen = tail.load(Ordering::Acquire);
            there = (self.tail_seen - self.head) as usize;
        }
        let at = Self::ring_at(direction, self.head);
        let end = COUNTERS_BYTES + (direction + 1) * RING_BYTES;
        let count = into.len().min(there).min(end - at);
        self.memory.read(at, &mut into[..count]);
        self.head += count as u64;
        if self.head - self.head_told >= self.step {
            self.head_told = self.head;
            let head = self.memory.word64(Self::head_at(direction));
            head.store(self.head, Ordering::Release);
        }
        count
    }

    /// Writes the same small message again and again, at most so often: how many found room before
    /// the ring's end. The loop is the caller's in other programs; here it keeps calls out of it.
    #[inline]
    pub fn push_each(&mut self, message: &[u8], most: usize) -> usize {
        let bytes = message.len();
        let mut room = RING_BYTES - (self.tail - self.head_seen) as usize;
        if room < bytes {
            let head = self.memory.word64(Self::head_at(self.side));
            self.head_seen = head.load(Ordering::Acquire);
            room = RING_BYTES - (self.tail - self.head_seen) as usize;
        }
        let at = Self::ring_at(self.side, self.tail);
        let end = COUNTERS_BYTES + (self.side + 1) * RING_BYTES;
        // No more than a step, so that the other side learns of it.
        let count = room.min(end - at).min(self.step as usize) / bytes;
        let count = count.min(most);
        match <&[u8; WORD_BYTES]>::try_from(message) {
            Ok(word) => {
                let word = u64::from_ne_bytes(*word);
                for at in (at..).step_by(WORD_BYTES).take(count) {
                    self.memory.word64(at).store(word, Ordering::Relaxed);
                }
            }
            Err(_) => {
                for at in (at..).step_by(bytes).take(count) {
                    self.memory.write(at, message);
                }
            }
        }
        self.tail += (count * bytes) as u64;
        if self.tail - self.tail_told >= self.step {
            self.tail_tell();
        }
        count
    }

    /// Reads small messages that are there, at most so many, each to the same place: how many.
    #[inline]
    pub fn pull_each(&mut self, into: &mut [u8], most: usize) -> usize {
        let (direction, bytes) = (1 - self.side, into.len());
        let mut there = (self.tail_seen - self.head) as usize;
        if there < bytes {
            let tail = self.memory.word64(Self::tail_at(direction));
            self.tail_seen = tail.load(Ordering::Acquire);
            there = (self.tail_seen - self.head) as usize;
        }
        let at = Self::ring_at(direction, self.head);
        let end = COUNTERS_BYTES + (direction + 1) * RING_BYTES;
        let count = there.min(end - at).min(self.step as usize) / bytes;
        let count = count.min(most);
        match <&mut [u8; WORD_BYTES]>::try_from(&mut *into) {
            Ok(into) => {
                for at in (at..).step_by(WORD_BYTES).take(count) {
                    let word = self.memory.word64(at).load(Ordering::Relaxed);
                    *std::hint::black_box(&mut *into) = word.to_ne_bytes();
                }
            }
            Err(_) => {
                for at in (at..).step_by(bytes).take(count) {
                    self.memory.read(at, into);
                }
            }
        }
        self.head += (count * bytes) as u64;
        if self.head - self.head_told >= self.step {
            self.head_told = self.head;
            let head = self.memory.word64(Self::head_at(direction));
            head.store(self.head, Ordering::Release);
        }
        count
    }

    #[inline]
    fn tail_tell(&mut self) {
        self.tail_told = self.tail;
        let tail = self.memory.word64(Self::tail_at(self.side));
        tail.store(self.tail, Ordering::Release);
    }

    /// Tells the other side of all that was written.
    #[inline]
    pub fn flush(&mut self) {
        if self.tail_told != self.tail {
            self.tail_tell();
        }
    }

    /// Copies what the other side's area begins with.
    ///
    /// # Panics
    /// If it is shorter.
    #[inline]
    pub fn area_read(&self, into: &mut [u8]) {
        assert!(into.len() <= self.area_bytes);
        self.memory.read(self.area_at(1 - self.side), into);
    }

    /// Copies to where the other side's area begins.
    ///
    /// # Panics
    /// If it is shorter.
    #[inline]
    pub fn area_write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.area_bytes);
        self.memory.write(self.area_at(1 - self.side), bytes);
    }

    /// Fills this side's area.
    pub fn area_fill(&self, value: u8) {
        let page = [value; 4096];
        for at in (0..area_bytes_whole(self.area_bytes)).step_by(page.len()) {
            self.memory.write(self.area_at(self.side) + at, &page);
        }
    }

    /// Adds to the first word of the other side's area: its old value.
    #[inline]
    pub fn area_fetch_add(&self, add: u64) -> u64 {
        let word = self.memory.word64(self.area_at(1 - self.side));
        word.fetch_add(add, Ordering::SeqCst)
    }

    /// Sets the first word of the other side's area if it is `expected`: its old value.
    #[inline]
    pub fn area_compare_swap(&self, expected: u64, new: u64) -> u64 {
        let word = self.memory.word64(self.area_at(1 - self.side));
        let swapped = word.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst);
        swapped.unwrap_or_else(|old| old)
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;

    fn pair() -> (BareRing, BareRing) {
        let (fd, one) = BareRing::create(10_000).unwrap();
        assert!(BareRing::open(fd.as_fd(), 100_000).is_err());
        (one, BareRing::open(fd.as_fd(), 10_000).unwrap())
    }

    #[test]
    fn a_stream_arrives_as_it_was_written_through_many_laps() {
        let (mut one, mut two) = pair();
        for step in [8, 4096, STEP_BYTES_MAX] {
            one.step_set(step);
            two.step_set(step);
            let mut random = fastrand::Rng::with_seed(step as u64);
            let (mut sent, mut got) = (0_u64, 0_u64);
            let total = 2 * RING_BYTES as u64;
            while got < total {
                let words = random.u64(1..5000);
                let out: Vec<u8> = (sent..sent + words).flat_map(u64::to_le_bytes).collect();
                let pushed = one.push(&out);
                assert!(pushed.is_multiple_of(WORD_BYTES));
                sent += (pushed / WORD_BYTES) as u64;
                one.flush();
                let mut into = vec![0; random.usize(1..5000) * WORD_BYTES];
                let pulled = two.pull(&mut into);
                for word in into[..pulled].chunks(WORD_BYTES) {
                    assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), got);
                    got += 1;
                }
                if got * WORD_BYTES as u64 >= total {
                    break;
                }
            }
            // The rest, so that the next turn begins with an empty ring.
            while two.pull(&mut [0; 8]) > 0 {}
        }
    }

    #[test]
    fn small_messages_arrive_each_by_each() {
        let (mut one, mut two) = pair();
        for bytes in [8, 24, 512] {
            one.step_set(512);
            two.step_set(512);
            let (mut sent, mut got) = (0, 0);
            let total = 3 * RING_BYTES / bytes;
            let mut into = vec![0; bytes];
            while got < total {
                let message = vec![sent as u8; bytes];
                let most = 1.min(total - sent);
                let pushed = one.push_each(&message, most);
                if pushed == 0 && sent < total {
                    // At the end of the ring a message goes in two parts.
                    let part = one.push(&message);
                    assert_eq!(part + one.push(&message[part..]), bytes);
                    sent += 1;
                }
                sent += pushed;
                one.flush();
                match two.pull_each(&mut into, 1) {
                    0 => {
                        let part = two.pull(&mut into);
                        assert_eq!(part + two.pull(&mut into[part..]), bytes);
                    }
                    pulled => assert_eq!(pulled, 1),
                }
                assert!(into.iter().all(|byte| *byte == got as u8), "{got}");
                got += 1;
            }
            assert_eq!(two.pull_each(&mut into, 1), 0);
        }
        assert!(one.push_each(&[1; 8], 1000) == 512 / 8);
        assert_eq!(two.pull_each(&mut [0; 8], 1000), 512 / 8);
    }

    #[test]
    fn a_full_ring_takes_no_more_and_an_untold_one_gives_nothing() {
        let (mut one, mut two) = pair();
        assert_eq!(one.push(&[1; 8]), 8);
        assert_eq!(two.pull(&mut [0; 8]), 0);
        one.flush();
        assert_eq!(two.pull(&mut [0; 8]), 8);
        assert_eq!(one.push(&vec![2; RING_BYTES - 8]), RING_BYTES - 8);
        one.flush();
        // What was read is told after a step only.
        assert_eq!(one.push(&[3; 8]), 0);
        assert_eq!(two.pull(&mut vec![0; STEP_BYTES_MAX]), STEP_BYTES_MAX);
        assert_eq!(one.push(&[3; 16]), 16);
        assert_eq!(one.push(&[3; 8]), 8);
    }

    #[test]
    fn areas_are_the_other_sides() {
        let (one, two) = pair();
        one.area_fill(7);
        let mut got = [0; 10_000];
        two.area_read(&mut got);
        assert_eq!(got, [7; 10_000]);
        two.area_write(&5_u64.to_le_bytes());
        assert_eq!(two.area_fetch_add(3), 5);
        assert_eq!(two.area_compare_swap(9, 1), 8);
        assert_eq!(two.area_compare_swap(8, 1), 8);
        one.area_read(&mut got);
        assert_eq!(got[0], 0);
        two.area_read(&mut got);
        assert_eq!(got[..8], 1_u64.to_le_bytes());
    }
}
