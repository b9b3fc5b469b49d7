//! Processes that move to another node while they serve, with real processes on one machine.

use std::collections::BTreeSet;

use praas_cluster::run_dir::RunDir;
use praas_cluster::session::Session;
use praas_control::api::TicketSpec;
use praas_runtime::client::{CallOptions, Client};
use praas_runtime::codec;
use praas_runtime::mailbox::Source;
use praas_runtime::process::{
    LINKS, LinkInfo, MESSAGE_TAKE, MessageTakeInput, STATE_GET, STATE_PUT, StatePutInput,
};
use praas_tests::cluster_lab::{Lab, Node, eventually};
use praas_transport::sync::atomic::{AtomicBool, Ordering};
use praas_transport::{Kinds, TransportKind};
use serde_json::Value;

/// Two nodes, and process `p` of `a`, which counts with one worker.
struct Two {
    // Dropped before the lab, whose control plane it uses.
    second: Node,
    lab: Lab,
}

impl Two {
    fn up(settings: &[&str]) -> Self {
        let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
        lab.one(&["up"]);
        let second = Node::start(&lab, "second");
        let module = lab.module();
        let module = module.to_str().expect("UTF-8");
        let mut create = vec!["app", "create", "a", "--module", module];
        create.extend(["--setting", "workers=1"]);
        for setting in settings {
            create.extend(["--setting", setting]);
        }
        lab.one(&create);
        lab.one(&["process", "create", "a", "p"]);
        Self { second, lab }
    }

    /// The process, but for what changes by itself.
    fn shown(&self) -> Value {
        let mut shown = self.lab.one(&["process", "show", "a", "p"]);
        for counted in ["stats", "idle_ms"] {
            shown[counted] = Value::Null;
        }
        shown
    }

    /// The node where the process is not.
    fn other(&self) -> String {
        let shown = self.shown();
        let nodes = self.lab.json(&["node", "list"]);
        let other = nodes.iter().find(|node| node["name"] != shown["node"]);
        other.expect("two nodes")["name"]
            .as_str()
            .expect("a name")
            .into()
    }

    fn session(&self) -> Session {
        Session::open(&RunDir::open(&self.lab.run_dir()).unwrap()).unwrap()
    }

    fn client(&self, kind: TransportKind) -> Client {
        self.session().client("a", Kinds::only(kind)).unwrap()
    }

    /// A client that is always the same one to processes.
    fn same_client(&self, kind: TransportKind) -> Client {
        let session = self.session();
        let mut config = session.client_config("a", Kinds::only(kind)).unwrap();
        let ticket = session.control.ticket_issue(&TicketSpec {
            application: Some("a".into()),
            client_id: Some(format!("{:032x}", 77 + kind as u8)),
            valid_ms: None,
        });
        config.credential = ticket.unwrap().credential;
        Client::new(config).unwrap()
    }

    fn transfer(&self) -> Value {
        let to = self.other();
        let before = self.shown();
        let after = self
            .lab
            .one(&["process", "transfer", "a", "p", "--to", &to]);
        assert_eq!(
            (&after["node"], &after["state"]),
            (&to.into(), &"ready".into())
        );
        assert!(after["incarnation"].as_u64() > before["incarnation"].as_u64());
        after
    }
}

fn count(client: &mut Client) -> u64 {
    client.invoke_value("p", "count", &1_u64).unwrap()
}

fn state_put(client: &mut Client, key: &str, bytes: Vec<u8>) {
    let input = StatePutInput {
        key: key.into(),
        value: bytes,
    };
    let _: u64 = client.invoke_value("p", STATE_PUT, &input).unwrap();
}

#[test]
fn state_messages_and_results_go_along() {
    let two = Two::up(&[]);
    for kind in [TransportKind::Shm, TransportKind::Tcp] {
        let mut client = two.client(kind);
        let before = count(&mut client);
        let large: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        state_put(&mut client, "large", large.clone());
        state_put(&mut client, "empty", Vec::new());
        let options = CallOptions::default();
        let body = vec![7; 600_000];
        client.message_put("p", "k", &body, options).unwrap();
        client.message_put("p", "k", b"second", options).unwrap();
        let recorded = count(&mut two.same_client(kind));
        assert_eq!(recorded, before + 1);

        two.transfer();
        // The same invocation again: answered from what is recorded, not run.
        assert_eq!(count(&mut two.same_client(kind)), recorded, "{kind}");
        assert_eq!(count(&mut client), recorded + 1, "{kind}");
        let got = client.invoke("p", STATE_GET, b"large").unwrap();
        assert!(*got == *large, "{kind}");
        assert_eq!(client.invoke("p", STATE_GET, b"empty").unwrap(), b"");
        let take = MessageTakeInput {
            source: Source::Any,
            key: "k".into(),
        };
        for expected in [&body[..], b"second"] {
            let taken: Option<(String, Vec<u8>)> =
                client.invoke_value("p", MESSAGE_TAKE, &take).unwrap();
            assert!(taken.is_some_and(|(_, body)| body == expected), "{kind}");
        }
        // The host that it was is gone.
        eventually("one host", || (two.hosts() == 1).then_some(()));
    }
}

