//! The manifest: what a generation consists of, and where its chunks lie.
//!
//! ```text
//!   0      8 magic   2 version   2 flags   4 chunk bytes     flags: bit 0 = checkpoint
//!   16     8 incarnation          8 generation
//!   32     8 length of all this, in bytes   4 packs   4 objects
//!   48     4 files   4 bodies               8 version of the state
//!   64     application, process                        name = u16 length, UTF-8
//!          packs x    { u64 incarnation, u64 generation, u32 number, u64 bytes }
//!          objects x  { name, u64 version, u64 written (unix ms), stream }
//!          files x    { name (any bytes), u16 mode, stream }
//!          bodies x   stream                           payloads of large messages
//!          stream (mailbox), stream (sessions)
//!   end-32 BLAKE3 of everything before
//!
//!   stream = u64 bytes, then for every chunk { u32 pack, u64 offset, u32 stored, 32 BLAKE3 }
//!   stored = bytes in the pack; bits 30 and 31: 0 as they are, 1 LZ4, 2 Zstandard
//! ```
//!
//! All integers are little-endian. A stream of n bytes has n / chunk bytes chunks, rounded up, and
//! only its last one is shorter. There is one encoding of a manifest in each version, and decoding
//! accepts no other. Nothing is allocated that the bytes at hand do not cover. Version 2 has zero in
//! place of the version of the state; version 1 has no flags besides, and no `stored`: every chunk
//! is as it is. Up to version 3 files have no modes, and names in UTF-8.

use praas_transport::wire::Incarnation;

use super::bytes::{Reader, malformed};
use super::compress::Coding;
use super::{ImageKind, RejectReason, SwapConfig};
pub(super) use crate::files::FILE_NAME_MAX_BYTES;
use crate::files::{FILE_MODE_BITS, FILE_MODE_DEFAULT};

/// First bytes of a manifest.
pub(super) const MAGIC: [u8; 8] = *b"praasSWP";
/// The version written.
pub(super) const VERSION: u16 = 4;
/// The oldest version that is read.
pub(super) const VERSION_OLDEST: u16 = 1;
/// The process served on after the image was made. Version 1 has no flags.
const FLAG_CHECKPOINT: u16 = 1;
/// Bytes of the fixed part.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes of a hash.
pub(super) const HASH_BYTES: usize = 32;
/// A manifest above this is not read: it stands for more than a terabyte in chunks of 256 KiB.
pub(super) const MANIFEST_MAX_BYTES: u64 = 256 << 20;
/// Bytes of an application's, a process's or an object's name.
pub(super) const NAME_MAX_BYTES: usize = 255;

const PACK_BYTES: usize = 28;
/// Bytes of a chunk in a manifest.
pub(super) const CHUNK_REF_BYTES: usize = 48;
const CHUNK_REF_BYTES_1: usize = 44;
/// Bits of `stored` that are the length.
const STORED_LENGTH_BITS: u32 = 30;
const STREAM_MIN_BYTES: usize = 8;
const OBJECT_MIN_BYTES: usize = 18 + STREAM_MIN_BYTES;
const FILE_MIN_BYTES: usize = 2 + STREAM_MIN_BYTES;

/// Says which commit something belongs to; the order is that of the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CommitId {
    pub(super) incarnation: Incarnation,
    pub(super) generation: u64,
}

impl CommitId {
    /// The last component of the manifest's name.
    pub(super) fn manifest_name(self) -> String {
        let (incarnation, generation) = (self.incarnation.0, self.generation);
        format!("manifest-{incarnation:016x}-{generation:016x}")
    }

    /// Reads what [`CommitId::manifest_name`] wrote.
    pub(super) fn from_manifest_name(name: &str) -> Option<Self> {
        let (incarnation, generation) = name.strip_prefix("manifest-")?.split_once('-')?;
        let id = Self {
            incarnation: Incarnation(u64::from_str_radix(incarnation, 16).ok()?),
            generation: u64::from_str_radix(generation, 16).ok()?,
        };
        (id.manifest_name() == name).then_some(id)
    }
}

/// Names a pack of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PackId {
    pub(super) commit: CommitId,
    pub(super) number: u32,
}

impl PackId {
    /// The last component of the pack's name.
    pub(super) fn name(self) -> String {
        let (incarnation, generation) = (self.commit.incarnation.0, self.commit.generation);
        format!(
            "pack-{incarnation:016x}-{generation:016x}-{:04x}",
            self.number
        )
    }

