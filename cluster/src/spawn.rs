//! Operating-system processes: starting them, watching them, killing them, and being told to end.
//!
//! ```text
//!   Spawn --posix_spawn--> process of its own session --pidfd--> Watched: exit, kill, reap
//!   Poller: pidfds, sockets, the stop descriptor, an endpoint      one epoll, one thread
//! ```
//!
//! A process that is started here outlives its parent: it has a session of its own, so neither the
//! terminal's Ctrl-C nor its hang-up reaches it. `posix_spawn` shares the parent's memory until the
//! exec, so that a start costs the same however large the parent is. A process is held by its
//! pidfd, which never comes to mean another one.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::ptr;
use std::time::Duration;

use praas_transport::sync::atomic::{AtomicU32, Ordering};
use rustix::event::epoll;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

/// A program that is to be started.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Its path, then its arguments.
    pub command: &'a [OsString],
    /// Which of this process's own variables go on: all, or those of these names. A name that ends
    /// in a star stands for all that begin like it.
    pub inherit: Option<&'a [String]>,
    /// Variables to set besides.
    pub environment: &'a [(OsString, OsString)],
    /// Its standard input.
    pub stdin: BorrowedFd<'a>,
    /// Its standard output and error.
    pub output: BorrowedFd<'a>,
    /// What it gets as descriptor [`EXTRA_FD`].
    pub extra: Option<BorrowedFd<'a>>,
}

/// The number of the descriptor that a program may get besides the usual three.
pub const EXTRA_FD: RawFd = 3;

/// Takes the descriptor that whoever started this program has left at [`EXTRA_FD`], if there is
/// one. To be called first of all, while nothing else can have that number; it keeps the number,
/// and what this program starts does not get it.
pub fn extra_take() -> Option<OwnedFd> {
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
    // SAFETY: it is borrowed for these calls only. If there is none the first of them says so.
    let fd = unsafe { BorrowedFd::borrow_raw(EXTRA_FD) };
    let flags = fcntl_getfd(fd).ok()?;
    fcntl_setfd(fd, flags | FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and as this is called first nobody else has taken it for theirs.
    Some(unsafe { OwnedFd::from_raw_fd(EXTRA_FD) })
}

/// A process that is watched.
#[derive(Debug)]
pub struct Watched {
    pid: u32,
    pidfd: OwnedFd,
    child: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody knows: it was somebody else's child.
    Unknown,
}

/// The signals by which processes usually end.
const SIGNALS: [(i32, &str); 12] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGXCPU, "SIGXCPU"),
];

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => match SIGNALS.iter().find(|(number, _)| number == signal) {
                Some((_, name)) => write!(f, "killed by {name}"),
                None => write!(f, "killed by signal {signal}"),
            },
            Self::Unknown => f.write_str("how is not known"),
        }
    }
}

impl Spawn<'_> {
    /// Starts the program in a session of its own, with no signal blocked or ignored and no other
    /// descriptor than these.
    ///
    /// # Errors
    /// The program is missing, is none, or there are no processes to be had.
    pub fn start(&self) -> io::Result<Watched> {
        let program = self.command.first().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "there is no program to start")
        })?;
        let path = c_string(program)?;
        let arguments = Strings::new(self.command.iter().map(OsString::as_os_str))?;
        let environment = Strings::new(self.environment_all().iter().map(OsString::as_os_str))?;
        let mut actions = Actions::new()?;
        actions.dup(self.stdin, 0)?;
        actions.dup(self.output, 1)?;
        actions.dup(self.output, 2)?;
        if let Some(extra) = self.extra {
            actions.dup(extra, EXTRA_FD)?;
        }
        inherited_keep()?;
        let attributes = Attributes::new()?;
        let mut pid = 0;
        // SAFETY: path, arguments and environment are NUL-terminated and live through the call, the
        // arrays end with a null pointer, actions and attributes are initialised.
        let error = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                path.as_ptr(),
                actions.0.as_ptr(),
                attributes.0.as_ptr(),
                arguments.pointers.as_ptr(),
                environment.pointers.as_ptr(),
            )
        };
        check(error)?;
        // The pid cannot be another's: nobody but us reaps it.
        Watched::open_inner(pid.unsigned_abs(), true)
    }

    fn environment_all(&self) -> Vec<OsString> {
        let inherited = std::env::vars_os()
            .filter(|(name, _)| self.inherit.is_none_or(|names| is_named(name, names)))
            .filter(|(name, _)| self.environment.iter().all(|(other, _)| other != name));
        inherited
            .chain(self.environment.iter().cloned())
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                name
            })
            .collect()
    }
}

