//! What the control plane asks for: start, swap, stop.

use std::time::{Duration, Instant};

use praas_control::agent::{FromAgent, HostCommand, HostReport, HostTransfer, StartCommand};
use praas_control::api::ProcessState;
use praas_runtime::host::ToHost;

use super::super::record::{Ending, HostRecord};
use super::super::settings::HostSettings;
use super::host::{Due, End, Host};
use super::{Action, HostKey, Hosts};

impl Hosts {
    pub(super) fn start(&mut self, now: Instant, start: Box<StartCommand>) {
        let key = HostKey {
            application: start.application.clone(),
            process: start.process.clone(),
        };
        if let Some(host) = self.hosts.get_mut(&key) {
            let older = host.record.incarnation;
            if older >= start.incarnation {
                tracing::error!(%key, older, incarnation = start.incarnation, "not starting");
                if older > start.incarnation {
                    let why = format!("incarnation {older} lives here");
                    self.answer(start.request, Err(why));
                }
                return;
            }
            host.next = Some(start);
            return self.kill(&key, "a newer incarnation is to start".into());
        }
        let settings = match self.start_check(&start) {
            Ok(settings) => settings,
            Err(why) => return self.start_refuse(&start, why),
        };
        self.finals.remove(&key);
        let transfer = match start.from {
            // Said from the first word on: nobody is to take it for the process itself.
            Some(_) => HostTransfer::Receiving,
            None => HostTransfer::None,
        };
        let record = HostRecord {
            state: ProcessState::Starting,
            life: start.life,
            transfer,
            swap_generation: start.swap_generation,
            quiesce_ms: settings.process.quiesce_timeout_ms,
            ..HostRecord::new(&key, start.incarnation)
        };
        self.actions
            .push(Action::RecordWrite(Box::new(record.clone())));
        let host = Host {
            start: Some(start.request),
            ..Host::new(record)
        };
        self.hosts.insert(key.clone(), host);
        self.deadline_set(&key, Some((now + self.limits.start, Due::Ready)));
        self.actions.push(Action::Spawn(start, Box::new(settings)));
    }

    fn start_check(&self, start: &StartCommand) -> Result<HostSettings, String> {
        if self.ending {
            return Err("the node's agent is about to end".into());
        }
        if self.hosts.len() >= self.limits.hosts_max {
            let max = self.limits.hosts_max;
            return Err(format!("the node has {max} hosts (setting hosts_max)"));
        }
        HostSettings::parse(&start.settings)
    }

    fn start_refuse(&mut self, start: &StartCommand, why: String) {
        let report = HostReport {
            application: start.application.clone(),
            process: start.process.clone(),
            incarnation: start.incarnation,
            life: start.life,
            state: ProcessState::Failed,
            pid: 0,
            addresses: Vec::new(),
            swap_generation: start.swap_generation,
            error: Some(why.clone()),
            swapped: false,
            transfer: HostTransfer::None,
        };
        self.report_dead(report);
        self.answer(start.request, Err(why));
    }

    /// The operating system's process is there, and has its first message.
    pub(in crate::agent) fn spawned(
        &mut self,
        key: &HostKey,
        pid: u32,
        started: u64,
        log_start: u64,
    ) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        host.linked = true;
        host.record.pid = pid;
        host.record.started = started;
        host.record.log_start = log_start;
        self.changed(key);
        self.world_send(key);
    }

    /// There is no such process.
    pub(in crate::agent) fn spawn_failed(&mut self, now: Instant, key: &HostKey, why: String) {
        if let Some(host) = self.hosts.get_mut(key) {
            host.end = Some(End::Failed(why));
        }
        self.died(now, key, "");
    }

    pub(super) fn swap(&mut self, command: &HostCommand) {
        let Some(key) = self.commanded(command) else {
            // An `Err` would mean that it serves on. The report tells.
            self.report_missing(command);
            return self.answer(command.request, Ok(()));
        };
        if let Some(host) = self.hosts.get_mut(&key) {
            host.swaps.push(command.request);
        }
        self.swap_begin(&key);
    }

    pub(super) fn swap_begin(&mut self, key: &HostKey) {
        let Some(host) = self.hosts.get_mut(key) else {
            return;
        };
        if host.record.ending.is_some() || host.end.is_some() || host.killed.is_some() {
            return;
        }
        host.record.ending = Some(Ending::Swap);
        host.record.state = ProcessState::Quiescing;
        self.changed(key);
        self.send(key, ToHost::SwapOut);
    }

    pub(super) fn stop(&mut self, now: Instant, command: &HostCommand) {
        let Some(key) = self.commanded(command) else {
            self.next_forget(command);
            return self.answer(command.request, Ok(()));
        };
        let Some(host) = self.hosts.get_mut(&key) else {
            return;
        };
        host.stops.push(command.request);
        if host.record.ending == Some(Ending::Stop) || host.killed.is_some() {
            host.record.ending = Some(Ending::Stop);
            return;
        }
        // Functions may be cancelled, and be waited for once more.
        let quiesce = Duration::from_millis(host.record.quiesce_ms.saturating_mul(2));
        let starting = host.record.state == ProcessState::Starting;
        host.record.ending = Some(Ending::Stop);
        host.record.state = ProcessState::Quiescing;
        self.changed(&key);
        match starting {
            // It runs nothing yet that could be finished.
            true => self.kill(&key, "it was stopped while it started".into()),
            false => {
                let deadline = now + quiesce + self.limits.stop;
                self.deadline_set(&key, Some((deadline, Due::Stopped)));
                self.send(&key, ToHost::Stop);
            }
        }
    }

    /// A start that waits for the end of an older host is called off.
    fn next_forget(&mut self, command: &HostCommand) {
        let key = command_key(command);
        let Some(host) = self.hosts.get_mut(&key) else {
            return;
        };
        let meant = |next: &mut Box<StartCommand>| next.incarnation == command.incarnation;
        if let Some(next) = host.next.take_if(meant) {
            self.answer(next.request, Err("it was stopped".into()));
        }
    }

    /// The host that a command means, if it is here.
    pub(super) fn commanded(&self, command: &HostCommand) -> Option<HostKey> {
        let key = command_key(command);
        let host = self.hosts.get(&key)?;
        (host.record.incarnation == command.incarnation).then_some(key)
    }

    /// Says of a host that is not here what became of it.
    fn report_missing(&mut self, command: &HostCommand) {
        let known = self.finals.get(&command_key(command));
        let known = known.filter(|(report, _)| report.incarnation == command.incarnation);
        let report = known.map(|(report, _)| report.clone());
        let report = report.unwrap_or_else(|| HostReport {
            application: command.application.clone(),
            process: command.process.clone(),
            incarnation: command.incarnation,
            life: 0,
            state: ProcessState::Failed,
            pid: 0,
            addresses: Vec::new(),
            swap_generation: 0,
            error: Some("it has no host on this node".into()),
            swapped: false,
            transfer: HostTransfer::None,
        });
        self.actions.push(Action::Say(FromAgent::Report(report)));
    }
}

fn command_key(command: &HostCommand) -> HostKey {
    HostKey {
        application: command.application.clone(),
        process: command.process.clone(),
    }
}
