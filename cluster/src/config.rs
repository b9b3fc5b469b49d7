//! The settings of everything that runs on a node, composed of the crates' own.
//!
//! ```text
//!   default  <  file: praas.toml in the run directory
//!            <  environment: PRAAS_CONTROL_HTTP_LISTEN=...
//!            <  flag: --set control.http_listen=...
//! ```
//!
//! Every layer names settings by their path in [`ClusterConfig`]; a name that is not there is an
//! error, and so is a value that does not fit. [`Loaded`] remembers which layer a value is from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use praas_control::ControlConfig;
use praas_transport::{Kinds, TransportConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::agent::AgentConfig;

/// What the names of environment variables with settings begin with; the section follows.
const ENV_PREFIX: &str = "PRAAS_";

/// Bytes that the settings' file may have.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Settings of a control plane, an agent, and the commands that use them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// The control plane's.
    pub control: ControlConfig,
    /// The agent's.
    pub agent: AgentConfig,
    /// The commands'.
    pub client: ClientSettings,
}

/// Settings of commands that use the control plane and the data plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientSettings {
    /// The transports that may be used, the best that works first: auto, or names.
    pub transports: Kinds,
    /// Those of them that may not after all.
    pub transports_exclude: Kinds,
    /// Milliseconds that an invocation, a put or a get may take.
    pub call_timeout_ms: u64,
    /// Milliseconds that a process may take to get where it is wanted.
    pub wait_ms: u64,
    /// Milliseconds that `up` and `down` may take.
    pub launch_timeout_ms: u64,
    /// Settings of the endpoint.
    pub transport: TransportConfig,
}

impl ClientSettings {
    /// The transports that may be used.
    pub fn transports_allowed(&self) -> Kinds {
        self.transports.without(self.transports_exclude)
    }
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            transports: Kinds::all(),
            transports_exclude: Kinds::NONE,
            call_timeout_ms: 60_000,
            wait_ms: 60_000,
            launch_timeout_ms: 60_000,
            transport: TransportConfig::default(),
        }
    }
}

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The settings' file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the settings in {path} are not TOML")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: Box<toml::de::Error>,
    },
    /// There is no setting of this name.
    #[error("there is no setting {key} ({origin}){}", did_you_mean(.near.as_deref()))]
    Unknown {
        /// Its path.
        key: String,
        /// Who sets it.
        origin: Origin,
        /// The name that is meant, perhaps.
        near: Option<String>,
    },
    /// The value does not fit.
    #[error("setting {key} cannot be {value} ({origin})")]
    Value {
        /// Its path.
        key: String,
        /// What it was to be.
        value: String,
        /// Who sets it.
        origin: Origin,
        /// Why not.
        source: serde_json::Error,
    },
    /// A flag is not of the form `key=value`.
    #[error("{0:?} sets nothing: write --set KEY=VALUE, as in --set control.http_threads=4")]
    Flag(String),
    /// Values do not fit together.
    #[error("the settings do not fit together")]
    Check(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn did_you_mean(near: Option<&str>) -> String {
    match near {
        Some(near) => format!(": did you mean {near}?"),
        None => ": `praas config` shows all there are".into(),
    }
}

/// Settings, and where each is from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: ClusterConfig,
    origins: BTreeMap<String, Origin>,
}

/// One setting, as `praas config` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Its path.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// What it is counted in; nothing for texts and truths.
    pub unit: Option<&'static str>,
    /// Where the value is from.
    pub origin: String,
}

impl Loaded {
    /// Puts the layers together. `flags` are `key=value`, the later ones win; `variables` is the
    /// environment.
    ///
    /// # Errors
    /// A file that cannot be read; names and values that cannot be, with who set them.
    pub fn new(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[String],
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::new();
        if let Some(path) = file {
            layers.file(path)?;
        }
        layers.environment(variables)?;
        for flag in flags {
            layers.flag(flag)?;
        }
        let loaded = Self {
            config: layers.config,
            origins: layers.origins,
        };
        let check = loaded.config.control.check();
        check.map_err(|error| ConfigError::Check(error.into()))?;
        let check = loaded.config.agent.check();
        check.map_err(|error| ConfigError::Check(error.into()))?;
        Ok(loaded)
    }

