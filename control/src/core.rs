//! The core: one thread that feeds the registry, stores what it decides, then does it.
//!
//! Events that are there at the same time share one transaction, so that a burst of requests costs
//! one write to disk. If a transaction fails, nothing of its batch is done or acknowledged, and as
//! the registry is then ahead of the disk, the core answers nothing but errors until it is started
//! anew.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use praas_transport::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::oneshot;

use crate::agent::{LinkEvent, LinkSender};
use crate::error::{ErrorKind, Failure};
use crate::machine::{Action, Event, Registry, Reply, Request};
use crate::metrics::{Counts, Metrics};
use crate::store::{Change, Store};
use crate::tokens::TokenTable;

/// Events that share a transaction at most.
const BATCH_MAX: usize = 256;

pub(crate) type ReplySender = oneshot::Sender<Result<Reply, Failure>>;

pub(crate) enum Input {
    Request {
        wait_ms: u64,
        request: Request,
        reply: ReplySender,
    },
    Link(LinkEvent),
    Counts(usize, oneshot::Sender<Counts>),
    End,
}

/// The way to the core, for the server.
#[derive(Debug, Clone)]
pub(crate) struct CoreSender {
    inputs: SyncSender<Input>,
    failed: Arc<AtomicBool>,
    pub(crate) tokens: Arc<TokenTable>,
    pub(crate) metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

impl CoreSender {
    /// Asks, and waits for the answer, which comes within `wait_ms` and what storing takes.
    pub(crate) async fn ask(&self, request: Request, wait_ms: u64) -> Result<Reply, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Request {
            wait_ms,
            request,
            reply,
        })?;
        answer.await.unwrap_or_else(|_| Err(going_down()))
    }

    /// Counts as of now, with so many processes at most.
    pub(crate) async fn counts(&self, processes_max: usize) -> Result<Counts, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Counts(processes_max, reply))?;
        answer.await.map_err(|_| going_down())
    }

    /// Whether nothing can be stored any more.
    pub(crate) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn send(&self, input: Input) -> Result<(), Failure> {
        self.inputs.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => Failure::new(
                ErrorKind::LimitReached,
                "too many requests wait (setting events_queued_max)",
            ),
            TrySendError::Disconnected(_) => going_down(),
        })
    }
}

fn going_down() -> Failure {
    Failure::new(ErrorKind::Unavailable, "the control plane is going down")
}

/// The queue before the core. It is made first, so that the agents' link can fill it.
pub(crate) struct CoreQueue {
    sender: CoreSender,
    receiver: Receiver<Input>,
}

impl CoreQueue {
    pub(crate) fn new(events_queued_max: usize) -> Self {
        let (inputs, receiver) = sync_channel(events_queued_max);
        let sender = CoreSender {
            inputs,
            failed: Arc::new(AtomicBool::new(false)),
            tokens: Arc::new(TokenTable::default()),
            metrics: Arc::new(Metrics::new()),
        };
        Self { sender, receiver }
    }

    pub(crate) fn sender(&self) -> CoreSender {
        self.sender.clone()
    }

    /// What the agents' link calls: waits while the queue is full.
    pub(crate) fn link_sink(&self) -> impl FnMut(LinkEvent) + Send + 'static {
        let inputs = self.sender.inputs.clone();
        // The core is gone only at shutdown, when nothing is to be done about it.
        move |event| drop(inputs.send(Input::Link(event)))
    }

    /// Starts the core's thread.
    pub(crate) fn start(
        self,
        registry: Registry,
        store: Store,
        link: LinkSender,
    ) -> io::Result<Core> {
        let inputs = self.sender.inputs.clone();
        let core = Running {
            registry,
            store,
            link,
            sender: self.sender,
            started: Instant::now(),
            waiting: HashMap::new(),
            request_last: 0,
        };
        let receiver = self.receiver;
        let thread = std::thread::Builder::new()
            .name("praas-core".into())
            .spawn(move || core.run(&receiver))?;
        Ok(Core {
            inputs,
            thread: Some(thread),
        })
    }
}

