//! What libibverbs makes, each with what it hangs on, so that nothing ends before what uses it.
//!
//! ```text
//!   Device <- ProtectionDomain <- Region
//!      ^             ^  ^-------- SharedReceives <-+
//!      |             +---------------------------- QueuePair
//!      +-- EventChannel <- CompletionQueue <-------+
//! ```
//!
//! The library locks for itself, so these may be shared and dropped by any thread; who posts and
//! polls keeps to one thread at a time for its own order.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::load::Lib;
use super::sys;

/// The error that the library left behind.
fn last_error(what: &str) -> io::Error {
    let error = io::Error::last_os_error();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The outcome of a call that returns an error number.
fn checked(what: &str, code: c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        -1 => Err(last_error(what)),
        code => {
            let error = io::Error::from_raw_os_error(code.abs());
            Err(io::Error::new(error.kind(), format!("{what}: {error}")))
        }
    }
}

/// Says what destroying something could not do: what is left is a leak, not a danger.
fn destroyed(what: &str, code: c_int) {
    if code != 0 {
        tracing::error!(code, "{what} failed");
    }
}

/// An open device.
pub(crate) struct Device {
    pub(crate) lib: Arc<Lib>,
    pub(crate) name: String,
    pub(crate) attr: sys::DeviceAttr,
    context: NonNull<sys::Context>,
}

// SAFETY: the library's objects are not bound to a thread, and it locks what it shares.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// The names of the devices that this process sees.
    pub(crate) fn names(lib: &Lib) -> io::Result<Vec<String>> {
        devices_with(lib, |found| {
            Ok(found
                .iter()
                .filter_map(|at| device_name(lib, *at))
                .collect())
        })
    }

    /// Opens the device of that name.
    pub(crate) fn open(lib: &Arc<Lib>, name: &str) -> io::Result<Arc<Self>> {
        let context = devices_with(lib, |found| {
            let named =
                |at: &&NonNull<sys::Device>| device_name(lib, **at).as_deref() == Some(name);
            let at = found.iter().find(named).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("there is no device {name}"),
                )
            })?;
            // SAFETY: the device is of the list, which is freed only after this.
            let context = unsafe { (lib.device_open)(at.as_ptr()) };
            NonNull::new(context).ok_or_else(|| last_error("ibv_open_device"))
        })?;
        // SAFETY: it is plain numbers, for which zeros are values.
        let mut attr: sys::DeviceAttr = unsafe { std::mem::zeroed() };
        // SAFETY: the context was just opened, and `attr` is what is written to.
        let queried = unsafe { (lib.device_query)(context.as_ptr(), &mut attr) };
        let device = Self {
            lib: Arc::clone(lib),
            name: name.into(),
            attr,
            context,
        };
        checked("ibv_query_device", queried)?;
        // SAFETY: the descriptor is the device's, which lives.
        nonblocking_set(unsafe { BorrowedFd::borrow_raw(device.async_fd()) })?;
        Ok(Arc::new(device))
    }

    pub(crate) fn port(&self, port: u8) -> io::Result<sys::PortAttr> {
        let mut attr = sys::PortAttr::default();
        // SAFETY: the device is open.
        let queried = unsafe {
            self.lib
                .port_query_whole(self.context.as_ptr(), port, &mut attr)
        };
        checked("ibv_query_port", queried)?;
        Ok(attr)
    }

    pub(crate) fn gid(&self, port: u8, index: u8) -> io::Result<[u8; 16]> {
        let mut gid = [0; 16];
        // SAFETY: the device is open, and sixteen bytes are written.
        let queried = unsafe {
            (self.lib.gid_query)(self.context.as_ptr(), port, c_int::from(index), &mut gid)
        };
        checked("ibv_query_gid", queried)?;
        Ok(gid)
    }

    /// Readable when [`Device::event_next`] has something.
    pub(crate) fn async_fd(&self) -> RawFd {
        // SAFETY: the device is open.
        unsafe { self.context.as_ref().async_fd }
    }

    /// What happened to a port or a queue pair (by its number), if anything did.
    pub(crate) fn event_next(&self) -> Option<DeviceEvent> {
        let mut event = sys::AsyncEvent {
            element: sys::EventElement { port_num: 0 },
            event_type: 0,
        };
        // SAFETY: the device is open, and its descriptor does not block.
        if unsafe { (self.lib.async_event)(self.context.as_ptr(), &mut event) } != 0 {
            return None;
        }
        let seen = match event.event_type {
            sys::EVENT_QP_FATAL
            | sys::EVENT_QP_REQ_ERR
            | sys::EVENT_QP_ACCESS_ERR
            | sys::EVENT_QP_LAST_WQE_REACHED => DeviceEvent::QueuePair {
                // SAFETY: these events are about a queue pair, which cannot end before its event
                // is acknowledged.
                number: unsafe { (*event.element.qp).qp_num },
                kind: event.event_type,
            },
            sys::EVENT_PORT_ACTIVE | sys::EVENT_PORT_ERR => DeviceEvent::Port {
                // SAFETY: these events are about a port.
                port: unsafe { event.element.port_num } as u8,
                up: event.event_type == sys::EVENT_PORT_ACTIVE,
            },
            sys::EVENT_CQ_ERR | sys::EVENT_DEVICE_FATAL | sys::EVENT_SRQ_ERR => DeviceEvent::Fatal,
            sys::EVENT_LID_CHANGE | sys::EVENT_GID_CHANGE => DeviceEvent::Addresses,
            _ => DeviceEvent::Other,
        };
        // SAFETY: the event came from the call above, and is acknowledged once.
        unsafe { (self.lib.async_event_ack)(&mut event) };
        Some(seen)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: all that was made of the device held it, and is gone.
        let code = unsafe { (self.lib.device_close)(self.context.as_ptr()) };
        destroyed("ibv_close_device", code);
    }
}

