//! A small random number generator, for tests that build their inputs step by step.

/// SplitMix64. Two generators with different seeds draw unrelated numbers, also if the seeds are neighbors.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates the generator of case number `case` of a test with this seed.
    pub fn new(seed: u64, case: u64) -> Self {
        let mut start = Random(seed);
        Random(start.bits() ^ case.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    /// Returns 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "no number is below 0");
        (self.bits() % n as u64) as usize
    }

    /// Returns true once in `n` times on average.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Returns a copy of one of the items.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tolerance;

    #[test]
    fn every_number_is_as_frequent_as_the_others() {
        let mut random = Random::new(1, 2);
        let mut counts = [0; 7];
        (0..70_000).for_each(|_| counts[random.below(7)] += 1);
        for count in counts {
            let share = f64::from(count) / 70_000.0;
            assert!((share - 1.0 / 7.0).abs() < tolerance::frequency(1.0 / 7.0, 70_000), "{counts:?}");
        }
    }

    #[test]
    fn cases_and_seeds_differ_and_repeat() {
        let first = |seed, case| Random::new(seed, case).bits();
        assert_eq!(first(3, 4), first(3, 4));
        assert!(first(3, 4) != first(3, 5) && first(3, 4) != first(4, 4) && first(3, 4) != first(4, 3));
    }
}
