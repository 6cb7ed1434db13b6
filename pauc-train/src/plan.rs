//! From a recipe to everything that is known before the first step.

use crate::check::Checker;
use crate::data_identity::DataIdentity;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::history::History;
use crate::memory;
use crate::objective::Objective;
use crate::recipe::{Recipe, Source, belongs};
use crate::recipe_text;
use crate::start::Start;
use crate::suggest::defaults::{self, Filled};
use pauc_data::ViewPipeline;
use pauc_distributed::{Alone, Communicator};
use pauc_models::weights::load_into;
use pauc_models::{Network, NetworkDevice};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::param::Param;
use pauc_traits::schedule::Horizon;
use pauc_traits::term::{Facts, Severity};
use pauc_traits::{Encoder, Error, ImageShape};
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

/// A recipe with its opened data and everything that follows from both.
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// The recipe's text.
    pub source: Source,
    /// The recipe with every default written out.
    pub resolved: String,
    /// The run's hash.
    pub hash: String,
    /// The recipes of the run, if its recipe was changed.
    pub history: History,
    /// The opened data.
    pub splits: Splits,
    /// The shape of the first view and of the evaluation view; further views may have others.
    pub shape: ImageShape,
    /// The random views of training.
    pub views: ViewPipeline,
    /// The one deterministic view of evaluation.
    pub evaluation: ViewPipeline,
    /// The weights that the encoder starts from, if the recipe names a file.
    pub start: Option<Start>,
    /// The run's length.
    pub horizon: Horizon,
    /// The sizes that terms need.
    pub facts: Facts,
    /// The terms.
    pub objective: Objective,
    /// The step of the first clustering; `u64::MAX` without a clusterer.
    pub first_clustering: u64,
    /// What the recipe leaves out and its data decided.
    pub filled: Vec<Filled>,
    /// The parts of the memory that a run needs.
    pub memory: Vec<memory::Part>,
    /// Whether the activations of all shards of a batch are kept for the backward pass, if the encoder can do that.
    /// Otherwise they are computed twice. The results are the same.
    pub keeps_shards: bool,
    /// Warnings.
    pub warnings: Diagnostics,
    /// The ranks that train together.
    pub communicator: Arc<dyn Communicator>,
    /// The identity of the data, computed when it is first asked for.
    data_identity: OnceLock<DataIdentity>,
}

/// Why a recipe cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(Diagnostics),
    /// The data cannot be opened.
    #[error("{error}")]
    Data {
        /// The error of the data.
        error: Error,
        /// Diagnostics of the recipe.
        found: Box<Diagnostics>,
    },
}

impl Plan {
    /// Parses a recipe, opens its data and checks every rule. Relative paths start in the working directory.
    /// For a file or another folder use [`Recipe::load`], then [`Plan::new`].
    ///
    /// ```
    /// use dfdx::prelude::Cpu;
    /// use pauc_train::Plan;
    ///
    /// let recipe = r#"Recipe(
    ///     name: "small",
    ///     data: Shapes(count: 128, size: 16, classes: 4),
    ///     views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],
    ///     encoder: ConvNet(channels: [8]),
    ///     projector: Mlp(dims: [8]),
    ///     objective: [(term: InfoNce(temperature: 0.2))],
    ///     train: (epochs: 3, batch: 32),
    /// )"#;
    /// let plan = Plan::parse(&Cpu::default(), recipe)?;
    /// assert_eq!(plan.horizon.total_steps, 3 * 128 / 32);
    /// assert_eq!(plan.objective.terms[0].name, "InfoNce");
    ///
    /// let typo = recipe.replace("temperature", "temperatur");
    /// let error = Plan::parse(&Cpu::default(), &typo).err().ok_or("no error")?.to_string();
    /// assert!(error.contains("did you mean `temperature`?"), "{error}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// All mistakes in the recipe, with their positions in its text, or the error of the data.
    pub fn parse<D: NetworkDevice>(device: &D, recipe: &str) -> Result<Plan, PlanError> {
        let (recipe, source) = Recipe::parse("recipe", recipe, &[]).map_err(PlanError::Recipe)?;
        Self::new(device, recipe, source, &Place::at("."))
    }

    /// Opens the data and checks every rule.
    ///
    /// # Errors
    /// All mistakes in the recipe at once, or the error of the data.
    pub fn new<D: NetworkDevice>(
        device: &D,
        recipe: Recipe,
        source: Source,
        place: &Place,
    ) -> Result<Plan, PlanError> {
        let place = &limited(place);
        Self::of(device, recipe, source, place, |recipe| recipe.data.open(place))
    }

