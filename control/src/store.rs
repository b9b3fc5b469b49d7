//! What the control plane remembers: one redb database, durable before anything is acknowledged.
//!
//! ```text
//!   meta          schema, next incarnation
//!   applications  name             -> ApplicationRecord (with its secret)
//!   generations   name             -> generation of the world view
//!   processes     application/name -> ProcessRecord       (no name holds a '/')
//!   tokens        blake3 of token  -> TokenRecord
//!   transfers     application/name -> TransferRecord
//!   drained       node             -> nothing
//! ```
//!
//! Records are serde values through the codec of the agents' protocol.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use praas_transport::Secret;
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::agent::{CodecError, decode, encode};
use crate::api::{ProcessState, Settings, TokenRole};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const APPLICATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("applications");
const GENERATIONS: TableDefinition<'_, &str, u64> = TableDefinition::new("generations");
const PROCESSES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("processes");
const TOKENS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("tokens");
const TRANSFERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("transfers");
const DRAINED: TableDefinition<'_, &str, ()> = TableDefinition::new("drained");

const SCHEMA: &str = "schema";
const SCHEMA_VERSION: u64 = 3;
const INCARNATION_NEXT: &str = "incarnation_next";
/// Bytes of pages that redb keeps in memory; all that matters is in the registry's.
const CACHE_BYTES: usize = 8 << 20;

/// An application, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationRecord {
    /// Its name.
    pub name: String,
    /// Paths of its modules.
    pub modules: Vec<String>,
    /// Settings of its hosts: a JSON object.
    pub settings: String,
    /// Whether processes that are asked for are created.
    pub auto_create: bool,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// The key id of `secret`.
    pub key_id: u32,
    /// The data-plane secret.
    pub secret: Secret,
}

impl ApplicationRecord {
    /// Its settings by their names.
    ///
    /// # Errors
    /// What is stored is no JSON object.
    pub fn settings_read(&self) -> Result<Settings, serde_json::Error> {
        serde_json::from_str(&self.settings)
    }
}

/// A process, as it is stored. Where its host listens is its agent's to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its application.
    pub application: String,
    /// Its name.
    pub name: String,
    /// Its present or last incarnation; zero if it never started.
    pub incarnation: u64,
    /// The first incarnation of its present life, which began when it was last created.
    pub life: u64,
    /// Where it is in its life.
    pub state: ProcessState,
    /// The node where it is, or was started.
    pub node: Option<String>,
    /// The generation of its last confirmed swap image.
    pub swap_generation: u64,
    /// Whether there may be swap images.
    pub images: bool,
    /// Whether it was told to stop: its end is no failure.
    pub stopping: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether its last incarnation is known to have ended by being swapped out as
    /// `swap_generation`.
    pub swapped: bool,
}

/// A transfer that is not over, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRecord {
    /// The process's application.
    pub application: String,
    /// Its name.
    pub name: String,
    /// The node where it was.
    pub from_node: String,
    /// The incarnation that it had there.
    pub from_incarnation: u64,
    /// The node where it goes.
    pub to_node: String,
    /// The incarnation that it has there.
    pub to_incarnation: u64,
    /// Whether that is the process now.
    pub committed: bool,
}

/// A token, as it is stored: by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The blake3 hash of the token's text.
    pub hash: [u8; 32],
    /// What it allows; the application, or none for an administrator.
    pub application: Option<String>,
    /// What it is for.
    pub label: String,
    /// When it was issued, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

impl TokenRecord {
    /// What the token allows.
    pub fn role(&self) -> TokenRole {
        match &self.application {
            None => TokenRole::Admin,
            Some(application) => TokenRole::Application(application.clone()),
        }
    }
}

/// A change to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds or replaces an application.
    Application(ApplicationRecord),
    /// Forgets an application and its world's generation.
    ApplicationRemoved(String),
    /// Raises the generation of an application's world view.
    Generation(String, u64),
    /// Adds or replaces a process.
    Process(ProcessRecord),
    /// Forgets a process, by application and name.
    ProcessRemoved(String, String),
    /// The next incarnation that may be given out.
    IncarnationNext(u64),
    /// Adds a token.
    Token(TokenRecord),
    /// Forgets a token, by its hash.
    TokenRemoved([u8; 32]),
    /// Adds or replaces a transfer.
    Transfer(TransferRecord),
    /// Forgets a transfer, by application and process.
    TransferRemoved(String, String),
    /// Starts nothing on a node any more, or does again.
    NodeDrained(String, bool),
}

