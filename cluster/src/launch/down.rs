//! Ending what runs, and leaving nothing behind but store, secrets, settings, logs and images.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use praas_control::api::{Process, ProcessState};
use praas_control::{ControlClient, ErrorKind};
use rustix::process::Signal;
use serde::Serialize;

use super::{LaunchError, Progress};
use crate::daemon::{DaemonKind, LAUNCH_LOCK, LaunchLock, ProcessHandle, daemon_find, hosts_find};
use crate::run_dir::RunDir;
use crate::session::Session;

/// Processes that are swapped out or stopped at once.
const AT_ONCE: usize = 8;
/// How long SIGKILL may take to end a process.
const KILL: Duration = Duration::from_secs(20);
/// How long the control plane is waited for before the agent is looked at again.
const ASK: Duration = Duration::from_millis(500);

/// What becomes of the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DownMode {
    /// Their state is kept in storage.
    #[default]
    Swap,
    /// They finish what runs; their state is not kept.
    Stop,
    /// They end now; what they did since the last swap is lost.
    Kill,
}

/// How to take things down.
#[derive(Debug, Clone)]
pub struct DownOptions {
    /// What becomes of the processes.
    pub mode: DownMode,
    /// Whether store, secrets, logs and images go as well.
    pub purge: bool,
    /// How long it may take in good order; who has not ended by then is killed.
    pub timeout: Duration,
    /// Who is told what is going on.
    pub progress: Progress,
}

impl Default for DownOptions {
    fn default() -> Self {
        Self {
            mode: DownMode::Swap,
            purge: false,
            timeout: Duration::from_secs(60),
            progress: Progress::default(),
        }
    }
}

/// What `down` ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Down {
    /// The control plane's process id, if it ran.
    pub control: Option<u32>,
    /// The agent's process id, if it ran.
    pub agent: Option<u32>,
    /// Processes that were swapped out or stopped in good order, as `application/process`.
    pub processes: Vec<String>,
    /// Process ids of hosts that ran without an agent and ended when they were asked to.
    pub ended: Vec<u32>,
    /// Process ids that were ended by SIGKILL.
    pub killed: Vec<u32>,
    /// What is left in the run directory though all was to go: it is not ours.
    pub foreign: Vec<PathBuf>,
    /// Whether the run directory is gone.
    pub purged: bool,
}

/// Ends all that runs in a run directory.
///
/// # Errors
/// Processes that do not swap out or stop, before anything is ended; the system's.
pub fn down(run_dir: &RunDir, options: &DownOptions) -> Result<Down, LaunchError> {
    let deadline = Instant::now() + options.timeout;
    let locked = LaunchLock::take(run_dir.root(), deadline);
    let (run_dir, lock) = locked.map_err(|source| LaunchError::RunDir {
        dir: run_dir.root().into(),
        source,
    })?;
    let mut work = Work {
        run_dir: &run_dir,
        options,
        deadline,
        done: Down::default(),
    };
    let control = work.find(DaemonKind::Control)?;
    let agent = work.find(DaemonKind::Agent)?;
    work.done.control = control.as_ref().map(ProcessHandle::pid);
    work.done.agent = agent.as_ref().map(ProcessHandle::pid);
    let both = control.is_some() && agent.is_some();
    if let Some(agent) = &agent
        && both
        && options.mode != DownMode::Kill
    {
        work.processes_end(agent)?;
    }
    if let Some(agent) = agent {
        // It swaps out what is left when it is asked to end; only a control plane can tell it to
        // stop processes instead.
        let gently = match options.mode {
            DownMode::Swap => true,
            DownMode::Stop => both,
            DownMode::Kill => false,
        };
        options.progress.step("ending the agent");
        work.end(&agent, gently)?;
    }
    work.hosts_end()?;
    if let Some(control) = control {
        options.progress.step("ending the control plane");
        work.end(&control, options.mode != DownMode::Kill)?;
    }
    work.verify()?;
    work.files_clear()?;
    if options.purge {
        work.purge()?;
    }
    drop(lock);
    Ok(work.done)
}

struct Work<'a> {
    run_dir: &'a RunDir,
    options: &'a DownOptions,
    deadline: Instant,
    done: Down,
}

