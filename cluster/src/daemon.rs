//! Control plane and agent as daemons: one of each in a run directory, found and ended for sure.
//!
//! ```text
//!   praas control --> flock(control.lock), writes {pid, start time} --> serves ... ends, or dies
//!   praas down    --> is it locked? --> pid, start time --> pidfd --> signal, wait for its end
//! ```
//!
//! The kernel lets go of the lock when its holder dies, however it dies, so the file needs no
//! clearing up; but for a moment what the holder was just starting may have it still. A pid alone may meanwhile be somebody else's; the start time tells, and after that
//! the pidfd is that process and no other.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::run_dir::RunDir;
use crate::spawn::{Watched, start_time};

/// Bytes that a lock file may have.
const FILE_MAX_BYTES: u64 = 4096;
/// How often a lock that is wanted is tried.
const LOCK_TRY: Duration = Duration::from_millis(10);
/// How long a daemon may take from locking to saying who it is.
const LOCK_WRITE: Duration = Duration::from_secs(2);

/// The daemons that a run directory has one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DaemonKind {
    /// The control plane.
    Control,
    /// The node's agent.
    Agent,
}

impl DaemonKind {
    /// The name, as in commands and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Agent => "agent",
        }
    }

    /// What it is, in words.
    pub fn title(self) -> &'static str {
        match self {
            Self::Control => "control plane",
            Self::Agent => "agent",
        }
    }
}

/// An operating-system process for sure: its number, and when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process with this number, as it is now.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        match start_time(pid) {
            Some(start_ticks) => Ok(Self { pid, start_ticks }),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// A handle on it, if it is still there; `check` is asked once it can no longer be another.
    ///
    /// # Errors
    /// The system's; that it is gone is none.
    pub fn open(self, check: impl FnOnce() -> bool) -> io::Result<Option<ProcessHandle>> {
        let watched = match Watched::open(self.pid) {
            Ok(watched) => watched,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let same = Self::of(self.pid).is_ok_and(|now| now == self);
        Ok((same && check()).then_some(ProcessHandle(watched)))
    }

    /// Whether it is still there, and has not ended. It may be, if the system does not say.
    fn lives(self) -> bool {
        match self.open(|| true) {
            Ok(Some(handle)) => !handle.wait(Instant::now()).unwrap_or(false),
            Ok(None) => false,
            Err(_) => true,
        }
    }
}

/// A process that signals reach, and no other even if its number is used again.
#[derive(Debug)]
pub struct ProcessHandle(Watched);

impl ProcessHandle {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        self.0.signal(signal);
    }

    /// Waits until it has ended; whether it has by the deadline.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or_default();
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        }
        // A child of ours would stay as a zombie otherwise; of others this is an error.
        if let Some(pid) = pid_of(self.pid()) {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
        Ok(true)
    }
}

fn is_gone(error: &io::Error) -> bool {
    let gone = rustix::io::Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(gone)
}

fn pid_of(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Held by a daemon for as long as it runs.
#[derive(Debug)]
pub struct DaemonLock(#[allow(dead_code, reason = "closing it unlocks")] File);

/// Why a daemon cannot be the one of its run directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// There is one already.
    #[error("the {what} of {dir} runs already, as process {pid}")]
    Taken {
        /// What it is.
        what: &'static str,
        /// The run directory.
        dir: PathBuf,
        /// Its process; zero if it does not say.
        pid: u32,
    },
    /// The lock file cannot be used.
    #[error("cannot use the lock file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DaemonLock {
    /// Makes this process the one daemon of its kind in the run directory.
    ///
    /// # Errors
    /// There is one; the file cannot be used.
    pub fn take(run_dir: &RunDir, kind: DaemonKind) -> Result<Self, LockError> {
        let path = lock_path(run_dir, kind);
        let failed = |source| LockError::File {
            path: path.clone(),
            source,
        };
        let mut file = lock_open(&path).map_err(failed)?;
        let until = Instant::now() + LOCK_WRITE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let holder = lock_read(&path);
            if Instant::now() >= until || holder.is_some_and(ProcessId::lives) {
                return Err(LockError::Taken {
                    what: kind.title(),
                    dir: run_dir.root().into(),
                    pid: holder.map_or(0, |id| id.pid),
                });
            }
            // What a daemon was starting as it was killed has its lock until it is that; or another
            // daemon has just taken it, and is about to say so.
            std::thread::park_timeout(LOCK_TRY);
        }
        let id = ProcessId::of(std::process::id()).map_err(failed)?;
        let text = serde_json::to_string(&id).map_err(|error| failed(error.into()))?;
        file.set_len(0).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(Self(file))
    }
}

