//! The client's protocol, without sockets, clocks or threads.
//!
//! ```text
//!   submit --> target unknown: resolve --> connect --> open: intern names, send requests
//!                                                        |
//!   completed <-- reply, put acknowledged, deadline, refusal, death of the process
//! ```
//!
//! One core speaks to many processes. Invocations of one process carry dense sequence numbers,
//! and `acked_delta` tells the process below which number we have all results. A call that was
//! in flight when a process ended in good order goes out again with the same number, to wherever
//! the process is next; when a process died, whether the call ran is not known, and the caller
//! hears so at once, unless the caller said that running it twice does no harm.

mod given_up;
mod names;
mod numbers;
mod reads;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

use praas_transport::wire::Incarnation;
use slab::Slab;

use self::given_up::GivenUp;
pub use self::names::FunctionId;
use self::names::Names;
use self::numbers::Numbers;
use super::one_way::OneWayTally;
use super::order::PutOrder;
use crate::directory::Resolved;
use crate::invocation::{
    AM_INVOCATION, AM_MAILBOX, InvokeError, Kind, PASSED_MAX, Payload, PutBody, RequestHeader,
    Status, passed_encode, short_header,
};
use crate::locate::{AM_STATE, LOCATE_BYTES, LocateHeader, LocateKind};
use crate::mailbox::PUTS_INFLIGHT_MAX;

/// What became of bytes that the core sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// They are on their way.
    Done,
    /// They are on their way; [`ClientCore::on_send_refused`] tells if the receiver refuses them.
    Pending,
    /// There is no room just now; [`ClientCore::on_writable`] follows.
    Busy,
    /// The channel has ended; [`ClientCore::on_close`] follows.
    Dead,
    /// The message is above a limit of this side.
    TooLarge(String),
}

/// What the core wants done: a few calls that a shell answers with an endpoint, a test with a
/// record.
pub trait Link {
    /// Names a channel.
    type Channel: Copy + Eq + Hash + Debug;

    /// Connects; [`ClientCore::on_open`] or [`ClientCore::on_close`] follows.
    ///
    /// # Errors
    /// Why it cannot even be tried.
    fn connect(&mut self, to: &Resolved) -> Result<Self::Channel, String>;

    /// Sends a message; `context` comes back if it is refused.
    fn send(
        &mut self,
        to: Self::Channel,
        am: u8,
        tag: u64,
        header: &[u8],
        payload: &Payload,
        context: u64,
    ) -> Sent;

    /// Asks the directory; [`ClientCore::on_resolved`] follows.
    fn resolve(&mut self, target: Target, process: &str);

    /// Closes a channel.
    fn close(&mut self, channel: Self::Channel);

    /// The time.
    fn now(&self) -> Instant;
}

/// A process that calls go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target(pub u32);

/// A call that was submitted. Never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    index: u32,
    stamp: u32,
}

impl CallId {
    /// The id as one number.
    pub fn to_u64(self) -> u64 {
        u64::from(self.stamp) << 32 | u64::from(self.index)
    }

    /// The id that was made one number.
    pub fn from_u64(value: u64) -> Self {
        Self {
            index: value as u32,
            stamp: (value >> 32) as u32,
        }
    }
}

/// How a call is to be treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// When the caller stops waiting; the function is told.
    pub deadline: Option<Instant>,
    /// Running it twice does no harm: it is sent again after its process died.
    pub idempotent: bool,
}

/// How a call ended, and for whom.
#[derive(Debug)]
pub struct Completed {
    /// Which call.
    pub call: CallId,
    /// What the submitter gave with it.
    pub owner: u64,
    /// The output.
    pub outcome: Result<Payload, InvokeError>,
    /// The version of an object that was read; zero if there is none, or it was no read.
    pub version: u64,
}

/// Limits of a client, with their units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreLimits {
    /// Invocations of one process between the oldest without a result and the newest.
    pub inflight_max: usize,
    /// Names of functions of one process that a client uses in its life, without those that the
    /// process does not have, or was never told; a call of one more gets `Exhausted`.
    pub functions_max: usize,
    /// How long a process that cannot be reached, or ends each channel without a word, is tried
    /// again.
    pub reconnect_for: Duration,
}

impl Default for CoreLimits {
    fn default() -> Self {
        Self {
            inflight_max: 1024,
            functions_max: 1 << 16,
            reconnect_for: Duration::from_secs(10),
        }
    }
}

const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// How long other calls go past those that a channel has no number for.
const STARVED_MAX: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Doing {
    Invoke {
        function: u32,
    },
    /// It ends when the function begins; its submitter hears so if it is to be `told`.
    OneWay {
        function: u32,
        told: bool,
    },
    /// The payload is the key, of so many bytes, and the body.
    Put {
        key_len: u32,
    },
    /// Reads a state object of the process, which was so often not where it was said to be, or not
    /// back from storage.
    Read {
        key: Box<str>,
        misses: u32,
        pauses: u8,
    },
}

impl Doing {
    /// The place of the function's name that it uses.
    #[inline]
    fn function(&self) -> Option<u32> {
        match self {
            Self::Invoke { function } | Self::OneWay { function, .. } => Some(*function),
            Self::Put { .. } | Self::Read { .. } => None,
        }
    }
}

