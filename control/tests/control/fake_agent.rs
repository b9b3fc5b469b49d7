//! A node agent without hosts: it dials, does at once what it is told, and remembers it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use praas_control::agent::{
    AM_CLUSTER, FromAgent, HostCommand, HostReport, HostTransfer, Inbox, Outbox, ResolvedProcess,
    StartCommand, ToAgent, agent_credential_issue, encode,
};
use praas_control::api::{CLUSTER_APPLICATION, ProcessState};
use praas_control::{ControlAddr, Failure, RunPaths, cluster_secret_load};
use praas_transport::{
    ChannelId, ChannelInfo, CloseReason, Dial, Disposition, Endpoint, Flow, Handler, Identity,
    Incarnation, Incoming, LargeMessage, Message, Ops, TransportConfig, WaitMode, Waker,
};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

type Resolved = Result<ResolvedProcess, Failure>;

enum Order {
    Resolve(FromAgent),
    End,
}

/// What the agent has seen.
#[derive(Debug)]
pub enum Seen {
    Started(Box<StartCommand>),
    Resolved(Resolved),
    World(String, u64),
}

pub struct FakeAgent {
    orders: Sender<Order>,
    waker: Waker,
    seen: Receiver<Seen>,
    /// The world views among what was seen.
    worlds: RefCell<Vec<(String, u64)>>,
    thread: JoinHandle<Vec<HostReport>>,
}

impl FakeAgent {
    /// Dials the control plane of a run directory, with hosts that are there already.
    pub fn dial(paths: &RunPaths, node: &str, hosts: Vec<HostReport>) -> Self {
        let address = ControlAddr::read(&paths.control_addr).expect("control.addr");
        let secret = cluster_secret_load(&paths.cluster_secret).expect("cluster.secret");
        let identity = Identity {
            application: CLUSTER_APPLICATION.into(),
            name: node.into(),
            incarnation: Incarnation(0),
            client_id: 1,
        };
        let mut endpoint =
            Endpoint::new(TransportConfig::default(), identity, None).expect("endpoint");
        let dial = Dial {
            credential: agent_credential_issue(&secret, u64::MAX),
            expect: Incarnation(0),
            deadline: Some(Instant::now() + PATIENCE),
        };
        let control = address.agents.first().expect("an address");
        let channel_id = endpoint.connect(control, dial).expect("connect");
        let waker = endpoint.waker();
        let (orders, ordered) = channel();
        let (see, seen) = channel();
        let mut agent = Agent {
            channel: channel_id,
            hello: Some((node.into(), hosts.clone())),
            hosts: hosts
                .into_iter()
                .map(|host| (host.process.clone(), host))
                .collect(),
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            see,
            over: false,
        };
        let thread = std::thread::spawn(move || {
            while !agent.over {
                while let Ok(order) = ordered.try_recv() {
                    match order {
                        Order::Resolve(message) => agent.say(&mut endpoint, &message),
                        Order::End => agent.over = true,
                    }
                }
                if !agent.over {
                    endpoint.progress_wait(&mut agent, None, WaitMode::Warm);
                }
            }
            agent.hosts.into_values().collect()
        });
        Self {
            orders,
            waker,
            seen,
            worlds: RefCell::default(),
            thread,
        }
    }

    /// Asks as a client's directory does.
    pub fn resolve(&self, application: &str, process: &str, ensure: bool) -> Resolved {
        self.order(Order::Resolve(FromAgent::Resolve {
            request: 1,
            application: application.into(),
            process: process.into(),
            ensure,
        }));
        self.wait(|seen| match seen {
            Seen::Resolved(result) => Some(result),
            _ => None,
        })
    }

    /// Waits for a start.
    pub fn started(&self) -> StartCommand {
        self.wait(|seen| match seen {
            Seen::Started(start) => Some(*start),
            _ => None,
        })
    }

    /// Waits until a world view of this generation was seen.
    pub fn world(&self, application: &str, generation: u64) {
        let seen = |of: &str, number: u64| of == application && number == generation;
        // It may have come while something else was waited for.
        if self.worlds.borrow().iter().any(|(of, n)| seen(of, *n)) {
            return;
        }
        self.wait(|what| match what {
            Seen::World(of, number) => seen(&of, number).then_some(()),
            _ => None,
        });
    }

