//! What hosts say and what becomes of them: ready, swapped, found again, dead.

use std::time::{Duration, Instant};

use praas_control::agent::HostTransfer;
use praas_control::api::ProcessState;
use praas_runtime::host::{self, HostHello, ToHost};
use praas_transport::Address;

use super::super::record::{Ending, HostRecord};
use super::host::{Due, End, Host};
use super::{Action, HostKey, Hosts};

/// When a host that could not swap out at the end of its agent is told to try again.
const SWAP_AGAIN: Duration = Duration::from_secs(1);

impl Hosts {
    pub(super) fn ready(
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
        let serves = std::mem::take(&mut host.serves);
        if host.record.state != ProcessState::Starting {
            return self.answer_all(serves, &Ok(()));
        }
        host.record.state = ProcessState::Ready;
        host.record.transfer = HostTransfer::None;
        let start = host.start.take();
        self.deadline_set(key, None);
        self.changed(key);
        if let Some(request) = start {
            self.answer(request, Ok(()));
        }
        self.answer_all(serves, &Ok(()));
        self.actions.push(Action::Serves(key.clone()));
    }

    /// A host says that it ends.
    pub(super) fn ends(&mut self, now: Instant, key: &HostKey, end: End) {
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

    pub(super) fn swap_failed(&mut self, now: Instant, key: &HostKey, error: String) {
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
            // Storage may be back before the time is over, and all that is not in it is lost.
            Some(Ending::Swap) if self.ending && !self.ended => {
                self.deadline_set(key, Some((now + SWAP_AGAIN, Due::SwapAgain)));
            }
            Some(Ending::Swap) if self.ending => {
                self.kill(
                    key,
                    format!("its node ended, and it did not swap out: {error}"),
                );
            }
            Some(Ending::Swap) => {
                host.record.ending = None;
                // One that another host may be instead of stays as it is.
                let held = host.record.transfer == HostTransfer::Frozen;
                if host.record.state == ProcessState::Quiescing && !held {
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

    /// A host of an agent before this one, which may live.
    pub(in crate::agent) fn adopt(&mut self, now: Instant, record: HostRecord) {
        let key = record.key();
        self.hosts.insert(key.clone(), Host::new(record));
        self.deadline_set(&key, Some((now + self.limits.adopt, Due::Redialled)));
    }

    /// A host of an agent before this one, which is dead. `generation` is of an image that it
    /// wrote.
    pub(in crate::agent) fn adopt_dead(
        &mut self,
        now: Instant,
        record: HostRecord,
        generation: Option<u64>,
    ) {
        let key = record.key();
        // A checkpoint that is known is no swap.
        let generation = generation.filter(|generation| *generation > record.swap_generation);
        let mut host = Host::new(record);
        host.end = generation.map(End::Unheard);
        self.hosts.insert(key.clone(), host);
        self.died(now, &key, "while no agent was there to see how");
    }

    /// Whether a host that redials is the one that is known.
    pub(in crate::agent) fn expects(&self, key: &HostKey, incarnation: u64, pid: u32) -> bool {
        self.hosts.get(key).is_some_and(|host| {
            host.record.incarnation == incarnation && host.record.pid == pid && !host.linked
        })
    }

    /// A host has redialled, was taken, and has the directory's address.
    pub(in crate::agent) fn redialled(&mut self, now: Instant, key: &HostKey, hello: HostHello) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        host.linked = true;
        let ending = host.record.ending;
        let moved = host.transfer_found(&hello);
        // How long it may take to have everything is the control plane's to say; not how long to
        // serve then.
        let arrives = hello.transfer != host::HostTransfer::None && host.serves.is_empty();
        let due = match (ending, host.record.state) {
            (None, ProcessState::Starting) if arrives => None,
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
        self.transfer_redialled(key, moved);
        // It may not have got what the agent before this one had said last.
        match ending {
            Some(Ending::Swap) => self.send(key, ToHost::SwapOut),
            Some(Ending::Stop) => self.send(key, ToHost::Stop),
            None => {}
        }
    }

    /// The connection to a host is gone: it dies, or it redials.
    pub(in crate::agent) fn unlinked(&mut self, now: Instant, key: &HostKey) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        host.linked = false;
        self.checkpoints_fail(key, "the connection to its host was lost");
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        let bounded = matches!(host.deadline, Some((_, Due::Stopped | Due::Ended)));
        if !bounded && host.killed.is_none() {
            self.deadline_set(key, Some((now + self.limits.exit, Due::Ended)));
        }
    }

    /// A host is dead, and reaped.
    pub(in crate::agent) fn died(&mut self, now: Instant, key: &HostKey, how: &str) {
        self.deadline_set(key, None);
        self.checkpoints_fail(key, "its host has ended");
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
        self.answer_all(host.out.into_iter().chain(host.thaws), &Ok(()));
        self.answer_all(host.serves, &Err("its host ended".into()));
        if let Some(next) = host.next {
            self.start(now, next);
        }
    }
}
