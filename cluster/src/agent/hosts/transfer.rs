//! The agent's part in transfers: it carries words between the control plane and hosts, and reports
//! how far hosts are. It decides nothing.

use std::time::Instant;

use praas_control::agent::{HostCommand, HostTransfer, TransferCommand};
use praas_control::api::ProcessState;
use praas_runtime::host::{self, HostHello, ToHost};

use super::host::{Due, Host};
use super::{Action, HostKey, Hosts};

impl Host {
    /// Whether it is frozen for another host, and nothing else is the matter with it.
    pub(super) fn is_held(&self) -> bool {
        self.record.transfer == HostTransfer::Frozen && self.record.ending.is_none()
    }

    /// A host that is found again says how far it is; whether that is news.
    pub(super) fn transfer_found(&mut self, hello: &HostHello) -> bool {
        let before = (self.record.state, self.record.transfer);
        self.transfer_set(transfer(hello.transfer));
        before != (self.record.state, self.record.transfer)
    }

    fn transfer_set(&mut self, state: HostTransfer) {
        self.record.transfer = state;
        if self.record.ending.is_some() || self.end.is_some() {
            return;
        }
        self.record.state = match (state, self.record.state) {
            (HostTransfer::Frozen, ProcessState::Ready) => ProcessState::Quiescing,
            (HostTransfer::None | HostTransfer::Sending, ProcessState::Quiescing) => {
                ProcessState::Ready
            }
            (_, state) => state,
        };
    }
}

impl Hosts {
    pub(super) fn transfer_out(&mut self, command: &TransferCommand) {
        let named = HostCommand {
            request: command.request,
            application: command.application.clone(),
            process: command.process.clone(),
            incarnation: command.incarnation,
        };
        let key = self.commanded(&named);
        let host = key.as_ref().and_then(|key| self.hosts.get_mut(key));
        let serves = |host: &&mut Host| {
            let record = &host.record;
            record.state == ProcessState::Ready && record.ending.is_none() && host.linked
        };
        let (Some(key), Some(host)) = (&key, host.filter(serves)) else {
            let why = "it does not serve on this node, or its agent was restarted just now";
            return self.answer(command.request, Err(why.into()));
        };
        host.out = Some(command.request);
        let message = ToHost::TransferOut {
            incarnation: command.to_incarnation,
            token: command.token,
        };
        self.send(key, message);
    }

    pub(super) fn transfer_thaw(&mut self, command: &HostCommand) {
        let Some(key) = self.commanded(command) else {
            return self.answer(command.request, Ok(()));
        };
        if let Some(host) = self.hosts.get_mut(&key) {
            host.thaws.push(command.request);
        }
        self.send(&key, ToHost::TransferThaw);
    }

    pub(super) fn transfer_serve(&mut self, now: Instant, command: &HostCommand) {
        let key = self.commanded(command);
        let host = key.as_ref().and_then(|key| self.hosts.get_mut(key));
        let (Some(key), Some(host)) = (&key, host) else {
            let why = "it has no host on this node";
            return self.answer(command.request, Err(why.into()));
        };
        match host.record.state {
            ProcessState::Ready => self.answer(command.request, Ok(())),
            _ => {
                host.serves.push(command.request);
                self.deadline_set(key, Some((now + self.limits.start, Due::Ready)));
                self.send(key, ToHost::TransferServe);
            }
        }
    }

    /// A host says how far it is.
    pub(super) fn transfer_said(
        &mut self,
        key: &HostKey,
        state: host::HostTransfer,
        error: Option<String>,
    ) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        let before = host.record.state;
        host.transfer_set(transfer(state));
        let over = state == host::HostTransfer::None;
        let thaws = match over {
            true => std::mem::take(&mut host.thaws),
            false => Vec::new(),
        };
        let out = host.out.take_if(|_| over || error.is_some());
        let serves = host.record.state == ProcessState::Ready && before != ProcessState::Ready;
        if host.record.state == ProcessState::Starting && host.serves.is_empty() {
            // How long it may take to have everything is the control plane's to say.
            self.deadline_set(key, None);
        }
        self.changed(key);
        let why = error.unwrap_or_else(|| "it was called off".into());
        self.answer_all(out, &Err(why));
        self.answer_all(thaws, &Ok(()));
        if serves {
            self.actions.push(Action::Serves(key.clone()));
        }
    }

    /// A host is found again: it may not have got what the agent before this one had said last, nor
    /// has the control plane heard how far it is.
    pub(super) fn transfer_redialled(&mut self, key: &HostKey, moved: bool) {
        if moved {
            self.changed(key);
        }
        let host = self.hosts.get(key);
        let (thaws, serves) = host.map_or((false, false), |host| {
            (!host.thaws.is_empty(), !host.serves.is_empty())
        });
        if thaws {
            self.send(key, ToHost::TransferThaw);
        }
        if serves {
            self.send(key, ToHost::TransferServe);
        }
    }
}

fn transfer(state: host::HostTransfer) -> HostTransfer {
    match state {
        host::HostTransfer::None => HostTransfer::None,
        host::HostTransfer::Sending => HostTransfer::Sending,
        host::HostTransfer::Frozen => HostTransfer::Frozen,
        host::HostTransfer::Receiving => HostTransfer::Receiving,
        host::HostTransfer::Prepared => HostTransfer::Prepared,
    }
}
