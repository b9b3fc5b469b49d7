//! Payload memory: [`BufMut`] is unique and writable, [`Buf`] shared and read-only.
//!
//! All payload, state and bulk memory is one of these: 64-byte aligned, reference-counted, sliced
//! without copying, and given back to its pool by the last one that drops it. Small blocks come
//! from the heap, blocks from [`HUGE_FROM_BYTES`] up are mapped, several at a time, with huge pages
//! advised, since faulting in a gigabyte by small pages costs more than sending it.
//!
//! The pool of an endpoint that shares memory has blocks of middle size in files that its peers
//! can map and copy from: `file.rs`. Files are made of small pages and cost six times as much to
//! fault in, so this is for what is used again; the largest blocks stay private.
//!
//! A pool keeps freed blocks by size class (powers of two) and hands them out again, each with the
//! count of its references, so that nothing is allocated, mapped, faulted in or cleared on a warm
//! path.
#![allow(unsafe_code)]

mod block;
#[cfg(not(praas_loom))]
mod counting;
pub(crate) mod file;
pub(crate) mod mapping;

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use self::block::{Attachment, BlockRef};
use self::block::{Block, SPAN_BYTES, pages_map};
#[cfg(not(praas_loom))]
#[doc(hidden)]
pub use self::counting::CountingAlloc;
use self::file::{BlockFile, FILE_FROM_BYTES, FileRules, SLAB_BYTES, number_next};
use crate::sync::atomic::{AtomicUsize, Ordering, fence};

/// Alignment of every block, in bytes.
pub const ALIGN_BYTES: usize = 64;

/// Blocks of this many bytes and more are whole pages, which go back to the system by themselves.
pub const HUGE_FROM_BYTES: usize = 1 << 20;

const CLASS_MIN_SHIFT: u32 = 6;
const CLASSES: usize = 42;
/// Files up to this size are faulted in when they are made; larger ones as they are filled, lest
/// whoever asks for one stand still.
const POPULATED_MAX_BYTES: usize = 16 << 20;
/// Freed bytes that a pool keeps per size class.
const KEPT_PER_CLASS_BYTES: usize = 64 << 20;

/// The pool's limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room for {wanted} bytes: {used} of the pool's {limit} bytes are in use")]
pub struct PoolExhausted {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes in use.
    pub used: usize,
    /// The pool's limit in bytes.
    pub limit: usize,
}

/// A bounded source of buffers; clones share it.
#[derive(Clone)]
pub struct BufPool {
    shared: Arc<PoolShared>,
}

struct PoolShared {
    /// Tells its files from those of other pools.
    number: u64,
    files: Option<FileRules>,
    limit: usize,
    used: AtomicUsize,
    free: [Mutex<Free>; CLASSES],
}

/// The free blocks of a size class.
#[derive(Default)]
struct Free {
    filed: Vec<Kept>,
    private: Vec<Kept>,
}

impl Free {
    fn len(&self) -> usize {
        self.filed.len() + self.private.len()
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufPool")
            .field("limit", &self.shared.limit)
            .field("used", &self.used_bytes())
            .finish()
    }
}

impl BufPool {
    /// A pool that hands out at most `limit_bytes` at a time, all of it private memory.
    pub fn new(limit_bytes: usize) -> Self {
        Self::with_files(limit_bytes, None)
    }

