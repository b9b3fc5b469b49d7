//! One-sided operations by loads and stores on the owner's memory.
//!
//! ```text
//!   initiator                                  owner
//!     | first operation on a key: by frames      |
//!     | RegionWanted { key } ----------------->  |
//!     | <----------------- Region + descriptor   |
//!     | from then on: open word, load / store, open word; nothing is sent
//! ```
//!
//! The checks are made here, on what the owner told. Owners and initiators trust one another, being
//! of one application: an initiator that does not check can write where the owner let its
//! application write, and nowhere else.
//!
//! Buffers that are in no file cannot be mapped. Of those the owner tells the address, and the kernel
//! reads them (`attach.rs`), with the same looks at the open word before and after.
//!
//! What is short is done at once. What is long goes by pieces, in turns with frames, lest it delay
//! them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::mm::ProtFlags;

use super::attach::Attach;
use super::life::LifeWatch;
use super::maps::{Maps, PeerMap};
use super::socket::{RegionTold, Socket, SocketMessage};
use crate::backend::WireFault;
use crate::buf::mapping::Mapping;
use crate::buf::{Buf, BufMut};
use crate::one_sided::{
    Completed, Memory, OneSidedError, OneSidedOp, PutBytes, RegionTable, RemoteKey, RemoteSlice,
    Returned, Verb, access_check, op_return, open_is, open_was, word_change,
};
use crate::sync::atomic::AtomicU64;
use crate::wire::WireError;

/// Operations up to this size are done at once.
const AT_ONCE_BYTES: usize = 256 << 10;
/// Regions that a channel remembers; above it the one that was asked for first is asked again.
const KNOWN_MAX: usize = 64;
/// Regions that may be asked for at a time, and keys that are remembered as refused.
const ASKED_MAX: usize = 64;

/// A region of the peer's that is mapped, or private.
struct Known {
    told: RegionTold,
    memory: Reached,
}

/// How a region's memory is reached.
enum Reached {
    Mapped(Arc<PeerMap>),
    /// By the kernel, at this address of the peer's.
    Private(u64),
}

/// The kernel's way into the peer's memory, and whether the peer lives.
pub(super) struct Near<'a> {
    pub(super) attach: &'a mut Attach,
    pub(super) life: &'a LifeWatch,
}

impl Known {
    fn at(&self, offset: u64) -> usize {
        (self.told.offset + offset) as usize
    }

    /// Copies out; whether all bytes came. The range was checked.
    fn read(&self, offset: u64, into: &mut [u8], near: &mut Near<'_>) -> bool {
        match &self.memory {
            Reached::Mapped(map) => {
                map.mapping.read(self.at(offset), into);
                true
            }
            Reached::Private(address) => {
                let from = address.wrapping_add(offset);
                near.attach.read(from, into, near.life)
            }
        }
    }

    /// The mapping, of memory that may be written, which is never private.
    fn mapping(&self) -> Option<&Mapping> {
        match &self.memory {
            Reached::Mapped(map) => Some(&map.mapping),
            Reached::Private(_) => None,
        }
    }
}

enum LongBytes {
    Put { buf: Buf, immediate: Option<u64> },
    Get { into: BufMut },
}

/// An operation that goes by pieces; its range was checked.
struct Long {
    id: u64,
    known: Arc<Known>,
    offset: u64,
    len: usize,
    done: usize,
    bytes: LongBytes,
}

impl Long {
    /// Whether its bytes are there, and only telling the peer is left.
    fn waits_for_room(&self) -> bool {
        self.done == self.len
    }

    /// It is over; what was got counts if the region was open until then.
    fn complete(self, open: bool) -> Completed {
        let (outcome, returned) = match self.bytes {
            LongBytes::Put { buf, .. } => (
                Ok(0),
                Returned {
                    data: None,
                    buf: Some(buf),
                },
            ),
            LongBytes::Get { into } => {
                let returned = Returned {
                    data: Some(into),
                    buf: None,
                };
                (if open { Ok(0) } else { Err(OneSidedError::Key) }, returned)
            }
        };
        Completed {
            id: self.id,
            outcome,
            returned,
        }
    }
}

