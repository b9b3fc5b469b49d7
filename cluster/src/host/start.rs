//! From what an agent says to a process that serves.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use praas_runtime::client::Directory;
use praas_runtime::function::Registry;
use praas_runtime::host::{FromHost, HostStart};
use praas_runtime::process::{Process, ProcessConfig};
use praas_runtime::swap::{DirStorage, Loaded, ProcessImage, SwapError, swap_in};
use praas_transport::{
    BufPool, Credential, Incarnation, Keyring, Listen, Role, Secret, Ticket, UnixPlace,
};

/// What a start makes.
pub(super) struct Started {
    pub process: Process,
    pub storage: DirStorage,
    pub keyring: Arc<Keyring>,
    pub swap_generation: u64,
    pub rejected: Vec<String>,
}

/// Why there is no image to begin with.
#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error(
        "generation {generation} of {application}/{process} was swapped out, and there is no \
         image of it in {dir}: was the swap directory moved or emptied?"
    )]
    NoImage {
        application: String,
        process: String,
        dir: String,
        generation: u64,
    },
    #[error("{error}: {}", .rejected.join("; "))]
    NoneVerifies {
        error: String,
        rejected: Vec<String>,
    },
    #[error(transparent)]
    Swap(SwapError),
}

/// The swap directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to the swap directory {dir}")]
struct StorageUnusable {
    dir: String,
    source: std::io::Error,
}

impl Started {
    /// What the agent is told.
    pub fn ready(&self) -> FromHost {
        FromHost::Ready {
            addresses: self.process.addresses().to_vec(),
            swap_generation: self.swap_generation,
            rejected: self.rejected.clone(),
        }
    }
}

/// Starts the process; it serves when this returns.
pub(super) fn host_start(start: &HostStart) -> Result<Started, Box<dyn Error>> {
    let storage = storage_open(&start.swap_dir)?;
    let mut registry = Registry::new();
    for module in &start.modules {
        registry.module_load(Path::new(module))?;
    }
    let keyring = Arc::new(Keyring::new());
    keyring.insert(&start.application, start.key_id, start.secret.clone());
    let config = ProcessConfig {
        application: start.application.clone(),
        process: start.process.clone(),
        incarnation: Incarnation(start.incarnation),
        listen: listen(start),
        authenticator: Arc::clone(&keyring) as _,
        credential: host_credential(&start.application, start.key_id, &start.secret),
        directory: Directory::Agent(start.directory.clone()),
        transports: start.transports,
        settings: start.settings.clone(),
        registry,
        restore: None,
    };
    let (mut swap_generation, mut rejected) = (0, Vec::new());
    let process = Process::start_from(config, |pool| -> Result<_, Box<dyn Error>> {
        if !start.restore {
            return Ok(None);
        }
        let image;
        (image, swap_generation, rejected) = restore(start, &storage, pool)?;
        Ok(image)
    })?;
    Ok(Started {
        process,
        storage,
        keyring,
        swap_generation,
        rejected,
    })
}

/// What a process shows to other processes of its application.
pub(super) fn host_credential(application: &str, key_id: u32, secret: &Secret) -> Credential {
    let ticket = Ticket {
        application: application.into(),
        role: Role::Process,
        client_id: 0,
        expires_unix_ms: u64::MAX,
        key_id,
    };
    Credential::issue(secret, &ticket)
}

/// An error with its causes, in one line.
pub(super) fn error_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let of_it = error.to_string();
        // Errors that are transparent say the same as their cause.
        if !text.ends_with(&of_it) {
            text = format!("{text}: {of_it}");
        }
        cause = error.source();
    }
    text
}

fn listen(start: &HostStart) -> Vec<Listen> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let tcp = match start.listen.is_empty() {
        true => vec![loopback],
        false => start.listen.clone(),
    };
    let unix = match &start.unix_dir {
        Some(dir) => UnixPlace::Folder(dir.into()),
        None => UnixPlace::Abstract(None),
    };
    [Listen::Shm { name: None }, Listen::Unix(unix)]
        .into_iter()
        .chain(start.verbs_listen.iter().copied().map(Listen::Verbs))
        .chain(tcp.into_iter().map(Listen::Tcp))
        .collect()
}

/// Opens the swap directory, and finds out now rather than at the swap whether it can be written.
fn storage_open(dir: &str) -> Result<DirStorage, Box<dyn Error>> {
    let storage = DirStorage::new(dir)?;
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(dir, access).map_err(|error| StorageUnusable {
        dir: dir.into(),
        source: error.into(),
    })?;
    Ok(storage)
}

type Restored = (Option<ProcessImage>, u64, Vec<String>);

/// The newest image that verifies, its generation, and what is wrong with newer ones.
fn restore(
    start: &HostStart,
    storage: &DirStorage,
    pool: &BufPool,
) -> Result<Restored, RestoreError> {
    let loaded = match swap_in(storage, pool, &start.application, &start.process) {
        Ok(loaded) => loaded,
        Err(error) => {
            return Err(match &error {
                SwapError::NoneVerifies { rejected, .. } => RestoreError::NoneVerifies {
                    rejected: rejected.iter().map(ToString::to_string).collect(),
                    error: error.to_string(),
                },
                _ => RestoreError::Swap(error),
            });
        }
    };
    let hint = start.swap_generation;
    let Some(loaded) = loaded else {
        return match hint {
            0 => Ok((None, 0, Vec::new())),
            generation => Err(RestoreError::NoImage {
                application: start.application.clone(),
                process: start.process.clone(),
                dir: start.swap_dir.clone(),
                generation,
            }),
        };
    };
    let Loaded {
        image,
        generation,
        rejected,
    } = loaded;
    let mut rejected: Vec<String> = rejected.iter().map(ToString::to_string).collect();
    if generation < hint && rejected.is_empty() {
        rejected.push(format!("generation {hint} is missing"));
    }
    for reason in &rejected {
        tracing::error!(generation, "an older generation is loaded: {reason}");
    }
    Ok((Some(image), generation, rejected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_once() {
        let source = std::io::Error::from_raw_os_error(13);
        let error = StorageUnusable {
            dir: "/d".into(),
            source,
        };
        let text = error_text(&error);
        assert_eq!(
            text,
            "cannot write to the swap directory /d: Permission denied (os error 13)"
        );
        assert_eq!(error_text(&std::io::Error::other("once")), "once");
    }
}
