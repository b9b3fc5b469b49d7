//! Every call of a function, from modules in Rust and in C: the same functions, asked the same, must
//! answer the same.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client, Directory};
use praas_runtime::host::{FromHost, ToHost};
use praas_runtime::invocation::InvokeError;
use praas_runtime::process::{LINKS, LinkInfo, STATE_GET, STATE_PUT, StatePutInput};
use praas_runtime::world::{Member, MemberState, World};
use praas_tests::c::module_build;
use praas_tests::lab::{Lab, LabHost, PATIENCE, example_path, object_wait};
use praas_transport::{Credential, Incarnation, Kinds, TransportKind};

/// A lab, and a module to start its processes with.
struct Case {
    language: &'static str,
    lab: Lab,
    module: PathBuf,
    _dir: tempfile::TempDir,
}

impl Case {
    fn start(&self, process: &str) -> LabHost {
        let started = self.lab.start_with(process, |start| {
            start.modules = vec![self.module.display().to_string()];
            start.settings.quiesce_timeout_ms = 100;
            start.settings.mailbox_messages_max = 2;
        });
        started.unwrap_or_else(|error| panic!("{}: {error}", self.language))
    }

    /// A client that finds processes as they are started.
    fn client(&self) -> Client {
        let mut config = self.lab.client_config(TransportKind::Shm);
        config.directory = Directory::Agent(self.lab.directory().to_vec());
        Client::new(config).expect("a client")
    }
}

/// What a process tells of its channels to others: their names, transports, and who opened them.
fn links(client: &mut Client, of: &str) -> Vec<(String, String, bool)> {
    let links: Vec<LinkInfo> = client.invoke_value(of, LINKS, &()).unwrap();
    let links = links.into_iter();
    links
        .map(|link| (link.process, link.transport, link.dialled))
        .collect()
}

#[test]
fn channels_are_opened_on_first_use_by_the_best_way_of_each_pair() {
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    let start = |process: &str, transports: Kinds| {
        let started = lab.start_with(process, |start| {
            start.modules = vec![example_path("calls").display().to_string()];
            start.transports = transports;
        });
        started.unwrap_or_else(|error| panic!("{process}: {error}"))
    };
    let _hosts = [
        start("p", Kinds::all()),
        start("q", Kinds::all()),
        start("unix", TransportKind::Unix.into()),
        start("tcp", TransportKind::Tcp.into()),
    ];
    let mut config = lab.client_config(TransportKind::Shm);
    config.directory = Directory::Agent(lab.directory().to_vec());
    let mut client = Client::new(config).unwrap();
    let owned = |links: &[(&str, &str, bool)]| -> Vec<(String, String, bool)> {
        let links = links.iter();
        links
            .map(|(process, transport, dialled)| ((*process).into(), (*transport).into(), *dialled))
            .collect()
    };
    // Nobody has needed anybody yet.
    for process in ["p", "q", "unix", "tcp"] {
        assert_eq!(links(&mut client, process), []);
    }
    // What a process may use decides for what it opens.
    for from in ["q", "unix", "tcp"] {
        client.invoke(from, "put", b"p k hello").unwrap();
    }
    let opened = [
        ("q", "shm", false),
        ("tcp", "tcp", false),
        ("unix", "unix", false),
    ];
    assert_eq!(links(&mut client, "p"), owned(&opened));
    assert_eq!(links(&mut client, "unix"), owned(&[("p", "unix", true)]));
    // The other way round it is another channel, and by the best way.
    client.invoke("p", "put", b"tcp k hello").unwrap();
    client.invoke("p", "ask", b"tcp who").unwrap();
    let both = [("p", "shm", false), ("p", "tcp", true)];
    assert_eq!(links(&mut client, "tcp"), owned(&both));
}

/// Runs a body with modules in both languages.
fn both(body: impl Fn(&Case)) {
    for language in ["Rust", "C"] {
        let dir = tempfile::tempdir().expect("a directory");
        let module = match language {
            "Rust" => example_path("calls"),
            _ => module_build("tests/c/calls.c", dir.path()),
        };
        println!("in {language}");
        body(&Case {
            language,
            lab: Lab::new(env!("CARGO_BIN_EXE_praas")),
            module,
            _dir: dir,
        });
    }
}

/// What a function of `p` answers, as text.
fn ask(client: &mut Client, function: &str, input: &str) -> Result<String, InvokeError> {
    let answer = client.invoke("p", function, input.as_bytes())?;
    Ok(String::from_utf8(answer).expect("UTF-8"))
}

