//! Storage for tests: in memory, breaking at a chosen step, or shared with a newer incarnation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::{commit, image};
use crate::swap::{Begun, Storage, StorageError};

/// Objects in memory; clones are copies.
#[derive(Debug, Default)]
pub(super) struct MemStorage {
    pub(super) objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Clone for MemStorage {
    fn clone(&self) -> Self {
        let objects = self.objects.lock().unwrap().clone();
        Self {
            objects: Mutex::new(objects),
        }
    }
}

impl MemStorage {
    pub(super) fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    /// Changes an object in place.
    pub(super) fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        edit(self.objects.lock().unwrap().get_mut(name).unwrap());
    }

    pub(super) fn insert(&self, name: String, bytes: Vec<u8>) {
        self.objects.lock().unwrap().insert(name, bytes);
    }
}

fn not_found(name: &str) -> StorageError {
    StorageError::NotFound { name: name.into() }
}

impl Storage for MemStorage {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(name) {
            return Err(StorageError::Exists { name: name.into() });
        }
        objects.insert(name.into(), parts.concat());
        Ok(())
    }

    fn size(&self, name: &str) -> Result<u64, StorageError> {
        let objects = self.objects.lock().unwrap();
        let object = objects.get(name).ok_or(not_found(name))?;
        Ok(object.len() as u64)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let objects = self.objects.lock().unwrap();
        let object = objects.get(name).ok_or(not_found(name))?;
        let end = offset as usize + into.len();
        match object.get(offset as usize..end) {
            Some(bytes) => into.copy_from_slice(bytes),
            None => {
                let (name, end) = (name.into(), end as u64);
                return Err(StorageError::Short { name, end });
            }
        }
        Ok(())
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let names = self.names().into_iter();
        Ok(names.filter(|name| name.starts_with(prefix)).collect())
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        let removed = self.objects.lock().unwrap().remove(name);
        removed.map(drop).ok_or(not_found(name))
    }
}

/// How an operation fails that would have changed something.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leaves {
    Nothing,
    /// A put leaves half of the object; a delete deletes, and says it did not.
    Half,
    /// A put leaves all of the object, and says it did not.
    All,
}

/// Storage that fails from the n-th operation on, or at it alone.
pub(super) struct Faulty {
    pub(super) inner: MemStorage,
    pub(super) operations: Mutex<usize>,
    pub(super) fails_at: usize,
    pub(super) for_good: bool,
    pub(super) leaves: Leaves,
}

impl Faulty {
    fn fails(&self) -> bool {
        let mut operations = self.operations.lock().unwrap();
        *operations += 1;
        *operations - 1 == self.fails_at || self.for_good && *operations > self.fails_at
    }

    fn check(&self, name: &str) -> Result<(), StorageError> {
        match self.fails() {
            false => Ok(()),
            true => Err(StorageError::Io {
                operation: "fail",
                name: name.into(),
                source: std::io::Error::other("injected"),
            }),
        }
    }

    /// Whether this is the operation that was cut off, not one after the crash.
    fn is_cut_off(&self) -> bool {
        *self.operations.lock().unwrap() - 1 == self.fails_at
    }
}

impl Storage for Faulty {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.check(name).inspect_err(|_| {
            let bytes = parts.concat();
            let length = match self.leaves {
                Leaves::Half => bytes.len() / 2,
                Leaves::All => bytes.len(),
                Leaves::Nothing => return,
            };
            if self.is_cut_off() {
                let _ = self.inner.put_new(name, &[&bytes[..length]]);
            }
        })?;
        self.inner.put_new(name, parts)
    }

    /// Making it durable is an operation of its own, which may fail: then it may be gone, or cut
    /// off.
    fn put_begin(&self, name: &str, parts: &[&[u8]]) -> Result<Begun, StorageError> {
        self.put_new(name, parts)?;
        if !self.fails() {
            return Ok(Begun::durable());
        }
        match self.leaves {
            Leaves::Nothing => self.inner.delete(name)?,
            Leaves::Half => self
                .inner
                .edit(name, |bytes| bytes.truncate(bytes.len() / 2)),
            Leaves::All => {}
        }
        Ok(Begun::failing(name))
    }

    fn size(&self, name: &str) -> Result<u64, StorageError> {
        self.check(name)?;
        self.inner.size(name)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.check(name)?;
        self.inner.read(name, offset, into)
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.check(prefix)?;
        self.inner.list(prefix)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.check(name).inspect_err(|_| {
            if self.is_cut_off() && !matches!(self.leaves, Leaves::Nothing) {
                let _ = self.inner.delete(name);
            }
        })?;
        self.inner.delete(name)
    }
}

/// Storage that loses an object right before the n-th operation.
pub(super) struct Losing {
    pub(super) inner: MemStorage,
    pub(super) left: Mutex<usize>,
    pub(super) object: String,
}

impl Losing {
    fn step(&self) {
        let mut left = self.left.lock().unwrap();
        if *left == 0 {
            let _ = self.inner.delete(&self.object);
        }
        *left = left.wrapping_sub(1);
    }
}

impl Storage for Losing {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.step();
        self.inner.put_new(name, parts)
    }
    fn size(&self, name: &str) -> Result<u64, StorageError> {
        self.step();
        self.inner.size(name)
    }
    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.step();
        self.inner.read(name, offset, into)
    }
    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.step();
        self.inner.list(prefix)
    }
    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.step();
        self.inner.delete(name)
    }
}

/// Storage in which a higher incarnation commits right before the n-th operation.
pub(super) struct Overtaken {
    pub(super) inner: Arc<MemStorage>,
    pub(super) left: Mutex<usize>,
}

impl Overtaken {
    fn step(&self) {
        let mut left = self.left.lock().unwrap();
        if *left == 0 {
            commit(&*self.inner, &image(2, 9));
        }
        *left = left.wrapping_sub(1);
    }
}

impl Storage for Overtaken {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.step();
        self.inner.put_new(name, parts)
    }
    fn size(&self, name: &str) -> Result<u64, StorageError> {
        self.step();
        self.inner.size(name)
    }
    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.step();
        self.inner.read(name, offset, into)
    }
    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.step();
        self.inner.list(prefix)
    }
    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.step();
        self.inner.delete(name)
    }
}
