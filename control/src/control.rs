//! The control plane as a whole: puts store, core, agents' link and server together.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use praas_transport::{Address, clock};

use crate::agent::{AgentLink, LinkError};
use crate::config::{ConfigError, ControlConfig};
use crate::core::{Core, CoreQueue};
use crate::error::Failure;
use crate::files::{ControlAddr, cluster_secret_load, secret_read, secret_replace};
use crate::gateway::Gateway;
use crate::machine::{Limits, Registry};
use crate::server::{Server, Shared, now_unix_ms};
use crate::store::{Change, Snapshot, Store, StoreError, TokenRecord};
use crate::tokens::{token_generate, token_hash};

/// The files of a control plane, all of mode 0600.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPaths {
    /// The database. Made if missing.
    pub store: PathBuf,
    /// The secret that agents show, 64 hexadecimal digits. Made if missing.
    pub cluster_secret: PathBuf,
    /// An administrator's token. Issued and written if missing or no longer good.
    pub admin_token: PathBuf,
    /// Where the control plane listens ([`ControlAddr`]). There while it runs.
    pub control_addr: PathBuf,
}

impl RunPaths {
    /// The usual names in a run directory.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self {
            store: dir.join("control.redb"),
            cluster_secret: dir.join("cluster.secret"),
            admin_token: dir.join("admin.token"),
            control_addr: dir.join("control.addr"),
        }
    }
}

/// Why the control plane cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// A setting cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A token cannot be made.
    #[error("cannot make an administrator's token")]
    Token(#[source] Failure),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The agents' link cannot be started.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A file cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Cannot listen for HTTP.
    #[error("cannot listen for HTTP at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The control plane.
#[derive(Debug, Clone, Copy)]
pub struct Control;

/// A running control plane. Dropping it ends it without waiting for requests.
#[derive(Debug)]
pub struct ControlHandle {
    // In the order in which they end: who asks, who decides, who speaks to agents.
    server: Option<Server>,
    http_addr: SocketAddr,
    _core: Core,
    link: AgentLink,
    control_addr: PathBuf,
}

impl Control {
    /// Starts the control plane; it runs on threads of its own. When this returns it serves, and
    /// its files tell where.
    ///
    /// # Errors
    /// Settings that cannot be, files that cannot be used, addresses that are taken.
    pub fn start(
        config: ControlConfig,
        gateway: Arc<dyn Gateway>,
        paths: &RunPaths,
    ) -> Result<ControlHandle, ControlError> {
        config.check()?;
        store_not_emptied(paths)?;
        let store = Store::open(&paths.store)?;
        let mut snapshot = store.load()?;
        // Storage may know incarnations that this database does not: of one before it, or of itself
        // before it was restored from a copy. No number is given again.
        snapshot.incarnation_next = snapshot.incarnation_next.max(clock::unix_ms());
        admin_token_ensure(&store, &mut snapshot, &paths.admin_token)?;
        let secret = cluster_secret_load(&paths.cluster_secret)
            .map_err(|source| file_error(&paths.cluster_secret, source))?;
        let listener =
            TcpListener::bind(config.http_listen).map_err(|source| ControlError::Listen {
                address: config.http_listen,
                source,
            })?;
        let queue = CoreQueue::new(config.events_queued_max);
        let core_sender = queue.sender();
        for token in &snapshot.tokens {
            core_sender.tokens.insert(token);
        }
        let link = AgentLink::start(
            config.transport.clone(),
            config.agent_listen,
            &secret,
            config.agent_queue_max_bytes,
            queue.link_sink(),
        )?;
        let command_first =
            getrandom::u64().map_err(|error| ControlError::Thread(io::Error::other(error)))?;
        let registry = Registry::restore(Limits::from(&config), snapshot, command_first, 0);
        let core = queue
            .start(registry, store, link.sender())
            .map_err(ControlError::Thread)?;
        let shared = Shared::new(core_sender, gateway, &config);
        let server = Server::start(listener, shared, &config).map_err(ControlError::Thread)?;
        let handle = ControlHandle {
            http_addr: server.address(),
            server: Some(server),
            _core: core,
            link,
            control_addr: paths.control_addr.clone(),
        };
        let address = ControlAddr {
            http: format!("http://{}", handle.http_addr()),
            agents: handle.agent_addresses().to_vec(),
        };
        address
            .write(&paths.control_addr)
            .map_err(|source| file_error(&paths.control_addr, source))?;
        tracing::info!(http = address.http, "the control plane serves");
        Ok(handle)
    }
}

fn file_error(path: &Path, source: io::Error) -> ControlError {
    let path = path.into();
    ControlError::File { path, source }
}

/// A cluster's secret is made after its database was opened for the first time: with one, an empty
/// database is no new cluster, but one that has lost all it knew.
fn store_not_emptied(paths: &RunPaths) -> Result<(), StoreError> {
    let emptied = std::fs::metadata(&paths.store).is_ok_and(|store| store.len() == 0);
    match emptied && paths.cluster_secret.exists() {
        false => Ok(()),
        true => Err(StoreError::Corrupt {
            path: paths.store.clone(),
            detail: "it is empty".into(),
        }),
    }
}

/// Sees that the token's file holds one that is good. The token is stored before it is shown.
fn admin_token_ensure(
    store: &Store,
    snapshot: &mut Snapshot,
    path: &Path,
) -> Result<(), ControlError> {
    let text = secret_read(path).map_err(|source| file_error(path, source))?;
    if let Some(text) = text {
        let hash = token_hash(text.trim());
        let good = |token: &TokenRecord| token.application.is_none() && token.hash == hash;
        if snapshot.tokens.iter().any(good) {
            return Ok(());
        }
    }
    let token = token_generate().map_err(ControlError::Token)?;
    let record = TokenRecord {
        hash: token_hash(&token),
        application: None,
        label: format!("made at start for {}", path.display()),
        created_unix_ms: now_unix_ms(),
    };
    store.commit(&[Change::Token(record.clone())])?;
    snapshot.tokens.push(record);
    secret_replace(path, &format!("{token}\n")).map_err(|source| file_error(path, source))
}

impl ControlHandle {
    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where agents dial: shared memory and TCP.
    pub fn agent_addresses(&self) -> &[Address] {
        self.link.addresses()
    }

    /// Ends in good order: no new requests, a bounded wait for those under way.
    pub fn shutdown(mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        // Nobody listens there any more. A control plane that was killed leaves it, too.
        if let Err(error) = std::fs::remove_file(&self.control_addr) {
            tracing::warn!(path = %self.control_addr.display(), %error, "cannot remove a file");
        }
        drop(self.server.take());
    }
}
