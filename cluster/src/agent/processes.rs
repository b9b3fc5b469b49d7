//! The operating system's side of hosts: their processes, sockets and logs.
//!
//! Each host has a number here, from which its tokens in the poller are made; a number is never
//! used again, so that what is ready late is nobody's.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use praas_control::agent::StartCommand;
use praas_runtime::host::{FromHost, HostFrom, HostHello, HostStart, ToHost, host_frame};
use praas_transport::{Address, StatsPage};

use super::config::AgentConfig;
use super::driver::TOKEN_LISTENER;
use super::hosts::{HostKey, Hosts};
use super::record::{FoundHost, HostRecord, host_arguments, hosts_find, image_find, records_read};
use super::settings::HostSettings;
use super::socket::{self, HostSocket};
use super::stats::HostCounts;
use crate::errors::error_text;
use crate::run_dir::{RUN_DIR_ENV, RunDir};
use crate::spawn::{EXTRA_FD, Poller, Spawn, Watched, log_open, start_time};
use crate::storage::storage_open;
use crate::topology::Topology;

/// What a token is, in its lowest bits: those below it are the driver's.
const SOCKET: u64 = 1;
const PIDFD: u64 = 2;
const VISITOR: u64 = 3;

/// Who dials `agent.sock` says who it is within this.
const VISIT: Duration = Duration::from_secs(10);
const VISITORS_MAX: usize = 1024;

/// How long a new agent waits to hear of the images of hosts that died before it: less than hosts
/// that live wait for it.
const DEAD_IMAGES_WAIT: Duration = Duration::from_secs(3);

/// Bytes of a log's end that are looked at for the last line.
const TAIL_BYTES: u64 = 4096;
/// Characters of it that are shown.
const LINE_MAX: usize = 300;

/// What hosts' descriptors tell.
#[derive(Debug)]
pub(super) enum Heard {
    Said(FromHost),
    /// The connection is gone.
    Unlinked,
    /// It is back, and has been told that it is adopted.
    Redialled(HostHello),
    /// It is dead, and how.
    Died(String),
}

#[derive(Debug)]
struct Process {
    key: HostKey,
    watched: Watched,
    socket: Option<HostSocket>,
    /// Whether the poller waits for room in the socket.
    waits: bool,
    log: PathBuf,
    log_start: u64,
    /// The processors that it is bound to; empty if it is not.
    cpus: Vec<u32>,
    /// Where it counts.
    page: Option<StatsPage>,
}

#[derive(Debug)]
struct Visitor {
    socket: HostSocket,
    pid: u32,
    until: Instant,
}

/// The processes of all hosts.
pub(super) struct Processes {
    run_dir: RunDir,
    config: AgentConfig,
    directory: Vec<Address>,
    command: Vec<OsString>,
    topology: Topology,
    poller: Poller,
    listener: UnixListener,
    processes: HashMap<u64, Process>,
    numbers: HashMap<HostKey, u64>,
    visitors: HashMap<u64, Visitor>,
    last: u64,
}

impl Processes {
    pub(super) fn new(
        run_dir: &RunDir,
        config: &AgentConfig,
        directory: Vec<Address>,
        poller: Poller,
        listener: UnixListener,
    ) -> io::Result<Self> {
        poller.add(&listener, TOKEN_LISTENER, false)?;
        let command = match config.host_command.is_empty() {
            true => vec![std::env::current_exe()?.into(), "host".into()],
            false => config.host_command.iter().map(OsString::from).collect(),
        };
        Ok(Self {
            run_dir: run_dir.clone(),
            config: config.clone(),
            directory,
            command,
            topology: Topology::read(),
            poller,
            listener,
            processes: HashMap::new(),
            numbers: HashMap::new(),
            visitors: HashMap::new(),
            last: 0,
        })
    }

