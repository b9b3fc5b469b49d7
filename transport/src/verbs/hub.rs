//! One for each device, port and application of an endpoint: the completion queue, the receives
//! and the memory that all its queue pairs share, and what is known of each of them.
//!
//! ```text
//!   wires --- frame_send --> queue pairs ...... the peers' devices
//!     ^                                              |
//!     +-- inboxes <-- poll <-- completion queue <-- shared receives
//! ```
//!
//! A round of progress polls once, whatever the number of peers; whose inbox has got something is
//! told by [`Hub::woken`]. What an idle connection costs is its queue pair, and the few receives
//! that its credit stands for.

mod post;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::ptr::null_mut;
use std::sync::Arc;

use slab::Slab;

use super::cache::Cache;
use super::fault::RdmaError;
use super::memory::{SLAB_SLOTS, Slots};
use super::objects::{
    CompletionQueue, Device, DeviceEvent, Path, ProtectionDomain, QueuePair, QueuePairLimits,
    SharedReceives,
};
use super::remote::{Remote, Served};
use super::sys;
use super::window::Window;
use super::words::KIND_IMMEDIATE;
use crate::backend::{Posted, WireFault};
use crate::config::TransportConfig;
use crate::counters::VerbsCounters;
use crate::one_sided::RegionTable;
use crate::wire::{
    FRAME_HEADER_BYTES, PULL_SEGMENT_BYTES, PULL_SEGMENTS_MAX, USER_HEADER_MAX_BYTES, WireError,
};

/// What a send is, in the first byte of its immediate value; the others are credit.
pub(super) const KIND_FRAME: u8 = 0;
pub(super) const KIND_CREDIT: u8 = 1;
pub(super) const KIND_BULK: u8 = 2;

/// Credit that one frame can carry.
const GRANT_MAX: u32 = (1 << 24) - 1;
/// Credit that a peer can have in all.
const CREDITS_MAX: u32 = 1 << 20;
/// In a work request's id: it is a receive, and the rest is its slot.
const ID_RECEIVE: u64 = 1 << 63;
/// In a work request's id: it is an operation's, on a lane.
const ID_LANE: u64 = 1 << 62;
/// Completions taken by one call.
const POLLED: usize = 32;
/// Calls in one round: more would keep the wires waiting.
const POLLS_MAX: usize = 4;
/// Receives posted by one call, and at most unposted at a time.
const RECEIVES_BATCH: usize = 16;
/// The longest send that is copied into the work request itself.
pub(super) const INLINE_MAX: usize = 256;
/// Completions of sends that the queue has room for, above one for each receive.
const SENDS_SPARE: u32 = 2048;

/// A read of the peer's memory.
pub(super) struct ReadRequest {
    /// Comes back when it is done.
    pub(super) token: u64,
    pub(super) local: sys::Sge,
    pub(super) remote: sys::Rdma,
}

/// A frame that is here and not yet read.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    pub(super) slot: u32,
    pub(super) len: u32,
    /// It is no frame, but tells of a put of so many bytes, with this value.
    pub(super) immediate: Option<u32>,
}

/// One connection's side of the hub.
pub(super) struct Peer {
    pub(super) queue: QueuePair,
    /// The endpoint's name for it.
    place: u32,
    pub(super) inbox: VecDeque<Arrival>,
    pub(super) bulk: VecDeque<Arrival>,
    /// Bytes of the first bulk arrival that are read.
    pub(super) bulk_read: u32,
    /// Sends posted and known to be done, counted for ever around.
    posted: u32,
    retired: u32,
    /// Unsignalled ones since the last that is signalled.
    silent: u32,
    silent_held: u32,
    /// Slots of sends that are not known to be done, oldest first.
    held: VecDeque<(u32, u32)>,
    /// Operations under way: of which send, and what comes back; oldest first.
    ops: VecDeque<(u32, u64)>,
    /// What came back of those that are done.
    pub(super) ops_done: VecDeque<u64>,
    /// Reads and atomics that may be under way.
    reads_max: u32,
    credits: u32,
    window: Window,
    /// Credit is owed, and there was no way to say so.
    credit_due: bool,
    device_fault: Option<RdmaError>,
    protocol_fault: Option<WireError>,
    pub(super) remote: Remote,
}

