//! Routes of the control plane itself: health, metrics, its own description, nodes.

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};

use super::App;
use super::extract::{Caller, Names};
use super::openapi::{Refusal, openapi_json};
use crate::api::{Health, Node};
use crate::error::{ErrorKind, Failure};
use crate::machine::Request as Ask;

/// How the control plane is. Needs no token.
#[utoipa::path(
    get, path = "/healthz", tag = "system", operation_id = "health", security(()),
    responses((status = 200, description = "It serves", body = Health), Refusal),
)]
pub(super) async fn health(State(shared): State<App>) -> Result<axum::Json<Health>, Failure> {
    if shared.core.failed() {
        let detail = "nothing can be stored any more: see the log, then start it anew";
        return Err(Failure::new(ErrorKind::Unavailable, detail));
    }
    // The answer also tells that the core is alive.
    shared.core.counts(0).await?;
    Ok(axum::Json(Health {
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    }))
}

/// The metrics, in the text format of Prometheus. Any token will do; processes are named, and their
/// numbers told, to role admin only.
#[utoipa::path(
    get, path = "/metrics", tag = "system", operation_id = "metrics",
    responses((status = 200, description = "As of now", body = String,
        content_type = "application/openmetrics-text"), Refusal),
)]
pub(super) async fn metrics(
    caller: Caller,
    State(shared): State<App>,
) -> Result<([(HeaderName, &'static str); 1], String), Failure> {
    let processes_max = match caller.admin() {
        Ok(()) => shared.limits.metrics_processes_max,
        Err(_) => 0,
    };
    let counts = shared.core.counts(processes_max).await?;
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = shared.core.metrics.render(&counts);
    Ok(([(header::CONTENT_TYPE, media)], text))
}

/// This description. Needs no token.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "system", operation_id = "openapi", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")),
)]
pub(super) async fn openapi_show() -> ([(HeaderName, &'static str); 1], &'static str) {
    // Made once: whoever asks needs no token, and it takes a while.
    static TEXT: LazyLock<String> = LazyLock::new(openapi_json);
    ([(header::CONTENT_TYPE, "application/json")], &TEXT)
}

/// All nodes whose agents were connected since the control plane started, or that have processes.
/// Needs role admin.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "nodes", operation_id = "node_list",
    responses((status = 200, description = "By name", body = Vec<Node>), Refusal),
)]
pub(super) async fn node_list(
    caller: Caller,
    State(shared): State<App>,
) -> Result<axum::Json<Vec<Node>>, Failure> {
    caller.admin()?;
    Ok(axum::Json(shared.ask(Ask::NodeList).await?))
}

/// Declare a node dead whose agent is away: its processes count as failed and may start elsewhere.
/// Needs role admin.
#[utoipa::path(
    delete, path = "/v1/nodes/{node}", tag = "nodes", operation_id = "node_forget",
    params(("node" = String, Path)),
    responses((status = 204, description = "It counts as dead"), Refusal),
)]
pub(super) async fn node_forget(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
) -> Result<StatusCode, Failure> {
    let [node] = names.0;
    caller.admin()?;
    let () = shared.ask(Ask::NodeForget(node)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Start nothing on a node any more, and move the processes that are there to others, a few at a
/// time. Answers at once. Needs role admin.
#[utoipa::path(
    post, path = "/v1/nodes/{node}/drain", tag = "nodes", operation_id = "node_drain",
    params(("node" = String, Path)),
    responses((status = 200, description = "All nodes", body = Vec<Node>), Refusal),
)]
pub(super) async fn node_drain(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
) -> Result<axum::Json<Vec<Node>>, Failure> {
    let [node] = names.0;
    caller.admin()?;
    let undo = false;
    Ok(axum::Json(shared.ask(Ask::NodeDrain { node, undo }).await?))
}

/// Start processes on a node again that was drained. Needs role admin.
#[utoipa::path(
    delete, path = "/v1/nodes/{node}/drain", tag = "nodes", operation_id = "node_drain_undo",
    params(("node" = String, Path)),
    responses((status = 200, description = "All nodes", body = Vec<Node>), Refusal),
)]
pub(super) async fn node_drain_undo(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
) -> Result<axum::Json<Vec<Node>>, Failure> {
    let [node] = names.0;
    caller.admin()?;
    let undo = true;
    Ok(axum::Json(shared.ask(Ask::NodeDrain { node, undo }).await?))
}
