//! The registry: what the control plane knows and decides, without clock, thread or socket.
//!
//! ```text
//!   requests, what agents say, ticks --> Registry::handle(now) --> actions:
//!                                          Persist, then Tell, Drop, Answer
//! ```
//!
//! A process is an `Entry`: its record, which is stored, what its agent says of it, and the
//! requests that wait for it. Requests want the process in a state; the first that waits decides
//! what is done next, and whoever gets what it wants is answered.
//!
//! ```text
//!              start                 report            swap               report
//!   gone, --------------> starting --------> ready ------------> quiescing -----> swapped
//!   swapped,                 |                 |      stop            |             |
//!   failed                   +---- report -----+--------------------->+--> gone     +--> (start)
//!                                  failed
//! ```
//!
//! Invariant: a live record (starting, ready, quiescing) leaves that state only when its node's
//! agent has confirmed the death, by a report, an answer or an inventory without it, when an
//! operator declares the node dead, or when the agent has been silent for `lease_ms`, which is
//! counted anew from the start of a control plane, and after which hosts have ended themselves.
//! Only a record that is not live is started, under an incarnation that is stored first and never
//! used before. So no process has two live incarnations, whatever is lost in between.

mod agents;
mod deletion;
mod drain;
#[cfg(test)]
mod found_tests;
mod policy;
#[cfg(test)]
mod policy_tests;
mod process;
mod requests;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod transfer;
#[cfg(test)]
mod transfer_tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use praas_transport::{Address, Secret};

use self::deletion::Deletion;
use self::drain::Moves;
pub use self::policy::PolicyCounts;
use self::policy::{Policy, Watch};
use self::transfer::{Transfer, TransferCommand};

use crate::agent::{FromAgent, ToAgent};
use crate::api::{
    Application, ApplicationSpec, Member, Node, Process, ProcessState, Settings, TokenInfo, World,
};
use crate::config::ControlConfig;
use crate::error::Failure;
use crate::files::hex_encode;
use crate::policy::PolicySettings;
use crate::store::{ApplicationRecord, Change, ProcessRecord, Snapshot, TokenRecord};

/// What is asked of the registry.
#[derive(Debug, Clone)]
pub enum Request {
    /// Create an application.
    ApplicationCreate {
        /// What it is to be.
        spec: ApplicationSpec,
        /// Its first secret.
        secret: Secret,
        /// The time, in milliseconds since the Unix epoch.
        now_unix_ms: u64,
    },
    /// All applications.
    ApplicationList,
    /// One application.
    ApplicationShow(String),
    /// Delete an application, and what its processes have left in storage.
    ApplicationDelete(String),
    /// Raise an application's key id.
    KeyRevoke {
        /// The application.
        application: String,
        /// Its next secret.
        secret: Secret,
    },
    /// An application's key id and secret.
    KeyShow(String),
    /// All processes of an application.
    ProcessList(String),
    /// Do something with a process, or show it.
    Process {
        /// The application.
        application: String,
        /// The process.
        process: String,
        /// What to do.
        verb: Verb,
    },
    /// Move a process that serves to another node: this one, or any.
    ProcessTransfer {
        /// The application.
        application: String,
        /// The process.
        process: String,
        /// Where to.
        to: Option<String>,
    },
    /// All nodes.
    NodeList,
    /// Declare a node dead.
    NodeForget(String),
    /// Start nothing on a node any more and move its processes elsewhere, or start there again.
    NodeDrain {
        /// The node.
        node: String,
        /// Or start there again.
        undo: bool,
    },
    /// The world view of an application.
    WorldShow(String),
    /// Add a token.
    TokenCreate(TokenRecord),
    /// All tokens.
    TokenList,
    /// Forget a token, by its id.
    TokenDelete(String),
}

/// What to do with a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Show it as it is.
    Show,
    /// Create it, and wait until it is ready.
    Create,
    /// See that it is ready; create it if the application does so by itself.
    Ensure,
    /// Swap it in, or start it again after a failure.
    SwapIn,
    /// Swap it out.
    Swap,
    /// Stop it.
    Stop,
    /// Stop it, delete its images and forget it.
    Delete,
    /// Take a checkpoint of it.
    Checkpoint,
}

/// What the registry answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Done; there is nothing to tell.
    Done,
    /// An application.
    Application(Application),
    /// Applications.
    Applications(Vec<Application>),
    /// A process.
    Process(Box<Process>),
    /// Processes.
    Processes(Vec<Process>),
    /// Nodes.
    Nodes(Vec<Node>),
    /// A world view.
    World(World),
    /// A key id and its secret.
    Key(u32, Secret),
    /// A token.
    Token(TokenInfo),
    /// Tokens.
    Tokens(Vec<TokenInfo>),
}

