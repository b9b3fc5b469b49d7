//! Conformance suite, fault harness, end-to-end tests, golden files.
