//! Rules across the fields of a recipe: what no single field can know.

use crate::diagnostic::Diagnostic;
use crate::objective::Objective;
use crate::recipe::{Recipe, Source};
use pauc_models::device::NetworkDevice;
use pauc_traits::ImageShape;
use pauc_traits::dataset::Splits;
use pauc_traits::schedule::{Clock, Horizon};
use pauc_traits::term::{Facts, Needs, Severity};

/// Gathers diagnostics about one recipe.
pub struct Checker<'a> {
    recipe: &'a Recipe,
    source: &'a Source,
    /// What was found so far.
    pub found: Vec<Diagnostic>,
}

impl<'a> Checker<'a> {
    /// A checker that has found nothing yet.
    pub fn new(recipe: &'a Recipe, source: &'a Source) -> Self {
        Checker { recipe, source, found: Vec::new() }
    }

    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        path: &str,
        message: String,
        help: impl Into<String>,
    ) {
        self.found.push(Diagnostic::at(severity, code, &self.source.text, path, message, help));
    }

    fn error(&mut self, code: &'static str, path: &str, message: String, help: impl Into<String>) {
        self.add(Severity::Error, code, path, message, help);
    }

    fn warn(&mut self, code: &'static str, path: &str, message: String, help: impl Into<String>) {
        self.add(Severity::Warning, code, path, message, help);
    }

    /// Rules that need nothing but the recipe.
    pub fn structure(&mut self) {
        let r = self.recipe;
        if r.objective.is_empty() {
            self.error(
                "E0210",
                "objective",
                "the objective has no terms".into(),
                "add one, such as (term: InfoNce())",
            );
        }
        for (i, t) in r.objective.iter().enumerate() {
            let (path, name, needs) = (format!("objective[{i}].term"), t.term.name(), t.term.info().needs());
            if needs.queue && r.queue.is_none() {
                let help = match r.momentum_encoder {
                    Some(_) => "add `queue: 4096` to the recipe",
                    None => "add `queue: 4096` and `momentum_encoder: Ema(momentum: 0.99)` to the recipe",
                };
                self.error(
                    "E0201",
                    &path,
                    format!("`{name}` reads the queue, and the recipe has none"),
                    help,
                );
            }
            if needs.momentum && r.momentum_encoder.is_none() {
                let help = "add `momentum_encoder: Ema(momentum: 0.99)` to the recipe";
                self.error(
                    "E0202",
                    &path,
                    format!("`{name}` reads momentum keys, and the recipe has no momentum encoder"),
                    help,
                );
            }
            if needs.prototypes && r.clusterer.is_none() {
                let help = "add `clusterer: KMeans(k: [100])` to the recipe";
                self.error(
                    "E0203",
                    &path,
                    format!("`{name}` reads prototypes, and the recipe has no clusterer"),
                    help,
                );
            }
            let last =
                needs.queries.iter().chain(needs.predictions).chain(needs.keys).max().map_or(0, |v| v + 1);
            if last > r.view_count() {
                let message = format!(
                    "`{name}` reads {last} views of each image, and the recipe makes {}",
                    r.view_count()
                );
                self.error("E0209", &path, message, "write `views: [(count: 2, ops: […])]`");
            }
        }
        if r.queue.is_some() && r.momentum_encoder.is_none() {
            let help = "add `momentum_encoder: Ema(momentum: 0.99)`, or remove the queue";
            self.error(
                "E0202",
                "queue",
                "a queue holds keys of a momentum encoder, and the recipe has none".into(),
                help,
            );
        }
        if let Some(queue) = r.queue.filter(|q| q.get() < r.train.batch.get()) {
            let message = format!("a queue of {queue} keys is shorter than one batch of {}", r.train.batch);
            self.error("E0206", "queue", message, format!("make it at least {}", r.train.batch));
        }
        if r.predictor.is_some() && r.objective.iter().all(|t| t.term.info().needs().predictions.is_empty()) {
            let message = "no term reads the predictions of this predictor".to_string();
            self.warn("E0216", "predictor", message, "remove it, or add a term such as CosinePrediction()");
        }
        if let Some(part) = r.train.micro_batch.filter(|m| *m > r.train.batch) {
            let message = format!("parts of {part} images of a batch of {}", r.train.batch);
            self.error("E0217", "train.micro_batch", message, format!("make it at most {}", r.train.batch));
        }
        if r.train.accumulate.get() > 1 {
            let (k, batch) = (r.train.accumulate, r.train.batch);
            let message =
                format!("{k} accumulated batches of {batch} are no batch of {}", r.train.images_per_step());
            let help = format!(
                "terms see the negatives of {batch} images at a time; to see them all, write `batch: {}, micro_batch: {batch}`",
                r.train.images_per_step()
            );
            self.warn("E0219", "train.accumulate", message, help);
        }
        let reads_prototypes = r.objective.iter().any(|t| t.term.info().needs().prototypes);
        let looks = r.probes.iter().any(|p| p.name() == "Coagulation");
        if r.clusterer.is_some() && !reads_prototypes && !looks {
            let message = "nothing reads the prototypes of this clusterer".to_string();
            self.warn("E0211", "clusterer", message, "remove it, or add a prototype term such as ProtoNce()");
        }
    }

    /// Rules that need the sizes of the opened data.
    pub fn sizes(&mut self, splits: &Splits, objective: &Objective, facts: &Facts, horizon: &Horizon) {
        let r = self.recipe;
        let (n, batch) = (facts.samples, r.train.batch.get());
        if batch > n {
            let message = format!("a batch of {batch} is larger than the training set of {n} images");
            self.error("E0207", "train.batch", message, format!("make it at most {n}"));
        } else if r.train.images_per_step() > n {
            let (k, most) = (r.train.accumulate, n / batch);
            let message = format!("{k} batches of {batch} are more than the training set of {n} images");
            self.error("E0207", "train.accumulate", message, format!("make it at most {most}"));
        }
        if let Some(queue) = r.queue.filter(|q| q.get() >= n) {
            let message = format!(
                "a queue of {queue} keys holds the whole training set of {n}: every sample meets its own past key as a negative"
            );
            self.warn("E0206", "queue", message, format!("make it well below {n}"));
        }
        if let Some(clusterer) = &r.clusterer {
            for k in clusterer.prototypes().into_iter().flatten().filter(|k| *k > n) {
                let message = format!("{k} prototypes of only {n} training samples");
                self.error("E0205", "clusterer.k", message, format!("make k at most {n}"));
            }
            if clusterer.needs_labels() && splits.train.labels().is_none() {
                let message = format!("`{}` needs class labels, and the data has none", clusterer.name());
                self.error("E0204", "clusterer", message, "use labelled data or another clusterer");
            }
        }
        for (i, t) in objective.terms.iter().enumerate() {
            let path = format!("objective[{i}].term");
            if t.needs.labels && splits.train.labels().is_none() {
                let message = format!("`{}` needs class labels, and the data has none", t.term.name());
                self.error("E0204", &path, message, "use labelled data or another term");
            }
            let from = r.objective[i].from.steps(horizon);
            if t.needs.prototypes && from > 0 && from < t.from {
                let message = format!(
                    "`{}` is to start at step {from}, the first clustering is at step {}",
                    t.name, t.from
                );
                self.warn(
                    "E0212",
                    &format!("objective[{i}].from"),
                    message,
                    "the term waits for the clustering",
                );
            }
            for finding in t.term.info().check(facts) {
                let path = finding.field.map_or(path.clone(), |f| format!("{path}.{f}"));
                self.add(finding.severity, finding.code, &path, finding.message, finding.help);
            }
        }
        if !objective.terms.is_empty() && !objective.terms.iter().any(|t| t.from == 0) {
            let help = "let a term such as InfoNce() start at once";
            self.error("E0210", "objective", "no term is active at the first step".into(), help);
        }
        for (i, probe) in r.probes.iter().enumerate() {
            if let Err(e) = probe.check() {
                self.error("E0221", &format!("probes[{i}]"), e.to_string(), "");
            }
        }
        for (i, probe) in r.probes.iter().enumerate().filter(|(_, p)| p.needs_labels()) {
            let path = format!("probes[{i}]");
            if splits.train.labels().is_none() {
                let message =
                    format!("the probe `{}` needs class labels, and the data has none", probe.name());
                self.error("E0204", &path, message, "remove it, or use labelled data");
            } else if splits.test.as_ref().is_none_or(|t| t.labels().is_none()) {
                let message = format!(
                    "the probe `{}` needs a labelled test split, and the data has none",
                    probe.name()
                );
                self.error("E0215", &path, message, "remove it, or use data with a test split");
            }
        }
    }

    /// The shapes that the recipe's views give, each once; the first is that of the first view and of evaluation.
    pub fn view_shapes(&mut self, splits: &Splits) -> Option<Vec<ImageShape>> {
        let mut shapes: Vec<ImageShape> = Vec::new();
        for (i, spec) in self.recipe.views.iter().enumerate() {
            let mut shape = splits.train.shape();
            for (j, op) in spec.ops.iter().enumerate() {
                match op.output(shape) {
                    Ok(next) => shape = next,
                    Err(e) => {
                        self.error("E0213", &format!("views[{i}].ops[{j}]"), e.to_string(), "");
                        return None;
                    }
                }
            }
            let Some(shape) = shape else {
                let help = "begin with RandomResizedCrop(size: 32), or with Resize and CenterCrop";
                self.error(
                    "E0213",
                    &format!("views[{i}]"),
                    "these views do not fix the size of the images".into(),
                    help,
                );
                return None;
            };
            if let Some(first) = shapes.first().filter(|f| f.channels != shape.channels) {
                let message = format!("these views are {shape}, the first are {first}");
                self.error("E0213", &format!("views[{i}]"), message, "give all views the same channels");
                return None;
            }
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        if shapes.is_empty() {
            self.error(
                "E0209",
                "views",
                "the recipe makes no views".into(),
                "write `views: [(count: 2, ops: […])]`",
            );
            return None;
        }
        Some(shapes)
    }

    /// Whether the encoder can be built for views of these shapes, by building it; the width of its features.
    pub fn encoder<D: NetworkDevice>(&mut self, device: &D, shapes: &[ImageShape]) -> Option<usize> {
        let (first, others) = shapes.split_first()?;
        let encoder = match D::encoder(&*self.recipe.encoder.value).build(device, *first, 0) {
            Ok(encoder) => encoder,
            Err(e) => {
                self.error("E0208", "encoder", format!("views of {first}: {e}"), "");
                return None;
            }
        };
        for shape in others {
            if let Err(e) = encoder.resized(*shape) {
                let message = format!("views of {first} and of {shape}: {e}");
                self.error(
                    "E0208",
                    "encoder",
                    message,
                    "give all views one size, or use a convolutional encoder",
                );
                return None;
            }
        }
        Some(encoder.feature_dim())
    }
}

