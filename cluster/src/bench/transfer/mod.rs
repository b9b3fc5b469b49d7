//! `praas bench transfer`: a process that moves between two nodes while it is called, beside a
//! plain channel that carries the same bytes.
//!
//! ```text
//!   one run:  | channel | callers: quiet .... transfer .... quiet |   there; the next goes back
//!                 \_________ ratio _________/
//! ```
//!
//! A private cluster of two agents on this machine. Callers are due at a fixed rate whatever
//! becomes of the calls before, and their latencies count from when they were due, so that the
//! time in which nobody is answered shows in full. What the source measured itself is read from
//! its log.

mod callers;
mod nodes;

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use praas_transport::{Endpoint, TransportConfig, TransportKind};
use serde::Serialize;

use self::callers::{Callers, Sample};
use self::nodes::{Counted, Nodes};
use super::options::size_parse;
use super::statistics::{estimate, median, percentile};
use super::{Bench, BenchError, Plan, What, bench_measure, machine::commit, peer};

/// Bytes of the largest object.
const OBJECT_MAX: usize = 256 << 20;
/// Bytes of a window of the channel beside, about.
const WINDOW_BYTES: usize = 64 << 20;
/// How long the channel is measured.
const CHANNEL: Duration = Duration::from_millis(300);
/// Bytes of the smallest pages.
const PAGE_BYTES: usize = 4096;

/// `praas bench transfer`.
#[derive(Debug, Clone, clap::Args)]
pub struct TransferOptions {
    /// Transports to measure
    #[arg(short, long, value_name = "KIND,...", value_delimiter = ',', default_values_t = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp])]
    pub transport: Vec<TransportKind>,
    /// Bytes of the process's state, as in 64M
    #[arg(short = 'm', long, value_name = "SIZE", default_value = "1G", value_parser = size_parse)]
    pub bytes: usize,
    /// State objects that they are in
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub objects: u32,
    /// Transfers, to and fro
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub transfers: u32,
    /// Invocations a second, all callers together; 0: none
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub rate: u32,
    /// Callers, which call one after the other each
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub callers: u32,
    /// Bytes that each invocation writes to one of 64 objects, which are sent again; 0: it reads
    #[arg(long, value_name = "SIZE", default_value = "1K", value_parser = size_parse)]
    pub write_bytes: usize,
    /// Milliseconds of calls before each transfer and after it
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub quiet_ms: u64,
}

/// One transfer.
struct Transfer {
    channel_ms: f64,
    memory_ms: f64,
    total_ms: f64,
    counted: Option<Counted>,
    gap_ms: Option<f64>,
}

/// Latencies of callers.
#[derive(Debug, Clone, Serialize)]
struct Latencies {
    calls: usize,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

impl Latencies {
    fn of(mut us: Vec<f64>) -> Option<Self> {
        us.sort_unstable_by(f64::total_cmp);
        Some(Self {
            calls: us.len(),
            p50_us: percentile(&us, 0.5),
            p99_us: percentile(&us, 0.99),
            max_us: *us.last()?,
        })
    }
}

/// The median of some figures, and how far they go.
#[derive(Debug, Clone, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.collect();
        let median = median(&mut figures);
        let (min, max) = (*figures.first()?, *figures.last()?);
        Some(Self { median, min, max })
    }
}

/// One line of results.
#[derive(Debug, Clone, Serialize)]
struct Record {
    bench: &'static str,
    transport: TransportKind,
    bytes: usize,
    objects: u32,
    transfers: usize,
    rate: u32,
    callers: u32,
    write_bytes: usize,
    /// From the request until the process serves on the other node.
    total_ms: Option<Spread>,
    /// What the channel takes for the same bytes.
    channel_ms: Option<Spread>,
    /// What the kernel takes to give a process memory for as many bytes.
    memory_ms: Option<Spread>,
    /// The channel's time over the transfer's beside it: the share of its bandwidth that is reached.
    channel_share: Option<f64>,
    channel_share_low: Option<f64>,
    channel_share_high: Option<f64>,
    /// The same of channel and memory together.
    limit_share: Option<f64>,
    /// From when the source turns calls away until the target has everything, as the source says.
    frozen_ms: Option<Spread>,
    /// The longest time between two answers to the same caller.
    gap_ms: Option<Spread>,
    rounds: Option<Spread>,
    /// Bytes sent while the process served, and while it was frozen.
    served_bytes: Option<Spread>,
    frozen_bytes: Option<Spread>,
    during: Option<Latencies>,
    outside: Option<Latencies>,
    commit: &'static str,
}

