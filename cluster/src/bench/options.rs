//! The options of `praas bench`, in the manner of the programs that its users know.

use std::path::PathBuf;
use std::str::FromStr;

use praas_transport::{TransportConfig, TransportKind};

use super::plan::{BLOCK, Memory, Plan, RUNS_DEFAULT};
use super::reduction::ReductionOptions;
use super::remote::{self, Remote, SECRET_ENV};
use super::state_read::StateReadOptions;
use super::swap::SwapOptions;
use super::transfer::TransferOptions;
use super::{Bench, BenchError, What, output, serve};

/// `praas bench`.
#[derive(Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// Round trips of messages and invocations, by size
    Latency(LatencyOptions),
    /// Windows of messages one way, by size
    Bandwidth(WindowOptions),
    /// Windows of messages both ways at once, by size
    Bibw(WindowOptions),
    /// Small messages a second, one way, by size
    Rate(WindowOptions),
    /// Writing to the peer's memory, by size
    Put(OneSidedOptions),
    /// Reading the peer's memory, by size
    Get(OneSidedOptions),
    /// Adding to, or comparing and setting, a word of the peer's memory
    Atomics(AtomicsOptions),
    /// Opening a channel, with its handshake, and closing it
    Connect(ConnectOptions),
    /// Adding vectors into the state of a process, by modules in Rust and C, beside Redis
    Reduction(ReductionOptions),
    /// Invocations a second in batches, beside one at a time, by size
    Batch(WindowOptions),
    /// Reading a state object by one-sided operations, beside an invocation and Redis, by size
    StateRead(StateReadOptions),
    /// Swapping out and in, beside plain files, Redis and S3, by size
    Swap(SwapOptions),
    /// Moving a process between two nodes while it is called, beside a channel of the same bytes
    Transfer(TransferOptions),
    /// Do the other side's part for `--connect` on another host
    Serve(ServeOptions),
}

impl BenchCommand {
    /// Does what is asked for; `config` is for the endpoints at both ends.
    ///
    /// # Errors
    /// See [`BenchError`].
    pub fn run(self, json: bool, config: TransportConfig) -> Result<(), BenchError> {
        let (plan, files) = match self {
            Self::Latency(options) => options.plan(),
            Self::Bandwidth(options) => options.plan(Bench::Bandwidth),
            Self::Bibw(options) => options.plan(Bench::Bibw),
            Self::Rate(options) => options.plan(Bench::Rate),
            Self::Put(options) => options.plan(Bench::Put),
            Self::Get(options) => options.plan(Bench::Get),
            Self::Atomics(options) => options.plan(),
            Self::Connect(options) => options.plan(),
            Self::Reduction(options) => {
                let text = super::reduction::run(&options, json, &config)?;
                return output::text_write(&text);
            }
            Self::Batch(options) => options.plan(Bench::Batch),
            Self::StateRead(options) => {
                let text = super::state_read::run(&options, json, &config)?;
                return output::text_write(&text);
            }
            Self::Swap(options) => return super::swap::run(&options, json, &config),
            Self::Transfer(options) => {
                let text = super::transfer::run(&options, json, &config)?;
                return output::text_write(&text);
            }
            Self::Serve(options) => return serve(&options, json),
        }?;
        output::plan_run(&Plan { config, ..plan }, &files, json)
    }
}

/// Files that results are written to.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) csv: Option<PathBuf>,
    pub(super) svg: Option<PathBuf>,
}

/// What all measurements can be told.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Transports to measure [default: shm,unix,tcp; with --connect tcp]
    #[arg(short, long, value_name = "KIND,...", value_delimiter = ',')]
    pub transport: Vec<TransportKind>,
    /// What to measure of them: floor, channel, and for latencies invoke; invoke and batch [default: all]
    #[arg(long, value_name = "WHAT,...", value_delimiter = ',')]
    pub what: Vec<What>,
    /// Blocks of three milliseconds of each kind; each with its neighbour gives one ratio
    #[arg(long, value_name = "N", default_value_t = RUNS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub runs: u32,
    /// Iterations of each kind, instead of --runs: round trips, windows or connections
    #[arg(short, long, visible_short_alias = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub iterations: Option<u64>,
    /// Iterations before them that are not measured [default: one block]
    #[arg(short = 'x', long, visible_short_alias = 'w', value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub warmup: Option<u64>,
    /// The two CPUs to pin this side and the other to; else the first two that may be used
    #[arg(short, long, visible_short_alias = 'c', value_name = "CPU,CPU", value_parser = pin_parse)]
    pub pin: Option<(usize, usize)>,
    /// Measure with another host, where `praas bench serve` listens at this address
    #[arg(long, value_name = "HOST:PORT")]
    pub connect: Option<String>,
    /// File with the secret of --connect, which nobody else can read [default: the environment's
    /// PRAAS_BENCH_SECRET]
    #[arg(long, value_name = "FILE", requires = "connect")]
    pub secret_file: Option<PathBuf>,
    /// Write the records to this file, too, as comma-separated values
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

