//! What probably made a value NaN or infinite: rules on the evidence of a postmortem.
//!
//! | rule | evidence |
//! |---|---|
//! | data | pixels that are not finite; or only a few samples are affected, and their views have one color |
//! | temperature | cosines divided by the temperature are beyond `LARGEST_LOGIT` |
//! | term | a term's value or gradient is the first that is not finite, and no rule but the next applies |
//! | dead network | for most of the recorded steps, up to the last, the spread was below [`COLLAPSED`] or the gradient below [`VANISHED`], and it did not grow |
//! | learning rate | a parameter is beyond `LARGEST_PARAMETER`, or the last update was as long as the parameters |
//! | growing gradient | its norm is `GROWTH` times the median of the first half of the steps, or more |
//! | precision | nothing above applies, and the GPU's products are not in `f32` |

use crate::postmortem::{
    Cause, CauseKind, Number, PartSize, Postmortem, Remedy, StepRecord, TensorKind, TermEvidence,
};
use crate::verdict::{COLLAPSED, VANISHED};

/// A logit beyond this is not one of a softmax that can be trained: e^x overflows `f32` at 89.
const LARGEST_LOGIT: f64 = 1e4;
/// Initial weights are below 10 and the scales of normalization are 1. Training does not move them this far.
const LARGEST_PARAMETER: f64 = 1e3;
/// The length of the last update, relative to that of the parameters, beyond which it has replaced them.
const LONGEST_UPDATE: f64 = 0.5;
/// Growth of the gradient norm that counts as steady.
const GROWTH: f64 = 10.0;
/// The fraction of a batch up to which affected samples are "a few".
const FEW: f64 = 0.1;
/// The number of causes to name.
const NAMED: usize = 2;
/// The temperature to try instead of one that is too small.
const TEMPERATURE: f64 = 0.1;

/// Returns the probable causes, most likely first; at least one.
pub fn causes(p: &Postmortem) -> Vec<Cause> {
    let rules = [data, temperature, term, dead_network, learning_rate, growing_gradient];
    let mut found: Vec<Cause> = rules.iter().filter_map(|rule| rule(p)).collect();
    if found.is_empty() {
        found.push(precision(p).unwrap_or_else(|| overflow(p)));
    }
    found.truncate(NAMED);
    found
}

fn kind(p: &Postmortem) -> TensorKind {
    p.first.as_ref().map_or(TensorKind::Other, |first| first.kind)
}

fn data(p: &Postmortem) -> Option<Cause> {
    let batch = p.samples.len() as f64;
    let evidence = if kind(p) == TensorKind::Pixels {
        format!("{} of {} samples have pixels that are NaN or infinite", p.affected_samples, p.samples.len())
    } else {
        let few = p.affected_samples > 0 && (p.affected_samples as f64) <= (FEW * batch).max(1.0);
        let constant = p.suspects.iter().find(|s| s.constant).filter(|_| few && batch > 1.0)?;
        format!(
            "{} of {} samples are affected, and a view of sample {} ({}) has a single color",
            p.affected_samples,
            p.samples.len(),
            constant.id,
            constant.name
        )
    };
    let text = "inspect these samples; remove them, or make views that keep more of an image";
    Some(Cause {
        kind: CauseKind::Data,
        title: "the data".into(),
        evidence,
        remedies: vec![Remedy { text: text.into(), ..Remedy::default() }],
    })
}

/// Returns whether a term is the first to be NaN or infinite: what it reads is finite.
fn starts_in_a_term(p: &Postmortem) -> bool {
    matches!(kind(p), TensorKind::Term | TensorKind::TermGradient)
}

