//! One-sided operations: memory regions, their keys, and what may be done to them.
//!
//! Remote memory is (key, offset, length), never a pointer. A key is 64 unguessable bits, void
//! once its region is closed. A wrong key, a range outside the region or an access that the owner
//! did not allow fails at the initiator and harms nobody.
//!
//! | region | memory | what peers may do |
//! |---|---|---|
//! | created ([`crate::Ops::region_create`]) | of its own, zeroed; reached here by [`MemoryRegion`] | what [`Access`] says |
//! | shared ([`crate::Ops::region_share`]) | a [`Buf`], whose bytes never change | get |
//!
//! Bytes that peers may change are never a Rust slice: they are copied in and out, and words are
//! changed atomically. Copies are not atomic as a whole: who puts and who gets the same bytes at
//! the same time may see some of each.
//!
//! **Order.** Operations of a channel may take effect in any order, and messages sent after them
//! may arrive before. An operation is complete, remotely, when [`crate::Handler::on_one_sided`]
//! tells so: from then on its effect is seen by everybody who looks at the region. The bytes given
//! to [`crate::Ops::put`] may be reused at once; a buffer given to [`crate::Ops::put_buf`] comes
//! back with the completion. [`crate::Ops::flush`] completes when all operations before it have;
//! after [`crate::Ops::fence`] none begins before those have. A put with an immediate value is
//! told to the target after its bytes are there.
//!
//! Peers that reach regions directly, through shared memory, ask for a region once. That it is
//! still open they see by a word of the owner's, which closing changes: `OpenWords`.
//!
//! **Closing** a region makes its key void for whatever begins after it. What began before may
//! still complete; the memory stays until it has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::mm::ProtFlags;

use crate::buf::mapping::{Mapping, memfd_create_sized};
use crate::buf::{Buf, BufMut};
use crate::clock;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Names a registered region to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct RemoteKey(pub u64);

/// What peers may do to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// Peers may get.
    pub read: bool,
    /// Peers may put.
    pub write: bool,
    /// Peers may fetch-add and compare-and-swap.
    pub atomic: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self {
        read: true,
        write: true,
        atomic: true,
    };
    /// Get only.
    pub const READ: Self = Self {
        read: true,
        write: false,
        atomic: false,
    };
}

/// Why a one-sided operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OneSidedError {
    /// The key names no region (any more).
    #[error("remote key is unknown or void")]
    Key,
    /// The range is not within the region.
    #[error("{offset}..{offset}+{len} is outside the region of {region} bytes")]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The region's length in bytes.
        region: u64,
    },
    /// The region's owner did not allow it.
    #[error("access to the region is not allowed")]
    Forbidden,
    /// Atomics work on eight bytes at a multiple of eight.
    #[error("offset {0} is no multiple of eight")]
    Misaligned(u64),
    /// The channel ended before the operation was complete; it may have taken effect or not.
    #[error("the channel ended before the operation was complete")]
    Closed,
}

/// Why a region cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// As many regions as the settings allow are open.
    #[error("the limit of {0} regions is reached (setting regions_max)")]
    TooMany(usize),
    /// No random key.
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
    /// No memory to share.
    #[error("cannot make a region of {len} bytes: {source}")]
    Memory {
        /// Its length in bytes.
        len: usize,
        /// Why.
        source: io::Error,
    },
}

/// Where an operation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemoteSlice {
    pub(crate) key: RemoteKey,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Put,
    Atomic,
}

impl Verb {
    fn allowed(self, access: Access) -> bool {
        match self {
            Self::Get => access.read,
            Self::Put => access.write,
            Self::Atomic => access.atomic,
        }
    }
}

/// The checks of every operation, wherever they are made.
///
/// # Errors
/// In this order: misaligned, forbidden, out of range.
pub(crate) fn access_check(
    verb: Verb,
    at: RemoteSlice,
    access: Access,
    region: u64,
) -> Result<(), OneSidedError> {
    if verb == Verb::Atomic && !at.offset.is_multiple_of(8) {
        return Err(OneSidedError::Misaligned(at.offset));
    }
    if !verb.allowed(access) {
        return Err(OneSidedError::Forbidden);
    }
    match at.offset.checked_add(at.len) {
        Some(end) if end <= region => Ok(()),
        _ => Err(OneSidedError::Range {
            offset: at.offset,
            len: at.len,
            region,
        }),
    }
}

/// Changes a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
    FetchAdd(u64),
    CompareSwap { expected: u64, new: u64 },
}

pub(crate) enum Memory {
    /// Memory that peers may write, with the descriptor by which they may map it.
    Shared { mapping: Mapping, fd: OwnedFd },
    /// Bytes that never change.
    Frozen(Buf),
}

