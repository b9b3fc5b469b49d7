//! Promise 2: one-sided operations.

use praas_transport::{
    Access, Buf, ChannelId, MemoryRegion, OneSidedDone, OneSidedError, Posted, PostedBuf,
    PostedGet, RemoteKey, SendError,
};

use super::{Backend, Pair, Seen, pattern};

type Outcome = Result<u64, OneSidedError>;

/// Promise 2: put, get, put-with-immediate, fetch-add and compare-and-swap work on registered
/// regions, of any size, and tell when they are done.
pub fn one_sided_operations_work(backend: Backend) {
    let mut pair = backend.pair();
    let region = region(&mut pair, 64);
    let key = region.key();
    assert_eq!(put(&mut pair, key, 8, b"abcdefgh", 1), Ok(0));
    assert_eq!(fetch_add(&mut pair, key, 0, 5, 2), Ok(0));
    assert_eq!(compare_swap(&mut pair, key, (5, 9), 3), Ok(5));
    assert_eq!(compare_swap(&mut pair, key, (5, 1), 4), Ok(9));
    assert_eq!(region.load(0), Ok(9));
    let done = get(&mut pair, key, 0, 16, 5);
    assert_eq!(done.outcome, Ok(0));
    assert_eq!(
        &**done.data.as_ref().unwrap(),
        b"\x09\0\0\0\0\0\0\0abcdefgh"
    );
    // What the owner writes, peers read; and words are changed by both.
    region.write(40, b"owner").unwrap();
    let done = get(&mut pair, key, 40, 5, 6);
    assert_eq!(&**done.data.as_ref().unwrap(), b"owner");
    assert_eq!(region.fetch_add(0, 1), Ok(9));
    assert_eq!(fetch_add(&mut pair, key, 0, u64::MAX, 7), Ok(10));
    assert_eq!(region.load(0), Ok(9));

    put_immediate_is_told(&mut pair, key);
    // Nothing at all, at the end.
    assert_eq!(put(&mut pair, key, 64, b"", 8), Ok(0));
    assert_eq!(get(&mut pair, key, 64, 0, 9).outcome, Ok(0));
    shared_buffers_are_read(&mut pair);
}

/// Promise 2: puts and gets of any size move every byte to its place, several at once, with
/// messages among them.
pub fn large_one_sided_operations_are_whole(backend: Backend) {
    const LEN: usize = 3_000_001;
    let mut pair = backend.pair();
    let region = region(&mut pair, LEN + 100);
    let (key, channel) = (region.key(), pair.to_server);
    let parts: Vec<(u64, usize)> = vec![(50, 1_000_000), (1_000_050, 70_001), (1_070_051, 300)];
    let mut puts: Vec<(u64, Buf)> = parts
        .iter()
        .map(|(at, len)| (*at, Buf::from_vec(pattern(*at, *len))))
        .collect();
    pair.until(|pair| {
        let (at, buf) = puts.pop()?;
        let posted = pair
            .client
            .endpoint
            .put_buf(channel, key, at, buf, Some(at), at)
            .unwrap();
        if let PostedBuf::Busy(buf) = posted {
            puts.push((at, buf));
        }
        puts.is_empty().then_some(())
    });
    for (at, len) in &parts {
        let done = completion(&mut pair, *at);
        assert_eq!(done.outcome, Ok(0));
        assert!(
            *done.buf.expect("a put gives its buffer back") == *pattern(*at, *len),
            "the buffer that came back is another"
        );
        let told = |_, seen: &Seen| match seen {
            Seen::Immediate { value, len } if value == at => Some(*len),
            _ => None,
        };
        assert_eq!(pair.until(|pair| pair.server.take(told)), *len as u64);
        let mut bytes = vec![0; *len];
        region.read(*at as usize, &mut bytes).unwrap();
        assert!(
            bytes == pattern(*at, *len),
            "{len} bytes put at {at} are damaged"
        );
    }
    let done = get(&mut pair, key, 50, 1_000_000, 7);
    assert_eq!(done.outcome, Ok(0));
    assert!(**done.data.as_ref().unwrap() == *pattern(50, 1_000_000));
    // Beside a large message the other way and back.
    let mut buf = Some(Buf::from_vec(pattern(9, LEN)));
    let to_client = pair.to_client;
    pair.until(|pair| {
        let server = &mut pair.server.endpoint;
        match server
            .send_buf(to_client, 1, 2, &[], buf.take()?, 3)
            .unwrap()
        {
            PostedBuf::Busy(again) => buf = Some(again),
            PostedBuf::Done(_) | PostedBuf::Pending => return Some(()),
        }
        None
    });
    let done = get(&mut pair, key, 1_000_050, 70_001, 8);
    assert!(**done.data.as_ref().unwrap() == *pattern(1_000_050, 70_001));
    pair.until(|pair| {
        pair.client.take(|_, seen| match seen {
            Seen::Large { payload, .. } => {
                assert!(**payload == *pattern(9, LEN), "the message is damaged");
                Some(())
            }
            _ => None,
        })
    });
}

