//! A host: an OS process that does not exist, which becomes one cloud process.
//!
//! What it does is what `praas host` does, a step at a time: it starts, or fetches its process from
//! another host; it obeys its agent; it is killed.

mod images;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use praas_control::agent::{StartCommand, StartFrom};
use praas_runtime::client::Directory;
use praas_runtime::function::Registry;
use praas_runtime::host::{FromHost, HostHello, HostTransfer, ToHost};
use praas_runtime::process::{
    Bound, OutStep, Prepared, Process, ProcessConfig, ProcessSettings, PullFrom, Restore,
    SteppedOut, SteppedPull, TransferOffer,
};
use praas_runtime::swap::{Heir, ImageKind, Storage, swap_in_lazily};
use praas_runtime::world::World as View;
use praas_transport::{BufPool, Incarnation, Kinds, Listen, StatsPage, WaitMode, clock};

use super::functions::module;
use super::node::Node;
use super::upsets::Moment;
use super::world::{World, meanwhile};
use super::{APPLICATION, GRACE};
use crate::checker::{End, Event, Image};

type Failure = Box<dyn std::error::Error>;

/// A host.
pub(super) struct Host {
    pub process: String,
    pub incarnation: u64,
    start: RefCell<Option<Box<StartCommand>>>,
    pub serving: RefCell<Option<Rc<Process>>>,
    arriving: RefCell<Option<Arriving>>,
    outgoing: RefCell<Option<Outgoing>>,
    transfer: Cell<HostTransfer>,
    /// All of the process is on its way, or there.
    frozen: Cell<bool>,
    /// What a process that is not here yet is to hear first.
    late: RefCell<Option<View>>,
    /// The generation that is in storage.
    generation: Cell<u64>,
    to_host: RefCell<VecDeque<ToHost>>,
    from_host: RefCell<VecDeque<FromHost>>,
    /// It is gone, and the agent has not been told.
    exited: RefCell<Option<&'static str>>,
    /// It is gone.
    gone: Cell<bool>,
    /// It is in the middle of something, on the stack.
    busy: RefCell<bool>,
    /// It has no agent.
    adrift: Cell<bool>,
    /// How long it looks for one.
    adrift_until: Cell<Option<Instant>>,
    /// It writes something through, on the stack.
    persisting: Cell<bool>,
}

/// A process that is not this host's yet.
enum Arriving {
    Pulling(Box<SteppedPull>),
    /// All of it is here, of this incarnation.
    Prepared(Box<(Prepared, u64)>),
}

/// A transfer of our process to another host.
struct Outgoing {
    /// While it goes on.
    out: Option<SteppedOut>,
    /// Whether the target may come.
    offered: bool,
    /// Whether it is called off, if that can be.
    thaws: bool,
}

impl Host {
    pub fn new(start: Box<StartCommand>) -> Self {
        Self {
            process: start.process.clone(),
            incarnation: start.incarnation,
            start: RefCell::new(Some(start)),
            serving: RefCell::new(None),
            arriving: RefCell::new(None),
            outgoing: RefCell::new(None),
            transfer: Cell::new(HostTransfer::None),
            frozen: Cell::new(false),
            late: RefCell::new(None),
            generation: Cell::new(0),
            to_host: RefCell::new(VecDeque::new()),
            from_host: RefCell::new(VecDeque::new()),
            exited: RefCell::new(None),
            gone: Cell::new(false),
            busy: RefCell::new(false),
            persisting: Cell::new(false),
            adrift: Cell::new(false),
            adrift_until: Cell::new(None),
        }
    }

    /// The agent says something.
    pub fn hear(&self, message: ToHost) {
        self.to_host.borrow_mut().push_back(message);
    }

    /// What it said first of what nobody has heard.
    pub fn said(&self) -> Option<FromHost> {
        self.from_host.borrow_mut().pop_front()
    }

