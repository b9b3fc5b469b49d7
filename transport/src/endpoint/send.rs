//! Sending, accepting, refusing: what a user does with an open channel.

use smallvec::{SmallVec, smallvec};

use super::Ops;
use super::channel::Channel;
use super::transfer::OutKind;
use super::types::{ChannelId, IncomingId, PostedBuf, PostedList, SendError};
use crate::backend::{Posted, Wire, WireFault};
use crate::buf::{Buf, BufMut};
use crate::wire::{FrameHeader, FrameKind, USER_HEADER_MAX_BYTES};

impl Ops {
    /// Sends a message eagerly: the payload is copied, and may be reused at once.
    ///
    /// # Errors
    /// The channel is not open, or the message is above the limit.
    #[inline]
    pub fn send(
        &mut self,
        to: ChannelId,
        am: u8,
        tag: u64,
        header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, SendError> {
        let len: usize = payload.iter().map(|part| part.len()).sum();
        let channel = self.sendable(to, header)?;
        if len > channel.info.eager_max {
            let limit = channel.info.eager_max as u64;
            return Err(SendError::TooLarge {
                len: len as u64,
                limit,
            });
        }
        match channel.send_eager(am, tag, header, payload, len) {
            Ok(posted) => Ok(posted),
            Err(fault) => {
                self.channel_fault(to.slot, fault);
                Err(SendError::NotOpen)
            }
        }
    }

    /// The largest payload in bytes that [`Ops::send`] takes; zero if the channel is not open.
    #[inline]
    pub fn eager_max(&self, channel: ChannelId) -> usize {
        self.info(channel).map_or(0, |info| info.eager_max)
    }

    /// Sends a buffer of any size, eagerly or by rendezvous.
    ///
    /// # Errors
    /// The channel is not open, or the message is above the limit.
    pub fn send_buf(
        &mut self,
        to: ChannelId,
        am: u8,
        tag: u64,
        header: &[u8],
        payload: Buf,
        context: u64,
    ) -> Result<PostedBuf, SendError> {
        let limit = self.config.message_max_bytes;
        let channel = self.sendable(to, header)?;
        let len = payload.len();
        if len as u64 > limit {
            return Err(SendError::TooLarge {
                len: len as u64,
                limit,
            });
        }
        let posted =
            match len <= channel.info.eager_max {
                true => channel
                    .send_eager(am, tag, header, &[&payload], len)
                    .map(|posted| match posted {
                        Posted::Done => PostedBuf::Done(payload),
                        Posted::Busy => PostedBuf::Busy(payload),
                    }),
                false => {
                    let kind = OutKind::Message {
                        context,
                        list: false,
                    };
                    let frame = rts(am, tag, header, len);
                    channel
                        .send_large(frame, header, smallvec![payload], kind)
                        .map(|sent| match sent {
                            Ok(()) => PostedBuf::Pending,
                            Err(mut parts) => PostedBuf::Busy(parts.pop().unwrap_or_default()),
                        })
                }
            };
        let pending = matches!(posted, Ok(PostedBuf::Pending));
        self.posted(to, posted, pending)
    }

    /// Sends buffers of any size, one after the other, as one message; it comes as one buffer.
    ///
    /// # Errors
    /// The channel is not open, or the message is above the limit.
    pub fn send_list(
        &mut self,
        to: ChannelId,
        am: u8,
        tag: u64,
        header: &[u8],
        parts: Vec<Buf>,
        context: u64,
    ) -> Result<PostedList, SendError> {
        let limit = self.config.message_max_bytes;
        let channel = self.sendable(to, header)?;
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len as u64 > limit {
            return Err(SendError::TooLarge {
                len: len as u64,
                limit,
            });
        }
        let posted = if len <= channel.info.eager_max {
            let slices: SmallVec<[&[u8]; 8]> = parts.iter().map(|part| &**part).collect();
            let posted = channel.send_eager(am, tag, header, &slices, len);
            drop(slices);
            posted.map(|posted| match posted {
                Posted::Done => PostedList::Done(parts),
                Posted::Busy => PostedList::Busy(parts),
            })
        } else {
            let kind = OutKind::Message {
                context,
                list: true,
            };
            let frame = rts(am, tag, header, len);
            let sent = channel.send_large(frame, header, parts.into(), kind);
            sent.map(|sent| match sent {
                Ok(()) => PostedList::Pending,
                Err(parts) => PostedList::Busy(parts.into_vec()),
            })
        };
        let pending = matches!(posted, Ok(PostedList::Pending));
        self.posted(to, posted, pending)
    }

    /// From here on (or, with `false`, up to here) small messages on a channel may be kept for a
    /// moment, to go out together: at the latest by the end of it, or by the next round of
    /// progress. Only where that saves calls of the system; elsewhere it does nothing.
    pub fn cork(&mut self, to: ChannelId, corked: bool) {
        let Some(channel) = self.channel(to) else {
            return;
        };
        channel.wire.cork(corked);
        if corked || !channel.wire.held_back() {
            return;
        }
        match channel.wire.flush() {
            Ok(true) => {}
            Ok(false) => self.activate(to.slot),
            Err(fault) => self.channel_fault(to.slot, fault),
        }
    }

    /// The peer of a channel has something better to do than to send: from here on its large messages
    /// are fetched from its memory, where the transport can, even if that takes longer.
    pub fn peer_spare(&mut self, peer: ChannelId) {
        if let Some(channel) = self.channel(peer) {
            channel.wire.peer_spare();
        }
    }

    /// Accepts a large message that was parked.
    ///
    /// # Errors
    /// It is gone, or the buffer has another length.
    pub fn accept(&mut self, incoming: IncomingId, into: BufMut) -> Result<(), SendError> {
        let channel = self.channel(incoming.channel).ok_or(SendError::NotOpen)?;
        match channel.accept(incoming.transfer, into) {
            Ok(accepted) => accepted?,
            Err(fault) => {
                self.channel_fault(incoming.channel.slot, fault);
                return Err(SendError::NotOpen);
            }
        }
        self.activate(incoming.channel.slot);
        Ok(())
    }

    /// Refuses a large message that was parked.
    ///
    /// # Errors
    /// It is gone.
    pub fn refuse(&mut self, incoming: IncomingId, reason: u32) -> Result<(), SendError> {
        let channel = self.channel(incoming.channel).ok_or(SendError::NotOpen)?;
        channel.refuse(incoming.transfer, reason)?;
        self.activate(incoming.channel.slot);
        Ok(())
    }

    /// What was posted gets the bulk lane if it must wait for it.
    fn posted<P>(
        &mut self,
        to: ChannelId,
        posted: Result<P, WireFault>,
        pending: bool,
    ) -> Result<P, SendError> {
        if pending {
            self.lane_open(to.slot);
            self.activate(to.slot);
        }
        posted.map_err(|fault| {
            self.channel_fault(to.slot, fault);
            SendError::NotOpen
        })
    }

    #[inline]
    fn sendable(&mut self, to: ChannelId, header: &[u8]) -> Result<&mut Channel, SendError> {
        if header.len() > USER_HEADER_MAX_BYTES {
            return Err(SendError::HeaderTooLong(header.len()));
        }
        match self.channel(to) {
            Some(channel) if channel.closing.is_none() && !channel.peer_closed => Ok(channel),
            _ => Err(SendError::NotOpen),
        }
    }
}

/// The frame that announces a large message, but for the transfer's number.
fn rts(am: u8, tag: u64, header: &[u8], len: usize) -> FrameHeader {
    FrameHeader::new(FrameKind::Rts)
        .with_message(am, header.len() as u8)
        .with_id(tag)
        .with_len(len as u64)
}
