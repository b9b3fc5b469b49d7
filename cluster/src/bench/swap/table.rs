//! Results for people.

use super::Record;

/// What the columns are.
pub(super) fn head() -> String {
    format!(
        "{:<6}{:<8}{:<5}{:>7}  {:<4}{:>11}{:>9}{:>11}{:>9}{:>8}  {:<13}{:>11}  least to most\n",
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

/// One line of figures.
pub(super) fn row(record: &Record) -> String {
    let spread = format!("{:.2} to {:.2}", record.ratio_min, record.ratio_max);
    format!(
        "{:<6}{:<8}{:<5}{:>7.1}  {:<4}{:>11.2}{:>9.0}{:>11.2}{:>9.0}{:>8.2}  {spread:<13}{:>11.1}  {:.1} to {:.1}\n",
        record.storage,
        record.data,
        record.compression,
        mib(record.bytes as u64),
        record.part,
        record.p50_ms,
        record.mb_per_s,
        record.plain_p50_ms,
        record.plain_mb_per_s,
        record.ratio,
        mib(record.stored_bytes),
        record.min_ms,
        record.max_ms,
    )
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}