    /// Every setting, by its path.
    pub fn settings(&self) -> Vec<Setting> {
        let tree = tree_of(&self.config);
        let leaf = |(key, value): (String, Value)| Setting {
            unit: unit_of(&key, &value),
            origin: self
                .origins
                .get(&key)
                .unwrap_or(&Origin::Default)
                .to_string(),
            key,
            value,
        };
        leaves_of(&tree).into_iter().map(leaf).collect()
    }
}

/// The layers that are put on so far.
struct Layers {
    /// The settings as JSON, which has a place for what is absent.
    tree: Value,
    /// Every path that there is.
    known: BTreeMap<String, Value>,
    config: ClusterConfig,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    fn new() -> Self {
        let config = ClusterConfig::default();
        let tree = tree_of(&config);
        Self {
            known: leaves_of(&tree).into_iter().collect(),
            tree,
            config,
            origins: BTreeMap::new(),
        }
    }

    fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.into(),
            source,
        };
        let text = match file_read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(read(error)),
        };
        let table: toml::Table = text.parse().map_err(|source| ConfigError::Syntax {
            path: path.into(),
            source: Box::new(source),
        })?;
        // A table of TOML is a JSON object, but for numbers that are not finite.
        let tree = serde_json::to_value(table).map_err(|error| read(io::Error::other(error)))?;
        let origin = Origin::File(path.into());
        let mut found = Vec::new();
        self.find("", &tree, &origin, &mut found)?;
        for (key, value) in found {
            self.set(&key, value, &origin)?;
        }
        Ok(())
    }

    /// The settings in a part of the file.
    fn find(
        &self,
        key: &str,
        value: &Value,
        origin: &Origin,
        found: &mut Vec<(String, Value)>,
    ) -> Result<(), ConfigError> {
        if self.known.contains_key(key) {
            found.push((key.into(), value.clone()));
            return Ok(());
        }
        match value {
            Value::Object(inner) if key.is_empty() || self.is_section(key) => {
                for (name, value) in inner {
                    self.find(&path_join(key, name), value, origin, found)?;
                }
                Ok(())
            }
            _ => Err(self.unknown(key, origin)),
        }
    }

    fn environment(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), ConfigError> {
        let sections: Vec<String> = match &self.tree {
            Value::Object(sections) => sections.keys().map(|name| variable_of(name)).collect(),
            _ => Vec::new(),
        };
        let mut found = Vec::new();
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            let ours = |section: &String| {
                let rest = name.strip_prefix(section.as_str());
                rest.is_some_and(|rest| rest.starts_with('_'))
            };
            if !sections.iter().any(ours) {
                continue;
            }
            let origin = Origin::Environment(name.into());
            let key = self.known.keys().find(|key| variable_of(key) == name);
            let Some(key) = key else {
                return Err(self.unknown(name, &origin));
            };
            found.push((key.clone(), value.to_string_lossy().into_owned(), origin));
        }
        for (key, text, origin) in found {
            self.set_text(&key, &text, &origin)?;
        }
        Ok(())
    }

    fn flag(&mut self, flag: &str) -> Result<(), ConfigError> {
        let (key, text) = flag
            .split_once('=')
            .ok_or_else(|| ConfigError::Flag(flag.into()))?;
        let key = key.trim();
        let origin = Origin::Flag(format!("--set {key}"));
        if !self.known.contains_key(key) {
            return Err(self.unknown(key, &origin));
        }
        self.set_text(key, text, &origin)
    }

    /// Sets one value as in the file, but texts need no quotes, and lists of texts no brackets.
    fn set_text(&mut self, key: &str, text: &str, origin: &Origin) -> Result<(), ConfigError> {
        let plain = Value::String(text.into());
        let parsed: Option<toml::Table> = format!("value = {text}").parse().ok();
        let parsed = parsed.and_then(|mut table| table.remove("value"));
        let parsed = parsed.and_then(|value| serde_json::to_value(value).ok());
        match (self.known.get(key), parsed) {
            (Some(Value::String(_)), _) => self.set(key, plain, origin),
            (Some(Value::Array(_)), None) => {
                let words = text
                    .split(',')
                    .map(str::trim)
                    .filter(|word| !word.is_empty());
                self.set(key, words.collect(), origin)
            }
            // What may be left out can be a text that looks like a number.
            (Some(Value::Null), Some(value)) if !value.is_string() => {
                let wrong = self.set(key, value, origin);
                wrong.or_else(|wrong| self.set(key, plain, origin).map_err(|_| wrong))
            }
            (_, Some(value)) => self.set(key, value, origin),
            (_, None) => self.set(key, plain, origin),
        }
    }

    /// Sets one value; the settings are made anew, so that the error is about this one.
    fn set(&mut self, key: &str, value: Value, origin: &Origin) -> Result<(), ConfigError> {
        let mut tree = self.tree.clone();
        let mut at = &mut tree;
        for name in key.split('.') {
            at = &mut at[name];
        }
        let text = value.to_string();
        *at = value;
        self.config =
            serde_json::from_value(tree.clone()).map_err(|source| ConfigError::Value {
                key: key.into(),
                value: text,
                origin: origin.clone(),
                source,
            })?;
        self.tree = tree;
        self.origins.insert(key.into(), origin.clone());
        Ok(())
    }

    fn is_section(&self, key: &str) -> bool {
        let inside = format!("{key}.");
        self.known.keys().any(|known| known.starts_with(&inside))
    }

    fn unknown(&self, key: &str, origin: &Origin) -> ConfigError {
        let name = |known: &String| match origin {
            Origin::Environment(_) => variable_of(known),
            _ => known.clone(),
        };
        let near = self.known.keys().map(name);
        let near = near
            .map(|known| (distance(key, &known), known))
            .min()
            .filter(|(distance, _)| *distance <= 3)
            .map(|(_, known)| known);
        ConfigError::Unknown {
            key: key.into(),
            origin: origin.clone(),
            near,
        }
    }
}

