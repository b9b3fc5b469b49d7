//! Packing: what is to be written is hashed, compressed and put into packs by several threads.
//!
//! ```text
//!   contents --chunks that are not known to be stored--> queue
//!                                                          |  runs of chunks, in order
//!             thread: hash --stored already--> refer to it |  thread  ...
//!                       | new
//!                  compress --> its own pack --full--> storage
//! ```
//!
//! Each thread fills and writes packs of its own, so that one hashes while another waits for the
//! storage. What is not compressed is written from where it lies; what is, from the thread's
//! memory, which is at most one pack. So the memory that a commit takes is bounded by threads
//! times `pack_max_bytes`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::base::Reuse;
use super::compress::{Coding, Compressor};
use super::manifest::{ChunkRef, CommitId, HASH_BYTES, Pack, PackId, Stream};
use super::reader::Source;
use super::{Begun, StorageError, SwapConfig};

/// Bytes of chunks that a thread takes from the queue at once.
const RUN_BYTES: usize = 4 << 20;
/// Packs that are written and not yet durable, at most: each may be an open file.
const UNFINISHED_MAX: usize = 64;
/// With fewer bytes than this for each thread, there are fewer threads.
const THREAD_MIN_BYTES: usize = 4 << 20;

/// Bytes that are to be stored.
pub(super) struct Content<'a> {
    /// Empty if they are known, and all of them stay where they are: then nobody asks for them.
    pub(super) bytes: &'a [u8],
    /// How many they are.
    pub(super) length: usize,
    /// Where they lie, if they are known not to have changed.
    pub(super) known: Option<&'a Stream>,
}

/// What all contents have become.
pub(super) struct Packed {
    /// One for each content.
    pub(super) streams: Vec<Stream>,
    /// Those that the streams refer to: new ones, then older ones.
    pub(super) packs: Vec<Pack>,
    /// How many of them are new.
    pub(super) packs_new: usize,
    pub(super) counts: Counts,
}

/// What was written, and what was not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) chunks: u64,
    pub(super) chunks_written: u64,
    pub(super) bytes_written: u64,
    pub(super) bytes_reused: u64,
}

/// One commit's packing.
pub(super) struct Packing<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) config: &'a SwapConfig,
    pub(super) id: CommitId,
    pub(super) reuse: Option<&'a Reuse<'a>>,
    pub(super) contents: Vec<Content<'a>>,
}

/// A chunk that is not known to be stored.
#[derive(Clone, Copy)]
struct Todo {
    content: u32,
    chunk: u32,
}

/// Where a chunk is.
#[derive(Clone, Copy)]
enum Place {
    /// In a pack of the base.
    Old(ChunkRef),
    /// In a pack of this commit; `pack` is its number.
    New(ChunkRef),
    /// Where the chunk is that comes at this place in the queue.
    Same(usize),
}

/// What the threads share.
#[derive(Default)]
struct Shared {
    /// The first of the queue that nobody has taken.
    next: usize,
    /// Chunks that are written by this commit, by hash: their places in the queue.
    fresh: HashMap<[u8; HASH_BYTES], usize>,
    /// Numbers of packs that may be in storage.
    begun: Vec<u32>,
    /// Those that are to be made durable.
    unfinished: Vec<Begun>,
    /// Packs that are in storage: number and bytes.
    packs: Vec<(u32, u64)>,
    numbers: u32,
    failed: bool,
}

