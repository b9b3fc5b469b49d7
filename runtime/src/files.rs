//! Files of a process: a directory of its own, whose files go into its images and come back.
//!
//! ```text
//!   <run directory>/files-<pid>-<random>/     mode 0700, made when somebody wants it
//!       model.bin, cache/index, ...           regular files, by relative names
//! ```
//!
//! Only regular files count, and directories on the way to them; links and whatever else there may
//! be stay out of images, and are not followed. Names are bytes, as the system has them, and files
//! keep the lowest nine bits of their modes. Files are read when the image is made: of one that
//! a function writes at that time (which only a checkpoint allows) it may have some of each.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use praas_transport::sync::atomic::{AtomicU64, Ordering};
use praas_transport::{Buf, BufPool, PoolExhausted, clock};

/// Bytes of the longest name of a file.
pub const FILE_NAME_MAX_BYTES: usize = 4096;
/// The bits of a mode that a file keeps: who may read, write and run it.
pub const FILE_MODE_BITS: u16 = 0o777;
/// The mode of files from images that do not say it.
pub const FILE_MODE_DEFAULT: u16 = 0o600;
/// What the directories' names begin with; the OS process's number and a random one follow.
pub const FILES_DIR_PREFIX: &str = "files-";
/// How many this OS process has made.
static MADE: AtomicU64 = AtomicU64::new(0);
/// Directories in one another at most.
const DEPTH_MAX: usize = 64;

/// A file of a process, as an image has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Its path below the process's directory: any bytes but NUL.
    pub name: Vec<u8>,
    /// Those of [`FILE_MODE_BITS`] that it has.
    pub mode: u16,
    /// What is in it.
    pub bytes: Buf,
}

/// Limits on the files of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesLimits {
    /// Files.
    pub count_max: usize,
    /// Bytes of them together.
    pub bytes_max: u64,
}

/// Why files cannot go into an image, or come out of one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// More files than may be.
    #[error("there are more than {0} files in the process's directory (files_max)")]
    TooMany(usize),
    /// More bytes than may be.
    #[error("the files of the process have more than {0} bytes (files_max_bytes)")]
    TooLarge(u64),
    /// A directory is too far below the process's.
    #[error("directory '{0}' is more than {DEPTH_MAX} levels below the process's directory")]
    TooDeep(String),
    /// A name that leads elsewhere, or nowhere.
    #[error("{0:?} is no name of a file in the process's directory")]
    BadName(String),
    /// The system refuses.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No memory for a file.
    #[error("no memory for the file {name:?}")]
    Pool {
        /// The file.
        name: String,
        /// The pool's limit.
        source: PoolExhausted,
    },
}

fn io_error<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> FilesError + 'a {
    move |source| FilesError::Io {
        operation,
        path: path.into(),
        source,
    }
}

/// The directory of a process; it ends with this.
#[derive(Debug)]
pub struct FilesDir {
    path: PathBuf,
}

impl FilesDir {
    /// A new directory in `base`, which nobody else may look into.
    ///
    /// # Errors
    /// The system refuses.
    pub fn create(base: &Path) -> Result<Self, FilesError> {
        let mut random = [0; 8];
        let drawn = clock::random_fill(&mut random);
        drawn.map_err(|error| io_error("name", base)(io::Error::other(error.to_string())))?;
        // Simulations in one OS process may draw the same.
        let random = u64::from_le_bytes(random).wrapping_add(MADE.fetch_add(1, Ordering::Relaxed));
        let name = format!("{FILES_DIR_PREFIX}{}-{random:016x}", std::process::id());
        let path = base.join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(io_error("make", &path))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All regular files in it, by name.
    ///
    /// # Errors
    /// Limits; no memory; the system refuses.
    pub fn image(&self, pool: &BufPool, limits: FilesLimits) -> Result<Vec<ImageFile>, FilesError> {
        let mut names = Vec::new();
        names_gather(&self.path, &[], 0, limits.count_max, &mut names)?;
        names.sort_unstable();
        let mut bytes = 0_u64;
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let path = self.path.join(OsStr::from_bytes(&name));
            // What was a file a moment ago may have gone, or be a link now.
            let Some(mut file) = file_open(&path)? else {
                continue;
            };
            let meta = file.metadata().map_err(io_error("look at", &path))?;
            let (len, mode) = (meta.len(), meta.permissions().mode() as u16);
            bytes = bytes.saturating_add(len);
            if bytes > limits.bytes_max {
                return Err(FilesError::TooLarge(limits.bytes_max));
            }
            let len = usize::try_from(len).map_err(|_| FilesError::TooLarge(limits.bytes_max))?;
            let mut buf = pool.alloc(len).map_err(|source| FilesError::Pool {
                name: name_shown(&name),
                source,
            })?;
            let mut got = 0;
            while got < len {
                match file.read(&mut buf[got..]) {
                    // It was cut off meanwhile.
                    Ok(0) => break,
                    Ok(more) => got += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(io_error("read", &path)(error)),
                }
            }
            buf.truncate(got);
            files.push(ImageFile {
                name,
                mode: mode & FILE_MODE_BITS,
                bytes: buf.freeze(),
            });
        }
        Ok(files)
    }

