//! The `praas` command.
//!
//! ```text
//!   demo                                   a cluster of its own, for a show
//!   up down                                launch
//!   app process ps node token ticket       control plane, over HTTP
//!   invoke put get state                   processes, over the data plane
//!   logs info config bench                 this node
//!   control agent host                     what `up` starts, in the foreground
//! ```
//!
//! Answers go to standard output: tables for people, with `--json` one object a line for scripts.
//! Errors go to standard error. The exit code is 0 if it was done, 1 if it failed, 2 if it cannot
//! be done because of how it was asked for.

mod app;
mod call;
mod demo;
mod error;
mod logs;
mod node;
mod output;
mod peer;
mod probe;
mod process;
mod service;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use praas_control::ControlClient;

use self::error::{CliError, report};
use self::output::Output;
use crate::bench::{self, BenchCommand, BenchError, MODULE_PEER_COMMAND, PEER_COMMAND};
use crate::config::{ClusterConfig, Loaded};
use crate::demo::DemoOptions;
use crate::run_dir::{RUN_DIR_ENV, RunDir};
use crate::session::Session;

/// Cloud processes: stateful functions that talk to one another, on your cluster.
#[derive(Debug, Parser)]
#[command(
    name = "praas",
    version,
    max_term_width = 100,
    subcommand_required = true
)]
#[command(after_help = "\
Try it:
  praas demo                                      watch it all work
  praas up                                        start a control plane and an agent here
  praas app create demo --module ./libdemo.so     deploy functions
  praas process create demo p                     allocate a process
  praas invoke demo p hello --data world          call a function
  praas down                                      swap everything out and end it")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct Global {
    /// Directory of everything that runs here [default: $XDG_RUNTIME_DIR/praas or /tmp/praas-UID]
    #[arg(long, global = true, env = RUN_DIR_ENV, value_name = "DIR", hide_env_values = true)]
    run_dir: Option<PathBuf>,
    /// Answer with JSON: one object, or one a line
    #[arg(long, global = true)]
    json: bool,
    /// Change a setting, above file and environment; `praas config` shows all
    #[arg(
        long = "set",
        global = true,
        value_name = "KEY=VALUE",
        hide_short_help = true
    )]
    settings: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Cluster handwritten digits as cloud processes on a cluster of its own, from nothing to nothing
    Demo(DemoOptions),
    /// Start a control plane and an agent here, if they do not run
    Up(service::UpArgs),
    /// Swap all processes out and end everything here
    Down(service::DownArgs),
    /// Deploy and delete applications
    #[command(subcommand)]
    App(app::AppCommand),
    /// Create, swap, stop and delete processes
    #[command(subcommand)]
    Process(process::ProcessCommand),
    /// Call a function of a process
    Invoke(call::InvokeArgs),
    /// Put a message into a process's mailbox
    Put(call::PutArgs),
    /// Take a message out of a process's mailbox
    Get(call::GetArgs),
    /// Read and write state objects of a process
    #[command(subcommand)]
    State(call::StateCommand),
    /// Swap a process out, or in
    Swap(process::SwapArgs),
    /// Show the processes of all applications
    Ps(process::PsArgs),
    /// Show what the control plane, the agent or a process wrote
    Logs(logs::LogsArgs),
    /// Show what there is on this node: transports, processors, versions
    Info {
        /// Which of a peer's addresses would be used, and why not the others: ADDRESS,... or
        /// APP/PROCESS
        #[arg(long, value_name = "PEER")]
        peer: Option<String>,
    },
    /// Show every setting, its value and where it is from
    Config(node::ConfigArgs),
    /// Measure what messages and invocations cost here
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Start nothing on a node any more, and move its processes to others
    Drain(node::DrainArgs),
    /// List nodes, and declare dead ones dead
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Issue and revoke tokens of the control plane
    #[command(subcommand)]
    Token(app::TokenCommand),
    /// Trade the token for a ticket of the data plane
    Ticket(app::TicketArgs),
    /// Run a control plane in the foreground
    Control,
    /// Run a node agent in the foreground
    Agent(service::AgentArgs),
}

/// Runs the `praas` command with the arguments of this process.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // For agents, not for people; it starts many times a second.
    if arguments.get(1).is_some_and(|command| command == "host") {
        return crate::host::host_main();
    }
    if arguments
        .get(1)
        .is_some_and(|command| command == PEER_COMMAND)
    {
        return bench::peer_main();
    }
    if arguments
        .get(1)
        .is_some_and(|command| command == MODULE_PEER_COMMAND)
    {
        return bench::module_peer_main();
    }
    let matches = match Cli::command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return usage(&arguments, &error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&arguments, &error),
    };
    let output = Output::new(cli.global.json);
    match run(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error, output.json),
    }
}

