//! What a control plane finds that has just a store: its own, or an older one that was put back.

use super::tests::{Bench, limits, process, report, swapped};
use super::{Action, Event, Limits, Registry, Request, Verb};
use crate::agent::{FromAgent, HostReport, HostTransfer, StartCommand, ToAgent};
use crate::api::ProcessState;
use crate::error::ErrorKind;
use crate::store::{Change, Snapshot};
use praas_transport::Secret;

/// The same process as a host that was started later, of which the store does not know.
fn later(start: &StartCommand) -> StartCommand {
    StartCommand {
        incarnation: 9,
        life: 8,
        ..start.clone()
    }
}

fn stops(told: &[(u64, ToAgent)]) -> Vec<(u64, u64)> {
    let stops = told.iter().filter_map(|(link, message)| match message {
        ToAgent::Stop(command) => Some((*link, command.incarnation)),
        _ => None,
    });
    stops.collect()
}

#[test]
fn a_later_host_is_taken_though_its_process_seems_to_live() {
    let mut bench = Bench::new();
    let start = bench.ready();
    bench.handle(Event::Lost { link: 1 });
    let asked = bench.ask_wait(process(Verb::Ensure), 60_000);
    let found = HostReport {
        swap_generation: 4,
        ..report(&later(&start), ProcessState::Ready)
    };
    bench.hello(2, "m", vec![found]);
    assert_eq!(bench.told(), vec![]);
    assert_eq!(bench.kinds(), vec![(asked, None)]);
    let shown = bench.show();
    assert_eq!((shown.incarnation, shown.swap_generation), (9, 4));
    assert_eq!(shown.node.as_deref(), Some("m"));
    // What the store knew of is not the process any more, should it be there.
    bench.hello(3, "n", vec![report(&start, ProcessState::Ready)]);
    assert_eq!(stops(&bench.told()), [(3, 1)]);
    assert_eq!(bench.show().incarnation, 9);
    bench.say(
        2,
        FromAgent::Report(report(&later(&start), ProcessState::Failed)),
    );
    bench.ask(process(Verb::SwapIn));
    assert_eq!(bench.started().life, 8);
}

#[test]
fn a_later_host_on_the_same_node_is_taken() {
    let mut bench = Bench::new();
    let start = bench.ready();
    bench.handle(Event::Lost { link: 1 });
    bench.hello(
        2,
        "n",
        vec![report(&later(&start), ProcessState::Quiescing)],
    );
    assert_eq!(bench.told(), vec![]);
    assert_eq!(bench.show().incarnation, 9);
    bench.say(2, swapped(&later(&start), 3));
    let shown = bench.show();
    assert_eq!(
        (shown.state, shown.swap_generation),
        (ProcessState::Swapped, 3)
    );
}

#[test]
fn who_is_superseded_while_it_starts_or_stops_is_stopped() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let stop = bench.ask_wait(process(Verb::Stop), 60_000);
    bench.told();
    bench.hello(2, "m", vec![report(&later(&start), ProcessState::Ready)]);
    // Who wants it stopped wants it of what is the process.
    assert_eq!(stops(&bench.told()), [(1, 1), (2, 9)]);
    bench.say(1, FromAgent::Report(report(&start, ProcessState::Gone)));
    assert_eq!(bench.answers(), vec![]);
    bench.say(
        2,
        FromAgent::Report(report(&later(&start), ProcessState::Gone)),
    );
    assert_eq!(bench.kinds(), vec![(stop, None)]);
}

/// It may be there for a transfer that was called off, and not have said so.
#[test]
fn a_later_host_that_only_starts_is_neither_taken_nor_stopped() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let found = HostReport {
        addresses: vec![],
        ..report(&later(&start), ProcessState::Starting)
    };
    bench.hello(2, "m", vec![found.clone()]);
    assert_eq!((bench.told(), bench.show().incarnation), (vec![], 1));
    // One that was stopped before it served is none either.
    let state = ProcessState::Quiescing;
    bench.say(2, FromAgent::Report(HostReport { state, ..found }));
    assert_eq!((bench.told(), bench.show().incarnation), (vec![], 1));
    let fetches = HostReport {
        transfer: HostTransfer::Prepared,
        ..report(&later(&start), ProcessState::Starting)
    };
    bench.say(2, FromAgent::Report(fetches));
    assert_eq!(stops(&bench.told()), [(2, 9)]);
    assert_eq!(bench.show().incarnation, 1);
}

