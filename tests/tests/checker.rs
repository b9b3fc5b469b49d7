//! The checker is checked: good histories pass, a bad one of each kind is found, and the search for
//! an order agrees with trying all orders.

use praas_tests::checker::{
    Action, End, Event, History, Image, Model, ObjectModel, ObjectOp, Operation, Outcome, Promise,
    QueueModel, QueueOp, Reply, Verdict, check, linearize,
};
use proptest::prelude::*;

const PROCESS: &str = "p";

/// Writes histories down.
#[derive(Default)]
struct Script {
    history: History,
    incarnation: u64,
}

impl Script {
    fn new() -> Self {
        let mut script = Self::default();
        script.history.functions_tell = true;
        script.start(1, None);
        script
    }

    fn note(&mut self, event: Event) {
        self.history.events.push(event);
    }

    fn start(&mut self, incarnation: u64, from: Option<Image>) {
        self.incarnation = incarnation;
        self.note(Event::Started {
            process: PROCESS.into(),
            incarnation,
            from,
        });
    }

    fn freeze(&mut self) {
        self.note(Event::Frozen {
            process: PROCESS.into(),
            incarnation: self.incarnation,
        });
    }

    fn thaw(&mut self, incarnation: u64) {
        self.note(Event::Thawed {
            process: PROCESS.into(),
            incarnation,
        });
    }

    fn move_to(&mut self, incarnation: u64) {
        let from = std::mem::replace(&mut self.incarnation, incarnation);
        self.note(Event::Moved {
            process: PROCESS.into(),
            incarnation,
            from,
        });
    }

    fn end(&mut self, how: End) {
        self.note(Event::Ended {
            process: PROCESS.into(),
            incarnation: self.incarnation,
            how,
        });
    }

    fn crash(&mut self, next: u64, from: Image) {
        self.end(End::Crashed);
        self.start(next, Some(from));
    }

    fn image(&mut self, generation: u64) -> Image {
        let incarnation = self.incarnation;
        self.note(Event::Imaging {
            process: PROCESS.into(),
            incarnation,
        });
        let image = Image {
            incarnation,
            generation,
        };
        self.note(Event::Durable {
            process: PROCESS.into(),
            image,
        });
        self.note(Event::Committed {
            process: PROCESS.into(),
            image,
        });
        image
    }

    fn call(&mut self, call: u64, action: Action) {
        self.note(Event::Called {
            call,
            process: PROCESS.into(),
            action,
            idempotent: false,
        });
    }

    fn begin(&mut self, call: u64) {
        self.note(Event::Began {
            call,
            process: PROCESS.into(),
            incarnation: self.incarnation,
        });
    }

    fn run(&mut self, call: u64, reply: Reply) {
        self.begin(call);
        self.note(Event::Ran {
            call,
            process: PROCESS.into(),
            incarnation: self.incarnation,
            reply,
        });
    }

    fn give(&mut self, call: u64, outcome: Outcome) {
        self.note(Event::Returned { call, outcome });
    }

    /// A call that goes as it should.
    fn whole(&mut self, call: u64, action: Action, reply: Reply) {
        self.call(call, action);
        self.run(call, reply.clone());
        self.give(call, Outcome::Ok(reply));
    }

    fn put(&mut self, call: u64, message: u64) {
        self.call(call, put(message));
        self.give(call, Outcome::Ok(Reply::Done));
    }

    fn take(&mut self, call: u64, message: Option<u64>) {
        let reply = Reply::Message(message.map(|message| ("c".into(), message)));
        self.whole(call, take(), reply);
    }

    #[track_caller]
    fn good(&self) {
        assert_eq!(check(&self.history), []);
    }

    #[track_caller]
    fn bad(&self, promise: Promise) {
        let found = check(&self.history);
        assert!(!found.is_empty(), "nothing is found");
        for violation in &found {
            assert_eq!(violation.promise, promise, "{violation}");
        }
    }
}

fn read() -> Action {
    Action::Read { key: "k".into() }
}

fn write(value: u64) -> Action {
    let key = "k".into();
    Action::Write { key, value }
}

fn put(message: u64) -> Action {
    Action::Put {
        source: "c".into(),
        key: "m".into(),
        message,
    }
}

fn take() -> Action {
    Action::Take {
        source: None,
        key: "m".into(),
    }
}

fn unknown() -> Outcome {
    Outcome::Unknown("its process died".into())
}

