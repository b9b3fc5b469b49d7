//! One application on two nodes: two agents with a run directory each, under one control plane, as
//! on two machines; and once more in two network namespaces, where that may be done.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use praas_cluster::run_dir::RunDir;
use praas_cluster::session::Session;
use praas_control::ControlAddr;
use praas_runtime::client::{CallOptions, Client};
use praas_runtime::process::{LINKS, LinkInfo};
use praas_tests::cluster_lab::{Lab, eventually, kill};
use praas_tests::lab::example_path;
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use praas_transport::{Kinds, TransportKind};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Where the second node is.
enum Where {
    /// Beside the first, which it takes for another machine.
    Beside,
    /// In another network namespace, and so is the first: their names.
    Apart(String),
}

/// A program in a file, for labs that start `praas` by its path.
fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).expect("a mode");
}

fn succeeds(command: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["-c", command]).output();
    let output = output.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Two nodes. What still runs at their end is ended.
struct Nodes {
    lab: Lab,
    at: Where,
    second: PathBuf,
    agent: Option<Child>,
    dir: tempfile::TempDir,
}

impl Nodes {
    /// The control plane and an agent on the first node; nothing on the second.
    fn new(at: Where) -> Self {
        let dir = tempfile::Builder::new().prefix("praas-nodes-").tempdir();
        let dir = dir.expect("a directory");
        let praas = env!("CARGO_BIN_EXE_praas");
        let program = dir.path().join("praas-first");
        match &at {
            Where::Beside => script(&program, &format!("exec {praas} \"$@\"")),
            Where::Apart(name) => {
                let text = format!("exec ip netns exec {name}-1 {praas} \"$@\"");
                script(&program, &text);
            }
        }
        let nodes = Self {
            lab: Lab::new(program),
            at,
            second: dir.path().join("second"),
            agent: None,
            dir,
        };
        let mut up = vec!["up", "--set", "agent.node=first"];
        let storage = nodes.storage();
        up.extend(["--set", &storage]);
        if let Where::Apart(_) = nodes.at {
            up.extend(["--set", "control.agent_listen=10.77.0.1:7411"]);
            up.extend(["--set", "control.beyond_loopback=true"]);
        }
        let beyond = nodes.beyond(1);
        up.extend(beyond.iter().map(String::as_str));
        nodes.lab.one(&up);
        std::fs::create_dir(&nodes.second).expect("a directory");
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&nodes.second, mode).expect("a mode");
        let secret = "cluster.secret";
        let copied = std::fs::copy(nodes.lab.run_dir().join(secret), nodes.second.join(secret));
        copied.expect("the secret");
        nodes
    }

    /// Images lie where both nodes see them.
    fn storage(&self) -> String {
        format!(
            "agent.storage=file:{}",
            self.dir.path().join("images").display()
        )
    }

    /// The settings of an agent whose node has an address of its own.
    fn beyond(&self, node: u8) -> Vec<String> {
        match self.at {
            Where::Beside => Vec::new(),
            Where::Apart(_) => [
                format!("agent.directory_listen=10.77.0.{node}:0"),
                format!("agent.host_listen=[\"10.77.0.{node}:0\"]"),
                "agent.beyond_loopback=true".to_owned(),
            ]
            .into_iter()
            .flat_map(|setting| ["--set".to_owned(), setting])
            .collect(),
        }
    }

    /// Starts the second node's agent, or starts it again.
    fn second_start(&mut self) {
        let control = ControlAddr::read(&self.lab.run_dir().join("control.addr"));
        let control = control.expect("a control plane");
        let tcp = control.agents.iter().map(ToString::to_string);
        let tcp = tcp.filter(|address| address.starts_with("tcp:"));
        let mut command = match &self.at {
            Where::Beside => Command::new(env!("CARGO_BIN_EXE_praas")),
            Where::Apart(name) => {
                let mut command = Command::new("ip");
                let namespace = format!("{name}-2");
                command.args(["netns", "exec", &namespace, env!("CARGO_BIN_EXE_praas")]);
                command
            }
        };
        command.arg("agent").arg("--run-dir").arg(&self.second);
        command.args(["--node", "second", "--set", &self.storage()]);
        command.args(self.beyond(2)).arg("--control").args(tcp);
        if let Where::Beside = self.at {
            // It takes itself for another machine, and so do its hosts.
            command.env("PRAAS_HOST_ID", "000000000000000000000000000000b2");
        }
        let log = self.dir.path().join("second.log");
        let log = std::fs::File::options().create(true).append(true).open(log);
        let log = log.expect("a log");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.agent = Some(command.spawn().expect("praas agent"));
        self.connected_wait("second", true);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("second.log")).unwrap_or_default()
    }

    fn connected_wait(&self, node: &str, connected: bool) {
        eventually(&format!("{node} connected: {connected}"), || {
            let nodes = self.lab.json(&["node", "list"]);
            let found = nodes.iter().find(|row| row["name"] == node);
            found
                .filter(|row| row["connected"] == connected)
                .map(|_| ())
        });
    }

    /// A client on the first node.
    fn client(&self) -> Client {
        let run_dir = RunDir::open(&self.lab.run_dir()).expect("a run directory");
        let session = Session::open(&run_dir).expect("a session");
        session.client("a", Kinds::all()).expect("a client")
    }

    fn process(&self, name: &str) -> Value {
        let all = self.lab.json(&["ps"]);
        let found = all.iter().find(|process| process["name"] == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {all:?}"))
            .clone()
    }

    /// The application of all calls, and processes until there are two here and one there.
    fn processes_start(&self) -> [String; 3] {
        let module = example_path("calls");
        let module = module.to_str().expect("UTF-8");
        let settings = ["--setting", "workers=2"];
        self.lab
            .one(&[&["app", "create", "a", "--module", module], &settings[..]].concat());
        let mut on = [Vec::new(), Vec::new()];
        for name in ["p", "q", "r", "s"] {
            self.lab.one(&["process", "create", "a", name]);
            let node = self.process(name)["node"].clone();
            on[usize::from(node == "second")].push(name.to_owned());
        }
        let [here, there] = &on;
        assert_eq!((here.len(), there.len()), (2, 2), "placement: {on:?}");
        [here[0].clone(), here[1].clone(), there[0].clone()]
    }

    fn second_terminate(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let pid = Pid::from_child(&agent);
            // It may have ended.
            let _ = kill_process(pid, Signal::TERM);
            let _ = agent.wait();
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- second.log\n{}", self.log());
        }
        self.second_terminate();
        // What an agent that was killed has left.
        let second = self.second.to_string_lossy().into_owned();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw)
                && String::from_utf8_lossy(&line).contains(&second)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.lab.praas(&["down", "--kill"]);
        if let Where::Apart(name) = &self.at {
            let _ = succeeds(&format!("ip netns del {name}-1; ip netns del {name}-2"));
        }
    }
}