#[test]
fn files_go_along_and_what_is_in_storage_still() {
    let two = Two::up(&["swap_lazy_min_bytes=1"]);
    let mut client = two.client(TransportKind::Shm);
    let bytes = |number: u8| vec![number; 1_000_000];
    for number in 0..16 {
        state_put(&mut client, &format!("object/{number}"), bytes(number));
    }
    let note: String = client.invoke_value("p", "note", &"a word").unwrap();
    assert_eq!(note, "a word");
    two.lab.one(&["swap", "a", "p"]);
    two.lab.one(&["swap", "a", "p", "--in"]);
    two.transfer();
    let read: String = client.invoke_value("p", "note", &"").unwrap();
    assert_eq!(read, note);
    for number in 0..16 {
        let key = format!("object/{number}");
        let got = client.invoke("p", STATE_GET, key.as_bytes()).unwrap();
        assert!(*got == *bytes(number), "{key}");
    }
}

impl Two {
    fn hosts(&self) -> usize {
        let of = |run_dir: std::path::PathBuf| {
            let run_dir = run_dir.display().to_string();
            let lines = self.lab.living_in(&run_dir);
            lines
                .iter()
                .filter(|(_, line)| line.contains(" host "))
                .count()
        };
        of(self.lab.run_dir()) + of(self.second.run_dir())
    }
}

#[test]
fn callers_see_each_increment_once_while_the_process_moves() {
    let two = Two::up(&[]);
    let mut filler = two.client(TransportKind::Shm);
    for number in 0..16 {
        state_put(
            &mut filler,
            &format!("fill/{number}"),
            vec![number; 2_000_000],
        );
    }
    let over = AtomicBool::new(false);
    let kinds = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];
    let seen: Vec<u64> = std::thread::scope(|scope| {
        let callers = kinds.map(|kind| {
            let (over, mut client) = (&over, two.client(kind));
            scope.spawn(move || {
                let mut seen = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    seen.push(count(&mut client));
                }
                seen
            })
        });
        let end = End(&over);
        for _ in 0..4 {
            two.transfer();
        }
        drop(end);
        callers
            .into_iter()
            .flat_map(|caller| caller.join().expect("no error"))
            .collect()
    });
    let distinct: BTreeSet<u64> = seen.iter().copied().collect();
    assert_eq!(distinct.len(), seen.len(), "an increment was seen twice");
    assert_eq!(
        distinct.last().copied(),
        Some(seen.len() as u64),
        "one is lost"
    );
    assert_eq!(count(&mut filler), seen.len() as u64 + 1);
    println!("{} invocations during four transfers", seen.len());
}

/// Takes all messages under a key from a process, each of which is a number; from whom, and which.
fn numbers_take(client: &mut Client, process: &str, key: &str) -> Vec<(String, u64)> {
    let take = MessageTakeInput {
        source: Source::Any,
        key: key.into(),
    };
    let next = || {
        let taken: Option<(String, Vec<u8>)> =
            client.invoke_value(process, MESSAGE_TAKE, &take).unwrap();
        let number = |body: Vec<u8>| u64::from_le_bytes(body.try_into().expect("a number"));
        taken.map(|(source, body)| (source, number(body)))
    };
    std::iter::from_fn(next).collect()
}

