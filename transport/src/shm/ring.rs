//! The eager ring: one writer, one reader, 64-byte lines in memory that both map.
//!
//! ```text
//!  line:   0        8              40          64        (later lines: 64 bytes of body each)
//!          | seq    | frame header | body ...  |
//!
//!             consumed                    tail
//!                v                         v
//!   ... free ... | read, to be read ...    | free ...     positions count lines since the start
//! ```
//!
//! A frame takes whole lines. The writer fills them and then release-stores `seq` = position + 1
//! into the first one; the reader polls that word at its own position, so a small frame costs one
//! cache line's transfer and nothing else. The reader publishes how far it got only every quarter
//! of the ring; the writer looks at that word only when its cached copy says the ring is full.
//!
//! A line that held body bytes could hold, by chance or malice of a payload, just the `seq` that
//! the reader waits for when the line is the next first one. The writer knows which lines are
//! tainted so and clears the word of the next line before it publishes the frame in front of it.
//!
//! The idea of polling a word in the slot itself is that of Lamport's queue with the full/empty
//! flag in the slot (FastForward, Giacomoni et al., PPoPP 2008).
//!
//! Nothing that the other side can write is believed: positions are this side's own, the frame's
//! lengths are checked on a private copy, and a consumed count out of range is an error.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wire::WireError;

/// Bytes of a line.
pub(crate) const LINE_BYTES: usize = 64;
/// Bytes of a first line before the body: sequence word and frame header.
const HEAD_BYTES: usize = 40;
const FIRST_BODY_BYTES: usize = LINE_BYTES - HEAD_BYTES;

/// The memory under a ring. Copies are such that a peer which writes at the same time can spoil
/// the bytes, and nothing else.
pub(crate) trait Lines {
    /// Number of lines, a power of two.
    fn count(&self) -> u64;
    /// The sequence word of the line at a position, which counts on round and round.
    fn seq(&self, line: u64) -> &AtomicU64;
    /// How many lines the reader has consumed since the start.
    fn consumed(&self) -> &AtomicU64;
    /// Copies into the ring at a byte offset; the range does not wrap.
    fn write(&self, at: usize, bytes: &[u8]);
    /// Copies out of the ring at a byte offset; the range does not wrap.
    fn read(&self, at: usize, into: &mut [u8]);
}

/// Lines that a frame with `body` bytes (user header and payload) takes.
#[inline]
pub(crate) fn lines_for(body: usize) -> u64 {
    1 + body.saturating_sub(FIRST_BODY_BYTES).div_ceil(LINE_BYTES) as u64
}

/// The writing side.
pub(crate) struct RingWriter<L> {
    lines: L,
    tail: u64,
    consumed: u64,
    /// One bit a line: its first word may hold body bytes.
    tainted: Vec<u64>,
    /// Whether any bit was ever set.
    tainted_any: bool,
}

impl<L: Lines> RingWriter<L> {
    pub(crate) fn new(lines: L) -> Self {
        let words = lines.count().div_ceil(64) as usize;
        Self {
            lines,
            tail: 0,
            consumed: 0,
            tainted: vec![0; words],
            tainted_any: false,
        }
    }

    /// Whether `needed` lines (and one more, kept for a marker) are free.
    ///
    /// # Errors
    /// The reader claims to have consumed what was never written.
    #[inline]
    pub(crate) fn room(&mut self, needed: u64) -> Result<bool, WireError> {
        // One line stays free for the marker, one more so that the next first line can be cleared.
        let fits = |consumed| self.tail - consumed + needed + 2 <= self.lines.count();
        if fits(self.consumed) {
            return Ok(true);
        }
        let consumed = self.lines.consumed().load(Ordering::Acquire);
        if consumed < self.consumed || consumed > self.tail {
            return Err(WireError::Malformed {
                what: "ring's consumed count is out of range",
            });
        }
        self.consumed = consumed;
        Ok(self.tail - consumed + needed + 2 <= self.lines.count())
    }

