//! Hosts as real OS processes, without agent or control plane: the lab plays both.
//!
//! ```text
//!   test --- socket pair, runtime::host ---> praas host (one OS process each)
//!    |  \--- clients, Directory::Fixed ----> its endpoint, over shm or tcp
//!    +------ directory server <------------- calls between hosts
//! ```
//!
//! Secrets and tickets are made here. A [`Lab`] that is dropped has ended every host, and then
//! looks for what they may have left: processes, sockets, shared memory, files.

mod directory;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use praas_runtime::client::{Client, ClientConfig, Directory};
use praas_runtime::directory::Resolved;
use praas_runtime::host::{FromHost, HostReader, HostStart, ToHost, host_send};
use praas_runtime::process::{ProcessSettings, ProcessStats};
use praas_runtime::swap::SwapConfig;
use praas_transport::{
    Address, Credential, Incarnation, Kinds, Role, Secret, Ticket, TransportKind, WaitMode,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::directory::DirectoryServer;

/// The application that all hosts of a lab belong to.
pub const APPLICATION: &str = "lab";

/// How long anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

const KEY_ID: u32 = 1;

/// A place for hosts.
#[derive(Debug)]
pub struct Lab {
    praas: PathBuf,
    dir: tempfile::TempDir,
    secret: Secret,
    known: Known,
    directory: DirectoryServer,
    incarnations: Mutex<u64>,
    /// What was started, for the look at what is left.
    addresses: Mutex<Vec<Address>>,
}

/// Where processes are, for clients and for the directory server.
type Known = Arc<Mutex<BTreeMap<String, Resolved>>>;

/// A host. Dropping it kills it.
#[derive(Debug)]
pub struct LabHost {
    /// Where it listens.
    pub addresses: Vec<Address>,
    /// The generation that it began with.
    pub swap_generation: u64,
    /// Newer generations that do not verify.
    pub rejected: Vec<String>,
    child: Child,
    agent: Option<UnixStream>,
    reader: HostReader,
    log: PathBuf,
}

impl Lab {
    /// A lab whose hosts are started as `praas host`, `praas` being the path of the command.
    pub fn new(praas: &str) -> Self {
        let known = Known::default();
        let secret = Secret::generate().expect("random bytes");
        let directory = DirectoryServer::start(&secret, KEY_ID, Arc::clone(&known));
        Self {
            praas: praas.into(),
            dir: tempfile::tempdir().expect("a directory"),
            secret,
            known,
            directory,
            incarnations: Mutex::new(0),
            addresses: Mutex::new(Vec::new()),
        }
    }

    /// Where hosts keep their swap images.
    pub fn swap_dir(&self) -> PathBuf {
        self.dir.path().join("swap")
    }

    /// The socket that hosts redial: nobody listens there unless the test does.
    pub fn agent_socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// The application's secret.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Where hosts look others up.
    pub fn directory(&self) -> &[Address] {
        self.directory.addresses()
    }

    /// Starts a process with two workers and the lab's functions.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(&self, process: &str) -> LabHost {
        self.start_with(process, |_| {})
            .unwrap_or_else(|error| panic!("{process} does not start: {error}"))
    }

    /// Starts a process with changed settings; what it says if it fails.
    ///
    /// # Errors
    /// `Failed`.
    ///
    /// # Panics
    /// It ends without a word.
    pub fn start_with(
        &self,
        process: &str,
        change: impl FnOnce(&mut HostStart),
    ) -> Result<LabHost, String> {
        let mut start = self.host_start(process);
        change(&mut start);
        let mut host = self.spawn(&start);
        host.say(&ToHost::Start(Box::new(start.clone())));
        match host.hear() {
            Some(FromHost::Ready {
                addresses,
                swap_generation,
                rejected,
            }) => {
                let resolved = Resolved {
                    incarnation: Incarnation(start.incarnation),
                    addresses: addresses.clone(),
                };
                lock(&self.addresses).extend(addresses.iter().cloned());
                lock(&self.known).insert(process.into(), resolved);
                host.addresses = addresses;
                host.swap_generation = swap_generation;
                host.rejected = rejected;
                Ok(host)
            }
            Some(FromHost::Failed { error }) => {
                assert_eq!(host.end_wait().code(), Some(1), "{error}");
                Err(error)
            }
            other => panic!("{process} says {other:?}; its log:\n{}", host.log_text()),
        }
    }

    /// What a host is told by default.
    pub fn host_start(&self, process: &str) -> HostStart {
        let mut incarnations = lock(&self.incarnations);
        *incarnations += 1;
        HostStart {
            application: APPLICATION.into(),
            process: process.into(),
            incarnation: *incarnations,
            life: *incarnations,
            modules: vec![module_path().display().to_string()],
            settings: ProcessSettings {
                workers: 2,
                wait: WaitMode::Warm,
                ..ProcessSettings::default()
            },
            listen: Vec::new(),
            verbs_listen: Vec::new(),
            key_id: KEY_ID,
            secret: self.secret.clone(),
            directory: self.directory.addresses().to_vec(),
            transports: Kinds::all(),
            storage: self.swap_dir().display().to_string(),
            swap: SwapConfig::default(),
            swap_generation: 0,
            agent_socket: self.agent_socket().display().to_string(),
            unix_dir: None,
            agent_grace_s: 0,
            cpus: Vec::new(),
            swapped: false,
            from: None,
        }
    }

    /// A host that was told nothing yet.
    pub fn spawn(&self, start: &HostStart) -> LabHost {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // A file's name is no longer than a process's.
        let shown: String = start.process.chars().take(32).collect();
        let log = format!("{shown}-{}.log", start.incarnation);
        let log = self.dir.path().join(log);
        let child = Command::new(&self.praas)
            .args(["host", "--run-dir"])
            .arg(self.dir.path())
            .args(["--application", &start.application])
            .args(["--process", &start.process])
            .args(["--incarnation", &start.incarnation.to_string()])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("praas host");
        LabHost {
            addresses: Vec::new(),
            swap_generation: 0,
            rejected: Vec::new(),
            child,
            agent: Some(ours),
            reader: HostReader::default(),
            log,
        }
    }

    /// A ticket of the lab's application.
    pub fn ticket(&self) -> Ticket {
        Ticket {
            application: APPLICATION.into(),
            role: Role::Client,
            client_id: 0,
            expires_unix_ms: u64::MAX,
            key_id: KEY_ID,
        }
    }

    /// A client's settings: every process that runs now, a good ticket, blocking waits.
    pub fn client_config(&self, force: TransportKind) -> ClientConfig {
        let known = lock(&self.known).clone();
        let credential = Credential::issue(&self.secret, &self.ticket());
        let mut config = ClientConfig::new(Directory::Fixed(known), credential);
        config.transports = force.into();
        config.wait = WaitMode::Warm;
        config
    }

    /// A client over one transport.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn client(&self, force: TransportKind) -> Client {
        Client::new(self.client_config(force)).expect("a client")
    }

    /// What hosts of this lab have left on the node, all of which are to have ended.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = processes_with(self.dir.path());
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
        for address in lock(&self.addresses).iter() {
            if let Address::Shm { name, .. } | Address::Unix { name, .. } = address
                && sockets.contains(name.as_str())
            {
                left.push(format!("socket {address}"));
            }
            if let Address::Tcp(at) | Address::Verbs(at) = address
                && std::net::TcpStream::connect(at).is_ok()
            {
                left.push(format!("listener {address}"));
            }
        }
        let names = |dir: &Path| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.path().display().to_string())
                .collect::<Vec<_>>()
        };
        let shared = names(Path::new("/dev/shm"));
        left.extend(shared.into_iter().filter(|name| name.contains("praas")));
        let files = names(self.dir.path());
        let known = |name: &str| {
            [".log", "/swap", "/agent.sock"]
                .iter()
                .any(|end| name.ends_with(end))
        };
        left.extend(files.into_iter().filter(|name| !known(name)));
        left
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let left = self.leftovers();
            assert!(left.is_empty(), "hosts have left {left:?}");
        }
    }
}