    /// Checks every rule without the data's files, using the sizes that its authors published. Data that
    /// needs no files, or whose sizes were not published, is opened. The plan cannot be trained.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn without_data<D: NetworkDevice>(
        device: &D,
        recipe: Recipe,
        source: Source,
        place: &Place,
    ) -> Result<Plan, PlanError> {
        let place = &limited(place);
        Self::of(device, recipe, source, place, |recipe| match recipe.data.published() {
            Some(known) => Ok(known.splits(recipe.data.name())),
            None => recipe.data.open(place),
        })
    }

    /// Parsed recipe → opened data → network and sizes → rules → plan.
    fn of<D: NetworkDevice>(
        device: &D,
        mut recipe: Recipe,
        source: Source,
        place: &Place,
        open: impl FnOnce(&Recipe) -> Result<Splits, Error>,
    ) -> Result<Plan, PlanError> {
        let mut checker = Checker::new(&recipe, &source);
        checker.structure();
        let splits = match open(&recipe) {
            Ok(splits) => splits,
            Err(error) => return Err(unopened(error, checker.diagnostics, &source)),
        };
        let diagnostics = checker.diagnostics;
        let filled = defaults::fill(&mut recipe, &source.text, &splits);
        let mut checker = Checker::new(&recipe, &source);
        checker.diagnostics = diagnostics;
        let shapes = checker.view_shapes(&splits);
        let networks = shapes.as_ref().and_then(|shapes| checker.networks(device, shapes));
        let (counted, mut encoder) = networks.map(|n| (n.sizes, n.encoder)).unzip();
        let sizes = Sizes::new(&recipe, &splits, counted.map_or(1, |n| n.projector.output));
        checker.sizes(&splits, &sizes.objective, &sizes.facts, &sizes.horizon);
        let memory_of = |keeps_shards| {
            let (input, views) = (splits.train.shape(), shapes.as_deref().unwrap_or_default());
            memory::parts(&recipe, input, views, counted.as_ref(), &sizes.facts, keeps_shards)
        };
        let keeps_shards = memory::keeps_shards(&recipe, &memory_of(true), counted.as_ref(), place.memory);
        let memory = memory_of(keeps_shards);
        checker.memory(&memory, place.memory);
        let sides_differ = shapes.as_ref().filter(|s| s.iter().any(|v| *v != s[0]));
        if let Some(shapes) = sides_differ.filter(|_| !checker.has_errors()) {
            // Whether one encoder can take images of several sizes is known only once it is built.
            encoder = Some(checker.encoder(device, shapes));
        }
        let warnings = source.diagnostics(checker.diagnostics);
        let (Some(shapes), false) = (shapes, warnings.has_errors()) else {
            return Err(PlanError::Recipe(warnings));
        };
        let mut plan = Self::finish(recipe, source, place, splits, sizes, shapes[0], memory, warnings)?;
        plan.filled = filled;
        plan.keeps_shards = keeps_shards && !D::HAS_OWN_MEMORY;
        plan.check_parts(device, encoder.flatten())?;
        Ok(plan)
    }

    /// Returns the plan of a recipe that passed all rules; `shape` is that of the network's images.
    fn finish(
        recipe: Recipe,
        source: Source,
        place: &Place,
        splits: Splits,
        sizes: Sizes,
        shape: ImageShape,
        memory: Vec<memory::Part>,
        warnings: Diagnostics,
    ) -> Result<Plan, PlanError> {
        let Pipelines { views, evaluation } = pipelines(&recipe, &source, &splits, shape)?;
        let start = recipe.encoder_weights.as_ref().map(|weights| Start::read(weights, place)).transpose();
        let start = start.map_err(|error| source.refuse_data(error))?;
        let refuse = |e: ron::Error| source.refuse("", format!("the recipe cannot be serialized: {e}"));
        let resolved = recipe.resolved().map_err(refuse)?;
        let hash = recipe.hash().map_err(refuse)?;
        let Sizes { horizon, facts, first_clustering, objective } = sizes;
        Ok(Plan {
            recipe,
            source,
            resolved,
            hash,
            history: History::default(),
            splits,
            shape,
            views,
            evaluation,
            start,
            horizon,
            facts,
            objective,
            first_clustering,
            filled: Vec::new(),
            memory,
            keeps_shards: false,
            warnings,
            communicator: Arc::new(Alone),
            data_identity: OnceLock::new(),
        })
    }

    /// Returns the plan of a run whose recipe was changed, with the hash of that run. Without a change, returns the
    /// plan unchanged.
    pub fn with_history(self, history: History) -> Self {
        let hash = history.hash().map_or(self.hash, String::from);
        Plan { hash, history, ..self }
    }

    /// Makes this process one rank of several that train the plan together. All of them have the same plan.
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Self {
        Plan { communicator, ..self }
    }

    /// Checks names of network parts and the file of weights against the network, which is built only for
    /// recipes that have any.
    fn check_parts<D: NetworkDevice>(
        &mut self,
        device: &D,
        encoder: Option<Box<dyn Encoder<D>>>,
    ) -> Result<(), PlanError> {
        let Recipe { frozen, lr_scale, layer_decay, .. } = &self.recipe;
        let names_none = frozen.is_empty() && lr_scale.is_empty();
        if self.start.is_none() && names_none && layer_decay.get() == 1.0 {
            return Ok(());
        }
        let adapted = self.adapt_start(device, encoder);
        let network = adapted.and_then(|encoder| self.network_with(device, encoder));
        let network = network.map_err(|error| self.source.refuse_data(error))?;
        let wrong = self.unknown_parts(&network);
        if wrong.is_empty() { Ok(()) } else { Err(PlanError::Recipe(self.source.diagnostics(wrong))) }
    }

    /// Adapts the weights that the encoder starts from to its parameters, and warns of what was left out or changed.
    /// Returns the encoder, which is built for that.
    fn adapt_start<D: NetworkDevice>(
        &mut self,
        device: &D,
        encoder: Option<Box<dyn Encoder<D>>>,
    ) -> Result<Option<Box<dyn Encoder<D>>>, Error> {
        let (Some(mut start), Some(weights)) = (self.start.take(), &self.recipe.encoder_weights) else {
            return Ok(encoder);
        };
        let encoder = match encoder {
            Some(encoder) => encoder,
            None => self.encoder(device)?,
        };
        start.adapt(&encoder.parameters(), self.shape, &weights.prefix)?;
        if !start.notes.is_empty() {
            let message = format!("{}: {}", weights.path.display(), start.notes.join("; "));
            let help = "nothing to do if that is what you want; `except` names other parts to leave out";
            let root = recipe_text::parse(&self.source.text);
            let at = "encoder_weights.path";
            let warning = Diagnostic::at(Severity::Warning, "E0225", root.as_ref(), at, message, help);
            self.warnings.all.push(warning);
        }
        self.start = Some(start);
        Ok(Some(encoder))
    }

    /// Returns the parts in `frozen` and `lr_scale` that the network does not have, or that are named twice, and a
    /// `layer_decay` without layers.
    fn unknown_parts<D: NetworkDevice>(&self, network: &Network<D>) -> Vec<Diagnostic> {
        let names = |params: Vec<Param<D>>| params.into_iter().map(|p| p.name).collect::<Vec<_>>();
        let encoder = Parts::new("the encoder has", names(network.encoder_parameters()));
        let mut all = names(network.parameters());
        for t in &self.objective.terms {
            let own = t.term.info().parameters(&self.facts);
            all.extend(own.iter().map(|p| format!("{}.{}", t.name, p.name)));
        }
        let all = Parts::new("the network and its terms have", all);
        let root = recipe_text::parse(&self.source.text);
        let error = |code, path: String, message: String, help: String| {
            Diagnostic::at(Severity::Error, code, root.as_ref(), &path, message, help)
        };
        let mut wrong = Vec::new();
        if self.recipe.layer_decay.get() != 1.0 && network.encoder_depths().is_none() {
            let message = format!("{} does not say how deep its layers are", self.recipe.encoder.name());
            let help = "remove it, or list factors in `lr_scale`";
            wrong.push(error("E0226", "layer_decay".into(), message, help.into()));
        }
        for (i, part) in self.recipe.frozen.iter().enumerate() {
            let unknown = encoder.unknown(part);
            wrong.extend(unknown.map(|u| error("E0218", format!("frozen[{i}]"), u.message, u.help)));
        }
        let mut seen = HashSet::new();
        for (i, scale) in self.recipe.lr_scale.iter().enumerate() {
            let path = || format!("lr_scale[{i}].part");
            let unknown = all.unknown(&scale.part);
            wrong.extend(unknown.map(|u| error("E0220", path(), u.message, u.help)));
            if !seen.insert(&scale.part) {
                let message = format!("`{}` has two factors", scale.part);
                wrong.push(error("E0220", path(), message, "remove one of them".into()));
            }
        }
        wrong
    }

    /// Returns the identity of the data that the recipe names. Reads a sample of its images the first time.
    pub fn data_identity(&self) -> &DataIdentity {
        self.data_identity.get_or_init(|| DataIdentity::of(&self.splits))
    }

    /// Builds the network with its initial weights and freezes parts of it.
    ///
    /// # Errors
    /// If the device fails, or a file of weights does not fit. Shapes were checked by [`Plan::new`].
    pub fn network<D: NetworkDevice>(&self, device: &D) -> Result<Network<D>, Error> {
        self.network_with(device, None)
    }

    /// Builds the network around an encoder that was built already, if there is one.
    fn network_with<D: NetworkDevice>(
        &self,
        device: &D,
        encoder: Option<Box<dyn Encoder<D>>>,
    ) -> Result<Network<D>, Error> {
        let recipe = &self.recipe;
        let options = recipe.train.build_options();
        let encoder = match encoder {
            Some(encoder) => encoder,
            None => self.encoder(device)?,
        };
        let mut network = Network::from_encoder(device, encoder, &recipe.projector, self.shape, options)?;
        if let Some(predictor) = &recipe.predictor {
            network.add_predictor(predictor)?;
        }
        self.prepare(device, &network)?;
        Ok(network)
    }

    /// Builds the encoder with random weights.
    fn encoder<D: NetworkDevice>(&self, device: &D) -> Result<Box<dyn Encoder<D>>, Error> {
        let options = self.recipe.train.build_options();
        D::encoder(&*self.recipe.encoder.value).build(device, self.shape, options)
    }

    /// Loads the initial weights of the encoder, freezes parts, and scales learning rates.
    ///
    /// # Errors
    /// If a file of weights does not fit, or the run must be deterministic and the encoder is not on this
    /// device.
    fn prepare<D: NetworkDevice>(&self, device: &D, network: &Network<D>) -> Result<(), Error> {
        let recipe = &self.recipe;
        if recipe.train.cuda.deterministic && !D::DETERMINISTIC_REDUCTIONS && !network.has_fixed_order() {
            return Err(Error::config(format!(
                "{} uses dfdx's operations, whose sums have no fixed order on {}; remove `cuda: (deterministic: true)`, or use another encoder or the CPU",
                recipe.encoder.name(),
                device.name()
            )));
        }
        let params = network.encoder_parameters();
        if let (Some(start), Some(weights)) = (&self.start, &recipe.encoder_weights) {
            let statistics = network.encoder_statistics();
            load_into(device, &params, &statistics, &start.file, &weights.prefix)
                .map_err(|error| start.explain(error))?;
        }
        let frozen = |p: &&Param<D>| recipe.frozen.iter().any(|part| belongs(&p.name, part));
        params.iter().filter(frozen).for_each(|p| p.set_frozen(true));
        network.parameters().iter().for_each(|p| p.set_lr_scale(recipe.lr_scale_of(&p.name)));
        if let Some(depths) = network.encoder_depths() {
            let factors = depths.factors(recipe.layer_decay.get());
            params.iter().zip(factors).for_each(|(p, factor)| p.set_lr_scale(p.lr_scale() * factor));
        }
        Ok(())
    }
}

