//! The settings of an endpoint: every limit has a name with its unit and a default.

use serde::{Deserialize, Serialize};

use crate::fault::FaultPlan;

/// Settings of an [`crate::Endpoint`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportConfig {
    /// The largest message in bytes (at most 2^40).
    pub message_max_bytes: u64,
    /// The largest payload in bytes that shared memory sends eagerly.
    pub shm_eager_max_bytes: usize,
    /// The largest payload in bytes that TCP sends eagerly.
    pub tcp_eager_max_bytes: usize,
    /// The largest payload in bytes that Unix sockets send eagerly.
    pub unix_eager_max_bytes: usize,
    /// Bytes of a shared-memory channel's second, larger eager ring (a power of two).
    pub shm_ring_bytes: usize,
    /// Bytes of a shared-memory channel's bulk ring (a power of two).
    pub shm_bulk_bytes: usize,
    /// Large messages that may be in flight on a channel, each way.
    pub transfers_inflight_max: usize,
    /// One-sided operations of ours that may be in flight on a channel.
    pub ops_inflight_max: usize,
    /// Memory regions that an endpoint has open at most.
    pub regions_max: usize,
    /// Channels that an endpoint holds at most.
    pub channels_max: usize,
    /// Handshakes of peers that connect, and refusals that such peers have yet to read: at most so
    /// many at once, apart from `channels_max`. A newcomer above it ends the oldest of them.
    pub handshakes_max: usize,
    /// Milliseconds that a handshake may take.
    pub handshake_timeout_ms: u64,
    /// Milliseconds after which a silent TCP peer counts as dead.
    pub tcp_dead_after_ms: u32,
    /// Empty polls after which a channel is no longer polled but waits for its doorbell.
    pub idle_polls: u32,
    /// Rounds of progress between two looks at the descriptors.
    pub poll_interval_rounds: u32,
    /// Microseconds that an adaptive wait spins before it blocks.
    pub spin_us: u32,
    /// Bytes that this endpoint's buffers may take.
    pub buffers_max_bytes: usize,
    /// Faults to inject, for tests; none by default.
    pub fault: Option<FaultPlan>,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            message_max_bytes: 1 << 30,
            shm_eager_max_bytes: 16 << 10,
            tcp_eager_max_bytes: 64 << 10,
            unix_eager_max_bytes: 64 << 10,
            shm_ring_bytes: 256 << 10,
            shm_bulk_bytes: 1 << 20,
            transfers_inflight_max: 64,
            ops_inflight_max: 1024,
            regions_max: 4096,
            channels_max: 4096,
            handshakes_max: 256,
            handshake_timeout_ms: 5_000,
            tcp_dead_after_ms: 10_000,
            idle_polls: 4_096,
            poll_interval_rounds: 2_048,
            spin_us: 50,
            buffers_max_bytes: 16 << 30,
            fault: None,
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting {name} is {value}: it must be {rule}")]
pub struct ConfigError {
    name: &'static str,
    value: u64,
    rule: &'static str,
}

/// The largest message that the wire can carry, in bytes.
pub const MESSAGE_HARD_MAX_BYTES: u64 = 1 << 40;

impl TransportConfig {
    /// Checks the settings against one another.
    ///
    /// # Errors
    /// Names the first setting that cannot be, and what it must be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let rule = |ok: bool, name, value: u64, rule| match ok {
            true => Ok(()),
            false => Err(ConfigError { name, value, rule }),
        };
        rule(
            self.message_max_bytes <= MESSAGE_HARD_MAX_BYTES,
            "message_max_bytes",
            self.message_max_bytes,
            "at most 2^40",
        )?;
        for (name, value) in [
            ("shm_ring_bytes", self.shm_ring_bytes),
            ("shm_bulk_bytes", self.shm_bulk_bytes),
        ] {
            let good = value.is_power_of_two() && (8 << 10..=64 << 20).contains(&value);
            rule(
                good,
                name,
                value as u64,
                "a power of two from 8 KiB to 64 MiB",
            )?;
        }
        rule(
            self.shm_eager_max_bytes + 256 <= self.shm_ring_bytes / 2,
            "shm_eager_max_bytes",
            self.shm_eager_max_bytes as u64,
            "less than half of shm_ring_bytes",
        )?;
        for (name, value) in [
            ("tcp_eager_max_bytes", self.tcp_eager_max_bytes),
            ("unix_eager_max_bytes", self.unix_eager_max_bytes),
        ] {
            let good = (1..=120 << 10).contains(&value);
            rule(good, name, value as u64, "from 1 byte to 120 KiB")?;
        }
        rule(
            (1..=4096).contains(&self.transfers_inflight_max),
            "transfers_inflight_max",
            self.transfers_inflight_max as u64,
            "from 1 to 4096",
        )?;
        rule(
            (1..=4096).contains(&self.ops_inflight_max),
            "ops_inflight_max",
            self.ops_inflight_max as u64,
            "from 1 to 4096",
        )?;
        rule(
            (1..=1 << 20).contains(&self.regions_max),
            "regions_max",
            self.regions_max as u64,
            "from 1 to 2^20",
        )?;
        rule(
            (1..=1 << 20).contains(&self.channels_max),
            "channels_max",
            self.channels_max as u64,
            "from 1 to 2^20",
        )?;
        rule(
            (1..=1 << 16).contains(&self.handshakes_max),
            "handshakes_max",
            self.handshakes_max as u64,
            "from 1 to 2^16",
        )
    }
}
