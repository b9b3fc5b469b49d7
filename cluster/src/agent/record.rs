//! What is kept of each host on disk, and how the hosts of an agent before this one are found.
//!
//! A record is written before its host is spawned, and again with every change; it is removed once
//! the host is dead. So after a kill of the agent every host that may live has a record, or shows
//! the run directory on its command line. The record of a host that died while the control plane was
//! away stays until it is told. Nothing is synced: a record is of no use after the
//! machine's end, and what is in the page cache outlives the agent.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use praas_control::agent::HostTransfer;
use praas_control::api::ProcessState;
use praas_runtime::swap::{Storage, StorageError, object_writer, process_prefix};
use praas_transport::Address;
use serde::{Deserialize, Serialize};

use super::hosts::HostKey;
use crate::run_dir::{RunDir, file_replace};
use crate::spawn::start_time;

/// How a host was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ending {
    Swap,
    Stop,
}

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct HostRecord {
    pub(super) application: String,
    pub(super) process: String,
    pub(super) incarnation: u64,
    /// The first incarnation of the process's life; zero if an older agent wrote this.
    #[serde(default)]
    pub(super) life: u64,
    /// Zero while it is being spawned.
    pub(super) pid: u32,
    /// When it was started, in ticks since the system's boot.
    pub(super) started: u64,
    /// Which boot that was.
    pub(super) boot: String,
    pub(super) state: ProcessState,
    pub(super) ending: Option<Ending>,
    pub(super) addresses: Vec<Address>,
    pub(super) swap_generation: u64,
    /// What was wrong with its newer images.
    pub(super) warning: Option<String>,
    /// Milliseconds that its functions may take to finish.
    pub(super) quiesce_ms: u64,
    /// Where its part of the log begins, in bytes.
    pub(super) log_start: u64,
    /// What it has to do with a transfer.
    #[serde(default)]
    pub(super) transfer: HostTransfer,
}

impl HostRecord {
    pub(super) fn new(key: &HostKey, incarnation: u64) -> Self {
        Self {
            application: key.application.clone(),
            process: key.process.clone(),
            incarnation,
            life: incarnation,
            pid: 0,
            started: 0,
            boot: boot_id(),
            state: ProcessState::Starting,
            ending: None,
            addresses: Vec::new(),
            swap_generation: 0,
            warning: None,
            quiesce_ms: 10_000,
            log_start: 0,
            transfer: HostTransfer::None,
        }
    }

    pub(super) fn key(&self) -> HostKey {
        HostKey {
            application: self.application.clone(),
            process: self.process.clone(),
        }
    }

    pub(super) fn write(&self, run_dir: &RunDir) -> io::Result<()> {
        let path = run_dir.host_record(&self.application, &self.process);
        let bytes = serde_json::to_vec(self)?;
        match file_replace(&path, &bytes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                file_replace(&path, &bytes)
            }
            written => written,
        }
    }

    /// Whether the process that had its number then has it still.
    pub(super) fn is_same_process(&self) -> bool {
        self.pid != 0 && self.boot == boot_id() && start_time(self.pid) == Some(self.started)
    }
}

/// Removes a record, and its application's folder with the last.
pub(super) fn record_remove(run_dir: &RunDir, key: &HostKey) {
    let path = run_dir.host_record(&key.application, &key.process);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(path = %path.display(), %error, "cannot remove a record");
        }
        _ => {}
    }
    if let Some(folder) = path.parent() {
        // Refused while others are there.
        let _ = fs::remove_dir(folder);
    }
}

/// All records there are. What cannot be read is named in the log, and left.
pub(super) fn records_read(run_dir: &RunDir) -> io::Result<Vec<HostRecord>> {
    let mut records = Vec::new();
    for folder in fs::read_dir(run_dir.hosts())? {
        let folder = folder?;
        if !folder.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(folder.path())? {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // The leavings of a write that was cut off.
                let _ = fs::remove_file(&path);
                continue;
            }
            match record_read(&path) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "cannot read a record");
                }
            }
        }
    }
    Ok(records)
}

fn record_read(path: &Path) -> io::Result<HostRecord> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
}

/// A host that runs, by what its command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundHost {
    pub(super) key: HostKey,
    pub(super) incarnation: u64,
    pub(super) pid: u32,
}

/// The arguments of a host, after the program; as they are looked for.
pub(super) fn host_arguments(run_dir: &RunDir, key: &HostKey, incarnation: u64) -> Vec<String> {
    let dir = run_dir.root().display().to_string();
    let named = [
        ("--run-dir", dir),
        ("--application", key.application.clone()),
        ("--process", key.process.clone()),
        ("--incarnation", incarnation.to_string()),
    ];
    let named = named.into_iter();
    named
        .flat_map(|(name, value)| [name.into(), value])
        .collect()
}

/// The hosts of this user and run directory that run now.
pub(super) fn hosts_find(run_dir: &RunDir) -> io::Result<Vec<FoundHost>> {
    let own = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while it is looked at.
        let user = entry
            .metadata()
            .map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
        if user.ok() != Some(own) {
            continue;
        }
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        if let Some((key, incarnation)) = command_line_parse(&line, run_dir.root()) {
            found.push(FoundHost {
                key,
                incarnation,
                pid,
            });
        }
    }
    Ok(found)
}

