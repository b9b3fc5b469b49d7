//! How a process becomes an image: at its end in good order, or while it serves on.
//!
//! ```text
//!   swap_out     quiesce: new invocations are turned away, running ones finish, or are cancelled
//!                   image: messages are turned away, too; all that outlives the host, by reference
//!                      committed: the end          failed: it serves on
//!   checkpoint   image, at one moment           written beside the service; a crash goes back to it
//! ```

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use praas_transport::clock;
use praas_transport::sync::atomic::Ordering;

use super::Process;
use super::engine::{Core, Engine, Shared};
use super::serve::Serve;
use crate::codec::CodecError;
use crate::files::{FilesError, FilesLimits};
use crate::invocation::{Payload, Status};
use crate::state::{ObjectMeta, StateError};
use crate::swap::{
    Base, Committed, ImageKind, ProcessImage, Storage, SwapConfig, SwapError, swap_out_with,
};

/// Why a process was not swapped out, or no checkpoint was taken; it serves on.
#[derive(Debug, thiserror::Error)]
pub enum QuiesceError {
    /// Functions went on running after they were cancelled.
    #[error("{running} functions still run {waited_ms} ms after the swap began, cancelled or not")]
    StillRunning {
        /// How many.
        running: usize,
        /// For how long they were waited for.
        waited_ms: u64,
    },
    /// One-way invocations of other processes did not begin, nor fail.
    #[error("{pending} one-way invocations of other processes have not begun {waited_ms} ms on")]
    OneWay {
        /// How many.
        pending: u64,
        /// For how long they were waited for.
        waited_ms: u64,
    },
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// Its mailbox cannot be written.
    #[error("cannot encode the mailbox: {0}")]
    Encode(#[from] CodecError),
    /// The files of its directory cannot be read, or are too many or too large.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Storage failed.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// Not all of its state has come back since it was swapped in.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What outlives a host, and of its state what is in storage only.
pub(super) struct Outliving {
    pub(super) image: ProcessImage,
    pub(super) absent: Vec<(String, ObjectMeta)>,
}

impl Serve {
    /// All that outlives the host, by reference, as it is at one moment.
    ///
    /// Functions may run meanwhile, and are somewhere in between. Results are recorded by the
    /// endpoint's owner alone, which this is: so whatever is recorded in the image is of a function
    /// that had ended, and the image has its effects. State and mailbox are read under both locks:
    /// no function can have taken a message, and put what it made of it, in between.
    pub(super) fn image(&self, kind: ImageKind) -> Result<Outliving, QuiesceError> {
        let shared = &self.shared;
        let sessions = self.sessions_image(kind);
        let mailbox = shared.mailbox();
        let (state, absent, state_version) = shared.state.snapshot_at();
        let image = ProcessImage {
            application: shared.identity.application.to_string(),
            process: shared.identity.name.to_string(),
            incarnation: shared.identity.incarnation,
            // One that has forgotten a client cannot say that what it does not know never ran.
            kind: match self.vouches() {
                true => kind,
                false => ImageKind::Checkpoint,
            },
            state_version,
            state,
            mailbox: mailbox.image()?,
            sessions,
            files: Vec::new(),
        };
        Ok(Outliving { image, absent })
    }
}

impl Shared {
    /// What is in storage; whoever holds it commits.
    pub fn base_lock(&self) -> MutexGuard<'_, Option<Base>> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// As [`Process::checkpoint`].
    pub(super) fn checkpoint(
        &self,
        storage: &dyn Storage,
        config: &SwapConfig,
    ) -> Result<Committed, QuiesceError> {
        let mut base = self.shared.base_lock();
        self.state_fetch_needed(storage, config, base.as_ref())?;
        let made = self.with_core(|core| image_make(core, ImageKind::Checkpoint));
        let made = made.flatten().flatten();
        let mut outliving = made.ok_or(QuiesceError::Ended)??;
        self.files_image(&mut outliving)?;
        let Outliving { image, absent } = outliving;
        let committed = swap_out_with(storage, &image, &absent, config, &mut base)?;
        self.shared.persister.covered(committed.state_version);
        Ok(committed)
    }

    /// Fetches what is in storage only, as far as the next commit there cannot leave it where it is.
    /// What is known to be damaged is asked for, too, and fails: a commit is not to hide it.
    fn state_fetch_needed(
        &self,
        storage: &dyn Storage,
        config: &SwapConfig,
        base: Option<&Base>,
    ) -> Result<(), QuiesceError> {
        let state = &self.shared.state;
        if state.absent_count() == 0 {
            return Ok(());
        }
        let Some(base) = base else {
            return Ok(state.fetch_all()?);
        };
        let (_, absent) = state.snapshot_parted();
        let needed = base.bytes_needed(storage, config, &absent)?;
        Ok(state.fetch_some(|key, _, damaged| damaged || needed.contains(key))?)
    }

    /// Adds the files of the process's directory.
    fn files_image(&self, outliving: &mut Outliving) -> Result<(), QuiesceError> {
        // By this thread: the endpoint's owner does not wait for disks.
        if let Some(files) = self.shared.files.get() {
            let limits = FilesLimits {
                count_max: self.shared.settings.files_max,
                bytes_max: self.shared.settings.files_max_bytes,
            };
            outliving.image.files = files.image(&self.shared.pool, limits)?;
        }
        Ok(())
    }
}

impl Process {
    /// Takes a checkpoint: commits an image of the process as it is at one moment, while it serves
    /// on. The endpoint's owner makes the image, by reference; this thread writes it.
    ///
    /// If the process dies it can begin again from here. What was acknowledged after that moment is
    /// lost then, and of invocations that ran at it or later the outcome is unknown: docs/swap.md,
    /// "Checkpoints". Only what has changed since the last commit is written. Waits for a commit
    /// that is under way. Not to be called by a worker.
    ///
    /// # Errors
    /// Storage that fails, a process that has ended.
    pub fn checkpoint(
        &self,
        storage: &dyn Storage,
        config: &SwapConfig,
    ) -> Result<Committed, QuiesceError> {
        self.engine.checkpoint(storage, config)
    }

    /// Tells what of the process is in storage since it was swapped in from there: the first
    /// commit to the same storage then writes only what differs.
    pub fn base_set(&self, stored: Base) {
        self.engine.shared.persister.stored(&stored);
        *self.engine.shared.base_lock() = Some(stored);
    }

    /// Swaps the process out: running functions finish (or are cancelled after
    /// `quiesce_timeout_ms`), new invocations are turned away, the image is committed. The process
    /// has then ended. If anything fails it serves on, and says why.
    ///
    /// # Errors
    /// Functions that do not end; storage that fails.
    pub fn swap_out(
        &self,
        storage: &dyn Storage,
        config: &SwapConfig,
    ) -> Result<Committed, QuiesceError> {
        let shared = &self.engine.shared;
        // While it serves, for this may take a while, and so may a commit that is under way. What a
        // function writes through may need a commit besides, before the function ends.
        let engine = &self.engine;
        engine.state_fetch_needed(storage, config, shared.base_lock().as_ref())?;
        let outcome = self.quiesce().and_then(|()| {
            let mut base = shared.base_lock();
            engine.state_fetch_needed(storage, config, base.as_ref())?;
            let Outliving { image, absent } = self.image(ImageKind::Final)?;
            Ok(swap_out_with(storage, &image, &absent, config, &mut base)?)
        });
        match outcome {
            Ok(committed) => {
                self.end();
                Ok(committed)
            }
            Err(error) => {
                self.engine
                    .shared
                    .one_way_closed
                    .store(false, Ordering::SeqCst);
                self.engine.with_core(|core| {
                    // Another host may be the process by now.
                    let serves = !core.serve.held;
                    core.serve.quiescing &= !serves;
                    core.serve.sealed &= !serves;
                });
                Err(error)
            }
        }
    }

    /// Serves on as before it quiesced.
    pub fn thaw(&self) {
        self.engine.with_core(|core| {
            core.serve.quiescing = false;
            core.serve.sealed = false;
            core.serve.held = false;
        });
    }

    /// Stops the process in good order: as a swap, but nothing is kept. Functions that do not end
    /// are left behind.
    pub fn stop(&self) {
        if let Err(error) = self.quiesce() {
            tracing::warn!(%error, "stopping all the same");
        }
        self.end();
    }

    /// Turns new invocations away, those that wait for a worker, too.
    pub(super) fn turn_away(&self) -> Result<(), QuiesceError> {
        let begun = self.engine.with_core(|core| {
            core.serve.quiescing = true;
            let mut turned_away: Vec<_> = core.serve.ready.drain(..).collect();
            // What the process has asked of itself is nobody else's to send again: it runs.
            turned_away.extend(core.serve.shared.jobs_take(|queued| !queued.is_own()));
            let Core {
                endpoint, serve, ..
            } = core;
            for job in turned_away {
                serve.job_answer(endpoint, &job, Status::Quiescing, Payload::default());
            }
        });
        begun.ok_or(QuiesceError::Ended)
    }

    /// Turns new invocations away and waits until no function runs.
    fn quiesce(&self) -> Result<(), QuiesceError> {
        self.turn_away()?;
        let engine = &self.engine;
        let patience = Duration::from_millis(engine.shared.settings.quiesce_timeout_ms);
        let quiet = self.quiet_wait(patience);
        let quiet = quiet || {
            engine.shared.one_way_closed.store(true, Ordering::SeqCst);
            for worker in engine.shared.crew.workers() {
                let job = worker.job.load(Ordering::Acquire);
                worker.cancel.store(job, Ordering::Release);
                worker.thread.unpark();
            }
            // One that waits may lead meanwhile, and is not parked then.
            engine.shared.waker.wake();
            self.quiet_wait(patience)
        };
        match quiet {
            true => self.one_way_settle(patience),
            false => Err(QuiesceError::StillRunning {
                running: engine.shared.crew.running() + engine.shared.crew.blocked(),
                waited_ms: patience.as_millis() as u64 * 2,
            }),
        }
    }

    /// Waits until one-way invocations of other processes have begun there, or failed: what is not
    /// known of then would end with this process.
    pub(super) fn one_way_settle(&self, patience: Duration) -> Result<(), QuiesceError> {
        let until = clock::now() + patience;
        loop {
            let pending = self
                .engine
                .with_core(|core| core.serve.peers.one_way().pending)
                .ok_or(QuiesceError::Ended)?;
            if pending == 0 {
                return Ok(());
            }
            if clock::now() >= until || self.transfer_cancelled() {
                let waited_ms = patience.as_millis() as u64;
                return Err(QuiesceError::OneWay { pending, waited_ms });
            }
            match self.engine.shared.stepped {
                None => std::thread::park_timeout(Duration::from_millis(1)),
                Some(meanwhile) => meanwhile(),
            }
        }
    }

    /// Waits until no function runs, at most for `patience`.
    pub(super) fn quiet_wait(&self, patience: Duration) -> bool {
        let shared = &self.engine.shared;
        let until = clock::now() + patience;
        if let Some(meanwhile) = shared.stepped {
            while !shared.is_quiet() && clock::now() < until && !self.transfer_cancelled() {
                meanwhile();
            }
            return shared.is_quiet();
        }
        shared.quiet_wanted.store(true, Ordering::SeqCst);
        let mut guard = shared
            .quiet
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let quiet = loop {
            if shared.is_quiet() {
                break true;
            }
            let left = until.saturating_duration_since(clock::now());
            if left.is_zero() || self.transfer_cancelled() {
                break false;
            }
            // A notice may fall between the look and the wait: look again soon.
            let wait = left.min(Duration::from_millis(5));
            let waited = shared.quiet.1.wait_timeout(guard, wait);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(guard);
        shared.quiet_wanted.store(false, Ordering::SeqCst);
        quiet
    }

    /// The process as it is at one moment. For a final image messages are turned away from then on,
    /// and no function runs.
    pub(super) fn image(&self, kind: ImageKind) -> Result<Outliving, QuiesceError> {
        let shared = &self.engine.shared;
        let until = clock::now() + Duration::from_millis(shared.settings.quiesce_timeout_ms);
        let mut outliving = loop {
            let made = self.engine.with_core(move |core| image_make(core, kind));
            match made.flatten().ok_or(QuiesceError::Ended)? {
                Some(outliving) => break outliving?,
                // Quiet when it was asked, and not any more: what it had begun goes on.
                None if self.quiet_wait(until.saturating_duration_since(clock::now())) => {}
                None => {
                    return Err(QuiesceError::StillRunning {
                        running: shared.crew.busy(),
                        waited_ms: shared.settings.quiesce_timeout_ms,
                    });
                }
            }
        };
        self.engine.files_image(&mut outliving)?;
        Ok(outliving)
    }

    /// Closes everything in good order and lets the threads go.
    fn end(&self) {
        let flushed = clock::now() + Duration::from_secs(5);
        while clock::now() < flushed
            && self.engine.with_core(|core| core.serve.backlogged()) == Some(true)
        {
            match self.engine.shared.stepped {
                None => std::thread::yield_now(),
                Some(meanwhile) => meanwhile(),
            }
        }
        self.engine.with_core(|core| {
            let Core {
                endpoint, serve, ..
            } = core;
            serve.close_all(endpoint);
            // The peers see the end before the sockets are gone.
            let patience = match serve.shared.stepped {
                None => Duration::from_millis(5),
                Some(_) => Duration::ZERO,
            };
            let until = clock::now() + patience;
            endpoint.progress_wait(serve, Some(until), praas_transport::WaitMode::Warm);
        });
        self.abandon();
    }
}

/// An image, by the endpoint's owner; `Some(None)` if a function runs that has to end first, `None`
/// at the end of the process.
fn image_make(core: &mut Core, kind: ImageKind) -> Option<Option<Result<Outliving, QuiesceError>>> {
    // The core is there for a while after the end, and says nothing that counts.
    if core.serve.shared.ended.load(Ordering::SeqCst) {
        return None;
    }
    if kind == ImageKind::Final {
        // Whoever owns the endpoint is the only one to begin invocations from outside.
        if !core.serve.shared.is_quiet() {
            return Some(None);
        }
        core.serve.sealed = true;
        // Whoever reads it from now on shall do so where the process is next.
        core.serve.shared.state.hide_all(&mut core.endpoint);
    }
    Some(Some(core.serve.image(kind)))
}
