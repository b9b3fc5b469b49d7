//! What both clients are made of: an endpoint, its peers, and the handler between them.

use std::time::Instant;

use praas_transport::clock;
use praas_transport::{
    ChannelId, ChannelInfo, CloseReason, Credential, Disposition, Endpoint, Flow, Handler,
    Identity, Incarnation, Incoming, Kinds, LargeMessage, Message, OneSidedDone, Ops, SendFailure,
    Ticket, TransportConfig, TransportError, WaitMode,
};

use super::core::CoreLimits;
use super::peers::{Directory, Peers};
use crate::invocation::{
    AM_DIRECTORY, AM_INVOCATION, AM_MAILBOX, InvokeError, Kind, Payload, Status, short_header_read,
};
use crate::locate::AM_STATE;

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Where processes are looked up.
    pub directory: Directory,
    /// What the client shows to them.
    pub credential: Credential,
    /// The transports that may be used; the best of them that works is.
    pub transports: Kinds,
    /// How to wait for results.
    pub wait: WaitMode,
    /// Settings of the endpoint.
    pub transport: TransportConfig,
    /// Limits on calls.
    pub limits: CoreLimits,
    /// An earlier client with the same id (that of the ticket) may have made the same invocations,
    /// in the same order, to this incarnation. Those get what came of the first attempt; if that
    /// is not known any more, [`crate::invocation::InvokeError::OutcomeUnknown`].
    pub repeats: Option<Incarnation>,
}

impl ClientConfig {
    /// Defaults around a directory and a credential.
    pub fn new(directory: Directory, credential: Credential) -> Self {
        Self {
            directory,
            credential,
            transports: Kinds::all(),
            wait: WaitMode::Adaptive,
            transport: TransportConfig::default(),
            limits: CoreLimits::default(),
            repeats: None,
        }
    }
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The credential holds no ticket.
    #[error("the credential is damaged: {0}")]
    Credential(#[from] praas_transport::ticket::TicketError),
    /// The endpoint cannot be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No random bytes for the client's id.
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
    /// The thread of an asynchronous client cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// Endpoint and peers of a client.
#[derive(Debug)]
pub(super) struct Shell {
    pub endpoint: Endpoint,
    pub handler: ClientHandler,
    wait: WaitMode,
}

#[derive(Debug)]
pub(super) struct ClientHandler {
    pub peers: Peers,
}

impl Shell {
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let ticket = Ticket::decode(&config.credential.ticket)?;
        let client_id = match ticket.client_id {
            0 => {
                let mut id = [0; 16];
                clock::random_fill(&mut id).map_err(ClientError::Random)?;
                u128::from_le_bytes(id)
            }
            id => id,
        };
        let identity = Identity {
            application: ticket.application,
            name: "".into(),
            incarnation: Incarnation(0),
            client_id,
        };
        let endpoint = Endpoint::new(config.transport, identity, None)?;
        let ClientConfig {
            directory,
            credential,
            transports,
            limits,
            wait,
            repeats,
            ..
        } = config;
        let mut peers = Peers::new(directory, credential, transports, limits);
        if let Some(first) = repeats {
            peers.repeats(first);
        }
        Ok(Self {
            endpoint,
            handler: ClientHandler { peers },
            wait,
        })
    }

    /// One round, waiting up to `deadline` for something to happen.
    #[inline]
    pub fn step(&mut self, deadline: Option<Instant>) {
        let timer = self.handler.peers.timer_next();
        let until = match (deadline, timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.endpoint
            .progress_wait(&mut self.handler, until, self.wait);
        if let Some(timer) = timer {
            let now = clock::now();
            if timer <= now {
                self.handler.peers.tick(&mut self.endpoint, now);
            }
        }
    }
}

impl ClientHandler {
    /// Whether a round goes on after a message. With nothing more to wait for, another look for
    /// frames is in vain, and over a socket it is a system call.
    #[inline]
    fn flow(&self) -> Flow {
        match self.peers.is_busy() {
            true => Flow::Continue,
            false => Flow::Stop,
        }
    }
}

impl Handler for ClientHandler {
    fn on_open(&mut self, ops: &mut Ops, channel: ChannelId, info: &ChannelInfo) -> Flow {
        self.peers.on_open(ops, channel, info.peer.incarnation);
        Flow::Continue
    }

    #[inline]
    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        match (message.am, reply_read(message.am, message.header)) {
            (AM_DIRECTORY, _) => {
                self.peers
                    .on_directory(ops, channel, message.tag, message.payload);
            }
            (AM_INVOCATION, Some((Kind::Reply, status))) => {
                match Payload::copy_from(message.payload, ops.pool()) {
                    Ok(payload) => {
                        self.peers
                            .on_reply(ops, channel, message.tag, status, payload);
                    }
                    Err(error) => {
                        let text = Payload::Inline(error.to_string().as_bytes().into());
                        let status = Status::Exhausted;
                        self.peers.on_reply(ops, channel, message.tag, status, text);
                    }
                }
            }
            (AM_MAILBOX, Some((Kind::PutAck, status))) => {
                self.peers.on_put_answer(ops, channel, message.tag, status);
            }
            (AM_STATE, _) => state_take(&mut self.peers, ops, channel, message),
            _ => tracing::warn!(am = message.am, "a process sent a message of unknown kind"),
        }
        self.flow()
    }

    fn on_incoming(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        incoming: Incoming<'_>,
    ) -> Disposition {
        result_accept(&mut self.peers, ops, channel, &incoming)
    }

    fn on_large(&mut self, ops: &mut Ops, channel: ChannelId, message: LargeMessage) -> Flow {
        if let Some((Kind::Reply, status)) = reply_read(message.am, &message.header) {
            let payload = Payload::Buf(message.payload);
            self.peers
                .on_reply(ops, channel, message.tag, status, payload);
        } else if message.am == AM_DIRECTORY {
            self.peers
                .on_directory(ops, channel, message.tag, &message.payload);
        } else if message.am == AM_STATE {
            let payload = Payload::Buf(message.payload);
            self.peers
                .on_state(ops, channel, message.tag, &message.header, payload);
        }
        Flow::Continue
    }

    fn on_one_sided(&mut self, ops: &mut Ops, _: ChannelId, done: OneSidedDone) -> Flow {
        self.peers.on_one_sided(ops, done);
        self.flow()
    }

    fn on_sent(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        context: u64,
        _: praas_transport::Buf,
        outcome: Result<(), SendFailure>,
    ) -> Flow {
        if let Err(SendFailure::Refused(reason)) = outcome {
            self.peers.on_send_refused(ops, channel, context, reason);
        }
        Flow::Continue
    }

    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        self.peers.on_writable(ops, channel);
        Flow::Continue
    }

