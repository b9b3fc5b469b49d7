//! Swap across hosts: everything comes back, and what does not verify is named and passed over.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client, Directory};
use praas_runtime::host::{FromHost, HostStart};
use praas_runtime::invocation::InvokeError;
use praas_runtime::mailbox::Source;
use praas_runtime::process::{
    MESSAGE_TAKE, MessageTakeInput, STATE_GET, STATE_PUT, StatePutInput, StateRead,
};
use praas_tests::lab::{Lab, PATIENCE, example_path, object_wait};
use praas_transport::{Credential, TransportKind};

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

fn restoring(generation: u64) -> impl Fn(&mut HostStart) {
    move |start| {
        (start.life, start.swap_generation, start.swapped) = (1, generation, true);
    }
}

fn count(client: &mut Client) -> u64 {
    client.invoke_value("p", "counts", &()).unwrap()
}

/// A client that is always the same one to processes: its invocations have the ids of those of
/// the one before.
fn same_client(lab: &Lab, kind: TransportKind) -> Client {
    let mut config = lab.client_config(kind);
    let mut ticket = lab.ticket();
    ticket.client_id = 77;
    config.credential = Credential::issue(lab.secret(), &ticket);
    Client::new(config).unwrap()
}

#[test]
fn what_an_earlier_life_has_left_is_not_come_back_to() {
    let lab = lab();
    let mut first = lab.start("p");
    assert_eq!(count(&mut lab.client(TransportKind::Shm)), 1);
    assert_eq!(first.swap_out(), Ok(1));
    // It was stopped and created again: this life begins with incarnation 2.
    let mut second = lab.start("p");
    assert_eq!(count(&mut lab.client(TransportKind::Shm)), 1);
    second.kill();
    second.killed_wait();
    let third = lab.start_with("p", |start| start.life = 2).unwrap();
    assert_eq!((third.swap_generation, &third.rejected), (0, &Vec::new()));
    assert_eq!(count(&mut lab.client(TransportKind::Shm)), 1);
}

#[test]
fn state_messages_and_results_move_to_the_next_host() {
    for kind in [TransportKind::Shm, TransportKind::Tcp] {
        let lab = lab();
        let mut first = lab.start("p");
        let mut config = lab.client_config(kind);
        config.directory = Directory::Agent(lab.directory().to_vec());
        let mut staying = Client::new(config).unwrap();
        let before = count(&mut staying);
        // Larger than a chunk, so that it is one of several.
        let body = vec![before as u8; 600_000];
        let options = CallOptions::default();
        staying.message_put("p", "k", &body, options).unwrap();
        staying.message_put("p", "k", b"second", options).unwrap();
        let recorded = count(&mut same_client(&lab, kind));
        assert_eq!(first.swap_out(), Ok(1));

        let mut second = lab.start_with("p", restoring(1)).unwrap();
        assert_eq!((second.swap_generation, &second.rejected), (1, &Vec::new()));
        assert_ne!(second.pid(), first.pid());
        // The same invocation again: answered from what is recorded, not run.
        assert_eq!(count(&mut same_client(&lab, kind)), recorded, "{kind}");
        // A client that was there before carries on.
        assert_eq!(count(&mut staying), recorded + 1, "{kind}");
        let take = MessageTakeInput {
            source: Source::Any,
            key: "k".into(),
        };
        for expected in [&body[..], b"second"] {
            let taken: Option<(String, Vec<u8>)> =
                staying.invoke_value("p", MESSAGE_TAKE, &take).unwrap();
            assert!(taken.is_some_and(|(_, body)| body == expected), "{kind}");
        }
        let none: Option<(String, Vec<u8>)> =
            staying.invoke_value("p", MESSAGE_TAKE, &take).unwrap();
        assert!(none.is_none());
        assert_eq!(second.swap_out(), Ok(2));
    }
}