/// All that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The applications, by name.
    pub applications: Vec<ApplicationRecord>,
    /// The generations of the applications' world views.
    pub generations: Vec<(String, u64)>,
    /// The processes.
    pub processes: Vec<ProcessRecord>,
    /// The next incarnation that may be given out.
    pub incarnation_next: u64,
    /// The tokens.
    pub tokens: Vec<TokenRecord>,
    /// The transfers.
    pub transfers: Vec<TransferRecord>,
    /// Nodes on which nothing is started.
    pub drained: Vec<String>,
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be opened or made.
    #[error("cannot open the database {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another control plane has it open.
    #[error("the database {path} is in use: another control plane runs on it")]
    Locked {
        /// Which.
        path: PathBuf,
    },
    /// It is no database, or damaged.
    #[error(
        "the database {path} is damaged ({detail}): restore it from a copy, or move it away to \
         start anew"
    )]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// It was written by another version.
    #[error("the database {path} has schema {found}, this control plane reads {SCHEMA_VERSION}")]
    Schema {
        /// Which.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// A transaction failed.
    #[error("cannot store in the database")]
    Transaction(#[source] Box<redb::Error>),
    /// A record cannot be encoded.
    #[error("cannot store a record")]
    Record(#[source] CodecError),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Transaction(Box::new(error.into()))
    }
}

/// What reads the database at `path`; that it panics is that the database is damaged.
fn unpanicked<T>(
    path: &Path,
    read: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    // Nothing of it is used any more after a panic.
    let read = std::panic::AssertUnwindSafe(read);
    std::panic::catch_unwind(read).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(StoreError::Corrupt {
            path: path.into(),
            detail: format!("reading it failed: {}", words.unwrap_or("no more is known")),
        })
    })
}