/// What happens to the registry.
#[derive(Debug, Clone)]
pub enum Event {
    /// Something is asked.
    Request {
        /// Names the request in its answer.
        id: u64,
        /// Milliseconds that it may wait; zero answers at once with things as they are then.
        wait_ms: u64,
        /// What is asked.
        request: Request,
    },
    /// An agent says something.
    Said {
        /// Its link.
        link: u64,
        /// What it says.
        message: FromAgent,
    },
    /// An agent's link has ended.
    Lost {
        /// The link.
        link: u64,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done, in order: nothing after a `Persist` before that is on disk.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Store a change.
    Persist(Change),
    /// Send a message to an agent.
    Tell {
        /// Its link.
        link: u64,
        /// What to send.
        message: ToAgent,
    },
    /// Close a link.
    Drop {
        /// Which.
        link: u64,
    },
    /// Answer a request.
    Answer {
        /// Which.
        id: u64,
        /// What to answer.
        result: Result<Reply, Failure>,
    },
}

/// The limits of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Applications that there may be.
    pub applications_max: usize,
    /// Processes, in any state, that there may be.
    pub processes_max: usize,
    /// Requests that may wait for one process.
    pub waiters_max: usize,
    /// Tokens that there may be.
    pub tokens_max: usize,
    /// Modules that an application may have.
    pub modules_max: usize,
    /// Bytes that an application's settings may have, as JSON.
    pub settings_max_bytes: usize,
    /// Milliseconds that an agent's question may wait.
    pub resolve_timeout_ms: u64,
    /// Milliseconds between two world views of one application.
    pub world_interval_ms: u64,
    /// Milliseconds of silence after which a node counts as dead; zero: never.
    pub lease_ms: u64,
    /// Percent of a node's memory above which processes are swapped out; zero: never.
    pub memory_high_percent: u32,
    /// Percent of a node's memory below which that ends.
    pub memory_low_percent: u32,
    /// Processes of a node that are swapped out at the same time for its memory.
    pub pressure_swaps_max: usize,
    /// Milliseconds until a transfer's target must have everything.
    pub transfer_timeout_ms: u64,
    /// Transfers away from one drained node at a time.
    pub drain_transfers_max: usize,
    /// Milliseconds at most until what could not be moved away is tried again.
    pub drain_retry_max_ms: u64,
}

impl From<&ControlConfig> for Limits {
    fn from(config: &ControlConfig) -> Self {
        Self {
            applications_max: config.applications_max,
            processes_max: config.processes_max,
            waiters_max: config.waiters_max,
            tokens_max: config.tokens_max,
            modules_max: config.modules_max,
            settings_max_bytes: config.settings_max_bytes,
            resolve_timeout_ms: config.resolve_timeout_ms,
            world_interval_ms: config.world_interval_ms,
            lease_ms: config.lease_ms,
            memory_high_percent: config.memory_high_percent,
            memory_low_percent: config.memory_low_percent,
            pressure_swaps_max: config.pressure_swaps_max,
            transfer_timeout_ms: config.transfer_timeout_ms,
            drain_transfers_max: config.drain_transfers_max,
            drain_retry_max_ms: config.drain_retry_max_ms,
        }
    }
}

/// Names a process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    application: String,
    process: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {:?} of {:?}", self.process, self.application)
    }
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Api(u64),
    Agent {
        link: u64,
        request: u64,
    },
    /// The deletion of its application, by its number.
    Application(u64),
}

/// The state that a request wants a process in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Ready,
    Swapped,
    Stopped,
    Deleted,
    /// Ready on another node.
    Transferred,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    origin: Origin,
    want: Want,
    deadline: u64,
}

/// What the agent was told to do and has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Start,
    Swap,
    Stop,
    DeleteImages,
}

#[derive(Debug)]
struct Entry {
    record: ProcessRecord,
    pid: u32,
    addresses: Vec<Address>,
    /// The agent has spoken of this incarnation since it connected, or was just told to start it.
    vouched: bool,
    doing: Doing,
    /// All that it had left in storage was deleted since it was started.
    swept: bool,
    /// The command that `doing` is about.
    command: u64,
    waiters: VecDeque<Waiter>,
    watch: Watch,
    /// Two hosts are about it.
    transfer: Option<Transfer>,
    moves: Moves,
}

