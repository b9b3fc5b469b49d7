//! What the registry does by itself, case by case, under a clock of the test's own.

use super::tests::{Bench, process, report, spec, swapped};
use super::{Action, Event, PolicyCounts, Reply, Request, Verb};
use crate::agent::{FromAgent, HostReport, HostStats, StartCommand, ToAgent};
use crate::api::{Checkpoint, ProcessState, ProcessStats, Settings};
use crate::error::ErrorKind;
use praas_transport::Secret;

const MIB: u64 = 1 << 20;

fn bench(settings: &str) -> Bench {
    let mut spec = spec("a");
    spec.settings = serde_json::from_str::<Settings>(settings).unwrap();
    Bench::with(Request::ApplicationCreate {
        spec,
        secret: Secret::from_bytes([1; 32]),
        now_unix_ms: 5,
    })
}

fn stats(start: &StartCommand, stats: ProcessStats) -> FromAgent {
    FromAgent::Stats {
        resident_bytes: stats.resident_bytes,
        hosts: vec![HostStats {
            application: start.application.clone(),
            process: start.process.clone(),
            incarnation: start.incarnation,
            stats,
            restored: None,
            checkpoint: None,
            checkpoint_error: None,
        }],
    }
}

fn done(invocations: u64) -> ProcessStats {
    ProcessStats {
        invocations,
        ..ProcessStats::default()
    }
}

impl Bench {
    /// Time passes, and the clock's due is done.
    fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.handle(Event::Tick);
    }

    /// The registry is woken when it asks to be, until `until`.
    fn pass_until(&mut self, until: u64) {
        while let Some(at) = self.registry.deadline_next().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.handle(Event::Tick);
        }
        self.now = until;
    }

    fn words(&mut self) -> Vec<&'static str> {
        let word = |message: &ToAgent| match message {
            ToAgent::Start(_) => "start",
            ToAgent::SwapOut(_) => "swap",
            ToAgent::Stop(_) => "stop",
            ToAgent::Checkpoint(_) => "checkpoint",
            _ => "other",
        };
        self.told()
            .iter()
            .map(|(_, message)| word(message))
            .collect()
    }

    fn fails(&mut self, start: &StartCommand) {
        self.say(1, FromAgent::Report(report(start, ProcessState::Failed)));
    }

    fn counts(&self) -> PolicyCounts {
        self.registry.policy_counts()
    }
}

