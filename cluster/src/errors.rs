//! How errors are told to people who see one line.

use std::error::Error;

/// An error with its causes, in one line.
pub(crate) fn error_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let of_it = error.to_string();
        // Errors that are transparent say the same as their cause.
        if !text.ends_with(&of_it) {
            text = format!("{text}: {of_it}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_is_told_with_its_causes_once() {
        let error = Outer(std::io::Error::from_raw_os_error(13));
        let text = error_text(&error);
        assert_eq!(
            text,
            "cannot open the door: Permission denied (os error 13)"
        );
        assert_eq!(error_text(&std::io::Error::other("once")), "once");
    }
}