#[derive(Debug)]
struct App {
    record: ApplicationRecord,
    settings: Settings,
    policy: PolicySettings,
    generation: u64,
    /// The world has changed since it was sent.
    dirty: bool,
    /// When the world may be sent next.
    world_due: u64,
    processes: BTreeMap<String, Entry>,
}

#[derive(Debug, Default)]
struct NodeEntry {
    link: Option<u64>,
    cpus: u32,
    memory_bytes: u64,
    resident_bytes: u64,
    live: u32,
    /// Since when the agent is away, until its lease has lapsed.
    silent_since: Option<u64>,
    /// Nothing is started there.
    drained: bool,
    /// When what could not be moved away is tried again; zero if nothing waits for that.
    drain_due: u64,
}

#[derive(Debug)]
struct Command {
    link: u64,
    key: Key,
    doing: Doing,
}

/// What the control plane knows.
#[derive(Debug)]
pub struct Registry {
    limits: Limits,
    apps: BTreeMap<String, App>,
    nodes: BTreeMap<String, NodeEntry>,
    tokens: BTreeMap<[u8; 32], TokenRecord>,
    /// The node that speaks over a link.
    links: HashMap<u64, String>,
    commands: HashMap<u64, Command>,
    /// Commands that are about a transfer rather than about the process's own host.
    transfer_commands: HashMap<u64, TransferCommand>,
    /// Deletions of applications that wait for their processes'.
    deletions: BTreeMap<u64, Deletion>,
    deletion_last: u64,
    /// Processes with a transfer.
    transfers: BTreeSet<Key>,
    /// What could be moved away from drained nodes is not what it was.
    drain_look: bool,
    /// The time of the event that is being handled.
    now: u64,
    deadlines: BTreeMap<(u64, u64), Key>,
    dirty: BTreeSet<String>,
    process_count: usize,
    incarnation_next: u64,
    command_last: u64,
    waiter_last: u64,
    policy: Policy,
    actions: Vec<Action>,
}

impl Registry {
    /// A registry that knows what was stored. Processes that were live are unconfirmed until
    /// their agents report.
    ///
    /// Commands are numbered from `command_first` on, which is to be random: an agent may yet
    /// answer what an earlier control plane told it, and must not seem to answer this one.
    ///
    /// `now` is the time on the clock of [`Registry::handle`]: all nodes are silent since then.
    pub fn restore(limits: Limits, snapshot: Snapshot, command_first: u64, now: u64) -> Self {
        let mut registry = Self {
            limits,
            apps: BTreeMap::new(),
            nodes: BTreeMap::new(),
            tokens: snapshot
                .tokens
                .into_iter()
                .map(|token| (token.hash, token))
                .collect(),
            links: HashMap::new(),
            commands: HashMap::new(),
            transfer_commands: HashMap::new(),
            deletions: BTreeMap::new(),
            deletion_last: 0,
            transfers: BTreeSet::new(),
            drain_look: true,
            now,
            deadlines: BTreeMap::new(),
            dirty: BTreeSet::new(),
            process_count: 0,
            incarnation_next: snapshot.incarnation_next.max(1),
            command_last: command_first,
            waiter_last: 0,
            policy: Policy::default(),
            actions: Vec::new(),
        };
        for record in snapshot.applications {
            match record.settings_read() {
                Ok(settings) => {
                    let app = App::new(record, settings, 0);
                    registry.apps.insert(app.record.name.clone(), app);
                }
                // The store refuses to load such a record.
                Err(error) => {
                    tracing::error!(application = record.name, %error, "settings cannot be read");
                }
            }
        }
        for (name, generation) in snapshot.generations {
            if let Some(app) = registry.apps.get_mut(&name) {
                app.generation = generation;
            }
        }
        for record in snapshot.processes {
            registry.process_restore(record);
        }
        for node in snapshot.drained {
            registry.nodes.entry(node).or_default().drained = true;
        }
        for record in snapshot.transfers {
            registry.transfer_restore(now, record);
        }
        for node in registry.nodes.values_mut() {
            node.silent_since = Some(now);
        }
        registry
    }

    fn process_restore(&mut self, record: ProcessRecord) {
        let Some(app) = self.apps.get_mut(&record.application) else {
            tracing::error!(
                application = record.application,
                process = record.name,
                "a stored process has no application"
            );
            return;
        };
        if let Some(node) = record.node.as_ref().filter(|_| record.state.is_live()) {
            self.nodes.entry(node.clone()).or_default().live += 1;
        }
        self.incarnation_next = self.incarnation_next.max(record.incarnation + 1);
        self.process_count += 1;
        app.processes
            .insert(record.name.clone(), Entry::new(record));
    }