impl LabHost {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something.
    ///
    /// # Panics
    /// It does not listen any more.
    pub fn say(&self, message: &ToHost) {
        let agent = self.agent.as_ref().expect("the lab has hung up");
        host_send(agent, message).unwrap_or_else(|error| panic!("{error}: {}", self.log_text()));
    }

    /// The next that it says; `None` once it has ended.
    ///
    /// # Panics
    /// It says nothing for a minute, or nothing that makes sense.
    pub fn hear(&mut self) -> Option<FromHost> {
        let agent = self.agent.as_ref().expect("the lab has hung up");
        let next = match self.reader.next(agent) {
            // It was killed before it had read all that it was told.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            next => next,
        };
        next.unwrap_or_else(|error| panic!("{error}; its log:\n{}", self.log_text()))
    }

    /// Plays an agent that dies: closes the socket.
    pub fn hang_up(&mut self) {
        self.agent = None;
    }

    /// Plays an agent that comes back, on a socket that the host has dialled.
    pub fn agent_is(&mut self, socket: UnixStream) {
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        self.reader = HostReader::default();
        self.agent = Some(socket);
    }

    /// What it counts.
    ///
    /// # Panics
    /// It says something else.
    pub fn stats(&mut self) -> ProcessStats {
        self.say(&ToHost::Stats);
        match self.hear() {
            Some(FromHost::Stats(stats)) => stats,
            other => panic!("the host says {other:?}, not Stats"),
        }
    }

