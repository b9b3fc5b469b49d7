//! Two nodes on this machine, and the process that goes from one to the other.

use std::path::Path;
use std::time::{Duration, Instant};

use praas_control::ControlClient;
use praas_control::api::{ApplicationSpec, Process, ProcessState, TransferSpec};
use praas_runtime::client::Client;
use praas_runtime::invocation::InvokeError;
use praas_runtime::process::{STATE_GET, STATE_PUT, StatePutInput};
use praas_transport::{Kinds, TransportKind};

use crate::bench::BenchError;
use crate::demo::PrivateCluster;
use crate::run_dir::RunDir;

const APPLICATION: &str = "bench";
pub(super) const PROCESS: &str = "moved";
const NODES: [&str; 2] = ["first", "second"];
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the host that was left may take to end.
const END: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// The beginning of what a source says at its end.
const COUNTED: &str = "another host has the process";

/// Two nodes on this machine.
pub(super) struct Nodes {
    cluster: PrivateCluster,
    second: RunDir,
    control: ControlClient,
    kind: TransportKind,
}

/// A transfer that is done: from which node.
pub(super) struct Moved {
    from: usize,
    /// How long its host's log was before.
    log_bytes: usize,
}

/// What the source counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub rounds: u64,
    pub served_bytes: u64,
    pub frozen_bytes: u64,
    pub frozen_us: u64,
}

/// The key of an object.
pub(super) fn key(number: usize) -> String {
    format!("object/{number:08}")
}

pub(super) fn invoke_error(function: &'static str) -> impl FnOnce(InvokeError) -> BenchError {
    move |source| BenchError::Invoke { function, source }
}

impl Nodes {
    pub(super) fn start(kind: TransportKind) -> Result<Self, BenchError> {
        let cluster = PrivateCluster::new();
        let cluster = cluster.map_err(BenchError::cluster("make a cluster"))?;
        let above = match kind {
            TransportKind::Verbs => vec![
                "agent.host_verbs_listen=[\"0.0.0.0:0\"]".to_owned(),
                "agent.beyond_loopback=true".to_owned(),
            ],
            _ => Vec::new(),
        };
        let mut first = above.clone();
        first.push(format!("agent.node={}", NODES[0]));
        let started = cluster.start(&first).and_then(|session| {
            let second = cluster.node_add(NODES[1], &above)?;
            Ok((session, second))
        });
        let begun = started
            .map_err(BenchError::cluster("start two nodes"))
            .and_then(|(session, second)| {
                let control = session.control.with_wait(PATIENCE);
                process_create(&control, kind)?;
                Ok((control, second))
            });
        match begun {
            Ok((control, second)) => Ok(Self {
                cluster,
                second,
                control,
                kind,
            }),
            Err(error) => {
                // What failed first is what counts.
                let _ = cluster.kill();
                Err(error)
            }
        }
    }

    pub(super) fn stop(&self) -> Result<(), BenchError> {
        let stopped = self.cluster.kill();
        stopped.map_err(BenchError::cluster("take the cluster down"))
    }

    pub(super) fn client(&self) -> Result<Client, BenchError> {
        let client = self.cluster.client(APPLICATION, Kinds::only(self.kind));
        client.map_err(BenchError::cluster("make a client"))
    }

    /// Writes the state that goes along.
    pub(super) fn fill(&self, bytes: usize, object: usize) -> Result<(), BenchError> {
        let mut client = self.client()?;
        for (number, at) in (0..bytes).step_by(object).enumerate() {
            let input = StatePutInput {
                key: key(number),
                value: vec![number as u8; object.min(bytes - at)],
            };
            let put = client.invoke_value::<_, u64>(PROCESS, STATE_PUT, &input);
            put.map_err(invoke_error(STATE_PUT))?;
        }
        Ok(())
    }

    /// Looks whether the state is what it was.
    pub(super) fn check(&self, bytes: usize, object: usize) -> Result<(), BenchError> {
        let mut client = self.client()?;
        for (number, at) in (0..bytes).step_by(object).enumerate() {
            let got = client.invoke(PROCESS, STATE_GET, key(number).as_bytes());
            let got = got.map_err(invoke_error(STATE_GET))?;
            let len = object.min(bytes - at);
            if got.len() != len || got.iter().any(|byte| *byte != number as u8) {
                let text = format!("has lost object {number} on its way");
                return Err(BenchError::Peer(text));
            }
        }
        Ok(())
    }

