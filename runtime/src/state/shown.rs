//! Objects that peers read by one-sided operations, without anybody running here.
//!
//! ```text
//!   reader                                            owner
//!     | Locate { key } --------------------------------> |  shows the object: a region over its
//!     | <--- version, length, object, word ------------- |  bytes, and a word that is its version
//!     |
//!     | get bytes of object                              |  nobody runs
//!     | get word: still the version?                     |
//! ```
//!
//! The bytes under a region never change, since objects are replaced, not changed: so what a reader
//! gets is the object as it was at that version, or it is told that the key is void. And it was so
//! at a moment within the read if the word said so within the read. Whoever writes an object
//! clears its word before anybody sees the new one ([`Shown::hide`], under the store's lock); the
//! region is closed by the endpoint's owner, soon after.
//!
//! A word is its object's version, and versions are never used twice: so a word may be used again
//! for another object.

use praas_transport::{Access, Buf, BufGrow, BufPool, MemoryRegion, Ops, RegionError, RemoteKey};

use super::{ObjectMeta, Objects, StateStore};

/// Which word, and which place, a shown object has.
pub(super) type Slot = u32;

/// Bytes of a word.
const WORD_BYTES: u64 = 8;
/// Objects below this many bytes are shown by a copy: they are in memory of their own, which peers
/// of this host cannot map and devices would have to register.
const SMALL_BELOW_BYTES: usize = 32 << 10;
/// Memory that such copies share; it lasts as long as one of them.
const COPIES_BYTES: usize = 64 << 10;

/// The objects that peers may read.
#[derive(Default)]
pub(super) struct Shown {
    /// The words; made with the first object.
    words: Option<MemoryRegion>,
    places: Vec<Option<Showing>>,
    /// Copies of small objects, each written once.
    copies: Option<BufGrow>,
    free: Vec<Slot>,
    /// Regions that nothing leads to any more, to be closed by the endpoint's owner.
    retired: Vec<RemoteKey>,
    stats: ShownStats,
}

struct Showing {
    key: Box<str>,
    object: RemoteKey,
    bytes: u64,
    version: u64,
    /// When it was located last: the count of locates then.
    seen: u64,
}

/// What is shown to peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShownStats {
    /// Objects that peers can read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of objects that were replaced, and whose memory lasts until their regions are closed.
    pub retired_bytes: u64,
    /// How often a peer has asked where an object is.
    pub located: u64,
}

/// Where a peer reads an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The region with its bytes.
    pub object: RemoteKey,
    /// Where they begin in it.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// The region with the word that is its version.
    pub words: RemoteKey,
    /// Where the word is.
    pub word: u64,
}

/// An object that was looked for on behalf of a peer.
#[derive(Debug, Clone)]
pub struct Located {
    /// Its bytes.
    pub buf: Buf,
    /// What is known of it.
    pub meta: ObjectMeta,
    /// Where it can be read; none if it cannot be shown.
    pub place: Option<Place>,
}

impl Shown {
    /// An object is no longer what it was: nobody takes it for the present one from here on. Whether
    /// the endpoint's owner is to be told that there is something to close.
    pub(super) fn hide(&mut self, slot: Slot) -> bool {
        let Some(showing) = self.remove(slot) else {
            return false;
        };
        self.stats.retired_bytes += showing.bytes;
        self.retired.push(showing.object);
        self.retired.len() == 1
    }

    /// Hides all.
    pub(super) fn hide_all(&mut self) -> bool {
        let mut told = false;
        for slot in 0..self.places.len() {
            told |= self.hide(slot as Slot);
        }
        told
    }

    fn remove(&mut self, slot: Slot) -> Option<Showing> {
        let showing = self.places.get_mut(slot as usize)?.take()?;
        if let Some(words) = &self.words {
            let was = words.compare_swap(word_at(slot) as usize, showing.version, 0);
            debug_assert_eq!(was, Ok(showing.version));
        }
        self.free.push(slot);
        self.stats.objects -= 1;
        self.stats.bytes -= showing.bytes;
        Some(showing)
    }

    /// The slot of what was located the longest ago, and its key.
    fn oldest(&self) -> Option<(Slot, Box<str>)> {
        let places = self.places.iter().enumerate();
        let places = places.filter_map(|(slot, place)| Some((slot, place.as_ref()?)));
        let (slot, showing) = places.min_by_key(|(_, showing)| showing.seen)?;
        Some((slot as Slot, showing.key.clone()))
    }

