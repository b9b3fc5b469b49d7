//! Reading a peer's private memory by the kernel: cross-memory attach.
//!
//! Whether a process may read another is the system's decision (ptrace scope, user namespaces,
//! seccomp), known by trying. The peer's process id comes from the kernel, and the address only
//! ever names memory of that process. A process id may be another process's once the peer has
//! died; its life word, which is set before its id is free, tells so after each read.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, PoisonError};

use rustix::process::Uid;

use super::life::LifeWatch;

/// Why reading by the kernel was refused last, in this process.
static REFUSED: Mutex<Option<String>> = Mutex::new(None);

/// Why a peer's private memory could not be read, if that was tried and failed.
pub(super) fn attach_refused() -> Option<String> {
    REFUSED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// Whether processes like this one may read one another, as far as it can be told without a peer.
///
/// # Errors
/// Why not.
pub(super) fn attach_check() -> Result<(), String> {
    if let Some(why) = attach_refused() {
        return Err(why);
    }
    let (from, mut into) = ([1; 8], [0; 8]);
    let address = from.as_ptr().expose_provenance() as u64;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    read_all(own, address, &mut into).map_err(|error| format!("process_vm_readv: {error}"))?;
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    match scope.as_deref().map_or("0", str::trim) {
        "0" => Ok(()),
        // Root, or rather its capability, is above scope 1 and 2.
        "1" | "2" if rustix::process::geteuid().is_root() => Ok(()),
        scope => Err(format!("kernel.yama.ptrace_scope is {scope}")),
    }
}

/// Whose process a socket was connected by, or listened at, on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerProcess {
    /// None if it is in a namespace of processes that we do not see, as in another container.
    pub(super) pid: Option<libc::pid_t>,
    pub(crate) user: Uid,
}

/// Asks the kernel who is on the other side of a Unix socket.
///
/// # Errors
/// It does not tell.
pub(crate) fn peer_process(socket: &impl AsFd) -> io::Result<PeerProcess> {
    let mut told = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to a structure of that size, which has integers
    // only.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            std::ptr::from_mut(&mut told).cast(),
            &mut len,
        )
    };
    match done {
        0 => Ok(PeerProcess::new(told)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The process on the other side of a Unix socket: its id, unless that means nothing here (it is in
/// a namespace that we do not see), and the number of its user.
///
/// # Errors
/// The kernel does not tell.
pub fn peer_ids(socket: &impl AsFd) -> io::Result<(Option<u32>, u32)> {
    let peer = peer_process(socket)?;
    Ok((peer.pid.map(i32::unsigned_abs), peer.user.as_raw()))
}

impl PeerProcess {
    fn new(told: libc::ucred) -> Self {
        Self {
            pid: (told.pid > 0).then_some(told.pid),
            user: Uid::from_raw(told.uid),
        }
    }
}

/// The way into a peer's private memory.
pub(super) struct Attach {
    /// The peer's process; none if it cannot be read.
    pid: Option<libc::pid_t>,
}

impl Attach {
    /// Attaches to whoever is on the other side of a socket.
    pub(super) fn new(socket: &impl AsFd) -> Self {
        let peer = peer_process(socket);
        Self {
            pid: peer.ok().and_then(|peer| peer.pid),
        }
    }

    pub(super) fn none() -> Self {
        Self { pid: None }
    }

    pub(super) fn is_open(&self) -> bool {
        self.pid.is_some()
    }

    /// Copies from the peer's memory; whether all bytes came. Who cannot read once never tries
    /// again.
    pub(super) fn read(&mut self, address: u64, into: &mut [u8], life: &LifeWatch) -> bool {
        let Some(pid) = self.pid else {
            return false;
        };
        match read_all(pid, address, into) {
            Ok(()) => !life.dead(),
            Err(error) => {
                // Of an address that is not there the peer is to blame, not the system.
                if error.raw_os_error() != Some(libc::EFAULT) && !life.dead() {
                    let text = format!("process_vm_readv of process {pid}: {error}");
                    tracing::info!("large messages from private memory are copied twice: {text}");
                    *REFUSED.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
                    self.pid = None;
                }
                false
            }
        }
    }
}

fn read_all(pid: libc::pid_t, address: u64, into: &mut [u8]) -> io::Result<()> {
    let mut got = 0;
    while got < into.len() {
        let rest = &mut into[got..];
        let local = libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        };
        let from = address.checked_add(got as u64).ok_or(BAD_ADDRESS)?;
        let remote = libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(from as usize),
            iov_len: rest.len(),
        };
        // SAFETY: the local range is a unique slice of ours, which the kernel fills; the remote one
        // is another process's, and never touched by this one.
        let read = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
        match read {
            0 => return Err(BAD_ADDRESS.into()),
            1.. => got += read as usize,
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

const BAD_ADDRESS: io::ErrorKind = io::ErrorKind::UnexpectedEof;

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use mio::net::UnixStream;

    use super::super::life::life_page;
    use super::*;

    #[test]
    fn a_peer_that_has_no_process_here_is_not_read() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let user = rustix::process::geteuid();
        let pid = Some(own);
        assert_eq!(peer_process(&ours).unwrap(), PeerProcess { pid, user });
        // What the kernel says of processes in a namespace that we do not see.
        let (uid, gid) = (7, 7);
        let peer = PeerProcess::new(libc::ucred { pid: 0, uid, gid });
        assert_eq!((peer.pid, peer.user), (None, Uid::from_raw(7)));
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert!(peer_process(&pipe).is_err() && !Attach::new(&pipe).is_open());
    }

    #[test]
    fn only_the_peers_own_memory_is_read() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let life = life_page().unwrap().as_fd().try_clone_to_owned().unwrap();
        let life = LifeWatch::new(life).unwrap();
        let mut attach = Attach::new(&ours);
        let memory = vec![7_u8; 10_000];
        let mut into = vec![0; 10_000];
        let address = memory.as_ptr().expose_provenance() as u64;
        if !attach.read(address, &mut into, &life) {
            println!("SKIP: {:?}", attach_refused());
            return;
        }
        assert_eq!(into, memory);
        assert!(!attach.read(8, &mut into, &life) && attach.is_open());
        assert!(!attach.read(u64::MAX - 9, &mut into, &life) && attach.is_open());
        assert!(!Attach::none().is_open());
        assert_eq!(attach_check(), Ok(()));
    }
}
