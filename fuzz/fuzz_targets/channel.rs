//! Control frames and bulk bytes of an authenticated peer that lies.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_transport::fuzz_channel(bytes));
