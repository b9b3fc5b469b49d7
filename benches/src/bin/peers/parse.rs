//! What programs print, taken strictly: several of them end well without having measured.

use serde_json::Value;

use crate::plan::{Measure, Transport};

/// Nanoseconds of the floor and of the subject beside it: of half a round trip, or of one message
/// of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    pub floor_ns: f64,
    pub subject_ns: f64,
}

/// A positive number, or what is wrong.
fn number(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(format!("'{text}' is no figure")),
    }
}

/// What a program of `pair.c` says: its version, if it has one, and the pairs of each measure.
///
/// # Errors
/// A line is missing or wrong, or the closing one is not there.
pub fn pairs(
    output: &str,
    measures: &[Measure],
    each: usize,
) -> Result<(Option<String>, Vec<Vec<Pair>>), String> {
    let mut found: Vec<Vec<Pair>> = measures.iter().map(|_| Vec::new()).collect();
    let (mut version, mut done) = (None, None);
    for line in output.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["version", rest @ ..] => version = Some(rest.join(" ")),
            ["pair", name, bytes, floor, subject] => {
                let is = |m: &Measure| m.name() == *name && m.bytes().to_string() == *bytes;
                let at = measures.iter().position(is);
                let at = at.ok_or_else(|| format!("it measured {name} of {bytes} unasked"))?;
                let (floor_ns, subject_ns) = (number(floor)?, number(subject)?);
                found[at].push(Pair {
                    floor_ns,
                    subject_ns,
                });
            }
            ["done", count] => done = count.parse::<usize>().ok(),
            _ => {}
        }
    }
    let whole = done == Some(each * measures.len()) && found.iter().all(|of| of.len() == each);
    match whole {
        true => Ok((version, found)),
        false => Err(format!("not all pairs are there: {}", excerpt(output))),
    }
}

/// What the floor alone says to one measure.
///
/// # Errors
/// A line is missing or wrong.
pub fn floors(lines: &[String], measure: Measure) -> Result<Vec<f64>, String> {
    let floor = |line: &String| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["pair", name, bytes, floor, _]
                if *name == measure.name() && *bytes == measure.bytes().to_string() =>
            {
                number(floor)
            }
            _ => Err(format!("the floor says '{line}'")),
        }
    };
    lines.iter().map(floor).collect()
}

/// Nanoseconds that ucx_perftest says, as comma-separated values: the median of half a round
/// trip, or of one message of a stream by its overall rate.
///
/// # Errors
/// The row is missing or wrong.
pub fn ucx_perftest(output: &str, measure: Measure) -> Result<f64, String> {
    let column = match measure {
        Measure::Latency => "50.0_percentile_lat",
        _ => "overall_mr",
    };
    let mut lines = output
        .lines()
        .skip_while(|line| !line.starts_with("iterations,"));
    let missing = || format!("no row of figures: {}", excerpt(output));
    let heads = lines.next().ok_or_else(missing)?;
    let at = heads.split(',').position(|head| head == column);
    let at = at.ok_or_else(|| format!("no column {column} in '{heads}'"))?;
    let value = lines
        .next()
        .and_then(|row| row.split(',').nth(at))
        .ok_or_else(missing)?;
    match measure {
        Measure::Latency => Ok(number(value)? * 1e3),
        _ => Ok(1e9 / number(value)?),
    }
}

/// Nanoseconds of half a round trip that fi_pingpong says. They are an average, and taken from its
/// column of megabytes (of a million bytes) per second, which has the most digits.
///
/// # Errors
/// The row is missing or wrong.
pub fn fi_pingpong(output: &str, measure: Measure) -> Result<f64, String> {
    let mut lines = output
        .lines()
        .skip_while(|line| !line.starts_with("bytes "));
    let missing = || format!("no row of figures: {}", excerpt(output));
    let heads = lines.next().ok_or_else(missing)?;
    let at = heads.split_whitespace().position(|head| head == "MB/sec");
    let at = at.ok_or_else(|| format!("no column MB/sec in '{heads}'"))?;
    let row = lines.next().ok_or_else(missing)?;
    let value = row.split_whitespace().nth(at).ok_or_else(missing)?;
    Ok(measure.bytes() as f64 / number(value)? * 1e3)
}

/// Nanoseconds that a program prints as `figure NANOSECONDS`.
///
/// # Errors
/// There is not exactly one.
pub fn figure(output: &str) -> Result<f64, String> {
    let mut figures = output
        .lines()
        .filter_map(|line| line.strip_prefix("figure "));
    match (figures.next(), figures.next()) {
        (Some(value), None) => number(value),
        _ => Err(format!("no figure: {}", excerpt(output))),
    }
}

