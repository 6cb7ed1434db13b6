//! The evidence of a postmortem: the first tensor that is not finite, the last steps, terms and parameters.

use crate::inspection::{Inspection, Rows};
use crate::objective::TermValue;
use crate::plan::Plan;
use crate::state::TrainState;
use crate::step_trace::{StepTrace, TracedStep};
use pauc_data::ImageBatch;
use pauc_models::device::NetworkDevice;
use pauc_probes::rank::{rank_me, spread};
use pauc_report::postmortem::{
    FirstTensor, Lengths, Number, PartNorm, PartSize, StepRecord, TensorKind, TermEvidence, TermRecord,
};
use pauc_traits::probe::RowsView;
use pauc_traits::schedule::Clock;
use pauc_traits::{Param, ops};

/// Rows whose effective rank and cosines are computed; above it, evenly spaced rows are used.
const MOST_ROWS: usize = 256;

/// The state of a run that failed.
pub(crate) struct Evidence<'a, D: NetworkDevice> {
    pub device: &'a D,
    pub plan: &'a Plan,
    pub state: &'a TrainState<D>,
    pub trace: &'a StepTrace<D>,
    /// The batch of the failed step, if it failed in one.
    pub batch: Option<&'a ImageBatch>,
    /// The second look at that batch, if it succeeded.
    pub inspection: Option<&'a Inspection>,
}

/// Returns the first element of a tensor that is NaN or infinite, with its place.
fn scan(kind: TensorKind, name: &str, shape: &[usize], values: &[f32]) -> Option<FirstTensor> {
    let flat = values.iter().position(|v| !v.is_finite())?;
    let mut index = vec![0; shape.len()];
    let mut rest = flat;
    for (i, len) in index.iter_mut().zip(shape).rev() {
        (*i, rest) = (rest % len.max(&1), rest / len.max(&1));
    }
    Some(FirstTensor {
        kind,
        name: name.to_string(),
        shape: shape.to_vec(),
        index,
        value: Number(values[flat].into()),
        non_finite: values.iter().filter(|v| !v.is_finite()).count() as u64,
        elements: values.len() as u64,
    })
}

/// Returns the squared length of each row, summed in `f32` as the network does.
pub(crate) fn squared_lengths(rows: &[f32], width: usize) -> Vec<f32> {
    rows.chunks_exact(width.max(1)).map(|row| row.iter().map(|v| v * v).sum()).collect()
}

/// Returns the part of the network that a parameter belongs to: a stage of the encoder, a head, or a term.
pub(crate) fn part_of(name: &str) -> String {
    let mut words = name.split('.');
    let first = words.next().unwrap_or_default();
    match (first, words.next()) {
        ("encoder", Some(stage)) => format!("encoder.{stage}"),
        _ => first.to_string(),
    }
}

