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

mod calls;
mod channels;
mod given_up;
mod names;
mod numbers;
mod peer;
mod reads;
mod replies;

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
use crate::invocation::{InvokeError, Payload};
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

    /// Whether one-sided operations are messages on a channel, so that nothing is spared by them.
    fn one_sided_is_asked(&self, _channel: Self::Channel) -> bool {
        false
    }

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

    fn call(&self, id: CallId) -> Option<&Call> {
        self.calls
            .get(id.index as usize)
            .filter(|call| call.stamp == id.stamp)
    }
}

#[cfg(test)]
mod tests;
