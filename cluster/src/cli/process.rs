//! Processes: create, swap, stop, delete, and see what there is.

use clap::{Args, Subcommand};
use praas_control::api::{Process, ProcessStats, TransferSpec};
use praas_runtime::process::FUNCTIONS;
use serde_json::json;

use super::call::client_for;
use super::error::CliError;
use super::output::{size_shown, time_shown};
use super::{Context, call};

#[derive(Debug, Subcommand)]
pub enum ProcessCommand {
    /// Create a process and wait until it is ready
    Create(NameArgs),
    /// List the processes of an application
    List {
        /// The application
        application: String,
    },
    /// Show one process
    Show(NameArgs),
    /// Show what the processes of an application count: work, memory, time
    Stats {
        /// The application
        application: String,
    },
    /// Name the functions of a process
    Functions(NameArgs),
    /// Swap a process out: its state goes to storage, its resources are freed
    Swap(NameArgs),
    /// Swap a process in, or start it again after a failure
    SwapIn(NameArgs),
    /// Take a checkpoint of a process, which serves on: what it comes back from after a failure
    Checkpoint(NameArgs),
    /// Stop a process: it finishes what runs and ends; its state is not kept
    Stop(NameArgs),
    /// Stop a process, delete its swap images and forget it
    Delete(NameArgs),
    /// Move a process to another node while it serves
    Transfer(TransferArgs),
}

#[derive(Debug, Args)]
pub struct TransferArgs {
    #[command(flatten)]
    name: NameArgs,
    /// The node to move it to [default: the one with the fewest processes for its processors]
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
}

#[derive(Debug, Args)]
pub struct NameArgs {
    /// The application
    application: String,
    /// The process
    process: String,
    /// Milliseconds to wait until it is done; 0 does not wait [default: setting client.wait_ms]
    #[arg(long, value_name = "MS")]
    wait_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub struct SwapArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Swap it in instead
    #[arg(long = "in")]
    inwards: bool,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Only of these applications
    applications: Vec<String>,
}

pub fn process(context: &Context, command: ProcessCommand) -> Result<(), CliError> {
    match command {
        ProcessCommand::Create(name) => act(context, &name, Verb::Create),
        ProcessCommand::Swap(name) => act(context, &name, Verb::Swap),
        ProcessCommand::SwapIn(name) => act(context, &name, Verb::SwapIn),
        ProcessCommand::Stop(name) => act(context, &name, Verb::Stop),
        ProcessCommand::Checkpoint(name) => checkpoint(context, &name),
        ProcessCommand::Stats { application } => {
            stats(context, &context.control(None)?.process_list(&application)?)
        }
        ProcessCommand::Transfer(args) => transfer(context, &args),
        ProcessCommand::List { application } => {
            list(context, &context.control(None)?.process_list(&application)?)
        }
        ProcessCommand::Show(name) => {
            let control = context.control(name.wait_ms)?;
            list(
                context,
                &[control.process_show(&name.application, &name.process)?],
            )
        }
        ProcessCommand::Functions(name) => functions(context, &name),
        ProcessCommand::Delete(name) => {
            let working = context.output.working("deleting");
            let control = context.control(name.wait_ms)?;
            control.process_delete(&name.application, &name.process)?;
            drop(working);
            let shown = format!("{}/{}", name.application, name.process);
            let answer = json!({"deleted": shown});
            context
                .output
                .answer(&answer, || format!("deleted  {shown}"))
        }
    }
}

pub fn swap(context: &Context, args: &SwapArgs) -> Result<(), CliError> {
    let verb = match args.inwards {
        true => Verb::SwapIn,
        false => Verb::Swap,
    };
    act(context, &args.name, verb)
}