impl<D: NetworkDevice> Evidence<'_, D> {
    /// Returns the first tensor, in the order of computation, that is NaN or infinite.
    pub fn first_tensor(&self) -> Option<FirstTensor> {
        self.pixels().or_else(|| self.broken_parameter()).or_else(|| match self.inspection {
            Some(found) => self.activations(found).or_else(|| self.gradient()),
            None => self.statistic(|_| true),
        })
    }

    fn pixels(&self) -> Option<FirstTensor> {
        let batch = self.batch?;
        batch.views.iter().enumerate().find_map(|(v, pixels)| {
            let view = self.plan.views.shape(v);
            let shape = [batch.ids.len(), view.height, view.width, view.channels];
            scan(TensorKind::Pixels, &format!("view {v}"), &shape, &pixels.numbers(0..pixels.len()))
        })
    }

    fn scan_param(&self, kind: TensorKind, param: &Param<D>) -> Option<FirstTensor> {
        scan(kind, &param.name, &param.shape, &self.device.download(&param.value()).ok()?)
    }

    fn broken_parameter(&self) -> Option<FirstTensor> {
        let matrices = self.state.term_matrices.iter().map(|m| m.param.clone());
        let all: Vec<_> = self.state.network.parameters().into_iter().chain(matrices).collect();
        all.iter().find_map(|p| self.scan_param(TensorKind::Parameter, p))
    }

    /// Returns the first running statistic that is not finite: that of the first activations that are not.
    fn statistic(&self, wanted: impl Fn(&str) -> bool) -> Option<FirstTensor> {
        let all = self.state.network.statistics();
        all.iter().filter(|p| wanted(&p.name)).find_map(|p| self.scan_param(TensorKind::Statistic, p))
    }

    /// Goes through what the pass computed, in its order.
    fn activations(&self, found: &Inspection) -> Option<FirstTensor> {
        let rows = |kind, rows: &Rows| {
            let shape = [found.samples, rows.width];
            rows.iter().find_map(|(view, values)| scan(kind, &format!("view {view}"), &shape, values))
        };
        let features = || {
            let features = rows(TensorKind::Features, &found.features)?;
            // The layer within the encoder, if one of its layers has statistics.
            self.statistic(|name| name.starts_with("encoder.")).or(Some(features))
        };
        let embeddings = || {
            let embeddings = rows(TensorKind::Embeddings, &found.embeddings)?;
            self.statistic(|name| name.starts_with("projector.")).or(Some(embeddings))
        };
        let lengths = || {
            found.embeddings.iter().find_map(|(view, values)| {
                let squares = squared_lengths(values, found.embeddings.width);
                scan(TensorKind::SquaredLengths, &format!("view {view}"), &[squares.len()], &squares)
            })
        };
        let term = || {
            let value = |(t, _): &(TermValue, _)| scan(TensorKind::Term, &t.name, &[], &[t.value as f32]);
            found.terms.iter().find_map(value)
        };
        features()
            .or_else(embeddings)
            .or_else(lengths)
            .or_else(|| rows(TensorKind::Predictions, &found.predictions))
            .or_else(|| rows(TensorKind::Keys, &found.keys))
            .or_else(term)
            .or_else(|| term_gradient(found))
    }

    /// Returns the first gradient of a parameter that is not finite, in the order of the backward pass.
    fn gradient(&self) -> Option<FirstTensor> {
        self.state.parameters().iter().rev().find_map(|p| {
            let values = self.device.download(&p.grad()).ok()?;
            scan(TensorKind::Gradient, &p.name, &p.shape, &values)
        })
    }

    /// Returns the records of the last steps and of the step that failed.
    pub fn steps(&self) -> Vec<StepRecord> {
        let completed = self.trace.steps.iter().map(|s| self.record(s));
        completed.chain(self.batch.map(|_| self.failed_step())).collect()
    }

    fn record(&self, s: &TracedStep<D>) -> StepRecord {
        let rows = s.embeddings.as_ref().and_then(|rows| ops::to_host(rows).ok());
        StepRecord {
            step: s.step,
            loss: Some(Number(s.loss)),
            terms: self.term_records(s.step, &s.terms),
            learning_rate: Some(s.learning_rate),
            gradient_norm: Some(Number(s.gradient_norm())),
            gradient_by_part: self.by_part(&s.squares),
            ..self.of_embeddings(rows.as_deref())
        }
    }

    fn failed_step(&self) -> StepRecord {
        let (step, current) = (self.state.step + 1, &self.trace.current);
        let inspected = || {
            let terms: Vec<_> = self.inspection?.terms.iter().map(|(t, _)| t.clone()).collect();
            // A term of weight 0 is no part of the sum: 0 times NaN would be NaN.
            let weighted = terms.iter().filter(|t| t.weight != 0.0).map(|t| t.weight * t.value);
            Some((weighted.sum::<f64>(), terms))
        };
        let values = current.values.clone().or_else(inspected);
        let squares = current.squares.as_deref();
        let recipe = &self.plan.recipe;
        let scale = recipe.schedule.factor_at(&self.state.clock(self.plan.horizon));
        let rate = recipe.optimizer.learning_rate(recipe.train.images_per_step()) * scale;
        StepRecord {
            step,
            loss: values.as_ref().map(|(loss, _)| Number(*loss)),
            terms: values.as_ref().map(|(_, terms)| self.term_records(step, terms)).unwrap_or_default(),
            learning_rate: Some(rate),
            gradient_norm: squares.map(|s| Number(s.iter().sum::<f64>().sqrt())),
            gradient_by_part: squares.map(|s| self.by_part(s)).unwrap_or_default(),
            ..self.of_embeddings(self.inspection.and_then(|i| i.embeddings.first()))
        }
    }

    fn term_records(&self, step: u64, terms: &[TermValue]) -> Vec<TermRecord> {
        let clock = Clock { step: step.saturating_sub(1), horizon: self.plan.horizon };
        let record = |t: &TermValue| TermRecord {
            name: t.name.clone(),
            value: Number(t.value),
            weight: t.weight,
            temperature: self
                .planned_temperature(&t.name, &clock)
                .filter(|_| self.learned(&t.name).is_none()),
        };
        terms.iter().map(record).collect()
    }

    fn planned_temperature(&self, term: &str, clock: &Clock) -> Option<f64> {
        let planned = self.plan.objective.terms.iter().find(|t| t.name == term)?;
        planned.term.info().temperature(clock).map(|t| t.value)
    }

    /// Returns the temperature that a term has learned.
    fn learned(&self, term: &str) -> Option<f64> {
        let name = format!("{term}.ln_temperature");
        let matrix = self.state.term_matrices.iter().find(|m| m.param.name == name)?;
        let values = self.device.download(&matrix.param.value()).ok()?;
        values.first().map(|ln| f64::from(*ln).exp())
    }

    /// Adds up squared norms by part of the network.
    fn by_part(&self, squares: &[f64]) -> Vec<PartNorm> {
        let mut parts: Vec<(String, f64)> = Vec::new();
        for (param, square) in self.state.parameters().iter().zip(squares) {
            let part = part_of(&param.name);
            match parts.iter_mut().find(|(name, _)| *name == part) {
                Some((_, sum)) => *sum += square,
                None => parts.push((part, *square)),
            }
        }
        parts.into_iter().map(|(part, sum)| PartNorm { part, norm: Number(sum.sqrt()) }).collect()
    }

    /// Returns a record with what embeddings say.
    fn of_embeddings(&self, rows: Option<&[f32]>) -> StepRecord {
        let Some(values) = rows.filter(|rows| !rows.is_empty()) else { return StepRecord::default() };
        let rows = RowsView::new(values, self.state.network.embedding_dim());
        let length = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let lengths: Vec<f64> = rows.iter().map(length).collect();
        let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
        let (least, most) = lengths.iter().fold((f64::INFINITY, 0.0f64), |(l, m), v| (l.min(*v), m.max(*v)));
        let (least, mean, most) = match mean.is_nan() {
            true => (Number(mean), Number(mean), Number(mean)),
            false => (Number(least), Number(mean), Number(most)),
        };
        let some = some_rows(values, rows.cols);
        StepRecord {
            spread: spread(rows).ok(),
            rank: rank_me(RowsView::new(&some, rows.cols)).ok(),
            embedding_norms: Some(Lengths { least, mean, most }),
            ..StepRecord::default()
        }
    }

    /// Returns the terms of the failed step.
    pub fn terms(&self) -> Vec<TermEvidence> {
        let Some(found) = self.inspection else { return Vec::new() };
        let clock = self.state.clock(self.plan.horizon);
        let cosine = largest_cosine(&found.embeddings);
        let evidence = |(t, gradients): &(TermValue, pauc_traits::batch::BatchGradients<f32>)| {
            let rows = gradients.views.iter().chain(&gradients.predictions).flatten();
            let square: f64 = rows.flatten().map(|g| f64::from(*g).powi(2)).sum();
            let at = self.plan.objective.terms.iter().position(|p| p.name == t.name);
            let field = at.and_then(|i| self.plan.objective.terms[i].term.info().temperature(&clock));
            let temperature = self.learned(&t.name).or(field.map(|f| f.value));
            TermEvidence {
                name: t.name.clone(),
                value: Number(t.value),
                gradient_norm: Number(t.weight * square.sqrt()),
                temperature,
                temperature_path: at.zip(field).map(|(i, f)| format!("objective[{i}].term.{}", f.field)),
                // In `f32`, as the term divides.
                largest_logit: cosine.zip(temperature).map(|(c, tau)| Number(f64::from(c / tau as f32))),
            }
        };
        found.terms.iter().map(evidence).collect()
    }

    /// Returns the sizes of the parameters by part of the network.
    pub fn parameters(&self) -> Vec<PartSize> {
        let mut parts: Vec<(PartSize, f64)> = Vec::new();
        for param in self.state.parameters() {
            let Ok(values) = self.device.download(&param.value()) else { continue };
            let part = part_of(&param.name);
            let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            let largest = values
                .iter()
                .map(|v| f64::from(v.abs()))
                .fold(0.0, |m: f64, v| if v.is_nan() || m.is_nan() { f64::NAN } else { m.max(v) });
            let i = parts.iter().position(|(p, _)| p.part == part).unwrap_or_else(|| {
                parts.push((PartSize { part, ..PartSize::default() }, 0.0));
                parts.len() - 1
            });
            let (size, sum) = &mut parts[i];
            *sum += square;
            if size.largest_in.is_empty() || largest.is_nan() || largest > size.largest.0 {
                (size.largest, size.largest_in) = (Number(largest), param.name.clone());
            }
        }
        parts.into_iter().map(|(size, sum)| PartSize { norm: Number(sum.sqrt()), ..size }).collect()
    }
}

