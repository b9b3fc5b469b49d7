//! What a host writes to storage: images of its process, and objects that are written through.

use std::rc::Rc;

use praas_runtime::host::FromHost;
use praas_runtime::process::{PersistTo, Process, QuiesceError};
use praas_runtime::swap::{Committed, SwapConfig};
use praas_transport::clock;

use super::super::Plan;
use super::super::world::{World, here};
use super::Host;
use crate::checker::{End, Event, Image};

impl Host {
    /// Where the process writes objects through. It is told of checkpoints on the way.
    pub(super) fn persist_to(&self, world: &World) -> PersistTo {
        let (process, incarnation) = (self.process.clone(), self.incarnation);
        let checkpointed = move |committed: &Committed| {
            here(|world| {
                let hosts = world.hosts();
                let mut hosts = hosts.iter().map(|(_, host)| host);
                let ours = |host: &&Rc<Self>| {
                    (&*host.process, host.incarnation) == (&*process, incarnation)
                };
                if let Some(host) = hosts.find(ours).filter(|host| !host.gone.get()) {
                    host.checkpoint_unasked(world, committed);
                }
            });
        };
        PersistTo {
            storage: world.storage(),
            config: swap_config(&world.plan),
            checkpointed: Box::new(checkpointed),
        }
    }

    fn checkpoint_unasked(&self, world: &World, committed: &Committed) {
        self.committed(world, committed.generation);
        self.say(FromHost::CheckpointUnasked {
            generation: committed.generation,
            bytes: committed.bytes,
            took_ms: 0,
            written_unix_ms: clock::unix_ms(),
        });
    }

    /// What a thread does that fetches the state of a process; whether it did something.
    pub fn fetch_step(&self, world: &World) -> bool {
        if world.plan.fetches < 1000 && !world.chance(world.plan.fetches) {
            return false;
        }
        let process = self.serving.borrow().clone();
        world.writing(&self.process, self.incarnation);
        let happened = process.is_some_and(|process| process.fetch_step());
        world.written();
        happened
    }

    /// What the thread does that writes through; whether it did something.
    pub fn persist_step(&self, world: &World) -> bool {
        let process = self.serving.borrow().clone();
        let Some(process) = process.filter(|process| process.persist_waits()) else {
            return false;
        };
        if !process.is_committing() {
            // It may take a checkpoint.
            self.imaging(world);
        } else {
            world.writing(&self.process, self.incarnation);
        }
        self.persisting.set(true);
        process.persist_step();
        self.persisting.set(false);
        world.written();
        if world.is_ghost(&self.process, self.incarnation) {
            process.kill();
        }
        if !self.gone.get() && !process.persist_queued() {
            world.note(Event::WrittenThrough {
                process: self.process.clone(),
                incarnation: self.incarnation,
            });
        }
        true
    }

    /// It is taken for dead, while it writes something through: it goes on with that, cut off from
    /// all but the storage.
    pub fn cut_off(&self, world: &World) {
        let serving = self.serving.borrow_mut().take();
        let Some(process) = serving.filter(|_| self.persisting.get()) else {
            return;
        };
        world.trace(|| format!("{} {} is taken for dead", self.process, self.incarnation));
        process.cut_off();
        world.ghost(&self.process, self.incarnation);
        self.ended(world, End::Crashed);
        self.exit("taken for dead");
    }

    /// Takes a checkpoint because the agent says so.
    pub(super) fn checkpoint_obey(&self, world: &World, process: &Process) {
        let taken = self.checkpoint_take(world, process);
        if self.gone.get() {
            return;
        }
        self.say(match taken {
            Ok(committed) => FromHost::Checkpointed {
                generation: committed.generation,
                bytes: committed.bytes,
                took_ms: 0,
                written_unix_ms: clock::unix_ms(),
            },
            Err(error) => FromHost::CheckpointFailed {
                error: error.to_string(),
            },
        });
    }

    fn checkpoint_take(&self, world: &World, process: &Process) -> Result<Committed, QuiesceError> {
        self.imaging(world);
        let taken = process.checkpoint(&*world.storage(), &swap_config(&world.plan));
        world.written();
        if let (Ok(committed), false) = (&taken, self.gone.get()) {
            self.committed(world, committed.generation);
        }
        taken
    }

    /// Takes a checkpoint, if it is at leisure and one is of use.
    pub fn checkpoint(&self, world: &World) {
        let serving = self.serving.borrow().clone();
        let ready = |process: &Rc<Process>| self.is_idle() && !process.is_committing();
        let Some(process) = serving.filter(ready) else {
            return;
        };
        self.busily(|| {
            if let Err(error) = self.checkpoint_take(world, &process) {
                world.trace(|| format!("{}: no checkpoint: {error}", self.process));
            }
        });
    }

    fn imaging(&self, world: &World) {
        let (process, incarnation) = (self.process.clone(), self.incarnation);
        world.writing(&process, incarnation);
        world.note(Event::Imaging {
            process,
            incarnation,
        });
    }

    fn committed(&self, world: &World, generation: u64) {
        self.generation.set(self.generation.get().max(generation));
        world.note(Event::Committed {
            process: self.process.clone(),
            image: Image {
                incarnation: self.incarnation,
                generation,
            },
        });
    }

    pub(super) fn swap_out(&self, world: &World, process: &Process) {
        let (name, incarnation) = (self.process.clone(), self.incarnation);
        self.outgoing_end(world, process);
        if self.gone.get() {
            return;
        }
        self.imaging(world);
        let swapped = process.swap_out(&*world.storage(), &swap_config(&world.plan));
        world.written();
        if self.gone.get() {
            return;
        }
        match swapped {
            Ok(committed) => {
                self.committed(world, committed.generation);
                self.ended(world, End::Swapped);
                self.say(FromHost::Swapped {
                    generation: committed.generation,
                    bytes: committed.bytes,
                });
                self.exit("swapped out");
            }
            Err(error) => {
                world.trace(|| format!("{name} {incarnation}: not swapped out: {error}"));
                let error = error.to_string();
                self.say(FromHost::SwapFailed { error });
            }
        }
    }
}

/// Small chunks and packs, so that there are several of each.
fn swap_config(plan: &Plan) -> SwapConfig {
    let (chunk, pack) = match plan.lazy {
        true => (32 << 10, 128 << 10),
        false => (256, 4096),
    };
    let settings =
        serde_json::json!({ "chunk_bytes": chunk, "pack_max_bytes": pack, "threads": 1 });
    serde_json::from_value(settings).expect("settings of a swap")
}
