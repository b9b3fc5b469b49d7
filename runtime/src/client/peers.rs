//! The client's core, wired to an endpoint: channels to processes, and to the directory.
//!
//! Clients and processes call others through the same [`Peers`]; it lives beside an endpoint and
//! is given it with every call, so that whoever owns the endpoint owns this too.

mod reads;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use praas_transport::clock;
use praas_transport::{
    Address, ChannelId, CloseReason, Credential, Dial, Incarnation, Kinds, Ops, Posted, PostedBuf,
    RefuseReason, SendError, address_choose,
};

use self::reads::{Reads, one_sided_is_asked};
use super::core::{
    CallId, CallOptions, ClientCore, Completed, CoreLimits, FunctionId, Link, Refusal, Sent, Target,
};
use super::one_way::OneWayTally;
use crate::directory::{DirectoryAnswer, DirectoryRequest, Resolved};
use crate::invocation::{AM_DIRECTORY, InvokeError, Payload, PutBody, Status};

/// Where processes are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    /// At an agent, which starts what does not run. Several addresses lead to the same agent.
    Agent(Vec<Address>),
    /// Here: a fixed list, without any agent.
    Fixed(BTreeMap<String, Resolved>),
}

/// How long a lost directory is looked for before calls that need it fail.
const DIRECTORY_PATIENCE: Duration = Duration::from_secs(15);
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Calls to other processes over an endpoint.
#[derive(Debug)]
pub struct Peers {
    core: ClientCore<ChannelId>,
    outside: Outside,
    reads: Reads,
}

/// All of [`Peers`] but the core: what the core's [`Link`] is made of.
#[derive(Debug)]
struct Outside {
    directory: Directory,
    credential: Credential,
    transports: Kinds,
    link: DirectoryLink,
    /// Answers that are ready when the core is done with asking.
    answers: VecDeque<(Target, Result<Resolved, String>)>,
}

#[derive(Debug, Default)]
struct DirectoryLink {
    channel: Option<ChannelId>,
    open: bool,
    /// What to ask, the oldest first, by tag; kept until it is answered.
    asked: BTreeMap<u64, (Target, String)>,
    sent_below: u64,
    next: u64,
    retry: Option<Instant>,
    backoff: Option<Duration>,
    failing_since: Option<Instant>,
}

struct PeersLink<'a> {
    ops: &'a mut Ops,
    outside: &'a mut Outside,
}

impl Link for PeersLink<'_> {
    type Channel = ChannelId;

    fn one_sided_is_asked(&self, channel: ChannelId) -> bool {
        one_sided_is_asked(self.ops, channel)
    }

    fn connect(&mut self, to: &Resolved) -> Result<ChannelId, String> {
        let dial = Dial {
            credential: self.outside.credential.clone(),
            expect: to.incarnation,
            deadline: None,
        };
        let allowed = self.outside.transports;
        self.ops
            .connect_any(&to.addresses, allowed, dial)
            .map_err(|error| error.to_string())
    }

    #[inline]
    fn send(
        &mut self,
        to: ChannelId,
        am: u8,
        tag: u64,
        header: &[u8],
        payload: &Payload,
        context: u64,
    ) -> Sent {
        let outcome = match payload {
            Payload::Buf(buf) if buf.len() > self.ops.eager_max(to) => {
                match self.ops.send_buf(to, am, tag, header, buf.clone(), context) {
                    Ok(PostedBuf::Done(_)) => return Sent::Done,
                    Ok(PostedBuf::Pending) => return Sent::Pending,
                    Ok(PostedBuf::Busy(_)) => return Sent::Busy,
                    Err(error) => Err(error),
                }
            }
            bytes => self.ops.send(to, am, tag, header, &[bytes]),
        };
        match outcome {
            Ok(Posted::Done) => Sent::Done,
            Ok(Posted::Busy) => Sent::Busy,
            Err(error @ SendError::TooLarge { .. }) => Sent::TooLarge(error.to_string()),
            Err(_) => Sent::Dead,
        }
    }

    fn resolve(&mut self, target: Target, process: &str) {
        match &self.outside.directory {
            Directory::Fixed(known) => {
                let answer = match known.get(process) {
                    Some(resolved) => Ok(resolved.clone()),
                    None => Err("it is not in the list of processes".into()),
                };
                self.outside.answers.push_back((target, answer));
            }
            Directory::Agent(_) => {
                let tag = self.outside.link.next;
                self.outside.link.next += 1;
                self.outside
                    .link
                    .asked
                    .insert(tag, (target, process.into()));
            }
        }
    }

    fn close(&mut self, channel: ChannelId) {
        self.ops.close(channel);
    }

    fn now(&self) -> Instant {
        clock::now()
    }
}

