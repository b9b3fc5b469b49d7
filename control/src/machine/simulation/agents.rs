//! Agents and hosts, as far as the registry hears of them.

use std::collections::VecDeque;

use super::LEASE_MS;
use crate::agent::{
    FromAgent, HostCommand, HostReport, HostStats, HostTransfer, StartCommand, ToAgent,
    TransferCommand,
};
use crate::api::{ProcessState, ProcessStats};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Phase {
    Starting(u64),
    /// It was fetched, and told to serve.
    Serving(u64, u64),
    Ready,
    Swapping(u64),
    Stopping(u64),
}

#[derive(Debug)]
pub(super) struct Host {
    pub process: String,
    pub incarnation: u64,
    life: u64,
    pub phase: Phase,
    pub transfer: HostTransfer,
    /// The incarnation that it fetches, or has fetched.
    pub from: Option<u64>,
    /// The incarnation that has all of it.
    pub fetched: Option<u64>,
    /// The command to let itself be fetched.
    out: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Agent {
    pub link: Option<u64>,
    /// Since when it has not been sure of the control plane.
    pub cut_since: Option<u64>,
    pub inbox: VecDeque<ToAgent>,
    pub outbox: VecDeque<FromAgent>,
    pub hosts: Vec<Host>,
}

impl Host {
    fn new(process: &str, incarnation: u64) -> Self {
        Self {
            process: process.into(),
            incarnation,
            life: incarnation,
            phase: Phase::Ready,
            transfer: HostTransfer::None,
            from: None,
            fetched: None,
            out: None,
        }
    }

    pub fn is_sending(&self) -> bool {
        self.phase == Phase::Ready && self.transfer == HostTransfer::Sending
    }

    /// It has, or fetches, what is another's.
    pub fn is_guest(&self) -> bool {
        matches!(
            self.transfer,
            HostTransfer::Receiving | HostTransfer::Prepared
        ) && !matches!(self.phase, Phase::Serving(..))
    }

    /// It serves, or may without being asked.
    pub fn is_the_process(&self) -> bool {
        !self.is_guest() && self.transfer != HostTransfer::Frozen
    }

    pub fn report(&self) -> HostReport {
        let state = match self.phase {
            Phase::Starting(_) | Phase::Serving(..) => ProcessState::Starting,
            Phase::Ready if self.transfer != HostTransfer::Frozen => ProcessState::Ready,
            _ => ProcessState::Quiescing,
        };
        self.report_as(state)
    }

    fn report_as(&self, state: ProcessState) -> HostReport {
        HostReport {
            application: "a".into(),
            process: self.process.clone(),
            incarnation: self.incarnation,
            life: self.life,
            state,
            pid: 1,
            addresses: vec![],
            swap_generation: u64::from(state == ProcessState::Swapped),
            error: None,
            swapped: state == ProcessState::Swapped,
            transfer: match state.is_live() {
                true => self.transfer,
                false => HostTransfer::None,
            },
        }
    }
}

impl Agent {
    fn say(&mut self, message: FromAgent) {
        if self.link.is_some() {
            self.outbox.push_back(message);
        }
    }

    pub fn say_answer(&mut self, request: u64, result: Result<(), String>) {
        self.say(FromAgent::Answer { request, result });
    }

    pub fn fence(&mut self, now: u64) {
        if self.cut_since.is_some_and(|since| now - since >= LEASE_MS) {
            for host in std::mem::take(&mut self.hosts) {
                self.say(FromAgent::Report(host.report_as(ProcessState::Failed)));
            }
        }
    }

    fn find(&mut self, command: &HostCommand) -> Option<&mut Host> {
        let meant = |host: &&mut Host| {
            host.process == command.process && host.incarnation == command.incarnation
        };
        self.hosts.iter_mut().find(meant)
    }

