//! Routes of API tokens, and of the tickets that they are traded for.

use axum::extract::State;
use axum::http::StatusCode;
use praas_transport::{Credential, Role, Ticket};

use super::extract::{Caller, Json, Names, reply_unexpected};
use super::openapi::Refusal;
use super::{App, now_unix_ms};
use crate::api::{TicketIssued, TicketSpec, TokenInfo, TokenIssued, TokenRole, TokenSpec};
use crate::error::{ErrorKind, Failure};
use crate::machine::{Reply, Request as Ask};
use crate::store::TokenRecord;
use crate::tokens::{token_generate, token_hash};

/// Issue a token. Needs role admin. Its text is in the answer and nowhere else.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", operation_id = "token_create",
    request_body = TokenSpec,
    responses((status = 201, description = "It is good from now on", body = TokenIssued), Refusal),
)]
pub(super) async fn create(
    caller: Caller,
    State(shared): State<App>,
    Json(spec): Json<TokenSpec>,
) -> Result<(StatusCode, axum::Json<TokenIssued>), Failure> {
    caller.admin()?;
    let token = token_generate()?;
    let record = TokenRecord {
        hash: token_hash(&token),
        application: match spec.role {
            TokenRole::Admin => None,
            TokenRole::Application(name) => Some(name),
        },
        label: spec.label,
        created_unix_ms: now_unix_ms(),
    };
    let info = shared.ask(Ask::TokenCreate(record)).await?;
    let issued = TokenIssued { token, info };
    Ok((StatusCode::CREATED, axum::Json(issued)))
}

/// All tokens, without their texts. Needs role admin.
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens", operation_id = "token_list",
    responses((status = 200, description = "In no order", body = Vec<TokenInfo>), Refusal),
)]
pub(super) async fn list(
    caller: Caller,
    State(shared): State<App>,
) -> Result<axum::Json<Vec<TokenInfo>>, Failure> {
    caller.admin()?;
    Ok(axum::Json(shared.ask(Ask::TokenList).await?))
}

/// Revoke a token. Needs role admin.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", tag = "tokens", operation_id = "token_delete",
    params(("id" = String, Path)),
    responses((status = 204, description = "It is refused from now on"), Refusal),
)]
pub(super) async fn delete(
    caller: Caller,
    State(shared): State<App>,
    names: Names<1>,
) -> Result<StatusCode, Failure> {
    let [id] = names.0;
    caller.admin()?;
    let () = shared.ask(Ask::TokenDelete(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Trade the token for a ticket of the data plane.
#[utoipa::path(
    post, path = "/v1/tickets", tag = "tokens", operation_id = "ticket_issue",
    request_body = TicketSpec,
    responses((status = 201, description = "The ticket and its key", body = TicketIssued), Refusal),
)]
pub(super) async fn ticket(
    caller: Caller,
    State(shared): State<App>,
    Json(spec): Json<TicketSpec>,
) -> Result<(StatusCode, axum::Json<TicketIssued>), Failure> {
    let invalid = |detail: String| Failure::new(ErrorKind::Invalid, detail);
    let application = match (spec.application, caller.application()) {
        (Some(application), _) => application,
        (None, Some(application)) => application.into(),
        (None, None) => {
            return Err(invalid(
                "an administrator's token needs an application".into(),
            ));
        }
    };
    caller.may(&application)?;
    let client_id = match &spec.client_id {
        None => 0,
        Some(text) => client_id_parse(text)
            .ok_or_else(|| invalid("client_id is not 32 hexadecimal digits".into()))?,
    };
    let valid_max_ms = shared.limits.ticket_valid_max_ms;
    let valid_ms = spec.valid_ms.unwrap_or(valid_max_ms).min(valid_max_ms);
    let (key_id, secret) = match shared
        .core
        .ask(Ask::KeyShow(application.clone()), 0)
        .await?
    {
        Reply::Key(key_id, secret) => (key_id, secret),
        other => return Err(reply_unexpected(&other)),
    };
    let ticket = Ticket {
        application: application.as_str().into(),
        role: Role::Client,
        client_id,
        expires_unix_ms: now_unix_ms().saturating_add(valid_ms),
        key_id,
    };
    let issued = TicketIssued {
        application,
        role: "client".into(),
        client_id: format!("{client_id:032x}"),
        expires_unix_ms: ticket.expires_unix_ms,
        key_id,
        credential: Credential::issue(&secret, &ticket),
    };
    Ok((StatusCode::CREATED, axum::Json(issued)))
}

fn client_id_parse(text: &str) -> Option<u128> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_has_32_digits_and_no_sign() {
        assert_eq!(client_id_parse(&format!("{:032x}", 7)), Some(7));
        assert_eq!(client_id_parse(&"f".repeat(32)), Some(u128::MAX));
        assert_eq!(client_id_parse("7"), None);
        assert_eq!(client_id_parse(&format!("+{}", "0".repeat(31))), None);
    }
}