/// What became of an operation.
pub(super) enum Direct<'a> {
    Done(Result<u64, OneSidedError>, Returned),
    /// It goes by pieces.
    Long,
    /// It must be asked for by frames.
    Unknown(OneSidedOp<'a>),
}

/// The peer's regions, as this side knows them.
#[derive(Default)]
pub(super) struct Regions {
    known: VecDeque<Arc<Known>>,
    asked: Vec<u64>,
    refused: VecDeque<u64>,
    /// The words that say which regions are open.
    words: Option<Arc<PeerMap>>,
    longs: VecDeque<Long>,
    completed: VecDeque<Completed>,
}

impl Regions {
    /// Whether something is to be done without the peer.
    pub(super) fn ready(&self) -> bool {
        !self.completed.is_empty() || self.longs.iter().any(|long| !long.waits_for_room())
    }

    /// Whether the peer is to be told of a put, for which there was no room.
    pub(super) fn waits_for_room(&self) -> bool {
        self.longs.iter().any(Long::waits_for_room)
    }

    /// Whether operations are under way, or complete and not told of.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        !self.longs.is_empty() || !self.completed.is_empty()
    }

    /// Whether long operations are under way.
    pub(super) fn has_longs(&self) -> bool {
        !self.longs.is_empty()
    }

    /// How many regions of the peer's are mapped.
    #[cfg(all(test, not(praas_loom)))]
    pub(super) fn known_count(&self) -> usize {
        self.known.len()
    }

    /// Whether an operation is complete and not told of.
    #[cfg(all(test, not(praas_loom)))]
    pub(super) fn has_completed(&self) -> bool {
        !self.completed.is_empty()
    }

    /// Whether answers are awaited.
    pub(super) fn asks(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Brings a region to the front, if it is known.
    #[inline]
    fn bring(&mut self, key: u64) -> Option<()> {
        let at = self.known.iter().position(|known| known.told.key == key)?;
        if at > 0 {
            self.known.swap(at, 0);
        }
        Some(())
    }

    /// Lets go of regions that the owner has closed, so that our mappings do not keep the memory.
    pub(super) fn void_forget(&mut self) {
        let words = self.words.as_deref();
        self.known.retain(|known| {
            open_word(words, &known.told).is_some_and(|word| open_is(word, known.told.open))
        });
    }

    /// Asks the owner for a region.
    fn ask(&mut self, key: u64, socket: &mut Socket) -> std::io::Result<()> {
        if self.asked.len() >= ASKED_MAX || self.asked.contains(&key) || self.refused.contains(&key)
        {
            return Ok(());
        }
        self.asked.push(key);
        socket.send(SocketMessage::RegionWanted { key }, None)
    }

    /// Does an operation, if its region is known.
    pub(super) fn run<'a>(
        &mut self,
        id: u64,
        op: OneSidedOp<'a>,
        mut near: Near<'_>,
        socket: &mut Socket,
    ) -> Result<Direct<'a>, WireFault> {
        let (verb, at) = (op.verb(), op.at());
        if self.bring(at.key.0).is_none() {
            self.ask(at.key.0, socket)?;
            return Ok(Direct::Unknown(op));
        }
        let words = self.words.as_deref();
        let Some(known) = self.known.front() else {
            return Ok(Direct::Unknown(op));
        };
        if let Err(error) = check(verb, at, &known.told, words) {
            let void = error == OneSidedError::Key;
            if void {
                self.known.pop_front();
            }
            return Ok(Direct::Done(Err(error), op_return(op)));
        }
        if at.len as usize > AT_ONCE_BYTES {
            let known = Arc::clone(known);
            return self.long(id, known, op, near, socket);
        }
        let (value, returned) = match op {
            OneSidedOp::Get {
                key,
                offset,
                mut into,
            } => {
                if !known.read(at.offset, &mut into, &mut near) {
                    let op = OneSidedOp::Get { key, offset, into };
                    return self.unread(op, near, socket);
                }
                let data = Some(into);
                (0, Returned { data, buf: None })
            }
            op => match known.mapping() {
                Some(mapping) => change(mapping, known.at(at.offset), op),
                None => return Ok(Direct::Unknown(op)),
            },
        };
        // Memory that was closed meanwhile may have been used for something else.
        let good = verb != Verb::Get
            || open_word(words, &known.told).is_some_and(|word| open_was(word, known.told.open));
        let outcome = match good {
            true => Ok(value),
            false => Err(OneSidedError::Key),
        };
        Ok(Direct::Done(outcome, returned))
    }

    /// The kernel does not read the region in front: it is asked for by frames from here on.
    #[cold]
    fn unread<'a>(
        &mut self,
        op: OneSidedOp<'a>,
        near: Near<'_>,
        socket: &mut Socket,
    ) -> Result<Direct<'a>, WireFault> {
        if near.life.dead() {
            return Err(WireFault::Dead);
        }
        if !near.attach.is_open() {
            socket.send(SocketMessage::AttachRefused, None)?;
        }
        self.known.pop_front();
        self.refuse(op.at().key.0);
        Ok(Direct::Unknown(op))
    }

    fn long<'a>(
        &mut self,
        id: u64,
        known: Arc<Known>,
        op: OneSidedOp<'a>,
        mut near: Near<'_>,
        socket: &mut Socket,
    ) -> Result<Direct<'a>, WireFault> {
        let (at, mut done) = (op.at(), 0);
        let bytes = match op {
            OneSidedOp::Put {
                bytes: PutBytes::Held(buf),
                immediate,
                ..
            } if known.mapping().is_some() => LongBytes::Put { buf, immediate },
            OneSidedOp::Get {
                key,
                offset,
                mut into,
            } => {
                // What the first piece shows of memory that the kernel reads holds for the others.
                if known.mapping().is_none() {
                    done = AT_ONCE_BYTES;
                    if !known.read(at.offset, &mut into[..done], &mut near) {
                        let op = OneSidedOp::Get { key, offset, into };
                        return self.unread(op, near, socket);
                    }
                }
                LongBytes::Get { into }
            }
            // Borrowed bytes are short, and so are words.
            op => return Ok(Direct::Unknown(op)),
        };
        self.longs.push_back(Long {
            id,
            known,
            offset: at.offset,
            len: at.len as usize,
            done,
            bytes,
        });
        Ok(Direct::Long)
    }

    /// Goes on with long operations: bytes moved, and the immediate value and the bytes of a put that
    /// the peer is to be told of, which is [`Regions::told`] then.
    pub(super) fn poll(
        &mut self,
        budget: usize,
        mut near: Near<'_>,
    ) -> Result<(usize, Option<(u64, u64)>), WireFault> {
        let Some(long) = self.longs.front_mut() else {
            return Ok((0, None));
        };
        let count = (long.len - long.done).min(budget);
        let (known, offset) = (&long.known, long.offset + long.done as u64);
        let range = long.done..long.done + count;
        let came = match (&mut long.bytes, known.mapping()) {
            (LongBytes::Get { into }, _) => known.read(offset, &mut into[range], &mut near),
            (LongBytes::Put { buf, .. }, Some(mapping)) => {
                mapping.write(known.at(offset), &buf[range]);
                true
            }
            (LongBytes::Put { .. }, None) => false,
        };
        let open = open_word(self.words.as_deref(), &known.told)
            .is_some_and(|word| open_was(word, known.told.open));
        if !came && near.life.dead() {
            return Err(WireFault::Dead);
        }
        if !came && open {
            return Err(UNREAD.into());
        }
        long.done += count;
        if long.done < long.len && came {
            self.longs.rotate_left(1);
            return Ok((count, None));
        }
        if let LongBytes::Put {
            immediate: Some(immediate),
            ..
        } = long.bytes
        {
            let len = long.len as u64;
            self.longs.rotate_left(1);
            return Ok((count, Some((immediate, len))));
        }
        let long = self.longs.pop_front();
        self.completed.extend(long.map(|long| long.complete(open)));
        Ok((count, None))
    }

    /// The peer was told of the put that [`Regions::poll`] has just named.
    pub(super) fn told(&mut self) {
        let long = self.longs.pop_back();
        self.completed.extend(long.map(|long| long.complete(true)));
    }

    pub(super) fn completed(&mut self) -> Option<Completed> {
        self.completed.pop_front()
    }

    /// The channel ends: what is not complete, or not told of, with its buffers.
    pub(super) fn end(&mut self) -> Vec<Completed> {
        let cut = |long: Long| {
            let (data, buf) = match long.bytes {
                LongBytes::Put { buf, .. } => (None, Some(buf)),
                LongBytes::Get { into } => (Some(into), None),
            };
            Completed {
                id: long.id,
                outcome: Err(OneSidedError::Closed),
                returned: Returned { data, buf },
            }
        };
        let longs = self.longs.drain(..).map(cut);
        self.completed.drain(..).chain(longs).collect()
    }

    /// The owner's words are here.
    ///
    /// # Errors
    /// They were not asked for.
    pub(super) fn words(
        &mut self,
        fd: OwnedFd,
        bytes: u64,
        maps: &mut Maps,
    ) -> Result<(), WireError> {
        if self.asked.is_empty() || self.words.is_some() {
            return Err(UNASKED);
        }
        match maps.map(fd, bytes, ProtFlags::READ) {
            Ok(map) => self.words = Some(map),
            Err(error) => tracing::debug!(%error, "cannot map a peer's open words"),
        }
        Ok(())
    }

    /// A region that was asked for is here.
    ///
    /// # Errors
    /// It was not asked for.
    pub(super) fn region(
        &mut self,
        told: RegionTold,
        fd: OwnedFd,
        maps: &mut Maps,
    ) -> Result<(), WireError> {
        self.answered(told.key)?;
        self.void_forget();
        let map = match (told.file, told.access.write || told.access.atomic) {
            (0, true) => maps.map(fd, told.bytes, ProtFlags::READ | ProtFlags::WRITE),
            (0, false) => maps.map(fd, told.bytes, ProtFlags::READ),
            (file, _) => match maps.find(file) {
                Some(map) => Ok(map),
                None => maps
                    .insert(file, fd, told.bytes)
                    .and_then(|()| maps.find(file).ok_or(std::io::ErrorKind::NotFound.into())),
            },
        };
        let inside = |map: &Arc<PeerMap>| told.bytes == map.mapping.len as u64;
        let writes = told.file != 0 && (told.access.write || told.access.atomic);
        let aligned = !told.access.atomic || told.offset.is_multiple_of(8);
        match map {
            Ok(map) if inside(&map) && self.words.is_some() && !writes && aligned => {
                self.know(told, Reached::Mapped(map));
            }
            Ok(_) => self.refuse(told.key),
            Err(error) => {
                tracing::debug!(%error, "cannot map a peer's region");
                self.refuse(told.key);
            }
        }
        Ok(())
    }

    /// A region that was asked for is in the owner's private memory. `reads`: whether the kernel
    /// reads that for us, as far as is known.
    ///
    /// # Errors
    /// It was not asked for.
    pub(super) fn region_private(
        &mut self,
        told: RegionTold,
        address: u64,
        reads: bool,
    ) -> Result<(), WireError> {
        self.answered(told.key)?;
        self.void_forget();
        match reads && self.words.is_some() {
            true => self.know(told, Reached::Private(address)),
            false => self.refuse(told.key),
        }
        Ok(())
    }

    fn know(&mut self, told: RegionTold, memory: Reached) {
        self.known.truncate(KNOWN_MAX - 1);
        self.known.push_front(Arc::new(Known { told, memory }));
    }

    /// The owner says that a region cannot be mapped.
    ///
    /// # Errors
    /// It was not asked for.
    pub(super) fn refused(&mut self, key: u64) -> Result<(), WireError> {
        self.answered(key)?;
        self.refuse(key);
        Ok(())
    }

    fn refuse(&mut self, key: u64) {
        self.refused.truncate(ASKED_MAX - 1);
        self.refused.push_front(key);
    }

    fn answered(&mut self, key: u64) -> Result<(), WireError> {
        let at = self.asked.iter().position(|asked| *asked == key);
        self.asked.swap_remove(at.ok_or(UNASKED)?);
        Ok(())
    }
}

