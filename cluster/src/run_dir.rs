//! The run directory: everything that a control plane and an agent keep on a node.
//!
//! ```text
//!   <run directory>/            mode 0700
//!     praas.toml                settings, if there are any
//!     control.redb  cluster.secret  admin.token  control.addr
//!     agent.sock  agent.addr    where hosts redial; where clients find the directory
//!     hosts/<application>/<process>.json     what the agent knows of each host
//!     logs/control.log  logs/agent.log  logs/<application>/<process>.log
//!     swap/                     swap images, unless the settings name another place
//!     control.lock  agent.lock  held by the one control plane and the one agent; launch.lock: `up`
//!     spinners                  who spins just now
//! ```
//!
//! Names of applications and processes are encoded, so that any name makes one path component.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use praas_control::RunPaths;
use praas_runtime::swap::name_encode;
use praas_transport::Address;
use serde::{Deserialize, Serialize};

/// The environment variable that names the run directory.
pub const RUN_DIR_ENV: &str = "PRAAS_RUN_DIR";

/// Bytes that an address file may have.
const FILE_MAX_BYTES: u64 = 64 << 10;

/// A run directory that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

/// Where an agent is, as its file says: a JSON object. A stale one is left by an agent that was
/// killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentAddr {
    /// The node's name.
    pub node: String,
    /// The agent's process id.
    pub pid: u32,
    /// Where it serves the directory; the best first.
    pub directory: Vec<Address>,
}

impl RunDir {
    /// Where the run directory is if nothing else is said: `$PRAAS_RUN_DIR`, else `praas` in
    /// `$XDG_RUNTIME_DIR`, else `/tmp/praas-<uid>`.
    pub fn default_path() -> PathBuf {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(path) = set(RUN_DIR_ENV) {
            return path.into();
        }
        if let Some(path) = set("XDG_RUNTIME_DIR") {
            return PathBuf::from(path).join("praas");
        }
        let uid = rustix::process::geteuid().as_raw();
        std::env::temp_dir().join(format!("praas-{uid}"))
    }

    /// Opens the run directory, making it if it is missing.
    ///
    /// # Errors
    /// It cannot be made, belongs to somebody else, or lets others in.
    pub fn create(path: &Path) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).recursive(true).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Self::open(path),
        }
    }

    /// Opens the run directory that is there.
    ///
    /// # Errors
    /// It is missing, belongs to somebody else, or lets others in.
    pub fn open(path: &Path) -> io::Result<Self> {
        let refuse = |text: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        let own = rustix::process::geteuid().as_raw();
        // In /tmp anybody can make a link of this name, to lead us to another directory of ours.
        let named = path.symlink_metadata()?;
        if named.is_symlink() && named.uid() != own && named.uid() != 0 {
            let (path, uid) = (path.display(), named.uid());
            return refuse(format!("{path} is a link that belongs to user {uid}"));
        }
        let root = path.canonicalize()?;
        let meta = root.metadata()?;
        if meta.uid() != own {
            return refuse(format!("{} belongs to user {}", root.display(), meta.uid()));
        }
        if meta.mode() & 0o022 != 0 {
            let mode = meta.mode() & 0o777;
            return refuse(format!(
                "{} has mode {mode:03o}, which lets others write: chmod 700",
                root.display()
            ));
        }
        Ok(Self { root })
    }

    /// Its path, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The settings' file.
    pub fn settings(&self) -> PathBuf {
        self.root.join("praas.toml")
    }

    /// The control plane's files.
    pub fn control(&self) -> RunPaths {
        RunPaths::in_dir(&self.root)
    }

    /// The socket on which the agent takes back hosts of an agent before it.
    pub fn agent_socket(&self) -> PathBuf {
        self.root.join("agent.sock")
    }

    /// Where the agent says where it is ([`AgentAddr`]).
    pub fn agent_addr(&self) -> PathBuf {
        self.root.join("agent.addr")
    }

    /// The page by which processes of the node tell one another that they spin.
    pub fn spinners(&self) -> PathBuf {
        self.root.join("spinners")
    }

    /// Since when the agent has been cut off from the control plane, where that matters.
    pub fn agent_cut(&self) -> PathBuf {
        self.root.join("agent.cut")
    }

    /// The folder of the agent's records of its hosts.
    pub fn hosts(&self) -> PathBuf {
        self.root.join("hosts")
    }

    /// The agent's record of one host.
    pub fn host_record(&self, application: &str, process: &str) -> PathBuf {
        let file = format!("{}.json", name_encode(process));
        self.hosts().join(name_encode(application)).join(file)
    }

    /// The log of the control plane or the agent, by its name.
    pub fn log(&self, of: &str) -> PathBuf {
        self.root.join("logs").join(format!("{of}.log"))
    }

    /// The log of a host.
    pub fn host_log(&self, application: &str, process: &str) -> PathBuf {
        let file = format!("{}.log", name_encode(process));
        let logs = self.root.join("logs");
        logs.join(name_encode(application)).join(file)
    }

    /// Where swap images go if the settings name no other place.
    pub fn swap_dir(&self) -> PathBuf {
        self.root.join("swap")
    }
}

impl AgentAddr {
    /// Reads the file.
    ///
    /// # Errors
    /// There is none, which means that no agent runs; or it holds something else.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        let file = File::open(path)?;
        file.take(FILE_MAX_BYTES).read_to_string(&mut text)?;
        serde_json::from_str(&text).map_err(io::Error::from)
    }

    /// Replaces the file at once.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        file_replace(path, serde_json::to_string(self)?.as_bytes())
    }
}

/// Replaces a file of mode 0600 as a whole, so that readers see the old or the new.
///
/// # Errors
/// The file system's.
pub fn file_replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    // Made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    io::Write::write_all(&mut file, bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let dir = RunDir::create(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(RunDir::open(&path).unwrap(), dir);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        let error = RunDir::open(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
        assert!(RunDir::open(&parent.path().join("none")).is_err());
    }

    #[test]
    fn a_link_of_somebody_else_is_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        // Our own is.
        assert!(RunDir::open(&link).is_ok());
        if std::os::unix::fs::lchown(&link, Some(12_345), None).is_err() {
            println!("SKIP: only root can give a link to somebody else");
            return;
        }
        for opened in [RunDir::open(&link), RunDir::create(&link)] {
            let error = opened.unwrap_err().to_string();
            assert!(error.contains("belongs to user 12345"), "{error}");
        }
    }

    #[test]
    fn any_name_is_one_component() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::create(parent.path()).unwrap();
        let record = dir.host_record("../..", "größe \u{1F600}");
        assert!(record.starts_with(dir.hosts()));
        assert_eq!(
            record.components().count(),
            dir.hosts().components().count() + 2
        );
    }

    #[test]
    fn an_agents_address_is_read_as_it_was_written() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("agent.addr");
        let address = AgentAddr {
            node: "n".into(),
            pid: 7,
            directory: vec!["tcp:127.0.0.1:9".parse().unwrap()],
        };
        address.write(&path).unwrap();
        assert_eq!(AgentAddr::read(&path).unwrap(), address);
    }
}
