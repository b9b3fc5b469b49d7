//! Swapping out: packs, then the manifest, then what is no longer needed goes.
//!
//! ```text
//!   list ----> put packs ----> list ----> put manifest ----> list ----> delete
//!   fenced?    (hashing        fenced?    = the commit       fenced?    what neither of the last
//!   number      beside it)                                              two generations needs
//! ```

use std::collections::HashSet;

use super::manifest::{
    ChunkRef, CommitId, FILE_NAME_MAX_BYTES, FileEntry, HASH_BYTES, MANIFEST_MAX_BYTES, Manifest,
    NAME_MAX_BYTES, ObjectEntry, Pack, PackId, Stream,
};
use super::reader::{ReadError, Source};
use super::{
    Listing, ProcessImage, RejectReason, Storage, StorageError, SwapConfig, SwapError,
    process_prefix, sections,
};

/// Generations that stay: the one just written, and the last before it that verifies.
const KEPT: usize = 2;

/// Images of fewer bytes are hashed before they are written, not beside it.
const HASH_ALONE_MAX_BYTES: u64 = 1 << 20;

/// What a commit wrote.
#[derive(Debug)]
pub struct Committed {
    /// Its generation, counted per process.
    pub generation: u64,
    /// Bytes of packs and manifest.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
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
        config,
    };
    commit.run()
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
    for (name, _) in &image.files {
        limit("a file's name", name.len(), FILE_NAME_MAX_BYTES)?;
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
    config: &'a SwapConfig,
}

