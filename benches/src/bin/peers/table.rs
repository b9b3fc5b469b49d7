//! One table, for people or for programs.

use std::fmt::Write as _;

use serde_json::json;

use crate::figures::{Figure, Regime, Row, Shown};
use crate::plan::{Measure, Subject, Transport};

const COLUMNS: &str =
    "figure [least, most]            x floor [least, most]       x best peer           pairs";

/// The table for people.
pub fn text(heading: &[(&'static str, String)], rows: &[Row]) -> String {
    let mut out = String::new();
    for (name, value) in heading {
        line(&mut out, format_args!("{name:<9}{value}"));
    }
    let mut part = None;
    for row in rows {
        let of = (row.transport, row.measure, row.regime);
        if part != Some(of) {
            part = Some(of);
            line(&mut out, format_args!("\n{}", title(of, rows)));
            line(&mut out, format_args!("  {:<13}{COLUMNS}", "subject"));
        }
        line(&mut out, format_args!("  {}", row_text(row)));
    }
    out.push_str("\nversions\n");
    let mut told: Vec<Subject> = Vec::new();
    for row in rows {
        if !told.contains(&row.subject) && !row.version.is_empty() {
            told.push(row.subject);
            line(
                &mut out,
                format_args!("  {:<13}{}", row.subject, row.version),
            );
        }
    }
    out.push_str(
        "\nFigures are medians over the runs, with the least and the most of them; so are the times \
         of the floor,\nwhich is measured right beside (1.00: as fast as the least possible; lower \
         is better), and of the best\npeer, both taken in floors.",
    );
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Text grows; that cannot fail.
    let _ = writeln!(out, "{}", text.to_string().trim_end());
}

fn title(of: (Transport, Measure, Regime), rows: &[Row]) -> String {
    let (transport, measure, regime) = of;
    let what = match measure {
        Measure::Latency => "8 B latency, half a round trip".into(),
        Measure::Rate => "8 B message rate".into(),
        Measure::Bandwidth(bytes) if bytes >= 1 << 20 => format!("{} MiB bandwidth", bytes >> 20),
        Measure::Bandwidth(bytes) => format!("{} KiB bandwidth", bytes >> 10),
    };
    let part = rows
        .iter()
        .filter(|row| (row.transport, row.measure, row.regime) == of);
    let floors = part.filter_map(|row| row.shown.as_ref().map(|shown| shown.floor_ns));
    let floor = crate::figures::median(floors.collect());
    let floor = floor.map_or(String::new(), |ns| {
        format!(" (floor: {})", figure_text(measure, ns))
    });
    let regime = match regime {
        Regime::Any => "",
        Regime::Near => ", CPUs near each other",
        Regime::Far => ", CPUs far from each other",
    };
    format!("{transport}, {what}{regime}{floor}")
}

fn row_text(row: &Row) -> String {
    let mut text = format!("{:<13}", row.subject.name());
    if let Some(shown) = &row.shown {
        text += &shown_text(row.measure, shown);
    }
    if let Some(why) = &row.failure {
        let _ = write!(text, "  FAILED: {why}");
    }
    if let Some(note) = &row.note {
        let _ = write!(text, "  ({note})");
    }
    text
}

fn shown_text(measure: Measure, shown: &Shown) -> String {
    let Figure {
        median,
        least,
        most,
    } = shown.subject_ns;
    // The shortest time is the highest bandwidth.
    let ends = match measure {
        Measure::Latency => [least, most],
        _ => [most, least],
    };
    let ends = ends.map(|ns| value_text(measure, ns).0);
    let figure = format!(
        "{} [{}, {}]",
        figure_text(measure, median),
        ends[0],
        ends[1]
    );
    let Figure {
        median,
        least,
        most,
    } = shown.ratio;
    let ratio = format!("{median:.2} [{least:.2}, {most:.2}]");
    let best = match shown.best {
        Some((ratio, peer)) => format!("{ratio:.2} {peer}"),
        None => "-".into(),
    };
    let mut pairs = shown.pairs.to_string();
    if shown.unsteady > 0 {
        let _ = write!(pairs, ", {} unsteady", shown.unsteady);
    }
    format!("{figure:<30}  {ratio:<26}  {best:<20}  {pairs}")
}

/// A time as what the measure is about: a number and its unit.
fn value_text(measure: Measure, ns: f64) -> (String, &'static str) {
    match measure {
        Measure::Latency if ns < 1e3 => (format!("{ns:.0}"), "ns"),
        Measure::Latency => (format!("{:.2}", ns / 1e3), "us"),
        Measure::Bandwidth(bytes) => (format!("{:.2}", bytes as f64 / ns), "GB/s"),
        Measure::Rate => (format!("{:.3}", 1e3 / ns), "M/s"),
    }
}

fn figure_text(measure: Measure, ns: f64) -> String {
    let (number, unit) = value_text(measure, ns);
    format!("{number} {unit}")
}

/// One object a line: the heading, then a line of the table each.
pub fn json(heading: &[(&'static str, String)], rows: &[Row]) -> String {
    let heading: serde_json::Map<String, serde_json::Value> = heading
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let mut lines = vec![serde_json::Value::Object(heading).to_string()];
    lines.extend(rows.iter().map(|row| row_json(row).to_string()));
    lines.join("\n")
}

fn row_json(row: &Row) -> serde_json::Value {
    let spread = |figure: Figure| json!([figure.median, figure.least, figure.most]);
    let shown = row.shown.as_ref();
    let best = shown.and_then(|shown| shown.best);
    json!({
        "transport": row.transport.name(),
        "measure": row.measure.name(),
        "bytes": row.measure.bytes(),
        "cpus": match row.regime {
            Regime::Any => None,
            Regime::Near => Some("near"),
            Regime::Far => Some("far"),
        },
        "subject": row.subject.name(),
        "version": row.version,
        "floor_ns": shown.map(|shown| shown.floor_ns),
        "ns": shown.map(|shown| spread(shown.subject_ns)),
        "floor_ratio": shown.map(|shown| spread(shown.ratio)),
        "best_peer": best.map(|(_, peer)| peer.name()),
        "best_peer_ratio": best.map(|(ratio, _)| ratio),
        "pairs": shown.map_or(0, |shown| shown.pairs),
        "unsteady": shown.map_or(0, |shown| shown.unsteady),
        "runs": shown.map_or(0, |shown| shown.runs),
        "failure": row.failure,
        "note": row.note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Results;
    use crate::parse::Pair;

    fn results() -> Results {
        let mut results = Results::default();
        let large = Measure::Bandwidth(64 << 10);
        let pair = |floor_ns, subject_ns| {
            [Pair {
                floor_ns,
                subject_ns,
            }]
        };
        results.add(
            (Transport::Tcp, large, Subject::Praas),
            0,
            &pair(8192.0, 16384.0),
            0,
        );
        results.add(
            (Transport::Tcp, large, Subject::Ucx),
            0,
            &pair(8192.0, 32768.0),
            2,
        );
        results.fail((Transport::Tcp, large, Subject::Mpich), "no row of figures");
        results.version(Subject::Ucx, "1.22.0");
        results
    }

    #[test]
    fn a_table_for_people() {
        let text = text(&[("kernel", "6".into())], &results().rows());
        let line = |start: &str| {
            let found = text
                .lines()
                .find(|line| line.trim_start().starts_with(start));
            found.unwrap_or_else(|| panic!("no {start} in {text}"))
        };
        assert!(line("tcp, 64 KiB bandwidth").contains("floor: 8.00 GB/s"));
        assert!(line("praas").contains("4.00 GB/s [4.00, 4.00]"));
        assert!(line("praas").contains("2.00 [2.00, 2.00]") && line("praas").contains("0.50 ucx"));
        assert!(line("ucx").contains("2 unsteady"));
        assert!(line("mpich").contains("FAILED: no row of figures"));
        assert!(text.contains("ucx          1.22.0"));
    }

    #[test]
    fn a_table_for_programs() {
        let text = json(&[("kernel", "6".into())], &results().rows());
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0]["kernel"], "6");
        assert_eq!(lines[1]["best_peer_ratio"], 0.5);
        assert_eq!(lines[3]["failure"], "no row of figures");
        assert!(lines[3]["ns"].is_null());
    }
}