const UNASKED: WireError = WireError::Malformed {
    what: "a region that nobody asked for",
};

const UNREAD: WireError = WireError::Malformed {
    what: "a region that is told of is not where it is said to be",
};

/// A short operation that changes what is mapped: the value of an atomic, and what goes back.
fn change(mapping: &Mapping, from: usize, op: OneSidedOp<'_>) -> (u64, Returned) {
    match op {
        OneSidedOp::Put { bytes, .. } => {
            mapping.write(from, bytes.bytes());
            let buf = match bytes {
                PutBytes::Held(buf) => Some(buf),
                PutBytes::Copied(_) => None,
            };
            (0, Returned { data: None, buf })
        }
        OneSidedOp::Atomic { atomic, .. } => {
            (word_change(mapping, from, atomic), Returned::default())
        }
        OneSidedOp::Get { mut into, .. } => {
            mapping.read(from, &mut into);
            let data = Some(into);
            (0, Returned { data, buf: None })
        }
    }
}

/// The word that says whether a region is open.
#[inline]
fn open_word<'a>(words: Option<&'a PeerMap>, told: &RegionTold) -> Option<&'a AtomicU64> {
    let (words, at) = (words?, told.slot as usize * 8);
    (at + 8 <= words.mapping.len).then(|| words.mapping.word64(at))
}

