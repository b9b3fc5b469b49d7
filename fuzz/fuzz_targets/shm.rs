//! A shared segment that a hostile peer writes to at will.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_transport::fuzz_shm(bytes));
