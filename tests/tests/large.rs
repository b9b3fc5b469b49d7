//! Messages of more bytes than 32 bits can count, when `PRAAS_LARGE_BYTES` says so; else large
//! enough to go the same way.

use praas_tests::conformance::{Node, Seen, credential, keyring};
use praas_transport::{Address, Buf, Dial, Incarnation, Listen, PostedList, Role, TransportConfig};

const PARTS: usize = 8;
const MARK: &[u8; 8] = b"\x01praas\x02\x03";

fn bytes_wanted() -> usize {
    let wanted = std::env::var("PRAAS_LARGE_BYTES").ok();
    wanted.map_or(40_000_000, |bytes| {
        bytes.parse().expect("PRAAS_LARGE_BYTES is a number")
    })
}

/// Sends a list of one buffer, again and again, so that it is larger than what it takes.
fn large_messages_are_whole(listen: &Listen, mut config: TransportConfig) {
    let part_bytes = bytes_wanted() / PARTS + 1;
    let total = (part_bytes * PARTS) as u64;
    config.message_max_bytes = total;
    let mut server = Node::new(config.clone(), "", 0, Some(keyring()));
    let mut client = Node::new(config, "", 0, None);
    let address: Address = server.endpoint.listen(listen).expect("listen");
    let dial = Dial {
        credential: credential(Role::Client),
        expect: Incarnation(0),
        deadline: None,
    };
    let channel = client.endpoint.connect(&address, dial).expect("connect");
    let open = |_, seen: &Seen| matches!(seen, Seen::Open(_)).then_some(());
    while client.take(open).is_none() {
        client.progress();
        server.progress();
    }
    let mut part = client.endpoint.pool().alloc(part_bytes).expect("memory");
    part[..8].copy_from_slice(MARK);
    part[part_bytes - 8..].copy_from_slice(MARK);
    let part: Buf = part.freeze();
    let mut parts = vec![part; PARTS];
    loop {
        match client
            .endpoint
            .send_list(channel, 1, 2, &[], parts, 3)
            .expect("send")
        {
            PostedList::Busy(again) => parts = again,
            _ => break,
        }
        client.progress();
    }
    let large = |_, seen: &Seen| match seen {
        Seen::Large { payload, .. } => Some(payload.clone()),
        Seen::Close(reason) => panic!("the channel ended: {reason}"),
        _ => None,
    };
    let payload = loop {
        client.progress();
        server.progress();
        if let Some(payload) = server.take(large) {
            break payload;
        }
    };
    assert_eq!(payload.len() as u64, total);
    for part in payload.chunks_exact(part_bytes) {
        assert_eq!(&part[..8], MARK);
        assert_eq!(&part[part_bytes - 8..], MARK);
    }
}

#[test]
fn large_messages_over_shm_are_read_by_the_kernel() {
    let config = TransportConfig {
        shm_attach_max_bytes: usize::MAX,
        ..TransportConfig::default()
    };
    large_messages_are_whole(&Listen::Shm { name: None }, config);
}

#[test]
fn large_messages_over_shm_are_mapped() {
    let config = TransportConfig {
        shm_expose_max_bytes: usize::MAX,
        shm_attach: false,
        ..TransportConfig::default()
    };
    large_messages_are_whole(&Listen::Shm { name: None }, config);
}

#[test]
fn large_messages_over_shm_are_streamed() {
    let config = TransportConfig {
        shm_expose: false,
        shm_attach: false,
        ..TransportConfig::default()
    };
    large_messages_are_whole(&Listen::Shm { name: None }, config);
}

#[test]
fn large_messages_over_tcp_are_streamed() {
    let at = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
    large_messages_are_whole(&Listen::Tcp(at), TransportConfig::default());
}
