//! The lab: the transport conformance suite, the fault harness, and what end-to-end tests share.

pub mod c;
pub mod checker;
pub mod cluster_lab;
pub mod conformance;
pub mod golden;
pub mod lab;
<<<<<<< HEAD
pub mod simulation;
=======
pub mod storages;
>>>>>>> 248cf6f (Keep swap images on S3 and on Redis, each held to every promise)
