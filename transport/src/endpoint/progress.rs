//! A round of progress: descriptors, then each active channel's frames and bulk.

use std::io;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::channel::OutDone;
use super::times::TimesReader;
use super::transfer::{InDone, segments_decode};
use super::types::{
    ChannelId, Disposition, Flow, Handler, Incoming, IncomingId, Message, SendError, SendFailure,
    WaitMode,
};
use super::{Endpoint, Event, Listening, Slot, State};
use crate::backend::Wire;
use crate::clock;
use crate::config::MESSAGE_HARD_MAX_BYTES;
use crate::sync::atomic::{Ordering, fence};
use crate::wire::FrameKind;

/// Active channels up to this number are polled for ever; above it idle ones sleep.
const ACTIVE_ALWAYS: usize = 8;
/// Frames of one channel handled before the others get their turn.
const FRAMES_PER_TURN: usize = 64;
/// Empty rounds of a spinning wait between two looks at the clock.
const ROUNDS_PER_CLOCK: u32 = 64;
/// Empty rounds of a spinning wait before the processor is told that it spins: some microseconds.
/// Telling it costs as much as half a small message.
const ROUNDS_UNHINTED: u32 = 1024;
/// Empty rounds of a spinning wait between two questions whether it still may.
const ROUNDS_PER_RENEWAL: u32 = 4096;
/// How long a wait spins in vain before it lets others have the CPU, each time.
const YIELD_EVERY: Duration = Duration::from_micros(50);
/// A round over a socket costs a system call, so it counts for as many.
const STREAM_ROUND_WEIGHT: u32 = 16;

/// Rounds of a channel over a socket without a thought of sleep, after which the kernel need not
/// tell any more what comes: it would spend as long on it as on a tenth of a small message. Many
/// more than a wait has that soon blocks.
const ROUNDS_UNTIL_UNWATCHED: u32 = 1024;

impl Endpoint {
    /// One round: never blocks. Returns the number of things that happened.
    pub fn progress<H: Handler>(&mut self, handler: &mut H) -> usize {
        let mut happened = 0;
        self.rounds = self.rounds.saturating_add(1);
        let woken = &self.ops.waker.shared.woken;
        if self.rounds >= self.ops.config.poll_interval_rounds || woken.load(Ordering::Relaxed) {
            self.poll_descriptors(Some(Duration::ZERO));
        }
        if !self.ops.hubs.is_empty() {
            self.ops.hubs_poll();
        }
        // After the descriptors and before the frames, so that a channel's opening is told before
        // its first message.
        if !self.ops.pending.is_empty() {
            match self.deliver(handler) {
                (count, Flow::Continue) => happened += count,
                (count, Flow::Stop) => return count,
            }
        }
        let mut left = self.ops.active.len();
        while left > 0 {
            left -= 1;
            if self.turn >= self.ops.active.len() {
                self.turn = 0;
            }
            let Some(&slot) = self.ops.active.get(self.turn) else {
                break;
            };
            let (count, flow) = self.channel_round(slot, handler);
            happened += count;
            if flow == Flow::Stop {
                return happened;
            }
            // A channel that was closed or put to sleep has left its place to another.
            if self.ops.active.get(self.turn) == Some(&slot) {
                self.turn += 1;
            }
        }
        happened
    }