    /// How it ended, once.
    pub fn exited(&self) -> Option<&'static str> {
        self.exited.borrow_mut().take()
    }

    /// The agent is gone.
    pub fn agent_lost(&self) {
        self.from_host.borrow_mut().clear();
        self.adrift.set(true);
        self.adrift_until.set(Some(clock::now() + GRACE));
    }

    /// Whether it is over.
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// No agent has come: swaps out, and ends either way.
    fn agent_missed(&self, world: &World, serving: Option<&Process>) {
        world.trace(|| format!("{} {} misses its agent", self.process, self.incarnation));
        if let Some(process) = serving {
            self.swap_out(world, process);
        }
        // It is killed, as far as anybody can tell, if it could not.
        self.kill(world);
    }

    /// Looks for an agent, if there is none; whether there was anything to do.
    fn redial(&self, world: &World, node: &Node) -> bool {
        if !self.adrift.get() || node.is_away() || !world.chance(300) {
            return false;
        }
        let serving = self.serving.borrow();
        let addresses = serving.as_ref().map(|process| process.addresses().to_vec());
        let hello = HostHello {
            pid: 1,
            application: APPLICATION.into(),
            process: self.process.clone(),
            incarnation: self.incarnation,
            addresses: addresses.unwrap_or_default(),
            swap_generation: self.generation.get(),
            rejected: Vec::new(),
            transfer: self.transfer.get(),
        };
        drop(serving);
        self.adrift.set(false);
        let taken = node.redialled(world, hello);
        world.trace(|| format!("{} redials: {taken}", self.process));
        self.adrift.set(!taken);
        true
    }

    fn say(&self, message: FromHost) {
        if self.adrift.get() {
            return;
        }
        self.from_host.borrow_mut().push_back(message);
    }

    fn exit(&self, how: &'static str) {
        self.gone.set(true);
        *self.exited.borrow_mut() = Some(how);
        *self.serving.borrow_mut() = None;
        *self.arriving.borrow_mut() = None;
        *self.outgoing.borrow_mut() = None;
    }

    fn ended(&self, world: &World, how: End) {
        world.dead(&self.process, self.incarnation);
        world.note(Event::Ended {
            process: self.process.clone(),
            incarnation: self.incarnation,
            how,
        });
    }

    /// Whether it is there, and nobody's hand is on it.
    pub fn is_idle(&self) -> bool {
        !self.gone.get() && !*self.busy.borrow()
    }

    pub fn serves(&self) -> bool {
        self.serving.borrow().is_some()
    }

    /// Kills it. What it has said already is heard.
    pub fn kill(&self, world: &World) {
        if self.gone.get() {
            return;
        }
        world.trace(|| format!("{} {} is killed", self.process, self.incarnation));
        world.dead(&self.process, self.incarnation);
        if let Some(process) = self.serving.borrow_mut().take() {
            process.kill();
            self.ended(world, End::Crashed);
        }
        match &mut *self.arriving.borrow_mut() {
            Some(Arriving::Pulling(pull)) => pull.kill(),
            Some(Arriving::Prepared(prepared)) => prepared.0.kill(),
            None => {}
        }
        self.exit("killed");
    }

    /// Starts, or obeys; whether there was anything to do.
    pub fn step(&self, world: &World, node: &Node) -> bool {
        if !self.is_idle() {
            return false;
        }
        let start = self.start.borrow_mut().take();
        if let Some(start) = start {
            self.busily(|| match &start.from {
                None => self.begin(world, node, &start),
                Some(from) => self.arrive(world, node, &start, from),
            });
            return true;
        }
        if self.redial(world, node) || self.outgoing_step(world) {
            return true;
        }
        let serving = self.serving.borrow().clone();
        // What it is told waits while a function of it is on the stack below us, or a commit; unless
        // it is about a transfer, in which nothing waits.
        let stacked = serving.as_ref().is_some_and(|process| {
            let stats = process.stats();
            stats.running + stats.blocked > 0 || process.is_committing()
        });
        let missed =
            self.adrift.get() && self.adrift_until.get().is_some_and(|at| at <= clock::now());
        if missed && !stacked {
            self.busily(|| self.agent_missed(world, serving.as_deref()));
            return true;
        }
        let message = {
            let mut queue = self.to_host.borrow_mut();
            let at_once = matches!(
                queue.front(),
                Some(ToHost::TransferOut { .. } | ToHost::TransferThaw | ToHost::TransferServe)
            );
            match stacked && !at_once {
                true => None,
                false => queue.pop_front(),
            }
        };
        let Some(message) = message else {
            return false;
        };
        self.busily(|| match serving {
            Some(process) => self.obey(world, &process, message),
            None => self.obey_early(world, message),
        });
        true
    }

    /// Goes on with the process that serves, or is fetched.
    pub fn process_step(&self, world: &World) -> bool {
        let process = self.serving.borrow().clone();
        if let Some(process) = process {
            return process.step();
        }
        let mut arriving = self.arriving.borrow_mut();
        let Some(Arriving::Pulling(pull)) = &mut *arriving else {
            return false;
        };
        let happened = pull.step();
        if !pull.is_over() {
            return happened;
        }
        let Some(Arriving::Pulling(pull)) = arriving.take() else {
            return false;
        };
        match prepare(*pull) {
            Ok(prepared) => {
                *arriving = Some(Arriving::Prepared(Box::new(prepared)));
                drop(arriving);
                self.transfer_say(world, HostTransfer::Prepared, None);
                world.reached(&self.process, Moment::Prepared);
            }
            Err(error) => {
                drop(arriving);
                self.fail(world, &error.to_string());
            }
        }
        true
    }

    fn busily(&self, act: impl FnOnce()) {
        *self.busy.borrow_mut() = true;
        act();
        *self.busy.borrow_mut() = false;
    }

    fn fail(&self, world: &World, error: &str) {
        world.trace(|| format!("{} {}: {error}", self.process, self.incarnation));
        let error = error.to_owned();
        self.say(FromHost::Failed { error });
        world.dead(&self.process, self.incarnation);
        self.exit("it could not start");
    }

    fn config(&self, world: &World, node: &Node, start: &StartCommand) -> ProcessConfig {
        let name = format!("{}/{}", start.process, start.incarnation);
        ProcessConfig {
            application: start.application.clone(),
            process: start.process.clone(),
            incarnation: Incarnation(start.incarnation),
            listen: vec![Listen::Mem(world.address(&name))],
            authenticator: Arc::new(world.keyring()),
            credential: world.credential(praas_transport::Role::Process, 0),
            directory: Directory::Agent(vec![node.address.clone()]),
            transports: Kinds::all(),
            settings: ProcessSettings {
                workers: 1,
                workers_blocked_max: 4,
                wait: WaitMode::Warm,
                quiesce_timeout_ms: 2_000,
                transport: world.transport(),
                ..world.settings()
            },
            registry: registry(),
            restore: None,
            persist: (world.plan.through > 0).then(|| self.persist_to(world)),
        }
    }

    fn begin(&self, world: &World, node: &Node, start: &StartCommand) {
        let config = self.config(world, node, start);
        let (mut from, mut generation) = (None, 0);
        world.writing(&self.process, self.incarnation);
        let process =
            Process::start_stepped(config, meanwhile, |pool: &BufPool| -> Result<_, Failure> {
                if start.incarnation == start.life {
                    return Ok(None);
                }
                let storage: Arc<dyn Storage> = world.storage();
                let heir = Heir {
                    incarnation: Incarnation(start.incarnation),
                    life: Incarnation(start.life),
                };
                let name = (&*start.application, &*start.process);
                let min_bytes = match world.plan.lazy {
                    true => 0,
                    false => u64::MAX,
                };
                let loaded = swap_in_lazily(&storage, pool, name, heir, min_bytes);
                let loaded = match loaded {
                    Err(error)
                        if start.swap_generation == 0 && error.is_of_unfinished_commits() =>
                    {
                        None
                    }
                    loaded => loaded?,
                };
                Ok(match loaded {
                    None if start.swap_generation > 0 => return Err("no image at all".into()),
                    None => None,
                    Some((mut loaded, absent)) => {
                        generation = loaded.generation;
                        // As the host does: nobody has heard that the process ended with it.
                        if !(start.swapped && generation == start.swap_generation) {
                            loaded.image.kind = ImageKind::Checkpoint;
                        }
                        from = Some(Image {
                            incarnation: loaded.image.incarnation.0,
                            generation,
                        });
                        let later = absent.as_ref().map_or(0, |absent| absent.objects.len());
                        if later > 0 {
                            world.trace(|| format!("{} begins with {later} absent", self.process));
                        }
                        // Else it is as if all were new in storage.
                        let known = world.plan.through > 0 || world.plan.lazy;
                        let base = known.then_some(loaded.base);
                        let image = loaded.image;
                        Some(Restore {
                            image,
                            absent,
                            base,
                        })
                    }
                })
            });
        world.written();
        if self.gone.get() {
            // It was killed while it started.
            return;
        }
        match process {
            Err(error) => self.fail(world, &error.to_string()),
            Ok(process) => {
                world.note(Event::Started {
                    process: self.process.clone(),
                    incarnation: self.incarnation,
                    from,
                });
                self.generation.set(generation);
                self.serve(process);
            }
        }
    }

    fn serve(&self, process: Process) {
        *self.serving.borrow_mut() = Some(Rc::new(process));
        self.ready_say();
    }

    fn ready_say(&self) {
        let serving = self.serving.borrow();
        let addresses = serving.as_ref().map(|process| process.addresses().to_vec());
        self.say(FromHost::Ready {
            addresses: addresses.unwrap_or_default(),
            swap_generation: self.generation.get(),
            rejected: Vec::new(),
        });
    }

    // Transfers.

    /// Begins to fetch the process from another host.
    fn arrive(&self, world: &World, node: &Node, start: &StartCommand, from: &StartFrom) {
        let page = Arc::new(StatsPage::private());
        let mut config = self.config(world, node, start);
        if world.plan.tight > 0 && world.chance(world.plan.tight) {
            // Perhaps it does not fit: twice as many messages are refused. A state that is above its
            // limit comes, and could not grow at the end.
            config.settings.mailbox_messages_max = 1;
        }
        let bound = match Bound::new(config, page) {
            Ok(bound) => bound,
            Err(error) => return self.fail(world, &error.to_string()),
        };
        let from = PullFrom {
            addresses: from.addresses.clone(),
            incarnation: Incarnation(from.incarnation),
            token: from.token,
        };
        match SteppedPull::begin(bound, from, meanwhile) {
            Ok(pull) => {
                self.generation.set(start.swap_generation);
                *self.arriving.borrow_mut() = Some(Arriving::Pulling(Box::new(pull)));
                self.transfer_say(world, HostTransfer::Receiving, None);
            }
            Err(error) => self.fail(world, &error.to_string()),
        }
    }

    /// Obeys while there is no process here.
    fn obey_early(&self, world: &World, message: ToHost) {
        match message {
            ToHost::World(view) => *self.late.borrow_mut() = Some(view),
            ToHost::TransferServe => self.transfer_serve(world),
            ToHost::Stop => self.exit("stopped"),
            ToHost::SwapOut => {
                let error = "the process is not here yet".into();
                self.say(FromHost::SwapFailed { error });
            }
            ToHost::Checkpoint => {
                let error = "the process is not here yet".into();
                self.say(FromHost::CheckpointFailed { error });
            }
            _ => {}
        }
    }

    /// From now on this is the process.
    fn transfer_serve(&self, world: &World) {
        let arriving = self.arriving.borrow_mut().take();
        let (prepared, from) = match arriving {
            Some(Arriving::Prepared(prepared)) => *prepared,
            arriving => {
                *self.arriving.borrow_mut() = arriving;
                return;
            }
        };
        match prepared.serve() {
            Ok(process) => {
                if let Some(view) = self.late.borrow_mut().take() {
                    process.world_update(view);
                }
                world.note(Event::Moved {
                    process: self.process.clone(),
                    incarnation: self.incarnation,
                    from,
                });
                self.transfer.set(HostTransfer::None);
                self.serve(process);
                world.reached(&self.process, Moment::Served);
            }
            Err(error) => self.fail(world, &error.to_string()),
        }
    }

    /// Lets another host fetch the process.
    fn transfer_out(&self, world: &World, process: &Process, offer: TransferOffer) {
        if self.outgoing.borrow().is_some() {
            let error = "it is being transferred already".into();
            return self.transfer_say(world, self.transfer.get(), Some(error));
        }
        match process.transfer_out_begin(offer) {
            Ok(out) => {
                let offered = process.state_absent() == 0;
                *self.outgoing.borrow_mut() = Some(Outgoing {
                    out: Some(out),
                    offered,
                    thaws: false,
                });
                if offered {
                    self.transfer_offered(world);
                }
            }
            Err(error) => {
                self.transfer_say(world, HostTransfer::None, Some(error.to_string()));
            }
        }
    }

    /// Goes on with a transfer to another host; whether anything happened.
    fn outgoing_step(&self, world: &World) -> bool {
        let Some(process) = self.serving.borrow().clone() else {
            return false;
        };
        let Some(step) = self.outgoing_go(world, &process) else {
            return false;
        };
        match step {
            OutStep::Idle => return false,
            OutStep::Went => {}
            OutStep::Offered => {
                if let Some(outgoing) = &mut *self.outgoing.borrow_mut() {
                    outgoing.offered = true;
                }
                self.transfer_offered(world);
            }
            OutStep::Freezing => {
                self.transfer_say(world, HostTransfer::Frozen, None);
                world.reached(&self.process, Moment::Freezing);
            }
            OutStep::Frozen => {
                world.note(Event::Frozen {
                    process: self.process.clone(),
                    incarnation: self.incarnation,
                });
                self.frozen.set(true);
                world.reached(&self.process, Moment::Frozen);
            }
            OutStep::Over(outcome) => {
                let thaws = {
                    let mut outgoing = self.outgoing.borrow_mut();
                    let outgoing = outgoing.as_mut();
                    outgoing.is_some_and(|outgoing| {
                        outgoing.out = None;
                        outgoing.thaws
                    })
                };
                match outcome {
                    Ok(_) if thaws => self.transfer_thaw(world, &process),
                    Ok(_) => {}
                    Err(error) => {
                        *self.outgoing.borrow_mut() = None;
                        self.thawed(world);
                        let error = Some(error.to_string());
                        self.transfer_say(world, HostTransfer::None, error);
                    }
                }
            }
        }
        true
    }

    fn outgoing_go(&self, world: &World, process: &Process) -> Option<OutStep> {
        {
            let mut outgoing = self.outgoing.borrow_mut();
            let outgoing = outgoing.as_mut()?;
            let out = outgoing.out.as_mut()?;
            if outgoing.offered {
                return Some(process.transfer_out_step(out));
            }
        }
        // Others go on meanwhile.
        let busy = self.busy.replace(true);
        world.writing(&self.process, self.incarnation);
        let step = process.transfer_out_fetch();
        world.written();
        *self.busy.borrow_mut() = busy;
        (!self.gone.get()).then_some(step)
    }

    fn transfer_offered(&self, world: &World) {
        self.transfer_say(world, HostTransfer::Sending, None);
        world.reached(&self.process, Moment::Offered);
    }

    /// There is no transfer, or none any more.
    fn transfer_thaw(&self, world: &World, process: &Process) {
        if let Some(outgoing) = &mut *self.outgoing.borrow_mut()
            && outgoing.out.is_some()
        {
            outgoing.thaws = true;
            process.transfer_cancel();
            return;
        }
        let mut error = None;
        if self.transfer.get() != HostTransfer::None {
            process.thaw();
            self.thawed(world);
            *self.outgoing.borrow_mut() = None;
            error = Some("it was called off".into());
        }
        self.transfer_say(world, HostTransfer::None, error);
    }

    fn thawed(&self, world: &World) {
        if self.frozen.replace(false) {
            world.note(Event::Thawed {
                process: self.process.clone(),
                incarnation: self.incarnation,
            });
        }
    }

    /// Ends a transfer under way before the process itself does: it must not thaw meanwhile.
    fn outgoing_end(&self, world: &World, process: &Process) {
        let under_way = || {
            let outgoing = self.outgoing.borrow();
            outgoing
                .as_ref()
                .is_some_and(|outgoing| outgoing.out.is_some())
        };
        if under_way() {
            process.transfer_cancel();
        }
        while under_way() && !self.gone.get() {
            if !self.outgoing_step(world) {
                meanwhile();
            }
        }
        *self.outgoing.borrow_mut() = None;
    }

    fn transfer_say(&self, world: &World, state: HostTransfer, error: Option<String>) {
        world.trace(|| format!("{} {}: {state:?} {error:?}", self.process, self.incarnation));
        self.transfer.set(state);
        self.say(FromHost::Transfer { state, error });
    }

    // What the agent wants of a process that serves.

    fn obey(&self, world: &World, process: &Process, message: ToHost) {
        match message {
            ToHost::World(view) => process.world_update(view),
            ToHost::SwapOut => self.swap_out(world, process),
            ToHost::Stop => {
                self.outgoing_end(world, process);
                process.stop();
                if !self.gone.get() {
                    self.ended(world, End::Stopped);
                    self.exit("stopped");
                }
            }
            ToHost::TransferOut { incarnation, token } => {
                let incarnation = Incarnation(incarnation);
                self.transfer_out(world, process, TransferOffer { incarnation, token });
            }
            ToHost::TransferThaw => self.transfer_thaw(world, process),
            // Said again by an agent that does not know whether it was heard.
            ToHost::TransferServe => self.ready_say(),
            ToHost::Start(_) | ToHost::Adopted { .. } | ToHost::Keys { .. } | ToHost::Stats => {}
            ToHost::Checkpoint => self.checkpoint_obey(world, process),
        }
    }

    /// Closes the channels of all callers in good order, as for a new secret: what they have under
    /// way comes again.
    pub fn callers_show_out(&self, world: &World) {
        if let Some(process) = self.serving.borrow().as_ref() {
            let credential = world.credential(praas_transport::Role::Process, 0);
            process.credential_changed(credential);
        }
    }
}

/// Makes the process of what was fetched, as the host does; and whose it was.
fn prepare(pull: SteppedPull) -> Result<(Prepared, u64), Failure> {
    let (bound, image) = pull.end()?;
    let from = image.incarnation.0;
    Ok((bound.prepare(image)?, from))
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.module_add(module()).expect("a module of ours");
    registry
}
