//! Fixed subsets of labeled data.

use crate::Count;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The fraction of each class's images that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelFraction {
    /// All images.
    All,
    /// ⌈1 %⌉ of each class.
    Percent1,
    /// ⌈10 %⌉ of each class.
    Percent10,
    /// At most this number of each class.
    PerClass(Count),
    /// A long tail: class sizes fall exponentially, from the mean size of a class to this fraction of it.
    ///
    /// With n images in C classes, class r of C (from 0) has ⌊n/C·factor^(−r/(C − 1))⌋ images, at least 1 and at most
    /// all. Classes are in the order of the BLAKE3 hash of `seed` and their label.
    /// Source: Cui et al. 2019, with the classes in their own order.
    LongTail {
        /// The size of the most frequent class over that of the least frequent one.
        factor: Count,
        /// Determines which classes are frequent.
        #[serde(default)]
        seed: u64,
    },
}

impl LabelFraction {
    /// Returns the name for descriptions.
    pub fn name(self) -> String {
        match self {
            LabelFraction::All => "all".into(),
            LabelFraction::Percent1 => "1 % of each class".into(),
            LabelFraction::Percent10 => "10 % of each class".into(),
            LabelFraction::PerClass(n) => format!("{n} of each class"),
            LabelFraction::LongTail { factor, seed } => format!("a long tail (factor {factor}, seed {seed})"),
        }
    }

    /// Returns the name in a metric: `labels100%`, `labels1%`, `labels10%`, `labels5perclass` or
    /// `labelslongtail100seed0`.
    pub fn protocol(self) -> String {
        match self {
            LabelFraction::All => "labels100%".into(),
            LabelFraction::Percent1 => "labels1%".into(),
            LabelFraction::Percent10 => "labels10%".into(),
            LabelFraction::PerClass(n) => format!("labels{n}perclass"),
            LabelFraction::LongTail { factor, seed } => format!("labelslongtail{factor}seed{seed}"),
        }
    }

    /// Returns the indices of the chosen images, out of `count` images with these `labels` (`None`: of one
    /// class), in order. Within each class, the images are those whose index, as eight little-endian bytes,
    /// has the smallest BLAKE3 hash.
    ///
    /// # Shapes
    /// labels at least `count` → the chosen indices, ascending
    ///
    /// # Panics
    /// If there are fewer labels than `count`.
    pub fn choose(self, labels: Option<&[u32]>, count: usize) -> Vec<u32> {
        let classes = by_class(labels, count);
        let sizes = self.sizes(&classes, count);
        let mut chosen: Vec<u32> =
            classes.values().zip(sizes).flat_map(|(all, n)| &all[..n.min(all.len())]).copied().collect();
        chosen.sort_unstable();
        chosen
    }

    /// Returns the number of images of each class.
    fn sizes(self, classes: &BTreeMap<u32, Vec<u32>>, count: usize) -> Vec<usize> {
        let size = |all: &Vec<u32>| match self {
            LabelFraction::All | LabelFraction::LongTail { .. } => all.len(),
            LabelFraction::Percent1 => all.len().div_ceil(100),
            LabelFraction::Percent10 => all.len().div_ceil(10),
            LabelFraction::PerClass(n) => n.get(),
        };
        let mut sizes: Vec<usize> = classes.values().map(size).collect();
        if let LabelFraction::LongTail { factor, seed } = self {
            let hash = |label: u32| {
                *blake3::hash(&[seed.to_le_bytes(), u64::from(label).to_le_bytes()].concat()).as_bytes()
            };
            let mut order: Vec<usize> = (0..classes.len()).collect();
            let labels: Vec<u32> = classes.keys().copied().collect();
            order.sort_by_key(|class| hash(labels[*class]));
            let mean = count as f64 / classes.len().max(1) as f64;
            let last = (classes.len() as f64 - 1.0).max(1.0);
            for (rank, class) in order.into_iter().enumerate() {
                let size = mean * (factor.get() as f64).powf(-(rank as f64) / last);
                // Sizes that are whole numbers up to rounding count as such.
                sizes[class] = ((size * (1.0 + 1e-12)).floor() as usize).max(1);
            }
        }
        sizes
    }
}

/// Returns the indices of `count` images by class, with the smallest BLAKE3 hash of the index first.
fn by_class(labels: Option<&[u32]>, count: usize) -> BTreeMap<u32, Vec<u32>> {
    let mut classes = BTreeMap::<u32, Vec<([u8; 32], u32)>>::new();
    for i in 0..count.min(u32::MAX as usize) as u32 {
        let hash = *blake3::hash(&u64::from(i).to_le_bytes()).as_bytes();
        classes.entry(labels.map_or(0, |l| l[i as usize])).or_default().push((hash, i));
    }
    let sorted = |mut all: Vec<([u8; 32], u32)>| {
        all.sort_unstable();
        all.into_iter().map(|(_, i)| i).collect()
    };
    classes.into_iter().map(|(label, all)| (label, sorted(all))).collect()
}

