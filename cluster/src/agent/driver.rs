//! The one thread of an agent: waits for everything at once, feeds the machines, does what follows.
//!
//! ```text
//!             +---- endpoint: control plane, clients and hosts at the directory
//!   Poller <--+---- agent.sock, sockets to hosts, pidfds of hosts
//!             +---- stop descriptor; other threads, by the endpoint's waker
//! ```

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_control::agent::{AM_CLUSTER, ApplicationKey, FromAgent, ResolvedProcess, ToAgent};
use praas_control::api::name_check;
use praas_runtime::codec;
use praas_runtime::directory::{DirectoryAnswer, DirectoryRequest, Resolved};
use praas_runtime::invocation::AM_DIRECTORY;
use praas_transport::{
    Address, ChannelId, ChannelInfo, CloseReason, Disposition, Endpoint, Flow, Handler,
    Incarnation, Incoming, Keyring, LargeMessage, Message, Ops, Posted, Role,
};

use super::config::AgentConfig;
use super::control::{ControlLink, Fenced};
use super::cut::{cut_clear, cut_inherited, cut_write};
use super::hosts::{Action, HostKey, Hosts, Limits};
use super::images::ImageWorker;
use super::processes::{Heard, Processes};
use super::questions::{Asked, Asker, Questions, Subject};
use super::record::record_remove;
use super::stats::StatsTeller;
use crate::run_dir::RunDir;
use crate::spawn::Poller;
use crate::storage::storage_open;

pub(super) const TOKEN_ENDPOINT: u64 = 0;
pub(super) const TOKEN_STOP: u64 = 1;
pub(super) const TOKEN_LISTENER: u64 = 2;

/// Answers that may wait for a client that does not read.
const ANSWERS_MAX: usize = 8_192;
/// How long the last words to the control plane may take.
const CLOSING: Duration = Duration::from_secs(1);
/// How long killed hosts may take to be reaped at the end.
const KILLING: Duration = Duration::from_secs(5);

/// What an agent says of its node.
#[derive(Debug, Clone)]
pub(super) struct NodeInfo {
    pub(super) name: String,
    pub(super) cpus: u32,
    pub(super) memory_bytes: u64,
}

/// A client or host on a channel of the directory.
#[derive(Debug)]
struct Client {
    application: String,
    /// Answers that wait for room.
    answers: VecDeque<(u64, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// Hosts swap out, until then.
    SwappingOut(Instant),
    /// The rest is killed, and reaped until then.
    Killing(Instant),
    /// The last reports are on their way, until then.
    Closing(Instant),
    Over,
}

/// An agent at work.
pub(super) struct Driver {
    run_dir: RunDir,
    node: NodeInfo,
    shutdown: Duration,
    pub(super) hosts: Hosts,
    pub(super) processes: Processes,
    questions: Questions<ChannelId>,
    stats: StatsTeller,
    control: ControlLink,
    clients: HashMap<ChannelId, Client>,
    keyring: Arc<Keyring>,
    /// The applications in the keyring, with their key ids.
    keys: HashMap<String, u32>,
    images: ImageWorker,
    stage: Stage,
    /// Whether the file says that the agent is cut off.
    cut_noted: bool,
}

impl Driver {
    pub(super) fn new(
        run_dir: &RunDir,
        config: &AgentConfig,
        node: NodeInfo,
        keyring: Arc<Keyring>,
        endpoint: &Endpoint,
        listener: UnixListener,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let poller = Poller::new()?;
        poller.add_raw(endpoint.raw_fd().as_raw_fd(), TOKEN_ENDPOINT)?;
        let directory = endpoint.addresses().to_vec();
        let processes = Processes::new(run_dir, config, directory, poller, listener)?;
        Ok(Self {
            images: images_worker(run_dir, config, endpoint)?,
            run_dir: run_dir.clone(),
            node,
            shutdown: Duration::from_millis(config.shutdown_timeout_ms),
            hosts: Hosts::new(Limits::from(config)),
            processes,
            questions: Questions::new(
                config.questions_max,
                Duration::from_millis(config.question_timeout_ms),
            ),
            stats: StatsTeller::new(config.stats_interval_ms),
            control: ControlLink::new(run_dir, config, now),
            clients: HashMap::new(),
            keyring,
            keys: HashMap::new(),
            stage: Stage::Serving,
            cut_noted: false,
        })
    }