    /// Reads what [`PackId::name`] wrote.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let mut fields = name.strip_prefix("pack-")?.splitn(3, '-');
        let mut field = || u64::from_str_radix(fields.next()?, 16).ok();
        let commit = CommitId {
            incarnation: Incarnation(field()?),
            generation: field()?,
        };
        let number = u32::try_from(field()?).ok()?;
        let id = Self { commit, number };
        (id.name() == name).then_some(id)
    }
}

/// A pack that chunks lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pack {
    pub(super) id: PackId,
    pub(super) bytes: u64,
}

/// Where a chunk lies, and what it hashes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkRef {
    /// Index into the manifest's packs.
    pub(super) pack: u32,
    /// Bytes from the pack's start.
    pub(super) offset: u64,
    /// Bytes in the pack.
    pub(super) stored: u32,
    pub(super) coding: Coding,
    pub(super) hash: [u8; HASH_BYTES],
}

/// Bytes as a list of chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) bytes: u64,
    pub(super) chunks: Vec<ChunkRef>,
}

/// A state object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectEntry {
    pub(super) key: String,
    pub(super) version: u64,
    pub(super) written_unix_ms: u64,
    pub(super) stream: Stream,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileEntry {
    pub(super) name: Vec<u8>,
    pub(super) mode: u16,
    pub(super) stream: Stream,
}

/// One generation of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) id: CommitId,
    pub(super) kind: ImageKind,
    pub(super) chunk_bytes: u32,
    pub(super) application: String,
    pub(super) process: String,
    /// All writes of the state up to this one are in the image, or superseded in it.
    pub(super) state_version: u64,
    pub(super) packs: Vec<Pack>,
    pub(super) objects: Vec<ObjectEntry>,
    pub(super) files: Vec<FileEntry>,
    pub(super) bodies: Vec<Stream>,
    pub(super) mailbox: Stream,
    pub(super) sessions: Stream,
}

