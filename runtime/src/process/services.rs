//! The engine as functions use it: calls to other processes, messages, waits.
//!
//! A function that waits is counted as blocked and a spare stands in for it. Its thread leads if
//! nobody else does, so that an answer that comes soon is taken by the thread that waits for it.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use praas_transport::clock;
use praas_transport::sync::Owned;
use praas_transport::sync::atomic::Ordering;
use praas_transport::{Buf, BufPool, Identity};

use super::batch::BatchCall;
use super::builtin::own_put;
use super::crew::{Delivery, Worker};
use super::engine::{Core, Engine, Outgoing, Post};
use super::persist::PersistError;
use super::serve::Callee;
use super::worker::worker_start;
use crate::client::CallOptions;
use crate::files::FilesError;
use crate::invocation::{InvokeError, KEY_MAX_BYTES, Payload, PutBody, Status};
use crate::mailbox::{MailMessage, Put, Source};
use crate::services::{Job, Services};
use crate::state::{Look, ObjectMeta, StateError, StateStore};
use crate::world::{World, WorldView};

/// How often a wait that nothing wakes looks whether it is cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(20);

impl Engine {
    pub fn worker_of(&self, job: &Job) -> Result<Arc<Worker>, InvokeError> {
        let worker = self.shared.crew.worker(job.worker);
        worker.ok_or_else(|| InvokeError::Malformed("the job belongs to no worker".into()))
    }

    /// Starts another thread, to stand in for one that is of no use for now.
    pub fn spare_start(&self) {
        if let Some(engine) = self.shared.engine()
            && let Err(error) = worker_start(&engine)
        {
            // Whatever asked for it goes on: there is one thread less to stand in.
            tracing::warn!(%error, "cannot start a spare worker");
        }
    }

    /// Begins a wait: what is delivered with this stamp is for it.
    pub fn wait_begin(&self, worker: &Worker, job: &Job) -> Result<u32, InvokeError> {
        if job.short {
            // It has the endpoint, so what it waits for would never come.
            let text = "a function that is marked short may not wait";
            return Err(InvokeError::Exhausted(text.into()));
        }
        self.shared.block()?;
        let mut inbox = worker.inbox();
        inbox.stamp = inbox.stamp.wrapping_add(1);
        inbox.call = None;
        inbox.gather = None;
        inbox.delivery = None;
        Ok(inbox.stamp)
    }

    /// Waits for a delivery, leading if nobody else does.
    pub fn wait(
        &self,
        worker: &Worker,
        job: &Job,
        deadline: Option<Instant>,
        owned: Option<Owned<'_, Core>>,
    ) -> Result<Delivery, InvokeError> {
        let delivery = self.wait_leading(worker, job, deadline, owned);
        // It may have led, and led asleep: the monitor sleeps then, and nobody leads from now on.
        self.watch();
        delivery
    }

    fn wait_leading(
        &self,
        worker: &Worker,
        job: &Job,
        deadline: Option<Instant>,
        mut owned: Option<Owned<'_, Core>>,
    ) -> Result<Delivery, InvokeError> {
        let cancelled = || worker.cancel.load(Ordering::Acquire) == job.id;
        loop {
            if let Some(delivery) = worker.inbox().delivery.take() {
                return Ok(delivery);
            }
            if cancelled() {
                return Err(InvokeError::Cancelled);
            }
            if deadline.is_some_and(|deadline| deadline <= clock::now()) {
                return Err(InvokeError::DeadlineExceeded);
            }
            if self.shared.ended.load(Ordering::Relaxed) {
                return Err(InvokeError::Cancelled);
            }
            let stop = || cancelled() || worker.inbox().delivery.is_some();
            if let Some(meanwhile) = self.shared.stepped {
                drop(owned.take());
                self.step_waiting(meanwhile, stop);
                continue;
            }
            if let Some(mut core) = owned.take().or_else(|| self.token.try_take()) {
                self.lead(&mut core, false, deadline, stop);
                continue;
            }
            match deadline {
                None => thread::park(),
                Some(deadline) => {
                    thread::park_timeout(deadline.saturating_duration_since(clock::now()));
                }
            }
        }
    }

    pub fn wait_end(&self) {
        self.shared.crew.unblock();
    }

