//! The node agent among real hosts: what it says of those that die, and what it finds again.

use std::path::PathBuf;
use std::process::Child;

use praas_cluster::run_dir::RunDir;
use praas_cluster::session::Session;
use praas_tests::cluster_lab::{Lab, eventually, is_there, kill};
use praas_transport::{Kinds, TransportKind};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn lab_up() -> Lab {
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    lab.one(&["up"]);
    let module = lab.module();
    let module = module.to_str().expect("UTF-8");
    lab.one(&["app", "create", "a", "--module", module]);
    lab.one(&["process", "create", "a", "p"]);
    lab
}

fn pid(value: &Value) -> u32 {
    let pid = value.as_u64().and_then(|pid| u32::try_from(pid).ok());
    pid.unwrap_or_else(|| panic!("no process id: {value}"))
}

fn record(lab: &Lab) -> PathBuf {
    lab.run_dir().join("hosts/a/p.json")
}

/// Waits until the process is in a state; why, if that is said.
fn state_wait(lab: &Lab, state: &str) -> String {
    eventually(state, || {
        let process = lab.one(&["ps"]);
        let there = process["state"] == state;
        there.then(|| process["error"].as_str().unwrap_or_default().to_owned())
    })
}

fn terminate(child: u32) {
    let pid = i32::try_from(child).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a pid"), Signal::TERM).expect("it lives");
}

fn hosts(lab: &Lab) -> usize {
    let living = lab.living();
    living
        .iter()
        .filter(|(_, line)| line.contains(" host "))
        .count()
}

#[test]
fn hosts_are_spread_over_the_processors_that_they_are_bound_to() {
    let allowed = praas_cluster::topology::cpus_allowed();
    if allowed.len() < 2 {
        println!("SKIP: there is one processor only");
        return;
    }
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    lab.one(&["up"]);
    lab.one(&["app", "create", "a", "--setting", "cpus=1"]);
    let bound = |process: &str| {
        let pid = lab.one(&["process", "create", "a", process])["pid"].clone();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().parse::<u32>().unwrap()
    };
    let mut cpus = [bound("p"), bound("q")];
    cpus.sort_unstable();
    assert_eq!(cpus, allowed[..2]);
}

#[test]
fn a_host_that_is_killed_is_reported_and_leaves_nothing() {
    let lab = lab_up();
    assert!(is_there(&record(&lab)));
    kill(pid(&lab.one(&["ps"])["pid"]));
    let why = state_wait(&lab, "failed");
    assert!(why.contains("its host ended: killed by SIGKILL"), "{why}");
    assert_eq!(hosts(&lab), 0);
    eventually("no record", || (!is_there(&record(&lab))).then_some(()));
    // It starts again, and what is said of a start that fails is the host's own word.
    lab.one(&["process", "swap-in", "a", "p"]);
    lab.one(&["app", "create", "b", "--module", "/no/such.so", "--remote"]);
    let problem = lab.problem(1, &["process", "create", "b", "p"]);
    assert!(problem.to_string().contains("/no/such.so"), "{problem}");
    // The loader's own words are, too.
    assert!(problem.to_string().contains("No such file"), "{problem}");
    // What no host takes is refused before there is one.
    let problem = lab.problem(2, &["app", "create", "c", "--setting", "wrkers=1"]);
    assert!(problem.to_string().contains("wrkers"), "{problem}");
}

