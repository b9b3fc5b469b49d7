//! How long a process takes from its start to its first answer, by what it begins with.
//!
//! ```text
//!   start: this program again -> storage: manifest, what is needed -> serves | first invocation
//!                                  lazy: nothing large        eager: everything
//! ```

use std::time::Instant;

use praas_runtime::process::ProcessSettings;
use praas_runtime::swap::{SwapConfig, swap_out};
use praas_transport::{TransportConfig, TransportKind};
use serde::Serialize;

use super::content::{Content, PROCESS};
use super::place::Place;
use super::table::{Row, mib};
use super::{ms, spread};
use crate::bench::peer::NOOP;
use crate::bench::reduction::{ProcessBeside, Swapped};
use crate::bench::statistics::median;
use crate::bench::{BenchError, machine::commit};

/// Bytes of an object, of which there are as many as it takes.
const OBJECT_BYTES: usize = 4 << 20;

/// What a process begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// Nothing, and no storage is asked.
    Empty,
    /// What it needs to serve.
    Lazy,
    /// All of its state.
    Eager,
}

impl Beginning {
    const ALL: [Self; 3] = [Self::Empty, Self::Lazy, Self::Eager];

    fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Lazy => "lazy",
            Self::Eager => "eager",
        }
    }

    fn swapped(self, place: &Place) -> Result<Option<Swapped>, BenchError> {
        let lazy_min_bytes = match self {
            Self::Empty => return Ok(None),
            Self::Lazy => ProcessSettings::default().swap_lazy_min_bytes,
            Self::Eager => u64::MAX,
        };
        let url = place.url()?.to_string();
        Ok(Some(Swapped {
            url,
            lazy_min_bytes,
        }))
    }
}

/// One line of results.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    bench: &'static str,
    /// `first-call`.
    part: &'static str,
    storage: &'static str,
    /// What the process begins with: `empty`, `lazy`, `eager`.
    subject: &'static str,
    /// Of state.
    bytes: usize,
    objects: usize,
    runs: usize,
    /// Milliseconds from the start of the program to the first result: the median of runs, the
    /// shortest and the longest.
    p50_ms: f64,
    min_ms: f64,
    max_ms: f64,
    /// Milliseconds more than one that begins empty took in the same run: the median.
    over_empty_ms: Option<f64>,
    commit: &'static str,
}

/// All runs with one state.
pub(super) fn measure(
    runs: u32,
    place: &mut Place,
    data: Content,
    bytes: usize,
    config: &TransportConfig,
) -> Result<Vec<Record>, BenchError> {
    let objects = bytes.div_ceil(OBJECT_BYTES);
    let image = data.image(bytes, objects);
    swap_out(&*place.storage()?, &image, &SwapConfig::default())?;
    drop(image);
    let mut times = [(); 3].map(|()| Vec::new());
    for run in 0..runs as usize {
        for at in 0..Beginning::ALL.len() {
            let at = (at + run) % Beginning::ALL.len();
            let swapped = Beginning::ALL[at].swapped(place)?;
            times[at].push(first_call(swapped, config)?);
        }
    }
    place.clear()?;
    let records = Beginning::ALL.iter().zip(&times).map(|(beginning, taken)| {
        let (p50_ms, min_ms, max_ms) = spread(taken);
        let over = taken.iter().zip(&times[0]).map(|(it, empty)| it - empty);
        let over = (*beginning != Beginning::Empty).then(|| median(&mut over.collect::<Vec<_>>()));
        Record {
            bench: "swap",
            part: "first-call",
            storage: place.kind().name(),
            subject: beginning.name(),
            bytes,
            objects,
            runs: taken.len(),
            p50_ms,
            min_ms,
            max_ms,
            over_empty_ms: over,
            commit: commit(),
        }
    });
    Ok(records.collect())
}

/// Milliseconds until a process has answered that is started for it.
fn first_call(swapped: Option<Swapped>, config: &TransportConfig) -> Result<f64, BenchError> {
    let begun = Instant::now();
    let transport = TransportKind::Unix;
    let mut process = ProcessBeside::start_from(None, transport, None, config, swapped)?;
    let called = process.client().invoke(PROCESS, NOOP, b"");
    called.map_err(|source| BenchError::Invoke {
        function: NOOP,
        source,
    })?;
    Ok(ms(begun.elapsed()))
}

impl Row for Record {
    fn head() -> String {
        format!(
            "\n{:<6}{:<8}{:>9}{:>9}{:>16}{:>15}  least to most\n",
            "place", "state", "MiB", "objects", "first call, ms", "over empty, ms"
        )
    }

    fn row(&self) -> String {
        let over = self
            .over_empty_ms
            .map_or("-".into(), |over| format!("{over:.2}"));
        format!(
            "{:<6}{:<8}{:>9.1}{:>9}{:>16.2}{over:>15}  {:.1} to {:.1}\n",
            self.storage,
            self.subject,
            mib(self.bytes as u64),
            self.objects,
            self.p50_ms,
            self.min_ms,
            self.max_ms,
        )
    }
}
