//! Both sides of a hot ping-pong on one thread, for counting instructions:
//!
//! ```text
//!   cargo build --release -p praas-benches
//!   valgrind --tool=callgrind --toggle-collect='*round_trips*' target/release/hot-path channel 1000
//! ```
//!
//! Nothing is timed here. Processors that wait for one another make times that say little about a
//! program; how many instructions a message takes says where the time that is ours goes.

use std::process::ExitCode;

use praas_benches::hot::{ChannelPair, InvokePair};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let count = arguments.get(2).and_then(|count| count.parse().ok());
    let bytes = arguments.get(3).and_then(|bytes| bytes.parse().ok());
    let (count, bytes) = (count.unwrap_or(1000), bytes.unwrap_or(8));
    match arguments.get(1).map(String::as_str) {
        Some("channel") => {
            let mut pair = ChannelPair::new(bytes);
            pair.round_trips(100);
            channel_round_trips(&mut pair, count);
        }
        Some("invoke") => {
            let mut pair = InvokePair::new(bytes);
            pair.round_trips(100);
            invoke_round_trips(&mut pair, count);
        }
        _ => {
            eprintln!("usage: hot-path channel|invoke [COUNT] [BYTES]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

#[inline(never)]
fn channel_round_trips(pair: &mut ChannelPair, count: u64) {
    pair.round_trips(count);
}

#[inline(never)]
fn invoke_round_trips(pair: &mut InvokePair, count: u64) {
    pair.round_trips(count);
}
