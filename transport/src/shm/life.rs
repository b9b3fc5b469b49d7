//! The life page: how peers on the same host see within a millisecond that we died.
//!
//! ```text
//!   our process                                         a peer
//!   life thread -- holds --> [ robust futex word ] <--- maps read-only, looks while it polls
//!       |  dies with us           |
//!       +-- the kernel, as it ends the thread, sets FUTEX_OWNER_DIED there
//! ```
//!
//! Sockets hang up, and pidfds fire, only after the kernel has freed a killed process's memory:
//! tens of milliseconds a gigabyte. A thread's robust list is walked before that. So each process
//! has one page (a memfd), one word on it, and one thread that does nothing but hold the word as a
//! robust futex. Peers get the page by descriptor, sealed so that none can map it writable, and
//! look at the word when they find nothing else to do. The list's node is private memory, since
//! the kernel follows its pointers; only the word is shared.

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::mm::{MapFlags, ProtFlags};

use crate::buf::mapping::{Mapping, memfd_check, memfd_create_sized};
use crate::one_sided::OneSidedError;
use crate::sync::atomic::{AtomicU32, Ordering, fence};

/// Bytes of a life page.
pub(crate) const LIFE_BYTES: usize = 4096;
const OWNER_DIED: u32 = 0x4000_0000;
const LIFE_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE);

/// The descriptor of this process's life page, made at the first call.
///
/// # Errors
/// The system refuses a memfd, a mapping or a thread.
pub(crate) fn life_page() -> io::Result<&'static OwnedFd> {
    static LIFE: OnceLock<Result<OwnedFd, io::ErrorKind>> = OnceLock::new();
    LIFE.get_or_init(|| life_start().map_err(|error| error.kind()))
        .as_ref()
        .map_err(|kind| io::Error::from(*kind))
}

fn life_start() -> io::Result<OwnedFd> {
    let fd = memfd_create_sized("praas-life", LIFE_BYTES)?;
    let page = Mapping::map(fd.as_fd(), LIFE_BYTES, ProtFlags::READ | ProtFlags::WRITE)?;
    fcntl_add_seals(&fd, LIFE_SEALS | SealFlags::SEAL)?;
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("praas-life".into())
        .stack_size(64 << 10)
        .spawn(move || {
            // The page must outlive every look at it, so it is never unmapped.
            static PAGE: OnceLock<Mapping> = OnceLock::new();
            let page = PAGE.get_or_init(|| page);
            // The receiver waits below; if it is gone, so is the process.
            let _ = tell.send(life_hold(page));
            loop {
                std::thread::park();
            }
        })?;
    told.recv()
        .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
    Ok(fd)
}

#[repr(C)]
struct RobustNode {
    next: *mut RobustNode,
}

#[repr(C)]
struct RobustHead {
    list: RobustNode,
    futex_offset: libc::c_long,
    pending: *mut RobustNode,
}

/// The list of the life thread, with one node. Private memory that is never freed, since the
/// kernel reads it when the thread ends.
struct RobustList {
    head: UnsafeCell<RobustHead>,
    node: UnsafeCell<RobustNode>,
}

// SAFETY: only the one life thread writes it, before it tells the kernel.
unsafe impl Sync for RobustList {}

static LIST: RobustList = RobustList {
    head: UnsafeCell::new(RobustHead {
        list: RobustNode {
            next: std::ptr::null_mut(),
        },
        futex_offset: 0,
        pending: std::ptr::null_mut(),
    }),
    node: UnsafeCell::new(RobustNode {
        next: std::ptr::null_mut(),
    }),
};

