//! Words, headers and pieces of a transfer, and what a target makes of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::transfer::fuzz_transfer(bytes));