    /// Makes the files of an image, in a directory that is new.
    ///
    /// # Errors
    /// A name that leads out of the directory; the system refuses.
    pub fn restore(&self, files: &[ImageFile]) -> Result<(), FilesError> {
        for ImageFile { name, mode, bytes } in files {
            let relative = name_check(name)?;
            let path = self.path.join(relative);
            if let Some(parent) = path.parent() {
                let mut builder = DirBuilder::new();
                let made = builder.recursive(true).mode(0o700).create(parent);
                made.map_err(io_error("make", parent))?;
            }
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            // Last, since it may be one that nobody may write to; the mask of this process has no
            // say in it.
            let mode = Permissions::from_mode((mode & FILE_MODE_BITS).into());
            let written = file.and_then(|mut file| {
                file.write_all(bytes)?;
                file.set_permissions(mode)
            });
            written.map_err(io_error("write", &path))?;
        }
        Ok(())
    }
}

impl Drop for FilesDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove a directory");
        }
    }
}

/// A regular file, not followed if it is a link; none if it is no such thing any more.
fn file_open(path: &Path) -> Result<Option<File>, FilesError> {
    // A pipe would let us wait for its other end.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => {
            let meta = file.metadata().map_err(io_error("look at", path))?;
            Ok(meta.is_file().then_some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Ok(None),
        Err(error) => Err(io_error("open", path)(error)),
    }
}

