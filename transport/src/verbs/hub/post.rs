//! Posting: frames, reads, and what operations share with them.

use std::ptr::null_mut;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{GRANT_MAX, Hub, ID_LANE, INLINE_MAX, KIND_BULK, KIND_CREDIT, Peer, ReadRequest};
use crate::backend::{Posted, WireFault};
use crate::verbs::objects::SharedReceives;
use crate::verbs::sys;

/// Of so many sends that hold no slot, one is signalled.
const SIGNAL_EVERY: u32 = 16;
/// Of so many sends that hold a slot, one is signalled.
const SIGNAL_EVERY_HELD: u32 = 4;
/// Work requests that are kept for frames, whatever reads there are to post.
const SENDS_FOR_FRAMES: u32 = 8;
/// Slots that a connection may have, however many the others hold: so many that the last of them
/// is signalled, and they come back.
const SLOTS_OWN: usize = SIGNAL_EVERY_HELD as usize;

impl Hub {
    /// Whether a frame of this kind would be taken just now.
    #[inline]
    pub(in crate::verbs) fn has_room(&self, key: usize, kind: u8) -> bool {
        let peer = &self.peers[key];
        let needed = match kind {
            KIND_CREDIT => 1,
            // Frames go first: the stream leaves them half of the smallest window.
            KIND_BULK => 3,
            _ => 2,
        };
        peer.credits >= needed
            && peer.under_way() < peer.queue.limits.sends
            && self.under_way + self.receive_slots.count() < self.depth
            // Credit goes within the work request.
            && (kind == KIND_CREDIT || self.has_slot(key))
    }

    fn slots_in_use(&self) -> u32 {
        self.send_slots.count() - self.send_free.len() as u32
    }

    /// Whether a connection may have one slot more. A few are always its own: the slots of peers
    /// whose devices do not answer come back only when these count as dead, and nobody else shall
    /// wait for that.
    #[inline]
    fn has_slot(&self, key: usize) -> bool {
        let peer = &self.peers[key];
        let held = peer.held.len() + peer.remote.slots_held();
        held < SLOTS_OWN || self.slots_in_use() < self.settings.send_buffers
    }

    /// Sends `head` and `payload` as one frame, if there is room; `last` has itself reported done.
    #[inline]
    pub(in crate::verbs) fn frame_send(
        &mut self,
        key: usize,
        kind: u8,
        head: [&[u8]; 2],
        payload: &[&[u8]],
        last: bool,
    ) -> Result<Posted, WireFault> {
        if let Some(fault) = self.peers[key].fault() {
            return Err(fault);
        }
        if !self.has_room(key, kind) {
            self.counters.busy += 1;
            return Ok(Posted::Busy);
        }
        let mut inline = [0_u8; INLINE_MAX];
        let Some((mut piece, slot)) = self.frame_stage(key, head, payload, &mut inline)? else {
            self.counters.busy += 1;
            return Ok(Posted::Busy);
        };
        let signalled = self.signal_due(key, slot.is_some(), last);
        let peer = &mut self.peers[key];
        let grant = peer.window.grant(GRANT_MAX);
        peer.credits -= 1;
        let id = (key as u64) << 32 | u64::from(peer.posted);
        let mut request = Self::request_new(id, sys::WR_SEND_WITH_IMM, &mut piece);
        request.imm_data = (u32::from(kind) << 24 | grant).to_be();
        request.send_flags = match signalled {
            true => sys::SEND_SIGNALED,
            false => 0,
        };
        if slot.is_none() {
            request.send_flags |= sys::SEND_INLINE;
        }
        // SAFETY: request, piece and inline bytes last for the call; a slot is registered as long
        // as the hub lives, and nobody writes to it before it is known to be done.
        let posted = unsafe { peer.queue.post(&mut request) };
        if let Err(error) = posted {
            self.send_free.extend(slot);
            return Err(WireFault::Io(error));
        }
        self.counters.inline_sends += u64::from(slot.is_none());
        if let Some(slot) = slot {
            peer.held.push_back((peer.posted, slot));
        }
        peer.posted = peer.posted.wrapping_add(1);
        self.under_way += 1;
        self.counters.sends += 1;
        self.counters.doorbells += 1;
        self.counters.signalled += u64::from(signalled);
        Ok(Posted::Done)
    }

