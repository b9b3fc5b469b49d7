//! The settings of the node agent: every limit has a name with its unit and a default.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use praas_runtime::swap::{StorageUrl, SwapConfig};
use praas_transport::{Address, Kinds, TransportConfig};
use serde::{Deserialize, Serialize};

use crate::run_dir::RunDir;

/// What hosts get of the agent's environment unless it is said otherwise: where programs and
/// libraries are, who the user is, how to write, what to log, and how to get at storage.
const HOST_ENVIRONMENT: [&str; 16] = [
    "PATH",
    "LD_LIBRARY_PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "TZ",
    "LANG",
    "LC_*",
    "RUST_BACKTRACE",
    "PRAAS_LOG",
    "PRAAS_HOST_ID",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "PRAAS_REDIS_PASSWORD",
];

/// Settings of a node agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// The node's name; left out, the host's.
    pub node: Option<String>,
    /// Where the control plane is; empty: where `control.addr` in the run directory says.
    pub control: Vec<Address>,
    /// The file with the cluster's secret; left out, the one in the run directory.
    pub cluster_secret: Option<PathBuf>,
    /// Where the directory is served over TCP; port zero lets the kernel choose. It is served over
    /// shared memory and a Unix socket besides.
    pub directory_listen: SocketAddr,
    /// Where hosts listen for TCP; port zero lets the kernel choose. Empty: on loopback.
    pub host_listen: Vec<SocketAddr>,
    /// Where hosts listen for RDMA, at addresses of RDMA ports: 0.0.0.0 stands for that of some
    /// port, and port zero lets the kernel choose. Empty: nowhere.
    pub host_verbs_listen: Vec<SocketAddr>,
    /// The folder for the Unix sockets of the directory and of hosts, where other containers see
    /// it, too: at most 75 bytes long. Left out, the sockets are abstract.
    pub unix_dir: Option<PathBuf>,
    /// Whether any of these may be an address beyond loopback.
    pub beyond_loopback: bool,
    /// Processors that hosts may use; zero: those that the agent may.
    pub cpus: u32,
    /// Processors that each host is bound to, the least loaded ones, on one NUMA node if they fit
    /// there; zero, or as many as the agent may use: hosts are not bound. The setting `cpus` of an
    /// application goes before it.
    pub host_cpus: usize,
    /// Bytes of memory that hosts may use; zero: all that the node has.
    pub memory_bytes: u64,
    /// The transports by which the agent and hosts reach others, the best that works first: auto,
    /// or names. The setting `transports` of an application goes before it.
    pub transports: Kinds,
    /// Those of them that may not be used after all, by any application.
    pub transports_exclude: Kinds,
    /// The program that is a host, with its first arguments; empty: `praas host` of this program.
    pub host_command: Vec<String>,
    /// Variables of the agent's environment that hosts get: names, or beginnings with a star. The
    /// setting `env` of an application goes above them, and `PRAAS_RUN_DIR` is always there.
    pub host_environment: Vec<String>,
    /// Hosts that there may be.
    pub hosts_max: usize,
    /// Milliseconds between two looks at what hosts count, which the control plane is told; zero:
    /// never.
    pub stats_interval_ms: u64,
    /// Where swap images are kept, a URL: `file:/path`, or just the path of a folder. Left out, it
    /// is the folder `swap` in the run directory.
    pub storage: Option<StorageUrl>,
    /// Milliseconds that the deletion of what a process has left in storage may take, before it has
    /// failed and the next one begins.
    pub images_delete_timeout_ms: u64,
    /// How swap images are written. The setting `swap` of an application goes before it.
    pub swap: SwapConfig,
    /// Seconds that a host goes without an agent before it swaps out and ends.
    pub agent_grace_s: u64,
    /// Milliseconds that a host may take until it serves.
    pub start_timeout_ms: u64,
    /// Milliseconds that a host may take to stop, besides those that the setting
    /// `quiesce_timeout_ms` of its application gives to running functions, before it is killed.
    pub stop_timeout_ms: u64,
    /// Milliseconds that a host may take to end after it said that it does, before it is killed.
    pub exit_timeout_ms: u64,
    /// Milliseconds that hosts of an earlier agent may take to redial, before they are killed.
    pub adopt_timeout_ms: u64,
    /// Milliseconds that the agent's own end waits for its hosts to swap out.
    pub shutdown_timeout_ms: u64,
    /// Milliseconds until a lost control plane is dialled again: at first, doubled each time.
    pub redial_first_ms: u64,
    /// Milliseconds until a lost control plane is dialled again: at most.
    pub redial_max_ms: u64,
    /// When hosts are ended because the control plane cannot be reached.
    pub fence: Fence,
    /// The control plane's setting of this name: milliseconds of silence after which it starts
    /// processes elsewhere. After half of it hosts are swapped out, after three quarters killed.
    pub lease_ms: u64,
    /// Questions of clients and hosts that may wait for an answer.
    pub questions_max: usize,
    /// Milliseconds that a question waits for the control plane.
    pub question_timeout_ms: u64,
    /// Bytes of a host's log, after which the next start begins another; one old one is kept.
    pub log_max_bytes: u64,
    /// Settings of the agent's endpoint.
    pub transport: TransportConfig,
}

