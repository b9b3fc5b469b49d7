//! Typed values, and inputs of the functions that every process has.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::codec::fuzz_codec(bytes));
