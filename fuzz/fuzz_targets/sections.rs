//! The mailbox and the sessions of a swap image.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::swap::fuzz_sections(bytes));
