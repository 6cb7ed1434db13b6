//! Images that make a run's numbers doubtful: copies across the splits, and labels that the neighbors contradict.

use crate::evaluate::Embedded;
use crate::plan::Plan;
use crate::probing::EmbeddedSplits;
use crate::run_dir::RunDir;
use crate::state::TrainState;
use pauc_data::contact_sheet;
use pauc_data::pixels::{Filter, Rect, resample};
use pauc_models::device::NetworkDevice;
use pauc_probes::neighbors::{SearchOptions, search};
use pauc_probes::{LabelVote, label_votes, likely_wrong};
use pauc_report::data_issues::{DataIssues, FILE, LABELS_SHEET, LEAKS_SHEET, Leak, WrongLabel};
use pauc_traits::dataset::ImageSource;
use pauc_traits::probe::{Neighbors, RowsView};
use pauc_traits::{Error, Image, ImageShape, Result, stop};

/// The largest number of images in both splits together; the search grows with its square. Up to here it takes less
/// than an epoch.
pub const MOST: usize = 100_000;
/// The largest number of feature values of these images; the search copies them once.
const MOST_VALUES: usize = 1 << 27;
/// The number of neighbors that vote on a label.
const NEIGHBORS: usize = 20;
/// The least cosine of the features of near-duplicates. Those of an encoder that has learned little are all similar, so
/// the pixels decide.
const LEAST_COSINE: f32 = 0.98;
/// The number of most similar pairs whose pixels are compared, so that an encoder that takes all images for similar
/// does not make the run read every image many times.
const COMPARED: usize = 4096;
/// The mean difference of the pixels of near-duplicates, in mean absolute deviations of the image from its mean.
/// JPEG at quality 75 changes images of 28 pixels by up to 0.04. The most similar of 1000 × 5000 different images of
/// clothes differ by 0.07.
const DIFFERENCE: f64 = 0.05;
/// The share of neighbors with the same other label from which a label is likely wrong.
const SHARE: f64 = 0.9;
/// The share of images with the label that most of their neighbors have, below which the neighbors say nothing about
/// single labels.
const AGREEMENT: f64 = 0.8;
/// The largest numbers of rows in a list, and on a sheet of pictures.
const LISTED: usize = 50;
const SHOWN: usize = 12;
/// The number of neighbors beside an image whose label is likely wrong.
const BESIDE: usize = 5;
/// The largest side of a picture.
const SIDE: usize = 96;

/// Writes `figures/data-issues.json` with sheets of pictures, if there is a test split or there are labels. More than
/// [`MOST`] images, or 2²⁷ values of features, are not searched; the file says so. `embedded` are the splits of this
/// network, if they were embedded before.
///
/// # Errors
/// If an image cannot be read, or the device or the disk fails.
pub(crate) fn write<D: NetworkDevice>(
    plan: &Plan,
    state: &mut TrainState<D>,
    embedded: Option<EmbeddedSplits>,
    dir: &RunDir,
) -> Result<()> {
    let splits = Both::of(plan);
    if splits.test == 0 && splits.labels.is_none() {
        return Ok(());
    }
    let most = MOST.min(MOST_VALUES / state.network.feature_dim().max(1));
    let (images, most) = (splits.len() as u64, most as u64);
    let mut issues = DataIssues { images, most, ..DataIssues::default() };
    if !issues.were_skipped() {
        let embedded = embedded.map_or_else(|| EmbeddedSplits::online(plan, state), Ok)?;
        find(&splits, embedded, dir, &mut issues)?;
    }
    let text = serde_json::to_string(&issues).map_err(|e| Error::Other(e.into()))?;
    dir.write(FILE, text)
}

/// The images of both splits, the training split first.
struct Both<'a> {
    plan: &'a Plan,
    train: usize,
    test: usize,
    labels: Option<Vec<Option<u32>>>,
}

impl<'a> Both<'a> {
    fn of(plan: &'a Plan) -> Self {
        let (train, test) = (&plan.splits.train, plan.splits.test.as_ref());
        let test_count = test.map_or(0, |t| t.len());
        let of = |source: &dyn ImageSource| match source.labels() {
            Some(labels) => labels.iter().copied().map(Some).collect(),
            None => vec![None; source.len()],
        };
        let mut labels: Vec<Option<u32>> = of(train.as_ref());
        labels.extend(test.iter().flat_map(|t| of(t.as_ref())));
        let labels = labels.iter().any(Option::is_some).then_some(labels);
        Both { plan, train: train.len(), test: test_count, labels }
    }

    fn len(&self) -> usize {
        self.train + self.test
    }

