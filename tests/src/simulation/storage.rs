//! Storage in memory, in which operations take time and fail.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use praas_runtime::swap::{Storage, StorageError};

use super::APPLICATION;
use super::world::{World, here};
use crate::checker::{Event, Image};

/// Storage that all nodes share.
#[derive(Debug, Default)]
pub(super) struct MemoryStorage {
    objects: Mutex<BTreeMap<String, Object>>,
}

#[derive(Debug)]
struct Object {
    bytes: Vec<u8>,
    /// Whoever wrote it was dead when it came.
    late: bool,
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// Not done, and said so.
    Failed,
    /// Done in part, and said that it failed.
    Partial,
    /// Done, and said that it failed.
    Unsaid,
}

impl MemoryStorage {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest generation that an incarnation has written.
    pub fn newest_of(&self, process: &str, incarnation: u64) -> Option<u64> {
        let objects = self.lock();
        let images = objects.keys().filter_map(|name| manifest(name));
        let ours = images.filter(|(of, image)| of == process && image.incarnation == incarnation);
        ours.map(|(_, image)| image.generation).max()
    }

    /// What there is of a process, but for what came when its writer was dead.
    pub fn left(&self, process: &str) -> Vec<String> {
        let objects = self.lock();
        let prefix = format!("{APPLICATION}/{process}/");
        let left = objects.range(prefix.clone()..);
        let left = left.take_while(|(name, _)| name.starts_with(&prefix));
        let left = left.filter(|(_, object)| !object.late);
        left.map(|(name, _)| name.clone()).collect()
    }

    /// Lets time pass, in which anything may happen; then what becomes of the operation.
    fn fate(operation: &'static str, name: &str) -> Result<Fate, StorageError> {
        let fate = here(|world| {
            world.meanwhile_storage();
            let writer_lives = world.writer_lives();
            let fails = world.storage_fails();
            match (writer_lives && !fails, world.random(3)) {
                (true, _) => Fate::Done,
                (false, 0) => Fate::Failed,
                (false, 1) => Fate::Partial,
                (false, _) => Fate::Unsaid,
            }
        });
        match (fate, operation) {
            (Fate::Done, _) => {}
            (fate, _) => here(|world| world.trace(|| format!("{operation} {name}: {fate:?}"))),
        }
        match (fate, operation) {
            (Fate::Done, _) | (_, "put" | "delete") => Ok(fate),
            _ => Err(error(operation, name)),
        }
    }
}

fn error(operation: &'static str, name: &str) -> StorageError {
    StorageError::Io {
        operation,
        name: name.into(),
        source: io::Error::other("the simulation says so"),
    }
}

fn component(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The process and the image that a manifest's name names.
fn manifest(name: &str) -> Option<(String, Image)> {
    let mut parts = name.split('/').skip(1);
    let process = parts.next()?.to_owned();
    let (incarnation, generation) = parts.next()?.strip_prefix("manifest-")?.split_once('-')?;
    let image = Image {
        incarnation: u64::from_str_radix(incarnation, 16).ok()?,
        generation: u64::from_str_radix(generation, 16).ok()?,
    };
    Some((process, image))
}

impl Storage for MemoryStorage {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        if component(name).starts_with("through-") {
            here(World::writer_haunts);
        }
        let fate = Self::fate("put", name)?;
        let mut objects = self.lock();
        if objects.contains_key(name) {
            return Err(StorageError::Exists { name: name.into() });
        }
        let mut bytes = parts.concat();
        let late = here(|world| !world.writer_unfenced());
        match fate {
            Fate::Failed => {}
            Fate::Partial => {
                bytes.truncate(bytes.len() / 2);
                objects.insert(name.into(), Object { bytes, late });
            }
            Fate::Done | Fate::Unsaid => {
                objects.insert(name.into(), Object { bytes, late });
                if let Some((process, image)) = manifest(name) {
                    here(|world| world.note(Event::Durable { process, image }));
                }
            }
        }
        match fate {
            Fate::Done => Ok(()),
            _ => Err(error("put", name)),
        }
    }

    fn size(&self, name: &str) -> Result<u64, StorageError> {
        if component(name).starts_with("writer-") {
            here(World::writer_haunts);
        }
        Self::fate("size", name)?;
        let objects = self.lock();
        let bytes = objects.get(name);
        let missing = || StorageError::NotFound { name: name.into() };
        let bytes = bytes.map(|object| object.bytes.len() as u64);
        bytes.ok_or_else(missing)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        Self::fate("read", name)?;
        let objects = self.lock();
        let missing = || StorageError::NotFound { name: name.into() };
        let bytes = &objects.get(name).ok_or_else(missing)?.bytes;
        let end = offset as usize + into.len();
        let short = || StorageError::Short {
            name: name.into(),
            end: end as u64,
        };
        into.copy_from_slice(bytes.get(offset as usize..end).ok_or_else(short)?);
        Ok(())
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        Self::fate("list", prefix)?;
        let objects = self.lock();
        let names = objects.range(prefix.to_owned()..).map(|(name, _)| name);
        let names = names.take_while(|name| name.starts_with(prefix));
        Ok(names.cloned().collect())
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        let fate = Self::fate("delete", name)?;
        let mut objects = self.lock();
        let removed = match fate {
            Fate::Done | Fate::Unsaid => objects.remove(name).is_some(),
            Fate::Failed | Fate::Partial => false,
        };
        if let (true, Some((process, image))) = (removed, manifest(name)) {
            here(|world| world.note(Event::Deleted { process, image }));
        }
        match fate {
            Fate::Done if removed => Ok(()),
            Fate::Done => Err(StorageError::NotFound { name: name.into() }),
            _ => Err(error("delete", name)),
        }
    }
}
