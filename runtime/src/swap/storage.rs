//! Where swapped processes lie: a few named objects, each written once and whole.
//!
//! [`Storage`] asks for no more than an object store gives: exclusive creation, ranged reads,
//! listing, deletion. [`DirStorage`] keeps objects as files below one directory.
//!
//! ```text
//!   <root>/<application>/<process>/manifest-0000000000000003-0000000000000011
//!                                  pack-0000000000000003-0000000000000011-0000
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::StorageUrlError;

/// Bytes that one component of an object's name may have: what file systems allow.
pub const COMPONENT_MAX_BYTES: usize = 255;

/// Components of an object's name, separated by `/`.
pub const COMPONENTS_MAX: usize = 8;

/// Encoded names above this many bytes are replaced by their hash.
const ENCODED_MAX_BYTES: usize = 200;

/// Attempts to create a file whose directory goes away meanwhile.
const CREATES_MAX: usize = 16;

/// Bytes that are copied before the disk is told to begin with them.
const STEP_BYTES: usize = 8 << 20;
/// Slices in one vectored write.
const SLICES_MAX: usize = 1024;

/// Why an operation on storage failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// There is no object of this name.
    #[error("{name}: no such object")]
    NotFound {
        /// The object.
        name: String,
    },
    /// An object of this name exists already.
    #[error("{name}: exists already")]
    Exists {
        /// The object.
        name: String,
    },
    /// An object ends before the range that was asked for.
    #[error("{name}: ends before byte {end}")]
    Short {
        /// The object.
        name: String,
        /// The end of the range, in bytes from the object's start.
        end: u64,
    },
    /// The name is none that every storage can keep.
    #[error("'{name}' is no name of an object")]
    BadName {
        /// The name.
        name: String,
    },
    /// The settings name no storage that could be opened.
    #[error(transparent)]
    Url(#[from] StorageUrlError),
    /// There is no room, or a quota is used up.
    #[error("{name}: cannot {operation}: no room left")]
    Full {
        /// What was being done.
        operation: &'static str,
        /// The object.
        name: String,
        /// What the storage said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{name}: cannot {operation}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The object.
        name: String,
        /// What the storage said.
        source: io::Error,
    },
}

/// A place for objects that are written once.
///
/// A name is up to [`COMPONENTS_MAX`] components joined by `/`, each of 1 to
/// [`COMPONENT_MAX_BYTES`] bytes out of `A-Z a-z 0-9 . _ - % ~`, not starting with a dot.
pub trait Storage: Send + Sync {
    /// Creates an object out of the concatenated `parts`. On return it is durable, under its name.
    ///
    /// # Errors
    /// [`StorageError::Exists`] if the name is taken: nothing is changed then. After any other
    /// error the object may be absent, partial or whole.
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError>;

    /// As [`Storage::put_new`], but what was created is durable only once [`Begun::finish`] has said
    /// so: of many objects that are begun first and finished then, a disk can write all at once.
    ///
    /// # Errors
    /// As [`Storage::put_new`].
    fn put_begin(&self, name: &str, parts: &[&[u8]]) -> Result<Begun, StorageError> {
        self.put_new(name, parts).map(|()| Begun::durable())
    }

    /// The length of an object in bytes.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], or a failure of the storage.
    fn size(&self, name: &str) -> Result<u64, StorageError>;

    /// Fills `into` with the object's bytes from `offset` on.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], [`StorageError::Short`], or a failure of the storage; the
    /// content of `into` is then arbitrary.
    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError>;

    /// The names of all objects that begin with `prefix`, in any order.
    ///
    /// # Errors
    /// A failure of the storage. That nothing begins with `prefix` is no error.
    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError>;

    /// Deletes an object.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], or a failure of the storage.
    fn delete(&self, name: &str) -> Result<(), StorageError>;

