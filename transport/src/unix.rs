//! AF_UNIX: TCP's framing over Unix stream sockets, for peers of one host that cannot share memory.
//!
//! ```text
//!   unix:HOST/NAME     abstract: reachable within one network namespace, gone with its owner
//!   unix:HOST//PATH    a file of mode 0600: reachable wherever the folder is seen, as from another
//!                      container; PATH.lock beside it is locked as long as its owner lives
//! ```
//!
//! Files stay when their owner is killed. Who listens at a path takes its lock first: the kernel
//! gives up a dead owner's, and then what is left at the path is stale and replaced.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};

use mio::net::{UnixListener, UnixStream};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Uid;

use crate::stream::StreamWire;

/// Bytes that the name or path of a Unix socket may have.
pub(crate) const NAME_MAX_BYTES: usize = 107;
/// Peers that may wait to be taken.
const BACKLOG: i32 = 4096;
/// What files in a folder of sockets are called: this, 16 hexadecimal digits, and the next.
const FILE_PREFIX: &str = "praas-";
const FILE_SUFFIX: &str = ".sock";
const LOCK_SUFFIX: &str = ".lock";

/// A connected peer over Unix sockets.
pub(crate) type UnixWire = StreamWire<UnixStream>;

/// Where a Unix socket listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnixPlace {
    /// In the abstract namespace; without a name, under one that nobody guesses.
    Abstract(Option<String>),
    /// At a path, at most 107 bytes long.
    Path(PathBuf),
    /// In a folder, under a name that nobody guesses. What dead owners left there is removed.
    Folder(PathBuf),
}

impl fmt::Display for UnixPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abstract(name) => f.write_str(name.as_deref().unwrap_or("(any name)")),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Folder(path) => write!(f, "{}/", path.display()),
        }
    }
}

/// A name that no two listeners have.
pub(crate) fn name_generate() -> Result<String, getrandom::Error> {
    Ok(format!("{FILE_PREFIX}{:016x}", getrandom::u64()?))
}

/// The address of a name: a path if it begins with a slash, abstract else.
pub(crate) fn socket_address(name: &str) -> io::Result<SocketAddr> {
    match name.starts_with('/') {
        true => SocketAddr::from_pathname(name),
        false => SocketAddr::from_abstract_name(name),
    }
}

/// A listener, and the lock of its path if it has one.
pub(crate) struct UnixBound {
    pub(crate) listener: UnixListener,
    pub(crate) name: String,
    _lock: Option<PathLock>,
}

impl UnixBound {
    pub(crate) fn bind(place: &UnixPlace) -> io::Result<Self> {
        match place {
            UnixPlace::Abstract(name) => {
                let name = match name {
                    Some(name) => name.clone(),
                    None => name_generate().map_err(io::Error::other)?,
                };
                if name.is_empty() || name.starts_with('/') || name.len() > NAME_MAX_BYTES {
                    let text = "an abstract name has 1 to 107 bytes and no slash in front";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
                let listener = UnixListener::bind_addr(&socket_address(&name)?)?;
                Ok(Self {
                    listener,
                    name,
                    _lock: None,
                })
            }
            UnixPlace::Path(path) => Self::bind_path(path),
            UnixPlace::Folder(folder) => {
                folder_sweep(folder)?;
                let name = name_generate().map_err(io::Error::other)?;
                Self::bind_path(&folder.join(name + FILE_SUFFIX))
            }
        }
    }

    fn bind_path(path: &Path) -> io::Result<Self> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let path = std::path::absolute(path)?;
        let name = path.to_str().map(str::to_owned);
        let name = name.ok_or_else(|| invalid("a path of a socket is UTF-8".into()))?;
        if name.len() > NAME_MAX_BYTES {
            let text = format!("a socket's path has at most {NAME_MAX_BYTES} bytes: {name}");
            return Err(invalid(text));
        }
        let lock = PathLock::take(&path)?.ok_or(io::ErrorKind::AddrInUse)?;
        lock.stale_remove()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The file gets the mode that the socket has now, so it is never open to others.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        let listener = std::os::unix::net::UnixListener::from(socket);
        Ok(Self {
            listener: UnixListener::from_std(listener),
            name,
            _lock: Some(lock),
        })
    }
}

/// The right to listen at a path. Dropped, it takes the socket's file and its own away.
struct PathLock {
    path: PathBuf,
    lock_path: PathBuf,
    _file: File,
}