impl Peer {
    /// The endpoint's name for it.
    pub(super) fn place(&self) -> u32 {
        self.place
    }

    /// A credit goes with what is no frame.
    pub(super) fn credit_spend(&mut self) {
        self.credits -= 1;
    }

    /// What a credit was spent for has not arrived.
    pub(super) fn credit_regain(&mut self) {
        self.credits += 1;
    }

    pub(super) fn device_fault_note(&mut self, fault: RdmaError) {
        let before = self.device_fault.unwrap_or(fault);
        self.device_fault = Some(before.better(fault));
    }

    /// Why the connection is over, once what has arrived is read.
    pub(super) fn fault(&self) -> Option<WireFault> {
        let protocol = self.protocol_fault.clone().map(WireFault::Protocol);
        protocol.or(self.device_fault.map(WireFault::Rdma))
    }

    /// Whether its memory can be read: there are devices that serve no reads.
    pub(super) fn can_read(&self) -> bool {
        self.reads_max > 0
    }

    #[inline]
    fn under_way(&self) -> u32 {
        self.posted.wrapping_sub(self.retired)
    }

    /// Whether all that was posted is known to have arrived.
    pub(super) fn is_drained(&self) -> bool {
        self.under_way() == 0
    }
}

/// Numbers of queue pairs are few and spread enough.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// What of the settings a hub goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct HubSettings {
    pub(super) eager_max: usize,
    receive_buffers: u32,
    receives_max: u32,
    credits_min: u32,
    credits_max: u32,
    sends_max: u32,
    send_buffers: u32,
    registered_max_bytes: u64,
    registered_max: u32,
}

impl HubSettings {
    pub(super) fn new(config: &TransportConfig) -> Self {
        Self {
            eager_max: config.verbs_eager_max_bytes,
            receive_buffers: config.verbs_receive_buffers,
            receives_max: config.verbs_receives_max,
            credits_min: config.verbs_credits_min,
            credits_max: config.verbs_credits_max,
            sends_max: config.verbs_sends_max,
            send_buffers: config.verbs_send_buffers,
            registered_max_bytes: config.verbs_registered_max_bytes,
            registered_max: config.verbs_registered_max,
        }
    }

    /// Work requests of a queue pair.
    pub(super) fn sends_max(&self) -> u32 {
        self.sends_max
    }

    /// Bytes of the longest frame.
    pub(super) fn frame_max(&self) -> usize {
        // Whatever the settings are, an announcement of what may be pulled fits.
        let body = self.eager_max.max(PULL_SEGMENT_BYTES * PULL_SEGMENTS_MAX);
        (body + FRAME_HEADER_BYTES + USER_HEADER_MAX_BYTES).next_multiple_of(64)
    }
}

/// A completion queue that can grow from `first` on; of a device whose queues cannot, one that need
/// not.
fn completions_new(
    device: &Arc<Device>,
    first: u32,
    whole: u32,
) -> io::Result<Arc<CompletionQueue>> {
    let queue = CompletionQueue::new(device, first)?;
    let wider = first.saturating_add(SLAB_SLOTS as u32).min(whole);
    if first >= whole || queue.resize(wider).is_ok() {
        return Ok(queue);
    }
    drop(queue);
    CompletionQueue::new(device, whole)
}

/// See the module.
pub(super) struct Hub {
    peers: Slab<Peer>,
    by_number: HashMap<u32, usize, BuildHasherDefault<NumberHasher>>,
    /// The queue pair that was heard last, and its key.
    heard: (u32, usize),
    pub(super) completions: Arc<CompletionQueue>,
    receives: Arc<SharedReceives>,
    pub(super) domain: Arc<ProtectionDomain>,
    pub(super) cache: Cache,
    pub(super) regions: Arc<RegionTable>,
    /// Regions of the endpoint that peers' devices may reach, by their keys.
    pub(super) serves: HashMap<u64, Served>,
    settings: HubSettings,
    receive_slots: Slots,
    receives_depth: u32,
    unposted: Vec<u32>,
    /// Receives that peers' windows stand for.
    promised: u32,
    send_slots: Slots,
    send_free: Vec<u32>,
    /// Sends of all peers that may yet have a completion.
    under_way: u32,
    depth: u32,
    polled: Box<[sys::Wc; POLLED]>,
    /// Whose wires have something to do, by their places in the endpoint.
    pub(super) woken: Vec<u32>,
    armed: bool,
    lost: bool,
    /// How often a poll has left nothing in the completion queue.
    emptied: u64,
    counters: VerbsCounters,
}

