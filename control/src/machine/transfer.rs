//! Transfers: a process that two hosts are about, and the one change that says which of them it is.
//!
//! ```text
//!            TransferOut            reported: Sending         reported: Prepared
//!   begin --> Offering ---------------> Pulling ------------------> commit --> Serving
//!    stored                Start{from}     |                        stored       | TransferServe
//!                                          | anything fails                      | reported: ready
//!                                          v                                     v
//!                             abort: stored, then TransferThaw               Ending --> over
//!                                                                         Stop    the source is dead
//! ```
//!
//! Invariant: *the source serves until it freezes, and after that only if the transfer was aborted;
//! the target serves only if it was committed*, and of one transfer only one of the two is ever
//! stored. The source freezes before the target can have everything, and does not thaw by itself
//! once it may have. So whatever is lost or killed in between, no two hosts serve, and what is
//! stored, with both agents' inventories, says what is to be done.
//!
//! If the target dies after the commit and before it served, the source still has everything: it
//! is told to swap out, and the process starts from that image. If the source dies before the
//! commit, the target may have the only copy: it is given up only once it is known to have less,
//! its node is dead, or time is up. Nothing else is started as long as there is a transfer.

mod heard;

use super::requests::{limit_check, never_created, not_found};
use super::{Action, Key, Origin, Registry, Reply, Want};
use crate::agent::{
    HostCommand, HostReport, HostTransfer, StartCommand, StartFrom, ToAgent,
    TransferCommand as TransferOut,
};
use crate::api::ProcessState;
use crate::error::{ErrorKind, Failure};
use crate::store::{Change, TransferRecord};

/// Milliseconds after which what failed is tried again.
const RETRY_MS: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It was begun by a control plane before this one: the agents have not told yet.
    Restored,
    /// A checkpoint is being taken: nobody was asked for anything yet.
    Waiting,
    /// The source is asked to let itself be fetched from.
    Offering,
    /// The target is started, and fetches.
    Pulling,
    /// It is the target, which is to serve.
    Serving,
    /// The target serves; the source is to end.
    Ending,
    /// The target died before it served; the source is to swap out.
    Rescuing,
}

impl Phase {
    /// Whether there is no target yet.
    fn is_early(self) -> bool {
        matches!(self, Self::Waiting | Self::Offering)
    }
}

/// A transfer that is not over.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) record: TransferRecord,
    phase: Phase,
    /// When the target must have everything.
    deadline: u64,
    /// What the source said last of its part.
    source: Option<HostTransfer>,
    source_dead: bool,
    /// The source has ended and left an image of all that it was.
    source_saved: bool,
    /// The link over which whoever is to do something now was told.
    told: Option<u64>,
    retry: u64,
    /// Where the process is to go once this is over.
    next: Option<String>,
}

impl Transfer {
    /// Whether the process is where it was to go, and is to go nowhere else.
    fn is_done(&self) -> bool {
        self.phase == Phase::Ending && self.next.is_none()
    }

    /// Whether the target is dead, and the source still has everything.
    pub(super) fn is_rescuing(&self) -> bool {
        self.phase == Phase::Rescuing
    }

    /// Whether the target, of which nothing is known for now, may have the only copy.
    fn is_last_copy(&self) -> bool {
        self.source_dead && !self.phase.is_early() && !self.record.committed
    }
}

/// What an agent was told about a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Out,
    Start,
    Serve,
    End,
    Rescue,
}

#[derive(Debug)]
pub(super) struct TransferCommand {
    link: u64,
    key: Key,
    told: Told,
}

impl Registry {
    /// Moves a process, and answers when it is ready there.
    pub(super) fn transfer_request(
        &mut self,
        now: u64,
        origin: Origin,
        wait_ms: u64,
        key: &Key,
        to: Option<String>,
    ) {
        match self.transfer_check(key, to) {
            Ok(None) => {}
            Ok(Some(to)) => match self.transfer_mut(key) {
                // The host that it was on is about to end.
                Some(transfer) => transfer.next = Some(to),
                None => self.transfer_begin(now, key, to),
            },
            Err(failure) => return self.answer(origin, Err(failure)),
        }
        match self.entry(key) {
            Some(entry) if entry.transfer.as_ref().is_none_or(Transfer::is_done) => {
                // It is there already.
                let shown = Box::new(entry.show(self.now));
                self.answer(origin, Ok(Reply::Process(shown)));
            }
            _ => self.wait_for(now, origin, wait_ms, key, Want::Transferred),
        }
    }

