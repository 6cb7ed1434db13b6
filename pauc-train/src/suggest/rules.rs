//! The rules: from a survey, a machine, a goal and a budget to the choices of a recipe.
//!
//! Everything here is a function of its arguments, with the numbers in the reasons that it gives.

mod images;
mod length;
mod loading;
mod networks;
mod objective;
mod pictures;
mod probing;
mod steps;

pub use length::is_enough;
pub use pictures::{Candidate, Picture, candidates, picture, views};

use super::machine::{Machine, Speed};
use super::{Budget, Data, Goal};
use images::images;
use length::{enough, epochs, part, presentations, seconds};
use loading::{data, rate};
use networks::{encoder, projector};
use objective::{Negatives, clusterer, objective, warm_up};
use pauc_data::survey::Survey;
use pictures::why_views;
use probing::{baselines, probes};
use steps::{batch, learning_rate, micro_batch};

/// A value, and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<T> {
    /// The value.
    pub value: T,
    /// The reason, in one or two sentences.
    pub why: String,
}

impl<T> Choice<T> {
    fn new(value: T, why: impl Into<String>) -> Self {
        Choice { value, why: why.into() }
    }
}

/// The choices of a recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// Settings of the dataset: name and value.
    pub data: Vec<(&'static str, Choice<String>)>,
    /// Images of each class to train and to test on, if the budget is too short for all.
    pub part: Option<Choice<[usize; 2]>>,
    /// The views.
    pub views: Choice<String>,
    /// The encoder.
    pub encoder: Choice<String>,
    /// The projector.
    pub projector: Choice<String>,
    /// The momentum encoder.
    pub momentum: Option<Choice<f64>>,
    /// The length of the queue.
    pub queue: Option<Choice<usize>>,
    /// The clusterer.
    pub clusterer: Option<Choice<String>>,
    /// The terms.
    pub objective: Choice<Vec<String>>,
    /// The learning rate.
    pub learning_rate: Choice<f64>,
    /// Epochs.
    pub epochs: Choice<usize>,
    /// Images per batch.
    pub batch: Choice<usize>,
    /// Images whose activations are in memory at once.
    pub micro_batch: Option<Choice<usize>>,
    /// Steps between two lines of the log.
    pub log_every: usize,
    /// The probes.
    pub probes: Choice<Vec<String>>,
    /// The baselines.
    pub baselines: Vec<String>,
    /// The estimated time of the run in seconds.
    pub seconds: f64,
}

/// What a recipe is chosen for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What was found in the dataset.
    pub survey: &'a Survey,
    /// The dataset.
    pub data: &'a Data,
    /// What the encoder is for.
    pub goal: Goal,
    /// The time for the run.
    pub budget: Budget,
}

/// Chooses everything.
///
/// # Panics
/// If no candidate was measured.
pub fn choose(request: &Request<'_>, machine: &Machine) -> Choices {
    let whole = images(request);
    let fitting = |s: &&Speed| {
        presentations(request, rate(request, machine, s, request.survey.images()), &whole)
            >= enough(whole.train)
    };
    let speed = machine.speeds.iter().rev().find(fitting).unwrap_or(&machine.speeds[0]);
    let rate_of = |images: usize| rate(request, machine, speed, images);
    let (part, images) = part(request, rate_of(request.survey.images()), whole.clone());
    let rate = rate_of(images.train + images.test);
    let epochs = epochs(request, rate, &images);
    let batch = batch(machine, images.train, images.train * epochs.value);
    let negatives = Negatives::new(request.goal, images.train, batch.value, epochs.value);
    let steps = (images.train / batch.value).max(1) * epochs.value;
    let size = speed.candidate.size;
    let kind = picture(request.survey);
    let clusterer = clusterer(request.goal, images.train, batch.value, epochs.value);
    let probes = probes(request, &images, size, clusterer.is_some());
    Choices {
        data: data(request, machine, &whole, size),
        part,
        views: Choice::new(speed.candidate.views.clone(), why_views(kind, request.survey)),
        encoder: encoder(request, machine, speed, &images),
        projector: projector(request.goal, kind),
        momentum: negatives.momentum(steps),
        queue: negatives.queue,
        objective: objective(request.goal, negatives.is_in_batch, batch.value, warm_up(epochs.value)),
        clusterer: clusterer.map(|c| c.text()),
        learning_rate: learning_rate(batch.value),
        seconds: seconds(request, rate, &images, epochs.value),
        epochs,
        micro_batch: micro_batch(machine, size, batch.value),
        batch,
        log_every: (steps / 200).max(1),
        baselines: baselines(&images, machine, request.survey.channels, size),
        probes,
    }
}

#[cfg(test)]
mod tests;