fn submit(client: &mut Client, function: &str, input: &str) -> praas_runtime::client::CallId {
    let function = client.function("p", function).expect("a name");
    let call = client.submit(function, input.as_bytes(), CallOptions::default());
    call.expect("it begins")
}

#[test]
fn functions_know_who_they_are_and_fail_in_words() {
    both(|case| {
        let _p = case.start("p");
        let mut client = case.client();
        assert_eq!(ask(&mut client, "who", "").unwrap(), "lab p who 1 for ever");
        // Ids: one client's, and dense numbers.
        let mut config = case.lab.client_config(TransportKind::Shm);
        let mut ticket = case.lab.ticket();
        ticket.client_id = 0x4d << 64 | 0x77;
        config.credential = Credential::issue(case.lab.secret(), &ticket);
        let mut known = Client::new(config).unwrap();
        for number in 0..2 {
            let id = ask(&mut known, "id", "").unwrap();
            assert_eq!(id, format!("000000000000004d0000000000000077 {number}"));
        }
        let who = client.function("p", "who").unwrap();
        let options = CallOptions {
            deadline: Some(Instant::now() + PATIENCE),
            ..CallOptions::default()
        };
        let answer = client.call(who, b"", options).unwrap();
        assert_eq!(&*answer, b"lab p who 1 until then");
        let failed = ask(&mut client, "fails", "in words");
        assert_eq!(failed, Err(InvokeError::Function("in words".into())));
        let large = client.invoke("p", "large.output", b"").unwrap();
        assert!(large.len() == 1 << 20 && large.iter().all(|byte| *byte == b'x'));
        let names: Vec<String> = client.invoke_value("p", "praas.functions", &()).unwrap();
        assert!(names.contains(&"large.output".into()), "{names:?}");
    });
}

#[test]
fn functions_use_state() {
    both(|case| {
        let _p = case.start("p");
        let mut client = case.client();
        assert_eq!(ask(&mut client, "state", "").unwrap(), "b/1 3\nb/2 3\n");
    });
}

/// What is written through is there after kill -9; all else, files too, is as in the checkpoint
/// that the first such write has taken.
#[test]
fn functions_write_objects_through() {
    both(|case| {
        let mut p = case.start("p");
        let mut client = case.client();
        assert_eq!(
            ask(&mut client, "keeps", "").unwrap(),
            "kept",
            "{}",
            case.language
        );
        let told = p.hear().expect("it is told of");
        assert!(
            matches!(told, FromHost::CheckpointUnasked { generation: 1, .. }),
            "{told:?}"
        );
        p.kill();
        p.killed_wait();
        let started = case.lab.start_with("p", |start| {
            start.modules = vec![case.module.display().to_string()];
            (start.life, start.swap_generation) = (1, 1);
            start.incarnation = 9;
        });
        let _p = started.unwrap_or_else(|error| panic!("{}: {error}", case.language));
        let mut client = case.client();
        let mut get = |key: &str| client.invoke("p", STATE_GET, key.as_bytes()).unwrap();
        assert_eq!(
            (get("first"), get("second")),
            (b"shared".to_vec(), b"kept".to_vec())
        );
    });
}

#[test]
fn functions_use_mailboxes() {
    both(|case| {
        let (_p, _q) = (case.start("p"), case.start("q"));
        let mut client = case.client();
        assert_eq!(ask(&mut client, "mail", "").unwrap(), "");
        let taking = submit(&mut client, "take", "k");
        client.invoke("q", "put", b"p k hello").unwrap();
        assert_eq!(&*client.wait(taking).unwrap(), b"q: hello");
        let unknown = ask(&mut client, "put", "nobody k hello").unwrap_err();
        assert!(unknown.to_string().contains("nobody"), "{unknown}");
    });
}

