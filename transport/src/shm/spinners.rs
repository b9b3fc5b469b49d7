//! The spinner page: how many endpoints of this node busy-poll, so that no more do than CPUs allow.
//!
//! ```text
//!   $PRAAS_RUN_DIR/spinners, 4096 bytes, mapped by every process of the node
//!   0      8              16           32
//!   | magic | slots used  | owner lease | owner lease | ...     255 slots, one an endpoint
//! ```
//!
//! A spinner that waits for one which the scheduler has put off, because a third spins, waits for
//! whole time slices: microseconds become milliseconds. So an endpoint asks here before it spins,
//! and again while it does. Its slot holds a *lease*: until when, in milliseconds of the
//! monotonic clock, it counts as spinning. Whoever blocks gives its lease up; whoever dies or does
//! something else stops renewing it. So nothing needs cleaning up after a kill -9, and a slot
//! whose lease is over is anybody's.
//!
//! The upper bits of a lease say where its owner spins: 12 bits of the thread, 12 bits of the CPU.
//! Two threads on one CPU, because they are bound there, would each spin out its time slice before
//! the other gets to answer: so who sees another there gives the CPU up after each look. A thread
//! that looks at two endpoints by turns is one spinner, not two.
//!
//! Who wants to begin may if fewer others spin than there are CPUs. Who spins already may go on if
//! fewer spin in the slots before its own: so when there are too many, all agree on who stops.
//!
//! It is a hint, not a lock: a race over a slot is noticed at the next renewal, and costs at most
//! a few milliseconds of one spinner too many. Without `PRAAS_RUN_DIR` the page is private to the
//! process.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::mm::ProtFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::buf::mapping::Mapping;
use crate::sync::atomic::{AtomicU64, Ordering};

const PAGE_BYTES: usize = 4096;
const SLOTS: usize = PAGE_BYTES / 16 - 1;
const MAGIC: u64 = u64::from_le_bytes(*b"PRAASPN\x02");
/// Milliseconds that a lease lasts: some ticks of the coarse clock.
const LEASE_MS: u64 = 20;
/// Waits between two renewals of a lease.
const WAITS_PER_RENEWAL: u32 = 64;
/// Where in a lease the place of its owner is: milliseconds for 34 years are below.
const PLACE_SHIFT: u32 = 40;
const CPU_MASK: u64 = 0xfff;

enum Words {
    Mapped(Mapping),
    Private(Box<[AtomicU64]>),
}

/// The page, and how many may spin.
pub(crate) struct SpinnerPage {
    words: Words,
    cpus: usize,
}

impl SpinnerPage {
    /// The page of this process: the node's, or a private one without a run directory.
    pub(crate) fn shared() -> Arc<Self> {
        static PAGE: OnceLock<Arc<SpinnerPage>> = OnceLock::new();
        let page = PAGE.get_or_init(|| {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            let page = match std::env::var_os("PRAAS_RUN_DIR") {
                None => Self::private(cpus),
                Some(dir) => {
                    let path = Path::new(&dir).join("spinners");
                    Self::open(&path, cpus).unwrap_or_else(|error| {
                        let path = path.display();
                        tracing::warn!(%path, %error, "no spinner page: counting own spinners only");
                        Self::private(cpus)
                    })
                }
            };
            Arc::new(page)
        });
        Arc::clone(page)
    }

