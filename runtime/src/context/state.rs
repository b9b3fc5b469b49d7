//! State of this process, and of its peers.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CallError, Context, Fields, StateEntry, optional, timeout_us};
use crate::abi::View;
use crate::codec;

impl Context<'_> {
    /// Writes a state object; its new version.
    ///
    /// # Errors
    /// The process's memory limit; a bad key.
    pub fn state_put(&self, key: &str, value: &[u8]) -> Result<u64, CallError> {
        self.guest.state_put(key, value)
    }

    /// Writes a state object that shares the memory of a view, as of a message, an output or
    /// another object; its new version.
    ///
    /// # Errors
    /// As [`state_put`](Self::state_put).
    pub fn state_put_view(&self, key: &str, view: &View) -> Result<u64, CallError> {
        self.guest.state_put_view(key, view)
    }

    /// A state object, without copying.
    ///
    /// # Errors
    /// A bad key.
    pub fn state_view(&self, key: &str) -> Result<Option<View>, CallError> {
        optional(self.guest.state_view(key))
    }

    /// A copy of a state object.
    ///
    /// # Errors
    /// A bad key.
    pub fn state_get(&self, key: &str) -> Result<Option<Vec<u8>>, CallError> {
        Ok(self.state_view(key)?.map(|view| view.to_vec()))
    }

    /// Deletes a state object; whether there was one.
    ///
    /// # Errors
    /// A bad key.
    pub fn state_delete(&self, key: &str) -> Result<bool, CallError> {
        optional(self.guest.state_delete(key)).map(|done| done.is_some())
    }

    /// State objects whose keys begin with `prefix` and come after `after`, in order of their
    /// keys, at most `limit`.
    ///
    /// # Errors
    /// A bad prefix.
    pub fn state_list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StateEntry>, CallError> {
        let view = self.guest.state_list(prefix, after, limit)?;
        let mut fields = Fields { bytes: &view };
        let mut entries = Vec::new();
        while !fields.bytes.is_empty() {
            entries.push(StateEntry {
                key: fields.text()?,
                bytes: fields.word()?,
                version: fields.word()?,
                written_unix_ms: fields.word()?,
            });
        }
        Ok(entries)
    }

    /// Writes a state object if it is at version `expected` (zero: if there is none): the new
    /// version, or the one that stands in the way.
    ///
    /// # Errors
    /// The process's memory limit; a bad key.
    pub fn state_compare_swap(
        &self,
        key: &str,
        expected: u64,
        value: &[u8],
    ) -> Result<Result<u64, u64>, CallError> {
        self.guest.state_compare_swap(key, expected, value)
    }

    /// Adds bytes to a state object; its new length.
    ///
    /// # Errors
    /// The process's memory limit; a bad key.
    pub fn state_append(&self, key: &str, value: &[u8]) -> Result<u64, CallError> {
        self.guest.state_append(key, value)
    }

    /// Replaces a state object by what `write` makes of it, without copying: `write` is given the
    /// value that the object has (nothing, if there is none) and memory of `len` bytes, holding
    /// anything, for the next one. If another function was faster, `write` is called again; if it
    /// returns an error, the object stays as it is. The new version.
    ///
    /// Where `state_max_bytes` has no room for both values at a time, `write` gets memory of the
    /// function's own, which does not count for the limit and is copied.
    ///
    /// # Errors
    /// Those of `write`; the process's memory limit; a bad key; cancelled while others were faster.
    pub fn state_update(
        &self,
        key: &str,
        len: usize,
        mut write: impl FnMut(&[u8], &mut [u8]) -> Result<(), CallError>,
    ) -> Result<u64, CallError> {
        self.guest.state_update(key, len, &mut write)
    }

    /// Has a state object written through to storage as it is now, and waits for it: on return this
    /// version, or a later one, outlives the process's host, though all else goes back to the last
    /// image. If there is no object under the key, that is what is durable: so
    /// [`state_delete`](Self::state_delete) and this delete for good. The version that is durable,
    /// zero for none.
    ///
    /// Another function may run meanwhile, and see the object before it is durable. The first call
    /// in a process without an image takes a checkpoint.
    ///
    /// # Errors
    /// [`CallError::Unavailable`]: the storage fails, or is full, and whether the object is durable is
    /// not known. [`CallError::Forbidden`]: another host is the process by now, and the object is not
    /// durable. [`CallError::LimitReached`]: it has more than `persist_max_bytes`.
    /// [`CallError::Exhausted`]: the function is marked short, or too many wait. The deadline or
    /// cancellation, after which it may become durable. The process has the object as before, in all
    /// cases.
    pub fn state_persist(&self, key: &str) -> Result<u64, CallError> {
        self.guest.state_persist(key, -1)
    }

    /// As [`state_persist`](Self::state_persist), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn state_persist_within(&self, key: &str, timeout: Duration) -> Result<u64, CallError> {
        self.guest.state_persist(key, timeout_us(Some(timeout)))
    }

    /// Writes a state object and has it written through to storage: [`state_put`](Self::state_put),
    /// then [`state_persist`](Self::state_persist). The version that is durable.
    ///
    /// # Errors
    /// Those of either. If the second fails the object is written all the same.
    pub fn state_put_persist(&self, key: &str, value: &[u8]) -> Result<u64, CallError> {
        self.state_put(key, value)?;
        self.state_persist(key)
    }

    /// A state object as a value.
    ///
    /// # Errors
    /// Bytes that are no such value; a bad key.
    pub fn state_load<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CallError> {
        let view = self.state_view(key)?;
        Ok(view.map(|view| codec::decode(&view)).transpose()?)
    }

    /// A directory of the process's own. Its regular files, and those in directories below it, go
    /// into the images of the process and come back with it, under the same names in another
    /// directory: ask for it anew in each invocation. Settings `files_max` and `files_max_bytes`
    /// limit what an image takes; a swap of more fails, and says so. A checkpoint reads them while
    /// functions run, after the moment that its state and messages are of: write a file beside and
    /// rename it, so that none is read half.
    ///
    /// # Errors
    /// The system refuses to make it.
    pub fn state_dir(&self) -> Result<PathBuf, CallError> {
        self.guest.state_dir()
    }

    /// Changes a state object as a value: `change` gets what it is (`None`: absent) and gives what
    /// it shall be, again if another function has changed it meanwhile. What was written.
    ///
    /// # Errors
    /// As [`state_load`](Self::state_load) and [`state_store`](Self::state_store); cancellation
    /// and the deadline, between two attempts.
    pub fn state_update_value<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        mut change: impl FnMut(Option<T>) -> T,
    ) -> Result<T, CallError> {
        loop {
            let view = self.state_view(key)?;
            let version = view.as_ref().map_or(0, View::version);
            let old = view.map(|view| codec::decode(&view)).transpose()?;
            let new = change(old);
            let bytes = codec::encode(&new)?;
            if self.state_compare_swap(key, version, &bytes)?.is_ok() {
                return Ok(new);
            }
            if self.cancelled() {
                return Err(CallError::Cancelled);
            }
        }
    }

    /// A state object of another process of this application, read by one-sided operations: no
    /// function runs there, and from the second read on nobody is asked. It is the object as it was
    /// at a moment within the read.
    ///
    /// # Errors
    /// Unknown or dead processes; one that does not show its state ([`CallError::Forbidden`],
    /// setting `state_read`); the deadline; no memory for it.
    pub fn peer_state(&self, process: &str, key: &str) -> Result<Option<View>, CallError> {
        optional(self.guest.peer_state(process, key, -1))
    }

    /// As [`peer_state`](Self::peer_state), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn peer_state_within(
        &self,
        process: &str,
        key: &str,
        timeout: Duration,
    ) -> Result<Option<View>, CallError> {
        optional(
            self.guest
                .peer_state(process, key, timeout_us(Some(timeout))),
        )
    }

    /// As [`peer_state`](Self::peer_state), as a value.
    ///
    /// # Errors
    /// The same; bytes that are no such value.
    pub fn peer_state_load<T: DeserializeOwned>(
        &self,
        process: &str,
        key: &str,
    ) -> Result<Option<T>, CallError> {
        let view = self.peer_state(process, key)?;
        Ok(view.map(|view| codec::decode(&view)).transpose()?)
    }

    /// Writes a value as a state object; its new version.
    ///
    /// # Errors
    /// The process's memory limit; a bad key; a value that cannot be encoded.
    pub fn state_store<T: Serialize>(&self, key: &str, value: &T) -> Result<u64, CallError> {
        self.guest.state_put(key, &codec::encode(value)?)
    }
}
