//! Transfers in which something else happens, case by case.

use super::tests::{Bench, limits, process, report, spec, swapped};
use super::{Action, Event, Registry, Reply, Request, Verb};
use crate::agent::{FromAgent, HostReport, HostTransfer, StartCommand, ToAgent};
use crate::api::{ProcessState, Settings};
use crate::error::ErrorKind;
use crate::store::{Change, Snapshot};
use praas_transport::Secret;

/// The links of the nodes that a process goes from and to.
const FROM: u64 = 1;
const TO: u64 = 2;

fn transfer() -> Request {
    Request::ProcessTransfer {
        application: "a".into(),
        process: "p".into(),
        to: None,
    }
}

/// A report of a host that lives.
fn said(start: &StartCommand, state: ProcessState, transfer: HostTransfer) -> FromAgent {
    FromAgent::Report(HostReport {
        transfer,
        ..report(start, state)
    })
}

fn prepared(target: &StartCommand) -> FromAgent {
    said(target, ProcessState::Starting, HostTransfer::Prepared)
}

fn word(message: &ToAgent) -> &'static str {
    match message {
        ToAgent::Start(_) => "start",
        ToAgent::SwapOut(_) => "swap",
        ToAgent::Stop(_) => "stop",
        ToAgent::DeleteImages { .. } => "delete",
        ToAgent::TransferOut(_) => "out",
        ToAgent::TransferThaw(_) => "thaw",
        ToAgent::TransferServe(_) => "serve",
        _ => "other",
    }
}

/// A bench whose process is on its way from node n to node m.
struct Moving {
    bench: Bench,
    source: StartCommand,
    target: StartCommand,
    asked: u64,
}

impl Moving {
    /// The target is told to start, the source is frozen.
    fn begin(settings: &str) -> Self {
        let mut spec = spec("a");
        spec.settings = serde_json::from_str::<Settings>(settings).unwrap();
        let mut bench = Bench::with(Request::ApplicationCreate {
            spec,
            secret: Secret::from_bytes([1; 32]),
            now_unix_ms: 5,
        });
        bench.registry.limits.lease_ms = 5_000;
        let source = bench.ready();
        bench.hello(TO, "m", vec![]);
        let asked = bench.ask_wait(transfer(), 1_000_000);
        assert!(matches!(
            bench.told().as_slice(),
            [(FROM, ToAgent::TransferOut(_))]
        ));
        bench.say(
            FROM,
            said(&source, ProcessState::Ready, HostTransfer::Sending),
        );
        let target = bench.started();
        bench.say(
            TO,
            said(&target, ProcessState::Starting, HostTransfer::Receiving),
        );
        bench.say(
            FROM,
            said(&source, ProcessState::Quiescing, HostTransfer::Frozen),
        );
        assert_eq!(bench.told(), vec![]);
        Self {
            bench,
            source,
            target,
            asked,
        }
    }

    /// The target has everything, and is told to serve.
    fn committed(settings: &str) -> Self {
        let mut moving = Self::begin(settings);
        moving.bench.say(TO, prepared(&moving.target));
        assert_eq!(moving.words(), [(TO, "serve")]);
        moving
    }

    fn words(&mut self) -> Vec<(u64, &'static str)> {
        let told = self.bench.told();
        let words = told.iter().map(|(link, message)| (*link, word(message)));
        words.collect()
    }

    fn source_says(&mut self, state: ProcessState) {
        let said = FromAgent::Report(report(&self.source, state));
        self.bench.say(FROM, said);
    }

    fn target_says(&mut self, state: ProcessState) {
        let said = FromAgent::Report(report(&self.target, state));
        self.bench.say(TO, said);
    }

    /// Answers the last command of the source's agent, which is to be `word`.
    fn source_answers(&mut self, word_wanted: &str, result: Result<(), String>) {
        let told = self.bench.told();
        let request = match told.as_slice() {
            [(FROM, message @ (ToAgent::SwapOut(command) | ToAgent::Stop(command)))]
                if word(message) == word_wanted =>
            {
                command.request
            }
            other => panic!("{other:?}"),
        };
        self.bench.say(FROM, FromAgent::Answer { request, result });
    }