    /// Finds out now, rather than at the first object, whether objects can be created.
    ///
    /// # Errors
    /// They cannot, as far as can be told.
    fn check(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// An object that was created, and need not be durable yet.
#[derive(Debug)]
#[must_use = "it may not be durable before it is finished"]
pub struct Begun(Option<Unsynced>);

/// A file that is to be synced, and the directories that it lies in.
#[derive(Debug)]
struct Unsynced {
    name: String,
    file: File,
    path: PathBuf,
    root: PathBuf,
}

impl Begun {
    /// One that is durable already.
    pub fn durable() -> Self {
        Self(None)
    }

    /// A file whose sync fails, for tests.
    #[cfg(test)]
    pub(super) fn failing(name: &str) -> Self {
        let (pipe, _) = rustix::pipe::pipe().expect("a pipe");
        Self(Some(Unsynced {
            name: name.into(),
            file: pipe.into(),
            path: PathBuf::from("/"),
            root: PathBuf::from("/"),
        }))
    }

    /// Makes objects durable, each under its name.
    ///
    /// # Errors
    /// Any of them may not be durable; all are there, as far as anybody can see.
    pub fn finish(begun: Vec<Self>) -> Result<(), StorageError> {
        let files = || begun.iter().filter_map(|begun| begun.0.as_ref());
        for unsynced in files() {
            let synced = unsynced.file.sync_all();
            synced.map_err(|source| io_error("sync", &unsynced.name, source))?;
        }
        // Each directory once: they have the entries of all.
        let mut synced = BTreeSet::new();
        for unsynced in files() {
            directories_sync(&unsynced.path, &unsynced.root, &mut synced)
                .map_err(|source| io_error("sync the directory of", &unsynced.name, source))?;
        }
        Ok(())
    }
}

/// Makes the entries on the way from the root to an object durable, but for those of directories
/// that have been synced.
fn directories_sync<'a>(
    path: &'a Path,
    root: &Path,
    synced: &mut BTreeSet<&'a Path>,
) -> io::Result<()> {
    for directory in path.ancestors().skip(1) {
        if !synced.insert(directory) {
            break;
        }
        File::open(directory)?.sync_all()?;
        if directory == root {
            break;
        }
    }
    Ok(())
}

/// What the names of all objects of a process begin with, the final `/` included.
pub fn process_prefix(application: &str, process: &str) -> String {
    format!("{}/{}/", name_encode(application), name_encode(process))
}

/// A name of up to any length and of any characters as one component of an object's name.
///
/// Plain characters stand for themselves, all other bytes as `%` and two upper-case hexadecimal
/// digits. What comes out longer than 200 bytes is `~` and the name's BLAKE3 hash instead; `~`
/// begins no other encoding. Different names have different encodings.
pub fn name_encode(name: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        let plain =
            byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' || byte == b'.' && at > 0;
        if plain {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    match encoded.len() {
        0 => "%".into(),
        length if length > ENCODED_MAX_BYTES => {
            format!("~{}", blake3::hash(name.as_bytes()).to_hex())
        }
        _ => encoded,
    }
}

/// Objects as files below a directory, which may be on a file system that nodes share.
///
/// A file is created under its final name with `O_EXCL`, written, synced, and its directories are
/// synced; of files that are begun together all are written before the first is synced. What a crash leaves of a file is partial: readers find out by length and hash.
/// Directories go with the last of their files.
#[derive(Debug, Clone)]
pub struct DirStorage {
    root: PathBuf,
}

impl DirStorage {
    /// Storage below `root`, which is created if it is absent. What is made here is for its owner
    /// only, for it holds what applications keep.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let root = root.into();
        directory_make(&root).map_err(|source| {
            io_error("create the directory", &root.display().to_string(), source)
        })?;
        Ok(Self { root })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &str) -> Result<PathBuf, StorageError> {
        name_check(name)?;
        Ok(self.root.join(name))
    }

    /// Creates a file, and the directories that it lies in.
    fn create(&self, path: &Path) -> io::Result<File> {
        let mut attempts = 0;
        loop {
            path.parent().map_or(Ok(()), directory_make)?;
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path);
            match file {
                // Somebody has deleted the last file of the directory in between.
                Err(error) if error.kind() == ErrorKind::NotFound && attempts < CREATES_MAX => {
                    attempts += 1;
                }
                file => return file,
            }
        }
    }