#[test]
fn what_is_as_promised_passes() {
    let mut script = Script::new();
    script.whole(1, write(5), Reply::Done);
    script.put(2, 1);
    script.put(3, 2);
    script.take(4, Some(1));
    let image = script.image(1);
    script.whole(5, write(6), Reply::Done);
    script.put(6, 3);
    script.take(7, Some(2));
    script.end(End::Crashed);
    // What came after the image is lost, and nothing else.
    script.start(2, Some(image));
    script.whole(8, read(), Reply::Value(Some(5)));
    script.take(9, Some(2));
    script.take(10, None);
    script.whole(11, write(7), Reply::Done);
    let image = script.image(2);
    script.end(End::Swapped);
    script.start(3, Some(image));
    script.whole(12, read(), Reply::Value(Some(7)));
    script.good();
}

#[test]
fn what_nobody_knows_may_be_either_way() {
    for ran in [true, false] {
        let mut script = Script::new();
        script.whole(1, write(5), Reply::Done);
        script.call(2, write(6));
        script.call(3, put(1));
        if ran {
            script.run(2, Reply::Done);
        }
        script.give(2, unknown());
        script.give(3, unknown());
        let value = Some(if ran { 6 } else { 5 });
        script.whole(4, read(), Reply::Value(value));
        script.take(5, Some(1).filter(|_| ran));
        script.good();
        script.history.functions_tell = false;
        script.good();
    }
}

#[test]
fn a_second_run_is_found() {
    let mut script = Script::new();
    script.call(1, write(5));
    script.run(1, Reply::Done);
    script.run(1, Reply::Done);
    script.give(1, Outcome::Ok(Reply::Done));
    script.bad(Promise::AtMostOnce);
    // Also in another life, of which the first one's run was taken back.
    let mut script = Script::new();
    let image = script.image(1);
    script.call(1, write(5));
    script.run(1, Reply::Done);
    script.end(End::Crashed);
    script.start(2, Some(image));
    script.run(1, Reply::Done);
    script.give(1, Outcome::Ok(Reply::Done));
    script.bad(Promise::AtMostOnce);
}

#[test]
fn a_run_of_what_was_said_not_to_run_is_found() {
    let mut script = Script::new();
    script.call(1, write(5));
    script.give(1, Outcome::NotRun("not to be had".into()));
    script.run(1, Reply::Done);
    script.bad(Promise::AtMostOnce);
}

#[test]
fn a_reply_to_another_is_found() {
    let mut script = Script::new();
    script.whole(1, write(5), Reply::Done);
    script.call(2, read());
    script.run(2, Reply::Value(Some(5)));
    script.give(2, Outcome::Ok(Reply::Value(Some(6))));
    script.bad(Promise::OwnReply);
    let mut script = Script::new();
    script.call(1, read());
    // A reply without a run.
    script.give(1, Outcome::Ok(Reply::Value(None)));
    script.bad(Promise::OwnReply);
}

#[test]
fn a_call_without_an_end_is_found() {
    let mut script = Script::new();
    script.call(1, put(1));
    script.bad(Promise::Ends);
}

#[test]
fn two_lives_at_once_are_found() {
    let mut script = Script::new();
    script.start(2, None);
    script.bad(Promise::OneLife);
    let mut script = Script::new();
    script.end(End::Crashed);
    script.start(2, None);
    script.call(1, read());
    // The first one is not dead after all.
    script.incarnation = 1;
    script.run(1, Reply::Value(None));
    script.give(1, Outcome::Ok(Reply::Value(None)));
    script.bad(Promise::OneLife);
}

#[test]
fn a_life_that_moves_takes_all_along() {
    let mut script = Script::new();
    script.whole(1, write(5), Reply::Done);
    script.put(2, 1);
    script.freeze();
    let source = script.history.clone();
    // Whether the source is dead or not.
    script.end(End::Crashed);
    script.move_to(2);
    script.whole(3, read(), Reply::Value(Some(5)));
    script.take(4, Some(1));
    script.good();
    script.whole(5, read(), Reply::Value(None));
    script.bad(Promise::State);
    // What the source writes to storage later is what it was when it stood still.
    let mut script = Script {
        history: source,
        incarnation: 1,
    };
    script.move_to(2);
    script.whole(3, write(6), Reply::Done);
    script.end(End::Crashed);
    script.incarnation = 1;
    let image = script.image(1);
    script.end(End::Swapped);
    script.start(3, Some(image));
    script.whole(4, read(), Reply::Value(Some(5)));
    script.good();
    script.whole(5, read(), Reply::Value(Some(6)));
    script.bad(Promise::State);
}

