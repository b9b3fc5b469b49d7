//! The registry among agents that come and go, under random interleavings: no process ever has
//! two live incarnations, no incarnation is used twice, every request is answered once. A process
//! that is moved ends up in exactly one of the two places: it serves in one at a time, and never
//! again where it was once it serves, or was told to, where it went.
//!
//! Agents keep their side of the lease: one that has not heard of the control plane for so long,
//! and be it only the answer to its hello, ends its hosts.

mod agents;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use self::agents::{Agent, Host, Phase};
use super::tests::spec;
use super::{Action, Event, Limits, Registry, Reply, Request, Verb};
use crate::agent::{FromAgent, HostTransfer, ToAgent};
use crate::api::ProcessState;
use crate::store::{Change, Snapshot};
use praas_transport::Secret;
use praas_transport::sync::atomic::{AtomicU64, Ordering};

const NODES: usize = 2;
const PROCESSES: usize = 2;
const LEASE_MS: u64 = 400;

fn limits() -> Limits {
    Limits {
        lease_ms: LEASE_MS,
        transfer_timeout_ms: 1_500,
        ..super::tests::limits()
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Ask {
        verb: u8,
        process: u8,
        wait_ms: u64,
    },
    /// Ask, and be killed once it is on disk but nobody was told.
    AskAndDie {
        verb: u8,
        process: u8,
    },
    Move {
        process: u8,
        to: Option<u8>,
        wait_ms: u64,
    },
    /// Move, and be killed once it is on disk but nobody was told.
    MoveAndDie(u8),
    Drain {
        node: u8,
        undo: bool,
    },
    ToAgent(u8),
    FromAgent(u8),
    /// An agent's word is heard, and the registry is killed once that is on disk.
    FromAgentAndDie(u8),
    /// Everybody goes on, so many times.
    Flow(u8),
    /// A host goes on: starts up, fails, ends.
    Host {
        node: u8,
        which: u8,
        well: bool,
    },
    Connect(u8),
    Kill {
        node: u8,
        which: u8,
    },
    /// The channel breaks; the registry may learn of it only later.
    Break {
        node: u8,
        noticed: bool,
    },
    Restart,
    /// An agent says what its hosts count; an odd number runs something.
    Stats {
        node: u8,
        done: u8,
    },
    Pass(u64),
}

struct World {
    registry: Registry,
    disk: Disk,
    agents: Vec<Agent>,
    unnoticed: Vec<u64>,
    now: u64,
    request_last: u64,
    link_last: u64,
    open: BTreeSet<u64>,
    started: BTreeSet<u64>,
    ready_seen: u64,
    restarts: u64,
    /// Incarnations that are another one, which was told to serve.
    moved: BTreeSet<u64>,
    /// Incarnations that have all that another one was, which serves on.
    void: BTreeSet<u64>,
}

/// What came to pass in all cases together.
static MOVED: AtomicU64 = AtomicU64::new(0);
static RESUMED: AtomicU64 = AtomicU64::new(0);
static RESCUED: AtomicU64 = AtomicU64::new(0);

fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}

#[derive(Default)]
struct Disk(Snapshot);