impl Packing<'_> {
    /// Writes all packs. After a failure those that were written are gone again, if possible.
    pub(super) fn run(&self) -> Result<Packed, StorageError> {
        let todo = self.todo();
        let total: usize = todo.iter().map(|todo| self.chunk(*todo).len()).sum();
        let shared = Mutex::new(Shared::default());
        let work = || {
            let mut packer = Packer::new(self, &todo, &shared, total);
            let worked = packer.run();
            if worked.is_err() {
                lock(&shared).failed = true;
            }
            worked.map(|()| packer.placed)
        };
        let helpers = self.threads(total) - 1;
        let placed = std::thread::scope(|scope| {
            // A thread that cannot be started leaves its share to the others.
            let spawned = (0..helpers)
                .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok());
            let spawned: Vec<_> = spawned.collect();
            let mut all = vec![work()];
            all.extend(spawned.into_iter().map(|helper| {
                let joined = helper.join();
                joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }));
            all.into_iter().collect::<Result<Vec<_>, StorageError>>()
        });
        let mut shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        // All packs at once, now that they are on their way to the disk.
        let finished = placed.and_then(|placed| {
            Begun::finish(std::mem::take(&mut shared.unfinished))?;
            Ok(placed)
        });
        match finished {
            Ok(placed) => Ok(self.assemble(&todo, placed, shared.packs)),
            Err(error) => {
                let packs = shared.begun.into_iter().map(|number| self.pack_id(number));
                self.source.packs_delete(packs);
                Err(error)
            }
        }
    }

    /// Chunks of all contents.
    pub(super) fn chunks_total(&self) -> usize {
        self.contents
            .iter()
            .map(|content| self.chunks(content))
            .sum()
    }

    fn threads(&self, total: usize) -> usize {
        let wanted = match self.config.threads {
            // One more than there are processors: some of them wait for the storage.
            0 => std::thread::available_parallelism().map_or(1, usize::from) + 1,
            threads => threads as usize,
        };
        wanted.min(total / THREAD_MIN_BYTES).max(1)
    }

    fn todo(&self) -> Vec<Todo> {
        let mut todo = Vec::new();
        for (at, content) in self.contents.iter().enumerate() {
            let chunks = self.chunks(content);
            let stays = |chunk: &usize| {
                let known = content.known.zip(self.reuse);
                known.is_some_and(|(known, reuse)| reuse.stays(&known.chunks[*chunk]))
            };
            let changed = (0..chunks).filter(|chunk| !stays(chunk));
            todo.extend(changed.map(|chunk| Todo {
                content: at as u32,
                chunk: chunk as u32,
            }));
        }
        todo
    }

    fn chunks(&self, content: &Content<'_>) -> usize {
        content.length.div_ceil(self.config.chunk_bytes as usize)
    }

    fn range(&self, todo: Todo) -> Range<usize> {
        let start = todo.chunk as usize * self.config.chunk_bytes as usize;
        let end = start + self.config.chunk_bytes as usize;
        start..end.min(self.contents[todo.content as usize].length)
    }

    fn chunk(&self, todo: Todo) -> &[u8] {
        &self.contents[todo.content as usize].bytes[self.range(todo)]
    }

    fn pack_id(&self, number: u32) -> PackId {
        PackId {
            commit: self.id,
            number,
        }
    }

    /// The streams, with all that the threads have found out, and the packs in which they lie.
    fn assemble(
        &self,
        todo: &[Todo],
        placed: Vec<Vec<(usize, Place)>>,
        mut new: Vec<(u32, u64)>,
    ) -> Packed {
        let mut places = vec![None; todo.len()];
        for (at, place) in placed.into_iter().flatten() {
            places[at] = Some(place);
        }
        new.sort_unstable();
        let mut packs = Packs::new(self, &new);
        let mut counts = Counts::default();
        let mut found = places.iter().zip(todo).peekable();
        let mut streams = Vec::with_capacity(self.contents.len());
        for (at, content) in self.contents.iter().enumerate() {
            let chunks = (0..self.chunks(content)).map(|chunk| {
                let here = |todo: &Todo| (todo.content, todo.chunk) == (at as u32, chunk as u32);
                let place = match found.next_if(|(_, todo)| here(todo)) {
                    Some((Some(Place::Same(other)), _)) => places[*other],
                    Some((place, _)) => *place,
                    // What is not in the queue stays.
                    None => content.known.map(|known| Place::Old(known.chunks[chunk])),
                };
                packs.chunk(place, &mut counts)
            });
            streams.push(Stream {
                bytes: content.length as u64,
                chunks: chunks.collect(),
            });
        }
        let written = places
            .iter()
            .filter(|place| matches!(place, Some(Place::New(_))));
        counts.chunks_written = written.count() as u64;
        counts.bytes_written = new.iter().map(|(_, bytes)| bytes).sum();
        Packed {
            streams,
            packs: packs.listed,
            packs_new: new.len(),
            counts,
        }
    }
}