impl Hub {
    pub(super) fn new(
        device: &Arc<Device>,
        settings: HubSettings,
        regions: Arc<RegionTable>,
    ) -> io::Result<Self> {
        let domain = ProtectionDomain::new(device)?;
        let most = |value: std::ffi::c_int| u32::try_from(value).unwrap_or(0);
        let receives_depth = settings
            .receives_max
            .min(most(device.attr.max_srq_wr))
            .min(most(device.attr.max_cqe).saturating_sub(SENDS_SPARE));
        let receives = SharedReceives::new(&domain, receives_depth)?;
        let cut = |depth: u32| depth.min(most(device.attr.max_cqe));
        let first = cut(settings.receive_buffers + SENDS_SPARE);
        let completions = completions_new(device, first, cut(receives_depth + SENDS_SPARE))?;
        let frame_max = settings.frame_max();
        let mut hub = Self {
            peers: Slab::new(),
            by_number: HashMap::default(),
            heard: (0, 0),
            depth: completions.depth(),
            completions,
            receives,
            settings,
            receive_slots: Slots::new(&domain, frame_max),
            receives_depth,
            unposted: Vec::new(),
            promised: 0,
            send_slots: Slots::new(&domain, frame_max),
            send_free: Vec::new(),
            under_way: 0,
            regions,
            serves: HashMap::new(),
            cache: Cache::new(
                &domain,
                settings.registered_max_bytes,
                settings.registered_max,
            ),
            domain,
            polled: Box::new([sys::Wc::default(); POLLED]),
            woken: Vec::new(),
            armed: false,
            lost: false,
            emptied: 0,
            counters: VerbsCounters::default(),
        };
        while hub.receive_slots.count() < hub.settings.receive_buffers {
            hub.receives_grow()?;
        }
        Ok(hub)
    }

    pub(super) fn settings(&self) -> &HubSettings {
        &self.settings
    }

    pub(super) fn counters(&self) -> VerbsCounters {
        VerbsCounters {
            registrations: self.cache.registrations,
            ..self.counters
        }
    }

    /// Receives that are posted and that no window stands for.
    fn receives_spare(&self) -> u32 {
        let usable = self
            .receive_slots
            .count()
            .saturating_sub(RECEIVES_BATCH as u32);
        usable.saturating_sub(self.promised)
    }

    /// Receives by which windows may still be wider than the smallest. Windows do not get narrower,
    /// so what is made for newcomers must not go to them, or peers that were busy once would keep
    /// newcomers out for ever.
    fn receives_shared(&self) -> u32 {
        let smallest = self.settings.credits_min * self.peers.len() as u32;
        let usable = self.settings.receive_buffers - RECEIVES_BATCH as u32;
        usable.saturating_sub(self.promised.saturating_sub(smallest))
    }

    fn receives_grow(&mut self) -> io::Result<()> {
        let count = self.receive_slots.count() + SLAB_SLOTS as u32;
        if count > self.receives_depth {
            return Err(io::Error::other(format!(
                "all of {} receives are promised to peers (setting verbs_receives_max)",
                self.receives_depth
            )));
        }
        let wanted = count + SENDS_SPARE.max(self.under_way);
        if self.depth < wanted {
            // By halves of itself, since each time costs calls to the kernel.
            let most = u32::try_from(self.domain.device.attr.max_cqe).unwrap_or(wanted);
            let wider = (self.depth + self.depth / 2).max(wanted).min(most);
            self.completions.resize(wider)?;
            self.depth = self.completions.depth();
        }
        if self.depth < count + self.under_way {
            return Err(io::Error::other(format!(
                "the device's completion queues hold no more than {} completions",
                self.depth
            )));
        }
        let slots = self.receive_slots.grow()?;
        self.unposted.extend(slots);
        self.receives_post()
    }

