//! `praas bench latency` makes its records, also where both processes share one CPU.

use std::process::Command;

use serde_json::Value;

fn records(arguments: &[&str]) -> Vec<Value> {
    let done = Command::new(env!("CARGO_BIN_EXE_praas"))
        .args(["bench", "latency", "--json"])
        .args(arguments)
        .output()
        .expect("praas runs");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{arguments:?}: {errors}");
    let text = String::from_utf8(done.stdout).expect("JSON is UTF-8");
    let line = |line| serde_json::from_str(line).expect("one object a line");
    text.lines().map(line).collect()
}

fn whats(records: &[Value]) -> Vec<String> {
    let named = |record: &Value| {
        let text = |key| record[key].as_str().expect("a text");
        let (transport, what) = (text("transport"), text("what"));
        format!("{transport} {} {what}", record["bytes"])
    };
    records.iter().map(named).collect()
}

#[test]
fn every_record_is_there_with_machine_and_commit() {
    let records = records(&["--bytes", "8,100000", "--runs", "2"]);
    let mut expected = Vec::new();
    for transport in ["shm", "unix", "tcp"] {
        for bytes in [8, 100_000] {
            for what in ["floor", "channel", "invoke"] {
                expected.push(format!("{transport} {bytes} {what}"));
            }
        }
    }
    assert_eq!(whats(&records), expected);
    for record in records {
        let mut keys: Vec<&String> = record.as_object().expect("an object").keys().collect();
        keys.sort_unstable();
        let all = [
            "bytes",
            "commit",
            "floor_ratio",
            "machine",
            "over_channel_ns",
            "p50_ns",
            "p99_ns",
            "transport",
            "what",
        ];
        assert_eq!(keys, all);
        let (p50, p99) = (record["p50_ns"].as_f64(), record["p99_ns"].as_f64());
        assert!(p50 > Some(0.0) && p99 >= p50, "{record}");
        assert_eq!(
            record["floor_ratio"].is_number(),
            record["what"] == "channel"
        );
        assert_eq!(
            record["over_channel_ns"].is_number(),
            record["what"] == "invoke"
        );
        let machine = &record["machine"];
        assert!(
            machine["cpu"].is_string() && machine["kernel"].is_string(),
            "{machine}"
        );
        assert!(machine["cores"].is_number() && record["commit"].is_string());
    }
}

#[test]
fn a_measurement_on_one_cpu_ends() {
    let records = records(&["--bytes", "8", "--runs", "1", "--pin", "0,0"]);
    assert_eq!(records.len(), 9);
}

#[test]
fn only_what_is_asked_for_is_measured() {
    let records = records(&[
        "--transport",
        "shm",
        "--what",
        "channel",
        "--bytes",
        "64",
        "--runs",
        "1",
    ]);
    assert_eq!(whats(&records), ["shm 64 channel"]);
    assert!(records[0]["floor_ratio"].is_null());
}

#[test]
fn what_cannot_be_measured_is_a_wrong_use() {
    for wrong in [
        &["--bytes", "0"][..],
        &["--transport", "mem"],
        &["--what", "nothing"],
        &["--pin", "0"],
    ] {
        let done = Command::new(env!("CARGO_BIN_EXE_praas"))
            .args(["bench", "latency"])
            .args(wrong)
            .output()
            .expect("praas runs");
        assert_eq!(done.status.code(), Some(2), "{wrong:?}");
    }
}
