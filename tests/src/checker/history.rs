//! What happened, as those saw it who took part: a list of events in order.
//!
//! Whoever records gives every event a later time than the one before, so that "before" means
//! something between threads and between hosts.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// When something happened: only the order counts.
pub type Time = u64;

/// Names a call: an invocation or a put, by a client or by a function.
pub type Call = u64;

/// Names an image in storage: the incarnation that wrote it, and its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Image {
    /// The incarnation that wrote it.
    pub incarnation: u64,
    /// Its generation.
    pub generation: u64,
}

/// What a call does. Values and messages are numbers that no two calls share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Reads a state object.
    Read {
        /// Which.
        key: String,
    },
    /// Reads a state object without anything running at its process: only the caller tells.
    Look {
        /// Which.
        key: String,
    },
    /// Writes a state object.
    Write {
        /// Which.
        key: String,
        /// What.
        value: u64,
    },
    /// Writes a state object if it has a value.
    CompareSwap {
        /// Which.
        key: String,
        /// The value that it is to have.
        expected: Option<u64>,
        /// What to write then.
        value: u64,
    },
    /// Adds to a state object, which counts as zero while it is absent; replies with the sum.
    Add {
        /// Which.
        key: String,
        /// How much.
        amount: u64,
    },
    /// Deletes a state object.
    Erase {
        /// Which.
        key: String,
    },
    /// Has a state object written through.
    Persist {
        /// Which.
        key: String,
        /// What is written before.
        write: Option<u64>,
    },
    /// Puts a message into the mailbox.
    Put {
        /// Who puts it.
        source: String,
        /// Under which key.
        key: String,
        /// The message.
        message: u64,
    },
    /// Takes a message out of the mailbox, if there is one; `Done` in reply is that it has taken
    /// none, though there may be some.
    Take {
        /// Whose; nobody: anybody's.
        source: Option<String>,
        /// Under which key.
        key: String,
    },
    /// Looks at the message that a take would take, which stays.
    Peek {
        /// Whose; nobody: anybody's.
        source: Option<String>,
        /// Under which key.
        key: String,
    },
    /// Has the process call another one: that is a call of its own.
    Other,
}

/// What a call gives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reply {
    /// It is done.
    Done,
    /// The value that was read.
    Value(Option<u64>),
    /// Whether compare-and-swap wrote.
    Wrote(bool),
    /// The sum after an addition.
    Sum(u64),
    /// A state object is durable with this value, or with none. After a persist `Done` is that
    /// nobody knows.
    Durable(Option<u64>),
    /// A state object is durable with what another one has made of it meanwhile.
    DurableLater,
    /// Source and number of the message that was taken, or looked at.
    Message(Option<(String, u64)>),
}

/// How a call ended for its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran.
    Ok(Reply),
    /// It has not run and never will.
    NotRun(String),
    /// Nobody says whether it ran.
    Unknown(String),
    /// What no caller is to see, such as another's reply.
    Wrong(String),
}

/// How an incarnation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was told to stop: another life is the process.
    Stopped,
    /// It was swapped out: nothing is lost.
    Swapped,
    /// It was killed: what it was since its last image is lost.
    Crashed,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody calls a process.
    Called {
        /// Names the call.
        call: Call,
        /// The process.
        process: String,
        /// What for.
        action: Action,
        /// Running it twice does no harm.
        idempotent: bool,
    },
    /// The caller has its answer.
    Returned {
        /// The call.
        call: Call,
        /// How it went.
        outcome: Outcome,
    },
    /// The function of a call begins to run.
    Began {
        /// The call.
        call: Call,
        /// Where.
        process: String,
        /// In which life of it.
        incarnation: u64,
    },
    /// The function of a call has run.
    Ran {
        /// The call.
        call: Call,
        /// Where.
        process: String,
        /// In which life of it.
        incarnation: u64,
        /// What it gives.
        reply: Reply,
    },
    /// An image of a process begins to be made; what it holds is of some moment from here on.
    Imaging {
        /// The process.
        process: String,
        /// Which life.
        incarnation: u64,
    },
    /// An image, of what `Imaging` said last of its writer, is whole in storage.
    Durable {
        /// The process.
        process: String,
        /// The image.
        image: Image,
    },
    /// Nothing that was to be written through before is under way any more.
    WrittenThrough {
        /// The process.
        process: String,
        /// Which life.
        incarnation: u64,
    },
    /// Its writer says that an image is whole: it must not get lost any more.
    Committed {
        /// The process.
        process: String,
        /// The image.
        image: Image,
    },
    /// An image is deleted.
    Deleted {
        /// The process.
        process: String,
        /// The image.
        image: Image,
    },
    /// A life of a process begins.
    Started {
        /// The process.
        process: String,
        /// Which life.
        incarnation: u64,
        /// What it began from; `None`: from nothing.
        from: Option<Image>,
    },
    /// A life of a process stands still: all that it is may be another one's from now on.
    Frozen {
        /// The process.
        process: String,
        /// Which life.
        incarnation: u64,
    },
    /// A life that stood still goes on.
    Thawed {
        /// The process.
        process: String,
        /// Which life.
        incarnation: u64,
    },
    /// A life of a process begins with all that another one was when it stood still.
    Moved {
        /// The process.
        process: String,
        /// Which life.
        incarnation: u64,
        /// The one before.
        from: u64,
    },
    /// A process was stopped: its next life begins from nothing.
    Forgotten {
        /// The process.
        process: String,
    },
    /// A process was deleted, and that was acknowledged.
    Removed {
        /// The process.
        process: String,
        /// What is left in storage of what it had written by then.
        left: Vec<String>,
    },
    /// A life of a process is over.
    Ended {
        /// The process.
        process: String,
        /// Which life.
        incarnation: u64,
        /// How.
        how: End,
    },
}

/// All that happened, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The events, each at its place.
    pub events: Vec<Event>,
    /// Functions tell of themselves: a call whose function has not told did not run.
    pub functions_tell: bool,
    /// Keys of state objects with this prefix are durable when their writes are acknowledged.
    pub written_through: Option<String>,
}

impl History {
    /// The events with their times.
    pub fn timed(&self) -> impl Iterator<Item = (Time, &Event)> {
        (0..).zip(&self.events)
    }
}

/// Records a history, from any thread.
#[derive(Debug, Default)]
pub struct Recorder {
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    /// Notes an event.
    pub fn note(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(event);
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was recorded.
    pub fn history(&self) -> History {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        History {
            events: events.clone(),
            ..History::default()
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.incarnation, self.generation)
    }
}
