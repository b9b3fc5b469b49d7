//! What commands print: tables for people, JSON for scripts, bytes for pipes.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::error::CliError;
use crate::launch::Progress;

/// Widest column of a table but the last, in characters.
const COLUMN_MAX: usize = 60;

/// Where and how answers go.
#[derive(Debug)]
pub struct Output {
    /// Answers are JSON.
    pub json: bool,
    /// Standard output is a terminal.
    pub terminal: bool,
    /// Progress can be shown.
    progress: bool,
}

impl Output {
    /// For this process.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stdout().is_terminal(),
            progress: !json && io::stderr().is_terminal(),
        }
    }

    /// Prints one line, or more; on a terminal without what would move its cursor.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        let text = match self.terminal && !self.json {
            true => text_tame(text),
            false => text.into(),
        };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush())
            .map_err(unwritten)
    }

    /// Prints an object as a line of JSON.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn object(&self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value)
            .map_err(|error| CliError::new("cannot print the answer as JSON", error))?;
        self.line(&text)
    }

    /// Prints one answer: as JSON, or in these words.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn answer(
        &self,
        value: &impl Serialize,
        words: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        match self.json {
            true => self.object(value),
            false => self.line(&words()),
        }
    }

    /// Prints a list: as JSON one a line, or as a table.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn list<T: Serialize>(
        &self,
        values: &[T],
        header: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), CliError> {
        if self.json {
            return values.iter().try_for_each(|value| self.object(value));
        }
        let rows: Vec<Vec<String>> = values.iter().map(row).collect();
        self.line(table(header, &rows).trim_end())
    }

    /// Prints bytes: as they are for pipes and if `raw`, so that people can read them on a
    /// terminal.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn bytes(&self, bytes: &[u8], raw: bool) -> Result<(), CliError> {
        let exact = raw || !self.terminal;
        let shown = match exact {
            true => bytes.to_vec(),
            false => bytes_shown(bytes).into_bytes(),
        };
        let mut out = io::stdout().lock();
        out.write_all(&shown)
            .and_then(|()| out.flush())
            .map_err(unwritten)
    }

    /// Prints a line that somebody else has written: as it is for pipes and if `raw`, without what
    /// would move the cursor on a terminal.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn foreign_line(&self, line: &[u8], raw: bool) -> Result<(), CliError> {
        if raw || !self.terminal {
            return self.bytes(line, true);
        }
        self.bytes(text_tame(&String::from_utf8_lossy(line)).as_bytes(), true)
    }

    /// Something that takes long: shown after a while, on a terminal, until it is dropped.
    pub fn working(&self, text: &str) -> Working {
        let bar = match self.progress {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(text.to_owned());
        // What is quicker than this needs no progress.
        bar.enable_steady_tick(Duration::from_millis(250));
        Working(bar)
    }
}

/// See [`Output::working`].
#[derive(Debug)]
pub struct Working(ProgressBar);

