//! Where an endpoint's time goes: busy-polling in vain, asleep in the kernel, or at work.
//!
//! Reading the clock costs a third of a small message, so a wait that a message soon ends only
//! counts its empty rounds. Longer waits read the clock every so many rounds anyway, and by that
//! say how long a round takes. Whoever reads the times disturbs nobody: they are relaxed words, of
//! which the endpoint's owner is the only writer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::stats_page::{ROUND_PARTS, StatsPage, StatsWord};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Windows above this had the processor taken away, and say nothing about a round.
const WINDOW_MAX: Duration = Duration::from_millis(1);

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

/// Reads an endpoint's times, from any thread.
#[derive(Debug, Clone)]
pub struct TimesReader {
    begun: Instant,
    page: Arc<StatsPage>,
}

impl TimesReader {
    /// The times as of now.
    pub fn read(&self) -> EndpointTimes {
        let spin_ns = self.page.spin_ns();
        let asleep_ns = self.page.load(StatsWord::AsleepNs);
        let all = self.begun.elapsed().as_nanos() as u64;
        EndpointTimes {
            spin_ns,
            asleep_ns,
            work_ns: all.saturating_sub(spin_ns + asleep_ns),
        }
    }
}

/// The owner's side: words of a page, which others may read.
pub(super) struct Times {
    begun: Instant,
    page: Arc<StatsPage>,
}

impl Times {
    pub(super) fn new(page: Arc<StatsPage>) -> Self {
        let begun = Instant::now();
        Self { begun, page }
    }

    pub(super) fn reader(&self) -> TimesReader {
        TimesReader {
            begun: self.begun,
            page: Arc::clone(&self.page),
        }
    }

    pub(super) fn page(&self) -> Arc<StatsPage> {
        Arc::clone(&self.page)
    }

    /// Empty rounds that nobody timed.
    #[inline]
    pub(super) fn rounds_add(&self, rounds: u32) {
        add(self.page.word(StatsWord::Rounds), rounds.into());
    }

    /// So many empty rounds took so long.
    pub(super) fn window_add(&self, rounds: u32, took: Duration) {
        let round_parts = self.page.word(StatsWord::RoundParts);
        if took <= WINDOW_MAX {
            let parts = took.as_nanos() as u64 * ROUND_PARTS / u64::from(rounds.max(1));
            let known = round_parts.load(Ordering::Relaxed);
            let parts = match known {
                0 => parts,
                known => (known * 7 + parts) / 8,
            };
            // Never zero again: that would mean that nothing is known.
            round_parts.store(parts.max(1), Ordering::Relaxed);
        }
        self.rounds_add(rounds);
        let untimed = self.page.word(StatsWord::Rounds);
        let rounds = untimed.load(Ordering::Relaxed);
        let parts = round_parts.load(Ordering::Relaxed);
        if parts > 0 {
            // Not both at once: a reader in between sees a little too much, and never less later.
            let spun = rounds * parts / ROUND_PARTS;
            add(self.page.word(StatsWord::SpinNs), spun);
            untimed.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn asleep_add(&self, took: Duration) {
        add(self.page.word(StatsWord::AsleepNs), took.as_nanos() as u64);
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
        let times = Times::new(Arc::new(StatsPage::private()));
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
