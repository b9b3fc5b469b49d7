//! Windows of messages over a channel, one way or both.
//!
//! ```text
//!   sender                                       receiver
//!     |<------------------------------ ack --------|   it has begun
//!     | == message, message ... (a window) =======>|
//!     |<------------------------------ ack --------|   it has them all
//!     | == message, message ... (a window) =======>|
//! ```

use std::collections::VecDeque;
use std::time::Instant;

use praas_transport::{
    Buf, BufMut, ChannelId, CloseReason, Disposition, Flow, Handler, Incoming, IncomingId,
    LargeMessage, Message, OneSidedDone, Ops, Posted, PostedBuf, SendFailure, WaitMode,
};

use super::channel::{AM, Channel, GO_ON, ended};
use super::wait::PATIENCE;
use crate::bench::BenchError;

/// The tag of an acknowledgement.
const ACK: u64 = 2;
/// Large messages that are received at once. The others wait, so that a window takes no more memory
/// than so many of its messages, and that memory stays in the cache.
const RECEIVED_AT_ONCE: usize = 4;
/// Fruitless rounds of progress before the clock is looked at.
const ROUNDS: u32 = 1 << 12;

/// What is under way.
#[derive(Default)]
pub(super) struct Windows {
    /// Bytes of a message, and messages of a window.
    bytes: usize,
    window: usize,
    /// Messages of the window that have come, and acknowledgements.
    got: usize,
    acks: usize,
    /// One-sided operations that are complete, and buffers for those that read.
    pub(super) completed: usize,
    pub(super) free: Vec<BufMut>,
    /// Large messages of ours that are under way.
    pending: usize,
    /// No room to send.
    pub(super) busy: bool,
    /// Large messages that are being received, and those that wait for it.
    receiving: usize,
    parked: VecDeque<IncomingId>,
    /// A message of another length came.
    wrong: Option<usize>,
    ended: Option<String>,
}

impl Channel {
    /// Makes progress until something happens.
    #[inline]
    pub(super) fn step(&mut self) -> Result<(), BenchError> {
        for _ in 0..ROUNDS {
            if self.endpoint.progress(&mut self.windows) > 0 {
                return self.windows.check();
            }
        }
        let until = Instant::now() + PATIENCE;
        let happened = self
            .endpoint
            .progress_wait(&mut self.windows, Some(until), WaitMode::Hot);
        self.windows.check()?;
        match happened == 0 && until <= Instant::now() {
            true => Err(BenchError::Peer("does not answer".into())),
            false => Ok(()),
        }
    }

    /// Sends up to so many messages, as long as there is room; how many.
    #[inline]
    fn post(&mut self, channel: ChannelId, most: usize) -> Result<usize, BenchError> {
        let bytes = self.payload.len();
        let send = |source| BenchError::Send { bytes, source };
        let eager = bytes <= self.eager_max();
        for posted in 0..most {
            let busy = if eager {
                let sent = self
                    .endpoint
                    .send(channel, AM, GO_ON, &[], &[&self.payload]);
                sent.map_err(send)? == Posted::Busy
            } else {
                let payload = self.payload.clone();
                let sent = self.endpoint.send_buf(channel, AM, GO_ON, &[], payload, 0);
                let sent = sent.map_err(send)?;
                self.windows.pending += usize::from(matches!(sent, PostedBuf::Pending));
                matches!(sent, PostedBuf::Busy(_))
            };
            if busy {
                self.windows.busy = true;
                return Ok(posted);
            }
        }
        Ok(most)
    }

    /// Sends so many messages, until all are through, and receives so many.
    #[inline]
    fn move_all(&mut self, out: usize, into: usize) -> Result<(), BenchError> {
        let channel = self.id()?;
        let mut out = out;
        loop {
            if out > 0 && !self.windows.busy {
                out -= self.post(channel, out)?;
            }
            if out == 0 && self.windows.pending == 0 && self.windows.got >= into {
                self.windows.got -= into;
                return Ok(());
            }
            self.step()?;
        }
    }

    pub(super) fn ack_send(&mut self) -> Result<(), BenchError> {
        let channel = self.id()?;
        let send = |source| BenchError::Send { bytes: 0, source };
        while self
            .endpoint
            .send(channel, AM, ACK, &[], &[])
            .map_err(send)?
            == Posted::Busy
        {
            self.step()?;
        }
        Ok(())
    }