impl Peers {
    /// Calls that show `credential`, to processes found in `directory`, over the transport that
    /// fits best of those that are allowed.
    pub fn new(
        directory: Directory,
        credential: Credential,
        transports: Kinds,
        limits: CoreLimits,
    ) -> Self {
        Self {
            core: ClientCore::new(limits),
            outside: Outside {
                directory,
                credential,
                transports,
                link: DirectoryLink::default(),
                answers: VecDeque::new(),
            },
            reads: Reads::default(),
        }
    }

    /// See [`ClientCore::repeats`].
    pub fn repeats(&mut self, first: Incarnation) {
        self.core.repeats(first);
    }

    /// See [`ClientCore::target`].
    ///
    /// # Errors
    /// A name that no process has.
    pub fn target(&mut self, process: &str) -> Result<Target, InvokeError> {
        self.core.target(process)
    }

    /// See [`ClientCore::function`].
    ///
    /// # Errors
    /// A name that no function has.
    pub fn function(&mut self, target: Target, name: &str) -> Result<FunctionId, InvokeError> {
        self.core.function(target, name)
    }

    /// See [`ClientCore::invoke`].
    ///
    /// # Errors
    /// Too many under way.
    #[inline]
    pub fn invoke(
        &mut self,
        ops: &mut Ops,
        target: Target,
        function: FunctionId,
        payload: Payload,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        let mut link = PeersLink {
            ops,
            outside: &mut self.outside,
        };
        let call = self
            .core
            .invoke(&mut link, target, function, payload, options, owner);
        self.settle(ops);
        call
    }

    /// See [`ClientCore::invoke_one_way`].
    ///
    /// # Errors
    /// Too many under way.
    #[allow(clippy::too_many_arguments)] // As there.
    pub fn invoke_one_way(
        &mut self,
        ops: &mut Ops,
        target: Target,
        function: FunctionId,
        payload: Payload,
        options: CallOptions,
        owner: u64,
        told: bool,
    ) -> Result<CallId, Refusal> {
        let mut link = PeersLink {
            ops,
            outside: &mut self.outside,
        };
        let core = &mut self.core;
        let call = core.invoke_one_way(&mut link, target, function, payload, options, owner, told);
        self.settle(ops);
        call
    }

    /// Whether what is sent to a target from here on may be kept for a moment, to go out together.
    pub fn cork(&mut self, ops: &mut Ops, target: Target, corked: bool) {
        if let Some((channel, _)) = self.core.channel(target) {
            ops.cork(channel, corked);
        }
    }

    /// See [`ClientCore::one_way`].
    pub fn one_way(&self) -> &OneWayTally {
        self.core.one_way()
    }

    /// See [`ClientCore::put`].
    ///
    /// # Errors
    /// Too many under way.
    pub fn put(
        &mut self,
        ops: &mut Ops,
        target: Target,
        body: PutBody,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        let mut link = PeersLink {
            ops,
            outside: &mut self.outside,
        };
        let call = self.core.put(&mut link, target, body, options, owner);
        self.settle(ops);
        call
    }

    /// See [`ClientCore::cancel`].
    pub fn cancel(&mut self, ops: &mut Ops, call: CallId) {
        self.core.cancel(
            &mut PeersLink {
                ops,
                outside: &mut self.outside,
            },
            call,
        );
    }

    /// See [`ClientCore::completed`].
    #[inline]
    pub fn completed(&mut self) -> Option<Completed> {
        self.core.completed()
    }

    /// Whether a call is under way.
    pub fn pending(&self, call: CallId) -> bool {
        self.core.pending(call)
    }

    /// Whether any call is under way.
    pub fn is_busy(&self) -> bool {
        self.core.is_busy()
    }

    /// See [`ClientCore::room`].
    #[inline]
    pub fn room(&self, target: Target) -> bool {
        self.core.room(target)
    }

    /// See [`ClientCore::room_put`].
    pub fn room_put(&self, target: Target) -> bool {
        self.core.room_put(target)
    }

    /// Closes all channels in good order.
    pub fn close_all(&mut self, ops: &mut Ops) {
        self.core.close_all(&mut PeersLink {
            ops,
            outside: &mut self.outside,
        });
        if let Some(channel) = self.outside.link.channel.take() {
            ops.close(channel);
        }
    }