/// The packs of a manifest, as chunks refer to them.
struct Packs<'a> {
    new: &'a [(u32, u64)],
    old: &'a [Pack],
    /// Where each older one is in the list, if it is.
    at: Vec<Option<u32>>,
    listed: Vec<Pack>,
}

impl<'a> Packs<'a> {
    fn new(packing: &Packing<'a>, new: &'a [(u32, u64)]) -> Self {
        let old = packing.reuse.map_or(&[][..], |reuse| reuse.packs());
        let listed = new.iter().map(|(number, bytes)| Pack {
            id: packing.pack_id(*number),
            bytes: *bytes,
        });
        Self {
            new,
            old,
            at: vec![None; old.len()],
            listed: listed.collect(),
        }
    }

    /// A chunk as the manifest refers to it.
    fn chunk(&mut self, place: Option<Place>, counts: &mut Counts) -> ChunkRef {
        counts.chunks += 1;
        match place {
            Some(Place::Old(mut chunk)) => {
                counts.bytes_reused += u64::from(chunk.stored);
                let old = chunk.pack as usize;
                let listed = &mut self.listed;
                chunk.pack = *self.at[old].get_or_insert_with(|| {
                    listed.push(self.old[old]);
                    listed.len() as u32 - 1
                });
                chunk
            }
            Some(Place::New(mut chunk)) => {
                let at = self.new.partition_point(|(number, _)| *number < chunk.pack);
                chunk.pack = at as u32;
                chunk
            }
            Some(Place::Same(_)) | None => unreachable!("every chunk has been placed"),
        }
    }
}

/// A thread that fills packs.
struct Packer<'a> {
    packing: &'a Packing<'a>,
    todo: &'a [Todo],
    shared: &'a Mutex<Shared>,
    compressor: Compressor,
    filling: Filling,
    placed: Vec<(usize, Place)>,
}

/// A pack that is being filled.
struct Filling {
    number: Option<u32>,
    parts: Vec<PackPart>,
    bytes: u64,
    /// What was compressed; it stays from pack to pack.
    memory: Vec<u8>,
    memory_max: usize,
}

/// A piece of a pack.
enum PackPart {
    /// Of a content, as it is.
    Raw { content: u32, range: Range<usize> },
    /// Of the pack's memory.
    Compressed(Range<usize>),
}

