//! The settings of the control plane: every limit has a name with its unit and a default.

use std::net::{Ipv4Addr, SocketAddr};

use praas_transport::TransportConfig;
use serde::{Deserialize, Serialize};

/// Settings of the control plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// Where HTTP is served; port zero lets the kernel choose.
    pub http_listen: SocketAddr,
    /// Where agents of other nodes dial; port zero lets the kernel choose. Agents of this node use
    /// shared memory.
    pub agent_listen: SocketAddr,
    /// Whether either may be an address beyond loopback. HTTP is not encrypted.
    pub beyond_loopback: bool,
    /// Threads that serve HTTP.
    pub http_threads: usize,
    /// HTTP connections that may be open; more wait to be accepted.
    pub connections_max: usize,
    /// Bytes that the head of a request may have (8 KiB to 1 MiB).
    pub head_max_bytes: usize,
    /// Milliseconds that a connection may take until it has sent the head of its next request.
    pub head_timeout_ms: u64,
    /// Milliseconds that the body of a request may take.
    pub body_timeout_ms: u64,
    /// Milliseconds for which a peer may take nothing of an answer.
    pub answer_stall_ms: u64,
    /// Bytes that a request's body may have, but for the input of an invocation.
    pub body_max_bytes: usize,
    /// Bytes that the input of an invocation over HTTP may have.
    pub invoke_body_max_bytes: usize,
    /// Milliseconds that a request waits for a process when it does not say.
    pub wait_default_ms: u64,
    /// Milliseconds that a request may ask to wait.
    pub wait_max_ms: u64,
    /// Milliseconds that requests may take to end at shutdown.
    pub shutdown_grace_ms: u64,
    /// Milliseconds that a ticket is good for at most.
    pub ticket_valid_max_ms: u64,
    /// Milliseconds that an agent's question for a process may wait for it.
    pub resolve_timeout_ms: u64,
    /// Milliseconds between two world views of one application.
    pub world_interval_ms: u64,
    /// Milliseconds of a node's silence after which its processes count as dead and may start
    /// elsewhere; counted anew from the control plane's start. Agents and hosts that are cut off
    /// must have ended their processes before. Zero: only an operator declares nodes dead.
    pub lease_ms: u64,
    /// Percent of a node's memory (the agent's setting `memory_bytes`) that its hosts may have
    /// before the least active of its processes are swapped out; zero: never.
    pub memory_high_percent: u32,
    /// Percent of a node's memory below which no more are.
    pub memory_low_percent: u32,
    /// Processes of a node that are being swapped out for its memory at the same time.
    pub pressure_swaps_max: usize,
    /// Processes whose numbers are in the metrics, by application and name.
    pub metrics_processes_max: usize,
    /// Milliseconds that a transfer may take until the other host has everything; then it is called
    /// off, and the process serves on where it is.
    pub transfer_timeout_ms: u64,
    /// Processes that are transferred away from one drained node at a time.
    pub drain_transfers_max: usize,
    /// Milliseconds at most until a process that could not be transferred away is tried again: the
    /// first time after one second, then after twice as long each time.
    pub drain_retry_max_ms: u64,
    /// Applications that there may be.
    pub applications_max: usize,
    /// Processes, in any state, that there may be.
    pub processes_max: usize,
    /// Requests that may wait for one process.
    pub waiters_max: usize,
    /// Tokens that there may be.
    pub tokens_max: usize,
    /// Modules that an application may have.
    pub modules_max: usize,
    /// Bytes that an application's settings may have, as JSON.
    pub settings_max_bytes: usize,
    /// Requests and agents' words that may wait to be handled.
    pub events_queued_max: usize,
    /// Bytes that may wait to be sent to one agent; an agent that lets more gather is cut off, and
    /// starts over with a new inventory.
    pub agent_queue_max_bytes: usize,
    /// Settings of the endpoint that agents dial.
    pub transport: TransportConfig,
}

