//! Criterion micro-benchmarks and side-by-side runs.
