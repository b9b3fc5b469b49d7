//! Messages to processes, and those that have come.

use std::time::Duration;

use super::{CallError, Context, Fields, Message, Told, optional, timeout_us};
use crate::abi::{MESSAGE_PEEK, View, code};

impl Context<'_> {
    /// Puts a message into the mailbox of a process of this application and waits until it is
    /// there, at most until this invocation's deadline.
    ///
    /// # Errors
    /// Unknown or dead processes; a mailbox that stays full; the deadline.
    pub fn message_put(&self, to: &str, key: &str, payload: &[u8]) -> Result<(), CallError> {
        self.guest.message_put(to, key, payload, -1)
    }

    /// As [`message_put`](Self::message_put), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn message_put_within(
        &self,
        to: &str,
        key: &str,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), CallError> {
        self.guest
            .message_put(to, key, payload, timeout_us(Some(timeout)))
    }

    /// Puts one message into the mailboxes of several processes at once (`None`: of all other
    /// members of the application that are not gone) and waits for all of them, at most until this
    /// invocation's deadline: what became of it at each. Its bytes are shared, not copied for each.
    ///
    /// # Errors
    /// A key that cannot be: nobody was sent anything.
    pub fn message_broadcast(
        &self,
        to: Option<&[&str]>,
        key: &str,
        payload: &[u8],
    ) -> Result<Vec<Told>, CallError> {
        Self::outcomes_read(&self.guest.message_broadcast(to, key, payload, -1)?)
    }

    /// As [`message_broadcast`](Self::message_broadcast), with a deadline of its own.
    ///
    /// # Errors
    /// The same.
    pub fn message_broadcast_within(
        &self,
        to: Option<&[&str]>,
        key: &str,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Vec<Told>, CallError> {
        let timeout = timeout_us(Some(timeout));
        Self::outcomes_read(&self.guest.message_broadcast(to, key, payload, timeout)?)
    }

    fn outcomes_read(view: &View) -> Result<Vec<Told>, CallError> {
        let mut fields = Fields { bytes: view };
        let count = u32::from_le_bytes(fields.take()?);
        let mut outcomes = Vec::new();
        for _ in 0..count {
            let name = fields.text()?;
            let code = i32::from_le_bytes(fields.take()?);
            let text = fields.text()?;
            outcomes.push(Told {
                process: name,
                outcome: match code {
                    code::OK => Ok(()),
                    code => Err(CallError::from_code(code, &text)),
                },
            });
        }
        Ok(outcomes)
    }

    /// Takes a message out of this process's mailbox, from one source or (`None`) from anybody,
    /// waiting for it at most for `timeout` (`None`: this invocation's deadline).
    ///
    /// # Errors
    /// The deadline; cancellation; no worker left to stand in.
    pub fn message_get(
        &self,
        source: Option<&str>,
        key: &str,
        timeout: Option<Duration>,
    ) -> Result<Message, CallError> {
        // Zero would mean "do not wait" to the host.
        let timeout = timeout_us(timeout);
        let timeout = if timeout == 0 { 1 } else { timeout };
        let got = self.guest.message_get(source, key, 0, timeout)?;
        Self::message(got)
    }

    /// Takes a message if one is there.
    ///
    /// # Errors
    /// A bad key.
    pub fn message_try(
        &self,
        source: Option<&str>,
        key: &str,
    ) -> Result<Option<Message>, CallError> {
        optional(self.guest.message_get(source, key, 0, 0))?
            .map(Self::message)
            .transpose()
    }

    /// Looks at the message that [`message_try`](Self::message_try) would take.
    ///
    /// # Errors
    /// A bad key.
    pub fn message_peek(
        &self,
        source: Option<&str>,
        key: &str,
    ) -> Result<Option<Message>, CallError> {
        optional(self.guest.message_get(source, key, MESSAGE_PEEK, 0))?
            .map(Self::message)
            .transpose()
    }

    fn message((source, payload): (View, View)) -> Result<Message, CallError> {
        Ok(Message {
            source: String::from_utf8_lossy(&source).into_owned(),
            payload,
        })
    }
}