#[derive(Debug)]
struct Call {
    stamp: u32,
    owner: u64,
    target: Target,
    doing: Doing,
    sequence: u64,
    payload: Payload,
    options: CallOptions,
    sent: bool,
    /// Whether the number of its function is kept for it on the channel.
    large: bool,
    /// The incarnation that may have run it, if that is not known.
    doubt: Option<Incarnation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bond<C> {
    Idle,
    Resolving,
    Connecting(C),
    Open(C),
}

#[derive(Debug)]
struct Peer<C> {
    name: Box<str>,
    link: Bond<C>,
    incarnation: Incarnation,
    /// Invocations from `base` on; `None` has its result.
    window: VecDeque<Option<u32>>,
    base: u64,
    /// Invocations below `base` without a result: they take long.
    passed: BTreeMap<u64, u32>,
    /// The process must hear of `passed` before the next request on this channel.
    pass_due: bool,
    /// Invocations without a result.
    outstanding: usize,
    puts: VecDeque<Option<u32>>,
    puts_base: u64,
    reads: Vec<u32>,
    /// Not sent on this channel, in the order of submission.
    unsent: VecDeque<CallId>,
    functions: Names,
    /// What stands for their names on the channel.
    numbers: Numbers,
    /// It has turned calls away, and is left once it has answered the others.
    leaving: bool,
    /// It has said something over this channel.
    heard: bool,
    /// The channel has no number for the first of `hungry`: it is left once nothing is under way
    /// there, unless something gives a number back first.
    starved: bool,
    /// Calls without a number, in order, which others go past.
    hungry: VecDeque<CallId>,
    /// They do not any more, so that the channel can be left: the hungry are the first unsent.
    dry: bool,
    /// What was sent on this channel, and may be answered to nobody.
    given_up: GivenUp,
    order: PutOrder,
    /// When to try again (on an open channel: when it is to run dry), after how long, and since
    /// when it fails: without a word, or a channel that lasts.
    retry: Option<Instant>,
    backoff: Duration,
    failing_since: Option<Instant>,
    /// When the last channel was opened.
    opened: Option<Instant>,
}

impl<C> Peer<C> {
    /// Whether another invocation may begin.
    #[inline]
    fn room(&self, inflight_max: usize) -> bool {
        self.window.len() < inflight_max || self.outstanding <= PASSED_MAX.min(inflight_max / 2)
    }

    /// Puts that need not wait any more go before all that was begun after them; whether there are
    /// any. What they waited for is seen to only then: should the process turn it away, and be left,
    /// all that is unsent is put in order.
    fn held_free(&mut self, free: impl FnOnce(&mut PutOrder) -> VecDeque<CallId>) -> bool {
        let free = free(&mut self.order);
        let any = !free.is_empty();
        for id in free.into_iter().rev() {
            self.unsent.push_front(id);
        }
        any
    }

    /// The hungry are to be the first to go.
    fn hungry_first(&mut self) {
        for id in std::mem::take(&mut self.hungry).into_iter().rev() {
            self.unsent.push_front(id);
        }
    }

    /// Its channel is no more, and with it all that was so on this channel only. Puts that waited
    /// come back in order.
    fn channel_end(&mut self) -> VecDeque<CallId> {
        self.link = Bond::Idle;
        (self.leaving, self.starved, self.dry) = (false, false, false);
        self.retry = None;
        self.given_up.clear();
        self.order.end()
    }

    /// It is tried again after a pause, longer each time.
    fn pause(&mut self, now: Instant) {
        self.retry = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(RETRY_MAX);
    }

    /// Begins a new window: what of the old one has no result takes long.
    fn pass(&mut self) {
        let window = std::mem::take(&mut self.window);
        for (sequence, slot) in (self.base..).zip(&window) {
            if let Some(index) = slot {
                self.passed.insert(sequence, *index);
            }
        }
        self.base += window.len() as u64;
        self.pass_due = true;
    }

    /// The call behind an invocation that has no result yet.
    #[inline]
    fn waiting(&self, sequence: u64) -> Option<u32> {
        match sequence.checked_sub(self.base) {
            Some(at) => self
                .window
                .get(usize::try_from(at).ok()?)
                .copied()
                .flatten(),
            None => self.passed.get(&sequence).copied(),
        }
    }

    /// The calls of all invocations, puts and reads that are under way.
    fn under_way(&self) -> impl Iterator<Item = u32> {
        let invocations = self.passed.values().chain(self.window.iter().flatten());
        let puts = self.puts.iter().flatten();
        invocations.chain(puts).chain(&self.reads).copied()
    }

    /// An invocation has its result.
    #[inline]
    fn done(&mut self, sequence: u64) {
        self.outstanding -= 1;
        match sequence.checked_sub(self.base) {
            None => drop(self.passed.remove(&sequence)),
            Some(at) => {
                if let Some(slot) = self.window.get_mut(at as usize) {
                    *slot = None;
                }
                while let Some(None) = self.window.front() {
                    self.window.pop_front();
                    self.base += 1;
                }
            }
        }
    }

    /// A put has its answer.
    fn put_done(&mut self, sequence: u64) {
        if let Some(slot) = self.puts.get_mut((sequence - self.puts_base) as usize) {
            *slot = None;
        }
        while let Some(None) = self.puts.front() {
            self.puts.pop_front();
            self.puts_base += 1;
        }
    }
}

/// The state of all calls of one client.
#[derive(Debug)]
pub struct ClientCore<C> {
    peers: Vec<Peer<C>>,
    by_name: HashMap<Box<str>, Target>,
    by_channel: HashMap<C, Target>,
    heard_last: Target,
    calls: Slab<Call>,
    stamp: u32,
    deadlines: BTreeSet<(Instant, CallId)>,
    /// Reads that are to ask again, and when.
    later: Vec<(Instant, CallId, C)>,
    completed: VecDeque<Completed>,
    one_way: OneWayTally,
    limits: CoreLimits,
    /// Where invocations may have been made before.
    repeats: Option<Incarnation>,
}

/// Why a call could not be submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Too many under way: wait for one to end.
    Full,
    /// It can never be sent.
    Never(InvokeError),
}

