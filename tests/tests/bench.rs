//! `praas bench` makes its records, also where both processes share one CPU and with a peer that is
//! served elsewhere; and says what is wrong where it cannot.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A secret of a measurement between hosts.
const SECRET: &str = "known to both of them";

fn praas(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_praas"));
    command.arg("bench").args(arguments);
    command.env_remove("PRAAS_BENCH_SECRET");
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("praas runs")
}

fn lines(done: &Output) -> Vec<Value> {
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{errors}");
    let text = std::str::from_utf8(&done.stdout).expect("JSON is UTF-8");
    let line = |line| serde_json::from_str(line).expect("one object a line");
    text.lines().map(line).collect()
}

fn records(arguments: &[&str]) -> Vec<Value> {
    lines(&output(praas(arguments).arg("--json")))
}

fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    record[key].as_str().expect("a text")
}

fn whats(records: &[Value]) -> Vec<String> {
    let named = |record: &Value| {
        let (transport, what) = (text(record, "transport"), text(record, "what"));
        format!("{transport} {} {what}", record["bytes"])
    };
    records.iter().map(named).collect()
}

/// Every field of a record, in the order of their names.
const FIELDS: &[&str] = &[
    "batch",
    "bench",
    "bytes",
    "commit",
    "floor",
    "floor_p50_ns",
    "floor_ratio",
    "floor_ratio_high",
    "floor_ratio_low",
    "floor_share",
    "iterations",
    "machine",
    "mb_per_s",
    "over_channel_high_ns",
    "over_channel_low_ns",
    "over_channel_ns",
    "p50_ns",
    "p99_ns",
    "pairs",
    "peer_machine",
    "per_s",
    "settings",
    "transport",
    "what",
    "window",
];

/// Whether a record has what every one of its kind has.
fn record_check(record: &Value) {
    let mut keys: Vec<&String> = record.as_object().expect("an object").keys().collect();
    keys.sort_unstable();
    assert_eq!(keys, FIELDS);
    let (p50, p99) = (record["p50_ns"].as_f64(), record["p99_ns"].as_f64());
    assert!(p50 > Some(0.0) && p99 >= p50, "{record}");
    assert!(record["per_s"].as_f64() > Some(0.0), "{record}");
    assert!(record["iterations"].as_u64() > Some(0), "{record}");
    let is = |what| text(record, "what") == what;
    for key in [
        "floor_ratio",
        "floor_ratio_low",
        "floor_share",
        "floor_p50_ns",
    ] {
        assert_eq!(record[key].is_number(), is("channel"), "{key} of {record}");
    }
    for key in ["over_channel_ns", "over_channel_low_ns"] {
        assert_eq!(record[key].is_number(), is("invoke"), "{key} of {record}");
    }
    assert_eq!(record["floor"].is_string(), !is("invoke"), "{record}");
    let moves = ["bandwidth", "bibw", "rate", "put", "get"];
    let moves = moves.contains(&text(record, "bench"));
    assert_eq!(record["mb_per_s"].is_number(), moves, "{record}");
    let machine = &record["machine"];
    assert!(
        machine["cpu"].is_string() && machine["kernel"].is_string(),
        "{machine}"
    );
    assert!(machine["cores"].is_number() && record["commit"].is_string());
    for key in ["cpu", "peer_cpu", "memory", "eager_max_bytes", "connect"] {
        assert!(record["settings"].get(key).is_some(), "{key} of {record}");
    }
}

#[test]
fn every_record_is_there_with_machine_and_commit() {
    let records = records(&["latency", "--bytes", "8,100000", "--runs", "2"]);
    let mut expected = Vec::new();
    for transport in ["shm", "unix", "tcp"] {
        for bytes in [8, 100_000] {
            for what in ["floor", "channel", "invoke"] {
                expected.push(format!("{transport} {bytes} {what}"));
            }
        }
    }
    assert_eq!(whats(&records), expected);
    for record in &records {
        record_check(record);
        assert_eq!(text(record, "bench"), "latency");
    }
}

