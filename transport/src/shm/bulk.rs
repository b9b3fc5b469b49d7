//! The bulk ring: a stream of bytes from one side to the other.
//!
//! ```text
//!          head (reader's)         tail (writer's)
//!            v                       v
//!   ... free | written, to be read   | free ...      both count bytes since the start
//! ```
//!
//! The writer copies and then tells its tail; the reader copies and then tells its head. Each looks
//! at the other's word only when what it knows of it says that there is nothing to do.

use std::sync::Arc;

use super::segment::{Layout, Word};
use crate::buf::mapping::Mapping;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wire::WireError;

/// Bytes after which the other side is told.
pub(super) const BULK_STEP: usize = 64 << 10;

/// The memory under a bulk ring. Copies are such that a peer which writes at the same time can
/// spoil the bytes, and nothing else.
pub(super) trait BulkMemory {
    /// Bytes of the ring, a power of two.
    fn capacity(&self) -> usize;
    /// Bytes written since the start.
    fn tail(&self) -> &AtomicU64;
    /// Bytes read since the start.
    fn head(&self) -> &AtomicU64;
    /// Copies into the ring at an offset; the range does not wrap.
    fn write(&self, at: usize, bytes: &[u8]);
    /// Copies out of the ring at an offset; the range does not wrap.
    fn read(&self, at: usize, into: &mut [u8]);
}

/// A bulk ring in a segment.
pub(super) struct SegmentBulk {
    segment: Arc<Mapping>,
    layout: Layout,
    direction: usize,
}

impl SegmentBulk {
    pub(super) fn new(segment: &Arc<Mapping>, layout: Layout, direction: usize) -> Self {
        Self {
            segment: Arc::clone(segment),
            layout,
            direction,
        }
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        self.segment
            .word64(self.layout.word_at(self.direction, word))
    }
}

impl BulkMemory for SegmentBulk {
    fn capacity(&self) -> usize {
        self.layout.bulk_bytes
    }

    fn tail(&self) -> &AtomicU64 {
        self.word(Word::BulkTail)
    }

    fn head(&self) -> &AtomicU64 {
        self.word(Word::BulkHead)
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let base = self.layout.bulk_at(self.direction);
        self.segment.write(base + at, bytes);
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        let base = self.layout.bulk_at(self.direction);
        self.segment.read(base + at, into);
    }
}

/// The writing side.
pub(super) struct BulkWriter<M> {
    memory: M,
    tail: u64,
    head_seen: u64,
}

impl<M: BulkMemory> BulkWriter<M> {
    pub(super) fn new(memory: M) -> Self {
        Self {
            memory,
            tail: 0,
            head_seen: 0,
        }
    }

    /// Bytes that may be written now.
    ///
    /// # Errors
    /// The reader claims to have read what was never written.
    pub(super) fn room(&mut self) -> Result<usize, WireError> {
        let capacity = self.memory.capacity() as u64;
        if self.tail - self.head_seen == capacity {
            let head = self.memory.head().load(Ordering::Acquire);
            if head < self.head_seen || head > self.tail {
                return Err(WireError::Malformed {
                    what: "bulk ring's head is out of range",
                });
            }
            self.head_seen = head;
        }
        Ok((capacity - (self.tail - self.head_seen)) as usize)
    }

    /// Writes what there is room for; how many bytes.
    ///
    /// # Errors
    /// As [`BulkWriter::room`].
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, WireError> {
        let capacity = self.memory.capacity();
        let mut written = 0;
        while written < bytes.len() {
            let room = self.room()?;
            if room == 0 {
                break;
            }
            let at = (self.tail as usize) & (capacity - 1);
            let rest = bytes.len() - written;
            let count = room.min(rest).min(capacity - at).min(BULK_STEP);
            self.memory.write(at, &bytes[written..written + count]);
            written += count;
            self.tail += count as u64;
            self.memory.tail().store(self.tail, Ordering::Release);
        }
        Ok(written)
    }
}