/// A registered region.
pub(crate) struct Region {
    pub(crate) key: RemoteKey,
    pub(crate) access: Access,
    pub(crate) len: usize,
    pub(crate) memory: Memory,
    /// Its word among the open words, and what that is while the region is open; none if there
    /// are no such words.
    pub(crate) open: Option<(u32, u64)>,
    closed: AtomicBool,
}

/// Words that say which regions are open, in memory that peers may map and only read.
///
/// ```text
///   owner, closing:   regions.remove(key);  word[slot] = 0
///   peer:             word[slot] == what was told?  load, store or copy;  still?
/// ```
///
/// A word's value is never used twice, so a slot may be used again.
#[derive(Debug)]
pub(crate) struct OpenWords {
    mapping: Mapping,
    fd: OwnedFd,
}

impl OpenWords {
    fn create(count: usize) -> io::Result<Self> {
        let bytes = (count * 8).next_multiple_of(4096);
        let fd = memfd_create_sized("praas-open", bytes)?;
        let mapping = Mapping::map(fd.as_fd(), bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        fcntl_add_seals(
            &fd,
            REGION_SEALS | SealFlags::FUTURE_WRITE | SealFlags::SEAL,
        )?;
        Ok(Self { mapping, fd })
    }

    /// The descriptor for peers, and the bytes of the memory.
    pub(crate) fn told(&self) -> (BorrowedFd<'_>, u64) {
        (self.fd.as_fd(), self.mapping.len as u64)
    }

    /// Writes as only its owner can, and none does.
    #[cfg(all(test, not(praas_loom)))]
    pub(crate) fn scribble(&self, at: usize, bytes: &[u8]) {
        self.mapping.write(at, bytes);
    }

    fn set(&self, slot: u32, value: u64) {
        open_set(self.mapping.word64(slot as usize * 8), value);
    }
}

/// Sets an open word. What the owner does to the region's memory afterwards comes after it.
fn open_set(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Release);
    fence(Ordering::SeqCst);
}

/// Before an operation: whether the region is open.
#[inline]
pub(crate) fn open_is(word: &AtomicU64, value: u64) -> bool {
    word.load(Ordering::Acquire) == value
}

/// After a copy out of the region's memory: whether the region was open all the while, so that
/// what was copied was its own.
#[inline]
pub(crate) fn open_was(word: &AtomicU64, value: u64) -> bool {
    fence(Ordering::Acquire);
    word.load(Ordering::Relaxed) == value
}

const REGION_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("len", &self.len)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl Region {
    /// Whether the key is void.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Copies out; the range was checked.
    pub(crate) fn read(&self, at: usize, into: &mut [u8]) {
        match &self.memory {
            Memory::Shared { mapping, .. } => mapping.read(at, into),
            Memory::Frozen(buf) => into.copy_from_slice(&buf[at..at + into.len()]),
        }
    }

    /// Copies in; range and access were checked. Frozen memory allows no access that writes.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        match &self.memory {
            Memory::Shared { mapping, .. } => mapping.write(at, bytes),
            Memory::Frozen(_) => debug_assert!(false, "frozen memory is not writable"),
        }
    }

    /// Changes a word and gives its old value; range, alignment and access were checked.
    pub(crate) fn atomic(&self, at: usize, atomic: Atomic) -> u64 {
        let Memory::Shared { mapping, .. } = &self.memory else {
            debug_assert!(false, "frozen memory is not writable");
            return 0;
        };
        word_change(mapping, at, atomic)
    }
}

/// Changes a word of a mapping and gives its old value. Words are little-endian everywhere.
pub(crate) fn word_change(mapping: &Mapping, at: usize, atomic: Atomic) -> u64 {
    let word = mapping.word64(at);
    match atomic {
        Atomic::FetchAdd(add) if cfg!(target_endian = "little") => {
            word.fetch_add(add, Ordering::SeqCst)
        }
        Atomic::FetchAdd(add) => {
            let mut old = word.load(Ordering::SeqCst);
            loop {
                let new = u64::from_le(old).wrapping_add(add).to_le();
                match word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(old) => return u64::from_le(old),
                    Err(now) => old = now,
                }
            }
        }
        Atomic::CompareSwap { expected, new } => {
            let changed = word.compare_exchange(
                expected.to_le(),
                new.to_le(),
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            u64::from_le(changed.unwrap_or_else(|now| now))
        }
    }
}

