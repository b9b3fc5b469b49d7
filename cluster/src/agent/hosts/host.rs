//! One host: what is known of it, and what is said of it, alive and dead.

use std::time::Instant;

use praas_control::agent::{HostReport, HostTransfer, StartCommand};
use praas_control::api::{Checkpoint, ProcessState};

use super::super::record::{Ending, HostRecord};

/// What is known of a host's end.
#[derive(Debug)]
pub(super) enum End {
    /// It said that it ends with this image.
    Swapped(u64),
    /// It said nothing, and left this image. It may have served on after it.
    Unheard(u64),
    Failed(String),
}

/// What is overdue when a deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Ready,
    Stopped,
    Ended,
    Redialled,
    /// It is to be told again to swap out.
    SwapAgain,
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) record: HostRecord,
    /// Whether there is a connection to it.
    pub(super) linked: bool,
    pub(super) start: Option<u64>,
    pub(super) swaps: Vec<u64>,
    pub(super) stops: Vec<u64>,
    /// Commands that wait for a checkpoint.
    pub(super) checkpoints: Vec<u64>,
    pub(super) checkpoint: Option<Checkpoint>,
    /// Why the last checkpoint that was tried is none.
    pub(super) checkpoint_error: Option<String>,
    /// A transfer from here.
    pub(super) out: Option<u64>,
    pub(super) thaws: Vec<u64>,
    pub(super) serves: Vec<u64>,
    pub(super) end: Option<End>,
    /// Why we killed it.
    pub(super) killed: Option<String>,
    pub(super) deadline: Option<(Instant, Due)>,
    /// Starts once this one is dead.
    pub(super) next: Option<Box<StartCommand>>,
}

impl Host {
    pub(super) fn new(record: HostRecord) -> Self {
        Self {
            record,
            linked: false,
            start: None,
            swaps: Vec::new(),
            stops: Vec::new(),
            checkpoints: Vec::new(),
            checkpoint: None,
            checkpoint_error: None,
            out: None,
            thaws: Vec::new(),
            serves: Vec::new(),
            end: None,
            killed: None,
            deadline: None,
            next: None,
        }
    }

    pub(super) fn report(&self) -> HostReport {
        HostReport {
            application: self.record.application.clone(),
            process: self.record.process.clone(),
            incarnation: self.record.incarnation,
            life: self.record.life,
            state: self.record.state,
            pid: self.record.pid,
            addresses: self.record.addresses.clone(),
            swap_generation: self.record.swap_generation,
            error: self.record.warning.clone(),
            swapped: false,
            transfer: self.record.transfer,
        }
    }

    /// What is said of it now that it is dead.
    pub(super) fn report_final(&self, how: &str) -> HostReport {
        let stopped = self.record.ending == Some(Ending::Stop);
        let (state, error) = match (&self.end, &self.killed) {
            _ if stopped => (ProcessState::Gone, None),
            (Some(End::Swapped(_) | End::Unheard(_)), _) => (ProcessState::Swapped, None),
            (Some(End::Failed(error)), _) => (ProcessState::Failed, Some(error.clone())),
            (None, Some(why)) => (ProcessState::Failed, Some(why.clone())),
            (None, None) => {
                let when = match self.record.state {
                    ProcessState::Starting => " before it was ready",
                    _ => "",
                };
                let error = format!("its host ended{when}: {how}");
                (ProcessState::Failed, Some(error))
            }
        };
        let swap_generation = match self.end {
            Some(End::Swapped(generation) | End::Unheard(generation)) => generation,
            _ => self.record.swap_generation,
        };
        HostReport {
            state,
            pid: 0,
            addresses: Vec::new(),
            swap_generation,
            error,
            swapped: state == ProcessState::Swapped && matches!(self.end, Some(End::Swapped(_))),
            transfer: HostTransfer::None,
            ..self.report()
        }
    }
}