impl Refusal {
    /// The error that a caller sees.
    pub fn into_error(self) -> InvokeError {
        match self {
            Self::Full => InvokeError::Exhausted("too many calls are under way".into()),
            Self::Never(error) => error,
        }
    }
}

impl<C: Copy + Eq + Hash + Debug> ClientCore<C> {
    /// A core without calls.
    pub fn new(limits: CoreLimits) -> Self {
        Self {
            peers: Vec::new(),
            by_name: HashMap::new(),
            by_channel: HashMap::new(),
            heard_last: Target(0),
            calls: Slab::new(),
            stamp: 0,
            deadlines: BTreeSet::new(),
            later: Vec::new(),
            completed: VecDeque::new(),
            one_way: OneWayTally::default(),
            limits,
            repeats: None,
        }
    }

    /// Invocations from here on may have been made before, under the same client id and sequence:
    /// to this incarnation.
    pub fn repeats(&mut self, first: Incarnation) {
        self.repeats = Some(first);
    }

    /// The target that a process's name stands for.
    ///
    /// # Errors
    /// A name that no process has.
    pub fn target(&mut self, process: &str) -> Result<Target, InvokeError> {
        if let Some(target) = self.by_name.get(process) {
            return Ok(*target);
        }
        if process.is_empty() || process.len() > 255 {
            let text = format!("a process's name has 1 to 255 bytes, not {}", process.len());
            return Err(InvokeError::Malformed(text));
        }
        let target = Target(self.peers.len() as u32);
        self.peers.push(Peer {
            name: process.into(),
            link: Bond::Idle,
            incarnation: Incarnation(0),
            window: VecDeque::new(),
            base: 0,
            passed: BTreeMap::new(),
            pass_due: false,
            outstanding: 0,
            puts: VecDeque::new(),
            puts_base: 0,
            reads: Vec::new(),
            unsent: VecDeque::new(),
            functions: Names::default(),
            numbers: Numbers::default(),
            leaving: false,
            heard: false,
            starved: false,
            hungry: VecDeque::new(),
            dry: false,
            given_up: GivenUp::default(),
            order: PutOrder::default(),
            retry: None,
            backoff: RETRY_FIRST,
            failing_since: None,
            opened: None,
        });
        self.by_name.insert(process.into(), target);
        Ok(target)
    }

    /// What stands for a function's name with a target, as long as it is not forgotten since there
    /// is no such function.
    ///
    /// # Errors
    /// A name that no function has; more names than a client may use.
    pub fn function(&mut self, target: Target, name: &str) -> Result<FunctionId, InvokeError> {
        let peer = &mut self.peers[target.0 as usize];
        if let Some(function) = peer.functions.find(name) {
            return Ok(function);
        }
        if name.is_empty() || name.len() > 255 {
            let text = format!("a function's name has 1 to 255 bytes, not {}", name.len());
            return Err(InvokeError::Malformed(text));
        }
        if peer.functions.len() < self.limits.functions_max {
            peer.numbers.function_add();
            return Ok(peer.functions.add(name));
        }
        let theirs = self.calls.iter().filter(|(_, call)| call.target == target);
        let used = theirs.filter_map(|(_, call)| call.doing.function());
        match peer.functions.replace(name, &used.collect()) {
            Some(function) => {
                peer.numbers.function_replace(function.at);
                Ok(function)
            }
            None => Err(InvokeError::Exhausted(format!(
                "this client has used {} names of functions of process '{}' (functions_max)",
                peer.functions.len(),
                peer.name
            ))),
        }
    }

