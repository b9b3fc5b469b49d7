//! Frame headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_transport::wire::fuzz_frame(bytes));
