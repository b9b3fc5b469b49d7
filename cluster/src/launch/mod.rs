//! The local launcher: `up` starts a control plane and an agent as daemons, `down` ends them.
//!
//! ```text
//!   up:   lock --> control runs? else start, wait for /healthz
//!              --> agent runs?   else start, wait until the control plane has it connected
//!   down: lock --> swap out (or stop) every process --> end agent --> hosts that are left
//!              --> end control --> nothing runs, no stale file
//! ```
//!
//! Both can be called at any time, by several at once, and after anything was killed: they look at
//! what runs, not at what was done before.

mod down;
mod up;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_control::ClientError;

pub use self::down::{Down, DownMode, DownOptions, down};
pub(crate) use self::up::agent_up;
pub use self::up::{Daemon, Up, UpOptions, up};
use crate::session::SessionError;

/// How often something that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What `up` and `down` are doing, for who wants to show it.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Show>>);

type Show = dyn Fn(&str) + Send + Sync;

impl Progress {
    /// Calls `show` with every step.
    pub fn new(show: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(show)))
    }

    fn step(&self, text: &str) {
        tracing::debug!("{text}");
        if let Some(show) = &self.0 {
            show(text);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// Why `up` or `down` did not get where it wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The run directory cannot be used, or others are at it.
    #[error("cannot use the run directory {dir}")]
    RunDir {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A daemon cannot be started at all.
    #[error("cannot start the {what}: {program}")]
    Spawn {
        /// What was to be started.
        what: &'static str,
        /// Its program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A daemon ended before it served.
    #[error("the {what} ended before it served ({status}); the end of {log}:\n{tail}")]
    Died {
        /// What it was.
        what: &'static str,
        /// How it ended.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines since the start.
        tail: String,
    },
    /// A daemon runs, but does not serve.
    #[error(
        "the {what} (process {pid}) does not serve within {timeout:?}: {reason}; \
         see {log}, or end it by `praas down --kill`"
    )]
    Silent {
        /// What it is.
        what: &'static str,
        /// Its process.
        pid: u32,
        /// How long was waited.
        timeout: Duration,
        /// What is missing.
        reason: String,
        /// Its log.
        log: PathBuf,
    },
    /// Who runs cannot be found out, or not be ended.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// There is no way in to the control plane that runs.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The control plane does not tell what there is.
    #[error("cannot {doing}")]
    Control {
        /// What was asked of it.
        doing: &'static str,
        /// Why.
        source: ClientError,
    },
    /// Processes did not swap out, or stop; nothing was ended.
    #[error(
        "{} did not {verb}, and nothing was taken down: {}; `praas down --stop` or `--kill` ends \
         them without keeping their state", count(.failed.len()), list(.failed)
    )]
    Processes {
        /// What was asked of them.
        verb: &'static str,
        /// Application, process, and why not.
        failed: Vec<(String, String, String)>,
    },
    /// Something does not end, not even by SIGKILL.
    #[error("processes {pids:?} do not end")]
    Left {
        /// Their numbers.
        pids: Vec<u32>,
    },
}

fn count(processes: usize) -> String {
    match processes {
        1 => "1 process".into(),
        more => format!("{more} processes"),
    }
}

fn list(failed: &[(String, String, String)]) -> String {
    let one = |(application, process, why): &(String, String, String)| {
        format!("{application}/{process} ({why})")
    };
    let mut shown: Vec<String> = failed.iter().take(5).map(one).collect();
    if failed.len() > shown.len() {
        shown.push("...".into());
    }
    shown.join(", ")
}

/// Waits until `done` gives something; `None` if it does not by the deadline.
fn wait_until<T, E>(
    deadline: Instant,
    mut done: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    loop {
        if let Some(value) = done()? {
            return Ok(Some(value));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::park_timeout(LOOK);
    }
}
