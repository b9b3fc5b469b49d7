//! More names of functions than a channel has numbers for.

use super::*;

#[test]
fn more_names_than_numbers_share_them() {
    let (mut core, mut notes, target) = answered();
    for name in (0..CHANNEL_FUNCTIONS_MAX + 10).chain(0..20) {
        let name = format!("f{name}");
        let called = name_called(&mut core, &mut notes, target, &name, 0);
        assert_eq!(called.as_deref(), Some(&*name));
    }
    assert_eq!(notes.names.len(), CHANNEL_FUNCTIONS_MAX);
    let most = notes.names.keys().max().copied();
    assert_eq!(most, Some(CHANNEL_FUNCTIONS_MAX as u64 - 1));
    assert_eq!(notes.closed, []);
}

/// The function of a large request is looked up when all of it is there.
#[test]
fn the_number_of_a_large_request_is_given_to_no_other_name() {
    let (mut core, mut notes, target) = answered();
    let (_, large) = name_call(&mut core, &mut notes, target, "large", 5000);
    let (tag, name) = large.unwrap();
    assert_eq!(name, "large");
    let others = |core: &mut ClientCore<u32>, notes: &mut Notes, bytes| {
        for name in 0..2 * CHANNEL_FUNCTIONS_MAX {
            let name = format!("f{name}");
            let called = name_called(core, notes, target, &name, bytes);
            assert_eq!(called, Some(name));
        }
        notes.names.values().any(|name| name == "large")
    };
    assert!(others(&mut core, &mut notes, 0));
    // Those that are answered need no number any more.
    assert!(others(&mut core, &mut notes, 5000));
    core.on_reply(&mut notes, 1, tag, Status::Ok, Payload::default());
    assert!(!others(&mut core, &mut notes, 0));
    assert_eq!(notes.closed, []);
}

/// What was given up may come still, whatever its number stands for then.
#[test]
fn a_channel_that_has_no_numbers_left_is_left() {
    let (mut core, mut notes, target) = answered();
    let (_, under_way) = name_call(&mut core, &mut notes, target, "under way", 0);
    let (_, large) = name_call(&mut core, &mut notes, target, "large", 5000);
    for name in 2..CHANNEL_FUNCTIONS_MAX {
        let name = format!("f{name}");
        let (call, _) = name_call(&mut core, &mut notes, target, &name, 5000);
        core.cancel(&mut notes, call);
    }
    let called = name_called(&mut core, &mut notes, target, "next", 0);
    assert_eq!(called.as_deref(), Some("next"), "in the place of the first");
    let (call, _) = name_call(&mut core, &mut notes, target, "next", 5000);
    core.cancel(&mut notes, call);
    // A large one that is answered gives its number back.
    let before = notes.sent.len();
    let (other, sent) = name_call(&mut core, &mut notes, target, "another", 5000);
    assert_eq!(sent, None);
    core.on_reply(
        &mut notes,
        1,
        large.unwrap().0,
        Status::Ok,
        Payload::default(),
    );
    let another = sent_since(&notes, before).unwrap();
    assert_eq!((&*another.1, &notes.closed[..]), ("another", &[][..]));
    let (_, sent) = name_call(&mut core, &mut notes, target, "one more", 0);
    assert_eq!(sent, None);
    let error = Status::FunctionError;
    core.on_reply(
        &mut notes,
        1,
        under_way.unwrap().0,
        error,
        Payload::default(),
    );
    assert_eq!(notes.closed, [], "one is under way still");
    let before = notes.sent.len();
    core.cancel(&mut notes, other);
    assert_eq!(notes.closed, [1]);
    reopened(&mut core, &mut notes, target);
    assert_eq!(sent_since(&notes, before).unwrap().1, "one more");
}

/// A channel whose numbers are all kept for large requests that were given up, with their sequences.
fn numbers_kept() -> (ClientCore<u32>, Notes, Target, Vec<u64>) {
    let (mut core, mut notes, target) = answered();
    let sequences = (0..CHANNEL_FUNCTIONS_MAX).map(|name| {
        let name = format!("f{name}");
        let (call, sent) = name_call(&mut core, &mut notes, target, &name, 5000);
        core.cancel(&mut notes, call);
        core.completed().unwrap();
        sent.unwrap().0
    });
    let sequences = sequences.collect();
    (core, notes, target, sequences)
}