    /// Writes and publishes a frame; the caller has asked for [`RingWriter::room`].
    #[inline(always)]
    pub(crate) fn publish(&mut self, header: &[u8; 32], user_header: &[u8], payload: &[&[u8]]) {
        let body = user_header.len() + payload.iter().map(|part| part.len()).sum::<usize>();
        let first = self.tail & (self.lines.count() - 1);
        let start = first as usize * LINE_BYTES;
        self.lines.write(start + 8, header);
        let mut at = start + HEAD_BYTES;
        if body > FIRST_BODY_BYTES {
            return self.publish_long(body, user_header, payload);
        }
        for part in std::iter::once(&user_header).chain(payload) {
            self.lines.write(at, part);
            at += part.len();
        }
        self.publish_lines(1);
    }

    /// The body of a frame of several lines, behind its header.
    #[inline(never)]
    fn publish_long(&mut self, body: usize, user_header: &[u8], payload: &[&[u8]]) {
        let count = lines_for(body);
        let mask = self.lines.count() - 1;
        let bytes = (self.lines.count() as usize) * LINE_BYTES;
        let mut at = (self.tail & mask) as usize * LINE_BYTES + HEAD_BYTES;
        for part in std::iter::once(&user_header).chain(payload) {
            let mut part: &[u8] = part;
            while !part.is_empty() {
                if at == bytes {
                    at = 0;
                }
                let (now, later) = part.split_at(part.len().min(bytes - at));
                self.lines.write(at, now);
                at += now.len();
                part = later;
            }
        }
        for line in self.tail + 1..self.tail + count {
            let line = line & mask;
            self.tainted[(line / 64) as usize] |= 1 << (line % 64);
        }
        self.tainted_any = true;
        self.publish_lines(count);
    }

    /// Publishes what was written to so many lines.
    #[inline(always)]
    fn publish_lines(&mut self, count: u64) {
        if self.tainted_any {
            self.next_clear(self.tail + count);
        }
        self.lines
            .seq(self.tail)
            .store(self.tail + 1, Ordering::Release);
        self.tail += count;
    }

    /// Clears the first word of the line behind the frame, if a body may have left something there.
    fn next_clear(&mut self, next: u64) {
        let next = next & (self.lines.count() - 1);
        let (word, bit) = ((next / 64) as usize, 1 << (next % 64));
        if self.tainted[word] & bit != 0 {
            self.tainted[word] &= !bit;
            self.lines.seq(next).store(0, Ordering::Relaxed);
        }
    }
}

/// The reading side.
pub(crate) struct RingReader<L> {
    lines: L,
    head: u64,
    published: u64,
}

impl<L: Lines> RingReader<L> {
    pub(crate) fn new(lines: L) -> Self {
        Self {
            lines,
            head: 0,
            published: 0,
        }
    }

    /// Whether a frame is there.
    #[inline(always)]
    pub(crate) fn ready(&self) -> bool {
        self.lines.seq(self.head).load(Ordering::Acquire) == self.head + 1
    }

    /// Copies out the header of the frame that is there.
    #[inline]
    pub(crate) fn header(&self, into: &mut [u8; 32]) {
        let line = self.head & (self.lines.count() - 1);
        self.lines.read(line as usize * LINE_BYTES + 8, into);
    }

    /// Copies out the body of the frame that is there; `into` is as long as its header says, which
    /// the caller has checked against the ring's size.
    #[inline(always)]
    pub(crate) fn body(&self, into: &mut [u8]) {
        let start = (self.head & (self.lines.count() - 1)) as usize * LINE_BYTES;
        match into.len() <= FIRST_BODY_BYTES {
            true => self.lines.read(start + HEAD_BYTES, into),
            false => self.body_long(start, into),
        }
    }

