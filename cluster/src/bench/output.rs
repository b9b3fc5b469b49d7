//! How results are shown: tables for people, JSON lines and comma-separated values for programs.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, StdoutLock, Write};
use std::path::{Path, PathBuf};

use praas_transport::TransportKind;
use serde::Serialize;
use serde_json::Value;

use super::blocks::{Setting, bench_measure};
use super::machine::{Machine, commit};
use super::options::Files;
use super::plan::{Memory, Plan};
use super::{Bench, BenchError, Record, What, svg};

/// Settings that matter to a record.
#[derive(Debug, Clone, Serialize)]
struct Settings {
    cpu: Option<usize>,
    peer_cpu: Option<usize>,
    memory: Memory,
    eager_max_bytes: Option<usize>,
    connect: Option<String>,
}

/// A record as it is printed: with the machine, the commit and the settings.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    record: &'a Record,
    machine: &'a Machine,
    peer_machine: Option<&'a Machine>,
    commit: &'a str,
    settings: &'a Settings,
}

/// The columns of comma-separated values: their names, and where they are in a line of JSON.
const COLUMNS: &[(&str, &str)] = &[
    ("bench", "/bench"),
    ("what", "/what"),
    ("transport", "/transport"),
    ("bytes", "/bytes"),
    ("window", "/window"),
    ("iterations", "/iterations"),
    ("batch", "/batch"),
    ("p50_ns", "/p50_ns"),
    ("p99_ns", "/p99_ns"),
    ("mb_per_s", "/mb_per_s"),
    ("per_s", "/per_s"),
    ("floor", "/floor"),
    ("floor_p50_ns", "/floor_p50_ns"),
    ("floor_ratio", "/floor_ratio"),
    ("floor_ratio_low", "/floor_ratio_low"),
    ("floor_ratio_high", "/floor_ratio_high"),
    ("floor_share", "/floor_share"),
    ("over_channel_ns", "/over_channel_ns"),
    ("over_channel_low_ns", "/over_channel_low_ns"),
    ("over_channel_high_ns", "/over_channel_high_ns"),
    ("pairs", "/pairs"),
    ("machine_cpu", "/machine/cpu"),
    ("machine_kernel", "/machine/kernel"),
    ("machine_cores", "/machine/cores"),
    ("peer_machine_cpu", "/peer_machine/cpu"),
    ("peer_machine_kernel", "/peer_machine/kernel"),
    ("peer_machine_cores", "/peer_machine/cores"),
    ("commit", "/commit"),
    ("cpu", "/settings/cpu"),
    ("peer_cpu", "/settings/peer_cpu"),
    ("memory", "/settings/memory"),
    ("eager_max_bytes", "/settings/eager_max_bytes"),
    ("connect", "/settings/connect"),
];

/// Measures what is planned, and writes what is found as it comes.
pub(super) fn plan_run(plan: &Plan, files: &Files, json: bool) -> Result<(), BenchError> {
    plan.check()?;
    let mut report = Report::new(plan, files, json)?;
    let records = bench_measure(plan, |setting, records| report.add(setting, records))?;
    let Some((path, mut file)) = report.svg else {
        return Ok(());
    };
    let title = format!("praas bench {}: {}", plan.bench, report.machine);
    let drawn = svg::draw(&title, plan.bench, &records);
    file.write_all(drawn.as_bytes()).map_err(written_to(&path))
}

/// Writes results that are there already.
pub(super) fn text_write(text: &str) -> Result<(), BenchError> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(BenchError::Output)
}

fn written_to(path: &Path) -> impl FnOnce(io::Error) -> BenchError {
    BenchError::system(format!("write {}", path.display()))
}

fn file_create(path: Option<&Path>) -> Result<Option<(PathBuf, File)>, BenchError> {
    let Some(path) = path else { return Ok(None) };
    let file = File::create(path).map_err(written_to(path))?;
    Ok(Some((path.to_owned(), file)))
}

