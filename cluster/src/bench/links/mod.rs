//! All that connects the two processes, and both sides of every kind of traffic over it.
//!
//! | file | what |
//! |---|---|
//! | `flag.rs`, `ring.rs`, `raw.rs` | floors: a raw flag, a bare ring, a raw socket |
//! | `channel.rs`, `windows.rs`, `connects.rs` | channels: ping-pong, windows, opening and closing |
//! | `one_sided.rs` | puts, gets and atomics, and their floors |
//! | `caller.rs` | invocations; by one of them the peer does its part of a turn |
//! | `wait.rs` | waiting by looking again |

mod caller;
mod channel;
mod connects;
mod flag;
mod one_sided;
mod raw;
mod ring;
mod wait;
mod windows;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use praas_transport::bare::{Bare, BareRing};
use praas_transport::{RemoteKey, TransportKind};
use serde::{Deserialize, Serialize};

pub(super) use self::caller::Caller;
pub(super) use self::channel::Channel;
pub(super) use self::connects::Connects;
use self::flag::Flag;
use self::raw::{Raw, RawListener, Token, connect_once};
use self::ring::{INLINE_BYTES_MAX, Ring, Way};
use super::control::{RawAddress, Watch};
use super::plan::Memory;
use super::{Bench, BenchError, What};

/// What the peer has to do its part of.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Turn {
    pub(super) bench: Bench,
    pub(super) what: What,
    /// Bytes of a message, and messages of a window.
    pub(super) bytes: usize,
    pub(super) window: usize,
    pub(super) memory: Memory,
    /// Windows or connections; a ping-pong ends by itself.
    pub(super) count: u64,
}

impl Turn {
    fn way(&self) -> Way {
        Way {
            bytes: self.bytes,
            one_copy: self.memory == Memory::Pooled,
        }
    }

    fn both_ways(&self) -> bool {
        self.bench == Bench::Bibw
    }
}

/// Shared memory that a floor is measured in.
pub(super) enum Shared {
    Flag(Bare),
    Ring(BareRing),
}

impl Shared {
    /// Makes what a kind of traffic needs; the descriptor is for the other side.
    pub(super) fn create(bench: Bench, bytes_max: usize) -> Result<(OwnedFd, Self), BenchError> {
        let made = match bench {
            Bench::Latency => Bare::create(bytes_max).map(|(fd, bare)| (fd, Self::Flag(bare))),
            _ => BareRing::create(bytes_max).map(|(fd, ring)| (fd, Self::Ring(ring))),
        };
        made.map_err(BenchError::system("make shared memory"))
    }

    pub(super) fn open(fd: &OwnedFd, bench: Bench, bytes_max: usize) -> Result<Self, BenchError> {
        let opened = match bench {
            Bench::Latency => Bare::open(fd.as_fd(), bytes_max).map(Self::Flag),
            _ => BareRing::open(fd.as_fd(), bytes_max).map(Self::Ring),
        };
        opened.map_err(BenchError::system("map the memory of the floor"))
    }
}

/// What the floor of a transport is.
enum Floor {
    Flag(Flag),
    Ring(Ring),
    Raw(Raw),
    /// Connecting a raw socket there.
    Connect(RawAddress),
    /// Taking who connects a raw socket.
    Accept(RawListener),
}

/// What the floor is, in words.
pub(super) fn floor_kind(
    bench: Bench,
    transport: TransportKind,
    memory: Memory,
    bytes: usize,
) -> &'static str {
    match (bench, floor_is_socket(bench, transport), transport) {
        (Bench::Connect, _, local) if is_local(local) => "raw unix connect and accept",
        (Bench::Connect, ..) => "raw tcp connect and accept",
        (_, true, TransportKind::Unix) => "raw unix socket",
        (_, true, _) => "raw tcp socket",
        (Bench::Put, ..) => "bare copy into shared memory",
        (Bench::Get, ..) => "bare copy out of shared memory",
        (Bench::FetchAdd | Bench::CompareSwap, ..) => "bare atomic in shared memory",
        (Bench::Latency, ..) => "raw flag in shared memory",
        _ if bytes <= INLINE_BYTES_MAX => "bare ring in shared memory",
        _ if memory == Memory::Pooled => "bare copy out of shared memory",
        _ => "bare pipelined copy through shared memory",
    }
}

/// Whether a transport does not leave its host; the floor of what does is TCP's.
pub(super) fn is_local(transport: TransportKind) -> bool {
    matches!(
        transport,
        TransportKind::Mem | TransportKind::Shm | TransportKind::Unix
    )
}

