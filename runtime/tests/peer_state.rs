//! Reads of peers' state objects by one-sided operations, over every transport of this machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_runtime::client::{AsyncClient, CallOptions, Client, ClientConfig, Directory};
use praas_runtime::directory::Resolved;
use praas_runtime::function::Registry;
use praas_runtime::invocation::InvokeError;
use praas_runtime::prelude::*;
use praas_runtime::process::{Process, ProcessConfig, ProcessSettings, StateRead};
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use praas_transport::{
    Credential, Incarnation, Keyring, Kinds, Listen, Role, Secret, Ticket, UnixPlace, WaitMode,
};

/// Writes an object of `size` bytes, all of them `byte`.
#[praas_runtime::function]
fn fill(context: &Context, (key, size, byte): (String, u64, u8)) -> Result<u64, FunctionError> {
    Ok(context.state_put(&key, &vec![byte; size as usize])?)
}

#[praas_runtime::function]
fn append(context: &Context, (key, byte): (String, u8)) -> Result<u64, FunctionError> {
    Ok(context.state_append(&key, &[byte])?)
}

#[praas_runtime::function]
fn swap(context: &Context, (key, byte): (String, u8)) -> Result<(), FunctionError> {
    let version = context.state_view(&key)?.map_or(0, |view| view.version());
    context
        .state_compare_swap(&key, version, &[byte])?
        .map_err(|_| FunctionError::new("nobody else writes"))?;
    Ok(())
}

#[praas_runtime::function]
fn delete(context: &Context, key: String) -> Result<bool, FunctionError> {
    Ok(context.state_delete(&key)?)
}

/// Reads an object of process `p`: its version, its length and its first byte.
#[praas_runtime::function]
fn look(context: &Context, key: String) -> Result<Option<(u64, u64, u8)>, FunctionError> {
    let view = context.peer_state_within("p", &key, Duration::from_secs(20))?;
    Ok(view.map(|view| {
        let first = view.first().copied().unwrap_or(0);
        assert!(*view == vec![first; view.len()][..]);
        (view.version(), view.len() as u64, first)
    }))
}

praas_runtime::module!(static "peers", [fill, append, swap, delete, look]);

/// Two processes and what makes clients of them.
struct Pair {
    owner: Process,
    reader: Process,
    clients: ClientConfig,
}

fn start(
    name: &str,
    listen: &Listen,
    settings: ProcessSettings,
    known: &BTreeMap<String, Resolved>,
    secret: &Secret,
) -> Process {
    let ring = Keyring::new();
    ring.insert("app", 1, secret.clone());
    let mut registry = Registry::new();
    registry.module_add(module()).unwrap();
    let listen = match listen {
        Listen::Mem(at) => Listen::Mem(format!("{at}-{name}")),
        other => other.clone(),
    };
    Process::start(ProcessConfig {
        application: "app".into(),
        process: name.into(),
        incarnation: Incarnation(1),
        listen: vec![listen],
        authenticator: Arc::new(ring),
        credential: credential(secret, Role::Process),
        directory: Directory::Fixed(known.clone()),
        transports: Kinds::all(),
        settings,
        registry,
        restore: None,
        persist: None,
    })
    .unwrap()
}

fn credential(secret: &Secret, role: Role) -> Credential {
    let ticket = Ticket {
        application: "app".into(),
        role,
        client_id: 0,
        expires_unix_ms: u64::MAX,
        key_id: 1,
    };
    Credential::issue(secret, &ticket)
}

fn pair(listen: &Listen, change: impl FnOnce(&mut ProcessSettings)) -> Pair {
    let secret = Secret::generate().unwrap();
    let usual = ProcessSettings {
        wait: WaitMode::Warm,
        workers: 2,
        ..Default::default()
    };
    let mut settings = usual.clone();
    change(&mut settings);
    let place = |process: &Process| Resolved {
        incarnation: Incarnation(1),
        addresses: process.addresses().to_vec(),
    };
    let owner = start("p", listen, settings, &BTreeMap::new(), &secret);
    let mut known = BTreeMap::from([("p".to_string(), place(&owner))]);
    let reader = start("q", listen, usual, &known, &secret);
    known.insert("q".into(), place(&reader));
    let ticket = credential(&secret, Role::Client);
    let mut clients = ClientConfig::new(Directory::Fixed(known), ticket);
    clients.wait = WaitMode::Warm;
    Pair {
        owner,
        reader,
        clients,
    }
}

