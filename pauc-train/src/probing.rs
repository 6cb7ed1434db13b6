//! Probes of the run's network and of its baselines.

use crate::evaluate::{self, Embedded, Measured, ProbeInputs};
use crate::observer::Observer;
use crate::phase::Phase;
use crate::plan::Plan;
use crate::probed_network::LentNetwork;
use crate::recipe::Baseline;
use crate::state::TrainState;
use pauc_models::device::NetworkDevice;
use pauc_report::events::{self, Event, Subject};
use pauc_traits::component_ron::Configured;
use pauc_traits::probe::{Metric, MetricKind, ProbedNetwork, When};
use pauc_traits::{Error, Probe, Result};
use std::time::Instant;

/// The splits, embedded by a network or as pixels.
pub(crate) struct EmbeddedSplits {
    pub train: Embedded,
    pub test: Option<Embedded>,
}

impl EmbeddedSplits {
    /// Embeds both splits with `embed`, the training split first.
    fn new(
        plan: &Plan,
        mut embed: impl FnMut(&std::sync::Arc<dyn pauc_traits::dataset::ImageSource>) -> Result<Embedded>,
    ) -> Result<Self> {
        let train = embed(&plan.splits.train)?;
        Ok(EmbeddedSplits { train, test: plan.splits.test.as_ref().map(embed).transpose()? })
    }

    /// Embeds both splits with the online network in evaluation mode.
    pub fn online<D: NetworkDevice>(plan: &Plan, state: &mut TrainState<D>) -> Result<Self> {
        Self::new(plan, |source| evaluate::embed(&mut state.network, &plan.evaluation, source))
    }

    /// As [`EmbeddedSplits::online`], but several ranks share the images. Rank 0 gets the result.
    fn online_on_first<D: NetworkDevice>(
        phase: &Phase,
        plan: &Plan,
        state: &mut TrainState<D>,
    ) -> Result<Option<Self>> {
        let mut embed =
            |source| evaluate::embed_on_first(phase, &mut state.network, &plan.evaluation, source);
        let train = embed(&plan.splits.train)?;
        let test = plan.splits.test.as_ref().map(embed).transpose()?;
        Ok(train.map(|train| EmbeddedSplits { train, test: test.flatten() }))
    }

    /// Returns the split that figures show: the test split, if there is one.
    pub fn shown(&self) -> &Embedded {
        self.test.as_ref().unwrap_or(&self.train)
    }

    /// Returns the evaluation views of both splits as features.
    fn pixels(plan: &Plan) -> Result<Self> {
        let statistics = plan.evaluation.statistics(0);
        Self::new(plan, |source| evaluate::raw_pixels(&plan.evaluation, statistics, source))
    }
}

/// What probes measured, and the splits that they read: `None` if no probe was due, or if another rank has them.
#[derive(Default)]
pub(crate) struct Probed {
    pub metrics: Vec<Metric>,
    pub splits: Option<EmbeddedSplits>,
}

/// Runs the probes due at the end of this epoch, or all of them at the end of the run, and reports their
/// metrics.
pub(crate) fn probe<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    state: &mut TrainState<D>,
    at_end: bool,
    phase: &Phase,
    watch: &mut dyn Observer,
) -> Result<Probed> {
    let horizon = plan.horizon;
    let epoch = state.step / horizon.steps_per_epoch.max(1);
    let is_due = |when: When| match when {
        When::End => at_end,
        When::Every(span) => {
            let epochs = span.steps(&horizon).div_ceil(horizon.steps_per_epoch.max(1)).max(1);
            at_end || epoch.is_multiple_of(epochs)
        }
    };
    let probes: Vec<_> = plan.recipe.probes.iter().filter(|p| is_due(p.when())).collect();
    if probes.is_empty() {
        return Ok(Probed::default());
    }
    let began = Instant::now();
    let splits = EmbeddedSplits::online_on_first(phase, plan, state)?;
    let Measured { metrics, warnings } = on_first(phase, || {
        let Some(splits) = &splits else { return Ok(Measured::default()) };
        let network = LentNetwork::new(device, &state.network, plan);
        measure(device, plan, state, probes, splits, Some(&network))
    })?;
    warn(state, warnings, watch)?;
    watch.event(&report(plan, state, Subject::Trained, began, &metrics))?;
    Ok(Probed { metrics, splits })
}

