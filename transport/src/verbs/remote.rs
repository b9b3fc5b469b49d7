//! One-sided operations by the device: gets are RDMA reads, puts RDMA writes.
//!
//! ```text
//!   initiator                                          target
//!     | ask { key }            (the message queue pair)   |  registers the region
//!     |-------------------------------------------------->|
//!     |<--- tell { key, length, address, key, access } ---|
//!     | offer, answer: a queue pair of its own, a lane    |
//!     |== writes and reads over the lane ================>|  its processor does nothing
//!     |<------------------------------------ void { key } |  when the region is closed
//! ```
//!
//! The checks are made here, by what the owner has told once, before a device is asked: so a wrong
//! range or access fails without a packet. The device is the backstop, for a region that was closed
//! and whose `void` is still on its way: the target's device then refuses, which ends the lane it
//! came by. That is why operations have a lane of their own. The operation fails, the others that
//! were under way on it are done again over a new one, and the channel goes on.
//!
//! Until key and lane are known, and for atomics, the endpoint asks the peer by frames.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use slab::Slab;
use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use super::cache::Registered;
use super::fault::RdmaError;
use super::hub::{Hub, INLINE_MAX, KIND_FRAME};
use super::objects::{Path, ProtectionDomain, QueuePair, QueuePairLimits, Region, SharedReceives};
use super::sys;
use super::words::{
    ACCESS_ATOMIC, ACCESS_READ, ACCESS_WRITE, IMMEDIATE_END, KIND_ASK, KIND_IMMEDIATE,
    KIND_LANE_ANSWER, KIND_LANE_OFFER, KIND_TELL, KIND_VOID, LaneWord, Tell, malformed, word_read,
};
use crate::backend::{Posted, WireFault};
use crate::buf::{Buf, BufMut};
use crate::one_sided::{
    self, Access, Completed, Memory, OneSidedError, OneSidedOp, PutBytes, RemoteSlice, Returned,
    Taken, Verb, access_check, op_return,
};
use crate::wire::{FrameHeader, FrameKind, WireError};

/// Regions of a peer's that are remembered.
const KNOWN_MAX: usize = 4096;
/// Words to a peer that wait for room; it gives the room, so more are a violation.
const WORDS_MAX: usize = 1 << 14;
/// Lanes in a row that may end without one operation done.
const LANES_MAX: u32 = 8;
/// Bytes of the largest operation; larger ones are streamed.
const OP_MAX_BYTES: u64 = 1 << 30;
/// A put that is of no pool, and shorter, is copied.
const UNPOOLED_MIN_BYTES: usize = 256 << 10;

/// A region of the peer's, as far as it is known.
#[derive(Clone, Copy)]
enum Known {
    Asked,
    /// It is unknown to the peer, or out of its device's reach.
    ByFrames,
    ByDevice {
        at: u64,
        len: u64,
        device_key: u32,
        access: Access,
    },
}

/// The queue pair that our operations go by.
struct Lane {
    queue: QueuePair,
    offer: u32,
    ready: bool,
    /// Ended by the target's device: nothing more is posted to it.
    broken: bool,
    under_way: u32,
}

/// Where an operation's bytes are on our side.
enum Local {
    /// A slot that small puts are copied to.
    Slot(u32, usize),
    Put(Arc<Registered>, Buf),
    Get(Arc<Registered>, BufMut),
}

struct Op {
    id: u64,
    at: RemoteSlice,
    local: Local,
    immediate: Option<u64>,
    /// The immediate value goes with the bytes, for which a credit was spent.
    tells: bool,
}

/// A word to the peer, besides frames.
struct Word {
    kind: u8,
    len: u8,
    bytes: [u8; 32],
}

/// One connection's part in one-sided operations.
#[derive(Default)]
pub(super) struct Remote {
    /// Queue pairs end first, before the memory that they name.
    lane: Option<Lane>,
    /// The one that the peer's operations come by.
    serving: Option<QueuePair>,
    path: Option<Path>,
    offers: u32,
    /// Lanes that ended since the last operation that was done.
    ended: u32,
    ops: Slab<Op>,
    /// Slots that they hold.
    slots: usize,
    /// Operations that are to be posted (again).
    waiting: VecDeque<usize>,
    /// Puts that are there, and whose target is yet to be told.
    notices: VecDeque<usize>,
    done: VecDeque<Completed>,
    known: HashMap<u64, Known>,
    words: VecDeque<Word>,
}

