//! `praas.h` is the print of the ABI, and plain C and C++ without a warning.

#[path = "header/print.rs"]
mod print;

use std::path::{Path, PathBuf};
use std::process::Command;

use self::print::Printer;

fn here(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

fn read(below: &str) -> String {
    let path = here(below);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The header as it is to be.
fn header() -> String {
    let mut printer = Printer::default();
    printer.status(&read("../../runtime/src/invocation.rs"));
    printer.file(&read("../../runtime/src/abi/table.rs"));
    let first = ["(flags)", "PRAAS_LITERAL(name)", "(entry)"];
    printer.initialiser("FunctionTable", "", "name, flags, entry", &first);
    let limits = ["(concurrency)", "(time_ms)", "(memory_bytes)"];
    printer.initialiser(
        "FunctionTable",
        "_LIMITED",
        "name, flags, entry, concurrency, time_ms, memory_bytes",
        &[first, limits].concat(),
    );
    printer.initialiser(
        "ModuleTable",
        "",
        "name, functions",
        &[
            "PRAAS_ABI_VERSION",
            "sizeof(functions) / sizeof(functions)[0]",
            "PRAAS_LITERAL(name)",
            "(functions)",
        ],
    );
    let (preamble, helpers) = (read("header/preamble.h"), read("header/helpers.h"));
    format!("{preamble}\n{}{helpers}", printer.finish())
}

#[test]
fn golden_praas_h_is_the_print_of_the_abi() {
    let (path, now) = (here("include/praas.h"), header());
    if std::env::var_os("PRAAS_BLESS").is_some() {
        // Other tests read it at this moment: it is replaced at once.
        let new = here("include/praas.h.new");
        std::fs::write(&new, &now).expect("the header can be written");
        std::fs::rename(new, path).expect("the header can be replaced");
        return;
    }
    let golden = read("include/praas.h");
    let differs = golden.lines().zip(now.lines()).find(|(a, b)| a != b);
    if let Some((golden, now)) = differs {
        panic!(
            "praas.h is not what is printed now:\n  there: {golden}\n  now:   {now}\nIf the ABI was \
             meant to change, rewrite it by `just bless`"
        );
    }
    assert_eq!(
        golden.len(),
        now.len(),
        "praas.h: one is longer than the other"
    );
}

/// Compiles a source against the header; what the compiler says.
fn compile(compiler: &str, file: &str, source: &str, flags: &[&str]) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(file);
    std::fs::write(&path, source).expect("a file");
    let output = Command::new(compiler)
        .args([
            "-Wall",
            "-Wextra",
            "-Wshadow",
            "-Werror",
            "-pedantic",
            "-fPIC",
        ])
        .args(flags)
        .arg("-I")
        .arg(here("include"))
        .arg("-shared")
        .arg("-o")
        .arg(dir.path().join("out.so"))
        .arg(&path)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}"));
    match output.status.success() {
        true => String::new(),
        false => String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A module that uses every macro.
const MODULE: &str = r#"
#include "praas.h"

PRAAS_FUNCTION(echo, PRAAS_FLAG_SHORT | PRAAS_FLAG_IDEMPOTENT)
{
    return praas_output(call, host, input.ptr, input.len);
}

PRAAS_FUNCTION_NAMED(objects, "state.objects", 0)
{
    praas_raw_view view = praas_view_none();
    praas_state_entry entry;
    uint64_t count = 0;
    praas_bytes rest;
    int32_t code = host->state_list(call, praas_text(""), praas_none(), 100, &view);
    if (code != PRAAS_OK) {
        return praas_error_pass(call, host, code);
    }
    rest = view.bytes;
    while (praas_state_next(&rest, &entry)) {
        count += praas_text_is(entry.key, "x") ? 0 : 1;
    }
    praas_view_end(host, &view);
    return PRAAS_HOST_HAS(host, log) ? praas_output(call, host, &count, sizeof count) : 1;
}

PRAAS_FUNCTION_LIMITED(slow, PRAAS_FLAG_LONG, 1, 1000, 1 << 20)
{
    return PRAAS_OK;
}

PRAAS_MODULE("checked", PRAAS_USE(echo), PRAAS_USE(objects), PRAAS_USE(slow));
"#;

#[test]
fn praas_h_is_c11_without_a_warning() {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    for flags in [["-std=c11", "-O0"], ["-std=c17", "-O2"]] {
        assert_eq!(
            compile(&compiler, "module.c", MODULE, &flags),
            "",
            "{flags:?}"
        );
    }
}

#[test]
fn praas_h_is_cpp_without_a_warning() {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("SKIP C++: no {compiler}");
        return;
    }
    for flags in [["-std=c++11", "-O0"], ["-std=c++17", "-O2"]] {
        assert_eq!(
            compile(&compiler, "module.cpp", MODULE, &flags),
            "",
            "{flags:?}"
        );
    }
}