/// Where results go.
struct Report<'a> {
    plan: &'a Plan,
    machine: Machine,
    json: bool,
    out: StdoutLock<'static>,
    csv: Option<(PathBuf, File)>,
    svg: Option<(PathBuf, File)>,
    /// The transport whose table has begun.
    table: Option<TransportKind>,
}

impl<'a> Report<'a> {
    /// Opens the files first: that they cannot be written is to be known before, not after.
    fn new(plan: &'a Plan, files: &Files, json: bool) -> Result<Self, BenchError> {
        let mut csv = file_create(files.csv.as_deref())?;
        if let Some((path, file)) = &mut csv {
            let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
            writeln!(file, "{}", names.join(",")).map_err(written_to(path))?;
        }
        Ok(Self {
            plan,
            machine: Machine::here(),
            json,
            out: io::stdout().lock(),
            csv,
            svg: file_create(files.svg.as_deref())?,
            table: None,
        })
    }

    /// The records of one size.
    fn add(&mut self, setting: &Setting, records: &[Record]) -> Result<(), BenchError> {
        let (cpu, peer_cpu) = setting.cpus;
        let settings = Settings {
            cpu,
            peer_cpu,
            memory: self.plan.memory,
            eager_max_bytes: setting.eager_max_bytes,
            connect: self
                .plan
                .remote
                .as_ref()
                .map(|remote| remote.address().to_owned()),
        };
        let mut text = String::new();
        for record in records {
            let line = Line {
                record,
                machine: &self.machine,
                peer_machine: setting.peer_machine.as_ref(),
                commit: commit(),
                settings: &settings,
            };
            let line = serde_json::to_value(&line);
            let line = line.map_err(|error| BenchError::Output(error.into()))?;
            if let Some((path, file)) = &mut self.csv {
                writeln!(file, "{}", csv_line(&line)).map_err(written_to(path))?;
            }
            if self.json {
                text += &format!("{line}\n");
            }
        }
        if !self.json {
            if self.table != Some(setting.transport) {
                text += if self.table.is_some() { "\n" } else { "" };
                text += &self.heading(setting, &settings, records);
                self.table = Some(setting.transport);
            }
            text += &row(self.plan.bench, records);
        }
        self.out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(BenchError::Output)
    }

    /// What stands above a table.
    fn heading(&self, setting: &Setting, settings: &Settings, records: &[Record]) -> String {
        let (bench, transport) = (self.plan.bench, setting.transport);
        let mut text = format!("# praas bench {bench} over {transport}: {}\n", about(bench));
        text += &format!("# {}, commit {}\n", self.machine, commit());
        if let (Some(peer), Some(remote)) = (&setting.peer_machine, &self.plan.remote) {
            text += &format!("# with {}: {peer}\n", remote.address());
        }
        let mut facts = Vec::new();
        if let Some(cpu) = settings.cpu {
            let peer = settings.peer_cpu.map(|cpu| format!(" and {cpu}"));
            facts.push(format!("CPU {cpu}{}", peer.unwrap_or_default()));
        }
        if bench.streams() || bench.one_sided() || bench == Bench::Batch {
            facts.push(format!("windows of {}", self.plan.window));
        }
        if bench.streams() {
            facts.push(format!("{} memory", settings.memory));
        }
        if let Some(eager) = settings.eager_max_bytes {
            facts.push(format!("eager up to {eager} bytes"));
        }
        let floor = records.iter().find_map(|record| record.floor.as_deref());
        if let (Some(floor), false) = (floor, bench.streams()) {
            facts.push(format!("floor: {floor}"));
        }
        text += &format!("# {}\n", facts.join(", "));
        text + columns(bench) + "\n"
    }
}

