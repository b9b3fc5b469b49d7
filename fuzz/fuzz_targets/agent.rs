//! Messages between control plane and agent.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_control::agent::fuzz_agent(bytes));