fn file_read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(FILE_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn tree_of(config: &ClusterConfig) -> Value {
    // Settings are structs of numbers, texts and lists, all of which JSON can write.
    serde_json::to_value(config).unwrap_or_else(|_| Value::Object(Map::new()))
}

/// Paths and values of all settings; a section that is empty counts as one.
fn leaves_of(tree: &Value) -> Vec<(String, Value)> {
    fn walk(path: &str, value: &Value, out: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                for (name, value) in inner {
                    walk(&path_join(path, name), value, out);
                }
            }
            _ => out.push((path.into(), value.clone())),
        }
    }
    let mut out = Vec::new();
    walk("", tree, &mut out);
    out
}

fn path_join(path: &str, name: &str) -> String {
    match path {
        "" => name.into(),
        _ => format!("{path}.{name}"),
    }
}

/// The environment variable of a setting.
fn variable_of(key: &str) -> String {
    ENV_PREFIX.to_owned() + &key.to_uppercase().replace('.', "_")
}

/// What a setting is counted in, which its name tells.
fn unit_of(key: &str, value: &Value) -> Option<&'static str> {
    if !value.is_number() {
        return None;
    }
    let name = key.rsplit('.').next().unwrap_or(key);
    let suffixes = [
        ("_bytes", "bytes"),
        ("_ms", "ms"),
        ("_us", "us"),
        ("_s", "s"),
        ("_rounds", "rounds"),
        ("_polls", "polls"),
        ("_percent", "percent"),
    ];
    let known = suffixes.iter().find(|(suffix, _)| name.ends_with(suffix));
    Some(known.map_or("count", |(_, unit)| unit))
}

