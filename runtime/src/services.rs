//! What a running function can ask of its process: the seam between the function ABI and the
//! engine.
//!
//! ```text
//!   function -> Context -> C table of the ABI -> dyn Services -> the process's engine
//! ```

use std::sync::Arc;
use std::time::Instant;

use praas_transport::clock;
use praas_transport::sync::atomic::{AtomicU64, Ordering};
use praas_transport::{Buf, BufPool, Identity};

use crate::invocation::{InvokeError, Payload};
use crate::mailbox::{MailMessage, Source};
use crate::state::StateStore;
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
}

/// A process, as its functions use it. Deadlines of `None` fall back to the job's own.
pub trait Services: Send + Sync {
    /// Who this process is.
    fn identity(&self) -> &Identity;

    /// Where payload memory comes from.
    fn pool(&self) -> &BufPool;

    /// The state objects.
    fn state(&self) -> &StateStore;

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
