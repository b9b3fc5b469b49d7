//! What the control plane wants of the data plane: one call, for invocations over HTTP.
//!
//! It is implemented where both planes meet, in the cluster crate; the control plane itself never
//! speaks to a host.

use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

use praas_transport::{Address, Credential};

use crate::error::{ErrorKind, Failure};

/// A future on the heap.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An invocation that came over HTTP.
#[derive(Debug, Clone)]
pub struct GatewayInvocation {
    /// The application.
    pub application: String,
    /// The process, which was ready a moment ago.
    pub process: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// Where its host listens.
    pub addresses: Vec<Address>,
    /// What opens a channel to it, as a client, until after the deadline.
    pub credential: Credential,
    /// The function.
    pub function: String,
    /// Its input.
    pub input: Vec<u8>,
    /// When the answer is no longer wanted.
    pub deadline: Instant,
    /// The answer is that the function has begun; its output is not wanted.
    pub one_way: bool,
    /// It may be a repetition of one that was made before.
    pub repeatable: Option<Repeatable>,
}

/// An invocation with an identity of its own, under which it runs at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeatable {
    /// The client id, which the credential holds, too. Its first invocation is this one.
    pub client_id: u128,
    /// The incarnation that the first attempt went to, if the caller knows it.
    pub first: Option<u64>,
}

impl Repeatable {
    /// The identity that a key of the caller's stands for: a BLAKE3 hash of application, process,
    /// function and key.
    pub fn new(of: [&str; 3], key: &str, first: Option<u64>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("praas invocation by idempotency key");
        for part in of.into_iter().chain([key]) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self {
            // Zero stands for any client.
            client_id: u128::from_le_bytes(id) | 1,
            first,
        }
    }
}

/// Why an invocation has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// The process has no such function.
    #[error("process {process:?} has no function {function:?}")]
    UnknownFunction {
        /// The process.
        process: String,
        /// The function.
        function: String,
    },
    /// The function ran and failed.
    #[error("{0}")]
    Function(String),
    /// The process cannot be reached, or died meanwhile.
    #[error("{0}")]
    Process(String),
    /// The process has no room for more.
    #[error("{0}")]
    Busy(String),
    /// Input or output is above a limit of the data plane.
    #[error("{0}")]
    TooLarge(String),
    /// The same invocation, by its key, is under way.
    #[error("{0}")]
    UnderWay(String),
    /// The deadline passed.
    #[error("no result within the deadline")]
    Deadline,
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        let kind = match &error {
            GatewayError::UnknownFunction { .. } => ErrorKind::NotFound,
            GatewayError::Function(_) => ErrorKind::FunctionFailed,
            GatewayError::Process(_) => ErrorKind::ProcessFailed,
            GatewayError::Busy(_) => ErrorKind::LimitReached,
            GatewayError::TooLarge(_) => ErrorKind::TooLarge,
            GatewayError::UnderWay(_) => ErrorKind::Conflict,
            GatewayError::Deadline => ErrorKind::Timeout,
        };
        Failure::new(kind, error.to_string())
    }
}

/// Invokes functions on the data plane.
pub trait Gateway: Send + Sync {
    /// Invokes a function and gives its output; nothing, once it has begun, if it is one-way.
    fn invoke(&self, invocation: GatewayInvocation) -> BoxFuture<Result<Vec<u8>, GatewayError>>;
}

/// A gateway where there is no data plane: every invocation is an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoGateway;

impl Gateway for NoGateway {
    fn invoke(&self, _: GatewayInvocation) -> BoxFuture<Result<Vec<u8>, GatewayError>> {
        let error = GatewayError::Process("this control plane has no gateway".into());
        Box::pin(std::future::ready(Err(error)))
    }
}
