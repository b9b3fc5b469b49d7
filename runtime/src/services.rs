//! What a running function can ask of its process: the seam between the function ABI and the
//! engine.
//!
//! ```text
//!   function -> Context -> C table of the ABI -> dyn Services -> the process's engine
//! ```

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use praas_transport::clock;
use praas_transport::sync::atomic::{AtomicU64, Ordering};
use praas_transport::{Buf, BufPool, Identity};

use crate::files::FilesError;
use crate::invocation::{InvokeError, Payload, Status};
use crate::mailbox::{MailMessage, Source};
use crate::process::PersistError;
use crate::state::{ObjectMeta, StateError, StateStore};
use crate::world::WorldView;

/// Inputs that a function gives one batch at most.
pub const BATCH_MAX: usize = 1 << 16;

/// One run of a function, as the engine sees it.
#[derive(Debug, Clone)]
pub struct Job {
    /// The run, unique within its process.
    pub id: u64,
    /// The worker it runs on.
    pub worker: usize,
    /// How many local invocations it is nested in.
    pub depth: u32,
    /// It was begun by a function that is marked short, for which nothing may wait.
    pub short: bool,
    /// The client that asked.
    pub client: u128,
    /// The client's number for it.
    pub sequence: u64,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// The limits that it is under; none of its functions has any otherwise.
    pub held: Option<Arc<Held>>,
    /// Holds the id of the run that is to end early: its caller has cancelled it, or its process
    /// wants it to end.
    pub cancel: Arc<AtomicU64>,
}

impl Job {
    /// Whether the function should end early: cancelled, or its deadline has passed.
    pub fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) == self.id
            || self
                .deadline
                .is_some_and(|deadline| clock::now() >= deadline)
    }

    /// Why it should end early, if it should.
    pub(crate) fn end_early(&self) -> Status {
        match self.cancel.load(Ordering::Relaxed) == self.id {
            true => Status::Cancelled,
            false => Status::DeadlineExceeded,
        }
    }
}

/// The limits that a run is under: those of its function, and of the functions that it was called
/// by locally.
#[derive(Debug)]
pub struct Held {
    function: usize,
    /// Whether the function has a place behind a gate.
    gated: bool,
    memory_max: Option<u64>,
    used: Mutex<Used>,
    parent: Option<Arc<Held>>,
}

/// What a run holds through the host.
#[derive(Debug, Default)]
struct Used {
    /// Input, and views that were not given back.
    lent: u64,
    output: u64,
    /// How much larger the state has become by it.
    grown: i64,
}

/// Bytes that a run holds, until this is dropped.
#[derive(Debug)]
pub struct Charge {
    held: Arc<Held>,
    bytes: u64,
}

/// A run would hold more than its function may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the invocation holds {used} bytes and wants {wanted} more (memory_max_bytes {limit})")]
pub struct MemoryError {
    used: u64,
    wanted: u64,
    limit: u64,
}

impl Used {
    fn sum(&self) -> u64 {
        let grown = u64::try_from(self.grown).unwrap_or(0);
        self.lent.saturating_add(self.output).saturating_add(grown)
    }
}

impl Held {
    /// The limits of a function with this number, called by one that is under `parent`.
    pub(crate) fn new(
        function: usize,
        gated: bool,
        memory_max: Option<u64>,
        parent: Option<Arc<Held>>,
    ) -> Self {
        Self {
            function,
            gated,
            memory_max,
            used: Mutex::default(),
            parent,
        }
    }

    fn chain(&self) -> impl Iterator<Item = &Held> {
        std::iter::successors(Some(self), |held| held.parent.as_deref())
    }

    /// Whether the run is inside of this function already.
    pub(crate) fn holds(&self, function: usize) -> bool {
        self.chain().any(|held| held.function == function)
    }

