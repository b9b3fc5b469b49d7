//! The side that is to be the process: takes what comes, and says when it has all.
//!
//! What the source says is bounded here before anything is allocated; the memory of objects comes
//! from the process's own pool, which has its limit, too.

use std::collections::{BTreeMap, HashMap};

use praas_transport::{Buf, BufMut, BufPool, PoolExhausted};

use super::message::{Entry, FromSource, FromTarget, What};
use super::ranges::Ranges;
use crate::files::{FILE_MODE_BITS, FILE_NAME_MAX_BYTES, ImageFile};
use crate::mailbox::MailboxImage;
use crate::state::{KEY_MAX_BYTES, ObjectMeta, cost};
use crate::swap::{ImageKind, ProcessImage, mailbox_decode, sessions_decode};

/// Entries that may be announced and not be there.
const AWAITED_MAX: usize = 1 << 16;
/// Ranges of bytes that may be there of entries that are not whole, all together.
const RANGES_MAX: usize = 1 << 16;
/// Incarnations that one may vouch for besides itself; older ones are forgotten.
pub const VOUCHED_MAX: usize = 64;

/// Why a transfer ends at the target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The source gives up, and serves on.
    #[error("the source gave up: {0}")]
    Source(String),
    /// The source says what it should not.
    #[error("the source makes no sense: {0}")]
    Malformed(&'static str),
    /// It is more than this process may have.
    #[error(
        "state above {limit} bytes (twice state_max_bytes, or buffers_max_bytes if that is more)"
    )]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// There are more of something than this process may have.
    #[error("{what}: above {limit} (setting {setting})")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// The setting that says so.
        setting: &'static str,
    },
    /// There is no memory for it.
    #[error(transparent)]
    Pool(#[from] PoolExhausted),
    /// The channel ended.
    #[error("the channel to the source ended: {0}")]
    Lost(String),
    /// It was called off.
    #[error("the transfer was called off")]
    Cancelled,
}

/// What a target takes, as the settings of the process have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetLimits {
    /// Bytes of state. Twice as many are taken at least: what comes in rounds is of different
    /// moments, and of what is announced some may be gone already. And as many as the pool has: a
    /// state that was restored may be above its limit, by how much ever, and is not lost for it.
    pub state_max_bytes: u64,
    /// Messages of the mailbox. Twice as many are taken, and twice the bytes: those that were
    /// given back by who had waited for them come on top.
    pub mailbox_messages_max: usize,
    /// Bytes of them.
    pub mailbox_max_bytes: u64,
    /// Files.
    pub files_max: usize,
    /// Bytes of them.
    pub files_max_bytes: u64,
}

impl TargetLimits {
    /// The limits of the mailbox's messages and their bytes.
    fn mailbox(&self) -> ((u64, &'static str), (u64, &'static str)) {
        let messages_max = (self.mailbox_messages_max as u64).saturating_mul(2);
        let bytes_max = self.mailbox_max_bytes.saturating_mul(2);
        (
            (messages_max, "twice mailbox_messages_max"),
            (bytes_max, "twice mailbox_max_bytes"),
        )
    }
}

/// How many of something were announced, and their bytes.
#[derive(Debug, Default)]
struct Tally {
    count: u64,
    bytes: u64,
}

