//! The HTTP server: a router over the core, and nothing that the core does not know.
//!
//! ```text
//!   socket -> [limit connections, time] -> router -> bearer token, names, body -> CoreSender::ask
//!                                                                                    |
//!   answer or problem document (RFC 9457) <-- after the store has it <---------------+
//! ```
//!
//! Every refusal is a problem document, also of what no handler sees: unknown paths, wrong
//! methods, bodies that are malformed or too large. Only what is no HTTP is answered by a status
//! without words.

mod applications;
mod extract;
mod invoke;
mod listen;
mod openapi;
mod processes;
mod system;
mod tokens;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use self::openapi::openapi_json;

use self::listen::HttpListener;
use crate::config::ControlConfig;
use crate::core::CoreSender;
use crate::error::{ErrorKind, Failure};
use crate::gateway::Gateway;
use crate::machine::{Reply, Request as Ask};

/// What every handler has.
pub(crate) struct Shared {
    core: CoreSender,
    gateway: Arc<dyn Gateway>,
    limits: Limits,
}

/// The server's part of the settings.
struct Limits {
    body_max_bytes: usize,
    body_timeout: Duration,
    invoke_body_max_bytes: usize,
    wait_default_ms: u64,
    wait_max_ms: u64,
    ticket_valid_max_ms: u64,
    metrics_processes_max: usize,
}

type App = Arc<Shared>;

impl Shared {
    pub(crate) fn new(core: CoreSender, gateway: Arc<dyn Gateway>, config: &ControlConfig) -> Self {
        Self {
            core,
            gateway,
            limits: Limits {
                body_max_bytes: config.body_max_bytes,
                body_timeout: Duration::from_millis(config.body_timeout_ms),
                invoke_body_max_bytes: config.invoke_body_max_bytes,
                wait_default_ms: config.wait_default_ms,
                wait_max_ms: config.wait_max_ms,
                ticket_valid_max_ms: config.ticket_valid_max_ms,
                metrics_processes_max: config.metrics_processes_max,
            },
        }
    }

    /// Asks the core for something that it answers at once, of the type that it is to be.
    async fn ask<T: TryFrom<Reply, Error = Failure>>(&self, request: Ask) -> Result<T, Failure> {
        self.core.ask(request, 0).await?.try_into()
    }
}

/// The time in milliseconds since the Unix epoch.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// All routes, with their description. The description needs no server.
fn routes_all(invoke_body_max_bytes: usize) -> OpenApiRouter<App> {
    let invocations = OpenApiRouter::new()
        .routes(routes!(invoke::invoke))
        .layer(DefaultBodyLimit::max(invoke_body_max_bytes));
    OpenApiRouter::with_openapi(openapi::Description::openapi())
        .routes(routes!(system::health))
        .routes(routes!(system::metrics))
        .routes(routes!(system::openapi_show))
        .routes(routes!(applications::create, applications::list))
        .routes(routes!(applications::show, applications::delete))
        .routes(routes!(applications::revoke))
        .routes(routes!(applications::world))
        .routes(routes!(processes::create, processes::list))
        .routes(routes!(processes::show, processes::delete))
        .routes(routes!(processes::swap))
        .routes(routes!(processes::swap_in))
        .routes(routes!(processes::stop))
        .routes(routes!(processes::checkpoint))
        .routes(routes!(processes::transfer))
        .routes(routes!(system::node_list))
        .routes(routes!(system::node_forget))
        .routes(routes!(system::node_drain, system::node_drain_undo))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::delete))
        .routes(routes!(tokens::ticket))
        .merge(invocations)
}

fn router(shared: App) -> Router {
    let limits = &shared.limits;
    let (router, _) = routes_all(limits.invoke_body_max_bytes).split_for_parts();
    router
        .fallback(path_unknown)
        .method_not_allowed_fallback(method_wrong)
        .layer(DefaultBodyLimit::max(limits.body_max_bytes))
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&shared),
            measure,
        ))
        .with_state(shared)
}

async fn path_unknown(uri: Uri) -> Failure {
    let shown: String = uri.path().chars().take(255).collect();
    Failure::new(ErrorKind::NotFound, format!("there is no path {shown:?}"))
}

async fn method_wrong(method: Method, uri: Uri) -> Failure {
    let shown: String = uri.path().chars().take(255).collect();
    let method: String = method.as_str().chars().take(32).collect();
    Failure::new(ErrorKind::Method, format!("{method} of {shown:?}"))
}

async fn measure(State(shared): State<App>, request: Request, next: Next) -> Response {
    // Peers may invent methods; the metrics must not grow by them.
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let began = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    shared.core.metrics.request(method, status, began.elapsed());
    response
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let status = StatusCode::from_u16(problem.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        let media = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, media);
        if self.kind == ErrorKind::Unauthorized {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// The running server. Dropping it ends it without waiting for requests.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    ended: Receiver<()>,
    grace: Duration,
    runtime: Option<Runtime>,
}

impl Server {
    /// Serves on `listener`, on threads of its own.
    pub(crate) fn start(
        listener: std::net::TcpListener,
        shared: Shared,
        config: &ControlConfig,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.http_threads)
            .thread_name("praas-http")
            .enable_all()
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            HttpListener::new(tokio::net::TcpListener::from_std(listener)?, config)
        };
        let router = router(Arc::new(shared));
        let (stop, mut stopped) = watch::channel(false);
        let (end, ended) = channel();
        runtime.spawn(async move {
            let signal = async move {
                // An error is the end of the server, which is a signal, too.
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            listener.serve(router, signal).await;
            // Nobody may be waiting.
            let _ = end.send(());
        });
        Ok(Self {
            address,
            stop,
            ended,
            grace: Duration::from_millis(config.shutdown_grace_ms),
            runtime: Some(runtime),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no new requests and waits, not for ever, for those under way.
    pub(crate) fn shutdown(self) {
        self.stop.send_replace(true);
        if self.ended.recv_timeout(self.grace).is_err() {
            tracing::warn!("some HTTP requests did not end in time and are cut off");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // In the background, for it may be dropped on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}
