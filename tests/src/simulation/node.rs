//! A node: an agent, its directory, and the hosts of its processes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_cluster::agent::{SimulatedAgent, Wanted, images_delete};
use praas_control::agent::{FromAgent, ToAgent};
use praas_runtime::codec;
use praas_runtime::directory::{DirectoryAnswer, DirectoryRequest, Resolved};
use praas_runtime::host::HostHello;
use praas_runtime::invocation::AM_DIRECTORY;
use praas_transport::{
    Address, ChannelId, CloseReason, Disposition, Endpoint, Flow, Handler, Identity, Incarnation,
    Incoming, LargeMessage, Listen, Message, Ops, Posted, clock,
};

use super::host::Host;
use super::world::World;
use super::{APPLICATION, PATIENCE};

/// How long a question at a directory may wait.
const QUESTION: Duration = Duration::from_secs(10);

/// A node.
pub(super) struct Node {
    pub name: String,
    pub agent: RefCell<SimulatedAgent>,
    /// The link to the control plane.
    pub link: RefCell<Option<u64>>,
    pub hosts: RefCell<BTreeMap<String, Rc<Host>>>,
    /// Requests to delete what incarnations of a process below one have left.
    deletions: RefCell<VecDeque<(u64, String, u64)>>,
    /// One of them is under way, on the stack.
    deleting: Cell<bool>,
    /// How many agents there were before this one.
    lives: Cell<u64>,
    /// When there is an agent again; nothing if there is one.
    returns: Cell<Option<Instant>>,
    directory: RefCell<Endpoint>,
    questions: RefCell<Questions>,
    pub address: Address,
}

fn directory_make(world: &World) -> Endpoint {
    let identity = Identity {
        application: APPLICATION.into(),
        name: "_directory".into(),
        incarnation: Incarnation(0),
        client_id: 1,
    };
    let authenticator = Some(Arc::new(world.keyring()) as _);
    let endpoint = Endpoint::new(world.transport(), identity, authenticator);
    endpoint.expect("an endpoint")
}

/// What is asked at a directory.
#[derive(Default)]
struct Questions {
    last: u64,
    /// By number: the process, who asks, since when.
    open: BTreeMap<u64, (String, ChannelId, u64, Instant)>,
    /// What came in since the last look.
    asked: Vec<(String, ChannelId, u64)>,
    /// Answers that wait for room.
    unsent: VecDeque<(ChannelId, u64, Vec<u8>)>,
}

impl Node {
    pub fn new(world: &World, number: usize) -> Self {
        let mut endpoint = directory_make(world);
        let name = format!("n{number}");
        let at = Listen::Mem(world.address(&name));
        let address = endpoint.listen(&at).expect("a name of its own");
        Self {
            name,
            agent: RefCell::new(SimulatedAgent::new(APPLICATION, PATIENCE)),
            link: RefCell::new(None),
            hosts: RefCell::new(BTreeMap::new()),
            deletions: RefCell::new(VecDeque::new()),
            deleting: Cell::new(false),
            lives: Cell::new(0),
            returns: Cell::new(None),
            directory: RefCell::new(endpoint),
            questions: RefCell::new(Questions::default()),
            address,
        }
    }

    /// Connects to the control plane, if it is not.
    pub fn connect(&self, world: &World) -> bool {
        if self.link.borrow().is_some() || self.is_away() {
            return false;
        }
        let mut control = world.control.borrow_mut();
        let number = control.connect();
        let inventory = self.agent.borrow_mut().inventory();
        let hello = FromAgent::Hello {
            node: self.name.clone(),
            cpus: 4,
            memory_bytes: 1 << 30,
            inventory,
        };
        if let Some(link) = control.links.get_mut(&number) {
            link.from_agent.push_back(hello);
        }
        *self.link.borrow_mut() = Some(number);
        world.trace(|| format!("{} connects", self.name));
        true
    }

    /// Whether there is no agent.
    pub fn is_away(&self) -> bool {
        self.returns.get().is_some()
    }

    /// The agent is killed, and there is another one, at once or later: hosts that live then are to
    /// find it.
    pub fn agent_restart(&self, world: &World) {
        if self.is_away() {
            return;
        }
        world.trace(|| format!("the agent of {} is killed", self.name));
        let killed = self.lives.get();
        self.lives.set(killed + 1);
        world.dead(&self.name, killed);
        self.deletions.borrow_mut().clear();
        *self.questions.borrow_mut() = Questions::default();
        self.directory.borrow_mut().die();
        let hosts: Vec<Rc<Host>> = self.hosts.borrow().values().cloned().collect();
        for host in hosts {
            host.agent_lost();
        }
        if world.plan.away_ms > 0 && world.chance(700) {
            let ms = world.random(world.plan.away_ms);
            let returns = clock::now() + Duration::from_millis(ms);
            return self.returns.set(Some(returns));
        }
        self.agent_begin(world);
    }

