//! Lloyd's algorithm (S. P. Lloyd, *Least squares quantization in PCM*, IEEE Transactions on
//! Information Theory 28(2), 1982): assign each point to its nearest centre, move each centre to
//! the mean of its points, and again.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::points::Points;

/// The label of a point that was not assigned yet.
const NONE: u32 = u32::MAX;

/// Centres: rows of `dimensions` numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Centres {
    /// Numbers a row.
    pub dimensions: usize,
    /// The numbers, row by row.
    pub values: Vec<f64>,
}

/// What some points contribute to the next centres.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// How many of them have changed their centre.
    pub changed: u64,
    /// The sum of the squared distances to their centres.
    pub inertia: f64,
    /// How many belong to each centre.
    pub counts: Vec<u64>,
    /// The sums of those of each centre, row by row.
    pub sums: Vec<f64>,
}

/// A clustering that is finished.
#[derive(Debug, Clone, PartialEq)]
pub struct Clustering {
    /// How often all points were assigned.
    pub iterations: u64,
    /// The sum of the squared distances between the points and their centres.
    pub inertia: f64,
    /// Points by centre.
    pub sizes: Vec<u64>,
}

/// Why points, centres or sums do not fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeError(String);

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ShapeError {}

impl Centres {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.values.len() / self.dimensions.max(1)
    }

    /// Whether they are whole rows, and at least one.
    ///
    /// # Errors
    /// They are not.
    pub fn check(&self) -> Result<(), ShapeError> {
        let (dimensions, numbers) = (self.dimensions, self.values.len());
        if dimensions == 0 || numbers == 0 || !numbers.is_multiple_of(dimensions) {
            let text = format!("{numbers} numbers are no centres of {dimensions} dimensions");
            return Err(ShapeError(text));
        }
        Ok(())
    }

    /// The nearest centre of a point, the first of equals, and the square of its distance.
    fn nearest(&self, point: &[f64]) -> (u32, f64) {
        let mut nearest = (0, f64::INFINITY);
        for (index, centre) in self.values.chunks_exact(self.dimensions).enumerate() {
            let differences = point.iter().zip(centre).map(|(a, b)| a - b);
            let distance = differences.map(|difference| difference * difference).sum();
            if distance < nearest.1 {
                nearest = (index as u32, distance);
            }
        }
        nearest
    }

    /// Moves each centre to the mean of its points. One without points stays where it is.
    pub fn advance(&mut self, total: &Sums) {
        let rows = self.values.chunks_exact_mut(self.dimensions);
        let sums = total.sums.chunks_exact(self.dimensions);
        for ((row, sums), &count) in rows.zip(sums).zip(&total.counts) {
            if count > 0 {
                for (value, sum) in row.iter_mut().zip(sums) {
                    *value = sum / count as f64;
                }
            }
        }
    }
}

impl Sums {
    /// Those of no points.
    pub fn new(centres: &Centres) -> Self {
        Self {
            changed: 0,
            inertia: 0.0,
            counts: vec![0; centres.count()],
            sums: vec![0.0; centres.values.len()],
        }
    }

    /// Adds those of other points.
    ///
    /// # Errors
    /// They were made with centres of another shape.
    pub fn add(&mut self, other: &Self) -> Result<(), ShapeError> {
        if (self.counts.len(), self.sums.len()) != (other.counts.len(), other.sums.len()) {
            let (is, expected) = (other.sums.len(), self.sums.len());
            return Err(ShapeError(format!("{is} sums instead of {expected}")));
        }
        self.changed += other.changed;
        self.inertia += other.inertia;
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count += other;
        }
        for (sum, other) in self.sums.iter_mut().zip(&other.sums) {
            *sum += other;
        }
        Ok(())
    }
}

