//! What the registry does without being asked: swaps out who is idle or in the way, takes
//! checkpoints, starts again who has failed.
//!
//! ```text
//!   agents' numbers --> Watch of a process: when it last did anything, what it has
//!   state changes   -->   |
//!   time            -->   +--> policy_step: swap out (idle), checkpoint, start (restart = always)
//!   a node's memory -----> memory_step: swap out the least active, until below the low mark
//! ```
//!
//! A process that is called, runs something or waits for something is never swapped out from here;
//! one that becomes active after its agent has read its numbers may be, and then it comes back for
//! whoever wants it, as after any swap. One that could not be swapped out counts as just begun.
//!
//! Nothing here is stored: after a control plane's start every process has just become active.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::requests::never_created;
use super::{Action, Doing, Entry, Key, Origin, Registry, Reply, Want};
use crate::agent::{HostCommand, HostStats, ToAgent};
use crate::api::{Checkpoint, ProcessState, ProcessStats, Restored};
use crate::error::{ErrorKind, Failure};
use crate::policy::{PolicySettings, Restart};
use crate::store::ProcessRecord;

/// How often a node is looked at that is short of memory, whatever its agent says.
const PRESSED_LOOK_MS: u64 = 1_000;
/// Who asks for a process that may start again within this waits for it; others are told why not.
const BACKOFF_WAIT_MS: u64 = 1_000;

/// What was done, for the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyCounts {
    /// Processes swapped out since they were idle.
    pub idle_swaps: u64,
    /// Processes swapped out since their node was short of memory.
    pub pressure_swaps: u64,
    /// Checkpoints taken.
    pub checkpoints: u64,
    /// Checkpoints that came to nothing.
    pub checkpoint_failures: u64,
    /// Processes started again after a failure.
    pub restarts: u64,
    /// Processes that began with an older image than the newest that there was, or was heard of.
    pub older_images: u64,
}

/// The registry's part that acts by itself.
#[derive(Debug, Default)]
pub(super) struct Policy {
    /// The time of what is being handled.
    pub(super) now: u64,
    pub(super) counts: PolicyCounts,
    /// When processes are to be looked at.
    due: BTreeSet<(u64, Key)>,
    /// Those that have changed.
    changed: BTreeSet<Key>,
    /// Nodes that are short of memory, and when they are to be looked at.
    pressed: BTreeMap<String, u64>,
    /// Commands for checkpoints that are not answered, by their numbers.
    checkpoints: HashMap<u64, (u64, Key)>,
}

/// What the policy knows of a process.
#[derive(Debug)]
pub(super) struct Watch {
    state: ProcessState,
    incarnation: u64,
    pub(super) stats: Option<ProcessStats>,
    pub(super) restored: Option<Restored>,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) checkpoint_error: Option<String>,
    pub(super) restarts: u64,
    /// When it was last seen to do anything.
    active_at: u64,
    /// Since when it has been ready.
    ready_at: Option<u64>,
    /// Failures without a good while in between.
    failures: u32,
    /// When it may start again.
    restart_at: u64,
    /// Somebody wants it started whatever its settings say.
    wanted: bool,
    /// The command for a checkpoint that is not answered.
    checkpointing: Option<u64>,
    /// When the last checkpoint was begun, and what it had done by then.
    checkpoint_at: u64,
    checkpoint_done: Option<(u64, u64, u64, u64)>,
    /// Those who wait for it.
    checkpointers: Vec<Checkpointer>,
    due: Option<u64>,
}

/// Who waits for a checkpoint.
#[derive(Debug)]
struct Checkpointer {
    number: u64,
    origin: Origin,
    deadline: u64,
    /// It is to be the one after that which is being taken.
    next: bool,
}

/// Who has a node's memory.
#[derive(Debug, Default)]
struct NodeMemory {
    budget_bytes: u64,
    /// Of those that are not on their way out.
    used_bytes: u64,
    /// How many are on their way out.
    swapping: usize,
    /// Those that may go: when they were last active, and their bytes.
    idle: Vec<(u64, u64, Key)>,
}

/// Whether a failed process may start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    Free,
    Until(u64),
    ByHand,
}

