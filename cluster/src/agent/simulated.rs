//! The agent's decisions on hosts, for a simulation that plays everything around them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use praas_control::agent::{FromAgent, HostReport, StartCommand, ToAgent};
use praas_runtime::host::{FromHost, HostHello, ToHost};
use praas_runtime::swap::Storage;
use praas_transport::Address;

use super::hosts::{Action, HostKey, Hosts, Limits};
use super::record::HostRecord;
use crate::errors::error_text;

/// What the agent wants done, in order.
#[derive(Debug)]
pub enum Wanted {
    /// Start a host; [`SimulatedAgent::spawned`] follows.
    Spawn(Box<StartCommand>),
    /// Send a message to hosts, by their processes.
    Send(Vec<String>, Box<ToHost>),
    /// Kill the host of a process.
    Kill(String),
    /// Tell the control plane.
    Say(FromAgent),
    /// [Delete](images_delete) what incarnations of a process below one have left in storage; answer
    /// the command then.
    ImagesDelete(u64, String, u64),
    /// A process serves.
    Serves(String),
}

/// Does what [`Wanted::ImagesDelete`] says.
///
/// # Errors
/// Those of the storage, as a text: some of it may be deleted.
pub fn images_delete(
    storage: &dyn Storage,
    application: &str,
    process: &str,
    below: u64,
) -> Result<(), String> {
    let key = HostKey {
        application: application.into(),
        process: process.into(),
    };
    super::record::images_delete(storage, &key, below).map_err(|error| error_text(&error))
}

/// An agent of one application's hosts.
#[derive(Debug)]
pub struct SimulatedAgent {
    hosts: Hosts,
    /// What lies on disk for an agent that comes after this one.
    records: BTreeMap<HostKey, HostRecord>,
    application: String,
}

impl SimulatedAgent {
    /// An agent without hosts, which gives each of their steps so much time.
    pub fn new(application: &str, patience: Duration) -> Self {
        let limits = Limits {
            hosts_max: 64,
            start: patience,
            stop: patience,
            exit: patience,
            adopt: patience,
        };
        Self {
            hosts: Hosts::new(limits),
            records: BTreeMap::new(),
            application: application.into(),
        }
    }

    /// An agent that comes after one that was killed. `lives` says whether the host of a process
    /// does, `image` which generation one that does not has left, if any.
    pub fn restarted(
        self,
        now: Instant,
        patience: Duration,
        lives: impl Fn(&str, u64) -> bool,
        image: impl Fn(&str, u64) -> Option<u64>,
    ) -> Self {
        let mut next = Self::new(&self.application, patience);
        for (key, record) in self.records {
            next.records.insert(key.clone(), record.clone());
            match lives(&key.process, record.incarnation) {
                true => next.hosts.adopt(now, record),
                false => {
                    let image = image(&key.process, record.incarnation);
                    next.hosts.adopt_dead(now, record, image);
                }
            }
        }
        next
    }

    /// A host of an agent before this one has found it; whether it is taken.
    pub fn redialled(&mut self, now: Instant, hello: HostHello) -> bool {
        let key = self.key(&hello.process);
        let expected = self.hosts.expects(&key, hello.incarnation, hello.pid);
        if expected {
            self.hosts.redialled(now, &key, hello);
        }
        expected
    }

    fn key(&self, process: &str) -> HostKey {
        HostKey {
            application: self.application.clone(),
            process: process.into(),
        }
    }

    /// What is to be done now.
    pub fn wanted(&mut self) -> Vec<Wanted> {
        let actions = self.hosts.actions_take().into_iter();
        let wanted = actions.filter_map(|action| {
            Some(match action {
                Action::Spawn(start, _) => Wanted::Spawn(start),
                Action::Send(to, message) => {
                    Wanted::Send(to.into_iter().map(|key| key.process).collect(), message)
                }
                Action::Kill(key) => Wanted::Kill(key.process),
                Action::Say(message) => Wanted::Say(message),
                Action::ImagesDelete(request, key, below) => {
                    Wanted::ImagesDelete(request, key.process, below)
                }
                Action::Serves(key) => Wanted::Serves(key.process),
                Action::RecordWrite(record) => {
                    self.records.insert(record.key(), *record);
                    return None;
                }
                Action::RecordRemove(key) => {
                    self.records.remove(&key);
                    return None;
                }
                // What hosts count.
                Action::StatsTell(_) => return None,
            })
        });
        wanted.collect()
    }

    /// For the hello.
    pub fn inventory(&mut self) -> Vec<HostReport> {
        self.hosts.inventory()
    }

    /// The control plane speaks.
    pub fn told(&mut self, now: Instant, message: ToAgent) {
        if let ToAgent::Applications(_) = message {
            self.hosts.inventory_received();
        }
        self.hosts.told(now, message);
    }

    /// The channel to the control plane has ended.
    pub fn control_lost(&mut self) {
        self.hosts.control_lost();
    }

    /// A host is there.
    pub fn spawned(&mut self, process: &str, pid: u32) {
        let key = self.key(process);
        self.hosts.spawned(&key, pid, 1, 0);
    }

    /// A host speaks.
    pub fn said(&mut self, now: Instant, process: &str, message: FromHost) {
        let key = self.key(process);
        self.hosts.said(now, &key, message);
    }

    /// A host is dead, and reaped.
    pub fn died(&mut self, now: Instant, process: &str, how: &str) {
        let key = self.key(process);
        self.hosts.died(now, &key, how);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        self.hosts.tick(now);
    }

    /// Where a process is, if it serves here.
    pub fn serving(&self, process: &str) -> Option<(u64, Vec<Address>)> {
        let (incarnation, addresses) = self.hosts.serving(&self.key(process))?;
        Some((incarnation, addresses.to_vec()))
    }
}
