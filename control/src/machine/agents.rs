//! What agents say: their hello with the inventory, reports, answers, questions; and their end.

use super::requests::{not_found, stopped};
use super::{Action, Doing, Entry, Key, NodeEntry, Origin, Registry, Reply, Verb, Want};
use crate::agent::{FromAgent, HostCommand, HostReport, HostTransfer, ToAgent};
use crate::api::{Node, ProcessState, name_check};
use crate::error::{ErrorKind, Failure};
use crate::store::Change;

impl Registry {
    pub(super) fn said(&mut self, now: u64, link: u64, message: FromAgent) {
        let hello = matches!(message, FromAgent::Hello { .. });
        if hello == self.links.contains_key(&link) {
            tracing::warn!(link, "an agent's words are out of order");
            self.lost(now, link);
            return self.actions.push(Action::Drop { link });
        }
        match message {
            FromAgent::Hello {
                node,
                cpus,
                memory_bytes,
                inventory,
            } => self.hello(now, link, (node, cpus, memory_bytes), inventory),
            FromAgent::Report(report) => self.report(link, report),
            FromAgent::Answer { request, result } => {
                self.checkpoint_answered(link, request, result.clone());
                self.answered(link, request, result);
            }
            FromAgent::Stats {
                resident_bytes,
                hosts,
            } => self.stats(link, resident_bytes, hosts),
            FromAgent::Resolve {
                request,
                application,
                process,
                ensure,
            } => {
                let key = Key {
                    application,
                    process,
                };
                let origin = Origin::Agent { link, request };
                match ensure {
                    true => {
                        let wait_ms = self.limits.resolve_timeout_ms;
                        self.process_request(now, origin, wait_ms, &key, Verb::Ensure);
                    }
                    false => {
                        let result = self.resolve(&key);
                        self.answer(origin, result);
                    }
                }
            }
        }
    }

    fn resolve(&self, key: &Key) -> Result<Reply, Failure> {
        self.app(&key.application)?;
        match self.entry(key) {
            Some(entry) if entry.serves() => self.shown(key),
            Some(entry) if entry.record.state == ProcessState::Gone => Err(stopped(key)),
            Some(entry) => {
                let detail = format!("{key} is {}", entry.record.state);
                Err(Failure::new(ErrorKind::Conflict, detail))
            }
            None => Err(super::requests::never_created(key)),
        }
    }

    fn hello(
        &mut self,
        now: u64,
        link: u64,
        (name, cpus, memory_bytes): (String, u32, u64),
        inventory: Vec<HostReport>,
    ) {
        if let Err(failure) = name_check("node", &name) {
            tracing::warn!(%failure, "refusing an agent");
            return self.actions.push(Action::Drop { link });
        }
        if let Some(older) = self.nodes.get(&name).and_then(|node| node.link) {
            // The agent has dialled again before we noticed the end of its channel.
            self.lost(now, older);
            self.actions.push(Action::Drop { link: older });
        }
        tracing::info!(
            node = name,
            hosts = inventory.len(),
            "an agent has connected"
        );
        let node = self.nodes.entry(name.clone()).or_default();
        *node = NodeEntry {
            link: Some(link),
            cpus,
            memory_bytes,
            resident_bytes: 0,
            silent_since: None,
            ..*node
        };
        self.links.insert(link, name.clone());
        let message = self.applications_message();
        self.actions.push(Action::Tell { link, message });
        let hosts: Vec<(Key, u64)> = inventory.iter().map(reported).collect();
        for report in inventory {
            self.report(link, report);
        }
        self.transfers_inventory(&name, &hosts);
        // What the inventory does not name and should is dead.
        let missing = |entry: &Entry| {
            let record = &entry.record;
            record.state.is_live()
                && !entry.vouched
                && record.node.as_deref() == Some(name.as_str())
        };
        for key in self.keys(missing) {
            let stopping = self.entry(&key).is_some_and(|entry| entry.record.stopping);
            let state = match stopping {
                true => ProcessState::Gone,
                false => ProcessState::Failed,
            };
            let error = format!("it is no longer on node {name:?}");
            self.image_assume(&key);
            self.died(&key, state, Some(error));
        }
        let here = |entry: &Entry| entry.record.node.as_deref() == Some(name.as_str());
        let applications: Vec<String> = self
            .apps
            .iter()
            .filter(|(_, app)| app.processes.values().any(here))
            .map(|(name, _)| name.clone())
            .collect();
        for application in applications {
            if let Some(app) = self.apps.get_mut(&application) {
                app.dirty = true;
            }
            self.dirty.insert(application);
        }
        self.drain_look = true;
        self.waiters_drive();
        self.policy_hello(&name);
    }