    /// As [`BufPool::new`], with blocks in files that peers may map, if there are rules for them.
    pub(crate) fn with_files(limit_bytes: usize, files: Option<FileRules>) -> Self {
        let free = std::array::from_fn(|_| Mutex::default());
        let shared = PoolShared {
            number: number_next(),
            files,
            limit: limit_bytes,
            used: AtomicUsize::new(0),
            free,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What the files of this pool have for [`BlockFile::pool`].
    pub(crate) fn number(&self) -> u64 {
        self.shared.number
    }

    /// Bytes that it hands out at a time, at most.
    pub fn limit_bytes(&self) -> usize {
        self.shared.limit
    }

    /// Bytes handed out and not yet given back, rounded up to size classes.
    pub fn used_bytes(&self) -> usize {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// A writable buffer of `len` bytes. Its content is arbitrary bytes of this process.
    ///
    /// # Errors
    /// When the pool's limit is reached.
    pub fn alloc(&self, len: usize) -> Result<BufMut, PoolExhausted> {
        self.alloc_with(len, true)
    }

    /// As [`BufPool::alloc`], in memory that peers cannot map if it is large: of huge pages, which
    /// are there sooner. For much that comes at once.
    ///
    /// # Errors
    /// When the pool's limit is reached.
    pub fn alloc_private(&self, len: usize) -> Result<BufMut, PoolExhausted> {
        self.alloc_with(len, len < HUGE_FROM_BYTES)
    }

    fn alloc_with(&self, len: usize, in_file: bool) -> Result<BufMut, PoolExhausted> {
        if len == 0 {
            return Ok(BufMut::default());
        }
        let shift = len
            .next_power_of_two()
            .trailing_zeros()
            .max(CLASS_MIN_SHIFT);
        let class = (shift - CLASS_MIN_SHIFT) as usize;
        let size = if shift < usize::BITS - 2 {
            1usize << shift
        } else {
            usize::MAX / 4
        };
        // Large blocks are counted, and mapped, by their length: rounding 1.1 GiB up to 2 would
        // be waste.
        let size = if size > HUGE_FROM_BYTES {
            len.next_multiple_of(HUGE_FROM_BYTES)
        } else {
            size
        };
        let used = self.shared.used.fetch_add(size, Ordering::Relaxed);
        let exhausted = PoolExhausted {
            wanted: len,
            used,
            limit: self.shared.limit,
        };
        if class >= CLASSES || used.saturating_add(size) > self.shared.limit {
            self.shared.used.fetch_sub(size, Ordering::Relaxed);
            return Err(exhausted);
        }
        let filed = || in_file.then(|| self.shared.filed(class, size)).flatten();
        let private = || self.shared.private(class, size);
        // Without a file, private memory serves as well: peers get copies of it.
        let Some(mut counted) = filed().or_else(private) else {
            self.shared.used.fetch_sub(size, Ordering::Relaxed);
            return Err(exhausted);
        };
        counted.references = AtomicUsize::new(1);
        counted.pool = Some(Arc::clone(&self.shared));
        Ok(BufMut {
            owner: Some(Owner {
                at: NonNull::from(Box::leak(counted)),
            }),
            len,
        })
    }

    /// A buffer with a copy of `bytes`.
    ///
    /// # Errors
    /// When the pool's limit is reached.
    pub fn copy_from(&self, bytes: &[u8]) -> Result<Buf, PoolExhausted> {
        let mut buf = self.alloc(bytes.len())?;
        buf.copy_from_slice(bytes);
        Ok(buf.freeze())
    }
}

impl BufPool {
    /// An empty buffer that can grow to `capacity` bytes, or somewhat more, without moving.
    ///
    /// # Errors
    /// When the pool's limit is reached.
    pub fn grow(&self, capacity: usize) -> Result<BufGrow, PoolExhausted> {
        let memory = self.alloc(capacity)?;
        Ok(BufGrow {
            owner: memory.owner,
            len: 0,
        })
    }
}

impl PoolShared {
    fn class(&self, class: usize) -> MutexGuard<'_, Free> {
        self.free[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A block in a file, if blocks of this size may be in one: one that was given back, or a new
    /// one. Private ones that are free are left to those who want private memory.
    fn filed(&self, class: usize, size: usize) -> Option<Box<Counted>> {
        let rules = self.files?;
        if !(FILE_FROM_BYTES..=rules.block_max_bytes).contains(&size) {
            return None;
        }
        let reused = block_take(&mut self.class(class).filed, size);
        if let Some(counted) = reused {
            if let Some((file, _)) = &counted.block.file {
                file.lend();
            }
            return Some(counted);
        }
        let block = self.block_file(class, size, rules)?;
        Some(Box::new(Counted::new(block)))
    }

    /// A block of private memory: one that was given back, or a new one.
    fn private(&self, class: usize, size: usize) -> Option<Box<Counted>> {
        let reused = block_take(&mut self.class(class).private, size);
        reused.or_else(|| {
            let block = self.block_private(class, size)?;
            Some(Box::new(Counted::new(block)))
        })
    }

    /// A block of private memory; the others of a new span are free then, and take no memory until
    /// they are touched.
    fn block_private(&self, class: usize, size: usize) -> Option<Block> {
        if size < HUGE_FROM_BYTES {
            return Block::allocate(size);
        }
        let count = (SPAN_BYTES / size).max(1);
        let at = pages_map(size * count)?;
        // SAFETY: the parts of the span do not overlap, each is mapped, zeroed, and known to
        // nobody else.
        let block = |number: usize| unsafe { Block::mapped(at.add(number * size), size) };
        let others = (1..count).rev().map(block);
        let others = others.map(|block| Kept(Box::new(Counted::new(block))));
        self.class(class).private.extend(others);
        Some(block(0))
    }

    /// A block in a file; the others of a new slab are free then.
    fn block_file(&self, class: usize, size: usize, rules: FileRules) -> Option<Block> {
        if size >= HUGE_FROM_BYTES {
            let file = BlockFile::create(size, self.number, rules).ok()?;
            if size <= POPULATED_MAX_BYTES {
                file.populate();
            }
            file.lend();
            return Some(Block::within(&file, 0, size));
        }
        let file = BlockFile::create(SLAB_BYTES, self.number, rules).ok()?;
        file.lend();
        let others = (1..SLAB_BYTES / size).rev();
        let others = others.map(|at| Block::within(&file, at * size, size));
        let others = others.map(|block| Kept(Box::new(Counted::new(block))));
        self.class(class).filed.extend(others);
        Some(Block::within(&file, 0, size))
    }

    /// Keeps a block that came back, if there is room for it.
    fn keep(&self, class: usize, counted: Box<Counted>) {
        let size = counted.block.size;
        let kept_max = (KEPT_PER_CLASS_BYTES / size).max(1);
        let mut free = self.class(class);
        let file = counted.block.file.as_ref();
        let slab = file.filter(|(file, _)| file.unlend() && file.len() > size);
        let slab = slab.map(|(file, _)| Arc::clone(file));
        let in_slab = file.is_some_and(|(file, _)| file.len() > size);
        let has_file = file.is_some();
        if has_file && free.len() >= kept_max {
            // Who wants private memory is rare, and costs nobody a second copy.
            free.private.pop();
        }
        if free.len() < kept_max || in_slab {
            match has_file {
                true => free.filed.push(Kept(counted)),
                false => free.private.push(Kept(counted)),
            }
        }
        if let Some(slab) = slab
            && free.len() > kept_max
        {
            // A slab can only go as a whole.
            let of_slab = |file: &Option<(Arc<BlockFile>, usize)>| {
                file.as_ref()
                    .is_some_and(|(file, _)| Arc::ptr_eq(file, &slab))
            };
            free.filed.retain(|kept| !of_slab(&kept.0.block.file));
        }
    }
}

/// Takes the block of this size that was given back last.
fn block_take(free: &mut Vec<Kept>, size: usize) -> Option<Box<Counted>> {
    let at = free.iter().rposition(|kept| kept.0.block.size == size)?;
    Some(free.swap_remove(at).0)
}

/// A block and how many refer to it.
struct Counted {
    references: AtomicUsize,
    block: Block,
    /// Where it is given back to; none while it is there.
    pool: Option<Arc<PoolShared>>,
}

impl Counted {
    fn new(block: Block) -> Self {
        Self {
            references: AtomicUsize::new(1),
            block,
            pool: None,
        }
    }
}

/// A block that nobody has on loan.
struct Kept(Box<Counted>);

/// More references than this are a leak in a loop: counting on would wrap around, and free what is
/// in use.
const REFERENCES_MAX: usize = isize::MAX as usize;

/// A reference to a block on loan from its pool: as an `Arc`, but what is counted goes back to the
/// pool together with the count.
struct Owner {
    at: NonNull<Counted>,
}

// SAFETY: whoever has a reference may read what is counted, which is `Sync`, from any thread; the
// last one to go owns it, and it is `Send`.
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

impl Owner {
    #[inline]
    fn counted(&self) -> &Counted {
        // SAFETY: what is counted lives as long as any reference, of which this is one, and is
        // not changed meanwhile but for the count.
        unsafe { self.at.as_ref() }
    }

    fn block(&self) -> BlockRef<'_> {
        let block = &self.counted().block;
        BlockRef {
            at: block.at,
            size: block.size,
            attached: &block.attached,
        }
    }

    #[inline]
    fn is_only(&self) -> bool {
        self.counted().references.load(Ordering::Acquire) == 1
    }
}

impl Clone for Owner {
    #[inline]
    fn clone(&self) -> Self {
        // Relaxed, as in `Arc`: who clones has a reference, which is all the order it takes.
        let before = self.counted().references.fetch_add(1, Ordering::Relaxed);
        if before > REFERENCES_MAX {
            std::process::abort();
        }
        Self { at: self.at }
    }
}

impl Drop for Owner {
    #[inline]
    fn drop(&mut self) {
        if self.counted().references.fetch_sub(1, Ordering::Release) == 1 {
            // What others did with the block comes before it is given back.
            fence(Ordering::Acquire);
            // SAFETY: it was leaked from a box when it was lent, and this was the last reference.
            block_return(unsafe { Box::from_raw(self.at.as_ptr()) });
        }
    }
}

/// Gives a block back to its pool.
fn block_return(mut counted: Box<Counted>) {
    let Some(pool) = counted.pool.take() else {
        return;
    };
    let size = counted.block.size;
    pool.used.fetch_sub(size, Ordering::Relaxed);
    let shift = size.next_power_of_two().trailing_zeros();
    let class = (shift - CLASS_MIN_SHIFT) as usize;
    pool.keep(class, counted);
}

/// A unique, writable buffer.
#[derive(Default)]
pub struct BufMut {
    owner: Option<Owner>,
    len: usize,
}

impl BufMut {
    /// Makes the buffer shorter; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The block under it, unless it is empty.
    pub(crate) fn block(&self) -> Option<BlockRef<'_>> {
        self.owner.as_ref().map(Owner::block)
    }

    /// Ends writing: from here on it is shared and read-only.
    pub fn freeze(self) -> Buf {
        let len = self.len;
        match self.owner {
            Some(owner) => Buf {
                memory: Memory::Pooled(owner),
                start: 0,
                len,
            },
            None => Buf::default(),
        }
    }
}

impl fmt::Debug for BufMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufMut({} bytes)", self.len)
    }
}

