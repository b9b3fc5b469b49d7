//! What RDMA channels leave to their devices, and how often each is asked: counted, not timed.
//!
//! With `--nocapture` the last test prints posts, doorbells, completions, copies and system calls
//! of each operation and size.

use praas_tests::conformance::{self, Backend, Node, Pair, Seen, dial, keyring, pattern};
use praas_transport::one_sided::{Access, MemoryRegion, OneSidedError};
use praas_transport::{
    Buf, CloseReason, Posted, PostedBuf, PostedGet, Role, TransportConfig, TransportKind,
    VerbsCounters,
};

fn held(promise: &str, check: impl FnOnce(&mut Pair)) {
    let backend = Backend {
        kind: TransportKind::Verbs,
        faulty: false,
        any: false,
    };
    conformance::hold(backend, promise, |backend| check(&mut backend.pair()));
}

fn region(pair: &mut Pair, len: usize) -> MemoryRegion {
    let made = pair.server.endpoint.region_create(len, Access::ALL);
    made.expect("region")
}

/// How an operation ended, and what it read.
type Done = (Result<u64, OneSidedError>, Option<Vec<u8>>);

/// How an operation ended, if it has.
fn done(pair: &mut Pair, context: u64) -> Option<Done> {
    pair.client.take(|_, seen| match seen {
        Seen::OneSided(done) if done.context == context => {
            let data = done.data.as_ref().map(|data| data.to_vec());
            Some((done.outcome, data))
        }
        _ => None,
    })
}

/// Posts a put, and waits until it is posted.
fn put(pair: &mut Pair, region: &MemoryRegion, bytes: &[u8], context: u64) {
    let (channel, key) = (pair.to_server, region.key());
    pair.until(|pair| {
        let client = &mut pair.client.endpoint;
        let posted = client.put(channel, key, 0, bytes, context).unwrap();
        (posted == Posted::Done).then_some(())
    });
}

fn outcome(pair: &mut Pair, context: u64) -> Result<u64, OneSidedError> {
    pair.until(|pair| done(pair, context)).0
}

/// Puts until they go by the device.
fn device_wait(pair: &mut Pair, region: &MemoryRegion) {
    let before = pair.client.endpoint.verbs_counters().one_sided;
    pair.until(|pair| {
        put(pair, region, b"which way?", 0);
        assert_eq!(outcome(pair, 0), Ok(0));
        let now = pair.client.endpoint.verbs_counters().one_sided;
        (now > before).then_some(())
    });
}

/// Progress of the client alone until `done` gives something.
fn client_until<T>(pair: &mut Pair, mut done: impl FnMut(&mut Pair) -> Option<T>) -> T {
    let until = std::time::Instant::now() + conformance::PATIENCE;
    loop {
        if let Some(result) = done(pair) {
            return result;
        }
        assert!(std::time::Instant::now() < until, "hung");
        pair.client.progress();
    }
}

#[test]
fn the_targets_processor_takes_no_part_in_puts_and_gets() {
    held("puts_and_gets_go_by_the_device", |pair| {
        let region = region(pair, 4 << 20);
        device_wait(pair, &region);
        let (channel, key) = (pair.to_server, region.key());
        let client = &mut pair.client.endpoint;
        let bytes = client.pool().copy_from(&pattern(1, 4 << 20)).unwrap();
        let posted = client.put_buf(channel, key, 0, bytes, None, 1).unwrap();
        assert!(matches!(posted, PostedBuf::Pending));
        // From here on the target makes no progress.
        assert_eq!(client_until(pair, |pair| done(pair, 1)).0, Ok(0));
        let client = &mut pair.client.endpoint;
        let into = client.pool().alloc(1 << 20).unwrap();
        let posted = client.get(channel, key, 3 << 20, into, 2).unwrap();
        assert!(matches!(posted, PostedGet::Pending));
        let (outcome, data) = client_until(pair, |pair| done(pair, 2));
        assert_eq!(outcome, Ok(0));
        assert!(data.as_deref() == Some(&pattern(1, 4 << 20)[3 << 20..]));
        let mut there = vec![0; 4 << 20];
        region.read(0, &mut there).unwrap();
        assert!(there == pattern(1, 4 << 20));
    });
}