    /// A page of this process alone.
    pub(crate) fn private(cpus: usize) -> Self {
        let words = (0..PAGE_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
        Self {
            words: Words::Private(words),
            cpus,
        }
    }

    /// Maps the page in a file, which is made if it is not there.
    fn open(path: &Path, cpus: usize) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)?;
        let metadata = file.metadata()?;
        // Whoever may cut the file short could make us fault, so it must be our own.
        if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("not a file of this user"));
        }
        if metadata.len() < PAGE_BYTES as u64 {
            file.set_len(PAGE_BYTES as u64)?;
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let page = Self {
            words: Words::Mapped(Mapping::map(file.as_fd(), PAGE_BYTES, prot)?),
            cpus,
        };
        let magic = page.word(0);
        let found = magic.compare_exchange(0, MAGIC, Ordering::AcqRel, Ordering::Acquire);
        match found {
            Ok(_) | Err(MAGIC) => Ok(page),
            Err(_) => Err(io::Error::other("not a spinner page of this version")),
        }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        match &self.words {
            Words::Mapped(mapping) => mapping.word64(at * 8),
            Words::Private(words) => &words[at],
        }
    }

    fn owner(&self, slot: usize) -> &AtomicU64 {
        self.word(2 + slot * 2)
    }

    fn lease(&self, slot: usize) -> &AtomicU64 {
        self.word(3 + slot * 2)
    }

    /// Slots that were ever in use, which come first.
    fn used(&self) -> &AtomicU64 {
        self.word(1)
    }

    /// Until when a slot counts as spinning, and where.
    fn lease_read(&self, slot: usize) -> (u64, u64) {
        let lease = self.lease(slot).load(Ordering::Relaxed);
        (lease & ((1 << PLACE_SHIFT) - 1), lease >> PLACE_SHIFT)
    }

    /// Takes the first slot that nobody's lease holds.
    fn take(&self, tag: u64, now_ms: u64) -> Option<usize> {
        let slot = (0..SLOTS).find(|&slot| {
            let owner = self.owner(slot).load(Ordering::Relaxed);
            self.lease_read(slot).0 <= now_ms
                && self
                    .owner(slot)
                    .compare_exchange(owner, tag, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
        })?;
        self.used().fetch_max(slot as u64 + 1, Ordering::Relaxed);
        Some(slot)
    }
}

fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    (now.tv_sec as u64) * 1000 + (now.tv_nsec as u64) / 1_000_000
}

/// Tells the threads of this node apart, but for a few in a thousand.
fn thread_mark() -> u64 {
    thread_local! {
        static MARK: u64 = u64::from(fastrand::u16(..)) & CPU_MASK;
    }
    MARK.with(|mark| *mark)
}

/// An endpoint that may want to spin.
pub(crate) struct Spinner {
    page: Arc<SpinnerPage>,
    /// Process id and a random number: no two endpoints have the same.
    tag: u64,
    slot: Option<usize>,
    spinning: bool,
    /// Another thread spins on the same CPU.
    crowded: bool,
    waits: u32,
}

impl Spinner {
    pub(crate) fn new(page: Arc<SpinnerPage>) -> Self {
        Self {
            page,
            tag: u64::from(std::process::id()) << 32 | u64::from(fastrand::u32(1..)),
            slot: None,
            spinning: false,
            crowded: false,
            waits: 0,
        }
    }

    /// A wait begins: whether it may spin.
    #[inline]
    pub(crate) fn begin(&mut self) -> bool {
        self.waits = self.waits.wrapping_add(1);
        match self.spinning && !self.waits.is_multiple_of(WAITS_PER_RENEWAL) {
            true => true,
            false => self.renew(),
        }
    }

    /// Renews the lease; whether to spin (on).
    pub(crate) fn renew(&mut self) -> bool {
        let cpu = rustix::thread::sched_getcpu() as u64 & CPU_MASK;
        self.renew_at(now_ms(), cpu | thread_mark() << CPU_MASK.count_ones())
    }

    /// Whether to let others have the CPU after each look, as of the last renewal.
    #[inline]
    pub(crate) fn crowded(&self) -> bool {
        self.crowded
    }

    fn renew_at(&mut self, now_ms: u64, place: u64) -> bool {
        let owned = |slot: &usize| self.page.owner(*slot).load(Ordering::Relaxed) == self.tag;
        self.slot = self.slot.filter(owned);
        self.slot = self.slot.or_else(|| self.page.take(self.tag, now_ms));
        self.crowded = false;
        self.spinning = self.slot.is_some_and(|slot| {
            let lease = (now_ms + LEASE_MS) | place << PLACE_SHIFT;
            self.page.lease(slot).store(lease, Ordering::Relaxed);
            // Another process may have written anything.
            let used = self.page.used().load(Ordering::Relaxed).min(SLOTS as u64) as usize;
            let before = match self.spinning {
                true => slot,
                false => used,
            };
            let mut count = 0;
            for other in (0..used).filter(|other| *other != slot) {
                let (until, on) = self.page.lease_read(other);
                // What is at our own place is ours: this thread looks at both by turns.
                if until > now_ms && on != place {
                    count += usize::from(other < before);
                    self.crowded |= (on ^ place) & CPU_MASK == 0;
                }
            }
            count < self.page.cpus
        });
        if !self.spinning {
            self.lease_end();
        }
        self.spinning
    }

