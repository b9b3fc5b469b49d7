//! The whole system through its command: processes live, are swapped, and outlive what is killed
//! around them.

use praas_tests::cluster_lab::{Lab, eventually, is_there, kill};
use serde_json::{Value, json};

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

/// A lab that runs, with an application of the test's functions and one process of it.
fn lab_up() -> Lab {
    let lab = lab();
    lab.one(&["up"]);
    let module = lab.module();
    let module = module.to_str().expect("UTF-8");
    lab.one(&[
        "app",
        "create",
        "a",
        "--module",
        module,
        "--setting",
        "workers=2",
    ]);
    let process = lab.one(&["process", "create", "a", "p"]);
    assert_eq!(process["state"], "ready", "{process}");
    lab
}

fn pid(value: &Value) -> u32 {
    let pid = value.as_u64().and_then(|pid| u32::try_from(pid).ok());
    pid.unwrap_or_else(|| panic!("no process id: {value}"))
}

fn count(lab: &Lab, step: u64, more: &[&str]) -> u64 {
    let step = step.to_string();
    let call = [
        "invoke", "a", "p", "count", "--data", &step, "--in", "u64", "--out", "u64",
    ];
    let answer = lab.one(&[&call, more].concat());
    answer["value"].as_u64().expect("a number")
}

#[test]
fn processes_are_called_swapped_and_come_back() {
    let lab = lab_up();
    // Starting what runs is no error, and finds it.
    let up = lab.one(&["up"]);
    assert_eq!(
        (&up["control"]["started"], &up["agent"]["started"]),
        (&json!(false), &json!(false))
    );

    for way in [
        &["--transport", "shm"][..],
        &["--transport", "unix"],
        &["--transport", "tcp"],
        &["--http"],
    ] {
        let call = ["invoke", "a", "p", "echo", "--data", "größe"];
        assert_eq!(lab.one(&[&call, way].concat())["text"], "größe");
        let call = ["invoke", "a", "p", "echo", "--data", "x", "--one-way"];
        assert_eq!(lab.one(&[&call, way].concat())["begun"], true);
    }
    let verdicts = |args: &[&str]| -> Vec<String> {
        let info = lab.one(&[&["info", "--peer", "a/p"], args].concat());
        let rows = info["candidates"].as_array().expect("a list").clone();
        let shown = |row: &Value| {
            let address = row["address"].as_str().expect("an address");
            let kind = address.split(':').next().expect("a transport");
            format!("{kind} {}", row["verdict"].as_str().expect("a verdict"))
        };
        rows.iter().map(shown).collect()
    };
    let all = ["shm chosen", "unix spare", "tcp spare"];
    assert_eq!(verdicts(&[]), all);
    let no_shm = ["--set", "client.transports_exclude=shm"];
    let without = ["unix chosen", "tcp spare", "shm rejected"];
    assert_eq!(verdicts(&no_shm), without);
    let nobody = lab.one(&["info", "--peer", "tcp:127.0.0.1:1,mem:x"]);
    let detail = nobody["candidates"].to_string();
    assert!(
        detail.contains("refused") && !detail.contains("chosen"),
        "{detail}"
    );
    let large = vec![7; 3 << 20];
    assert!(lab.piped(&["invoke", "a", "p", "echo"], &large) == large);
    let lines = lab.piped(
        &[
            "invoke", "a", "p", "echo", "--batch", "--in", "string", "--out", "string",
        ],
        b"\"one\"\n2\n\"three\"\n",
    );
    let values = ["one", "2", "three"].map(|value| json!({"value": value}).to_string() + "\n");
    assert_eq!(String::from_utf8_lossy(&lines), values.concat());
    assert_eq!(count(&lab, 5, &[]), 5);

    lab.one(&["state", "put", "a", "p", "k", "--data", "v"]);
    assert_eq!(lab.one(&["state", "get", "a", "p", "k"])["text"], "v");
    assert_eq!(lab.one(&["state", "list", "a", "p", "k"])["key"], "k");
    lab.one(&["state", "append", "a", "p", "k", "--data", "w"]);
    let version = lab.one(&["state", "list", "a", "p", "k"])["version"].to_string();
    let stale = [
        "state",
        "put",
        "a",
        "p",
        "k",
        "--if-version",
        "1",
        "--data",
        "no",
    ];
    assert!(!lab.praas(&stale).status.success());
    let swap = [
        "state",
        "put",
        "a",
        "p",
        "k",
        "--if-version",
        &version,
        "--data",
        "vw!",
    ];
    lab.one(&swap);
    assert_eq!(lab.one(&["state", "get", "a", "p", "k"])["text"], "vw!");
    lab.one(&["state", "put", "a", "p", "l", "--data", "1"]);
    lab.one(&["state", "put", "a", "p", "m", "--data", "1"]);
    let page = ["state", "list", "a", "p", "--after", "k", "--limit", "1"];
    assert_eq!(lab.one(&page)["key"], "l");
    lab.one(&["state", "put", "a", "p", "k", "--data", "v"]);
    lab.one(&["put", "a", "p", "m", "--data", "for later"]);

    let swapped = lab.one(&["swap", "a", "p"]);
    assert_eq!(swapped["state"], "swapped");
    assert_eq!(lab.one(&["ps"])["pid"], Value::Null);
    // By being called, over the data plane and over HTTP.
    assert_eq!(count(&lab, 2, &[]), 7);
    lab.one(&["swap", "a", "p"]);
    assert_eq!(count(&lab, 1, &["--http"]), 8);
    assert_eq!(lab.one(&["state", "get", "a", "p", "k"])["text"], "v");
    let message = lab.one(&["get", "a", "p", "m"]);
    assert_eq!(message["text"], "for later");
    let ps = lab.one(&["ps"]);
    assert_eq!(
        (&ps["state"], &ps["swap_generation"]),
        (&json!("ready"), &json!(2))
    );
    lab.problem(1, &["get", "a", "p", "m"]);
    assert_eq!(
        lab.one(&["state", "delete", "a", "p", "k"])["deleted"],
        true
    );
}

