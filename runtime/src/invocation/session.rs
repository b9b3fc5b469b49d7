//! What a process remembers of one client's invocations, so that each happens at most once.
//!
//! ```text
//!   sequences   0 ...             base (the watermark) ...               base + limit
//!               acknowledged, but     each empty, running, done,   |  too many
//!               few that are passed   or forgotten
//! ```

use std::collections::{BTreeMap, VecDeque};

use praas_transport::Buf;

use super::{Payload, Status};
use crate::swap::ImageKind;

/// What to do with a request.
#[derive(Debug)]
pub enum Admit {
    /// It is new: run it.
    Run,
    /// It runs already: its reply goes to whoever asked last.
    Running,
    /// It ran: here is what it gave.
    Recorded(Status, Payload),
    /// Its result is forgotten; it is not run again.
    Expired,
    /// The client has too many under way.
    Full,
}

#[derive(Debug, Clone)]
enum Slot {
    Empty,
    Running { job: u64 },
    Done { status: Status, payload: Payload },
    Forgotten,
}

/// Sequences below the watermark that may be without a result.
pub const PASSED_MAX: usize = 256;

/// What a process remembers of one client's invocations.
#[derive(Debug)]
pub struct Session {
    base: u64,
    started: bool,
    /// From `base` on.
    slots: VecDeque<Slot>,
    /// Below `base`, but not acknowledged.
    passed: BTreeMap<u64, Slot>,
    limit: usize,
    /// Bytes of recorded outputs.
    bytes: usize,
}

/// A session, as it is swapped out: results that the client has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionImage {
    /// The client.
    pub client: u128,
    /// Everything below is acknowledged.
    pub base: u64,
    /// From `base` on.
    pub results: Vec<ResultImage>,
    /// Below `base`, by sequence.
    pub passed: Vec<(u64, ResultImage)>,
}

/// What is known of one invocation: `None` is that it never came, else the status (`None`:
/// forgotten) and the output, which shares the recorded result's memory.
pub type ResultImage = Option<(Option<Status>, Buf)>;

impl Slot {
    fn len(&self) -> usize {
        match self {
            Self::Done { payload, .. } => payload.len(),
            _ => 0,
        }
    }

    /// Begins a run, if there was none.
    fn admit(&mut self, job: u64) -> Admit {
        match self {
            Self::Empty => {
                *self = Self::Running { job };
                Admit::Run
            }
            Self::Running { .. } => Admit::Running,
            Self::Done { status, payload } => Admit::Recorded(*status, payload.clone()),
            Self::Forgotten => Admit::Expired,
        }
    }

    fn image(&self, kind: ImageKind) -> ResultImage {
        match (self, kind) {
            (Self::Empty, _) => None,
            // What still runs when the process is swapped out was cut off by force.
            (Self::Running { .. }, ImageKind::Final) => {
                Some((Some(Status::OutcomeUnknown), Buf::default()))
            }
            // It runs on. After a crash nobody knows what became of it: as of what came later.
            (Self::Running { .. }, ImageKind::Checkpoint) => None,
            (Self::Done { status, payload }, _) => {
                Some((Some(*status), payload.clone().into_buf()))
            }
            (Self::Forgotten, _) => Some((None, Buf::default())),
        }
    }

    fn restore(image: ResultImage) -> Self {
        match image {
            None => Self::Empty,
            Some((None, _)) => Self::Forgotten,
            Some((Some(status), output)) => Self::Done {
                status,
                payload: Payload::Buf(output),
            },
        }
    }
}

impl Session {
    /// A session with at most `limit` invocations between the oldest unacknowledged and the newest.
    pub fn new(limit: usize) -> Self {
        Self {
            base: 0,
            started: false,
            slots: VecDeque::new(),
            passed: BTreeMap::new(),
            limit,
            bytes: 0,
        }
    }

    /// Looks at a request; `job` names its run if it is new.
    #[inline]
    pub fn admit(&mut self, sequence: u64, acked_delta: u32, job: u64) -> Admit {
        let acked_below = sequence.saturating_sub(u64::from(acked_delta));
        if !self.started {
            // Whatever came before this session's first request is not known here.
            self.started = true;
            self.base = acked_below;
        }
        self.acknowledge(acked_below);
        if sequence < self.base {
            return self
                .passed
                .get_mut(&sequence)
                .map_or(Admit::Expired, |slot| slot.admit(job));
        }
        let at = (sequence - self.base) as usize;
        // What has come back from an image may be more than new ones could be.
        if at >= self.limit.max(self.slots.len()) {
            return Admit::Full;
        }
        while self.slots.len() <= at {
            self.slots.push_back(Slot::Empty);
        }
        self.slots[at].admit(job)
    }

