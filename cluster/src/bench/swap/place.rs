//! Where state is swapped to, and the plainest way to keep bytes there.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use praas_runtime::swap::{Storage, StorageUrl, StorageUrlError};
use praas_transport::TransportKind;

#[cfg(feature = "s3")]
use super::s3::S3;
use super::{SwapOptions, timed};
use crate::bench::BenchError;
#[cfg(feature = "s3")]
use crate::bench::reduction::program_find;
use crate::bench::reduction::{Redis, redis_find};
use crate::storage::storage_open;

/// What a plain writer hands to the kernel at once, as `dd bs=1M` does.
const BLOCK_BYTES: usize = 1 << 20;

/// Bytes of the largest value that a Redis server takes.
const PIECE_BYTES: usize = 512 << 20;

/// A kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// A folder.
    File,
    /// A Redis server of our own.
    Redis,
    /// An S3 server of our own.
    S3,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Redis => "redis",
            Self::S3 => "s3",
        }
    }
}

/// A place, and the server that it may need.
pub(super) enum Place {
    File {
        root: PathBuf,
        plain: PathBuf,
    },
    Redis(Box<Redis>),
    #[cfg(feature = "s3")]
    S3(S3),
}

impl Place {
    /// Starts what it needs; `None`, told aloud, if that cannot be had.
    pub(super) fn start(
        kind: Kind,
        options: &SwapOptions,
        folder: &Path,
    ) -> Result<Option<Self>, BenchError> {
        let built = match kind {
            Kind::File => true,
            Kind::Redis => cfg!(feature = "redis"),
            Kind::S3 => cfg!(feature = "s3"),
        };
        if !built {
            eprintln!("SKIP {}: it is not in this build", kind.name());
            return Ok(None);
        }
        Ok(match kind {
            Kind::File => Some(Self::File {
                root: folder.join("storage"),
                plain: folder.join("plain"),
            }),
            Kind::Redis => match redis_find(options.redis.as_deref()) {
                // Whose CPU is whose is not said: the server has one thread, and swap several.
                Some(program) => Some(Self::Redis(Box::new(Redis::start(
                    &program,
                    TransportKind::Unix,
                    None,
                )?))),
                None => None,
            },
            #[cfg(feature = "s3")]
            Kind::S3 => match s3_find(options.s3.as_deref()) {
                Some(program) => Some(Self::S3(S3::start(&program, &folder.join("s3"))?)),
                None => None,
            },
            #[cfg(not(feature = "s3"))]
            Kind::S3 => None,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::File { .. } => Kind::File,
            Self::Redis(_) => Kind::Redis,
            #[cfg(feature = "s3")]
            Self::S3(_) => Kind::S3,
        }
    }

    pub(super) fn url(&self) -> Result<StorageUrl, BenchError> {
        match self {
            Self::File { root, .. } => Ok(StorageUrl::file(root)),
            Self::Redis(redis) => {
                let url = format!("redis+unix://{}?db=0", redis.socket().display());
                let url = url.parse();
                url.map_err(|error: StorageUrlError| BenchError::Storage(error.into()))
            }
            #[cfg(feature = "s3")]
            Self::S3(server) => server.url(),
        }
    }

    /// Opens the storage, as a host does at its start.
    pub(super) fn storage(&self) -> Result<Arc<dyn Storage>, BenchError> {
        let storage = storage_open(&self.url()?).map_err(BenchError::Storage)?;
        storage.check().map_err(BenchError::Storage)?;
        Ok(storage)
    }

    /// Deletes all that swapping has left.
    pub(super) fn clear(&mut self) -> Result<(), BenchError> {
        match self {
            Self::File { root, .. } => match fs::remove_dir_all(root) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(BenchError::system("clear the folder")(error))
                }
                _ => Ok(()),
            },
            Self::Redis(redis) => redis.clear_all(),
            #[cfg(feature = "s3")]
            Self::S3(server) => server.clear(),
        }
    }

    /// Keeps bytes in the plainest way, gets them back into memory of their own, and deletes them:
    /// how long the former two took.
    pub(super) fn plain(&mut self, state: &[&[u8]]) -> Result<(Duration, Duration), BenchError> {
        match self {
            Self::File { plain, .. } => file_plain(plain, state),
            Self::Redis(redis) => redis_plain(redis, state),
            #[cfg(feature = "s3")]
            Self::S3(server) => server.plain(state),
        }
    }
}

/// The S3 server to start: the one named, or the path's.
#[cfg(feature = "s3")]
fn s3_find(named: Option<&str>) -> Option<PathBuf> {
    let found = match named {
        Some("none") => return None,
        Some(path) => Some(path.into()),
        None => program_find("s3s-fs"),
    };
    if found.is_none() {
        eprintln!("SKIP s3: there is no s3s-fs; --s3 names one");
    }
    found
}

/// SET and GET, in pieces as large as a value may be.
fn redis_plain(redis: &mut Redis, state: &[&[u8]]) -> Result<(Duration, Duration), BenchError> {
    let pieces = || {
        state
            .iter()
            .flat_map(|object| object.chunks(PIECE_BYTES))
            .enumerate()
    };
    let set = || pieces().try_for_each(|(number, piece)| redis.piece_set(number, piece));
    let (out, ()) = timed(set)?;
    let get = || {
        let mut number = 0..;
        let got = state.iter().map(|object| {
            let mut bytes = vec![0; object.len()];
            let mut pieces = bytes.chunks_mut(PIECE_BYTES).zip(&mut number);
            pieces.try_for_each(|(piece, number)| redis.piece_get(number, piece))?;
            Ok(bytes)
        });
        got.collect::<Result<Vec<_>, BenchError>>()
    };
    let (back, bytes) = timed(get)?;
    drop(bytes);
    redis.clear_all()?;
    Ok((out, back))
}

/// One file: written in blocks and synced, then read into one piece of memory for each object.
fn file_plain(path: &Path, state: &[&[u8]]) -> Result<(Duration, Duration), BenchError> {
    let write = || {
        let mut file = File::create(path)?;
        for object in state {
            for block in object.chunks(BLOCK_BYTES) {
                file.write_all(block)?;
            }
        }
        file.sync_all()
    };
    let (out, ()) = timed(write).map_err(BenchError::system("write a plain file"))?;
    let read = || {
        let mut file = File::open(path)?;
        let read = state.iter().map(|object| {
            let mut bytes = vec![0; object.len()];
            file.read_exact(&mut bytes).map(|()| bytes)
        });
        read.collect::<std::io::Result<Vec<_>>>()
    };
    let (back, bytes) = timed(read).map_err(BenchError::system("read a plain file"))?;
    drop(bytes);
    fs::remove_file(path).map_err(BenchError::system("delete a plain file"))?;
    Ok((out, back))
}
