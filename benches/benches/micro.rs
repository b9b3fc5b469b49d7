//! Micro-benchmarks: what single parts of a message's or an invocation's way take.
//!
//! `cargo bench -p praas-benches`, or with a name for one group of them: ring, codec, mailbox,
//! state, dispatch. Both sides of the ring are on one thread, so nobody waits for a processor; of
//! dispatch, the remote part waits for another thread, and its figures are only as good as the
//! machine is quiet. What is waited for is measured by `praas bench latency`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use praas_benches::hot::{ChannelPair, InvokePair};
use praas_runtime::codec;
use praas_runtime::directory::{DirectoryAnswer, Resolved};
use praas_runtime::mailbox::{MailMessage, Mailbox, MailboxLimits, Source};
use praas_runtime::state::StateStore;
use praas_transport::{Buf, BufPool, Incarnation};

/// Messages over a channel in shared memory: both sides' work for one message there and one back.
fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for bytes in [8, 64, 1024, 16 << 10] {
        let mut pair = ChannelPair::new(bytes);
        group.throughput(Throughput::Elements(2));
        group.bench_function(format!("round trip of {bytes} bytes"), |bench| {
            bench.iter(|| pair.round_trips(1));
        });
    }
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    let small = (7_u64, 9_u64);
    let answer = DirectoryAnswer::Resolved(Resolved {
        incarnation: Incarnation(7),
        addresses: vec![
            "tcp:127.0.0.1:4711".parse().expect("an address"),
            "shm:00000000000000000000000000000001/name"
                .parse()
                .expect("an address"),
        ],
    });
    let encoded = codec::encode(&small).expect("numbers have an encoding");
    group.bench_function("encode two numbers", |bench| {
        bench.iter(|| codec::encode(black_box(&small)));
    });
    group.bench_function("decode two numbers", |bench| {
        bench.iter(|| codec::decode::<(u64, u64)>(black_box(&encoded)));
    });
    let encoded = codec::encode(&answer).expect("answers have an encoding");
    group.bench_function("encode a directory's answer", |bench| {
        bench.iter(|| codec::encode(black_box(&answer)));
    });
    group.bench_function("decode a directory's answer", |bench| {
        bench.iter(|| codec::decode::<DirectoryAnswer>(black_box(&encoded)));
    });
}

fn mailbox(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mailbox");
    let message = || MailMessage {
        source: "sender".into(),
        key: "key".into(),
        payload: Buf::from_vec(vec![1; 8]),
    };
    for waiting in [0, 1000] {
        let mut mailbox = Mailbox::new(MailboxLimits {
            messages_max: 1 << 20,
            bytes_max: 1 << 30,
        });
        for number in 0..waiting {
            let other = MailMessage {
                key: format!("{number}"),
                ..message()
            };
            assert!(mailbox.put(None, other).1.is_none());
        }
        group.bench_function(format!("put and take beside {waiting}"), |bench| {
            bench.iter_batched(
                message,
                |message| {
                    let put = mailbox.put(None, message);
                    (put, mailbox.take(&Source::Any, "key"))
                },
                BatchSize::SmallInput,
            );
        });
    }
}

fn state(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("state");
    for bytes in [8, 64 << 10] {
        let store = StateStore::new(BufPool::new(1 << 30), 1 << 30);
        let value = vec![1; bytes];
        group.bench_function(format!("put {bytes} bytes"), |bench| {
            bench.iter(|| store.put("key", black_box(&value)));
        });
        group.bench_function(format!("view {bytes} bytes"), |bench| {
            bench.iter(|| store.object(black_box("key")));
        });
    }
}

/// Invocations of a function that does nothing: by a client over shared memory, and by a function
/// of the same process.
fn dispatch(criterion: &mut Criterion) {
    const LOCAL_CALLS: u64 = 1000;
    let mut group = criterion.benchmark_group("dispatch");
    let mut pair = InvokePair::new(8);
    group.bench_function("remote no-op, round trip", |bench| {
        bench.iter(|| pair.round_trips(1));
    });
    group.throughput(Throughput::Elements(LOCAL_CALLS));
    group.bench_function(format!("{LOCAL_CALLS} local no-ops"), |bench| {
        bench.iter(|| pair.local_calls(LOCAL_CALLS));
    });
}

criterion_group!(micro, ring, codec, mailbox, state, dispatch);
criterion_main!(micro);
