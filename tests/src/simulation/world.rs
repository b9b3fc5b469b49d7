//! The world of a simulation: who is there, and whose turn it is.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use praas_control::machine::Verb;
use praas_runtime::process::ProcessSettings;
use praas_transport::clock::Simulation;
use praas_transport::fault::FaultPlan;
use praas_transport::sync::atomic::{AtomicU64, Ordering};
use praas_transport::{Credential, Keyring, Role, Secret, Ticket, TransportConfig};

use super::caller::Caller;
use super::control::Control;
use super::functions::{APPENDED, Request, Todo};
use super::host::Host;
use super::node::Node;
use super::storage::MemoryStorage;
use super::upsets::Fates;
use super::{APPLICATION, Plan};
use crate::checker::{Action, Event, History, Outcome, Recorder};

/// How many waits may be on the stack before those above only let time pass.
const DEPTH_MAX: u32 = 6;
/// State objects that are used, and keys of messages.
const KEYS: [&str; 3] = ["a", "n/b", "append/c"];
/// Files that are used.
const FILE_NAMES: [&str; 2] = ["file/d", "file/below/e"];
const MAIL_KEYS: [&str; 2] = ["x", "y"];

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

fn client_id(number: usize) -> u128 {
    number as u128 + 1
}

/// The world of this thread.
pub(super) fn here<R>(ask: impl FnOnce(&World) -> R) -> R {
    let world = WORLD.with_borrow(Option::clone);
    ask(&world.expect("a simulation on this thread"))
}

/// What goes on while a function waits.
pub(super) fn meanwhile() {
    here(|world| world.turn_nested());
}

/// All there is.
pub(super) struct World {
    pub plan: Plan,
    random: RefCell<fastrand::Rng>,
    recorder: Recorder,
    trace: RefCell<Vec<String>>,
    secret: Secret,
    /// Tells the addresses of simulations in one OS process apart.
    number: u64,
    pub control: RefCell<Control>,
    nodes: RefCell<Vec<Rc<Node>>>,
    pub callers: RefCell<Vec<Rc<RefCell<Caller>>>>,
    storage: Arc<MemoryStorage>,
    /// Lives that are over, by process and incarnation.
    dead: RefCell<BTreeSet<(String, u64)>>,
    /// Those of them that live on, cut off from all but the storage.
    ghosts: RefCell<BTreeSet<(String, u64)>>,
    /// Processes that somebody has wanted to be stopped.
    pub stopped: RefCell<BTreeSet<String>>,
    /// Who is writing to storage, the innermost last.
    writers: RefCell<Vec<(String, u64)>>,
    depth: Cell<u32>,
    numbers: Cell<u64>,
    /// Turns in which nothing happened.
    idle: Cell<u32>,
    /// Nothing goes wrong any more.
    pub calm: Cell<bool>,
    pub fates: Fates,
    faults: Cell<u64>,
}

impl World {
    /// A world, which is this thread's until [`World::end`].
    pub fn begin(plan: Plan) -> Rc<Self> {
        static WORLDS: AtomicU64 = AtomicU64::new(0);
        let secret = Secret::from_bytes([7; 32]);
        let world = Rc::new(Self {
            random: RefCell::new(fastrand::Rng::with_seed(plan.seed)),
            recorder: Recorder::default(),
            trace: RefCell::new(Vec::new()),
            control: RefCell::new(Control::new(secret.clone())),
            secret,
            number: WORLDS.fetch_add(1, Ordering::Relaxed),
            nodes: RefCell::new(Vec::new()),
            callers: RefCell::new(Vec::new()),
            storage: Arc::new(MemoryStorage::default()),
            dead: RefCell::new(BTreeSet::new()),
            ghosts: RefCell::new(BTreeSet::new()),
            stopped: RefCell::new(BTreeSet::new()),
            writers: RefCell::new(Vec::new()),
            depth: Cell::new(0),
            numbers: Cell::new(0),
            idle: Cell::new(0),
            calm: Cell::new(false),
            fates: Fates::default(),
            faults: Cell::new(0),
            plan,
        });
        WORLD.set(Some(Rc::clone(&world)));
        for number in 0..world.plan.nodes {
            let node = Node::new(&world, number);
            world.nodes.borrow_mut().push(Rc::new(node));
        }
        for number in 0..world.plan.clients {
            let node = world.node(number % world.plan.nodes);
            let credential = world.credential(Role::Client, client_id(number));
            let caller = Caller::new(node.address.clone(), credential, world.transport());
            let caller = Rc::new(RefCell::new(caller));
            world.callers.borrow_mut().push(caller);
        }
        world
    }

