//! Headers of invocations and replies.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::invocation::fuzz_headers(bytes));