impl Remote {
    pub(super) fn connected(&mut self, path: &Path) {
        self.path = Some(*path);
    }

    /// The queue pair that the peer's operations come by.
    pub(super) fn serving(&self) -> Option<&QueuePair> {
        self.serving.as_ref()
    }

    /// Its number.
    pub(super) fn serving_number(&self) -> Option<u32> {
        self.serving().map(QueuePair::number)
    }

    /// Sends of the lane that may yet have a completion.
    pub(super) fn under_way(&self) -> u32 {
        self.lane.as_ref().map_or(0, |lane| lane.under_way)
    }

    pub(super) fn slots_held(&self) -> usize {
        self.slots
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.done.is_empty()
    }

    /// Whether something can be done without the peer.
    pub(super) fn is_due(&self) -> bool {
        !self.done.is_empty()
    }

    pub(super) fn has_words(&self) -> bool {
        !self.words.is_empty()
    }

    fn word_push(&mut self, kind: u8, bytes: &[u8]) -> Result<(), WireError> {
        if self.words.len() >= WORDS_MAX {
            return Err(WireError::Malformed {
                what: "a peer asks, and gives no room for answers",
            });
        }
        let mut word = Word {
            kind,
            len: bytes.len() as u8,
            bytes: [0; 32],
        };
        word.bytes[..bytes.len()].copy_from_slice(bytes);
        self.words.push_back(word);
        Ok(())
    }

    /// Ends an operation; its slot, if it had one.
    fn op_end(&mut self, op: usize, outcome: Result<u64, OneSidedError>) -> Option<u32> {
        let Op { id, local, .. } = self.ops.try_remove(op)?;
        let (slot, returned) = match local {
            Local::Slot(slot, _) => {
                self.slots -= 1;
                (Some(slot), Returned::default())
            }
            Local::Put(_, buf) => (
                None,
                Returned {
                    data: None,
                    buf: Some(buf),
                },
            ),
            Local::Get(_, into) => (
                None,
                Returned {
                    data: Some(into),
                    buf: None,
                },
            ),
        };
        self.done.push_back(Completed {
            id,
            outcome,
            returned,
        });
        slot
    }

    /// Ends all with an error, the queue pairs first; what became of the slots.
    pub(super) fn end(&mut self) -> (Vec<Completed>, Vec<u32>) {
        self.lane = None;
        self.serving = None;
        let ops: Vec<usize> = self.ops.iter().map(|(op, _)| op).collect();
        let closed = |op| self.op_end(op, Err(OneSidedError::Closed));
        let slots = ops.into_iter().filter_map(closed).collect();
        (self.done.drain(..).collect(), slots)
    }
}

/// A region of ours that peers' devices may reach.
pub(super) struct Served {
    /// Ends first.
    region: Region,
    memory: Arc<one_sided::Region>,
    at: u64,
    /// Peers that were told.
    told: Vec<usize>,
}

impl Served {
    fn new(domain: &Arc<ProtectionDomain>, memory: Arc<one_sided::Region>) -> io::Result<Self> {
        let at = match &memory.memory {
            Memory::Shared { mapping, .. } => mapping.at,
            Memory::Frozen(buf) => NonNull::from(&**buf).cast(),
        };
        let mut access = 0;
        if memory.access.read {
            access |= sys::ACCESS_REMOTE_READ;
        }
        if memory.access.write {
            access |= sys::ACCESS_REMOTE_WRITE | sys::ACCESS_LOCAL_WRITE;
        }
        // SAFETY: the memory is held until after the region has ended. Shared memory is reached by
        // atomic and volatile copies only, as peers write to it; frozen memory allows only reads.
        let region = unsafe { Region::register(domain, at, memory.len, access) }?;
        Ok(Self {
            region,
            at: at.as_ptr() as u64,
            memory,
            told: Vec::new(),
        })
    }

    fn tell(&self) -> Tell {
        let access = self.memory.access;
        let bit = |is, bit| if is { bit } else { 0 };
        Tell {
            key: U64::new(self.memory.key.0),
            len: U64::new(self.memory.len as u64),
            at: U64::new(self.at),
            device_key: U32::new(self.region.remote_key()),
            access: bit(access.read, ACCESS_READ)
                | bit(access.write, ACCESS_WRITE)
                | bit(access.atomic, ACCESS_ATOMIC),
            native: 1,
            reserved: U16::ZERO,
        }
    }
}

