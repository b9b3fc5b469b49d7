//! Waiting by looking again.

use std::time::{Duration, Instant};

use crate::bench::BenchError;
use crate::bench::control::Watch;

/// How long one side waits for the other before it gives up.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Fruitless looks at shared memory between two looks at the clock, and turns given to others: more
/// than a large message takes while both sides have a CPU.
pub(super) const LOOKS: u32 = 1 << 16;
/// The same for a socket, where every look is a system call.
pub(super) const CALLS: u32 = 1 << 10;

/// A wait that ends, and that lets others have the CPU if it takes long.
pub(super) struct Wait<'a> {
    watch: &'a Watch,
    count: u32,
    every: u32,
    until: Option<Instant>,
}

impl<'a> Wait<'a> {
    #[inline]
    pub(super) fn new(every: u32, watch: &'a Watch) -> Self {
        Self {
            watch,
            count: 0,
            every,
            until: None,
        }
    }

    #[inline]
    pub(super) fn turn(&mut self) -> Result<(), BenchError> {
        self.count += 1;
        match self.count < self.every {
            true => Ok(()),
            false => self.look(),
        }
    }

    #[cold]
    fn look(&mut self) -> Result<(), BenchError> {
        self.count = 0;
        self.watch.look()?;
        let now = Instant::now();
        if now > *self.until.get_or_insert(now + PATIENCE) {
            return Err(BenchError::Peer("does not answer".into()));
        }
        std::thread::yield_now();
        Ok(())
    }
}
