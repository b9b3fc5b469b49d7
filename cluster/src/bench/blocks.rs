//! Blocks by turns: the measuring side.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use praas_runtime::client::{Client, ClientConfig, Directory};
use praas_transport::bare::Bare;
use praas_transport::{Dial, Endpoint, Incarnation, TransportConfig, TransportKind, WaitMode};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::peer::{self, PROCESS, Ready, Setup, line_read, line_write};
use super::pings::{Caller, Channel, Raw, bare_ping};
use super::statistics::{estimate, median, percentile};
use super::{BLOCK, BYTES_MAX, BenchError, LatencyPlan, Measured, PEER_COMMAND, Record, What};

/// About how long a batch of round trips takes that are timed together.
const BATCH_NS: f64 = 2_000.0;
const BATCH_MAX: f64 = 64.0;
/// How many times the planned time a measurement may take on a busy machine, rounds beyond the
/// first few left out.
const LATE_FACTOR: u32 = 4;
const ROUNDS_MIN: usize = 3;

/// Measures what the plan says. `report` sees each record as it is there.
///
/// # Errors
/// See [`BenchError`]; what `report` returns ends the measurement.
pub fn latency_measure(
    plan: &LatencyPlan,
    mut report: impl FnMut(&Measured) -> Result<(), BenchError>,
) -> Result<Vec<Record>, BenchError> {
    plan_check(plan)?;
    let mut records = Vec::new();
    for &transport in &plan.transports {
        let mut rig = Rig::start(plan, transport)?;
        for &bytes in &plan.bytes {
            for measured in rig.measure(plan, bytes)? {
                report(&measured)?;
                records.push(measured.record);
            }
        }
    }
    Ok(records)
}

fn plan_check(plan: &LatencyPlan) -> Result<(), BenchError> {
    let empty = [
        ("the list of transports", plan.transports.is_empty()),
        ("the list of what to measure", plan.whats.is_empty()),
        ("the list of sizes", plan.bytes.is_empty()),
        ("the time", plan.per_measure.is_zero()),
        ("a size", plan.bytes.contains(&0)),
    ];
    if let Some((what, _)) = empty.into_iter().find(|(_, empty)| *empty) {
        return Err(BenchError::Nothing(what));
    }
    if let Some(bytes) = plan.bytes.iter().find(|bytes| **bytes > BYTES_MAX) {
        return Err(BenchError::Size(*bytes));
    }
    match plan.transports.contains(&TransportKind::Mem) {
        true => Err(BenchError::Transport(TransportKind::Mem)),
        false => Ok(()),
    }
}

/// The peer process; it ends with this.
struct PeerProcess {
    child: Child,
    lines: BufReader<UnixStream>,
}

impl PeerProcess {
    fn start(plan: &LatencyPlan, memory: OwnedFd) -> Result<Self, BenchError> {
        let (ours, theirs) =
            UnixStream::pair().map_err(BenchError::system("make a pair of sockets"))?;
        // This very program, also when its file was replaced since it started.
        let own = "/proc/self/exe".into();
        let program = plan.program.as_ref().unwrap_or(&own);
        let child = Command::new(program)
            .arg0("praas")
            .arg(PEER_COMMAND)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(memory))
            .spawn()
            .map_err(BenchError::system(format!("start {}", program.display())))?;
        Ok(Self {
            child,
            lines: BufReader::new(ours),
        })
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pins this thread, and lets it run where it did before when dropped.
struct Pinned(Option<CpuSet>);

impl Pinned {
    fn new(cpu: Option<usize>) -> Result<Self, BenchError> {
        let before = sched_getaffinity(None).ok().filter(|_| cpu.is_some());
        peer::pin(cpu)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // CPUs that were allowed before are so still, or the kernel has moved us already.
            let _ = sched_setaffinity(None, before);
        }
    }
}

/// The CPUs for the two processes; none if there is only one.
fn cpus_choose(pin: Option<(usize, usize)>) -> (Option<usize>, Option<usize>) {
    if let Some((one, two)) = pin {
        return (Some(one), Some(two));
    }
    let Ok(allowed) = sched_getaffinity(None) else {
        return (None, None);
    };
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    match (cpus.next(), cpus.next()) {
        (Some(one), Some(two)) => (Some(one), Some(two)),
        _ => (None, None),
    }
}

