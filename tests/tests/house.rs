//! The rules of the house that a compiler does not check: which crate may see which, where unsafe
//! code may be, what a default build needs, that every decoder is fuzzed, and that documents name
//! what is there.
//!
//! ```text
//!             benches      tests            (nobody depends on these)
//!                \          /
//!                 cluster ----> examples/kmeans
//!                /        \          |
//!           control     runtime <----+      do not see each other
//!                \        /
//!                transport
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Who may depend on whom. A new edge is a commit of its own, here and in ARCHITECTURE.md.
const EDGES: &[(&str, &[&str])] = &[
    ("praas-transport", &[]),
    ("praas-macros", &[]),
    ("praas-runtime", &["praas-macros", "praas-transport"]),
    ("praas-control", &["praas-transport"]),
    ("praas-kmeans", &["praas-runtime"]),
    (
        "praas-cluster",
        &[
            "praas-control",
            "praas-kmeans",
            "praas-runtime",
            "praas-transport",
        ],
    ),
    ("praas-benches", EVERYTHING_BELOW),
    ("praas-tests", EVERYTHING_BELOW),
];

const EVERYTHING_BELOW: &[&str] = &[
    "praas-c",
    "praas-cluster",
    "praas-control",
    "praas-kmeans",
    "praas-macros",
    "praas-reduction",
    "praas-runtime",
    "praas-transport",
];

/// Where unsafe code may be: what a path below the workspace starts with.
const UNSAFE_IN: &[&str] = &[
    "transport/src/verbs",
    "transport/src/shm",
    "transport/src/sync",
    "transport/src/buf",
    "runtime/src/abi",
    "cluster/src/spawn",
    "cluster/src/hwloc",
    "bindings/",
];

/// Files besides, each with its reason.
const UNSAFE_BESIDES: &[(&str, &str)] = &[
    (
        "runtime/src/lib.rs",
        "the macro that gives a module its one C symbol writes #[unsafe(no_mangle)]",
    ),
    (
        "tests/tests/house.rs",
        "this file names what it looks for, in its tests",
    ),
];

/// Packages that need more than cargo and a C compiler, by their names.
const TOOLS_BANNED: &[&str] = &[
    "bindgen",
    "clang-sys",
    "cmake",
    "nasm-rs",
    "openssl-src",
    "pkg-config",
    "prost-build",
    "protobuf-src",
    "system-deps",
    "vcpkg",
];

/// `-sys` packages that link nothing: their bindings are plain Rust.
const SYS_ALLOWED: &[&str] = &["linux-raw-sys", "zstd-sys"];

/// Packages that say they link a native library, and bring and build its source themselves.
const LINKS_ALLOWED: &[&str] = &["zstd-sys"];

/// Packages that look for a library only if the environment tells them to, and build it else.
const PKG_CONFIG_ALLOWED: &[&str] = &["zstd-sys"];

/// Packages that may run the C compiler, each with its reason.
const CC_ALLOWED: &[(&str, &str)] = &[
    ("blake3", "hashing by the processor's vector instructions"),
    (
        "zstd-sys",
        "the compressor, whose source it brings: eight seconds of C",
    ),
    ("alloca", "criterion's; not part of the product"),
];

fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("praas-tests is a folder").to_owned()
}

/// What cargo knows of the workspace, and of all it depends on.
fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {error}");
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// The packages of the workspace.
fn members(metadata: &Value) -> impl Iterator<Item = &Value> {
    let members: BTreeSet<&str> = list(&metadata["workspace_members"])
        .iter()
        .map(text)
        .collect();
    let packages = list(&metadata["packages"]).iter();
    packages.filter(move |package| members.contains(text(&package["id"])))
}