    /// Shows an object, if there is a slot.
    fn show(
        &mut self,
        ops: &mut Ops,
        key: &str,
        buf: &Buf,
        version: u64,
        objects_max: usize,
    ) -> Result<Slot, RegionError> {
        let words = match &self.words {
            Some(words) => words.clone(),
            None => {
                let words = ops.region_create(objects_max * WORD_BYTES as usize, Access::READ)?;
                self.words.insert(words).clone()
            }
        };
        let object = ops.region_share(self.memory(ops.pool(), buf))?;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() as Slot - 1
        });
        let bytes = buf.len() as u64;
        self.places[slot as usize] = Some(Showing {
            key: key.into(),
            object,
            bytes,
            version,
            seen: self.stats.located,
        });
        self.stats.objects += 1;
        self.stats.bytes += bytes;
        let was = words.compare_swap(word_at(slot) as usize, 0, version);
        debug_assert_eq!(was, Ok(0));
        Ok(slot)
    }

    /// The memory by which an object is shown: its own, or that of a copy.
    fn memory(&mut self, pool: &BufPool, buf: &Buf) -> Buf {
        if buf.len() >= SMALL_BELOW_BYTES {
            return buf.clone();
        }
        let copied = self.copies.as_mut().and_then(|copies| copy(copies, buf));
        copied
            .or_else(|| {
                let mut copies = pool.grow(COPIES_BYTES).ok()?;
                let copied = copy(&mut copies, buf);
                self.copies = Some(copies);
                copied
            })
            .unwrap_or_else(|| buf.clone())
    }

    fn place(&mut self, slot: Slot) -> Option<Place> {
        let showing = self.places.get_mut(slot as usize)?.as_mut()?;
        showing.seen = self.stats.located;
        Some(Place {
            object: showing.object,
            offset: 0,
            len: showing.bytes,
            words: self.words.as_ref()?.key(),
            word: word_at(slot),
        })
    }
}

/// A copy at the end of others, if there is room.
fn copy(copies: &mut BufGrow, buf: &Buf) -> Option<Buf> {
    let from = copies.grown().len();
    copies
        .extend(buf)
        .then(|| copies.grown().slice(from..from + buf.len()))?
}

fn word_at(slot: Slot) -> u64 {
    u64::from(slot) * WORD_BYTES
}

impl Objects {
    /// Makes room for one more shown object.
    fn shown_make_room(&mut self, ops: &mut Ops, objects_max: usize) {
        while self.shown.stats.objects >= objects_max as u64 {
            let Some((slot, key)) = self.shown.oldest() else {
                return;
            };
            if let Some(object) = self.by_key.get_mut(&key) {
                object.shown = None;
            }
            if let Some(showing) = self.shown.remove(slot) {
                ops.region_close(showing.object);
            }
        }
    }
}

impl StateStore {
    /// Looks for an object on behalf of a peer, and shows it, by the endpoint's owner. At most
    /// `objects_max` are shown; the one that was located the longest ago makes way. One that is in
    /// storage still has no bytes here: [`StateStore::look`] first.
    pub fn locate(&self, ops: &mut Ops, key: &str, objects_max: usize) -> Option<Located> {
        let mut guard = self.lock();
        let objects = &mut *guard;
        objects.shown.stats.located += 1;
        let object = objects.by_key.get(key)?;
        let (buf, meta, mut slot) = (object.buf.clone(), object.meta, object.shown);
        if slot.is_none() && objects_max > 0 {
            objects.shown_make_room(ops, objects_max);
            let shown = &mut objects.shown;
            match shown.show(ops, key, &buf, meta.version, objects_max) {
                Ok(shown) => slot = Some(shown),
                Err(error) => tracing::debug!(%error, key, "a state object cannot be shown"),
            }
            if let Some(object) = objects.by_key.get_mut(key) {
                object.shown = slot;
            }
        }
        let place = slot.and_then(|slot| objects.shown.place(slot));
        Some(Located { buf, meta, place })
    }

    /// Whom to tell that there are regions to be closed, by [`StateStore::retired_close`]. Once.
    pub fn on_retired(&self, tell: impl Fn() + Send + Sync + 'static) {
        // The first one stays.
        let _ = self.retired.set(Box::new(tell));
    }

    pub(super) fn retired_tell(&self, told: bool) {
        if told && let Some(tell) = self.retired.get() {
            tell();
        }
    }

    /// Closes the regions of objects that are no more, by the endpoint's owner.
    pub fn retired_close(&self, ops: &mut Ops) {
        let retired = {
            let mut objects = self.lock();
            objects.shown.stats.retired_bytes = 0;
            std::mem::take(&mut objects.shown.retired)
        };
        for object in retired {
            ops.region_close(object);
        }
    }

    /// Hides all objects from peers: they are about to be somewhere else.
    pub fn hide_all(&self, ops: &mut Ops) {
        {
            let mut objects = self.lock();
            objects.shown.hide_all();
            for object in objects.by_key.values_mut() {
                object.shown = None;
            }
        }
        self.retired_close(ops);
    }

    /// What is shown to peers now.
    pub fn shown(&self) -> ShownStats {
        self.read().shown.stats
    }
}
