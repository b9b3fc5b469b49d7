//! The thin control plane: API types, server, store, client, placement and swap policy.
//!
//! ```text
//!   HTTP (server) --requests--> core thread: Registry (sans-IO) --> store (redb)
//!        ^                         |    ^
//!        |  answers                v    |  what agents say
//!        +----------------------- agents' link (one thread, one endpoint)
//! ```
//!
//! It is off the data path: it decides which node starts, swaps and stops which process, and
//! remembers what it acknowledged. Agents dial it ([`agent`]), clients speak HTTP to it
//! ([`client`]); it never speaks to a host.

pub mod agent;
pub mod api;
pub mod client;
pub mod config;
mod control;
mod core;
pub mod error;
mod files;
pub mod gateway;
pub mod machine;
mod metrics;
pub mod policy;
mod server;
pub mod store;
mod tokens;

pub use client::{ClientError, ControlClient, Invocation};
pub use config::ControlConfig;
pub use control::{Control, ControlError, ControlHandle, RunPaths};
pub use error::{ErrorKind, Failure, Problem};
pub use files::{ControlAddr, cluster_secret_load};
pub use gateway::{Gateway, GatewayError, GatewayInvocation, NoGateway, Repeatable};
pub use server::openapi_json;