    #[inline(never)]
    fn body_long(&self, start: usize, into: &mut [u8]) {
        let bytes = self.lines.count() as usize * LINE_BYTES;
        let mut at = start + HEAD_BYTES;
        let mut rest = into;
        while !rest.is_empty() {
            if at == bytes {
                at = 0;
            }
            let now = rest.len().min(bytes - at);
            let (part, later) = rest.split_at_mut(now);
            self.lines.read(at, part);
            at += now;
            rest = later;
        }
    }

    /// Moves on behind the frame with `body` bytes; whether that was published to the writer.
    #[inline]
    pub(crate) fn advance(&mut self, body: usize) -> bool {
        self.head += lines_for(body);
        let publish = self.head - self.published >= self.lines.count() / 4;
        if publish {
            self.published = self.head;
            self.lines.consumed().store(self.head, Ordering::Release);
        }
        publish
    }

    /// Publishes at once how far this side got.
    pub(crate) fn publish(&mut self) {
        self.published = self.head;
        self.lines.consumed().store(self.head, Ordering::Release);
    }
}

/// In place of a frame's kind: the next frame is at the start of the large ring.
pub(super) const MARKER_KIND: u8 = 0xff;
/// A peer grows its ring once.
pub(super) const GROWN_TWICE: WireError = WireError::Malformed {
    what: "ring grown twice",
};

/// The writing side of a small ring that goes on in a large one when it is full.
pub(super) struct GrowingWriter<L> {
    pub(super) ring: RingWriter<L>,
    /// The large ring, until it is the one that is written.
    large: Option<L>,
    /// Bodies above this go to the large ring.
    small_body_max: usize,
}

impl<L: Lines> GrowingWriter<L> {
    pub(super) fn new(small: L, large: L, small_body_max: usize) -> Self {
        Self {
            ring: RingWriter::new(small),
            large: Some(large),
            small_body_max,
        }
    }

    pub(super) fn grown(&self) -> bool {
        self.large.is_none()
    }

    /// Whether a frame with such a body can be published now.
    ///
    /// # Errors
    /// As [`RingWriter::room`].
    #[inline(always)]
    pub(super) fn room_for(&mut self, body: usize) -> Result<bool, WireError> {
        let lines = lines_for(body);
        if self.large.is_some() {
            if body <= self.small_body_max && self.ring.room(lines)? {
                return Ok(true);
            }
            self.grow();
        }
        self.ring.room(lines)
    }

    /// Goes on in the large ring: the marker, for which a line was kept, tells the reader.
    #[cold]
    #[inline(never)]
    fn grow(&mut self) {
        if let Some(large) = self.large.take() {
            let mut marker = [0; 32];
            marker[0] = MARKER_KIND;
            self.ring.publish(&marker, &[], &[]);
            self.ring = RingWriter::new(large);
        }
    }
}

/// The reading side of a ring that grows.
pub(super) struct GrowingReader<L> {
    pub(super) ring: RingReader<L>,
    large: Option<L>,
}

impl<L: Lines> GrowingReader<L> {
    pub(super) fn new(small: L, large: L) -> Self {
        Self {
            ring: RingReader::new(small),
            large: Some(large),
        }
    }

    pub(super) fn grown(&self) -> bool {
        self.large.is_none()
    }

