//! Routes of processes. Those that change one wait for the outcome, as long as they are told.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::App;
use super::extract::{Caller, Json, Names, WaitMs, WaitParams, reply_unexpected};
use super::openapi::Refusal;
use crate::api::{Process, ProcessSpec, ProcessState, TransferSpec};
use crate::error::Failure;
use crate::machine::{Reply, Request as Ask, Verb};

type Answer = Result<(StatusCode, axum::Json<Process>), Failure>;

/// Does `verb`. The answer is `done` if the process got to `state`, else 202: it is on its way.
async fn act(
    shared: &App,
    [application, process]: [String; 2],
    wait_ms: u64,
    (verb, state, done): (Verb, ProcessState, StatusCode),
) -> Answer {
    let request = Ask::Process {
        application,
        process,
        verb,
    };
    let process: Process = shared.core.ask(request, wait_ms).await?.try_into()?;
    let status = match process.state == state {
        true => done,
        false => StatusCode::ACCEPTED,
    };
    Ok((status, axum::Json(process)))
}

/// Create a process and wait until it is ready.
#[utoipa::path(
    post, path = "/v1/applications/{application}/processes", tag = "processes",
    operation_id = "process_create", params(("application" = String, Path), WaitParams),
    request_body = ProcessSpec,
    responses(
        (status = 201, description = "It is ready", body = Process),
        (status = 202, description = "It is being started", body = Process),
        Refusal,
    ),
)]
pub(super) async fn create(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
    WaitMs(wait_ms): WaitMs,
    Json(spec): Json<ProcessSpec>,
) -> Answer {
    let [application] = names.0;
    caller.may(&application)?;
    let what = (Verb::Create, ProcessState::Ready, StatusCode::CREATED);
    act(&shared, [application, spec.name], wait_ms, what).await
}

/// All processes of an application.
#[utoipa::path(
    get, path = "/v1/applications/{application}/processes", tag = "processes",
    operation_id = "process_list", params(("application" = String, Path)),
    responses((status = 200, description = "By name", body = Vec<Process>), Refusal),
)]
pub(super) async fn list(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
) -> Result<axum::Json<Vec<Process>>, Failure> {
    let [application] = names.0;
    caller.may(&application)?;
    Ok(axum::Json(shared.ask(Ask::ProcessList(application)).await?))
}

/// One process.
#[utoipa::path(
    get, path = "/v1/applications/{application}/processes/{process}", tag = "processes",
    operation_id = "process_show",
    params(("application" = String, Path), ("process" = String, Path)),
    responses((status = 200, description = "As it is", body = Process), Refusal),
)]
pub(super) async fn show(
    caller: Caller,
    State(shared): State<App>,
    names: Names<2>,
) -> Result<axum::Json<Process>, Failure> {
    let [application, process] = names.0;
    caller.may(&application)?;
    let request = Ask::Process {
        application,
        process,
        verb: Verb::Show,
    };
    Ok(axum::Json(shared.ask(request).await?))
}

/// Stop a process, delete its swap images and forget it.
#[utoipa::path(
    delete, path = "/v1/applications/{application}/processes/{process}", tag = "processes",
    operation_id = "process_delete",
    params(("application" = String, Path), ("process" = String, Path), WaitParams),
    responses(
        (status = 204, description = "It is forgotten"),
        (status = 202, description = "It is being stopped or deleted", body = Process),
        Refusal,
    ),
)]
pub(super) async fn delete(
    caller: Caller,
    State(shared): State<App>,
    names: Names<2>,
    WaitMs(wait_ms): WaitMs,
) -> Result<Response, Failure> {
    let [application, process] = names.0;
    caller.may(&application)?;
    let request = Ask::Process {
        application,
        process,
        verb: Verb::Delete,
    };
    match shared.core.ask(request, wait_ms).await? {
        Reply::Done => Ok(StatusCode::NO_CONTENT.into_response()),
        Reply::Process(process) => Ok((StatusCode::ACCEPTED, axum::Json(process)).into_response()),
        other => Err(reply_unexpected(&other)),
    }
}

