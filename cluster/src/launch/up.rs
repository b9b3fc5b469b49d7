//! Starting what does not run.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use praas_control::ControlAddr;
use praas_transport::Address;
use serde::Serialize;

use super::{LaunchError, Progress, wait_until};
use crate::daemon::{DaemonKind, LaunchLock, ProcessHandle, daemon_find};
use crate::run_dir::{AgentAddr, RUN_DIR_ENV, RunDir};
use crate::session::Session;
use crate::spawn::{Spawn, Watched, log_open};

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 15;
/// Bytes of a log that are looked at for them.
const TAIL_BYTES: u64 = 16 << 10;
/// How long one look at the control plane may take.
const ASK: Duration = Duration::from_secs(2);

/// How to start what does not run.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The `praas` program; left out, the one that runs now.
    pub program: Option<PathBuf>,
    /// Settings for the daemons, as `key=value`, above file and environment.
    pub settings: Vec<String>,
    /// How long it may take in all.
    pub timeout: Duration,
    /// Who is told what is going on.
    pub progress: Progress,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self {
            program: None,
            settings: Vec::new(),
            timeout: Duration::from_secs(60),
            progress: Progress::default(),
        }
    }
}

/// What runs after `up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Up {
    /// The run directory.
    pub run_dir: PathBuf,
    /// Where HTTP is served.
    pub http: String,
    /// The node's name.
    pub node: String,
    /// Where clients find the directory.
    pub directory: Vec<Address>,
    /// The control plane.
    pub control: Daemon,
    /// The agent.
    pub agent: Daemon,
}

/// A daemon that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Daemon {
    /// Its process id.
    pub pid: u32,
    /// Whether it was started now, rather than found.
    pub started: bool,
}

/// Starts control plane and agent where they do not run, and waits until both serve.
///
/// # Errors
/// The directory cannot be used; a daemon does not start, ends, or does not serve in time. What
/// was started is left running if it is only slow.
pub fn up(run_dir: &RunDir, options: &UpOptions) -> Result<Up, LaunchError> {
    let deadline = Instant::now() + options.timeout;
    let locked = LaunchLock::take(run_dir.root(), deadline);
    let (run_dir, _lock) = locked.map_err(|source| LaunchError::RunDir {
        dir: run_dir.root().into(),
        source,
    })?;
    let launch = Launch {
        run_dir: &run_dir,
        options,
        deadline,
    };
    options.progress.step("starting the control plane");
    let (control, http) = launch.ensure(DaemonKind::Control, |pid| launch.control_serves(pid))?;
    options.progress.step("starting the agent");
    let (agent, address) = launch.ensure(DaemonKind::Agent, |pid| launch.agent_serves(pid))?;
    Ok(Up {
        run_dir: run_dir.root().into(),
        http,
        node: address.node,
        directory: address.directory,
        control,
        agent,
    })
}

/// Starts an agent alone, and waits until the control plane has it. Where that is, and what lets a
/// user in there, is in the run directory already.
///
/// # Errors
/// As [`up`].
pub(crate) fn agent_up(run_dir: &RunDir, options: &UpOptions) -> Result<Daemon, LaunchError> {
    let deadline = Instant::now() + options.timeout;
    let locked = LaunchLock::take(run_dir.root(), deadline);
    let (run_dir, _lock) = locked.map_err(|source| LaunchError::RunDir {
        dir: run_dir.root().into(),
        source,
    })?;
    let launch = Launch {
        run_dir: &run_dir,
        options,
        deadline,
    };
    let (agent, _) = launch.ensure(DaemonKind::Agent, |pid| launch.agent_serves(pid))?;
    Ok(agent)
}

struct Launch<'a> {
    run_dir: &'a RunDir,
    options: &'a UpOptions,
    deadline: Instant,
}

/// What is missing until a daemon serves.
type Missing = String;

