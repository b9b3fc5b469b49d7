//! Chunks of swapped processes, compressed and not.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::swap::fuzz_chunk(bytes));
