//! What was measured on, and what was measured.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The machine that a record comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// The kernel's release.
    pub kernel: String,
    /// CPUs that this process may use.
    pub cores: usize,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            lines.find_map(|(key, value)| (key.trim() == name).then(|| value.trim().to_owned()))
        };
        let cpu = field("model name").unwrap_or_else(|| std::env::consts::ARCH.into());
        Self {
            cpu,
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, kernel, cores } = self;
        write!(f, "{cpu}, {cores} CPUs, Linux {kernel}")
    }
}

/// The commit that this program was built from, as far as the build could tell.
pub(super) fn commit() -> &'static str {
    option_env!("PRAAS_COMMIT").unwrap_or("unknown")
}
