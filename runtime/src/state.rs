//! State objects: named bytes that a process keeps between invocations.
//!
//! Objects are [`Buf`]s: a view shares the memory and stays what it was when a later put replaces
//! the object. Reads take a shared lock for a look-up; writes copy before they lock. What peers
//! read by one-sided operations is in `shown`; what is not back from storage yet in `absent`.

mod absent;
mod draft;
mod shown;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use praas_transport::clock;
use praas_transport::sync::atomic::{AtomicU64, Ordering};
use praas_transport::{Buf, BufGrow, BufPool, PoolExhausted, StatsPage, StatsWord};
use serde::{Deserialize, Serialize};

use self::absent::costs;
pub use self::absent::{Absent, AbsentObjects, FetchError, Look, ObjectSource};
pub use self::draft::Draft;
pub use self::shown::{Located, Place, ShownStats};
use self::shown::{Shown, Slot};

/// Bytes that a key may have.
pub const KEY_MAX_BYTES: usize = 255;
/// Bytes that an object counts for besides its key and its payload: what the store knows of it, and
/// the least that memory comes in (481 bytes in all for objects of one byte).
pub const OBJECT_OVERHEAD_BYTES: u64 = 512;

/// What is known of an object besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectMeta {
    /// Changes with every write of the process's state; never used twice.
    pub version: u64,
    /// When it was last written, in milliseconds since the Unix epoch.
    pub written_unix_ms: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Since when versions are counted, in milliseconds since the Unix epoch.
const VERSIONS_SINCE_UNIX_MS: u64 = 1_700_000_000_000;
/// As a power of two, the versions that a millisecond has: more than an incarnation can use in one.
const VERSIONS_PER_MS_LOG2: u32 = 14;

/// Above which version an incarnation begins that starts at this time.
///
/// What died may have given versions that no image tells of, and none may be given again: whoever
/// read such an object could swap another for it. Since an incarnation gives fewer than 2^14 in a
/// millisecond, one that begins above its start's milliseconds times 2^14 is above all of those
/// before it. Clocks of nodes may differ by as long as it takes to declare a node dead. The
/// incarnation's number, which counts from the milliseconds of the control plane's clock, is there
/// for a clock that is far behind. Versions are below 2^53, which JSON has room for, until 2041.
pub fn versions_floor(incarnation: u64, unix_ms: u64) -> u64 {
    let most = u64::MAX >> (VERSIONS_PER_MS_LOG2 + 1);
    let begun = incarnation.max(unix_ms);
    begun.saturating_sub(VERSIONS_SINCE_UNIX_MS).min(most) << VERSIONS_PER_MS_LOG2
}

/// Objects as a snapshot has them: those that are here, and those that are in storage only.
pub type Parted = (Snapshot, Vec<(String, ObjectMeta)>);

