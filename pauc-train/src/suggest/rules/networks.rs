//! Encoder and projector.

use super::images::Images;
use super::length::{enough, presentations};
use super::loading::rate;
use super::pictures::Picture;
use super::{Choice, Request};
use crate::suggest::machine::{Machine, Speed};
use crate::suggest::{Goal, count};

pub(super) fn encoder(
    request: &Request<'_>,
    machine: &Machine,
    speed: &Speed,
    images: &Images,
) -> Choice<String> {
    let rates: Vec<String> = machine
        .speeds
        .iter()
        .map(|s| {
            let c = &s.candidate;
            format!(
                "{} at {} px: {:.0} images/s",
                c.encoder,
                c.size,
                rate(request, machine, s, request.survey.images())
            )
        })
        .collect();
    let wanted = enough(images.train);
    let reaches =
        presentations(request, rate(request, machine, speed, request.survey.images()), images) >= wanted;
    let reason =
        if reaches { "The largest that is fast enough" } else { "The smallest, since none is fast enough" };
    let why = format!(
        "On {}, with loading: {}. {reason} to show {} images in {}.",
        machine.describe(),
        rates.join("; "),
        count(wanted as usize),
        request.budget
    );
    Choice::new(speed.candidate.encoder.clone(), why)
}

pub(super) fn projector(goal: Goal, picture: Picture) -> Choice<String> {
    let widths = match picture {
        Picture::SmallGray | Picture::Small => "256, 64",
        Picture::LargeGray | Picture::Photograph => "512, 128",
    };
    let norm = if goal == Goal::Clusters { ", batch_norm: true" } else { "" };
    let why = "From features to embeddings; only the loss sees these.";
    Choice::new(format!("Mlp(dims: [{widths}]{norm})"), why)
}
