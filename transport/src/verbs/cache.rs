//! Registrations of payload memory, kept with the pool's blocks that they are of.
//!
//! A block stays registered while its pool keeps it, through all its loans: so what is sent and
//! received again and again is registered once, and no allocator needs hooks, since a block's
//! registration ends before its memory does. How much is registered is bounded; above it whatever
//! has not been used for the longest time goes, unless it is in use.

use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::objects::{ProtectionDomain, Region};
use super::sys;
use crate::buf::{BlockRef, Buf};
use crate::sync::atomic::{AtomicU64, Ordering};

/// What peers and our own device may do: whoever knows the key may read.
const ACCESS: std::ffi::c_uint = sys::ACCESS_LOCAL_WRITE | sys::ACCESS_REMOTE_READ;

/// Memory that is registered for as long as anybody holds this.
pub(super) struct Registered {
    pub(super) region: Region,
    bytes: usize,
}

/// What a block has attached: its registration, until it is taken away.
struct Kept {
    registered: Mutex<Option<Arc<Registered>>>,
    /// When it was used last, in uses.
    used: AtomicU64,
}

impl Kept {
    fn registered(&self) -> std::sync::MutexGuard<'_, Option<Arc<Registered>>> {
        self.registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registrations of a hub.
pub(super) struct Cache {
    domain: Arc<ProtectionDomain>,
    /// Ours among those who attach to blocks.
    number: u64,
    kept: VecDeque<Weak<Kept>>,
    /// Of buffers that are of no pool, while they are in use.
    alone: Vec<Weak<Registered>>,
    uses: u64,
    bytes_max: u64,
    count_max: usize,
    pub(super) registrations: u64,
}

impl Cache {
    pub(super) fn new(domain: &Arc<ProtectionDomain>, bytes_max: u64, count_max: u32) -> Self {
        static NUMBERS: std::sync::LazyLock<AtomicU64> =
            std::sync::LazyLock::new(|| AtomicU64::new(0));
        Self {
            domain: Arc::clone(domain),
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            kept: VecDeque::new(),
            alone: Vec::new(),
            uses: 0,
            bytes_max,
            count_max: count_max as usize,
            registrations: 0,
        }
    }

    /// The registration of a block, made now if there is none.
    ///
    /// # Errors
    /// The system refuses, or all that may be registered is in use.
    pub(super) fn block(&mut self, block: &BlockRef<'_>) -> io::Result<Arc<Registered>> {
        self.uses += 1;
        let kept = block.attached(self.number);
        let kept = kept.and_then(|kept| kept.downcast::<Kept>().ok());
        if let Some(kept) = &kept {
            kept.used.store(self.uses, Ordering::Relaxed);
            if let Some(registered) = &*kept.registered() {
                return Ok(Arc::clone(registered));
            }
        }
        self.room_make(block.size)?;
        // SAFETY: the block's memory outlives what is attached to it, and whoever else holds the
        // registration holds the block's buffer, too. The device writes only into buffers that are
        // lent to it, and only reads others.
        let registered = unsafe { self.register(block.at, block.size) }?;
        let kept = kept.unwrap_or_else(|| {
            let kept = Arc::new(Kept {
                registered: Mutex::new(None),
                used: AtomicU64::new(self.uses),
            });
            block.attach(self.number, Arc::clone(&kept) as crate::buf::Attachment);
            kept
        });
        *kept.registered() = Some(Arc::clone(&registered));
        self.kept.push_back(Arc::downgrade(&kept));
        Ok(registered)
    }

    /// A registration of a buffer that is of no pool; it is not kept.
    ///
    /// # Errors
    /// As for [`Cache::block`].
    ///
    /// # Safety
    /// The buffer is held as long as the registration.
    pub(super) unsafe fn alone(&mut self, buf: &Buf) -> io::Result<Arc<Registered>> {
        self.room_make(buf.len())?;
        let at = NonNull::from(&**buf).cast::<u8>();
        // SAFETY: the memory lives as long as the buffer, which the caller holds; nobody writes to
        // it, and the device reads only, since no work request of ours names it to be written to.
        let registered = unsafe { self.register(at, buf.len()) }?;
        self.alone.push(Arc::downgrade(&registered));
        Ok(registered)
    }

    /// # Safety
    /// As for [`Region::register`].
    unsafe fn register(&mut self, at: NonNull<u8>, bytes: usize) -> io::Result<Arc<Registered>> {
        // SAFETY: as the caller promises.
        let region = unsafe { Region::register(&self.domain, at, bytes, ACCESS) }?;
        self.registrations += 1;
        Ok(Arc::new(Registered { region, bytes }))
    }

    /// Takes registrations away until one more fits.
    fn room_make(&mut self, bytes: usize) -> io::Result<()> {
        // Blocks that have gone took theirs with them.
        self.kept.retain(|kept| {
            kept.upgrade()
                .is_some_and(|kept| kept.registered().is_some())
        });
        self.alone.retain(|alone| alone.strong_count() > 0);
        let alone = self.alone.iter().filter_map(Weak::upgrade);
        let alone: u64 = alone.map(|alone| alone.bytes as u64).sum();
        loop {
            let held = |kept: &Weak<Kept>| {
                let kept = kept.upgrade()?;
                let bytes = kept.registered().as_ref()?.bytes;
                Some(bytes as u64)
            };
            let total: u64 = self.kept.iter().filter_map(held).sum();
            let count = self.kept.len() + self.alone.len();
            if total + alone + bytes as u64 <= self.bytes_max && count < self.count_max {
                return Ok(());
            }
            let unused = |kept: &Weak<Kept>| {
                let kept = kept.upgrade()?;
                let is_free = kept
                    .registered()
                    .as_ref()
                    .is_some_and(|registered| Arc::strong_count(registered) == 1);
                is_free.then(|| kept.used.load(Ordering::Relaxed))
            };
            let oldest = (0..self.kept.len())
                .filter_map(|at| Some((unused(&self.kept[at])?, at)))
                .min();
            let Some((_, at)) = oldest else {
                return Err(io::Error::other(format!(
                    "{bytes} bytes more than may be registered for RDMA are in use (settings \
                     verbs_registered_max_bytes and verbs_registered_max)"
                )));
            };
            if let Some(kept) = self
                .kept
                .swap_remove_back(at)
                .and_then(|kept| kept.upgrade())
            {
                *kept.registered() = None;
            }
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Blocks may live on in their pool, and need not hold the device open.
        for kept in &self.kept {
            if let Some(kept) = kept.upgrade() {
                *kept.registered() = None;
            }
        }
    }
}