/// Promise 2: a wrong key, a range outside, a forbidden or misaligned access fail at the
/// initiator, harm nobody, and the channel goes on; so does a key that was closed.
pub fn one_sided_operations_fail_safely(backend: Backend) {
    let mut pair = backend.pair();
    let region = region(&mut pair, 64);
    let key = region.key();
    let server = &mut pair.server.endpoint;
    let guarded = server.region_create(64, Access::READ).unwrap();
    let write_only = Access {
        write: true,
        ..Access::default()
    };
    let blind = server.region_create(64, write_only).unwrap();
    guarded.write(0, &[7; 64]).unwrap();
    let range = |offset, len| {
        Err(OneSidedError::Range {
            offset,
            len,
            region: 64,
        })
    };
    assert_eq!(put(&mut pair, key, 60, b"abcdefgh", 1), range(60, 8));
    assert_eq!(put(&mut pair, key, u64::MAX, b"x", 2), range(u64::MAX, 1));
    assert_eq!(fetch_add(&mut pair, key, 64, 1, 3), range(64, 8));
    assert_eq!(
        fetch_add(&mut pair, key, 4, 1, 4),
        Err(OneSidedError::Misaligned(4))
    );
    let forbidden = Err(OneSidedError::Forbidden);
    assert_eq!(put(&mut pair, guarded.key(), 0, b"x", 5), forbidden);
    assert_eq!(fetch_add(&mut pair, guarded.key(), 0, 1, 6), forbidden);
    assert_eq!(get(&mut pair, blind.key(), 0, 8, 7).outcome, forbidden);
    let wrong = RemoteKey(key.0 ^ 1);
    assert_eq!(put(&mut pair, wrong, 0, b"x", 8), Err(OneSidedError::Key));
    // Large ones fail likewise, and the buffers come back.
    let large = get(&mut pair, key, 0, 500_000, 9);
    assert_eq!(large.outcome, range(0, 500_000));
    assert_eq!(large.data.map(|data| data.len()), Some(500_000));
    let done = put_large(
        &mut pair,
        guarded.key(),
        Buf::from_vec(vec![1; 500_000]),
        10,
    );
    assert_eq!(done.outcome, forbidden);
    assert_eq!(done.buf.map(|buf| buf.len()), Some(500_000));
    let mut bytes = [0; 64];
    guarded.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 64]);

    assert!(pair.server.endpoint.region_close(key));
    assert!(!pair.server.endpoint.region_close(key));
    assert_eq!(fetch_add(&mut pair, key, 0, 1, 11), Err(OneSidedError::Key));
    assert_eq!(put(&mut pair, key, 0, b"x", 12), Err(OneSidedError::Key));
    assert_eq!(region.load(0), Ok(0));
    assert_eq!(get(&mut pair, guarded.key(), 0, 8, 13).outcome, Ok(0));
    let limit = pair.client.endpoint.eager_max(pair.to_server) as u64;
    let big = vec![0; limit as usize + 1];
    let channel = pair.to_server;
    let error = pair
        .client
        .endpoint
        .put(channel, guarded.key(), 0, &big, 14)
        .unwrap_err();
    let len = limit + 1;
    assert_eq!(error, SendError::TooLarge { len, limit });
}

