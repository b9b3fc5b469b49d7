//! What is to be measured, and whether that can be.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use praas_transport::{TransportConfig, TransportKind};
use serde::{Deserialize, Serialize};

use super::links::is_local;
use super::remote::Remote;
use super::{Bench, BenchError, What};

/// How long one block lasts.
pub const BLOCK: Duration = Duration::from_millis(3);
/// Blocks of each kind, unless it is said otherwise.
pub(super) const RUNS_DEFAULT: u32 = 200;
/// The largest size that may be asked for.
pub(super) const BYTES_MAX: usize = 256 << 20;
/// The largest window that may be asked for.
pub(super) const WINDOW_MAX: usize = 1 << 16;
/// Iterations for which no fewer than so many pairs of blocks are compared.
pub(super) const PAIRS_MIN: u64 = 10;

/// Where the payloads of large messages lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// In a pool of the transport, where it can do most with them.
    Pooled,
    /// In memory of the program's own.
    Private,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pooled => "pooled",
            Self::Private => "private",
        })
    }
}

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What kind of traffic.
    pub bench: Bench,
    /// Over which transports.
    pub transports: Vec<TransportKind>,
    /// What of them.
    pub whats: Vec<What>,
    /// Sizes in bytes.
    pub bytes: Vec<usize>,
    /// Messages that are sent before the other side acknowledges them.
    pub window: usize,
    /// Where payloads lie.
    pub memory: Memory,
    /// How long each of `whats` is measured at each size, all blocks together.
    pub per_measure: Duration,
    /// How many iterations instead of `per_measure`: round trips, windows or connections.
    pub iterations: Option<u64>,
    /// How many iterations before, not measured; else a block.
    pub warmup: Option<u64>,
    /// The two CPUs, ours and the peer's; else the first two that this process may use, or on
    /// another host its first.
    pub pin: Option<(usize, usize)>,
    /// Settings of the endpoints at both ends.
    pub config: TransportConfig,
    /// The peer on another host; else a process is started here.
    pub remote: Option<Remote>,
    /// The program to start as the peer, if not this one: one whose [`super::PEER_COMMAND`] calls
    /// [`super::peer_main`].
    pub program: Option<PathBuf>,
}

impl Plan {
    /// The default for a kind of traffic.
    pub fn new(bench: Bench) -> Self {
        Self {
            bench,
            transports: vec![TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp],
            whats: bench.whats().to_vec(),
            bytes: bench.bytes_default(),
            window: bench.window_default(),
            memory: Memory::Pooled,
            per_measure: BLOCK * RUNS_DEFAULT,
            iterations: None,
            warmup: None,
            pin: None,
            config: TransportConfig::default(),
            remote: None,
            program: None,
        }
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.bytes.iter().copied().max().unwrap_or(1)
    }

    /// Checks what can be told before anything is started.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        let empty = [
            ("the list of transports", self.transports.is_empty()),
            ("the list of what to measure", self.whats.is_empty()),
            ("the list of sizes", self.bytes.is_empty()),
            ("the time", self.per_measure.is_zero()),
            ("the number of iterations", self.iterations == Some(0)),
            ("a size", self.bytes.contains(&0)),
        ];
        if let Some((what, _)) = empty.into_iter().find(|(_, empty)| *empty) {
            return Err(BenchError::Nothing(what));
        }
        if let Some(bytes) = self.bytes.iter().find(|bytes| **bytes > BYTES_MAX) {
            return Err(BenchError::Size(*bytes));
        }
        let has = |what: &&What| self.bench.whats().contains(what);
        if let Some(&what) = self.whats.iter().find(|what| !has(what)) {
            let bench = self.bench;
            return Err(BenchError::What { what, bench });
        }
        if !(1..=WINDOW_MAX).contains(&self.window) {
            return Err(BenchError::Window(self.window));
        }
        let local = |kind: &&TransportKind| is_local(**kind);
        match (self.transports.iter().find(local), &self.remote) {
            (Some(transport), Some(_)) => Err(BenchError::Transport(*transport)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_without_anything_is_told() {
        let error = |change: fn(&mut Plan)| {
            let mut plan = Plan::new(Bench::Bandwidth);
            assert!(plan.check().is_ok());
            change(&mut plan);
            let error = plan.check().unwrap_err();
            assert!(error.is_usage());
            error.to_string()
        };
        assert!(error(|plan| plan.bytes.clear()).contains("sizes is empty"));
        assert!(error(|plan| plan.bytes = vec![1 << 40]).contains("too many"));
        assert!(error(|plan| plan.bytes = vec![8, 0]).contains("a size is empty"));
        assert!(error(|plan| plan.whats = What::ALL.to_vec()).contains("'invoke' is not"));
        assert!(error(|plan| plan.window = 0).contains("a window of 0"));
        assert!(error(|plan| plan.window = 1 << 20).contains("1 to 65536"));
        assert!(error(|plan| plan.iterations = Some(0)).contains("iterations is empty"));
    }

    #[test]
    fn shared_memory_does_not_reach_another_host() {
        let mut plan = Plan::new(Bench::Latency);
        let secret = "0123456789abcdef".to_owned();
        plan.remote = Some(Remote::new("127.0.0.1:1".into(), &secret).unwrap());
        assert!(plan.check().unwrap_err().to_string().contains("shm"));
        plan.transports = vec![TransportKind::Tcp];
        assert!(plan.check().is_ok());
    }
}
