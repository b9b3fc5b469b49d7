//! The life of hosts, step by step: what is said, in which order, and what is kept.

use praas_control::agent::{ApplicationKey, FromAgent, HostCommand, StartFrom};
use praas_runtime::host::{HostHello, HostTransfer};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

fn limits() -> Limits {
    Limits {
        hosts_max: 2,
        start: LIMIT,
        stop: LIMIT,
        exit: LIMIT,
        adopt: LIMIT,
    }
}

fn key(process: &str) -> HostKey {
    HostKey {
        application: "a".into(),
        process: process.into(),
    }
}

/// What an action is, in a word or two.
fn word(action: &Action) -> String {
    match action {
        Action::Spawn(start, _) => format!("spawn {}", start.incarnation),
        Action::Send(to, message) => {
            let message = match &**message {
                ToHost::SwapOut => "swap".into(),
                ToHost::Stop => "stop".into(),
                ToHost::World(world) => format!("world {}", world.generation),
                ToHost::Keys { key_id, .. } => format!("keys {key_id}"),
                other => format!("{other:?}"),
            };
            format!("send {message} to {}", to.len())
        }
        Action::Kill(_) => "kill".into(),
        Action::Say(FromAgent::Report(report)) => format!("report {}", report.state),
        Action::Say(FromAgent::Answer { request, result }) => {
            let result = if result.is_ok() { "ok" } else { "err" };
            format!("answer {request} {result}")
        }
        Action::Say(other) => format!("{other:?}"),
        Action::RecordWrite(record) => format!("write {}", record.state),
        Action::RecordRemove(_) => "remove".into(),
        Action::ImagesDelete(request, ..) => format!("delete {request}"),
        Action::Serves(_) => "serves".into(),
        Action::StatsTell(_) => "stats".into(),
    }
}

struct Lab {
    hosts: Hosts,
    now: Instant,
    request: u64,
    /// The last report.
    said: Option<HostReport>,
}

impl Lab {
    fn new() -> Self {
        let mut hosts = Hosts::new(limits());
        hosts.inventory_received();
        Self {
            hosts,
            now: Instant::now(),
            request: 0,
            said: None,
        }
    }

    #[track_caller]
    fn expect(&mut self, words: &[&str]) {
        let actions = self.hosts.actions_take();
        for action in &actions {
            if let Action::Say(FromAgent::Report(report)) = action {
                self.said = Some(report.clone());
            }
        }
        assert_eq!(actions.iter().map(word).collect::<Vec<_>>(), words);
    }

    fn error(&self) -> &str {
        let said = self.said.as_ref().and_then(|said| said.error.as_deref());
        said.unwrap_or_default()
    }

    fn start(&mut self, process: &str, incarnation: u64, settings: &str) {
        self.start_from(process, incarnation, settings, None);
    }

    fn start_from(
        &mut self,
        process: &str,
        incarnation: u64,
        settings: &str,
        from: Option<StartFrom>,
    ) {
        self.request += 1;
        let start = StartCommand {
            request: self.request,
            application: "a".into(),
            process: process.into(),
            incarnation,
            life: incarnation,
            modules: Vec::new(),
            settings: settings.into(),
            key_id: 1,
            secret: Secret::from_bytes([1; 32]),
            swap_generation: 3,
            swapped: false,
            from,
        };
        self.hosts.told(self.now, ToAgent::Start(Box::new(start)));
    }

    fn command(&mut self, incarnation: u64, make: fn(HostCommand) -> ToAgent) {
        self.request += 1;
        let command = HostCommand {
            request: self.request,
            application: "a".into(),
            process: "p".into(),
            incarnation,
        };
        self.hosts.told(self.now, make(command));
    }

    fn say(&mut self, message: FromHost) {
        self.hosts.said(self.now, &key("p"), message);
    }

    fn die(&mut self) {
        self.hosts.died(self.now, &key("p"), "killed by KILL");
    }

    fn ready() -> FromHost {
        FromHost::Ready {
            addresses: vec!["tcp:127.0.0.1:1".parse().unwrap()],
            swap_generation: 3,
            rejected: Vec::new(),
        }
    }

    /// A process that serves, as incarnation 7, by command 1.
    fn serving() -> Self {
        let mut lab = Self::new();
        lab.start("p", 7, "{}");
        lab.expect(&["write starting", "spawn 7"]);
        assert_eq!(lab.hosts.serving(&key("p")), None);
        lab.hosts.spawned(&key("p"), 4711, 1, 0);
        lab.expect(&["write starting", "report starting"]);
        lab.say(Self::ready());
        lab.expect(&["write ready", "report ready", "answer 1 ok", "serves"]);
        assert_eq!(lab.hosts.serving(&key("p")).unwrap().0, 7);
        assert_eq!(lab.hosts.deadline_next(), None);
        lab
    }
}