    /// Posts what is unposted, by one call.
    fn receives_post(&mut self) -> io::Result<()> {
        while !self.unposted.is_empty() {
            let mut pieces = [sys::Sge {
                addr: 0,
                length: 0,
                lkey: 0,
            }; RECEIVES_BATCH];
            let mut requests = [sys::RecvWr {
                wr_id: 0,
                next: null_mut(),
                sg_list: null_mut(),
                num_sge: 1,
            }; RECEIVES_BATCH];
            let count = self.unposted.len().min(RECEIVES_BATCH);
            let from = self.unposted.len() - count;
            for (at, slot) in self.unposted[from..].iter().enumerate() {
                let piece = self
                    .receive_slots
                    .piece(*slot, self.receive_slots.slot_bytes());
                pieces[at] = piece;
                requests[at].wr_id = ID_RECEIVE | u64::from(*slot);
            }
            let (piece, first) = (pieces.as_mut_ptr(), requests.as_mut_ptr());
            for at in 0..count {
                // SAFETY: both arrays have more than `count` places.
                unsafe {
                    (*first.add(at)).sg_list = piece.add(at);
                    if at + 1 < count {
                        (*first.add(at)).next = first.add(at + 1);
                    }
                }
            }
            // SAFETY: requests and pieces last for the call. Their slots are registered as long as
            // the hub lives, which holds the queue, and are read only between completion and the
            // next post.
            unsafe { self.receives.post(&mut *first) }?;
            self.counters.receive_posts += 1;
            self.counters.receives += count as u64;
            self.unposted.truncate(from);
        }
        Ok(())
    }

    fn slot_return(&mut self, slot: u32) {
        self.unposted.push(slot);
        if self.unposted.len() >= RECEIVES_BATCH
            && let Err(error) = self.receives_post()
        {
            tracing::error!(%error, "cannot post receives");
            self.lost_note();
        }
    }

    fn lost_note(&mut self) {
        self.lost = true;
        for (_, peer) in &mut self.peers {
            peer.device_fault_note(RdmaError::DeviceLost);
            self.woken.push(peer.place);
        }
    }

    /// A queue pair that is not connected yet; `place` is the endpoint's name for it. With it the
    /// credit that the peer begins with.
    pub(super) fn peer_add(&mut self, place: u32, port: u8) -> io::Result<(usize, u32)> {
        if self.lost {
            return Err(io::Error::other("the device has failed"));
        }
        let credits = self.settings.credits_min;
        while self.receives_spare() < credits {
            self.receives_grow()?;
        }
        let most = u32::try_from(self.domain.device.attr.max_qp_wr).unwrap_or(u32::MAX);
        let limits = QueuePairLimits {
            sends: self.settings.sends_max.min(most),
            inline_bytes: INLINE_MAX as u32,
        };
        let receives = Some(&self.receives);
        let queue = QueuePair::new(&self.domain, &self.completions, receives, limits)?;
        queue.init(port, sys::ACCESS_LOCAL_WRITE | sys::ACCESS_REMOTE_READ)?;
        let number = queue.number();
        let key = self.peers.insert(Peer {
            queue,
            place,
            inbox: VecDeque::new(),
            bulk: VecDeque::new(),
            bulk_read: 0,
            posted: 0,
            retired: 0,
            silent: 0,
            silent_held: 0,
            held: VecDeque::new(),
            ops: VecDeque::new(),
            ops_done: VecDeque::new(),
            reads_max: 0,
            credits: 0,
            window: Window::new(credits),
            credit_due: false,
            device_fault: None,
            protocol_fault: None,
            remote: Remote::default(),
        });
        self.by_number.insert(number, key);
        self.promised += credits;
        Ok((key, credits))
    }

    /// Connects a queue pair to the peer's, which gives us credit.
    pub(super) fn peer_connect(&mut self, key: usize, path: &Path, credits: u32) -> io::Result<()> {
        let peer = &mut self.peers[key];
        peer.queue.connect(path)?;
        peer.credits = credits;
        peer.reads_max = path.reads_started.into();
        peer.remote.connected(path);
        Ok(())
    }

