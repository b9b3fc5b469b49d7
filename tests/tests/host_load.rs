//! Many invocations at once against real hosts: everybody gets what is theirs, nobody waits for
//! what is not.
//!
//! `PRAAS_STORM_INVOCATIONS` says how many the storm makes over each transport; a seed that fails
//! is printed, and `PRAAS_SEED` repeats it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use praas_runtime::client::{CallId, CallOptions, Client, FunctionRef};
use praas_runtime::codec;
use praas_runtime::invocation::InvokeError;
use praas_tests::lab::{Lab, PATIENCE, object_wait};
use praas_transport::TransportKind;

const KINDS: [TransportKind; 3] = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];

/// The largest input of the storm.
const STORM_MAX_BYTES: usize = 1 << 20;
/// Invocations that one client of the storm has under way.
const STORM_INFLIGHT: usize = 64;

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

fn seed() -> u64 {
    let seed = std::env::var("PRAAS_SEED").ok();
    seed.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap())
}

fn storm_invocations() -> usize {
    let set = std::env::var("PRAAS_STORM_INVOCATIONS").ok();
    set.map_or(20_000, |count| count.parse().unwrap())
}

/// One client's part of the storm: what goes out comes back, whatever is under way beside it.
struct Storm<'a> {
    client: Client,
    echo: FunctionRef,
    random: fastrand::Rng,
    /// Random bytes; each input is some range of them.
    bytes: &'a [u8],
    sent: HashMap<CallId, std::ops::Range<usize>>,
}

impl<'a> Storm<'a> {
    fn new(mut client: Client, seed: u64, bytes: &'a [u8]) -> Self {
        let echo = client.function("p", "echo").unwrap();
        Self {
            client,
            echo,
            random: fastrand::Rng::with_seed(seed),
            bytes,
            sent: HashMap::new(),
        }
    }

    fn run(mut self, count: usize) {
        for _ in 0..count {
            if self.sent.len() == STORM_INFLIGHT {
                self.one_ends();
            }
            let range = self.range();
            let input = &self.bytes[range.clone()];
            let call = self.client.submit(self.echo, input, CallOptions::default());
            let twice = self.sent.insert(call.unwrap(), range);
            assert!(twice.is_none(), "a call's id was used twice");
        }
        while !self.sent.is_empty() {
            self.one_ends();
        }
        assert!(self.client.wait_any(Some(Instant::now())).is_none());
    }

    /// Sizes are log-uniform from zero on.
    fn range(&mut self) -> std::ops::Range<usize> {
        let exponent = self.random.f64() * ((STORM_MAX_BYTES + 1) as f64).ln();
        let len = (exponent.exp() as usize - 1).min(STORM_MAX_BYTES);
        let begin = self.random.usize(0..=self.bytes.len() - len);
        begin..begin + len
    }

    fn one_ends(&mut self) {
        let deadline = Some(Instant::now() + PATIENCE);
        let (call, outcome) = self.client.wait_any(deadline).expect("a result in time");
        let range = self.sent.remove(&call).expect("a call of this client");
        let output = outcome.unwrap();
        assert!(
            output[..] == self.bytes[range.clone()],
            "{} bytes came back for the {} of {range:?}",
            output.len(),
            range.len()
        );
    }
}

fn storm(kind: TransportKind) {
    let seed = seed();
    let count = storm_invocations();
    println!("{count} invocations over {kind}: PRAAS_SEED={seed}");
    let lab = lab();
    let host = lab.start("p");
    let mut bytes = vec![0; 4 * STORM_MAX_BYTES];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for number in 1..=2 {
            let (client, bytes) = (lab.client(kind), &bytes[..]);
            let storm = move || Storm::new(client, seed ^ number, bytes).run(count / 2);
            scope.spawn(storm);
        }
    });
    println!("{count} invocations over {kind} took {:?}", begun.elapsed());
    drop(host);
}

#[test]
fn storm_over_shm_gives_each_its_own() {
    storm(TransportKind::Shm);
}