    /// Calls another process and waits for the answer; of a read, with the object's version.
    fn call(
        &self,
        job: &Job,
        call: Outgoing,
        deadline: Option<Instant>,
    ) -> Result<(Payload, u64), InvokeError> {
        let worker = self.worker_of(job)?;
        let deadline = deadline.or(job.deadline);
        let options = CallOptions {
            deadline,
            idempotent: false,
        };
        let stamp = self.wait_begin(&worker, job)?;
        let owned = match self.token.try_take() {
            Some(mut core) => {
                let begun = self.call_begin(&mut core, job.worker, stamp, call, options);
                match begun {
                    Ok(call) => worker.inbox().call = Some(call),
                    Err(error) => {
                        self.wait_end();
                        return Err(error);
                    }
                }
                Some(core)
            }
            None => {
                let worker = job.worker;
                self.shared.post(Post::Call {
                    worker,
                    stamp,
                    call,
                    options,
                });
                None
            }
        };
        let waited = self.wait(&worker, job, deadline, owned);
        if waited.is_err() {
            self.call_abandon(&worker);
        }
        self.wait_end();
        match waited? {
            Delivery::Ended(outcome, version) => Ok((outcome?, version)),
            _ => Err(InvokeError::Malformed("something else for a call".into())),
        }
    }

    /// Puts a message into the process's own mailbox.
    pub(super) fn own_put(&self, key: &str, payload: &[u8]) -> Result<(), InvokeError> {
        if key.len() > KEY_MAX_BYTES {
            let text = format!("a message's key has at most 255 bytes, not {}", key.len());
            return Err(InvokeError::Malformed(text));
        }
        match own_put(&self.shared, key, payload) {
            Ok(Put::Stored | Put::Duplicate) => Ok(()),
            Ok(Put::Full) => Err(InvokeError::MailboxFull(
                self.shared.identity.name.to_string(),
            )),
            Err(text) => Err(InvokeError::Exhausted(text)),
        }
    }

    /// Calls another process with many inputs and waits for all answers. The calls have the
    /// deadline, so the wait needs none.
    fn batch_call(
        &self,
        job: &Job,
        (process, function): (&str, &str),
        inputs: &[&[u8]],
        deadline: Option<Instant>,
    ) -> Result<Vec<Result<Payload, InvokeError>>, InvokeError> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let worker = self.worker_of(job)?;
        let payloads: Result<Vec<_>, _> = inputs
            .iter()
            .map(|input| Payload::copy_from(input, &self.shared.pool))
            .collect();
        let inputs = payloads.map_err(|error| InvokeError::Exhausted(error.to_string()))?;
        let stamp = self.wait_begin(&worker, job)?;
        let number = job.worker;
        self.shared.post(Post::Batch(BatchCall {
            worker: number,
            stamp,
            process: process.into(),
            function: function.into(),
            inputs,
            options: CallOptions {
                deadline: deadline.or(job.deadline),
                idempotent: false,
            },
        }));
        let waited = self.wait(&worker, job, None, None);
        if waited.is_err() {
            self.call_abandon(&worker);
            self.shared.post(Post::BatchCancel {
                worker: number,
                stamp,
            });
        }
        self.wait_end();
        match waited? {
            Delivery::Batch(outcomes) => Ok(outcomes),
            Delivery::Ended(Err(error), _) => Err(error),
            _ => Err(InvokeError::Malformed("a delivery for another wait".into())),
        }
    }

    /// The same as [`Engine::local_invoke`], apart from the hot path.
    #[inline(never)]
    fn local_invoke_apart(
        &self,
        job: &Job,
        function: &str,
        input: &[u8],
        deadline: Option<Instant>,
    ) -> Result<Payload, InvokeError> {
        self.local_invoke(job, function, input, deadline)
    }

    #[inline(always)]
    fn local_invoke(
        &self,
        job: &Job,
        function: &str,
        input: &[u8],
        deadline: Option<Instant>,
    ) -> Result<Payload, InvokeError> {
        if job.depth + 1 > self.shared.settings.local_depth_max {
            return Err(InvokeError::Exhausted(format!(
                "local invocations nest {} deep already (local_depth_max)",
                job.depth
            )));
        }
        let text = |payload: &Payload| String::from_utf8_lossy(payload).into_owned();
        let (status, payload) = match self.shared.callee(function) {
            Callee::Builtin(builtin) if job.short && builtin.waits() => {
                let text = "a function that is marked short may not wait for storage";
                return Err(InvokeError::Exhausted(text.into()));
            }
            Callee::Builtin(builtin) if !builtin.waits() => {
                builtin.call(&self.shared, Some(job), input)
            }
            callee => {
                let deadline = match (deadline, job.deadline) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                let nested = Job {
                    depth: job.depth + 1,
                    deadline,
                    ..job.clone()
                };
                match callee {
                    Callee::Unknown => return Err(InvokeError::UnknownFunction(function.into())),
                    Callee::Builtin(builtin) => builtin.call(&self.shared, Some(&nested), input),
                    Callee::Limited(index) => self.limited_local(&nested, index, input)?,
                    Callee::User(index) => self
                        .shared
                        .registry
                        .function(index)
                        .call(self, &nested, input),
                }
            }
        };
        match status {
            Status::Ok => Ok(payload),
            Status::Panicked => Err(InvokeError::Panicked(text(&payload))),
            Status::TooLarge => Err(InvokeError::TooLarge(text(&payload))),
            Status::Exhausted => Err(InvokeError::Exhausted(text(&payload))),
            Status::DeadlineExceeded => Err(InvokeError::DeadlineExceeded),
            Status::Cancelled => Err(InvokeError::Cancelled),
            _ => Err(InvokeError::Function(text(&payload))),
        }
    }
}