    /// What was recorded and traced; the thread is free for another world.
    pub fn end(self: Rc<Self>) -> (History, Vec<String>) {
        WORLD.set(None);
        let mut history = self.recorder.history();
        history.functions_tell = true;
        let trace = self.trace.take();
        // Hosts hold on to nothing that holds on to the world.
        (history, trace)
    }

    // What the parts ask.

    pub fn random(&self, below: u64) -> u64 {
        self.random.borrow_mut().u64(..below.max(1))
    }

    pub fn chance(&self, of_thousand: u64) -> bool {
        self.random(1000) < of_thousand
    }

    pub fn note(&self, event: Event) {
        self.trace(|| format!("{event:?}"));
        self.recorder.note(event);
    }

    pub fn trace(&self, text: impl FnOnce() -> String) {
        let at = Simulation::passed().as_micros();
        let depth = self.depth.get();
        // The number is another one in another simulation of the same seed.
        let text = text().replace(&self.address(""), "");
        let line = format!("{at:>9} {depth} {text}");
        self.trace.borrow_mut().push(line);
    }

    /// A number that was never given before.
    fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    pub fn address(&self, name: &str) -> String {
        format!("simulation-{}/{name}", self.number)
    }

    pub fn keyring(&self) -> Keyring {
        let ring = Keyring::new();
        ring.insert(APPLICATION, 1, self.secret.clone());
        ring
    }

    /// What a process (with client id zero) or a client shows.
    pub fn credential(&self, role: Role, client_id: u128) -> Credential {
        let ticket = Ticket {
            application: APPLICATION.into(),
            role,
            client_id,
            expires_unix_ms: u64::MAX,
            key_id: 1,
        };
        Credential::issue(&self.secret, &ticket)
    }

    /// Settings of an endpoint, with faults of its own.
    pub fn transport(&self) -> TransportConfig {
        self.faults.set(self.faults.get() + 1);
        let often = |world: &Self, most: u16| match world.chance(500) {
            true => world.random(most.into()) as u16,
            false => 0,
        };
        let fault = FaultPlan {
            seed: self.plan.seed ^ self.faults.get() << 32,
            busy: often(self, 8_000),
            delay: often(self, 20_000),
            delay_polls_max: 1 + self.random(20) as u32,
            partial: often(self, 30_000),
            die_after_frames: match self.chance(200) {
                true => 40 + self.random(200),
                false => 0,
            },
            ..FaultPlan::default()
        };
        TransportConfig {
            poll_interval_rounds: 64,
            shm_expose: false,
            fault: Some(fault),
            ..TransportConfig::default()
        }
    }

    /// Settings of a process, whose limits are low now and then.
    pub fn settings(&self) -> ProcessSettings {
        let mut settings = ProcessSettings::default();
        if self.chance(300) {
            settings.mailbox_messages_max = 3 + self.random(5) as usize;
        }
        if self.chance(200) {
            settings.results_max_bytes = 1 + self.random(200) as usize;
        }
        if self.plan.moves > 0 {
            settings.transfer_freeze_max_bytes = [0, 64, 1 << 20][self.random(3) as usize];
            settings.transfer_rounds_max = 1 + self.random(4) as u32;
            settings.transfer_window_bytes = 64 << 10;
            settings.transfer_freeze_timeout_ms = 2_000;
        }
        if self.plan.through > 0 {
            settings.persist_files_max = [1, 3, 1024][self.random(3) as usize];
            settings.persist_group_max_bytes = [1, 32 << 20][self.random(2) as usize];
        }
        settings
    }

    pub fn storage(&self) -> Arc<MemoryStorage> {
        Arc::clone(&self.storage)
    }

    /// Whether what this life of a process says is still heard.
    pub fn lives(&self, process: &str, incarnation: u64) -> bool {
        let dead = self.dead.borrow();
        !dead.contains(&(process.to_owned(), incarnation))
    }

    pub fn dead(&self, process: &str, incarnation: u64) {
        let mut dead = self.dead.borrow_mut();
        dead.insert((process.to_owned(), incarnation));
    }

    pub fn ghost(&self, process: &str, incarnation: u64) {
        let mut ghosts = self.ghosts.borrow_mut();
        ghosts.insert((process.to_owned(), incarnation));
    }

    pub fn is_ghost(&self, process: &str, incarnation: u64) -> bool {
        let ghosts = self.ghosts.borrow();
        ghosts.contains(&(process.to_owned(), incarnation))
    }