impl Watch {
    pub(super) fn new(record: &ProcessRecord) -> Self {
        Self {
            state: record.state,
            incarnation: record.incarnation,
            stats: None,
            restored: None,
            checkpoint: None,
            checkpoint_error: None,
            restarts: 0,
            active_at: 0,
            ready_at: None,
            failures: 0,
            restart_at: 0,
            wanted: false,
            checkpointing: None,
            checkpoint_at: 0,
            checkpoint_done: None,
            checkpointers: Vec::new(),
            due: None,
        }
    }

    /// Notes where its life has gone.
    pub(super) fn follow(&mut self, now: u64, record: &ProcessRecord, settings: &PolicySettings) {
        let (before, state) = (self.state, record.state);
        if record.incarnation != self.incarnation {
            self.incarnation = record.incarnation;
            self.stats = None;
            self.restored = None;
            self.checkpoint_error = None;
            self.checkpoint_done = None;
            self.ready_at = None;
        }
        self.state = state;
        match state {
            // It has started, or could not be swapped out.
            ProcessState::Ready if before != state || self.ready_at.is_none() => {
                if self.ready_at.is_none() {
                    self.checkpoint_at = now;
                }
                self.ready_at = Some(now);
                self.active_at = now;
            }
            ProcessState::Failed if before != state => {
                let well = |at: u64| now.saturating_sub(at) >= settings.restart_reset_ms;
                self.failures = match self.ready_at.is_some_and(well) {
                    true => 1,
                    false => self.failures.saturating_add(1),
                };
                // That one which served has failed, once, may be nobody's fault.
                let strikes = self.failures - u32::from(self.ready_at.is_some());
                self.restart_at = now.saturating_add(settings.backoff_ms(strikes));
            }
            ProcessState::Swapped | ProcessState::Gone => {
                self.failures = 0;
                self.restart_at = 0;
            }
            _ => {}
        }
        if !state.is_live() {
            self.ready_at = None;
        }
    }

    /// Takes newer numbers.
    fn read(&mut self, now: u64, host: HostStats) {
        let busy = |stats: &ProcessStats| stats.is_busy();
        let done = |before: ProcessStats| before.is_busy() || before.done() != host.stats.done();
        if busy(&host.stats) || self.stats.is_some_and(done) {
            self.active_at = now;
        }
        self.stats = Some(host.stats);
        let written = self.written(host.restored.as_ref());
        self.restored = host.restored.map(|restored| Restored {
            written_unix_ms: written,
            ..restored
        });
        self.checkpoint = host.checkpoint.or(self.checkpoint);
        self.checkpoint_error = host.checkpoint_error;
    }

    /// When the image was written that it began with, if that is known from before.
    fn written(&self, restored: Option<&Restored>) -> u64 {
        let Some(restored) = restored else {
            return 0;
        };
        let before = self.restored.as_ref();
        let same = before.filter(|before| before.generation == restored.generation);
        let taken = self.checkpoint.as_ref();
        let taken = taken.filter(|taken| taken.generation == restored.generation);
        match (same, taken) {
            (Some(before), _) if before.written_unix_ms > 0 => before.written_unix_ms,
            (_, Some(taken)) => taken.written_unix_ms,
            _ => restored.written_unix_ms,
        }
    }

    /// Whether a checkpoint is being taken.
    pub(super) fn is_checkpointed(&self) -> bool {
        self.checkpointing.is_some()
    }

    /// Whether it is known to do nothing.
    fn is_idle(&self) -> bool {
        self.stats.is_some_and(|stats| !stats.is_busy())
    }

    fn hold(&self, now: u64, settings: &PolicySettings) -> Hold {
        match (self.state, settings.restart) {
            (ProcessState::Failed, _) if self.wanted => Hold::Free,
            (ProcessState::Failed, Restart::Never) => Hold::ByHand,
            (ProcessState::Failed, _) if self.restart_at > now => Hold::Until(self.restart_at),
            _ => Hold::Free,
        }
    }

    pub(super) fn idle_ms(&self, now: u64) -> Option<u64> {
        let known = self.ready_at.is_some() && self.stats.is_some();
        known.then(|| now.saturating_sub(self.active_at))
    }

    pub(super) fn restart_in_ms(&self, now: u64) -> Option<u64> {
        let fails = self.state == ProcessState::Failed && self.restart_at > now;
        fails.then(|| self.restart_at - now)
    }
}

