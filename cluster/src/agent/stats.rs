//! What hosts count: read from the pages that they share with the agent, and told to the control
//! plane where it has changed.
//!
//! ```text
//!   host: functions, endpoint --> page <-- read, every stats_interval_ms --> StatsTeller --> Stats
//! ```
//!
//! A host does nothing for it, and is not woken: its counters are in the page, and the kernel
//! tells its memory and processor time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use praas_control::agent::{FromAgent, HostStats, STATS_HOSTS_MAX};
use praas_control::api::{ProcessStats, Restored};
use praas_transport::{StatsPage, StatsWord};

use super::hosts::HostKey;
use crate::spawn::Watched;

/// What is read of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostCounts {
    pub(super) stats: ProcessStats,
    pub(super) restored: Option<Restored>,
}

impl HostCounts {
    /// As of now; nothing of a host that has ended.
    pub(super) fn read(page: &StatsPage, watched: &Watched) -> Option<Self> {
        let spin_ns = page.spin_ns();
        let stats = ProcessStats {
            invocations: page.load(StatsWord::Invocations),
            running: page.load(StatsWord::Running),
            blocked: page.load(StatsWord::Blocked),
            queued: page.load(StatsWord::Queued),
            state_bytes: page.load(StatsWord::StateBytes),
            messages: page.load(StatsWord::Messages),
            puts: page.load(StatsWord::Puts),
            resident_bytes: watched.resident_bytes()?,
            spin_ns,
            asleep_ns: page.load(StatsWord::AsleepNs),
            work_ns: watched.cpu_ns()?.saturating_sub(spin_ns),
            persisted_objects: page.load(StatsWord::PersistedObjects),
            persisted_bytes: page.load(StatsWord::PersistedBytes),
            persist_failures: page.load(StatsWord::PersistFailures),
            persist_groups: page.load(StatsWord::PersistGroups),
            persist_ns: page.load(StatsWord::PersistNs),
        };
        let generation = page.load(StatsWord::RestoredGeneration);
        let restored = (generation != 0).then(|| Restored {
            generation,
            checkpoint: page.load(StatsWord::RestoredCheckpoint) != 0,
            // The image does not say; who knows of the checkpoint does.
            written_unix_ms: 0,
        });
        Some(Self { stats, restored })
    }
}

/// What the control plane has been told over its present channel.
#[derive(Debug)]
pub(super) struct StatsTeller {
    interval: Duration,
    due: Option<Instant>,
    resident_bytes: u64,
    said: BTreeMap<HostKey, HostStats>,
}

impl StatsTeller {
    pub(super) fn new(interval_ms: u64) -> Self {
        Self {
            interval: Duration::from_millis(interval_ms),
            due: None,
            resident_bytes: 0,
            said: BTreeMap::new(),
        }
    }

    /// When hosts are to be looked at next; there must be some.
    pub(super) fn deadline_next(&self, hosts: bool) -> Option<Instant> {
        self.due.filter(|_| hosts)
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if self.interval.is_zero() || self.due.is_some_and(|due| due > now) {
            return false;
        }
        self.due = Some(now + self.interval);
        true
    }

    /// Nothing is known of what was said: the channel is another one.
    pub(super) fn forget(&mut self) {
        self.said.clear();
        self.resident_bytes = 0;
    }

    /// What there is to be told of all hosts.
    pub(super) fn tell_all(&mut self, all: BTreeMap<HostKey, HostStats>) -> Vec<FromAgent> {
        let resident_bytes = all.values().map(|host| host.stats.resident_bytes).sum();
        let news: Vec<HostStats> = all
            .iter()
            .filter(|(key, host)| self.said.get(key) != Some(host))
            .map(|(_, host)| host.clone())
            .collect();
        self.said = all;
        if news.is_empty() && resident_bytes == self.resident_bytes {
            return Vec::new();
        }
        self.resident_bytes = resident_bytes;
        let message = |hosts: &[HostStats]| FromAgent::Stats {
            resident_bytes,
            hosts: hosts.to_vec(),
        };
        match news.is_empty() {
            true => vec![message(&[])],
            false => news.chunks(STATS_HOSTS_MAX).map(message).collect(),
        }
    }

    /// What there is to be told of one host, at once.
    pub(super) fn tell_one(&mut self, key: &HostKey, host: HostStats) -> FromAgent {
        self.said.insert(key.clone(), host.clone());
        FromAgent::Stats {
            resident_bytes: self.resident_bytes,
            hosts: vec![host],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(process: usize, invocations: u64) -> (HostKey, HostStats) {
        let key = HostKey {
            application: "a".into(),
            process: format!("p{process:03}"),
        };
        let host = HostStats {
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation: 1,
            stats: ProcessStats {
                invocations,
                resident_bytes: 10,
                ..ProcessStats::default()
            },
            restored: None,
            checkpoint: None,
            checkpoint_error: None,
        };
        (key, host)
    }

    fn told(messages: &[FromAgent]) -> Vec<(u64, usize)> {
        let told = messages.iter().map(|message| match message {
            FromAgent::Stats {
                resident_bytes,
                hosts,
            } => (*resident_bytes, hosts.len()),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    #[test]
    fn only_what_has_changed_is_told_in_messages_of_bounded_length() {
        let mut teller = StatsTeller::new(1_000);
        let all = |invocations| -> BTreeMap<_, _> {
            (0..300).map(|process| host(process, invocations)).collect()
        };
        assert_eq!(told(&teller.tell_all(all(1))), [(3_000, 256), (3_000, 44)]);
        assert_eq!(told(&teller.tell_all(all(1))), []);
        let mut some = all(1);
        some.extend([host(7, 2)]);
        assert_eq!(told(&teller.tell_all(some.clone())), [(3_000, 1)]);
        some.pop_first();
        assert_eq!(told(&teller.tell_all(some.clone())), [(2_990, 0)]);
        let (key, one) = host(9, 5);
        assert_eq!(told(&[teller.tell_one(&key, one.clone())]), [(2_990, 1)]);
        some.insert(key, one);
        assert_eq!(told(&teller.tell_all(some.clone())), []);
        // Another channel has heard of nothing.
        teller.forget();
        assert_eq!(told(&teller.tell_all(some)), [(2_990, 256), (2_990, 43)]);
    }

    #[test]
    fn hosts_are_looked_at_every_so_often_and_not_when_there_are_none() {
        let now = Instant::now();
        let mut teller = StatsTeller::new(1_000);
        assert!(teller.is_due(now));
        assert!(!teller.is_due(now));
        let due = now + Duration::from_secs(1);
        assert_eq!(teller.deadline_next(true), Some(due));
        assert_eq!(teller.deadline_next(false), None);
        assert!(teller.is_due(due));
        assert!(!StatsTeller::new(0).is_due(now));
    }
}
