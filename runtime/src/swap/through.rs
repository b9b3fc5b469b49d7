//! What is written through: state objects that are durable before the process's next image is.
//!
//! ```text
//!   writer-<incarnation>                          who may write through: there until it is revoked
//!   through-<incarnation>-<version>-<number>      some objects, and that some are no more
//!
//!   writing, incarnation i                      beginning, incarnation j > i
//!     put  through-i-v-n                          put    writer-j
//!     look writer-i     gone: fenced, no word     delete writer-i
//!     acknowledge                                 list, read image and through-*
//! ```
//!
//! So i sees that it is revoked, or j sees what i has acknowledged. At a start what is newer than
//! the image goes over it: of each key the highest (incarnation, version). After a commit goes what
//! the older of the two images that are kept covers: an image of incarnation n at version v of its
//! state covers what was written by lower incarnations, and by n up to v.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use praas_transport::wire::Incarnation;
use praas_transport::{Buf, BufPool};

use super::bytes::{Reader, malformed};
use super::manifest::{HASH_BYTES, Manifest, NAME_MAX_BYTES};
use super::reader::{ReadError, Source};
use super::{Listing, ProcessImage, RejectReason, Rejected, Storage, StorageError};
use crate::state::ObjectMeta;

/// First bytes of what is written through.
pub(super) const MAGIC: [u8; 8] = *b"praasWTO";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 48;
const ENTRY_MIN_BYTES: usize = 2 + 1 + 8 + 8 + 8 + HASH_BYTES;
/// Objects that are written together at most.
pub const THROUGH_ENTRIES_MAX: usize = 4096;
/// Bytes of the front part, of which there are fewer for so many objects with the longest keys.
const HEAD_MAX_BYTES: u32 = 2 << 20;

/// Names what was written through at once. The order is that of the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThroughId {
    pub(super) incarnation: Incarnation,
    /// The highest version in it.
    pub(super) version: u64,
    /// Tells attempts of one incarnation from one another.
    pub(super) number: u32,
}

impl ThroughId {
    /// The last component of the name.
    pub(super) fn name(self) -> String {
        let (incarnation, version) = (self.incarnation.0, self.version);
        format!(
            "through-{incarnation:016x}-{version:016x}-{:08x}",
            self.number
        )
    }

    /// Reads what [`ThroughId::name`] wrote.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let mut fields = name.strip_prefix("through-")?.splitn(3, '-');
        let mut field = || u64::from_str_radix(fields.next()?, 16).ok();
        let id = Self {
            incarnation: Incarnation(field()?),
            version: field()?,
            number: u32::try_from(field()?).ok()?,
        };
        (id.name() == name).then_some(id)
    }

    /// Whether an image has all of it, or what came later.
    pub(super) fn is_covered(self, (incarnation, version): (Incarnation, u64)) -> bool {
        (self.incarnation, self.version) <= (incarnation, version)
    }
}

/// The last component of the name of what allows an incarnation to write through.
pub(super) fn writer_name(incarnation: Incarnation) -> String {
    format!("writer-{:016x}", incarnation.0)
}

/// Reads what [`writer_name`] wrote.
pub(super) fn writer_from_name(name: &str) -> Option<Incarnation> {
    let digits = name.strip_prefix("writer-")?;
    let incarnation = Incarnation(u64::from_str_radix(digits, 16).ok()?);
    (writer_name(incarnation) == name).then_some(incarnation)
}

/// What becomes of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Through {
    /// It is this object.
    Object(Buf, ObjectMeta),
    /// There is none, since this version.
    Nothing(u64),
}

impl Through {
    /// The version.
    pub fn version(&self) -> u64 {
        match self {
            Self::Object(_, meta) => meta.version,
            Self::Nothing(version) => *version,
        }
    }

    /// The object's bytes; none if there is no object.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Object(buf, _) => buf,
            Self::Nothing(_) => &[],
        }
    }
}

/// One key in what was written through, and where its bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ThroughEntry {
    pub(super) key: String,
    /// Whether there is an object.
    pub(super) object: bool,
    pub(super) meta: ObjectMeta,
    pub(super) hash: [u8; HASH_BYTES],
    /// Bytes from the start of what it lies in.
    pub(super) offset: u64,
}

