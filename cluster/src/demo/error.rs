//! Why the demonstration did not get to its end.

use std::io;
use std::path::PathBuf;

use praas_control::ClientError;
use praas_control::api::Process;
use praas_runtime::invocation::InvokeError;

use crate::bench::BenchError;
use crate::launch::LaunchError;
use crate::session::SessionError;

/// Why the demonstration did not get to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The functions are not where they are looked for.
    #[error(
        "the example's functions are missing: there is no {}; build them with `cargo build \
         --release -p praas-kmeans`", searched.iter().map(|path| path.display().to_string())
        .collect::<Vec<_>>().join(", nor ")
    )]
    Module {
        /// Where they were looked for.
        searched: Vec<PathBuf>,
    },
    /// The system refuses.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// The cluster does not come up, or does not go.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// There is no way in to the cluster.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The control plane refuses.
    #[error("cannot {doing}")]
    Control {
        /// What was asked of it.
        doing: String,
        /// Why not.
        source: ClientError,
    },
    /// A process is not in the state that it should be in.
    #[error("{process} {done}, but is {state}{}", error.as_ref().map_or(String::new(), |error| format!(": {error}")))]
    State {
        /// The process.
        process: String,
        /// What was done to it.
        done: &'static str,
        /// Its state and incarnation.
        state: String,
        /// Why it failed.
        error: Option<String>,
    },
    /// The digits cannot be read.
    #[error("the table of digits is damaged")]
    Digits(#[source] io::Error),
    /// An invocation failed.
    #[error("cannot {doing}")]
    Invoke {
        /// What it was to do.
        doing: String,
        /// Why it did not.
        source: InvokeError,
    },
    /// The clustering does not end.
    #[error("points still change their centres after {0} iterations")]
    Endless(u64),
    /// The latencies cannot be measured.
    #[error("cannot measure latencies")]
    Bench(#[source] BenchError),
    /// A signal ended it; everything was taken down.
    #[error("ended by {0}; everything was taken down")]
    Interrupted(&'static str),
}

impl DemoError {
    pub(super) fn system(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        Self::System { doing, source }
    }

    pub(super) fn control(doing: impl Into<String>, source: ClientError) -> Self {
        let doing = doing.into();
        Self::Control { doing, source }
    }

    pub(super) fn odd(done: &'static str, process: &Process) -> Self {
        Self::State {
            process: process.name.clone(),
            done,
            state: format!("{} in incarnation {}", process.state, process.incarnation),
            error: process.error.clone(),
        }
    }
}
