//! The gateway: invocations that came over HTTP go out over the data plane.
//!
//! ```text
//!   POST .../invoke/f --> control plane --> ClusterGateway --> AsyncClient of the application
//!                         (process, ticket)                         \--channel--> host
//! ```
//!
//! One client per application, with a thread and an endpoint of its own, is kept for as long as it
//! is used; the control plane says with every invocation where the process is and what opens it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use praas_control::gateway::BoxFuture;
use praas_control::{Gateway, GatewayError, GatewayInvocation};
use praas_runtime::client::{AsyncClient, CallOptions, ClientConfig, CoreLimits, Directory};
use praas_runtime::directory::Resolved;
use praas_runtime::invocation::InvokeError;
use praas_transport::{Incarnation, TransportConfig, WaitMode};

/// Applications whose clients are kept; the longest unused makes room.
const CLIENTS_MAX: usize = 64;

/// How long a process that was ready a moment ago is tried again before the caller hears of it.
const RECONNECT_FOR: Duration = Duration::from_secs(5);

/// Invokes over the data plane.
#[derive(Debug)]
pub struct ClusterGateway {
    clients: Mutex<HashMap<String, Kept>>,
    transport: TransportConfig,
}

#[derive(Debug)]
struct Kept {
    client: AsyncClient,
    used: Instant,
}

impl ClusterGateway {
    /// A gateway whose endpoints have these settings.
    pub fn new(transport: TransportConfig) -> Arc<Self> {
        Arc::new(Self {
            clients: Mutex::default(),
            transport,
        })
    }

    /// The application's client, told where the process is.
    fn client(&self, invocation: &GatewayInvocation) -> Result<AsyncClient, GatewayError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let used = Instant::now();
        if !clients.contains_key(&invocation.application) {
            if clients.len() >= CLIENTS_MAX {
                let oldest = clients.iter().min_by_key(|(_, kept)| kept.used);
                let oldest = oldest.map(|(name, _)| name.clone());
                // Its calls go on: each holds the client.
                oldest.and_then(|name| clients.remove(&name));
            }
            let client = self.client_make(invocation)?;
            clients.insert(invocation.application.clone(), Kept { client, used });
        }
        let Some(kept) = clients.get_mut(&invocation.application) else {
            return Err(GatewayError::Process("the gateway has no client".into()));
        };
        kept.used = used;
        let resolved = Resolved {
            incarnation: Incarnation(invocation.incarnation),
            addresses: invocation.addresses.clone(),
        };
        kept.client
            .process_place(&invocation.process, resolved, invocation.credential.clone());
        Ok(kept.client.clone())
    }

    fn client_make(&self, invocation: &GatewayInvocation) -> Result<AsyncClient, GatewayError> {
        let nobody = Directory::Fixed(std::collections::BTreeMap::new());
        let mut config = ClientConfig::new(nobody, invocation.credential.clone());
        config.transport = self.transport.clone();
        // The control plane shares its processors with the hosts that it speaks to.
        config.wait = WaitMode::Warm;
        config.limits = CoreLimits {
            reconnect_for: RECONNECT_FOR,
            ..CoreLimits::default()
        };
        AsyncClient::new(config)
            .map_err(|error| GatewayError::Process(format!("the gateway has no client: {error}")))
    }
}

impl Gateway for ClusterGateway {
    fn invoke(&self, invocation: GatewayInvocation) -> BoxFuture<Result<Vec<u8>, GatewayError>> {
        let client = self.client(&invocation);
        Box::pin(async move {
            let client = client?;
            let GatewayInvocation {
                process,
                function,
                input,
                deadline,
                ..
            } = invocation;
            let options = CallOptions {
                deadline: Some(deadline),
                ..CallOptions::default()
            };
            let outcome = client.invoke(&process, &function, input, options).await;
            match outcome {
                Ok(output) => Ok(output.to_vec()),
                Err(error) => Err(error_map(process, error)),
            }
        })
    }
}

/// What a failed invocation is over HTTP.
fn error_map(process: String, error: InvokeError) -> GatewayError {
    let text = error.to_string();
    match error {
        InvokeError::Function(text) => GatewayError::Function(text),
        InvokeError::Panicked(_) => GatewayError::Function(text),
        InvokeError::UnknownFunction(function) => {
            GatewayError::UnknownFunction { process, function }
        }
        InvokeError::DeadlineExceeded => GatewayError::Deadline,
        InvokeError::Exhausted(_) | InvokeError::MailboxFull(_) => GatewayError::Busy(text),
        InvokeError::TooLarge(_) => GatewayError::TooLarge(text),
        _ => GatewayError::Process(format!("process {process:?}: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_meaning() {
        let map = |error| error_map("p".into(), error);
        assert_eq!(
            map(InvokeError::Function("no".into())),
            GatewayError::Function("no".into())
        );
        assert_eq!(
            map(InvokeError::UnknownFunction("f".into())),
            GatewayError::UnknownFunction {
                process: "p".into(),
                function: "f".into()
            }
        );
        assert_eq!(map(InvokeError::DeadlineExceeded), GatewayError::Deadline);
        assert!(matches!(
            map(InvokeError::Exhausted("x".into())),
            GatewayError::Busy(_)
        ));
        assert!(matches!(
            map(InvokeError::TooLarge("x".into())),
            GatewayError::TooLarge(_)
        ));
        let panicked = map(InvokeError::Panicked("boom".into()));
        assert_eq!(
            panicked,
            GatewayError::Function("the function panicked: boom".into())
        );
        let lost = map(InvokeError::OutcomeUnknown).to_string();
        assert!(lost.contains("not known"), "{lost}");
    }
}
