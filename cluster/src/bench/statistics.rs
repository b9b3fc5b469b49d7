//! Medians, percentiles, and how sure a median is.

/// A median with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// The interval of 95 %.
    pub interval: (f64, f64),
}

/// Resamples of a bootstrap.
const RESAMPLES: usize = 1000;
/// The seed of the resampling, so that the same values give the same interval.
const SEED: u64 = 0x5eed;

/// The value below which a share of the sorted values lies.
pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    let at = (sorted.len() as f64 * share) as usize;
    sorted[at.min(sorted.len() - 1)]
}

/// The median of values in any order.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (len, at) if len % 2 == 1 => values[at],
        (_, at) => (values[at - 1] + values[at]) / 2.0,
    }
}

/// The median of values and its interval, by resampling them (the percentile bootstrap; Efron,
/// "Bootstrap methods: another look at the jackknife", 1979). `None` without values.
pub fn estimate(values: &[f64]) -> Option<Estimate> {
    if values.is_empty() {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut resample = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            for value in &mut resample {
                *value = values[random.usize(..values.len())];
            }
            median(&mut resample)
        })
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    Some(Estimate {
        median: median(&mut values.to_vec()),
        interval: (percentile(&medians, 0.025), percentile(&medians, 0.975)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        let sorted: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.5), 50.0);
        assert_eq!(percentile(&sorted, 0.99), 99.0);
        assert_eq!(percentile(&sorted, 1.0), 99.0);
        assert!(median(&mut []).is_nan() && percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn the_interval_holds_the_median_and_shrinks_with_values() {
        assert_eq!(estimate(&[]), None);
        let one = estimate(&[2.0]).unwrap();
        assert_eq!((one.median, one.interval), (2.0, (2.0, 2.0)));
        let mut random = fastrand::Rng::with_seed(1);
        let values: Vec<f64> = (0..2000).map(|_| random.f64()).collect();
        let width = |values: &[f64]| {
            let Estimate { median, interval } = estimate(values).unwrap();
            assert!(interval.0 <= median && median <= interval.1);
            assert!((median - 0.5).abs() < 0.2);
            interval.1 - interval.0
        };
        assert!(width(&values) < width(&values[..50]));
    }
}