/// Assigns points to their nearest centres. `points` are numbers of eight bytes, little-endian, row
/// by row; `labels` has for each point its centre so far, and is empty at first.
///
/// # Errors
/// The points are no whole rows, or others than those of the labels.
pub fn assign(points: &[u8], centres: &Centres, labels: &mut Vec<u32>) -> Result<Sums, ShapeError> {
    centres.check()?;
    let (bytes, row_bytes) = (points.len(), centres.dimensions * size_of::<f64>());
    if !bytes.is_multiple_of(row_bytes) {
        let text = format!("{bytes} bytes are no points of {row_bytes} bytes each");
        return Err(ShapeError(text));
    }
    let count = bytes / row_bytes;
    if labels.is_empty() {
        labels.resize(count, NONE);
    }
    if labels.len() != count {
        let text = format!("{count} points, but {} labels", labels.len());
        return Err(ShapeError(text));
    }
    let mut sums = Sums::new(centres);
    let mut point = vec![0.0; centres.dimensions];
    for (row, label) in points.chunks_exact(row_bytes).zip(labels) {
        let (numbers, _) = row.as_chunks();
        for (value, bytes) in point.iter_mut().zip(numbers) {
            *value = f64::from_le_bytes(*bytes);
        }
        let (nearest, distance) = centres.nearest(&point);
        sums.changed += u64::from(*label != nearest);
        *label = nearest;
        sums.inertia += distance;
        let nearest = nearest as usize;
        sums.counts[nearest] += 1;
        let from = nearest * centres.dimensions;
        for (sum, value) in sums.sums[from..].iter_mut().zip(&point) {
            *sum += value;
        }
    }
    Ok(sums)
}

/// The same in one process, for comparison: clusters points from their first `count` rows on.
///
/// # Errors
/// There are not that many.
pub fn reference(points: &Points, count: usize) -> Result<Clustering, ShapeError> {
    let mut centres = points.centres_first(count);
    let bytes = points.rows_bytes(0..points.count());
    let mut labels = Vec::new();
    let mut iterations = 0;
    loop {
        let sums = assign(&bytes, &centres, &mut labels)?;
        iterations += 1;
        if sums.changed == 0 {
            return Ok(Clustering {
                iterations,
                inertia: sums.inertia,
                sizes: sums.counts,
            });
        }
        centres.advance(&sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What scikit-learn finds: see recompute.py.
    const INERTIA: f64 = 1_167_859.384_006_598_5;

    #[test]
    fn the_digits_cluster_as_scikit_learn_clusters_them() {
        let digits = crate::digits().unwrap();
        let found = reference(&digits, 10).unwrap();
        let error = (found.inertia / INERTIA - 1.0).abs();
        assert!(error < 1e-9, "{found:?} is off by {error:e}");
        assert_eq!(found.sizes.iter().sum::<u64>(), 1797);
        assert_eq!(reference(&digits, 10).unwrap(), found);
    }

    #[test]
    fn partitions_add_up_to_the_whole() {
        let digits = crate::digits().unwrap();
        let centres = digits.centres_first(10);
        let whole = assign(&digits.rows_bytes(0..1797), &centres, &mut Vec::new()).unwrap();
        let mut total = Sums::new(&centres);
        for part in 0..4 {
            let rows = digits.rows_bytes(digits.partition(part, 4));
            let sums = assign(&rows, &centres, &mut Vec::new()).unwrap();
            total.add(&sums).unwrap();
        }
        // Whole numbers add up without rounding; distances need not.
        assert_eq!((&total.counts, &total.sums), (&whole.counts, &whole.sums));
        assert!((total.inertia / whole.inertia - 1.0).abs() < 1e-12);
        assert_eq!(total.changed, 1797);
    }

    #[test]
    fn a_centre_without_points_stays() {
        let points = Points {
            dimensions: 1,
            values: vec![1.0, 3.0],
        };
        let mut centres = Centres {
            dimensions: 1,
            values: vec![0.0, 100.0],
        };
        let mut labels = Vec::new();
        let sums = assign(&points.rows_bytes(0..2), &centres, &mut labels).unwrap();
        assert_eq!((sums.changed, &labels), (2, &vec![0, 0]));
        centres.advance(&sums);
        assert_eq!(centres.values, [2.0, 100.0]);
        let again = assign(&points.rows_bytes(0..2), &centres, &mut labels).unwrap();
        assert_eq!((again.changed, again.inertia), (0, 2.0));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let centres = Centres {
            dimensions: 2,
            values: vec![0.0; 4],
        };
        for (bytes, labels) in [(&[0; 15][..], vec![]), (&[0; 32][..], vec![0])] {
            let refused = assign(bytes, &centres, &mut labels.clone());
            assert!(refused.is_err(), "{labels:?}");
        }
        for (dimensions, numbers) in [(0, 0), (0, 2), (2, 3), (2, 0)] {
            let values = vec![0.0; numbers];
            let centres = Centres { dimensions, values };
            assert!(centres.check().is_err(), "{dimensions} {numbers}");
        }
        let other = Centres {
            dimensions: 2,
            values: vec![0.0; 6],
        };
        assert!(Sums::new(&centres).add(&Sums::new(&other)).is_err());
    }
}
