//! Swapping in: the highest generation of which every byte verifies.
//!
//! Chunks that lie in a pack as they are, are read straight into the object's memory and hashed
//! there. What is compressed is read into a thread's own memory first; so are small neighbours,
//! since a read each would cost more. Runs of chunks are independent, so a few threads take them
//! from one queue.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use praas_transport::wire::Incarnation;
use praas_transport::{Buf, BufMut, BufPool, PoolExhausted};

use super::compress::{Coding, Decompressor, NoMemory};
use super::manifest::{ChunkRef, CommitId, MANIFEST_MAX_BYTES, Manifest, Stream};
use super::through::{Overlay, ThroughError, ThroughWriter};
use super::{
    Base, ImageKind, Listing, ProcessImage, RejectReason, Storage, StorageError, SwapError,
    process_prefix, sections,
};
use crate::files::ImageFile;
use crate::state::ObjectMeta;

/// Bytes that one read asks for at most.
const READ_MAX_BYTES: usize = 8 << 20;
/// Neighbours are read together up to this many bytes.
const TOGETHER_MAX_BYTES: usize = 1 << 20;
/// Threads that read and hash; below [`ALONE_MAX_BYTES`] it is only the caller's.
const READERS_MAX: usize = 4;
const ALONE_MAX_BYTES: u64 = 4 << 20;

/// A process as it was swapped out.
#[derive(Debug)]
pub struct Loaded {
    /// The process.
    pub image: ProcessImage,
    /// The generation that was loaded.
    pub generation: u64,
    /// What of it need not be written again.
    pub base: Base,
    /// Objects, there or gone, that were written through after it was made.
    pub through: usize,
    /// Higher ones that do not verify, the highest first; and what was written through later, and
    /// does not verify.
    pub rejected: Vec<Rejected>,
}

/// Who is to be the process that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heir {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The first incarnation of the process's present life. What lower ones have left is of a
    /// process that was stopped, and is no part of this one.
    pub life: Incarnation,
}

/// A generation that was not loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its manifest's name in the storage.
    pub name: String,
    /// What is wrong.
    pub reason: RejectReason,
}

impl Rejected {
    /// The generation that it is; `None` if it is something that was written through.
    pub fn generation(&self) -> Option<u64> {
        let (_, last) = self.name.rsplit_once('/')?;
        Some(CommitId::from_manifest_name(last)?.generation)
    }

