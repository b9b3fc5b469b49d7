//! Questions of clients and hosts that wait for the control plane, without clock or socket.
//!
//! ```text
//!   ask(process) --new--> Resolve to the control plane ---- answered --> all who asked
//!        \--known: joins those who wait        control plane lost: asked again over the next channel
//! ```
//!
//! However many ask for a process, the control plane is asked once. A question waits for a bounded
//! time, also when the control plane is away.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::hosts::HostKey;

/// Questions that may wait on one channel.
const CHANNEL_MAX: usize = 4096;

/// Who asked: a channel, and the tag of the request there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker<C> {
    pub(super) channel: C,
    pub(super) tag: u64,
}

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The control plane is to be asked, under this number.
    New(u64),
    /// It was asked already.
    Joined,
    /// Too many wait.
    Full,
}

/// A question as the control plane is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) key: HostKey,
    pub(super) ensure: bool,
}

#[derive(Debug)]
struct Question<C> {
    subject: Subject,
    askers: Vec<Asker<C>>,
}

/// All questions that wait.
#[derive(Debug)]
pub(super) struct Questions<C> {
    max: usize,
    timeout: Duration,
    asked: BTreeMap<u64, Question<C>>,
    numbers: HashMap<Subject, u64>,
    /// In the order in which they are due.
    due: VecDeque<(Instant, u64)>,
    by_channel: HashMap<C, usize>,
    waiting: usize,
    last: u64,
}

impl<C: Copy + Eq + std::hash::Hash> Questions<C> {
    pub(super) fn new(max: usize, timeout: Duration) -> Self {
        Self {
            max,
            timeout,
            asked: BTreeMap::new(),
            numbers: HashMap::new(),
            due: VecDeque::new(),
            by_channel: HashMap::new(),
            waiting: 0,
            last: 0,
        }
    }

    pub(super) fn ask(&mut self, now: Instant, subject: Subject, asker: Asker<C>) -> Asked {
        let of_channel = self.by_channel.get(&asker.channel).copied().unwrap_or(0);
        if self.waiting >= self.max || of_channel >= CHANNEL_MAX {
            return Asked::Full;
        }
        self.waiting += 1;
        *self.by_channel.entry(asker.channel).or_default() += 1;
        let known = self.numbers.get(&subject);
        if let Some(question) = known.and_then(|number| self.asked.get_mut(number)) {
            question.askers.push(asker);
            return Asked::Joined;
        }
        self.last += 1;
        self.numbers.insert(subject.clone(), self.last);
        self.due.push_back((now + self.timeout, self.last));
        let askers = vec![asker];
        self.asked.insert(self.last, Question { subject, askers });
        Asked::New(self.last)
    }

    /// The control plane has answered: who asked. Nobody, if the answer comes too late.
    pub(super) fn answered(&mut self, number: u64) -> Option<(Subject, Vec<Asker<C>>)> {
        let question = self.asked.remove(&number)?;
        self.numbers.remove(&question.subject);
        for asker in &question.askers {
            self.waiting -= 1;
            self.channel_less(asker.channel);
        }
        Some((question.subject, question.askers))
    }

    /// The answer is known without the control plane: who asked.
    pub(super) fn answered_here(&mut self, key: &HostKey) -> Vec<Asker<C>> {
        let mut askers = Vec::new();
        for ensure in [false, true] {
            let subject = Subject {
                key: key.clone(),
                ensure,
            };
            let number = self.numbers.get(&subject).copied();
            if let Some((_, more)) = number.and_then(|number| self.answered(number)) {
                askers.extend(more);
            }
        }
        askers
    }

    /// A channel has ended; what only it asked is of no interest any more.
    pub(super) fn channel_lost(&mut self, channel: C) {
        if self.by_channel.remove(&channel).is_none() {
            return;
        }
        self.asked.retain(|_, question| {
            let before = question.askers.len();
            question.askers.retain(|asker| asker.channel != channel);
            self.waiting -= before - question.askers.len();
            if question.askers.is_empty() {
                self.numbers.remove(&question.subject);
            }
            !question.askers.is_empty()
        });
    }

    /// All that wait, to ask them anew.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &Subject)> {
        self.asked
            .iter()
            .map(|(number, question)| (*number, &question.subject))
    }

    /// Who has waited for too long.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<(Subject, Vec<Asker<C>>)> {
        let mut expired = Vec::new();
        while let Some((at, number)) = self.due.front().copied() {
            // Those that were answered meanwhile are passed over.
            if self.asked.contains_key(&number) && at > now {
                break;
            }
            self.due.pop_front();
            expired.extend(self.answered(number));
        }
        expired
    }

    /// When [`Questions::expired`] is needed next.
    pub(super) fn deadline_next(&self) -> Option<Instant> {
        let mut waiting = self.due.iter();
        let first = waiting.find(|(_, number)| self.asked.contains_key(number));
        first.map(|(at, _)| *at)
    }

    fn channel_less(&mut self, channel: C) {
        if let Some(count) = self.by_channel.get_mut(&channel) {
            *count -= 1;
            if *count == 0 {
                self.by_channel.remove(&channel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(process: &str, ensure: bool) -> Subject {
        let key = HostKey {
            application: "a".into(),
            process: process.into(),
        };
        Subject { key, ensure }
    }

    fn asker(channel: u32, tag: u64) -> Asker<u32> {
        Asker { channel, tag }
    }

    #[test]
    fn a_process_is_asked_for_once() {
        let now = Instant::now();
        let mut questions = Questions::new(4, Duration::from_secs(1));
        assert_eq!(
            questions.ask(now, subject("p", true), asker(1, 1)),
            Asked::New(1)
        );
        assert_eq!(
            questions.ask(now, subject("p", true), asker(2, 1)),
            Asked::Joined
        );
        assert_eq!(
            questions.ask(now, subject("p", false), asker(2, 2)),
            Asked::New(2)
        );
        assert_eq!(
            questions.ask(now, subject("q", true), asker(3, 1)),
            Asked::New(3)
        );
        assert_eq!(
            questions.ask(now, subject("q", true), asker(3, 2)),
            Asked::Full
        );
        assert_eq!(questions.all().count(), 3);
        let askers = questions.answered_here(&subject("p", true).key);
        assert_eq!(askers, [asker(2, 2), asker(1, 1), asker(2, 1)]);
        assert_eq!(questions.answered(1), None);
        questions.channel_lost(3);
        questions.channel_lost(3);
        assert_eq!(questions.all().count(), 0);
        assert_eq!(questions.waiting, 0);
        assert!(questions.by_channel.is_empty() && questions.numbers.is_empty());
        assert_eq!(questions.deadline_next(), None);
        assert_eq!(questions.expired(now), []);
        assert!(questions.due.is_empty());
    }

    #[test]
    fn nobody_waits_for_ever() {
        let now = Instant::now();
        let later = now + Duration::from_millis(500);
        let mut questions = Questions::new(10, Duration::from_secs(1));
        let _ = questions.ask(now, subject("p", true), asker(1, 1));
        let _ = questions.ask(later, subject("q", true), asker(1, 2));
        let end = now + Duration::from_secs(1);
        assert_eq!(questions.deadline_next(), Some(end));
        assert_eq!(questions.expired(later), []);
        let expired = questions.expired(end);
        assert_eq!(expired, [(subject("p", true), vec![asker(1, 1)])]);
        assert!(questions.answered(2).is_some());
        assert_eq!(questions.deadline_next(), None);
    }
}
