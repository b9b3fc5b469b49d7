//! What a verbs peer says of its queue pair and its memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_transport::fuzz_verbs(bytes));