fn about(bench: Bench) -> &'static str {
    match bench {
        Bench::Latency => "half round trips of messages, whole ones of invocations",
        Bench::Bandwidth => "windows of messages one way",
        Bench::Bibw => "windows of messages both ways at once",
        Bench::Rate => "windows of small messages one way",
        Bench::Put => "writing to the peer's memory",
        Bench::Get => "reading the peer's memory",
        Bench::FetchAdd => "adding to a word of the peer's memory",
        Bench::CompareSwap => "comparing and setting a word of the peer's memory",
        Bench::Connect => "opening a channel and closing it",
        Bench::Batch => "invocations in batches, and one at a time",
    }
}

fn columns(bench: Bench) -> &'static str {
    match bench {
        Bench::Latency => {
            "# Size     Latency (us)    p99 (us)  Floor (us)   Ratio  [95 %        ]  \
             Invoke (us)  over channel (us)"
        }
        Bench::Bandwidth | Bench::Bibw => {
            "# Size   Bandwidth (MB/s)  Floor (MB/s)   Share  [95 %        ]     Messages/s  Floor"
        }
        Bench::Rate => {
            "# Size         Messages/s  Floor (1/s)    Share  [95 %        ]    MB/s  Floor"
        }
        Bench::Put | Bench::Get | Bench::FetchAdd | Bench::CompareSwap => {
            "# Size     Latency (us)    p99 (us)  Floor (us)   Ratio  [95 %        ]  \
             Operations/s        MB/s"
        }
        Bench::Batch => {
            "# Size     Batched (1/s)  One at a time (1/s)   Ratio  [95 %        ]    Batched (us)"
        }
        Bench::Connect => {
            "# Connects/s  Connect (us)    p99 (us)  Floor (us)   Ratio  [95 %        ]"
        }
    }
}

/// A figure, or that there is none.
fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

/// The row of one size.
fn row(bench: Bench, records: &[Record]) -> String {
    let of = |what| records.iter().find(|record| record.what == what);
    let (floor, invoke) = (of(What::Floor), of(What::Invoke));
    let channel = of(What::Channel).or(of(What::Batch));
    let us = |record: Option<&Record>| figure(record.map(|record| record.p50_ns / 1e3), 3);
    let p99 = figure(channel.map(|record| record.p99_ns / 1e3), 3);
    let bounds = channel.and_then(|record| record.floor_ratio_low.zip(record.floor_ratio_high));
    let interval = |(low, high): (f64, f64)| format!("[{low:.3}, {high:.3}]");
    let ratio = figure(channel.and_then(|record| record.floor_ratio), 3);
    let share = figure(channel.and_then(|record| record.floor_share), 3);
    let ratio_interval = bounds.map(interval).unwrap_or_default();
    let share_interval = bounds.map(|(low, high)| interval((1.0 / high, 1.0 / low)));
    let share_interval = share_interval.unwrap_or_default();
    let size = records.first().map_or(0, |record| record.bytes);
    let mb = |record: Option<&Record>| figure(record.and_then(|record| record.mb_per_s), 2);
    let rate = |record: Option<&Record>| figure(record.map(|record| record.per_s), 0);
    let kind = records.iter().find_map(|record| record.floor.as_deref());
    let kind = kind.unwrap_or_default();
    let mut text = String::new();
    let written = match bench {
        Bench::Latency => {
            let over = invoke.and_then(|record| record.over_channel_ns);
            let over = figure(over.map(|ns| ns / 1e3), 3);
            writeln!(
                text,
                "{size:<10}{:>13}{p99:>12}{:>12}{ratio:>8}  {ratio_interval:<16}{:>11}{over:>19}",
                us(channel),
                us(floor),
                us(invoke),
            )
        }
        Bench::Bandwidth | Bench::Bibw => writeln!(
            text,
            "{size:<9}{:>17}{:>14}{share:>8}  {share_interval:<16}{:>14}  {kind}",
            mb(channel),
            mb(floor),
            rate(channel),
        ),
        Bench::Rate => writeln!(
            text,
            "{size:<9}{:>16}{:>13}{share:>9}  {share_interval:<16}{:>7}  {kind}",
            rate(channel),
            rate(floor),
            figure(channel.and_then(|record| record.mb_per_s), 0),
        ),
        Bench::Put | Bench::Get | Bench::FetchAdd | Bench::CompareSwap => writeln!(
            text,
            "{size:<10}{:>13}{p99:>12}{:>12}{ratio:>8}  {ratio_interval:<16}{:>12}{:>12}",
            us(channel),
            us(floor),
            rate(channel),
            mb(channel),
        ),
        Bench::Batch => writeln!(
            text,
            "{size:<10}{:>14}{:>21}{ratio:>8}  {ratio_interval:<16}{:>14}",
            rate(channel),
            rate(invoke),
            us(channel),
        ),
        Bench::Connect => writeln!(
            text,
            "{:<14}{:>12}{p99:>12}{:>12}{ratio:>8}  {ratio_interval}",
            rate(channel),
            us(channel),
            us(floor),
        ),
    };
    // A string takes all that is written to it.
    let _ = written;
    text
}