#[test]
fn what_is_found_while_images_are_deleted_is_deleted_with_its_own() {
    let mut bench = Bench::new();
    let start = bench.ready();
    bench.ask(process(Verb::Stop));
    bench.say(1, FromAgent::Report(report(&start, ProcessState::Gone)));
    bench.told();
    bench.answers();
    let deleted = bench.ask_wait(process(Verb::Delete), 60_000);
    let delete = |bench: &mut Bench| match bench.told().as_slice() {
        [(link, ToAgent::DeleteImages { request, below, .. })] => (*link, *request, *below),
        other => panic!("{other:?}"),
    };
    let (link, request, _) = delete(&mut bench);
    let starting = HostReport {
        addresses: vec![],
        ..report(&later(&start), ProcessState::Starting)
    };
    bench.hello(2, "m", vec![starting]);
    let result = Ok(());
    bench.say(link, FromAgent::Answer { request, result });
    assert_eq!(stops(&bench.told()), [(2, 9)]);
    bench.say(
        2,
        FromAgent::Report(report(&later(&start), ProcessState::Gone)),
    );
    let (link, request, below) = delete(&mut bench);
    assert_eq!(below, 10);
    assert_eq!(bench.answers(), vec![]);
    let result = Ok(());
    bench.say(link, FromAgent::Answer { request, result });
    assert_eq!(bench.kinds(), vec![(deleted, None)]);
}

#[test]
fn after_a_restart_processes_are_found_again() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let mut snapshot = Snapshot::default();
    for action in &bench.actions {
        match action {
            Action::Persist(Change::Application(record)) => {
                snapshot.applications.push(record.clone());
            }
            Action::Persist(Change::Process(record)) => snapshot.processes = vec![record.clone()],
            Action::Persist(Change::Generation(name, generation)) => {
                snapshot.generations = vec![(name.clone(), *generation)];
            }
            _ => {}
        }
    }
    let generation = snapshot.generations[0].1;
    bench.registry = Registry::restore(limits(), snapshot, 1_000, bench.now);
    bench.actions.clear();
    let shown = bench.show();
    assert_eq!((shown.state, shown.confirmed), (ProcessState::Ready, false));
    bench.ask(process(Verb::Ensure));
    bench.hello(7, "m", vec![]);
    assert_eq!(bench.told(), vec![]);
    bench.hello(8, "n", vec![report(&start, ProcessState::Ready)]);
    assert_eq!(bench.told(), vec![]);
    assert_eq!(bench.answers().len(), 1);
    assert!(bench.registry.app("a").unwrap().generation > generation);
}

#[test]
fn a_restarted_control_plane_waits_a_whole_lease() {
    let mut bench = Bench::new();
    bench.ready();
    let mut records = bench.actions.iter().filter_map(|action| match action {
        Action::Persist(Change::Process(record)) => Some(record.clone()),
        _ => None,
    });
    let snapshot = Snapshot {
        applications: vec![bench.registry.app("a").unwrap().record.clone()],
        processes: records.next_back().into_iter().collect(),
        ..Snapshot::default()
    };
    let limits = Limits {
        lease_ms: 1_000,
        ..limits()
    };
    bench.now = 7_000;
    bench.registry = Registry::restore(limits, snapshot, 1_000, bench.now);
    assert_eq!(bench.registry.deadline_next(), Some(8_000));
    bench.now = 7_999;
    bench.handle(Event::Tick);
    assert_eq!(bench.show().state, ProcessState::Ready);
    bench.now = 8_000;
    bench.handle(Event::Tick);
    assert_eq!(bench.show().state, ProcessState::Failed);
}

