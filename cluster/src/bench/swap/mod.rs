//! `praas bench swap`: what swapping out and in costs, beside the plainest way to keep the same bytes
//! in the same place.
//!
//! ```text
//!   one run:  | plain out | plain in |   | swap out | swap in |      in turn first, then last
//!                   \__________\___ ratio ___/_________/
//! ```
//!
//! | place | plain |
//! |---|---|
//! | a folder | one file, written in blocks and synced, as `dd conv=fsync` does; read back |
//! | Redis | SET and GET over the same kind of socket, in pieces as large as a server takes |
//! | S3 | one PUT and one GET over one connection, of a payload that is not signed |
//!
//! Disks and neighbours change their mind from one second to the next, so ratios are of what was
//! done in the same run, and spread is told with every figure. What is read comes from the page
//! cache, for both.

mod content;
mod first;
mod place;
#[cfg(feature = "s3")]
mod s3;
mod second;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use praas_runtime::swap::{Compression, ProcessImage, SwapConfig, swap_in, swap_out};
use praas_transport::{BufPool, TransportConfig};
use serde::Serialize;

use self::content::Content;
use self::place::{Kind, Place};
use self::table::Sink;
use super::options::Sizes;
use super::statistics::median;
use super::{BenchError, machine::commit};

/// Bytes that are left to everybody else, of memory as of a disk.
const SPARE_BYTES: u64 = 512 << 20;
/// Bytes of the largest state that is measured.
const BYTES_MAX: usize = 16 << 30;

/// Bytes of the largest state of which first calls and second swaps are measured.
const STATE_BYTES_MAX: usize = 1 << 30;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Out and in, beside what is plain.
    Speed,
    /// From a process's start to its first answer.
    FirstCall,
    /// What a second swap writes.
    Second,
}

/// `praas bench swap`.
#[derive(Debug, Clone, clap::Args)]
pub struct SwapOptions {
    /// Places to swap to: file, redis, s3
    #[arg(long, value_enum, value_name = "PLACE,...", value_delimiter = ',', default_values_t = [Kind::File, Kind::Redis, Kind::S3])]
    storage: Vec<Kind>,
    /// Bytes of state: a list as in 1M,64M, or the doublings of a range as in 1M:4G [default:
    /// 1M,16M,256M,1G,4G]
    #[arg(short = 'm', long, visible_short_alias = 's', value_name = "SIZES")]
    bytes: Option<Sizes>,
    /// Kinds of compression: none, lz4, zstd [default: all]
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = compression_parse)]
    compression: Vec<Compression>,
    /// What the bytes are: random, which does not compress, or half, of which half compresses away
    #[arg(long, value_enum, value_name = "KIND,...", value_delimiter = ',', default_values_t = [Content::Random, Content::Half])]
    data: Vec<Content>,
    /// What to measure: the speed of swapping out and in; from a process's start to its first answer,
    /// lazily and eagerly; what a second swap writes. The latter two up to 1 GiB
    #[arg(long, value_enum, value_name = "WHAT,...", value_delimiter = ',', default_values_t = [What::Speed, What::FirstCall, What::Second])]
    what: Vec<What>,
    /// Runs, each with swap and what is plain by turns
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Little of all of it: 1 MiB and 16 MiB, two runs
    #[arg(long)]
    quick: bool,
    /// The folder to swap to [default: one of our own where temporary files are]
    #[arg(long, value_name = "PATH")]
    folder: Option<PathBuf>,
    /// The Redis server to start; none: without [default: redis-server, if it is there]
    #[arg(long, value_name = "PATH")]
    redis: Option<String>,
    /// The S3 server to start, s3s-fs; none: without [default: s3s-fs, if it is there]
    #[arg(long, value_name = "PATH")]
    s3: Option<String>,
}

fn compression_parse(text: &str) -> Result<Compression, String> {
    let found = [Compression::None, Compression::Lz4, Compression::Zstd];
    let mut found = found.into_iter();
    found
        .find(|kind| compression_name(*kind) == text)
        .ok_or_else(|| format!("'{text}' is no compression: use none, lz4 or zstd"))
}

fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

impl SwapOptions {
    fn bytes(&self) -> Vec<usize> {
        match &self.bytes {
            Some(sizes) => sizes.0.clone(),
            None if self.quick => vec![1 << 20, 16 << 20],
            None => vec![1 << 20, 16 << 20, 256 << 20, 1 << 30, 4 << 30],
        }
    }