impl Manifest {
    /// The manifest's bytes. The caller has checked names and counts against the limits.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_bytes());
        out.extend_from_slice(&MAGIC);
        put_u16(&mut out, VERSION);
        put_u16(&mut out, kind_flags(self.kind));
        put_u32(&mut out, self.chunk_bytes);
        put_u64(&mut out, self.id.incarnation.0);
        put_u64(&mut out, self.id.generation);
        put_u64(&mut out, self.encoded_bytes() as u64);
        put_u32(&mut out, self.packs.len() as u32);
        put_u32(&mut out, self.objects.len() as u32);
        put_u32(&mut out, self.files.len() as u32);
        put_u32(&mut out, self.bodies.len() as u32);
        put_u64(&mut out, self.state_version);
        put_name(&mut out, &self.application);
        put_name(&mut out, &self.process);
        for pack in &self.packs {
            put_u64(&mut out, pack.id.commit.incarnation.0);
            put_u64(&mut out, pack.id.commit.generation);
            put_u32(&mut out, pack.id.number);
            put_u64(&mut out, pack.bytes);
        }
        for object in &self.objects {
            put_name(&mut out, &object.key);
            put_u64(&mut out, object.version);
            put_u64(&mut out, object.written_unix_ms);
            put_stream(&mut out, &object.stream);
        }
        for file in &self.files {
            put_u16(&mut out, file.name.len() as u16);
            out.extend_from_slice(&file.name);
            put_u16(&mut out, file.mode);
            put_stream(&mut out, &file.stream);
        }
        for stream in self.bodies.iter().chain([&self.mailbox, &self.sessions]) {
            put_stream(&mut out, stream);
        }
        let checksum = blake3::hash(&out);
        out.extend_from_slice(checksum.as_bytes());
        out
    }

    /// The manifest that all of `bytes` stand for.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RejectReason> {
        let (body, version) = check_frame(bytes)?;
        let mut reader = Reader::new(body);
        reader.take(10, "header")?;
        let flags = reader.u16("flags")?;
        let chunk_bytes = reader.u32("chunk size")?;
        let id = CommitId {
            incarnation: Incarnation(reader.u64("incarnation")?),
            generation: reader.u64("generation")?,
        };
        reader.u64("length")?;
        let mut count = || reader.u32("counts").map(|count| count as usize);
        let [packs, objects, files, bodies] = [count()?, count()?, count()?, count()?];
        let kind = match (version, flags) {
            (_, 0) => ImageKind::Final,
            (2.., FLAG_CHECKPOINT) => ImageKind::Checkpoint,
            _ => return Err(malformed("flags")),
        };
        let state_version = match (version, reader.u64("version of the state")?) {
            (3.., state_version) => Some(state_version),
            (_, 0) => None,
            _ => return Err(malformed("reserved bytes of the header")),
        };
        if !SwapConfig::chunk_bytes_is_valid(chunk_bytes) {
            return Err(malformed("chunk size"));
        }
        let application = reader.name(NAME_MAX_BYTES, "application")?;
        let process = reader.name(NAME_MAX_BYTES, "process")?;
        let packs = read_all(&mut reader, packs, PACK_BYTES, "packs", |reader| {
            read_pack(reader, id)
        })?;
        let stream = |reader: &mut Reader<'_>| read_stream(reader, version, chunk_bytes, &packs);
        let objects = read_all(
            &mut reader,
            objects,
            OBJECT_MIN_BYTES,
            "objects",
            |reader| {
                Ok(ObjectEntry {
                    key: reader.name(NAME_MAX_BYTES, "object's key")?,
                    version: reader.u64("object's version")?,
                    written_unix_ms: reader.u64("object's time")?,
                    stream: stream(reader)?,
                })
            },
        )?;
        let files = read_all(&mut reader, files, FILE_MIN_BYTES, "files", |reader| {
            let (name, mode) = read_file(reader, version)?;
            Ok(FileEntry {
                name,
                mode,
                stream: stream(reader)?,
            })
        })?;
        let bodies = read_all(&mut reader, bodies, STREAM_MIN_BYTES, "bodies", stream)?;
        let (mailbox, sessions) = (stream(&mut reader)?, stream(&mut reader)?);
        reader.finish("end")?;
        let newest = || {
            objects
                .iter()
                .map(|object: &ObjectEntry| object.version)
                .max()
        };
        Ok(Self {
            id,
            kind,
            chunk_bytes,
            application,
            process,
            state_version: state_version.unwrap_or_else(|| newest().unwrap_or(0)),
            packs,
            objects,
            files,
            bodies,
            mailbox,
            sessions,
        })
    }

    /// All streams: objects, files, bodies, mailbox, sessions.
    pub(super) fn streams(&self) -> impl Iterator<Item = &Stream> {
        let objects = self.objects.iter().map(|object| &object.stream);
        let files = self.files.iter().map(|file| &file.stream);
        let rest = self.bodies.iter().chain([&self.mailbox, &self.sessions]);
        objects.chain(files).chain(rest)
    }

    /// All chunks, stream by stream.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &ChunkRef> {
        self.streams().flat_map(|stream| &stream.chunks)
    }

    /// Bytes of the encoding.
    pub(super) fn encoded_bytes(&self) -> usize {
        let names = self.objects.iter().map(|object| object.key.len() + 18);
        let names: usize = names
            .chain(self.files.iter().map(|file| file.name.len() + 4))
            .sum();
        let chunks: usize = self.streams().map(|stream| stream.chunks.len()).sum();
        HEADER_BYTES
            + (2 + self.application.len() + 2 + self.process.len())
            + self.packs.len() * PACK_BYTES
            + names
            + self.streams().count() * STREAM_MIN_BYTES
            + chunks * CHUNK_REF_BYTES
            + HASH_BYTES
    }
}

/// Length of a chunk of a stream.
pub(super) fn chunk_len(stream_bytes: u64, chunk_bytes: u32, index: usize) -> u64 {
    let start = index as u64 * u64::from(chunk_bytes);
    stream_bytes.saturating_sub(start).min(chunk_bytes.into())
}

/// Checks what every version has in the same place: magic, length, checksum; then the version.
fn check_frame(bytes: &[u8]) -> Result<(&[u8], u16), RejectReason> {
    let actual = bytes.len() as u64;
    if !bytes.starts_with(&MAGIC) {
        return Err(match MAGIC.starts_with(bytes) {
            true => RejectReason::Truncated {
                actual,
                expected: HEADER_BYTES as u64,
            },
            false => RejectReason::NotAManifest,
        });
    }
    let expected = (HEADER_BYTES + HASH_BYTES) as u64;
    let Some((body, checksum)) = bytes.split_last_chunk::<HASH_BYTES>() else {
        return Err(RejectReason::Truncated { actual, expected });
    };
    let mut reader = Reader::new(bytes);
    reader.take(MAGIC.len(), "magic")?;
    let version = reader.u16("version")?;
    reader.take(22, "header")?;
    let announced = reader.u64("length")?;
    if actual < expected.max(announced) {
        let expected = expected.max(announced);
        return Err(RejectReason::Truncated { actual, expected });
    }
    if blake3::hash(body) != blake3::Hash::from_bytes(*checksum) {
        return Err(RejectReason::ChecksumMismatch);
    }
    if !(VERSION_OLDEST..=VERSION).contains(&version) {
        return Err(RejectReason::UnknownVersion { version });
    }
    match announced == actual {
        true => Ok((body, version)),
        false => Err(malformed("length")),
    }
}