#[test]
fn others_go_past_a_call_without_a_number() {
    let (mut core, mut notes, target, _) = numbers_kept();
    let (_, under_way) = name_call(&mut core, &mut notes, target, "f0", 0);
    let (tag, name) = under_way.unwrap();
    assert_eq!(name, "f0");
    for more in ["one more", "and another"] {
        let (_, sent) = name_call(&mut core, &mut notes, target, more, 0);
        assert_eq!(sent, None);
    }
    let called = name_called(&mut core, &mut notes, target, "f1", 0);
    assert_eq!(called.as_deref(), Some("f1"));
    let options = CallOptions::default();
    let before = notes.sent.len();
    core.read(&mut notes, target, "key", true, options, 0)
        .unwrap();
    let read = core.read(&mut notes, target, "key", false, options, 0);
    assert_eq!(notes.sent[before].0, AM_STATE);
    core.read_refused(
        &mut notes,
        read.unwrap(),
        Status::Forbidden,
        Payload::default(),
    );
    // But not for ever, since nothing gives a number back.
    let due = core.timer_next().unwrap();
    notes.now = due;
    core.tick(&mut notes, due);
    let (_, sent) = name_call(&mut core, &mut notes, target, "f2", 0);
    assert_eq!((sent, &notes.closed[..]), (None, &[][..]));
    core.on_reply(&mut notes, 1, tag, Status::Ok, Payload::default());
    assert_eq!(notes.closed, [], "the object is being read");
    let reads = core.peers[0].reads.clone();
    let stamp = core.calls[reads[0] as usize].stamp;
    let read = CallId {
        index: reads[0],
        stamp,
    };
    core.cancel(&mut notes, read);
    assert_eq!(notes.closed, [1]);
    let before = notes.sent.len();
    reopened(&mut core, &mut notes, target);
    let names = requests_since(&notes, before);
    assert_eq!(names, ["one more", "and another", "f2"]);
}

/// The names that requests since then stand for.
fn requests_since(notes: &Notes, before: usize) -> Vec<String> {
    let requests = notes.sent[before..].iter().filter_map(|(am, _, header)| {
        let request = RequestHeader::decode(header).filter(|_| *am == AM_INVOCATION)?;
        Some(notes.names[&u64::from(request.function)].clone())
    });
    requests.collect()
}

#[test]
fn a_call_without_a_number_that_is_given_up_holds_up_nothing() {
    let (mut core, mut notes, target, _) = numbers_kept();
    name_call(&mut core, &mut notes, target, "f0", 0);
    let (call, _) = name_call(&mut core, &mut notes, target, "one more", 0);
    let due = core.timer_next().unwrap();
    notes.now = due;
    core.tick(&mut notes, due);
    let before = notes.sent.len();
    name_call(&mut core, &mut notes, target, "f1", 0);
    assert_eq!(requests_since(&notes, before), [""; 0]);
    core.cancel(&mut notes, call);
    assert_eq!(requests_since(&notes, before), ["f1"]);
    assert_eq!(notes.closed, []);
}

/// A number is needed until its process has looked at the request, not until its caller hears so.
#[test]
fn a_large_request_that_was_given_up_gives_its_number_back() {
    let (mut core, mut notes, target, sequences) = numbers_kept();
    name_call(&mut core, &mut notes, target, "f0", 0);
    let before = notes.sent.len();
    let [first, second, third] = ["one more", "another", "and another"].map(|name| {
        let (call, sent) = name_call(&mut core, &mut notes, target, name, 5000);
        assert_eq!(sent, None);
        call
    });
    let cancelled = Status::Cancelled;
    core.on_reply(&mut notes, 1, sequences[7], cancelled, Payload::default());
    assert_eq!(requests_since(&notes, before), ["one more"]);
    core.cancel(&mut notes, second);
    let before = notes.sent.len();
    core.on_reply(&mut notes, 1, sequences[8], cancelled, Payload::default());
    assert_eq!(requests_since(&notes, before), ["and another"]);
    assert!(core.completed().is_some() && core.completed().is_none());
    assert!(core.pending(first) && core.pending(third));
    assert_eq!(notes.closed, []);
    // So does one that the process takes no part of.
    core.cancel(&mut notes, third);
    name_call(&mut core, &mut notes, target, "the last", 0);
    let before = notes.sent.len();
    let context = third.to_u64();
    core.on_send_refused(&mut notes, 1, context, Status::TooLarge as u32);
    assert_eq!(requests_since(&notes, before), ["the last"]);
    assert_eq!(notes.closed, []);
}