impl Hub {
    /// A peer says something besides frames.
    pub(super) fn word_take(
        &mut self,
        key: usize,
        kind: u8,
        bytes: &[u8],
    ) -> Result<(), WireError> {
        match kind {
            KIND_ASK => self.ask_take(key, word_read::<U64>(bytes)?.get()),
            KIND_TELL => self.tell_take(key, &word_read(bytes)?),
            KIND_VOID => {
                let of = word_read::<U64>(bytes)?.get();
                self.peer_mut(key).remote.known.remove(&of);
                Ok(())
            }
            KIND_LANE_OFFER => self.lane_serve(key, &word_read(bytes)?),
            KIND_LANE_ANSWER => self.lane_connect(key, &word_read(bytes)?),
            _ => Err(malformed("a peer sends what is of no known kind")),
        }
    }

    fn ask_take(&mut self, key: usize, of: u64) -> Result<(), WireError> {
        let not = Tell {
            key: U64::new(of),
            len: U64::ZERO,
            at: U64::ZERO,
            device_key: U32::ZERO,
            access: 0,
            native: 0,
            reserved: U16::ZERO,
        };
        let tell = self.served(of).map_or(not, |served| {
            if !served.told.contains(&key) {
                served.told.push(key);
            }
            served.tell()
        });
        self.peer_mut(key)
            .remote
            .word_push(KIND_TELL, tell.as_bytes())
    }

    /// The region with this key, registered now if it was not; `None` if devices cannot reach it.
    fn served(&mut self, of: u64) -> Option<&mut Served> {
        if !self.serves.contains_key(&of) {
            let memory = self.regions.find(one_sided::RemoteKey(of))?;
            if memory.len == 0 || !(memory.access.read || memory.access.write) {
                return None;
            }
            match Served::new(&self.domain, memory) {
                Ok(served) => drop(self.serves.insert(of, served)),
                Err(error) => {
                    tracing::debug!(%error, "a region is served by frames");
                    return None;
                }
            }
        }
        self.serves.get_mut(&of)
    }

    /// A region is closed: no device reaches it when this returns.
    pub(super) fn region_close(&mut self, of: u64) {
        let Some(served) = self.serves.remove(&of) else {
            return;
        };
        let told = served.told.clone();
        drop(served);
        for key in told {
            if let Some(peer) = self.peer_find(key) {
                // A peer that gives no room for it hears of it from our device.
                let _ = peer.remote.word_push(KIND_VOID, U64::new(of).as_bytes());
                self.words_push(key);
            }
        }
    }

    /// A peer has gone.
    pub(super) fn told_forget(&mut self, key: usize) {
        for served in self.serves.values_mut() {
            served.told.retain(|told| *told != key);
        }
    }

    fn tell_take(&mut self, key: usize, tell: &Tell) -> Result<(), WireError> {
        let known = &mut self.peer_mut(key).remote.known;
        // What was not asked, or is void by now, is of no use.
        let Some(entry @ Known::Asked) = known.get_mut(&tell.key.get()) else {
            return Ok(());
        };
        *entry = match tell.native {
            0 => Known::ByFrames,
            _ => Known::ByDevice {
                at: tell.at.get(),
                len: tell.len.get(),
                device_key: tell.device_key.get(),
                access: Access {
                    read: tell.access & ACCESS_READ != 0,
                    write: tell.access & ACCESS_WRITE != 0,
                    atomic: tell.access & ACCESS_ATOMIC != 0,
                },
            },
        };
        Ok(())
    }

    /// Sends words that wait, as far as there is room.
    pub(super) fn words_push(&mut self, key: usize) {
        while let Some(word) = self.peer_mut(key).remote.words.pop_front() {
            let bytes = &word.bytes[..usize::from(word.len)];
            match self.frame_send(key, word.kind, [bytes, &[]], &[], false) {
                Ok(Posted::Done) => {}
                Ok(Posted::Busy) => {
                    self.peer_mut(key).remote.words.push_front(word);
                    return;
                }
                // The connection is over, which is told elsewhere.
                Err(_) => return,
            }
        }
    }