/// What all terms of an objective read together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Views that pass through the online network.
    pub online: Vec<usize>,
    /// Whether predictions are read.
    pub predictions: bool,
    /// Views that pass through the momentum network.
    pub momentum: Vec<usize>,
    /// The last of them, whose keys go into the queue.
    pub newest: Option<usize>,
    /// Whether the queue is read.
    pub queue: bool,
    /// Whether labels are read.
    pub labels: bool,
}

impl Reads {
    /// The union of what the terms active at a step read.
    pub fn at(objective: &Objective, clock: &Clock, has_momentum: bool, has_queue: bool) -> Self {
        let mut reads = Reads { queue: has_queue, ..Reads::default() };
        let add = |list: &mut Vec<usize>, views: &[usize]| {
            list.extend(views);
            list.sort_unstable();
            list.dedup();
        };
        for Needs { queries, predictions, keys, momentum: _, queue: _, prototypes: _, labels } in
            objective.active(clock).map(|t| t.needs.clone())
        {
            add(&mut reads.online, queries);
            add(&mut reads.online, predictions);
            reads.predictions |= !predictions.is_empty();
            add(if has_momentum { &mut reads.momentum } else { &mut reads.online }, keys);
            reads.labels |= labels;
        }
        // The queue is fed with the keys of the last view, whether or not a term reads them this step.
        if has_queue && reads.momentum.is_empty() {
            reads.momentum.push(1);
        }
        reads.newest = reads.momentum.last().copied();
        reads
    }
}
