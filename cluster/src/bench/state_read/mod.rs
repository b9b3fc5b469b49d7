//! `praas bench state-read`: a state object of a process, read by one-sided operations, beside an
//! invocation that returns it and Redis.
//!
//! ```text
//!   one run:  | read | invoke | redis |      so many reads of one object each, by one client
//!                 \______/ ratio
//! ```
//!
//! All subjects take their turns in each run, on the same two CPUs, and ratios are of neighbours.
//! The object stays the same, so that all reads but the first two are by its place.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use praas_runtime::client::{CallOptions, FunctionRef};
use praas_runtime::process::{STATE_APPEND, STATE_GET, STATE_PUT, StatePutInput};
use praas_transport::{TransportConfig, TransportKind};
use serde::Serialize;

use super::options::pin_parse;
use super::reduction::{ProcessBeside, Redis, redis_find};
use super::rig::{Pinned, cpus_of};
use super::statistics::{estimate, median};
use super::{BenchError, machine::commit};

/// Bytes of the largest object.
const BYTES_MAX: usize = 256 << 20;
/// Bytes that a run reads, about, and how often at most.
const RUN_BYTES: usize = 64 << 20;
const RUN_READS_MAX: usize = 500;
const KEY: &str = "bench";

/// `praas bench state-read`.
#[derive(Debug, Clone, clap::Args)]
pub struct StateReadOptions {
    /// Transports to measure
    #[arg(short, long, value_name = "KIND,...", value_delimiter = ',', default_values_t = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp])]
    pub transport: Vec<TransportKind>,
    /// Bytes of the object
    #[arg(short = 'm', long, value_name = "BYTES,...", value_delimiter = ',', default_values_t = [8, 1 << 10, 16 << 10, 64 << 10, 1 << 20, 8 << 20, 64 << 20])]
    pub bytes: Vec<usize>,
    /// Runs, each with all subjects by turns
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub runs: u32,
    /// The two CPUs to pin this side and the other to; else the first two that may be used
    #[arg(short, long, visible_short_alias = 'c', value_name = "CPU,CPU", value_parser = pin_parse)]
    pub pin: Option<(usize, usize)>,
    /// The Redis server to measure beside; none: without [default: redis-server, if it is there]
    #[arg(long, value_name = "PATH")]
    pub redis: Option<String>,
}

/// One line of results.
#[derive(Debug, Clone, Serialize)]
struct Record {
    bench: &'static str,
    subject: &'static str,
    transport: TransportKind,
    bytes: usize,
    reads: usize,
    runs: usize,
    /// The median of a read, in nanoseconds.
    p50_ns: f64,
    /// How many times as long as the one-sided read beside it, and its interval of 95 %.
    read_ratio: Option<f64>,
    read_ratio_low: Option<f64>,
    read_ratio_high: Option<f64>,
    commit: &'static str,
}

/// What is read from.
struct Rig {
    process: ProcessBeside,
    get: FunctionRef,
    redis: Option<Redis>,
    body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Read,
    Invoke,
    Redis,
}

/// Bytes that are put at once.
const PIECE_BYTES: usize = 16 << 20;

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Invoke => "invoke",
            Self::Redis => "redis",
        }
    }
}

fn invoke_error(
    function: &'static str,
) -> impl Fn(praas_runtime::invocation::InvokeError) -> BenchError {
    move |source| BenchError::Invoke { function, source }
}

impl Rig {
    /// Writes the object that is read.
    fn put(&mut self, bytes: usize) -> Result<(), BenchError> {
        let value = vec![0x5a; bytes];
        if let Some(redis) = &mut self.redis {
            redis.set(&value)?;
        }
        // A value that is decoded has its limit, so large objects come in pieces.
        let mut function = STATE_PUT;
        let pieces = value.chunks(PIECE_BYTES);
        for piece in pieces.chain(value.is_empty().then_some(&[][..])) {
            let input = StatePutInput {
                key: KEY.into(),
                value: piece.into(),
            };
            let client = self.process.client();
            let put = client.invoke_value::<_, u64>(super::peer::PROCESS, function, &input);
            put.map_err(invoke_error(function))?;
            function = STATE_APPEND;
        }
        Ok(())
    }

    /// Reads it once; its length.
    #[inline]
    fn read(&mut self, subject: Subject) -> Result<usize, BenchError> {
        let options = CallOptions::default();
        match subject {
            Subject::Read => {
                let client = self.process.client();
                let read = client.state_read(super::peer::PROCESS, KEY, options);
                let object = read.map_err(invoke_error("state_read"))?;
                Ok(black_box(object).map_or(0, |object| object.bytes.len()))
            }
            Subject::Invoke => {
                let called = self
                    .process
                    .client()
                    .call(self.get, KEY.as_bytes(), options);
                let object = called.map_err(invoke_error("praas.state.get"))?;
                Ok(black_box(object).len())
            }
            Subject::Redis => {
                let redis = self.redis.as_mut();
                let redis = redis.ok_or_else(|| BenchError::Peer("is not there".into()))?;
                redis.get(&mut self.body)?;
                Ok(black_box(&self.body).len())
            }
        }
    }

