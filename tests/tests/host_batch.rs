//! Batches against real hosts: outcomes in the order of the inputs, each its own.

use std::time::{Duration, Instant};

use praas_runtime::client::{AsyncClient, CallOptions};
use praas_runtime::codec;
use praas_runtime::invocation::InvokeError;
use praas_tests::lab::{Lab, object_wait};
use praas_transport::{Buf, TransportKind};

const KINDS: [TransportKind; 3] = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

/// Inputs of all sizes, more than are under way at a time, each unlike the others.
fn inputs() -> Vec<Vec<u8>> {
    let lens = (0..2500_usize).map(|at| match at % 50 {
        49 => 100_000,
        small => small * 7,
    });
    let inputs = lens.enumerate().map(|(at, len)| {
        let mut input = (at as u64).to_le_bytes().to_vec();
        input.resize(len.max(8), at as u8);
        input
    });
    inputs.collect()
}

#[test]
fn outcomes_come_in_the_order_of_the_inputs() {
    let lab = lab();
    let _host = lab.start("p");
    let inputs = inputs();
    for kind in KINDS {
        let mut client = lab.client(kind);
        // Something else is under way meanwhile.
        let echo = client.function("p", "echo").unwrap();
        let beside = client
            .submit(echo, b"beside", CallOptions::default())
            .unwrap();
        let outcomes = client.invoke_batch("p", "echo", &inputs).unwrap();
        assert_eq!(outcomes.len(), inputs.len());
        for (outcome, input) in outcomes.into_iter().zip(&inputs) {
            assert!(*outcome.unwrap() == **input, "{kind}");
        }
        assert_eq!(*client.wait(beside).unwrap(), *b"beside");
        let none: &[&[u8]] = &[];
        assert!(client.invoke_batch("p", "echo", none).unwrap().is_empty());
    }
}

#[test]
fn every_input_has_an_outcome_of_its_own() {
    for kind in KINDS {
        let lab = lab();
        let _host = lab.start("p");
        let mut client = lab.client(kind);
        let inputs = ["one", "two", "panic in a thread", "three"];
        let inputs = inputs.map(|way| codec::encode(way).unwrap());
        let mut outcomes = client.invoke_batch("p", "crashes", &inputs).unwrap();
        assert!(matches!(
            outcomes.remove(2),
            Err(InvokeError::Panicked(text)) if text.contains("thread")
        ));
        let failed = |text: &str| Some(InvokeError::Function(text.into()));
        let errors: Vec<_> = outcomes.into_iter().map(Result::err).collect();
        assert_eq!(errors, ["one", "two", "three"].map(failed));
        // The deadline is each one's: what has ended before it has its output.
        let mut options = CallOptions::default();
        let waits = client.function("p", "waits").unwrap();
        client
            .message_put("p", "go", b"gone", CallOptions::default())
            .unwrap();
        options.deadline = Some(Instant::now() + Duration::from_millis(300));
        let outcomes = client.call_batch(waits, &[b""; 3], options);
        let ended = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!((ended, outcomes.len()), (1, 3));
        let late = outcomes.into_iter().filter_map(Result::err);
        assert!(late.eq([InvokeError::DeadlineExceeded, InvokeError::DeadlineExceeded]));
    }
}

#[test]
fn functions_give_batches_to_their_own_process_and_to_others() {
    let lab = lab();
    let mut p = lab.start("p");
    // One more than what spins, for questions.
    let four = lab.start_with("q", |start| start.settings.workers = 4);
    let _q = four.unwrap();
    let mut client = lab.client(TransportKind::Shm);
    let mut gathers = |process: &str, times: u32| -> u64 {
        let input = (process, times);
        client.invoke_value("p", "gathers", &input).unwrap()
    };
    assert_eq!(gathers("q", 3000), 3000 * 3001 / 2);
    assert_eq!(gathers("", 100), 100 * 101 / 2);
    assert_eq!(gathers("q", 0), 0);
    let unknown = client.invoke_value::<_, u64>("p", "gathers", &("nobody", 3_u32));
    assert!(
        matches!(unknown, Err(InvokeError::Function(_))),
        "{unknown:?}"
    );
    // A cancel reaches all that is under way.
    let spins = client.function("p", "waits_for_all").unwrap();
    let call = client.submit(spins, b"", CallOptions::default()).unwrap();
    object_wait(&mut client, "q", "spinning");
    client.cancel(call);
    object_wait(&mut client, "q", "cancelled");
    assert_eq!(p.stats().one_way, 0);
}

#[test]
fn an_async_client_has_batches_too() {
    let lab = lab();
    let _host = lab.start("p");
    let inputs = inputs();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let client = AsyncClient::new(lab.client_config(TransportKind::Tcp)).unwrap();
    runtime.block_on(async {
        let bufs = inputs.iter().map(|input| Buf::from_vec(input.clone()));
        let options = CallOptions::default();
        let outcomes = client.invoke_batch("p", "echo", bufs, options).await;
        for (outcome, input) in outcomes.into_iter().zip(&inputs) {
            assert!(*outcome.unwrap() == **input);
        }
        let begun = client.invoke_one_way("p", "counts", Buf::default(), options);
        begun.await.unwrap();
        let unknown = client.invoke_one_way("p", "nope", Buf::default(), options);
        let unknown = unknown.await;
        assert_eq!(unknown, Err(InvokeError::UnknownFunction("nope".into())));
    });
}
