//! Swap: a process's state, messages, results and files go to storage, and come back.
//!
//! ```text
//!   ProcessImage --chunks of 256 KiB--> packs --hashes--> manifest       (swap_out)
//!        ^                                                   |
//!        +------- each chunk read in place, and hashed <-----+           (swap_in)
//! ```
//!
//! A commit writes packs first and one manifest last, all of them new objects: nothing is ever
//! overwritten or renamed. The highest manifest, by incarnation and then generation, of which
//! every byte verifies is the truth. docs/swap.md has the format to the byte, the protocol, and
//! why a crash at any point leaves a whole generation.

use praas_transport::wire::Incarnation;
use praas_transport::{Buf, PoolExhausted};
use serde::{Deserialize, Serialize};

mod base;
mod bytes;
mod compress;
mod lazy;
mod manifest;
mod pack;
mod reader;
mod sections;
mod storage;
mod through;
mod url;
mod writer;

#[cfg(test)]
mod tests;

pub use base::Base;
pub use compress::Compression;
#[doc(hidden)]
pub use compress::fuzz_chunk;
pub use lazy::swap_in_lazily;
pub use reader::{Heir, Loaded, Rejected, swap_in};
#[doc(hidden)]
pub use sections::fuzz_sections;
pub(crate) use sections::{
    decode_sessions as sessions_decode, encode_sessions as sessions_encode, mailbox_decode,
    mailbox_encode,
};
pub use storage::{
    Begun, COMPONENT_MAX_BYTES, COMPONENTS_MAX, DirStorage, Storage, StorageError, name_check,
    name_encode, prefix_check, process_prefix,
};
pub use through::{THROUGH_ENTRIES_MAX, Through, ThroughError, ThroughId};
#[doc(hidden)]
pub use through::{ThroughWriter, fuzz_through};
pub use url::{StorageUrl, StorageUrlError, URL_MAX_BYTES, storage_open};
pub use writer::{Committed, swap_out, swap_out_on, swap_out_with};

use crate::files::ImageFile;
use crate::invocation::SessionImage;
use crate::mailbox::MailboxImage;
use crate::state::ObjectMeta;
use manifest::{CommitId, Manifest, Pack, PackId};

/// What a process went on to do after its image was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// Nothing: it was swapped out, and has ended. What the image does not know of never ran.
    Final,
    /// It served on. Whether what the image does not know of has run is unknown.
    Checkpoint,
}

/// Everything of a process that outlives its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessImage {
    /// The application, up to 255 bytes.
    pub application: String,
    /// The process's name in it, up to 255 bytes.
    pub process: String,
    /// Who swaps out; after [`swap_in`], who did.
    pub incarnation: Incarnation,
    /// Whether the process ended with it.
    pub kind: ImageKind,
    /// All writes of the state up to this version are in it, or superseded in it; so it covers
    /// what was written through before it was made.
    pub state_version: u64,
    /// State objects; keys have up to 255 bytes. The length in an object's meta is taken from the
    /// object itself.
    pub state: Vec<(String, Buf, ObjectMeta)>,
    /// Messages not yet taken.
    pub mailbox: MailboxImage,
    /// Results not yet acknowledged.
    pub sessions: Vec<SessionImage>,
    /// Files; names have up to 4096 bytes and mean nothing here.
    pub files: Vec<ImageFile>,
}

/// How processes are swapped out. What is read back follows from the data itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwapConfig {
    /// Bytes per chunk, a power of two from 64 to 16 MiB; default 256 KiB.
    pub chunk_bytes: u32,
    /// Bytes after which another pack begins, at least `chunk_bytes`; default 32 MiB. Each thread
    /// has up to as much memory for what it compresses.
    pub pack_max_bytes: u64,
    /// How chunks are compressed: `lz4` (the default), `zstd` or `none`.
    pub compression: Compression,
    /// How hard Zstandard tries, from 1 to 22; default 3.
    pub zstd_level: i32,
    /// Threads that hash, compress and write, at most 256; zero, the default, is one for each CPU
    /// that the process may use, and one more.
    pub threads: u32,
    /// Percent of a pack that must still be referred to; what lives in one of less is written anew
    /// by the next commit. From 0 (packs stay for as long as anything in them lives) to 100;
    /// default 50.
    pub pack_live_min_percent: u32,
    /// Packs of less than half of `pack_max_bytes` that an image may be spread over; with one more
    /// the next commit writes anew what is in them. Default 32.
    pub small_packs_max: u32,
}

