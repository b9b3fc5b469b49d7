//! Faults on purpose: a seeded wrapper around any wire.
//!
//! Sends become `Busy`, arrivals are held back, bulk is cut into small pieces, and the peer dies,
//! as the seed and the plan say. The same seed and the same calls give the same faults.

use serde::{Deserialize, Serialize};

use crate::backend::{
    AnyWire, Posted, PullSegment, PullSource, Pulled, Received, RxBuf, RxPool, Want, Wire,
    WireFault,
};
use crate::buf::{Buf, BufMut};
use crate::one_sided::{Completed, OneSidedOp, Taken};
use crate::wire::FrameHeader;

/// What to inject. Probabilities are in units of 1/65536.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct FaultPlan {
    /// The seed of the generator.
    pub seed: u64,
    /// How often a send is `Busy`.
    pub busy: u16,
    /// How often an arrival is held back for some polls.
    pub delay: u16,
    /// The most polls that an arrival is held back.
    pub delay_polls_max: u32,
    /// How often a bulk write or read moves only a few bytes.
    pub partial: u16,
    /// Frames received after which the peer dies; zero is never.
    pub die_after_frames: u64,
    /// Whether this side, as a listener, has no memory to share.
    pub segment_refused: bool,
}

/// A wire with faults.
pub(crate) struct FaultWire {
    inner: AnyWire,
    plan: FaultPlan,
    random: fastrand::Rng,
    hold: u32,
    frames: u64,
}

impl FaultWire {
    /// Wraps a wire; `stream` tells the channels of an endpoint apart.
    pub(crate) fn new(inner: AnyWire, plan: FaultPlan, stream: u64) -> Self {
        let random =
            fastrand::Rng::with_seed(plan.seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self {
            inner,
            plan,
            random,
            hold: 0,
            frames: 0,
        }
    }

    pub(crate) fn inner(&mut self) -> &mut AnyWire {
        &mut self.inner
    }

    pub(crate) fn into_inner(self) -> AnyWire {
        self.inner
    }

    fn strikes(&mut self, chance: u16) -> bool {
        chance > 0 && self.random.u16(..) < chance
    }

    fn dead(&self) -> bool {
        self.plan.die_after_frames > 0 && self.frames >= self.plan.die_after_frames
    }
}

impl Wire for FaultWire {
    fn send_frame(
        &mut self,
        header: &FrameHeader,
        user_header: &[u8],
        payload: &[&[u8]],
    ) -> Result<Posted, WireFault> {
        if self.dead() {
            return Err(WireFault::Dead);
        }
        if self.strikes(self.plan.busy) {
            return Ok(Posted::Busy);
        }
        self.inner.send_frame(header, user_header, payload)
    }

    fn recv_frame(&mut self, pool: &mut RxPool) -> Result<Option<Received>, WireFault> {
        if self.dead() {
            return Err(WireFault::Dead);
        }
        if self.hold == 0 && self.plan.delay_polls_max > 0 && self.strikes(self.plan.delay) {
            self.hold = self.random.u32(1..=self.plan.delay_polls_max);
        }
        if self.hold > 0 {
            self.hold -= 1;
            return Ok(None);
        }
        let received = self.inner.recv_frame(pool)?;
        self.frames += u64::from(received.is_some());
        Ok(received)
    }

    fn recycle(&mut self, buf: RxBuf, pool: &mut RxPool) {
        self.inner.recycle(buf, pool);
    }

    fn bulk_write(&mut self, bytes: &[u8]) -> Result<usize, WireFault> {
        let count = match self.strikes(self.plan.partial) {
            true => bytes.len().min(self.random.usize(1..=64)),
            false => bytes.len(),
        };
        self.inner.bulk_write(&bytes[..count])
    }

    fn bulk_read(&mut self, into: &mut [u8]) -> Result<usize, WireFault> {
        let count = match self.strikes(self.plan.partial) {
            true => into.len().min(self.random.usize(1..=64)),
            false => into.len(),
        };
        self.inner.bulk_read(&mut into[..count])
    }

    fn flush(&mut self) -> Result<bool, WireFault> {
        self.inner.flush()
    }

    fn cork(&mut self, corked: bool) {
        self.inner.cork(corked);
    }

    fn peer_spare(&mut self) {
        self.inner.peer_spare();
    }

    fn drained(&mut self) -> Result<bool, WireFault> {
        self.inner.drained()
    }

    fn held_back(&self) -> bool {
        self.inner.held_back()
    }

    fn arm(&mut self, want: Want) -> Result<bool, WireFault> {
        if self.dead() {
            return Err(WireFault::Dead);
        }
        // What is held back, or was Busy only by chance, would never ring a doorbell.
        Ok(self.hold == 0 && !want.room && self.inner.arm(want)?)
    }

    fn shutdown(&mut self) {
        self.inner.shutdown();
    }

    fn ready(&mut self, bulk: bool) -> Result<(), WireFault> {
        self.inner.ready(bulk)
    }

    fn expose(&mut self, buf: &Buf) -> Option<PullSource> {
        self.inner.expose(buf)
    }

    fn withdraw(&mut self, source: &PullSource) {
        self.inner.withdraw(source);
    }

    fn pull_start(
        &mut self,
        id: u64,
        segments: &[PullSegment],
        into: BufMut,
    ) -> Result<Result<(), BufMut>, WireFault> {
        // Now and then it cannot be, and the sender must stream.
        match self.strikes(self.plan.busy) {
            true => Ok(Err(into)),
            false => self.inner.pull_start(id, segments, into),
        }
    }

    fn pull_poll(&mut self, budget: usize) -> Result<(usize, Option<Pulled>), WireFault> {
        let budget = match self.strikes(self.plan.partial) {
            true => self.random.usize(1..=64),
            false => budget,
        };
        self.inner.pull_poll(budget)
    }

    fn one_sided<'a>(&mut self, id: u64, op: OneSidedOp<'a>) -> Result<Taken<'a>, WireFault> {
        if self.dead() {
            return Err(WireFault::Dead);
        }
        match self.strikes(self.plan.busy) {
            true => Ok(Taken::Busy(op)),
            false => self.inner.one_sided(id, op),
        }
    }

    fn one_sided_poll(&mut self) -> Result<Option<Completed>, WireFault> {
        match self.plan.delay_polls_max > 0 && self.strikes(self.plan.delay) {
            true => Ok(None),
            false => self.inner.one_sided_poll(),
        }
    }

    fn one_sided_end(&mut self) -> Vec<Completed> {
        self.inner.one_sided_end()
    }

    fn works(&self) -> bool {
        self.inner.works()
    }
}