impl Services for Engine {
    fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    fn pool(&self) -> &BufPool {
        &self.shared.pool
    }

    fn state(&self) -> &StateStore {
        &self.shared.state
    }

    fn state_object(&self, key: &str) -> Result<Option<(Buf, ObjectMeta)>, StateError> {
        self.shared.object(key)
    }

    fn state_append(&self, key: &str, bytes: &[u8]) -> Result<u64, StateError> {
        if let Some(Look::Absent(absent, _)) = self.shared.state.look(key) {
            self.shared.object_fetch(key, &absent)?;
        }
        self.shared.state.append(key, bytes)
    }

    fn state_persist(
        &self,
        job: &Job,
        key: &str,
        deadline: Option<Instant>,
    ) -> Result<u64, PersistError> {
        self.persist(Some(job), key, deadline)
    }

    fn world(&self) -> &WorldView {
        &self.shared.world
    }

    fn message_put(
        &self,
        job: &Job,
        to: &str,
        key: &str,
        payload: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), InvokeError> {
        if to == &*self.shared.identity.name {
            return self.own_put(key, payload);
        }
        let body = PutBody::new(key, payload, &self.shared.pool)?;
        let process = to.into();
        self.call(job, Outgoing::Put { process, body }, deadline)
            .map(|_| ())
    }

    fn message_broadcast(
        &self,
        job: &Job,
        to: &[&str],
        key: &str,
        payload: &[u8],
        deadline: Option<Instant>,
    ) -> Vec<Result<(), InvokeError>> {
        self.broadcast(job, to, key, payload, deadline)
    }

    fn message_get(
        &self,
        job: &Job,
        from: &Source,
        key: &str,
        deadline: Option<Instant>,
    ) -> Result<MailMessage, InvokeError> {
        if let Some(message) = self.message_try(from, key) {
            return Ok(message);
        }
        let worker = self.worker_of(job)?;
        let deadline = deadline.or(job.deadline);
        let stamp = self.wait_begin(&worker, job)?;
        let waiter = (job.worker as u64) << 32 | u64::from(stamp);
        {
            let mut mailbox = self.shared.mailbox();
            if let Some(message) = mailbox.take(from, key) {
                drop(mailbox);
                self.wait_end();
                return Ok(message);
            }
            mailbox.wait(waiter, from.clone(), key.into());
        }
        let mut waited = self.wait(&worker, job, deadline, None);
        if waited.is_err() && !self.shared.mailbox().cancel(waiter) {
            // It was handed over in this moment.
            if let Some(delivery) = worker.inbox().delivery.take() {
                waited = Ok(delivery);
            }
        }
        self.wait_end();
        match waited? {
            Delivery::Message(message) => Ok(message),
            _ => Err(InvokeError::Malformed("something else for a get".into())),
        }
    }