impl Commit<'_> {
    fn run(&self) -> Result<Committed, SwapError> {
        let id = CommitId {
            incarnation: self.image.incarnation,
            generation: self.next_generation()?,
        };
        let (mailbox, bodies) = sections::encode_mailbox(&self.image.mailbox);
        let sessions = sections::encode_sessions(&self.image.sessions);
        let state = self.image.state.iter().map(|(_, buf, _)| &buf[..]);
        let files = self.image.files.iter().map(|(_, buf)| &buf[..]);
        let rest = bodies.iter().copied().chain([&mailbox[..], &sessions[..]]);
        let layout = Layout::new(state.chain(files).chain(rest).collect(), self.config);
        let mut manifest = self.manifest(id, bodies.len(), &layout);
        self.check_counts(&manifest)?;

        self.write_packs(&layout, &mut manifest)?;
        if let Err(error) = self.check_fence() {
            self.delete_packs(&manifest.packs);
            return Err(error);
        }
        let encoded = manifest.encode();
        self.write_manifest(&manifest, &encoded)?;
        self.check_fence()?;
        let untidy = self.tidy(manifest).err();
        let packed: u64 = layout.packs.iter().map(|pack| pack.bytes).sum();
        Ok(Committed {
            generation: id.generation,
            bytes: packed + encoded.len() as u64,
            chunks: layout.chunks().count() as u64,
            untidy,
        })
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
        let manifests = listing.manifests.last().map(|newest| newest.incarnation);
        let packs = listing.packs.last().map(|pack| pack.commit.incarnation);
        match manifests.max(packs) {
            Some(newer) if newer > self.image.incarnation => Err(SwapError::Fenced {
                process: self.image.process.clone(),
                ours: self.image.incarnation,
                newer,
            }),
            _ => Ok(listing),
        }
    }

    /// One above every generation that left a trace.
    fn next_generation(&self) -> Result<u64, SwapError> {
        let listing = self.check_fence()?;
        let manifests = listing.manifests.iter().map(|id| id.generation);
        let packs = listing.packs.iter().map(|pack| pack.commit.generation);
        let highest = manifests.chain(packs).max().unwrap_or(0);
        highest
            .checked_add(1)
            .ok_or_else(|| self.bad_image("its generations are used up".into()))
    }

    /// The manifest, but for the hashes.
    fn manifest(&self, id: CommitId, bodies: usize, layout: &Layout<'_>) -> Manifest {
        let mut streams = layout.streams();
        let state = self.image.state.iter().zip(&mut streams);
        let objects = state.map(|((key, _, meta), stream)| ObjectEntry {
            key: key.clone(),
            version: meta.version,
            written_unix_ms: meta.written_unix_ms,
            stream,
        });
        let objects = objects.collect();
        let files = self.image.files.iter().zip(&mut streams);
        let files = files.map(|((name, _), stream)| FileEntry {
            name: name.clone(),
            stream,
        });
        let files = files.collect();
        let packs = layout.packs.iter().enumerate().map(|(number, pack)| Pack {
            id: PackId {
                commit: id,
                number: number as u32,
            },
            bytes: pack.bytes,
        });
        Manifest {
            id,
            kind: self.image.kind,
            chunk_bytes: self.config.chunk_bytes,
            application: self.image.application.clone(),
            process: self.image.process.clone(),
            packs: packs.collect(),
            objects,
            files,
            bodies: streams.by_ref().take(bodies).collect(),
            mailbox: streams.next().unwrap_or_default(),
            sessions: streams.next().unwrap_or_default(),
        }
    }

    /// No count can pass 32 bits in a manifest that is not too long.
    fn check_counts(&self, manifest: &Manifest) -> Result<(), SwapError> {
        let bytes = manifest.encoded_bytes() as u64;
        match bytes <= MANIFEST_MAX_BYTES {
            true => Ok(()),
            false => Err(self.bad_image(format!(
                "its manifest would have {bytes} bytes, above {MANIFEST_MAX_BYTES}"
            ))),
        }
    }

    /// Writes all packs while another thread hashes, and fills the hashes in.
    fn write_packs(&self, layout: &Layout<'_>, manifest: &mut Manifest) -> Result<(), SwapError> {
        let hash = || layout.chunks().map(|chunk| *blake3::hash(chunk).as_bytes());
        let hash_all = || hash().collect::<Vec<[u8; HASH_BYTES]>>();
        let packed: u64 = layout.packs.iter().map(|pack| pack.bytes).sum();
        let (hashes, written) = std::thread::scope(|scope| {
            let helper = match packed < HASH_ALONE_MAX_BYTES {
                true => None,
                false => std::thread::Builder::new()
                    .spawn_scoped(scope, hash_all)
                    .ok(),
            };
            let written = self.put_packs(layout, &manifest.packs);
            let hashes = match helper.map(|helper| helper.join()) {
                Some(Ok(hashes)) => hashes,
                Some(Err(panic)) => std::panic::resume_unwind(panic),
                None => hash_all(),
            };
            (hashes, written)
        });
        written.map_err(|source| self.fail(source))?;
        for (chunk, hash) in manifest.chunks_mut().zip(hashes) {
            chunk.hash = hash;
        }
        Ok(())
    }

    /// Writes the packs; after a failure those that were written are gone again.
    fn put_packs(&self, layout: &Layout<'_>, packs: &[Pack]) -> Result<(), StorageError> {
        for (at, (contents, pack)) in layout.packs.iter().zip(packs).enumerate() {
            let name = self.source.name(&pack.id.name());
            if let Err(error) = self.source.storage.put_new(&name, &contents.parts) {
                // A pack that exists is somebody else's; a failed one may be there in part.
                let ours = at + usize::from(!matches!(error, StorageError::Exists { .. }));
                self.delete_packs(&packs[..ours]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives room back after a failure; what stays, a later commit deletes.
    fn delete_packs(&self, packs: &[Pack]) {
        for pack in packs {
            let _ = self.delete(&pack.id.name());
        }
    }

    fn write_manifest(&self, manifest: &Manifest, encoded: &[u8]) -> Result<(), SwapError> {
        let name = self.source.name(&manifest.id.manifest_name());
        let storage = self.source.storage;
        storage.put_new(&name, &[encoded]).map_err(|error| {
            // Packs go only once no manifest can refer to them. Somebody else's manifest stays.
            let gone = match &error {
                StorageError::Exists { .. } => false,
                _ => self.delete(&manifest.id.manifest_name()).is_ok(),
            };
            if gone {
                self.delete_packs(&manifest.packs);
            }
            self.fail(error)
        })
    }

    /// Deletes what is older than the last two generations that verify: manifests first, so that
    /// none is left that refers to a deleted pack.
    fn tidy(&self, newest: Manifest) -> Result<(), StorageError> {
        let Source { storage, prefix } = &self.source;
        let listing = Listing::read(*storage, prefix)?;
        let id = newest.id;
        let mut kept = vec![newest];
        let mut stale = Vec::new();
        for older in listing.manifests.iter().rev().filter(|older| **older < id) {
            if kept.len() == KEPT {
                stale.push(*older);
                continue;
            }
            let (application, process) = (&self.image.application, &self.image.process);
            match self.source.manifest(*older, application, process) {
                Ok(manifest) => kept.push(manifest),
                // Which packs it needs is not known here.
                Err(ReadError::Rejected(RejectReason::UnknownVersion { .. })) => return Ok(()),
                Err(ReadError::Storage(error)) => return Err(error),
                Err(ReadError::Rejected(_) | ReadError::Pool(..)) => stale.push(*older),
            }
        }
        for manifest in stale {
            self.delete(&manifest.manifest_name())?;
        }
        let used: HashSet<PackId> = kept
            .iter()
            .flat_map(|manifest| manifest.packs.iter().map(|pack| pack.id))
            .collect();
        // A pack above this commit may belong to one that is under way.
        for pack in listing.packs.iter().filter(|pack| pack.commit <= id) {
            if !used.contains(pack) {
                self.delete(&pack.name())?;
            }
        }
        Ok(())
    }

    fn delete(&self, component: &str) -> Result<(), StorageError> {
        match self.source.storage.delete(&self.source.name(component)) {
            Err(StorageError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}

/// Which chunk lies where, in packs that share the image's memory.
struct Layout<'a> {
    chunk_bytes: u32,
    contents: Vec<&'a [u8]>,
    /// The places of all chunks of all contents: pack, offset.
    places: Vec<(u32, u64)>,
    packs: Vec<PackContents<'a>>,
}

#[derive(Default)]
struct PackContents<'a> {
    parts: Vec<&'a [u8]>,
    bytes: u64,
}

impl<'a> Layout<'a> {
    fn new(contents: Vec<&'a [u8]>, config: &SwapConfig) -> Self {
        let chunk_bytes = config.chunk_bytes as usize;
        let (mut packs, mut places) = (Vec::new(), Vec::new());
        let mut pack = PackContents::default();
        for content in &contents {
            // What of this content is in no pack's parts yet begins here.
            let mut start = 0;
            for (index, chunk) in content.chunks(chunk_bytes).enumerate() {
                if pack.bytes + chunk.len() as u64 > config.pack_max_bytes {
                    let cut = index * chunk_bytes;
                    pack.push(&content[start..cut]);
                    start = cut;
                    packs.push(std::mem::take(&mut pack));
                }
                places.push((packs.len() as u32, pack.bytes));
                pack.bytes += chunk.len() as u64;
            }
            pack.push(&content[start..]);
        }
        if pack.bytes > 0 {
            packs.push(pack);
        }
        Self {
            chunk_bytes: config.chunk_bytes,
            contents,
            places,
            packs,
        }
    }

    fn chunks(&self) -> impl Iterator<Item = &'a [u8]> {
        let chunk_bytes = self.chunk_bytes as usize;
        self.contents
            .iter()
            .flat_map(move |content| content.chunks(chunk_bytes))
    }

    /// A stream for each content, without hashes.
    fn streams(&self) -> impl Iterator<Item = Stream> {
        let mut places = self.places.iter();
        self.contents.iter().map(move |content| {
            let count = content.len().div_ceil(self.chunk_bytes as usize);
            let chunks = places.by_ref().take(count).map(|(pack, offset)| ChunkRef {
                pack: *pack,
                offset: *offset,
                hash: [0; HASH_BYTES],
            });
            Stream {
                bytes: content.len() as u64,
                chunks: chunks.collect(),
            }
        })
    }
}

impl<'a> PackContents<'a> {
    fn push(&mut self, part: &'a [u8]) {
        if !part.is_empty() {
            self.parts.push(part);
        }
    }
}