    /// Time passes, in which whatever is due is done.
    fn pass(&mut self, ms: u64) {
        let until = self.bench.now + ms;
        let due = |bench: &Bench| bench.registry.deadline_next();
        while let Some(at) = due(&self.bench).filter(|at| *at <= until) {
            self.bench.now = self.bench.now.max(at);
            self.bench.handle(Event::Tick);
        }
        self.bench.now = until;
        self.bench.handle(Event::Tick);
    }

    /// A control plane that has only what was stored; no agent has connected.
    fn restart(&mut self) {
        let snapshot = stored(&self.bench.actions);
        let limits = self.bench.registry.limits.clone();
        let now = self.bench.now;
        self.bench.registry = Registry::restore(limits, snapshot, 100_000, now);
        self.bench.told();
        self.bench.answers();
    }

    fn is_over(&self) -> bool {
        self.bench.registry.transfers.is_empty()
    }
}

/// What a store has that was told of all this.
fn stored(actions: &[Action]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for action in actions {
        let Action::Persist(change) = action else {
            continue;
        };
        match change.clone() {
            Change::Application(record) => snapshot.applications = vec![record],
            Change::Process(record) => snapshot.processes = vec![record],
            Change::ProcessRemoved(..) => snapshot.processes.clear(),
            Change::Transfer(record) => snapshot.transfers = vec![record],
            Change::TransferRemoved(..) => snapshot.transfers.clear(),
            Change::IncarnationNext(next) => snapshot.incarnation_next = next,
            _ => {}
        }
    }
    snapshot
}

const ALWAYS: &str = r#"{"restart": "always"}"#;

#[test]
fn nothing_starts_by_itself_while_the_target_may_be_the_process() {
    let mut moving = Moving::begin(ALWAYS);
    moving.source_says(ProcessState::Failed);
    moving.pass(60_000);
    assert_eq!(moving.words(), [], "the target may have everything");
    moving.bench.say(TO, prepared(&moving.target));
    assert_eq!(moving.words(), [(TO, "serve")]);
    moving.target_says(ProcessState::Ready);
    assert_eq!(moving.bench.kinds(), [(moving.asked, None)]);
    assert!(moving.is_over());
    assert_eq!(moving.bench.show().incarnation, moving.target.incarnation);
}

#[test]
fn nothing_starts_by_itself_while_the_source_is_rescued() {
    let mut moving = Moving::committed(ALWAYS);
    moving.target_says(ProcessState::Failed);
    moving.pass(60_000);
    assert_eq!(moving.words(), [(FROM, "swap")]);
    moving.bench.say(FROM, swapped(&moving.source, 7));
    assert!(moving.is_over());
    assert_eq!(moving.bench.show().state, ProcessState::Swapped);
    moving.bench.ask(process(Verb::Ensure));
    let again = moving.bench.started();
    assert!(again.life == 1 && again.swap_generation == 7);
}

#[test]
fn what_was_left_without_an_image_starts_by_itself_once_the_transfer_is_over() {
    let mut moving = Moving::committed(ALWAYS);
    moving.target_says(ProcessState::Failed);
    assert_eq!(moving.words(), [(FROM, "swap")]);
    moving.source_says(ProcessState::Failed);
    moving.pass(60_000);
    assert_eq!(moving.bench.started().incarnation, 3);
}

#[test]
fn nothing_starts_by_itself_after_a_restart_in_the_middle_of_a_transfer() {
    let mut moving = Moving::begin(ALWAYS);
    moving.source_says(ProcessState::Failed);
    moving.restart();
    moving.pass(3_000);
    moving.bench.hello(3, "n", vec![]);
    assert_eq!(moving.words(), []);
    let told = HostReport {
        transfer: HostTransfer::Prepared,
        ..report(&moving.target, ProcessState::Starting)
    };
    moving.bench.hello(4, "m", vec![told]);
    assert_eq!(moving.words(), [(4, "serve")]);
}

