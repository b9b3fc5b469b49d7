//! Criterion micro-benchmarks and side-by-side runs.

pub mod hot;
