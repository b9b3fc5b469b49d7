//! Peers that are other OS processes, and what becomes of us when they are killed, stopped, or do
//! not read: over every transport that connects two processes.
//!
//! How long each death takes, by a peer with little memory to give back and by one with so much:
//!
//! ```text
//!   PRAAS_FAULTS_MEMORY_MIB=1024 cargo test --release -p praas-tests --test faults -- --nocapture
//! ```
//!
//! The peer is this program again, started with `PRAAS_FAULTS_PEER` set, when its "test"
//! `peer_process` does what the variable says.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use praas_tests::conformance::{
    Backend, Held, Node, PATIENCE, Policy, Seen, dial, hold, keyring, pattern,
};
use praas_transport::{
    Access, Address, Buf, ChannelId, CloseReason, OneSidedError, Posted, PostedBuf, PostedGet,
    RemoteKey, Role, SendError, SendFailure, TransportConfig, TransportKind, WaitMode,
};

const PEER: &str = "PRAAS_FAULTS_PEER";
/// Memory of a peer that dies, and how often one does, unless `PRAAS_FAULTS_MEMORY_MIB` asks for
/// figures.
const MEMORY_MIB: usize = 16;
const DEATHS: usize = 2;
const DEATHS_FIGURED: usize = 7;

/// What a peer does with what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manners {
    /// Sends it back.
    Echo,
    /// Looks at nothing after the channel is open.
    Deaf,
    /// Parks large messages.
    Park,
}

struct Peer {
    child: Child,
    address: Address,
    key: RemoteKey,
}

