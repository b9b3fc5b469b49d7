//! Why nothing could be measured.

use std::io;
use std::process::ExitStatus;

use praas_transport::TransportKind;

use super::plan::{BYTES_MAX, WINDOW_MAX};
use super::{Bench, What};

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A transport that does not reach a peer on another host.
    #[error(
        "'{0}' stays within a host: without --connect it is measured here, with it measure tcp"
    )]
    Transport(TransportKind),
    /// A size out of range.
    #[error("{0} bytes are too many: measure at most {BYTES_MAX}")]
    Size(usize),
    /// What there is not.
    #[error("'{what}' is not measured for {bench}")]
    What {
        /// What was asked for.
        what: What,
        /// Of what.
        bench: Bench,
    },
    /// A window out of range.
    #[error("a window of {0} messages cannot be: use 1 to {WINDOW_MAX}")]
    Window(usize),
    /// A list with nothing in it, or no time.
    #[error("nothing to measure: {0} is empty")]
    Nothing(&'static str),
    /// The secret of a measurement between hosts cannot be used.
    #[error("the secret {0}")]
    Secret(String),
    /// The system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What failed.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The peer did not start, fails or has ended.
    #[error("the peer process {0}")]
    Peer(String),
    /// The peer process of this host ended in the middle.
    #[error("the peer process ended in the middle ({0})")]
    PeerEnded(ExitStatus),
    /// The other host does not let us in.
    #[error("{address} refuses to measure: {reason}")]
    Refused {
        /// Who.
        address: String,
        /// Why.
        reason: String,
    },
    /// An endpoint of ours fails.
    #[error(transparent)]
    Transported(#[from] praas_transport::TransportError),
    /// A message cannot be sent.
    #[error("cannot send {bytes} bytes: {source}")]
    Send {
        /// Bytes of payload.
        bytes: usize,
        /// Why.
        source: praas_transport::SendError,
    },
    /// No memory for payloads.
    #[error("no memory for {bytes} bytes of payload: {reason}")]
    Memory {
        /// Bytes of payload.
        bytes: usize,
        /// Why.
        reason: String,
    },
    /// The client cannot be made.
    #[error(transparent)]
    Client(#[from] praas_runtime::client::ClientError),
    /// An invocation failed.
    #[error("cannot invoke '{function}': {source}")]
    Invoke {
        /// The function.
        function: &'static str,
        /// Why.
        source: praas_runtime::invocation::InvokeError,
    },
    /// A process could not be swapped.
    #[error(transparent)]
    Swap(#[from] praas_runtime::swap::SwapError),
    /// A storage cannot be used.
    #[error("cannot use the storage")]
    Storage(#[source] praas_runtime::swap::StorageError),
    /// The cluster that is measured does not do what it should.
    #[error("cannot {doing}")]
    Cluster {
        /// What was asked of it.
        doing: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The results cannot be written.
    #[error("cannot write the results: {0}")]
    Output(#[source] io::Error),
}

impl BenchError {
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    pub(super) fn cluster<E: std::error::Error + Send + Sync + 'static>(
        doing: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |source| Self::Cluster {
            doing,
            source: Box::new(source),
        }
    }

    /// Whether it is about how it was asked for.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Transport(_)
                | Self::Size(_)
                | Self::Window(_)
                | Self::What { .. }
                | Self::Nothing(_)
                | Self::Secret(_)
        )
    }
}