    /// Submits an invocation. `owner` comes back with the result.
    ///
    /// # Errors
    /// Too many under way.
    #[inline]
    pub fn invoke<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        function: FunctionId,
        payload: Payload,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        self.function_begin(target, function)?;
        let function = function.at;
        let doing = Doing::Invoke { function };
        self.invocation_add(link, target, doing, payload, options, owner)
    }

    /// Submits a one-way invocation: it ends when its function has begun, and its deadline is for
    /// that. It is counted in [`ClientCore::one_way`]; it completes as others do only if it is to
    /// be `told`.
    ///
    /// # Errors
    /// Too many under way.
    #[allow(clippy::too_many_arguments)] // Those of an invocation, and one.
    pub fn invoke_one_way<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        function: FunctionId,
        payload: Payload,
        options: CallOptions,
        owner: u64,
        told: bool,
    ) -> Result<CallId, Refusal> {
        self.function_begin(target, function)?;
        let function = function.at;
        let doing = Doing::OneWay { function, told };
        let call = self.invocation_add(link, target, doing, payload, options, owner)?;
        self.one_way.pending += 1;
        Ok(call)
    }

    #[inline]
    fn function_begin(&mut self, target: Target, function: FunctionId) -> Result<(), Refusal> {
        let peer = &mut self.peers[target.0 as usize];
        match peer.functions.begin(function) {
            true => Ok(()),
            false => Err(function_forgotten(&peer.name)),
        }
    }

    #[inline]
    fn invocation_add<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        doing: Doing,
        payload: Payload,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        let peer = &mut self.peers[target.0 as usize];
        if !peer.room(self.limits.inflight_max) {
            return Err(Refusal::Full);
        }
        if peer.window.len() >= self.limits.inflight_max {
            peer.pass();
        }
        peer.outstanding += 1;
        let sequence = peer.base + peer.window.len() as u64;
        let id = self.call_add(Call {
            stamp: 0,
            owner,
            target,
            doing,
            sequence,
            payload,
            options,
            sent: false,
            large: false,
            doubt: self.repeats,
        });
        self.peers[target.0 as usize]
            .window
            .push_back(Some(id.index));
        self.call_start(link, id);
        Ok(id)
    }

    /// Submits a put of a message.
    ///
    /// # Errors
    /// Too many under way.
    pub fn put<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        body: PutBody,
        options: CallOptions,
        owner: u64,
    ) -> Result<CallId, Refusal> {
        let peer = &mut self.peers[target.0 as usize];
        if peer.puts.len() >= PUTS_INFLIGHT_MAX {
            return Err(Refusal::Full);
        }
        let sequence = peer.puts_base + peer.puts.len() as u64;
        let (key_len, payload) = body.into_parts();
        let id = self.call_add(Call {
            stamp: 0,
            owner,
            target,
            doing: Doing::Put { key_len },
            sequence,
            payload,
            options,
            sent: false,
            large: false,
            doubt: None,
        });
        self.peers[target.0 as usize].puts.push_back(Some(id.index));
        self.call_start(link, id);
        Ok(id)
    }

    /// Gives up on a call: its process is told, and the caller hears [`InvokeError::Cancelled`].
    pub fn cancel<L: Link<Channel = C>>(&mut self, link: &mut L, id: CallId) {
        self.give_up(link, id, InvokeError::Cancelled);
    }

    /// The next call that has ended.
    #[inline]
    pub fn completed(&mut self) -> Option<Completed> {
        self.completed.pop_front()
    }

    /// What became of one-way invocations so far.
    pub fn one_way(&self) -> &OneWayTally {
        &self.one_way
    }

    /// Whether calls are under way.
    pub fn is_busy(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Whether a call is under way.
    pub fn pending(&self, id: CallId) -> bool {
        self.call(id).is_some()
    }

    /// Whether another invocation of a target may begin.
    #[inline]
    pub fn room(&self, target: Target) -> bool {
        self.peers[target.0 as usize].room(self.limits.inflight_max)
    }

    /// Whether another put to a target may begin.
    pub fn room_put(&self, target: Target) -> bool {
        self.peers[target.0 as usize].puts.len() < PUTS_INFLIGHT_MAX
    }

    /// When [`ClientCore::tick`] is needed next.
    pub fn timer_next(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let retry = self.peers.iter().filter_map(|peer| peer.retry).min();
        let read = self.later.iter().map(|(at, ..)| *at).min();
        [deadline, retry, read].into_iter().flatten().min()
    }

    /// Lets time pass: deadlines and another try at what could not be reached.
    pub fn tick<L: Link<Channel = C>>(&mut self, link: &mut L, now: Instant) {
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            self.give_up(link, id, InvokeError::DeadlineExceeded);
        }
        self.reads_ask(link, now);
        for at in 0..self.peers.len() {
            if self.peers[at].retry.is_some_and(|retry| retry <= now) {
                self.peers[at].retry = None;
                self.resolve(link, Target(at as u32));
                self.run_dry(link, Target(at as u32));
            }
        }
    }

    /// The directory's answer.
    pub fn on_resolved<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        answer: Result<Resolved, String>,
    ) {
        let Some(peer) = self.peers.get_mut(target.0 as usize) else {
            return;
        };
        if peer.link != Bond::Resolving {
            return;
        }
        peer.link = Bond::Idle;
        match answer {
            Ok(resolved) => match link.connect(&resolved) {
                Ok(channel) => {
                    peer.link = Bond::Connecting(channel);
                    self.by_channel.insert(channel, target);
                }
                Err(reason) => self.retry_later(link.now(), target, &reason),
            },
            Err(reason) => self.unavailable(target, &reason),
        }
    }

    /// A channel that [`Link::connect`] began is open.
    pub fn on_open<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        incarnation: Incarnation,
    ) {
        let Some(target) = self.by_channel.get(&channel).copied() else {
            return;
        };
        let peer = &mut self.peers[target.0 as usize];
        peer.link = Bond::Open(channel);
        peer.incarnation = incarnation;
        peer.numbers.clear();
        peer.pass_due = !peer.passed.is_empty();
        peer.opened = Some(link.now());
        peer.heard = false;
        self.unsent_send(link, target);
    }

    /// A channel has ended; `graceful` if the process ended it in good order.
    pub fn on_close<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        graceful: bool,
        reason: &str,
    ) {
        let Some(target) = self.by_channel.remove(&channel) else {
            return;
        };
        let peer = &mut self.peers[target.0 as usize];
        let was_open = matches!(peer.link, Bond::Open(_));
        // All that waits is among the calls that were not sent.
        let _ = peer.channel_end();
        peer.hungry.clear();
        if !was_open {
            self.retry_later(link.now(), target, reason);
            return;
        }
        let incarnation = peer.incarnation;
        let mut again = Vec::new();
        let mut lost = Vec::new();
        for index in peer.under_way() {
            let call = &mut self.calls[index as usize];
            let id = CallId {
                index,
                stamp: call.stamp,
            };
            call.large = false;
            if !call.sent {
                again.push((call.sequence, id));
                continue;
            }
            if let Doing::Read { .. } = call.doing {
                call.sent = false;
                again.push((call.sequence, id));
                continue;
            }
            let put = matches!(call.doing, Doing::Put { .. });
            let twice = call.doubt.is_some_and(|doubt| doubt != incarnation);
            let repeat = call.options.idempotent || put && graceful || graceful && !twice;
            if !repeat {
                lost.push(id);
                continue;
            }
            call.sent = false;
            call.doubt.get_or_insert(incarnation);
            again.push((call.sequence, id));
        }
        // Invocations and puts are ordered each; between the two no order is promised.
        again.sort_unstable();
        self.peers[target.0 as usize].unsent = again.into_iter().map(|(_, id)| id).collect();
        for id in lost {
            self.complete(id, Err(InvokeError::OutcomeUnknown));
        }
        let peer = &mut self.peers[target.0 as usize];
        if peer.unsent.is_empty() {
            return;
        }
        if peer.heard {
            return self.resolve(link, target);
        }
        // Who ends each channel without a word, for whatever reason, is not asked for ever, nor
        // faster and faster. One that took so long about it was there.
        let now = link.now();
        let lasted = peer.opened.map(|at| now.saturating_duration_since(at));
        if lasted.is_some_and(|lasted| lasted >= self.limits.reconnect_for) {
            peer.failing_since = None;
        }
        self.retry_later(now, target, reason);
    }

    /// A channel was refused, for a reason that does not pass: what waits for it ends now.
    pub fn on_refused(&mut self, channel: C, reason: &str) {
        let Some(target) = self.by_channel.remove(&channel) else {
            return;
        };
        self.peers[target.0 as usize].link = Bond::Idle;
        self.unavailable(target, reason);
    }

    /// A reply to an invocation came.
    #[inline]
    pub fn on_reply<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        sequence: u64,
        status: Status,
        payload: Payload,
    ) {
        let Some(target) = self.target_of(channel) else {
            return;
        };
        self.heard(target);
        let Some(index) = self.peers[target.0 as usize].waiting(sequence) else {
            return self
                .nobody_answered(link, target, status, |given_up| given_up.answered(sequence));
        };
        if status == Status::Quiescing {
            // It would have known had it run, there or where it was sent before.
            self.calls[index as usize].doubt = None;
        }
        self.answered(link, index, status, payload);
    }

    /// Whose channel it is; most often of whoever was heard last.
    #[inline]
    fn target_of(&mut self, channel: C) -> Option<Target> {
        let last = self.peers.get(self.heard_last.0 as usize);
        if !last.is_some_and(|peer| matches!(peer.link, Bond::Open(open) if open == channel)) {
            self.heard_last = *self.by_channel.get(&channel)?;
        }
        Some(self.heard_last)
    }

    /// Whether the result of an invocation is still waited for.
    pub fn wants(&self, channel: C, sequence: u64) -> bool {
        let Some(peer) = self
            .by_channel
            .get(&channel)
            .map(|target| &self.peers[target.0 as usize])
        else {
            return false;
        };
        peer.waiting(sequence).is_some()
    }

    /// A put was answered.
    pub fn on_put_answer<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        sequence: u64,
        status: Status,
    ) {
        let Some(target) = self.by_channel.get(&channel).copied() else {
            return;
        };
        self.heard(target);
        let peer = &mut self.peers[target.0 as usize];
        let freed = peer.held_free(|order| order.answered(sequence));
        let slot = sequence
            .checked_sub(peer.puts_base)
            .and_then(|at| peer.puts.get(at as usize));
        if let Some(Some(index)) = slot.copied() {
            self.answered(link, index, status, Payload::default());
        }
        if freed {
            self.unsent_send(link, target);
        }
    }

    /// The receiver refused a large message; the reason is a [`Status`].
    pub fn on_send_refused<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        channel: C,
        context: u64,
        reason: u32,
    ) {
        let Some(target) = self.target_of(channel) else {
            return;
        };
        self.heard(target);
        let id = CallId::from_u64(context);
        let freed = self.peers[target.0 as usize].held_free(|order| order.refused(id));
        if self.call(id).is_some() {
            let status = u16::try_from(reason).ok().and_then(Status::from_code);
            let status = status.unwrap_or(Status::TooLarge);
            self.answered(link, id.index, status, Payload::default());
        } else {
            let refused = Status::Quiescing;
            self.nobody_answered(link, target, refused, |given_up| given_up.refused(id));
        }
        if freed {
            self.unsent_send(link, target);
        }
    }

    /// There is room on a channel again.
    pub fn on_writable<L: Link<Channel = C>>(&mut self, link: &mut L, channel: C) {
        if let Some(target) = self.by_channel.get(&channel).copied() {
            self.unsent_send(link, target);
        }
    }

    /// Whether a channel is one of this core's.
    #[inline]
    pub fn owns(&self, channel: C) -> bool {
        self.by_channel.contains_key(&channel)
    }

    /// The open channel to a target and the incarnation behind it.
    pub fn channel(&self, target: Target) -> Option<(C, Incarnation)> {
        let peer = self.peers.get(target.0 as usize)?;
        match peer.link {
            Bond::Open(channel) => Some((channel, peer.incarnation)),
            _ => None,
        }
    }

    /// Closes every channel in good order.
    pub fn close_all<L: Link<Channel = C>>(&mut self, link: &mut L) {
        for peer in &mut self.peers {
            if let Bond::Open(channel) = peer.link {
                peer.link = Bond::Idle;
                self.by_channel.remove(&channel);
                link.close(channel);
            }
        }
    }
}

