//! Objects in a bucket of an object store that speaks S3.
//!
//! ```text
//!   put_new, small:  PUT, If-None-Match: *  ------------------------------> 200, 412, or no answer
//!   put_new, large:  POST uploads, PUT parts in parallel,
//!                    POST complete, If-None-Match: *  --------------------> 200, 412, or no answer
//!   no answer:       HEAD: is it there, and does it have the mark of this creation?
//! ```
//!
//! A server that takes no notice of `If-None-Match` would let one writer overwrite another: so it
//! is tried on an object that exists, and a server that fails the trial is refused.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use hyper::Method;
use hyper::body::Bytes;
use object_store::aws::AmazonS3;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    Attribute, Attributes, Error, GetOptions, GetRange, MultipartId, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload,
};
use praas_runtime::swap::{Storage, StorageError, StorageUrl, name_check, prefix_check};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::s3_client::{Options, WHOLE_LARGEST_BYTES, client};
use super::s3_http::PROBE_DAMAGED;
use super::{Pieces, nonce, prefix};

/// Threads that sign, send and receive; whoever calls is another.
const THREADS: usize = 2;
/// Parts that an upload may have.
const PARTS_MAX: u64 = 10_000;
/// The object on which exclusive creation is tried: no encoding of a name is this one.
const PROBE: &str = "~exclusive";
/// Objects that are no one's.
const PROBES: [&str; 2] = [PROBE, PROBE_DAMAGED];
/// What says which creation an object comes from.
const MARK: &str = "praas-creation";
/// How long a signed URL holds.
const SIGNED_FOR: Duration = Duration::from_secs(3600);
/// Milliseconds before a creation is tried again, doubled each time.
const AGAIN_MS: u64 = 50;
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Objects in a bucket.
pub struct S3Storage {
    /// Repeats what fails by itself.
    store: AmazonS3,
    /// Does not: whether a creation took place must be looked at first.
    creating: AmazonS3,
    runtime: Runtime,
    prefix: String,
    options: Options,
    scratch: Arc<Scratch>,
    exclusive: OnceLock<()>,
    exclusive_parts: OnceLock<()>,
}

/// Memory for what is sent. It is used again while there is more to send: fresh memory costs as much
/// as all that is done with it.
#[derive(Default)]
struct Scratch(Mutex<Idle>);

#[derive(Default)]
struct Idle {
    /// Creations that are under way.
    sending: usize,
    memory: Vec<Vec<u8>>,
}

/// Memory on loan.
struct Lent {
    bytes: Vec<u8>,
    scratch: Arc<Scratch>,
}

/// A creation that is under way.
struct Sending<'a>(&'a Scratch);