    #[inline]
    pub(super) fn peer(&self, key: usize) -> &Peer {
        &self.peers[key]
    }

    #[inline]
    pub(super) fn peer_mut(&mut self, key: usize) -> &mut Peer {
        &mut self.peers[key]
    }

    /// Ends a connection: nothing of it is under way when this returns.
    pub(super) fn peer_remove(&mut self, key: usize) {
        self.peer_stop(key);
        let peer = self.peers.remove(key);
        self.by_number.remove(&peer.queue.number());
        self.serving_forget(&peer.remote);
        self.heard = (0, 0);
        let Peer {
            queue,
            inbox,
            bulk,
            held,
            window,
            posted,
            retired,
            mut remote,
            ..
        } = peer;
        // First, so that the device is done with the slots.
        drop(queue);
        self.under_way -= posted.wrapping_sub(retired) + remote.under_way();
        let (_, slots) = remote.end();
        self.send_free.extend(slots);
        self.told_forget(key);
        self.send_free
            .extend(held.into_iter().map(|(_, slot)| slot));
        self.promised -= window.target();
        for arrival in inbox.into_iter().chain(bulk) {
            self.slot_return(arrival.slot);
        }
    }

    /// A queue pair of the peer's operations, by which it may tell of puts.
    pub(super) fn serving_add(&mut self, key: usize, number: u32) {
        self.by_number.insert(number, key);
    }

    /// The queue pair of a peer's operations ends.
    pub(super) fn serving_forget(&mut self, remote: &Remote) {
        if let Some(number) = remote.serving_number() {
            self.by_number.remove(&number);
            self.heard = (0, 0);
        }
    }

    /// Stops a connection's queue pairs, and takes what they have completed: with a queue pair,
    /// libraries throw away completions that nobody has taken, and with those of receives we would
    /// lose count of slots that the device holds no more.
    fn peer_stop(&mut self, key: usize) {
        let peer = &mut self.peers[key];
        peer.device_fault_note(RdmaError::Flushed);
        for queue in [Some(&peer.queue), peer.remote.serving()]
            .into_iter()
            .flatten()
        {
            if let Err(error) = queue.stop() {
                tracing::debug!(%error, "a queue pair that ends cannot be stopped first");
            }
        }
        let before = self.emptied;
        let polls = self.depth as usize / (POLLED * POLLS_MAX) + 1;
        for _ in 0..polls {
            self.poll();
            if self.emptied > before || self.lost {
                break;
            }
        }
    }

    /// Takes completions, and hands them to the peers that they are for; how many there were.
    #[inline]
    pub(super) fn poll(&mut self) -> usize {
        let mut taken = 0;
        if self.lost {
            return 0;
        }
        for _ in 0..POLLS_MAX {
            self.counters.polls += 1;
            let count = match self.completions.poll(&mut self.polled[..]) {
                Ok(count) => count,
                Err(error) => {
                    tracing::error!(%error, "an RDMA device has failed");
                    self.lost_note();
                    return taken + 1;
                }
            };
            for at in 0..count {
                let done = self.polled[at];
                match (done.wr_id & ID_RECEIVE, done.wr_id & ID_LANE) {
                    (0, 0) => self.sent(&done),
                    (0, _) => {
                        let key = (done.wr_id & !ID_LANE) >> 32;
                        self.lane_done(key as usize, done.wr_id as u32 as usize, &done);
                    }
                    _ => self.received(&done),
                }
            }
            self.counters.completions += count as u64;
            taken += count;
            if count < POLLED {
                self.emptied += 1;
                break;
            }
        }
        taken
    }

    #[inline]
    pub(super) fn emptied(&self) -> u64 {
        self.emptied
    }

    #[inline]
    pub(super) fn wake(&mut self, place: u32) {
        if self.woken.last() != Some(&place) {
            self.woken.push(place);
        }
    }