/// Whether a variable is one of these.
fn is_named(variable: &OsStr, names: &[String]) -> bool {
    let variable = variable.as_bytes();
    names.iter().any(|name| match name.strip_suffix('*') {
        Some(begins) => variable.starts_with(begins.as_bytes()),
        None => variable == name.as_bytes(),
    })
}

/// Lets no descriptor go on to whom we start that our own parent has left open for us. What is
/// opened in this program is not inherited anyway.
fn inherited_keep() -> io::Result<()> {
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name();
        let number = number
            .to_str()
            .and_then(|number| number.parse::<RawFd>().ok());
        let Some(number) = number.filter(|number| *number > 2) else {
            continue;
        };
        // SAFETY: it is borrowed for these calls only. One that was closed meanwhile is an error,
        // and one that took its place is not to be inherited, either.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if let Ok(flags) = fcntl_getfd(fd)
            && !flags.contains(FdFlags::CLOEXEC)
        {
            // It may have been closed just now.
            let _ = fcntl_setfd(fd, flags | FdFlags::CLOEXEC);
        }
    }
    Ok(())
}

impl Watched {
    /// Watches a process that was started by somebody else.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn open(pid: u32) -> io::Result<Self> {
        Self::open_inner(pid, false)
    }

    fn open_inner(pid: u32, child: bool) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(io::ErrorKind::NotFound)?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd, child })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Nanoseconds of processor time that it has had; nothing of one that is gone.
    pub fn cpu_ns(&self) -> Option<u64> {
        let pid = libc::pid_t::try_from(self.pid).ok()?;
        let mut clock = 0;
        // SAFETY: the clock's place is ours.
        check(unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) }).ok()?;
        // SAFETY: a zeroed timespec is valid.
        let mut time: libc::timespec = unsafe { std::mem::zeroed() };
        // SAFETY: the time's place is ours. A clock of what has ended is an error.
        if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
            return None;
        }
        Some(time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned())
    }

    /// Bytes of memory that it has; nothing of one that is gone.
    pub fn resident_bytes(&self) -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid)).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub fn signal(&self, signal: Signal) {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::error!(pid = self.pid, %error, "cannot send {signal:?}"),
        }
    }

    /// Kills it.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// How it ended, if it has: a child is gone from the process table then.
    ///
    /// # Errors
    /// The system's.
    pub fn exit(&self) -> io::Result<Option<Exit>> {
        if !self.child {
            let mut fds = [rustix::event::PollFd::new(
                &self.pidfd,
                rustix::event::PollFlags::IN,
            )];
            let zero = rustix::time::Timespec::default();
            let ended = rustix::event::poll(&mut fds, Some(&zero))? > 0;
            return Ok(ended.then_some(Exit::Unknown));
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(None) => Ok(None),
            Ok(Some(status)) => Ok(Some(match status.exit_status() {
                Some(status) => Exit::Status(status),
                None => Exit::Signal(status.terminating_signal().unwrap_or(0)),
            })),
            // Somebody who waits for any child was faster.
            Err(rustix::io::Errno::CHILD) => Ok(Some(Exit::Unknown)),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// When a process was started, in ticks since the system's boot: with its number, this names it
/// for good. `None` if there is none.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name, in parentheses, which may hold anything.
    let after = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(after + 2..)?).ok()?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// The descriptor that tells of signals, once it is wanted.
static STOP: AtomicU32 = AtomicU32::new(NO_STOP);

const NO_STOP: u32 = u32::MAX;

extern "C" fn on_stop(_: libc::c_int) {
    let one = 1_u64.to_ne_bytes();
    let stop = STOP.load(Ordering::Relaxed).cast_signed();
    // SAFETY: write is safe in a signal handler, the buffer is as long as said. What it returns is
    // of no use here: a counter that is full has told already.
    unsafe { libc::write(stop, one.as_ptr().cast(), one.len()) };
}

/// From now on SIGTERM and SIGINT make the descriptor readable, an eventfd that counts them,
/// instead of ending the process. Once per process.
///
/// # Errors
/// No descriptor is to be had, or it was called before.
pub fn stop_signals_catch() -> io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    // The handler's own copy is never closed: a signal may come at any time.
    let kept = stop.try_clone()?;
    let number = kept.as_raw_fd().cast_unsigned();
    let free = STOP.compare_exchange(NO_STOP, number, Ordering::SeqCst, Ordering::SeqCst);
    if free.is_err() {
        return Err(io::Error::other("signals are caught already"));
    }
    std::mem::forget(kept);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: a zeroed sigaction is valid: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_stop as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler does only what is safe in one.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(stop)
}

