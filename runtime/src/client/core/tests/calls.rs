//! Calls: their deadlines, their order, and what is given up.

use super::*;

/// The deadline that the last request tells its process, in microseconds.
fn deadline_told(notes: &Notes) -> u32 {
    let (am, _, header) = notes.sent.last().unwrap();
    assert_eq!(*am, AM_INVOCATION);
    RequestHeader::decode(header).unwrap().deadline_us
}

#[test]
fn a_deadline_that_the_header_cannot_say_is_not_told() {
    let (mut core, mut notes, target, function) = opened();
    assert_eq!(deadline_told(&notes), 0, "none was given");
    for (left, told) in [
        (Duration::from_micros(1500), 1500),
        (Duration::ZERO, 1),
        (Duration::from_secs(2 * 3600), 0),
    ] {
        let options = CallOptions {
            deadline: Some(notes.now + left),
            idempotent: false,
        };
        core.invoke(&mut notes, target, function, Payload::default(), options, 0)
            .unwrap();
        assert_eq!(deadline_told(&notes), told, "{left:?} are left");
    }
}

/// A read has no number among the invocations: the first of those is not meant.
#[test]
fn a_read_that_is_given_up_cancels_nothing() {
    let (mut core, mut notes, target, _) = opened();
    let options = CallOptions {
        deadline: Some(notes.now + Duration::from_millis(1)),
        idempotent: false,
    };
    core.read(&mut notes, target, "key", true, options, 0)
        .unwrap();
    let before = notes.sent.len();
    notes.now += Duration::from_millis(2);
    let now = notes.now;
    core.tick(&mut notes, now);
    assert_eq!(notes.sent.len(), before, "{:?}", notes.sent);
    let outcome = core.completed().unwrap().outcome;
    assert_eq!(outcome.err(), Some(InvokeError::DeadlineExceeded));
}

/// The payload of a large message comes after its header, by another way.
#[test]
fn what_is_put_after_a_large_message_under_its_key_waits_for_it() {
    let (mut core, mut notes, target, _) = opened();
    let pool = praas_transport::BufPool::new(1 << 20);
    let put = |core: &mut ClientCore<u32>, notes: &mut Notes, key: &str, bytes: usize| {
        let body = PutBody::new(key, &vec![0; bytes], &pool).unwrap();
        core.put(notes, target, body, CallOptions::default(), 0)
            .unwrap();
    };
    let puts = |notes: &mut Notes| -> Vec<u64> {
        let sent = notes.sent.drain(..).filter(|(am, ..)| *am == AM_MAILBOX);
        sent.map(|(_, tag, _)| tag).collect()
    };
    put(&mut core, &mut notes, "a", 5000);
    put(&mut core, &mut notes, "a", 1);
    put(&mut core, &mut notes, "b", 1);
    put(&mut core, &mut notes, "a", 5000);
    put(&mut core, &mut notes, "a", 2);
    assert_eq!(puts(&mut notes), [0, 2], "other keys go past it");
    core.on_put_answer(&mut notes, 1, 2, Status::Ok);
    assert_eq!(puts(&mut notes), []);
    core.on_put_answer(&mut notes, 1, 0, Status::Ok);
    assert_eq!(
        puts(&mut notes),
        [1, 3],
        "the second large one holds up the last"
    );
    core.on_put_answer(&mut notes, 1, 3, Status::MailboxFull);
    assert_eq!(puts(&mut notes), [4]);
    // What waits when the channel ends goes over the next one.
    put(&mut core, &mut notes, "a", 5000);
    put(&mut core, &mut notes, "a", 1);
    assert_eq!(puts(&mut notes), [5]);
    core.on_close(&mut notes, 1, true, "closed");
    let resolved = Resolved {
        incarnation: Incarnation(4),
        addresses: vec![Address::Mem("p".into())],
    };
    core.on_resolved(&mut notes, target, Ok(resolved));
    core.on_open(&mut notes, 2, Incarnation(4));
    assert_eq!(puts(&mut notes), [1, 4, 5], "and the last one waits anew");
}

/// What it held up is let go before the process is left: else it would be the first to go there.
#[test]
fn what_waits_behind_a_large_message_stays_behind_it_when_that_is_turned_away() {
    let (mut core, mut notes, target, _) = opened();
    core.on_reply(&mut notes, 1, 0, Status::Ok, Payload::default());
    let pool = praas_transport::BufPool::new(1 << 20);
    for bytes in [5000, 1] {
        let body = PutBody::new("a", &vec![0; bytes], &pool).unwrap();
        core.put(&mut notes, target, body, CallOptions::default(), 0)
            .unwrap();
    }
    notes.sent.clear();
    core.on_put_answer(&mut notes, 1, 0, Status::Quiescing);
    assert_eq!(notes.closed, [1], "nothing is under way there");
    notes.now += RETRY_FIRST;
    let now = notes.now;
    core.tick(&mut notes, now);
    let resolved = Resolved {
        incarnation: Incarnation(4),
        addresses: vec![Address::Mem("p".into())],
    };
    core.on_resolved(&mut notes, target, Ok(resolved));
    core.on_open(&mut notes, 2, Incarnation(4));
    core.on_put_answer(&mut notes, 2, 0, Status::Ok);
    let sent = notes.sent.iter().filter(|(am, ..)| *am == AM_MAILBOX);
    let sent: Vec<u64> = sent.map(|(_, tag, _)| *tag).collect();
    assert_eq!(sent, [0, 1]);
}

/// The process stays: nothing else that goes there waits, and no channel is closed.
#[test]
fn a_read_of_what_is_in_storage_yet_asks_again_later() {
    let (mut core, mut notes, target, function) = opened();
    let options = CallOptions::default();
    let read = core.read(&mut notes, target, "key", false, options, 0);
    let read = read.unwrap();
    let asked = |notes: &Notes| notes.sent.iter().filter(|sent| sent.0 == AM_STATE).count();
    assert_eq!(asked(&notes), 1);
    let mut pause = Duration::ZERO;
    for times in 2..6 {
        core.read_later(notes.now, read, 1);
        core.invoke(&mut notes, target, function, Payload::default(), options, 0)
            .unwrap();
        assert_eq!(notes.sent.last().unwrap().0, AM_INVOCATION);
        let due = core.timer_next().unwrap();
        assert!(due - notes.now > pause, "it waits longer each time");
        pause = due - notes.now;
        notes.now = due;
        core.tick(&mut notes, due);
        assert_eq!(asked(&notes), times);
    }
    assert_eq!(notes.closed, []);
    // One that has begun anew elsewhere is not asked for twice.
    core.read_later(notes.now, read, 1);
    core.on_close(&mut notes, 1, true, "");
    let due = core.timer_next().unwrap();
    notes.now = due;
    core.tick(&mut notes, due);
    assert_eq!(asked(&notes), 5);
}
