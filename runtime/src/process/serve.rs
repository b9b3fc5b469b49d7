//! What the owner of the endpoint does with what arrives: the serving side of a process.
//!
//! Requests become jobs, puts go to the mailbox, answers go to the calls that wait for them. It
//! is a handler of the endpoint, so nothing here blocks or runs a user's function.

mod locate;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_transport::clock;
use praas_transport::sync::atomic::Ordering;
use praas_transport::{
    Buf, ChannelId, ChannelInfo, CloseReason, Disposition, Flow, Handler, Incarnation, Incoming,
    LargeMessage, Message, OneSidedDone, Ops, Posted, PostedBuf, Role, SendFailure,
};
use slab::Slab;

use super::builtin::Builtin;
use super::engine::Shared;
use super::timers::TimerKey;
use super::transfer::Sending;
use crate::client::Peers;
use crate::function::FunctionIndex;
use crate::invocation::{
    AM_DIRECTORY, AM_INVOCATION, AM_MAILBOX, Admit, CHANNEL_FUNCTIONS_MAX, Kind, Payload,
    RequestHeader, Session, SessionImage, Status, passed_decode, put_split, short_header,
    short_header_read,
};
use crate::locate::AM_STATE;
use crate::mailbox::{MailMessage, Put, PutId};
use crate::swap::ImageKind;
use crate::transfer::AM_TRANSFER;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Callee {
    /// A function of a module.
    User(FunctionIndex),
    /// One that has limits.
    Limited(FunctionIndex),
    /// One that every process has.
    Builtin(Builtin),
    /// A name that nothing has.
    Unknown,
}

/// A request that may run.
#[derive(Debug)]
pub(super) struct ReadyJob {
    pub job: u64,
    pub callee: Callee,
    /// 32 bits, so that a job is two lines of a cache: it is moved on its way.
    pub session: u32,
    pub client: u128,
    pub sequence: u64,
    pub input: Payload,
    pub deadline: Option<Instant>,
    /// It is answered when it begins, and its deadline is for that.
    pub one_way: bool,
    /// It has a place behind the gate of its function.
    pub inside: bool,
}

const _: () = assert!(size_of::<ReadyJob>() <= 128);

/// Answers that wait for room on one channel at most.
const BACKLOG_MAX: usize = 1 << 16;
/// When a job that was on its way to a worker is looked for again, to be cancelled.
const CANCEL_AGAIN: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct Reply {
    am: u8,
    tag: u64,
    header: [u8; 8],
    payload: Payload,
}

/// A channel that was accepted.
#[derive(Debug)]
struct Served {
    id: ChannelId,
    client: u128,
    incarnation: u64,
    session: usize,
    source: String,
    role: Option<Role>,
    functions: Vec<Callee>,
    backlog: VecDeque<Reply>,
    /// A message was turned away, or the caller has come again by another channel: so are those
    /// after it, until the caller comes again.
    puts_refused: bool,
}

#[derive(Debug)]
struct ClientSession {
    client: u128,
    session: Session,
    /// Where answers go: the newest of its channels.
    channel: Option<ChannelId>,
    /// Channels that use it, which is not forgotten while there are any.
    channels: usize,
    /// Counts up when it is last seen: the smallest is forgotten first.
    seen: u64,
    /// It began after others had been forgotten, of which it may have been one.
    after_forgotten: bool,
    /// Ends what it has asked for, unless it comes back first.
    gone: Option<TimerKey>,
}

/// The serving side of a process; owned with the endpoint.
#[derive(Debug)]
pub(super) struct Serve {
    pub shared: Arc<Shared>,
    pub peers: Peers,
    /// Requests that may run, in the order of arrival.
    pub ready: VecDeque<ReadyJob>,
    /// New invocations are turned away, to wherever the process is next.
    pub quiescing: bool,
    /// So are messages.
    pub sealed: bool,
    /// Another host has everything: only [`super::Process::thaw`] lets it serve again.
    pub held: bool,
    channels: Vec<Option<Served>>,
    sessions: Slab<ClientSession>,
    by_client: HashMap<u128, usize>,
    seen: u64,
    /// A session was forgotten (`sessions_max`): what is not known any more may have run.
    forgotten: bool,
    next_job: u64,
    results_bytes: usize,
    /// The transfer of this process to another host, if one is under way.
    pub transfer: Option<Box<Sending>>,
}

