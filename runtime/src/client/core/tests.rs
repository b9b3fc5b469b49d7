//! The core against a link that only takes notes.

mod calls;
mod channels;
mod names;
mod numbers;

use praas_transport::Address;

use super::*;
use crate::invocation::{
    AM_INVOCATION, AM_MAILBOX, CHANNEL_FUNCTIONS_MAX, Kind, PutBody, RequestHeader, Status,
};
use crate::locate::AM_STATE;

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

fn resolved() -> Resolved {
    Resolved {
        incarnation: Incarnation(3),
        addresses: vec![Address::Mem("p".into())],
    }
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
