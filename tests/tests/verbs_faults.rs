//! RDMA when its wire is cut: with messages on their way, and with none.
//!
//! ```text
//!   .ci/rdma-guest:   client, rxe0, 10.77.0.1  <--- wire down, wire up --->  server, rxe1, 10.77.0.2
//! ```
//!
//! There is a wire to cut in the guest of `.ci/rdma-guest`; elsewhere the tests say that there is
//! none. They cut what all tests of the guest share, and so take turns.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use praas_tests::conformance::{
    self, Backend, Held, Node, PATIENCE, Pair, Seen, dial, keyring, pattern,
};
use praas_transport::{
    Buf, ChannelId, CloseReason, Listen, Posted, PostedBuf, Role, SendError, SendFailure,
    TransportConfig, TransportKind, WaitMode,
};

const SERVER_AT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The setting that says when a silent peer is dead.
const DEAD_AFTER_MS: u32 = 2_000;

/// The wire; whoever holds it may cut it, and it is whole again afterwards.
static WIRE: Mutex<()> = Mutex::new(());

struct Wire<'a>(#[allow(dead_code)] std::sync::MutexGuard<'a, ()>);

impl Wire<'_> {
    /// The wire, if there is one.
    fn take() -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        let found = std::env::split_paths(&path).any(|folder| folder.join("wire").is_file());
        found.then(|| Self(WIRE.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn set(&self, to: &str) {
        let done = Command::new("wire").arg(to).status().expect("wire");
        assert!(done.success(), "wire {to}: {done}");
    }
}

impl Drop for Wire<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.set("up");
        }
    }
}

