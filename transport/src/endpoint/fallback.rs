//! A peer with several addresses: the best is tried first, and the next one if it fails.
//!
//! ```text
//!   connect_any [shm, unix, tcp] --> Boot over shm --+--> channel
//!                                                    | fails: a warning
//!                                     Boot over unix +--> channel           the same ChannelId
//!                                                    | fails: a warning
//!                                     Boot over tcp  +--> channel, or on_close with all reasons
//! ```
//!
//! What is about the two peers (tickets, incarnations, versions) is the same over every transport:
//! whoever is refused for it is refused.

use std::collections::VecDeque;

use super::types::{ChannelId, CloseReason, Dial, Listen, TransportError};
use super::{Ops, State};
use crate::address::Address;
use crate::choice::{Kinds, addresses_rank};
use crate::ticket::RefuseReason;
use crate::unix::UnixPlace;

/// What is left to try.
pub(super) struct Fallback {
    /// What is tried now.
    now: Address,
    rest: VecDeque<Address>,
    dial: Dial,
    /// What was tried in vain, and why it was.
    failed: Vec<String>,
}

impl Ops {
    /// Connects to the best of a peer's addresses that works; see [`Ops::connect`]. The channel is
    /// the same whichever that is.
    ///
    /// # Errors
    /// No address may be used from here, all fail at once, too many channels.
    pub fn connect_any(
        &mut self,
        to: &[Address],
        allowed: Kinds,
        dial: Dial,
    ) -> Result<ChannelId, TransportError> {
        let ranked = addresses_rank(to, allowed);
        let mut rest: VecDeque<Address> = ranked.usable.iter().copied().cloned().collect();
        let mut failed = Vec::new();
        while let Some(now) = rest.pop_front() {
            let timeout_ms = self.attempt_timeout_ms(rest.is_empty());
            match self.boot_dial(&now, &dial, timeout_ms) {
                Ok(boot) => {
                    let fallback = Fallback {
                        now,
                        rest,
                        dial,
                        failed,
                    };
                    return self.boot_start(boot, Some(fallback));
                }
                Err(error) if rest.is_empty() => return Err(error),
                Err(error) => failed.push(failure_note(&now, &error, &rest)),
            }
        }
        Err(ranked.error().into())
    }

    /// Listens at several places. Shared memory and abstract Unix sockets, which a system may deny,
    /// may fail where there is another place.
    ///
    /// # Errors
    /// One that was asked for by name fails, or all do.
    pub fn listen_any(&mut self, at: &[Listen]) -> Result<(), TransportError> {
        let mut denied = None;
        let before = self.addresses().len();
        for listen in at {
            let optional = matches!(
                listen,
                Listen::Shm { name: None } | Listen::Unix(UnixPlace::Abstract(None))
            );
            match self.listen(listen) {
                Ok(_) => {}
                Err(error) if optional => {
                    tracing::warn!(%error, "peers must come another way");
                    denied = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match denied {
            Some(error) if self.addresses().len() == before => Err(error),
            _ => Ok(()),
        }
    }

    fn attempt_timeout_ms(&self, last: bool) -> u64 {
        match last {
            true => self.config.handshake_timeout_ms,
            false => self
                .config
                .attempt_timeout_ms
                .min(self.config.handshake_timeout_ms),
        }
    }

    /// An attempt failed: goes on with the next address; the reason to close if there is none.
    pub(super) fn fall_back(
        &mut self,
        slot: u32,
        mut fallback: Fallback,
        reason: CloseReason,
    ) -> Option<CloseReason> {
        let mut reason = reason;
        loop {
            if !is_of_the_way(&reason) {
                return Some(reason);
            }
            let Some(next) = fallback.rest.pop_front() else {
                return Some(fallback.into_reason(reason));
            };
            let note = failure_note(&fallback.now, &reason, std::iter::once(&next));
            fallback.failed.push(note);
            fallback.now = next;
            let timeout_ms = self.attempt_timeout_ms(fallback.rest.is_empty());
            match self.boot_dial(&fallback.now, &fallback.dial, timeout_ms) {
                Ok(boot) => {
                    self.fallbacks.insert(slot, fallback);
                    self.slots[slot as usize].state = State::Free;
                    if let Err(error) = self.boot_place(slot, boot) {
                        return Some(CloseReason::Io(std::sync::Arc::new(error)));
                    }
                    return None;
                }
                Err(error) => reason = CloseReason::Unreachable(error.to_string()),
            }
        }
    }
}

impl Fallback {
    /// The last attempt's reason, or those of all if there were several.
    fn into_reason(self, last: CloseReason) -> CloseReason {
        match self.failed.is_empty() {
            true => last,
            false => {
                let mut all = self.failed;
                all.push(format!("{}: {last}", self.now));
                CloseReason::Unreachable(all.join("; "))
            }
        }
    }
}

/// Whether a failure is of the way between the peers, so that another way may be better.
fn is_of_the_way(reason: &CloseReason) -> bool {
    match reason {
        CloseReason::Refused { reason, .. } => {
            matches!(reason, RefuseReason::WrongUser | RefuseReason::NoSegment)
        }
        CloseReason::Superseded => false,
        _ => true,
    }
}

/// Says that an address fails, and what comes next.
fn failure_note<'a>(
    address: &Address,
    why: &dyn std::fmt::Display,
    next: impl IntoIterator<Item = &'a Address>,
) -> String {
    if let Some(next) = next.into_iter().next() {
        tracing::warn!(%address, %why, %next, "cannot connect; going on to the next address");
    }
    format!("{address}: {why}")
}