    pub fn start(&mut self, start: &StartCommand) {
        // A process has one host here: an older one is killed, and seen dead, first.
        while let Some(at) = self.hosts.iter().position(|h| h.process == start.process) {
            self.kill(at);
        }
        let from = start.from.as_ref().map(|from| from.incarnation);
        let mut host = Host::new(&start.process, start.incarnation);
        host.life = start.life;
        host.phase = Phase::Starting(start.request);
        host.from = from;
        if from.is_some() {
            host.transfer = HostTransfer::Receiving;
            self.say(FromAgent::Report(host.report()));
        }
        self.hosts.push(host);
    }

    /// A host dies, and its agent sees it.
    pub fn kill(&mut self, which: usize) {
        let Some(at) = which.checked_rem(self.hosts.len()) else {
            return;
        };
        let host = self.hosts.remove(at);
        let stops = matches!(host.phase, Phase::Stopping(_));
        let state = match stops {
            true => ProcessState::Gone,
            false => ProcessState::Failed,
        };
        self.say(FromAgent::Report(host.report_as(state)));
        match host.phase {
            Phase::Starting(start) => self.say_answer(start, Err("it died".into())),
            Phase::Serving(start, serve) => {
                self.say_answer(start, Err("it died".into()));
                self.say_answer(serve, Err("it died".into()));
            }
            Phase::Swapping(request) | Phase::Stopping(request) => {
                self.say_answer(request, Ok(()));
            }
            Phase::Ready => {}
        }
        if let Some(out) = host.out {
            self.say_answer(out, Ok(()));
        }
    }

    pub fn swap(&mut self, command: &HostCommand) {
        match self.find(command) {
            Some(host) if host.phase == Phase::Ready => {
                host.phase = Phase::Swapping(command.request);
                if host.fetched.is_none() {
                    host.transfer = HostTransfer::None;
                }
                let report = host.report();
                self.say(FromAgent::Report(report));
            }
            Some(_) => self.say_answer(command.request, Err("cannot swap".into())),
            None => {
                let missing = Host::new(&command.process, command.incarnation);
                self.say(FromAgent::Report(missing.report_as(ProcessState::Failed)));
                self.say_answer(command.request, Ok(()));
            }
        }
    }

    pub fn checkpoint(&mut self, command: &HostCommand) {
        let result = match self.find(command) {
            Some(host) if host.phase == Phase::Ready => Ok(()),
            _ => Err("it does not serve".into()),
        };
        self.say_answer(command.request, result);
    }

    pub fn stop(&mut self, command: &HostCommand) {
        match self.find(command) {
            Some(host) => host.phase = Phase::Stopping(command.request),
            None => self.say_answer(command.request, Ok(())),
        }
    }

    pub fn transfer_out(&mut self, command: &TransferCommand) {
        let named = HostCommand {
            request: command.request,
            application: command.application.clone(),
            process: command.process.clone(),
            incarnation: command.incarnation,
        };
        match self.find(&named) {
            Some(host) if host.phase == Phase::Ready && host.transfer == HostTransfer::None => {
                host.transfer = HostTransfer::Sending;
                host.out = Some(command.request);
                let report = host.report();
                self.say(FromAgent::Report(report));
            }
            _ => self.say_answer(command.request, Err("it does not serve".into())),
        }
    }

    /// The incarnation that has all of what serves on now.
    pub fn thaw(&mut self, command: &HostCommand) -> Option<u64> {
        let Some(host) = self.find(command) else {
            self.say_answer(command.request, Ok(()));
            return None;
        };
        if host.phase != Phase::Ready || host.is_guest() {
            return None;
        }
        host.transfer = HostTransfer::None;
        let target = host.fetched.take();
        let (report, out) = (host.report(), host.out.take());
        self.say(FromAgent::Report(report));
        if let Some(out) = out {
            self.say_answer(out, Err("it was called off".into()));
        }
        self.say_answer(command.request, Ok(()));
        target
    }