    /// The frame that is there is a marker: goes on in the large ring.
    ///
    /// # Errors
    /// The ring has grown before.
    pub(super) fn grow(&mut self) -> Result<(), WireError> {
        self.ring = RingReader::new(self.large.take().ok_or(GROWN_TWICE)?);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    #[cfg(praas_loom)]
    use loom::cell::UnsafeCell;
    #[cfg(not(praas_loom))]
    use std::cell::UnsafeCell;

    struct PlainWord(UnsafeCell<u64>);

    // SAFETY: a plain word has one side at a time, which is what these tests are to show: under
    // loom every access is checked, and elsewhere one thread has both sides.
    unsafe impl Sync for PlainWord {}

    /// Lines in private memory. First words are atomic; the others are plain, and loom reports
    /// whoever touches one while the other side may.
    #[derive(Clone)]
    pub(crate) struct WordLines {
        firsts: Arc<Vec<AtomicU64>>,
        plain: Arc<Vec<PlainWord>>,
        consumed: Arc<AtomicU64>,
    }

    impl WordLines {
        pub(crate) fn new(count: u64) -> Self {
            Self {
                firsts: Arc::new((0..count).map(|_| AtomicU64::new(0)).collect()),
                plain: Arc::new(
                    (0..count * 8)
                        .map(|_| PlainWord(UnsafeCell::new(0)))
                        .collect(),
                ),
                consumed: Arc::new(AtomicU64::new(0)),
            }
        }

        fn load(&self, word: usize) -> u64 {
            if word.is_multiple_of(8) {
                return self.firsts[word / 8].load(Ordering::Relaxed);
            }
            #[cfg(praas_loom)]
            // SAFETY: loom has checked that nobody writes the word now.
            return self.plain[word].0.with(|at| unsafe { *at });
            #[cfg(not(praas_loom))]
            // SAFETY: one thread has both sides.
            return unsafe { *self.plain[word].0.get() };
        }

        fn store(&self, word: usize, value: u64) {
            if word.is_multiple_of(8) {
                return self.firsts[word / 8].store(value, Ordering::Relaxed);
            }
            #[cfg(praas_loom)]
            // SAFETY: loom has checked that nobody else has the word now.
            self.plain[word].0.with_mut(|at| unsafe { *at = value });
            #[cfg(not(praas_loom))]
            // SAFETY: one thread has both sides.
            unsafe {
                *self.plain[word].0.get() = value;
            }
        }
    }

    impl Lines for WordLines {
        fn count(&self) -> u64 {
            self.firsts.len() as u64
        }

        fn seq(&self, line: u64) -> &AtomicU64 {
            &self.firsts[line as usize % self.firsts.len()]
        }

        fn consumed(&self) -> &AtomicU64 {
            &self.consumed
        }

        fn write(&self, at: usize, bytes: &[u8]) {
            let (mut at, mut rest) = (at, bytes);
            while !rest.is_empty() {
                let (word, skip) = (at / 8, at % 8);
                let (now, later) = rest.split_at(rest.len().min(8 - skip));
                let mut whole = match now.len() {
                    8 => [0; 8],
                    _ => self.load(word).to_le_bytes(),
                };
                whole[skip..skip + now.len()].copy_from_slice(now);
                self.store(word, u64::from_le_bytes(whole));
                (at, rest) = (at + now.len(), later);
            }
        }

        fn read(&self, at: usize, into: &mut [u8]) {
            let (mut at, mut rest) = (at, into);
            while !rest.is_empty() {
                let (word, skip) = (at / 8, at % 8);
                let count = rest.len().min(8 - skip);
                let (now, later) = rest.split_at_mut(count);
                now.copy_from_slice(&self.load(word).to_le_bytes()[skip..skip + count]);
                (at, rest) = (at + count, later);
            }
        }
    }

    pub(crate) fn frame(len: usize) -> [u8; 32] {
        let mut header = [0; 32];
        header[16..24].copy_from_slice(&(len as u64).to_le_bytes());
        header
    }

    pub(crate) fn receive(reader: &mut RingReader<WordLines>) -> Option<Vec<u8>> {
        if !reader.ready() {
            return None;
        }
        let mut header = [0; 32];
        reader.header(&mut header);
        let mut body = vec![0; u64::from_le_bytes(header[16..24].try_into().unwrap()) as usize];
        reader.body(&mut body);
        reader.advance(body.len());
        Some(body)
    }

    #[cfg(not(praas_loom))]
    #[test]
    fn frames_of_every_size_pass_in_order_through_many_laps() {
        let lines = WordLines::new(64);
        let mut writer = RingWriter::new(lines.clone());
        let mut reader = RingReader::new(lines);
        let mut random = fastrand::Rng::with_seed(1);
        let mut sent = std::collections::VecDeque::new();
        for round in 0..20_000_u64 {
            if random.bool() {
                let len = random.usize(0..1000);
                // Payloads full of the sequence numbers to come, to catch a stale match.
                let words = (0..len.div_ceil(8) as u64).flat_map(|i| (round + i).to_le_bytes());
                let body: Vec<u8> = words.take(len).collect();
                if writer.room(lines_for(len)).unwrap() {
                    writer.publish(&frame(len), &[], &[&body]);
                    sent.push_back(body);
                }
            } else {
                assert_eq!(receive(&mut reader), sent.pop_front());
            }
        }
    }

    #[cfg(not(praas_loom))]
    #[test]
    fn a_lying_reader_is_an_error() {
        let lines = WordLines::new(8);
        let mut writer = RingWriter::new(lines.clone());
        for _ in 0..6 {
            assert!(writer.room(1).unwrap());
            writer.publish(&frame(0), &[], &[]);
        }
        assert!(!writer.room(1).unwrap());
        lines.consumed().store(7, Ordering::Relaxed);
        assert!(writer.room(1).is_err());
    }

    /// Two threads, a ring of four lines, more than a lap. The second line of the first frame holds
    /// just the sequence number that it would have as a first line one lap later.
    #[cfg(praas_loom)]
    #[test]
    fn loom_ring_passes_frames_whole_and_in_order() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let lines = WordLines::new(4);
            let mut writer = RingWriter::new(lines.clone());
            let mut reader = RingReader::new(lines);
            let mut tainting = [2; 32];
            tainting[24..].copy_from_slice(&6_u64.to_le_bytes());
            let bodies: [Vec<u8>; 5] = [tainting.into(), vec![3], vec![4], vec![5; 2], vec![6; 9]];
            let sent = bodies.clone();
            let thread = loom::thread::spawn(move || {
                for body in sent {
                    while !writer.room(lines_for(body.len())).unwrap() {
                        loom::thread::yield_now();
                    }
                    writer.publish(&frame(body.len()), &[], &[&body]);
                }
            });
            for body in bodies {
                let got = loop {
                    if let Some(got) = receive(&mut reader) {
                        break got;
                    }
                    loom::thread::yield_now();
                };
                assert_eq!(got, body);
            }
            thread.join().unwrap();
        });
    }

    /// Two threads, a small ring that is full after two frames, and a large one for the others.
    #[cfg(praas_loom)]
    #[test]
    fn loom_a_ring_grows_and_loses_nothing() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let (small, large) = (WordLines::new(4), WordLines::new(8));
            let mut writer = GrowingWriter::new(small.clone(), large.clone(), 24);
            let mut reader = GrowingReader::new(small, large);
            let bodies: [Vec<u8>; 4] = [vec![1], vec![2], vec![3], vec![4; 30]];
            let sent = bodies.clone();
            let thread = loom::thread::spawn(move || {
                for body in sent {
                    while !writer.room_for(body.len()).unwrap() {
                        loom::thread::yield_now();
                    }
                    writer.ring.publish(&frame(body.len()), &[], &[&body]);
                }
                assert!(writer.grown(), "what does not fit goes to the large ring");
            });
            for body in bodies {
                let got = loop {
                    let mut header = [0; 32];
                    if reader.ring.ready() {
                        reader.ring.header(&mut header);
                        if header[0] == MARKER_KIND {
                            reader.grow().unwrap();
                            continue;
                        }
                        break receive(&mut reader.ring).unwrap();
                    }
                    loom::thread::yield_now();
                };
                assert_eq!(got, body);
            }
            thread.join().unwrap();
        });
    }
}