/// Memory that peers reach by one-sided operations, as its owner sees it; clones share it. The
/// region stays open until [`crate::Ops::region_close`], whatever becomes of this.
#[derive(Debug, Clone)]
pub struct MemoryRegion {
    region: Arc<Region>,
}

impl MemoryRegion {
    /// What peers name it by.
    pub fn key(&self) -> RemoteKey {
        self.region.key
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.region.len
    }

    /// Copies out of the region. Words that peers change meanwhile are old or new, each by itself.
    ///
    /// # Errors
    /// The range is outside.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OneSidedError> {
        self.range(offset, into.len())?;
        self.region.read(offset, into);
        Ok(())
    }

    /// Copies into the region.
    ///
    /// # Errors
    /// The range is outside.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), OneSidedError> {
        self.range(offset, bytes.len())?;
        self.region.write(offset, bytes);
        Ok(())
    }

    /// Reads a little-endian word, atomically with respect to peers' atomics.
    ///
    /// # Errors
    /// The offset is outside, or no multiple of eight.
    pub fn load(&self, offset: usize) -> Result<u64, OneSidedError> {
        self.change(offset, Atomic::FetchAdd(0))
    }

    /// Adds to a word and gives its old value.
    ///
    /// # Errors
    /// The offset is outside, or no multiple of eight.
    pub fn fetch_add(&self, offset: usize, add: u64) -> Result<u64, OneSidedError> {
        self.change(offset, Atomic::FetchAdd(add))
    }

    /// Sets a word to `new` if it is `expected`, and gives its old value.
    ///
    /// # Errors
    /// The offset is outside, or no multiple of eight.
    pub fn compare_swap(
        &self,
        offset: usize,
        expected: u64,
        new: u64,
    ) -> Result<u64, OneSidedError> {
        self.change(offset, Atomic::CompareSwap { expected, new })
    }

    fn change(&self, offset: usize, atomic: Atomic) -> Result<u64, OneSidedError> {
        if !offset.is_multiple_of(8) {
            return Err(OneSidedError::Misaligned(offset as u64));
        }
        self.range(offset, 8)?;
        Ok(self.region.atomic(offset, atomic))
    }

    fn range(&self, offset: usize, len: usize) -> Result<(), OneSidedError> {
        let at = RemoteSlice {
            key: self.region.key,
            offset: offset as u64,
            len: len as u64,
        };
        access_check(Verb::Put, at, Access::ALL, self.region.len as u64)
    }
}

/// The regions that an endpoint has open.
#[derive(Debug)]
pub(crate) struct RegionTable {
    open: Mutex<OpenRegions>,
    max: usize,
    words: OnceLock<Option<OpenWords>>,
}

#[derive(Debug, Default)]
struct OpenRegions {
    regions: HashMap<u64, Arc<Region>>,
    /// Slots of open words that were used and are free again.
    slots: Vec<u32>,
    /// Regions opened so far.
    opened: u64,
    /// Slots used so far.
    slots_used: u32,
}

impl RegionTable {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            open: Mutex::default(),
            max,
            words: OnceLock::new(),
        }
    }

    pub(crate) fn create(&self, len: usize, access: Access) -> Result<MemoryRegion, RegionError> {
        let memory =
            shared_memory(len, access).map_err(|source| RegionError::Memory { len, source })?;
        let region = self.insert(len, access, memory)?;
        Ok(MemoryRegion { region })
    }

    pub(crate) fn share(&self, buf: Buf) -> Result<RemoteKey, RegionError> {
        let region = self.insert(buf.len(), Access::READ, Memory::Frozen(buf))?;
        Ok(region.key)
    }

    fn insert(
        &self,
        len: usize,
        access: Access,
        memory: Memory,
    ) -> Result<Arc<Region>, RegionError> {
        let words = self.words.get_or_init(|| {
            // Without them peers ask for operations by frames, as over a network.
            let unable = |error| tracing::warn!(%error, "regions cannot be reached directly");
            OpenWords::create(self.max).map_err(unable).ok()
        });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let OpenRegions {
            regions,
            slots,
            opened,
            slots_used,
        } = &mut *open;
        if regions.len() >= self.max {
            return Err(RegionError::TooMany(self.max));
        }
        loop {
            let key = clock::random_u64().map_err(RegionError::Random)?;
            let Entry::Vacant(entry) = regions.entry(key) else {
                continue;
            };
            *opened += 1;
            let open = words.as_ref().map(|words| {
                let slot = slots.pop().unwrap_or_else(|| {
                    *slots_used += 1;
                    *slots_used - 1
                });
                words.set(slot, *opened);
                (slot, *opened)
            });
            let region = Arc::new(Region {
                key: RemoteKey(key),
                access,
                len,
                memory,
                open,
                closed: AtomicBool::new(false),
            });
            entry.insert(Arc::clone(&region));
            return Ok(region);
        }
    }

    /// Makes a key void; whether it named a region.
    pub(crate) fn close(&self, key: RemoteKey) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let region = open.regions.remove(&key.0);
        if let Some(region) = &region {
            region.closed.store(true, Ordering::Release);
            if let (Some(words), Some((slot, _))) = (self.words(), region.open) {
                words.set(slot, 0);
                open.slots.push(slot);
            }
        }
        region.is_some()
    }

    pub(crate) fn find(&self, key: RemoteKey) -> Option<Arc<Region>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.regions.get(&key.0).map(Arc::clone)
    }

    /// The words that say which regions are open, once there was one.
    pub(crate) fn words(&self) -> Option<&OpenWords> {
        self.words.get()?.as_ref()
    }

    /// The region that an operation may be done to.
    pub(crate) fn check(&self, verb: Verb, at: RemoteSlice) -> Result<Arc<Region>, OneSidedError> {
        if verb == Verb::Atomic && !at.offset.is_multiple_of(8) {
            return Err(OneSidedError::Misaligned(at.offset));
        }
        let region = self.find(at.key).ok_or(OneSidedError::Key)?;
        access_check(verb, at, region.access, region.len as u64)?;
        Ok(region)
    }
}