    /// Takes over what an agent before this one has left.
    pub(super) fn adopt(&mut self, config: &AgentConfig) -> io::Result<()> {
        let now = Instant::now();
        let adopted = self.processes.adopt(now, &mut self.hosts)?;
        let (cut_since, noted) = cut_inherited(&self.run_dir, config, now);
        self.cut_noted = noted;
        if adopted > 0 {
            self.control.lease.inherit(cut_since);
        }
        Ok(())
    }

    /// Runs until it is told to stop, by `stop`, and all is in order.
    pub(super) fn run(&mut self, endpoint: &mut Endpoint, stop: &OwnedFd) -> io::Result<()> {
        self.processes.poller().add(stop, TOKEN_STOP, false)?;
        loop {
            self.endpoint_progress(endpoint);
            let now = Instant::now();
            for (request, result) in self.images.finished(now) {
                self.control
                    .say(endpoint, &FromAgent::Answer { request, result });
            }
            self.step(endpoint, now);
            self.act(endpoint);
            self.cut_note();
            if self.stage == Stage::Over {
                break;
            }
            let next = self.deadline_next(endpoint);
            let timeout = match endpoint.arm() {
                true => next.map(|next| next.saturating_duration_since(Instant::now())),
                false => Some(Duration::ZERO),
            };
            for token in self.processes.wait(timeout)? {
                match token {
                    TOKEN_ENDPOINT => {}
                    TOKEN_STOP => self.stop_signalled(stop),
                    TOKEN_LISTENER => self.processes.accept(Instant::now()),
                    token => self.host_ready(token),
                }
            }
            self.act(endpoint);
        }
        if let Some(channel) = self.control.channel() {
            endpoint.close(channel);
            let until = Instant::now() + CLOSING;
            while endpoint.info(channel).is_some() && Instant::now() < until {
                endpoint.progress_wait(self, Some(until), praas_transport::WaitMode::Warm);
            }
        }
        if self.hosts.is_empty() {
            cut_clear(&self.run_dir);
        }
        Ok(())
    }

    fn endpoint_progress(&mut self, endpoint: &mut Endpoint) {
        loop {
            endpoint.wait(Some(Instant::now()));
            if endpoint.progress(self) == 0 {
                return;
            }
            self.act(endpoint);
        }
    }

    fn deadline_next(&self, endpoint: &Endpoint) -> Option<Instant> {
        let stage = match self.stage {
            Stage::Serving | Stage::Over => None,
            Stage::SwappingOut(until) | Stage::Killing(until) | Stage::Closing(until) => {
                Some(until)
            }
        };
        let all = [
            self.hosts.deadline_next(),
            self.questions.deadline_next(),
            self.control.retry_next(),
            self.control.lease.deadline_next(),
            self.images.deadline_next(),
            self.processes.deadline_next(),
            self.stats.deadline_next(!self.hosts.is_empty()),
            endpoint.timer_next(),
            stage,
        ];
        all.into_iter().flatten().min()
    }

    /// Lets time pass.
    fn step(&mut self, ops: &mut Ops, now: Instant) {
        self.hosts.tick(now);
        self.processes.tick(now);
        if let Some((channel, why)) = self.control.broken_take() {
            ops.close(channel);
            self.control_lost(&why);
        }
        self.control.dial_if_due(ops, now);
        self.stats_step(ops, now);
        for (subject, askers) in self.questions.expired(now) {
            let why = match self.control.heard() {
                true => "the control plane does not answer",
                false => "the control plane cannot be reached",
            };
            self.answer_all(ops, &askers, &failed(format!("{}: {why}", subject.key)));
        }
        match self.control.lease.step(now) {
            Some(Fenced::Swap) => {
                let why = "the control plane was out of reach for half of its lease";
                self.hosts.swap_all(why);
            }
            Some(Fenced::Kill) => {
                let why = "the control plane was out of reach until its lease was almost over";
                self.hosts.kill_all(false, why);
            }
            None => {}
        }
        loop {
            let stage = self.stage_next(now);
            if std::mem::replace(&mut self.stage, stage) == stage {
                return;
            }
        }
    }

