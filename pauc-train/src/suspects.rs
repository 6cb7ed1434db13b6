//! The samples of a failed batch that stand out, and pictures of them.

use crate::evidence::squared_lengths;
use crate::inspection::Inspection;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use pauc_data::pixels::{Filter, Rect, resample};
use pauc_data::{ImageBatch, contact_sheet};
use pauc_report::postmortem::{Postmortem, SHOWN_SAMPLES, SHOWN_VIEWS, Suspect};
use pauc_traits::batch::BatchGradients;
use pauc_traits::{Image, ImageShape, Result};

/// The longest side of a picture in pixels.
const SIDE: usize = 96;
/// The number of samples to show if none or all of the batch are affected.
const EXAMPLES: usize = 4;

/// What a row of a batch shows.
#[derive(Clone, Default)]
struct Signs {
    /// The first values of the row that are NaN or infinite: `the embedding of view 0`. Only the first tensor counts in
    /// which any row has such values: those that are computed from it mix the rows.
    broken: Option<String>,
    /// The views of a single color.
    constant: Vec<usize>,
    /// The squared norm of the gradients at its embeddings.
    gradient: f64,
}

/// Returns the number of samples with values that are NaN or infinite, and the samples that stand out.
pub(crate) fn find(plan: &Plan, batch: &ImageBatch, inspection: Option<&Inspection>) -> (u64, Vec<Suspect>) {
    let mut signs = vec![Signs::default(); batch.ids.len()];
    of_pixels(plan, batch, &mut signs);
    if let Some(found) = inspection {
        of_inspection(found, &mut signs);
    }
    let affected = signs.iter().filter(|s| s.broken.is_some()).count();
    let total: f64 = signs.iter().map(|s| s.gradient).sum();
    let mut order: Vec<usize> = (0..signs.len()).collect();
    let gradient = |i: &usize| if signs[*i].gradient.is_nan() { f64::INFINITY } else { signs[*i].gradient };
    order.sort_by(|a, b| {
        let rank = |i: &usize| (signs[*i].broken.is_none(), signs[*i].constant.is_empty());
        rank(a).cmp(&rank(b)).then(gradient(b).total_cmp(&gradient(a))).then(a.cmp(b))
    });
    let some = affected > 0 && affected < signs.len();
    order.truncate(if some { affected.min(SHOWN_SAMPLES) } else { EXAMPLES });
    let suspect = |row: usize| {
        let id = batch.ids[row];
        let label = batch.labels.as_ref().map(|labels| labels[row]);
        Suspect {
            id,
            row: row as u64,
            label,
            class: label.and_then(|l| plan.splits.classes.get(l as usize).cloned()),
            name: plan.splits.train.name(id as usize),
            why: signs[row].reason(total),
            constant: !signs[row].constant.is_empty(),
            views: batch.views.len().min(SHOWN_VIEWS),
        }
    };
    (affected as u64, order.into_iter().map(suspect).collect())
}

impl Signs {
    /// Says why a row stands out; `total` is the sum over the batch of [`Signs::gradient`].
    fn reason(&self, total: f64) -> String {
        let mut reasons = Vec::new();
        if let Some(first) = &self.broken {
            reasons.push(format!("NaN or infinite: {first}"));
        }
        match self.constant.as_slice() {
            [] => {}
            [view] => reasons.push(format!("view {view} has a single color")),
            views => {
                let views: Vec<String> = views.iter().map(usize::to_string).collect();
                reasons.push(format!("views {} have a single color", views.join(", ")));
            }
        }
        if self.gradient.is_finite() && total > 0.0 && total.is_finite() {
            let share = 100.0 * self.gradient / total;
            reasons.push(format!("{share:.1} % of the squared gradient at the embeddings"));
        }
        if reasons.is_empty() { "nothing stands out".into() } else { reasons.join("; ") }
    }
}

/// Notes the views of a single color, and pixels that are not finite.
fn of_pixels(plan: &Plan, batch: &ImageBatch, signs: &mut [Signs]) {
    for (view, pixels) in batch.views.iter().enumerate() {
        let shape = plan.views.shape(view);
        for (row, signs) in signs.iter_mut().enumerate() {
            let values = pixels.numbers(row * shape.len()..(row + 1) * shape.len());
            if signs.broken.is_none() && values.iter().any(|v| !v.is_finite()) {
                signs.broken = Some(format!("the pixels of view {view}"));
            }
            let mut pixels = values.chunks_exact(shape.channels.max(1));
            if pixels.next().is_some_and(|first| pixels.all(|pixel| pixel == first)) {
                signs.constant.push(view);
            }
        }
    }
}

