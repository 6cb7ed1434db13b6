//! The log entry of a step.

use crate::objective::TermValue;
use crate::observer::Observer;
use crate::plan::Plan;
use crate::state::TrainState;
use crate::step::StepOutcome;
use crate::term_gradients::GradientsByTerm;
use pauc_models::device::NetworkDevice;
use pauc_report::events::{self, Event};
use pauc_traits::Result;

/// Reports the last step. Warns once for each term that had no value.
pub(crate) fn log_step<D: NetworkDevice>(
    plan: &Plan,
    state: &mut TrainState<D>,
    outcome: &StepOutcome,
    images_per_second: f64,
    watch: &mut dyn Observer,
) -> Result<()> {
    let (step, epoch) = (state.step, state.epoch(&plan.horizon));
    for term in &outcome.terms {
        if let Some(why) = &term.skipped
            && state.progress.first(&format!("skipped {}", term.name))
        {
            watch.warn(step, format!("{} has no value on some batches: {why}", term.name))?;
        }
    }
    watch.event(&Event::Step(events::Step {
        step,
        epoch,
        lr: outcome.update.learning_rate,
        loss: outcome.loss,
        terms: outcome.terms.iter().map(term_event).collect(),
        grad_norm: outcome.update.gradient_norm,
        images_per_second,
    }))?;
    match &outcome.gradients_by_term {
        Some(gradients) => watch.event(&gradients_event(step, epoch, gradients)),
        None => Ok(()),
    }
}

fn term_event(term: &TermValue) -> events::Term {
    events::Term {
        name: term.name.clone(),
        value: Some(term.value),
        weight: term.weight,
        chance: term.chance,
        skipped: term.skipped.is_some(),
    }
}

fn gradients_event(step: u64, epoch: f64, gradients: &GradientsByTerm) -> Event {
    let terms = gradients.terms.iter().map(|term| events::TermGradient {
        name: term.name.clone(),
        norm: term.norm,
        cosines: term.cosines.clone(),
    });
    Event::Gradients(events::Gradients { step, epoch, terms: terms.collect(), total: gradients.total })
}
