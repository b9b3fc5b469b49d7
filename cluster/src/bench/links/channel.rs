//! A bare channel: two endpoints, and what is between them.

use std::time::Instant;

use praas_transport::{
    Buf, ChannelId, ChannelInfo, CloseReason, Disposition, Endpoint, Flow, Handler, Incoming,
    LargeMessage, Message, Ops, Posted, PostedBuf, SendFailure, WaitMode,
};

use super::wait::PATIENCE;
use super::windows::Windows;
use crate::bench::BenchError;
use crate::bench::plan::Memory;

pub(in crate::bench) const AM: u8 = 1;
pub(in crate::bench) const GO_ON: u64 = 0;
const LAST: u64 = 1;

/// One side of a bare channel.
pub(in crate::bench) struct Channel {
    pub(in crate::bench) endpoint: Endpoint,
    mail: Mail,
    pub(super) windows: Windows,
    pub(in crate::bench) payload: Buf,
}

/// What came over the channel, and what is to go out.
#[derive(Default)]
struct Mail {
    channel: Option<ChannelId>,
    eager_max: usize,
    /// Answers what comes with the same.
    echoes: bool,
    got: bool,
    last: bool,
    unsent: Option<(u64, Buf)>,
    /// Large messages of ours that are under way.
    pending: usize,
    ended: Option<String>,
}

impl Channel {
    pub(in crate::bench) fn new(endpoint: Endpoint, echoes: bool) -> Self {
        let mail = Mail {
            echoes,
            ..Mail::default()
        };
        Self {
            endpoint,
            mail,
            windows: Windows::default(),
            payload: Buf::default(),
        }
    }

    /// Waits until the channel is open.
    pub(in crate::bench) fn open_wait(&mut self) -> Result<(), BenchError> {
        self.until(|mail| mail.channel.is_some(), WaitMode::Warm)
    }

    /// The largest payload in bytes that the channel sends eagerly.
    pub(in crate::bench) fn eager_max(&self) -> usize {
        self.mail.eager_max
    }

    pub(in crate::bench) fn id(&self) -> Result<ChannelId, BenchError> {
        let none = || BenchError::Peer("has no channel".into());
        self.mail.channel.ok_or_else(none)
    }

    /// Makes progress until it is so.
    #[inline]
    fn until(&mut self, so: impl Fn(&Mail) -> bool, mode: WaitMode) -> Result<(), BenchError> {
        let mut until = None;
        while !so(&self.mail) {
            // The clock is read only once the answer is not there at once.
            let happened = self.endpoint.progress_wait(&mut self.mail, until, mode);
            if so(&self.mail) {
                return Ok(());
            }
            if let Some(reason) = &self.mail.ended {
                return Err(ended(reason));
            }
            let now = Instant::now();
            if happened == 0 && until.is_some_and(|until| until <= now) {
                return Err(BenchError::Peer("does not answer".into()));
            }
            until = Some(now + PATIENCE);
        }
        Ok(())
    }

    /// What the messages to come carry.
    pub(in crate::bench) fn payload_set(
        &mut self,
        bytes: usize,
        memory: Memory,
    ) -> Result<(), BenchError> {
        let failed = |reason: String| BenchError::Memory { bytes, reason };
        self.windows.free.clear();
        self.payload = match memory {
            Memory::Private => Buf::from_vec(vec![1; bytes]),
            Memory::Pooled => {
                let pooled = self.endpoint.pool().alloc(bytes);
                let mut pooled = pooled.map_err(|error| failed(error.to_string()))?;
                pooled.fill(1);
                pooled.freeze()
            }
        };
        Ok(())
    }

    /// A round trip.
    #[inline]
    pub(in crate::bench) fn ping(&mut self, last: bool) -> Result<(), BenchError> {
        self.mail.got = false;
        let channel = self.id()?;
        let tag = if last { LAST } else { GO_ON };
        let bytes = self.payload.len();
        let send = |source| BenchError::Send { bytes, source };
        if bytes <= self.mail.eager_max {
            match self.endpoint.send(channel, AM, tag, &[], &[&self.payload]) {
                Ok(Posted::Done) => {}
                Ok(Posted::Busy) => self.mail.unsent = Some((tag, self.payload.clone())),
                Err(error) => return Err(send(error)),
            }
        } else {
            let payload = self.payload.clone();
            let posted = self.endpoint.send_buf(channel, AM, tag, &[], payload, 0);
            self.mail.posted(tag, posted.map_err(send)?);
        }
        self.until(|mail| mail.got, WaitMode::Hot)
    }

    /// Answers until the other side says that it was the last.
    pub(in crate::bench) fn pong(&mut self) -> Result<(), BenchError> {
        self.mail.last = false;
        let over = |mail: &Mail| mail.last && mail.unsent.is_none() && mail.pending == 0;
        self.until(over, WaitMode::Hot)
    }
}

pub(in crate::bench) fn ended(reason: &str) -> BenchError {
    BenchError::Peer(format!("has closed the channel: {reason}"))
}
impl Mail {
    fn posted(&mut self, tag: u64, posted: PostedBuf) {
        match posted {
            PostedBuf::Done(_) => {}
            PostedBuf::Pending => self.pending += 1,
            PostedBuf::Busy(payload) => self.unsent = Some((tag, payload)),
        }
    }

    fn send_buf(&mut self, ops: &mut Ops, channel: ChannelId, tag: u64, payload: Buf) {
        match ops.send_buf(channel, AM, tag, &[], payload, 0) {
            Ok(posted) => self.posted(tag, posted),
            Err(error) => self.ended = Some(error.to_string()),
        }
    }
}

impl Handler for Mail {
    fn on_open(&mut self, _: &mut Ops, channel: ChannelId, info: &ChannelInfo) -> Flow {
        (self.channel, self.eager_max) = (Some(channel), info.eager_max);
        Flow::Stop
    }

    #[inline]
    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        (self.got, self.last) = (true, message.tag == LAST);
        if self.echoes {
            match ops.send(channel, AM, message.tag, &[], &[message.payload]) {
                Ok(Posted::Done) => {}
                Ok(Posted::Busy) => {
                    let payload = Buf::from_vec(message.payload.to_vec());
                    self.unsent = Some((message.tag, payload));
                }
                Err(error) => self.ended = Some(error.to_string()),
            }
        }
        Flow::Stop
    }

    fn on_incoming(&mut self, ops: &mut Ops, _: ChannelId, incoming: Incoming<'_>) -> Disposition {
        match usize::try_from(incoming.len).map(|len| ops.pool().alloc(len)) {
            Ok(Ok(into)) => Disposition::Accept(into),
            _ => Disposition::Refuse(1),
        }
    }

    fn on_large(&mut self, ops: &mut Ops, channel: ChannelId, message: LargeMessage) -> Flow {
        (self.got, self.last) = (true, message.tag == LAST);
        if self.echoes {
            self.send_buf(ops, channel, message.tag, message.payload);
        }
        Flow::Stop
    }

    fn on_sent(
        &mut self,
        _: &mut Ops,
        _: ChannelId,
        _: u64,
        _: Buf,
        outcome: Result<(), SendFailure>,
    ) -> Flow {
        self.pending -= 1;
        if let Err(error) = outcome {
            self.ended = Some(error.to_string());
        }
        Flow::Continue
    }

    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        if let Some((tag, payload)) = self.unsent.take() {
            self.send_buf(ops, channel, tag, payload);
        }
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, reason: CloseReason) -> Flow {
        self.ended = Some(reason.to_string());
        Flow::Stop
    }
}