    fn lane_queue(
        &mut self,
        port: u8,
        access: std::ffi::c_uint,
        receives: Option<&Arc<SharedReceives>>,
    ) -> io::Result<QueuePair> {
        let limits = QueuePairLimits {
            sends: self.settings().sends_max(),
            inline_bytes: INLINE_MAX as u32,
        };
        let queue = QueuePair::new(&self.domain, &self.completions, receives, limits)?;
        queue.init(port, access)?;
        Ok(queue)
    }

    /// A target's: a queue pair for the peer's operations, in place of the one before.
    fn lane_serve(&mut self, key: usize, offer: &LaneWord) -> Result<(), WireError> {
        let ended = Remote {
            serving: self.peer_mut(key).remote.serving.take(),
            ..Remote::default()
        };
        self.serving_forget(&ended);
        drop(ended);
        let Some(path) = self.peer(key).remote.path else {
            return Ok(());
        };
        let sequence = fastrand::u32(..1 << 24);
        let path = Path {
            peer_number: offer.number.get(),
            peer_sequence: offer.sequence.get() & 0xff_ffff,
            sequence,
            ..path
        };
        let access = sys::ACCESS_REMOTE_READ | sys::ACCESS_REMOTE_WRITE | sys::ACCESS_LOCAL_WRITE;
        let receives = Arc::clone(self.receives());
        let queue = self
            .lane_queue(path.port, access, Some(&receives))
            .and_then(|queue| {
                queue.connect(&path)?;
                Ok(queue)
            });
        let remote = &mut self.peer_mut(key).remote;
        match queue {
            Ok(queue) => {
                let answer = LaneWord {
                    offer: offer.offer,
                    number: U32::new(queue.number()),
                    sequence: U32::new(sequence),
                };
                let number = queue.number();
                remote.serving = Some(queue);
                remote.word_push(KIND_LANE_ANSWER, answer.as_bytes())?;
                self.serving_add(key, number);
                Ok(())
            }
            // The peer goes on asking by frames.
            Err(error) => {
                tracing::warn!(%error, "no queue pair for a peer's one-sided operations");
                Ok(())
            }
        }
    }

    /// An initiator's: offers a lane, unless there is one.
    fn lane_open(&mut self, key: usize) -> Result<(), WireFault> {
        let remote = &mut self.peer_mut(key).remote;
        let (None, Some(path)) = (&remote.lane, remote.path) else {
            return Ok(());
        };
        remote.offers += 1;
        let offer = remote.offers;
        // A target that sent by it would take receives that nobody promised to it.
        let queue = self.lane_queue(path.port, sys::ACCESS_LOCAL_WRITE, None)?;
        let sequence = fastrand::u32(..1 << 24);
        let word = LaneWord {
            offer: U32::new(offer),
            number: U32::new(queue.number()),
            sequence: U32::new(sequence),
        };
        let remote = &mut self.peer_mut(key).remote;
        remote.path = Some(Path { sequence, ..path });
        remote.lane = Some(Lane {
            queue,
            offer,
            ready: false,
            broken: false,
            under_way: 0,
        });
        remote.word_push(KIND_LANE_OFFER, word.as_bytes())?;
        self.words_push(key);
        Ok(())
    }

    fn lane_connect(&mut self, key: usize, answer: &LaneWord) -> Result<(), WireError> {
        let remote = &mut self.peer_mut(key).remote;
        let Some(path) = remote.path else {
            return Ok(());
        };
        let offered = |lane: &&mut Lane| lane.offer == answer.offer.get() && !lane.ready;
        if let Some(lane) = remote.lane.as_mut().filter(offered) {
            let connected = lane.queue.connect(&Path {
                peer_number: answer.number.get(),
                peer_sequence: answer.sequence.get() & 0xff_ffff,
                ..path
            });
            match connected {
                Ok(()) => lane.ready = true,
                Err(error) => {
                    tracing::warn!(%error, "a lane for one-sided operations cannot be connected");
                }
            }
        }
        self.ops_post(key);
        Ok(())
    }