/// The database.
#[derive(Debug)]
pub struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    /// Opens the database at `path`, which is made if it is missing, and sees to its mode 0600.
    ///
    /// # Errors
    /// It cannot be opened, is in use, damaged, or of another version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file_error = |source| StoreError::File {
            path: path.into(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(file_error)?;
        file.set_permissions(PermissionsExt::from_mode(0o600))
            .map_err(file_error)?;
        // It is read as far as need be, which may be into a page that is damaged: and who reads such
        // a one panics. So each is looked at before anything is believed.
        unpanicked(path, || {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            let mut database = builder
                .create(path)
                .map_err(|error| open_error(path, error))?;
            let whole = database.check_integrity();
            if !whole.map_err(|error| open_error(path, error))? {
                tracing::warn!(path = %path.display(), "the database was repaired");
            }
            let store = Self {
                database,
                path: path.into(),
            };
            store.schema_check()?;
            Ok(store)
        })
    }

    /// All that is stored.
    ///
    /// # Errors
    /// The database cannot be read, or holds a record that is none.
    pub fn load(&self) -> Result<Snapshot, StoreError> {
        unpanicked(&self.path, || self.read())
    }

    fn read(&self) -> Result<Snapshot, StoreError> {
        let read = self.database.begin_read()?;
        let mut snapshot = Snapshot::default();
        for row in read.open_table(APPLICATIONS)?.iter()? {
            let record: ApplicationRecord = self.record("application", row?.1.value())?;
            record
                .settings_read()
                .map_err(|error| StoreError::Corrupt {
                    path: self.path.clone(),
                    detail: format!("settings of application {:?}: {error}", record.name),
                })?;
            snapshot.applications.push(record);
        }
        for row in read.open_table(GENERATIONS)?.iter()? {
            let (name, generation) = row?;
            let row = (name.value().to_owned(), generation.value());
            snapshot.generations.push(row);
        }
        for row in read.open_table(PROCESSES)?.iter()? {
            let record = self.record("process", row?.1.value())?;
            snapshot.processes.push(record);
        }
        for row in read.open_table(TOKENS)?.iter()? {
            let record = self.record("token", row?.1.value())?;
            snapshot.tokens.push(record);
        }
        for row in read.open_table(TRANSFERS)?.iter()? {
            let record = self.record("transfer", row?.1.value())?;
            snapshot.transfers.push(record);
        }
        for row in read.open_table(DRAINED)?.iter()? {
            snapshot.drained.push(row?.0.value().to_owned());
        }
        let meta = read.open_table(META)?;
        snapshot.incarnation_next = meta
            .get(INCARNATION_NEXT)?
            .map_or(1, |value| value.value().max(1));
        Ok(snapshot)
    }

    /// Stores changes, in order, all or none. When it returns they are on disk.
    ///
    /// # Errors
    /// The database cannot be written; nothing was stored then.
    pub fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        {
            let mut meta = write.open_table(META)?;
            let mut applications = write.open_table(APPLICATIONS)?;
            let mut generations = write.open_table(GENERATIONS)?;
            let mut processes = write.open_table(PROCESSES)?;
            let mut tokens = write.open_table(TOKENS)?;
            let mut transfers = write.open_table(TRANSFERS)?;
            let mut drained = write.open_table(DRAINED)?;
            for change in changes {
                match change {
                    Change::Application(record) => {
                        let bytes = encode(record).map_err(StoreError::Record)?;
                        applications.insert(record.name.as_str(), bytes.as_slice())?;
                    }
                    Change::ApplicationRemoved(name) => {
                        applications.remove(name.as_str())?;
                        generations.remove(name.as_str())?;
                    }
                    Change::Generation(name, generation) => {
                        generations.insert(name.as_str(), generation)?;
                    }
                    Change::Process(record) => {
                        let key = process_key(&record.application, &record.name);
                        let bytes = encode(record).map_err(StoreError::Record)?;
                        processes.insert(key.as_str(), bytes.as_slice())?;
                    }
                    Change::ProcessRemoved(application, name) => {
                        processes.remove(process_key(application, name).as_str())?;
                    }
                    Change::IncarnationNext(next) => {
                        meta.insert(INCARNATION_NEXT, next)?;
                    }
                    Change::Token(record) => {
                        let bytes = encode(record).map_err(StoreError::Record)?;
                        tokens.insert(&record.hash, bytes.as_slice())?;
                    }
                    Change::TokenRemoved(hash) => {
                        tokens.remove(hash)?;
                    }
                    Change::Transfer(record) => {
                        let key = process_key(&record.application, &record.name);
                        let bytes = encode(record).map_err(StoreError::Record)?;
                        transfers.insert(key.as_str(), bytes.as_slice())?;
                    }
                    Change::TransferRemoved(application, name) => {
                        transfers.remove(process_key(application, name).as_str())?;
                    }
                    Change::NodeDrained(node, true) => {
                        drained.insert(node.as_str(), ())?;
                    }
                    Change::NodeDrained(node, false) => {
                        drained.remove(node.as_str())?;
                    }
                }
            }
        }
        write.commit()?;
        Ok(())
    }

    fn record<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        bytes: &[u8],
    ) -> Result<T, StoreError> {
        decode(bytes).map_err(|error| StoreError::Corrupt {
            path: self.path.clone(),
            detail: format!("{what} record: {error}"),
        })
    }

    /// Makes the tables of a new database, and refuses those of another version.
    fn schema_check(&self) -> Result<(), StoreError> {
        let write = self.database.begin_write()?;
        let found = write
            .open_table(META)?
            .get(SCHEMA)?
            .map(|value| value.value());
        match found {
            Some(SCHEMA_VERSION) => {
                // Tables that came later: a database without them has no such rows.
                write.open_table(TRANSFERS)?;
                write.open_table(DRAINED)?;
                return Ok(write.commit()?);
            }
            Some(found) => {
                return Err(StoreError::Schema {
                    path: self.path.clone(),
                    found,
                });
            }
            None => {}
        }
        write.open_table(META)?.insert(SCHEMA, SCHEMA_VERSION)?;
        write.open_table(APPLICATIONS)?;
        write.open_table(GENERATIONS)?;
        write.open_table(PROCESSES)?;
        write.open_table(TOKENS)?;
        write.open_table(TRANSFERS)?;
        write.open_table(DRAINED)?;
        Ok(write.commit()?)
    }
}