/// A short run of a kind of traffic over every transport of this host, small and large.
fn kind_check(arguments: &[&str], name: &str, sized: bool) {
    let mut all = arguments.to_vec();
    all.extend(["--transport", "mem,shm,unix,tcp", "--runs", "2"]);
    if sized {
        all.extend(["--bytes", "8,100000"]);
    }
    let records = records(&all);
    let sizes = if sized { 2 } else { 1 };
    assert_eq!(records.len(), 4 * sizes * 2, "{name}");
    for record in &records {
        record_check(record);
        assert_eq!(text(record, "bench"), name);
    }
}

#[test]
fn bandwidth_is_measured_over_every_transport() {
    kind_check(&["bandwidth", "--window", "4"], "bandwidth", true);
}

#[test]
fn bandwidth_both_ways_is_measured_over_every_transport() {
    kind_check(
        &["bibw", "--window", "4", "--memory", "private"],
        "bibw",
        true,
    );
}

#[test]
fn rates_are_measured_over_every_transport() {
    kind_check(&["rate", "--window", "100"], "rate", true);
}

#[test]
fn puts_are_measured_over_every_transport() {
    kind_check(&["put"], "put", true);
}

#[test]
fn gets_are_measured_over_every_transport() {
    kind_check(&["get", "--window", "4"], "get", true);
}

#[test]
fn atomics_are_measured_over_every_transport() {
    kind_check(&["atomics", "-W", "3"], "fetch_add", false);
    let swaps = ["atomics", "--operation", "compare-swap"];
    kind_check(&swaps, "compare_swap", false);
}

#[test]
fn connecting_is_measured_over_every_transport() {
    kind_check(&["connect"], "connect", false);
}

/// Swapping out and in, of every kind of data and compression; `places` are those that can be had.
fn swap_check(places: &[&str], bytes: &[u64], more: &[&str]) {
    let sizes: Vec<String> = bytes.iter().map(u64::to_string).collect();
    let (named, sizes) = (places.join(","), sizes.join(","));
    let mut arguments = vec!["swap", "--what", "speed", "--runs", "2"];
    arguments.extend(["--storage", &named, "--bytes", &sizes]);
    arguments.extend(more);
    let records = records(&arguments);
    let mut expected = Vec::new();
    for place in places {
        for bytes in bytes {
            for data in ["random", "half"] {
                for compression in ["none", "lz4", "zstd"] {
                    for part in ["out", "in"] {
                        expected.push(format!("{place} {bytes} {data} {compression} {part}"));
                    }
                }
            }
        }
    }
    let named = |record: &Value| {
        let [place, data, compression, part] =
            ["storage", "data", "compression", "part"].map(|key| text(record, key));
        format!("{place} {} {data} {compression} {part}", record["bytes"])
    };
    assert_eq!(records.iter().map(named).collect::<Vec<_>>(), expected);
    for record in &records {
        let number = |key: &str| record[key].as_f64().expect("a number");
        let ordered = |keys: [&str; 3]| keys.map(number).is_sorted();
        assert!(ordered(["min_ms", "p50_ms", "max_ms"]), "{record}");
        let plain = ["plain_min_ms", "plain_p50_ms", "plain_max_ms"];
        assert!(ordered(plain) && ordered(["ratio_min", "ratio", "ratio_max"]));
        assert!(number("min_ms") > 0.0 && number("ratio_min") > 0.0);
        assert_eq!(record["runs"], 2);
        let (stored, bytes) = (number("stored_bytes"), number("bytes"));
        // What does not compress is there in full; of the rest half is.
        let whole = text(record, "data") == "random" || text(record, "compression") == "none";
        assert_eq!(stored > bytes, whole, "{record}");
    }
}

#[test]
fn swaps_are_measured_beside_a_plain_file() {
    swap_check(&["file"], &[70_000, 1 << 20], &[]);
}

