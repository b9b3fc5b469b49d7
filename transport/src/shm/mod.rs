//! Shared memory: rings in a segment that both sides map, and a Unix socket beside it.
//!
//! ```text
//!   dialler                     segment (memfd)                      listener
//!      | -- small ring 0, large ring 0, bulk ring 0 ------------------> |
//!      | <- small ring 1, large ring 1, bulk ring 1 ------------------- |
//!      | <= Unix socket: handshake, descriptors; then doorbell, hang-up |
//!      | <- life page of the listener, life page of the dialler ------> |
//! ```
//!
//! A channel starts with rings of one page. When one is full, or a frame needs more than a quarter
//! of it, the writer posts a marker there and goes on in the large ring; nothing is lost or
//! reordered, and a channel that stays small stays cheap.
//!
//! Who sleeps says so by a flag in the segment, and is woken by a byte on the socket: `sleep.rs`.
//!
//! Peers of one application also reach one another's memory: receivers copy large messages from
//! the sender's buffers (`pull.rs`), and one-sided operations are loads and stores (`direct.rs`).
//! The descriptors for that come over the socket (`socket.rs`), and mappings are kept (`maps.rs`).
#![allow(unsafe_code)]

mod attach;
pub mod bare;
mod bare_ring;
mod bulk;
mod direct;
mod fuzz;
#[cfg(all(test, not(praas_loom)))]
mod golden;
pub(crate) mod life;
mod maps;
mod pull;
mod ring;
mod segment;
mod sleep;
mod socket;
mod spinners;
#[cfg(all(test, not(praas_loom)))]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use mio::net::UnixStream;

pub use self::attach::peer_ids;
pub(crate) use self::attach::peer_process;
use self::attach::{Attach, attach_check};
use self::bulk::{BulkReader, BulkWriter, SegmentBulk};
use self::direct::{Direct, Near, Owner, Regions};
pub use self::fuzz::fuzz_shm;
use self::life::{LifeWatch, death_fence, gone_seen, gone_tell};
pub(crate) use self::maps::MapBudget;
use self::maps::Maps;
use self::pull::{Exposed, Pulls};
use self::ring::{GROWN_TWICE, GrowingReader, GrowingWriter, MARKER_KIND, lines_for};
pub(crate) use self::segment::Layout;
use self::segment::{SMALL_RING_BYTES, SegmentLines, Word, segment_create, segment_open};
use self::sleep::{flag_lower, flag_raise, sleep_fence, sleeper_take};
pub use self::socket::fuzz_socket;
use self::socket::{Heard, Socket, SocketMessage};
pub(crate) use self::spinners::{Spinner, SpinnerPage};
use crate::backend::{
    Posted, PullSegment, PullSource, Pulled, RX_BYTES, Received, RxBuf, RxPool, Want, Wire,
    WireFault,
};
use crate::buf::file::BlockFile;
use crate::buf::mapping::Mapping;
use crate::buf::{Buf, BufMut};
use crate::config::TransportConfig;
use crate::one_sided::{Completed, OneSidedOp, RegionTable, Taken};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::wire::{FrameHeader, FrameKind, WireError};

/// Bodies above this go to the large ring.
const SMALL_BODY_MAX: usize = SMALL_RING_BYTES / 4;
/// Empty polls between two looks at the peer's life word.
const LIFE_POLLS: u32 = 64;
/// Rounds of work between two looks at the socket, while answers or questions may come there.
const SOCKET_ROUNDS: u32 = 16;
/// Messages that are taken from the socket before frames get their turn.
const SOCKET_MESSAGES: usize = 64;

