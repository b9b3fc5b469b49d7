//! Where an endpoint's time goes: busy-polling in vain, asleep in the kernel, or at work.
//!
//! Reading the clock costs a third of a small message, so a wait that a message soon ends only
//! counts its empty rounds. Longer waits read the clock every so many rounds anyway, and by that
//! say how long a round takes. Whoever reads the times disturbs nobody: they are relaxed words, of
//! which the endpoint's owner is the only writer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sync::atomic::{AtomicU64, Ordering};

/// Windows above this had the processor taken away, and say nothing about a round.
const WINDOW_MAX: Duration = Duration::from_millis(1);
/// Parts of a nanosecond in which the length of a round is kept.
const PARTS: u64 = 64;

/// Nanoseconds since an endpoint was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointTimes {
    /// Busy-polling, with nothing to be found. An estimate: by rounds, not by the clock.
    pub spin_ns: u64,
    /// Blocked in the kernel, in [`super::Endpoint::wait`].
    pub asleep_ns: u64,
    /// All else: handling what came, and what the endpoint's owner did besides.
    pub work_ns: u64,
}

#[derive(Debug)]
struct Words {
    begun: Instant,
    spin_ns: AtomicU64,
    asleep_ns: AtomicU64,
    /// Empty rounds that are not yet in `spin_ns`.
    rounds: AtomicU64,
    /// How long a round takes, in [`PARTS`] of a nanosecond; zero: not known yet.
    round_parts: AtomicU64,
}

/// Reads an endpoint's times, from any thread.
#[derive(Debug, Clone)]
pub struct TimesReader(Arc<Words>);

impl TimesReader {
    /// The times as of now.
    pub fn read(&self) -> EndpointTimes {
        let words = &*self.0;
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let rounds = load(&words.rounds) * load(&words.round_parts) / PARTS;
        let (spin_ns, asleep_ns) = (load(&words.spin_ns) + rounds, load(&words.asleep_ns));
        let all = words.begun.elapsed().as_nanos() as u64;
        EndpointTimes {
            spin_ns,
            asleep_ns,
            work_ns: all.saturating_sub(spin_ns + asleep_ns),
        }
    }
}

/// The owner's side.
pub(super) struct Times(Arc<Words>);

impl Times {
    pub(super) fn new() -> Self {
        Self(Arc::new(Words {
            begun: Instant::now(),
            spin_ns: AtomicU64::new(0),
            asleep_ns: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            round_parts: AtomicU64::new(0),
        }))
    }

    pub(super) fn reader(&self) -> TimesReader {
        TimesReader(Arc::clone(&self.0))
    }

    /// Empty rounds that nobody timed.
    #[inline]
    pub(super) fn rounds_add(&self, rounds: u32) {
        add(&self.0.rounds, rounds.into());
    }

    /// So many empty rounds took so long.
    pub(super) fn window_add(&self, rounds: u32, took: Duration) {
        let words = &*self.0;
        if took <= WINDOW_MAX {
            let parts = took.as_nanos() as u64 * PARTS / u64::from(rounds.max(1));
            let known = words.round_parts.load(Ordering::Relaxed);
            let parts = match known {
                0 => parts,
                known => (known * 7 + parts) / 8,
            };
            // Never zero again: that would mean that nothing is known.
            words.round_parts.store(parts.max(1), Ordering::Relaxed);
        }
        self.rounds_add(rounds);
        let rounds = words.rounds.load(Ordering::Relaxed);
        let parts = words.round_parts.load(Ordering::Relaxed);
        if parts > 0 {
            // Not both at once: a reader in between sees a little too much, and never less later.
            add(&words.spin_ns, rounds * parts / PARTS);
            words.rounds.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn asleep_add(&self, took: Duration) {
        add(&self.0.asleep_ns, took.as_nanos() as u64);
    }
}

/// The owner is the only writer, so this need not be a read-modify-write.
#[inline]
fn add(word: &AtomicU64, amount: u64) {
    word.store(word.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;

    #[test]
    fn rounds_take_as_long_as_those_that_were_timed() {
        let times = Times::new();
        let reader = times.reader();
        times.rounds_add(10);
        assert_eq!(reader.read().spin_ns, 0, "nothing is known of a round yet");
        times.window_add(64, Duration::from_nanos(640));
        assert_eq!(reader.read().spin_ns, 740);
        times.rounds_add(6);
        assert_eq!(reader.read().spin_ns, 800);
        // The processor was taken away: that was no spinning.
        times.window_add(64, Duration::from_secs(1));
        assert_eq!(reader.read().spin_ns, 1440);
        times.asleep_add(Duration::from_millis(5));
        assert_eq!(reader.read().asleep_ns, 5_000_000);
    }
}