    /// There is an agent after one that was killed.
    fn agent_begin(&self, world: &World) {
        self.returns.set(None);
        {
            let mut directory = self.directory.borrow_mut();
            let place = Listen::Mem(world.address(&self.name));
            *directory = directory_make(world);
            directory.listen(&place).expect("a name of its own");
        }
        self.hosts.borrow_mut().retain(|_, host| !host.is_gone());
        let storage = world.storage();
        let before = self
            .agent
            .replace(SimulatedAgent::new(APPLICATION, PATIENCE));
        let lives = |process: &str, incarnation| {
            let hosts = self.hosts.borrow();
            hosts
                .get(process)
                .is_some_and(|host| host.incarnation == incarnation)
        };
        let image = |process: &str, incarnation| storage.newest_of(process, incarnation);
        let agent = before.restarted(clock::now(), PATIENCE, lives, image);
        *self.agent.borrow_mut() = agent;
        self.act(world);
    }

    /// Begins the agent that is to come, if it is time; whether it did.
    fn agent_return(&self, world: &World) -> bool {
        let due = self.returns.get().is_some_and(|at| at <= clock::now());
        if due {
            world.trace(|| format!("{} has an agent again", self.name));
            self.agent_begin(world);
        }
        due
    }

    /// A host of the agent before this one has found it; whether it is taken.
    pub fn redialled(&self, world: &World, hello: HostHello) -> bool {
        let taken = self.agent.borrow_mut().redialled(clock::now(), hello);
        self.act(world);
        taken
    }

    /// The link has ended.
    pub fn control_lost(&self) {
        *self.link.borrow_mut() = None;
        self.agent.borrow_mut().control_lost();
    }

    fn say(&self, world: &World, message: FromAgent) {
        let link = *self.link.borrow();
        let mut control = world.control.borrow_mut();
        if let Some(link) = link.and_then(|link| control.links.get_mut(&link)) {
            link.from_agent.push_back(message);
        }
    }

    /// The next word of the control plane arrives.
    pub fn hear(&self, world: &World) -> bool {
        let Some(number) = *self.link.borrow() else {
            return false;
        };
        let message = {
            let mut control = world.control.borrow_mut();
            match control.links.get_mut(&number) {
                Some(link) => link.to_agent.pop_front(),
                None => {
                    drop(control);
                    self.control_lost();
                    return true;
                }
            }
        };
        match message {
            None => return false,
            Some(ToAgent::Resolved { request, result }) => {
                let answer = match result {
                    Ok(found) => DirectoryAnswer::Resolved(Resolved {
                        incarnation: Incarnation(found.incarnation),
                        addresses: found.addresses,
                    }),
                    Err(failure) => DirectoryAnswer::Failed(failure.to_string()),
                };
                self.answer(request, &answer);
            }
            Some(message) => {
                let first = matches!(message, ToAgent::Applications(_));
                self.agent.borrow_mut().told(clock::now(), message);
                if first {
                    self.questions_again(world);
                }
            }
        }
        self.act(world);
        true
    }

    /// Does what the agent wants done.
    fn act(&self, world: &World) {
        loop {
            let wanted = self.agent.borrow_mut().wanted();
            if wanted.is_empty() {
                return;
            }
            for wanted in wanted {
                self.act_one(world, wanted);
            }
        }
    }

    fn act_one(&self, world: &World, wanted: Wanted) {
        match wanted {
            Wanted::Spawn(start) => {
                let process = start.process.clone();
                world.trace(|| format!("{} spawns {process} {}", self.name, start.incarnation));
                let host = Host::new(start);
                self.hosts
                    .borrow_mut()
                    .insert(process.clone(), Rc::new(host));
                self.agent.borrow_mut().spawned(&process, 1);
            }
            Wanted::Send(to, message) => {
                for process in to {
                    if let Some(host) = self.hosts.borrow().get(&process) {
                        host.hear((*message).clone());
                    }
                }
            }
            Wanted::Kill(process) => {
                let host = self.hosts.borrow().get(&process).cloned();
                if let Some(host) = host {
                    host.kill(world);
                }
            }
            Wanted::Say(message) => self.say(world, message),
            Wanted::ImagesDelete(request, process, below) => {
                let mut deletions = self.deletions.borrow_mut();
                deletions.push_back((request, process, below));
            }
            Wanted::Serves(process) => {
                let found = self.agent.borrow().serving(&process);
                if let Some((incarnation, addresses)) = found {
                    let answer = DirectoryAnswer::Resolved(Resolved {
                        incarnation: Incarnation(incarnation),
                        addresses,
                    });
                    let open = self.questions.borrow();
                    let numbers = open.open.iter().filter(|(_, (of, ..))| *of == process);
                    let numbers: Vec<u64> = numbers.map(|(number, _)| *number).collect();
                    drop(open);
                    for number in numbers {
                        self.answer(number, &answer);
                    }
                }
            }
        }
    }