/// How large messages go over shared memory here, and why not better.
pub fn shm_describe(config: &TransportConfig) -> String {
    let rules = config.file_rules();
    let mapped = match rules {
        None => "buffers are private (shm_expose)".to_owned(),
        Some(rules) => match BlockFile::create(4096, 0, rules) {
            Ok(_) => format!(
                "buffers up to {} bytes are copied once",
                rules.block_max_bytes
            ),
            Err(error) => format!("buffers are private: {error}"),
        },
    };
    let private = match config.shm_attach.then(attach_check) {
        Some(Ok(())) => "private memory is read by the kernel".to_owned(),
        Some(Err(why)) => format!("private memory is copied twice: {why}"),
        None => "private memory is copied twice (shm_attach)".to_owned(),
    };
    format!("{mapped}; {private}")
}

/// What a channel needs to know for sharing more memory than its segment.
pub(crate) struct ShmSharing {
    /// Whether the peer is of our application, so that each may see the other's memory.
    pub(crate) trusted: bool,
    /// The pool whose files the peer may see.
    pub(crate) pool: u64,
    /// From which size on private memory is read by the kernel; never if there is none.
    pub(crate) attach_min_bytes: Option<usize>,
    /// Up to which size, unless the sender sleeps.
    pub(crate) attach_max_bytes: usize,
    pub(crate) budget: Arc<MapBudget>,
    pub(crate) regions: Arc<RegionTable>,
}

/// Memory of both sides, besides the segment.
struct Sharing {
    trusted: bool,
    pool: u64,
    attach_max_bytes: usize,
    exposed: Exposed,
    pulls: Pulls,
    regions: Regions,
    owner: Owner,
    /// Rounds of work so far.
    rounds: u32,
}

impl Sharing {
    fn new(sharing: ShmSharing, socket: &Socket) -> Self {
        // Root lets others connect, and they it, but what either has in memory is its own.
        let own = rustix::process::geteuid();
        let one_user = peer_process(socket.stream()).is_ok_and(|peer| peer.user == own);
        let trusted = sharing.trusted && one_user;
        let attach_min_bytes = sharing.attach_min_bytes.filter(|_| trusted);
        let attach = match attach_min_bytes {
            Some(_) => Attach::new(socket.stream()),
            None => Attach::none(),
        };
        Self {
            trusted,
            pool: sharing.pool,
            attach_max_bytes: sharing.attach_max_bytes,
            exposed: Exposed::new(attach_min_bytes),
            pulls: Pulls::new(Maps::new(sharing.budget), attach),
            regions: Regions::default(),
            owner: Owner::new(sharing.regions),
            rounds: 0,
        }
    }
}

/// Whether this process is registered for expedited global membarriers.
pub(crate) fn membarrier_registered() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED))
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call takes integers only and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// The memory of a channel, before it is a wire.
pub(crate) struct ShmMemory {
    segment: Arc<Mapping>,
    layout: Layout,
}

impl ShmMemory {
    /// Makes the segment; the descriptor is for the peer.
    pub(crate) fn create(layout: Layout) -> io::Result<(OwnedFd, Self)> {
        let (fd, mapping) = segment_create(layout)?;
        Ok((
            fd,
            Self {
                segment: Arc::new(mapping),
                layout,
            },
        ))
    }

    /// Maps the segment that the peer made.
    pub(crate) fn open(fd: OwnedFd, layout: Layout) -> io::Result<Self> {
        Ok(Self {
            segment: Arc::new(segment_open(fd, layout)?),
            layout,
        })
    }
}

/// The bytes in Accept that tell the dialler how the segment is laid out.
pub(crate) fn layout_encode(layout: Layout) -> Vec<u8> {
    let mut out = (layout.ring_bytes as u64).to_le_bytes().to_vec();
    out.extend_from_slice(&(layout.bulk_bytes as u64).to_le_bytes());
    out
}

/// Reads what [`layout_encode`] wrote.
pub(crate) fn layout_decode(bytes: &[u8]) -> Result<Layout, WireError> {
    let wrong = WireError::Malformed {
        what: "the segment's layout is out of range",
    };
    let (ring, rest) = bytes.split_first_chunk::<8>().ok_or(wrong.clone())?;
    let bulk: &[u8; 8] = rest.try_into().map_err(|_| wrong.clone())?;
    let (ring, bulk) = (u64::from_le_bytes(*ring), u64::from_le_bytes(*bulk));
    let good = |bytes: u64| bytes.is_power_of_two() && (8 << 10..=64 << 20).contains(&bytes);
    match good(ring) && good(bulk) {
        true => Ok(Layout {
            ring_bytes: ring as usize,
            bulk_bytes: bulk as usize,
        }),
        false => Err(wrong),
    }
}

