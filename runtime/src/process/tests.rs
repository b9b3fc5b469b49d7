//! What is seen from within a process only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_transport::{
    Credential, Incarnation, Keyring, Kinds, Listen, Role, Secret, Ticket, WaitMode,
};

use super::*;
use crate::client::{Client, ClientConfig};
use crate::directory::Resolved;
use crate::function::Registry;

/// A process without functions of its own, and what its client number 7 is made of.
fn alone(settings: ProcessSettings) -> (Process, ClientConfig) {
    begun(settings, None)
}

/// The same, which begins with what was stored.
fn begun(settings: ProcessSettings, restore: Option<ProcessImage>) -> (Process, ClientConfig) {
    let (secret, ring) = (Secret::generate().unwrap(), Keyring::new());
    ring.insert("app", 1, secret.clone());
    let credential = |role, client_id| {
        let ticket = Ticket {
            application: "app".into(),
            role,
            client_id,
            expires_unix_ms: u64::MAX,
            key_id: 1,
        };
        Credential::issue(&secret, &ticket)
    };
    let process = Process::start(ProcessConfig {
        application: "app".into(),
        process: "p".into(),
        incarnation: Incarnation(1),
        listen: vec![Listen::Shm { name: None }],
        authenticator: Arc::new(ring),
        credential: credential(Role::Process, 0),
        directory: Directory::Fixed(BTreeMap::new()),
        transports: Kinds::all(),
        settings: ProcessSettings {
            wait: WaitMode::Warm,
            ..settings
        },
        registry: Registry::new(),
        restore,
        persist: None,
    });
    let process = process.unwrap();
    let resolved = Resolved {
        incarnation: Incarnation(1),
        addresses: process.addresses().to_vec(),
    };
    let directory = Directory::Fixed([("p".to_string(), resolved)].into());
    let mut config = ClientConfig::new(directory, credential(Role::Client, 7));
    config.wait = WaitMode::Warm;
    (process, config)
}

/// A caller that is gone for a second time has all of its time again.
#[test]
fn a_caller_that_comes_again_takes_its_timer_back() {
    let (process, config) = alone(ProcessSettings {
        caller_gone_cancel_ms: 3_600_000,
        ..ProcessSettings::default()
    });
    let timers = &process.engine.shared.timers;
    let mut last = None;
    for _ in 0..3 {
        let mut client = Client::new(config.clone()).unwrap();
        client.invoke("p", FUNCTIONS, b"").unwrap();
        assert_eq!(timers.next(), None, "it is there");
        drop(client);
        let until = Instant::now() + Duration::from_secs(20);
        while timers.next().is_none() {
            assert!(Instant::now() < until, "nobody has seen it go");
            std::thread::yield_now();
        }
        assert!(timers.next() > last);
        last = timers.next();
    }
    process.stop();
}

/// What fitted when it was swapped out, by another count or another limit.
#[test]
fn a_process_starts_with_a_state_above_its_limit() {
    let store = StateStore::new(praas_transport::BufPool::new(1 << 20), 1 << 20);
    for key in ["a", "b"] {
        store.put(key, &[7; 1000]).unwrap();
    }
    let image = ProcessImage {
        application: "app".into(),
        process: "p".into(),
        incarnation: Incarnation(0),
        kind: ImageKind::Final,
        state_version: 2,
        state: store.snapshot().unwrap(),
        mailbox: Default::default(),
        sessions: Vec::new(),
        files: Vec::new(),
    };
    let settings = ProcessSettings {
        state_max_bytes: 1000,
        ..ProcessSettings::default()
    };
    let (process, config) = begun(settings, Some(image));
    let mut client = Client::new(config).unwrap();
    assert_eq!(client.invoke("p", STATE_GET, b"a").unwrap(), [7; 1000]);
    let mut put = |key: &str, bytes: usize| {
        let (key, value) = (key.to_string(), vec![8; bytes]);
        client.invoke_value::<_, u64>("p", STATE_PUT, &StatePutInput { key, value })
    };
    put("a", 1000).unwrap();
    let refused = put("c", 1).unwrap_err();
    assert!(refused.to_string().contains("state_max_bytes"), "{refused}");
    process.stop();
}

/// Nobody may take a process that has ended for one that is frozen.
#[test]
fn a_process_that_has_ended_has_transferred_nothing() {
    let (process, _) = alone(ProcessSettings::default());
    process.stop();
    let finished = process.transfer_finish(Ok(()));
    assert!(finished.is_err(), "{finished:?}");
    let finished = process.transfer_finish(Err(TransferError::Cancelled));
    assert!(matches!(finished, Err(TransferError::Cancelled)));
}