    /// Deletes images, as the agent's thread for it does; whether there were any to be deleted.
    pub fn images_step(&self, world: &World) -> bool {
        // It may take a while until its turn comes, and others may be told to do it meanwhile.
        if self.deleting.get() || self.is_away() || !world.chance(30) {
            return false;
        }
        let Some((request, process, below)) = self.deletions.borrow_mut().pop_front() else {
            return false;
        };
        self.deleting.set(true);
        let life = self.lives.get();
        world.writing(&self.name, life);
        let result = images_delete(&*world.storage(), APPLICATION, &process, below);
        world.written();
        self.deleting.set(false);
        world.trace(|| {
            format!(
                "{}: what {process} had left is deleted: {result:?}",
                self.name
            )
        });
        if self.lives.get() == life {
            self.say(world, FromAgent::Answer { request, result });
        }
        true
    }

    /// Goes on with the directory; whether anything happened.
    pub fn directory_step(&self, world: &World) -> bool {
        if self.is_away() {
            return false;
        }
        let happened = {
            let mut questions = self.questions.borrow_mut();
            let mut endpoint = self.directory.borrow_mut();
            let happened = endpoint.progress(&mut *questions) > 0;
            if endpoint
                .timer_next()
                .is_some_and(|timer| timer <= clock::now())
            {
                Endpoint::wait(&mut endpoint, Some(clock::now()));
            }
            happened
        };
        let asked = std::mem::take(&mut self.questions.borrow_mut().asked);
        for (process, channel, tag) in asked {
            let number = {
                let mut questions = self.questions.borrow_mut();
                questions.last += 1;
                let number = questions.last;
                let question = (process.clone(), channel, tag, clock::now());
                questions.open.insert(number, question);
                number
            };
            let found = self.agent.borrow().serving(&process);
            match found {
                Some((incarnation, addresses)) => {
                    let answer = DirectoryAnswer::Resolved(Resolved {
                        incarnation: Incarnation(incarnation),
                        addresses,
                    });
                    self.answer(number, &answer);
                }
                None => self.question_forward(world, number, process),
            }
        }
        self.questions_expire();
        self.answers_send();
        happened
    }

    fn question_forward(&self, world: &World, request: u64, process: String) {
        self.say(
            world,
            FromAgent::Resolve {
                request,
                application: APPLICATION.into(),
                process,
                ensure: true,
            },
        );
    }

    /// A control plane is there again: it is asked what the one before was.
    fn questions_again(&self, world: &World) {
        let open: Vec<(u64, String)> = {
            let questions = self.questions.borrow();
            let open = questions.open.iter();
            open.map(|(number, (process, ..))| (*number, process.clone()))
                .collect()
        };
        for (number, process) in open {
            self.question_forward(world, number, process);
        }
    }

    fn questions_expire(&self) {
        let now = clock::now();
        let late: Vec<u64> = {
            let questions = self.questions.borrow();
            let open = questions.open.iter();
            let late = open.filter(|(_, (_, _, _, since))| now - *since >= QUESTION);
            late.map(|(number, _)| *number).collect()
        };
        for number in late {
            let why = "the control plane does not answer";
            self.answer(number, &DirectoryAnswer::Failed(why.into()));
        }
    }

    fn answer(&self, number: u64, answer: &DirectoryAnswer) {
        let asked = self.questions.borrow_mut().open.remove(&number);
        if let Some((_, channel, tag, _)) = asked {
            let bytes = codec::encode(answer).expect("an answer has an encoding");
            let mut questions = self.questions.borrow_mut();
            questions.unsent.push_back((channel, tag, bytes));
        }
    }

    fn answers_send(&self) {
        let mut questions = self.questions.borrow_mut();
        let mut endpoint = self.directory.borrow_mut();
        questions.unsent.retain(|(channel, tag, bytes)| {
            let sent = endpoint.send(*channel, AM_DIRECTORY, *tag, &[], &[bytes]);
            // Who asked may be gone.
            matches!(sent, Ok(Posted::Busy))
        });
    }

    /// A host's words, its end, and what is overdue.
    pub fn hosts_hear(&self, world: &World) -> bool {
        if self.is_away() {
            return self.agent_return(world);
        }
        self.agent.borrow_mut().tick(clock::now());
        let hosts: Vec<Rc<Host>> = self.hosts.borrow().values().cloned().collect();
        let mut happened = false;
        for host in hosts {
            let message = host.said();
            if let Some(message) = message {
                happened = true;
                let mut agent = self.agent.borrow_mut();
                agent.said(clock::now(), &host.process, message);
            } else if let Some(how) = host.exited() {
                happened = true;
                self.hosts.borrow_mut().remove(&host.process);
                let mut agent = self.agent.borrow_mut();
                agent.died(clock::now(), &host.process, how);
            }
        }
        self.act(world);
        happened
    }
}

impl Handler for Questions {
    fn on_message(&mut self, _: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        if let (AM_DIRECTORY, Ok(DirectoryRequest::Resolve { process, .. })) =
            (message.am, codec::decode(message.payload))
        {
            self.asked.push((process, channel, message.tag));
        }
        Flow::Continue
    }

    fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
        Disposition::Refuse(0)
    }

    fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, channel: ChannelId, _: CloseReason) -> Flow {
        self.open.retain(|_, (_, of, ..)| *of != channel);
        Flow::Continue
    }
}