/// What a device says unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceEvent {
    QueuePair {
        number: u32,
        kind: c_uint,
    },
    Port {
        port: u8,
        up: bool,
    },
    /// A port's addresses are not what they were.
    Addresses,
    /// Nothing of this device works any more.
    Fatal,
    Other,
}

fn devices_with<T>(
    lib: &Lib,
    work: impl FnOnce(&[NonNull<sys::Device>]) -> io::Result<T>,
) -> io::Result<T> {
    let mut count = 0;
    // SAFETY: the count is written to, and the list is freed below.
    let list = unsafe { (lib.device_list)(&mut count) };
    let Some(list) = NonNull::new(list) else {
        return Err(last_error("ibv_get_device_list"));
    };
    let found: Vec<_> = (0..count.max(0) as usize)
        // SAFETY: the list has that many entries.
        .filter_map(|at| NonNull::new(unsafe { *list.as_ptr().add(at) }))
        .collect();
    let done = work(&found);
    // SAFETY: the list is the one that was made above; devices that were opened stay open.
    unsafe { (lib.device_list_free)(list.as_ptr()) };
    done
}

fn device_name(lib: &Lib, device: NonNull<sys::Device>) -> Option<String> {
    // SAFETY: the device is of a list that is not freed yet.
    let name = NonNull::new(unsafe { (lib.device_name)(device.as_ptr()) }.cast_mut())?;
    // SAFETY: the library's names end with a zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    name.to_str().ok().map(Into::into)
}

fn nonblocking_set(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(
        fd,
        flags | rustix::fs::OFlags::NONBLOCK,
    )?)
}

/// What may use memory and queue pairs together.
pub(crate) struct ProtectionDomain {
    pub(crate) device: Arc<Device>,
    raw: NonNull<sys::Pd>,
}

// SAFETY: as for `Device`.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as for `Device`.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub(crate) fn new(device: &Arc<Device>) -> io::Result<Arc<Self>> {
        // SAFETY: the device is open.
        let raw = unsafe { (device.lib.pd_alloc)(device.context.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("ibv_alloc_pd"))?;
        Ok(Arc::new(Self {
            device: Arc::clone(device),
            raw,
        }))
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: all that was made in it held it, and is gone.
        let code = unsafe { (self.device.lib.pd_dealloc)(self.raw.as_ptr()) };
        destroyed("ibv_dealloc_pd", code);
    }
}

