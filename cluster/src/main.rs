//! The `praas` command; everything is in [`praas_cluster::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    praas_cluster::cli::main()
}
