//! The settings of an application that the control plane itself obeys. Agents know their names, and
//! leave them alone.
//!
//! All times are in milliseconds, and zero switches off what it is the time of.

use serde::{Deserialize, Serialize};

use crate::api::Settings;
use crate::error::{ErrorKind, Failure};

/// What becomes of a process that has failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// It stays so until it is swapped in by hand.
    Never,
    /// It starts when it is asked for.
    #[default]
    OnDemand,
    /// It starts by itself.
    Always,
}

/// What the control plane does by itself with the processes of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicySettings {
    /// Milliseconds after which a process that nobody calls, that runs nothing and waits for
    /// nothing is swapped out; zero: never.
    pub idle_swap_ms: u64,
    /// Whether a process may be swapped out because its node runs out of memory.
    pub pressure_swap: bool,
    /// Milliseconds that a process is ready at least before that, so that one that is wanted again
    /// and again is not swapped to and fro.
    pub swap_min_ready_ms: u64,
    /// Milliseconds between two checkpoints of a process that has done something meanwhile; zero:
    /// none but those that are asked for.
    pub checkpoint_interval_ms: u64,
    /// What becomes of a process that has failed.
    pub restart: Restart,
    /// Milliseconds until a process that has failed may start again: at first, doubled each time.
    /// One that was ready starts at once after its first failure.
    pub restart_backoff_first_ms: u64,
    /// Milliseconds until a process that has failed may start again: at most.
    pub restart_backoff_max_ms: u64,
    /// Milliseconds that a process must have been ready for its back-off to begin anew.
    pub restart_reset_ms: u64,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            idle_swap_ms: 0,
            pressure_swap: true,
            swap_min_ready_ms: 10_000,
            checkpoint_interval_ms: 0,
            restart: Restart::OnDemand,
            restart_backoff_first_ms: 100,
            restart_backoff_max_ms: 30_000,
            restart_reset_ms: 60_000,
        }
    }
}

impl PolicySettings {
    /// The names of these settings.
    pub const NAMES: [&'static str; 8] = [
        "idle_swap_ms",
        "pressure_swap",
        "swap_min_ready_ms",
        "checkpoint_interval_ms",
        "restart",
        "restart_backoff_first_ms",
        "restart_backoff_max_ms",
        "restart_reset_ms",
    ];

    /// Takes them from among an application's settings.
    ///
    /// # Errors
    /// Names the one that cannot be.
    pub fn parse(settings: &Settings) -> Result<Self, Failure> {
        let mut own = serde_json::Map::new();
        for name in Self::NAMES {
            if let Some(value) = settings.get(name) {
                // One at a time first, so that the error can name it.
                let one = serde_json::Map::from_iter([(name.to_owned(), value.clone())]);
                serde_json::from_value::<Self>(one.into()).map_err(|error| {
                    let detail = format!("setting {name} is {value}: {error}");
                    Failure::new(ErrorKind::Invalid, detail)
                })?;
                own.insert(name.into(), value.clone());
            }
        }
        let parsed: Self = serde_json::from_value(own.into())
            .map_err(|error| Failure::new(ErrorKind::Invalid, error.to_string()))?;
        if parsed.restart_backoff_max_ms < parsed.restart_backoff_first_ms {
            let detail = format!(
                "setting restart_backoff_max_ms is {}: it must not be below \
                 restart_backoff_first_ms, {}",
                parsed.restart_backoff_max_ms, parsed.restart_backoff_first_ms
            );
            return Err(Failure::new(ErrorKind::Invalid, detail));
        }
        Ok(parsed)
    }

    /// Milliseconds until the next start after so many failures in a row; zero after none.
    pub fn backoff_ms(&self, failures: u32) -> u64 {
        let Some(doublings) = failures.checked_sub(1) else {
            return 0;
        };
        let doublings = doublings.min(63);
        let wait = self.restart_backoff_first_ms.saturating_mul(1 << doublings);
        wait.min(self.restart_backoff_max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PolicySettings, Failure> {
        PolicySettings::parse(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn settings_are_read_or_refused_by_name() {
        assert_eq!(parse("{}"), Ok(PolicySettings::default()));
        let parsed = parse(r#"{"workers": 2, "idle_swap_ms": 5, "restart": "always"}"#).unwrap();
        assert_eq!(parsed.idle_swap_ms, 5);
        assert_eq!(parsed.restart, Restart::Always);
        for (text, word) in [
            (r#"{"idle_swap_ms": -1}"#, "idle_swap_ms"),
            (r#"{"restart": "perhaps"}"#, "restart"),
            (r#"{"pressure_swap": 1}"#, "pressure_swap"),
            (
                r#"{"restart_backoff_max_ms": 1}"#,
                "restart_backoff_first_ms",
            ),
        ] {
            let failure = parse(text).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::Invalid);
            assert!(failure.detail.contains(word), "{failure}");
        }
    }

    #[test]
    fn every_name_is_a_setting() {
        let all = serde_json::to_value(PolicySettings::default()).unwrap();
        let mut names: Vec<&str> = all
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut own = PolicySettings::NAMES;
        names.sort_unstable();
        own.sort_unstable();
        assert_eq!(names, own);
    }

    #[test]
    fn the_back_off_doubles_up_to_its_limit() {
        let settings = PolicySettings::default();
        let waits = [0, 1, 2, 3, 9, 10, 1_000].map(|failures| settings.backoff_ms(failures));
        assert_eq!(waits, [0, 100, 200, 400, 25_600, 30_000, 30_000]);
    }
}