/// Memory that the device may reach.
pub(crate) struct Region {
    domain: Arc<ProtectionDomain>,
    raw: NonNull<sys::Mr>,
}

// SAFETY: as for `Device`.
unsafe impl Send for Region {}
// SAFETY: as for `Device`.
unsafe impl Sync for Region {}

impl Region {
    /// Registers memory: pins it, and opens it to the device as `access` says.
    ///
    /// # Safety
    /// The memory stays mapped until the region is dropped. Whoever has Rust references into it
    /// accounts for what the device, or a peer through it, reads and writes.
    pub(crate) unsafe fn register(
        domain: &Arc<ProtectionDomain>,
        at: NonNull<u8>,
        len: usize,
        access: c_uint,
    ) -> io::Result<Self> {
        let lib = &domain.device.lib;
        // SAFETY: the domain lives; the memory is the caller's.
        let raw = unsafe {
            (lib.mr_reg)(
                domain.raw.as_ptr(),
                at.as_ptr().cast::<c_void>(),
                len,
                access as c_int,
            )
        };
        let what = "ibv_reg_mr (is the limit of locked memory, `ulimit -l`, high enough?)";
        let raw = NonNull::new(raw).ok_or_else(|| last_error(what))?;
        Ok(Self {
            domain: Arc::clone(domain),
            raw,
        })
    }

    #[inline]
    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: the region lives.
        unsafe { self.raw.as_ref().lkey }
    }

    pub(crate) fn remote_key(&self) -> u32 {
        // SAFETY: the region lives.
        unsafe { self.raw.as_ref().rkey }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is ours, and nobody posts with its keys any more; what is in flight
        // with them fails from here on.
        let code = unsafe { (self.domain.device.lib.mr_dereg)(self.raw.as_ptr()) };
        destroyed("ibv_dereg_mr", code);
    }
}

/// Where completion queues say that something is there, for who sleeps.
pub(crate) struct EventChannel {
    device: Arc<Device>,
    raw: NonNull<sys::CompChannel>,
}

// SAFETY: as for `Device`.
unsafe impl Send for EventChannel {}
// SAFETY: as for `Device`.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    fn new(device: &Arc<Device>) -> io::Result<Self> {
        // SAFETY: the device is open.
        let raw = unsafe { (device.lib.channel_create)(device.context.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("ibv_create_comp_channel"))?;
        let channel = Self {
            device: Arc::clone(device),
            raw,
        };
        // SAFETY: the descriptor is the channel's, which lives.
        nonblocking_set(unsafe { BorrowedFd::borrow_raw(channel.as_raw_fd()) })?;
        Ok(channel)
    }
}

impl AsRawFd for EventChannel {
    fn as_raw_fd(&self) -> RawFd {
        // SAFETY: the channel lives.
        unsafe { self.raw.as_ref().fd }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: the queue that used it is gone.
        let code = unsafe { (self.device.lib.channel_destroy)(self.raw.as_ptr()) };
        destroyed("ibv_destroy_comp_channel", code);
    }
}

/// Where what was posted is reported done.
pub(crate) struct CompletionQueue {
    channel: EventChannel,
    raw: NonNull<sys::Cq>,
}

