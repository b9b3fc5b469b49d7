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
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::ring::{LINE_BYTES, Lines};
use crate::sync::atomic::{AtomicU32, AtomicU64};

const PAGE_BYTES: usize = 4096;
/// Bytes of a small eager ring.
pub(crate) const SMALL_RING_BYTES: usize = 4096;
const SEGMENT_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
/// Distance in the header page between the words of the two directions.
const DIRECTION_BYTES: usize = 1024;

/// A shared mapping.
pub(crate) struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is shared memory, accessed only by atomics and by the copies below.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn map(fd: BorrowedFd<'_>, len: usize, prot: ProtFlags) -> io::Result<Self> {
        Self::map_with(fd, len, prot, MapFlags::SHARED)
    }

    pub(crate) fn map_with(
        fd: BorrowedFd<'_>,
        len: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping, placed by the kernel, overlaps nothing of ours.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) }?;
        // A forked child has no business with our channels.
        // SAFETY: the range is the mapping just made.
        let advised = unsafe { rustix::mm::madvise(at, len, Advice::LinuxDontFork) };
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { at, len };
        advised?;
        Ok(mapping)
    }

    /// The 32-bit word at a byte offset.
    #[inline]
    pub(crate) fn word32(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len);
        // SAFETY: in range and aligned; the memory is only ever accessed atomically as a word or
        // by the racy copies of this module, and lives as long as `self`.
        unsafe { &*self.at.as_ptr().add(at).cast::<AtomicU32>() }
    }

    /// The 64-bit word at a byte offset.
    #[inline]
    pub(crate) fn word64(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len);
        // SAFETY: as in `word32`.
        unsafe { &*self.at.as_ptr().add(at).cast::<AtomicU64>() }
    }

    /// Copies into the mapping.
    #[inline]
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at);
        // SAFETY: the destination is in range; the source is private memory, so they do not
        // overlap.
        unsafe { copy_in(self.at.as_ptr().add(at), bytes.as_ptr(), bytes.len()) };
    }

    /// Copies out of the mapping.
    #[inline]
    pub(crate) fn read(&self, at: usize, into: &mut [u8]) {
        assert!(at <= self.len && into.len() <= self.len - at);
        // SAFETY: the source is in range; the destination is private memory.
        unsafe { copy_out(into.as_mut_ptr(), self.at.as_ptr().add(at), into.len()) };
    }
}