    fn runs(&self) -> u32 {
        match self.quick {
            true => self.runs.min(2),
            false => self.runs,
        }
    }

    fn compression(&self) -> Vec<Compression> {
        match self.compression.is_empty() {
            true => vec![Compression::None, Compression::Lz4, Compression::Zstd],
            false => self.compression.clone(),
        }
    }
}

/// One line of results: swapping out, or in, beside what is plain.
#[derive(Debug, Clone, Serialize)]
struct Record {
    bench: &'static str,
    /// `out` or `in`.
    part: &'static str,
    storage: &'static str,
    data: &'static str,
    compression: &'static str,
    /// Of state.
    bytes: usize,
    /// That swapping out has written, manifest included.
    stored_bytes: u64,
    runs: usize,
    /// Milliseconds: the median of runs, the shortest and the longest.
    p50_ms: f64,
    min_ms: f64,
    max_ms: f64,
    /// Millions of bytes of state a second, at the median.
    mb_per_s: f64,
    /// The same of what is plain.
    plain_p50_ms: f64,
    plain_min_ms: f64,
    plain_max_ms: f64,
    plain_mb_per_s: f64,
    /// What share of the plain way's speed is reached: the median of runs, the least and the most.
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    commit: &'static str,
}

/// `praas bench swap`.
pub(super) fn run(
    options: &SwapOptions,
    json: bool,
    config: &TransportConfig,
) -> Result<(), BenchError> {
    let bytes = options.bytes();
    if bytes.is_empty() || options.storage.is_empty() || options.data.is_empty() {
        return Err(BenchError::Nothing("a list"));
    }
    if bytes.contains(&0) {
        return Err(BenchError::Nothing("a size"));
    }
    if let Some(large) = bytes.iter().find(|bytes| **bytes > BYTES_MAX) {
        return Err(BenchError::Size(*large));
    }
    let mut sink = Sink::new(json);
    let folder = Folder::new(options.folder.as_deref())?;
    for kind in &options.storage {
        let Some(mut place) = Place::start(*kind, options, &folder.path)? else {
            continue;
        };
        let fits = |bytes: &&usize| room_check(*kind, **bytes, &folder.path).is_some();
        let bytes: Vec<usize> = bytes.iter().filter(fits).copied().collect();
        for what in &options.what {
            for bytes in &bytes {
                measure_what(options, *what, *bytes, &mut place, &mut sink, config)?;
            }
        }
    }
    Ok(())
}

/// All lines of one size.
fn measure_what(
    options: &SwapOptions,
    what: What,
    bytes: usize,
    place: &mut Place,
    sink: &mut Sink,
    config: &TransportConfig,
) -> Result<(), BenchError> {
    let runs = options.runs();
    let small = bytes <= STATE_BYTES_MAX;
    match what {
        What::Speed => {
            for data in &options.data {
                let image = data.image(bytes, 1);
                for compression in options.compression() {
                    let records = measure(runs, place, *data, &image, compression)?;
                    records.iter().try_for_each(|record| sink.put(record))?;
                }
            }
            Ok(())
        }
        What::FirstCall if small => {
            let records = first::measure(runs, place, options.data[0], bytes, config)?;
            records.iter().try_for_each(|record| sink.put(record))
        }
        What::Second if small => {
            let records = second::measure(place, options.data[0], bytes)?;
            records.iter().try_for_each(|record| sink.put(record))
        }
        What::FirstCall | What::Second => Ok(()),
    }
}

/// The folder that everything lies in; what was not there before goes at the end.
struct Folder {
    path: PathBuf,
    _own: tempfile::TempDir,
}

impl Folder {
    fn new(given: Option<&Path>) -> Result<Self, BenchError> {
        let own = match given {
            Some(folder) => fs::create_dir_all(folder).and_then(|()| {
                tempfile::Builder::new()
                    .prefix("praas-bench-")
                    .tempdir_in(folder)
            }),
            None => tempfile::tempdir(),
        };
        let own = own.map_err(BenchError::system("make a folder"))?;
        Ok(Self {
            path: own.path().into(),
            _own: own,
        })
    }
}

