//! Where the two modules and the Redis server are.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::BenchError;

const SOURCE: &str = include_str!("../../../../examples/reduction-c/reduction.c");
const HEADER: &str = include_str!("../../../../bindings/c/include/praas.h");

/// The Rust module: beside this program, or in `deps/` there; the newer one of both.
pub(super) fn rust_find() -> Result<PathBuf, BenchError> {
    let program = std::env::current_exe();
    let program = program.map_err(BenchError::system("find out which program this is"))?;
    let here = program.parent().unwrap_or(Path::new("/"));
    let places = ["", "deps", "examples"].map(|folder| here.join(folder));
    let found = places
        .iter()
        .map(|folder| folder.join("libpraas_reduction.so"))
        .filter(|path| path.is_file());
    let changed = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).ok();
    found.max_by_key(changed).ok_or_else(|| {
        let text = format!(
            "is not to be had: libpraas_reduction.so is not in {} (cargo build --release -p \
             praas-reduction), or name it by --module rust=PATH",
            here.display()
        );
        BenchError::Peer(text)
    })
}

/// Builds the C module in a directory, by the system's C compiler.
pub(super) fn c_build(dir: &Path) -> Result<PathBuf, BenchError> {
    let write = |file: &str, text: &str| {
        let path = dir.join(file);
        std::fs::write(&path, text).map_err(BenchError::system(format!("write {}", path.display())))
    };
    write("reduction.c", SOURCE)?;
    write("praas.h", HEADER)?;
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let out = dir.join("reduction.so");
    let output = Command::new(&compiler)
        .args(["-std=c11", "-O3", "-fPIC", "-shared", "-I", ".", "-o"])
        .arg(&out)
        .arg("reduction.c")
        .current_dir(dir)
        .output()
        .map_err(BenchError::system(format!("run {compiler}")))?;
    match output.status.success() {
        true => Ok(out),
        false => Err(BenchError::Peer(format!(
            "in C does not compile: {}",
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}

/// A program of the path.
pub(in crate::bench) fn program_find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}