#[test]
fn an_image_of_the_source_that_was_written_before_the_target_failed_is_used() {
    let mut moving = Moving::committed("{}");
    // The source's agent is stopped, and has all its hosts swap out.
    moving.bench.say(FROM, swapped(&moving.source, 7));
    assert_eq!(moving.words(), []);
    moving.target_says(ProcessState::Failed);
    assert!(moving.is_over());
    assert_eq!(moving.bench.show().state, ProcessState::Swapped);
    moving.bench.ask(process(Verb::Ensure));
    let again = moving.bench.started();
    assert!(again.life == 1 && again.swap_generation == 7);
    assert!(!again.swapped, "the target may have served");
}

#[test]
fn an_image_of_the_source_is_known_of_after_a_restart() {
    let mut moving = Moving::committed("{}");
    moving.bench.say(FROM, swapped(&moving.source, 7));
    moving.restart();
    moving.bench.hello(3, "n", vec![]);
    moving.bench.hello(4, "m", vec![]);
    assert!(moving.is_over());
    moving.bench.told();
    moving.bench.ask(process(Verb::SwapIn));
    let again = moving.bench.started();
    assert!(again.life == 1 && again.swap_generation == 7);
}

#[test]
fn a_rescue_ends_once_the_target_is_known_to_have_left_an_image() {
    let mut moving = Moving::committed("{}");
    moving.bench.handle(Event::Lost { link: TO });
    moving.pass(10_000);
    // The target was heard by nobody, served, and wrote an image: the source's would be older.
    moving.source_answers("swap", Err("it is fenced".into()));
    moving.pass(1_000);
    moving.source_answers("swap", Err("it is fenced".into()));
    let image = HostReport {
        swap_generation: 8,
        ..report(&moving.target, ProcessState::Swapped)
    };
    moving.bench.hello(3, "m", vec![image]);
    moving.source_answers("stop", Ok(()));
    assert!(moving.is_over());
    assert_eq!(moving.bench.show().state, ProcessState::Swapped);
    moving.bench.ask(process(Verb::Ensure));
    let again = moving.bench.started();
    assert!(again.life == 1 && again.swap_generation == 8);
}

#[test]
fn a_rescue_ends_with_a_source_that_finds_itself_fenced() {
    let mut moving = Moving::committed("{}");
    moving.bench.handle(Event::Lost { link: TO });
    moving.pass(10_000);
    assert_eq!(moving.words(), [(FROM, "swap")]);
    moving.source_says(ProcessState::Failed);
    assert!(moving.is_over());
    moving.bench.ask(process(Verb::Ensure));
    assert_eq!(moving.bench.started().life, 1, "the target's image");
}

#[test]
fn a_target_that_may_be_all_there_is_survives_the_end_of_its_agents_link() {
    let mut moving = Moving::begin("{}");
    moving.source_says(ProcessState::Failed);
    moving.bench.handle(Event::Lost { link: TO });
    moving.pass(1_000);
    // The agent dials once more before the end of its link is seen.
    let receiving = HostReport {
        transfer: HostTransfer::Receiving,
        ..report(&moving.target, ProcessState::Starting)
    };
    moving.bench.hello(3, "m", vec![receiving]);
    let told = HostReport {
        transfer: HostTransfer::Prepared,
        ..report(&moving.target, ProcessState::Starting)
    };
    moving.bench.hello(4, "m", vec![told]);
    assert_eq!(moving.words(), [(4, "serve")]);
    assert_eq!(moving.bench.kinds(), []);
}

#[test]
fn a_target_that_may_be_all_there_is_is_given_up_if_it_is_gone() {
    let mut moving = Moving::begin("{}");
    moving.source_says(ProcessState::Failed);
    moving.bench.handle(Event::Lost { link: TO });
    moving.bench.hello(3, "m", vec![]);
    assert!(moving.is_over());
    let failed = Some(ErrorKind::ProcessFailed);
    assert_eq!(moving.bench.kinds(), [(moving.asked, failed)]);
}