#[test]
fn a_closed_region_is_refused_by_the_device_and_the_channel_goes_on() {
    held("a_closed_region_is_refused_by_the_device", |pair| {
        let (first, second) = (region(pair, 64), region(pair, 64));
        device_wait(pair, &first);
        device_wait(pair, &second);
        // Both are told nothing of the closing before they are under way: the initiator makes no
        // progress in between.
        let (channel, key) = (pair.to_server, first.key());
        assert!(pair.server.endpoint.region_close(key));
        let client = &mut pair.client.endpoint;
        let before = client.verbs_counters().one_sided;
        for context in [1, 2] {
            let posted = client.put(channel, key, 0, b"too late", context);
            assert_eq!(posted, Ok(Posted::Done));
        }
        let posted = client.put(channel, second.key(), 0, b"in time!", 3);
        assert_eq!(posted, Ok(Posted::Done));
        assert_eq!(client.verbs_counters().one_sided, before + 3);
        assert_eq!(outcome(pair, 1), Err(OneSidedError::Key));
        assert_eq!(outcome(pair, 2), Err(OneSidedError::Key));
        // What was behind them on the lane is done again, on another.
        assert_eq!(outcome(pair, 3), Ok(0));
        let mut bytes = [0; 8];
        second.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"in time!");
        first.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"which wa");
        device_wait(pair, &second);
    });
}

#[test]
fn immediate_values_come_after_their_bytes() {
    held("immediate_values_come_after_their_bytes", |pair| {
        let region = region(pair, 64);
        device_wait(pair, &region);
        let (channel, key) = (pair.to_server, region.key());
        // The first half go with the bytes, the others are too large for that.
        let values = (0..200_u64).map(|at| at | (at / 100) << 40);
        for (context, value) in values.enumerate() {
            let context = context as u64 + 1;
            pair.until(|pair| {
                let client = &mut pair.client.endpoint;
                let bytes = value.to_le_bytes();
                let posted = client.put_immediate(channel, key, 8, &bytes, value, context);
                (posted.unwrap() == Posted::Done).then_some(())
            });
            pair.until(|pair| {
                pair.server.take(|_, seen| match seen {
                    Seen::Immediate { value: told, len } => {
                        assert_eq!((*told, *len), (value, 8));
                        assert_eq!(region.load(8), Ok(value));
                        Some(())
                    }
                    _ => None,
                })
            });
            assert_eq!(outcome(pair, context), Ok(0));
        }
        message_pass(pair, &Buf::from_vec(vec![1; 8]));
    });
}

/// What both sides did between two looks.
fn between(pair: &Pair, before: &VerbsCounters) -> VerbsCounters {
    let now = counters(pair);
    VerbsCounters {
        sends: now.sends - before.sends,
        inline_sends: now.inline_sends - before.inline_sends,
        signalled: now.signalled - before.signalled,
        one_sided: now.one_sided - before.one_sided,
        doorbells: now.doorbells - before.doorbells,
        receives: now.receives - before.receives,
        receive_posts: now.receive_posts - before.receive_posts,
        polls: now.polls - before.polls,
        completions: now.completions - before.completions,
        copies: now.copies - before.copies,
        copied_bytes: now.copied_bytes - before.copied_bytes,
        busy: now.busy - before.busy,
        registrations: now.registrations - before.registrations,
        system_calls: now.system_calls - before.system_calls,
    }
}

fn counters(pair: &Pair) -> VerbsCounters {
    let mut sum = pair.client.endpoint.verbs_counters();
    sum.add(&pair.server.endpoint.verbs_counters());
    sum
}

/// Sends one message and waits until it is there and its sender has the buffer again.
fn message_pass(pair: &mut Pair, buf: &Buf) {
    let channel = pair.to_server;
    let mut payload = Some(buf.clone());
    let mut pending = false;
    pair.until(|pair| {
        let sent = pair
            .client
            .endpoint
            .send_buf(channel, 1, 0, &[], payload.take()?, 0);
        match sent.unwrap() {
            PostedBuf::Busy(again) => {
                payload = Some(again);
                return None;
            }
            PostedBuf::Pending => pending = true,
            PostedBuf::Done(_) => {}
        }
        Some(())
    });
    pair.until(|pair| {
        pair.server.take(|_, seen| match seen {
            Seen::Message { .. } | Seen::Large { .. } => Some(()),
            _ => None,
        })
    });
    if pending {
        pair.until(|pair| {
            pair.client
                .take(|_, seen| matches!(seen, Seen::Sent { .. }).then_some(()))
        });
    }
    pair.server.recorder.seen.clear();
}

fn row(what: &str, bytes: usize, count: u64, did: &VerbsCounters) {
    let each = |value: u64| value as f64 / count as f64;
    println!(
        "{what:>8} {bytes:>8} B: posts {:.2} (inline {:.2}, signalled {:.2}), doorbells {:.2}, \
         receives {:.2} in {:.3} posts, completions {:.2}, copies {:.2} of {:.0} B, \
         registrations {:.3}, system calls {:.3}",
        each(did.sends + did.one_sided),
        each(did.inline_sends),
        each(did.signalled),
        each(did.doorbells),
        each(did.receives),
        each(did.receive_posts),
        each(did.completions),
        each(did.copies),
        each(did.copied_bytes),
        each(did.registrations),
        each(did.system_calls),
    );
}