pub fn ps(context: &Context, args: &PsArgs) -> Result<(), CliError> {
    let control = context.control(None)?;
    let names = match args.applications.is_empty() {
        false => args.applications.clone(),
        true => {
            let applications = control.application_list()?;
            applications
                .into_iter()
                .map(|application| application.name)
                .collect()
        }
    };
    let mut processes = Vec::new();
    for name in names {
        processes.extend(control.process_list(&name)?);
    }
    list(context, &processes)
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Create,
    Swap,
    SwapIn,
    Stop,
}

fn act(context: &Context, name: &NameArgs, verb: Verb) -> Result<(), CliError> {
    let control = context.control(name.wait_ms)?;
    let (application, process) = (&name.application, &name.process);
    let doing = match verb {
        Verb::Create => "starting",
        Verb::Swap => "swapping out",
        Verb::SwapIn => "swapping in",
        Verb::Stop => "stopping",
    };
    let working = context
        .output
        .working(&format!("{doing} {application}/{process}"));
    let done = match verb {
        Verb::Create => control.process_create(application, process),
        Verb::Swap => control.process_swap(application, process),
        Verb::SwapIn => control.process_swap_in(application, process),
        Verb::Stop => control.process_stop(application, process),
    };
    drop(working);
    let done = done?;
    context.output.answer(&done, || {
        format!("{}  {}/{}", done.state, done.application, done.name)
    })
}

fn checkpoint(context: &Context, name: &NameArgs) -> Result<(), CliError> {
    let control = context.control(name.wait_ms)?;
    let (application, process) = (&name.application, &name.process);
    let working = context
        .output
        .working(&format!("taking a checkpoint of {application}/{process}"));
    let done = control.process_checkpoint(application, process);
    drop(working);
    let done = done?;
    context.output.answer(&done, || match &done.checkpoint {
        Some(taken) => format!(
            "generation {}  {}/{}  {} in {} ms",
            taken.generation,
            done.application,
            done.name,
            size_shown(taken.bytes),
            taken.took_ms
        ),
        None => format!("on its way  {}/{}", done.application, done.name),
    })
}

fn stats(context: &Context, processes: &[Process]) -> Result<(), CliError> {
    let header = [
        "PROCESS",
        "STATE",
        "CALLS",
        "RUN",
        "WAIT",
        "QUEUE",
        "STATE SIZE",
        "RESIDENT",
        "MESSAGES",
        "WORK S",
        "SPIN S",
        "ASLEEP S",
        "IDLE S",
        "RESTARTS",
        "CHECKPOINT",
    ];
    context.output.list(processes, &header, stats_row)
}

fn stats_row(process: &Process) -> Vec<String> {
    let number = |of: fn(&ProcessStats) -> u64| {
        let stats = process.stats.as_ref();
        stats.map_or_else(String::new, |stats| of(stats).to_string())
    };
    let size = |of: fn(&ProcessStats) -> u64| {
        let stats = process.stats.as_ref();
        stats.map_or_else(String::new, |stats| size_shown(of(stats)))
    };
    let seconds = |ns: fn(&ProcessStats) -> u64| {
        let stats = process.stats.as_ref();
        stats.map_or_else(String::new, |stats| {
            format!("{:.3}", ns(stats) as f64 / 1e9)
        })
    };
    let idle = process.idle_ms.map(|ms| format!("{:.1}", ms as f64 / 1e3));
    let checkpoint = process.checkpoint.map(|taken| taken.generation.to_string());
    vec![
        process.name.clone(),
        process.state.to_string(),
        number(|stats| stats.invocations),
        number(|stats| stats.running),
        number(|stats| stats.blocked),
        number(|stats| stats.queued),
        size(|stats| stats.state_bytes),
        size(|stats| stats.resident_bytes),
        number(|stats| stats.messages),
        seconds(|stats| stats.work_ns),
        seconds(|stats| stats.spin_ns),
        seconds(|stats| stats.asleep_ns),
        idle.unwrap_or_default(),
        process.restarts.to_string(),
        checkpoint.unwrap_or_default(),
    ]
}

