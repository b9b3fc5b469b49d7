//! A process without threads: whoever holds it steps it. For deterministic simulations.
//!
//! ```text
//!   step: progress on the endpoint --> a job --> the function, on this stack --> the answer
//!                                                   | waits
//!                                                   v
//!                                      progress, meanwhile(): the others' steps, on this stack
//! ```
//!
//! It is the same engine: only who calls it differs, and what a wait does. Since waits nest on one
//! stack, an outer one ends after the inner ones, however early its answer is there.

use praas_transport::{BufPool, Endpoint, clock};

use super::engine::{Core, Engine};
use super::{Process, ProcessConfig, Restore, StartError, endpoint_make};
use crate::swap::ProcessImage;
use praas_transport::sync::atomic::Ordering;

/// Lets the others go on, and time pass, while a stepped process waits.
pub type Meanwhile = fn();

/// Functions of one process that can be on the stack at once.
const STACKED_MAX: usize = 64;

impl Process {
    /// Starts a process, as [`Process::start_from`] does, that only [`Process::step`] moves.
    ///
    /// # Errors
    /// As [`Process::start_from`].
    pub fn start_stepped<E: From<StartError>>(
        config: ProcessConfig,
        meanwhile: Meanwhile,
        restore: impl FnOnce(&BufPool) -> Result<Option<ProcessImage>, E>,
    ) -> Result<Self, E> {
        config.settings.check().map_err(StartError::from)?;
        let mut endpoint = endpoint_make(&config)?;
        let image = restore(endpoint.pool())?;
        endpoint
            .listen_any(&config.listen)
            .map_err(StartError::from)?;
        let restore = image.map(Restore::from);
        let process = Self::start_on(endpoint, config, restore, Some(meanwhile), Vec::new())?;
        for _ in 0..STACKED_MAX {
            process.engine.shared.crew.join();
        }
        Ok(process)
    }

    /// One round on the endpoint, and at most one function; whether anything happened.
    pub fn step(&self) -> bool {
        let engine = &self.engine;
        let crew = &engine.shared.crew;
        if engine.shared.ended.load(Ordering::Relaxed) {
            return false;
        }
        let Some(mut core) = engine.token.try_take() else {
            return false;
        };
        let happened = engine.core_step(&mut core);
        let job = engine.lead(&mut core, true, Some(clock::now()), || false);
        let Some(job) = job else {
            return happened;
        };
        let number = crew.running() + crew.blocked() - 1;
        let worker = crew.worker(number).filter(|_| number < STACKED_MAX);
        let worker = worker.expect("no more functions run at once than there are workers");
        drop(engine.job_run(number, &worker, job, Some(core)));
        crew.run_end();
        true
    }

    /// Ends the process as a kill does: nobody hears a word, and what was under way is gone.
    pub fn kill(&self) {
        self.abandon();
        if let Some(mut core) = self.engine.token.try_take() {
            core.endpoint.die();
        }
    }
}

impl Engine {
    /// One round on the endpoint, and what time has made due.
    pub(super) fn core_step(&self, core: &mut Core) -> bool {
        let Core {
            endpoint, serve, ..
        } = core;
        let mut happened = endpoint.progress(serve) > 0;
        let now = clock::now();
        if endpoint.timer_next().is_some_and(|timer| timer <= now) {
            Endpoint::wait(endpoint, Some(now));
        }
        if serve.peers.timer_next().is_some_and(|timer| timer <= now) {
            serve.peers.tick(endpoint, now);
            happened = true;
        }
        happened
    }

    /// A function of a stepped process waits: its endpoint and the others go on.
    pub(super) fn step_waiting(&self, meanwhile: Meanwhile, stop: impl FnMut() -> bool) {
        if let Some(mut core) = self.token.try_take() {
            self.core_step(&mut core);
            self.lead(&mut core, false, Some(clock::now()), stop);
        }
        meanwhile();
    }
}
