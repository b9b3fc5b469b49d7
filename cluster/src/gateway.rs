//! The gateway: invocations that came over HTTP go out over the data plane.
//!
//! ```text
//!   POST .../invoke/f --> control plane --> ClusterGateway --> AsyncClient of the application
//!                         (process, ticket)                         \--channel--> host
//! ```
//!
//! One client per application, with a thread and an endpoint of its own, is kept for as long as it
//! is used; the control plane says with every invocation where the process is and what opens it.
//!
//! An invocation that may be repeated has a client of its own, whose id is the invocation's: hosts
//! remember results by client and sequence, and this is the client's first. So whoever repeats it,
//! through this gateway or a later one, is the same client to the host, and gets the same result.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use praas_control::gateway::BoxFuture;
use praas_control::{Gateway, GatewayError, GatewayInvocation, Repeatable};
use praas_runtime::client::{AsyncClient, CallOptions, ClientConfig, CoreLimits, Directory};
use praas_runtime::directory::Resolved;
use praas_runtime::invocation::{InvokeError, Payload};
use praas_transport::{Incarnation, TransportConfig, WaitMode};

/// Applications whose clients are kept; the longest unused makes room.
const CLIENTS_MAX: usize = 64;

/// Invocations that may be repeated and are under way at a time: each has a thread and a channel.
const REPEATABLE_MAX: usize = 256;

/// How long a process that was ready a moment ago is tried again before the caller hears of it.
const RECONNECT_FOR: Duration = Duration::from_secs(5);

/// Invokes over the data plane.
#[derive(Debug)]
pub struct ClusterGateway {
    clients: Mutex<HashMap<String, Kept>>,
    /// Invocations that may be repeated and are under way.
    repeatable: Arc<Mutex<HashSet<u128>>>,
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
            repeatable: Arc::default(),
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
        place(&kept.client, invocation);
        Ok(kept.client.clone())
    }

    /// A client for one invocation that may be repeated, and its place among those.
    fn client_alone(
        &self,
        invocation: &GatewayInvocation,
        repeatable: Repeatable,
    ) -> Result<(AsyncClient, UnderWay), GatewayError> {
        let under_way = UnderWay::enter(&self.repeatable, repeatable.client_id)?;
        let client = self.client_make(invocation)?;
        place(&client, invocation);
        Ok((client, under_way))
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
        let first = invocation.repeatable.and_then(|known| known.first);
        config.repeats = first.map(Incarnation);
        AsyncClient::new(config)
            .map_err(|error| GatewayError::Process(format!("the gateway has no client: {error}")))
    }
}

/// Tells a client where the process of an invocation is.
fn place(client: &AsyncClient, invocation: &GatewayInvocation) {
    let resolved = Resolved {
        incarnation: Incarnation(invocation.incarnation),
        addresses: invocation.addresses.clone(),
    };
    client.process_place(&invocation.process, resolved, invocation.credential.clone());
}

/// A place among the invocations that may be repeated and are under way.
#[derive(Debug)]
struct UnderWay {
    all: Arc<Mutex<HashSet<u128>>>,
    client_id: u128,
}

impl UnderWay {
    fn enter(all: &Arc<Mutex<HashSet<u128>>>, client_id: u128) -> Result<Self, GatewayError> {
        let mut held = all.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= REPEATABLE_MAX && !held.contains(&client_id) {
            let text = format!("{REPEATABLE_MAX} invocations with keys are under way");
            return Err(GatewayError::Busy(text));
        }
        // Two channels of one client: the answer would go to the later one only.
        if !held.insert(client_id) {
            let text = "the invocation with this key is under way";
            return Err(GatewayError::UnderWay(text.into()));
        }
        let all = Arc::clone(all);
        Ok(Self { all, client_id })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut held = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.client_id);
    }
}

impl Gateway for ClusterGateway {
    fn invoke(&self, invocation: GatewayInvocation) -> BoxFuture<Result<Vec<u8>, GatewayError>> {
        let Some(repeatable) = invocation.repeatable else {
            let client = self.client(&invocation);
            return Box::pin(async move { invoke_over(client?, invocation).await });
        };
        let client = self.client_alone(&invocation, repeatable);
        Box::pin(async move {
            let (client, under_way) = client?;
            // It goes on without its caller, who may ask for the result later.
            let task = tokio::spawn(async move {
                let outcome = invoke_over(client, invocation).await;
                drop(under_way);
                outcome
            });
            let lost = |error| GatewayError::Process(format!("the gateway lost it: {error}"));
            task.await.map_err(lost)?
        })
    }
}