    /// Where to; nothing if it is there, or on its way.
    fn transfer_check(&self, key: &Key, to: Option<String>) -> Result<Option<String>, Failure> {
        self.app(&key.application)?;
        let Some(entry) = self.entry(key) else {
            return Err(never_created(key));
        };
        let conflict = |detail: String| Err(Failure::new(ErrorKind::Conflict, detail));
        limit_check(
            &format!("requests waiting for {key}"),
            entry.waiters.len(),
            self.limits.waiters_max,
        )?;
        let ending = |transfer: &&Transfer| transfer.phase == Phase::Ending;
        let transfer = entry.transfer.as_ref();
        if let Some(transfer) = transfer.filter(|transfer| !ending(transfer)) {
            let node = &transfer.record.to_node;
            return match to {
                Some(to) if to != *node => conflict(format!("{key} is on its way to {node:?}")),
                _ => Ok(None),
            };
        }
        if !entry.serves() {
            let state = entry.record.state;
            return conflict(format!(
                "{key} is {state}: only what serves can be transferred"
            ));
        }
        let from = entry.record.node.as_deref();
        let Some(to) = to else {
            let from: Vec<&str> = from.into_iter().collect();
            let place = self.place_except(&from).map(|(node, _)| node);
            let none = || Failure::new(ErrorKind::NoAgent, "there is no other node for it");
            return place.map(Some).ok_or_else(none);
        };
        match self.nodes.get(&to) {
            None => {
                let shown: String = to.chars().take(255).collect();
                Err(not_found(format!("there is no node {shown:?}")))
            }
            Some(_) if from == Some(to.as_str()) => Ok(None),
            Some(node) if node.drained => conflict(format!("node {to:?} is drained")),
            Some(node) if node.link.is_none() => {
                let detail = format!("the agent of node {to:?} is away");
                Err(Failure::new(ErrorKind::NoAgent, detail))
            }
            Some(_) => Ok(Some(to)),
        }
    }

