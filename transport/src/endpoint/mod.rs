//! Endpoints: progress, completions, channels, over all backends at once.
//!
//! ```text
//!   progress(handler)
//!     | every poll_interval_rounds, or when woken: descriptors --> accept, handshakes, doorbells
//!     | every round: active channels --> frames --> handler
//!     |                              --> bulk lanes, a bounded share each
//!     +-- events put off until the handler may see them
//! ```
//!
//! An endpoint has one owner at a time, who has it by `&mut`. Handlers get [`Ops`], with which they
//! may send, accept, refuse and close, but not make progress: so they never nest.
//!
//! | file | what |
//! |---|---|
//! | `listen.rs`, `boot.rs`, `stream.rs` | listening, connecting, the handshake over any stream |
//! | `fallback.rs` | one of several addresses, and the next if it fails |
//! | `open.rs`, `close.rs` | how a channel begins and ends |
//! | `link.rs` | from a handshake to an RDMA channel |
//! | `progress.rs` | rounds, waiting |
//! | `channel.rs`, `send.rs`, `transfer.rs`, `remote.rs`, `answer.rs` | messages, large payloads, one-sided operations of ours and of peers |
//! | `slots.rs` | where channels live |
//! | `times.rs` | spinning, asleep, at work |

mod answer;
mod boot;
mod channel;
mod close;
mod fallback;
mod fuzz;
mod link;
mod listen;
mod open;
mod progress;
mod remote;
mod send;
mod slots;
mod stream;
mod times;
mod transfer;
mod types;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, UnixListener};
use mio::{Events, Poll, Token};

use self::boot::Boot;
use self::channel::{Channel, OutDone};
use self::fallback::Fallback;
pub use self::fuzz::fuzz_channel;
use self::link::Linking;
use self::stream::Stream;
use self::times::Times;
pub use self::times::{EndpointTimes, TimesReader};
use self::types::WakerShared;
pub use self::types::{
    ChannelId, ChannelInfo, CloseReason, Dial, Disposition, Flow, Handler, Incoming, IncomingId,
    LargeMessage, Listen, Message, OneSidedDone, PostedBuf, PostedGet, PostedList, SendError,
    SendFailure, TransportError, WaitMode, Waker,
};
use crate::address::{Address, TransportKind};
use crate::backend::{Received, RxPool};
use crate::buf::BufPool;
use crate::clock;
use crate::config::TransportConfig;
use crate::mem::MemListener;
use crate::one_sided::RegionTable;
use crate::shm::{MapBudget, Spinner, SpinnerPage};
use crate::stats_page::StatsPage;
use crate::sync::atomic::AtomicBool;
use crate::ticket::Authenticator;
use crate::unix::UnixBound;
use crate::verbs::Hubs;
use crate::wire::Identity;

const TOKEN_WAKER: Token = Token(usize::MAX);
const TOKEN_LISTENER: usize = 0;
const TOKEN_CHANNEL: usize = 1;
const TOKEN_BULK: usize = 2;
const TOKEN_HUB: usize = 3;
const EVENTS_PER_POLL: usize = 256;
/// Peers that are taken at a listener before the channels get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How long a socket is kept after the last word, for the peer to read it.
const LINGER: Duration = Duration::from_secs(2);

/// How long an endpoint that is dropped waits for RDMA devices to send what was given to them.
const DRAIN: Duration = Duration::from_millis(50);

enum Listening {
    Mem(Arc<MemListener>),
    Shm(UnixListener),
    Unix(UnixBound),
    Tcp(TcpListener),
    Verbs(TcpListener),
}

impl Listening {
    fn kind(&self) -> TransportKind {
        match self {
            Self::Mem(_) => TransportKind::Mem,
            Self::Shm(_) => TransportKind::Shm,
            Self::Unix(_) => TransportKind::Unix,
            Self::Tcp(_) => TransportKind::Tcp,
            Self::Verbs(_) => TransportKind::Verbs,
        }
    }
}

enum State {
    Free,
    Boot(Box<Boot>),
    /// The handshake is done, and RDMA queue pairs find each other.
    Link(Box<Linking>),
    Open(Box<Channel>),
    /// Said its last; waits for the peer to hang up, so that nothing is lost to a reset.
    Linger(Stream, Instant),
}

struct Slot {
    generation: u32,
    state: State,
}

enum Event {
    Open(ChannelId),
    Sent(ChannelId, OutDone, bool),
    OneSided(ChannelId, OneSidedDone),
    Closed(ChannelId, CloseReason),
}

/// A place where channels meet: listens, connects, sends, makes progress.
pub struct Endpoint {
    ops: Ops,
    events: Events,
    rounds: u32,
    /// Somebody woke the endpoint, and no wait has ended for it yet.
    roused: bool,
    /// The last wait ended by a wake, and by nothing else.
    woken_last: bool,
    spinner: Spinner,
    times: Times,
    turn: usize,
    /// The frame that is handled, in a place of its own so that it need not be moved.
    received: Received,
}

