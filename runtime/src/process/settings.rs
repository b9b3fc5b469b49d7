//! The settings of a process: every limit has a name with its unit and a default.

use std::collections::BTreeMap;

use praas_transport::{TransportConfig, WaitMode};
use serde::{Deserialize, Serialize};

use crate::function::FunctionLimits;

/// The longest time that a limit may be.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Who may read a process's state objects by one-sided operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateRead {
    /// Nobody.
    None,
    /// Processes of its application.
    Processes,
    /// Those, and the application's clients.
    Clients,
}

/// Settings of a process. An application sets them for all of its processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessSettings {
    /// Functions that run at once; zero is one for each CPU the process may use.
    pub workers: usize,
    /// Functions that may wait in an invoke, a get or a put at once, each with a spare worker in
    /// its place; one more gets `Exhausted`.
    pub workers_blocked_max: usize,
    /// Invocations that wait for a worker, and of each function with a limit those that wait for
    /// their turn; one more gets `Exhausted`.
    pub queue_max: usize,
    /// How deep local invocations nest; one deeper gets `Exhausted`.
    pub local_depth_max: u32,
    /// Microseconds that a function runs before another worker takes over the transport.
    pub takeover_us: u64,
    /// How the process waits for requests.
    pub wait: WaitMode,
    /// Bytes of state objects, with their keys, 512 bytes more for each, and what functions have been
    /// given to write objects in (`state_alloc`).
    pub state_max_bytes: u64,
    /// Who may read state objects by one-sided operations.
    pub state_read: StateRead,
    /// State objects that can be read so at a time; the one that was asked for the longest ago
    /// makes way. Those beyond are sent as messages.
    pub state_shown_max: usize,
    /// Files of the process's directory that go into an image.
    pub files_max: usize,
    /// Bytes of those files together.
    pub files_max_bytes: u64,
    /// Messages in the mailbox.
    pub mailbox_messages_max: usize,
    /// Bytes of messages in the mailbox, keys included.
    pub mailbox_max_bytes: u64,
    /// Clients and processes whose invocations are remembered; the longest gone is forgotten.
    pub sessions_max: usize,
    /// Invocations of one client between the oldest unacknowledged and the newest.
    pub session_inflight_max: usize,
    /// Bytes of results that are kept until their callers acknowledge them.
    pub results_max_bytes: usize,
    /// Milliseconds that running functions have to finish before a swap or a stop cancels them,
    /// and again as long after that before the swap is given up.
    pub quiesce_timeout_ms: u64,
    /// Whether a process that is swapped in serves before all of its state is back.
    pub swap_lazy: bool,
    /// Bytes of state objects from which on it does so; less is read at once.
    pub swap_lazy_min_bytes: u64,
    /// Threads that fetch the rest, at least one.
    pub swap_lazy_threads: usize,
    /// Bytes of a state object that may be written through.
    pub persist_max_bytes: u64,
    /// Bytes of objects that are written through together, unless one alone has more.
    pub persist_group_max_bytes: u64,
    /// What was written through since the last image, in files: with more of them a checkpoint is
    /// taken.
    pub persist_files_max: usize,
    /// Settings of the endpoint.
    pub transport: TransportConfig,
    /// Invocations past their function's time whose workers others stand in for; one more keeps its
    /// place among `workers`.
    pub workers_overdue_max: usize,
    /// Limits of functions by name, in place of those that their modules declare.
    pub functions: BTreeMap<String, FunctionLimits>,
    /// Milliseconds after the end of its last channel until what a caller has asked for is
    /// cancelled; zero: never.
    pub caller_gone_cancel_ms: u64,
    /// Times that a transfer looks at all state while the process serves, before it freezes
    /// whatever is left to be sent.
    pub transfer_rounds_max: u32,
    /// Bytes of state that may be left for the time that the process is frozen.
    pub transfer_freeze_max_bytes: u64,
    /// Bytes of a transfer that are on their way at once.
    pub transfer_window_bytes: u64,
    /// Milliseconds that what is left may take once no function runs; then the transfer is given
    /// up, and the process serves on.
    pub transfer_freeze_timeout_ms: u64,
    /// Milliseconds that a process which functions call is tried again while it cannot be reached.
    pub peers_reconnect_ms: u64,
}