/// The front part of what is written through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ThroughHead {
    pub(super) id: ThroughId,
    pub(super) application: String,
    pub(super) process: String,
    /// Length of it all, in bytes.
    pub(super) bytes: u64,
    pub(super) entries: Vec<ThroughEntry>,
}

impl ThroughHead {
    /// Of entries that follow one another; the highest version is the id's. The caller holds names
    /// and count against the limits.
    fn new(
        (application, process): (&str, &str),
        incarnation: Incarnation,
        number: u32,
        written: &[(Box<str>, Through)],
    ) -> Self {
        let names = 4 + application.len() + process.len();
        let keys = written.iter().map(|(key, _)| key.len() + ENTRY_MIN_BYTES);
        let head = HEADER_BYTES + names + keys.sum::<usize>() + HASH_BYTES;
        let mut offset = head as u64;
        let entries = written.iter().map(|(key, through)| {
            let (object, meta) = match through {
                Through::Object(_, meta) => (true, *meta),
                Through::Nothing(version) => {
                    let meta = ObjectMeta {
                        version: *version,
                        written_unix_ms: 0,
                        bytes: 0,
                    };
                    (false, meta)
                }
            };
            let entry = ThroughEntry {
                key: (**key).into(),
                object,
                meta,
                hash: *blake3::hash(through.bytes()).as_bytes(),
                offset,
            };
            offset += meta.bytes;
            entry
        });
        let entries: Vec<_> = entries.collect();
        let highest = written.iter().map(|(_, through)| through.version()).max();
        Self {
            id: ThroughId {
                incarnation,
                version: highest.unwrap_or(0),
                number,
            },
            application: application.into(),
            process: process.into(),
            bytes: offset,
            entries,
        }
    }

    fn head_bytes(&self) -> usize {
        let keys = self.entries.iter().map(|entry| entry.key.len());
        HEADER_BYTES
            + (4 + self.application.len() + self.process.len())
            + keys.map(|key| key + ENTRY_MIN_BYTES).sum::<usize>()
            + HASH_BYTES
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let head = self.head_bytes();
        let mut out = Vec::with_capacity(head);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&(head as u32).to_le_bytes());
        out.extend_from_slice(&self.id.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.id.version.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.id.number.to_le_bytes());
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        let name = |out: &mut Vec<u8>, name: &str| {
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
        };
        name(&mut out, &self.application);
        name(&mut out, &self.process);
        for entry in &self.entries {
            name(&mut out, &entry.key);
            out.push(entry.object.into());
            for word in [
                entry.meta.version,
                entry.meta.written_unix_ms,
                entry.meta.bytes,
            ] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.extend_from_slice(&entry.hash);
        }
        let checksum = blake3::hash(&out);
        out.extend_from_slice(checksum.as_bytes());
        out
    }

    /// How long the front part is that begins with these bytes, and all of it.
    fn lengths(fixed: &[u8; HEADER_BYTES]) -> Result<(u32, u64), RejectReason> {
        let mut reader = Reader::new(fixed);
        if reader.take(MAGIC.len(), "magic")? != MAGIC {
            return Err(malformed("first bytes"));
        }
        let version = reader.u16("version")?;
        if version != VERSION {
            return Err(RejectReason::UnknownVersion { version });
        }
        reader.take(2, "header")?;
        let head = reader.u32("length of the front part")?;
        reader.take(16, "header")?;
        let bytes = reader.u64("length")?;
        let least = (HEADER_BYTES + HASH_BYTES) as u32;
        match (least..=HEAD_MAX_BYTES).contains(&head) && bytes >= head.into() {
            true => Ok((head, bytes)),
            false => Err(malformed("length of the front part")),
        }
    }

    /// The front part that all of `bytes` are.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RejectReason> {
        let fixed = bytes.first_chunk().ok_or(malformed("header"))?;
        let (head, whole) = Self::lengths(fixed)?;
        let Some((body, checksum)) = bytes.split_last_chunk::<HASH_BYTES>() else {
            return Err(malformed("checksum"));
        };
        if bytes.len() != head as usize || blake3::hash(body) != blake3::Hash::from_bytes(*checksum)
        {
            return Err(RejectReason::ChecksumMismatch);
        }
        let mut reader = Reader::new(body);
        reader.take(10, "header")?;
        if reader.u16("header")? != 0 {
            return Err(malformed("reserved bytes of the header"));
        }
        reader.take(4, "header")?;
        let (incarnation, version) = (reader.u64("incarnation")?, reader.u64("version")?);
        reader.take(8, "header")?;
        let id = ThroughId {
            incarnation: Incarnation(incarnation),
            version,
            number: reader.u32("number")?,
        };
        let count = reader.u32("entries")? as usize;
        let application = reader.name(NAME_MAX_BYTES, "application")?;
        let process = reader.name(NAME_MAX_BYTES, "process")?;
        if !(1..=THROUGH_ENTRIES_MAX).contains(&count) || count > reader.left() / ENTRY_MIN_BYTES {
            return Err(malformed("entries"));
        }
        let mut offset = u64::from(head);
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let entry = read_entry(&mut reader, offset)?;
            let end = offset.checked_add(entry.meta.bytes);
            offset = end.ok_or(malformed("object's length"))?;
            entries.push(entry);
        }
        reader.finish("end of the front part")?;
        let highest = entries.iter().map(|entry| entry.meta.version).max();
        if offset != whole || highest != Some(version) {
            return Err(malformed("length or version"));
        }
        Ok(Self {
            id,
            application,
            process,
            bytes: whole,
            entries,
        })
    }
}

