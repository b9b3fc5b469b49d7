//! One-sided operations over a channel, and what their floors do.
//!
//! ```text
//!   initiator                                     target
//!     |<------------------------------- ack ---------|   it has begun, and makes progress
//!     | == operation, operation ... (a window) =====>|
//!     |<======================= completions =========|   of its memory or its progress
//!     | -------------------------------- ack ------->|   that was the last window
//! ```

use praas_transport::{ChannelId, Posted, PostedBuf, PostedGet, RemoteKey};

use super::channel::Channel;
use super::raw::Raw;
use super::ring::Ring;
use crate::bench::{Bench, BenchError};

/// Bytes that name an operation to a socket's other side, and that answer it: as many as are in the
/// header of a frame.
const NAMED_BYTES: usize = 32;

impl Channel {
    /// Posts up to so many operations, as long as there is room; how many.
    #[inline]
    fn operations_post(
        &mut self,
        (bench, to, key): (Bench, ChannelId, RemoteKey),
        most: usize,
    ) -> Result<usize, BenchError> {
        let bytes = self.payload.len();
        let send = |source| BenchError::Send { bytes, source };
        let eager = bytes <= self.eager_max();
        for posted in 0..most {
            let endpoint = &mut self.endpoint;
            let busy = match bench {
                Bench::Put if eager => {
                    endpoint.put(to, key, 0, &self.payload, 0).map_err(send)? == Posted::Busy
                }
                Bench::Put => {
                    let payload = self.payload.clone();
                    let put = endpoint.put_buf(to, key, 0, payload, None, 0);
                    matches!(put.map_err(send)?, PostedBuf::Busy(_))
                }
                Bench::FetchAdd => {
                    endpoint.fetch_add(to, key, 0, 1, 0).map_err(send)? == Posted::Busy
                }
                Bench::CompareSwap => {
                    let swap = endpoint.compare_swap(to, key, 0, 0, 0, 0);
                    swap.map_err(send)? == Posted::Busy
                }
                _ => {
                    let into = match self.windows.free.pop() {
                        Some(into) => into,
                        None => endpoint.pool().alloc(bytes).map_err(|error| {
                            let reason = error.to_string();
                            BenchError::Memory { bytes, reason }
                        })?,
                    };
                    match endpoint.get(to, key, 0, into, 0).map_err(send)? {
                        PostedGet::Pending => false,
                        PostedGet::Busy(into) => {
                            self.windows.free.push(into);
                            true
                        }
                    }
                }
            };
            if busy {
                self.windows.busy = true;
                return Ok(posted);
            }
        }
        Ok(most)
    }

    /// A window of operations, until all are complete.
    #[inline]
    pub(super) fn operations(
        &mut self,
        bench: Bench,
        key: RemoteKey,
        window: usize,
    ) -> Result<(), BenchError> {
        let channel = self.id()?;
        let mut left = window;
        loop {
            if left > 0 && !self.windows.busy {
                left -= self.operations_post((bench, channel, key), left)?;
            }
            if self.windows.completed >= window {
                self.windows.completed -= window;
                return Ok(());
            }
            self.step()?;
        }
    }

    /// Says that there are no more operations.
    pub(super) fn operations_end(&mut self) -> Result<(), BenchError> {
        self.ack_send()
    }

    /// The other side: makes progress until there are no more operations.
    pub(super) fn operations_serve(&mut self, window: usize) -> Result<(), BenchError> {
        self.windows_set(window);
        self.ack_send()?;
        self.ack_wait()
    }
}

impl Raw {
    /// Bytes of a request and of its answer.
    fn exchanged(bench: Bench, bytes: usize) -> (usize, usize) {
        match bench {
            Bench::Put => (NAMED_BYTES + bytes, NAMED_BYTES),
            Bench::Get => (NAMED_BYTES, NAMED_BYTES + bytes),
            _ => (NAMED_BYTES, NAMED_BYTES),
        }
    }

    /// A window of requests, and their answers.
    pub(super) fn operations(
        &mut self,
        bench: Bench,
        bytes: usize,
        window: usize,
    ) -> Result<(), BenchError> {
        let (out, into) = Self::exchanged(bench, bytes);
        self.exchange(out * window, into * window, out.max(into))
    }

    /// The other side of [`Raw::begin`] and of so many windows.
    pub(super) fn operations_serve(
        &mut self,
        bench: Bench,
        bytes: usize,
        window: usize,
        count: u64,
    ) -> Result<(), BenchError> {
        let (into, out) = Self::exchanged(bench, bytes);
        let chunk = out.max(into);
        self.exchange(1, 0, 1)?;
        for _ in 0..count * window as u64 {
            self.exchange(0, into, chunk)?;
            self.exchange(out, 0, chunk)?;
        }
        Ok(())
    }
}

impl Ring {
    /// A window of operations on the other side's memory.
    #[inline]
    pub(super) fn operations(&mut self, bench: Bench, bytes: usize, window: usize) {
        for _ in 0..window {
            self.operation(bench, bytes);
        }
    }

    /// The other side: waits until there are no more operations.
    pub(super) fn operations_serve(&mut self) -> Result<(), BenchError> {
        self.begun()?;
        self.begin()
    }
}
