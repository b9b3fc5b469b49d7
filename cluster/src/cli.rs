//! The `praas` command.

use std::process::ExitCode;

/// Runs the `praas` command with the arguments of this process.
pub fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("host") => crate::host::host_main(),
        _ => ExitCode::FAILURE,
    }
}
