//! The promises, one function each.

use std::io::Write;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Instant;

use praas_transport::{
    Address, Buf, CloseReason, Kinds, Posted, PostedBuf, PostedList, RefuseReason, Role, SendError,
    SendFailure, WaitMode,
};

use super::{Backend, Node, PATIENCE, Pair, Policy, Seen, dial};

/// Bytes that tell their place, so that a swap or a hole shows.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// Promise 1: messages of every size arrive whole, once, in the order of their headers.
pub fn messages_arrive_whole_once_in_order(backend: Backend) {
    let mut pair = backend.pair();
    let mut random = fastrand::Rng::with_seed(7);
    let count = 400_u64;
    let sizes: Vec<usize> = (0..count)
        .map(|_| match random.u8(0..10) {
            0 => 0,
            9 => random.usize(40_000..700_000),
            shift => random.usize(0..1 << (shift * 2)),
        })
        .collect();
    let (mut sent, mut order, mut got) = (0_u64, Vec::new(), 0_u64);
    let mut posted: Option<Buf> = None;
    pair.until(|pair| {
        if sent < count {
            let size = sizes[sent as usize];
            let buf = posted
                .take()
                .unwrap_or_else(|| Buf::from_vec(pattern(sent, size)));
            let header = sent.to_le_bytes();
            let channel = pair.to_server;
            match pair
                .client
                .endpoint
                .send_buf(channel, 9, sent, &header, buf, sent)
                .unwrap()
            {
                PostedBuf::Busy(buf) => posted = Some(buf),
                PostedBuf::Done(_) | PostedBuf::Pending => sent += 1,
            }
        }
        while let Some((_, seen)) = pair.server.recorder.seen.pop_front() {
            let (am, tag, header, payload) = match seen {
                Seen::Message {
                    am,
                    tag,
                    header,
                    payload,
                } => {
                    order.push(tag);
                    (am, tag, header, Buf::from_vec(payload))
                }
                Seen::Incoming { tag, .. } => {
                    order.push(tag);
                    continue;
                }
                Seen::Large {
                    am,
                    tag,
                    header,
                    payload,
                } => (am, tag, header, payload),
                Seen::Writable => continue,
                other => panic!("{other:?}"),
            };
            assert_eq!(am, 9);
            assert_eq!(header, tag.to_le_bytes());
            assert!(
                *payload == *pattern(tag, sizes[tag as usize]),
                "message {tag} is damaged"
            );
            got += 1;
        }
        (got == count).then_some(())
    });
    assert_eq!(order, (0..count).collect::<Vec<_>>());
}

/// Promise 1: a list of buffers arrives as one message, small or large, from a few parts or many.
pub fn lists_arrive_as_one(backend: Backend) {
    let mut pair = backend.pair();
    let channel = pair.to_server;
    let lists: [&[usize]; 4] = [&[3, 0, 5], &[100_000, 1, 0, 200_000], &[30_000; 20], &[]];
    for (at, sizes) in lists.into_iter().enumerate() {
        let context = at as u64;
        let parts: Vec<Buf> = (0..)
            .zip(sizes)
            .map(|(seed, size)| Buf::from_vec(pattern(seed, *size)))
            .collect();
        let whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let mut posted = Some(parts.clone());
        let pending = pair.until(|pair| {
            let client = &mut pair.client.endpoint;
            let sent = client.send_list(channel, 2, context, b"h", posted.take()?, context);
            match sent.unwrap() {
                PostedList::Busy(again) => posted = Some(again),
                PostedList::Done(back) => {
                    assert_eq!(back, parts);
                    return Some(false);
                }
                PostedList::Pending => return Some(true),
            }
            None
        });
        let got = pair.until(|pair| {
            pair.server.take(|_, seen| match seen {
                Seen::Message { payload, tag, .. } if *tag == context => Some(payload.clone()),
                Seen::Large { payload, tag, .. } if *tag == context => Some(payload.to_vec()),
                _ => None,
            })
        });
        assert!(got == whole, "list {at} is damaged");
        if pending {
            pair.until(|pair| {
                pair.client.take(|_, seen| match seen {
                    Seen::ListSent {
                        context: of,
                        parts: back,
                        outcome,
                    } if *of == context => {
                        assert_eq!((back, outcome), (&parts, &Ok(())));
                        Some(())
                    }
                    _ => None,
                })
            });
        }
    }
}