    pub(super) fn poller(&self) -> &Poller {
        &self.poller
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<u64>> {
        self.poller.wait(timeout)
    }

    /// Starts a host's process and tells it what to be: its id, when it was started, and where its
    /// log begins.
    pub(super) fn spawn(
        &mut self,
        key: &HostKey,
        start: StartCommand,
        settings: HostSettings,
    ) -> Result<(u32, u64, u64), String> {
        let log_path = self.run_dir.host_log(&key.application, &key.process);
        let (log, log_start) = self
            .log_begin(&log_path)
            .map_err(|error| format!("cannot open its log {}: {error}", log_path.display()))?;
        let mut command = self.command.clone();
        let arguments = host_arguments(&self.run_dir, key, start.incarnation);
        command.extend(arguments.into_iter().map(OsString::from));
        let cpus = self.cpus_choose(settings.cpus.unwrap_or(self.config.host_cpus));
        let environment = self.environment(&settings);
        let start = self.host_start(start, settings, cpus.clone());
        let start = ToHost::Start(Box::new(start));
        let begun = || -> io::Result<(Watched, HostSocket, StatsPage)> {
            let page = StatsPage::create()?;
            let (ours, theirs) = UnixStream::pair()?;
            let mut socket = HostSocket::new(ours)?;
            let spawn = Spawn {
                command: &command,
                inherit: Some(&self.config.host_environment),
                environment: &environment,
                stdin: theirs.as_fd(),
                output: log.as_fd(),
                extra: Some(page.as_fd()),
            };
            let frame = host_frame(&start)?;
            let watched = spawn.start()?;
            socket.send(frame.into(), false);
            Ok((watched, socket, StatsPage::read(page.as_fd())?))
        };
        let program = command[0].display();
        let (watched, socket, page) =
            begun().map_err(|error| format!("cannot start its host {program}: {error}"))?;
        let pid = watched.pid();
        let started = start_time(pid).unwrap_or(0);
        let number = self
            .insert(key.clone(), watched, log_path, log_start, cpus, Some(page))
            .map_err(|error| format!("cannot watch its host: {error}"))?;
        if let Err(error) = self.socket_set(number, socket) {
            tracing::error!(%key, %error, "cannot wait for what a host says");
        }
        Ok((pid, started, log_start))
    }

    /// The variables of a host, besides those that it inherits.
    fn environment(&self, settings: &HostSettings) -> Vec<(OsString, OsString)> {
        let own = settings.env.iter();
        let own = own.map(|(name, value)| (name.into(), value.into()));
        // Where the page lies by which all processes of the node share their spinning.
        let run_dir = (RUN_DIR_ENV.into(), self.run_dir.root().into());
        own.chain([run_dir]).collect()
    }

    /// What hosts count, as of now; those that have ended are left out.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&HostKey, HostCounts)> {
        self.processes.values().filter_map(|process| {
            let counts = HostCounts::read(process.page.as_ref()?, &process.watched)?;
            Some((&process.key, counts))
        })
    }

    /// What one host counts.
    pub(super) fn counts_of(&self, key: &HostKey) -> Option<HostCounts> {
        let process = self.processes.get(self.numbers.get(key)?)?;
        HostCounts::read(process.page.as_ref()?, &process.watched)
    }

    /// The processors for one more host that is to be bound to so many.
    fn cpus_choose(&self, count: usize) -> Vec<u32> {
        let mut load = BTreeMap::new();
        for cpu in self.processes.values().flat_map(|process| &process.cpus) {
            *load.entry(*cpu).or_default() += 1;
        }
        self.topology.cpus_choose(count, &load)
    }