impl Serve {
    pub fn new(shared: Arc<Shared>, peers: Peers, sessions: Vec<SessionImage>) -> Self {
        let mut serve = Self {
            shared,
            peers,
            ready: VecDeque::new(),
            quiescing: false,
            sealed: false,
            held: false,
            channels: Vec::new(),
            sessions: Slab::new(),
            by_client: HashMap::new(),
            seen: 0,
            forgotten: false,
            next_job: 1,
            results_bytes: 0,
            transfer: None,
        };
        let limit = serve.shared.settings.session_inflight_max;
        for image in sessions {
            let client = image.client;
            let session = Session::restore(image, limit);
            serve.results_bytes += session.bytes();
            let entry = ClientSession {
                client,
                session,
                channel: None,
                channels: 0,
                seen: 0,
                after_forgotten: false,
                gone: None,
            };
            let at = serve.sessions.insert(entry);
            serve.by_client.insert(client, at);
        }
        serve
    }

    /// What is remembered of invocations, for an image.
    pub fn sessions_image(&self, kind: ImageKind) -> Vec<SessionImage> {
        self.sessions
            .iter()
            .map(|(_, entry)| entry.session.image(entry.client, kind))
            .collect()
    }

    /// Closes all channels in good order.
    pub fn close_all(&mut self, ops: &mut Ops) {
        self.callers_close(ops);
        self.peers.close_all(ops);
    }

    /// Closes the channels of all callers, who may come again if they are let in.
    pub fn callers_close(&mut self, ops: &mut Ops) {
        let all: Vec<ChannelId> = self
            .channels
            .iter()
            .flatten()
            .map(|served| served.id)
            .collect();
        for channel in all {
            self.caller_close(ops, channel);
        }
    }

    /// Closes a caller's channel.
    pub(super) fn caller_close(&mut self, ops: &mut Ops, channel: ChannelId) {
        self.caller_ended(channel);
        ops.close(channel);
    }

    /// A caller's channel is no more. Answers go to another one of its client, if there is any.
    fn caller_ended(&mut self, channel: ChannelId) {
        let Some(place) = self.channels.get_mut(channel.index()) else {
            return;
        };
        let Some(served) = place.take_if(|served| served.id == channel) else {
            return;
        };
        if let Some(entry) = self.sessions.get_mut(served.session) {
            entry.channels -= 1;
            self.seen += 1;
            entry.seen = self.seen;
            let patience_ms = self.shared.settings.caller_gone_cancel_ms;
            if entry.channels == 0 && patience_ms > 0 {
                let at = Instant::now() + Duration::from_millis(patience_ms);
                let (session, client) = (served.session, served.client);
                entry.gone = Some(self.shared.timers.caller_gone(at, session, client));
            }
            if entry.channel == Some(channel) {
                let mut others = self.channels.iter().flatten();
                let other = others.find(|other| other.session == served.session);
                entry.channel = other.map(|other| other.id);
            }
        }
    }

    /// Whether answers still wait for room.
    pub fn backlogged(&self) -> bool {
        self.channels
            .iter()
            .flatten()
            .any(|served| !served.backlog.is_empty())
    }

    /// Records how an invocation ended and answers it.
    #[inline]
    pub fn reply(
        &mut self,
        ops: &mut Ops,
        session: usize,
        client: u128,
        sequence: u64,
        status: Status,
        payload: Payload,
    ) {
        let Some(entry) = self.sessions.get_mut(session) else {
            return;
        };
        if entry.client != client {
            return;
        }
        let before = entry.session.bytes();
        let channel = entry.channel;
        match status {
            Status::Quiescing => entry.session.withdraw(sequence),
            _ => entry.session.finish(sequence, status, payload.clone()),
        }
        self.results_bytes = self.results_bytes + entry.session.bytes() - before;
        if self.results_bytes > self.shared.settings.results_max_bytes {
            self.results_trim();
        }
        if let Some(channel) = channel {
            let header = short_header(Kind::Reply, status as u16, 0);
            self.answer(ops, channel, AM_INVOCATION, sequence, header, payload);
        }
    }