fn kind_flags(kind: ImageKind) -> u16 {
    match kind {
        ImageKind::Final => 0,
        ImageKind::Checkpoint => FLAG_CHECKPOINT,
    }
}

/// `count` items of at least `min_bytes` each; the count is held against what is there.
fn read_all<T>(
    reader: &mut Reader<'_>,
    count: usize,
    min_bytes: usize,
    what: &'static str,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, RejectReason>,
) -> Result<Vec<T>, RejectReason> {
    if count > reader.left() / min_bytes {
        return Err(malformed(what));
    }
    (0..count).map(|_| read(reader)).collect()
}

fn read_pack(reader: &mut Reader<'_>, newest: CommitId) -> Result<Pack, RejectReason> {
    let commit = CommitId {
        incarnation: Incarnation(reader.u64("pack's incarnation")?),
        generation: reader.u64("pack's generation")?,
    };
    if commit > newest {
        return Err(malformed("pack that is newer than the manifest"));
    }
    let number = reader.u32("pack's number")?;
    let bytes = reader.u64("pack's length")?;
    let id = PackId { commit, number };
    Ok(Pack { id, bytes })
}

/// A file's name and its mode.
fn read_file(reader: &mut Reader<'_>, version: u16) -> Result<(Vec<u8>, u16), RejectReason> {
    let what = "file's name";
    if version < 4 {
        let name = reader.name(FILE_NAME_MAX_BYTES, what)?;
        return Ok((name.into_bytes(), FILE_MODE_DEFAULT));
    }
    let name = reader.bytes(FILE_NAME_MAX_BYTES, what)?.to_vec();
    match reader.u16("file's mode")? {
        mode if mode & !FILE_MODE_BITS == 0 => Ok((name, mode)),
        _ => Err(malformed("file's mode")),
    }
}

fn read_stream(
    reader: &mut Reader<'_>,
    version: u16,
    chunk_bytes: u32,
    packs: &[Pack],
) -> Result<Stream, RejectReason> {
    let bytes = reader.u64("stream's length")?;
    let count = usize::try_from(bytes.div_ceil(chunk_bytes.into()))
        .map_err(|_| malformed("stream's length"))?;
    let mut index = 0;
    let min_bytes = match version {
        1 => CHUNK_REF_BYTES_1,
        _ => CHUNK_REF_BYTES,
    };
    let chunks = read_all(reader, count, min_bytes, "chunks", |reader| {
        let len = chunk_len(bytes, chunk_bytes, index);
        let (pack, offset) = (reader.u32("chunk's pack")?, reader.u64("chunk's offset")?);
        let (stored, coding) = match version {
            1 => (len as u32, Coding::Raw),
            _ => read_stored(reader, len)?,
        };
        let chunk = ChunkRef {
            pack,
            offset,
            stored,
            coding,
            hash: reader.hash("chunk's hash")?,
        };
        let end = chunk.offset.checked_add(stored.into());
        let pack = packs.get(chunk.pack as usize);
        if pack.is_none_or(|pack| end.is_none_or(|end| end > pack.bytes)) {
            return Err(malformed("chunk outside its pack"));
        }
        index += 1;
        Ok(chunk)
    })?;
    Ok(Stream { bytes, chunks })
}

/// How many bytes a chunk of `len` has in its pack, and how they are to be read.
fn read_stored(reader: &mut Reader<'_>, len: u64) -> Result<(u32, Coding), RejectReason> {
    let word = reader.u32("chunk's stored length")?;
    let stored = word & ((1 << STORED_LENGTH_BITS) - 1);
    let coding = Coding::from_code(word >> STORED_LENGTH_BITS);
    let fits = match coding {
        Some(Coding::Raw) => u64::from(stored) == len,
        Some(_) => stored > 0 && u64::from(stored) < len,
        None => false,
    };
    match coding {
        Some(coding) if fits => Ok((stored, coding)),
        _ => Err(malformed("chunk's stored length")),
    }
}

fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    put_u16(out, name.len() as u16);
    out.extend_from_slice(name.as_bytes());
}

fn put_stream(out: &mut Vec<u8>, stream: &Stream) {
    put_u64(out, stream.bytes);
    for chunk in &stream.chunks {
        put_u32(out, chunk.pack);
        put_u64(out, chunk.offset);
        put_u32(
            out,
            chunk.stored | (chunk.coding as u32) << STORED_LENGTH_BITS,
        );
        out.extend_from_slice(&chunk.hash);
    }
}