/// Returns a place whose memory is that of the machine, unless it has a limit already.
fn limited(place: &Place) -> Place {
    Place { memory: place.memory.or_else(memory::of_machine), ..place.clone() }
}

/// Values that follow from the sizes of the data and the embeddings.
struct Sizes {
    horizon: Horizon,
    facts: Facts,
    first_clustering: u64,
    objective: Objective,
}

impl Sizes {
    /// Computes them for embeddings of width `dim`.
    fn new(recipe: &Recipe, splits: &Splits, dim: usize) -> Self {
        let (horizon, facts) = (horizon(recipe, splits.train.len()), facts(recipe, splits, dim));
        let first_clustering = first_clustering(recipe, &horizon);
        let objective = Objective::plan(&recipe.objective, &horizon, first_clustering, &facts);
        Sizes { horizon, facts, first_clustering, objective }
    }
}

/// Returns a run's length: whole batches of the training split in every epoch.
fn horizon(recipe: &Recipe, samples: usize) -> Horizon {
    let steps_per_epoch = (samples / recipe.train.images_per_step()) as u64;
    Horizon { steps_per_epoch, total_steps: steps_per_epoch.saturating_mul(recipe.train.epochs.get() as u64) }
}

/// Returns the sizes that terms need; `dim` is the width of embeddings. Sizes that the checker refuses are
/// lowered, so that terms may multiply them.
fn facts(recipe: &Recipe, splits: &Splits, dim: usize) -> Facts {
    let samples = splits.train.len();
    let most = samples.max(1);
    Facts {
        batch: recipe.train.batch.get().min(most),
        dim,
        samples,
        momentum: recipe.momentum_encoder.is_some(),
        predictor: recipe.predictor.is_some(),
        queue: recipe.queue.map(|q| q.get().min(1 << 40)),
        prototypes: recipe
            .clusterer
            .iter()
            .flat_map(|c| c.prototypes())
            .map(|k| k.map(|k| k.min(most)))
            .collect(),
        classes: splits.train.labels().map(|_| splits.classes.len()),
        relative_weight: 1.0,
    }
}

