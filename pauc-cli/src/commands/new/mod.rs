//! `new`: a recipe for a dataset, or the source file of a component.

mod component;
mod recipe;

use crate::Failure;
use clap::Subcommand;
use component::{ComponentArgs, TemplateKind};
use recipe::NewRecipeArgs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Write a recipe for your images, or the file of a new component.
///
/// The file of a component compiles and passes its tests. Replace its formula, docs and tests with your own.
#[derive(Debug, Subcommand)]
pub enum NewCommand {
    Recipe(NewRecipeArgs),
    /// Write the file of a contrastive loss.
    ///
    /// Example: pauc-cli new loss MyLoss --out src
    #[command(alias = "term")]
    Loss(ComponentArgs),
    /// Write the file of a regularizer: a term without positives and negatives.
    ///
    /// Example: pauc-cli new regularizer MyRegularizer --out src
    Regularizer(ComponentArgs),
    /// Write the file of an encoder.
    ///
    /// Example: pauc-cli new encoder MyEncoder --out src
    Encoder(ComponentArgs),
    /// Write the file of a clusterer.
    ///
    /// Example: pauc-cli new clusterer MyClusterer --out src
    Clusterer(ComponentArgs),
    /// Write the file of a dataset.
    ///
    /// Example: pauc-cli new dataset MyDataset --out src
    Dataset(ComponentArgs),
    /// Write the file of an augmentation: one step of a view.
    ///
    /// Example: pauc-cli new augmentation MyAugmentation --out src
    Augmentation(ComponentArgs),
    /// Write the file of an evaluation probe.
    ///
    /// Example: pauc-cli new probe MyProbe --out src
    Probe(ComponentArgs),
    /// Write the file of an optimizer.
    ///
    /// Example: pauc-cli new optimizer MyOptimizer --out src
    Optimizer(ComponentArgs),
}

impl NewCommand {
    /// Writes the file.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        match self {
            NewCommand::Recipe(args) => args.execute(),
            NewCommand::Loss(args) => args.execute(TemplateKind::Loss),
            NewCommand::Regularizer(args) => args.execute(TemplateKind::Regularizer),
            NewCommand::Encoder(args) => args.execute(TemplateKind::Encoder),
            NewCommand::Clusterer(args) => args.execute(TemplateKind::Clusterer),
            NewCommand::Dataset(args) => args.execute(TemplateKind::Dataset),
            NewCommand::Augmentation(args) => args.execute(TemplateKind::Augmentation),
            NewCommand::Probe(args) => args.execute(TemplateKind::Probe),
            NewCommand::Optimizer(args) => args.execute(TemplateKind::Optimizer),
        }
    }
}

/// Writes a new file; it is an error if the file exists.
pub fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::new(
            2,
            format!("error: {} already exists; remove it, or choose another name", path.display()),
        ),
        std::io::ErrorKind::NotFound => Failure::new(
            2,
            format!("error: cannot write {}: the folder does not exist; create it first", path.display()),
        ),
        _ => Failure::new(1, format!("error: cannot write {}: {e}", path.display())),
    })
}