#[test]
fn what_was_stopped_begins_from_nothing() {
    let mut script = Script::new();
    script.whole(1, write(5), Reply::Done);
    script.image(1);
    script.end(End::Swapped);
    script.note(Event::Forgotten {
        process: PROCESS.into(),
    });
    script.start(2, None);
    script.whole(2, read(), Reply::Value(None));
    script.good();
    script.whole(3, read(), Reply::Value(Some(5)));
    script.bad(Promise::State);
}

#[test]
fn a_look_from_elsewhere_is_a_read() {
    let mut script = Script::new();
    let look = Action::Look { key: "k".into() };
    script.whole(1, write(5), Reply::Done);
    script.call(2, look.clone());
    script.give(2, Outcome::Ok(Reply::Value(Some(5))));
    script.good();
    script.call(3, look);
    script.give(3, Outcome::Ok(Reply::Value(None)));
    script.bad(Promise::State);
}

#[test]
fn two_sides_of_a_move_that_serve_are_found() {
    let served = |by: &dyn Fn(&mut Script)| {
        let mut script = Script::new();
        by(&mut script);
        script.whole(1, read(), Reply::Value(None));
        script
    };
    // It moves, and did not stand still.
    served(&|script| script.move_to(2)).bad(Promise::OneLife);
    // It stands still, and serves.
    served(&|script| script.freeze()).bad(Promise::OneLife);
    // It has moved, and serves where it was.
    served(&|script| {
        script.freeze();
        script.move_to(2);
        script.incarnation = 1;
    })
    .bad(Promise::OneLife);
    served(&|script| {
        script.freeze();
        script.move_to(2);
        script.thaw(1);
    })
    .bad(Promise::OneLife);
    // It goes on where it was, and is there, too.
    served(&|script| {
        script.freeze();
        script.thaw(1);
        script.move_to(2);
    })
    .bad(Promise::OneLife);
    served(&|script| {
        script.freeze();
        script.thaw(1);
    })
    .good();
}

#[test]
fn an_older_image_or_none_is_found() {
    let mut script = Script::new();
    let old = script.image(1);
    let new = script.image(2);
    script.end(End::Swapped);
    let mut other = Script {
        history: script.history.clone(),
        ..Script::default()
    };
    script.start(2, Some(old));
    script.bad(Promise::NewestImage);
    other.start(2, Some(new));
    other.good();
    let torn = Image {
        generation: 9,
        ..new
    };
    other.end(End::Crashed);
    other.start(3, Some(torn));
    other.whole(1, read(), Reply::Value(None));
    let found = check(&other.history);
    let promises: Vec<_> = found.iter().map(|found| found.promise).collect();
    assert!(promises.contains(&Promise::NewestImage), "{found:?}");
}

#[test]
fn a_second_commit_of_one_image_is_found() {
    let mut script = Script::new();
    script.image(1);
    script.image(1);
    script.bad(Promise::NewestImage);
}

#[test]
fn a_lost_write_is_found() {
    let mut script = Script::new();
    script.whole(1, write(5), Reply::Done);
    script.whole(2, read(), Reply::Value(None));
    script.bad(Promise::State);
    // A swap takes nothing back,
    let mut script = Script::new();
    let image = script.image(1);
    script.whole(1, write(5), Reply::Done);
    script.end(End::Swapped);
    script.start(2, Some(image));
    script.whole(2, read(), Reply::Value(None));
    script.bad(Promise::State);
    // and a crash nothing of before the image,
    let mut script = Script::new();
    script.whole(1, write(5), Reply::Done);
    let image = script.image(1);
    script.end(End::Crashed);
    script.start(2, Some(image));
    script.whole(2, read(), Reply::Value(None));
    script.bad(Promise::State);
    // nor what was written through.
    let mut script = Script::new();
    let image = script.image(1);
    script.whole(1, write(5), Reply::Done);
    script.end(End::Crashed);
    script.start(2, Some(image));
    script.whole(2, read(), Reply::Value(None));
    script.good();
    script.history.written_through = Some("k".into());
    script.bad(Promise::State);
}

