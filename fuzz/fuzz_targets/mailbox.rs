//! Puts: header, key and body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::invocation::fuzz_put(bytes));
