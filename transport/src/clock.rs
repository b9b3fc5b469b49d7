//! Time and chance: the system's, or a simulation's on the thread that runs it.
//!
//! Code here and above asks [`now`] and [`random_fill`], not the system, so that a deterministic
//! simulation can run it as it is: one thread, one seed, one course of events. Elsewhere the
//! question whether there is a simulation costs a relaxed load of a word that nobody writes.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(not(praas_loom))]
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Milliseconds since the Unix epoch at which every simulation begins.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Simulations in this OS process, on whatever threads.
#[cfg(not(praas_loom))]
static SIMULATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// The simulation of a thread.
struct Here {
    begun: Instant,
    passed: Duration,
    random: fastrand::Rng,
}

/// The time.
#[inline]
pub fn now() -> Instant {
    match simulated() {
        false => Instant::now(),
        true => here(|here| here.begun + here.passed).unwrap_or_else(Instant::now),
    }
}

/// Milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    let passed = match simulated() {
        false => None,
        true => here(|here| EPOCH_MS + here.passed.as_millis() as u64),
    };
    passed.unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    })
}

/// Fills `bytes` with what nobody can guess, but for a simulation.
///
/// # Errors
/// The system has no random bytes.
pub fn random_fill(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    match simulated() && here(|here| here.random.fill(bytes)).is_some() {
        true => Ok(()),
        false => getrandom::fill(bytes),
    }
}

/// A number that nobody can guess, but for a simulation.
///
/// # Errors
/// As [`random_fill`].
pub fn random_u64() -> Result<u64, getrandom::Error> {
    let mut bytes = [0; 8];
    random_fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[inline]
fn simulated() -> bool {
    #[cfg(praas_loom)]
    return false;
    #[cfg(not(praas_loom))]
    return SIMULATIONS.load(Ordering::Relaxed) != 0;
}

#[cold]
fn here<R>(ask: impl FnOnce(&mut Here) -> R) -> Option<R> {
    HERE.with_borrow_mut(|here| here.as_mut().map(ask))
}

/// While it lives, its thread has a clock that stands still but for
/// [`advance`](Simulation::advance), and chance that its seed decides.
#[doc(hidden)]
#[derive(Debug)]
pub struct Simulation {
    /// It is the thread's.
    stays: PhantomData<*const ()>,
}

impl Simulation {
    /// Takes this thread's time and chance over.
    ///
    /// # Panics
    /// There is one on this thread already.
    pub fn begin(seed: u64) -> Self {
        let simulation = Here {
            begun: Instant::now(),
            passed: Duration::ZERO,
            random: fastrand::Rng::with_seed(seed),
        };
        let before = HERE.replace(Some(simulation));
        assert!(before.is_none(), "two simulations on one thread");
        #[cfg(not(praas_loom))]
        SIMULATIONS.fetch_add(1, Ordering::Relaxed);
        Self { stays: PhantomData }
    }

    /// Lets time pass on this thread, if it is a simulation's.
    pub fn advance(by: Duration) {
        here(|here| here.passed += by);
    }

    /// How much time has passed since the simulation of this thread began.
    pub fn passed() -> Duration {
        here(|here| here.passed).unwrap_or_default()
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        #[cfg(not(praas_loom))]
        SIMULATIONS.fetch_sub(1, Ordering::Relaxed);
        HERE.set(None);
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_has_its_own_time_and_chance() {
        let run = |seed| {
            let simulation = Simulation::begin(seed);
            let (then, then_ms) = (now(), unix_ms());
            Simulation::advance(Duration::from_secs(3));
            assert_eq!(now() - then, Duration::from_secs(3));
            assert_eq!((then_ms, unix_ms()), (EPOCH_MS, EPOCH_MS + 3_000));
            // Others have the system's.
            let elsewhere = std::thread::spawn(|| (unix_ms(), random_u64().unwrap()));
            assert!(elsewhere.join().unwrap().0 > EPOCH_MS + 3_000);
            drop(simulation);
            assert!(unix_ms() > EPOCH_MS + 3_000);
            let simulation = Simulation::begin(seed);
            let drawn = (random_u64().unwrap(), random_u64().unwrap());
            drop(simulation);
            drawn
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