fn read_entry(reader: &mut Reader<'_>, offset: u64) -> Result<ThroughEntry, RejectReason> {
    let key = reader.name(NAME_MAX_BYTES, "object's key")?;
    let object = match reader.u8("what becomes of a key")? {
        0 => false,
        1 => true,
        _ => return Err(malformed("what becomes of a key")),
    };
    let meta = ObjectMeta {
        version: reader.u64("object's version")?,
        written_unix_ms: reader.u64("object's time")?,
        bytes: reader.u64("object's length")?,
    };
    let hash = reader.hash("object's hash")?;
    if !object && (meta.bytes, meta.written_unix_ms) != (0, 0) {
        return Err(malformed("nothing that has bytes"));
    }
    Ok(ThroughEntry {
        key,
        object,
        meta,
        hash,
        offset,
    })
}

/// Why something was not written through.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThroughError {
    /// A newer incarnation of the process has been here: this one is not to write any more.
    #[error("incarnation {} of {process} is fenced: a newer one has begun", .ours.0)]
    Fenced {
        /// The process.
        process: String,
        /// Who wanted to write.
        ours: Incarnation,
    },
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Where an incarnation writes through.
#[doc(hidden)]
pub struct ThroughWriter<'a> {
    source: Source<'a>,
    application: &'a str,
    process: &'a str,
    incarnation: Incarnation,
}

impl<'a> ThroughWriter<'a> {
    /// Of an application and a process.
    pub fn new(
        storage: &'a dyn Storage,
        (application, process): (&'a str, &'a str),
        incarnation: Incarnation,
    ) -> Self {
        let prefix = super::process_prefix(application, process);
        Self {
            source: Source { storage, prefix },
            application,
            process,
            incarnation,
        }
    }

    fn fenced(&self) -> ThroughError {
        ThroughError::Fenced {
            process: self.process.into(),
            ours: self.incarnation,
        }
    }