fn floor_is_socket(bench: Bench, transport: TransportKind) -> bool {
    let memory = matches!(transport, TransportKind::Mem | TransportKind::Shm);
    bench == Bench::Connect || !memory
}

/// Where the peer of a transport takes raw sockets.
pub(super) struct RawEnd(RawListener);

impl RawEnd {
    pub(super) fn new(transport: TransportKind, ip: IpAddr) -> Result<Self, BenchError> {
        let tcp = (!is_local(transport)).then_some(ip);
        RawListener::new(tcp).map(Self)
    }

    pub(super) fn address(&self) -> &RawAddress {
        self.0.address()
    }
}

/// One side's ends of what is measured.
#[derive(Default)]
pub(super) struct Ends {
    pub(super) channel: Option<Channel>,
    pub(super) connects: Option<Connects>,
    /// The peer's region that one-sided operations reach.
    pub(super) key: Option<RemoteKey>,
}

/// What both processes have for one transport.
pub(super) struct Links {
    ends: Ends,
    floor: Floor,
    watch: Watch,
}

/// What links are made for.
#[derive(Clone)]
pub(super) struct Purpose {
    pub(super) bench: Bench,
    pub(super) transport: TransportKind,
    pub(super) bytes_max: usize,
    pub(super) watch: Watch,
    /// What a raw socket shows first.
    pub(super) token: Token,
}

impl Links {
    /// The measuring side's.
    pub(super) fn dial(
        purpose: Purpose,
        ends: Ends,
        shared: Option<Shared>,
        raw: &RawAddress,
    ) -> Result<Self, BenchError> {
        let floor = purpose.floor(shared, |purpose| match purpose.bench {
            Bench::Connect => Ok(Floor::Connect(raw.clone())),
            _ => {
                let watch = purpose.watch.clone();
                let connected = Raw::connect(raw, watch, purpose.bytes_max, &purpose.token);
                connected.map(Floor::Raw)
            }
        })?;
        Ok(Self::new(purpose, ends, floor))
    }

    /// The peer's.
    pub(super) fn serve(
        purpose: Purpose,
        ends: Ends,
        shared: Option<Shared>,
        raw: RawEnd,
    ) -> Result<Self, BenchError> {
        let floor = purpose.floor(shared, |purpose| match purpose.bench {
            Bench::Connect => Ok(Floor::Accept(raw.0)),
            _ => {
                let (watch, bytes_max) = (&purpose.watch, purpose.bytes_max);
                let accepted = raw.0.accept(watch, bytes_max, &purpose.token);
                accepted.map(Floor::Raw)
            }
        })?;
        Ok(Self::new(purpose, ends, floor))
    }

    fn new(purpose: Purpose, ends: Ends, floor: Floor) -> Self {
        Self {
            ends,
            floor,
            watch: purpose.watch,
        }
    }

    fn channel(&mut self) -> Result<&mut Channel, BenchError> {
        let none = || BenchError::Peer("has no channel".into());
        self.ends.channel.as_mut().ok_or_else(none)
    }

    /// Bytes that the channel sends eagerly, if there is one.
    pub(super) fn eager_max(&self) -> Option<usize> {
        self.ends.channel.as_ref().map(Channel::eager_max)
    }

    /// What the channel's messages to come carry.
    pub(super) fn payload_set(&mut self, bytes: usize, memory: Memory) -> Result<(), BenchError> {
        match &mut self.ends.channel {
            Some(channel) => channel.payload_set(bytes, memory),
            None => Ok(()),
        }
    }

    /// A round trip over the floor or the channel.
    #[inline]
    pub(super) fn ping(&mut self, turn: &Turn, last: bool) -> Result<(), BenchError> {
        match (turn.what, &mut self.floor) {
            (What::Floor, Floor::Flag(flag)) => flag.ping(turn.bytes, last),
            (What::Floor, Floor::Raw(raw)) => raw.ping(turn.bytes, last),
            (What::Channel, _) => self.channel()?.ping(last),
            _ => Err(no_such(turn)),
        }
    }

    /// Waits until the peer has begun its part of the turn.
    pub(super) fn begin(&mut self, turn: &Turn) -> Result<(), BenchError> {
        match (turn.bench, turn.what, &mut self.floor) {
            (Bench::Connect, ..) => Ok(()),
            (_, What::Floor, Floor::Ring(ring)) => ring.begin(),
            (_, What::Floor, Floor::Raw(raw)) => raw.begin(),
            (_, What::Channel, _) => self.channel()?.begin(turn.window),
            _ => Err(no_such(turn)),
        }
    }

