//! Rules across the fields of a recipe, which no single field can check.

use crate::diagnostic::Diagnostic;
use crate::memory::{self, NetworkSizes};
use crate::objective::{Objective, PlannedTerm};
use crate::recipe::{BatchNormStatistics, Recipe, Source, WeightedTerm};
use crate::recipe_text;
use pauc_models::NetworkDevice;
use pauc_models::heads::HeadConfig;
use pauc_traits::dataset::Splits;
use pauc_traits::schedule::Horizon;
use pauc_traits::term::{Facts, Severity};
use pauc_traits::{Encoder, ImageShape, NetworkSize};

/// The largest number of steps, so that steps times any small factor do not overflow and are exact as `f64`.
const MAX_STEPS: u64 = 1 << 53;
/// The largest number of views of an image.
const MAX_VIEWS: usize = 1024;
/// The largest side of a view, in pixels.
const MAX_SIDE: usize = 1 << 16;

/// The sizes of a recipe's networks, and the encoder if it had to be built to learn them.
pub struct CountedNetworks<D: NetworkDevice> {
    /// The sizes.
    pub sizes: NetworkSizes,
    /// The encoder, with the initial weights of the run.
    pub encoder: Option<Box<dyn Encoder<D>>>,
}

/// Collects diagnostics about one recipe.
pub struct Checker<'a> {
    recipe: &'a Recipe,
    /// The positions in the recipe's text.
    root: Option<recipe_text::Node>,
    /// The mistakes and warnings found so far.
    pub diagnostics: Vec<Diagnostic>,
}

