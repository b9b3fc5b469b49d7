//! The hosts of a node: what each is doing and what follows, without clock, socket or process.
//!
//! ```text
//!   commands, hosts' words, deaths, time --> Hosts --> actions: Spawn, Send, Kill, Say, records
//!
//!     Spawn      Ready             SwapOut, Stop          Swapped        death
//!   ---------> starting --> ready ---------------> quiescing ----------> (exit) --> report, answers
//!                 |           |        SwapFailed: back to ready                       ^
//!                 +-----------+--------------------------------------------------------+
//! ```
//!
//! Invariant: `Swapped`, `Failed` and `Gone` are said in [`Hosts::died`] only, or of what was never
//! started; answers that mean a death come after it. A process has one host here at most: a start
//! under a newer incarnation waits until the older host is dead.

mod checkpoints;
mod commands;
mod host;
mod life;
mod transfer;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use praas_control::agent::{FromAgent, HostReport, StartCommand, ToAgent};
use praas_control::api::{Checkpoint, ProcessState};
use praas_runtime::host::{FromHost, ToHost};
use praas_runtime::world::{MemberState, World};
use praas_transport::{Address, Secret};

use self::host::{Due, End, Host};
use super::config::AgentConfig;
use super::record::{Ending, HostRecord};
use super::settings::HostSettings;

/// Reports of deaths that are kept until the control plane is known to have them.
const FINALS_MAX: usize = 10_000;

/// Names a process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct HostKey {
    pub(super) application: String,
    pub(super) process: String,
}

impl std::fmt::Display for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {:?} of {:?}", self.process, self.application)
    }
}

/// What is to be done, in order.
#[derive(Debug)]
pub(super) enum Action {
    /// Start a host; [`Hosts::spawned`] or [`Hosts::spawn_failed`] follows.
    Spawn(Box<StartCommand>, Box<HostSettings>),
    /// Send a message to hosts that are linked.
    Send(Vec<HostKey>, Box<ToHost>),
    /// Kill a host.
    Kill(HostKey),
    /// Tell the control plane.
    Say(FromAgent),
    /// Keep what is known of a host.
    RecordWrite(Box<HostRecord>),
    /// Forget it.
    RecordRemove(HostKey),
    /// Delete what incarnations of a process below one have left in storage; answer the command then.
    ImagesDelete(u64, HostKey, u64),
    /// A process serves, says its own host: whoever asks for it can be told.
    Serves(HostKey),
    /// Tell the control plane at once what a host counts.
    StatsTell(HostKey),
}

/// The limits of [`Hosts`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) hosts_max: usize,
    pub(super) start: Duration,
    pub(super) stop: Duration,
    pub(super) exit: Duration,
    pub(super) adopt: Duration,
}

impl From<&AgentConfig> for Limits {
    fn from(config: &AgentConfig) -> Self {
        Self {
            hosts_max: config.hosts_max,
            start: Duration::from_millis(config.start_timeout_ms),
            stop: Duration::from_millis(config.stop_timeout_ms),
            exit: Duration::from_millis(config.exit_timeout_ms),
            adopt: Duration::from_millis(config.adopt_timeout_ms),
        }
    }
}

/// All hosts of the node.
#[derive(Debug)]
pub(super) struct Hosts {
    limits: Limits,
    hosts: BTreeMap<HostKey, Host>,
    deadlines: BTreeSet<(Instant, HostKey)>,
    worlds: BTreeMap<String, World>,
    keys: BTreeMap<String, (u32, Secret)>,
    /// What was said of dead hosts, and whether an inventory carries it.
    finals: BTreeMap<HostKey, (HostReport, bool)>,
    /// The control plane hears what is said.
    heard: bool,
    /// The agent is about to end.
    ending: bool,
    /// The time for that is over: a swap that fails now was the last try.
    ended: bool,
    actions: Vec<Action>,
}

