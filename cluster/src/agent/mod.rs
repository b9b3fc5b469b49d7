//! The node agent: starts hosts, watches them, and tells where processes are.
//!
//! ```text
//!                      control plane
//!                           |  control.rs: dials, hello, lease
//!   clients, hosts          |
//!     directory ----- [ driver.rs: one thread, one endpoint, one poller ] ----- agent.sock
//!     questions.rs          |                    |
//!                    hosts/ (decides)     processes.rs (spawns, watches, socket.rs)
//!                    record.rs: hosts/<application>/<process>.json
//!                    stats.rs: what hosts count, from pages that they share
//! ```
//!
//! What is decided is decided without input or output: [`hosts`](self) takes what happened and says
//! what is to be done, `questions` keeps who asked what, `control` counts the lease. Around them is
//! one thread with one loop, rather than a thread per host: a host costs two descriptors in an
//! epoll and no stack, there is nothing to lock and no order between threads to get wrong, and a
//! start passes through no queue. Nothing in the loop blocks: sockets to hosts queue, spawning
//! waits for an exec only, records are not synced. What may take long, deleting images, has a
//! thread of its own.
//!
//! A host that is to be started has its record first, then its process, then its first message. A
//! host that dies is reaped, then reported, then forgotten. An agent that is killed leaves hosts
//! that redial `agent.sock`; the one after it holds on to each by pidfd before any has.

mod config;
mod control;
mod cut;
mod driver;
mod hosts;
mod images;
mod processes;
mod questions;
mod record;
mod settings;
mod simulated;
mod socket;
mod stats;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use praas_control::api::CLUSTER_APPLICATION;
use praas_transport::{
    Address, Endpoint, Identity, Incarnation, Keyring, Listen, TransportError, UnixPlace,
};

