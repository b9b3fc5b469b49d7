//! The registry among agents that come and go, under random interleavings: no process ever has
//! two live incarnations, no incarnation is used twice, every request is answered once.
//!
//! Agents keep their side of the lease: one that has not heard of the control plane for so long,
//! and be it only the answer to its hello, ends its hosts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::tests::spec;
use super::{Action, Event, Limits, Registry, Reply, Request, Verb};
use crate::agent::{FromAgent, HostCommand, HostReport, HostStats, HostTransfer, ToAgent};
use crate::api::{ProcessState, ProcessStats};
use crate::store::{Change, Snapshot};
use praas_transport::Secret;

const NODES: usize = 2;
const PROCESSES: usize = 2;
const LEASE_MS: u64 = 400;

fn limits() -> Limits {
    Limits {
        lease_ms: LEASE_MS,
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
    ToAgent(u8),
    FromAgent(u8),
    /// A host goes on: starts up, fails, ends.
    Host {
        node: u8,
        which: u8,
        well: bool,
    },
    Connect(u8),
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

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Starting(u64),
    Ready,
    Swapping(u64),
    Stopping(u64),
}

#[derive(Debug)]
struct Host {
    process: String,
    incarnation: u64,
    phase: Phase,
}

#[derive(Debug, Default)]
struct Agent {
    link: Option<u64>,
    /// Since when it has not been sure of the control plane.
    cut_since: Option<u64>,
    inbox: VecDeque<ToAgent>,
    outbox: VecDeque<FromAgent>,
    hosts: Vec<Host>,
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

    fn tell_agent(&mut self, node: usize) -> bool {
        let Some(message) = self.agents[node].inbox.pop_front() else {
            return false;
        };
        match message {
            ToAgent::Start(start) => {
                let fresh = self.started.insert(start.incarnation);
                assert!(fresh, "incarnation {} is used again", start.incarnation);
                let stored = self
                    .disk
                    .0
                    .processes
                    .iter()
                    .any(|record| record.incarnation == start.incarnation);
                assert!(stored, "{} was not stored first", start.incarnation);
                self.agents[node].hosts.push(Host {
                    process: start.process,
                    incarnation: start.incarnation,
                    phase: Phase::Starting(start.request),
                });
                self.check();
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

    fn check(&self) {
        let mut live: BTreeMap<&str, u64> = BTreeMap::new();
        for host in self.agents.iter().flat_map(|agent| &agent.hosts) {
            let other = live.insert(&host.process, host.incarnation);
            assert_eq!(other, None, "{} lives twice", host.process);
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
            Op::AskAndDie { verb, process } => {
                let event = Event::Request {
                    id: u64::MAX,
                    wait_ms: 100,
                    request: request(verb, process),
                };
                for action in self.registry.handle(self.now, event) {
                    if let Action::Persist(change) = action {
                        self.disk.apply(change);
                    }
                }
                self.restart();
            }
            Op::ToAgent(at) => drop(self.tell_agent(node(at))),
            Op::FromAgent(at) => drop(self.hear_agent(node(at))),
            Op::Host {
                node: at,
                which,
                well,
            } => self.agents[node(at)].host_step(usize::from(which), well),
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
            let mut busy = false;
            for node in 0..NODES {
                busy |= self.hear_agent(node) | self.tell_agent(node);
                let agent = &mut self.agents[node];
                for which in 0..agent.hosts.len() {
                    if agent
                        .hosts
                        .get(which)
                        .is_some_and(|h| h.phase != Phase::Ready)
                    {
                        agent.host_step(which, true);
                        busy = true;
                    }
                }
            }
            if !busy {
                return;
            }
        }
        panic!("it never comes to rest");
    }
}

impl Host {
    fn report(&self) -> HostReport {
        let state = match self.phase {
            Phase::Starting(_) => ProcessState::Starting,
            Phase::Ready => ProcessState::Ready,
            _ => ProcessState::Quiescing,
        };
        self.report_as(state)
    }

    fn report_as(&self, state: ProcessState) -> HostReport {
        HostReport {
            application: "a".into(),
            process: self.process.clone(),
            incarnation: self.incarnation,
            state,
            pid: 1,
            addresses: vec![],
            swap_generation: u64::from(state == ProcessState::Swapped),
            error: None,
            swapped: state == ProcessState::Swapped,
            transfer: HostTransfer::None,
        }
    }
}

impl Agent {
    fn say(&mut self, message: FromAgent) {
        if self.link.is_some() {
            self.outbox.push_back(message);
        }
    }

    fn say_answer(&mut self, request: u64, result: Result<(), String>) {
        self.say(FromAgent::Answer { request, result });
    }

    fn fence(&mut self, now: u64) {
        if self.cut_since.is_some_and(|since| now - since >= LEASE_MS) {
            for host in std::mem::take(&mut self.hosts) {
                self.say(FromAgent::Report(host.report_as(ProcessState::Failed)));
            }
        }
    }

    fn find(&mut self, command: &HostCommand) -> Option<&mut Host> {
        let meant = |host: &&mut Host| {
            host.process == command.process && host.incarnation == command.incarnation
        };
        self.hosts.iter_mut().find(meant)
    }

    fn swap(&mut self, command: &HostCommand) {
        match self.find(command) {
            Some(host) if host.phase == Phase::Ready => {
                host.phase = Phase::Swapping(command.request);
            }
            _ => self.say_answer(command.request, Err("cannot swap".into())),
        }
    }

    fn checkpoint(&mut self, command: &HostCommand) {
        let result = match self.find(command) {
            Some(host) if host.phase == Phase::Ready => Ok(()),
            _ => Err("it does not serve".into()),
        };
        self.say_answer(command.request, result);
    }

    fn stats_say(&mut self, done: u8) {
        let hosts = self.hosts.iter().map(|host| HostStats {
            application: "a".into(),
            process: host.process.clone(),
            incarnation: host.incarnation,
            stats: ProcessStats {
                invocations: done.into(),
                running: u64::from(done % 2),
                ..ProcessStats::default()
            },
            restored: None,
            checkpoint: None,
            checkpoint_error: None,
        });
        let message = FromAgent::Stats {
            resident_bytes: u64::from(done % 4 == 3),
            hosts: hosts.collect(),
        };
        self.say(message);
    }

    fn stop(&mut self, command: &HostCommand) {
        match self.find(command) {
            Some(host) => host.phase = Phase::Stopping(command.request),
            None => self.say_answer(command.request, Ok(())),
        }
    }

    fn host_step(&mut self, which: usize, well: bool) {
        if self.hosts.is_empty() {
            return;
        }
        let at = which % self.hosts.len();
        let host = &mut self.hosts[at];
        let phase = host.phase.clone();
        let (state, answer) = match (&phase, well) {
            (Phase::Starting(request), true) => (ProcessState::Ready, Some((*request, Ok(())))),
            (Phase::Starting(request), false) => {
                (ProcessState::Failed, Some((*request, Err("no".into()))))
            }
            (Phase::Ready, true) => return,
            (Phase::Ready, false) => (ProcessState::Failed, None),
            (Phase::Swapping(request), true) => (ProcessState::Swapped, Some((*request, Ok(())))),
            (Phase::Swapping(request), false) => {
                (ProcessState::Ready, Some((*request, Err("busy".into()))))
            }
            (Phase::Stopping(request), _) => (ProcessState::Gone, Some((*request, Ok(())))),
        };
        let report = host.report_as(state);
        host.phase = Phase::Ready;
        if !state.is_live() {
            self.hosts.remove(at);
        }
        self.say(FromAgent::Report(report));
        if let Some((request, result)) = answer {
            self.say_answer(request, result);
        }
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
    prop_oneof![
        8 => (any::<u8>(), any::<u8>(), wait)
            .prop_map(|(verb, process, wait_ms)| Op::Ask { verb, process, wait_ms }),
        1 => (any::<u8>(), any::<u8>())
            .prop_map(|(verb, process)| Op::AskAndDie { verb, process }),
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn no_process_lives_twice_and_every_request_is_answered_once(
        ops in prop::collection::vec(op(), 0..120),
        auto_create: bool,
        policies: bool,
    ) {
        let mut world = World::new(auto_create, policies);
        for op in ops {
            world.step(op);
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
        prop_assert!(world.ready_seen > before, "p0 cannot be had: {:?}", world.registry);
        world.step(Op::Pass(1_000_000));
        prop_assert!(world.open.is_empty(), "not answered: {:?}", world.open);
        prop_assert!(world.registry.deadlines.is_empty());
        world.settle();
        prop_assert!(world.registry.commands.is_empty(), "{:?}", world.registry.commands);
        prop_assert!(world.registry.policy.is_at_rest(), "{:?}", world.registry.policy);
    }
}