    /// Collects names below a directory that begin with `prefix`.
    fn walk(
        &self,
        directory: &str,
        prefix: &str,
        depth: usize,
        names: &mut Vec<String>,
    ) -> io::Result<()> {
        let entries = match fs::read_dir(self.root.join(directory)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let file_name = entry.file_name();
            // Files that no `put_new` wrote are none of ours.
            let Some(component) = file_name.to_str().filter(|name| component_is_valid(name)) else {
                continue;
            };
            let name = format!("{directory}{component}");
            if entry.file_type()?.is_dir() {
                let below = format!("{name}/");
                let fits = below.starts_with(prefix) || prefix.starts_with(&below);
                if fits && depth < COMPONENTS_MAX {
                    self.walk(&below, prefix, depth + 1, names)?;
                }
            } else if name.starts_with(prefix) {
                names.push(name);
            }
        }
        Ok(())
    }
}

/// Makes a directory, and those above it that are missing.
fn directory_make(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

impl Storage for DirStorage {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        let begun = self.put_begin(name, parts)?;
        let finished = Begun::finish(vec![begun]);
        if finished.is_err() {
            // The error at hand says more than a second one would.
            let _ = fs::remove_file(self.root.join(name));
        }
        finished
    }

    fn put_begin(&self, name: &str, parts: &[&[u8]]) -> Result<Begun, StorageError> {
        let path = self.path(name)?;
        let mut file = self
            .create(&path)
            .map_err(|source| io_error("create", name, source))?;
        if let Err(source) = write_parts(&mut file, parts) {
            let _ = fs::remove_file(&path);
            return Err(io_error("write", name, source));
        }
        Ok(Begun(Some(Unsynced {
            name: name.into(),
            file,
            path,
            root: self.root.clone(),
        })))
    }

    fn size(&self, name: &str) -> Result<u64, StorageError> {
        fs::metadata(self.path(name)?)
            .map(|metadata| metadata.len())
            .map_err(|source| io_error("look up", name, source))
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let file = File::open(self.path(name)?).map_err(|source| io_error("open", name, source))?;
        file.read_exact_at(into, offset).map_err(|source| {
            match source.kind() == ErrorKind::UnexpectedEof {
                true => StorageError::Short {
                    name: name.into(),
                    end: offset.saturating_add(into.len() as u64),
                },
                false => io_error("read", name, source),
            }
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let mut names = Vec::new();
        let directory = prefix.rfind('/').map_or("", |at| &prefix[..=at]);
        prefix_check(prefix)?;
        let depth = directory.matches('/').count() + 1;
        self.walk(directory, prefix, depth, &mut names)
            .map_err(|source| io_error("list", prefix, source))?;
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        let path = self.path(name)?;
        fs::remove_file(&path).map_err(|source| io_error("delete", name, source))?;
        let above = path.ancestors().skip(1);
        // Refused while something else is there.
        let emptied =
            |directory: &&Path| *directory != self.root && fs::remove_dir(directory).is_ok();
        above.take_while(emptied).for_each(drop);
        Ok(())
    }

    fn check(&self) -> Result<(), StorageError> {
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::access(&self.root, access).map_err(|error| {
            let directory = self.root.display().to_string();
            io_error("write to the directory", &directory, error.into())
        })
    }
}

/// Checks a name as every storage has to.
///
/// # Errors
/// [`StorageError::BadName`].
pub fn name_check(name: &str) -> Result<(), StorageError> {
    match name_is_valid(name) {
        true => Ok(()),
        false => Err(StorageError::BadName { name: name.into() }),
    }
}

/// Checks what [`Storage::list`] is asked for: a name, or the beginning of one.
///
/// # Errors
/// [`StorageError::BadName`].
pub fn prefix_check(prefix: &str) -> Result<(), StorageError> {
    let (directory, last) = prefix.rsplit_once('/').unwrap_or(("", prefix));
    let directory = directory.is_empty() && !prefix.starts_with('/') || name_is_valid(directory);
    match directory && (last.is_empty() || component_is_valid(last)) {
        true => Ok(()),
        false => Err(StorageError::BadName {
            name: prefix.into(),
        }),
    }
}

fn name_is_valid(name: &str) -> bool {
    name.split('/').count() <= COMPONENTS_MAX && name.split('/').all(component_is_valid)
}

fn component_is_valid(component: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-%~".contains(&byte);
    (1..=COMPONENT_MAX_BYTES).contains(&component.len())
        && !component.starts_with('.')
        && component.bytes().all(plain)
}

fn io_error(operation: &'static str, name: &str, source: io::Error) -> StorageError {
    let name = name.into();
    match source.kind() {
        ErrorKind::NotFound => StorageError::NotFound { name },
        ErrorKind::AlreadyExists => StorageError::Exists { name },
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            StorageError::Full {
                operation,
                name,
                source,
            }
        }
        _ => StorageError::Io {
            operation,
            name,
            source,
        },
    }
}

/// Writes the parts one after the other, and has the disk begin while the next are copied.
fn write_parts(file: &mut File, parts: &[&[u8]]) -> io::Result<()> {
    let mut begun = 0;
    let (mut step, mut bytes) = (Vec::new(), 0);
    for piece in parts.iter().flat_map(|part| part.chunks(STEP_BYTES)) {
        step.push(IoSlice::new(piece));
        bytes += piece.len();
        if bytes >= STEP_BYTES || step.len() == SLICES_MAX {
            write_step(file, &mut step)?;
            disk_begin(file, begun, bytes);
            begun += bytes as u64;
            (step, bytes) = (Vec::new(), 0);
        }
    }
    write_step(file, &mut step)?;
    disk_begin(file, begun, bytes);
    Ok(())
}

fn write_step(file: &mut File, mut left: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Has the disk begin with what was written. That the pages need not be kept is what this says,
/// too; those that are on their way to the disk are. It is advice: to go without costs time.
fn disk_begin(file: &File, offset: u64, bytes: usize) {
    if let Some(bytes) = NonZeroU64::new(bytes as u64) {
        let _ = rustix::fs::fadvise(file, offset, Some(bytes), rustix::fs::Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_steps_is_one_object() {
        let directory = tempfile::tempdir().unwrap();
        let storage = DirStorage::new(directory.path()).unwrap();
        let mut bytes = vec![0; 2 * STEP_BYTES + 12_345];
        fastrand::Rng::with_seed(1).fill(&mut bytes);
        let (small, large) = bytes.split_at(3 * SLICES_MAX);
        let parts: Vec<&[u8]> = small.chunks(1).chain([&[][..], large, &[]]).collect();
        let begun = ["a/1", "a/2", "b/1"].map(|name| storage.put_begin(name, &parts).unwrap());
        Begun::finish(Vec::from(begun)).unwrap();
        for name in ["a/1", "a/2", "b/1"] {
            assert_eq!(storage.size(name).unwrap(), bytes.len() as u64);
            let mut read = vec![0; bytes.len()];
            storage.read(name, 0, &mut read).unwrap();
            assert!(read == bytes, "{name}");
        }
        let again = storage.put_begin("a/1", &[b"other"]);
        assert!(matches!(again, Err(StorageError::Exists { .. })));
        assert!(Begun::finish(vec![Begun::durable(), Begun::failing("x")]).is_err());
    }

    #[test]
    fn objects_are_created_once_and_listed_by_prefix() {
        let directory = tempfile::tempdir().unwrap();
        let storage = DirStorage::new(directory.path().join("swap")).unwrap();
        assert_eq!(storage.list("a/p/").unwrap(), Vec::<String>::new());
        storage
            .put_new("a/p/x-1", &[b"", b"12", b"", b"3"])
            .unwrap();
        storage.put_new("a/p/y-1", &[]).unwrap();
        storage.put_new("a/pp/x-1", &[b"0"]).unwrap();
        let error = storage.put_new("a/p/x-1", &[b"other"]).unwrap_err();
        assert!(matches!(error, StorageError::Exists { name } if name == "a/p/x-1"));
        assert_eq!(storage.size("a/p/x-1").unwrap(), 3);
        let sorted = |prefix| {
            let mut names = storage.list(prefix).unwrap();
            names.sort();
            names
        };
        assert_eq!(sorted("a/p/"), ["a/p/x-1", "a/p/y-1"]);
        assert_eq!(sorted("a/p/x"), ["a/p/x-1"]);
        assert_eq!(sorted("a/p"), ["a/p/x-1", "a/p/y-1", "a/pp/x-1"]);
        assert_eq!(sorted("").len(), 3);
        let mut two = [0; 2];
        storage.read("a/p/x-1", 1, &mut two).unwrap();
        assert_eq!(&two, b"23");
        let error = storage.read("a/p/x-1", 2, &mut two).unwrap_err();
        assert!(matches!(error, StorageError::Short { end: 4, .. }));
        storage.delete("a/p/x-1").unwrap();
        storage.delete("a/pp/x-1").unwrap();
        assert!(storage.root().join("a/p").exists() && !storage.root().join("a/pp").exists());
        storage.check().unwrap();
        for error in [
            storage.delete("a/p/x-1").unwrap_err(),
            storage.size("a/p/x-1").unwrap_err(),
            storage.read("a/p/x-1", 0, &mut two).unwrap_err(),
        ] {
            assert!(matches!(error, StorageError::NotFound { .. }), "{error}");
        }
    }

    #[test]
    fn thousands_of_parts_are_one_object() {
        let directory = tempfile::tempdir().unwrap();
        let storage = DirStorage::new(directory.path()).unwrap();
        let bytes: Vec<u8> = (0..5000_u32).map(|at| at as u8).collect();
        let parts: Vec<&[u8]> = bytes.chunks(1).collect();
        storage.put_new("many", &parts).unwrap();
        let mut back = vec![0; bytes.len()];
        storage.read("many", 0, &mut back).unwrap();
        assert_eq!(back, bytes);
    }

    #[test]
    fn names_stay_below_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let storage = DirStorage::new(directory.path()).unwrap();
        let long = "x".repeat(256);
        for name in [
            "", "..", "a/../b", "/a", "a//b", "a/", ".a", "a b", "ä", &long,
        ] {
            let error = storage.put_new(name, &[]).unwrap_err();
            assert!(matches!(error, StorageError::BadName { .. }), "{name}");
        }
        assert!(storage.list("../").is_err());
    }

    #[test]
    fn any_name_has_an_encoding_of_its_own() {
        let long = [
            "ä".repeat(127),
            "ä".repeat(126),
            "x".repeat(201),
            "x".repeat(255),
        ];
        let names = [
            "plain-1_2.x",
            ".",
            "..",
            "",
            "%",
            "a/b",
            "a%2Fb",
            "~",
            "a b",
            "\0",
            "ä",
        ];
        let all = names.into_iter().map(String::from).chain(long);
        let mut seen = std::collections::BTreeSet::new();
        for name in all {
            let encoded = name_encode(&name);
            assert!(component_is_valid(&encoded), "{encoded}");
            assert!(seen.insert(encoded), "{name}");
        }
        assert_eq!(process_prefix("app", "k/1"), "app/k%2F1/");
    }
}
