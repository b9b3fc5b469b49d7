//! `praas bench reduction`: vectors added into state, as in the paper, by modules in Rust and C,
//! beside Redis and a bare loop.
//!
//! ```text
//!   one run:  | loop | rust | c | redis |     m additions of a vector of n integers each, by one
//!                 \______/   ratio            client, one after the other; then the sum is checked
//! ```
//!
//! All subjects take their turns in each run, on the same two CPUs, and ratios are of neighbours.
//! The loop adds in memory and is what nobody can go below; Redis is read and written back in each
//! addition, by a client that does the adding.

mod host;
mod modules;
mod redis;

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use praas_transport::{TransportConfig, TransportKind};
use serde::Serialize;

use self::host::Host;
pub(super) use self::host::{ProcessBeside, Swapped, serve as module_serve};
pub(super) use self::modules::program_find;
pub(super) use self::redis::Redis;
use super::options::pin_parse;
use super::rig::{Pinned, cpus_of};
use super::statistics::{estimate, median};
use super::{BenchError, machine::commit};

/// The hidden subcommand under which this program is started again around a module; nothing
/// follows it.
pub(super) const MODULE_PEER_COMMAND: &str = "bench-module";

/// Integers of the longest vector.
const INTEGERS_MAX: usize = 1 << 24;

/// `praas bench reduction`.
#[derive(Debug, Clone, clap::Args)]
pub struct ReductionOptions {
    /// Transports to measure
    #[arg(short, long, value_name = "KIND,...", value_delimiter = ',', default_values_t = [TransportKind::Shm, TransportKind::Tcp])]
    pub transport: Vec<TransportKind>,
    /// Integers of a vector, eight bytes each
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_values_t = [10, 1_000, 10_000, 100_000])]
    pub integers: Vec<usize>,
    /// Vectors that are added
    #[arg(short = 'm', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub invocations: u32,
    /// Runs, each with all subjects by turns
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub runs: u32,
    /// The two CPUs to pin this side and the other to; else the first two that may be used
    #[arg(short, long, visible_short_alias = 'c', value_name = "CPU,CPU", value_parser = pin_parse)]
    pub pin: Option<(usize, usize)>,
    /// Modules to measure, each with its name [default: rust=, from beside this program, and c=,
    /// built by the system's C compiler]
    #[arg(long, value_name = "NAME=PATH", value_parser = module_parse)]
    pub module: Vec<(String, PathBuf)>,
    /// The Redis server to measure beside; none: without [default: redis-server, if it is there]
    #[arg(long, value_name = "PATH")]
    pub redis: Option<String>,
}

fn module_parse(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("say NAME=PATH")?;
    Ok((name.into(), path.into()))
}

/// One line of results.
#[derive(Debug, Clone, Serialize)]
struct Record {
    bench: &'static str,
    subject: String,
    transport: TransportKind,
    integers: usize,
    invocations: u32,
    runs: usize,
    /// The median of all additions together, in microseconds.
    p50_us: f64,
    /// How many times as long as the loop took beside it; none for the loop.
    loop_ratio: Option<f64>,
    /// How many times as long Redis took beside it, and its interval of 95 %.
    redis_ratio: Option<f64>,
    redis_ratio_low: Option<f64>,
    redis_ratio_high: Option<f64>,
    commit: &'static str,
}

/// Who adds.
enum Subject {
    Loop(Vec<u8>),
    Module(String, Box<Host>),
    Redis(Box<Redis>, Vec<u8>),
}

impl Subject {
    fn name(&self) -> &str {
        match self {
            Self::Loop(_) => "loop",
            Self::Module(name, _) => name,
            Self::Redis(..) => "redis",
        }
    }

    fn add(&mut self, vector: &[u8]) -> Result<(), BenchError> {
        match self {
            Self::Loop(sum) => {
                vector_add(sum, black_box(vector));
                black_box(&*sum);
                Ok(())
            }
            Self::Module(_, host) => host.add(vector),
            Self::Redis(redis, sum) => redis.add(vector, sum),
        }
    }