    /// Whether it is a manifest that is cut off, as those of commits that never ended are.
    pub fn is_cut_off(&self) -> bool {
        self.generation().is_some() && matches!(self.reason, RejectReason::Truncated { .. })
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// Loads the highest generation of a process that verifies; `None` if it was never swapped out.
///
/// Memory comes from `pool`, which must also have room for the mailbox's small messages and the
/// results a second time while this runs.
///
/// # Errors
/// [`SwapError::NoneVerifies`]; [`SwapError::Storage`] if the storage cannot list or read what is
/// there, and [`SwapError::Pool`] if memory is short: an older generation is no answer to those.
pub fn swap_in(
    storage: &dyn Storage,
    pool: &BufPool,
    application: &str,
    process: &str,
) -> Result<Option<Loaded>, SwapError> {
    let load = |source: &Source<'_>, manifest: &Arc<Manifest>, mut overlay: Overlay| {
        let mut image = load_part(source, manifest, pool, |_| true)?;
        drop(overlay.apply(source, pool, &mut image, |_| false)?);
        Ok((image, overlay, ()))
    };
    let loaded = load_newest(storage, (application, process), None, load);
    Ok(loaded?.map(|(loaded, ())| loaded))
}

/// Loads the highest generation of which `load` finds that it verifies, as far as it looks. An
/// `heir` sees nothing of lives before its own; and if something was written through, it takes over
/// from whoever did before it reads that.
pub(super) fn load_newest<T>(
    storage: &dyn Storage,
    (application, process): (&str, &str),
    heir: Option<Heir>,
    load: impl Fn(&Source<'_>, &Arc<Manifest>, Overlay) -> Result<(ProcessImage, Overlay, T), ReadError>,
) -> Result<Option<(Loaded, T)>, SwapError> {
    let source = Source {
        storage,
        prefix: process_prefix(application, process),
    };
    let fail = |source| SwapError::Storage {
        process: process.into(),
        source,
    };
    let mut listing = Listing::read(storage, &source.prefix).map_err(fail)?;
    let licensed = match heir {
        Some(heir) if listing.is_through() => {
            let writer = ThroughWriter::new(storage, (application, process), heir.incarnation);
            writer.license().map_err(|error| match error {
                ThroughError::Storage(error) => fail(error),
                ThroughError::Fenced { process, ours } => SwapError::Fenced {
                    newer: listing.newest().unwrap_or(ours),
                    process,
                    ours,
                },
            })?;
            listing = Listing::read(storage, &source.prefix).map_err(fail)?;
            true
        }
        _ => false,
    };
    if let Some(heir) = heir {
        if let Some(newer) = listing.newest().filter(|newer| *newer > heir.incarnation) {
            return Err(SwapError::Fenced {
                process: process.into(),
                ours: heir.incarnation,
                newer,
            });
        }
        listing.lives_forget(heir.life);
    }
    let mut rejected = Vec::new();
    for id in listing.manifests.iter().copied().rev() {
        let loaded = source
            .manifest(id, application, process)
            .map(Arc::new)
            .and_then(|manifest| {
                let overlay = Overlay::find(&source, &listing, &manifest)?;
                Ok((load(&source, &manifest, overlay)?, manifest))
            });
        match loaded {
            Ok(((mut image, overlay, rest), manifest)) => {
                if overlay.applied > 0 {
                    // It did something after this image.
                    image.kind = ImageKind::Checkpoint;
                }
                rejected.extend(overlay.rejected);
                let loaded = Loaded {
                    image,
                    generation: id.generation,
                    base: Base::new(manifest).with_through(licensed, overlay.files),
                    through: overlay.applied,
                    rejected,
                };
                return Ok(Some((loaded, rest)));
            }
            Err(ReadError::Rejected(reason)) => {
                let name = source.name(&id.manifest_name());
                rejected.push(Rejected { name, reason });
            }
            Err(ReadError::Storage(source)) => return Err(fail(source)),
            Err(ReadError::Pool(part, source)) => {
                return Err(SwapError::Pool {
                    process: process.into(),
                    part,
                    source,
                });
            }
            Err(ReadError::Decompressor(part)) => {
                let process = process.into();
                return Err(SwapError::Decompressor { process, part });
            }
        }
    }
    match rejected.is_empty() {
        true => Ok(None),
        false => Err(SwapError::NoneVerifies {
            process: process.into(),
            rejected,
        }),
    }
}

/// Reads and verifies what a manifest refers to, but for objects whose lengths are not `wanted`.
pub(super) fn load_part(
    source: &Source<'_>,
    manifest: &Manifest,
    pool: &BufPool,
    wanted: impl Fn(u64) -> bool,
) -> Result<ProcessImage, ReadError> {
    let is_wanted = |part: &Part<'_>, bytes| !matches!(part, Part::Object(_)) || wanted(bytes);
    let streams: Vec<_> = parts(manifest)
        .zip(manifest.streams())
        .filter(|(part, stream)| is_wanted(part, stream.bytes))
        .collect();
    let bufs = source.streams_read(manifest, &streams, pool)?;
    assemble(manifest, bufs, pool, wanted)
}

/// Why a generation could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// It does not verify.
    Rejected(RejectReason),
    /// Whether it verifies is not known.
    Storage(StorageError),
    /// No memory for a part.
    Pool(String, PoolExhausted),
    /// No memory to decompress a part.
    Decompressor(String),
}

impl From<RejectReason> for ReadError {
    fn from(reason: RejectReason) -> Self {
        Self::Rejected(reason)
    }
}

/// The objects of one process.
pub(super) struct Source<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) prefix: String,
}