/// Promise 1: what was taken arrives though nothing is sent after it, also when the transport
/// could take the last of it only in part.
pub fn what_was_taken_arrives_by_itself(backend: Backend) {
    let fill = |pair: &mut Pair, most: u64| {
        let channel = pair.to_server;
        let payload = vec![7; pair.client.endpoint.eager_max(channel)];
        let posted = (0..most).find(|tag| {
            let sent = pair
                .client
                .endpoint
                .send(channel, 1, *tag, &[], &[&payload]);
            sent.unwrap() == Posted::Busy
        });
        posted.unwrap_or(most)
    };
    let room = fill(&mut backend.pair(), 4096);
    // How much a socket takes differs from one to the next.
    for most in [1, room.saturating_sub(1).max(1), room] {
        let mut pair = backend.pair();
        let taken = fill(&mut pair, most);
        let mut got = 0;
        pair.until(|pair| {
            let message = |_, seen: &Seen| matches!(seen, Seen::Message { .. }).then_some(());
            while pair.server.take(message).is_some() {
                got += 1;
            }
            (got == taken).then_some(())
        });
    }
}

/// Promise 1: a channel's opening is told before its first message, however soon that follows.
pub fn channels_open_before_their_messages(backend: Backend) {
    const ROUNDS: usize = 200;
    let mut server = Node::new(backend.config(2), "server", 3, Some(super::keyring()));
    let addresses = backend.listen_with(&mut server);
    let done = praas_transport::sync::atomic::AtomicUsize::new(0);
    let until = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Node::new(backend.config(1), "", 0, None);
            for round in 0..ROUNDS {
                let connected =
                    client
                        .endpoint
                        .connect_any(&addresses, Kinds::all(), dial(Role::Client));
                let channel = connected.expect("connect");
                while client
                    .take(|id, seen| matches!(seen, Seen::Open(_)).then_some(id))
                    .is_none()
                {
                    assert!(Instant::now() < until, "no connection");
                    look(&mut client);
                }
                while client.endpoint.send(channel, 1, 0, &[], &[]).unwrap() == Posted::Busy {
                    assert!(Instant::now() < until, "no room");
                    look(&mut client);
                }
                while done.load(praas_transport::sync::atomic::Ordering::Acquire) <= round {
                    assert!(Instant::now() < until, "round {round} was not seen");
                    look(&mut client);
                }
                client.endpoint.close(channel);
            }
        });
        let mut open = None;
        let mut messages = 0;
        while messages < ROUNDS {
            assert!(Instant::now() < until, "only {messages} messages came");
            look(&mut server);
            while let Some((channel, seen)) = server.recorder.seen.pop_front() {
                match seen {
                    Seen::Open(_) => open = Some(channel),
                    Seen::Message { .. } => {
                        assert_eq!(open, Some(channel), "a message came before the opening");
                        messages += 1;
                        done.store(messages, praas_transport::sync::atomic::Ordering::Release);
                    }
                    _ => {}
                }
            }
        }
    });
}

/// A round of progress; whoever finds nothing lets others have the processor.
fn look(node: &mut Node) {
    if node.progress() == 0 {
        std::thread::yield_now();
    }
}

