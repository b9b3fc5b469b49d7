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

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use praas_control::agent::{
    ApplicationKey, FromAgent, HostCommand, HostReport, StartCommand, ToAgent,
};
use praas_control::api::{Member, ProcessState};
use praas_runtime::host::{FromHost, HostHello, ToHost};
use praas_runtime::world::{self, MemberState, World};
use praas_transport::wire::Incarnation;
use praas_transport::{Address, Secret};

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
    /// Delete the swap images of a process; answer the command then.
    ImagesDelete(u64, HostKey),
    /// A process serves, says its own host: whoever asks for it can be told.
    Serves(HostKey),
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

/// What a host has said of its end.
#[derive(Debug)]
enum End {
    Swapped(u64),
    Failed(String),
}

/// What is overdue when a deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Ready,
    Stopped,
    Ended,
    Redialled,
}

#[derive(Debug)]
struct Host {
    record: HostRecord,
    /// Whether there is a connection to it.
    linked: bool,
    start: Option<u64>,
    swaps: Vec<u64>,
    stops: Vec<u64>,
    end: Option<End>,
    /// Why we killed it.
    killed: Option<String>,
    deadline: Option<(Instant, Due)>,
    /// Starts once this one is dead.
    next: Option<Box<StartCommand>>,
}

impl Host {
    fn report(&self) -> HostReport {
        HostReport {
            application: self.record.application.clone(),
            process: self.record.process.clone(),
            incarnation: self.record.incarnation,
            state: self.record.state,
            pid: self.record.pid,
            addresses: self.record.addresses.clone(),
            swap_generation: self.record.swap_generation,
            error: self.record.warning.clone(),
        }
    }

