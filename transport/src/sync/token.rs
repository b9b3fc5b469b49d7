//! A value with one owner at a time, who lets go of it and takes it again at a known cost.
//!
//! The phase counts: even while the value is free, odd while it is owned. Taking is one
//! compare-and-swap on a private cache line, letting go one store. A thread that sees the same
//! even phase twice knows that nobody owned the value in between.
//!
//! The algorithm is a test-and-set lock without waiting, whose word doubles as a version, as in a
//! sequence lock (Lameter, "Effective synchronization on Linux/NUMA systems", 2005).

use std::ops::{Deref, DerefMut};

use crossbeam_utils::CachePadded;

use super::atomic::{AtomicU64, Ordering};

#[cfg(praas_loom)]
use loom::cell::UnsafeCell;
#[cfg(not(praas_loom))]
use std::cell::UnsafeCell;

/// A value with one owner at a time.
#[derive(Debug)]
pub struct OwnerToken<T> {
    phase: CachePadded<AtomicU64>,
    value: UnsafeCell<T>,
}

// SAFETY: the phase admits one owner at a time, and hands the value from one to the next by
// release and acquire; so sharing the token only moves the value between threads.
unsafe impl<T: Send> Sync for OwnerToken<T> {}

/// The value, owned until this is dropped.
#[derive(Debug)]
pub struct Owned<'a, T> {
    token: &'a OwnerToken<T>,
    phase: u64,
}

impl<T> OwnerToken<T> {
    /// A free value.
    pub fn new(value: T) -> Self {
        Self {
            phase: CachePadded::new(AtomicU64::new(0)),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the value if it is free.
    #[inline]
    pub fn try_take(&self) -> Option<Owned<'_, T>> {
        let phase = self.phase.load(Ordering::Relaxed);
        if phase % 2 == 1 {
            return None;
        }
        self.phase
            .compare_exchange(phase, phase + 1, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| Owned {
                token: self,
                phase: phase + 1,
            })
    }

    /// The phase now: even is free. The same even phase seen twice: nobody owned it in between.
    #[inline]
    pub fn phase(&self) -> u64 {
        self.phase.load(Ordering::Relaxed)
    }
}

impl<T> Drop for Owned<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.token.phase.store(self.phase + 1, Ordering::Release);
    }
}

impl<T> Deref for Owned<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        #[cfg(praas_loom)]
        let value = self.token.value.with(|value| value);
        #[cfg(not(praas_loom))]
        let value = self.token.value.get();
        // SAFETY: this is the one owner (the phase is odd and ours), and the reference does not
        // outlive it.
        unsafe { &*value }
    }
}

impl<T> DerefMut for Owned<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        #[cfg(praas_loom)]
        let value = self.token.value.with_mut(|value| value);
        #[cfg(not(praas_loom))]
        let value = self.token.value.get();
        // SAFETY: this is the one owner (the phase is odd and ours), borrowed mutably.
        unsafe { &mut *value }
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time() {
        let token = OwnerToken::new(1);
        let before = token.phase();
        let mut owned = token.try_take().unwrap();
        *owned += 1;
        assert!(token.try_take().is_none());
        drop(owned);
        assert_eq!(*token.try_take().unwrap(), 2);
        assert_ne!(token.phase(), before);
    }

    #[test]
    fn threads_never_own_it_together() {
        let token = OwnerToken::new(0_u64);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut taken = 0;
                    while taken < 10_000 {
                        match token.try_take() {
                            Some(mut owned) => {
                                *owned += 1;
                                taken += 1;
                            }
                            None => std::thread::yield_now(),
                        }
                    }
                });
            }
        });
        assert_eq!(*token.try_take().unwrap(), 20_000);
    }
}

#[cfg(all(test, praas_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn the_value_is_handed_over_whole() {
        loom::model(|| {
            let token = Arc::new(OwnerToken::new((0_u32, 0_u32)));
            let other = Arc::clone(&token);
            let thread = loom::thread::spawn(move || {
                if let Some(mut owned) = other.try_take() {
                    owned.0 += 1;
                    owned.1 += 1;
                }
            });
            if let Some(mut owned) = token.try_take() {
                owned.0 += 1;
                owned.1 += 1;
            }
            thread.join().unwrap();
            let owned = token.try_take().unwrap();
            assert_eq!(owned.0, owned.1);
            assert!((1..=2).contains(&owned.0));
        });
    }

    #[test]
    fn an_even_phase_seen_twice_means_nobody_owned_it() {
        loom::model(|| {
            let token = Arc::new(OwnerToken::new(0_u32));
            let other = Arc::clone(&token);
            let before = token.phase();
            let thread = loom::thread::spawn(move || {
                if let Some(mut owned) = other.try_take() {
                    *owned += 1;
                }
            });
            thread.join().unwrap();
            let after = token.phase();
            let value = *token.try_take().unwrap();
            assert_eq!(value == 0, before == after && before % 2 == 0);
        });
    }
}