/// Promise 1: what is above the limit is an error at the sender, before anything is sent.
pub fn oversized_messages_are_refused(backend: Backend) {
    let mut config = backend.config(1);
    config.message_max_bytes = 100_000;
    let mut pair = backend.pair_with(config, backend.config(2));
    let channel = pair.to_server;
    let buf = Buf::from_vec(vec![0; 100_001]);
    let error = pair
        .client
        .endpoint
        .send_buf(channel, 1, 0, &[], buf, 0)
        .unwrap_err();
    assert_eq!(
        error,
        SendError::TooLarge {
            len: 100_001,
            limit: 100_000
        }
    );
    let error = pair
        .client
        .endpoint
        .send(channel, 1, 0, &[0; 33], &[])
        .unwrap_err();
    assert_eq!(error, SendError::HeaderTooLong(33));
    let eager = pair.client.endpoint.eager_max(channel);
    let error = pair
        .client
        .endpoint
        .send(channel, 1, 0, &[], &[&vec![0; eager + 1]])
        .unwrap_err();
    assert!(matches!(error, SendError::TooLarge { .. }), "{error}");
    message_passes(&mut pair);
}

/// Promise 1: a receiver whose limit is lower refuses the message, whatever its user would do with
/// it; the sender learns of it, and the channel goes on.
pub fn oversized_announcements_are_refused(backend: Backend) {
    let mut config = backend.config(2);
    config.message_max_bytes = 100_000;
    let mut pair = backend.pair_with(backend.config(1), config);
    send_until_posted(&mut pair, 200_000, 5);
    pair.until(|pair| {
        pair.client.take(|_, seen| match seen {
            Seen::Sent {
                context: 5,
                outcome: Err(SendFailure::Refused(u32::MAX)),
            } => Some(()),
            _ => None,
        })
    });
    message_passes(&mut pair);
}

/// Promise 1: a receiver may refuse or park a large message, and nothing else waits for it.
pub fn large_messages_can_be_parked_and_refused(backend: Backend) {
    let mut pair = backend.pair();
    pair.server.recorder.policy = Policy::Refuse(77);
    send_until_posted(&mut pair, 200_000, 1);
    pair.until(|pair| {
        pair.client.take(|_, seen| match seen {
            Seen::Sent {
                context: 1,
                outcome: Err(SendFailure::Refused(77)),
            } => Some(()),
            _ => None,
        })
    });
    pair.server.recorder.policy = Policy::Park;
    send_until_posted(&mut pair, 300_000, 2);
    let id = pair.until(|pair| {
        pair.server.take(|_, seen| match seen {
            Seen::Incoming {
                id, len: 300_000, ..
            } => Some(*id),
            _ => None,
        })
    });
    pair.server.recorder.policy = Policy::Accept;
    send_until_posted(&mut pair, 400_000, 3);
    message_passes(&mut pair);
    let large = |pair: &mut Pair, context: u64, len: usize| {
        pair.until(|pair| {
            pair.server.take(|_, seen| match seen {
                Seen::Large { tag, payload, .. } if *tag == context => Some(payload.clone()),
                _ => None,
            })
        })
        .to_vec()
            == pattern(context, len)
    };
    assert!(large(&mut pair, 3, 400_000));
    let short = pair.server.endpoint.pool().alloc(5).unwrap();
    let error = pair.server.endpoint.accept(id, short).unwrap_err();
    assert_eq!(
        error,
        SendError::WrongLength {
            have: 5,
            need: 300_000
        }
    );
    let buf = pair.server.endpoint.pool().alloc(300_000).unwrap();
    pair.server.endpoint.accept(id, buf).unwrap();
    assert!(large(&mut pair, 2, 300_000));
    assert_eq!(
        pair.server.endpoint.refuse(id, 1).unwrap_err(),
        SendError::NoSuchIncoming
    );
}