impl Working {
    /// Says what goes on now, from anywhere.
    pub fn progress(&self) -> Progress {
        let bar = self.0.clone();
        Progress::new(move |text| bar.set_message(text.to_owned()))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The answer could not be written.
pub fn unwritten(error: io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::unread(),
        _ => CliError::new("cannot print the answer", error),
    }
}

/// A table with aligned columns.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = header.iter().map(ToString::to_string).collect();
    let all: Vec<Vec<String>> = std::iter::once(&head)
        .chain(rows)
        .map(|row| row.iter().map(|cell| cell_shown(cell)).collect())
        .collect();
    let width = |column: usize| {
        let cells = all.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max();
        widest.unwrap_or(0).min(COLUMN_MAX)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let last = row.len().saturating_sub(1);
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths.get(column).copied().unwrap_or(0);
            match column == last {
                true => line += cell,
                false => line += &format!("{cell:width$}  "),
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// A cell in one line, without what would move the cursor.
fn cell_shown(cell: &str) -> String {
    if cell.is_empty() {
        return "-".into();
    }
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    cell.chars().map(plain).collect()
}

/// Text of any number of lines in which what would move the cursor is spelt out.
pub fn text_tame(text: &str) -> Cow<'_, str> {
    let wild = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(wild) {
        return text.into();
    }
    let mut tame = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match wild(c) {
            true => tame.extend(c.escape_default()),
            false => tame.push(c),
        }
    }
    tame.into()
}

/// Bytes for a terminal: text as it is, all else by its beginning in hexadecimal.
fn bytes_shown(bytes: &[u8]) -> String {
    let quiet = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match std::str::from_utf8(bytes) {
        Ok("") => String::new(),
        Ok(text) if !text.replace("\r\n", "\n").contains(quiet) => match text.ends_with('\n') {
            true => text.into(),
            false => format!("{text}\n"),
        },
        _ => {
            let mut text = String::new();
            for (at, line) in bytes.chunks(16).take(16).enumerate() {
                let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
                text += &format!("{:08x}  {}\n", at * 16, digits.join(" "));
            }
            if bytes.len() > 256 {
                text += "...\n";
            }
            text + &format!("({} bytes; --raw prints them as they are)\n", bytes.len())
        }
    }
}

/// A number of bytes as people write it.
pub fn size_shown(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    match unit {
        "B" => format!("{bytes} B"),
        unit => format!("{value:.1} {unit}"),
    }
}

/// A time since the Unix epoch as people write it, in UTC.
pub fn time_shown(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days from civil, by Howard Hinnant: years begin in March, eras have 400 years.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 {
        month_shifted + 3
    } else {
        month_shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_tame() {
        let rows = [
            vec!["a".into(), "ready".into(), "x".into()],
            vec![
                "größer".into(),
                String::new(),
                "two\nlines\u{1b}[31m".into(),
            ],
        ];
        assert_eq!(
            table(&["NAME", "STATE", "ERROR"], &rows),
            "NAME    STATE  ERROR\n\
             a       ready  x\n\
             größer  -      two lines [31m\n"
        );
        assert_eq!(table(&["A", "B"], &[]), "A  B\n");
    }

    #[test]
    fn bytes_are_text_or_digits() {
        assert_eq!(bytes_shown(b"hi"), "hi\n");
        assert_eq!(bytes_shown(b"hi\n"), "hi\n");
        assert_eq!(bytes_shown(b""), "");
        let shown = bytes_shown(&[0x1b, b'[']);
        assert!(shown.starts_with("00000000  1b 5b\n"), "{shown}");
        assert!(bytes_shown(&[255; 300]).contains("300 bytes"));
        assert_eq!(bytes_shown(b"a\r\nb"), "a\r\nb\n");
        // It would hide what stands before it.
        assert!(bytes_shown(b"evil\rgood").starts_with("00000000  65"));
    }

    #[test]
    fn what_would_move_the_cursor_is_spelt_out() {
        assert_eq!(text_tame("größer\n\tb"), "größer\n\tb");
        let wild = "\u{1b}]0;title\u{7}\u{9b}2J\rgone\n";
        let tame = "\\u{1b}]0;title\\u{7}\\u{9b}2J\\rgone\n";
        assert_eq!(text_tame(wild), tame);
    }

    #[test]
    fn sizes_and_times_are_readable() {
        assert_eq!(size_shown(0), "0 B");
        assert_eq!(size_shown(1023), "1023 B");
        assert_eq!(size_shown(1536), "1.5 KiB");
        assert_eq!(size_shown(3 << 30), "3.0 GiB");
        assert_eq!(time_shown(0), "1970-01-01 00:00:00Z");
        assert_eq!(time_shown(951_827_696_000), "2000-02-29 12:34:56Z");
        assert_eq!(time_shown(1_764_070_000_000), "2025-11-25 11:26:40Z");
    }
}