/// Returns the step of the first clustering, at the start of an epoch; `u64::MAX` without a clusterer.
fn first_clustering(recipe: &Recipe, horizon: &Horizon) -> u64 {
    let Some(clusterer) = &recipe.clusterer else { return u64::MAX };
    let start = clusterer.start().steps(horizon);
    start.div_ceil(horizon.steps_per_epoch.max(1)).saturating_mul(horizon.steps_per_epoch)
}

/// The views of training and of evaluation.
struct Pipelines {
    views: ViewPipeline,
    evaluation: ViewPipeline,
}

fn pipelines(
    recipe: &Recipe,
    source: &Source,
    splits: &Splits,
    shape: ImageShape,
) -> Result<Pipelines, PlanError> {
    let (input, statistics) = (splits.train.shape(), &splits.statistics);
    let refuse = |message| source.refuse("views", message);
    let views =
        ViewPipeline::training(&recipe.views, input, statistics).map_err(|e| refuse(e.to_string()))?;
    let evaluation = ViewPipeline::evaluation(&recipe.views, input, statistics)
        .map_err(|e| refuse(format!("the evaluation view: {e}")))?;
    let got = evaluation.shape(0);
    if got != shape {
        return Err(refuse(format!("the evaluation view is {got}, the random views are {shape}")));
    }
    Ok(Pipelines { views, evaluation })
}

