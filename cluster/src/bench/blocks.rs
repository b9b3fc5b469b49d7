//! Blocks by turns: the measuring side.

use std::time::{Duration, Instant};

use praas_transport::TransportKind;

use super::links::{Turn, floor_kind};
use super::plan::{BLOCK, PAIRS_MIN, Plan};
use super::rig::Rig;
use super::statistics::{estimate, median, percentile};
use super::{Bench, BenchError, Record, What};

/// About how long a batch of round trips takes that are timed together.
const BATCH_NS: f64 = 2_000.0;
const BATCH_MAX: f64 = 64.0;
/// How many times the planned time a measurement may take on a busy machine, rounds beyond the
/// first few left out.
const LATE_FACTOR: u32 = 4;
const ROUNDS_MIN: usize = 3;

/// What was found out about where is measured, besides the records.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The transport.
    pub transport: TransportKind,
    /// Bytes that its channel sends eagerly, if a channel stays open.
    pub eager_max_bytes: Option<usize>,
    /// The CPUs that this side and the other are pinned to.
    pub cpus: (Option<usize>, Option<usize>),
    /// The peer's machine, if it is on another host.
    pub peer_machine: Option<super::Machine>,
}

/// Measures what the plan says. `report` sees the records of each size as they are there.
///
/// # Errors
/// See [`BenchError`]; what `report` returns ends the measurement.
pub fn bench_measure(
    plan: &Plan,
    mut report: impl FnMut(&Setting, &[Record]) -> Result<(), BenchError>,
) -> Result<Vec<Record>, BenchError> {
    plan.check()?;
    let mut records = Vec::new();
    for &transport in &plan.transports {
        let mut rig = Rig::start(plan, transport)?;
        let setting = Setting {
            transport,
            eager_max_bytes: rig.links.eager_max(),
            cpus: rig.cpus,
            peer_machine: plan.remote.as_ref().map(|_| rig.peer_machine.clone()),
        };
        for &bytes in &plan.bytes {
            let measured = rig.measure(plan, bytes);
            let measured = measured.map_err(|error| rig.explain(error))?;
            report(&setting, &measured)?;
            records.extend(measured);
        }
    }
    Ok(records)
}

impl Bench {
    /// By how much the time of an iteration is divided: half round trips, messages of a window.
    fn parts(self, what: What, window: usize) -> f64 {
        match (self, what) {
            (Self::Latency | Self::Batch, What::Invoke) | (Self::Connect, _) => 1.0,
            (Self::Latency, _) => 2.0,
            (Self::Bibw, _) => 2.0 * window as f64,
            _ => window as f64,
        }
    }
}

impl Rig {
    /// Measures one size: blocks by turns.
    fn measure(&mut self, plan: &Plan, bytes: usize) -> Result<Vec<Record>, BenchError> {
        self.links.payload_set(bytes, plan.memory)?;
        self.caller.payload_set(bytes)?;
        let turn = |what| Turn {
            bench: plan.bench,
            what,
            bytes,
            window: plan.window,
            memory: plan.memory,
            count: 0,
        };
        let mut series = Vec::new();
        for what in What::ALL {
            if plan.whats.contains(&what) {
                series.push(self.warm(plan, Series::new(plan, turn(what)))?);
            }
        }
        // A window of large messages may take longer than a block is meant to.
        let longest = series
            .iter()
            .map(|series| series.once_ns)
            .fold(0.0, f64::max);
        let block = plan.per_measure.min(BLOCK);
        let block_ns = longest.max(block.as_nanos() as f64);
        let rounds = (plan.per_measure.as_nanos() as f64 / block_ns).ceil() as usize;
        let late = plan.per_measure * LATE_FACTOR * series.len() as u32;
        let begun = Instant::now();
        for round in 0.. {
            let enough = match plan.iterations {
                Some(iterations) => series.iter().all(|series| series.steps >= iterations),
                None => {
                    let over = begun.elapsed() > late || round >= rounds;
                    round >= rounds.min(ROUNDS_MIN) && over
                }
            };
            if enough {
                break;
            }
            for series in &mut series {
                let steps = plan.iterations.map(|iterations| {
                    let most = iterations.div_ceil(PAIRS_MIN);
                    most.min(iterations.saturating_sub(series.steps)).max(1)
                });
                let done = self.block(series, block, steps)?;
                series.add(done);
            }
        }
        Ok(series_compare(self.transport, series))
    }

    /// Warms up, and finds out how long an iteration takes.
    fn warm(&mut self, plan: &Plan, mut series: Series) -> Result<Series, BenchError> {
        let block = plan.per_measure.min(BLOCK);
        // Once to begin with, to see about how long it takes; then again, to know it.
        let first = self.block(&series, block, Some(1))?;
        series.once_ns = median(&mut first.ns.clone());
        let warm = self.block(&series, block, plan.warmup)?;
        series.once_ns = median(&mut warm.ns.clone());
        if plan.bench == Bench::Latency || series.turn.what == What::Invoke {
            series.batch = (BATCH_NS / series.once_ns).ceil().clamp(1.0, BATCH_MAX) as u32;
        }
        Ok(series)
    }