#[test]
fn hosts_of_a_killed_agent_are_found_again_whatever_became_of_them() {
    let lab = lab_up();
    lab.one(&["process", "create", "a", "q"]);
    let host = |name: &str| {
        let all = lab.json(&["ps"]);
        let one = all.iter().find(|process| process["name"] == name);
        one.unwrap_or_else(|| panic!("{all:?}")).clone()
    };
    let (p, q) = (host("p"), host("q"));
    let up = lab.one(&["up"]);
    kill(pid(&up["agent"]["pid"]));
    // One dies while nobody looks, the other lives on.
    kill(pid(&q["pid"]));
    lab.one(&["up"]);
    eventually("the dead one is known", || {
        (host("q")["state"] == "failed").then_some(())
    });
    let fixed = |process: &Value| {
        let keys = ["state", "pid", "incarnation", "addresses"];
        keys.map(|key| process[key].clone())
    };
    assert_eq!(fixed(&host("p")), fixed(&p));
    eventually("its record is gone", || {
        let record = lab.run_dir().join("hosts/a/q.json");
        (!is_there(&record)).then_some(())
    });
    // It is the agent's own now: it obeys, and its death is noticed.
    lab.one(&["swap", "a", "p"]);
    lab.one(&["swap", "a", "p", "--in"]);
    kill(pid(&host("p")["pid"]));
    eventually("the death is noticed", || {
        (host("p")["state"] == "failed").then_some(())
    });
}

#[test]
fn an_agent_that_ends_alone_keeps_its_processes_state() {
    let lab = lab_up();
    let call = [
        "invoke", "a", "p", "count", "--data", "5", "--in", "u64", "--out", "u64",
    ];
    assert_eq!(lab.one(&call)["value"], 5);
    let up = lab.one(&["up"]);
    kill(pid(&up["control"]["pid"]));
    terminate(pid(&up["agent"]["pid"]));
    eventually("the agent has ended", || {
        (!is_there(&lab.run_dir().join("agent.addr"))).then_some(())
    });
    assert_eq!(hosts(&lab), 0);
    // Nobody has heard of it yet: the record is there for the next.
    assert!(is_there(&record(&lab)));
    eventually("it can be started anew", || {
        lab.praas(&["up"]).status.success().then_some(())
    });
    state_wait(&lab, "swapped");
    assert_eq!(lab.one(&call)["value"], 10);
}

#[test]
fn clients_find_an_agent_again_that_was_killed() {
    let lab = lab_up();
    let run_dir = RunDir::open(&lab.run_dir()).unwrap();
    let session = Session::open(&run_dir).unwrap();
    let kinds = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];
    let mut clients = kinds.map(|kind| session.client("a", Kinds::only(kind)).unwrap());
    for client in &mut clients {
        let _: u64 = client.invoke_value("p", "count", &1_u64).unwrap();
    }
    let up = lab.one(&["up"]);
    kill(pid(&up["agent"]["pid"]));
    assert_eq!(lab.one(&["up"])["directory"], up["directory"]);
    // Whoever wants it now must ask where it is.
    lab.one(&["swap", "a", "p"]);
    for (client, expected) in clients.iter_mut().zip(4..) {
        let count: u64 = client.invoke_value("p", "count", &1_u64).unwrap();
        assert_eq!(count, expected);
    }
}

#[test]
fn logs_that_cannot_be_written_end_nothing() {
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    RunDir::create(&lab.run_dir()).unwrap();
    let logs = lab.run_dir().join("logs");
    std::fs::create_dir_all(logs.join("a")).unwrap();
    for log in ["control.log", "agent.log", "a/p.log"] {
        std::os::unix::fs::symlink("/dev/full", logs.join(log)).unwrap();
    }
    let up = lab.one(&["up"]);
    let module = lab.module();
    let module = module.to_str().expect("UTF-8");
    lab.one(&["app", "create", "a", "--module", module]);
    lab.one(&["process", "create", "a", "p"]);
    let call = [
        "invoke", "a", "p", "count", "--data", "5", "--in", "u64", "--out", "u64",
    ];
    assert_eq!(lab.one(&call)["value"], 5);
    lab.one(&["swap", "a", "p"]);
    assert_eq!(lab.one(&call)["value"], 10);
    let now = lab.one(&["up"]);
    for daemon in ["control", "agent"] {
        assert_eq!(now[daemon]["pid"], up[daemon]["pid"], "{daemon}");
    }
}

#[test]
fn a_second_agent_is_refused() {
    let lab = lab_up();
    let output = Child::wait_with_output(lab.background(&["agent"])).expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("runs already"),
        "{text}"
    );
    // The first one is not disturbed.
    lab.json(&["invoke", "a", "p", "echo"]);
}
