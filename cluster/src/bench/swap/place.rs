//! Where state is swapped to, and the plainest way to keep bytes there.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use praas_runtime::swap::{Storage, StorageUrl};

use super::{SwapOptions, timed};
use crate::bench::BenchError;
use crate::storage::storage_open;

/// What a plain writer hands to the kernel at once, as `dd bs=1M` does.
const BLOCK_BYTES: usize = 1 << 20;

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
    File { root: PathBuf, plain: PathBuf },
}

impl Place {
    /// Starts what it needs; `None`, told aloud, if that cannot be had.
    pub(super) fn start(
        kind: Kind,
        _options: &SwapOptions,
        folder: &Path,
    ) -> Result<Option<Self>, BenchError> {
        Ok(match kind {
            Kind::File => Some(Self::File {
                root: folder.join("storage"),
                plain: folder.join("plain"),
            }),
            Kind::Redis | Kind::S3 => {
                eprintln!("SKIP {}: it is not measured yet", kind.name());
                None
            }
        })
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::File { .. } => Kind::File,
        }
    }

    pub(super) fn url(&self) -> StorageUrl {
        match self {
            Self::File { root, .. } => StorageUrl::file(root),
        }
    }

    /// Opens the storage, as a host does at its start.
    pub(super) fn storage(&self) -> Result<Arc<dyn Storage>, BenchError> {
        let storage = storage_open(&self.url()).map_err(BenchError::Storage)?;
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
        }
    }

    /// Keeps bytes in the plainest way, gets them back into memory of their own, and deletes them:
    /// how long the former two took.
    pub(super) fn plain(&mut self, state: &[&[u8]]) -> Result<(Duration, Duration), BenchError> {
        match self {
            Self::File { plain, .. } => file_plain(plain, state),
        }
    }
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