    /// There may be a node for those who wait.
    pub(super) fn waiters_drive(&mut self) {
        for key in self.keys(|entry| !entry.waiters.is_empty()) {
            self.drive(&key);
        }
    }

    fn report(&mut self, link: u64, report: HostReport) {
        let Some(node) = self.links.get(&link).cloned() else {
            return;
        };
        let key = Key {
            application: report.application.clone(),
            process: report.process.clone(),
        };
        if report.incarnation >= self.incarnation_next {
            // Only a database that was put back can have forgotten one: never use it again.
            self.incarnation_next = report.incarnation.saturating_add(1);
            let change = Change::IncarnationNext(self.incarnation_next);
            self.actions.push(Action::Persist(change));
        }
        if self.transfer_report(link, &node, &key, &report) {
            return;
        }
        let Some(entry) = self.entry(&key) else {
            return self.report_unknown(link, &node, &key, report);
        };
        let (known, before) = (entry.record.incarnation, entry.record.state);
        let live = before.is_live();
        let elsewhere = live && entry.record.node.as_deref() != Some(node.as_str());
        if report.incarnation < known || (elsewhere && report.incarnation == known) {
            if report.state.is_live() {
                tracing::warn!(%key, node, incarnation = report.incarnation, known,
                    "stopping a host that is not the process's");
                self.stray_stop(link, &key, report.incarnation);
            }
            return;
        }
        if report.incarnation > known && has_served(&report) {
            self.supersede(&key, &node, report.incarnation);
        } else if report.incarnation > known && live {
            // It will say what it is: one that only starts may be there for a transfer that is off.
            return;
        }
        if live || report.state.is_live() {
            self.report_take(&key, node.clone(), report);
        } else if report.state == ProcessState::Swapped && before != ProcessState::Gone {
            // The image of a host that had to be given up turns out to be whole.
            self.report_take(&key, node, report);
        }
        self.transfer_go_on(&key);
        self.drive(&key);
    }

    /// A host that the store does not know: of another database, or of a node that was declared
    /// dead. If its application is known it is the process; else its state is saved and it ends.
    fn report_unknown(&mut self, link: u64, node: &str, key: &Key, report: HostReport) {
        if !report.state.is_live() {
            return;
        }
        let named = name_check("process", &key.process).is_ok();
        if self.apps.contains_key(&key.application) && named {
            tracing::warn!(%key, node, "a host is found that was not known");
            self.entry_add(key);
            self.report_take(key, node.into(), report);
            return self.drive(key);
        }
        tracing::warn!(%key, node, "swapping out a host of an application that is not known");
        self.command_last = self.command_last.wrapping_add(1).max(1);
        let message = ToAgent::SwapOut(HostCommand {
            request: self.command_last,
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation: report.incarnation,
        });
        self.actions.push(Action::Tell { link, message });
    }

