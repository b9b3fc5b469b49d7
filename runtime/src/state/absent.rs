//! Objects whose bytes are still in storage: they come when they are asked for, and by and by.
//!
//! ```text
//!   look: absent --> fetch: nobody reads it yet --> read, verify --> the object, for all who wait
//!                           somebody does       --> wait for it
//!                           it does not verify  --> Corrupt, from now on
//!                           the storage fails   --> Unavailable; the next one tries again
//! ```
//!
//! Nobody holds the store's lock while bytes are on their way. What is written or deleted meanwhile
//! is so: bytes that come late for an object that is no more go to those who had asked for it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use praas_transport::{Buf, PoolExhausted};

use super::{Object, ObjectMeta, StateError, StateStore, cost};

/// Where the bytes of absent objects are.
pub trait ObjectSource: Send + Sync {
    /// Reads an object, by its number, and verifies it. Several may be read at the same time.
    ///
    /// # Errors
    /// It does not verify, or cannot be had now.
    fn fetch(&self, number: usize) -> Result<Buf, FetchError>;
}

/// Why an object could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Its bytes in storage are not those that were written, or are gone.
    #[error("{0}")]
    Corrupt(String),
    /// The storage failed; it may be better later.
    #[error("{0}")]
    Unavailable(String),
    /// There is no memory for it.
    #[error(transparent)]
    Pool(#[from] PoolExhausted),
}

/// Objects that are in storage still.
pub struct AbsentObjects {
    /// Key, what is known of it, and its number in the source.
    pub objects: Vec<(String, ObjectMeta, usize)>,
    /// Where their bytes are.
    pub source: Arc<dyn ObjectSource>,
}

/// An object whose bytes are in storage.
pub struct Absent {
    source: Arc<dyn ObjectSource>,
    number: usize,
    fetching: Mutex<Fetching>,
    /// Told when a fetch has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Fetching {
    /// Whether somebody reads it.
    busy: bool,
    /// Whether somebody waits who cannot read it.
    wanted: bool,
    /// How many have read it.
    rounds: u64,
    /// What became of the last round; `None` before the first.
    outcome: Option<Result<Buf, FetchError>>,
}

/// What there is under a key.
pub enum Look {
    /// An object.
    Here(Buf, ObjectMeta),
    /// An object whose bytes are to be fetched.
    Absent(Arc<Absent>, ObjectMeta),
}

impl Absent {
    /// Says that somebody waits for it without being able to fetch it; whether this is the first.
    ///
    /// # Errors
    /// It does not verify.
    pub fn hasten(&self, key: &str) -> Result<bool, StateError> {
        let mut fetching = self.lock();
        match &fetching.outcome {
            Some(Err(error @ FetchError::Corrupt(_))) => Err(error.clone().of(key)),
            _ => Ok(!std::mem::replace(&mut fetching.wanted, true)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Fetching> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was read, and does not verify.
    fn is_damaged(&self) -> bool {
        matches!(self.lock().outcome, Some(Err(FetchError::Corrupt(_))))
    }

    /// The bytes: reads them, or waits for whoever does. If there is one thread, that is somebody
    /// below on its stack: then it reads them, too.
    fn fetch(&self, one_thread: bool) -> Result<Buf, FetchError> {
        let mut fetching = self.lock();
        if one_thread && fetching.busy {
            drop(fetching);
            return self.source.fetch(self.number);
        }
        let (waits, round) = (fetching.busy, fetching.rounds);
        while fetching.busy && fetching.rounds == round {
            let waited = self.ended.wait(fetching);
            fetching = waited.unwrap_or_else(PoisonError::into_inner);
        }
        match &fetching.outcome {
            Some(Ok(buf)) => return Ok(buf.clone()),
            Some(Err(error @ FetchError::Corrupt(_))) => return Err(error.clone()),
            // Of those who waited for an attempt that failed, none tries at once again.
            Some(Err(error)) if waits => return Err(error.clone()),
            _ => {}
        }
        fetching.busy = true;
        drop(fetching);
        let mut reading = Reading {
            absent: self,
            outcome: None,
        };
        let outcome = self.source.fetch(self.number);
        reading.outcome = Some(outcome.clone());
        outcome
    }
}

/// One who reads an object; the others wait for as long as this is there.
struct Reading<'a> {
    absent: &'a Absent,
    outcome: Option<Result<Buf, FetchError>>,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut fetching = self.absent.lock();
        fetching.busy = false;
        fetching.rounds += 1;
        let failed = || Err(FetchError::Unavailable("the storage panicked".into()));
        fetching.outcome = Some(self.outcome.take().unwrap_or_else(failed));
        drop(fetching);
        self.absent.ended.notify_all();
    }
}

impl FetchError {
    fn of(self, key: &str) -> StateError {
        let key = key.into();
        match self {
            Self::Corrupt(what) => StateError::Corrupt { key, what },
            Self::Unavailable(what) => StateError::Unavailable { key, what },
            Self::Pool(error) => StateError::Pool(error),
        }
    }
}

impl StateStore {
    /// As [`StateStore::restore`], and there are objects besides whose bytes are fetched later. They
    /// count against the memory limit in full.
    pub fn restore_with(&self, snapshot: Vec<(String, Buf, ObjectMeta)>, later: AbsentObjects) {
        let source = later.source;
        let absent = later.objects.into_iter().map(|(key, meta, number)| {
            let absent = Absent {
                source: Arc::clone(&source),
                number,
                fetching: Mutex::default(),
                ended: Condvar::new(),
            };
            let object = Object {
                buf: Buf::default(),
                meta,
                growing: None,
                shown: None,
                absent: Some(Arc::new(absent)),
            };
            (key.into(), object)
        });
        let present = snapshot.into_iter().map(|(key, buf, meta)| {
            let object = Object {
                buf,
                meta,
                growing: None,
                shown: None,
                absent: None,
            };
            (key.into(), object)
        });
        self.replace(present.chain(absent).collect());
    }

