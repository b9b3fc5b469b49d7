//! The program `connections` on a few of them: what it says, and that memory stays as messages go.

use std::process::Command;

use serde_json::Value;

/// Of each connection, both sides: what the allocator may still move about.
const SLACK_BYTES: f64 = 4096.0;

/// The lines of one transport, by their states.
fn lines(transport: &str) -> Vec<Value> {
    let done = Command::new(env!("CARGO_BIN_EXE_connections"))
        .args(["--transport", transport, "--json"])
        .args(["--connections", "30", "--messages", "1000"])
        // Larger than a bulk lane, which the first one then has been through.
        .args(["--large", "3", "--large-bytes", "1500000", "--churn", "20"])
        .output()
        .expect("the program runs");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{transport}: {errors}");
    let text = String::from_utf8(done.stdout).expect("JSON is UTF-8");
    let line = |line| serde_json::from_str(line).expect("one object a line");
    text.lines().map(line).collect()
}

fn idle_connections_cost_the_same_after_messages(transport: &str) {
    let lines = lines(transport);
    let states: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["state"].as_str())
        .collect();
    assert_eq!(
        states,
        [
            "idle, never used",
            "after 10 messages each way",
            "after 100 messages each way",
            "after 1000 messages each way",
            "after 1 of 1464 KiB",
            "after 3 of 1464 KiB",
            "all closed",
            "after 20 opened and closed",
        ]
    );
    let bytes = |at: usize| lines[at]["processes_bytes"].as_f64().expect("a number");
    for (few, many) in [(2, 3), (4, 5), (6, 7)] {
        let (few_bytes, many_bytes) = (bytes(few), bytes(many));
        assert!(
            many_bytes <= few_bytes + SLACK_BYTES,
            "{transport}: {few_bytes} bytes {}, {many_bytes} {}",
            states[few],
            states[many]
        );
    }
    let sides = |at: usize, key: &str| -> Vec<f64> {
        let sides = lines[at][key].as_array().expect("a list").iter();
        sides.map(|side| side.as_f64().expect("a number")).collect()
    };
    let apart = if transport == "mem" { 0.0 } else { 1.0 };
    assert!(
        sides(0, "descriptors").iter().all(|side| *side >= apart),
        "{lines:?}"
    );
    for at in [6, 7] {
        // A few for all of them may stay: memory of the pools.
        for key in ["descriptors", "maps"] {
            assert!(sides(at, key).iter().all(|side| *side < 0.5), "{lines:?}");
        }
    }
}

#[test]
fn in_a_process() {
    idle_connections_cost_the_same_after_messages("mem");
}

#[test]
fn over_shared_memory() {
    idle_connections_cost_the_same_after_messages("shm");
}

#[test]
fn over_unix_sockets() {
    idle_connections_cost_the_same_after_messages("unix");
}

#[test]
fn over_tcp() {
    idle_connections_cost_the_same_after_messages("tcp");
}