#[test]
fn a_process_is_swapped_out_and_reported_once_it_is_dead() {
    let mut lab = Lab::serving();
    lab.command(7, ToAgent::SwapOut);
    lab.expect(&["write quiescing", "report quiescing", "send swap to 1"]);
    assert_eq!(lab.hosts.serving(&key("p")), None);
    lab.say(FromHost::Swapped {
        generation: 4,
        bytes: 1,
    });
    lab.expect(&[]);
    lab.hosts.unlinked(lab.now, &key("p"));
    lab.die();
    lab.expect(&["remove", "report swapped", "answer 2 ok"]);
    assert_eq!(lab.said.as_ref().unwrap().swap_generation, 4);
    assert!(lab.said.as_ref().unwrap().swapped);
    assert_eq!(lab.said.as_ref().unwrap().pid, 0);
    assert!(lab.hosts.is_empty() && lab.hosts.deadline_next().is_none());
}

#[test]
fn a_swap_that_fails_is_answered_so_and_the_process_serves_on() {
    let mut lab = Lab::serving();
    lab.command(7, ToAgent::SwapOut);
    lab.expect(&["write quiescing", "report quiescing", "send swap to 1"]);
    let error = "no room".into();
    lab.say(FromHost::SwapFailed { error });
    lab.expect(&["write ready", "report ready", "answer 2 err", "serves"]);
    assert!(lab.hosts.serving(&key("p")).is_some());
    // Dying in a swap is no `Err`, which would mean that it serves on.
    lab.command(7, ToAgent::SwapOut);
    lab.expect(&["write quiescing", "report quiescing", "send swap to 1"]);
    lab.die();
    lab.expect(&["remove", "report failed", "answer 3 ok"]);
    // Nor is it to be told again of what is not there.
    lab.command(7, ToAgent::SwapOut);
    lab.expect(&["report failed", "answer 4 ok"]);
    assert_eq!(lab.error(), "its host ended: killed by KILL");
}

#[test]
fn a_stop_is_answered_after_the_death_which_is_brought_about() {
    let mut lab = Lab::serving();
    lab.command(6, ToAgent::Stop);
    lab.expect(&["answer 2 ok"]);
    lab.command(7, ToAgent::SwapOut);
    lab.expect(&["write quiescing", "report quiescing", "send swap to 1"]);
    lab.command(7, ToAgent::Stop);
    lab.expect(&["write quiescing", "report quiescing", "send stop to 1"]);
    // Functions have twice the default of ten seconds to finish.
    let due = lab.now + Duration::from_secs(30);
    assert_eq!(lab.hosts.deadline_next(), Some(due));
    lab.hosts.tick(due - Duration::from_millis(1));
    lab.expect(&[]);
    lab.hosts.tick(due);
    lab.expect(&["kill"]);
    lab.command(7, ToAgent::Stop);
    lab.expect(&[]);
    lab.die();
    let expected = [
        "remove",
        "report gone",
        "answer 3 ok",
        "answer 4 ok",
        "answer 5 ok",
    ];
    lab.expect(&expected);
    lab.command(7, ToAgent::Stop);
    lab.expect(&["answer 6 ok"]);
}

/// Its control plane may have called the transfer off meanwhile, and would take one that starts like
/// any other for the process itself.
#[test]
fn a_host_that_fetches_a_process_says_so_from_the_first_word_on() {
    let mut lab = Lab::new();
    let from = StartFrom {
        addresses: Vec::new(),
        incarnation: 6,
        token: [1; 16],
    };
    lab.start_from("p", 7, "{}", Some(from));
    lab.hosts.spawned(&key("p"), 1, 1, 0);
    drop(lab.hosts.actions_take());
    let said = lab.hosts.inventory().remove(0);
    assert_eq!(said.state, ProcessState::Starting);
    assert_eq!(said.transfer, praas_control::agent::HostTransfer::Receiving);
}