/// Clients and functions that read a process's objects by one-sided operations read on at its next
/// incarnation, after a swap and after a kill, also what is still in storage there; once there is
/// none they are told so.
#[test]
fn readers_of_state_follow_the_process_to_its_next_host() {
    for kind in [TransportKind::Shm, TransportKind::Tcp] {
        let lab = lab();
        let shows = |start: &mut HostStart| {
            start.settings.state_read = StateRead::Clients;
            start.settings.swap_lazy_min_bytes = 1;
        };
        let mut owner = lab.start_with("p", shows).unwrap();
        let reader = lab.start_with("q", |start| {
            start.modules = vec![example_path("calls").display().to_string()];
            start.settings.peers_reconnect_ms = 200;
            start.transports = kind.into();
        });
        let _reader = reader.unwrap();
        let mut config = lab.client_config(kind);
        config.directory = Directory::Agent(lab.directory().to_vec());
        config.limits.reconnect_for = Duration::from_millis(200);
        let mut client = Client::new(config).unwrap();
        let put = |client: &mut Client, key: &str, byte: u8| {
            let input = StatePutInput {
                key: key.into(),
                // More than comes with an answer.
                value: vec![byte; 100_000],
            };
            let _: u64 = client.invoke_value("p", STATE_PUT, &input).unwrap();
        };
        let read = |client: &mut Client, key: &str, expected: u8| {
            let seen = client.invoke("q", "peer", format!("p {key}").as_bytes());
            assert!(seen.unwrap() == vec![expected; 100_000], "{kind} {key}");
            let object = client.state_read("p", key, CallOptions::default());
            let object = object.unwrap().expect("it is there");
            assert!(*object.bytes == vec![expected; 100_000][..], "{kind} {key}");
        };
        put(&mut client, "kept", 1);
        put(&mut client, "changed", 1);
        read(&mut client, "kept", 1);
        read(&mut client, "changed", 1);
        assert_eq!(owner.swap_out(), Ok(1));
        for swapped in [true, false] {
            let next = lab.start_with("p", |start| {
                shows(start);
                restoring(1)(start);
                start.swapped = swapped;
            });
            owner = next.unwrap();
            for key in ["kept", "changed"] {
                read(&mut client, key, 1);
            }
            put(&mut client, "changed", 2);
            read(&mut client, "changed", 2);
            owner.kill();
            owner.killed_wait();
        }
        let gone = client.state_read("p", "kept", CallOptions::default());
        assert!(
            matches!(gone, Err(InvokeError::Unavailable { .. })),
            "{kind}: {gone:?}"
        );
        let gone = client.invoke("q", "peer", b"p kept").unwrap_err();
        assert!(gone.to_string().contains("not to be had"), "{kind}: {gone}");
    }
}

/// A host that was killed leaves memory behind, which who has read it over shared memory still has:
/// nothing there counts any more.
#[test]
fn nothing_is_read_from_a_host_that_is_dead() {
    let lab = lab();
    let shows = |start: &mut HostStart| start.settings.state_read = StateRead::Clients;
    let mut first = lab.start_with("p", shows).unwrap();
    let client = || {
        let mut config = lab.client_config(TransportKind::Shm);
        config.directory = Directory::Agent(lab.directory().to_vec());
        Client::new(config).unwrap()
    };
    let mut reader = client();
    let put = |byte: u8| {
        let input = StatePutInput {
            key: "k".into(),
            value: vec![byte; 100_000],
        };
        let _: u64 = client().invoke_value("p", STATE_PUT, &input).unwrap();
    };
    let mut read = || {
        let object = reader.state_read("p", "k", CallOptions::default()).unwrap();
        object.expect("it is there").bytes[0]
    };
    put(1);
    for _ in 0..10 {
        assert_eq!(read(), 1);
    }
    first.kill();
    first.killed_wait();
    let _second = lab.start_with("p", shows).unwrap();
    put(2);
    // The reader has done nothing meanwhile, and has not heard of it.
    assert_eq!(read(), 2);
}