impl Hosts {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            hosts: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            worlds: BTreeMap::new(),
            keys: BTreeMap::new(),
            finals: BTreeMap::new(),
            heard: false,
            ending: false,
            ended: false,
            actions: Vec::new(),
        }
    }

    /// What is to be done now.
    pub(super) fn actions_take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Where a process is, if it serves here.
    pub(super) fn serving(&self, key: &HostKey) -> Option<(u64, &[Address])> {
        let record = &self.hosts.get(key)?.record;
        let serves = record.state == ProcessState::Ready && !record.addresses.is_empty();
        serves.then_some((record.incarnation, record.addresses.as_slice()))
    }

    /// Where a process was, as the control plane said last; it may be on any node.
    pub(super) fn serving_elsewhere(&self, key: &HostKey) -> Option<(u64, &[Address])> {
        let members = &self.worlds.get(&key.application)?.members;
        let member = members.iter().find(|member| member.name == key.process)?;
        let serves = member.state == MemberState::Ready && !member.addresses.is_empty();
        serves.then_some((member.incarnation.0, member.addresses.as_slice()))
    }

    /// For the hello: hosts that may live, and what became of those that died since the one before.
    pub(super) fn inventory(&mut self) -> Vec<HostReport> {
        let mut inventory = Vec::with_capacity(self.finals.len() + self.hosts.len());
        for (report, carried) in self.finals.values_mut() {
            *carried = true;
            inventory.push(report.clone());
        }
        inventory.extend(self.hosts.values().map(Host::report));
        inventory
    }

    /// The control plane has the inventory. Records of what had died before are needed no longer.
    pub(super) fn inventory_received(&mut self) {
        self.heard = true;
        let (hosts, actions) = (&self.hosts, &mut self.actions);
        self.finals.retain(|key, (_, carried)| {
            if *carried && !hosts.contains_key(key) {
                actions.push(Action::RecordRemove(key.clone()));
            }
            !*carried
        });
    }

    /// The channel has ended: what came over it and was not begun is forgotten.
    pub(super) fn control_lost(&mut self) {
        self.heard = false;
        for host in self.hosts.values_mut() {
            host.next = None;
        }
    }

    /// The control plane says something that concerns hosts.
    pub(super) fn told(&mut self, now: Instant, message: ToAgent) {
        match message {
            ToAgent::Start(start) => self.start(now, start),
            ToAgent::SwapOut(command) => self.swap(&command),
            ToAgent::Stop(command) => self.stop(now, &command),
            ToAgent::DeleteImages {
                request,
                application,
                process,
                below,
            } => {
                let key = HostKey {
                    application,
                    process,
                };
                match self.hosts.contains_key(&key) {
                    true => self.answer(request, Err(format!("{key} has a host on this node"))),
                    false => self.actions.push(Action::ImagesDelete(request, key, below)),
                }
            }
            ToAgent::Checkpoint(command) => self.checkpoint(&command),
            ToAgent::Applications(keys) => self.keys_update(keys),
            ToAgent::World {
                application,
                generation,
                members,
            } => self.world_update(application, generation, members),
            ToAgent::Resolved { .. } => {}
            ToAgent::TransferOut(command) => self.transfer_out(&command),
            ToAgent::TransferThaw(command) => self.transfer_thaw(&command),
            ToAgent::TransferServe(command) => self.transfer_serve(now, &command),
        }
    }

    /// A host says something.
    pub(super) fn said(&mut self, now: Instant, key: &HostKey, message: FromHost) {
        match message {
            FromHost::Ready {
                addresses,
                swap_generation,
                rejected,
            } => self.ready(key, addresses, swap_generation, &rejected),
            FromHost::Failed { error } => self.ends(now, key, End::Failed(error)),
            FromHost::Swapped { generation, bytes } => {
                tracing::info!(%key, generation, bytes, "swapped out");
                self.ends(now, key, End::Swapped(generation));
            }
            FromHost::SwapFailed { error } => self.swap_failed(now, key, error),
            FromHost::Checkpointed {
                generation,
                bytes,
                took_ms,
                written_unix_ms,
            } => {
                let checkpoint = Checkpoint {
                    generation,
                    bytes,
                    took_ms,
                    written_unix_ms,
                };
                self.checkpointed(key, Ok(checkpoint));
            }
            FromHost::CheckpointUnasked {
                generation,
                bytes,
                took_ms,
                written_unix_ms,
            } => {
                let checkpoint = Checkpoint {
                    generation,
                    bytes,
                    took_ms,
                    written_unix_ms,
                };
                self.checkpoint_note(key, checkpoint);
            }
            FromHost::CheckpointFailed { error } => self.checkpointed(key, Err(error)),
            FromHost::Transfer { state, error } => self.transfer_said(key, state, error),
            // It is asked by nobody: what it counts is in its page.
            FromHost::Hello(_) | FromHost::Stats(_) => {}
        }
    }

    /// When [`Hosts::tick`] is needed next.
    pub(super) fn deadline_next(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Kills what is overdue.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some((at, key)) = self.deadlines.first().cloned() {
            if at > now {
                return;
            }
            let due = self.hosts.get(&key).and_then(|host| host.deadline);
            self.deadline_set(&key, None);
            if matches!(due, Some((_, Due::SwapAgain))) {
                self.send(&key, ToHost::SwapOut);
                continue;
            }
            let why = match due.map(|(_, due)| due) {
                Some(Due::Ready) => format!(
                    "it was not ready after {} ms (setting start_timeout_ms)",
                    self.limits.start.as_millis()
                ),
                Some(Due::Stopped) => "it did not stop in time".into(),
                Some(Due::Ended) => "it did not end".into(),
                Some(Due::Redialled | Due::SwapAgain) | None => {
                    "it did not find its agent again".into()
                }
            };
            self.kill(&key, why);
        }
    }

    /// Swaps out all that serve; those that start are killed. `why` is for the log.
    pub(super) fn swap_all(&mut self, why: &str) {
        let keys: Vec<HostKey> = self.hosts.keys().cloned().collect();
        tracing::warn!(hosts = keys.len(), "swapping out all hosts: {why}");
        for key in keys {
            let held = self.hosts.get(&key).is_some_and(Host::is_held);
            match self.hosts.get(&key).map(|host| host.record.state) {
                Some(ProcessState::Ready) => self.swap_begin(&key),
                Some(ProcessState::Quiescing) if held => self.swap_begin(&key),
                Some(ProcessState::Starting) => self.kill(&key, why.into()),
                _ => {}
            }
        }
    }

    /// Kills all hosts, or all but those that are writing their images.
    pub(super) fn kill_all(&mut self, spare_swapping: bool, why: &str) {
        self.ended = self.ending;
        let swaps = |host: &Host| host.record.ending == Some(Ending::Swap) && host.killed.is_none();
        let spared = |host: &Host| spare_swapping && swaps(host);
        let doomed = self.hosts.iter().filter(|(_, host)| !spared(host));
        let keys: Vec<HostKey> = doomed.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.kill(&key, why.into());
        }
    }

    /// The agent is about to end: no more starts.
    pub(super) fn ending_begin(&mut self) {
        self.ending = true;
        self.swap_all("the node's agent is ending");
    }

    /// Whether all that are left are writing their images.
    pub(super) fn all_swapping(&self) -> bool {
        let swaps = |host: &Host| host.record.ending == Some(Ending::Swap) && host.killed.is_none();
        self.hosts.values().all(swaps)
    }

    /// Hosts that are there, for the log.
    pub(super) fn names(&self) -> Vec<String> {
        self.hosts.keys().map(HostKey::to_string).collect()
    }

    fn kill(&mut self, key: &HostKey, why: String) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        if host.killed.is_none() {
            tracing::warn!(%key, pid = host.record.pid, why, "killing a host");
            host.killed = Some(why);
            self.deadline_set(key, None);
            self.actions.push(Action::Kill(key.clone()));
        }
    }

    fn send(&mut self, key: &HostKey, message: ToHost) {
        if self.hosts.get(key).is_some_and(|host| host.linked) {
            let to = vec![key.clone()];
            self.actions.push(Action::Send(to, Box::new(message)));
        }
    }

    fn answer_all(&mut self, requests: impl IntoIterator<Item = u64>, result: &Result<(), String>) {
        for request in requests {
            self.answer(request, result.clone());
        }
    }

    fn answer(&mut self, request: u64, result: Result<(), String>) {
        let answer = FromAgent::Answer { request, result };
        self.actions.push(Action::Say(answer));
    }

    /// A host's state has changed: it is kept, and said.
    fn changed(&mut self, key: &HostKey) {
        if let Some(host) = self.hosts.get(key) {
            let (record, report) = (host.record.clone(), host.report());
            self.actions.push(Action::RecordWrite(Box::new(record)));
            self.actions.push(Action::Say(FromAgent::Report(report)));
        }
    }

    fn report_dead(&mut self, report: HostReport) {
        let key = HostKey {
            application: report.application.clone(),
            process: report.process.clone(),
        };
        if self.finals.len() >= FINALS_MAX {
            self.finals.pop_first();
        }
        self.finals.insert(key, (report.clone(), false));
        self.actions.push(Action::Say(FromAgent::Report(report)));
    }

    fn deadline_set(&mut self, key: &HostKey, deadline: Option<(Instant, Due)>) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        if let Some((at, _)) = std::mem::replace(&mut host.deadline, deadline) {
            self.deadlines.remove(&(at, key.clone()));
        }
        if let Some((at, _)) = deadline {
            self.deadlines.insert((at, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests;
