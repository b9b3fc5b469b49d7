//! This node and its settings, and the nodes of the cluster.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use praas_control::ControlAddr;
use praas_control::api::Node;
use praas_transport::wire::WIRE_VERSION;
use praas_transport::{HostId, TransportKind};
use serde::Serialize;
use serde_json::{Value, json};

use super::Context;
use super::error::CliError;
use super::output::{size_shown, table};
use crate::config::Setting;
use crate::daemon::{DaemonKind, daemon_find, hosts_find};
use crate::run_dir::{AgentAddr, RunDir};
use crate::session::Session;

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Only settings whose names contain this
    #[arg(default_value = "")]
    filter: String,
    /// Only what was set
    #[arg(long)]
    changed: bool,
}

pub fn config(context: &Context, args: &ConfigArgs) -> Result<(), CliError> {
    let wanted = |setting: &Setting| {
        setting.key.contains(&args.filter) && (!args.changed || setting.origin != "default")
    };
    let settings = context.loaded()?.settings();
    let settings: Vec<Setting> = settings.into_iter().filter(wanted).collect();
    let header = ["SETTING", "VALUE", "UNIT", "ORIGIN"];
    context.output.list(&settings, &header, |setting| {
        let value = match &setting.value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let unit = setting.unit.unwrap_or_default();
        vec![
            setting.key.clone(),
            value,
            unit.into(),
            setting.origin.clone(),
        ]
    })
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes whose agents were connected, or that have processes
    List,
    /// Declare a node dead whose agent is away: its processes may start elsewhere
    Forget {
        /// The node, which must really be gone
        node: String,
    },
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The node
    node: String,
    /// Start processes there again instead
    #[arg(long)]
    undo: bool,
    /// Milliseconds to wait until nothing is left there; 0 does not wait [default: 600000]
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 600_000,
        hide_default_value = true
    )]
    wait_ms: u64,
}

/// How often to look whether a node is empty.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

pub fn drain(context: &Context, args: &DrainArgs) -> Result<(), CliError> {
    let control = context.control(None)?;
    let DrainArgs { node, undo, .. } = args;
    let left = |nodes: &[Node]| {
        let found = nodes.iter().find(|found| found.name == *node);
        found.map_or(0, |found| found.processes)
    };
    let mut processes = left(&control.node_drain(node, *undo)?);
    let until = Instant::now() + Duration::from_millis(args.wait_ms);
    let working = context.output.working(&format!("draining {node}"));
    while !undo && processes > 0 && Instant::now() < until {
        std::thread::park_timeout(DRAIN_LOOK);
        processes = left(&control.node_list()?);
    }
    drop(working);
    if !undo && processes > 0 && args.wait_ms > 0 {
        let text = format!("node {node} still has {processes} processes; they move on");
        return Err(CliError::text(text));
    }
    let answer = json!({"node": node, "drained": !undo, "processes": processes});
    context.output.answer(&answer, || match undo {
        true => format!("starts processes again  {node}"),
        false => format!("drained  {node}: {processes} processes left"),
    })
}

pub fn node(context: &Context, command: NodeCommand) -> Result<(), CliError> {
    let control = context.control(None)?;
    match command {
        NodeCommand::List => {
            let header = ["NODE", "AGENT", "CPUS", "MEMORY", "USED", "PROCESSES"];
            context
                .output
                .list(&control.node_list()?, &header, |node: &Node| {
                    vec![
                        node.name.clone(),
                        match (node.connected, node.drained) {
                            (true, false) => "connected",
                            (true, true) => "connected, drained",
                            (false, false) => "away",
                            (false, true) => "away, drained",
                        }
                        .into(),
                        node.cpus.to_string(),
                        size_shown(node.memory_bytes),
                        size_shown(node.resident_bytes),
                        node.processes.to_string(),
                    ]
                })
        }
        NodeCommand::Forget { node } => {
            control.node_forget(&node)?;
            let answer = json!({"forgotten": node});
            context
                .output
                .answer(&answer, || format!("counts as dead  {node}"))
        }
    }
}

/// A transport, and why it cannot be used here if it cannot.
#[derive(Debug, Serialize)]
struct TransportInfo {
    transport: TransportKind,
    available: bool,
    detail: String,
}

/// A daemon, and what is known of it.
#[derive(Debug, Serialize)]
struct DaemonInfo {
    daemon: &'static str,
    pid: Option<u32>,
    serves: bool,
    detail: String,
}

/// All that `praas info` tells.
#[derive(Debug, Serialize)]
struct Info {
    version: &'static str,
    wire_version: u16,
    host_id: String,
    kernel: String,
    cpus: Vec<usize>,
    memory_bytes: u64,
    transports: Vec<TransportInfo>,
    run_dir: std::path::PathBuf,
    daemons: Vec<DaemonInfo>,
    hosts: Vec<u32>,
}