    /// Puts a frame in one piece: into `inline` if the device copies it from there at once, else
    /// into a slot, if one is free.
    #[inline]
    fn frame_stage(
        &mut self,
        key: usize,
        head: [&[u8]; 2],
        payload: &[&[u8]],
        inline: &mut [u8; INLINE_MAX],
    ) -> Result<Option<(sys::Sge, Option<u32>)>, WireFault> {
        let parts = || head.iter().chain(payload);
        let len: usize = parts().map(|part| part.len()).sum();
        debug_assert!(len <= self.send_slots.slot_bytes());
        self.counters.copied_bytes += len as u64;
        self.counters.copies += 1;
        let mut at = 0;
        if len <= self.peers[key].queue.limits.inline_bytes as usize {
            for part in parts() {
                inline[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            let piece = sys::Sge {
                addr: inline.as_ptr() as u64,
                length: len as u32,
                lkey: 0,
            };
            return Ok(Some((piece, None)));
        }
        let Some(slot) = self.send_slot_take(key)? else {
            return Ok(None);
        };
        for part in parts() {
            self.send_slots.write(slot, at, part);
            at += part.len();
        }
        Ok(Some((self.send_slots.piece(slot, len), Some(slot))))
    }

    /// Whether the next send reports that it is done: some must, so that those before them are
    /// known to be; and all while slots or completions are few.
    #[inline]
    fn signal_due(&mut self, key: usize, holds_slot: bool, last: bool) -> bool {
        let few = self.slots_in_use() > self.settings.send_buffers / 4 * 3
            || self.completions_spare() < self.depth / 4;
        let peer = &mut self.peers[key];
        peer.silent += 1;
        peer.silent_held += u32::from(holds_slot);
        let due =
            last || few || peer.silent >= SIGNAL_EVERY || peer.silent_held >= SIGNAL_EVERY_HELD;
        if due {
            (peer.silent, peer.silent_held) = (0, 0);
        }
        due
    }

    /// Reads that may be posted now.
    pub(in crate::verbs) fn reads_room(&self, key: usize) -> usize {
        let peer = &self.peers[key];
        let sends = peer.queue.limits.sends.saturating_sub(SENDS_FOR_FRAMES);
        let sends = sends.saturating_sub(peer.under_way());
        let reads = peer.reads_max.saturating_sub(peer.ops.len() as u32);
        sends.min(reads).min(self.completions_spare()) as usize
    }

    /// Posts reads, for which there is room, by one call; their tokens come by
    /// [`Peer::ops_done`].
    ///
    /// The memory that they name, ours, is registered and held until then, or until the connection
    /// has ended.
    pub(in crate::verbs) fn reads_post(
        &mut self,
        key: usize,
        reads: &mut [ReadRequest],
    ) -> Result<(), WireFault> {
        if let Some(fault) = self.peers[key].fault() {
            return Err(fault);
        }
        debug_assert!(reads.len() <= self.reads_room(key));
        let peer = &mut self.peers[key];
        let mut requests: SmallVec<[sys::SendWr; 8]> = SmallVec::new();
        for (at, read) in reads.iter_mut().enumerate() {
            let number = peer.posted.wrapping_add(at as u32);
            let id = (key as u64) << 32 | u64::from(number);
            let mut request = Self::request_new(id, sys::WR_RDMA_READ, &mut read.local);
            request.wr = sys::Remote { rdma: read.remote };
            requests.push(request);
        }
        let first = requests.as_mut_ptr();
        for at in 1..requests.len() {
            // SAFETY: both are within the requests.
            unsafe { (*first.add(at - 1)).next = first.add(at) };
        }
        if requests.is_empty() {
            return Ok(());
        }
        // SAFETY: requests and pieces last for the call, and the memory as is said above.
        unsafe { peer.queue.post(&mut *first) }.map_err(WireFault::Io)?;
        (peer.silent, peer.silent_held) = (0, 0);
        for read in reads.iter() {
            peer.ops.push_back((peer.posted, read.token));
            peer.posted = peer.posted.wrapping_add(1);
        }
        let count = reads.len() as u32;
        self.under_way += count;
        self.counters.one_sided += u64::from(count);
        self.counters.signalled += u64::from(count);
        self.counters.doorbells += 1;
        Ok(())
    }

    /// Completions that the queue has room for, besides those that may come.
    pub(in crate::verbs) fn completions_spare(&self) -> u32 {
        let taken = self.under_way + self.receive_slots.count();
        self.depth.saturating_sub(taken)
    }

    /// An operation was posted to a lane.
    pub(in crate::verbs) fn send_counted(&mut self, is_inline: bool) {
        self.under_way += 1;
        self.counters.inline_sends += u64::from(is_inline);
        self.counters.one_sided += 1;
        self.counters.signalled += 1;
        self.counters.doorbells += 1;
    }

    /// So many sends can have no completion any more.
    pub(in crate::verbs) fn send_retired(&mut self, count: u32) {
        self.under_way -= count;
    }

    /// The id of an operation's work request.
    pub(in crate::verbs) fn lane_id(key: usize, op: usize) -> u64 {
        ID_LANE | (key as u64) << 32 | op as u64
    }

    /// A work request that reports when it is done.
    pub(in crate::verbs) fn request_new(
        id: u64,
        opcode: std::ffi::c_uint,
        piece: &mut sys::Sge,
    ) -> sys::SendWr {
        let num_sge = i32::from(piece.length > 0);
        sys::SendWr {
            wr_id: id,
            next: null_mut(),
            sg_list: piece,
            num_sge,
            opcode,
            send_flags: sys::SEND_SIGNALED,
            imm_data: 0,
            wr: sys::Remote {
                rdma: sys::Rdma {
                    remote_addr: 0,
                    rkey: 0,
                },
            },
            _rest: [0; 7],
        }
    }

    pub(in crate::verbs) fn receives(&self) -> &Arc<SharedReceives> {
        &self.receives
    }

    /// The connection with this key, if there is one (any more).
    pub(in crate::verbs) fn peer_find(&mut self, key: usize) -> Option<&mut Peer> {
        self.peers.get_mut(key)
    }

    pub(in crate::verbs) fn slot_write(&mut self, slot: u32, bytes: &[u8]) {
        self.send_slots.write(slot, 0, bytes);
        self.counters.copies += 1;
        self.counters.copied_bytes += bytes.len() as u64;
    }

    pub(in crate::verbs) fn slot_piece(&self, slot: u32, len: usize) -> sys::Sge {
        self.send_slots.piece(slot, len)
    }

    pub(in crate::verbs) fn slots_free(&mut self, slots: impl IntoIterator<Item = u32>) {
        self.send_free.extend(slots);
    }

    /// A slot for a connection to send from, if it may have one.
    pub(in crate::verbs) fn send_slot_take(
        &mut self,
        key: usize,
    ) -> Result<Option<u32>, WireFault> {
        if !self.has_slot(key) {
            return Ok(None);
        }
        if self.send_free.is_empty() {
            self.send_free.extend(self.send_slots.grow()?);
        }
        Ok(self.send_free.pop())
    }
}