    /// Makes progress until something happens, the endpoint is woken, or the deadline passes;
    /// zero in the latter two cases.
    pub fn progress_wait<H: Handler>(
        &mut self,
        handler: &mut H,
        deadline: Option<Instant>,
        mode: WaitMode,
    ) -> usize {
        let mut spins = mode != WaitMode::Warm && self.spinner.begin();
        let mut adaptive_until = None;
        let mut looked_at = None;
        let mut alone = None;
        let mut rounds = 0_u32;
        self.woken_last = false;
        loop {
            let happened = self.progress(handler);
            if happened > 0 || std::mem::take(&mut self.roused) {
                self.woken_last = happened == 0;
                self.times.rounds_add(rounds % ROUNDS_PER_CLOCK);
                return happened;
            }
            if !spins {
                break;
            }
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(ROUNDS_PER_CLOCK) {
                let now = clock::now();
                match looked_at.replace(now) {
                    Some(last) => self.times.window_add(ROUNDS_PER_CLOCK, now - last),
                    None => self.times.rounds_add(ROUNDS_PER_CLOCK),
                }
                if deadline.is_some_and(|deadline| now >= deadline) {
                    return 0;
                }
                if mode == WaitMode::Adaptive {
                    let spin = Duration::from_micros(self.ops.config.spin_us.into());
                    spins = now < *adaptive_until.get_or_insert_with(|| now + spin);
                }
                if rounds.is_multiple_of(ROUNDS_PER_RENEWAL) {
                    spins &= self.spinner.renew();
                }
                // Whom we wait for may be on this CPU without our knowing it.
                let alone_since = *alone.get_or_insert(now);
                if now - alone_since >= YIELD_EVERY {
                    rustix::thread::sched_yield();
                    alone = Some(now);
                }
            }
            if self.spinner.crowded() {
                rustix::thread::sched_yield();
            }
            if rounds > ROUNDS_UNHINTED {
                crate::sync::spin_hint();
            }
        }
        self.spinner.rest();
        if deadline.is_some_and(|deadline| clock::now() >= deadline) {
            return 0;
        }
        self.wait(deadline);
        let woken = std::mem::take(&mut self.roused);
        let happened = self.progress(handler);
        self.woken_last = woken && happened == 0;
        happened
    }

    /// Whether the last [`Endpoint::progress_wait`] that found nothing ended early since the endpoint
    /// was woken. That wake is spent: what it was for must be looked at before another wait.
    pub fn was_woken(&self) -> bool {
        self.woken_last
    }

    /// Prepares to sleep on [`Endpoint::raw_fd`]; `false` if there is work already.
    pub fn arm(&mut self) -> bool {
        self.ops.waker.shared.asleep.store(true, Ordering::SeqCst);
        // With the one in `wake_sleeper`: we see what was published, or are seen asleep.
        fence(Ordering::SeqCst);
        let idle = self.ops.pending.is_empty()
            && !self.ops.waker.shared.woken.load(Ordering::SeqCst)
            && !self.ops.listeners.iter().any(|listener| match listener {
                Listening::Mem(listener) => listener.pending(),
                _ => false,
            })
            && self.ops.channels_arm()
            && self.ops.hubs.arm();
        if !idle {
            self.ops.waker.shared.asleep.store(false, Ordering::SeqCst);
        }
        idle
    }

    /// Blocks until there may be work, the endpoint is woken, or the deadline passes.
    pub fn wait(&mut self, deadline: Option<Instant>) {
        if !self.arm() {
            self.poll_descriptors(Some(Duration::ZERO));
            return;
        }
        let timed = self.ops.timed_next();
        let until = match (deadline, timed) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let timeout = until.map(|until| until.saturating_duration_since(clock::now()));
        let asleep = clock::now();
        self.poll_descriptors(timeout);
        self.times.asleep_add(clock::now() - asleep);
    }

    /// Where the endpoint's time goes, to be read from any thread.
    pub fn times(&self) -> TimesReader {
        self.times.reader()
    }

    fn poll_descriptors(&mut self, timeout: Option<Duration>) {
        self.rounds = 0;
        if let Err(error) = self.ops.poll.poll(&mut self.events, timeout)
            && error.kind() != io::ErrorKind::Interrupted
        {
            // epoll itself fails only when its arguments are wrong; spinning on would hide it.
            tracing::error!(%error, "cannot poll descriptors");
        }
        self.ops.waker.shared.asleep.store(false, Ordering::SeqCst);
        let woken = self.ops.waker.shared.woken.swap(false, Ordering::SeqCst);
        for event in &self.events {
            self.ops.descriptor_ready(event.token());
        }
        if woken {
            self.roused = true;
            self.ops.mem_ready();
        }
        self.ops.timed_step();
    }

