//! Limits of functions, each at its edge, on real hosts.

use std::time::{Duration, Instant};

use praas_runtime::client::{CallId, CallOptions, Client};
use praas_runtime::codec;
use praas_runtime::function::FunctionLimits;
use praas_runtime::invocation::InvokeError;
use praas_tests::lab::{Lab, LabHost, PATIENCE, object_wait};
use praas_transport::TransportKind;

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

/// A process with so many workers and limits.
fn limited(lab: &Lab, workers: usize, limits: &[(&str, FunctionLimits)]) -> LabHost {
    let started = lab.start_with("p", |start| {
        start.settings.workers = workers;
        for (name, limits) in limits {
            start.settings.functions.insert((*name).into(), *limits);
        }
    });
    started.unwrap()
}

fn concurrency(max: u32) -> FunctionLimits {
    FunctionLimits {
        concurrency_max: Some(max),
        ..FunctionLimits::default()
    }
}

fn memory(max: u64) -> FunctionLimits {
    FunctionLimits {
        memory_max_bytes: Some(max),
        ..FunctionLimits::default()
    }
}

fn time(max_ms: u64) -> FunctionLimits {
    FunctionLimits {
        time_max_ms: Some(max_ms),
        ..FunctionLimits::default()
    }
}

fn submit(client: &mut Client, function: &str, input: &[u8]) -> CallId {
    let function = client.function("p", function).unwrap();
    client
        .submit(function, input, CallOptions::default())
        .unwrap()
}

fn encoded<T: serde::Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value).unwrap()
}

