//! What the control plane counts, for Prometheus.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::agent::ToAgent;
use crate::api::{Process, ProcessState};
use crate::machine::PolicyCounts;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabel {
    command: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProcessLabel {
    application: String,
    process: String,
}

/// Counts as of a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) states: Vec<(ProcessState, u64)>,
    pub(crate) agents: u64,
    pub(crate) policy: PolicyCounts,
    /// Those whose numbers are told; not more than there may be.
    pub(crate) processes: Vec<Process>,
}

/// A number of each process: its name, what it is, its unit, and where to find it.
type ProcessNumber = (&'static str, &'static str, fn(&Process) -> Option<u64>);

/// What is told of processes. Those that grow from a process's start are gauges all the same: with
/// its next start they begin anew.
const PROCESS_NUMBERS: [ProcessNumber; 19] = [
    (
        "process_invocations",
        "Invocations answered since its start",
        |process| Some(process.stats?.invocations),
    ),
    ("process_running", "Functions that run", |process| {
        Some(process.stats?.running)
    }),
    (
        "process_blocked",
        "Functions that wait in a call of theirs",
        |process| Some(process.stats?.blocked),
    ),
    (
        "process_queued",
        "Invocations that wait for a worker",
        |process| Some(process.stats?.queued),
    ),
    ("process_state_bytes", "Bytes of state objects", |process| {
        Some(process.stats?.state_bytes)
    }),
    (
        "process_resident_bytes",
        "Bytes of memory that its host has",
        |process| Some(process.stats?.resident_bytes),
    ),
    ("process_messages", "Messages in the mailbox", |process| {
        Some(process.stats?.messages)
    }),
    ("process_puts", "Messages put since its start", |process| {
        Some(process.stats?.puts)
    }),
    (
        "process_spin_ns",
        "Nanoseconds of busy-polling in vain since its start",
        |process| Some(process.stats?.spin_ns),
    ),
    (
        "process_asleep_ns",
        "Nanoseconds that its endpoint was blocked for since its start",
        |process| Some(process.stats?.asleep_ns),
    ),
    (
        "process_work_ns",
        "Nanoseconds of processor time since its start, but for busy-polling",
        |process| Some(process.stats?.work_ns),
    ),
    (
        "process_persisted_objects",
        "State objects written through to storage since its start",
        |process| Some(process.stats?.persisted_objects),
    ),
    (
        "process_persisted_bytes",
        "Bytes of state objects written through to storage since its start",
        |process| Some(process.stats?.persisted_bytes),
    ),
    (
        "process_persist_failures",
        "Writes through that have failed since its start",
        |process| Some(process.stats?.persist_failures),
    ),
    (
        "process_persist_groups",
        "Times that storage was written to for objects written through since its start",
        |process| Some(process.stats?.persist_groups),
    ),
    (
        "process_persist_ns",
        "Nanoseconds that writing through took since its start",
        |process| Some(process.stats?.persist_ns),
    ),
    (
        "process_idle_ms",
        "Milliseconds since it was last seen to do anything",
        |process| process.idle_ms,
    ),
    (
        "process_restarts",
        "Starts after a failure since the control plane's start",
        |process| Some(process.restarts),
    ),
    (
        "process_checkpoint_generation",
        "Generation of its last checkpoint",
        |process| Some(process.checkpoint?.generation),
    ),
];