    pub(super) fn transfer_begin(&mut self, now: u64, key: &Key, to_node: String) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let Some(from_node) = entry.record.node.clone() else {
            return;
        };
        let to_incarnation = self.incarnation_next;
        let record = TransferRecord {
            application: key.application.clone(),
            name: key.process.clone(),
            from_node,
            from_incarnation: entry.record.incarnation,
            to_node,
            to_incarnation,
            committed: false,
        };
        self.incarnation_next += 1;
        let change = Change::IncarnationNext(self.incarnation_next);
        self.actions.push(Action::Persist(change));
        self.transfer_add(now, key, record, Phase::Waiting);
        self.move_begun(key);
        self.transfer_offer(key);
    }

    /// Asks the source, once no checkpoint of it is being taken.
    fn transfer_offer(&mut self, key: &Key) {
        let ready = |entry: &&super::Entry| !entry.watch.is_checkpointed();
        let Some(entry) = self.entry(key).filter(ready) else {
            return;
        };
        let Some(to_incarnation) = entry.transfer.as_ref().map(|t| t.record.to_incarnation) else {
            return;
        };
        let Some((link, incarnation)) = self.transfer_link(key, true) else {
            return;
        };
        self.transfer_phase(key, Phase::Offering);
        let token = self.transfer_token(key, to_incarnation);
        let command = TransferOut {
            request: self.transfer_tell(link, key, Told::Out),
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation,
            to_incarnation,
            token,
        };
        let message = ToAgent::TransferOut(command);
        self.actions.push(Action::Tell { link, message });
    }

    fn transfer_add(&mut self, now: u64, key: &Key, record: TransferRecord, phase: Phase) {
        let deadline = now.saturating_add(self.limits.transfer_timeout_ms);
        if phase == Phase::Waiting {
            let change = Change::Transfer(record.clone());
            self.actions.push(Action::Persist(change));
        }
        if let Some(entry) = self.entry_mut(key) {
            entry.transfer = Some(Transfer {
                record,
                phase,
                deadline,
                source: None,
                source_dead: false,
                source_saved: false,
                told: None,
                retry: 0,
                next: None,
            });
            self.transfers.insert(key.clone());
        }
    }

    /// A transfer that was stored.
    pub(super) fn transfer_restore(&mut self, now: u64, record: TransferRecord) {
        let key = Key {
            application: record.application.clone(),
            process: record.name.clone(),
        };
        let state = self.entry(&key).map(|entry| entry.record.state);
        let phase = match (record.committed, state) {
            (false, _) => Phase::Restored,
            // It may have been told to stop before it was told to serve, and have heard neither.
            (true, Some(ProcessState::Starting | ProcessState::Quiescing)) => Phase::Serving,
            (true, Some(ProcessState::Failed)) => Phase::Rescuing,
            (true, _) => Phase::Ending,
        };
        self.incarnation_next = self.incarnation_next.max(record.to_incarnation + 1);
        if state.is_none() {
            // Nobody could ever end it.
            let change = Change::TransferRemoved(key.application, key.process);
            return self.actions.push(Action::Persist(change));
        }
        for node in [&record.from_node, &record.to_node] {
            self.nodes.entry(node.clone()).or_default();
        }
        let dead = state.is_some_and(|state| !state.is_live());
        let committed = record.committed;
        self.transfer_add(now, &key, record, phase);
        if let Some(transfer) = self.transfer_mut(&key) {
            transfer.source_dead = dead && !committed;
        }
    }

    pub(super) fn transfer(&self, key: &Key) -> Option<&Transfer> {
        self.entry(key)?.transfer.as_ref()
    }

    fn transfer_mut(&mut self, key: &Key) -> Option<&mut Transfer> {
        self.entry_mut(key)?.transfer.as_mut()
    }

    /// The link to the source's or the target's agent, and the incarnation there.
    fn transfer_link(&self, key: &Key, source: bool) -> Option<(u64, u64)> {
        let record = &self.transfer(key)?.record;
        let (node, incarnation) = match source {
            true => (&record.from_node, record.from_incarnation),
            false => (&record.to_node, record.to_incarnation),
        };
        Some((self.nodes.get(node)?.link?, incarnation))
    }

    /// What the two hosts know each other by: only who has the application's secret can make it.
    fn transfer_token(&self, key: &Key, to_incarnation: u64) -> [u8; 16] {
        let secret = self.apps.get(&key.application);
        let secret = secret.map_or([0; 32], |app| *app.record.secret.as_bytes());
        let mut hasher = blake3::Hasher::new_keyed(&secret);
        hasher.update(b"praas transfer 1");
        hasher.update(&to_incarnation.to_le_bytes());
        let mut token = [0; 16];
        hasher.finalize_xof().fill(&mut token);
        token
    }

    fn transfer_tell(&mut self, link: u64, key: &Key, told: Told) -> u64 {
        self.command_last = self.command_last.wrapping_add(1).max(1);
        let key = key.clone();
        let command = TransferCommand { link, key, told };
        self.transfer_commands.insert(self.command_last, command);
        self.command_last
    }

    fn transfer_command(&mut self, link: u64, key: &Key, told: Told, incarnation: u64) {
        let command = HostCommand {
            request: self.transfer_tell(link, key, told),
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation,
        };
        let message = match told {
            Told::Serve => ToAgent::TransferServe(command),
            Told::Rescue => ToAgent::SwapOut(command),
            Told::End | Told::Out | Told::Start => ToAgent::Stop(command),
        };
        self.actions.push(Action::Tell { link, message });
    }

    fn thaw(&mut self, link: u64, key: &Key, incarnation: u64) {
        self.command_last = self.command_last.wrapping_add(1).max(1);
        let message = ToAgent::TransferThaw(HostCommand {
            request: self.command_last,
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation,
        });
        self.actions.push(Action::Tell { link, message });
    }

    /// After a report of the process's own host was taken.
    pub(super) fn transfer_go_on(&mut self, key: &Key) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let Some(transfer) = &entry.transfer else {
            return;
        };
        let offered = matches!(
            transfer.source,
            Some(HostTransfer::Sending | HostTransfer::Frozen)
        );
        let served = entry.record.state == ProcessState::Ready;
        match transfer.phase {
            Phase::Offering if offered => self.transfer_start(key),
            // What was declared dead may turn out to serve.
            Phase::Serving | Phase::Rescuing if served => {
                self.transfer_phase(key, Phase::Ending);
                if let Some(entry) = self.entry(key) {
                    let shown = Reply::Process(Box::new(entry.show(self.now)));
                    self.waiters_done(key, Want::Transferred, &shown);
                }
            }
            _ => {}
        }
    }

    fn transfer_phase(&mut self, key: &Key, phase: Phase) {
        if let Some(transfer) = self.transfer_mut(key) {
            transfer.phase = phase;
            transfer.told = None;
            transfer.retry = 0;
        }
    }

    /// Starts the target.
    fn transfer_start(&mut self, key: &Key) {
        let Some((link, incarnation)) = self.transfer_link(key, false) else {
            return self.transfer_abort(key, "the agent of the other node is away");
        };
        self.transfer_phase(key, Phase::Pulling);
        let token = self.transfer_token(key, incarnation);
        let request = self.transfer_tell(link, key, Told::Start);
        let (Some(app), Some(entry)) = (self.apps.get(&key.application), self.entry(key)) else {
            return;
        };
        let command = StartCommand {
            request,
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation,
            life: entry.record.life,
            modules: app.record.modules.clone(),
            settings: app.record.settings.clone(),
            key_id: app.record.key_id,
            secret: app.record.secret.clone(),
            swap_generation: entry.record.swap_generation,
            swapped: false,
            from: Some(StartFrom {
                addresses: entry.addresses.clone(),
                incarnation: entry.record.incarnation,
                token,
            }),
        };
        let message = ToAgent::Start(Box::new(command));
        self.actions.push(Action::Tell { link, message });
    }

    /// The target has everything: it is the process from now on.
    fn transfer_commit(&mut self, key: &Key, report: &HostReport) {
        let known = self.entry(key).map(|entry| entry.record.incarnation);
        let Some(transfer) = self.transfer_mut(key) else {
            return;
        };
        if known != Some(transfer.record.from_incarnation) {
            return self.transfer_abort(key, "the process is not what was transferred any more");
        }
        transfer.record.committed = true;
        self.move_ended(key, None);
        let Some(transfer) = self.transfer(key) else {
            return;
        };
        let record = transfer.record.clone();
        let change = Change::Transfer(record.clone());
        self.actions.push(Action::Persist(change));
        self.transfer_phase(key, Phase::Serving);
        self.command_end(key);
        let pid = report.pid;
        self.update(key, |entry| {
            entry.record.incarnation = record.to_incarnation;
            entry.record.state = ProcessState::Starting;
            entry.record.node = Some(record.to_node);
            entry.record.stopping = false;
            entry.record.error = None;
            entry.vouched = true;
            entry.pid = pid;
            entry.addresses.clear();
        });
    }

    /// Calls a transfer off that is not committed: the source serves on, the target ends.
    pub(super) fn transfer_abort(&mut self, key: &Key, why: &str) {
        tracing::warn!(%key, why, "not transferred");
        let (source, target) = (
            self.transfer_link(key, true),
            self.transfer_link(key, false),
        );
        let Some(transfer) = self.transfer_over(key) else {
            return;
        };
        if let Some((link, incarnation)) = source.filter(|_| !transfer.source_dead) {
            self.thaw(link, key, incarnation);
        }
        if let Some((link, incarnation)) = target.filter(|_| !transfer.phase.is_early()) {
            self.stray_stop(link, key, incarnation);
        }
        self.move_ended(key, Some(&transfer.record.to_node));
        self.waiters_fail(key, Want::Transferred, ErrorKind::ProcessFailed, why);
    }

    /// Ends a transfer that is of before: a later host is the process, so neither of the two is, and
    /// both are to end. Whether there was one.
    pub(super) fn transfer_supersede(&mut self, key: &Key) -> bool {
        let (source, target) = (
            self.transfer_link(key, true),
            self.transfer_link(key, false),
        );
        let Some(over) = self.transfer_over(key) else {
            return false;
        };
        let source = source.filter(|_| !over.source_dead);
        for (link, incarnation) in [source, target].into_iter().flatten() {
            self.stray_stop(link, key, incarnation);
        }
        self.move_ended(key, None);
        let why = "another host is found to be the process";
        self.waiters_fail(key, Want::Transferred, ErrorKind::Conflict, why);
        true
    }

    /// Forgets a transfer.
    fn transfer_over(&mut self, key: &Key) -> Option<Transfer> {
        let transfer = self.entry_mut(key)?.transfer.take()?;
        self.transfers.remove(key);
        self.policy.changed(key);
        self.transfer_commands
            .retain(|_, command| command.key != *key);
        let change = Change::TransferRemoved(key.application.clone(), key.process.clone());
        self.actions.push(Action::Persist(change));
        Some(transfer)
    }

    /// Somebody wants the process stopped while its source is being rescued: it just ends.
    pub(super) fn transfer_rescue_end(&mut self, key: &Key) {
        self.transfer_phase(key, Phase::Ending);
    }

    fn transfer_keys(&self) -> Vec<Key> {
        self.transfers.iter().cloned().collect()
    }

    /// Does what time or others' words have made due.
    pub(super) fn transfers_step(&mut self, now: u64) {
        for key in self.transfer_keys() {
            self.transfer_step(now, &key);
        }
        self.drains_step(now);
    }

    fn transfer_step(&mut self, now: u64, key: &Key) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let Some(transfer) = &entry.transfer else {
            return;
        };
        let vouched = entry.vouched && entry.record.state == ProcessState::Starting;
        if !transfer.record.committed {
            let node = &transfer.record.to_node;
            if transfer.is_last_copy() && self.lease_lapsed(now, node) {
                let why = format!("node {node:?} was silent for too long");
                self.transfer_abort(key, &why);
                self.drive(key);
            } else if transfer.deadline <= now {
                let limit = self.limits.transfer_timeout_ms;
                let why = format!("it took more than {limit} ms (setting transfer_timeout_ms)");
                self.transfer_abort(key, &why);
                self.drive(key);
            } else if transfer.phase == Phase::Waiting {
                self.transfer_offer(key);
            }
            return;
        }
        let dead = transfer.source_dead || self.lease_lapsed(now, &transfer.record.from_node);
        if dead && transfer.phase != Phase::Serving {
            let next = self.transfer_over(key).and_then(|over| over.next);
            if let Some(to) = next {
                self.transfer_next(now, key, to);
            }
            return self.drive(key);
        }
        let (source, told) = match transfer.phase {
            Phase::Serving => (false, Told::Serve),
            Phase::Ending => (true, Told::End),
            Phase::Rescuing => (true, Told::Rescue),
            Phase::Restored | Phase::Waiting | Phase::Offering | Phase::Pulling => return,
        };
        let due = transfer.told.is_none() && transfer.retry <= now && (source || vouched);
        if let Some((link, incarnation)) = self.transfer_link(key, source).filter(|_| due) {
            if let Some(transfer) = self.transfer_mut(key) {
                transfer.told = Some(link);
            }
            if matches!(told, Told::Rescue) {
                // As with any swap: from here on there may be an image, whatever comes of it.
                self.update(key, |entry| entry.record.images = true);
            }
            self.transfer_command(link, key, told, incarnation);
        }
    }

    /// After one transfer another: things may have changed since it was asked for.
    fn transfer_next(&mut self, now: u64, key: &Key, to: String) {
        let takes = |node: &super::NodeEntry| !node.drained && node.link.is_some();
        let serves = self.entry(key).is_some_and(super::Entry::serves);
        let why = match self.nodes.get(&to).is_some_and(takes) {
            true if serves => return self.transfer_begin(now, key, to),
            true => "it does not serve any more".into(),
            false => format!("node {to:?} is drained, or its agent is away"),
        };
        self.waiters_fail(key, Want::Transferred, ErrorKind::Conflict, &why);
    }

    /// Whether all that was on a node has ended by now.
    fn lease_lapsed(&self, now: u64, node: &str) -> bool {
        let lease_ms = self.limits.lease_ms;
        let lapsed = |since: u64| since.saturating_add(lease_ms) <= now;
        self.nodes.get(node).is_none_or(|node| {
            node.link.is_none() && lease_ms > 0 && node.silent_since.is_none_or(lapsed)
        })
    }

    /// When all that was on a node will have ended, if its agent stays away.
    fn lease_lapse(&self, node: &str) -> Option<u64> {
        let silent_since = self.nodes.get(node)?.silent_since?;
        let lease_ms = self.limits.lease_ms;
        (lease_ms > 0).then(|| silent_since.saturating_add(lease_ms))
    }

    /// When [`Registry::transfers_step`] has something to do though nobody says anything.
    pub(super) fn transfer_due(&self) -> Option<u64> {
        let transfers = self.transfers.iter().filter_map(|key| {
            let transfer = self.transfer(key)?;
            let record = &transfer.record;
            let (node, at) = match record.committed {
                false => (&record.to_node, transfer.deadline),
                true => (&record.from_node, transfer.retry),
            };
            let lapse = self.lease_lapse(node);
            let lapse = lapse.filter(|_| record.committed || transfer.is_last_copy());
            let due = [Some(at), lapse].into_iter().flatten();
            due.filter(|due| *due > self.now).min()
        });
        transfers.chain(self.drain_due()).min()
    }
}