/// Promise 3: a reader that does not read makes its sender `Busy`, and stalls nobody else.
pub fn a_slow_reader_stalls_only_its_own_channel(backend: Backend) {
    let mut pair = backend.pair();
    let addresses = pair.server.endpoint.addresses().to_vec();
    let mut other = Node::new(backend.config(3), "", 0, None);
    // The client fills its channel while the server makes no progress at all.
    let channel = pair.to_server;
    let body = pattern(0, 4096);
    let mut posted = 0_u64;
    let mut busy = 0;
    while busy < 1000 {
        match pair
            .client
            .endpoint
            .send(channel, 1, posted, &[], &[&body])
            .unwrap()
        {
            praas_transport::Posted::Done => {
                posted += 1;
                assert!(posted < 100_000, "memory per channel is not bounded");
            }
            praas_transport::Posted::Busy => busy += 1,
        }
    }
    // Another client gets through as soon as the server looks.
    let theirs = other
        .endpoint
        .connect_any(&addresses, Kinds::all(), dial(Role::Client))
        .unwrap();
    let until = Instant::now() + PATIENCE;
    let mut sent = false;
    loop {
        assert!(Instant::now() < until);
        other.progress();
        pair.server.progress();
        if !sent && other.endpoint.info(theirs).is_some() {
            let outcome = other.endpoint.send(theirs, 1, u64::MAX, &[], &[]).unwrap();
            sent = outcome == praas_transport::Posted::Done;
        }
        let passed = |_, seen: &Seen| match seen {
            Seen::Message { tag: u64::MAX, .. } => Some(()),
            _ => None,
        };
        if pair.server.take(passed).is_some() {
            break;
        }
    }
    // Nothing of the first client's is lost, and it is told when there is room.
    let mut next = 0;
    pair.until(|pair| {
        while let Some((_, seen)) = pair.server.recorder.seen.pop_front() {
            if let Seen::Message { tag, payload, .. } = seen {
                assert_eq!(tag, next);
                assert_eq!(payload, body);
                next += 1;
            }
        }
        let writable = |_, seen: &Seen| matches!(seen, Seen::Writable).then_some(());
        (next == posted && pair.client.take(writable).is_some()).then_some(())
    });
}

/// Promise 3: both sides sending at once, large and small, never lock each other up.
pub fn both_sides_sending_at_once_do_not_deadlock(backend: Backend) {
    let mut pair = backend.pair();
    let count = 60_u64;
    let size = |at: u64| if at.is_multiple_of(3) { 300_000 } else { 3_000 };
    let mut next = [0_u64; 2];
    let mut got = [0_u64; 2];
    pair.until(|pair| {
        for side in 0..2 {
            let (node, channel) = match side {
                0 => (&mut pair.client, pair.to_server),
                _ => (&mut pair.server, pair.to_client),
            };
            if next[side] < count {
                let buf = Buf::from_vec(pattern(next[side], size(next[side])));
                let at = next[side];
                match node
                    .endpoint
                    .send_buf(channel, 1, at, &[], buf, at)
                    .unwrap()
                {
                    PostedBuf::Busy(_) => {}
                    PostedBuf::Done(_) | PostedBuf::Pending => next[side] += 1,
                }
            }
            while let Some((_, seen)) = node.recorder.seen.pop_front() {
                let (tag, payload) = match seen {
                    Seen::Message { tag, payload, .. } => (tag, payload),
                    Seen::Large { tag, payload, .. } => (tag, payload.to_vec()),
                    _ => continue,
                };
                assert!(payload == pattern(tag, size(tag)));
                got[side] += 1;
            }
        }
        (got == [count, count]).then_some(())
    });
}

/// Promise 3: a large message under way does not hold up small ones behind it.
pub fn bulk_does_not_delay_eager(backend: Backend) {
    let mut pair = backend.pair();
    send_until_posted(&mut pair, 64 << 20, 1);
    // The large one takes 128 rounds; injected delays hold a small one up for as many as twenty.
    let small = if backend.faulty { 5 } else { 20 };
    for _ in 0..small {
        message_passes(&mut pair);
        let done = |_, seen: &Seen| matches!(seen, Seen::Large { .. }).then_some(());
        assert!(
            pair.server.take(done).is_none(),
            "the large message was first"
        );
    }
    pair.until(|pair| {
        pair.server.take(|_, seen| match seen {
            Seen::Large { payload, .. } => {
                assert!(**payload == *pattern(1, 64 << 20));
                Some(())
            }
            _ => None,
        })
    });
}