    fn host_start(&self, start: StartCommand, settings: HostSettings, cpus: Vec<u32>) -> HostStart {
        HostStart {
            application: start.application,
            process: start.process,
            incarnation: start.incarnation,
            life: start.life,
            modules: start.modules,
            settings: settings.process,
            listen: self.config.host_listen.clone(),
            verbs_listen: self.config.host_verbs_listen.clone(),
            unix_dir: self
                .config
                .unix_dir
                .as_ref()
                .map(|dir| dir.display().to_string()),
            key_id: start.key_id,
            secret: start.secret,
            directory: self.directory.clone(),
            transports: settings
                .transports
                .unwrap_or(self.config.transports)
                .without(settings.transports_exclude)
                .without(self.config.transports_exclude),
            storage: self.config.storage_url(&self.run_dir).to_string(),
            swap: settings.swap.unwrap_or(self.config.swap),
            swap_generation: start.swap_generation,
            agent_socket: self.run_dir.agent_socket().display().to_string(),
            agent_grace_s: self.config.agent_grace_s,
            cpus,
            swapped: start.swapped,
            from: start.from.map(|from| HostFrom {
                addresses: from.addresses,
                incarnation: from.incarnation,
                token: from.token,
            }),
        }
    }

    /// Opens a log, and begins another if it has become long.
    fn log_begin(&self, path: &Path) -> io::Result<(File, u64)> {
        let log = log_open(path)?;
        let length = log.metadata()?.len();
        if length <= self.config.log_max_bytes {
            return Ok((log, length));
        }
        fs::rename(path, path.with_extension("log.1"))?;
        Ok((log_open(path)?, 0))
    }

    /// Finds the hosts of an agent before this one; how many live.
    pub(super) fn adopt(&mut self, now: Instant, hosts: &mut Hosts) -> io::Result<usize> {
        let mut found = hosts_find(&self.run_dir)?;
        let (mut adopted, mut dead) = (0, Vec::new());
        for mut record in records_read(&self.run_dir)? {
            let key = record.key();
            let same = |host: &FoundHost| host.key == key && host.incarnation == record.incarnation;
            let at = found.iter().position(same);
            let at = at.map(|at| found.swap_remove(at));
            if let Some(host) = at.filter(|_| record.pid == 0) {
                // It was spawned, and that was not written any more.
                record.pid = host.pid;
                record.started = start_time(host.pid).unwrap_or(0);
            }
            match self.watch(&record) {
                Some(watched) => {
                    self.adopt_one(now, hosts, record, watched)?;
                    adopted += 1;
                }
                None => dead.push(record),
            }
        }
        for host in found {
            tracing::error!(key = %host.key, pid = host.pid, "a host has no record");
            let mut record = HostRecord::new(&host.key, host.incarnation);
            record.pid = host.pid;
            record.started = start_time(host.pid).unwrap_or(0);
            match self.watch(&record) {
                // Two of one process: this is the one that nobody knows.
                Some(watched) if self.numbers.contains_key(&host.key) => watched.kill(),
                Some(watched) => {
                    self.adopt_one(now, hosts, record, watched)?;
                    adopted += 1;
                }
                None => {}
            }
        }
        let images = self.images_find(&dead);
        for (record, image) in dead.into_iter().zip(images) {
            hosts.adopt_dead(now, record, image);
        }
        Ok(adopted)
    }

    /// Holds on to a recorded process, if it lives.
    fn watch(&self, record: &HostRecord) -> Option<Watched> {
        let watched = Watched::open(record.pid).ok()?;
        // Looked at after it is held: so it is the same.
        let lives = record.is_same_process() && watched.exit().ok()?.is_none();
        lives.then_some(watched)
    }

    fn adopt_one(
        &mut self,
        now: Instant,
        hosts: &mut Hosts,
        record: HostRecord,
        watched: Watched,
    ) -> io::Result<()> {
        let key = record.key();
        tracing::info!(%key, incarnation = record.incarnation, pid = record.pid, "a host lives");
        record.write(&self.run_dir)?;
        let log = self.run_dir.host_log(&key.application, &key.process);
        let cpus = cpus_bound(watched.pid(), &self.topology);
        let page = page_of(watched.pid());
        self.insert(key, watched, log, record.log_start, cpus, page)?;
        hosts.adopt(now, record);
        Ok(())
    }

