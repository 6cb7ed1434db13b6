//! Figures of a run: the test embeddings in two dimensions, and the prototypes.

use crate::evaluate;
use crate::plan::Plan;
use crate::probing::EmbeddedSplits;
use crate::prototypes;
use crate::run_dir::RunDir;
use crate::state::TrainState;
use pauc_data::contact_sheet;
use pauc_kernels::distance::dot;
use pauc_models::device::NetworkDevice;
use pauc_probes::TsneOptions;
use pauc_traits::probe::RowsView;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Clustering, Error, Result, stop};
use std::borrow::Cow;

/// The largest number of points drawn.
const POINTS: usize = 2000;

/// Writes `figures/embedding.json`: the test (or training) embeddings on their two principal axes and by
/// t-SNE, with classes and the nearest prototypes of the coarsest level. `splits` are those of this network, if they
/// were embedded before.
///
/// # Errors
/// If the device or the disk fails.
pub(crate) fn embedding<D: NetworkDevice>(
    plan: &Plan,
    state: &mut TrainState<D>,
    splits: Option<&EmbeddedSplits>,
    dir: &RunDir,
) -> Result<()> {
    let source = plan.splits.test.as_ref().unwrap_or(&plan.splits.train);
    let embedded = match splits {
        Some(splits) => Cow::Borrowed(splits.shown()),
        None => Cow::Owned(evaluate::embed(&mut state.network, &plan.evaluation, source)?),
    };
    let keep = source.len().min(POINTS);
    let rows = RowsView::new(&embedded.embeddings[..keep * embedded.dim], embedded.dim);
    let projection = pauc_probes::pca2(rows)?;
    let neighbors = pauc_probes::tsne(rows, TsneOptions::default())?;
    let coarsest = state.prototypes.as_ref().and_then(|p| p.clusterings.iter().min_by_key(|c| c.k));
    let prototypes = coarsest.map(|c| prototypes::nearest(c, rows));
    let json = serde_json::json!({
        "points": projection.points,
        "explained": projection.explained,
        "tsne": neighbors.points,
        "perplexity": neighbors.perplexity,
        "test": plan.splits.test.is_some(),
        "of": source.len(),
        "labels": source.labels().map(|l| &l[..keep]),
        "classes": plan.splits.classes,
        "prototypes": prototypes,
    });
    let text = serde_json::to_string(&json).map_err(|e| Error::Other(e.into()))?;
    dir.write("figures/embedding.json", text)
}

/// The number of prototypes on the contact sheet, and of images per prototype.
const SHEET: (usize, usize) = (8, 10);
/// Bins of a histogram of cosines, from −1 to 1.
const BINS: usize = 50;
/// The largest number of prototypes for pairwise cosines; above it, evenly spaced ones are used.
const MOST_IN_PAIRS: usize = 2048;

/// Writes `figures/prototypes.json`: for each level the sizes, the concentrations, and histograms of the
/// cosines between samples and their prototypes and between prototypes. Also writes `figures/prototypes.png`:
/// one row per prototype, for a few prototypes of the coarsest level from the largest to the smallest, with
/// the images nearest to it. Without prototypes, writes nothing.
///
/// # Errors
/// If an image cannot be read, or the device or the disk fails.
pub fn prototypes<D: NetworkDevice>(plan: &Plan, state: &mut TrainState<D>, dir: &RunDir) -> Result<()> {
    if state.prototypes.is_none() {
        return Ok(());
    }
    let embedded = evaluate::embed(state.clustered_network(), &plan.evaluation, &plan.splits.train)?;
    let Some(prototypes) = &state.prototypes else { return Ok(()) };
    let rows = RowsView::new(&embedded.embeddings, embedded.dim);
    let levels: Vec<_> = prototypes
        .clusterings
        .iter()
        .zip(&prototypes.concentrations)
        .map(|(c, phi)| {
            let (sizes, intra, inter) = (sizes(c), within(rows, c), between(c));
            serde_json::json!({
                "k": c.k, "sizes": descending(&sizes), "concentration": descending(phi),
                "intra": intra, "inter": inter,
            })
        })
        .collect();
    let Some(coarsest) = prototypes.clusterings.iter().min_by_key(|c| c.k) else { return Ok(()) };
    let nearest = nearest_images(rows, coarsest);
    let shown: Vec<usize> = nearest.iter().map(|(c, _)| *c).collect();
    let json = serde_json::json!({ "levels": levels, "shown": shown, "shown_of": coarsest.k });
    let text = serde_json::to_string(&json).map_err(|e| Error::Other(e.into()))?;
    dir.write("figures/prototypes.json", text)?;
    let mut images = Vec::new();
    for id in nearest.iter().flat_map(|(_, ids)| ids) {
        // The evaluation view: the encoder's input, in one size.
        let (source, view, id) = (plan.splits.train.clone(), plan.evaluation.clone(), *id);
        images.push(stop::detached(move || -> Result<_> {
            Ok(view.augment(source.image(id)?, 0, &mut stream(0, Purpose::Probe, 0, 0, 0)).into_owned())
        })??);
    }
    if images.is_empty() {
        return Ok(());
    }
    dir.write("figures/prototypes.png", contact_sheet(&images, SHEET.1)?)
}

