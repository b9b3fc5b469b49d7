//! `praas control`: the control plane of a run directory, in the foreground.

use std::io;

use praas_control::{Control, ControlConfig, ControlError};
use tokio::signal::unix::{SignalKind, signal};

use crate::daemon::{DaemonKind, DaemonLock, LockError};
use crate::gateway::ClusterGateway;
use crate::run_dir::RunDir;

/// Why the control plane did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlRunError {
    /// It is not the one of its run directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It cannot wait for signals.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// It cannot be started.
    #[error("cannot start the control plane")]
    Start(#[source] ControlError),
}

/// Runs the control plane until SIGTERM or SIGINT; then it lets requests end, for a while.
///
/// # Errors
/// One runs in this directory already; it cannot be started.
pub fn control_run(run_dir: &RunDir, mut config: ControlConfig) -> Result<(), ControlRunError> {
    let _lock = DaemonLock::take(run_dir, DaemonKind::Control)?;
    let most = connections_possible(files_max_raise());
    if config.connections_max > most {
        tracing::warn!(
            connections_max = most,
            "RLIMIT_NOFILE has no room for more connections"
        );
        config.connections_max = most;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(ControlRunError::Signals)?;
    // Before the start, so that a signal meanwhile is not lost, nor deadly.
    let signals = {
        let _inside = runtime.enter();
        signal(SignalKind::terminate()).and_then(|a| Ok((a, signal(SignalKind::interrupt())?)))
    };
    let (mut terminate, mut interrupt) = signals.map_err(ControlRunError::Signals)?;
    let gateway = ClusterGateway::new(config.transport.clone());
    let handle =
        Control::start(config, gateway, &run_dir.control()).map_err(ControlRunError::Start)?;
    let name = runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    });
    tracing::info!(signal = name, "the control plane ends");
    handle.shutdown();
    Ok(())
}

/// Raises the number of files that this process may have open as far as it may; the number.
fn files_max_raise() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    limit.unwrap_or(u64::MAX)
}

/// The HTTP connections that leave room for those of agents, for channels to hosts and for files:
/// nobody who only connects is to keep those out.
fn connections_possible(files_max: u64) -> usize {
    let reserve = (files_max / 4).max(256);
    usize::try_from(files_max.saturating_sub(reserve).max(16)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_what_matters_more() {
        assert_eq!(connections_possible(1024), 768);
        assert_eq!(connections_possible(20_000), 15_000);
        assert_eq!(connections_possible(100), 16);
        assert!(files_max_raise() >= 256);
    }
}