    /// Answers a job that has not run.
    pub fn job_answer(&mut self, ops: &mut Ops, job: &ReadyJob, status: Status, payload: Payload) {
        if job.is_own() {
            self.shared.one_way_failed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                ?status,
                "a one-way invocation of this process did not begin"
            );
            return;
        }
        let session = job.session as usize;
        self.reply(ops, session, job.client, job.sequence, status, payload);
    }

    /// Sends an answer, or keeps it until there is room.
    #[inline]
    fn answer(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        am: u8,
        tag: u64,
        header: [u8; 8],
        payload: Payload,
    ) {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return;
        };
        let reply = Reply {
            am,
            tag,
            header,
            payload,
        };
        if served.backlog.is_empty() {
            if let Some(reply) = reply_send(ops, channel, reply) {
                served.backlog.push_back(reply);
            }
        } else if served.backlog.len() < BACKLOG_MAX {
            served.backlog.push_back(reply);
        } else {
            // It asks and never listens; what it asked is recorded, should it come back.
            let peer = served.source.clone();
            tracing::warn!(%peer, "closed: it does not take its answers");
            self.caller_close(ops, channel);
        }
    }

    /// Results are above their limit: the large ones go first, then all.
    fn results_trim(&mut self) {
        for keep in [4096, 0] {
            for (_, entry) in &mut self.sessions {
                entry.session.forget_large(keep);
            }
            self.results_bytes = self
                .sessions
                .iter()
                .map(|(_, entry)| entry.session.bytes())
                .sum();
            if self.results_bytes <= self.shared.settings.results_max_bytes {
                return;
            }
        }
    }

    fn session_open(&mut self, client: u128, channel: ChannelId) -> usize {
        self.seen += 1;
        let seen = self.seen;
        if let Some(at) = self.by_client.get(&client).copied() {
            let entry = &mut self.sessions[at];
            entry.channel = Some(channel);
            entry.channels += 1;
            entry.seen = seen;
            if let Some(timer) = entry.gone.take() {
                self.shared.timers.take_back(timer);
            }
            return at;
        }
        if self.sessions.len() >= self.shared.settings.sessions_max {
            self.session_forget();
        }
        let session = Session::new(self.shared.settings.session_inflight_max);
        let entry = ClientSession {
            client,
            session,
            channel: Some(channel),
            channels: 1,
            seen,
            after_forgotten: self.forgotten,
            gone: None,
        };
        let at = self.sessions.insert(entry);
        self.by_client.insert(client, at);
        at
    }

    /// Forgets the client that has been gone for the longest; one for which something runs only if
    /// there is no other.
    fn session_forget(&mut self) {
        let gone = self
            .sessions
            .iter()
            .filter(|(_, entry)| entry.channels == 0);
        let first = gone.min_by_key(|(_, entry)| (entry.session.is_running(), entry.seen));
        if let Some(at) = first.map(|(at, _)| at) {
            let entry = self.sessions.remove(at);
            if let Some(timer) = entry.gone {
                self.shared.timers.take_back(timer);
            }
            self.results_bytes -= entry.session.bytes();
            self.by_client.remove(&entry.client);
            self.forgotten = true;
        }
    }

    /// Whether all is known of the invocations of this incarnation that any client may ask about.
    pub fn vouches(&self) -> bool {
        !self.forgotten
    }

    /// Whether an invocation that is not known here, and was first sent to that incarnation, cannot
    /// have run.
    fn never_ran(&self, first: Incarnation, session: &ClientSession) -> bool {
        let known_of = first == self.shared.identity.incarnation
            || self.shared.restored_from == Some(first)
            || self.shared.vouched.contains(&first.0);
        known_of && !session.after_forgotten
    }

    #[inline]
    fn request(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        sequence: u64,
        header: &[u8],
        input: Payload,
    ) -> Flow {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return Flow::Continue;
        };
        let Some(header) = RequestHeader::decode(header) else {
            return self.refuse(
                ops,
                channel,
                sequence,
                Status::Malformed,
                "a request's header",
            );
        };
        let (session, client) = (served.session, served.client);
        let callee = served.functions.get(header.function as usize).copied();
        let callee = callee.unwrap_or(Callee::Unknown);
        let entry = &self.sessions[session];
        if let Some(first) = header.first
            && !entry.session.knows(sequence)
            && !self.never_ran(first, entry)
            && !self.shared.idempotent(callee)
        {
            return self.refuse(ops, channel, sequence, Status::OutcomeUnknown, "");
        }
        let entry = &mut self.sessions[session];
        let job = self.next_job;
        let before = entry.session.bytes();
        let admit = match self.quiescing && !entry.session.knows(sequence) {
            true => return self.refuse(ops, channel, sequence, Status::Quiescing, ""),
            false => entry.session.admit(sequence, header.acked_delta, job),
        };
        self.results_bytes = self.results_bytes + entry.session.bytes() - before;
        match admit {
            Admit::Run => {}
            Admit::Running => return Flow::Continue,
            Admit::Recorded(status, payload) => {
                let header = short_header(Kind::Reply, status as u16, 0);
                self.answer(ops, channel, AM_INVOCATION, sequence, header, payload);
                return Flow::Continue;
            }
            Admit::Expired => {
                return self.refuse(ops, channel, sequence, Status::ResultExpired, "");
            }
            Admit::Full => {
                let text = "too many invocations of this client (session_inflight_max)";
                return self.refuse(ops, channel, sequence, Status::Exhausted, text);
            }
        }
        self.next_job += 1;
        if callee == Callee::Unknown {
            let none = Payload::default();
            self.reply(
                ops,
                session,
                client,
                sequence,
                Status::UnknownFunction,
                none,
            );
            return Flow::Continue;
        }
        let deadline = match header.deadline_us {
            0 => None,
            us => Some(clock::now() + Duration::from_micros(us.into())),
        };
        let job = ReadyJob {
            job,
            callee,
            session: session as u32,
            client,
            sequence,
            input,
            deadline,
            one_way: header.one_way,
            inside: false,
        };
        self.ready.push_back(job);
        Flow::Stop
    }

    /// Answers a request that leaves no trace.
    fn refuse(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        sequence: u64,
        status: Status,
        text: &str,
    ) -> Flow {
        let header = short_header(Kind::Reply, status as u16, 0);
        let text = Payload::Inline(text.as_bytes().into());
        self.answer(ops, channel, AM_INVOCATION, sequence, header, text);
        Flow::Continue
    }

    fn intern(&mut self, ops: &mut Ops, channel: ChannelId, number: u64, name: &[u8]) {
        let shared = Arc::clone(&self.shared);
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return;
        };
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        if number >= CHANNEL_FUNCTIONS_MAX || name.len() > 255 {
            tracing::warn!(
                peer = served.source,
                "closed: it numbers functions out of range"
            );
            self.caller_close(ops, channel);
            return;
        }
        if served.functions.len() <= number {
            served.functions.resize(number + 1, Callee::Unknown);
        }
        served.functions[number] = match std::str::from_utf8(name) {
            Ok(name) => shared.callee(name),
            Err(_) => Callee::Unknown,
        };
    }

    fn passed(&mut self, ops: &mut Ops, channel: ChannelId, base: u64, listed: &[u8]) {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return;
        };
        let session = &mut self.sessions[served.session].session;
        let before = session.bytes();
        if passed_decode(listed).is_none_or(|listed| !session.pass(base, &listed)) {
            tracing::warn!(peer = served.source, "closed: it passes what it never sent");
            self.caller_close(ops, channel);
            return;
        }
        self.results_bytes = self.results_bytes + session.bytes() - before;
    }

    fn cancel(&mut self, ops: &mut Ops, channel: ChannelId, sequence: u64) {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return;
        };
        let session = served.session;
        if let Some(job) = self.sessions[session].session.job(sequence) {
            self.job_cancel(ops, session, job);
        }
    }

    /// Cancels a job, whether it runs or waits.
    fn job_cancel(&mut self, ops: &mut Ops, session: usize, job: u64) {
        let queued = self.shared.jobs_take(|queued| queued.job == job);
        let found = !queued.is_empty() || self.shared.job_cancel(job);
        for queued in queued {
            self.job_answer(ops, &queued, Status::Cancelled, Payload::default());
        }
        if !found {
            // On its way from the queue to a worker.
            let client = self.sessions[session].client;
            let at = clock::now() + CANCEL_AGAIN;
            self.shared.timers.cancel_again(at, session, client, job);
        }
    }

    /// Cancels a job that was on its way before, unless it has ended.
    pub fn cancel_again(&mut self, ops: &mut Ops, session: usize, client: u128, job: u64) {
        let entry = self.sessions.get(session);
        let entry = entry.filter(|entry| entry.client == client);
        if entry.is_some_and(|entry| entry.session.jobs().any(|running| running == job)) {
            self.job_cancel(ops, session, job);
        }
    }

    /// Cancels what a client has asked for that has not come back.
    pub fn orphans_cancel(&mut self, ops: &mut Ops, session: usize, client: u128) {
        let entry = self.sessions.get(session);
        let entry = entry.filter(|entry| entry.client == client && entry.channels == 0);
        let jobs: Vec<u64> = entry
            .into_iter()
            .flat_map(|entry| entry.session.jobs())
            .collect();
        if !jobs.is_empty() {
            tracing::info!(
                cancelled = jobs.len(),
                "a caller is gone: what it asked for is cancelled (caller_gone_cancel_ms)"
            );
        }
        for job in jobs {
            self.job_cancel(ops, session, job);
        }
    }

    fn put(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        sequence: u64,
        header: &[u8],
        payload: Payload,
    ) {
        let status = self.put_store(channel, sequence, header, payload);
        let header = short_header(Kind::PutAck, status as u16, 0);
        self.answer(
            ops,
            channel,
            AM_MAILBOX,
            sequence,
            header,
            Payload::default(),
        );
    }

    fn put_store(
        &mut self,
        channel: ChannelId,
        sequence: u64,
        header: &[u8],
        payload: Payload,
    ) -> Status {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return Status::Malformed;
        };
        // If the swap fails, none of a caller's messages comes in before one that was turned away.
        served.puts_refused |= self.sealed;
        if served.puts_refused {
            return Status::Quiescing;
        }
        let Some((key, payload)) = put_split(header, payload) else {
            return Status::Malformed;
        };
        let sender = served.source.clone();
        let id = PutId {
            sender: sender.clone(),
            incarnation: served.incarnation,
            sequence,
        };
        let message = MailMessage {
            source: sender,
            key,
            payload,
        };
        match self.shared.mail_put(Some(id), message) {
            Put::Stored | Put::Duplicate => Status::Ok,
            Put::Full => Status::MailboxFull,
        }
    }

    /// Whether to take a large message that is announced.
    fn incoming_judge(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        incoming: &Incoming<'_>,
    ) -> Disposition {
        let settings = &self.shared.settings;
        if incoming.len > settings.transport.message_max_bytes {
            return Disposition::Refuse(Status::TooLarge as u32);
        }
        let refusal = match (
            incoming.am,
            incoming.header.first().copied().and_then(Kind::from_code),
        ) {
            (AM_INVOCATION, Some(Kind::Request)) => match self.quiescing {
                true => Some(Status::Quiescing),
                false => None,
            },
            (AM_MAILBOX, Some(Kind::Put)) => match incoming.len {
                len if len > settings.mailbox_max_bytes => Some(Status::TooLarge),
                len if !self.shared.mail_room(len) => Some(Status::MailboxFull),
                _ => match served_mut(&mut self.channels, channel) {
                    Some(served) => {
                        served.puts_refused |= self.sealed;
                        served.puts_refused.then_some(Status::Quiescing)
                    }
                    // Its channel is about to end, and it comes again.
                    None => None,
                },
            },
            _ => Some(Status::Malformed),
        };
        if let Some(status) = refusal {
            return Disposition::Refuse(status as u32);
        }
        match usize::try_from(incoming.len).map(|len| ops.pool().alloc(len)) {
            Ok(Ok(buf)) => Disposition::Accept(buf),
            _ => Disposition::Refuse(Status::Exhausted as u32),
        }
    }
}