/// Splits `count` images with these `labels` (`None`: of one class) into four fifths and a held-out fifth. Returns the
/// indices of both, in order. The fifth has ⌊n/5⌋ of the n images of each class: those whose index, as eight
/// little-endian bytes, has the largest BLAKE3 hash. It therefore shares no image with [`LabelFraction::Percent1`] and
/// [`LabelFraction::Percent10`] of classes with at least five images.
///
/// # Shapes
/// labels at least `count` → indices, ascending
///
/// # Panics
/// If there are fewer labels than `count`.
pub fn held_out_fifth(labels: Option<&[u32]>, count: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut rest, mut fifth) = (Vec::new(), Vec::new());
    for all in by_class(labels, count).into_values() {
        let (first, last) = all.split_at(all.len() - all.len() / 5);
        rest.extend_from_slice(first);
        fifth.extend_from_slice(last);
    }
    rest.sort_unstable();
    fifth.sort_unstable();
    (rest, fifth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_fixed_nested_and_balanced() {
        let labels: Vec<u32> = (0..1000).map(|i| i % 3).collect();
        let choose = |s: LabelFraction| s.choose(Some(&labels), 1000);
        let (one, ten) = (choose(LabelFraction::Percent1), choose(LabelFraction::Percent10));
        assert_eq!((one.len(), ten.len(), choose(LabelFraction::All).len()), (4 * 3, 34 * 3, 1000));
        assert!(one.iter().all(|i| ten.contains(i)) && one.is_sorted());
        assert_eq!(choose(LabelFraction::PerClass(Count::lit(34))), ten);
        for class in 0..3 {
            assert_eq!(one.iter().filter(|i| labels[**i as usize] == class).count(), 4);
        }
        // The list is part of the recipe language: it must never change.
        assert_eq!(LabelFraction::Percent1.choose(None, 300), FIXED);
        assert_eq!(LabelFraction::Percent1.choose(None, 0), [0u32; 0]);
    }

    const FIXED: [u32; 3] = [45, 48, 258];

    #[test]
    fn the_fifth_is_fixed_balanced_and_apart_from_few_labels() {
        // Classes of 300, 101 and 4 images, in no order.
        let labels: Vec<u32> =
            (0..405).map(|i| if i % 101 == 7 { 2 } else { u32::from(i % 4 == 1) }).collect();
        let (rest, fifth) = held_out_fifth(Some(&labels), 405);
        let of = |ids: &[u32], class| ids.iter().filter(|i| labels[**i as usize] == class).count();
        for class in 0..3 {
            let all = labels.iter().filter(|l| **l == class).count();
            assert_eq!((of(&fifth, class), of(&rest, class)), (all / 5, all - all / 5), "class {class}");
        }
        let mut every = [rest, fifth.clone()].concat();
        every.sort_unstable();
        assert_eq!(every, (0..405).collect::<Vec<u32>>());
        let few = LabelFraction::Percent10.choose(Some(&labels), 405);
        assert!(few.iter().all(|i| labels[*i as usize] == 2 || !fifth.contains(i)));
        // The names of metrics speak of this split: it must never change.
        assert_eq!(held_out_fifth(None, 12).1, FIFTH);
        assert_eq!(held_out_fifth(None, 4).1, [0u32; 0]);
    }

    const FIFTH: [u32; 2] = [2, 3];

    #[test]
    fn a_long_tail_falls_exponentially() {
        let labels: Vec<u32> = (0..1000).map(|i| i % 10).collect();
        let tail =
            |seed| LabelFraction::LongTail { factor: Count::lit(100), seed }.choose(Some(&labels), 1000);
        let sizes = |ids: &[u32]| {
            let size = |class| ids.iter().filter(|i| labels[**i as usize] == class).count();
            (0..10).map(size).collect::<Vec<_>>()
        };
        let (first, second) = (sizes(&tail(0)), sizes(&tail(1)));
        assert_ne!(first, second, "another order of classes");
        for mut sizes in [first, second] {
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            // ⌊100·100^(−r/9)⌋ = ⌊100·0.5995^r⌋
            assert_eq!(sizes, [100, 59, 35, 21, 12, 7, 4, 2, 1, 1]);
        }
        let even = LabelFraction::LongTail { factor: Count::lit(1), seed: 0 };
        assert_eq!(even.choose(Some(&labels), 1000), LabelFraction::All.choose(None, 1000));
        assert_eq!(even.choose(None, 7).len(), 7);
        // A class never has more images than there are.
        let uneven: Vec<u32> = (0..20).map(|i| u32::from(i == 0)).collect();
        let tail = LabelFraction::LongTail { factor: Count::lit(1), seed: 0 };
        let chosen = tail.choose(Some(&uneven), 20);
        assert!(chosen.len() == 11 && chosen.contains(&0), "{chosen:?}");
    }
}
