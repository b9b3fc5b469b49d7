//! Waiting where it is hard: both sides on one processor.

use std::sync::mpsc;
use std::time::Instant;

use praas_transport::{Posted, WaitMode};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{Backend, Node, PATIENCE, Pair, Seen};

/// Binds the calling thread to the first processor that it may use.
fn bind() {
    let allowed = sched_getaffinity(None).expect("the processors");
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu));
    let mut one = CpuSet::new();
    one.set(first.expect("a processor"));
    sched_setaffinity(None, &one).expect("bind");
}

/// Sends, and receives what comes back or sends back what comes, so many times.
fn play(
    node: &mut Node,
    channel: praas_transport::ChannelId,
    (rounds, serves): (u64, bool),
    mode: WaitMode,
) {
    let until = Instant::now() + PATIENCE;
    let (mut sent, mut got) = (0, 0);
    while sent < rounds || got < rounds {
        assert!(
            Instant::now() < until,
            "{mode:?}: stuck after {got} messages"
        );
        let turn = match serves {
            true => sent < got,
            false => sent == got && sent < rounds,
        };
        if turn && node.endpoint.send(channel, 1, sent, &[], &[]).unwrap() == Posted::Done {
            sent += 1;
            continue;
        }
        let message = node.take(|_, seen| match seen {
            Seen::Message { tag, .. } => Some(*tag),
            _ => None,
        });
        match message {
            Some(tag) => {
                assert_eq!(tag, got);
                got += 1;
            }
            None => {
                let recorder = &mut node.recorder;
                node.endpoint.progress_wait(recorder, Some(until), mode);
            }
        }
    }
}

/// Promise 4: two that share one processor do not wait for each other's time slices, however they
/// wait; and each can say where its time went.
pub fn both_sides_on_one_processor_get_on(backend: Backend) {
    const ROUNDS: u64 = 300;
    for mode in [WaitMode::Hot, WaitMode::Warm, WaitMode::Adaptive] {
        let Pair {
            mut client,
            mut server,
            to_server,
            to_client,
        } = backend.pair();
        let (ready, begin) = mpsc::channel();
        let echo = std::thread::spawn(move || {
            bind();
            ready.send(()).expect("the other side");
            play(&mut server, to_client, (ROUNDS, true), mode);
            // Alive until the last answer has been read.
            server
        });
        let took = std::thread::spawn(move || {
            bind();
            begin.recv().expect("the other side");
            let begun = Instant::now();
            play(&mut client, to_server, (ROUNDS, false), mode);
            let took = begun.elapsed();
            let times = client.endpoint.times().read();
            let slept = times.asleep_ns > 0;
            assert!(mode != WaitMode::Warm || slept, "{times:?}");
            assert!(times.work_ns > 0, "{times:?}");
            took
        });
        let took = took.join().expect("the client");
        drop(echo.join().expect("the server"));
        let each = took.as_nanos() / u128::from(ROUNDS);
        println!("{} {mode:?}: {each} ns a round trip", backend.name());
    }
}