    /// What is under a key, without waiting for it.
    pub fn look(&self, key: &str) -> Option<Look> {
        let objects = self.read();
        let object = objects.by_key.get(key)?;
        Some(match &object.absent {
            None => Look::Here(object.buf.clone(), object.meta),
            Some(absent) => Look::Absent(Arc::clone(absent), object.meta),
        })
    }

    /// Fetches an object that is absent, unless it is there by now. This may take as long as the
    /// storage does.
    ///
    /// # Errors
    /// It does not verify, the storage fails, or there is no memory.
    pub fn fetch(&self, key: &str, absent: &Arc<Absent>) -> Result<Buf, StateError> {
        let fetched = absent.fetch(self.one_thread);
        // Those who waited, too: the first of them need not be the one who read it.
        let buf = fetched.map_err(|error| self.fetch_failed(key, absent, error))?;
        let mut objects = self.lock();
        if let Some(object) = objects.by_key.get_mut(key)
            && let Some(there) = &object.absent
            && Arc::ptr_eq(there, absent)
        {
            object.buf = buf.clone();
            object.absent = None;
            objects.absent -= 1;
        }
        Ok(buf)
    }

    /// What a failure says to who asked. Once an object was written anew, or deleted, commits may
    /// delete what it was: that it cannot be read any more is no damage.
    fn fetch_failed(&self, key: &str, absent: &Arc<Absent>, error: FetchError) -> StateError {
        let objects = self.read();
        let object = objects.by_key.get(key);
        let there = object.and_then(|object| object.absent.as_ref());
        match (there, error) {
            (Some(there), error) if Arc::ptr_eq(there, absent) => error.of(key),
            (_, FetchError::Corrupt(_)) => {
                FetchError::Unavailable("it was written anew meanwhile".into()).of(key)
            }
            (_, error) => error.of(key),
        }
    }

    /// Fetches those of the absent objects, unless somebody else does, that are `wanted`, which is
    /// told what is known of them and whether they are known to be damaged.
    ///
    /// # Errors
    /// As [`StateStore::fetch`], of the first that fails.
    pub fn fetch_some(
        &self,
        wanted: impl Fn(&str, &ObjectMeta, bool) -> bool,
    ) -> Result<(), StateError> {
        let absent: Vec<_> = {
            let objects = self.read();
            let all = objects.by_key.iter();
            let absent = all.filter_map(|(key, object)| {
                let absent = object.absent.as_ref()?;
                let wanted = wanted(key, &object.meta, absent.is_damaged());
                wanted.then(|| (key.clone(), Arc::clone(absent)))
            });
            absent.collect()
        };
        let mut absent = absent.into_iter();
        absent.try_for_each(|(key, absent)| self.fetch(&key, &absent).map(drop))
    }

    /// Fetches all that is absent, unless somebody else does.
    ///
    /// # Errors
    /// As [`StateStore::fetch`], of the first that fails.
    pub fn fetch_all(&self) -> Result<(), StateError> {
        self.fetch_some(|_, _, _| true)
    }

    /// The keys of absent objects, in order.
    pub fn absent(&self) -> VecDeque<(Box<str>, Arc<Absent>)> {
        let objects = self.read();
        let all = objects.by_key.iter();
        all.filter_map(|(key, object)| Some((key.clone(), Arc::clone(object.absent.as_ref()?))))
            .collect()
    }

    /// How many objects are absent.
    pub fn absent_count(&self) -> usize {
        self.read().absent
    }
}

impl Object {
    /// Whether its bytes are still in storage.
    pub(super) fn is_absent(&self) -> bool {
        self.absent.is_some()
    }
}

/// What counts against the limit, absent or not.
pub(super) fn costs<'a>(objects: impl Iterator<Item = (&'a str, ObjectMeta)>) -> u64 {
    objects.fold(0, |all: u64, (key, meta)| {
        all.saturating_add(cost(key, meta.bytes))
    })
}
