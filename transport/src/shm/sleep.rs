//! Sleeping without losing a wake-up, between two processes that share a flag.
//!
//! ```text
//!   sleeper                          waker
//!   flag = 1                         publish
//!   -------- fence --------          -------- fence --------
//!   look again; nothing: sleep       flag was 1: flag = 0, ring the doorbell
//! ```
//!
//! This is Dekker's problem: each side writes its own word and then reads the other's, and at least
//! one must see what the other wrote. Both fences being full ones makes it so. Where both
//! processes are registered for expedited membarriers, the sleeper's call puts a full fence into
//! whatever the waker's processor runs at that moment, so that the waker's may be a compiler's one
//! (Dice, Huang, Yang: "Asymmetric Dekker synchronization", 2001): the hot side pays nothing.

use crate::sync::atomic::{AtomicU32, Ordering, compiler_fence, fence};

/// The sleeper says so; [`sleep_fence`] must follow before it looks again.
pub(super) fn flag_raise(flag: &AtomicU32) {
    flag.store(1, Ordering::Relaxed);
}

/// The sleeper is up again.
pub(super) fn flag_lower(flag: &AtomicU32) {
    flag.store(0, Ordering::Relaxed);
}

/// Between raising flags and looking again.
pub(super) fn sleep_fence(barrier: bool) {
    fence(Ordering::SeqCst);
    if barrier {
        // Every processor that runs a registered process has now seen the flags, or had published
        // before and is seen below. Registered and supported, it cannot fail.
        super::membarrier(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED);
    }
}

/// After publishing what the sleeper may wait for: whether it sleeps, and the doorbell is ours to
/// ring.
#[inline]
pub(super) fn sleeper_take(flag: &AtomicU32, barrier: bool) -> bool {
    match barrier {
        true => compiler_fence(Ordering::SeqCst),
        false => fence(Ordering::SeqCst),
    }
    let sleeps = flag.load(Ordering::Relaxed) != 0;
    if sleeps {
        flag.store(0, Ordering::Relaxed);
    }
    sleeps
}

#[cfg(all(test, praas_loom))]
mod loom_tests {
    use std::sync::Arc;

    use loom::sync::Notify;

    use super::super::ring::tests::{WordLines, frame, receive};
    use super::super::ring::{RingReader, RingWriter, lines_for};
    use super::*;

    struct Shared {
        lines: WordLines,
        flag: AtomicU32,
        /// The socket: a bell that was rung stays rung until it is heard.
        bell: Notify,
    }

    fn shared() -> Arc<Shared> {
        Arc::new(Shared {
            lines: WordLines::new(4),
            flag: AtomicU32::new(0),
            bell: Notify::new(),
        })
    }

    fn wake(shared: &Shared) {
        if sleeper_take(&shared.flag, false) {
            shared.bell.notify();
        }
    }

    /// Sleeps unless `there`; a wake-up that is lost is a deadlock, which loom reports.
    fn sleep_unless(shared: &Shared, mut there: impl FnMut() -> bool) {
        flag_raise(&shared.flag);
        sleep_fence(false);
        if !there() {
            shared.bell.wait();
        }
        flag_lower(&shared.flag);
    }

    #[test]
    fn loom_a_sleeping_reader_is_woken_for_every_frame() {
        loom::model(|| {
            let shared = shared();
            let mut writer = RingWriter::new(shared.lines.clone());
            let mut reader = RingReader::new(shared.lines.clone());
            let other = Arc::clone(&shared);
            let thread = loom::thread::spawn(move || {
                for body in [[1], [2]] {
                    assert!(writer.room(1).unwrap());
                    writer.publish(&frame(1), &[], &[&body]);
                    wake(&other);
                }
            });
            for body in [[1], [2]] {
                let got = loop {
                    match receive(&mut reader) {
                        Some(got) => break got,
                        None => sleep_unless(&shared, || reader.ready()),
                    }
                };
                assert_eq!(got, body);
            }
            thread.join().unwrap();
        });
    }

    #[test]
    fn loom_a_writer_that_sleeps_for_room_is_woken() {
        loom::model(|| {
            let shared = shared();
            let mut writer = RingWriter::new(shared.lines.clone());
            let mut reader = RingReader::new(shared.lines.clone());
            // Full: two lines written, two kept free.
            for body in [[1], [2]] {
                assert!(writer.room(1).unwrap());
                writer.publish(&frame(1), &[], &[&body]);
            }
            let other = Arc::clone(&shared);
            let thread = loom::thread::spawn(move || {
                while !writer.room(lines_for(1)).unwrap() {
                    sleep_unless(&other, || writer.room(lines_for(1)).unwrap());
                }
                writer.publish(&frame(1), &[], &[&[3]]);
            });
            let mut got = Vec::new();
            for _ in 0..2 {
                got.extend(receive(&mut reader).expect("it was there before"));
                wake(&shared);
            }
            thread.join().unwrap();
            got.extend(receive(&mut reader).expect("the writer has ended"));
            assert_eq!(got, [1, 2, 3]);
        });
    }
}
