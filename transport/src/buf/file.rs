//! Blocks that peers can map: memory files, sealed so that peers can only read them.
//!
//! ```text
//!   slab: a file of 8 MiB     | block | block | block | ...        blocks of one class below 1 MiB
//!   own:  a file as its block |            block            |      blocks from 1 MiB up
//! ```
//!
//! The seals: nobody can shrink a file, so that no peer faults on it; and nobody can map it
//! writable any more, so that our own mapping, made before, is the only way to write. That seal
//! also forbids punching holes, so memory is given back by whole files. Descriptors are few, and
//! the number of files is bounded: above it blocks are private memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::mm::{Advice, ProtFlags};

use super::mapping::{Mapping, memfd_create_sized};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes of a file that many small blocks share.
pub(super) const SLAB_BYTES: usize = 8 << 20;
/// Blocks from this size on are in files.
pub(super) const FILE_FROM_BYTES: usize = 32 << 10;

/// What a file that peers may map must be sealed against.
pub(crate) const FILE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Which blocks of a pool are in files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileRules {
    /// The largest of them, in bytes.
    pub(crate) block_max_bytes: usize,
    /// Files of this OS process at most.
    pub(crate) files_max: usize,
}

/// Files of this OS process.
struct Files {
    open: usize,
    /// Numbers given so far; none is used again.
    numbers: u64,
    denied: u64,
}

static FILES: Mutex<Files> = Mutex::new(Files {
    open: 0,
    numbers: 0,
    denied: 0,
});

fn files() -> std::sync::MutexGuard<'static, Files> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files of this process that were freed so far: whoever has given some away sees by it that there
/// may be something to tell.
pub(crate) fn files_freed() -> u64 {
    freed().load(Ordering::Relaxed)
}

fn freed() -> &'static AtomicU64 {
    static FREED: OnceLock<AtomicU64> = OnceLock::new();
    FREED.get_or_init(|| AtomicU64::new(0))
}

/// A number that no file or pool of this process had before.
pub(super) fn number_next() -> u64 {
    let mut files = files();
    files.numbers += 1;
    files.numbers
}

/// A file with blocks, and our mapping of it.
pub(crate) struct BlockFile {
    /// Names it to peers.
    pub(crate) number: u64,
    /// The pool it belongs to.
    pub(crate) pool: u64,
    mapping: Mapping,
    fd: OwnedFd,
    /// Blocks on loan; changed under the lock of their class.
    pub(super) lent: AtomicUsize,
}