/// Runs the accuracy probes on the baselines, and reports their metrics.
pub(crate) fn baselines<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    state: &mut TrainState<D>,
    phase: &Phase,
    watch: &mut dyn Observer,
) -> Result<()> {
    for baseline in &plan.recipe.baselines {
        let began = Instant::now();
        let (embedded, subject) = match baseline {
            Baseline::RandomInit => {
                (EmbeddedSplits::online_on_first(phase, plan, state)?, Subject::RandomInit)
            }
            Baseline::RawPixels => (None, Subject::RawPixels),
        };
        let probes = plan.recipe.probes.iter().filter(|p| p.needs_labels());
        let Measured { metrics, warnings } = on_first(phase, || {
            let lent = LentNetwork::new(device, &state.network, plan);
            let network: Option<&dyn ProbedNetwork> = if embedded.is_some() { Some(&lent) } else { None };
            let splits = embedded.map_or_else(|| EmbeddedSplits::pixels(plan), Ok)?;
            measure(device, plan, state, probes, &splits, network)
        })?;
        warn(state, warnings, watch)?;
        watch.event(&report(plan, state, subject, began, &metrics))?;
    }
    Ok(())
}

/// Measures on rank 0, and returns what it measured on all ranks.
pub(crate) fn on_first(phase: &Phase, measure: impl FnOnce() -> Result<Measured>) -> Result<Measured> {
    if !phase.has_others() {
        return measure();
    }
    let invalid = |e: serde_json::Error| Error::Other(e.into());
    let bytes = phase.work_on_first(|| {
        let Measured { metrics, warnings } = measure()?;
        // Bits: JSON has no NaN.
        let values: Vec<u64> = metrics.iter().map(|m| m.value.to_bits()).collect();
        serde_json::to_vec(&(metrics, values, warnings)).map_err(invalid)
    })?;
    let (names, values, warnings): (Vec<NamedMetric>, Vec<u64>, _) =
        serde_json::from_slice(&bytes).map_err(invalid)?;
    let metric = |(NamedMetric { name, kind }, bits)| Metric { name, kind, value: f64::from_bits(bits) };
    Ok(Measured { metrics: names.into_iter().zip(values).map(metric).collect(), warnings })
}

/// A metric without its value.
#[derive(serde::Deserialize)]
struct NamedMetric {
    name: String,
    kind: MetricKind,
}

fn measure<'p, D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    state: &TrainState<D>,
    probes: impl IntoIterator<Item = &'p Configured<dyn Probe>>,
    splits: &EmbeddedSplits,
    network: Option<&dyn ProbedNetwork>,
) -> Result<Measured> {
    let inputs = ProbeInputs {
        splits: &plan.splits,
        levels: state.prototypes.as_ref().map_or(&[], |p| &p.clusterings),
        concentrations: state.prototypes.as_ref().map_or(&[], |p| &p.concentrations),
        seed: plan.recipe.train.seed,
        network,
        device: device.probes_on_device(),
    };
    evaluate::measure(probes, &splits.train, splits.test.as_ref(), inputs)
}

/// Warns, once in a run, of each probe that could not measure.
fn warn<D: NetworkDevice>(
    state: &mut TrainState<D>,
    warnings: Vec<String>,
    watch: &mut dyn Observer,
) -> Result<()> {
    for text in warnings {
        if state.progress.first(&text) {
            watch.warn(state.step, text)?;
        }
    }
    Ok(())
}

fn report<D: NetworkDevice>(
    plan: &Plan,
    state: &TrainState<D>,
    subject: Subject,
    began: Instant,
    metrics: &[Metric],
) -> Event {
    Event::Probe(events::Probe {
        step: state.step,
        epoch: state.epoch(&plan.horizon),
        seconds: began.elapsed().as_secs_f64(),
        subject,
        metrics: metrics.iter().cloned().map(events::Metric::from).collect(),
    })
}
