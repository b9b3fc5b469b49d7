//! The client: one sans-IO core, and two shells around it.
//!
//! ```text
//!   Client (blocking, owns its endpoint)     AsyncClient (tokio; a thread owns the endpoint)
//!            \                                  /
//!             Shell: handler, waiting, results
//!                        |
//!             Peers: the core wired to an endpoint ---- directory
//!                        |
//!             ClientCore: calls, sequence numbers, retries, deadlines; no socket, no clock
//! ```

mod asynchronous;
mod blocking;
mod core;
mod one_way;
mod peers;
mod shell;
mod stepped;

pub use self::asynchronous::{AsyncClient, OneWay};
pub use self::blocking::{Client, FunctionRef};
pub use self::core::{
    CallId, CallOptions, ClientCore, Completed, CoreLimits, Link, Refusal, Sent, Target,
};
pub use self::one_way::OneWayTally;
pub use self::peers::{Directory, Peers};
pub(crate) use self::shell::result_accept;
pub use self::shell::{ClientConfig, ClientError};
