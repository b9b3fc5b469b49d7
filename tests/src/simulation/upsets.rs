//! What goes wrong in a simulation, and what is done to processes besides calling them.

use std::cell::RefCell;
use std::rc::Rc;

use praas_control::api::ProcessState;
use praas_control::machine::Verb;
use praas_control::store::ProcessRecord;

use super::control::Doom;
use super::world::World;
use crate::checker::Event;

/// A moment of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// The source may be fetched from.
    Offered,
    /// The source turns invocations away.
    Freezing,
    /// All of the source is on its way.
    Frozen,
    /// The target has all of it.
    Prepared,
    /// It is stored that the target is the process.
    Committed,
    /// The target serves, and nobody knows.
    Served,
}

const MOMENTS: [Moment; 6] = [
    Moment::Offered,
    Moment::Freezing,
    Moment::Frozen,
    Moment::Prepared,
    Moment::Committed,
    Moment::Served,
];

/// What is lost then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Source,
    Target,
    Both,
    Control,
    /// The link of either's agent to the control plane.
    Link(usize),
}

#[derive(Debug, Clone)]
struct Fate {
    process: String,
    victim: Victim,
    at: Moment,
    /// Turns after it.
    turns: u64,
}

/// What will go wrong in transfers, and what is about to.
#[derive(Debug, Default)]
pub(super) struct Fates {
    waiting: RefCell<Vec<Fate>>,
    due: RefCell<Vec<Fate>>,
}

impl World {
    /// A process is to go to another node; perhaps something will go wrong on its way.
    pub fn process_move(&self) {
        let hosts = self.hosts();
        let process = match hosts.get(self.random(hosts.len() as u64) as usize) {
            Some((_, host)) => host.process.clone(),
            None => self.process(),
        };
        let to = self.random(self.plan.nodes as u64 * 2) as usize;
        let to = (to < self.plan.nodes).then(|| self.node(to).name.clone());
        self.trace(|| format!("move {process} to {to:?}"));
        if self.plan.upsets > 0 && self.chance(500) {
            let victim = match self.random(8) {
                0 | 1 => Victim::Source,
                2 | 3 => Victim::Target,
                4 => Victim::Both,
                5 | 6 => Victim::Control,
                _ => Victim::Link(self.random(self.plan.nodes as u64) as usize),
            };
            let at = MOMENTS[self.random(MOMENTS.len() as u64) as usize];
            let turns = match self.random(2) {
                0 => 0,
                _ => self.random(60),
            };
            let process = process.clone();
            let fate = Fate {
                process,
                victim,
                at,
                turns,
            };
            self.fates.waiting.borrow_mut().push(fate);
        }
        if self.plan.upsets > 0 && self.chance(100) {
            let doom = [Doom::Before, Doom::After][self.random(2) as usize];
            self.control.borrow_mut().doom = Some(doom);
        }
        self.control.borrow_mut().process_move(&process, to);
    }

    /// A transfer has come so far.
    pub fn reached(&self, process: &str, moment: Moment) {
        if self.calm.get() {
            return;
        }
        let mut waiting = self.fates.waiting.borrow_mut();
        let meant = |fate: &Fate| fate.process == process && fate.at == moment;
        if let Some(at) = waiting.iter().position(meant) {
            let fate = waiting.remove(at);
            self.fates.due.borrow_mut().push(fate);
        }
    }

    /// Transfers that the control plane has committed have come so far.
    pub fn committed(&self) {
        let committed = std::mem::take(&mut self.control.borrow_mut().committed);
        for process in committed {
            self.reached(&process, Moment::Committed);
        }
    }

    /// What is due goes wrong.
    pub fn fates_step(&self) {
        let mut now = Vec::new();
        self.fates.due.borrow_mut().retain_mut(|fate| {
            let due = fate.turns == 0;
            match due {
                true => now.push(fate.clone()),
                false => fate.turns -= 1,
            }
            !due
        });
        for fate in now {
            let victim = match fate.victim {
                Victim::Link(_) => "Link".into(),
                victim => format!("{victim:?}"),
            };
            self.trace(|| format!("{}: losing {victim} when {:?}", fate.process, fate.at));
            let mut hosts = self.hosts();
            hosts.retain(|(_, host)| host.process == fate.process);
            hosts.sort_by_key(|(_, host)| host.incarnation);
            match fate.victim {
                Victim::Source => hosts.truncate(1),
                Victim::Target => drop(hosts.drain(..hosts.len().saturating_sub(1))),
                Victim::Both => {}
                Victim::Control => {
                    hosts.clear();
                    self.control.borrow_mut().restart();
                }
                Victim::Link(node) => {
                    hosts.clear();
                    self.link_break(node);
                    if self.plan.agents > 0 {
                        self.node(node).agent_restart(self);
                    }
                }
            }
            for (_, host) in hosts {
                host.kill(self);
            }
        }
    }

