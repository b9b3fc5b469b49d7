//! A process in this OS process, and its clients, without an agent.

use std::collections::BTreeMap;
use std::sync::Arc;

use praas_runtime::abi::ModuleTable;
use praas_runtime::client::{Client, ClientConfig, Directory};
use praas_runtime::directory::Resolved;
use praas_runtime::function::Registry;
use praas_runtime::process::{
    PersistTo, Process, ProcessConfig, ProcessSettings, Restore, StartError,
};
use praas_transport::{
    BufPool, Credential, Incarnation, Keyring, Kinds, Listen, Role, Secret, Ticket, WaitMode,
};

/// Who may be whom.
pub struct Keys {
    secret: Secret,
    ring: Arc<Keyring>,
}

impl Keys {
    pub fn new() -> Self {
        let (secret, ring) = (Secret::generate().unwrap(), Arc::new(Keyring::new()));
        ring.insert("app", 1, secret.clone());
        Self { secret, ring }
    }

    /// The credential of a client, or of the process.
    pub fn credential(&self, role: Role, client_id: u128) -> Credential {
        let ticket = Ticket {
            application: "app".into(),
            role,
            client_id,
            expires_unix_ms: u64::MAX,
            key_id: 1,
        };
        Credential::issue(&self.secret, &ticket)
    }

    /// Process `p` of application `app`, with two workers; some of its state may be in storage
    /// still.
    #[allow(dead_code)] // Not every test has a use for it.
    pub fn start(
        &self,
        incarnation: u64,
        module: &'static ModuleTable,
        restore: Option<Restore>,
    ) -> Process {
        self.start_with(incarnation, module, None, |_| restore)
    }

    /// The same, which may write objects through.
    pub fn start_with(
        &self,
        incarnation: u64,
        module: &'static ModuleTable,
        persist: Option<PersistTo>,
        restore: impl FnOnce(&BufPool) -> Option<Restore>,
    ) -> Process {
        let mut config = self.config(incarnation, module);
        config.persist = persist;
        Process::start_from(config, |pool| Ok::<_, StartError>(restore(pool))).unwrap()
    }

    /// What such a process is started with.
    pub fn config(&self, incarnation: u64, module: &'static ModuleTable) -> ProcessConfig {
        let mut registry = Registry::new();
        registry.module_add(module).unwrap();
        let settings = ProcessSettings {
            workers: 2,
            wait: WaitMode::Warm,
            persist_max_bytes: 1 << 20,
            persist_files_max: 4,
            ..ProcessSettings::default()
        };
        ProcessConfig {
            application: "app".into(),
            process: "p".into(),
            incarnation: Incarnation(incarnation),
            listen: vec![Listen::Shm { name: None }],
            authenticator: Arc::clone(&self.ring) as _,
            credential: self.credential(Role::Process, 0),
            directory: Directory::Fixed(BTreeMap::new()),
            transports: Kinds::all(),
            settings,
            registry,
            restore: None,
            persist: None,
        }
    }

    pub fn client(&self, process: &Process) -> Client {
        let resolved = Resolved {
            incarnation: process.identity().incarnation,
            addresses: process.addresses().to_vec(),
        };
        let directory = Directory::Fixed([("p".to_string(), resolved)].into());
        let mut config = ClientConfig::new(directory, self.credential(Role::Client, 0));
        config.wait = WaitMode::Warm;
        Client::new(config).unwrap()
    }
}
