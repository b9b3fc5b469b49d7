//! Tables of points, and the one that comes with this example.

use std::io::{self, BufRead, BufReader};
use std::ops::Range;

use flate2::read::GzDecoder;

use crate::lloyd::Centres;

/// UCI's handwritten digits, as scikit-learn ships them; the README says more.
static DIGITS: &[u8] = include_bytes!("../data/digits.csv.gz");

/// Numbers of an image of the digits; the one after them says which digit it is.
const DIGITS_DIMENSIONS: usize = 64;

/// Points: rows of `dimensions` numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Points {
    /// Numbers a row.
    pub dimensions: usize,
    /// The numbers, row by row.
    pub values: Vec<f64>,
}

impl Points {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.values.len() / self.dimensions.max(1)
    }

    /// The rows of one of so many parts that are as equal as can be.
    pub fn partition(&self, part: usize, parts: usize) -> Range<usize> {
        let begin = |part| part * self.count() / parts;
        begin(part)..begin(part + 1)
    }

    /// Some rows as bytes, as workers keep them.
    pub fn rows_bytes(&self, rows: Range<usize>) -> Vec<u8> {
        let numbers = rows.start * self.dimensions..rows.end * self.dimensions;
        let values = self.values[numbers].iter();
        values.flat_map(|value| value.to_le_bytes()).collect()
    }

    /// The first rows, or as many as there are, as centres.
    pub fn centres_first(&self, count: usize) -> Centres {
        let numbers = (count * self.dimensions).min(self.values.len());
        Centres {
            dimensions: self.dimensions,
            values: self.values[..numbers].to_vec(),
        }
    }
}

/// The 1,797 images of 8 × 8 grey values that come with this example.
///
/// # Errors
/// The table is damaged.
pub fn digits() -> io::Result<Points> {
    csv_read(BufReader::new(GzDecoder::new(DIGITS)), DIGITS_DIMENSIONS)
}

/// Reads rows of numbers between commas; columns beyond `dimensions` are left out.
///
/// # Errors
/// The reader's; a row with too few columns; a column that is no number.
pub fn csv_read(reader: impl BufRead, dimensions: usize) -> io::Result<Points> {
    let mut values = Vec::new();
    for (index, line) in reader.lines().enumerate() {
        let line = line?;
        let before = values.len();
        for column in line.split(',').take(dimensions) {
            let value = column.trim().parse();
            values.push(value.map_err(|_| row_error(index, &format!("'{column}' is no number")))?);
        }
        let columns = values.len() - before;
        if columns < dimensions {
            let detail = format!("{columns} columns instead of {dimensions}");
            return Err(row_error(index, &detail));
        }
    }
    Ok(Points { dimensions, values })
}

fn row_error(index: usize, detail: &str) -> io::Error {
    let text = format!("row {}: {detail}", index + 1);
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_whole() {
        let digits = digits().unwrap();
        assert_eq!((digits.dimensions, digits.count()), (64, 1797));
        assert!(digits.values.iter().all(|v| (0.0..=16.0).contains(v)));
        assert_eq!(digits.values.iter().sum::<f64>(), 561_718.0);
    }

    #[test]
    fn partitions_are_all_rows_once() {
        let digits = digits().unwrap();
        for parts in [1, 3, 4, 7, 2000] {
            let mut next = 0;
            for part in 0..parts {
                let rows = digits.partition(part, parts);
                assert_eq!(rows.start, next);
                assert!(rows.len().abs_diff(1797 / parts) <= 1);
                next = rows.end;
            }
            assert_eq!(next, 1797);
        }
    }

    #[test]
    fn a_bad_table_is_refused_by_its_row() {
        let read = |text: &str| csv_read(text.as_bytes(), 2);
        assert_eq!(read("1,2,9\n3, 4").unwrap().values, [1.0, 2.0, 3.0, 4.0]);
        let short = read("1,2\n3\n").unwrap_err().to_string();
        assert_eq!(short, "row 2: 1 columns instead of 2");
        let text = read("a,2\n").unwrap_err().to_string();
        assert_eq!(text, "row 1: 'a' is no number");
    }
}