    /// The client has all results below `base` but those listed; `false` if that cannot be.
    #[must_use]
    pub fn pass(&mut self, base: u64, listed: &[u64]) -> bool {
        if listed.len() > PASSED_MAX || listed.iter().any(|sequence| *sequence >= base) {
            return false;
        }
        if self.started && base < self.base {
            // Overtaken: a later request has told more.
            return true;
        }
        let mut passed = BTreeMap::new();
        for sequence in listed {
            // A sequence that was told to be done already is not run again.
            let told = self.started && *sequence < self.base;
            let slot = match self.slot_mut(*sequence) {
                Some(slot) => std::mem::replace(slot, Slot::Empty),
                None if told => Slot::Forgotten,
                None => Slot::Empty,
            };
            passed.insert(*sequence, slot);
        }
        self.started = true;
        let below = (base - self.base).min(self.slots.len() as u64) as usize;
        self.slots.drain(..below);
        self.base = base;
        self.passed = passed;
        self.bytes = self
            .slots
            .iter()
            .chain(self.passed.values())
            .map(Slot::len)
            .sum();
        true
    }

    fn slot(&self, sequence: u64) -> Option<&Slot> {
        match sequence.checked_sub(self.base) {
            Some(at) => self.slots.get(usize::try_from(at).ok()?),
            None => self.passed.get(&sequence),
        }
    }

    #[inline]
    fn slot_mut(&mut self, sequence: u64) -> Option<&mut Slot> {
        match sequence.checked_sub(self.base) {
            Some(at) => self.slots.get_mut(usize::try_from(at).ok()?),
            None => self.passed.get_mut(&sequence),
        }
    }

    /// Whether a request with this sequence is known here.
    pub fn knows(&self, sequence: u64) -> bool {
        let known = match self.slot(sequence) {
            Some(slot) => !matches!(slot, Slot::Empty),
            None => sequence < self.base,
        };
        self.started && known
    }

    /// Records how an invocation ended.
    #[inline]
    pub fn finish(&mut self, sequence: u64, status: Status, payload: Payload) {
        let len = payload.len();
        if let Some(slot) = self.slot_mut(sequence) {
            *slot = Slot::Done { status, payload };
            self.bytes += len;
        }
    }

    /// Takes back what [`Session::admit`] began: the request was refused, and may come again.
    pub fn withdraw(&mut self, sequence: u64) {
        if let Some(slot) = self.slot_mut(sequence) {
            *slot = Slot::Empty;
        }
    }

    /// Whether any of its invocations runs.
    pub fn is_running(&self) -> bool {
        self.jobs().next().is_some()
    }

    /// The job that runs an invocation, if it runs.
    pub fn job(&self, sequence: u64) -> Option<u64> {
        match self.slot(sequence)? {
            Slot::Running { job } => Some(*job),
            _ => None,
        }
    }

    /// The jobs of all invocations that run, or wait to.
    pub fn jobs(&self) -> impl Iterator<Item = u64> {
        let slots = self.slots.iter().chain(self.passed.values());
        slots.filter_map(|slot| match slot {
            Slot::Running { job } => Some(*job),
            _ => None,
        })
    }

    /// Forgets recorded outputs above `keep` bytes each; their invocations count as expired.
    pub fn forget_large(&mut self, keep: usize) {
        for slot in self.slots.iter_mut().chain(self.passed.values_mut()) {
            if slot.len() > keep {
                self.bytes -= slot.len();
                *slot = Slot::Forgotten;
            }
        }
    }

    /// Bytes of recorded outputs.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is swapped out.
    pub fn image(&self, client: u128, kind: ImageKind) -> SessionImage {
        SessionImage {
            client,
            base: self.base,
            results: self.slots.iter().map(|slot| slot.image(kind)).collect(),
            passed: self
                .passed
                .iter()
                .map(|(at, slot)| (*at, slot.image(kind)))
                .collect(),
        }
    }

    /// A session as it was swapped out.
    pub fn restore(image: SessionImage, limit: usize) -> Self {
        // All of them, whatever the limit is now: what is not known would run again.
        let slots: VecDeque<Slot> = image.results.into_iter().map(Slot::restore).collect();
        let passed: BTreeMap<u64, Slot> = image
            .passed
            .into_iter()
            .map(|(at, result)| (at, Slot::restore(result)))
            .collect();
        let bytes = slots.iter().chain(passed.values()).map(Slot::len).sum();
        Self {
            base: image.base,
            started: true,
            slots,
            passed,
            limit,
            bytes,
        }
    }

