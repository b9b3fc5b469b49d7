//! A process that serves before all of its state is back from storage.
//!
//! ```text
//!   function: look --> here: as ever
//!                  \-> absent: counts as blocked, a spare in its place; fetches it
//!   peer (one-sided): absent: hastened; told to come again
//!   fetchers: take what is next, and what is hastened before that
//! ```
//!
//! The fetchers end when nothing is absent any more. An object that does not verify stays absent,
//! and whoever wants it is told; it can be written anew or deleted. A storage that fails is asked
//! again, later and later.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use praas_transport::Buf;
use praas_transport::clock;
use praas_transport::sync::atomic::Ordering;

use super::Process;
use super::engine::Shared;
use crate::invocation::InvokeError;
use crate::state::{Absent, AbsentObjects, Look, ObjectMeta, StateError};
use crate::swap::{Base, ProcessImage};

/// How long a fetcher waits after a failure: at first, doubled each time, and at most.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// What a process begins with: an image, and what of its state is to come later.
pub struct Restore {
    /// What is there at once.
    pub image: ProcessImage,
    /// State objects that are in storage still; their keys are none of the image's.
    pub absent: Option<AbsentObjects>,
    /// What of it is in storage: the first commit to the same storage then writes only what
    /// differs.
    pub base: Option<Base>,
}

impl From<ProcessImage> for Restore {
    fn from(image: ProcessImage) -> Self {
        let (absent, base) = (None, None);
        Self {
            image,
            absent,
            base,
        }
    }
}

/// Objects that are to be fetched.
#[derive(Default)]
pub(super) struct Wanted(Mutex<VecDeque<(Box<str>, Arc<Absent>)>>);

impl Wanted {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Box<str>, Arc<Absent>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// A state object. A worker that has to wait for storage has another in its place.
    pub fn object(&self, key: &str) -> Result<Option<(Buf, ObjectMeta)>, StateError> {
        match self.state.look(key) {
            None => Ok(None),
            Some(Look::Here(buf, meta)) => Ok(Some((buf, meta))),
            Some(Look::Absent(absent, meta)) => Ok(Some((self.object_fetch(key, &absent)?, meta))),
        }
    }

    /// Waits for an object from storage, counted as blocked. If no more may be, the wait is as
    /// any work of a function.
    pub fn object_fetch(&self, key: &str, absent: &Arc<Absent>) -> Result<Buf, StateError> {
        let blocked = self.block().is_ok();
        let fetched = self.state.fetch(key, absent);
        if blocked {
            self.crew.unblock();
        }
        fetched
    }

    /// Counts a running function as blocked, and has another worker in its place.
    pub fn block(&self) -> Result<(), InvokeError> {
        let spare = self.crew.block()? && self.stepped.is_none();
        self.quiet_notify();
        if spare && let Some(engine) = self.engine() {
            engine.spare_start();
        }
        Ok(())
    }

    /// Has an object that is in storage still come before others; `None` if it is not.
    ///
    /// # Errors
    /// It is damaged, and will not come.
    pub fn object_hasten(&self, key: &str) -> Option<Result<(), StateError>> {
        let Some(Look::Absent(absent, _)) = self.state.look(key) else {
            return None;
        };
        Some(absent.hasten(key).map(|first| {
            if first {
                self.wanted.lock().push_front((key.into(), absent));
            }
        }))
    }

    /// Fetches what is absent until nothing is, or the process ends.
    fn fetch(&self) {
        let mut again = AGAIN_FIRST;
        while !self.ended.load(Ordering::Relaxed) {
            let Some((key, absent)) = self.wanted.lock().pop_front() else {
                return;
            };
            match self.state.fetch(&key, &absent) {
                Ok(_) => again = AGAIN_FIRST,
                Err(error @ StateError::Corrupt { .. }) => tracing::error!("{error}"),
                Err(error) => {
                    tracing::warn!("{error}: trying again");
                    self.wanted.lock().push_back((key, absent));
                    let until = clock::now() + again;
                    again = (again * 2).min(AGAIN_MAX);
                    while clock::now() < until && !self.ended.load(Ordering::Relaxed) {
                        let left = until.saturating_duration_since(clock::now());
                        std::thread::park_timeout(left.min(AGAIN_FIRST));
                    }
                }
            }
        }
    }
}

impl Shared {
    /// What a fetcher does in one go, in a process without threads; whether there was anything to
    /// be fetched.
    pub(super) fn fetch_step(&self) -> bool {
        if self.ended.load(Ordering::Relaxed) {
            return false;
        }
        let Some((key, absent)) = self.wanted.lock().pop_front() else {
            return false;
        };
        if let Err(error) = self.state.fetch(&key, &absent)
            && !matches!(error, StateError::Corrupt { .. })
        {
            self.wanted.lock().push_back((key, absent));
        }
        true
    }

    /// What is to be fetched by steps.
    pub(super) fn fetch_begin(&self) {
        *self.wanted.lock() = self.state.absent();
    }
}

impl Process {
    /// Has all of the state here: after a lazy swap-in, waits for what is in storage still. To be
    /// called before the state is to be somewhere else than in this storage; not by a worker.
    ///
    /// # Errors
    /// An object that is damaged in storage, a storage that fails, no memory.
    pub fn state_fetch(&self) -> Result<(), StateError> {
        self.engine.shared.state.fetch_all()
    }

    /// How many state objects are in storage still.
    pub fn state_absent(&self) -> usize {
        self.engine.shared.state.absent_count()
    }

    /// Begins to fetch what is absent.
    pub(super) fn fetchers_start(&self) -> std::io::Result<()> {
        let shared = &self.engine.shared;
        let absent = shared.state.absent();
        let threads = shared.settings.swap_lazy_threads.min(absent.len());
        *shared.wanted.lock() = absent;
        for _ in 0..threads {
            let shared = Arc::clone(shared);
            // Nobody waits for its end: it may hang in a read.
            std::thread::Builder::new()
                .name("praas-fetch".into())
                .spawn(move || shared.fetch())?;
        }
        Ok(())
    }
}
