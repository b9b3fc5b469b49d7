//! The settings of an application, as its hosts get them.

use praas_runtime::process::ProcessSettings;
use praas_runtime::swap::SwapConfig;
use praas_transport::TransportKind;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Those of the process, and three that are the host's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HostSettings {
    pub(super) process: ProcessSettings,
    /// `force`: the one transport by which hosts reach others.
    pub(super) force: Option<TransportKind>,
    /// `swap`: how images are written.
    pub(super) swap: Option<SwapConfig>,
    /// `cpus`: processors that each host is bound to.
    pub(super) cpus: Option<usize>,
}

impl HostSettings {
    /// Reads a JSON object; nothing at all is an empty one.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let fail = |error: serde_json::Error| format!("the application's settings: {error}");
        let mut all: Map<String, Value> = match text.trim() {
            "" => Map::new(),
            text => serde_json::from_str(text).map_err(fail)?,
        };
        let force = take(&mut all, "force").map_err(fail)?;
        let swap = take(&mut all, "swap").map_err(fail)?;
        let cpus = take(&mut all, "cpus").map_err(fail)?;
        let process: ProcessSettings = serde_json::from_value(Value::Object(all)).map_err(fail)?;
        process
            .check()
            .map_err(|error| format!("the application's settings: {error}"))?;
        Ok(Self {
            process,
            force,
            swap,
            cpus,
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

    #[test]
    fn settings_are_read_or_refused_by_name() {
        let text = r#"{"workers": 3, "force": "tcp", "swap": {"chunk_bytes": 4096}, "cpus": 2}"#;
        let settings = HostSettings::parse(text).unwrap();
        assert_eq!(settings.process.workers, 3);
        assert_eq!(settings.force, Some(TransportKind::Tcp));
        assert_eq!(settings.swap.unwrap().chunk_bytes, 4096);
        assert_eq!(settings.cpus, Some(2));
        assert_eq!(HostSettings::parse("").unwrap().force, None);
        for (text, word) in [
            (r#"{"wrkers": 3}"#, "wrkers"),
            (r#"{"workers": 5000}"#, "workers"),
            (r#"{"force": "pigeon"}"#, "pigeon"),
            ("[]", "settings"),
        ] {
            let error = HostSettings::parse(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
