//! `praas bench latency`: what a message and an invocation cost above the least possible.
//!
//! ```text
//!   this process, CPU a                         a peer (this program again), CPU b
//!   floor    raw flag, raw socket   <-------->  bench.serve, a function of a cloud process
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
//! A record's percentiles are over single round trips; where one takes less than two
//! microseconds, over batches that take about that long, since reading the clock costs 25 ns.
//!
//! An invocation carries `bytes` bytes of input. Up to 8 bytes it returns nothing; above that its
//! output is as long as its input, so that it moves as much as the channel's round trip does. The
//! function touches neither.

mod blocks;
mod machine;
mod peer;
mod pings;
mod statistics;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use praas_transport::TransportKind;
use serde::{Deserialize, Serialize};

pub use self::blocks::latency_measure;
pub use self::machine::Machine;
pub use self::statistics::{Estimate, estimate};

/// The hidden subcommand under which this program is started again as the peer; nothing follows
/// it. The program must then do nothing but call [`peer_main`].
pub const PEER_COMMAND: &str = "bench-peer";

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
}

impl What {
    /// All of them, in the order of measuring.
    pub const ALL: [Self; 3] = [Self::Floor, Self::Channel, Self::Invoke];

    /// The name, as in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Channel => "channel",
            Self::Invoke => "invoke",
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
        found.ok_or_else(|| format!("'{s}' cannot be measured: use floor, channel or invoke"))
    }
}

/// One line of results. Half round trips for floor and channel, round trips for invoke.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was measured.
    pub what: What,
    /// Over which transport.
    pub transport: TransportKind,
    /// Bytes of payload.
    pub bytes: usize,
    /// The median in nanoseconds.
    pub p50_ns: f64,
    /// The 99th percentile in nanoseconds.
    pub p99_ns: f64,
    /// For a channel: how many times the floor beside it, the median over pairs of blocks.
    pub floor_ratio: Option<f64>,
    /// For an invocation: nanoseconds above the round trip of the channel beside it, likewise.
    pub over_channel_ns: Option<f64>,
}

/// A record with how sure it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The record.
    pub record: Record,
    /// The interval, of 95 %, of `floor_ratio` or `over_channel_ns`.
    pub interval: Option<(f64, f64)>,
    /// Pairs of neighbouring blocks that it comes from.
    pub pairs: usize,
    /// Round trips timed together.
    pub batch: u32,
}

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencyPlan {
    /// Transports: shm, unix, tcp.
    pub transports: Vec<TransportKind>,
    /// What of them.
    pub whats: Vec<What>,
    /// Sizes in bytes.
    pub bytes: Vec<usize>,
    /// How long each of `whats` is measured at each size, all blocks together.
    pub per_measure: Duration,
    /// The two CPUs; else the first two that this process may use.
    pub pin: Option<(usize, usize)>,
    /// The program to start as the peer, if not this one: one whose [`PEER_COMMAND`] calls
    /// [`peer_main`].
    pub program: Option<PathBuf>,
}

impl Default for LatencyPlan {
    fn default() -> Self {
        Self {
            transports: vec![TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp],
            whats: What::ALL.to_vec(),
            bytes: vec![8, 1 << 10, 64 << 10, 1 << 20],
            per_measure: BLOCK * RUNS_DEFAULT,
            pin: None,
            program: None,
        }
    }
}

/// How long one block lasts.
pub const BLOCK: Duration = Duration::from_millis(3);
const RUNS_DEFAULT: u32 = 200;
/// The largest size that may be asked for.
const BYTES_MAX: usize = 256 << 20;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A transport that does not connect two processes.
    #[error("'{0}' does not connect two processes of a host: measure shm, unix or tcp")]
    Transport(TransportKind),
    /// A size out of range.
    #[error("{0} bytes are too many: measure at most {BYTES_MAX}")]
    Size(usize),
    /// A list with nothing in it, or no time.
    #[error("nothing to measure: {0} is empty")]
    Nothing(&'static str),
    /// The system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What failed.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The peer did not start or has ended.
    #[error("the peer process {0}")]
    Peer(String),
    /// An endpoint of ours fails.
    #[error(transparent)]
    Transported(#[from] praas_transport::TransportError),
    /// A message cannot be sent.
    #[error("cannot send {bytes} bytes: {source}")]
    Send {
        /// Bytes of payload.
        bytes: usize,
        /// Why.
        source: praas_transport::SendError,
    },
    /// The client cannot be made.
    #[error(transparent)]
    Client(#[from] praas_runtime::client::ClientError),
    /// An invocation failed.
    #[error("cannot invoke '{function}': {source}")]
    Invoke {
        /// The function.
        function: &'static str,
        /// Why.
        source: praas_runtime::invocation::InvokeError,
    },
    /// The results cannot be written.
    #[error("cannot write the results: {0}")]
    Output(#[source] io::Error),
}

impl BenchError {
    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

/// `praas bench latency`.
#[derive(Debug, Clone, clap::Args)]
pub struct LatencyOptions {
    /// Transports to measure.
    #[arg(
        long,
        value_name = "KIND,...",
        value_delimiter = ',',
        default_value = "shm,unix,tcp"
    )]
    pub transport: Vec<TransportKind>,
    /// What to measure of them.
    #[arg(
        long,
        value_name = "WHAT,...",
        value_delimiter = ',',
        default_value = "floor,channel,invoke"
    )]
    pub what: Vec<What>,
    /// Sizes of the payload in bytes.
    #[arg(
        long,
        value_name = "BYTES,...",
        value_delimiter = ',',
        default_value = "8,1024,65536,1048576"
    )]
    pub bytes: Vec<usize>,
    /// Blocks of three milliseconds of each kind per size; each with its neighbour gives one ratio.
    #[arg(long, value_name = "N", default_value_t = RUNS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub runs: u32,
    /// The two CPUs to pin the two processes to; else the first two that may be used.
    #[arg(long, value_name = "CPU,CPU", value_parser = pin_parse)]
    pub pin: Option<(usize, usize)>,
    /// Print one JSON object a line: the command's own `--json`.
    #[arg(skip)]
    pub json: bool,
}