    /// Swaps it out; its generation, once it has ended.
    ///
    /// # Errors
    /// `SwapFailed`; it serves on.
    ///
    /// # Panics
    /// It says something else, or ends badly.
    pub fn swap_out(&mut self) -> Result<u64, String> {
        self.say(&ToHost::SwapOut);
        self.swapped()
    }

    /// Waits for the outcome of a swap.
    ///
    /// # Errors
    /// As [`LabHost::swap_out`].
    ///
    /// # Panics
    /// As [`LabHost::swap_out`].
    pub fn swapped(&mut self) -> Result<u64, String> {
        match self.hear() {
            Some(FromHost::Swapped { generation, .. }) => {
                assert_eq!(self.end_wait().code(), Some(0), "{}", self.log_text());
                Ok(generation)
            }
            Some(FromHost::SwapFailed { error }) => Err(error),
            other => panic!("the host says {other:?}; its log:\n{}", self.log_text()),
        }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// It has ended.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the host lives");
    }

    /// Kills it, without waiting for its end.
    pub fn kill(&self) {
        self.signal(rustix::process::Signal::KILL);
    }

    /// Whether it runs still.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// It takes longer than a minute.
    pub fn end_wait(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        // Once it was waited for, its number may be another's.
        if let Some(status) = self.child.try_wait().expect("a child") {
            return status;
        }
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(pid, flags).expect("a pidfd");
        let mut wait = [PollFd::new(&pidfd, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).expect("a short time");
        let ended = poll(&mut wait, Some(&patience)).expect("poll");
        assert!(ended == 1, "no end: {}", self.log_text());
        self.child.wait().expect("a child")
    }

    /// Waits until it has been killed.
    ///
    /// # Panics
    /// It ended otherwise.
    pub fn killed_wait(&mut self) {
        assert_eq!(self.end_wait().signal(), Some(9), "{}", self.log_text());
    }

    /// What it has logged.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for LabHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of host {}:\n{}", self.pid(), self.log_text());
        }
        // It may have ended; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks a process until a state object is there: how a test knows that a function runs.
///
/// # Panics
/// It does not come within a minute.
pub fn object_wait(client: &mut Client, process: &str, key: &str) {
    let deadline = Instant::now() + PATIENCE;
    while client
        .invoke(process, "praas.state.get", key.as_bytes())
        .is_err()
    {
        assert!(Instant::now() < deadline, "no state object '{key}'");
    }
}

/// The lab's functions: `cargo test` builds them beside the tests.
///
/// # Panics
/// They are not there.
pub fn module_path() -> PathBuf {
    example_path("lab_functions")
}

/// A module among the examples: `cargo test` builds them beside the tests.
///
/// # Panics
/// It is not there.
pub fn example_path(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("the test's path");
    let target = exe.ancestors().nth(2).expect("target/<profile>/deps/test");
    let path = target.join(format!("examples/lib{name}.so"));
    assert!(
        path.exists(),
        "{} is missing: cargo build -p praas-tests --examples",
        path.display()
    );
    path
}

/// The shared library of a package that the tests depend on.
///
/// # Panics
/// It is not there.
pub fn library_path(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("the test's path");
    let target = exe.ancestors().nth(2).expect("target/<profile>/deps/test");
    let paths = ["", "deps"].map(|folder| target.join(folder).join(format!("lib{name}.so")));
    let changed = |path: &&PathBuf| path.metadata().and_then(|meta| meta.modified()).ok();
    let found = paths
        .iter()
        .filter(|path| path.is_file())
        .max_by_key(changed);
    found
        .unwrap_or_else(|| panic!("none of {paths:?}: build all targets"))
        .clone()
}

/// Processes whose command line names a path.
fn processes_with(path: &Path) -> Vec<String> {
    let path = path.as_os_str().as_encoded_bytes();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            line.split(|byte| *byte == 0)
                .any(|word| word == path)
                .then(|| format!("process {}", entry.file_name().display()))
        })
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