    /// Takes an operation, if the peer's region and a lane are known.
    pub(super) fn op_start<'a>(
        &mut self,
        key: usize,
        id: u64,
        op: OneSidedOp<'a>,
    ) -> Result<Taken<'a>, WireFault> {
        let (verb, at) = (op.verb(), op.at());
        if verb == Verb::Atomic || !(1..=OP_MAX_BYTES).contains(&at.len) {
            return Ok(Taken::Unsupported(op));
        }
        if verb == Verb::Get && !self.peer(key).can_read() {
            return Ok(Taken::Unsupported(op));
        }
        let remote = &mut self.peer_mut(key).remote;
        let (len, access) = match remote.known.get(&at.key.0) {
            Some(Known::ByDevice { len, access, .. }) => (*len, *access),
            Some(Known::Asked | Known::ByFrames) => return Ok(Taken::Unsupported(op)),
            None => {
                if remote.known.len() >= KNOWN_MAX && remote.ops.is_empty() {
                    remote.known.clear();
                }
                if remote.known.len() < KNOWN_MAX {
                    remote.known.insert(at.key.0, Known::Asked);
                    remote.word_push(KIND_ASK, U64::new(at.key.0).as_bytes())?;
                    self.words_push(key);
                }
                return Ok(Taken::Unsupported(op));
            }
        };
        if let Err(error) = access_check(verb, at, access, len) {
            return Ok(Taken::Done(Err(error), op_return(op)));
        }
        match &remote.lane {
            None => {
                self.lane_open(key)?;
                return Ok(Taken::Unsupported(op));
            }
            Some(lane) if !lane.ready => return Ok(Taken::Unsupported(op)),
            Some(lane) if lane.broken || !remote.waiting.is_empty() => return Ok(Taken::Busy(op)),
            Some(_) => {}
        }
        if !self.lane_room(key, verb) {
            return Ok(Taken::Busy(op));
        }
        let immediate = match &op {
            OneSidedOp::Put { immediate, .. } => *immediate,
            _ => None,
        };
        let local = match self.op_local(key, op)? {
            Ok(local) => local,
            Err(taken) => return Ok(taken),
        };
        let remote = &mut self.peer_mut(key).remote;
        remote.slots += usize::from(matches!(local, Local::Slot(..)));
        let op = remote.ops.insert(Op {
            id,
            at,
            local,
            immediate,
            tells: false,
        });
        remote.waiting.push_back(op);
        self.ops_post(key);
        match self.peer(key).fault() {
            Some(fault) => Err(fault),
            None => Ok(Taken::Pending),
        }
    }

    /// Makes an operation's bytes reachable for the device.
    fn op_local<'a>(
        &mut self,
        peer: usize,
        op: OneSidedOp<'a>,
    ) -> Result<Result<Local, Taken<'a>>, WireFault> {
        Ok(match op {
            OneSidedOp::Put {
                bytes: PutBytes::Copied(bytes),
                key,
                offset,
                immediate,
            } => match self.send_slot_take(peer)? {
                Some(slot) => {
                    self.slot_write(slot, bytes);
                    Ok(Local::Slot(slot, bytes.len()))
                }
                None => Err(Taken::Busy(OneSidedOp::Put {
                    bytes: PutBytes::Copied(bytes),
                    key,
                    offset,
                    immediate,
                })),
            },
            OneSidedOp::Put {
                bytes: PutBytes::Held(buf),
                key,
                offset,
                immediate,
            } => {
                let registered = match buf.block() {
                    Some(block) => self.cache.block(&block).ok(),
                    None if buf.len() < UNPOOLED_MIN_BYTES => None,
                    // SAFETY: the operation holds the buffer, and drops the registration first.
                    None => unsafe { self.cache.alone(&buf) }.ok(),
                };
                match registered {
                    Some(registered) => Ok(Local::Put(registered, buf)),
                    None => Err(Taken::Unsupported(OneSidedOp::Put {
                        bytes: PutBytes::Held(buf),
                        key,
                        offset,
                        immediate,
                    })),
                }
            }
            OneSidedOp::Get { key, offset, into } => {
                let registered = into.block().and_then(|block| self.cache.block(&block).ok());
                match registered {
                    Some(registered) => Ok(Local::Get(registered, into)),
                    None => Err(Taken::Unsupported(OneSidedOp::Get { key, offset, into })),
                }
            }
            OneSidedOp::Atomic { .. } => Err(Taken::Unsupported(op)),
        })
    }

    fn lane_room(&self, key: usize, verb: Verb) -> bool {
        let remote = &self.peer(key).remote;
        let Some(lane) = &remote.lane else {
            return false;
        };
        let reads = remote.path.map_or(0, |path| u32::from(path.reads_started));
        let most = match verb {
            Verb::Put => lane.queue.limits.sends,
            Verb::Get | Verb::Atomic => reads.min(lane.queue.limits.sends),
        };
        lane.under_way < most && self.completions_spare() > 0
    }

    /// Posts operations that wait.
    fn ops_post(&mut self, key: usize) {
        loop {
            let remote = &self.peer(key).remote;
            let Some(op) = remote.waiting.front().copied() else {
                return;
            };
            if !remote
                .lane
                .as_ref()
                .is_some_and(|lane| lane.ready && !lane.broken)
            {
                return;
            }
            let Some(Op { at, local, .. }) = remote.ops.get(op) else {
                self.peer_mut(key).remote.waiting.pop_front();
                continue;
            };
            let verb = match local {
                Local::Get(..) => Verb::Get,
                Local::Slot(..) | Local::Put(..) => Verb::Put,
            };
            let known = remote.known.get(&at.key.0).copied();
            let Some(Known::ByDevice {
                at: base,
                device_key,
                ..
            }) = known
            else {
                // Its region was closed while it waited.
                self.peer_mut(key).remote.waiting.pop_front();
                self.op_fail(key, op, OneSidedError::Key);
                continue;
            };
            if !self.lane_room(key, verb) {
                return;
            }
            let remote_at = base.wrapping_add(at.offset);
            let piece = self.op_piece(local);
            let told = self.immediate_take(key, op);
            let opcode = match (verb, told) {
                (Verb::Get, _) => sys::WR_RDMA_READ,
                (_, Some(_)) => sys::WR_RDMA_WRITE_WITH_IMM,
                (_, None) => sys::WR_RDMA_WRITE,
            };
            let what = (opcode, piece, told.unwrap_or(0));
            if let Err(error) = self.lane_post(key, op, what, (remote_at, device_key)) {
                tracing::warn!(%error, "a one-sided operation cannot be posted");
                self.peer_mut(key).device_fault_note(RdmaError::Flushed);
                return;
            }
            self.peer_mut(key).remote.waiting.pop_front();
        }
    }

    /// The immediate value to send with an operation's bytes, if it fits there and there is credit
    /// for what it takes at the target: a receive.
    fn immediate_take(&mut self, key: usize, op: usize) -> Option<u32> {
        let has_credit = self.has_room(key, KIND_FRAME);
        let peer = self.peer_mut(key);
        let op = peer.remote.ops.get_mut(op)?;
        let value = op
            .immediate
            .filter(|value| *value < IMMEDIATE_END && has_credit)?;
        op.tells = true;
        peer.credit_spend();
        Some(u32::from(KIND_IMMEDIATE) << 24 | value as u32)
    }

    fn op_piece(&self, local: &Local) -> sys::Sge {
        let of = |registered: &Registered, at: *const u8, len: usize| sys::Sge {
            addr: at as u64,
            length: len as u32,
            lkey: registered.region.local_key(),
        };
        match local {
            Local::Slot(slot, len) => self.slot_piece(*slot, *len),
            Local::Put(registered, buf) => of(registered, buf.as_ptr(), buf.len()),
            Local::Get(registered, into) => of(registered, into.as_ptr(), into.len()),
        }
    }

    /// A completion of the lane's; whether it was one.
    pub(super) fn lane_done(&mut self, key: usize, op: usize, done: &sys::Wc) {
        let Some(peer) = self.peer_find(key) else {
            return;
        };
        let Some(lane) = &mut peer.remote.lane else {
            return;
        };
        if lane.queue.number() != done.qp_num {
            return;
        }
        lane.under_way -= 1;
        let place = peer.place();
        let told = match peer.remote.ops.get_mut(op) {
            Some(op) => std::mem::take(&mut op.tells),
            None => false,
        };
        if told && done.status != sys::WC_SUCCESS {
            // It took no receive.
            peer.credit_regain();
        }
        let remote = &mut peer.remote;
        let mut failed = None;
        match done.status {
            sys::WC_SUCCESS => {
                remote.ended = 0;
                let follows = |op: &Op| op.immediate.is_some() && !told;
                match remote.ops.get(op).is_some_and(follows) {
                    true => remote.notices.push_back(op),
                    false => failed = Some((op, Ok(0))),
                }
            }
            sys::WC_REM_ACCESS_ERR | sys::WC_REM_INV_REQ_ERR | sys::WC_REM_OP_ERR => {
                // What we were told is void.
                if let Some(op) = remote.ops.get(op) {
                    remote.known.remove(&op.at.key.0);
                }
                lane_break(remote);
                failed = Some((op, Err(OneSidedError::Key)));
            }
            sys::WC_WR_FLUSH_ERR => {
                lane_break(remote);
                remote.waiting.push_back(op);
            }
            status => {
                peer.device_fault_note(RdmaError::of_completion(status, done.vendor_err));
            }
        }
        self.send_retired(1);
        if let Some((op, outcome)) = failed {
            self.op_finish(key, op, outcome);
        }
        self.lane_renew(key);
        self.notices_send(key);
        self.ops_post(key);
        self.wake(place);
    }

    /// In place of a lane that has ended comes another, if it is wanted.
    fn lane_renew(&mut self, key: usize) {
        let remote = &mut self.peer_mut(key).remote;
        let over = |lane: &Lane| lane.broken && lane.under_way == 0;
        if !remote.lane.as_ref().is_some_and(over) {
            return;
        }
        remote.lane = None;
        remote.ended += 1;
        // In the order in which they were posted.
        if remote.ended > LANES_MAX {
            self.peer_mut(key).device_fault_note(RdmaError::Flushed);
        } else if let Err(error) = self.lane_open(key) {
            tracing::warn!(%error, "no lane for one-sided operations");
            self.peer_mut(key).device_fault_note(RdmaError::Flushed);
        }
    }

    /// Tells the target of puts that are there, as far as there is room.
    pub(super) fn notices_send(&mut self, key: usize) {
        while let Some(op) = self.peer(key).remote.notices.front().copied() {
            let of = self.peer(key).remote.ops.get(op);
            if let Some((value, len)) = of.and_then(|op| Some((op.immediate?, op.at.len))) {
                let frame = FrameHeader::new(FrameKind::Immediate)
                    .with_id(value)
                    .with_aux(len);
                let head = [frame.as_bytes(), &[]];
                match self.frame_send(key, KIND_FRAME, head, &[], false) {
                    Ok(Posted::Done) => {}
                    // The connection's end is told elsewhere.
                    Ok(Posted::Busy) | Err(_) => return,
                }
            }
            self.peer_mut(key).remote.notices.pop_front();
            self.op_finish(key, op, Ok(0));
        }
    }

    fn op_fail(&mut self, key: usize, op: usize, error: OneSidedError) {
        self.op_finish(key, op, Err(error));
    }

    fn op_finish(&mut self, key: usize, op: usize, outcome: Result<u64, OneSidedError>) {
        let slot = self.peer_mut(key).remote.op_end(op, outcome);
        self.slots_free(slot);
    }

    /// An operation that is over.
    pub(super) fn op_done_next(&mut self, key: usize) -> Option<Completed> {
        self.notices_send(key);
        self.peer_mut(key).remote.done.pop_front()
    }

    /// Ends all operations, for a channel that ends.
    pub(super) fn ops_end(&mut self, key: usize) -> Vec<Completed> {
        let under_way = self.peer(key).remote.under_way();
        let (done, slots) = self.peer_mut(key).remote.end();
        self.send_retired(under_way);
        self.slots_free(slots);
        done
    }

    fn lane_post(
        &mut self,
        key: usize,
        op: usize,
        (opcode, mut piece, immediate): (std::ffi::c_uint, sys::Sge, u32),
        (remote_addr, rkey): (u64, u32),
    ) -> io::Result<()> {
        let mut request = Hub::request_new(Hub::lane_id(key, op), opcode, &mut piece);
        request.wr = sys::Remote {
            rdma: sys::Rdma { remote_addr, rkey },
        };
        let lane = self.peer_mut(key).remote.lane.as_mut();
        let lane = lane.ok_or(io::ErrorKind::NotConnected)?;
        request.imm_data = immediate.to_be();
        let is_inline =
            opcode != sys::WR_RDMA_READ && piece.length <= lane.queue.limits.inline_bytes;
        if is_inline {
            request.send_flags |= sys::SEND_INLINE;
        }
        // SAFETY: request and piece last for the call. The memory is the operation's, which holds
        // it, registered, until its completion or the lane's end.
        unsafe { lane.queue.post(&mut request) }?;
        lane.under_way += 1;
        self.send_counted(is_inline);
        Ok(())
    }
}

fn lane_break(remote: &mut Remote) {
    if let Some(lane) = &mut remote.lane {
        lane.broken = true;
    }
}
