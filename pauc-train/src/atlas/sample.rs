//! Which images are drawn if there are too many.

use std::collections::BTreeMap;

/// Chooses `limit` samples, in their order: equally many of each group, as far as it has that many, and within a group
/// evenly spaced ones. Samples without a group are a group, too. Returns all samples if there are no more than `limit`.
///
/// # Shapes
/// N groups → at most N numbers
pub fn evenly(groups: &[Option<u32>], limit: usize) -> Vec<usize> {
    if groups.len() <= limit {
        return (0..groups.len()).collect();
    }
    let mut members: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
    groups.iter().enumerate().for_each(|(sample, group)| members.entry(*group).or_default().push(sample));
    let mut by_size: Vec<&Vec<usize>> = members.values().collect();
    by_size.sort_by_key(|samples| samples.len());
    let mut chosen = Vec::with_capacity(limit);
    for (done, samples) in by_size.iter().enumerate() {
        // What small groups leave is shared by the larger ones.
        let share = (limit - chosen.len()) / (by_size.len() - done);
        let count = samples.len().min(share);
        chosen.extend((0..count).map(|i| samples[i * samples.len() / count]));
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_equal_shares_and_small_ones_are_whole() {
        // 90 of group 0, 6 of group 1, 4 without a group.
        let groups: Vec<Option<u32>> =
            (0..100).map(|i| if i % 25 == 24 { None } else { Some(u32::from(i % 16 == 3)) }).collect();
        let size = |g: Option<u32>| groups.iter().filter(|h| **h == g).count();
        let got = evenly(&groups, 30);
        let count = |g: Option<u32>| got.iter().filter(|i| groups[**i] == g).count();
        assert_eq!((count(None), count(Some(1))), (size(None), size(Some(1))));
        assert_eq!(got.len(), 30);
        assert!(got.is_sorted() && got.windows(2).all(|w| w[0] < w[1]));
        let of_large: Vec<usize> = got.iter().copied().filter(|i| groups[*i] == Some(0)).collect();
        assert!(of_large.windows(2).all(|w| w[1] - w[0] <= 8), "evenly spaced: {of_large:?}");
        assert_eq!(evenly(&groups, 100), (0..100).collect::<Vec<_>>());
        assert_eq!(evenly(&[Some(1); 9], 3), [0, 3, 6]);
    }
}
