//! Tickets.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_transport::ticket::fuzz_ticket(bytes));