impl Work<'_> {
    fn find(&self, kind: DaemonKind) -> Result<Option<ProcessHandle>, LaunchError> {
        let doing = || format!("find out whether the {} runs", kind.title());
        daemon_find(self.run_dir, kind).map_err(|source| system(doing(), source))
    }

    /// Swaps out or stops every process that lives, several at once, for as long as the agent
    /// lives that is to do it.
    fn processes_end(&mut self, agent: &ProcessHandle) -> Result<(), LaunchError> {
        let session = Session::open(self.run_dir)?;
        let control = session.control.with_wait(ASK);
        let stop = || match Instant::now() < self.deadline {
            true => agent
                .wait(Instant::now())
                .unwrap_or(true)
                .then_some(Stop::AgentDied),
            false => Some(Stop::Late),
        };
        let live = processes_live(&control)?;
        let total = live.len();
        let (verb, doing) = match self.options.mode {
            DownMode::Stop => ("stop", "stopping"),
            _ => ("swap out", "swapping out"),
        };
        let queue = Mutex::new((live, 0_usize));
        let failed = Mutex::new(Vec::new());
        let done = Mutex::new(Vec::new());
        let worker = || loop {
            let process = {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(process) = queue.0.pop() else { return };
                queue.1 += 1;
                let text = format!("{doing} processes ({} of {total})", queue.1);
                self.options.progress.step(&text);
                process
            };
            let name = format!("{}/{}", process.application, process.name);
            match process_end(&control, &process, self.options.mode, &stop) {
                Ok(true) => lock(&done).push(name),
                Ok(false) => {}
                Err(why) => lock(&failed).push((process.application, process.name, why)),
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(total) {
                scope.spawn(worker);
            }
        });
        let failed = std::mem::take(&mut *lock(&failed));
        if !failed.is_empty() {
            return Err(LaunchError::Processes { verb, failed });
        }
        let mut done = std::mem::take(&mut *lock(&done));
        done.sort();
        self.done.processes = done;
        Ok(())
    }

    /// Ends a daemon: by SIGTERM if it may take its time, in the end by SIGKILL.
    fn end(&mut self, handle: &ProcessHandle, gently: bool) -> Result<(), LaunchError> {
        let pid = handle.pid();
        let failed = |source| system(format!("end process {pid}"), source);
        if gently {
            handle.signal(Signal::TERM);
            if handle.wait(self.deadline).map_err(failed)? {
                return Ok(());
            }
        }
        self.kill(handle)
    }

    fn kill(&mut self, handle: &ProcessHandle) -> Result<(), LaunchError> {
        let pid = handle.pid();
        let failed = |source| system(format!("kill process {pid}"), source);
        handle.signal(Signal::KILL);
        match handle.wait(Instant::now() + KILL).map_err(failed)? {
            true => {
                self.done.killed.push(pid);
                Ok(())
            }
            false => Err(LaunchError::Left { pids: vec![pid] }),
        }
    }

    /// Ends hosts that have no agent: those whose state is to be kept swap out when they are asked
    /// to end, and are given the time for it.
    fn hosts_end(&mut self) -> Result<(), LaunchError> {
        let hosts = self.hosts()?;
        if hosts.is_empty() {
            return Ok(());
        }
        let text = format!("ending {} hosts without an agent", hosts.len());
        self.options.progress.step(&text);
        if self.options.mode == DownMode::Swap {
            hosts.iter().for_each(|host| host.signal(Signal::TERM));
        }
        for host in hosts {
            let failed = |source| system(format!("watch host {}", host.pid()), source);
            let gently = self.options.mode == DownMode::Swap;
            if gently && host.wait(self.deadline).map_err(failed)? {
                self.done.ended.push(host.pid());
            } else {
                self.kill(&host)?;
            }
        }
        Ok(())
    }

    fn hosts(&self) -> Result<Vec<ProcessHandle>, LaunchError> {
        hosts_find(self.run_dir).map_err(|source| system("look for hosts in /proc".into(), source))
    }

    /// Nothing runs any more.
    fn verify(&self) -> Result<(), LaunchError> {
        let mut pids: Vec<u32> = self.hosts()?.iter().map(ProcessHandle::pid).collect();
        for kind in [DaemonKind::Control, DaemonKind::Agent] {
            pids.extend(self.find(kind)?.map(|handle| handle.pid()));
        }
        match pids.is_empty() {
            true => Ok(()),
            false => Err(LaunchError::Left { pids }),
        }
    }

    /// Removes what those who were killed left.
    fn files_clear(&self) -> Result<(), LaunchError> {
        let control = self.run_dir.control().control_addr;
        for path in [
            control,
            self.run_dir.agent_addr(),
            self.run_dir.agent_socket(),
            self.run_dir.spinners(),
            self.run_dir.agent_cut(),
        ] {
            remove(&path, |path| std::fs::remove_file(path))?;
        }
        // Records that are left are of hosts whose end the control plane has not heard of: by them
        // the next agent tells it what was swapped out.
        remove(&self.run_dir.hosts(), |path| {
            match std::fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                removed => removed,
            }
        })
    }

    /// Removes the rest of what is ours, and the directory if nothing else is in it.
    fn purge(&mut self) -> Result<(), LaunchError> {
        let root = self.run_dir.root();
        for dir in [
            root.join("logs"),
            self.run_dir.swap_dir(),
            self.run_dir.hosts(),
        ] {
            remove(&dir, |path| std::fs::remove_dir_all(path))?;
        }
        let control = self.run_dir.control();
        let locks = [DaemonKind::Control, DaemonKind::Agent]
            .map(|kind| root.join(format!("{}.lock", kind.name())));
        let files = [control.store, control.cluster_secret, control.admin_token];
        for file in files.into_iter().chain(locks) {
            remove(&file, |path| std::fs::remove_file(path))?;
        }
        let failed = |source| LaunchError::RunDir {
            dir: root.into(),
            source,
        };
        for entry in std::fs::read_dir(root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name() != LAUNCH_LOCK {
                self.done.foreign.push(entry.path());
            }
        }
        // Last: who waits for the lock finds out that the directory is not this one any more.
        remove(&root.join(LAUNCH_LOCK), |path| std::fs::remove_file(path))?;
        if self.done.foreign.is_empty() {
            std::fs::remove_dir(root).map_err(failed)?;
            self.done.purged = true;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn system(doing: String, source: io::Error) -> LaunchError {
    LaunchError::System { doing, source }
}

fn remove(
    path: &std::path::Path,
    how: impl FnOnce(&std::path::Path) -> io::Result<()>,
) -> Result<(), LaunchError> {
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(system(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

fn processes_live(control: &ControlClient) -> Result<Vec<Process>, LaunchError> {
    let failed = |source| LaunchError::Control {
        doing: "list the processes",
        source,
    };
    let mut live = Vec::new();
    for application in control.application_list().map_err(failed)? {
        let processes = control.process_list(&application.name).map_err(failed)?;
        live.extend(
            processes
                .into_iter()
                .filter(|process| process.state.is_live()),
        );
    }
    Ok(live)
}

/// Why a process is not waited for any longer.
enum Stop {
    /// Nobody is left to swap it out; its host does so by itself.
    AgentDied,
    /// There is no more time.
    Late,
}

/// Swaps out or stops one process; whether it was done, or why it cannot be.
fn process_end(
    control: &ControlClient,
    process: &Process,
    mode: DownMode,
    stop: &impl Fn() -> Option<Stop>,
) -> Result<bool, String> {
    let (application, name) = (&process.application, &process.name);
    loop {
        let outcome = match mode {
            DownMode::Stop => control.process_stop(application, name),
            _ => control.process_swap(application, name),
        };
        let (now, error) = match outcome {
            Ok(now) => (now, None),
            Err(error) => match control.process_show(application, name) {
                Ok(now) => (now, Some(error)),
                Err(gone) if gone.kind() == Some(ErrorKind::NotFound) => return Ok(true),
                Err(_) => return Err(error.to_string()),
            },
        };
        if !now.state.is_live() {
            // What failed by itself meanwhile has nothing to keep any more; who was told to keep it
            // is told so.
            return match (mode, now.state) {
                (DownMode::Swap, ProcessState::Failed) if error.is_some() => {
                    Err(now.error.unwrap_or_else(|| "it failed".into()))
                }
                _ => Ok(true),
            };
        }
        match (stop(), error) {
            (Some(Stop::AgentDied), _) => return Ok(false),
            (None, None) => {}
            (None, Some(error)) if error.kind() == Some(ErrorKind::Timeout) => {}
            (_, Some(error)) => return Err(error.to_string()),
            (Some(Stop::Late), None) => return Err(format!("it is still {}", now.state)),
        }
    }
}
