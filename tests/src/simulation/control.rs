//! The control plane: the real registry, with a disk of its own and links that break.

use std::collections::{BTreeMap, VecDeque};

use praas_control::ControlConfig;
use praas_control::agent::{FromAgent, ToAgent};
use praas_control::api::{ApplicationSpec, Settings};
use praas_control::machine::{Action, Event, Limits, Registry, Request, Verb};
use praas_control::store::{Change, Snapshot};
use praas_transport::Secret;
use praas_transport::clock::Simulation;

use super::APPLICATION;
use super::world::here;

/// A link to an agent: what is under way on it.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub to_agent: VecDeque<ToAgent>,
    pub from_agent: VecDeque<FromAgent>,
}

/// How the control plane dies at the next change of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doom {
    /// Before it is on disk.
    Before,
    /// When it is on disk, and nobody was told.
    After,
}

/// The control plane with its links.
pub(super) struct Control {
    registry: Registry,
    disk: Snapshot,
    pub links: BTreeMap<u64, Link>,
    link_last: u64,
    request_last: u64,
    restarts: u64,
    pub doom: Option<Doom>,
    /// Processes whose transfers were committed since somebody looked.
    pub committed: Vec<String>,
}

fn limits() -> Limits {
    Limits {
        lease_ms: 0,
        transfer_timeout_ms: 20_000,
        ..Limits::from(&ControlConfig::default())
    }
}

fn now_ms() -> u64 {
    Simulation::passed().as_millis() as u64
}

impl Control {
    /// A control plane with the application.
    pub fn new(secret: Secret) -> Self {
        let mut control = Self {
            registry: Registry::restore(limits(), Snapshot::default(), 0, now_ms()),
            disk: Snapshot::default(),
            links: BTreeMap::new(),
            link_last: 0,
            request_last: 0,
            restarts: 0,
            doom: None,
            committed: Vec::new(),
        };
        control.ask(Request::ApplicationCreate {
            spec: ApplicationSpec {
                name: APPLICATION.into(),
                modules: Vec::new(),
                settings: Settings::new(),
                auto_create: true,
            },
            secret,
            now_unix_ms: 0,
        });
        control
    }

    /// Somebody asks over HTTP, and does not care for the answer.
    pub fn ask(&mut self, request: Request) {
        self.request_last += 1;
        let id = self.request_last;
        self.handle(Event::Request {
            id,
            wait_ms: 10_000,
            request,
        });
    }

    /// Somebody wants something of a process.
    pub fn process(&mut self, process: &str, verb: Verb) {
        self.ask(Request::Process {
            application: APPLICATION.into(),
            process: process.into(),
            verb,
        });
    }

    /// Somebody wants a process to be elsewhere.
    pub fn process_move(&mut self, process: &str, to: Option<String>) {
        self.ask(Request::ProcessTransfer {
            application: APPLICATION.into(),
            process: process.into(),
            to,
        });
    }

    pub fn tick(&mut self) {
        if self
            .registry
            .deadline_next()
            .is_some_and(|at| at <= now_ms())
        {
            self.handle(Event::Tick);
        }
    }

    pub fn connect(&mut self) -> u64 {
        self.link_last += 1;
        self.links.insert(self.link_last, Link::default());
        self.link_last
    }

    /// A link breaks, and both sides hear of it.
    pub fn disconnect(&mut self, link: u64) {
        if self.links.remove(&link).is_some() {
            self.handle(Event::Lost { link });
        }
    }

    /// The next word of an agent arrives.
    pub fn hear(&mut self, link: u64) -> bool {
        let queue = self.links.get_mut(&link);
        let Some(message) = queue.and_then(|link| link.from_agent.pop_front()) else {
            return false;
        };
        self.handle(Event::Said { link, message });
        true
    }

    /// It is killed, and is there again with what was on its disk. Links are gone.
    pub fn restart(&mut self) {
        self.links.clear();
        self.restarts += 1;
        let (disk, first) = (self.disk.clone(), self.restarts << 32);
        self.registry = Registry::restore(limits(), disk, first, now_ms());
    }

    /// Somebody asks, and it is killed when that is on disk, and nobody was told.
    pub fn process_and_die(&mut self, process: &str, verb: Verb) {
        let event = Event::Request {
            id: u64::MAX,
            wait_ms: 100,
            request: Request::Process {
                application: APPLICATION.into(),
                process: process.into(),
                verb,
            },
        };
        for action in self.registry.handle(now_ms(), event) {
            if let Action::Persist(change) = action {
                self.persist(change);
            }
        }
        self.restart();
    }

    fn handle(&mut self, event: Event) {
        let actions = self.registry.handle(now_ms(), event);
        let moves = |action: &Action| {
            matches!(
                action,
                Action::Persist(Change::Transfer(_) | Change::TransferRemoved(..))
            )
        };
        let doom = self.doom.take_if(|_| actions.iter().any(moves));
        if doom == Some(Doom::Before) {
            return self.restart();
        }
        for action in actions {
            match action {
                Action::Persist(change) => self.persist(change),
                Action::Tell { link, message } => {
                    if let Some(link) = self.links.get_mut(&link) {
                        link.to_agent.push_back(message);
                    }
                }
                Action::Drop { link } => drop(self.links.remove(&link)),
                Action::Answer { .. } => {}
            }
        }
        if doom.is_some() {
            self.restart();
        }
    }

    fn persist(&mut self, change: Change) {
        let disk = &mut self.disk;
        match change {
            Change::Application(record) => {
                disk.applications.retain(|old| old.name != record.name);
                disk.applications.push(record);
            }
            Change::Generation(name, generation) => {
                disk.generations.retain(|(of, _)| *of != name);
                disk.generations.push((name, generation));
            }
            Change::Process(record) => {
                here(|world| world.stored(&record));
                disk.processes.retain(|old| old.name != record.name);
                disk.processes.push(record);
            }
            Change::ProcessRemoved(_, name) => {
                here(|world| world.removed(&name));
                disk.processes.retain(|old| old.name != name);
            }
            Change::IncarnationNext(next) => disk.incarnation_next = next,
            Change::Transfer(record) => {
                if record.committed {
                    self.committed.push(record.name.clone());
                }
                disk.transfers.retain(|old| old.name != record.name);
                disk.transfers.push(record);
            }
            Change::TransferRemoved(_, name) => disk.transfers.retain(|old| old.name != name),
            other => panic!("the simulation has no {other:?}"),
        }
    }
}