/// Notes gradients, and the rows that are not finite in the first tensor that has such rows.
fn of_inspection(found: &Inspection, signs: &mut [Signs]) {
    let width = found.embeddings.width;
    for (term, gradients) in found.terms.iter().filter(|(term, _)| term.weight != 0.0) {
        for rows in at_inputs(gradients) {
            for (row, signs) in rows.chunks_exact(width.max(1)).zip(signs.iter_mut()) {
                signs.gradient += row.iter().map(|g| (term.weight * f64::from(*g)).powi(2)).sum::<f64>();
            }
        }
    }
    let outputs = [
        ("features", &found.features),
        ("embedding", &found.embeddings),
        ("prediction", &found.predictions),
        ("key", &found.keys),
    ];
    for (what, rows) in outputs {
        for (view, values) in rows.iter() {
            note_broken(signs, values, rows.width, &format!("the {what} of view {view}"));
            if what == "embedding" {
                let squares = squared_lengths(values, rows.width);
                note_broken(signs, &squares, 1, &format!("the squared length of the {what} of view {view}"));
            }
        }
        if signs.iter().any(|s| s.broken.is_some()) {
            return;
        }
    }
    for (term, gradients) in &found.terms {
        for rows in at_inputs(gradients) {
            note_broken(signs, rows, width, &format!("the gradient of {}", term.name));
        }
    }
}

/// Returns the gradients of a term at the embeddings and predictions of each view.
fn at_inputs(gradients: &BatchGradients<f32>) -> impl Iterator<Item = &Vec<f32>> {
    gradients.views.iter().chain(&gradients.predictions).flatten()
}

/// Notes the rows that are not finite, unless something was noted before.
fn note_broken(signs: &mut [Signs], values: &[f32], width: usize, what: &str) {
    for (row, signs) in values.chunks_exact(width.max(1)).zip(signs) {
        if signs.broken.is_none() && row.iter().any(|v| !v.is_finite()) {
            signs.broken = Some(what.to_string());
        }
    }
}

/// Writes pictures of samples: the image, if it can be read, and the views that the network saw. Returns the
/// first error of the disk.
pub(crate) fn draw(plan: &Plan, batch: &ImageBatch, suspects: &[Suspect], dir: &RunDir) -> Result<()> {
    for (i, suspect) in suspects.iter().enumerate() {
        if let Ok(image) = plan.splits.train.image(suspect.id as usize) {
            dir.write(&Postmortem::picture(i, None), png(&image)?)?;
        }
        for view in 0..suspect.views {
            dir.write(
                &Postmortem::picture(i, Some(view)),
                png(&seen(plan, batch, view, suspect.row as usize))?,
            )?;
        }
    }
    Ok(())
}

/// Returns a view as it looked before its normalization. Pixels that are NaN are magenta, or white in a gray image.
fn seen(plan: &Plan, batch: &ImageBatch, view: usize, row: usize) -> Image<'static> {
    let shape = plan.views.shape(view);
    let values = batch.views[view].numbers(row * shape.len()..(row + 1) * shape.len());
    let statistics = plan.views.statistics(view).iter().cycle();
    let byte = |(i, (v, (mean, deviation))): (usize, (&f32, &(f32, f32)))| {
        let value = (v * deviation + mean) * 255.0;
        let is_green = shape.channels == 3 && i % 3 == 1;
        if value.is_nan() { if is_green { 0 } else { 255 } } else { value.round().clamp(0.0, 255.0) as u8 }
    };
    let pixels: Vec<u8> = values.iter().zip(statistics).enumerate().map(byte).collect();
    Image::new(shape, pixels)
}

/// Returns a PNG of an image, at most [`SIDE`] pixels wide and high.
fn png(image: &Image<'_>) -> Result<Vec<u8>> {
    let ImageShape { height, width, .. } = image.shape;
    let longest = height.max(width).max(1);
    if longest <= SIDE {
        return contact_sheet::png(image);
    }
    let scaled = |side: usize| (side * SIDE / longest).max(1);
    let rect = Rect::whole(image.shape);
    let small = resample::resize(image, rect, scaled(height), scaled(width), Filter::Bilinear);
    contact_sheet::png(&small)
}
