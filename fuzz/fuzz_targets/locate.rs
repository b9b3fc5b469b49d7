//! Reads of state: header and payload of a message.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::locate::fuzz_locate(bytes));