/// Help, the version, or what is wrong with the arguments.
fn usage(arguments: &[OsString], error: &clap::Error) -> ExitCode {
    let json = arguments.iter().any(|argument| argument == "--json");
    if json && error.use_stderr() {
        let text = error.render().to_string();
        let (what, usage) = text.trim().split_once("\n\n").unwrap_or((text.trim(), ""));
        let what = what.strip_prefix("error: ").unwrap_or(what);
        let error = CliError::usage(what);
        let error = match usage.is_empty() {
            true => error,
            false => error.hint(usage),
        };
        return report(&error, true);
    }
    // Nobody is left to tell if it cannot be printed.
    let _ = error.print();
    match error.use_stderr() {
        true => ExitCode::from(error::USAGE),
        false => ExitCode::SUCCESS,
    }
}

fn run(cli: Cli, output: &Output) -> Result<(), CliError> {
    let context = Context {
        global: cli.global,
        output,
    };
    match cli.command {
        Command::Demo(options) => demo::demo(&context, options),
        Command::Up(args) => service::up(&context, &args),
        Command::Down(args) => service::down(&context, &args),
        Command::App(command) => app::application(&context, command),
        Command::Process(command) => process::process(&context, command),
        Command::Invoke(args) => call::invoke(&context, &args),
        Command::Put(args) => call::put(&context, &args),
        Command::Get(args) => call::get(&context, &args),
        Command::State(command) => call::state(&context, command),
        Command::Swap(args) => process::swap(&context, &args),
        Command::Ps(args) => process::ps(&context, &args),
        Command::Logs(args) => logs::logs(&context, &args),
        Command::Info { peer: None } => node::info(&context),
        Command::Info { peer: Some(peer) } => peer::peer(&context, &peer),
        Command::Config(args) => node::config(&context, &args),
        Command::Bench(command) => bench_run(&context, command),
        Command::Drain(args) => node::drain(&context, &args),
        Command::Node(command) => node::node(&context, command),
        Command::Token(command) => app::token(&context, command),
        Command::Ticket(args) => app::ticket(&context, &args),
        Command::Control => service::control(&context),
        Command::Agent(args) => service::agent(&context, args),
    }
}

fn bench_run(context: &Context, command: BenchCommand) -> Result<(), CliError> {
    let transport = context.config()?.client.transport;
    let done = command.run(context.output.json, transport);
    done.map_err(|error| match error {
        BenchError::Output(error) => output::unwritten(error),
        error if error.is_usage() => CliError::usage(error.to_string()),
        error => CliError::new("cannot measure", error),
    })
}

/// What every command works with.
struct Context<'a> {
    global: Global,
    output: &'a Output,
}

impl Context<'_> {
    fn run_dir_path(&self) -> PathBuf {
        let set = self.global.run_dir.clone();
        set.filter(|path| !path.as_os_str().is_empty())
            .unwrap_or_else(RunDir::default_path)
    }

    /// The run directory, which must be there.
    fn run_dir(&self) -> Result<RunDir, CliError> {
        let path = self.run_dir_path();
        RunDir::open(&path).map_err(|error| {
            let text = format!("cannot use the run directory {}", path.display());
            match error.kind() {
                std::io::ErrorKind::NotFound => CliError::new(text, error)
                    .hint("`praas up` makes it; --run-dir or PRAAS_RUN_DIR name another"),
                _ => CliError::new(text, error),
            }
        })
    }

    /// The run directory, which is made if it is missing.
    fn run_dir_make(&self) -> Result<RunDir, CliError> {
        let path = self.run_dir_path();
        RunDir::create(&path).map_err(|error| {
            let text = format!("cannot use the run directory {}", path.display());
            CliError::new(text, error).hint("--run-dir or PRAAS_RUN_DIR name another")
        })
    }

    fn loaded(&self) -> Result<Loaded, CliError> {
        let root = self.run_dir_path();
        let root = root.canonicalize().unwrap_or(root);
        let file = root.join("praas.toml");
        Loaded::new(Some(&file), std::env::vars_os(), &self.global.settings).map_err(CliError::bad)
    }

    fn config(&self) -> Result<ClusterConfig, CliError> {
        Ok(self.loaded()?.config)
    }

    fn session(&self) -> Result<Session, CliError> {
        Ok(Session::open(&self.run_dir()?)?)
    }

    /// The control plane, which may take as long as is said here or in the settings.
    fn control(&self, wait_ms: Option<u64>) -> Result<ControlClient, CliError> {
        let wait_ms = match wait_ms {
            Some(wait_ms) => wait_ms,
            None => self.config()?.client.wait_ms,
        };
        let session = self.session()?;
        Ok(session.control.with_wait(Duration::from_millis(wait_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_go_anywhere() {
        for line in [
            "praas --json --run-dir /d ps",
            "praas ps --run-dir /d --json",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.global.json, "{line}");
            assert_eq!(cli.global.run_dir, Some("/d".into()), "{line}");
        }
    }

    #[test]
    fn bad_arguments_are_usage_errors() {
        for line in [
            "praas",
            "praas nothing",
            "praas invoke a",
            "praas swap a p --out",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(error::USAGE), "{line}");
        }
        let help = Cli::try_parse_from(["praas", "--help"]).unwrap_err();
        assert_eq!(help.exit_code(), 0);
    }
}
