//! Swapping out: packs, then the manifest, then what is no longer needed goes.
//!
//! ```text
//!   list ----> put packs ----> list ----> put manifest ----> list ----> delete
//!   fenced?    (by several     fenced?    = the commit       fenced?    what neither of the last
//!   number      threads)                                                two generations needs
//! ```

use std::collections::HashSet;

use praas_transport::clock;
use praas_transport::wire::Incarnation;

use super::base::Reuse;
use super::manifest::{
    CHUNK_REF_BYTES, CommitId, FILE_NAME_MAX_BYTES, FileEntry, MANIFEST_MAX_BYTES, Manifest,
    NAME_MAX_BYTES, ObjectEntry, PackId,
};
use super::pack::{Content, Packed, Packing};
use super::reader::{ReadError, Source};
use super::through::writer_name;
use super::{
    Base, ImageKind, Listing, ProcessImage, RejectReason, Storage, StorageError, SwapConfig,
    SwapError, process_prefix, sections,
};
use crate::files::FILE_MODE_BITS;
use crate::state::ObjectMeta;

/// Generations that stay: the one just written, and the last before it that verifies.
const KEPT: usize = 2;

/// What a commit wrote, and what it did not have to.
#[derive(Debug)]
pub struct Committed {
    /// Its generation, counted per process.
    pub generation: u64,
    /// Bytes written: packs and manifest.
    pub bytes: u64,
    /// Bytes that chunks have in packs of earlier commits, and that were not written again.
    pub bytes_reused: u64,
    /// Chunks of the image.
    pub chunks: u64,
    /// Chunks that were written; of several with the same bytes only one is.
    pub chunks_written: u64,
    /// The version of the state that it is of.
    pub state_version: u64,
    /// When the writing was begun, in milliseconds since the Unix epoch.
    pub begun_unix_ms: u64,
    /// Milliseconds that it took.
    pub took_ms: u64,
    /// Why older generations could not be tidied away, if so. The commit stands, and the next one
    /// tries again.
    pub untidy: Option<StorageError>,
}

/// Writes a generation of a process, and deletes those before the last that verifies.
///
/// "Verifies" means here that the manifest is whole and its packs have the right lengths; their
/// content is not read again.
///
/// # Errors
/// [`SwapError::Fenced`] if a higher incarnation has written, before or meanwhile: whatever lies
/// there is then without effect. [`SwapError::BadImage`] before anything is written.
/// [`SwapError::Storage`] if the storage fails: the generation before is whole then, and the new
/// one may be, if the storage failed after it had taken the manifest.
pub fn swap_out(
    storage: &dyn Storage,
    image: &ProcessImage,
    config: &SwapConfig,
) -> Result<Committed, SwapError> {
    swap_out_on(storage, image, config, &mut None)
}

/// As [`swap_out`], but what `base` has in this storage already is not written again; after
/// success it is what was committed. Objects of the same key, version and length as in the base
/// are taken to be the same, and not read.
///
/// # Errors
/// As [`swap_out`]; the base then stays what it was.
pub fn swap_out_on(
    storage: &dyn Storage,
    image: &ProcessImage,
    config: &SwapConfig,
    base: &mut Option<Base>,
) -> Result<Committed, SwapError> {
    swap_out_with(storage, image, &[], config, base)
}

/// As [`swap_out_on`], and of the state there are objects besides whose bytes are in storage only:
/// the commit leaves them where the base has them.
///
/// # Errors
/// As [`swap_out_on`]. [`SwapError::Absent`] if one of them cannot be left where it is, before
/// anything is written: [`Base::bytes_needed`] tells them beforehand.
pub fn swap_out_with(
    storage: &dyn Storage,
    image: &ProcessImage,
    absent: &[(String, ObjectMeta)],
    config: &SwapConfig,
    base: &mut Option<Base>,
) -> Result<Committed, SwapError> {
    check_image(image, config).map_err(|what| SwapError::BadImage {
        process: image.process.clone(),
        what,
    })?;
    let commit = Commit {
        source: Source {
            storage,
            prefix: process_prefix(&image.application, &image.process),
        },
        image,
        absent,
        config,
        base: base.as_ref(),
    };
    let (committed, manifest) = commit.run()?;
    *base = Some(Base::new(manifest));
    Ok(committed)
}

