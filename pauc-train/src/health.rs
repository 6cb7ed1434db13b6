//! Signs that a run is not learning: terms at their chance level, collapsed embeddings, empty prototypes.

use crate::objective::{Objective, PlannedTerm, TermValue};
use crate::observer::Observer;
use crate::plan::Plan;
use crate::progress::{NetworkHealth, RunProgress, Sum};
use crate::state::TrainState;
use crate::step_trace::StepTrace;
use pauc_models::device::NetworkDevice;
use pauc_probes::rank::{rank_me, spread};
use pauc_report::events::{self, Event};
use pauc_report::verdict::{COLLAPSED, DEAD, EPOCHS_AT_CHANCE};
use pauc_traits::Result;
use pauc_traits::component_ron::Term;
use pauc_traits::ops::{self, Matrix};
use pauc_traits::probe::RowsView;

/// The largest distance of a term's epoch mean from its chance level, relative to the level, that counts as
/// chance.
const AT_CHANCE: f64 = 0.01;

/// Returns whether a mean is not better than chance, in the direction of descent.
fn is_at_chance(mean: f64, chance: f64) -> bool {
    mean >= chance - AT_CHANCE * chance.abs().max(1.0)
}

/// Reports a warning once per run and `key`.
fn warn_once<D: NetworkDevice>(
    state: &mut TrainState<D>,
    watch: &mut dyn Observer,
    key: &str,
    text: String,
) -> Result<()> {
    if state.progress.first(key) { watch.warn(state.step, text) } else { Ok(()) }
}

/// Adds the terms of a step to the sums of the epoch.
pub(crate) fn count_terms(progress: &mut RunProgress, terms: &[TermValue]) {
    for t in terms.iter().filter(|t| t.skipped.is_none() && t.value.is_finite()) {
        let sum = progress.terms.entry(t.name.clone()).or_default();
        sum.sum += t.value;
        sum.count += 1;
    }
}

/// Reports the state of terms and embeddings after the last step of an epoch, with a warning for everything
/// that is not learning. `embeddings` are those of one view of that step, (B, D).
pub(crate) fn check_epoch<D: NetworkDevice>(
    plan: &Plan,
    state: &mut TrainState<D>,
    terms: &[TermValue],
    embeddings: Option<&Matrix<f32, D>>,
    watch: &mut dyn Observer,
) -> Result<()> {
    let means = epoch_means(&plan.objective, &mut state.progress, terms);
    for term in means.iter().filter(|m| !m.regularizer && m.epochs_at_chance >= EPOCHS_AT_CHANCE) {
        let Some(chance) = term.chance else { continue };
        let events::TermMean { name, mean, epochs_at_chance, .. } = term;
        let text = format!(
            "{name} has been at its chance level for {epochs_at_chance} epochs (mean {mean:.3}, chance {chance:.3}); the network has \
             learned nothing from it so far; try another learning rate or temperature, or a longer warm-up"
        );
        warn_once(state, watch, &format!("chance {name}"), text)?;
    }
    let (spread, rank) = match embeddings.map(ops::to_host).transpose()? {
        Some(values) => {
            let rows = RowsView::new(&values, state.network.embedding_dim());
            (spread(rows)?, rank_me(rows)?)
        }
        None => (f64::NAN, f64::NAN),
    };
    if spread < COLLAPSED {
        let text = format!(
            "embeddings have collapsed: spread {spread:.3} (1: uniform on the sphere, 0: a single point); \
             lower the learning rate, or give uniformity or negatives more weight"
        );
        warn_once(state, watch, "collapse", text)?;
    }
    let (step, epoch) = (state.step, state.epoch(&plan.horizon));
    watch.event(&Event::Health(events::Health { step, epoch, terms: means, spread, rank }))
}

/// Returns the state of the network after the last step; `None` if this process did not take it.
pub(crate) fn of_step<D: NetworkDevice>(
    state: &TrainState<D>,
    trace: &StepTrace<D>,
) -> Result<Option<NetworkHealth>> {
    let Some(last) = trace.steps.back().filter(|last| last.step == state.step) else {
        return Ok(None);
    };
    let embeddings = trace.embeddings.iter().flatten().next().map(ops::to_host).transpose()?;
    let spread_of = |values: Vec<f32>| spread(RowsView::new(&values, state.network.embedding_dim()));
    let spread = embeddings.map(spread_of).transpose()?.filter(|spread| spread.is_finite());
    Ok(Some(NetworkHealth { gradient_norm: last.gradient_norm(), spread }))
}

/// Returns the means of the terms over the epoch, and resets the sums.
fn epoch_means(
    objective: &Objective,
    progress: &mut RunProgress,
    terms: &[TermValue],
) -> Vec<events::TermMean> {
    let mut means = Vec::new();
    for t in terms {
        let Some(sum) = progress.terms.get_mut(&t.name).filter(|s| s.count > 0) else { continue };
        let mean = sum.sum / sum.count as f64;
        let at_chance = t.weight > 0.0 && t.chance.is_some_and(|chance| is_at_chance(mean, chance));
        let epochs_at_chance = if at_chance { sum.at_chance + 1 } else { 0 };
        *sum = Sum { at_chance: epochs_at_chance, ..Sum::default() };
        // A regularizer may rightly stay at its level while the losses move.
        let is_loss = |p: &PlannedTerm| p.name == t.name && matches!(p.term, Term::Loss(_));
        means.push(events::TermMean {
            name: t.name.clone(),
            mean,
            chance: t.chance,
            epochs_at_chance,
            regularizer: !objective.terms.iter().any(is_loss),
        });
    }
    means
}

/// Warns about empty prototypes after a clustering.
pub(crate) fn check_prototypes<D: NetworkDevice>(
    state: &mut TrainState<D>,
    levels: &[events::ClusterLevel],
    watch: &mut dyn Observer,
) -> Result<()> {
    for level in levels.iter().filter(|l| l.empty as f64 > DEAD * l.k as f64) {
        let text = format!(
            "{} of {} prototypes have no samples; use fewer prototypes, or a clusterer that refills empty ones, such as \
             KMeans",
            level.empty, level.k
        );
        warn_once(state, watch, &format!("dead {}", level.k), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_a_level_to_get_below() {
        assert!(is_at_chance(7.62, 7.62) && is_at_chance(7.6, 7.62) && is_at_chance(9.0, 7.62));
        assert!(!is_at_chance(7.4, 7.62));
        // Levels below zero, as of uniformity: −3.9 is better than −3.5.
        assert!(!is_at_chance(-3.9, -3.5) && is_at_chance(-3.5, -3.5));
    }
}
