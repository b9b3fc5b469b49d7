//! The registry, case by case.

use super::{Action, Event, Limits, Registry, Reply, Request, Verb};
use crate::agent::{FromAgent, HostReport, HostTransfer, StartCommand, ToAgent};
use crate::api::{ApplicationSpec, Process, ProcessState, Settings};
use crate::config::ControlConfig;
use crate::error::{ErrorKind, Failure};
use crate::store::{Change, Snapshot, TokenRecord};
use praas_transport::Secret;

pub(super) fn limits() -> Limits {
    Limits {
        lease_ms: 0,
        ..Limits::from(&ControlConfig::default())
    }
}

pub(super) fn spec(name: &str) -> ApplicationSpec {
    ApplicationSpec {
        name: name.into(),
        modules: vec!["/m.so".into()],
        settings: Settings::new(),
        auto_create: false,
    }
}

fn create(name: &str) -> Request {
    Request::ApplicationCreate {
        spec: spec(name),
        secret: Secret::from_bytes([1; 32]),
        now_unix_ms: 5,
    }
}

pub(super) fn process(verb: Verb) -> Request {
    Request::Process {
        application: "a".into(),
        process: "p".into(),
        verb,
    }
}

pub(super) struct Bench {
    pub(super) registry: Registry,
    pub(super) now: u64,
    last: u64,
    pub(super) actions: Vec<Action>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(create("a"))
    }

    /// With application a as it is created.
    pub(super) fn with(create: Request) -> Self {
        let registry = Registry::restore(limits(), Snapshot::default(), 0, 0);
        let mut bench = Self {
            registry,
            now: 0,
            last: 0,
            actions: Vec::new(),
        };
        bench.ask(create);
        assert!(matches!(bench.answers().as_slice(), [(1, Ok(_))]));
        bench
    }

    pub(super) fn handle(&mut self, event: Event) {
        let actions = self.registry.handle(self.now, event);
        self.actions.extend(actions);
    }

    pub(super) fn ask(&mut self, request: Request) -> u64 {
        self.ask_wait(request, 1_000)
    }

    pub(super) fn ask_wait(&mut self, request: Request, wait_ms: u64) -> u64 {
        self.last += 1;
        let id = self.last;
        self.handle(Event::Request {
            id,
            wait_ms,
            request,
        });
        id
    }

    pub(super) fn say(&mut self, link: u64, message: FromAgent) {
        self.handle(Event::Said { link, message });
    }

    pub(super) fn hello(&mut self, link: u64, node: &str, inventory: Vec<HostReport>) {
        self.say(
            link,
            FromAgent::Hello {
                node: node.into(),
                cpus: 4,
                memory_bytes: 1 << 30,
                inventory,
            },
        );
    }

    /// What was answered since the last call.
    pub(super) fn answers(&mut self) -> Vec<(u64, Result<Reply, Failure>)> {
        let mut answers = Vec::new();
        self.actions.retain(|action| match action {
            Action::Answer { id, result } => {
                answers.push((*id, result.clone()));
                false
            }
            _ => true,
        });
        answers
    }

    pub(super) fn kinds(&mut self) -> Vec<(u64, Option<ErrorKind>)> {
        let answers = self.answers().into_iter();
        answers
            .map(|(id, result)| (id, result.err().map(|failure| failure.kind)))
            .collect()
    }

    /// The commands since the last call, with their links; views and keys left out.
    pub(super) fn told(&mut self) -> Vec<(u64, ToAgent)> {
        let mut told = Vec::new();
        self.actions.retain(|action| match action {
            Action::Tell { link, message } => {
                if !matches!(message, ToAgent::World { .. } | ToAgent::Applications(_)) {
                    told.push((*link, message.clone()));
                }
                false
            }
            _ => true,
        });
        told
    }

    pub(super) fn started(&mut self) -> StartCommand {
        match self.told().as_slice() {
            [(_, ToAgent::Start(start))] => (**start).clone(),
            other => panic!("no start but {other:?}"),
        }
    }

    /// A process that is ready, on node n over link 1.
    pub(super) fn ready(&mut self) -> StartCommand {
        self.hello(1, "n", vec![]);
        self.ask(process(Verb::Create));
        let start = self.started();
        self.say(1, FromAgent::Report(report(&start, ProcessState::Ready)));
        let id = self.last;
        assert!(matches!(self.answers().as_slice(), [(answered, Ok(_))] if *answered == id));
        start
    }

    pub(super) fn show(&self) -> Process {
        let app = self.registry.app("a").unwrap();
        app.processes["p"].show(self.now)
    }
}