fn text(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).into_owned()
}

/// Messages and invocations from one process to the other.
fn one_way(client: &mut Client, from: &str, to: &str) {
    let put = format!("{to} k from-{from}");
    client.invoke(from, "put", put.as_bytes()).unwrap();
    let got = text(&client.invoke(to, "take", b"k").unwrap());
    assert_eq!(got, format!("{from}: from-{from}"));
    let ask = format!("{to} who");
    let answer = text(&client.invoke(from, "ask", ask.as_bytes()).unwrap());
    assert!(answer.starts_with(&format!("a {to} who ")), "{answer}");
}

/// The channels of a process, each as the name of the other and the transport.
fn links(client: &mut Client, of: &str) -> Vec<(String, String)> {
    let links: Vec<LinkInfo> = client.invoke_value(of, LINKS, &()).unwrap();
    let mut links: Vec<_> = links
        .into_iter()
        .map(|link| (link.process, link.transport))
        .collect();
    links.dedup();
    links
}

fn over_two_nodes(mut nodes: Nodes) {
    nodes.second_start();
    let [here, beside, there] = nodes.processes_start();
    let mut client = nodes.client();
    let client = &mut client;
    // Nobody knows anybody yet: channels are opened on first use, by the best way for each pair.
    assert_eq!(links(client, &here), []);
    one_way(client, &here, &there);
    one_way(client, &there, &here);
    one_way(client, &here, &beside);
    let mut expected = [
        (beside.clone(), "shm".into()),
        (there.clone(), "tcp".into()),
    ];
    expected.sort_unstable();
    assert_eq!(links(client, &here), expected);
    // The world is the same on both, and a broadcast reaches all of it.
    for process in [&here, &there] {
        eventually("a world of both nodes", || {
            let world = text(&client.invoke(process, "world", b"").unwrap());
            let all = ["p/", "q/", "r/", "s/"]
                .iter()
                .all(|name| world.contains(name));
            (all && world.matches(":ready").count() == 4).then_some(())
        });
    }
    let told = text(&client.invoke(&there, "tell_all", b"all").unwrap());
    assert_eq!(
        told.lines().filter(|line| line.ends_with(" 0")).count(),
        3,
        "{told}"
    );
    // The second node's agent dies: what runs there is reached all the same.
    let mut agent = nodes.agent.take().expect("an agent");
    kill(agent.id());
    agent.wait().expect("it ended");
    nodes.connected_wait("second", false);
    assert_eq!(nodes.process(&there)["confirmed"], false);
    one_way(client, &here, &there);
    one_way(client, &there, &beside);
    let host = nodes.process(&there)["pid"].clone();
    nodes.second_start();
    eventually("it is vouched for again", || {
        (nodes.process(&there)["confirmed"] == true).then_some(())
    });
    assert_eq!(nodes.process(&there)["pid"], host);
    // A change of the world is heard of across nodes.
    let wait = client.function(&here, "world_wait").unwrap();
    let world = text(&client.invoke(&here, "world", b"").unwrap());
    let generation = world.split(' ').next().expect("a generation").to_owned();
    let input = format!("{generation} 60000000");
    let waiting = client.submit(wait, input.as_bytes(), CallOptions::default());
    let waiting = waiting.unwrap();
    // The node goes, in good order: what was there is swapped out, and comes back on the other.
    nodes.second_terminate();
    let changed = text(&client.wait(waiting).unwrap());
    assert_ne!(changed.split(' ').next(), Some(generation.as_str()));
    eventually("it is swapped out", || {
        (nodes.process(&there)["state"] == "swapped").then_some(())
    });
    one_way(client, &here, &there);
    assert_eq!(nodes.process(&there)["node"], "first");
    assert!(links(client, &here).contains(&(there, "shm".into())));
}

