//! The K-Means example as processes of this OS process, without a cluster.

use std::sync::Arc;
use std::time::Duration;

use praas_kmeans::{Job, Progress};
use praas_runtime::client::{Client, ClientConfig, Directory};
use praas_runtime::directory::Resolved;
use praas_runtime::function::Registry;
use praas_runtime::invocation::InvokeError;
use praas_runtime::process::{Process, ProcessConfig, ProcessSettings};
use praas_transport::{
    Address, Credential, Incarnation, Keyring, Kinds, Listen, Role, Secret, Ticket, WaitMode,
};

const COORDINATOR: &str = "coordinator";
const TIMEOUT: Duration = Duration::from_secs(60);

/// An application whose processes are all here.
struct Application {
    ring: Arc<Keyring>,
    secret: Secret,
    directory: Directory,
    processes: Vec<Process>,
}

impl Application {
    fn start(names: &[String]) -> Self {
        let secret = Secret::generate().unwrap();
        let ring = Arc::new(Keyring::new());
        ring.insert("kmeans", 1, secret.clone());
        let known = names.iter().map(|name| {
            let addresses = vec![Address::Mem(place(name))];
            let incarnation = Incarnation(1);
            let resolved = Resolved {
                incarnation,
                addresses,
            };
            (name.clone(), resolved)
        });
        let mut application = Self {
            ring,
            secret,
            directory: Directory::Fixed(known.collect()),
            processes: Vec::new(),
        };
        for name in names {
            application.process_start(name);
        }
        application
    }

    fn process_start(&mut self, name: &str) {
        let mut registry = Registry::new();
        registry.module_add(praas_kmeans::module()).unwrap();
        let process = Process::start(ProcessConfig {
            application: "kmeans".into(),
            process: name.into(),
            incarnation: Incarnation(1),
            listen: vec![Listen::Mem(place(name))],
            authenticator: Arc::<Keyring>::clone(&self.ring),
            credential: self.credential(Role::Process),
            directory: self.directory.clone(),
            transports: Kinds::all(),
            settings: ProcessSettings {
                wait: WaitMode::Warm,
                workers: 1,
                ..Default::default()
            },
            registry,
            restore: None,
            persist: None,
        });
        self.processes.push(process.unwrap());
    }

    fn credential(&self, role: Role) -> Credential {
        let ticket = Ticket {
            application: "kmeans".into(),
            role,
            client_id: 0,
            expires_unix_ms: u64::MAX,
            key_id: 1,
        };
        Credential::issue(&self.secret, &ticket)
    }

    fn client(&self) -> Client {
        let credential = self.credential(Role::Client);
        let mut config = ClientConfig::new(self.directory.clone(), credential);
        config.wait = WaitMode::Warm;
        Client::new(config).unwrap()
    }
}

fn place(name: &str) -> String {
    format!("kmeans-{:?}-{name}", std::thread::current().id())
}

/// Clusters the digits.
fn cluster() -> Progress {
    let workers: Vec<String> = (0..4).map(|part| format!("worker-{part}")).collect();
    let mut names = workers.clone();
    names.push(COORDINATOR.into());
    let application = Application::start(&names);
    let mut client = application.client();
    let digits = praas_kmeans::digits().unwrap();
    let job = Job::deploy(&mut client, COORDINATOR, &workers, &digits, 10, TIMEOUT).unwrap();
    loop {
        let progress = job.iterate(&mut client).unwrap();
        if progress.changed == 0 {
            return progress;
        }
    }
}

#[test]
fn processes_find_what_one_alone_finds() {
    let found = cluster();
    let digits = praas_kmeans::digits().unwrap();
    let alone = praas_kmeans::reference(&digits, 10).unwrap();
    assert_eq!(
        (found.iterations, &found.sizes),
        (alone.iterations, &alone.sizes)
    );
    assert!((found.inertia / alone.inertia - 1.0).abs() < 1e-12);
    let again = cluster();
    assert_eq!(found.inertia.to_bits(), again.inertia.to_bits());
}

#[test]
fn a_worker_without_its_points_says_so() {
    let names = ["worker".to_string()];
    let application = Application::start(&names);
    let mut client = application.client();
    let refused = client.invoke_value::<_, ()>("worker", "assign", COORDINATOR);
    let text = "worker has no partition".into();
    assert_eq!(refused, Err(InvokeError::Function(text)));
}
