//! Drained nodes: nothing is started there, and what serves there is moved to others.
//!
//! A process that cannot be moved is turned away from for as long as its functions may run, each
//! time that it is tried: so it is tried later and later, others before it, and another node first.

use super::requests::not_found;
use super::{Action, Key, Registry, Reply};
use crate::error::Failure;
use crate::store::Change;

/// Milliseconds after which what could not be moved is tried again, at first.
const RETRY_FIRST_MS: u64 = 1_000;

/// What came of moving a process away from its node.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// When it was tried last.
    tried: u64,
    /// When it may be tried again.
    due: u64,
    /// How often it could not be moved since it last was.
    failures: u32,
    /// Where it was to go then.
    refused: Option<String>,
}

impl Registry {
    /// Starts nothing on a node any more, and moves what is there; or starts there again.
    pub(super) fn node_drain(&mut self, name: &str, undo: bool) -> Result<Reply, Failure> {
        let Some(node) = self.nodes.get_mut(name) else {
            let shown: String = name.chars().take(255).collect();
            return Err(not_found(format!("there is no node {shown:?}")));
        };
        if node.drained == undo {
            node.drained = !undo;
            node.drain_due = 0;
            let change = Change::NodeDrained(name.into(), !undo);
            self.actions.push(Action::Persist(change));
            self.drain_look = true;
            if undo {
                self.waiters_drive();
                self.policy_hello(name);
            } else {
                self.moves_forget(name);
            }
        }
        Ok(Reply::Nodes(self.nodes_show()))
    }

    /// What is on a node that is drained anew is tried at once.
    fn moves_forget(&mut self, name: &str) {
        for key in self.keys(|entry| entry.record.node.as_deref() == Some(name)) {
            if let Some(entry) = self.entry_mut(&key) {
                entry.moves = Moves::default();
            }
        }
    }

    /// A process is being moved.
    pub(super) fn move_begun(&mut self, key: &Key) {
        let now = self.now;
        if let Some(entry) = self.entry_mut(key) {
            entry.moves.tried = now;
        }
    }

    /// A process was moved, or could not be: to this node.
    pub(super) fn move_ended(&mut self, key: &Key, refused: Option<&str>) {
        self.drain_look = true;
        let now = self.now;
        let max_ms = self.limits.drain_retry_max_ms;
        let Some(entry) = self.entry_mut(key) else {
            return;
        };
        let Some(node) = refused else {
            entry.moves = Moves::default();
            return;
        };
        let moves = &mut entry.moves;
        let doubled = RETRY_FIRST_MS.saturating_mul(1 << moves.failures.min(32));
        moves.due = now.saturating_add(doubled.min(max_ms));
        moves.failures = moves.failures.saturating_add(1);
        moves.refused = Some(node.into());
    }

    /// Moves what serves on drained nodes, a few at a time.
    pub(super) fn drains_step(&mut self, now: u64) {
        let looks = std::mem::take(&mut self.drain_look);
        let due = |node: &super::NodeEntry| {
            let waited = node.drain_due > 0 && node.drain_due <= now;
            node.drained && node.live > 0 && (looks || waited)
        };
        let nodes = self.nodes.iter().filter(|(_, node)| due(node));
        let nodes: Vec<String> = nodes.map(|(name, _)| name.clone()).collect();
        for node in nodes {
            self.drain_step(now, &node);
        }
    }

    fn drain_step(&mut self, now: u64, node: &str) {
        let away = |key: &&Key| {
            let transfer = self.transfer(key);
            transfer.is_some_and(|t| t.record.from_node == node && !t.record.committed)
        };
        let under_way = self.transfers.iter().filter(away).count();
        let room = self.limits.drain_transfers_max.saturating_sub(under_way);
        if room == 0 {
            // The end of one of them is looked at.
            return;
        }
        let mut next = None;
        let mut movable = Vec::new();
        for entry in self.apps.values().flat_map(|app| app.processes.values()) {
            let here = entry.record.node.as_deref() == Some(node);
            if !here || !entry.serves() || entry.transfer.is_some() {
                continue;
            }
            match entry.moves.due {
                at if at > now => next = Some(next.map_or(at, |next: u64| next.min(at))),
                _ => movable.push((entry.moves.tried, entry)),
            }
        }
        // Those that were tried the longest ago come first.
        movable.sort_by_key(|(tried, _)| *tried);
        movable.truncate(room);
        let keys: Vec<Key> = movable.into_iter().map(|(_, entry)| entry.key()).collect();
        for key in keys {
            let Some(to) = self.drain_place(node, &key) else {
                break;
            };
            self.transfer_begin(now, &key, to);
        }
        if let Some(node) = self.nodes.get_mut(node) {
            node.drain_due = next.unwrap_or(0);
        }
    }

    /// Where a process goes from a drained node: not where it could not last, if there is another.
    fn drain_place(&self, node: &str, key: &Key) -> Option<String> {
        let refused = self.entry(key)?.moves.refused.as_deref();
        let other = self.place_except(&[node, refused.unwrap_or(node)]);
        let place = other.or_else(|| self.place_except(&[node]));
        place.map(|(to, _)| to)
    }

    /// When [`Registry::drains_step`] has something to do though nobody says anything.
    pub(super) fn drain_due(&self) -> Option<u64> {
        let waits =
            |node: &&super::NodeEntry| node.drained && node.live > 0 && node.drain_due > self.now;
        let nodes = self.nodes.values().filter(waits);
        nodes.map(|node| node.drain_due).min()
    }

    /// Processes that are on their way to a node.
    pub(super) fn arriving(&self, node: &str) -> u32 {
        let to = |key: &&Key| {
            let transfer = self.transfer(key);
            transfer.is_some_and(|t| t.record.to_node == node && !t.record.committed)
        };
        self.transfers.iter().filter(to).count() as u32
    }

    /// Processes that went elsewhere, whose hosts on the node have yet to end: until then these
    /// may have to be saved.
    pub(super) fn leaving(&self, node: &str) -> u32 {
        let from = |key: &&Key| {
            let transfer = self.transfer(key);
            transfer.is_some_and(|t| t.record.from_node == node && t.record.committed)
        };
        self.transfers.iter().filter(from).count() as u32
    }
}