    fn message_try(&self, from: &Source, key: &str) -> Option<MailMessage> {
        self.shared.mailbox().take(from, key)
    }

    fn message_give_back(&self, message: MailMessage) {
        self.shared.mailbox().give_back(message);
    }

    fn message_peek(&self, from: &Source, key: &str) -> Option<MailMessage> {
        self.shared.mailbox().peek(from, key)
    }

    fn invoke(
        &self,
        job: &Job,
        process: &str,
        function: &str,
        input: &[u8],
        deadline: Option<Instant>,
    ) -> Result<Payload, InvokeError> {
        if process.is_empty() || process == &*self.shared.identity.name {
            return self.local_invoke(job, function, input, deadline);
        }
        let input = Payload::copy_from(input, &self.shared.pool)
            .map_err(|error| InvokeError::Exhausted(error.to_string()))?;
        let call = Outgoing::Invoke {
            process: process.into(),
            function: function.into(),
            input,
        };
        let (output, _) = self.call(job, call, deadline)?;
        Ok(output)
    }

    fn state_dir(&self) -> Result<&Path, FilesError> {
        Ok(self.shared.files_dir()?.path())
    }

    fn peer_state(
        &self,
        job: &Job,
        process: &str,
        key: &str,
        deadline: Option<Instant>,
    ) -> Result<Option<(Buf, u64)>, InvokeError> {
        if process.is_empty() || process == &*self.shared.identity.name {
            let object = self.shared.object(key);
            let object = object.map_err(|error| InvokeError::Function(error.to_string()))?;
            return Ok(object.map(|(buf, meta)| (buf, meta.version)));
        }
        let call = Outgoing::Read {
            process: process.into(),
            key: key.into(),
        };
        let (object, version) = self.call(job, call, deadline)?;
        Ok((version != 0).then(|| (object.into_buf(), version)))
    }

    fn invoke_one_way(
        &self,
        job: &Job,
        process: &str,
        function: &str,
        input: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), InvokeError> {
        if process.is_empty() || process == &*self.shared.identity.name {
            return self.one_way_own(function, input, deadline);
        }
        let worker = self.worker_of(job)?;
        self.one_way_call(&worker, job, (process, function), input, deadline)
    }

    fn invoke_batch(
        &self,
        job: &Job,
        process: &str,
        function: &str,
        inputs: &[&[u8]],
        deadline: Option<Instant>,
    ) -> Result<Vec<Result<Payload, InvokeError>>, InvokeError> {
        if process.is_empty() || process == &*self.shared.identity.name {
            let mut outcomes = Vec::with_capacity(inputs.len());
            for input in inputs {
                if job.cancelled() {
                    return Err(match job.end_early() {
                        Status::Cancelled => InvokeError::Cancelled,
                        _ => InvokeError::DeadlineExceeded,
                    });
                }
                outcomes.push(self.local_invoke_apart(job, function, input, deadline));
            }
            return Ok(outcomes);
        }
        self.batch_call(job, (process, function), inputs, deadline)
    }

    fn world_wait(
        &self,
        job: &Job,
        after: u64,
        deadline: Option<Instant>,
    ) -> Result<World, InvokeError> {
        let worker = self.worker_of(job)?;
        let deadline = deadline.or(job.deadline);
        self.wait_begin(&worker, job)?;
        let outcome = loop {
            let now = clock::now();
            let look = now + CANCEL_LOOK;
            let until = deadline.map_or(look, |deadline| deadline.min(look));
            let world = match self.shared.stepped {
                None => self.shared.world.wait(after, Some(until)),
                Some(meanwhile) => {
                    self.step_waiting(meanwhile, || false);
                    self.shared.world.now()
                }
            };
            if world.generation > after {
                break Ok(world);
            }
            if job.cancelled() || self.shared.ended.load(Ordering::Relaxed) {
                break Err(match deadline {
                    Some(deadline) if deadline <= clock::now() => InvokeError::DeadlineExceeded,
                    _ => InvokeError::Cancelled,
                });
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                break Err(InvokeError::DeadlineExceeded);
            }
        };
        self.wait_end();
        outcome
    }
}