/// Both processes and all that connects them, over one transport.
struct Rig {
    transport: TransportKind,
    caller: Caller,
    channel: Channel,
    bare: Bare,
    raw: Option<Raw>,
    _pinned: Pinned,
    _peer: PeerProcess,
}

impl Rig {
    fn start(plan: &LatencyPlan, transport: TransportKind) -> Result<Self, BenchError> {
        let bytes_max = plan.bytes.iter().copied().max().unwrap_or(1);
        let (own_cpu, peer_cpu) = cpus_choose(plan.pin);
        let memory = Bare::create(bytes_max);
        let (memory, bare) = memory.map_err(BenchError::system("make shared memory"))?;
        let mut peer = PeerProcess::start(plan, memory)?;
        let setup = Setup {
            transport,
            bytes_max,
            cpu: peer_cpu,
        };
        line_write(peer.lines.get_mut(), &setup)?;
        let ready: Ready = line_read(&mut peer.lines)?;
        let mut endpoint = Endpoint::new(TransportConfig::default(), peer::identity(""), None)?;
        let dial = Dial {
            credential: ready.credential.clone(),
            expect: Incarnation(0),
            deadline: None,
        };
        endpoint.connect(&ready.channel, dial)?;
        let mut config = ClientConfig::new(
            Directory::Fixed(BTreeMap::from([(PROCESS.to_owned(), ready.process)])),
            ready.credential,
        );
        config.wait = WaitMode::Hot;
        let mut caller = Caller::new(Client::new(config)?)?;
        let pinned = Pinned::new(own_cpu)?;
        let mut channel = Channel::new(endpoint, false);
        channel.open_wait()?;
        let raw = ready.raw.map(|place| Raw::connect(&place, bytes_max));
        let raw = raw.transpose();
        let raw = raw.map_err(BenchError::system("connect a raw socket"))?;
        line_read::<()>(&mut peer.lines)?;
        // From here on requests go out at once.
        caller.call()?;
        Ok(Self {
            transport,
            caller,
            channel,
            bare,
            raw,
            _pinned: pinned,
            _peer: peer,
        })
    }

    /// Measures one size: blocks by turns.
    fn measure(&mut self, plan: &LatencyPlan, bytes: usize) -> Result<Vec<Measured>, BenchError> {
        self.channel.payload_set(bytes);
        self.caller.payload_set(bytes)?;
        let whats: Vec<What> = What::ALL
            .into_iter()
            .filter(|what| plan.whats.contains(what))
            .collect();
        let block = BLOCK.min(plan.per_measure);
        let mut series = Vec::new();
        for &what in &whats {
            // Once to warm up, once to see how long a round trip takes.
            self.block(what, bytes, 1, block)?;
            let once = median(&mut self.block(what, bytes, 1, block)?);
            let batch = (BATCH_NS / once).ceil().clamp(1.0, BATCH_MAX) as u32;
            series.push(Series::new(what, batch));
        }
        let rounds = plan.per_measure.div_duration_f64(block).ceil() as usize;
        let late = plan.per_measure * LATE_FACTOR * whats.len() as u32;
        let begun = Instant::now();
        for round in 0..rounds {
            if round >= ROUNDS_MIN && begun.elapsed() > late {
                break;
            }
            for series in &mut series {
                let block = self.block(series.what, bytes, series.batch, block)?;
                series.add(block);
            }
        }
        Ok(series_compare(self.transport, bytes, series))
    }

    /// One block: nanoseconds of a round trip, batch by batch.
    fn block(
        &mut self,
        what: What,
        bytes: usize,
        batch: u32,
        time: Duration,
    ) -> Result<Vec<f64>, BenchError> {
        let Self {
            caller,
            channel,
            bare,
            raw,
            ..
        } = self;
        match (what, raw) {
            (What::Invoke, _) => block_time(batch, time, |_| caller.call()),
            (What::Channel, _) => caller.served(what, bytes, || {
                block_time(batch, time, |last| channel.ping(last))
            }),
            (What::Floor, Some(raw)) => caller.served(what, bytes, || {
                block_time(batch, time, |last| raw.ping(bytes, last))
            }),
            (What::Floor, None) => caller.served(what, bytes, || {
                block_time(batch, time, |last| bare_ping(bare, bytes, last))
            }),
        }
    }
}

