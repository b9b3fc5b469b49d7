//! How channels end, as the other side hears of it.

use std::time::Instant;

use praas_transport::{CloseReason, TransportKind};

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
        while let Ok(praas_transport::Posted::Done) =
            client.endpoint.send(to_server, 1, 0, &[], &[&[1; 100]])
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