/// A connected peer on the same host.
pub(crate) struct ShmWire {
    socket: Socket,
    sharing: Box<Sharing>,
    /// More messages may be on the socket, though it will not tell again.
    socket_more: bool,
    /// There may be work besides frames: said by whatever may make some, taken back by the turn
    /// that finds none. It is asked for in every round, and work is rare.
    busy: bool,
    life: LifeWatch,
    segment: Arc<Mapping>,
    layout: Layout,
    /// The direction we write; we read the other one.
    direction: usize,
    tx: GrowingWriter<SegmentLines>,
    rx: GrowingReader<SegmentLines>,
    bulk_tx: BulkWriter<SegmentBulk>,
    bulk_rx: BulkReader<SegmentBulk>,
    /// Whether both sides are registered for membarriers, so that fences are the sleeper's.
    barrier: bool,
    armed: bool,
    hung_up: bool,
    polls: u32,
}

impl ShmWire {
    /// A wire over the socket of the handshake, behind which `early` was read.
    pub(crate) fn new(
        (socket, early): (UnixStream, &[u8]),
        life: OwnedFd,
        memory: ShmMemory,
        dialler: bool,
        barrier: bool,
        sharing: ShmSharing,
    ) -> io::Result<Self> {
        let ShmMemory { segment, layout } = memory;
        let socket = Socket::new(socket, early).map_err(io::Error::other)?;
        let direction = usize::from(!dialler);
        let small = |direction| SegmentLines::small(&segment, layout, direction);
        let large = |direction| SegmentLines::large(&segment, layout, direction);
        let mut wire = Self {
            tx: GrowingWriter::new(small(direction), large(direction), SMALL_BODY_MAX),
            rx: GrowingReader::new(small(1 - direction), large(1 - direction)),
            bulk_tx: BulkWriter::new(SegmentBulk::new(&segment, layout, direction)),
            bulk_rx: BulkReader::new(SegmentBulk::new(&segment, layout, 1 - direction)),
            sharing: Box::new(Sharing::new(sharing, &socket)),
            socket,
            socket_more: false,
            busy: true,
            life: LifeWatch::new(life)?,
            segment,
            layout,
            direction,
            barrier,
            armed: false,
            hung_up: false,
            polls: 0,
        };
        // A hang-up during the handshake rang no doorbell of ours.
        if let Err(error) = wire.ready(false) {
            return Err(io::Error::other(error.to_string()));
        }
        Ok(wire)
    }

    #[inline]
    fn word(&self, direction: usize, word: Word) -> usize {
        self.layout.word_at(direction, word)
    }

    /// Rings the peer's doorbell if it sleeps for `word`, which is what we just satisfied.
    #[inline]
    fn wake(&mut self, direction: usize, word: Word) -> Result<(), WireFault> {
        let flag = self.flag(direction, word);
        match sleeper_take(flag, self.barrier) {
            true => self.ring_doorbell(),
            false => Ok(()),
        }
    }

    #[cold]
    fn ring_doorbell(&mut self) -> Result<(), WireFault> {
        self.hung_up |= !self.socket.ring()?;
        Ok(())
    }

    /// Whether there is anything to do besides frames.
    fn has_work(&self) -> bool {
        let sharing = &*self.sharing;
        self.socket_more
            || self.socket.waits()
            || !sharing.pulls.is_empty()
            || !sharing.exposed.is_empty()
            || sharing.exposed.owes()
            || sharing.regions.is_busy()
            || sharing.regions.asks()
    }

