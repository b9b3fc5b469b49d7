//! A deterministic simulation: clients, processes, agents and a control plane on one thread.
//!
//! ```text
//!   Client --mem, with faults--> Process (stepped) --> functions --> Recorder --> checker
//!      |                            |      ^
//!      | directory                  | swap | restore
//!      v                            v      |
//!   Node: SimulatedAgent          MemoryStorage, whose operations take time and fail
//!      |
//!   Control: the real registry, a disk, links that break
//! ```
//!
//! Everything with decisions in it is the product's own code: runtime, transport, the registry, the
//! agent's decisions on hosts, the format of images. What is played here is what they stand on:
//! time and chance (`transport::clock`), who moves when, storage, the agent's sockets and the OS
//! processes of hosts. One seed is one course of events, to the byte of the trace. What a host's own
//! threads do besides, such as writing objects through, is a step as well.
//!
//! A turn is somebody's step: of a process, a client, a directory, a link. What waits (a function
//! in a call, an operation on storage) takes turns of the others on the same stack.

mod caller;
mod control;
mod functions;
mod host;
mod node;
mod storage;
mod upsets;
mod world;

use std::time::Duration;

use praas_transport::clock::Simulation;

use self::world::World;
use crate::checker::{History, Promise, Violation, check};

const APPLICATION: &str = "sim";
/// How long hosts look for another agent before they swap out and end.
const GRACE: Duration = Duration::from_secs(10);
/// How long agents wait for what their hosts are to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Clients.
    pub clients: usize,
    /// Processes.
    pub processes: u64,
    /// Calls that clients make.
    pub calls: u32,
    /// Calls of a client that may be under way.
    pub under_way_max: usize,
    /// Turns between two calls at most.
    pub pause_max: u64,
    /// How often, in a thousand calls, something goes wrong besides.
    pub upsets: u64,
    /// How often, in a thousand operations, storage fails.
    pub storage_fails: u64,
    /// Turns that an operation on storage takes at most.
    pub storage_turns: u64,
    /// How often, in a thousand calls, a process is moved to another node.
    pub moves: u64,
    /// How often, in a thousand, something else is done: one-way invocations, batches, reads of
    /// others' state, checkpoints and stops by the control plane.
    pub others: u64,
    /// How often, in a thousand things that a function does, an object is written through, or
    /// deleted.
    pub through: u64,
    /// How often, in a thousand other things that are done to a process, it is deleted.
    pub deletes: u64,
    /// Whether some objects are large, and come back later than their process.
    pub lazy: bool,
    /// How often, in a thousand of its turns, who fetches those does something.
    pub fetches: u64,
    /// How often, in a thousand things that a function does, it is about a file.
    pub files: u64,
    /// How often, in a thousand times, a host that is to have a process has too little room, perhaps.
    pub tight: u64,
    /// How often, in a thousand things that go wrong, an agent is killed.
    pub agents: u64,
    /// Milliseconds at most until there is another one.
    pub away_ms: u64,
}

impl Plan {
    /// The plan of a seed, which also decides how much of everything there is.
    pub fn of(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed.rotate_left(32) ^ 0x6177_6179);
        Self {
            away_ms: [0, 25_000][random.usize(..2)],
            fetches: [1000, 10][random.usize(..2)],
            ..Self::keeping(seed)
        }
    }

    /// The plan of a seed, of all but nodes that are without an agent for a while, and objects that
    /// come back late.
    pub fn keeping(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed.rotate_left(32) ^ 0x7468_726f_7567);
        Self {
            through: [0, 150, 500][random.usize(..3)],
            deletes: [0, 300][random.usize(..2)],
            lazy: random.usize(..3) == 0,
            files: [0, 0, 150][random.usize(..3)],
            tight: [0, 200][random.usize(..2)],
            agents: [0, 200][random.usize(..2)],
            ..Self::calling(seed)
        }
    }

    /// The plan of a seed, of all but what is written through, deletion, lazy
    /// starts, files, and hosts without room.
    pub fn calling(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed.rotate_left(32) ^ 0x6f74_6865_7273);
        Self {
            others: [0, 100, 300][random.usize(..3)],
            ..Self::moving(seed)
        }
    }

    /// The plan of a seed, of calls, messages, swaps and moves.
    pub fn moving(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed.rotate_left(32) ^ 0x6d6f_7665);
        let plain = Self::plain(seed);
        let moves = [0, 60, 200, 500][random.usize(..4)];
        let nodes = match moves {
            0 => plain.nodes,
            _ => random.usize(2..=3),
        };
        Self {
            nodes,
            moves,
            ..plain
        }
    }

    /// The plan of a seed, of calls, messages and swaps.
    pub fn plain(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(!seed);
        Self {
            seed,
            nodes: random.usize(1..=2),
            clients: random.usize(1..=3),
            processes: random.u64(1..=3),
            calls: random.u32(20..=160),
            under_way_max: random.usize(1..=6),
            pause_max: random.u64(1..=120),
            upsets: [0, 60, 150, 300][random.usize(..4)],
            storage_fails: [0, 10, 100][random.usize(..3)],
            storage_turns: random.u64(1..=12),
            moves: 0,
            others: 0,
            through: 0,
            deletes: 0,
            lazy: false,
            fetches: 1000,
            files: 0,
            tight: 0,
            agents: 0,
            away_ms: 0,
        }
    }
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// All that clients, functions and hosts saw.
    pub history: History,
    /// All that happened, a line each: microseconds, waits on the stack, what.
    pub trace: Vec<String>,
    /// What was not as it was promised.
    pub violations: Vec<Violation>,
}

/// Runs a simulation on this thread.
pub fn run(plan: &Plan) -> Run {
    let simulation = Simulation::begin(plan.seed);
    let world = World::begin(plan.clone());
    let mut calls = 0;
    while calls < plan.calls {
        calls += 1;
        world.want();
        if world.random(1000) < plan.upsets {
            world.upset();
        }
        if plan.moves > 0 && world.random(1000) < plan.moves {
            world.process_move();
        }
        for _ in 0..world.random(plan.pause_max) {
            world.turn();
        }
    }
    let settled = world.settle() && world.look();
    let (history, trace) = world.end();
    drop(simulation);
    let mut violations = check(&history);
    if !settled {
        violations.push(Violation {
            promise: Promise::Ends,
            text: "not all calls have ended, or not all can be had, long after nothing went wrong \
                   any more"
                .into(),
        });
    }
    Run {
        history,
        trace,
        violations,
    }
}

impl Run {
    /// What to show of a run that went wrong: the violations, and the last lines of the trace.
    pub fn report(&self, plan: &Plan, lines: usize) -> String {
        let from = self.trace.len().saturating_sub(lines);
        let violations: Vec<_> = self.violations.iter().map(ToString::to_string).collect();
        format!(
            "seed {}:\n  {}\nthe last {lines} of {} lines:\n{}\n",
            plan.seed,
            violations.join("\n  "),
            self.trace.len(),
            self.trace[from..].join("\n")
        )
    }
}