/// Makes the calling thread, the only one to call this, the word's owner until it ends.
fn life_hold(page: &'static Mapping) -> io::Result<()> {
    let word = page.word32(0);
    let (head, node) = (LIST.head.get(), LIST.node.get());
    // SAFETY: nobody else has the list yet. It is circular, from the head over the node back to
    // the head.
    unsafe {
        (*node).next = std::ptr::addr_of_mut!((*head).list);
        (*head).list.next = node;
        let offset = (std::ptr::from_ref(word) as isize) - (node as isize);
        (*head).futex_offset = offset as libc::c_long;
    }
    word.store(
        rustix::thread::gettid().as_raw_nonzero().get() as u32,
        Ordering::SeqCst,
    );
    // SAFETY: the head is valid for the rest of the process and laid out as the kernel wants it.
    // This thread uses no robust mutex of the C library, whose list is replaced here.
    let done = unsafe { libc::syscall(libc::SYS_set_robust_list, head, size_of::<RobustHead>()) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A peer's life page.
pub(crate) struct LifeWatch {
    page: Mapping,
}

impl LifeWatch {
    /// Maps the page that the peer handed over.
    ///
    /// # Errors
    /// It is no sealed memfd of the right size, so that the peer could make us fault.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        memfd_check(fd.as_fd(), LIFE_BYTES as u64, SealFlags::SHRINK)?;
        let page = Mapping::map_with(fd.as_fd(), LIFE_BYTES, ProtFlags::READ, MapFlags::SHARED)?;
        Ok(Self { page })
    }

    /// Whether the peer's process has ended.
    #[inline]
    pub(crate) fn dead(&self) -> bool {
        owner_died(self.page.word32(0))
    }

    /// What is to be said of an operation on the peer's memory that is done. The memory outlives the
    /// peer, which may have a successor by then, so it counts only if the peer lived until after it.
    #[inline]
    pub(super) fn outcome_alive(
        &self,
        outcome: Result<u64, OneSidedError>,
    ) -> Result<u64, OneSidedError> {
        fence(Ordering::Acquire);
        match self.dead() {
            true => Err(OneSidedError::Closed),
            false => outcome,
        }
    }
}

#[inline]
fn owner_died(word: &AtomicU32) -> bool {
    word.load(Ordering::Relaxed) & OWNER_DIED != 0
}

/// Says that what the peer fetches from our memory may be something else from now on.
pub(super) fn gone_tell(word: &AtomicU32) {
    word.store(1, Ordering::Release);
    // What becomes of the memory comes after it.
    fence(Ordering::SeqCst);
}

/// After bytes were fetched: whether they may be something else than what was announced.
#[inline]
pub(super) fn gone_seen(word: &AtomicU32) -> bool {
    fence(Ordering::Acquire);
    word.load(Ordering::Relaxed) != 0
}

/// After a peer was found dead, and before the last look at what it has published.
pub(super) fn death_fence() {
    fence(Ordering::SeqCst);
}

#[cfg(all(test, praas_loom))]
mod loom_tests {
    use std::sync::Arc;

    use super::super::ring::tests::{WordLines, frame, receive};
    use super::super::ring::{RingReader, RingWriter};
    use super::*;

    /// A writer that goes uses its memory again; who fetches from it meanwhile has the old bytes, or
    /// sees that it is gone.
    #[test]
    fn loom_memory_of_who_is_gone_is_not_taken_for_a_message() {
        loom::model(|| {
            let word = Arc::new(AtomicU32::new(0));
            let bytes = Arc::new([AtomicU32::new(1), AtomicU32::new(1)]);
            let (gone, memory) = (Arc::clone(&word), Arc::clone(&bytes));
            let thread = loom::thread::spawn(move || {
                gone_tell(&gone);
                for byte in &*memory {
                    byte.store(2, Ordering::Relaxed);
                }
            });
            let got = [0, 1].map(|at: usize| bytes[at].load(Ordering::Relaxed));
            assert!(gone_seen(&word) || got == [1, 1]);
            thread.join().unwrap();
        });
    }

    /// Whoever looks once more after the word says that the peer is dead has its last frames.
    #[test]
    fn loom_a_dead_peers_last_frames_are_read() {
        loom::model(|| {
            let lines = WordLines::new(4);
            let word = Arc::new(AtomicU32::new(7));
            let mut writer = RingWriter::new(lines.clone());
            let mut reader = RingReader::new(lines);
            let dying = Arc::clone(&word);
            let thread = loom::thread::spawn(move || {
                for body in [[1], [2]] {
                    assert!(writer.room(1).unwrap());
                    writer.publish(&frame(1), &[], &[&body]);
                }
                // As the kernel does it, which has more than this between.
                dying.fetch_or(OWNER_DIED, Ordering::AcqRel);
            });
            let mut got = Vec::new();
            loop {
                match receive(&mut reader) {
                    Some(body) => got.extend(body),
                    None if owner_died(&word) => break,
                    None => loom::thread::yield_now(),
                }
            }
            death_fence();
            while let Some(body) = receive(&mut reader) {
                got.extend(body);
            }
            assert_eq!(got, [1, 2]);
            thread.join().unwrap();
        });
    }
}