/// Results are not written through: what an invocation has made durable is there, and whether it has
/// run is for whoever asks to find out.
#[test]
fn what_was_written_through_and_not_answered_is_not_run_again() {
    let lab = lab();
    let mut first = lab.start("p");
    let calls = [false, true].map(|idempotent| {
        let mut config = lab.client_config(TransportKind::Shm);
        config.directory = Directory::Agent(lab.directory().to_vec());
        let mut client = Client::new(config).unwrap();
        let function = client.function("p", "counts_through").unwrap();
        let options = CallOptions {
            idempotent,
            ..CallOptions::default()
        };
        let call = client.submit(function, b"", options).unwrap();
        object_wait(&mut client, "p", "durable");
        (client, call)
    });
    let mut client = lab.client(TransportKind::Tcp);
    let until = Instant::now() + PATIENCE;
    while client.invoke("p", STATE_GET, b"durable").unwrap() != b"!!" {
        assert!(Instant::now() < until, "one has not written through");
    }
    // The first write has taken a checkpoint, in which its object is; no result is.
    let told = first.hear();
    assert!(matches!(
        told,
        Some(FromHost::CheckpointUnasked { generation: 1, .. })
    ));
    let stats = first.stats();
    assert_eq!((stats.persisted_objects, stats.persisted_bytes), (1, 8));
    assert_eq!(stats.persist_groups, 1);
    assert!(stats.persist_ns > 0, "{stats:?}");
    assert_eq!(stats.persist_failures, 0);
    first.kill();
    first.killed_wait();
    let again = |start: &mut HostStart| {
        (start.life, start.swap_generation, start.swapped) = (1, 1, false);
    };
    let _second = lab.start_with("p", again).unwrap();
    for (mut client, call) in calls {
        assert_eq!(client.wait(call).err(), Some(InvokeError::OutcomeUnknown));
    }
    assert_eq!(count(&mut lab.client(TransportKind::Tcp)), 3);
}

/// Repeats what a client of this identity has invoked before, from its first invocation on.
fn repeated(
    lab: &Lab,
    function: &str,
    input: &[u8],
    times: usize,
) -> Vec<Result<Vec<u8>, InvokeError>> {
    let mut client = same_client(lab, TransportKind::Shm);
    let calls = (0..times).map(|_| client.invoke("p", function, input));
    calls.collect()
}

#[test]
fn what_has_been_acknowledged_is_expired_in_the_next_host_too() {
    let lab = lab();
    let mut first = lab.start("p");
    let mut client = same_client(&lab, TransportKind::Shm);
    for wanted in 1..=3 {
        assert_eq!(count(&mut client), wanted);
    }
    drop(client);
    assert_eq!(first.swap_out(), Ok(1));
    let _second = lab.start_with("p", restoring(1)).unwrap();
    let again = repeated(&lab, "counts", b"", 4);
    let expired = || Err(InvokeError::ResultExpired);
    // The third has told of the two before it, and nothing has told of the third.
    let third = praas_runtime::codec::encode(&3_u64).unwrap();
    let fourth = praas_runtime::codec::encode(&4_u64).unwrap();
    assert_eq!(again, [expired(), expired(), Ok(third), Ok(fourth)]);
}

#[test]
fn results_are_kept_up_to_their_limit_and_across_a_swap() {
    let lab = lab();
    let limit = |start: &mut HostStart| start.settings.results_max_bytes = 16 << 10;
    let mut first = lab.start_with("p", limit).unwrap();
    let input = vec![5; 8 << 10];
    let mut client = same_client(&lab, TransportKind::Shm);
    let echo = client.function("p", "echo").unwrap();
    // One after the other here, and none acknowledged, since all are under way at once.
    let calls: Vec<_> = (0..4)
        .map(|_| client.submit(echo, &input, CallOptions::default()).unwrap())
        .collect();
    for call in calls {
        assert_eq!(client.wait(call).unwrap().len(), input.len());
    }
    drop(client);
    assert_eq!(first.swap_out(), Ok(1));
    let again = |start: &mut HostStart| {
        restoring(1)(start);
        limit(start);
    };
    let _second = lab.start_with("p", again).unwrap();
    let outcomes = repeated(&lab, "echo", &input, 4);
    let expired = outcomes.iter().filter(|outcome| outcome.is_err());
    assert!(
        expired
            .clone()
            .all(|outcome| *outcome == Err(InvokeError::ResultExpired))
    );
    // Two fit, and the third drives them out.
    assert_eq!(expired.count(), 3, "{outcomes:?}");
}