/// The names of all regular files below a directory.
fn names_gather(
    dir: &Path,
    prefix: &[u8],
    depth: usize,
    count_max: usize,
    names: &mut Vec<Vec<u8>>,
) -> Result<(), FilesError> {
    let entries = match fs::read_dir(dir) {
        // It was there a moment ago.
        Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => return Ok(()),
        entries => entries.map_err(io_error("list", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(io_error("list", dir))?;
        let kind = entry.file_type().map_err(io_error("look at", dir))?;
        let mut name = [prefix, entry.file_name().as_bytes()].concat();
        if name.len() > FILE_NAME_MAX_BYTES {
            return Err(FilesError::BadName(name_shown(&name)));
        }
        if kind.is_dir() && depth == DEPTH_MAX {
            return Err(FilesError::TooDeep(name_shown(&name)));
        }
        if kind.is_dir() {
            let below = dir.join(entry.file_name());
            name.push(b'/');
            names_gather(&below, &name, depth + 1, count_max, names)?;
        } else if kind.is_file() {
            if names.len() >= count_max {
                return Err(FilesError::TooMany(count_max));
            }
            names.push(name);
        } else {
            let name = name_shown(&name);
            tracing::warn!(name, "neither a file nor a directory: not in the image");
        }
    }
    Ok(())
}

/// A name in an error or the log.
fn name_shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// A name as a path below the directory.
fn name_check(name: &[u8]) -> Result<&Path, FilesError> {
    let path = Path::new(OsStr::from_bytes(name));
    let plain = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    // What a path leaves out, as in `a//b` and `a/.`, would be another name when it comes back.
    let same = path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
    let good = plain && same && !name.contains(&0);
    match good && (1..=FILE_NAME_MAX_BYTES).contains(&name.len()) {
        true => Ok(path),
        false => Err(FilesError::BadName(name_shown(name))),
    }
}

/// Removes what OS processes that are gone have left in a run directory: those that `lives` does
/// not know. How many.
pub fn files_dirs_sweep(base: &Path, lives: impl Fn(u32) -> bool) -> usize {
    let Ok(entries) = fs::read_dir(base) else {
        return 0;
    };
    let mut removed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| {
            let (pid, _) = name.strip_prefix(FILES_DIR_PREFIX)?.split_once('-')?;
            pid.parse().ok()
        });
        let dead = pid.is_some_and(|pid| !lives(pid));
        if dead && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            removed += usize::from(fs::remove_dir_all(entry.path()).is_ok());
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn file(name: &str) -> ImageFile {
        ImageFile {
            name: name.into(),
            mode: FILE_MODE_DEFAULT,
            bytes: Buf::default(),
        }
    }

    const LIMITS: FilesLimits = FilesLimits {
        count_max: 3,
        bytes_max: 10,
    };

    #[test]
    fn files_go_and_come_back() {
        let base = tempfile::tempdir().unwrap();
        let pool = BufPool::new(1 << 20);
        let dir = FilesDir::create(base.path()).unwrap();
        let mode = fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/c"), b"12345").unwrap();
        fs::write(dir.path().join("empty"), b"").unwrap();
        symlink("/etc/passwd", dir.path().join("link")).unwrap();
        symlink("/etc", dir.path().join("folder")).unwrap();
        let image = dir.image(&pool, LIMITS).unwrap();
        let names: Vec<_> = image.iter().map(|file| &file.name[..]).collect();
        assert_eq!(names, [&b"a/b/c"[..], b"empty"]);

        let other = FilesDir::create(base.path()).unwrap();
        other.restore(&image).unwrap();
        assert_eq!(other.image(&pool, LIMITS).unwrap(), image);
        fs::write(other.path().join("d"), b"67890").unwrap();
        assert_eq!(other.image(&pool, LIMITS).unwrap().len(), 3);
        fs::write(other.path().join("d"), b"678901").unwrap();
        let error = other.image(&pool, LIMITS).unwrap_err();
        assert!(matches!(error, FilesError::TooLarge(10)));
        fs::write(other.path().join("d"), b"").unwrap();
        fs::write(other.path().join("e"), b"").unwrap();
        let error = other.image(&pool, LIMITS).unwrap_err();
        assert!(matches!(error, FilesError::TooMany(3)));

        let own = std::process::id();
        assert_eq!(files_dirs_sweep(base.path(), |pid| pid == own), 0);
        let gone = other.path().to_owned();
        drop(other);
        assert!(!gone.exists());
        assert_eq!(files_dirs_sweep(base.path(), |_| false), 1);
        assert!(!dir.path().exists());
    }

    /// Programs are still to be run, and what is private stays so; names are whatever they are.
    #[test]
    fn modes_and_names_in_any_bytes_come_back() {
        let base = tempfile::tempdir().unwrap();
        let pool = BufPool::new(1 << 20);
        let dir = FilesDir::create(base.path()).unwrap();
        let folder = dir.path().join(OsStr::from_bytes(b"f\xffolder"));
        fs::create_dir(&folder).unwrap();
        for (name, mode) in [(&b"run"[..], 0o750), (b"\xc3\x28", 0o444), (b"all", 0o666)] {
            let path = folder.join(OsStr::from_bytes(name));
            fs::write(&path, name).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o4000 | mode)).unwrap();
        }
        let image = dir.image(&pool, LIMITS).unwrap();
        let modes: Vec<_> = image
            .iter()
            .map(|file| (&file.name[..], file.mode))
            .collect();
        let expected = [
            (&b"f\xffolder/all"[..], 0o666),
            (b"f\xffolder/run", 0o750),
            (b"f\xffolder/\xc3\x28", 0o444),
        ];
        assert_eq!(modes, expected);
        let other = FilesDir::create(base.path()).unwrap();
        other.restore(&image).unwrap();
        assert_eq!(other.image(&pool, LIMITS).unwrap(), image);
        let run = other.path().join(OsStr::from_bytes(b"f\xffolder/run"));
        let mode = fs::metadata(run).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o750);
    }

    #[test]
    fn no_name_leads_elsewhere() {
        let base = tempfile::tempdir().unwrap();
        let dir = FilesDir::create(base.path()).unwrap();
        let bad = [
            "",
            "/etc/x",
            "..",
            "../x",
            "a/../../x",
            "a/./b",
            "./a",
            "a//b",
            "a/",
            "a\0b",
        ];
        for name in bad {
            let error = dir.restore(&[file(name)]).unwrap_err();
            assert!(matches!(error, FilesError::BadName(_)), "{name:?}: {error}");
        }
        dir.restore(&[file("a")]).unwrap();
        let through = dir.restore(&[file("a/b")]);
        assert!(through.is_err(), "a file is no directory");
    }
}
