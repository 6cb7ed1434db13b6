//! The atlas of a run or of a file of embeddings: a map of its images, with their nearest, likely wrong labels,
//! near-duplicates and outliers.

mod sample;
mod subject;

pub use subject::{RunJob, Subject};

use crate::memory;
use crate::neighbors::check_memory;
use pauc_data::sprites;
use pauc_probes::neighbors::{Found, SearchOptions, search, typicality};
use pauc_probes::tsne::{along_curve, sparse};
use pauc_probes::{TsneOptions, label_votes, likely_wrong, pca2};
use pauc_report::atlas::{Atlas, Prototypes, Thumbnails, Votes};
use pauc_traits::probe::{Neighbors, RowsView};
use pauc_traits::{Error, Result};
use std::time::Instant;

/// Nearest images of each image that the page shows.
pub const NEAREST: usize = 24;
/// The largest number of images of an atlas.
pub const MOST: usize = 100_000;
/// The smallest number of images that have a map.
const LEAST: usize = 3;
/// The largest number of outliers and of groups of near-duplicates.
const LISTED: usize = 500;
/// Images of a group of near-duplicates that are listed.
const IN_GROUP: usize = 50;
/// Bytes of the thumbnails of up to [`FEW`] images; more images share more bytes, but fewer each. In the page, each
/// three bytes are four.
const THUMBNAIL_BYTES: f64 = 10.8e6;
const FEW: f64 = 10_000.0;

/// What the lists of an atlas count as a near-duplicate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AtlasOptions {
    /// The least cosine of near-duplicates.
    pub duplicates: f32,
}