/// Servers that cannot be had are left out, and said to be.
#[test]
fn swaps_are_measured_beside_plain_requests() {
    let tools = Path::new(env!("CARGO_BIN_EXE_praas")).ancestors().nth(2);
    let s3 = tools.expect("target").join("storage-tools/bin/s3s-fs");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut redis = std::env::split_paths(&path).map(|dir| dir.join("redis-server"));
    let mut places = Vec::new();
    if redis.any(|program| program.is_file()) {
        places.push("redis");
    }
    if s3.is_file() {
        places.push("s3");
    }
    let s3 = s3.to_str().expect("a path");
    match places.is_empty() {
        true => println!("SKIP: neither redis-server nor s3s-fs"),
        false => swap_check(&places, &[1 << 20], &["--s3", s3]),
    }
    let mut none = praas(&[
        "swap",
        "--storage",
        "redis,s3",
        "--bytes",
        "1M",
        "--s3",
        "none",
    ]);
    let done = output(none.args(["--redis", "none", "--json"]));
    assert!(done.status.success() && done.stdout.is_empty());
}

/// What a process begins with is there at its first answer, and a second swap writes next to nothing.
#[test]
fn first_calls_and_second_swaps_are_measured() {
    let arguments = ["swap", "--what", "first-call,second", "--storage", "file"];
    let rest = ["--bytes", "5M", "--runs", "2", "--data", "random"];
    let records = records(&[&arguments[..], &rest].concat());
    let (first, second) = records.split_at(3);
    let subjects: Vec<&str> = first.iter().map(|it| text(it, "subject")).collect();
    assert_eq!(subjects, ["empty", "lazy", "eager"]);
    for record in first {
        assert_eq!(
            (text(record, "part"), &record["runs"]),
            ("first-call", &2.into())
        );
        assert_eq!(
            (&record["bytes"], &record["objects"]),
            (&(5 << 20).into(), &2.into())
        );
        assert!(record["min_ms"].as_f64() > Some(0.0));
        let empty = text(record, "subject") == "empty";
        assert_eq!(record["over_empty_ms"].is_number(), !empty, "{record}");
    }
    let number = |record: &Value, key| record[key].as_u64().expect("a number");
    let whats: Vec<_> = second
        .iter()
        .map(|it| ["objects", "touched_bytes"].map(|key| number(it, key)))
        .collect();
    let touched = (5 << 20) / 100;
    assert_eq!(whats, [[1, 0], [1, touched], [1000, 0], [1000, touched]]);
    for record in second {
        let (written, manifest) = (
            number(record, "written_bytes"),
            number(record, "manifest_bytes"),
        );
        let [chunks, touched] = ["chunks_written", "touched_bytes"].map(|key| number(record, key));
        assert_eq!(chunks > 0, touched > 0, "{record}");
        // A chunk has 256 KiB, of which one byte may have been touched.
        assert!(written <= manifest + 200 + chunks * (256 << 10), "{record}");
        assert!(written >= manifest && written < 1 << 20, "{record}");
    }
}

#[test]
fn a_measurement_on_one_cpu_ends() {
    for kind in ["latency", "bandwidth"] {
        let bytes = ["--bytes", "8", "--runs", "1", "--pin", "0,0"];
        let arguments = [&[kind][..], &bytes].concat();
        let records = records(&arguments);
        let whats = if kind == "latency" { 3 } else { 2 };
        assert_eq!(records.len(), 3 * whats);
        assert_eq!(records[0]["settings"]["peer_cpu"], 0);
    }
}

#[test]
fn only_what_is_asked_for_is_measured() {
    for kind in ["latency", "bandwidth"] {
        let what = ["--what", "channel", "-t", "shm", "-m", "64", "--runs", "1"];
        let records = records(&[&[kind][..], &what].concat());
        assert_eq!(whats(&records), ["shm 64 channel"]);
        assert!(records[0]["floor_ratio"].is_null());
    }
}

#[test]
fn iterations_are_as_many_as_were_asked_for() {
    let arguments = ["bandwidth", "-t", "shm", "-m", "1:4", "-i", "25", "-x", "3"];
    let records = records(&arguments);
    let channels = ["shm 1 channel", "shm 2 channel", "shm 4 channel"];
    let floors = ["shm 1 floor", "shm 2 floor", "shm 4 floor"];
    let expected: Vec<&str> = floors
        .into_iter()
        .zip(channels)
        .flat_map(<[_; 2]>::from)
        .collect();
    assert_eq!(whats(&records), expected);
    for record in &records {
        assert_eq!(
            (&record["iterations"], &record["window"]),
            (&25.into(), &64.into())
        );
    }
}

