//! Both sides of the handshake, in each of their states.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_transport::wire::fuzz_handshake(bytes));
