//! The side that is the process: what is sent next, and when it must freeze.
//!
//! ```text
//!   Offered --Begin--> Copying --all looked at--> Waiting --Have--> Measuring --little left--+
//!                         ^                                             |                    |
//!                         +---------------- much left ------------------+                    v
//!   Complete <--Complete-- Ended <-End is out- Ending <--all queued-- Last <--frozen-- Freezing
//! ```
//!
//! Until `End` goes out the source may give up by itself and serve on: the target cannot have
//! all. From then on only the control plane can know, and the source stays as it is.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use praas_transport::Buf;

use super::message::{Entry, FromSource, FromTarget, WORD_MAX_BYTES, What};
use crate::files::ImageFile;
use crate::state::{ObjectMeta, StateStore};
use crate::swap::{ProcessImage, mailbox_encode, sessions_encode};

/// Objects that are looked at in one step.
const LOOK: usize = 64;
/// Bytes of entries after which they go.
const ENTRIES_BYTES: usize = WORD_MAX_BYTES / 2;

/// The objects of a process that goes on changing them.
pub trait Objects {
    /// The next objects after a key, in order.
    fn list(&self, after: Option<&str>, limit: usize) -> Vec<(String, ObjectMeta)>;
    /// An object as it is now.
    fn object(&self, key: &str) -> Option<(Buf, ObjectMeta)>;
}

impl Objects for StateStore {
    fn list(&self, after: Option<&str>, limit: usize) -> Vec<(String, ObjectMeta)> {
        StateStore::list(self, "", after, limit)
    }

    // Whoever drives this has all of the state here before it begins. An object that could not be
    // had is left out, and fails the freeze, which takes them all.
    fn object(&self, key: &str) -> Option<(Buf, ObjectMeta)> {
        StateStore::object(self, key).ok().flatten()
    }
}

/// Limits of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceLimits {
    /// Rounds before the process freezes, whatever is left.
    pub rounds_max: u32,
    /// Bytes that may be left for the freeze.
    pub freeze_max_bytes: u64,
    /// Bytes on their way at once.
    pub window_bytes: u64,
    /// Bytes that one message may have; what is larger goes in several.
    pub piece_max_bytes: u64,
}

/// Something to be sent.
#[derive(Debug, Clone)]
pub enum Out {
    /// A word.
    Word(FromSource),
    /// Bytes of an entry.
    Piece {
        /// Which.
        entry: u64,
        /// Where in it they belong.
        offset: u64,
        /// The bytes.
        buf: Buf,
    },
}

/// What a step came to.
#[derive(Debug)]
pub enum Step {
    /// Send this.
    Send(Out),
    /// Nothing to be sent yet: step on.
    Again,
    /// Nothing until something happens.
    Idle,
}

/// What whoever drives the source is to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Little is left: quiesce, then [`Source::frozen`].
    Freeze,
    /// The target has everything.
    Complete,
    /// It came to nothing, and cannot have come to anything: serve on.
    Failed(String),
    /// The target is out of reach, and may have everything.
    Doubt(String),
}

#[derive(Debug)]
enum Phase {
    Offered,
    Copying {
        after: Option<String>,
    },
    Waiting,
    Measuring {
        after: Option<String>,
        left: u64,
    },
    Freezing,
    Last,
    /// `End` is yet to go.
    Ending,
    Ended,
    Complete,
    Failed,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// Rounds while the process served.
    pub rounds: u32,
    /// Bytes of entries sent, all rounds together.
    pub bytes: u64,
    /// Bytes of them that were sent while the process was frozen.
    pub frozen_bytes: u64,
}

/// The sending side.
#[derive(Debug)]
pub struct Source {
    token: [u8; 16],
    limits: SourceLimits,
    phase: Phase,
    /// The version of each object that was sent.
    sent: BTreeMap<Box<str>, u64>,
    queue: VecDeque<Out>,
    entries: u64,
    /// Bytes that were posted and have not come back.
    flight: u64,
    counts: SourceCounts,
    /// Objects that were sent, and are none of the last.
    gone: std::vec::IntoIter<Box<str>>,
    last: std::vec::IntoIter<(String, Buf, ObjectMeta)>,
    rest: VecDeque<(What, Buf)>,
    vouched: Vec<u64>,
    state_version: u64,
    notices: VecDeque<Notice>,
}