impl Peer {
    fn start(kind: TransportKind, manners: Manners, memory_bytes: usize) -> Self {
        let manners = match manners {
            Manners::Echo => "echo",
            Manners::Deaf => "deaf",
            Manners::Park => "park",
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peer_process", "--nocapture", "--test-threads=1"])
            .env(PEER, format!("{kind} {manners} {memory_bytes}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The harness has its say first.
        let line = lines
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| line.split_once("serves ").map(|(_, rest)| rest.to_owned()))
            .expect("the peer ended before it served");
        let (address, key) = line.split_once(' ').unwrap();
        Self {
            child,
            address: address.parse().unwrap(),
            key: RemoteKey(key.parse().unwrap()),
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may be dead already, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The peer's side; does nothing when it is run as a test.
#[test]
fn peer_process() {
    let Ok(how) = std::env::var(PEER) else {
        return;
    };
    let words: Vec<&str> = how.split(' ').collect();
    let [kind, manners, memory_bytes] = words[..] else {
        panic!("{how}");
    };
    let backend = backend(kind.parse().unwrap());
    let memory = vec![1_u8; memory_bytes.parse().unwrap()];
    let mut node = Node::new(backend.config(2), "peer", 3, Some(keyring()));
    if manners == "park" {
        node.recorder.policy = Policy::Park;
    }
    let region = node.endpoint.region_create(2 << 20, Access::ALL).unwrap();
    let address = node.endpoint.listen(&backend.listen()).unwrap();
    println!("serves {address} {}", region.key().0);
    // Whoever started us is gone when this ends.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::abort();
    });
    let mut queued = std::collections::VecDeque::new();
    loop {
        let soon = Some(Instant::now() + Duration::from_millis(100));
        node.endpoint
            .progress_wait(&mut node.recorder, soon, WaitMode::Warm);
        while let Some((channel, seen)) = node.recorder.seen.pop_front() {
            match seen {
                Seen::Open(_) if manners == "deaf" => loop {
                    std::thread::park();
                },
                Seen::Message { tag, payload, .. } => queued.push_back((channel, tag, payload)),
                _ => {}
            }
        }
        while let Some((channel, tag, payload)) = queued.front() {
            match node.endpoint.send(*channel, 1, *tag, &[], &[payload]) {
                Ok(Posted::Busy) => break,
                Ok(Posted::Done) | Err(_) => queued.pop_front(),
            };
        }
        std::hint::black_box(&memory);
    }
}

fn backend(kind: TransportKind) -> Backend {
    Backend {
        kind,
        faulty: false,
        any: false,
    }
}

/// A client that is connected to a peer.
struct Client {
    node: Node,
    channel: ChannelId,
}

impl Client {
    fn connect(peer: &Peer, config: TransportConfig) -> Self {
        let mut node = Node::new(config, "", 0, None);
        let channel = node
            .endpoint
            .connect(&peer.address, dial(Role::Client))
            .unwrap();
        let mut client = Self { node, channel };
        client.until(|client| {
            client
                .node
                .take(|_, seen| matches!(seen, Seen::Open(_)).then_some(()))
        });
        client
    }

    fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(done) = done(self) {
                return done;
            }
            let now = Instant::now();
            assert!(now < until, "hung: saw {:?}", self.node.recorder.seen);
            let soon = Some(until.min(now + Duration::from_millis(20)));
            self.node
                .endpoint
                .progress_wait(&mut self.node.recorder, soon, WaitMode::Warm);
        }
    }

    fn echo(&mut self, bytes: &[u8]) {
        let channel = self.channel;
        self.until(|client| {
            let posted = client.node.endpoint.send(channel, 1, 7, &[], &[bytes]);
            (posted.unwrap() == Posted::Done).then_some(())
        });
        let back = self.until(|client| {
            client.node.take(|_, seen| match seen {
                Seen::Message { payload, .. } => Some(payload.clone()),
                _ => None,
            })
        });
        assert_eq!(back, bytes);
    }
}

/// Holds what `check` says over a transport, or says why it cannot be had.
fn held(kind: TransportKind, promise: &str, check: impl FnOnce(TransportKind)) {
    hold(backend(kind), promise, |_| {
        check(kind);
        Held::Yes
    });
}

/// Kills a peer that has so much memory to give back, and sees how long it takes to be told.
fn death_is_told(kind: TransportKind, mode: WaitMode, memory_bytes: usize) -> Duration {
    let mut peer = Peer::start(kind, Manners::Echo, memory_bytes);
    let mut client = Client::connect(&peer, backend(kind).config(1));
    client.echo(b"alive");
    let started = Instant::now();
    peer.kill();
    let until = started + PATIENCE;
    loop {
        assert!(Instant::now() < until, "never told");
        let node = &mut client.node;
        node.endpoint
            .progress_wait(&mut node.recorder, Some(until), mode);
        let close = node.take(|_, seen| match seen {
            Seen::Close(reason) => Some(reason.clone()),
            _ => None,
        });
        if let Some(reason) = close {
            let took = started.elapsed();
            assert!(matches!(reason, CloseReason::PeerDied), "{reason}");
            let channel = client.channel;
            let after = client.node.endpoint.send(channel, 1, 1, &[], &[b"x"]);
            assert_eq!(after, Err(SendError::NotOpen));
            return took;
        }
    }
}

fn deaths(kind: TransportKind) {
    let asked = std::env::var("PRAAS_FAULTS_MEMORY_MIB").ok();
    let (rounds, mib) = match &asked {
        Some(mib) => (DEATHS_FIGURED, mib.parse().expect("a number of MiB")),
        None => (DEATHS, MEMORY_MIB),
    };
    for (mode, name) in [(WaitMode::Hot, "hot"), (WaitMode::Warm, "warm")] {
        for mib in [0, mib] {
            let death = |_| death_is_told(kind, mode, mib << 20);
            let mut times: Vec<Duration> = (0..rounds).map(death).collect();
            times.sort_unstable();
            let (median, most) = (times[rounds / 2], times[rounds - 1]);
            println!(
                "death {kind:<5} {name:<4} {mib:>4} MiB: median {median:.1?}, most {most:.1?}"
            );
        }
    }
}

/// Everything in flight to a killed peer completes with an error, and buffers come back.
fn death_completes_everything(kind: TransportKind) {
    let mut peer = Peer::start(kind, Manners::Park, 0);
    let mut client = Client::connect(&peer, backend(kind).config(1));
    let channel = client.channel;
    let mut large = 0;
    for context in 0..8 {
        let buf = Buf::from_vec(pattern(context, 1 << 20));
        let sent = client
            .node
            .endpoint
            .send_buf(channel, 1, 1, &[], buf, context)
            .unwrap();
        large += u64::from(matches!(sent, PostedBuf::Pending));
    }
    peer.kill();
    let endpoint = &mut client.node.endpoint;
    let into = endpoint.pool().alloc(1 << 20).unwrap();
    let mut ops = 0;
    // Who is quick finds the channel open still; who is not, closed.
    if let Ok(PostedGet::Pending) = endpoint.get(channel, peer.key, 0, into, 100) {
        ops += 1;
    }
    if let Ok(Posted::Done) = endpoint.fetch_add(channel, peer.key, 0, 1, 101) {
        ops += 1;
    }
    let (mut failed, mut ended) = (0, 0);
    client.until(|client| {
        while let Some((_, seen)) = client.node.recorder.seen.pop_front() {
            match seen {
                Seen::Sent { outcome, .. } => {
                    assert_eq!(outcome, Err(SendFailure::Closed));
                    failed += 1;
                }
                Seen::OneSided(done) => {
                    let good = matches!(done.outcome, Ok(_) | Err(OneSidedError::Closed));
                    assert!(good, "{:?}", done.outcome);
                    ended += 1;
                }
                Seen::Close(reason) => {
                    assert!(matches!(reason, CloseReason::PeerDied), "{reason}");
                    return Some(());
                }
                _ => {}
            }
        }
        None
    });
    assert_eq!((failed, ended), (large, ops));
}

/// A peer that does not read stalls its own channel, in bounded memory, and nobody else's; its
/// death frees what waits for it.
fn a_deaf_peer_stalls_only_itself(kind: TransportKind) {
    let mut deaf = Peer::start(kind, Manners::Deaf, 0);
    let kind_peer = Peer::start(kind, Manners::Echo, 0);
    let mut client = Client::connect(&deaf, backend(kind).config(1));
    let good = client
        .node
        .endpoint
        .connect(&kind_peer.address, dial(Role::Client))
        .unwrap();
    client.until(|client| {
        client
            .node
            .take(|id, seen| (id == good && matches!(seen, Seen::Open(_))).then_some(()))
    });
    let channel = client.channel;
    let payload = vec![3; 1024];
    let mut taken = 0_u64;
    let full = Instant::now() + PATIENCE;
    while client
        .node
        .endpoint
        .send(channel, 1, taken, &[], &[&payload])
        .unwrap()
        == Posted::Done
    {
        taken += 1;
        assert!(
            taken < 1 << 20 && Instant::now() < full,
            "nothing pushes back"
        );
        client.node.progress();
    }
    client.channel = good;
    for _ in 0..100 {
        client.echo(b"not held up");
    }
    deaf.kill();
    client.until(|client| {
        client.node.take(|id, seen| {
            (id == channel && matches!(seen, Seen::Close(CloseReason::PeerDied))).then_some(())
        })
    });
    client.echo(b"still there");
}

/// A peer that is stopped, not dead, is no dead peer: what was sent comes when it goes on.
fn a_stopped_peer_goes_on(kind: TransportKind) {
    let peer = Peer::start(kind, Manners::Echo, 0);
    let mut client = Client::connect(&peer, backend(kind).config(1));
    client.echo(b"before");
    let pid = rustix::process::Pid::from_child(&peer.child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let channel = client.channel;
    let mut posted = 0;
    for tag in 0..4 {
        let sent = client.node.endpoint.send(channel, 1, tag, &[], &[b"x"]);
        posted += usize::from(sent.unwrap() == Posted::Done);
    }
    assert!(posted > 0);
    let quiet = Instant::now() + Duration::from_millis(300);
    while Instant::now() < quiet {
        let node = &mut client.node;
        node.endpoint
            .progress_wait(&mut node.recorder, Some(quiet), WaitMode::Warm);
        let closed = node.take(|_, seen| matches!(seen, Seen::Close(_)).then_some(()));
        assert!(closed.is_none(), "a stopped peer was taken for dead");
    }
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let mut back = 0;
    client.until(|client| {
        let message = |_, seen: &Seen| matches!(seen, Seen::Message { .. }).then_some(());
        while client.node.take(message).is_some() {
            back += 1;
        }
        (back == posted).then_some(())
    });
}

macro_rules! faults {
    ($($module:ident => $kind:ident;)*) => {
        $(mod $module {
            use super::*;

            const KIND: TransportKind = TransportKind::$kind;

            #[test]
            fn deaths_are_told() {
                held(KIND, "deaths_are_told", deaths);
            }

            #[test]
            fn death_completes_everything_in_flight() {
                held(KIND, "death_completes_everything_in_flight", death_completes_everything);
            }

            #[test]
            fn a_deaf_peer_stalls_only_its_own_channel() {
                held(KIND, "a_deaf_peer_stalls_only_itself", a_deaf_peer_stalls_only_itself);
            }

            #[test]
            fn a_stopped_peer_is_not_dead() {
                held(KIND, "a_stopped_peer_is_not_dead", a_stopped_peer_goes_on);
            }
        })*
    };
}

faults! {
    shm => Shm;
    unix => Unix;
    verbs => Verbs;
    tcp => Tcp;
}