    fn deliver<H: Handler>(&mut self, handler: &mut H) -> (usize, Flow) {
        let mut count = 0;
        while let Some(event) = self.ops.pending.pop_front() {
            count += 1;
            let ops = &mut self.ops;
            let flow = match event {
                Event::Open(channel) => match ops.info(channel).cloned() {
                    Some(info) => {
                        // Not before: its first frames may have come with the handshake's end.
                        ops.activate(channel.slot);
                        handler.on_open(ops, channel, &info)
                    }
                    None => Flow::Continue,
                },
                Event::Sent(channel, done, alive) => {
                    let outcome = match (done.refused, alive) {
                        (Some(reason), _) => Err(SendFailure::Refused(reason)),
                        (None, true) => Ok(()),
                        (None, false) => Err(SendFailure::Closed),
                    };
                    let OutDone { context, parts, .. } = done;
                    match done.list {
                        true => {
                            let parts = parts.into_vec();
                            handler.on_list_sent(ops, channel, context, parts, outcome)
                        }
                        false => {
                            let buf = parts.into_iter().next().unwrap_or_default();
                            handler.on_sent(ops, channel, context, buf, outcome)
                        }
                    }
                }
                Event::OneSided(channel, done) => {
                    ops.op_told(channel);
                    handler.on_one_sided(ops, channel, done)
                }
                Event::Closed(channel, reason) => handler.on_close(ops, channel, reason),
            };
            if flow == Flow::Stop {
                return (count, Flow::Stop);
            }
        }
        (count, Flow::Continue)
    }

    /// Frames, bulk and room of one channel.
    #[inline(always)]
    fn channel_round<H: Handler>(&mut self, slot: u32, handler: &mut H) -> (usize, Flow) {
        let mut count = 0;
        for _ in 0..FRAMES_PER_TURN {
            let State::Open(channel) = &mut self.ops.slots[slot as usize].state else {
                return (count, Flow::Continue);
            };
            match channel.wire.recv_into(&mut self.ops.rx, &mut self.received) {
                Ok(true) => {}
                Ok(false) => break,
                Err(fault) => {
                    self.ops.channel_fault(slot, fault);
                    break;
                }
            }
            count += 1;
            if self.frame(slot, handler) == Flow::Stop {
                return (count, Flow::Stop);
            }
        }
        let (more, flow) = self.channel_upkeep(slot, handler, count);
        (count + more, flow)
    }

    #[inline(always)]
    fn frame<H: Handler>(&mut self, slot: u32, handler: &mut H) -> Flow {
        let id = ChannelId {
            slot,
            generation: self.ops.slots[slot as usize].generation,
        };
        let received = &self.received;
        let header = &received.header;
        let kind = match header.kind() {
            Ok(kind) => kind,
            Err(error) => {
                self.ops.channel_fault(slot, error.into());
                return Flow::Continue;
            }
        };
        let flow = match kind {
            FrameKind::Eager => {
                let message = Message {
                    am: header.am_id,
                    tag: header.id(),
                    header: received.user_header(),
                    payload: received.payload(),
                };
                handler.on_message(&mut self.ops, id, message)
            }
            FrameKind::Rts | FrameKind::RtsPull => self.announced(id, kind, handler),
            FrameKind::Put
            | FrameKind::PutRts
            | FrameKind::Get
            | FrameKind::FetchAdd
            | FrameKind::CompareSwap
            | FrameKind::Answer => self.one_sided(id, kind, handler),
            FrameKind::Immediate => {
                handler.on_immediate(&mut self.ops, id, header.id(), header.aux())
            }
            _ => {
                self.ops.control_frame(id, kind, header);
                Flow::Continue
            }
        };
        match &mut self.ops.slots[slot as usize] {
            Slot {
                generation,
                state: State::Open(channel),
            } if *generation == id.generation => {
                let wire = &mut channel.wire;
                wire.recycle_from(&mut self.received, &mut self.ops.rx);
            }
            // The buffer stays where it is, for the next frame of whatever channel.
            _ => {}
        }
        flow
    }