#[test]
fn what_fails_says_so_and_the_process_serves_on() {
    let lab = lab_up();
    let problem = lab.problem(1, &["invoke", "a", "p", "nothing"]);
    assert_eq!(problem["type"], "urn:praas:problem:not-found", "{problem}");
    let problem = lab.problem(1, &["invoke", "a", "p", "fail", "--data", "on purpose"]);
    assert!(problem.to_string().contains("on purpose"), "{problem}");
    let problem = lab.problem(1, &["invoke", "a", "p", "panics"]);
    assert!(
        problem.to_string().contains("as it was asked to"),
        "{problem}"
    );
    for way in [&[][..], &["--http"]] {
        let call = ["invoke", "a", "p", "hold", "--timeout-ms", "300"];
        let problem = lab.problem(1, &[&call, way].concat());
        assert_eq!(problem["type"], "urn:praas:problem:timeout", "{problem}");
        // The deadline has ended the function, too.
        lab.json(&["invoke", "a", "p", "echo"]);
    }
    let problem = lab.problem(
        1,
        &["invoke", "a", "nobody", "echo", "--timeout-ms", "20000"],
    );
    assert!(
        problem["hint"]
            .as_str()
            .expect("a hint")
            .contains("praas ps"),
        "{problem}"
    );
    lab.problem(2, &["app", "create", "b/c"]);
    lab.problem(2, &["invoke", "a"]);
    lab.problem(1, &["app", "create", "a"]);
    assert_eq!(count(&lab, 1, &[]), 1);
}

#[test]
fn what_is_killed_comes_back_and_disturbs_nobody() {
    let lab = lab_up();
    lab.one(&["process", "create", "a", "q"]);
    lab.one(&["swap", "a", "q"]);
    let before = lab.json(&["ps"]);
    let up = lab.one(&["up"]);

    // A call that runs all the while.
    let held = lab.background(&["invoke", "a", "p", "hold", "--data", ""]);
    let holding = || lab.praas(&["state", "get", "a", "p", "holding"]).stdout == b"yes";
    eventually("the call runs", || holding().then_some(()));

    kill(pid(&up["control"]["pid"]));
    // Not told of the control plane's end, the data plane goes on.
    assert_eq!(lab.one(&["up"])["control"]["started"], true);
    eventually("the same processes", || {
        (lab.json(&["ps"]) == before).then_some(())
    });

    kill(pid(&up["agent"]["pid"]));
    let up = lab.one(&["up"]);
    assert_eq!(
        (&up["control"]["started"], &up["agent"]["started"]),
        (&json!(false), &json!(true))
    );
    eventually("the same processes", || {
        (lab.json(&["ps"]) == before).then_some(())
    });

    lab.one(&["put", "a", "p", "release", "--data", "done"]);
    let held = held.wait_with_output().expect("it ends");
    assert!(held.status.success(), "{held:?}");
    assert_eq!(held.stdout, b"done");
    // And what was swapped out is still there to come back.
    assert_eq!(
        lab.one(&["invoke", "a", "q", "echo", "--data", "x"])["text"],
        "x"
    );
    lab.one(&["down"]);
    assert_eq!(lab.living(), []);
}

