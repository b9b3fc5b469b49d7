//! What a caller still knows of invocations that it does not wait for.

use crate::invocation::{InvokeError, Payload};

/// What became of one-way invocations of a client or a process so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OneWayTally {
    /// Neither begun nor failed yet: these are sent, and sent again, until one of it is known.
    pub pending: u64,
    /// Their functions have begun.
    pub begun: u64,
    /// They did not begin, or whether they did is not known.
    pub failed: u64,
    /// Why the last of those failed.
    pub error: Option<InvokeError>,
}

impl OneWayTally {
    /// One more is known of. A failure has nobody else to be told to, so it is logged here.
    pub(super) fn ended(
        &mut self,
        process: &str,
        function: &str,
        outcome: &Result<Payload, InvokeError>,
    ) {
        self.pending -= 1;
        match outcome {
            Ok(_) => self.begun += 1,
            Err(error) => {
                self.failed += 1;
                tracing::warn!(process, function, %error, "a one-way invocation did not begin");
                self.error = Some(error.clone());
            }
        }
    }
}