/// Whether there is room for a size, in memory and on the disk; says so if not.
fn room_check(kind: Kind, bytes: usize, folder: &Path) -> Option<()> {
    let bytes = bytes as u64;
    // The state, what it is read back into, and what the server keeps in memory.
    let memory = 2 + u64::from(kind == Kind::Redis);
    // A server may put parts of an upload together.
    let disk = match kind {
        Kind::File => 1,
        Kind::S3 => 2,
        Kind::Redis => 0,
    };
    let rooms = [
        ("memory", memory_free(), memory * bytes),
        ("the disk", disk_free(folder), disk * bytes),
    ];
    for (what, free, wanted) in rooms {
        let wanted = wanted + SPARE_BYTES;
        if free.is_some_and(|free| free < wanted) {
            let mib = bytes >> 20;
            let (name, wanted, free) = (kind.name(), wanted >> 20, free.unwrap_or(0) >> 20);
            eprintln!("SKIP {name} {mib} MiB: it takes {wanted} MiB of {what}, which has {free}");
            return None;
        }
    }
    Some(())
}

fn memory_free() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

fn disk_free(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// How long something takes, and what comes of it.
fn timed<T, E>(act: impl FnOnce() -> Result<T, E>) -> Result<(Duration, T), E> {
    let begun = Instant::now();
    let result = act()?;
    Ok((begun.elapsed(), result))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What all runs took, in milliseconds.
#[derive(Default)]
struct Times {
    plain_out: Vec<f64>,
    plain_in: Vec<f64>,
    out: Vec<f64>,
    back: Vec<f64>,
    stored: u64,
}

/// All runs of one state in one place.
fn measure(
    runs: u32,
    place: &mut Place,
    data: Content,
    image: &ProcessImage,
    compression: Compression,
) -> Result<[Record; 2], BenchError> {
    let state: Vec<&[u8]> = image.state.iter().map(|(_, buf, _)| &buf[..]).collect();
    let bytes = state.iter().map(|object| object.len()).sum();
    let mut times = Times::default();
    for run in 0..runs {
        for plain in [run % 2 == 0, run % 2 == 1] {
            match plain {
                true => {
                    let (out, back) = place.plain(&state)?;
                    times.plain_out.push(ms(out));
                    times.plain_in.push(ms(back));
                }
                false => swap(place, image, compression, bytes, &mut times)?,
            }
        }
    }
    let record = |part, of: &[f64], plain: &[f64]| {
        let ratios: Vec<f64> = plain.iter().zip(of).map(|(plain, of)| plain / of).collect();
        let [
            (p50, min, max),
            (plain, plain_min, plain_max),
            (ratio, ratio_min, ratio_max),
        ] = [of, plain, &ratios].map(spread);
        Record {
            bench: "swap",
            part,
            storage: place.kind().name(),
            data: data.name(),
            compression: compression_name(compression),
            bytes,
            stored_bytes: times.stored,
            runs: of.len(),
            p50_ms: p50,
            min_ms: min,
            max_ms: max,
            mb_per_s: bytes as f64 / p50 / 1e3,
            plain_p50_ms: plain,
            plain_min_ms: plain_min,
            plain_max_ms: plain_max,
            plain_mb_per_s: bytes as f64 / plain / 1e3,
            ratio,
            ratio_min,
            ratio_max,
            commit: commit(),
        }
    };
    Ok([
        record("out", &times.out, &times.plain_out),
        record("in", &times.back, &times.plain_in),
    ])
}

/// One swap, out and in.
fn swap(
    place: &mut Place,
    image: &ProcessImage,
    compression: Compression,
    bytes: usize,
    times: &mut Times,
) -> Result<(), BenchError> {
    let config = SwapConfig {
        compression,
        ..SwapConfig::default()
    };
    let storage = place.storage()?;
    let out = timed(|| swap_out(&*storage, image, &config));
    let (out, committed) = out?;
    let pool = BufPool::new(bytes * 2 + (64 << 20));
    let back = timed(|| swap_in(&*storage, &pool, content::APPLICATION, content::PROCESS));
    let (back, loaded) = back?;
    let lengths = |image: &ProcessImage| -> Vec<usize> {
        image.state.iter().map(|(_, buf, _)| buf.len()).collect()
    };
    let whole = loaded.is_some_and(|loaded| lengths(&loaded.image) == lengths(image));
    if !whole {
        return Err(BenchError::Peer("has given back another state".into()));
    }
    times.out.push(ms(out));
    times.back.push(ms(back));
    times.stored = committed.bytes;
    place.clear()
}

/// The median of values, the least and the greatest.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    (median(&mut values.to_vec()), least, most)
}
