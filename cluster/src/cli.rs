//! The `praas` command.

use std::process::ExitCode;

/// Runs the `praas` command with the arguments of this process.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