    pub fn writing(&self, process: &str, incarnation: u64) {
        let mut writers = self.writers.borrow_mut();
        writers.push((process.to_owned(), incarnation));
    }

    pub fn written(&self) {
        self.writers.borrow_mut().pop();
    }

    /// Whether whoever uses the storage was not killed meanwhile.
    pub fn writer_lives(&self) -> bool {
        let writers = self.writers.borrow();
        writers.last().is_none_or(|(process, incarnation)| {
            self.lives(process, *incarnation) || self.is_ghost(process, *incarnation)
        })
    }

    /// Whether whoever uses the storage is not taken for dead either.
    pub fn writer_unfenced(&self) -> bool {
        let writers = self.writers.borrow();
        let writer = writers.last();
        writer.is_none_or(|(process, incarnation)| self.lives(process, *incarnation))
    }

    /// Whoever writes through is taken for dead meanwhile, now and then, and his successor begins.
    pub fn writer_haunts(&self) {
        let never = self.plan.through == 0 || self.plan.upsets == 0 || self.calm.get();
        if never || !self.chance(150) {
            return;
        }
        let Some((process, incarnation)) = self.writers.borrow().last().cloned() else {
            return;
        };
        let hosts = self.hosts();
        let ours = |host: &Rc<Host>| host.process == process && host.incarnation == incarnation;
        let Some((_, host)) = hosts.iter().find(|(_, host)| ours(host)) else {
            return;
        };
        host.cut_off(self);
        if self.is_ghost(&process, incarnation) {
            self.control.borrow_mut().process(&process, Verb::Ensure);
            let mut turns = self.random(3_000);
            while turns > 0 {
                turns -= 1;
                self.turn_nested();
                self.idle.set(0);
                let begun = |host: &Rc<Host>| host.process == process && host.serves();
                if turns > 60 && self.hosts().iter().any(|(_, host)| begun(host)) {
                    turns = self.random(60);
                }
            }
        }
    }

    pub fn storage_fails(&self) -> bool {
        !self.calm.get() && self.chance(self.plan.storage_fails)
    }

    pub fn node(&self, number: usize) -> Rc<Node> {
        Rc::clone(&self.nodes.borrow()[number])
    }

    pub fn hosts(&self) -> Vec<(Rc<Node>, Rc<Host>)> {
        let mut all = Vec::new();
        for node in self.nodes.borrow().iter() {
            let hosts = node.hosts.borrow();
            all.extend(
                hosts
                    .values()
                    .map(|host| (Rc::clone(node), Rc::clone(host))),
            );
        }
        all
    }

    // Turns.

    /// An operation on storage takes time.
    pub fn meanwhile_storage(&self) {
        for _ in 0..self.random(self.plan.storage_turns) {
            self.turn_nested();
            // It is the storage that is waited for, and it is not so slow.
            self.idle.set(0);
        }
    }

    fn turn_nested(&self) {
        self.depth.set(self.depth.get() + 1);
        match self.depth.get() <= DEPTH_MAX {
            true => {
                // What a function waits for may come to a caller who has gone and come again.
                if !self.calm.get() && self.chance(self.plan.upsets / 4) {
                    let hosts = self.hosts();
                    if let Some((_, host)) = hosts.get(self.random(hosts.len() as u64) as usize) {
                        host.callers_show_out(self);
                    }
                }
                self.turn();
            }
            // Whoever waits so deep waits in vain, until its deadline.
            false => Simulation::advance(Duration::from_millis(20)),
        }
        self.depth.set(self.depth.get() - 1);
    }

    /// Somebody's turn, and a little time.
    pub fn turn(&self) {
        Simulation::advance(Duration::from_micros(self.random(40)));
        self.fates_step();
        let happened = self.turn_one();
        let idle = match happened {
            true => 0,
            false => self.idle.get() + 1,
        };
        self.idle.set(idle);
        if idle > 60 {
            // Everybody has been asked, more or less: only time brings something.
            let ms = 1 << ((idle - 60) / 30).min(7);
            Simulation::advance(Duration::from_millis(ms));
        }
    }

