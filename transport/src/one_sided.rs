//! One-sided operations: memory regions, their keys, and what may be done to them.
//!
//! Remote memory is (key, offset, length), never a pointer. A key is 64 unguessable bits, void
//! once its region is deregistered. A wrong key, a range outside the region or an access that the
//! owner did not allow fails at the initiator and harms nobody.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::buf::BufMut;

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
    /// The transport has no one-sided operations, or the channel is closed.
    #[error("not supported on this channel")]
    Unsupported,
}

#[derive(Debug)]
struct Region {
    memory: BufMut,
    access: Access,
}

/// The regions that an endpoint has registered.
#[derive(Debug, Default)]
pub(crate) struct RegionTable {
    regions: Mutex<HashMap<u64, Region>>,
}

impl RegionTable {
    pub(crate) fn register(&self, memory: BufMut, access: Access) -> Result<RemoteKey, BufMut> {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Ok(key) = getrandom::u64() else {
                return Err(memory);
            };
            if let std::collections::hash_map::Entry::Vacant(entry) = regions.entry(key) {
                entry.insert(Region { memory, access });
                return Ok(RemoteKey(key));
            }
        }
    }

    pub(crate) fn deregister(&self, key: RemoteKey) -> Option<BufMut> {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions.remove(&key.0).map(|region| region.memory)
    }

    /// Runs `work` on a range of a region that the owner opened for it.
    fn with<R>(
        &self,
        at: RemoteSlice,
        allowed: impl FnOnce(Access) -> bool,
        work: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, OneSidedError> {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let region = regions.get_mut(&at.key.0).ok_or(OneSidedError::Key)?;
        if !allowed(region.access) {
            return Err(OneSidedError::Forbidden);
        }
        let range = OneSidedError::Range {
            offset: at.offset,
            len: at.len,
            region: region.memory.len() as u64,
        };
        let end = at.offset.checked_add(at.len).ok_or(range)?;
        let bytes = region
            .memory
            .get_mut(at.offset as usize..end as usize)
            .ok_or(range)?;
        Ok(work(bytes))
    }

    pub(crate) fn put(
        &self,
        key: RemoteKey,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), OneSidedError> {
        let at = RemoteSlice {
            key,
            offset,
            len: bytes.len() as u64,
        };
        self.with(
            at,
            |access| access.write,
            |region| region.copy_from_slice(bytes),
        )
    }

    pub(crate) fn read(
        &self,
        key: RemoteKey,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), OneSidedError> {
        let at = RemoteSlice {
            key,
            offset,
            len: into.len() as u64,
        };
        self.with(
            at,
            |access| access.read,
            |region| into.copy_from_slice(region),
        )
    }

    pub(crate) fn atomic(
        &self,
        key: RemoteKey,
        offset: u64,
        update: impl FnOnce(u64) -> u64,
    ) -> Result<u64, OneSidedError> {
        if !offset.is_multiple_of(8) {
            return Err(OneSidedError::Misaligned(offset));
        }
        let at = RemoteSlice {
            key,
            offset,
            len: 8,
        };
        self.with(
            at,
            |access| access.atomic,
            |region| {
                let mut word = [0; 8];
                word.copy_from_slice(region);
                let old = u64::from_le_bytes(word);
                region.copy_from_slice(&update(old).to_le_bytes());
                old
            },
        )
    }
}

#[derive(Debug, Clone, Copy)]
struct RemoteSlice {
    key: RemoteKey,
    offset: u64,
    len: u64,
}