/// Waits for many descriptors at once, level-triggered; each has a token.
pub struct Poller {
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Poller").field(&self.epoll).finish()
    }
}

impl Poller {
    /// A poller that waits for nothing.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let ready = Vec::with_capacity(256);
        Ok(Self { epoll, ready })
    }

    /// Waits for a descriptor to be readable, and writable if `write`.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&self, fd: impl AsFd, token: u64, write: bool) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, flags(write))?)
    }

    /// The same for a descriptor that is lent as a number, which its owner is to keep open.
    ///
    /// # Errors
    /// The system's.
    pub fn add_raw(&self, fd: RawFd, token: u64) -> io::Result<()> {
        // SAFETY: it is borrowed for this call only. Were it closed meanwhile, another descriptor
        // would be watched in vain; no memory hangs on it.
        self.add(unsafe { BorrowedFd::borrow_raw(fd) }, token, false)
    }

    /// Changes whether a descriptor is waited for to be writable.
    ///
    /// # Errors
    /// The system's.
    pub fn change(&self, fd: impl AsFd, token: u64, write: bool) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::modify(&self.epoll, fd, data, flags(write))?)
    }

    /// Waits no longer for a descriptor. One that is closed and has no duplicates needs no removal.
    pub fn remove(&self, fd: impl AsFd) {
        // An error is a descriptor that is not waited for.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits until something is ready or the time is up; the tokens of what is ready.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<u64>> {
        self.ready.clear();
        let timeout = timeout.and_then(|timeout| rustix::time::Timespec::try_from(timeout).ok());
        let spare = rustix::buffer::spare_capacity(&mut self.ready);
        match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.ready.iter().map(|event| event.data.u64()).collect())
    }
}

fn flags(write: bool) -> epoll::EventFlags {
    match write {
        true => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        false => epoll::EventFlags::IN,
    }
}

/// A log file, to append to, of mode 0600; its folder is made if it is missing.
///
/// # Errors
/// The file system's.
pub fn log_open(path: &std::path::Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let open = || {
        let mut options = File::options();
        options.append(true).create(true).mode(0o600).open(path)
    };
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            open()
        }
        opened => opened,
    }
}

/// Strings as C wants them: an array of pointers that ends with a null one.
struct Strings {
    _strings: Vec<CString>,
    pointers: Vec<*mut libc::c_char>,
}