#[test]
fn a_node_that_was_declared_dead_and_comes_back_loses_what_was_replaced() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let refused = bench.ask(Request::NodeForget("n".into()));
    assert_eq!(bench.kinds(), vec![(refused, Some(ErrorKind::Conflict))]);
    bench.handle(Event::Lost { link: 1 });
    bench.ask(Request::NodeForget("n".into()));
    assert_eq!(bench.show().state, ProcessState::Failed);
    bench.hello(2, "m", vec![]);
    bench.ask(process(Verb::Ensure));
    assert_eq!(bench.started().incarnation, 2);
    bench.hello(3, "n", vec![report(&start, ProcessState::Ready)]);
    match bench.told().as_slice() {
        [(3, ToAgent::Stop(command))] => assert_eq!(command.incarnation, 1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hosts_that_nobody_knows_are_found_or_saved() {
    let mut bench = Bench::new();
    let mut known = report(
        &StartCommand {
            request: 0,
            application: "a".into(),
            process: "found".into(),
            incarnation: 900,
            modules: vec![],
            settings: "{}".into(),
            key_id: 1,
            secret: Secret::from_bytes([1; 32]),
            life: 900,
            swap_generation: 0,
            swapped: false,
            from: None,
        },
        ProcessState::Ready,
    );
    let mut foreign = known.clone();
    foreign.application = "zzz".into();
    known.swap_generation = 3;
    known.life = 880;
    bench.hello(1, "n", vec![known.clone(), foreign]);
    assert!(matches!(bench.told().as_slice(),
        [(1, ToAgent::SwapOut(command))] if command.application == "zzz"));
    bench.ask(process(Verb::Create));
    assert_eq!(bench.started().incarnation, 901, "above all that was seen");
    // It comes back to what is of its own life.
    known.state = ProcessState::Failed;
    bench.say(1, FromAgent::Report(known));
    bench.ask(Request::Process {
        application: "a".into(),
        process: "found".into(),
        verb: Verb::Ensure,
    });
    assert_eq!(bench.started().life, 880);
}

/// The database was put back from a copy, in which the process is of an earlier life.
#[test]
fn a_host_of_a_later_life_owes_nothing_to_images_of_before() {
    let mut bench = Bench::new();
    let start = bench.ready();
    bench.ask(process(Verb::Swap));
    bench.say(1, swapped(&start, 10));
    let later = StartCommand {
        incarnation: 9,
        life: 8,
        ..start
    };
    bench.say(1, FromAgent::Report(report(&later, ProcessState::Ready)));
    bench.say(1, FromAgent::Report(report(&later, ProcessState::Failed)));
    bench.told();
    bench.ask(process(Verb::Ensure));
    let again = bench.started();
    assert_eq!((again.life, again.swap_generation), (8, 0));
}

#[test]
fn an_answer_to_an_earlier_control_plane_is_not_taken_for_this_ones() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let mut records = bench.actions.iter().filter_map(|action| match action {
        Action::Persist(Change::Process(record)) => Some(record.clone()),
        _ => None,
    });
    let snapshot = Snapshot {
        applications: vec![bench.registry.app("a").unwrap().record.clone()],
        processes: records.next_back().into_iter().collect(),
        ..Snapshot::default()
    };
    bench.registry = Registry::restore(limits(), snapshot, 1_000, bench.now);
    bench.hello(9, "n", vec![report(&start, ProcessState::Ready)]);
    bench.answers();
    bench.ask(process(Verb::Stop));
    assert!(matches!(bench.told().as_slice(), [(9, ToAgent::Stop(_))]));
    let request = start.request;
    bench.say(
        9,
        FromAgent::Answer {
            request,
            result: Ok(()),
        },
    );
    assert_eq!(bench.answers(), vec![], "the host still lives");
    assert_eq!(bench.show().state, ProcessState::Quiescing);
}