impl Common {
    fn plan(self, bench: Bench) -> Result<(Plan, Files), BenchError> {
        let remote = match self.connect {
            None => None,
            Some(address) => {
                let secret = remote::secret_read(self.secret_file.as_deref())?;
                let missing = || {
                    let text =
                        format!("of {address} is missing: give --secret-file or set {SECRET_ENV}");
                    BenchError::Secret(text)
                };
                let secret = secret.ok_or_else(missing)?;
                Some(Remote::new(address, &secret)?)
            }
        };
        let default = Plan::new(bench);
        let transports = match (self.transport.is_empty(), &remote) {
            (false, _) => self.transport,
            (true, Some(_)) => vec![TransportKind::Tcp],
            (true, None) => default.transports,
        };
        let whats = match self.what.is_empty() {
            true => default.whats,
            false => self.what,
        };
        let plan = Plan {
            transports,
            whats,
            per_measure: BLOCK * self.runs,
            iterations: self.iterations,
            warmup: self.warmup,
            pin: self.pin,
            remote,
            ..default
        };
        let files = Files {
            csv: self.csv,
            svg: None,
        };
        Ok((plan, files))
    }
}

/// Sizes, and how they are shown.
#[derive(Debug, Clone, clap::Args)]
pub struct Sizing {
    /// Sizes of the payload in bytes: a list as in 8,64K, or the doublings of a range as in 1:4M
    #[arg(short = 'm', long, visible_short_alias = 's', value_name = "SIZES")]
    pub bytes: Option<Sizes>,
    /// Draw the figures by size, with their floors, to this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl Sizing {
    fn apply(self, (plan, files): (Plan, Files)) -> (Plan, Files) {
        let bytes = self.bytes.map_or(plan.bytes, |sizes| sizes.0);
        let files = Files {
            svg: self.svg,
            ..files
        };
        (Plan { bytes, ..plan }, files)
    }
}

/// `praas bench latency`.
#[derive(Debug, Clone, clap::Args)]
pub struct LatencyOptions {
    /// What to measure.
    #[command(flatten)]
    pub common: Common,
    /// Sizes [default: 8,1K,64K,1M]
    #[command(flatten)]
    pub sizing: Sizing,
}

impl LatencyOptions {
    fn plan(self) -> Result<(Plan, Files), BenchError> {
        Ok(self.sizing.apply(self.common.plan(Bench::Latency)?))
    }
}

/// `praas bench bandwidth`, `bibw` and `rate`.
#[derive(Debug, Clone, clap::Args)]
pub struct WindowOptions {
    /// What all measurements can be told.
    #[command(flatten)]
    pub common: Common,
    /// Sizes.
    #[command(flatten)]
    pub sizing: Sizing,
    /// Messages of a window, which the other side acknowledges as one [default: 64; for rate 1024]
    #[arg(short = 'W', long, visible_short_alias = 'O', value_name = "N")]
    pub window: Option<usize>,
    /// Where payloads lie, and what the floor of large ones is: one copy out of the sender's pooled
    /// memory, or two through shared memory between private ones
    #[arg(long, value_enum, default_value_t = Memory::Pooled)]
    pub memory: Memory,
}

impl WindowOptions {
    fn plan(self, bench: Bench) -> Result<(Plan, Files), BenchError> {
        let (plan, files) = self.sizing.apply(self.common.plan(bench)?);
        let plan = Plan {
            window: self.window.unwrap_or(plan.window),
            memory: self.memory,
            ..plan
        };
        Ok((plan, files))
    }
}

/// `praas bench put` and `get`.
#[derive(Debug, Clone, clap::Args)]
pub struct OneSidedOptions {
    /// What all measurements can be told.
    #[command(flatten)]
    pub common: Common,
    /// Sizes.
    #[command(flatten)]
    pub sizing: Sizing,
    /// Operations that are posted before their completions are waited for
    #[arg(
        short = 'W',
        long,
        visible_short_alias = 'O',
        value_name = "N",
        default_value_t = 1
    )]
    pub window: usize,
    /// Where payloads lie
    #[arg(long, value_enum, default_value_t = Memory::Pooled)]
    pub memory: Memory,
}