impl Policy {
    /// When [`Registry::policy_run`] is needed next.
    pub(super) fn deadline_next(&self) -> Option<u64> {
        let due = self.due.first().map(|(at, _)| *at);
        let pressed = self.pressed.values().min().copied();
        [due, pressed].into_iter().flatten().min()
    }

    /// Whether no checkpoint is waited for, and no process was overlooked.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.checkpoints.is_empty() && self.changed.is_empty()
    }

    /// A process is not what it was.
    pub(super) fn changed(&mut self, key: &Key) {
        self.changed.insert(key.clone());
    }

    /// A process is no more.
    pub(super) fn forget(&mut self, key: &Key, watch: &Watch) {
        self.changed.remove(key);
        if let Some(at) = watch.due {
            self.due.remove(&(at, key.clone()));
        }
    }
}

impl Registry {
    /// Does what is due.
    pub(super) fn policy_run(&mut self) {
        let now = self.policy.now;
        while let Some((at, key)) = self.policy.due.first().cloned() {
            if at > now {
                break;
            }
            self.policy.due.remove(&(at, key.clone()));
            if let Some(entry) = self.entry_mut(&key) {
                entry.watch.due = None;
            }
            self.policy.changed(&key);
        }
        // What a step changes is looked at again, and finds nothing more to do.
        while let Some(key) = self.policy.changed.pop_first() {
            self.policy_step(&key);
        }
        let pressed = self.policy.pressed.iter().filter(|(_, at)| **at <= now);
        let pressed: Vec<String> = pressed.map(|(node, _)| node.clone()).collect();
        for node in pressed {
            self.memory_step(&node);
        }
    }

    fn due_set(&mut self, key: &Key, at: u64) {
        let Some(app) = self.apps.get_mut(&key.application) else {
            return;
        };
        let Some(entry) = app.processes.get_mut(&key.process) else {
            return;
        };
        if entry.watch.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(later) = entry.watch.due.replace(at) {
            self.policy.due.remove(&(later, key.clone()));
        }
        self.policy.due.insert((at, key.clone()));
    }

    /// Looks at a process: does what is due, and notes when something is.
    fn policy_step(&mut self, key: &Key) {
        let now = self.policy.now;
        let Some(app) = self.apps.get(&key.application) else {
            return;
        };
        let Some(entry) = app.processes.get(&key.process) else {
            return;
        };
        let settings = app.policy;
        match entry.record.state {
            ProcessState::Ready if entry.vouched => self.ready_step(key, &settings),
            // Another host may have all of it: that is settled first, and looks here again.
            ProcessState::Failed if entry.transfer.is_some() => {}
            ProcessState::Failed => match entry.watch.hold(now, &settings) {
                Hold::ByHand => {}
                Hold::Until(at) => self.due_set(key, at),
                Hold::Free if settings.restart == Restart::Always => {
                    // Without a node for it, the next that connects is one.
                    let _ = entry.doing == Doing::Nothing && self.start(key);
                }
                Hold::Free => self.drive(key),
            },
            _ => {}
        }
    }

    fn ready_step(&mut self, key: &Key, settings: &PolicySettings) {
        let now = self.policy.now;
        let Some(entry) = self.entry(key) else {
            return;
        };
        if settings.idle_swap_ms > 0 && entry.is_swappable() {
            let at = entry.watch.active_at.saturating_add(settings.idle_swap_ms);
            if at <= now {
                let idle_ms = now.saturating_sub(entry.watch.active_at);
                tracing::info!(%key, idle_ms, "swapping out what is idle");
                self.policy.counts.idle_swaps += u64::from(self.swap(key));
                return;
            }
            self.due_set(key, at);
        }
        let interval = settings.checkpoint_interval_ms;
        let Some(entry) = self.entry(key).filter(|_| interval > 0) else {
            return;
        };
        if entry.transfer.is_some() {
            // It is looked at again when that is over.
            return;
        }
        let mut at = entry.watch.checkpoint_at.saturating_add(interval);
        if at <= now {
            let watch = &entry.watch;
            let done = watch.stats.map(|stats| stats.done());
            let news = watch.stats.is_some_and(|stats| stats.is_busy());
            if (news || done != watch.checkpoint_done) && watch.checkpointing.is_none() {
                self.checkpoint(key);
            }
            at = now.saturating_add(interval);
            if let Some(entry) = self.entry_mut(key) {
                entry.watch.checkpoint_at = now;
            }
        }
        self.due_set(key, at);
    }

