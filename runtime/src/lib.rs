//! Cloud processes: functions, invocations, state, mailboxes, swap, and the client SDK.

pub mod client;
pub mod codec;
pub mod directory;
pub mod function;
pub mod host;
pub mod invocation;
pub mod mailbox;
pub mod process;
pub mod services;
pub mod state;
pub mod swap;
pub mod world;