fn temperature(p: &Postmortem) -> Option<Cause> {
    // NaN counts: it is a quotient of an infinite logit.
    let is_small = |t: &&TermEvidence| logit(t).is_some_and(|l| l.is_nan() || l > LARGEST_LOGIT);
    let of_first = |t: &&TermEvidence| p.first.as_ref().is_some_and(|first| first.name == t.name);
    let found = || p.terms.iter().filter(is_small);
    let term = found().find(of_first).or_else(|| found().next())?;
    let (tau, logit) = (term.temperature?, logit(term)?);
    let effect = if starts_in_a_term(p) {
        format!(
            "the embeddings are finite, but a cosine divided by the temperature {} is {}",
            short(tau),
            short(logit)
        )
    } else {
        format!(
            "the temperature {} makes logits up to {}, and the gradient as much longer",
            short(tau),
            short(logit)
        )
    };
    let remedy = |path: &String| Remedy {
        set: vec![format!("{path}={TEMPERATURE}")],
        text: "a usual temperature".into(),
        start_over: false,
    };
    Some(Cause {
        kind: CauseKind::Temperature,
        title: format!("the temperature of {} is too small", term.name),
        evidence: effect,
        remedies: term.temperature_path.iter().map(remedy).collect(),
    })
}

/// Returns the largest logit of a term: as measured, or for a cosine of 1.
fn logit(term: &TermEvidence) -> Option<f64> {
    let tau = term.temperature?;
    Some(term.largest_logit.map_or(1.0 / tau, |logit| logit.0))
}

fn term(p: &Postmortem) -> Option<Cause> {
    let others = [data, temperature, learning_rate, growing_gradient];
    let first = p.first.as_ref().filter(|_| starts_in_a_term(p))?;
    if others.iter().any(|rule| rule(p).is_some()) {
        return None;
    }
    let lengths = p.steps.last().and_then(|s| s.embedding_norms);
    let lengths = lengths.map_or(String::new(), |l| {
        format!("; their lengths are between {} and {}", short(l.least.0), short(l.most.0))
    });
    let text = format!(
        "look for a division by zero, a logarithm of zero or an overflow in {}; postmortem.safetensors has its inputs",
        first.name
    );
    Some(Cause {
        kind: CauseKind::Term,
        title: format!("{} is not finite for finite embeddings", first.name),
        evidence: format!("all embeddings of the batch are finite{lengths}"),
        remedies: vec![Remedy { text, ..Remedy::default() }],
    })
}

fn dead_network(p: &Postmortem) -> Option<Cause> {
    let before = p.before();
    let collapsed = |s: &StepRecord| s.spread.is_some_and(|spread| spread < COLLAPSED);
    let without_gradient = |s: &StepRecord| s.gradient_norm.is_some_and(|norm| norm.0 <= VANISHED);
    let dead: Vec<&StepRecord> = before.iter().filter(|s| collapsed(s) || without_gradient(s)).collect();
    let (first, last) = (dead.first()?, dead.last()?);
    // Embeddings that explode along one direction have little spread too, but such a network learns far too much.
    if growing_gradient(p).is_some() {
        return None;
    }
    if dead.len() < 3 || 2 * dead.len() < before.len() || last.step != before[before.len() - 1].step {
        return None;
    }
    let since = if first.step == before[0].step { "at least since" } else { "since" };
    let evidence = match (first.spread, last.spread) {
        (Some(then), Some(later)) if collapsed(first) => format!(
            "its embeddings had collapsed {since} step {}: spread {} then, {} at step {}",
            first.step,
            short(then),
            short(later),
            last.step
        ),
        _ => {
            let norm = first.gradient_norm.map_or(f64::NAN, |norm| norm.0);
            format!("its gradient had vanished {since} step {}: {} then", first.step, short(norm))
        }
    };
    let (kind, title) = (CauseKind::DeadNetwork, "the network had stopped learning before".into());
    Some(Cause { kind, title, evidence, remedies: lower_rate(p) })
}

