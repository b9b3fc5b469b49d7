//! `praas demo`, end to end: what it finds, and that nothing of it is left.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use praas_tests::cluster_lab::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// What scikit-learn finds: examples/kmeans/recompute.py.
const INERTIA: f64 = 1_167_859.384_006_598_5;
const PATIENCE: Duration = Duration::from_secs(120);

/// A demonstration in a directory for temporary files that is all its own.
struct Run {
    tmp: TempDir,
    child: Child,
}

impl Run {
    fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, |_| ())
    }

    fn start_with(arguments: &[&str], environment: impl FnOnce(&mut Command)) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_praas"));
        command
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", tmp.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        environment(&mut command);
        let child = command.spawn().unwrap();
        Self { tmp, child }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the end: the status, standard output, and what is left of standard error. One
    /// that takes too long is asked to end, so that it cleans up.
    fn end(mut self) -> (ExitStatus, String, String) {
        let stderr = self.child.stderr.take().map(BufReader::new);
        self.end_with(stderr.unwrap())
    }

    fn end_with(mut self, mut stderr: impl Read + Send + 'static) -> (ExitStatus, String, String) {
        let mut stdout = self.child.stdout.take().unwrap();
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            sender.send(text)
        });
        let stdout = ended.recv_timeout(PATIENCE);
        if stdout.is_err() {
            self.signal(Signal::TERM);
        }
        let status = self.child.wait().unwrap();
        let stderr = read.join().unwrap();
        nothing_left(self.tmp.path());
        (status, stdout.expect("it ends in time"), stderr)
    }
}

/// No process has anything to do with the directory, and it is empty.
fn nothing_left(tmp: &Path) {
    assert_eq!(left(tmp), None);
}

/// A process that has something to do with the directory, or what is in it.
fn left(tmp: &Path) -> Option<String> {
    let needle = tmp.to_str().unwrap().as_bytes();
    let mentions = |path: &Path| {
        let text = std::fs::read(path).unwrap_or_default();
        text.windows(needle.len()).any(|window| window == needle)
    };
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        for file in ["cmdline", "environ"] {
            let file = path.join(file);
            if mentions(&file) {
                return Some(format!("{} still runs: {file:?}", path.display()));
            }
        }
    }
    let files: Vec<_> = std::fs::read_dir(tmp).unwrap().collect();
    (!files.is_empty()).then(|| format!("{files:?} are left"))
}

