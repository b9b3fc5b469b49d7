//! A cancel reaches what runs: from a client, by a deadline, by the end of a caller, by a swap, and
//! through calls to the same and to other processes.

use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client};
use praas_runtime::codec;
use praas_runtime::invocation::InvokeError;
use praas_tests::lab::{Lab, LabHost, object_wait};
use praas_transport::TransportKind;

const KINDS: [TransportKind; 3] = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

/// Ways from a function of `p` to one that spins, and where.
fn paths() -> [(Vec<(&'static str, &'static str)>, &'static str); 4] {
    [
        (vec![("", "spins")], "p"),
        (vec![("q", "spins")], "q"),
        (vec![("", "relays"), ("q", "spins")], "q"),
        (vec![("q", "relays"), ("", "relays"), ("p", "spins")], "p"),
    ]
}

/// Forgets that something has spun.
fn forget(client: &mut Client, process: &str) {
    for key in ["spinning", "cancelled"] {
        client
            .invoke(process, "praas.state.delete", key.as_bytes())
            .unwrap();
    }
}

#[test]
fn a_cancel_reaches_what_runs_however_far_it_is() {
    for kind in KINDS {
        let lab = lab();
        let (_p, _q) = (lab.start("p"), lab.start("q"));
        let mut client = lab.client(kind);
        let relays = client.function("p", "relays").unwrap();
        for (path, at) in paths() {
            let input = codec::encode(&path).unwrap();
            let call = client
                .submit(relays, &input, CallOptions::default())
                .unwrap();
            object_wait(&mut client, at, "spinning");
            client.cancel(call);
            assert_eq!(client.wait(call).err(), Some(InvokeError::Cancelled));
            object_wait(&mut client, at, "cancelled");
            forget(&mut client, at);
        }
    }
}

#[test]
fn a_deadline_reaches_what_runs_however_far_it_is() {
    let lab = lab();
    let (_p, _q) = (lab.start("p"), lab.start("q"));
    let mut client = lab.client(TransportKind::Shm);
    let relays = client.function("p", "relays").unwrap();
    for (path, at) in paths() {
        let options = CallOptions {
            deadline: Some(Instant::now() + Duration::from_millis(150)),
            ..CallOptions::default()
        };
        let input = codec::encode(&path).unwrap();
        let late = client.call(relays, &input, options).err();
        assert_eq!(late, Some(InvokeError::DeadlineExceeded));
        object_wait(&mut client, at, "cancelled");
        forget(&mut client, at);
    }
}

fn start_attentive(lab: &Lab, name: &str) -> LabHost {
    let started = lab.start_with(name, |start| start.settings.caller_gone_cancel_ms = 1);
    started.unwrap()
}

#[test]
fn what_a_caller_that_is_gone_has_asked_for_is_cancelled() {
    for kind in KINDS {
        let lab = lab();
        let _p = start_attentive(&lab, "p");
        let mut other = lab.client(kind);
        // A client that goes without a word.
        let mut client = lab.client(kind);
        let spins = client.function("p", "spins").unwrap();
        client.submit(spins, b"", CallOptions::default()).unwrap();
        object_wait(&mut client, "p", "spinning");
        drop(client);
        object_wait(&mut other, "p", "cancelled");
        forget(&mut other, "p");
        // A process that is killed.
        let mut q = lab.start("q");
        let mut client = lab.client(kind);
        let relays = client.function("q", "relays").unwrap();
        let input = codec::encode(&vec![("p", "spins")]).unwrap();
        let call = client
            .submit(relays, &input, CallOptions::default())
            .unwrap();
        object_wait(&mut client, "p", "spinning");
        q.kill();
        assert_eq!(client.wait(call).err(), Some(InvokeError::OutcomeUnknown));
        object_wait(&mut other, "p", "cancelled");
        q.killed_wait();
    }
}

#[test]
fn a_swap_cancels_what_does_not_end_in_time() {
    let lab = lab();
    let impatient =
        |start: &mut praas_runtime::host::HostStart| start.settings.quiesce_timeout_ms = 100;
    let _q = lab.start("q");
    let mut other = lab.client(TransportKind::Tcp);
    for (round, (path, at)) in (1..).zip(paths().into_iter().take(3)) {
        let mut p = lab
            .start_with("p", |start| {
                impatient(start);
                if round > 1 {
                    (start.life, start.swap_generation, start.swapped) = (1, round - 1, true);
                }
            })
            .unwrap();
        let mut client = lab.client(TransportKind::Shm);
        let relays = client.function("p", "relays").unwrap();
        let input = codec::encode(&path).unwrap();
        let call = client
            .submit(relays, &input, CallOptions::default())
            .unwrap();
        object_wait(&mut client, at, "spinning");
        assert_eq!(p.swap_out(), Ok(round));
        assert_eq!(client.wait(call).err(), Some(InvokeError::Cancelled));
        if at == "q" {
            object_wait(&mut other, "q", "cancelled");
            forget(&mut other, "q");
        }
    }
}