impl Deref for BufMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.owner {
            // SAFETY: the block is initialised (zeroed at first, written since), at least `len`
            // bytes long, and borrowed as long as `self`.
            Some(owner) => unsafe {
                std::slice::from_raw_parts(owner.counted().block.at.as_ptr(), self.len)
            },
            None => &[],
        }
    }
}

impl DerefMut for BufMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &self.owner {
            // SAFETY: as in `deref`; `&mut self` is the only handle to the block.
            Some(owner) => unsafe {
                std::slice::from_raw_parts_mut(owner.counted().block.at.as_ptr(), self.len)
            },
            None => &mut [],
        }
    }
}

/// A buffer that grows at its end while what it was before is shared: bytes are written once, and
/// only behind what has been handed out.
pub struct BufGrow {
    owner: Option<Owner>,
    len: usize,
}

impl BufGrow {
    /// Adds bytes to the end, if there is room for them.
    pub fn extend(&mut self, bytes: &[u8]) -> bool {
        let Some(owner) = &self.owner else {
            return bytes.is_empty();
        };
        let block = &owner.counted().block;
        if bytes.len() > block.size - self.len {
            return false;
        }
        // SAFETY: the room is within the block, and nobody else reads or writes it: buffers that
        // share the block end at or before `len`, and none is made writable again while this one
        // holds a reference. `bytes` is no part of the room, which nothing refers to.
        unsafe {
            let to = block.at.as_ptr().add(self.len);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        self.len += bytes.len();
        true
    }

    /// All that is there now. It stays as it is, whatever is added later.
    pub fn grown(&self) -> Buf {
        match &self.owner {
            Some(owner) => Buf {
                memory: Memory::Pooled(owner.clone()),
                start: 0,
                len: self.len,
            },
            None => Buf::default(),
        }
    }
}

impl fmt::Debug for BufGrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufGrow({} bytes)", self.len)
    }
}

