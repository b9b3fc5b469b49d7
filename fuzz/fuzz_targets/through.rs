//! State objects that were written through.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::swap::fuzz_through(bytes));