#[test]
fn people_get_tables_that_their_scripts_can_read() {
    let arguments = ["bandwidth", "-t", "shm", "-m", "8,64", "-i", "5"];
    let done = output(&mut praas(&arguments));
    let text = String::from_utf8(done.stdout).expect("a table");
    let (comments, rows): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with('#'));
    assert!(
        comments
            .iter()
            .any(|line| line.contains("Bandwidth (MB/s)"))
    );
    assert!(comments.iter().any(|line| line.contains("commit")));
    for (row, size) in rows.iter().zip(["8", "64"]) {
        let mut words = row.split_whitespace();
        assert_eq!(words.next(), Some(size));
        let figure = words.next().and_then(|word| word.parse::<f64>().ok());
        assert!(figure > Some(0.0), "{row}");
    }
    assert_eq!(rows.len(), 2);
}

/// Fields of comma-separated values, as RFC 4180 has them.
fn csv_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let (mut quoted, mut characters) = (false, line.chars().peekable());
    while let Some(character) = characters.next() {
        let last = fields.len() - 1;
        match (character, quoted) {
            ('"', true) if characters.peek() == Some(&'"') => {
                fields[last].extend(characters.next());
            }
            ('"', _) => quoted = !quoted,
            (',', false) => fields.push(String::new()),
            (other, _) => fields[last].push(other),
        }
    }
    assert!(!quoted, "{line}");
    fields
}

/// Checks that elements end where they must and attributes are quoted.
fn xml_check(text: &str) {
    let mut open = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        assert!(
            !rest[..at].contains('>'),
            "a stray end before {}",
            &rest[at..]
        );
        let end = at + rest[at..].find('>').expect("a tag ends");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = |tag: &str| tag.split_whitespace().next().unwrap_or_default().to_owned();
        match (tag.strip_prefix('/'), tag.ends_with('/')) {
            (Some(closed), _) => assert_eq!(open.pop(), Some(name(closed))),
            (None, true) => {}
            (None, false) => open.push(name(tag)),
        }
    }
    assert_eq!(open, Vec::<String>::new());
}

#[test]
fn records_go_to_files_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (csv, svg) = (file("figures.csv"), file("figures.svg"));
    let files = ["--csv", &csv, "--svg", &svg];
    let arguments = ["latency", "-t", "shm,tcp", "-m", "8:64", "-i", "20"];
    let records = records(&[&arguments[..], &files].concat());
    assert_eq!(records.len(), 2 * 4 * 3);

    let csv = std::fs::read_to_string(csv).expect("the file is there");
    let mut rows = csv.lines().map(csv_fields);
    let names = rows.next().expect("names");
    let at = |name| {
        names
            .iter()
            .position(|other| other == name)
            .expect("a column")
    };
    let rows: Vec<Vec<String>> = rows.collect();
    assert_eq!(rows.len(), records.len());
    for (row, record) in rows.iter().zip(&records) {
        assert_eq!(row.len(), names.len());
        for name in ["what", "transport", "commit"] {
            assert_eq!(row[at(name)], text(record, name));
        }
        assert_eq!(row[at("machine_cpu")], text(&record["machine"], "cpu"));
        let p50: f64 = row[at("p50_ns")].parse().expect("a number");
        // What reads JSON here is exact but for the last bit.
        let other = record["p50_ns"].as_f64().expect("a number");
        assert!((p50 - other).abs() <= p50 * 1e-12, "{p50} and {other}");
        assert_eq!(
            row[at("floor_ratio")].is_empty(),
            record["floor_ratio"].is_null()
        );
    }

    let svg = std::fs::read_to_string(svg).expect("the file is there");
    assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    xml_check(&svg);
    // Floor, channel and invocation, for each of both transports.
    assert_eq!(svg.matches("<polyline").count(), 6);
    assert_eq!(svg.matches("<circle").count(), 6 * 4);
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