#[test]
fn devices_are_asked_no_more_often_than_need_be() {
    const COUNT: u64 = 128;
    held("devices_are_asked_as_said", |pair| {
        for bytes in [8, 64, 1024, 8192, 65_536, 1 << 20] {
            let pool = pair.client.endpoint.pool().clone();
            let buf = pool.copy_from(&pattern(1, bytes)).unwrap();
            // The first of a size registers its memory.
            message_pass(pair, &buf);
            let before = counters(pair);
            for _ in 0..COUNT {
                message_pass(pair, &buf);
            }
            let did = between(pair, &before);
            row("message", bytes, COUNT, &did);
            assert_eq!(did.registrations, 0, "{bytes} bytes: registered again");
            let eager = pair.client.endpoint.eager_max(pair.to_server);
            if bytes <= eager {
                // Now and then a frame returns credit.
                assert!(did.sends < COUNT + COUNT / 2, "{bytes} bytes: {did:?}");
                assert_eq!(did.doorbells, did.sends);
                assert!(did.copied_bytes < COUNT * (2 * bytes as u64 + 256));
            } else {
                // Announced, read by the device in pieces, confirmed; no copy of the payload.
                let pieces = bytes.div_ceil(128 << 10) as u64;
                assert_eq!(did.one_sided, COUNT * pieces);
                assert!(did.doorbells <= did.sends + COUNT * pieces.div_ceil(2));
                assert!(did.copied_bytes < COUNT * 1024, "{bytes} bytes: {did:?}");
            }
            if bytes <= 64 {
                assert_eq!(did.inline_sends, did.sends);
                assert!(did.signalled <= did.sends / 8, "{did:?}");
            }
        }
        let region = region(pair, 1 << 20);
        device_wait(pair, &region);
        for bytes in [8, 1024, 8192] {
            let before = counters(pair);
            for _ in 0..COUNT {
                put(pair, &region, &pattern(2, bytes), 9);
                assert_eq!(outcome(pair, 9), Ok(0));
            }
            let did = between(pair, &before);
            row("put", bytes, COUNT, &did);
            assert_eq!(
                (did.one_sided, did.doorbells, did.completions),
                (COUNT, COUNT, COUNT)
            );
        }
    });
}

#[test]
fn what_was_delivered_before_a_hang_up_is_heard() {
    /// More than one round takes from a completion queue, all together.
    const CHANNELS: usize = 4;
    const MESSAGES: u64 = 60;
    let backend = Backend {
        kind: TransportKind::Verbs,
        faulty: false,
        any: false,
    };
    conformance::hold(backend, "hang-ups after many messages", |backend| {
        let config = |rounds| TransportConfig {
            // The server hears of hang-ups before it hears of messages.
            poll_interval_rounds: rounds,
            verbs_credits_min: 64,
            ..TransportConfig::default()
        };
        let mut server = Node::new(config(1), "server", 3, Some(keyring()));
        let address = server.endpoint.listen(&backend.listen()).expect("listen");
        let client = Node::new(config(16), "", 0, None);
        let mut pair = Pair::connect(client, server, std::slice::from_ref(&address));
        let mut channels = vec![pair.to_server];
        while channels.len() < CHANNELS {
            let client = &mut pair.client.endpoint;
            let dialled = client.connect(&address, dial(Role::Client));
            let channel = dialled.expect("connect");
            let is_open = |id, seen: &Seen| matches!(seen, Seen::Open(_)) && id == channel;
            pair.until(|pair| pair.client.take(|id, seen| is_open(id, seen).then_some(())));
            channels.push(channel);
        }
        for channel in channels {
            for tag in 0..MESSAGES {
                client_until(&mut pair, |pair| {
                    let client = &mut pair.client.endpoint;
                    let posted = client.send(channel, 1, tag, b"", &[b"last words"]);
                    (posted.expect("open") == Posted::Done).then_some(())
                });
            }
            pair.client.endpoint.close(channel);
            client_until(&mut pair, |pair| {
                pair.client.endpoint.info(channel).is_none().then_some(())
            });
        }
        let mut heard = 0;
        for _ in 0..CHANNELS {
            let reason = pair.until(|pair| {
                let is_message = |seen: &Seen| matches!(seen, Seen::Message { .. });
                while let Some(()) = pair.server.take(|_, seen| is_message(seen).then_some(())) {
                    heard += 1;
                }
                pair.server.take(|_, seen| match seen {
                    Seen::Close(reason) => Some(reason.clone()),
                    _ => None,
                })
            });
            assert!(matches!(reason, CloseReason::Closed), "{reason:?}");
        }
        assert_eq!(heard, CHANNELS as u64 * MESSAGES);
    });
}