impl Disk {
    fn apply(&mut self, change: Change) {
        let disk = &mut self.0;
        match change {
            Change::Application(record) => {
                disk.applications.retain(|old| old.name != record.name);
                disk.applications.push(record);
            }
            Change::Generation(name, generation) => {
                let old = disk.generations.iter().find(|(of, _)| *of == name);
                assert!(old.is_none_or(|(_, old)| *old < generation));
                disk.generations.retain(|(of, _)| *of != name);
                disk.generations.push((name, generation));
            }
            Change::Process(record) => {
                disk.processes.retain(|old| old.name != record.name);
                disk.processes.push(record);
            }
            Change::ProcessRemoved(_, name) => disk.processes.retain(|old| old.name != name),
            Change::IncarnationNext(next) => {
                assert!(next > disk.incarnation_next);
                disk.incarnation_next = next;
            }
            Change::Transfer(record) => {
                let old = disk.transfers.iter().find(|old| old.name == record.name);
                let news = old.is_none_or(|old| {
                    old.to_incarnation == record.to_incarnation && record.committed
                });
                assert!(news, "{record:?} in place of {old:?}");
                disk.transfers.retain(|old| old.name != record.name);
                disk.transfers.push(record);
            }
            Change::TransferRemoved(_, name) => disk.transfers.retain(|old| old.name != name),
            Change::NodeDrained(name, drained) => {
                disk.drained.retain(|old| *old != name);
                disk.drained.extend(drained.then_some(name));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

impl World {
    fn new(auto_create: bool, policies: bool) -> Self {
        let mut world = Self {
            registry: Registry::restore(limits(), Snapshot::default(), 0, 0),
            disk: Disk::default(),
            agents: (0..NODES).map(|_| Agent::default()).collect(),
            unnoticed: Vec::new(),
            now: 0,
            request_last: 0,
            link_last: 0,
            open: BTreeSet::new(),
            started: BTreeSet::new(),
            ready_seen: 0,
            restarts: 0,
            moved: BTreeSet::new(),
            void: BTreeSet::new(),
        };
        let mut spec = spec("a");
        spec.auto_create = auto_create;
        if policies {
            let text =
                r#"{"idle_swap_ms": 300, "checkpoint_interval_ms": 200, "restart": "always"}"#;
            spec.settings = serde_json::from_str(text).unwrap();
        }
        world.ask(
            Request::ApplicationCreate {
                spec,
                secret: Secret::from_bytes([1; 32]),
                now_unix_ms: 0,
            },
            0,
        );
        world
    }

    fn handle(&mut self, event: Event) {
        let actions = self.registry.handle(self.now, event);
        for action in actions {
            match action {
                Action::Persist(change) => self.disk.apply(change),
                Action::Tell { link, message } => {
                    // A link that broke unnoticed swallows what is sent.
                    if let Some(agent) = self.agents.iter_mut().find(|a| a.link == Some(link)) {
                        agent.inbox.push_back(message);
                    }
                }
                Action::Drop { link } => assert!(
                    self.agents.iter().all(|agent| agent.link != Some(link)),
                    "a good agent is cut off"
                ),
                Action::Answer { id, result } => {
                    assert!(self.open.remove(&id), "{id} is answered twice: {result:?}");
                    if let Ok(Reply::Process(process)) = result {
                        self.ready_seen += u64::from(process.state == ProcessState::Ready);
                    }
                }
            }
        }
    }

    fn ask(&mut self, request: Request, wait_ms: u64) -> u64 {
        self.request_last += 1;
        let id = self.request_last;
        self.open.insert(id);
        self.handle(Event::Request {
            id,
            wait_ms,
            request,
        });
        id
    }

    fn restart(&mut self) {
        self.open.clear();
        self.unnoticed.clear();
        for agent in &mut self.agents {
            agent.link = None;
            agent.cut_since.get_or_insert(self.now);
            agent.inbox.clear();
            agent.outbox.clear();
        }
        self.restarts += 1;
        let (snapshot, first) = (self.disk.0.clone(), self.restarts << 32);
        self.registry = Registry::restore(limits(), snapshot, first, self.now);
    }

    fn connect(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        if agent.link.is_some() {
            return;
        }
        self.link_last += 1;
        agent.link = Some(self.link_last);
        let hello = FromAgent::Hello {
            node: format!("n{node}"),
            cpus: 4,
            memory_bytes: 1,
            inventory: agent.hosts.iter().map(Host::report).collect(),
        };
        agent.outbox.push_back(hello);
    }

    fn disconnect(&mut self, node: usize, noticed: bool) {
        let agent = &mut self.agents[node];
        agent.cut_since.get_or_insert(self.now);
        agent.inbox.clear();
        agent.outbox.clear();
        let Some(link) = agent.link.take() else {
            return;
        };
        match noticed {
            true => self.handle(Event::Lost { link }),
            false => self.unnoticed.push(link),
        }
    }

    fn hear_agent(&mut self, node: usize) -> bool {
        let agent = &mut self.agents[node];
        let (Some(link), Some(message)) = (agent.link, agent.outbox.pop_front()) else {
            return false;
        };
        self.handle(Event::Said { link, message });
        true
    }

    /// What follows from an event is on disk, and nobody is told.
    fn die_of(&mut self, event: Event) {
        for action in self.registry.handle(self.now, event) {
            if let Action::Persist(change) = action {
                self.disk.apply(change);
            }
        }
        self.restart();
    }

    fn tell_agent(&mut self, node: usize) -> bool {
        let Some(message) = self.agents[node].inbox.pop_front() else {
            return false;
        };
        match message {
            ToAgent::Start(start) => {
                let fresh = self.started.insert(start.incarnation);
                assert!(fresh, "incarnation {} is used again", start.incarnation);
                let (processes, transfers) = (&self.disk.0.processes, &self.disk.0.transfers);
                let stored = match start.from {
                    None => processes
                        .iter()
                        .any(|record| record.incarnation == start.incarnation),
                    // What was stored may have been called off since.
                    Some(_) => self.disk.0.incarnation_next > start.incarnation,
                };
                assert!(
                    stored,
                    "{} was not stored: {transfers:?}",
                    start.incarnation
                );
                if start.from.is_none() {
                    self.check_start(&start.process);
                }
                self.agents[node].start(&start);
                self.check();
            }
            ToAgent::TransferOut(command) => self.agents[node].transfer_out(&command),
            ToAgent::TransferThaw(command) => {
                if let Some(target) = self.agents[node].thaw(&command) {
                    let source = command.incarnation;
                    assert!(
                        !self.moved.contains(&source),
                        "{source} serves on, and is {target}"
                    );
                    self.void.insert(target);
                    count(&RESUMED);
                }
            }
            ToAgent::TransferServe(command) => {
                if let Some(from) = self.agents[node].serve(&command) {
                    let incarnation = command.incarnation;
                    assert!(
                        !self.void.contains(&incarnation),
                        "{incarnation} serves beside {from}"
                    );
                    let mut stored = self.disk.0.processes.iter();
                    assert!(
                        stored.any(|record| record.incarnation == incarnation),
                        "that {incarnation} is the process is not stored"
                    );
                    self.moved.insert(from);
                    count(&MOVED);
                }
            }
            ToAgent::SwapOut(command) => self.agents[node].swap(&command),
            ToAgent::Stop(command) => self.agents[node].stop(&command),
            ToAgent::DeleteImages { request, .. } => self.agents[node].say_answer(request, Ok(())),
            ToAgent::Checkpoint(command) => self.agents[node].checkpoint(&command),
            // The first word after a hello.
            ToAgent::Applications(_) => self.agents[node].cut_since = None,
            _ => {}
        }
        true
    }

    fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.agents.iter().flat_map(|agent| &agent.hosts)
    }

    /// A process begins from what is in storage: nobody else has it, and may be it yet.
    fn check_start(&self, process: &str) {
        for host in self.hosts().filter(|host| host.process == process) {
            let over = self.moved.contains(&host.incarnation) || host.is_guest();
            assert!(over, "{process} begins anew beside {host:?}");
        }
    }

    /// No process is in two places at once.
    fn check(&self) {
        let mut live: BTreeMap<&str, u64> = BTreeMap::new();
        for host in self.hosts().filter(|host| host.is_the_process()) {
            let other = live.insert(&host.process, host.incarnation);
            assert_eq!(
                other, None,
                "{} lives twice: {:?}",
                host.process, self.agents
            );
        }
    }

    fn step(&mut self, op: Op) {
        let node = |node: u8| usize::from(node) % NODES;
        match op {
            Op::Ask {
                verb,
                process,
                wait_ms,
            } => {
                self.ask(request(verb, process), wait_ms);
            }
            Op::AskAndDie { verb, process } => self.die_of(Event::Request {
                id: u64::MAX,
                wait_ms: 100,
                request: request(verb, process),
            }),
            Op::Move {
                process,
                to,
                wait_ms,
            } => {
                self.ask(move_request(process, to), wait_ms);
            }
            Op::MoveAndDie(process) => self.die_of(Event::Request {
                id: u64::MAX,
                wait_ms: 100,
                request: move_request(process, None),
            }),
            Op::Drain { node: at, undo } => {
                let node = format!("n{}", node(at));
                self.ask(Request::NodeDrain { node, undo }, 0);
            }
            Op::ToAgent(at) => drop(self.tell_agent(node(at))),
            Op::FromAgent(at) => drop(self.hear_agent(node(at))),
            Op::FromAgentAndDie(at) => {
                let agent = &mut self.agents[node(at)];
                if let (Some(link), Some(message)) = (agent.link, agent.outbox.pop_front()) {
                    self.die_of(Event::Said { link, message });
                }
            }
            Op::Flow(rounds) => {
                for _ in 0..rounds {
                    self.flow();
                }
            }
            Op::Host {
                node: at,
                which,
                well,
            } => drop(self.host_step(node(at), usize::from(which), well)),
            Op::Kill { node: at, which } => self.agents[node(at)].kill(usize::from(which)),
            Op::Connect(at) => self.connect(node(at)),
            Op::Break { node: at, noticed } => {
                if let Some(link) = self.unnoticed.pop() {
                    self.handle(Event::Lost { link });
                }
                self.disconnect(node(at), noticed);
            }
            Op::Restart => self.restart(),
            Op::Stats { node: at, done } => self.agents[node(at)].stats_say(done),
            Op::Pass(ms) => {
                self.now += ms;
                for agent in &mut self.agents {
                    agent.fence(self.now);
                }
                self.handle(Event::Tick);
            }
        }
        self.check();
    }

    /// Lets everything happen that is under way, and time pass until all are answered.
    fn settle(&mut self) {
        for node in 0..NODES {
            self.connect(node);
        }
        for _ in 0..1_000 {
            if !self.flow() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Everybody goes on a step; whether anybody did.
    fn flow(&mut self) -> bool {
        let mut busy = false;
        for node in 0..NODES {
            busy |= self.hear_agent(node) | self.tell_agent(node);
            for which in 0..self.agents[node].hosts.len() {
                let idle = |host: &Host| host.phase == Phase::Ready && !host.is_sending();
                if self.agents[node]
                    .hosts
                    .get(which)
                    .is_some_and(|host| !idle(host))
                {
                    busy |= self.host_step(node, which, true);
                }
            }
            self.check();
        }
        busy
    }

    /// A host goes on; whether it does.
    fn host_step(&mut self, node: usize, which: usize, well: bool) -> bool {
        let Some(at) = which.checked_rem(self.agents[node].hosts.len()) else {
            return false;
        };
        let host = &self.agents[node].hosts[at];
        let fetches =
            matches!(host.phase, Phase::Starting(_)) && host.transfer == HostTransfer::Receiving;
        if !fetches || !well {
            let frozen = host.transfer == HostTransfer::Frozen;
            let swapping = matches!(host.phase, Phase::Swapping(_));
            let moved = self.moved.contains(&host.incarnation);
            if frozen && swapping && moved && well {
                count(&RESCUED);
            }
            return self.agents[node].host_step(at, well);
        }
        let (process, from, incarnation) = (host.process.clone(), host.from, host.incarnation);
        let hosts = self.agents.iter_mut().flat_map(|agent| &mut agent.hosts);
        let mut sources =
            hosts.filter(|host| host.process == process && Some(host.incarnation) == from);
        let fetched = match sources.next() {
            Some(source) if source.is_sending() => return false,
            Some(source) if source.transfer == HostTransfer::Frozen => {
                if source.phase == Phase::Ready {
                    source.fetched = Some(incarnation);
                }
                source.fetched == Some(incarnation)
            }
            _ => false,
        };
        self.agents[node].fetch_end(at, fetched);
        true
    }
}

fn move_request(process: u8, to: Option<u8>) -> Request {
    Request::ProcessTransfer {
        application: "a".into(),
        process: format!("p{}", usize::from(process) % PROCESSES),
        to: to.map(|to| format!("n{}", usize::from(to) % NODES)),
    }
}

fn request(verb: u8, process: u8) -> Request {
    const VERBS: [Verb; 9] = [
        Verb::Create,
        Verb::Ensure,
        Verb::Ensure,
        Verb::Swap,
        Verb::SwapIn,
        Verb::Stop,
        Verb::Delete,
        Verb::Show,
        Verb::Checkpoint,
    ];
    Request::Process {
        application: "a".into(),
        process: format!("p{}", usize::from(process) % PROCESSES),
        verb: VERBS[usize::from(verb) % VERBS.len()],
    }
}

fn op() -> impl Strategy<Value = Op> {
    let wait = prop_oneof![Just(0), Just(50), Just(1_000), Just(100_000)];
    let wait_again = wait.clone();
    prop_oneof![
        8 => (any::<u8>(), any::<u8>(), wait)
            .prop_map(|(verb, process, wait_ms)| Op::Ask { verb, process, wait_ms }),
        1 => (any::<u8>(), any::<u8>())
            .prop_map(|(verb, process)| Op::AskAndDie { verb, process }),
        5 => (any::<u8>(), any::<Option<u8>>(), wait_again)
            .prop_map(|(process, to, wait_ms)| Op::Move { process, to, wait_ms }),
        1 => any::<u8>().prop_map(Op::MoveAndDie),
        1 => (any::<u8>(), prop::bool::weighted(0.6))
            .prop_map(|(node, undo)| Op::Drain { node, undo }),
        1 => any::<u8>().prop_map(Op::FromAgentAndDie),
        3 => (0..12_u8).prop_map(Op::Flow),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(node, which)| Op::Kill { node, which }),
        10 => any::<u8>().prop_map(Op::ToAgent),
        12 => any::<u8>().prop_map(Op::FromAgent),
        8 => (any::<u8>(), any::<u8>(), prop::bool::weighted(0.8))
            .prop_map(|(node, which, well)| Op::Host { node, which, well }),
        4 => any::<u8>().prop_map(Op::Connect),
        2 => (any::<u8>(), any::<bool>())
            .prop_map(|(node, noticed)| Op::Break { node, noticed }),
        1 => Just(Op::Restart),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(node, done)| Op::Stats { node, done }),
        2 => (0_u64..500).prop_map(Op::Pass),
    ]
}

/// Little of what ends a transfer before it has come anywhere.
fn move_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<u8>(), any::<Option<u8>>())
            .prop_map(|(process, to)| Op::Move { process, to, wait_ms: 1_000 }),
        2 => any::<u8>().prop_map(Op::ToAgent),
        2 => any::<u8>().prop_map(Op::FromAgent),
        12 => (any::<u8>(), any::<u8>(), prop::bool::weighted(0.9))
            .prop_map(|(node, which, well)| Op::Host { node, which, well }),
        20 => (0..4_u8).prop_map(Op::Flow),
        2 => any::<u8>().prop_map(Op::Connect),
        2 => any::<u8>().prop_map(Op::FromAgentAndDie),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(node, which)| Op::Kill { node, which }),
        2 => op(),
    ]
}

