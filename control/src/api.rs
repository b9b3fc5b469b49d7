//! What goes over HTTP: the types of the control plane's API, and the rules for names.
//!
//! The types stand apart from the server, so that a client needs no server code and the OpenAPI
//! document is made of nothing else.

use std::collections::BTreeMap;

use praas_transport::{Address, Credential};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{ErrorKind, Failure};

/// Bytes that a name may have.
pub const NAME_MAX_BYTES: usize = praas_transport::ticket::NAME_MAX_BYTES;

/// The pseudo-application under which node agents speak to the control plane.
pub const CLUSTER_APPLICATION: &str = "_cluster";

/// Checks the name of an application, a process, a function or a node: 1 to 255 bytes of UTF-8, no
/// control characters, no '/'.
///
/// # Errors
/// Says what `what` is named and which rule the name breaks.
pub fn name_check(what: &str, name: &str) -> Result<(), Failure> {
    let bad = |rule: &str| {
        let shown: String = name.chars().take(40).collect();
        Err(Failure::new(
            ErrorKind::Invalid,
            format!("{what} name {shown:?} {rule}"),
        ))
    };
    if name.is_empty() {
        return bad("is empty");
    }
    if name.len() > NAME_MAX_BYTES {
        return bad("is longer than 255 bytes");
    }
    if name.chars().any(char::is_control) {
        return bad("holds a control character");
    }
    if name.contains('/') {
        return bad("holds a '/'");
    }
    // A client's URL library folds these away, so that nobody could ever address them.
    if name == "." || name == ".." {
        return bad("stands for a directory");
    }
    Ok(())
}

/// Where a process is in its life.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    /// Its host is being started.
    Starting,
    /// It serves.
    Ready,
    /// It finishes what runs, to swap out or to stop.
    Quiescing,
    /// Its state is in storage; it uses no resources.
    Swapped,
    /// It did not start, or died; `error` says why.
    Failed,
    /// It was stopped.
    Gone,
}

impl ProcessState {
    /// All states.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Ready,
        Self::Quiescing,
        Self::Swapped,
        Self::Failed,
        Self::Gone,
    ];

    /// Whether an operating-system process may be there.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Quiescing)
    }

    /// The name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Quiescing => "quiescing",
            Self::Swapped => "swapped",
            Self::Failed => "failed",
            Self::Gone => "gone",
        }
    }
}

impl std::fmt::Display for ProcessState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Settings of an application's hosts: the runtime's, which the control plane only hands on.
pub type Settings = BTreeMap<String, serde_json::Value>;

/// An application that is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplicationSpec {
    /// Its name.
    pub name: String,
    /// Paths of the shared libraries with its functions, as the nodes see them.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Settings for its hosts.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub settings: Settings,
    /// Whether a process that is asked for and was never created is created then.
    #[serde(default)]
    pub auto_create: bool,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Application {
    /// Its name.
    pub name: String,
    /// Paths of the shared libraries with its functions, as the nodes see them.
    pub modules: Vec<String>,
    /// Settings for its hosts.
    #[schema(value_type = Object)]
    pub settings: Settings,
    /// Whether a process that is asked for and was never created is created then.
    pub auto_create: bool,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// The key id of its data-plane secret; tickets of lower ones are refused.
    pub key_id: u32,
}

/// A process that is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// Its name.
    pub name: String,
}

/// Where a process is to go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TransferSpec {
    /// The node; without one, the one with the fewest processes for its processors.
    pub to: Option<String>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Process {
    /// Its application.
    pub application: String,
    /// Its name.
    pub name: String,
    /// Its present or last incarnation; zero if it never started.
    pub incarnation: u64,
    /// Where it is in its life.
    pub state: ProcessState,
    /// Whether its node's agent vouches for the state; if not, the agent is away and this is the
    /// last that is known.
    pub confirmed: bool,
    /// The node where it is.
    pub node: Option<String>,
    /// The process id of its host on that node.
    pub pid: Option<u32>,
    /// Where its host listens.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<Address>,
    /// How often its state was swapped out.
    pub swap_generation: u64,
    /// Why it failed; of one that lives, what was wrong with newer swap images than it began with.
    pub error: Option<String>,
    /// What it counts, as its agent read it last; there is none before that.
    #[serde(default)]
    pub stats: Option<ProcessStats>,
    /// Milliseconds since it was last seen to do anything, of one that is ready.
    #[serde(default)]
    pub idle_ms: Option<u64>,
    /// The image that it began with, if any.
    #[serde(default)]
    pub restored: Option<Restored>,
    /// Its last checkpoint.
    #[serde(default)]
    pub checkpoint: Option<Checkpoint>,
    /// Why the last checkpoint that was tried is none.
    #[serde(default)]
    pub checkpoint_error: Option<String>,
    /// How often it was started again after a failure, since the control plane's start.
    #[serde(default)]
    pub restarts: u64,
    /// Milliseconds until it may start again, of one that has failed: its back-off.
    #[serde(default)]
    pub restart_in_ms: Option<u64>,
}

