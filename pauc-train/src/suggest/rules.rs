//! The rules: from a survey, a machine, a goal and a budget to the choices of a recipe.
//!
//! Everything here is a function of its arguments, with the numbers in the reasons that it gives.

use super::machine::{Machine, Speed};
use super::negatives::{self, PER_BATCH, power_of_two};
use super::{Budget, Data, Goal, count, time};
use pauc_data::datasets::held_out;
use pauc_data::survey::Survey;

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

/// The kinds of pictures that views differ for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// Small and without colors, such as digits.
    SmallGray,
    /// Large and without colors, such as X-rays.
    LargeGray,
    /// Small and in color, such as CIFAR.
    Small,
    /// Photographs.
    Photograph,
}

/// An image size, and an encoder and views for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Height and width that the encoder sees, in pixels.
    pub size: usize,
    /// The encoder as a recipe writes it.
    pub encoder: String,
    /// The views as a recipe writes them.
    pub views: String,
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

/// The largest shorter side of a small image, in pixels.
const SMALL: usize = 64;
/// The share of gray images from which all count as gray.
const GRAY: f64 = 0.95;
/// Sizes for larger images, in pixels.
const SIZES: [usize; 5] = [64, 96, 128, 160, 224];

/// Returns the kind of the pictures.
pub fn picture(survey: &Survey) -> Picture {
    let is_small = survey.short_sides.median <= SMALL;
    match (is_small, survey.gray >= GRAY) {
        (true, true) => Picture::SmallGray,
        (false, true) => Picture::LargeGray,
        (true, false) => Picture::Small,
        (false, false) => Picture::Photograph,
    }
}

/// Returns two or three candidates, from the fastest to the one that learns most, for images whose shorter side has `side`
/// pixels in the median.
pub fn candidates(picture: Picture, side: usize, is_gpu: bool) -> Vec<Candidate> {
    let candidate =
        |size, encoder: &str| Candidate { size, encoder: encoder.into(), views: views(picture, size) };
    let mut all = if matches!(picture, Picture::Small | Picture::SmallGray) {
        // The smallest encoder needs 16 pixels.
        let size = side.clamp(16, SMALL);
        let encoders = if is_gpu {
            ["ResNet18(stem: Small, width: 32)", "ResNet18(stem: Small)", "ResNet50(stem: Small)"]
        } else {
            [
                "ConvNet(channels: [32, 64, 128, 256], grid: 2)",
                "ResNet18(stem: Small, width: 16)",
                "ResNet18(stem: Small, width: 32)",
            ]
        };
        encoders.map(|encoder| candidate(size, encoder)).to_vec()
    } else {
        let at_most =
            |most: usize| SIZES.into_iter().filter(|s| *s <= most.min(side)).max().unwrap_or(SIZES[0]);
        let largest = if is_gpu { "ResNet50()" } else { "ResNet18()" };
        vec![
            candidate(at_most(96), "ResNet18(width: 32)"),
            candidate(at_most(128), "ResNet18()"),
            candidate(at_most(224), largest),
        ]
    };
    all.dedup();
    all
}

/// Returns the views for a kind of picture.
pub fn views(picture: Picture, size: usize) -> String {
    let steps = match picture {
        Picture::SmallGray => format!(
            "RandomResizedCrop(size: {size}, scale: (0.3, 1.0)), HorizontalFlip(p: 0.5), \
             ColorJitter(p: 0.8, brightness: 0.4, contrast: 0.4)"
        ),
        Picture::LargeGray => format!(
            "RandomResizedCrop(size: {size}, scale: (0.2, 1.0)), HorizontalFlip(p: 0.5), \
             ColorJitter(p: 0.8, brightness: 0.4, contrast: 0.4), GaussianBlur(p: 0.5)"
        ),
        Picture::Small => format!("SimClr(size: {size}, strength: 0.5, blur: 0.0, scale: (0.2, 1.0))"),
        Picture::Photograph => format!("MocoV2(size: {size})"),
    };
    format!("[(count: 2, ops: [{steps}])]")
}