#[derive(Clone, Default)]
enum Memory {
    #[default]
    Empty,
    Pooled(Owner),
    Vector(Arc<Vec<u8>>),
}

/// A shared, read-only buffer; clones and slices share the memory.
#[derive(Clone, Default)]
pub struct Buf {
    memory: Memory,
    start: usize,
    len: usize,
}

impl Buf {
    /// A buffer over the vector's own memory, in no pool.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self {
            memory: Memory::Vector(Arc::new(bytes)),
            start: 0,
            len,
        }
    }

    /// The block under it, if it comes from a pool.
    pub(crate) fn block(&self) -> Option<BlockRef<'_>> {
        match &self.memory {
            Memory::Pooled(owner) => Some(owner.block()),
            Memory::Empty | Memory::Vector(_) => None,
        }
    }

    /// A part of the buffer, sharing its memory; `None` if the range is not within it.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len {
            return None;
        }
        let memory = self.memory.clone();
        Some(Self {
            memory,
            start: self.start + range.start,
            len: range.end - range.start,
        })
    }

    /// The file that the buffer is in, and where, if peers can map it.
    pub(crate) fn file(&self) -> Option<(&Arc<BlockFile>, u64)> {
        let Memory::Pooled(owner) = &self.memory else {
            return None;
        };
        let (file, offset) = owner.counted().block.file.as_ref()?;
        Some((file, (offset + self.start) as u64))
    }

    /// The writable buffer again, if nobody else shares its memory and it is no part of one.
    ///
    /// # Errors
    /// The buffer itself otherwise.
    pub fn try_into_mut(self) -> Result<BufMut, Self> {
        let Self { memory, start, len } = self;
        match memory {
            Memory::Pooled(owner) if start == 0 && owner.is_only() => Ok(BufMut {
                owner: Some(owner),
                len,
            }),
            memory => Err(Self { memory, start, len }),
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Empty => &[],
            Memory::Vector(bytes) => &bytes[self.start..self.start + self.len],
            Memory::Pooled(owner) => {
                let at = owner.counted().block.at.as_ptr();
                // SAFETY: `start + len` is within what was written before the freeze, and nothing
                // writes to a frozen block while this handle lives.
                unsafe { std::slice::from_raw_parts(at.add(self.start), self.len) }
            }
        }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Buf {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_vec(bytes)
    }
}