    /// Has a checkpoint taken, unless one is being taken; `false` if nobody can be told.
    pub(super) fn checkpoint(&mut self, key: &Key) -> bool {
        let Some(entry) = self.entry(key) else {
            return false;
        };
        if entry.watch.checkpointing.is_some() {
            return true;
        }
        let done = entry.watch.stats.map(|stats| stats.done());
        // From here on there may be an image, whatever comes of it.
        self.update(key, |entry| entry.record.images = true);
        let Some(request) = self.checkpoint_tell(key) else {
            return false;
        };
        if let Some(entry) = self.entry_mut(key) {
            entry.watch.checkpointing = Some(request);
            entry.watch.checkpoint_done = done;
        }
        true
    }

    fn checkpoint_tell(&mut self, key: &Key) -> Option<u64> {
        let entry = self.entry(key)?;
        let link = self.nodes.get(entry.record.node.as_ref()?)?.link?;
        let incarnation = entry.record.incarnation;
        self.command_last = self.command_last.wrapping_add(1).max(1);
        let request = self.command_last;
        self.policy.checkpoints.insert(request, (link, key.clone()));
        let message = ToAgent::Checkpoint(HostCommand {
            request,
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation,
        });
        self.actions.push(Action::Tell { link, message });
        Some(request)
    }

    /// Somebody asks for a checkpoint, and waits for it.
    pub(super) fn checkpoint_request(&mut self, origin: Origin, wait_ms: u64, key: &Key) {
        let under_way = self.entry(key).and_then(|entry| entry.watch.checkpointing);
        if !self.checkpoint(key) {
            let detail = format!("{key}: the agent of its node is away");
            return self.answer(origin, Err(Failure::new(ErrorKind::NoAgent, detail)));
        }
        self.waiter_last += 1;
        let number = self.waiter_last;
        let deadline = self.policy.now.saturating_add(wait_ms);
        let Some(entry) = self.entry_mut(key) else {
            return;
        };
        if wait_ms == 0 {
            let shown = self.shown(key);
            return self.answer(origin, shown);
        }
        entry.watch.checkpointers.push(Checkpointer {
            number,
            origin,
            deadline,
            // One that was begun before it was asked for may lack what was done in between.
            next: under_way.is_some(),
        });
        self.deadlines.insert((deadline, number), key.clone());
    }

    /// Takes out who waits for a checkpoint.
    pub(super) fn checkpointer_take(&mut self, key: &Key, number: u64) -> Option<Origin> {
        let waiting = &mut self.entry_mut(key)?.watch.checkpointers;
        let at = waiting.iter().position(|waiter| waiter.number == number)?;
        Some(waiting.remove(at).origin)
    }