/// How many letters differ (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let kept = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = kept.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        let own = |(name, value): &(&str, &str)| (name.into(), value.into());
        list.iter().map(own).collect()
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("praas.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn shown(loaded: &Loaded, key: &str) -> Setting {
        let mut all = loaded.settings().into_iter();
        all.find(|setting| setting.key == key).unwrap()
    }

    fn chain(error: &ConfigError) -> String {
        let source = std::error::Error::source(error);
        format!(
            "{error}: {}",
            source.map_or(String::new(), |s| s.to_string())
        )
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let text = "[control]\nhttp_threads = 3\nwait_max_ms = 5\nlease_ms = 7\n\
                    [client.transport]\nspin_us = 1\n[client]\ntransports = \"tcp,unix\"\n";
        let (_dir, path) = file(text);
        let env = vars(&[
            ("PRAAS_CONTROL_HTTP_THREADS", "4"),
            ("PRAAS_CONTROL_WAIT_MAX_MS", "6"),
            ("PRAAS_RUN_DIR", "/x"),
            ("PRAAS_REQUIRE_BACKENDS", "shm"),
            ("HOME", "/h"),
        ]);
        let flags = ["control.http_threads=5".to_string()];
        let loaded = Loaded::new(Some(&path), env, &flags).unwrap();
        assert_eq!(loaded.config.control.http_threads, 5);
        assert_eq!(loaded.config.control.wait_max_ms, 6);
        assert_eq!(loaded.config.control.lease_ms, 7);
        assert_eq!(loaded.config.client.transport.spin_us, 1);
        let transports = loaded.config.client.transports;
        assert_eq!(transports, "unix,tcp".parse().unwrap());
        let origin = |key| shown(&loaded, key).origin;
        assert_eq!(
            origin("control.http_threads"),
            "flag --set control.http_threads"
        );
        assert_eq!(
            origin("control.wait_max_ms"),
            "environment PRAAS_CONTROL_WAIT_MAX_MS"
        );
        assert_eq!(
            origin("control.lease_ms"),
            format!("file {}", path.display())
        );
        assert_eq!(origin("control.tokens_max"), "default");
    }

    #[test]
    fn no_file_is_no_setting() {
        let loaded = Loaded::new(Some(Path::new("/none/praas.toml")), [], &[]).unwrap();
        assert_eq!(loaded.config, ClusterConfig::default());
    }

    #[test]
    fn every_setting_has_a_unit_if_it_is_a_number() {
        let loaded = Loaded::new(None, [], &[]).unwrap();
        for setting in loaded.settings() {
            assert_eq!(
                setting.unit.is_some(),
                setting.value.is_number(),
                "{setting:?}"
            );
        }
        assert_eq!(shown(&loaded, "control.lease_ms").unit, Some("ms"));
        assert_eq!(shown(&loaded, "control.body_max_bytes").unit, Some("bytes"));
        assert_eq!(shown(&loaded, "control.tokens_max").unit, Some("count"));
    }

    #[test]
    fn no_two_settings_share_a_variable() {
        let loaded = Loaded::new(None, [], &[]).unwrap();
        let mut names: Vec<_> = loaded
            .settings()
            .iter()
            .map(|s| variable_of(&s.key))
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_unknown_name_is_an_error_that_names_it_and_who_set_it() {
        let (_dir, path) = file("[control]\nhttp_listn = \"127.0.0.1:1\"\n");
        let error = Loaded::new(Some(&path), [], &[]).unwrap_err().to_string();
        assert!(error.contains("control.http_listn"), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(
            error.contains("did you mean control.http_listen?"),
            "{error}"
        );

        let (_dir, path) = file("contrl = 1\n[controls]\na = 1\n");
        assert!(Loaded::new(Some(&path), [], &[]).is_err());

        let env = vars(&[("PRAAS_CLIENT_WAIT_SM", "1")]);
        let error = Loaded::new(None, env, &[]).unwrap_err().to_string();
        assert!(
            error.contains("did you mean PRAAS_CLIENT_WAIT_MS?"),
            "{error}"
        );

        for flag in ["client.nothing=1", "client=1", "client.wait_ms"] {
            let error = Loaded::new(None, [], &[flag.into()]).unwrap_err();
            assert!(
                error.to_string().contains(flag.split('=').next().unwrap()),
                "{error}"
            );
        }
    }

    #[test]
    fn a_value_that_does_not_fit_is_an_error_that_names_it() {
        let (_dir, path) = file("[control]\nhttp_threads = \"many\"\n");
        let error = Loaded::new(Some(&path), [], &[]).unwrap_err();
        assert!(
            chain(&error).contains("control.http_threads cannot be \"many\""),
            "{error}"
        );
        assert!(chain(&error).contains("invalid type"), "{}", chain(&error));
        let (_dir, path) = file("[control\n");
        let error = Loaded::new(Some(&path), [], &[]).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax { .. }), "{error}");
        let flags = ["client.transports=carrier-pigeon".into()];
        let error = Loaded::new(None, [], &flags).unwrap_err();
        assert!(chain(&error).contains("--set client.transports"), "{error}");
        let flags = ["control.http_listen=0.0.0.0:80".into()];
        let error = Loaded::new(None, [], &flags).unwrap_err();
        assert!(
            chain(&error).contains("beyond_loopback"),
            "{}",
            chain(&error)
        );
    }
}