#[test]
fn storm_over_unix_gives_each_its_own() {
    storm(TransportKind::Unix);
}

#[test]
fn storm_over_tcp_gives_each_its_own() {
    storm(TransportKind::Tcp);
}

#[test]
fn a_function_that_sleeps_holds_up_nobody() {
    let lab = lab();
    let host = lab.start("p");
    for kind in KINDS {
        let mut client = lab.client(kind);
        let sleeps = client.function("p", "sleeps").unwrap();
        let input = praas_runtime::codec::encode(&1_000u64).unwrap();
        let sleeping = client.submit(sleeps, &input, CallOptions::default());
        let sleeping = sleeping.unwrap();
        object_wait(&mut client, "p", "sleeping");
        let mut other = lab.client(kind);
        for _ in 0..100 {
            assert_eq!(client.invoke("p", "echo", b"same").unwrap(), b"same");
            assert_eq!(other.invoke("p", "echo", b"other").unwrap(), b"other");
        }
        // All of them came back before the one.
        let first = client.wait_any(Some(Instant::now()));
        assert!(first.is_none(), "{kind}: the sleeper was waited for");
        assert!(client.wait(sleeping).unwrap().is_empty());
        client
            .invoke("p", praas_runtime::process::STATE_DELETE, b"sleeping")
            .unwrap();
    }
    drop(host);
}

#[test]
fn calls_to_and_fro_from_all_workers_end() {
    for workers_blocked_max in [4, 200] {
        calls_to_and_fro(workers_blocked_max);
    }
}

fn calls_to_and_fro(workers_blocked_max: usize) {
    let lab = lab();
    let limit = |start: &mut praas_runtime::host::HostStart| {
        start.settings.workers_blocked_max = workers_blocked_max;
    };
    let mut hosts = ["a", "b"].map(|name| lab.start_with(name, limit).unwrap());
    let calls = 100;
    std::thread::scope(|scope| {
        for kind in KINDS {
            for (name, other) in [("a", "b"), ("b", "a")] {
                let mut client = lab.client(kind);
                scope.spawn(move || {
                    let there = client.function(name, "there").unwrap();
                    let input = praas_runtime::codec::encode(other).unwrap();
                    for _ in 0..calls {
                        let call = client.submit(there, &input, CallOptions::default());
                        call.unwrap();
                    }
                    let (mut good, mut exhausted) = (0, 0);
                    while good + exhausted < calls {
                        let deadline = Some(Instant::now() + PATIENCE);
                        let (_, outcome) = client.wait_any(deadline).expect("no call hangs");
                        match outcome {
                            Ok(output) => {
                                assert_eq!(output.as_ref(), 5u64.to_le_bytes());
                                good += 1;
                            }
                            Err(InvokeError::Exhausted(_)) => exhausted += 1,
                            Err(error) => panic!("{name} to {other} over {kind}: {error}"),
                        }
                    }
                    println!(
                        "{name} to {other} over {kind}: {good} results, {exhausted} exhausted"
                    );
                });
            }
        }
    });
    // Both serve on, and nobody is left waiting.
    for (host, name) in hosts.iter_mut().zip(["a", "b"]) {
        let mut client = lab.client(TransportKind::Shm);
        let other = if name == "a" { "b" } else { "a" };
        let input = praas_runtime::codec::encode(other).unwrap();
        let output = client.invoke(name, "there", &input).unwrap();
        assert_eq!(output, 5u64.to_le_bytes());
        assert_eq!(host.stats().blocked, 0);
    }
}

/// Waits for the small call, and tells whether the large one had ended before.
fn small_call(client: &mut Client, noop: FunctionRef, bulk: CallId, ended: &mut bool) -> bool {
    let call = client
        .submit(noop, b"12345678", CallOptions::default())
        .unwrap();
    loop {
        let deadline = Some(Instant::now() + PATIENCE);
        let (done, outcome) = client.wait_any(deadline).expect("a result in time");
        let output = outcome.unwrap();
        if done == bulk {
            assert_eq!(output.as_ref(), (1u64 << 30).to_le_bytes());
            *ended = true;
        }
        if done == call {
            return *ended;
        }
    }
}

