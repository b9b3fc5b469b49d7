//! The floor of latencies in shared memory: a raw flag.

use praas_transport::bare::Bare;

use super::wait::{LOOKS, Wait};
use crate::bench::BenchError;
use crate::bench::control::Watch;

/// One side of a raw flag.
pub(super) struct Flag {
    bare: Bare,
    watch: Watch,
}

impl Flag {
    pub(super) fn new(bare: Bare, watch: Watch) -> Self {
        Self { bare, watch }
    }

    #[inline]
    fn wait(&mut self, bytes: usize) -> Result<bool, BenchError> {
        let mut wait = Wait::new(LOOKS, &self.watch);
        loop {
            if let Some(last) = self.bare.receive(bytes) {
                return Ok(last);
            }
            wait.turn()?;
        }
    }

    /// A round trip.
    #[inline]
    pub(super) fn ping(&mut self, bytes: usize, last: bool) -> Result<(), BenchError> {
        self.bare.send(bytes, last);
        self.wait(bytes).map(drop)
    }

    /// Answers until the other side says that it was the last.
    pub(super) fn pong(&mut self, bytes: usize) -> Result<(), BenchError> {
        loop {
            let last = self.wait(bytes)?;
            self.bare.send(bytes, last);
            if last {
                return Ok(());
            }
        }
    }
}
