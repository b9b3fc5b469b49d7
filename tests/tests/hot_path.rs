//! What waiting and passing messages cost the system: no system calls hot, no time idle.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

#[path = "../../benches/src/hot.rs"]
#[allow(dead_code)]
mod hot;

/// What the test, started again under strace, is to do: `channel` or `invoke`, and how often.
const WORK: &str = "PRAAS_HOT_WORK";
const COUNT: u64 = 20_000;

/// The work of the test below, in an OS process of its own; does nothing when run as a test.
#[test]
fn hot_work() {
    let Ok(work) = std::env::var(WORK) else {
        return;
    };
    let (what, count) = work.split_once(' ').expect("what and how often");
    let count = count.parse().expect("a number");
    match what {
        "channel" => hot::ChannelPair::new(8).round_trips(count),
        _ => hot::InvokePair::new(8).round_trips(count),
    }
}

/// System calls by name of the work, or why they cannot be counted.
fn calls(what: &str, count: u64) -> Result<BTreeMap<String, u64>, String> {
    let own = std::env::current_exe().expect("this program has a file");
    let table = tempfile::NamedTempFile::new().expect("a temporary file");
    let done = Command::new("strace")
        .args(["-c", "-f", "-o"])
        .arg(table.path())
        .arg(own)
        .args(["--exact", "hot_work", "--nocapture"])
        .env(WORK, format!("{what} {count}"))
        .stdout(Stdio::null())
        .output()
        .map_err(|error| format!("strace cannot be started: {error}"))?;
    let text = std::fs::read_to_string(table.path()).unwrap_or_default();
    let forbidden = String::from_utf8_lossy(&done.stderr);
    if forbidden.contains("ptrace") || forbidden.contains("PTRACE") {
        return Err(format!("strace may not trace: {}", forbidden.trim()));
    }
    assert!(done.status.success(), "{what} failed: {forbidden}");
    // % time, seconds, usecs/call, calls, [errors,] name
    let rows = text.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let count = columns.get(3)?.parse().ok()?;
        Some(((*columns.last()?).to_owned(), count))
    });
    Ok(rows.filter(|(name, _)| name != "total").collect())
}

/// How many more system calls ten times the messages take, the fewest of a few tries: whoever
/// waits for a processor that somebody else has looks at its descriptors now and then.
fn growth(what: &str, named: impl Fn(&str) -> bool) -> Result<u64, String> {
    let sum = |calls: &BTreeMap<String, u64>| -> u64 {
        let named = calls.iter().filter(|(name, _)| named(name));
        named.map(|(_, count)| count).sum()
    };
    let mut least = u64::MAX;
    for _ in 0..3 {
        let (few, many) = (calls(what, COUNT)?, calls(what, 10 * COUNT)?);
        println!(
            "{what}: {COUNT} round trips {few:?}; {} {many:?}",
            10 * COUNT
        );
        least = least.min(sum(&many).saturating_sub(sum(&few)));
        if least < COUNT / 100 {
            break;
        }
    }
    Ok(least)
}

#[test]
fn hot_messages_make_no_system_calls() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("SKIP counting system calls: with one CPU nobody spins");
        return;
    }
    // Descriptors are looked at every 2048 rounds, which is a call in some hundred messages.
    let channel = growth("channel", |_| true);
    let channel = match channel {
        Ok(channel) => channel,
        Err(reason) => {
            println!("SKIP counting system calls: {reason}");
            return;
        }
    };
    assert!(channel < COUNT / 100, "{channel} calls for 360000 messages");
    let moves = |name: &str| {
        let moving = ["read", "write", "send", "recv"];
        moving.iter().any(|call| name.contains(call))
    };
    let invoke = growth("invoke", moves).expect("strace worked just now");
    assert!(
        invoke < COUNT / 100,
        "{invoke} reads and writes for 180000 invocations"
    );
}

#[test]
fn a_warm_idle_process_takes_no_time() {
    let mut pair = hot::InvokePair::warm(8);
    pair.round_trips(100);
    let cpu = || {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    };
    let (cpu_before, before) = (cpu(), Instant::now());
    let idle = Duration::from_secs(4);
    // Nobody wakes this thread.
    while before.elapsed() < idle {
        std::thread::park_timeout(idle - before.elapsed());
    }
    let (used, passed) = (cpu() - cpu_before, before.elapsed());
    let share = used.as_secs_f64() / passed.as_secs_f64();
    println!(
        "a warm idle process used {used:?} in {passed:?}: {:.4} %",
        share * 100.0
    );
    assert!(share < 0.001, "{used:?} of CPU time in {passed:?}");
}