/// A process that has another one count, puts it messages and reads its state by one-sided
/// operations does not notice that it moves and is swapped out; nor are messages that the moved
/// process itself puts lost or put twice.
#[test]
fn peers_carry_on_while_the_process_moves() {
    for kind in ["shm", "tcp"] {
        let two = Two::up(&[&format!("transports={kind}")]);
        two.lab.one(&["process", "create", "a", "q"]);
        let mut client = two.client(TransportKind::Shm);
        let visit = client.function("q", "visit").unwrap();
        let input = codec::encode("p").unwrap();
        let visiting = client.submit(visit, &input, CallOptions::default());
        let visiting = visiting.unwrap();
        let over = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let mut sender = two.client(TransportKind::Unix);
            let over_ref = &over;
            let sending = scope.spawn(move || {
                let mut sent = 0_u64;
                while !over_ref.load(Ordering::Relaxed) {
                    let last: u64 = sender.invoke_value("p", "send", &("q", 10_u64)).unwrap();
                    assert_eq!(last, sent + 10);
                    sent = last;
                }
                sent
            });
            let end = End(&over);
            let mut visits = 0;
            let mut more_wait = |client: &mut Client| {
                eventually("there are more visits", || {
                    let now = client.invoke("q", STATE_GET, b"visits").ok()?;
                    let now: u64 = codec::decode(&now).unwrap();
                    (now > visits + 5).then(|| visits = now)
                });
            };
            for step in 0..5 {
                more_wait(&mut client);
                match step {
                    2 => drop(two.lab.one(&["swap", "a", "p"])),
                    _ => drop(two.transfer()),
                }
            }
            more_wait(&mut client);
            let links: Vec<LinkInfo> = client.invoke_value("q", LINKS, &()).unwrap();
            let mut links = links.iter().filter(|link| link.dialled);
            assert!(links.any(|link| (&*link.process, &*link.transport) == ("p", kind)));
            drop(end);
            sending.join().expect("no error")
        });
        let options = CallOptions::default();
        client.message_put("q", "enough", b"", options).unwrap();
        let counts: Vec<u64> = codec::decode(&client.wait(visiting).unwrap()).unwrap();
        let visits = counts.len() as u64;
        assert_eq!(counts, (1..=visits).collect::<Vec<_>>(), "{kind}");
        let from = |name: &str, last: u64| -> Vec<(String, u64)> {
            (1..=last).map(|number| (name.into(), number)).collect()
        };
        let put = numbers_take(&mut client, "p", "visit");
        assert_eq!(put, from("q", visits), "{kind}");
        let put = numbers_take(&mut client, "q", "sent");
        assert_eq!(put, from("p", sent), "{kind}");
        println!("over {kind}: {visits} visits, {sent} messages");
    }
}

#[test]
fn a_function_that_does_not_end_keeps_the_process_where_it_is() {
    let two = Two::up(&["quiesce_timeout_ms=200"]);
    let mut client = two.client(TransportKind::Shm);
    let hold = client.function("p", "hold").unwrap();
    let call = client.submit(hold, b"", CallOptions::default()).unwrap();
    // The same client, so that it makes progress.
    eventually("it holds", || {
        client.invoke("p", STATE_GET, b"holding").ok()
    });
    let before = two.shown();
    let to = two.other();
    let problem = two
        .lab
        .problem(1, &["process", "transfer", "a", "p", "--to", &to]);
    assert!(problem.to_string().contains("still run"), "{problem}");
    eventually("it serves as before", || {
        (two.shown() == before).then_some(())
    });
    let mut other = two.client(TransportKind::Shm);
    let options = CallOptions::default();
    other.message_put("p", "release", b"now", options).unwrap();
    assert_eq!(&*client.wait(call).unwrap(), b"now");
    two.transfer();
    assert_eq!(count(&mut other), 1);
}

#[test]
fn a_drained_node_is_left_and_shunned() {
    let two = Two::up(&[]);
    for name in ["q", "r", "s"] {
        two.lab.one(&["process", "create", "a", name]);
    }
    let mut client = two.client(TransportKind::Shm);
    assert_eq!(count(&mut client), 1);
    let drained = two.lab.one(&["drain", "second"]);
    assert_eq!(drained["processes"], 0);
    for process in two.lab.json(&["ps"]) {
        assert_ne!(process["node"], "second", "{process}");
        assert_eq!(process["state"], "ready", "{process}");
    }
    two.lab.one(&["process", "create", "a", "t"]);
    assert_ne!(
        two.lab.one(&["process", "show", "a", "t"])["node"],
        "second"
    );
    assert_eq!(count(&mut client), 2);
    let args = ["process", "transfer", "a", "p", "--to", "second"];
    let problem = two.lab.problem(1, &args);
    assert!(problem.to_string().contains("drained"), "{problem}");
    two.lab.one(&["drain", "second", "--undo"]);
    two.transfer();
    assert_eq!(count(&mut client), 3);
}

/// Lets callers end, also of a test that fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
