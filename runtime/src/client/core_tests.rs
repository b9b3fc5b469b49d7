//! The core against a link that only takes notes.

use praas_transport::Address;

use super::*;
use crate::invocation::CHANNEL_FUNCTIONS_MAX;

/// Answers at once, with the same process at every question.
struct Notes {
    now: Instant,
    asked: Vec<Target>,
    sent: Vec<(u8, u64, Vec<u8>)>,
    /// What was interned last, by number.
    names: HashMap<u64, String>,
    channels: u32,
    closed: Vec<u32>,
}

impl Link for Notes {
    type Channel = u32;

    fn connect(&mut self, _: &Resolved) -> Result<u32, String> {
        self.channels += 1;
        Ok(self.channels)
    }

    fn send(&mut self, _: u32, am: u8, tag: u64, header: &[u8], body: &Payload, _: u64) -> Sent {
        if (am, header.first().copied()) == (AM_INVOCATION, Some(Kind::Intern as u8)) {
            let name = String::from_utf8(body.to_vec()).unwrap();
            self.names.insert(tag, name);
        }
        self.sent.push((am, tag, header.to_vec()));
        match body.len() > 1000 {
            true => Sent::Pending,
            false => Sent::Done,
        }
    }

    fn resolve(&mut self, target: Target, _: &str) {
        self.asked.push(target);
    }

    fn close(&mut self, channel: u32) {
        self.closed.push(channel);
    }

    fn now(&self) -> Instant {
        self.now
    }
}

fn opened() -> (ClientCore<u32>, Notes, Target, FunctionId) {
    let mut notes = Notes {
        now: Instant::now(),
        asked: Vec::new(),
        sent: Vec::new(),
        names: HashMap::new(),
        channels: 0,
        closed: Vec::new(),
    };
    let mut core = ClientCore::new(CoreLimits::default());
    let target = core.target("p").unwrap();
    let function = core.function(target, "f").unwrap();
    core.invoke(
        &mut notes,
        target,
        function,
        Payload::default(),
        CallOptions::default(),
        0,
    )
    .unwrap();
    assert_eq!(notes.asked, [target]);
    let resolved = Resolved {
        incarnation: Incarnation(3),
        addresses: vec![Address::Mem("p".into())],
    };
    core.on_resolved(&mut notes, target, Ok(resolved));
    core.on_open(&mut notes, 1, Incarnation(3));
    (core, notes, target, function)
}

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

/// A swap that fails leaves the process where it was, on a channel that nobody closes.
#[test]
fn what_a_process_turned_away_goes_out_again_once_the_others_are_answered() {
    let (mut core, mut notes, target, function) = opened();
    let options = CallOptions::default();
    let second = core.invoke(&mut notes, target, function, Payload::default(), options, 0);
    let second = second.unwrap();
    core.on_reply(&mut notes, 1, 1, Status::Quiescing, Payload::default());
    assert_eq!(notes.closed, [], "the first one still runs there");
    core.on_reply(&mut notes, 1, 0, Status::Ok, Payload::default());
    assert_eq!(notes.closed, [1]);
    notes.now += RETRY_FIRST;
    let now = notes.now;
    core.tick(&mut notes, now);
    let resolved = Resolved {
        incarnation: Incarnation(3),
        addresses: vec![Address::Mem("p".into())],
    };
    core.on_resolved(&mut notes, target, Ok(resolved));
    core.on_open(&mut notes, 2, Incarnation(3));
    core.on_reply(&mut notes, 2, 1, Status::Ok, Payload::default());
    core.completed().unwrap();
    assert_eq!(core.completed().unwrap().call, second);
}