/// `praas bench transfer`.
pub(super) fn run(
    options: &TransferOptions,
    json: bool,
    config: &TransportConfig,
) -> Result<String, BenchError> {
    if options.transport.is_empty() {
        return Err(BenchError::Nothing("the list of transports"));
    }
    if options.bytes == 0 {
        return Err(BenchError::Nothing("the state"));
    }
    let object = options.bytes.div_ceil(options.objects as usize);
    if object > OBJECT_MAX {
        return Err(BenchError::Size(object));
    }
    let mut records = Vec::new();
    for transport in &options.transport {
        let nodes = Nodes::start(*transport)?;
        let measured = measure(options, *transport, (object, config), &nodes);
        nodes.stop()?;
        records.push(measured?);
    }
    Ok(match json {
        true => super::reduction::lines(&records)?,
        false => table(&records),
    })
}

/// All transfers over one transport.
fn measure(
    options: &TransferOptions,
    transport: TransportKind,
    (object, config): (usize, &TransportConfig),
    nodes: &Nodes,
) -> Result<Record, BenchError> {
    nodes.fill(options.bytes, object)?;
    let mut callers = Callers::new(options, nodes)?;
    let (mut transfers, mut during, mut outside) = (Vec::new(), Vec::new(), Vec::new());
    let quiet = Duration::from_millis(options.quiet_ms);
    for _ in 0..options.transfers {
        let channel_ms = channel_measure(transport, object, config)? * options.bytes as f64;
        let memory_ms = memory_measure(options.bytes, object, config)?;
        let (moved, samples) = callers.call_while(|| {
            std::thread::park_timeout(quiet);
            let begun = Instant::now();
            let (moved, took) = nodes.transfer()?;
            // With the end of the host that was left, which frees its memory.
            let ended = Instant::now();
            std::thread::park_timeout(quiet);
            Ok((moved, took, (begun, ended)))
        })?;
        let (moved, took, (begun, ended)) = moved;
        let is_during = |sample: &&Sample| sample.due < ended && sample.end > begun;
        let gap = samples.iter().filter(is_during).map(|sample| sample.gap);
        transfers.push(Transfer {
            channel_ms,
            memory_ms,
            total_ms: took.as_secs_f64() * 1e3,
            counted: nodes.counted(&moved),
            gap_ms: gap.max().map(|gap| gap.as_secs_f64() * 1e3),
        });
        for sample in &samples {
            let us = (sample.end - sample.due).as_secs_f64() * 1e6;
            match is_during(&sample) {
                true => during.push(us),
                false => outside.push(us),
            }
        }
    }
    nodes.check(options.bytes, object)?;
    Ok(record(options, transport, &transfers, (during, outside)))
}

/// Milliseconds that a plain channel takes for a byte, in messages of the size of an object.
fn channel_measure(
    transport: TransportKind,
    object: usize,
    config: &TransportConfig,
) -> Result<f64, BenchError> {
    let plan = Plan {
        transports: vec![transport],
        whats: vec![What::Channel],
        bytes: vec![object],
        window: (WINDOW_BYTES / object).clamp(1, 1024),
        per_measure: CHANNEL,
        config: config.clone(),
        ..Plan::new(Bench::Bandwidth)
    };
    let records = bench_measure(&plan, |_, _| Ok(()))?;
    let record = records.first();
    let record = record.ok_or(BenchError::Nothing("what the channel gave"))?;
    Ok(record.p50_ns / object as f64 / 1e6)
}

/// Milliseconds until a process that has nothing yet has memory for so many bytes, as it gets it
/// for objects that come to it.
fn memory_measure(
    bytes: usize,
    object: usize,
    config: &TransportConfig,
) -> Result<f64, BenchError> {
    let endpoint = Endpoint::new(config.clone(), peer::identity(""), None)?;
    let begun = Instant::now();
    let mut kept = Vec::with_capacity(bytes / object + 1);
    for at in (0..bytes).step_by(object) {
        let room = endpoint.pool().alloc(object.min(bytes - at));
        let mut room = room.map_err(|error| BenchError::Memory {
            bytes: object,
            reason: error.to_string(),
        })?;
        for byte in room.iter_mut().step_by(PAGE_BYTES) {
            *byte = 1;
        }
        kept.push(room);
    }
    Ok(black_box(begun.elapsed()).as_secs_f64() * 1e3)
}

