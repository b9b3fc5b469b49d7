//! What the owner of the endpoint does with what arrives: the serving side of a process.
//!
//! Requests become jobs, puts go to the mailbox, answers go to the calls that wait for them. It
//! is a handler of the endpoint, so nothing here blocks or runs a user's function.

mod answers;
mod locate;
mod puts;
mod requests;
mod sessions;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use praas_transport::{
    Buf, ChannelId, ChannelInfo, CloseReason, Disposition, Flow, Handler, Incoming, LargeMessage,
    Message, OneSidedDone, Ops, Role, SendFailure,
};
use slab::Slab;

use self::answers::{Reply, reply_send};
use super::builtin::Builtin;
use super::engine::Shared;
use super::timers::TimerKey;
use super::transfer::Sending;
use crate::client::Peers;
use crate::function::FunctionIndex;
use crate::invocation::{
    AM_DIRECTORY, AM_INVOCATION, AM_MAILBOX, Kind, Payload, Session, SessionImage, Status,
    short_header, short_header_read,
};
use crate::locate::AM_STATE;
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