    /// Reads so often; nanoseconds of one.
    fn run(&mut self, subject: Subject, bytes: usize, reads: usize) -> Result<f64, BenchError> {
        // Wakes who sleeps.
        self.read(subject)?;
        let begun = Instant::now();
        for _ in 0..reads {
            if self.read(subject)? != bytes {
                let text = format!("has given another object by '{}'", subject.name());
                return Err(BenchError::Peer(text));
            }
        }
        Ok(begun.elapsed().as_nanos() as f64 / reads as f64)
    }
}

/// `praas bench state-read`.
pub(super) fn run(
    options: &StateReadOptions,
    json: bool,
    config: &TransportConfig,
) -> Result<String, BenchError> {
    if options.bytes.is_empty() || options.transport.is_empty() {
        return Err(BenchError::Nothing("a list"));
    }
    if let Some(large) = options.bytes.iter().find(|bytes| **bytes > BYTES_MAX) {
        return Err(BenchError::Size(*large));
    }
    let redis = redis_find(options.redis.as_deref());
    let cpus = cpus_of(options.pin);
    let pinned = Pinned::new(cpus.0)?;
    let mut records = Vec::new();
    for transport in &options.transport {
        let mut process = ProcessBeside::start(None, *transport, cpus.1, config)?;
        let get = process.function(STATE_GET)?;
        let redis = match &redis {
            Some(program) => Some(Redis::start(program, *transport, cpus.1)?),
            None => None,
        };
        let mut rig = Rig {
            process,
            get,
            redis,
            body: Vec::new(),
        };
        for bytes in &options.bytes {
            records.extend(measure(options, *transport, *bytes, &mut rig)?);
        }
    }
    drop(pinned);
    Ok(match json {
        true => super::reduction::lines(&records)?,
        false => table(&records),
    })
}

/// All runs for one object.
fn measure(
    options: &StateReadOptions,
    transport: TransportKind,
    bytes: usize,
    rig: &mut Rig,
) -> Result<Vec<Record>, BenchError> {
    let reads = (RUN_BYTES / bytes.max(1)).clamp(1, RUN_READS_MAX);
    let mut subjects = vec![Subject::Read, Subject::Invoke];
    subjects.extend(rig.redis.as_ref().map(|_| Subject::Redis));
    rig.put(bytes)?;
    // The first reads find out where the object is, and what of its memory can be reached.
    for _ in 0..10 {
        for subject in &subjects {
            rig.read(*subject)?;
        }
    }
    let mut took: Vec<Vec<f64>> = vec![Vec::new(); subjects.len()];
    for _ in 0..options.runs {
        for (subject, took) in subjects.iter().zip(&mut took) {
            took.push(rig.run(*subject, bytes, reads)?);
        }
    }
    let records = subjects.iter().zip(&took).map(|(subject, times)| {
        let ratios: Vec<f64> = times.iter().zip(&took[0]).map(|(of, to)| of / to).collect();
        let ratio = (*subject != Subject::Read)
            .then(|| estimate(&ratios))
            .flatten();
        Record {
            bench: "state-read",
            subject: subject.name(),
            transport,
            bytes,
            reads,
            runs: times.len(),
            p50_ns: median(&mut times.clone()),
            read_ratio: ratio.map(|ratio| ratio.median),
            read_ratio_low: ratio.map(|ratio| ratio.interval.0),
            read_ratio_high: ratio.map(|ratio| ratio.interval.1),
            commit: commit(),
        }
    });
    Ok(records.collect())
}

fn table(records: &[Record]) -> String {
    let mut text = String::new();
    // Writing to a text does not fail.
    let _ = writeln!(
        text,
        "{:<10}{:>10}  {:<8}{:>13}{:>10}{:>10}  95 %",
        "transport", "bytes", "subject", "µs", "GB/s", "÷ read"
    );
    for record in records {
        let ratio = record
            .read_ratio
            .map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let interval = match (record.read_ratio_low, record.read_ratio_high) {
            (Some(low), Some(high)) => format!("{low:.2} to {high:.2}"),
            _ => String::new(),
        };
        let line = format!(
            "{:<10}{:>10}  {:<8}{:>13.3}{:>10.2}{ratio:>10}  {interval}",
            record.transport.to_string(),
            record.bytes,
            record.subject,
            record.p50_ns / 1e3,
            record.bytes as f64 / record.p50_ns,
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
