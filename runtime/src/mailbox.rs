//! The mailbox: messages by source and key, first in, first out, taken once.
//!
//! One queue per (source, key); an arrival number tells which of several queues with the same key
//! is the oldest, which is what ANY source takes. A message is acknowledged once it is in here,
//! and popped only when handed to a waiter that still waits. A full mailbox refuses, it never
//! drops. No clock, thread or socket inside: whoever calls brings the waiters.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use praas_transport::sync::atomic::Ordering;
use praas_transport::{Buf, StatsPage, StatsWord};
use serde::ser::{SerializeSeq as _, SerializeStruct as _};
use serde::{Deserialize, Serialize, Serializer};

/// Whose messages a get wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Anybody's: the oldest.
    Any,
    /// This process's or client's.
    From(String),
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailMessage {
    /// Who put it.
    pub source: String,
    /// Under which key.
    pub key: String,
    /// What it carries.
    pub payload: Buf,
}

/// How much a mailbox holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MailboxLimits {
    /// Messages.
    pub messages_max: usize,
    /// Bytes of payloads and keys.
    pub bytes_max: u64,
}

/// What became of a put.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is in the mailbox.
    Stored,
    /// It was there before: a resend after a reconnect.
    Duplicate,
    /// There is no room; nothing was taken.
    Full,
}

/// Names a put, so that a resend is known: the sender, its incarnation, its sequence number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PutId {
    /// The sender's name.
    pub sender: String,
    /// Its incarnation, or a client's id folded to 64 bits.
    pub incarnation: u64,
    /// Counts its puts to this process from zero.
    pub sequence: u64,
}

/// The sequence numbers seen of one sender: all below `end` but for those that are missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "SeenImage")]
struct SeenPuts {
    incarnation: u64,
    end: u64,
    missing: Missing,
}

/// Those of the last [`PUTS_INFLIGHT_MAX`] numbers that may come yet, a bit each at the number modulo
/// so many; nothing if there are none. A put that was turned away, or given up, never comes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Missing(Option<Box<[u64; MISSING_WORDS]>>);

const MISSING_WORDS: usize = PUTS_INFLIGHT_MAX / u64::BITS as usize;

/// The same in an image: all below `next` were seen, and some above.
#[derive(Deserialize)]
struct SeenImage {
    incarnation: u64,
    next: u64,
    above: Vec<u64>,
}

/// Puts of one sender to one process that are under way: what is further behind its newest was given
/// up.
pub const PUTS_INFLIGHT_MAX: usize = 1024;
/// Senders that are remembered; the one with the lowest incarnation is forgotten first.
const SENDERS_MAX: usize = 1 << 16;

/// A waiter: chosen by whoever registers it.
pub type WaiterId = u64;

type Queue = VecDeque<(u64, Buf)>;

/// A mailbox.
#[derive(Debug)]
pub struct Mailbox {
    /// By key, then by source.
    queues: BTreeMap<String, BTreeMap<String, Queue>>,
    waiters: VecDeque<(WaiterId, Source, String)>,
    seen: HashMap<String, SeenPuts>,
    limits: MailboxLimits,
    arrivals: u64,
    messages: usize,
    bytes: u64,
    /// Where messages are counted for others to see.
    page: Option<Arc<StatsPage>>,
}

