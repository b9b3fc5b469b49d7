//! The blocking client: the thread that calls owns the endpoint and waits on it itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use praas_transport::clock;

use super::StateObject;
use super::core::{CallId, CallOptions, FunctionId, Refusal, Target};
use super::one_way::OneWayTally;
use super::shell::{ClientConfig, ClientError, Shell};
use crate::codec;
use crate::invocation::{InvokeError, Payload, PutBody};

/// A function of a process, looked up once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FunctionRef {
    target: Target,
    function: FunctionId,
}

/// Owners of a batch's calls: the number of the input, from here on. Other calls have zero.
const BATCH_OWNERS_FIRST: u64 = 1;

/// A batch that is under way.
struct Batch {
    outcomes: Vec<Option<Result<Payload, InvokeError>>>,
    /// The input that is sent next.
    next: usize,
    /// Inputs without an outcome.
    left: usize,
}

impl Batch {
    fn new(inputs: usize) -> Self {
        Self {
            outcomes: (0..inputs).map(|_| None).collect(),
            next: 0,
            left: inputs,
        }
    }

    fn ended(&mut self, at: usize, outcome: Result<Payload, InvokeError>) {
        if let Some(place) = self.outcomes.get_mut(at) {
            *place = Some(outcome);
            self.left -= 1;
        }
    }
}

/// A client that blocks.
#[derive(Debug)]
pub struct Client {
    pub(super) shell: Shell,
    /// Results of submitted calls that were not waited for yet.
    ended: HashMap<CallId, Result<Payload, InvokeError>>,
}