    /// What is said of it now that it is dead.
    fn report_final(&self, how: &str) -> HostReport {
        let stopped = self.record.ending == Some(Ending::Stop);
        let (state, error) = match (&self.end, &self.killed) {
            _ if stopped => (ProcessState::Gone, None),
            (Some(End::Swapped(_)), _) => (ProcessState::Swapped, None),
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
            Some(End::Swapped(generation)) => generation,
            _ => self.record.swap_generation,
        };
        HostReport {
            state,
            pid: 0,
            addresses: Vec::new(),
            swap_generation,
            error,
            ..self.report()
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
            } => {
                let key = HostKey {
                    application,
                    process,
                };
                match self.hosts.contains_key(&key) {
                    true => self.answer(request, Err(format!("{key} has a host on this node"))),
                    false => self.actions.push(Action::ImagesDelete(request, key)),
                }
            }
            ToAgent::Applications(keys) => self.keys_update(keys),
            ToAgent::World {
                application,
                generation,
                members,
            } => self.world_update(application, generation, members),
            ToAgent::Resolved { .. } => {}
        }
    }

    fn start(&mut self, now: Instant, start: Box<StartCommand>) {
        let key = HostKey {
            application: start.application.clone(),
            process: start.process.clone(),
        };
        if let Some(host) = self.hosts.get_mut(&key) {
            let older = host.record.incarnation;
            if older >= start.incarnation {
                tracing::error!(%key, older, incarnation = start.incarnation, "not starting");
                if older > start.incarnation {
                    let why = format!("incarnation {older} lives here");
                    self.answer(start.request, Err(why));
                }
                return;
            }
            host.next = Some(start);
            return self.kill(&key, "a newer incarnation is to start".into());
        }
        let settings = match self.start_check(&start) {
            Ok(settings) => settings,
            Err(why) => return self.start_refuse(&start, why),
        };
        self.finals.remove(&key);
        let record = HostRecord {
            state: ProcessState::Starting,
            swap_generation: start.swap_generation,
            quiesce_ms: settings.process.quiesce_timeout_ms,
            ..HostRecord::new(&key, start.incarnation)
        };
        self.actions
            .push(Action::RecordWrite(Box::new(record.clone())));
        let host = Host {
            start: Some(start.request),
            ..Host::new(record)
        };
        self.hosts.insert(key.clone(), host);
        self.deadline_set(&key, Some((now + self.limits.start, Due::Ready)));
        self.actions.push(Action::Spawn(start, Box::new(settings)));
    }

    fn start_check(&self, start: &StartCommand) -> Result<HostSettings, String> {
        if self.ending {
            return Err("the node's agent is about to end".into());
        }
        if self.hosts.len() >= self.limits.hosts_max {
            let max = self.limits.hosts_max;
            return Err(format!("the node has {max} hosts (setting hosts_max)"));
        }
        HostSettings::parse(&start.settings)
    }

    fn start_refuse(&mut self, start: &StartCommand, why: String) {
        let report = HostReport {
            application: start.application.clone(),
            process: start.process.clone(),
            incarnation: start.incarnation,
            state: ProcessState::Failed,
            pid: 0,
            addresses: Vec::new(),
            swap_generation: start.swap_generation,
            error: Some(why.clone()),
        };
        self.report_dead(report);
        self.answer(start.request, Err(why));
    }

    /// The operating system's process is there, and has its first message.
    pub(super) fn spawned(&mut self, key: &HostKey, pid: u32, started: u64, log_start: u64) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        host.linked = true;
        host.record.pid = pid;
        host.record.started = started;
        host.record.log_start = log_start;
        self.changed(key);
        self.world_send(key);
    }

    /// There is no such process.
    pub(super) fn spawn_failed(&mut self, now: Instant, key: &HostKey, why: String) {
        if let Some(host) = self.hosts.get_mut(key) {
            host.end = Some(End::Failed(why));
        }
        self.died(now, key, "");
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
            FromHost::Hello(_) | FromHost::Stats(_) => {}
        }
    }

    fn ready(
        &mut self,
        key: &HostKey,
        addresses: Vec<Address>,
        generation: u64,
        rejected: &[String],
    ) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        host.record.addresses = addresses;
        host.record.swap_generation = generation;
        if !rejected.is_empty() {
            let text = rejected.join("; ");
            tracing::error!(%key, generation, "newer swap images are not used: {text}");
            host.record.warning = Some(format!("generation {generation} was loaded: {text}"));
        }
        if host.record.state != ProcessState::Starting {
            return;
        }
        host.record.state = ProcessState::Ready;
        let start = host.start.take();
        self.deadline_set(key, None);
        self.changed(key);
        if let Some(request) = start {
            self.answer(request, Ok(()));
        }
        self.actions.push(Action::Serves(key.clone()));
    }

    /// A host says that it ends.
    fn ends(&mut self, now: Instant, key: &HostKey, end: End) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        host.end = Some(end);
        let quiesces = host.record.state == ProcessState::Ready;
        if quiesces {
            host.record.state = ProcessState::Quiescing;
        }
        self.deadline_set(key, Some((now + self.limits.exit, Due::Ended)));
        if quiesces {
            self.changed(key);
        }
    }

    fn swap_failed(&mut self, now: Instant, key: &HostKey, error: String) {
        tracing::warn!(%key, error, "not swapped out");
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        match host.record.ending {
            Some(Ending::Stop) => {}
            // It ends all the same.
            None => self.ends(
                now,
                key,
                End::Failed(format!("it could not swap out: {error}")),
            ),
            Some(Ending::Swap) if self.ending => {
                self.kill(
                    key,
                    format!("its node ended, and it did not swap out: {error}"),
                );
            }
            Some(Ending::Swap) => {
                host.record.ending = None;
                if host.record.state == ProcessState::Quiescing {
                    host.record.state = ProcessState::Ready;
                }
                let swaps = std::mem::take(&mut host.swaps);
                self.changed(key);
                for request in swaps {
                    self.answer(request, Err(error.clone()));
                }
                self.actions.push(Action::Serves(key.clone()));
            }
        }
    }

    fn swap(&mut self, command: &HostCommand) {
        let Some(key) = self.commanded(command) else {
            // An `Err` would mean that it serves on. The report tells.
            self.report_missing(command);
            return self.answer(command.request, Ok(()));
        };
        if let Some(host) = self.hosts.get_mut(&key) {
            host.swaps.push(command.request);
        }
        self.swap_begin(&key);
    }

    fn swap_begin(&mut self, key: &HostKey) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        if host.record.ending.is_some() || host.end.is_some() || host.killed.is_some() {
            return;
        }
        host.record.ending = Some(Ending::Swap);
        host.record.state = ProcessState::Quiescing;
        self.changed(key);
        self.send(key, ToHost::SwapOut);
    }

    fn stop(&mut self, now: Instant, command: &HostCommand) {
        let Some(key) = self.commanded(command) else {
            self.next_forget(command);
            return self.answer(command.request, Ok(()));
        };
        let Some(host) = self.hosts.get_mut(&key) else {
            return;
        };
        host.stops.push(command.request);
        if host.record.ending == Some(Ending::Stop) || host.killed.is_some() {
            host.record.ending = Some(Ending::Stop);
            return;
        }
        // Functions may be cancelled, and be waited for once more.
        let quiesce = Duration::from_millis(host.record.quiesce_ms.saturating_mul(2));
        let starting = host.record.state == ProcessState::Starting;
        host.record.ending = Some(Ending::Stop);
        host.record.state = ProcessState::Quiescing;
        self.changed(&key);
        match starting {
            // It runs nothing yet that could be finished.
            true => self.kill(&key, "it was stopped while it started".into()),
            false => {
                let deadline = now + quiesce + self.limits.stop;
                self.deadline_set(&key, Some((deadline, Due::Stopped)));
                self.send(&key, ToHost::Stop);
            }
        }
    }

    /// A start that waits for the end of an older host is called off.
    fn next_forget(&mut self, command: &HostCommand) {
        let key = command_key(command);
        let Some(host) = self.hosts.get_mut(&key) else {
            return;
        };
        let meant = |next: &mut Box<StartCommand>| next.incarnation == command.incarnation;
        if let Some(next) = host.next.take_if(meant) {
            self.answer(next.request, Err("it was stopped".into()));
        }
    }

    /// The host that a command means, if it is here.
    fn commanded(&self, command: &HostCommand) -> Option<HostKey> {
        let key = command_key(command);
        let host = self.hosts.get(&key)?;
        (host.record.incarnation == command.incarnation).then_some(key)
    }

    /// Says of a host that is not here what became of it.
    fn report_missing(&mut self, command: &HostCommand) {
        let known = self.finals.get(&command_key(command));
        let known = known.filter(|(report, _)| report.incarnation == command.incarnation);
        let report = known.map(|(report, _)| report.clone());
        let report = report.unwrap_or_else(|| HostReport {
            application: command.application.clone(),
            process: command.process.clone(),
            incarnation: command.incarnation,
            state: ProcessState::Failed,
            pid: 0,
            addresses: Vec::new(),
            swap_generation: 0,
            error: Some("it has no host on this node".into()),
        });
        self.actions.push(Action::Say(FromAgent::Report(report)));
    }

    /// A host of an agent before this one, which may live.
    pub(super) fn adopt(&mut self, now: Instant, record: HostRecord) {
        let key = record.key();
        self.hosts.insert(key.clone(), Host::new(record));
        self.deadline_set(&key, Some((now + self.limits.adopt, Due::Redialled)));
    }

    /// A host of an agent before this one, which is dead. `generation` is of an image that it
    /// wrote.
    pub(super) fn adopt_dead(&mut self, now: Instant, record: HostRecord, generation: Option<u64>) {
        let key = record.key();
        let mut host = Host::new(record);
        host.end = generation.map(End::Swapped);
        self.hosts.insert(key.clone(), host);
        self.died(now, &key, "while no agent was there to see how");
    }

    /// Whether a host that redials is the one that is known.
    pub(super) fn expects(&self, key: &HostKey, incarnation: u64, pid: u32) -> bool {
        self.hosts.get(key).is_some_and(|host| {
            host.record.incarnation == incarnation && host.record.pid == pid && !host.linked
        })
    }

    /// A host has redialled, was taken, and has the directory's address.
    pub(super) fn redialled(&mut self, now: Instant, key: &HostKey, hello: HostHello) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        host.linked = true;
        let ending = host.record.ending;
        let due = match (ending, host.record.state) {
            (Some(Ending::Stop), _) => host.deadline.filter(|(_, due)| *due == Due::Stopped),
            (_, ProcessState::Starting) => Some((now + self.limits.start, Due::Ready)),
            _ => None,
        };
        self.deadline_set(key, due);
        if !hello.addresses.is_empty() {
            self.ready(key, hello.addresses, hello.swap_generation, &hello.rejected);
        }
        if let Some((key_id, secret)) = self.keys.get(&key.application).cloned() {
            self.send(key, ToHost::Keys { key_id, secret });
        }
        self.world_send(key);
        // It may not have got what the agent before this one had said last.
        match ending {
            Some(Ending::Swap) => self.send(key, ToHost::SwapOut),
            Some(Ending::Stop) => self.send(key, ToHost::Stop),
            None => {}
        }
    }

    /// The connection to a host is gone: it dies, or it redials.
    pub(super) fn unlinked(&mut self, now: Instant, key: &HostKey) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        host.linked = false;
        let bounded = matches!(host.deadline, Some((_, Due::Stopped | Due::Ended)));
        if !bounded && host.killed.is_none() {
            self.deadline_set(key, Some((now + self.limits.exit, Due::Ended)));
        }
    }

    /// A host is dead, and reaped.
    pub(super) fn died(&mut self, now: Instant, key: &HostKey, how: &str) {
        self.deadline_set(key, None);
        let Some(host) = self.hosts.remove(key) else {
            return;
        };
        let report = host.report_final(how);
        match report.state {
            ProcessState::Failed => {
                let error = report.error.as_deref().unwrap_or_default();
                tracing::warn!(%key, incarnation = report.incarnation, error, "a host failed");
            }
            state => tracing::info!(%key, incarnation = report.incarnation, %state, "a host ended"),
        }
        let error = report.error.clone();
        // As long as nobody hears of it the record stays, for an agent that comes after this one.
        if self.heard {
            self.actions.push(Action::RecordRemove(key.clone()));
        }
        self.report_dead(report);
        if let Some(request) = host.start {
            let why = error.unwrap_or_else(|| "it was stopped while it started".into());
            self.answer(request, Err(why));
        }
        // Not an `Err`, which would mean that it serves on: the report has told what became of it.
        for request in host.swaps.into_iter().chain(host.stops) {
            self.answer(request, Ok(()));
        }
        if let Some(next) = host.next {
            self.start(now, next);
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
            let why = match due.map(|(_, due)| due) {
                Some(Due::Ready) => format!(
                    "it was not ready after {} ms (setting start_timeout_ms)",
                    self.limits.start.as_millis()
                ),
                Some(Due::Stopped) => "it did not stop in time".into(),
                Some(Due::Ended) => "it did not end".into(),
                Some(Due::Redialled) | None => "it did not find its agent again".into(),
            };
            self.kill(&key, why);
        }
    }

    /// Swaps out all that serve; those that start are killed. `why` is for the log.
    pub(super) fn swap_all(&mut self, why: &str) {
        let keys: Vec<HostKey> = self.hosts.keys().cloned().collect();
        tracing::warn!(hosts = keys.len(), "swapping out all hosts: {why}");
        for key in keys {
            match self.hosts.get(&key).map(|host| host.record.state) {
                Some(ProcessState::Ready) => self.swap_begin(&key),
                Some(ProcessState::Starting) => self.kill(&key, why.into()),
                _ => {}
            }
        }
    }

    /// Kills all hosts, or all but those that are writing their images.
    pub(super) fn kill_all(&mut self, spare_swapping: bool, why: &str) {
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

    fn keys_update(&mut self, keys: Vec<ApplicationKey>) {
        let before = std::mem::take(&mut self.keys);
        for key in keys {
            let (key_id, secret) = (key.key_id, key.secret);
            if before.get(&key.application).map(|(id, _)| *id) != Some(key_id) {
                let to = self.linked_of(&key.application);
                if !to.is_empty() {
                    let secret = secret.clone();
                    let message = ToHost::Keys { key_id, secret };
                    self.actions.push(Action::Send(to, Box::new(message)));
                }
            }
            self.keys.insert(key.application, (key_id, secret));
        }
        let keys = &self.keys;
        self.worlds.retain(|name, _| keys.contains_key(name));
    }

    fn world_update(&mut self, application: String, generation: u64, members: Vec<Member>) {
        let world = World {
            generation,
            members: members.into_iter().map(member).collect(),
        };
        let to = self.linked_of(&application);
        if !to.is_empty() {
            let message = Box::new(ToHost::World(world.clone()));
            self.actions.push(Action::Send(to, message));
        }
        self.worlds.insert(application, world);
    }

    fn world_send(&mut self, key: &HostKey) {
        if let Some(world) = self.worlds.get(&key.application).cloned() {
            self.send(key, ToHost::World(world));
        }
    }

    fn linked_of(&self, application: &str) -> Vec<HostKey> {
        let first = HostKey {
            application: application.into(),
            process: String::new(),
        };
        self.hosts
            .range(first..)
            .take_while(|(key, _)| key.application == application)
            .filter(|(_, host)| host.linked)
            .map(|(key, _)| key.clone())
            .collect()
    }

    fn send(&mut self, key: &HostKey, message: ToHost) {
        if self.hosts.get(key).is_some_and(|host| host.linked) {
            let to = vec![key.clone()];
            self.actions.push(Action::Send(to, Box::new(message)));
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

impl Host {
    fn new(record: HostRecord) -> Self {
        Self {
            record,
            linked: false,
            start: None,
            swaps: Vec::new(),
            stops: Vec::new(),
            end: None,
            killed: None,
            deadline: None,
            next: None,
        }
    }
}

fn command_key(command: &HostCommand) -> HostKey {
    HostKey {
        application: command.application.clone(),
        process: command.process.clone(),
    }
}

/// The runtime knows fewer states: one that finishes what runs is where it was, one that failed is
/// gone until it is started anew.
fn member(member: Member) -> world::Member {
    let state = match member.state {
        ProcessState::Starting => MemberState::Starting,
        ProcessState::Ready | ProcessState::Quiescing => MemberState::Ready,
        ProcessState::Swapped => MemberState::Swapped,
        ProcessState::Failed | ProcessState::Gone => MemberState::Gone,
    };
    world::Member {
        name: member.name,
        incarnation: Incarnation(member.incarnation),
        state,
        addresses: member.addresses,
    }
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
