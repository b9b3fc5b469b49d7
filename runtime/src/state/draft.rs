//! Memory that is filled where it stays, before it is an object: it counts like one from the start.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use praas_transport::sync::atomic::{AtomicU64, Ordering};
use praas_transport::{Buf, BufMut};

use super::{StateError, StateStore};

/// Memory for the next value of an object. It counts against the store's limit until it is that, or
/// is dropped.
#[derive(Debug)]
pub struct Draft {
    memory: BufMut,
    lent: Lent,
}

/// Bytes that count as long as this is there.
#[derive(Debug)]
struct Lent {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Draft {
    /// Bytes that it counts for.
    pub(super) fn lent_bytes(&self) -> u64 {
        self.lent.bytes
    }

    /// What was written, to be an object.
    pub(super) fn freeze(self) -> Buf {
        self.memory.freeze()
    }
}

impl Deref for Draft {
    type Target = BufMut;

    fn deref(&self) -> &BufMut {
        &self.memory
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut BufMut {
        &mut self.memory
    }
}

impl StateStore {
    /// Memory of `len` bytes for [`StateStore::commit`]; it holds anything.
    ///
    /// # Errors
    /// The memory limit, or none to be had.
    pub fn draft(&self, len: usize) -> Result<Draft, StateError> {
        // No commit may be half done meanwhile, which is counted twice, or not at all.
        let objects = self.read();
        let wanted = len as u64;
        let used = |others| objects.bytes.saturating_add(others);
        // What is refused is never counted: others would be refused for it.
        let fits = |others| {
            let fits = used(others).saturating_add(wanted) <= self.limit;
            fits.then(|| others.saturating_add(wanted))
        };
        let lent = self
            .lent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        lent.map_err(|others| StateError::LimitReached {
            used: used(others),
            wanted,
            limit: self.limit,
        })?;
        let lent = Lent {
            bytes: wanted,
            all: Arc::clone(&self.lent),
        };
        drop(objects);
        let memory = self.pool.alloc(len)?;
        Ok(Draft { memory, lent })
    }
}
