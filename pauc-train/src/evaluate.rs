//! Embedding whole splits, and running probes on them.

use crate::phase::{Pace, Phase};
use crate::prefetch::loader_options;
use crate::ranks;
use pauc_data::{Loader, LoaderOptions, ViewPipeline};
use pauc_distributed::{Communicator, bytes_of, bytes_of_mut};
use pauc_models::device::NetworkDevice;
use pauc_models::network::Network;
use pauc_traits::Count;
use pauc_traits::component_ron::Configured;
use pauc_traits::dataset::{ImageSource, Splits};
use pauc_traits::probe::{Metric, ProbeContext, ProbedNetwork, ProbesOnDevice, RowsView, SplitView};
use pauc_traits::{Clustering, Error, Pixels, Probe, Result, progress, stop};
use std::ops::Range;
use std::sync::Arc;

/// Images that pass through the network at once during evaluation.
const CHUNK: Count = Count::lit(256);

/// An embedded split, on the host.
#[derive(Clone, Debug, Default)]
pub struct Embedded {
    /// The encoder's outputs, row-major.
    pub features: Vec<f32>,
    /// Width of a feature row.
    pub feature_dim: usize,
    /// The projector's outputs scaled to unit length, row-major.
    pub embeddings: Vec<f32>,
    /// Width of an embedding row.
    pub dim: usize,
}

impl Embedded {
    /// Returns the features as rows, (N, feature_dim).
    pub fn feature_rows(&self) -> RowsView<'_> {
        RowsView::new(&self.features, self.feature_dim.max(1))
    }

    /// Returns the embeddings as unit rows, (N, dim).
    pub fn embedding_rows(&self) -> RowsView<'_> {
        RowsView::new(&self.embeddings, self.dim.max(1))
    }

    /// Returns the chosen rows, in this order.
    pub fn rows(&self, chosen: &[usize]) -> Embedded {
        let of = |data: &[f32], cols: usize| -> Vec<f32> {
            chosen.iter().flat_map(|i| &data[i * cols..(i + 1) * cols]).copied().collect()
        };
        Embedded {
            features: of(&self.features, self.feature_dim),
            feature_dim: self.feature_dim,
            embeddings: of(&self.embeddings, self.dim),
            dim: self.dim,
        }
    }

    fn view<'a>(&'a self, images: &'a Arc<dyn ImageSource>) -> SplitView<'a> {
        SplitView {
            features: self.feature_rows(),
            embeddings: self.embedding_rows(),
            labels: images.labels(),
            images: Some(images),
        }
    }
}

/// Returns which of the `chunks` chunks of images this rank embeds.
fn own_chunks(phase: &Phase, chunks: usize) -> Range<usize> {
    ranks::share(chunks, phase.rank(), phase.size())
}

/// Calls `each` with one view of every image of a split and the number of images, chunk by chunk. On several ranks,
/// each takes its share of the chunks, in order. Random views are those of a seed and an epoch.
fn chunks(
    phase: &Phase,
    view: &ViewPipeline,
    source: &Arc<dyn ImageSource>,
    (seed, epoch): (u64, u64),
    how: impl FnOnce(LoaderOptions) -> LoaderOptions,
    mut each: impl FnMut(&Pixels, usize) -> Result<()>,
) -> Result<()> {
    let options = how(LoaderOptions { seed, ..LoaderOptions::evaluation(CHUNK) });
    let loader = Loader::new(source.clone(), view.clone(), options)?;
    let count = loader.steps_per_epoch();
    let own = own_chunks(phase, count as usize);
    let images = own.len() * CHUNK.get();
    let task = progress::task("embedding images", images.min(source.len()) as u64);
    let first = epoch * count;
    let mut batches = loader.batches(first + own.start as u64..first + own.end as u64);
    let mut pace = Pace::default();
    // Some ranks have one chunk less than others.
    for _ in 0..(count as usize).div_ceil(phase.size()) {
        phase.agree_at(&mut pace)?;
        let Some(batch) = batches.next() else { continue };
        let batch = batch?;
        each(&batch.views[0], batch.ids.len())?;
        task.advance(batch.ids.len() as u64);
    }
    Ok(())
}

