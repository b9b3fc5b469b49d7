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

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use praas_transport::{BufPool, Endpoint, clock};

use super::engine::{Core, Engine};
use super::pull::{Bound, Prepared, PullFrom, Puller};
use super::quiesce::QuiesceError;
use super::transfer::{News, TransferError, TransferOffer};
use super::{Process, ProcessConfig, Restore, StartError, endpoint_make};
use crate::swap::ProcessImage;
use crate::transfer::{Notice, PullError, SourceCounts};
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
    pub fn start_stepped<R: Into<Restore>, E: From<StartError>>(
        config: ProcessConfig,
        meanwhile: Meanwhile,
        restore: impl FnOnce(&BufPool) -> Result<Option<R>, E>,
    ) -> Result<Self, E> {
        config.settings.check().map_err(StartError::from)?;
        let mut endpoint = endpoint_make(&config)?;
        let restore = restore(endpoint.pool())?.map(R::into);
        endpoint
            .listen_any(&config.listen)
            .map_err(StartError::from)?;
        let process = Self::start_on(endpoint, config, restore, Some(meanwhile), Vec::new())?;
        process.stack_make();
        process.engine.shared.fetch_begin();
        Ok(process)
    }

    pub(super) fn is_stepped(&self) -> bool {
        self.engine.shared.stepped.is_some()
    }

    pub(super) fn stack_make(&self) {
        for _ in 0..STACKED_MAX {
            self.engine.shared.crew.join();
        }
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

    /// Fetches the next of what was swapped in lazily, as a thread of its own does otherwise;
    /// whether there was anything.
    pub fn fetch_step(&self) -> bool {
        self.engine.shared.fetch_step()
    }

    /// Writes through to storage what functions wait for, as a thread of its own does otherwise.
    pub fn persist_step(&self) {
        self.engine.persist_step();
    }

    /// Whether [`Process::persist_step`] would write something.
    pub fn persist_waits(&self) -> bool {
        self.engine.persist_waits()
    }

    /// Whether functions wait for what [`Process::persist_step`] is yet to begin with.
    pub fn persist_queued(&self) -> bool {
        self.engine.shared.persister.is_wanted()
    }

    /// Whether a commit is under way, which another one would wait for in vain.
    pub fn is_committing(&self) -> bool {
        self.engine.is_committing()
    }

    /// Ends the process as a kill does: nobody hears a word, and what was under way is gone.
    pub fn kill(&self) {
        self.abandon();
        if let Some(mut core) = self.engine.token.try_take() {
            core.endpoint.die();
        }
    }
}

impl Process {
    /// Ends the endpoint as a kill does, for good: the process goes on, until [`Process::kill`], cut
    /// off from all but its storage.
    pub fn cut_off(&self) {
        if let Some(mut core) = self.engine.token.try_take() {
            core.endpoint.die();
            // Nobody is to have it again.
            std::mem::forget(core);
        }
    }
}

/// A stepped process on its way to another host, as [`Process::transfer_out`] sends it.
#[derive(Debug)]
pub struct SteppedOut {
    heard: Receiver<News>,
    phase: OutPhase,
}

#[derive(Debug)]
enum OutPhase {
    Offered,
    /// Functions may run until then.
    Freezing(Instant),
    /// The target must have what is left by then.
    Frozen(Instant),
}

/// What a step of a [`SteppedOut`] came to.
#[derive(Debug)]
pub enum OutStep {
    /// Nothing is to be done yet.
    Idle,
    /// Something was done.
    Went,
    /// The target may come.
    Offered,
    /// New invocations are turned away from now on.
    Freezing,
    /// The process is frozen, and all of it is on its way.
    Frozen,
    /// It is over, as [`Process::transfer_out`] says.
    Over(Result<SourceCounts, TransferError>),
}

impl Process {
    /// Begins what [`Process::transfer_out`] does.
    ///
    /// # Errors
    /// As there.
    pub fn transfer_out_begin(&self, offer: TransferOffer) -> Result<SteppedOut, TransferError> {
        let heard = self.transfer_install(offer)?;
        let phase = OutPhase::Offered;
        Ok(SteppedOut { heard, phase })
    }

    /// Fetches an object that is in storage still, before the target may come.
    pub fn transfer_out_fetch(&self) -> OutStep {
        let Some((key, absent)) = self.engine.shared.state.absent().pop_front() else {
            return OutStep::Offered;
        };
        match self.transfer_fetch_one(&key, &absent) {
            Ok(()) => OutStep::Went,
            Err(error) => OutStep::Over(self.transfer_finish(Err(error))),
        }
    }

