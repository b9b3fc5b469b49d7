//! Memory for eager frames: slots in registered slabs, to receive into and to send from.
//!
//! No peer can write here but by a receive that we have posted, and what has completed is ours
//! alone: so received bytes are private, and need not be copied before they are looked at.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use super::objects::{ProtectionDomain, Region};
use super::sys;

/// Slots that are made and registered at a time.
pub(super) const SLAB_SLOTS: usize = 64;
const PAGE_BYTES: usize = 4096;

/// Pages of our own, registered for the device to read and write.
struct Slab {
    /// Dropped before the memory is freed: see `Drop`.
    region: Option<Region>,
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a slab is plain memory that its owner alone touches; nothing is thread-bound.
unsafe impl Send for Slab {}

impl Slab {
    fn new(domain: &Arc<ProtectionDomain>, bytes: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(bytes, PAGE_BYTES);
        let layout = layout.map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the size is above zero, as slots have bytes.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut slab = Self {
            region: None,
            at,
            layout,
        };
        // SAFETY: the memory is freed only after the region is dropped, and reached through raw
        // pointers only, never by references.
        let region = unsafe { Region::register(domain, at, bytes, sys::ACCESS_LOCAL_WRITE) }?;
        slab.region = Some(region);
        Ok(slab)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        self.region = None;
        // SAFETY: it was allocated with this layout, and the device cannot reach it any more.
        unsafe { dealloc(self.at.as_ptr(), self.layout) };
    }
}

/// Slots of one size, by number.
pub(super) struct Slots {
    domain: Arc<ProtectionDomain>,
    slabs: Vec<Slab>,
    slot_bytes: usize,
}

impl Slots {
    pub(super) fn new(domain: &Arc<ProtectionDomain>, slot_bytes: usize) -> Self {
        Self {
            domain: Arc::clone(domain),
            slabs: Vec::new(),
            slot_bytes,
        }
    }

    pub(super) fn count(&self) -> u32 {
        (self.slabs.len() * SLAB_SLOTS) as u32
    }

    pub(super) fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Makes one more slab; the numbers of its slots.
    pub(super) fn grow(&mut self) -> io::Result<std::ops::Range<u32>> {
        let first = self.count();
        self.slabs
            .push(Slab::new(&self.domain, SLAB_SLOTS * self.slot_bytes)?);
        Ok(first..self.count())
    }

    fn place(&self, slot: u32) -> (&Slab, NonNull<u8>) {
        let slab = &self.slabs[slot as usize / SLAB_SLOTS];
        let offset = slot as usize % SLAB_SLOTS * self.slot_bytes;
        // SAFETY: the slab has `SLAB_SLOTS` slots of this size.
        (slab, unsafe { slab.at.add(offset) })
    }

    /// The slot's first `len` bytes, as work requests name them.
    #[inline]
    pub(super) fn piece(&self, slot: u32, len: usize) -> sys::Sge {
        debug_assert!(len <= self.slot_bytes);
        let (slab, at) = self.place(slot);
        sys::Sge {
            addr: at.as_ptr() as u64,
            length: len as u32,
            lkey: slab.region.as_ref().map_or(0, Region::local_key),
        }
    }

    /// Copies bytes out of a slot, whose receive has completed.
    #[inline]
    pub(super) fn read(&self, slot: u32, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= self.slot_bytes);
        let (_, at) = self.place(slot);
        // SAFETY: the range is within the slot, which the device does not write to between the
        // completion of a receive and the next post of it.
        unsafe {
            std::ptr::copy_nonoverlapping(at.as_ptr().add(offset), into.as_mut_ptr(), into.len());
        }
    }

    /// Copies bytes into a slot, which no send under way uses.
    #[inline]
    pub(super) fn write(&self, slot: u32, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.slot_bytes);
        let (_, at) = self.place(slot);
        // SAFETY: the range is within the slot, which nobody reads until it is posted.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.as_ptr().add(offset), bytes.len());
        }
    }
}