/// Runs a split's evaluation views through a network in evaluation mode.
///
/// # Errors
/// If an image cannot be read, or the device fails.
pub fn embed<D: NetworkDevice>(
    network: &mut Network<D>,
    view: &ViewPipeline,
    source: &Arc<dyn ImageSource>,
) -> Result<Embedded> {
    embed_epoch(network, view, source, 0, 0)
}

/// As [`embed`], but several ranks share the images. Each passes its share through its network, whose parameters are
/// the same on all ranks. Rank 0 gets the result; the others get `None`.
///
/// # Errors
/// As [`embed`], on all ranks, or if another rank has failed.
pub(crate) fn embed_on_first<D: NetworkDevice>(
    phase: &Phase,
    network: &mut Network<D>,
    view: &ViewPipeline,
    source: &Arc<dyn ImageSource>,
) -> Result<Option<Embedded>> {
    let Embedded { features, feature_dim, embeddings, dim } =
        embed_share(phase, network, view, source, (0, 0))?;
    let features = phase.gather_on_first(features)?;
    let both = features.zip(phase.gather_on_first(embeddings)?);
    Ok(both.map(|(features, embeddings)| Embedded { features, feature_dim, embeddings, dim }))
}

/// Returns the unit embeddings of a split, without the features. On several ranks, each gets those of its share of the
/// images, or all of them if `everywhere`. The shares are in the order of the ranks.
///
/// # Errors
/// As [`embed`], on all ranks, or if another rank has failed.
pub(crate) fn embeddings<D: NetworkDevice>(
    phase: &Phase,
    network: &mut Network<D>,
    view: &ViewPipeline,
    source: &Arc<dyn ImageSource>,
    everywhere: bool,
) -> Result<Vec<f32>> {
    let (dim, mut all) = (network.embedding_dim(), Vec::new());
    let what = (view, source, (0, 0));
    pass(phase, network, what, |_, embeddings| all.extend(embeddings))?;
    pauc_cluster::unit_rows(&mut all, dim);
    if everywhere { ranks::concatenate(phase, all) } else { Ok(all) }
}

/// Does the same as [`embed`] with views that may be random: those of an epoch.
///
/// # Errors
/// As [`embed`].
pub fn embed_epoch<D: NetworkDevice>(
    network: &mut Network<D>,
    view: &ViewPipeline,
    source: &Arc<dyn ImageSource>,
    seed: u64,
    epoch: u64,
) -> Result<Embedded> {
    embed_share(&Phase::alone(), network, view, source, (seed, epoch))
}

/// Embeds a rank's share of the images, with the views of a seed and an epoch.
fn embed_share<D: NetworkDevice>(
    phase: &Phase,
    network: &mut Network<D>,
    view: &ViewPipeline,
    source: &Arc<dyn ImageSource>,
    views: (u64, u64),
) -> Result<Embedded> {
    let (feature_dim, dim) = (network.feature_dim(), network.embedding_dim());
    let mut out = Embedded { feature_dim, dim, ..Embedded::default() };
    pass(phase, network, (view, source, views), |features, embeddings| {
        out.features.extend(features);
        out.embeddings.extend(embeddings);
    })?;
    pauc_cluster::unit_rows(&mut out.embeddings, out.dim);
    Ok(out)
}