impl Source<'_> {
    pub(super) fn name(&self, component: &str) -> String {
        format!("{}{component}", self.prefix)
    }

    /// A manifest that is whole and of this process, and whose packs have the right lengths.
    pub(super) fn manifest(
        &self,
        id: CommitId,
        application: &str,
        process: &str,
    ) -> Result<Manifest, ReadError> {
        let name = self.name(&id.manifest_name());
        let fail = |error| match error {
            StorageError::NotFound { .. } => RejectReason::Missing.into(),
            error => ReadError::Storage(error),
        };
        let bytes = self.storage.size(&name).map_err(fail)?;
        if bytes > MANIFEST_MAX_BYTES {
            return Err(RejectReason::TooLarge { bytes }.into());
        }
        let mut encoded = vec![0; bytes as usize];
        self.storage.read(&name, 0, &mut encoded).map_err(fail)?;
        let manifest = Manifest::decode(&encoded)?;
        if manifest.application != application || manifest.process != process {
            let (application, process) = (manifest.application, manifest.process);
            return Err(RejectReason::WrongProcess {
                application,
                process,
            }
            .into());
        }
        if manifest.id != id {
            let name = manifest.id.manifest_name();
            return Err(RejectReason::WrongName { name }.into());
        }
        self.check_packs(&manifest)?;
        Ok(manifest)
    }

    fn check_packs(&self, manifest: &Manifest) -> Result<(), ReadError> {
        for pack in &manifest.packs {
            let name = self.name(&pack.id.name());
            let actual = self.storage.size(&name);
            let actual = actual.map_err(|error| pack_error(error, &pack.id.name()))?;
            if actual != pack.bytes {
                return Err(RejectReason::PackLength {
                    pack: pack.id.name(),
                    actual,
                    expected: pack.bytes,
                }
                .into());
            }
        }
        Ok(())
    }

    /// Reads and verifies streams of a manifest, one or all, by several threads if they are large.
    /// Parts name them in errors.
    pub(super) fn streams_read(
        &self,
        manifest: &Manifest,
        streams: &[(Part<'_>, &Stream)],
        pool: &BufPool,
    ) -> Result<Vec<Buf>, ReadError> {
        let mut bufs: Vec<BufMut> = Vec::with_capacity(streams.len());
        for (part, stream) in streams {
            // A length comes with its chunks, 44 bytes each, so it is far from the end of usize.
            let buf = pool.alloc(stream.bytes as usize);
            bufs.push(buf.map_err(|source| ReadError::Pool(part.to_string(), source))?);
        }
        let total: u64 = streams.iter().map(|(_, stream)| stream.bytes).sum();
        let runs = plan_runs(manifest.chunk_bytes, streams, &mut bufs);
        self.read_runs(manifest, runs, total)?;
        Ok(bufs.into_iter().map(BufMut::freeze).collect())
    }

    fn read_runs(
        &self,
        manifest: &Manifest,
        runs: Vec<Run<'_>>,
        total: u64,
    ) -> Result<(), ReadError> {
        // One more than there are processors: some of them wait for the storage.
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) + 1;
        let helpers = match total <= ALONE_MAX_BYTES {
            true => 0,
            false => READERS_MAX.min(cpus).min(runs.len()).saturating_sub(1),
        };
        let queue = Mutex::new(runs.into_iter());
        let work = || {
            let (mut scratch, mut decompressor) = (Vec::new(), Decompressor::default());
            loop {
                let run = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(run) = run else {
                    return Ok(());
                };
                if let Err(error) = self.read_run(manifest, run, &mut scratch, &mut decompressor) {
                    // The others need not go on.
                    let mut left = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    *left = Vec::new().into_iter();
                    return Err(error);
                }
            }
        };
        std::thread::scope(|scope| {
            // A thread that cannot be started leaves its share to the others.
            let spawned = (0..helpers)
                .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok());
            let spawned: Vec<_> = spawned.collect();
            let mut result = work();
            for helper in spawned {
                let other = helper
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = result.and(other);
            }
            result
        })
    }

    fn read_run(
        &self,
        manifest: &Manifest,
        run: Run<'_>,
        scratch: &mut Vec<u8>,
        decompressor: &mut Decompressor,
    ) -> Result<(), ReadError> {
        let pack = manifest.packs[run.pack as usize].id.name();
        let name = self.name(&pack);
        let read = |offset, into: &mut [u8]| {
            let read = self.storage.read(&name, offset, into);
            read.map_err(|error| pack_error(error, &pack))
        };
        let chunk_bytes = manifest.chunk_bytes as usize;
        let mut segments = run.segments;
        if let [segment] = &mut segments[..]
            && segment.is_raw()
        {
            read(run.offset, segment.into)?;
            return Ok(segment.verify(chunk_bytes, &pack)?);
        }
        if scratch.len() < run.bytes {
            scratch.resize(run.bytes, 0);
        }
        let stored = &mut scratch[..run.bytes];
        read(run.offset, stored)?;
        let mut from = &*stored;
        for segment in &mut segments {
            from = segment.unpack(chunk_bytes, from, decompressor, &pack)?;
            segment.verify(chunk_bytes, &pack)?;
        }
        Ok(())
    }
}