/// A computed atlas.
#[derive(Debug)]
pub struct Drawn {
    /// The page.
    pub atlas: Atlas,
    /// What a user should know about the data.
    pub warnings: Vec<String>,
    /// What was computed, with its seconds.
    pub times: Vec<(&'static str, f64)>,
    /// The number of nearest images that the map was computed from.
    pub neighbors: usize,
}

/// Draws a map of images.
///
/// # Errors
/// If there are too few images, all vectors are zeros, a value is NaN or infinite, an image cannot be read, the search
/// needs more than the machine's memory, or the run was asked to stop.
pub fn draw(mut subject: Subject, options: AtlasOptions) -> Result<Drawn> {
    let count = subject.ids.len();
    if count < LEAST {
        let images = if count == 1 { "1 image is" } else { &format!("{count} images are") };
        let message = format!("{}: {images} too few for a map; expected at least {LEAST}", subject.origin);
        return Err(Error::config(message));
    }
    let warnings = zeros(&subject)?;
    let mut times = Vec::new();
    pauc_cluster::unit_rows(&mut subject.vectors, subject.dim);
    let rows = RowsView::new(&subject.vectors, subject.dim);
    let tsne = TsneOptions::default();
    let neighbors = sparse::neighbors_for(tsne, count).max(NEAREST.min(count - 1));
    check_memory(count, neighbors)?;
    let found = timed(&mut times, "nearest images", || {
        search(rows, None, SearchOptions { k: neighbors, duplicates: Some(options.duplicates) })
    })?;
    let points = timed(&mut times, "map", || {
        let start = pca2(rows)?.points;
        Ok(sparse::sparse_tsne(&found.nearest, &start, tsne)?.points)
    })?;
    subject.vectors = Vec::new();
    // Images that are near on the map are near in the page, too, so that few sheets of thumbnails are seen at once.
    let order = along_curve(&points);
    let thumbnails = match &subject.images {
        Some(places) => Some(timed(&mut times, "thumbnails", || thumbnails(places, &order))?),
        None => None,
    };
    let atlas = atlas(subject, found, &points, &order, options);
    Ok(Drawn { atlas: Atlas { thumbnails, ..atlas }, warnings, times, neighbors })
}

fn timed<T>(
    times: &mut Vec<(&'static str, f64)>,
    what: &'static str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let began = Instant::now();
    let result = work()?;
    times.push((what, began.elapsed().as_secs_f64()));
    Ok(result)
}

/// Returns a warning if there are rows of zeros, which have no direction to compare.
fn zeros(subject: &Subject) -> Result<Vec<String>> {
    let is_zero = |row: &[f32]| row.iter().all(|v| *v == 0.0);
    let rows: Vec<usize> = subject
        .vectors
        .chunks_exact(subject.dim)
        .enumerate()
        .filter_map(|(row, v)| is_zero(v).then_some(row))
        .collect();
    let Some(first) = rows.first() else { return Ok(Vec::new()) };
    if rows.len() == subject.ids.len() {
        let message =
            format!("{}: all vectors are zeros, which have no direction to compare", subject.origin);
        return Err(Error::config(message));
    }
    let name = subject.name(*first);
    let many = match rows.len() {
        1 => "1 vector consists of zeros and has".to_string(),
        n => format!("{n} vectors consist of zeros and have"),
    };
    Ok(vec![format!("{many} no meaningful place on the map; the first is that of {name}")])
}

/// Returns the pixels of the larger side of thumbnails.
fn thumbnail_side(count: usize) -> usize {
    match count {
        0..=12_000 => 64,
        12_001..=30_000 => 48,
        _ => 32,
    }
}

fn thumbnails(places: &[sprites::Place], order: &[u32]) -> Result<Thumbnails> {
    let sorted: Vec<sprites::Place> = order.iter().map(|i| places[*i as usize].clone()).collect();
    let budget = THUMBNAIL_BYTES * (sorted.len() as f64 / FEW).max(1.0).sqrt();
    let made = sprites(&sorted, thumbnail_side(sorted.len()), budget as usize)?;
    Ok(Thumbnails { cell: made.cell, sizes: made.sizes, sheets: made.sheets })
}

/// Puts everything into the order of the page.
fn atlas(subject: Subject, found: Found, points: &[[f32; 2]], order: &[u32], options: AtlasOptions) -> Atlas {
    let mut place = vec![0u32; order.len()];
    order.iter().enumerate().for_each(|(at, i)| place[*i as usize] = at as u32);
    let nearest: Vec<Neighbors> =
        found.nearest.into_iter().map(|list| list.into_iter().take(NEAREST).collect()).collect();
    let typicality: Vec<f32> = typicality(&nearest).into_iter().map(|t| t.unwrap_or(0.0) as f32).collect();
    let votes = subject.labels.as_ref().map(|labels| label_votes(&nearest, labels));
    let wrong =
        votes.as_ref().zip(subject.labels.as_ref()).map(|(votes, labels)| likely_wrong(votes, labels));
    let moved = |row: usize| place[row];
    let splits = subject.splits.as_ref().map_or(&[][..], |(of, _)| of);
    let duplicates = largest(found.groups, splits);
    let across_splits = duplicates.iter().filter(|group| is_across(group, splits)).count();
    let sorted = Sorted { order };
    Atlas {
        title: subject.title,
        facts: subject.facts,
        notes: subject.notes,
        points: sorted.copied(points),
        ids: sorted.copied(&subject.ids),
        names: subject
            .names
            .map(|mut names| order.iter().map(|i| std::mem::take(&mut names[*i as usize])).collect()),
        classes: subject.classes,
        labels: subject.labels.as_deref().map(|labels| sorted.copied(labels)),
        votes: votes.as_deref().map(|votes| {
            let votes = sorted.copied(votes);
            Votes {
                most: votes.iter().map(|v| v.map(|v| (v.label, v.share as f32))).collect(),
                disagreement: votes.iter().map(|v| v.map_or(0.0, |v| v.disagreement as f32)).collect(),
            }
        }),
        prototypes: subject
            .prototypes
            .map(|p| Prototypes { of: sorted.copied(&p.of), concentrations: p.concentrations }),
        splits: subject.splits.map(|(of, names)| (sorted.copied(&of), names)),
        nearest: order
            .iter()
            .map(|i| {
                nearest[*i as usize].iter().map(|(cosine, row)| (*cosine, place[*row as usize])).collect()
            })
            .collect(),
        wrong: wrong.map(|rows| rows.into_iter().map(moved).collect()),
        across_splits,
        duplicates: duplicates.iter().map(|group| listed(group, &place)).collect(),
        duplicate_counts: duplicates.iter().map(Vec::len).collect(),
        duplicate_cosine: options.duplicates,
        outliers: least(&typicality).into_iter().map(moved).collect(),
        typicality: sorted.copied(&typicality),
        thumbnails: None,
    }
}

/// The order of the page.
struct Sorted<'a> {
    order: &'a [u32],
}

impl Sorted<'_> {
    fn copied<T: Copy>(&self, values: &[T]) -> Vec<T> {
        self.order.iter().map(|i| values[*i as usize]).collect()
    }
}