/// One that ends each channel without a word is not come back to at once, whatever its reason.
#[test]
fn a_process_that_says_nothing_is_tried_less_and_less_often() {
    let (mut core, mut notes, target, _) = opened();
    let resolved = || Resolved {
        incarnation: Incarnation(3),
        addresses: vec![Address::Mem("p".into())],
    };
    let mut pause = Duration::ZERO;
    for channel in 1..12 {
        let asked = notes.asked.len();
        core.on_close(
            &mut notes,
            channel,
            true,
            "it numbers functions out of range",
        );
        assert_eq!(notes.asked.len(), asked, "not yet");
        let due = core.timer_next().unwrap();
        assert!(due - notes.now > pause || due - notes.now == RETRY_MAX);
        pause = due - notes.now;
        notes.now = due;
        core.tick(&mut notes, due);
        assert_eq!(notes.asked.len(), asked + 1);
        core.on_resolved(&mut notes, target, Ok(resolved()));
        core.on_open(&mut notes, channel + 1, Incarnation(3));
    }
    assert_eq!(pause, RETRY_MAX);
    // One that answers is gone for another reason.
    let function = core.function(target, "f").unwrap();
    let options = CallOptions::default();
    core.invoke(&mut notes, target, function, Payload::default(), options, 0)
        .unwrap();
    core.on_reply(&mut notes, 12, 0, Status::Ok, Payload::default());
    let asked = notes.asked.len();
    core.on_close(&mut notes, 12, true, "swapped out");
    assert_eq!(notes.asked.len(), asked + 1);
}

/// A process that opens each channel and ends it without a word, until nothing waits for it or it
/// was tried so often.
fn open_and_close(core: &mut ClientCore<u32>, notes: &mut Notes, target: Target, tries: usize) {
    for _ in 0..tries {
        let (channel, asked) = (notes.channels, notes.asked.len());
        core.on_close(notes, channel, true, "no reason");
        if let Some(due) = core.timer_next() {
            notes.now = due;
            core.tick(notes, due);
        }
        if notes.asked.len() == asked {
            return;
        }
        core.on_resolved(notes, target, Ok(resolved()));
        let channel = notes.channels;
        core.on_open(notes, channel, Incarnation(3));
    }
}

fn resolved() -> Resolved {
    Resolved {
        incarnation: Incarnation(3),
        addresses: vec![Address::Mem("p".into())],
    }
}

#[test]
fn a_call_ends_if_its_process_opens_channels_and_says_nothing() {
    let (mut core, mut notes, target, function) = opened();
    let began = notes.now;
    open_and_close(&mut core, &mut notes, target, 1000);
    let outcome = core.completed().expect("it was tried for ever").outcome;
    assert_eq!(outcome.err(), Some(InvokeError::OutcomeUnknown));
    assert!(notes.now - began >= core.limits.reconnect_for);
    // The next call is tried for as long again.
    let began = notes.now;
    let options = CallOptions::default();
    core.invoke(&mut notes, target, function, Payload::default(), options, 0)
        .unwrap();
    core.on_resolved(&mut notes, target, Err("not now".into()));
    core.completed().unwrap();
    core.invoke(&mut notes, target, function, Payload::default(), options, 0)
        .unwrap();
    core.on_resolved(&mut notes, target, Ok(resolved()));
    let channel = notes.channels;
    core.on_open(&mut notes, channel, Incarnation(3));
    open_and_close(&mut core, &mut notes, target, 1000);
    core.completed().unwrap();
    assert!(notes.now - began >= core.limits.reconnect_for);
}

/// Only what fails all the time fails: a word in between, or a channel that lasts, is none of it.
#[test]
fn a_process_that_is_heard_or_stays_is_not_given_up() {
    let (mut core, mut notes, target, function) = opened();
    let options = CallOptions::default();
    for _ in 0..20 {
        open_and_close(&mut core, &mut notes, target, 12);
        let call = core.invoke(&mut notes, target, function, Payload::default(), options, 0);
        let channel = notes.channels;
        let sequence = core.calls[call.unwrap().index as usize].sequence;
        core.on_reply(
            &mut notes,
            channel,
            sequence,
            Status::Ok,
            Payload::default(),
        );
        core.completed().unwrap();
    }
    open_and_close(&mut core, &mut notes, target, 12);
    for _ in 0..20 {
        notes.now += core.limits.reconnect_for;
        open_and_close(&mut core, &mut notes, target, 12);
    }
    assert!(core.completed().is_none(), "the first call waits");
    // Nor does what failed long ago count, if nothing has waited for it since.
    core.cancel(&mut notes, CallId::from_u64(1 << 32));
    core.completed().unwrap();
    let channel = notes.channels;
    core.on_close(&mut notes, channel, true, "no reason");
    notes.now += core.limits.reconnect_for;
    core.invoke(&mut notes, target, function, Payload::default(), options, 0)
        .unwrap();
    core.on_resolved(&mut notes, target, Ok(resolved()));
    let channel = notes.channels;
    core.on_close(&mut notes, channel, false, "not reached");
    assert!(core.completed().is_none(), "it is tried again");
}

