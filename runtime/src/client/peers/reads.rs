//! Reads of peers' state objects by one-sided operations, without anybody running there.
//!
//! ```text
//!   place known:  get the word, get the bytes --> word is still the version: done
//!   unknown, or a miss:  Locate --> absent, or the bytes came along: done
//!                               --> place: get the bytes --> done, since located within the read
//! ```
//!
//! Where one-sided operations are messages anyway, a read is a single one: Locate, with the bytes.
//!
//! `state/shown.rs` says why what a read gives was the object at a moment within the read.

use std::collections::{HashMap, VecDeque};

use praas_transport::clock;
use praas_transport::{
    Buf, BufMut, ChannelId, OneSidedDone, OneSidedError, Ops, PostedGet, RemoteKey, SendError,
    TransportKind,
};
use slab::Slab;

use super::{Peers, PeersLink};
use crate::client::core::{CallId, CallOptions, Refusal, Target};
use crate::invocation::{InvokeError, Payload, Status};
use crate::locate::{
    AM_STATE, LOCATED_BYTES, LOCATED_FOLLOWS, LOCATED_LATER, LocateHeader, LocateKind, LocatedBody,
};
use crate::state::Place;

/// Places that are remembered; with one more, all are forgotten.
const PLACES_MAX: usize = 4096;
/// What the contexts of our operations have in their highest byte.
const CONTEXT: u64 = (AM_STATE as u64) << 56;
/// The context of a get of the bytes, rather than of the word.
const CONTEXT_BYTES: u64 = 1 << 32;

/// What is known of where peers' objects are, and the reads under way there.
#[derive(Debug, Default)]
pub(super) struct Reads {
    places: HashMap<(Target, Box<str>), Known>,
    under_way: Slab<Getting>,
    /// Those that found no room.
    unposted: VecDeque<usize>,
    /// Versions of objects whose bytes follow.
    following: HashMap<CallId, u64>,
}

/// Where an object was, by an answer on this channel.
#[derive(Debug, Clone, Copy)]
struct Known {
    channel: ChannelId,
    version: u64,
    place: Place,
}

/// One of the two gets of a read.
#[derive(Debug)]
enum Part {
    Due,
    Posted,
    Got(Buf),
    Failed(OneSidedError),
}

#[derive(Debug)]
struct Getting {
    call: CallId,
    known: Known,
    /// Not needed if the object was located within the read.
    word: Option<Part>,
    bytes: Part,
    /// What it was for is over; only the operations in flight are waited for.
    over: bool,
}

impl Getting {
    fn in_flight(&self) -> bool {
        matches!(self.word, Some(Part::Posted)) || matches!(self.bytes, Part::Posted)
    }
}

/// What came of a read's gets.
enum Came {
    Object(Buf),
    /// It is not there any more, or another one is.
    Miss,
    /// The channel has ended: its end is told next, and the core asks again.
    Closed,
}

impl Reads {
    fn place(&self, target: Target, key: &str, channel: ChannelId) -> Option<Known> {
        if self.places.is_empty() {
            return None;
        }
        let known = self.places.get(&(target, key.into()))?;
        (known.channel == channel).then_some(*known)
    }

    fn place_learn(&mut self, target: Target, key: &str, known: Known) {
        if self.places.len() >= PLACES_MAX {
            self.places.clear();
        }
        self.places.insert((target, key.into()), known);
    }

    fn begin(&mut self, call: CallId, known: Known, located: bool) -> usize {
        let bytes = match known.place.len {
            0 => Part::Got(Buf::default()),
            _ => Part::Due,
        };
        self.under_way.insert(Getting {
            call,
            known,
            word: (!located).then_some(Part::Due),
            bytes,
            over: false,
        })
    }

    /// Posts what is due. What cannot be done ends the read.
    fn post(&mut self, ops: &mut Ops, index: usize) -> Result<(), InvokeError> {
        let getting = &mut self.under_way[index];
        let Known { channel, place, .. } = getting.known;
        let context = CONTEXT | index as u64;
        if let Some(part @ Part::Due) = &mut getting.word {
            let from = (place.words, place.word, 8);
            *part = get(ops, channel, from, context)?;
        }
        if let part @ Part::Due = &mut getting.bytes {
            let from = (place.object, place.offset, place.len);
            *part = get(ops, channel, from, context | CONTEXT_BYTES)?;
        }
        let due = matches!(getting.word, Some(Part::Due)) || matches!(getting.bytes, Part::Due);
        if due && !self.unposted.contains(&index) {
            self.unposted.push_back(index);
        }
        Ok(())
    }

