//! The life of a process: what is done next for those who wait, and who is answered.

use super::requests::{never_created, stopped};
use super::{Action, Command, Doing, Entry, Key, Origin, Registry, Reply, Waiter, Want};
use crate::agent::{HostCommand, StartCommand, ToAgent};
use crate::api::ProcessState;
use crate::error::{ErrorKind, Failure};
use crate::store::Change;

/// What is to be done for the first who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing: something is under way, or must happen first.
    Wait,
    Start,
    Swap,
    Stop,
    /// Let a record that is not live be gone.
    Rest,
    DeleteImages,
    Remove,
    /// Call a transfer off that stands in the way.
    TransferAbort,
    /// Let a transfer's source end instead of having it saved.
    RescueEnd,
}

impl Entry {
    fn step_next(&self, want: Want) -> Step {
        let live = self.record.state.is_live();
        if let Some(transfer) = &self.transfer {
            return match want {
                Want::Stopped | Want::Deleted if !transfer.record.committed => Step::TransferAbort,
                Want::Stopped | Want::Deleted if transfer.is_rescuing() => Step::RescueEnd,
                // The old host goes by itself; the new one need not wait for that.
                Want::Stopped if live && self.vouched && self.doing != Doing::Stop => Step::Stop,
                _ => Step::Wait,
            };
        }
        if live && !self.vouched {
            return Step::Wait;
        }
        match (want, self.doing) {
            (_, Doing::DeleteImages) => Step::Wait,
            (Want::Ready, _) if live => Step::Wait,
            (Want::Ready, _) => Step::Start,
            (Want::Swapped, _) if self.serves() => Step::Swap,
            (Want::Swapped | Want::Transferred, _) => Step::Wait,
            (Want::Stopped | Want::Deleted, Doing::Stop) => Step::Wait,
            (Want::Stopped | Want::Deleted, _) if live => Step::Stop,
            (Want::Stopped, _) => Step::Rest,
            // Whatever becomes of it: nobody is to begin from what may be half deleted.
            (Want::Deleted, _) if self.record.state != ProcessState::Gone => Step::Rest,
            // Hosts may write images unasked, and begin some of which nobody hears.
            (Want::Deleted, _) if !self.swept && self.record.incarnation > 0 => Step::DeleteImages,
            (Want::Deleted, _) => Step::Remove,
        }
    }

    fn satisfies(&self, want: Want) -> bool {
        match want {
            Want::Ready => self.serves(),
            Want::Swapped => self.record.state == ProcessState::Swapped,
            Want::Stopped => self.record.state == ProcessState::Gone,
            // Whoever wants that is answered when it is done.
            Want::Deleted | Want::Transferred => false,
        }
    }
}

impl Registry {
    /// Answers those who have what they want, then does what the first of the others wants.
    pub(super) fn drive(&mut self, key: &Key) {
        loop {
            self.settle(key);
            let Some(entry) = self.entry(key) else {
                return;
            };
            let Some(front) = entry.waiters.front() else {
                if entry.record.incarnation == 0 {
                    // Never started, so never stored.
                    self.entry_remove(key);
                }
                return;
            };
            let under_way = match entry.step_next(front.want) {
                Step::Wait => false,
                Step::Start if self.start_held(key) => false,
                Step::TransferAbort => {
                    self.transfer_abort(key, "the process is to stop");
                    true
                }
                Step::RescueEnd => {
                    self.transfer_rescue_end(key);
                    true
                }
                Step::Start => self.start(key),
                Step::Swap => self.swap(key),
                Step::Stop => self.stop(key),
                Step::DeleteImages => self.images_delete(key),
                Step::Rest => {
                    self.update(key, |entry| {
                        entry.record.state = ProcessState::Gone;
                        entry.record.error = None;
                    });
                    self.waiters_fail(key, Want::Swapped, ErrorKind::Conflict, "it was stopped");
                    self.ready_fail_gone(key);
                    true
                }
                Step::Remove => return self.remove(key),
            };
            if !under_way {
                return;
            }
        }
    }

    fn settle(&mut self, key: &Key) {
        let Some(entry) = self.entry_mut(key) else {
            return;
        };
        let mut waiters = std::mem::take(&mut entry.waiters);
        let mut done = Vec::new();
        waiters.retain(|waiter| {
            let keep = !entry.satisfies(waiter.want);
            if !keep {
                done.push((waiter.number, waiter.deadline, waiter.origin));
            }
            keep
        });
        entry.waiters = waiters;
        for (number, deadline, origin) in done {
            self.deadlines.remove(&(deadline, number));
            let shown = self.shown(key);
            self.answer(origin, shown);
        }
    }

