//! `praas logs`: what the control plane, the agent or a process wrote.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::Context;
use super::error::CliError;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of a line that are shown.
const LINE_MAX_BYTES: u64 = 64 << 10;

#[derive(Debug, Args)]
#[command(override_usage = "praas logs [OPTIONS] control|agent\n       \
                            praas logs [OPTIONS] APP PROCESS")]
pub struct LogsArgs {
    /// `control`, `agent`, or an application
    #[arg(value_name = "control|agent|APP")]
    of: String,
    /// The process
    process: Option<String>,
    /// Go on as more is written
    #[arg(long, short)]
    follow: bool,
    /// Only the last lines; 0 is all
    #[arg(long, short = 'n', value_name = "LINES", default_value_t = 0)]
    lines: usize,
    /// Print it as it is, also on a terminal
    #[arg(long)]
    raw: bool,
}

pub fn logs(context: &Context, args: &LogsArgs) -> Result<(), CliError> {
    let run_dir = context.run_dir()?;
    let path = match (&args.process, args.of.as_str()) {
        (Some(process), application) => run_dir.host_log(application, process),
        (None, "control" | "agent") => run_dir.log(&args.of),
        (None, application) => {
            let text = format!("{application:?} has no log of its own");
            return Err(CliError::usage(text).hint(
                "`praas logs APP PROCESS` shows a process's, `praas logs agent` the agent's",
            ));
        }
    };
    let failed = |error: io::Error| {
        let text = format!("cannot read {}", path.display());
        let missing = error.kind() == io::ErrorKind::NotFound;
        let error = CliError::new(text, error);
        match missing {
            true => error.hint("nothing was written there yet; `praas ps` shows what there is"),
            false => error,
        }
    };
    let file = File::open(&path).map_err(failed)?;
    let mut reader = BufReader::new(file);
    let mut last = VecDeque::new();
    while let Some(line) = line_next(&mut reader).map_err(failed)? {
        if args.lines == 0 {
            print(context, &line, args.raw)?;
            continue;
        }
        if last.len() == args.lines {
            last.pop_front();
        }
        last.push_back(line);
    }
    last.iter()
        .try_for_each(|line| print(context, line, args.raw))?;
    if !args.follow {
        return Ok(());
    }
    loop {
        match line_next(&mut reader).map_err(failed)? {
            Some(line) => print(context, &line, args.raw)?,
            None => {
                std::thread::park_timeout(LOOK);
                rotated(&mut reader, &path).map_err(failed)?;
            }
        }
    }
}

/// Begins anew if the file was cut short.
fn rotated(reader: &mut BufReader<File>, path: &Path) -> io::Result<()> {
    let length = std::fs::metadata(path)?.len();
    if reader.stream_position()? > length {
        reader.seek(SeekFrom::Start(0))?;
    }
    Ok(())
}

/// The next line, or the piece of one that was written so far.
fn line_next(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(LINE_MAX_BYTES).read_until(b'\n', &mut line)?;
    Ok((!line.is_empty()).then_some(line))
}

fn print(context: &Context, line: &[u8], raw: bool) -> Result<(), CliError> {
    if context.output.json {
        let text = String::from_utf8_lossy(line);
        return context
            .output
            .object(&json!({"line": text.trim_end_matches('\n')}));
    }
    context.output.foreign_line(line, raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_one_by_one() {
        let mut reader = io::Cursor::new(b"a\nbc".to_vec());
        assert_eq!(line_next(&mut reader).unwrap().unwrap(), b"a\n");
        assert_eq!(line_next(&mut reader).unwrap().unwrap(), b"bc");
        assert_eq!(line_next(&mut reader).unwrap(), None);
    }
}
