//! Both sides of a hot ping-pong on one thread, for counting instructions:
//!
//! ```text
//!   cargo build --release -p praas-benches
//!   valgrind --tool=callgrind target/release/hot-path channel 1000      (and 11000: the difference)
//!   perf record -e cpu-clock target/release/hot-path local 10000000
//!   valgrind --tool=callgrind target/release/hot-path verbs 1000        (where there is a device)
//! ```
//!
//! (Older valgrinds need `RUSTFLAGS=--cfg=rustix_use_libc` for the build.)
//! Nothing is timed here. Processors that wait for one another make times that say little about a
//! program; how many instructions a message takes says where the time that is ours goes.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use praas_benches::hot::{ChannelPair, InvokePair};
use praas_transport::Listen;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let count = arguments.get(2).and_then(|count| count.parse().ok());
    let bytes = arguments.get(3).and_then(|bytes| bytes.parse().ok());
    let (count, bytes) = (count.unwrap_or(1000), bytes.unwrap_or(8));
    match arguments.get(1).map(String::as_str) {
        Some("channel") => ChannelPair::new(bytes).round_trips(count),
        Some("verbs") => {
            let anywhere = Listen::Verbs((Ipv4Addr::UNSPECIFIED, 0).into());
            ChannelPair::at(&anywhere, bytes).round_trips(count);
        }
        Some("invoke") => InvokePair::new(bytes).round_trips(count),
        Some("local") => InvokePair::new(bytes).local_calls(count),
        _ => {
            eprintln!("usage: hot-path channel|verbs|invoke|local [COUNT] [BYTES]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
