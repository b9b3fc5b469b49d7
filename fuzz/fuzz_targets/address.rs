//! Addresses.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_transport::address::fuzz_address(bytes));
