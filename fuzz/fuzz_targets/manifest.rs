//! Manifests of swapped processes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| praas_runtime::swap::fuzz_manifest(bytes));
