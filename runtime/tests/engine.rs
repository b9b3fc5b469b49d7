//! Invocations of a process in this OS process, over every transport.

use praas_runtime::client::*;
use praas_runtime::directory::*;
use praas_runtime::function::*;
use praas_runtime::invocation::*;
use praas_runtime::process::*;
use praas_transport::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::*;

fn start(listen: Listen, settings: ProcessSettings) -> (Process, ClientConfig) {
    let secret = Secret::generate().unwrap();
    let ring = Keyring::new();
    ring.insert("app", 1, secret.clone());
    let ticket = |role| Ticket {
        application: "app".into(),
        role,
        client_id: 0,
        expires_unix_ms: u64::MAX,
        key_id: 1,
    };
    let mut registry = Registry::new();
    registry.add("noop", 1, |_, _, _| (Status::Ok, Payload::default()));
    registry.add("usual", 0, |_, _, _| (Status::Ok, Payload::default()));
    registry.add("echo", 0, |s, _, i| {
        (Status::Ok, Payload::copy_from(i, s.pool()).unwrap())
    });
    registry.add("sleep", 0, |_, _, i| {
        std::thread::sleep(Duration::from_millis(i[0] as u64));
        (Status::Ok, Payload::default())
    });
    let process = Process::start(ProcessConfig {
        application: "app".into(),
        process: "p".into(),
        incarnation: Incarnation(1),
        listen: vec![listen],
        authenticator: Arc::new(ring),
        credential: Credential::issue(&secret, &ticket(Role::Process)),
        directory: Directory::Fixed(BTreeMap::new()),
        force: None,
        settings,
        registry,
        restore: None,
    })
    .unwrap();
    let r = Resolved {
        incarnation: Incarnation(1),
        addresses: process.addresses().to_vec(),
    };
    let config = ClientConfig::new(
        Directory::Fixed([("p".to_string(), r)].into()),
        Credential::issue(&secret, &ticket(Role::Client)),
    );
    (process, config)
}
#[test]
fn ping() {
    for (name, listen) in [
        ("mem", Listen::Mem("x".into())),
        ("shm", Listen::Shm { name: None }),
        ("tcp", Listen::Tcp("127.0.0.1:0".parse().unwrap())),
    ] {
        for wait in [WaitMode::Hot, WaitMode::Warm] {
            let (process, mut config) = start(
                listen.clone(),
                ProcessSettings {
                    wait,
                    workers: 2,
                    ..Default::default()
                },
            );
            config.wait = wait;
            let mut client = Client::new(config).unwrap();
            for f in ["noop", "usual"] {
                let noop = client.function("p", f).unwrap();
                for _ in 0..1000 {
                    client
                        .call(noop, b"12345678", CallOptions::default())
                        .unwrap();
                }
                let n = 20000;
                let t = Instant::now();
                for _ in 0..n {
                    client
                        .call(noop, b"12345678", CallOptions::default())
                        .unwrap();
                }
                println!("{name} {wait:?} {f} {:?}", t.elapsed() / n);
            }
            for size in [0, 1, 100, 1000, 20000, 100000, 5_000_000] {
                let b = vec![size as u8; size];
                assert_eq!(client.invoke("p", "echo", &b).unwrap(), b);
            }
            assert_eq!(
                client.invoke("p", "nope", b""),
                Err(InvokeError::UnknownFunction("nope".into()))
            );
            let slow = client.function("p", "sleep").unwrap();
            let a = client.submit(slow, &[100], CallOptions::default()).unwrap();
            let t = Instant::now();
            client.invoke("p", "usual", b"").unwrap();
            println!("beside a sleeper: {:?}", t.elapsed());
            client.wait(a).unwrap();
            process.stop();
            println!("{:?}", process.stats());
        }
    }
}
