//! RDMA verbs: reliable connections over InfiniBand and RoCE, where a device is to be had.
//!
//! ```text
//!   dialler                                                       listener
//!     | == TCP: handshake, then cards of queue pairs (params.rs) ==> |   stays, for its hang-up
//!     | -- frames: sends into receives that all peers share -------> |
//!     | <- credit: in the immediate value of whatever goes back ---- |
//! ```
//!
//! libibverbs is loaded at run time. Device, protection domain, regions, queues and queue pairs are
//! types whose parents outlive them (`objects.rs`); what the connections of an endpoint share is
//! its hub (`hub.rs`); how two ports find each other is `link.rs`.
//!
//! No peer can write to memory that we look at: eager frames arrive in receives that we posted, and
//! are copied out of them before they are read.
#![allow(unsafe_code)]

mod cache;
mod fault;
#[cfg(all(test, not(praas_loom)))]
mod golden;
mod hub;
mod link;
mod load;
mod memory;
mod objects;
mod params;
mod ports;
mod pull;
mod remote;
mod sys;
mod window;
mod words;

use std::cell::{Cell, UnsafeCell};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use zerocopy::IntoBytes;

pub use self::fault::RdmaError;
use self::hub::{Hub, HubSettings, KIND_BULK, KIND_FRAME, ReadRequest};
pub(crate) use self::link::{Link, LinkContext, Linked};
use self::objects::{DeviceEvent, Path};
pub use self::params::fuzz_verbs;
use self::ports::{Choice, Port, Ports};
use self::pull::Pulls;
use crate::backend::{
    Posted, PullSegment, PullSource, Pulled, Received, RxBuf, RxPool, Want, Wire, WireFault,
};
use crate::buf::{Buf, BufMut};
use crate::config::TransportConfig;
use crate::counters::VerbsCounters;
use crate::one_sided::{Completed, OneSidedOp, RegionTable, RemoteKey, Taken};
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, USER_HEADER_MAX_BYTES, WireError};

/// What can be said of RDMA here: the ports that can be used, and those that cannot.
///
/// # Errors
/// Why there is none.
pub fn rdma_describe(config: &TransportConfig) -> Result<String, String> {
    ports::describe(config)
}

/// An IP address of this host that a usable RDMA port has, for who listens anywhere.
///
/// # Errors
/// Why there is none.
pub fn rdma_address(config: &TransportConfig) -> Result<IpAddr, String> {
    Ports::find(config)?.address_default()
}

/// Whether RDMA can be had here, as it was when somebody first asked.
pub(crate) fn usable() -> Result<(), &'static str> {
    static USABLE: OnceLock<Result<(), String>> = OnceLock::new();
    let found = USABLE.get_or_init(|| ports::describe(&TransportConfig::default()).map(|_| ()));
    match found {
        Ok(()) => Ok(()),
        Err(why) => Err(why),
    }
}

/// A hub, of which its endpoint has one handle and each of its wires another.
struct HubCell {
    hub: UnsafeCell<Hub>,
    entered: Cell<bool>,
}

// SAFETY: the handles of a hub are those of one endpoint and of its wires, which never leave it;
// and an endpoint has one owner at a time, by `&mut`, who alone reaches any of them.
unsafe impl Send for HubCell {}
// SAFETY: as above.
unsafe impl Sync for HubCell {}

#[derive(Clone)]
struct HubRef(Arc<HubCell>);

impl HubRef {
    fn new(hub: Hub) -> Self {
        Self(Arc::new(HubCell {
            hub: UnsafeCell::new(hub),
            entered: Cell::new(false),
        }))
    }

    /// Works with the hub; `work` must not come back here.
    #[inline]
    fn with<R>(&self, work: impl FnOnce(&mut Hub) -> R) -> R {
        assert!(!self.0.entered.replace(true), "a hub is entered twice");
        // SAFETY: no other thread is here, as said at `Send`, and this one is not, as just seen.
        let done = work(unsafe { &mut *self.0.hub.get() });
        self.0.entered.set(false);
        done
    }
}

struct HubEntry {
    device: String,
    port: u8,
    application: String,
    hub: HubRef,
}

/// All hubs of an endpoint: one for each device, port and application, so that keys to memory are
/// of no use outside the application of whoever was given them.
pub(crate) struct Hubs {
    /// What the endpoint has opened to its peers.
    regions: Arc<RegionTable>,
    entries: Vec<HubEntry>,
    ports: Option<Arc<Ports>>,
}