/// Promise 4: a blocked endpoint wakes for a message, for a waker, and for its deadline.
pub fn warm_waiting_wakes(backend: Backend) {
    let mut pair = backend.pair();
    // Deadline: returns with nothing, and does not return at once for ever.
    let idle_until = Instant::now() + std::time::Duration::from_millis(50);
    while Instant::now() < idle_until {
        pair.server.endpoint.progress_wait(
            &mut pair.server.recorder,
            Some(idle_until),
            WaitMode::Warm,
        );
    }
    // Waker.
    let waker = pair.server.endpoint.waker();
    let thread = std::thread::spawn(move || waker.wake());
    let late = Instant::now() + PATIENCE;
    pair.server.endpoint.wait(Some(late));
    thread.join().expect("waker thread");
    assert!(Instant::now() < late, "the waker did not wake");
    // Messages, one at a time, both sides warm, each in its own thread.
    let rounds = 200_u64;
    let Pair {
        mut client,
        mut server,
        to_server,
        to_client,
    } = pair;
    let echo = std::thread::spawn(move || {
        warm_rounds(&mut server, rounds, |node, tag| {
            send_warm(node, to_client, tag)
        });
        server
    });
    send_warm(&mut client, to_server, 0);
    warm_rounds(&mut client, rounds, |node, tag| {
        if tag + 1 < rounds {
            send_warm(node, to_server, tag + 1);
        }
    });
    echo.join().expect("echo thread");
}

/// Promise 5: a closed channel delivers what was sent before, completes what was not, and is told
/// once.
pub fn closing_completes_everything(backend: Backend) {
    let mut pair = backend.pair();
    let channel = pair.to_server;
    for tag in 0..50 {
        pair.until(|pair| {
            let posted = pair
                .client
                .endpoint
                .send(channel, 1, tag, &[], &[b"last words"])
                .unwrap();
            (posted == praas_transport::Posted::Done).then_some(())
        });
    }
    pair.client.endpoint.close(channel);
    assert!(matches!(
        pair.client.endpoint.send(channel, 1, 0, &[], &[]),
        Err(SendError::NotOpen)
    ));
    let mut next = 0;
    let reason = pair.until(|pair| {
        while let Some((_, seen)) = pair.server.recorder.seen.pop_front() {
            match seen {
                Seen::Message { tag, .. } => {
                    assert_eq!(tag, next);
                    next += 1;
                }
                Seen::Close(reason) => return Some(reason),
                _ => {}
            }
        }
        None
    });
    assert_eq!(next, 50);
    assert!(matches!(reason, CloseReason::Closed), "{reason}");
    assert!(pair.server.endpoint.info(pair.to_client).is_none());
}

/// Promise 5: a peer that goes away with transfers in flight fails them, then the channel.
pub fn a_vanished_peer_fails_what_is_in_flight(backend: Backend) {
    let mut pair = backend.pair();
    pair.server.recorder.policy = Policy::Park;
    send_until_posted(&mut pair, 1 << 20, 42);
    pair.until(|pair| {
        pair.server
            .take(|_, seen| matches!(seen, Seen::Incoming { .. }).then_some(()))
    });
    let Pair {
        mut client, server, ..
    } = pair;
    drop(server);
    let until = Instant::now() + PATIENCE;
    let mut failed = false;
    loop {
        assert!(Instant::now() < until, "never told");
        client.progress();
        match client.recorder.seen.pop_front() {
            Some((
                _,
                Seen::Sent {
                    context: 42,
                    outcome,
                },
            )) => {
                assert_eq!(outcome, Err(SendFailure::Closed));
                failed = true;
            }
            Some((_, Seen::Close(_))) => break,
            _ => {}
        }
    }
    assert!(failed, "the transfer in flight was not completed");
}

