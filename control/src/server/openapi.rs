//! The API's description, made of the routes and types themselves.

use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

use crate::error::Problem;

/// What holds for all of the API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "praas control plane",
        description = "Applications, processes, nodes and tokens of a praas cluster.",
    ),
    components(schemas(Problem)),
    modifiers(&Bearer),
    security(("bearer" = [])),
    tags(
        (name = "applications"), (name = "processes"), (name = "invocations"),
        (name = "nodes"), (name = "tokens"), (name = "system")
    )
)]
pub(super) struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", scheme);
    }
}

/// Every answer that is no success.
#[derive(IntoResponses)]
#[response(
    status = "default",
    description = "Why not, as a problem document (RFC 9457)",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "it only describes")]
pub(super) struct Refusal(Problem);

/// Bytes as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it only describes")]
pub(super) struct Octets(Vec<u8>);

/// The API's OpenAPI document, as JSON with a newline at its end.
pub fn openapi_json() -> String {
    let (_, openapi) = super::routes_all(0).split_for_parts();
    match openapi.to_pretty_json() {
        Ok(text) => text + "\n",
        // Made of maps with string keys and of numbers only: it always has a JSON form.
        Err(error) => {
            tracing::error!(%error, "the API's description cannot be written");
            "{}\n".into()
        }
    }
}
