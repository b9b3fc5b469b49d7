//! Since when the control plane has been out of reach, for an agent that is started anew: a lease
//! does not begin again with it.
//!
//! `agent.cut` in the run directory holds the milliseconds from the system's boot to the moment. It
//! is there only while an agent is cut off from a control plane that may live without it.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use super::config::AgentConfig;
use crate::run_dir::{RunDir, file_replace};

fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.try_into().unwrap_or_default()
}

/// Notes that the agent is cut off since then.
pub(super) fn cut_write(run_dir: &RunDir, since: Instant) {
    let at = since_boot().saturating_sub(since.elapsed()).as_millis();
    let path = run_dir.agent_cut();
    if let Err(error) = file_replace(&path, at.to_string().as_bytes()) {
        tracing::error!(path = %path.display(), %error, "cannot write when the lease began");
    }
}

/// Notes that it is not, or that there is nothing to fence.
pub(super) fn cut_clear(run_dir: &RunDir) {
    match fs::remove_file(run_dir.agent_cut()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(%error, "cannot remove agent.cut");
        }
        _ => {}
    }
}

/// Since when hosts of an agent before this one may have been cut off. Without a note it was
/// killed while all was well: no longer ago than hosts go without an agent. Whether there was a
/// note comes with it.
pub(super) fn cut_inherited(
    run_dir: &RunDir,
    config: &AgentConfig,
    now: Instant,
) -> (Instant, bool) {
    let grace = Duration::from_secs(config.agent_grace_s);
    let text = fs::read_to_string(run_dir.agent_cut());
    let noted = text.ok().and_then(|text| text.trim().parse().ok());
    let noted_for = noted.map(|at| since_boot().saturating_sub(Duration::from_millis(at)));
    let ago = noted_for.unwrap_or_default().max(grace);
    // The clock of `Instant` may have begun later; then it cannot have been longer ago either.
    (now.checked_sub(ago).unwrap_or(now), noted.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(dir.path()).unwrap();
        let config = AgentConfig {
            agent_grace_s: 1,
            ..AgentConfig::default()
        };
        let now = Instant::now();
        let grace = now - Duration::from_secs(1);
        assert_eq!(cut_inherited(&run_dir, &config, now), (grace, false));
        cut_write(&run_dir, now - Duration::from_secs(5));
        let (since, noted) = cut_inherited(&run_dir, &config, now);
        let off = (now - since).abs_diff(Duration::from_secs(5));
        assert!(noted && off < Duration::from_millis(500), "{off:?}");
        cut_clear(&run_dir);
        cut_clear(&run_dir);
        assert_eq!(cut_inherited(&run_dir, &config, now), (grace, false));
    }
}