impl<C: Copy + Eq + Hash + Debug> ClientCore<C> {
    fn call(&self, id: CallId) -> Option<&Call> {
        self.calls
            .get(id.index as usize)
            .filter(|call| call.stamp == id.stamp)
    }

    #[inline]
    fn call_add(&mut self, mut call: Call) -> CallId {
        self.stamp = self.stamp.wrapping_add(1);
        call.stamp = self.stamp;
        let deadline = call.options.deadline;
        let index = self.calls.insert(call) as u32;
        let id = CallId {
            index,
            stamp: self.stamp,
        };
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, id));
        }
        id
    }

    /// Sends a call that is new, or sees to it that it can be sent.
    #[inline]
    fn call_start<L: Link<Channel = C>>(&mut self, link: &mut L, id: CallId) {
        let target = self.calls[id.index as usize].target;
        let peer = &mut self.peers[target.0 as usize];
        match peer.link {
            Bond::Open(channel) if peer.unsent.is_empty() => {
                if !self.call_send(link, channel, id) {
                    self.peers[target.0 as usize].unsent.push_back(id);
                    self.leave_if_due(link, target);
                }
            }
            Bond::Idle if peer.retry.is_none() => {
                // Nothing has waited for it: what failed before says little.
                peer.failing_since = None;
                peer.unsent.push_back(id);
                self.resolve(link, target);
            }
            _ => peer.unsent.push_back(id),
        }
    }

    /// Sends a call on an open channel, or sees to it that it is sent in its turn; `false` if there
    /// is no room.
    #[inline]
    fn call_send<L: Link<Channel = C>>(&mut self, link: &mut L, channel: C, id: CallId) -> bool {
        let call = &mut self.calls[id.index as usize];
        let peer = &mut self.peers[call.target.0 as usize];
        let sent = match &call.doing {
            Doing::Invoke { function } | Doing::OneWay { function, .. } => {
                let function = *function;
                if peer.pass_due {
                    let header = short_header(Kind::Passed, 0, 0);
                    let passed = Payload::Buf(passed_encode(peer.passed.keys().copied()).into());
                    match link.send(channel, AM_INVOCATION, peer.base, &header, &passed, 0) {
                        Sent::Done | Sent::Pending => peer.pass_due = false,
                        Sent::Busy => return false,
                        Sent::Dead | Sent::TooLarge(_) => return true,
                    }
                }
                let number = match peer.numbers.number(function) {
                    Some(number) => number,
                    None => match function_tell(link, channel, peer, function) {
                        Told::Number(number) => number,
                        Told::Busy => return false,
                        Told::Dead => return true,
                        Told::None if peer.dry => return false,
                        Told::None => {
                            self.starve(link, id);
                            return true;
                        }
                    },
                };
                let deadline_us = call.options.deadline.map_or(0, |deadline| {
                    let left = deadline.saturating_duration_since(link.now()).as_micros();
                    // What does not fit is further away than the header can say: no deadline there.
                    u32::try_from(left).map_or(0, |left| left.max(1))
                });
                let acked_delta =
                    u32::try_from(call.sequence.saturating_sub(peer.base)).unwrap_or(u32::MAX);
                let header = RequestHeader {
                    function: number,
                    deadline_us,
                    acked_delta,
                    first: call.doubt,
                    one_way: matches!(call.doing, Doing::OneWay { .. }),
                };
                let (header, len) = header.encode();
                let (sequence, context) = (call.sequence, id.to_u64());
                link.send(
                    channel,
                    AM_INVOCATION,
                    sequence,
                    &header[..len],
                    &call.payload,
                    context,
                )
            }
            Doing::Put { key_len } => {
                let key = call.payload.get(..*key_len as usize).unwrap_or_default();
                if peer.order.waits(key) {
                    peer.order.hold(id, key);
                    return true;
                }
                let header = short_header(Kind::Put, 0, *key_len);
                link.send(
                    channel,
                    AM_MAILBOX,
                    call.sequence,
                    &header,
                    &call.payload,
                    id.to_u64(),
                )
            }
            Doing::Read { key, misses, .. } => {
                // An object that changes faster than it can be read comes with the answer.
                let whole = *misses > 1;
                let header = LocateHeader {
                    kind: LocateKind::Locate,
                    flags: if whole { LOCATE_BYTES } else { 0 },
                    status: 0,
                };
                let key = Payload::Inline(smallvec::SmallVec::from_slice(key.as_bytes()));
                let (header, context) = (header.encode(), id.to_u64());
                link.send(channel, AM_STATE, context, &header, &key, context)
            }
        };
        match sent {
            Sent::Done => call.sent = true,
            Sent::Pending => {
                call.sent = true;
                match call.doing {
                    Doing::Put { key_len } => {
                        let key = call.payload.get(..key_len as usize).unwrap_or_default();
                        peer.order.large_sent(call.sequence, id, key);
                    }
                    Doing::Invoke { function } | Doing::OneWay { function, .. } => {
                        peer.numbers.keep(function);
                        call.large = true;
                    }
                    Doing::Read { .. } => {}
                }
            }
            Sent::Busy => return false,
            // The end of the channel is told next, and the call seen to then.
            Sent::Dead => call.sent = true,
            Sent::TooLarge(text) => self.complete(id, Err(InvokeError::TooLarge(text))),
        }
        true
    }

    fn unsent_send<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        while let Bond::Open(channel) = self.peers[target.0 as usize].link
            && let Some(id) = self.peers[target.0 as usize].unsent.pop_front()
        {
            if self.call(id).is_some() && !self.call_send(link, channel, id) {
                self.peers[target.0 as usize].unsent.push_front(id);
                return self.leave_if_due(link, target);
            }
        }
    }

    fn resolve<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        let peer = &mut self.peers[target.0 as usize];
        if peer.link == Bond::Idle && !peer.unsent.is_empty() {
            peer.link = Bond::Resolving;
            peer.retry = None;
            link.resolve(target, &peer.name);
        }
    }

    fn retry_later(&mut self, now: Instant, target: Target, reason: &str) {
        let peer = &mut self.peers[target.0 as usize];
        let since = *peer.failing_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.limits.reconnect_for {
            self.unavailable(target, reason);
            return;
        }
        peer.pause(now);
    }

    /// A process has said something over its present channel.
    #[inline]
    fn heard(&mut self, target: Target) {
        let peer = &mut self.peers[target.0 as usize];
        if !peer.heard {
            peer.heard = true;
            peer.backoff = RETRY_FIRST;
            peer.failing_since = None;
        }
    }

    /// Ends everything that waits for a process that is not to be had.
    fn unavailable(&mut self, target: Target, reason: &str) {
        let peer = &mut self.peers[target.0 as usize];
        peer.retry = None;
        peer.backoff = RETRY_FIRST;
        peer.failing_since = None;
        let process = peer.name.to_string();
        for id in std::mem::take(&mut peer.unsent) {
            let Some(call) = self.call(id) else { continue };
            let function = call.doing.function();
            let error = match call.doubt {
                Some(_) => InvokeError::OutcomeUnknown,
                None => InvokeError::Unavailable {
                    process: process.clone(),
                    reason: reason.to_string(),
                },
            };
            if let Some(function) = function {
                self.peers[target.0 as usize].functions.untold(function);
            }
            self.complete(id, Err(error));
        }
    }

    #[inline]
    fn answered<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        index: u32,
        status: Status,
        payload: Payload,
    ) {
        let call = &mut self.calls[index as usize];
        let id = CallId {
            index,
            stamp: call.stamp,
        };
        let text = |payload: &Payload| String::from_utf8_lossy(payload).into_owned();
        let target = call.target;
        let peer = &mut self.peers[target.0 as usize];
        if call.large {
            call.large = false;
            if let Some(function) = call.doing.function() {
                peer.numbers.answered(function);
            }
        }
        let error = match status {
            Status::Ok => {
                self.complete(id, Ok(payload));
                return self.leave_if_due(link, target);
            }
            Status::Quiescing => {
                // Not run, and not going to be: it goes to wherever the process is next.
                call.sent = false;
                peer.leaving = true;
                peer.unsent.push_back(id);
                return self.leave(link, target);
            }
            Status::FunctionError => InvokeError::Function(text(&payload)),
            Status::UnknownFunction => {
                let name = match &call.doing {
                    Doing::Invoke { function } | Doing::OneWay { function, .. } => {
                        peer.functions.unknown(*function);
                        peer.functions.name(*function).to_string()
                    }
                    Doing::Put { .. } | Doing::Read { .. } => String::new(),
                };
                InvokeError::UnknownFunction(name)
            }
            Status::Panicked => InvokeError::Panicked(text(&payload)),
            Status::DeadlineExceeded => InvokeError::DeadlineExceeded,
            Status::Cancelled => InvokeError::Cancelled,
            Status::Exhausted => InvokeError::Exhausted(match payload.is_empty() {
                true => format!("process '{}' has no room for it", peer.name),
                false => text(&payload),
            }),
            Status::ResultExpired => InvokeError::ResultExpired,
            Status::OutcomeUnknown => InvokeError::OutcomeUnknown,
            Status::TooLarge => InvokeError::TooLarge(match payload.is_empty() {
                true => format!("process '{}' takes no message of this size", peer.name),
                false => text(&payload),
            }),
            Status::Malformed => InvokeError::Malformed(text(&payload)),
            Status::MailboxFull => InvokeError::MailboxFull(peer.name.to_string()),
            Status::Forbidden => InvokeError::Forbidden(text(&payload)),
        };
        self.complete(id, Err(error));
        self.leave_if_due(link, target);
    }

    /// A call has ended: it may be the last that a process going away was still to answer. Should
    /// that process stay after all, what it has turned away must not wait for its end.
    #[inline]
    fn leave_if_due<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        let peer = &self.peers[target.0 as usize];
        if peer.starved && self.fed(peer) {
            let peer = &mut self.peers[target.0 as usize];
            (peer.starved, peer.dry, peer.retry) = (false, false, None);
            peer.hungry_first();
            self.unsent_send(link, target);
        } else if peer.leaving || peer.starved {
            self.leave(link, target);
        }
    }

    /// Whether a call that a channel had no number for can go on, or has ended.
    #[cold]
    fn fed(&self, peer: &Peer<C>) -> bool {
        let first = match peer.dry {
            true => peer.unsent.front(),
            false => peer.hungry.front(),
        };
        first.is_none_or(|id| self.call(*id).is_none()) || peer.numbers.vacant().is_some()
    }

    /// The channel has no number for a call.
    #[cold]
    fn starve<L: Link<Channel = C>>(&mut self, link: &mut L, id: CallId) {
        let target = self.calls[id.index as usize].target;
        let peer = &mut self.peers[target.0 as usize];
        peer.hungry.push_back(id);
        if !std::mem::replace(&mut peer.starved, true) {
            peer.retry = Some(link.now() + STARVED_MAX);
        }
        self.leave_if_due(link, target);
    }

    /// Calls have gone past those without a number for long enough: the channel is to be left.
    fn run_dry<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        let peer = &mut self.peers[target.0 as usize];
        if peer.starved && !std::mem::replace(&mut peer.dry, true) {
            peer.hungry_first();
            self.leave_if_due(link, target);
        }
    }

    /// An answer came that nobody waits for. What it says of the function's name holds all the
    /// same.
    #[cold]
    fn nobody_answered<L: Link<Channel = C>>(
        &mut self,
        link: &mut L,
        target: Target,
        status: Status,
        which: impl FnOnce(&mut GivenUp) -> Option<(FunctionId, Option<u32>)>,
    ) {
        let peer = &mut self.peers[target.0 as usize];
        let Some((function, number)) = which(&mut peer.given_up) else {
            return;
        };
        if status == Status::UnknownFunction && peer.functions.is(function) {
            peer.functions.unknown(function.at);
        }
        if let Some(number) = number {
            peer.numbers.let_go(number);
            self.leave_if_due(link, target);
        }
    }

    /// Leaves a process that is going away, once nothing of ours runs there any more.
    fn leave<L: Link<Channel = C>>(&mut self, link: &mut L, target: Target) {
        let peer = &mut self.peers[target.0 as usize];
        let Bond::Open(channel) = peer.link else {
            return;
        };
        let calls = &self.calls;
        if peer.under_way().any(|index| calls[index as usize].sent) {
            return;
        }
        let held = peer.channel_end();
        peer.pause(link.now());
        peer.hungry_first();
        let mut unsent: Vec<CallId> = peer.unsent.drain(..).chain(held).collect();
        unsent.sort_unstable_by_key(|id| calls.get(id.index as usize).map(|call| call.sequence));
        peer.unsent = unsent.into();
        self.by_channel.remove(&channel);
        link.close(channel);
    }

    fn give_up<L: Link<Channel = C>>(&mut self, link: &mut L, id: CallId, error: InvokeError) {
        let index = id.index as usize;
        let Some(call) = self.calls.get(index).filter(|call| call.stamp == id.stamp) else {
            return;
        };
        let target = call.target;
        let peer = &mut self.peers[target.0 as usize];
        // A put is not stopped any more, and a read has no number of its own.
        match (call.doing.function(), call.sent, peer.link) {
            (Some(function), true, Bond::Open(channel)) => {
                // If there is no room, the function runs on for nobody; its result is dropped.
                let header = short_header(Kind::Cancel, 0, 0);
                let payload = Payload::default();
                let _ = link.send(channel, AM_INVOCATION, call.sequence, &header, &payload, 0);
                let number = call.large.then(|| peer.numbers.number(function)).flatten();
                let function = peer.functions.id(function);
                peer.given_up.add(call.sequence, id, function, number);
            }
            (Some(function), ..) => peer.functions.untold(function),
            (None, ..) => {}
        }
        self.complete(id, Err(error));
        self.leave_if_due(link, target);
    }

    #[inline]
    fn complete(&mut self, id: CallId, outcome: Result<Payload, InvokeError>) {
        if self.call(id).is_none() {
            return;
        }
        let call = self.calls.remove(id.index as usize);
        if let Some(deadline) = call.options.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        let peer = &mut self.peers[call.target.0 as usize];
        match call.doing {
            Doing::Invoke { .. } => peer.done(call.sequence),
            Doing::Put { .. } => peer.put_done(call.sequence),
            Doing::OneWay { function, told } => {
                peer.done(call.sequence);
                let function = peer.functions.name(function);
                self.one_way.ended(&peer.name, function, &outcome);
                if !told {
                    return;
                }
            }
            Doing::Read { .. } => peer.reads.retain(|read| *read != id.index),
        }
        self.completed.push_back(Completed {
            call: id,
            owner: call.owner,
            outcome,
            version: 0,
        });
    }
}

