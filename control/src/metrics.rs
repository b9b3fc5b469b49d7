//! What the control plane counts, for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::agent::ToAgent;
use crate::api::ProcessState;

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

/// Counts as of a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) states: Vec<(ProcessState, u64)>,
    pub(crate) agents: u64,
}

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
        metrics
    }

    pub(crate) fn command(&self, message: &ToAgent) {
        let command = match message {
            ToAgent::Start(_) => "start",
            ToAgent::SwapOut(_) => "swap_out",
            ToAgent::Stop(_) => "stop",
            ToAgent::DeleteImages { .. } => "delete_images",
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
        let mut out = String::new();
        if let Err(error) = text::encode(&mut out, &self.registry) {
            tracing::error!(%error, "cannot write the metrics");
        }
        out
    }
}