impl Hubs {
    pub(crate) fn new(regions: Arc<RegionTable>) -> Self {
        Self {
            regions,
            entries: Vec::new(),
            ports: None,
        }
    }

    /// A region is closed: no device reaches it when this returns.
    pub(crate) fn region_close(&self, key: RemoteKey) {
        for entry in &self.entries {
            entry.hub.with(|hub| hub.region_close(key.0));
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The ports that can be used, as they were when somebody last had trouble with one.
    fn ports(&mut self, config: &TransportConfig) -> Result<Arc<Ports>, String> {
        match &self.ports {
            Some(ports) => Ok(Arc::clone(ports)),
            None => {
                let ports = Arc::new(Ports::find(config)?);
                self.ports = Some(Arc::clone(&ports));
                Ok(ports)
            }
        }
    }

    /// Whether RDMA can be had.
    pub(crate) fn available(&mut self, config: &TransportConfig) -> io::Result<()> {
        let ports = self.ports(config);
        ports.map(|_| ()).map_err(ports::unavailable)
    }

    /// Where to listen: an address that is not given is a port's.
    pub(crate) fn listen_address(
        &mut self,
        at: SocketAddr,
        config: &TransportConfig,
    ) -> io::Result<SocketAddr> {
        let ports = self.ports(config).map_err(ports::unavailable)?;
        match at.ip().is_unspecified() {
            true => ports
                .address_default()
                .map(|ip| SocketAddr::new(ip, at.port()))
                .map_err(ports::unavailable),
            false => Ok(at),
        }
    }

    /// Something was not as it was known to be: the next who needs ports looks again.
    fn ports_forget(&mut self) {
        self.ports = None;
    }

    /// What a listener's Accept carries, for a peer that came in at this address.
    pub(crate) fn candidates(
        &mut self,
        config: &TransportConfig,
        socket: IpAddr,
    ) -> Result<Vec<u8>, String> {
        let choices = self.ports(config)?.candidates(socket);
        let named: Vec<_> = choices.iter().map(|choice| choice.named).collect();
        Ok(params::candidates_encode(&named))
    }

    fn hub(
        &mut self,
        port: &Port,
        application: &str,
        config: &TransportConfig,
        registry: &Registry,
        token: impl Fn(usize) -> Token,
    ) -> io::Result<HubRef> {
        let same = |entry: &&HubEntry| {
            entry.device == port.device.name
                && entry.port == port.number
                && entry.application == application
                // A device that has failed may be well again; what was made of it is not.
                && !entry.hub.with(|hub| hub.is_lost())
        };
        if let Some(entry) = self.entries.iter().find(same) {
            return Ok(entry.hub.clone());
        }
        let hub = Hub::new(
            &port.device,
            HubSettings::new(config),
            Arc::clone(&self.regions),
        )?;
        let at = self.entries.len() * 2;
        let completions = hub.completions.as_raw_fd();
        let device = hub.domain.device.async_fd();
        registry.register(&mut SourceFd(&completions), token(at), Interest::READABLE)?;
        // Of two hubs of one device, the first hears what the device says.
        if let Err(error) =
            registry.register(&mut SourceFd(&device), token(at + 1), Interest::READABLE)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let hub = HubRef::new(hub);
        self.entries.push(HubEntry {
            device: port.device.name.clone(),
            port: port.number,
            application: application.into(),
            hub: hub.clone(),
        });
        Ok(hub)
    }

    /// Takes completions of all hubs; `wake` hears which wires, by their places, have got
    /// something.
    #[inline]
    pub(crate) fn poll(&mut self, mut wake: impl FnMut(u32)) {
        for entry in &self.entries {
            entry.hub.with(|hub| {
                hub.poll();
                for place in hub.woken.drain(..) {
                    wake(place);
                }
            });
        }
    }

    /// Before sleeping: whether there is nothing, and descriptors tell when there is.
    pub(crate) fn arm(&mut self) -> bool {
        let armed = |entry: &HubEntry| entry.hub.with(Hub::arm);
        self.entries.iter().all(armed)
    }

    /// The descriptor with that token is ready.
    pub(crate) fn ready(&mut self, at: usize) {
        let Some(entry) = self.entries.get(at / 2) else {
            return;
        };
        if at.is_multiple_of(2) {
            return entry.hub.with(Hub::events_take);
        }
        let device = entry.hub.with(|hub| Arc::clone(&hub.domain.device));
        while let Some(event) = device.event_next() {
            match event {
                DeviceEvent::Port { port, up } => {
                    let device = &device.name;
                    match up {
                        true => tracing::info!(device, port, "an RDMA port is up"),
                        false => tracing::warn!(device, port, "an RDMA port is down"),
                    }
                    self.ports_forget();
                }
                DeviceEvent::Addresses => self.ports_forget(),
                DeviceEvent::Fatal => {
                    tracing::error!(device = device.name, "an RDMA device has failed");
                    self.ports_forget();
                }
                DeviceEvent::QueuePair { number, kind } => {
                    tracing::debug!(number, kind, "an RDMA queue pair was ended");
                }
                DeviceEvent::Other => {}
            }
            // What a device says is about all hubs of it.
            for entry in &self.entries {
                entry.hub.with(|hub| {
                    if !Arc::ptr_eq(&hub.domain.device, &device) {
                        return;
                    }
                    hub.device_event(event);
                    if let DeviceEvent::Port { port, up: false } = event
                        && port == entry.port
                    {
                        hub.peers_probe();
                    }
                });
            }
        }
    }

    pub(crate) fn counters(&self) -> VerbsCounters {
        let mut sum = VerbsCounters::default();
        for entry in &self.entries {
            entry.hub.with(|hub| sum.add(&hub.counters()));
        }
        sum
    }
}

/// A queue pair of a hub, which ends with this.
struct PeerHandle {
    hub: HubRef,
    key: usize,
}

impl PeerHandle {
    /// A queue pair that is not connected, and the credit that its peer begins with.
    fn new(hub: HubRef, place: u32, port: u8) -> io::Result<(Self, u32)> {
        let (key, credits) = hub.with(|hub| hub.peer_add(place, port))?;
        Ok((Self { hub, key }, credits))
    }

    fn connect(&self, path: &Path, credits: u32) -> io::Result<()> {
        self.hub
            .with(|hub| hub.peer_connect(self.key, path, credits))
    }

    fn queue_number(&self) -> u32 {
        self.hub.with(|hub| hub.peer(self.key).queue.number())
    }

    /// Bytes of the longest frame that is received.
    fn frame_max(&self) -> usize {
        self.hub.with(|hub| hub.settings().frame_max())
    }

    #[inline]
    fn frame_send(
        &self,
        header: &FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault> {
        let last = header.kind() == Ok(FrameKind::Close);
        let head = [header.as_bytes(), user_header];
        self.hub
            .with(|hub| hub.frame_send(self.key, KIND_FRAME, head, payload, last))
    }

    fn reads_room(&self) -> usize {
        self.hub.with(|hub| hub.reads_room(self.key))
    }

    fn reads_post(&self, reads: &mut [ReadRequest]) -> Result<(), WireFault> {
        self.hub.with(|hub| hub.reads_post(self.key, reads))
    }

    /// The next frame, or why there can be none any more.
    #[inline]
    fn frame_recv(&self, pool: &mut RxPool) -> Result<Option<Received>, WireFault> {
        self.hub.with(|hub| {
            let peer = hub.peer_mut(self.key);
            // One that is malformed stays, so that its receive comes back with the connection's end.
            let Some(arrival) = peer.inbox.front().copied() else {
                return peer.fault().map_or(Ok(None), Err);
            };
            if let Some(value) = arrival.immediate {
                hub.peer_mut(self.key).inbox.pop_front();
                hub.arrival_done(self.key, arrival.slot);
                let header = FrameHeader::new(FrameKind::Immediate)
                    .with_id(value.into())
                    .with_aux(arrival.len.into());
                let (buf, at) = (pool.take(), 0);
                return Ok(Some(Received { header, buf, at }));
            }
            let mut header = [0; FRAME_HEADER_BYTES];
            let body = (arrival.len as usize).checked_sub(header.len());
            let body = body.ok_or(WireError::Truncated {
                what: "frame header",
                needed: header.len(),
                have: arrival.len as usize,
            })?;
            hub.arrival_read(arrival.slot, 0, &mut header);
            let (kind, header) = FrameHeader::decode(&header)?;
            let told = u64::from(header.uhdr_len).saturating_add(header.body_len(kind));
            if told != body as u64 {
                return Err(WireError::Malformed {
                    what: "a frame is not as long as its header says",
                }
                .into());
            }
            let mut buf = pool.take();
            hub.arrival_read(arrival.slot, FRAME_HEADER_BYTES, &mut buf[..body]);
            hub.peer_mut(self.key).inbox.pop_front();
            hub.arrival_done(self.key, arrival.slot);
            Ok(Some(Received { header, buf, at: 0 }))
        })
    }
}

impl Drop for PeerHandle {
    fn drop(&mut self) {
        self.hub.with(|hub| hub.peer_remove(self.key));
    }
}

/// A connected peer.
pub(crate) struct VerbsWire {
    /// Ends first: then no device uses the memory that the rest holds.
    peer: PeerHandle,
    pulls: Pulls,
    /// The socket of the handshake.
    stream: TcpStream,
    /// Once it has: how often the completion queue had been found empty by then.
    hung_up: Option<u64>,
    /// Bytes of the longest frame that the peer takes.
    peer_frame_max: usize,
}

impl VerbsWire {
    fn new(peer: PeerHandle, stream: TcpStream, peer_frame_max: usize) -> Self {
        Self {
            peer,
            pulls: Pulls::default(),
            stream,
            hung_up: None,
            peer_frame_max,
        }
    }

    /// The largest payload in bytes that goes eagerly, and that a frame can carry.
    pub(crate) fn payload_max(&self) -> (usize, usize) {
        let (eager_max, own) = self
            .peer
            .hub
            .with(|hub| (hub.settings().eager_max, hub.settings().frame_max()));
        let frame_max = own.min(self.peer_frame_max);
        let body_max = frame_max - FRAME_HEADER_BYTES - USER_HEADER_MAX_BYTES;
        (eager_max.min(body_max), body_max)
    }

    /// Takes note of operations that are done; bytes that they moved.
    fn ops_take(&mut self) -> u64 {
        let mut moved = 0;
        while let Some(token) = self
            .peer
            .hub
            .with(|hub| hub.peer_mut(self.peer.key).ops_done.pop_front())
        {
            moved += self.pulls.piece_done(token as usize);
        }
        moved
    }

    /// A fault as this side sees it: a peer that ends takes its queue pair with it, which looks
    /// like other faults.
    fn fault(&self, fault: WireFault) -> WireFault {
        match (self.hung_up.is_some(), fault) {
            (true, WireFault::Rdma(_)) => WireFault::Dead,
            (_, fault) => fault,
        }
    }

    fn hang_up(&mut self) {
        let emptied = self.peer.hub.with(|hub| hub.emptied());
        self.hung_up.get_or_insert(emptied);
    }

    /// Whether the peer has hung up and all that it had sent is taken from the device. What was
    /// delivered before may be further back in the completion queue than one round goes.
    fn is_over(&self, hub: &Hub) -> bool {
        self.hung_up
            .is_some_and(|at| hub.emptied() > at || hub.is_lost())
    }

    /// Whether nothing can be sent any more. It is an error only when all is read: who reports it
    /// sooner loses what the peer said last.
    fn is_deaf(&self) -> Result<bool, WireFault> {
        if self.hung_up.is_none() {
            return Ok(false);
        }
        self.peer.hub.with(|hub| {
            let peer = hub.peer(self.peer.key);
            match peer.inbox.is_empty() && self.is_over(hub) {
                true => Err(WireFault::Dead),
                false => Ok(true),
            }
        })
    }

    /// Why there is nothing to receive any more, if so.
    fn end(&self, hub: &Hub) -> Result<(), WireFault> {
        match (hub.peer(self.peer.key).fault(), self.is_over(hub)) {
            (Some(fault), _) => Err(self.fault(fault)),
            (None, true) => Err(WireFault::Dead),
            (None, false) => Ok(()),
        }
    }
}

impl Wire for VerbsWire {
    #[inline]
    fn send_frame(
        &mut self,
        header: &FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault> {
        if self.is_deaf()? {
            return Ok(Posted::Busy);
        }
        self.peer.frame_send(header, user_header, payload)
    }

    #[inline]
    fn recv_frame(&mut self, pool: &mut RxPool) -> Result<Option<Received>, WireFault> {
        match self.peer.frame_recv(pool) {
            Ok(None) if self.peer.hub.with(|hub| self.is_over(hub)) => Err(WireFault::Dead),
            Ok(received) => Ok(received),
            Err(fault) => Err(self.fault(fault)),
        }
    }

    #[inline]
    fn recycle(&mut self, buf: RxBuf, pool: &mut RxPool) {
        pool.give(buf);
    }

    fn bulk_write(&mut self, bytes: &[u8]) -> Result<usize, WireFault> {
        if self.is_deaf()? {
            return Ok(0);
        }
        self.peer.hub.with(|hub| {
            let most = hub.settings().frame_max().min(self.peer_frame_max);
            let mut sent = 0;
            for part in bytes.chunks(most) {
                match hub.frame_send(self.peer.key, KIND_BULK, [part, &[]], &[], false)? {
                    Posted::Done => sent += part.len(),
                    Posted::Busy => break,
                }
            }
            Ok(sent)
        })
    }

    fn bulk_read(&mut self, into: &mut [u8]) -> Result<usize, WireFault> {
        self.peer.hub.with(|hub| {
            let mut read = 0;
            while read < into.len() {
                let peer = hub.peer_mut(self.peer.key);
                let Some(arrival) = peer.bulk.front() else {
                    if read == 0 {
                        self.end(hub)?;
                    }
                    break;
                };
                let (slot, from) = (arrival.slot, peer.bulk_read);
                let count = (into.len() - read).min((arrival.len - from) as usize);
                let is_last = from as usize + count == arrival.len as usize;
                match is_last {
                    true => {
                        peer.bulk.pop_front();
                        peer.bulk_read = 0;
                    }
                    false => peer.bulk_read += count as u32,
                }
                hub.arrival_read(slot, from as usize, &mut into[read..read + count]);
                if is_last {
                    hub.arrival_done(self.peer.key, slot);
                }
                read += count;
            }
            Ok(read)
        })
    }

    fn flush(&mut self) -> Result<bool, WireFault> {
        self.peer.hub.with(|hub| {
            self.end(hub)?;
            Ok(hub.has_room(self.peer.key, KIND_FRAME))
        })
    }

    fn drained(&mut self) -> Result<bool, WireFault> {
        self.peer.hub.with(|hub| {
            self.end(hub)?;
            Ok(hub.peer(self.peer.key).is_drained())
        })
    }

    fn arm(&mut self, want: Want) -> Result<bool, WireFault> {
        self.peer.hub.with(|hub| {
            let peer = hub.peer(self.peer.key);
            let there = !peer.inbox.is_empty()
                || !peer.ops_done.is_empty()
                || self.pulls.is_due()
                || peer.remote.is_due()
                || (want.bulk_in && !peer.bulk.is_empty())
                || (want.room && hub.has_room(self.peer.key, KIND_FRAME))
                || (want.bulk_room && hub.has_room(self.peer.key, KIND_BULK))
                || self.hung_up.is_some()
                || self.end(hub).is_err();
            Ok(!there)
        })
    }

    fn expose(&mut self, buf: &Buf) -> Option<PullSource> {
        self.buf_expose(buf)
    }

    fn withdraw(&mut self, source: &PullSource) {
        self.buf_withdraw(source);
    }

    fn pull_start(
        &mut self,
        id: u64,
        segments: &[PullSegment],
        into: BufMut,
    ) -> Result<Result<(), BufMut>, WireFault> {
        Ok(self.pull_begin(id, segments, into))
    }

    fn pull_poll(&mut self, _budget: usize) -> Result<(usize, Option<Pulled>), WireFault> {
        self.pulls_advance().map_err(|fault| self.fault(fault))
    }

    fn one_sided<'a>(&mut self, id: u64, op: OneSidedOp<'a>) -> Result<Taken<'a>, WireFault> {
        if self.is_deaf()? {
            return Ok(Taken::Busy(op));
        }
        let key = self.peer.key;
        let taken = self.peer.hub.with(|hub| hub.op_start(key, id, op));
        taken.map_err(|fault| self.fault(fault))
    }

    fn one_sided_poll(&mut self) -> Result<Option<Completed>, WireFault> {
        let key = self.peer.key;
        Ok(self.peer.hub.with(|hub| hub.op_done_next(key)))
    }

    fn one_sided_end(&mut self) -> Vec<Completed> {
        let key = self.peer.key;
        self.peer.hub.with(|hub| hub.ops_end(key))
    }

    #[inline]
    fn works(&self) -> bool {
        let key = self.peer.key;
        !self.pulls.is_idle() || self.peer.hub.with(|hub| !hub.peer(key).remote.is_idle())
    }

    fn ready(&mut self, _bulk: bool) -> Result<(), WireFault> {
        loop {
            match self.stream.read(&mut [0; 64]) {
                Ok(0) => self.hang_up(),
                Ok(_) => {
                    return Err(WireError::Malformed {
                        what: "a peer speaks on a socket that is there for its hang-up",
                    }
                    .into());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A reset, or keepalive's end.
                Err(_) => self.hang_up(),
            }
            return Ok(());
        }
    }
}