impl Tally {
    /// Counts one more, within limits that are settings.
    fn add(
        &mut self,
        what: &'static str,
        bytes: u64,
        count_max: (u64, &'static str),
        bytes_max: (u64, &'static str),
    ) -> Result<(), PullError> {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        for (have, (limit, setting)) in [(self.count, count_max), (self.bytes, bytes_max)] {
            if have > limit {
                return Err(PullError::TooMuch {
                    what,
                    limit,
                    setting,
                });
            }
        }
        Ok(())
    }
}

/// Where the bytes of an entry go.
#[derive(Debug)]
enum Place {
    /// None are there yet.
    Empty,
    /// It comes in several pieces.
    Partial { buf: BufMut, have: Ranges },
}

#[derive(Debug)]
struct Awaited {
    entry: Entry,
    place: Place,
}

/// A state object.
#[derive(Debug)]
struct Object {
    /// Of which entry it is: an older one may be whole later.
    entry: u64,
    /// Once it is here.
    whole: Option<(Buf, ObjectMeta)>,
    /// Bytes that it takes of the limit.
    cost: u64,
}

/// The receiving side.
#[derive(Debug)]
pub struct Target {
    pool: BufPool,
    limits: TargetLimits,
    state_bytes: u64,
    announced_bodies: Tally,
    announced_files: Tally,
    announced_mailbox: bool,
    announced_sessions: bool,
    entries: u64,
    awaited: HashMap<u64, Awaited>,
    /// Of all that are awaited.
    ranges: usize,
    objects: BTreeMap<String, Object>,
    mailbox: Option<Buf>,
    bodies: BTreeMap<u64, Buf>,
    sessions: Option<Buf>,
    files: BTreeMap<u64, ImageFile>,
    round: Option<u32>,
    vouched: Vec<u64>,
    state_version: u64,
    ended: bool,
}

impl Target {
    /// Takes at most so much, into memory of the pool.
    pub fn new(pool: BufPool, limits: TargetLimits) -> Self {
        Self {
            pool,
            limits,
            state_bytes: 0,
            announced_bodies: Tally::default(),
            announced_files: Tally::default(),
            announced_mailbox: false,
            announced_sessions: false,
            entries: 0,
            awaited: HashMap::new(),
            ranges: 0,
            objects: BTreeMap::new(),
            mailbox: None,
            bodies: BTreeMap::new(),
            sessions: None,
            files: BTreeMap::new(),
            round: None,
            vouched: Vec::new(),
            state_version: 0,
            ended: false,
        }
    }

    /// The source says something.
    ///
    /// # Errors
    /// It gives up, or says what it should not.
    pub fn heard(&mut self, word: FromSource) -> Result<(), PullError> {
        if self.ended {
            return Err(PullError::Malformed("a word after the end"));
        }
        match word {
            FromSource::Entries(entries) => {
                for entry in entries {
                    self.announced(entry)?;
                }
            }
            FromSource::Deleted(keys) => {
                for key in keys {
                    let Some(object) = self.objects.remove(&key) else {
                        return Err(PullError::Malformed(
                            "an object that was never sent is gone",
                        ));
                    };
                    self.state_bytes -= object.cost;
                }
            }
            FromSource::Round { round } => self.round = Some(round),
            FromSource::End {
                vouched,
                state_version,
            } if vouched.len() <= VOUCHED_MAX => {
                self.vouched = vouched;
                self.state_version = state_version;
                self.ended = true;
            }
            FromSource::End { .. } => return Err(PullError::Malformed("its end")),
            FromSource::Failed { error } => return Err(PullError::Source(error)),
        }
        Ok(())
    }

    fn announced(&mut self, entry: Entry) -> Result<(), PullError> {
        let number = self.entries;
        self.entries += 1;
        if self.awaited.len() >= AWAITED_MAX {
            return Err(PullError::Malformed("too many entries at once"));
        }
        match &entry.what {
            What::Object { key, .. } => {
                if key.is_empty() || key.len() > KEY_MAX_BYTES {
                    return Err(PullError::Malformed("an object's key"));
                }
                let cost = cost(key, entry.bytes);
                let object = Object {
                    entry: number,
                    whole: None,
                    cost,
                };
                // The older one's memory is not kept while the newer one comes.
                let before = self.objects.insert(key.clone(), object);
                self.state_bytes -= before.map_or(0, |before| before.cost);
                self.state_bytes = self.state_bytes.saturating_add(cost);
                let limit = self.limits.state_max_bytes.saturating_mul(2);
                let limit = limit.max(self.pool.limit_bytes() as u64);
                if self.state_bytes > limit {
                    return Err(PullError::TooLarge { limit });
                }
            }
            What::File { name, mode }
                if name.len() > FILE_NAME_MAX_BYTES || mode & !FILE_MODE_BITS != 0 =>
            {
                return Err(PullError::Malformed("a file's name or mode"));
            }
            What::File { .. } => {
                let count_max = (self.limits.files_max as u64, "files_max");
                let bytes_max = (self.limits.files_max_bytes, "files_max_bytes");
                let files = &mut self.announced_files;
                files.add("files", entry.bytes, count_max, bytes_max)?;
            }
            What::Body => {
                let (count_max, bytes_max) = self.limits.mailbox();
                let bodies = &mut self.announced_bodies;
                bodies.add("messages", entry.bytes, count_max, bytes_max)?;
            }
            What::Mailbox if std::mem::replace(&mut self.announced_mailbox, true) => {
                return Err(PullError::Malformed("two mailboxes"));
            }
            What::Sessions if std::mem::replace(&mut self.announced_sessions, true) => {
                return Err(PullError::Malformed("two lists of sessions"));
            }
            What::Mailbox | What::Sessions => {}
        }
        if entry.bytes == 0 {
            self.whole(number, entry, Buf::default());
        } else {
            let place = Place::Empty;
            self.awaited.insert(number, Awaited { entry, place });
        }
        Ok(())
    }

    /// Memory for a piece that is announced.
    ///
    /// # Errors
    /// Nobody waits for it, or there is no memory.
    pub fn piece_room(&self, number: u64, offset: u64, len: u64) -> Result<BufMut, PullError> {
        let awaited = self.awaited.get(&number);
        let awaited = awaited.ok_or(PullError::Malformed("a piece of no entry"))?;
        let fits = offset
            .checked_add(len)
            .is_some_and(|end| end <= awaited.entry.bytes);
        let len = usize::try_from(len).ok().filter(|_| fits);
        let len = len.ok_or(PullError::Malformed("a piece beyond its entry"))?;
        // Of a whole process, what others map is little; it is to be there soon.
        Ok(self.pool.alloc_private(len)?)
    }

    /// A piece is there.
    ///
    /// # Errors
    /// Nobody waits for it, or there is no memory.
    pub fn piece(&mut self, number: u64, offset: u64, buf: Buf) -> Result<(), PullError> {
        let awaited = self.awaited.get_mut(&number);
        let awaited = awaited.ok_or(PullError::Malformed("a piece of no entry"))?;
        let (all, len) = (awaited.entry.bytes, buf.len() as u64);
        if offset.checked_add(len).is_none_or(|end| end > all) || len == 0 {
            return Err(PullError::Malformed("a piece beyond its entry"));
        }
        let whole = match &mut awaited.place {
            Place::Empty if len == all => Some(buf),
            place => {
                if let Place::Empty = place {
                    let bytes = usize::try_from(all).map_err(|_| PullError::Malformed("length"))?;
                    let buf = self.pool.alloc_private(bytes)?;
                    let have = Ranges::default();
                    *place = Place::Partial { buf, have };
                }
                let Place::Partial { buf: into, have } = place else {
                    return Err(PullError::Malformed("a piece twice"));
                };
                // The memory was another's: all of it is to be written, once.
                let ranges = have.len();
                if !have.insert(offset, offset + len) {
                    return Err(PullError::Malformed("a piece twice"));
                }
                self.ranges -= ranges;
                let at = offset as usize;
                into[at..at + buf.len()].copy_from_slice(&buf);
                match have.cover(all) {
                    true => Some(std::mem::take(into).freeze()),
                    false => {
                        self.ranges += have.len();
                        None
                    }
                }
            }
        };
        if self.ranges > RANGES_MAX {
            return Err(PullError::Malformed("pieces in too wild an order"));
        }
        if let Some(buf) = whole
            && let Some(awaited) = self.awaited.remove(&number)
        {
            self.whole(number, awaited.entry, buf);
        }
        Ok(())
    }

    fn whole(&mut self, number: u64, entry: Entry, buf: Buf) {
        match entry.what {
            What::Object {
                key,
                version,
                written_unix_ms,
            } => {
                let meta = ObjectMeta {
                    version,
                    written_unix_ms,
                    bytes: buf.len() as u64,
                };
                if let Some(object) = self.objects.get_mut(&key)
                    && object.entry == number
                {
                    object.whole = Some((buf, meta));
                }
            }
            What::Mailbox => self.mailbox = Some(buf),
            What::Body => drop(self.bodies.insert(number, buf)),
            What::Sessions => self.sessions = Some(buf),
            What::File { name, mode } => {
                let bytes = buf;
                self.files.insert(number, ImageFile { name, mode, bytes });
            }
        }
    }

    /// What is to be said now.
    pub fn says(&mut self) -> Option<FromTarget> {
        if !self.awaited.is_empty() {
            return None;
        }
        match self.round.take() {
            Some(round) => Some(FromTarget::Have { round }),
            None if self.ended => Some(FromTarget::Complete),
            None => None,
        }
    }

    /// Whether it was all, and all is here.
    pub fn is_complete(&self) -> bool {
        self.ended && self.awaited.is_empty()
    }

    /// Incarnations that it knows all invocations of; the source's most often.
    pub fn vouched(&self) -> &[u64] {
        &self.vouched
    }

    /// The process, once it is complete.
    ///
    /// # Errors
    /// Mailbox or sessions are missing, or are none.
    pub fn image(
        self,
        application: &str,
        process: &str,
        incarnation: praas_transport::Incarnation,
    ) -> Result<ProcessImage, PullError> {
        let malformed = PullError::Malformed;
        if !self.is_complete() {
            return Err(malformed("it is not complete"));
        }
        let (Some(mailbox), Some(sessions)) = (self.mailbox, self.sessions) else {
            return Err(malformed("no mailbox or no sessions"));
        };
        let mailbox: MailboxImage =
            mailbox_decode(&mailbox, self.bodies.into_values().collect(), &self.pool)
                .ok_or(malformed("its mailbox"))?;
        let (count_max, bytes_max) = self.limits.mailbox();
        let mut messages = Tally::default();
        for message in &mailbox.messages {
            let bytes = message.payload.len() as u64;
            messages.add("messages", bytes, count_max, bytes_max)?;
        }
        let sessions = sessions_decode(&sessions).map_err(|_| malformed("its sessions"))?;
        let objects = self.objects.into_iter();
        let state = objects.filter_map(|(key, object)| {
            let (buf, meta) = object.whole?;
            Some((key, buf, meta))
        });
        let state: Vec<_> = state.collect();
        let newest = state.iter().map(|(.., meta)| meta.version).max();
        Ok(ProcessImage {
            application: application.into(),
            process: process.into(),
            incarnation,
            // Which incarnations it speaks for has been told: `vouched`.
            kind: ImageKind::Checkpoint,
            state_version: newest.unwrap_or(0).max(self.state_version),
            state,
            mailbox,
            sessions,
            files: self.files.into_values().collect(),
        })
    }
}