/// What of a mailbox is swapped out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MailboxImage {
    /// All messages, the oldest first.
    pub messages: Vec<MailMessage>,
    /// What is known of resends, encoded.
    pub seen: Vec<u8>,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new(limits: MailboxLimits) -> Self {
        Self {
            queues: BTreeMap::new(),
            waiters: VecDeque::new(),
            seen: HashMap::new(),
            limits,
            arrivals: 0,
            messages: 0,
            bytes: 0,
            page: None,
        }
    }

    /// Counts messages in this page, too, from now on.
    pub fn count_in(&mut self, page: Arc<StatsPage>) {
        self.page = Some(page);
        self.messages_tell();
    }

    fn messages_tell(&self) {
        if let Some(page) = &self.page {
            let word = page.word(StatsWord::Messages);
            word.store(self.messages as u64, Ordering::Relaxed);
        }
    }

    /// A message has come. Who has the mailbox is the only writer.
    fn put_tell(&self) {
        if let Some(page) = &self.page {
            let word = page.word(StatsWord::Puts);
            word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// Puts a message. If somebody waits for it, it is handed over: the waiter and the message.
    pub fn put(
        &mut self,
        id: Option<PutId>,
        message: MailMessage,
    ) -> (Put, Option<(WaiterId, MailMessage)>) {
        if let Some(id) = &id
            && self.seen_before(id)
        {
            return (Put::Duplicate, None);
        }
        let waiter = self.waiters.iter().position(|(_, source, key)| {
            *key == message.key && source_fits(source, &message.source)
        });
        let cost = cost(&message);
        let full = self.messages >= self.limits.messages_max
            || self.bytes.saturating_add(cost) > self.limits.bytes_max;
        if waiter.is_none() && full {
            return (Put::Full, None);
        }
        if let Some(id) = id {
            self.seen_mark(id);
        }
        self.put_tell();
        if let Some((waiter, ..)) = waiter.and_then(|at| self.waiters.remove(at)) {
            return (Put::Stored, Some((waiter, message)));
        }
        self.store(message);
        (Put::Stored, None)
    }

    /// Takes the oldest message that fits.
    pub fn take(&mut self, source: &Source, key: &str) -> Option<MailMessage> {
        let by_source = self.queues.get_mut(key)?;
        let from = match source {
            Source::From(name) => name.clone(),
            Source::Any => oldest(by_source)?.clone(),
        };
        let queue = by_source.get_mut(&from)?;
        let (_, payload) = queue.pop_front()?;
        if queue.is_empty() {
            by_source.remove(&from);
        }
        if by_source.is_empty() {
            self.queues.remove(key);
        }
        let message = MailMessage {
            source: from,
            key: key.into(),
            payload,
        };
        self.messages -= 1;
        self.messages_tell();
        self.bytes -= cost(&message);
        Some(message)
    }

    /// The message that [`Mailbox::take`] would take, left in place.
    pub fn peek(&self, source: &Source, key: &str) -> Option<MailMessage> {
        let by_source = self.queues.get(key)?;
        let from = match source {
            Source::From(name) => name,
            Source::Any => oldest(by_source)?,
        };
        let (_, payload) = by_source.get(from)?.front()?;
        Some(MailMessage {
            source: from.clone(),
            key: key.into(),
            payload: payload.clone(),
        })
    }

    /// Waits for a message: the next that fits goes to this waiter. The caller has found none by
    /// [`Mailbox::take`] under the same lock.
    pub fn wait(&mut self, waiter: WaiterId, source: Source, key: String) {
        self.waiters.push_back((waiter, source, key));
    }

    /// Ends a wait; whether it was still on. If not, a message is on its way to the waiter.
    pub fn cancel(&mut self, waiter: WaiterId) -> bool {
        let at = self.waiters.iter().position(|(id, ..)| *id == waiter);
        at.is_some_and(|at| self.waiters.remove(at).is_some())
    }

    /// Puts a message back at the head of its queue: its waiter left before it was handed over.
    pub fn give_back(&mut self, message: MailMessage) {
        self.messages += 1;
        self.messages_tell();
        self.bytes += cost(&message);
        let by_source = self.queues.entry(message.key).or_default();
        let arrival = by_source
            .get(&message.source)
            .and_then(|queue| queue.front())
            .map_or(self.arrivals, |(arrival, _)| *arrival);
        by_source
            .entry(message.source)
            .or_default()
            .push_front((arrival, message.payload));
    }

    /// Whether a message whose key and payload have this many bytes fits now.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.messages < self.limits.messages_max
            && self.bytes.saturating_add(bytes) <= self.limits.bytes_max
    }

    /// Messages in it.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether it has no messages.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Everything, for swapping out.
    ///
    /// # Errors
    /// What is known of resends cannot be encoded.
    pub fn image(&self) -> Result<MailboxImage, crate::codec::CodecError> {
        let mut all: Vec<(u64, MailMessage)> = Vec::with_capacity(self.messages);
        for (key, by_source) in &self.queues {
            for (source, queue) in by_source {
                all.extend(queue.iter().map(|(arrival, payload)| {
                    let (source, key) = (source.clone(), key.clone());
                    (
                        *arrival,
                        MailMessage {
                            source,
                            key,
                            payload: payload.clone(),
                        },
                    )
                }));
            }
        }
        all.sort_by_key(|(arrival, _)| *arrival);
        let seen: BTreeMap<_, _> = self.seen.iter().collect();
        Ok(MailboxImage {
            messages: all.into_iter().map(|(_, message)| message).collect(),
            seen: crate::codec::encode(&seen)?,
        })
    }

    /// Replaces everything by an image.
    ///
    /// # Errors
    /// What is known of resends cannot be decoded.
    pub fn restore(&mut self, image: MailboxImage) -> Result<(), crate::codec::CodecError> {
        self.seen = match image.seen.is_empty() {
            true => HashMap::new(),
            false => crate::codec::decode(&image.seen)?,
        };
        self.queues.clear();
        (self.messages, self.bytes) = (0, 0);
        for message in image.messages {
            self.store(message);
        }
        Ok(())
    }

    fn store(&mut self, message: MailMessage) {
        self.messages += 1;
        self.messages_tell();
        self.bytes += cost(&message);
        let arrival = self.arrivals;
        self.arrivals += 1;
        let queue = self
            .queues
            .entry(message.key)
            .or_default()
            .entry(message.source)
            .or_default();
        queue.push_back((arrival, message.payload));
    }

    fn seen_before(&self, id: &PutId) -> bool {
        self.seen.get(&id.sender).is_some_and(|seen| {
            // A sender's older life can only resend.
            id.incarnation < seen.incarnation
                || id.incarnation == seen.incarnation && seen.has(id.sequence)
        })
    }

    fn seen_mark(&mut self, id: PutId) {
        if self.seen.len() >= SENDERS_MAX && !self.seen.contains_key(&id.sender) {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.incarnation);
            if let Some(oldest) = oldest.map(|(sender, _)| sender.clone()) {
                self.seen.remove(&oldest);
            }
        }
        let seen = self.seen.entry(id.sender).or_default();
        if id.incarnation > seen.incarnation {
            *seen = SeenPuts {
                incarnation: id.incarnation,
                ..SeenPuts::default()
            };
        }
        seen.mark(id.sequence);
    }
}

