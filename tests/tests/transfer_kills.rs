//! Transfers of real processes in which somebody is killed, while clients call and write down what
//! they see. `PRAAS_TRANSFER_KILLS` says how many (25 in the chaos lane), `PRAAS_SEED` from which seed on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use praas_cluster::run_dir::{AgentAddr, RunDir};
use praas_cluster::session::Session;
use praas_runtime::client::Client;
use praas_tests::checker::{
    Action, COUNT, End, Event, Image, Outcome, Recorder, Reply, call, check,
};
use praas_tests::cluster_lab::{Lab, Node, PATIENCE, eventually, kill};
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use praas_transport::{Kinds, TransportKind};
use serde_json::Value;

/// How many are killed, if the environment does not say.
const KILLS: u64 = 5;
/// Bytes of state, which take a while.
const FILL_BYTES: u64 = 32 << 20;
/// How long somebody lives after what was waited for, at most.
const LATER_US: u64 = 30_000;
/// Calls of each client after all is over.
const AFTERWARDS: u64 = 20;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Source,
    Target,
    SourceAgent,
    TargetAgent,
    Control,
}

/// After what, and a little later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The request.
    Asked,
    /// The target may come.
    Offered,
    /// It is there.
    Started,
    /// The source turns calls away.
    Frozen,
    /// The target has everything.
    Prepared,
}

/// What is done in one run.
#[derive(Debug, Clone, Copy)]
struct Plan {
    seed: u64,
    victim: Victim,
    phase: Phase,
    later: Duration,
}