#[test]
fn crates_see_only_whom_they_may() {
    let metadata = metadata();
    let mut wrong = Vec::new();
    for package in members(&metadata) {
        let name = text(&package["name"]);
        let below_runtime = ["/examples/", "/bindings/"]
            .iter()
            .any(|folder| text(&package["manifest_path"]).contains(folder));
        let allowed = EDGES.iter().find(|(from, _)| *from == name);
        let allowed = match (allowed, below_runtime) {
            (Some((_, allowed)), _) => *allowed,
            (None, true) => &["praas-runtime"],
            (None, false) => {
                wrong.push(format!("{name} is new: give it a line in EDGES"));
                continue;
            }
        };
        let edges = list(&package["dependencies"]).iter();
        for to in edges
            .filter(|edge| edge["path"].is_string())
            .map(|edge| text(&edge["name"]))
        {
            if to != name && !allowed.contains(&to) {
                wrong.push(format!("{name} must not depend on {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "the crate graph: {}", wrong.join("; "));
}

#[test]
fn crates_forbid_what_the_workspace_forbids() {
    let metadata = metadata();
    for package in members(&metadata) {
        let manifest = std::fs::read_to_string(text(&package["manifest_path"])).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} does not take the workspace's lints",
            text(&package["name"])
        );
    }
}

#[test]
fn a_default_build_needs_cargo_and_a_c_compiler_only() {
    let metadata = metadata();
    let mut wrong = Vec::new();
    for package in list(&metadata["packages"]) {
        let name = text(&package["name"]);
        let asks = |package: &Value| {
            let mut edges = list(&package["dependencies"]).iter();
            edges.any(|edge| text(&edge["name"]) == name)
        };
        let tolerated = name == "pkg-config"
            && list(&metadata["packages"])
                .iter()
                .filter(|package| asks(package))
                .all(|package| PKG_CONFIG_ALLOWED.contains(&text(&package["name"])));
        if TOOLS_BANNED.contains(&name) && !tolerated {
            wrong.push(format!("{name} wants tools that not every machine has"));
        }
        if name.ends_with("-sys") && !SYS_ALLOWED.contains(&name) {
            wrong.push(format!("{name} binds a system library"));
        }
        // Such a library is looked for, or built, by a build script.
        if let Some(links) = package["links"].as_str()
            && !LINKS_ALLOWED.contains(&name)
        {
            wrong.push(format!("{name} links the native library {links}"));
        }
        let compiles_c = list(&package["dependencies"])
            .iter()
            .any(|edge| text(&edge["name"]) == "cc" && edge["kind"].as_str() == Some("build"));
        if compiles_c && !CC_ALLOWED.iter().any(|(allowed, _)| *allowed == name) {
            wrong.push(format!("{name} compiles C: put its reason into CC_ALLOWED"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

/// Every Rust file of the project, its path below the workspace.
fn sources() -> Vec<(String, PathBuf)> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, PathBuf)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') || name == "target" || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                walk(root, &path, found);
            } else if name.ends_with(".rs") {
                let below = path.strip_prefix(root).unwrap_or(&path);
                found.push((below.to_string_lossy().into_owned(), path));
            }
        }
    }
    let root = workspace();
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.sort();
    assert!(found.len() > 50, "these are not all: {found:?}");
    found
}

/// Whether a line has the keyword, rather than a comment or a name with it.
fn line_is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let word = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    code.match_indices("unsafe").any(|(at, found)| {
        let bytes = code.as_bytes();
        let before = at.checked_sub(1).map(|at| bytes[at]);
        let after = bytes.get(at + found.len()).copied();
        !word(before) && !word(after) && before != Some(b'"')
    })
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    assert!(line_is_unsafe("    let x = unsafe { f() };"));
    assert!(line_is_unsafe("#[unsafe(no_mangle)]"));
    assert!(!line_is_unsafe("unsafe_code = 1 // unsafe"));
    let mut wrong = Vec::new();
    for (below, path) in sources() {
        let allowed = UNSAFE_IN.iter().any(|start| below.starts_with(start))
            || UNSAFE_BESIDES.iter().any(|(file, _)| *file == below);
        if allowed {
            continue;
        }
        let source = std::fs::read_to_string(path).unwrap();
        for (number, line) in source.lines().enumerate() {
            if line_is_unsafe(line) || line.contains("allow(unsafe_code") {
                wrong.push(format!("{below}:{}", number + 1));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe code belongs to {UNSAFE_IN:?}, not to {}",
        wrong.join(", ")
    );
}

/// Every decoder's body is public as `fuzz_*`: each has its target, and proptest runs it by default.
#[test]
fn every_decoder_is_fuzzed() {
    let targets = workspace().join("fuzz/fuzz_targets");
    let manifest = std::fs::read_to_string(workspace().join("fuzz/Cargo.toml")).unwrap();
    let mut called = String::new();
    for entry in std::fs::read_dir(targets).unwrap() {
        let path = entry.unwrap().path();
        called.push_str(&std::fs::read_to_string(&path).unwrap());
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let declared = format!("name = \"{name}\"");
        assert!(
            manifest.contains(&declared),
            "fuzz/Cargo.toml: no {declared}"
        );
    }
    let mut bodies = 0;
    for (below, path) in sources() {
        let source = std::fs::read_to_string(path).unwrap();
        for (at, found) in source.match_indices("\npub fn fuzz_") {
            let name = source[at + found.len() - "fuzz_".len()..]
                .split('(')
                .next()
                .unwrap_or_default();
            bodies += 1;
            assert!(
                called.contains(&format!("::{name}(")),
                "{below}: no target in fuzz/ calls {name}"
            );
            let calls = source.matches(&format!("{name}(")).count();
            let elsewhere = ["swap/mod.rs"].iter().any(|file| below.ends_with(file));
            assert!(
                calls > 1 || elsewhere,
                "{below}: no test there calls {name} under proptest"
            );
        }
    }
    assert!(bodies > 10, "these are not all");
}

/// The files that a document names: targets of its links, and paths in backticks.
fn files_named(document: &str) -> Vec<String> {
    let mut named = Vec::new();
    for (at, _) in document.match_indices("](") {
        let target = document[at + 2..].split([')', '#']).next();
        named.extend(target.map(str::to_owned));
    }
    for word in document.split('`').skip(1).step_by(2) {
        let word = word.split("::").next().unwrap_or_default();
        let path = word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        let folder = [
            "benches/",
            "cluster/",
            "control/",
            "docs/",
            "examples/",
            "fuzz/",
        ]
        .iter()
        .chain(&["runtime/", "tests/", "transport/"])
        .any(|folder| word.starts_with(folder));
        if path && folder {
            named.push(word.to_owned());
        }
    }
    named
}

#[test]
fn documents_name_what_is_there() {
    // What is to come, each with the document that says so.
    const TO_COME: &[&str] = &["cluster/src/agent/"];
    let root = workspace();
    let mut missing = Vec::new();
    for folder in ["", "docs"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let document = std::fs::read_to_string(&path).unwrap();
            for named in files_named(&document) {
                let here = path.parent().unwrap_or(&root).join(&named);
                let away = named.contains("://") || named.is_empty();
                if !away && !here.exists() && !root.join(&named).exists() {
                    missing.push(format!("{}: {named}", path.display()));
                }
            }
        }
    }
    missing.retain(|text| !TO_COME.iter().any(|file| text.ends_with(file)));
    assert!(missing.is_empty(), "no such files:\n{}", missing.join("\n"));
}

/// Minutes that all lanes of `.ci/run` may take together, by their budgets.
const LANES_MINUTES_MAX: u32 = 44;

/// The lanes and their minutes: from lines of `.ci/run` as `  lint) lane lint 5 ;;`.
fn lanes(run: &str) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for line in run.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [case, "lane", name, minutes, ";;"] = words[..] {
            assert_eq!(case, format!("{name})"), "a lane under another's name");
            found.push((name.to_owned(), minutes.parse().expect("minutes")));
        }
    }
    found
}

#[test]
fn lanes_have_the_budgets_that_are_written_down() {
    let root = workspace();
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let run = read(".ci/run");
    let contributing = read("CONTRIBUTING.md");
    let lanes = lanes(&run);
    assert!(lanes.len() > 5, "these are not all: {lanes:?}");
    let mut together = 0;
    for (name, minutes) in &lanes {
        let row = format!("| `{name}` | {minutes} |");
        assert!(
            contributing.contains(&row),
            "CONTRIBUTING.md has no row {row}"
        );
        if run.contains(&format!("\"$0\" {name}\n")) {
            together += minutes;
        }
    }
    assert!(
        (1..=LANES_MINUTES_MAX).contains(&together),
        "all lanes together may take {together} minutes"
    );
}