    /// A turn of pulls, or of long one-sided operations.
    fn pull_turn(&mut self, budget: usize) -> Result<(usize, Option<Pulled>), WireFault> {
        let sharing = &mut *self.sharing;
        sharing.rounds = sharing.rounds.wrapping_add(1);
        let rounds = sharing.rounds;
        if rounds.is_multiple_of(SOCKET_ROUNDS) {
            if sharing.exposed.owes() {
                sharing.exposed.freed_tell(&mut self.socket)?;
            }
            self.ready(false)?;
        }
        // By turns, so that neither pulls nor operations wait for the others' end.
        if rounds.is_multiple_of(2) {
            let moved = self.regions_poll(budget)?;
            if moved > 0 {
                return Ok((moved, None));
            }
        }
        let (pulls, life) = (&mut self.sharing.pulls, &self.life);
        match pulls.poll(budget, life, &mut self.socket)? {
            (0, None) => Ok((self.regions_poll(budget)?, None)),
            // Its buffers may have been used again while we copied. What it said before is read,
            // and then the channel ends.
            (bytes, Some(pulled)) if pulled.whole && self.peer_gone() => {
                self.hung_up = true;
                Ok((bytes, None))
            }
            pulled => Ok(pulled),
        }
    }

    /// Takes what is on the socket.
    fn socket_read(&mut self) -> Result<(), WireFault> {
        self.busy = true;
        self.socket.flush()?;
        for _ in 0..SOCKET_MESSAGES {
            match self.socket.receive()? {
                Heard::Message(message, descriptor) => self.heard(message, descriptor)?,
                Heard::Nothing => {
                    self.socket_more = false;
                    return Ok(());
                }
                Heard::End => {
                    self.hung_up = true;
                    self.socket_more = false;
                    return Ok(());
                }
            }
        }
        self.socket_more = true;
        Ok(())
    }

    fn heard(
        &mut self,
        message: SocketMessage,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), WireFault> {
        let (sharing, socket) = (&mut *self.sharing, &mut self.socket);
        let maps = &mut sharing.pulls.maps;
        match (message, descriptor) {
            (SocketMessage::FileWanted { file }, _) => sharing.exposed.wanted(file, socket)?,
            (SocketMessage::RegionWanted { key }, _) if !sharing.trusted => {
                socket.send(SocketMessage::RegionRefused { key }, None)?;
            }
            (SocketMessage::RegionWanted { key }, _) => {
                let (owner, exposed) = (&mut sharing.owner, &mut sharing.exposed);
                owner.wanted(key, sharing.pool, exposed, socket)?;
            }
            (SocketMessage::File { file, bytes }, Some(fd)) => {
                sharing.pulls.file(file, fd, bytes)?;
            }
            (SocketMessage::FileGone { file }, _) => sharing.pulls.file_gone(file),
            (SocketMessage::Voids { bytes }, Some(fd)) => {
                sharing.regions.words(fd, bytes, maps)?;
            }
            (SocketMessage::Region(told), Some(fd)) => sharing.regions.region(told, fd, maps)?,
            (SocketMessage::RegionPrivate { told, address }, _) => {
                let reads = sharing.pulls.attach.is_open();
                sharing.regions.region_private(told, address, reads)?;
            }
            (SocketMessage::RegionRefused { key }, _) => sharing.regions.refused(key)?,
            // The process has as many descriptors as it may: it goes on without.
            (SocketMessage::File { file, .. }, None) => sharing.pulls.file_gone(file),
            (SocketMessage::Region(told), None) => sharing.regions.refused(told.key)?,
            (SocketMessage::AttachRefused, _) => sharing.exposed.attach_refused(),
            // The doorbell; and open words without which regions are not reached directly.
            _ => {}
        }
        Ok(())
    }

    /// Tells the peer of a put whose bytes are there; false if there is no room.
    fn immediate_send(&mut self, value: u64, len: u64) -> Result<bool, WireFault> {
        let frame = FrameHeader::new(FrameKind::Immediate);
        let frame = frame.with_id(value).with_aux(len);
        Ok(self.send_frame(&frame, &[], &[])? == Posted::Done)
    }