#[test]
fn a_target_that_may_be_all_there_is_is_given_up_with_its_nodes_lease() {
    let mut moving = Moving::begin("{}");
    moving.source_says(ProcessState::Failed);
    moving.bench.handle(Event::Lost { link: TO });
    moving.pass(4_999);
    assert!(!moving.is_over());
    moving.pass(1);
    assert!(moving.is_over());
    let failed = Some(ErrorKind::ProcessFailed);
    assert_eq!(moving.bench.kinds(), [(moving.asked, failed)]);
}

#[test]
fn a_target_of_what_is_another_incarnation_by_now_is_not_committed() {
    let mut moving = Moving::begin("{}");
    moving.source_says(ProcessState::Failed);
    // A node that was not heard of for long has a newer one than anybody knew.
    let newer = StartCommand {
        incarnation: 9,
        ..moving.source.clone()
    };
    moving
        .bench
        .hello(3, "o", vec![report(&newer, ProcessState::Ready)]);
    assert_eq!(moving.words(), [(TO, "stop")]);
    moving.bench.say(TO, prepared(&moving.target));
    assert_eq!(moving.words(), [(TO, "stop")]);
    assert_eq!(moving.bench.show().incarnation, 9);
    assert!(moving.is_over());
}

#[test]
fn a_transfer_whose_source_lives_ends_with_the_targets_link() {
    let mut moving = Moving::begin("{}");
    moving.bench.handle(Event::Lost { link: TO });
    assert!(moving.is_over());
    assert_eq!(moving.words(), [(FROM, "thaw")]);
}

#[test]
fn a_process_is_stopped_while_its_source_cannot_be_rescued() {
    let mut moving = Moving::committed("{}");
    moving.target_says(ProcessState::Failed);
    moving.source_answers("swap", Err("storage is full".into()));
    moving.bench.answers();
    let stopped = moving.bench.ask(process(Verb::Stop));
    moving.source_answers("stop", Ok(()));
    assert_eq!(moving.bench.kinds(), [(stopped, None)]);
    assert!(moving.is_over());
    assert_eq!(moving.bench.show().state, ProcessState::Gone);
}

#[test]
fn an_application_stays_as_long_as_a_process_of_it_is_transferred() {
    let mut moving = Moving::committed("{}");
    let stopped = moving.bench.ask(process(Verb::Stop));
    moving.target_says(ProcessState::Gone);
    let (asked, conflict) = (moving.asked, Some(ErrorKind::Conflict));
    assert_eq!(
        moving.bench.kinds(),
        [(asked, conflict), (stopped, None)],
        "nobody waits on"
    );
    let refused = moving.bench.ask(Request::ApplicationDelete("a".into()));
    assert_eq!(moving.bench.kinds(), [(refused, conflict)]);
    moving.source_says(ProcessState::Gone);
    let deleted = moving.bench.ask(Request::ApplicationDelete("a".into()));
    let told = moving.bench.told();
    let [.., (link, ToAgent::DeleteImages { request, .. })] = told.as_slice() else {
        panic!("{told:?}");
    };
    let (request, result) = (*request, Ok(()));
    let answer = FromAgent::Answer { request, result };
    moving.bench.say(*link, answer);
    assert_eq!(moving.bench.kinds(), [(deleted, None)]);
}

#[test]
fn a_stored_transfer_of_a_process_that_is_not_stored_is_forgotten() {
    let moving = Moving::committed("{}");
    let snapshot = Snapshot {
        processes: vec![],
        ..stored(&moving.bench.actions)
    };
    assert_eq!(snapshot.transfers.len(), 1);
    let mut registry = Registry::restore(limits(), snapshot, 100_000, 0);
    let forgotten = Action::Persist(Change::TransferRemoved("a".into(), "p".into()));
    assert!(registry.handle(0, Event::Tick).contains(&forgotten));
    assert!(registry.transfers.is_empty());
}