    /// One window, or one connection.
    #[inline]
    pub(super) fn step(&mut self, turn: &Turn) -> Result<(), BenchError> {
        let both_ways = turn.both_ways();
        let (bench, bytes, window) = (turn.bench, turn.bytes, turn.window);
        match (turn.what, &mut self.floor) {
            (What::Floor, Floor::Ring(ring)) if bench.one_sided() => {
                ring.operations(bench, bytes, window);
                Ok(())
            }
            (What::Floor, Floor::Raw(raw)) if bench.one_sided() => {
                raw.operations(bench, bytes, window)
            }
            (What::Channel, _) if bench.one_sided() => {
                let none = || BenchError::Peer("has no region".into());
                let key = self.ends.key.ok_or_else(none)?;
                self.channel()?.operations(bench, key, window)
            }
            (What::Floor, Floor::Ring(ring)) => ring.window(turn.way(), turn.window, both_ways),
            (What::Floor, Floor::Raw(raw)) => raw.window(turn.bytes, turn.window, both_ways),
            (What::Floor, Floor::Connect(to)) => connect_once(to, &self.watch),
            (What::Channel, _) => match &mut self.ends.connects {
                Some(connects) => connects.connect_once(),
                None => self.channel()?.window(turn.window, both_ways),
            },
            _ => Err(no_such(turn)),
        }
    }

    /// Tells the peer that its part of the turn is over, if it does not know by itself.
    pub(super) fn end(&mut self, turn: &Turn) -> Result<(), BenchError> {
        match (turn.bench.one_sided(), turn.what, &mut self.floor) {
            (true, What::Channel, _) => self.channel()?.operations_end(),
            (true, What::Floor, Floor::Ring(ring)) => ring.begun(),
            _ => Ok(()),
        }
    }

    /// The peer's part of a turn.
    pub(super) fn turn_serve(&mut self, turn: &Turn) -> Result<(), BenchError> {
        let (way, window, count) = (turn.way(), turn.window, turn.count);
        let both_ways = turn.both_ways();
        let one_sided = turn.bench.one_sided();
        match (turn.what, &mut self.floor) {
            (What::Floor, Floor::Flag(flag)) => flag.pong(turn.bytes),
            (What::Floor, Floor::Ring(ring)) if one_sided => ring.operations_serve(),
            (What::Floor, Floor::Raw(raw)) if one_sided => {
                raw.operations_serve(turn.bench, turn.bytes, window, count)
            }
            (What::Channel, _) if one_sided => self.channel()?.operations_serve(window),
            (What::Floor, Floor::Ring(ring)) => ring.windows_serve(way, window, both_ways, count),
            (What::Floor, Floor::Raw(raw)) => match turn.bench {
                Bench::Latency => raw.pong(turn.bytes),
                _ => raw.windows_serve(turn.bytes, window, both_ways, count),
            },
            (What::Floor, Floor::Accept(listener)) => listener.connects_serve(&self.watch, count),
            (What::Channel, _) => match (&mut self.ends.connects, turn.bench) {
                (Some(connects), _) => connects.serve(count),
                (None, Bench::Latency) => self.channel()?.pong(),
                (None, _) => {
                    let channel = self.channel()?;
                    channel.payload_set(turn.bytes, turn.memory)?;
                    channel.windows_serve(window, both_ways, count)
                }
            },
            _ => Err(no_such(turn)),
        }
    }
}

fn no_such(turn: &Turn) -> BenchError {
    BenchError::Peer(format!("cannot serve {} for {}", turn.what, turn.bench))
}

impl Purpose {
    fn floor(
        &self,
        shared: Option<Shared>,
        socket: impl FnOnce(&Self) -> Result<Floor, BenchError>,
    ) -> Result<Floor, BenchError> {
        if floor_is_socket(self.bench, self.transport) {
            return socket(self);
        }
        match shared {
            Some(Shared::Flag(bare)) => Ok(Floor::Flag(Flag::new(bare, self.watch.clone()))),
            Some(Shared::Ring(ring)) => {
                let ring = Ring::new(ring, self.watch.clone(), self.bytes_max);
                Ok(Floor::Ring(ring))
            }
            None => Err(BenchError::Transport(self.transport)),
        }
    }
}
