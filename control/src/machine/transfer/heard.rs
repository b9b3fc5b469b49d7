//! What agents say of transfers: of their two hosts, of what they were told, and of their own ends.

use super::super::agents::has_served;
use super::super::{Key, Registry, Want};
use super::{Phase, RETRY_MS, Told, Transfer, TransferCommand};
use crate::agent::{HostReport, HostTransfer};
use crate::api::ProcessState;
use crate::error::ErrorKind;

impl Registry {
    /// A host is reported. Whether it is one that the process's record is not about, which is all
    /// seen to then.
    pub(in crate::machine) fn transfer_report(
        &mut self,
        link: u64,
        node: &str,
        key: &Key,
        report: &HostReport,
    ) -> bool {
        let fetches = matches!(
            report.transfer,
            HostTransfer::Receiving | HostTransfer::Prepared
        );
        let live = report.state.is_live();
        let sends = matches!(
            report.transfer,
            HostTransfer::Sending | HostTransfer::Frozen
        );
        let known = self.entry(key).map(|entry| entry.record.incarnation);
        let Some(transfer) = self.transfer_mut(key) else {
            if live && fetches {
                // Of a transfer that was called off, or that nobody knows.
                self.stray_stop(link, key, report.incarnation);
                return true;
            }
            if live && sends && known == Some(report.incarnation) {
                self.thaw(link, key, report.incarnation);
            }
            return false;
        };
        let record = &transfer.record;
        let is_target = report.incarnation == record.to_incarnation && node == record.to_node;
        let is_source = report.incarnation == record.from_incarnation && node == record.from_node;
        match (record.committed, is_source, is_target) {
            (false, true, _) => {
                transfer.source = live.then_some(report.transfer);
                if live {
                    // It was declared dead, and was not.
                    transfer.source_dead = false;
                }
                false
            }
            (false, _, true) => {
                if !live {
                    let why = report.error.clone();
                    let why = why.unwrap_or_else(|| "its host ended".into());
                    self.transfer_abort(key, &format!("on node {node:?}: {why}"));
                    self.drive(key);
                } else if report.transfer == HostTransfer::Prepared {
                    self.transfer_commit(key, report);
                } else if has_served(report) {
                    // It was committed: the database is older than that.
                    self.transfer_commit(key, report);
                    return !self.transfer(key).is_some_and(|now| now.record.committed);
                }
                true
            }
            (true, true, _) => {
                if !live {
                    transfer.source_dead = true;
                    if report.state == ProcessState::Swapped {
                        self.transfer_rescued(key, report);
                    }
                }
                true
            }
            (true, _, true) => false,
            _ if live && fetches => {
                self.stray_stop(link, key, report.incarnation);
                true
            }
            _ => false,
        }
    }

    /// The source wrote an image: it is as good as what the target had.
    fn transfer_rescued(&mut self, key: &Key, report: &HostReport) {
        let rescuing = self.transfer(key).is_some_and(Transfer::is_rescuing);
        if let Some(transfer) = self.transfer_mut(key) {
            transfer.source_saved = true;
        }
        let generation = report.swap_generation;
        self.update(key, |entry| {
            let record = &mut entry.record;
            record.images = true;
            record.swap_generation = record.swap_generation.max(generation);
            if rescuing && record.state == ProcessState::Failed {
                record.state = ProcessState::Swapped;
                record.error = None;
            }
        });
    }

    /// The process's own host is dead, and the process is to be `state`, or what is returned.
    pub(in crate::machine) fn transfer_died(
        &mut self,
        key: &Key,
        state: ProcessState,
    ) -> ProcessState {
        let Some(transfer) = self.transfer_mut(key) else {
            return state;
        };
        let saved = transfer.source_saved;
        match (transfer.record.committed, transfer.phase) {
            (false, phase) => {
                // The target may have everything: it says so, or that it has not.
                transfer.source_dead = true;
                if phase.is_early() {
                    self.transfer_abort(key, "the process died");
                }
            }
            (true, Phase::Serving) if state == ProcessState::Failed => {
                self.transfer_phase(key, Phase::Rescuing);
                let why = "the host that it went to died";
                self.waiters_fail(key, Want::Transferred, ErrorKind::ProcessFailed, why);
                if saved {
                    return ProcessState::Swapped;
                }
            }
            (true, Phase::Serving) => {
                self.transfer_phase(key, Phase::Ending);
                let why = "it does not serve any more";
                self.waiters_fail(key, Want::Transferred, ErrorKind::Conflict, why);
            }
            // The target served unheard, and has left an image, which is newer than any that the
            // source can make.
            (true, Phase::Rescuing) if state == ProcessState::Swapped => {
                self.transfer_phase(key, Phase::Ending);
            }
            (true, _) => {}
        }
        state
    }