    /// Goes on with it.
    pub fn transfer_out_step(&self, out: &mut SteppedOut) -> OutStep {
        match self.transfer_out_try(out) {
            Ok(Some(step)) => step,
            Ok(None) => OutStep::Over(self.transfer_finish(Ok(()))),
            Err(error) => OutStep::Over(self.transfer_finish(Err(error))),
        }
    }

    /// `None` once the target has, or may have, everything.
    fn transfer_out_try(&self, out: &mut SteppedOut) -> Result<Option<OutStep>, TransferError> {
        let settings = &self.engine.shared.settings;
        let (quiesce_ms, freeze_ms) = (
            settings.quiesce_timeout_ms,
            settings.transfer_freeze_timeout_ms,
        );
        let in_ms = |ms| clock::now() + Duration::from_millis(ms);
        if let OutPhase::Freezing(until) = out.phase {
            // Nothing is heard meanwhile, as by the thread that waits here.
            let pending = |core: &mut Core| core.serve.peers.one_way().pending;
            let pending = self.engine.with_core(pending);
            if self.engine.shared.is_quiet() && pending.ok_or(QuiesceError::Ended)? == 0 {
                self.transfer_rest()?;
                out.phase = OutPhase::Frozen(in_ms(freeze_ms));
                return Ok(Some(OutStep::Frozen));
            }
            if clock::now() < until {
                return Ok(Some(OutStep::Idle));
            }
            let crew = &self.engine.shared.crew;
            return Err(TransferError::StillRunning {
                running: crew.running() + crew.blocked(),
                waited_ms: quiesce_ms,
            });
        }
        match (out.heard.try_recv(), &out.phase) {
            (Ok(News::More), _) => self.transfer_more(),
            (Ok(News::Notice(Notice::Freeze)), _) => {
                self.turn_away()?;
                out.phase = OutPhase::Freezing(in_ms(quiesce_ms));
                return Ok(Some(OutStep::Freezing));
            }
            (Ok(News::Notice(Notice::Complete | Notice::Doubt(_))), _) => return Ok(None),
            (Ok(News::Notice(Notice::Failed(why))), _) => return Err(TransferError::Lost(why)),
            (Ok(News::Cancelled), _) => return Err(TransferError::Cancelled),
            (Err(_), OutPhase::Frozen(until)) if *until <= clock::now() => {
                return Err(TransferError::TooSlow(freeze_ms));
            }
            (Err(_), _) => return Ok(Some(OutStep::Idle)),
        }
        Ok(Some(OutStep::Went))
    }
}

/// A process that is being fetched, as [`Bound::pull`] does, a step at a time.
#[derive(Debug)]
pub struct SteppedPull {
    bound: Bound,
    puller: Puller,
    from: PullFrom,
}

impl SteppedPull {
    /// Begins to fetch a process that only [`Process::step`] will move.
    ///
    /// # Errors
    /// As [`Bound::pull`].
    pub fn begin(
        mut bound: Bound,
        from: PullFrom,
        meanwhile: Meanwhile,
    ) -> Result<Self, PullError> {
        bound.stepped = Some(meanwhile);
        let puller = bound.puller(&from)?;
        Ok(Self {
            bound,
            puller,
            from,
        })
    }

    /// One round on the endpoint; whether anything happened.
    pub fn step(&mut self) -> bool {
        let endpoint = &mut self.bound.endpoint;
        let happened = endpoint.progress(&mut self.puller) > 0;
        let now = clock::now();
        if endpoint.timer_next().is_some_and(|timer| timer <= now) {
            Endpoint::wait(endpoint, Some(now));
        }
        happened
    }

    /// Ends as a kill does.
    pub fn kill(&mut self) {
        self.bound.endpoint.die();
    }

    /// Whether all is here, or will not come.
    pub fn is_over(&self) -> bool {
        self.puller.is_over()
    }

    /// What was fetched.
    ///
    /// # Errors
    /// As [`Bound::pull`].
    pub fn end(mut self) -> Result<(Bound, ProcessImage), PullError> {
        let image = self.bound.pulled(self.puller, &self.from)?;
        Ok((self.bound, image))
    }
}

impl Prepared {
    /// Ends as a kill does.
    pub fn kill(&self) {
        self.0.kill();
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