#[test]
fn a_start_that_fails_says_why() {
    let mut lab = Lab::new();
    lab.start("p", 7, r#"{"wrkers": 1}"#);
    lab.expect(&["report failed", "answer 1 err"]);
    assert!(lab.error().contains("wrkers"), "{}", lab.error());
    lab.start("p", 8, "{}");
    lab.expect(&["write starting", "spawn 8"]);
    lab.hosts
        .spawn_failed(lab.now, &key("p"), "no such program".into());
    lab.expect(&["remove", "report failed", "answer 2 err"]);
    assert_eq!(lab.error(), "no such program");
    lab.start("p", 9, "{}");
    lab.expect(&["write starting", "spawn 9"]);
    lab.hosts.spawned(&key("p"), 1, 1, 0);
    lab.expect(&["write starting", "report starting"]);
    lab.die();
    lab.expect(&["remove", "report failed", "answer 3 err"]);
    let expected = "its host ended before it was ready: killed by KILL";
    assert_eq!(lab.error(), expected);
    // It says so itself, does not end, and is killed.
    lab.start("p", 10, "{}");
    lab.expect(&["write starting", "spawn 10"]);
    lab.say(FromHost::Failed {
        error: "no module".into(),
    });
    lab.hosts.tick(lab.now + LIMIT);
    lab.expect(&["kill"]);
    lab.die();
    lab.expect(&["remove", "report failed", "answer 4 err"]);
    assert_eq!(lab.error(), "no module");
    // It takes too long.
    lab.start("p", 11, "{}");
    lab.hosts.tick(lab.now + LIMIT);
    lab.expect(&["write starting", "spawn 11", "kill"]);
    lab.die();
    lab.expect(&["remove", "report failed", "answer 5 err"]);
    assert!(lab.error().contains("start_timeout_ms"), "{}", lab.error());
}

#[test]
fn a_stop_overtakes_a_start() {
    let mut lab = Lab::new();
    lab.start("p", 7, "{}");
    lab.expect(&["write starting", "spawn 7"]);
    lab.hosts.spawned(&key("p"), 1, 1, 0);
    lab.expect(&["write starting", "report starting"]);
    lab.command(7, ToAgent::Stop);
    lab.expect(&["write quiescing", "report quiescing", "kill"]);
    lab.say(Lab::ready());
    lab.die();
    lab.expect(&["remove", "report gone", "answer 1 err", "answer 2 ok"]);
}

#[test]
fn a_newer_incarnation_starts_once_the_older_is_dead() {
    let mut lab = Lab::serving();
    lab.start("p", 6, "{}");
    lab.expect(&["answer 2 err"]);
    lab.start("p", 8, "{}");
    lab.expect(&["kill"]);
    lab.die();
    lab.expect(&["remove", "report failed", "write starting", "spawn 8"]);
    assert_eq!(lab.said.as_ref().unwrap().incarnation, 7);
    lab.hosts.spawned(&key("p"), 1, 1, 0);
    lab.expect(&["write starting", "report starting"]);
    // What was not begun when the channel ended is forgotten, or called off.
    lab.start("p", 9, "{}");
    lab.expect(&["kill"]);
    lab.command(9, ToAgent::Stop);
    lab.expect(&["answer 4 err", "answer 5 ok"]);
    lab.start("p", 10, "{}");
    lab.hosts.control_lost();
    lab.die();
    // Nobody hears it: the record stays, and the next hello tells.
    lab.expect(&["report failed", "answer 3 err"]);
    assert!(lab.hosts.is_empty());
    let inventory = lab.hosts.inventory();
    assert_eq!(inventory.len(), 1);
    assert_eq!(inventory[0].state, ProcessState::Failed);
    lab.hosts.inventory_received();
    lab.expect(&["remove"]);
    assert_eq!(lab.hosts.inventory(), []);
}

#[test]
fn hosts_have_a_limit() {
    let mut lab = Lab::new();
    lab.start("p", 1, "{}");
    lab.start("q", 2, "{}");
    lab.start("r", 3, "{}");
    let two = ["write starting", "spawn 1", "write starting", "spawn 2"];
    lab.expect(&[&two[..], &["report failed", "answer 3 err"]].concat());
    assert!(lab.error().contains("hosts_max"), "{}", lab.error());
}

#[test]
fn hosts_are_taken_over_and_told_again_what_they_may_have_missed() {
    let mut lab = Lab::new();
    let record = HostRecord {
        pid: 4711,
        state: ProcessState::Quiescing,
        ending: Some(Ending::Swap),
        ..HostRecord::new(&key("p"), 7)
    };
    lab.hosts.adopt(lab.now, record);
    assert_eq!(lab.hosts.inventory()[0].state, ProcessState::Quiescing);
    assert!(!lab.hosts.expects(&key("p"), 7, 1));
    assert!(!lab.hosts.expects(&key("p"), 8, 4711));
    assert!(lab.hosts.expects(&key("p"), 7, 4711));
    let hello = HostHello {
        pid: 4711,
        application: "a".into(),
        process: "p".into(),
        incarnation: 7,
        addresses: vec!["tcp:127.0.0.1:1".parse().unwrap()],
        swap_generation: 3,
        rejected: Vec::new(),
        transfer: HostTransfer::None,
    };
    lab.hosts.redialled(lab.now, &key("p"), hello);
    lab.expect(&["send swap to 1"]);
    assert!(!lab.hosts.expects(&key("p"), 7, 4711));
    assert_eq!(lab.hosts.deadline_next(), None);
    // One that never comes back is killed in the end.
    lab.hosts.adopt(lab.now, HostRecord::new(&key("q"), 8));
    lab.hosts.tick(lab.now + LIMIT);
    lab.expect(&["kill"]);
    // One that was dead: its image tells what it did.
    let record = HostRecord::new(&key("r"), 9);
    lab.hosts.adopt_dead(lab.now, record, Some(5));
    lab.expect(&["remove", "report swapped"]);
    assert_eq!(lab.said.as_ref().unwrap().swap_generation, 5);
    // Not that it ended with it.
    assert!(!lab.said.as_ref().unwrap().swapped);
}

#[test]
fn views_and_secrets_are_handed_on_to_those_they_concern() {
    let mut lab = Lab::serving();
    let world = |application: &str, generation| ToAgent::World {
        application: application.into(),
        generation,
        members: Vec::new(),
    };
    lab.hosts.told(lab.now, world("b", 1));
    lab.expect(&[]);
    lab.hosts.told(lab.now, world("a", 2));
    lab.expect(&["send world 2 to 1"]);
    let keys = |key_id| {
        let key = ApplicationKey {
            application: "a".into(),
            key_id,
            secret: Secret::from_bytes([key_id as u8; 32]),
        };
        ToAgent::Applications(vec![key])
    };
    lab.hosts.told(lab.now, keys(1));
    lab.expect(&["send keys 1 to 1"]);
    lab.hosts.told(lab.now, keys(1));
    lab.expect(&[]);
    lab.hosts.told(lab.now, keys(2));
    lab.expect(&["send keys 2 to 1"]);
    // A newcomer gets the view that there is.
    lab.start("q", 8, "{}");
    lab.expect(&["write starting", "spawn 8"]);
    lab.hosts.spawned(&key("q"), 1, 1, 0);
    lab.expect(&["write starting", "report starting", "send world 2 to 1"]);
}

#[test]
fn at_its_end_the_agent_swaps_out_and_kills_what_does_not() {
    let mut lab = Lab::serving();
    lab.start("q", 8, "{}");
    lab.expect(&["write starting", "spawn 8"]);
    lab.hosts.ending_begin();
    lab.expect(&[
        "write quiescing",
        "report quiescing",
        "send swap to 1",
        "kill",
    ]);
    lab.start("r", 9, "{}");
    lab.expect(&["report failed", "answer 3 err"]);
    lab.hosts.died(lab.now, &key("q"), "");
    lab.expect(&["remove", "report failed", "answer 2 err"]);
    // Who is writing an image is left to it.
    assert!(lab.hosts.all_swapping());
    lab.hosts.kill_all(true, "over");
    lab.expect(&[]);
    let error = "no room".into();
    lab.say(FromHost::SwapFailed { error });
    lab.expect(&["kill"]);
    lab.die();
    lab.expect(&["remove", "report failed"]);
    assert!(lab.error().contains("no room"), "{}", lab.error());
}

#[test]
fn at_its_end_the_agent_tries_again_what_cannot_be_swapped_out() {
    let mut lab = Lab::serving();
    lab.hosts.ending_begin();
    lab.expect(&["write quiescing", "report quiescing", "send swap to 1"]);
    for _ in 0..3 {
        let error = "no storage".into();
        lab.say(FromHost::SwapFailed { error });
        lab.expect(&[]);
        lab.now = lab.hosts.deadline_next().unwrap();
        lab.hosts.tick(lab.now);
        lab.expect(&["send swap to 1"]);
    }
    lab.hosts.kill_all(true, "over");
    lab.expect(&[]);
    let error = "no storage".into();
    lab.say(FromHost::SwapFailed { error });
    lab.expect(&["kill"]);
}

#[test]
fn images_are_deleted_of_what_does_not_run() {
    let mut lab = Lab::serving();
    let delete = |process: &str| ToAgent::DeleteImages {
        request: 9,
        application: "a".into(),
        process: process.into(),
        below: 4,
    };
    lab.hosts.told(lab.now, delete("p"));
    lab.expect(&["answer 9 err"]);
    lab.hosts.told(lab.now, delete("q"));
    lab.expect(&["delete 9"]);
}

#[test]
fn a_checkpoint_is_answered_after_what_it_is() {
    let mut lab = Lab::serving();
    let taken = FromHost::Checkpointed {
        generation: 4,
        bytes: 10,
        took_ms: 1,
        written_unix_ms: 2,
    };
    lab.command(7, ToAgent::Checkpoint);
    lab.expect(&["send Checkpoint to 1"]);
    lab.say(taken.clone());
    lab.expect(&["write ready", "report ready", "stats", "answer 2 ok"]);
    assert_eq!(lab.said.as_ref().unwrap().swap_generation, 4);
    // Nothing had changed: there is nothing new to keep.
    lab.command(7, ToAgent::Checkpoint);
    lab.say(taken);
    lab.expect(&["send Checkpoint to 1", "stats", "answer 3 ok"]);
    lab.command(7, ToAgent::Checkpoint);
    lab.say(FromHost::CheckpointFailed { error: "no".into() });
    lab.expect(&["send Checkpoint to 1", "stats", "answer 4 err"]);
    // Of another incarnation, and of a host that is gone or away, there is none.
    lab.command(6, ToAgent::Checkpoint);
    lab.expect(&["answer 5 err"]);
    lab.command(7, ToAgent::Checkpoint);
    lab.hosts.unlinked(lab.now, &key("p"));
    lab.command(7, ToAgent::Checkpoint);
    lab.expect(&["send Checkpoint to 1", "answer 6 err", "answer 7 err"]);
    lab.die();
    lab.expect(&["remove", "report failed"]);
    assert_eq!(lab.said.as_ref().unwrap().swap_generation, 4);
}

/// A checkpoint that nobody asked for is told of, and is not the one that somebody waits for.
#[test]
fn a_checkpoint_that_nobody_asked_for_answers_nobody() {
    let mut lab = Lab::serving();
    let unasked = FromHost::CheckpointUnasked {
        generation: 4,
        bytes: 10,
        took_ms: 1,
        written_unix_ms: 2,
    };
    lab.command(7, ToAgent::Checkpoint);
    lab.say(unasked);
    lab.expect(&[
        "send Checkpoint to 1",
        "write ready",
        "report ready",
        "stats",
    ]);
    lab.say(FromHost::Checkpointed {
        generation: 5,
        bytes: 10,
        took_ms: 1,
        written_unix_ms: 3,
    });
    lab.expect(&["write ready", "report ready", "stats", "answer 2 ok"]);
    lab.die();
    lab.expect(&["remove", "report failed"]);
    assert_eq!(lab.said.as_ref().unwrap().swap_generation, 5);
}

#[test]
fn a_checkpoint_that_is_known_is_not_taken_for_a_swap() {
    for (known, found, state) in [
        (4, Some(4), ProcessState::Failed),
        (4, Some(5), ProcessState::Swapped),
        (4, None, ProcessState::Failed),
    ] {
        let mut lab = Lab::new();
        let mut record = HostRecord::new(&key("p"), 7);
        record.state = ProcessState::Ready;
        record.swap_generation = known;
        lab.hosts.adopt_dead(lab.now, record, found);
        let report = format!("report {state}");
        lab.expect(&["remove", &report]);
    }
}

#[test]
fn a_host_that_is_told_again_to_serve_does_so_in_time_or_is_killed() {
    let mut lab = Lab::new();
    lab.start("p", 7, "{}");
    lab.hosts.spawned(&key("p"), 4711, 1, 0);
    let prepared = FromHost::Transfer {
        state: HostTransfer::Prepared,
        error: None,
    };
    lab.say(prepared);
    lab.hosts.actions_take();
    assert_eq!(lab.hosts.deadline_next(), None, "it is not its to say");
    lab.hosts.unlinked(lab.now, &key("p"));
    lab.command(7, ToAgent::TransferServe);
    lab.expect(&[]);
    let hello = HostHello {
        pid: 4711,
        application: "a".into(),
        process: "p".into(),
        incarnation: 7,
        addresses: Vec::new(),
        swap_generation: 3,
        rejected: Vec::new(),
        transfer: HostTransfer::Prepared,
    };
    lab.hosts.redialled(lab.now, &key("p"), hello);
    lab.expect(&["send TransferServe to 1"]);
    lab.hosts.tick(lab.now + LIMIT);
    lab.expect(&["kill"]);
}
