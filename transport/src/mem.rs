//! The in-process backend: queues under locks, written to be read.
//!
//! It is the executable specification of the seam: every promise holds here in the plainest way,
//! and the other backends are held to the same suite.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;

use crate::backend::{
    Posted, PullSegment, PullSource, Pulled, Received, RxBuf, RxPool, Want, Wire, WireFault,
};
use crate::buf::{Buf, BufMut};
use crate::endpoint::{TransportError, Waker};
use crate::one_sided::{OneSidedOp, RegionTable, Taken, op_return, op_run};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::wire::{FrameHeader, FrameKind};

/// Frames that a direction holds before it is `Busy`.
const FRAMES_MAX: usize = 256;
const BULK_MAX_BYTES: usize = 1 << 20;
const DIALS_MAX: usize = 1024;

static LISTENERS: LazyLock<Mutex<HashMap<String, Arc<MemListener>>>> =
    LazyLock::new(|| Mutex::new(HashMap::new()));

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section here leaves the queues whole, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Links that were dialled and not yet picked up by their listener.
pub(crate) struct MemListener {
    name: String,
    dials: Mutex<VecDeque<MemLink>>,
    waker: Waker,
}

impl MemListener {
    pub(crate) fn listen(name: &str, waker: Waker) -> Result<Arc<Self>, TransportError> {
        let mut listeners = lock(&LISTENERS);
        if listeners.contains_key(name) {
            return Err(TransportError::Listen {
                address: format!("mem:{name}"),
                source: std::io::ErrorKind::AddrInUse.into(),
            });
        }
        let listener = Arc::new(Self {
            name: name.into(),
            dials: Mutex::new(VecDeque::new()),
            waker,
        });
        listeners.insert(name.into(), Arc::clone(&listener));
        Ok(listener)
    }

    pub(crate) fn accept(&self) -> Option<MemLink> {
        lock(&self.dials).pop_front()
    }

    pub(crate) fn pending(&self) -> bool {
        !lock(&self.dials).is_empty()
    }

    pub(crate) fn close(&self) {
        lock(&LISTENERS).remove(&self.name);
        lock(&self.dials).clear();
    }
}

/// What one side writes and the other reads.
#[derive(Default)]
struct Lane {
    boot: VecDeque<u8>,
    frames: VecDeque<(FrameHeader, Vec<u8>)>,
    bulk: VecDeque<u8>,
}

/// What can be seen of a lane without its lock: whoever polls an empty lane must not keep its
/// writer out, who would be put to sleep by the kernel for it.
#[derive(Default)]
struct Glance {
    /// Frames in it; changed under the lock.
    frames: AtomicUsize,
    /// Its writer is gone: nothing more comes.
    closed: AtomicBool,
}

#[derive(Default)]
struct Shared {
    lanes: [Mutex<Lane>; 2],
    glances: [CachePadded<Glance>; 2],
    wakers: [Mutex<Option<Waker>>; 2],
    regions: [Mutex<Option<Arc<RegionTable>>>; 2],
    /// What each side lets the other pull, by number.
    exposed: [Mutex<HashMap<u64, Buf>>; 2],
}

/// One side of a link; dropping it is how the other side learns of the end.
pub(crate) struct MemLink {
    shared: Arc<Shared>,
    side: usize,
}

impl MemLink {
    /// Connects to the listener of that name.
    pub(crate) fn dial(
        name: &str,
        waker: Waker,
        regions: Arc<RegionTable>,
    ) -> Result<Self, TransportError> {
        let refused = |kind: std::io::ErrorKind| TransportError::Connect {
            address: format!("mem:{name}"),
            source: kind.into(),
        };
        let listener = lock(&LISTENERS).get(name).cloned();
        let listener = listener.ok_or_else(|| refused(std::io::ErrorKind::ConnectionRefused))?;
        let shared = Arc::new(Shared {
            wakers: [
                Mutex::new(Some(waker)),
                Mutex::new(Some(listener.waker.clone())),
            ],
            regions: [Mutex::new(Some(regions)), Mutex::new(None)],
            ..Shared::default()
        });
        let theirs = Self {
            shared: Arc::clone(&shared),
            side: 1,
        };
        let mut dials = lock(&listener.dials);
        if dials.len() >= DIALS_MAX {
            return Err(refused(std::io::ErrorKind::WouldBlock));
        }
        dials.push_back(theirs);
        drop(dials);
        listener.waker.wake();
        Ok(Self { shared, side: 0 })
    }

    /// Two ends with nobody to wake: for driving a wire by hand.
    pub(crate) fn pair() -> (Self, Self) {
        let shared = Arc::new(Shared::default());
        let end = |side| Self {
            shared: Arc::clone(&shared),
            side,
        };
        (end(0), end(1))
    }

    pub(crate) fn adopt(&self, regions: Arc<RegionTable>) {
        *lock(&self.shared.regions[self.side]) = Some(regions);
    }

