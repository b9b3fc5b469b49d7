//! A folder that kills the process at its n-th operation (SIGKILL).

use std::path::Path;
use std::sync::Mutex;

use praas_runtime::swap::{Begun, DirStorage, Storage, StorageError};
use rustix::process::{Signal, getpid, kill_process};

/// Storage that kills its process.
pub struct Deadly {
    inner: DirStorage,
    folder: String,
    left: Mutex<u64>,
    amid: bool,
}

impl Deadly {
    /// Dies before the operation after so many, or amid, if it creates something.
    pub fn new(folder: &str, at: u64, amid: bool) -> Self {
        Self {
            inner: DirStorage::new(folder).unwrap(),
            folder: folder.into(),
            left: Mutex::new(at),
            amid,
        }
    }

    /// Whether this is the operation in which to die.
    fn is_last(&self) -> bool {
        let mut left = self.left.lock().unwrap();
        *left = left.wrapping_sub(1);
        *left == u64::MAX
    }

    fn step(&self) {
        if self.is_last() {
            die();
        }
    }

    fn step_put(&self, name: &str, parts: &[&[u8]]) {
        if self.is_last() {
            if self.amid {
                let bytes = parts.concat();
                let path = Path::new(&self.folder).join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            }
            die();
        }
    }
}

fn die() -> ! {
    kill_process(getpid(), Signal::KILL).unwrap();
    unreachable!("nobody survives it")
}

impl Storage for Deadly {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.step_put(name, parts);
        self.inner.put_new(name, parts)
    }

    fn put_begin(&self, name: &str, parts: &[&[u8]]) -> Result<Begun, StorageError> {
        self.step_put(name, parts);
        self.inner.put_begin(name, parts)
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