/// Promise 2: atomics of both sides and of the owner add up; a flush completes after what was
/// posted before it, and nothing that follows a fence begins before what precedes it is complete.
pub fn one_sided_operations_keep_their_order(backend: Backend) {
    const EACH: u64 = 500;
    let mut pair = backend.pair();
    let region = region(&mut pair, 16);
    let (key, channel) = (region.key(), pair.to_server);
    let (mut posted, mut done, mut seen) = (0, 0, vec![false; EACH as usize]);
    let mut flushed = false;
    pair.until(|pair| {
        if posted < EACH {
            let client = &mut pair.client.endpoint;
            if client.fetch_add(channel, key, 8, 1, posted).unwrap() == Posted::Done {
                posted += 1;
                region.fetch_add(8, 1).unwrap();
                if posted == EACH {
                    client.flush(channel, EACH).unwrap();
                }
            }
        }
        while let Some(one) = take_done(pair) {
            if one.context == EACH {
                assert_eq!(
                    (done, posted),
                    (EACH, EACH),
                    "the flush overtook an operation"
                );
                flushed = true;
                continue;
            }
            assert!(one.outcome.is_ok());
            let was = std::mem::replace(&mut seen[one.context as usize], true);
            assert!(!was, "operation {} completed twice", one.context);
            done += 1;
        }
        flushed.then_some(())
    });
    assert_eq!(region.load(8), Ok(2 * EACH));
    // Each put is overwritten by the next, which only the fence orders.
    for round in 0..50_u64 {
        let put = |pair: &mut Pair, value: u64, context: u64| {
            pair.until(|pair| {
                let bytes = value.to_le_bytes();
                let client = &mut pair.client.endpoint;
                let posted = client.put(channel, key, 0, &bytes, context).unwrap();
                (posted == Posted::Done).then_some(())
            });
        };
        put(&mut pair, 2 * round, 1);
        pair.client.endpoint.fence(channel).unwrap();
        put(&mut pair, 2 * round + 1, 2);
        assert_eq!(completion(&mut pair, 1).outcome, Ok(0));
        assert_eq!(completion(&mut pair, 2).outcome, Ok(0));
        assert_eq!(region.load(0), Ok(2 * round + 1));
    }
    // With nothing in flight a flush is complete at once.
    pair.client.endpoint.flush(channel, 3).unwrap();
    assert_eq!(completion(&mut pair, 3).outcome, Ok(0));
}

/// Promise 5: operations in flight complete, with an error if the peer is gone.
pub fn one_sided_operations_end_with_the_channel(backend: Backend) {
    let mut pair = backend.pair();
    let region = region(&mut pair, 2 << 20);
    let (key, channel) = (region.key(), pair.to_server);
    // The peer makes no progress, so what it must do itself stays in flight.
    let client = &mut pair.client.endpoint;
    let into = client.pool().alloc(2 << 20).unwrap();
    let mut expected = 0;
    let got = client.get(channel, key, 0, into, 0).unwrap();
    expected += u64::from(matches!(got, PostedGet::Pending));
    let buf = Buf::from_vec(vec![1; 1 << 20]);
    let put = client.put_buf(channel, key, 0, buf, None, 1).unwrap();
    expected += u64::from(matches!(put, PostedBuf::Pending));
    for context in 2..40 {
        let posted = client.fetch_add(channel, key, 0, 1, context).unwrap();
        expected += u64::from(posted == Posted::Done);
    }
    client.flush(channel, 100).unwrap();
    expected += 1;
    let Pair {
        mut client, server, ..
    } = pair;
    drop(server);
    let until = std::time::Instant::now() + super::PATIENCE;
    let (mut done, mut closed) = (0, false);
    while !closed || done < expected {
        assert!(
            std::time::Instant::now() < until,
            "{done} of {expected} completed"
        );
        client.progress();
        while let Some((_, seen)) = client.recorder.seen.pop_front() {
            match seen {
                Seen::OneSided(one) => {
                    assert!(matches!(one.outcome, Ok(_) | Err(OneSidedError::Closed)));
                    assert!(one.context != 1 || one.buf.is_some(), "a buffer was lost");
                    done += 1;
                }
                Seen::Close(_) => closed = true,
                _ => {}
            }
        }
    }
    assert_eq!(done, expected);
    let after = client.endpoint.fetch_add(channel, key, 0, 1, 7);
    assert_eq!(after, Err(SendError::NotOpen));
}

/// Promise 2: as many operations as the setting allows are in flight, then it is `Busy`, and the
/// rest follow when there is room.
pub fn one_sided_operations_push_back(backend: Backend) {
    let mut config = backend.config(1);
    config.ops_inflight_max = 3;
    let mut pair = backend.pair_with(config, backend.config(2));
    let region = region(&mut pair, 8);
    let (key, channel) = (region.key(), pair.to_server);
    let (mut posted, mut done) = (0, 0);
    pair.until(|pair| {
        let before = posted;
        while posted < 200 {
            let client = &mut pair.client.endpoint;
            match client.fetch_add(channel, key, 0, 1, posted).unwrap() {
                Posted::Done => posted += 1,
                Posted::Busy => break,
            }
        }
        assert!(posted - before <= 3, "nothing completes without progress");
        while let Some(one) = take_done(pair) {
            assert!(one.outcome.is_ok());
            done += 1;
        }
        (done == 200).then_some(())
    });
    assert_eq!(region.load(0), Ok(200));
}

fn region(pair: &mut Pair, len: usize) -> MemoryRegion {
    pair.server
        .endpoint
        .region_create(len, Access::ALL)
        .unwrap()
}

