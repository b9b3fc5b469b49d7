//! docs/api-table.md names what is there: tests, Rust functions, C functions. A row without a test
//! is no row.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("praas-tests is a folder").to_owned()
}

fn read(below: &str) -> String {
    let path = root().join(below);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of all tables of the document, each as its columns.
fn rows(document: &str) -> Vec<Vec<String>> {
    let rows = document.lines().filter(|line| line.starts_with("| "));
    let rows = rows.map(|line| {
        line.trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().into())
    });
    rows.map(Iterator::collect)
        .filter(|row: &Vec<String>| !row.contains(&"tests".to_owned()))
        .collect()
}

/// What stands in backticks.
fn named(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Every Rust file below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All tests, as `file::function` and `folder::function`: the name of the file that has it, and of
/// each folder that it is in.
fn tests() -> BTreeSet<String> {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    let mut tests = BTreeSet::new();
    for path in found {
        let source = std::fs::read_to_string(&path).expect("a source");
        let mut places: Vec<String> = path
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        if let Some(file) = places.last_mut() {
            *file = file.trim_end_matches(".rs").to_owned();
        }
        for line in source.split("#[test]").skip(1) {
            let name = line
                .split("fn ")
                .nth(1)
                .and_then(|rest| rest.split('(').next());
            let names = places
                .iter()
                .map(|place| format!("{place}::{}", name.unwrap_or("")));
            tests.extend(names);
        }
        // Tests of `proptest!` have no line of their own for the attribute's end.
        for line in source
            .lines()
            .filter(|line| line.trim_start().starts_with("fn "))
        {
            let name = line.trim_start()["fn ".len()..].split('(').next();
            if source.contains("proptest!") {
                let names = places
                    .iter()
                    .map(|place| format!("{place}::{}", name.unwrap_or("")));
                tests.extend(names);
            }
        }
    }
    tests
}

#[test]
fn every_row_has_tests_that_are_there() {
    let document = read("docs/api-table.md");
    let (rows, tests) = (rows(&document), tests());
    assert!(rows.len() > 50, "these are not all: {}", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let last = row.last().map(String::as_str).unwrap_or_default();
        let names: Vec<_> = named(last).collect();
        if names.is_empty() {
            wrong.push(format!("no test: {}", row[0]));
        }
        for name in names {
            if !tests.contains(name) {
                wrong.push(format!("no such test: {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/api-table.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_function_that_is_named_is_there() {
    let rust = [
        ("Context", "runtime/src/context.rs"),
        ("Context", "runtime/src/context/state.rs"),
        ("Context", "runtime/src/context/messages.rs"),
        ("Context", "runtime/src/context/calls.rs"),
        ("Client", "runtime/src/client/blocking.rs"),
        ("AsyncClient", "runtime/src/client/asynchronous.rs"),
        ("Session", "cluster/src/session.rs"),
        ("ControlClient", "control/src/client.rs"),
    ]
    .map(|(ty, file)| (ty, read(file)));
    let c = read("bindings/c/include/praas.h") + &read("bindings/c/include/praas_client.h");
    let mut wrong = Vec::new();
    for row in rows(&read("docs/api-table.md"))
        .iter()
        .filter(|row| row.len() == 4)
    {
        for name in named(&row[1]) {
            if let Some((ty, function)) = name.split_once("::") {
                let mut sources = rust.iter().filter(|(known, _)| *known == ty);
                let there = sources.any(|(_, source)| {
                    let end = |end| source.contains(&format!("fn {function}{end}"));
                    end('(') || end('<')
                });
                if !there {
                    wrong.push(format!("no Rust function {name}"));
                }
            }
        }
        for name in named(&row[2]) {
            let there = match name.strip_prefix("host->") {
                Some(field) => c.contains(&format!("(*{field})(")),
                None => c.contains(name) || name.contains(' ') || name.contains('/'),
            };
            if !there && name != "auto_create" && name != "input" {
                wrong.push(format!("no C name {name}"));
            }
        }
        for column in [1, 2] {
            if row[column].is_empty() {
                wrong.push(format!("an empty column: {}", row[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/api-table.md:\n{}", wrong.join("\n"));
}

/// The other way round: whatever C can call is in the table.
#[test]
fn every_c_function_is_in_the_table() {
    let document = read("docs/api-table.md");
    let client = read("bindings/c/include/praas_client.h");
    let mut missing = Vec::new();
    for line in client.lines().filter(|line| !line.starts_with([' ', '/'])) {
        let name = line.split('(').next().unwrap_or_default();
        let name = name.rsplit([' ', '*']).next().unwrap_or_default();
        let called = line.contains('(') && name.starts_with("praas_");
        if called && !document.contains(name) {
            missing.push(name.to_owned());
        }
    }
    let table = read("runtime/src/abi/table.rs");
    let table = table
        .split("pub struct HostTable {")
        .nth(1)
        .expect("the table");
    for line in table.split("\n}\n").next().unwrap_or_default().lines() {
        let field = line
            .trim_start()
            .strip_prefix("pub ")
            .and_then(|rest| rest.split(':').next());
        if let Some(field) = field
            && field != "size"
            && !document.contains(&format!("host->{field}`"))
        {
            missing.push(format!("host->{field}"));
        }
    }
    // These have no meaning of their own: what others lend, and why they failed.
    missing.retain(|name| !["host->view_release", "host->error_set"].contains(&&**name));
    assert!(missing.is_empty(), "not in docs/api-table.md: {missing:?}");
}