    /// The node for a new host: connected, with the fewest processes for its processors.
    fn place(&self) -> Option<(String, u64)> {
        self.place_except(&[])
    }

    /// The same, but for some nodes. Drained nodes are none.
    pub(super) fn place_except(&self, except: &[&str]) -> Option<(String, u64)> {
        let candidates = self
            .nodes
            .iter()
            .filter(|(name, node)| !node.drained && !except.contains(&name.as_str()))
            .filter_map(|(name, node)| Some((name, node, node.link?)));
        // a/b < c/d without division: a*d < c*b.
        let best = candidates.min_by(|(a_name, a, _), (b_name, b, _)| {
            let load = |x: u32, y: u32| (u64::from(x) + 1) * u64::from(y.max(1));
            let (a_live, b_live) = (
                a.live + self.arriving(a_name),
                b.live + self.arriving(b_name),
            );
            load(a_live, b.cpus).cmp(&load(b_live, a.cpus))
        });
        best.map(|(name, _, link)| (name.clone(), link))
    }

    /// Starts a new incarnation; `false` if there is no node for it, or there is a transfer, one
    /// of whose hosts is the process.
    pub(super) fn start(&mut self, key: &Key) -> bool {
        if self.entry(key).is_none_or(|entry| entry.transfer.is_some()) {
            return false;
        }
        let Some((node, link)) = self.place() else {
            return false;
        };
        let incarnation = self.incarnation_next;
        self.incarnation_next += 1;
        let change = Change::IncarnationNext(self.incarnation_next);
        self.actions.push(Action::Persist(change));
        let request = self.command_add(link, key, Doing::Start);
        self.start_note(key);
        let mut swapped = false;
        self.update(key, |entry| {
            // Whatever becomes of this start, the next one cannot know what it did.
            swapped = std::mem::take(&mut entry.record.swapped)
                && entry.record.state == ProcessState::Swapped;
            if entry.record.state == ProcessState::Gone {
                // What was swapped out in the life before is not its own.
                entry.record.life = incarnation;
                entry.record.swap_generation = 0;
            }
            entry.record.incarnation = incarnation;
            entry.record.state = ProcessState::Starting;
            entry.record.node = Some(node);
            entry.record.stopping = false;
            entry.record.error = None;
            entry.vouched = true;
            entry.swept = false;
            entry.pid = 0;
            entry.addresses.clear();
        });
        let (Some(app), Some(entry)) = (self.apps.get(&key.application), self.entry(key)) else {
            return false;
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
            swapped,
            from: None,
        };
        let message = ToAgent::Start(Box::new(command));
        self.actions.push(Action::Tell { link, message });
        true
    }

    pub(super) fn swap(&mut self, key: &Key) -> bool {
        let Some((link, command)) = self.host_command(key, Doing::Swap) else {
            return false;
        };
        self.update(key, |entry| {
            entry.record.state = ProcessState::Quiescing;
            // From here on there may be an image, whatever comes of the swap.
            entry.record.images = true;
        });
        let message = ToAgent::SwapOut(command);
        self.actions.push(Action::Tell { link, message });
        true
    }

    fn stop(&mut self, key: &Key) -> bool {
        let Some((link, command)) = self.host_command(key, Doing::Stop) else {
            return false;
        };
        self.update(key, |entry| {
            entry.record.state = ProcessState::Quiescing;
            entry.record.stopping = true;
        });
        let message = ToAgent::Stop(command);
        self.actions.push(Action::Tell { link, message });
        true
    }

    fn host_command(&mut self, key: &Key, doing: Doing) -> Option<(u64, HostCommand)> {
        let entry = self.entry(key)?;
        let incarnation = entry.record.incarnation;
        let link = self.nodes.get(entry.record.node.as_ref()?)?.link?;
        let command = HostCommand {
            request: self.command_add(link, key, doing),
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation,
        };
        Some((link, command))
    }

    fn images_delete(&mut self, key: &Key) -> bool {
        let connected = || self.nodes.values().find_map(|node| node.link);
        let link = self.place().map(|(_, link)| link).or_else(connected);
        let Some(link) = link else {
            return false;
        };
        let message = ToAgent::DeleteImages {
            request: self.command_add(link, key, Doing::DeleteImages),
            application: key.application.clone(),
            process: key.process.clone(),
            below: self.incarnation_next,
        };
        self.actions.push(Action::Tell { link, message });
        true
    }