    fn turn_one(&self) -> bool {
        let hosts = self.hosts();
        let nodes = self.nodes.borrow().len() as u64;
        let callers = self.callers.borrow().len() as u64;
        let of_host = match (self.plan.through, self.plan.lazy) {
            (0, false) => 4,
            (_, false) => 5,
            (_, true) => 6,
        };
        let of_node = match self.plan.deletes {
            0 => 4,
            _ => 5,
        };
        let all = nodes * of_node + callers * 2 + hosts.len() as u64 * of_host;
        let mut turn = self.random(all);
        if turn < nodes * of_node {
            let node = self.node((turn % nodes) as usize);
            return match turn / nodes {
                0 => node.directory_step(self),
                1 => node.hosts_hear(self),
                2 => node.hear(self),
                4 => node.images_step(self),
                _ => self.control_step(&node),
            };
        }
        turn -= nodes * of_node;
        if turn < callers * 2 {
            return self.caller_step((turn % callers) as usize);
        }
        turn -= callers * 2;
        let (node, host) = &hosts[(turn / of_host) as usize];
        match turn % of_host {
            0 => host.step(self, node),
            4 => host.persist_step(self),
            5 => host.fetch_step(self),
            _ => host.process_step(self),
        }
    }

    fn control_step(&self, node: &Node) -> bool {
        let connected = self.chance(500) && node.connect(self);
        let link = *node.link.borrow();
        let heard = {
            let mut control = self.control.borrow_mut();
            control.tick();
            link.is_some_and(|link| control.hear(link))
        };
        self.committed();
        connected || heard
    }

    fn caller_step(&self, number: usize) -> bool {
        let caller = Rc::clone(&self.callers.borrow()[number]);
        let (happened, events) = caller.borrow_mut().step();
        for event in events {
            self.note(event);
        }
        happened
    }

    // What is wanted, and what goes wrong.

