//! `up`, `down`, and the daemons that they start and end.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::Context;
use super::error::CliError;
use crate::agent::agent_run;
use crate::control_plane::control_run;
use crate::launch::{self, Daemon, Down, DownMode, DownOptions, UpOptions};

/// The environment variable that says what is logged, in the manner of `RUST_LOG`.
const LOG_ENV: &str = "PRAAS_LOG";

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Milliseconds until both must serve [default: setting client.launch_timeout_ms]
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub struct DownArgs {
    /// Let processes finish what runs, but keep nothing of their state
    #[arg(long, conflicts_with = "kill")]
    stop: bool,
    /// End everything now; what was not swapped out before is lost
    #[arg(long)]
    kill: bool,
    /// Remove everything else as well: the store with all applications, secrets, logs, swap images
    #[arg(long)]
    purge: bool,
    /// Wait for the end of the standard input first: so whoever holds its other end, and is killed,
    /// takes the cluster along
    #[arg(long)]
    after_stdin: bool,
    /// Milliseconds for an end in good order [default: setting client.launch_timeout_ms]
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
}

pub fn up(context: &Context, args: &UpArgs) -> Result<(), CliError> {
    let config = context.config()?;
    let timeout_ms = args.timeout_ms.unwrap_or(config.client.launch_timeout_ms);
    let working = context.output.working("starting");
    let options = UpOptions {
        program: None,
        settings: context.global.settings.clone(),
        timeout: Duration::from_millis(timeout_ms),
        progress: working.progress(),
    };
    let up = launch::up(&context.run_dir_make()?, &options)?;
    drop(working);
    let words = |daemon: Daemon| match daemon.started {
        true => format!("started, process {}", daemon.pid),
        false => format!("runs already, process {}", daemon.pid),
    };
    context.output.answer(&up, || {
        format!(
            "control plane  {}  {}\nagent          node {}  {}\nrun directory  {}",
            up.http,
            words(up.control),
            up.node,
            words(up.agent),
            up.run_dir.display()
        )
    })
}

pub fn down(context: &Context, args: &DownArgs) -> Result<(), CliError> {
    if args.after_stdin {
        // An error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    }
    let path = context.run_dir_path();
    if !path.exists() {
        return context.output.answer(&Down::default(), || {
            format!("nothing runs: there is no {}", path.display())
        });
    }
    let run_dir = context.run_dir()?;
    let timeout_ms = match args.timeout_ms {
        Some(timeout_ms) => timeout_ms,
        // Settings that cannot be read are no reason to let things run on.
        None => {
            context
                .config()
                .unwrap_or_default()
                .client
                .launch_timeout_ms
        }
    };
    let mode = match (args.stop, args.kill) {
        (_, true) => DownMode::Kill,
        (true, false) => DownMode::Stop,
        (false, false) => DownMode::Swap,
    };
    let working = context.output.working("taking down");
    let options = DownOptions {
        mode,
        purge: args.purge,
        timeout: Duration::from_millis(timeout_ms),
        progress: working.progress(),
    };
    let down = launch::down(&run_dir, &options)?;
    drop(working);
    context.output.answer(&down, || down_words(&down, mode))
}

fn down_words(down: &Down, mode: DownMode) -> String {
    let mut lines = Vec::new();
    let done = match mode {
        DownMode::Swap => "swapped out",
        _ => "stopped",
    };
    for process in &down.processes {
        lines.push(format!("{done}  {process}"));
    }
    for (name, pid) in [("agent", down.agent), ("control plane", down.control)] {
        if let Some(pid) = pid {
            lines.push(format!("ended  {name}, process {pid}"));
        }
    }
    for pid in &down.ended {
        lines.push(format!("ended  host without an agent, process {pid}"));
    }
    for pid in &down.killed {
        lines.push(format!("killed  process {pid}"));
    }
    for path in &down.foreign {
        lines.push(format!(
            "kept  {}: it is not of praas's making",
            path.display()
        ));
    }
    if down.purged {
        lines.push("purged  the run directory".into());
    }
    match lines.is_empty() {
        true => "nothing ran".into(),
        false => lines.join("\n"),
    }
}

pub fn control(context: &Context) -> Result<(), CliError> {
    log_begin();
    let config = context.config()?;
    control_run(&context.run_dir_make()?, config.control).map_err(CliError::of)
}

#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// The node's name; the host's, if it is left out
    #[arg(long)]
    node: Option<String>,
    /// Where the control plane is; as the run directory says, if it is left out
    #[arg(long, value_name = "ADDRESS", num_args = 1..)]
    control: Vec<praas_transport::Address>,
}

pub fn agent(context: &Context, args: AgentArgs) -> Result<(), CliError> {
    log_begin();
    let mut config = context.config()?.agent;
    config.node = args.node.or(config.node);
    if !args.control.is_empty() {
        config.control = args.control;
    }
    agent_run(&context.run_dir_make()?, config).map_err(CliError::of)
}

/// Logs to standard error from now on.
fn log_begin() {
    let filter = EnvFilter::try_from_env(LOG_ENV).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // That it cannot write would be told where it cannot write, and end the daemon.
        .log_internal_errors(false);
    // It is set once, here; a second time is a test that does both.
    let _ = subscriber.try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ended_is_told() {
        assert_eq!(down_words(&Down::default(), DownMode::Swap), "nothing ran");
        let down = Down {
            agent: Some(1),
            processes: vec!["a/p".into()],
            killed: vec![7],
            purged: true,
            ..Down::default()
        };
        assert_eq!(
            down_words(&down, DownMode::Swap),
            "swapped out  a/p\nended  agent, process 1\nkilled  process 7\n\
             purged  the run directory"
        );
    }
}