    /// What came, once nothing is due or in flight.
    fn came(&self, index: usize) -> Option<Came> {
        let getting = &self.under_way[index];
        let mut miss = false;
        match &getting.word {
            Some(Part::Due | Part::Posted) => return None,
            Some(Part::Failed(OneSidedError::Closed)) => return Some(Came::Closed),
            Some(Part::Failed(_)) => miss = true,
            Some(Part::Got(word)) => {
                let word = word.first_chunk().map(|word| u64::from_le_bytes(*word));
                miss = word != Some(getting.known.version);
            }
            None => {}
        }
        match &getting.bytes {
            Part::Due | Part::Posted => None,
            Part::Failed(OneSidedError::Closed) => Some(Came::Closed),
            Part::Got(bytes) if !miss => Some(Came::Object(bytes.clone())),
            Part::Failed(_) | Part::Got(_) => Some(Came::Miss),
        }
    }

    /// Lets go of a read; what is in flight is waited for by itself.
    fn end(&mut self, index: usize) {
        let getting = &mut self.under_way[index];
        getting.over = true;
        if !getting.in_flight() {
            self.unposted.retain(|other| *other != index);
            self.under_way.remove(index);
        }
    }
}

/// Posts a get: what became of it.
fn get(
    ops: &mut Ops,
    channel: ChannelId,
    (key, offset, len): (RemoteKey, u64, u64),
    context: u64,
) -> Result<Part, InvokeError> {
    let limit = ops.config().message_max_bytes;
    let into = match usize::try_from(len) {
        Ok(len) if len as u64 <= limit => ops.pool().alloc(len),
        _ => {
            let text = format!("an object of {len} bytes, with a limit of {limit}");
            return Err(InvokeError::TooLarge(text));
        }
    };
    let into: BufMut = into.map_err(|error| InvokeError::Exhausted(error.to_string()))?;
    match ops.get(channel, key, offset, into, context) {
        Ok(PostedGet::Pending) => Ok(Part::Posted),
        Ok(PostedGet::Busy(_)) => Ok(Part::Due),
        Err(error @ SendError::TooLarge { .. }) => Err(InvokeError::TooLarge(error.to_string())),
        Err(_) => Ok(Part::Failed(OneSidedError::Closed)),
    }
}

impl Peers {
    /// Reads a state object of a process; by one-sided operations, if it is known where it is.
    ///
    /// # Errors
    /// Too many under way, or a key that cannot be.
    pub fn state_read(
        &mut self,
        ops: &mut Ops,
        target: Target,
        key: &str,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        let channel = self.core.channel(target).map(|(channel, _)| channel);
        let channel = channel.filter(|channel| !one_sided_is_asked(ops, *channel));
        let known = channel.and_then(|channel| self.reads.place(target, key, channel));
        let mut link = PeersLink {
            ops,
            outside: &mut self.outside,
        };
        let known_is = known.is_some();
        let call = self
            .core
            .read(&mut link, target, key, known_is, options, owner)?;
        match known {
            Some(known) => {
                let index = self.reads.begin(call, known, false);
                self.read_go_on(ops, index);
            }
            None => self.settle(ops),
        }
        Ok(call)
    }

    /// See [`crate::client::ClientCore::room_read`].
    pub fn room_read(&self, target: Target) -> bool {
        self.core.room_read(target)
    }

    /// A message about a read came; `payload` of a Bytes is the object.
    pub fn on_state(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        tag: u64,
        header: &[u8],
        payload: Payload,
    ) {
        let Some(header) = LocateHeader::decode(header) else {
            tracing::warn!("an answer to a read makes no sense");
            return;
        };
        let Some((call, target, key)) = self.core.read_of(channel, tag) else {
            self.reads.following.remove(&CallId::from_u64(tag));
            return;
        };
        let malformed = || Err(InvokeError::Malformed("where a state object is".into()));
        match (header.kind, Status::from_code(header.status)) {
            (LocateKind::Located, Some(Status::Ok)) => {
                let Some(body) = LocatedBody::decode(header.flags, &payload) else {
                    return self.core.read_done(call, malformed());
                };
                let version = body.version;
                let known = body.place.map(|place| Known {
                    channel,
                    version,
                    place,
                });
                if let Some(known) = known {
                    let key = key.to_owned();
                    self.reads.place_learn(target, &key, known);
                }
                if header.flags & LOCATED_FOLLOWS != 0 {
                    self.reads.following.insert(call, version);
                } else if header.flags & LOCATED_BYTES != 0 {
                    let begin = payload.len() - body.bytes.map_or(0, <[u8]>::len);
                    let bytes = payload_behind(payload, begin);
                    self.core.read_done(call, Ok((bytes, version)));
                } else if let Some(known) = known {
                    let index = self.reads.begin(call, known, true);
                    self.read_go_on(ops, index);
                } else {
                    // There is none.
                    self.core.read_done(call, Ok((Payload::default(), 0)));
                }
            }
            (LocateKind::Located, Some(_)) if header.flags & LOCATED_LATER != 0 => {
                self.core.read_later(clock::now(), call, channel);
            }
            (LocateKind::Located, Some(status)) => {
                let mut link = PeersLink {
                    ops,
                    outside: &mut self.outside,
                };
                self.core.read_refused(&mut link, call, status, payload);
                self.settle(ops);
            }
            (LocateKind::Bytes, _) => {
                let outcome = match self.reads.following.remove(&call) {
                    Some(version) => Ok((payload, version)),
                    None => malformed(),
                };
                self.core.read_done(call, outcome);
            }
            _ => self.core.read_done(call, malformed()),
        }
    }

