//! Messages between agent and host.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::host::fuzz_host(bytes));