fn over_all(body: impl Fn(&str, &Listen)) {
    let here = std::thread::current().id();
    for (name, listen) in [
        ("mem", Listen::Mem(format!("peer-state-{here:?}"))),
        ("shm", Listen::Shm { name: None }),
        ("unix", Listen::Unix(UnixPlace::Abstract(None))),
        ("tcp", Listen::Tcp("127.0.0.1:0".parse().unwrap())),
    ] {
        body(name, &listen);
    }
}

fn soon() -> CallOptions {
    CallOptions {
        deadline: Some(Instant::now() + Duration::from_secs(30)),
        idempotent: false,
    }
}

fn clients_too(settings: &mut ProcessSettings) {
    settings.state_read = StateRead::Clients;
}

#[test]
fn objects_of_any_size_are_read_and_nobody_is_asked_twice() {
    over_all(|name, listen| {
        let pair = pair(listen, clients_too);
        let mut client = Client::new(pair.clients.clone()).unwrap();
        let sizes = [0_u64, 8, 1024, 1025, 20_000, 50_000, 3_000_000, 20_000_000];
        for (size, sizes) in sizes.into_iter().zip(1..) {
            let key = format!("of {size}");
            let version: u64 = client
                .invoke_value("p", "fill", &(&key, size, size as u8 | 1))
                .unwrap();
            let located = pair.owner.state_shown().located;
            for _ in 0..10 {
                let object = client.state_read("p", &key, soon()).unwrap().unwrap();
                assert_eq!(object.version, version, "{name} {size}");
                assert_eq!(object.bytes.len() as u64, size, "{name}");
                assert!(*object.bytes == vec![size as u8 | 1; size as usize][..]);
            }
            let look: Option<(u64, u64, u8)> = client.invoke_value("q", "look", &key).unwrap();
            let first = if size == 0 { 0 } else { size as u8 | 1 };
            assert_eq!(look, Some((version, size, first)), "{name}");
            // Where one-sided operations are messages, too, a read is a single question.
            let (asked, shown) = match listen {
                Listen::Unix(..) | Listen::Tcp(..) => (located + 11, 0),
                _ => (located + 2, sizes),
            };
            assert_eq!(pair.owner.state_shown().located, asked, "{name}");
            assert_eq!(pair.owner.state_shown().objects, shown, "{name}");
        }
        pair.reader.stop();
        pair.owner.stop();
    });
}

#[test]
fn whoever_reads_after_a_change_sees_it() {
    over_all(|name, listen| {
        let pair = pair(listen, clients_too);
        let mut client = Client::new(pair.clients.clone()).unwrap();
        let read = |client: &mut Client, key: &str| {
            let object = client.state_read("p", key, soon()).unwrap();
            object.map(|object| object.bytes.to_vec())
        };
        assert_eq!(read(&mut client, "k"), None, "{name}");
        for round in 0..20 {
            for size in [1_u64, 5000, 2_000_000] {
                let _: u64 = client
                    .invoke_value("p", "fill", &("k", size, round))
                    .unwrap();
                assert_eq!(read(&mut client, "k").unwrap(), vec![round; size as usize]);
                assert_eq!(read(&mut client, "k").unwrap().len() as u64, size);
            }
            let _: u64 = client.invoke_value("p", "append", &("k", 9_u8)).unwrap();
            let appended = read(&mut client, "k").unwrap();
            assert_eq!((appended.len(), appended.last()), (2_000_001, Some(&9)));
            let () = client.invoke_value("p", "swap", &("k", 7_u8)).unwrap();
            assert_eq!(read(&mut client, "k"), Some(vec![7]));
            assert!(client.invoke_value::<_, bool>("p", "delete", "k").unwrap());
            assert_eq!(read(&mut client, "k"), None, "{name}");
        }
        // What was replaced is let go of, once its owner has had a turn.
        client.invoke("p", "praas.functions", b"").unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while pair.owner.state_shown().retired_bytes > 0 {
            assert!(Instant::now() < until);
            client.invoke("p", "praas.functions", b"").unwrap();
        }
    });
}

