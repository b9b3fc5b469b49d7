//! The agent's end of the control plane's channel: dialling, the hello, and the lease.
//!
//! ```text
//!   away --dial--> opening --open, Hello--> greeting --Applications--> heard
//!     ^              |                         |                         |
//!     +--- backoff --+------- channel ends ----+-------------------------+
//! ```
//!
//! From the end of a channel until it is heard again the agent is cut off. Where the control plane
//! may live on without it, hosts are swapped out after half of the lease, and killed after three
//! quarters: what is left is for noticing late, and for the killing.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use praas_control::agent::{FromAgent, Inbox, Outbox, ToAgent, agent_credential_issue, encode};
use praas_control::{ControlAddr, cluster_secret_load};
use praas_transport::{Address, ChannelId, Dial, HostId, Incarnation, Kinds, Message, Ops};

use super::config::{AgentConfig, Fence};
use crate::run_dir::RunDir;

/// How long a credential is good: it is shown at once, but clocks of nodes differ.
const CREDENTIAL_VALID_MS: u64 = 24 * 3_600_000;

/// Bytes that wait for the control plane above which it is not told what hosts count.
const STATS_QUEUED_MAX_BYTES: usize = 1 << 20;

/// What cannot be done about the control plane now, and is tried again.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("no control plane runs here: cannot read {path}: {source}")]
    Address { path: PathBuf, source: io::Error },
    #[error("cannot read the cluster's secret in {path}: {source}")]
    Secret { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Transport(#[from] praas_transport::TransportError),
}

/// The channel to the control plane, if there is one.
#[derive(Debug)]
pub(super) struct ControlLink {
    fixed: Vec<Address>,
    address_path: PathBuf,
    secret_path: PathBuf,
    /// By which the control plane may be reached.
    transports: Kinds,
    channel: Option<ChannelId>,
    /// The hello is sent.
    open: bool,
    /// The hello is answered.
    heard: bool,
    inbox: Inbox,
    outbox: Outbox,
    backoff_first: Duration,
    backoff_max: Duration,
    backoff: Duration,
    retry: Option<Instant>,
    /// What went wrong last, so that it is said once.
    complaint: String,
    /// Why the channel is of no use any more.
    broken: Option<String>,
    pub(super) lease: Lease,
}

impl ControlLink {
    pub(super) fn new(run_dir: &RunDir, config: &AgentConfig, now: Instant) -> Self {
        let paths = run_dir.control();
        let secret_path = config.cluster_secret.clone();
        let backoff_first = Duration::from_millis(config.redial_first_ms);
        Self {
            lease: Lease::new(config, now),
            fixed: config.control.clone(),
            transports: config.transports.without(config.transports_exclude),
            address_path: paths.control_addr,
            secret_path: secret_path.unwrap_or(paths.cluster_secret),
            channel: None,
            open: false,
            heard: false,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            backoff_first,
            backoff_max: Duration::from_millis(config.redial_max_ms),
            backoff: backoff_first,
            retry: Some(now),
            complaint: String::new(),
            broken: None,
        }
    }

    /// Whether a channel is the control plane's.
    pub(super) fn is(&self, channel: ChannelId) -> bool {
        self.channel == Some(channel)
    }

    pub(super) fn channel(&self) -> Option<ChannelId> {
        self.channel
    }

    /// Whether the control plane has the inventory, and answers questions.
    pub(super) fn heard(&self) -> bool {
        self.heard
    }

    /// Whether there is room for what is not urgent.
    pub(super) fn takes_stats(&self) -> bool {
        self.heard && self.outbox.queued_bytes() < STATS_QUEUED_MAX_BYTES
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_flushed(&self) -> bool {
        !self.open || self.outbox.queued_bytes() == 0
    }

    /// When [`ControlLink::dial_if_due`] is needed next.
    pub(super) fn retry_next(&self) -> Option<Instant> {
        self.retry
    }

    /// Dials if it is time to. The address is looked up each time: a control plane that was
    /// started anew has another.
    pub(super) fn dial_if_due(&mut self, ops: &mut Ops, now: Instant) {
        if self.retry.is_none_or(|retry| retry > now) {
            return;
        }
        self.retry = None;
        match self.dial(ops) {
            Ok(channel) => self.channel = Some(channel),
            Err(error) => self.again(now, &error.to_string()),
        }
    }

    fn dial(&mut self, ops: &mut Ops) -> Result<ChannelId, DialError> {
        let addresses = match self.fixed.is_empty() {
            false => self.fixed.clone(),
            true => {
                let read = ControlAddr::read(&self.address_path);
                let read = read.map_err(|source| DialError::Address {
                    path: self.address_path.clone(),
                    source,
                })?;
                read.agents
            }
        };
        self.lease.remote = !addresses.iter().any(is_local);
        let secret = cluster_secret_load(&self.secret_path);
        let secret = secret.map_err(|source| DialError::Secret {
            path: self.secret_path.clone(),
            source,
        })?;
        let dial = Dial {
            credential: agent_credential_issue(&secret, unix_ms_now() + CREDENTIAL_VALID_MS),
            expect: Incarnation(0),
            deadline: None,
        };
        Ok(ops.connect_any(&addresses, self.transports, dial)?)
    }

    fn again(&mut self, now: Instant, why: &str) {
        match self.complaint == why {
            true => tracing::debug!(why, "still no control plane"),
            false => tracing::warn!(why, "no control plane"),
        }
        self.complaint = why.into();
        self.retry = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(self.backoff_max);
    }

    /// The channel is open: introduces the node.
    pub(super) fn opened(&mut self, ops: &mut Ops, hello: &FromAgent) {
        self.open = true;
        self.inbox = Inbox::default();
        self.outbox = Outbox::default();
        self.say(ops, hello);
    }

    /// Says something, if there is a channel; if not, the next hello tells it all.
    pub(super) fn say(&mut self, ops: &mut Ops, message: &FromAgent) {
        if !self.open {
            return;
        }
        match encode(message) {
            Ok(bytes) => {
                self.outbox.push(bytes);
                self.pump(ops);
            }
            Err(error) => {
                tracing::error!(%error, "cannot tell the control plane");
                self.broken = Some(error.to_string());
            }
        }
    }

    pub(super) fn pump(&mut self, ops: &mut Ops) {
        if let Some(channel) = self.channel {
            // An error is the channel's end, of which `on_close` tells.
            let _ = self.outbox.pump(ops, channel);
        }
    }

    /// Takes a piece of what the control plane says.
    pub(super) fn piece(&mut self, message: Message<'_>) -> Option<ToAgent> {
        match self.inbox.feed(message.tag, message.payload) {
            Ok(whole) => whole,
            Err(error) => {
                tracing::error!(%error, "the control plane sends what is no message");
                self.inbox = Inbox::default();
                self.broken = Some(error.to_string());
                None
            }
        }
    }

    /// The hello is answered; `true` the first time on a channel.
    pub(super) fn greeted(&mut self) -> bool {
        if std::mem::replace(&mut self.heard, true) {
            return false;
        }
        tracing::info!("connected to the control plane");
        self.backoff = self.backoff_first;
        self.complaint.clear();
        self.lease.heard();
        true
    }

    /// The channel that is to be closed from here, and why.
    pub(super) fn broken_take(&mut self) -> Option<(ChannelId, String)> {
        self.channel.zip(self.broken.take())
    }

    /// The channel has ended, or never opened. Nothing of it is left.
    pub(super) fn lost(&mut self, now: Instant, reason: &str) {
        self.channel = None;
        self.broken = None;
        self.open = false;
        self.heard = false;
        self.inbox = Inbox::default();
        self.outbox = Outbox::default();
        self.lease.lost(now);
        self.again(now, reason);
    }
}

/// What is to be done about a control plane that is out of reach for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fenced {
    /// Swap hosts out.
    Swap,
    /// Kill those that are left.
    Kill,
}

/// How long the agent has been cut off, and what follows.
#[derive(Debug)]
pub(super) struct Lease {
    fence: Fence,
    lease: Duration,
    /// The control plane is on another node, as far as is known.
    pub(super) remote: bool,
    cut_since: Option<Instant>,
    next: Option<Fenced>,
}

impl Lease {
    fn new(config: &AgentConfig, now: Instant) -> Self {
        Self {
            fence: config.fence,
            lease: Duration::from_millis(config.lease_ms),
            remote: !config.control.is_empty() && !config.control.iter().any(is_local),
            cut_since: Some(now),
            next: Some(Fenced::Swap),
        }
    }

    /// Since when the agent is cut off.
    pub(super) fn cut_since(&self) -> Option<Instant> {
        self.cut_since
    }

    /// An agent before this one was cut off since then; or it cannot have been longer ago.
    pub(super) fn inherit(&mut self, cut_since: Instant) {
        self.cut_since = Some(cut_since);
    }

    fn heard(&mut self) {
        self.cut_since = None;
        self.next = Some(Fenced::Swap);
    }

    fn lost(&mut self, now: Instant) {
        self.cut_since.get_or_insert(now);
    }

    /// Whether it matters at all.
    pub(super) fn applies(&self) -> bool {
        match self.fence {
            Fence::Auto => self.remote,
            Fence::Always => true,
            Fence::Never => false,
        }
    }

    /// When [`Lease::step`] is needed next.
    pub(super) fn deadline_next(&self) -> Option<Instant> {
        let since = self.cut_since.filter(|_| self.applies())?;
        Some(match self.next? {
            Fenced::Swap => since + self.lease / 2,
            Fenced::Kill => since + self.lease / 4 * 3,
        })
    }

    /// What is to be done now.
    pub(super) fn step(&mut self, now: Instant) -> Option<Fenced> {
        if self.deadline_next().is_none_or(|at| at > now) {
            return None;
        }
        let due = self.next;
        self.next = match due {
            Some(Fenced::Swap) => Some(Fenced::Kill),
            _ => None,
        };
        due
    }
}

fn is_local(address: &Address) -> bool {
    matches!(address, Address::Shm { host, .. } if *host == HostId::local())
}

fn unix_ms_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(control: &str, fence: Fence, now: Instant) -> Lease {
        let config = AgentConfig {
            control: vec![control.parse().unwrap()],
            fence,
            lease_ms: 100_000,
            ..AgentConfig::default()
        };
        Lease::new(&config, now)
    }

    #[test]
    fn hosts_end_before_the_lease_does() {
        let now = Instant::now();
        let after = |s| now + Duration::from_secs(s);
        let mut lease = lease("tcp:10.0.0.1:1", Fence::Auto, now);
        assert_eq!(lease.step(after(49)), None);
        assert_eq!(lease.step(after(50)), Some(Fenced::Swap));
        assert_eq!(lease.step(after(60)), None);
        assert_eq!(lease.deadline_next(), Some(after(75)));
        assert_eq!(lease.step(after(75)), Some(Fenced::Kill));
        assert_eq!(lease.deadline_next(), None);
        lease.heard();
        assert_eq!(lease.step(after(200)), None);
        lease.lost(after(200));
        lease.lost(after(220));
        assert_eq!(lease.deadline_next(), Some(after(250)));
        lease.inherit(after(120));
        assert_eq!(lease.step(after(200)), Some(Fenced::Swap));
    }

    #[test]
    fn a_control_plane_on_this_node_fences_nobody() {
        let now = Instant::now();
        let late = now + Duration::from_secs(1_000);
        let local = format!("shm:{}/x", HostId::local());
        assert_eq!(lease(&local, Fence::Auto, now).step(late), None);
        assert_eq!(lease("tcp:10.0.0.1:1", Fence::Never, now).step(late), None);
        let always = lease(&local, Fence::Always, now).step(late);
        assert_eq!(always, Some(Fenced::Swap));
    }
}