impl Strings {
    fn new<'a>(strings: impl Iterator<Item = &'a OsStr>) -> io::Result<Self> {
        let strings: Vec<CString> = strings.map(c_string).collect::<io::Result<_>>()?;
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ptr().cast_mut()).collect();
        pointers.push(ptr::null_mut());
        Ok(Self {
            _strings: strings,
            pointers,
        })
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    let bytes = OsString::from(text).into_vec();
    CString::new(bytes).map_err(|_| {
        let shown = String::from_utf8_lossy(text.as_bytes()).into_owned();
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{shown:?} holds a NUL byte"),
        )
    })
}

struct Actions(Box<MaybeUninit<libc::posix_spawn_file_actions_t>>);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = Box::new(MaybeUninit::uninit());
        // SAFETY: the memory is ours; on success it is initialised.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Self(actions))
    }

    fn dup(&mut self, from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
        // SAFETY: the actions are initialised.
        check(unsafe {
            libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), from.as_raw_fd(), to)
        })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: they are initialised, and not used again.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

struct Attributes(Box<MaybeUninit<libc::posix_spawnattr_t>>);

impl Attributes {
    /// A session of its own, no signal blocked, all at their defaults.
    fn new() -> io::Result<Self> {
        let mut attributes = Box::new(MaybeUninit::uninit());
        // SAFETY: the memory is ours; on success it is initialised.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut attributes = Self(attributes);
        let raw = attributes.0.as_mut_ptr();
        let flags = libc::c_int::from(libc::POSIX_SPAWN_SETSID)
            | libc::POSIX_SPAWN_SETSIGMASK
            | libc::POSIX_SPAWN_SETSIGDEF;
        let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: the attributes are initialised; the sets are before they are read.
        unsafe {
            let mut signals = MaybeUninit::uninit();
            libc::sigemptyset(signals.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(raw, signals.as_ptr()))?;
            libc::sigfillset(signals.as_mut_ptr());
            check(libc::posix_spawnattr_setsigdefault(raw, signals.as_ptr()))?;
            check(libc::posix_spawnattr_setflags(raw, flags))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: they are initialised, and not used again.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

fn check(error: libc::c_int) -> io::Result<()> {
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn start(script: &str) -> (Watched, File) {
        let output = tempfile::tempfile().unwrap();
        let null = File::open("/dev/null").unwrap();
        let command = ["/bin/sh", "-c", script].map(OsString::from);
        let watched = Spawn {
            command: &command,
            inherit: None,
            environment: &[("PRAAS_TEST_WORD".into(), "word".into())],
            stdin: null.as_fd(),
            output: output.as_fd(),
            extra: None,
        };
        (watched.start().unwrap(), output)
    }

    fn end_wait(watched: &Watched) -> Exit {
        let mut poller = Poller::new().unwrap();
        poller.add(watched, 7, false).unwrap();
        let ready = poller.wait(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(ready, [7]);
        watched.exit().unwrap().unwrap()
    }

    #[test]
    fn a_process_has_its_own_session_and_tells_how_it_ended() {
        let (watched, mut output) = start("echo $PRAAS_TEST_WORD; cat /proc/$$/stat >&2; exit 3");
        assert_eq!(end_wait(&watched), Exit::Status(3));
        let mut text = String::new();
        output.rewind().unwrap();
        output.read_to_string(&mut text).unwrap();
        let (word, stat) = text.split_once('\n').unwrap();
        assert_eq!(word, "word");
        let session = stat.split(' ').nth(5).unwrap();
        assert_eq!(session, watched.pid().to_string());
        assert_eq!(start_time(watched.pid()), None);
    }

    #[test]
    fn only_what_is_named_is_inherited_and_the_extra_descriptor_is_there() {
        let mut output = tempfile::tempfile().unwrap();
        let null = File::open("/dev/null").unwrap();
        let extra = tempfile::tempfile().unwrap();
        let command = ["/bin/sh", "-c", "env; echo to the extra >&3"].map(OsString::from);
        let names = ["HOME".to_owned(), "CARGO_PKG_*".to_owned()];
        let spawn = Spawn {
            command: &command,
            inherit: Some(&names),
            environment: &[("HOME".into(), "/here".into())],
            stdin: null.as_fd(),
            output: output.as_fd(),
            extra: Some(extra.as_fd()),
        };
        let watched = spawn.start().unwrap();
        assert_eq!(end_wait(&watched), Exit::Status(0));
        let read = |file: &mut File| {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(read(&mut { extra }), "to the extra\n");
        let text = read(&mut output);
        // The shell sets some of its own.
        let own = ["PWD", "OLDPWD", "SHLVL", "_"];
        for line in text.lines() {
            let name = line.split('=').next().unwrap();
            let named = name == "HOME" || name.starts_with("CARGO_PKG_") || own.contains(&name);
            assert!(named, "{line}");
        }
        assert!(text.contains("HOME=/here\n"), "{text}");
        assert!(text.contains("CARGO_PKG_NAME="), "{text}");
    }

    #[test]
    fn what_a_process_has_used_is_told_until_it_is_gone() {
        let own = Watched::open(std::process::id()).unwrap();
        assert!(own.cpu_ns().unwrap() > 0);
        assert!(own.resident_bytes().unwrap() > 4096);
        let (watched, _output) = start("exit 0");
        end_wait(&watched);
        assert_eq!((watched.cpu_ns(), watched.resident_bytes()), (None, None));
    }

    #[test]
    fn what_our_parent_left_open_goes_no_further() {
        let file = tempfile::tempfile().unwrap();
        // Unlike all that this program opens, a duplicate of this kind is inherited.
        let open = rustix::io::dup(&file).unwrap();
        let (watched, mut output) = start("ls /proc/$$/fd");
        assert_eq!(end_wait(&watched), Exit::Status(0));
        let mut text = String::new();
        output.rewind().unwrap();
        output.read_to_string(&mut text).unwrap();
        let number = open.as_raw_fd().to_string();
        assert!(text.lines().all(|line| line != number), "{text}");
    }

    #[test]
    fn a_killed_process_is_reaped() {
        let (watched, _output) = start("exec sleep 1000");
        assert_eq!(watched.exit().unwrap(), None);
        let started = start_time(watched.pid()).unwrap();
        let other = Watched::open(watched.pid()).unwrap();
        assert_eq!(other.exit().unwrap(), None);
        assert_eq!(start_time(watched.pid()), Some(started));
        watched.kill();
        let exit = end_wait(&watched);
        assert_eq!(exit, Exit::Signal(libc::SIGKILL));
        assert_eq!(exit.to_string(), "killed by SIGKILL");
        assert_eq!(other.exit().unwrap(), Some(Exit::Unknown));
        assert!(Watched::open(watched.pid()).is_err());
        watched.kill();
    }

    #[test]
    fn what_cannot_be_started_says_why() {
        let null = File::open("/dev/null").unwrap();
        let start = |command: &[OsString]| {
            let spawn = Spawn {
                command,
                inherit: None,
                environment: &[],
                stdin: null.as_fd(),
                output: null.as_fd(),
                extra: None,
            };
            spawn.start().unwrap_err().kind()
        };
        assert_eq!(start(&["/no/such".into()]), io::ErrorKind::NotFound);
        assert_eq!(start(&[]), io::ErrorKind::InvalidInput);
        assert_eq!(start(&["a\0b".into()]), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn signals_reach_the_descriptor() {
        let stop = stop_signals_catch().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&stop, 1, false).unwrap();
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap(), [0; 0]);
        let own = Watched::open(std::process::id()).unwrap();
        own.signal(Signal::TERM);
        assert_eq!(poller.wait(Some(Duration::from_secs(20))).unwrap(), [1]);
        assert!(stop_signals_catch().is_err());
    }
}