impl Drop for RegionTable {
    /// Peers that still look are told that all is void, before the memory is used for anything else.
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        let words = self.words.get().and_then(Option::as_ref);
        for region in open.regions.values() {
            if let (Some(words), Some((slot, _))) = (words, region.open) {
                words.set(slot, 0);
            }
        }
    }
}

/// Zeroed memory that peers on this host can map, and cannot shrink under us; nor write, if they
/// may not.
fn shared_memory(len: usize, access: Access) -> io::Result<Memory> {
    let bytes = len.max(1).next_multiple_of(4096);
    let fd = memfd_create_sized("praas-region", bytes)?;
    let mapping = Mapping::map(fd.as_fd(), bytes, ProtFlags::READ | ProtFlags::WRITE)?;
    let seals = match access.write || access.atomic {
        true => REGION_SEALS,
        false => REGION_SEALS | SealFlags::FUTURE_WRITE,
    };
    fcntl_add_seals(&fd, seals | SealFlags::SEAL)?;
    Ok(Memory::Shared { mapping, fd })
}

/// What a put carries.
#[derive(Debug)]
pub(crate) enum PutBytes<'a> {
    /// To be copied before the call returns; no more than the channel sends eagerly.
    Copied(&'a [u8]),
    /// A buffer that comes back with the completion.
    Held(Buf),
}

impl PutBytes<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) => bytes,
            Self::Held(buf) => buf,
        }
    }
}

/// A one-sided operation, as an endpoint gives it to a wire.
#[derive(Debug)]
pub(crate) enum OneSidedOp<'a> {
    Put {
        key: RemoteKey,
        offset: u64,
        bytes: PutBytes<'a>,
        /// What the target is told once the bytes are there.
        immediate: Option<u64>,
    },
    Get {
        key: RemoteKey,
        offset: u64,
        into: BufMut,
    },
    Atomic {
        key: RemoteKey,
        offset: u64,
        atomic: Atomic,
    },
}

impl OneSidedOp<'_> {
    pub(crate) fn verb(&self) -> Verb {
        match self {
            Self::Put { .. } => Verb::Put,
            Self::Get { .. } => Verb::Get,
            Self::Atomic { .. } => Verb::Atomic,
        }
    }

    pub(crate) fn at(&self) -> RemoteSlice {
        let (key, offset, len) = match self {
            Self::Put {
                key, offset, bytes, ..
            } => (*key, *offset, bytes.bytes().len()),
            Self::Get { key, offset, into } => (*key, *offset, into.len()),
            Self::Atomic { key, offset, .. } => (*key, *offset, 8),
        };
        RemoteSlice {
            key,
            offset,
            len: len as u64,
        }
    }
}

/// Buffers that come back from an operation.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    /// What a get read into.
    pub(crate) data: Option<BufMut>,
    /// What a put held.
    pub(crate) buf: Option<Buf>,
}

