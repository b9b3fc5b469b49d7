//! Requests to a directory, and its answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::directory::fuzz_directory(bytes));