/// The daemon that runs, if one does.
///
/// # Errors
/// The system's.
pub fn daemon_find(run_dir: &RunDir, kind: DaemonKind) -> io::Result<Option<ProcessHandle>> {
    let path = lock_path(run_dir, kind);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let until = Instant::now() + LOCK_WRITE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            // Nobody holds it. Closing the file gives it back.
            Ok(()) => return Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        // Empty, or an older one's, for a moment between locking and writing.
        let held = lock_read(&path).map(|id| id.open(|| true)).transpose()?;
        match held.flatten() {
            Some(handle) => return Ok(Some(handle)),
            None if Instant::now() < until => std::thread::park_timeout(LOCK_TRY),
            None => {
                let text = format!("{} is locked by a process it does not name", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
    }
}

fn lock_path(run_dir: &RunDir, kind: DaemonKind) -> PathBuf {
    run_dir.root().join(format!("{}.lock", kind.name()))
}

fn lock_open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}

fn lock_read(path: &Path) -> Option<ProcessId> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(FILE_MAX_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Held by `up` and `down` while they work, so that there is one of them at a time.
#[derive(Debug)]
pub struct LaunchLock(#[allow(dead_code, reason = "closing it unlocks")] File);

/// The name of the lock that `up` and `down` hold.
pub(crate) const LAUNCH_LOCK: &str = "launch.lock";

impl LaunchLock {
    /// Waits for the lock of a directory, which is made if it is missing.
    ///
    /// # Errors
    /// The system's; `TimedOut` if others hold it until the deadline.
    pub fn take(dir: &Path, deadline: Instant) -> io::Result<(RunDir, Self)> {
        loop {
            let run_dir = RunDir::create(dir)?;
            let path = run_dir.root().join(LAUNCH_LOCK);
            let file = match lock_open(&path) {
                Ok(file) => file,
                // Purged in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let named = std::fs::metadata(&path).map(|meta| meta.ino()).ok();
                    // Whoever had it may have purged the directory.
                    if named == Some(file.metadata()?.ino()) {
                        return Ok((run_dir, Self(file)));
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::park_timeout(LOCK_TRY);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let text = format!("another `praas up` or `down` holds {}", path.display());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The hosts that live and belong to a run directory, whoever started them.
///
/// # Errors
/// `/proc` cannot be read.
pub fn hosts_find(run_dir: &RunDir) -> io::Result<Vec<ProcessHandle>> {
    let uid = rustix::process::geteuid().as_raw();
    let mut hosts = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // What ends meanwhile is none.
        if !entry.metadata().is_ok_and(|meta| meta.uid() == uid) || !host_is(pid, run_dir) {
            continue;
        }
        if let Ok(id) = ProcessId::of(pid) {
            hosts.extend(id.open(|| host_is(pid, run_dir))?);
        }
    }
    Ok(hosts)
}

/// Whether a process is `praas host --run-dir <this one>`.
fn host_is(pid: u32, run_dir: &RunDir) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let root = run_dir.root().as_os_str().as_bytes();
    // Before them is the program, which a setting may have made several words.
    words
        .iter()
        .position(|word| *word == b"--run-dir")
        .is_some_and(|at| at >= 2 && words[at - 1] == b"host" && words.get(at + 1) == Some(&root))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn dir() -> (tempfile::TempDir, RunDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::create(&parent.path().join("run")).unwrap();
        (parent, dir)
    }

    /// A process that waits, under a name and with arguments of our choice.
    fn sleeper(words: &[&str]) -> Child {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("/bin/sh");
        command.arg0("praas").args(["-c", "read x"]).args(words);
        command.stdin(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn a_daemon_is_found_while_it_holds_its_lock() {
        let (_parent, dir) = dir();
        assert!(daemon_find(&dir, DaemonKind::Agent).unwrap().is_none());
        let lock = DaemonLock::take(&dir, DaemonKind::Agent).unwrap();
        let found = daemon_find(&dir, DaemonKind::Agent).unwrap().unwrap();
        assert_eq!(found.pid(), std::process::id());
        let error = DaemonLock::take(&dir, DaemonKind::Agent).unwrap_err();
        assert!(matches!(error, LockError::Taken { pid, .. } if pid == std::process::id()));
        assert!(daemon_find(&dir, DaemonKind::Control).unwrap().is_none());
        drop(lock);
        assert!(daemon_find(&dir, DaemonKind::Agent).unwrap().is_none());
    }

    /// The child that a daemon was about to make a host of has the daemon's files for a moment.
    #[test]
    fn a_lock_that_outlives_its_daemon_is_waited_for() {
        let (_parent, dir) = dir();
        let mut child = sleeper(&[]);
        let id = ProcessId::of(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let path = lock_path(&dir, DaemonKind::Agent);
        let mut file = lock_open(&path).unwrap();
        let text = serde_json::to_string(&id).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let (opened, waiter) = (
            path,
            std::thread::spawn(move || DaemonLock::take(&dir, DaemonKind::Agent)),
        );
        // It has the file open: it has tried, or is about to.
        let begun = Instant::now();
        let have_it = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let of = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
            of.filter(|path| *path == opened).count()
        };
        while have_it() < 2 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody tries");
            std::thread::yield_now();
        }
        while begun.elapsed() < LOCK_TRY * 3 {
            std::thread::yield_now();
        }
        drop(file);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_process_that_took_over_a_number_is_left_alone() {
        let mut child = sleeper(&[]);
        let id = ProcessId::of(child.id()).unwrap();
        let older = ProcessId {
            start_ticks: id.start_ticks - 1,
            ..id
        };
        assert!(older.open(|| true).unwrap().is_none());
        assert!(id.open(|| false).unwrap().is_none());
        let handle = id.open(|| true).unwrap().unwrap();
        assert!(!handle.wait(Instant::now()).unwrap());
        handle.signal(Signal::KILL);
        assert!(handle.wait(Instant::now() + PATIENCE).unwrap());
        handle.signal(Signal::KILL);
        // Reaped by the wait, or here.
        let _ = child.wait();
        assert!(id.open(|| true).unwrap().is_none());
    }

    #[test]
    fn one_launcher_at_a_time_also_when_the_directory_was_purged() {
        let (parent, dir) = dir();
        let (_, lock) = LaunchLock::take(dir.root(), Instant::now()).unwrap();
        let error = LaunchLock::take(dir.root(), Instant::now()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let path = dir.root().to_owned();
        let waiter = std::thread::spawn(move || LaunchLock::take(&path, Instant::now() + PATIENCE));
        std::fs::remove_dir_all(dir.root()).unwrap();
        drop(lock);
        let (again, _lock) = waiter.join().unwrap().unwrap();
        assert!(
            again
                .root()
                .starts_with(parent.path().canonicalize().unwrap())
        );
        assert!(again.root().join(LAUNCH_LOCK).exists());
    }
}
