//! The lab: the transport conformance suite, the fault harness, and what end-to-end tests share.

pub mod c;
pub mod checker;
pub mod cluster_lab;
pub mod conformance;
pub mod golden;
pub mod lab;
pub mod simulation;
pub mod storages;
