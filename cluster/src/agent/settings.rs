//! The settings of an application, as its hosts get them.

use std::collections::BTreeMap;

use praas_control::policy::PolicySettings;
use praas_runtime::process::ProcessSettings;
use praas_runtime::swap::SwapConfig;
use praas_transport::Kinds;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Those of the process, and those that are the host's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HostSettings {
    pub(super) process: ProcessSettings,
    /// `transports`: those by which hosts reach others.
    pub(super) transports: Option<Kinds>,
    /// `transports_exclude`: those of them that they do not use after all.
    pub(super) transports_exclude: Kinds,
    /// `swap`: how images are written.
    pub(super) swap: Option<SwapConfig>,
    /// `cpus`: processors that each host is bound to.
    pub(super) cpus: Option<usize>,
    /// `env`: variables of each host's environment.
    pub(super) env: BTreeMap<String, String>,
}

/// Looks at an application's settings as the agents will that start its hosts.
///
/// # Errors
/// What is wrong, by name.
pub(crate) fn application_settings_check(text: &str) -> Result<(), String> {
    HostSettings::parse(text).map(drop)
}

impl HostSettings {
    /// Reads a JSON object; nothing at all is an empty one.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let fail = |error: serde_json::Error| format!("the application's settings: {error}");
        let mut all: Map<String, Value> = match text.trim() {
            "" => Map::new(),
            text => serde_json::from_str(text).map_err(fail)?,
        };
        let transports: Option<Kinds> = take(&mut all, "transports").map_err(fail)?;
        let exclude = take(&mut all, "transports_exclude").map_err(fail)?;
        let transports_exclude = exclude.unwrap_or(Kinds::NONE);
        if transports
            .unwrap_or_default()
            .without(transports_exclude)
            .is_empty()
        {
            let rule = "transports_exclude leaves no transport";
            return Err(format!("the application's settings: {rule}"));
        }
        let swap = take(&mut all, "swap").map_err(fail)?;
        let cpus = take(&mut all, "cpus").map_err(fail)?;
        let env: Option<BTreeMap<String, String>> = take(&mut all, "env").map_err(fail)?;
        let env = env.unwrap_or_default();
        for (name, value) in &env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                let rule = "env has a name or a value that no environment can hold";
                return Err(format!("the application's settings: {rule}: {name:?}"));
            }
        }
        // These are the control plane's, which has looked at them.
        for name in PolicySettings::NAMES {
            all.remove(name);
        }
        let process: ProcessSettings = serde_json::from_value(Value::Object(all)).map_err(fail)?;
        process
            .check()
            .map_err(|error| format!("the application's settings: {error}"))?;
        Ok(Self {
            process,
            transports,
            transports_exclude,
            swap,
            cpus,
            env,
        })
    }
}

fn take<T: DeserializeOwned>(
    all: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<T>, serde_json::Error> {
    all.remove(name).map_or(Ok(None), serde_json::from_value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use praas_transport::TransportKind;

    #[test]
    fn settings_are_read_or_refused_by_name() {
        let text = r#"{"workers": 3, "transports": ["tcp"], "swap": {"chunk_bytes": 4096}, "cpus": 2,
                "restart": "always", "env": {"A": "b"}}"#;
        let settings = HostSettings::parse(text).unwrap();
        assert_eq!(settings.process.workers, 3);
        assert_eq!(settings.transports, Some(TransportKind::Tcp.into()));
        assert_eq!(settings.swap.unwrap().chunk_bytes, 4096);
        assert_eq!(settings.cpus, Some(2));
        assert_eq!(settings.env["A"], "b");
        assert_eq!(HostSettings::parse("").unwrap().transports, None);
        for (text, word) in [
            (r#"{"wrkers": 3}"#, "wrkers"),
            (r#"{"workers": 5000}"#, "workers"),
            (r#"{"transports": "pigeon"}"#, "pigeon"),
            (
                r#"{"transports": "tcp", "transports_exclude": "tcp"}"#,
                "no transport",
            ),
            ("[]", "settings"),
            (r#"{"env": {"A=B": "c"}}"#, "A=B"),
        ] {
            let error = HostSettings::parse(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
