//! What a process counts, in a page that others may look at without asking it.
//!
//! ```text
//!   0      8            16       24      32           40         64        128     136 ...  224
//!   | magic | invocations | spin | rounds | round parts | asleep | running | queued, blocked,
//!                                                                            state, messages, puts,
//!                                                                            restored, persisted
//!   +------ written by the endpoint's owner only ----------------+ anybody  | anybody
//! ```
//!
//! The counters are not copied here: this is where they are. So whoever maps the page reads the
//! numbers as of now, and costs the process nothing; a reply adds one store to a line that its
//! writer has anyway. Words are relaxed, and so not of one moment.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::mm::ProtFlags;

use crate::buf::mapping::{Mapping, memfd_check, memfd_create_sized};
use crate::sync::atomic::{AtomicU64, Ordering};

const PAGE_BYTES: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"PRAASCT\x01");

/// A counter's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum StatsWord {
    /// Invocations answered. Only the endpoint's owner writes it.
    Invocations = 8,
    /// Nanoseconds of busy-polling in vain. Only the endpoint's owner writes it.
    SpinNs = 16,
    /// Rounds of busy-polling that are not yet in it. Only the endpoint's owner writes it.
    Rounds = 24,
    /// How long a round takes, in parts of a nanosecond. Only the endpoint's owner writes it.
    RoundParts = 32,
    /// Nanoseconds in the kernel. Only the endpoint's owner writes it.
    AsleepNs = 40,
    /// Functions that run.
    Running = 64,
    /// Invocations that wait for a worker.
    Queued = 128,
    /// Functions that wait in a call of theirs.
    Blocked = 136,
    /// Bytes of state objects.
    StateBytes = 144,
    /// Messages in the mailbox.
    Messages = 152,
    /// Messages that were put.
    Puts = 160,
    /// The generation of the image that it began with; zero: none.
    RestoredGeneration = 168,
    /// Whether that image is a checkpoint.
    RestoredCheckpoint = 176,
    /// Objects that were written through to storage, those that are gone included. Only whoever
    /// writes through writes this and those that follow.
    PersistedObjects = 184,
    /// Bytes of those objects.
    PersistedBytes = 192,
    /// Writes through that whoever wanted them was told have failed.
    PersistFailures = 200,
    /// Times that storage was written to for it.
    PersistGroups = 208,
    /// Nanoseconds that this took.
    PersistNs = 216,
}

/// Parts of a nanosecond in which the length of a round is kept.
pub(crate) const ROUND_PARTS: u64 = 64;

/// A page of counters, mapped; or such counters of this process alone.
pub struct StatsPage(Place);

enum Place {
    Mapped(Mapping),
    Private(Box<Words>),
}

/// Words as they are in a page, as far as there are any.
#[repr(align(64))]
#[derive(Default)]
struct Words([AtomicU64; 32]);

impl fmt::Debug for StatsPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatsPage")
    }
}

impl StatsPage {
    /// A page that nobody has yet, as a descriptor to be handed on and mapped.
    ///
    /// # Errors
    /// No memory, or no descriptor, is to be had.
    pub fn create() -> io::Result<OwnedFd> {
        let fd = memfd_create_sized("praas-stats", PAGE_BYTES)?;
        // Whoever could cut it short could make its readers fault.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(fd)
    }

    /// Counters of this process alone.
    pub fn private() -> Self {
        Self(Place::Private(Box::default()))
    }

    /// Maps a page, to count in it.
    ///
    /// # Errors
    /// It is no such page, or cannot be mapped.
    pub fn write(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let page = Self::map(fd, ProtFlags::READ | ProtFlags::WRITE)?;
        page.magic().store(MAGIC, Ordering::Relaxed);
        Ok(page)
    }

    /// Maps a page, to read what somebody counts in it.
    ///
    /// # Errors
    /// As [`StatsPage::write`].
    pub fn read(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Self::map(fd, ProtFlags::READ)
    }

    fn map(fd: BorrowedFd<'_>, prot: ProtFlags) -> io::Result<Self> {
        memfd_check(fd, PAGE_BYTES as u64, SealFlags::SHRINK)?;
        let page = Self(Place::Mapped(Mapping::map(fd, PAGE_BYTES, prot)?));
        match page.magic().load(Ordering::Relaxed) {
            // Not written yet, or as it must be.
            0 | MAGIC => Ok(page),
            _ => Err(io::Error::other("it counts something else")),
        }
    }

    fn magic(&self) -> &AtomicU64 {
        self.at(0)
    }

    #[inline]
    fn at(&self, place: usize) -> &AtomicU64 {
        match &self.0 {
            Place::Mapped(mapping) => mapping.word64(place),
            Place::Private(words) => &words.0[place / 8],
        }
    }

    /// A counter. Not to be written through a page that is mapped for reading.
    #[inline]
    pub fn word(&self, word: StatsWord) -> &AtomicU64 {
        self.at(word as usize)
    }

    /// Its value, relaxed.
    #[inline]
    pub fn load(&self, word: StatsWord) -> u64 {
        self.word(word).load(Ordering::Relaxed)
    }

    /// Nanoseconds of busy-polling, those rounds included that nobody has timed.
    pub fn spin_ns(&self) -> u64 {
        let rounds = self.load(StatsWord::Rounds);
        // What another process has written is not believed to be small.
        let untimed = rounds.saturating_mul(self.load(StatsWord::RoundParts)) / ROUND_PARTS;
        self.load(StatsWord::SpinNs).saturating_add(untimed)
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_counted_is_read_through_another_mapping() {
        let fd = StatsPage::create().unwrap();
        let reader = StatsPage::read(fd.as_fd()).unwrap();
        let page = StatsPage::write(fd.as_fd()).unwrap();
        assert_eq!(reader.load(StatsWord::Puts), 0);
        page.word(StatsWord::Puts).store(7, Ordering::Relaxed);
        page.word(StatsWord::Rounds).store(128, Ordering::Relaxed);
        page.word(StatsWord::RoundParts)
            .store(32, Ordering::Relaxed);
        page.word(StatsWord::SpinNs).store(1, Ordering::Relaxed);
        drop((fd, page));
        let own = StatsPage::private();
        own.word(StatsWord::Puts).store(8, Ordering::Relaxed);
        assert_eq!(own.load(StatsWord::Puts), 8);
        assert_eq!(own.load(StatsWord::PersistNs), 0);
        assert_eq!(reader.load(StatsWord::Puts), 7);
        assert_eq!(reader.spin_ns(), 65);
    }

    #[test]
    fn what_is_no_page_is_not_mapped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE_BYTES as u64).unwrap();
        assert!(StatsPage::write(file.as_fd()).is_err());
        let other = memfd_create_sized("x", PAGE_BYTES).unwrap();
        assert!(StatsPage::read(other.as_fd()).is_err(), "it may be cut");
        let page = StatsPage::create().unwrap();
        let whole = StatsPage::write(page.as_fd()).unwrap();
        whole.magic().store(9, Ordering::Relaxed);
        assert!(StatsPage::read(page.as_fd()).is_err());
    }
}
