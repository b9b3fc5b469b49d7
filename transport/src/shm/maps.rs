//! Memory of a peer that we have mapped: files of its buffers, and regions.
//!
//! Mappings are kept, since making one and touching its pages first costs as much as copying them
//! several times. All channels of an endpoint share one bound; a channel that needs room lets go
//! of its own mappings, the longest unused first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::mm::ProtFlags;

use crate::buf::file::FILE_SEALS;
use crate::buf::mapping::{Mapping, memfd_check};
use crate::sync::atomic::{AtomicU64, Ordering};

/// How much of its peers' memory an endpoint may have mapped.
#[derive(Debug)]
pub(crate) struct MapBudget {
    max: u64,
    bytes_max: u64,
    count: AtomicU64,
    bytes: AtomicU64,
}

impl MapBudget {
    pub(crate) fn new(max: usize, bytes_max: u64) -> Self {
        Self {
            max: max as u64,
            bytes_max,
            count: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn take(&self, bytes: u64) -> bool {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = count < self.max && before.saturating_add(bytes) <= self.bytes_max;
        if !fits {
            self.give(bytes);
        }
        fits
    }

    fn give(&self, bytes: u64) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A mapping of a peer's memory, which counts until it is dropped.
pub(super) struct PeerMap {
    pub(super) mapping: Mapping,
    budget: Arc<MapBudget>,
}

impl Drop for PeerMap {
    fn drop(&mut self) {
        self.budget.give(self.mapping.len as u64);
    }
}

struct Kept {
    file: u64,
    map: Arc<PeerMap>,
    used: u64,
}

/// The mappings of one channel, by the numbers of the peer's files.
pub(super) struct Maps {
    kept: Vec<Kept>,
    clock: u64,
    budget: Arc<MapBudget>,
}

impl Maps {
    pub(super) fn new(budget: Arc<MapBudget>) -> Self {
        Self {
            kept: Vec::new(),
            clock: 0,
            budget,
        }
    }

    pub(super) fn find(&mut self, file: u64) -> Option<Arc<PeerMap>> {
        self.clock += 1;
        let kept = self.kept.iter_mut().find(|kept| kept.file == file)?;
        kept.used = self.clock;
        Some(Arc::clone(&kept.map))
    }

    pub(super) fn has(&self, file: u64) -> bool {
        self.kept.iter().any(|kept| kept.file == file)
    }

    /// The peer has freed the file. Who reads from it still may.
    pub(super) fn forget(&mut self, file: u64) {
        self.kept.retain(|kept| kept.file != file);
    }

    /// Maps a file of the peer's, and keeps the mapping.
    ///
    /// # Errors
    /// It is not such as it must be, or there is no room for it.
    pub(super) fn insert(&mut self, file: u64, fd: OwnedFd, bytes: u64) -> io::Result<()> {
        let map = self.map(fd, bytes, ProtFlags::READ)?;
        self.forget(file);
        self.kept.push(Kept {
            file,
            map,
            used: self.clock,
        });
        Ok(())
    }

    /// Maps memory of the peer's that cannot be shrunk.
    ///
    /// # Errors
    /// As [`Maps::insert`].
    pub(super) fn map(
        &mut self,
        fd: OwnedFd,
        bytes: u64,
        prot: ProtFlags,
    ) -> io::Result<Arc<PeerMap>> {
        memfd_check(fd.as_fd(), bytes, FILE_SEALS)?;
        let len = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        while !self.budget.take(bytes) {
            if !self.evict() {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
        }
        match Mapping::map(fd.as_fd(), len, prot) {
            Ok(mapping) => Ok(Arc::new(PeerMap {
                mapping,
                budget: Arc::clone(&self.budget),
            })),
            Err(error) => {
                self.budget.give(bytes);
                Err(error)
            }
        }
    }

    /// Lets go of what was not used for the longest time; false if all is in use.
    fn evict(&mut self) -> bool {
        let free = |kept: &&Kept| Arc::strong_count(&kept.map) == 1;
        let oldest = self.kept.iter().filter(free).min_by_key(|kept| kept.used);
        let Some(file) = oldest.map(|kept| kept.file) else {
            return false;
        };
        self.forget(file);
        true
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use rustix::fs::{SealFlags, fcntl_add_seals, ftruncate};

    use super::*;
    use crate::buf::mapping::memfd_create_sized;

    fn sealed(bytes: usize) -> OwnedFd {
        let fd = memfd_create_sized("test", bytes).unwrap();
        fcntl_add_seals(&fd, FILE_SEALS).unwrap();
        fd
    }

    #[test]
    fn mappings_are_bounded_and_the_longest_unused_goes() {
        let budget = Arc::new(MapBudget::new(2, 16 << 10));
        let mut maps = Maps::new(Arc::clone(&budget));
        for file in [1, 2] {
            maps.insert(file, sealed(4096), 4096).unwrap();
        }
        let first = maps.find(1).unwrap();
        maps.insert(3, sealed(4096), 4096).unwrap();
        assert!(maps.has(1) && !maps.has(2) && maps.has(3));
        // What is in use stays; what is above the bytes is refused.
        assert!(maps.insert(4, sealed(16 << 10), 16 << 10).is_err());
        assert!(maps.has(1));
        maps.forget(1);
        drop(first);
        maps.insert(4, sealed(16 << 10), 16 << 10).unwrap();
        drop(maps);
        assert_eq!(budget.count.load(Ordering::Relaxed), 0);
        assert_eq!(budget.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn memory_that_could_fault_is_refused() {
        let mut maps = Maps::new(Arc::new(MapBudget::new(8, 1 << 30)));
        let loose = memfd_create_sized("test", 4096).unwrap();
        assert!(maps.insert(1, loose, 4096).is_err());
        assert!(maps.insert(1, sealed(4096), 8192).is_err());
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert!(maps.insert(1, pipe, 4096).is_err());
        // Sealed, so that it stays as it is.
        let fd = sealed(4096);
        assert!(ftruncate(&fd, 0).is_err());
        fcntl_add_seals(&fd, SealFlags::SEAL).unwrap();
        maps.insert(1, fd, 4096).unwrap();
    }
}
