//! However a function ends, its callers hear of it, nobody else is disturbed, and the process's
//! name serves again once it is started anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client, Directory};
use praas_runtime::codec;
use praas_runtime::host::HostStart;
use praas_runtime::invocation::InvokeError;
use praas_tests::lab::{Lab, LabHost, PATIENCE, object_wait};
use praas_transport::TransportKind;

const KINDS: [TransportKind; 3] = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

/// The module in C, built by the compiler that the product needs anyway.
fn module_in_c(dir: &Path) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/c/crashes.c");
    let module = dir.join("libcrashes.so");
    let built = Command::new("cc")
        .args([
            "-std=c11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o",
        ])
        .arg(&module)
        .arg(source)
        .status();
    assert!(built.expect("a C compiler").success());
    module
}

/// What it is that crashes: which function, in which way, over which transport.
struct Crash {
    function: &'static str,
    input: Vec<u8>,
    kind: TransportKind,
    text: String,
}

fn crashes() -> Vec<Crash> {
    let rust = [
        "stack overflow",
        "stack overflow in a thread",
        "segmentation fault",
        "kill",
        "abort",
        "exit",
        "exit in a thread",
    ];
    let c = [
        "segmentation fault",
        "stack overflow",
        "abort",
        "exit",
        "exit at once",
        "illegal instruction",
    ];
    let rust = rust.map(|way| ("crashes", codec::encode(way).unwrap(), way));
    let c = c.map(|way| ("c.crashes", way.as_bytes().to_vec(), way));
    let all = rust.into_iter().chain(c).zip(KINDS.into_iter().cycle());
    all.map(|((function, input, way), kind)| Crash {
        function,
        input,
        kind,
        text: format!("{function}, {way}, over {kind}"),
    })
    .collect()
}

fn start(lab: &Lab, name: &str, c: &Path) -> LabHost {
    let with_c = |start: &mut HostStart| start.modules.push(c.display().to_string());
    lab.start_with(name, with_c).unwrap()
}

/// A client that finds processes again.
fn following(lab: &Lab, kind: TransportKind) -> Client {
    let mut config = lab.client_config(kind);
    config.directory = Directory::Agent(lab.directory().to_vec());
    Client::new(config).unwrap()
}

fn lost<T: std::fmt::Debug>(outcome: Result<T, InvokeError>, text: &str) {
    let lost = matches!(outcome, Err(InvokeError::OutcomeUnknown));
    assert!(lost, "{text}: {outcome:?}");
}

#[test]
fn whoever_calls_what_crashes_hears_of_it() {
    let lab = lab();
    let folder = tempfile::tempdir().unwrap();
    let c = module_in_c(folder.path());
    let _q = lab.start("q");
    let mut bystander = lab.client(TransportKind::Tcp);
    let mut client = None;
    for crash in crashes() {
        let Crash {
            function,
            input,
            kind,
            text,
        } = &crash;
        let mut p = start(&lab, "p", &c);
        let text = text.as_str();
        // The client of the round before finds the new process by itself.
        if let Some(mut client) = client.take() {
            let client: &mut Client = &mut client;
            assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on", "{text}");
        }
        let mut caller = following(&lab, *kind);
        let waits = caller.function("p", "waits").unwrap();
        let waiting = caller.submit(waits, b"", CallOptions::default()).unwrap();
        object_wait(&mut caller, "p", "waiting");
        // One that waits in another process for the same one.
        let relays = bystander.function("q", "relays").unwrap();
        let path = codec::encode(&vec![("p", "waits")]).unwrap();
        let through = bystander
            .submit(relays, &path, CallOptions::default())
            .unwrap();
        let until = Instant::now() + PATIENCE;
        while p.stats().blocked < 2 {
            bystander.progress();
            assert!(Instant::now() < until, "{text}: {:?}", p.stats());
        }
        let begun = Instant::now();
        let crashing = caller.function("p", function).unwrap();
        let outcome = caller.call(crashing, input, CallOptions::default());
        lost(outcome, text);
        lost(caller.wait(waiting), text);
        let told = bystander.wait(through);
        assert!(
            matches!(
                told,
                Err(InvokeError::Function(_) | InvokeError::OutcomeUnknown)
            ),
            "{text}: {told:?}"
        );
        assert!(begun.elapsed() < PATIENCE, "{text}");
        assert_eq!(bystander.invoke("q", "echo", b"on").unwrap(), b"on");
        p.end_wait();
        client = Some(caller);
    }
}

#[test]
fn what_nobody_waits_for_and_batches_are_told_as_well() {
    let lab = lab();
    let abort = codec::encode("abort").unwrap();
    for kind in KINDS {
        let mut p = lab.start("p");
        let mut config = lab.client_config(kind);
        config.directory = Directory::Agent(lab.directory().to_vec());
        // Less than it would take to start it again.
        config.limits.reconnect_for = Duration::from_millis(100);
        let mut client = Client::new(config).unwrap();
        let crashes = client.function("p", "crashes").unwrap();
        let waits = client.function("p", "waits").unwrap();
        // More than there are workers, so that some have not begun.
        for _ in 0..10 {
            client
                .call_one_way(waits, b"", CallOptions::default())
                .unwrap();
        }
        client
            .call_one_way(crashes, &abort, CallOptions::default())
            .unwrap();
        let inputs = vec![b""; 100];
        let echo = client.function("p", "echo").unwrap();
        let outcomes = client.call_batch(echo, &inputs, CallOptions::default());
        p.end_wait();
        assert_eq!(outcomes.len(), inputs.len());
        for outcome in outcomes {
            assert!(
                matches!(
                    outcome,
                    Ok(_) | Err(InvokeError::OutcomeUnknown | InvokeError::Unavailable { .. })
                ),
                "{kind}: {outcome:?}"
            );
        }
        let tally = client.one_way_wait(Some(Instant::now() + PATIENCE));
        assert_eq!((tally.pending, tally.begun + tally.failed), (0, 11));
        let _again = lab.start("p");
        assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
    }
}

#[test]
fn panics_of_every_kind_leave_the_process_as_it_is() {
    let lab = lab();
    let mut p = lab.start("p");
    for kind in KINDS {
        let mut client = lab.client(kind);
        let mut panicked = |way: &str| match client.invoke_value::<_, ()>("p", "crashes", way) {
            Err(InvokeError::Panicked(text) | InvokeError::Function(text)) => text,
            other => panic!("{way}: {other:?}"),
        };
        // The lock is the module's: from then on it says that it is poisoned.
        let held = panicked("panic while a lock is held");
        assert!(
            ["with the lock", "poisoned"].contains(&held.as_str()),
            "{held}"
        );
        assert_eq!(panicked("panic while a lock is held"), "poisoned");
        let thread = panicked("panic in a thread");
        assert!(thread.contains("the thread has panicked"), "{thread}");
        for _ in 0..3 {
            let bomb = panicked("panic that panics when it is dropped");
            assert_eq!(bomb, "a panic without a text");
        }
        assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
    }
    assert!(p.is_running());
    assert_eq!(p.swap_out(), Ok(1));
}