#[test]
fn an_application_spans_two_nodes() {
    over_two_nodes(Nodes::new(Where::Beside));
}

/// Two network namespaces, joined by a wire; their names without the number. Nothing, said aloud,
/// where they cannot be made.
fn namespaces_make(suffix: &str) -> Option<String> {
    let name = format!("praas{}{suffix}", std::process::id());
    let (one, two) = (format!("{name}-1"), format!("{name}-2"));
    let made = succeeds(&format!(
        "set -e; ip netns add {one}; ip netns add {two}
         ip link add wire netns {one} type veth peer name wire netns {two}
         for n in 1 2; do ip -n {name}-$n link set lo up; done
         ip -n {one} addr add 10.77.0.1/24 dev wire; ip -n {one} link set wire up
         ip -n {two} addr add 10.77.0.2/24 dev wire; ip -n {two} link set wire up
         ip netns exec {one} true"
    ));
    match made {
        Ok(()) => Some(name),
        Err(error) => {
            println!("SKIP: no network namespaces here (root and iproute2 make them): {error}");
            let _ = succeeds(&format!("ip netns del {one}; ip netns del {two}"));
            None
        }
    }
}

/// Has this thread, and all that it starts, be in a network namespace.
fn namespace_enter(name: &str) {
    let file = std::fs::File::open(format!("/var/run/netns/{name}")).expect("a namespace");
    let kind = rustix::thread::LinkNameSpaceType::Network;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind)).expect("root may");
}