fn pack_error(error: StorageError, pack: &str) -> ReadError {
    let pack = pack.into();
    match error {
        StorageError::NotFound { .. } => RejectReason::MissingPack { pack }.into(),
        error => ReadError::Storage(error),
    }
}

/// What a stream is, for errors.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    Object(&'a str),
    File(&'a [u8]),
    Body(usize),
    Mailbox,
    Sessions,
}

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(key) => write!(f, "object '{key}'"),
            Self::File(name) => write!(f, "file '{}'", String::from_utf8_lossy(name)),
            Self::Body(index) => write!(f, "message body {index}"),
            Self::Mailbox => f.write_str("the mailbox"),
            Self::Sessions => f.write_str("the sessions"),
        }
    }
}

/// The streams of a manifest, in their order.
fn parts(manifest: &Manifest) -> impl Iterator<Item = Part<'_>> {
    let objects = manifest.objects.iter();
    let files = manifest.files.iter();
    objects
        .map(|object| Part::Object(&object.key))
        .chain(files.map(|file| Part::File(&file.name)))
        .chain((0..manifest.bodies.len()).map(Part::Body))
        .chain([Part::Mailbox, Part::Sessions])
}

/// Chunks of one stream that are neighbours in a pack.
struct Segment<'a> {
    part: Part<'a>,
    first: usize,
    chunks: &'a [ChunkRef],
    into: &'a mut [u8],
}

impl Segment<'_> {
    fn is_raw(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.coding == Coding::Raw)
    }

    /// Fills its memory from the front of `stored`; what is left of that.
    fn unpack<'b>(
        &mut self,
        chunk_bytes: usize,
        mut stored: &'b [u8],
        decompressor: &mut Decompressor,
        pack: &str,
    ) -> Result<&'b [u8], ReadError> {
        let chunks = self.into.chunks_mut(chunk_bytes).zip(self.chunks);
        for (at, (into, chunk)) in chunks.enumerate() {
            let (bytes, rest) = stored.split_at(chunk.stored as usize);
            stored = rest;
            match decompressor.decompress(chunk.coding, bytes, into) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(ReadError::Rejected(RejectReason::Undecodable {
                        chunk: self.first + at,
                        part: self.part.to_string(),
                        pack: pack.into(),
                    }));
                }
                Err(NoMemory) => return Err(ReadError::Decompressor(self.part.to_string())),
            }
        }
        Ok(stored)
    }

    fn verify(&self, chunk_bytes: usize, pack: &str) -> Result<(), RejectReason> {
        let chunks = self.into.chunks(chunk_bytes).zip(self.chunks);
        for (at, (bytes, chunk)) in chunks.enumerate() {
            if blake3::hash(bytes) != blake3::Hash::from_bytes(chunk.hash) {
                return Err(RejectReason::HashMismatch {
                    chunk: self.first + at,
                    part: self.part.to_string(),
                    pack: pack.into(),
                });
            }
        }
        Ok(())
    }
}

