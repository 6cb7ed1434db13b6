//! What fits into the budget.

use super::images::{Images, images};
use super::loading::rate;
use super::{Choice, Request};
use crate::suggest::machine::Machine;
use crate::suggest::{Goal, count, time};
use pauc_data::datasets::held_out;

/// The share of the budget that is planned for; the rest is for what is measured after the run, and for surprises.
const PLANNED: f64 = 0.85;
/// Passes over all images besides training, such as those of baselines and probes, each a third of an epoch's time.
const OTHER_PASSES: f64 = 5.0 / 3.0;
/// The share of an epoch's time that a clustering adds, if there is one per epoch.
const CLUSTERING: f64 = 0.4;

/// Presentations of images after which an encoder is worth its size.
pub(super) fn enough(images: usize) -> f64 {
    (20.0 * images as f64).clamp(40_000.0, 20e6)
}

/// Returns the presentations of images that fit into the budget.
pub(super) fn presentations(request: &Request<'_>, rate: f64, images: &Images) -> f64 {
    let others = OTHER_PASSES * (images.train + images.test) as f64 / rate;
    let left = (PLANNED * request.budget.seconds() - others).max(0.0);
    let clustering = if request.goal == Goal::Clusters { 1.0 + CLUSTERING } else { 1.0 };
    left * rate / clustering
}

/// Returns whether no larger candidate than those measured fits into the budget.
pub fn is_enough(request: &Request<'_>, machine: &Machine) -> bool {
    let images = images(request);
    let last = machine.speeds.last();
    last.is_some_and(|s| {
        presentations(request, rate(request, machine, s, request.survey.images()), &images)
            < 2.0 * enough(images.train)
    })
}

/// Returns the estimated time of a run in seconds.
pub(super) fn seconds(request: &Request<'_>, rate: f64, images: &Images, epochs: usize) -> f64 {
    let clustering = if request.goal == Goal::Clusters { 1.0 + CLUSTERING } else { 1.0 };
    let others = OTHER_PASSES * (images.train + images.test) as f64;
    (images.train as f64 * epochs as f64 * clustering + others) / rate
}

/// Rounds down to one significant digit.
pub(super) fn round(n: f64) -> usize {
    let unit = 10f64.powf(n.max(1.0).log10().floor());
    ((n / unit).floor() * unit) as usize
}

/// The fewest epochs over a part of the data.
const EPOCHS_OF_PART: f64 = 4.0;
/// The fewest images of a part.
const FEWEST_OF_PART: f64 = 300.0;

/// Takes a part of the data if the budget is too short for one epoch of all; for clusters, of four.
pub(super) fn part(request: &Request<'_>, rate: f64, whole: Images) -> (Option<Choice<[usize; 2]>>, Images) {
    let least = if request.goal == Goal::Clusters { EPOCHS_OF_PART } else { 1.0 };
    let fits = presentations(request, rate, &whole) >= least * whole.train as f64;
    // Rates of smaller data need not be planned to the second.
    let seen = PLANNED * request.budget.seconds() * rate / (EPOCHS_OF_PART + 2.0);
    let wanted = round(seen.max(FEWEST_OF_PART));
    if fits || wanted >= whole.train {
        return (None, whole);
    }
    let groups = whole.classes.max(1);
    let per_class = (wanted / groups).max(1);
    let of_test = (per_class / 5).max(1);
    let sizes: Vec<usize> = match whole.classes {
        0 => vec![whole.train],
        _ => request.survey.classes.clone(),
    };
    let held = whole.fraction.as_ref().map_or(0.0, |f| f.value);
    let train: usize = sizes.iter().map(|n| (n - held_out(*n, held).min(*n)).min(per_class)).sum();
    let test = whole.test.min(of_test * groups);
    let why = format!(
        "One epoch of {} images would take {} at {rate:.0} images/s, and the budget is {}. So the run learns from {} of them, \
         the same in every run; a longer budget gets more.",
        count(whole.train),
        time(whole.train as f64 / rate),
        request.budget,
        count(train)
    );
    (Some(Choice::new([per_class, of_test], why)), Images { train, test, ..whole })
}

/// Chooses the epochs that fit into the budget.
pub(super) fn epochs(request: &Request<'_>, rate: f64, images: &Images) -> Choice<usize> {
    let most = (400_000 / images.train.max(1)).clamp(100, 1000);
    let least = if request.goal == Goal::Clusters { 4 } else { 1 };
    let fitting = (presentations(request, rate, images) / images.train.max(1) as f64) as usize;
    let epochs = fitting.clamp(least, most);
    let took = time(seconds(request, rate, images, epochs));
    let reason = if fitting > most {
        format!("more than {most} epochs add little")
    } else if fitting < least {
        format!(
            "fewer than {least} epochs would not do, although that exceeds the budget of {}",
            request.budget
        )
    } else {
        format!("that fits into the budget of {}", request.budget)
    };
    Choice::new(
        epochs,
        format!(
            "{} images at {rate:.0} images/s: the run takes about {took}; {reason}.",
            count(images.train)
        ),
    )
}
