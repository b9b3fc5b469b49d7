//! What handlers take from a request: who asks, names from the path, a JSON body, how long to wait.
//!
//! Who asks comes first in every handler, so that nothing is read for those who may not.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::App;
use crate::api::{Application, Node, Process, TokenInfo, TokenRole, World, name_check};
use crate::error::{ErrorKind, Failure};
use crate::machine::Reply;

/// Who asks: the holder of a token.
pub(super) struct Caller(TokenRole);

impl Caller {
    /// Only an administrator may go on.
    pub(super) fn admin(&self) -> Result<(), Failure> {
        match &self.0 {
            TokenRole::Admin => Ok(()),
            TokenRole::Application(name) => Err(Failure::new(
                ErrorKind::Forbidden,
                format!("the token is for application {name:?} only, and this needs role admin"),
            )),
        }
    }

    /// Only who may do with `application` as they like may go on.
    pub(super) fn may(&self, application: &str) -> Result<(), Failure> {
        match &self.0 {
            TokenRole::Application(name) if name != application => Err(Failure::new(
                ErrorKind::Forbidden,
                format!("the token is for application {name:?}, not for {application:?}"),
            )),
            _ => Ok(()),
        }
    }

    /// The application that the token is for; none for an administrator's.
    pub(super) fn application(&self) -> Option<&str> {
        match &self.0 {
            TokenRole::Admin => None,
            TokenRole::Application(name) => Some(name),
        }
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &App) -> Result<Self, Failure> {
        let refuse = |detail: &str| Failure::new(ErrorKind::Unauthorized, detail);
        let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
            return Err(refuse(
                "there is no Authorization header: send a bearer token",
            ));
        };
        let token = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let Some(token) = token else {
            return Err(refuse("the Authorization header holds no bearer token"));
        };
        match shared.core.tokens.role(token) {
            Some(role) => Ok(Self(role)),
            None => Err(refuse(
                "the token is not known: it was revoked, or never issued here",
            )),
        }
    }
}

/// The names in the path, in order, each of which follows the rules.
pub(super) struct Names<const N: usize>(pub(super) [String; N]);

impl<S: Send + Sync, const N: usize> FromRequestParts<S> for Names<N> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|error| Failure::new(ErrorKind::Invalid, error.body_text()))?;
        let mut names = Vec::with_capacity(N);
        for (what, name) in &params {
            name_check(what, name)?;
            names.push(name.to_owned());
        }
        names.try_into().map(Self).map_err(|names: Vec<String>| {
            let detail = format!("a route has {} names, its handler takes {N}", names.len());
            Failure::new(ErrorKind::Unavailable, detail)
        })
    }
}

/// A body of JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, shared: &App) -> Result<Self, Failure> {
        let media = request.headers().get(header::CONTENT_TYPE);
        let media = media.and_then(|value| value.to_str().ok()).unwrap_or("");
        let essence = media.split(';').next().unwrap_or("").trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let shown: String = media.chars().take(100).collect();
            let detail = format!("Content-Type is {shown:?}: application/json is wanted");
            return Err(Failure::new(ErrorKind::Media, detail));
        }
        let bytes = body_read(request, shared, shared.limits.body_max_bytes).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            // It quotes what it did not expect, which can be the whole body.
            let shown: String = error.to_string().chars().take(500).collect();
            Failure::new(ErrorKind::Invalid, format!("the body: {shown}"))
        })
    }
}

/// The bytes of a body that is no JSON.
pub(super) struct Raw(pub(super) Bytes);

impl FromRequest<App> for Raw {
    type Rejection = Failure;

    async fn from_request(request: Request, shared: &App) -> Result<Self, Failure> {
        let limit = shared.limits.invoke_body_max_bytes;
        body_read(request, shared, limit).await.map(Self)
    }
}

async fn body_read(request: Request, shared: &App, limit: usize) -> Result<Bytes, Failure> {
    let too_large = || {
        let detail = format!("the body has more than {limit} bytes");
        Failure::new(ErrorKind::TooLarge, detail)
    };
    // Who is far above it is not waited for. Of others all is read that may come, for a client that
    // still sends when the connection is closed may not see the answer.
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced / 2 > limit as u64) {
        return Err(too_large());
    }
    let within = shared.limits.body_timeout;
    let Ok(read) = tokio::time::timeout(within, Bytes::from_request(request, shared)).await else {
        let detail = format!("the body did not come within {} ms", within.as_millis());
        return Err(Failure::new(ErrorKind::Timeout, detail));
    };
    read.map_err(|error: BytesRejection| {
        let text = error.body_text();
        match error.into_response().status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => Failure::new(ErrorKind::Invalid, text),
        }
    })
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitParams {
    /// Milliseconds to wait for the outcome; zero answers at once with the process as it is.
    wait_ms: Option<u64>,
}