    #[inline]
    fn acknowledge(&mut self, below: u64) {
        while self.base < below {
            match self.slots.pop_front() {
                // What still runs, the client has given up on.
                Some(slot) => {
                    self.bytes -= slot.len();
                    self.base += 1;
                }
                None => self.base = below,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_invocation_runs_once_and_its_result_stays_until_acknowledged() {
        let mut session = Session::new(8);
        assert!(matches!(session.admit(5, 0, 1), Admit::Run));
        assert!(matches!(session.admit(5, 0, 2), Admit::Running));
        assert_eq!(session.job(5), Some(1));
        session.finish(5, Status::Ok, Payload::default());
        assert!(matches!(
            session.admit(5, 0, 3),
            Admit::Recorded(Status::Ok, _)
        ));
        assert!(matches!(session.admit(6, 0, 4), Admit::Run));
        assert!(matches!(session.admit(5, 0, 5), Admit::Expired));
        assert!(matches!(session.admit(4, 0, 6), Admit::Expired));
        assert!(matches!(session.admit(14, 8, 7), Admit::Full));
    }

    #[test]
    fn what_is_given_up_does_not_hold_the_watermark() {
        let mut session = Session::new(8);
        assert!(matches!(session.admit(0, 0, 1), Admit::Run));
        assert!(matches!(session.admit(1, 1, 2), Admit::Run));
        assert_eq!(session.job(0), Some(1));
        assert!(matches!(session.admit(8, 7, 3), Admit::Run));
        assert_eq!(session.job(0), None);
        assert_eq!(session.job(1), Some(2));
        assert!(!session.knows(10) && session.knows(0));
    }

    #[test]
    fn what_runs_long_is_passed() {
        let mut session = Session::new(8);
        assert!(matches!(session.admit(0, 0, 1), Admit::Run));
        assert!(matches!(session.admit(7, 7, 2), Admit::Run));
        assert!(matches!(session.admit(8, 8, 3), Admit::Full));
        session.finish(7, Status::Ok, Payload::default());
        assert!(session.pass(8, &[0, 5]));
        assert!(matches!(session.admit(15, 7, 4), Admit::Run));
        assert!(matches!(session.admit(7, 0, 5), Admit::Expired));
        assert!(matches!(session.admit(5, 0, 6), Admit::Run));
        assert_eq!((session.job(0), session.job(5)), (Some(1), Some(6)));
        session.finish(0, Status::Ok, Payload::Buf(Buf::from_vec(vec![1; 9])));
        assert_eq!(session.bytes(), 9);
        let mut session = Session::restore(session.image(1, ImageKind::Final), 8);
        assert!(matches!(
            session.admit(0, 0, 7),
            Admit::Recorded(Status::Ok, _)
        ));
        assert!(session.pass(16, &[]));
        assert!(matches!(session.admit(0, 0, 8), Admit::Expired));
        assert_eq!(session.bytes(), 0);
        assert!(!session.pass(20, &[20]) && session.pass(3, &[]));
    }

    #[test]
    fn a_swapped_session_answers_as_before() {
        let mut session = Session::new(8);
        for sequence in 0..3 {
            assert!(matches!(
                session.admit(sequence, sequence as u32, sequence),
                Admit::Run
            ));
        }
        session.finish(
            1,
            Status::FunctionError,
            Payload::Buf(Buf::from_vec(b"no".to_vec())),
        );
        for kind in [ImageKind::Final, ImageKind::Checkpoint] {
            let mut session = Session::restore(session.image(9, kind), 8);
            let Admit::Recorded(status, payload) = session.admit(1, 1, 7) else {
                panic!()
            };
            assert_eq!((status, &*payload), (Status::FunctionError, &b"no"[..]));
            // What ran at a checkpoint is as unknown as what came after it.
            assert_eq!(session.knows(2), kind == ImageKind::Final);
            assert!(!session.knows(3));
            assert!(matches!(session.admit(3, 3, 8), Admit::Run));
        }
    }

    proptest! {
        /// Every sequence runs at most once, whatever is resent in whatever order.
        #[test]
        fn nothing_runs_twice(requests in proptest::collection::vec((0..20_u64, 0..6_u32), 0..200)) {
            let mut session = Session::new(16);
            let mut ran = std::collections::HashSet::new();
            for (sequence, delta) in requests {
                if let Admit::Run = session.admit(sequence, delta, sequence) {
                    prop_assert!(ran.insert(sequence));
                    session.finish(sequence, Status::Ok, Payload::default());
                }
            }
        }
    }
}