/// Why an operation on state failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The process's memory limit for state would be passed.
    #[error("state of {used} bytes and {wanted} more pass the limit of {limit} (state_max_bytes)")]
    LimitReached {
        /// Bytes in use.
        used: u64,
        /// Bytes that the operation adds.
        wanted: u64,
        /// The limit.
        limit: u64,
    },
    /// A key is empty or above [`KEY_MAX_BYTES`].
    #[error("a state key has 1 to 255 bytes, not {0}")]
    BadKey(usize),
    /// The object is not what compare-and-swap expected.
    #[error("the object is at version {actual}, not {expected} (0 is absent)")]
    Conflict {
        /// The version that was expected; zero is absent.
        expected: u64,
        /// The version that is there; zero is absent.
        actual: u64,
    },
    /// The object did not come back from storage as it was written.
    #[error("state object '{key}' is damaged in storage: {what}")]
    Corrupt {
        /// The object.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// The object is in storage still, and cannot be had now.
    #[error("state object '{key}' cannot be had from storage now: {what}")]
    Unavailable {
        /// The object.
        key: String,
        /// Why.
        what: String,
    },
    /// No memory for the object.
    #[error(transparent)]
    Pool(#[from] PoolExhausted),
}

/// An object, and what else hangs on it.
struct Object {
    buf: Buf,
    meta: ObjectMeta,
    /// Room behind `buf` for what is appended.
    growing: Option<Box<BufGrow>>,
    /// Where peers may read it by themselves.
    shown: Option<Slot>,
    /// Where its bytes come from; `buf` is empty until they are there.
    absent: Option<Arc<Absent>>,
}

/// All objects at one moment.
pub type Snapshot = Vec<(String, Buf, ObjectMeta)>;

/// What there is under a key at one moment.
#[derive(Debug)]
pub enum Moment {
    /// An object.
    Object(Buf, ObjectMeta),
    /// An object that is in storage still, as it is.
    Stored(ObjectMeta),
    /// Nothing, at a version that is no other change's.
    Nothing(u64),
}

impl Moment {
    fn of(object: &Object) -> Self {
        match object.is_absent() {
            true => Self::Stored(object.meta),
            false => Self::Object(object.buf.clone(), object.meta),
        }
    }
}

#[derive(Default)]
struct Objects {
    by_key: BTreeMap<Box<str>, Object>,
    bytes: u64,
    /// Objects that are absent.
    absent: usize,
    version: u64,
    shown: Shown,
}

/// The state of a process.
pub struct StateStore {
    objects: RwLock<Objects>,
    pool: BufPool,
    limit: u64,
    /// Bytes of drafts.
    lent: Arc<AtomicU64>,
    /// Where bytes are counted for others to see.
    page: Option<Arc<StatsPage>>,
    /// Told when there are regions to be closed.
    retired: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// There are no other threads.
    one_thread: bool,
}

/// What is to be written in an object's place.
struct New {
    buf: Buf,
    growing: Option<Box<BufGrow>>,
}

impl From<Buf> for New {
    fn from(buf: Buf) -> Self {
        Self { buf, growing: None }
    }
}

impl StateStore {
    /// An empty store of at most `limit` bytes from `pool`: keys, payloads, [`OBJECT_OVERHEAD_BYTES`]
    /// for each object, and drafts.
    pub fn new(pool: BufPool, limit: u64) -> Self {
        Self {
            objects: RwLock::new(Objects::default()),
            pool,
            limit,
            lent: Arc::default(),
            page: None,
            retired: OnceLock::new(),
            one_thread: false,
        }
    }

    /// There is one thread only, which goes on elsewhere while storage is read.
    pub fn one_thread_set(&mut self) {
        self.one_thread = true;
    }

    /// Counts bytes in this page, too, from now on.
    pub fn count_in(&mut self, page: Arc<StatsPage>) {
        self.page = Some(page);
        self.bytes_tell(self.used_bytes());
    }

    fn bytes_tell(&self, bytes: u64) {
        if let Some(page) = &self.page {
            let word = page.word(StatsWord::StateBytes);
            word.store(bytes, Ordering::Relaxed);
        }
    }

    /// Writes an object; its new version.
    ///
    /// # Errors
    /// A bad key, or the memory limit; the old object then stays.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<u64, StateError> {
        self.put_buf(key, self.pool.copy_from(bytes)?)
    }

    /// Writes an object without copying; its new version.
    ///
    /// # Errors
    /// As [`StateStore::put`].
    pub fn put_buf(&self, key: &str, buf: Buf) -> Result<u64, StateError> {
        let len = buf.len() as u64;
        self.write(key, None, 0, |_| len, |_| Ok(buf.into()))
    }

    /// The object, sharing its memory. One that is in storage still is waited for.
    ///
    /// # Errors
    /// As [`StateStore::fetch`].
    pub fn object(&self, key: &str) -> Result<Option<(Buf, ObjectMeta)>, StateError> {
        match self.look(key) {
            None => Ok(None),
            Some(Look::Here(buf, meta)) => Ok(Some((buf, meta))),
            Some(Look::Absent(absent, meta)) => Ok(Some((self.fetch(key, &absent)?, meta))),
        }
    }

    /// What is known of an object besides its bytes, wherever those are.
    pub fn meta(&self, key: &str) -> Option<ObjectMeta> {
        Some(self.read().by_key.get(key)?.meta)
    }

    /// Removes an object; whether it was there.
    pub fn delete(&self, key: &str) -> bool {
        let mut objects = self.lock();
        let Some(object) = objects.by_key.remove(key) else {
            return false;
        };
        objects.bytes = objects.bytes.saturating_sub(cost(key, object.meta.bytes));
        self.bytes_tell(objects.bytes);
        objects.absent -= usize::from(object.is_absent());
        objects.version += 1;
        let told = object.shown.is_some_and(|shown| objects.shown.hide(shown));
        drop(objects);
        self.retired_tell(told);
        true
    }

    /// At most `limit` objects whose keys start with `prefix` and come after `after`, in order.
    pub fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(String, ObjectMeta)> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.read()
            .by_key
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, object)| (key.to_string(), object.meta))
            .collect()
    }

    /// Writes an object only if it is at version `expected`; zero expects it to be absent.
    ///
    /// # Errors
    /// [`StateError::Conflict`] names the version that is there.
    pub fn compare_swap(&self, key: &str, expected: u64, bytes: &[u8]) -> Result<u64, StateError> {
        let buf = self.pool.copy_from(bytes)?;
        let len = buf.len() as u64;
        self.write(key, Some(expected), 0, |_| len, |_| Ok(buf.into()))
    }

    /// Makes memory that was filled elsewhere the object, without copying it, if the object is at
    /// version `expected` (zero: absent; `None`: whatever it is); its new version. The memory is
    /// taken, unless the version is another one.
    ///
    /// # Errors
    /// As [`StateStore::compare_swap`].
    pub fn commit(
        &self,
        key: &str,
        expected: Option<u64>,
        draft: &mut Option<Draft>,
    ) -> Result<u64, StateError> {
        let len = draft.as_ref().map_or(0, |draft| draft.len() as u64);
        let own = draft.as_ref().map_or(0, Draft::lent_bytes);
        self.write(
            key,
            expected,
            own,
            |_| len,
            |_| {
                let buf = draft.take().map(Draft::freeze);
                Ok(buf.unwrap_or_default().into())
            },
        )
    }

    /// Adds bytes to the end of an object, which is made if there is none; its new length. The
    /// object has room to grow into, so that many appends copy each byte a few times at most. One
    /// that is in storage still is waited for.
    ///
    /// # Errors
    /// As [`StateStore::put`] and [`StateStore::fetch`].
    pub fn append(&self, key: &str, bytes: &[u8]) -> Result<u64, StateError> {
        // Once it is there it is not absent again.
        if let Some(Look::Absent(absent, _)) = self.look(key) {
            self.fetch(key, &absent)?;
        }
        let mut length = 0;
        let append = |old: Option<&mut Object>| {
            let (old, growing) = match old {
                Some(old) => (&*old.buf, old.growing.take()),
                None => (&[][..], None),
            };
            length = (old.len() + bytes.len()) as u64;
            let grew = growing.and_then(|mut growing| growing.extend(bytes).then_some(growing));
            let growing = match grew {
                Some(growing) => growing,
                None => Box::new(self.grown(old, bytes)?),
            };
            Ok(New {
                buf: growing.grown(),
                growing: Some(growing),
            })
        };
        self.write(key, None, 0, |old| old + bytes.len() as u64, append)?;
        Ok(length)
    }

    /// An object in new memory, with as much room again where there is as much.
    fn grown(&self, old: &[u8], bytes: &[u8]) -> Result<BufGrow, StateError> {
        let len = old.len() + bytes.len();
        let most = usize::try_from(self.limit).unwrap_or(usize::MAX).max(len);
        let doubled = self.pool.grow(len.saturating_mul(2).min(most));
        let mut growing = doubled.or_else(|_| self.pool.grow(len))?;
        let fits = growing.extend(old) && growing.extend(bytes);
        debug_assert!(fits, "room was made for both");
        Ok(growing)
    }

    /// Makes all versions from now on higher than `version`. A process begins each incarnation above
    /// what the one before is known to have given, and above [`versions_floor`].
    pub fn versions_above(&self, version: u64) {
        let mut objects = self.lock();
        // Whatever a damaged image says, there is room for more.
        objects.version = objects.version.max(version.min(u64::MAX - (1 << 56)));
    }

    /// Bytes in use: keys, payloads, and [`OBJECT_OVERHEAD_BYTES`] for each object.
    pub fn used_bytes(&self) -> u64 {
        self.read().bytes
    }

    /// All objects at one moment, sharing their memory.
    ///
    /// # Errors
    /// Some are in storage still ([`StateStore::fetch_all`]).
    pub fn snapshot(&self) -> Result<Snapshot, StateError> {
        let (present, absent) = self.snapshot_parted();
        match absent.into_iter().next() {
            None => Ok(present),
            Some((key, _)) => Err(StateError::Unavailable {
                key,
                what: "it is not fetched yet".into(),
            }),
        }
    }

    /// All objects at one moment: those that are here, sharing their memory, and those of which
    /// the bytes are in storage only.
    pub fn snapshot_parted(&self) -> Parted {
        let (present, absent, _) = self.snapshot_at();
        (present, absent)
    }

    /// The same, and the version of the last change before that moment, writes and deletes alike.
    pub fn snapshot_at(&self) -> (Snapshot, Vec<(String, ObjectMeta)>, u64) {
        let objects = self.read();
        let (mut present, mut absent) = (Vec::new(), Vec::new());
        for (key, object) in &objects.by_key {
            match object.is_absent() {
                false => present.push((key.to_string(), object.buf.clone(), object.meta)),
                true => absent.push((key.to_string(), object.meta)),
            }
        }
        (present, absent, objects.version)
    }

    /// What there is under a key at this moment, to be written through. That there is nothing is
    /// given a version of its own, above that of whatever was there.
    pub fn moment(&self, key: &str) -> Moment {
        if let Some(object) = self.read().by_key.get(key) {
            return Moment::of(object);
        }
        let mut objects = self.lock();
        if let Some(object) = objects.by_key.get(key) {
            return Moment::of(object);
        }
        objects.version += 1;
        Moment::Nothing(objects.version)
    }

    /// Replaces everything by what [`StateStore::snapshot`] gave, versions included. What a process
    /// has is not taken from it: above the memory limit nothing grows, but all stays.
    pub fn restore(&self, snapshot: Vec<(String, Buf, ObjectMeta)>) {
        let objects = snapshot.into_iter().map(|(key, buf, meta)| {
            let object = Object {
                buf,
                meta,
                growing: None,
                shown: None,
                absent: None,
            };
            (key.into(), object)
        });
        self.replace(objects.collect());
    }

    fn replace(&self, by_key: BTreeMap<Box<str>, Object>) {
        let (bytes, limit) = (
            costs(by_key.iter().map(|(key, object)| (&**key, object.meta))),
            self.limit,
        );
        if bytes > limit {
            tracing::warn!(
                bytes,
                limit,
                "the state that is restored is above its limit (state_max_bytes): it cannot grow"
            );
        }
        let mut objects = self.lock();
        objects.bytes = bytes;
        self.bytes_tell(objects.bytes);
        objects.absent = by_key.values().filter(|object| object.is_absent()).count();
        let newest = by_key.values().map(|object| object.meta.version).max();
        objects.version = newest.unwrap_or(0).max(objects.version);
        let told = objects.shown.hide_all();
        objects.by_key = by_key;
        drop(objects);
        self.retired_tell(told);
    }

    /// Writes an object, if it is at version `expected` (any, if there is none), whose length hangs
    /// on that of the old one. `own` bytes of drafts are what it is made of. `make` leaves the old
    /// object good if it fails.
    fn write(
        &self,
        key: &str,
        expected: Option<u64>,
        own: u64,
        len: impl FnOnce(u64) -> u64,
        make: impl FnOnce(Option<&mut Object>) -> Result<New, StateError>,
    ) -> Result<u64, StateError> {
        if key.is_empty() || key.len() > KEY_MAX_BYTES {
            return Err(StateError::BadKey(key.len()));
        }
        let mut guard = self.lock();
        let objects = &mut *guard;
        let mut old = objects.by_key.get_mut(key);
        let (actual, bytes) = match &old {
            Some(old) => (old.meta.version, Some(old.meta.bytes)),
            None => (0, None),
        };
        if let Some(expected) = expected
            && expected != actual
        {
            return Err(StateError::Conflict { expected, actual });
        }
        let wanted = cost(key, len(bytes.unwrap_or(0)));
        let before = bytes.map_or(0, |bytes| cost(key, bytes));
        let used = objects.bytes.saturating_sub(before);
        let others = self.lent.load(Ordering::Relaxed).saturating_sub(own);
        let all = used.saturating_add(others).saturating_add(wanted);
        // What was restored may be above the limit, and may shrink then.
        if all > self.limit && wanted > before {
            return Err(StateError::LimitReached {
                used: used.saturating_add(others),
                wanted,
                limit: self.limit,
            });
        }
        let New { buf, growing } = make(old.as_deref_mut())?;
        objects.bytes = used.saturating_add(wanted);
        self.bytes_tell(objects.bytes);
        objects.version += 1;
        let version = objects.version;
        let meta = ObjectMeta {
            version,
            written_unix_ms: clock::unix_ms(),
            bytes: buf.len() as u64,
        };
        let new = Object {
            buf,
            meta,
            growing,
            shown: None,
            absent: None,
        };
        let mut gone = None;
        match old {
            Some(old) => gone = Some(std::mem::replace(old, new)),
            None => drop(objects.by_key.insert(key.into(), new)),
        }
        // Peers must not take the old object for the present one once anybody has seen the new.
        objects.absent -= usize::from(gone.as_ref().is_some_and(Object::is_absent));
        let shown = gone.as_ref().and_then(|gone| gone.shown);
        let told = shown.is_some_and(|shown| objects.shown.hide(shown));
        drop(guard);
        self.retired_tell(told);
        Ok(version)
    }

    fn read(&self) -> RwLockReadGuard<'_, Objects> {
        // No user code runs under the lock, and every write leaves the map whole.
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Objects> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an object of `bytes` counts for.
pub(crate) fn cost(key: &str, bytes: u64) -> u64 {
    bytes.saturating_add(key.len() as u64 + OBJECT_OVERHEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EACH: u64 = OBJECT_OVERHEAD_BYTES;

    fn store(limit: u64) -> StateStore {
        StateStore::new(BufPool::new(1 << 24), limit)
    }

    #[test]
    fn no_version_is_given_by_two_incarnations() {
        // Milliseconds around which 32 bits of them are over, and numbers of incarnations there.
        let times = [0, 1 << 40, (419 << 32) - 1, 419 << 32, 1 << 41];
        for at in times {
            let first = versions_floor(at, at);
            assert!(versions_floor(at + 1, at) >= first);
            if at >= VERSIONS_SINCE_UNIX_MS {
                assert_eq!(
                    versions_floor(at, at + 1) - first,
                    1 << VERSIONS_PER_MS_LOG2
                );
            }
        }
        assert!(times.is_sorted_by_key(|at| versions_floor(1, *at)));
        let most = versions_floor(u64::MAX, u64::MAX);
        let store = store(1 << 20);
        for version in [most, u64::MAX, 0] {
            store.versions_above(version);
            assert!(store.put("a", b"").unwrap() > most);
        }
    }

    #[test]
    fn views_outlive_replacement_and_limits_hold() {
        let store = store(EACH + 100);
        store.put("a", &[1; 50]).unwrap();
        let (view, meta) = store.object("a").unwrap().unwrap();
        assert_eq!(meta.bytes, 50);
        store.put("a", &[2; 99]).unwrap();
        assert_eq!(&*view, &[1; 50]);
        let error = store.put("b", &[0; 1]).unwrap_err();
        assert_eq!(
            error,
            StateError::LimitReached {
                used: EACH + 100,
                wanted: EACH + 2,
                limit: EACH + 100
            }
        );
        assert!(store.delete("a") && !store.delete("a"));
        assert_eq!(store.used_bytes(), 0);
        assert_eq!(store.put("", &[]).unwrap_err(), StateError::BadKey(0));
    }

    #[test]
    fn compare_swap_needs_the_version() {
        let store = store(EACH + 1000);
        let first = store.compare_swap("a", 0, b"x").unwrap();
        let error = store.compare_swap("a", 0, b"y").unwrap_err();
        assert_eq!(
            error,
            StateError::Conflict {
                expected: 0,
                actual: first
            }
        );
        assert!(store.compare_swap("a", first, b"y").unwrap() > first);
        assert_eq!(store.append("a", b"z").unwrap(), 2);
        assert_eq!(&*store.object("a").unwrap().unwrap().0, b"yz");
    }

    #[test]
    fn the_limit_holds_to_the_byte() {
        let limit = EACH + 100;
        let store = store(limit);
        let full = |used, wanted| {
            Err(StateError::LimitReached {
                used,
                wanted,
                limit,
            })
        };
        assert_eq!(store.put("a", &[0; 100]), full(0, EACH + 101));
        store.put("a", &[0; 98]).unwrap();
        assert_eq!(store.append("a", &[1]), Ok(99));
        assert_eq!(store.used_bytes(), limit);
        assert_eq!(store.append("a", &[1]), full(0, EACH + 101));
        assert_eq!(store.put("b", &[]), full(limit, EACH + 1));
        let version = store.object("a").unwrap().unwrap().1.version;
        let wide = store.compare_swap("a", version, &[0; 100]);
        assert_eq!(wide, full(0, EACH + 101));
        let conflict = store.compare_swap("a", version + 1, &[0; 100]).unwrap_err();
        assert!(matches!(conflict, StateError::Conflict { .. }));
        assert_eq!(&store.object("a").unwrap().unwrap().0[97..], &[0, 1]);
        assert_eq!(store.append("b", &[1]), full(limit, EACH + 2));

        let exact = StateStore::new(BufPool::new(1 << 20), limit);
        exact.restore(store.snapshot().unwrap());
        assert_eq!(exact.used_bytes(), limit);
    }

    #[test]
    fn what_is_restored_above_the_limit_stays_and_does_not_grow() {
        let full = store(3 * EACH);
        for key in ["a", "b"] {
            full.put(key, &[1; 100]).unwrap();
        }
        let (limit, used) = (EACH + 10, 2 * EACH + 202);
        let less = store(limit);
        less.restore(full.snapshot().unwrap());
        assert_eq!(less.used_bytes(), used);
        assert_eq!(&*less.object("a").unwrap().unwrap().0, &[1; 100]);
        let refused = |error| matches!(error, StateError::LimitReached { .. });
        assert!(refused(less.put("c", &[]).unwrap_err()));
        assert!(refused(less.put("a", &[2; 101]).unwrap_err()));
        assert!(refused(less.append("a", &[2]).unwrap_err()));
        assert!(refused(less.draft(1).unwrap_err()));
        less.put("a", &[2; 100]).unwrap();
        less.put("a", &[2; 50]).unwrap();
        assert!(refused(less.put("a", &[2; 51]).unwrap_err()));
        assert!(less.delete("b"));
        assert_eq!(less.used_bytes(), EACH + 51);
        less.put("a", &[2; 9]).unwrap();
        assert_eq!(less.used_bytes(), limit);
        assert!(refused(less.append("a", &[2]).unwrap_err()));
    }

    /// What small objects take is more than their bytes, which are 2 here.
    #[test]
    fn many_small_objects_are_not_for_nothing() {
        let store = store(100_000);
        let mut objects = 0;
        while store.put(&format!("{objects:04}"), &[7]).is_ok() {
            objects += 1;
        }
        assert_eq!(objects, 100_000 / (EACH + 5));
        let pool = store.pool.used_bytes() as u64;
        assert!(pool < store.used_bytes(), "{pool} bytes are lent");
    }

    #[test]
    fn drafts_count_until_they_are_objects_or_gone() {
        let limit = 2 * EACH + 100;
        let store = store(limit);
        let full = |used, wanted| StateError::LimitReached {
            used,
            wanted,
            limit,
        };
        let most = limit as usize;
        assert_eq!(store.draft(most + 1).unwrap_err(), full(0, limit + 1));
        drop(store.draft(most).unwrap());
        let mut draft = Some(store.draft(60).unwrap());
        assert_eq!(store.draft(most).unwrap_err(), full(60, limit));
        store.put("a", &[1; 39]).unwrap();
        let error = store.put("b", &[1; 40]).unwrap_err();
        assert_eq!(error, full(EACH + 40 + 60, EACH + 41));
        // It is what it has counted for already.
        draft.as_mut().unwrap().fill(2);
        let conflict = store.commit("b", Some(9), &mut draft);
        assert!(matches!(conflict, Err(StateError::Conflict { .. })));
        draft.as_mut().unwrap().truncate(59);
        store.commit("b", Some(0), &mut draft).unwrap();
        assert!(draft.is_none());
        assert_eq!(store.used_bytes(), limit);
        assert_eq!(store.draft(1).unwrap_err(), full(limit, 1));
        assert!(store.delete("a"));
        store.draft(40).unwrap();
    }

    #[test]
    fn drafts_that_are_refused_are_in_nobodys_way() {
        let store = store(2 * EACH);
        std::thread::scope(|scope| {
            let refused = [(); 3].map(|()| {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        store.draft(usize::MAX).unwrap_err();
                    }
                })
            });
            while !refused.iter().all(|refused| refused.is_finished()) {
                store.put("a", &[1; 100]).unwrap();
            }
        });
    }

    #[test]
    fn appends_copy_each_byte_a_few_times_at_most() {
        let store = StateStore::new(BufPool::new(1 << 24), 1 << 20);
        let mut moves = 0;
        let mut at = std::ptr::null();
        let first = {
            store.append("a", &[7]).unwrap();
            store.object("a").unwrap().unwrap().0
        };
        for length in 2..=10_000 {
            assert_eq!(store.append("a", &[7]), Ok(length));
            let now = store.object("a").unwrap().unwrap().0.as_ptr();
            moves += usize::from(std::mem::replace(&mut at, now) != now);
        }
        assert!(moves <= 12, "it moved {moves} times");
        assert_eq!(&*first, &[7]);
        let before = store.object("a").unwrap().unwrap().0;
        store.put("a", b"new").unwrap();
        store.append("a", b"er").unwrap();
        assert_eq!(&*store.object("a").unwrap().unwrap().0, b"newer");
        assert_eq!(&*before, &[7; 10_000]);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Put(u8, Vec<u8>),
        Append(u8, Vec<u8>),
        Delete(u8),
        List(u8, u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
        prop_oneof![
            (0..6_u8, bytes()).prop_map(|(key, bytes)| Op::Put(key, bytes)),
            (0..6_u8, bytes()).prop_map(|(key, bytes)| Op::Append(key, bytes)),
            (0..6_u8).prop_map(Op::Delete),
            (0..6_u8, 0..6_u8).prop_map(|(after, limit)| Op::List(after, limit)),
        ]
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map(ops in proptest::collection::vec(op(), 0..100)) {
            let store = store(1 << 20);
            let mut model = BTreeMap::<String, Vec<u8>>::new();
            let name = |key: u8| format!("{}{key}", if key < 3 { "a" } else { "b" });
            for op in ops {
                match op {
                    Op::Put(key, bytes) => {
                        store.put(&name(key), &bytes).unwrap();
                        model.insert(name(key), bytes);
                    }
                    Op::Append(key, bytes) => {
                        store.append(&name(key), &bytes).unwrap();
                        model.entry(name(key)).or_default().extend(bytes);
                    }
                    Op::Delete(key) => {
                        prop_assert_eq!(store.delete(&name(key)), model.remove(&name(key)).is_some());
                    }
                    Op::List(after, limit) => {
                        let got = store.list("a", Some(&name(after)), limit.into());
                        let want = model.keys().filter(|k| k.starts_with('a') && **k > name(after));
                        let want: Vec<_> = want.take(limit.into()).cloned().collect();
                        prop_assert_eq!(got.into_iter().map(|(k, _)| k).collect::<Vec<_>>(), want);
                    }
                }
            }
            let all: Vec<_> = store.snapshot().unwrap().into_iter().map(|(k, b, _)| (k, b.to_vec())).collect();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