// SAFETY: as for `Device`.
unsafe impl Send for CompletionQueue {}
// SAFETY: as for `Device`.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// A queue with room for `depth` completions.
    pub(crate) fn new(device: &Arc<Device>, depth: u32) -> io::Result<Arc<Self>> {
        let channel = EventChannel::new(device)?;
        // SAFETY: device and channel live; there is no context of ours in it.
        let raw = unsafe {
            (device.lib.cq_create)(
                device.context.as_ptr(),
                depth as c_int,
                null_mut(),
                channel.raw.as_ptr(),
                0,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("ibv_create_cq"))?;
        Ok(Arc::new(Self { channel, raw }))
    }

    fn device(&self) -> &Device {
        &self.channel.device
    }

    /// Completions that it has room for.
    pub(crate) fn depth(&self) -> u32 {
        // SAFETY: the queue lives.
        unsafe { self.raw.as_ref().cqe }.max(0) as u32
    }

    pub(crate) fn resize(&self, depth: u32) -> io::Result<()> {
        // SAFETY: the queue lives.
        let code = unsafe { (self.device().lib.cq_resize)(self.raw.as_ptr(), depth as c_int) };
        checked("ibv_resize_cq", code)
    }

    /// Takes completions; how many there were.
    #[inline]
    pub(crate) fn poll(&self, into: &mut [sys::Wc]) -> io::Result<usize> {
        // SAFETY: the queue lives, and so does its context, whose table the provider filled.
        let poll = unsafe { (*self.raw.as_ref().context).ops.poll_cq };
        let poll = poll.ok_or(io::ErrorKind::Unsupported)?;
        // SAFETY: `into` has as many places as we say.
        let count = unsafe { poll(self.raw.as_ptr(), into.len() as c_int, into.as_mut_ptr()) };
        match usize::try_from(count) {
            Ok(count) => Ok(count.min(into.len())),
            Err(_) => Err(io::Error::other(
                "ibv_poll_cq: the completion queue is broken",
            )),
        }
    }

    /// Asks for an event at the next completion.
    pub(crate) fn notify(&self) -> io::Result<()> {
        // SAFETY: as in `poll`.
        let notify = unsafe { (*self.raw.as_ref().context).ops.req_notify_cq };
        let notify = notify.ok_or(io::ErrorKind::Unsupported)?;
        // SAFETY: the queue lives.
        checked("ibv_req_notify_cq", unsafe { notify(self.raw.as_ptr(), 0) })
    }

    /// Takes the events that were asked for, so that the descriptor is quiet again.
    pub(crate) fn events_take(&self) -> u32 {
        let mut taken = 0;
        let (mut queue, mut context) = (null_mut(), null_mut());
        let lib = &self.device().lib;
        // SAFETY: the channel lives, does not block, and serves this queue only.
        while unsafe { (lib.cq_event)(self.channel.raw.as_ptr(), &mut queue, &mut context) } == 0 {
            taken += 1;
        }
        if taken > 0 {
            // SAFETY: so many events were just taken.
            unsafe { (lib.cq_events_ack)(self.raw.as_ptr(), taken) };
        }
        taken
    }
}

impl AsRawFd for CompletionQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.channel.as_raw_fd()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: the queue pairs that used it held it, and are gone; all events are acknowledged.
        let code = unsafe { (self.device().lib.cq_destroy)(self.raw.as_ptr()) };
        destroyed("ibv_destroy_cq", code);
    }
}

/// Receives that all queue pairs of an endpoint share.
pub(crate) struct SharedReceives {
    domain: Arc<ProtectionDomain>,
    raw: NonNull<sys::Srq>,
}

// SAFETY: as for `Device`.
unsafe impl Send for SharedReceives {}
// SAFETY: as for `Device`.
unsafe impl Sync for SharedReceives {}

impl SharedReceives {
    /// Room for `depth` receives of one piece each.
    pub(crate) fn new(domain: &Arc<ProtectionDomain>, depth: u32) -> io::Result<Arc<Self>> {
        let mut init = sys::SrqInitAttr {
            srq_context: null_mut(),
            attr: sys::SrqAttr {
                max_wr: depth,
                max_sge: 1,
                srq_limit: 0,
            },
        };
        // SAFETY: the domain lives, and `init` is as the header has it.
        let raw = unsafe { (domain.device.lib.srq_create)(domain.raw.as_ptr(), &mut init) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("ibv_create_srq"))?;
        Ok(Arc::new(Self {
            domain: Arc::clone(domain),
            raw,
        }))
    }

    /// Posts receives, which are linked to one another, by one call.
    ///
    /// # Safety
    /// The work requests and what they point to last for the call; the memory that they name
    /// stays registered, and is nobody else's, until their completions.
    #[inline]
    pub(crate) unsafe fn post(&self, first: &mut sys::RecvWr) -> io::Result<()> {
        // SAFETY: the queue and its context live, whose table the provider filled.
        let post = unsafe { (*(*self.raw.as_ptr()).context).ops.post_srq_recv };
        let post = post.ok_or(io::ErrorKind::Unsupported)?;
        let mut bad = null_mut();
        // SAFETY: as the caller promises.
        checked("ibv_post_srq_recv", unsafe {
            post(self.raw.as_ptr(), first, &mut bad)
        })
    }
}