fn why_views(picture: Picture, survey: &Survey) -> String {
    let found = format!(
        "{:.0} % of the images read are gray, and the shorter side has {} pixels in the median",
        survey.gray * 100.0,
        survey.short_sides.median
    );
    let kind = match picture {
        Picture::SmallGray => {
            "small gray images get crops, flips and mild changes of brightness; remove the flip if mirror images differ in \
             meaning, as letters do"
        }
        Picture::LargeGray => "gray images get crops, flips, changes of brightness, and blur",
        Picture::Small => "small color images get SimCLR's views for CIFAR, without blur",
        Picture::Photograph => "photographs get MoCo v2's views",
    };
    format!("{found}: {kind}. `pauc-cli data preview` draws them.")
}

/// The images of a run.
#[derive(Clone, Debug)]
struct Images {
    /// Training images.
    train: usize,
    /// Test images.
    test: usize,
    /// Classes; 0 without labels.
    classes: usize,
    /// Whether accuracies can be measured.
    can_score: bool,
    /// The fraction to hold out, if it is chosen.
    fraction: Option<Choice<f64>>,
}

/// Decides what is held out for testing, and counts the images that can be read, as far as the survey tells.
fn images(request: &Request<'_>) -> Images {
    let survey = request.survey;
    let readable = 1.0 - survey.unreadable.len() as f64 / survey.read.max(1) as f64;
    let left = |images: usize| (images as f64 * readable) as usize;
    let all = listed(request);
    Images { train: left(all.train), test: left(all.test), ..all }
}

