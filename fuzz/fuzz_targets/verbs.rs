//! What a peer says of its RDMA ports and queue pairs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_transport::fuzz_verbs(bytes));