    /// Goes on with long one-sided operations: bytes moved.
    #[inline]
    fn regions_poll(&mut self, budget: usize) -> Result<usize, WireFault> {
        match self.sharing.regions.has_longs() {
            true => self.regions_work(budget),
            false => Ok(0),
        }
    }

    #[inline(never)]
    fn regions_work(&mut self, budget: usize) -> Result<usize, WireFault> {
        let Sharing { regions, pulls, .. } = &mut *self.sharing;
        let near = Near {
            attach: &mut pulls.attach,
            life: &self.life,
        };
        let (moved, tell) = regions.poll(budget, near)?;
        if let Some((value, len)) = tell
            && self.immediate_send(value, len)?
        {
            self.sharing.regions.told();
        }
        Ok(moved)
    }

    #[inline]
    fn body_max(&self) -> usize {
        let ring = match self.rx.grown() {
            true => self.layout.ring_bytes / 2,
            false => SMALL_BODY_MAX,
        };
        ring.min(RX_BYTES)
    }

    /// The next frame in the ring, if any, without asking whether the peer lives.
    #[inline(always)]
    fn take(&mut self, pool: &mut RxPool, into: &mut Received) -> Result<bool, WireFault> {
        if !self.rx.ring.ready() {
            return Ok(false);
        }
        let mut bytes = [0; 32];
        self.rx.ring.header(&mut bytes);
        match bytes[0] {
            MARKER_KIND => self.take_large(pool, into),
            _ => self.take_frame(bytes, pool, into),
        }
    }

    /// Goes on in the large ring.
    #[cold]
    #[inline(never)]
    fn take_large(&mut self, pool: &mut RxPool, into: &mut Received) -> Result<bool, WireFault> {
        self.rx.grow()?;
        if !self.rx.ring.ready() {
            return Ok(false);
        }
        let mut bytes = [0; 32];
        self.rx.ring.header(&mut bytes);
        match bytes[0] {
            MARKER_KIND => Err(GROWN_TWICE.into()),
            _ => self.take_frame(bytes, pool, into),
        }
    }

    /// Takes the frame whose header was copied out.
    #[inline(always)]
    fn take_frame(
        &mut self,
        bytes: [u8; 32],
        pool: &mut RxPool,
        into: &mut Received,
    ) -> Result<bool, WireFault> {
        let (kind, header) = FrameHeader::decode(&bytes)?;
        let user_header = usize::from(header.uhdr_len);
        let limit = self.body_max();
        let payload = header.body_len(kind);
        if payload > (limit - user_header) as u64 {
            let what = "eager payload";
            return Err(WireError::TooLong {
                what,
                len: payload,
                limit: limit as u64,
            }
            .into());
        }
        let body = user_header + payload as usize;
        if into.buf.is_empty() {
            into.buf = pool.take();
        }
        self.rx.ring.body(&mut into.buf[..body]);
        if self.rx.ring.advance(body) {
            self.wake(1 - self.direction, Word::WriterSleeps)?;
        }
        (into.header, into.at) = (header, 0);
        Ok(true)
    }

    /// Nothing was there: is there anybody? A dead peer's last frames are read first.
    #[inline]
    fn take_empty(&mut self, pool: &mut RxPool, into: &mut Received) -> Result<bool, WireFault> {
        self.polls = self.polls.wrapping_add(1);
        if !self.hung_up && !self.polls.is_multiple_of(LIFE_POLLS) {
            return Ok(false);
        }
        // Files are freed elsewhere, and a doorbell may wait for room on the socket.
        self.busy |= self.has_work();
        if !self.hung_up && !self.life.dead() {
            return Ok(false);
        }
        self.take_last(pool, into)
    }

