//! Figures by size, drawn: a line for each transport, and its floor dashed beside it.
//!
//! ```text
//!   figure |        ___----  shm
//!   (log)  |   __--- - - - - shm floor
//!          |_--__________________
//!            8  64  512  4K   size (log)
//! ```

use std::fmt::Write as _;

use praas_transport::TransportKind;

use super::{Bench, Record, What};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
/// Colours that are told apart by who sees few of them, too.
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

/// A logarithmic scale.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let share = (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln());
        self.from + share * (self.to - self.from)
    }
}

/// One line of the plot.
struct Curve {
    transport: TransportKind,
    what: What,
    points: Vec<(f64, f64)>,
}

/// What is drawn of a record.
fn figure(bench: Bench, record: &Record) -> Option<f64> {
    match bench {
        Bench::Bandwidth | Bench::Bibw => record.mb_per_s,
        Bench::Rate => Some(record.per_s / 1e6),
        _ => Some(record.p50_ns / 1e3),
    }
}

fn unit(bench: Bench) -> &'static str {
    match bench {
        Bench::Latency => "us (messages: half a round trip; invocations: a round trip)",
        Bench::Bandwidth | Bench::Bibw => "MB/s",
        Bench::Rate => "million messages/s",
        _ => "us",
    }
}

/// Draws records.
pub(super) fn draw(title: &str, bench: Bench, records: &[Record]) -> String {
    let curves = curves(bench, records);
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let span = |value: fn(&(f64, f64)) -> f64| {
        let low = points().map(value).fold(f64::INFINITY, f64::min);
        let high = points().map(value).fold(0.0, f64::max);
        // A single point is in the middle.
        match low < high {
            true => (low, high),
            false => (low / 2.0, high * 2.0),
        }
    };
    let (sizes, figures) = (span(|point| point.0), span(|point| point.1));
    let x = Scale {
        low: sizes.0,
        high: sizes.1,
        from: LEFT,
        to: WIDTH - RIGHT,
    };
    let y = Scale {
        low: 10_f64.powf(figures.0.log10().floor()),
        high: 10_f64.powf(figures.1.log10().ceil()).max(figures.0 * 10.0),
        from: HEIGHT - BOTTOM,
        to: TOP,
    };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut out, (LEFT, 20.0), "start", title);
    text(&mut out, (LEFT, 38.0), "start", unit(bench));
    axes(&mut out, &x, &y, records);
    for (at, curve) in curves.iter().enumerate() {
        curve_draw(&mut out, &x, &y, curve, at);
    }
    out + "</svg>\n"
}

fn curves(bench: Bench, records: &[Record]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for record in records {
        let Some(value) = figure(bench, record).filter(|value| *value > 0.0) else {
            continue;
        };
        let point = (record.bytes as f64, value);
        let of =
            |curve: &&mut Curve| (curve.transport, curve.what) == (record.transport, record.what);
        match curves.iter_mut().find(of) {
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve {
                transport: record.transport,
                what: record.what,
                points: vec![point],
            }),
        }
    }
    for curve in &mut curves {
        curve.points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    }
    curves
}

/// Writes a text; what XML reads otherwise is written as XML wants it.
fn text(out: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let (x, y) = at;
    // A string takes all that is written to it.
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn axes(out: &mut String, x: &Scale, y: &Scale, records: &[Record]) {
    let mut decade = y.low;
    while decade <= y.high * 1.001 {
        let at = y.at(decade);
        line(out, (x.from, at), (x.to, at), "#dddddd");
        text(out, (x.from - 8.0, at + 4.0), "end", &format!("{decade}"));
        decade *= 10.0;
    }
    let mut sizes: Vec<usize> = records.iter().map(|record| record.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    // As many labels as there is room for.
    let every = sizes.len().div_ceil(12).max(1);
    for (number, &bytes) in sizes.iter().enumerate() {
        let at = x.at(bytes as f64);
        line(out, (at, y.from), (at, y.from + 5.0), "black");
        if number % every == 0 {
            text(out, (at, y.from + 20.0), "middle", &size_text(bytes));
        }
    }
    line(out, (x.from, y.from), (x.to, y.from), "black");
    line(out, (x.from, y.from), (x.from, y.to), "black");
    let middle = (x.from + x.to) / 2.0;
    text(out, (middle, y.from + 42.0), "middle", "bytes");
}

fn curve_draw(out: &mut String, x: &Scale, y: &Scale, curve: &Curve, at: usize) {
    let place = TransportKind::ALL
        .iter()
        .position(|kind| *kind == curve.transport);
    let colour = COLOURS[place.unwrap_or(0) % COLOURS.len()];
    let dashes = match curve.what {
        What::Floor => "6 4",
        What::Channel => "none",
        What::Invoke => "2 2",
        What::Batch => "8 2",
    };
    let points: Vec<String> = curve
        .points
        .iter()
        .map(|(size, value)| format!("{:.1},{:.1}", x.at(*size), y.at(*value)))
        .collect();
    let _ = writeln!(
        out,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
         stroke-dasharray=\"{dashes}\" points=\"{}\"/>",
        points.join(" ")
    );
    for point in &points {
        let (cx, cy) = point.split_once(',').unwrap_or_default();
        let _ = writeln!(
            out,
            "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"2.5\" fill=\"{colour}\"/>"
        );
    }
    let (left, top) = (WIDTH - RIGHT + 20.0, TOP + 20.0 * at as f64);
    let _ = writeln!(
        out,
        "<line x1=\"{left}\" y1=\"{top}\" x2=\"{}\" y2=\"{top}\" stroke=\"{colour}\" \
         stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>",
        left + 30.0
    );
    let name = format!("{} {}", curve.transport, curve.what);
    text(out, (left + 38.0, top + 4.0), "start", &name);
}

/// A size in a unit that fits.
fn size_text(bytes: usize) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size_text(8), "8");
        assert_eq!(size_text(64 << 10), "64K");
        assert_eq!(size_text(1500), "1500");
        assert_eq!(size_text(4 << 20), "4M");
    }

    #[test]
    fn scales_are_logarithmic() {
        let scale = Scale {
            low: 1.0,
            high: 100.0,
            from: 0.0,
            to: 200.0,
        };
        assert!((scale.at(10.0) - 100.0).abs() < 1e-9);
        assert!((scale.at(100.0) - 200.0).abs() < 1e-9);
    }

    #[test]
    fn words_are_written_as_xml_wants_them() {
        let mut out = String::new();
        text(&mut out, (0.0, 0.0), "start", "a < b & c");
        assert!(out.contains(">a &lt; b &amp; c</text>"), "{out}");
    }
}
