//! One-sided operations on registered memory.

use std::sync::Arc;

use super::types::{ChannelId, OneSidedDone, SendError};
use super::{Event, Ops};
use crate::backend::{AnyWire, Posted, Wire};
use crate::buf::BufMut;
use crate::one_sided::{Access, OneSidedError, RegionTable, RemoteKey};
use crate::wire::{FrameHeader, FrameKind};

impl Ops {
    /// Opens memory to peers.
    ///
    /// # Errors
    /// The memory again, if no random key can be had.
    pub fn register(&mut self, memory: BufMut, access: Access) -> Result<RemoteKey, BufMut> {
        self.regions.register(memory, access)
    }

    /// Closes memory to peers: the key is void when this returns.
    pub fn deregister(&mut self, key: RemoteKey) -> Option<BufMut> {
        self.regions.deregister(key)
    }

    /// Writes to a peer's memory; [`crate::Handler::on_one_sided`] tells when it is there.
    pub fn put(&mut self, to: ChannelId, key: RemoteKey, offset: u64, bytes: &[u8], context: u64) {
        let outcome = self
            .peer_regions(to)
            .and_then(|regions| regions.put(key, offset, bytes));
        self.one_sided_done(to, context, outcome.map(|()| 0), None);
    }

    /// Writes to a peer's memory and then tells it so, by [`crate::Handler::on_immediate`] there.
    ///
    /// # Errors
    /// The channel is not open.
    pub fn put_immediate(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        bytes: &[u8],
        value: u64,
        context: u64,
    ) -> Result<Posted, SendError> {
        let outcome = self
            .peer_regions(to)
            .and_then(|regions| regions.put(key, offset, bytes));
        if outcome.is_ok() {
            let channel = self.channel(to).ok_or(SendError::NotOpen)?;
            let frame = FrameHeader::new(FrameKind::Immediate)
                .with_id(value)
                .with_aux(bytes.len() as u64);
            match channel.wire.send_frame(&frame, &[], &[]) {
                Ok(Posted::Done) => {}
                Ok(Posted::Busy) => return Ok(Posted::Busy),
                Err(fault) => {
                    self.channel_fault(to.slot, fault);
                    return Err(SendError::NotOpen);
                }
            }
        }
        self.one_sided_done(to, context, outcome.map(|()| 0), None);
        Ok(Posted::Done)
    }

    /// Reads a peer's memory; [`crate::Handler::on_one_sided`] gives the buffer back, filled.
    pub fn get(
        &mut self,
        from: ChannelId,
        key: RemoteKey,
        offset: u64,
        mut into: BufMut,
        context: u64,
    ) {
        let regions = self.peer_regions(from);
        let outcome = regions.and_then(|regions| regions.read(key, offset, &mut into));
        self.one_sided_done(from, context, outcome.map(|()| 0), Some(into));
    }

    /// Adds to a word of a peer's memory, atomically; its old value comes by
    /// [`crate::Handler::on_one_sided`].
    pub fn fetch_add(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        add: u64,
        context: u64,
    ) {
        let outcome = self
            .peer_regions(to)
            .and_then(|regions| regions.atomic(key, offset, |old| old.wrapping_add(add)));
        self.one_sided_done(to, context, outcome, None);
    }

    /// Sets a word of a peer's memory to `new` if it is `expected`, atomically; its old value
    /// comes by [`crate::Handler::on_one_sided`].
    pub fn compare_swap(
        &mut self,
        to: ChannelId,
        key: RemoteKey,
        offset: u64,
        expected: u64,
        new: u64,
        context: u64,
    ) {
        let outcome = self.peer_regions(to).and_then(|regions| {
            regions.atomic(key, offset, |old| if old == expected { new } else { old })
        });
        self.one_sided_done(to, context, outcome, None);
    }

    fn peer_regions(&mut self, of: ChannelId) -> Result<Arc<RegionTable>, OneSidedError> {
        let channel = self.channel(of).ok_or(OneSidedError::Unsupported)?;
        let mut wire = &mut channel.wire;
        if let AnyWire::Fault(fault) = wire {
            wire = fault.inner();
        }
        match wire {
            AnyWire::Mem(mem) => mem.link().peer_regions().ok_or(OneSidedError::Unsupported),
            _ => Err(OneSidedError::Unsupported),
        }
    }

    fn one_sided_done(
        &mut self,
        channel: ChannelId,
        context: u64,
        outcome: Result<u64, OneSidedError>,
        data: Option<BufMut>,
    ) {
        let done = OneSidedDone {
            context,
            outcome,
            data,
        };
        self.pending.push_back(Event::OneSided(channel, done));
    }
}