    /// The image that each of these dead hosts wrote last, if it did and that is known soon: the
    /// living are not to wait for a storage that does not answer. Of a dead one whose image is not
    /// known, its next start looks for it; only what the image does not know of counts as unknown
    /// then, as after a crash.
    fn images_find(&self, dead: &[HostRecord]) -> Vec<Option<u64>> {
        if dead.is_empty() {
            return Vec::new();
        }
        let url = self.config.storage_url(&self.run_dir);
        let wanted: Vec<_> = dead
            .iter()
            .map(|record| (record.key(), record.incarnation))
            .collect();
        let (tell, told) = mpsc::channel();
        let look = move || {
            let storage = storage_open(&url).inspect_err(|error| {
                tracing::warn!(%url, error = error_text(error), "cannot look for images");
            });
            for (key, incarnation) in wanted {
                let Ok(storage) = &storage else { return };
                // Nobody may be there any more to be told.
                let _ = tell.send(image_find(&**storage, &key, incarnation));
            }
        };
        let thread = std::thread::Builder::new().name("praas-adopt".into());
        if let Err(error) = thread.spawn(look) {
            tracing::warn!(%error, "no thread to look for images");
        }
        let until = Instant::now() + DEAD_IMAGES_WAIT;
        let mut images: Vec<_> = std::iter::from_fn(|| {
            let left = until.saturating_duration_since(Instant::now());
            told.recv_timeout(left).ok()
        })
        .collect();
        if images.len() < dead.len() {
            let unknown = dead.len() - images.len();
            tracing::warn!(
                unknown,
                "images of dead hosts are not known: storage says nothing"
            );
        }
        images.resize(dead.len(), None);
        images
    }

    fn insert(
        &mut self,
        key: HostKey,
        watched: Watched,
        log: PathBuf,
        log_start: u64,
        cpus: Vec<u32>,
        page: Option<StatsPage>,
    ) -> io::Result<u64> {
        self.last += 1;
        self.poller.add(&watched, self.last << 2 | PIDFD, false)?;
        self.numbers.insert(key.clone(), self.last);
        let process = Process {
            key,
            watched,
            socket: None,
            waits: false,
            log,
            log_start,
            cpus,
            page,
        };
        self.processes.insert(self.last, process);
        Ok(self.last)
    }

    fn socket_set(&mut self, number: u64, socket: HostSocket) -> io::Result<()> {
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        process.waits = socket.waits();
        let token = number << 2 | SOCKET;
        self.poller.add(socket.stream(), token, process.waits)?;
        process.socket = Some(socket);
        Ok(())
    }

    /// Sends a message to those that can be told.
    pub(super) fn send(&mut self, to: &[HostKey], message: &ToHost) {
        let world = matches!(message, ToHost::World(_));
        let frame: Arc<[u8]> = match host_frame(message) {
            Ok(frame) => frame.into(),
            Err(error) => return tracing::error!(%error, "cannot tell hosts"),
        };
        for number in to.iter().filter_map(|key| self.numbers.get(key)) {
            let Some(process) = self.processes.get_mut(number) else {
                continue;
            };
            if let Some(socket) = &mut process.socket {
                socket.send(Arc::clone(&frame), world);
                process.waits_update(&self.poller, *number);
            }
        }
    }

    /// Kills a host; its death is heard of later.
    pub(super) fn kill(&self, key: &HostKey) {
        let process = self.numbers.get(key);
        if let Some(process) = process.and_then(|number| self.processes.get(number)) {
            process.watched.kill();
        }
    }

    /// Something is ready: what that tells.
    pub(super) fn ready(&mut self, token: u64, hosts: &Hosts) -> Vec<(HostKey, Heard)> {
        let number = token >> 2;
        let mut all = Vec::new();
        match token & 3 {
            SOCKET => self.socket_ready(number, &mut all),
            PIDFD => {
                // What it has said comes before its death.
                self.socket_ready(number, &mut all);
                self.pidfd_ready(number, &mut all);
            }
            _ => all.extend(self.visitor_ready(number, hosts)),
        }
        all
    }

