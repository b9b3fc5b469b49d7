//! World views.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::world::fuzz_world(bytes));
