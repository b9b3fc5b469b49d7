//! Chunks as they lie in packs: as they are, or compressed where that saves something.
//!
//! A chunk's hash is of its bytes as they are, so what decompression makes of damaged bytes is
//! found out like any other damage. Decompressors write into memory of the chunk's length, and
//! trust nothing: LZ4 is safe Rust, Zstandard gets a bound.

use serde::{Deserialize, Serialize};
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

/// How chunks are compressed before they are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4: a core compresses some hundred megabytes a second, and a multiple if there is little
    /// to be had.
    #[default]
    Lz4,
    /// Zstandard at `zstd_level`: smaller and slower.
    Zstd,
}

/// How the bytes of a chunk lie in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Coding {
    Raw = 0,
    Lz4 = 1,
    Zstd = 2,
}

impl Coding {
    pub(super) fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Raw,
            1 => Self::Lz4,
            2 => Self::Zstd,
            _ => return None,
        })
    }
}

/// Chunks of fewer bytes are stored as they are: there is nothing to be had.
const WORTHWHILE_MIN_BYTES: usize = 64;
/// Chunks of more bytes are sampled first.
const SAMPLED_MIN_BYTES: usize = 64 << 10;
const SAMPLE_BYTES: usize = 4 << 10;

/// Compresses chunks one after the other.
pub(super) struct Compressor {
    coding: Coding,
    zstd: Option<CCtx<'static>>,
    out: Vec<u8>,
}

impl Compressor {
    pub(super) fn new(compression: Compression, zstd_level: i32) -> Self {
        let (coding, zstd) = match compression {
            Compression::None => (Coding::Raw, None),
            Compression::Lz4 => (Coding::Lz4, None),
            // Without its memory chunks stay as they are.
            Compression::Zstd => match compressor_make(zstd_level) {
                Some(zstd) => (Coding::Zstd, Some(zstd)),
                None => (Coding::Raw, None),
            },
        };
        Self {
            coding,
            zstd,
            out: Vec::new(),
        }
    }

    /// The compressed bytes, and how; `None` if a sixteenth or less would be saved.
    pub(super) fn compress(&mut self, chunk: &[u8]) -> Option<(Coding, &[u8])> {
        if self.coding == Coding::Raw || chunk.len() < WORTHWHILE_MIN_BYTES {
            return None;
        }
        if self.coding == Coding::Lz4 && chunk.len() > SAMPLED_MIN_BYTES && !self.samples(chunk) {
            return None;
        }
        let bytes = self.run(chunk)?;
        let most = chunk.len() - chunk.len() / 16;
        (bytes < most).then(|| (self.coding, &self.out[..bytes]))
    }

    /// Whether samples of a chunk compress: LZ4 takes its time over what does not.
    fn samples(&mut self, chunk: &[u8]) -> bool {
        let last = chunk.len() - SAMPLE_BYTES;
        let mut bytes = 0;
        for at in [0, last / 2, last] {
            match self.run(&chunk[at..at + SAMPLE_BYTES]) {
                Some(compressed) => bytes += compressed,
                None => return false,
            }
        }
        bytes < 3 * SAMPLE_BYTES / 16 * 15
    }

    /// Compresses into `out`: how many bytes.
    fn run(&mut self, bytes: &[u8]) -> Option<usize> {
        let room = match self.coding {
            Coding::Raw => return None,
            Coding::Lz4 => lz4_flex::block::get_maximum_output_size(bytes.len()),
            Coding::Zstd => zstd_safe::compress_bound(bytes.len()),
        };
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        match &mut self.zstd {
            None => lz4_flex::block::compress_into(bytes, &mut self.out).ok(),
            Some(zstd) => zstd.compress2(&mut self.out[..], bytes).ok(),
        }
    }
}

fn compressor_make(level: i32) -> Option<CCtx<'static>> {
    let mut zstd = CCtx::try_create()?;
    zstd.set_parameter(CParameter::CompressionLevel(level))
        .ok()?;
    Some(zstd)
}

/// Reads chunks back, one after the other.
#[derive(Default)]
pub(super) struct Decompressor {
    zstd: Option<DCtx<'static>>,
}

/// There is no memory for a decompressor: what a chunk holds is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoMemory;

impl Decompressor {
    /// Fills `into` from stored bytes; whether they were as many as it takes. What is there now is
    /// arbitrary if not, and not known to be right if so.
    pub(super) fn decompress(
        &mut self,
        coding: Coding,
        stored: &[u8],
        into: &mut [u8],
    ) -> Result<bool, NoMemory> {
        let read = match coding {
            Coding::Raw if stored.len() == into.len() => {
                into.copy_from_slice(stored);
                Some(stored.len())
            }
            Coding::Raw => None,
            Coding::Lz4 => lz4_flex::block::decompress_into(stored, into).ok(),
            Coding::Zstd => self.zstd()?.decompress(into, stored).ok(),
        };
        Ok(read == Some(into.len()))
    }