fn record(
    options: &TransferOptions,
    transport: TransportKind,
    transfers: &[Transfer],
    (during, outside): (Vec<f64>, Vec<f64>),
) -> Record {
    let shares: Vec<f64> = transfers
        .iter()
        .map(|t| t.channel_ms / t.total_ms)
        .collect();
    let share = estimate(&shares);
    let limit = |t: &Transfer| (t.channel_ms + t.memory_ms) / t.total_ms;
    let limits: Vec<f64> = transfers.iter().map(limit).collect();
    let counted = || transfers.iter().filter_map(|transfer| transfer.counted);
    Record {
        bench: "transfer",
        transport,
        bytes: options.bytes,
        objects: options.objects,
        transfers: transfers.len(),
        rate: options.rate,
        callers: options.callers,
        write_bytes: options.write_bytes,
        total_ms: Spread::of(transfers.iter().map(|transfer| transfer.total_ms)),
        channel_ms: Spread::of(transfers.iter().map(|transfer| transfer.channel_ms)),
        memory_ms: Spread::of(transfers.iter().map(|transfer| transfer.memory_ms)),
        limit_share: estimate(&limits).map(|share| share.median),
        channel_share: share.map(|share| share.median),
        channel_share_low: share.map(|share| share.interval.0),
        channel_share_high: share.map(|share| share.interval.1),
        frozen_ms: Spread::of(counted().map(|counted| counted.frozen_us as f64 / 1e3)),
        gap_ms: Spread::of(transfers.iter().filter_map(|transfer| transfer.gap_ms)),
        rounds: Spread::of(counted().map(|counted| counted.rounds as f64)),
        served_bytes: Spread::of(counted().map(|counted| counted.served_bytes as f64)),
        frozen_bytes: Spread::of(counted().map(|counted| counted.frozen_bytes as f64)),
        during: Latencies::of(during),
        outside: Latencies::of(outside),
        commit: commit(),
    }
}

fn table(records: &[Record]) -> String {
    let mut text = String::new();
    for record in records {
        let share = |share: Option<f64>| share.map_or("-".into(), |share| format!("{share:.2}"));
        let line = |name: &str, spread: &Option<Spread>, by: f64| match spread {
            None => format!("  {name:<44}-\n"),
            Some(Spread { median, min, max }) => {
                let [median, min, max] = [median, min, max].map(|figure| figure / by);
                format!("  {name:<44}{median:>12.3}  {min:.3} to {max:.3}\n")
            }
        };
        // Writing to a text does not fail.
        let _ = writeln!(
            text,
            "{}: {} bytes in {} objects, {} transfers, {} calls a second",
            record.transport, record.bytes, record.objects, record.transfers, record.rate
        );
        text += &line("total (ms)", &record.total_ms, 1.0);
        text += &line(
            "the same bytes over a channel (ms)",
            &record.channel_ms,
            1.0,
        );
        let _ = writeln!(
            text,
            "  {:<44}{:>12}  {} to {} (95 %)",
            "share of the channel's bandwidth",
            share(record.channel_share),
            share(record.channel_share_low),
            share(record.channel_share_high)
        );
        text += &line("fresh memory for as many (ms)", &record.memory_ms, 1.0);
        let _ = writeln!(
            text,
            "  {:<44}{:>12}",
            "share of channel and fresh memory together",
            share(record.limit_share)
        );
        text += &line(
            "frozen, as the source measures (ms)",
            &record.frozen_ms,
            1.0,
        );
        text += &line("longest gap that a caller saw (ms)", &record.gap_ms, 1.0);
        text += &line("rounds while it served", &record.rounds, 1.0);
        text += &line("sent while it served (MB)", &record.served_bytes, 1e6);
        text += &line("sent while it was frozen (MB)", &record.frozen_bytes, 1e6);
        for (name, latencies) in [("during", &record.during), ("outside", &record.outside)] {
            if let Some(Latencies {
                calls,
                p50_us,
                p99_us,
                max_us,
            }) = latencies
            {
                let name = format!("calls {name} transfers (us)");
                let _ = writeln!(
                    text,
                    "  {name:<44}{p50_us:>12.1}  p99 {p99_us:.1}, max {max_us:.1}, of {calls}"
                );
            }
        }
    }
    text
}