impl BlockFile {
    /// # Errors
    /// There are as many files as may be, or the system refuses one.
    pub(crate) fn create(bytes: usize, pool: u64, rules: FileRules) -> io::Result<Arc<Self>> {
        let number = {
            let mut files = files();
            if files.open >= rules.files_max {
                files.denied += 1;
                if files.denied == 1 {
                    let max = rules.files_max;
                    tracing::warn!(
                        max,
                        "too many memory files (shm_files_max): buffers that \
                        peers cannot map are used, which costs large messages a copy"
                    );
                }
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            files.open += 1;
            files.numbers += 1;
            files.numbers
        };
        // Dropping it counts down again, also if what follows fails.
        let counted = Count;
        let fd = memfd_create_sized("praas-buffers", bytes)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let mapping = Mapping::map(fd.as_fd(), bytes, prot)?;
        fcntl_add_seals(&fd, FILE_SEALS | SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
        std::mem::forget(counted);
        Ok(Arc::new(Self {
            number,
            pool,
            mapping,
            fd,
            lent: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn len(&self) -> usize {
        self.mapping.len
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.mapping.len);
        // SAFETY: the offset is within the mapping.
        unsafe { self.mapping.at.add(offset) }
    }

    /// Faults all of it in at once, which costs a fifth less than page by page.
    pub(super) fn populate(&self) {
        let (at, len) = (self.mapping.at.as_ptr().cast(), self.mapping.len);
        // SAFETY: the range is our own mapping. The advice is only that: older kernels refuse it,
        // and pages come as they are touched.
        let _ = unsafe { rustix::mm::madvise(at, len, Advice::LinuxPopulateWrite) };
    }

    /// Writes as only its owner can, and none does.
    #[cfg(all(test, not(praas_loom)))]
    pub(crate) fn scribble(&self, at: usize, bytes: &[u8]) {
        self.mapping.write(at, bytes);
    }

    pub(super) fn lend(&self) {
        self.lent.fetch_add(1, Ordering::Relaxed);
    }

    /// A block came back; whether it was the last one out.
    pub(super) fn unlend(&self) -> bool {
        self.lent.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// One in [`Files::open`].
struct Count;

impl Drop for Count {
    fn drop(&mut self) {
        files().open -= 1;
    }
}

impl Drop for BlockFile {
    fn drop(&mut self) {
        drop(Count);
        freed().fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::super::{BufPool, FILE_FROM_BYTES};
    use super::*;

    fn pool(files_max: usize) -> BufPool {
        let rules = FileRules {
            block_max_bytes: 4 << 20,
            files_max,
        };
        BufPool::with_files(1 << 30, Some(rules))
    }

    #[test]
    fn blocks_of_middle_size_are_in_files() {
        let pool = pool(usize::MAX);
        let at = |len: usize| {
            let mut buf = pool.alloc(len).unwrap();
            buf.fill(5);
            let buf = buf.freeze();
            let file = buf.file().map(|(file, at)| (file.number, at));
            (buf, file)
        };
        assert_eq!(at(FILE_FROM_BYTES / 2).1, None);
        assert_eq!(at((4 << 20) + 1).1, None);
        let (one, first) = at(FILE_FROM_BYTES);
        let (_two, second) = at(FILE_FROM_BYTES);
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first.0, second.0, "small blocks share a file");
        assert_ne!(first.1, second.1);
        let part = one.slice(10..20).unwrap();
        assert_eq!(part.file().unwrap().1, first.1 + 10);
        let (_own, own) = at(3 << 20);
        assert_eq!(own.unwrap().1, 0);
        assert_eq!(at(100).1, None);
    }

    #[test]
    fn nobody_else_can_write_or_shrink_a_file() {
        let pool = pool(usize::MAX);
        let buf = pool.copy_from(&[7; 2 << 20]).unwrap();
        let file = buf.file().unwrap().0;
        let map = |prot| Mapping::map(file.fd(), file.len(), prot);
        assert!(map(ProtFlags::READ | ProtFlags::WRITE).is_err());
        assert!(rustix::fs::ftruncate(file.fd(), 0).is_err());
        assert!(rustix::io::pwrite(file.fd(), &[1], 0).is_err());
        let mut byte = [0];
        map(ProtFlags::READ).unwrap().read(5, &mut byte);
        assert_eq!(byte, [7]);
        // The pool still writes where it had written before.
        let mut buf = buf.try_into_mut().unwrap();
        buf[5] = 8;
    }

    #[test]
    fn without_files_blocks_are_private() {
        let pool = pool(0);
        let buf = pool.copy_from(&[1; 100_000]).unwrap();
        assert!(buf.file().is_none());
    }

    /// What a transfer has brought and given back is private: messages are not made of it.
    #[test]
    fn private_blocks_that_are_free_are_left_alone() {
        const BLOCK: usize = 2 << 20;
        let pool = pool(usize::MAX);
        let private: Vec<_> = (0..64)
            .map(|_| pool.alloc_private(BLOCK).unwrap())
            .collect();
        drop(private);
        for _ in 0..3 {
            let buf = pool.alloc(BLOCK).unwrap().freeze();
            let file = buf.file().map(|(file, _)| file.number);
            assert!(file.is_some());
            drop(buf);
            // It is kept, though private ones had all the room.
            let again = pool.alloc(BLOCK).unwrap().freeze();
            assert_eq!(again.file().map(|(file, _)| file.number), file);
        }
        assert!(pool.alloc_private(BLOCK).unwrap().freeze().file().is_none());
    }

    /// There are as many files as may be: private memory is used again.
    #[test]
    fn without_a_file_free_private_blocks_serve() {
        let pool = pool(0);
        let at = pool.alloc(2 << 20).unwrap().as_ptr();
        assert_eq!(pool.alloc(2 << 20).unwrap().as_ptr(), at);
    }

    /// What a few survivors hold: one small block all of its slab, whose other blocks are used
    /// again before there is another one.
    #[test]
    fn a_block_holds_its_slab_and_no_more() {
        const EACH: usize = SLAB_BYTES / FILE_FROM_BYTES;
        const SLABS: usize = 12;
        let pool = pool(usize::MAX);
        let file = |buf: &crate::buf::Buf| buf.file().unwrap().0.number;
        let make = |count: usize| -> Vec<_> {
            let bufs = (0..count).map(|_| pool.alloc(FILE_FROM_BYTES).unwrap().freeze());
            bufs.collect()
        };
        let all = make(SLABS * EACH);
        let slabs: std::collections::HashSet<u64> = all.iter().map(file).collect();
        assert_eq!(slabs.len(), SLABS);
        let mut seen = std::collections::HashSet::new();
        let survivors: Vec<_> = all
            .into_iter()
            .filter(|buf| seen.insert(file(buf)))
            .collect();
        assert_eq!(survivors.len(), SLABS);
        let class = (FILE_FROM_BYTES.trailing_zeros() - super::super::CLASS_MIN_SHIFT) as usize;
        let free = || pool.shared.class(class).filed.len();
        assert_eq!(free(), SLABS * (EACH - 1));
        let again = make(SLABS * (EACH - 1));
        assert!(again.iter().all(|buf| slabs.contains(&file(buf))));
        // Without survivors no more stays than is kept of a class, and what slabs round it up to.
        drop((again, survivors));
        assert!(free() * FILE_FROM_BYTES <= super::super::KEPT_PER_CLASS_BYTES);
    }

    #[test]
    fn slabs_go_as_a_whole() {
        const BLOCK: usize = 512 << 10;
        let pool = pool(usize::MAX);
        let blocks: Vec<_> = (0..200).map(|_| pool.alloc(BLOCK).unwrap()).collect();
        let files: std::collections::HashSet<u64> = blocks
            .into_iter()
            .map(|block| block.freeze().file().unwrap().0.number)
            .collect();
        assert_eq!(files.len(), (200 * BLOCK).div_ceil(SLAB_BYTES));
        let class = (BLOCK.trailing_zeros() - super::super::CLASS_MIN_SHIFT) as usize;
        let kept = pool.shared.class(class).filed.len();
        assert!(kept <= (super::super::KEPT_PER_CLASS_BYTES / BLOCK) + SLAB_BYTES / BLOCK);
    }
}