    fn on_close(&mut self, ops: &mut Ops, channel: ChannelId, reason: CloseReason) -> Flow {
        self.peers.on_close(ops, channel, &reason);
        Flow::Continue
    }
}

/// Kind and status of a message that answers.
#[inline]
pub(crate) fn reply_read(am: u8, header: &[u8]) -> Option<(Kind, Status)> {
    if am != AM_INVOCATION && am != AM_MAILBOX {
        return None;
    }
    let kind = Kind::from_code(*header.first()?)?;
    let (status, _) = short_header_read(header)?;
    Some((kind, Status::from_code(status)?))
}

/// A message about a read of state came eagerly.
pub(crate) fn state_take(
    peers: &mut Peers,
    ops: &mut Ops,
    channel: ChannelId,
    message: Message<'_>,
) {
    match Payload::copy_from(message.payload, ops.pool()) {
        Ok(payload) => peers.on_state(ops, channel, message.tag, message.header, payload),
        Err(error) => {
            let error = InvokeError::Exhausted(error.to_string());
            peers.state_fail(channel, message.tag, error);
        }
    }
}

/// Whether to take a large result: one that is waited for, if there is memory for it. If there is
/// none, the call ends here.
pub(crate) fn result_accept(
    peers: &mut Peers,
    ops: &mut Ops,
    channel: ChannelId,
    incoming: &Incoming<'_>,
) -> Disposition {
    let answer = reply_read(incoming.am, incoming.header);
    let wanted = match incoming.am {
        AM_DIRECTORY => incoming.len <= 1 << 20,
        AM_STATE => peers.wants_state(channel, incoming.tag),
        _ => matches!(answer, Some((Kind::Reply, _))) && peers.wants(channel, incoming.tag),
    };
    if !wanted {
        if let Some((Kind::Reply, status)) = answer {
            // What was kept for it until it is answered, its number say, is kept no longer.
            peers.on_reply(ops, channel, incoming.tag, status, Payload::default());
        }
        return Disposition::Refuse(Status::Cancelled as u32);
    }
    let limit = ops.config().message_max_bytes;
    let (status, text) = match usize::try_from(incoming.len).map(|len| ops.pool().alloc(len)) {
        _ if incoming.len > limit => {
            let text = format!(
                "a result of {} bytes, with a limit of {limit}",
                incoming.len
            );
            (Status::TooLarge, text)
        }
        Ok(Ok(buf)) => return Disposition::Accept(buf),
        Ok(Err(error)) => (Status::Exhausted, error.to_string()),
        Err(error) => (Status::TooLarge, error.to_string()),
    };
    if incoming.am == AM_STATE {
        let error = match status {
            Status::TooLarge => InvokeError::TooLarge(text),
            _ => InvokeError::Exhausted(text),
        };
        peers.state_fail(channel, incoming.tag, error);
    } else if incoming.am == AM_INVOCATION {
        let text = Payload::Inline(text.as_bytes().into());
        peers.on_reply(ops, channel, incoming.tag, status, text);
    }
    Disposition::Refuse(status as u32)
}
