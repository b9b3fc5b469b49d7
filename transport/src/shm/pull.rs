//! Large messages with one copy: the receiver fetches from the sender's memory.
//!
//! ```text
//!   PullSource:  | how | 0 | address or number of the file, u64 | offset in the file, u64 |
//! ```
//!
//! A buffer that is in a file is mapped and copied from; private memory is read by the kernel. The
//! sender keeps the buffer, and so its bytes as they are, until the receiver says that it is done.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use super::attach::Attach;
use super::life::LifeWatch;
use super::maps::{Maps, PeerMap};
use super::socket::{Socket, SocketMessage};
use crate::backend::{PULL_SOURCE_BYTES, PullSegment, PullSource, Pulled, WireFault};
use crate::buf::file::{BlockFile, files_freed};
use crate::buf::{Buf, BufMut};
use crate::wire::WireError;

const IN_FILE: u8 = 1;
const PRIVATE: u8 = 2;

/// Where bytes of the peer's are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    File { file: u64, offset: u64 },
    Private { address: u64 },
}

impl Place {
    fn encode(self) -> PullSource {
        let (how, first, second) = match self {
            Self::File { file, offset } => (IN_FILE, file, offset),
            Self::Private { address } => (PRIVATE, address, 0),
        };
        let mut source = [0; PULL_SOURCE_BYTES];
        source[0] = how;
        source[8..16].copy_from_slice(&first.to_le_bytes());
        source[16..].copy_from_slice(&second.to_le_bytes());
        source
    }

    fn decode(source: &PullSource) -> Option<Self> {
        let word = |at| {
            source[at..]
                .first_chunk()
                .map(|word| u64::from_le_bytes(*word))
        };
        match source[0] {
            IN_FILE => Some(Self::File {
                file: word(8)?,
                offset: word(16)?,
            }),
            PRIVATE => Some(Self::Private { address: word(8)? }),
            _ => None,
        }
    }
}

/// Whether some of a message is in private memory.
pub(super) fn any_private(segments: &[PullSegment]) -> bool {
    let private = |segment: &PullSegment| segment.source[0] == PRIVATE;
    segments.iter().any(private)
}

/// What we let the peer fetch.
pub(super) struct Exposed {
    /// Files that parts of messages under way are in, and how many parts.
    files: Vec<(Arc<BlockFile>, usize)>,
    /// Files whose descriptors the peer has had.
    given: Vec<(u64, Weak<BlockFile>)>,
    /// Files of this process that were freed when the peer was told last.
    freed: u64,
    /// Whether private memory is worth telling of.
    attach: bool,
    attach_min_bytes: usize,
}

