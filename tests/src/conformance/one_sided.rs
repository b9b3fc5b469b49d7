//! Promise 2: one-sided operations.

use praas_transport::one_sided::{Access, OneSidedError, RemoteKey};
use praas_transport::{ChannelId, TransportKind};

use super::{Backend, Held, Pair, Seen};

/// Promise 2: put, get, put-with-immediate, fetch-add and compare-and-swap work on registered
/// regions; a wrong key, a range outside and a forbidden access fail and harm nobody.
pub fn one_sided_operations_work_and_fail_safely(backend: Backend) -> Held {
    let mut pair = backend.pair();
    let channel = pair.to_server;
    if backend.kind != TransportKind::Mem {
        pair.client.endpoint.put(channel, RemoteKey(1), 0, b"x", 4);
        let outcome = one_sided(&mut pair, 4).0;
        assert_eq!(outcome, Err(OneSidedError::Unsupported));
        return Held::NotOffered("the backend answers Unsupported to one-sided operations");
    }
    let key = put_get_and_atomics(&mut pair, channel);
    put_immediate_is_told(&mut pair, channel, key);
    let memory = pair.server.endpoint.deregister(key).unwrap();
    assert_eq!(&memory[..8], b"12345678");
    pair.client.endpoint.fetch_add(channel, key, 0, 1, 12);
    assert_eq!(one_sided(&mut pair, 12).0, Err(OneSidedError::Key));
    Held::Yes
}

fn put_get_and_atomics(pair: &mut Pair, channel: ChannelId) -> RemoteKey {
    let all = Access {
        read: true,
        write: true,
        atomic: true,
    };
    let mut memory = pair.server.endpoint.pool().alloc(64).unwrap();
    memory.fill(0);
    let key = pair.server.endpoint.register(memory, all).unwrap();
    let only_read = pair.server.endpoint.pool().alloc(8).unwrap();
    let read_only = Access {
        read: true,
        ..Access::default()
    };
    let guarded = pair.server.endpoint.register(only_read, read_only).unwrap();

    let client = &mut pair.client.endpoint;
    client.put(channel, key, 8, b"abcdefgh", 1);
    client.fetch_add(channel, key, 0, 5, 2);
    client.compare_swap(channel, key, 0, 5, 9, 3);
    client.compare_swap(channel, key, 0, 5, 1, 4);
    client.put(channel, key, 60, b"abcdefgh", 5);
    client.put(channel, guarded, 0, b"abcdefgh", 6);
    client.fetch_add(channel, key, 4, 1, 7);
    client.put(channel, RemoteKey(key.0 ^ 1), 0, b"x", 8);
    client.put(channel, key, u64::MAX, b"x", 9);
    let into = client.pool().alloc(16).unwrap();
    client.get(channel, key, 0, into, 10);
    assert_eq!(one_sided(pair, 1).0, Ok(0));
    assert_eq!(one_sided(pair, 2).0, Ok(0));
    assert_eq!(one_sided(pair, 3).0, Ok(5));
    assert_eq!(one_sided(pair, 4).0, Ok(9));
    assert!(matches!(
        one_sided(pair, 5).0,
        Err(OneSidedError::Range { .. })
    ));
    assert_eq!(one_sided(pair, 6).0, Err(OneSidedError::Forbidden));
    assert_eq!(one_sided(pair, 7).0, Err(OneSidedError::Misaligned(4)));
    assert_eq!(one_sided(pair, 8).0, Err(OneSidedError::Key));
    assert!(matches!(
        one_sided(pair, 9).0,
        Err(OneSidedError::Range { .. })
    ));
    assert_eq!(
        one_sided(pair, 10),
        (Ok(0), b"\x09\0\0\0\0\0\0\0abcdefgh".to_vec())
    );
    key
}

fn put_immediate_is_told(pair: &mut Pair, channel: ChannelId, key: RemoteKey) {
    pair.until(|pair| {
        let posted = pair
            .client
            .endpoint
            .put_immediate(channel, key, 0, b"12345678", 99, 11)
            .unwrap();
        (posted == praas_transport::Posted::Done).then_some(())
    });
    pair.until(|pair| {
        pair.server.take(|_, seen| match seen {
            Seen::Immediate { value: 99, len: 8 } => Some(()),
            _ => None,
        })
    });
}

fn one_sided(pair: &mut Pair, context: u64) -> (Result<u64, OneSidedError>, Vec<u8>) {
    pair.until(|pair| {
        pair.client.take(|_, seen| match seen {
            Seen::OneSided(done) if done.context == context => Some((
                done.outcome,
                done.data.as_ref().map_or(Vec::new(), |data| data.to_vec()),
            )),
            _ => None,
        })
    })
}