impl Client {
    /// A client; it connects when it calls.
    ///
    /// # Errors
    /// A damaged credential, settings that cannot be.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        Ok(Self {
            shell: Shell::new(config)?,
            ended: HashMap::new(),
        })
    }

    /// Looks up a function of a process, for calls that follow.
    ///
    /// # Errors
    /// Names that cannot be. Whether they exist is found out by a call.
    pub fn function(&mut self, process: &str, function: &str) -> Result<FunctionRef, InvokeError> {
        let target = self.shell.handler.peers.target(process)?;
        let function = self.shell.handler.peers.function(target, function)?;
        Ok(FunctionRef { target, function })
    }

    /// Invokes a function and waits for its output, as long as it takes.
    ///
    /// # Errors
    /// See [`InvokeError`].
    pub fn invoke(
        &mut self,
        process: &str,
        function: &str,
        input: &[u8],
    ) -> Result<Vec<u8>, InvokeError> {
        let function = self.function(process, function)?;
        Ok(self.call(function, input, CallOptions::default())?.to_vec())
    }

    /// Invokes a function with typed input and output.
    ///
    /// # Errors
    /// See [`InvokeError`]; [`InvokeError::Malformed`] if the output is no such value.
    pub fn invoke_value<I: serde::Serialize + ?Sized, O: serde::de::DeserializeOwned>(
        &mut self,
        process: &str,
        function: &str,
        input: &I,
    ) -> Result<O, InvokeError> {
        let malformed = |error: codec::CodecError| InvokeError::Malformed(error.to_string());
        let input = codec::encode(input).map_err(malformed)?;
        codec::decode(&self.invoke(process, function, &input)?).map_err(malformed)
    }

    /// Invokes a function that was looked up, and waits for its output.
    ///
    /// # Errors
    /// See [`InvokeError`].
    #[inline]
    pub fn call(
        &mut self,
        function: FunctionRef,
        input: &[u8],
        options: CallOptions,
    ) -> Result<Payload, InvokeError> {
        let call = self.submit(function, input, options)?;
        self.wait(call)
    }

    /// Begins an invocation; many may be under way.
    ///
    /// # Errors
    /// No memory for the input. With too many calls under way, it waits for one to end.
    #[inline]
    pub fn submit(
        &mut self,
        function: FunctionRef,
        input: &[u8],
        options: CallOptions,
    ) -> Result<CallId, InvokeError> {
        let payload = Payload::copy_from(input, self.shell.endpoint.pool())
            .map_err(|error| InvokeError::Exhausted(error.to_string()))?;
        self.submit_payload(function, payload, options)
    }

    /// Begins an invocation without copying its input.
    ///
    /// # Errors
    /// As [`Client::submit`].
    #[inline]
    pub fn submit_payload(
        &mut self,
        function: FunctionRef,
        payload: Payload,
        options: CallOptions,
    ) -> Result<CallId, InvokeError> {
        let FunctionRef { target, function } = function;
        self.room_wait(options.deadline, |shell| shell.handler.peers.room(target))?;
        let ops = &mut self.shell.endpoint;
        let call = self
            .shell
            .handler
            .peers
            .invoke(ops, target, function, payload, options, 0);
        call.map_err(Refusal::into_error)
    }

    /// Invokes a function with each of the inputs, as many at a time as may be under way, and waits
    /// for all of them: outcomes in the order of the inputs.
    ///
    /// # Errors
    /// Names that cannot be. Each input has an outcome of its own besides.
    pub fn invoke_batch<I: AsRef<[u8]>>(
        &mut self,
        process: &str,
        function: &str,
        inputs: &[I],
    ) -> Result<Vec<Result<Payload, InvokeError>>, InvokeError> {
        let function = self.function(process, function)?;
        Ok(self.call_batch(function, inputs, CallOptions::default()))
    }

    /// As [`Client::invoke_batch`], of a function that was looked up. The deadline is that of each
    /// invocation. What is sent at a time goes out together, where that saves calls of the system.
    pub fn call_batch<I: AsRef<[u8]>>(
        &mut self,
        function: FunctionRef,
        inputs: &[I],
        options: CallOptions,
    ) -> Vec<Result<Payload, InvokeError>> {
        let mut batch = Batch::new(inputs.len());
        while batch.left > 0 {
            self.batch_submit(function, inputs, options, &mut batch);
            let mut news = false;
            while let Some(completed) = self.shell.handler.peers.completed() {
                news = true;
                match completed.owner.checked_sub(BATCH_OWNERS_FIRST) {
                    Some(at) => batch.ended(at as usize, completed.outcome),
                    None => drop(self.ended.insert(completed.call, completed.outcome)),
                }
            }
            if !news && batch.left > 0 {
                self.shell.step(None);
            }
        }
        batch.outcomes.into_iter().flatten().collect()
    }

    /// Sends of a batch what there is room for.
    fn batch_submit<I: AsRef<[u8]>>(
        &mut self,
        function: FunctionRef,
        inputs: &[I],
        options: CallOptions,
        batch: &mut Batch,
    ) {
        let FunctionRef { target, function } = function;
        let (peers, ops) = (&mut self.shell.handler.peers, &mut self.shell.endpoint);
        if batch.next >= inputs.len() || !peers.room(target) {
            return;
        }
        peers.cork(ops, target, true);
        while let Some(input) = inputs.get(batch.next)
            && peers.room(target)
        {
            let owner = BATCH_OWNERS_FIRST + batch.next as u64;
            let payload = Payload::copy_from(input.as_ref(), ops.pool());
            let begun = payload
                .map_err(|error| InvokeError::Exhausted(error.to_string()))
                .and_then(|payload| {
                    let call = peers.invoke(ops, target, function, payload, options, owner);
                    call.map_err(Refusal::into_error)
                });
            if let Err(error) = begun {
                batch.ended(batch.next, Err(error));
            }
            batch.next += 1;
        }
        peers.cork(ops, target, false);
    }

    /// Invokes a function without waiting for it and without its output. It is sent, and sent again
    /// to wherever its process is next, until its function has begun; who wants to know calls
    /// [`Client::one_way_wait`]. A client makes progress only in its calls, so whoever has nothing
    /// else to do calls that, or [`Client::close`].
    ///
    /// # Errors
    /// Names that cannot be; no memory for the input.
    pub fn invoke_one_way(
        &mut self,
        process: &str,
        function: &str,
        input: &[u8],
    ) -> Result<(), InvokeError> {
        let function = self.function(process, function)?;
        self.call_one_way(function, input, CallOptions::default())
    }

    /// As [`Client::invoke_one_way`], of a function that was looked up. The deadline is for the
    /// function's beginning.
    ///
    /// # Errors
    /// No memory for the input. With too many under way it waits for one to begin, at most until
    /// the deadline.
    pub fn call_one_way(
        &mut self,
        function: FunctionRef,
        input: &[u8],
        options: CallOptions,
    ) -> Result<(), InvokeError> {
        let payload = Payload::copy_from(input, self.shell.endpoint.pool())
            .map_err(|error| InvokeError::Exhausted(error.to_string()))?;
        let FunctionRef { target, function } = function;
        self.room_wait(options.deadline, |shell| shell.handler.peers.room(target))?;
        let (peers, ops) = (&mut self.shell.handler.peers, &mut self.shell.endpoint);
        peers
            .invoke_one_way(ops, target, function, payload, options, 0, false)
            .map_err(Refusal::into_error)?;
        Ok(())
    }

    /// What became of one-way invocations so far.
    pub fn one_way(&self) -> &OneWayTally {
        self.shell.handler.peers.one_way()
    }

    /// Waits until it is known of every one-way invocation whether it has begun, at most until the
    /// deadline; what is known then.
    pub fn one_way_wait(&mut self, deadline: Option<Instant>) -> &OneWayTally {
        while self.one_way().pending > 0 && deadline.is_none_or(|deadline| deadline > clock::now())
        {
            self.shell.step(deadline);
        }
        self.one_way()
    }

    /// Puts a message into a process's mailbox and waits until it is there.
    ///
    /// # Errors
    /// See [`InvokeError`].
    pub fn message_put(
        &mut self,
        process: &str,
        key: &str,
        body: &[u8],
        options: CallOptions,
    ) -> Result<(), InvokeError> {
        let call = self.message_submit(process, key, body, options)?;
        self.wait(call).map(|_| ())
    }

    /// Puts one message into the mailboxes of several processes, all at once, and waits for all
    /// of them: what became of it at each, in the order of their names. Its bytes are shared, not
    /// copied for each.
    pub fn message_broadcast(
        &mut self,
        processes: &[&str],
        key: &str,
        body: &[u8],
        options: CallOptions,
    ) -> Vec<Result<(), InvokeError>> {
        let body = match PutBody::new(key, body, self.shell.endpoint.pool()) {
            Ok(body) => body,
            Err(error) => return vec![Err(error); processes.len()],
        };
        let calls: Vec<_> = processes
            .iter()
            .map(|process| self.body_submit(process, body.clone(), options))
            .collect();
        calls
            .into_iter()
            .map(|call| self.wait(call?).map(|_| ()))
            .collect()
    }

    /// Begins a put; many may be under way, and arrive in this order. [`Client::wait`] tells when
    /// the message is there.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub fn message_submit(
        &mut self,
        process: &str,
        key: &str,
        body: &[u8],
        options: CallOptions,
    ) -> Result<CallId, InvokeError> {
        let body = PutBody::new(key, body, self.shell.endpoint.pool())?;
        self.body_submit(process, body, options)
    }

    fn body_submit(
        &mut self,
        process: &str,
        body: PutBody,
        options: CallOptions,
    ) -> Result<CallId, InvokeError> {
        let target = self.shell.handler.peers.target(process)?;
        self.room_wait(options.deadline, |shell| {
            shell.handler.peers.room_put(target)
        })?;
        let ops = &mut self.shell.endpoint;
        let peers = &mut self.shell.handler.peers;
        let call = peers.put(ops, target, body, options, 0);
        call.map_err(Refusal::into_error)
    }

    /// Reads a state object of a process by one-sided operations: no function runs there, and from
    /// the second read on nobody is asked. `None` if there is no such object.
    ///
    /// # Errors
    /// See [`InvokeError`]; [`InvokeError::Forbidden`] if the process does not show its state to
    /// clients (setting `state_read`).
    pub fn state_read(
        &mut self,
        process: &str,
        key: &str,
        options: CallOptions,
    ) -> Result<Option<StateObject>, InvokeError> {
        let target = self.shell.handler.peers.target(process)?;
        self.room_wait(options.deadline, |shell| {
            shell.handler.peers.room_read(target)
        })?;
        let ops = &mut self.shell.endpoint;
        let peers = &mut self.shell.handler.peers;
        let call = peers.state_read(ops, target, key, options, 0);
        let call = call.map_err(Refusal::into_error)?;
        loop {
            while let Some(completed) = self.shell.handler.peers.completed() {
                if completed.call == call {
                    return completed.object();
                }
                self.ended.insert(completed.call, completed.outcome);
            }
            self.shell.step(None);
        }
    }

    /// Waits for a call to end.
    ///
    /// # Errors
    /// See [`InvokeError`]; [`InvokeError::ResultExpired`] if it was waited for before.
    #[inline]
    pub fn wait(&mut self, call: CallId) -> Result<Payload, InvokeError> {
        if !self.ended.is_empty()
            && let Some(outcome) = self.ended.remove(&call)
        {
            return outcome;
        }
        loop {
            while let Some(completed) = self.shell.handler.peers.completed() {
                if completed.call == call {
                    return completed.outcome;
                }
                self.ended.insert(completed.call, completed.outcome);
            }
            if !self.shell.handler.peers.pending(call) {
                return Err(InvokeError::ResultExpired);
            }
            self.shell.step(None);
        }
    }

    /// Waits for any call to end, at most until the deadline.
    pub fn wait_any(
        &mut self,
        deadline: Option<Instant>,
    ) -> Option<(CallId, Result<Payload, InvokeError>)> {
        if let Some(call) = self.ended.keys().next().copied() {
            return self.ended.remove(&call).map(|outcome| (call, outcome));
        }
        loop {
            if let Some(completed) = self.shell.handler.peers.completed() {
                return Some((completed.call, completed.outcome));
            }
            let nothing = !self.shell.handler.peers.is_busy();
            if nothing || deadline.is_some_and(|deadline| deadline <= clock::now()) {
                return None;
            }
            self.shell.step(deadline);
        }
    }

    /// Makes progress without waiting.
    pub fn progress(&mut self) {
        self.shell.step(Some(clock::now()));
    }

    /// Gives up on a call: its function is told, its result is dropped.
    pub fn cancel(&mut self, call: CallId) {
        self.shell
            .handler
            .peers
            .cancel(&mut self.shell.endpoint, call);
    }

    /// Closes the connections in good order, for at most `patience`, within which one-way
    /// invocations that have not begun are waited for.
    pub fn close(mut self, patience: Duration) {
        let until = clock::now() + patience;
        self.one_way_wait(Some(until));
        self.shell.handler.peers.close_all(&mut self.shell.endpoint);
        self.shell.endpoint.progress_wait(
            &mut self.shell.handler,
            Some(until.min(clock::now() + Duration::from_millis(10))),
            praas_transport::WaitMode::Warm,
        );
    }

    /// Memory for inputs that are submitted without copying.
    pub fn pool(&self) -> &praas_transport::BufPool {
        self.shell.endpoint.pool()
    }

    /// Waits until there is room for another call.
    #[inline]
    fn room_wait(
        &mut self,
        deadline: Option<Instant>,
        room: impl Fn(&Shell) -> bool,
    ) -> Result<(), InvokeError> {
        while !room(&self.shell) {
            if deadline.is_some_and(|deadline| deadline <= clock::now()) {
                return Err(InvokeError::DeadlineExceeded);
            }
            self.shell.step(deadline);
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let pending = self.one_way().pending;
        if pending > 0 {
            tracing::warn!(
                pending,
                "a client ends before its one-way invocations have begun"
            );
        }
    }
}
