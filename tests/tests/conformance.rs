//! Every backend is held to every promise.

use praas_tests::conformance;
use praas_transport::TransportKind;

macro_rules! conformance {
    ($($module:ident => $kind:ident, $faulty:literal;)*) => {
        $(conformance!(@promises $module, $kind, $faulty,
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
            a_vanished_peer_fails_what_is_in_flight
            connects_and_closes_leak_nothing
            handshakes_are_refused_with_a_reason
            newer_incarnations_supersede
            channels_above_the_limit_are_refused
            floods_of_strangers_keep_nobody_out
        );)*
    };
    (@promises $module:ident, $kind:ident, $faulty:literal, $($promise:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $promise() {
                let backend =
                    conformance::Backend { kind: TransportKind::$kind, faulty: $faulty };
                conformance::hold(backend, stringify!($promise), conformance::$promise);
            })*
        }
    };
}

conformance! {
    mem => Mem, false;
    mem_faulty => Mem, true;
    shm => Shm, false;
    shm_faulty => Shm, true;
    tcp => Tcp, false;
    tcp_faulty => Tcp, true;
}