    fn clear(&mut self, bytes: usize) -> Result<(), BenchError> {
        match self {
            Self::Loop(sum) => {
                sum.clear();
                sum.resize(bytes, 0);
                Ok(())
            }
            Self::Module(_, host) => host.clear(),
            Self::Redis(redis, _) => redis.clear(),
        }
    }

    fn sum(&mut self) -> Result<Vec<u8>, BenchError> {
        match self {
            Self::Loop(sum) => Ok(sum.clone()),
            Self::Module(_, host) => host.sum(),
            Self::Redis(redis, sum) => {
                redis.get(sum)?;
                Ok(sum.clone())
            }
        }
    }

    /// Adds so often, from nothing; nanoseconds.
    fn run(&mut self, vector: &[u8], times: u32, expected: &[u8]) -> Result<f64, BenchError> {
        // The first makes the object, and wakes who sleeps.
        self.clear(vector.len())?;
        self.add(vector)?;
        let begun = Instant::now();
        for _ in 0..times {
            self.add(vector)?;
        }
        let took = begun.elapsed().as_nanos() as f64;
        match self.sum()? == expected {
            true => Ok(took),
            false => {
                let text = format!("'{}' has not added what it was given", self.name());
                Err(BenchError::Peer(text))
            }
        }
    }
}

/// Adds integers of eight bytes, little-endian.
fn vector_add(sum: &mut [u8], vector: &[u8]) {
    let (sum, vector) = (sum.as_chunks_mut::<8>().0, vector.as_chunks::<8>().0);
    for (sum, term) in sum.iter_mut().zip(vector) {
        *sum = i64::from_le_bytes(*sum)
            .wrapping_add(i64::from_le_bytes(*term))
            .to_le_bytes();
    }
}

/// `praas bench reduction`.
pub(super) fn run(
    options: &ReductionOptions,
    json: bool,
    config: &TransportConfig,
) -> Result<String, BenchError> {
    if options.integers.is_empty() || options.transport.is_empty() {
        return Err(BenchError::Nothing("a list"));
    }
    if let Some(large) = options
        .integers
        .iter()
        .find(|n| **n > INTEGERS_MAX || **n == 0)
    {
        return Err(BenchError::Size(large.saturating_mul(8)));
    }
    let dir = tempfile::tempdir().map_err(BenchError::system("make a directory"))?;
    let modules = match options.module.is_empty() {
        false => options.module.clone(),
        true => vec![
            ("rust".into(), modules::rust_find()?),
            ("c".into(), modules::c_build(dir.path())?),
        ],
    };
    let redis = redis_find(options.redis.as_deref());
    let cpus = cpus_of(options.pin);
    let pinned = Pinned::new(cpus.0)?;
    let mut records = Vec::new();
    for transport in &options.transport {
        let mut subjects = vec![Subject::Loop(Vec::new())];
        for (name, path) in &modules {
            let host = Host::start(path, *transport, cpus.1, config)?;
            subjects.push(Subject::Module(name.clone(), Box::new(host)));
        }
        if let Some(program) = &redis {
            let redis = Redis::start(program, *transport, cpus.1)?;
            subjects.push(Subject::Redis(Box::new(redis), Vec::new()));
        }
        for integers in &options.integers {
            records.extend(measure(options, *transport, *integers, &mut subjects)?);
        }
    }
    drop(pinned);
    Ok(match json {
        true => lines(&records)?,
        false => table(&records),
    })
}

/// The Redis server to measure beside: the one named, or the path's.
pub(super) fn redis_find(named: Option<&str>) -> Option<PathBuf> {
    let found = match named {
        Some("none") => return None,
        Some(path) => Some(path.into()),
        None => modules::program_find("redis-server"),
    };
    if found.is_none() {
        eprintln!("SKIP redis: there is no redis-server");
    }
    found
}