/// A peer for `--connect`; it ends with this.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(sessions: &str) -> Self {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--json"];
        let mut child = praas(&arguments)
            .args(["--sessions", sessions])
            .env("PRAAS_BENCH_SECRET", SECRET)
            .stdout(Stdio::piped())
            .spawn()
            .expect("praas runs");
        let mut line = String::new();
        let out = child.stdout.take().expect("standard output");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let said: Value = serde_json::from_str(&line).expect("an object");
        assert!(said.get("secret").is_none());
        let address = text(&said, "listen").to_owned();
        Self { child, address }
    }

    fn connect(&self, arguments: &[&str], secret: &str) -> Output {
        let mut command = praas(arguments);
        command.args(["--connect", &self.address, "--json"]);
        output(command.env("PRAAS_BENCH_SECRET", secret))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_peer_is_served_elsewhere() {
    let mut server = Server::start("3");
    for (kind, count) in [("latency", 3), ("bandwidth", 2), ("connect", 2)] {
        let mut arguments = vec![kind, "--runs", "2"];
        if kind != "connect" {
            arguments.extend(["--bytes", "100000"]);
        }
        let records = lines(&server.connect(&arguments, SECRET));
        assert_eq!(records.len(), count, "{kind}");
        for record in &records {
            record_check(record);
            assert_eq!(text(record, "transport"), "tcp");
            assert_eq!(record["peer_machine"], record["machine"]);
            assert_eq!(text(&record["settings"], "connect"), server.address);
        }
    }
    let ended = server.child.wait().expect("it ends after three");
    assert!(ended.success());
}

#[test]
fn nobody_gets_in_without_the_secret() {
    let server = Server::start("1");
    let refused = server.connect(&["connect", "--runs", "1"], "known to nobody else");
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("the secret is another one"), "{errors}");
    // It serves on.
    let records = lines(&server.connect(&["connect", "--runs", "1"], SECRET));
    assert_eq!(records.len(), 2);
}

fn failed(command: &mut Command) -> (Option<i32>, String) {
    let done = output(command);
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    (done.status.code(), errors)
}

#[test]
fn what_cannot_be_measured_is_a_wrong_use() {
    for (wrong, why) in [
        (&["latency", "--bytes", "0"][..], "a size is empty"),
        (&["latency", "--bytes", "12parsecs"], "no size"),
        (&["latency", "--bytes", "8:4"], "no range"),
        (&["bandwidth", "--bytes", "1G"], "too many"),
        (&["latency", "--transport", "pigeon"], "no transport"),
        (&["latency", "--what", "nothing"], "cannot be measured"),
        (&["latency", "--pin", "0"], "two CPU numbers"),
        (
            &["rate", "--what", "floor,invoke"],
            "'invoke' is not measured",
        ),
        (&["rate", "--window", "0"], "a window of 0"),
        (&["put", "-W", "1000000"], "a window of 1000000"),
        (&["connect", "-i", "0"], "0"),
        (&["latency", "--secret-file", "f"], "--connect"),
        (
            &["latency", "--connect", "127.0.0.1:1"],
            "PRAAS_BENCH_SECRET",
        ),
        (
            &["serve", "--listen", "127.0.0.1:0", "--sessions", "0"],
            "0",
        ),
    ] {
        let (code, errors) = failed(&mut praas(wrong));
        assert_eq!(code, Some(2), "{wrong:?}: {errors}");
        assert!(errors.contains(why), "{wrong:?}: {errors}");
    }
    let mut remote = praas(&["latency", "--connect", "127.0.0.1:1", "-t", "shm"]);
    let (code, errors) = failed(remote.env("PRAAS_BENCH_SECRET", SECRET));
    assert_eq!(code, Some(2));
    assert!(errors.contains("'shm' stays within a host"), "{errors}");
    let mut short = praas(&["serve", "--listen", "127.0.0.1:0"]);
    let (code, errors) = failed(short.env("PRAAS_BENCH_SECRET", "short"));
    assert_eq!(code, Some(2));
    assert!(errors.contains("too short"), "{errors}");
}