pub use self::config::{AgentConfig, ConfigError, Fence};
use self::driver::{Driver, NodeInfo};
pub(crate) use self::settings::application_settings_check;
#[doc(hidden)]
pub use self::simulated::{SimulatedAgent, Wanted, images_delete};
use crate::daemon::{DaemonKind, DaemonLock, LockError};
use crate::run_dir::{AgentAddr, RunDir};
use crate::spawn::stop_signals_catch;
use crate::unix_path::socket_bind;
pub use crate::unix_path::socket_connect;

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// A setting cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another agent has the run directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The endpoint cannot be made, or cannot listen.
    #[error("cannot serve the directory")]
    Transport(#[from] TransportError),
    /// A file or folder in the run directory cannot be used.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system refuses what the agent needs.
    #[error("cannot {what}")]
    System {
        /// What for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Runs the agent of a node until SIGTERM or SIGINT; then its hosts swap out, for a bounded time,
/// and it returns. A second signal shortens that time.
///
/// # Errors
/// Another agent runs here, settings that cannot be, a system that refuses what is needed.
pub fn agent_run(run_dir: &RunDir, config: AgentConfig) -> Result<(), AgentError> {
    let stop = stop_signals_catch().map_err(|source| AgentError::System {
        what: "catch signals",
        source,
    })?;
    agent_serve(run_dir, &config, &stop)
}

/// Runs the agent until `stop`, an eventfd, is readable.
///
/// # Errors
/// As [`agent_run`].
pub fn agent_serve(
    run_dir: &RunDir,
    config: &AgentConfig,
    stop: &OwnedFd,
) -> Result<(), AgentError> {
    config.check()?;
    let _lock = DaemonLock::take(run_dir, DaemonKind::Agent)?;
    let hosts = run_dir.hosts();
    std::fs::create_dir_all(&hosts).map_err(|source| file_error(&hosts, source))?;
    let keyring = Arc::new(Keyring::new());
    let node = node_info(config);
    // Left by an agent that was killed.
    let before = AgentAddr::read(&run_dir.agent_addr());
    let before = before.map(|address| address.directory).unwrap_or_default();
    let mut endpoint = endpoint_make(config, &node.name, Arc::clone(&keyring))?;
    directory_listen(&mut endpoint, config, &before)?;
    let socket_path = run_dir.agent_socket();
    let listener = socket_bind(&socket_path);
    let listener = listener.map_err(|source| file_error(&socket_path, source))?;
    let address = AgentAddr {
        node: node.name.clone(),
        pid: std::process::id(),
        directory: endpoint.addresses().to_vec(),
    };
    let system = |what| move |source| AgentError::System { what, source };
    let mut driver = Driver::new(run_dir, config, node, keyring, &endpoint, listener)
        .map_err(system("set up the agent"))?;
    driver
        .adopt(config)
        .map_err(system("find the hosts of the agent before"))?;
    let address_path = run_dir.agent_addr();
    address
        .write(&address_path)
        .map_err(|source| file_error(&address_path, source))?;
    tracing::info!(node = address.node, "the agent serves");
    let ran = driver.run(&mut endpoint, stop);
    for path in [&address_path, &socket_path] {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file");
        }
    }
    ran.map_err(system("wait for events"))?;
    tracing::info!("the agent ends");
    Ok(())
}

fn endpoint_make(
    config: &AgentConfig,
    node: &str,
    keyring: Arc<Keyring>,
) -> Result<Endpoint, AgentError> {
    let mut client_id = [0; 16];
    getrandom::fill(&mut client_id).map_err(TransportError::Random)?;
    let identity = Identity {
        application: CLUSTER_APPLICATION.into(),
        name: node.into(),
        incarnation: Incarnation(0),
        client_id: u128::from_le_bytes(client_id) | 1,
    };
    Ok(Endpoint::new(
        config.transport.clone(),
        identity,
        Some(keyring),
    )?)
}

/// Serves the directory where the agent before did, if that can be: clients know no other place.
fn directory_listen(
    endpoint: &mut Endpoint,
    config: &AgentConfig,
    before: &[Address],
) -> Result<(), TransportError> {
    let mut listen = |again: Option<Listen>, anew: Listen| {
        if let Some(again) = again {
            match endpoint.listen(&again) {
                Ok(_) => return Ok(()),
                Err(error) => tracing::warn!(%error, "the directory moves: clients must ask anew"),
            }
        }
        endpoint.listen(&anew).map(drop)
    };
    let shm = before.iter().find_map(|address| match address {
        Address::Shm { name, .. } => Some(Listen::Shm {
            name: Some(name.clone()),
        }),
        _ => None,
    });
    listen(shm, Listen::Shm { name: None })?;
    let unix = before.iter().find_map(|address| match address {
        Address::Unix { name, .. } => Some(name),
        _ => None,
    });
    let (again, anew) = match &config.unix_dir {
        None => {
            let name = unix.filter(|name| !name.starts_with('/'));
            let again = name.map(|name| UnixPlace::Abstract(Some(name.clone())));
            (again, UnixPlace::Abstract(None))
        }
        Some(dir) => {
            let path = unix.map(PathBuf::from);
            let path = path.filter(|path| path.parent() == Some(dir));
            (path.map(UnixPlace::Path), UnixPlace::Folder(dir.clone()))
        }
    };
    listen(again.map(Listen::Unix), Listen::Unix(anew))?;
    let at = config.directory_listen;
    let tcp = before.iter().find_map(|address| match address {
        Address::Tcp(tcp) if at.port() == 0 && tcp.ip() == at.ip() => Some(Listen::Tcp(*tcp)),
        _ => None,
    });
    listen(tcp, Listen::Tcp(at))
}

fn node_info(config: &AgentConfig) -> NodeInfo {
    let name = config.node.clone().unwrap_or_else(|| {
        let name = rustix::system::uname();
        name.nodename().to_string_lossy().into_owned()
    });
    let cpus = match config.cpus {
        0 => std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        cpus => cpus,
    };
    let memory_bytes = match config.memory_bytes {
        0 => memory_read().unwrap_or(0),
        bytes => bytes,
    };
    NodeInfo {
        name,
        cpus,
        memory_bytes,
    }
}

/// Bytes of memory that the node has.
fn memory_read() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn file_error(path: &Path, source: io::Error) -> AgentError {
    let path = path.into();
    AgentError::File { path, source }
}