    /// Blocks now, or ends.
    pub(crate) fn rest(&mut self) {
        if std::mem::take(&mut self.spinning) {
            self.lease_end();
        }
    }

    fn lease_end(&self) {
        if let Some(slot) = self.slot
            && self.page.owner(slot).load(Ordering::Relaxed) == self.tag
        {
            self.page.lease(slot).store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.rest();
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;

    fn spinners(pages: [&Arc<SpinnerPage>; 3]) -> [Spinner; 3] {
        pages.map(|page| Spinner::new(Arc::clone(page)))
    }

    fn they_share_two_cpus([mut a, mut b, mut c]: [Spinner; 3]) {
        assert!(a.renew_at(100, 0));
        assert!(b.renew_at(100, 1));
        assert!(!c.renew_at(100, 2), "a third spinner on two CPUs");
        a.rest();
        assert!(c.renew_at(101, 2), "one has blocked");
        assert!(b.renew_at(102, 1));
        assert!(!a.renew_at(103, 0), "two others spin");
        // One forgets to renew: dead, or busy with something else.
        assert!(b.renew_at(104 + LEASE_MS, 1));
        assert!(a.renew_at(104 + LEASE_MS, 0), "a lease is over");
        let spinning = [a.spinning, b.spinning, c.renew_at(105 + LEASE_MS, 2)];
        assert_eq!(spinning.iter().filter(|spins| **spins).count(), 2);
    }

    #[test]
    fn no_more_spin_than_there_are_cpus() {
        let page = Arc::new(SpinnerPage::private(2));
        they_share_two_cpus(spinners([&page; 3]));
    }

    #[test]
    fn processes_share_the_page_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Arc::new(SpinnerPage::open(&dir.path().join("spinners"), 2).unwrap());
        they_share_two_cpus(spinners([&open(), &open(), &open()]));
    }

    #[test]
    fn a_file_that_is_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spinners");
        std::fs::write(&path, [7; PAGE_BYTES]).unwrap();
        assert!(SpinnerPage::open(&path, 2).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), [7; PAGE_BYTES]);
    }

    #[test]
    fn slots_are_used_again() {
        let page = Arc::new(SpinnerPage::private(1));
        for round in 0..3 * SLOTS as u64 {
            let mut spinner = Spinner::new(Arc::clone(&page));
            assert!(spinner.renew_at(1000 + round, 0));
            assert_eq!(spinner.slot, Some(0));
        }
    }

    #[test]
    fn who_shares_a_cpu_knows_it() {
        let page = Arc::new(SpinnerPage::private(2));
        let [mut a, mut b, mut c] = spinners([&page; 3]);
        let at = |thread: u64, cpu: u64| thread << 12 | cpu;
        assert!(a.renew_at(100, at(7, 1)) && !a.crowded());
        assert!(b.renew_at(100, at(8, 1)) && b.crowded());
        assert!(a.renew_at(101, at(7, 1)) && a.crowded());
        // A thread does not keep itself waiting, and is one spinner however much it looks at.
        assert!(c.renew_at(101, at(8, 1)));
        c.rest();
        // One was moved, or is gone.
        assert!(a.renew_at(102, at(7, 0)) && !a.crowded());
        assert!(b.renew_at(102, at(8, 1)) && !b.crowded());
        assert!(c.renew_at(102, at(8, 1)) && !c.crowded());
        a.rest();
        assert!(b.renew_at(103, 0) && !b.crowded());
    }
}