impl PathLock {
    /// Takes the lock; `None` if somebody who lives has it.
    fn take(path: &Path) -> io::Result<Option<Self>> {
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(LOCK_SUFFIX);
        let lock_path = PathBuf::from(lock_path);
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&lock_path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever had it may have removed the file between our opening and locking it.
            let now = fs::symlink_metadata(&lock_path);
            if now.is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino())) {
                return Ok(Some(Self {
                    path: path.into(),
                    lock_path,
                    _file: file,
                }));
            }
        }
    }

    /// Removes the socket of a dead owner; anything else at the path is left alone.
    fn stale_remove(&self) -> io::Result<()> {
        match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&self.path),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            )),
        }
    }
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // The socket first: whoever finds no lock file may listen there. What cannot be removed is
        // stale for the next one.
        let _ = self.stale_remove();
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Removes what dead owners left in a folder of sockets.
fn folder_sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let socket = name.to_str().and_then(|name| {
            let socket = name.strip_suffix(LOCK_SUFFIX)?;
            (socket.starts_with(FILE_PREFIX) && socket.ends_with(FILE_SUFFIX)).then_some(socket)
        });
        if let Some(socket) = socket
            && let Err(error) = PathLock::take(&folder.join(socket)).map(drop)
        {
            // Another user's, perhaps.
            tracing::debug!(%error, socket, "a socket's file is left where it is");
        }
    }
    Ok(())
}

/// The peer of a Unix socket belongs to the same user, or one of the two is root.
pub(crate) fn peer_user_check(peer: Uid, own: Uid) -> Result<(), String> {
    if peer == own || peer.is_root() || own.is_root() {
        return Ok(());
    }
    Err(format!(
        "the dialler belongs to user {}, not {}",
        peer.as_raw(),
        own.as_raw()
    ))
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_same_user_and_root_are_let_in() {
        let user = Uid::from_raw;
        for (peer, own) in [(7, 7), (0, 7), (7, 0), (0, 0)] {
            assert_eq!(peer_user_check(user(peer), user(own)), Ok(()));
        }
        let error = peer_user_check(user(8), user(7)).unwrap_err();
        assert_eq!(error, "the dialler belongs to user 8, not 7");
    }

    fn files(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// What a killed owner leaves: the files, and no lock.
    fn kill(bound: UnixBound) {
        let UnixBound { _lock, .. } = bound;
        let mut lock = _lock.unwrap();
        // The kernel unlocks the file, and nobody removes what is in the folder.
        lock.path = "/dev/null/gone".into();
        lock.lock_path = "/dev/null/gone.lock".into();
    }

    #[test]
    fn a_path_is_one_owners_until_it_dies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let place = UnixPlace::Path(path.clone());
        let bound = UnixBound::bind(&place).unwrap();
        assert_eq!(bound.name, path.to_str().unwrap());
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = UnixBound::bind(&place).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).expect("the owner is not disturbed");
        kill(bound);
        assert_eq!(files(dir.path()), ["a.sock", "a.sock.lock"]);
        let bound = UnixBound::bind(&place).expect("what is stale is replaced");
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        fs::write(&path, "precious").unwrap();
        let error = UnixBound::bind(&UnixPlace::Path(path.clone())).err();
        assert_eq!(error.unwrap().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(files(dir.path()), ["a.sock"]);
    }

    #[test]
    fn a_folder_is_swept_of_the_dead_only() {
        let dir = tempfile::tempdir().unwrap();
        let place = UnixPlace::Folder(dir.path().into());
        fs::write(dir.path().join("other.sock.lock"), "").unwrap();
        let living = UnixBound::bind(&place).unwrap();
        kill(UnixBound::bind(&place).unwrap());
        let third = UnixBound::bind(&place).unwrap();
        let mut expected: Vec<String> = [&living.name, &third.name]
            .into_iter()
            .map(|name| name.rsplit('/').next().unwrap().to_owned())
            .flat_map(|name| [name.clone(), name + LOCK_SUFFIX])
            .chain(["other.sock.lock".into()])
            .collect();
        expected.sort();
        assert_eq!(files(dir.path()), expected);
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for place in [
            UnixPlace::Abstract(Some("/a".into())),
            UnixPlace::Abstract(Some(String::new())),
            UnixPlace::Abstract(Some("a".repeat(108))),
            UnixPlace::Path(PathBuf::from("/tmp").join("a".repeat(108))),
        ] {
            let error = UnixBound::bind(&place).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{place:?}");
        }
    }
}
