//! However many invocations and messages a process has had, the next ones take as long, and it holds
//! no more memory: `PRAAS_FLAT_CALLS` of each (ten million in the chaos lane).

use std::time::Instant;

use praas_runtime::client::{CallOptions, Client};
use praas_runtime::codec;
use praas_runtime::mailbox::Source;
use praas_runtime::process::{MESSAGE_TAKE, MessageTakeInput};
use praas_tests::lab::Lab;
use praas_transport::TransportKind;

/// Calls of each kind in a block: so many have a line of their own.
const BLOCK: u64 = 1_000_000;
/// Calls under way.
const WINDOW: usize = 128;
/// Bytes that client and process may grow by after the first block, each: so many at most, and fewer
/// the fewer calls there are, lest some that each call leaves be too few to be seen.
const GROWTH_MAX_BYTES: u64 = 8 << 20;
const GROWTH_FIRST_BYTES: u64 = 1 << 20;
const GROWTH_CALL_BYTES: u64 = 64;
/// How much longer a call may take in the last blocks than in the first ones, in tenths, where blocks
/// are so long that this says something.
const SLOWER_MAX_TENTHS: u64 = 15;

fn calls() -> u64 {
    let asked = std::env::var("PRAAS_FLAT_CALLS");
    asked.map_or(12_000, |text| {
        text.parse().expect("PRAAS_FLAT_CALLS is a number")
    })
}

/// Bytes of memory that an OS process has resident.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("a process");
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("its pages") * rustix::param::page_size() as u64
}

/// So many of one kind, some of them under way at once; nanoseconds for each.
fn block(client: &mut Client, count: u64, mut begin: impl FnMut(&mut Client, u64)) -> u64 {
    let begun = Instant::now();
    let mut under_way = 0;
    for number in 0..count {
        begin(client, number);
        under_way += 1;
        if under_way == WINDOW {
            let (_, outcome) = client.wait_any(None).expect("calls are under way");
            outcome.expect("nothing goes wrong");
            under_way -= 1;
        }
    }
    while let Some((_, outcome)) = client.wait_any(None) {
        outcome.expect("nothing goes wrong");
    }
    begun.elapsed().as_nanos() as u64 / count.max(1)
}

fn median(times: &[u64]) -> u64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn time_and_memory_are_flat() {
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    let mut host = lab.start("p");
    let mut client = lab.client(TransportKind::Shm);
    let options = CallOptions::default();
    let noop = client.function("p", "noop").unwrap();
    let echo = client.function("p", "echo").unwrap();
    let take = client.function("p", MESSAGE_TAKE).unwrap();
    let taking = MessageTakeInput {
        source: Source::Any,
        key: "k".into(),
    };
    let taking = codec::encode(&taking).unwrap();
    let (body, pids) = ([5_u8; 100], [host.pid(), std::process::id()]);
    let blocks = calls().div_ceil(BLOCK).max(4);
    let count = calls() / blocks;
    let mut first: Option<[u64; 2]> = None;
    let mut times = Vec::new();
    println!("  calls      noop ns  echo ns  put ns  take ns  process bytes  client bytes");
    for number in 1..=blocks {
        let invoked = block(&mut client, count / 2, |client, _| {
            client.submit(noop, b"", options).map(drop).unwrap();
        });
        let echoed = block(&mut client, count - count / 2, |client, number| {
            let len = (number % 100) as usize;
            client
                .submit(echo, &body[..len], options)
                .map(drop)
                .unwrap();
        });
        // The mailbox never holds many.
        let (mut put, mut taken) = (0, 0);
        let parts = count.div_ceil(10_000);
        for _ in 0..parts {
            put += block(&mut client, count / parts, |client, _| {
                let put = client.message_submit("p", "k", &body, options);
                put.map(drop).unwrap();
            });
            taken += block(&mut client, count / parts, |client, _| {
                client.submit(take, &taking, options).map(drop).unwrap();
            });
        }
        times.push(invoked + echoed + (put + taken) / parts);
        let now = pids.map(resident);
        println!(
            "{:>9} {invoked:>10} {echoed:>8} {:>7} {:>8} {:>14} {:>13}",
            number * count,
            put / parts,
            taken / parts,
            now[0],
            now[1]
        );
        let first = first.get_or_insert(now);
        let grown = GROWTH_FIRST_BYTES + (number - 1) * count * GROWTH_CALL_BYTES;
        let grown = grown.min(GROWTH_MAX_BYTES);
        for (first, now) in first.iter().zip(now) {
            assert!(
                now <= first + grown,
                "after {} calls {now} bytes are resident, {first} after the first block",
                number * count
            );
        }
    }
    let (early, late) = (median(&times[..3]), median(&times[times.len() - 3..]));
    println!("  a call of each kind took {early} ns in the first blocks, {late} ns in the last");
    if count >= BLOCK {
        assert!(
            late * 10 <= early * SLOWER_MAX_TENTHS,
            "{early} ns became {late} ns: {times:?}"
        );
    }
    assert_eq!(host.stats().messages, 0);
    assert_eq!(host.swap_out(), Ok(1));
}