/// What a limit refuses is an error that names it, and the process serves on.
#[test]
fn functions_hear_of_limits() {
    both(|case| {
        let started = case.lab.start_with("p", |start| {
            start.modules = vec![case.module.display().to_string()];
            start.settings.state_max_bytes = 20_000;
        });
        let _hosts = (started.expect("p"), case.start("q"));
        let mut client = case.client();
        let refused = |outcome: Result<String, InvokeError>, name: &str| match outcome {
            Err(InvokeError::Exhausted(text)) if text.contains(name) => {}
            other => panic!("{}: {other:?}, not {name}", case.language),
        };
        refused(ask(&mut client, "too_much", "20000"), "state_max_bytes");
        assert_eq!(ask(&mut client, "state", "").unwrap(), "b/1 3\nb/2 3\n");
        assert_eq!(ask(&mut client, "limited", "1000").unwrap().len(), 1000);
        refused(ask(&mut client, "limited", "100000"), "memory_max_bytes");
        assert_eq!(ask(&mut client, "limited", "1000").unwrap().len(), 1000);
        // It has the endpoint, so what it waited for would never come.
        assert_eq!(ask(&mut client, "hurried", "q").unwrap(), "");
        assert_eq!(
            ask(&mut client, "ask", "q who").unwrap(),
            "lab q who 2 until then"
        );
    });
}

/// A function that its module calls idempotent runs again in the life after a kill; another does not.
#[test]
fn functions_that_may_run_twice_do_after_a_kill() {
    both(|case| {
        let mut p = case.start("p");
        let mut client = case.client();
        let begin = |function: &str| {
            let mut client = case.client();
            let function = client.function("p", function).unwrap();
            let options = CallOptions {
                idempotent: true,
                ..CallOptions::default()
            };
            let call = client.submit(function, b"k", options).unwrap();
            // So that it is on its way.
            client.invoke("p", "who", b"").unwrap();
            (client, call)
        };
        let mut again = begin("take_again");
        let mut once = begin("take");
        let until = Instant::now() + PATIENCE;
        while p.stats().blocked < 2 {
            assert!(Instant::now() < until, "they do not wait");
        }
        p.kill();
        p.killed_wait();
        let _p = case.start("p");
        let unknown = once.0.wait(once.1).map(|_| ());
        assert_eq!(unknown, Err(InvokeError::OutcomeUnknown));
        client
            .message_put("p", "k", b"hello", CallOptions::default())
            .unwrap();
        assert!(again.0.wait(again.1).unwrap().ends_with(b": hello"));
    });
}

#[test]
fn functions_call_functions() {
    both(|case| {
        let (_p, _q) = (case.start("p"), case.start("q"));
        let mut client = case.client();
        let answer = ask(&mut client, "ask", "q who").unwrap();
        assert_eq!(answer, "lab q who 2 until then");
        let answer = ask(&mut client, "ask", "self who").unwrap();
        assert_eq!(answer, "lab p who 1 until then");
        let failed = ask(&mut client, "ask", "q fails").unwrap_err();
        assert!(failed.to_string().contains("fails"), "{failed}");
    });
}

#[test]
fn functions_read_the_state_of_others() {
    both(|case| {
        let (_p, _q) = (case.start("p"), case.start("q"));
        let mut client = case.client();
        client.invoke("q", "state", b"").unwrap();
        assert_eq!(ask(&mut client, "peer", "q b/2").unwrap(), "two");
        // It comes with the answer to who asks where it is; this does not.
        let large = StatePutInput {
            key: "large".into(),
            value: (0..100_000_u32).map(|at| (at % 251) as u8).collect(),
        };
        let _: u64 = client.invoke_value("q", STATE_PUT, &large).unwrap();
        for _ in 0..3 {
            let seen = client.invoke("p", "peer", b"q large").unwrap();
            assert!(seen == large.value, "{}", case.language);
        }
        assert_eq!(ask(&mut client, "peer", "q none").unwrap(), "none");
        let unknown = ask(&mut client, "peer", "nobody b/2").unwrap_err();
        assert!(unknown.to_string().contains("nobody"), "{unknown}");
    });
}

#[test]
fn functions_call_many_at_once_and_without_waiting() {
    both(|case| {
        let (_p, _q) = (case.start("p"), case.start("q"));
        let mut client = case.client();
        let answers = ask(&mut client, "batch", "q").unwrap();
        assert_eq!(answers, "one 1\ntwo 1\nthree 1\n", "{}", case.language);
        ask(&mut client, "one_way", "q put p k hello").unwrap();
        assert_eq!(ask(&mut client, "take", "k").unwrap(), "q: hello");
    });
}

#[test]
fn functions_hear_that_they_are_cancelled() {
    both(|case| {
        let _p = case.start("p");
        let mut client = case.client();
        let spinning = submit(&mut client, "spins", "");
        object_wait(&mut client, "p", "spinning");
        client.cancel(spinning);
        let ended = client.wait(spinning).map(|_| ());
        assert_eq!(ended, Err(InvokeError::Cancelled));
    });
}