/// Checks what it finds over a transport: the inertia.
fn finds_over(transport: &str) -> f64 {
    let run = Run::start(&["--json", "--transport", transport, "--latency-ms", "12"]);
    let (status, stdout, stderr) = run.end();
    assert!(status.success(), "{status}: {stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let demo: Value = serde_json::from_str(&stdout).unwrap();
    let inertia = demo["inertia"].as_f64().unwrap();
    assert!((inertia / INERTIA - 1.0).abs() < 1e-9, "{inertia}");
    assert_eq!(demo["iterations"], 14);
    let sizes = demo["sizes"].as_array().unwrap();
    let points: u64 = sizes.iter().map(|size| size.as_u64().unwrap()).sum();
    assert_eq!((sizes.len(), points), (10, 1797));
    assert_eq!(demo["transport"], transport);
    assert_eq!(demo["swapped"], true);
    latency_check(demo["latency"].as_array().unwrap());
    inertia
}

/// Every figure of the table is there, with the fields of `docs/bench.md`.
fn latency_check(records: &[Value]) {
    let mut wanted = Vec::new();
    for transport in ["shm", "unix", "tcp"] {
        for bytes in [8, 1 << 10, 1 << 20] {
            for what in ["floor", "channel", "invoke"] {
                wanted.push((what, transport, bytes));
            }
        }
    }
    for record in records {
        let text = |name: &str| record[name].as_str().unwrap();
        let of = (text("what"), text("transport"), record["bytes"].as_u64());
        let place = wanted
            .iter()
            .position(|&(what, transport, bytes)| of == (what, transport, Some(bytes)));
        wanted.remove(place.unwrap_or_else(|| panic!("{record} once too often")));
        assert_eq!(text("bench"), "latency", "{record}");
        let (p50, p99) = (record["p50_ns"].as_f64(), record["p99_ns"].as_f64());
        assert!(p50 > Some(0.0) && p50 <= p99, "{record}");
        let (channel, invoke) = (of.0 == "channel", of.0 == "invoke");
        assert_eq!(record["floor_ratio"].is_f64(), channel, "{record}");
        assert_eq!(record["over_channel_ns"].is_f64(), invoke, "{record}");
    }
    assert!(wanted.is_empty(), "{wanted:?} are missing");
}

/// One after the other: two pairs of processes that spin would measure one another.
#[test]
fn the_digits_are_clustered_the_same_over_all_transports() {
    let inertias = ["shm", "unix", "tcp"].map(|transport| finds_over(transport).to_bits());
    assert_eq!(inertias, [inertias[0]; 3]);
}

/// The settings of a cluster of the user's own are not the demonstration's.
#[test]
fn it_keeps_to_itself() {
    let own = tempfile::tempdir().unwrap();
    let run = Run::start_with(&["--latency-ms", "0", "--json"], |command| {
        command
            .env("PRAAS_CONTROL_HTTP_LISTEN", "127.0.0.1:1")
            .env("PRAAS_AGENT_CONTROL", "tcp:127.0.0.1:1")
            .env("PRAAS_AGENT_STORAGE", own.path());
    });
    let (status, stdout, stderr) = run.end();
    assert!(status.success(), "{status}: {stderr}");
    assert!(stdout.contains("\"latency\":[]"), "{stdout}");
    assert_eq!(std::fs::read_dir(own.path()).unwrap().count(), 0);
}

#[test]
fn people_see_how_it_goes_and_what_came_out() {
    let (status, stdout, stderr) = Run::start(&["--latency-ms", "0", "--workers", "1"]).end();
    assert!(status.success(), "{status}: {stderr}");
    assert!(stdout.contains("1797 handwritten digits"), "{stdout}");
    for step in ["starting processes", "iteration 14", "worker-0 is back"] {
        assert!(stderr.contains(step), "{step}: {stderr}");
    }
}

#[test]
fn a_signal_leaves_nothing_at_any_time() {
    for (step, signal, name) in [
        ("starting a control plane", Signal::TERM, "SIGTERM"),
        ("starting processes", Signal::INT, "SIGINT"),
        ("clustering", Signal::HUP, "SIGHUP"),
        ("worker-2 is swapped out", Signal::TERM, "SIGTERM"),
    ] {
        let mut run = Run::start(&["--latency-ms", "0"]);
        let mut stderr = BufReader::new(run.child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains(step) {
            line.clear();
            let bytes = stderr.read_line(&mut line).unwrap();
            assert!(bytes > 0, "it ended before '{step}'");
        }
        run.signal(signal);
        let (status, stdout, stderr) = run.end_with(stderr);
        assert_eq!(status.code(), Some(1), "{step}: {stderr}");
        assert_eq!(stdout, "", "{step}");
        assert!(stderr.contains(name), "{step}: {stderr}");
    }
}

#[test]
fn killed_it_takes_all_along() {
    let mut run = Run::start(&["--latency-ms", "0"]);
    let mut stderr = BufReader::new(run.child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("clustering") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before");
    }
    run.signal(Signal::KILL);
    run.child.wait().unwrap();
    eventually("nothing is left", || {
        left(run.tmp.path()).is_none().then_some(())
    });
}

#[test]
fn without_its_functions_it_says_where_it_looked() {
    let elsewhere = tempfile::tempdir().unwrap();
    let program = elsewhere.path().join("praas");
    std::fs::copy(env!("CARGO_BIN_EXE_praas"), &program).unwrap();
    let output = Command::new(&program).arg("demo").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let path = elsewhere.path().join("deps/libpraas_kmeans.so");
    assert!(stderr.contains(path.to_str().unwrap()), "{stderr}");
    assert!(stderr.contains("cargo build"), "{stderr}");
}