impl Drop for SharedReceives {
    fn drop(&mut self) {
        // SAFETY: the queue pairs that used it held it, and are gone.
        let code = unsafe { (self.domain.device.lib.srq_destroy)(self.raw.as_ptr()) };
        destroyed("ibv_destroy_srq", code);
    }
}

/// What a queue pair can do at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueuePairLimits {
    pub(crate) sends: u32,
    pub(crate) inline_bytes: u32,
}

/// The other end of a queue pair, and how to reach it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) port: u8,
    pub(crate) gid_index: u8,
    pub(crate) peer_gid: [u8; 16],
    pub(crate) peer_lid: u16,
    /// Whether packets carry GIDs: always on Ethernet.
    pub(crate) global: bool,
    pub(crate) traffic_class: u8,
    pub(crate) service_level: u8,
    pub(crate) mtu: u8,
    pub(crate) peer_number: u32,
    pub(crate) peer_sequence: u32,
    pub(crate) sequence: u32,
    /// Reads and atomics that we serve at a time, and that we may have under way.
    pub(crate) reads_served: u8,
    pub(crate) reads_started: u8,
    pub(crate) ack_timeout: u8,
    pub(crate) retries: u8,
    pub(crate) rnr_timer: u8,
    pub(crate) rnr_retries: u8,
}

/// One side of a reliable connection.
pub(crate) struct QueuePair {
    domain: Arc<ProtectionDomain>,
    _completions: Arc<CompletionQueue>,
    _receives: Option<Arc<SharedReceives>>,
    raw: NonNull<sys::Qp>,
    pub(crate) limits: QueuePairLimits,
}