    #[cold]
    #[inline(never)]
    fn take_last(&mut self, pool: &mut RxPool, into: &mut Received) -> Result<bool, WireFault> {
        death_fence();
        match self.take(pool, into)? {
            true => Ok(true),
            false => Err(WireFault::Dead),
        }
    }

    /// As [`Wire::recv_frame`], into a place that is there already and keeps its buffer: a frame
    /// is then not moved on its way to whoever handles it.
    #[inline(always)]
    pub(crate) fn recv_into(
        &mut self,
        pool: &mut RxPool,
        into: &mut Received,
    ) -> Result<bool, WireFault> {
        match self.take(pool, into)? {
            true => Ok(true),
            false => self.take_empty(pool, into),
        }
    }

    #[inline]
    fn flag(&self, direction: usize, word: Word) -> &AtomicU32 {
        self.segment.word32(self.word(direction, word))
    }

    /// Whether the peer has ended the channel, and so may use the memory again that we fetch from.
    fn peer_gone(&self) -> bool {
        gone_seen(self.flag(1 - self.direction, Word::WriterGone))
    }

    fn flags_lower(&self) {
        flag_lower(self.flag(1 - self.direction, Word::ReaderSleeps));
        flag_lower(self.flag(self.direction, Word::WriterSleeps));
    }
}

impl Drop for ShmWire {
    fn drop(&mut self) {
        // Before whoever sent buffers has them back.
        gone_tell(self.flag(self.direction, Word::WriterGone));
    }
}