impl OneSidedOptions {
    fn plan(self, bench: Bench) -> Result<(Plan, Files), BenchError> {
        let (plan, files) = self.sizing.apply(self.common.plan(bench)?);
        let (window, memory) = (self.window, self.memory);
        let plan = Plan {
            window,
            memory,
            ..plan
        };
        Ok((plan, files))
    }
}

/// What is done to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AtomicOperation {
    /// Add to it.
    FetchAdd,
    /// Set it if it is what is expected.
    CompareSwap,
}

/// `praas bench atomics`.
#[derive(Debug, Clone, clap::Args)]
pub struct AtomicsOptions {
    /// What all measurements can be told.
    #[command(flatten)]
    pub common: Common,
    /// What is done to the word
    #[arg(long, value_enum, default_value_t = AtomicOperation::FetchAdd)]
    pub operation: AtomicOperation,
    /// Operations that are posted before their completions are waited for
    #[arg(
        short = 'W',
        long,
        visible_short_alias = 'O',
        value_name = "N",
        default_value_t = 1
    )]
    pub window: usize,
}

impl AtomicsOptions {
    fn plan(self) -> Result<(Plan, Files), BenchError> {
        let bench = match self.operation {
            AtomicOperation::FetchAdd => Bench::FetchAdd,
            AtomicOperation::CompareSwap => Bench::CompareSwap,
        };
        let (plan, files) = self.common.plan(bench)?;
        let window = self.window;
        Ok((Plan { window, ..plan }, files))
    }
}

/// `praas bench connect`.
#[derive(Debug, Clone, clap::Args)]
pub struct ConnectOptions {
    /// What all measurements can be told.
    #[command(flatten)]
    pub common: Common,
}

impl ConnectOptions {
    fn plan(self) -> Result<(Plan, Files), BenchError> {
        self.common.plan(Bench::Connect)
    }
}

/// `praas bench serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeOptions {
    /// Address to listen at; port 0 takes one that is free
    #[arg(long, value_name = "IP:PORT")]
    pub listen: String,
    /// File with the secret, which nobody else can read [default: the environment's
    /// PRAAS_BENCH_SECRET, else a new one, which is printed]
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// End after so many measurements
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub sessions: Option<u64>,
}

/// Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(pub Vec<usize>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((least, most)) = text.split_once(':') else {
            return text
                .split(',')
                .map(size_parse)
                .collect::<Result<_, _>>()
                .map(Self);
        };
        let least = match least.is_empty() {
            true => 1,
            false => size_parse(least)?,
        };
        let most = size_parse(most)?;
        if least == 0 || least > most {
            return Err(format!(
                "'{text}' is no range: it must go from 1 or more up"
            ));
        }
        let doubled = |size: &usize| size.checked_mul(2).filter(|size| *size <= most);
        Ok(Self(std::iter::successors(Some(least), doubled).collect()))
    }
}

pub(super) fn size_parse(text: &str) -> Result<usize, String> {
    let wrong = || format!("'{text}' is no size: use bytes, or as in 64K, 4M, 1G");
    let trimmed = text.trim();
    let at = trimmed.find(|c: char| !c.is_ascii_digit());
    let (digits, unit) = trimmed.split_at(at.unwrap_or(trimmed.len()));
    let shift = match unit {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        _ => return Err(wrong()),
    };
    let count: usize = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(1 << shift).ok_or_else(wrong)
}

pub(super) fn pin_parse(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("'{text}' is not two CPU numbers, as in 0,1");
    let (one, two) = text.split_once(',').ok_or_else(wrong)?;
    let cpu = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    Ok((cpu(one)?, cpu(two)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_lists_and_ranges() {
        let sizes = |text: &str| text.parse::<Sizes>().map(|sizes| sizes.0);
        assert_eq!(sizes("8,64K,1M"), Ok(vec![8, 64 << 10, 1 << 20]));
        assert_eq!(sizes("1:8"), Ok(vec![1, 2, 4, 8]));
        assert_eq!(sizes(":5"), Ok(vec![1, 2, 4]));
        assert_eq!(sizes("3:20"), Ok(vec![3, 6, 12]));
        assert_eq!(sizes("1GiB"), Ok(vec![1 << 30]));
        for wrong in [
            "",
            "x",
            "8,",
            "8:4",
            "0:4",
            "4:",
            "-1",
            "1T",
            "9999999999999G",
        ] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn two_cpus_are_two_numbers() {
        assert_eq!(pin_parse("0,1"), Ok((0, 1)));
        assert!(pin_parse("0").is_err() && pin_parse("0,x").is_err());
    }
}