/// What may be done with an endpoint from within its handler.
pub struct Ops {
    config: TransportConfig,
    identity: Identity,
    auth: Option<Arc<dyn Authenticator>>,
    poll: Poll,
    waker: Waker,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots in use, but for those of `handshakes`.
    open: usize,
    /// Slots of peers that connected and have proven nothing yet, or were refused; oldest first.
    handshakes: VecDeque<u32>,
    /// Listeners at which more peers wait than were taken in one go.
    accepting: Vec<usize>,
    active: Vec<u32>,
    /// Slots with a deadline: handshakes, lingering and closing channels.
    timed: Vec<u32>,
    listeners: Vec<Listening>,
    addresses: Vec<Address>,
    sessions: HashMap<[u8; 16], ChannelId>,
    /// What else to try for channels that are not open yet, by their slots.
    fallbacks: HashMap<u32, Fallback>,
    pending: VecDeque<Event>,
    rx: RxPool,
    pool: BufPool,
    regions: Arc<RegionTable>,
    /// What RDMA channels share.
    hubs: Hubs,
    /// Slots whose RDMA channels have got something, in a place that is used again.
    woken: Vec<u32>,
    /// What may be mapped of peers' memory.
    maps: Arc<MapBudget>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("addresses", &self.ops.addresses)
            .field("channels", &self.ops.open)
            .finish()
    }
}

impl std::ops::Deref for Endpoint {
    type Target = Ops;

    fn deref(&self) -> &Ops {
        &self.ops
    }
}

impl std::ops::DerefMut for Endpoint {
    fn deref_mut(&mut self) -> &mut Ops {
        &mut self.ops
    }
}

impl Endpoint {
    /// An endpoint that speaks as `identity`. Without `auth` it refuses whoever connects.
    ///
    /// # Errors
    /// Settings that cannot be, or a system out of descriptors.
    pub fn new(
        config: TransportConfig,
        identity: Identity,
        auth: Option<Arc<dyn Authenticator>>,
    ) -> Result<Self, TransportError> {
        config.check()?;
        let poll = Poll::new().map_err(TransportError::Setup)?;
        let waker = mio::Waker::new(poll.registry(), TOKEN_WAKER).map_err(TransportError::Setup)?;
        let shared = WakerShared {
            waker,
            asleep: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        };
        let pool = BufPool::with_files(config.buffers_max_bytes, config.file_rules());
        let maps = MapBudget::new(config.shm_maps_max, config.shm_maps_max_bytes);
        let regions = Arc::new(RegionTable::new(config.regions_max));
        let ops = Ops {
            config,
            identity,
            auth,
            poll,
            waker: Waker {
                shared: Arc::new(shared),
            },
            slots: Vec::new(),
            free: Vec::new(),
            open: 0,
            handshakes: VecDeque::new(),
            accepting: Vec::new(),
            active: Vec::new(),
            timed: Vec::new(),
            listeners: Vec::new(),
            addresses: Vec::new(),
            sessions: HashMap::new(),
            fallbacks: HashMap::new(),
            pending: VecDeque::new(),
            rx: RxPool::default(),
            pool,
            hubs: Hubs::new(Arc::clone(&regions)),
            regions,
            woken: Vec::new(),
            maps: Arc::new(maps),
        };
        Ok(Self {
            ops,
            events: Events::with_capacity(EVENTS_PER_POLL),
            rounds: 0,
            roused: false,
            woken_last: false,
            spinner: Spinner::new(SpinnerPage::shared()),
            times: Times::new(Arc::new(StatsPage::private())),
            turn: 0,
            received: Received::default(),
        })
    }

    /// Counts its times in this page from now on, beginning with what is there. For an endpoint that
    /// has done nothing yet.
    pub fn count_in(&mut self, page: Arc<StatsPage>) {
        self.times = Times::new(page);
    }

    /// Where it counts its times; whoever serves on it counts the rest.
    pub fn stats_page(&self) -> Arc<StatsPage> {
        self.times.page()
    }

    /// A waker for blocked waits, usable from any thread.
    pub fn waker(&self) -> Waker {
        self.ops.waker.clone()
    }

    /// A descriptor that is readable when progress is needed, once [`Endpoint::arm`] said so.
    pub fn raw_fd(&self) -> RawFd {
        self.ops.poll.as_raw_fd()
    }

    /// When progress is needed though the descriptor stays silent: handshakes and closing channels
    /// have deadlines. [`Endpoint::wait`] then sees to them.
    pub fn timer_next(&self) -> Option<Instant> {
        self.ops.timed_next()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        for slot in 0..self.ops.slots.len() as u32 {
            if let State::Open(channel) = &mut self.ops.slots[slot as usize].state
                && !channel.peer_closed
            {
                // A peer that has no room for the word learns of the end by the hang-up.
                channel.closing = Some(clock::now());
                let _ = channel.push(&mut self.ops.rx);
                let _ = channel.close_advance();
            }
        }
        self.ops.hubs_drain(DRAIN);
        for listener in &self.ops.listeners {
            if let Listening::Mem(listener) = listener {
                listener.close();
            }
        }
    }
}

impl Ops {
    /// Where the endpoint listens.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Who the endpoint speaks as.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The pool that payloads come from.
    pub fn pool(&self) -> &BufPool {
        &self.pool
    }

    /// The settings.
    pub fn config(&self) -> &TransportConfig {
        &self.config
    }
}
