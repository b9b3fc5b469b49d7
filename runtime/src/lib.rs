//! Cloud processes: functions, invocations, state, mailboxes, swap, and the client SDK.