fn learning_rate(p: &Postmortem) -> Option<Cause> {
    let largest = p.parameters.iter().filter(|part| !part.largest_in.is_empty());
    // The first of equal ones.
    let largest = largest.rev().max_by(|a, b| order(a.largest).total_cmp(&order(b.largest)))?;
    let last = p.before().last();
    let update = last.and_then(update_of(p));
    let length = p.parameters.iter().map(|part| part.norm.0 * part.norm.0).sum::<f64>().sqrt();
    let replaced = update.is_some_and(|u| u >= LONGEST_UPDATE * length);
    if order(largest.largest) <= LARGEST_PARAMETER && !replaced {
        return None;
    }
    if let Some(cause) = lost_before(p, largest, length) {
        return Some(cause);
    }
    let mut evidence =
        format!("the largest parameter is {}, in {}", short(largest.largest.0), largest.largest_in);
    if let Some((step, update)) = last.zip(update).filter(|_| replaced) {
        evidence.push_str(&format!(
            "; the update of step {} was {} long (rate {} × gradient {}), all parameters are {}",
            step.step,
            short(update),
            short(step.learning_rate.unwrap_or(f64::NAN)),
            short(clipped(p, step)),
            short(length)
        ));
    }
    Some(Cause {
        kind: CauseKind::LearningRate,
        title: "the learning rate is far too high".into(),
        evidence,
        remedies: lower_rate(p),
    })
}

/// Returns the cause if the parameters were far too large before the steps that are known, as after a resume: these
/// steps have hardly moved them. `length`: the norm of all parameters.
fn lost_before(p: &Postmortem, largest: &PartSize, length: f64) -> Option<Cause> {
    let before = p.before();
    let updates: Option<Vec<f64>> = before.iter().map(update_of(p)).collect();
    let moved: f64 = updates?.iter().sum();
    let first = before.first().filter(|first| first.step > 1 && MOMENTUM * moved < length)?;
    let mut remedies = lower_rate(p);
    remedies.iter_mut().for_each(|remedy| remedy.start_over = true);
    Some(Cause {
        kind: CauseKind::LearningRate,
        title: "the parameters were far too large before".into(),
        evidence: format!(
            "the largest is {}, in {}; all are {} long, and the updates since step {} add up to {}: the checkpoint \
             before that step is lost already",
            short(largest.largest.0),
            largest.largest_in,
            short(length),
            first.step,
            short(moved)
        ),
        remedies,
    })
}

/// How much longer than the rate times the gradient updates may be because of momentum.
const MOMENTUM: f64 = 10.0;

/// Orders sizes; NaN counts as infinite.
fn order(size: Number) -> f64 {
    if size.0.is_nan() { f64::INFINITY } else { size.0 }
}

/// The gradient norm of a step after clipping.
fn clipped(p: &Postmortem, step: &StepRecord) -> f64 {
    let norm = step.gradient_norm.map_or(f64::NAN, |n| n.0);
    p.settings.clip_gradient.map_or(norm, |limit| norm.min(limit))
}

/// Returns the length of a step's update, for optimizers whose update is the rate times the gradient.
fn update_of(p: &Postmortem) -> impl Fn(&StepRecord) -> Option<f64> + '_ {
    |step| {
        let is_sgd = p.settings.optimizer == "Sgd";
        let length = step.learning_rate? * clipped(p, step);
        Some(length).filter(|length| is_sgd && !length.is_nan())
    }
}