/// Promise 5: a thousand connects and closes leave no descriptor, map or file behind.
pub fn connects_and_closes_leak_nothing(backend: Backend) {
    let mut server = Node::new(backend.config(2), "server", 3, Some(super::keyring()));
    let addresses = backend.listen_with(&mut server);
    let mut client = Node::new(backend.config(1), "", 0, None);
    let until = Instant::now() + PATIENCE;
    let mut before = Kept::default();
    for round in 0..1_000 {
        if round == 10 {
            before = Kept::now();
        }
        let channel = client
            .endpoint
            .connect_any(&addresses, Kinds::all(), dial(Role::Client))
            .unwrap();
        let mut closed = false;
        while !closed {
            assert!(Instant::now() < until, "round {round}");
            client.progress();
            server.progress();
            if client
                .take(|_, seen| matches!(seen, Seen::Open(_)).then_some(()))
                .is_some()
            {
                client.endpoint.close(channel);
            }
            closed = server
                .take(|_, seen| matches!(seen, Seen::Close(_)).then_some(()))
                .is_some();
        }
        server.recorder.seen.clear();
    }
    loop {
        let now = Kept::now();
        if now.at_most(&before, 8) {
            break;
        }
        assert!(Instant::now() < until, "{now:?}, {before:?} before");
        client.progress();
        server.progress();
    }
}

/// What this process holds that could be left behind, as /proc and the folder of shared memory
/// tell it.
#[derive(Debug, Default)]
struct Kept {
    descriptors: usize,
    /// Mapped memory that may be shared.
    maps: usize,
    /// Our files in the folder of shared memory, whoever made them.
    files: usize,
}

impl Kept {
    fn now() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let shared = |line: &&str| line.contains("/memfd:") || line.contains("/dev/shm/");
        let entries = |folder| std::fs::read_dir(folder).into_iter().flatten().flatten();
        let ours = |entry: &std::fs::DirEntry| {
            let name = entry.file_name();
            name.to_string_lossy().contains("praas")
        };
        Self {
            descriptors: entries("/proc/self/fd").count(),
            maps: maps.lines().filter(shared).count(),
            files: entries("/dev/shm").filter(ours).count(),
        }
    }

    fn at_most(&self, before: &Self, more: usize) -> bool {
        self.descriptors <= before.descriptors + more
            && self.maps <= before.maps + more
            && self.files <= before.files
    }
}

/// Promise 6: no ticket, a wrong key, an expired ticket, the wrong incarnation: refused with a
/// reason, and the listener serves on.
pub fn handshakes_are_refused_with_a_reason(backend: Backend) {
    use praas_transport::{Credential, Incarnation, Secret, Ticket};
    let mut pair = backend.pair();
    let addresses = pair.server.endpoint.addresses().to_vec();
    let good = Ticket {
        application: "conformance".into(),
        role: Role::Client,
        client_id: 0,
        expires_unix_ms: u64::MAX,
        key_id: 1,
    };
    let expired = Ticket {
        expires_unix_ms: 1,
        ..good.clone()
    };
    let revoked = Ticket {
        key_id: 0,
        ..good.clone()
    };
    let forged = Secret::from_bytes([1; 32]);
    let cases = [
        (
            Credential::issue(&super::secret(), &expired),
            0,
            RefuseReason::Expired,
        ),
        (
            Credential::issue(&super::secret(), &revoked),
            0,
            RefuseReason::UnknownKey,
        ),
        (Credential::issue(&forged, &good), 0, RefuseReason::BadProof),
        (
            Credential::issue(&super::secret(), &good),
            4,
            RefuseReason::WrongIncarnation,
        ),
        (
            Credential {
                ticket: b"nonsense".to_vec(),
                ..super::credential(Role::Client)
            },
            0,
            RefuseReason::Malformed,
        ),
    ];
    for (credential, expect, wanted) in cases {
        let dial = praas_transport::Dial {
            credential,
            expect: Incarnation(expect),
            deadline: None,
        };
        let channel = pair
            .client
            .endpoint
            .connect_any(&addresses, Kinds::all(), dial)
            .unwrap();
        let reason = pair.until(|pair| {
            pair.client.take(|id, seen| match seen {
                Seen::Close(reason) if id == channel => Some(reason.clone()),
                Seen::Open(_) if id == channel => panic!("let in: {wanted}"),
                _ => None,
            })
        });
        assert!(
            matches!(reason, CloseReason::Refused { reason, .. } if reason == wanted),
            "{reason}, not {wanted}"
        );
    }
    message_passes(&mut pair);
}

