//! Drained nodes: nothing is started there, and what serves there is moved to others.

use super::Key;
use super::requests::not_found;
use super::{Action, Registry, Reply};
use crate::error::Failure;
use crate::store::Change;

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
        }
        Ok(Reply::Nodes(self.nodes_show()))
    }

    /// Moves what serves on drained nodes, a few at a time.
    pub(super) fn drains_step(&mut self, now: u64) {
        let due = |node: &super::NodeEntry| node.drained && node.live > 0 && node.drain_due <= now;
        let nodes: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, node)| due(node))
            .map(|(name, _)| name.clone())
            .collect();
        for node in nodes {
            let away = |key: &&Key| {
                let transfer = self.transfer(key);
                transfer.is_some_and(|t| t.record.from_node == node && !t.record.committed)
            };
            let under_way = self.transfers.iter().filter(away).count();
            let room = self.limits.drain_transfers_max.saturating_sub(under_way);
            let mut keys = self.keys(|entry| {
                let here = entry.record.node.as_deref() == Some(node.as_str());
                here && entry.serves() && entry.transfer.is_none()
            });
            keys.truncate(room);
            for key in keys {
                let Some((to, _)) = self.place_except(Some(&node)) else {
                    break;
                };
                self.transfer_begin(now, &key, to);
            }
        }
    }

    /// Processes that are on their way to a node.
    pub(super) fn arriving(&self, node: &str) -> u32 {
        let to = |key: &&Key| {
            let transfer = self.transfer(key);
            transfer.is_some_and(|t| t.record.to_node == node && !t.record.committed)
        };
        self.transfers.iter().filter(to).count() as u32
    }
}
