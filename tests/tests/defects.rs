//! What systems of this kind got wrong before: a test for each that nothing else holds us to.
//! docs/api-table.md has the list.

use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client, Directory};
use praas_runtime::host::ToHost;
use praas_runtime::invocation::InvokeError;
use praas_runtime::world::{Member, MemberState, World};
use praas_tests::lab::{Lab, LabHost, PATIENCE, example_path, object_wait};
use praas_transport::{Incarnation, TransportKind};

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

/// A process with the functions of `tests/examples/calls.rs`.
fn start(lab: &Lab, process: &str) -> LabHost {
    let started = lab.start_with(process, |start| {
        start.modules = vec![example_path("calls").display().to_string()];
    });
    started.unwrap_or_else(|error| panic!("{process}: {error}"))
}

/// A client that finds processes as they are started.
fn client(lab: &Lab) -> Client {
    let mut config = lab.client_config(TransportKind::Shm);
    config.directory = Directory::Agent(lab.directory().to_vec());
    Client::new(config).expect("a client")
}

fn within(time: Duration) -> CallOptions {
    CallOptions {
        deadline: Some(Instant::now() + time),
        ..CallOptions::default()
    }
}

#[test]
fn every_message_under_a_key_is_kept_in_order() {
    let lab = lab();
    let (_p, _q) = (start(&lab, "p"), start(&lab, "q"));
    let mut client = client(&lab);
    for number in 0..100 {
        let put = format!("p k {number}");
        client.invoke("q", "put", put.as_bytes()).unwrap();
    }
    for number in 0..100 {
        let got = client.invoke("p", "take", b"k").unwrap();
        assert_eq!(got, format!("q: {number}").into_bytes());
    }
}

#[test]
fn a_message_to_nobody_is_an_error_and_blocks_nobody() {
    let lab = lab();
    let started = lab.start_with("p", |start| {
        start.modules = vec![example_path("calls").display().to_string()];
        start.settings.peers_reconnect_ms = 200;
    });
    let (_p, mut q) = (started.expect("p"), start(&lab, "q"));
    let mut client = client(&lab);
    let unknown = client.invoke("p", "put", b"nobody k hello").unwrap_err();
    assert!(
        unknown.to_string().contains("'nobody' is not to be had"),
        "{unknown}"
    );
    client.invoke("p", "put", b"q k hello").unwrap();
    q.kill();
    q.killed_wait();
    // The directory says still where it was. That nobody is there is heard, and not waited for.
    let put = client.function("p", "put").unwrap();
    let dead = client.call(put, b"q k hello", within(PATIENCE));
    let told = dead.map(|_| ()).unwrap_err();
    assert!(
        matches!(&told, InvokeError::Function(text) if text.contains("'q' is not to be had")),
        "{told:?}"
    );
    // Whoever waits for what never comes waits until its deadline, and no longer.
    let take = client.function("p", "take").unwrap();
    let never = client.call(take, b"k", within(Duration::from_millis(50)));
    assert_eq!(never.map(|_| ()), Err(InvokeError::DeadlineExceeded));
    assert!(client.invoke("p", "who", b"").is_ok());
}

#[test]
fn newcomers_and_those_before_them_reach_each_other() {
    let lab = lab();
    let mut hosts = vec![start(&lab, "p0")];
    let mut client = client(&lab);
    for number in 1..4 {
        let new = format!("p{number}");
        hosts.push(start(&lab, &new));
        for old in (0..number).map(|old| format!("p{old}")) {
            for (from, to) in [(&new, &old), (&old, &new)] {
                let put = format!("{to} k hello");
                client.invoke(from, "put", put.as_bytes()).unwrap();
                let got = client.invoke(to, "take", b"k").unwrap();
                assert_eq!(got, format!("{from}: hello").into_bytes());
                let ask = format!("{to} who");
                let who = client.invoke(from, "ask", ask.as_bytes()).unwrap();
                assert!(who.starts_with(format!("lab {to} who").as_bytes()));
            }
        }
    }
}

#[test]
fn each_client_gets_its_own_results() {
    let lab = lab();
    let _p = start(&lab, "p");
    let mut clients: Vec<_> = (0..4).map(|_| client(&lab)).collect();
    // All wait at once, the last begun first.
    let waiting: Vec<_> = clients
        .iter_mut()
        .enumerate()
        .map(|(number, client)| {
            let take = client.function("p", "take").unwrap();
            let key = format!("k{number}");
            client
                .submit(take, key.as_bytes(), CallOptions::default())
                .unwrap()
        })
        .collect();
    let mut other = client(&lab);
    for number in (0..4).rev() {
        let (key, body) = (format!("k{number}"), format!("for {number}"));
        let options = CallOptions::default();
        other
            .message_put("p", &key, body.as_bytes(), options)
            .unwrap();
    }
    for (number, (client, call)) in clients.iter_mut().zip(waiting).enumerate() {
        let got = client.wait(call).unwrap();
        assert!(
            got.ends_with(format!(": for {number}").as_bytes()),
            "{number}"
        );
    }
}

#[test]
fn world_updates_are_no_answers() {
    let lab = lab();
    let (p, _q) = (start(&lab, "p"), start(&lab, "q"));
    let mut client = client(&lab);
    let ask = client.function("p", "ask").unwrap();
    let take = client.function("p", "take").unwrap();
    let taking = client.submit(take, b"k", CallOptions::default()).unwrap();
    for generation in 1..200 {
        let members = (0..generation % 7).map(|number| Member {
            name: format!("m{number}"),
            incarnation: Incarnation(generation),
            state: MemberState::Ready,
            addresses: Vec::new(),
        });
        let members = members.collect();
        p.say(&ToHost::World(World {
            generation,
            members,
        }));
        let answer = client.call(ask, b"q who", CallOptions::default()).unwrap();
        assert_eq!(&*answer, b"lab q who 2 until then");
    }
    // They have come, too, all of them.
    let last = b"199 m0/199:ready m1/199:ready m2/199:ready";
    let until = Instant::now() + PATIENCE;
    while client.invoke("p", "world", b"").unwrap() != last {
        assert!(Instant::now() < until, "the last world has not come");
    }
    client
        .message_put("p", "k", b"a message", CallOptions::default())
        .unwrap();
    assert!(client.wait(taking).unwrap().ends_with(b": a message"));
}

#[test]
fn names_may_have_255_bytes() {
    let lab = lab();
    let long = |start: &str| format!("{start}{}", "ü".repeat((255 - start.len()) / 2));
    let (p, q) = (long("p"), long("q"));
    let _hosts = (start(&lab, &p), start(&lab, &q));
    let mut client = client(&lab);
    let key = long("k");
    let put = format!("{q} {key} hello");
    client.invoke(&p, "put", put.as_bytes()).unwrap();
    let got = client.invoke(&q, "take", key.as_bytes()).unwrap();
    assert_eq!(got, format!("{p}: hello").into_bytes());
    // They differ in the last byte only, and are two.
    for (number, last) in ["x", "y"].iter().enumerate() {
        let put = praas_runtime::process::StatePutInput {
            key: format!("{}{last}", "s".repeat(254)),
            value: vec![number as u8],
        };
        let _: u64 = client.invoke_value(&p, "praas.state.put", &put).unwrap();
    }
    for (number, last) in ["x", "y"].iter().enumerate() {
        let key = format!("{}{last}", "s".repeat(254));
        object_wait(&mut client, &p, &key);
        let value = client
            .invoke(&p, "praas.state.get", key.as_bytes())
            .unwrap();
        assert_eq!(value, [number as u8]);
    }
}
