//! State objects: named bytes that a process keeps between invocations.
//!
//! Objects are [`Buf`]s: a view shares the memory and stays what it was when a later put replaces
//! the object. Reads take a shared lock for a look-up; writes copy before they lock.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use praas_transport::clock;
use praas_transport::{Buf, BufPool, PoolExhausted};
use serde::{Deserialize, Serialize};

/// Bytes that a key may have.
pub const KEY_MAX_BYTES: usize = 255;

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
    /// No memory for the object.
    #[error(transparent)]
    Pool(#[from] PoolExhausted),
}

#[derive(Default)]
struct Objects {
    by_key: BTreeMap<Box<str>, (Buf, ObjectMeta)>,
    bytes: u64,
    version: u64,
}

/// The state of a process.
pub struct StateStore {
    objects: RwLock<Objects>,
    pool: BufPool,
    limit: u64,
}

impl StateStore {
    /// An empty store of at most `limit` bytes (keys and payloads), from `pool`.
    pub fn new(pool: BufPool, limit: u64) -> Self {
        Self {
            objects: RwLock::new(Objects::default()),
            pool,
            limit,
        }
    }

    /// Writes an object; its new version.
    ///
    /// # Errors
    /// A bad key, or the memory limit; the old object then stays.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<u64, StateError> {
        let buf = self.pool.copy_from(bytes)?;
        self.write(key, |_| Ok(buf))
    }

    /// Writes an object without copying; its new version.
    ///
    /// # Errors
    /// As [`StateStore::put`].
    pub fn put_buf(&self, key: &str, buf: Buf) -> Result<u64, StateError> {
        self.write(key, |_| Ok(buf))
    }

    /// The object, sharing its memory.
    pub fn object(&self, key: &str) -> Option<(Buf, ObjectMeta)> {
        self.read().by_key.get(key).cloned()
    }

    /// Removes an object; whether it was there.
    pub fn delete(&self, key: &str) -> bool {
        let mut objects = self.lock();
        let removed = objects.by_key.remove(key);
        if let Some((buf, _)) = &removed {
            objects.bytes -= cost(key, buf);
            objects.version += 1;
        }
        removed.is_some()
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
            .map(|(key, (_, meta))| (key.to_string(), *meta))
            .collect()
    }

    /// Writes an object only if it is at version `expected`; zero expects it to be absent.
    ///
    /// # Errors
    /// [`StateError::Conflict`] names the version that is there.
    pub fn compare_swap(&self, key: &str, expected: u64, bytes: &[u8]) -> Result<u64, StateError> {
        let buf = self.pool.copy_from(bytes)?;
        self.write(key, |old| {
            let actual = old.map_or(0, |(_, meta)| meta.version);
            match actual == expected {
                true => Ok(buf),
                false => Err(StateError::Conflict { expected, actual }),
            }
        })
    }

    /// Adds bytes to the end of an object, which is made if absent; its new length.
    ///
    /// # Errors
    /// As [`StateStore::put`].
    pub fn append(&self, key: &str, bytes: &[u8]) -> Result<u64, StateError> {
        let mut length = 0;
        self.write(key, |old| {
            let old: &[u8] = old.map_or(&[], |(buf, _)| buf);
            let mut buf = self.pool.alloc(old.len() + bytes.len())?;
            buf[..old.len()].copy_from_slice(old);
            buf[old.len()..].copy_from_slice(bytes);
            length = buf.len() as u64;
            Ok(buf.freeze())
        })?;
        Ok(length)
    }

    /// Makes all versions from now on higher than `version`. A process begins each life above
    /// `incarnation << 32`, so that no version is used twice across its lives.
    pub fn versions_above(&self, version: u64) {
        let mut objects = self.lock();
        objects.version = objects.version.max(version);
    }

    /// Bytes in use, keys and payloads.
    pub fn used_bytes(&self) -> u64 {
        self.read().bytes
    }

    /// All objects at one moment, sharing their memory.
    pub fn snapshot(&self) -> Vec<(String, Buf, ObjectMeta)> {
        let objects = self.read();
        objects
            .by_key
            .iter()
            .map(|(key, (buf, meta))| (key.to_string(), buf.clone(), *meta))
            .collect()
    }

    /// Replaces everything by what [`StateStore::snapshot`] gave, versions included.
    pub fn restore(&self, snapshot: Vec<(String, Buf, ObjectMeta)>) {
        let mut objects = self.lock();
        objects.bytes = snapshot.iter().map(|(key, buf, _)| cost(key, buf)).sum();
        let newest = snapshot.iter().map(|(_, _, meta)| meta.version).max();
        objects.version = newest.unwrap_or(0).max(objects.version);
        objects.by_key = snapshot
            .into_iter()
            .map(|(key, buf, meta)| (key.into(), (buf, meta)))
            .collect();
    }

    fn write(
        &self,
        key: &str,
        make: impl FnOnce(Option<&(Buf, ObjectMeta)>) -> Result<Buf, StateError>,
    ) -> Result<u64, StateError> {
        if key.is_empty() || key.len() > KEY_MAX_BYTES {
            return Err(StateError::BadKey(key.len()));
        }
        let mut objects = self.lock();
        let old = objects.by_key.get(key);
        let freed = old.map_or(0, |(buf, _)| cost(key, buf));
        let buf = make(old)?;
        let wanted = cost(key, &buf);
        let used = objects.bytes - freed;
        if used + wanted > self.limit {
            return Err(StateError::LimitReached {
                used,
                wanted,
                limit: self.limit,
            });
        }
        objects.bytes = used + wanted;
        objects.version += 1;
        let version = objects.version;
        let meta = ObjectMeta {
            version,
            written_unix_ms: clock::unix_ms(),
            bytes: buf.len() as u64,
        };
        objects.by_key.insert(key.into(), (buf, meta));
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

fn cost(key: &str, buf: &Buf) -> u64 {
    (key.len() + buf.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn store(limit: u64) -> StateStore {
        StateStore::new(BufPool::new(1 << 24), limit)
    }

    #[test]
    fn views_outlive_replacement_and_limits_hold() {
        let store = store(100);
        store.put("a", &[1; 50]).unwrap();
        let (view, meta) = store.object("a").unwrap();
        assert_eq!(meta.bytes, 50);
        store.put("a", &[2; 99]).unwrap();
        assert_eq!(&*view, &[1; 50]);
        let error = store.put("b", &[0; 1]).unwrap_err();
        assert_eq!(
            error,
            StateError::LimitReached {
                used: 100,
                wanted: 2,
                limit: 100
            }
        );
        assert!(store.delete("a") && !store.delete("a"));
        assert_eq!(store.used_bytes(), 0);
        assert_eq!(store.put("", &[]).unwrap_err(), StateError::BadKey(0));
    }

    #[test]
    fn compare_swap_needs_the_version() {
        let store = store(1000);
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
        assert_eq!(&*store.object("a").unwrap().0, b"yz");
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
            let store = store(10_000);
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
            let all: Vec<_> = store.snapshot().into_iter().map(|(k, b, _)| (k, b.to_vec())).collect();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