impl SwapConfig {
    fn chunk_bytes_is_valid(bytes: u32) -> bool {
        bytes.is_power_of_two() && (64..=16 << 20).contains(&bytes)
    }
}

impl Default for SwapConfig {
    fn default() -> Self {
        Self {
            chunk_bytes: 256 << 10,
            pack_max_bytes: 32 << 20,
            compression: Compression::default(),
            zstd_level: 3,
            threads: 0,
            pack_live_min_percent: 50,
            small_packs_max: 32,
        }
    }
}

/// Why a process could not be swapped out or in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwapError {
    /// A newer incarnation of the process has been here: this one is not to write any more.
    #[error("incarnation {ours} of {process} is fenced: incarnation {newer} has written")]
    Fenced {
        /// The process.
        process: String,
        /// Who wanted to write.
        ours: Incarnation,
        /// The newest that has written.
        newer: Incarnation,
    },
    /// The image or the configuration passes a limit of the format.
    #[error("cannot swap out {process}: {what}")]
    BadImage {
        /// The process.
        process: String,
        /// What is wrong.
        what: String,
    },
    /// A part of the state is in storage only, and not where this commit could leave it. Nothing was
    /// written; once it was fetched the commit can be tried again.
    #[error("cannot swap out {process}: object '{key}' is not fetched yet")]
    Absent {
        /// The process.
        process: String,
        /// The object.
        key: String,
    },
    /// The storage failed.
    #[error("cannot swap {process}")]
    Storage {
        /// The process.
        process: String,
        /// How.
        source: StorageError,
    },
    /// There is no memory for a part of the process. The stored generation may be whole.
    #[error("cannot swap in {process}: no memory for {part}")]
    Pool {
        /// The process.
        process: String,
        /// Which part.
        part: String,
        /// The pool's limit.
        source: PoolExhausted,
    },
    /// There is no memory to decompress a part of the process. The stored generation may be whole.
    #[error("cannot swap in {process}: no memory to decompress {part}")]
    Decompressor {
        /// The process.
        process: String,
        /// Which part.
        part: String,
    },
    /// There are generations, and not one of them verifies.
    #[error("cannot swap in {process}: none of its {} generations verifies", .rejected.len())]
    NoneVerifies {
        /// The process.
        process: String,
        /// All of them, the highest first.
        rejected: Vec<Rejected>,
    },
}

impl SwapError {
    /// Whether all that is there are manifests that are cut off: of commits that never ended, for
    /// one that has ended is durable as a whole. If no commit is known to have ended either, then
    /// there is no image.
    pub fn is_of_unfinished_commits(&self) -> bool {
        let Self::NoneVerifies { rejected, .. } = self else {
            return false;
        };
        rejected.iter().all(Rejected::is_cut_off)
    }
}

/// Why a generation is not loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RejectReason {
    /// The manifest is not there any more.
    #[error("is missing")]
    Missing,
    /// The first bytes are other than a manifest's.
    #[error("is no manifest")]
    NotAManifest,
    /// The manifest is cut off.
    #[error("truncated: {actual} of at least {expected} bytes")]
    Truncated {
        /// Bytes that are there.
        actual: u64,
        /// Bytes that it must have.
        expected: u64,
    },
    /// The manifest is longer than any that is written.
    #[error("too large: {bytes} bytes")]
    TooLarge {
        /// Its length.
        bytes: u64,
    },
    /// The manifest's bytes are not those that were written.
    #[error("checksum mismatch")]
    ChecksumMismatch,
    /// The manifest is whole, and of a version that is not known here.
    #[error("unknown version {version}")]
    UnknownVersion {
        /// The version.
        version: u16,
    },
    /// The bytes are whole, and no writer leaves such.
    #[error("malformed: {what}")]
    Malformed {
        /// The field.
        what: &'static str,
    },
    /// The manifest is of another process.
    #[error("wrong process: it is of '{process}' of application '{application}'")]
    WrongProcess {
        /// The application in the manifest.
        application: String,
        /// The process in the manifest.
        process: String,
    },
    /// The manifest's name says another incarnation or generation than its content.
    #[error("wrong name: it is {name}")]
    WrongName {
        /// The name that it was written under.
        name: String,
    },
    /// A pack is not there.
    #[error("missing pack {pack}")]
    MissingPack {
        /// The pack.
        pack: String,
    },
    /// A pack is shorter or longer than it was written.
    #[error("{pack}: has {actual} bytes, not {expected}")]
    PackLength {
        /// The pack.
        pack: String,
        /// Its length.
        actual: u64,
        /// The length that it was written with.
        expected: u64,
    },
    /// A chunk's bytes are none that a compressor leaves.
    #[error("chunk {chunk} of {part} in {pack}: cannot be decompressed")]
    Undecodable {
        /// Counts the chunks of the part from zero.
        chunk: usize,
        /// The part, as in a hash mismatch.
        part: String,
        /// The pack.
        pack: String,
    },
    /// A chunk's bytes are not those that were written.
    #[error("chunk {chunk} of {part} in {pack}: hash mismatch")]
    HashMismatch {
        /// Counts the chunks of the part from zero.
        chunk: usize,
        /// "object 'x'", "file 'x'", "message body 3", "the mailbox" or "the sessions".
        part: String,
        /// The pack.
        pack: String,
    },
}