    /// Looks at what hosts count, and tells what has changed.
    fn stats_step(&mut self, ops: &mut Ops, now: Instant) {
        if self.hosts.is_empty() || !self.stats.is_due(now) || !self.control.takes_stats() {
            return;
        }
        let counts = self.processes.counts();
        let all = counts.filter_map(|(key, counts)| {
            let host = self.hosts.stats(key, counts)?;
            Some((key.clone(), host))
        });
        let all = all.collect();
        for message in self.stats.tell_all(all) {
            self.control.say(ops, &message);
        }
    }

    fn stage_next(&mut self, now: Instant) -> Stage {
        match self.stage {
            Stage::SwappingOut(_) | Stage::Killing(_) if self.hosts.is_empty() => {
                Stage::Closing(now + CLOSING)
            }
            Stage::SwappingOut(until) if until <= now => {
                self.hosts.kill_all(true, "the node's agent ended");
                Stage::Killing(now + KILLING)
            }
            Stage::Killing(until) if until <= now || self.hosts.all_swapping() => {
                let names = self.hosts.names().join(", ");
                tracing::error!("left to themselves: {names}; they end with their swap");
                Stage::Closing(now + CLOSING)
            }
            Stage::Closing(until) if until <= now || self.control.is_flushed() => Stage::Over,
            stage => stage,
        }
    }

    fn stop_signalled(&mut self, stop: &OwnedFd) {
        let mut count = [0; 8];
        // It is readable, or was read already.
        let _ = rustix::io::read(stop, &mut count);
        let now = Instant::now();
        self.stage = match self.stage {
            Stage::Serving => {
                self.hosts.ending_begin();
                Stage::SwappingOut(now + self.shutdown)
            }
            // Whoever asks twice is in a hurry.
            Stage::SwappingOut(_) => Stage::SwappingOut(now),
            stage => stage,
        };
    }

    /// A host's socket or pidfd is ready, or that of who may be one.
    fn host_ready(&mut self, token: u64) {
        let now = Instant::now();
        for (key, heard) in self.processes.ready(token, &self.hosts) {
            match heard {
                Heard::Said(message) => self.hosts.said(now, &key, message),
                Heard::Unlinked => self.hosts.unlinked(now, &key),
                Heard::Redialled(hello) => self.hosts.redialled(now, &key, hello),
                Heard::Died(how) => self.hosts.died(now, &key, &how),
            }
        }
    }

    /// Does what the machine of hosts wants done.
    fn act(&mut self, ops: &mut Ops) {
        loop {
            let actions = self.hosts.actions_take();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.act_one(ops, action);
            }
        }
    }

    fn act_one(&mut self, ops: &mut Ops, action: Action) {
        let now = Instant::now();
        match action {
            Action::Spawn(start, settings) => {
                let key = HostKey {
                    application: start.application.clone(),
                    process: start.process.clone(),
                };
                match self.processes.spawn(&key, *start, *settings) {
                    Ok((pid, started, log_start)) => {
                        self.hosts.spawned(&key, pid, started, log_start);
                    }
                    Err(why) => self.hosts.spawn_failed(now, &key, why),
                }
            }
            Action::Send(to, message) => self.processes.send(&to, &message),
            Action::Kill(key) => self.processes.kill(&key),
            Action::Say(message) => self.control.say(ops, &message),
            Action::RecordWrite(record) => {
                if let Err(error) = record.write(&self.run_dir) {
                    let key = record.key();
                    tracing::error!(%key, %error, "cannot write the host's record");
                }
            }
            Action::RecordRemove(key) => record_remove(&self.run_dir, &key),
            Action::ImagesDelete(request, key, below) => {
                self.images.order(now, request, key, below);
            }
            Action::StatsTell(key) => {
                let counts = self.processes.counts_of(&key);
                if let Some(host) = counts.and_then(|counts| self.hosts.stats(&key, counts)) {
                    let message = self.stats.tell_one(&key, host);
                    self.control.say(ops, &message);
                }
            }
            Action::Serves(key) => {
                if let Some((incarnation, addresses)) = self.hosts.serving(&key) {
                    let answer = resolved(incarnation, addresses);
                    let askers = self.questions.answered_here(&key);
                    self.answer_all(ops, &askers, &answer);
                }
            }
        }
    }