impl Mapping {
    /// Copies from one place of the mapping to another, as fast as the processor can. Both sides
    /// must agree that neither writes there meanwhile; nothing that guards against a peer is made
    /// of this.
    #[inline]
    pub(crate) fn copy_within(&self, from: usize, to: usize, len: usize) {
        assert!(from <= self.len && len <= self.len - from);
        assert!(to <= self.len && len <= self.len - to && from.abs_diff(to) >= len);
        // SAFETY: both ranges are within the mapping and do not overlap, by the assertions.
        unsafe {
            let base = self.at.as_ptr();
            std::ptr::copy_nonoverlapping(base.add(from), base.add(to), len);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is our own mapping; whoever borrowed from it borrowed `self`.
        // Unmapping what was mapped cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// Copies out of shared memory while the peer may write to it.
///
/// A plain copy would be a data race in the eyes of the compiler, which might read a byte twice
/// and find it changed. So the shared side is accessed by instructions that the compiler cannot
/// see into, word by word for what is short, and what they read is private.
///
/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap.
#[inline(always)]
unsafe fn copy_out(to: *mut u8, from: *const u8, len: usize) {
    if len > WORDS_BYTES_MAX {
        // SAFETY: the caller says so.
        return unsafe { copy_long(to, from, len) };
    }
    let mut at = 0;
    // SAFETY: every access is within both ranges, by the caller's promise; alignment is not asked
    // for.
    unsafe {
        while at + 8 <= len {
            to.add(at)
                .cast::<u64>()
                .write_unaligned(word::load8(from.add(at)));
            at += 8;
        }
        if len - at >= 4 {
            to.add(at)
                .cast::<u32>()
                .write_unaligned(word::load4(from.add(at)));
            at += 4;
        }
        while at < len {
            to.add(at).write(word::load1(from.add(at)));
            at += 1;
        }
    }
}

/// Copies into shared memory while the peer may write to it; see [`copy_out`].
///
/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap.
#[inline(always)]
unsafe fn copy_in(to: *mut u8, from: *const u8, len: usize) {
    if len > WORDS_BYTES_MAX {
        // SAFETY: the caller says so.
        return unsafe { copy_long(to, from, len) };
    }
    let mut at = 0;
    // SAFETY: as in `copy_out`.
    unsafe {
        while at + 8 <= len {
            word::store8(to.add(at), from.add(at).cast::<u64>().read_unaligned());
            at += 8;
        }
        if len - at >= 4 {
            word::store4(to.add(at), from.add(at).cast::<u32>().read_unaligned());
            at += 4;
        }
        while at < len {
            word::store1(to.add(at), from.add(at).read());
            at += 1;
        }
    }
}

/// Up to this many bytes are copied word by word.
const WORDS_BYTES_MAX: usize = 192;
/// Up to this many bytes are copied line by line: less than it takes for the processor's own copy
/// to be worth its start.
#[cfg(target_arch = "x86_64")]
const LINES_BYTES_MAX: usize = 4096;

/// Copies by instructions that the compiler cannot see into.
///
/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap; `len` is above [`WORDS_BYTES_MAX`].
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn copy_long(to: *mut u8, from: *const u8, len: usize) {
    if len > LINES_BYTES_MAX {
        // SAFETY: `rep movsb` copies `len` bytes between the two ranges, which are valid and do
        // not overlap; the direction flag is clear by the ABI.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") len => _,
                inout("rdi") to => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    // SAFETY: the loop copies whole lines, of which there is at least one, and after it the last
    // 64 bytes, some of them again; both within the ranges.
    unsafe {
        std::arch::asm!(
            "2:",
            "movdqu {a}, xmmword ptr [{from}]",
            "movdqu {b}, xmmword ptr [{from} + 16]",
            "movdqu {c}, xmmword ptr [{from} + 32]",
            "movdqu {d}, xmmword ptr [{from} + 48]",
            "movdqu xmmword ptr [{to}], {a}",
            "movdqu xmmword ptr [{to} + 16], {b}",
            "movdqu xmmword ptr [{to} + 32], {c}",
            "movdqu xmmword ptr [{to} + 48], {d}",
            "add {from}, 64",
            "add {to}, 64",
            "cmp {from}, {end}",
            "jb 2b",
            "movdqu {a}, xmmword ptr [{last_from}]",
            "movdqu {b}, xmmword ptr [{last_from} + 16]",
            "movdqu {c}, xmmword ptr [{last_from} + 32]",
            "movdqu {d}, xmmword ptr [{last_from} + 48]",
            "movdqu xmmword ptr [{last_to}], {a}",
            "movdqu xmmword ptr [{last_to} + 16], {b}",
            "movdqu xmmword ptr [{last_to} + 32], {c}",
            "movdqu xmmword ptr [{last_to} + 48], {d}",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            end = in(reg) from.add(len - len % 64),
            last_from = in(reg) from.add(len - 64),
            last_to = in(reg) to.add(len - 64),
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack)
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_long(to: *mut u8, from: *const u8, len: usize) {
    for at in 0..len {
        // SAFETY: within both ranges, by the caller's promise.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
    }
}

/// Single accesses to shared memory. Volatile ones of the language ask for alignment, which
/// payloads have not, or go byte by byte.
#[cfg(target_arch = "x86_64")]
mod word {
    use std::arch::asm;

    /// # Safety
    /// The word is readable.
    #[inline(always)]
    pub(super) unsafe fn load8(from: *const u8) -> u64 {
        let value;
        // SAFETY: one load of what the caller says is readable.
        unsafe {
            asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) from,
                options(nostack, preserves_flags, readonly));
        }
        value
    }

    /// # Safety
    /// The word is readable.
    #[inline(always)]
    pub(super) unsafe fn load4(from: *const u8) -> u32 {
        let value;
        // SAFETY: one load of what the caller says is readable.
        unsafe {
            asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) from,
                options(nostack, preserves_flags, readonly));
        }
        value
    }

    /// # Safety
    /// The byte is readable.
    #[inline(always)]
    pub(super) unsafe fn load1(from: *const u8) -> u8 {
        // SAFETY: the caller says so; bytes are aligned.
        unsafe { from.read_volatile() }
    }

    /// # Safety
    /// The word is writable.
    #[inline(always)]
    pub(super) unsafe fn store8(to: *mut u8, value: u64) {
        // SAFETY: one store to what the caller says is writable.
        unsafe {
            asm!("mov qword ptr [{}], {}", in(reg) to, in(reg) value,
                options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// The word is writable.
    #[inline(always)]
    pub(super) unsafe fn store4(to: *mut u8, value: u32) {
        // SAFETY: one store to what the caller says is writable.
        unsafe {
            asm!("mov dword ptr [{}], {:e}", in(reg) to, in(reg) value,
                options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// The byte is writable.
    #[inline(always)]
    pub(super) unsafe fn store1(to: *mut u8, value: u8) {
        // SAFETY: the caller says so; bytes are aligned.
        unsafe { to.write_volatile(value) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod word {
    macro_rules! accesses {
        ($($load:ident $store:ident $word:ty;)*) => {
            $(
                /// # Safety
                /// The word is readable.
                #[inline(always)]
                pub(super) unsafe fn $load(from: *const u8) -> $word {
                    // SAFETY: the caller says so; an array of bytes is aligned.
                    let bytes = unsafe { from.cast::<[u8; size_of::<$word>()]>().read_volatile() };
                    <$word>::from_ne_bytes(bytes)
                }

                /// # Safety
                /// The word is writable.
                #[inline(always)]
                pub(super) unsafe fn $store(to: *mut u8, value: $word) {
                    let to = to.cast::<[u8; size_of::<$word>()]>();
                    // SAFETY: the caller says so; an array of bytes is aligned.
                    unsafe { to.write_volatile(value.to_ne_bytes()) };
                }
            )*
        };
    }

    accesses! {
        load8 store8 u64;
        load4 store4 u32;
        load1 store1 u8;
    }
}

/// Checks that a descriptor from a peer is a memfd which cannot be shrunk and has the size.
pub(crate) fn memfd_check(fd: BorrowedFd<'_>, bytes: u64, seals: SealFlags) -> io::Result<()> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let have = fcntl_get_seals(fd).map_err(|_| wrong("the peer's segment is no memfd"))?;
    if !have.contains(seals) {
        return Err(wrong("the peer's segment is not sealed"));
    }
    match rustix::fs::fstat(fd)?.st_size as u64 == bytes {
        true => Ok(()),
        false => Err(wrong("the peer's segment has the wrong size")),
    }
}

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
}

const _: () = assert!((Word::WriterSleeps as usize + 1) * LINE_BYTES <= DIRECTION_BYTES);
const _: () = assert!(2 * DIRECTION_BYTES <= PAGE_BYTES);

/// Makes a segment: its descriptor, for the peer, and our mapping.
///
/// # Errors
/// The system refuses a memfd or a mapping.
pub(crate) fn segment_create(layout: Layout) -> io::Result<(OwnedFd, Mapping)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("praas-channel", flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create("praas-channel", flags))?;
    ftruncate(&fd, layout.segment_bytes() as u64)?;
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