/// Swap a process out: its state goes to storage, its resources are freed.
#[utoipa::path(
    post, path = "/v1/applications/{application}/processes/{process}/swap", tag = "processes",
    operation_id = "process_swap",
    params(("application" = String, Path), ("process" = String, Path), WaitParams),
    responses(
        (status = 200, description = "It is swapped out", body = Process),
        (status = 202, description = "It is being swapped out", body = Process),
        Refusal,
    ),
)]
pub(super) async fn swap(
    caller: Caller,
    State(shared): State<App>,
    names: Names<2>,
    WaitMs(wait_ms): WaitMs,
) -> Answer {
    let [application, process] = names.0;
    caller.may(&application)?;
    let what = (Verb::Swap, ProcessState::Swapped, StatusCode::OK);
    act(&shared, [application, process], wait_ms, what).await
}

/// Swap a process in, or start it again after a failure.
#[utoipa::path(
    post, path = "/v1/applications/{application}/processes/{process}/swap-in", tag = "processes",
    operation_id = "process_swap_in",
    params(("application" = String, Path), ("process" = String, Path), WaitParams),
    responses(
        (status = 200, description = "It is ready", body = Process),
        (status = 202, description = "It is being started", body = Process),
        Refusal,
    ),
)]
pub(super) async fn swap_in(
    caller: Caller,
    State(shared): State<App>,
    names: Names<2>,
    WaitMs(wait_ms): WaitMs,
) -> Answer {
    let [application, process] = names.0;
    caller.may(&application)?;
    let what = (Verb::SwapIn, ProcessState::Ready, StatusCode::OK);
    act(&shared, [application, process], wait_ms, what).await
}

/// Stop a process: it finishes what runs and ends; its state is not kept.
#[utoipa::path(
    post, path = "/v1/applications/{application}/processes/{process}/stop", tag = "processes",
    operation_id = "process_stop",
    params(("application" = String, Path), ("process" = String, Path), WaitParams),
    responses(
        (status = 200, description = "It is stopped", body = Process),
        (status = 202, description = "It is being stopped", body = Process),
        Refusal,
    ),
)]
pub(super) async fn stop(
    caller: Caller,
    State(shared): State<App>,
    names: Names<2>,
    WaitMs(wait_ms): WaitMs,
) -> Answer {
    let [application, process] = names.0;
    caller.may(&application)?;
    let what = (Verb::Stop, ProcessState::Gone, StatusCode::OK);
    act(&shared, [application, process], wait_ms, what).await
}

/// Take a checkpoint of a process, which serves on: an image to come back from after a failure.
#[utoipa::path(
    post, path = "/v1/applications/{application}/processes/{process}/checkpoint",
    tag = "processes", operation_id = "process_checkpoint",
    params(("application" = String, Path), ("process" = String, Path), WaitParams),
    responses(
        (status = 200, description = "It is taken", body = Process),
        (status = 202, description = "It is being taken", body = Process),
        Refusal,
    ),
)]
pub(super) async fn checkpoint(
    caller: Caller,
    State(shared): State<App>,
    names: Names<2>,
    WaitMs(wait_ms): WaitMs,
) -> Answer {
    let [application, process] = names.0;
    caller.may(&application)?;
    let request = Ask::Process {
        application,
        process,
        verb: Verb::Checkpoint,
    };
    let process: Process = shared.core.ask(request, wait_ms).await?.try_into()?;
    let status = match wait_ms {
        0 => StatusCode::ACCEPTED,
        _ => StatusCode::OK,
    };
    Ok((status, axum::Json(process)))
}

/// Move a process to another node while it serves: it is ready there when this answers 200.
#[utoipa::path(
    post, path = "/v1/applications/{application}/processes/{process}/transfer", tag = "processes",
    operation_id = "process_transfer",
    params(("application" = String, Path), ("process" = String, Path), WaitParams),
    request_body = TransferSpec,
    responses(
        (status = 200, description = "It is ready there", body = Process),
        (status = 202, description = "It is on its way", body = Process),
        Refusal,
    ),
)]
pub(super) async fn transfer(
    caller: Caller,
    State(shared): State<App>,
    names: Names<2>,
    WaitMs(wait_ms): WaitMs,
    Json(spec): Json<TransferSpec>,
) -> Answer {
    let [application, process] = names.0;
    caller.may(&application)?;
    let request = Ask::ProcessTransfer {
        application,
        process,
        to: spec.to,
    };
    let process: Process = shared.core.ask(request, wait_ms).await?.try_into()?;
    let status = match wait_ms {
        0 => StatusCode::ACCEPTED,
        _ => StatusCode::OK,
    };
    Ok((status, axum::Json(process)))
}