/// One line of comma-separated values.
fn csv_line(line: &Value) -> String {
    let field = |(_, at): &(&str, &str)| match line.pointer(at) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => csv_text(text),
        Some(other) => csv_text(&other.to_string()),
    };
    let fields: Vec<String> = COLUMNS.iter().map(field).collect();
    fields.join(",")
}

/// A text as RFC 4180 writes it.
fn csv_text(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bench: Bench, what: What) -> Record {
        let channel = what == What::Channel;
        Record {
            window: 64,
            iterations: 10,
            p50_ns: 100.0,
            p99_ns: 250.0,
            mb_per_s: bench.streams().then_some(80.0),
            per_s: 1e7,
            floor: Some("raw flag, \"bare\"".into()),
            floor_p50_ns: channel.then_some(80.0),
            floor_ratio: channel.then_some(1.25),
            floor_ratio_low: channel.then_some(1.0),
            floor_ratio_high: channel.then_some(2.0),
            floor_share: channel.then_some(0.8),
            pairs: 3,
            ..Record::new(bench, what, TransportKind::Shm, 8)
        }
    }

    #[test]
    fn rows_begin_with_the_size_and_our_figure() {
        let words = |bench| {
            let records = [record(bench, What::Floor), record(bench, What::Channel)];
            let row = row(bench, &records);
            let words: Vec<&str> = row.split_whitespace().collect();
            words.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let latency = words(Bench::Latency);
        assert_eq!(latency[..4], ["8", "0.100", "0.250", "0.100"]);
        assert_eq!(latency[4..], ["1.250", "[1.000,", "2.000]", "-", "-"]);
        let bandwidth = words(Bench::Bandwidth);
        let found = ["8", "80.00", "80.00", "0.800", "[0.500,", "1.000]"];
        assert_eq!(bandwidth[..6], found);
        assert_eq!(
            words(Bench::Rate)[..4],
            ["8", "10000000", "10000000", "0.800"]
        );
        assert_eq!(words(Bench::Connect)[..3], ["10000000", "0.100", "0.250"]);
    }

    #[test]
    fn every_field_of_a_line_has_its_column() {
        let machine = Machine::here();
        let line = Line {
            record: &record(Bench::Bandwidth, What::Channel),
            machine: &machine,
            peer_machine: Some(&machine),
            commit: "c",
            settings: &Settings {
                cpu: Some(0),
                peer_cpu: Some(1),
                memory: Memory::Pooled,
                eager_max_bytes: Some(16),
                connect: Some("host:1".into()),
            },
        };
        let line = serde_json::to_value(&line).unwrap();
        let mut leaves = 0;
        for value in line.as_object().unwrap().values() {
            leaves += value.as_object().map_or(1, serde_json::Map::len);
        }
        assert_eq!(leaves, COLUMNS.len());
        for (name, at) in COLUMNS {
            assert!(line.pointer(at).is_some(), "{name}");
        }
        assert!(csv_line(&line).contains(",\"raw flag, \"\"bare\"\"\",80.0,"));
    }
}
