//! Clients in C, and modules in C and Rust that are called from anywhere, against a real cluster.

use std::process::Command;

use praas_tests::c::{client_build, module_build};
use praas_tests::cluster_lab::Lab;
use praas_tests::lab::library_path;

fn lab_up() -> Lab {
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    lab.one(&["up"]);
    lab
}

/// Makes an application of a module, with these processes.
fn application(lab: &Lab, name: &str, module: &str, processes: &[&str]) {
    lab.one(&["app", "create", name, "--module", module]);
    for process in processes {
        lab.one(&["process", "create", name, process]);
    }
}

#[test]
fn a_c_program_makes_every_call_of_a_client() {
    let lab = lab_up();
    let dir = tempfile::tempdir().expect("a directory");
    let module = module_build("tests/c/calls.c", dir.path());
    application(&lab, "a", module.to_str().expect("UTF-8"), &["p", "q"]);
    let ticket = dir.path().join("ticket");
    std::fs::write(&ticket, lab.praas(&["ticket", "a"]).stdout).expect("a file");
    let client = client_build("tests/c/client.c", dir.path());
    for transports in ["shm,unix,tcp", "tcp"] {
        let mut command = Command::new(&client);
        command.arg(&ticket).arg(lab.run_dir()).arg(transports);
        let output = command.output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{transports}: {text}");
        assert_eq!(output.stdout, b"all is so\n");
        // Once more for the other transports: what it left is as it was.
        lab.one(&["state", "delete", "a", "p", "spinning"]);
    }
}

/// The same vectors to modules in both languages give the same sums.
#[test]
fn reductions_in_rust_and_c_are_one() {
    let lab = lab_up();
    let dir = tempfile::tempdir().expect("a directory");
    let c = module_build("examples/reduction-c/reduction.c", dir.path());
    let rust = library_path("praas_reduction");
    application(&lab, "c", c.to_str().expect("UTF-8"), &["p"]);
    application(&lab, "rust", rust.to_str().expect("UTF-8"), &["p"]);
    let vector: Vec<u8> = [1_i64, -2, i64::MAX]
        .into_iter()
        .flat_map(i64::to_le_bytes)
        .collect();
    let expected: Vec<u8> = [5_i64, -10, i64::MAX.wrapping_mul(5)]
        .into_iter()
        .flat_map(i64::to_le_bytes)
        .collect();
    for application in ["c", "rust"] {
        let call = |function| ["invoke", application, "p", function];
        assert_eq!(
            lab.piped(&[&call("sum")[..], &["--raw"]].concat(), b""),
            b""
        );
        for _ in 0..5 {
            lab.piped(&call("add"), &vector);
        }
        // The sum is state: it is there again after a swap.
        lab.one(&["swap", application, "p"]);
        let sum = lab.piped(&[&call("sum")[..], &["--raw"]].concat(), b"");
        assert_eq!(sum, expected, "{application}");
        for wrong in ["12345678", "1234567", ""] {
            let problem = lab.problem(1, &[&call("add")[..], &["--data", wrong]].concat());
            let detail = problem.to_string();
            assert!(
                detail.contains("integer") || detail.contains("length"),
                "{detail}"
            );
        }
        lab.piped(&call("clear"), b"");
        assert_eq!(
            lab.piped(&[&call("sum")[..], &["--raw"]].concat(), b""),
            b""
        );
    }
}

/// Both modules take part in the measurement, and Redis if it is there.
#[test]
fn reductions_are_measured_beside_a_loop() {
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    let common = ["bench", "reduction", "--runs", "2", "--invocations", "3"];
    let more = ["--integers", "10,1000", "--transport", "shm,tcp"];
    let records = lab.json(&[&common[..], &more].concat());
    let subjects: Vec<_> = records.iter().filter(|it| it["integers"] == 10).collect();
    for transport in ["shm", "tcp"] {
        for subject in ["loop", "rust", "c"] {
            let found = subjects
                .iter()
                .find(|record| record["transport"] == transport && record["subject"] == subject);
            let record = found.unwrap_or_else(|| panic!("no {subject} in {records:?}"));
            assert!(
                record["p50_us"].as_f64().is_some_and(|us| us > 0.0),
                "{record}"
            );
        }
    }
    let table = lab.praas(&[&common[..], &["--integers", "5", "--redis", "none"]].concat());
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(
        table.contains("rust") && !table.contains("redis  "),
        "{table}"
    );
    let nothing = ["bench", "reduction", "--integers", "0"];
    lab.problem(2, &nothing);
    let missing = ["bench", "reduction", "--module", "x=/no/such.so"];
    let problem = lab.problem(1, &missing);
    assert!(problem.to_string().contains("/no/such.so"), "{problem}");
}