    fn socket_ready(&mut self, number: u64, all: &mut Vec<(HostKey, Heard)>) {
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        let Some(socket) = &mut process.socket else {
            return;
        };
        let key = &process.key;
        socket.flush();
        loop {
            let error = match socket.hear() {
                socket::Heard::Message(message) => {
                    all.push((key.clone(), Heard::Said(*message)));
                    continue;
                }
                socket::Heard::Nothing => return process.waits_update(&self.poller, number),
                socket::Heard::Closed(Some(error)) => error.to_string(),
                socket::Heard::Closed(None) => "it is closed".into(),
            };
            tracing::debug!(%key, error, "the connection to a host is gone");
            all.push((key.clone(), Heard::Unlinked));
            process.socket = None;
            return;
        }
    }

    fn pidfd_ready(&mut self, number: u64, all: &mut Vec<(HostKey, Heard)>) {
        let Some(process) = self.processes.get(&number) else {
            return;
        };
        let exit = match process.watched.exit() {
            Ok(None) => return,
            Ok(Some(exit)) => exit.to_string(),
            Err(error) => format!("how cannot be told: {error}"),
        };
        let how = match last_line(&process.log, process.log_start) {
            Some(line) => format!("{exit}; it said last: {line}"),
            None => exit,
        };
        if let Some(process) = self.processes.remove(&number) {
            self.numbers.remove(&process.key);
            files_sweep(self.run_dir.root().into());
            all.push((process.key, Heard::Died(how)));
        }
    }

    /// Takes whoever dials.
    pub(super) fn accept(&mut self, now: Instant) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.visit(now, stream) {
                        tracing::warn!(%error, "not taking a connection on agent.sock");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on agent.sock");
                    return;
                }
            }
        }
    }

    fn visit(&mut self, now: Instant, stream: UnixStream) -> io::Result<()> {
        let (pid, user) = praas_transport::peer_ids(&stream)?;
        if user != rustix::process::geteuid().as_raw() {
            let text = format!("it is user {user}'s");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let pid = pid.ok_or_else(|| io::Error::other("its process is in another namespace"))?;
        if self.visitors.len() >= VISITORS_MAX {
            return Err(io::Error::other("too many have not said who they are"));
        }
        let socket = HostSocket::new(stream)?;
        self.last += 1;
        self.poller
            .add(socket.stream(), self.last << 2 | VISITOR, false)?;
        let visitor = Visitor {
            socket,
            pid,
            until: now + VISIT,
        };
        self.visitors.insert(self.last, visitor);
        Ok(())
    }

    fn visitor_ready(&mut self, number: u64, hosts: &Hosts) -> Option<(HostKey, Heard)> {
        let visitor = self.visitors.get_mut(&number)?;
        let heard = match visitor.socket.hear() {
            socket::Heard::Nothing => return None,
            heard => heard,
        };
        let mut visitor = self.visitors.remove(&number)?;
        self.poller.remove(visitor.socket.stream());
        let socket::Heard::Message(message) = heard else {
            tracing::warn!(
                pid = visitor.pid,
                ?heard,
                "who dialled agent.sock is no host"
            );
            return None;
        };
        let FromHost::Hello(hello) = *message else {
            tracing::warn!(
                pid = visitor.pid,
                "who dialled agent.sock does not say who it is"
            );
            return None;
        };
        let key = HostKey {
            application: hello.application.clone(),
            process: hello.process.clone(),
        };
        let known = hosts.expects(&key, hello.incarnation, visitor.pid);
        let number = self.numbers.get(&key).copied().filter(|_| known);
        let Some(number) = number.filter(|_| hello.pid == visitor.pid) else {
            tracing::warn!(%key, pid = visitor.pid, ?hello, "not a host that is waited for");
            return None;
        };
        let directory = self.directory.clone();
        let linked = host_frame(&ToHost::Adopted { directory })
            .map(|frame| visitor.socket.send(frame.into(), false))
            .and_then(|()| self.socket_set(number, visitor.socket));
        match linked {
            Ok(()) => Some((key, Heard::Redialled(hello))),
            Err(error) => {
                tracing::warn!(%key, %error, "a host is gone as soon as it was back");
                None
            }
        }
    }

    /// When [`Processes::tick`] is needed next.
    pub(super) fn deadline_next(&self) -> Option<Instant> {
        self.visitors.values().map(|visitor| visitor.until).min()
    }

    /// Turns away those who do not say who they are.
    pub(super) fn tick(&mut self, now: Instant) {
        self.visitors.retain(|_, visitor| visitor.until > now);
    }
}