#[test]
fn a_batch_goes_on_in_the_next_host() {
    for kind in [TransportKind::Shm, TransportKind::Tcp] {
        let lab = lab();
        let one = |start: &mut HostStart| start.settings.workers = 1;
        let mut first = lab.start_with("p", one).unwrap();
        let mut config = lab.client_config(kind);
        config.directory = Directory::Agent(lab.directory().to_vec());
        let mut client = Client::new(config).unwrap();
        let sleeps = client.function("p", "sleeps").unwrap();
        let ms = praas_runtime::codec::encode(&200_u64).unwrap();
        let sleeping = client.submit(sleeps, &ms, CallOptions::default()).unwrap();
        praas_tests::lab::object_wait(&mut client, "p", "sleeping");
        let outcomes = std::thread::scope(|scope| {
            let batch = scope.spawn(move || {
                let counts = client.function("p", "counts").unwrap();
                // More than are under way at a time.
                let inputs = vec![b""; 1500];
                let outcomes = client.call_batch(counts, &inputs, CallOptions::default());
                client.wait(sleeping).unwrap();
                outcomes
            });
            let generation = first.swap_out().unwrap();
            let second = lab.start_with("p", restoring(generation)).unwrap();
            let outcomes = batch.join().unwrap();
            drop(second);
            outcomes
        });
        let mut counts: Vec<u64> = outcomes
            .into_iter()
            .map(|outcome| praas_runtime::codec::decode(&outcome.unwrap()).unwrap())
            .collect();
        counts.sort_unstable();
        assert_eq!(counts, (1..=1500).collect::<Vec<u64>>(), "{kind}");
    }
}

#[test]
fn what_comes_back_counts_against_the_memory_of_buffers() {
    let lab = lab();
    let limit = |start: &mut HostStart| start.settings.transport.buffers_max_bytes = 16 << 20;
    let (small, large) = (vec![7; 6 << 20], vec![8; 12 << 20]);
    let options = CallOptions::default();
    let mut empty = lab.start_with("q", limit).unwrap();
    let mut client = lab.client(TransportKind::Shm);
    client.message_put("q", "k", &large, options).unwrap();
    assert_eq!(empty.swap_out(), Ok(1));

    let mut first = lab.start("p");
    let mut client = lab.client(TransportKind::Shm);
    client.message_put("p", "k", &small, options).unwrap();
    assert_eq!(first.swap_out(), Ok(1));
    let again = |start: &mut HostStart| {
        restoring(1)(start);
        limit(start);
    };
    let mut second = lab.start_with("p", again).unwrap();
    let mut client = lab.client(TransportKind::Shm);
    let refused = client.message_put("p", "k", &large, options);
    assert!(
        matches!(refused, Err(InvokeError::Exhausted(_))),
        "{refused:?}"
    );
    client.message_put("p", "k", b"small", options).unwrap();
    assert_eq!(second.swap_out(), Ok(2));
}

/// The files of the process's images whose names begin so, the newest last.
fn images(swap: &Path, prefix: &str) -> Vec<PathBuf> {
    let dir = swap.join("lab/p");
    let entries = std::fs::read_dir(dir).unwrap();
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(prefix)
    };
    let mut images: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(named)
        .collect();
    images.sort();
    images
}

fn newest(swap: &Path, prefix: &str) -> PathBuf {
    images(swap, prefix).pop().unwrap()
}

/// A copy of a swap directory with the one process.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(to.path().join("lab/p")).unwrap();
    for image in images(from, "") {
        let name = image.file_name().unwrap();
        std::fs::copy(&image, to.path().join("lab/p").join(name)).unwrap();
    }
    to
}

fn bit_flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

