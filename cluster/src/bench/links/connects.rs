//! Channels that are opened and closed at once.

use std::time::Instant;

use praas_transport::{
    Address, ChannelId, ChannelInfo, CloseReason, Credential, Dial, Disposition, Endpoint, Flow,
    Handler, Incarnation, Incoming, LargeMessage, Message, Ops, WaitMode,
};

use super::channel::ended;
use super::wait::PATIENCE;
use crate::bench::BenchError;

/// One side of channels that come and go.
pub(in crate::bench) struct Connects {
    endpoint: Endpoint,
    to: Option<(Address, Credential)>,
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    opened: u64,
    closed: u64,
    failed: Option<String>,
}

impl Connects {
    /// The side that connects, or without `to` the one that takes who connects.
    pub(in crate::bench) fn new(endpoint: Endpoint, to: Option<(Address, Credential)>) -> Self {
        Self {
            endpoint,
            to,
            seen: Seen::default(),
        }
    }

    fn until(&mut self, so: impl Fn(&Seen) -> bool) -> Result<(), BenchError> {
        let until = Instant::now() + PATIENCE;
        while !so(&self.seen) {
            self.endpoint
                .progress_wait(&mut self.seen, Some(until), WaitMode::Hot);
            if let Some(reason) = &self.seen.failed {
                return Err(ended(reason));
            }
            if !so(&self.seen) && until <= Instant::now() {
                return Err(BenchError::Peer("does not answer".into()));
            }
        }
        Ok(())
    }

    /// Connects, plays the handshake, and closes.
    pub(in crate::bench) fn connect_once(&mut self) -> Result<(), BenchError> {
        let none = || BenchError::Peer("does not take connections".into());
        let (address, credential) = self.to.as_ref().ok_or_else(none)?;
        let dial = Dial {
            credential: credential.clone(),
            expect: Incarnation(0),
            deadline: None,
        };
        let opened = self.seen.opened;
        let channel = self.endpoint.connect(address, dial)?;
        self.until(|seen| seen.opened > opened)?;
        self.endpoint.close(channel);
        Ok(())
    }

    /// Takes so many channels, until each is closed.
    pub(in crate::bench) fn serve(&mut self, count: u64) -> Result<(), BenchError> {
        self.seen.closed = 0;
        self.until(|seen| seen.closed >= count)
    }
}

impl Handler for Seen {
    fn on_open(&mut self, _: &mut Ops, _: ChannelId, _: &ChannelInfo) -> Flow {
        self.opened += 1;
        Flow::Continue
    }

    fn on_message(&mut self, _: &mut Ops, _: ChannelId, _: Message<'_>) -> Flow {
        Flow::Continue
    }

    fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
        Disposition::Refuse(1)
    }

    fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, reason: CloseReason) -> Flow {
        match reason {
            CloseReason::Closed => self.closed += 1,
            reason => self.failed = Some(reason.to_string()),
        }
        Flow::Stop
    }
}