impl Launch<'_> {
    /// Sees that a daemon runs and serves; `serves` gives what is known of it once it does.
    fn ensure<T>(
        &self,
        kind: DaemonKind,
        serves: impl Fn(u32) -> Result<T, Missing>,
    ) -> Result<(Daemon, T), LaunchError> {
        let (child, found, log_start) = match self.find(kind)? {
            Some(handle) => (None, Some(handle), 0),
            None => {
                let (child, log_start) = self.spawn(kind)?;
                (Some(child), None, log_start)
            }
        };
        let pid = match (&child, &found) {
            (Some(child), _) => child.pid(),
            (None, Some(found)) => found.pid(),
            (None, None) => 0,
        };
        let mut missing = Missing::new();
        let served = wait_until(self.deadline, || {
            match serves(pid) {
                Ok(what) => return Ok(Some(what)),
                Err(why) => missing = why,
            }
            match ended(child.as_ref(), found.as_ref())? {
                None => Ok(None),
                Some(status) => Err(self.died(kind, status, log_start)),
            }
        })?;
        let started = child.is_some();
        match served {
            Some(what) => Ok((Daemon { pid, started }, what)),
            None => Err(LaunchError::Silent {
                what: kind.title(),
                pid,
                timeout: self.options.timeout,
                reason: missing,
                log: self.run_dir.log(kind.name()),
            }),
        }
    }

    fn find(&self, kind: DaemonKind) -> Result<Option<ProcessHandle>, LaunchError> {
        daemon_find(self.run_dir, kind).map_err(|source| LaunchError::System {
            doing: format!("find out whether the {} runs", kind.title()),
            source,
        })
    }

    fn died(&self, kind: DaemonKind, status: String, log_start: u64) -> LaunchError {
        let log = self.run_dir.log(kind.name());
        LaunchError::Died {
            what: kind.title(),
            status,
            tail: log_tail(&log, log_start),
            log,
        }
    }

    /// Starts a daemon; also how long its log was before.
    fn spawn(&self, kind: DaemonKind) -> Result<(Watched, u64), LaunchError> {
        let program = match &self.options.program {
            Some(program) => Ok(program.clone()),
            None => std::env::current_exe(),
        };
        let program = program.map_err(|source| LaunchError::System {
            doing: "find the program that runs".into(),
            source,
        })?;
        let mut command: Vec<OsString> = vec![
            program.clone().into(),
            kind.name().into(),
            "--run-dir".into(),
            self.run_dir.root().into(),
        ];
        for setting in &self.options.settings {
            command.extend(["--set".into(), setting.into()]);
        }
        let start = || {
            let null = File::open("/dev/null")?;
            let log = log_open(&self.run_dir.log(kind.name()))?;
            let log_start = log.metadata()?.len();
            let spawn = Spawn {
                command: &command,
                inherit: None,
                // Where the page lies by which all processes of the node share their spinning.
                environment: &[(RUN_DIR_ENV.into(), self.run_dir.root().into())],
                stdin: null.as_fd(),
                output: log.as_fd(),
                extra: None,
            };
            Ok((spawn.start()?, log_start))
        };
        start().map_err(|source| LaunchError::Spawn {
            what: kind.title(),
            program,
            source,
        })
    }

    fn control_serves(&self, _: u32) -> Result<String, Missing> {
        // The file may be an older one's: whoever answers there now is asked to show that it can.
        let session = Session::open(self.run_dir).map_err(|error| error.to_string())?;
        let path = self.run_dir.control().control_addr;
        let address = ControlAddr::read(&path).map_err(|error| error.to_string())?;
        let control = session.control.with_wait(Duration::ZERO);
        // The first needs no token, the second tells that ours is good there.
        control.health().map_err(|error| error.to_string())?;
        control.node_list().map_err(|error| error.to_string())?;
        Ok(address.http)
    }

    fn agent_serves(&self, pid: u32) -> Result<AgentAddr, Missing> {
        let address = AgentAddr::read(&self.run_dir.agent_addr())
            .map_err(|error| format!("it has not said where it is ({error})"))?;
        if address.pid != pid {
            return Err("it has not said where it is yet".into());
        }
        let session = Session::open(self.run_dir).map_err(|error| error.to_string())?;
        let nodes = session.control.with_wait(ASK).node_list();
        let nodes = nodes.map_err(|error| error.to_string())?;
        match nodes.iter().find(|node| node.name == address.node) {
            Some(node) if node.connected => Ok(address),
            _ => Err(format!(
                "the control plane does not have node {} yet",
                address.node
            )),
        }
    }
}

/// How a daemon ended, if it has.
fn ended(
    child: Option<&Watched>,
    found: Option<&ProcessHandle>,
) -> Result<Option<String>, LaunchError> {
    let failed = |source| LaunchError::System {
        doing: "watch a daemon".into(),
        source,
    };
    if let Some(child) = child {
        let exit = child.exit().map_err(failed)?;
        return Ok(exit.map(|exit| exit.to_string()));
    }
    match found.map(|handle| handle.wait(Instant::now())) {
        Some(ended) => Ok(ended.map_err(failed)?.then(|| "it was ended".into())),
        None => Ok(None),
    }
}

/// The last lines of a log, from `start` on.
fn log_tail(path: &Path, start: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(
            start.max(length.saturating_sub(TAIL_BYTES)),
        ))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    match lines.get(from..) {
        Some(tail) if !tail.is_empty() => tail.join("\n"),
        _ => "(it wrote nothing)".into(),
    }
}
