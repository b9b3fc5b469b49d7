//! Medians and spreads.

use std::collections::BTreeMap;

use crate::parse::Pair;
use crate::plan::{Measure, Subject, Transport};

/// How far apart the floors of shared memory may be before they are taken for two different
/// distances of the two CPUs.
const REGIMES_APART: f64 = 2.0;
/// How far the floors before and after a program may be from each other, as a share.
pub const STEADY_SHARE: f64 = 0.2;
/// Below this share of the bare socket's time, something else than a socket carried the messages.
const SOCKET_SHARE_MIN: f64 = 0.6;

/// The median of values in any order; none of none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => None,
        (len, at) if len % 2 == 1 => Some(values[at]),
        (_, at) => Some((values[at - 1] + values[at]) / 2.0),
    }
}

/// A median over runs with the least and the most of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Figure {
    fn new(values: Vec<f64>) -> Option<Self> {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        median(values).map(|median| Self {
            median,
            least,
            most,
        })
    }
}

/// How far from each other the two CPUs were, as far as the floor tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regime {
    /// The floor has one level only, or none that matters.
    Any,
    /// The lower of two.
    Near,
    /// The upper one.
    Far,
}

/// What a subject has shown in one measure.
#[derive(Debug, Default)]
struct Series {
    /// Pairs of each run.
    runs: BTreeMap<u32, Vec<Pair>>,
    /// Pairs left out, since the floor jumped meanwhile.
    unsteady: usize,
    failures: u32,
    failure: Option<String>,
}

impl Series {
    /// What went wrong, or why nothing is left.
    fn failure(&self, shown: bool) -> Option<String> {
        let some = self.runs.values().any(|pairs| !pairs.is_empty());
        match (&self.failure, shown) {
            (Some(why), true) => Some(format!("failed {} times: {why}", self.failures)),
            (Some(why), false) => Some(why.clone()),
            (None, _) if !some => Some(format!(
                "the floor jumped beside all of {} starts",
                self.unsteady
            )),
            (None, _) => None,
        }
    }
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Results {
    series: BTreeMap<(Transport, Measure, Subject), Series>,
    versions: BTreeMap<Subject, String>,
}

/// A line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    pub transport: Transport,
    pub measure: Measure,
    pub regime: Regime,
    pub subject: Subject,
    pub version: String,
    pub shown: Option<Shown>,
    /// Why there is nothing, or less than there should be.
    pub failure: Option<String>,
    /// What is to be minded.
    pub note: Option<String>,
}

/// The figures of a line.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Nanoseconds of the floor.
    pub floor_ns: f64,
    /// Nanoseconds of the subject.
    pub subject_ns: Figure,
    /// How many times the floor's time.
    pub ratio: Figure,
    /// How many times the time of the best peer, both in floors; and who that is.
    pub best: Option<(f64, Subject)>,
    pub pairs: usize,
    pub unsteady: usize,
    pub runs: usize,
}

impl Results {
    fn series(&mut self, transport: Transport, measure: Measure, subject: Subject) -> &mut Series {
        self.series
            .entry((transport, measure, subject))
            .or_default()
    }

    /// Takes down pairs of a run.
    pub fn add(
        &mut self,
        (transport, measure, subject): (Transport, Measure, Subject),
        run: u32,
        pairs: &[Pair],
        unsteady: usize,
    ) {
        let series = self.series(transport, measure, subject);
        series.runs.entry(run).or_default().extend_from_slice(pairs);
        series.unsteady += unsteady;
    }

    /// Takes down that a subject failed in a run.
    pub fn fail(
        &mut self,
        (transport, measure, subject): (Transport, Measure, Subject),
        why: &str,
    ) {
        let series = self.series(transport, measure, subject);
        series.failures += 1;
        series.failure.get_or_insert_with(|| why.to_owned());
    }

    /// Takes down what version a subject has.
    pub fn version(&mut self, subject: Subject, version: &str) {
        self.versions
            .entry(subject)
            .or_insert_with(|| version.to_owned());
    }