fn exhausted(outcome: Result<impl std::fmt::Debug, InvokeError>, word: &str) {
    match outcome {
        Err(InvokeError::Exhausted(text)) => assert!(text.contains(word), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_at_a_time_and_in_the_order_of_their_coming() {
    let lab = lab();
    let _host = limited(&lab, 4, &[]);
    std::thread::scope(|scope| {
        for kind in [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp] {
            let mut client = lab.client(kind);
            scope.spawn(move || {
                let calls: Vec<_> = (0..10)
                    .map(|_| submit(&mut client, "alone", &encoded(&3_u64)))
                    .collect();
                // Others run beside.
                assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
                for call in calls {
                    client.wait(call).unwrap();
                }
            });
        }
    });
    let mut client = lab.client(TransportKind::Shm);
    let calls: Vec<_> = (0..100_u8)
        .map(|number| submit(&mut client, "orders", &[number]))
        .collect();
    for call in calls {
        client.wait(call).unwrap();
    }
    let order = client.invoke("p", "praas.state.get", b"order").unwrap();
    assert_eq!(order, (0..100).collect::<Vec<u8>>());
}

#[test]
fn as_many_at_once_as_the_settings_say_and_no_more() {
    let lab = lab();
    let _host = limited(
        &lab,
        8,
        &[("meets", concurrency(3)), ("alone", concurrency(0))],
    );
    let mut client = lab.client(TransportKind::Shm);
    let calls: Vec<_> = (0..3)
        .map(|_| submit(&mut client, "meets", &encoded(&3_u64)))
        .collect();
    for call in calls {
        client.wait(call).unwrap();
    }
    let meets = client.function("p", "meets").unwrap();
    let four = encoded(&7_u64);
    // The last gives up first, so that no place is free for it before.
    let calls: Vec<_> = [600, 600, 600, 200]
        .into_iter()
        .map(|ms| {
            let options = CallOptions {
                deadline: Some(Instant::now() + Duration::from_millis(ms)),
                ..CallOptions::default()
            };
            client.submit(meets, &four, options).unwrap()
        })
        .collect();
    for call in calls {
        let outcome = client.wait(call).err();
        assert_eq!(outcome, Some(InvokeError::DeadlineExceeded));
    }
    // Three of four have run, and the fourth has been taken out while it waited.
    object_wait(&mut client, "p", "met");
    let met = client.invoke("p", "praas.state.get", b"met").unwrap();
    assert_eq!(met.len(), 6);
}

#[test]
fn local_invocations_never_wait_in_a_circle() {
    let lab = lab();
    let _host = limited(&lab, 4, &[]);
    let mut client = lab.client(TransportKind::Shm);
    // Whoever is inside may come in again.
    let depth: u32 = client.invoke_value("p", "nests", &20_u32).unwrap();
    assert_eq!(depth, 20);
    // Whoever holds nothing waits for its turn.
    let path = encoded(&vec![("", "orders")]);
    let calls: Vec<_> = (0..20)
        .map(|_| submit(&mut client, "relays", &path))
        .collect();
    for call in calls {
        client.wait(call).unwrap();
    }
    // Each holds what the other wants.
    let calls = [
        submit(&mut client, "left", b""),
        submit(&mut client, "right", b""),
    ];
    let failed = calls.map(|call| client.wait(call).err());
    let refused = failed
        .iter()
        .flatten()
        .all(|error| matches!(error, InvokeError::Exhausted(_)));
    assert!(refused && failed.iter().any(Option::is_some), "{failed:?}");
}

#[test]
fn what_is_past_its_time_is_answered_and_stood_in_for() {
    let lab = lab();
    let started = lab.start_with("p", |start| {
        start.settings.workers = 1;
        start.settings.workers_overdue_max = 1;
        start.settings.functions.insert("waits".into(), time(100));
        start
            .settings
            .functions
            .insert("sleeps".into(), time(60_000));
    });
    let mut host = started.unwrap();
    let mut client = lab.client(TransportKind::Shm);
    // One that waits for something ends by itself, one that is quick never hears of it.
    let late = client.invoke("p", "waits", b"");
    assert_eq!(late, Err(InvokeError::DeadlineExceeded));
    client.invoke("p", "sleeps", &encoded(&1_u64)).unwrap();
    let late = client.invoke("p", "hangs", b"");
    assert_eq!(late, Err(InvokeError::DeadlineExceeded));
    assert_eq!(host.stats().overdue, 1);
    assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
    // Nobody stands in for a second one.
    let late = client.invoke("p", "hangs", b"");
    assert_eq!(late, Err(InvokeError::DeadlineExceeded));
    let echo = client.function("p", "echo").unwrap();
    let options = CallOptions {
        deadline: Some(Instant::now() + Duration::from_millis(200)),
        ..CallOptions::default()
    };
    let waits = client.call(echo, b"on", options).err();
    assert_eq!(waits, Some(InvokeError::DeadlineExceeded));
    client
        .message_put("p", "release", b"", CallOptions::default())
        .unwrap();
    assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
    let until = Instant::now() + PATIENCE;
    while host.stats().overdue > 0 || host.stats().running > 0 {
        assert!(Instant::now() < until, "{:?}", host.stats());
    }
    assert!(host.log_text().contains("workers_overdue_max"));
    assert_eq!(host.swap_out(), Ok(1));
}

#[test]
fn who_waits_for_what_hangs_is_told() {
    let lab = lab();
    let _host = limited(&lab, 2, &[("hangs", concurrency(1))]);
    let mut client = lab.client(TransportKind::Tcp);
    let first = submit(&mut client, "hangs", b"");
    object_wait(&mut client, "p", "hanging");
    let second = submit(&mut client, "hangs", b"");
    exhausted(client.wait(second), "time_max_ms");
    assert_eq!(
        client.wait(first).err(),
        Some(InvokeError::DeadlineExceeded)
    );
    exhausted(client.invoke("p", "hangs", b""), "time_max_ms");
    client
        .message_put("p", "release", b"", CallOptions::default())
        .unwrap();
    let until = Instant::now() + PATIENCE;
    while client.invoke("p", "hangs", b"").is_err() {
        assert!(Instant::now() < until);
    }
}

#[test]
fn memory_is_refused_at_its_limit() {
    let lab = lab();
    let limits = ["echo", "stores", "drafts", "drafts_only", "looks", "takes"];
    let limits = limits.map(|name| (name, memory(1000)));
    let _host = limited(&lab, 2, &limits);
    let mut client = lab.client(TransportKind::Shm);
    // Input and output together.
    let mut echo = |len: usize| client.invoke("p", "echo", &vec![7; len]);
    assert_eq!(echo(500).unwrap().len(), 500);
    exhausted(echo(501), "memory_max_bytes");
    exhausted(echo(1001), "memory_max_bytes");
    exhausted(echo(100_000), "memory_max_bytes");
    // Growth of state, and the input of the call.
    let mut stores = |bytes: u64| client.invoke_value::<_, ()>("p", "stores", &bytes);
    stores(400).unwrap();
    exhausted(stores(1400), "memory_max_bytes");
    stores(1300).unwrap();
    stores(600).unwrap();
    // Memory of what may be state later, which is not counted twice once it is.
    let mut drafts = |name: &str, bytes: u64| client.invoke_value::<_, ()>("p", name, &bytes);
    exhausted(drafts("drafts_only", 1001), "memory_max_bytes");
    drafts("drafts_only", 900).unwrap();
    drafts("drafts", 900).unwrap();
    exhausted(drafts("drafts", 901), "memory_max_bytes");
    drafts("drafts", 90).unwrap();
    // Views that are kept, and views that are given back.
    let mut looks = |input: (u32, bool)| client.invoke_value::<_, ()>("p", "looks", &input);
    looks((1, true)).unwrap();
    looks((10, false)).unwrap();
    exhausted(looks((2, true)), "memory_max_bytes");
    // A message that is too large stays.
    for len in [1001, 10] {
        client
            .message_put("p", "k", &vec![1; len], CallOptions::default())
            .unwrap();
    }
    exhausted(client.invoke("p", "takes", b""), "memory_max_bytes");
    exhausted(client.invoke("p", "takes", b""), "memory_max_bytes");
    let mut free = lab.client(TransportKind::Tcp);
    let take = praas_runtime::process::MessageTakeInput {
        source: praas_runtime::mailbox::Source::Any,
        key: "k".into(),
    };
    let taken: Option<(String, Vec<u8>)> = free
        .invoke_value("p", praas_runtime::process::MESSAGE_TAKE, &take)
        .unwrap();
    assert_eq!(taken.unwrap().1.len(), 1001);
    let left: Option<u64> = client.invoke_value("p", "takes", &()).unwrap();
    assert_eq!(left, Some(10));
}