/// The query of an invocation.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct InvokeParams {
    /// Milliseconds to wait for the output, or for the function's beginning.
    wait_ms: Option<u64>,
    /// Answer as soon as the function has begun (202), without its output.
    #[serde(default)]
    one_way: bool,
    /// With an idempotency key: the incarnation that the process had before the first attempt. An
    /// attempt that meets another, which knows nothing of the first, is then refused (502) instead
    /// of being taken for the first; so is one of which that incarnation knows nothing, once it has
    /// forgotten anybody (more clients and keys than sessions_max).
    first_incarnation: Option<u64>,
}

/// How long an invocation may wait, and whether it is one-way or a repetition.
pub(super) struct InvokeAsk {
    pub(super) wait_ms: u64,
    pub(super) one_way: bool,
    pub(super) key: Option<String>,
    pub(super) first_incarnation: Option<u64>,
}

/// The header whose value names an invocation, so that it may be repeated.
pub(super) const KEY_HEADER: &str = "idempotency-key";

/// Bytes of an idempotency key.
const KEY_MAX_BYTES: usize = 255;

/// The idempotency key of a request, if it has one.
fn key_of(parts: &Parts) -> Result<Option<String>, Failure> {
    let mut values = parts.headers.get_all(KEY_HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    match text {
        Some(text) if (1..=KEY_MAX_BYTES).contains(&text.len()) => Ok(Some(text.to_owned())),
        _ => {
            let detail =
                format!("{KEY_HEADER} is to be given once, as 1 to {KEY_MAX_BYTES} bytes of ASCII");
            Err(Failure::new(ErrorKind::Invalid, detail))
        }
    }
}

impl FromRequestParts<App> for InvokeAsk {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &App) -> Result<Self, Failure> {
        let Query(params) = Query::<InvokeParams>::try_from_uri(&parts.uri)
            .map_err(|error| Failure::new(ErrorKind::Invalid, error.body_text()))?;
        let key = key_of(parts)?;
        if params.first_incarnation.is_some() && key.is_none() {
            let detail = format!("first_incarnation says nothing without {KEY_HEADER}");
            return Err(Failure::new(ErrorKind::Invalid, detail));
        }
        Ok(Self {
            wait_ms: wait_within(shared, params.wait_ms)?,
            one_way: params.one_way,
            key,
            first_incarnation: params.first_incarnation,
        })
    }
}

/// The time to wait that a request asks for, or the default, if that is within the limit.
fn wait_within(shared: &App, wait_ms: Option<u64>) -> Result<u64, Failure> {
    let wait_ms = wait_ms.unwrap_or(shared.limits.wait_default_ms);
    let limit = shared.limits.wait_max_ms;
    match wait_ms <= limit {
        true => Ok(wait_ms),
        false => {
            let detail = format!("wait_ms is {wait_ms}: at most {limit}");
            Err(Failure::new(ErrorKind::Invalid, detail))
        }
    }
}

/// How long a request may wait, in milliseconds.
pub(super) struct WaitMs(pub(super) u64);

impl FromRequestParts<App> for WaitMs {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &App) -> Result<Self, Failure> {
        let Query(params) = Query::<WaitParams>::try_from_uri(&parts.uri)
            .map_err(|error| Failure::new(ErrorKind::Invalid, error.body_text()))?;
        wait_within(shared, params.wait_ms).map(Self)
    }
}

/// Replies of the core as the types that handlers ask for.
macro_rules! replies {
    ($($variant:ident => $type:ty),* $(,)?) => {$(
        impl TryFrom<Reply> for $type {
            type Error = Failure;

            fn try_from(reply: Reply) -> Result<Self, Failure> {
                match reply {
                    Reply::$variant(value) => Ok(value),
                    other => Err(reply_unexpected(&other)),
                }
            }
        }
    )*};
}

replies! {
    Application => Application,
    Applications => Vec<Application>,
    Processes => Vec<Process>,
    Nodes => Vec<Node>,
    World => World,
    Token => TokenInfo,
    Tokens => Vec<TokenInfo>,
}

impl TryFrom<Reply> for Process {
    type Error = Failure;

    fn try_from(reply: Reply) -> Result<Self, Failure> {
        match reply {
            Reply::Process(process) => Ok(*process),
            other => Err(reply_unexpected(&other)),
        }
    }
}

impl TryFrom<Reply> for () {
    type Error = Failure;

    fn try_from(reply: Reply) -> Result<Self, Failure> {
        match reply {
            Reply::Done => Ok(()),
            other => Err(reply_unexpected(&other)),
        }
    }
}

pub(super) fn reply_unexpected(reply: &Reply) -> Failure {
    tracing::error!(?reply, "the core answers another question");
    Failure::new(ErrorKind::Unavailable, "the core answers another question")
}