/// Passes a rank's share of the images through a network, and calls `each` with the features and embeddings of every
/// chunk. If a feature is not finite, all ranks get the same error.
fn pass<D: NetworkDevice>(
    phase: &Phase,
    network: &mut Network<D>,
    (view, source, views): (&ViewPipeline, &Arc<dyn ImageSource>, (u64, u64)),
    mut each: impl FnMut(Vec<f32>, Vec<f32>),
) -> Result<()> {
    let width = network.feature_dim().max(1);
    let mut image = own_chunks(phase, source.len().div_ceil(CHUNK.get())).start * CHUNK.get();
    // The first image with a feature that is not finite.
    let mut bad = usize::MAX;
    chunks(phase, view, source, views, loader_options::<D>, |pixels, n| {
        let chunk = network.embed(pixels, n)?;
        if let Some(at) = chunk.features.iter().position(|v| !v.is_finite()) {
            bad = bad.min(image + at / width);
        }
        image += n;
        each(chunk.features, chunk.embeddings);
        Ok(())
    })?;
    let mut of_ranks = vec![0usize; phase.size()];
    phase.all_gather(bytes_of(&[bad]), bytes_of_mut(&mut of_ranks)).map_err(Error::from)?;
    let first = of_ranks.into_iter().min().unwrap_or(usize::MAX);
    if first < usize::MAX {
        let what = "a feature of the evaluation view".into();
        let place = format!("{} is the first of {}", source.name(first), source.len());
        return Err(Error::NonFinite { what, place: Some(place) });
    }
    Ok(())
}

/// Returns the evaluation views themselves as features, a baseline for accuracies.
///
/// # Errors
/// If an image cannot be read.
pub fn raw_pixels(
    view: &ViewPipeline,
    statistics: &[(f32, f32)],
    source: &Arc<dyn ImageSource>,
) -> Result<Embedded> {
    let shape = view.shape(0);
    let mut out = Embedded { feature_dim: shape.len(), dim: shape.len(), ..Embedded::default() };
    chunks(
        &Phase::alone(),
        view,
        source,
        (0, 0),
        |options| options,
        |pixels, _| {
            // Undo the normalization: original pixels, between 0 and 1.
            let channels = statistics.iter().cycle();
            let pixels = pixels.numbers(0..pixels.len());
            out.features.extend(pixels.iter().zip(channels).map(|(v, (mean, std))| v * std + mean));
            Ok(())
        },
    )?;
    out.embeddings.clone_from(&out.features);
    pauc_cluster::unit_rows(&mut out.embeddings, out.dim);
    Ok(out)
}

/// Inputs of probes besides the embedded splits.
#[derive(Clone, Copy)]
pub struct ProbeInputs<'a> {
    /// The data, for labels and classes.
    pub splits: &'a Splits,
    /// The current clusterings.
    pub levels: &'a [Clustering],
    /// Their concentrations.
    pub concentrations: &'a [Vec<f32>],
    /// The run's seed.
    pub seed: u64,
    /// The network to probe; `None` for pixels.
    pub network: Option<&'a dyn ProbedNetwork>,
    /// The device for long computations.
    pub device: Option<&'a dyn ProbesOnDevice>,
}

/// The results of probes.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The metrics of the probes that could measure.
    pub metrics: Vec<Metric>,
    /// Why the other probes could not.
    pub warnings: Vec<String>,
}

/// Runs probes on embedded splits. A probe that cannot measure these splits, such as the retrieval of a single image,
/// is left out with a warning: a training should not fail after its last step.
///
/// # Errors
/// If a value is NaN or infinite, an image cannot be read, the device fails, or the run was asked to stop.
pub fn measure<'p>(
    probes: impl IntoIterator<Item = &'p Configured<dyn Probe>>,
    train: &Embedded,
    test: Option<&Embedded>,
    subject: ProbeInputs<'_>,
) -> Result<Measured> {
    let splits = subject.splits;
    let context = ProbeContext {
        train: train.view(&splits.train),
        test: test.zip(splits.test.as_ref()).map(|(rows, images)| rows.view(images)),
        classes: splits.classes.len(),
        levels: subject.levels,
        concentrations: subject.concentrations,
        seed: subject.seed,
        network: subject.network,
        device: subject.device,
    };
    let mut measured = Measured::default();
    for probe in probes {
        stop::check()?;
        match probe.measure(&context) {
            Ok(metrics) => measured.metrics.extend(metrics),
            Err(Error::Config { message }) => {
                measured.warnings.push(format!("`{}` measured nothing: {message}", probe.name()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(measured)
}