fn put_immediate_is_told(pair: &mut Pair, key: RemoteKey) {
    let channel = pair.to_server;
    pair.until(|pair| {
        let client = &mut pair.client.endpoint;
        let posted = client.put_immediate(channel, key, 16, b"12345678", 99, 11);
        (posted.unwrap() == Posted::Done).then_some(())
    });
    pair.until(|pair| {
        pair.server.take(|_, seen| match seen {
            Seen::Immediate { value: 99, len: 8 } => Some(()),
            _ => None,
        })
    });
    assert_eq!(completion(pair, 11).outcome, Ok(0));
    let done = get(pair, key, 16, 8, 12);
    assert_eq!(&**done.data.as_ref().unwrap(), b"12345678");
}

/// A buffer, from the pool or not, is read by peers and by nobody written.
fn shared_buffers_are_read(pair: &mut Pair) {
    for len in [5, 50_000, 3 << 20] {
        let bytes = pattern(len as u64, len);
        let pooled = pair.server.endpoint.pool().copy_from(&bytes).unwrap();
        for buf in [Buf::from_vec(bytes.clone()), pooled] {
            let key = pair.server.endpoint.region_share(buf.clone()).unwrap();
            let done = get(pair, key, 1, len - 1, 20);
            assert_eq!(done.outcome, Ok(0));
            assert!(**done.data.as_ref().unwrap() == bytes[1..]);
            let forbidden = put(pair, key, 0, b"x", 21);
            assert_eq!(forbidden, Err(OneSidedError::Forbidden));
            assert!(*buf == *bytes);
            assert!(pair.server.endpoint.region_close(key));
            assert_eq!(get(pair, key, 0, 1, 22).outcome, Err(OneSidedError::Key));
        }
    }
}

fn put(pair: &mut Pair, key: RemoteKey, offset: u64, bytes: &[u8], context: u64) -> Outcome {
    post(pair, context, |endpoint, channel| {
        endpoint.put(channel, key, offset, bytes, context)
    })
}

fn fetch_add(pair: &mut Pair, key: RemoteKey, offset: u64, add: u64, context: u64) -> Outcome {
    post(pair, context, |endpoint, channel| {
        endpoint.fetch_add(channel, key, offset, add, context)
    })
}

fn compare_swap(pair: &mut Pair, key: RemoteKey, swap: (u64, u64), context: u64) -> Outcome {
    post(pair, context, |endpoint, channel| {
        endpoint.compare_swap(channel, key, 0, swap.0, swap.1, context)
    })
}

fn post(
    pair: &mut Pair,
    context: u64,
    mut op: impl FnMut(&mut praas_transport::Endpoint, ChannelId) -> Result<Posted, SendError>,
) -> Outcome {
    let channel = pair.to_server;
    pair.until(|pair| {
        let posted = op(&mut pair.client.endpoint, channel).unwrap();
        (posted == Posted::Done).then_some(())
    });
    completion(pair, context).outcome
}

fn get(pair: &mut Pair, key: RemoteKey, offset: u64, len: usize, context: u64) -> OneSidedDone {
    let channel = pair.to_server;
    let mut into = Some(pair.client.endpoint.pool().alloc(len).unwrap());
    pair.until(|pair| {
        let client = &mut pair.client.endpoint;
        match client.get(channel, key, offset, into.take()?, context) {
            Ok(PostedGet::Busy(again)) => {
                into = Some(again);
                None
            }
            posted => {
                assert!(posted.is_ok());
                Some(())
            }
        }
    });
    completion(pair, context)
}

fn put_large(pair: &mut Pair, key: RemoteKey, buf: Buf, context: u64) -> OneSidedDone {
    let channel = pair.to_server;
    let mut buf = Some(buf);
    pair.until(|pair| {
        let client = &mut pair.client.endpoint;
        match client.put_buf(channel, key, 0, buf.take()?, None, context) {
            Ok(PostedBuf::Busy(again)) => {
                buf = Some(again);
                None
            }
            posted => {
                assert!(posted.is_ok());
                Some(())
            }
        }
    });
    completion(pair, context)
}

fn completion(pair: &mut Pair, context: u64) -> OneSidedDone {
    pair.until(|pair| {
        let done = |seen: &Seen| matches!(seen, Seen::OneSided(one) if one.context == context);
        let seen = &mut pair.client.recorder.seen;
        let at = seen.iter().position(|(_, seen)| done(seen))?;
        match seen.remove(at) {
            Some((_, Seen::OneSided(one))) => Some(one),
            _ => None,
        }
    })
}

fn take_done(pair: &mut Pair) -> Option<OneSidedDone> {
    let seen = &mut pair.client.recorder.seen;
    let at = seen
        .iter()
        .position(|(_, seen)| matches!(seen, Seen::OneSided(_)))?;
    match seen.remove(at) {
        Some((_, Seen::OneSided(one))) => Some(one),
        _ => None,
    }
}
