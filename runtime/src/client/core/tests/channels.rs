//! Channels that are lost, left and opened again.

use super::*;

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
