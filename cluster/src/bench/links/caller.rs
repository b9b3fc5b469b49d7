//! The caller's side of invocations.

use praas_runtime::client::{CallOptions, Client, FunctionRef};
use praas_runtime::codec;
use praas_runtime::invocation::Payload;

use crate::bench::BenchError;
use crate::bench::peer::{EXCHANGE, NOOP, PROCESS, SERVE};

use super::Turn;

/// A client of the peer.
pub(in crate::bench) struct Caller {
    client: Client,
    serve: FunctionRef,
    noop: FunctionRef,
    exchange: FunctionRef,
    payload: Payload,
}

/// Up to this many bytes of input an invocation returns nothing.
const NOOP_BYTES_MAX: usize = 8;

impl Caller {
    pub(in crate::bench) fn new(mut client: Client) -> Result<Self, BenchError> {
        let mut function = |name: &'static str| {
            let error = |source| BenchError::Invoke {
                function: name,
                source,
            };
            client.function(PROCESS, name).map_err(error)
        };
        Ok(Self {
            serve: function(SERVE)?,
            noop: function(NOOP)?,
            exchange: function(EXCHANGE)?,
            payload: Payload::default(),
            client,
        })
    }

    /// What the calls to come carry.
    pub(in crate::bench) fn payload_set(&mut self, bytes: usize) -> Result<(), BenchError> {
        let copied = Payload::copy_from(&vec![1; bytes], self.client.pool());
        self.payload = copied.map_err(|error| BenchError::Peer(error.to_string()))?;
        Ok(())
    }

    /// One invocation.
    #[inline]
    pub(in crate::bench) fn call(&mut self) -> Result<(), BenchError> {
        let (function, name) = match self.payload.len() <= NOOP_BYTES_MAX {
            true => (self.noop, NOOP),
            false => (self.exchange, EXCHANGE),
        };
        let (payload, options) = (self.payload.clone(), CallOptions::default());
        let call = self.client.submit_payload(function, payload, options);
        match call.and_then(|call| self.client.wait(call)) {
            Ok(_) => Ok(()),
            Err(source) => Err(BenchError::Invoke {
                function: name,
                source,
            }),
        }
    }

    /// So many invocations in one batch.
    pub(in crate::bench) fn batch(&mut self, window: usize) -> Result<(), BenchError> {
        let (function, name) = match self.payload.len() <= NOOP_BYTES_MAX {
            true => (self.noop, NOOP),
            false => (self.exchange, EXCHANGE),
        };
        let inputs = vec![&*self.payload; window];
        let outcomes = self
            .client
            .call_batch(function, &inputs, CallOptions::default());
        let failed = outcomes.into_iter().find_map(Result::err);
        failed.map_or(Ok(()), |source| {
            Err(BenchError::Invoke {
                function: name,
                source,
            })
        })
    }

    /// Does something while the peer does its part of a turn.
    pub(in crate::bench) fn served<R>(
        &mut self,
        turn: &Turn,
        body: impl FnOnce() -> Result<R, BenchError>,
    ) -> Result<R, BenchError> {
        let error = |source| BenchError::Invoke {
            function: SERVE,
            source,
        };
        let input = codec::encode(turn);
        let input = input.map_err(|error| BenchError::Peer(error.to_string()))?;
        let options = CallOptions::default();
        let call = self.client.submit(self.serve, &input, options);
        let call = call.map_err(error)?;
        let done = body()?;
        self.client.wait(call).map_err(error)?;
        Ok(done)
    }
}