/// All runs for one length of vectors.
fn measure(
    options: &ReductionOptions,
    transport: TransportKind,
    integers: usize,
    subjects: &mut [Subject],
) -> Result<Vec<Record>, BenchError> {
    let vector: Vec<u8> = (1..=integers as i64).flat_map(i64::to_le_bytes).collect();
    let times = i64::from(options.invocations) + 1;
    let expected: Vec<u8> = (1..=integers as i64)
        .flat_map(|n| (n * times).to_le_bytes())
        .collect();
    let mut took: Vec<Vec<f64>> = vec![Vec::new(); subjects.len()];
    for _ in 0..options.runs {
        for (subject, took) in subjects.iter_mut().zip(&mut took) {
            took.push(subject.run(&vector, options.invocations, &expected)?);
        }
    }
    let ratios = |of: &[f64], to: &[f64]| -> Vec<f64> {
        of.iter().zip(to).map(|(of, to)| of / to).collect()
    };
    let redis = subjects
        .iter()
        .position(|it| matches!(it, Subject::Redis(..)));
    let records = subjects.iter().zip(&took).map(|(subject, times)| {
        let module = matches!(subject, Subject::Module(..));
        let redis = redis.filter(|_| module);
        let redis = redis.and_then(|redis| estimate(&ratios(&took[redis], times)));
        let alone = matches!(subject, Subject::Loop(_));
        let beside = (!alone).then(|| median(&mut ratios(times, &took[0])));
        Record {
            bench: "reduction",
            subject: subject.name().into(),
            transport,
            integers,
            invocations: options.invocations,
            runs: times.len(),
            p50_us: median(&mut times.clone()) / 1e3,
            loop_ratio: beside,
            redis_ratio: redis.map(|redis| redis.median),
            redis_ratio_low: redis.map(|redis| redis.interval.0),
            redis_ratio_high: redis.map(|redis| redis.interval.1),
            commit: commit(),
        }
    });
    Ok(records.collect())
}

pub(super) fn lines(records: &[impl Serialize]) -> Result<String, BenchError> {
    let mut text = String::new();
    for record in records {
        let line = serde_json::to_string(record);
        text += &line.map_err(|error| BenchError::Output(error.into()))?;
        text.push('\n');
    }
    Ok(text)
}

fn table(records: &[Record]) -> String {
    let head = [
        "transport",
        "integers",
        "subject",
        "ms",
        "µs each",
        "÷ loop",
        "redis ÷ it",
        "95 %",
    ];
    let mut text = String::new();
    let [
        transport,
        integers,
        subject,
        ms,
        each,
        over,
        redis,
        interval,
    ] = head;
    // Writing to a text does not fail.
    let _ = writeln!(
        text,
        "{transport:<10}{integers:>9}  {subject:<8}{ms:>11}{each:>11}{over:>10}{redis:>12}  {interval}"
    );
    for record in records {
        let number = |value: Option<f64>| match value {
            Some(value) => format!("{value:.2}"),
            None => "-".into(),
        };
        let interval = match (record.redis_ratio_low, record.redis_ratio_high) {
            (Some(low), Some(high)) => format!("{low:.2} to {high:.2}"),
            _ => String::new(),
        };
        let line = format!(
            "{:<10}{:>9}  {:<8}{:>11.3}{:>11.2}{:>10}{:>12}  {interval}",
            record.transport.to_string(),
            record.integers,
            record.subject,
            record.p50_us / 1e3,
            record.p50_us / f64::from(record.invocations),
            number(record.loop_ratio),
            number(record.redis_ratio),
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_adds_what_it_is_given() {
        let vector = [1_i64, -1, i64::MAX].map(i64::to_le_bytes).concat();
        let expected = [3_i64, -3, i64::MAX.wrapping_mul(3)].map(i64::to_le_bytes);
        let mut subject = Subject::Loop(Vec::new());
        assert!(subject.run(&vector, 2, &expected.concat()).is_ok());
        assert!(subject.run(&vector, 3, &expected.concat()).is_err());
    }

    #[test]
    fn modules_are_named() {
        let parsed = module_parse("c=/a/b.so");
        assert_eq!(parsed, Ok(("c".into(), "/a/b.so".into())));
        assert!(module_parse("/a/b.so").is_err());
    }
}