fn growing_gradient(p: &Postmortem) -> Option<Cause> {
    let norm = |s: &StepRecord| Some((s.step, s.gradient_norm?.0)).filter(|(_, norm)| norm.is_finite());
    let norms: Vec<(u64, f64)> = p.before().iter().filter_map(norm).collect();
    if norms.len() < 4 {
        return None;
    }
    let mut early: Vec<f64> = norms[..norms.len() / 2].iter().map(|(_, norm)| *norm).collect();
    early.sort_by(f64::total_cmp);
    let (usual, (step, last)) = (early[early.len() / 2], norms[norms.len() - 1]);
    let factor = last / usual;
    if usual <= 0.0 || factor < GROWTH {
        return None;
    }
    let mut remedies = lower_rate(p);
    let limit = round(2.0 * usual);
    let clip = Remedy {
        set: vec![format!("train.clip_gradient={limit}")],
        text: format!("clips the gradient at {limit}, twice what it was"),
        start_over: false,
    };
    if p.settings.clip_gradient.is_none_or(|now| now > limit) {
        remedies.push(clip);
    }
    Some(Cause {
        kind: CauseKind::GrowingGradient,
        title: "the gradient grew until it overflowed".into(),
        evidence: format!(
            "its norm grew from {} (median of the steps {} to {}) to {} at step {step}: {} times",
            short(usual),
            norms[0].0,
            norms[norms.len() / 2 - 1].0,
            short(last),
            short(factor)
        ),
        remedies,
    })
}

fn precision(p: &Postmortem) -> Option<Cause> {
    let precision = p.settings.precision.as_ref().filter(|precision| *precision != "F32")?;
    let range = if kind(p) == TensorKind::Gradient {
        "gradients of convolutions are rounded to fp16 first, which ends at 65504"
    } else {
        "products have 8 to 11 significant bits"
    };
    Some(Cause {
        kind: CauseKind::Precision,
        title: format!("the precision {precision} of the GPU's products"),
        evidence: format!("parameters and gradients of the steps before are of usual size, and {range}"),
        remedies: vec![Remedy {
            set: vec!["train.cuda.precision=F32".into()],
            text: "computes products in f32".into(),
            start_over: false,
        }],
    })
}

/// The cause if no rule applies.
fn overflow(p: &Postmortem) -> Cause {
    let steps = p.before().len();
    let evidence = match (&p.first, &p.place) {
        (Some(first), _) => {
            format!("{} overflowed; nothing in the {steps} steps before announced it", first.noun())
        }
        (None, Some(place)) => format!("parameters and running statistics are finite; {place}"),
        (None, None) => "no tensor of the network or the batch is NaN or infinite now".into(),
    };
    Cause {
        kind: CauseKind::Unknown,
        title: "an overflow without a known cause".into(),
        evidence,
        remedies: lower_rate(p),
    }
}

/// Returns changes that make the steps shorter.
fn lower_rate(p: &Postmortem) -> Vec<Remedy> {
    let Some(rate) = p.settings.learning_rate else { return Vec::new() };
    let usual = match p.settings.optimizer.as_str() {
        "AdamW" => 1e-3,
        "Lars" => 0.3,
        _ => 0.06,
    };
    let is_extreme = rate > 100.0 * usual;
    let lower = round(if is_extreme { usual } else { rate / 10.0 });
    let text = if is_extreme { "a usual learning rate" } else { "a tenth of the learning rate" };
    let mut remedies =
        vec![Remedy { set: vec![format!("optimizer.lr={lower}")], text: text.into(), start_over: false }];
    let is_early = p.step <= (p.total_steps / 10).max(10);
    if !is_extreme && is_early && p.settings.warmup_steps == 0 {
        remedies.push(Remedy {
            set: vec!["schedule=WarmupCosine(warmup: Epochs(1))".into()],
            text: "a warm-up of one epoch".into(),
            start_over: false,
        });
    }
    remedies
}

/// Rounds to two significant digits.
fn round(value: f64) -> f64 {
    format!("{value:.1e}").parse().unwrap_or(value)
}

/// Formats a number with four significant digits, in few characters.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => value.to_string(),
        0.0 => "0".into(),
        size if (1e3..1e5).contains(&size) => format!("{value:.0}"),
        size if (1e-3..1e3).contains(&size) => {
            format!("{value:.3e}").parse::<f64>().unwrap_or(value).to_string()
        }
        _ => format!("{value:.1e}").replace(".0e", "e"),
    }
}
