//! Errors of commands: what failed, why, what to do next, and the exit code.

use std::error::Error;
use std::process::ExitCode;

use praas_control::{ClientError, ErrorKind};
use praas_runtime::invocation::InvokeError;
use serde_json::json;

use super::output::text_tame;
use crate::launch::LaunchError;
use crate::session::SessionError;

/// The exit code of what failed.
pub const FAILED: u8 = 1;
/// The exit code of what cannot be, because of how it was asked for.
pub const USAGE: u8 = 2;

/// Why a command did not do what it was to do.
#[derive(Debug)]
pub struct CliError {
    text: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    hint: Option<String>,
    kind: Option<ErrorKind>,
    code: u8,
}

impl CliError {
    /// What failed, and why.
    pub fn new(text: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::text(text)
        }
    }

    /// What failed, without any deeper cause.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            source: None,
            hint: None,
            kind: None,
            code: FAILED,
        }
    }

    /// Nobody reads the answer any more: no failure, but a reason to stop.
    pub fn unread() -> Self {
        Self {
            code: 0,
            ..Self::text("nobody reads the answer")
        }
    }

    /// What is wrong with how it was asked for.
    pub fn usage(text: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            kind: Some(ErrorKind::Invalid),
            ..Self::text(text)
        }
    }

    /// An error of ours that is about how it was asked for.
    pub fn bad(error: impl Error) -> Self {
        Self {
            code: USAGE,
            kind: Some(ErrorKind::Invalid),
            ..Self::of(error)
        }
    }

    /// An error of ours, taken apart so that it can be printed.
    pub fn of(error: impl Error) -> Self {
        let mut causes = causes(error.source());
        let source = (!causes.is_empty()).then(|| {
            causes.reverse();
            let mut chain: Option<Cause> = None;
            for text in causes {
                chain = Some(Cause {
                    text,
                    source: chain.map(Box::new),
                });
            }
            chain
        });
        let mut made = Self::text(error.to_string());
        made.source = source.flatten().map(|cause| cause.into());
        made
    }

    /// Says what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what was to be done; what was said so far is the cause.
    pub fn about(self, text: String) -> Self {
        let source = Cause {
            text: self.text,
            source: None,
        };
        Self {
            text,
            source: Some(source.into()),
            ..self
        }
    }

    fn kind(mut self, kind: Option<ErrorKind>) -> Self {
        self.kind = kind;
        if kind == Some(ErrorKind::Invalid) {
            self.code = USAGE;
        }
        self
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

/// A cause whose type is not known any more.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Cause {
    text: String,
    source: Option<Box<Cause>>,
}

fn causes(mut source: Option<&(dyn Error + 'static)>) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    while let Some(error) = source {
        causes.push(error.to_string());
        source = error.source();
    }
    causes
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let kind = error.kind();
        let hint = match (&error, kind) {
            (_, Some(ErrorKind::NoAgent)) => Some("`praas up` starts one; see `praas logs agent`"),
            (_, Some(ErrorKind::NotFound)) => {
                Some("`praas app list` and `praas ps` show what there is")
            }
            (_, Some(ErrorKind::StartFailed | ErrorKind::ProcessFailed)) => {
                Some("`praas logs APP PROCESS` shows what it wrote")
            }
            (_, Some(ErrorKind::Timeout)) => {
                Some("it may happen yet: see `praas ps`; --wait-ms waits longer")
            }
            (_, Some(ErrorKind::Unavailable)) => Some("see `praas logs control`"),
            (ClientError::Connection { .. }, _) => Some("see `praas logs control`"),
            _ => None,
        };
        let mut made = Self::of(error).kind(kind);
        made.hint = hint.map(Into::into);
        made
    }
}

impl From<SessionError> for CliError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Control(error) => error.into(),
            error => Self::of(error),
        }
    }
}

impl From<LaunchError> for CliError {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Session(error) => error.into(),
            error => Self::of(error),
        }
    }
}

