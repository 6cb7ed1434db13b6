//! What a recipe leaves out and its data decides.

use super::negatives;
use super::rules::{self, Picture};
use crate::recipe::Recipe;
use crate::recipe_text;
use pauc_data::survey::{Survey, SurveyOptions, survey};
use pauc_data::{ViewPipeline, ViewSpec};
use pauc_traits::component_ron::{Configured, options};
use pauc_traits::dataset::Splits;
use pauc_traits::{Clusterer, Count};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// A value that was filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// The field of the recipe.
    pub field: &'static str,
    /// Its value, as a recipe writes it.
    pub value: String,
    /// Why it is that.
    pub why: String,
}

/// Images that are read to tell the kind of the pictures.
const READ: usize = 64;
/// The largest view for which an encoder has a stem for small images.
const SMALL: usize = 64;

/// Fills in views, encoder, queue and numbers of prototypes if the recipe's text leaves them out. What is filled in depends
/// only on the data and on the rest of the recipe.
pub fn fill(recipe: &mut Recipe, text: &str, splits: &Splits) -> Vec<Filled> {
    let mut filled = Vec::new();
    let Some(root) = recipe_text::parse(text) else { return filled };
    let is_left_out = |field: &str| recipe_text::find(&root, field).is_none();
    if is_left_out("views") {
        let choice = views(splits);
        if let Some(views) = parsed::<Vec<ViewSpec>>(&choice.value) {
            recipe.views = views;
            filled.push(choice);
        }
    }
    if is_left_out("encoder") {
        let choice = encoder(recipe, splits);
        if let Some((encoder, choice)) = choice.and_then(|choice| Some((parsed(&choice.value)?, choice))) {
            recipe.encoder = encoder;
            filled.push(choice);
        }
    }
    let reads_queue = recipe.objective.iter().any(|t| t.term.info().needs().queue);
    if reads_queue && is_left_out("queue") && recipe.momentum_encoder.is_some() {
        let (images, batch) = (splits.train.len(), recipe.train.batch.get());
        let length = negatives::queue(images, batch).unwrap_or(batch);
        recipe.queue = Count::try_from(length).ok();
        let why = format!("for {images} training images in batches of {batch}: at most half of the images");
        filled.push(Filled { field: "queue", value: length.to_string(), why });
    }
    if recipe.clusterer.as_ref().is_some_and(|c| c.prototypes().is_empty()) && is_left_out("clusterer.k") {
        let choice = prototypes(recipe, splits);
        if let Some(clusterer) = recipe.clusterer.as_ref().and_then(|c| with_prototypes(c, &choice.value)) {
            recipe.clusterer = Some(clusterer);
            filled.push(choice);
        }
    }
    filled
}

/// Chooses the number of prototypes of each level.
fn prototypes(recipe: &Recipe, splits: &Splits) -> Filled {
    let (images, batch) = (splits.train.len(), recipe.train.batch.get());
    let why = format!("for {images} training images in batches of {batch}");
    Filled { field: "clusterer.k", value: format!("{:?}", negatives::prototypes(images, batch)), why }
}

fn with_prototypes(clusterer: &Configured<dyn Clusterer>, k: &str) -> Option<Configured<dyn Clusterer>> {
    let text = options().to_string(clusterer).ok()?;
    parsed(&recipe_text::set(&text, &format!("k={k}")).ok()?)
}

fn parsed<T: DeserializeOwned>(text: &str) -> Option<T> {
    options().from_str(text).ok()
}

/// Chooses the views for the kind and the size of the images.
pub fn views(splits: &Splits) -> Filled {
    let found = look(splits);
    let picture = rules::picture(&found);
    let size = rules::candidates(picture, found.short_sides.median, false).first().map_or(SMALL, |c| c.size);
    let kind = match picture {
        Picture::SmallGray => "small gray images",
        Picture::LargeGray => "large gray images",
        Picture::Small => "small color images",
        Picture::Photograph => "photographs",
    };
    let why = format!("for {kind}: the shorter side has {} pixels in the median", found.short_sides.median);
    Filled { field: "views", value: rules::views(picture, size), why }
}

/// Surveys a few images; those of one known gray shape need not be read.
fn look(splits: &Splits) -> Survey {
    match splits.train.shape() {
        Some(shape) if shape.channels == 1 => {
            let side = shape.height.min(shape.width);
            let sides = pauc_data::survey::Range { least: side, median: side, most: side };
            Survey { short_sides: sides, gray: 1.0, channels: 1, ..Survey::default() }
        }
        shape => {
            let mut found = survey(splits, SurveyOptions { images: READ, time: Duration::MAX });
            // Images of which only the published shape is known cannot be read.
            if let Some(shape) = shape.filter(|_| found.short_sides.median == 0) {
                found.short_sides.median = shape.height.min(shape.width);
            }
            found
        }
    }
}

