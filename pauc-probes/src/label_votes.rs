//! Labels that the nearest rows contradict, which are often wrong.

use pauc_traits::probe::Neighbors;
use std::collections::BTreeMap;

/// The labels of the nearest rows of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelVote {
    /// The most frequent label; of equally frequent ones the lowest.
    pub label: u32,
    /// The share of the nearest rows that have it.
    pub share: f64,
    /// The share of the nearest rows that have another label than the row itself; 1 if the row has none.
    pub disagreement: f64,
}

/// Counts the labels of the nearest rows of each row. Rows without a label have no vote, and a row whose nearest rows
/// have no labels has no result.
///
/// # Shapes
/// N lists, N labels → N
pub fn label_votes(nearest: &[Neighbors], labels: &[Option<u32>]) -> Vec<Option<LabelVote>> {
    let vote = |(list, own): (&Neighbors, &Option<u32>)| {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        list.iter()
            .filter_map(|(_, row)| labels[*row as usize])
            .for_each(|l| *counts.entry(l).or_default() += 1);
        let voters: usize = counts.values().sum();
        let (label, most) = counts.iter().max_by_key(|(label, n)| (**n, std::cmp::Reverse(**label)))?;
        let share = |n: usize| n as f64 / voters as f64;
        let agree = own.and_then(|own| counts.get(&own)).copied().unwrap_or(0);
        Some(LabelVote { label: *label, share: share(*most), disagreement: 1.0 - share(agree) })
    };
    nearest.iter().zip(labels).map(vote).collect()
}

/// Returns the rows whose label is likely wrong: at least half of the nearest rows have one other label. Rows with the
/// largest share come first.
///
/// # Shapes
/// N votes, N labels → rows
pub fn likely_wrong(votes: &[Option<LabelVote>], labels: &[Option<u32>]) -> Vec<usize> {
    let is_contradicted = |vote: &LabelVote, own: u32| vote.label != own && vote.share >= 0.5;
    let contradicted = |(row, (vote, own)): (usize, (&Option<LabelVote>, &Option<u32>))| {
        let vote = (*vote).filter(|vote| own.is_some_and(|own| is_contradicted(vote, own)))?;
        Some((vote, row))
    };
    let mut rows: Vec<(LabelVote, usize)> =
        votes.iter().zip(labels).enumerate().filter_map(contradicted).collect();
    rows.sort_by(|(a, i), (b, j)| {
        b.share.total_cmp(&a.share).then(b.disagreement.total_cmp(&a.disagreement)).then(i.cmp(j))
    });
    rows.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_among_others_of_another_label_is_likely_wrong() {
        let list = |rows: &[u32]| rows.iter().map(|r| (0.9, *r)).collect::<Neighbors>();
        let nearest =
            [list(&[1, 2, 3, 4]), list(&[2, 3, 4, 0]), list(&[1, 3]), list(&[1, 2]), list(&[]), list(&[4])];
        let labels = [Some(7), Some(2), Some(2), Some(5), None, Some(1)];
        let votes = label_votes(&nearest, &labels);
        // Rows 1 and 2 say 2, row 3 says 5, row 4 says nothing.
        let first = votes[0].unwrap();
        assert_eq!((first.label, first.share, first.disagreement), (2, 2.0 / 3.0, 1.0));
        // One vote each for 2, 5 and 7: the lowest wins.
        let second = votes[1].unwrap();
        assert_eq!((second.label, second.share, second.disagreement), (2, 1.0 / 3.0, 1.0 - 1.0 / 3.0));
        assert_eq!((votes[4], votes[5]), (None, None));
        // Row 3 is 5 among two of label 2: all of its nearest say so.
        assert_eq!(likely_wrong(&votes, &labels), [3, 0]);
    }
}