    #[inline(never)]
    fn one_sided<H: Handler>(&mut self, id: ChannelId, kind: FrameKind, handler: &mut H) -> Flow {
        let received = &self.received;
        let (header, words) = (&received.header, received.user_header());
        let body = received.body(kind);
        match self.ops.one_sided_frame(id, kind, header, words, body) {
            Some((value, len)) => handler.on_immediate(&mut self.ops, id, value, len),
            None => Flow::Continue,
        }
    }

    #[inline(never)]
    fn announced<H: Handler>(&mut self, id: ChannelId, kind: FrameKind, handler: &mut H) -> Flow {
        let received = &self.received;
        let limit = self.ops.config.message_max_bytes;
        let Some(channel) = self.ops.channel(id) else {
            return Flow::Continue;
        };
        let header = received.user_header();
        let segments = match kind {
            FrameKind::RtsPull => segments_decode(received.body(kind)),
            _ => SmallVec::new(),
        };
        let announced =
            channel.announced(&received.header, header, segments, MESSAGE_HARD_MAX_BYTES);
        let transfer = match announced {
            Ok(transfer) => transfer,
            Err(error) => {
                self.ops.channel_fault(id.slot, error.into());
                return Flow::Continue;
            }
        };
        self.ops.lane_open(id.slot);
        let incoming = Incoming {
            id: IncomingId {
                channel: id,
                transfer,
            },
            am: received.header.am_id,
            tag: received.header.id(),
            header,
            len: received.header.len(),
        };
        let incoming_id = incoming.id;
        let too_large = received.header.len() > limit;
        let outcome = match handler.on_incoming(&mut self.ops, id, incoming) {
            Disposition::Accept(_) | Disposition::Park if too_large => {
                self.ops.refuse(incoming_id, u32::MAX)
            }
            Disposition::Accept(into) => self.ops.accept(incoming_id, into),
            Disposition::Refuse(reason) => self.ops.refuse(incoming_id, reason),
            Disposition::Park => Ok(()),
        };
        if let Err(error) = outcome
            && error != SendError::NotOpen
        {
            // The handler's buffer does not fit: the sender must not wait for ever.
            tracing::error!(%error, "a large message cannot be received");
            let _ = self.ops.refuse(incoming_id, u32::MAX);
        }
        Flow::Continue
    }

    /// What is not frames: bulk, control frames that wait, room, idleness, closing.
    #[inline]
    fn channel_upkeep<H: Handler>(
        &mut self,
        slot: u32,
        handler: &mut H,
        frames: usize,
    ) -> (usize, Flow) {
        let State::Open(channel) = &mut self.ops.slots[slot as usize].state else {
            return (0, Flow::Continue);
        };
        if channel.info.kind.is_stream() {
            self.rounds = self.rounds.saturating_add(STREAM_ROUND_WEIGHT);
            channel.rounds_awake = channel.rounds_awake.saturating_add(1);
            if channel.rounds_awake == ROUNDS_UNTIL_UNWATCHED {
                self.ops.socket_watch(slot, false);
                return (0, Flow::Continue);
            }
        }
        if channel.quiet() {
            channel.idle = if frames > 0 {
                0
            } else {
                channel.idle.saturating_add(1)
            };
            if self.ops.active.len() > ACTIVE_ALWAYS
                && self.ops.slot_idle(slot) > self.ops.config.idle_polls
            {
                self.ops.channel_rest(slot);
            }
            return (0, Flow::Continue);
        }
        self.channel_work(slot, handler)
    }

    /// Tells of what became complete, also if the channel has failed since.
    fn done_tell<H: Handler>(
        &mut self,
        id: ChannelId,
        mut done: SmallVec<[InDone; 4]>,
        handler: &mut H,
    ) -> Flow {
        // Operations first: a handler may end the channel, and their buffers would be nowhere.
        done.sort_by_key(|done| !matches!(done, InDone::Op(_)));
        let mut flow = Flow::Continue;
        for done in done {
            let ops = &mut self.ops;
            let told = match done {
                InDone::Message(message) => handler.on_large(ops, id, message),
                InDone::Put { immediate, len } => handler.on_immediate(ops, id, immediate, len),
                InDone::Op(completed) => {
                    ops.op_finish(id, completed);
                    Flow::Continue
                }
            };
            if told == Flow::Stop {
                flow = Flow::Stop;
            }
        }
        flow
    }

