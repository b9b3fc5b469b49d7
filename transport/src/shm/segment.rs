//! The shared segment of a channel: one sparse, sealed memfd, mapped once by each side.
//!
//! ```text
//!   0          header page: per direction, words of the reader and of the writer, a line each
//!   4096       small eager ring, direction 0        (64 lines)
//!   8192       small eager ring, direction 1
//!   12288      large eager rings, 0 and 1           (untouched until a small one was full)
//!   ...        bulk rings, 0 and 1                  (untouched until the first large message)
//! ```
//!
//! Direction 0 is from the dialler to the listener. Pages never touched cost nothing, so an idle
//! channel is three pages. The seals keep the peer from shrinking the file under us; its content
//! it may change at any time, and nothing read from it is believed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::mm::ProtFlags;

use super::ring::{LINE_BYTES, Lines};
use crate::buf::mapping::{Mapping, copy_in, copy_out, memfd_check, memfd_create_sized};
use crate::sync::atomic::AtomicU64;

const PAGE_BYTES: usize = 4096;
/// Bytes of a small eager ring.
pub(crate) const SMALL_RING_BYTES: usize = 4096;
const SEGMENT_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
/// Distance in the header page between the words of the two directions.
const DIRECTION_BYTES: usize = 1024;

/// Where things lie in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of a large eager ring.
    pub(crate) ring_bytes: usize,
    /// Bytes of a bulk ring.
    pub(crate) bulk_bytes: usize,
}

impl Layout {
    pub(crate) fn segment_bytes(self) -> usize {
        PAGE_BYTES + 2 * (SMALL_RING_BYTES + self.ring_bytes + self.bulk_bytes)
    }

    pub(super) fn small_at(self, direction: usize) -> usize {
        PAGE_BYTES + direction * SMALL_RING_BYTES
    }

    pub(super) fn large_at(self, direction: usize) -> usize {
        PAGE_BYTES + 2 * SMALL_RING_BYTES + direction * self.ring_bytes
    }

    pub(crate) fn bulk_at(self, direction: usize) -> usize {
        PAGE_BYTES + 2 * (SMALL_RING_BYTES + self.ring_bytes) + direction * self.bulk_bytes
    }

    /// The word, alone on its line, of a direction.
    pub(crate) fn word_at(self, direction: usize, word: Word) -> usize {
        direction * DIRECTION_BYTES + word as usize * LINE_BYTES
    }
}

/// The words of the header page, per direction.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
pub(crate) enum Word {
    /// Lines of the small ring that the reader consumed.
    SmallConsumed = 0,
    /// Lines of the large ring that the reader consumed.
    LargeConsumed = 1,
    /// Bytes of the bulk ring that the writer wrote.
    BulkTail = 2,
    /// Bytes of the bulk ring that the reader read.
    BulkHead = 3,
    /// The reader sleeps: ring its doorbell.
    ReaderSleeps = 4,
    /// The writer sleeps for room: ring its doorbell.
    WriterSleeps = 5,
    /// The writer is gone: what it let the reader fetch may be something else by now.
    WriterGone = 6,
}

const _: () = assert!((Word::WriterGone as usize + 1) * LINE_BYTES <= DIRECTION_BYTES);
const _: () = assert!(2 * DIRECTION_BYTES <= PAGE_BYTES);

/// Makes a segment: its descriptor, for the peer, and our mapping.
///
/// # Errors
/// The system refuses a memfd or a mapping.
pub(crate) fn segment_create(layout: Layout) -> io::Result<(OwnedFd, Mapping)> {
    let fd = memfd_create_sized("praas-channel", layout.segment_bytes())?;
    fcntl_add_seals(&fd, SEGMENT_SEALS | SealFlags::SEAL)?;
    let mapping = Mapping::map(
        fd.as_fd(),
        layout.segment_bytes(),
        ProtFlags::READ | ProtFlags::WRITE,
    )?;
    Ok((fd, mapping))
}