/// As [`images`], with those that cannot be read.
fn listed(request: &Request<'_>) -> Images {
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

/// The share of the budget that is planned for; the rest is for what is measured after the run, and for surprises.
const PLANNED: f64 = 0.85;
/// Passes over all images besides training, such as those of baselines and probes, each a third of an epoch's time.
const OTHER_PASSES: f64 = 5.0 / 3.0;
/// The share of an epoch's time that a clustering adds, if there is one per epoch.
const CLUSTERING: f64 = 0.4;

/// Presentations of images after which an encoder is worth its size.
fn enough(images: usize) -> f64 {
    (20.0 * images as f64).clamp(40_000.0, 20e6)
}

/// Whether this many decoded images fit into a quarter of the memory.
fn fits_into_cache(request: &Request<'_>, machine: &Machine, size: usize, images: usize) -> bool {
    decoded_bytes(request, size, images) <= cache(machine) as f64
}

/// The memory for decoded images in bytes.
fn cache(machine: &Machine) -> u64 {
    machine.memory.map_or(2 << 30, |bytes| (bytes / 4).max(1 << 30))
}

/// The bytes of this many images after shrinking.
fn decoded_bytes(request: &Request<'_>, size: usize, images: usize) -> f64 {
    let survey = request.survey;
    let shrunk = shorter_side(request, size)
        .map_or(1.0, |side| (side as f64 / survey.short_sides.median.max(1) as f64).powi(2).min(1.0));
    images as f64 * survey.bytes_per_image * shrunk
}

/// Returns the side to which images are shrunk as they are read, if they are much larger than what the encoder sees.
fn shorter_side(request: &Request<'_>, size: usize) -> Option<usize> {
    let side = 2 * size;
    let is_larger = request.survey.short_sides.median * 4 > side * 5;
    (is_larger && request.data.may_set("shorter_side")).then_some(side)
}

/// Returns the images per second of a run on this many images with this candidate, with loading.
fn rate(request: &Request<'_>, machine: &Machine, speed: &Speed, images: usize) -> f64 {
    let is_cached = fits_into_cache(request, machine, speed.candidate.size, images);
    let decode = if is_cached { 0.0 } else { request.survey.seconds_per_image };
    let load = (decode + 2.0 * speed.seconds_per_view) / machine.threads.max(1) as f64;
    let train = 1.0 / speed.images_per_second.max(1e-9);
    // A GPU trains while the processor loads; on a CPU, both share the cores.
    1.0 / if machine.is_gpu { train.max(load) } else { train + load }.max(1e-12)
}

/// Returns the presentations of images that fit into the budget.
fn presentations(request: &Request<'_>, rate: f64, images: &Images) -> f64 {
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

/// Returns the estimated time of a run in seconds.
fn seconds(request: &Request<'_>, rate: f64, images: &Images, epochs: usize) -> f64 {
    let clustering = if request.goal == Goal::Clusters { 1.0 + CLUSTERING } else { 1.0 };
    let others = OTHER_PASSES * (images.train + images.test) as f64;
    (images.train as f64 * epochs as f64 * clustering + others) / rate
}

/// Rounds down to one significant digit.
fn round(n: f64) -> usize {
    let unit = 10f64.powf(n.max(1.0).log10().floor());
    ((n / unit).floor() * unit) as usize
}

/// The fewest epochs over a part of the data.
const EPOCHS_OF_PART: f64 = 4.0;
/// The fewest images of a part.
const FEWEST_OF_PART: f64 = 300.0;

/// Takes a part of the data if the budget is too short for one epoch of all; for clusters, of four.
fn part(request: &Request<'_>, rate: f64, whole: Images) -> (Option<Choice<[usize; 2]>>, Images) {
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
fn epochs(request: &Request<'_>, rate: f64, images: &Images) -> Choice<usize> {
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

/// Steps that a run should have, if it can: fewer, larger batches learn less in the same time.
const STEPS: usize = 2000;

fn batch(machine: &Machine, images: usize, presentations: usize) -> Choice<usize> {
    let most = if machine.is_gpu { 512 } else { 256 };
    let by_steps = power_of_two(presentations / STEPS).clamp(32, most);
    let batch = by_steps.min(power_of_two(images / 2)).max(2);
    let steps = (images / batch).max(1);
    let why = if batch < by_steps {
        format!("at most half of the {} training images", count(images))
    } else {
        format!("at least {STEPS} steps if possible, and 32 to {most} images per step")
    };
    Choice::new(batch, format!("{why}: {} steps per epoch.", count(steps)))
}

/// Values that an encoder keeps per pixel of an image and view, roughly.
const KEPT_PER_PIXEL: usize = 250;

/// Splits a batch whose activations would take more than a quarter of the memory.
fn micro_batch(machine: &Machine, size: usize, batch: usize) -> Option<Choice<usize>> {
    let memory = machine.memory.filter(|_| !machine.is_gpu)?;
    let per_image = 2 * 4 * KEPT_PER_PIXEL * size * size;
    let fitting = power_of_two((memory / 4) as usize / per_image).max(2);
    let why = format!(
        "{} of memory: the activations of {fitting} images at a time take less than a quarter.",
        crate::memory::bytes(memory.into())
    );
    (fitting < batch).then(|| Choice::new(fitting, why))
}

/// Where negatives come from.
struct Negatives {
    is_in_batch: bool,
    queue: Option<Choice<usize>>,
}

/// The smallest batch that has enough negatives of its own.
const OWN_NEGATIVES: usize = 128;

impl Negatives {
    fn new(goal: Goal, images: usize, batch: usize, epochs: usize) -> Self {
        let own = goal == Goal::Embeddings && batch >= OWN_NEGATIVES;
        // A queue is only full after some steps; a short run would not profit.
        let steps = (images / batch.max(1)).max(1) * epochs;
        let queue = negatives::queue(images, batch).filter(|q| !own && steps * batch > 4 * q);
        let queue = queue.map(|length| {
            let why = format!(
                "negatives for batches of {batch}; at most half of the {} training images, so that few images meet their own \
                 past keys.",
                count(images)
            );
            Choice::new(length, why)
        });
        Negatives { is_in_batch: queue.is_none(), queue }
    }

    /// Chooses the momentum of the encoder that computes the keys in the queue.
    fn momentum(&self, steps: usize) -> Option<Choice<f64>> {
        self.queue.as_ref()?;
        let momentum = match steps {
            0..20_000 => 0.99,
            20_000..100_000 => 0.996,
            _ => 0.999,
        };
        let why = format!(
            "Keys in a queue need a slowly moving encoder: its weights are a mean over about {:.0} of the {} steps.",
            1.0 / (1.0 - momentum),
            count(steps)
        );
        Some(Choice::new(momentum, why))
    }
}

/// Returns the epochs before the first clustering.
fn warm_up(epochs: usize) -> usize {
    (epochs * 3 / 10).max(1)
}

/// A clusterer.
struct Clusters {
    k: Vec<usize>,
    start: usize,
    every: usize,
    why: String,
}

impl Clusters {
    fn text(self) -> Choice<String> {
        let k: Vec<String> = self.k.iter().map(usize::to_string).collect();
        let (start, every) = (self.start, self.every);
        Choice::new(
            format!("KMeans(k: [{}], start: Epochs({start}), every: Epochs({every}))", k.join(", ")),
            self.why,
        )
    }
}

/// Clusterings in a run, at most.
const CLUSTERINGS: usize = 30;

fn clusterer(goal: Goal, images: usize, batch: usize, epochs: usize) -> Option<Clusters> {
    if goal == Goal::Embeddings {
        return None;
    }
    let (k, start) = (negatives::prototypes(images, batch), warm_up(epochs));
    let every = (epochs / CLUSTERINGS).max(1);
    let finest = k.last().copied().unwrap_or(2);
    let why = format!(
        "{finest} prototypes have {} of the {} training images on average; a batch of {batch} can see up to {} ({PER_BATCH} per \
         image). Before epoch {start}, the embeddings are not worth clustering; then at most {CLUSTERINGS} clusterings.",
        images / finest,
        count(images),
        count(PER_BATCH * batch)
    );
    Some(Clusters { k, start, every, why })
}

fn objective(goal: Goal, is_in_batch: bool, batch: usize, from: usize) -> Choice<Vec<String>> {
    let (negatives, from_where) = if is_in_batch {
        ("InBatch", format!("the other images of a batch of {batch}"))
    } else {
        ("Queue", "the keys in the queue".to_string())
    };
    let mut terms = vec![format!("(term: InfoNce(temperature: 0.2, negatives: {negatives}))")];
    let tells = format!("Tells each image from {from_where}.");
    if goal == Goal::Embeddings {
        return Choice::new(terms, tells);
    }
    let prototypes =
        |term: &str, weight: f64| format!("(term: {term}, weight: {weight:?}, from: Epochs({from}))");
    terms.extend([
        prototypes("ProtoNce()", 1.0),
        prototypes("Alignment(level: Prototypes)", 0.1),
        prototypes("Uniformity(level: Prototypes)", 0.1),
        prototypes("Correlation(level: Prototypes, kind: Gram)", 0.1),
    ]);
    let why = format!(
        "{tells} From epoch {from}, also pulls images to their prototypes, and keeps prototypes apart."
    );
    Choice::new(terms, why)
}

fn projector(goal: Goal, picture: Picture) -> Choice<String> {
    let widths = match picture {
        Picture::SmallGray | Picture::Small => "256, 64",
        Picture::LargeGray | Picture::Photograph => "512, 128",
    };
    let norm = if goal == Goal::Clusters { ", batch_norm: true" } else { "" };
    let why = "From features to embeddings; only the loss sees these.";
    Choice::new(format!("Mlp(dims: [{widths}]{norm})"), why)
}

fn learning_rate(batch: usize) -> Choice<f64> {
    let exact = (0.1 * (batch as f64 / 128.0).sqrt()).clamp(0.02, 0.2);
    let rounded = (exact * 100.0).round() / 100.0;
    Choice::new(rounded, format!("0.1 for batches of 128, with the square root of the batch: {batch}."))
}

fn encoder(request: &Request<'_>, machine: &Machine, speed: &Speed, images: &Images) -> Choice<String> {
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

/// Chooses the settings of the dataset.
fn data(
    request: &Request<'_>,
    machine: &Machine,
    images: &Images,
    size: usize,
) -> Vec<(&'static str, Choice<String>)> {
    let mut chosen = Vec::new();
    if let Some(Choice { value, why }) = &images.fraction {
        chosen.push(("test_fraction", Choice::new(format!("{value}"), why.clone())));
    }
    if let Some(on_error) = on_error(request, machine) {
        chosen.push(("on_error", on_error));
    }
    if let Some(side) = shorter_side(request, size) {
        let why = format!(
            "The encoder sees {size} pixels, and the shorter side has {} in the median: images are shrunk as they are read, so \
             that more of them stay in memory.",
            request.survey.short_sides.median
        );
        chosen.push(("shorter_side", Choice::new(side.to_string(), why)));
    }
    let bytes = decoded_bytes(request, size, request.survey.images()) * 1.25;
    let mebibytes = (bytes / f64::from(1 << 20)).ceil();
    if request.data.may_set("cache") && mebibytes > 2048.0 && bytes <= cache(machine) as f64 {
        let why = format!("MiB for all {} decoded images.", count(request.survey.images()));
        chosen.push(("cache", Choice::new(format!("{mebibytes:.0}"), why)));
    }
    chosen
}

/// The share of the budget that reading every image once may take.
const READ_ONCE: f64 = 0.05;

/// Decides whether unreadable images are skipped.
fn on_error(request: &Request<'_>, machine: &Machine) -> Option<Choice<String>> {
    let survey = request.survey;
    if !request.data.may_set("on_error") {
        return None;
    }
    let (images, bad) = (survey.images(), survey.unreadable.len());
    let once = images as f64 * survey.seconds_per_image / machine.threads.max(1) as f64;
    if let Some(first) = survey.unreadable.first() {
        let expected = (bad as f64 * images as f64 / survey.read.max(1) as f64).ceil();
        // Twice as many, for those that were not read and those to come.
        let most = if survey.is_complete() { bad + bad.div_ceil(10) } else { (2.0 * expected) as usize + 10 };
        let why = format!(
            "{} of the {} images read cannot be decoded, such as {}. They are left out and listed in `data_errors.jsonl`. \
             Each opening reads all images once, which takes about {}.",
            count(bad),
            count(survey.read),
            first.path,
            time(once)
        );
        return Some(Choice::new(format!("Skip(max: {most})"), why));
    }
    if survey.is_complete() {
        let why = format!("All {} images can be read.", count(images));
        return Some(Choice::new("Fail".into(), why));
    }
    if once <= READ_ONCE * request.budget.seconds() {
        let most = images / 1000 + 1;
        let why = format!(
            "All of the {} images read can be decoded; reading the others takes about {}, so up to {most} bad ones are left out \
             and listed.",
            count(survey.read),
            time(once)
        );
        return Some(Choice::new(format!("Skip(max: {most})"), why));
    }
    let why = format!(
        "All of the {} images read can be decoded. Reading all {} takes about {}; `pauc-cli data verify` does. `Skip(max: 100)` \
         leaves bad ones out.",
        count(survey.read),
        count(images),
        time(once)
    );
    Some(Choice::new("Fail".into(), why))
}

/// Values of a matrix that a linear probe can pass over often enough in a tenth of the budget, per second of budget.
const LINEAR: f64 = 4e6;
/// The width of most encoders' features.
const FEATURES: f64 = 1024.0;

fn probes(request: &Request<'_>, images: &Images, size: usize, has_clusters: bool) -> Choice<Vec<String>> {
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

fn baselines(images: &Images, machine: &Machine, channels: usize, size: usize) -> Vec<String> {
    if !images.can_score {
        return Vec::new();
    }
    let bytes = 4.0 * (images.train + images.test) as f64 * (size * size * channels) as f64;
    let fits = bytes <= machine.memory.map_or(2e9, |memory| (memory as f64 / 8.0).min(4e9));
    fits.then_some("RawPixels").into_iter().chain(["RandomInit"]).map(String::from).collect()
}

#[cfg(test)]
mod tests;
