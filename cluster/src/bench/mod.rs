//! `praas bench`: what messages and invocations cost, beside the least possible.
//!
//! ```text
//!   this process, CPU a                         a peer (this program again), CPU b
//!   floor    raw flag, ring, socket <-------->  bench.serve, a function of a cloud process
//!   channel  a bare endpoint        <-------->  bench.serve
//!   invoke   the blocking client     -------->  bench.noop, bench.exchange
//!
//!   time:  | floor | channel | invoke | floor | channel | invoke | ...   a few milliseconds each
//!                 \________/ \________/ one ratio, one difference per neighbouring pair
//! ```
//!
//! How fast two processors hand a cache line to each other changes tenfold from second to second
//! on shared machines, so numbers that were not taken side by side cannot be compared. The same
//! two pinned processes therefore measure the floor, the channel and the invocation in blocks of a
//! few milliseconds by turns, and what is compared is the medians of neighbouring blocks. The
//! peer's worker leaves its own loop for those of the floor and the channel by running them as a
//! function, so that there is always one thread busy on each side, and the same one.
//!
//! What each figure is, and how it is taken, is written down in `docs/bench.md`.
//!
//! | file | what |
//! |---|---|
//! | `options.rs`, `plan.rs` | what is asked for |
//! | `rig.rs`, `peer.rs`, `control.rs` | the two processes, and what they tell each other first |
//! | `remote.rs` | the same with another host |
//! | `reduction/` | vectors added into state, beside Redis |
//! | `state_read/` | state objects read by one-sided operations, beside Redis |
//! | `swap/` | swapping out and in, beside plain files, Redis and S3 |
//! | `transfer/` | a process that moves between two nodes while it is called |
//! | `links/` | both sides of every kind of traffic |
//! | `blocks.rs`, `statistics.rs` | blocks by turns, and what they say |
//! | `output.rs`, `svg.rs`, `machine.rs` | tables, lines, plots |

mod blocks;
mod control;
mod error;
mod links;
mod machine;
mod options;
mod output;
mod peer;
mod plan;
mod reduction;
mod remote;
mod rig;
mod state_read;
mod statistics;
mod svg;
mod swap;
mod transfer;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;

use praas_transport::TransportKind;
use serde::{Deserialize, Serialize};

pub use self::blocks::{Setting, bench_measure};
pub use self::error::BenchError;
pub use self::machine::Machine;
pub use self::options::{
    AtomicOperation, AtomicsOptions, BenchCommand, Common, ConnectOptions, LatencyOptions,
    OneSidedOptions, ServeOptions, Sizes, Sizing, WindowOptions,
};
pub use self::plan::{BLOCK, Memory, Plan};
pub use self::reduction::ReductionOptions;
pub use self::remote::{Remote, SECRET_ENV, secret_read};
pub use self::state_read::StateReadOptions;
pub use self::statistics::{Estimate, estimate};
pub use self::swap::SwapOptions;
pub use self::transfer::TransferOptions;

/// The hidden subcommand under which this program is started again as the peer; nothing follows
/// it. The program must then do nothing but call [`peer_main`].
pub const PEER_COMMAND: &str = "bench-peer";

/// As [`PEER_COMMAND`], for [`module_peer_main`].
pub const MODULE_PEER_COMMAND: &str = reduction::MODULE_PEER_COMMAND;

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bench {
    /// Ping-pong.
    Latency,
    /// Windows of messages one way.
    Bandwidth,
    /// Windows of messages both ways at once.
    Bibw,
    /// Windows of small messages one way.
    Rate,
    /// Writing to the peer's memory.
    Put,
    /// Reading the peer's memory.
    Get,
    /// Adding to a word of the peer's memory.
    #[serde(rename = "fetch_add")]
    FetchAdd,
    /// Comparing and setting a word of the peer's memory.
    #[serde(rename = "compare_swap")]
    CompareSwap,
    /// Connections that are opened and closed.
    Connect,
    /// Invocations in batches.
    Batch,
}

impl Bench {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Latency,
        Self::Bandwidth,
        Self::Bibw,
        Self::Rate,
        Self::Put,
        Self::Get,
        Self::FetchAdd,
        Self::CompareSwap,
        Self::Connect,
        Self::Batch,
    ];

    /// The name, as in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Bandwidth => "bandwidth",
            Self::Bibw => "bibw",
            Self::Rate => "rate",
            Self::Put => "put",
            Self::Get => "get",
            Self::FetchAdd => "fetch_add",
            Self::CompareSwap => "compare_swap",
            Self::Connect => "connect",
            Self::Batch => "batch",
        }
    }

    /// What there is to measure of it.
    pub fn whats(self) -> &'static [What] {
        match self {
            Self::Latency => &What::LATENCY,
            Self::Batch => &[What::Invoke, What::Batch],
            _ => &[What::Floor, What::Channel],
        }
    }

    fn bytes_default(self) -> Vec<usize> {
        match self {
            Self::Latency | Self::Put | Self::Get => vec![8, 1 << 10, 64 << 10, 1 << 20],
            Self::Bandwidth | Self::Bibw => vec![4 << 10, 64 << 10, 1 << 20, 4 << 20],
            Self::Rate => vec![8, 64, 512],
            Self::Batch => vec![8, 1 << 10],
            Self::FetchAdd | Self::CompareSwap => vec![8],
            // The byte that says that a connection is there.
            Self::Connect => vec![1],
        }
    }

    fn window_default(self) -> usize {
        match self {
            Self::Bandwidth | Self::Bibw => 64,
            Self::Rate => 1024,
            Self::Batch => 256,
            _ => 1,
        }
    }

    /// Whether the peer's memory is reached without the peer.
    fn one_sided(self) -> bool {
        matches!(
            self,
            Self::Put | Self::Get | Self::FetchAdd | Self::CompareSwap
        )
    }

    /// Whether streams of messages are measured.
    fn streams(self) -> bool {
        matches!(self, Self::Bandwidth | Self::Bibw | Self::Rate)
    }
}

impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The least that a program can do: a raw flag in shared memory, a raw spinning socket.
    Floor,
    /// A message over a channel of two endpoints.
    Channel,
    /// A no-op invocation by the blocking client.
    Invoke,
    /// Many of them in a batch.
    Batch,
}

impl What {
    /// All of them, in the order of measuring.
    pub const ALL: [Self; 4] = [Self::Floor, Self::Channel, Self::Invoke, Self::Batch];

    /// Those of latencies.
    pub const LATENCY: [Self; 3] = [Self::Floor, Self::Channel, Self::Invoke];

    /// The name, as in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Channel => "channel",
            Self::Invoke => "invoke",
            Self::Batch => "batch",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for What {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|what| what.name() == s);
        found
            .ok_or_else(|| format!("'{s}' cannot be measured: use floor, channel, invoke or batch"))
    }
}

/// One line of results. Times are of half a round trip for floor and channel of latencies, of a
/// round trip for invocations, of one message of a window, of one connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The kind of traffic.
    pub bench: Bench,
    /// What was measured.
    pub what: What,
    /// Over which transport.
    pub transport: TransportKind,
    /// Bytes of payload.
    pub bytes: usize,
    /// Messages of a window.
    pub window: usize,
    /// Round trips, windows or connections that were measured.
    pub iterations: u64,
    /// How many of them were timed together.
    pub batch: u32,
    /// The median in nanoseconds.
    pub p50_ns: f64,
    /// The 99th percentile in nanoseconds.
    pub p99_ns: f64,
    /// Millions of bytes a second at the median, where windows are measured.
    pub mb_per_s: Option<f64>,
    /// How many a second at the median.
    pub per_s: f64,
    /// What the floor is; none for invocations, and for batches invocations one at a time.
    pub floor: Option<String>,
    /// For a channel: the floor's median in nanoseconds.
    pub floor_p50_ns: Option<f64>,
    /// For a channel: how many times the time of the floor beside it, the median over pairs of
    /// blocks.
    pub floor_ratio: Option<f64>,
    /// Where its interval of 95 % begins.
    pub floor_ratio_low: Option<f64>,
    /// Where its interval of 95 % ends.
    pub floor_ratio_high: Option<f64>,
    /// For a channel: the share of the floor that is reached, one over the ratio.
    pub floor_share: Option<f64>,
    /// For an invocation: nanoseconds above the round trip of the channel beside it, likewise.
    pub over_channel_ns: Option<f64>,
    /// Where its interval of 95 % begins.
    pub over_channel_low_ns: Option<f64>,
    /// Where its interval of 95 % ends.
    pub over_channel_high_ns: Option<f64>,
    /// Pairs of neighbouring blocks that ratio or difference come from.
    pub pairs: usize,
}

impl Record {
    /// One in which nothing is measured yet.
    pub fn new(bench: Bench, what: What, transport: TransportKind, bytes: usize) -> Self {
        Self {
            bench,
            what,
            transport,
            bytes,
            window: 1,
            iterations: 0,
            batch: 1,
            p50_ns: 0.0,
            p99_ns: 0.0,
            mb_per_s: None,
            per_s: 0.0,
            floor: None,
            floor_p50_ns: None,
            floor_ratio: None,
            floor_ratio_low: None,
            floor_ratio_high: None,
            floor_share: None,
            over_channel_ns: None,
            over_channel_low_ns: None,
            over_channel_high_ns: None,
            pairs: 0,
        }
    }
}

/// The peer of a measurement: what the program does under [`PEER_COMMAND`].
pub fn peer_main() -> ExitCode {
    match peer::peer_run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("praas {PEER_COMMAND}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A module of a measurement in a process of its own: what the program does under
/// [`MODULE_PEER_COMMAND`].
pub fn module_peer_main() -> ExitCode {
    match reduction::module_serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("praas {MODULE_PEER_COMMAND}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where `praas bench serve` can be found.
#[derive(Debug, Serialize)]
struct Serving<'a> {
    listen: String,
    /// Only a new one: who gave it knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
}

/// `praas bench serve`.
fn serve(options: &ServeOptions, json: bool) -> Result<(), BenchError> {
    let given = remote::secret_read(options.secret_file.as_deref())?;
    let secret = match &given {
        Some(secret) => secret.clone(),
        None => remote::secret_new()?,
    };
    let server = remote::Server::new(&options.listen, &secret)?;
    let serving = Serving {
        listen: server.address()?.to_string(),
        secret: given.is_none().then_some(secret.as_str()),
    };
    let mut text = match json {
        true => {
            serde_json::to_string(&serving).map_err(|error| BenchError::Output(error.into()))?
        }
        false => format!("listening at {}", serving.listen),
    };
    if let (false, Some(secret)) = (json, serving.secret) {
        text += &format!("\nsecret {secret}\nGive it to --connect in {SECRET_ENV} or a file.");
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(BenchError::Output)?;
    drop(out);
    server.serve(options.sessions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_records() {
        for bench in Bench::ALL {
            let json = serde_json::to_string(&bench).unwrap();
            assert_eq!(json, format!("\"{}\"", bench.name()));
        }
        for what in What::ALL {
            assert_eq!(what.name().parse(), Ok(what));
        }
    }
}