/// A whole run: whatever came before, in the end all is well, and everybody was answered.
fn run(mut world: World, ops: Vec<Op>) -> Result<(), TestCaseError> {
    for op in ops {
        world.step(op);
    }
    for node in 0..NODES {
        world.step(Op::Drain {
            node: node as u8,
            undo: true,
        });
    }
    world.settle();
    // Back-offs are over.
    world.step(Op::Pass(1_000_000));
    world.settle();
    // Once all is well, whatever came before, a process can be had.
    let before = world.ready_seen;
    world.ask(request(0, 0), 10_000);
    world.settle();
    world.ask(request(1, 0), 10_000);
    world.settle();
    prop_assert!(
        world.ready_seen > before,
        "p0 cannot be had: {:?}",
        world.registry
    );
    world.step(Op::Pass(1_000_000));
    prop_assert!(world.open.is_empty(), "not answered: {:?}", world.open);
    prop_assert!(world.registry.deadlines.is_empty());
    world.settle();
    prop_assert!(
        world.registry.commands.is_empty(),
        "{:?}",
        world.registry.commands
    );
    prop_assert!(
        world.registry.policy.is_at_rest(),
        "{:?}",
        world.registry.policy
    );
    prop_assert!(world.registry.transfers.is_empty(), "{:?}", world.registry);
    prop_assert!(
        world.registry.transfer_commands.is_empty(),
        "{:?}",
        world.registry
    );
    prop_assert!(
        world.disk.0.transfers.is_empty(),
        "{:?}",
        world.disk.0.transfers
    );
    let left = world
        .hosts()
        .find(|host| host.transfer != HostTransfer::None);
    prop_assert!(left.is_none(), "{:?} is left: {:?}", left, world.registry);
    Ok(())
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig {
        cases,
        source_file: Some(file!()),
        ..ProptestConfig::default()
    })
}