/// Runs a check of two endpoints with the wire between them.
fn held(promise: &str, check: impl FnOnce(&Wire<'_>)) {
    let backend = Backend {
        kind: TransportKind::Verbs,
        faulty: false,
        any: false,
    };
    conformance::hold(backend, promise, |_| match Wire::take() {
        None => Held::NotOffered("there is no wire to cut; .ci/rdma-guest has one"),
        Some(wire) => {
            wire.set("up");
            check(&wire);
            Held::Yes
        }
    });
}

fn config(device: &str) -> TransportConfig {
    TransportConfig {
        poll_interval_rounds: 16,
        verbs_device: Some(device.into()),
        verbs_dead_after_ms: DEAD_AFTER_MS,
        tcp_dead_after_ms: DEAD_AFTER_MS,
        ..TransportConfig::default()
    }
}

/// Two endpoints, connected over the wire.
fn pair() -> Pair {
    let mut server = Node::new(config("rxe1"), "server", 3, Some(keyring()));
    let at = Listen::Verbs(SocketAddr::from((SERVER_AT, 0)));
    let address = server.endpoint.listen(&at).expect("listen");
    let client = Node::new(config("rxe0"), "", 0, None);
    Pair::connect(client, server, &[address])
}

/// How the two ends of a channel were told that it has ended, and how long after the cut.
#[derive(Debug, Default)]
struct Ends([Option<(Duration, CloseReason)>; 2]);

/// Waits until both ends are told; `pending` are messages that the client is owed the outcome of.
fn ends_wait(pair: &mut Pair, mode: WaitMode, mut pending: u64) {
    let cut = Instant::now();
    let mut ends = Ends::default();
    while ends.0.iter().any(Option::is_none) || pending > 0 {
        assert!(
            cut.elapsed() < PATIENCE,
            "never told: {ends:?}, {pending} sends"
        );
        for (node, end) in [&mut pair.client, &mut pair.server]
            .into_iter()
            .zip(&mut ends.0)
        {
            let soon = Instant::now() + Duration::from_millis(20);
            let Node { endpoint, recorder } = node;
            endpoint.progress_wait(recorder, Some(soon), mode);
            while let Some((_, seen)) = recorder.seen.pop_front() {
                match seen {
                    Seen::Close(reason) => *end = Some((cut.elapsed(), reason)),
                    Seen::Sent { outcome, .. } => {
                        assert!(
                            matches!(outcome, Ok(()) | Err(SendFailure::Closed)),
                            "{outcome:?}"
                        );
                        pending -= 1;
                    }
                    _ => {}
                }
            }
        }
    }
    for (side, end) in ["client", "server"].iter().zip(&ends.0) {
        if let Some((took, reason)) = end {
            println!("wire cut, {mode:?}: the {side} is told after {took:.1?}: {reason}");
            let good = matches!(
                reason,
                CloseReason::PeerDied | CloseReason::Rdma(_) | CloseReason::Io(_)
            );
            assert!(good, "{reason}");
        }
    }
    let closed = |node: &mut Node, channel: ChannelId| {
        let sent = node.endpoint.send(channel, 1, 0, &[], &[]);
        assert_eq!(sent, Err(SendError::NotOpen));
    };
    closed(&mut pair.client, pair.to_server);
    closed(&mut pair.server, pair.to_client);
}

/// The same endpoints connect again once the wire is whole.
fn connects_again(pair: &mut Pair, wire: &Wire<'_>) {
    wire.set("up");
    let address = pair.server.endpoint.addresses()[0].clone();
    let until = Instant::now() + PATIENCE;
    let mut channel = None;
    loop {
        assert!(Instant::now() < until, "no connection");
        // The port takes a while to be active again, and is rejected until then.
        let connecting = *channel.get_or_insert_with(|| {
            pair.client
                .endpoint
                .connect(&address, dial(Role::Client))
                .ok()
        });
        pair.client.progress();
        pair.server.progress();
        let end = pair.client.take(|id, seen| match seen {
            _ if Some(id) != connecting => None,
            Seen::Open(_) => Some(true),
            Seen::Close(_) => Some(false),
            _ => None,
        });
        match end {
            Some(true) => return,
            Some(false) => channel = None,
            None if connecting.is_none() => channel = None,
            None => {}
        }
    }
}

#[test]
fn a_cut_wire_ends_channels_in_use() {
    held("a_cut_wire_ends_channels_in_use", |wire| {
        for mode in [WaitMode::Hot, WaitMode::Warm] {
            let mut pair = pair();
            let body = pattern(1, 2_000);
            let (mut rounds, mut pending) = (0, 0);
            pair.until(|pair| {
                let (to_server, to_client) = (pair.to_server, pair.to_client);
                let large = Buf::from_vec(vec![5; 300_000]);
                let posted = pair
                    .client
                    .endpoint
                    .send_buf(to_server, 1, 0, &[], large, 0);
                if let PostedBuf::Pending = posted.unwrap() {
                    pending += 1;
                }
                let both = [(&mut pair.client, to_server), (&mut pair.server, to_client)];
                for (node, channel) in both {
                    let sent = node.endpoint.send(channel, 1, 0, &[], &[&body]).unwrap();
                    rounds += u64::from(sent == Posted::Done);
                    let sent = |_, seen: &Seen| matches!(seen, Seen::Sent { .. }).then_some(());
                    while node.take(sent).is_some() {
                        pending -= 1;
                    }
                    node.recorder.seen.clear();
                }
                (rounds > 100).then_some(())
            });
            wire.set("down");
            ends_wait(&mut pair, mode, pending);
            connects_again(&mut pair, wire);
        }
    });
}

#[test]
fn a_cut_wire_ends_idle_channels() {
    held("a_cut_wire_ends_idle_channels", |wire| {
        for mode in [WaitMode::Hot, WaitMode::Warm] {
            let mut pair = pair();
            wire.set("down");
            ends_wait(&mut pair, mode, 0);
            connects_again(&mut pair, wire);
        }
    });
}

#[test]
fn without_a_wire_there_is_no_connection() {
    held("without_a_wire_there_is_no_connection", |wire| {
        let mut pair = pair();
        let address = pair.server.endpoint.addresses()[0].clone();
        wire.set("down");
        ends_wait(&mut pair, WaitMode::Warm, 0);
        let connected = pair.client.endpoint.connect(&address, dial(Role::Client));
        let why = match connected {
            Err(error) => error.to_string(),
            Ok(channel) => pair.until(|pair| {
                pair.client.take(|id, seen| match seen {
                    Seen::Open(_) => panic!("connected without a wire"),
                    Seen::Close(reason) if id == channel => Some(reason.to_string()),
                    _ => None,
                })
            }),
        };
        println!("connecting without a wire: {why}");
        connects_again(&mut pair, wire);
    });
}