    /// The control plane has stored what it knows of a process. One that is gone and was to be is
    /// forgotten; that of any other is a defect, which the checker finds.
    pub fn stored(&self, record: &ProcessRecord) {
        let name = &record.name;
        let gone = record.state == ProcessState::Gone;
        if gone && self.stopped.borrow().contains(name) {
            self.note(Event::Forgotten {
                process: name.clone(),
            });
        }
    }

    /// The control plane has forgotten a process.
    pub fn removed(&self, process: &str) {
        self.note(Event::Removed {
            process: process.into(),
            left: self.storage().left(process),
        });
    }

    /// What the control plane is asked for besides swaps.
    fn upset_other(&self) {
        let process = self.process();
        let verb = match self.random(4) {
            _ if self.plan.deletes > 0 && self.chance(self.plan.deletes) => Verb::Delete,
            0 => Verb::Stop,
            _ => Verb::Checkpoint,
        };
        self.trace(|| format!("{verb:?} {process}"));
        if matches!(verb, Verb::Stop | Verb::Delete) {
            self.stopped.borrow_mut().insert(process.clone());
        }
        self.control.borrow_mut().process(&process, verb);
    }

    fn link_break(&self, node: usize) {
        let node = self.node(node);
        let link = node.link.borrow_mut().take();
        if let Some(link) = link {
            self.trace(|| format!("{} loses the control plane", node.name));
            self.control.borrow_mut().disconnect(link);
            node.control_lost();
        }
    }

    /// Something goes wrong, or is done to a process.
    pub fn upset(&self) {
        if self.plan.agents > 0 && self.chance(self.plan.agents) {
            let number = self.random(self.plan.nodes as u64) as usize;
            self.link_break(number);
            return self.node(number).agent_restart(self);
        }
        if self.plan.others > 0 && self.chance(200) {
            return self.upset_other();
        }
        match self.random(100) {
            0..=34 => {
                let process = self.process();
                self.trace(|| format!("swap {process}"));
                self.control.borrow_mut().process(&process, Verb::Swap);
            }
            35..=44 => {
                let hosts = self.hosts();
                if let Some((_, host)) = hosts.get(self.random(hosts.len() as u64) as usize) {
                    self.trace(|| format!("checkpoint of {}", host.process));
                    host.checkpoint(self);
                }
            }
            45..=57 => {
                let hosts = self.hosts();
                if let Some((_, host)) = hosts.get(self.random(hosts.len() as u64) as usize) {
                    host.kill(self);
                }
            }
            58..=64 => {
                let hosts = self.hosts();
                if let Some((_, host)) = hosts.get(self.random(hosts.len() as u64) as usize) {
                    self.trace(|| format!("callers of {} are shown out", host.process));
                    host.callers_show_out(self);
                    if self.chance(400) {
                        for _ in 0..self.random(30) {
                            self.turn();
                        }
                        host.kill(self);
                    }
                }
            }
            65..=76 => {
                let number = self.random(self.plan.clients as u64) as usize;
                self.trace(|| format!("client {number} is cut off"));
                let caller = Rc::clone(&self.callers.borrow()[number]);
                caller.borrow_mut().sever();
            }
            77..=84 => {
                let number = self.random(self.plan.clients as u64) as usize;
                let caller = Rc::clone(&self.callers.borrow()[number]);
                let which = self.random(8) as usize;
                self.trace(|| format!("client {number} gives up on one"));
                caller.borrow_mut().cancel(which);
            }
            85..=92 => {
                self.link_break(self.random(self.plan.nodes as u64) as usize);
            }
            93..=96 => {
                self.trace(|| "the control plane is killed".into());
                self.control.borrow_mut().restart();
            }
            _ => {
                let process = self.process();
                self.trace(|| format!("the control plane is killed over {process}"));
                let verb = [Verb::Swap, Verb::Ensure][self.random(2) as usize];
                self.control.borrow_mut().process_and_die(&process, verb);
            }
        }
    }
}
