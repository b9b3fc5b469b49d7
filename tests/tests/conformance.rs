//! Every backend is held to every promise.

use praas_tests::conformance::{self, Node, Pair, Seen};
use praas_transport::{Buf, Listen, TransportKind, UnixPlace};

macro_rules! conformance {
    ($($module:ident => $kind:ident, $faulty:literal, $any:literal;)*) => {
        $(conformance!(@promises $module, $kind, $faulty, $any,
            messages_arrive_whole_once_in_order
            what_was_taken_arrives_by_itself
            channels_open_before_their_messages
            oversized_messages_are_refused
            oversized_announcements_are_refused
            large_messages_can_be_parked_and_refused
            lists_arrive_as_one
            one_sided_operations_work
            large_one_sided_operations_are_whole
            one_sided_operations_fail_safely
            one_sided_operations_keep_their_order
            one_sided_operations_push_back
            one_sided_operations_end_with_the_channel
            a_slow_reader_stalls_only_its_own_channel
            both_sides_sending_at_once_do_not_deadlock
            bulk_does_not_delay_eager
            warm_waiting_wakes
            closing_completes_everything
            a_good_end_is_told_to_who_sends
            what_was_hot_is_woken_when_it_sleeps
            both_sides_on_one_processor_get_on
            the_next_address_is_tried_if_one_fails
            a_vanished_peer_fails_what_is_in_flight
            connects_and_closes_leak_nothing
            handshakes_are_refused_with_a_reason
            newer_incarnations_supersede
            channels_above_the_limit_are_refused
            floods_of_strangers_keep_nobody_out
        );)*
    };
    (@promises $module:ident, $kind:ident, $faulty:literal, $any:literal, $($promise:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $promise() {
                let backend =
                    conformance::Backend {
                        kind: TransportKind::$kind,
                        faulty: $faulty,
                        any: $any,
                    };
                conformance::hold(backend, stringify!($promise), conformance::$promise);
            })*
        }
    };
}

conformance! {
    mem => Mem, false, false;
    mem_faulty => Mem, true, false;
    shm => Shm, false, false;
    shm_faulty => Shm, true, false;
    unix => Unix, false, false;
    unix_faulty => Unix, true, false;
    verbs => Verbs, false, false;
    verbs_faulty => Verbs, true, false;
    tcp => Tcp, false, false;
    tcp_faulty => Tcp, true, false;
    any => Shm, false, true;
    any_faulty => Unix, true, true;
}

/// Unix sockets at paths serve where abstract ones cannot be reached; both lanes go there.
#[test]
fn unix_sockets_at_paths_carry_all_and_leave_nothing() {
    let backend = conformance::Backend {
        kind: TransportKind::Unix,
        faulty: false,
        any: false,
    };
    let dir = tempfile::tempdir().unwrap();
    let mut server = Node::new(backend.config(1), "server", 3, Some(conformance::keyring()));
    let place = UnixPlace::Folder(dir.path().into());
    let address = server.endpoint.listen(&Listen::Unix(place)).unwrap();
    assert!(address.to_string().contains(dir.path().to_str().unwrap()));
    let client = Node::new(backend.config(2), "", 0, None);
    let mut pair = Pair::connect(client, server, &[address]);
    let channel = pair.to_server;
    assert_eq!(
        pair.client.endpoint.info(channel).unwrap().kind,
        TransportKind::Unix
    );
    let large: Vec<u8> = (0..3 << 20).map(|at| (at % 251) as u8).collect();
    let payload = Buf::from_vec(large.clone());
    let posted = pair
        .client
        .endpoint
        .send_buf(channel, 1, 7, &[], payload, 0);
    drop(posted.unwrap());
    let got = pair.until(|pair| {
        pair.server.take(|_, seen| match seen {
            Seen::Large { payload, .. } => Some(payload.to_vec()),
            _ => None,
        })
    });
    assert!(got == large);
    drop(pair);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