#[test]
fn a_gibibyte_in_flight_does_not_delay_small_invocations() {
    let lab = lab();
    let host = lab.start("p");
    for kind in KINDS {
        let mut client = lab.client(kind);
        let noop = client.function("p", "noop").unwrap();
        let length = client.function("p", "length").unwrap();
        client
            .call(noop, b"12345678", CallOptions::default())
            .unwrap();
        let large = client.pool().alloc(1 << 30).unwrap().freeze();
        let begun = Instant::now();
        let payload = praas_runtime::invocation::Payload::Buf(large);
        let bulk = client
            .submit_payload(length, payload, CallOptions::default())
            .unwrap();
        let mut ended = false;
        let mut beside: Vec<Duration> = Vec::new();
        loop {
            let sent = Instant::now();
            if small_call(&mut client, noop, bulk, &mut ended) {
                break;
            }
            beside.push(sent.elapsed());
        }
        let total = begun.elapsed();
        beside.sort_unstable();
        let at = |part: usize| beside[(beside.len() - 1) * part / 100];
        println!(
            "1 GiB over {kind} took {total:?}; {} small ones beside it: median {:?}, p99 {:?}, \
             worst {:?}",
            beside.len(),
            at(50),
            at(99),
            at(100)
        );
        assert!(beside.len() >= 100, "{kind}: {} in {total:?}", beside.len());
        // None waited for a tenth of it, and most for next to nothing.
        assert!(at(50) < total / 100, "{kind}: {:?} of {total:?}", at(50));
        assert!(at(99) < total / 10, "{kind}: {:?} of {total:?}", at(99));
    }
    drop(host);
}

/// A message that comes in the moment in which a get gives up is handed to it, or to the next one:
/// never to both, to nobody, or behind one that came later.
#[test]
fn messages_beside_deadlines_come_once_and_in_order() {
    const GETTERS: usize = 4;
    const MESSAGES: u64 = 3000;
    let lab = lab();
    let started = lab.start_with("p", |start| start.settings.workers = GETTERS + 2);
    let _host = started.expect("p");
    let mut getters: Vec<_> = (0..GETTERS)
        .map(|_| {
            let mut client = lab.client(TransportKind::Shm);
            let gets = client.function("p", "gets_soon").unwrap();
            let call = client.submit(gets, b"", CallOptions::default()).unwrap();
            (client, call)
        })
        .collect();
    std::thread::scope(|scope| {
        for kind in [TransportKind::Shm, TransportKind::Tcp] {
            let mut client = lab.client(kind);
            scope.spawn(move || {
                for number in 0..MESSAGES {
                    let body = number.to_le_bytes();
                    let put = client.message_put("p", "k", &body, CallOptions::default());
                    put.unwrap();
                }
            });
        }
        let mut client = lab.client(TransportKind::Unix);
        scope.spawn(move || client.invoke_value::<_, ()>("p", "puts_own", &MESSAGES));
    });
    let mut client = lab.client(TransportKind::Shm);
    for _ in 0..GETTERS {
        let put = client.message_put("p", "enough", b"", CallOptions::default());
        put.unwrap();
    }
    let mut all: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (client, call) in &mut getters {
        let got = client.wait(*call).unwrap();
        let got: Vec<(String, u64)> = codec::decode(&got).unwrap();
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for (source, number) in &got {
            let before = last.insert(source, *number);
            assert!(
                before < Some(*number),
                "{source}: {number} after {before:?}"
            );
        }
        for (source, number) in got {
            all.entry(source).or_default().push(number);
        }
    }
    assert_eq!(all.len(), 3);
    for (source, mut numbers) in all {
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..MESSAGES), "{source}");
    }
}