/// The reading side.
pub(super) struct BulkReader<M> {
    memory: M,
    head: u64,
    tail_seen: u64,
    head_told: u64,
}

impl<M: BulkMemory> BulkReader<M> {
    pub(super) fn new(memory: M) -> Self {
        Self {
            memory,
            head: 0,
            tail_seen: 0,
            head_told: 0,
        }
    }

    /// Bytes that are there.
    ///
    /// # Errors
    /// The writer claims to have written more than there was room for.
    pub(super) fn there(&mut self) -> Result<usize, WireError> {
        if self.tail_seen == self.head {
            let tail = self.memory.tail().load(Ordering::Acquire);
            let capacity = self.memory.capacity() as u64;
            if tail < self.tail_seen || tail - self.head > capacity {
                return Err(WireError::Malformed {
                    what: "bulk ring's tail is out of range",
                });
            }
            self.tail_seen = tail;
        }
        Ok((self.tail_seen - self.head) as usize)
    }

    /// Reads a step: how many bytes, and whether the writer was told of it.
    ///
    /// # Errors
    /// As [`BulkReader::there`].
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<(usize, bool), WireError> {
        let capacity = self.memory.capacity();
        let at = (self.head as usize) & (capacity - 1);
        let there = self.there()?;
        let count = there.min(into.len()).min(capacity - at).min(BULK_STEP);
        if count > 0 {
            self.memory.read(at, &mut into[..count]);
            self.head += count as u64;
        }
        let untold = self.head - self.head_told;
        let tell = untold >= BULK_STEP as u64 || (untold > 0 && self.head == self.tail_seen);
        if tell {
            self.head_told = self.head;
            self.memory.head().store(self.head, Ordering::Release);
        }
        Ok((count, tell))
    }
}

#[cfg(all(test, praas_loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;

    use super::*;

    struct Byte(UnsafeCell<u8>);

    // SAFETY: one side has a byte at a time, which is what the model is to show: loom checks every
    // access.
    unsafe impl Sync for Byte {}

    struct Bytes {
        bytes: Vec<Byte>,
        tail: AtomicU64,
        head: AtomicU64,
    }

    impl BulkMemory for Arc<Bytes> {
        fn capacity(&self) -> usize {
            self.bytes.len()
        }

        fn tail(&self) -> &AtomicU64 {
            &self.tail
        }

        fn head(&self) -> &AtomicU64 {
            &self.head
        }

        fn write(&self, at: usize, bytes: &[u8]) {
            for (byte, value) in self.bytes[at..].iter().zip(bytes) {
                // SAFETY: loom has checked that nobody else has the byte now.
                byte.0.with_mut(|byte| unsafe { *byte = *value });
            }
        }

        fn read(&self, at: usize, into: &mut [u8]) {
            for (byte, value) in self.bytes[at..].iter().zip(into) {
                // SAFETY: loom has checked that nobody writes the byte now.
                *value = byte.0.with(|byte| unsafe { *byte });
            }
        }
    }

    /// Two threads, a ring of two bytes, two laps and a half.
    #[test]
    fn loom_bulk_ring_passes_bytes_whole_and_in_order() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let bytes = Arc::new(Bytes {
                bytes: (0..2).map(|_| Byte(UnsafeCell::new(0))).collect(),
                tail: AtomicU64::new(0),
                head: AtomicU64::new(0),
            });
            let mut writer = BulkWriter::new(Arc::clone(&bytes));
            let mut reader = BulkReader::new(bytes);
            let sent = [1, 2, 3, 4, 5];
            let thread = loom::thread::spawn(move || {
                let mut written = 0;
                while written < sent.len() {
                    match writer.write(&sent[written..]).unwrap() {
                        0 => loom::thread::yield_now(),
                        count => written += count,
                    }
                }
            });
            let mut got = [0; 5];
            let mut read = 0;
            while read < got.len() {
                match reader.read(&mut got[read..]).unwrap().0 {
                    0 => loom::thread::yield_now(),
                    count => read += count,
                }
            }
            assert_eq!(got, sent);
            thread.join().unwrap();
        });
    }
}