fn command_line_parse(line: &[u8], root: &Path) -> Option<(HostKey, u64)> {
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split('\0').collect();
    let at = words.iter().position(|word| *word == "--run-dir")?;
    if at == 0 || words[at - 1] != "host" || Path::new(words.get(at + 1)?) != root {
        return None;
    }
    match words.get(at + 2..at + 8)? {
        [
            "--application",
            application,
            "--process",
            process,
            "--incarnation",
            incarnation,
        ] => {
            let key = HostKey {
                application: (*application).into(),
                process: (*process).into(),
            };
            Some((key, incarnation.parse().ok()?))
        }
        _ => None,
    }
}

/// The generation of the image that an incarnation wrote, if it did: the names of manifests say
/// who wrote them, and a manifest comes last.
pub(super) fn image_find(storage: &dyn Storage, key: &HostKey, incarnation: u64) -> Option<u64> {
    let prefix = format!(
        "{}manifest-{incarnation:016x}-",
        process_prefix(&key.application, &key.process)
    );
    let names = storage.list(&prefix);
    let names = names.inspect_err(|error| tracing::warn!(%key, %error, "cannot look for images"));
    let generations = names.ok()?.into_iter().filter_map(|name| {
        let digits = name.strip_prefix(&prefix)?;
        (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
    });
    generations.max()
}

/// Deletes all that incarnations of a process below one have left in storage: manifests first, so
/// that none is left that lacks its packs. That one and those above it may be a process that was
/// created again meanwhile.
pub(super) fn images_delete(
    storage: &dyn Storage,
    key: &HostKey,
    below: u64,
) -> Result<(), StorageError> {
    let prefix = process_prefix(&key.application, &key.process);
    let mut names = storage.list(&prefix)?;
    names.sort();
    let of_before = |name: &String| {
        let writer = object_writer(&name[prefix.len()..]);
        writer.is_none_or(|writer| writer.0 < below)
    };
    for name in names.into_iter().filter(of_before) {
        match storage.delete(&name) {
            // Somebody who was told to do the same was faster.
            Ok(()) | Err(StorageError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Names this boot of the system.
fn boot_id() -> String {
    static BOOT: OnceLock<String> = OnceLock::new();
    let read = || {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.unwrap_or_default().trim().into()
    };
    BOOT.get_or_init(read).clone()
}

#[cfg(test)]
mod tests {
    use praas_runtime::swap::StorageUrl;

    use super::*;
    use crate::storage::storage_open;

    fn key() -> HostKey {
        HostKey {
            application: "an app".into(),
            process: "p/1".into(),
        }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let parent = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(&parent.path().join("run")).unwrap();
        fs::create_dir(run_dir.hosts()).unwrap();
        let mut record = HostRecord::new(&key(), 7);
        record.write(&run_dir).unwrap();
        record.pid = std::process::id();
        record.started = start_time(record.pid).unwrap();
        record.write(&run_dir).unwrap();
        fs::write(run_dir.hosts().join("an%20app/bad.json"), "{").unwrap();
        fs::write(run_dir.hosts().join("an%20app/.tmp"), "{").unwrap();
        let read = records_read(&run_dir).unwrap();
        assert_eq!(read, std::slice::from_ref(&record));
        assert!(record.is_same_process());
        record.started += 1;
        assert!(!record.is_same_process());
        fs::remove_file(run_dir.hosts().join("an%20app/bad.json")).unwrap();
        record_remove(&run_dir, &key());
        record_remove(&run_dir, &key());
        assert_eq!(fs::read_dir(run_dir.hosts()).unwrap().count(), 0);
    }

    #[test]
    fn a_host_is_known_by_its_command_line() {
        let parent = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(parent.path()).unwrap();
        let arguments = host_arguments(&run_dir, &key(), 9);
        let line = format!("/bin/praas\0host\0{}\0", arguments.join("\0"));
        let parse = |line: &str| command_line_parse(line.as_bytes(), run_dir.root());
        assert_eq!(parse(&line), Some((key(), 9)));
        assert_eq!(parse(&line.replace("\0host\0", "\0ghost\0")), None);
        assert_eq!(parse(&line.replace("--run-dir\0", "--run-dir\0/x")), None);
        assert_eq!(parse("--run-dir"), None);
        assert_eq!(hosts_find(&run_dir).unwrap(), []);
    }

    #[test]
    fn images_are_found_by_who_wrote_them_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let url = StorageUrl::file(dir.path());
        let storage = storage_open(&url).unwrap();
        let prefix = process_prefix("an app", "p/1");
        for name in [
            "manifest-0000000000000003-0000000000000001",
            "manifest-0000000000000007-0000000000000002",
            "manifest-0000000000000007-000000000000000a",
            "pack-0000000000000007-000000000000000b-0000",
        ] {
            storage.put_new(&format!("{prefix}{name}"), &[]).unwrap();
        }
        assert_eq!(image_find(&*storage, &key(), 7), Some(10));
        assert_eq!(image_find(&*storage, &key(), 4), None);
        let left = || storage.list(&prefix).unwrap().len();
        images_delete(&*storage, &key(), 7).unwrap();
        assert_eq!(left(), 3);
        images_delete(&*storage, &key(), 8).unwrap();
        images_delete(&*storage, &key(), 8).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