/// Segments that one read gets.
struct Run<'a> {
    pack: u32,
    offset: u64,
    bytes: usize,
    segments: Vec<Segment<'a>>,
}

/// Cuts streams into runs; `bufs` has the memory of each.
fn plan_runs<'a>(
    chunk_bytes: u32,
    streams: &[(Part<'a>, &'a Stream)],
    bufs: &'a mut [BufMut],
) -> Vec<Run<'a>> {
    let chunk_bytes = chunk_bytes as usize;
    let chunks_max = (READ_MAX_BYTES / chunk_bytes).max(1);
    let mut runs: Vec<Run<'a>> = Vec::new();
    for ((part, stream), buf) in streams.iter().zip(bufs) {
        let (mut left, mut into) = (&stream.chunks[..], &mut buf[..]);
        while let Some(first) = left.first() {
            let count = neighbours(&left[..left.len().min(chunks_max)]);
            let (chunks, rest) = left.split_at(count);
            let filled = (count * chunk_bytes).min(into.len());
            let bytes = chunks.iter().map(|chunk| chunk.stored as usize).sum();
            let (head, tail) = into.split_at_mut(filled);
            let segment = Segment {
                part: *part,
                first: stream.chunks.len() - left.len(),
                chunks,
                into: head,
            };
            (left, into) = (rest, tail);
            match runs.last_mut() {
                Some(run)
                    if run.pack == first.pack
                        && run.offset + run.bytes as u64 == first.offset
                        && run.bytes + bytes <= TOGETHER_MAX_BYTES =>
                {
                    run.bytes += bytes;
                    run.segments.push(segment);
                }
                _ => runs.push(Run {
                    pack: first.pack,
                    offset: first.offset,
                    bytes,
                    segments: vec![segment],
                }),
            }
        }
    }
    runs
}

/// How many of the first chunks follow one another in a pack.
fn neighbours(chunks: &[ChunkRef]) -> usize {
    let follows = |pair: &[ChunkRef; 2]| {
        let [before, after] = pair;
        before.pack == after.pack && before.offset + u64::from(before.stored) == after.offset
    };
    1 + chunks
        .array_windows()
        .take_while(|pair| follows(pair))
        .count()
}

/// The image, out of a manifest and the memory of its streams, but for objects whose lengths are
/// not `wanted`.
fn assemble(
    manifest: &Manifest,
    bufs: Vec<Buf>,
    pool: &BufPool,
    wanted: impl Fn(u64) -> bool,
) -> Result<ProcessImage, ReadError> {
    let mut bufs = bufs.into_iter();
    let objects = manifest.objects.iter();
    let objects = objects.filter(|object| wanted(object.stream.bytes));
    let state = objects.zip(&mut bufs).map(|(object, buf)| {
        let meta = ObjectMeta {
            version: object.version,
            written_unix_ms: object.written_unix_ms,
            bytes: buf.len() as u64,
        };
        (object.key.clone(), buf, meta)
    });
    let state = state.collect();
    let files = manifest.files.iter().zip(&mut bufs);
    let files = files.map(|(file, bytes)| ImageFile {
        name: file.name.clone(),
        mode: file.mode,
        bytes,
    });
    let files = files.collect();
    let bodies = bufs.by_ref().take(manifest.bodies.len()).collect();
    let (mailbox, sessions) = (bufs.next(), bufs.next());
    let mailbox = sections::decode_mailbox(&mailbox.unwrap_or_default(), bodies, pool)?;
    let sessions = sections::decode_sessions(&sessions.unwrap_or_default())?;
    Ok(ProcessImage {
        application: manifest.application.clone(),
        process: manifest.process.clone(),
        incarnation: manifest.id.incarnation,
        kind: manifest.kind,
        state_version: manifest.state_version,
        state,
        mailbox,
        sessions,
        files,
    })
}