    /// The open channel to a target, and the incarnation behind it.
    pub fn channel(&self, target: Target) -> Option<(ChannelId, Incarnation)> {
        self.core.channel(target)
    }

    /// Shows another credential on channels that are opened from now on.
    pub fn credential_changed(&mut self, credential: Credential) {
        self.outside.credential = credential;
    }

    /// Takes another way to the directory: its agent has come back elsewhere.
    pub fn directory_moved(&mut self, addresses: Vec<Address>) {
        self.outside.directory = Directory::Agent(addresses);
    }

    /// Learns where a process is, in a list that is fixed otherwise, and shows this credential from
    /// now on. An open channel stays open; who finds no list has a better source.
    pub fn process_place(&mut self, process: &str, place: Resolved, credential: Credential) {
        self.outside.credential = credential;
        if let Directory::Fixed(known) = &mut self.outside.directory {
            known.insert(process.into(), place);
        }
    }

    /// When [`Peers::tick`] is needed next.
    pub fn timer_next(&self) -> Option<Instant> {
        match (self.core.timer_next(), self.outside.link.retry) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Lets time pass.
    pub fn tick(&mut self, ops: &mut Ops, now: Instant) {
        self.core.tick(
            &mut PeersLink {
                ops,
                outside: &mut self.outside,
            },
            now,
        );
        if self.outside.link.retry.is_some_and(|retry| retry <= now) {
            self.outside.link.retry = None;
        }
        self.settle(ops);
    }

    /// Whether a channel is one of ours rather than one that was accepted.
    #[inline]
    pub fn owns(&self, channel: ChannelId) -> bool {
        self.core.owns(channel) || self.outside.link.channel == Some(channel)
    }

    /// A channel is open; `true` if it is ours.
    pub fn on_open(&mut self, ops: &mut Ops, channel: ChannelId, incarnation: Incarnation) -> bool {
        if self.outside.link.channel == Some(channel) {
            self.outside.link.open = true;
            self.outside.link.failing_since = None;
            self.outside.link.backoff = None;
            self.settle(ops);
            return true;
        }
        let ours = self.core.owns(channel);
        self.core.on_open(
            &mut PeersLink {
                ops,
                outside: &mut self.outside,
            },
            channel,
            incarnation,
        );
        ours
    }

    /// A channel has ended; `true` if it was ours.
    pub fn on_close(&mut self, ops: &mut Ops, channel: ChannelId, reason: &CloseReason) -> bool {
        let for_good = match reason {
            CloseReason::Refused { reason, .. } => refused_for_good(*reason),
            _ => false,
        };
        if self.outside.link.channel == Some(channel) {
            // An agent may not have heard yet of an application that is new.
            let unknown = RefuseReason::WrongApplication;
            let unknown =
                matches!(reason, CloseReason::Refused { reason, .. } if *reason == unknown);
            self.directory_lost(&reason.to_string(), for_good && !unknown);
            self.settle(ops);
            return true;
        }
        if !self.core.owns(channel) {
            return false;
        }
        self.reads_closed(channel);
        if for_good {
            self.core.on_refused(channel, &reason.to_string());
            return true;
        }
        let graceful = matches!(reason, CloseReason::Closed | CloseReason::Superseded);
        self.core.on_close(
            &mut PeersLink {
                ops,
                outside: &mut self.outside,
            },
            channel,
            graceful,
            &reason.to_string(),
        );
        self.settle(ops);
        true
    }

    /// There is room on a channel again.
    pub fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) {
        self.core.on_writable(
            &mut PeersLink {
                ops,
                outside: &mut self.outside,
            },
            channel,
        );
        self.reads_writable(ops, channel);
        self.settle(ops);
    }

    /// A reply came.
    #[inline]
    pub fn on_reply(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        sequence: u64,
        status: Status,
        payload: Payload,
    ) {
        let mut link = PeersLink {
            ops,
            outside: &mut self.outside,
        };
        self.core
            .on_reply(&mut link, channel, sequence, status, payload);
    }

    /// Whether the result of an invocation is still waited for.
    pub fn wants(&self, channel: ChannelId, sequence: u64) -> bool {
        self.core.wants(channel, sequence)
    }

    /// A put was answered.
    pub fn on_put_answer(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        sequence: u64,
        status: Status,
    ) {
        let mut link = PeersLink {
            ops,
            outside: &mut self.outside,
        };
        self.core
            .on_put_answer(&mut link, channel, sequence, status);
    }