#[test]
fn what_was_written_through_outlives_a_crash() {
    let persist = |write| Action::Persist {
        key: "k".into(),
        write,
    };
    let begun = |reply| {
        let mut script = Script::new();
        let image = script.image(1);
        script.whole(1, persist(Some(5)), reply);
        script.crash(2, image);
        (script, image)
    };
    let read = |script: &mut Script, call, value| {
        script.whole(call, read(), Reply::Value(value));
    };
    let (mut script, image) = begun(Reply::Durable(Some(5)));
    read(&mut script, 2, Some(5));
    script.crash(3, image);
    read(&mut script, 3, Some(5));
    script.good();
    let (mut script, _) = begun(Reply::Durable(Some(5)));
    read(&mut script, 2, None);
    script.bad(Promise::State);
    // Whoever was not told does not know, also if it was not there at first;
    for (first, second) in [(None, None), (None, Some(5)), (Some(5), Some(5))] {
        let (mut script, image) = begun(Reply::Done);
        read(&mut script, 2, first);
        script.crash(3, image);
        read(&mut script, 3, second);
        script.good();
    }
    // but what was there is, and what was written through later goes before it.
    let (mut script, image) = begun(Reply::Done);
    read(&mut script, 2, Some(5));
    script.crash(3, image);
    read(&mut script, 3, None);
    script.bad(Promise::State);
    let (mut script, image) = begun(Reply::Done);
    script.whole(2, persist(Some(6)), Reply::Durable(Some(6)));
    script.crash(3, image);
    read(&mut script, 3, Some(5));
    script.bad(Promise::State);
    // When nothing is under way any more, what is written later is not meant.
    for over in [false, true] {
        let mut script = Script::new();
        let image = script.image(1);
        script.whole(1, persist(Some(5)), Reply::Done);
        if over {
            script.note(Event::WrittenThrough {
                process: PROCESS.into(),
                incarnation: 1,
            });
        }
        script.whole(2, write(6), Reply::Done);
        script.crash(2, image);
        read(&mut script, 3, Some(6));
        match over {
            false => script.good(),
            true => script.bad(Promise::State),
        }
    }
}

#[test]
fn a_stale_read_is_found_and_a_late_one_is_none() {
    let mut script = Script::new();
    script.whole(1, write(5), Reply::Done);
    script.call(2, write(6));
    script.call(3, read());
    script.begin(2);
    script.run(3, Reply::Value(Some(5)));
    script.give(3, Outcome::Ok(Reply::Value(Some(5))));
    let done = |script: &mut Script, call, reply: Reply| {
        script.note(Event::Ran {
            call,
            process: PROCESS.into(),
            incarnation: 1,
            reply,
        });
    };
    done(&mut script, 2, Reply::Done);
    script.give(2, Outcome::Ok(Reply::Done));
    script.good();
    script.whole(4, read(), Reply::Value(Some(5)));
    script.bad(Promise::State);
}

#[test]
fn a_sum_that_lacks_one_is_found() {
    let add = || Action::Add {
        key: "n".into(),
        amount: 1,
    };
    let mut script = Script::new();
    script.whole(1, add(), Reply::Sum(1));
    script.whole(2, add(), Reply::Sum(2));
    script.good();
    script.whole(3, add(), Reply::Sum(2));
    script.bad(Promise::State);
}

#[test]
fn messages_lost_doubled_or_out_of_order_are_found() {
    let mut lost = Script::new();
    lost.put(1, 1);
    lost.take(2, None);
    lost.bad(Promise::Messages);

    let mut doubled = Script::new();
    doubled.put(1, 1);
    doubled.take(2, Some(1));
    doubled.take(3, Some(1));
    doubled.bad(Promise::Messages);

    let mut swapped = Script::new();
    swapped.put(1, 1);
    swapped.put(2, 2);
    swapped.take(3, Some(2));
    swapped.take(4, Some(1));
    swapped.bad(Promise::Messages);

    // Puts that are under way at once keep their order, too.
    let mut piped = Script::new();
    piped.call(1, put(1));
    piped.call(2, put(2));
    piped.give(2, Outcome::Ok(Reply::Done));
    piped.give(1, Outcome::Ok(Reply::Done));
    piped.take(3, Some(2));
    piped.bad(Promise::Messages);

    let mut from_nowhere = Script::new();
    from_nowhere.take(1, Some(9));
    from_nowhere.bad(Promise::Messages);

    let mut refused = Script::new();
    refused.call(1, put(1));
    refused.give(1, Outcome::NotRun("full".into()));
    refused.take(2, Some(1));
    refused.bad(Promise::Messages);
}

#[test]
fn a_message_that_is_taken_by_a_look_is_found() {
    let peek = Action::Peek {
        source: None,
        key: "m".into(),
    };
    let mut script = Script::new();
    script.put(1, 1);
    script.whole(2, peek, Reply::Message(Some(("c".into(), 1))));
    let mut taken = script.history.clone();
    script.take(3, Some(1));
    script.good();
    std::mem::swap(&mut script.history, &mut taken);
    script.take(3, None);
    script.bad(Promise::Messages);
}

