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
use super::reader::{Heir, Loaded, Part, ReadError, Source, load_newest, load_part};
use super::through::{Newer, Overlay};
use super::{Storage, SwapError};
use crate::state::{AbsentObjects, FetchError, ObjectMeta, ObjectSource};

/// Objects below this are read at once, many by one read.
const SMALL_BELOW_BYTES: u64 = 64 << 10;

/// As [`swap_in`](super::swap_in), but if the state objects have `min_bytes` or more, those of
/// 64 KiB and more are left for later. It is for an `heir`, which is to be the process: it begins from
/// nothing that an earlier life has left, and if the process has written objects through, others may
/// no more from then on.
///
/// # Errors
/// As [`swap_in`](super::swap_in).
pub fn swap_in_lazily(
    storage: &Arc<dyn Storage>,
    pool: &BufPool,
    (application, process): (&str, &str),
    heir: Heir,
    min_bytes: u64,
) -> Result<Option<(Loaded, Option<AbsentObjects>)>, SwapError> {
    let load = |source: &Source<'_>, manifest: &Arc<Manifest>, mut overlay: Overlay| {
        let state = manifest.objects.iter().map(|object| object.stream.bytes);
        let small = |bytes: u64| bytes < SMALL_BELOW_BYTES;
        if state.sum::<u64>() < min_bytes {
            let mut image = load_part(source, manifest, pool, |_| true)?;
            drop(overlay.apply(source, pool, &mut image, |_| false)?);
            return Ok((image, overlay, None));
        }
        let mut image = load_part(source, manifest, pool, small)?;
        let newer = overlay.apply(source, pool, &mut image, |bytes| !small(bytes))?;
        let later = manifest.objects.iter().enumerate();
        let later = later.filter(|(_, object)| !small(object.stream.bytes));
        let later = later.filter(|(_, object)| !newer.keys.contains(&object.key));
        let objects = later.map(|(number, object)| {
            let meta = ObjectMeta {
                version: object.version,
                written_unix_ms: object.written_unix_ms,
                bytes: object.stream.bytes,
            };
            (object.key.clone(), meta, number)
        });
        let first = manifest.objects.len();
        let through = newer.later.iter().enumerate();
        let through = through
            .map(|(number, newer)| (newer.entry.key.clone(), newer.entry.meta, first + number));
        let absent = AbsentObjects {
            objects: objects.chain(through).collect(),
            source: Arc::new(Stored {
                storage: Arc::clone(storage),
                prefix: source.prefix.clone(),
                manifest: Arc::clone(manifest),
                through: newer.later,
                pool: pool.clone(),
            }),
        };
        Ok((image, overlay, Some(absent)))
    };
    load_newest(&**storage, (application, process), Some(heir), load)
}

/// Where the objects of a generation are.
struct Stored {
    storage: Arc<dyn Storage>,
    prefix: String,
    manifest: Arc<Manifest>,
    /// What was written through, numbered after the objects of the manifest.
    through: Vec<Newer>,
    pool: BufPool,
}

impl ObjectSource for Stored {
    fn fetch(&self, number: usize) -> Result<Buf, FetchError> {
        let source = Source {
            storage: &*self.storage,
            prefix: self.prefix.clone(),
        };
        let objects = &self.manifest.objects;
        let read = match objects.get(number) {
            Some(object) => {
                let stream = [(Part::Object(&object.key), &object.stream)];
                let read = source.streams_read(&self.manifest, &stream, &self.pool);
                read.map(|mut bufs| bufs.pop().unwrap_or_default())
            }
            None => source.through_read(&self.through[number - objects.len()], &self.pool),
        };
        read.map_err(|error| match error {
            ReadError::Rejected(reason) => FetchError::Corrupt(reason.to_string()),
            ReadError::Storage(error) => FetchError::Unavailable(causes(&error)),
            ReadError::Pool(_, error) => FetchError::Pool(error),
            ReadError::Decompressor(part) => {
                FetchError::Unavailable(format!("no memory to decompress {part}"))
            }
        })
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