    /// The lines of the table, in the order in which they are shown.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for transport in Transport::ALL {
            for measure in Measure::ALL {
                let border = self.border(transport, measure);
                for (regime, low, high) in regimes(border) {
                    let mut part = self.rows_part(transport, measure, (regime, low, high));
                    best_compare(&mut part);
                    rows.append(&mut part);
                }
            }
        }
        rows
    }

    /// Where the two levels of a floor of shared memory part, if it has two.
    fn border(&self, transport: Transport, measure: Measure) -> Option<f64> {
        if transport != Transport::Shm || measure.bytes() != 8 {
            return None;
        }
        let of = self
            .series
            .iter()
            .filter(|((t, m, _), _)| (*t, *m) == (transport, measure));
        let pairs = of.flat_map(|(_, series)| series.runs.values().flatten());
        let mut floors: Vec<f64> = pairs.map(|pair| pair.floor_ns).collect();
        floors.sort_unstable_by(f64::total_cmp);
        let (low, high) = (
            *floors.get(floors.len() / 20)?,
            *floors.get(floors.len() * 19 / 20)?,
        );
        (high > REGIMES_APART * low).then(|| (low * high).sqrt())
    }

    fn rows_part(
        &self,
        transport: Transport,
        measure: Measure,
        (regime, low, high): (Regime, f64, f64),
    ) -> Vec<Row> {
        let of = self
            .series
            .iter()
            .filter(|((t, m, _), _)| (*t, *m) == (transport, measure));
        let row = |(&(_, _, subject), series): (&(_, _, Subject), &Series)| {
            let shown = shown(series, |pair| (low..high).contains(&pair.floor_ns));
            let failure = series.failure(shown.is_some());
            let below = |shown: &Shown| shown.ratio.median < SOCKET_SHARE_MIN;
            let suspect = transport != Transport::Shm
                && measure == Measure::Latency
                && shown.as_ref().is_some_and(below);
            let version = self.versions.get(&subject).cloned().unwrap_or_default();
            let note = suspect.then(|| "faster than a bare socket: by which way?".to_owned());
            Row {
                transport,
                measure,
                regime,
                subject,
                version,
                shown,
                failure,
                note,
            }
        };
        let rows = of.map(row);
        // A subject that was only met at the other level has nothing to say here.
        rows.filter(|row| row.shown.is_some() || row.failure.is_some())
            .collect()
    }
}

/// The parts that floors fall into: name, least, most.
fn regimes(border: Option<f64>) -> Vec<(Regime, f64, f64)> {
    match border {
        None => vec![(Regime::Any, 0.0, f64::INFINITY)],
        Some(at) => vec![(Regime::Near, 0.0, at), (Regime::Far, at, f64::INFINITY)],
    }
}

fn shown(series: &Series, wanted: impl Fn(&Pair) -> bool) -> Option<Shown> {
    let runs: Vec<Vec<Pair>> = series
        .runs
        .values()
        .map(|pairs| pairs.iter().copied().filter(&wanted).collect::<Vec<Pair>>())
        .filter(|pairs| !pairs.is_empty())
        .collect();
    let per_run = |figure: fn(&Pair) -> f64| {
        let medians = runs
            .iter()
            .filter_map(|run| median(run.iter().map(figure).collect()));
        Figure::new(medians.collect())
    };
    Some(Shown {
        floor_ns: per_run(|pair| pair.floor_ns)?.median,
        subject_ns: per_run(|pair| pair.subject_ns)?,
        ratio: per_run(|pair| pair.subject_ns / pair.floor_ns)?,
        best: None,
        pairs: runs.iter().map(Vec::len).sum(),
        unsteady: series.unsteady,
        runs: runs.len(),
    })
}