impl Default for ProcessSettings {
    fn default() -> Self {
        Self {
            workers: 0,
            workers_blocked_max: 64,
            queue_max: 4096,
            local_depth_max: 64,
            takeover_us: 50,
            wait: WaitMode::Adaptive,
            state_max_bytes: 8 << 30,
            state_read: StateRead::Processes,
            state_shown_max: 1024,
            files_max: 4096,
            files_max_bytes: 1 << 30,
            mailbox_messages_max: 65_536,
            mailbox_max_bytes: 1 << 30,
            sessions_max: 4096,
            session_inflight_max: 4096,
            results_max_bytes: 256 << 20,
            quiesce_timeout_ms: 10_000,
            swap_lazy: true,
            swap_lazy_min_bytes: 4 << 20,
            swap_lazy_threads: 2,
            persist_max_bytes: 256 << 20,
            persist_group_max_bytes: 32 << 20,
            persist_files_max: 1024,
            transport: TransportConfig::default(),
            workers_overdue_max: 16,
            functions: BTreeMap::new(),
            caller_gone_cancel_ms: 0,
            transfer_rounds_max: 8,
            transfer_freeze_max_bytes: 16 << 20,
            transfer_window_bytes: 64 << 20,
            transfer_freeze_timeout_ms: 30_000,
            peers_reconnect_ms: 10_000,
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting {name} is {value}: it must be {rule}")]
pub struct SettingsError {
    /// The setting.
    pub name: &'static str,
    /// What it is.
    pub value: u64,
    /// What it must be.
    pub rule: &'static str,
}

impl ProcessSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn check(&self) -> Result<(), SettingsError> {
        let rules = [
            ("workers", self.workers as u64, 0, 1024),
            (
                "workers_blocked_max",
                self.workers_blocked_max as u64,
                1,
                4096,
            ),
            ("queue_max", self.queue_max as u64, 1, 1 << 20),
            (
                "workers_overdue_max",
                self.workers_overdue_max as u64,
                0,
                4096,
            ),
            (
                "caller_gone_cancel_ms",
                self.caller_gone_cancel_ms,
                0,
                DAY_MS,
            ),
            ("peers_reconnect_ms", self.peers_reconnect_ms, 0, DAY_MS),
            ("local_depth_max", self.local_depth_max.into(), 1, 256),
            ("takeover_us", self.takeover_us, 1, 1_000_000),
            ("state_shown_max", self.state_shown_max as u64, 0, 1 << 16),
            ("swap_lazy_threads", self.swap_lazy_threads as u64, 1, 64),
            (
                "persist_files_max",
                self.persist_files_max as u64,
                1,
                1 << 20,
            ),
            ("sessions_max", self.sessions_max as u64, 1, 1 << 20),
            (
                "session_inflight_max",
                self.session_inflight_max as u64,
                1,
                1 << 20,
            ),
            (
                "mailbox_messages_max",
                self.mailbox_messages_max as u64,
                1,
                1 << 32,
            ),
            (
                "transfer_rounds_max",
                self.transfer_rounds_max.into(),
                1,
                1 << 20,
            ),
            (
                "transfer_window_bytes",
                self.transfer_window_bytes,
                1 << 16,
                1 << 40,
            ),
        ];
        let limits = self.functions.values();
        let times = limits.filter_map(|limits| limits.time_max_ms);
        let times = times.map(|time| ("functions.time_max_ms", time, 0, DAY_MS));
        for (name, value, least, most) in rules.into_iter().chain(times) {
            if !(least..=most).contains(&value) {
                let rule = match name {
                    "workers" => "at most 1024",
                    "workers_blocked_max" => "from 1 to 4096",
                    "workers_overdue_max" => "at most 4096",
                    "caller_gone_cancel_ms" | "peers_reconnect_ms" | "functions.time_max_ms" => {
                        "at most a day"
                    }
                    "local_depth_max" => "from 1 to 256",
                    "swap_lazy_threads" => "from 1 to 64",
                    "state_shown_max" => "at most 65536",
                    "takeover_us" => "from 1 microsecond to a second",
                    "mailbox_messages_max" => "from 1 to 2^32",
                    "transfer_window_bytes" => "from 64 KiB to 1 TiB",
                    _ => "from 1 to 2^20",
                };
                return Err(SettingsError { name, value, rule });
            }
        }
        Ok(())
    }

    /// Functions that run at once on this machine.
    pub fn workers_here(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }
}