/// What a wire did with an operation.
#[derive(Debug)]
pub(crate) enum Taken<'a> {
    /// It is complete: for atomics the old value, else zero; or why it failed.
    Done(Result<u64, OneSidedError>, Returned),
    /// It will be complete, by [`crate::backend::Wire::one_sided_poll`].
    Pending,
    /// There is no room just now.
    Busy(OneSidedOp<'a>),
    /// The wire has no such thing: the endpoint asks the peer by frames.
    Unsupported(OneSidedOp<'a>),
}

/// An operation that was `Pending` and is complete.
#[derive(Debug)]
pub(crate) struct Completed {
    /// As it was given with the operation.
    pub(crate) id: u64,
    pub(crate) outcome: Result<u64, OneSidedError>,
    pub(crate) returned: Returned,
}

/// Does an operation to memory that is reached directly.
pub(crate) fn op_run(region: &Region, op: OneSidedOp<'_>) -> (u64, Returned) {
    match op {
        OneSidedOp::Put { offset, bytes, .. } => {
            region.write(offset as usize, bytes.bytes());
            let buf = match bytes {
                PutBytes::Held(buf) => Some(buf),
                PutBytes::Copied(_) => None,
            };
            (0, Returned { data: None, buf })
        }
        OneSidedOp::Get {
            offset, mut into, ..
        } => {
            region.read(offset as usize, &mut into);
            let data = Some(into);
            (0, Returned { data, buf: None })
        }
        OneSidedOp::Atomic { offset, atomic, .. } => {
            (region.atomic(offset as usize, atomic), Returned::default())
        }
    }
}

/// Buffers of an operation that failed before it began.
pub(crate) fn op_return(op: OneSidedOp<'_>) -> Returned {
    match op {
        OneSidedOp::Put {
            bytes: PutBytes::Held(buf),
            ..
        } => Returned {
            data: None,
            buf: Some(buf),
        },
        OneSidedOp::Get { into, .. } => Returned {
            data: Some(into),
            buf: None,
        },
        OneSidedOp::Put { .. } | OneSidedOp::Atomic { .. } => Returned::default(),
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_what_its_owner_and_peers_see() {
        let table = RegionTable::new(2);
        let region = table.create(24, Access::ALL).unwrap();
        assert_eq!(region.len(), 24);
        region.write(3, b"abc").unwrap();
        let mut bytes = [9; 4];
        region.read(2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0abc");
        assert_eq!(region.fetch_add(16, 5), Ok(0));
        assert_eq!(region.compare_swap(16, 5, 7), Ok(5));
        assert_eq!(region.compare_swap(16, 5, 1), Ok(7));
        assert_eq!(region.load(16), Ok(7));
        region.read(16, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0]);
        assert_eq!(region.load(4), Err(OneSidedError::Misaligned(4)));
        let range = |offset, len| {
            Err(OneSidedError::Range {
                offset,
                len,
                region: 24,
            })
        };
        assert_eq!(region.write(22, b"abc"), range(22, 3));
        assert_eq!(region.read(usize::MAX, &mut bytes), range(u64::MAX, 4));

        let key = table.share(Buf::from_vec(vec![1, 2, 3])).unwrap();
        assert!(matches!(
            table.share(Buf::default()),
            Err(RegionError::TooMany(2))
        ));
        let at = |key, offset, len| RemoteSlice { key, offset, len };
        let found = table.check(Verb::Get, at(key, 1, 2)).unwrap();
        let denied = table.check(Verb::Put, at(key, 0, 1)).unwrap_err();
        assert_eq!(denied, OneSidedError::Forbidden);
        assert!(!found.is_closed() && table.close(key) && !table.close(key));
        assert!(found.is_closed());
        let void = table.check(Verb::Get, at(key, 1, 2)).unwrap_err();
        assert_eq!(void, OneSidedError::Key);
    }
}

#[cfg(all(test, praas_loom))]
mod loom_tests {
    use super::*;

    /// The owner closes a shared buffer and uses its memory again; a peer that gets it meanwhile
    /// has the old bytes, or is told that the key is void.
    #[test]
    fn loom_closed_memory_is_never_taken_for_the_regions() {
        loom::model(|| {
            let open = Arc::new(AtomicU64::new(5));
            let bytes = Arc::new([AtomicU64::new(1), AtomicU64::new(1)]);
            let (owner_open, owner_bytes) = (Arc::clone(&open), Arc::clone(&bytes));
            let thread = loom::thread::spawn(move || {
                open_set(&owner_open, 0);
                for byte in &*owner_bytes {
                    byte.store(2, Ordering::Relaxed);
                }
                open_set(&owner_open, 6);
            });
            if open_is(&open, 5) {
                let got: Vec<u64> = bytes
                    .iter()
                    .map(|byte| byte.load(Ordering::Relaxed))
                    .collect();
                if open_was(&open, 5) {
                    assert_eq!(got, [1, 1]);
                }
            }
            thread.join().unwrap();
        });
    }
}
