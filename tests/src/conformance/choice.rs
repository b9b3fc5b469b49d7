//! Several addresses of one peer: which is used, and what happens if it fails.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Instant;

use praas_transport::{
    Address, ChannelId, CloseReason, Credential, Dial, HostId, Kinds, RefuseReason, Role, Secret,
    Ticket, TransportConfig, TransportError,
};

use super::{Backend, Node, PATIENCE, Seen, dial, keyring};

/// A listener on this host that never says a word.
fn mute() -> (UnixListener, Address) {
    let name = format!("conformance-mute-{:x}", fastrand::u64(..));
    let at = SocketAddr::from_abstract_name(&name).expect("a name");
    let listener = UnixListener::bind_addr(&at).expect("listen");
    let host = HostId::local();
    (listener, Address::Shm { host, name })
}

/// How a channel of the client began, or ended.
fn outcome(client: &mut Node, server: &mut Node, channel: ChannelId) -> Result<(), CloseReason> {
    let until = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < until, "neither open nor closed");
        client.progress();
        // Deadlines are looked at together with the descriptors.
        client.endpoint.wait(Some(Instant::now()));
        server.progress();
        let seen = client.take(|id, seen| match seen {
            Seen::Open(_) if id == channel => Some(Ok(())),
            Seen::Close(reason) if id == channel => Some(Err(reason.clone())),
            _ => None,
        });
        if let Some(outcome) = seen {
            return outcome;
        }
    }
}

/// Promise 7: an address that fails, at once or by silence, is not the end while there is another;
/// a refusal for what the peers are is.
pub fn the_next_address_is_tried_if_one_fails(backend: Backend) {
    let config = |seed| TransportConfig {
        attempt_timeout_ms: 50,
        handshake_timeout_ms: 2_000,
        ..backend.config(seed)
    };
    let mut server = Node::new(backend.config(2), "server", 3, Some(keyring()));
    let mut client = Node::new(config(1), "", 0, None);
    let good = backend.listen_with(&mut server);
    let nobody = Address::Mem("conformance-nobody".into());
    let (_listener, mute) = mute();
    let before_good = [vec![nobody.clone(), mute.clone()], good.clone()].concat();
    let channel = client
        .endpoint
        .connect_any(&before_good, Kinds::all(), dial(Role::Client))
        .expect("one of them");
    outcome(&mut client, &mut server, channel).expect("the good one");
    let kind = client.endpoint.info(channel).map(|info| info.kind);
    assert_eq!(kind, Some(backend.kind));

    let ticket = Ticket::decode(&super::credential(Role::Client).ticket).expect("a ticket");
    let stranger = Dial {
        credential: Credential::issue(&Secret::from_bytes([7; 32]), &ticket),
        ..dial(Role::Client)
    };
    let then_others = [good, vec![mute.clone()]].concat();
    // Those that are not the backend's come behind.
    let allowed = Kinds::only(backend.kind);
    let channel = client.endpoint.connect_any(&then_others, allowed, stranger);
    let reason = outcome(&mut client, &mut server, channel.unwrap()).unwrap_err();
    let refused = matches!(&reason, CloseReason::Refused { reason, .. }
        if *reason == RefuseReason::BadProof);
    // Who has no memory to share says so only to those whom it knows.
    assert!(refused, "{reason}");

    let dialled = [nobody, mute.clone()];
    let channel = client
        .endpoint
        .connect_any(&dialled, Kinds::all(), dial(Role::Client));
    let reason = outcome(&mut client, &mut server, channel.unwrap()).unwrap_err();
    let text = reason.to_string();
    assert!(matches!(reason, CloseReason::Unreachable(_)), "{text}");
    for address in dialled {
        assert!(text.contains(&address.to_string()), "{text}");
    }
    let none = client
        .endpoint
        .connect_any(&[mute], Kinds::NONE, dial(Role::Client));
    assert!(matches!(none, Err(TransportError::Choose(_))));
}
