//! Functions that a function invokes.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CallError, Context, timeout_us};
use crate::abi::{Bytes, View};
use crate::codec;

impl Context<'_> {
    /// Invokes a function of a process of this application (an empty name: this one, on this
    /// thread) and waits for its output, at most until this invocation's deadline.
    ///
    /// # Errors
    /// What the function returns; unknown or dead processes; the deadline; too deep a nesting.
    pub fn invoke(&self, process: &str, function: &str, input: &[u8]) -> Result<View, CallError> {
        self.guest.invoke(process, function, input, -1)
    }

    /// As [`invoke`](Self::invoke), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn invoke_within(
        &self,
        process: &str,
        function: &str,
        input: &[u8],
        timeout: Duration,
    ) -> Result<View, CallError> {
        self.guest
            .invoke(process, function, input, timeout_us(Some(timeout)))
    }

    /// Invokes a function of a process of this application (an empty name: this one) without
    /// waiting for it and without its output. What it is asked for is never lost silently while
    /// both processes live: failures are counted and logged. It waits only while there is no room
    /// for more.
    ///
    /// # Errors
    /// Names that cannot be; a full queue of this process; the deadline before there was room.
    pub fn invoke_one_way(
        &self,
        process: &str,
        function: &str,
        input: &[u8],
    ) -> Result<(), CallError> {
        self.guest.invoke_one_way(process, function, input, -1)
    }

    /// As [`invoke_one_way`](Self::invoke_one_way), of a function that is not to begin later than
    /// that.
    ///
    /// # Errors
    /// The same.
    pub fn invoke_one_way_within(
        &self,
        process: &str,
        function: &str,
        input: &[u8],
        timeout: Duration,
    ) -> Result<(), CallError> {
        let timeout = timeout_us(Some(timeout));
        self.guest.invoke_one_way(process, function, input, timeout)
    }

    /// Invokes a function with each of the inputs, many at a time, and waits for all of them:
    /// outcomes in the order of the inputs.
    ///
    /// # Errors
    /// Names that cannot be; this invocation's deadline; cancellation; no worker left to stand in.
    pub fn invoke_batch<I: AsRef<[u8]>>(
        &self,
        process: &str,
        function: &str,
        inputs: &[I],
    ) -> Result<Vec<Result<View, CallError>>, CallError> {
        self.batch(process, function, inputs, -1)
    }

    /// As [`invoke_batch`](Self::invoke_batch), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn invoke_batch_within<I: AsRef<[u8]>>(
        &self,
        process: &str,
        function: &str,
        inputs: &[I],
        timeout: Duration,
    ) -> Result<Vec<Result<View, CallError>>, CallError> {
        self.batch(process, function, inputs, timeout_us(Some(timeout)))
    }

    fn batch<I: AsRef<[u8]>>(
        &self,
        process: &str,
        function: &str,
        inputs: &[I],
        timeout_us: i64,
    ) -> Result<Vec<Result<View, CallError>>, CallError> {
        let inputs: Vec<Bytes> = inputs
            .iter()
            .map(|input| Bytes::new(input.as_ref()))
            .collect();
        self.guest
            .invoke_batch(process, function, &inputs, timeout_us)
    }

    /// As [`invoke`](Self::invoke), with values.
    ///
    /// # Errors
    /// The same; values that cannot be encoded or decoded.
    pub fn invoke_value<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        process: &str,
        function: &str,
        input: &I,
    ) -> Result<O, CallError> {
        let output = self.invoke(process, function, &codec::encode(input)?)?;
        Ok(codec::decode(&output)?)
    }
}