#[test]
fn no_process_lives_twice_and_every_request_is_answered_once() {
    let plans = (
        prop::collection::vec(op(), 0..120),
        any::<bool>(),
        any::<bool>(),
    );
    let outcome = runner(4_000).run(&plans, |(ops, auto_create, policies)| {
        run(World::new(auto_create, policies), ops)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// The control plane died when it had stored that a process on its way is to stop, and had told
/// nobody: neither to serve nor to stop was said to who had all of it.
#[test]
fn what_is_to_stop_on_its_way_is_not_left_waiting() {
    let ask = |verb, process| Op::Ask {
        verb,
        process,
        wait_ms: 0,
    };
    let ops = vec![
        Op::Connect(55),
        Op::Connect(14),
        Op::FromAgent(73),
        ask(45, 43),
        Op::Flow(3),
        Op::Move {
            process: 133,
            to: None,
            wait_ms: 50,
        },
        Op::ToAgent(103),
        Op::FromAgent(5),
        Op::Flow(2),
        Op::AskAndDie {
            verb: 0,
            process: 0,
        },
        Op::Connect(90),
        Op::FromAgent(14),
        ask(248, 19),
        Op::AskAndDie {
            verb: 0,
            process: 0,
        },
    ];
    run(World::new(false, false), ops).unwrap_or_else(|error| panic!("{error}"));
}

/// It was started again because it had failed (`restart` = always), and went on where it was to go.
#[test]
fn what_died_on_its_way_is_not_started_again_before_it_is_known_to_be_lost() {
    let mut world = World::new(true, true);
    world.ask(request(0, 0), 1_000);
    world.settle();
    world.ask(move_request(0, None), 1_000);
    while world
        .hosts()
        .all(|host| host.transfer != HostTransfer::Prepared)
    {
        world.flow();
    }
    let node = |world: &World| {
        let mut agents = world.agents.iter();
        let frozen = |agent: &Agent| agent.hosts.iter().any(|host| host.fetched.is_some());
        agents.position(frozen).expect("a source")
    };
    let source = node(&world);
    world.agents[source].kill(0);
    while world.hear_agent(source) {}
    assert_eq!(world.hosts().count(), 1);
    world.settle();
    assert_eq!(world.hosts().count(), 1);
    world.step(Op::Pass(1_000_000));
    assert!(world.open.is_empty());
}

/// Begins with processes that serve, so that there is something to move.
#[test]
fn a_process_that_moves_ends_up_in_one_place() {
    let plans = (prop::collection::vec(move_op(), 0..100), any::<bool>());
    let outcome = runner(4_000).run(&plans, |(ops, policies)| {
        let mut world = World::new(true, policies);
        for process in 0..PROCESSES as u8 {
            world.ask(request(0, process), 1_000);
        }
        world.settle();
        run(world, ops)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    // The cases are worth something only if they come there.
    let counts = [&MOVED, &RESUMED, &RESCUED].map(|count| count.load(Ordering::Relaxed));
    eprintln!("moved, resumed, rescued: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}