    fn pick<'a>(&self, of: &[&'a str]) -> &'a str {
        of[self.random(of.len() as u64) as usize]
    }

    pub fn process(&self) -> String {
        format!("p{}", self.random(self.plan.processes))
    }

    fn source(&self) -> Option<String> {
        match self.random(3) {
            0 => Some(self.process()),
            _ => None,
        }
    }

    /// Something for a function to do; `deep`: also what has it call others.
    fn todo(&self, deep: bool) -> Todo {
        if deep && self.plan.others > 0 && self.chance(self.plan.others) {
            return self.todo_other();
        }
        let key = self.pick(&KEYS).to_owned();
        let appended = key.starts_with(APPENDED);
        if self.plan.files > 0 && self.chance(self.plan.files) {
            let name = self.pick(&FILE_NAMES).to_owned();
            return match self.random(5) {
                0 | 1 => Todo::Read(name),
                2 | 3 => Todo::Write(name, self.number()),
                _ => Todo::Erase(name),
            };
        }
        if self.plan.through > 0 && self.chance(self.plan.through) {
            return match self.random(8) {
                0 => Todo::Erase(key),
                other => {
                    let write = (other > 3 && !appended).then(|| self.number());
                    Todo::Persist(key, write, 1 + self.random(100))
                }
            };
        }
        match self.random(if deep { 20 } else { 13 }) {
            0..=8 if appended => Todo::Add(key, 1 + self.random(40)),
            0..=2 => Todo::Read(key),
            3..=5 => Todo::Write(key, self.number()),
            6 => Todo::Add(key, 1 + self.random(9)),
            7..=8 => {
                let expected = Some(self.random(self.numbers.get())).filter(|value| *value > 0);
                Todo::CompareSwap(key, expected, self.number())
            }
            9 => Todo::Peek(self.source(), self.pick(&MAIL_KEYS).into()),
            10..=12 => Todo::Take(self.source(), self.pick(&MAIL_KEYS).into()),
            13..=14 => Todo::Wait(
                self.source(),
                self.pick(&MAIL_KEYS).into(),
                1 + self.random(300),
            ),
            15..=16 => {
                let request = Request {
                    call: self.number(),
                    todo: self.todo(false),
                    padding: self.padding(),
                };
                Todo::Invoke(self.process(), Box::new(request), 1 + self.random(2_000))
            }
            _ => Todo::Put {
                padding: self.padding(),
                call: self.number(),
                to: self.process(),
                key: self.pick(&MAIL_KEYS).into(),
                message: self.number(),
                within_ms: 1 + self.random(2_000),
            },
        }
    }

    /// What a function does with another process besides invoking it and putting messages.
    fn todo_other(&self) -> Todo {
        let request = || Request {
            call: self.number(),
            todo: self.todo(false),
            padding: self.padding(),
        };
        let (process, ms) = (self.process(), 1 + self.random(2_000));
        match self.random(3) {
            0 => {
                let many = 1 + self.random(5);
                Todo::Batch(process, (0..many).map(|_| request()).collect(), ms)
            }
            1 => Todo::OneWay(process, Box::new(request()), ms),
            _ => Todo::Look {
                call: self.number(),
                of: process,
                key: self.pick(&KEYS).into(),
                within_ms: ms,
            },
        }
    }

    /// Bytes that make a payload large, now and then: those travel by another way.
    fn padding(&self) -> Vec<u8> {
        match self.chance(60) {
            true => vec![9; self.random(200_000) as usize],
            false => Vec::new(),
        }
    }

    fn within(&self) -> Option<Duration> {
        let ms = self.random(20_000);
        self.chance(600).then(|| Duration::from_millis(1 + ms))
    }

    /// A client wants something.
    pub fn want(&self) {
        let number = self.random(self.plan.clients as u64) as usize;
        let caller = Rc::clone(&self.callers.borrow()[number]);
        if caller.borrow().under_way() >= self.plan.under_way_max {
            return;
        }
        let (process, within) = (self.process(), self.within());
        let events = if self.chance(350) {
            let action = Action::Put {
                source: format!("client:{:032x}", client_id(number)),
                key: self.pick(&MAIL_KEYS).into(),
                message: self.number(),
            };
            let (call, padding) = (self.number(), self.padding());
            let mut caller = caller.borrow_mut();
            caller.put(&process, call, action, &padding, within)
        } else {
            let todo = self.todo(true);
            let idempotent = todo.idempotent() && self.chance(300);
            let request = Request {
                call: self.number(),
                todo,
                padding: self.padding(),
            };
            let mut caller = caller.borrow_mut();
            match self.plan.others > 0 && self.chance(self.plan.others / 2) {
                true => caller.invoke_one_way(&process, &request, within),
                false => caller.invoke(&process, &request, within, idempotent),
            }
        };
        for event in events {
            self.note(event);
        }
    }

    // The end.

    /// Nothing goes wrong any more, and all that is under way ends; whether it did.
    pub fn settle(&self) -> bool {
        self.calm.set(true);
        self.control.borrow_mut().doom = None;
        let begun = Simulation::passed();
        let busy = || {
            let callers = self.callers.borrow();
            let nodes = self.nodes.borrow();
            callers.iter().any(|c| c.borrow().under_way() > 0) || nodes.iter().any(|n| n.is_away())
        };
        let mut turns = 0_u32;
        while busy() {
            turns += 1;
            let late = Simulation::passed() - begun > Duration::from_secs(240);
            if late || turns > 400_000 {
                self.trace(|| format!("it never settles: {turns} turns"));
                return false;
            }
            self.turn();
        }
        true
    }

    /// Reads every object and takes every message, so that what was lost is seen to be.
    pub fn look(&self) -> bool {
        for process in 0..self.plan.processes {
            let process = format!("p{process}");
            let files: &[&str] = match self.plan.files {
                0 => &[],
                _ => &FILE_NAMES,
            };
            let objects = KEYS.iter().filter(|key| !key.starts_with(APPENDED));
            for key in objects.chain(files) {
                if !self.ask(&process, Todo::Read((*key).into())) {
                    return false;
                }
            }
            if !self.ask(&process, Todo::Add("append/c".into(), 1)) {
                return false;
            }
            for key in MAIL_KEYS {
                loop {
                    let events = self.recorder.len();
                    if !self.ask(&process, Todo::Take(None, key.into())) {
                        return false;
                    }
                    let history = self.recorder.history();
                    let more = history.events[events..].iter().any(|event| {
                        matches!(event, Event::Ran { reply, .. }
                            if matches!(reply, crate::checker::Reply::Message(Some(_))))
                    });
                    if !more {
                        break;
                    }
                }
            }
        }
        true
    }

    /// Asks until there is an answer: nothing goes wrong any more, so that it can be had.
    fn ask(&self, process: &str, todo: Todo) -> bool {
        for _ in 0..20 {
            let call = self.number();
            let request = Request {
                call,
                todo: todo.clone(),
                padding: Vec::new(),
            };
            let before = self.recorder.len();
            let caller = Rc::clone(&self.callers.borrow()[0]);
            let events = caller.borrow_mut().invoke(process, &request, None, false);
            for event in events {
                self.note(event);
            }
            if !self.settle() {
                return false;
            }
            let history = self.recorder.history();
            let answered = history.events[before..].iter().any(|event| {
                matches!(event, Event::Returned { call: of, outcome: Outcome::Ok(_) } if *of == call)
            });
            if answered {
                return true;
            }
            Simulation::advance(Duration::from_secs(1));
        }
        self.trace(|| format!("{process} cannot be had"));
        false
    }
}
