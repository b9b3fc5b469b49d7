//! From what an agent says to a process that serves.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use praas_runtime::client::Directory;
use praas_runtime::function::Registry;
use praas_runtime::host::HostStart;
use praas_runtime::process::{PersistTo, Process, ProcessConfig, Restore};
use praas_runtime::swap::{
    Heir, ImageKind, Loaded, Storage, StorageUrl, SwapError, swap_in_lazily,
};
use praas_transport::sync::atomic::Ordering;
use praas_transport::{
    BufPool, Credential, Incarnation, Keyring, Listen, Role, Secret, StatsPage, StatsWord, Ticket,
    UnixPlace,
};

use super::checkpoint::unasked_tell;
use super::link::Event;
use crate::storage::storage_open;

/// What a start makes.
pub(super) struct Started {
    pub process: Process,
    pub storage: Arc<dyn Storage>,
    pub keyring: Arc<Keyring>,
    pub swap_generation: u64,
    pub rejected: Vec<String>,
}

/// Why there is no image to begin with.
#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error(
        "generation {generation} of {application}/{process} was swapped out, and there is no \
         image of it in {storage}: was the storage moved or emptied?"
    )]
    NoImage {
        application: String,
        process: String,
        storage: String,
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

/// What every host has before it is a process: its storage, its functions, and who may come.
pub(super) struct Opened {
    pub storage: Arc<dyn Storage>,
    pub keyring: Arc<Keyring>,
    pub config: ProcessConfig,
}

/// Opens the storage and loads the modules.
pub(super) fn host_open(
    start: &HostStart,
    events: &Sender<Event>,
) -> Result<Opened, Box<dyn Error>> {
    let url: StorageUrl = start.storage.parse()?;
    let storage = storage_open(&url)?;
    // Better now than at the swap.
    storage.check()?;
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
        persist: Some(persist_to(start, &storage, events)),
    };
    Ok(Opened {
        storage,
        keyring,
        config,
    })
}

/// Where the process writes objects through: the storage of its images.
fn persist_to(start: &HostStart, storage: &Arc<dyn Storage>, events: &Sender<Event>) -> PersistTo {
    let events = events.clone();
    PersistTo {
        storage: Arc::clone(storage),
        config: start.swap,
        checkpointed: Box::new(move |committed| unasked_tell(&events, committed)),
    }
}

/// Starts the process; it serves when this returns.
pub(super) fn host_start(
    start: &HostStart,
    opened: Opened,
    page: Arc<StatsPage>,
) -> Result<Started, Box<dyn Error>> {
    let Opened {
        storage,
        keyring,
        config,
    } = opened;
    let (mut swap_generation, mut rejected) = (0, Vec::new());
    let counted = Arc::clone(&page);
    let process = Process::start_counted(config, page, |pool| -> Result<_, Box<dyn Error>> {
        if start.incarnation == start.life {
            return Ok(None);
        }
        let restored: Option<Restore>;
        (restored, swap_generation, rejected) = restore(start, &storage, pool)?;
        let checkpoint = restored
            .as_ref()
            .is_some_and(|restored| restored.image.kind == ImageKind::Checkpoint);
        counted
            .word(StatsWord::RestoredCheckpoint)
            .store(checkpoint.into(), Ordering::Relaxed);
        counted
            .word(StatsWord::RestoredGeneration)
            .store(swap_generation, Ordering::Relaxed);
        Ok(restored)
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

type Restored = (Option<Restore>, u64, Vec<String>);

/// The newest image that verifies, its generation, and what is wrong with
/// newer ones.
fn restore(
    start: &HostStart,
    storage: &Arc<dyn Storage>,
    pool: &BufPool,
) -> Result<Restored, RestoreError> {
    let min_bytes = match start.settings.swap_lazy {
        true => start.settings.swap_lazy_min_bytes,
        false => u64::MAX,
    };
    let name = (&*start.application, &*start.process);
    let heir = Heir {
        incarnation: Incarnation(start.incarnation),
        life: Incarnation(start.life),
    };
    let loaded = match swap_in_lazily(storage, pool, name, heir, min_bytes) {
        Ok(loaded) => loaded,
        // It died while its first image was written, with all that it had: as one without an image.
        Err(error) if start.swap_generation == 0 && error.is_of_unfinished_commits() => {
            tracing::error!(%error, "only commits that never ended are there: it begins anew");
            None
        }
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
    let Some((loaded, absent)) = loaded else {
        return match hint {
            0 => Ok((None, 0, Vec::new())),
            generation => Err(RestoreError::NoImage {
                application: start.application.clone(),
                process: start.process.clone(),
                storage: start.storage.clone(),
                generation,
            }),
        };
    };
    let Loaded {
        mut image,
        generation,
        base,
        through,
        rejected,
    } = loaded;
    if through > 0 {
        tracing::info!(
            through,
            "state objects that were written through are newer than the image"
        );
    }
    if !(start.swapped && generation == hint) {
        // Nobody has heard that a process ended with it: it may have served on, or others may have
        // begun with it.
        image.kind = ImageKind::Checkpoint;
    }
    let (unfinished, rejected): (Vec<_>, Vec<_>) = rejected
        .into_iter()
        .partition(|one| one.is_cut_off() && one.generation() > Some(hint));
    for one in unfinished {
        // Its writer died over it, and nobody was told of it: nothing is lost.
        tracing::info!(
            generation,
            "a commit that never ended is passed over: {one}"
        );
    }
    let there = rejected.iter().any(|one| one.generation() == Some(hint));
    let mut rejected: Vec<String> = rejected.iter().map(ToString::to_string).collect();
    if generation < hint && !there {
        // Whatever else is wrong: what it had done by then is not in what is loaded.
        rejected.push(format!("generation {hint} is missing"));
    }
    for reason in &rejected {
        tracing::error!(generation, "an older generation is loaded: {reason}");
    }
    let restore = Restore {
        image,
        absent,
        base: Some(base),
    };
    Ok((Some(restore), generation, rejected))
}