#[test]
fn what_has_a_key_runs_once_over_a_dead_control_plane() {
    let lab = lab_up();
    let invoke = |key: &str| {
        let call = [
            "invoke", "a", "p", "count", "--data", "1", "--in", "u64", "--out", "u64", "--http",
            "--key", key,
        ];
        lab.one(&call)["value"].as_u64().expect("a number")
    };
    assert_eq!(
        (invoke("first"), invoke("first"), invoke("second")),
        (1, 1, 2)
    );
    // It is swapped with what it gave.
    lab.one(&["swap", "a", "p"]);
    assert_eq!((invoke("first"), invoke("second")), (1, 2));

    let hold = [
        "invoke", "a", "p", "hold", "--data", "", "--http", "--key", "long",
    ];
    let held = lab.background(&hold);
    let holding = || lab.praas(&["state", "get", "a", "p", "holding"]).stdout == b"yes";
    eventually("the call runs", || holding().then_some(()));
    let again = lab.problem(1, &hold);
    assert_eq!(again["type"], "urn:praas:problem:conflict", "{again}");
    kill(pid(&lab.one(&["up"])["control"]["pid"]));
    let broken = held.wait_with_output().expect("it ends");
    assert!(!broken.status.success(), "{broken:?}");

    // The next attempt finds it running, and waits for it.
    lab.one(&["up"]);
    let held = lab.background(&hold);
    lab.one(&["put", "a", "p", "release", "--data", "done"]);
    let held = held.wait_with_output().expect("it ends");
    assert!(held.status.success(), "{held:?}");
    assert_eq!(held.stdout, b"done");
    assert_eq!(lab.praas(&hold).stdout, b"done");

    // A process that has lost what it knew says so to who knows when that was.
    let process = lab.one(&["ps"]);
    let before = process["incarnation"].to_string();
    let late = [
        "invoke",
        "a",
        "p",
        "count",
        "--data",
        "1",
        "--in",
        "u64",
        "--http",
        "--key",
        "third",
        "--first-incarnation",
        &before,
    ];
    assert_eq!(lab.one(&late)["function"], "count");
    kill(pid(&process["pid"]));
    eventually("its death is known", || {
        (lab.one(&["ps"])["state"] == "failed").then_some(())
    });
    let lost = lab.problem(1, &late);
    let text = lost["detail"].as_str().unwrap_or_default();
    assert!(text.contains("not known"), "{lost}");
}

#[test]
fn down_keeps_what_there_is_and_leaves_nothing() {
    let lab = lab_up();
    assert_eq!(count(&lab, 4, &[]), 4);
    let down = lab.one(&["down"]);
    assert_eq!(down["processes"], json!(["a/p"]));
    assert_eq!(down["killed"], json!([]));
    assert_eq!(lab.living(), []);
    let run_dir = lab.run_dir();
    for file in [
        "control.addr",
        "agent.addr",
        "agent.sock",
        "hosts",
        "spinners",
    ] {
        assert!(!is_there(&run_dir.join(file)), "{file}");
    }
    // Once more is no error; neither is what follows.
    assert_eq!(lab.one(&["down"])["control"], Value::Null);
    lab.one(&["up"]);
    assert_eq!(lab.one(&["ps"])["state"], "swapped");
    assert_eq!(count(&lab, 1, &[]), 5);
    let down = lab.one(&["down", "--stop", "--purge"]);
    assert_eq!(down["purged"], true, "{down}");
    assert!(!is_there(&run_dir));
    assert_eq!(lab.living(), []);
}

#[test]
fn who_lives_is_adopted_though_storage_says_nothing_of_the_dead() {
    let lab = lab_up();
    lab.one(&["process", "create", "a", "q"]);
    let pid_of = |process: &str| {
        let all = lab.json(&["ps"]);
        let one = all.iter().find(|one| one["name"] == process);
        pid(&one.unwrap_or_else(|| panic!("{all:?}"))["pid"])
    };
    let (living, dead) = (pid_of("p"), pid_of("q"));
    assert_eq!(count(&lab, 5, &[]), 5);
    kill(pid(&lab.one(&["up"])["agent"]["pid"]));
    kill(dead);
    // It is there, and never answers.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = deaf.local_addr().expect("it is bound");
    let storage = format!("agent.storage=redis://{address}/0");
    assert_eq!(
        lab.one(&["up", "--set", &storage])["agent"]["started"],
        true
    );
    eventually("q is known to be dead", || {
        let all = lab.json(&["ps"]);
        let failed = |one: &Value| one["name"] == "q" && one["state"] != "ready";
        all.iter().any(failed).then_some(())
    });
    assert_eq!(pid_of("p"), living);
    assert_eq!(count(&lab, 1, &[]), 6);
    drop(deaf);
    lab.one(&["down", "--kill"]);
}

#[test]
fn down_ends_hosts_whose_agent_and_control_plane_are_dead() {
    let lab = lab_up();
    let up = lab.one(&["up"]);
    let host = pid(&lab.one(&["ps"])["pid"]);
    kill(pid(&up["agent"]["pid"]));
    kill(pid(&up["control"]["pid"]));
    let down = lab.one(&["down", "--kill"]);
    assert_eq!(down["killed"], json!([host]));
    assert_eq!(lab.living(), []);
    lab.one(&["up"]);
    assert_eq!(lab.one(&["ps"])["state"], "failed");
    // It starts again when it is called; what it knew was never swapped out.
    lab.one(&["process", "swap-in", "a", "p"]);
    assert_eq!(count(&lab, 1, &[]), 1);
}