    /// A command's number; what was under way for the process is no longer waited for.
    fn command_add(&mut self, link: u64, key: &Key, doing: Doing) -> u64 {
        self.command_last = self.command_last.wrapping_add(1).max(1);
        let request = self.command_last;
        let mut before = 0;
        if let Some(entry) = self.entry_mut(key) {
            before = std::mem::replace(&mut entry.command, request);
            entry.doing = doing;
        }
        self.commands.remove(&before);
        let key = key.clone();
        self.commands.insert(request, Command { link, key, doing });
        request
    }

    /// Nothing is under way for the process any more.
    pub(super) fn command_end(&mut self, key: &Key) {
        self.drain_look = true;
        if let Some(entry) = self.entry_mut(key) {
            entry.doing = Doing::Nothing;
            let command = std::mem::take(&mut entry.command);
            self.commands.remove(&command);
        }
    }

    /// The host is dead, says who must know. `state` is what becomes of the process.
    pub(super) fn died(&mut self, key: &Key, state: ProcessState, error: Option<String>) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        let doing = entry.doing;
        let state = match (state, doing) {
            // It was to end so: whatever else it says of its end does not matter.
            (_, Doing::Stop) => ProcessState::Gone,
            (ProcessState::Gone, Doing::Start | Doing::Swap) => ProcessState::Failed,
            (state, _) => state,
        };
        let state = self.transfer_died(key, state);
        let error = match state {
            ProcessState::Failed => Some(error.unwrap_or_else(|| "its host ended".into())),
            _ => None,
        };
        self.command_end(key);
        self.checkpoint_lost(key, "its host has ended");
        let why = error.clone().unwrap_or_default();
        self.update(key, |entry| {
            entry.record.state = state;
            entry.record.error = error;
            entry.record.node = None;
            entry.record.stopping = false;
            entry.vouched = false;
            // It may have left something since all was deleted.
            entry.swept = false;
            entry.pid = 0;
            entry.addresses.clear();
        });
        match state {
            ProcessState::Failed => {
                if self
                    .entry(key)
                    .is_some_and(|entry| entry.transfer.is_none())
                {
                    self.waiters_fail(key, Want::Transferred, ErrorKind::ProcessFailed, &why);
                }
                self.waiters_fail(key, Want::Swapped, ErrorKind::ProcessFailed, &why);
                if doing == Doing::Start {
                    self.waiters_fail(key, Want::Ready, ErrorKind::StartFailed, &why);
                }
            }
            ProcessState::Gone => {
                self.waiters_fail(key, Want::Swapped, ErrorKind::Conflict, "it was stopped");
                self.ready_fail_gone(key);
            }
            _ => {}
        }
    }

    /// Who waits for a process that was stopped meanwhile waits in vain, unless it is created by
    /// being asked for.
    fn ready_fail_gone(&mut self, key: &Key) {
        let app = self.apps.get(&key.application);
        if app.is_some_and(|app| !app.record.auto_create) {
            let failure = stopped(key);
            self.waiters_answer(key, Some(Want::Ready), &failure);
        }
    }

    pub(super) fn waiters_fail(&mut self, key: &Key, want: Want, kind: ErrorKind, why: &str) {
        let failure = Failure::new(kind, format!("{key}: {why}"));
        self.waiters_answer(key, Some(want), &failure);
    }

    /// Answers all who want `want`: they have it.
    pub(super) fn waiters_done(&mut self, key: &Key, want: Want, reply: &Reply) {
        let Some(entry) = self.entry_mut(key) else {
            return;
        };
        let (done, left): (Vec<Waiter>, Vec<Waiter>) = std::mem::take(&mut entry.waiters)
            .into_iter()
            .partition(|waiter| waiter.want == want);
        entry.waiters = left.into();
        for waiter in done {
            self.deadlines.remove(&(waiter.deadline, waiter.number));
            self.answer(waiter.origin, Ok(reply.clone()));
        }
    }

    /// Answers all who want `want`, or all there are, with `failure`.
    pub(super) fn waiters_answer(&mut self, key: &Key, want: Option<Want>, failure: &Failure) {
        let Some(entry) = self.entry_mut(key) else {
            return;
        };
        let (failed, left): (Vec<Waiter>, Vec<Waiter>) = std::mem::take(&mut entry.waiters)
            .into_iter()
            .partition(|waiter| want.is_none_or(|want| want == waiter.want));
        entry.waiters = left.into();
        for waiter in failed {
            self.deadlines.remove(&(waiter.deadline, waiter.number));
            self.answer(waiter.origin, Err(failure.clone()));
        }
    }

    /// Forgets a process: those who wanted that have it, the others do not.
    fn remove(&mut self, key: &Key) {
        let waiters = self
            .entry_mut(key)
            .map(|entry| std::mem::take(&mut entry.waiters))
            .unwrap_or_default();
        self.entry_remove(key);
        for waiter in waiters {
            self.deadlines.remove(&(waiter.deadline, waiter.number));
            let result = match waiter.want {
                Want::Deleted => Ok(Reply::Done),
                _ => Err(never_created(key)),
            };
            self.answer(waiter.origin, result);
        }
    }

    fn entry_remove(&mut self, key: &Key) {
        let Some(app) = self.apps.get_mut(&key.application) else {
            return;
        };
        let Some(entry) = app.processes.remove(&key.process) else {
            return;
        };
        self.process_count -= 1;
        self.policy.forget(key, &entry.watch);
        if entry.record.incarnation != 0 {
            let change = Change::ProcessRemoved(key.application.clone(), key.process.clone());
            self.actions.push(Action::Persist(change));
        }
        if entry.member().is_some() {
            self.world_change(&key.application);
        }
    }

    /// Answers a request that does not wait with the process as it is, if what it wants is under
    /// way.
    pub(super) fn waiter_release(&mut self, key: &Key, number: u64) {
        let Some(waiter) = self.waiter_take(key, number) else {
            return;
        };
        let under_way = |entry: &&Entry| entry.doing != Doing::Nothing || entry.transfer.is_some();
        let result = match self.entry(key).filter(under_way) {
            Some(_) => self.shown(key),
            None => Err(self.late(key)),
        };
        self.answer(waiter.origin, result);
        self.drive(key);
    }

    fn waiter_take(&mut self, key: &Key, number: u64) -> Option<Waiter> {
        let entry = self.entry_mut(key)?;
        let at = entry.waiters.iter().position(|w| w.number == number)?;
        let waiter = entry.waiters.remove(at)?;
        self.deadlines.remove(&(waiter.deadline, number));
        Some(waiter)
    }

    /// Answers those whose time is up.
    pub(super) fn waiters_expire(&mut self, now: u64) {
        while let Some((&(deadline, number), key)) = self.deadlines.first_key_value() {
            if deadline > now {
                return;
            }
            let key = key.clone();
            self.deadlines.remove(&(deadline, number));
            if let Some(waiter) = self.waiter_take(&key, number) {
                let failure = self.late(&key);
                self.answer(waiter.origin, Err(failure));
                self.drive(&key);
            } else if let Some(origin) = self.checkpointer_take(&key, number) {
                let detail = format!("the checkpoint of {key} is not there yet");
                self.answer(origin, Err(Failure::new(ErrorKind::Timeout, detail)));
            }
        }
    }

    /// Forgets the requests of an agent that is gone.
    pub(super) fn waiters_forget(&mut self, gone: u64) {
        let asked =
            |waiter: &Waiter| matches!(waiter.origin, Origin::Agent { link, .. } if link == gone);
        for key in self.keys(|entry| entry.waiters.iter().any(asked)) {
            let Some(entry) = self.entry_mut(&key) else {
                continue;
            };
            let mut forgotten = Vec::new();
            entry.waiters.retain(|waiter| {
                let keep = !asked(waiter);
                if !keep {
                    forgotten.push((waiter.deadline, waiter.number));
                }
                keep
            });
            for at in forgotten {
                self.deadlines.remove(&at);
            }
            self.drive(&key);
        }
    }

    /// Why a request for the process was not answered in time.
    fn late(&self, key: &Key) -> Failure {
        let no_agent = |detail: String| Failure::new(ErrorKind::NoAgent, detail);
        match self.entry(key) {
            Some(entry) if entry.record.state.is_live() && !entry.vouched => {
                let node = entry.record.node.as_deref().unwrap_or("?");
                no_agent(format!(
                    "{key} was last {} on node {node:?}, whose agent is away",
                    entry.record.state
                ))
            }
            Some(entry) if entry.transfer.is_some() => {
                let detail = format!("{key} is still being transferred");
                Failure::new(ErrorKind::Timeout, detail)
            }
            Some(entry) if entry.doing != Doing::Nothing || entry.record.state.is_live() => {
                let detail = format!("{key} is still {}", entry.record.state);
                Failure::new(ErrorKind::Timeout, detail)
            }
            _ if self.links.is_empty() => {
                no_agent(format!("{key}: no node agent is connected: start one"))
            }
            _ => Failure::new(
                ErrorKind::Timeout,
                format!("{key}: others are served first"),
            ),
        }
    }
}