impl Wire for ShmWire {
    #[inline(always)]
    fn send_frame(
        &mut self,
        header: &FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault> {
        let body = user_header.len() + payload.iter().map(|part| part.len()).sum::<usize>();
        if !self.tx.room_for(body)? {
            return Ok(Posted::Busy);
        }
        let header: &[u8; 32] = zerocopy::transmute_ref!(header);
        self.tx.ring.publish(header, user_header, payload);
        self.wake(self.direction, Word::ReaderSleeps)?;
        Ok(Posted::Done)
    }

    fn recv_frame(&mut self, pool: &mut RxPool) -> Result<Option<Received>, WireFault> {
        let mut received = Received::default();
        let there = self.recv_into(pool, &mut received)?;
        Ok(there.then_some(received))
    }

    #[inline]
    fn recycle(&mut self, buf: RxBuf, pool: &mut RxPool) {
        pool.give(buf);
    }

    fn bulk_write(&mut self, bytes: &[u8]) -> Result<usize, WireFault> {
        let written = self.bulk_tx.write(bytes)?;
        if written > 0 {
            self.wake(self.direction, Word::ReaderSleeps)?;
        }
        Ok(written)
    }

    fn bulk_read(&mut self, into: &mut [u8]) -> Result<usize, WireFault> {
        let mut read = 0;
        while read < into.len() {
            let (count, told) = self.bulk_rx.read(&mut into[read..])?;
            if told {
                self.wake(1 - self.direction, Word::WriterSleeps)?;
            }
            if count == 0 {
                break;
            }
            read += count;
        }
        Ok(read)
    }

    fn arm(&mut self, want: Want) -> Result<bool, WireFault> {
        if self.hung_up {
            return Ok(false);
        }
        let sharing = &mut *self.sharing;
        if sharing.exposed.owes() {
            sharing.exposed.freed_tell(&mut self.socket)?;
        }
        sharing.regions.void_forget();
        let room = want.room || sharing.regions.waits_for_room();
        self.rx.ring.publish();
        self.wake(1 - self.direction, Word::WriterSleeps)?;
        flag_raise(self.flag(1 - self.direction, Word::ReaderSleeps));
        if room || want.bulk_room {
            flag_raise(self.flag(self.direction, Word::WriterSleeps));
        }
        sleep_fence(self.barrier);
        // A frame needs room for the largest body, so that what was refused surely fits.
        let largest = match self.tx.grown() {
            true => lines_for((self.layout.ring_bytes / 2).min(RX_BYTES)),
            false => 1,
        };
        let there = self.rx.ring.ready()
            || self.life.dead()
            || self.socket_more
            || self.sharing.pulls.ready()
            || self.sharing.regions.ready()
            || (want.bulk_in && self.bulk_rx.there()? > 0)
            || (room && self.tx.ring.room(largest)?)
            || (want.bulk_room && self.bulk_tx.room()? > 0);
        if there {
            self.flags_lower();
        }
        self.armed = !there;
        Ok(!there)
    }

    fn ready(&mut self, _bulk: bool) -> Result<(), WireFault> {
        if self.armed {
            self.armed = false;
            self.flags_lower();
        }
        self.socket_read()
    }

    fn expose(&mut self, buf: &Buf) -> Option<PullSource> {
        self.busy = true;
        let sharing = &mut *self.sharing;
        match sharing.trusted {
            true => sharing.exposed.expose(buf, sharing.pool),
            false => None,
        }
    }

    fn withdraw(&mut self, source: &PullSource) {
        self.busy = true;
        self.sharing.exposed.withdraw(source);
    }

    fn peer_spare(&mut self) {
        self.sharing.attach_max_bytes = usize::MAX;
    }

    fn pull_start(
        &mut self,
        id: u64,
        segments: &[PullSegment],
        into: BufMut,
    ) -> Result<Result<(), BufMut>, WireFault> {
        // Two processors copy twice in less time than the kernel copies once with one of them; but
        // a sender that sleeps had better not be woken for every piece.
        let flag = self.flag(self.direction, Word::ReaderSleeps);
        let streams =
            into.len() > self.sharing.attach_max_bytes && flag.load(Ordering::Relaxed) == 0;
        if !self.sharing.trusted || (streams && pull::any_private(segments)) {
            return Ok(Err(into));
        }
        self.busy = true;
        let pulls = &mut self.sharing.pulls;
        pulls.start(id, segments, into, &mut self.socket)
    }

    fn pull_poll(&mut self, budget: usize) -> Result<(usize, Option<Pulled>), WireFault> {
        let pulled = self.pull_turn(budget)?;
        self.busy = self.has_work();
        Ok(pulled)
    }

    fn one_sided<'a>(&mut self, id: u64, op: OneSidedOp<'a>) -> Result<Taken<'a>, WireFault> {
        if !self.sharing.trusted {
            return Ok(Taken::Unsupported(op));
        }
        let (immediate, len) = match &op {
            OneSidedOp::Put {
                immediate, bytes, ..
            } => (*immediate, bytes.bytes().len() as u64),
            _ => (None, 0),
        };
        // The room is looked for first, so that what cannot be told is not done either.
        if immediate.is_some() && !self.tx.room_for(0)? {
            return Ok(Taken::Busy(op));
        }
        let Sharing { regions, pulls, .. } = &mut *self.sharing;
        let near = Near {
            attach: &mut pulls.attach,
            life: &self.life,
        };
        match regions.run(id, op, near, &mut self.socket)? {
            Direct::Unknown(op) => {
                self.busy = true;
                Ok(Taken::Unsupported(op))
            }
            Direct::Long => {
                self.busy = true;
                Ok(Taken::Pending)
            }
            Direct::Done(outcome, returned) => {
                let outcome = self.life.outcome_alive(outcome);
                if let (Some(immediate), Ok(_)) = (immediate, &outcome) {
                    // Only this side fills its ring, so the room is still there.
                    let _ = self.immediate_send(immediate, len)?;
                }
                Ok(Taken::Done(outcome, returned))
            }
        }
    }

    fn one_sided_poll(&mut self) -> Result<Option<Completed>, WireFault> {
        let completed = self.sharing.regions.completed();
        Ok(completed.map(|mut completed| {
            completed.outcome = self.life.outcome_alive(completed.outcome);
            completed
        }))
    }

    fn one_sided_end(&mut self) -> Vec<Completed> {
        self.sharing.regions.end()
    }

    #[inline]
    fn works(&self) -> bool {
        self.busy
    }
}