impl LatencyOptions {
    /// The plan that the options stand for.
    pub fn plan(&self) -> LatencyPlan {
        LatencyPlan {
            transports: self.transport.clone(),
            whats: self.what.clone(),
            bytes: self.bytes.clone(),
            per_measure: BLOCK * self.runs,
            pin: self.pin,
            program: None,
        }
    }
}

fn pin_parse(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("'{text}' is not two CPU numbers, as in 0,1");
    let (one, two) = text.split_once(',').ok_or_else(wrong)?;
    let cpu = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    Ok((cpu(one)?, cpu(two)?))
}

/// A record as it is printed: with the machine and the commit.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    record: &'a Record,
    machine: &'a Machine,
    commit: &'a str,
}

/// Measures what the options ask for and prints it as it comes.
///
/// # Errors
/// See [`BenchError`].
pub fn latency_run(options: &LatencyOptions) -> Result<(), BenchError> {
    use std::io::Write;
    let machine = Machine::here();
    let commit = machine::commit();
    let mut out = io::stdout().lock();
    if !options.json {
        let heading = format!(
            "{machine}, commit {commit}\n{:<6}{:<9}{:>9}{:>12}{:>12}  beside its neighbour",
            "", "", "bytes", "p50", "p99"
        );
        writeln!(out, "{heading}").map_err(BenchError::Output)?;
    }
    latency_measure(&options.plan(), |measured| {
        let line = match options.json {
            true => {
                let line = Line {
                    record: &measured.record,
                    machine: &machine,
                    commit,
                };
                serde_json::to_string(&line).map_err(|error| BenchError::Output(error.into()))?
            }
            false => measured.to_string(),
        };
        writeln!(out, "{line}").map_err(BenchError::Output)?;
        out.flush().map_err(BenchError::Output)
    })?;
    if !options.json {
        let note =
            "floor and channel: half a round trip; invoke: a round trip. Intervals are 95 %.";
        writeln!(out, "{note}").map_err(BenchError::Output)?;
    }
    Ok(())
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record {
            what,
            transport,
            bytes,
            p50_ns,
            p99_ns,
            floor_ratio,
            over_channel_ns,
        } = &self.record;
        let (p50, p99) = (time_text(*p50_ns), time_text(*p99_ns));
        let transport = transport.name();
        write!(f, "{transport:<6}{what:<9}{bytes:>9}{p50:>12}{p99:>12}")?;
        let (low, high) = self.interval.unwrap_or_default();
        if let Some(ratio) = floor_ratio {
            write!(f, "  {ratio:.3} x floor [{low:.3}, {high:.3}]")?;
        }
        if let Some(over) = over_channel_ns {
            let (over, low, high) = (time_text(*over), time_text(low), time_text(high));
            write!(f, "  channel round trip + {over} [{low}, {high}]")?;
        }
        if self.batch > 1 {
            write!(f, "  (batches of {})", self.batch)?;
        }
        Ok(())
    }
}

/// A time in a unit that fits.
fn time_text(ns: f64) -> String {
    match ns.abs() {
        small if small < 10_000.0 => format!("{ns:.0} ns"),
        middle if middle < 10_000_000.0 => format!("{:.1} us", ns / 1e3),
        _ => format!("{:.1} ms", ns / 1e6),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_just_their_fields() {
        let record = Record {
            what: What::Channel,
            transport: TransportKind::Shm,
            bytes: 8,
            p50_ns: 1.5,
            p99_ns: 2.0,
            floor_ratio: Some(1.25),
            over_channel_ns: None,
        };
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"what":"channel","transport":"shm","bytes":8,"p50_ns":1.5,"p99_ns":2.0,"floor_ratio":1.25,"over_channel_ns":null}"#
        );
    }

    #[test]
    fn two_cpus_are_two_numbers() {
        assert_eq!(pin_parse("0,1"), Ok((0, 1)));
        assert!(pin_parse("0").is_err() && pin_parse("0,x").is_err());
    }
}