/// When hosts are ended because the control plane cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fence {
    /// If the control plane is on another node, as far as is known: one on this node does not live
    /// on out of reach.
    Auto,
    /// In any case.
    Always,
    /// Never; right only if the control plane's `lease_ms` is zero.
    Never,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            node: None,
            control: Vec::new(),
            cluster_secret: None,
            directory_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            host_listen: Vec::new(),
            host_verbs_listen: Vec::new(),
            unix_dir: None,
            beyond_loopback: false,
            cpus: 0,
            host_cpus: 0,
            memory_bytes: 0,
            transports: Kinds::all(),
            transports_exclude: Kinds::NONE,
            host_command: Vec::new(),
            host_environment: HOST_ENVIRONMENT.map(str::to_owned).to_vec(),
            hosts_max: 10_000,
            stats_interval_ms: 1_000,
            storage: None,
            images_delete_timeout_ms: 120_000,
            swap: SwapConfig::default(),
            agent_grace_s: 10,
            start_timeout_ms: 300_000,
            stop_timeout_ms: 5_000,
            exit_timeout_ms: 5_000,
            adopt_timeout_ms: 120_000,
            shutdown_timeout_ms: 30_000,
            redial_first_ms: 5,
            redial_max_ms: 1_000,
            fence: Fence::Auto,
            lease_ms: 60_000,
            questions_max: 65_536,
            question_timeout_ms: 35_000,
            log_max_bytes: 16 << 20,
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

impl AgentConfig {
    /// Where swap images are kept.
    pub fn storage_url(&self, run_dir: &RunDir) -> StorageUrl {
        let default = || StorageUrl::file(&run_dir.swap_dir());
        self.storage.clone().unwrap_or_else(default)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the first setting that cannot be, and the rule that it breaks.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |name, value: String, rule| Err(ConfigError { name, value, rule });
        let tcp = self.host_listen.iter().map(|at| ("host_listen", at));
        let verbs = self.host_verbs_listen.iter();
        let verbs = verbs.map(|at| ("host_verbs_listen", at));
        let directory = [("directory_listen", &self.directory_listen)];
        for (name, at) in tcp.chain(verbs).chain(directory) {
            if !at.ip().is_loopback() && !self.beyond_loopback {
                let rule = "an address beyond loopback needs beyond_loopback = true";
                return fail(name, at.to_string(), rule);
            }
        }
        if self.transports.without(self.transports_exclude).is_empty() {
            let rule = "transports_exclude leaves none of them";
            return fail("transports", self.transports.to_string(), rule);
        }
        for (name, value) in [
            ("hosts_max", self.hosts_max as u64),
            ("questions_max", self.questions_max as u64),
            ("images_delete_timeout_ms", self.images_delete_timeout_ms),
            ("redial_first_ms", self.redial_first_ms),
            ("redial_max_ms", self.redial_max_ms),
            ("agent_grace_s", self.agent_grace_s),
        ] {
            if value == 0 {
                return fail(name, value.to_string(), "it must be at least 1");
            }
        }
        // The control plane may notice the end of a channel that much earlier than we do.
        let dead_after_ms = u64::from(self.transport.tcp_dead_after_ms);
        if self.fence != Fence::Never && self.lease_ms / 4 <= dead_after_ms {
            let rule = "it must be above four times transport.tcp_dead_after_ms";
            return fail("lease_ms", self.lease_ms.to_string(), rule);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        assert_eq!(AgentConfig::default().check(), Ok(()));
        let refused = |change: fn(&mut AgentConfig), word: &str| {
            let mut config = AgentConfig::default();
            change(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        let beyond = "beyond_loopback";
        refused(|c| c.directory_listen = ([0, 0, 0, 0], 1).into(), beyond);
        refused(|c| c.host_listen = vec![([10, 0, 0, 1], 1).into()], beyond);
        let anywhere = |c: &mut AgentConfig| c.host_verbs_listen = vec![([0, 0, 0, 0], 0).into()];
        refused(anywhere, beyond);
        refused(|c| c.hosts_max = 0, "hosts_max");
        refused(|c| c.lease_ms = 20_000, "lease_ms");
        refused(|c| c.transports_exclude = Kinds::all(), "transports");
        assert!(toml::from_str::<AgentConfig>("hosts_mx = 1").is_err());
        let config: AgentConfig = toml::from_str("fence = 'never'\nlease_ms = 0").unwrap();
        assert_eq!(config.check(), Ok(()));
    }
}