/// Which incarnation has written what is stored under a name, of which this is the last component;
/// `None` if nobody here writes such.
pub fn object_writer(component: &str) -> Option<Incarnation> {
    let manifest = CommitId::from_manifest_name(component).map(|id| id.incarnation);
    let pack = || PackId::from_name(component).map(|pack| pack.commit.incarnation);
    let through = || ThroughId::from_name(component).map(|id| id.incarnation);
    let writer = || through::writer_from_name(component);
    manifest.or_else(pack).or_else(through).or_else(writer)
}

/// What lies under a process's prefix, in ascending order; other names are not ours.
#[derive(Debug)]
struct Listing {
    manifests: Vec<CommitId>,
    packs: Vec<PackId>,
    /// What was written through.
    through: Vec<ThroughId>,
    /// Who may write through, or might.
    writers: Vec<Incarnation>,
}

impl Listing {
    fn read(storage: &dyn Storage, prefix: &str) -> Result<Self, StorageError> {
        let names = storage.list(prefix)?;
        let ours = || names.iter().filter_map(|name| name.strip_prefix(prefix));
        let mut manifests: Vec<_> = ours().filter_map(CommitId::from_manifest_name).collect();
        let mut packs: Vec<_> = ours().filter_map(PackId::from_name).collect();
        let mut through: Vec<_> = ours().filter_map(ThroughId::from_name).collect();
        let mut writers: Vec<_> = ours().filter_map(through::writer_from_name).collect();
        manifests.sort_unstable();
        packs.sort_unstable();
        through.sort_unstable();
        writers.sort_unstable();
        Ok(Self {
            manifests,
            packs,
            through,
            writers,
        })
    }

    /// Leaves out what incarnations below `life` have left.
    fn lives_forget(&mut self, life: Incarnation) {
        self.manifests.retain(|id| id.incarnation >= life);
        self.through.retain(|id| id.incarnation >= life);
    }

    /// Whether the process has written something through, or was about to.
    fn is_through(&self) -> bool {
        !self.through.is_empty() || !self.writers.is_empty()
    }

    /// The highest incarnation that has left something, whole or not.
    fn newest(&self) -> Option<Incarnation> {
        let manifests = self.manifests.last().map(|newest| newest.incarnation);
        let packs = self.packs.last().map(|pack| pack.commit.incarnation);
        let through = self.through.last().map(|through| through.incarnation);
        let writers = self.writers.last().copied();
        manifests.max(packs).max(through).max(writers)
    }

    fn has(&self, pack: &Pack) -> bool {
        self.packs.binary_search(&pack.id).is_ok()
    }
}

/// Decodes any bytes as a manifest, for fuzzing.
///
/// # Panics
/// What decodes does not encode to the same bytes, or, if it is of an older version, to what means
/// the same.
#[doc(hidden)]
pub fn fuzz_manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        let encoded = manifest.encode();
        if encoded[8..10] == bytes[8..10] {
            assert_eq!(encoded, bytes, "two encodings of one manifest");
        }
        let again = Manifest::decode(&encoded);
        assert!(
            again.is_ok_and(|again| again == manifest),
            "another manifest"
        );
    }
}