impl Exposed {
    pub(super) fn new(attach_min_bytes: Option<usize>) -> Self {
        Self {
            files: Vec::new(),
            given: Vec::new(),
            freed: 0,
            attach: attach_min_bytes.is_some(),
            attach_min_bytes: attach_min_bytes.unwrap_or(0),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The peer cannot read private memory.
    pub(super) fn attach_refused(&mut self) {
        self.attach = false;
    }

    /// Opens a buffer to the peer. `pool` is the one whose files it may see.
    pub(super) fn expose(&mut self, buf: &Buf, pool: u64) -> Option<PullSource> {
        if let Some((file, offset)) = buf.file().filter(|(file, _)| file.pool == pool) {
            match self.files.iter_mut().find(|(of, _)| Arc::ptr_eq(of, file)) {
                Some((_, count)) => *count += 1,
                None => self.files.push((Arc::clone(file), 1)),
            }
            let file = file.number;
            return Some(Place::File { file, offset }.encode());
        }
        let address = self.private(buf)?;
        Some(Place::Private { address }.encode())
    }

    /// Where the peer may read private memory by the kernel, if it can and that is worth it.
    pub(super) fn private(&self, buf: &Buf) -> Option<u64> {
        let worth = self.attach && buf.len() >= self.attach_min_bytes;
        worth.then(|| buf.as_ptr().expose_provenance() as u64)
    }

    pub(super) fn withdraw(&mut self, source: &PullSource) {
        let Some(Place::File { file, .. }) = Place::decode(source) else {
            return;
        };
        if let Some(at) = self.files.iter().position(|(of, _)| of.number == file) {
            self.files[at].1 -= 1;
            if self.files[at].1 == 0 {
                self.files.swap_remove(at);
            }
        }
    }

    /// The peer asks for a file: it gets the descriptor if parts in it are exposed.
    pub(super) fn wanted(&mut self, number: u64, socket: &mut Socket) -> std::io::Result<()> {
        let found = self.files.iter().find(|(of, _)| of.number == number);
        let Some((file, _)) = found else {
            return socket.send(SocketMessage::FileGone { file: number }, None);
        };
        let bytes = file.len() as u64;
        let file = Arc::clone(file);
        self.give(&file);
        let message = SocketMessage::File {
            file: number,
            bytes,
        };
        socket.send(message, Some(file.fd()))
    }

    /// The peer is about to have this file's descriptor.
    pub(super) fn give(&mut self, file: &Arc<BlockFile>) {
        if !self.given.iter().any(|(number, _)| *number == file.number) {
            self.given.push((file.number, Arc::downgrade(file)));
        }
    }

    /// Whether some of the files that the peer has had may be freed, and it does not know.
    #[inline]
    pub(super) fn owes(&self) -> bool {
        !self.given.is_empty() && self.freed != files_freed()
    }

    /// Tells the peer which of the files that it has had are freed, so that its mappings do not
    /// keep the memory; those for which there is no room now are told of later.
    pub(super) fn freed_tell(&mut self, socket: &mut Socket) -> std::io::Result<()> {
        let freed = files_freed();
        let mut at = 0;
        while let Some((file, weak)) = self.given.get(at) {
            let file = *file;
            if weak.strong_count() > 0 {
                at += 1;
                continue;
            }
            if socket.waits() {
                return Ok(());
            }
            self.given.swap_remove(at);
            socket.send(SocketMessage::FileGone { file }, None)?;
        }
        self.freed = freed;
        Ok(())
    }
}

/// A message that is fetched.
struct Pull {
    id: u64,
    segments: SmallVec<[(Place, u64); 1]>,
    /// The segment under way, how much of it is there, and what it is read from.
    at: usize,
    done: u64,
    map: Option<Arc<PeerMap>>,
    into: BufMut,
    got: usize,
    /// It cannot be had this way.
    failed: bool,
}

/// What became of a turn of a pull.
enum Turn {
    Waits,
    Moved(usize),
    Over(Pulled),
}

/// The messages that are fetched from a peer.
pub(super) struct Pulls {
    queue: VecDeque<Pull>,
    /// Files that were asked for.
    wanted: Vec<u64>,
    pub(super) maps: Maps,
    pub(super) attach: Attach,
}

impl Pulls {
    pub(super) fn new(maps: Maps, attach: Attach) -> Self {
        Self {
            queue: VecDeque::new(),
            wanted: Vec::new(),
            maps,
            attach,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether some pull need not wait for the peer.
    pub(super) fn ready(&self) -> bool {
        self.queue.iter().any(|pull| !self.waits(pull))
    }

    fn waits(&self, pull: &Pull) -> bool {
        match pull.segments.get(pull.at) {
            Some((Place::File { file, .. }, _)) => {
                !pull.failed && pull.map.is_none() && !self.maps.has(*file)
            }
            _ => false,
        }
    }

    /// As [`crate::backend::Wire::pull_start`].
    pub(super) fn start(
        &mut self,
        id: u64,
        segments: &[PullSegment],
        into: BufMut,
        socket: &mut Socket,
    ) -> Result<Result<(), BufMut>, WireFault> {
        let place = |segment: &PullSegment| Some((Place::decode(&segment.source)?, segment.len));
        let Some(segments) = segments.iter().map(place).collect::<Option<SmallVec<_>>>() else {
            return Ok(Err(into));
        };
        let whole = segments
            .iter()
            .try_fold(0_u64, |sum, (_, len)| sum.checked_add(*len));
        if whole != Some(into.len() as u64) {
            return Ok(Err(into));
        }
        let private = |(place, _): &(Place, u64)| matches!(place, Place::Private { .. });
        if !self.attach.is_open() && segments.iter().any(private) {
            return Ok(Err(into));
        }
        for (place, _) in &segments {
            if let Place::File { file, .. } = place
                && !self.maps.has(*file)
            {
                self.want(*file, socket)?;
            }
        }
        self.queue.push_back(Pull {
            id,
            segments,
            at: 0,
            done: 0,
            map: None,
            into,
            got: 0,
            failed: false,
        });
        Ok(Ok(()))
    }

    fn want(&mut self, file: u64, socket: &mut Socket) -> std::io::Result<()> {
        if self.wanted.contains(&file) {
            return Ok(());
        }
        self.wanted.push(file);
        socket.send(SocketMessage::FileWanted { file }, None)
    }

    /// A file that was asked for is here.
    ///
    /// # Errors
    /// It was not asked for.
    pub(super) fn file(
        &mut self,
        file: u64,
        fd: std::os::fd::OwnedFd,
        bytes: u64,
    ) -> Result<(), WireError> {
        let Some(at) = self.wanted.iter().position(|wanted| *wanted == file) else {
            return Err(WireError::Malformed {
                what: "a memory file that nobody asked for",
            });
        };
        self.wanted.swap_remove(at);
        if let Err(error) = self.maps.insert(file, fd, bytes) {
            tracing::debug!(%error, "cannot map a peer's buffers");
            self.fail(file);
        }
        Ok(())
    }

    /// A file is not to be had, or freed.
    pub(super) fn file_gone(&mut self, file: u64) {
        self.maps.forget(file);
        if let Some(at) = self.wanted.iter().position(|wanted| *wanted == file) {
            self.wanted.swap_remove(at);
            self.fail(file);
        }
    }

    fn fail(&mut self, file: u64) {
        for pull in &mut self.queue {
            let of = |(place, _): &(Place, u64)| match place {
                Place::File { file: of, .. } => *of == file,
                Place::Private { .. } => false,
            };
            pull.failed |= pull.segments[pull.at..].iter().any(of);
        }
    }

    /// As [`crate::backend::Wire::pull_poll`].
    pub(super) fn poll(
        &mut self,
        budget: usize,
        life: &LifeWatch,
        socket: &mut Socket,
    ) -> Result<(usize, Option<Pulled>), WireFault> {
        for _ in 0..self.queue.len() {
            let Some(mut pull) = self.queue.pop_front() else {
                break;
            };
            let before = pull.got;
            match self.turn(&mut pull, budget, life, socket)? {
                Turn::Waits => self.queue.push_back(pull),
                Turn::Moved(moved) => {
                    // The next one's turn, lest a long one keep it waiting.
                    self.queue.push_back(pull);
                    return Ok((moved, None));
                }
                Turn::Over(pulled) => return Ok((pull.got - before, Some(pulled))),
            }
        }
        Ok((0, None))
    }

    fn turn(
        &mut self,
        pull: &mut Pull,
        budget: usize,
        life: &LifeWatch,
        socket: &mut Socket,
    ) -> Result<Turn, WireFault> {
        let mut moved = 0;
        while let Some((place, len)) = pull.segments.get(pull.at).copied() {
            if pull.failed {
                return Ok(Turn::Over(pull.end(false)));
            }
            let rest = usize::try_from(len - pull.done).unwrap_or(usize::MAX);
            let count = rest.min(budget - moved);
            if count == 0 && rest > 0 {
                return Ok(Turn::Moved(moved));
            }
            let into = &mut pull.into[pull.got..pull.got + count];
            match place {
                Place::Private { address } => {
                    if !self
                        .attach
                        .read(address.wrapping_add(pull.done), into, life)
                    {
                        if life.dead() {
                            return Err(WireFault::Dead);
                        }
                        if !self.attach.is_open() {
                            socket.send(SocketMessage::AttachRefused, None)?;
                        }
                        pull.failed = true;
                        continue;
                    }
                }
                Place::File { file, offset } => {
                    let Some(map) = pull.map.take().or_else(|| self.maps.find(file)) else {
                        // Asked for at the start, unless others have pushed it out since.
                        self.want(file, socket)?;
                        return Ok(match moved {
                            0 => Turn::Waits,
                            moved => Turn::Moved(moved),
                        });
                    };
                    let from = usize::try_from(offset.saturating_add(pull.done));
                    let from = from.unwrap_or(usize::MAX);
                    if from > map.mapping.len || count > map.mapping.len - from {
                        return Err(OUTSIDE.into());
                    }
                    map.mapping.read(from, into);
                    pull.map = Some(map);
                }
            }
            moved += count;
            pull.got += count;
            pull.done += count as u64;
            if pull.done == len {
                (pull.at, pull.done, pull.map) = (pull.at + 1, 0, None);
            }
        }
        Ok(Turn::Over(pull.end(true)))
    }
}

const OUTSIDE: WireError = WireError::Malformed {
    what: "a part of a large message lies outside its memory",
};

impl Pull {
    fn end(&mut self, whole: bool) -> Pulled {
        Pulled {
            id: self.id,
            into: std::mem::take(&mut self.into),
            whole,
        }
    }
}

#[cfg(all(test, praas_loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;

    use super::super::ring::tests::{WordLines, frame, receive};
    use super::super::ring::{RingReader, RingWriter};
    use super::*;

    struct Block(UnsafeCell<u64>);

    // SAFETY: one side has the block at a time, which is what the model is to show: loom checks
    // every access.
    unsafe impl Sync for Block {}

    fn wait(reader: &mut RingReader<WordLines>) {
        while receive(reader).is_none() {
            loom::thread::yield_now();
        }
    }

    /// The receiver reads the sender's block between the announcement and its Fin; the sender uses
    /// it again after that.
    #[test]
    fn loom_an_exposed_block_is_left_alone_until_fin() {
        loom::model(|| {
            let (there, back) = (WordLines::new(4), WordLines::new(4));
            let block = Arc::new(Block(UnsafeCell::new(0)));
            let mut announce = RingWriter::new(there.clone());
            let mut announced = RingReader::new(there);
            let mut finish = RingWriter::new(back.clone());
            let mut finished = RingReader::new(back);
            let exposed = Arc::clone(&block);
            let sender = loom::thread::spawn(move || {
                for value in [7, 8] {
                    // SAFETY: loom has checked that nobody else has the block now.
                    exposed.0.with_mut(|block| unsafe { *block = value });
                    assert!(announce.room(1).unwrap());
                    announce.publish(&frame(1), &[], &[&[1]]);
                    wait(&mut finished);
                }
            });
            for value in [7, 8] {
                wait(&mut announced);
                // SAFETY: loom has checked that nobody writes the block now.
                assert_eq!(block.0.with(|block| unsafe { *block }), value);
                assert!(finish.room(1).unwrap());
                finish.publish(&frame(1), &[], &[&[2]]);
            }
            sender.join().unwrap();
        });
    }
}