fn process_key(application: &str, name: &str) -> String {
    format!("{application}/{name}")
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    use redb::StorageError;
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Locked { path },
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData
                && source.kind() != io::ErrorKind::UnexpectedEof =>
        {
            StoreError::File { path, source }
        }
        error => StoreError::Corrupt {
            path,
            detail: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn application() -> ApplicationRecord {
        ApplicationRecord {
            name: "a".into(),
            modules: vec!["/m.so".into()],
            settings: "{}".into(),
            auto_create: true,
            created_unix_ms: 5,
            key_id: 1,
            secret: Secret::from_bytes([3; 32]),
        }
    }

    fn process(name: &str) -> ProcessRecord {
        ProcessRecord {
            application: "a".into(),
            name: name.into(),
            incarnation: 9,
            life: 8,
            state: ProcessState::Ready,
            node: Some("n".into()),
            swap_generation: 1,
            images: true,
            stopping: false,
            error: None,
            swapped: false,
        }
    }

    fn transfer(application: &str, name: &str) -> TransferRecord {
        TransferRecord {
            application: application.into(),
            name: name.into(),
            from_node: "n".into(),
            from_incarnation: 3,
            to_node: "m".into(),
            to_incarnation: 4,
            committed: false,
        }
    }

    #[test]
    fn a_flipped_bit_is_damage_or_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.redb");
        let store = Store::open(&path).unwrap();
        let changes: Vec<_> = (0..50)
            .map(|number| Change::Process(process(&format!("p{number}"))))
            .chain([Change::Application(application())])
            .collect();
        store.commit(&changes).unwrap();
        let before = store.load().unwrap();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = 0;
        for round in 0..60 {
            let mut bytes = whole.clone();
            // Spread over the part that is in use.
            let at = round * 709 % bytes.len().min(40_000);
            bytes[at] ^= 1 << (round % 8);
            std::fs::write(&path, &bytes).unwrap();
            match Store::open(&path).and_then(|store| store.load()) {
                Ok(snapshot) => assert_eq!(snapshot, before, "byte {at}"),
                Err(StoreError::Corrupt { .. }) => damaged += 1,
                Err(error) => panic!("byte {at}: {error:?}"),
            }
        }
        assert!(damaged > 0, "nothing was hit");
    }

    #[test]
    fn what_was_committed_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.redb");
        let token = TokenRecord {
            hash: [1; 32],
            application: None,
            label: "l".into(),
            created_unix_ms: 7,
        };
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap().incarnation_next, 1);
        store
            .commit(&[
                Change::Application(application()),
                Change::Generation("a".into(), 4),
                Change::Process(process("p")),
                Change::Process(process("q")),
                Change::ProcessRemoved("a".into(), "q".into()),
                Change::IncarnationNext(10),
                Change::Token(token.clone()),
            ])
            .unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        let expected = Snapshot {
            applications: vec![application()],
            generations: vec![("a".into(), 4)],
            processes: vec![process("p")],
            incarnation_next: 10,
            tokens: vec![token],
            ..Snapshot::default()
        };
        assert_eq!(store.load().unwrap(), expected);
        store
            .commit(&[
                Change::ApplicationRemoved("a".into()),
                Change::TokenRemoved([1; 32]),
            ])
            .unwrap();
        let left = store.load().unwrap();
        assert!(left.applications.is_empty() && left.generations.is_empty());
        assert!(left.tokens.is_empty());
    }

    #[test]
    fn others_cannot_read_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.redb");
        std::fs::write(&path, b"").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let _store = Store::open(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_database_in_use_or_damaged_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.redb");
        let store = Store::open(&path).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Locked { .. })));
        drop(store);
        let garbage: Vec<u8> = (0..20_000_u32).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&path, &garbage).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert_eq!(std::fs::read(&path).unwrap(), garbage, "left as it was");
        let missing = dir.path().join("no/such/dir/control.redb");
        assert!(matches!(
            Store::open(&missing),
            Err(StoreError::File { .. })
        ));
    }

    #[test]
    fn settings_that_cannot_be_read_are_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = Store::open(&path).unwrap();
        let mut bad = application();
        bad.settings = "{".into();
        store.commit(&[Change::Application(bad)]).unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("settings of application \"a\""), "{error}");
    }

    #[test]
    fn another_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.redb");
        let store = Store::open(&path).unwrap();
        let write = store.database.begin_write().unwrap();
        write
            .open_table(META)
            .unwrap()
            .insert(SCHEMA, SCHEMA_VERSION + 1)
            .unwrap();
        write.commit().unwrap();
        drop(store);
        let refused = Store::open(&path);
        assert!(matches!(
            refused,
            Err(StoreError::Schema { found, .. }) if found == SCHEMA_VERSION + 1
        ));
    }

    fn change_any() -> impl Strategy<Value = Change> {
        let name = || "[ab]{1,2}";
        prop_oneof![
            (name(), any::<u32>()).prop_map(|(name, key_id)| {
                let record = application();
                Change::Application(ApplicationRecord {
                    name,
                    key_id,
                    ..record
                })
            }),
            name().prop_map(Change::ApplicationRemoved),
            (name(), any::<u64>()).prop_map(|(name, at)| Change::Generation(name, at)),
            (name(), name(), any::<u64>()).prop_map(|(application, name, incarnation)| {
                let record = process(&name);
                Change::Process(ProcessRecord {
                    application,
                    incarnation,
                    ..record
                })
            }),
            (name(), name()).prop_map(|(a, p)| Change::ProcessRemoved(a, p)),
            (1..u64::MAX).prop_map(Change::IncarnationNext),
            (0..4_u8, any::<u64>()).prop_map(|(hash, created_unix_ms)| {
                Change::Token(TokenRecord {
                    hash: [hash; 32],
                    application: Some("a".into()),
                    label: String::new(),
                    created_unix_ms,
                })
            }),
            (0..4_u8).prop_map(|hash| Change::TokenRemoved([hash; 32])),
            (name(), name(), any::<bool>()).prop_map(|(a, p, committed)| {
                Change::Transfer(TransferRecord {
                    committed,
                    ..transfer(&a, &p)
                })
            }),
            (name(), name()).prop_map(|(a, p)| Change::TransferRemoved(a, p)),
            (name(), any::<bool>()).prop_map(|(node, drained)| Change::NodeDrained(node, drained)),
        ]
    }

    /// What the changes come to, by hand.
    #[derive(Default)]
    struct Model {
        applications: BTreeMap<String, ApplicationRecord>,
        generations: BTreeMap<String, u64>,
        processes: BTreeMap<String, ProcessRecord>,
        tokens: BTreeMap<[u8; 32], TokenRecord>,
        transfers: BTreeMap<String, TransferRecord>,
        drained: std::collections::BTreeSet<String>,
        incarnation_next: Option<u64>,
    }

    impl Model {
        fn apply(&mut self, change: &Change) {
            match change.clone() {
                Change::Application(record) => {
                    self.applications.insert(record.name.clone(), record);
                }
                Change::ApplicationRemoved(name) => {
                    self.applications.remove(&name);
                    self.generations.remove(&name);
                }
                Change::Generation(name, at) => {
                    self.generations.insert(name, at);
                }
                Change::Process(record) => {
                    let key = process_key(&record.application, &record.name);
                    self.processes.insert(key, record);
                }
                Change::ProcessRemoved(application, name) => {
                    self.processes.remove(&process_key(&application, &name));
                }
                Change::IncarnationNext(next) => self.incarnation_next = Some(next),
                Change::Token(record) => {
                    self.tokens.insert(record.hash, record);
                }
                Change::TokenRemoved(hash) => {
                    self.tokens.remove(&hash);
                }
                Change::Transfer(record) => {
                    let key = process_key(&record.application, &record.name);
                    self.transfers.insert(key, record);
                }
                Change::TransferRemoved(application, name) => {
                    self.transfers.remove(&process_key(&application, &name));
                }
                Change::NodeDrained(node, true) => drop(self.drained.insert(node)),
                Change::NodeDrained(node, false) => drop(self.drained.remove(&node)),
            }
        }

        fn snapshot(&self) -> Snapshot {
            Snapshot {
                applications: self.applications.values().cloned().collect(),
                generations: self.generations.clone().into_iter().collect(),
                processes: self.processes.values().cloned().collect(),
                incarnation_next: self.incarnation_next.unwrap_or(1),
                tokens: self.tokens.values().cloned().collect(),
                transfers: self.transfers.values().cloned().collect(),
                drained: self.drained.iter().cloned().collect(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// A copy of the file, taken while it is open, is what a process killed at that moment
        /// leaves behind: nothing was closed, and no destructor ran.
        #[test]
        fn what_was_committed_is_there_after_a_kill(
            batches in prop::collection::vec(prop::collection::vec(change_any(), 1..6), 1..8),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("control.redb");
            let left = dir.path().join("left.redb");
            let store = Store::open(&path).unwrap();
            let mut model = Model::default();
            for batch in &batches {
                store.commit(batch).unwrap();
                batch.iter().for_each(|change| model.apply(change));
                std::fs::copy(&path, &left).unwrap();
                let found = Store::open(&left).unwrap().load().unwrap();
                prop_assert_eq!(found, model.snapshot());
            }
        }
    }
}