impl Default for ControlConfig {
    fn default() -> Self {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            http_listen: loopback,
            agent_listen: loopback,
            beyond_loopback: false,
            http_threads: 2,
            connections_max: 4_096,
            head_max_bytes: 64 << 10,
            head_timeout_ms: 30_000,
            body_timeout_ms: 60_000,
            answer_stall_ms: 30_000,
            body_max_bytes: 1 << 20,
            invoke_body_max_bytes: 64 << 20,
            wait_default_ms: 30_000,
            wait_max_ms: 600_000,
            shutdown_grace_ms: 5_000,
            ticket_valid_max_ms: 24 * 3_600_000,
            resolve_timeout_ms: 30_000,
            world_interval_ms: 20,
            lease_ms: 60_000,
            memory_high_percent: 90,
            memory_low_percent: 80,
            pressure_swaps_max: 4,
            metrics_processes_max: 1_000,
            transfer_timeout_ms: 600_000,
            drain_transfers_max: 2,
            drain_retry_max_ms: 60_000,
            applications_max: 10_000,
            processes_max: 100_000,
            waiters_max: 10_000,
            tokens_max: 10_000,
            modules_max: 64,
            settings_max_bytes: 64 << 10,
            events_queued_max: 65_536,
            agent_queue_max_bytes: 64 << 20,
            transport: TransportConfig::default(),
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting {name} is {value}: {rule}")]
pub struct ConfigError {
    name: &'static str,
    value: String,
    rule: &'static str,
}

impl ControlConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the first setting that cannot be, and the rule that it breaks.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (name, at) in [
            ("http_listen", self.http_listen),
            ("agent_listen", self.agent_listen),
        ] {
            if !at.ip().is_loopback() && !self.beyond_loopback {
                return Err(ConfigError {
                    name,
                    value: at.to_string(),
                    rule: "an address beyond loopback needs beyond_loopback = true",
                });
            }
        }
        for (name, value) in [
            ("http_threads", self.http_threads),
            ("connections_max", self.connections_max),
            ("body_max_bytes", self.body_max_bytes),
            ("waiters_max", self.waiters_max),
            ("events_queued_max", self.events_queued_max),
            ("agent_queue_max_bytes", self.agent_queue_max_bytes),
            ("pressure_swaps_max", self.pressure_swaps_max),
            ("drain_transfers_max", self.drain_transfers_max),
        ] {
            if value == 0 {
                return Err(ConfigError {
                    name,
                    value: value.to_string(),
                    rule: "it must be at least 1",
                });
            }
        }
        if self.drain_retry_max_ms == 0 {
            return Err(ConfigError {
                name: "drain_retry_max_ms",
                value: "0".into(),
                rule: "it must be at least 1",
            });
        }
        for (name, value) in [
            ("memory_high_percent", self.memory_high_percent),
            ("memory_low_percent", self.memory_low_percent),
        ] {
            let high = self.memory_high_percent;
            if value > 100 || (high > 0 && self.memory_low_percent > high) {
                return Err(ConfigError {
                    name,
                    value: value.to_string(),
                    rule: "it must be at most 100, and the lower mark not above the higher",
                });
            }
        }
        let head = self.head_max_bytes;
        if !(8 << 10..=1 << 20).contains(&head) {
            return Err(ConfigError {
                name: "head_max_bytes",
                value: head.to_string(),
                rule: "it must be from 8 KiB to 1 MiB",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_beyond_loopback_must_be_asked_for() {
        let mut config = ControlConfig {
            http_listen: "0.0.0.0:80".parse().unwrap(),
            ..ControlConfig::default()
        };
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("beyond_loopback"), "{error}");
        config.beyond_loopback = true;
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn an_unknown_setting_is_an_error() {
        assert!(serde_json::from_str::<ControlConfig>(r#"{"http_listn": "x"}"#).is_err());
        assert_eq!(
            serde_json::from_str::<ControlConfig>("{}").unwrap(),
            ControlConfig::default()
        );
    }
}
