//! Checkpoints of hosts, and what else is told of them besides their states.

use praas_control::agent::{HostCommand, HostStats};
use praas_control::api::{Checkpoint, ProcessState};
use praas_runtime::host::ToHost;

use super::super::stats::HostCounts;
use super::{Action, HostKey, Hosts};

impl Hosts {
    /// The control plane wants a checkpoint.
    pub(super) fn checkpoint(&mut self, command: &HostCommand) {
        let Some(key) = self.commanded(command) else {
            let why = "it has no host on this node".into();
            return self.answer(command.request, Err(why));
        };
        let Some(host) = self.hosts.get_mut(&key) else {
            return;
        };
        if host.record.state != ProcessState::Ready || !host.linked {
            let why = match host.linked {
                true => format!("it is {}", host.record.state),
                false => "its host cannot be reached just now".into(),
            };
            return self.answer(command.request, Err(why));
        }
        host.checkpoints.push(command.request);
        if host.checkpoints.len() == 1 {
            self.send(&key, ToHost::Checkpoint);
        }
    }

    /// A host has taken a checkpoint, or has not.
    pub(super) fn checkpointed(&mut self, key: &HostKey, result: Result<Checkpoint, String>) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        let requests = std::mem::take(&mut host.checkpoints);
        let outcome = match result {
            Ok(checkpoint) => {
                self.checkpoint_note(key, checkpoint);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%key, error, "no checkpoint");
                host.checkpoint_error = Some(error.clone());
                self.actions.push(Action::StatsTell(key.clone()));
                Err(error)
            }
        };
        for request in requests {
            self.answer(request, outcome.clone());
        }
    }

    /// A host has taken a checkpoint, whether somebody waits for one or not.
    pub(super) fn checkpoint_note(&mut self, key: &HostKey, checkpoint: Checkpoint) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        host.checkpoint = Some(checkpoint);
        host.checkpoint_error = None;
        let known = host.record.swap_generation;
        host.record.swap_generation = known.max(checkpoint.generation);
        if host.record.swap_generation != known {
            self.changed(key);
        }
        self.actions.push(Action::StatsTell(key.clone()));
    }

    /// Whoever waits for a checkpoint of a host waits in vain.
    pub(super) fn checkpoints_fail(&mut self, key: &HostKey, why: &str) {
        let requests = match self.hosts.get_mut(key) {
            Some(host) => std::mem::take(&mut host.checkpoints),
            None => return,
        };
        for request in requests {
            self.answer(request, Err(why.to_owned()));
        }
    }

    /// What is told of a host that serves, or did until now.
    pub(in crate::agent) fn stats(&self, key: &HostKey, counts: HostCounts) -> Option<HostStats> {
        let host = self.hosts.get(key)?;
        let serves = matches!(
            host.record.state,
            ProcessState::Ready | ProcessState::Quiescing
        );
        serves.then(|| HostStats {
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation: host.record.incarnation,
            stats: counts.stats,
            restored: counts.restored,
            checkpoint: host.checkpoint,
            checkpoint_error: host.checkpoint_error.clone(),
        })
    }
}
