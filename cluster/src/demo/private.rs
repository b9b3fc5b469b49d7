//! A cluster that nobody else sees, in a temporary directory, and that leaves nothing.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use praas_runtime::client::Client;
use praas_transport::Kinds;
use tempfile::TempDir;

use super::DemoError;
use super::guard::Guard;
use crate::launch::{self, DownMode, DownOptions, UpOptions};
use crate::run_dir::RunDir;
use crate::session::Session;

/// How long each of up and down may take.
const LAUNCH: Duration = Duration::from_secs(60);
/// How long an end in good order may take.
const STOP: Duration = Duration::from_secs(20);

/// A cluster in a temporary directory.
#[derive(Debug)]
pub(crate) struct PrivateCluster {
    /// `None` once it was taken down: it does not come up again then.
    dir: Mutex<Option<Dirs>>,
    run_dir: RunDir,
}

/// Directories of the first node, and of others.
#[derive(Debug)]
struct Dirs {
    first: (TempDir, Guard),
    others: Vec<(TempDir, Guard, RunDir)>,
}

impl PrivateCluster {
    /// Makes the directory; nothing runs yet.
    pub(crate) fn new() -> Result<Self, DemoError> {
        let (dir, guard, run_dir) = dir_make()?;
        let dirs = Dirs {
            first: (dir, guard),
            others: Vec::new(),
        };
        Ok(Self {
            dir: Mutex::new(Some(dirs)),
            run_dir,
        })
    }

    /// Starts control plane and agent; the settings in `above` go above all.
    pub(crate) fn start(&self, above: &[String]) -> Result<Session, DemoError> {
        let dir = self.lock();
        if dir.is_none() {
            return Err(DemoError::Interrupted("a signal"));
        }
        let mut settings = self.settings();
        settings.extend_from_slice(above);
        let options = UpOptions {
            settings,
            timeout: LAUNCH,
            ..UpOptions::default()
        };
        launch::up(&self.run_dir, &options)?;
        Ok(Session::open(&self.run_dir)?)
    }

    /// Starts the agent of another node, as this machine is to be taken for two.
    pub(crate) fn node_add(&self, name: &str, above: &[String]) -> Result<RunDir, DemoError> {
        let mut dirs = self.lock();
        let Some(dirs) = dirs.as_mut() else {
            return Err(DemoError::Interrupted("a signal"));
        };
        let (dir, guard, run_dir) = dir_make()?;
        let control = self.run_dir.control();
        let linked = [
            (&control.control_addr, run_dir.control().control_addr),
            (&control.admin_token, run_dir.control().admin_token),
            (&control.cluster_secret, run_dir.control().cluster_secret),
        ];
        for (from, to) in linked {
            let doing = || format!("link {}", to.display());
            let made = std::os::unix::fs::symlink(from, &to);
            made.map_err(|source| DemoError::system(doing(), source))?;
        }
        dirs.others.push((dir, guard, run_dir.clone()));
        let mut settings = self.settings();
        settings.push(format!("agent.node={name}"));
        settings.extend_from_slice(above);
        let options = UpOptions {
            settings,
            timeout: LAUNCH,
            ..UpOptions::default()
        };
        launch::agent_up(&run_dir, &options)?;
        Ok(run_dir)
    }

    /// Where the first node's files are.
    pub(crate) fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// What settings of the user's own cluster, which may be in the environment, must not change:
    /// whatever leads to its ports or files.
    fn settings(&self) -> Vec<String> {
        let file = |key: &str, path: &Path| format!("{key}={}", path.display());
        vec![
            "control.http_listen=127.0.0.1:0".into(),
            "control.agent_listen=127.0.0.1:0".into(),
            "agent.control=[]".into(),
            "agent.directory_listen=127.0.0.1:0".into(),
            "agent.host_listen=[]".into(),
            "agent.host_verbs_listen=[]".into(),
            file("agent.storage", &self.run_dir.swap_dir()),
            file(
                "agent.cluster_secret",
                &self.run_dir.control().cluster_secret,
            ),
        ]
    }

    /// A client of an application there.
    pub(crate) fn client(&self, application: &str, transports: Kinds) -> Result<Client, DemoError> {
        Ok(Session::open(&self.run_dir)?.client(application, transports)?)
    }

    /// Takes it down in good order, else by force.
    pub(crate) fn stop(&self) -> Result<(), DemoError> {
        self.down(&[DownMode::Stop, DownMode::Kill])
    }

    /// Takes it down at once.
    pub(crate) fn kill(&self) -> Result<(), DemoError> {
        self.down(&[DownMode::Kill])
    }

    /// Takes down what is there, in the first way that works, and removes the directory.
    fn down(&self, modes: &[DownMode]) -> Result<(), DemoError> {
        let mut dir = self.lock();
        let Some(Dirs { first, others }) = dir.take() else {
            return Ok(());
        };
        let mut outcome = Ok(());
        for (path, guard, run_dir) in others {
            // What is to be kept is on the first node by now.
            let options = DownOptions {
                mode: DownMode::Kill,
                purge: true,
                timeout: STOP,
                ..DownOptions::default()
            };
            outcome = outcome.and(launch::down(&run_dir, &options).map(drop));
            drop((guard, path));
        }
        outcome?;
        let (path, guard) = first;
        let mut outcome = Ok(());
        for &mode in modes {
            let options = DownOptions {
                mode,
                purge: true,
                timeout: STOP,
                ..DownOptions::default()
            };
            outcome = launch::down(&self.run_dir, &options).map(drop);
            match &outcome {
                Ok(_) => break,
                Err(error) => tracing::warn!(%error, "the cluster does not go in good order"),
            }
        }
        drop(guard);
        let removed = match path.close() {
            // Purged with all that was in it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        outcome?;
        removed.map_err(|source| DemoError::system("remove the temporary run directory", source))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Dirs>> {
        self.dir.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory, and who clears it if this is killed.
fn dir_make() -> Result<(TempDir, Guard, RunDir), DemoError> {
    let failed = |source| DemoError::system("make a temporary run directory", source);
    let dir = tempfile::Builder::new()
        .prefix("praas-demo-")
        .tempdir()
        .map_err(failed)?;
    // The directory itself, so that whoever purges it leaves nothing.
    let run_dir = RunDir::create(dir.path()).map_err(failed)?;
    let guard = Guard::start(&run_dir)
        .map_err(|source| DemoError::system("start who cleans up if this is killed", source))?;
    Ok((dir, guard, run_dir))
}
