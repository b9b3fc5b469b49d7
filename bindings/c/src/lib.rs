//! praas for C and C++.
//!
//! ```text
//!   include/praas.h         functions: the tables of the ABI, printed, and helpers around them
//!   include/praas_client.h  clients: this library, libpraas_client
//! ```
//!
//! `praas.h` is printed from `runtime/src/abi/table.rs` by a test (`tests/header.rs`), which fails
//! when the two part; `header/` has what is around the tables. A module needs the header and a C
//! compiler, and is linked to nothing.