impl Plan {
    /// Seeds one after the other go through all victims, and all phases.
    fn of(seed: u64) -> Self {
        let victims = [
            Victim::Source,
            Victim::Target,
            Victim::Control,
            Victim::TargetAgent,
            Victim::SourceAgent,
        ];
        let phases = [
            Phase::Frozen,
            Phase::Prepared,
            Phase::Started,
            Phase::Offered,
            Phase::Asked,
        ];
        let victim = victims[(seed % 5) as usize];
        let mut phase = phases[((seed + seed / 5) % 5) as usize];
        if victim == Victim::Target && matches!(phase, Phase::Asked | Phase::Offered) {
            // There is none yet.
            phase = Phase::Started;
        }
        // Most of what can go wrong is over soon.
        let part = fastrand::Rng::with_seed(seed).f64().powi(2);
        Self {
            seed,
            victim,
            phase,
            later: Duration::from_micros((part * LATER_US as f64) as u64),
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    let asked = std::env::var(name);
    asked.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Two nodes, on which one process after the other moves.
struct Two {
    // Dropped before the lab, whose control plane it uses.
    second: Node,
    lab: Lab,
}

impl Two {
    fn up() -> Self {
        let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
        lab.one(&["up", "--set", "agent.node=first"]);
        let second = Node::start(&lab, "second");
        let module = lab.module();
        let module = module.to_str().expect("UTF-8");
        let create = ["app", "create", "a", "--module", module];
        lab.one(&[&create[..], &["--setting", "workers=1"]].concat());
        Self { second, lab }
    }

    fn run_dir(&self, node: &str) -> PathBuf {
        match node {
            "first" => self.lab.run_dir(),
            _ => self.second.run_dir(),
        }
    }

    fn session(&self) -> Session {
        Session::open(&RunDir::open(&self.lab.run_dir()).unwrap()).unwrap()
    }

    /// Hosts of a process, as process id and incarnation.
    fn hosts(&self, process: &str) -> Vec<(u32, u64)> {
        let dirs = ["first", "second"].map(|node| self.run_dir(node).display().to_string());
        let living = dirs.iter().flat_map(|dir| self.lab.living_in(dir));
        let host = |(pid, line): (u32, String)| {
            let words: Vec<&str> = line.split(' ').collect();
            let after = |name: &str| {
                let at = words.iter().position(|word| *word == name)?;
                words.get(at + 1).copied()
            };
            let is = words.get(1) == Some(&"host") && after("--process") == Some(process);
            let incarnation = after("--incarnation").filter(|_| is)?;
            Some((pid, incarnation.parse().expect("a number")))
        };
        living.filter_map(host).collect()
    }

    fn host_log(&self, node: &str, process: &str) -> String {
        let run_dir = RunDir::open(&self.run_dir(node)).expect("a run directory");
        std::fs::read_to_string(run_dir.host_log("a", process)).unwrap_or_default()
    }

    fn shown(&self, process: &str) -> Value {
        self.lab.one(&["process", "show", "a", process])
    }

    fn agent_pid(&self, node: &str) -> Option<u32> {
        match node {
            "first" => {
                let run_dir = RunDir::open(&self.lab.run_dir()).expect("a run directory");
                let address = AgentAddr::read(&run_dir.agent_addr());
                Some(address.expect("an agent").pid)
            }
            _ => self.second.agent_pid(),
        }
    }

    fn control_pid(&self) -> Option<u32> {
        let living = self.lab.living();
        let control = |(_, line): &&(u32, String)| line.split(' ').nth(1) == Some("control");
        living.iter().find(control).map(|(pid, _)| *pid)
    }

    /// Whoever is to be restarted after it was killed.
    fn mend(&mut self, plan: &Plan, from: &str) {
        let second = match plan.victim {
            Victim::SourceAgent => from == "second",
            Victim::TargetAgent => from == "first",
            Victim::Control => false,
            Victim::Source | Victim::Target => return,
        };
        if second {
            self.second.agent_kill();
            self.second.agent_start(&self.lab);
        } else {
            self.lab.one(&["up", "--set", "agent.node=first"]);
        }
    }
}

/// What clients and the killer share.
struct Shared<'a> {
    process: &'a str,
    recorder: Recorder,
    numbers: AtomicU64,
    over: AtomicBool,
    /// Calls that were answered.
    done: [AtomicU64; 3],
}

/// Lets clients end, also of a run that fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Shared<'_> {
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn one(&self, client: &mut Client, action: Action) -> Outcome {
        let numbered = (self.number(), action);
        call(&self.recorder, client, self.process, numbered)
    }

    fn action(&self, source: &str, random: &mut fastrand::Rng) -> Action {
        let key = format!("k{}", random.u8(..2));
        match random.u8(..9) {
            0 => Action::Read { key },
            1 | 2 => Action::Write {
                key,
                value: self.number(),
            },
            3 | 4 => Action::Put {
                source: source.into(),
                key,
                message: self.number(),
            },
            5 | 6 => Action::Take { source: None, key },
            _ => Action::Add {
                key: COUNT.into(),
                amount: 1,
            },
        }
    }

    fn calls(&self, client: &mut Client, number: usize, mut random: fastrand::Rng) {
        let source = format!("client:{:032x}", number + 1);
        while !self.over.load(Ordering::Relaxed) {
            let action = self.action(&source, &mut random);
            if let Outcome::Ok(_) = self.one(client, action) {
                self.done[number].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits until every client has called some more.
    fn more_wait(&self, calls: u64) {
        let done = || {
            self.done
                .each_ref()
                .map(|done| done.load(Ordering::Relaxed))
        };
        let before = done();
        eventually("all clients are answered", || {
            let mut more = done().into_iter().zip(before);
            more.all(|(now, before)| now >= before + calls)
                .then_some(())
        });
    }

    /// Reads all objects and takes all messages.
    fn look(&self, client: &mut Client) {
        for key in ["k0", "k1"] {
            self.one(client, Action::Read { key: key.into() });
            loop {
                let action = Action::Take {
                    source: None,
                    key: key.into(),
                };
                match self.one(client, action) {
                    Outcome::Ok(Reply::Message(Some(_))) => {}
                    Outcome::Ok(_) => break,
                    outcome => panic!("nothing is killed any more: {outcome:?}"),
                }
            }
        }
        let action = Action::Add {
            key: COUNT.into(),
            amount: 1,
        };
        self.one(client, action);
    }
}

fn clients(two: &Two) -> [Client; 3] {
    let kinds = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];
    let session = two.session();
    let mut number = 0;
    kinds.map(|kind| {
        number += 1;
        let mut config = session.client_config("a", Kinds::only(kind)).unwrap();
        let spec = praas_control::api::TicketSpec {
            application: Some("a".into()),
            client_id: Some(format!("{number:032x}")),
            valid_ms: None,
        };
        config.credential = session.control.ticket_issue(&spec).unwrap().credential;
        Client::new(config).unwrap()
    })
}

/// Waits until something is so, for as long as the command runs; whether it is.
fn wait_while(running: impl Fn() -> bool, mut holds: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    while running() {
        if holds() {
            return true;
        }
        assert!(Instant::now() < until, "neither over nor so far");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    false
}

/// What came of a kill, and when, in the history.
#[derive(Debug, Clone, Copy)]
struct Struck {
    /// The transfer came as far as it was to come, before it was over.
    reached: bool,
    /// There was somebody to kill.
    killed: bool,
    /// The source had not yet begun to freeze.
    unfrozen: usize,
    /// It had, if that was seen.
    frozen: Option<usize>,
    /// The kill.
    at: usize,
}

/// Kills the victim at its time.
fn strike(
    two: &Two,
    plan: &Plan,
    shared: &Shared<'_>,
    about: &Before,
    running: impl Fn() -> bool,
) -> Struck {
    let process = shared.process;
    let mut unfrozen = shared.recorder.len();
    let mut frozen = None;
    // The source's log, and whether it says that calls are turned away.
    let mut source_log = || {
        let before = shared.recorder.len();
        let log = two.host_log(&about.from, process);
        match log.contains("little is left") {
            true => frozen = frozen.or_else(|| Some(shared.recorder.len())),
            false => unfrozen = before,
        }
        log
    };
    let target = || {
        let hosts = two.hosts(process);
        hosts.into_iter().find(|(_, of)| *of > about.incarnation)
    };
    let reached = wait_while(&running, || {
        let source_log = source_log();
        match plan.phase {
            Phase::Asked => true,
            Phase::Offered => source_log.contains("another host may fetch"),
            Phase::Started => target().is_some(),
            Phase::Frozen => source_log.contains("little is left"),
            Phase::Prepared => two
                .host_log(&about.to, process)
                .contains("waiting for the word to serve"),
        }
    });
    let later = Instant::now() + plan.later;
    wait_while(&running, || {
        source_log();
        Instant::now() >= later
    });
    let pid = match plan.victim {
        Victim::Source => Some(about.pid).filter(|pid| {
            let hosts = two.hosts(process);
            hosts.iter().any(|(of, _)| of == pid)
        }),
        Victim::Target => target().map(|(pid, _)| pid),
        Victim::SourceAgent => two.agent_pid(&about.from),
        Victim::TargetAgent => two.agent_pid(&about.to),
        Victim::Control => two.control_pid(),
    };
    let at = shared.recorder.len();
    if let Some(pid) = pid {
        kill(pid);
    }
    Struck {
        reached,
        killed: pid.is_some(),
        unfrozen,
        frozen,
        at,
    }
}

/// The process before its transfer.
struct Before {
    from: String,
    to: String,
    incarnation: u64,
    pid: u32,
}

impl Before {
    fn of(shown: &Value) -> Self {
        let from = shown["node"].as_str().expect("a node").to_owned();
        let to = match from.as_str() {
            "first" => "second",
            _ => "first",
        };
        Self {
            to: to.into(),
            from,
            incarnation: shown["incarnation"].as_u64().expect("a number"),
            pid: shown["pid"].as_u64().expect("a process id") as u32,
        }
    }
}

/// Where in the history what happened.
#[derive(Debug, Clone, Copy)]
struct Marks {
    struck: Struck,
    settled: usize,
}

/// One transfer, one kill; then all is looked at.
fn run(two: &mut Two, plan: &Plan) -> Struck {
    let process = format!("p{}", plan.seed);
    two.lab.one(&["process", "create", "a", &process]);
    let shared = Shared {
        process: &process,
        recorder: Recorder::default(),
        numbers: AtomicU64::new(0),
        over: AtomicBool::new(false),
        done: [const { AtomicU64::new(0) }; 3],
    };
    let mut clients = clients(two);
    let filled = clients[0].invoke_value::<_, ()>(&process, "fill", &FILL_BYTES);
    filled.expect("room for it");
    let before = Before::of(&two.shown(&process));
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let (marks, after) = std::thread::scope(|scope| {
        let over = Over(&shared.over);
        for (number, client) in clients.iter_mut().enumerate() {
            let (shared, random) = (&shared, random.fork());
            scope.spawn(move || shared.calls(client, number, random));
        }
        shared.more_wait(5);
        let args = ["process", "transfer", "a", &process, "--to", &before.to];
        let mut command = two.lab.background(&args);
        let ended = std::cell::RefCell::new(&mut command);
        let running = || ended.borrow_mut().try_wait().expect("a child").is_none();
        let struck = strike(two, plan, &shared, &before, running);
        two.mend(plan, &before.from);
        command.wait().expect("it ends");
        let after = settle(two, &process);
        let settled = shared.recorder.len();
        shared.more_wait(AFTERWARDS);
        // A process that was asked for again while it was settling may have started since.
        let again = settle(two, &process);
        assert_eq!(again["incarnation"], after["incarnation"], "{plan:?}");
        drop(over);
        println!("{plan:?}: {struck:?}");
        (Marks { struck, settled }, after)
    });
    shared.look(&mut clients[1]);
    judge(two, plan, &shared, &before, (marks, &after));
    // And it moves as if nothing had been.
    let now = Before::of(&after);
    two.lab
        .one(&["process", "transfer", "a", &process, "--to", &now.to]);
    two.lab.one(&["process", "delete", "a", &process]);
    eventually("no host is left", || {
        two.hosts(&process).is_empty().then_some(())
    });
    marks.struck
}

/// Waits until the process is where it stays, with one host.
fn settle(two: &Two, process: &str) -> Value {
    eventually("the process is ready, with one host", || {
        let shown = two.shown(process);
        let ready = shown["state"] == "ready" && shown["confirmed"] == true;
        let hosts = two.hosts(process);
        let one = hosts.len() == 1 && Some(hosts[0].1) == shown["incarnation"].as_u64();
        (ready && one).then_some(shown)
    })
}

/// What the documents say may be lost; then the checker.
fn judge(
    two: &Two,
    plan: &Plan,
    shared: &Shared<'_>,
    before: &Before,
    (marks, after): (Marks, &Value),
) {
    let mut history = shared.recorder.history();
    let incarnation = after["incarnation"].as_u64().expect("a number");
    // There is no image but that of a source that was told to swap out.
    let rescued = after["swap_generation"].as_u64().filter(|of| *of > 0);
    let target = before.incarnation + 1;
    let served = two
        .host_log(&before.to, shared.process)
        .contains("the process serves here now");
    let dies = match plan.victim {
        Victim::Source => true,
        Victim::Target => served,
        Victim::SourceAgent | Victim::TargetAgent | Victim::Control => false,
    };
    // A source that dies before anything has begun has a successor of the same number.
    let moved = incarnation == target && served;
    assert!(
        moved || incarnation != target || plan.victim == Victim::Source,
        "{plan:?}: it is the target, whose log does not say that it serves"
    );
    let lost = dies && incarnation > before.incarnation && !moved;
    if lost {
        let process = || shared.process.to_owned();
        let image = rescued.map(|generation| Image {
            incarnation: before.incarnation,
            generation,
        });
        let struck = marks.struck;
        let imaging = Event::Imaging {
            process: process(),
            incarnation: before.incarnation,
        };
        let ended = Event::Ended {
            process: process(),
            incarnation: before.incarnation,
            how: End::Crashed,
        };
        let started = |incarnation, from| Event::Started {
            process: process(),
            incarnation,
            from,
        };
        // What a source that waits, frozen, for what becomes of its target would write.
        let durable = image.map(|image| {
            let process = process();
            let at = struck.frozen.unwrap_or(marks.settled);
            (at, Event::Durable { process, image })
        });
        let mut noted = vec![
            (0, started(before.incarnation, None)),
            (struck.unfrozen, imaging),
        ];
        noted.extend(durable);
        noted.extend([
            (struck.at, ended),
            (marks.settled, started(incarnation, image)),
        ]);
        noted.sort_by_key(|(at, _)| *at);
        // From the last on, so that places stay what they are.
        for (at, event) in noted.into_iter().rev() {
            history.events.insert(at, event);
        }
    }
    let count = |pick: fn(&Outcome) -> bool| {
        let events = history.events.iter();
        let picked =
            |event: &&Event| matches!(event, Event::Returned { outcome, .. } if pick(outcome));
        events.filter(picked).count()
    };
    println!(
        "  incarnation {} became {incarnation} (rescued {rescued:?}, served there: {served}, \
         may be lost: {lost}); {} calls, {} unknown, {} not run",
        before.incarnation,
        count(|_| true),
        count(|outcome| matches!(outcome, Outcome::Unknown(_))),
        count(|outcome| matches!(outcome, Outcome::NotRun(_))),
    );
    let violations = check(&history);
    assert!(violations.is_empty(), "{plan:?}: {violations:#?}");
}

#[test]
fn nothing_is_lost_and_nothing_runs_twice() {
    let mut two = Two::up();
    let (first, kills) = (
        number("PRAAS_SEED", 0),
        number("PRAAS_TRANSFER_KILLS", KILLS),
    );
    let struck: Vec<Struck> = (first..first + kills)
        .map(|seed| run(&mut two, &Plan::of(seed)))
        .collect();
    // One that is over before, or whose phases nobody sees, is a test of nothing.
    let count = |of: fn(&Struck) -> bool| struck.iter().filter(|struck| of(struck)).count() as u64;
    let least = kills - kills / 5;
    assert!(count(|struck| struck.reached) >= least, "{struck:?}");
    assert!(count(|struck| struck.killed) >= least, "{struck:?}");
}