impl Scratch {
    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One piece of memory with all the bytes.
    fn gather(scratch: &Arc<Self>, slices: &[&[u8]]) -> Bytes {
        let mut bytes = scratch.lock().memory.pop().unwrap_or_default();
        bytes.clear();
        bytes.reserve(slices.iter().map(|slice| slice.len()).sum());
        for slice in slices {
            bytes.extend_from_slice(slice);
        }
        let scratch = Arc::clone(scratch);
        Bytes::from_owner(Lent { bytes, scratch })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut idle = self.scratch.lock();
        if idle.sending > 0 {
            idle.memory.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl<'a> Sending<'a> {
    fn new(scratch: &'a Scratch) -> Self {
        scratch.lock().sending += 1;
        Self(scratch)
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let mut idle = self.0.lock();
        idle.sending -= 1;
        if idle.sending == 0 {
            idle.memory = Vec::new();
        }
    }
}

/// What became of a creation that was not answered.
enum Found {
    Ours,
    Another,
    Nothing,
}

impl S3Storage {
    /// A bucket by its URL; no server is asked yet.
    ///
    /// # Errors
    /// The URL has something that cannot be, or there are no credentials.
    pub fn new(url: &StorageUrl) -> Result<Self, StorageError> {
        let options = Options::read(url)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("praas-s3")
            .enable_all()
            .build()
            .map_err(|source| StorageError::Io {
                operation: "start threads",
                name: url.to_string(),
                source,
            })?;
        Ok(Self {
            store: client(url, &options, true)?,
            creating: client(url, &options, false)?,
            runtime,
            prefix: prefix(url)?,
            options,
            scratch: Arc::default(),
            exclusive: OnceLock::new(),
            exclusive_parts: OnceLock::new(),
        })
    }

    /// What anybody may ask the server with who has it, for an hour: one object, one method.
    pub(crate) fn url_signed(&self, method: Method, name: &str) -> Result<String, StorageError> {
        let path = self.path(name)?;
        let signed = self.store.signed_url(method, &path, SIGNED_FOR);
        let url = self.runtime.block_on(signed);
        url.map(String::from)
            .map_err(|error| failed("sign a request for", name, error))
    }

    fn path(&self, name: &str) -> Result<Path, StorageError> {
        Path::parse(format!("{}{name}", self.prefix))
            .map_err(|_| StorageError::BadName { name: name.into() })
    }

    /// One attempt to create an object in one request.
    async fn put_once(&self, path: &Path, bytes: PutPayload, mark: &str) -> Result<(), Error> {
        let options = PutOptions {
            mode: PutMode::Create,
            attributes: marked(mark),
            ..PutOptions::default()
        };
        let put = self.creating.put_opts(path, bytes, options).await;
        put.map(drop)
    }

    async fn put_whole(&self, name: &str, bytes: Bytes) -> Result<(), StorageError> {
        let (path, mark) = (self.path(name)?, nonce()?);
        let payload = PutPayload::from(bytes);
        self.until_known(name, &path, &mark, || {
            self.put_once(&path, payload.clone(), &mark)
        })
        .await
    }

    /// Repeats a creation until it is known what became of it.
    async fn until_known<F: Future<Output = Result<(), Error>>>(
        &self,
        name: &str,
        path: &Path,
        mark: &str,
        attempt: impl Fn() -> F,
    ) -> Result<(), StorageError> {
        let mut pause = Duration::from_millis(AGAIN_MS);
        let mut left = self.options.attempts_max;
        loop {
            let error = match attempt().await {
                Ok(()) => return Ok(()),
                Err(error) if is_final(&error) => return Err(failed("create", name, error)),
                Err(error) => error,
            };
            left -= 1;
            // Also "exists" may be the answer to an attempt whose success was not heard of.
            match self.found(path, mark).await {
                Ok(Found::Ours) => return Ok(()),
                Ok(Found::Another) => return Err(StorageError::Exists { name: name.into() }),
                Ok(Found::Nothing) | Err(_) if left > 0 => {}
                Ok(Found::Nothing) | Err(_) => return Err(failed("create", name, error)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn found(&self, path: &Path, mark: &str) -> Result<Found, Error> {
        let head = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match self.store.get_opts(path, head).await {
            Ok(object)
                if object
                    .attributes
                    .get(&attribute())
                    .is_some_and(|m| **m == *mark) =>
            {
                Ok(Found::Ours)
            }
            Ok(_) => Ok(Found::Another),
            Err(Error::NotFound { .. }) => Ok(Found::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Creates an object by an upload of parts.
    async fn put_parts(&self, name: &str, mut pieces: Pieces<'_>) -> Result<(), StorageError> {
        let (path, mark) = (self.path(name)?, nonce()?);
        let options = PutMultipartOptions {
            attributes: marked(&mark),
            ..PutMultipartOptions::default()
        };
        let id = self.store.create_multipart_opts(&path, options).await;
        let id = id.map_err(|error| failed("begin the upload of", name, error))?;
        let uploaded = match self.parts_upload(&path, &id, &mut pieces).await {
            Ok(parts) => {
                let complete = || async {
                    let completed = self.creating.complete_multipart(&path, &id, parts.clone());
                    completed.await.map(drop)
                };
                self.until_known(name, &path, &mark, complete).await
            }
            Err(error) => Err(failed("upload", name, error)),
        };
        if uploaded.is_err() {
            // The error at hand says more than a second one would.
            let _ = self.store.abort_multipart(&path, &id).await;
        }
        uploaded
    }

    async fn parts_upload(
        &self,
        path: &Path,
        id: &MultipartId,
        pieces: &mut Pieces<'_>,
    ) -> Result<Vec<PartId>, Error> {
        let least = pieces.left.div_ceil(PARTS_MAX) as usize;
        let part_bytes = self.options.part_bytes.max(least);
        let mut uploads = JoinSet::new();
        let mut parts = Vec::new();
        loop {
            if pieces.left > 0 && uploads.len() < self.options.parts_parallel_max {
                let piece = Scratch::gather(&self.scratch, &pieces.next(part_bytes));
                let (store, path, id) = (self.store.clone(), path.clone(), id.clone());
                let at = parts.len();
                parts.push(None);
                uploads.spawn_on(
                    async move {
                        let part = store.put_part(&path, &id, at, piece.into()).await;
                        part.map(|part| (at, part))
                    },
                    self.runtime.handle(),
                );
                continue;
            }
            match uploads.join_next().await {
                Some(Ok(Ok((at, part)))) => parts[at] = Some(part),
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(error)) => {
                    let source = error;
                    return Err(Error::JoinError { source });
                }
                // All of them are there: each has said which it is.
                None => return Ok(parts.into_iter().flatten().collect()),
            }
        }
    }

    /// Finds out, once, whether the server creates exclusively.
    fn exclusive_check(&self) -> Result<(), StorageError> {
        if self.exclusive.get().is_some() {
            return Ok(());
        }
        let path = self.path(PROBE)?;
        self.runtime.block_on(async {
            // If the object is there already, the first attempt shows it.
            for _ in 0..2 {
                match self.put_whole(PROBE, Bytes::new()).await {
                    Err(StorageError::Exists { .. }) => return Ok(()),
                    Ok(()) => {}
                    Err(error) => return Err(error),
                }
            }
            let _ = self.store.delete(&path).await;
            Err(not_exclusive("a PUT"))
        })?;
        let _ = self.exclusive.set(());
        Ok(())
    }

    /// The same for uploads in parts.
    fn exclusive_parts_check(&self) -> Result<(), StorageError> {
        if self.exclusive_parts.get().is_some() {
            return Ok(());
        }
        self.runtime.block_on(async {
            match self.put_parts(PROBE, Pieces::new(&[b"x"])).await {
                Err(StorageError::Exists { .. }) => Ok(()),
                Ok(()) => Err(not_exclusive("the completion of an upload")),
                Err(error) => Err(error),
            }
        })?;
        let _ = self.exclusive_parts.set(());
        Ok(())
    }

    /// Warns of a server that takes bytes which have changed on the way.
    fn damage_check(&self) -> Result<(), StorageError> {
        let path = self.path(PROBE_DAMAGED)?;
        let taken = self.runtime.block_on(async {
            // One that a host left which died here would be in the way.
            let _ = self.store.delete(&path).await;
            let put = self.creating.put(&path, PROBE_DAMAGED.into()).await;
            let taken = put.is_ok();
            if taken {
                let _ = self.store.delete(&path).await;
            }
            taken
        });
        if taken {
            tracing::warn!(
                "the S3 server looks at no checksum of what it takes (payload_hash): bytes that \
                 change on the way to it are found out only when a process is swapped in"
            );
        }
        Ok(())
    }
}

impl Storage for S3Storage {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        name_check(name)?;
        self.exclusive_check()?;
        let mut pieces = Pieces::new(parts);
        let _sending = Sending::new(&self.scratch);
        let whole_max_bytes = self.options.part_bytes as u64;
        if pieces.left <= whole_max_bytes.max(self.options.whole_max_bytes) {
            let bytes = Scratch::gather(&self.scratch, &pieces.next(usize::MAX));
            return self.runtime.block_on(self.put_whole(name, bytes));
        }
        self.exclusive_parts_check()?;
        self.runtime.block_on(self.put_parts(name, pieces))
    }

    fn size(&self, name: &str) -> Result<u64, StorageError> {
        name_check(name)?;
        let path = self.path(name)?;
        let head = self.runtime.block_on(self.store.head(&path));
        let head = head.map_err(|error| missing_or("look up", name, error))?;
        Ok(head.size)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        name_check(name)?;
        let end = offset.saturating_add(into.len() as u64);
        let short = || StorageError::Short {
            name: name.into(),
            end,
        };
        if into.is_empty() {
            return match self.size(name)? < end {
                true => Err(short()),
                false => Ok(()),
            };
        }
        let path = self.path(name)?;
        let options = GetOptions {
            range: Some(GetRange::Bounded(offset..end)),
            ..GetOptions::default()
        };
        let filled = self.runtime.block_on(async {
            let mut stream = self.store.get_opts(&path, options).await?.into_stream();
            let mut filled = 0;
            while let Some(bytes) = stream.next().await {
                let bytes = bytes?;
                let Some(room) = into.get_mut(filled..filled + bytes.len()) else {
                    break;
                };
                room.copy_from_slice(&bytes);
                filled += bytes.len();
            }
            Ok(filled)
        });
        match filled {
            Ok(filled) if filled == into.len() => Ok(()),
            Ok(_) => Err(short()),
            Err(error @ Error::NotFound { .. }) => Err(missing_or("read", name, error)),
            // What servers say to a range beyond the end has no kind of its own.
            Err(error) => match self.size(name) {
                Ok(size) if size < end => Err(short()),
                _ => Err(failed("read", name, error)),
            },
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        prefix_check(prefix)?;
        let whole = format!("{}{prefix}", self.prefix);
        let mut names = Vec::new();
        let mut page_token = None;
        loop {
            let options = PaginatedListOptions {
                page_token,
                ..PaginatedListOptions::default()
            };
            let whole = (!whole.is_empty()).then_some(&whole[..]);
            let page = self
                .runtime
                .block_on(self.store.list_paginated(whole, options));
            let page = page.map_err(|error| failed("list", prefix, error))?;
            let found = page.result.objects.into_iter();
            let found = found.filter_map(|object| {
                let name = object.location.as_ref().strip_prefix(&self.prefix)?;
                (!PROBES.contains(&name) && name_check(name).is_ok()).then(|| name.into())
            });
            names.extend(found);
            page_token = page.page_token;
            if page_token.is_none() {
                return Ok(names);
            }
        }
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        // S3 does not say whether there was something to delete.
        self.size(name)?;
        let path = self.path(name)?;
        let deleted = self.runtime.block_on(self.store.delete(&path));
        deleted.map_err(|error| missing_or("delete", name, error))
    }

    fn check(&self) -> Result<(), StorageError> {
        self.exclusive_check()?;
        // Who uploads nothing in parts need not find a server that knows them.
        if self.options.whole_max_bytes < WHOLE_LARGEST_BYTES {
            self.exclusive_parts_check()?;
        }
        self.damage_check()
    }
}

fn attribute() -> Attribute {
    Attribute::Metadata(MARK.into())
}

fn marked(mark: &str) -> Attributes {
    Attributes::from_iter([(attribute(), String::from(mark))])
}

/// Whether a server has answered so that another attempt, or a look, is of no use.
fn is_final(error: &Error) -> bool {
    matches!(
        error,
        Error::Unauthenticated { .. }
            | Error::PermissionDenied { .. }
            | Error::NotImplemented { .. }
            | Error::NotSupported { .. }
            | Error::InvalidPath { .. }
    )
}

fn not_exclusive(of: &str) -> StorageError {
    let what = format!(
        "the server takes no notice of If-None-Match at {of}, so two who write would overwrite \
         one another"
    );
    StorageError::Io {
        operation: "create exclusively",
        name: PROBE.into(),
        source: io::Error::new(io::ErrorKind::Unsupported, what),
    }
}

fn missing_or(operation: &'static str, name: &str, error: Error) -> StorageError {
    match error {
        Error::NotFound { .. } => StorageError::NotFound { name: name.into() },
        error => failed(operation, name, error),
    }
}

fn failed(operation: &'static str, name: &str, error: Error) -> StorageError {
    let name = name.into();
    let text = error.to_string();
    let full = ["QuotaExceeded", "InsufficientStorage", "StorageFull"];
    let full = full.iter().any(|word| text.contains(word));
    let source = io::Error::other(error);
    match full {
        true => StorageError::Full {
            operation,
            name,
            source,
        },
        false => StorageError::Io {
            operation,
            name,
            source,
        },
    }
}