    fn told(&mut self, ops: &mut Ops, message: ToAgent) {
        match message {
            ToAgent::Applications(keys) => {
                self.keyring_update(ops, &keys);
                let first = self.control.greeted();
                self.hosts.inventory_received();
                self.hosts.told(Instant::now(), ToAgent::Applications(keys));
                if first {
                    let all: Vec<_> = self.questions.all().map(|(n, s)| (n, s.clone())).collect();
                    for (number, subject) in all {
                        self.question_forward(ops, number, &subject);
                    }
                }
            }
            ToAgent::Resolved { request, result } => {
                let Some((subject, askers)) = self.questions.answered(request) else {
                    return;
                };
                let answer = match result {
                    Ok(ResolvedProcess {
                        incarnation,
                        addresses,
                    }) => resolved(incarnation, &addresses),
                    Err(failure) => failed(format!("{}: {failure}", subject.key)),
                };
                self.answer_all(ops, &askers, &answer);
            }
            message => self.hosts.told(Instant::now(), message),
        }
    }

    /// Admits whom the applications admit now; channels that were opened under other secrets end.
    fn keyring_update(&mut self, ops: &mut Ops, keys: &[ApplicationKey]) {
        let mut before = std::mem::take(&mut self.keys);
        let mut changed: Vec<String> = Vec::new();
        for key in keys {
            let known = before.remove(&key.application);
            if let Some(known) = known.filter(|known| *known != key.key_id) {
                self.keyring.revoke_below(&key.application, known + 1);
                changed.push(key.application.clone());
            }
            if known != Some(key.key_id) {
                self.keyring
                    .insert(&key.application, key.key_id, key.secret.clone());
            }
            self.keys.insert(key.application.clone(), key.key_id);
        }
        for application in before.into_keys() {
            self.keyring.revoke_below(&application, u32::MAX);
            changed.push(application);
        }
        if changed.is_empty() {
            return;
        }
        let void = |client: &Client| changed.contains(&client.application);
        let void = self.clients.iter().filter(|(_, client)| void(client));
        let void: Vec<ChannelId> = void.map(|(channel, _)| *channel).collect();
        for channel in void {
            ops.close(channel);
            self.client_lost(channel);
        }
    }

    fn control_lost(&mut self, reason: &str) {
        self.control.lost(Instant::now(), reason);
        self.hosts.control_lost();
        self.stats.forget();
    }

    /// A question for the directory.
    fn asked(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) {
        let Some(client) = self.clients.get(&channel) else {
            return;
        };
        let request = match codec::decode::<DirectoryRequest>(message.payload) {
            Ok(request) => request,
            Err(error) => {
                let answer = failed(format!("the question makes no sense: {error}"));
                return self.answer(ops, channel, message.tag, &answer);
            }
        };
        let DirectoryRequest::Resolve { process, ensure } = request;
        if let Err(failure) = name_check("process", &process) {
            return self.answer(ops, channel, message.tag, &failed(failure.to_string()));
        }
        let application = client.application.clone();
        let key = HostKey {
            application,
            process,
        };
        let mut known = self.hosts.serving(&key);
        if known.is_none() && !self.control.heard() {
            // The last that was heard is better than nothing: at worst the caller finds nobody.
            known = self.hosts.serving_elsewhere(&key);
        }
        if let Some((incarnation, addresses)) = known {
            let answer = resolved(incarnation, addresses);
            return self.answer(ops, channel, message.tag, &answer);
        }
        let subject = Subject { key, ensure };
        let asker = Asker {
            channel,
            tag: message.tag,
        };
        match self.questions.ask(Instant::now(), subject.clone(), asker) {
            Asked::New(number) if self.control.heard() => {
                self.question_forward(ops, number, &subject);
            }
            Asked::New(_) | Asked::Joined => {}
            Asked::Full => {
                let answer = failed("too many questions wait (setting questions_max)".into());
                self.answer(ops, channel, message.tag, &answer);
            }
        }
    }

    fn question_forward(&mut self, ops: &mut Ops, number: u64, subject: &Subject) {
        let message = FromAgent::Resolve {
            request: number,
            application: subject.key.application.clone(),
            process: subject.key.process.clone(),
            ensure: subject.ensure,
        };
        self.control.say(ops, &message);
    }

    fn answer_all(&mut self, ops: &mut Ops, to: &[Asker<ChannelId>], answer: &DirectoryAnswer) {
        for asker in to {
            self.answer(ops, asker.channel, asker.tag, answer);
        }
    }

