//! The E-step: clustering the embeddings of the training set.

use crate::evaluate;
use crate::health;
use crate::observer::Observer;
use crate::phase::Phase;
use crate::plan::Plan;
use crate::prototypes::Prototypes;
use crate::state::TrainState;
use pauc_cluster::on_ranks::OnRanks;
use pauc_models::device::NetworkDevice;
use pauc_report::events::{self, ClusterLevel, Event};
use pauc_traits::clusterer::{ClustersOnDevice, FitContext};
use pauc_traits::probe::RowsView;
use pauc_traits::{Clustering, Result};
use std::time::Instant;

/// Returns whether to cluster before the next step: at starts of epochs, at the interval `every`.
pub(crate) fn is_due<D: NetworkDevice>(plan: &Plan, state: &TrainState<D>) -> bool {
    let Some(clusterer) = &plan.recipe.clusterer else { return false };
    let (step, horizon) = (state.step, &plan.horizon);
    if state.last_clustering == Some(step)
        || !step.is_multiple_of(horizon.steps_per_epoch)
        || step < plan.first_clustering
    {
        return false;
    }
    state.last_clustering.is_none_or(|last| step >= last + clusterer.every().steps(horizon).max(1))
}

/// Clusters the training set's embeddings through the momentum network, and reports the clustering. On several ranks,
/// each holds the embeddings of its share of the images, or of all images if the device clusters.
pub(crate) fn cluster<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    state: &mut TrainState<D>,
    phase: &Phase,
    watch: &mut dyn Observer,
) -> Result<()> {
    let Some(clusterer) = &plan.recipe.clusterer else { return Ok(()) };
    let began = Instant::now();
    let train = &plan.splits.train;
    let on_device = device.clusters_on_device();
    let network = state.clustered_network();
    let dim = network.embedding_dim();
    let embeddings = evaluate::embeddings(phase, network, &plan.evaluation, train, on_device.is_some())?;
    let on_ranks = OnRanks(phase);
    let together = phase.has_others().then_some(&on_ranks as &dyn ClustersOnDevice);
    let context = FitContext {
        seed: plan.recipe.train.seed,
        epoch: state.step / plan.horizon.steps_per_epoch.max(1),
        previous: state.prototypes.as_ref().map_or(&[], |p| &p.clusterings),
        labels: train.labels(),
        device: on_device.or(together),
    };
    let prototypes = Prototypes::fit(
        device,
        &*clusterer.value,
        RowsView::new(&embeddings, dim),
        (&plan.recipe.concentration, &state.clock(plan.horizon)),
        context,
    )?;
    let levels = report_levels(&prototypes, context.previous)?;
    phase.agree()?;
    state.prototypes = Some(prototypes);
    state.last_clustering = Some(state.step);
    watch.event(&Event::Clustering(events::Clustering {
        step: state.step,
        epoch: state.epoch(&plan.horizon),
        seconds: began.elapsed().as_secs_f64(),
        levels: levels.clone(),
    }))?;
    health::check_prototypes(state, &levels, watch)
}

/// Summarizes each level for the log.
fn report_levels<D: NetworkDevice>(
    prototypes: &Prototypes<D>,
    before: &[Clustering],
) -> Result<Vec<ClusterLevel>> {
    let level = |c: &Clustering, phi: &[f32], churn: Option<f64>| ClusterLevel {
        churn,
        k: c.k as u64,
        objective: c.report.objective.last().copied().unwrap_or(f64::NAN),
        imbalance: c.report.imbalance,
        empty: c.report.empty as u64,
        splits: c.report.splits as u64,
        concentration_mean: phi.iter().map(|v| *v as f64).sum::<f64>() / phi.len() as f64,
        concentration_min: phi.iter().copied().fold(f32::NAN, f32::min).into(),
        concentration_max: phi.iter().copied().fold(f32::NAN, f32::max).into(),
    };
    let all = prototypes.clusterings.iter().zip(&prototypes.concentrations).zip(prototypes.churn(before)?);
    Ok(all.map(|((clustering, phi), churn)| level(clustering, phi, churn)).collect())
}