    /// Takes what happened at `now`, in milliseconds of a clock that never goes back, and says
    /// what is to be done.
    pub fn handle(&mut self, now: u64, event: Event) -> Vec<Action> {
        self.policy.now = now;
        self.now = now;
        match event {
            Event::Request {
                id,
                wait_ms,
                request,
            } => self.request(now, id, wait_ms, request),
            Event::Said { link, message } => self.said(now, link, message),
            Event::Lost { link } => self.lost(now, link),
            Event::Tick => {}
        }
        self.leases_lapse(now);
        self.transfers_step(now);
        self.waiters_expire(now);
        self.policy_run();
        self.worlds_send(now);
        std::mem::take(&mut self.actions)
    }

    /// When the next [`Event::Tick`] is due, on the clock of [`Registry::handle`].
    pub fn deadline_next(&self) -> Option<u64> {
        let waiter = self.deadlines.keys().next().map(|(deadline, _)| *deadline);
        let world = self
            .dirty
            .iter()
            .filter_map(|name| self.apps.get(name).map(|app| app.world_due))
            .min();
        let lease = self
            .nodes
            .values()
            .filter_map(|node| node.lease_end(self.limits.lease_ms))
            .min();
        let policy = self.policy.deadline_next();
        let transfer = self.transfer_due();
        let all = [waiter, world, lease, policy, transfer];
        all.into_iter().flatten().min()
    }

    /// What was done without being asked for.
    pub fn policy_counts(&self) -> PolicyCounts {
        self.policy.counts
    }

    /// Processes as they are, at most so many: by application, then by name.
    pub fn processes_show(&self, processes_max: usize) -> Vec<Process> {
        let entries = self.apps.values().flat_map(|app| app.processes.values());
        let shown = entries.map(|entry| entry.show(self.policy.now));
        shown.take(processes_max).collect()
    }

    /// How many processes are in each state.
    pub fn state_counts(&self) -> Vec<(ProcessState, u64)> {
        let mut counts = ProcessState::ALL.map(|state| (state, 0));
        let entries = self.apps.values().flat_map(|app| app.processes.values());
        for entry in entries {
            for (state, count) in &mut counts {
                *count += u64::from(*state == entry.record.state);
            }
        }
        counts.to_vec()
    }

    /// How many agents are connected.
    pub fn agent_count(&self) -> usize {
        self.links.len()
    }

    fn entry(&self, key: &Key) -> Option<&Entry> {
        self.apps.get(&key.application)?.processes.get(&key.process)
    }

    fn entry_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        let app = self.apps.get_mut(&key.application)?;
        app.processes.get_mut(&key.process)
    }

    fn keys(&self, mut keep: impl FnMut(&Entry) -> bool) -> Vec<Key> {
        let entries = self.apps.values().flat_map(|app| app.processes.values());
        entries
            .filter(|entry| keep(entry))
            .map(Entry::key)
            .collect()
    }

    /// Changes a process, and does what follows of any change: it is stored, the world view is
    /// marked, the node's count is kept.
    fn update(&mut self, key: &Key, change: impl FnOnce(&mut Entry)) {
        let Some(app) = self.apps.get_mut(&key.application) else {
            return;
        };
        let Some(entry) = app.processes.get_mut(&key.process) else {
            return;
        };
        let (record, member) = (entry.record.clone(), entry.member());
        change(entry);
        self.drain_look = true;
        let live_on = |record: &ProcessRecord| match record.state.is_live() {
            true => record.node.clone(),
            false => None,
        };
        entry
            .watch
            .follow(self.policy.now, &entry.record, &app.policy);
        if entry.record != record {
            self.policy.changed(key);
            let change = Change::Process(entry.record.clone());
            self.actions.push(Action::Persist(change));
            if let Some(node) = live_on(&record) {
                let node = self.nodes.entry(node).or_default();
                node.live = node.live.saturating_sub(1);
            }
            if let Some(node) = live_on(&entry.record) {
                self.nodes.entry(node).or_default().live += 1;
            }
        }
        if entry.member() != member {
            self.world_change(&key.application);
        }
    }

    fn world_change(&mut self, application: &str) {
        let Some(app) = self.apps.get_mut(application) else {
            return;
        };
        app.generation += 1;
        app.dirty = true;
        self.dirty.insert(application.into());
        let change = Change::Generation(application.into(), app.generation);
        self.actions.push(Action::Persist(change));
    }

    /// Sends the world views that have changed to the nodes that have hosts of them, each
    /// application's at most once in `world_interval_ms`.
    fn worlds_send(&mut self, now: u64) {
        let due = |app: &App| app.dirty && app.world_due <= now;
        let names: Vec<String> = self
            .dirty
            .iter()
            .filter(|name| self.apps.get(*name).is_none_or(due))
            .cloned()
            .collect();
        for name in names {
            self.dirty.remove(&name);
            let Some(app) = self.apps.get_mut(&name) else {
                continue;
            };
            app.dirty = false;
            app.world_due = now + self.limits.world_interval_ms;
            let nodes: BTreeSet<&String> = app
                .processes
                .values()
                .filter(|entry| entry.record.state.is_live())
                .filter_map(|entry| entry.record.node.as_ref())
                .collect();
            let links = nodes
                .into_iter()
                .filter_map(|node| self.nodes.get(node)?.link);
            let world = app.world();
            for link in links {
                let message = ToAgent::World {
                    application: name.clone(),
                    generation: world.generation,
                    members: world.members.clone(),
                };
                self.actions.push(Action::Tell { link, message });
            }
        }
    }
}