fn descending<T: PartialOrd + Copy>(values: &[T]) -> Vec<T> {
    let mut values = values.to_vec();
    values.sort_by(|a, b| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal));
    values
}

fn sizes(c: &Clustering) -> Vec<usize> {
    let mut sizes = vec![0; c.k];
    c.assignments.iter().flatten().for_each(|a| sizes[*a as usize] += 1);
    sizes
}

/// Returns the bin of a cosine.
fn bin(cosine: f32) -> usize {
    (((cosine + 1.0) / 2.0 * BINS as f32) as usize).min(BINS - 1)
}

fn unit(c: &Clustering) -> Vec<f32> {
    let mut centroids = c.centroids.clone();
    pauc_cluster::unit_rows(&mut centroids, c.dim);
    centroids
}

/// Returns the histogram of cosines between samples and their prototypes.
fn within(rows: RowsView<'_>, c: &Clustering) -> Vec<u64> {
    let (centroids, mut bins) = (unit(c), vec![0; BINS]);
    for (row, a) in rows.iter().zip(&c.assignments) {
        if let Some(a) = a {
            bins[bin(dot(row, &centroids[*a as usize * c.dim..][..c.dim]))] += 1;
        }
    }
    bins
}

/// Returns the histogram of cosines between occupied prototypes.
fn between(c: &Clustering) -> Vec<u64> {
    let (centroids, sizes) = (unit(c), sizes(c));
    let occupied: Vec<usize> = (0..c.k).filter(|j| sizes[*j] > 0).collect();
    let some: Vec<usize> =
        occupied.iter().copied().step_by(occupied.len().div_ceil(MOST_IN_PAIRS).max(1)).collect();
    let (row, mut bins) = (|j: usize| &centroids[j * c.dim..][..c.dim], vec![0; BINS]);
    for (i, a) in some.iter().enumerate() {
        some[..i].iter().for_each(|b| bins[bin(dot(row(*a), row(*b)))] += 1);
    }
    bins
}

/// Returns a few occupied prototypes, from the largest to the smallest, each with its nearest samples. Only
/// prototypes that can fill a row are shown, unless there are none.
fn nearest_images(rows: RowsView<'_>, c: &Clustering) -> Vec<(usize, Vec<usize>)> {
    let (centroids, sizes) = (unit(c), sizes(c));
    let full = sizes.iter().copied().max().unwrap_or(0).min(SHEET.1).max(1);
    let mut by_size: Vec<usize> = (0..c.k).filter(|j| sizes[*j] >= full).collect();
    by_size.sort_by_key(|j| (std::cmp::Reverse(sizes[*j]), *j));
    let shown = by_size.len().min(SHEET.0);
    let chosen = (0..shown).map(|i| by_size[i * (by_size.len() - 1) / (shown - 1).max(1)]);
    let members = |j: usize| {
        let cosine = |i: usize| dot(rows.row(i), &centroids[j * c.dim..][..c.dim]);
        let mut ids: Vec<usize> = (0..rows.rows).filter(|i| c.assignments[*i] == Some(j as u32)).collect();
        ids.sort_by(|a, b| cosine(*b).total_cmp(&cosine(*a)).then(a.cmp(b)));
        ids.truncate(full);
        (j, ids)
    };
    chosen.map(members).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clustering(assignments: &[Option<u32>]) -> Clustering {
        Clustering {
            k: 3,
            dim: 2,
            centroids: vec![2.0, 0.0, 0.0, 0.5, -1.0, 0.0],
            assignments: assignments.to_vec(),
            report: Default::default(),
        }
    }

    #[test]
    fn histograms_count_samples_and_pairs() {
        let data = [1.0, 0.0, 0.6, 0.8, 0.0, 1.0, 1.0, 0.0];
        let c = clustering(&[Some(0), Some(0), Some(1), None]);
        let (got, rows) = (|v: Vec<u64>, at: f32| v[bin(at)], RowsView::new(&data, 2));
        assert_eq!((got(within(rows, &c), 1.0), got(within(rows, &c), 0.6)), (2, 1));
        assert_eq!(within(rows, &c).iter().sum::<u64>(), 3, "noise has no prototype");
        assert_eq!(
            (got(between(&c), 0.0), between(&c).iter().sum::<u64>()),
            (1, 1),
            "empty prototypes do not count"
        );
        assert_eq!((bin(-1.0), bin(-1.1), bin(1.0), bin(1.1)), (0, 0, BINS - 1, BINS - 1));
    }

    #[test]
    fn rows_of_the_sheet_begin_with_the_nearest() {
        let data = [0.6, 0.8, 1.0, 0.0, 0.8, 0.6, 0.0, 1.0];
        let c = clustering(&[Some(0), Some(0), Some(0), Some(1)]);
        assert_eq!(nearest_images(RowsView::new(&data, 2), &c), [(0, vec![1, 2, 0])]);
        assert_eq!(nearest_images(RowsView::new(&data, 2), &clustering(&[None; 4])), []);
    }
}
