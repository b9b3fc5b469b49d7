//! Routes of applications and their world views.

use axum::extract::State;
use axum::http::StatusCode;
use praas_transport::Secret;

use super::extract::{Caller, Json, Names, WaitMs, WaitParams};
use super::openapi::Refusal;
use super::{App, now_unix_ms};
use crate::api::{Application, ApplicationSpec, World};
use crate::error::{ErrorKind, Failure};
use crate::machine::Request as Ask;

/// A random secret.
pub(super) fn secret_generate() -> Result<Secret, Failure> {
    Secret::generate().map_err(|error| {
        let detail = format!("no random bytes from the system: {error}");
        Failure::new(ErrorKind::Unavailable, detail)
    })
}

/// Create an application. Needs role admin.
#[utoipa::path(
    post, path = "/v1/applications", tag = "applications", operation_id = "application_create",
    request_body = ApplicationSpec,
    responses((status = 201, description = "It was created", body = Application), Refusal),
)]
pub(super) async fn create(
    caller: Caller,
    State(shared): State<App>,
    Json(spec): Json<ApplicationSpec>,
) -> Result<(StatusCode, axum::Json<Application>), Failure> {
    caller.admin()?;
    let request = Ask::ApplicationCreate {
        spec,
        secret: secret_generate()?,
        now_unix_ms: now_unix_ms(),
    };
    let application = shared.ask(request).await?;
    Ok((StatusCode::CREATED, axum::Json(application)))
}

/// All applications; with a token that is for one, that one.
#[utoipa::path(
    get, path = "/v1/applications", tag = "applications", operation_id = "application_list",
    responses((status = 200, description = "By name", body = Vec<Application>), Refusal),
)]
pub(super) async fn list(
    caller: Caller,
    State(shared): State<App>,
) -> Result<axum::Json<Vec<Application>>, Failure> {
    let mut applications: Vec<Application> = shared.ask(Ask::ApplicationList).await?;
    applications.retain(|application| caller.may(&application.name).is_ok());
    Ok(axum::Json(applications))
}

/// One application.
#[utoipa::path(
    get, path = "/v1/applications/{application}", tag = "applications",
    operation_id = "application_show", params(("application" = String, Path)),
    responses((status = 200, description = "As it is", body = Application), Refusal),
)]
pub(super) async fn show(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
) -> Result<axum::Json<Application>, Failure> {
    let [application] = names.0;
    caller.may(&application)?;
    let request = Ask::ApplicationShow(application);
    Ok(axum::Json(shared.ask(request).await?))
}

/// Delete an application, whose processes must be deleted or stopped for good, with what they have
/// left in storage. Needs role admin.
#[utoipa::path(
    delete, path = "/v1/applications/{application}", tag = "applications",
    operation_id = "application_delete", params(("application" = String, Path), WaitParams),
    responses((status = 204, description = "It is gone, and its tokens with it"), Refusal),
)]
pub(super) async fn delete(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
    WaitMs(wait_ms): WaitMs,
) -> Result<StatusCode, Failure> {
    let [application] = names.0;
    caller.admin()?;
    let request = Ask::ApplicationDelete(application);
    let () = shared.core.ask(request, wait_ms).await?.try_into()?;
    Ok(StatusCode::NO_CONTENT)
}

/// Raise the application's key id: every ticket issued before is refused from then on.
#[utoipa::path(
    post, path = "/v1/applications/{application}/revoke", tag = "applications",
    operation_id = "application_revoke", params(("application" = String, Path)),
    responses((status = 200, description = "With its new key id", body = Application), Refusal),
)]
pub(super) async fn revoke(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
) -> Result<axum::Json<Application>, Failure> {
    let [application] = names.0;
    caller.may(&application)?;
    let request = Ask::KeyRevoke {
        application,
        secret: secret_generate()?,
    };
    Ok(axum::Json(shared.ask(request).await?))
}

/// The world view of an application: its processes, as they see one another.
#[utoipa::path(
    get, path = "/v1/world/{application}", tag = "applications", operation_id = "world_show",
    params(("application" = String, Path)),
    responses((status = 200, description = "Whole, by name", body = World), Refusal),
)]
pub(super) async fn world(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
) -> Result<axum::Json<World>, Failure> {
    let [application] = names.0;
    caller.may(&application)?;
    Ok(axum::Json(shared.ask(Ask::WorldShow(application)).await?))
}
