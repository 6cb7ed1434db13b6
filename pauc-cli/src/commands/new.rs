//! `new`.

use crate::Failure;
use crate::args::heading;
use clap::{Args, ValueEnum};
use pauc::traits::registry::catalog;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Write the file of a new component, with its tests.
///
/// The file compiles and passes its tests as it is: change its formula, its words and its tests to those of the component.
///
/// Example: pauc-cli new loss MyLoss --out src
#[derive(Debug, Args)]
pub struct NewArgs {
    /// What the component is.
    kind: TemplateKind,
    /// Its name, in CamelCase.
    name: String,
    /// The folder that the file is put into.
    #[arg(long, default_value = ".", value_name = "DIR", help_heading = heading::OUTPUT)]
    out: PathBuf,
}

/// The kinds of components, one template each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TemplateKind {
    /// A contrastive loss.
    #[value(alias = "term")]
    Loss,
    /// A regularizer: a term without positives and negatives.
    Regularizer,
    /// An encoder.
    Encoder,
    /// A clusterer.
    Clusterer,
    /// A dataset.
    Dataset,
    /// One step of a view.
    Augmentation,
    /// An evaluation probe.
    Probe,
    /// An optimizer.
    Optimizer,
}

/// A whole component. Tests of pauc-losses and of examples/plugin compile and run them.
struct Template {
    text: &'static str,
    /// What stands for the component's name in the text.
    placeholder: &'static str,
}

macro_rules! template {
    ($file:literal, $placeholder:literal) => {
        Template { text: include_str!(concat!("../../templates/", $file)), placeholder: $placeholder }
    };
}

impl TemplateKind {
    fn template(self) -> Template {
        match self {
            TemplateKind::Loss => template!("loss.rs", "LossTemplate"),
            TemplateKind::Regularizer => template!("regularizer.rs", "RegularizerTemplate"),
            TemplateKind::Encoder => template!("encoder.rs", "EncoderTemplate"),
            TemplateKind::Clusterer => template!("clusterer.rs", "ClustererTemplate"),
            TemplateKind::Dataset => template!("dataset.rs", "DatasetTemplate"),
            TemplateKind::Augmentation => template!("augmentation.rs", "AugmentationTemplate"),
            TemplateKind::Probe => template!("probe.rs", "ProbeTemplate"),
            TemplateKind::Optimizer => template!("optimizer.rs", "OptimizerTemplate"),
        }
    }
}

impl NewArgs {
    /// Writes the component's file.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let name = &self.name;
        check_name(name)?;
        let module = snake_case(name);
        let path = self.out.join(format!("{module}.rs"));
        let template = self.kind.template();
        write_new(&path, &template.text.replace(template.placeholder, name))?;
        println!("wrote {}", path.display());
        println!(
            "add `mod {module};` beside it, then `pauc-cli explain {name}` of a binary that links the crate \
             shows it"
        );
        Ok(ExitCode::SUCCESS)
    }
}

fn check_name(name: &str) -> Result<(), Failure> {
    let camel_case =
        name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    if !camel_case {
        let message =
            format!("error: {name:?} is no name of a component: write it in CamelCase, as in `InfoNce`");
        return Err(Failure::new(2, message));
    }
    if let Some(known) = catalog().into_iter().find(|l| l.name == name) {
        let kind = known.kind;
        let message = format!("error: there is the {kind} `{name}` already: choose another name");
        return Err(Failure::new(2, message));
    }
    Ok(())
}

/// Writes a file that must not be there yet.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::new(
            2,
            format!("error: {} exists already: remove it, or choose another name", path.display()),
        ),
        _ => Failure::new(1, format!("error: cannot write {}: {e}", path.display())),
    })
}

/// `MyLoss` as a module's name.
fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.chars().enumerate() {
        if i > 0 && c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_modules() {
        assert_eq!(["InfoNce", "Dcl", "MyLoss2"].map(snake_case), ["info_nce", "dcl", "my_loss2"]);
    }

    #[test]
    fn every_template_declares_its_placeholder_once() {
        for kind in TemplateKind::value_variants() {
            let Template { text, placeholder } = kind.template();
            assert_eq!(text.matches(&format!("pub struct {placeholder}: ")).count(), 1, "{kind:?}");
        }
    }

    #[test]
    fn names_that_cannot_be_used_are_refused() {
        for (name, says) in [("InfoNce", "contrastive loss `InfoNce` already"), ("warm loss", "CamelCase")] {
            let failure = check_name(name).unwrap_err();
            assert!(failure.code == 2 && failure.message.contains(says), "{}", failure.message);
        }
    }
}