impl<'a> Packer<'a> {
    fn new(
        packing: &'a Packing<'a>,
        todo: &'a [Todo],
        shared: &'a Mutex<Shared>,
        total: usize,
    ) -> Self {
        let config = packing.config;
        let pack_max = usize::try_from(config.pack_max_bytes).unwrap_or(usize::MAX);
        Self {
            packing,
            todo,
            shared,
            compressor: Compressor::new(config.compression, config.zstd_level),
            filling: Filling {
                number: None,
                parts: Vec::new(),
                bytes: 0,
                memory: Vec::new(),
                memory_max: pack_max.min(total),
            },
            placed: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<(), StorageError> {
        while let Some(run) = self.run_take() {
            for at in run {
                self.chunk_put(at)?;
            }
        }
        self.filling.write(self.packing, self.shared)
    }

    /// The next chunks, `None` if there are none or another thread has failed.
    fn run_take(&self) -> Option<Range<usize>> {
        let mut shared = lock(self.shared);
        if shared.failed || shared.next == self.todo.len() {
            return None;
        }
        let start = shared.next;
        let mut bytes = 0;
        while shared.next < self.todo.len() && bytes < RUN_BYTES {
            bytes += self.packing.range(self.todo[shared.next]).len();
            shared.next += 1;
        }
        Some(start..shared.next)
    }

    fn chunk_put(&mut self, at: usize) -> Result<(), StorageError> {
        let (packing, todo) = (self.packing, self.todo[at]);
        let chunk = packing.chunk(todo);
        let hash = *blake3::hash(chunk).as_bytes();
        if let Some(known) = packing.reuse.and_then(|reuse| reuse.chunk(&hash)) {
            self.placed.push((at, Place::Old(*known)));
            return Ok(());
        }
        if let Some(same) = lock(self.shared).fresh_mark(hash, at) {
            self.placed.push((at, Place::Same(same)));
            return Ok(());
        }
        let compressed = self.compressor.compress(chunk);
        let stored = compressed.map_or(chunk.len(), |(_, bytes)| bytes.len());
        if self.filling.bytes + stored as u64 > packing.config.pack_max_bytes {
            self.filling.write(packing, self.shared)?;
        }
        let offset = self.filling.bytes;
        let coding = match compressed {
            Some((coding, bytes)) => {
                self.filling.push_compressed(bytes);
                coding
            }
            None => {
                self.filling.push_raw(todo.content, packing.range(todo));
                Coding::Raw
            }
        };
        let chunk = ChunkRef {
            pack: self.filling.number(self.shared),
            offset,
            stored: stored as u32,
            coding,
            hash,
        };
        self.placed.push((at, Place::New(chunk)));
        Ok(())
    }
}

impl Filling {
    /// The pack's number; nobody else's.
    fn number(&mut self, shared: &Mutex<Shared>) -> u32 {
        *self.number.get_or_insert_with(|| {
            let mut shared = lock(shared);
            shared.numbers += 1;
            shared.numbers - 1
        })
    }

    fn push_raw(&mut self, content: u32, range: Range<usize>) {
        self.bytes += range.len() as u64;
        match self.parts.last_mut() {
            Some(PackPart::Raw {
                content: at,
                range: last,
            }) if *at == content && last.end == range.start => {
                last.end = range.end;
            }
            _ => self.parts.push(PackPart::Raw { content, range }),
        }
    }

    fn push_compressed(&mut self, bytes: &[u8]) {
        if self.memory.capacity() == 0 {
            // Once, so that it is never moved; pages come as they are touched.
            self.memory.reserve_exact(self.memory_max);
        }
        let start = self.memory.len();
        self.memory.extend_from_slice(bytes);
        self.bytes += bytes.len() as u64;
        let end = self.memory.len();
        match self.parts.last_mut() {
            Some(PackPart::Compressed(last)) if last.end == start => last.end = end,
            _ => self.parts.push(PackPart::Compressed(start..end)),
        }
    }

    /// Writes the pack, if there is anything in it, and begins another one.
    fn write(&mut self, packing: &Packing<'_>, shared: &Mutex<Shared>) -> Result<(), StorageError> {
        let Some(number) = self.number.take() else {
            return Ok(());
        };
        let parts = self.parts.iter().map(|part| match part {
            PackPart::Raw { content, range } => {
                &packing.contents[*content as usize].bytes[range.clone()]
            }
            PackPart::Compressed(range) => &self.memory[range.clone()],
        });
        let parts: Vec<&[u8]> = parts.collect();
        let name = packing.source.name(&packing.pack_id(number).name());
        let written = packing.source.storage.put_begin(&name, &parts);
        // A pack that exists is somebody else's; a failed one may be there in part.
        if !matches!(written, Err(StorageError::Exists { .. })) {
            lock(shared).begun.push(number);
        }
        let begun = written?;
        let mut locked = lock(shared);
        locked.packs.push((number, self.bytes));
        locked.unfinished.push(begun);
        let many = locked.unfinished.len() >= UNFINISHED_MAX;
        let unfinished = many.then(|| std::mem::take(&mut locked.unfinished));
        drop(locked);
        Begun::finish(unfinished.unwrap_or_default())?;
        self.parts.clear();
        self.memory.clear();
        self.bytes = 0;
        Ok(())
    }
}

impl Shared {
    /// Notes that a chunk is going to be written, unless another one with its hash is.
    fn fresh_mark(&mut self, hash: [u8; HASH_BYTES], at: usize) -> Option<usize> {
        match self.fresh.entry(hash) {
            Entry::Occupied(same) => Some(*same.get()),
            Entry::Vacant(free) => {
                free.insert(at);
                None
            }
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