#[test]
fn a_secret_that_others_can_read_is_none() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, SECRET).expect("a file");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("its owner may");
    let name = file.to_str().expect("UTF-8");
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--secret-file", name];
    let (code, errors) = failed(&mut praas(&arguments));
    assert_eq!(code, Some(2));
    assert!(errors.contains("can be read by others"), "{errors}");
}

#[test]
fn who_cannot_be_reached_is_named() {
    // A port that was free a moment ago, and that nobody listens at.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("its address").to_string();
    drop(free);
    let mut nobody = praas(&["latency", "--connect", &address]);
    let (code, errors) = failed(nobody.env("PRAAS_BENCH_SECRET", SECRET));
    assert_eq!(code, Some(1));
    assert!(errors.contains(&address), "{errors}");
    let folder = "/nowhere/figures.csv";
    let (code, errors) = failed(&mut praas(&["connect", "--csv", folder]));
    assert_eq!(code, Some(1));
    assert!(errors.contains(folder), "{errors}");
}

/// Hundredths of a second that a process has used a CPU for.
fn busy(process: u32) -> u64 {
    let read = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let (_, fields) = read.rsplit_once(')').unwrap_or_default();
    let used = fields.split_whitespace().nth(11);
    used.map_or(0, |used| used.parse().expect("a number"))
}

/// The children of a process.
fn children(of: u32) -> Vec<u32> {
    let path = format!("/proc/{of}/task/{of}/children");
    let read = std::fs::read_to_string(Path::new(&path)).unwrap_or_default();
    let numbers = read.split_whitespace().map(str::parse);
    numbers.collect::<Result<_, _>>().expect("process ids")
}

#[test]
fn a_peer_that_dies_in_the_middle_is_an_error() {
    for kind in ["latency", "bandwidth", "put"] {
        let arguments = [kind, "-t", "shm", "-m", "8", "--runs", "1000000"];
        let measuring = praas(&arguments)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("praas runs");
        let peer = praas_tests::cluster_lab::eventually("a peer measures", || {
            let peer = children(measuring.id()).first().copied();
            peer.filter(|peer| busy(*peer) > 30)
        });
        let killed = Command::new("kill")
            .args(["-9", &peer.to_string()])
            .status();
        assert!(killed.expect("kill runs").success());
        let done = measuring.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{errors}");
        // Who died is named, or what it leaves unknown, if an invocation was under way.
        let told = ["peer", "the process died or was lost"];
        assert!(told.iter().any(|told| errors.contains(told)), "{errors}");
    }
}

#[test]
fn a_transfer_is_measured_beside_a_channel() {
    let size = ["--bytes", "2M", "--objects", "16", "--transfers", "2"];
    let calls = [
        "--rate",
        "200",
        "--quiet-ms",
        "50",
        "--transport",
        "shm,tcp",
    ];
    let all = [&["transfer"], &size[..], &calls[..]].concat();
    let records = records(&all);
    assert_eq!(records.len(), 2);
    for (record, transport) in records.iter().zip(["shm", "tcp"]) {
        assert_eq!(
            (text(record, "bench"), text(record, "transport")),
            ("transfer", transport)
        );
        assert_eq!(
            (&record["bytes"], &record["transfers"]),
            (&(2 << 20).into(), &2.into())
        );
        for name in ["total_ms", "channel_ms", "frozen_ms", "gap_ms", "rounds"] {
            let [median, max] = ["median", "max"].map(|of| record[name][of].as_f64());
            assert!(median > Some(0.0) && max >= median, "{name} of {record}");
        }
        // All of it went, and what callers wrote meanwhile.
        assert!(
            record["served_bytes"]["min"].as_f64() >= Some(2e6),
            "{record}"
        );
        assert!(record["channel_share"].as_f64() > Some(0.0), "{record}");
        for when in ["during", "outside"] {
            let figures = &record[when];
            assert!(figures["calls"].as_u64() > Some(0), "{record}");
            assert!(figures["max_us"].as_f64() >= figures["p50_us"].as_f64());
        }
    }
    let done = output(&mut praas(&["transfer", "--bytes", "2G", "--objects", "1"]));
    assert_eq!(done.status.code(), Some(2));
}