/// Reports data that cannot be opened, as an error of the data or of the recipe's `data`.
fn unopened(error: Error, mut diagnostics: Vec<Diagnostic>, source: &Source) -> PlanError {
    if error.is_about_data() {
        return PlanError::Data { error, found: Box::new(source.diagnostics(diagnostics)) };
    }
    diagnostics.push(source.error("E0214", "data", error.to_string()));
    PlanError::Recipe(source.diagnostics(diagnostics))
}

impl Source {
    /// Wraps diagnostics about this recipe.
    fn diagnostics(&self, all: Vec<Diagnostic>) -> Diagnostics {
        Diagnostics { text: self.text.clone(), path: self.path.clone(), all }
    }

    /// Reports that images do not fit at a path of the recipe.
    fn refuse(&self, path: &str, message: String) -> PlanError {
        PlanError::Recipe(self.diagnostics(vec![self.error("E0213", path, message)]))
    }

    /// Describes an error at a path of the recipe.
    fn error(&self, code: &'static str, path: &str, message: String) -> Diagnostic {
        let root = recipe_text::parse(&self.text);
        Diagnostic::at(Severity::Error, code, root.as_ref(), path, message, "")
    }

    /// Reports an error in the data or weights of a correct recipe.
    fn refuse_data(&self, error: Error) -> PlanError {
        PlanError::Data { error, found: Box::new(self.diagnostics(Vec::new())) }
    }
}

/// An unknown part of the network, and the remedy.
struct UnknownPart {
    message: String,
    help: String,
}

/// The parts of a network: its parameters, and the prefixes of their names up to a dot.
struct Parts {
    /// The beginning of messages: "the encoder has".
    owner: &'static str,
    /// All parts, in the order of the parameters.
    names: Vec<String>,
    /// The parts that are no parameters, for help.
    groups: String,
}

impl Parts {
    fn new(owner: &'static str, parameters: Vec<String>) -> Self {
        let mut names: Vec<String> = Vec::new();
        for parameter in &parameters {
            let ends = parameter.match_indices('.').map(|(i, _)| i).chain([parameter.len()]);
            let new: Vec<_> =
                ends.map(|end| parameter[..end].to_string()).filter(|p| !names.contains(p)).collect();
            names.extend(new);
        }
        let groups: Vec<&str> =
            names.iter().filter(|n| !parameters.contains(n)).map(String::as_str).collect();
        Parts { owner, groups: groups.join(", "), names }
    }

    /// Returns the message and the remedy if the network does not have this part.
    fn unknown(&self, part: &str) -> Option<UnknownPart> {
        if self.names.iter().any(|n| n == part) {
            return None;
        }
        let help = match pauc_traits::registry::did_you_mean(part, self.names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("its parts: {}", self.groups),
        };
        Some(UnknownPart { message: format!("{} no part `{part}`", self.owner), help })
    }
}
