//! Which images are trained on, and which are held out.

use super::{Choice, Request};
use crate::suggest::count;
use pauc_data::datasets::held_out;

/// The images of a run.
#[derive(Clone, Debug)]
pub(super) struct Images {
    /// Training images.
    pub(super) train: usize,
    /// Test images.
    pub(super) test: usize,
    /// Classes; 0 without labels.
    pub(super) classes: usize,
    /// Whether accuracies can be measured.
    pub(super) can_score: bool,
    /// The fraction to hold out, if it is chosen.
    pub(super) fraction: Option<Choice<f64>>,
}

/// Decides what is held out for testing, and counts the images that can be read, as far as the survey tells.
pub(super) fn images(request: &Request<'_>) -> Images {
    let survey = request.survey;
    let readable = 1.0 - survey.unreadable.len() as f64 / survey.read.max(1) as f64;
    let left = |images: usize| (images as f64 * readable) as usize;
    let all = listed(request);
    Images { train: left(all.train), test: left(all.test), ..all }
}

/// As [`images`], with those that cannot be read.
pub(super) fn listed(request: &Request<'_>) -> Images {
    let survey = request.survey;
    let labeled = survey.is_labeled();
    let mut images = Images {
        train: survey.train,
        test: survey.test,
        classes: survey.classes.len(),
        can_score: labeled && survey.test_is_labeled && survey.test > 0,
        fraction: None,
    };
    if survey.test > 0 || !request.data.may_set("test_fraction") {
        return images;
    }
    if !labeled {
        let why = "There are no labels to test with, so all images are trained on.";
        images.fraction = Some(Choice::new(0.0, why));
        return images;
    }
    let mut sizes: Vec<usize> = survey.classes.iter().copied().filter(|n| *n > 0).collect();
    sizes.sort_unstable();
    let typical = sizes.get(sizes.len() / 2).copied().unwrap_or(0);
    let usual = if survey.train < 2000 { 0.2 } else { 0.1 };
    // At least one image of a typical class, and never its last one.
    let fraction = f64::max(usual, (50.0 / typical.max(1) as f64).ceil() / 100.0).min(0.49);
    let test: usize = sizes.iter().map(|n| held_out(*n, fraction)).sum();
    images.test = test;
    images.train = survey.train - test;
    images.can_score = test > 0;
    let why = match test {
        0 => format!(
            "The {} classes have one image each, so there is nothing to hold out for testing.",
            count(survey.classes.len())
        ),
        test => format!(
            "The data has no test split: {:.0} % of each class are held out for testing, {} images; {} are left to train on.",
            fraction * 100.0,
            count(test),
            count(images.train)
        ),
    };
    images.fraction = Some(Choice::new(if test == 0 { 0.0 } else { fraction }, why));
    images
}