    /// A large message was refused by its receiver.
    pub fn on_send_refused(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        context: u64,
        reason: u32,
    ) {
        let mut link = PeersLink {
            ops,
            outside: &mut self.outside,
        };
        self.core
            .on_send_refused(&mut link, channel, context, reason);
    }

    /// The directory answered; what comes on another channel is ignored.
    pub fn on_directory(&mut self, ops: &mut Ops, channel: ChannelId, tag: u64, payload: &[u8]) {
        if self.outside.link.channel != Some(channel) {
            return;
        }
        let Some((target, _)) = self.outside.link.asked.remove(&tag) else {
            return;
        };
        let answer = match crate::codec::decode(payload) {
            Ok(DirectoryAnswer::Resolved(resolved)) => Ok(resolved),
            Ok(DirectoryAnswer::Failed(reason)) => Err(reason),
            Err(error) => Err(format!("the directory's answer makes no sense: {error}")),
        };
        self.outside.answers.push_back((target, answer));
        self.settle(ops);
    }

    /// Does what the last step made possible: asks the directory, hands its answers to the core.
    fn settle(&mut self, ops: &mut Ops) {
        loop {
            if !self.outside.link.asked.is_empty() {
                self.directory_ask(ops);
            }
            let Some((target, answer)) = self.outside.answers.pop_front() else {
                return;
            };
            let mut link = PeersLink {
                ops,
                outside: &mut self.outside,
            };
            self.core.on_resolved(&mut link, target, answer);
        }
    }

    fn directory_ask(&mut self, ops: &mut Ops) {
        if self.outside.link.channel.is_none() && self.outside.link.retry.is_none() {
            self.directory_dial(ops);
        }
        let link = &mut self.outside.link;
        let (Some(channel), true) = (link.channel, link.open) else {
            return;
        };
        for (tag, (_, process)) in link.asked.range(link.sent_below..) {
            let request = DirectoryRequest::Resolve {
                process: process.clone(),
                ensure: true,
            };
            let bytes = match crate::codec::encode(&request) {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::error!(%error, "a directory request has no encoding");
                    return;
                }
            };
            match ops.send(channel, AM_DIRECTORY, *tag, &[], &[&bytes]) {
                Ok(Posted::Done) => link.sent_below = tag + 1,
                Ok(Posted::Busy) | Err(_) => return,
            }
        }
    }

    fn directory_dial(&mut self, ops: &mut Ops) {
        let Directory::Agent(addresses) = &self.outside.directory else {
            return;
        };
        let dial = Dial {
            credential: self.outside.credential.clone(),
            expect: Incarnation(0),
            deadline: None,
        };
        // What is allowed is about processes: an agent that cannot be reached so is no obstacle.
        let allowed = self.outside.transports;
        let allowed = match address_choose(addresses, allowed) {
            Ok(_) => allowed,
            Err(_) => Kinds::all(),
        };
        let dialled = ops.connect_any(addresses, allowed, dial);
        let dialled = dialled.map_err(|error| error.to_string());
        match dialled {
            Ok(channel) => {
                self.outside.link.channel = Some(channel);
                self.outside.link.open = false;
            }
            Err(reason) => self.directory_lost(&reason, false),
        }
    }

    /// The directory is out of reach: it is tried again, for a while, unless that is in vain.
    fn directory_lost(&mut self, reason: &str, for_good: bool) {
        let now = clock::now();
        let link = &mut self.outside.link;
        link.channel = None;
        link.open = false;
        link.sent_below = 0;
        let since = *link.failing_since.get_or_insert(now);
        if for_good || now.saturating_duration_since(since) >= DIRECTORY_PATIENCE {
            link.failing_since = None;
            link.backoff = None;
            for (_, (target, _)) in std::mem::take(&mut link.asked) {
                let reason = format!("the directory cannot be reached: {reason}");
                self.outside.answers.push_back((target, Err(reason)));
            }
            return;
        }
        let backoff = link.backoff.unwrap_or(RETRY_FIRST);
        link.retry = Some(now + backoff);
        link.backoff = Some((backoff * 2).min(RETRY_MAX));
    }
}

/// Whether dialling again with the same ticket is in vain. A key that is not known may be on its
/// way to the listener; a listener that has no room or is about to end may be another one soon.
fn refused_for_good(reason: RefuseReason) -> bool {
    matches!(
        reason,
        RefuseReason::Version
            | RefuseReason::Malformed
            | RefuseReason::Expired
            | RefuseReason::BadProof
            | RefuseReason::WrongApplication
            | RefuseReason::WrongRole
            | RefuseReason::Superseded
            | RefuseReason::WrongUser
    )
}