/// What came of telling a channel a function's name.
enum Told {
    /// The number that stands for it.
    Number(u32),
    Busy,
    Dead,
    /// No number is to be had.
    None,
}

/// Why a function that was looked up cannot be called.
#[cold]
fn function_forgotten(process: &str) -> Refusal {
    let text = format!(
        "process '{process}' had no such function, and its name was forgotten for others \
         (functions_max): look it up again"
    );
    Refusal::Never(InvokeError::Exhausted(text))
}

/// Tells a channel the name of a function.
#[cold]
fn function_tell<L: Link>(
    link: &mut L,
    channel: L::Channel,
    peer: &mut Peer<L::Channel>,
    function: u32,
) -> Told {
    let Some(number) = peer.numbers.vacant() else {
        return Told::None;
    };
    let header = short_header(Kind::Intern, 0, 0);
    let name = peer.functions.name(function).as_bytes();
    let name = Payload::Inline(smallvec::SmallVec::from_slice(name));
    match link.send(channel, AM_INVOCATION, number.into(), &header, &name, 0) {
        Sent::Done | Sent::Pending => {
            peer.numbers.give(number, function);
            peer.functions.told(function);
            Told::Number(number)
        }
        Sent::Busy => Told::Busy,
        Sent::Dead | Sent::TooLarge(_) => Told::Dead,
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
