//! Why the control plane does not do what it was asked: one kind and one sentence, which become a
//! problem document (RFC 9457) over HTTP and travel as they are to agents.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The kinds of failure. Each has one HTTP status and one problem type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is malformed, or a name or a size is not allowed.
    Invalid,
    /// No token, or one that is not known.
    Unauthorized,
    /// The token is good, but not for this.
    Forbidden,
    /// No such application, process, function, node or token.
    NotFound,
    /// The state of the thing does not allow the request.
    Conflict,
    /// The process was stopped and is not started again by itself.
    Gone,
    /// The body is above the limit.
    TooLarge,
    /// A limit of the configuration is reached.
    LimitReached,
    /// The process could not be started.
    StartFailed,
    /// The process failed to do what was asked of it.
    ProcessFailed,
    /// The function answered with an error.
    FunctionFailed,
    /// No node agent is connected that could do it.
    NoAgent,
    /// The control plane cannot store anything, or is going down.
    Unavailable,
    /// It did not happen within the time allowed; it may happen yet.
    Timeout,
    /// The path is known, the method is not for it.
    Method,
    /// The body is of another media type than the one that is read here.
    Media,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 16] = [
        Self::Invalid,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::Gone,
        Self::TooLarge,
        Self::LimitReached,
        Self::StartFailed,
        Self::ProcessFailed,
        Self::FunctionFailed,
        Self::NoAgent,
        Self::Unavailable,
        Self::Timeout,
        Self::Method,
        Self::Media,
    ];

    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Method => 405,
            Self::Conflict => 409,
            Self::Gone => 410,
            Self::TooLarge => 413,
            Self::Media => 415,
            Self::LimitReached => 429,
            Self::StartFailed | Self::ProcessFailed | Self::FunctionFailed => 502,
            Self::NoAgent | Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// The problem type: a URN that names the kind.
    pub fn urn(self) -> &'static str {
        match self {
            Self::Invalid => "urn:praas:problem:invalid",
            Self::Unauthorized => "urn:praas:problem:unauthorized",
            Self::Forbidden => "urn:praas:problem:forbidden",
            Self::NotFound => "urn:praas:problem:not-found",
            Self::Conflict => "urn:praas:problem:conflict",
            Self::Gone => "urn:praas:problem:gone",
            Self::TooLarge => "urn:praas:problem:too-large",
            Self::LimitReached => "urn:praas:problem:limit-reached",
            Self::StartFailed => "urn:praas:problem:start-failed",
            Self::ProcessFailed => "urn:praas:problem:process-failed",
            Self::FunctionFailed => "urn:praas:problem:function-failed",
            Self::NoAgent => "urn:praas:problem:no-agent",
            Self::Unavailable => "urn:praas:problem:unavailable",
            Self::Timeout => "urn:praas:problem:timeout",
            Self::Method => "urn:praas:problem:method",
            Self::Media => "urn:praas:problem:media",
        }
    }

    /// A short sentence that is the same for every problem of the kind.
    pub fn title(self) -> &'static str {
        match self {
            Self::Invalid => "The request is not valid",
            Self::Unauthorized => "A token is needed",
            Self::Forbidden => "The token does not allow this",
            Self::NotFound => "Not found",
            Self::Conflict => "Not possible in the present state",
            Self::Gone => "The process was stopped",
            Self::TooLarge => "The body is too large",
            Self::LimitReached => "A limit is reached",
            Self::StartFailed => "The process did not start",
            Self::ProcessFailed => "The process failed",
            Self::FunctionFailed => "The function failed",
            Self::NoAgent => "No node agent is connected",
            Self::Unavailable => "The control plane is not available",
            Self::Timeout => "Not done within the time allowed",
            Self::Method => "Not possible with this method",
            Self::Media => "The media type is not read here",
        }
    }
}

/// A failure: its kind and what it was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {detail}", kind.title())]
pub struct Failure {
    /// The kind.
    pub kind: ErrorKind,
    /// What was asked for, and why it failed.
    pub detail: String,
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
        }
    }

    /// The problem document.
    pub fn problem(&self) -> Problem {
        Problem {
            kind: self.kind.urn().into(),
            title: self.kind.title().into(),
            status: self.kind.status(),
            detail: self.detail.clone(),
        }
    }
}

/// A problem document (RFC 9457), sent as `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// The kind of problem, as a URN.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was asked for, and why it failed.
    pub detail: String,
}

impl Problem {
    /// The kind, where it is one that this version knows.
    pub fn error_kind(&self) -> Option<ErrorKind> {
        ErrorKind::ALL
            .into_iter()
            .find(|kind| kind.urn() == self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_type_and_is_found_by_it() {
        for kind in ErrorKind::ALL {
            let problem = Failure::new(kind, "x").problem();
            assert_eq!(problem.error_kind(), Some(kind));
            assert!((400..600).contains(&problem.status));
        }
    }
}
