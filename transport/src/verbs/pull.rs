//! Large messages without copies: the sender's buffer is opened to the peer's device, and the
//! receiver's device reads it into the receiver's buffer.
//!
//! Reads go in pieces, a few at a time and by turns between pulls: so a long pull holds up neither
//! a short one nor the frames that share its queue pair.

use std::collections::VecDeque;
use std::sync::Arc;

use slab::Slab;
use smallvec::SmallVec;

use super::cache::Registered;
use super::hub::ReadRequest;
use super::sys;
use super::{PeerHandle, VerbsWire};
use crate::backend::{PullSegment, PullSource, Pulled, WireFault};
use crate::buf::{Buf, BufMut};

/// Bytes of a piece.
const PIECE_BYTES: u64 = 128 << 10;
/// Pieces under way at a time, on a connection.
const PIECES_MAX: usize = 8;
/// A buffer of no pool is registered for one message only, which costs more than copying less.
const UNPOOLED_MIN_BYTES: usize = 256 << 10;

/// A buffer that the peer may read.
struct Exposure {
    /// Ends before the buffer's memory may.
    registered: Arc<Registered>,
    _buf: Buf,
}

/// A message that is pulled.
struct Pull {
    number: u64,
    id: u64,
    /// Ends before the buffer's memory may.
    registered: Arc<Registered>,
    /// The device writes to it, so it is not looked at until all is there.
    into: BufMut,
    /// Where its bytes begin, and how many they are.
    at: u64,
    len: u64,
    segments: SmallVec<[PullSegment; 1]>,
    /// Which segment is read next, and from where in it.
    segment: usize,
    offset: u64,
    posted: u64,
    done: u64,
}

/// What a connection has exposed and pulls.
#[derive(Default)]
pub(super) struct Pulls {
    exposed: Slab<Exposure>,
    pulls: VecDeque<Pull>,
    numbers: u64,
    /// Pieces under way: of which pull, and how long.
    pieces: Slab<(u64, u64)>,
}

impl Pulls {
    pub(super) fn is_idle(&self) -> bool {
        self.pulls.is_empty()
    }

    /// Whether a pull has yet to be begun.
    pub(super) fn is_due(&self) -> bool {
        self.pieces.is_empty() && !self.pulls.is_empty()
    }

    /// A piece has come.
    pub(super) fn piece_done(&mut self, piece: usize) -> u64 {
        let Some((number, len)) = self.pieces.try_remove(piece) else {
            return 0;
        };
        if let Some(pull) = self.pulls.iter_mut().find(|pull| pull.number == number) {
            pull.done += len;
        }
        len
    }

    fn finished(&mut self) -> Option<Pulled> {
        let is_whole = |pull: &Pull| pull.done == pull.len;
        let at = self.pulls.iter().position(is_whole)?;
        let pull = self.pulls.remove(at)?;
        Some(Pulled {
            id: pull.id,
            into: pull.into,
            whole: true,
        })
    }

    /// Asks for pieces, as many as may be under way, by one doorbell.
    fn push(&mut self, peer: &PeerHandle) -> Result<(), WireFault> {
        if self.pieces.len() >= PIECES_MAX || !self.pulls.iter().any(Pull::is_unposted) {
            return Ok(());
        }
        let room = peer.reads_room().min(PIECES_MAX - self.pieces.len());
        let mut reads: SmallVec<[ReadRequest; PIECES_MAX]> = SmallVec::new();
        while reads.len() < room {
            let Some(at) = self.pulls.iter().position(Pull::is_unposted) else {
                break;
            };
            let Some(mut pull) = self.pulls.remove(at) else {
                break;
            };
            let piece = self.pieces.vacant_key();
            let (read, len) = pull.piece_next(piece);
            self.pieces.insert((pull.number, len));
            reads.push(read);
            // The next piece is another's, if another waits.
            self.pulls.push_back(pull);
        }
        match reads.is_empty() {
            true => Ok(()),
            false => peer.reads_post(&mut reads),
        }
    }
}

impl Pull {
    fn is_unposted(&self) -> bool {
        self.posted < self.len
    }

