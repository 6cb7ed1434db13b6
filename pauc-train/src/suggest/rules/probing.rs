//! Probes and baselines.

use super::images::Images;
use super::{Choice, Request};
use crate::suggest::count;
use crate::suggest::machine::Machine;

/// Values of a matrix that a linear probe can pass over often enough in a tenth of the budget, per second of budget.
const LINEAR: f64 = 4e6;
/// The width of most encoders' features.
const FEATURES: f64 = 1024.0;

pub(super) fn probes(
    request: &Request<'_>,
    images: &Images,
    size: usize,
    has_clusters: bool,
) -> Choice<Vec<String>> {
    let every = "every: Fraction(0.2)";
    let mut probes = Vec::new();
    let mut why = Vec::new();
    if images.can_score {
        let k = if images.train < 2000 { 5 } else { 20 };
        probes.push(format!("Knn(k: {k}, {every})"));
        let width = FEATURES.max((size * size * request.survey.channels) as f64);
        let values = images.train as f64 * width * images.classes as f64;
        why.push(format!("{} classes, {} test images.", count(images.classes), count(images.test)));
        if values <= LINEAR * request.budget.seconds() {
            probes.push("Linear(at: End)".into());
        } else {
            why.push(
                "A linear probe would take too much of the budget; `pauc-cli eval` runs it later.".into(),
            );
        }
        if has_clusters && images.classes >= 2 && images.classes <= images.test {
            probes.push(format!("Clusters({every})"));
        }
    } else if images.classes == 0 {
        why.push("No labels, so no accuracies.".into());
    } else {
        why.push("No labeled test images, so no accuracies.".into());
    }
    if has_clusters {
        probes.push(format!("Coagulation({every})"));
    }
    probes.push(format!("Rank({every})"));
    why.push("`Rank` shows whether embeddings collapse.".into());
    Choice::new(probes, why.join(" "))
}

pub(super) fn baselines(images: &Images, machine: &Machine, channels: usize, size: usize) -> Vec<String> {
    if !images.can_score {
        return Vec::new();
    }
    let bytes = 4.0 * (images.train + images.test) as f64 * (size * size * channels) as f64;
    let fits = bytes <= machine.memory.map_or(2e9, |memory| (memory as f64 / 8.0).min(4e9));
    fits.then_some("RawPixels").into_iter().chain(["RandomInit"]).map(String::from).collect()
}