/// Promise 6: a newer incarnation of a process closes the channels of the older, and an older one
/// does not get in any more.
pub fn newer_incarnations_supersede(backend: Backend) {
    let mut pair = backend.pair();
    let addresses = pair.server.endpoint.addresses().to_vec();
    let mut lives: Vec<Node> = [5, 6, 4]
        .map(|life| Node::new(backend.config(life), "worker", life, None))
        .into();
    let mut channels = Vec::new();
    for life in &mut lives {
        channels.push(
            life.endpoint
                .connect_any(&addresses, Kinds::all(), dial(Role::Process))
                .unwrap(),
        );
        let until = Instant::now() + PATIENCE;
        while life.recorder.seen.is_empty() {
            assert!(Instant::now() < until);
            life.progress();
            pair.server.progress();
        }
    }
    let superseded = pair.until(|pair| {
        pair.server.take(|_, seen| match seen {
            Seen::Close(reason) => Some(reason.clone()),
            _ => None,
        })
    });
    assert!(
        matches!(superseded, CloseReason::Superseded),
        "{superseded}"
    );
    // The oldest is not let in, and hears why.
    let refused = lives[2].take(|_, seen| match seen {
        Seen::Close(CloseReason::Refused { reason, text }) => Some((*reason, text.clone())),
        _ => None,
    });
    let text = "worker is connected as incarnation 6".to_string();
    assert_eq!(refused, Some((RefuseReason::Superseded, text)));
    message_passes(&mut pair);
}

/// Promise 6: a listener that has all the channels it may have says so, and takes the next when
/// one has ended.
pub fn channels_above_the_limit_are_refused(backend: Backend) {
    let mut config = backend.config(2);
    config.channels_max = 1;
    let mut pair = backend.pair_with(backend.config(1), config);
    let addresses = pair.server.endpoint.addresses().to_vec();
    let mut second = Node::new(backend.config(3), "", 0, None);
    second
        .endpoint
        .connect_any(&addresses, Kinds::all(), dial(Role::Client))
        .unwrap();
    let closed = |_, seen: &Seen| match seen {
        Seen::Close(reason) => Some(reason.clone()),
        _ => None,
    };
    let reason = pair.until(|_| {
        second.progress();
        second.take(closed)
    });
    let CloseReason::Refused { reason, text } = reason else {
        panic!("{reason}");
    };
    assert_eq!(reason, RefuseReason::TooManyChannels, "{text}");
    message_passes(&mut pair);
    pair.client.endpoint.close(pair.to_server);
    pair.until(|pair| pair.server.take(closed));
    connects(&mut pair, &mut second, &addresses);
}

/// Promise 6: peers that connect and then say nothing, nonsense, or not the last word take no
/// channel's place and keep nobody out.
pub fn floods_of_strangers_keep_nobody_out(backend: Backend) {
    let mut config = backend.config(2);
    config.channels_max = 2;
    config.handshakes_max = 8;
    let mut pair = backend.pair_with(backend.config(1), config);
    let addresses = pair.server.endpoint.addresses().to_vec();
    // They show a good ticket and stop there, which is as far as one comes without its key.
    let mut strangers = Node::new(backend.config(3), "", 0, None);
    let mut raw = Vec::new();
    for at in 0..100 {
        if at % 2 == 0 {
            let dialled =
                strangers
                    .endpoint
                    .connect_any(&addresses, Kinds::all(), dial(Role::Client));
            dialled.expect("connect");
        }
        raw.extend(RawPeer::connect(&addresses[0]).map(|mut peer| {
            if at % 3 == 0 {
                peer.send(&pattern(at, 1500));
            }
            peer
        }));
        pair.server.progress();
    }
    message_passes(&mut pair);
    let mut good = Node::new(backend.config(4), "", 0, None);
    connects(&mut pair, &mut good, &addresses);
    message_passes(&mut pair);
    drop((raw, strangers));
}