fn tear(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

/// What is done to a file, to which, and what is said of it.
type Damage = (fn(&Path), &'static str, &'static str);

#[test]
fn damage_is_named_and_the_older_generation_loads() {
    let lab = lab();
    for generation in 0..2 {
        let mut host = lab.start_with("p", restoring(generation)).unwrap();
        let mut client = lab.client(TransportKind::Shm);
        assert_eq!(count(&mut client), generation + 1);
        // Does not compress, so that every bit counts.
        let mut ballast = vec![0; 600_000];
        fastrand::Rng::with_seed(generation).fill(&mut ballast);
        let options = CallOptions::default();
        client.message_put("p", "k", &ballast, options).unwrap();
        assert_eq!(host.swap_out(), Ok(generation + 1));
    }
    let damages: [Damage; 6] = [
        (bit_flip, "pack-", "hash mismatch"),
        (tear, "pack-", "bytes, not "),
        (remove, "pack-", "missing pack pack-"),
        (bit_flip, "manifest-", "checksum mismatch"),
        (tear, "manifest-", ""),
        (remove, "manifest-", "generation 2 is missing"),
    ];
    for (damage, prefix, said) in damages {
        let swap = copy(&lab.swap_dir());
        damage(&newest(swap.path(), prefix));
        let in_swap = |start: &mut HostStart, generation| {
            restoring(generation)(start);
            start.storage = swap.path().display().to_string();
        };
        let mut host = lab.start_with("p", |start| in_swap(start, 2)).unwrap();
        assert_eq!(host.swap_generation, 1, "{prefix} {said}");
        let [rejected] = &host.rejected[..] else {
            panic!("{:?}", host.rejected);
        };
        assert!(rejected.contains(said), "{rejected}");
        let named = said.ends_with("is missing") || rejected.contains("manifest-");
        assert!(named, "{rejected}");
        assert!(host.log_text().contains("an older generation is loaded"));
        let mut client = lab.client(TransportKind::Tcp);
        assert_eq!(count(&mut client), 2, "{prefix} {said}");
        let generation = host.swap_out().unwrap();
        assert!(generation > 1);
        let again = lab.start_with("p", |start| in_swap(start, generation));
        let again = again.unwrap();
        assert_eq!(again.swap_generation, generation);
        let mut client = lab.client(TransportKind::Tcp);
        assert_eq!(count(&mut client), 3);
    }
    // One that was heard of is gone, and the one before it is damaged: both are said.
    let swap = copy(&lab.swap_dir());
    bit_flip(&newest(swap.path(), "manifest-"));
    let in_swap = |start: &mut HostStart| {
        restoring(3)(start);
        start.storage = swap.path().display().to_string();
    };
    let host = lab.start_with("p", in_swap).unwrap();
    assert_eq!(host.swap_generation, 1);
    let [damaged, missing] = &host.rejected[..] else {
        panic!("{:?}", host.rejected);
    };
    assert!(damaged.contains("checksum mismatch"), "{damaged}");
    assert_eq!(missing, "generation 3 is missing");
}

#[test]
fn a_commit_that_its_writer_died_over_is_no_damage() {
    let lab = lab();
    for generation in 0..2 {
        let mut host = lab.start_with("p", restoring(generation)).unwrap();
        assert_eq!(count(&mut lab.client(TransportKind::Shm)), generation + 1);
        assert_eq!(host.swap_out(), Ok(generation + 1));
    }
    // Nobody has heard of the second.
    tear(&newest(&lab.swap_dir(), "manifest-"));
    let host = lab.start_with("p", restoring(1)).unwrap();
    assert_eq!((host.swap_generation, &host.rejected), (1, &Vec::new()));
    assert_eq!(count(&mut lab.client(TransportKind::Shm)), 2);
}

#[test]
fn a_process_of_which_nothing_verifies_does_not_start() {
    let lab = lab();
    let mut host = lab.start("p");
    count(&mut lab.client(TransportKind::Shm));
    assert_eq!(host.swap_out(), Ok(1));
    bit_flip(&newest(&lab.swap_dir(), "manifest-"));
    let error = lab.start_with("p", restoring(1)).unwrap_err();
    assert!(
        error.contains("none of its 1 generations verifies"),
        "{error}"
    );
    assert!(error.contains("checksum mismatch"), "{error}");
}