    /// A host serves under a higher incarnation than any that is known of its process: the database
    /// is older than it. Whatever is known is of before, and what it says of hosts is over.
    fn supersede(&mut self, key: &Key, node: &str, incarnation: u64) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let (known, older) = (entry.record.incarnation, entry.record.node.clone());
        tracing::warn!(%key, node, incarnation, known, "a newer host is found than was known");
        self.command_end(key);
        self.checkpoint_lost(key, "another host is the process");
        let both = self.transfer_supersede(key);
        let older = older.filter(|older| older != node && !both);
        let link = older.and_then(|older| self.nodes.get(&older)?.link);
        if let Some(link) = link {
            self.stray_stop(link, key, known);
        }
    }

    pub(super) fn stray_stop(&mut self, link: u64, key: &Key, incarnation: u64) {
        self.command_last = self.command_last.wrapping_add(1).max(1);
        let message = ToAgent::Stop(HostCommand {
            request: self.command_last,
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation,
        });
        self.actions.push(Action::Tell { link, message });
    }

    /// Believes a report on the process's own host.
    fn report_take(&mut self, key: &Key, node: String, report: HostReport) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let image = report.swap_generation > entry.record.swap_generation
            || report.state == ProcessState::Swapped;
        let news = report.state == ProcessState::Ready && report.error != entry.record.error;
        let older = report.error.as_ref().filter(|_| news);
        let commanded = matches!(entry.doing, Doing::Swap | Doing::Stop);
        let readies = report.state == ProcessState::Ready && !commanded;
        // What comes by a transfer begins with no image.
        let begins = report.state == ProcessState::Ready
            && entry.record.state == ProcessState::Starting
            && entry.record.incarnation == report.incarnation
            && entry.transfer.is_none();
        if readies || (entry.doing == Doing::Start && report.state == ProcessState::Quiescing) {
            self.command_end(key);
        }
        let dead = !report.state.is_live();
        if let Some(error) = older {
            let (application, process) = (&report.application, &report.process);
            tracing::error!(application, process, error, "newer images are not used");
            self.policy.counts.older_images += 1;
        }
        self.update(key, |entry| {
            let record = &mut entry.record;
            if record.incarnation != report.incarnation {
                // Of another database, or of this one before it was restored.
                record.incarnation = report.incarnation;
                // Nobody knows what it has left in storage.
                record.images = true;
                // Zero is of an agent that does not know.
                if report.life != 0 && report.life != record.life {
                    record.life = report.life;
                    // That was of another life, which has nothing to do with this one's images.
                    record.swap_generation = 0;
                }
            }
            record.swap_generation = record.swap_generation.max(report.swap_generation);
            record.images |= image;
            if begins {
                // Images newer than what it began with are lost, which it has said.
                record.swap_generation = report.swap_generation;
            }
            record.swapped = report.state == ProcessState::Swapped
                && report.swapped
                && report.swap_generation == record.swap_generation;
            if dead {
                return;
            }
            record.node = Some(node);
            record.error = report.error.clone();
            if !commanded {
                record.state = report.state;
            }
            if readies {
                // The stop that was meant has not come through.
                record.stopping = false;
            }
            entry.vouched = true;
            entry.pid = report.pid;
            entry.addresses = report.addresses;
        });
        if dead {
            self.died(key, report.state, report.error);
        }
    }

    fn answered(&mut self, link: u64, request: u64, result: Result<(), String>) {
        if self.transfer_answered(link, request, &result) {
            return;
        }
        // Commands that were overtaken are answered, too, and no longer matter.
        let current = |command: &super::Command| command.link == link;
        if !self.commands.get(&request).is_some_and(current) {
            return;
        }
        let Some(command) = self.commands.remove(&request) else {
            return;
        };
        let key = command.key;
        match (command.doing, result) {
            (Doing::Start, Err(why)) => self.died(&key, ProcessState::Failed, Some(why)),
            (Doing::Stop, Ok(())) => self.died(&key, ProcessState::Gone, None),
            (Doing::Swap, Err(why)) => {
                self.serves_on(&key);
                self.waiters_fail(&key, Want::Swapped, ErrorKind::ProcessFailed, &why);
            }
            (Doing::Stop, Err(why)) => {
                self.serves_on(&key);
                self.waiters_fail(&key, Want::Stopped, ErrorKind::ProcessFailed, &why);
                self.waiters_fail(&key, Want::Deleted, ErrorKind::ProcessFailed, &why);
            }
            (Doing::DeleteImages, Ok(())) => {
                self.command_end(&key);
                self.update(&key, |entry| {
                    entry.swept = true;
                    entry.record.images = false;
                    entry.record.swap_generation = 0;
                    entry.record.swapped = false;
                });
            }
            (Doing::DeleteImages, Err(why)) => {
                self.command_end(&key);
                self.waiters_fail(&key, Want::Deleted, ErrorKind::ProcessFailed, &why);
            }
            // The report tells of the success.
            (Doing::Start | Doing::Swap, Ok(())) | (Doing::Nothing, _) => return,
        }
        self.drive(&key);
    }

    /// A command came to nothing: the host is as before.
    fn serves_on(&mut self, key: &Key) {
        self.command_end(key);
        self.update(key, |entry| {
            entry.record.state = ProcessState::Ready;
            entry.record.stopping = false;
        });
    }

    /// An agent's link has ended: nobody vouches for its hosts until it is back.
    pub(super) fn lost(&mut self, now: u64, link: u64) {
        let Some(name) = self.links.remove(&link) else {
            return;
        };
        tracing::info!(node = name, "an agent is away");
        if let Some(node) = self.nodes.get_mut(&name) {
            node.link = None;
            node.silent_since = Some(now);
        }
        for key in self.keys(|entry| entry.record.node.as_deref() == Some(name.as_str())) {
            self.command_end(&key);
            self.checkpoint_lost(&key, "the agent of its node is away");
            if let Some(entry) = self.entry_mut(&key) {
                entry.vouched = false;
            }
        }
        // What else it was told to do, such as deleting images, somebody else may do.
        let open: Vec<Key> = self
            .commands
            .values()
            .filter(|command| command.link == link)
            .map(|command| command.key.clone())
            .collect();
        for key in open {
            self.command_end(&key);
            self.drive(&key);
        }
        self.transfers_lost(link, &name);
        self.waiters_forget(link);
    }

    pub(super) fn nodes_show(&self) -> Vec<Node> {
        let nodes = self.nodes.iter().map(|(name, node)| Node {
            name: name.clone(),
            connected: node.link.is_some(),
            cpus: node.cpus,
            memory_bytes: node.memory_bytes,
            processes: node.live + self.leaving(name),
            resident_bytes: node.resident_bytes,
            drained: node.drained,
        });
        nodes.collect()
    }

    pub(super) fn node_forget(&mut self, name: &str) -> Result<Reply, Failure> {
        let Some(node) = self.nodes.get(name) else {
            let shown: String = name.chars().take(255).collect();
            return Err(not_found(format!("there is no node {shown:?}")));
        };
        if node.link.is_some() {
            let detail = format!("the agent of node {name:?} is connected: stop it first");
            return Err(Failure::new(ErrorKind::Conflict, detail));
        }
        self.node_dead(name, &format!("its node {name:?} was declared dead"));
        if self.nodes.remove(name).is_some_and(|node| node.drained) {
            let change = Change::NodeDrained(name.into(), false);
            self.actions.push(Action::Persist(change));
        }
        Ok(Reply::Done)
    }

    /// Nodes whose agents are away for too long are dead: by now their hosts have noticed and
    /// ended themselves.
    pub(super) fn leases_lapse(&mut self, now: u64) {
        let lease_ms = self.limits.lease_ms;
        let lapsed = |node: &NodeEntry| node.lease_end(lease_ms).is_some_and(|end| end <= now);
        let names: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, node)| lapsed(node))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            tracing::warn!(node = name, lease_ms, "a node was silent for too long");
            self.node_dead(
                &name,
                &format!("its node {name:?} was silent for {lease_ms} ms"),
            );
            if let Some(node) = self.nodes.get_mut(&name) {
                node.silent_since = None;
            }
        }
    }

    /// Hosts that miss their agent swap out before they end, of which nobody tells.
    fn image_assume(&mut self, key: &Key) {
        self.update(key, |entry| entry.record.images = true);
    }

    fn node_dead(&mut self, name: &str, why: &str) {
        let here = |entry: &Entry| entry.record.node.as_deref() == Some(name);
        for key in self.keys(here) {
            self.image_assume(&key);
            let stopping = self.entry(&key).is_some_and(|entry| entry.record.stopping);
            let state = match stopping {
                true => ProcessState::Gone,
                false => ProcessState::Failed,
            };
            self.died(&key, state, Some(why.into()));
            self.drive(&key);
        }
        self.transfers_node_dead(name);
    }
}

/// Whether a host serves, or did until it was to end. The target of a transfer does not before that
/// is committed.
pub(super) fn has_served(report: &HostReport) -> bool {
    let fetches = matches!(
        report.transfer,
        HostTransfer::Receiving | HostTransfer::Prepared
    );
    let served = matches!(report.state, ProcessState::Ready | ProcessState::Quiescing);
    // It has none before it is ready.
    served && !fetches && !report.addresses.is_empty()
}

/// Which host a report is about.
fn reported(report: &HostReport) -> (Key, u64) {
    let key = Key {
        application: report.application.clone(),
        process: report.process.clone(),
    };
    (key, report.incarnation)
}