    /// One block, for a while or for so many iterations.
    fn block(
        &mut self,
        series: &Series,
        time: Duration,
        steps: Option<u64>,
    ) -> Result<Block, BenchError> {
        let Self { caller, links, .. } = self;
        let (turn, batch) = (&series.turn, series.batch);
        let limit = Limit { time, steps };
        if matches!(turn.bench, Bench::Latency | Bench::Batch) {
            return match turn.what {
                What::Invoke => pings_time(batch, limit, |_| caller.call()),
                What::Batch => pings_time(1, limit, |_| caller.batch(turn.window)),
                _ => caller.served(turn, || {
                    pings_time(batch, limit, |last| links.ping(turn, last))
                }),
            };
        }
        let count = match steps {
            Some(steps) => steps,
            None => (time.as_nanos() as f64 / series.once_ns).clamp(1.0, 1e6) as u64,
        };
        let turn = Turn { count, ..*turn };
        caller.served(&turn, || {
            links.begin(&turn)?;
            let mut block = Block::default();
            let mut from = Instant::now();
            for _ in 0..count {
                links.step(&turn)?;
                block.add(&mut from, 1);
            }
            links.end(&turn)?;
            Ok(block)
        })
    }
}

/// When a block of round trips ends.
#[derive(Clone, Copy)]
struct Limit {
    time: Duration,
    steps: Option<u64>,
}

/// What a block has measured.
#[derive(Default)]
struct Block {
    /// Nanoseconds of an iteration: one by one, or a batch's average.
    ns: Vec<f64>,
    /// Iterations.
    steps: u64,
}

impl Block {
    #[inline]
    fn add(&mut self, from: &mut Instant, batch: u32) -> Instant {
        let now = Instant::now();
        let ns = now.duration_since(*from).as_nanos() as f64;
        self.ns.push(ns / f64::from(batch));
        self.steps += u64::from(batch);
        *from = now;
        now
    }
}

/// Times batches of round trips. The first one is not timed: the other side may not have begun
/// yet. Nor is the last, which tells it to end.
#[inline]
fn pings_time(
    batch: u32,
    limit: Limit,
    mut ping: impl FnMut(bool) -> Result<(), BenchError>,
) -> Result<Block, BenchError> {
    let mut block = Block {
        ns: Vec::with_capacity(4096),
        steps: 0,
    };
    ping(false)?;
    let begun = Instant::now();
    let mut from = begun;
    loop {
        for _ in 0..batch {
            ping(false)?;
        }
        let now = block.add(&mut from, batch);
        let enough = match limit.steps {
            Some(steps) => block.steps >= steps,
            None => now.duration_since(begun) >= limit.time,
        };
        if enough {
            break;
        }
    }
    ping(true)?;
    Ok(block)
}

/// The blocks of one kind at one size.
struct Series {
    turn: Turn,
    /// By what the time of an iteration is divided.
    parts: f64,
    batch: u32,
    /// About how long an iteration takes.
    once_ns: f64,
    steps: u64,
    samples: Vec<f64>,
    /// The median of each block.
    medians: Vec<f64>,
}

impl Series {
    fn new(plan: &Plan, turn: Turn) -> Self {
        Self {
            turn,
            parts: plan.bench.parts(turn.what, turn.window),
            batch: 1,
            once_ns: 1.0,
            steps: 0,
            samples: Vec::new(),
            medians: Vec::new(),
        }
    }

    fn add(&mut self, mut block: Block) {
        for sample in &mut block.ns {
            *sample /= self.parts;
        }
        self.samples.extend_from_slice(&block.ns);
        self.medians.push(median(&mut block.ns));
        self.steps += block.steps;
    }

    fn record(&self, transport: TransportKind) -> Record {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let Turn {
            bench,
            what,
            bytes,
            window,
            memory,
            ..
        } = self.turn;
        let p50_ns = percentile(&sorted, 0.5);
        let windowed = bench.streams() || bench.one_sided() || what == What::Batch;
        let moves = bench.streams() || matches!(bench, Bench::Put | Bench::Get);
        let sized = bench != Bench::Connect;
        Record {
            window: if windowed { window } else { 1 },
            iterations: self.steps,
            batch: self.batch,
            p50_ns,
            p99_ns: percentile(&sorted, 0.99),
            mb_per_s: moves.then(|| bytes as f64 * 1e3 / p50_ns),
            per_s: 1e9 / p50_ns,
            floor: match what {
                What::Invoke => None,
                What::Batch => Some("invocations one at a time".to_owned()),
                _ => Some(floor_kind(bench, transport, memory, bytes).to_owned()),
            },
            ..Record::new(bench, what, transport, if sized { bytes } else { 0 })
        }
    }
}