    fn shown(&self) -> Result<Process, BenchError> {
        let shown = self.control.process_show(APPLICATION, PROCESS);
        shown.map_err(BenchError::cluster("look at the process"))
    }

    fn host_log(&self, node: usize) -> String {
        let run_dir = match node {
            0 => self.cluster.run_dir(),
            _ => &self.second,
        };
        let path = run_dir.host_log(APPLICATION, PROCESS);
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Moves the process to the other node.
    pub(super) fn transfer(&self) -> Result<(Moved, Duration), BenchError> {
        let before = self.shown()?;
        let from = usize::from(before.node.as_deref() != Some(NODES[0]));
        let log_bytes = self.host_log(from).len();
        let spec = TransferSpec {
            to: Some(NODES[1 - from].into()),
        };
        let begun = Instant::now();
        let moved = self.control.process_transfer(APPLICATION, PROCESS, &spec);
        let took = begun.elapsed();
        let moved = moved.map_err(BenchError::cluster("move the process"))?;
        if moved.state != ProcessState::Ready || moved.node == before.node {
            let text = format!("is {} on {:?} after a transfer", moved.state, moved.node);
            return Err(BenchError::Peer(text));
        }
        self.end_wait(before.pid)?;
        Ok((Moved { from, log_bytes }, took))
    }

    /// Waits until the host that was left has ended.
    fn end_wait(&self, pid: Option<u32>) -> Result<(), BenchError> {
        let Some(pid) = pid else { return Ok(()) };
        let until = Instant::now() + END;
        while Path::new(&format!("/proc/{pid}")).exists() {
            if Instant::now() > until {
                let text = format!("{pid}, which the process has left, does not end");
                return Err(BenchError::Peer(text));
            }
            std::thread::park_timeout(LOOK);
        }
        Ok(())
    }

    /// What the source said of it.
    pub(super) fn counted(&self, moved: &Moved) -> Option<Counted> {
        let log = self.host_log(moved.from);
        let said = log.get(moved.log_bytes..)?;
        said.lines().rev().find_map(counted_read)
    }
}

fn process_create(control: &ControlClient, kind: TransportKind) -> Result<(), BenchError> {
    let kinds = Kinds::only(kind).to_string();
    let spec = ApplicationSpec {
        name: APPLICATION.into(),
        modules: Vec::new(),
        settings: [("transports".to_owned(), kinds.into())].into(),
        auto_create: false,
    };
    let created = control.application_create(&spec);
    created.map_err(BenchError::cluster("create the application"))?;
    let created = control.process_create(APPLICATION, PROCESS);
    created.map_err(BenchError::cluster("create the process"))?;
    Ok(())
}

/// What a line of a host's log says of a transfer, if it does.
fn counted_read(line: &str) -> Option<Counted> {
    let fields = &line[line.find(COUNTED)?..];
    let field = |name: &str| {
        let found = fields.split_whitespace().find_map(|field| {
            let (key, value) = field.split_once('=')?;
            (key == name).then_some(value)
        });
        found?.parse().ok()
    };
    let (bytes, frozen_bytes): (u64, u64) = (field("bytes")?, field("frozen_bytes")?);
    Some(Counted {
        rounds: field("rounds")?,
        served_bytes: bytes.checked_sub(frozen_bytes)?,
        frozen_bytes,
        frozen_us: field("frozen_us")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_source_says_is_read() {
        let line = "2026-01-01T00:00:00Z  INFO praas_cluster::host::transfer: another host has \
                    the process: waiting for the word on who serves rounds=2 bytes=110 \
                    frozen_bytes=10 frozen_us=700";
        let counted = Counted {
            rounds: 2,
            served_bytes: 100,
            frozen_bytes: 10,
            frozen_us: 700,
        };
        assert_eq!(counted_read(line), Some(counted));
        assert_eq!(counted_read("INFO another host has the process"), None);
        assert_eq!(counted_read(""), None);
    }
}