#[test]
fn what_is_known_to_be_in_storage_is_known_after_a_transfer() {
    let mut moving = Moving::begin("{}");
    let sends = said(
        &moving.source,
        ProcessState::Quiescing,
        HostTransfer::Frozen,
    );
    let FromAgent::Report(sends) = sends else {
        panic!("no report");
    };
    let swap_generation = 7;
    let knows = FromAgent::Report(HostReport {
        swap_generation,
        ..sends
    });
    moving.bench.say(FROM, knows);
    moving.bench.say(TO, prepared(&moving.target));
    moving.target_says(ProcessState::Ready);
    let shown = moving.bench.show();
    assert_eq!((shown.incarnation, shown.swap_generation), (2, 7));
}

/// The database was put back from a copy of before the commit.
#[test]
fn a_target_that_serves_was_committed() {
    let mut moving = Moving::begin("{}");
    moving.restart();
    let target = report(&moving.target, ProcessState::Ready);
    moving.bench.hello(TO, "m", vec![target]);
    assert_eq!(moving.words(), []);
    let shown = moving.bench.show();
    assert_eq!((shown.incarnation, shown.state), (2, ProcessState::Ready));
    let source = said(
        &moving.source,
        ProcessState::Quiescing,
        HostTransfer::Frozen,
    );
    let FromAgent::Report(source) = source else {
        panic!("no report");
    };
    moving.bench.hello(FROM, "n", vec![source]);
    moving.source_answers("stop", Ok(()));
    assert!(moving.is_over());
}

/// The database was put back from a copy in which the process was on its way.
#[test]
fn a_host_of_after_a_transfer_ends_it() {
    let mut moving = Moving::begin("{}");
    let later = StartCommand {
        incarnation: 9,
        ..moving.source.clone()
    };
    moving
        .bench
        .hello(3, "o", vec![report(&later, ProcessState::Ready)]);
    // Nobody is told to serve on: the process is elsewhere.
    assert_eq!(moving.words(), [(FROM, "stop"), (TO, "stop")]);
    assert!(moving.is_over());
    assert_eq!(moving.bench.show().incarnation, 9);
    let refused = moving.bench.kinds();
    assert_eq!(refused, [(moving.asked, Some(ErrorKind::Conflict))]);
}

fn drain(node: &str, undo: bool) -> Request {
    Request::NodeDrain {
        node: node.into(),
        undo,
    }
}

/// Processes that serve on node n, which is to be drained, one at a time.
fn crowd(names: &[&str]) -> Bench {
    let mut bench = Bench::new();
    bench.registry.limits.drain_transfers_max = 1;
    bench.hello(FROM, "n", vec![]);
    for name in names {
        bench.ask(Request::Process {
            application: "a".into(),
            process: (*name).into(),
            verb: Verb::Create,
        });
        let start = bench.started();
        bench.say(FROM, FromAgent::Report(report(&start, ProcessState::Ready)));
    }
    bench.answers();
    bench
}

/// Who is asked to leave, and to where; it refuses.
fn refusal(bench: &mut Bench) -> Option<(String, String)> {
    let told = bench.told();
    let [(FROM, ToAgent::TransferOut(out))] = told.as_slice() else {
        assert!(
            told.iter().all(|(_, message)| word(message) == "thaw"),
            "{told:?}"
        );
        return None;
    };
    let transfer = bench.registry.transfers.first().unwrap().clone();
    let to = bench.registry.transfer(&transfer).unwrap();
    let asked = (out.process.clone(), to.record.to_node.clone());
    let (request, result) = (out.request, Err("a function does not end".into()));
    bench.say(FROM, FromAgent::Answer { request, result });
    bench.actions.retain(
        |action| !matches!(action, Action::Tell { message, .. } if word(message) == "thaw"),
    );
    Some(asked)
}

fn pass(bench: &mut Bench, ms: u64) {
    bench.now += ms;
    bench.handle(Event::Tick);
}