    /// Makes this incarnation the one that may write through, and none below it. To be called
    /// before it reads what it begins with, or before it writes for the first time.
    ///
    /// # Errors
    /// A higher incarnation has begun; the storage.
    pub fn license(&self) -> Result<(), ThroughError> {
        let name = self.source.name(&writer_name(self.incarnation));
        match self.source.storage.put_new(&name, &[]) {
            // Of an attempt before this one, which did not go to its end.
            Ok(()) | Err(StorageError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let listing = Listing::read(self.source.storage, &self.source.prefix)?;
        if listing.newest() > Some(self.incarnation) {
            return Err(self.fenced());
        }
        for lower in listing
            .writers
            .iter()
            .filter(|other| **other < self.incarnation)
        {
            self.source.delete(&writer_name(*lower))?;
        }
        Ok(())
    }

    /// Writes entries through, at most [`THROUGH_ENTRIES_MAX`]: on return they are durable, and
    /// whoever begins after this incarnation has them.
    ///
    /// # Errors
    /// Another incarnation may write through by now; the storage.
    pub fn write(
        &self,
        number: u32,
        written: &[(Box<str>, Through)],
    ) -> Result<ThroughId, ThroughError> {
        let names = (self.application, self.process);
        let head = ThroughHead::new(names, self.incarnation, number, written);
        let (id, encoded) = (head.id, head.encode());
        let contents = written.iter().map(|(_, through)| through.bytes());
        let parts: Vec<_> = [&encoded[..]].into_iter().chain(contents).collect();
        let name = self.source.name(&id.name());
        self.source.storage.put_new(&name, &parts)?;
        // If not, it stays: nobody is told that it is there, but whoever has begun since may have seen
        // it, and may be about to read it.
        self.check()?;
        Ok(id)
    }

    /// Whether this incarnation may still write through.
    ///
    /// # Errors
    /// It may not; the storage.
    pub fn check(&self) -> Result<(), ThroughError> {
        let name = self.source.name(&writer_name(self.incarnation));
        match self.source.storage.size(&name) {
            Ok(_) => Ok(()),
            Err(StorageError::NotFound { .. }) => Err(self.fenced()),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes what nobody needs any more. What stays, a commit deletes.
    pub fn delete(&self, ids: impl IntoIterator<Item = ThroughId>) {
        for id in ids {
            let _ = self.source.delete(&id.name());
        }
    }
}

/// What lies in storage of a key, newer than the image.
#[derive(Debug)]
pub(super) struct Newer {
    pub(super) id: ThroughId,
    pub(super) entry: ThroughEntry,
}

/// What is newer than an image.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// By key, the newest first.
    pub(super) by_key: BTreeMap<String, Vec<Newer>>,
    /// What is damaged.
    pub(super) rejected: Vec<Rejected>,
    /// How many keys have gone over the image.
    pub(super) applied: usize,
    /// Files that the image does not cover.
    pub(super) files: usize,
}

/// What has gone over an image, besides the objects that are in it now.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) keys: BTreeSet<String>,
    /// Objects that are to be read later.
    pub(super) later: Vec<Newer>,
}

impl Overlay {
    /// Finds what was written through and is newer than the image of a manifest.
    pub(super) fn find(
        source: &Source<'_>,
        listing: &Listing,
        manifest: &Manifest,
    ) -> Result<Self, ReadError> {
        let covered = (manifest.id.incarnation, manifest.state_version);
        let mut overlay = Self::default();
        for id in listing.through.iter().rev() {
            if id.is_covered(covered) {
                continue;
            }
            overlay.files += 1;
            match source.through_head(*id, manifest) {
                Ok(Some(head)) => overlay.add(*id, head, covered),
                // It was cut off before it was whole, so nobody was told that it is there.
                Ok(None) => tracing::warn!("{} is cut off: left out", source.name(&id.name())),
                Err(ReadError::Rejected(reason)) => overlay.reject(source, *id, reason),
                Err(error) => return Err(error),
            }
        }
        for newer in overlay.by_key.values_mut() {
            newer.sort_by_key(|newer| {
                Reverse((newer.id.incarnation, newer.entry.meta.version, newer.id))
            });
        }
        Ok(overlay)
    }

    fn add(&mut self, id: ThroughId, head: ThroughHead, covered: (Incarnation, u64)) {
        for entry in head.entries {
            if (id.incarnation, entry.meta.version) > covered {
                let newer = self.by_key.entry(entry.key.clone()).or_default();
                newer.push(Newer { id, entry });
            }
        }
    }

    /// Puts what is newer over the image, but for objects that are to be read `later`, which is said
    /// by their lengths. In place of one that is damaged comes the one before it.
    pub(super) fn apply(
        &mut self,
        source: &Source<'_>,
        pool: &BufPool,
        image: &mut ProcessImage,
        later: impl Fn(u64) -> bool,
    ) -> Result<Applied, ReadError> {
        let mut applied = Applied::default();
        let mut objects = Vec::new();
        for (key, candidates) in std::mem::take(&mut self.by_key) {
            for newer in candidates {
                if newer.entry.object && later(newer.entry.meta.bytes) {
                    applied.later.push(newer);
                } else if newer.entry.object {
                    match source.through_read(&newer, pool) {
                        Ok(buf) => objects.push((key.clone(), buf, newer.entry.meta)),
                        Err(ReadError::Rejected(reason)) => {
                            self.reject(source, newer.id, reason);
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
                applied.keys.insert(key);
                break;
            }
        }
        image.state.retain(|(key, ..)| !applied.keys.contains(key));
        image.state.extend(objects);
        self.applied = applied.keys.len();
        Ok(applied)
    }

    fn reject(&mut self, source: &Source<'_>, id: ThroughId, reason: RejectReason) {
        let name = source.name(&id.name());
        self.rejected.push(Rejected { name, reason });
    }
}

impl Source<'_> {
    /// The front part of what was written through; `None` if it is cut off.
    fn through_head(
        &self,
        id: ThroughId,
        manifest: &Manifest,
    ) -> Result<Option<ThroughHead>, ReadError> {
        let name = self.name(&id.name());
        let actual = match self.storage.size(&name) {
            Ok(actual) => actual,
            // Somebody has found that nobody needs it, since it was listed.
            Err(StorageError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(ReadError::Storage(error)),
        };
        if actual < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut fixed = [0; HEADER_BYTES];
        self.storage
            .read(&name, 0, &mut fixed)
            .map_err(ReadError::Storage)?;
        let (head, bytes) = ThroughHead::lengths(&fixed)?;
        if actual < bytes {
            return Ok(None);
        }
        let mut encoded = vec![0; head as usize];
        self.storage
            .read(&name, 0, &mut encoded)
            .map_err(ReadError::Storage)?;
        let head = ThroughHead::decode(&encoded)?;
        if head.id != id || actual != bytes {
            return Err(malformed("name or length").into());
        }
        if (&head.application, &head.process) != (&manifest.application, &manifest.process) {
            let (application, process) = (head.application, head.process);
            return Err(RejectReason::WrongProcess {
                application,
                process,
            }
            .into());
        }
        Ok(Some(head))
    }

    /// The bytes of an object that was written through.
    pub(super) fn through_read(&self, newer: &Newer, pool: &BufPool) -> Result<Buf, ReadError> {
        let Newer { id, entry } = newer;
        let part = || format!("object '{}'", entry.key);
        let bytes = usize::try_from(entry.meta.bytes).map_err(|_| malformed("length"))?;
        let buf = pool.alloc(bytes);
        let mut buf = buf.map_err(|source| ReadError::Pool(part(), source))?;
        let read = self
            .storage
            .read(&self.name(&id.name()), entry.offset, &mut buf);
        let pack = || id.name();
        match read {
            Ok(()) => {}
            Err(StorageError::NotFound { .. }) => {
                return Err(RejectReason::MissingPack { pack: pack() }.into());
            }
            Err(error) => return Err(ReadError::Storage(error)),
        }
        match *blake3::hash(&buf).as_bytes() == entry.hash {
            true => Ok(buf.freeze()),
            false => Err(RejectReason::HashMismatch {
                chunk: 0,
                part: part(),
                pack: pack(),
            }
            .into()),
        }
    }
}

/// Decodes any bytes as the front part of what is written through, for fuzzing.
///
/// # Panics
/// What decodes does not encode to the same bytes.
#[doc(hidden)]
pub fn fuzz_through(bytes: &[u8]) {
    let fixed = bytes.first_chunk().map(ThroughHead::lengths);
    let head = match fixed {
        Some(Ok((head, _))) => bytes.get(..head as usize).unwrap_or(bytes),
        _ => bytes,
    };
    if let Ok(decoded) = ThroughHead::decode(head) {
        assert_eq!(decoded.encode(), head, "two encodings of one front part");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_front_part_or_not(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            magic in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if magic {
                // Past the first look.
                bytes.splice(..0, [&MAGIC[..], &[1, 0, 0, 0, 120, 0, 0, 0]].concat());
            }
            fuzz_through(&bytes);
        }
    }
}
