//! A host's life: from its first word to its end, in good order and not.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use praas_runtime::client::CallOptions;
use praas_runtime::host::{FromHost, HostReader, ToHost, host_send};
use praas_runtime::invocation::InvokeError;
use praas_runtime::process::{STATE_GET, STATE_PUT, StatePutInput};
use praas_runtime::state::OBJECT_OVERHEAD_BYTES;
use praas_tests::lab::{Lab, LabHost, object_wait};
use praas_transport::{Credential, Secret, TransportKind};
use rustix::process::Signal;

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

#[test]
fn a_host_without_modules_keeps_state() {
    let lab = lab();
    let mut host = lab.start_with("p", |start| start.modules.clear()).unwrap();
    let mut client = lab.client(TransportKind::Tcp);
    let put = StatePutInput {
        key: "k".into(),
        value: b"value".to_vec(),
    };
    let _: u64 = client.invoke_value("p", STATE_PUT, &put).unwrap();
    assert_eq!(client.invoke("p", STATE_GET, b"k").unwrap(), b"value");
    let stats = host.stats();
    assert_eq!(stats.state_bytes, 6 + OBJECT_OVERHEAD_BYTES);
    // It waits warm, and has run to get here.
    assert!(stats.asleep_ns > 0 && stats.work_ns > 0, "{stats:?}");
    let unknown = client.invoke("p", "echo", b"");
    assert_eq!(unknown, Err(InvokeError::UnknownFunction("echo".into())));
    host.say(&ToHost::Stop);
    assert_eq!(host.end_wait().code(), Some(0));
}

#[test]
fn a_host_that_is_told_nothing_ends_quietly() {
    let lab = lab();
    let mut host = lab.spawn(&lab.host_start("p"));
    host.hang_up();
    assert_eq!(host.end_wait().code(), Some(0));
    assert_eq!(host.log_text(), "");
}

#[test]
fn what_cannot_start_says_why() {
    let lab = lab();
    let failed = |change: &dyn Fn(&mut praas_runtime::host::HostStart)| {
        lab.start_with("p", |start| change(start)).unwrap_err()
    };
    let error = failed(&|start| start.modules = vec!["/none.so".into()]);
    assert!(error.contains("cannot load module /none.so"), "{error}");
    let error = failed(&|start| start.storage = "/proc/swap".into());
    assert!(error.contains("/proc/swap"), "{error}");
    let error = failed(&|start| start.settings.workers = 1 << 20);
    assert!(error.contains("workers"), "{error}");
    let error = failed(&|start| start.listen = vec!["192.0.2.1:1".parse().unwrap()]);
    assert!(error.contains("192.0.2.1:1"), "{error}");
    let error = failed(&|start| (start.life, start.swap_generation) = (0, 3));
    assert!(error.contains("generation 3 of lab/p"), "{error}");
}

#[test]
fn signals_of_a_terminal_are_not_for_hosts() {
    let lab = lab();
    let mut host = lab.start("p");
    host.signal(Signal::INT);
    host.signal(Signal::HUP);
    let mut client = lab.client(TransportKind::Shm);
    assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
    // SIGTERM is: it is the end of a job.
    client.invoke("p", "counts", b"").unwrap();
    host.signal(Signal::TERM);
    assert_eq!(host.swapped(), Ok(1));
}

#[test]
fn a_host_is_bound_to_the_processors_it_is_given() {
    let lab = lab();
    let cpu = praas_cluster::topology::cpus_allowed()[0];
    let host = lab.start_with("p", |start| start.cpus = vec![cpu]).unwrap();
    for task in std::fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = format!("Cpus_allowed_list:\t{cpu}\n");
        assert!(status.contains(&line), "{status}");
    }
}

/// Accepts the host's call, and says hello as an agent would.
fn adopt(lab: &Lab, listener: &UnixListener, host: &mut LabHost) -> FromHost {
    let (socket, _) = listener.accept().unwrap();
    let hello = HostReader::default().next(&socket).unwrap().unwrap();
    let directory = lab.directory().to_vec();
    host_send(&socket, &ToHost::Adopted { directory }).unwrap();
    host.agent_is(socket);
    hello
}

#[test]
fn a_host_outlives_its_agent_and_is_adopted_again() {
    let lab = lab();
    let mut host = lab
        .start_with("p", |start| start.agent_grace_s = 60)
        .unwrap();
    let mut client = lab.client(TransportKind::Shm);
    let waits = client.function("p", "waits").unwrap();
    let call = client.submit(waits, b"", CallOptions::default()).unwrap();
    object_wait(&mut client, "p", "waiting");
    host.hang_up();
    let listener = UnixListener::bind(lab.agent_socket()).unwrap();
    // An agent that dies before it has adopted the host.
    drop(listener.accept().unwrap());
    let FromHost::Hello(hello) = adopt(&lab, &listener, &mut host) else {
        panic!("its first word is no Hello");
    };
    assert_eq!((hello.pid, &*hello.process), (host.pid(), "p"));
    assert_eq!(hello.addresses, host.addresses);
    assert_eq!(host.stats().blocked, 1);
    // The invocation did not notice.
    client
        .message_put("p", "go", b"gone", CallOptions::default())
        .unwrap();
    assert_eq!(&*client.wait(call).unwrap(), b"gone");
    assert_eq!(host.swap_out(), Ok(1));
}