fn transfer(context: &Context, args: &TransferArgs) -> Result<(), CliError> {
    let control = context.control(args.name.wait_ms)?;
    let (application, process) = (&args.name.application, &args.name.process);
    let to = args.to.as_deref().unwrap_or("another node");
    let working = context
        .output
        .working(&format!("moving {application}/{process} to {to}"));
    let spec = TransferSpec {
        to: args.to.clone(),
    };
    let done = control.process_transfer(application, process, &spec);
    drop(working);
    let done = done?;
    context.output.answer(&done, || {
        let node = done.node.as_deref().unwrap_or("?");
        format!("{}  {application}/{process} on {node}", done.state)
    })
}

fn functions(context: &Context, name: &NameArgs) -> Result<(), CliError> {
    let mut client = client_for(context, &name.application, None)?;
    let names: Vec<String> = call::typed(
        &mut client,
        &name.process,
        FUNCTIONS,
        &[],
        call::deadline(context, name.wait_ms)?,
    )?;
    match context.output.json {
        true => names
            .iter()
            .try_for_each(|name| context.output.object(&json!({"name": name}))),
        false => names.iter().try_for_each(|name| context.output.line(name)),
    }
}

fn list(context: &Context, processes: &[Process]) -> Result<(), CliError> {
    let header = [
        "APPLICATION",
        "PROCESS",
        "STATE",
        "NODE",
        "PID",
        "INCARNATION",
        "SWAPS",
        "TRANSPORTS",
        "ERROR",
    ];
    context.output.list(processes, &header, row)
}

fn row(process: &Process) -> Vec<String> {
    // A state that nobody vouches for just now is the last that is known.
    let state = match process.confirmed {
        true => process.state.to_string(),
        false => format!("{}?", process.state),
    };
    let transports: Vec<&str> = process.addresses.iter().map(|a| a.kind().name()).collect();
    vec![
        process.application.clone(),
        process.name.clone(),
        state,
        process.node.clone().unwrap_or_default(),
        process.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        process.incarnation.to_string(),
        process.swap_generation.to_string(),
        transports.join(","),
        note(process),
    ]
}

/// What is wrong with a process, and what else is to be known of it.
fn note(process: &Process) -> String {
    let mut notes: Vec<String> = process.error.iter().cloned().collect();
    if let Some(restored) = process.restored.as_ref().filter(|image| image.checkpoint) {
        let when = match restored.written_unix_ms {
            0 => String::new(),
            at => format!(" of {}", time_shown(at)),
        };
        let generation = restored.generation;
        notes.push(format!(
            "came back from checkpoint {generation}{when}: what came after it is lost"
        ));
    }
    if let Some(error) = &process.checkpoint_error {
        notes.push(format!("no checkpoint: {error}"));
    }
    if let Some(ms) = process.restart_in_ms {
        notes.push(format!("may start again in {ms} ms"));
    }
    notes.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use praas_control::api::{ProcessState, Restored};

    #[test]
    fn a_state_that_nobody_vouches_for_is_marked() {
        let process = Process {
            application: "a".into(),
            name: "p".into(),
            incarnation: 3,
            state: ProcessState::Ready,
            confirmed: false,
            node: Some("n".into()),
            pid: Some(7),
            addresses: vec!["tcp:127.0.0.1:9".parse().unwrap()],
            swap_generation: 1,
            error: None,
            stats: None,
            idle_ms: None,
            restored: None,
            checkpoint: None,
            checkpoint_error: None,
            restarts: 0,
            restart_in_ms: None,
        };
        assert_eq!(
            row(&process),
            ["a", "p", "ready?", "n", "7", "3", "1", "tcp", ""]
        );
        let restored = Process {
            restored: Some(Restored {
                generation: 1,
                checkpoint: true,
                written_unix_ms: 951_827_696_000,
            }),
            checkpoint_error: Some("full".into()),
            ..process
        };
        assert_eq!(
            note(&restored),
            "came back from checkpoint 1 of 2000-02-29 12:34:56Z: what came after it is lost; \
             no checkpoint: full"
        );
    }
}