/// A process that takes nothing large, or shows no object, has said so: it is come back to soon.
#[test]
fn a_process_that_refuses_is_heard() {
    let (mut core, mut notes, target, function) = opened();
    let options = CallOptions::default();
    open_and_close(&mut core, &mut notes, target, 8);
    core.cancel(&mut notes, CallId::from_u64(1 << 32));
    let input = Payload::Buf(vec![0; 5000].into());
    let call = core.invoke(&mut notes, target, function, input, options, 0);
    let (call, channel) = (call.unwrap(), notes.channels);
    let frozen = Status::Quiescing as u32;
    core.on_send_refused(&mut notes, channel, call.to_u64(), frozen);
    assert_eq!(notes.closed, [channel]);
    assert_eq!(core.timer_next(), Some(notes.now + RETRY_FIRST));
    core.cancel(&mut notes, call);
    reopened(&mut core, &mut notes, target);
    let read = core.read(&mut notes, target, "key", false, options, 0);
    open_and_close(&mut core, &mut notes, target, 8);
    let (read, channel) = (read.unwrap(), notes.channels);
    core.read_refused(&mut notes, read, Status::Quiescing, Payload::default());
    assert_eq!(notes.closed.last(), Some(&channel));
    assert_eq!(core.timer_next(), Some(notes.now + RETRY_FIRST));
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

/// Invokes a function; the call, its sequence, and the name that its process takes its number for,
/// if it was sent.
fn name_call(
    core: &mut ClientCore<u32>,
    notes: &mut Notes,
    target: Target,
    name: &str,
    bytes: usize,
) -> (CallId, Option<(u64, String)>) {
    let before = notes.sent.len();
    let function = core.function(target, name).unwrap();
    let input = Payload::Buf(vec![0; bytes].into());
    let call = core.invoke(notes, target, function, input, CallOptions::default(), 0);
    (call.unwrap(), sent_since(notes, before))
}

/// The sequence of the last request since then, and the name that its number stands for.
fn sent_since(notes: &Notes, before: usize) -> Option<(u64, String)> {
    let (_, tag, header) = notes.sent.get(before..)?.last()?;
    let request = RequestHeader::decode(header).unwrap();
    Some((*tag, notes.names[&u64::from(request.function)].clone()))
}

/// The same, which is answered; the name.
fn name_called(
    core: &mut ClientCore<u32>,
    notes: &mut Notes,
    target: Target,
    name: &str,
    bytes: usize,
) -> Option<String> {
    let (_, sent) = name_call(core, notes, target, name, bytes);
    let (tag, name) = sent?;
    core.on_reply(notes, 1, tag, Status::Ok, Payload::default());
    Some(name)
}

/// A channel that was opened for a call that is answered.
fn answered() -> (ClientCore<u32>, Notes, Target) {
    let (mut core, mut notes, target, _) = opened();
    core.on_reply(&mut notes, 1, 0, Status::Ok, Payload::default());
    core.completed().unwrap();
    (core, notes, target)
}

/// The next channel to the process opens.
fn reopened(core: &mut ClientCore<u32>, notes: &mut Notes, target: Target) {
    notes.now += RETRY_FIRST;
    let now = notes.now;
    core.tick(notes, now);
    let resolved = Resolved {
        incarnation: Incarnation(3),
        addresses: vec![Address::Mem("p".into())],
    };
    core.on_resolved(notes, target, Ok(resolved));
    let channel = notes.channels;
    core.on_open(notes, channel, Incarnation(3));
}

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

#[test]
fn one_name_too_many_fails_alone() {
    let (mut core, mut notes, target) = answered();
    core.limits.functions_max = 2;
    core.function(target, "g").unwrap();
    let error = core.function(target, "h").unwrap_err();
    assert!(error.to_string().contains("functions_max"), "{error}");
    let called = name_called(&mut core, &mut notes, target, "g", 0);
    assert_eq!(called.as_deref(), Some("g"));
    assert_eq!(notes.closed, []);
}

#[test]
fn names_that_nothing_has_make_room_for_others() {
    let (mut core, mut notes, target) = answered();
    core.limits.functions_max = 3;
    let unknown = |core: &mut ClientCore<u32>, notes: &mut Notes, tag| {
        core.on_reply(notes, 1, tag, Status::UnknownFunction, Payload::default());
    };
    let call = |core: &mut ClientCore<u32>, notes: &mut Notes, name: &str| {
        let (_, sent) = name_call(core, notes, target, name, 0);
        let (tag, told) = sent.unwrap();
        assert_eq!(told, name);
        tag
    };
    let first = core.function(target, "x0").unwrap();
    for name in 0..100 {
        let name = format!("x{name}");
        let tag = call(&mut core, &mut notes, &name);
        unknown(&mut core, &mut notes, tag);
        let outcome = core.completed().unwrap().outcome;
        assert_eq!(outcome.err(), Some(InvokeError::UnknownFunction(name)));
        call(&mut core, &mut notes, "f");
    }
    // It is taken for none of those that came after it.
    let options = CallOptions::default();
    let late = core.invoke(&mut notes, target, first, Payload::default(), options, 0);
    let Err(Refusal::Never(InvokeError::Exhausted(text))) = late else {
        panic!("{late:?}");
    };
    assert!(text.contains("functions_max"), "{text}");
    // None is forgotten while a call uses it, or since there is such a function after all.
    let [one, other] = ["y", "y"].map(|name| call(&mut core, &mut notes, name));
    call(&mut core, &mut notes, "z");
    unknown(&mut core, &mut notes, one);
    assert!(core.function(target, "w").is_err());
    unknown(&mut core, &mut notes, other);
    let again = call(&mut core, &mut notes, "y");
    core.on_reply(&mut notes, 1, again, Status::Ok, Payload::default());
    assert!(core.function(target, "w").is_err());
    let last = call(&mut core, &mut notes, "y");
    unknown(&mut core, &mut notes, last);
    core.function(target, "w").unwrap();
}

#[test]
fn a_name_that_nothing_has_makes_room_also_if_its_caller_gave_up() {
    let (mut core, mut notes, target) = answered();
    core.limits.functions_max = 2;
    for name in 0..10 {
        let name = format!("x{name}");
        let (call, sent) = name_call(&mut core, &mut notes, target, &name, 0);
        let tag = sent.unwrap().0;
        core.cancel(&mut notes, call);
        assert!(core.function(target, "y").is_err(), "it may be there");
        let unknown = Status::UnknownFunction;
        core.on_reply(&mut notes, 1, tag, unknown, Payload::default());
    }
    // An answer that comes twice, or late, says nothing of the name that has the place since.
    let (call, sent) = name_call(&mut core, &mut notes, target, "x0", 0);
    core.cancel(&mut notes, call);
    let (other, again) = name_call(&mut core, &mut notes, target, "x0", 0);
    core.cancel(&mut notes, other);
    let answer = |core: &mut ClientCore<u32>, notes: &mut Notes, tag| {
        core.on_reply(notes, 1, tag, Status::UnknownFunction, Payload::default());
    };
    let tag = sent.unwrap().0;
    answer(&mut core, &mut notes, tag);
    core.function(target, "y").unwrap();
    answer(&mut core, &mut notes, tag);
    answer(&mut core, &mut notes, again.unwrap().0);
    assert!(core.function(target, "z").is_err());
}

#[test]
fn a_name_that_no_process_was_told_makes_room() {
    let (mut core, mut notes, target) = answered();
    core.limits.functions_max = 2;
    core.on_close(&mut notes, 1, true, "swapped out");
    for name in 0..10 {
        let name = format!("x{name}");
        let (call, _) = name_call(&mut core, &mut notes, target, &name, 0);
        match name.ends_with('5') {
            true => core.cancel(&mut notes, call),
            false => core.on_resolved(&mut notes, target, Err("none".into())),
        }
        core.completed().unwrap();
        if name.ends_with('5') {
            core.on_resolved(&mut notes, target, Err("none".into()));
        }
    }
    // The process may have the other one.
    core.function(target, "y").unwrap();
    assert!(core.function(target, "z").is_err());
    core.function(target, "f").unwrap();
}
