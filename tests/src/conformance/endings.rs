//! How channels end and sleep, as the other side hears of it.

use std::time::Instant;

use praas_transport::{CloseReason, Posted, TransportKind};

use super::{Backend, PATIENCE, Seen};

/// Promise 1 and 5: a peer that closes in good order has not died, though we are sending.
pub fn a_good_end_is_told_to_who_sends(backend: Backend) {
    const ROUNDS: usize = 50;
    for round in 0..ROUNDS {
        let mut pair = backend.pair();
        let (to_server, to_client) = (pair.to_server, pair.to_client);
        let at_once = round % 2 == 0 && backend.kind != TransportKind::Tcp;
        let client = &mut pair.client;
        let mut server = Some(pair.server);
        // What is unread when the other side ends is lost; its last word is not.
        while let Ok(Posted::Done) = client.endpoint.send(to_server, 1, 0, &[], &[&[1; 100]])
            && fastrand::u8(..) > 8
        {}
        if let Some(server) = &mut server {
            server.endpoint.close(to_client);
        }
        if at_once {
            // The end of the process: nobody is left to read what is still sent.
            server = None;
        }
        let until = Instant::now() + PATIENCE;
        let reason = loop {
            assert!(Instant::now() < until, "the end is not told");
            // Busy, or not open any more: the end comes all the same.
            let _ = client.endpoint.send(to_server, 1, 0, &[], &[&[1; 100]]);
            client.progress();
            if let Some(server) = &mut server {
                server.progress();
            }
            let closed = client.take(|_, seen| match seen {
                Seen::Close(reason) => Some(reason.clone()),
                _ => None,
            });
            if let Some(reason) = closed {
                break reason;
            }
        };
        assert!(matches!(reason, CloseReason::Closed), "{reason}");
    }
}

/// Promise 4: a channel that was busy for long is woken as any other once its endpoint sleeps.
pub fn what_was_hot_is_woken_when_it_sleeps(backend: Backend) {
    // Long enough for whatever an endpoint does about channels that it polls all the time.
    const ROUNDS: usize = 3_000;
    let mut pair = backend.pair();
    let to_client = pair.to_client;
    for round in 0..3 {
        for _ in 0..ROUNDS {
            pair.client.progress();
            pair.server.progress();
        }
        let until = Instant::now() + PATIENCE;
        while !pair.client.endpoint.arm() {
            assert!(Instant::now() < until, "never idle");
            pair.client.progress();
        }
        let until = Instant::now() + PATIENCE;
        while pair
            .server
            .endpoint
            .send(to_client, 1, round, &[], &[b"up"])
            .unwrap()
            == Posted::Busy
        {
            assert!(Instant::now() < until, "no room");
            pair.server.progress();
        }
        let late = Instant::now() + PATIENCE;
        loop {
            pair.client.endpoint.wait(Some(late));
            pair.client.progress();
            let got = |_, seen: &Seen| matches!(seen, Seen::Message { .. }).then_some(());
            if pair.client.take(got).is_some() {
                break;
            }
            assert!(Instant::now() < late, "nothing wakes the sleeper");
        }
    }
}
