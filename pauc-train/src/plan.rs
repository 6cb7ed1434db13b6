//! From a recipe to everything that is known before the first step.

use crate::check::Checker;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::objective::Objective;
use crate::recipe::{Recipe, Source, belongs};
use pauc_data::ViewPipeline;
use pauc_models::weights::{TensorFile, load_into};
use pauc_models::{DeviceOptions, Network, NetworkDevice};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::param::Param;
use pauc_traits::schedule::Horizon;
use pauc_traits::term::{Facts, Severity};
use pauc_traits::{Error, ImageShape};

/// A recipe together with its opened data and everything that follows from the two.
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// The text it came from.
    pub source: Source,
    /// The recipe with every default written out.
    pub resolved: String,
    /// The run's hash.
    pub hash: String,
    /// The opened data.
    pub splits: Splits,
    /// The shape of the first view and of the evaluation view; further views may have others.
    pub shape: ImageShape,
    /// The random views of training.
    pub views: ViewPipeline,
    /// The one deterministic view of evaluation.
    pub evaluation: ViewPipeline,
    /// The weights that the encoder starts from, if they come from a file.
    pub start: Option<TensorFile>,
    /// The run's length.
    pub horizon: Horizon,
    /// The sizes that terms ask about.
    pub facts: Facts,
    /// The terms.
    pub objective: Objective,
    /// The step of the first clustering; `u64::MAX` without a clusterer.
    pub first_clustering: u64,
    /// Warnings.
    pub warnings: Diagnostics,
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
        /// What is wrong with the data.
        error: Error,
        /// What was found in the recipe besides.
        found: Box<Diagnostics>,
    },
}

impl Plan {
    /// Opens the data and checks every rule.
    ///
    /// # Errors
    /// All that is wrong with the recipe at once, or what is wrong with the data.
    pub fn new<D: NetworkDevice>(
        device: &D,
        recipe: Recipe,
        source: Source,
        place: &Place,
    ) -> Result<Plan, PlanError> {
        Self::of(device, recipe, source, place, |recipe| recipe.data.open(place))
    }