pub(super) fn report(start: &StartCommand, state: ProcessState) -> HostReport {
    HostReport {
        application: start.application.clone(),
        process: start.process.clone(),
        incarnation: start.incarnation,
        life: start.life,
        state,
        pid: 42,
        addresses: vec!["tcp:127.0.0.1:9".parse().unwrap()],
        swap_generation: 0,
        error: None,
        swapped: state == ProcessState::Swapped,
        transfer: HostTransfer::None,
    }
}

pub(super) fn swapped(start: &StartCommand, generation: u64) -> FromAgent {
    FromAgent::Report(HostReport {
        swap_generation: generation,
        ..report(start, ProcessState::Swapped)
    })
}

#[test]
fn ensures_of_one_process_share_one_start() {
    let mut bench = Bench::new();
    bench.hello(1, "n", vec![]);
    let first = bench.ask(process(Verb::Create));
    let more = [(); 5].map(|()| bench.ask(process(Verb::Ensure)));
    let start = bench.started();
    assert_eq!(start.life, start.incarnation);
    assert_eq!(bench.answers(), vec![]);
    bench.say(1, FromAgent::Report(report(&start, ProcessState::Ready)));
    let answered: Vec<u64> = bench.answers().into_iter().map(|(id, _)| id).collect();
    assert_eq!(answered[0], first);
    assert_eq!(answered[1..], more);
    assert_eq!(bench.show().pid, Some(42));
    assert_eq!(bench.told(), vec![]);
}

#[test]
fn the_incarnation_is_stored_before_the_start() {
    let mut bench = Bench::new();
    bench.hello(1, "n", vec![]);
    bench.ask(process(Verb::Create));
    let at = |wanted: fn(&Action) -> bool| bench.actions.iter().position(wanted).unwrap();
    let counter = at(|a| matches!(a, Action::Persist(Change::IncarnationNext(2))));
    let record = at(|a| matches!(a, Action::Persist(Change::Process(r)) if r.incarnation == 1));
    let told = at(|a| {
        matches!(
            a,
            Action::Tell {
                message: ToAgent::Start(_),
                ..
            }
        )
    });
    assert!(counter < told && record < told);
}

#[test]
fn what_was_never_created_is_not_found_unless_the_application_creates_it() {
    let mut bench = Bench::new();
    bench.hello(1, "n", vec![]);
    for verb in [
        Verb::Ensure,
        Verb::Swap,
        Verb::SwapIn,
        Verb::Stop,
        Verb::Delete,
        Verb::Show,
    ] {
        let id = bench.ask(process(verb));
        assert_eq!(
            bench.kinds(),
            vec![(id, Some(ErrorKind::NotFound))],
            "{verb:?}"
        );
    }
    let mut auto = spec("b");
    auto.auto_create = true;
    bench.ask(Request::ApplicationCreate {
        spec: auto,
        secret: Secret::from_bytes([2; 32]),
        now_unix_ms: 0,
    });
    bench.ask(Request::Process {
        application: "b".into(),
        process: "q".into(),
        verb: Verb::Ensure,
    });
    assert_eq!(bench.started().process, "q");
    let id = bench.ask(Request::Process {
        application: "b".into(),
        process: "x/y".into(),
        verb: Verb::Ensure,
    });
    assert!(bench.kinds().contains(&(id, Some(ErrorKind::Invalid))));
}

#[test]
fn without_an_agent_a_start_waits_and_then_fails() {
    let mut bench = Bench::new();
    let late = bench.ask_wait(process(Verb::Create), 100);
    assert_eq!(bench.registry.deadline_next(), Some(100));
    bench.now = 100;
    bench.handle(Event::Tick);
    assert_eq!(bench.kinds(), vec![(late, Some(ErrorKind::NoAgent))]);
    let shown = bench.ask(process(Verb::Show));
    assert_eq!(bench.kinds(), vec![(shown, Some(ErrorKind::NotFound))]);
    bench.ask_wait(process(Verb::Create), 100);
    bench.hello(1, "n", vec![]);
    assert_eq!(bench.started().incarnation, 1);
}