    /// Whether an answer of this tag is waited for.
    pub fn wants_state(&self, channel: ChannelId, tag: u64) -> bool {
        self.core.read_of(channel, tag).is_some()
    }

    /// A read cannot be done here: no memory for what is to come.
    pub fn state_fail(&mut self, channel: ChannelId, tag: u64, error: InvokeError) {
        if let Some((call, ..)) = self.core.read_of(channel, tag) {
            self.core.read_done(call, Err(error));
        }
    }

    /// An operation of ours is complete; `false` if it is not of ours.
    pub fn on_one_sided(&mut self, ops: &mut Ops, done: OneSidedDone) -> bool {
        if done.context & 0xff << 56 != CONTEXT {
            return false;
        }
        let index = done.context as u32 as usize;
        let Some(getting) = self.reads.under_way.get_mut(index) else {
            tracing::error!("a read's operation is complete that is not under way");
            return true;
        };
        let part = match (done.outcome, done.data) {
            (Ok(_), Some(data)) => Part::Got(data.freeze()),
            (Ok(_), None) => Part::Failed(OneSidedError::Key),
            (Err(error), _) => Part::Failed(error),
        };
        match done.context & CONTEXT_BYTES {
            0 => getting.word = Some(part),
            _ => getting.bytes = part,
        }
        match getting.over {
            true => self.reads.end(index),
            false => self.read_go_on(ops, index),
        }
        true
    }

    /// Posts what is due of a read, and ends it if all has come.
    fn read_go_on(&mut self, ops: &mut Ops, index: usize) {
        let call = self.reads.under_way[index].call;
        if !self.core.pending(call) {
            // Its caller has given up on it.
            return self.reads.end(index);
        }
        if let Err(error) = self.reads.post(ops, index) {
            self.reads.end(index);
            return self.core.read_done(call, Err(error));
        }
        let Some(came) = self.reads.came(index) else {
            return;
        };
        let version = self.reads.under_way[index].known.version;
        self.reads.end(index);
        match came {
            Came::Object(bytes) => self.core.read_done(call, Ok((bytes.into(), version))),
            Came::Closed => {}
            Came::Miss => {
                let mut link = PeersLink {
                    ops,
                    outside: &mut self.outside,
                };
                self.core.read_again(&mut link, call);
                self.settle(ops);
            }
        }
    }

    /// There is room on a channel: reads go on.
    pub(super) fn reads_writable(&mut self, ops: &mut Ops, channel: ChannelId) {
        for _ in 0..self.reads.unposted.len() {
            let Some(index) = self.reads.unposted.pop_front() else {
                return;
            };
            match self.reads.under_way.get(index) {
                Some(getting) if getting.known.channel == channel => self.read_go_on(ops, index),
                Some(_) => self.reads.unposted.push_back(index),
                None => {}
            }
        }
    }

    /// A channel has ended, and with it all that was in flight there.
    pub(super) fn reads_closed(&mut self, channel: ChannelId) {
        let Reads {
            under_way,
            unposted,
            following,
            ..
        } = &mut self.reads;
        following.retain(|call, _| self.core.pending(*call));
        if !under_way.is_empty() {
            under_way.retain(|_, getting| getting.known.channel != channel);
            unposted.retain(|index| under_way.contains(*index));
        }
    }
}

/// Whether one-sided operations are messages on a channel.
pub(super) fn one_sided_is_asked(ops: &Ops, channel: ChannelId) -> bool {
    let kind = ops.info(channel).map(|info| info.kind);
    matches!(kind, Some(TransportKind::Unix | TransportKind::Tcp))
}

/// What of a payload comes from `begin` on.
fn payload_behind(payload: Payload, begin: usize) -> Payload {
    match payload {
        Payload::Inline(bytes) => Payload::Inline(smallvec::SmallVec::from_slice(&bytes[begin..])),
        Payload::Buf(buf) => buf.slice(begin..buf.len()).unwrap_or_default().into(),
    }
}