impl Process {
    /// Waits for room in the socket exactly while something waits for it.
    fn waits_update(&mut self, poller: &Poller, number: u64) {
        let Some(socket) = &self.socket else {
            return;
        };
        if self.waits == socket.waits() {
            return;
        }
        self.waits = socket.waits();
        let token = number << 2 | SOCKET;
        if let Err(error) = poller.change(socket.stream(), token, self.waits) {
            tracing::error!(key = %self.key, %error, "cannot wait for room to a host");
        }
    }
}

/// The last line of a log that is not empty, from where a host's part begins.
fn last_line(path: &Path, from: u64) -> Option<String> {
    let mut log = File::open(path).ok()?;
    let length = log.metadata().ok()?.len();
    let from = from.max(length.saturating_sub(TAIL_BYTES)).min(length);
    log.seek(SeekFrom::Start(from)).ok()?;
    let mut tail = Vec::new();
    log.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(LINE_MAX).collect())
}

/// Where a host of an earlier agent counts.
fn page_of(pid: u32) -> Option<StatsPage> {
    let page = File::open(format!("/proc/{pid}/fd/{EXTRA_FD}"));
    let page = page.and_then(|page| StatsPage::read(page.as_fd()));
    // It serves all the same; it has just ended, or was started otherwise.
    page.inspect_err(|error| tracing::warn!(pid, %error, "what a host counts cannot be read"))
        .ok()
}

/// The processors that a host of an earlier agent is bound to; none if it may use all.
fn cpus_bound(pid: u32, topology: &Topology) -> Vec<u32> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let Ok(set) = rustix::thread::sched_getaffinity(pid) else {
        // It has just ended, which is heard of soon.
        return Vec::new();
    };
    let numbers = topology.cpus().iter().map(|cpu| cpu.id);
    let bound: Vec<u32> = numbers.filter(|cpu| set.is_set(*cpu as usize)).collect();
    match bound.len() < topology.cpus().len() {
        true => bound,
        false => Vec::new(),
    }
}

/// Removes the directories of hosts that are gone; many files take long, so by a thread of its own.
fn files_sweep(run_dir: PathBuf) {
    let lives = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    let sweep = move || {
        let removed = praas_runtime::files::files_dirs_sweep(&run_dir, lives);
        if removed > 0 {
            tracing::info!(removed, "removed directories that hosts have left");
        }
    };
    let thread = std::thread::Builder::new().name("files-sweep".into());
    if let Err(error) = thread.spawn(sweep) {
        // The next host that ends has it removed.
        tracing::warn!(%error, "cannot start a thread");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_hosts_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(last_line(&path, 0), None);
        fs::write(&path, "of another\nfirst\nlast \n\n").unwrap();
        assert_eq!(last_line(&path, 11).as_deref(), Some("last"));
        assert_eq!(last_line(&path, 24), None);
        assert_eq!(last_line(&path, 1000), None);
        let long = format!("{}\n", "x".repeat(9_000));
        fs::write(&path, long).unwrap();
        assert_eq!(last_line(&path, 0).unwrap().len(), LINE_MAX);
    }
}