impl SeenPuts {
    fn has(&self, sequence: u64) -> bool {
        sequence < self.end && !(sequence >= self.lowest() && self.missing.has(sequence))
    }

    fn mark(&mut self, sequence: u64) {
        if sequence < self.end {
            if sequence >= self.lowest() {
                self.missing.set(sequence, false);
            }
            return;
        }
        let before = self.end;
        self.end = sequence.saturating_add(1);
        // Each takes the place of one that has become too old.
        for number in self.lowest().max(before)..self.end {
            self.missing.set(number, number != sequence);
        }
    }

    /// What is below this does not come any more: so many puts of a sender are under way at most.
    fn lowest(&self) -> u64 {
        self.end.saturating_sub(PUTS_INFLIGHT_MAX as u64)
    }

    /// Those that may come yet, in order.
    fn gaps(&self) -> impl Iterator<Item = u64> {
        (self.lowest()..self.end).filter(|sequence| self.missing.has(*sequence))
    }
}

impl Missing {
    /// The word and the bit that stand for a number.
    fn place(sequence: u64) -> (usize, u64) {
        let at = (sequence % PUTS_INFLIGHT_MAX as u64) as usize;
        let bits = u64::BITS as usize;
        (at / bits, 1 << (at % bits))
    }

    fn has(&self, sequence: u64) -> bool {
        let (word, bit) = Self::place(sequence);
        let words = self.0.as_ref();
        words.is_some_and(|words| words[word] & bit != 0)
    }

    fn set(&mut self, sequence: u64, missing: bool) {
        let (word, bit) = Self::place(sequence);
        if missing {
            self.0.get_or_insert_default()[word] |= bit;
        } else if let Some(words) = &mut self.0 {
            words[word] &= !bit;
            if words.iter().all(|word| *word == 0) {
                self.0 = None;
            }
        }
    }
}

impl From<SeenImage> for SeenPuts {
    fn from(image: SeenImage) -> Self {
        let SeenImage {
            incarnation,
            next,
            above,
        } = image;
        let end = above.iter().max().map_or(0, |last| last.saturating_add(1));
        let mut seen = Self {
            incarnation,
            end: end.max(next),
            missing: Missing::default(),
        };
        for number in seen.lowest().max(next)..seen.end {
            seen.missing.set(number, true);
        }
        above.into_iter().for_each(|number| seen.mark(number));
        seen
    }
}

/// As [`SeenImage`], without making one: an image is taken while nobody can put.
impl Serialize for SeenPuts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let next = self.gaps().next().unwrap_or(self.end);
        let above = Above {
            seen: self,
            from: next,
        };
        let mut image = serializer.serialize_struct("SeenImage", 3)?;
        image.serialize_field("incarnation", &self.incarnation)?;
        image.serialize_field("next", &next)?;
        image.serialize_field("above", &above)?;
        image.end()
    }
}

