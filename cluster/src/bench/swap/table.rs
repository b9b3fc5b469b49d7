//! Results as they come: lines of a table for people, or of JSON.

use serde::Serialize;

use super::Record;
use crate::bench::{BenchError, output, reduction};

/// A line of a table, which has a head.
pub(super) trait Row: Serialize {
    /// What the columns are.
    fn head() -> String;

    /// The figures.
    fn row(&self) -> String;
}

/// Where results go.
pub(super) struct Sink {
    json: bool,
    /// The head that was told last.
    head: String,
}

impl Sink {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            head: String::new(),
        }
    }

    pub(super) fn put<R: Row>(&mut self, record: &R) -> Result<(), BenchError> {
        if self.json {
            return output::text_write(&reduction::lines(&[record])?);
        }
        if self.head != R::head() {
            self.head = R::head();
            output::text_write(&self.head)?;
        }
        output::text_write(&record.row())
    }
}

impl Row for Record {
    fn head() -> String {
        format!(
            "{:<6}{:<8}{:<5}{:>8}  {:<4}{:>11}{:>8}{:>11}{:>8}{:>7}  {:<13}{:>11}  least to most\n",
            "place",
            "data",
            "comp",
            "MiB",
            "part",
            "ms",
            "MB/s",
            "plain ms",
            "MB/s",
            "ratio",
            "",
            "MiB stored"
        )
    }

    fn row(&self) -> String {
        let spread = format!("{:.2} to {:.2}", self.ratio_min, self.ratio_max);
        format!(
            "{:<6}{:<8}{:<5}{:>8.1}  {:<4}{:>11.2}{:>8.0}{:>11.2}{:>8.0}{:>7.2}  {spread:<13}{:>11.1}  {:.1} to {:.1}\n",
            self.storage,
            self.data,
            self.compression,
            mib(self.bytes as u64),
            self.part,
            self.p50_ms,
            self.mb_per_s,
            self.plain_p50_ms,
            self.plain_mb_per_s,
            self.ratio,
            mib(self.stored_bytes),
            self.min_ms,
            self.max_ms,
        )
    }
}

pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}
