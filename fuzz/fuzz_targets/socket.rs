//! What comes over the socket of a shared-memory channel.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_transport::fuzz_socket(bytes));