    pub(super) fn ack_wait(&mut self) -> Result<(), BenchError> {
        while self.windows.acks == 0 {
            self.step()?;
        }
        self.windows.acks -= 1;
        Ok(())
    }

    pub(super) fn windows_set(&mut self, window: usize) {
        let windows = &mut self.windows;
        (windows.bytes, windows.window) = (self.payload.len(), window);
        (windows.got, windows.acks) = (0, 0);
    }

    /// Waits until the other side has begun.
    pub(super) fn begin(&mut self, window: usize) -> Result<(), BenchError> {
        self.windows_set(window);
        self.ack_wait()
    }

    /// Sends a window, receives another if it goes both ways, and waits for the other side to say
    /// that it has all.
    pub(super) fn window(&mut self, window: usize, both_ways: bool) -> Result<(), BenchError> {
        self.move_all(window, if both_ways { window } else { 0 })?;
        self.ack_wait()
    }

    /// The other side of [`Channel::begin`] and of so many windows.
    pub(super) fn windows_serve(
        &mut self,
        window: usize,
        both_ways: bool,
        count: u64,
    ) -> Result<(), BenchError> {
        self.windows_set(window);
        self.ack_send()?;
        for _ in 0..count {
            self.move_all(if both_ways { window } else { 0 }, window)?;
            self.ack_send()?;
        }
        Ok(())
    }
}

impl Windows {
    fn check(&self) -> Result<(), BenchError> {
        match (&self.ended, self.wrong) {
            (Some(reason), _) => Err(ended(reason)),
            (None, Some(bytes)) => Err(BenchError::Peer(format!(
                "has sent {bytes} bytes instead of {}",
                self.bytes
            ))),
            (None, None) => Ok(()),
        }
    }

    #[inline]
    fn arrived(&mut self, bytes: usize) -> Flow {
        if bytes != self.bytes {
            self.wrong = Some(bytes);
        }
        self.got += 1;
        match self.got < self.window {
            true => Flow::Continue,
            false => Flow::Stop,
        }
    }
}

impl Handler for Windows {
    #[inline]
    fn on_message(&mut self, _: &mut Ops, _: ChannelId, message: Message<'_>) -> Flow {
        if message.tag == ACK {
            self.acks += 1;
            return Flow::Stop;
        }
        self.arrived(message.payload.len())
    }

    fn on_incoming(&mut self, ops: &mut Ops, _: ChannelId, incoming: Incoming<'_>) -> Disposition {
        if incoming.len != self.bytes as u64 {
            self.wrong = usize::try_from(incoming.len).ok();
            return Disposition::Refuse(1);
        }
        if self.receiving >= RECEIVED_AT_ONCE {
            self.parked.push_back(incoming.id);
            return Disposition::Park;
        }
        match ops.pool().alloc(self.bytes) {
            Ok(into) => {
                self.receiving += 1;
                Disposition::Accept(into)
            }
            Err(error) => {
                self.ended = Some(error.to_string());
                Disposition::Refuse(1)
            }
        }
    }

    fn on_large(&mut self, ops: &mut Ops, _: ChannelId, message: LargeMessage) -> Flow {
        let bytes = message.payload.len();
        // Its memory is the next one's.
        drop(message);
        self.receiving -= 1;
        if let Some(next) = self.parked.pop_front() {
            let into = ops
                .pool()
                .alloc(self.bytes)
                .map_err(|error| error.to_string());
            let accepted =
                into.and_then(|into| ops.accept(next, into).map_err(|error| error.to_string()));
            match accepted {
                Ok(()) => self.receiving += 1,
                Err(error) => self.ended = Some(error),
            }
        }
        self.arrived(bytes)
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

    #[inline]
    fn on_one_sided(&mut self, _: &mut Ops, _: ChannelId, done: OneSidedDone) -> Flow {
        if let Err(error) = done.outcome {
            self.ended = Some(error.to_string());
        }
        self.free.extend(done.data);
        self.completed += 1;
        match self.completed < self.window {
            true => Flow::Continue,
            false => Flow::Stop,
        }
    }

    fn on_writable(&mut self, _: &mut Ops, _: ChannelId) -> Flow {
        self.busy = false;
        Flow::Stop
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, reason: CloseReason) -> Flow {
        self.ended = Some(reason.to_string());
        Flow::Stop
    }
}