/// Returns the groups of near-duplicates to list: those with images of several splits, then the largest.
fn largest(mut groups: Vec<Vec<u32>>, splits: &[u8]) -> Vec<Vec<u32>> {
    groups.sort_by_key(|group| (!is_across(group, splits), std::cmp::Reverse(group.len())));
    groups.truncate(LISTED);
    groups
}

/// Returns whether a group has images of several splits; without splits it has not.
fn is_across(group: &[u32], splits: &[u8]) -> bool {
    let split = |row: &u32| splits.get(*row as usize);
    group.iter().any(|row| split(row) != split(&group[0]))
}

/// Returns the places of the first images of a group.
fn listed(group: &[u32], place: &[u32]) -> Vec<u32> {
    group.iter().take(IN_GROUP).map(|row| place[*row as usize]).collect()
}

/// Returns the least typical rows, the least typical first.
fn least(typicality: &[f32]) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..typicality.len()).collect();
    rows.sort_by(|a, b| typicality[*a].total_cmp(&typicality[*b]).then(a.cmp(b)));
    // Half of a few images would not be outliers.
    rows.truncate(LISTED.min(typicality.len().div_ceil(10)));
    rows
}

impl Drawn {
    /// Returns a line about what was found, such as `8 groups of near-duplicates, 3 labels are likely wrong`.
    pub fn summary(&self) -> String {
        let groups = self.atlas.duplicates.len();
        let plural = if groups == 1 { "group" } else { "groups" };
        let mut text =
            format!("{groups} {plural} of near-duplicates (cosine at least {})", self.atlas.duplicate_cosine);
        if self.atlas.across_splits > 0 {
            text += &format!(", {} with images of several splits", self.atlas.across_splits);
        }
        if let Some(wrong) = &self.atlas.wrong {
            text += &format!(", {} likely wrong labels", wrong.len());
        }
        text
    }