    #[inline(never)]
    fn channel_work<H: Handler>(&mut self, slot: u32, handler: &mut H) -> (usize, Flow) {
        let id = ChannelId {
            slot,
            generation: self.ops.slots[slot as usize].generation,
        };
        let mut done = SmallVec::new();
        let State::Open(channel) = &mut self.ops.slots[slot as usize].state else {
            return (0, Flow::Continue);
        };
        channel.idle = 0;
        let pulled = channel.pull(&mut self.ops.rx, &mut done);
        let pushed = channel.push(&mut self.ops.rx);
        let (moved, fault) = match (pulled, pushed) {
            (Ok(pulled), Ok(pushed)) => (usize::from(pulled + pushed > 0), None),
            (Err(fault), _) | (_, Err(fault)) => (1, Some(fault)),
        };
        let mut count = moved + done.len();
        let mut flow = self.done_tell(id, done, handler);
        if let Some(fault) = fault {
            if self.ops.channel(id).is_some() {
                self.ops.channel_fault(slot, fault);
            }
            return (count, flow);
        }
        let Some(channel) = self.ops.channel(id) else {
            return (count, flow);
        };
        // A frame that was taken in part must get out also when nobody waits for room.
        if channel.want_writable || channel.wire.held_back() {
            match channel.wire.flush() {
                Ok(true) => {
                    count += 1;
                    if std::mem::take(&mut channel.want_writable)
                        && handler.on_writable(&mut self.ops, id) == Flow::Stop
                    {
                        flow = Flow::Stop;
                    }
                }
                Ok(false) => {}
                Err(fault) => self.ops.channel_fault(slot, fault),
            }
        }
        self.ops.close_step(id);
        (count, flow)
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::shm::{Spinner, SpinnerPage};
    use crate::{CloseReason, Identity, Incarnation, LargeMessage, Ops, TransportConfig};

    /// Nobody speaks.
    struct Silence;

    impl Handler for Silence {
        fn on_message(&mut self, _: &mut Ops, _: ChannelId, _: Message<'_>) -> Flow {
            Flow::Continue
        }

        fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
            Disposition::Refuse(0)
        }

        fn on_close(&mut self, _: &mut Ops, _: ChannelId, _: CloseReason) -> Flow {
            Flow::Continue
        }

        fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
            Flow::Continue
        }
    }

    #[test]
    fn a_wake_is_told_of_also_by_a_wait_that_may_not_spin() {
        let identity = Identity {
            application: "a".into(),
            name: "".into(),
            incarnation: Incarnation(0),
            client_id: 1,
        };
        let mut endpoint = Endpoint::new(TransportConfig::default(), identity, None).unwrap();
        for cpus in [0, 1] {
            endpoint.spinner = Spinner::new(Arc::new(SpinnerPage::private(cpus)));
            for mode in [WaitMode::Hot, WaitMode::Warm, WaitMode::Adaptive] {
                endpoint.waker().wake();
                assert_eq!(endpoint.progress_wait(&mut Silence, None, mode), 0);
                assert!(endpoint.was_woken(), "{mode:?} on {cpus} CPUs");
                let soon = clock::now() + Duration::from_millis(1);
                assert_eq!(endpoint.progress_wait(&mut Silence, Some(soon), mode), 0);
                assert!(
                    !endpoint.was_woken(),
                    "{mode:?} on {cpus} CPUs, for the time"
                );
                // From another thread, most likely when it waits already.
                let waker = endpoint.waker();
                let thread = std::thread::spawn(move || waker.wake());
                assert_eq!(endpoint.progress_wait(&mut Silence, None, mode), 0);
                assert!(
                    endpoint.was_woken(),
                    "{mode:?} on {cpus} CPUs, from elsewhere"
                );
                thread.join().unwrap();
            }
        }
    }
}
