//! What the demonstration found, for scripts and for people.

use std::fmt;

use praas_transport::TransportKind;
use serde::Serialize;

use crate::bench::{Record, What};

/// What the demonstration found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Demo {
    /// The sum of the squared distances between the points and their centres.
    pub inertia: f64,
    /// How often all points were assigned, the last time without any change.
    pub iterations: u64,
    /// Points by cluster.
    pub sizes: Vec<u64>,
    /// The transport between client and processes.
    pub transport: TransportKind,
    /// A worker was swapped out meanwhile and came back by being invoked.
    pub swapped: bool,
    /// Half round trips for floor and channel, round trips for invoke.
    pub latency: Vec<Record>,
}

impl fmt::Display for Demo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let points: u64 = self.sizes.iter().sum();
        let (count, transport) = (self.sizes.len(), self.transport);
        let sizes: Vec<String> = self.sizes.iter().map(ToString::to_string).collect();
        writeln!(f, "K-Means of {points} handwritten digits over {transport}")?;
        writeln!(f, "  {count} clusters of  {}", sizes.join(", "))?;
        writeln!(f, "  iterations      {}", self.iterations)?;
        write!(f, "  inertia         {}", self.inertia)?;
        if self.swapped {
            write!(
                f,
                "\n  a worker        was swapped out, and came back by being invoked"
            )?;
        }
        match self.latency.is_empty() {
            true => Ok(()),
            false => write!(f, "\n\n{}", Table(&self.latency)),
        }
    }
}

/// Latencies: a line for what over which transport, two columns a size.
struct Table<'a>(&'a [Record]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sizes: Vec<usize> = self.0.iter().map(|record| record.bytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        write!(f, "{:<14}", "Latency")?;
        for &bytes in &sizes {
            write!(f, "{:>20}", size_shown(bytes))?;
        }
        write!(f, "\n{:<14}", "")?;
        for _ in &sizes {
            write!(f, "{:>10}{:>10}", "median", "p99")?;
        }
        for transport in TransportKind::ALL {
            for what in What::ALL {
                let of = |record: &&Record| (record.transport, record.what) == (transport, what);
                let row: Vec<&Record> = self.0.iter().filter(of).collect();
                if row.is_empty() {
                    continue;
                }
                write!(f, "\n{:<14}", format!("{transport} {what}"))?;
                for &bytes in &sizes {
                    match row.iter().find(|record| record.bytes == bytes) {
                        Some(record) => {
                            let (median, p99) = (record.p50_ns, record.p99_ns);
                            write!(f, "{:>10}{:>10}", time_shown(median), time_shown(p99))?;
                        }
                        None => write!(f, "{:>20}", "-")?,
                    }
                }
            }
        }
        write!(
            f,
            "\nfloor: the least a program can do; channel: a message; both half round trips.\n\
             invoke: a no-op invocation and its result. `praas bench latency` has more."
        )
    }
}

fn size_shown(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => {
            format!("{} MiB", bytes >> 20)
        }
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => {
            format!("{} KiB", bytes >> 10)
        }
        bytes => format!("{bytes} B"),
    }
}

fn time_shown(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.2} µs", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn demo() -> Demo {
        let record = |what, bytes, p50_ns| Record {
            p50_ns,
            p99_ns: p50_ns * 2.0,
            ..Record::new(Bench::Latency, what, TransportKind::Shm, bytes)
        };
        Demo {
            inertia: 1_167_859.384_006_598_5,
            iterations: 14,
            sizes: vec![1000, 797],
            transport: TransportKind::Shm,
            swapped: true,
            latency: vec![
                record(What::Floor, 8, 60.0),
                record(What::Floor, 1 << 20, 1.5e6),
                record(What::Invoke, 8, 1234.0),
            ],
        }
    }

    #[test]
    fn scripts_get_what_was_promised() {
        let json = serde_json::to_value(demo()).unwrap();
        assert_eq!(json["inertia"], 1_167_859.384_006_598_5);
        assert_eq!(json["iterations"], 14);
        assert_eq!(json["sizes"][1], 797);
        assert_eq!(json["transport"], "shm");
        assert_eq!(json["swapped"], true);
        assert_eq!(json["latency"][0]["what"], "floor");
        assert!(json["latency"][0]["floor_ratio"].is_null());
        assert_eq!(json.as_object().unwrap().len(), 6);
    }

    #[test]
    fn people_get_a_table() {
        let text = demo().to_string();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let row = |begin: &[&str]| rows.iter().find(|row| row.starts_with(begin)).unwrap();
        assert!(text.starts_with("K-Means of 1797 handwritten digits over shm\n"));
        assert_eq!(row(&["inertia"])[1..], ["1167859.3840065985"]);
        assert_eq!(row(&["Latency"])[1..], ["8", "B", "1", "MiB"]);
        let floor = ["60", "ns", "120", "ns", "1.50", "ms", "3.00", "ms"];
        assert_eq!(row(&["shm", "floor"])[2..], floor);
        let invoke = ["1.23", "µs", "2.47", "µs", "-"];
        assert_eq!(row(&["shm", "invoke"])[2..], invoke);
    }
}