/// Makes records of series whose blocks were taken by turns.
fn series_compare(transport: TransportKind, series: Vec<Series>) -> Vec<Record> {
    let medians = |what| {
        let of = series.iter().find(|series| series.turn.what == what);
        of.map_or(&[][..], |series| &series.medians)
    };
    let (floor, channel, invoke) = (
        medians(What::Floor),
        medians(What::Channel),
        medians(What::Invoke),
    );
    let pairs = |with: &[f64], by: &[f64], compare: fn(f64, f64) -> f64| -> Vec<f64> {
        let pairs = with.iter().zip(by);
        pairs.map(|(with, by)| compare(*with, *by)).collect()
    };
    let batched = medians(What::Batch);
    let ratios = match batched.is_empty() {
        true => pairs(channel, floor, |channel, floor| channel / floor),
        false => pairs(batched, invoke, |batched, invoke| batched / invoke),
    };
    let overs = pairs(invoke, channel, |invoke, channel| invoke - 2.0 * channel);
    let mut records: Vec<Record> = series
        .iter()
        .map(|series| series.record(transport))
        .collect();
    let floor_p50_ns = records
        .iter()
        .find(|record| match batched.is_empty() {
            true => record.what == What::Floor,
            false => record.what == What::Invoke,
        })
        .map(|record| record.p50_ns);
    for record in &mut records {
        match record.what {
            What::Floor => {}
            What::Channel | What::Batch => {
                record.pairs = ratios.len();
                record.floor_p50_ns = floor_p50_ns;
                if let Some(found) = estimate(&ratios) {
                    record.floor_ratio = Some(found.median);
                    record.floor_ratio_low = Some(found.interval.0);
                    record.floor_ratio_high = Some(found.interval.1);
                    record.floor_share = Some(1.0 / found.median);
                }
            }
            What::Invoke => {
                record.pairs = overs.len();
                if let Some(found) = estimate(&overs) {
                    record.over_channel_ns = Some(found.median);
                    record.over_channel_low_ns = Some(found.interval.0);
                    record.over_channel_high_ns = Some(found.interval.1);
                }
            }
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan::Memory;

    fn series(bench: Bench, what: What, window: usize) -> Series {
        let turn = Turn {
            bench,
            what,
            bytes: 1000,
            window,
            memory: Memory::Pooled,
            count: 0,
        };
        Series::new(&Plan::new(bench), turn)
    }

    fn block(ns: f64) -> Block {
        Block {
            ns: vec![ns; 10],
            steps: 10,
        }
    }

    #[test]
    fn neighbouring_blocks_are_compared() {
        let mut series = What::LATENCY.map(|what| series(Bench::Latency, what, 1));
        // The floor jumps; the ratio and the difference stay.
        for floor in [50.0, 500.0, 60.0] {
            series[0].add(block(2.0 * floor));
            series[1].add(block(2.0 * floor * 1.25));
            series[2].add(block(2.0 * floor * 1.25 + 150.0));
        }
        let records = series_compare(TransportKind::Shm, series.into());
        assert_eq!(records[0].p50_ns, 60.0);
        assert_eq!(
            (records[0].floor_ratio, records[0].over_channel_ns),
            (None, None)
        );
        assert!((records[1].floor_ratio.unwrap() - 1.25).abs() < 1e-9);
        assert!((records[1].floor_share.unwrap() - 0.8).abs() < 1e-9);
        assert_eq!(records[1].floor_p50_ns, Some(60.0));
        assert_eq!((records[1].pairs, records[1].iterations), (3, 30));
        assert!((records[2].over_channel_ns.unwrap() - 150.0).abs() < 1e-9);
        assert_eq!(records[2].floor_ratio, None);
        assert_eq!(records[2].floor, None);
    }

    #[test]
    fn batches_are_compared_with_invocations_one_at_a_time() {
        let whats = [What::Invoke, What::Batch];
        let mut series = whats.map(|what| series(Bench::Batch, what, 64));
        for once in [400.0, 800.0] {
            series[0].add(block(once));
            series[1].add(block(64.0 * once / 4.0));
        }
        let records = series_compare(TransportKind::Shm, series.into());
        assert!((records[1].floor_ratio.unwrap() - 0.25).abs() < 1e-9);
        assert_eq!((records[1].window, records[0].window), (64, 1));
        assert_eq!(records[1].floor_p50_ns, Some(records[0].p50_ns));
        assert_eq!(records[0].over_channel_ns, None);
    }

    #[test]
    fn a_windows_time_is_that_of_its_messages() {
        let mut one_way = series(Bench::Bandwidth, What::Channel, 64);
        one_way.add(block(64_000.0));
        let record = one_way.record(TransportKind::Shm);
        assert_eq!((record.p50_ns, record.mb_per_s), (1000.0, Some(1000.0)));
        assert_eq!((record.per_s, record.window), (1e6, 64));
        let mut both_ways = series(Bench::Bibw, What::Channel, 64);
        both_ways.add(block(64_000.0));
        let record = both_ways.record(TransportKind::Shm);
        assert_eq!((record.p50_ns, record.mb_per_s), (500.0, Some(2000.0)));
        let mut connect = series(Bench::Connect, What::Channel, 64);
        connect.add(block(1000.0));
        let record = connect.record(TransportKind::Tcp);
        assert_eq!((record.bytes, record.window, record.mb_per_s), (0, 1, None));
    }
}