impl PartialEq for Buf {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Buf {}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::block::HUGE_PAGE_BYTES;
    use super::*;

    #[test]
    fn memory_is_shared_returned_and_reused() {
        let pool = BufPool::new(1 << 22);
        let mut writable = pool.alloc(100).unwrap();
        writable.fill(7);
        assert_eq!(writable.as_ptr() as usize % ALIGN_BYTES, 0);
        let at = writable.as_ptr();
        let buf = writable.freeze();
        let part = buf.slice(10..20).unwrap();
        assert_eq!(&*part, &[7; 10]);
        assert!(buf.slice(90..101).is_none());
        let buf = buf.try_into_mut().unwrap_err();
        drop(part);
        assert_eq!(buf.try_into_mut().unwrap().len(), 100);
        assert_eq!(pool.used_bytes(), 0);
        assert_eq!(pool.alloc(128).unwrap().as_ptr(), at);
    }

    #[test]
    fn references_are_counted_across_threads() {
        let pool = BufPool::new(1 << 20);
        let buf = pool.copy_from(&[3; 1000]).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let buf = buf.clone();
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let part = buf.clone().slice(1..3).unwrap();
                        assert_eq!(&*part, &[3; 2]);
                    }
                });
            }
        });
        assert_eq!(pool.used_bytes(), 1024);
        assert!(buf.try_into_mut().is_ok());
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn what_was_there_stays_when_a_buffer_grows() {
        let pool = BufPool::new(1 << 20);
        let mut growing = pool.grow(100).unwrap();
        assert!(growing.extend(&[1; 60]));
        let first = growing.grown();
        assert!(growing.extend(&[2; 40]) && growing.extend(&[3; 28]));
        assert!(!growing.extend(&[4; 1]), "a block of 128 bytes is full");
        let all = growing.grown();
        assert_eq!((&*first, all.len()), (&[1; 60][..], 128));
        assert_eq!(first.as_ptr(), all.as_ptr());
        drop(all);
        let first = first.try_into_mut().unwrap_err();
        drop(growing);
        assert_eq!(first.try_into_mut().unwrap().len(), 60);
        assert_eq!(pool.used_bytes(), 0);
        assert!(pool.grow(0).unwrap().extend(&[]));
    }

    #[test]
    fn large_blocks_lie_together_and_go_each_by_itself() {
        const BLOCK: usize = 3 << 20;
        let pool = BufPool::new(1 << 30);
        let count = SPAN_BYTES / BLOCK + 2;
        let fill = |number| {
            let mut block = pool.alloc(BLOCK).unwrap();
            assert!(block.iter().step_by(4096).all(|byte| *byte == 0));
            block[..8].fill(number as u8);
            block[BLOCK - 8..].fill(number as u8);
            block
        };
        let mut blocks: Vec<_> = (0..count).map(fill).collect();
        let at: Vec<usize> = blocks.iter().map(|block| block.as_ptr() as usize).collect();
        assert_eq!((at[0] % HUGE_PAGE_BYTES, at[1] - at[0]), (0, BLOCK));
        let second = SPAN_BYTES / BLOCK;
        assert_eq!(at[second] % HUGE_PAGE_BYTES, 0);
        // What is not kept for the next is unmapped, and its neighbours stay.
        pool.shared
            .free
            .iter()
            .for_each(|free| *free.lock().unwrap() = Free::default());
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 2 == 1
        });
        pool.shared
            .free
            .iter()
            .for_each(|free| *free.lock().unwrap() = Free::default());
        for (number, block) in (0_u8..).step_by(2).zip(&blocks) {
            assert_eq!((block[7], block[BLOCK - 8]), (number, number));
        }
    }

    #[test]
    fn private_blocks_are_in_no_file() {
        let rules = FileRules {
            block_max_bytes: 16 << 20,
            files_max: usize::MAX,
        };
        let pool = BufPool::with_files(1 << 30, Some(rules));
        let in_file = |buf: BufMut| buf.freeze().file().is_some();
        for len in [HUGE_FROM_BYTES, 5 << 20] {
            assert!(in_file(pool.alloc(len).unwrap()));
            // Nor is one that was given back.
            assert!(!in_file(pool.alloc_private(len).unwrap()));
        }
        assert!(in_file(pool.alloc_private(FILE_FROM_BYTES).unwrap()));
    }

    #[test]
    fn the_limit_holds() {
        let pool = BufPool::new(4 << 20);
        let large = pool.alloc(3 << 20).unwrap();
        assert_eq!(large.as_ptr() as usize % 4096, 0);
        let error = pool.alloc(2 << 20).unwrap_err();
        assert_eq!((error.wanted, error.used), (2 << 20, 3 << 20));
        drop(large);
        assert!(pool.alloc(2 << 20).is_ok());
        assert!(pool.alloc(usize::MAX / 2).is_err());
        assert!(pool.alloc(0).unwrap().freeze().is_empty());
    }
}