    #[inline]
    fn received(&mut self, done: &sys::Wc) {
        let slot = done.wr_id as u32;
        let key = match self.heard.0 == done.qp_num {
            true => Some(self.heard.1),
            false => self.by_number.get(&done.qp_num).copied(),
        };
        let Some(key) = key else {
            // Of a connection that has ended meanwhile.
            return self.slot_return(slot);
        };
        self.heard = (done.qp_num, key);
        let peer = &mut self.peers[key];
        let place = peer.place;
        let by_lane = peer.queue.number() != done.qp_num;
        if done.status != sys::WC_SUCCESS {
            // A lane that ends does not end the connection.
            if !by_lane {
                peer.device_fault_note(RdmaError::of_completion(done.status, done.vendor_err));
                self.wake(place);
            }
            return self.slot_return(slot);
        }
        let immediate = u32::from_be(done.imm_data);
        let kind = (immediate >> 24) as u8;
        let credits = match by_lane {
            true => peer.credits,
            false => peer.credits.saturating_add(immediate & GRANT_MAX),
        };
        let opcode = match by_lane {
            true => sys::WC_RECV_RDMA_WITH_IMM,
            false => sys::WC_RECV,
        };
        let tagged = done.opcode == opcode
            && done.wc_flags & sys::WC_WITH_IMM != 0
            && by_lane == (kind == KIND_IMMEDIATE);
        let wrong = match (tagged, peer.window.arrived(), kind) {
            (false, ..) => Some("a peer sends what carries no credit"),
            (_, false, _) => Some("a peer sends more frames than it has credit for"),
            _ if credits > CREDITS_MAX => Some("a peer gives more credit than anybody has room"),
            (.., KIND_FRAME..=KIND_IMMEDIATE) => None,
            _ => Some("a peer sends what is of no known kind"),
        };
        if let Some(what) = wrong {
            peer.protocol_fault
                .get_or_insert(WireError::Malformed { what });
            self.wake(place);
            return self.slot_return(slot);
        }
        peer.credits = credits;
        let len = done.byte_len;
        match kind {
            KIND_FRAME => peer.inbox.push_back(Arrival {
                slot,
                len,
                immediate: None,
            }),
            KIND_IMMEDIATE => peer.inbox.push_back(Arrival {
                slot,
                len,
                immediate: Some(immediate & GRANT_MAX),
            }),
            KIND_BULK => peer.bulk.push_back(Arrival {
                slot,
                len,
                immediate: None,
            }),
            KIND_CREDIT => {
                peer.window.read();
                self.slot_return(slot);
            }
            _ => self.word_received(key, kind, slot, len as usize),
        }
        self.wake(place);
        if self.peers[key].credit_due || !matches!(kind, KIND_FRAME | KIND_BULK | KIND_IMMEDIATE) {
            self.credit_return(key);
        }
        if self.peers[key].remote.has_words() {
            self.words_push(key);
        }
    }

    fn word_received(&mut self, key: usize, kind: u8, slot: u32, len: usize) {
        let mut bytes = [0; 64];
        let taken = match bytes.get_mut(..len) {
            Some(bytes) => {
                self.receive_slots.read(slot, 0, bytes);
                self.word_take(key, kind, bytes)
            }
            None => Err(WireError::Malformed {
                what: "a word of a peer's is too long",
            }),
        };
        let peer = &mut self.peers[key];
        peer.window.read();
        if let Err(error) = taken {
            peer.protocol_fault.get_or_insert(error);
        }
        self.slot_return(slot);
    }

    /// A send is done, and so are all that were posted before it.
    #[inline]
    fn sent(&mut self, done: &sys::Wc) {
        let key = (done.wr_id >> 32) as usize;
        let number = done.wr_id as u32;
        let Some(peer) = self.peers.get_mut(key) else {
            return;
        };
        // A completion of a connection that has ended, whose key another has got since.
        if peer.queue.number() != done.qp_num {
            return;
        }
        let retired = number.wrapping_add(1).wrapping_sub(peer.retired);
        if retired > peer.under_way() {
            return;
        }
        peer.retired = peer.retired.wrapping_add(retired);
        self.under_way -= retired;
        while let Some((of, slot)) = peer.held.front()
            && peer.retired.wrapping_sub(of.wrapping_add(1)) < u32::MAX / 2
        {
            self.send_free.push(*slot);
            peer.held.pop_front();
        }
        let is_good = done.status == sys::WC_SUCCESS;
        while let Some((of, token)) = peer.ops.front()
            && peer.retired.wrapping_sub(of.wrapping_add(1)) < u32::MAX / 2
        {
            // What comes after a failure has not been done.
            if is_good {
                peer.ops_done.push_back(*token);
            }
            peer.ops.pop_front();
        }
        if !is_good {
            peer.device_fault_note(RdmaError::of_completion(done.status, done.vendor_err));
        }
        let (place, due) = (peer.place, peer.credit_due);
        self.wake(place);
        if due {
            self.credit_return(key);
        }
        if self.peers[key].remote.has_words() {
            self.words_push(key);
        }
    }