/// Maps the segment that the peer made.
///
/// # Errors
/// It is not what [`segment_create`] makes.
pub(crate) fn segment_open(fd: OwnedFd, layout: Layout) -> io::Result<Mapping> {
    memfd_check(fd.as_fd(), layout.segment_bytes() as u64, SEGMENT_SEALS)?;
    Mapping::map(
        fd.as_fd(),
        layout.segment_bytes(),
        ProtFlags::READ | ProtFlags::WRITE,
    )
}

/// The lines of a ring in a segment. That they lie within it is checked when this is made, so that
/// the hot path need not.
pub(crate) struct SegmentLines {
    /// Keeps the memory; the pointers lead into it.
    _segment: std::sync::Arc<Mapping>,
    at: NonNull<u8>,
    consumed: NonNull<u8>,
    count: u64,
}

// SAFETY: the pointers lead into a mapping, which may be used from any thread, and is kept.
unsafe impl Send for SegmentLines {}
// SAFETY: as above.
unsafe impl Sync for SegmentLines {}

impl SegmentLines {
    pub(crate) fn small(
        segment: &std::sync::Arc<Mapping>,
        layout: Layout,
        direction: usize,
    ) -> Self {
        let consumed_at = layout.word_at(direction, Word::SmallConsumed);
        Self::new(
            segment,
            layout.small_at(direction),
            SMALL_RING_BYTES,
            consumed_at,
        )
    }

    pub(crate) fn large(
        segment: &std::sync::Arc<Mapping>,
        layout: Layout,
        direction: usize,
    ) -> Self {
        let consumed_at = layout.word_at(direction, Word::LargeConsumed);
        Self::new(
            segment,
            layout.large_at(direction),
            layout.ring_bytes,
            consumed_at,
        )
    }

    fn new(segment: &std::sync::Arc<Mapping>, at: usize, bytes: usize, consumed_at: usize) -> Self {
        assert!(at.is_multiple_of(LINE_BYTES) && bytes.is_power_of_two() && bytes >= LINE_BYTES);
        assert!(bytes <= segment.len && at <= segment.len - bytes);
        assert!(consumed_at.is_multiple_of(8) && consumed_at + 8 <= segment.len);
        // SAFETY: both are within the mapping, by the assertions.
        let (at, consumed) = unsafe { (segment.at.add(at), segment.at.add(consumed_at)) };
        Self {
            _segment: std::sync::Arc::clone(segment),
            at,
            consumed,
            count: (bytes / LINE_BYTES) as u64,
        }
    }

    /// Whether a range of bytes is in the ring.
    #[inline(always)]
    fn holds(&self, at: usize, len: usize) -> bool {
        let bytes = self.count as usize * LINE_BYTES;
        at <= bytes && len <= bytes - at
    }
}

impl Lines for SegmentLines {
    #[inline(always)]
    fn count(&self) -> u64 {
        self.count
    }

    #[inline(always)]
    fn seq(&self, line: u64) -> &AtomicU64 {
        let line = (line & (self.count - 1)) as usize;
        // SAFETY: the line is one of the ring's, whose count is a power of two; the mapping is
        // kept, and its memory accessed as in `Mapping::word32`.
        unsafe { self.at.add(line * LINE_BYTES).cast::<AtomicU64>().as_ref() }
    }

    #[inline(always)]
    fn consumed(&self) -> &AtomicU64 {
        // SAFETY: as above; the word was found to be in the mapping, and aligned.
        unsafe { self.consumed.cast::<AtomicU64>().as_ref() }
    }

    #[inline(always)]
    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(self.holds(at, bytes.len()));
        // SAFETY: the destination is in the ring, the source is private memory.
        unsafe { copy_in(self.at.as_ptr().add(at), bytes.as_ptr(), bytes.len()) };
    }

    #[inline(always)]
    fn read(&self, at: usize, into: &mut [u8]) {
        assert!(self.holds(at, into.len()));
        // SAFETY: the source is in the ring, the destination is private memory.
        unsafe { copy_out(into.as_mut_ptr(), self.at.as_ptr().add(at), into.len()) };
    }
}