/// What a process counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessStats {
    /// Invocations answered since its start.
    pub invocations: u64,
    /// Functions that run.
    pub running: u64,
    /// Functions that wait in a call of theirs.
    pub blocked: u64,
    /// Invocations that wait for a worker.
    pub queued: u64,
    /// Bytes that count against `state_max_bytes`: state objects, their keys, 512 bytes more for
    /// each.
    pub state_bytes: u64,
    /// Messages in the mailbox.
    pub messages: u64,
    /// Messages that were put since its start.
    pub puts: u64,
    /// Bytes of memory that its host has.
    pub resident_bytes: u64,
    /// Nanoseconds of busy-polling with nothing to be found; an estimate.
    pub spin_ns: u64,
    /// Nanoseconds that its endpoint's owner was blocked for.
    pub asleep_ns: u64,
    /// Nanoseconds of processor time that its host had, but for `spin_ns`.
    pub work_ns: u64,
    /// State objects that were written through to storage since its start, those that are gone
    /// included.
    pub persisted_objects: u64,
    /// Bytes of those objects.
    pub persisted_bytes: u64,
    /// Writes through that have failed since its start.
    pub persist_failures: u64,
    /// Times that storage was written to for it, each for all objects that waited.
    pub persist_groups: u64,
    /// Nanoseconds that this took.
    pub persist_ns: u64,
}

impl ProcessStats {
    /// Whether functions run, wait, or are about to.
    pub fn is_busy(&self) -> bool {
        self.running + self.blocked + self.queued > 0
    }

    /// Changes whenever something was done, if nothing is done now.
    pub fn done(&self) -> (u64, u64, u64, u64) {
        (self.invocations, self.puts, self.messages, self.state_bytes)
    }
}

/// The image that a process began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restored {
    /// Its generation.
    pub generation: u64,
    /// Whether it is a checkpoint, written while the process served: what came after it is lost.
    pub checkpoint: bool,
    /// When it was written, in milliseconds since the Unix epoch; zero: it does not say.
    pub written_unix_ms: u64,
}

/// An image that was written while the process served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// Its generation.
    pub generation: u64,
    /// Bytes that were written for it; zero if nothing had changed since the image before.
    pub bytes: u64,
    /// Milliseconds that it took.
    pub took_ms: u64,
    /// When it was written, in milliseconds since the Unix epoch.
    pub written_unix_ms: u64,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Processors that hosts may use.
    pub cpus: u32,
    /// Bytes of memory that hosts may use.
    pub memory_bytes: u64,
    /// Processes that are, or may be, there.
    pub processes: u32,
    /// Bytes of memory that its hosts have, as its agent read it last.
    #[serde(default)]
    pub resident_bytes: u64,
    /// Whether nothing is started there any more, and what is there moves elsewhere.
    #[serde(default)]
    pub drained: bool,
}

/// A member of an application's world view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The process's name.
    pub name: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// Where it is in its life.
    pub state: ProcessState,
    /// Where its host listens.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<Address>,
}

/// The world view of an application: whole, ordered by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct World {
    /// Higher with every change, also across restarts of the control plane.
    pub generation: u64,
    /// The members; stopped ones are not among them.
    pub members: Vec<Member>,
}

/// How the control plane is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`: a control plane that cannot store any more answers with a problem.
    pub status: String,
    /// The version of the control plane.
    pub version: String,
}

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", tag = "role", content = "application")]
pub enum TokenRole {
    /// Everything.
    Admin,
    /// All that concerns this application, but for creating and deleting it.
    Application(String),
}

/// A token that is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenSpec {
    /// What it allows.
    #[serde(flatten)]
    pub role: TokenRole,
    /// What it is for, in the issuer's words.
    #[serde(default)]
    pub label: String,
}

/// A token, without its secret part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenInfo {
    /// Names it, for revoking it.
    pub id: String,
    /// What it allows.
    #[serde(flatten)]
    pub role: TokenRole,
    /// What it is for.
    pub label: String,
    /// When it was issued, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

/// A token that was just issued. The text is shown this once: only its hash is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenIssued {
    /// The token, as it goes after `Authorization: Bearer`.
    pub token: String,
    /// What is known of it.
    pub info: TokenInfo,
}

/// A ticket that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketSpec {
    /// The application; may be left out with a token that is for one.
    #[serde(default)]
    pub application: Option<String>,
    /// The client id that the ticket is bound to, as 32 hexadecimal digits; left out, any.
    #[serde(default)]
    pub client_id: Option<String>,
    /// How long it is to be good, in milliseconds; at most, and left out, the server's limit.
    #[serde(default)]
    pub valid_ms: Option<u64>,
}

/// What opens channels to an application's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TicketIssued {
    /// The application.
    pub application: String,
    /// What the holder is; always `client`.
    pub role: String,
    /// The client id that the ticket is bound to, as 32 hexadecimal digits; zeros for any.
    pub client_id: String,
    /// When it stops being good, in milliseconds since the Unix epoch.
    pub expires_unix_ms: u64,
    /// The key id that it was issued under.
    pub key_id: u32,
    /// The ticket's bytes and its HMAC key, as arrays of numbers.
    #[schema(value_type = Object)]
    pub credential: Credential,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        for good in ["a", "_x", "a b", "größe", &"x".repeat(255)] {
            assert_eq!(name_check("process", good), Ok(()), "{good}");
        }
        for bad in ["", "a/b", "a\n", "\u{7f}", ".", "..", &"x".repeat(256)] {
            let failure = name_check("process", bad).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn tokens_say_their_role_in_json() {
        let admin: TokenSpec = serde_json::from_str(r#"{"role":"admin"}"#).unwrap();
        assert_eq!(admin.role, TokenRole::Admin);
        let text = r#"{"role":"application","application":"a","label":"l"}"#;
        let one: TokenSpec = serde_json::from_str(text).unwrap();
        assert_eq!(one.role, TokenRole::Application("a".into()));
        assert_eq!(serde_json::to_string(&one).unwrap(), text);
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        let spec = serde_json::from_str::<ApplicationSpec>(r#"{"name":"a","modul":[]}"#);
        assert!(spec.is_err());
    }
}