/// The checks in the order in which the owner makes them.
#[inline]
fn check(
    verb: Verb,
    at: RemoteSlice,
    told: &RegionTold,
    words: Option<&PeerMap>,
) -> Result<(), OneSidedError> {
    if verb == Verb::Atomic && !at.offset.is_multiple_of(8) {
        return Err(OneSidedError::Misaligned(at.offset));
    }
    if !open_word(words, told).is_some_and(|word| open_is(word, told.open)) {
        return Err(OneSidedError::Key);
    }
    access_check(verb, at, told.access, told.len)
}

/// Our side of the questions: what the peer is told of our regions.
pub(super) struct Owner {
    regions: Arc<RegionTable>,
    words_told: bool,
}

impl Owner {
    pub(super) fn new(regions: Arc<RegionTable>) -> Self {
        Self {
            regions,
            words_told: false,
        }
    }

    /// The peer asks for a region; `pool` is the one whose files it may see.
    pub(super) fn wanted(
        &mut self,
        key: u64,
        pool: u64,
        exposed: &mut super::pull::Exposed,
        socket: &mut Socket,
    ) -> std::io::Result<()> {
        let region = self.regions.find(RemoteKey(key));
        let told = region.as_ref().and_then(|region| {
            let (slot, open) = region.open?;
            let whole = RegionTold {
                key,
                len: region.len as u64,
                slot,
                open,
                access: region.access,
                file: 0,
                bytes: region.len as u64,
                offset: 0,
            };
            Some(match &region.memory {
                Memory::Shared { mapping, fd } => {
                    let bytes = mapping.len as u64;
                    (
                        SocketMessage::Region(RegionTold { bytes, ..whole }),
                        Some(fd.as_fd()),
                    )
                }
                Memory::Frozen(buf) => match buf.file().filter(|(file, _)| file.pool == pool) {
                    Some((file, offset)) => {
                        exposed.give(file);
                        let told = RegionTold {
                            file: file.number,
                            bytes: file.len() as u64,
                            offset,
                            ..whole
                        };
                        (SocketMessage::Region(told), Some(file.fd()))
                    }
                    None => {
                        let address = exposed.private(buf)?;
                        let told = whole;
                        (SocketMessage::RegionPrivate { told, address }, None)
                    }
                },
            })
        });
        let (Some((message, fd)), Some(words)) = (told, self.regions.words()) else {
            return socket.send(SocketMessage::RegionRefused { key }, None);
        };
        if !self.words_told {
            self.words_told = true;
            let (fd, bytes) = words.told();
            socket.send(SocketMessage::Voids { bytes }, Some(fd))?;
        }
        socket.send(message, fd)
    }
}
