//! One-way invocations against real hosts: nobody waits for them, and none is lost or run twice.

use std::time::Instant;

use praas_runtime::client::{CallOptions, Client, Directory};
use praas_runtime::invocation::InvokeError;
use praas_tests::lab::{Lab, LabHost, PATIENCE, object_wait};
use praas_transport::TransportKind;

const KINDS: [TransportKind; 3] = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

fn deadline() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

/// A client that finds processes again after a swap.
fn following(lab: &Lab, kind: TransportKind) -> Client {
    let mut config = lab.client_config(kind);
    config.directory = Directory::Agent(lab.directory().to_vec());
    Client::new(config).unwrap()
}

/// How often `counts` has run.
fn counted(client: &mut Client, process: &str) -> u64 {
    match client.invoke(process, "praas.state.get", b"count") {
        Ok(bytes) => u64::from_le_bytes(bytes.try_into().unwrap()),
        Err(InvokeError::Function(_)) => 0,
        Err(error) => panic!("{error}"),
    }
}

fn counted_wait(client: &mut Client, process: &str, wanted: u64) {
    let until = Instant::now() + PATIENCE;
    while counted(client, process) != wanted {
        assert!(
            Instant::now() < until,
            "{} of {wanted}",
            counted(client, process)
        );
    }
}

fn failed_wait(host: &mut LabHost, wanted: u64) {
    let until = Instant::now() + PATIENCE;
    while host.stats().one_way_failed != wanted {
        assert!(Instant::now() < until, "{:?}", host.stats());
    }
}

#[test]
fn one_way_invocations_run_once_and_failures_are_counted() {
    for kind in KINDS {
        let lab = lab();
        let mut host = lab.start("p");
        let mut client = lab.client(kind);
        for _ in 0..2000 {
            client.invoke_one_way("p", "counts", b"").unwrap();
        }
        let tally = client.one_way_wait(deadline());
        assert_eq!((tally.begun, tally.failed, tally.pending), (2000, 0, 0));
        counted_wait(&mut client, "p", 2000);
        // What fails after it has begun is the process's to tell.
        client.invoke_one_way("p", "panics", b"123").unwrap();
        client.invoke_one_way("p", "nope", b"").unwrap();
        let tally = client.one_way_wait(deadline());
        assert_eq!((tally.begun, tally.failed), (2001, 1));
        let unknown = InvokeError::UnknownFunction("nope".into());
        assert_eq!(tally.error, Some(unknown), "{kind}");
        failed_wait(&mut host, 1);
        assert_eq!(host.stats().one_way, 2001);
        let log = host.log_text();
        assert!(log.contains("3 bytes are too many"), "{log}");
    }
}

#[test]
fn what_has_not_begun_moves_to_the_next_host() {
    for kind in KINDS {
        let lab = lab();
        let one = |start: &mut praas_runtime::host::HostStart| start.settings.workers = 1;
        let mut first = lab.start_with("p", one).unwrap();
        let mut client = following(&lab, kind);
        let sleeps = client.function("p", "sleeps").unwrap();
        let ms = praas_runtime::codec::encode(&300_u64).unwrap();
        let sleeping = client.submit(sleeps, &ms, CallOptions::default()).unwrap();
        object_wait(&mut client, "p", "sleeping");
        // These wait behind it, and are turned away.
        for _ in 0..50 {
            client.invoke_one_way("p", "counts", b"").unwrap();
        }
        client.progress();
        let generation = first.swap_out().unwrap();
        let _second = lab.start_with("p", |start| {
            (start.life, start.swap_generation, start.swapped) = (1, generation, true);
        });
        let tally = client.one_way_wait(deadline());
        assert_eq!((tally.begun, tally.failed), (50, 0), "{kind}: {tally:?}");
        counted_wait(&mut client, "p", 50);
        client.wait(sleeping).unwrap();
    }
}

#[test]
fn functions_ask_their_own_process_and_others() {
    let lab = lab();
    let mut p = lab.start("p");
    let mut q = lab.start("q");
    let mut client = lab.client(TransportKind::Shm);
    // More than are under way at a time.
    let () = client
        .invoke_value("p", "posts", &("q", "counts", 3000_u32))
        .unwrap();
    counted_wait(&mut client, "q", 3000);
    let () = client
        .invoke_value("p", "posts", &("", "counts", 100_u32))
        .unwrap();
    counted_wait(&mut client, "p", 100);
    let unknown = client.invoke_value::<_, ()>("p", "posts", &("", "nope", 1_u32));
    assert!(
        matches!(unknown, Err(InvokeError::Function(_))),
        "{unknown:?}"
    );
    // Who is not there is told to nobody but the log and the count.
    let () = client
        .invoke_value("p", "posts", &("nobody", "counts", 2_u32))
        .unwrap();
    failed_wait(&mut p, 2);
    assert_eq!(q.stats().one_way_failed, 0);
    // What the process has asked of itself is done before it is swapped out.
    let () = client
        .invoke_value("p", "posts", &("", "counts", 500_u32))
        .unwrap();
    let generation = p.swap_out().unwrap();
    let again = lab.start_with("p", |start| {
        (start.life, start.swap_generation, start.swapped) = (1, generation, true);
    });
    let mut client = lab.client(TransportKind::Shm);
    assert_eq!(counted(&mut client, "p"), 600);
    drop(again);
}

/// As many as may be are under way to one process, and wait there: calls of others go past.
#[test]
fn a_process_that_has_no_room_holds_up_no_other() {
    let lab = lab();
    let mut p = lab.start("p");
    let _q = lab.start("q");
    let one = |start: &mut praas_runtime::host::HostStart| start.settings.workers = 1;
    let mut slow = lab.start_with("slow", one).unwrap();
    let mut client = lab.client(TransportKind::Shm);
    let spins = client.function("slow", "spins").unwrap();
    let spinning = client.submit(spins, b"", CallOptions::default()).unwrap();
    let until = Instant::now() + PATIENCE;
    while slow.stats().running == 0 {
        assert!(Instant::now() < until, "{:?}", slow.stats());
        client.progress();
    }
    let posts = client.function("p", "posts").unwrap();
    let wanted = |process: &str, times: u32| {
        praas_runtime::codec::encode(&(process, "counts", times)).unwrap()
    };
    let many = wanted("slow", 3000);
    let posting = client.submit(posts, &many, CallOptions::default()).unwrap();
    while p.stats().blocked == 0 {
        assert!(Instant::now() < until, "{:?}", p.stats());
        client.progress();
    }
    let options = CallOptions {
        deadline: deadline(),
        ..CallOptions::default()
    };
    let to_others = client.call(posts, &wanted("q", 100), options);
    assert!(to_others.is_ok(), "{to_others:?}");
    counted_wait(&mut client, "q", 100);
    client.cancel(spinning);
    client.wait(posting).unwrap();
    counted_wait(&mut client, "slow", 3000);
}

#[test]
fn a_client_that_closes_waits_for_what_it_asked_for() {
    let lab = lab();
    let _host = lab.start("p");
    for (kind, wanted) in KINDS.into_iter().zip([300, 600, 900]) {
        let mut client = lab.client(kind);
        for _ in 0..300 {
            client.invoke_one_way("p", "counts", b"").unwrap();
        }
        client.close(PATIENCE);
        counted_wait(&mut lab.client(kind), "p", wanted);
    }
}