/// The core's thread. Dropping it ends it, after what is queued.
#[derive(Debug)]
pub(crate) struct Core {
    inputs: SyncSender<Input>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Core {
    fn drop(&mut self) {
        // An error is a thread that has ended.
        let _ = self.inputs.send(Input::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the core's thread panicked");
        }
    }
}

struct Running {
    registry: Registry,
    store: Store,
    link: LinkSender,
    sender: CoreSender,
    started: Instant,
    waiting: HashMap<u64, ReplySender>,
    request_last: u64,
}

impl Running {
    fn run(mut self, inputs: &Receiver<Input>) {
        loop {
            let first = match self.next(inputs) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut actions = Vec::new();
            if first.is_none() {
                actions.extend(self.registry.handle(self.now(), Event::Tick));
            }
            let mut end = false;
            for input in first.into_iter().chain(inputs.try_iter().take(BATCH_MAX)) {
                match self.input(input) {
                    Some(more) => actions.extend(more),
                    None => {
                        end = true;
                        break;
                    }
                }
            }
            self.act(actions);
            if end {
                return;
            }
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn next(&self, inputs: &Receiver<Input>) -> Result<Input, RecvTimeoutError> {
        match self.registry.deadline_next() {
            None => inputs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => {
                let left = Duration::from_millis(at.saturating_sub(self.now()));
                inputs.recv_timeout(left)
            }
        }
    }

    /// What is to be done; `None` at the end.
    fn input(&mut self, input: Input) -> Option<Vec<Action>> {
        let now = self.now();
        let event = match input {
            Input::End => return None,
            Input::Counts(processes_max, reply) => {
                let counts = Counts {
                    states: self.registry.state_counts(),
                    agents: self.registry.agent_count() as u64,
                    policy: self.registry.policy_counts(),
                    processes: self.registry.processes_show(processes_max),
                };
                // Who asked may have hung up.
                let _ = reply.send(counts);
                return Some(Vec::new());
            }
            Input::Request { reply, .. } if self.sender.failed() => {
                let _ = reply.send(Err(store_failed()));
                return Some(Vec::new());
            }
            Input::Request {
                wait_ms,
                request,
                reply,
            } => {
                self.request_last += 1;
                let id = self.request_last;
                self.waiting.insert(id, reply);
                Event::Request {
                    id,
                    wait_ms,
                    request,
                }
            }
            Input::Link(LinkEvent::Said { link, message }) => Event::Said { link, message },
            Input::Link(LinkEvent::Lost { link }) => Event::Lost { link },
        };
        Some(self.registry.handle(now, event))
    }

    fn act(&mut self, actions: Vec<Action>) {
        let mut changes: Vec<Change> = Vec::new();
        let mut rest = Vec::with_capacity(actions.len());
        for action in actions {
            match action {
                Action::Persist(change) => changes.push(change),
                other => rest.push(other),
            }
        }
        if self.sender.failed() {
            return;
        }
        if !changes.is_empty() {
            let began = Instant::now();
            if let Err(error) = self.store.commit(&changes) {
                return self.fail(&error);
            }
            self.sender.metrics.commit(began.elapsed());
        }
        for change in &changes {
            self.sender.tokens.apply(change);
        }
        for action in rest {
            match action {
                Action::Persist(_) => {}
                Action::Tell { link, message } => {
                    self.sender.metrics.command(&message);
                    self.link.send(link, message);
                }
                Action::Drop { link } => self.link.drop_link(link),
                Action::Answer { id, result } => {
                    if let Some(reply) = self.waiting.remove(&id) {
                        // Who asked may have hung up.
                        let _ = reply.send(result);
                    }
                }
            }
        }
    }

    fn fail(&mut self, error: &dyn std::error::Error) {
        tracing::error!(
            error = %error,
            "cannot store: the control plane answers nothing until it is started anew"
        );
        self.sender.failed.store(true, Ordering::Release);
        for (_, reply) in self.waiting.drain() {
            let _ = reply.send(Err(store_failed()));
        }
    }
}

fn store_failed() -> Failure {
    let detail = "the database cannot be written: see the log, then start the control plane anew";
    Failure::new(ErrorKind::Unavailable, detail)
}
