//! An allocator that counts, by which tests show that hot paths allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, counting what is asked of it by every thread of this OS process. For a
/// test to declare as its `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAlloc {
    count: AtomicU64,
}

impl CountingAlloc {
    /// An allocator that has counted nothing.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
        }
    }

    /// Allocations and reallocations so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

// SAFETY: everything is passed on to the system's allocator, with what the caller gave.
unsafe impl GlobalAlloc for CountingAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}