    /// An agent answers a command; whether it was about a transfer.
    pub(in crate::machine) fn transfer_answered(
        &mut self,
        link: u64,
        request: u64,
        result: &Result<(), String>,
    ) -> bool {
        let current = |command: &TransferCommand| command.link == link;
        if !self.transfer_commands.get(&request).is_some_and(current) {
            return false;
        }
        let Some(TransferCommand { key, told, .. }) = self.transfer_commands.remove(&request)
        else {
            return false;
        };
        let now = self.now;
        let Some(transfer) = self.transfer_mut(&key) else {
            return true;
        };
        let committed = transfer.record.committed;
        match (told, result) {
            (Told::Out | Told::Start, Err(why)) if !committed => {
                let why = why.clone();
                self.transfer_abort(&key, &why);
                self.drive(&key);
            }
            (Told::End | Told::Rescue, Ok(())) => transfer.source_dead = true,
            (Told::End | Told::Rescue, Err(why)) => {
                tracing::error!(%key, why, "the host that the process was on does not end");
                transfer.told = None;
                transfer.retry = now.saturating_add(RETRY_MS);
            }
            // Reports tell.
            (Told::Out | Told::Start | Told::Serve, _) => {}
        }
        true
    }

    /// An agent has told all that it has.
    pub(in crate::machine) fn transfers_inventory(&mut self, node: &str, hosts: &[(Key, u64)]) {
        for key in self.transfer_keys() {
            let Some(transfer) = self.transfer_mut(&key) else {
                continue;
            };
            let record = &transfer.record;
            let has = |incarnation| hosts.contains(&(key.clone(), incarnation));
            let source_here = record.from_node == node;
            match record.committed {
                true if source_here && !has(record.from_incarnation) => transfer.source_dead = true,
                true => {}
                false if record.to_node == node && !has(record.to_incarnation) => {
                    if !transfer.phase.is_early() {
                        self.transfer_abort(&key, "the host that it was to go to is gone");
                    }
                }
                // What it was asked has not reached it, or it has given up.
                false if source_here && transfer.source == Some(HostTransfer::None) => {
                    self.transfer_abort(&key, "the host that it is on knows of no transfer");
                }
                false => {}
            }
            self.drive(&key);
        }
    }

    /// An agent's link has ended.
    pub(in crate::machine) fn transfers_lost(&mut self, link: u64, node: &str) {
        self.transfer_commands
            .retain(|_, command| command.link != link);
        for key in self.transfer_keys() {
            let Some(transfer) = self.transfer_mut(&key) else {
                continue;
            };
            if transfer.told == Some(link) {
                transfer.told = None;
            }
            let record = &transfer.record;
            let offering = transfer.phase.is_early() && record.from_node == node;
            let arriving = record.to_node == node && !transfer.is_last_copy();
            if !record.committed && (arriving || offering) {
                self.transfer_abort(&key, &format!("the agent of node {node:?} is away"));
                self.drive(&key);
            }
        }
    }

    /// All that was on a node is dead.
    pub(in crate::machine) fn transfers_node_dead(&mut self, node: &str) {
        for key in self.transfer_keys() {
            let Some(transfer) = self.transfer_mut(&key) else {
                continue;
            };
            let record = &transfer.record;
            if record.committed && record.from_node == node {
                transfer.source_dead = true;
            } else if !record.committed && record.to_node == node {
                self.transfer_abort(&key, &format!("node {node:?} is dead"));
                self.drive(&key);
            }
        }
    }
}