    /// Checks every rule without the data's files, by the sizes that its authors published. Data that needs no files, or
    /// of which nothing was published, is opened. Nothing can be trained with the result.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn without_data<D: NetworkDevice>(
        device: &D,
        recipe: Recipe,
        source: Source,
        place: &Place,
    ) -> Result<Plan, PlanError> {
        Self::of(device, recipe, source, place, |recipe| match recipe.data.published() {
            Some(known) => Ok(known.splits(recipe.data.name())),
            None => recipe.data.open(place),
        })
    }

    fn of<D: NetworkDevice>(
        device: &D,
        recipe: Recipe,
        source: Source,
        place: &Place,
        open: impl FnOnce(&Recipe) -> Result<Splits, Error>,
    ) -> Result<Plan, PlanError> {
        let mut checker = Checker::new(&recipe, &source);
        checker.structure();
        let report = |all| Diagnostics { text: source.text.clone(), path: source.path.clone(), all };
        let splits = match open(&recipe) {
            Ok(splits) => splits,
            Err(error) if error.is_about_data() => {
                return Err(PlanError::Data { error, found: Box::new(report(checker.found)) });
            }
            Err(error) => {
                let d = Diagnostic::at(Severity::Error, "E0214", &source.text, "data", error.to_string(), "");
                checker.found.push(d);
                return Err(PlanError::Recipe(report(checker.found)));
            }
        };
        let samples = splits.train.len();
        let steps_per_epoch = (samples / recipe.train.images_per_step()) as u64;
        let horizon =
            Horizon { steps_per_epoch, total_steps: steps_per_epoch * recipe.train.epochs.get() as u64 };
        let shapes = checker.view_shapes(&splits);
        let network =
            shapes.and_then(|shapes| checker.encoder(device, &shapes).map(|width| (shapes[0], width)));
        let dim = network.and_then(|(_, width)| match device.head(&recipe.projector, width, 0, 0) {
            Ok(head) => Some(head.output_dim()),
            Err(e) => {
                let d =
                    Diagnostic::at(Severity::Error, "E0208", &source.text, "projector", e.to_string(), "");
                checker.found.push(d);
                None
            }
        });
        if let (Some(config), Some(width)) = (&recipe.predictor, dim) {
            let wrong = match device.head(config, width, 0, 0) {
                Ok(head) if head.output_dim() == width => None,
                Ok(head) => Some(format!("predictions are {} wide, embeddings {width}", head.output_dim())),
                Err(e) => Some(e.to_string()),
            };
            if let Some(message) = wrong {
                let help = format!("let its last width be {width}, such as Mlp(dims: [64, {width}])");
                checker.found.push(Diagnostic::at(
                    Severity::Error,
                    "E0216",
                    &source.text,
                    "predictor",
                    message,
                    help,
                ));
            }
        }
        let facts = Facts {
            batch: recipe.train.batch.get(),
            dim: dim.unwrap_or(1),
            samples,
            momentum: recipe.momentum_encoder.is_some(),
            predictor: recipe.predictor.is_some(),
            queue: recipe.queue.map(|q| q.get()),
            prototypes: recipe.clusterer.as_ref().map(|c| c.prototypes()).unwrap_or_default(),
            classes: splits.train.labels().map(|_| splits.classes.len()),
        };
        let first_clustering = recipe.clusterer.as_ref().map_or(u64::MAX, |c| {
            let start = c.start().steps(&horizon);
            // Clusterings happen at starts of epochs.
            start.div_ceil(steps_per_epoch.max(1)) * steps_per_epoch
        });
        let objective = Objective::plan(&recipe.objective, &horizon, first_clustering, &facts);
        checker.sizes(&splits, &objective, &facts, &horizon);
        let found = report(checker.found);
        let (Some((shape, _)), Some(_), false) = (network, dim, found.has_errors()) else {
            return Err(PlanError::Recipe(found));
        };
        let failed = |path: &str, message: String| {
            let d = Diagnostic::at(Severity::Error, "E0213", &source.text, path, message, "");
            PlanError::Recipe(Diagnostics {
                text: source.text.clone(),
                path: source.path.clone(),
                all: vec![d],
            })
        };
        let (input, statistics) = (splits.train.shape(), &splits.statistics);
        let training = ViewPipeline::training(&recipe.views, input, statistics);
        let evaluation = ViewPipeline::evaluation(&recipe.views, input, statistics);
        let views = training.map_err(|e| failed("views", e.to_string()))?;
        let evaluation = evaluation.map_err(|e| failed("views", format!("the evaluation view: {e}")))?;
        if evaluation.shape(0) != shape {
            let message =
                format!("the evaluation view is {}, the random views are {shape}", evaluation.shape(0));
            return Err(failed("views", message));
        }
        let nothing = report(Vec::new());
        let data = |error: Error| PlanError::Data { error, found: Box::new(nothing.clone()) };
        let start = recipe.encoder_weights.as_ref().map(|w| {
            let mut file = TensorFile::load(place.resolve(&w.path))?;
            file.retain(|name| {
                name.strip_prefix(&w.prefix).is_some_and(|name| !w.except.iter().any(|e| name.starts_with(e)))
            });
            Ok(file)
        });
        let start = start.transpose().map_err(&data)?;
        let written = |e: ron::Error| failed("", format!("the recipe cannot be written out: {e}"));
        let plan = Plan {
            resolved: recipe.resolved().map_err(written)?,
            hash: recipe.hash().map_err(written)?,
            splits,
            shape,
            views,
            evaluation,
            start,
            horizon,
            facts,
            objective,
            first_clustering,
            warnings: found,
            source,
            recipe,
        };
        if plan.start.is_some() || !plan.recipe.frozen.is_empty() || !plan.recipe.lr_scale.is_empty() {
            let network = plan.network(device).map_err(&data)?;
            let names = |params: Vec<Param<D>>| params.into_iter().map(|p| p.name).collect::<Vec<_>>();
            let encoder = names(network.encoder_parameters());
            let mut all = names(network.parameters());
            for t in &plan.objective.terms {
                let own = t.term.info().parameters(&plan.facts);
                all.extend(own.iter().map(|p| format!("{}.{}", t.name, p.name)));
            }
            let parts = |i: usize, part: &str, names: &[String], code, path: &str, owner| {
                unknown_part(part, names, owner).map(|(message, help)| {
                    let path = path.replace("{}", &i.to_string());
                    Diagnostic::at(Severity::Error, code, &plan.source.text, &path, message, help)
                })
            };
            let mut wrong = Vec::new();
            for (i, part) in plan.recipe.frozen.iter().enumerate() {
                wrong.extend(parts(i, part, &encoder, "E0218", "frozen[{}]", "the encoder has"));
            }
            for (i, scale) in plan.recipe.lr_scale.iter().enumerate() {
                let path = "lr_scale[{}].part";
                wrong.extend(parts(i, &scale.part, &all, "E0220", path, "the network and its terms have"));
                if plan.recipe.lr_scale[..i].iter().any(|other| other.part == scale.part) {
                    let (text, path) = (&plan.source.text, format!("lr_scale[{i}].part"));
                    let message = format!("`{}` has two factors", scale.part);
                    let help = "remove one of them";
                    wrong.push(Diagnostic::at(Severity::Error, "E0220", text, &path, message, help));
                }
            }
            if !wrong.is_empty() {
                return Err(PlanError::Recipe(Diagnostics { all: wrong, ..plan.warnings }));
            }
        }
        Ok(plan)
    }

    /// Builds the network with its initial weights, some of them frozen.
    ///
    /// # Errors
    /// If the device fails, or a file of weights does not fit; shapes were checked by [`Plan::new`].
    pub fn network<D: NetworkDevice>(&self, device: &D) -> Result<Network<D>, Error> {
        let encoder = D::encoder(&*self.recipe.encoder.value);
        let (seed, cuda) = (self.recipe.train.seed, &self.recipe.train.cuda);
        device.configure(DeviceOptions { precision: cuda.precision, recompute: cuda.recompute })?;
        let network = Network::build(device, encoder, &self.recipe.projector, self.shape, seed)?;
        if cuda.deterministic && !D::DETERMINISTIC_REDUCTIONS && !network.has_fixed_order() {
            return Err(Error::config(format!(
                "{} is made of dfdx's operations, whose sums have no fixed order on {}: leave out `cuda: (deterministic: true)`, or use another encoder or the CPU",
                self.recipe.encoder.name(),
                device.name()
            )));
        }
        let params = network.encoder_parameters();
        if let (Some(file), Some(weights)) = (&self.start, &self.recipe.encoder_weights) {
            load_into(device, &params, &network.encoder_statistics(), file, &weights.prefix)?;
        }
        let frozen = |p: &&Param<D>| self.recipe.frozen.iter().any(|part| belongs(&p.name, part));
        params.iter().filter(frozen).for_each(|p| p.set_frozen(true));
        let network = match &self.recipe.predictor {
            Some(predictor) => network.with_predictor(predictor, seed)?,
            None => network,
        };
        network.parameters().iter().for_each(|p| p.set_lr_scale(self.recipe.lr_scale_of(&p.name)));
        Ok(network)
    }
}

/// What is wrong with a part that no name belongs to, and what to write instead.
fn unknown_part(part: &str, names: &[String], owner: &str) -> Option<(String, String)> {
    if names.iter().any(|n| belongs(n, part)) {
        return None;
    }
    let mut known: Vec<&str> = Vec::new();
    for name in names {
        // A parameter's name, and everything that it belongs to.
        let ends = name.match_indices('.').map(|(i, _)| i).chain([name.len()]);
        known.extend(ends.map(|end| &name[..end]).filter(|p| !known.contains(p)).collect::<Vec<_>>());
    }
    let help = match pauc_traits::registry::did_you_mean(part, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            known.retain(|p| !names.iter().any(|n| n == p));
            format!("its parts: {}", known.join(", "))
        }
    };
    Some((format!("{owner} no part `{part}`"), help))
}
