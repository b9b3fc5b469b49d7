//! A cluster of one node in a directory of its own, used through the `praas` command.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A run directory and the program that works in it. What still runs at its end is killed.
#[derive(Debug)]
pub struct Lab {
    program: PathBuf,
    dir: TempDir,
}

impl Lab {
    /// A directory in which nothing runs. `program` is `praas`.
    ///
    /// # Panics
    /// No directory is to be had.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let dir = tempfile::Builder::new().prefix("praas-lab-").tempdir();
        Self {
            program: program.into(),
            dir: dir.expect("a directory"),
        }
    }

    /// The run directory. It may not be there.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The module of functions in `examples/lab.rs`, which Cargo builds beside `praas`.
    ///
    /// # Panics
    /// It was not built.
    pub fn module(&self) -> PathBuf {
        let folder = self.program.parent().expect("a folder");
        let path = folder.join("examples/liblab.so");
        assert!(
            path.exists(),
            "{} is missing: build all targets",
            path.display()
        );
        path
    }

    /// `praas` with these arguments, for this directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null());
        command.env("PRAAS_RUN_DIR", self.run_dir());
        command
    }

    /// Runs `praas`; how it ended and what it wrote.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn praas(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("praas runs")
    }

    /// Runs `praas --json`, which must succeed; the objects that it wrote.
    ///
    /// # Panics
    /// It fails, or writes something else.
    pub fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let mut command = self.command(arguments);
        let output = command.arg("--json").output().expect("praas runs");
        assert!(
            output.status.success(),
            "praas {arguments:?}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.logs()
        );
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let objects = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        objects.collect()
    }

    /// The same, for answers of one object.
    ///
    /// # Panics
    /// As [`Lab::json`]; there are none, or more.
    pub fn one(&self, arguments: &[&str]) -> Value {
        let mut objects = self.json(arguments);
        assert_eq!(objects.len(), 1, "{objects:?}");
        objects.remove(0)
    }

    /// Runs `praas --json`, which must fail with this exit code; the problem that it wrote.
    ///
    /// # Panics
    /// It ends otherwise.
    pub fn problem(&self, code: i32, arguments: &[&str]) -> Value {
        let output = self.command(arguments).arg("--json").output();
        let output = output.expect("praas runs");
        assert_eq!(
            output.status.code(),
            Some(code),
            "praas {arguments:?}: {output:?}"
        );
        serde_json::from_slice(&output.stderr).expect("a problem")
    }

    /// Runs `praas` with something on its standard input; what it wrote.
    ///
    /// # Panics
    /// It fails.
    pub fn piped(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("praas runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "praas {arguments:?}");
        output.stdout
    }

    /// Starts `praas` in the background.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn background(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("praas runs")
    }

    /// The beginning of an error: what the daemons wrote last.
    fn logs(&self) -> String {
        let mut text = String::new();
        for name in ["control", "agent"] {
            let path = self.run_dir().join(format!("logs/{name}.log"));
            let log = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            text += &format!("\n-- {name}.log\n");
            for line in lines.iter().rev() {
                text += &format!("{line}\n");
            }
        }
        text
    }

    /// Processes that were started for this directory and live, other than commands.
    ///
    /// # Panics
    /// `/proc` cannot be read.
    pub fn living(&self) -> Vec<(u32, String)> {
        self.living_in(&self.run_dir().to_string_lossy())
    }

    /// The same for another run directory.
    ///
    /// # Panics
    /// `/proc` cannot be read.
    pub fn living_in(&self, run_dir: &str) -> Vec<(u32, String)> {
        let mut living = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc") {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(run_dir) {
                living.push((pid, line));
            }
        }
        living
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.run_dir().exists() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // Nobody is left to tell.
        let _ = self.praas(&["down", "--kill"]);
    }
}

/// Waits until `holds`, with a deadline.
///
/// # Panics
/// It does not.
pub fn eventually<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Kills a process as `kill -9` does, and waits until it has let go of everything.
///
/// # Panics
/// There is none of this number, or it does not end.
pub fn kill(pid: u32) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(pid.expect("a process id"), PidfdFlags::empty()).expect("it lives");
    pidfd_send_signal(&pidfd, Signal::KILL).expect("it lives");
    let patience = Timespec::try_from(PATIENCE).expect("a minute");
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience));
    assert_eq!(ended, Ok(1), "it does not end");
}

/// Whether a path is there.
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Another node on this machine: an agent with a run directory of its own, and the control plane of
/// a [`Lab`]. What still runs at its end is killed.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: TempDir,
    agent: Option<Child>,
}

impl Node {
    /// Starts its agent, and waits until it is connected.
    ///
    /// # Panics
    /// It does not connect.
    pub fn start(lab: &Lab, name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("praas-node-").tempdir();
        let mut node = Self {
            name: name.into(),
            dir: dir.expect("a directory"),
            agent: None,
        };
        std::fs::create_dir(node.run_dir()).expect("a directory");
        for file in ["control.addr", "cluster.secret"] {
            let (from, to) = (lab.run_dir().join(file), node.run_dir().join(file));
            std::os::unix::fs::symlink(from, to).expect("a link");
        }
        node.agent_start(lab);
        node
    }

    /// Its run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The process id of its agent, if that runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Starts its agent, which does not run, and waits until it is connected.
    ///
    /// # Panics
    /// It does not connect.
    pub fn agent_start(&mut self, lab: &Lab) {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.path().join("agent.log"));
        let log = log.expect("a log");
        let storage = lab.run_dir().join("swap");
        let child = Command::new(&lab.program)
            .args(["agent", "--node", &self.name, "--run-dir"])
            .arg(self.run_dir())
            .arg("--set")
            .arg(format!("agent.storage={}", storage.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.agent = Some(child.expect("praas runs"));
        eventually("the other node is connected", || {
            let nodes = lab.json(&["node", "list"]);
            let here = |node: &&Value| node["name"] == *self.name && node["connected"] == true;
            nodes.iter().find(here).map(drop)
        });
    }

    /// Kills its agent as `kill -9` does.
    pub fn agent_kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            // It may have ended.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// What its agent and hosts wrote, for a test that fails.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let mut paths = vec![self.dir.path().join("agent.log")];
        let logs = self.run_dir().join("logs");
        for folder in std::fs::read_dir(logs).into_iter().flatten().flatten() {
            let files = std::fs::read_dir(folder.path()).into_iter().flatten();
            paths.extend(files.flatten().map(|file| file.path()));
        }
        for path in paths {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            text += &format!("\n-- {}\n", path.display());
            let lines: Vec<&str> = log.lines().rev().take(40).collect();
            for line in lines.iter().rev() {
                text += &format!("{line}\n");
            }
        }
        text
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        self.agent_kill();
        let run_dir = self.run_dir();
        let run_dir = run_dir.to_string_lossy();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if String::from_utf8_lossy(&line).contains(&*run_dir)
                && let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
            {
                // It may have ended just now.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}