impl<'a> Checker<'a> {
    /// Creates a checker without diagnostics.
    pub fn new(recipe: &'a Recipe, source: &'a Source) -> Self {
        Checker { recipe, root: recipe_text::parse(&source.text), diagnostics: Vec::new() }
    }

    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        path: &str,
        message: String,
        help: impl Into<String>,
    ) {
        self.diagnostics.push(Diagnostic::at(severity, code, self.root.as_ref(), path, message, help));
    }

    fn error(&mut self, code: &'static str, path: &str, message: String, help: impl Into<String>) {
        self.add(Severity::Error, code, path, message, help);
    }

    fn warn(&mut self, code: &'static str, path: &str, message: String, help: impl Into<String>) {
        self.add(Severity::Warning, code, path, message, help);
    }

    /// Returns whether a mistake was found.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// Checks the rules that need only the recipe.
    pub fn structure(&mut self) {
        let r = self.recipe;
        if r.objective.is_empty() {
            let help = "add one, such as (term: InfoNce())";
            self.error("E0210", "objective", "the objective has no terms".into(), help);
        }
        for (i, t) in r.objective.iter().enumerate() {
            self.term_needs(&format!("objective[{i}].term"), t);
        }
        self.queue();
        if r.predictor.is_some() && r.objective.iter().all(|t| t.term.info().needs().predictions.is_empty()) {
            let message = "no term reads the predictions of this predictor".to_string();
            self.warn("E0216", "predictor", message, "remove it, or add a term such as CosinePrediction()");
        }
        self.batch_parts();
        self.shards();
        self.synced_statistics();
        self.view_count();
        let reads_prototypes = r.objective.iter().any(|t| t.term.info().needs().prototypes);
        let is_probed = r.probes.iter().any(|p| p.reads_prototypes());
        if r.clusterer.is_some() && !reads_prototypes && !is_probed {
            let message = "nothing reads the prototypes of this clusterer".to_string();
            self.warn("E0211", "clusterer", message, "remove it, or add a prototype term such as ProtoNce()");
        }
    }

    /// Checks that a term reads only what the recipe provides.
    fn term_needs(&mut self, path: &str, t: &WeightedTerm) {
        let (r, name, needs) = (self.recipe, t.term.name(), t.term.info().needs());
        // A queue that is left out follows the number of images, but a momentum encoder has to be chosen.
        let is_left_out = self.root.as_ref().is_none_or(|root| recipe_text::find(root, "queue").is_none());
        if needs.queue && r.queue.is_none() && !(is_left_out && r.momentum_encoder.is_some()) {
            let help = match r.momentum_encoder {
                Some(_) => "leave `queue` out, or write its length, such as `queue: 4096`",
                None => {
                    "add `momentum_encoder: Ema(momentum: 0.99)` to the recipe; the queue's length follows the data"
                }
            };
            self.error("E0201", path, format!("`{name}` reads the queue, but the recipe has none"), help);
        }
        if needs.momentum && r.momentum_encoder.is_none() {
            let message = format!("`{name}` reads momentum keys, but the recipe has no momentum encoder");
            self.error("E0202", path, message, "add `momentum_encoder: Ema(momentum: 0.99)` to the recipe");
        }
        if needs.prototypes && r.clusterer.is_none() {
            let message = format!("`{name}` reads prototypes, but the recipe has no clusterer");
            self.error("E0203", path, message, "add `clusterer: KMeans(k: [100])` to the recipe");
        }
        let views = needs.queries.iter().chain(needs.predictions).chain(needs.keys);
        let views = views.max().map_or(0, |last| last + 1);
        if views > r.view_count() {
            let count = r.view_count();
            let message = format!("`{name}` reads {views} views of each image, but the recipe makes {count}");
            self.error("E0209", path, message, "write `views: [(count: 2, ops: […])]`");
        }
    }

    /// Checks that a queue has a momentum encoder and holds at least one batch.
    fn queue(&mut self) {
        let r = self.recipe;
        let Some(queue) = r.queue else { return };
        if r.momentum_encoder.is_none() {
            let message = "a queue holds keys of a momentum encoder, but the recipe has none".to_string();
            let help = "add `momentum_encoder: Ema(momentum: 0.99)`, or remove the queue";
            self.error("E0202", "queue", message, help);
        }
        if queue.get() < r.train.batch.get() {
            let message = format!("a queue of {queue} keys is shorter than one batch of {}", r.train.batch);
            self.error("E0206", "queue", message, format!("make it at least {}", r.train.batch));
        }
    }

    /// Checks that the number of views is small enough to list them.
    fn view_count(&mut self) {
        let counts = self.recipe.views.iter().map(|v| v.count.get());
        let total = counts.fold(0, usize::saturating_add);
        if total > MAX_VIEWS {
            let message = format!("{total} views of each image are more than {MAX_VIEWS}");
            self.error("E0213", "views", message, "make fewer views");
        }
    }

    /// Checks the size of micro-batches, and warns that accumulated batches do not make a larger batch.
    fn batch_parts(&mut self) {
        let train = &self.recipe.train;
        let (batch, images) = (train.batch, train.images_per_step());
        if let Some(part) = train.micro_batch.filter(|m| *m > batch) {
            let message = format!("a micro-batch of {part} is larger than the batch of {batch}");
            self.error("E0217", "train.micro_batch", message, format!("make it at most {batch}"));
        }
        let head =
            [("projector", Some(&self.recipe.projector)), ("predictor", self.recipe.predictor.as_ref())];
        let normed = head.into_iter().find(|(_, head)| head.is_some_and(HeadConfig::has_batch_norm));
        let together = match train.batch_norm {
            BatchNormStatistics::PerShard => train.micro_batch.map_or(train.shard(), |m| m.get()),
            BatchNormStatistics::Synced => batch.get(),
        };
        if let Some((name, _)) = normed.filter(|_| together == 1) {
            let path = match (train.micro_batch, train.shards.get()) {
                (Some(_), _) => "train.micro_batch",
                (None, 1) => "train.batch",
                (None, _) => "train.shards",
            };
            let message = format!("batch normalization in the {name} needs at least 2 images at a time");
            let help = match path {
                "train.shards" => {
                    format!("make them at most {}, or remove the batch normalization", batch.get() / 2)
                }
                _ => "make it at least 2, or remove the batch normalization".into(),
            };
            self.error("E0217", path, message, help);
        }
        if train.accumulate.get() > 1 {
            let message =
                format!("{} accumulated batches of {batch} are not a batch of {images}", train.accumulate);
            let help = format!(
                "terms see the negatives of {batch} images at a time; to see them all, write `batch: {images}, micro_batch: {batch}`"
            );
            self.warn("E0219", "train.accumulate", message, help);
        }
    }

    /// Checks that the number of shards is a power of two and divides the batch, and that a micro-batch fits into a
    /// shard.
    fn shards(&mut self) {
        let train = &self.recipe.train;
        let (batch, shards) = (train.batch.get(), train.shards.get());
        let wrong = if !shards.is_power_of_two() {
            Some(format!("{shards} shards are not a power of two"))
        } else if !batch.is_multiple_of(shards) {
            Some(format!("{shards} shards of equal size do not make a batch of {batch}"))
        } else {
            None
        };
        if let Some(message) = wrong {
            // The largest power of two that divides the batch.
            let most = 1 << batch.trailing_zeros().min(shards.ilog2());
            let help = match most {
                1 => "make the batch a multiple of a power of two, such as 256".to_string(),
                most => format!("write `shards: {most}`, or another power of two that divides the batch"),
            };
            self.error("E0227", "train.shards", message, help);
        } else if let Some(part) = train.micro_batch.filter(|m| m.get() > train.shard() && m.get() <= batch) {
            let shard = train.shard();
            let message = format!("a micro-batch of {part} is larger than a shard of {shard} images");
            self.error("E0217", "train.micro_batch", message, format!("make it at most {shard}"));
        }
    }

    /// Checks that there are shards whose batch statistics can be synchronized, and that all activations are kept.
    fn synced_statistics(&mut self) {
        let train = &self.recipe.train;
        if train.batch_norm == BatchNormStatistics::PerShard {
            return;
        }
        if train.shards.get() == 1 {
            let message =
                "`batch_norm: Synced` joins the statistics of shards, but a batch has no shards".to_string();
            let help = "write `shards: 4`, or leave `batch_norm` out: without shards, the statistics are those of the \
                whole batch anyway";
            self.error("E0228", "train.batch_norm", message, help);
        }
        if let Some(part) = train.micro_batch {
            let message = format!("`batch_norm: Synced` does not work with micro-batches of {part} images");
            self.error(
                "E0228",
                "train.micro_batch",
                message,
                "leave `micro_batch` out; to save memory, use more ranks",
            );
        }
    }

    /// Checks the rules that need the sizes of the opened data.
    pub fn sizes(&mut self, splits: &Splits, objective: &Objective, facts: &Facts, horizon: &Horizon) {
        let r = self.recipe;
        self.batch_and_queue(facts.samples);
        if horizon.total_steps > MAX_STEPS {
            let message = format!("{} steps are more than can be counted", horizon.total_steps);
            self.error("E0223", "train.epochs", message, "lower the number of epochs");
        }
        self.clusterer(splits, facts.samples);
        let largest = |t: &PlannedTerm| t.weight.largest();
        let others = objective.terms.iter().filter(|t| !t.needs.prototypes).map(largest).fold(0.0, f64::max);
        for (i, t) in objective.terms.iter().enumerate() {
            let relative_weight = if others > 0.0 { largest(t) / others } else { 1.0 };
            self.term_sizes(i, t, splits, &Facts { relative_weight, ..facts.clone() }, horizon);
        }
        if !objective.terms.is_empty() && !objective.terms.iter().any(|t| t.from == 0) {
            let help = "start a term such as InfoNce() at step 0";
            self.error("E0210", "objective", "no term is active at the first step".into(), help);
        }
        for (i, probe) in r.probes.iter().enumerate() {
            if let Err(e) = probe.check().and_then(|()| probe.check_settings(splits)) {
                self.error("E0221", &format!("probes[{i}]"), e.to_string(), "");
            }
            if let Err(e) = probe.check_splits(splits) {
                let help = "remove it, or use more images; the run would warn, and leave it out";
                self.warn("E0224", &format!("probes[{i}]"), e.to_string(), help);
            }
        }
        for (i, probe) in r.probes.iter().enumerate().filter(|(_, p)| p.needs_labels()) {
            self.probe_labels(&format!("probes[{i}]"), probe.name(), splits);
        }
    }

    /// Checks that the batch fits into the training set of n images and that the queue is shorter than it.
    fn batch_and_queue(&mut self, n: usize) {
        let r = self.recipe;
        let batch = r.train.batch.get();
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
    }

    /// Checks that there are enough training samples for the clusterer, and labels if it reads them.
    fn clusterer(&mut self, splits: &Splits, n: usize) {
        let Some(clusterer) = &self.recipe.clusterer else { return };
        for k in clusterer.prototypes().into_iter().flatten().filter(|k| *k > n) {
            let message = format!("{k} prototypes, but only {n} training samples");
            self.error("E0205", "clusterer.k", message, format!("make k at most {n}"));
        }
        if clusterer.prototypes().is_empty() {
            let message = "the list `k` is empty: there would be no prototypes".to_string();
            self.error("E0205", "clusterer.k", message, "give at least one number, such as k: [100]");
        }
        if clusterer.needs_labels() && splits.train.labels().is_none() {
            let message = format!("`{}` needs class labels, but the data has none", clusterer.name());
            self.error("E0204", "clusterer", message, "use labeled data or another clusterer");
        }
    }

    /// Checks that labels and prototypes exist if the i-th term reads them, and applies the term's own rules.
    fn term_sizes(&mut self, i: usize, t: &PlannedTerm, splits: &Splits, facts: &Facts, horizon: &Horizon) {
        let path = format!("objective[{i}].term");
        if t.needs.labels && splits.train.labels().is_none() {
            let message = format!("`{}` needs class labels, but the data has none", t.term.name());
            self.error("E0204", &path, message, "use labeled data or another term");
        }
        let from = self.recipe.objective[i].from.steps(horizon);
        if t.needs.prototypes && from > 0 && from < t.from {
            let message =
                format!("`{}` starts at step {from}, but the first clustering is at step {}", t.name, t.from);
            self.warn("E0212", &format!("objective[{i}].from"), message, "the term waits for the clustering");
        }
        for finding in t.term.info().check(facts) {
            let path = finding.field.map_or(path.clone(), |f| format!("{path}.{f}"));
            self.add(finding.severity, finding.code, &path, finding.message, finding.help);
        }
    }

    /// Checks that both splits have labels if a probe reads them.
    fn probe_labels(&mut self, path: &str, name: &str, splits: &Splits) {
        if splits.train.labels().is_none() {
            let message = format!("the probe `{name}` needs class labels, but the data has none");
            self.error("E0204", path, message, "remove it, or use labeled data");
        } else if splits.test.as_ref().is_none_or(|t| t.labels().is_none()) {
            let message = format!("the probe `{name}` needs a labeled test split, but the data has none");
            self.error("E0215", path, message, "remove it, or use data with a test split");
        }
    }

    /// Counts the networks without building them; the encoder is built if it cannot be counted. An error is
    /// reported at the part that causes it. Returns `None` if a part does not fit.
    pub fn networks<D: NetworkDevice>(
        &mut self,
        device: &D,
        shapes: &[ImageShape],
    ) -> Option<CountedNetworks<D>> {
        let recipe = self.recipe;
        let config = D::encoder(&*recipe.encoder.value);
        let mut built = None;
        let encoder = match config.size(shapes[0]) {
            Ok(Some(size)) => {
                // Parameters belong to the first shape. The most activations may be those of another one.
                let others = shapes.iter().filter_map(|shape| config.size(*shape).ok().flatten());
                let activations = others.map(|other| other.activations).max();
                NetworkSize { activations: activations.unwrap_or(size.activations), ..size }
            }
            Ok(None) => {
                let encoder = built.insert(self.encoder(device, shapes)?);
                let layers = encoder.layers();
                NetworkSize {
                    output: encoder.feature_dim(),
                    parameters: layers.iter().map(|l| l.parameters as u64).sum(),
                    activations: 0,
                }
            }
            Err(e) => {
                self.error("E0208", "encoder", format!("views of {}: {e}", shapes[0]), "");
                return None;
            }
        };
        let projector = match recipe.projector.size(encoder.output) {
            Ok(size) => size,
            Err(e) => {
                self.error("E0208", "projector", e.to_string(), "");
                return None;
            }
        };
        let width = projector.output;
        let predictor = recipe.predictor.as_ref().map(|predictor| match predictor.size(width) {
            Ok(size) if size.output == width => Ok(size),
            Ok(size) => Err(format!(
                "predictions have width {}; expected {width}, the width of embeddings",
                size.output
            )),
            Err(e) => Err(e.to_string()),
        });
        let predictor = match predictor.transpose() {
            Ok(size) => size,
            Err(message) => {
                let help = format!("set its last width to {width}, such as Mlp(dims: [64, {width}])");
                self.error("E0216", "predictor", message, help);
                return None;
            }
        };
        Some(CountedNetworks { sizes: NetworkSizes { encoder, projector, predictor }, encoder: built })
    }

    /// Checks that a run of these parts fits into `memory` bytes.
    pub fn memory(&mut self, parts: &[memory::Part], memory: Option<u64>) {
        let Some(most) = memory.or_else(memory::of_machine) else { return };
        let total = memory::total(parts);
        let Some(largest) = parts.iter().max_by_key(|p| p.bytes).filter(|_| total > u128::from(most)) else {
            return;
        };
        let message = format!(
            "a run needs at least {} of memory, but there are {}; the largest part is {}: {}",
            memory::bytes(total),
            memory::bytes(most.into()),
            memory::bytes(largest.bytes),
            largest.what,
        );
        let help = format!("{}; `--memory` sets another limit", largest.remedy);
        self.error("E0222", largest.path, message, help);
    }

    /// Returns the shape of each entry of the recipe's views; the first is also that of evaluation. `None` if
    /// they do not fit.
    pub fn view_shapes(&mut self, splits: &Splits) -> Option<Vec<ImageShape>> {
        let mut shapes: Vec<ImageShape> = Vec::new();
        for (i, spec) in self.recipe.views.iter().enumerate() {
            let mut shape = splits.train.shape();
            for (j, op) in spec.ops.iter().enumerate() {
                match op.output(shape) {
                    Ok(next) => {
                        shape = next;
                        if let Some(large) = shape.filter(|s| s.height.max(s.width) > MAX_SIDE) {
                            let (height, width) = (large.height, large.width);
                            let message = format!(
                                "views of {height}×{width} pixels are too large; a side is at most {MAX_SIDE}"
                            );
                            let path = format!("views[{i}].ops[{j}]");
                            self.error("E0213", &path, message, "use smaller views");
                            return None;
                        }
                    }
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
                let message = format!("these views have shape {shape}, but the first have {first}");
                self.error("E0213", &format!("views[{i}]"), message, "give all views the same channels");
                return None;
            }
            shapes.push(shape);
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

    /// Builds the encoder for the first of these shapes, and checks that it can be resized for the others.
    pub fn encoder<D: NetworkDevice>(
        &mut self,
        device: &D,
        shapes: &[ImageShape],
    ) -> Option<Box<dyn Encoder<D>>> {
        let (first, others) = shapes.split_first()?;
        let config = D::encoder(&*self.recipe.encoder.value);
        let encoder = match config.build(device, *first, self.recipe.train.build_options()) {
            Ok(encoder) => encoder,
            Err(e) => {
                self.error("E0208", "encoder", format!("views of {first}: {e}"), "");
                return None;
            }
        };
        for shape in others.iter().filter(|s| *s != first) {
            if let Err(e) = encoder.resized(*shape) {
                let message = format!("views of {first} and of {shape}: {e}");
                let help = "give all views one size, or use a convolutional network, or a vision transformer whose \
                    patches tile all of them";
                self.error("E0208", "encoder", message, help);
                return None;
            }
        }
        Some(encoder)
    }
}
