//! The asynchronous client: handles to one thread that owns the endpoint.
//!
//! Any number of tasks call through clones of one handle. A call whose future is dropped is
//! cancelled. The thread ends with the last handle.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use crossbeam_queue::SegQueue;
use praas_transport::clock;
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use praas_transport::{Buf, BufPool, Credential, WaitMode, Waker};
use tokio::sync::oneshot;

use super::StateObject;
use super::core::{CallId, CallOptions, Completed, Refusal};
use super::shell::{ClientConfig, ClientError, Shell};
use crate::directory::Resolved;
use crate::invocation::{InvokeError, Payload, PutBody};

/// How a call ended, or why it could not begin.
type Outcome = Result<Completed, InvokeError>;
type Answer = oneshot::Sender<Outcome>;
type Answered = oneshot::Receiver<Outcome>;

/// A one-way invocation that is under way: a future of its beginning.
#[derive(Debug)]
pub struct OneWay {
    begun: Answered,
}

impl Future for OneWay {
    type Output = Result<(), InvokeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The thread has ended: whether it began is nowhere known any more.
        let lost = Err(InvokeError::OutcomeUnknown);
        Pin::new(&mut self.begun)
            .poll(context)
            .map(|begun| begun.unwrap_or(lost)?.outcome.map(drop))
    }
}

enum Request {
    Invoke {
        process: String,
        function: String,
        input: Buf,
    },
    OneWay {
        process: String,
        function: String,
        input: Buf,
    },
    Put {
        process: String,
        body: PutBody,
    },
    Read {
        process: String,
        key: String,
    },
}

/// Invocations of one batch under way at a time.
const BATCH_INFLIGHT: usize = 1024;

/// How long the thread goes on for one-way invocations that have not begun when the last handle is
/// dropped.
const ONE_WAY_PATIENCE: Duration = Duration::from_secs(15);

enum Command {
    Call {
        ticket: u64,
        request: Request,
        options: CallOptions,
        answer: Answer,
    },
    Cancel {
        ticket: u64,
    },
    Place {
        process: String,
        place: Resolved,
        credential: Credential,
    },
}

struct Shared {
    commands: SegQueue<Command>,
    waker: Waker,
    pool: BufPool,
    next: AtomicU64,
    ended: AtomicBool,
}

/// A client for tokio tasks. Clones share one connection to each process.
#[derive(Clone)]
pub struct AsyncClient {
    shared: Arc<Shared>,
    /// Ends the thread when the last clone is dropped.
    _alive: Arc<Alive>,
}

impl std::fmt::Debug for AsyncClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AsyncClient")
    }
}

struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

/// Cancels a call whose future is dropped before it ended.
struct CancelGuard<'a> {
    shared: &'a Shared,
    ticket: u64,
    done: bool,
}

impl Drop for CancelGuard<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.commands.push(Command::Cancel {
                ticket: self.ticket,
            });
            self.shared.waker.wake();
        }
    }
}

