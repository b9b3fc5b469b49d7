//! One suite that holds every storage to the promises of `praas_runtime::swap::Storage`.
//!
//! Each promise is a function over [`Lab`]; `tests/storage.rs` instantiates all of them for each
//! kind by one line. Servers are started here, in a directory of their own; one that cannot be had
//! is skipped with a reason, and `PRAAS_REQUIRE_STORAGES=file,redis,s3` turns that into failure.

mod cut;
mod promises;
mod servers;

use std::sync::Arc;

use praas_cluster::storage::storage_open;
use praas_runtime::swap::{Storage, StorageUrl};
use tempfile::TempDir;

pub use self::cut::Cut;
pub use self::promises::*;
pub use self::servers::{RedisServer, S3Server, Server, hung_server};

/// A kind of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    File,
    /// A server that speaks Redis's protocol.
    Redis,
    /// An object store that speaks S3.
    S3,
}

impl Kind {
    /// Its name, as in `PRAAS_REQUIRE_STORAGES`.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Redis => "redis",
            Self::S3 => "s3",
        }
    }
}

/// A storage of one kind, and the server that it may need.
pub struct Lab {
    /// What it is.
    pub kind: Kind,
    /// Its URL.
    pub url: StorageUrl,
    /// The server, if it has one.
    pub server: Option<Server>,
    /// Holds the files of a folder.
    _folder: TempDir,
}

impl Lab {
    /// Starts what a kind needs; why that cannot be had here.
    ///
    /// # Errors
    /// The reason.
    ///
    /// # Panics
    /// It is there, and does not start.
    pub fn start(kind: Kind) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("a directory");
        let (url, server) = match kind {
            Kind::File => (StorageUrl::file(folder.path()), None),
            Kind::Redis => {
                let server = Server::Redis(RedisServer::start()?);
                (server.url(), Some(server))
            }
            Kind::S3 => {
                let server = Server::S3(S3Server::start()?);
                (server.url(), Some(server))
            }
        };
        Ok(Self {
            kind,
            url,
            server,
            _folder: folder,
        })
    }

    /// Opens the storage.
    ///
    /// # Panics
    /// It cannot be opened.
    pub fn storage(&self) -> Arc<dyn Storage> {
        storage_open(&self.url).unwrap_or_else(|error| panic!("{}: {error}", self.url))
    }

    /// Opens it with another option.
    ///
    /// # Panics
    /// It cannot be opened.
    pub fn storage_with(&self, option: &str) -> Arc<dyn Storage> {
        let url = match self.kind {
            Kind::File => self.url.clone(),
            _ => format!("{}&{option}", self.url).parse().expect("a URL"),
        };
        storage_open(&url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }
}

/// Holds a kind of storage to a promise.
///
/// # Panics
/// The promise is broken, or what `PRAAS_REQUIRE_STORAGES` names cannot be had.
pub fn hold(kind: Kind, promise: &str, check: impl FnOnce(&Lab)) {
    match Lab::start(kind) {
        Ok(lab) => check(&lab),
        Err(reason) => {
            let name = kind.name();
            let required = std::env::var("PRAAS_REQUIRE_STORAGES").unwrap_or_default();
            let required = required.split(',').any(|wanted| wanted == name);
            assert!(!required, "{name} is required: {reason}");
            println!("SKIP {name} {promise}: {reason}");
        }
    }
}