#[test]
fn down_swaps_out_hosts_whose_agent_is_dead() {
    let lab = lab_up();
    assert_eq!(count(&lab, 6, &[]), 6);
    let up = lab.one(&["up"]);
    let host = pid(&lab.one(&["ps"])["pid"]);
    kill(pid(&up["agent"]["pid"]));
    let down = lab.one(&["down"]);
    assert_eq!(
        (&down["ended"], &down["killed"]),
        (&json!([host]), &json!([]))
    );
    assert_eq!(lab.living(), []);
    lab.one(&["up"]);
    assert_eq!(count(&lab, 1, &[]), 7);
}

#[test]
fn many_at_once_start_one_cluster() {
    let lab = lab();
    let starters: Vec<_> = (0..4).map(|_| lab.background(&["up", "--json"])).collect();
    let mut controls = Vec::new();
    let mut started = 0;
    for starter in starters {
        let output = starter.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
        let up: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        started += u32::from(up["control"]["started"] == true);
        controls.push((pid(&up["control"]["pid"]), pid(&up["agent"]["pid"])));
    }
    controls.dedup();
    assert_eq!((controls.len(), started), (1, 1));
    // Two daemons, and no more.
    assert_eq!(lab.living().len(), 2, "{:?}", lab.living());
    lab.one(&["down", "--purge"]);
}

#[test]
fn commands_without_a_cluster_say_what_to_do() {
    let lab = lab();
    let problem = lab.problem(1, &["ps"]);
    assert!(
        problem["hint"]
            .as_str()
            .expect("a hint")
            .contains("praas up"),
        "{problem}"
    );
    lab.problem(2, &["frobnicate"]);
    assert_eq!(lab.praas(&["--help"]).status.code(), Some(0));
    let help = lab.praas(&["app", "--help"]).stdout;
    assert!(!help.contains(&0x1b), "colours where no terminal is");
    assert_eq!(lab.one(&["down"])["control"], Value::Null);
    let info = lab.one(&["info"]);
    let transports = info["transports"].as_array().expect("a list");
    let named: Vec<_> = transports.iter().map(|row| &row["transport"]).collect();
    assert_eq!(named, ["shm", "unix", "verbs", "tcp"]);
    // Where no segment can be had, that is said, and nothing dies of it.
    let limited = std::process::Command::new("sh")
        .args([
            "-c",
            "ulimit -f 8; exec \"$0\" info --json",
            env!("CARGO_BIN_EXE_praas"),
        ])
        .env("PRAAS_RUN_DIR", lab.run_dir())
        .output()
        .expect("sh runs");
    let info: Value = serde_json::from_slice(&limited.stdout).expect("an answer");
    let row = |at: usize| {
        let row = &info["transports"][at];
        (row["available"].as_bool(), row["detail"].to_string())
    };
    assert!(
        !row(0).0.unwrap() && row(0).1.contains("RLIMIT_FSIZE"),
        "{info}"
    );
    assert_eq!(row(1).0, Some(true));
    let set = lab.one(&["config", "client.wait_ms", "--set", "client.wait_ms=7"]);
    assert_eq!(set["value"], 7);
    std::fs::create_dir(lab.run_dir()).expect("a directory");
    std::fs::write(lab.run_dir().join("praas.toml"), "[control]\nhttp = 1\n").expect("a file");
    let problem = lab.problem(2, &["config"]);
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(
        detail.contains("control.http") && detail.contains("praas.toml"),
        "{problem}"
    );
    std::fs::write(lab.run_dir().join("praas.toml"), "").expect("a file");
}

/// The command starts where there is no RDMA library: it looks for it when it runs.
#[test]
fn the_command_needs_no_library_but_the_systems() {
    let listed = std::process::Command::new("readelf")
        .args(["-d", env!("CARGO_BIN_EXE_praas")])
        .output();
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIP: no readelf here, which comes with a C compiler");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert!(listed.status.success());
    let listed = String::from_utf8(listed.stdout).expect("text");
    let needed = |line: &&str| line.contains("(NEEDED)");
    let needed: Vec<&str> = listed.lines().filter(needed).collect();
    assert!(!needed.is_empty(), "{listed}");
    for line in needed {
        let ours = [
            "libc.",
            "libm.",
            "libgcc_s.",
            "ld-linux",
            "libdl.",
            "libpthread.",
            "librt.",
        ];
        assert!(ours.iter().any(|name| line.contains(name)), "{line}");
    }
}