/// The numbers that were seen, from one on.
struct Above<'a> {
    seen: &'a SeenPuts,
    from: u64,
}

impl Serialize for Above<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let numbers = || (self.from..self.seen.end).filter(|number| self.seen.has(*number));
        let mut list = serializer.serialize_seq(Some(numbers().count()))?;
        numbers().try_for_each(|number| list.serialize_element(&number))?;
        list.end()
    }
}

fn source_fits(wanted: &Source, source: &str) -> bool {
    match wanted {
        Source::Any => true,
        Source::From(name) => name == source,
    }
}

fn oldest(by_source: &BTreeMap<String, Queue>) -> Option<&String> {
    let arrival = |queue: &Queue| queue.front().map(|(arrival, _)| *arrival);
    by_source
        .iter()
        .min_by_key(|(_, queue)| arrival(queue))
        .map(|(source, _)| source)
}

fn cost(message: &MailMessage) -> u64 {
    (message.key.len() + message.payload.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mailbox(messages_max: usize) -> Mailbox {
        Mailbox::new(MailboxLimits {
            messages_max,
            bytes_max: 1_000,
        })
    }

    fn message(source: &str, key: &str, byte: u8) -> MailMessage {
        MailMessage {
            source: source.into(),
            key: key.into(),
            payload: vec![byte].into(),
        }
    }

    #[test]
    fn a_full_mailbox_refuses_and_keeps_what_it_has() {
        let mut mailbox = mailbox(2);
        for byte in 0..2 {
            assert_eq!(mailbox.put(None, message("a", "k", byte)).0, Put::Stored);
        }
        assert_eq!(mailbox.put(None, message("a", "k", 2)).0, Put::Full);
        assert_eq!(mailbox.take(&Source::Any, "k"), Some(message("a", "k", 0)));
        assert_eq!(mailbox.put(None, message("a", "k", 2)).0, Put::Stored);
        mailbox.wait(7, Source::From("b".into()), "k".into());
        // Somebody waits for it, so it needs no room.
        let (put, handed) = mailbox.put(None, message("b", "k", 9));
        assert_eq!(
            (put, handed),
            (Put::Stored, Some((7, message("b", "k", 9))))
        );
        assert!(!mailbox.cancel(7));
        mailbox.give_back(message("b", "k", 9));
        assert_eq!(
            mailbox.peek(&Source::From("b".into()), "k"),
            Some(message("b", "k", 9))
        );
    }

    #[test]
    fn resends_are_dropped_and_a_new_life_counts_anew() {
        let mut mailbox = mailbox(100);
        let id = |incarnation, sequence| {
            Some(PutId {
                sender: "a".into(),
                incarnation,
                sequence,
            })
        };
        assert_eq!(mailbox.put(id(1, 1), message("a", "k", 1)).0, Put::Stored);
        assert_eq!(mailbox.put(id(1, 0), message("a", "k", 0)).0, Put::Stored);
        assert_eq!(
            mailbox.put(id(1, 1), message("a", "k", 1)).0,
            Put::Duplicate
        );
        assert_eq!(mailbox.put(id(2, 0), message("a", "k", 2)).0, Put::Stored);
        assert_eq!(
            mailbox.put(id(1, 5), message("a", "k", 1)).0,
            Put::Duplicate
        );
        let image = mailbox.image().unwrap();
        let mut restored = self::mailbox(100);
        restored.restore(image.clone()).unwrap();
        assert_eq!(
            restored.put(id(2, 0), message("a", "k", 2)).0,
            Put::Duplicate
        );
        assert_eq!(restored.image().unwrap(), image);
    }

    /// What of a sender's puts is remembered besides the newest.
    fn gaps(mailbox: &Mailbox) -> usize {
        mailbox.seen["a"].gaps().count()
    }

    #[test]
    fn puts_that_never_got_in_are_remembered_for_a_while_only() {
        let mut mailbox = mailbox(1);
        let put = |mailbox: &mut Mailbox, sequence| {
            let id = PutId {
                sender: "a".into(),
                incarnation: 1,
                sequence,
            };
            mailbox.put(Some(id), message("a", "k", 0)).0
        };
        let newest = PUTS_INFLIGHT_MAX as u64 * 8;
        for sequence in 0..newest {
            let full = sequence % 100 == 7;
            if full {
                mailbox.store(message("b", "k", 0));
            }
            let expected = if full { Put::Full } else { Put::Stored };
            assert_eq!(put(&mut mailbox, sequence), expected);
            while mailbox.take(&Source::Any, "k").is_some() {}
            assert!(gaps(&mailbox) <= PUTS_INFLIGHT_MAX / 100 + 1);
        }
        // One that may be under way still, and one that cannot be.
        let last = (newest - 100..newest).find(|number| number % 100 == 7);
        assert_eq!(put(&mut mailbox, last.unwrap()), Put::Stored);
        assert_eq!(put(&mut mailbox, last.unwrap()), Put::Duplicate);
        assert_eq!(put(&mut mailbox, 7), Put::Duplicate);
        // Whatever a sender counts, what is remembered of it has a limit.
        while mailbox.take(&Source::Any, "k").is_some() {}
        assert_eq!(put(&mut mailbox, u64::MAX - 1), Put::Stored);
        assert_eq!(gaps(&mailbox), PUTS_INFLIGHT_MAX - 1);
        let image = mailbox.image().unwrap();
        let mut restored = self::mailbox(1);
        restored.restore(image).unwrap();
        assert_eq!(restored.seen, mailbox.seen);
    }

    #[test]
    fn what_an_image_says_of_resends_is_bounded() {
        let seen = |next, above: &[u64]| {
            SeenPuts::from(SeenImage {
                incarnation: 1,
                next,
                above: above.into(),
            })
        };
        assert_eq!(seen(3, &[5, u64::MAX]).gaps().count(), PUTS_INFLIGHT_MAX);
        let seen = seen(3, &[5, 6, 9]);
        assert_eq!((seen.end, seen.gaps().collect()), (10, vec![3, 4, 7, 8]));
        let image = crate::codec::encode(&seen).unwrap();
        assert_eq!(
            image,
            crate::codec::encode(&(1_u64, 3_u64, [5_u64, 6, 9].as_slice())).unwrap()
        );
        assert_eq!(crate::codec::decode::<SeenPuts>(&image).unwrap(), seen);
    }

    proptest! {
        /// Against a set of all numbers that were put.
        #[test]
        fn what_is_seen_of_a_sender_behaves_like_a_set(
            steps in proptest::collection::vec((any::<bool>(), 0..3_000_u64), 0..200),
        ) {
            let mut seen = SeenPuts::default();
            let mut model = std::collections::BTreeSet::new();
            let window = PUTS_INFLIGHT_MAX as u64;
            for (ahead, by) in steps {
                let number = match ahead {
                    true => seen.end + by % 40 * (by % 40),
                    false => seen.end.saturating_sub(1 + by),
                };
                let old = number.saturating_add(window) < seen.end;
                prop_assert_eq!(seen.has(number), old || model.contains(&number));
                seen.mark(number);
                model.insert(number);
                prop_assert!(seen.has(number) && !seen.has(seen.end));
            }
            let from = seen.lowest();
            let gaps: Vec<_> = (from..seen.end).filter(|number| !model.contains(number)).collect();
            prop_assert_eq!(seen.gaps().collect::<Vec<_>>(), gaps.clone());
            prop_assert_eq!(seen.missing.0.is_none(), gaps.is_empty());
            let image = crate::codec::encode(&seen).unwrap();
            prop_assert_eq!(crate::codec::decode::<SeenPuts>(&image).unwrap(), seen);
        }

        /// Against a plain list: take the first that fits.
        #[test]
        fn it_behaves_like_a_list(ops in proptest::collection::vec((0..4_u8, 0..3_u8, 0..2_u8), 0..200)) {
            let mut mailbox = mailbox(1_000);
            let mut model: Vec<MailMessage> = Vec::new();
            for (number, (op, source, key)) in ops.into_iter().enumerate() {
                let (source, key) = (format!("s{source}"), format!("k{key}"));
                let wanted = match op {
                    0 | 1 => {
                        let message = message(&source, &key, number as u8);
                        prop_assert_eq!(mailbox.put(None, message.clone()).0, Put::Stored);
                        model.push(message);
                        continue;
                    }
                    2 => Source::Any,
                    _ => Source::From(source),
                };
                let at = model.iter().position(|m| m.key == key && source_fits(&wanted, &m.source));
                let expected = at.map(|at| model.remove(at));
                prop_assert_eq!(mailbox.peek(&wanted, &key), expected.clone());
                prop_assert_eq!(mailbox.take(&wanted, &key), expected);
            }
            prop_assert_eq!(mailbox.image().unwrap().messages, model);
        }
    }
}