impl AsyncClient {
    /// Starts the thread that all clones of this client share. It blocks when it is idle, whatever
    /// the configuration says of waiting but [`WaitMode::Hot`].
    ///
    /// # Errors
    /// As for [`super::Client::new`]; no thread to be had.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let mut shell = Shell::new(config)?;
        let shared = Arc::new(Shared {
            commands: SegQueue::new(),
            waker: shell.endpoint.waker(),
            pool: shell.endpoint.pool().clone(),
            next: AtomicU64::new(1),
            ended: AtomicBool::new(false),
        });
        let ours = Arc::clone(&shared);
        thread::Builder::new()
            .name("praas-client".into())
            .spawn(move || run(&mut shell, &ours))
            .map_err(ClientError::Thread)?;
        Ok(Self {
            _alive: Arc::new(Alive(Arc::clone(&shared))),
            shared,
        })
    }

    /// Invokes a function.
    ///
    /// # Errors
    /// See [`InvokeError`].
    pub async fn invoke(
        &self,
        process: &str,
        function: &str,
        input: impl Into<Buf>,
        options: CallOptions,
    ) -> Result<Payload, InvokeError> {
        let request = Request::Invoke {
            process: process.into(),
            function: function.into(),
            input: input.into(),
        };
        self.call(request, options).await?.outcome
    }

    /// Invokes a function with each of the inputs, many at a time, and waits for all of them:
    /// outcomes in the order of the inputs. The deadline is that of each invocation.
    pub async fn invoke_batch(
        &self,
        process: &str,
        function: &str,
        inputs: impl IntoIterator<Item = impl Into<Buf>>,
        options: CallOptions,
    ) -> Vec<Result<Payload, InvokeError>> {
        let mut inputs = inputs.into_iter();
        let (mut under_way, mut outcomes) = (VecDeque::new(), Vec::new());
        loop {
            while under_way.len() < BATCH_INFLIGHT
                && let Some(input) = inputs.next()
            {
                let request = Request::Invoke {
                    process: process.into(),
                    function: function.into(),
                    input: input.into(),
                };
                under_way.push_back(self.call_begin(request, options));
            }
            let Some(first) = under_way.pop_front() else {
                return outcomes;
            };
            let completed = first.outcome().await;
            outcomes.push(completed.and_then(|completed| completed.outcome));
        }
    }

    /// Invokes a function without its output. It is under way when this returns; who awaits what is
    /// returned learns whether it has begun, who drops it does not hinder it. The deadline is for
    /// its beginning. When the last handle is dropped the thread goes on for a while until all have
    /// begun; what has not by then is logged.
    pub fn invoke_one_way(
        &self,
        process: &str,
        function: &str,
        input: impl Into<Buf>,
        options: CallOptions,
    ) -> OneWay {
        let request = Request::OneWay {
            process: process.into(),
            function: function.into(),
            input: input.into(),
        };
        let (_, begun) = self.command(request, options);
        OneWay { begun }
    }

    /// Puts a message into a process's mailbox.
    ///
    /// # Errors
    /// See [`InvokeError`].
    pub async fn message_put(
        &self,
        process: &str,
        key: &str,
        body: impl Into<Buf>,
        options: CallOptions,
    ) -> Result<(), InvokeError> {
        let body = PutBody::new(key, &body.into(), &self.shared.pool)?;
        let process = process.into();
        let request = Request::Put { process, body };
        self.call(request, options).await?.outcome.map(|_| ())
    }

    /// Puts one message into the mailboxes of several processes, all at once: what became of it at
    /// each, in the order of their names. Its bytes are shared, not copied for each.
    pub async fn message_broadcast(
        &self,
        processes: &[&str],
        key: &str,
        body: impl Into<Buf>,
        options: CallOptions,
    ) -> Vec<Result<(), InvokeError>> {
        let body = match PutBody::new(key, &body.into(), &self.shared.pool) {
            Ok(body) => body,
            Err(error) => return vec![Err(error); processes.len()],
        };
        let begun: Vec<_> = processes
            .iter()
            .map(|process| {
                let (process, body) = ((*process).into(), body.clone());
                self.call_begin(Request::Put { process, body }, options)
            })
            .collect();
        let mut outcomes = Vec::with_capacity(begun.len());
        for call in begun {
            let completed = call.outcome().await;
            outcomes.push(completed.and_then(|completed| completed.outcome.map(|_| ())));
        }
        outcomes
    }

    /// Reads a state object of a process by one-sided operations; see
    /// [`super::Client::state_read`].
    ///
    /// # Errors
    /// The same.
    pub async fn state_read(
        &self,
        process: &str,
        key: &str,
        options: CallOptions,
    ) -> Result<Option<StateObject>, InvokeError> {
        let request = Request::Read {
            process: process.into(),
            key: key.into(),
        };
        self.call(request, options).await?.object()
    }

    /// Tells where a process is, and what opens it from now on, to a client whose directory is a
    /// fixed list. Calls that follow know it.
    pub fn process_place(&self, process: &str, place: Resolved, credential: Credential) {
        self.shared.commands.push(Command::Place {
            process: process.into(),
            place,
            credential,
        });
        self.shared.waker.wake();
    }

    async fn call(&self, request: Request, options: CallOptions) -> Outcome {
        self.call_begin(request, options).outcome().await
    }

    fn call_begin(&self, request: Request, options: CallOptions) -> Begun<'_> {
        let (ticket, answered) = self.command(request, options);
        let guard = CancelGuard {
            shared: &self.shared,
            ticket,
            done: false,
        };
        Begun { answered, guard }
    }

    /// Hands a call to the thread: its ticket, and where its outcome arrives.
    fn command(&self, request: Request, options: CallOptions) -> (u64, Answered) {
        let ticket = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.shared.commands.push(Command::Call {
            ticket,
            request,
            options,
            answer,
        });
        self.shared.waker.wake();
        (ticket, answered)
    }
}

/// A call that the thread was told of.
struct Begun<'a> {
    answered: Answered,
    guard: CancelGuard<'a>,
}

