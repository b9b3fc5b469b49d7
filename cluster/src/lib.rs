//! Launchers, topology, the node agent, and the `praas` command.
//!
//! ```text
//!   praas up --> launch --> praas control   (control plane, gateway)
//!                      \--> praas agent     (one per node) --> praas host   (one per process)
//!   praas invoke, put, get, demo, bench --> session --HTTP--> control
//!                                                   \--data plane--> agent's directory, hosts
//! ```
//!
//! All that one control plane or agent leaves on a node lies in one run directory ([`run_dir`]).

pub mod agent;
pub mod bench;
pub mod cli;
pub mod config;
pub mod control_plane;
pub mod daemon;
pub mod demo;
mod errors;
pub mod gateway;
pub mod host;
pub mod launch;
pub mod run_dir;
pub mod session;
pub mod spawn;
pub mod storage;
pub mod topology;
mod unix_path;