impl Handler for Serve {
    fn on_open(&mut self, ops: &mut Ops, channel: ChannelId, info: &ChannelInfo) -> Flow {
        self.shared.links.opened(channel, info);
        if self.peers.on_open(ops, channel, info.peer.incarnation) || info.dialled {
            return Flow::Continue;
        }
        if self.transfer_open(channel, info) {
            return Flow::Continue;
        }
        let client = info.peer.client_id;
        if client == 0 {
            tracing::warn!("closed: a caller without a client id");
            ops.close(channel);
            return Flow::Continue;
        }
        let source = match info.peer.name.is_empty() {
            true => format!("client:{client:032x}"),
            false => info.peer.name.to_string(),
        };
        let incarnation = match info.peer.incarnation.0 {
            0 => (client ^ (client >> 64)) as u64,
            incarnation => incarnation,
        };
        let session = self.session_open(client, channel);
        if self.sessions[session].channels > 1 {
            // It has come again: what it had under way before comes by the new channel, or was
            // given up. What arrives late by an older one would be out of order.
            let olds = self.channels.iter_mut().flatten();
            for old in olds.filter(|old| old.session == session) {
                old.puts_refused = true;
            }
        }
        if self.channels.len() <= channel.index() {
            self.channels.resize_with(channel.index() + 1, || None);
        }
        self.channels[channel.index()] = Some(Served {
            id: channel,
            client,
            incarnation,
            session,
            source,
            role: info.peer.role,
            functions: Vec::new(),
            backlog: VecDeque::new(),
            puts_refused: false,
        });
        Flow::Continue
    }