/// Chooses the encoder for the size of the views; `None` if the views do not fit the images.
fn encoder(recipe: &Recipe, splits: &Splits) -> Option<Filled> {
    let views = ViewPipeline::training(&recipe.views, splits.train.shape(), &splits.statistics).ok()?;
    let shape = views.shape(0);
    let size = shape.height.max(shape.width);
    let value = if size <= SMALL { "ResNet18(stem: Small, width: 16)" } else { "ResNet18(width: 32)" };
    let why = format!("for views of {size} pixels");
    Some(Filled { field: "encoder", value: value.into(), why })
}

#[cfg(test)]
mod tests {
    use crate::plan::Plan;
    use dfdx::prelude::Cpu;

    fn plan(fields: &str) -> Plan {
        let recipe = format!(
            "Recipe(name: \"short\", {fields}, objective: [(term: InfoNce(negatives: Queue))],
            momentum_encoder: Ema(momentum: 0.99), projector: Mlp(dims: [8]), train: (epochs: 1, batch: 16))"
        );
        Plan::parse(&Cpu::default(), &recipe).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn what_is_left_out_follows_the_data() {
        let small = plan("data: Shapes(count: 100, size: 20, classes: 4)");
        assert!(
            small.resolved.contains("SimClr(size:20") || small.resolved.contains("size: 20"),
            "{}",
            small.resolved
        );
        assert_eq!((small.shape.height, small.recipe.queue.unwrap().get()), (20, 32));
        assert_eq!(small.recipe.encoder.name(), "ResNet18");
        let fields: Vec<&str> = small.filled.iter().map(|f| f.field).collect();
        assert_eq!(fields, ["views", "encoder", "queue"]);
        let large = plan("data: Shapes(count: 40, size: 100, classes: 4)");
        assert_eq!(large.shape.height, 96);
        assert!(large.filled[1].value.contains("width: 32"), "{:?}", large.filled);
        // Half of 40 images are no two batches: one batch.
        assert_eq!(large.recipe.queue.unwrap().get(), 16);
        let gray = plan("data: FashionMini()");
        assert!(
            gray.filled[0].value.contains("RandomResizedCrop(size: 28")
                && gray.filled[0].why.contains("gray")
        );
    }

    #[test]
    fn numbers_of_prototypes_follow_images_and_batch() {
        let with = |clusterer: &str| {
            plan(&format!(
                "data: Shapes(count: 1000, size: 20, classes: 4), queue: 64, clusterer: {clusterer}"
            ))
        };
        for name in [
            "KMeans",
            "MiniBatchKMeans",
            "HierarchicalKMeans",
            "Sinkhorn",
            "GaussianMixture",
            "Agglomerative",
        ] {
            let plan = with(&format!("{name}(start: Epochs(1))"));
            let clusterer = plan.recipe.clusterer.as_ref().unwrap();
            assert_eq!(clusterer.prototypes(), [Some(10), Some(20), Some(40)], "{name}");
            assert_eq!(clusterer.start(), pauc_traits::TrainingSpan::epochs(1), "the other fields stay");
            let choice = plan.filled.last().unwrap();
            assert_eq!((choice.field, &*choice.value), ("clusterer.k", "[10, 20, 40]"));
            let again = Plan::parse(&Cpu::default(), &plan.resolved).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(again.hash, plan.hash);
        }
        assert_eq!(with("KMeans(k: [7])").recipe.clusterer.unwrap().prototypes(), [Some(7)]);
    }

    #[test]
    fn what_is_written_stays() {
        let written = plan(
            "data: Shapes(count: 100, size: 20, classes: 4), queue: 64, encoder: ConvNet(channels: [4]),
             views: [(count: 2, ops: [RandomResizedCrop(size: 16)])]",
        );
        assert_eq!((written.shape.height, written.recipe.queue.unwrap().get()), (16, 64));
        assert!(written.filled.is_empty() && written.recipe.encoder.name() == "ConvNet");
    }

    #[test]
    fn the_resolved_recipe_is_its_own_resolution() {
        let first = plan("data: Shapes(count: 100, size: 20, classes: 4)");
        let again = Plan::parse(&Cpu::default(), &first.resolved).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((&again.resolved, &again.hash), (&first.resolved, &first.hash));
        assert!(again.filled.is_empty());
    }
}