#[test]
fn an_idle_process_is_swapped_out_and_comes_back() {
    let mut bench = bench(r#"{"idle_swap_ms": 500}"#);
    let start = bench.ready();
    bench.pass(10_000);
    // Nothing is known of it yet.
    assert_eq!(bench.words(), [""; 0]);
    let begun = bench.now;
    bench.say(1, stats(&start, done(1)));
    assert_eq!(bench.words(), ["swap"]);
    bench.say(1, swapped(&start, 1));
    assert_eq!(bench.show().state, ProcessState::Swapped);
    assert_eq!(bench.counts().idle_swaps, 1);
    // Whoever wants it gets it, and it counts as active from then on.
    bench.ask(process(Verb::Ensure));
    let start = bench.started();
    assert!(start.life == 1);
    bench.say(1, FromAgent::Report(report(&start, ProcessState::Ready)));
    bench.say(1, stats(&start, done(0)));
    bench.pass_until(begun + 499);
    assert_eq!(bench.words(), [""; 0]);
    bench.say(1, stats(&start, done(1)));
    bench.pass_until(begun + 998);
    assert_eq!(bench.words(), [""; 0]);
    bench.pass_until(begun + 999);
    assert_eq!(bench.words(), ["swap"]);
}

/// What was lost is seen by whoever looks later, too: each time is counted once.
#[test]
fn a_process_that_began_with_an_older_image_is_counted() {
    let mut bench = bench("{}");
    let start = bench.ready();
    bench.say(1, swapped(&start, 5));
    assert_eq!(bench.counts().older_images, 0);
    bench.ask(process(Verb::Ensure));
    let start = bench.started();
    assert_eq!(start.swap_generation, 5);
    let lost = "generation 1 was loaded: generation 5 is missing";
    let older = HostReport {
        swap_generation: 1,
        error: Some(lost.into()),
        ..report(&start, ProcessState::Ready)
    };
    bench.say(1, FromAgent::Report(older.clone()));
    assert_eq!(bench.show().error.as_deref(), Some(lost));
    assert_eq!(bench.counts().older_images, 1);
    // An agent that comes back says so again.
    bench.hello(2, "n", vec![older]);
    assert_eq!(bench.counts().older_images, 1);
    assert_eq!(bench.show().error.as_deref(), Some(lost));
    // What is lost is not missing again, and what is written in its place is the newest.
    assert_eq!(bench.show().swap_generation, 1);
    bench.told();
    bench.say(2, swapped(&start, 2));
    bench.ask(process(Verb::Ensure));
    let start = bench.started();
    assert_eq!((start.swap_generation, start.swapped), (2, true));
}

#[test]
fn who_runs_or_waits_is_not_idle() {
    let mut bench = bench(r#"{"idle_swap_ms": 500}"#);
    let start = bench.ready();
    let busy = |which: usize| ProcessStats {
        running: u64::from(which == 0),
        blocked: u64::from(which == 1),
        queued: u64::from(which == 2),
        ..done(3)
    };
    for which in 0..3 {
        bench.say(1, stats(&start, busy(which)));
        bench.pass(10_000);
        assert_eq!(bench.words(), [""; 0]);
    }
    // From the moment that it was seen to be done.
    bench.say(1, stats(&start, done(3)));
    bench.pass(499);
    assert_eq!(bench.words(), [""; 0]);
    assert_eq!(bench.show().idle_ms, Some(499));
    bench.pass(1);
    assert_eq!(bench.words(), ["swap"]);
}

#[test]
fn a_process_that_cannot_be_swapped_out_is_left_alone_for_as_long_again() {
    let mut bench = bench(r#"{"idle_swap_ms": 500}"#);
    let start = bench.ready();
    bench.say(1, stats(&start, done(1)));
    bench.pass(500);
    let told = bench.told();
    let [(1, ToAgent::SwapOut(command))] = told.as_slice() else {
        panic!("{told:?}");
    };
    let result = Err("the disk is full".into());
    let request = command.request;
    bench.say(1, FromAgent::Answer { request, result });
    assert_eq!(bench.show().state, ProcessState::Ready);
    bench.pass(499);
    assert_eq!(bench.words(), [""; 0]);
    bench.pass(1);
    assert_eq!(bench.words(), ["swap"]);
}

/// Three processes on a node of 1000 MiB, of 350 MiB each, active one after the other.
fn pressed(settings: &str) -> (Bench, Vec<StartCommand>) {
    let mut bench = bench(settings);
    let hello = FromAgent::Hello {
        node: "n".into(),
        cpus: 4,
        memory_bytes: 1_000 * MIB,
        inventory: vec![],
    };
    bench.say(1, hello);
    let mut starts = Vec::new();
    for name in ["p", "q", "r"] {
        bench.ask(Request::Process {
            application: "a".into(),
            process: name.into(),
            verb: Verb::Create,
        });
        let start = bench.started();
        bench.say(1, FromAgent::Report(report(&start, ProcessState::Ready)));
        starts.push(start);
    }
    bench.answers();
    (bench, starts)
}

fn sized(invocations: u64) -> ProcessStats {
    ProcessStats {
        resident_bytes: 350 * MIB,
        ..done(invocations)
    }
}

fn all(starts: &[StartCommand], busy: usize) -> FromAgent {
    let hosts = starts.iter().enumerate().map(|(at, start)| {
        let mut one = sized(1);
        one.running = u64::from(at == busy);
        let FromAgent::Stats { mut hosts, .. } = stats(start, one) else {
            panic!("no numbers");
        };
        hosts.remove(0)
    });
    FromAgent::Stats {
        resident_bytes: 1_050 * MIB,
        hosts: hosts.collect(),
    }
}

#[test]
fn under_pressure_the_least_active_goes_and_never_who_is_called() {
    let (mut bench, starts) = pressed(r#"{"swap_min_ready_ms": 1000}"#);
    bench.pass(500);
    // The last is the oldest, but for the first, which runs something.
    bench.say(1, stats(&starts[1], done(0)));
    bench.say(1, all(&starts, 0));
    // Ready for too short a time.
    assert_eq!(bench.words(), [""; 0]);
    bench.pass_until(1_000);
    bench.pass_until(1_500);
    let told = bench.told();
    let [(1, ToAgent::SwapOut(command))] = told.as_slice() else {
        panic!("{told:?}");
    };
    assert_eq!(command.process, "r");
    assert_eq!(bench.counts().pressure_swaps, 1);
    // Below the low mark there is peace.
    bench.say(1, swapped(&starts[2], 1));
    let FromAgent::Stats { hosts, .. } = all(&starts[..2], 0) else {
        return;
    };
    let after = FromAgent::Stats {
        resident_bytes: 700 * MIB,
        hosts,
    };
    bench.say(1, after);
    bench.pass_until(100_000);
    assert_eq!(bench.words(), [""; 0]);
}

#[test]
fn an_application_may_forbid_it() {
    let (mut bench, starts) = pressed(r#"{"swap_min_ready_ms": 0, "pressure_swap": false}"#);
    bench.say(1, all(&starts, 9));
    bench.pass_until(10_000);
    assert_eq!(bench.words(), [""; 0]);
}

#[test]
fn checkpoints_are_taken_of_what_has_changed() {
    let mut bench = bench(r#"{"checkpoint_interval_ms": 100}"#);
    let start = bench.ready();
    bench.say(1, stats(&start, done(1)));
    bench.pass(100);
    let told = bench.told();
    let [(1, ToAgent::Checkpoint(command))] = told.as_slice() else {
        panic!("{told:?}");
    };
    // One at a time, whatever happens.
    bench.say(1, stats(&start, done(2)));
    bench.pass_until(950);
    assert_eq!(bench.words(), [""; 0]);
    let FromAgent::Stats { mut hosts, .. } = stats(&start, done(2)) else {
        return;
    };
    let checkpoint = Checkpoint {
        generation: 4,
        bytes: 9,
        took_ms: 2,
        written_unix_ms: 7,
    };
    hosts[0].checkpoint = Some(checkpoint);
    let said = FromAgent::Stats {
        resident_bytes: 0,
        hosts,
    };
    bench.say(1, said);
    let mut now = report(&start, ProcessState::Ready);
    now.swap_generation = 4;
    bench.say(1, FromAgent::Report(now));
    let request = command.request;
    let result = Ok(());
    bench.say(1, FromAgent::Answer { request, result });
    assert_eq!(bench.show().checkpoint, Some(checkpoint));
    assert_eq!(bench.show().swap_generation, 4);
    bench.pass_until(1_000);
    assert_eq!(bench.words(), ["checkpoint"]);
    // After the failure it begins with that.
    bench.fails(&start);
    bench.ask(process(Verb::SwapIn));
    let again = bench.started();
    assert!(again.life == 1);
    assert_eq!(again.swap_generation, 4);
}

#[test]
fn nothing_is_written_of_what_has_not_changed() {
    let mut bench = bench(r#"{"checkpoint_interval_ms": 100}"#);
    let start = bench.ready();
    bench.say(1, stats(&start, done(1)));
    bench.pass(100);
    let told = bench.told();
    let [(1, ToAgent::Checkpoint(command))] = told.as_slice() else {
        panic!("{told:?}");
    };
    let (request, result) = (command.request, Ok(()));
    bench.say(1, FromAgent::Answer { request, result });
    bench.pass_until(5_000);
    assert_eq!(bench.words(), [""; 0]);
    bench.say(1, stats(&start, done(2)));
    bench.pass_until(5_100);
    assert_eq!(bench.words(), ["checkpoint"]);
    assert_eq!(bench.counts().checkpoints, 1);
}

#[test]
fn whoever_asks_for_a_checkpoint_waits_for_one_that_begins_after() {
    let mut bench = bench("{}");
    let start = bench.ready();
    let first = bench.ask(process(Verb::Checkpoint));
    let second = bench.ask(process(Verb::Checkpoint));
    let commands = |bench: &mut Bench| -> Vec<u64> {
        let requests = bench.told().into_iter().map(|(_, message)| match message {
            ToAgent::Checkpoint(command) => command.request,
            other => panic!("{other:?}"),
        });
        requests.collect()
    };
    let one = commands(&mut bench);
    assert_eq!(one.len(), 1);
    let answer = |request, result| FromAgent::Answer { request, result };
    bench.say(1, answer(one[0], Ok(())));
    assert_eq!(bench.kinds(), [(first, None)]);
    let two = commands(&mut bench);
    bench.say(1, answer(two[0], Err("the disk is full".into())));
    assert_eq!(bench.kinds(), [(second, Some(ErrorKind::ProcessFailed))]);
    let error = bench.show().checkpoint_error;
    assert_eq!(error.as_deref(), Some("the disk is full"));
    assert_eq!(bench.counts().checkpoint_failures, 1);
    // It serves on, and is asked again; who waits too long is told.
    let late = bench.ask_wait(process(Verb::Checkpoint), 50);
    bench.pass_until(60);
    assert_eq!(bench.kinds(), [(late, Some(ErrorKind::Timeout))]);
    // Its end ends the wait.
    let last = bench.ask(process(Verb::Checkpoint));
    bench.fails(&start);
    assert_eq!(bench.kinds(), [(last, Some(ErrorKind::ProcessFailed))]);
    let none = bench.ask(process(Verb::Checkpoint));
    assert_eq!(bench.kinds(), [(none, Some(ErrorKind::Conflict))]);
    assert!(bench.registry.deadlines.is_empty());
}

fn transfer() -> Request {
    Request::ProcessTransfer {
        application: "a".into(),
        process: "p".into(),
        to: None,
    }
}

#[test]
fn what_moves_is_neither_swapped_out_nor_written() {
    let mut bench = bench(r#"{"idle_swap_ms": 300, "checkpoint_interval_ms": 500}"#);
    let start = bench.ready();
    bench.hello(2, "m", vec![]);
    bench.ask(transfer());
    assert_eq!(bench.words(), ["other"]);
    bench.say(1, stats(&start, done(1)));
    bench.pass_until(900);
    assert_eq!(bench.words(), [""; 0]);
    let refused = bench.ask(process(Verb::Checkpoint));
    assert_eq!(bench.kinds(), [(refused, Some(ErrorKind::Conflict))]);
    // It is called off: all is as before.
    bench.handle(Event::Lost { link: 2 });
    assert_eq!(bench.words(), ["other", "swap"]);
}

#[test]
fn a_transfer_waits_for_a_checkpoint_that_is_being_taken() {
    let mut bench = bench("{}");
    let start = bench.ready();
    bench.hello(2, "m", vec![]);
    let first = bench.ask(process(Verb::Checkpoint));
    let second = bench.ask(process(Verb::Checkpoint));
    let told = bench.told();
    let [(1, ToAgent::Checkpoint(command))] = told.as_slice() else {
        panic!("{told:?}");
    };
    bench.ask(transfer());
    bench.pass(10);
    assert_eq!(bench.words(), [""; 0]);
    let (request, result) = (command.request, Ok(()));
    bench.say(1, FromAgent::Answer { request, result });
    // Who wanted another one is told that there is none.
    let failed = Some(ErrorKind::ProcessFailed);
    assert_eq!(bench.kinds(), [(first, None), (second, failed)]);
    let told = bench.told();
    let [(1, ToAgent::TransferOut(out))] = told.as_slice() else {
        panic!("{told:?}");
    };
    assert_eq!(out.incarnation, start.incarnation);
    assert!(bench.registry.policy.is_at_rest());
}

#[test]
fn what_has_failed_is_started_by_itself_with_a_back_off() {
    let mut bench = bench(r#"{"restart": "always", "restart_backoff_first_ms": 100}"#);
    let mut start = bench.ready();
    let mut waits = Vec::new();
    // One that was ready starts again at once.
    bench.fails(&start);
    start = bench.started();
    for ready in [false, false, true, false] {
        if ready {
            bench.say(1, FromAgent::Report(report(&start, ProcessState::Ready)));
        }
        bench.fails(&start);
        let failed = bench.now;
        assert_eq!(bench.words(), [""; 0]);
        bench.pass_until(failed + bench.show().restart_in_ms.unwrap());
        start = bench.started();
        waits.push(bench.now - failed);
    }
    assert_eq!(waits, [200, 400, 400, 1_600]);
    assert_eq!(bench.show().restarts, 5);
    assert_eq!(bench.counts().restarts, 5);
    // After a good while it begins anew.
    bench.say(1, FromAgent::Report(report(&start, ProcessState::Ready)));
    bench.pass(60_000);
    bench.fails(&start);
    let start = bench.started();
    bench.fails(&start);
    assert_eq!(bench.show().restart_in_ms, Some(200));
    // Who stops it, stops it.
    bench.ask(process(Verb::Stop));
    bench.pass_until(200_000);
    assert_eq!(bench.words(), [""; 0]);
}

#[test]
fn what_waits_for_a_node_is_started_on_the_next() {
    let mut bench = bench(r#"{"restart": "always"}"#);
    let start = bench.ready();
    bench.fails(&start);
    let start = bench.started();
    bench.fails(&start);
    bench.handle(Event::Lost { link: 1 });
    bench.pass_until(10_000);
    assert_eq!(bench.words(), [""; 0]);
    bench.hello(2, "m", vec![]);
    assert_eq!(bench.words(), ["start"]);
}

#[test]
fn whoever_asks_in_the_back_off_waits_or_is_told() {
    let mut bench = bench("{}");
    bench.hello(1, "n", vec![]);
    let create = bench.ask(process(Verb::Create));
    let start = bench.started();
    bench.fails(&start);
    assert_eq!(bench.kinds(), [(create, Some(ErrorKind::StartFailed))]);
    // A short one is waited for.
    let asked = bench.ask(process(Verb::Ensure));
    assert_eq!(bench.words(), [""; 0]);
    bench.pass_until(bench.now + 100);
    let mut start = bench.started();
    bench.fails(&start);
    assert_eq!(bench.kinds(), [(asked, Some(ErrorKind::StartFailed))]);
    // It grows only by failures, and a long one is told at once.
    for _ in 0..4 {
        bench.pass(30_000);
        bench.ask(process(Verb::Ensure));
        start = bench.started();
        bench.fails(&start);
    }
    bench.answers();
    let asked = bench.ask(process(Verb::Ensure));
    let answers = bench.answers();
    let [(id, Err(failure))] = answers.as_slice() else {
        panic!("{answers:?}");
    };
    assert_eq!((*id, failure.kind), (asked, ErrorKind::StartFailed));
    assert!(failure.detail.contains("6 times in a row"), "{failure}");
    // By hand it starts at once.
    bench.ask(process(Verb::SwapIn));
    assert_eq!(bench.words(), ["start"]);
}

#[test]
fn what_is_never_restarted_is_started_by_hand_only() {
    let mut bench = bench(r#"{"restart": "never"}"#);
    let start = bench.ready();
    bench.fails(&start);
    bench.pass_until(100_000);
    let asked = bench.ask(process(Verb::Ensure));
    assert_eq!(bench.kinds(), [(asked, Some(ErrorKind::ProcessFailed))]);
    assert_eq!(bench.words(), [""; 0]);
    bench.ask(process(Verb::SwapIn));
    let start = bench.started();
    bench.fails(&start);
    bench.answers();
    // That was once.
    let asked = bench.ask(process(Verb::Ensure));
    assert_eq!(bench.kinds(), [(asked, Some(ErrorKind::ProcessFailed))]);
}

#[test]
fn policies_that_cannot_be_are_refused_when_the_application_is_created() {
    let mut bench = Bench::new();
    let mut bad = spec("b");
    bad.settings = serde_json::from_str(r#"{"restart": "perhaps"}"#).unwrap();
    let id = bench.ask(Request::ApplicationCreate {
        spec: bad,
        secret: Secret::from_bytes([1; 32]),
        now_unix_ms: 5,
    });
    assert_eq!(bench.kinds(), [(id, Some(ErrorKind::Invalid))]);
}

#[test]
fn numbers_of_what_is_not_there_are_nobodys() {
    let mut bench = Bench::new();
    let start = bench.ready();
    let mut older = start.clone();
    older.incarnation -= 1;
    bench.say(1, stats(&older, done(7)));
    assert_eq!(bench.show().stats, None);
    bench.hello(2, "m", vec![]);
    bench.say(2, stats(&start, done(7)));
    assert_eq!(bench.show().stats, None);
    bench.say(1, stats(&start, done(7)));
    assert_eq!(bench.show().stats, Some(done(7)));
    let id = bench.ask(process(Verb::Show));
    let answers = bench.answers();
    assert!(matches!(answers.as_slice(), [(at, Ok(Reply::Process(_)))] if *at == id));
    assert!(
        bench
            .actions
            .iter()
            .all(|action| !matches!(action, Action::Drop { .. }))
    );
}
