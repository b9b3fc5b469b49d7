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
mod order;
mod peers;
mod shell;
mod stepped;

pub use self::asynchronous::{AsyncClient, OneWay};
pub use self::blocking::{Client, FunctionRef};
pub use self::core::{
    CallId, CallOptions, ClientCore, Completed, CoreLimits, FunctionId, Link, Refusal, Sent, Target,
};
pub use self::one_way::OneWayTally;
pub use self::peers::{Directory, Peers};
pub use self::shell::{ClientConfig, ClientError};
pub(crate) use self::shell::{result_accept, state_take};
use crate::invocation::{InvokeError, Payload};

/// A state object of a process, as it was at a moment within the read.
#[derive(Debug, Clone)]
pub struct StateObject {
    /// Its bytes.
    pub bytes: Payload,
    /// Its version: it grows with every write.
    pub version: u64,
}

impl Completed {
    /// What came of a read of state: none, if there is no such object.
    ///
    /// # Errors
    /// See [`InvokeError`].
    pub fn object(self) -> Result<Option<StateObject>, InvokeError> {
        let version = self.version;
        let bytes = self.outcome?;
        Ok((version != 0).then_some(StateObject { bytes, version }))
    }
}