impl Begun<'_> {
    async fn outcome(mut self) -> Outcome {
        let outcome = self.answered.await;
        self.guard.done = true;
        // The thread ends only after the last handle, and this is one's.
        outcome.unwrap_or(Err(InvokeError::Cancelled))
    }
}

/// Calls of the thread, and commands that found no room yet.
#[derive(Default)]
struct Calls {
    by_ticket: std::collections::HashMap<u64, (CallId, Answer)>,
    waiting: std::collections::VecDeque<Command>,
}

fn run(shell: &mut Shell, shared: &Shared) {
    let mut calls = Calls::default();
    let mut patience = None;
    loop {
        while let Some(command) = shared.commands.pop() {
            calls.waiting.push_back(command);
        }
        for _ in 0..calls.waiting.len() {
            let Some(command) = calls.waiting.pop_front() else {
                break;
            };
            if let Some(command) = calls.begin(shell, command) {
                calls.waiting.push_back(command);
            }
        }
        while let Some(completed) = shell.handler.peers.completed() {
            if let Some((_, answer)) = calls.by_ticket.remove(&completed.owner) {
                // A caller that is gone has no use for it.
                let _ = answer.send(Ok(completed));
            }
        }
        if shared.ended.load(Ordering::Acquire) {
            let until = *patience.get_or_insert_with(|| clock::now() + ONE_WAY_PATIENCE);
            let left = shell.handler.peers.one_way().pending as usize + calls.waiting.len();
            if left == 0 {
                break;
            }
            if until <= clock::now() {
                tracing::warn!(
                    left,
                    "a client ends before its one-way invocations have begun"
                );
                break;
            }
        }
        shell.step(patience);
    }
    shell.handler.peers.close_all(&mut shell.endpoint);
    let until = clock::now() + Duration::from_millis(10);
    shell
        .endpoint
        .progress_wait(&mut shell.handler, Some(until), WaitMode::Warm);
}

impl Calls {
    /// Begins a call; gives the command back if there is no room for it yet.
    fn begin(&mut self, shell: &mut Shell, command: Command) -> Option<Command> {
        let (ticket, request, options, answer) = match command {
            Command::Cancel { ticket } => {
                if let Some((call, _)) = self.by_ticket.remove(&ticket) {
                    shell.handler.peers.cancel(&mut shell.endpoint, call);
                }
                self.waiting.retain(|command| {
                    !matches!(command, Command::Call { ticket: other, .. } if *other == ticket)
                });
                return None;
            }
            Command::Place {
                process,
                place,
                credential,
            } => {
                let peers = &mut shell.handler.peers;
                peers.process_place(&process, place, credential);
                return None;
            }
            Command::Call {
                ticket,
                request,
                options,
                answer,
            } => (ticket, request, options, answer),
        };
        let (peers, ops) = (&mut shell.handler.peers, &mut *shell.endpoint);
        let process = match &request {
            Request::Invoke { process, .. }
            | Request::OneWay { process, .. }
            | Request::Put { process, .. }
            | Request::Read { process, .. } => process,
        };
        let submitted = peers
            .target(process)
            .map_err(Refusal::Never)
            .and_then(|target| {
                let room = match &request {
                    Request::Invoke { .. } | Request::OneWay { .. } => peers.room(target),
                    Request::Put { .. } => peers.room_put(target),
                    Request::Read { .. } => peers.room_read(target),
                };
                match &request {
                    _ if !room => Err(Refusal::Full),
                    Request::Invoke {
                        function, input, ..
                    } => {
                        let function = peers.function(target, function).map_err(Refusal::Never)?;
                        let input = Payload::Buf(input.clone());
                        peers.invoke(ops, target, function, input, options, ticket)
                    }
                    Request::Put { body, .. } => {
                        peers.put(ops, target, body.clone(), options, ticket)
                    }
                    Request::OneWay {
                        function, input, ..
                    } => {
                        let function = peers.function(target, function).map_err(Refusal::Never)?;
                        let input = Payload::Buf(input.clone());
                        peers.invoke_one_way(ops, target, function, input, options, ticket, true)
                    }
                    Request::Read { key, .. } => {
                        peers.state_read(ops, target, key, options, ticket)
                    }
                }
            });
        match submitted {
            Ok(call) => {
                self.by_ticket.insert(ticket, (call, answer));
                None
            }
            Err(Refusal::Full) => Some(Command::Call {
                ticket,
                request,
                options,
                answer,
            }),
            Err(Refusal::Never(error)) => {
                // A caller that is gone has no use for it.
                let _ = answer.send(Err(error));
                None
            }
        }
    }
}