    /// The next piece, which is to be posted.
    fn piece_next(&mut self, piece: usize) -> (ReadRequest, u64) {
        let segment = &self.segments[self.segment];
        let len = (segment.len - self.offset).min(PIECE_BYTES);
        let (at, key) = source_decode(&segment.source);
        let read = ReadRequest {
            token: piece as u64,
            local: sys::Sge {
                addr: self.at + self.posted,
                length: len as u32,
                lkey: self.registered.region.local_key(),
            },
            remote: sys::Rdma {
                remote_addr: at.wrapping_add(self.offset),
                rkey: key,
            },
        };
        self.posted += len;
        self.offset += len;
        if self.offset == segment.len {
            self.segment += 1;
            self.offset = 0;
        }
        (read, len)
    }
}

/// Address, key, and our number for it.
pub(super) fn source_encode(at: u64, key: u32, number: u32) -> PullSource {
    let mut source = PullSource::default();
    source[..8].copy_from_slice(&at.to_le_bytes());
    source[8..12].copy_from_slice(&key.to_le_bytes());
    source[12..16].copy_from_slice(&number.to_le_bytes());
    source
}

fn source_decode(source: &PullSource) -> (u64, u32) {
    let (mut at, mut key) = ([0; 8], [0; 4]);
    at.copy_from_slice(&source[..8]);
    key.copy_from_slice(&source[8..12]);
    (u64::from_le_bytes(at), u32::from_le_bytes(key))
}

impl VerbsWire {
    pub(super) fn buf_expose(&mut self, buf: &Buf) -> Option<PullSource> {
        if buf.is_empty() {
            return None;
        }
        let registered = self.peer.hub.with(|hub| match buf.block() {
            Some(block) => Some(hub.cache.block(&block)),
            None if buf.len() < UNPOOLED_MIN_BYTES => None,
            // SAFETY: the exposure holds the buffer, and drops the registration first.
            None => Some(unsafe { hub.cache.alone(buf) }),
        })?;
        let registered = registered
            .inspect_err(|error| tracing::debug!(%error, "a message is streamed"))
            .ok()?;
        let key = registered.region.remote_key();
        let number = self.pulls.exposed.insert(Exposure {
            registered,
            _buf: buf.clone(),
        });
        Some(source_encode(buf.as_ptr() as u64, key, number as u32))
    }

    pub(super) fn buf_withdraw(&mut self, source: &PullSource) {
        let mut number = [0; 4];
        number.copy_from_slice(&source[12..16]);
        let number = u32::from_le_bytes(number) as usize;
        if let Some(exposure) = self.pulls.exposed.try_remove(number) {
            drop(exposure.registered);
        }
    }

    pub(super) fn pull_begin(
        &mut self,
        id: u64,
        segments: &[PullSegment],
        into: BufMut,
    ) -> Result<(), BufMut> {
        let segments: SmallVec<[PullSegment; 1]> = segments
            .iter()
            .copied()
            .filter(|segment| segment.len > 0)
            .collect();
        let key = self.peer.key;
        if !self.peer.hub.with(|hub| hub.peer(key).can_read()) {
            return Err(into);
        }
        let Some(block) = into.block() else {
            return Err(into);
        };
        let registered = self.peer.hub.with(|hub| hub.cache.block(&block));
        let registered = match registered {
            Ok(registered) => registered,
            Err(error) => {
                tracing::debug!(%error, "a message is streamed");
                return Err(into);
            }
        };
        let at = into.as_ptr() as u64;
        let len = into.len() as u64;
        self.pulls.numbers += 1;
        self.pulls.pulls.push_back(Pull {
            number: self.pulls.numbers,
            id,
            into,
            at,
            len,
            registered,
            segments,
            segment: 0,
            offset: 0,
            posted: 0,
            done: 0,
        });
        Ok(())
    }

    pub(super) fn pulls_advance(&mut self) -> Result<(usize, Option<Pulled>), WireFault> {
        let moved = self.ops_take();
        self.pulls.push(&self.peer)?;
        Ok((moved as usize, self.pulls.finished()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_come_back() {
        let source = source_encode(u64::MAX - 1, 0xabcd, 7);
        assert_eq!(source_decode(&source), (u64::MAX - 1, 0xabcd));
    }
}