/// The metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    processes: Family<StateLabel, Gauge>,
    agents: Gauge,
    commands: Family<CommandLabel, Counter>,
    requests: Family<RequestLabel, Counter>,
    request_time: Histogram,
    commits: Counter,
    commit_time: Histogram,
    swaps: Family<ReasonLabel, Gauge>,
    checkpoints: Gauge,
    checkpoint_failures: Gauge,
    restarts: Gauge,
    older_images: Gauge,
    /// In the order of [`PROCESS_NUMBERS`]. Held while they are replaced and written.
    numbers: Mutex<Vec<Family<ProcessLabel, Gauge>>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        // 100 microseconds to 100 seconds.
        let buckets = || Histogram::new(exponential_buckets(1e-4, 10_f64.sqrt(), 13));
        let mut metrics = Self {
            registry: Registry::with_prefix("praas"),
            processes: Family::default(),
            agents: Gauge::default(),
            commands: Family::default(),
            requests: Family::default(),
            request_time: buckets(),
            commits: Counter::default(),
            commit_time: buckets(),
            swaps: Family::default(),
            checkpoints: Gauge::default(),
            checkpoint_failures: Gauge::default(),
            restarts: Gauge::default(),
            older_images: Gauge::default(),
            numbers: Mutex::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("processes", "Processes by state", metrics.processes.clone());
        registry.register("agents", "Node agents connected", metrics.agents.clone());
        registry.register(
            "commands",
            "Commands told to node agents",
            metrics.commands.clone(),
        );
        registry.register(
            "http_requests",
            "HTTP requests answered",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "http_request_time",
            "From a request's head to its answer's, waits included",
            Unit::Seconds,
            metrics.request_time.clone(),
        );
        registry.register(
            "store_commits",
            "Transactions stored",
            metrics.commits.clone(),
        );
        registry.register_with_unit(
            "store_commit_time",
            "Time to store a transaction",
            Unit::Seconds,
            metrics.commit_time.clone(),
        );
        metrics.policy_register();
        metrics
    }

    fn policy_register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "policy_swaps",
            "Processes swapped out unasked since the control plane's start",
            self.swaps.clone(),
        );
        registry.register(
            "checkpoints",
            "Checkpoints taken since the control plane's start",
            self.checkpoints.clone(),
        );
        registry.register(
            "checkpoint_failures",
            "Checkpoints that came to nothing since the control plane's start",
            self.checkpoint_failures.clone(),
        );
        registry.register(
            "restarts",
            "Processes started after a failure since the control plane's start",
            self.restarts.clone(),
        );
        registry.register(
            "older_images",
            "Processes that began with an older image than there was, since the control plane's start",
            self.older_images.clone(),
        );
        let mut numbers = Vec::with_capacity(PROCESS_NUMBERS.len());
        for (name, help, _) in PROCESS_NUMBERS {
            let family = Family::default();
            registry.register(name, help, Family::clone(&family));
            numbers.push(family);
        }
        self.numbers = Mutex::new(numbers);
    }

    pub(crate) fn command(&self, message: &ToAgent) {
        let command = match message {
            ToAgent::Start(_) => "start",
            ToAgent::SwapOut(_) => "swap_out",
            ToAgent::Stop(_) => "stop",
            ToAgent::DeleteImages { .. } => "delete_images",
            ToAgent::Checkpoint(_) => "checkpoint",
            ToAgent::TransferOut(_) => "transfer_out",
            ToAgent::TransferThaw(_) => "transfer_thaw",
            ToAgent::TransferServe(_) => "transfer_serve",
            _ => return,
        };
        self.commands.get_or_create(&CommandLabel { command }).inc();
    }

    pub(crate) fn request(&self, method: &'static str, status: u16, took: Duration) {
        let label = RequestLabel { method, status };
        self.requests.get_or_create(&label).inc();
        self.request_time.observe(took.as_secs_f64());
    }

    pub(crate) fn commit(&self, took: Duration) {
        self.commits.inc();
        self.commit_time.observe(took.as_secs_f64());
    }

    /// The text format of Prometheus.
    pub(crate) fn render(&self, counts: &Counts) -> String {
        for (state, count) in &counts.states {
            let label = StateLabel {
                state: state.name(),
            };
            self.processes.get_or_create(&label).set(*count as i64);
        }
        self.agents.set(counts.agents as i64);
        let policy = &counts.policy;
        for (reason, count) in [
            ("idle", policy.idle_swaps),
            ("pressure", policy.pressure_swaps),
        ] {
            let label = ReasonLabel { reason };
            self.swaps.get_or_create(&label).set(count as i64);
        }
        self.checkpoints.set(policy.checkpoints as i64);
        self.checkpoint_failures
            .set(policy.checkpoint_failures as i64);
        self.restarts.set(policy.restarts as i64);
        self.older_images.set(policy.older_images as i64);
        // One at a time, since they are written for whoever asked.
        let numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        for (family, (_, _, number)) in numbers.iter().zip(PROCESS_NUMBERS) {
            family.clear();
            for process in &counts.processes {
                if let Some(number) = number(process) {
                    let label = ProcessLabel {
                        application: process.application.clone(),
                        process: process.name.clone(),
                    };
                    family.get_or_create(&label).set(number as i64);
                }
            }
        }
        let mut out = String::new();
        if let Err(error) = text::encode(&mut out, &self.registry) {
            tracing::error!(%error, "cannot write the metrics");
        }
        out
    }
}
