//! What of a process is stored already, and what of that the next commit refers to.
//!
//! ```text
//!   same key, same version  ------------------> the object's chunks, unread
//!   same hash  -------------------------------> the chunk, wherever it was
//!   pack gone, mostly dead, one of many small -> none of it: what still lives is written anew
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::manifest::{ChunkRef, CommitId, HASH_BYTES, Manifest, ObjectEntry, Pack, Stream};
use super::{Listing, Storage, SwapConfig, SwapError, process_prefix};
use crate::state::ObjectMeta;

/// What the last commit of a process, or the image that it began with, has in storage: the next
/// commit to the same storage writes only what differs.
#[derive(Debug, Clone)]
pub struct Base {
    manifest: Arc<Manifest>,
    licensed: bool,
    /// Files that were written through after it.
    through: usize,
}

impl Base {
    pub(super) fn new(manifest: impl Into<Arc<Manifest>>) -> Self {
        Self {
            manifest: manifest.into(),
            licensed: false,
            through: 0,
        }
    }

    /// The same, with so many files that were written through after it, of a process that may
    /// write through or not.
    pub(super) fn with_through(self, licensed: bool, through: usize) -> Self {
        Self {
            licensed,
            through,
            ..self
        }
    }

    /// Files that were written through after it.
    pub(crate) fn through(&self) -> usize {
        self.through
    }

    /// Whether the process may write through without further ado.
    pub(crate) fn is_licensed(&self) -> bool {
        self.licensed
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The generation that it is.
    pub fn generation(&self) -> u64 {
        self.manifest.id.generation
    }

    /// All writes of the state up to this one are in it.
    pub(crate) fn state_version(&self) -> u64 {
        self.manifest.state_version
    }

    pub(super) fn id(&self) -> CommitId {
        self.manifest.id
    }

    /// Which of these objects the next commit to `storage` has to have the bytes of: it cannot leave
    /// them where they are. Whatever is not as it is here is among them.
    ///
    /// # Errors
    /// The storage cannot be listed.
    pub fn bytes_needed<'a>(
        &self,
        storage: &dyn Storage,
        config: &SwapConfig,
        objects: &'a [(String, ObjectMeta)],
    ) -> Result<BTreeSet<&'a str>, SwapError> {
        let manifest = self.manifest();
        let prefix = process_prefix(&manifest.application, &manifest.process);
        let listing = Listing::read(storage, &prefix).map_err(|source| SwapError::Storage {
            process: manifest.process.clone(),
            source,
        })?;
        let reuse = Reuse::new(self, &listing, config);
        let goes = |(key, meta): &&(String, ObjectMeta)| {
            let stays = reuse.as_ref().and_then(|reuse| reuse.whole(key, meta));
            stays.is_none()
        };
        let needed = objects.iter().filter(goes);
        Ok(needed.map(|(key, _)| key.as_str()).collect())
    }

    /// Whether its manifest and all its packs are still there, by their names.
    pub(super) fn is_listed(&self, listing: &Listing) -> bool {
        let packs = &self.manifest.packs;
        listing.manifests.binary_search(&self.id()).is_ok()
            && packs.iter().all(|pack| listing.has(pack))
    }
}

/// What a commit may refer to.
pub(super) struct Reuse<'a> {
    manifest: &'a Manifest,
    /// By pack: whether it is to be referred to.
    usable: Vec<bool>,
    objects: HashMap<&'a str, &'a ObjectEntry>,
    by_hash: HashMap<[u8; HASH_BYTES], &'a ChunkRef>,
}

impl<'a> Reuse<'a> {
    /// `None` if nothing can be referred to.
    pub(super) fn new(base: &'a Base, listing: &Listing, config: &SwapConfig) -> Option<Self> {
        let manifest = base.manifest();
        let same = manifest.chunk_bytes == config.chunk_bytes;
        if !same || listing.manifests.binary_search(&manifest.id).is_err() {
            return None;
        }
        let usable = packs_usable(manifest, listing, config);
        let objects = manifest.objects.iter();
        let chunks = manifest.chunks();
        let chunks = chunks.filter(|chunk| usable[chunk.pack as usize]);
        Some(Self {
            objects: objects.map(|object| (&*object.key, object)).collect(),
            by_hash: chunks.map(|chunk| (chunk.hash, chunk)).collect(),
            manifest,
            usable,
        })
    }

    pub(super) fn packs(&self) -> &'a [Pack] {
        &self.manifest.packs
    }

    /// Where an object lies that has not been written since.
    pub(super) fn object(&self, key: &str, meta: &ObjectMeta, bytes: u64) -> Option<&'a Stream> {
        let known = self.objects.get(key)?;
        let same = known.version == meta.version && known.stream.bytes == bytes;
        same.then_some(&known.stream)
    }

    /// Where an object lies that has not been written since, if all of it is to stay there.
    pub(super) fn whole(&self, key: &str, meta: &ObjectMeta) -> Option<&'a Stream> {
        let stream = self.object(key, meta, meta.bytes)?;
        let stays = stream.chunks.iter().all(|chunk| self.stays(chunk));
        stays.then_some(stream)
    }

    /// Whether a chunk of the base is to stay where it is.
    pub(super) fn stays(&self, chunk: &ChunkRef) -> bool {
        self.usable[chunk.pack as usize]
    }

    /// Where a chunk with this hash lies.
    pub(super) fn chunk(&self, hash: &[u8; HASH_BYTES]) -> Option<&'a ChunkRef> {
        self.by_hash.get(hash).copied()
    }
}

/// Which packs are to be referred to: those that are there and live enough; and not the small
/// ones, once they are too many, so that packs do not become ever more and ever smaller.
fn packs_usable(manifest: &Manifest, listing: &Listing, config: &SwapConfig) -> Vec<bool> {
    let live = packs_live(manifest);
    let least: u64 = config.pack_live_min_percent.into();
    let is_small = |pack: &Pack| pack.bytes < config.pack_max_bytes / 2;
    let packs = manifest.packs.iter().zip(live);
    let mut usable: Vec<bool> = packs
        .map(|(pack, live)| {
            let dense = u128::from(live) * 100 >= u128::from(pack.bytes) * u128::from(least);
            dense && listing.has(pack)
        })
        .collect();
    let small = |(pack, usable): &(&Pack, &mut bool)| **usable && is_small(pack);
    let pairs = || manifest.packs.iter();
    let count = pairs().zip(&mut usable).filter(small).count();
    if count > config.small_packs_max as usize {
        let many = pairs().zip(&mut usable).filter(small);
        many.for_each(|(_, usable)| *usable = false);
    }
    usable
}

/// Bytes of each pack that the manifest refers to.
fn packs_live(manifest: &Manifest) -> Vec<u64> {
    let mut places: Vec<(u32, u64, u32)> = manifest
        .chunks()
        .map(|chunk| (chunk.pack, chunk.offset, chunk.stored))
        .collect();
    places.sort_unstable();
    places.dedup();
    let mut live = vec![0; manifest.packs.len()];
    for (pack, _, stored) in places {
        live[pack as usize] += u64::from(stored);
    }
    live
}