/// Times batches of round trips for a while. The first one is not timed: the other side may not
/// have begun yet. Nor is the last, which tells it to end.
#[inline]
fn block_time(
    batch: u32,
    time: Duration,
    mut ping: impl FnMut(bool) -> Result<(), BenchError>,
) -> Result<Vec<f64>, BenchError> {
    let mut samples = Vec::with_capacity(4096);
    ping(false)?;
    let begun = Instant::now();
    let mut from = begun;
    loop {
        for _ in 0..batch {
            ping(false)?;
        }
        let now = Instant::now();
        samples.push(now.duration_since(from).as_nanos() as f64 / f64::from(batch));
        from = now;
        if now.duration_since(begun) >= time {
            break;
        }
    }
    ping(true)?;
    Ok(samples)
}

/// The blocks of one kind at one size.
struct Series {
    what: What,
    batch: u32,
    samples: Vec<f64>,
    /// The median of each block.
    medians: Vec<f64>,
}

impl Series {
    fn new(what: What, batch: u32) -> Self {
        Self {
            what,
            batch,
            samples: Vec::new(),
            medians: Vec::new(),
        }
    }

    fn add(&mut self, mut block: Vec<f64>) {
        if self.what != What::Invoke {
            for sample in &mut block {
                *sample /= 2.0;
            }
        }
        self.samples.extend_from_slice(&block);
        self.medians.push(median(&mut block));
    }
}

/// Makes records of series whose blocks were taken by turns.
fn series_compare(transport: TransportKind, bytes: usize, series: Vec<Series>) -> Vec<Measured> {
    let medians = |what| {
        let of = series.iter().find(|series| series.what == what);
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
    let ratios = pairs(channel, floor, |channel, floor| channel / floor);
    let overs = pairs(invoke, channel, |invoke, channel| invoke - 2.0 * channel);
    let measured = series.iter().map(|series| {
        let beside = match series.what {
            What::Floor => &[][..],
            What::Channel => &ratios,
            What::Invoke => &overs,
        };
        let beside_estimate = estimate(beside);
        let figure = beside_estimate.map(|estimate| estimate.median);
        let mut sorted = series.samples.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        Measured {
            record: Record {
                what: series.what,
                transport,
                bytes,
                p50_ns: percentile(&sorted, 0.5),
                p99_ns: percentile(&sorted, 0.99),
                floor_ratio: figure.filter(|_| series.what == What::Channel),
                over_channel_ns: figure.filter(|_| series.what == What::Invoke),
            },
            interval: beside_estimate.map(|estimate| estimate.interval),
            pairs: beside.len(),
            batch: series.batch,
        }
    });
    measured.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_blocks_are_compared() {
        let mut series: Vec<Series> = What::ALL.map(|what| Series::new(what, 1)).into();
        // The floor jumps; the ratio and the difference stay.
        for floor in [50.0, 500.0, 60.0] {
            series[0].add(vec![2.0 * floor; 10]);
            series[1].add(vec![2.0 * floor * 1.2; 10]);
            series[2].add(vec![2.0 * floor * 1.2 + 150.0; 10]);
        }
        let measured = series_compare(TransportKind::Shm, 8, series);
        let records: Vec<&Record> = measured.iter().map(|measured| &measured.record).collect();
        assert_eq!(records[0].p50_ns, 60.0);
        assert_eq!(
            (records[0].floor_ratio, records[0].over_channel_ns),
            (None, None)
        );
        assert!((records[1].floor_ratio.unwrap() - 1.2).abs() < 1e-9);
        assert!((records[2].over_channel_ns.unwrap() - 150.0).abs() < 1e-9);
        assert_eq!(records[2].floor_ratio, None);
        assert_eq!(measured[1].pairs, 3);
    }

    #[test]
    fn a_plan_without_anything_is_told() {
        let plan = |change: fn(&mut LatencyPlan)| {
            let mut plan = LatencyPlan::default();
            change(&mut plan);
            latency_measure(&plan, |_| Ok(())).unwrap_err().to_string()
        };
        assert!(plan(|plan| plan.bytes.clear()).contains("sizes is empty"));
        assert!(plan(|plan| plan.bytes = vec![1 << 40]).contains("too many"));
        assert!(plan(|plan| plan.transports = vec![TransportKind::Mem]).contains("mem"));
    }
}
