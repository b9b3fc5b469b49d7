//! The control plane's client: blocking, for the command line and for programs.

use std::io;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body};

use crate::api::{
    Application, ApplicationSpec, Health, Node, Process, ProcessSpec, TicketIssued, TicketSpec,
    TokenInfo, TokenIssued, TokenSpec, TransferSpec, World,
};
use crate::error::{ErrorKind, Problem};

/// Bytes of an answer that are read at most, but for the output of an invocation.
const ANSWER_MAX_BYTES: u64 = 256 << 20;
/// Bytes of an invocation's output that are read at most.
const OUTPUT_MAX_BYTES: u64 = 1 << 30;
/// What a call may take beyond what it asked the server to wait.
const MARGIN: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there.
    #[error("nothing answers at {url}: is the control plane up? start it with `praas up`")]
    NotUp {
        /// Where.
        url: String,
        /// What the system says.
        source: io::Error,
    },
    /// The connection failed, or took too long.
    #[error("cannot speak to the control plane at {url}")]
    Connection {
        /// Where.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The control plane refuses; the problem says why.
    #[error("{0}")]
    Problem(Problem),
    /// The answer is not what this version of the API has.
    #[error("the answer of {url} makes no sense here: {detail}")]
    Answer {
        /// Where.
        url: String,
        /// What is wrong.
        detail: String,
    },
}

impl ClientError {
    /// The kind of problem, where the control plane answered with one.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Problem(problem) => problem.error_kind(),
            _ => None,
        }
    }
}

/// Speaks to a control plane. Cheap to clone; connections are kept and shared.
#[derive(Clone)]
pub struct ControlClient {
    agent: Agent,
    base: String,
    token: String,
    wait: Duration,
}

impl std::fmt::Debug for ControlClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlClient")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

type Answer<T> = Result<T, ClientError>;

/// What is to be invoked, over HTTP.
#[derive(Debug, Clone, Copy, Default)]
pub struct Invocation<'a> {
    /// The application.
    pub application: &'a str,
    /// The process.
    pub process: &'a str,
    /// The function.
    pub function: &'a str,
    /// Its input.
    pub input: &'a [u8],
    /// Names the invocation among those of process and function, so that it may be repeated.
    pub key: Option<&'a str>,
    /// The incarnation that the process had before the first attempt.
    pub first_incarnation: Option<u64>,
}

impl<'a> Invocation<'a> {
    /// One that is not repeated.
    pub fn new(application: &'a str, process: &'a str, function: &'a str, input: &'a [u8]) -> Self {
        Self {
            application,
            process,
            function,
            input,
            ..Self::default()
        }
    }
}