    /// Returns the bytes of the thumbnails, as text.
    pub fn thumbnail_bytes(&self) -> Option<String> {
        let sheets = &self.atlas.thumbnails.as_ref()?.sheets;
        Some(memory::bytes(sheets.iter().map(|sheet| sheet.len() as u128).sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::inputs::noise;

    fn subject(vectors: Vec<f32>, dim: usize) -> Subject {
        let count = vectors.len() / dim;
        Subject {
            origin: "x.npy".into(),
            vectors,
            dim,
            ids: (0..count as u32).collect(),
            ..Subject::default()
        }
    }

    const OPTIONS: AtlasOptions = AtlasOptions { duplicates: 0.999 };

    #[test]
    fn everything_is_in_the_order_of_the_map() {
        let count = 60;
        let mut vectors = noise(count * 4, 3);
        // Image 7 is a copy of image 31, up to its length.
        let copied: Vec<f32> = vectors[31 * 4..32 * 4].iter().map(|v| 2.0 * v).collect();
        vectors[7 * 4..8 * 4].copy_from_slice(&copied);
        let subject = Subject {
            names: Some((0..count).map(|i| format!("{i}.png")).collect()),
            labels: Some((0..count as u32).map(|i| Some(i % 3)).collect()),
            classes: ["a", "b", "c"].map(str::to_string).to_vec(),
            ..subject(vectors.clone(), 4)
        };
        let drawn = draw(subject, OPTIONS).unwrap();
        let atlas = &drawn.atlas;
        let row = |at: u32| atlas.ids[at as usize] as usize;
        let names = atlas.names.as_ref().unwrap();
        assert!((0..count).all(|at| names[at] == format!("{}.png", atlas.ids[at])));
        assert!((0..count).all(|at| atlas.labels.as_ref().unwrap()[at] == Some(atlas.ids[at] % 3)));
        let mut all = atlas.ids.clone();
        all.sort_unstable();
        assert_eq!(all, (0..count as u32).collect::<Vec<_>>());
        let mut copies: Vec<usize> = atlas.duplicates[0].iter().map(|at| row(*at)).collect();
        copies.sort_unstable();
        assert_eq!((copies, &atlas.duplicate_counts[..]), (vec![7, 31], &[2][..]));
        // Nearest images by loops.
        let unit = |i: usize| {
            let v = &vectors[i * 4..i * 4 + 4];
            let norm = v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            v.iter().map(|v| f64::from(*v) / norm).collect::<Vec<f64>>()
        };
        let cosine = |a: usize, b: usize| unit(a).iter().zip(unit(b)).map(|(a, b)| a * b).sum::<f64>();
        for (at, list) in atlas.nearest.iter().enumerate() {
            assert_eq!(list.len(), NEAREST);
            let own = row(at as u32);
            let mut want: Vec<f64> = (0..count).filter(|i| *i != own).map(|i| cosine(own, i)).collect();
            want.sort_by(|a, b| b.total_cmp(a));
            let rounding = pauc_testing::tolerance::f32(4 + 2, 1.0);
            for ((got, near), want) in list.iter().zip(&want) {
                pauc_testing::assert_within!(f64::from(*got), *want, rounding, "{own}");
                pauc_testing::assert_within!(cosine(own, row(*near)), *want, 2.0 * rounding, "{own}");
            }
            let mean = want[..NEAREST].iter().sum::<f64>() / NEAREST as f64;
            pauc_testing::assert_within!(f64::from(atlas.typicality[at]), mean, 2.0 * rounding);
        }
        let least = (0..count).min_by(|a, b| atlas.typicality[*a].total_cmp(&atlas.typicality[*b])).unwrap();
        assert_eq!((atlas.outliers[0] as usize, atlas.outliers.len()), (least, 6));
        assert!(drawn.summary().starts_with("1 group of near-duplicates (cosine at least 0.999), "));
        assert!(drawn.warnings.is_empty());
    }

    #[test]
    fn few_rows_and_zeros_are_told() {
        let error = |vectors: Vec<f32>| draw(subject(vectors, 2), OPTIONS).unwrap_err().to_string();
        assert_eq!(error(vec![1.0, 2.0]), "x.npy: 1 image is too few for a map; expected at least 3");
        assert!(error(vec![1.0; 4]).contains("2 images are too few"));
        assert!(error(vec![0.0; 8]).contains("all vectors are zeros"));
        let some = draw(subject(vec![1.0, 2.0, 0.0, 0.0, 2.0, 1.0, 3.0, 1.0], 2), OPTIONS).unwrap();
        assert_eq!(some.warnings.len(), 1);
        assert!(
            some.warnings[0].starts_with("1 vector consists of zeros and has")
                && some.warnings[0].ends_with("image 1")
        );
        assert!(some.atlas.points.iter().flatten().all(|v| v.is_finite()));
    }

    #[test]
    fn large_groups_are_listed_first_and_cut() {
        let place: Vec<u32> = (0..100).rev().collect();
        let pairs = || vec![vec![1, 2], (10..90).collect::<Vec<u32>>(), vec![3, 95]];
        let got = largest(pairs(), &[]);
        assert_eq!((got[0].len(), &got[1][..]), (80, &[1, 2][..]));
        assert_eq!((listed(&got[0], &place).len(), listed(&got[0], &place)[0]), (IN_GROUP, 89));
        // Of splits that begin at 0 and 92, the last group has images of both.
        let splits: Vec<u8> = (0..100).map(|i| u8::from(i >= 92)).collect();
        let got = largest(pairs(), &splits);
        assert_eq!(got[0], [3, 95]);
        assert_eq!(got.iter().filter(|group| is_across(group, &splits)).count(), 1);
        assert_eq!(least(&[0.5, 0.1, 0.1]), [1]);
    }
}