impl From<InvokeError> for CliError {
    fn from(error: InvokeError) -> Self {
        let (kind, hint) = match &error {
            InvokeError::Function(_) => (Some(ErrorKind::FunctionFailed), None),
            InvokeError::Panicked(_) => (
                Some(ErrorKind::FunctionFailed),
                Some("`praas logs APP PROCESS` shows what it wrote"),
            ),
            InvokeError::UnknownFunction(_) => (
                Some(ErrorKind::NotFound),
                Some("`praas process functions APP PROCESS` shows what there is"),
            ),
            InvokeError::DeadlineExceeded => {
                (Some(ErrorKind::Timeout), Some("--timeout-ms waits longer"))
            }
            InvokeError::Unavailable { .. } => (
                Some(ErrorKind::ProcessFailed),
                Some("`praas ps` shows what there is; see `praas logs APP PROCESS`"),
            ),
            InvokeError::OutcomeUnknown => (
                Some(ErrorKind::ProcessFailed),
                Some("`praas ps` shows why it died; see `praas logs APP PROCESS`"),
            ),
            InvokeError::TooLarge(_) => (Some(ErrorKind::TooLarge), None),
            InvokeError::MailboxFull(_) | InvokeError::Exhausted(_) => {
                (Some(ErrorKind::LimitReached), Some("try again"))
            }
            _ => (None, None),
        };
        let mut made = Self::of(error).kind(kind);
        made.hint = hint.map(Into::into);
        made
    }
}

/// Prints an error for people or, as a problem document, for scripts.
pub fn report(error: &CliError, json: bool) -> ExitCode {
    let source: Option<&(dyn Error + 'static)> = match &error.source {
        Some(source) => Some(source.as_ref()),
        None => None,
    };
    if error.code() == 0 {
        return ExitCode::SUCCESS;
    }
    eprint!("{}", rendered(error, &causes(source), json));
    ExitCode::from(error.code())
}

fn rendered(error: &CliError, causes: &[String], json: bool) -> String {
    if json {
        let mut problem = json!({
            "type": error.kind.map_or("about:blank", ErrorKind::urn),
            "title": error.kind.map_or("The command failed", ErrorKind::title),
            "detail": error.text,
            "causes": causes,
        });
        if let Some(hint) = &error.hint {
            problem["hint"] = json!(hint);
        }
        return format!("{problem}\n");
    }
    // What processes say of themselves can be any text: it is to look like nothing else.
    let shown = |text: &str| text_tame(text).trim_end().replace('\n', "\n    ");
    let mut text = format!("praas: {}\n", shown(&error.text));
    for cause in causes {
        text += &format!("  because: {}\n", shown(cause));
    }
    if let Some(hint) = &error.hint {
        text += &format!("  next: {hint}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use praas_control::Failure;

    #[test]
    fn what_was_asked_for_wrongly_ends_with_two() {
        let error = |kind| CliError::from(ClientError::Problem(Failure::new(kind, "x").problem()));
        assert_eq!(error(ErrorKind::Invalid).code(), USAGE);
        assert_eq!(error(ErrorKind::NotFound).code(), FAILED);
        assert_eq!(error(ErrorKind::NoAgent).code(), FAILED);
        assert_eq!(CliError::usage("x").code(), USAGE);
        assert_eq!(CliError::from(InvokeError::OutcomeUnknown).code(), FAILED);
    }

    #[test]
    fn what_processes_say_looks_like_nothing_else() {
        let error = CliError::text("the function failed: \u{1b}[2Jno\n  next: rm -rf ~\n");
        let shown = "praas: the function failed: \\u{1b}[2Jno\n      next: rm -rf ~\n";
        assert_eq!(rendered(&error, &[], false), shown);
    }

    #[test]
    fn an_error_shows_its_causes_and_what_to_do() {
        let io = std::io::Error::other("disk on fire");
        let error = CliError::new("cannot read x", io).hint("call the fire brigade");
        let text = rendered(&error, &["disk on fire".into()], false);
        assert_eq!(
            text,
            "praas: cannot read x\n  because: disk on fire\n  next: call the fire brigade\n"
        );
        let json: serde_json::Value =
            serde_json::from_str(&rendered(&error, &["disk on fire".into()], true)).unwrap();
        assert_eq!(json["detail"], "cannot read x");
        assert_eq!(json["causes"][0], "disk on fire");
        assert_eq!(json["hint"], "call the fire brigade");
    }
}