    fn zstd(&mut self) -> Result<&mut DCtx<'static>, NoMemory> {
        match &mut self.zstd {
            Some(zstd) => Ok(zstd),
            empty => Ok(empty.insert(zstd_make().ok_or(NoMemory)?)),
        }
    }
}

fn zstd_make() -> Option<DCtx<'static>> {
    #[cfg(test)]
    if tests::MEMORY_SHORT.get() {
        return None;
    }
    DCtx::try_create()
}

/// Decompresses arbitrary bytes as what a pack may hold; and whatever they are, they come back
/// once compressed.
///
/// # Panics
/// They do not.
#[doc(hidden)]
pub fn fuzz_chunk(bytes: &[u8]) {
    let mut decompressor = Decompressor::default();
    if let Some((first, stored)) = bytes.split_first() {
        let mut into = vec![0; usize::from(*first) * 17];
        for coding in [Coding::Raw, Coding::Lz4, Coding::Zstd] {
            let _ = decompressor.decompress(coding, stored, &mut into);
        }
    }
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let mut compressor = Compressor::new(compression, 3);
        if let Some((coding, stored)) = compressor.compress(bytes) {
            let mut into = vec![1; bytes.len()];
            assert_eq!(decompressor.decompress(coding, stored, &mut into), Ok(true));
            assert_eq!(into, bytes, "another chunk");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;
    use proptest::prelude::*;

    thread_local! {
        /// Whether this thread gets no memory for decompressors.
        pub(in crate::swap) static MEMORY_SHORT: Cell<bool> = const { Cell::new(false) };
    }

    #[test]
    fn what_does_not_compress_is_left_as_it_is() {
        let mut random = vec![0; 256 << 10];
        fastrand::Rng::with_seed(7).fill(&mut random);
        let mut mixed = random.clone();
        mixed[..100 << 10].fill(7);
        for compression in [Compression::Lz4, Compression::Zstd] {
            let mut compressor = Compressor::new(compression, 3);
            assert!(compressor.compress(&random).is_none());
            assert!(compressor.compress(&random[..40 << 10]).is_none());
            let (_, stored) = compressor.compress(&mixed).unwrap();
            assert!((150 << 10..180 << 10).contains(&stored.len()));
            let (_, stored) = compressor.compress(&mixed[..64 << 10]).unwrap();
            assert!(stored.len() < 1 << 10);
        }
        assert!(
            Compressor::new(Compression::None, 3)
                .compress(&mixed)
                .is_none()
        );
    }

    #[test]
    fn a_bomb_fills_no_more_than_there_is() {
        let zeros = vec![0; 1 << 20];
        for compression in [Compression::Lz4, Compression::Zstd] {
            let mut compressor = Compressor::new(compression, 19);
            let (coding, stored) = compressor.compress(&zeros).unwrap();
            let mut decompressor = Decompressor::default();
            for len in [0, 1, 1 << 10, (1 << 20) - 1, (1 << 20) + 1] {
                let mut into = vec![1; len];
                let whole = decompressor.decompress(coding, stored, &mut into);
                assert_eq!(whole, Ok(false), "{len}");
            }
            let whole = decompressor.decompress(coding, stored, &mut vec![1; 1 << 20]);
            assert_eq!(whole, Ok(true));
        }
    }

    /// What older compressors left is read for ever: the first byte is a seventeenth of the length.
    #[test]
    fn golden_chunks_are_read() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/chunk");
        let chunk: Vec<u8> = (0..17 * 17_u32).map(|at| (at / 23) as u8).collect();
        let codings = [("lz4", Compression::Lz4), ("zstd", Compression::Zstd)];
        for (name, compression) in codings {
            let path = format!("{golden}/{name}");
            let mut compressor = Compressor::new(compression, 3);
            let (coding, stored) = compressor.compress(&chunk).unwrap();
            if std::env::var_os("PRAAS_BLESS").is_some() {
                std::fs::create_dir_all(golden).unwrap();
                std::fs::write(&path, [&[17], stored].concat()).unwrap();
            }
            let stored = std::fs::read(&path).unwrap();
            let mut into = vec![0; 17 * usize::from(stored[0])];
            let whole = Decompressor::default().decompress(coding, &stored[1..], &mut into);
            assert_eq!(whole, Ok(true));
            assert_eq!(into, chunk, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_chunk(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..3000),
                proptest::collection::vec(0..4_u8, 0..3000),
            ],
        ) {
            fuzz_chunk(&bytes);
        }
    }
}
