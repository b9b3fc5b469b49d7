//! Prints the table of backends and promises from the records of a run of the conformance suite:
//! `conformance-matrix DIRECTORY`. Fails if a promise was broken, or none recorded.

use std::path::PathBuf;
use std::process::ExitCode;

use praas_tests::conformance::record::Matrix;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: conformance-matrix DIRECTORY");
        return ExitCode::from(2);
    };
    match Matrix::read(&dir) {
        Ok(matrix) => {
            print!("{}", matrix.table());
            ExitCode::from(u8::from(matrix.failed()))
        }
        Err(error) => {
            eprintln!("{}: {error}", dir.display());
            ExitCode::from(2)
        }
    }
}
