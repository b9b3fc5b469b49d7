//! Blocks of memory: of the heap, of mappings, and of files.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::file::BlockFile;
use super::{ALIGN_BYTES, HUGE_FROM_BYTES};

/// Bytes of a huge page. On a machine whose huge pages are larger there is less use for them.
pub(super) const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Bytes that are mapped at once for large blocks of one size. A block that is no whole number of
/// huge pages, or not at the beginning of one, is made of small ones; those of a span are huge
/// throughout, which are faulted in four times as fast.
pub(super) const SPAN_BYTES: usize = 32 << 20;

/// A block of memory, unique to its owner.
pub(super) struct Block {
    pub(super) at: NonNull<u8>,
    pub(super) size: usize,
    /// What devices know of it, each under the number of whoever attached it. It ends before the
    /// memory does, and outlives loans: whoever gets the block next finds it registered.
    pub(super) attached: Attachments,
    /// The file it is in, and where; none for private memory.
    pub(super) file: Option<(Arc<BlockFile>, usize)>,
}

/// Something that a device holds of a block.
pub(crate) type Attachment = Arc<dyn std::any::Any + Send + Sync>;

pub(super) type Attachments = Mutex<Vec<(u64, Attachment)>>;

/// The block under a buffer.
pub(crate) struct BlockRef<'a> {
    /// Where it begins.
    pub(crate) at: NonNull<u8>,
    /// Its bytes.
    pub(crate) size: usize,
    pub(super) attached: &'a Attachments,
}

impl BlockRef<'_> {
    /// What was attached under this number.
    pub(crate) fn attached(&self, number: u64) -> Option<Attachment> {
        let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let found = attached.iter().find(|(of, _)| *of == number);
        found.map(|(_, attachment)| Arc::clone(attachment))
    }

    /// Attaches something until the block's memory is given back to the system.
    pub(crate) fn attach(&self, number: u64, attachment: Attachment) {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        attached.retain(|(of, _)| *of != number);
        attached.push((number, attachment));
    }
}

// SAFETY: a block is plain memory that belongs to whoever owns the value; nothing is thread-bound.
unsafe impl Send for Block {}
// SAFETY: shared access only reads; see `Buf`.
unsafe impl Sync for Block {}

impl Block {
    fn layout(size: usize) -> Option<Layout> {
        Layout::from_size_align(size, ALIGN_BYTES).ok()
    }

    /// A part of a file, which nobody else has.
    pub(super) fn within(file: &Arc<BlockFile>, offset: usize, size: usize) -> Self {
        assert!(offset <= file.len() && size <= file.len() - offset);
        Self {
            at: file.at(offset),
            size,
            attached: Attachments::default(),
            file: Some((Arc::clone(file), offset)),
        }
    }

    /// Memory of the heap.
    pub(super) fn allocate(size: usize) -> Option<Self> {
        // SAFETY: the layout has a size above zero, since classes start at 64 bytes.
        let at = unsafe { alloc_zeroed(Self::layout(size)?) };
        Some(Self {
            at: NonNull::new(at)?,
            size,
            attached: Attachments::default(),
            file: None,
        })
    }

    /// Memory that was mapped.
    ///
    /// # Safety
    /// It is nobody else's, initialised, and may be unmapped; `size` is [`HUGE_FROM_BYTES`] or
    /// more.
    pub(super) unsafe fn mapped(at: NonNull<u8>, size: usize) -> Self {
        Self {
            at,
            size,
            attached: Attachments::default(),
            file: None,
        }
    }
}

/// Maps zeroed private memory that begins where a huge page does.
pub(super) fn pages_map(size: usize) -> Option<NonNull<u8>> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
    let whole = size.checked_add(HUGE_PAGE_BYTES)?;
    // SAFETY: a fresh private mapping chosen by the kernel overlaps nothing.
    let mapped = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            whole,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }
    .ok()?;
    let before = mapped.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
    // SAFETY: what is cut off, and what is advised, are parts of the mapping just made: sizes are
    // multiples of pages, and so is `before`, which is less than a huge page. Cutting off may fail
    // if the process has as many mappings as it may, and is then left undone. The advice is only
    // that: without huge pages the mapping works as well.
    let at = unsafe {
        let at = mapped.byte_add(before);
        if before > 0 {
            let _ = munmap(mapped, before);
        }
        let _ = munmap(at.byte_add(size), HUGE_PAGE_BYTES - before);
        let _ = madvise(at, size, Advice::LinuxHugepage);
        at
    };
    NonNull::new(at.cast())
}

impl Drop for Block {
    fn drop(&mut self) {
        self.attached
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        if self.file.is_some() {
            // The last block of a file unmaps it.
        } else if self.size < HUGE_FROM_BYTES {
            if let Some(layout) = Self::layout(self.size) {
                // SAFETY: `allocate` got this block with the same layout.
                unsafe { dealloc(self.at.as_ptr(), layout) };
            }
        } else {
            use rustix::mm::{Advice, madvise, munmap};
            let at = self.at.as_ptr().cast();
            // SAFETY: all of it is mapped, and nobody else has it. A part of a mapping cannot be
            // unmapped if the process has as many mappings as it may: then its pages go.
            unsafe {
                if munmap(at, self.size).is_err() {
                    let _ = madvise(at, self.size, Advice::LinuxDontNeed);
                }
            }
        }
    }
}
