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
}

impl LabelFraction {
    /// Returns the name for descriptions.
    pub fn name(self) -> String {
        match self {
            LabelFraction::All => "all".into(),
            LabelFraction::Percent1 => "1 % of each class".into(),
            LabelFraction::Percent10 => "10 % of each class".into(),
            LabelFraction::PerClass(n) => format!("{n} of each class"),
        }
    }

    /// Returns the name in a metric: `labels100%`, `labels1%`, `labels10%` or `labels5perclass`.
    pub fn protocol(self) -> String {
        match self {
            LabelFraction::All => "labels100%".into(),
            LabelFraction::Percent1 => "labels1%".into(),
            LabelFraction::Percent10 => "labels10%".into(),
            LabelFraction::PerClass(n) => format!("labels{n}perclass"),
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
        let mut classes = BTreeMap::<u32, Vec<([u8; 32], u32)>>::new();
        for i in 0..count.min(u32::MAX as usize) as u32 {
            let hash = *blake3::hash(&u64::from(i).to_le_bytes()).as_bytes();
            classes.entry(labels.map_or(0, |l| l[i as usize])).or_default().push((hash, i));
        }
        let mut chosen = Vec::new();
        for mut all in classes.into_values() {
            let n = match self {
                LabelFraction::All => all.len(),
                LabelFraction::Percent1 => all.len().div_ceil(100),
                LabelFraction::Percent10 => all.len().div_ceil(10),
                LabelFraction::PerClass(n) => n.get().min(all.len()),
            };
            all.sort_unstable();
            chosen.extend(all[..n].iter().map(|a| a.1));
        }
        chosen.sort_unstable();
        chosen
    }
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
}