#[test]
fn a_host_that_nobody_adopts_swaps_out() {
    let lab = lab();
    let mut host = lab
        .start_with("p", |start| start.agent_grace_s = 1)
        .unwrap();
    let mut client = lab.client(TransportKind::Tcp);
    client.invoke("p", "counts", b"").unwrap();
    // Somebody who listens and says nothing is no agent.
    let listener = UnixListener::bind(lab.agent_socket()).unwrap();
    host.hang_up();
    assert_eq!(host.end_wait().code(), Some(0), "{}", host.log_text());
    drop(listener);
    let mut again = lab
        .start_with("p", |start| (start.life, start.swap_generation) = (1, 1))
        .unwrap();
    assert_eq!((again.swap_generation, &again.rejected), (1, &Vec::new()));
    let mut client = lab.client(TransportKind::Tcp);
    assert_eq!(client.invoke_value::<_, u64>("p", "counts", &()), Ok(2));
    again.say(&ToHost::Stop);
    assert_eq!(again.end_wait().code(), Some(0));
}

#[test]
fn a_swap_that_fails_leaves_the_process_as_it_was() {
    let lab = lab();
    let mut host = lab
        .start_with("p", |start| start.settings.quiesce_timeout_ms = 50)
        .unwrap();
    let mut client = lab.client(TransportKind::Shm);
    let sleeps = client.function("p", "sleeps").unwrap();
    let input = praas_runtime::codec::encode(&2_000u64).unwrap();
    let call = client.submit(sleeps, &input, CallOptions::default());
    object_wait(&mut client, "p", "sleeping");
    let error = host.swap_out().unwrap_err();
    assert!(error.contains("1 functions still run"), "{error}");
    assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
    assert_eq!(&*client.wait(call.unwrap()).unwrap(), b"");
    // SIGTERM ends it all the same, and its exit code tells.
    let call = client.submit(sleeps, &input, CallOptions::default());
    object_wait(&mut client, "p", "sleeping");
    while host.stats().running == 0 {}
    host.signal(Signal::TERM);
    assert!(host.swapped().is_err());
    assert_eq!(host.end_wait().code(), Some(3));
    assert_eq!(
        client.wait(call.unwrap()).err(),
        Some(InvokeError::OutcomeUnknown)
    );
}

#[test]
fn a_newer_secret_voids_the_tickets_of_the_older() {
    let lab = lab();
    let mut host = lab.start("p");
    let config = |kind| {
        let mut config = lab.client_config(kind);
        config.limits.reconnect_for = Duration::from_millis(100);
        config
    };
    let mut early = [TransportKind::Shm, TransportKind::Tcp]
        .map(|kind| praas_runtime::client::Client::new(config(kind)).unwrap());
    for early in &mut early {
        assert_eq!(early.invoke("p", "echo", b"early"), Ok(b"early".to_vec()));
    }
    // A secret that is known already shows nobody out.
    let known = ToHost::Keys {
        key_id: 1,
        secret: lab.secret().clone(),
    };
    host.say(&known);
    host.stats();
    for early in &mut early {
        assert_eq!(early.invoke("p", "echo", b"still"), Ok(b"still".to_vec()));
    }
    let secret = Secret::generate().unwrap();
    let keys = ToHost::Keys {
        key_id: 2,
        secret: secret.clone(),
    };
    host.say(&keys);
    // Messages are obeyed in order.
    host.stats();
    // Who is connected is shown out, and does not come in again.
    for early in &mut early {
        let mut refused = early.invoke("p", "noop", b"").unwrap_err();
        // It may have been sent before the channel's end was seen.
        if refused == InvokeError::OutcomeUnknown {
            refused = early.invoke("p", "noop", b"").unwrap_err();
        }
        let refused = refused.to_string();
        assert!(refused.contains("unknown or revoked"), "{refused}");
    }
    let mut config = config(TransportKind::Tcp);
    let mut old = praas_runtime::client::Client::new(config.clone()).unwrap();
    let refused = old.invoke("p", "noop", b"").unwrap_err().to_string();
    assert!(refused.contains("unknown or revoked"), "{refused}");
    let mut ticket = lab.ticket();
    ticket.key_id = 2;
    config.credential = Credential::issue(&secret, &ticket);
    let mut new = praas_runtime::client::Client::new(config).unwrap();
    assert_eq!(new.invoke("p", "echo", b"new"), Ok(b"new".to_vec()));
}
