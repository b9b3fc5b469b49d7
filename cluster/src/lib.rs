//! Launchers, topology, the node agent, and the `praas` command.

pub mod cli;
