//! What became of each promise on each backend, as files in a directory, and the table of them.
//!
//! Tests run in many processes, so each writes a file of its own, `BACKEND.PROMISE`, whose first
//! line is the outcome and whose second the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::path::Path;

use super::Backend;

/// What became of a promise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It was kept.
    Held,
    /// The backend does not offer what it is about: why.
    NotOffered(String),
    /// The backend cannot be had here: why.
    Skipped(String),
    /// It was broken: the test failed.
    Broken,
}

impl Outcome {
    fn cell(&self) -> &'static str {
        match self {
            Self::Held => "ok",
            Self::NotOffered(_) => "no",
            Self::Skipped(_) => "skip",
            Self::Broken => "BROKEN",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::NotOffered(reason) | Self::Skipped(reason) => Some(reason),
            Self::Held | Self::Broken => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (cell, reason) = text.split_once('\n')?;
        Some(match cell {
            "ok" => Self::Held,
            "no" => Self::NotOffered(reason.trim_end().into()),
            "skip" => Self::Skipped(reason.trim_end().into()),
            "BROKEN" => Self::Broken,
            _ => return None,
        })
    }
}

/// Records an outcome, if `PRAAS_CONFORMANCE_DIR` names a directory.
///
/// # Panics
/// The directory cannot be written to.
pub fn write(backend: Backend, promise: &str, outcome: &Outcome) {
    let Some(dir) = std::env::var_os("PRAAS_CONFORMANCE_DIR") else {
        return;
    };
    let text = format!("{}\n{}\n", outcome.cell(), outcome.reason().unwrap_or(""));
    let path = Path::new(&dir).join(format!("{}.{promise}", backend.name()));
    std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// The outcomes recorded in a directory, by promise and backend.
#[derive(Debug, Default)]
pub struct Matrix {
    outcomes: BTreeMap<(String, String), Outcome>,
}

impl Matrix {
    /// Reads a directory of records.
    ///
    /// # Errors
    /// It cannot be read, or a file in it is no record.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let mut matrix = Self::default();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let outcome = Outcome::parse(&std::fs::read_to_string(entry.path())?);
            match (name.split_once('.'), outcome) {
                (Some((backend, promise)), Some(outcome)) => {
                    let at = (promise.to_owned(), backend.to_owned());
                    matrix.outcomes.insert(at, outcome);
                }
                _ => return Err(io::Error::other(format!("{name} is no record"))),
            }
        }
        Ok(matrix)
    }

    /// Whether nothing was recorded, or something was broken.
    pub fn failed(&self) -> bool {
        self.outcomes.is_empty() || self.outcomes.values().any(|o| *o == Outcome::Broken)
    }

    /// The table of promises and backends, and below it the reasons for what is not `ok`.
    pub fn table(&self) -> String {
        let rows: BTreeSet<&str> = self.outcomes.keys().map(|(row, _)| &**row).collect();
        let columns: BTreeSet<&str> = self.outcomes.keys().map(|(_, column)| &**column).collect();
        let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        let wide = rows.iter().map(|row| row.len()).max().unwrap_or(0).max(7);
        let mut out = format!("{:wide$}", "promise");
        for column in &columns {
            out += &format!("  {column:>10}");
        }
        out.push('\n');
        for row in rows {
            // Writing to a string cannot fail.
            let _ = write!(out, "{:wide$}", row);
            for column in &columns {
                let outcome = self.outcomes.get(&(row.to_owned(), (*column).to_owned()));
                let cell = outcome.map_or("-", Outcome::cell);
                let _ = write!(out, "  {cell:>10}");
                if let Some(reason) = outcome.and_then(Outcome::reason) {
                    reasons.entry((row, reason)).or_default().push(column);
                }
            }
            out.push('\n');
        }
        for ((row, reason), columns) in reasons {
            let _ = writeln!(out, "{row}, {}: {reason}", columns.join(", "));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_every_promise_and_reason() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mem.order"), "ok\n\n").unwrap();
        std::fs::write(dir.path().join("tcp.order"), "skip\nno loopback\n").unwrap();
        std::fs::write(dir.path().join("tcp.size"), "BROKEN\n\n").unwrap();
        let matrix = Matrix::read(dir.path()).unwrap();
        assert!(matrix.failed());
        let expected = "promise         mem         tcp\n\
                        order            ok        skip\n\
                        size              -      BROKEN\n\
                        order, tcp: no loopback\n";
        assert_eq!(matrix.table(), expected);
    }
}