fn check_image(image: &ProcessImage, config: &SwapConfig) -> Result<(), String> {
    let chunk_bytes = config.chunk_bytes;
    if !SwapConfig::chunk_bytes_is_valid(chunk_bytes) {
        return Err(format!("chunk_bytes is {chunk_bytes}"));
    }
    if config.pack_max_bytes < chunk_bytes.into() {
        let pack_max = config.pack_max_bytes;
        return Err(format!(
            "pack_max_bytes is {pack_max}, a chunk is {chunk_bytes}"
        ));
    }
    let settings = [
        ("zstd_level", i64::from(config.zstd_level), 1..=22),
        ("threads", config.threads.into(), 0..=256),
        (
            "pack_live_min_percent",
            config.pack_live_min_percent.into(),
            0..=100,
        ),
    ];
    for (name, value, range) in settings {
        if !range.contains(&value) {
            return Err(format!("{name} is {value}"));
        }
    }
    let limit = |what: &str, length: usize, max: usize| match length <= max {
        true => Ok(()),
        false => Err(format!("{what} has {length} bytes, above {max}")),
    };
    limit(
        "the application's name",
        image.application.len(),
        NAME_MAX_BYTES,
    )?;
    limit("the process's name", image.process.len(), NAME_MAX_BYTES)?;
    for (key, ..) in &image.state {
        limit("an object's key", key.len(), NAME_MAX_BYTES)?;
    }
    for file in &image.files {
        limit("a file's name", file.name.len(), FILE_NAME_MAX_BYTES)?;
        if file.mode & !FILE_MODE_BITS != 0 {
            return Err(format!("a file's mode is {:o}", file.mode));
        }
    }
    for message in &image.mailbox.messages {
        let length = message.source.len().max(message.key.len());
        limit("a message's source or key", length, u32::MAX as usize)?;
    }
    Ok(())
}

struct Commit<'a> {
    source: Source<'a>,
    image: &'a ProcessImage,
    /// Objects that are in storage only.
    absent: &'a [(String, ObjectMeta)],
    config: &'a SwapConfig,
    base: Option<&'a Base>,
}