    /// Waits for something that is seen, and passes over what comes before it.
    pub fn wait<T>(&self, mut pick: impl FnMut(Seen) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let seen = self.seen.recv_timeout(left).expect("it happens in time");
            if let Seen::World(application, generation) = &seen {
                let world = (application.clone(), *generation);
                self.worlds.borrow_mut().push(world);
            }
            if let Some(found) = pick(seen) {
                return found;
            }
        }
    }

    /// Waits until the control plane hangs up, which it does without a word.
    pub fn refused(self) {
        let end = self.seen.recv_timeout(PATIENCE);
        assert!(
            matches!(end, Err(RecvTimeoutError::Disconnected)),
            "{end:?}"
        );
    }

    /// Hangs up. The hosts live on.
    pub fn end(self) -> Vec<HostReport> {
        self.order(Order::End);
        self.thread.join().expect("the agent's thread")
    }

    fn order(&self, order: Order) {
        // The thread may have ended with its channel.
        let _ = self.orders.send(order);
        self.waker.wake();
    }
}

struct Agent {
    channel: ChannelId,
    hello: Option<(String, Vec<HostReport>)>,
    hosts: BTreeMap<String, HostReport>,
    inbox: Inbox,
    outbox: Outbox,
    see: Sender<Seen>,
    over: bool,
}

impl Agent {
    fn say(&mut self, ops: &mut Ops, message: &FromAgent) {
        self.outbox.push(encode(message).expect("encodes"));
        if self.hello.is_none() && self.outbox.pump(ops, self.channel).is_err() {
            self.over = true;
        }
    }

    fn hear(&mut self, ops: &mut Ops, message: ToAgent) {
        match message {
            ToAgent::Start(start) => {
                let report = HostReport {
                    application: start.application.clone(),
                    process: start.process.clone(),
                    incarnation: start.incarnation,
                    life: start.life,
                    state: ProcessState::Ready,
                    pid: 4711,
                    addresses: vec!["tcp:127.0.0.1:9".parse().expect("an address")],
                    swap_generation: start.swap_generation,
                    error: None,
                    swapped: false,
                    transfer: HostTransfer::None,
                };
                self.hosts.insert(start.process.clone(), report.clone());
                self.done(ops, start.request, Some(report));
                self.see(Seen::Started(start));
            }
            ToAgent::SwapOut(command) => self.host_end(ops, &command, ProcessState::Swapped),
            ToAgent::Stop(command) => self.host_end(ops, &command, ProcessState::Gone),
            ToAgent::DeleteImages { request, .. } => self.done(ops, request, None),
            ToAgent::Checkpoint(command) => self.done(ops, command.request, None),
            ToAgent::Applications(_) => {}
            ToAgent::World {
                application,
                generation,
                ..
            } => self.see(Seen::World(application, generation)),
            ToAgent::Resolved { result, .. } => self.see(Seen::Resolved(result)),
            ToAgent::TransferOut(_) | ToAgent::TransferThaw(_) | ToAgent::TransferServe(_) => {}
        }
    }

    fn host_end(&mut self, ops: &mut Ops, command: &HostCommand, state: ProcessState) {
        let host = self.hosts.remove(&command.process).map(|mut host| {
            host.state = state;
            host.pid = 0;
            host.addresses.clear();
            host.swapped = state == ProcessState::Swapped;
            host.swap_generation += u64::from(host.swapped);
            host
        });
        self.done(ops, command.request, host);
    }

    fn done(&mut self, ops: &mut Ops, request: u64, report: Option<HostReport>) {
        if let Some(report) = report {
            self.say(ops, &FromAgent::Report(report));
        }
        let result = Ok(());
        self.say(ops, &FromAgent::Answer { request, result });
    }

    fn see(&self, seen: Seen) {
        // The test may no longer look.
        let _ = self.see.send(seen);
    }
}

impl Handler for Agent {
    fn on_open(&mut self, ops: &mut Ops, _: ChannelId, _: &ChannelInfo) -> Flow {
        if let Some((node, inventory)) = self.hello.take() {
            let queued = std::mem::take(&mut self.outbox);
            self.say(
                ops,
                &FromAgent::Hello {
                    node,
                    cpus: 4,
                    memory_bytes: 1 << 30,
                    inventory,
                },
            );
            assert_eq!(
                queued.queued_bytes(),
                0,
                "tests wait for the hello's effect"
            );
        }
        Flow::Continue
    }

    fn on_message(&mut self, ops: &mut Ops, _: ChannelId, message: Message<'_>) -> Flow {
        assert_eq!(message.am, AM_CLUSTER);
        let whole = self.inbox.feed(message.tag, message.payload);
        if let Some(message) = whole.expect("decodes") {
            self.hear(ops, message);
        }
        Flow::Continue
    }

    fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
        Disposition::Refuse(0)
    }

    fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
        Flow::Continue
    }

    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        self.over |= self.outbox.pump(ops, channel).is_err();
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, _: CloseReason) -> Flow {
        self.over = true;
        Flow::Continue
    }
}