#[test]
fn who_does_not_wait_is_answered_at_once() {
    let mut bench = Bench::new();
    let none = bench.ask_wait(process(Verb::Create), 0);
    assert_eq!(bench.kinds(), vec![(none, Some(ErrorKind::NoAgent))]);
    bench.hello(1, "n", vec![]);
    let id = bench.ask_wait(process(Verb::Create), 0);
    match bench.answers().as_slice() {
        [(answered, Ok(Reply::Process(process)))] => {
            assert_eq!((*answered, process.state), (id, ProcessState::Starting));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_process_is_swapped_out_and_in() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let out = bench.ask(process(Verb::Swap));
    let back = bench.ask(process(Verb::Ensure));
    assert!(matches!(
        bench.told().as_slice(),
        [(1, ToAgent::SwapOut(_))]
    ));
    assert_eq!(bench.show().state, ProcessState::Quiescing);
    bench.say(1, swapped(&start, 1));
    assert_eq!(bench.kinds(), vec![(out, None)]);
    let again = bench.started();
    assert!(again.life == 1 && again.swap_generation == 1 && again.incarnation == 2);
    bench.say(1, FromAgent::Report(report(&again, ProcessState::Ready)));
    assert_eq!(bench.kinds(), vec![(back, None)]);
}

#[test]
fn only_the_start_after_a_swap_that_was_heard_says_so() {
    let mut bench = Bench::new();
    let first = bench.ready();
    assert!(!first.swapped, "it began empty");
    bench.say(1, swapped(&first, 1));
    bench.ask(process(Verb::Ensure));
    let second = bench.started();
    assert!(second.swapped && second.swap_generation == 1);
    // It begins with that image, serves on, and dies.
    let mut began = report(&second, ProcessState::Ready);
    began.swap_generation = 1;
    bench.say(1, FromAgent::Report(began));
    bench.say(1, FromAgent::Report(report(&second, ProcessState::Failed)));
    bench.ask(process(Verb::Ensure));
    let third = bench.started();
    assert!(!third.swapped && third.swap_generation == 1);
    // An image was found, and nobody heard whether the process ended with it.
    let found = HostReport {
        swap_generation: 2,
        swapped: false,
        ..report(&third, ProcessState::Swapped)
    };
    bench.say(1, FromAgent::Report(found));
    let fourth = bench.started();
    assert!(fourth.life == 1 && !fourth.swapped && fourth.swap_generation == 2);
    // It was swapped out as one that is older than what is known.
    bench.say(1, swapped(&fourth, 1));
    assert!(!bench.started().swapped);
}

#[test]
fn what_was_wrong_with_newer_images_is_shown_while_the_process_lives() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let error = Some("generation 1 was loaded".to_owned());
    let mut loaded = report(&start, ProcessState::Ready);
    loaded.error.clone_from(&error);
    bench.say(1, FromAgent::Report(loaded));
    assert_eq!(bench.show().state, ProcessState::Ready);
    assert_eq!(bench.show().error, error);
    bench.say(1, swapped(&start, 2));
    assert_eq!(bench.show().error, None);
}

#[test]
fn a_swap_that_is_refused_leaves_the_process_serving() {
    let mut bench = Bench::new();
    bench.ready();
    let id = bench.ask(process(Verb::Swap));
    let request = match bench.told().as_slice() {
        [(1, ToAgent::SwapOut(command))] => command.request,
        other => panic!("{other:?}"),
    };
    let result = Err("storage is full".into());
    bench.say(1, FromAgent::Answer { request, result });
    match bench.answers().as_slice() {
        [(answered, Err(failure))] => {
            assert_eq!((*answered, failure.kind), (id, ErrorKind::ProcessFailed));
            assert!(failure.detail.contains("storage is full"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.show().state, ProcessState::Ready);
}

#[test]
fn a_host_that_ended_unseen_may_have_left_an_image() {
    let mut bench = Bench::new();
    let first = bench.ready();
    assert_eq!(first.life, 1);
    bench.handle(Event::Lost { link: 1 });
    bench.told();
    // It missed its agent, swapped out and ended before there was another.
    bench.hello(2, "n", vec![]);
    assert_eq!(bench.show().state, ProcessState::Failed);
    bench.ask(process(Verb::Ensure));
    match bench.told().as_slice() {
        [(2, ToAgent::Start(start))] => assert!(start.life == 1 && start.swap_generation == 0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stopped_process_starts_only_when_created_again_and_then_empty() {
    let mut bench = Bench::new();
    let start = bench.ready();
    bench.ask(process(Verb::Swap));
    bench.say(1, swapped(&start, 1));
    let stopped = bench.ask(process(Verb::Stop));
    let ensured = bench.ask(process(Verb::Ensure));
    let kinds = bench.kinds();
    assert!(kinds.contains(&(stopped, None)));
    assert!(kinds.contains(&(ensured, Some(ErrorKind::Gone))));
    bench.told();
    bench.ask(process(Verb::Create));
    let again = bench.started();
    assert!(
        again.life == again.incarnation,
        "its images are of another life"
    );
    bench.say(1, FromAgent::Report(report(&again, ProcessState::Failed)));
    bench.ask(process(Verb::SwapIn));
    assert_eq!(bench.started().life, again.life);
}

#[test]
fn nothing_begins_from_what_is_half_deleted_nor_is_deleted_of_a_new_life() {
    let mut bench = Bench::new();
    let start = bench.ready();
    bench.ask(process(Verb::Swap));
    bench.say(1, swapped(&start, 1));
    bench.told();
    bench.ask(process(Verb::Delete));
    let request = match bench.told().as_slice() {
        [(1, ToAgent::DeleteImages { request, below, .. })] if *below == 2 => *request,
        other => panic!("{other:?}"),
    };
    assert_eq!(bench.show().state, ProcessState::Gone);
    let result = Err("the storage failed".into());
    bench.say(1, FromAgent::Answer { request, result });
    bench.ask(process(Verb::Create));
    let again = bench.started();
    assert_eq!((again.life, again.swap_generation), (2, 0));
}

#[test]
fn deleting_stops_the_host_then_deletes_the_images() {
    let mut bench = Bench::new();
    let start = bench.ready();
    bench.ask(process(Verb::Swap));
    bench.say(1, swapped(&start, 1));
    bench.ask(process(Verb::SwapIn));
    bench.told();
    bench.answers();
    let again = StartCommand {
        incarnation: 2,
        ..start
    };
    bench.say(1, FromAgent::Report(report(&again, ProcessState::Ready)));
    bench.answers();
    let id = bench.ask(process(Verb::Delete));
    let request = match bench.told().as_slice() {
        [(1, ToAgent::Stop(command))] => command.request,
        other => panic!("{other:?}"),
    };
    bench.say(1, FromAgent::Report(report(&again, ProcessState::Gone)));
    bench.say(
        1,
        FromAgent::Answer {
            request,
            result: Ok(()),
        },
    );
    let request = match bench.told().as_slice() {
        [(1, ToAgent::DeleteImages { request, .. })] => *request,
        other => panic!("{other:?}"),
    };
    assert_eq!(bench.answers(), vec![]);
    bench.say(
        1,
        FromAgent::Answer {
            request,
            result: Ok(()),
        },
    );
    assert_eq!(bench.answers(), vec![(id, Ok(Reply::Done))]);
    bench.ask(Request::ApplicationDelete("a".into()));
    assert!(bench.answers().iter().all(|(_, result)| result.is_ok()));
}

#[test]
fn an_application_is_deleted_with_what_its_processes_have_left() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let refused = bench.ask(Request::ApplicationDelete("a".into()));
    assert_eq!(bench.kinds(), vec![(refused, Some(ErrorKind::Conflict))]);
    bench.ask(process(Verb::Stop));
    bench.say(1, FromAgent::Report(report(&start, ProcessState::Gone)));
    bench.told();
    bench.answers();
    let request = |bench: &mut Bench| match bench.told().as_slice() {
        [(1, ToAgent::DeleteImages { request, .. })] => *request,
        other => panic!("{other:?}"),
    };
    let failed = bench.ask(Request::ApplicationDelete("a".into()));
    let also = bench.ask(Request::ApplicationDelete("a".into()));
    let (number, result) = (request(&mut bench), Err("the storage failed".into()));
    let answer = |request, result| FromAgent::Answer { request, result };
    bench.say(1, answer(number, result));
    let why = Some(ErrorKind::ProcessFailed);
    assert_eq!(bench.kinds(), vec![(failed, why), (also, why)]);
    // Who does not wait is told that it goes on, which it does.
    let asked = bench.ask_wait(Request::ApplicationDelete("a".into()), 0);
    assert_eq!(bench.kinds(), vec![(asked, Some(ErrorKind::Timeout))]);
    let deleted = bench.ask(Request::ApplicationDelete("a".into()));
    assert_eq!(bench.kinds(), vec![]);
    let number = request(&mut bench);
    bench.say(1, answer(number, Ok(())));
    assert_eq!(bench.answers(), vec![(deleted, Ok(Reply::Done))]);
    assert!(bench.registry.app("a").is_err());
    assert_eq!(bench.registry.process_count, 0);
}

/// It may have written one of which nobody has heard.
#[test]
fn what_has_served_is_deleted_with_its_images() {
    let mut bench = Bench::new();
    let start = bench.ready();
    bench.ask(process(Verb::Stop));
    bench.say(1, FromAgent::Report(report(&start, ProcessState::Gone)));
    bench.told();
    bench.ask(process(Verb::Delete));
    assert!(matches!(
        bench.told().as_slice(),
        [(1, ToAgent::DeleteImages { .. })]
    ));
}

#[test]
fn an_agent_that_is_away_keeps_its_processes() {
    let mut bench = Bench::new();
    let start = bench.ready();
    bench.hello(2, "other", vec![]);
    bench.handle(Event::Lost { link: 1 });
    assert!(!bench.show().confirmed);
    let id = bench.ask(process(Verb::Ensure));
    assert_eq!(
        bench.told(),
        vec![],
        "no second start while the first may live"
    );
    bench.hello(3, "n", vec![report(&start, ProcessState::Ready)]);
    assert_eq!(bench.kinds(), vec![(id, None)]);
    assert!(bench.show().confirmed);
    bench.handle(Event::Lost { link: 3 });
    let id = bench.ask(process(Verb::Ensure));
    bench.hello(4, "n", vec![]);
    let again = bench.started();
    assert_eq!(again.incarnation, 2);
    bench.say(4, FromAgent::Report(report(&again, ProcessState::Ready)));
    bench.say(2, FromAgent::Report(report(&again, ProcessState::Ready)));
    assert_eq!(bench.kinds(), vec![(id, None)]);
}

#[test]
fn a_node_that_is_silent_for_too_long_is_dead_and_no_sooner() {
    let mut bench = Bench::new();
    bench.registry.limits.lease_ms = 1_000;
    bench.ready();
    bench.now = 5_000;
    bench.handle(Event::Lost { link: 1 });
    bench.hello(2, "m", vec![]);
    let waits = bench.ask_wait(process(Verb::Ensure), 60_000);
    bench.now = 5_999;
    bench.handle(Event::Tick);
    assert_eq!(bench.told(), vec![]);
    assert_eq!(bench.registry.deadline_next(), Some(6_000));
    bench.now = 6_000;
    bench.handle(Event::Tick);
    let start = bench.started();
    assert_eq!(start.incarnation, 2);
    assert!(
        start.life == 1,
        "its host may have swapped out when it missed its agent"
    );
    bench.say(2, FromAgent::Report(report(&start, ProcessState::Ready)));
    assert_eq!(bench.kinds(), vec![(waits, None)]);
    bench.now = 9_000;
    bench.handle(Event::Tick);
    assert_eq!(bench.show().state, ProcessState::Ready);
    assert_eq!(bench.registry.deadline_next(), None);
}

#[test]
fn what_was_being_stopped_on_a_node_that_died_is_stopped() {
    let mut bench = Bench::new();
    bench.registry.limits.lease_ms = 1_000;
    bench.ready();
    let stop = bench.ask_wait(process(Verb::Stop), 60_000);
    bench.handle(Event::Lost { link: 1 });
    bench.now = 1_000;
    bench.handle(Event::Tick);
    assert_eq!(bench.kinds(), vec![(stop, None)]);
    assert_eq!(bench.show().state, ProcessState::Gone);
}

#[test]
fn a_failed_start_says_why_and_can_be_tried_again() {
    let mut bench = Bench::new();
    bench.hello(1, "n", vec![]);
    let id = bench.ask(process(Verb::Create));
    let start = bench.started();
    let result = Err("no such module".into());
    bench.say(
        1,
        FromAgent::Answer {
            request: start.request,
            result,
        },
    );
    match bench.answers().as_slice() {
        [(answered, Err(failure))] => {
            assert_eq!((*answered, failure.kind), (id, ErrorKind::StartFailed));
            assert!(failure.detail.contains("no such module"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.show().error.as_deref(), Some("no such module"));
    bench.ask(process(Verb::SwapIn));
    assert_eq!(bench.started().incarnation, 2);
}

#[test]
fn agents_ask_for_processes_and_get_the_world() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let resolve = |request, process: &str, ensure| FromAgent::Resolve {
        request,
        application: "a".into(),
        process: process.into(),
        ensure,
    };
    bench.told();
    bench.say(1, resolve(5, "p", false));
    bench.say(1, resolve(6, "q", true));
    let told = bench.told();
    assert!(
        matches!(&told[0].1, ToAgent::Resolved { request: 5, result: Ok(found) }
        if found.incarnation == start.incarnation)
    );
    assert!(
        matches!(&told[1].1, ToAgent::Resolved { request: 6, result: Err(failure) }
        if failure.kind == ErrorKind::NotFound)
    );
    bench.now += 1_000;
    bench.handle(Event::Tick);
    let world = bench.actions.iter().find_map(|action| match action {
        Action::Tell {
            message:
                ToAgent::World {
                    generation,
                    members,
                    ..
                },
            ..
        } => Some((*generation, members.clone())),
        _ => None,
    });
    let (generation, members) = world.unwrap();
    assert_eq!(members[0].state, ProcessState::Ready);
    assert_eq!(generation, bench.registry.app("a").unwrap().generation);
}

#[test]
fn an_agent_must_say_hello_first_and_once() {
    let mut bench = Bench::new();
    bench.say(
        1,
        FromAgent::Answer {
            request: 1,
            result: Ok(()),
        },
    );
    assert!(bench.actions.contains(&Action::Drop { link: 1 }));
    bench.hello(2, "n", vec![]);
    bench.hello(2, "n", vec![]);
    assert!(bench.actions.contains(&Action::Drop { link: 2 }));
    assert_eq!(bench.registry.agent_count(), 0);
}

#[test]
fn revoking_raises_the_key_id_and_tells_the_agents() {
    let mut bench = Bench::new();
    bench.hello(1, "n", vec![]);
    bench.actions.clear();
    bench.ask(Request::KeyRevoke {
        application: "a".into(),
        secret: Secret::from_bytes([8; 32]),
    });
    assert!(bench.actions.iter().any(|action| matches!(action,
        Action::Tell { message: ToAgent::Applications(keys), .. } if keys[0].key_id == 2)));
    let id = bench.ask(Request::KeyShow("a".into()));
    let key = Reply::Key(2, Secret::from_bytes([8; 32]));
    assert!(bench.answers().contains(&(id, Ok(key))));
}

#[test]
fn tokens_end_with_their_application() {
    let mut bench = Bench::new();
    let token = TokenRecord {
        hash: [4; 32],
        application: Some("a".into()),
        label: String::new(),
        created_unix_ms: 0,
    };
    bench.ask(Request::TokenCreate(token));
    bench.actions.clear();
    bench.ask(Request::ApplicationDelete("a".into()));
    let removed = Action::Persist(Change::TokenRemoved([4; 32]));
    assert!(bench.actions.contains(&removed));
    bench.answers();
    let id = bench.ask(Request::TokenDelete("0404040404040404".into()));
    assert_eq!(bench.kinds(), vec![(id, Some(ErrorKind::NotFound))]);
}

#[test]
fn limits_hold() {
    let mut bench = Bench::new();
    bench.registry.limits.applications_max = 1;
    bench.registry.limits.processes_max = 1;
    bench.registry.limits.waiters_max = 1;
    let app = bench.ask(create("b"));
    let first = bench.ask(process(Verb::Create));
    let second = bench.ask(process(Verb::Ensure));
    let other = bench.ask(Request::Process {
        application: "a".into(),
        process: "q".into(),
        verb: Verb::Create,
    });
    let limited = |id| (id, Some(ErrorKind::LimitReached));
    assert_eq!(
        bench.kinds(),
        vec![limited(app), limited(second), limited(other)]
    );
    bench.now = 10_000;
    bench.handle(Event::Tick);
    assert_eq!(bench.kinds(), vec![(first, Some(ErrorKind::NoAgent))]);
}

#[test]
fn processes_spread_over_nodes_by_their_processors() {
    let mut bench = Bench::new();
    bench.hello(1, "small", vec![]);
    bench.say(
        2,
        FromAgent::Hello {
            node: "large".into(),
            cpus: 12,
            memory_bytes: 0,
            inventory: vec![],
        },
    );
    let mut links = [0, 0];
    for at in 0..8 {
        bench.ask(Request::Process {
            application: "a".into(),
            process: format!("p{at}"),
            verb: Verb::Create,
        });
        let (link, _) = bench.told()[0];
        links[link as usize - 1] += 1;
    }
    assert_eq!(links, [2, 6]);
}
