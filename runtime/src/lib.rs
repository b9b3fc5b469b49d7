//! Cloud processes: functions, invocations, state, mailboxes, swap, and the client SDK.

pub mod codec;
pub mod mailbox;
pub mod state;
