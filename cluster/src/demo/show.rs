//! How far it is: a bar on a terminal, lines elsewhere, nothing for scripts.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows progress on standard error.
#[derive(Debug)]
pub(super) enum Show {
    /// Not at all.
    Quiet,
    /// Line by line.
    Lines,
    /// As a bar.
    Bar(ProgressBar),
}

impl Show {
    pub(super) fn new(quiet: bool) -> Self {
        match quiet {
            true => Self::Quiet,
            false if io::stderr().is_terminal() => Self::Bar(ProgressBar::hidden()),
            false => Self::Lines,
        }
    }

    /// Something begins, which has so many parts if that is known.
    pub(super) fn begin(&mut self, what: &str, parts: Option<u64>) {
        match self {
            Self::Quiet => {}
            Self::Lines => eprintln!("{what}"),
            Self::Bar(bar) => {
                bar.finish_and_clear();
                let template = match parts {
                    Some(_) => "{spinner} {prefix} [{bar:30}] {pos}/{len} {wide_msg}",
                    None => "{spinner} {prefix} ({elapsed})",
                };
                let style = ProgressStyle::with_template(template);
                let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
                *bar = ProgressBar::new(parts.unwrap_or(0))
                    .with_style(style.progress_chars("=> "))
                    .with_prefix(what.to_owned());
                bar.enable_steady_tick(Duration::from_millis(100));
            }
        }
    }

    /// So many parts are done.
    pub(super) fn step(&self, done: u64, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Lines => eprintln!("  {text}"),
            Self::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(text.to_owned());
            }
        }
    }

    /// Something that should be read later, too.
    pub(super) fn note(&self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Lines => eprintln!("  {text}"),
            Self::Bar(bar) => bar.println(text),
        }
    }

    /// All is done.
    pub(super) fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        self.end();
    }
}
