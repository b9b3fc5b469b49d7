//! What tests build with the system's C compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::library_path;

fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("praas-tests is a folder")
}

/// Flags under which all C of the project compiles.
const FLAGS: &[&str] = &[
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-pedantic",
    "-O2",
];

fn compile(source: &str, out: &Path, more: &[&str]) {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let output = Command::new(&compiler)
        .args(FLAGS)
        .arg("-I")
        .arg(root().join("bindings/c/include"))
        .arg("-o")
        .arg(out)
        .arg(root().join(source))
        .args(more)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{source} does not compile: {error}"
    );
}

/// Builds a module of functions from a source below the project's folder, into a directory.
///
/// # Panics
/// It does not compile.
pub fn module_build(source: &str, dir: &Path) -> PathBuf {
    let out = dir.join("module.so");
    compile(source, &out, &["-fPIC", "-shared"]);
    out
}

/// Builds a program that is a client, likewise.
///
/// # Panics
/// It does not compile, or the library of clients was not built.
pub fn client_build(source: &str, dir: &Path) -> PathBuf {
    let library = library_path("praas_client");
    let folder = library.parent().and_then(Path::to_str).expect("UTF-8");
    let out = dir.join("client");
    let rpath = format!("-Wl,-rpath,{folder}");
    compile(source, &out, &["-L", folder, "-lpraas_client", &rpath]);
    out
}
