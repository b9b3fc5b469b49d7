//! Which bytes of an entry are there, when its pieces come in any order.

use std::collections::BTreeMap;

/// Ranges of bytes, none of which touch.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// Ends by starts.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds the bytes from `start` up to `end`; `false` if any of them are there already, or there
    /// are none.
    #[must_use]
    pub fn insert(&mut self, start: u64, end: u64) -> bool {
        let before = self.ends.range(..=start).next_back();
        let before = before.map(|(start, end)| (*start, *end));
        let after = self.ends.range(start..).next();
        let after = after.map(|(start, end)| (*start, *end));
        let taken = before.is_some_and(|(_, before_end)| before_end > start)
            || after.is_some_and(|(after_start, _)| after_start < end);
        if start >= end || taken {
            return false;
        }
        let mut whole = (start, end);
        if let Some((before_start, _)) = before.filter(|(_, before_end)| *before_end == start) {
            whole.0 = before_start;
        }
        if let Some((after_start, after_end)) = after.filter(|(after_start, _)| *after_start == end)
        {
            whole.1 = after_end;
            self.ends.remove(&after_start);
        }
        self.ends.insert(whole.0, whole.1);
        true
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether all bytes up to `end` are there.
    pub fn cover(&self, end: u64) -> bool {
        self.ends.len() == 1 && self.ends.get(&0) == Some(&end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As a list of bytes would have it.
        #[test]
        fn ranges_are_what_was_inserted(
            pieces in proptest::collection::vec((0..40_u64, 0..12_u64), 0..40)
        ) {
            let mut ranges = Ranges::default();
            let mut bytes = [false; 64];
            for (start, len) in pieces {
                let slots = &mut bytes[start as usize..(start + len) as usize];
                let fits = len > 0 && slots.iter().all(|there| !there);
                prop_assert_eq!(ranges.insert(start, start + len), fits);
                if fits {
                    slots.fill(true);
                }
                let starts = (0..64).filter(|at| bytes[*at] && (*at == 0 || !bytes[at - 1]));
                prop_assert_eq!(ranges.len(), starts.count());
                for end in 1..=64 {
                    let cover = bytes[..end].iter().all(|there| *there)
                        && bytes[end..].iter().all(|there| !there);
                    prop_assert_eq!(ranges.cover(end as u64), cover);
                }
            }
        }
    }
}