#[test]
fn what_cannot_be_moved_waits_longer_each_time_and_others_go_before_it() {
    let mut bench = crowd(&["p", "q", "r"]);
    bench.hello(TO, "m", vec![]);
    bench.ask(drain("n", false));
    let asked = |name: &str| Some((name.to_owned(), "m".to_owned()));
    for name in ["p", "q", "r"] {
        assert_eq!(refusal(&mut bench), asked(name));
        bench.now += 1;
    }
    assert_eq!(refusal(&mut bench), None);
    // Each has its own time: one, two and four seconds after the one before.
    for at in [1_000, 3_000, 7_000] {
        assert_eq!(bench.registry.drain_due(), Some(at));
        bench.now = at - 1;
        pass(&mut bench, 0);
        assert_eq!(refusal(&mut bench), None);
        for name in ["p", "q", "r"] {
            pass(&mut bench, 1);
            assert_eq!(refusal(&mut bench), asked(name), "{at}");
        }
    }
    // There is an end to that.
    bench.registry.limits.drain_retry_max_ms = 5_000;
    for _ in 0..3 {
        pass(&mut bench, 60_000);
        assert!(refusal(&mut bench).is_some());
    }
    assert_eq!(bench.registry.drain_due(), Some(bench.now + 5_000));
    // Once more by hand, all are tried at once.
    bench.ask(drain("n", true));
    bench.ask(drain("n", false));
    assert_eq!(refusal(&mut bench), asked("p"));
}

#[test]
fn another_node_is_tried_after_one_that_did_not_take_a_process() {
    let mut bench = crowd(&["p"]);
    bench.hello(TO, "m", vec![]);
    bench.hello(3, "o", vec![]);
    bench.ask(drain("n", false));
    for (node, wait_ms) in [("m", 1_000), ("o", 2_000), ("m", 4_000)] {
        assert_eq!(refusal(&mut bench), Some(("p".into(), node.into())));
        pass(&mut bench, wait_ms);
    }
    // If there is another.
    bench.handle(Event::Lost { link: TO });
    assert_eq!(refusal(&mut bench), Some(("p".into(), "o".into())));
    pass(&mut bench, 60_000);
    assert_eq!(refusal(&mut bench), Some(("p".into(), "o".into())));
}

#[test]
fn a_drained_node_is_not_empty_before_its_hosts_have_ended() {
    let mut moving = Moving::begin("{}");
    moving.bench.ask(drain("n", false));
    moving.bench.answers();
    let left = |moving: &mut Moving| {
        moving.bench.ask(Request::NodeList);
        match moving.bench.answers().pop() {
            Some((_, Ok(Reply::Nodes(nodes)))) => {
                let node = nodes.iter().find(|node| node.name == "n");
                node.unwrap().processes
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(left(&mut moving), 1);
    moving.bench.say(TO, prepared(&moving.target));
    assert_eq!(left(&mut moving), 1, "the target may fail to serve");
    moving.target_says(ProcessState::Ready);
    assert_eq!(left(&mut moving), 1, "its host is still there");
    moving.source_says(ProcessState::Gone);
    assert_eq!(left(&mut moving), 0);
}

#[test]
fn who_waits_for_a_node_gets_one_that_is_drained_no_more() {
    let mut bench = Bench::new();
    bench.hello(FROM, "n", vec![]);
    bench.ask(drain("n", false));
    bench.ask(process(Verb::Create));
    assert_eq!(bench.told(), vec![]);
    bench.ask(drain("n", true));
    assert_eq!(bench.started().incarnation, 1);
}

#[test]
fn a_process_does_not_go_on_to_a_node_that_was_drained_meanwhile() {
    let mut moving = Moving::committed("{}");
    moving.target_says(ProcessState::Ready);
    moving.bench.answers();
    let back = moving.bench.ask(Request::ProcessTransfer {
        application: "a".into(),
        process: "p".into(),
        to: Some("n".into()),
    });
    assert_eq!(moving.bench.kinds(), []);
    moving.bench.ask(drain("n", false));
    moving.bench.answers();
    moving.source_says(ProcessState::Gone);
    assert_eq!(moving.bench.kinds(), [(back, Some(ErrorKind::Conflict))]);
    assert!(moving.is_over());
}