    fn answer(&mut self, ops: &mut Ops, to: ChannelId, tag: u64, answer: &DirectoryAnswer) {
        let Some(client) = self.clients.get_mut(&to) else {
            return;
        };
        match codec::encode(answer) {
            Ok(bytes) => client.answers.push_back((tag, bytes)),
            Err(error) => tracing::error!(%error, "an answer of the directory has no encoding"),
        }
        client.flush(ops, to);
        if client.answers.len() > ANSWERS_MAX {
            tracing::warn!("a client does not read the directory's answers");
            ops.close(to);
            self.client_lost(to);
        }
    }

    fn client_lost(&mut self, channel: ChannelId) {
        self.clients.remove(&channel);
        self.questions.channel_lost(channel);
    }

    /// Sees that an agent after this one knows since when the control plane is out of reach.
    fn cut_note(&mut self) {
        let cut = self.control.lease.cut_since();
        let cut = cut.filter(|_| self.control.lease.applies());
        match cut {
            Some(since) if !self.cut_noted => cut_write(&self.run_dir, since),
            None if self.cut_noted => cut_clear(&self.run_dir),
            _ => {}
        }
        self.cut_noted = cut.is_some();
    }
}

impl Client {
    fn flush(&mut self, ops: &mut Ops, channel: ChannelId) {
        while let Some((tag, bytes)) = self.answers.front() {
            match ops.send(channel, AM_DIRECTORY, *tag, &[], &[bytes]) {
                Ok(Posted::Done) => drop(self.answers.pop_front()),
                Ok(Posted::Busy) => return,
                Err(error) => {
                    // The channel is ending, of which `on_close` tells; or it will not fit.
                    tracing::debug!(%error, "an answer cannot be sent");
                    self.answers.pop_front();
                }
            }
        }
    }
}

impl Handler for Driver {
    fn on_open(&mut self, ops: &mut Ops, channel: ChannelId, info: &ChannelInfo) -> Flow {
        if self.control.is(channel) {
            let hello = FromAgent::Hello {
                node: self.node.name.clone(),
                cpus: self.node.cpus,
                memory_bytes: self.node.memory_bytes,
                inventory: self.hosts.inventory(),
            };
            self.control.opened(ops, &hello);
            return Flow::Continue;
        }
        match info.peer.role {
            Some(Role::Client | Role::Process) => {
                let client = Client {
                    application: info.peer.application.to_string(),
                    answers: VecDeque::new(),
                };
                self.clients.insert(channel, client);
            }
            role => {
                tracing::warn!(?role, "the directory is not for such as this");
                ops.close(channel);
            }
        }
        Flow::Continue
    }

    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        match (self.control.is(channel), message.am) {
            (true, AM_CLUSTER) => {
                if let Some(message) = self.control.piece(message) {
                    self.told(ops, message);
                }
            }
            (false, AM_DIRECTORY) => self.asked(ops, channel, message),
            (_, am) => {
                tracing::warn!(am, "a peer speaks another protocol");
                ops.close(channel);
            }
        }
        Flow::Continue
    }

    fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
        // No message of these protocols is large.
        Disposition::Refuse(0)
    }

    fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
        Flow::Continue
    }

    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        if self.control.is(channel) {
            self.control.pump(ops);
        } else if let Some(client) = self.clients.get_mut(&channel) {
            client.flush(ops, channel);
        }
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, channel: ChannelId, reason: CloseReason) -> Flow {
        if self.control.is(channel) {
            self.control_lost(&reason.to_string());
        } else {
            self.client_lost(channel);
        }
        Flow::Continue
    }
}

/// The thread that deletes images, where the settings have them.
fn images_worker(
    run_dir: &RunDir,
    config: &AgentConfig,
    endpoint: &Endpoint,
) -> io::Result<ImageWorker> {
    let (url, waker) = (config.storage_url(run_dir), endpoint.waker());
    ImageWorker::start(
        move || storage_open(&url),
        move || waker.wake(),
        config.images_delete_timeout_ms,
    )
}

fn resolved(incarnation: u64, addresses: &[Address]) -> DirectoryAnswer {
    DirectoryAnswer::Resolved(Resolved {
        incarnation: Incarnation(incarnation),
        addresses: addresses.to_vec(),
    })
}

fn failed(why: String) -> DirectoryAnswer {
    DirectoryAnswer::Failed(why)
}