pub fn info(context: &Context) -> Result<(), CliError> {
    let path = context.run_dir_path();
    let run_dir = RunDir::open(&path).ok();
    let hosts = match &run_dir {
        Some(run_dir) => hosts_find(run_dir)
            .map_err(|error| CliError::new("cannot look for hosts in /proc", error))?,
        None => Vec::new(),
    };
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        wire_version: WIRE_VERSION,
        host_id: HostId::local().to_string(),
        kernel: file_text("/proc/sys/kernel/osrelease"),
        cpus: cpus_allowed(),
        memory_bytes: memory_bytes(),
        transports: transports(),
        daemons: [DaemonKind::Control, DaemonKind::Agent]
            .map(|kind| daemon_info(run_dir.as_ref(), kind))
            .into(),
        run_dir: path,
        hosts: hosts.iter().map(|host| host.pid()).collect(),
    };
    context.output.answer(&info, || info_words(&info))
}

fn info_words(info: &Info) -> String {
    let cpus: Vec<String> = info.cpus.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "praas {}, wire version {}\nhost       {}, Linux {}\nCPUs       {} ({})\nmemory     {}\n",
        info.version,
        info.wire_version,
        info.host_id,
        info.kernel,
        info.cpus.len(),
        cpus.join(","),
        size_shown(info.memory_bytes),
    );
    text += &format!(
        "run dir    {}\nhosts      {}\n\n",
        info.run_dir.display(),
        info.hosts.len()
    );
    let rows: Vec<Vec<String>> = info.transports.iter().map(transport_row).collect();
    text += &table(&["TRANSPORT", "HERE", "DETAIL"], &rows);
    let rows: Vec<Vec<String>> = info.daemons.iter().map(daemon_row).collect();
    text += "\n";
    text += table(&["DAEMON", "SERVES", "PID", "DETAIL"], &rows).trim_end();
    text
}

fn transport_row(transport: &TransportInfo) -> Vec<String> {
    vec![
        transport.transport.to_string(),
        if transport.available { "yes" } else { "no" }.into(),
        transport.detail.clone(),
    ]
}

fn daemon_row(daemon: &DaemonInfo) -> Vec<String> {
    vec![
        daemon.daemon.into(),
        if daemon.serves { "yes" } else { "no" }.into(),
        daemon.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        daemon.detail.clone(),
    ]
}

/// Tries every transport between processes: an endpoint listens, and one connects to it.
fn transports() -> Vec<TransportInfo> {
    let probe = |transport: TransportKind| {
        let (available, detail) = match super::probe::probe(transport) {
            Ok(detail) => (true, detail),
            Err(why) => (false, why),
        };
        TransportInfo {
            transport,
            available,
            detail,
        }
    };
    let between = TransportKind::ALL.into_iter();
    let between = between.filter(|kind| *kind != TransportKind::Mem);
    between.map(probe).collect()
}

fn daemon_info(run_dir: Option<&RunDir>, kind: DaemonKind) -> DaemonInfo {
    let Some(run_dir) = run_dir else {
        return DaemonInfo {
            daemon: kind.title(),
            pid: None,
            serves: false,
            detail: "there is no run directory: `praas up` makes it".into(),
        };
    };
    let (pid, problem) = match daemon_find(run_dir, kind) {
        Ok(found) => (found.map(|handle| handle.pid()), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let state = match (pid, kind) {
        (None, _) => Err(problem.unwrap_or_else(|| "does not run: `praas up` starts it".into())),
        (Some(_), DaemonKind::Control) => control_state(run_dir),
        (Some(_), DaemonKind::Agent) => agent_state(run_dir),
    };
    DaemonInfo {
        daemon: kind.title(),
        pid,
        serves: state.is_ok(),
        detail: state.unwrap_or_else(|why| why),
    }
}

fn control_state(run_dir: &RunDir) -> Result<String, String> {
    let session = Session::open(run_dir).map_err(|error| error.to_string())?;
    let control = session.control.with_wait(Duration::ZERO);
    let health = control.health().map_err(|error| error.to_string())?;
    let address = ControlAddr::read(&run_dir.control().control_addr);
    let address = address.map_err(|error| error.to_string())?;
    Ok(format!("{}, version {}", address.http, health.version))
}

fn agent_state(run_dir: &RunDir) -> Result<String, String> {
    let address = AgentAddr::read(&run_dir.agent_addr()).map_err(|error| error.to_string())?;
    let session = Session::open(run_dir).map_err(|error| error.to_string())?;
    let nodes = session.control.with_wait(Duration::ZERO).node_list();
    let nodes = nodes.map_err(|error| error.to_string())?;
    match nodes.iter().find(|node| node.name == address.node) {
        Some(node) if node.connected => {
            Ok(format!("node {}, {} processes", node.name, node.processes))
        }
        _ => Err(format!(
            "node {} is not connected to the control plane",
            address.node
        )),
    }
}

fn file_text(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .into()
}

/// The processors that this process may use.
fn cpus_allowed() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

fn memory_bytes() -> u64 {
    let text = file_text("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
