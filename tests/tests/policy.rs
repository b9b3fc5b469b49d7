//! What the control plane does by itself, with real hosts: swaps out, takes checkpoints, starts
//! again.

use praas_tests::cluster_lab::{Lab, eventually, kill};
use serde_json::Value;

/// A cluster whose agent looks at its hosts often, and application a with these settings.
fn lab_up(settings: &[&str]) -> Lab {
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    lab.one(&["up", "--set", "agent.stats_interval_ms=20"]);
    application_create(&lab, settings);
    lab
}

fn application_create(lab: &Lab, settings: &[&str]) {
    let module = lab.module();
    let module = module.to_str().expect("UTF-8");
    let mut arguments = vec!["app", "create", "a", "--module", module];
    for setting in settings {
        arguments.extend(["--setting", setting]);
    }
    lab.one(&arguments);
}

fn show(lab: &Lab, process: &str) -> Value {
    lab.one(&["process", "show", "a", process])
}

fn state_wait(lab: &Lab, process: &str, state: &str) -> Value {
    eventually(state, || {
        let shown = show(lab, process);
        (shown["state"] == state).then_some(shown)
    })
}

fn call(lab: &Lab, process: &str, function: &str, input: &str) -> Value {
    let call = ["invoke", "a", process, function];
    let input = ["--data", input, "--in", "u64", "--out", "u64"];
    lab.one(&[&call[..], &input[..]].concat())["value"].clone()
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

fn pid(value: &Value) -> u32 {
    u32::try_from(number(&value["pid"])).expect("a process id")
}

#[test]
fn what_is_idle_is_swapped_out_and_comes_back_when_it_is_called() {
    let lab = lab_up(&["idle_swap_ms=300"]);
    lab.one(&["process", "create", "a", "p"]);
    assert_eq!(call(&lab, "p", "count", "5"), 5);
    let swapped = state_wait(&lab, "p", "swapped");
    assert_eq!(swapped["swap_generation"], 1);
    assert_eq!(call(&lab, "p", "count", "1"), 6);
    let back = show(&lab, "p");
    assert!(number(&back["incarnation"]) > number(&swapped["incarnation"]));
    state_wait(&lab, "p", "swapped");
}

#[test]
fn what_processes_count_is_seen_without_asking_them() {
    let lab = lab_up(&[]);
    lab.one(&["process", "create", "a", "p"]);
    call(&lab, "p", "count", "5");
    let mut holding = lab.background(&["invoke", "a", "p", "hold"]);
    let stats = eventually("what it counts", || {
        let stats = show(&lab, "p")["stats"].clone();
        // The first waits in a get.
        (stats["blocked"] == 1 && stats["invocations"] == 1).then_some(stats)
    });
    assert!(number(&stats["resident_bytes"]) > 1 << 20, "{stats}");
    assert!(number(&stats["state_bytes"]) > 10, "{stats}");
    assert!(number(&stats["work_ns"]) > 0, "{stats}");
    lab.one(&["put", "a", "p", "release", "--data", "go"]);
    let over = eventually("that is over", || {
        let shown = show(&lab, "p");
        (shown["stats"]["invocations"] == 2).then_some(shown)
    });
    assert_eq!(over["stats"]["blocked"], 0);
    assert_eq!(over["stats"]["puts"], 1);
    assert!(holding.wait().expect("it ends").success());
    // An agent that comes later finds the page again.
    let up = lab.one(&["up"]);
    kill(pid(&up["agent"]));
    lab.one(&["up", "--set", "agent.stats_interval_ms=20"]);
    call(&lab, "p", "count", "1");
    eventually("a count after that", || {
        (show(&lab, "p")["stats"]["invocations"] == 3).then_some(())
    });
    assert_eq!(lab.json(&["process", "stats", "a"]).len(), 1);
}

#[test]
fn a_node_without_memory_swaps_out_who_rests_longest() {
    const FILL: &str = "25165824";
    // How much one such process has.
    let lab = lab_up(&[]);
    lab.one(&["process", "create", "a", "p"]);
    let fill = |lab: &Lab, process: &str| {
        let fill = [
            "invoke", "a", process, "fill", "--data", FILL, "--in", "u64",
        ];
        assert!(lab.praas(&fill).status.success());
    };
    fill(&lab, "p");
    let one = eventually("its size", || {
        let stats = show(&lab, "p")["stats"].clone();
        let filled = stats["invocations"] == 1;
        filled.then(|| number(&stats["resident_bytes"]))
    });
    lab.one(&["down", "--stop", "--purge"]);
    // There is room for two and a half.
    let memory = format!("agent.memory_bytes={}", one * 29 / 10);
    let often = "agent.stats_interval_ms=20";
    lab.one(&["up", "--set", often, "--set", &memory]);
    application_create(&lab, &["swap_min_ready_ms=0"]);
    for process in ["p", "q", "r"] {
        lab.one(&["process", "create", "a", process]);
        fill(&lab, process);
    }
    let first = state_wait(&lab, "p", "swapped");
    assert_eq!(first["swap_generation"], 1);
    assert_eq!(show(&lab, "r")["state"], "ready");
}

#[test]
fn a_process_that_crashes_comes_back_from_its_checkpoint() {
    let lab = lab_up(&["restart=always", "restart_backoff_first_ms=1"]);
    let first = lab.one(&["process", "create", "a", "p"]);
    assert_eq!(call(&lab, "p", "count", "5"), 5);
    let taken = lab.one(&["process", "checkpoint", "a", "p"]);
    let checkpoint = &taken["checkpoint"];
    assert_eq!(checkpoint["generation"], 1, "{taken}");
    assert!(number(&checkpoint["bytes"]) > 0, "{taken}");
    // Nothing has changed: there is nothing to write.
    let again = lab.one(&["process", "checkpoint", "a", "p"]);
    assert_eq!(again["checkpoint"]["generation"], 1);
    assert_eq!(again["checkpoint"]["bytes"], 0);
    assert_eq!(call(&lab, "p", "count", "5"), 10, "it serves on");
    // Its caller gets an error, and it comes back by itself, as it was then.
    let problem = lab.problem(1, &["invoke", "a", "p", "crash"]);
    assert!(problem.to_string().contains("is not known"), "{problem}");
    let back = eventually("it is back", || {
        let shown = show(&lab, "p");
        let later = number(&shown["incarnation"]) > number(&first["incarnation"]);
        (shown["state"] == "ready" && later && !shown["restored"].is_null()).then_some(shown)
    });
    assert_eq!(back["restored"]["generation"], 1);
    assert_eq!(back["restored"]["checkpoint"], true);
    let written = &back["restored"]["written_unix_ms"];
    assert_eq!(written, &checkpoint["written_unix_ms"]);
    assert_eq!(back["restarts"], 1);
    assert_eq!(call(&lab, "p", "count", "1"), 6);
    // The same after kill -9.
    kill(pid(&back));
    let twice = eventually("it is back again", || {
        let shown = show(&lab, "p");
        (shown["state"] == "ready" && shown["restarts"] == 2).then_some(shown)
    });
    assert!(number(&twice["incarnation"]) > number(&back["incarnation"]));
    assert_eq!(call(&lab, "p", "count", "1"), 6);
}

#[test]
fn periodic_checkpoints_are_taken_and_one_that_fails_disturbs_nobody() {
    let lab = lab_up(&["checkpoint_interval_ms=50"]);
    lab.one(&["process", "create", "a", "p"]);
    call(&lab, "p", "count", "5");
    let first = eventually("a checkpoint", || {
        let generation = show(&lab, "p")["checkpoint"]["generation"].as_u64();
        generation.filter(|generation| *generation > 0)
    });
    // What the images lie in is no folder any more: nothing can be written.
    let swap = lab.run_dir().join("swap");
    let aside = lab.run_dir().join("swap-aside");
    std::fs::rename(&swap, &aside).unwrap();
    std::fs::write(&swap, "full").unwrap();
    assert_eq!(call(&lab, "p", "count", "1"), 6);
    let failed = eventually("an error", || {
        let shown = show(&lab, "p");
        (!shown["checkpoint_error"].is_null()).then_some(shown)
    });
    assert_eq!(failed["state"], "ready");
    assert_eq!(call(&lab, "p", "count", "1"), 7, "it serves on");
    std::fs::remove_file(&swap).unwrap();
    std::fs::rename(&aside, &swap).unwrap();
    eventually("a checkpoint again", || {
        let shown = show(&lab, "p");
        let later = shown["checkpoint"]["generation"].as_u64() > Some(first);
        (later && shown["checkpoint_error"].is_null()).then_some(())
    });
    kill(pid(&show(&lab, "p")));
    state_wait(&lab, "p", "failed");
    assert_eq!(
        call(&lab, "p", "count", "1"),
        8,
        "the last checkpoint had all"
    );
}

/// Objects that were written through are there after kill -9, at once and after a swap; all else is
/// as in the last image.
#[test]
fn what_is_written_through_outlives_the_host() {
    let lab = lab_up(&["restart=always", "restart_backoff_first_ms=1"]);
    lab.one(&["process", "create", "a", "p"]);
    let put = |key: &str, value: &str, more: &[&str]| {
        let put = ["state", "put", "a", "p", key, "--data", value];
        lab.one(&[&put[..], more].concat())
    };
    let get = |key: &str| {
        let text = lab.praas(&["state", "get", "a", "p", key, "--raw"]);
        String::from_utf8(text.stdout).expect("UTF-8")
    };
    let killed = || {
        let before = show(&lab, "p");
        kill(pid(&before));
        eventually("another start", || {
            let shown = show(&lab, "p");
            let later = number(&shown["incarnation"]) > number(&before["incarnation"]);
            (shown["state"] == "ready" && later && !shown["restored"].is_null()).then_some(shown)
        })
    };
    put("early", "1", &[]);
    put("gone", "1", &["--persist"]);
    let kept = put("kept", "1", &["--persist"]);
    assert_eq!(kept["version"], kept["persisted"]);
    put("late", "1", &[]);
    put("early", "2", &[]);
    lab.one(&["state", "delete", "a", "p", "gone"]);
    let gone = lab.one(&["state", "persist", "a", "p", "gone"]);
    assert_eq!(gone["version"], 0);
    let back = killed();
    assert_eq!(back["restored"]["checkpoint"], true, "{back}");
    assert_eq!((get("early"), get("kept")), ("1".into(), "1".into()));
    let listed = lab.json(&["state", "list", "a", "p"]);
    let keys: Vec<_> = listed.iter().map(|object| &object["key"]).collect();
    assert_eq!(keys, ["early", "kept"], "late and gone are not there");
    put("kept", "2", &["--persist"]);
    killed();
    assert_eq!(get("kept"), "2");
    // Swapped out, and back.
    put("kept", "3", &[]);
    lab.one(&["swap", "a", "p"]);
    assert_eq!(get("kept"), "3");
    put("kept", "4", &["--persist"]);
    put("kept", "5", &[]);
    killed();
    assert_eq!(get("kept"), "4");
}

#[test]
fn what_is_never_restarted_tells_its_callers_so() {
    let lab = lab_up(&["restart=never"]);
    let process = lab.one(&["process", "create", "a", "p"]);
    kill(pid(&process));
    state_wait(&lab, "p", "failed");
    let problem = lab.problem(1, &["invoke", "a", "p", "echo", "--http"]);
    assert!(problem.to_string().contains("by hand"), "{problem}");
    lab.one(&["process", "swap-in", "a", "p"]);
    assert_eq!(call(&lab, "p", "count", "5"), 5);
}

#[test]
fn hosts_get_the_variables_that_are_named_and_no_others() {
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    let mut up = lab.command(&["up"]);
    let up = up.env("SECRET_OF_THE_SHELL", "x").env("LC_PRAAS", "kept");
    assert!(up.output().expect("praas runs").status.success());
    application_create(&lab, &[r#"env={"OF_THE_APPLICATION": "yes"}"#]);
    let process = lab.one(&["process", "create", "a", "p"]);
    let environment = std::fs::read(format!("/proc/{}/environ", process["pid"])).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    let has = |word: &str| environment.split('\0').any(|line| line == word);
    assert!(has("OF_THE_APPLICATION=yes"), "{environment}");
    assert!(has("LC_PRAAS=kept"), "{environment}");
    assert!(!environment.contains("SECRET_OF_THE_SHELL"));
}
