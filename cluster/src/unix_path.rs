//! Unix sockets at paths that may be longer than a socket's address: a run directory may lie deep.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Bytes that the path of a socket may have.
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// Listens at a path; what an agent before this one left there is replaced.
pub(crate) fn socket_bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = with_short_path(path, |path| UnixListener::bind(path))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to a path, without ever waiting for who listens there.
///
/// # Errors
/// Nobody listens there, or more wait already than it lets.
pub fn socket_connect(path: &Path) -> io::Result<UnixStream> {
    let socket: OwnedFd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    with_short_path(path, |path| {
        Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?)
    })?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// A long path is gone by way of a descriptor of its folder.
fn with_short_path<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() <= SOCKET_PATH_MAX_BYTES {
        return act(path);
    }
    let (folder, name) = path.parent().zip(path.file_name()).ok_or_else(|| {
        let text = format!("{} is no path of a socket", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    let folder = File::open(folder)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    act(&short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_no_obstacle_and_a_stale_socket_neither() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("x".repeat(200));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("agent.sock");
        drop(socket_bind(&path).unwrap());
        assert!(path.exists());
        assert!(socket_connect(&path).is_err());
        let listener = socket_bind(&path).unwrap();
        let _stream = socket_connect(&path).unwrap();
        listener.accept().unwrap();
    }
}
