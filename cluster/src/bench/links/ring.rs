//! The floor of streams in shared memory: a bare ring.

use praas_transport::bare::BareRing;

use super::wait::{LOOKS, Wait};
use crate::bench::control::Watch;
use crate::bench::{Bench, BenchError};

/// Messages of no more than so many bytes go through the ring also where one copy would do:
/// telling the other side where to copy from would take longer.
pub(super) const INLINE_BYTES_MAX: usize = 4096;
/// Messages of no more than so many bytes are written and read by many.
const SMALL_BYTES_MAX: usize = 512;
/// Bytes of a piece of what is larger.
const PIECE_BYTES: usize = 32 << 10;
/// Bytes of small messages after which the other side is told.
const STEP_BYTES: usize = 512;
const WORD: [u8; 8] = [1; 8];

/// One side of a bare ring.
pub(super) struct Ring {
    ends: Ends,
    watch: Watch,
}

/// The ring, and what goes into it and comes out of it.
struct Ends {
    ring: BareRing,
    out: Vec<u8>,
    into: Vec<u8>,
}

/// Messages still to be sent or received, and bytes of the current one that are through.
struct Left {
    messages: usize,
    at: usize,
}

impl Left {
    fn new(messages: usize) -> Self {
        Self { messages, at: 0 }
    }
}

/// How messages move.
#[derive(Clone, Copy)]
pub(super) struct Way {
    /// Bytes of a message.
    pub(super) bytes: usize,
    /// Copied once, out of the memory of the other side.
    pub(super) one_copy: bool,
}

impl Ends {
    /// Sends what goes without waiting; whether anything did.
    #[inline(always)]
    fn send_some(&mut self, way: Way, left: &mut Left) -> bool {
        if left.messages == 0 {
            return false;
        }
        if way.one_copy {
            let sent = self.ring.push(&WORD) > 0;
            self.ring.flush();
            left.messages -= usize::from(sent);
            return sent;
        }
        if way.bytes <= SMALL_BYTES_MAX && left.at == 0 {
            let count = self.ring.push_each(&self.out[..way.bytes], left.messages);
            left.messages -= count;
            if left.messages == 0 {
                self.ring.flush();
            }
            if count > 0 {
                return true;
            }
        }
        let end = way.bytes.min(left.at + PIECE_BYTES);
        let count = self.ring.push(&self.out[left.at..end]);
        left.at += count;
        if left.at == way.bytes {
            (left.messages, left.at) = (left.messages - 1, 0);
            if left.messages == 0 {
                self.ring.flush();
            }
        }
        count > 0
    }

    /// Receives what is there; whether anything was.
    #[inline(always)]
    fn take_some(&mut self, way: Way, left: &mut Left) -> bool {
        if left.messages == 0 {
            return false;
        }
        if way.one_copy {
            let there = self.ring.pull(&mut [0; WORD.len()]) > 0;
            if there {
                self.ring.area_read(&mut self.into[..way.bytes]);
                left.messages -= 1;
            }
            return there;
        }
        if way.bytes <= SMALL_BYTES_MAX && left.at == 0 {
            let count = self
                .ring
                .pull_each(&mut self.into[..way.bytes], left.messages);
            left.messages -= count;
            if count > 0 {
                return true;
            }
        }
        let end = way.bytes.min(left.at + PIECE_BYTES);
        let count = self.ring.pull(&mut self.into[left.at..end]);
        left.at += count;
        if left.at == way.bytes {
            (left.messages, left.at) = (left.messages - 1, 0);
        }
        count > 0
    }
}

impl Ring {
    pub(super) fn new(ring: BareRing, watch: Watch, bytes_max: usize) -> Self {
        ring.area_fill(1);
        // Whole words go through the ring.
        let bytes = bytes_max.next_multiple_of(WORD.len());
        let ends = Ends {
            ring,
            out: vec![1; bytes],
            into: vec![0; bytes],
        };
        Self { ends, watch }
    }

    fn way_set(&mut self, way: Way) -> Way {
        let inline = way.bytes <= INLINE_BYTES_MAX;
        self.ends.ring.step_set(match inline {
            true => STEP_BYTES,
            false => PIECE_BYTES,
        });
        Way {
            bytes: way.bytes.next_multiple_of(WORD.len()),
            one_copy: way.one_copy && !inline,
        }
    }

    /// Moves so many messages each way.
    #[inline]
    fn move_all(&mut self, way: Way, out: usize, into: usize) -> Result<(), BenchError> {
        let (mut out, mut into) = (Left::new(out), Left::new(into));
        let Self { ends, watch } = self;
        let mut wait = Wait::new(LOOKS, watch);
        while out.messages > 0 || into.messages > 0 {
            let moved = ends.send_some(way, &mut out) | ends.take_some(way, &mut into);
            if !moved {
                wait.turn()?;
            }
        }
        Ok(())
    }

    /// A word that tells that all is through.
    const ACK: Way = Way {
        bytes: WORD.len(),
        one_copy: false,
    };

    /// Waits until the other side has begun.
    pub(super) fn begin(&mut self) -> Result<(), BenchError> {
        self.move_all(Self::ACK, 0, 1)
    }

    /// Tells the other side that this one has begun.
    pub(super) fn begun(&mut self) -> Result<(), BenchError> {
        self.move_all(Self::ACK, 1, 0)
    }

    /// One operation on the other side's memory.
    #[inline]
    pub(super) fn operation(&mut self, bench: Bench, bytes: usize) {
        let Ends { ring, out, into } = &mut self.ends;
        match bench {
            Bench::Put => ring.area_write(&out[..bytes]),
            Bench::FetchAdd => drop(std::hint::black_box(ring.area_fetch_add(1))),
            Bench::CompareSwap => drop(std::hint::black_box(ring.area_compare_swap(0, 0))),
            _ => ring.area_read(&mut into[..bytes]),
        }
    }

    /// Sends a window, receives as many if it goes both ways, and waits for the other side to say
    /// that it has all.
    pub(super) fn window(
        &mut self,
        way: Way,
        window: usize,
        both_ways: bool,
    ) -> Result<(), BenchError> {
        let way = self.way_set(way);
        self.move_all(way, window, if both_ways { window } else { 0 })?;
        self.move_all(Self::ACK, 0, 1)
    }

    /// The other side of [`Ring::begin`] and of so many windows.
    pub(super) fn windows_serve(
        &mut self,
        way: Way,
        window: usize,
        both_ways: bool,
        count: u64,
    ) -> Result<(), BenchError> {
        let way = self.way_set(way);
        self.begun()?;
        for _ in 0..count {
            self.move_all(way, if both_ways { window } else { 0 }, window)?;
            self.move_all(Self::ACK, 1, 0)?;
        }
        Ok(())
    }
}