#[test]
fn a_message_of_before_the_image_is_not_lost_by_a_crash() {
    let mut script = Script::new();
    script.put(1, 1);
    let image = script.image(1);
    script.end(End::Crashed);
    script.start(2, Some(image));
    script.take(2, None);
    script.bad(Promise::Messages);
}

/// Whether any order of any choice of the open ones does it.
fn brute_force<M: Model>(model: &M, operations: &[Operation<M::Op>]) -> bool {
    fn go<M: Model>(
        model: &M,
        operations: &[Operation<M::Op>],
        used: &mut Vec<bool>,
        state: &M::State,
    ) -> bool {
        let left = |used: &[bool]| {
            let mut left = operations.iter().zip(used);
            left.any(|(op, used)| !used && op.end.is_some())
        };
        if !left(used) {
            return true;
        }
        for at in 0..operations.len() {
            let begin = operations[at].begin;
            let mut others = operations.iter().zip(used.iter());
            let late = others.any(|(op, used)| !used && op.end.is_some_and(|end| end < begin));
            if used[at] || late {
                continue;
            }
            used[at] = true;
            for next in model.step(state, &operations[at].op) {
                if go(model, operations, used, &next) {
                    return true;
                }
            }
            used[at] = false;
        }
        false
    }
    go(
        model,
        operations,
        &mut vec![false; operations.len()],
        &model.initial(),
    )
}

/// Operations with ends that are all different, a few of them open.
fn timed<O: Clone + std::fmt::Debug + 'static>(
    op: impl Strategy<Value = O>,
) -> impl Strategy<Value = Vec<Operation<O>>> {
    let one = (op, 0_u64..12, 1_u64..8, prop::bool::weighted(0.2));
    prop::collection::vec(one, 0..7).prop_map(|all| {
        let count = all.len() as u64 * 2;
        let timed = all.into_iter().enumerate();
        timed
            .map(|(at, (op, begin, length, open))| Operation {
                begin: begin * count + at as u64 * 2,
                end: (!open).then_some((begin + length) * count + at as u64 * 2 + 1),
                op,
            })
            .collect()
    })
}

fn image(generation: u64) -> Image {
    Image {
        incarnation: 1,
        generation,
    }
}

fn object_op() -> impl Strategy<Value = ObjectOp> {
    let value = || prop::option::of(1_u64..4);
    prop_oneof![
        4 => prop::option::weighted(0.9, value()).prop_map(ObjectOp::Read),
        4 => (1_u64..4).prop_map(ObjectOp::Write),
        2 => (value(), 1_u64..4, prop::option::of(any::<bool>()))
            .prop_map(|(expected, value, wrote)| ObjectOp::CompareSwap { expected, value, wrote }),
        2 => (1_u64..3, prop::option::of(1_u64..6))
            .prop_map(|(amount, sum)| ObjectOp::Add { amount, sum }),
        1 => Just(ObjectOp::Erase),
        2 => prop::option::of(value()).prop_map(ObjectOp::Through),
        1 => Just(ObjectOp::ThroughWanted),
        1 => Just(ObjectOp::ThroughOver),
        1 => (1_u64..3).prop_map(|generation| ObjectOp::Note(image(generation))),
        1 => prop::option::of(1_u64..3)
            .prop_map(|generation| ObjectOp::Back(generation.map(image))),
    ]
}

fn queue_op() -> impl Strategy<Value = QueueOp> {
    let message = || prop::option::of(1_u64..4);
    prop_oneof![
        4 => (1_u64..4).prop_map(|number| QueueOp::Put { number, message: number }),
        4 => prop::option::weighted(0.9, message()).prop_map(QueueOp::Take),
        2 => message().prop_map(QueueOp::Peek),
        1 => (1_u64..3).prop_map(|generation| QueueOp::Note(image(generation))),
        1 => prop::option::of(1_u64..3)
            .prop_map(|generation| QueueOp::Back(generation.map(image))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn the_search_for_objects_agrees_with_trying_everything(
        operations in timed(object_op()),
        written_through: bool,
    ) {
        let model = ObjectModel { written_through };
        let found = linearize(&model, &operations) == Verdict::Linearizable;
        prop_assert_eq!(found, brute_force(&model, &operations));
    }

    #[test]
    fn the_search_for_queues_agrees_with_trying_everything(operations in timed(queue_op())) {
        let found = linearize(&QueueModel, &operations) == Verdict::Linearizable;
        prop_assert_eq!(found, brute_force(&QueueModel, &operations));
    }
}
