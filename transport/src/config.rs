//! The settings of an endpoint: every limit has a name with its unit and a default.

use serde::{Deserialize, Serialize};

use crate::buf::file::FileRules;
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
    /// Whether buffers are in memory that peers of the same application on this host can map, so
    /// that large messages are copied once.
    pub shm_expose: bool,
    /// Bytes of the largest buffer in such memory. It has small pages, which cost more at first
    /// touch than what is saved when a buffer is used once.
    pub shm_expose_max_bytes: usize,
    /// Files, each a descriptor, that this OS process has for such memory at most.
    pub shm_files_max: usize,
    /// Mappings of peers' memory that an endpoint has at most.
    pub shm_maps_max: usize,
    /// Bytes of peers' memory that an endpoint has mapped at most.
    pub shm_maps_max_bytes: u64,
    /// Whether private memory of peers of the same application on this host is read by the kernel
    /// (`process_vm_readv`), where the system allows it.
    pub shm_attach: bool,
    /// The smallest buffer in bytes that is read so.
    pub shm_attach_min_bytes: usize,
    /// The largest message in bytes that is read so if its sender is awake: then the two sides
    /// copy through the bulk ring at the same time, which is faster.
    pub shm_attach_max_bytes: usize,
    /// Large messages that may be in flight on a channel, each way.
    pub transfers_inflight_max: usize,
    /// One-sided operations of ours that may be in flight on a channel, or complete and not told of.
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
    /// Milliseconds that a handshake may take while the peer has other addresses to be tried.
    pub attempt_timeout_ms: u64,
    /// Milliseconds after which a silent TCP peer counts as dead.
    pub tcp_dead_after_ms: u32,
    /// The one RDMA device to use, by its name; left out, any.
    pub verbs_device: Option<String>,
    /// The one port of RDMA devices to use, counted from 1; left out, any.
    pub verbs_port: Option<u8>,
    /// The entry of an RDMA port's GID table to use; left out, the one that fits the address of
    /// the socket over which the connection is set up.
    pub verbs_gid_index: Option<u8>,
    /// The traffic class of RDMA packets, on Ethernet: of its eight bits the upper six are the DSCP,
    /// by which switches tell a lossless class.
    pub verbs_traffic_class: u8,
    /// The service level of RDMA packets, 0 to 15: on InfiniBand what the subnet's routing wants.
    pub verbs_service_level: u8,
    /// The largest payload in bytes that RDMA sends eagerly. A receive buffer is as long as this
    /// and its headers, whatever arrives in it.
    pub verbs_eager_max_bytes: usize,
    /// Receive buffers that all RDMA channels of an endpoint share besides those that each has.
    pub verbs_receive_buffers: u32,
    /// Receive buffers that an endpoint's RDMA channels have together at most, for each device,
    /// port and application: above it a channel is refused.
    pub verbs_receives_max: u32,
    /// Messages that an RDMA peer may always send ahead of its receiver, and so the receive buffers
    /// that an idle channel holds.
    pub verbs_credits_min: u32,
    /// Messages that an RDMA peer may send ahead at most, while there are buffers to share.
    pub verbs_credits_max: u32,
    /// Work requests of an RDMA channel that may be under way.
    pub verbs_sends_max: u32,
    /// Buffers that all RDMA channels of an endpoint send from, for each device, port and
    /// application; four more are each channel's own.
    pub verbs_send_buffers: u32,
    /// Bytes of payload memory that are registered for RDMA at most, for each device, port and
    /// application of an endpoint; what does not fit is copied.
    pub verbs_registered_max_bytes: u64,
    /// Buffers that are registered for RDMA at most, likewise.
    pub verbs_registered_max: u32,
    /// Milliseconds after which an RDMA peer that does not answer counts as dead. Devices may wait
    /// four times as long as they are told for an acknowledgement: where only packets are lost, and
    /// the socket of the handshake is well, it may be twice this.
    pub verbs_dead_after_ms: u32,
    /// Milliseconds that a pair of RDMA ports has to show that packets pass, before another pair is
    /// tried; less for all but the first if the handshake's time is too short for them.
    pub verbs_probe_ms: u64,
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
            shm_expose: true,
            shm_expose_max_bytes: 16 << 20,
            shm_files_max: 256,
            shm_maps_max: 1024,
            shm_maps_max_bytes: 64 << 30,
            shm_attach: true,
            shm_attach_min_bytes: 64 << 10,
            shm_attach_max_bytes: 512 << 10,
            transfers_inflight_max: 64,
            ops_inflight_max: 1024,
            regions_max: 4096,
            channels_max: 4096,
            handshakes_max: 256,
            handshake_timeout_ms: 5_000,
            attempt_timeout_ms: 2_000,
            tcp_dead_after_ms: 10_000,
            verbs_device: None,
            verbs_port: None,
            verbs_gid_index: None,
            verbs_traffic_class: 0,
            verbs_service_level: 0,
            verbs_eager_max_bytes: 8 << 10,
            verbs_receive_buffers: 256,
            verbs_receives_max: 16_384,
            verbs_credits_min: 4,
            verbs_credits_max: 64,
            verbs_sends_max: 64,
            verbs_send_buffers: 256,
            verbs_registered_max_bytes: 8 << 30,
            verbs_registered_max: 4_096,
            verbs_dead_after_ms: 10_000,
            verbs_probe_ms: 2_000,
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
    /// Which buffers are in memory that peers can map.
    pub(crate) fn file_rules(&self) -> Option<FileRules> {
        self.shm_expose.then_some(FileRules {
            block_max_bytes: self.shm_expose_max_bytes,
            files_max: self.shm_files_max,
        })
    }

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
        self.verbs_check(rule)?;
        rule(
            self.shm_maps_max <= 32 << 10,
            "shm_maps_max",
            self.shm_maps_max as u64,
            "at most 2^15, half of what the system allows",
        )?;
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

    fn verbs_check(
        &self,
        rule: impl Fn(bool, &'static str, u64, &'static str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        rule(
            self.verbs_service_level < 16,
            "verbs_service_level",
            self.verbs_service_level.into(),
            "from 0 to 15",
        )?;
        rule(
            (64..=120 << 10).contains(&self.verbs_eager_max_bytes),
            "verbs_eager_max_bytes",
            self.verbs_eager_max_bytes as u64,
            "from 64 bytes to 120 KiB",
        )?;
        rule(
            (64..=1 << 20).contains(&self.verbs_receive_buffers),
            "verbs_receive_buffers",
            self.verbs_receive_buffers.into(),
            "from 64 to 2^20",
        )?;
        rule(
            (self.verbs_receive_buffers..=1 << 24).contains(&self.verbs_receives_max),
            "verbs_receives_max",
            self.verbs_receives_max.into(),
            "from verbs_receive_buffers to 2^24",
        )?;
        rule(
            (4..=1024).contains(&self.verbs_credits_min),
            "verbs_credits_min",
            self.verbs_credits_min.into(),
            "from 4 to 1024",
        )?;
        rule(
            (self.verbs_credits_min..=1 << 14).contains(&self.verbs_credits_max),
            "verbs_credits_max",
            self.verbs_credits_max.into(),
            "from verbs_credits_min to 2^14",
        )?;
        for (name, value) in [
            ("verbs_sends_max", self.verbs_sends_max),
            ("verbs_send_buffers", self.verbs_send_buffers),
        ] {
            let good = (32..=1 << 14).contains(&value);
            rule(good, name, value.into(), "from 32 to 2^14")?;
        }
        rule(
            (1..=1 << 20).contains(&self.verbs_registered_max),
            "verbs_registered_max",
            self.verbs_registered_max.into(),
            "from 1 to 2^20",
        )?;
        rule(
            (100..=3_600_000).contains(&self.verbs_dead_after_ms),
            "verbs_dead_after_ms",
            self.verbs_dead_after_ms.into(),
            "from 100 to 3600000",
        )?;
        rule(
            (1..=60_000).contains(&self.verbs_probe_ms),
            "verbs_probe_ms",
            self.verbs_probe_ms,
            "from 1 to 60000",
        )
    }
}