    #[inline]
    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        let Message {
            am,
            tag,
            header,
            payload,
        } = message;
        let kind = header.first().copied().and_then(Kind::from_code);
        if let (AM_INVOCATION, Some(Kind::Request)) = (am, kind) {
            return match Payload::copy_from(payload, ops.pool()) {
                Ok(input) => self.request(ops, channel, tag, header, input),
                Err(error) => self.refuse(ops, channel, tag, Status::Exhausted, &error.to_string()),
            };
        }
        match (am, kind) {
            (AM_INVOCATION, Some(Kind::Reply)) => {
                let (status, payload) = reply_payload(ops, header, payload);
                self.peers.on_reply(ops, channel, tag, status, payload);
            }
            (AM_INVOCATION, Some(Kind::Intern)) => self.intern(ops, channel, tag, payload),
            (AM_INVOCATION, Some(Kind::Passed)) => self.passed(ops, channel, tag, payload),
            (AM_INVOCATION, Some(Kind::Cancel)) => self.cancel(ops, channel, tag),
            (AM_MAILBOX, Some(Kind::Put)) => match Payload::copy_from(payload, ops.pool()) {
                Ok(payload) => self.put(ops, channel, tag, header, payload),
                Err(_) => {
                    let header = short_header(Kind::PutAck, Status::Exhausted as u16, 0);
                    self.answer(ops, channel, AM_MAILBOX, tag, header, Payload::default());
                }
            },
            (AM_MAILBOX, Some(Kind::PutAck)) => {
                let (status, _) = reply_payload(ops, header, &[]);
                self.peers.on_put_answer(ops, channel, tag, status);
            }
            (AM_DIRECTORY, _) => self.peers.on_directory(ops, channel, tag, payload),
            (AM_STATE, _) if self.peers.owns(channel) => {
                crate::client::state_take(&mut self.peers, ops, channel, message);
            }
            (AM_STATE, _) => self.locate(ops, channel, tag, header, payload),
            (AM_TRANSFER, _) => self.transfer_word(ops, channel, header, payload),
            _ => {
                self.refuse(
                    ops,
                    channel,
                    tag,
                    Status::Malformed,
                    "unknown kind of message",
                );
            }
        }
        Flow::Continue
    }

    fn on_incoming(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        incoming: Incoming<'_>,
    ) -> Disposition {
        match self.peers.owns(channel) {
            true => crate::client::result_accept(&mut self.peers, ops, channel, &incoming),
            false => self.incoming_judge(ops, channel, &incoming),
        }
    }

    fn on_large(&mut self, ops: &mut Ops, channel: ChannelId, message: LargeMessage) -> Flow {
        let LargeMessage {
            am,
            tag,
            header,
            payload,
        } = message;
        match (am, header.first().copied().and_then(Kind::from_code)) {
            (AM_INVOCATION, Some(Kind::Request)) => {
                self.request(ops, channel, tag, &header, Payload::Buf(payload))
            }
            (AM_MAILBOX, Some(Kind::Put)) => {
                self.put(ops, channel, tag, &header, Payload::Buf(payload));
                Flow::Continue
            }
            (AM_INVOCATION, Some(Kind::Reply)) => {
                let (status, _) = reply_payload(ops, &header, &[]);
                self.peers
                    .on_reply(ops, channel, tag, status, Payload::Buf(payload));
                Flow::Continue
            }
            (AM_DIRECTORY, _) => {
                self.peers.on_directory(ops, channel, tag, &payload);
                Flow::Continue
            }
            (AM_STATE, _) => {
                let payload = Payload::Buf(payload);
                self.peers.on_state(ops, channel, tag, &header, payload);
                Flow::Continue
            }
            _ => Flow::Continue,
        }
    }

    fn on_sent(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        context: u64,
        _: Buf,
        outcome: Result<(), SendFailure>,
    ) -> Flow {
        // A large answer that its caller refuses was given up on there.
        if let Err(SendFailure::Refused(reason)) = outcome
            && self.peers.owns(channel)
        {
            self.peers.on_send_refused(ops, channel, context, reason);
        }
        self.transfer_sent(ops, channel, context);
        Flow::Continue
    }

    fn on_one_sided(&mut self, ops: &mut Ops, _: ChannelId, done: OneSidedDone) -> Flow {
        self.peers.on_one_sided(ops, done);
        Flow::Continue
    }

    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        self.peers.on_writable(ops, channel);
        self.transfer_writable(ops, channel);
        if let Some(served) = served_mut(&mut self.channels, channel) {
            while let Some(reply) = served.backlog.pop_front() {
                if let Some(reply) = reply_send(ops, channel, reply) {
                    served.backlog.push_front(reply);
                    break;
                }
            }
        }
        Flow::Continue
    }

    fn on_close(&mut self, ops: &mut Ops, channel: ChannelId, reason: CloseReason) -> Flow {
        self.shared.links.closed(channel);
        if self.peers.on_close(ops, channel, &reason) {
            return Flow::Continue;
        }
        self.transfer_closed(channel, &reason);
        self.caller_ended(channel);
        Flow::Continue
    }
}