impl Commit<'_> {
    fn run(&self) -> Result<(Committed, Manifest), SwapError> {
        let (begun, begun_unix_ms) = (clock::now(), clock::unix_ms());
        let listing = self.check_fence()?;
        let id = CommitId {
            incarnation: self.image.incarnation,
            generation: self.next_generation(&listing)?,
        };
        let (mailbox, bodies) = sections::encode_mailbox(&self.image.mailbox);
        let sessions = sections::encode_sessions(&self.image.sessions);
        let reuse = self
            .base
            .and_then(|base| Reuse::new(base, &listing, self.config));
        let rest = bodies.iter().copied().chain([&mailbox[..], &sessions[..]]);
        let packing = Packing {
            source: &self.source,
            config: self.config,
            id,
            reuse: reuse.as_ref(),
            contents: self.contents(reuse.as_ref(), rest)?,
        };
        // Most of a manifest, before anything is written for it.
        let names = self.image.state.iter().map(|(key, ..)| key.len());
        let names: usize = names
            .chain(self.absent.iter().map(|(key, _)| key.len()))
            .chain(self.image.files.iter().map(|file| file.name.len()))
            .sum();
        self.check_bytes(names + packing.chunks_total() * CHUNK_REF_BYTES)?;
        let packed = packing.run().map_err(|source| self.fail(source))?;
        let (counts, packs_new) = (packed.counts, packed.packs_new);
        let manifest = self.manifest(id, bodies.len(), packed);
        let packs = || manifest.packs[..packs_new].iter().map(|pack| pack.id);
        let checked = self.check_bytes(manifest.encoded_bytes());
        if let Err(error) = checked.and_then(|()| self.check_whole(&manifest)) {
            self.source.packs_delete(packs());
            return Err(error);
        }
        let encoded = manifest.encode();
        self.write_manifest(&manifest, &encoded, packs())?;
        let listing = self.check_whole(&manifest)?;
        let committed = Committed {
            generation: id.generation,
            bytes: counts.bytes_written + encoded.len() as u64,
            bytes_reused: counts.bytes_reused,
            chunks: counts.chunks,
            chunks_written: counts.chunks_written,
            state_version: manifest.state_version,
            begun_unix_ms,
            took_ms: clock::now().saturating_duration_since(begun).as_millis() as u64,
            untidy: self.tidy(&manifest, &listing).err(),
        };
        Ok((committed, manifest))
    }

    /// What is to be stored: objects that are here, objects that are absent, and then in the order
    /// of the manifest's streams.
    fn contents<'b>(
        &'b self,
        reuse: Option<&'b Reuse<'b>>,
        rest: impl Iterator<Item = &'b [u8]>,
    ) -> Result<Vec<Content<'b>>, SwapError> {
        let content = |bytes: &'b [u8], known| Content {
            bytes,
            length: bytes.len(),
            known,
        };
        let state = self.image.state.iter().map(|(key, buf, meta)| {
            let known = reuse.and_then(|reuse| reuse.object(key, meta, buf.len() as u64));
            Ok(content(buf, known))
        });
        let absent = self.absent.iter().map(|(key, meta)| {
            let known = reuse.and_then(|reuse| reuse.whole(key, meta));
            // A length comes with its chunks, so it is far from the end of usize.
            let length = meta.bytes as usize;
            let bytes = &[];
            match known {
                Some(_) => Ok(Content {
                    bytes,
                    length,
                    known,
                }),
                None => Err(SwapError::Absent {
                    process: self.image.process.clone(),
                    key: key.clone(),
                }),
            }
        });
        let files = self.image.files.iter().map(|file| &file.bytes[..]);
        let unknown = files.chain(rest).map(|bytes| Ok(content(bytes, None)));
        state.chain(absent).chain(unknown).collect()
    }

    fn fail(&self, source: StorageError) -> SwapError {
        SwapError::Storage {
            process: self.image.process.clone(),
            source,
        }
    }

    fn bad_image(&self, what: String) -> SwapError {
        SwapError::BadImage {
            process: self.image.process.clone(),
            what,
        }
    }

    /// What lies there, unless a higher incarnation wrote some of it.
    fn check_fence(&self) -> Result<Listing, SwapError> {
        let listing = Listing::read(self.source.storage, &self.source.prefix)
            .map_err(|source| self.fail(source))?;
        // What does not verify counts as well: its incarnation exists.
        match listing.newest() {
            Some(newer) if newer > self.image.incarnation => Err(SwapError::Fenced {
                process: self.image.process.clone(),
                ours: self.image.incarnation,
                newer,
            }),
            _ => Ok(listing),
        }
    }

    /// What lies there, unless a higher incarnation wrote some of it, or a pack is gone that the
    /// manifest refers to: a lower incarnation that lives on may have tidied it away.
    fn check_whole(&self, manifest: &Manifest) -> Result<Listing, SwapError> {
        let listing = self.check_fence()?;
        let mut packs = manifest.packs.iter();
        match packs.find(|pack| !listing.has(pack)) {
            None => Ok(listing),
            Some(gone) => Err(self.fail(StorageError::NotFound {
                name: self.source.name(&gone.id.name()),
            })),
        }
    }

    /// One above every generation that left a trace.
    fn next_generation(&self, listing: &Listing) -> Result<u64, SwapError> {
        let manifests = listing.manifests.iter().map(|id| id.generation);
        let packs = listing.packs.iter().map(|pack| pack.commit.generation);
        let highest = manifests.chain(packs).max().unwrap_or(0);
        highest
            .checked_add(1)
            .ok_or_else(|| self.bad_image("its generations are used up".into()))
    }

    fn manifest(&self, id: CommitId, bodies: usize, packed: Packed) -> Manifest {
        let mut streams = packed.streams.into_iter();
        let here = self.image.state.iter().map(|(key, _, meta)| (key, meta));
        let absent = self.absent.iter().map(|(key, meta)| (key, meta));
        let objects = here.chain(absent).zip(&mut streams);
        let objects = objects.map(|((key, meta), stream)| ObjectEntry {
            key: key.clone(),
            version: meta.version,
            written_unix_ms: meta.written_unix_ms,
            stream,
        });
        let mut objects: Vec<_> = objects.collect();
        if !self.absent.is_empty() {
            // As they are where all are here: where one was says nothing about it.
            objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        }
        let files = self.image.files.iter().zip(&mut streams);
        let files = files.map(|(file, stream)| FileEntry {
            name: file.name.clone(),
            mode: file.mode,
            stream,
        });
        let files = files.collect();
        Manifest {
            id,
            kind: self.image.kind,
            chunk_bytes: self.config.chunk_bytes,
            application: self.image.application.clone(),
            process: self.image.process.clone(),
            state_version: self.image.state_version,
            packs: packed.packs,
            objects,
            files,
            bodies: streams.by_ref().take(bodies).collect(),
            mailbox: streams.next().unwrap_or_default(),
            sessions: streams.next().unwrap_or_default(),
        }
    }

    /// No count can pass 32 bits in a manifest that is not too long.
    fn check_bytes(&self, bytes: usize) -> Result<(), SwapError> {
        match bytes as u64 <= MANIFEST_MAX_BYTES {
            true => Ok(()),
            false => Err(self.bad_image(format!(
                "its manifest would have {bytes} bytes, above {MANIFEST_MAX_BYTES}"
            ))),
        }
    }

    fn write_manifest(
        &self,
        manifest: &Manifest,
        encoded: &[u8],
        packs: impl Iterator<Item = PackId>,
    ) -> Result<(), SwapError> {
        let name = self.source.name(&manifest.id.manifest_name());
        let storage = self.source.storage;
        storage.put_new(&name, &[encoded]).map_err(|error| {
            // Packs go only once no manifest can refer to them. Somebody else's manifest stays.
            let gone = match &error {
                StorageError::Exists { .. } => false,
                _ => self.source.delete(&manifest.id.manifest_name()).is_ok(),
            };
            if gone {
                self.source.packs_delete(packs);
            }
            self.fail(error)
        })
    }

    /// Deletes what is older than the last two generations that verify: manifests first, so that
    /// none is left that refers to a deleted pack.
    fn tidy(&self, newest: &Manifest, listing: &Listing) -> Result<(), StorageError> {
        let id = newest.id;
        let packs = |manifest: &Manifest| manifest.packs.iter().map(|pack| pack.id).collect();
        let covers = |manifest: &Manifest| (manifest.id.incarnation, manifest.state_version);
        let mut kept: Vec<Vec<PackId>> = vec![packs(newest)];
        // Of the oldest that is kept: it may be the one that is begun with.
        let mut covered = covers(newest);
        let mut stale = Vec::new();
        for older in listing.manifests.iter().rev().filter(|older| **older < id) {
            if kept.len() == KEPT {
                stale.push(*older);
                continue;
            }
            // What this process committed, or began with, was whole: that it is there is enough.
            let base = self.base.filter(|base| base.id() == *older);
            if let Some(base) = base.filter(|base| base.is_listed(listing)) {
                kept.push(packs(base.manifest()));
                covered = covers(base.manifest());
                continue;
            }
            let (application, process) = (&self.image.application, &self.image.process);
            match self.source.manifest(*older, application, process) {
                Ok(manifest) => {
                    kept.push(packs(&manifest));
                    covered = covers(&manifest);
                }
                // Which packs it needs is not known here.
                Err(ReadError::Rejected(RejectReason::UnknownVersion { .. })) => return Ok(()),
                Err(ReadError::Storage(error)) => return Err(error),
                // Memory is not asked for here.
                Err(ReadError::Rejected(_) | ReadError::Pool(..) | ReadError::Decompressor(_)) => {
                    stale.push(*older);
                }
            }
        }
        for manifest in stale {
            self.source.delete(&manifest.manifest_name())?;
        }
        let used: HashSet<PackId> = kept.into_iter().flatten().collect();
        // A pack above this commit may belong to one that is under way.
        for pack in listing.packs.iter().filter(|pack| pack.commit <= id) {
            if !used.contains(pack) {
                self.source.delete(&pack.name())?;
            }
        }
        self.tidy_through(listing, covered)
    }

    /// Deletes what was written through and is in all images that are kept, and the rights of those
    /// who are not the process any more.
    fn tidy_through(
        &self,
        listing: &Listing,
        covered: (Incarnation, u64),
    ) -> Result<(), StorageError> {
        for id in listing.through.iter().filter(|id| id.is_covered(covered)) {
            self.source.delete(&id.name())?;
        }
        let ours = self.image.incarnation;
        let ends = self.image.kind == ImageKind::Final;
        let gone = |writer: &&Incarnation| **writer < ours || (ends && **writer == ours);
        for writer in listing.writers.iter().filter(gone) {
            self.source.delete(&writer_name(*writer))?;
        }
        Ok(())
    }
}

impl Source<'_> {
    /// Deletes an object of the process, if it is there.
    pub(super) fn delete(&self, component: &str) -> Result<(), StorageError> {
        match self.storage.delete(&self.name(component)) {
            Err(StorageError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Gives room back after a failure; what stays, a later commit deletes.
    pub(super) fn packs_delete(&self, packs: impl Iterator<Item = PackId>) {
        for pack in packs {
            let _ = self.delete(&pack.name());
        }
    }
}
