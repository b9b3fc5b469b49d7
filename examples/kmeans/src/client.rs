//! The client's side: hands the partitions out and invokes until the clustering is done.

use std::time::{Duration, Instant};

use praas_runtime::client::{CallId, CallOptions, Client};
use praas_runtime::codec::{self, CodecError};
use praas_runtime::invocation::{InvokeError, Payload};

use crate::points::Points;
use crate::{Begin, Progress};

/// A clustering that is under way.
#[derive(Debug)]
pub struct Job {
    coordinator: String,
    workers: Vec<String>,
    timeout: Duration,
}

impl Job {
    /// Hands the points out to the workers, in parts as equal as can be, and has the coordinator
    /// begin with the first `count` points as centres. Each call may take as long as `timeout`.
    ///
    /// # Errors
    /// A process is not to be had, or refuses.
    pub fn deploy(
        client: &mut Client,
        coordinator: &str,
        workers: &[String],
        points: &Points,
        count: usize,
        timeout: Duration,
    ) -> Result<Self, InvokeError> {
        let job = Self {
            coordinator: coordinator.into(),
            workers: workers.to_vec(),
            timeout,
        };
        let mut calls = Vec::new();
        for (part, worker) in workers.iter().enumerate() {
            let rows = points.rows_bytes(points.partition(part, workers.len()));
            calls.push(job.submit(client, worker, "partition_store", &rows)?);
        }
        for call in calls {
            client.wait(call)?;
        }
        let begin = codec::encode(&Begin {
            workers: workers.to_vec(),
            centres: points.centres_first(count),
        });
        let begin = begin.map_err(malformed)?;
        job.call(client, coordinator, "begin", &begin)?;
        Ok(job)
    }

    /// Assigns all points once: all workers at the same time, while the coordinator waits for what
    /// they send it. It is done once nothing has changed.
    ///
    /// # Errors
    /// A process has died, or refuses; the clustering cannot go on then.
    pub fn iterate(&self, client: &mut Client) -> Result<Progress, InvokeError> {
        let coordinator = codec::encode(&self.coordinator).map_err(malformed)?;
        let mut calls = Vec::new();
        for worker in &self.workers {
            calls.push(self.submit(client, worker, "assign", &coordinator)?);
        }
        let reduce = self.submit(client, &self.coordinator, "reduce", b"")?;
        for call in calls {
            if let Err(error) = client.wait(call) {
                client.cancel(reduce);
                return Err(error);
            }
        }
        codec::decode(&client.wait(reduce)?).map_err(malformed)
    }

    fn submit(
        &self,
        client: &mut Client,
        process: &str,
        function: &str,
        input: &[u8],
    ) -> Result<CallId, InvokeError> {
        let function = client.function(process, function)?;
        let options = CallOptions {
            deadline: Some(Instant::now() + self.timeout),
            ..CallOptions::default()
        };
        client.submit(function, input, options)
    }

    fn call(
        &self,
        client: &mut Client,
        process: &str,
        function: &str,
        input: &[u8],
    ) -> Result<Payload, InvokeError> {
        let call = self.submit(client, process, function, input)?;
        client.wait(call)
    }
}

fn malformed(error: CodecError) -> InvokeError {
    InvokeError::Malformed(error.to_string())
}