#[inline]
fn served_mut(channels: &mut [Option<Served>], channel: ChannelId) -> Option<&mut Served> {
    channels
        .get_mut(channel.index())?
        .as_mut()
        .filter(|served| served.id == channel)
}

/// Sends an answer; gives it back if there is no room.
#[inline]
fn reply_send(ops: &mut Ops, channel: ChannelId, reply: Reply) -> Option<Reply> {
    let Reply {
        am,
        tag,
        header,
        payload,
    } = reply;
    match payload {
        Payload::Buf(buf) if buf.len() > ops.eager_max(channel) => {
            match ops.send_buf(channel, am, tag, &header, buf, 0) {
                Ok(PostedBuf::Done(_) | PostedBuf::Pending) => None,
                Ok(PostedBuf::Busy(buf)) => Some(Reply {
                    am,
                    tag,
                    header,
                    payload: Payload::Buf(buf),
                }),
                Err(error) => reply_failed(ops, channel, am, tag, &error),
            }
        }
        payload => match ops.send(channel, am, tag, &header, &[&payload]) {
            Ok(Posted::Done) => None,
            Ok(Posted::Busy) => Some(Reply {
                am,
                tag,
                header,
                payload,
            }),
            Err(error) => reply_failed(ops, channel, am, tag, &error),
        },
    }
}

/// An answer cannot be sent: its channel has ended, or it is above the limit, which its caller
/// hears.
fn reply_failed(
    ops: &mut Ops,
    channel: ChannelId,
    am: u8,
    tag: u64,
    error: &praas_transport::SendError,
) -> Option<Reply> {
    if let praas_transport::SendError::TooLarge { .. } = error {
        let header = short_header(Kind::Reply, Status::TooLarge as u16, 0);
        let payload = Payload::Inline(error.to_string().as_bytes().into());
        return reply_send(
            ops,
            channel,
            Reply {
                am,
                tag,
                header,
                payload,
            },
        );
    }
    None
}

/// Status and payload of an answer to a call of ours.
fn reply_payload(ops: &mut Ops, header: &[u8], payload: &[u8]) -> (Status, Payload) {
    let status = short_header_read(header).and_then(|(status, _)| Status::from_code(status));
    let Some(status) = status else {
        return (Status::Malformed, Payload::default());
    };
    match Payload::copy_from(payload, ops.pool()) {
        Ok(payload) => (status, payload),
        Err(_) => (Status::Exhausted, Payload::default()),
    }
}