    fn is_test(&self, row: usize) -> bool {
        row >= self.train
    }

    /// Returns the split of a row, and its place there.
    fn place(&self, row: usize) -> (&std::sync::Arc<dyn ImageSource>, usize) {
        match &self.plan.splits.test {
            Some(test) if self.is_test(row) => (test, row - self.train),
            _ => (&self.plan.splits.train, row),
        }
    }

    fn name(&self, row: usize) -> String {
        let (source, index) = self.place(row);
        source.path(index).unwrap_or_else(|| format!("image {index}"))
    }

    fn class(&self, row: usize) -> Option<String> {
        Some(self.class_name((*self.labels.as_ref()?.get(row)?)?))
    }

    fn class_name(&self, label: u32) -> String {
        self.plan.splits.classes.get(label as usize).cloned().unwrap_or_else(|| label.to_string())
    }

    /// Reads an image as the dataset has it; `None` if it cannot be read, as the run may have skipped it.
    ///
    /// # Errors
    /// If the run was asked to stop.
    fn image(&self, row: usize) -> Result<Option<Image<'static>>> {
        let (source, index) = self.place(row);
        let source = source.clone();
        stop::detached(move || source.image(index).ok().map(Image::into_owned))
    }
}

fn find(splits: &Both<'_>, embedded: EmbeddedSplits, dir: &RunDir, issues: &mut DataIssues) -> Result<()> {
    let EmbeddedSplits { train: Embedded { mut features, feature_dim, .. }, test } = embedded;
    features.extend(test.into_iter().flat_map(|test| test.features));
    let rows = RowsView::new(&features, feature_dim.max(1));
    let found = search(rows, None, SearchOptions { k: NEIGHBORS, duplicates: None })?;
    (issues.test, issues.neighbors) = (splits.test as u64, NEIGHBORS as u64);
    let leaks = leaks(splits, &found.nearest)?;
    issues.leaked = leaks.len() as u64;
    issues.equal = leaks.iter().filter(|leak| leak.equal).count() as u64;
    issues.leaks = leaks.iter().take(LISTED).map(|leak| described(splits, leak)).collect();
    let pairs = leaks.iter().flat_map(|leak| [leak.test, leak.train]);
    sheet(splits, &pairs.take(2 * SHOWN).collect::<Vec<_>>(), 2, LEAKS_SHEET, dir)?;
    if let Some(labels) = &splits.labels {
        wrong_labels(splits, labels, &found.nearest, issues, dir)?;
    }
    Ok(())
}

/// A test image and a training image that are nearly the same.
struct Pair {
    test: usize,
    train: usize,
    cosine: f32,
    /// Whether all pixels are equal.
    equal: bool,
}

/// Returns the test images with a near-duplicate in the training split, those with equal pixels first.
fn leaks(splits: &Both<'_>, nearest: &[Neighbors]) -> Result<Vec<Pair>> {
    let mut candidates: Vec<(f32, usize, usize)> = Vec::new();
    for (test, list) in nearest.iter().enumerate().skip(splits.train) {
        let of_train = list.iter().filter(|(c, row)| *c >= LEAST_COSINE && !splits.is_test(*row as usize));
        candidates.extend(of_train.map(|(cosine, row)| (*cosine, test, *row as usize)));
    }
    candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    candidates.truncate(COMPARED);
    let mut leaks: Vec<Pair> = Vec::new();
    for (cosine, test, train) in candidates {
        stop::check()?;
        if leaks.iter().any(|leak| leak.test == test) {
            continue;
        }
        let (Some(a), Some(b)) = (splits.image(test)?, splits.image(train)?) else { continue };
        if are_near(&a, &b) {
            leaks.push(Pair { test, train, cosine, equal: a.pixels == b.pixels });
        }
    }
    leaks.sort_by_key(|leak| (!leak.equal, leak.test));
    Ok(leaks)
}