#[test]
fn functions_broadcast_and_hear_of_each_receiver() {
    both(|case| {
        let hosts = ["p", "a", "b", "full"].map(|process| case.start(process));
        let mut client = case.client();
        for _ in 0..2 {
            let options = CallOptions::default();
            client.message_put("full", "k", b"", options).unwrap();
        }
        // Codes: 104 unavailable, 12 the mailbox is full.
        let told = ask(&mut client, "tell", "a p nobody full b").unwrap();
        assert_eq!(
            told, "a 0\np 0\nnobody 104\nfull 12\nb 0\n",
            "{}",
            case.language
        );
        for process in ["a", "p", "b"] {
            let got = client.invoke(process, "take", b"news").unwrap();
            assert_eq!(&got[..5], b"p: nn", "{process}");
            assert_eq!(got.len(), 3 + 100_000, "{process}");
        }
        // All others that are not gone, by the world view.
        let members = [("a", MemberState::Ready), ("b", MemberState::Gone)];
        hosts[0].say(&ToHost::World(world(3, &members)));
        world_is(&mut client, "3 a/1:ready b/1:gone");
        assert_eq!(ask(&mut client, "tell_all", "hear").unwrap(), "a 0\n");
        assert_eq!(client.invoke("a", "take", b"news").unwrap(), b"p: hear");
        // The client does the same.
        let options = CallOptions::default();
        let told = client.message_broadcast(&["a", "nobody", "b"], "news", b"now", options);
        assert!(matches!(
            told.as_slice(),
            [Ok(()), Err(InvokeError::Unavailable { .. }), Ok(())]
        ));
        for process in ["a", "b"] {
            let got = client.invoke(process, "take", b"news").unwrap();
            assert!(got.ends_with(b": now"), "{process}");
        }
    });
}

fn world(generation: u64, members: &[(&str, MemberState)]) -> World {
    let members = members.iter().map(|(name, state)| Member {
        name: (*name).into(),
        incarnation: Incarnation(1),
        state: *state,
        addresses: Vec::new(),
    });
    World {
        generation,
        members: members.collect(),
    }
}

/// Asks until the process has been told.
fn world_is(client: &mut Client, expected: &str) {
    let deadline = Instant::now() + PATIENCE;
    while ask(client, "world", "").unwrap() != expected {
        assert!(Instant::now() < deadline, "the world is not '{expected}'");
    }
}

#[test]
fn functions_wait_for_the_world_to_change() {
    both(|case| {
        let p = case.start("p");
        let mut client = case.client();
        p.say(&ToHost::World(world(5, &[("p", MemberState::Ready)])));
        world_is(&mut client, "5 p/1:ready");
        // What has changed already is not waited for.
        let now = ask(&mut client, "world_wait", "4 -1").unwrap();
        assert_eq!(now, "5 p/1:ready");
        client
            .invoke("p", "praas.state.delete", b"waiting")
            .unwrap();
        let waiting = submit(&mut client, "world_wait", "5 -1");
        object_wait(&mut client, "p", "waiting");
        // An older view changes nothing.
        p.say(&ToHost::World(world(4, &[])));
        let members = [("p", MemberState::Ready), ("q", MemberState::Starting)];
        p.say(&ToHost::World(world(6, &members)));
        let changed = client.wait(waiting).unwrap();
        assert_eq!(&*changed, b"6 p/1:ready q/1:starting");
        // Deadlines: its own, and the caller's.
        let late = ask(&mut client, "world_wait", "6 1000");
        assert_eq!(late, Err(InvokeError::DeadlineExceeded));
        let function = client.function("p", "world_wait").unwrap();
        let options = CallOptions {
            deadline: Some(Instant::now() + Duration::from_millis(50)),
            ..CallOptions::default()
        };
        let late = client.call(function, b"6 -1", options).map(|_| ());
        assert_eq!(late, Err(InvokeError::DeadlineExceeded));
    });
}

#[test]
fn a_swap_ends_waits_for_the_world() {
    both(|case| {
        let mut p = case.start("p");
        let mut client = case.client();
        let waiting = submit(&mut client, "world_wait", "0 -1");
        object_wait(&mut client, "p", "waiting");
        assert_eq!(p.swap_out(), Ok(1), "{}", case.language);
        let ended = client.wait(waiting).map(|_| ());
        assert_eq!(ended, Err(InvokeError::Cancelled), "{}", case.language);
    });
}