    /// Whether the run has a place behind any gate.
    pub(crate) fn any_gate(&self) -> bool {
        self.chain().any(|held| held.gated)
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is used, if that is within the limit.
    fn change(&self, wanted: u64, change: impl Fn(&mut Used)) -> Result<(), MemoryError> {
        let mut used = self.used();
        let before = used.sum();
        if let Some(limit) = self.memory_max
            && wanted > 0
            && before.saturating_add(wanted) > limit
        {
            return Err(MemoryError {
                used: before,
                wanted,
                limit,
            });
        }
        change(&mut used);
        Ok(())
    }

    /// Changes what is used by this run and those that it is nested in, or nothing.
    fn change_all(
        &self,
        wanted: u64,
        change: impl Fn(&mut Used),
        undo: impl Fn(&mut Used),
    ) -> Result<(), MemoryError> {
        for (done, held) in self.chain().enumerate() {
            if let Err(error) = held.change(wanted, &change) {
                for held in self.chain().take(done) {
                    undo(&mut held.used());
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Counts bytes that are lent to the run.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, MemoryError> {
        let undo = |used: &mut Used| used.lent = used.lent.saturating_sub(bytes);
        let lend = |used: &mut Used| used.lent = used.lent.saturating_add(bytes);
        self.change_all(bytes, lend, undo)?;
        let held = Arc::clone(self);
        Ok(Charge { held, bytes })
    }

    /// Counts the input, which the run has to its end.
    pub(crate) fn input(&self, bytes: u64) -> Result<(), MemoryError> {
        self.change(bytes, |used| used.lent += bytes)
    }

    /// Counts the output, which replaces one that was there.
    pub(crate) fn output(&self, bytes: u64) -> Result<(), MemoryError> {
        self.used().output = 0;
        self.change(bytes, |used| used.output = bytes)
    }

    /// Counts that state grows from so many bytes to so many, or shrinks, which is never refused.
    pub(crate) fn state(&self, before: u64, after: u64) -> Result<(), MemoryError> {
        let delta = after as i64 - before as i64;
        let wanted = after.saturating_sub(before);
        self.change_all(
            wanted,
            |used| used.grown += delta,
            |used| used.grown -= delta,
        )
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        for held in self.held.chain() {
            let mut used = held.used();
            used.lent = used.lent.saturating_sub(self.bytes);
        }
    }
}

/// A process, as its functions use it. Deadlines of `None` fall back to the job's own.
pub trait Services: Send + Sync {
    /// Who this process is.
    fn identity(&self) -> &Identity;

    /// Where payload memory comes from.
    fn pool(&self) -> &BufPool;

    /// The state objects; those that may be in storage still by the next two.
    fn state(&self) -> &StateStore;

    /// A state object. One that is in storage still is waited for, with another worker in this
    /// one's place.
    ///
    /// # Errors
    /// It is damaged in storage, or cannot be had now.
    fn state_object(&self, key: &str) -> Result<Option<(Buf, ObjectMeta)>, StateError>;

    /// Adds bytes to a state object, in the same way; its new length.
    ///
    /// # Errors
    /// The same; the memory limit.
    fn state_append(&self, key: &str, bytes: &[u8]) -> Result<u64, StateError>;

    /// Has what there is under a key written through to storage, an object or that there is none,
    /// and waits for it, with another worker in this one's place; the version that is durable,
    /// zero for none.
    ///
    /// # Errors
    /// The storage, an object that is too large, no worker left to stand in, the deadline.
    fn state_persist(
        &self,
        job: &Job,
        key: &str,
        deadline: Option<Instant>,
    ) -> Result<u64, PersistError>;

    /// The members of the application.
    fn world(&self) -> &WorldView;

    /// Puts a message into the mailbox of `to` (its own name or another process's) and waits for
    /// the acknowledgement.
    ///
    /// # Errors
    /// Unknown or dead processes, a full mailbox, the deadline.
    fn message_put(
        &self,
        job: &Job,
        to: &str,
        key: &str,
        payload: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), InvokeError>;

    /// Puts one message into the mailboxes of several processes, all at once, and waits for all of
    /// them: what became of it at each, in their order. Its bytes are shared, not copied for each.
    fn message_broadcast(
        &self,
        job: &Job,
        to: &[&str],
        key: &str,
        payload: &[u8],
        deadline: Option<Instant>,
    ) -> Vec<Result<(), InvokeError>>;

    /// Takes a message out of the own mailbox, waiting for it until the deadline.
    ///
    /// # Errors
    /// The deadline, cancellation, no worker left to stand in.
    fn message_get(
        &self,
        job: &Job,
        from: &Source,
        key: &str,
        deadline: Option<Instant>,
    ) -> Result<MailMessage, InvokeError>;

    /// Takes a message out of the own mailbox if one is there.
    fn message_try(&self, from: &Source, key: &str) -> Option<MailMessage>;

    /// Puts a message back that was taken and cannot be had.
    fn message_give_back(&self, message: MailMessage);

    /// Looks at the message that a get would take.
    fn message_peek(&self, from: &Source, key: &str) -> Option<MailMessage>;

    /// Invokes a function, of this process (an empty name or its own) on the caller's stack, or of
    /// another.
    ///
    /// # Errors
    /// As for a client; besides, too deep a nesting and no worker left to stand in.
    fn invoke(
        &self,
        job: &Job,
        process: &str,
        function: &str,
        input: &[u8],
        deadline: Option<Instant>,
    ) -> Result<Payload, InvokeError>;

    /// Invokes a function without waiting for it: it comes back once this process has taken it on.
    /// The deadline is for the function's beginning.
    ///
    /// # Errors
    /// Names that cannot be; a queue of this process that is full; cancellation or the deadline
    /// before there was room.
    fn invoke_one_way(
        &self,
        job: &Job,
        process: &str,
        function: &str,
        input: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), InvokeError>;

    /// Invokes a function with each of at most [`BATCH_MAX`] inputs, and waits for all of them:
    /// outcomes in the order of the inputs.
    ///
    /// # Errors
    /// Names that cannot be; no worker left to stand in; cancellation or the deadline while some
    /// are under way, which are then cancelled, too.
    fn invoke_batch(
        &self,
        job: &Job,
        process: &str,
        function: &str,
        inputs: &[&[u8]],
        deadline: Option<Instant>,
    ) -> Result<Vec<Result<Payload, InvokeError>>, InvokeError>;

    /// The directory whose files belong to the process: they go into its images.
    ///
    /// # Errors
    /// The system refuses to make it.
    fn state_dir(&self) -> Result<&Path, FilesError>;

    /// Reads a state object of a process (an empty name: this one) by one-sided operations: its
    /// bytes and its version.
    ///
    /// # Errors
    /// As for a client; besides, no worker left to stand in.
    fn peer_state(
        &self,
        job: &Job,
        process: &str,
        key: &str,
        deadline: Option<Instant>,
    ) -> Result<Option<(Buf, u64)>, InvokeError>;

    /// Waits until the world's generation is above `after`.
    ///
    /// # Errors
    /// The deadline, cancellation, no worker left to stand in.
    fn world_wait(
        &self,
        job: &Job,
        after: u64,
        deadline: Option<Instant>,
    ) -> Result<crate::world::World, InvokeError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_for_all_that_a_run_is_nested_in() {
        let outer = Arc::new(Held::new(1, true, Some(100), None));
        outer.input(10).unwrap();
        let inner = Arc::new(Held::new(2, false, Some(60), Some(Arc::clone(&outer))));
        assert!(inner.holds(1) && inner.holds(2) && !outer.holds(2) && inner.any_gate());
        inner.input(1000).unwrap_err();
        let lent = inner.charge(60).unwrap();
        assert_eq!(inner.charge(1).unwrap_err().limit, 60);
        drop(lent);
        // 40 are left outside, which is less than the inner one may have.
        outer.state(0, 50).unwrap();
        assert_eq!(inner.charge(41).unwrap_err().limit, 100);
        let lent = inner.charge(40).unwrap();
        assert_eq!(inner.used().lent, 40);
        outer.output(1).unwrap_err();
        drop(lent);
        outer.output(40).unwrap();
        outer.output(30).unwrap();
        // What shrinks again is not held any more, and gives no more than there was.
        outer.state(50, 0).unwrap();
        outer.charge(61).unwrap_err();
        assert_eq!(outer.charge(60).unwrap().bytes, 60);
        outer.state(500, 0).unwrap();
        outer.charge(61).unwrap_err();
    }
}