impl NodeEntry {
    /// When what is there counts as dead.
    fn lease_end(&self, lease_ms: u64) -> Option<u64> {
        let since = self
            .silent_since
            .filter(|_| self.live > 0 && lease_ms > 0)?;
        Some(since.saturating_add(lease_ms))
    }
}

impl App {
    fn new(record: ApplicationRecord, settings: Settings, now: u64) -> Self {
        let policy = PolicySettings::parse(&settings).unwrap_or_else(|failure| {
            // Of an earlier version: new applications are refused.
            tracing::warn!(application = record.name, %failure, "policies are at their defaults");
            PolicySettings::default()
        });
        Self {
            settings,
            policy,
            record,
            generation: 0,
            dirty: false,
            world_due: now,
            processes: BTreeMap::new(),
        }
    }

    fn show(&self) -> Application {
        Application {
            name: self.record.name.clone(),
            modules: self.record.modules.clone(),
            settings: self.settings.clone(),
            auto_create: self.record.auto_create,
            created_unix_ms: self.record.created_unix_ms,
            key_id: self.record.key_id,
        }
    }

    fn world(&self) -> World {
        World {
            generation: self.generation,
            members: self.processes.values().filter_map(Entry::member).collect(),
        }
    }
}

impl Entry {
    fn new(record: ProcessRecord) -> Self {
        Self {
            watch: Watch::new(&record),
            record,
            pid: 0,
            addresses: Vec::new(),
            vouched: false,
            swept: false,
            doing: Doing::Nothing,
            command: 0,
            waiters: VecDeque::new(),
            transfer: None,
            moves: Moves::default(),
        }
    }

    fn key(&self) -> Key {
        Key {
            application: self.record.application.clone(),
            process: self.record.name.clone(),
        }
    }

    fn serves(&self) -> bool {
        self.record.state == ProcessState::Ready && self.vouched && self.doing == Doing::Nothing
    }

    fn show(&self, now: u64) -> Process {
        let (record, watch) = (&self.record, &self.watch);
        Process {
            application: record.application.clone(),
            name: record.name.clone(),
            incarnation: record.incarnation,
            state: record.state,
            confirmed: self.vouched || !record.state.is_live(),
            node: record.node.clone(),
            pid: Some(self.pid).filter(|pid| *pid != 0),
            addresses: self.addresses.clone(),
            swap_generation: record.swap_generation,
            error: record.error.clone(),
            stats: watch.stats,
            idle_ms: watch.idle_ms(now),
            restored: watch.restored.clone(),
            checkpoint: watch.checkpoint,
            checkpoint_error: watch.checkpoint_error.clone(),
            restarts: watch.restarts,
            restart_in_ms: watch.restart_in_ms(now),
        }
    }

    /// What its peers see of it, unless it was stopped.
    fn member(&self) -> Option<Member> {
        (self.record.state != ProcessState::Gone).then(|| Member {
            name: self.record.name.clone(),
            incarnation: self.record.incarnation,
            state: self.record.state,
            addresses: self.addresses.clone(),
        })
    }
}

fn token_info(token: &TokenRecord) -> TokenInfo {
    TokenInfo {
        id: hex_encode(&token.hash[..8]),
        role: token.role(),
        label: token.label.clone(),
        created_unix_ms: token.created_unix_ms,
    }
}
