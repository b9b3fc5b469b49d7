//! What an idle connection costs: opens many between two processes over each transport and counts
//! the memory of both sides and of the kernel, before and after many messages, and after all is
//! closed again.
//!
//! ```text
//!   cargo run --release -p praas-benches --bin connections
//!
//!   this process                                another (this program again)
//!   an endpoint, N channels   <------------->   an endpoint that listens, N channels, echoes
//!
//!   one, to warm up | N open | messages on each | ten times as many | ... | large ones | N closed
//!                   ^        ^                  ^                   ^     ^            ^
//!                   what /proc says of both processes and of the kernel
//! ```
//!
//! Over `mem`, which does not leave a process, both endpoints are in this one. The kernel's own
//! memory is that of the whole machine: nothing else should happen on it meanwhile.
//!
//! | file | what |
//! |---|---|
//! | `ends.rs` | both endpoints and what they do |
//! | `memory.rs` | what /proc says |

mod ends;
mod memory;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use praas_transport::TransportKind;
use serde_json::json;

use crate::ends::{Client, Server};
use crate::memory::Snapshot;

/// Measures what an idle connection costs, by transport.
#[derive(Debug, Parser)]
#[command(name = "connections")]
struct Options {
    /// Transports to measure.
    #[arg(
        long,
        value_name = "KIND,...",
        value_delimiter = ',',
        default_value = "mem,shm,unix,tcp"
    )]
    transport: Vec<TransportKind>,
    /// Connections to open.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Messages of 8 bytes that each connection carries both ways in the end; counted after a
    /// hundredth, a tenth and all of them.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=100_000_000))]
    messages: u32,
    /// Messages of `--large-bytes` that each connection carries both ways; counted after the first
    /// and after all.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    large: u32,
    /// Bytes of a large message.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    large_bytes: u32,
    /// Connections to open and close one after the other in the end.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    churn: u32,
    /// Seconds that any step may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=36_000))]
    timeout_s: u32,
    /// Print one JSON object a line instead of tables.
    #[arg(long)]
    json: bool,
    /// Be the other process, over this transport.
    #[arg(long, value_name = "KIND", hide = true)]
    serve: Option<TransportKind>,
}

/// What is open while a snapshot is taken.
struct Report<'a> {
    options: &'a Options,
    transport: TransportKind,
    before: Snapshot,
}

impl Report<'_> {
    fn heading(&self) {
        if !self.options.json {
            println!(
                "\n{}, {} connections: bytes per connection, both sides",
                self.transport, self.options.connections
            );
            println!(
                "  {:<34}{:>12}{:>12}{:>12}{:>12}{:>12}{:>14}{:>12}",
                "", "processes", "page tables", "kernel", "sockets", "all", "descriptors", "maps"
            );
        }
    }

    fn line(&self, state: &str, now: &Snapshot) {
        let count = f64::from(self.options.connections);
        let each = |now: u64, before: u64| (now as f64 - before as f64) / count;
        let before = &self.before;
        let processes = each(now.processes_bytes, before.processes_bytes);
        let tables = each(now.page_tables_bytes, before.page_tables_bytes);
        let kernel = each(now.kernel_bytes, before.kernel_bytes);
        let sockets = each(now.sockets_bytes, before.sockets_bytes);
        let all = processes + tables + kernel + sockets;
        let sides = |now: &[u64], before: &[u64]| -> Vec<f64> {
            let pairs = now.iter().zip(before);
            pairs.map(|(now, before)| each(*now, *before)).collect()
        };
        let descriptors = sides(&now.descriptors, &before.descriptors);
        let maps = sides(&now.maps, &before.maps);
        if self.options.json {
            let record = json!({
                "transport": self.transport.name(),
                "connections": self.options.connections,
                "state": state,
                "processes_bytes": processes,
                "page_tables_bytes": tables,
                "kernel_bytes": kernel,
                "sockets_bytes": sockets,
                "all_bytes": all,
                "descriptors": descriptors,
                "maps": maps,
            });
            println!("{record}");
            return;
        }
        let text = |sides: &[f64]| {
            let texts: Vec<String> = sides.iter().map(|side| format!("{side:.2}")).collect();
            texts.join(" ")
        };
        println!(
            "  {state:<34}{processes:>12.0}{tables:>12.0}{kernel:>12.0}{sockets:>12.0}{all:>12.0}{:>14}{:>12}",
            text(&descriptors),
            text(&maps)
        );
    }
}

fn transport_measure(options: &Options, transport: TransportKind) -> Result<(), String> {
    let patience = Duration::from_secs(options.timeout_s.into());
    let server = Server::start(transport, options.connections)?;
    let pids = server.pids();
    let mut client = Client::new(server, options.connections, patience)?;
    // What the first one needs, and finds in place again, is no connection's.
    client.open(1)?;
    client.exchange(10)?;
    client.large(options.large_bytes as usize, options.large.min(1))?;
    client.close_all()?;
    let settle = |client: &mut Client| memory::settle(&pids, || client.round());
    let report = Report {
        options,
        transport,
        before: settle(&mut client)?,
    };
    report.heading();
    client.open(options.connections)?;
    report.line("idle, never used", &settle(&mut client)?);
    let mut sent = 0;
    for part in [100, 10, 1] {
        let messages = options.messages / part;
        client.exchange(messages - sent)?;
        sent = messages;
        let state = format!("after {messages} messages each way");
        report.line(&state, &settle(&mut client)?);
    }
    let mut sent = 0;
    for messages in [options.large.min(1), options.large] {
        if messages > sent {
            client.large(options.large_bytes as usize, messages - sent)?;
            sent = messages;
            let state = format!("after {messages} of {} KiB", options.large_bytes >> 10);
            report.line(&state, &settle(&mut client)?);
        }
    }
    client.close_all()?;
    report.line("all closed", &settle(&mut client)?);
    for _ in 0..options.churn {
        client.open(1)?;
        client.close_all()?;
    }
    let state = format!("after {} opened and closed", options.churn);
    report.line(&state, &settle(&mut client)?);
    Ok(())
}

fn run(options: &Options) -> Result<(), String> {
    if let Some(transport) = options.serve {
        return ends::serve(transport, options.connections);
    }
    memory::descriptors_allow(options.connections)?;
    for &transport in &options.transport {
        transport_measure(options, transport).map_err(|why| format!("{transport}: {why}"))?;
    }
    if !options.json {
        println!(
            "\nprocesses: Pss of both without files, so that shared pages count once. kernel: objects of the slab \
             allocator but\nfor file systems, of the whole machine. sockets: buffers of TCP, \
             likewise. descriptors, maps: of this side\nand the other."
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("connections: {error}");
            ExitCode::FAILURE
        }
    }
}
