//! Callers at a fixed rate.

use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client, FunctionRef};
use praas_runtime::codec;
use praas_runtime::process::{STATE_GET, STATE_PUT, StatePutInput};
use praas_transport::sync::atomic::{AtomicBool, Ordering};

use super::TransferOptions;
use super::nodes::{Nodes, PROCESS, invoke_error};
use crate::bench::BenchError;

/// Objects that callers write.
const KEYS: u64 = 64;
/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// When it was to begin.
    pub due: Instant,
    /// When it was answered.
    pub end: Instant,
    /// How long after the answer to the one before.
    pub gap: Duration,
}

struct Caller {
    client: Client,
    function: FunctionRef,
    /// What it says, by turns.
    inputs: Vec<Vec<u8>>,
}

/// Callers, each with a client of its own.
pub(super) struct Callers {
    callers: Vec<Caller>,
    interval: Duration,
}

impl Callers {
    pub(super) fn new(options: &TransferOptions, nodes: &Nodes) -> Result<Self, BenchError> {
        let count = match options.rate {
            0 => 0,
            _ => options.callers,
        };
        let name = match options.write_bytes {
            0 => STATE_GET,
            _ => STATE_PUT,
        };
        let inputs = (0..KEYS).map(|number| input(options.write_bytes, number));
        let inputs: Vec<Vec<u8>> = inputs.collect::<Result<_, _>>()?;
        let callers = (0..count).map(|_| {
            let mut client = nodes.client()?;
            let found = client.function(PROCESS, name);
            Ok(Caller {
                function: found.map_err(invoke_error(name))?,
                client,
                inputs: inputs.clone(),
            })
        });
        let interval = Duration::from_secs(1) * options.callers / options.rate.max(1);
        Ok(Self {
            callers: callers.collect::<Result<_, BenchError>>()?,
            interval,
        })
    }

    /// Calls for as long as something takes; what that gave, and the calls.
    pub(super) fn call_while<T>(
        &mut self,
        body: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<(T, Vec<Sample>), BenchError> {
        let over = AtomicBool::new(false);
        let (interval, begun) = (self.interval, Instant::now());
        let count = self.callers.len().max(1) as u32;
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .callers
                .iter_mut()
                .zip(0..)
                .map(|(caller, number)| {
                    let (over, first) = (&over, begun + interval * number / count);
                    scope.spawn(move || caller.call(first, interval, over))
                })
                .collect();
            let done = body();
            over.store(true, Ordering::Relaxed);
            let mut samples = Vec::new();
            let mut failed = None;
            for thread in threads {
                match thread.join() {
                    Ok(Ok(some)) => samples.extend(some),
                    Ok(Err(error)) => failed = Some(error),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            match failed {
                Some(error) => Err(error),
                None => Ok((done?, samples)),
            }
        })
    }
}

fn input(write_bytes: usize, number: u64) -> Result<Vec<u8>, BenchError> {
    if write_bytes == 0 {
        return Ok(super::nodes::key(0).into());
    }
    let put = StatePutInput {
        key: format!("written/{number}"),
        value: vec![0xa5; write_bytes],
    };
    codec::encode(&put).map_err(BenchError::cluster("write down what callers say"))
}

impl Caller {
    /// Calls at every interval, or as soon as it can.
    fn call(
        &mut self,
        first: Instant,
        interval: Duration,
        over: &AtomicBool,
    ) -> Result<Vec<Sample>, BenchError> {
        let mut samples = Vec::new();
        let (mut due, mut before) = (first, None);
        while !over.load(Ordering::Relaxed) {
            loop {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                std::thread::park_timeout(left);
            }
            let options = CallOptions {
                deadline: Some(Instant::now() + PATIENCE),
                idempotent: false,
            };
            let input = &self.inputs[samples.len() % self.inputs.len()];
            let called = self.client.call(self.function, input, options);
            called.map_err(invoke_error("what callers call"))?;
            let end = Instant::now();
            let gap = before.map_or(Duration::ZERO, |before| end - before);
            before = Some(end);
            samples.push(Sample { due, end, gap });
            due += interval;
        }
        Ok(samples)
    }
}