    /// The frame's slot is read: it is posted again, and the peer is told when it is worth it.
    #[inline]
    pub(super) fn arrival_done(&mut self, key: usize, slot: u32) {
        let peer = &mut self.peers[key];
        peer.window.read();
        let owes = peer.window.owes();
        self.slot_return(slot);
        if owes {
            self.credit_return(key);
        }
    }

    /// Tells a peer of the credit that it has again, if it is worth a frame.
    fn credit_return(&mut self, key: usize) {
        let spare = self.receives_spare().min(self.receives_shared());
        let peer = &mut self.peers[key];
        peer.credit_due = false;
        if !peer.window.owes() {
            return;
        }
        // Whoever uses its window may have a wider one.
        let target = peer.window.target();
        let by = target
            .min(self.settings.credits_max.saturating_sub(target))
            .min(spare);
        peer.window.widen(by);
        self.promised += by;
        if let Ok(Posted::Busy) = self.frame_send(key, KIND_CREDIT, [&[], &[]], &[], false) {
            self.peers[key].credit_due = true;
        }
    }

    /// Copies bytes of an arrival into private memory.
    #[inline]
    pub(super) fn arrival_read(&mut self, slot: u32, offset: usize, into: &mut [u8]) {
        self.receive_slots.read(slot, offset, into);
        self.counters.copied_bytes += into.len() as u64;
        self.counters.copies += 1;
    }

    /// Before sleeping: whether there is nothing, and the descriptor tells when there is.
    pub(super) fn arm(&mut self) -> bool {
        if !self.armed && !self.lost {
            self.counters.system_calls += 1;
            if let Err(error) = self.completions.notify() {
                tracing::error!(%error, "an RDMA device has failed");
                self.lost_note();
                return false;
            }
            self.armed = true;
        }
        self.poll() == 0 && self.woken.is_empty()
    }

    /// Whether nothing of it works any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// The completion queue's descriptor is ready.
    pub(super) fn events_take(&mut self) {
        let taken = self.completions.events_take();
        self.counters.system_calls += u64::from(taken) + 1;
        self.armed &= taken == 0;
    }

    /// Our port is down: asks every peer for a sign of life, so that channels on which nothing is
    /// under way end, too, if it stays so. The socket's hang-up may be on another network, and
    /// there the peer is well.
    pub(super) fn peers_probe(&mut self) {
        let keys: Vec<_> = self.peers.iter().map(|(key, _)| key).collect();
        for key in keys {
            // The last credit is for giving some.
            if self.peers[key].credits > 1 {
                // A fault is told elsewhere, and without room something is under way.
                let _ = self.frame_send(key, KIND_CREDIT, [&[], &[]], &[], true);
            }
        }
    }

    /// The device says something, maybe of another hub's queue pairs.
    pub(super) fn device_event(&mut self, event: DeviceEvent) {
        match event {
            DeviceEvent::QueuePair { number, .. } => {
                // A lane's end is told by its completions, if anybody needs to know.
                if let Some(key) = self.by_number.get(&number).copied()
                    && self.peers[key].queue.number() == number
                {
                    self.peers[key].device_fault_note(RdmaError::Flushed);
                    self.wake(self.peers[key].place);
                }
            }
            DeviceEvent::Fatal => self.lost_note(),
            // What is under way is tried again until `verbs_dead_after_ms`.
            DeviceEvent::Port { .. } | DeviceEvent::Addresses | DeviceEvent::Other => {}
        }
    }
}