/// What `praas bench --json` says of its channel and of the floor that it measured by turns; and
/// the commit that it was built from.
///
/// # Errors
/// The record is missing or wrong.
pub fn praas(
    output: &str,
    transport: Transport,
    measure: Measure,
) -> Result<(Pair, String), String> {
    for line in output.lines() {
        let record: Value =
            serde_json::from_str(line).map_err(|error| format!("'{line}' is no JSON: {error}"))?;
        let wanted = record["what"] == "channel"
            && record["transport"] == transport.name()
            && record["bytes"] == measure.bytes();
        if wanted {
            let figure = |key: &str| match record[key].as_f64() {
                Some(value) if value.is_finite() && value > 0.0 => Ok(value),
                _ => Err(format!("{key} is {} in '{line}'", record[key])),
            };
            let (subject_ns, ratio) = (figure("p50_ns")?, figure("floor_ratio")?);
            let pair = Pair {
                floor_ns: subject_ns / ratio,
                subject_ns,
            };
            let commit = record["commit"].as_str().unwrap_or("unknown");
            return Ok((pair, commit.to_owned()));
        }
    }
    Err(format!("no record of the channel: {}", excerpt(output)))
}

/// The end of what a program said, on one line: it tells why.
pub fn excerpt(text: &str) -> String {
    const CHARS: usize = 200;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.chars().count().checked_sub(CHARS) {
        None if line.is_empty() => "it said nothing".into(),
        None | Some(0) => line,
        Some(skip) => format!("…{}", line.chars().skip(skip).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: Measure = Measure::Bandwidth(65536);

    #[test]
    fn pairs_are_all_there_or_an_error() {
        let measures = [Measure::Latency, LARGE];
        let whole = "version MPI 1\nnoise\npair latency 8 60.5 121\npair bandwidth 65536 10 20\n\
                     done 2\n";
        let (version, found) = pairs(whole, &measures, 1).unwrap();
        assert_eq!(version.as_deref(), Some("MPI 1"));
        let pair = |floor_ns, subject_ns| {
            vec![Pair {
                floor_ns,
                subject_ns,
            }]
        };
        assert_eq!(found, [pair(60.5, 121.0), pair(10.0, 20.0)]);
        for broken in [
            whole.replace("done 2", ""),
            whole.replace("done 2", "done 3"),
            whole.replace("pair latency 8 60.5 121\n", ""),
            whole.replace("121", "0"),
            whole.replace("121", "nan"),
            whole.replace("latency 8", "latency 16"),
            String::new(),
        ] {
            assert!(pairs(&broken, &measures, 1).is_err(), "{broken}");
        }
    }

    #[test]
    fn floors_are_of_the_measure_that_was_asked_for() {
        let lines = |text: &str| vec![text.to_owned()];
        assert_eq!(
            floors(&lines("pair rate 8 4.2 0.000"), Measure::Rate),
            Ok(vec![4.2])
        );
        assert!(floors(&lines("pair rate 8 4.2 0.000"), Measure::Latency).is_err());
        assert!(floors(&lines("pair rate 8 x 0"), Measure::Rate).is_err());
    }

    #[test]
    fn rows_of_ucx_perftest() {
        let output = "iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,\
                      overall_mr\n100000,0.095,0.098,0.098,77.55,77.55,10165176,10000000\n";
        assert_eq!(ucx_perftest(output, Measure::Latency), Ok(95.0));
        assert_eq!(ucx_perftest(output, Measure::Rate), Ok(100.0));
        assert_eq!(ucx_perftest(output, LARGE), Ok(100.0));
        // Only the headings, as when the test ended before it measured.
        let heads = output.lines().next().unwrap();
        assert!(ucx_perftest(heads, LARGE).unwrap_err().contains("no row"));
        assert!(ucx_perftest("", LARGE).is_err());
        assert!(ucx_perftest(&output.replace("0.095", "-nan"), Measure::Latency).is_err());
    }

    #[test]
    fn rows_of_fi_pingpong() {
        let output = "bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec\n\
                      64k     2k      =2k      250m        0.23s   1000.00      65.54       0.02\n";
        assert_eq!(fi_pingpong(output, LARGE), Ok(65536.0));
        assert!(fi_pingpong(output.lines().next().unwrap(), LARGE).is_err());
        assert!(fi_pingpong("", LARGE).is_err());
    }

    #[test]
    fn records_of_praas() {
        let output = r#"{"what":"floor","transport":"shm","bytes":8,"p50_ns":60.0,"floor_ratio":null}
{"what":"channel","transport":"shm","bytes":8,"p50_ns":90.0,"floor_ratio":1.5,"commit":"abc"}"#;
        let (pair, commit) = praas(output, Transport::Shm, Measure::Latency).unwrap();
        assert_eq!(commit, "abc");
        assert_eq!((pair.floor_ns, pair.subject_ns), (60.0, 90.0));
        assert!(praas(output, Transport::Tcp, Measure::Latency).is_err());
        assert!(praas(output, Transport::Shm, LARGE).is_err());
        assert!(
            praas(
                &output.replace("1.5", "null"),
                Transport::Shm,
                Measure::Rate
            )
            .is_err()
        );
        assert!(praas("text", Transport::Shm, Measure::Rate).is_err());
    }

    #[test]
    fn figures_stand_alone() {
        assert_eq!(figure("figure 5.5\n"), Ok(5.5));
        assert!(figure("figure 1\nfigure 2\n").is_err() && figure("").is_err());
    }
}