// SAFETY: as for `Device`.
unsafe impl Send for QueuePair {}
// SAFETY: as for `Device`.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// A queue pair that is not connected yet; without shared receives it has none at all, so that
    /// a peer can send nothing by it. Devices that cannot have so many inline bytes get asked for
    /// fewer.
    pub(crate) fn new(
        domain: &Arc<ProtectionDomain>,
        completions: &Arc<CompletionQueue>,
        receives: Option<&Arc<SharedReceives>>,
        wanted: QueuePairLimits,
    ) -> io::Result<Self> {
        let mut inline_bytes = wanted.inline_bytes;
        loop {
            let mut init = sys::QpInitAttr {
                qp_context: null_mut(),
                send_cq: completions.raw.as_ptr(),
                recv_cq: completions.raw.as_ptr(),
                srq: receives.map_or(null_mut(), |receives| receives.raw.as_ptr()),
                cap: sys::QpCap {
                    max_send_wr: wanted.sends,
                    max_send_sge: 1,
                    // Some devices make no queue without; nothing is posted to it.
                    max_recv_wr: u32::from(receives.is_none()),
                    max_recv_sge: u32::from(receives.is_none()),
                    max_inline_data: inline_bytes,
                },
                qp_type: sys::QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: all that `init` names lives, and is held by the value made below.
            let raw = unsafe { (domain.device.lib.qp_create)(domain.raw.as_ptr(), &mut init) };
            match NonNull::new(raw) {
                Some(raw) => {
                    return Ok(Self {
                        domain: Arc::clone(domain),
                        _completions: Arc::clone(completions),
                        _receives: receives.map(Arc::clone),
                        raw,
                        limits: QueuePairLimits {
                            sends: init.cap.max_send_wr.min(wanted.sends),
                            inline_bytes: init.cap.max_inline_data.min(inline_bytes),
                        },
                    });
                }
                None if inline_bytes > 0 => inline_bytes /= 2,
                None => return Err(last_error("ibv_create_qp")),
            }
        }
    }

    pub(crate) fn number(&self) -> u32 {
        // SAFETY: the queue pair lives.
        unsafe { self.raw.as_ref().qp_num }
    }

    fn modify(&self, what: &str, attr: &mut sys::QpAttr, mask: c_int) -> io::Result<()> {
        // SAFETY: the queue pair lives, and `attr` is as the header has it.
        let code = unsafe { (self.domain.device.lib.qp_modify)(self.raw.as_ptr(), attr, mask) };
        checked(what, code)
    }

    /// From reset to initialised: peers may do what `access` says.
    pub(crate) fn init(&self, port: u8, access: c_uint) -> io::Result<()> {
        let mut attr = sys::QpAttr {
            qp_state: sys::QPS_INIT,
            port_num: port,
            qp_access_flags: access,
            ..sys::QpAttr::default()
        };
        let mask = sys::QP_STATE | sys::QP_PKEY_INDEX | sys::QP_PORT | sys::QP_ACCESS_FLAGS;
        self.modify("ibv_modify_qp to INIT", &mut attr, mask)
    }

    /// From initialised to ready, both ways.
    pub(crate) fn connect(&self, path: &Path) -> io::Result<()> {
        let mut attr = sys::QpAttr {
            qp_state: sys::QPS_RTR,
            path_mtu: path.mtu.into(),
            dest_qp_num: path.peer_number,
            rq_psn: path.peer_sequence,
            max_dest_rd_atomic: path.reads_served,
            min_rnr_timer: path.rnr_timer,
            ah_attr: sys::AhAttr {
                grh: sys::GlobalRoute {
                    dgid: path.peer_gid,
                    flow_label: 0,
                    sgid_index: path.gid_index,
                    hop_limit: 64,
                    traffic_class: path.traffic_class,
                },
                dlid: path.peer_lid,
                sl: path.service_level,
                is_global: path.global.into(),
                port_num: path.port,
                ..sys::AhAttr::default()
            },
            ..sys::QpAttr::default()
        };
        let mask = sys::QP_STATE
            | sys::QP_AV
            | sys::QP_PATH_MTU
            | sys::QP_DEST_QPN
            | sys::QP_RQ_PSN
            | sys::QP_MAX_DEST_RD_ATOMIC
            | sys::QP_MIN_RNR_TIMER;
        self.modify("ibv_modify_qp to RTR", &mut attr, mask)?;
        let mut attr = sys::QpAttr {
            qp_state: sys::QPS_RTS,
            timeout: path.ack_timeout,
            retry_cnt: path.retries,
            rnr_retry: path.rnr_retries,
            sq_psn: path.sequence,
            max_rd_atomic: path.reads_started,
            ..sys::QpAttr::default()
        };
        let mask = sys::QP_STATE
            | sys::QP_TIMEOUT
            | sys::QP_RETRY_CNT
            | sys::QP_RNR_RETRY
            | sys::QP_SQ_PSN
            | sys::QP_MAX_QP_RD_ATOMIC;
        self.modify("ibv_modify_qp to RTS", &mut attr, mask)
    }

    /// Ends all that is under way, with completions.
    pub(crate) fn stop(&self) -> io::Result<()> {
        let mut attr = sys::QpAttr {
            qp_state: sys::QPS_ERR,
            ..sys::QpAttr::default()
        };
        self.modify("ibv_modify_qp to ERR", &mut attr, sys::QP_STATE)
    }

    /// Posts work requests, which are linked to one another, by one call: one doorbell.
    ///
    /// # Safety
    /// The work requests and what they point to last for the call. Memory that they name, but for
    /// inline sends, stays registered until their completions or the queue pair's end, and nobody
    /// writes to it meanwhile, or touches it at all if the device writes there.
    #[inline]
    pub(crate) unsafe fn post(&self, first: &mut sys::SendWr) -> io::Result<()> {
        // SAFETY: the queue pair and its context live, whose table the provider filled.
        let post = unsafe { (*(*self.raw.as_ptr()).context).ops.post_send };
        let post = post.ok_or(io::ErrorKind::Unsupported)?;
        let mut bad = null_mut();
        // SAFETY: as the caller promises.
        checked("ibv_post_send", unsafe {
            post(self.raw.as_ptr(), first, &mut bad)
        })
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: the queue pair is ours; its events are acknowledged as they are taken.
        let code = unsafe { (self.domain.device.lib.qp_destroy)(self.raw.as_ptr()) };
        destroyed("ibv_destroy_qp", code);
    }
}