    /// Tells those who wait for a checkpoint that it is done, or why it is none; who came while it
    /// was being taken gets another.
    fn checkpointers_answer(&mut self, key: &Key, failure: Option<&Failure>) {
        let Some(entry) = self.entry_mut(key) else {
            return;
        };
        let all = failure.is_some();
        let waiting = std::mem::take(&mut entry.watch.checkpointers);
        let (mut left, done): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|waiter| waiter.next && !all);
        left.iter_mut().for_each(|waiter| waiter.next = false);
        let again = !left.is_empty();
        entry.watch.checkpointers = left;
        let leaves = entry.transfer.is_some();
        for waiter in done {
            self.deadlines.remove(&(waiter.deadline, waiter.number));
            let result = match failure {
                Some(failure) => Err(failure.clone()),
                None => self.shown(key),
            };
            self.answer(waiter.origin, result);
        }
        if again && leaves {
            self.checkpoint_lost(key, "it is being transferred");
        } else if again && !self.checkpoint(key) {
            self.checkpoint_lost(key, "the agent of its node is away");
        }
    }

    /// The answer to a command, if it was for a checkpoint.
    pub(super) fn checkpoint_answered(
        &mut self,
        link: u64,
        request: u64,
        result: Result<(), String>,
    ) {
        let current = |(told, _): &(u64, Key)| *told == link;
        if !self.policy.checkpoints.get(&request).is_some_and(current) {
            return;
        }
        let Some((_, key)) = self.policy.checkpoints.remove(&request) else {
            return;
        };
        let key = &key;
        let Some(entry) = self.entry_mut(key) else {
            return;
        };
        if entry.watch.checkpointing != Some(request) {
            return;
        }
        entry.watch.checkpointing = None;
        match result {
            Ok(()) => {
                entry.watch.checkpoint_error = None;
                self.policy.counts.checkpoints += 1;
                self.checkpointers_answer(key, None);
            }
            Err(why) => {
                tracing::warn!(%key, why, "no checkpoint was taken");
                entry.watch.checkpoint_error = Some(why.clone());
                // It is tried again, whether something is done meanwhile or not.
                entry.watch.checkpoint_done = None;
                self.policy.counts.checkpoint_failures += 1;
                let failure = Failure::new(ErrorKind::ProcessFailed, format!("{key}: {why}"));
                self.checkpointers_answer(key, Some(&failure));
            }
        }
        self.policy.changed(key);
    }

    /// Who was to take a checkpoint is gone, or does not answer any more.
    pub(super) fn checkpoint_lost(&mut self, key: &Key, why: &str) {
        if let Some(entry) = self.entry_mut(key)
            && let Some(request) = entry.watch.checkpointing.take()
        {
            self.policy.checkpoints.remove(&request);
        }
        let failure = Failure::new(ErrorKind::ProcessFailed, format!("{key}: {why}"));
        self.checkpointers_answer(key, Some(&failure));
    }

    /// Whether the first who waits for a process that has failed must wait on, or is told why not.
    pub(super) fn start_held(&mut self, key: &Key) -> bool {
        let now = self.policy.now;
        let Some(app) = self.apps.get(&key.application) else {
            return false;
        };
        let Some(entry) = app.processes.get(&key.process) else {
            return false;
        };
        match entry.watch.hold(now, &app.policy) {
            Hold::Free => return false,
            Hold::Until(at) => self.due_set(key, at),
            Hold::ByHand => {
                let failure = by_hand(key, entry);
                self.waiters_answer(key, Some(Want::Ready), &failure);
            }
        }
        true
    }

    /// Why a process that has failed cannot be had by asking for it, if that is so.
    pub(super) fn hold_failure(&self, key: &Key) -> Option<Failure> {
        let now = self.policy.now;
        let app = self.apps.get(&key.application)?;
        let entry = app.processes.get(&key.process)?;
        match entry.watch.hold(now, &app.policy) {
            Hold::ByHand => Some(by_hand(key, entry)),
            Hold::Until(at) if at - now > BACKOFF_WAIT_MS => {
                let why = entry.record.error.as_deref().unwrap_or_default();
                let (failures, wait_ms) = (entry.watch.failures, at - now);
                let detail = format!(
                    "{key} has failed {failures} times in a row, and may start again in \
                     {wait_ms} ms: {why}"
                );
                Some(Failure::new(ErrorKind::StartFailed, detail))
            }
            _ => None,
        }
    }

    /// An operator wants a failed process started now.
    pub(super) fn hold_lift(&mut self, key: &Key) {
        if let Some(entry) = self.entry_mut(key) {
            entry.watch.wanted = entry.record.state == ProcessState::Failed;
        }
    }

    /// A process is being started.
    pub(super) fn start_note(&mut self, key: &Key) {
        let Some(entry) = self.entry_mut(key) else {
            return;
        };
        entry.watch.wanted = false;
        if entry.record.state == ProcessState::Failed {
            entry.watch.restarts += 1;
            let (restarts, failures) = (entry.watch.restarts, entry.watch.failures);
            tracing::info!(%key, restarts, failures, "starting again what has failed");
            self.policy.counts.restarts += 1;
        }
    }

    /// Takes what an agent read of its hosts.
    pub(super) fn stats(&mut self, link: u64, resident_bytes: u64, hosts: Vec<HostStats>) {
        let now = self.policy.now;
        let Some(name) = self.links.get(&link).cloned() else {
            return;
        };
        for host in hosts {
            let key = Key {
                application: host.application.clone(),
                process: host.process.clone(),
            };
            let Some(entry) = self.entry_mut(&key) else {
                continue;
            };
            let record = &entry.record;
            let current = record.incarnation == host.incarnation
                && record.node.as_deref() == Some(name.as_str())
                && record.state.is_live();
            if current {
                entry.watch.read(now, host);
                self.policy.changed(&key);
            }
        }
        let high = u64::from(self.limits.memory_high_percent);
        let Some(node) = self.nodes.get_mut(&name) else {
            return;
        };
        node.resident_bytes = resident_bytes;
        if high > 0 && resident_bytes > percent(node.memory_bytes, high) {
            self.policy.pressed.entry(name).or_insert(now);
        }
    }

    /// Swaps out the least active processes of a node that is short of memory.
    fn memory_step(&mut self, name: &str) {
        let now = self.policy.now;
        let Some(mut memory) = self.node_look(name) else {
            self.policy.pressed.remove(name);
            return;
        };
        let low = percent(memory.budget_bytes, self.limits.memory_low_percent.into());
        memory.idle.sort_unstable();
        let (used, budget) = (memory.used_bytes, memory.budget_bytes);
        let (mut left, mut swapping) = (used, memory.swapping);
        for (_, bytes, key) in memory.idle {
            if left <= low || swapping >= self.limits.pressure_swaps_max {
                break;
            }
            tracing::info!(%key, node = name, used, budget, bytes, "swapping out for memory");
            if self.swap(&key) {
                self.policy.counts.pressure_swaps += 1;
                swapping += 1;
                left = left.saturating_sub(bytes);
            }
        }
        match left <= low {
            true => drop(self.policy.pressed.remove(name)),
            false => {
                let again = now.saturating_add(PRESSED_LOOK_MS);
                self.policy.pressed.insert(name.into(), again);
            }
        }
    }

    /// What there is of memory on a node, and who has it.
    fn node_look(&self, name: &str) -> Option<NodeMemory> {
        let now = self.policy.now;
        let node = self.nodes.get(name)?;
        node.link?;
        let mut memory = NodeMemory {
            budget_bytes: node.memory_bytes,
            ..NodeMemory::default()
        };
        for app in self.apps.values() {
            let settings = &app.policy;
            for entry in app.processes.values() {
                let record = &entry.record;
                if record.node.as_deref() != Some(name) || !record.state.is_live() {
                    continue;
                }
                if record.state == ProcessState::Quiescing {
                    memory.swapping += 1;
                    continue;
                }
                let stats = entry.watch.stats.unwrap_or_default();
                let bytes = stats.resident_bytes.max(stats.state_bytes);
                memory.used_bytes = memory.used_bytes.saturating_add(bytes);
                let settled = |at: u64| at.saturating_add(settings.swap_min_ready_ms) <= now;
                if settings.pressure_swap
                    && entry.is_swappable()
                    && entry.watch.ready_at.is_some_and(settled)
                {
                    let rest = (entry.watch.active_at, bytes, entry.key());
                    memory.idle.push(rest);
                }
            }
        }
        Some(memory)
    }

    /// A process as it is.
    pub(super) fn shown(&self, key: &Key) -> Result<Reply, Failure> {
        let entry = self.entry(key).ok_or_else(|| never_created(key))?;
        Ok(Reply::Process(Box::new(entry.show(self.policy.now))))
    }

    /// Failed processes that were waiting for a node may have one now; what was told on an earlier
    /// channel is told again.
    pub(super) fn policy_hello(&mut self, node: &str) {
        for key in self.keys(|entry| {
            entry.record.state == ProcessState::Failed || entry.record.node.as_deref() == Some(node)
        }) {
            self.policy.changed(&key);
        }
    }
}

impl Entry {
    /// Whether it may be swapped out unasked.
    fn is_swappable(&self) -> bool {
        let stays = self.serves() && self.transfer.is_none();
        stays && self.waiters.is_empty() && self.watch.is_idle()
    }
}

fn by_hand(key: &Key, entry: &Entry) -> Failure {
    let why = entry.record.error.as_deref().unwrap_or_default();
    let detail = format!("{key} has failed, and starts only when it is swapped in by hand: {why}");
    Failure::new(ErrorKind::ProcessFailed, detail)
}

fn percent(of: u64, percent: u64) -> u64 {
    of / 100 * percent
}