/// Sets every line beside the best peer of the same part. Both are taken in floors, since the
/// floor may have been another for each.
fn best_compare(rows: &mut [Row]) {
    let peers = rows.iter().filter(|row| row.subject != Subject::Praas);
    let ratios = peers.filter_map(|row| Some((row.shown.as_ref()?.ratio.median, row.subject)));
    let Some(best) = ratios.min_by(|one, two| one.0.total_cmp(&two.0)) else {
        return;
    };
    for shown in rows.iter_mut().filter_map(|row| row.shown.as_mut()) {
        shown.best = Some((shown.ratio.median / best.0, best.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: (Transport, Measure) = (Transport::Shm, Measure::Latency);

    fn pairs(floor_ns: f64, ratio: f64) -> Vec<Pair> {
        let subject_ns = floor_ns * ratio;
        vec![
            Pair {
                floor_ns,
                subject_ns
            };
            9
        ]
    }

    fn results(of: &[(Subject, u32, Vec<Pair>)]) -> Results {
        let mut results = Results::default();
        for (subject, run, pairs) in of {
            results.add((KEY.0, KEY.1, *subject), *run, pairs, 0);
        }
        results
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ours_is_set_beside_the_best_peer_in_floors() {
        // The peer met a nearer floor and has the lower time, but needs more floors.
        let results = results(&[
            (Subject::Praas, 0, pairs(60.0, 1.25)),
            (Subject::Praas, 1, pairs(62.0, 1.5)),
            (Subject::Praas, 2, pairs(64.0, 1.75)),
            (Subject::Ucx, 0, pairs(40.0, 1.75)),
            (Subject::Mpich, 0, pairs(60.0, 3.0)),
        ]);
        let rows = results.rows();
        let shown: Vec<&Shown> = rows.iter().map(|row| row.shown.as_ref().unwrap()).collect();
        assert!(rows.iter().all(|row| row.regime == Regime::Any));
        let (ratio, best) = (shown[0].ratio, shown[0].best.unwrap());
        assert_eq!((ratio.median, ratio.least, ratio.most), (1.5, 1.25, 1.75));
        assert_eq!((best.0, best.1), (1.5 / 1.75, Subject::Ucx));
        assert_eq!(
            (shown[0].floor_ns, shown[0].runs, shown[0].pairs),
            (62.0, 3, 27)
        );
        assert_eq!(shown[1].best.unwrap().0, 1.0);
        assert!(shown[2].best.unwrap().0 > 1.0);
    }

    #[test]
    fn near_and_far_are_told_apart() {
        let results = results(&[
            (Subject::Praas, 0, pairs(60.0, 1.5)),
            (Subject::Praas, 1, pairs(250.0, 1.125)),
            (Subject::Ucx, 0, pairs(60.0, 2.0)),
        ]);
        let rows = results.rows();
        let parts: Vec<(Regime, Subject)> = rows.iter().map(|r| (r.regime, r.subject)).collect();
        assert_eq!(
            parts,
            [
                (Regime::Near, Subject::Praas),
                (Regime::Near, Subject::Ucx),
                (Regime::Far, Subject::Praas)
            ]
        );
        assert_eq!(rows[2].shown.as_ref().unwrap().ratio.median, 1.125);
        assert!(rows[2].shown.as_ref().unwrap().best.is_none());
    }

    #[test]
    fn failures_are_named() {
        let mut results = results(&[(Subject::Praas, 0, pairs(60.0, 1.5))]);
        results.fail((KEY.0, KEY.1, Subject::Praas), "late");
        results.fail((KEY.0, KEY.1, Subject::Ucx), "no row of figures");
        results.fail((KEY.0, KEY.1, Subject::Ucx), "another");
        let rows = results.rows();
        assert_eq!(rows[0].failure.as_deref(), Some("failed 1 times: late"));
        assert!(rows[0].shown.is_some() && rows[1].shown.is_none());
        assert_eq!(rows[1].failure.as_deref(), Some("no row of figures"));
        let mut results = Results::default();
        results.add((KEY.0, KEY.1, Subject::Ucx), 0, &[], 3);
        let rows = results.rows();
        assert!(
            rows[0]
                .failure
                .as_ref()
                .is_some_and(|why| why.contains("all of 3"))
        );
    }

    #[test]
    fn what_outruns_a_socket_is_suspected() {
        let mut results = Results::default();
        let key = (Transport::Tcp, Measure::Latency, Subject::MpichApt);
        results.add(key, 0, &pairs(4000.0, 0.1), 0);
        assert!(results.rows()[0].note.is_some());
    }
}