async fn invoke_over(
    client: AsyncClient,
    invocation: GatewayInvocation,
) -> Result<Vec<u8>, GatewayError> {
    let GatewayInvocation {
        process,
        function,
        input,
        deadline,
        one_way,
        repeatable,
        ..
    } = invocation;
    // What came of one that may be repeated is what its repetitions get: that its first caller had
    // no more time is nothing to remember.
    let options = CallOptions {
        deadline: repeatable.is_none().then_some(deadline),
        ..CallOptions::default()
    };
    let outcome = match one_way {
        true => {
            let begun = client.invoke_one_way(&process, &function, input, options);
            begun.await.map(|()| Payload::default())
        }
        false => client.invoke(&process, &function, input, options).await,
    };
    match outcome {
        Ok(output) => Ok(output.to_vec()),
        Err(error) => Err(error_map(process, error)),
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
    use std::collections::BTreeMap;

    use praas_runtime::function::Registry;
    use praas_runtime::prelude::*;
    use praas_runtime::process::{Process, ProcessConfig, ProcessSettings};
    use praas_transport::{Credential, Keyring, Kinds, Listen, Role, Secret, Ticket};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    /// Asks for an invocation that is one-way.
    const ONE_WAY: Duration = Duration::from_secs(31);

    #[praas_runtime::function]
    fn whoami(context: &Context) -> Vec<u8> {
        format!("{} {}", context.process(), context.incarnation()).into()
    }

    #[praas_runtime::function]
    fn waits(context: &Context) -> Result<(), FunctionError> {
        context.message_get(None, "never", None)?;
        Ok(())
    }

    /// How often it has run.
    #[praas_runtime::function]
    fn counts(context: &Context) -> Result<u64, FunctionError> {
        let more = |runs: Option<u64>| runs.unwrap_or(0) + 1;
        Ok(context.state_update_value("runs", more)?)
    }

    praas_runtime::module!(static "gateway", [whoami, waits, counts]);

    /// An application without any cluster around it.
    struct Lab {
        secret: Secret,
        gateway: Arc<ClusterGateway>,
        runtime: tokio::runtime::Runtime,
    }

    impl Lab {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            Self {
                secret: Secret::generate().unwrap(),
                gateway: ClusterGateway::new(TransportConfig::default()),
                runtime: runtime.unwrap(),
            }
        }

        fn credential(&self, client_id: u128) -> Credential {
            let ticket = Ticket {
                application: "app".into(),
                role: Role::Client,
                client_id,
                expires_unix_ms: u64::MAX,
                key_id: 1,
            };
            Credential::issue(&self.secret, &ticket)
        }

        fn start(&self, name: &str, incarnation: u64) -> Process {
            let ring = Keyring::new();
            ring.insert("app", 1, self.secret.clone());
            let mut registry = Registry::new();
            registry.module_add(module()).unwrap();
            let settings = ProcessSettings {
                wait: WaitMode::Warm,
                ..ProcessSettings::default()
            };
            Process::start(ProcessConfig {
                application: "app".into(),
                process: name.into(),
                incarnation: Incarnation(incarnation),
                listen: vec![Listen::Tcp(([127, 0, 0, 1], 0).into())],
                authenticator: Arc::new(ring),
                credential: self.credential(0),
                directory: Directory::Fixed(BTreeMap::new()),
                transports: Kinds::all(),
                settings,
                registry,
                restore: None,
                persist: None,
            })
            .unwrap()
        }

        fn invoke(
            &self,
            process: &Process,
            function: &str,
            within: Duration,
        ) -> Result<Vec<u8>, GatewayError> {
            let invocation = self.invocation(process, function, within, None);
            self.runtime.block_on(self.gateway.invoke(invocation))
        }

        /// Invokes as who may have done so before, through a gateway that knows nothing of it.
        fn invoke_again(
            &self,
            process: &Process,
            (key, first): (&str, Option<u64>),
        ) -> Result<u64, GatewayError> {
            let named = Repeatable::new(["app", "p", "counts"], key, first);
            let invocation = self.invocation(process, "counts", PATIENCE, Some(named));
            let gateway = ClusterGateway::new(TransportConfig::default());
            let output = self.runtime.block_on(gateway.invoke(invocation))?;
            Ok(praas_runtime::codec::decode(&output).unwrap())
        }

        fn invocation(
            &self,
            process: &Process,
            function: &str,
            within: Duration,
            repeatable: Option<Repeatable>,
        ) -> GatewayInvocation {
            let identity = process.identity();
            GatewayInvocation {
                application: identity.application.to_string(),
                process: identity.name.to_string(),
                incarnation: identity.incarnation.0,
                addresses: process.addresses().to_vec(),
                credential: self.credential(repeatable.map_or(0, |named| named.client_id)),
                function: function.into(),
                input: Vec::new(),
                deadline: Instant::now() + within,
                one_way: function == "whoami" && within == ONE_WAY,
                repeatable,
            }
        }
    }

    #[test]
    fn one_client_follows_the_processes_of_its_application() {
        let lab = Lab::new();
        let (first, other) = (lab.start("p", 1), lab.start("q", 2));
        let called = |process: &Process| lab.invoke(process, "whoami", PATIENCE).unwrap();
        assert_eq!(called(&first), b"p 1");
        assert_eq!(called(&other), b"q 2");
        first.stop();
        drop(first);
        // Somewhere else, as somebody else.
        let second = lab.start("p", 3);
        assert_eq!(called(&second), b"p 3");
        assert_eq!(called(&other), b"q 2");
        assert_eq!(lab.gateway.clients.lock().unwrap().len(), 1);
        second.stop();
        other.stop();
    }

    #[test]
    fn what_fails_keeps_its_meaning_and_the_deadline() {
        let lab = Lab::new();
        let process = lab.start("p", 1);
        let unknown = lab.invoke(&process, "nothing", PATIENCE).unwrap_err();
        assert!(
            matches!(unknown, GatewayError::UnknownFunction { .. }),
            "{unknown}"
        );
        let begun = lab.invoke(&process, "whoami", ONE_WAY);
        assert_eq!(begun, Ok(Vec::new()));
        let late = lab.invoke(&process, "waits", Duration::from_millis(50));
        assert_eq!(late, Err(GatewayError::Deadline));
        process.stop();
    }

    #[test]
    fn what_is_repeated_by_its_key_runs_once() {
        let lab = Lab::new();
        let process = lab.start("p", 1);
        assert_eq!(lab.invoke_again(&process, ("a", None)), Ok(1));
        assert_eq!(lab.invoke_again(&process, ("a", None)), Ok(1));
        assert_eq!(lab.invoke_again(&process, ("b", None)), Ok(2));
        assert_eq!(lab.invoke_again(&process, ("a", Some(1))), Ok(1));
        process.stop();
        drop(process);
        // Somebody who knows nothing of the first attempt does not run it for the second time.
        let process = lab.start("p", 2);
        let lost = lab.invoke_again(&process, ("a", Some(1))).unwrap_err();
        assert!(lost.to_string().contains("not known"), "{lost}");
        assert_eq!(lab.invoke_again(&process, ("c", Some(2))), Ok(1));
        process.stop();
    }

    #[test]
    fn what_has_a_key_goes_on_without_its_caller_and_is_under_way_once() {
        let lab = Lab::new();
        let process = lab.start("p", 1);
        let named = Some(Repeatable::new(["app", "p", "waits"], "k", None));
        let invoke = || {
            let invocation = lab.invocation(&process, "waits", PATIENCE, named);
            lab.gateway.invoke(invocation)
        };
        lab.runtime.block_on(async {
            let mut first = invoke();
            // Begun, and then left alone.
            assert!(once_polled(&mut first).is_pending());
            drop(first);
            let second = invoke().await.unwrap_err();
            assert!(matches!(second, GatewayError::UnderWay(_)), "{second}");
        });
        process.stop();
    }

    fn once_polled<T>(future: &mut BoxFuture<T>) -> std::task::Poll<T> {
        let waker = std::task::Waker::noop();
        future
            .as_mut()
            .poll(&mut std::task::Context::from_waker(waker))
    }

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