    pub(crate) fn peer_regions(&self) -> Option<Arc<RegionTable>> {
        lock(&self.shared.regions[1 - self.side]).clone()
    }

    fn ours(&self) -> MutexGuard<'_, Lane> {
        lock(&self.shared.lanes[self.side])
    }

    fn theirs(&self) -> MutexGuard<'_, Lane> {
        lock(&self.shared.lanes[1 - self.side])
    }

    fn glance_ours(&self) -> &Glance {
        &self.shared.glances[self.side]
    }

    fn glance_theirs(&self) -> &Glance {
        &self.shared.glances[1 - self.side]
    }

    /// Wakes the peer for what it would not look at otherwise: a handshake, or the end.
    fn wake_peer(&self) {
        if let Some(waker) = &*lock(&self.shared.wakers[1 - self.side]) {
            waker.wake();
        }
    }

    /// Wakes the peer if it sleeps; else it polls what was published.
    fn wake_peer_sleeping(&self) {
        if let Some(waker) = &*lock(&self.shared.wakers[1 - self.side]) {
            waker.wake_sleeper();
        }
    }

    pub(crate) fn boot_write(&self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.glance_theirs().closed.load(Ordering::Acquire) {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        self.ours().boot.extend(bytes);
        self.wake_peer();
        Ok(bytes.len())
    }

    pub(crate) fn boot_read(&self, into: &mut [u8]) -> std::io::Result<usize> {
        // Looked at first: what was written before the end is still there.
        let closed = self.glance_theirs().closed.load(Ordering::Acquire);
        let mut lane = self.theirs();
        let count = lane.boot.len().min(into.len());
        if count == 0 {
            return match closed {
                true => Ok(0),
                false => Err(std::io::ErrorKind::WouldBlock.into()),
            };
        }
        for (to, from) in into.iter_mut().zip(lane.boot.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }
}

impl Drop for MemLink {
    fn drop(&mut self) {
        self.glance_ours().closed.store(true, Ordering::Release);
        self.wake_peer();
        *lock(&self.shared.wakers[self.side]) = None;
        *lock(&self.shared.regions[self.side]) = None;
    }
}

/// A connected peer in the same OS process.
pub(crate) struct MemWire {
    link: MemLink,
    eager_max: usize,
    /// Numbers of what was exposed so far.
    exposures: u64,
    pulls: VecDeque<Pull>,
}

/// A payload that is pulled: the parts that are left, and how much is there.
struct Pull {
    id: u64,
    parts: VecDeque<Buf>,
    into: BufMut,
    got: usize,
}

impl MemWire {
    pub(crate) fn new(link: MemLink, eager_max: usize) -> Self {
        Self {
            link,
            eager_max,
            exposures: 0,
            pulls: VecDeque::new(),
        }
    }
}

impl Wire for MemWire {
    fn send_frame(
        &mut self,
        header: &FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault> {
        if self.link.glance_theirs().closed.load(Ordering::Acquire) {
            // What the peer said before it went is read first.
            return Ok(Posted::Busy);
        }
        let frames = &self.link.glance_ours().frames;
        if frames.load(Ordering::Acquire) >= FRAMES_MAX {
            return Ok(Posted::Busy);
        }
        let mut bytes = user_header.to_vec();
        for part in payload {
            bytes.extend_from_slice(part);
        }
        debug_assert!(bytes.len() <= self.eager_max + user_header.len());
        let mut lane = self.link.ours();
        lane.frames.push_back((*header, bytes));
        frames.fetch_add(1, Ordering::Release);
        drop(lane);
        self.link.wake_peer_sleeping();
        Ok(Posted::Done)
    }

    fn recv_frame(&mut self, pool: &mut RxPool) -> Result<Option<Received>, WireFault> {
        let glance = self.link.glance_theirs();
        // Looked at first: what was sent before the end is still there.
        let closed = glance.closed.load(Ordering::Acquire);
        if glance.frames.load(Ordering::Acquire) == 0 {
            return match closed {
                true => Err(WireFault::Dead),
                false => Ok(None),
            };
        }
        let mut lane = self.link.theirs();
        let Some((header, bytes)) = lane.frames.pop_front() else {
            return Ok(None);
        };
        let was_full = glance.frames.fetch_sub(1, Ordering::Release) == FRAMES_MAX;
        drop(lane);
        if was_full {
            self.link.wake_peer_sleeping();
        }
        let mut buf = pool.take();
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(Some(Received { header, buf, at: 0 }))
    }

    fn recycle(&mut self, buf: RxBuf, pool: &mut RxPool) {
        pool.give(buf);
    }

    fn bulk_write(&mut self, bytes: &[u8]) -> Result<usize, WireFault> {
        let mut lane = self.link.ours();
        let count = bytes.len().min(BULK_MAX_BYTES - lane.bulk.len());
        lane.bulk.extend(&bytes[..count]);
        drop(lane);
        if count > 0 {
            self.link.wake_peer_sleeping();
        }
        Ok(count)
    }

    fn bulk_read(&mut self, into: &mut [u8]) -> Result<usize, WireFault> {
        let mut lane = self.link.theirs();
        let count = lane.bulk.len().min(into.len());
        let (front, back) = lane.bulk.as_slices();
        let from_front = count.min(front.len());
        into[..from_front].copy_from_slice(&front[..from_front]);
        into[from_front..count].copy_from_slice(&back[..count - from_front]);
        lane.bulk.drain(..count);
        drop(lane);
        if count > 0 {
            self.link.wake_peer_sleeping();
        }
        Ok(count)
    }

    fn arm(&mut self, want: Want) -> Result<bool, WireFault> {
        let glance = self.link.glance_theirs();
        let there = glance.frames.load(Ordering::Acquire) > 0
            || glance.closed.load(Ordering::Acquire)
            || !self.pulls.is_empty()
            || (want.bulk_in && !self.link.theirs().bulk.is_empty());
        let frames = self.link.glance_ours().frames.load(Ordering::Acquire);
        let room = (want.room && frames < FRAMES_MAX)
            || (want.bulk_room && self.link.ours().bulk.len() < BULK_MAX_BYTES);
        Ok(!there && !room)
    }

    fn expose(&mut self, buf: &Buf) -> Option<PullSource> {
        self.exposures += 1;
        let mut source = [0; size_of::<PullSource>()];
        source[..8].copy_from_slice(&self.exposures.to_le_bytes());
        let exposed = &self.link.shared.exposed[self.link.side];
        lock(exposed).insert(self.exposures, buf.clone());
        Some(source)
    }

    fn withdraw(&mut self, source: &PullSource) {
        let exposed = &self.link.shared.exposed[self.link.side];
        lock(exposed).remove(&source_number(source));
    }

    fn pull_start(
        &mut self,
        id: u64,
        segments: &[PullSegment],
        into: BufMut,
    ) -> Result<Result<(), BufMut>, WireFault> {
        let exposed = lock(&self.link.shared.exposed[1 - self.link.side]);
        let part = |segment: &PullSegment| {
            let buf = exposed.get(&source_number(&segment.source))?;
            (buf.len() as u64 == segment.len).then(|| buf.clone())
        };
        let Some(parts) = segments.iter().map(part).collect() else {
            return Ok(Err(into));
        };
        self.pulls.push_back(Pull {
            id,
            parts,
            into,
            got: 0,
        });
        Ok(Ok(()))
    }

    fn pull_poll(&mut self, budget: usize) -> Result<(usize, Option<Pulled>), WireFault> {
        let Some(pull) = self.pulls.front_mut() else {
            return Ok((0, None));
        };
        let mut moved = 0;
        while let Some(part) = pull.parts.pop_front() {
            let count = part.len().min(budget - moved);
            pull.into[pull.got..pull.got + count].copy_from_slice(&part[..count]);
            pull.got += count;
            moved += count;
            if count < part.len() {
                pull.parts.extend(part.slice(count..part.len()));
                pull.parts.rotate_right(1);
                // The next one's turn, lest a long one keep it waiting.
                self.pulls.rotate_left(1);
                return Ok((moved, None));
            }
        }
        let pulled = self.pulls.pop_front().map(|pull| Pulled {
            id: pull.id,
            into: pull.into,
            whole: true,
        });
        Ok((moved, pulled))
    }

    fn works(&self) -> bool {
        !self.pulls.is_empty()
    }

    fn one_sided<'a>(&mut self, _id: u64, op: OneSidedOp<'a>) -> Result<Taken<'a>, WireFault> {
        let immediate = match &op {
            OneSidedOp::Put { immediate, .. } => *immediate,
            _ => None,
        };
        // The room is looked for first, so that what cannot be told is not done either.
        let frames = &self.link.glance_ours().frames;
        if immediate.is_some() && frames.load(Ordering::Acquire) >= FRAMES_MAX {
            return Ok(Taken::Busy(op));
        }
        let Some(regions) = self.link.peer_regions() else {
            return Ok(Taken::Unsupported(op));
        };
        let at = op.at();
        let region = match regions.check(op.verb(), at) {
            Ok(region) => region,
            Err(error) => return Ok(Taken::Done(Err(error), op_return(op))),
        };
        let (value, returned) = op_run(&region, op);
        if let Some(immediate) = immediate {
            let frame = FrameHeader::new(FrameKind::Immediate)
                .with_id(immediate)
                .with_aux(at.len);
            // Only this side fills its lane, so the room is still there.
            let _ = self.send_frame(&frame, &[], &[])?;
        }
        Ok(Taken::Done(Ok(value), returned))
    }
}

fn source_number(source: &PullSource) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&source[..8]);
    u64::from_le_bytes(number)
}