impl Source {
    /// Waits for a target that knows the token.
    pub fn new(token: [u8; 16], limits: SourceLimits) -> Self {
        Self {
            token,
            limits,
            phase: Phase::Offered,
            sent: BTreeMap::new(),
            queue: VecDeque::new(),
            entries: 0,
            flight: 0,
            counts: SourceCounts::default(),
            gone: Vec::new().into_iter(),
            last: Vec::new().into_iter(),
            rest: VecDeque::new(),
            vouched: Vec::new(),
            state_version: 0,
            notices: VecDeque::new(),
        }
    }

    /// What was sent so far.
    pub fn counts(&self) -> SourceCounts {
        self.counts
    }

    /// What is to be known next.
    pub fn notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Whether the target may have everything.
    pub fn in_doubt(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::Complete)
    }

    /// The target says something. One that does not know the token, or speaks out of order, is not
    /// to be spoken to: `false`.
    #[must_use]
    pub fn heard(&mut self, word: &FromTarget) -> bool {
        match (word, &self.phase) {
            (FromTarget::Begin { token }, Phase::Offered) if *token == self.token => {
                self.phase = Phase::Copying { after: None };
                true
            }
            (FromTarget::Have { round }, Phase::Waiting) if *round == self.counts.rounds => {
                self.phase = match self.counts.rounds >= self.limits.rounds_max {
                    true => self.freeze(),
                    false => Phase::Measuring {
                        after: None,
                        left: 0,
                    },
                };
                true
            }
            (FromTarget::Complete, Phase::Ended) => {
                self.phase = Phase::Complete;
                self.notices.push_back(Notice::Complete);
                true
            }
            // What was on its way when we gave up.
            (_, Phase::Failed) => true,
            _ => false,
        }
    }

    fn freeze(&mut self) -> Phase {
        self.notices.push_back(Notice::Freeze);
        Phase::Freezing
    }

    /// A piece that went by rendezvous is there.
    pub fn sent(&mut self, bytes: u64) {
        self.flight = self.flight.saturating_sub(bytes);
    }

    /// A piece goes by rendezvous: it counts until it is there.
    pub fn posted(&mut self, bytes: u64) {
        self.flight += bytes;
    }

    /// There was no room for it.
    pub fn put_back(&mut self, out: Out) {
        if matches!(out, Out::Word(FromSource::End { .. })) {
            self.phase = Phase::Ending;
        }
        self.queue.push_front(out);
    }

    /// The process is frozen, and this is all of it. It knows all invocations of the incarnations
    /// that it vouches for.
    pub fn frozen(&mut self, image: ProcessImage, vouched: Vec<u64>) {
        if !matches!(self.phase, Phase::Freezing) {
            return;
        }
        self.vouched = vouched;
        self.state_version = image.state_version;
        self.phase = Phase::Last;
        self.counts.frozen_bytes = self.counts.bytes;
        let known = std::mem::take(&mut self.sent);
        let mut state = image.state.iter().map(|(key, ..)| key.as_str()).peekable();
        let mut gone = Vec::new();
        for (key, version) in known {
            // Both are in order.
            while state.next_if(|first| **first < *key).is_some() {}
            match state.peek() == Some(&&*key) {
                true => drop(self.sent.insert(key, version)),
                false => gone.push(key),
            }
        }
        self.gone = gone.into_iter();
        self.last = image.state.into_iter();
        let (mailbox, bodies) = mailbox_encode(&image.mailbox);
        self.rest.push_back((What::Mailbox, Buf::from_vec(mailbox)));
        for body in bodies {
            self.rest.push_back((What::Body, body));
        }
        let sessions = sessions_encode(&image.sessions);
        self.rest
            .push_back((What::Sessions, Buf::from_vec(sessions)));
        for ImageFile { name, mode, bytes } in image.files {
            self.rest.push_back((What::File { name, mode }, bytes));
        }
    }

    /// Gives up, if the target cannot have everything; whether that is so.
    pub fn give_up(&mut self, error: &str) -> bool {
        if self.in_doubt() {
            return false;
        }
        self.queue.clear();
        if !matches!(self.phase, Phase::Failed) {
            let error = error.chars().take(1000).collect();
            self.queue
                .push_back(Out::Word(FromSource::Failed { error }));
            self.phase = Phase::Failed;
        }
        true
    }

    /// The target is gone.
    pub fn lost(&mut self, why: &str) {
        let notice = match self.phase {
            Phase::Failed | Phase::Complete => return,
            Phase::Ended => Notice::Doubt(why.into()),
            _ => {
                self.phase = Phase::Failed;
                Notice::Failed(why.into())
            }
        };
        self.queue.clear();
        self.notices.push_back(notice);
    }

    /// What is to be done next.
    pub fn step(&mut self, objects: &dyn Objects) -> Step {
        if self.flight >= self.limits.window_bytes {
            return Step::Idle;
        }
        if let Some(out) = self.queue_pop() {
            return Step::Send(out);
        }
        match std::mem::replace(&mut self.phase, Phase::Failed) {
            Phase::Copying { after } => self.copy(objects, after),
            Phase::Measuring { after, left } => self.measure(objects, after, left),
            Phase::Last => self.last_step(),
            phase => {
                self.phase = phase;
                return Step::Idle;
            }
        }
        match self.queue_pop() {
            Some(out) => Step::Send(out),
            None => Step::Again,
        }
    }

    fn queue_pop(&mut self) -> Option<Out> {
        let out = self.queue.pop_front()?;
        if matches!(out, Out::Word(FromSource::End { .. })) {
            self.phase = Phase::Ended;
        }
        Some(out)
    }

    /// Announces parts and queues their bytes.
    fn announce(&mut self, parts: Vec<(What, Buf)>) {
        let mut entries = Vec::with_capacity(parts.len());
        let mut pieces = Vec::with_capacity(parts.len());
        for (what, buf) in parts {
            let bytes = buf.len() as u64;
            self.counts.bytes += bytes;
            let entry = self.entries;
            self.entries += 1;
            entries.push(Entry { what, bytes });
            let piece_max = self.limits.piece_max_bytes.max(1);
            let mut offset = 0;
            while offset < bytes {
                let end = (offset + piece_max).min(bytes);
                if let Some(buf) = buf.slice(offset as usize..end as usize) {
                    pieces.push(Out::Piece { entry, offset, buf });
                }
                offset = end;
            }
        }
        if !entries.is_empty() {
            self.queue
                .push_back(Out::Word(FromSource::Entries(entries)));
            self.queue.extend(pieces);
        }
    }

    fn copy(&mut self, objects: &dyn Objects, after: Option<String>) {
        let listed = objects.list(after.as_deref(), LOOK);
        let gone = self.gone_find(after.as_deref(), &listed);
        if !gone.is_empty() {
            // Before what may have come in its place: both may be more than there may be.
            self.deleted(gone);
            self.phase = Phase::Copying { after };
            return;
        }
        if listed.is_empty() {
            self.counts.rounds += 1;
            let round = self.counts.rounds;
            self.queue.push_back(Out::Word(FromSource::Round { round }));
            self.phase = Phase::Waiting;
            return;
        }
        let (mut parts, mut word_bytes, mut bytes) = (Vec::new(), 0, 0);
        let mut after = after;
        for (key, meta) in listed {
            let full = word_bytes >= ENTRIES_BYTES || bytes >= self.limits.window_bytes;
            if full {
                break;
            }
            let known = self.sent.get(key.as_str()) == Some(&meta.version);
            // It may have changed since it was listed, or be gone, which the last round tells.
            if !known && let Some((buf, meta)) = objects.object(&key) {
                self.sent.insert(key.as_str().into(), meta.version);
                bytes += buf.len() as u64;
                word_bytes += key.len() + 34;
                parts.push((object(key.clone(), meta), buf));
            }
            after = Some(key);
        }
        self.announce(parts);
        self.phase = Phase::Copying { after };
    }

    /// Objects that were sent and are not there any more, a few: those after a key up to the last
    /// that is listed, or all if none is.
    fn gone_find(&self, after: Option<&str>, listed: &[(String, ObjectMeta)]) -> Vec<Box<str>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let to = listed.last().map(|(key, _)| key.as_str());
        let to = to.map_or(Bound::Unbounded, Bound::Included);
        let mut listed = listed.iter().map(|(key, _)| key.as_str()).peekable();
        let sent = self.sent.range::<str, _>((from, to));
        let gone = sent.filter(|(key, _)| {
            while listed.next_if(|first| *first < &***key).is_some() {}
            listed.peek() != Some(&&***key)
        });
        gone.map(|(key, _)| key.clone()).take(LOOK).collect()
    }

    /// Queues words that objects are gone.
    fn deleted(&mut self, keys: Vec<Box<str>>) {
        let (mut deleted, mut word_bytes) = (Vec::new(), 0);
        for key in keys {
            self.sent.remove(&key);
            if word_bytes >= ENTRIES_BYTES {
                let full = std::mem::take(&mut deleted);
                self.queue.push_back(Out::Word(FromSource::Deleted(full)));
                word_bytes = 0;
            }
            word_bytes += key.len() + 4;
            deleted.push(key.into());
        }
        if !deleted.is_empty() {
            let word = FromSource::Deleted(deleted);
            self.queue.push_back(Out::Word(word));
        }
    }

    /// Whether another round is worth while.
    fn measure(&mut self, objects: &dyn Objects, after: Option<String>, mut left: u64) {
        let listed = objects.list(after.as_deref(), LOOK);
        let done = listed.is_empty();
        let mut after = after;
        for (key, meta) in listed {
            if self.sent.get(key.as_str()) != Some(&meta.version) {
                left = left.saturating_add(meta.bytes);
            }
            after = Some(key);
        }
        self.phase = match (done, left > self.limits.freeze_max_bytes) {
            (_, true) => Phase::Copying { after: None },
            (true, false) => self.freeze(),
            (false, false) => Phase::Measuring { after, left },
        };
    }

    fn last_step(&mut self) {
        let gone: Vec<Box<str>> = self.gone.by_ref().take(LOOK).collect();
        if !gone.is_empty() {
            self.deleted(gone);
            self.phase = Phase::Last;
            return;
        }
        let (mut parts, mut word_bytes) = (Vec::new(), 0);
        let mut looked = 0;
        while word_bytes < ENTRIES_BYTES
            && looked < LOOK
            && let Some((key, buf, meta)) = self.last.next()
        {
            looked += 1;
            if self.sent.remove(key.as_str()) != Some(meta.version) {
                word_bytes += key.len() + 34;
                parts.push((object(key, meta), buf));
            }
        }
        if looked == 0 {
            return self.rest_step();
        }
        self.announce(parts);
        self.phase = Phase::Last;
    }

    /// After the last object: what is no object, then the end.
    fn rest_step(&mut self) {
        self.phase = Phase::Last;
        if let Some((what, buf)) = self.rest.pop_front() {
            self.announce(vec![(what, buf)]);
        } else {
            self.counts.frozen_bytes = self.counts.bytes - self.counts.frozen_bytes;
            let vouched = std::mem::take(&mut self.vouched);
            let end = FromSource::End {
                vouched,
                state_version: self.state_version,
            };
            self.queue.push_back(Out::Word(end));
            self.phase = Phase::Ending;
        }
    }
}

fn object(key: String, meta: ObjectMeta) -> What {
    What::Object {
        key,
        version: meta.version,
        written_unix_ms: meta.written_unix_ms,
    }
}
