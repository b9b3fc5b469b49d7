//! Checkpoints: images that are written on a thread of their own, one at a time, while the process
//! serves.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use praas_runtime::host::FromHost;
use praas_runtime::process::{Process, ProcessStats};
use praas_runtime::swap::{Committed, Storage, SwapConfig};
use praas_transport::clock;

use super::link::Event;
use crate::errors::error_text;

/// How a checkpoint went.
pub(super) struct Checkpointed {
    /// What was counted before it was begun.
    before: ProcessStats,
    /// What is said of it.
    pub(super) said: FromHost,
}

/// The checkpoints of a host.
pub(super) struct Checkpoints {
    events: Sender<Event>,
    running: bool,
    /// One more was asked for while one was being taken.
    again: bool,
    /// What was counted before the last one, its generation, and when it was written.
    last: Option<(ProcessStats, u64, u64)>,
}

impl Checkpoints {
    pub(super) fn new(events: Sender<Event>) -> Self {
        Self {
            events,
            running: false,
            again: false,
            last: None,
        }
    }

    /// Begins one, if none is being taken; what there is to be said at once.
    pub(super) fn begin(
        &mut self,
        process: &Arc<Process>,
        storage: &Arc<dyn Storage>,
        config: SwapConfig,
    ) -> Option<FromHost> {
        if self.running {
            self.again = true;
            return None;
        }
        let before = work_only(process.stats());
        if let Some((last, generation, written_unix_ms)) = self.last
            && last == before
            && !is_busy(&before)
        {
            return Some(FromHost::Checkpointed {
                generation,
                bytes: 0,
                took_ms: 0,
                written_unix_ms,
            });
        }
        match self.spawn(before, Arc::clone(process), Arc::clone(storage), config) {
            Ok(()) => {
                self.running = true;
                None
            }
            Err(error) => Some(FromHost::CheckpointFailed {
                error: format!("no thread for it: {error}"),
            }),
        }
    }

    fn spawn(
        &self,
        before: ProcessStats,
        process: Arc<Process>,
        storage: Arc<dyn Storage>,
        config: SwapConfig,
    ) -> io::Result<()> {
        let events = self.events.clone();
        let work = move || {
            let said = checkpoint_take(&process, &*storage, &config);
            // Let go first: whoever ends the process is not to wait for this thread.
            drop(process);
            // The host may be ending.
            let _ = events.send(Event::Checkpointed(Box::new(Checkpointed { before, said })));
        };
        std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(work)
            .map(drop)
    }

    /// Notes that one has ended; whether another is to be begun.
    pub(super) fn ended(&mut self, checkpointed: &Checkpointed) -> bool {
        self.running = false;
        self.last = match checkpointed.said {
            FromHost::Checkpointed {
                generation,
                written_unix_ms,
                ..
            } => Some((checkpointed.before, generation, written_unix_ms)),
            _ => None,
        };
        std::mem::take(&mut self.again)
    }
}

/// Has the agent told of a checkpoint that nobody asked for. Nothing hangs on when it hears of it:
/// whoever starts the process again looks for images by itself.
pub(super) fn unasked_tell(events: &Sender<Event>, committed: &Committed) {
    let said = FromHost::CheckpointUnasked {
        generation: committed.generation,
        bytes: committed.bytes,
        took_ms: committed.took_ms,
        written_unix_ms: committed.begun_unix_ms,
    };
    // The host may be ending.
    let _ = events.send(Event::Unasked(Box::new(said)));
}

fn checkpoint_take(process: &Process, storage: &dyn Storage, config: &SwapConfig) -> FromHost {
    let (begun, written_unix_ms) = (Instant::now(), clock::unix_ms());
    match process.checkpoint(storage, config) {
        Ok(committed) => {
            let took_ms = begun.elapsed().as_millis() as u64;
            let (generation, bytes) = (committed.generation, committed.bytes);
            tracing::info!(generation, bytes, took_ms, "a checkpoint is taken");
            if let Some(error) = committed.untidy {
                tracing::warn!(error = error_text(&error), "older images are left");
            }
            FromHost::Checkpointed {
                generation,
                bytes,
                took_ms,
                written_unix_ms,
            }
        }
        Err(error) => {
            let error = error_text(&error);
            tracing::error!(error, "no checkpoint is taken");
            FromHost::CheckpointFailed { error }
        }
    }
}

/// What changes whenever the process does something, and not with time.
fn work_only(stats: ProcessStats) -> ProcessStats {
    ProcessStats {
        spin_ns: 0,
        asleep_ns: 0,
        work_ns: 0,
        // What was written through was done by invocations, or came to nothing.
        persisted_objects: 0,
        persisted_bytes: 0,
        persist_failures: 0,
        persist_groups: 0,
        persist_ns: 0,
        ..stats
    }
}

fn is_busy(stats: &ProcessStats) -> bool {
    stats.running + stats.blocked + stats.queued > 0
}