/// Returns the first gradient of a term at its inputs that is not finite.
fn term_gradient(found: &Inspection) -> Option<FirstTensor> {
    let shape = [found.samples, found.embeddings.width];
    found.terms.iter().find_map(|(t, gradients)| {
        let rows = gradients.views.iter().chain(&gradients.predictions).flatten();
        rows.map(|values| scan(TensorKind::TermGradient, &t.name, &shape, values)).find_map(|first| first)
    })
}

/// Returns at most [`MOST_ROWS`] evenly spaced rows.
fn some_rows(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols.max(1);
    let some = rows.min(MOST_ROWS);
    (0..some).flat_map(|i| values[i * rows / some * cols..][..cols].iter().copied()).collect()
}

/// Returns the largest absolute cosine of two different embeddings of the first two views that are read.
fn largest_cosine(embeddings: &Rows) -> Option<f32> {
    let width = embeddings.width;
    let mut unit: Vec<f32> = embeddings.iter().take(2).flat_map(|(_, v)| some_rows(v, width)).collect();
    if unit.iter().any(|v| !v.is_finite()) {
        return None;
    }
    pauc_cluster::unit_rows(&mut unit, width);
    let rows: Vec<&[f32]> = unit.chunks_exact(width.max(1)).collect();
    let pairs = rows.iter().enumerate().flat_map(|(i, a)| rows[..i].iter().map(move |b| (a, b)));
    let cosine = |(a, b): (&&[f32], &&[f32])| a.iter().zip(*b).map(|(a, b)| a * b).sum::<f32>().abs();
    pairs.map(cosine).reduce(f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_element_is_found_with_its_index() {
        let values = [1.0, 2.0, 3.0, 4.0, f32::INFINITY, f32::NAN];
        let first = scan(TensorKind::Features, "view 0", &[2, 3], &values).unwrap();
        assert_eq!((first.index.as_slice(), first.non_finite, first.elements), (&[1, 1][..], 2, 6));
        assert_eq!(first.sentence(), "the features of view 0: 2 of 6 values, the first at [1, 1] is inf");
        assert!(scan(TensorKind::Features, "view 0", &[2, 2], &values[..4]).is_none());
    }

    #[test]
    fn parts_are_stages_of_the_encoder_heads_and_terms() {
        let parts = ["encoder.layer1.0.conv1.weight", "projector.0.weight", "InfoNce.ln_temperature"];
        assert_eq!(parts.map(part_of), ["encoder.layer1", "projector", "InfoNce"]);
    }

    #[test]
    fn the_largest_cosine_is_that_of_two_different_rows() {
        let views = vec![Some(vec![3.0, 4.0, 1.0, 0.0]), None, Some(vec![0.0, 2.0, -2.0, 0.0])];
        // Unit rows (0.6, 0.8), (1, 0), (0, 1), (−1, 0).
        assert_eq!(largest_cosine(&Rows { width: 2, views }), Some(1.0));
        let views = vec![Some(vec![3.0, 4.0]), Some(vec![0.0, 2.0])];
        assert_eq!(largest_cosine(&Rows { width: 2, views }), Some(0.8));
        assert_eq!(largest_cosine(&Rows { width: 1, views: vec![Some(vec![f32::NAN])] }), None);
    }
}