/// Connects one more node to a pair's server.
fn connects(pair: &mut Pair, node: &mut Node, addresses: &[Address]) {
    let channel = node
        .endpoint
        .connect_any(addresses, Kinds::all(), dial(Role::Client))
        .unwrap();
    pair.until(|_| {
        node.progress();
        node.endpoint.info(channel).map(|_| ())
    });
}

/// A connection that is no endpoint's.
enum RawPeer {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl RawPeer {
    /// `None` where there are only endpoints.
    fn connect(address: &Address) -> Option<Self> {
        match address {
            Address::Tcp(at) | Address::Verbs(at) => {
                Some(Self::Tcp(TcpStream::connect(at).expect("connect")))
            }
            Address::Shm { name, .. } | Address::Unix { name, .. } => {
                let at = SocketAddr::from_abstract_name(name).expect("a name");
                Some(Self::Unix(UnixStream::connect_addr(&at).expect("connect")))
            }
            Address::Mem(_) => None,
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        // The listener may have hung up.
        let _ = match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        };
    }
}

fn send_until_posted(pair: &mut Pair, len: usize, context: u64) {
    let channel = pair.to_server;
    let mut buf = Some(Buf::from_vec(pattern(context, len)));
    pair.until(|pair| {
        let posted = pair
            .client
            .endpoint
            .send_buf(channel, 1, context, &[], buf.take()?, context);
        match posted.unwrap() {
            PostedBuf::Busy(again) => {
                buf = Some(again);
                None
            }
            PostedBuf::Done(_) | PostedBuf::Pending => Some(()),
        }
    });
}

fn message_passes(pair: &mut Pair) {
    let channel = pair.to_server;
    pair.until(|pair| {
        let posted = pair
            .client
            .endpoint
            .send(channel, 2, 123, b"head", &[b"pay", b"load"]);
        (posted.unwrap() == praas_transport::Posted::Done).then_some(())
    });
    pair.until(|pair| {
        pair.server.take(|_, seen| match seen {
            Seen::Message {
                am: 2,
                tag: 123,
                header,
                payload,
            } => {
                assert_eq!((&header[..], &payload[..]), (&b"head"[..], &b"payload"[..]));
                Some(())
            }
            _ => None,
        })
    });
}

fn send_warm(node: &mut Node, channel: praas_transport::ChannelId, tag: u64) {
    let until = Instant::now() + PATIENCE;
    while node
        .endpoint
        .send(channel, 3, tag, &[], &[b"warm"])
        .unwrap()
        == praas_transport::Posted::Busy
    {
        assert!(Instant::now() < until);
        node.endpoint
            .progress_wait(&mut node.recorder, Some(until), WaitMode::Warm);
    }
}

fn warm_rounds(node: &mut Node, rounds: u64, mut then: impl FnMut(&mut Node, u64)) {
    let until = Instant::now() + PATIENCE;
    let mut next = 0;
    while next < rounds {
        assert!(Instant::now() < until, "no wake-up for message {next}");
        let message = node.take(|_, seen| match seen {
            Seen::Message { tag, .. } => Some(*tag),
            _ => None,
        });
        match message {
            Some(tag) => {
                assert_eq!(tag, next);
                then(node, tag);
                next += 1;
            }
            None => {
                node.endpoint
                    .progress_wait(&mut node.recorder, Some(until), WaitMode::Warm);
            }
        }
    }
}