/// Returns whether two images of one shape have nearly the same pixels.
fn are_near(a: &Image<'_>, b: &Image<'_>) -> bool {
    if a.shape != b.shape || a.pixels.is_empty() {
        return false;
    }
    let n = a.pixels.len() as f64;
    let mean = a.pixels.iter().map(|p| f64::from(*p)).sum::<f64>() / n;
    let deviation = a.pixels.iter().map(|p| (f64::from(*p) - mean).abs()).sum::<f64>() / n;
    let difference =
        a.pixels.iter().zip(b.pixels.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / n;
    difference <= DIFFERENCE * deviation
}

fn described(splits: &Both<'_>, leak: &Pair) -> Leak {
    Leak {
        test: splits.name(leak.test),
        train: splits.name(leak.train),
        test_class: splits.class(leak.test),
        train_class: splits.class(leak.train),
        cosine: f64::from(leak.cosine),
        equal: leak.equal,
    }
}

/// Finds the labels that nearly all neighbors contradict, unless the neighbors contradict many labels.
fn wrong_labels(
    splits: &Both<'_>,
    labels: &[Option<u32>],
    nearest: &[Neighbors],
    issues: &mut DataIssues,
    dir: &RunDir,
) -> Result<()> {
    let votes = label_votes(nearest, labels);
    let agreement = agreement(&votes, labels);
    issues.agreement = agreement;
    issues.least_agreement = AGREEMENT;
    if agreement.is_none_or(|share| share < AGREEMENT) {
        return Ok(());
    }
    let mut wrong = likely_wrong(&votes, labels);
    wrong.retain(|row| votes[*row].is_some_and(|vote| vote.share >= SHARE));
    issues.wrong = wrong.len() as u64;
    for row in wrong.iter().take(LISTED) {
        let Some(vote) = &votes[*row] else { continue };
        issues.wrong_labels.push(WrongLabel {
            image: splits.name(*row),
            test: splits.is_test(*row),
            class: splits.class(*row).unwrap_or_default(),
            neighbors: splits.class_name(vote.label),
            share: vote.share,
        });
    }
    let mut shown = Vec::new();
    for row in wrong.iter().take(SHOWN) {
        shown.push(*row);
        shown.extend(nearest[*row].iter().take(BESIDE).map(|(_, near)| *near as usize));
    }
    sheet(splits, &shown, 1 + BESIDE, LABELS_SHEET, dir)
}

/// Returns the share of labelled images whose label is that of most neighbors.
fn agreement(votes: &[Option<LabelVote>], labels: &[Option<u32>]) -> Option<f64> {
    let pairs = votes.iter().zip(labels).filter_map(|(vote, own)| Some(vote.as_ref()?.label == (*own)?));
    let (mut agreeing, mut all) = (0usize, 0usize);
    for agrees in pairs {
        agreeing += usize::from(agrees);
        all += 1;
    }
    (all > 0).then(|| agreeing as f64 / all as f64)
}

/// Writes a sheet of images; without any, nothing.
fn sheet(splits: &Both<'_>, rows: &[usize], columns: usize, name: &str, dir: &RunDir) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let picture =
        |row: &usize| Ok(splits.image(*row)?.filter(|i| matches!(i.shape.channels, 1 | 3)).map(small));
    let images = rows.iter().map(picture).collect::<Result<Vec<_>>>()?;
    let blank = || Image::new(ImageShape { height: 1, width: 1, channels: 1 }, vec![255]);
    let images: Vec<Image<'_>> = images.into_iter().map(|image| image.unwrap_or_else(blank)).collect();
    dir.write(name, contact_sheet(&images, columns)?)
}

/// Returns an image with sides of at most [`SIDE`] pixels.
fn small(image: Image<'static>) -> Image<'static> {
    let ImageShape { height, width, .. } = image.shape;
    let longest = height.max(width).max(1);
    if longest <= SIDE {
        return image;
    }
    let scaled = |side: usize| (side * SIDE / longest).max(1);
    resample::resize(&image, Rect::whole(image.shape), scaled(height), scaled(width), Filter::Bilinear)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(pixels: Vec<u8>) -> Image<'static> {
        Image::new(ImageShape { height: 1, width: pixels.len(), channels: 1 }, pixels)
    }

    #[test]
    fn near_images_differ_by_a_small_part_of_their_deviation() {
        // Mean 50, mean absolute deviation 50.
        let a = image(vec![0, 100, 0, 100]);
        assert!(are_near(&a, &a));
        assert!(are_near(&a, &image(vec![5, 105, 0, 100])), "a mean difference of 2.5");
        assert!(!are_near(&a, &image(vec![6, 105, 0, 100])));
        assert!(!are_near(&a, &image(vec![0, 100])), "another shape");
        // Only equal images of one color are near.
        let flat = image(vec![7; 4]);
        assert!(are_near(&flat, &flat) && !are_near(&flat, &image(vec![8; 4])));
    }

    #[test]
    fn the_agreement_is_the_share_of_labels_that_most_neighbors_have() {
        let vote = |label| Some(LabelVote { label, share: 1.0, disagreement: 0.0 });
        let got = agreement(&[vote(1), vote(2), None, vote(3)], &[Some(1), Some(1), Some(1), None]);
        assert_eq!(got, Some(0.5));
        assert_eq!(agreement(&[None], &[Some(1)]), None);
    }
}
