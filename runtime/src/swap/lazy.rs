//! Swapping in lazily: what a process needs to serve is read at once, large objects later.
//!
//! ```text
//!   manifest, checked packs --> mailbox, sessions, files, small objects   read and verified now
//!                           \-> objects of 64 KiB and more                each when it is wanted
//! ```
//!
//! So a generation is taken for whole if its manifest verifies and its packs are there with their
//! lengths: what a chunk holds is found out when it is read. There is no older generation to go
//! back to then, since the process has served from this one; so a chunk that does not verify is an
//! error of its object.
//!
//! What is read from stays: only commits delete, and each refers to the packs in which something
//! lies that is not here yet.

use std::error::Error;
use std::sync::Arc;

use praas_transport::{Buf, BufPool};

use super::manifest::Manifest;
use super::reader::{Loaded, Part, ReadError, Source, load_newest, load_part};
use super::{Storage, SwapError, process_prefix};
use crate::state::{AbsentObjects, FetchError, ObjectMeta, ObjectSource};

/// Objects below this are read at once, many by one read.
const SMALL_BELOW_BYTES: u64 = 64 << 10;

/// As [`swap_in`](super::swap_in), but if the state objects have `min_bytes` or more, those of
/// 64 KiB and more are left for later.
///
/// # Errors
/// As [`swap_in`](super::swap_in).
pub fn swap_in_lazily(
    storage: &Arc<dyn Storage>,
    pool: &BufPool,
    application: &str,
    process: &str,
    min_bytes: u64,
) -> Result<Option<(Loaded, Option<AbsentObjects>)>, SwapError> {
    let prefix = process_prefix(application, process);
    load_newest(&**storage, application, process, |source, manifest| {
        let state = manifest.objects.iter().map(|object| object.stream.bytes);
        if state.sum::<u64>() < min_bytes {
            let image = load_part(source, manifest, pool, |_| true)?;
            return Ok((image, None));
        }
        let small = |bytes: u64| bytes < SMALL_BELOW_BYTES;
        let image = load_part(source, manifest, pool, small)?;
        let numbers = manifest.objects.iter().enumerate();
        let later = numbers.filter(|(_, object)| !small(object.stream.bytes));
        let objects = later.map(|(number, object)| {
            let meta = ObjectMeta {
                version: object.version,
                written_unix_ms: object.written_unix_ms,
                bytes: object.stream.bytes,
            };
            (object.key.clone(), meta, number)
        });
        let absent = AbsentObjects {
            objects: objects.collect(),
            source: Arc::new(Stored {
                storage: Arc::clone(storage),
                prefix: prefix.clone(),
                manifest: Arc::clone(manifest),
                pool: pool.clone(),
            }),
        };
        Ok((image, Some(absent)))
    })
}

/// Where the objects of a generation are.
struct Stored {
    storage: Arc<dyn Storage>,
    prefix: String,
    manifest: Arc<Manifest>,
    pool: BufPool,
}

impl ObjectSource for Stored {
    fn fetch(&self, number: usize) -> Result<Buf, FetchError> {
        let source = Source {
            storage: &*self.storage,
            prefix: self.prefix.clone(),
        };
        let object = &self.manifest.objects[number];
        let stream = [(Part::Object(&object.key), &object.stream)];
        let read = source.streams_read(&self.manifest, &stream, &self.pool);
        let mut bufs = read.map_err(|error| match error {
            ReadError::Rejected(reason) => FetchError::Corrupt(reason.to_string()),
            ReadError::Storage(error) => FetchError::Unavailable(causes(&error)),
            ReadError::Pool(_, error) => FetchError::Pool(error),
            ReadError::Decompressor(part) => {
                FetchError::Unavailable(format!("no memory to decompress {part}"))
            }
        })?;
        Ok(bufs.pop().unwrap_or_default())
    }
}

/// An error and its causes: what is kept of it is a text.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