#[test]
fn only_those_who_may_read() {
    over_all(|name, listen| {
        let pair = pair(listen, |settings| settings.state_shown_max = 2);
        let mut client = Client::new(pair.clients.clone()).unwrap();
        for key in ["a", "b", "c", "d"] {
            let _: u64 = client
                .invoke_value("p", "fill", &(key, 2000_u64, 1_u8))
                .unwrap();
        }
        let refused = client.state_read("p", "a", soon());
        assert!(matches!(refused, Err(InvokeError::Forbidden(_))), "{name}");
        // More objects than can be shown at a time: each makes way, none is missed.
        for _ in 0..5 {
            for key in ["a", "b", "c", "d"] {
                let seen: Option<(u64, u64, u8)> = client.invoke_value("q", "look", key).unwrap();
                assert_eq!(seen.map(|(_, bytes, _)| bytes), Some(2000));
                assert!(pair.owner.state_shown().objects <= 2);
            }
        }
        let bad = client.state_read("p", &"k".repeat(256), soon());
        assert!(matches!(bad, Err(InvokeError::Malformed(_))));
    });
    let nobody = pair(&Listen::Shm { name: None }, |settings| {
        settings.state_read = StateRead::None;
    });
    let mut client = Client::new(nobody.clients.clone()).unwrap();
    let seen = client.invoke_value::<_, Option<(u64, u64, u8)>>("q", "look", "a");
    assert!(matches!(seen, Err(InvokeError::Function(text)) if text.contains("state_read")));
}

#[test]
fn without_places_objects_are_sent() {
    over_all(|name, listen| {
        let pair = pair(listen, |settings| {
            clients_too(settings);
            settings.state_shown_max = 0;
        });
        let mut client = Client::new(pair.clients.clone()).unwrap();
        for size in [10_u64, 2000, 4_000_000] {
            let _: u64 = client
                .invoke_value("p", "fill", &("k", size, 3_u8))
                .unwrap();
            let object = client.state_read("p", "k", soon()).unwrap().unwrap();
            assert!(*object.bytes == vec![3; size as usize][..], "{name}");
            assert_eq!(object.bytes.len() as u64, size, "{name}");
        }
        assert_eq!(pair.owner.state_shown().objects, 0);
    });
}

/// Every value that is read was the object's at a moment within the read.
#[test]
fn readers_beside_a_writer_see_what_was_current() {
    over_all(|name, listen| {
        let pair = pair(listen, clients_too);
        let mut writer = Client::new(pair.clients.clone()).unwrap();
        let begun = AtomicU64::new(0);
        let done = AtomicU64::new(0);
        let over = AtomicBool::new(false);
        let write = |writer: &mut Client, round: u64, size: u64| {
            begun.store(round, Ordering::SeqCst);
            let _: u64 = writer
                .invoke_value("p", "fill", &("k", size, round as u8))
                .unwrap();
            done.store(round, Ordering::SeqCst);
        };
        write(&mut writer, 1, 100);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut client = Client::new(pair.clients.clone()).unwrap();
                    let mut seen = 0;
                    while !over.load(Ordering::SeqCst) {
                        let least = done.load(Ordering::SeqCst);
                        let object = client.state_read("p", "k", soon()).unwrap().unwrap();
                        let most = begun.load(Ordering::SeqCst);
                        let byte = object.bytes[0];
                        assert!(
                            *object.bytes == vec![byte; object.bytes.len()][..],
                            "{name}"
                        );
                        let current = (least..=most).any(|round| round as u8 == byte);
                        assert!(current, "{name}: {byte} is none of {least}..={most}");
                        assert!(object.version >= seen, "{name}");
                        seen = object.version;
                    }
                });
            }
            let mut random = fastrand::Rng::with_seed(7);
            for round in 2..400 {
                let size = [8, 1000, 3000, 70_000, 300_000][random.usize(0..5)];
                write(&mut writer, round, size);
            }
            over.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn a_reader_whose_peer_is_gone_is_told() {
    over_all(|name, listen| {
        let mut pair = pair(listen, clients_too);
        pair.clients.limits.reconnect_for = Duration::from_millis(100);
        let mut client = Client::new(pair.clients.clone()).unwrap();
        let _: u64 = client
            .invoke_value("p", "fill", &("k", 3000_u64, 5_u8))
            .unwrap();
        assert!(client.state_read("p", "k", soon()).unwrap().is_some());
        pair.owner.stop();
        drop(pair.owner);
        let error = client.state_read("p", "k", soon()).unwrap_err();
        let told = matches!(error, InvokeError::Unavailable { .. });
        assert!(told, "{name}: {error}");
    });
}

#[test]
fn tasks_read_too() {
    let pair = pair(&Listen::Shm { name: None }, clients_too);
    let mut client = Client::new(pair.clients.clone()).unwrap();
    let version: u64 = client
        .invoke_value("p", "fill", &("k", 9_u64, 5_u8))
        .unwrap();
    let tasks = AsyncClient::new(pair.clients.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        for _ in 0..3 {
            let object = tasks.state_read("p", "k", soon()).await.unwrap().unwrap();
            assert_eq!((&*object.bytes, object.version), (&[5; 9][..], version));
            assert!(
                tasks
                    .state_read("p", "none", soon())
                    .await
                    .unwrap()
                    .is_none()
            );
        }
    });
}
