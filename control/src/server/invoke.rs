//! The route of invocations: sees that the process is ready, then hands over to the gateway.

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use praas_transport::{Credential, Role, Ticket};

use super::extract::{Caller, InvokeAsk, InvokeParams, Names, Raw, reply_unexpected};
use super::openapi::{Octets, Refusal};
use super::{App, now_unix_ms};
use crate::api::Process;
use crate::error::Failure;
use crate::gateway::{GatewayError, GatewayInvocation, Repeatable};
use crate::machine::{Reply, Request as Ask, Verb};

/// Milliseconds that a gateway's ticket is good beyond the deadline, for clocks that differ.
const TICKET_SLACK_MS: u64 = 60_000;

/// Invoke a function. The process is started or swapped in as needed.
///
/// With a key of its own (the header Idempotency-Key), an invocation may be repeated after a broken
/// connection or a restart of the control plane: the same key, process and function run at most
/// once for as long as the process keeps the result (settings results_max_bytes and sessions_max,
/// of which each key takes one), also over swaps and transfers, and each attempt gets what came of
/// the first. It goes on if its caller is gone, or has waited for wait_ms, which is no deadline of
/// the function then. While it is under way another attempt gets 409. What the input of a
/// repetition is, nobody looks at.
#[utoipa::path(
    post, path = "/v1/applications/{application}/processes/{process}/invoke/{function}",
    tag = "invocations", operation_id = "invoke",
    params(
        ("application" = String, Path), ("process" = String, Path), ("function" = String, Path),
        InvokeParams,
        ("idempotency-key" = Option<String>, Header,
            description = "Names the invocation, so that it may be repeated: 1 to 255 bytes"),
    ),
    request_body(content = Octets, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "The function's output", body = Octets,
            content_type = "application/octet-stream"),
        (status = 202, description = "One-way: the function has begun"),
        Refusal,
    ),
)]
pub(super) async fn invoke(
    caller: Caller,
    State(shared): State<App>,
    names: Names<3>,
    asked: InvokeAsk,
    Raw(input): Raw,
) -> Result<Response, Failure> {
    let [application, process, function] = names.0;
    caller.may(&application)?;
    let InvokeAsk {
        wait_ms, one_way, ..
    } = asked;
    let of = [&*application, &*process, &*function];
    let repeatable = asked
        .key
        .map(|key| Repeatable::new(of, &key, asked.first_incarnation));
    let deadline = Instant::now() + Duration::from_millis(wait_ms);
    let ensure = Ask::Process {
        application: application.clone(),
        process: process.clone(),
        verb: Verb::Ensure,
    };
    let shown: Process = shared.core.ask(ensure, wait_ms).await?.try_into()?;
    let client_id = repeatable.map_or(0, |repeatable| repeatable.client_id);
    let credential = credential_issue(&shared, &application, client_id, wait_ms).await?;
    let invocation = GatewayInvocation {
        application,
        process,
        incarnation: shown.incarnation,
        addresses: shown.addresses,
        credential,
        function,
        input: input.into(),
        deadline,
        one_way,
        repeatable,
    };
    let outcome = shared.gateway.invoke(invocation);
    // The gateway keeps to the deadline; this is for one that does not.
    let output = tokio::time::timeout_at(deadline.into(), outcome)
        .await
        .unwrap_or(Err(GatewayError::Deadline))?;
    if one_way {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let media = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((media, output).into_response())
}

/// What opens a channel to the application's processes for one invocation.
async fn credential_issue(
    shared: &App,
    application: &str,
    client_id: u128,
    wait_ms: u64,
) -> Result<Credential, Failure> {
    let (key_id, secret) = match shared.core.ask(Ask::KeyShow(application.into()), 0).await? {
        Reply::Key(key_id, secret) => (key_id, secret),
        other => return Err(reply_unexpected(&other)),
    };
    let ticket = Ticket {
        application: application.into(),
        role: Role::Client,
        client_id,
        expires_unix_ms: now_unix_ms()
            .saturating_add(wait_ms)
            .saturating_add(TICKET_SLACK_MS),
        key_id,
    };
    Ok(Credential::issue(&secret, &ticket))
}