impl ControlClient {
    /// A client of the control plane at `url` (`http://127.0.0.1:4711`), who shows `token`.
    pub fn new(url: &str, token: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(5)))
            .build();
        Self {
            agent: config.into(),
            base: url.trim_end_matches('/').into(),
            token: token.into(),
            wait: Duration::from_secs(30),
        }
    }

    /// The same, but the server may wait so long for a process to get where it is wanted; zero
    /// answers at once with the process as it is.
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// How the control plane is.
    ///
    /// # Errors
    /// As every call: nobody listens, the connection fails, or the control plane refuses.
    pub fn health(&self) -> Answer<Health> {
        self.call(Method::GET, "/healthz", None::<&()>)
    }

    /// Creates an application.
    ///
    /// # Errors
    /// As every call; `Conflict` if there is one of this name.
    pub fn application_create(&self, spec: &ApplicationSpec) -> Answer<Application> {
        self.call(Method::POST, "/v1/applications", Some(spec))
    }

    /// All applications.
    ///
    /// # Errors
    /// As every call.
    pub fn application_list(&self) -> Answer<Vec<Application>> {
        self.call(Method::GET, "/v1/applications", None::<&()>)
    }

    /// One application.
    ///
    /// # Errors
    /// As every call; `NotFound` if there is none of this name.
    pub fn application_show(&self, application: &str) -> Answer<Application> {
        self.call(Method::GET, &application_path(application), None::<&()>)
    }

    /// Deletes an application that has no processes but stopped ones.
    ///
    /// # Errors
    /// As every call; `Conflict` while it has others.
    pub fn application_delete(&self, application: &str) -> Answer<()> {
        let path = application_path(application);
        self.call_empty(Method::DELETE, &self.waiting(&path))
    }

    /// Raises the application's key id: every ticket issued before is refused from then on.
    ///
    /// # Errors
    /// As every call.
    pub fn application_revoke(&self, application: &str) -> Answer<Application> {
        let path = format!("{}/revoke", application_path(application));
        self.call(Method::POST, &path, None::<&()>)
    }

    /// Creates a process and waits until it is ready.
    ///
    /// # Errors
    /// As every call; `Conflict` if there is one that was not stopped, `StartFailed`, `NoAgent`,
    /// `Timeout`.
    pub fn process_create(&self, application: &str, name: &str) -> Answer<Process> {
        let path = format!("{}/processes", application_path(application));
        let spec = ProcessSpec { name: name.into() };
        self.call(Method::POST, &self.waiting(&path), Some(&spec))
    }

    /// All processes of an application.
    ///
    /// # Errors
    /// As every call.
    pub fn process_list(&self, application: &str) -> Answer<Vec<Process>> {
        let path = format!("{}/processes", application_path(application));
        self.call(Method::GET, &path, None::<&()>)
    }

    /// One process.
    ///
    /// # Errors
    /// As every call.
    pub fn process_show(&self, application: &str, process: &str) -> Answer<Process> {
        let path = process_path(application, process);
        self.call(Method::GET, &path, None::<&()>)
    }

    /// Stops a process, deletes its swap images and forgets it.
    ///
    /// # Errors
    /// As every call.
    pub fn process_delete(&self, application: &str, process: &str) -> Answer<()> {
        let path = process_path(application, process);
        self.call_empty(Method::DELETE, &self.waiting(&path))
    }

    /// Swaps a process out.
    ///
    /// # Errors
    /// As every call.
    pub fn process_swap(&self, application: &str, process: &str) -> Answer<Process> {
        self.process_do(application, process, "swap")
    }

    /// Swaps a process in, or starts it again after a failure.
    ///
    /// # Errors
    /// As every call.
    pub fn process_swap_in(&self, application: &str, process: &str) -> Answer<Process> {
        self.process_do(application, process, "swap-in")
    }

    /// Stops a process: it finishes what runs and ends; its state is not kept.
    ///
    /// # Errors
    /// As every call.
    pub fn process_stop(&self, application: &str, process: &str) -> Answer<Process> {
        self.process_do(application, process, "stop")
    }

    /// Takes a checkpoint of a process, which serves on.
    ///
    /// # Errors
    /// As every call; `ProcessFailed` if it cannot be written.
    pub fn process_checkpoint(&self, application: &str, process: &str) -> Answer<Process> {
        self.process_do(application, process, "checkpoint")
    }

    /// Moves a process to another node while it serves.
    ///
    /// # Errors
    /// As every call; `Conflict` if it does not serve, `ProcessFailed` if it serves on where it is.
    pub fn process_transfer(
        &self,
        application: &str,
        process: &str,
        spec: &TransferSpec,
    ) -> Answer<Process> {
        let path = format!("{}/transfer", process_path(application, process));
        self.call(Method::POST, &self.waiting(&path), Some(spec))
    }

    /// Invokes a function, with allocation and swap-in of the process as needed.
    ///
    /// # Errors
    /// As every call; `FunctionFailed`, `ProcessFailed`; `Conflict` if the invocation with this key
    /// is under way.
    pub fn invoke(&self, invocation: &Invocation<'_>) -> Answer<Vec<u8>> {
        let (url, request) = self.invocation(invocation, "");
        let mut response = self.run(&url, request.body(invocation.input.to_vec()))?;
        let body = response.body_mut().with_config().limit(OUTPUT_MAX_BYTES);
        body.read_to_vec().map_err(|error| connection(&url, error))
    }

    /// Invokes a function one-way: this comes back once it has begun.
    ///
    /// # Errors
    /// As every call; `ProcessFailed`; `Conflict` as above.
    pub fn invoke_one_way(&self, invocation: &Invocation<'_>) -> Answer<()> {
        let (url, request) = self.invocation(invocation, "&one_way=true");
        self.run(&url, request.body(invocation.input.to_vec()))
            .map(drop)
    }

    fn invocation(
        &self,
        invocation: &Invocation<'_>,
        more: &str,
    ) -> (String, ureq::http::request::Builder) {
        let process = process_path(invocation.application, invocation.process);
        let path = format!("{process}/invoke/{}", escape(invocation.function));
        let mut url = self.url(&format!("{}{more}", self.waiting(&path)));
        if let Some(first) = invocation.first_incarnation {
            url.push_str(&format!("&first_incarnation={first}"));
        }
        let mut request = self
            .request(Method::POST, &url)
            .header("content-type", "application/octet-stream");
        if let Some(key) = invocation.key {
            request = request.header("idempotency-key", key);
        }
        (url, request)
    }

    /// All nodes whose agents were ever connected since the control plane started, or that have
    /// processes.
    ///
    /// # Errors
    /// As every call.
    pub fn node_list(&self) -> Answer<Vec<Node>> {
        self.call(Method::GET, "/v1/nodes", None::<&()>)
    }

    /// Declares a node dead whose agent is away: its processes count as failed and may start
    /// elsewhere. Only true if the node is really gone.
    ///
    /// # Errors
    /// As every call; `Conflict` while the agent is connected.
    pub fn node_forget(&self, node: &str) -> Answer<()> {
        self.call_empty(Method::DELETE, &format!("/v1/nodes/{}", escape(node)))
    }

    /// Starts nothing on a node any more and moves its processes elsewhere, or starts there again;
    /// all nodes.
    ///
    /// # Errors
    /// As every call.
    pub fn node_drain(&self, node: &str, undo: bool) -> Answer<Vec<Node>> {
        let method = match undo {
            false => Method::POST,
            true => Method::DELETE,
        };
        let path = format!("/v1/nodes/{}/drain", escape(node));
        self.call(method, &path, None::<&()>)
    }

    /// Issues a token.
    ///
    /// # Errors
    /// As every call.
    pub fn token_create(&self, spec: &TokenSpec) -> Answer<TokenIssued> {
        self.call(Method::POST, "/v1/tokens", Some(spec))
    }

    /// All tokens.
    ///
    /// # Errors
    /// As every call.
    pub fn token_list(&self) -> Answer<Vec<TokenInfo>> {
        self.call(Method::GET, "/v1/tokens", None::<&()>)
    }

    /// Revokes a token.
    ///
    /// # Errors
    /// As every call.
    pub fn token_delete(&self, id: &str) -> Answer<()> {
        self.call_empty(Method::DELETE, &format!("/v1/tokens/{}", escape(id)))
    }

    /// Trades the token for a ticket of the data plane.
    ///
    /// # Errors
    /// As every call.
    pub fn ticket_issue(&self, spec: &TicketSpec) -> Answer<TicketIssued> {
        self.call(Method::POST, "/v1/tickets", Some(spec))
    }

    /// The world view of an application.
    ///
    /// # Errors
    /// As every call.
    pub fn world_show(&self, application: &str) -> Answer<World> {
        let path = format!("/v1/world/{}", escape(application));
        self.call(Method::GET, &path, None::<&()>)
    }

    /// The metrics, in the text format of Prometheus.
    ///
    /// # Errors
    /// As every call.
    pub fn metrics(&self) -> Answer<String> {
        let url = self.url("/metrics");
        let mut response = self.run(&url, self.request(Method::GET, &url).body(Vec::new()))?;
        let body = response.body_mut().with_config().limit(ANSWER_MAX_BYTES);
        body.read_to_string()
            .map_err(|error| connection(&url, error))
    }

    fn process_do(&self, application: &str, process: &str, what: &str) -> Answer<Process> {
        let path = format!("{}/{what}", process_path(application, process));
        self.call(Method::POST, &self.waiting(&path), None::<&()>)
    }

    fn waiting(&self, path: &str) -> String {
        format!("{path}?wait_ms={}", self.wait.as_millis())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn request(&self, method: Method, url: &str) -> ureq::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(url)
            .header("authorization", format!("Bearer {}", self.token))
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Answer<T> {
        let url = self.url(path);
        let request = self.request(method, &url);
        let request = match body {
            None => request.body(Vec::new()),
            Some(body) => {
                let body = serde_json::to_vec(body).map_err(|error| answer(&url, &error))?;
                request
                    .header("content-type", "application/json")
                    .body(body)
            }
        };
        let mut response = self.run(&url, request)?;
        let text = body_read(&url, &mut response)?;
        serde_json::from_slice(&text).map_err(|error| answer(&url, &error))
    }

    fn call_empty(&self, method: Method, path: &str) -> Answer<()> {
        let url = self.url(path);
        let request = self.request(method, &url).body(Vec::new());
        self.run(&url, request).map(|_| ())
    }

    fn run(
        &self,
        url: &str,
        request: ureq::http::Result<Request<Vec<u8>>>,
    ) -> Answer<Response<Body>> {
        let request = request.map_err(|error| answer(url, &error))?;
        let request = self
            .agent
            .configure_request(request)
            .timeout_global(Some(self.wait + MARGIN))
            .build();
        let mut response = self
            .agent
            .run(request)
            .map_err(|error| connection(url, error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = body_read(url, &mut response)?;
        match serde_json::from_slice(&text) {
            Ok(problem) => Err(ClientError::Problem(problem)),
            Err(_) => Err(answer(url, &format!("status {status} without a problem"))),
        }
    }
}

fn application_path(application: &str) -> String {
    format!("/v1/applications/{}", escape(application))
}

fn process_path(application: &str, process: &str) -> String {
    format!(
        "{}/processes/{}",
        application_path(application),
        escape(process)
    )
}

/// A name as a segment of a path.
fn escape(name: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            // Writing to a string does not fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

fn body_read(url: &str, response: &mut Response<Body>) -> Answer<Vec<u8>> {
    let body = response.body_mut().with_config().limit(ANSWER_MAX_BYTES);
    body.read_to_vec().map_err(|error| connection(url, error))
}

fn connection(url: &str, error: ureq::Error) -> ClientError {
    match error {
        ureq::Error::Io(source) if source.kind() == io::ErrorKind::ConnectionRefused => {
            ClientError::NotUp {
                url: url.into(),
                source,
            }
        }
        error => ClientError::Connection {
            url: url.into(),
            source: Box::new(error),
        },
    }
}

fn answer(url: &str, detail: &dyn std::fmt::Display) -> ClientError {
    ClientError::Answer {
        url: url.into(),
        detail: detail.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_nobody_is_told_what_to_do() {
        // A port that was just free: bound and let go.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let client = ControlClient::new(&format!("http://127.0.0.1:{port}"), "t");
        let error = client.health().unwrap_err();
        assert!(matches!(error, ClientError::NotUp { .. }), "{error:?}");
        assert!(error.to_string().contains("praas up"), "{error}");
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("a b/ü.~"), "a%20b%2F%C3%BC.~");
    }
}