#[test]
fn a_process_moves_between_two_network_namespaces() {
    let Some(name) = namespaces_make("t") else {
        return;
    };
    let first = format!("{name}-1");
    let mut nodes = Nodes::new(Where::Apart(name));
    nodes.second_start();
    let module = example_path("lab");
    let module = module.to_str().expect("UTF-8");
    let create = ["app", "create", "m", "--module", module];
    nodes
        .lab
        .one(&[&create[..], &["--setting", "workers=1"]].concat());
    nodes.lab.one(&["process", "create", "m", "p"]);
    let (over, called) = (AtomicBool::new(false), AtomicU64::new(0));
    let more_wait = || {
        let before = called.load(Ordering::Relaxed);
        eventually("callers are answered", || {
            (called.load(Ordering::Relaxed) >= before + 10).then_some(())
        });
    };
    let counts = std::thread::scope(|scope| {
        let caller = || {
            namespace_enter(&first);
            let run_dir = RunDir::open(&nodes.lab.run_dir()).expect("a run directory");
            let session = Session::open(&run_dir).expect("a session");
            let kinds = Kinds::only(TransportKind::Tcp);
            let mut client = session.client("m", kinds).expect("a client");
            let _: () = client.invoke_value("p", "fill", &(8_u64 << 20)).unwrap();
            let mut counts = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let count: u64 = client.invoke_value("p", "count", &1_u64).unwrap();
                counts.push(count);
                called.fetch_add(1, Ordering::Relaxed);
            }
            counts
        };
        let callers = [scope.spawn(caller), scope.spawn(caller)];
        let end = End(&over);
        for _ in 0..2 {
            more_wait();
            let node = nodes.lab.one(&["process", "show", "m", "p"])["node"].clone();
            let to = if node == "first" { "second" } else { "first" };
            let after = nodes
                .lab
                .one(&["process", "transfer", "m", "p", "--to", to]);
            assert_eq!(
                (&after["node"], &after["state"]),
                (&to.into(), &"ready".into())
            );
        }
        more_wait();
        drop(end);
        let counts = callers.map(|caller| caller.join().expect("no error"));
        counts.concat()
    });
    let distinct: BTreeSet<u64> = counts.iter().copied().collect();
    assert_eq!(distinct.len(), counts.len(), "an increment was seen twice");
    assert_eq!(distinct.last().copied(), Some(counts.len() as u64));
    println!("{} calls during two transfers", counts.len());
}

/// Lets callers end, also of a test that fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_application_spans_two_network_namespaces() {
    let Some(name) = namespaces_make("") else {
        return;
    };
    // The client of the test is in neither: everything is done by the command, in the first.
    let mut nodes = Nodes::new(Where::Apart(name));
    nodes.second_start();
    let [here, beside, there] = nodes.processes_start();
    let call = |process: &str, function: &str, data: &str| {
        let call = ["invoke", "a", process, function, "--data", data];
        let answer = nodes.lab.one(&call);
        answer["text"].as_str().unwrap_or_default().to_owned()
    };
    for (from, to) in [(&here, &there), (&there, &here), (&here, &beside)] {
        call(from, "put", &format!("{to} k hello"));
        assert_eq!(call(to, "take", "k"), format!("{from}: hello"));
        let answer = call(from, "ask", &format!("{to} who"));
        assert!(answer.starts_with(&format!("a {to} who ")), "{answer}");
    }
    let told = call(&there, "tell_all", "all");
    assert_eq!(
        told.lines().filter(|line| line.ends_with(" 0")).count(),
        3,
        "{told}"
    );
    let addresses = nodes.process(&there)["addresses"].to_string();
    assert!(addresses.contains("tcp:10.77.0.2:"), "{addresses}");
    // Its links, from its own side: over TCP to the other node.
    let links = nodes.lab.one(&["invoke", "a", &there, LINKS]);
    let bytes = links["hex"].as_str().unwrap_or_default();
    assert!(bytes.contains("746370"), "no \"tcp\" in {links}");
}