    /// The incarnation that moves by this.
    pub fn serve(&mut self, command: &HostCommand) -> Option<u64> {
        let prepared =
            |host: &&mut Host| host.is_guest() && host.transfer == HostTransfer::Prepared;
        match self.find(command) {
            Some(host) if host.phase == Phase::Ready => {
                self.say_answer(command.request, Ok(()));
                None
            }
            host => {
                let Some(host) = host.filter(prepared) else {
                    self.say_answer(command.request, Err("it is not here".into()));
                    return None;
                };
                let Phase::Starting(start) = host.phase else {
                    return None;
                };
                host.phase = Phase::Serving(start, command.request);
                host.from
            }
        }
    }

    /// A fetch has ended.
    pub fn fetch_end(&mut self, at: usize, fetched: bool) {
        if !fetched {
            return self.kill(at);
        }
        let host = &mut self.hosts[at];
        host.transfer = HostTransfer::Prepared;
        let report = host.report();
        self.say(FromAgent::Report(report));
    }

    /// A host goes on, and does not fetch; whether it does.
    pub fn host_step(&mut self, at: usize, well: bool) -> bool {
        let host = &mut self.hosts[at];
        let phase = host.phase.clone();
        match (&phase, host.transfer, well) {
            (Phase::Starting(_), HostTransfer::Prepared, true) => return false,
            (Phase::Starting(_) | Phase::Serving(..), _, false) => {
                self.kill(at);
                return true;
            }
            (Phase::Ready, HostTransfer::Sending, true) => host.transfer = HostTransfer::Frozen,
            // It gives up.
            (Phase::Ready, HostTransfer::Sending | HostTransfer::Frozen, false)
                if host.fetched.is_none() =>
            {
                host.transfer = HostTransfer::None;
            }
            (Phase::Ready, _, true) | (Phase::Ready, HostTransfer::Frozen, false) => return false,
            (Phase::Ready, _, false) => {
                self.kill(at);
                return true;
            }
            (Phase::Starting(_) | Phase::Serving(..), _, true) => {
                host.phase = Phase::Ready;
                host.transfer = HostTransfer::None;
            }
            (Phase::Swapping(request), _, true) => {
                return self.host_end(at, ProcessState::Swapped, *request);
            }
            (Phase::Swapping(_), _, false) => host.phase = Phase::Ready,
            (Phase::Stopping(request), _, _) => {
                return self.host_end(at, ProcessState::Gone, *request);
            }
        }
        let (report, over) = (host.report(), host.transfer == HostTransfer::None);
        let out = host.out.take_if(|_| over);
        self.say(FromAgent::Report(report));
        match phase {
            Phase::Starting(start) => self.say_answer(start, Ok(())),
            Phase::Serving(start, serve) => {
                self.say_answer(start, Ok(()));
                self.say_answer(serve, Ok(()));
            }
            Phase::Swapping(request) => self.say_answer(request, Err("busy".into())),
            Phase::Ready | Phase::Stopping(_) => {}
        }
        if let Some(out) = out {
            self.say_answer(out, Err("it gave up".into()));
        }
        true
    }

    fn host_end(&mut self, at: usize, state: ProcessState, request: u64) -> bool {
        let host = self.hosts.remove(at);
        self.say(FromAgent::Report(host.report_as(state)));
        self.say_answer(request, Ok(()));
        if let Some(out) = host.out {
            self.say_answer(out, Ok(()));
        }
        true
    }

    pub fn stats_say(&mut self, done: u8) {
        let hosts = self.hosts.iter().map(|host| HostStats {
            application: "a".into(),
            process: host.process.clone(),
            incarnation: host.incarnation,
            stats: ProcessStats {
                invocations: done.into(),
                running: u64::from(done % 2),
                ..ProcessStats::default()
            },
            restored: None,
            checkpoint: None,
            checkpoint_error: None,
        });
        let message = FromAgent::Stats {
            resident_bytes: u64::from(done % 4 == 3),
            hosts: hosts.collect(),
        };
        self.say(message);
    }
}
