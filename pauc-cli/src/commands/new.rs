//! `new`.

use crate::Failure;
use crate::args::heading;
use clap::{Args, ValueEnum};
use pauc::traits::registry::catalog;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Write the source file of a new component, with tests.
///
/// The file compiles and passes its tests. Replace its formula, docs and tests by your component's.
///
/// Example: pauc-cli new loss MyLoss --out src
#[derive(Debug, Args)]
pub struct NewArgs {
    /// The kind of the component.
    kind: TemplateKind,
    /// Its name, in CamelCase.
    name: String,
    /// The folder to write the file to.
    #[arg(long, default_value = ".", value_name = "DIR", help_heading = heading::OUTPUT)]
    out: PathBuf,
}

/// The kinds of components, with one template each.
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

/// A complete component. Tests of pauc-losses and examples/plugin compile and run the templates.
struct Template {
    text: &'static str,
    /// The placeholder for the component's name in the text.
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
        outln!("wrote {}", path.display());
        outln!(
            "add `mod {module};` to the crate; `pauc-cli explain {name}` of a binary that links the crate \
             then shows it"
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Keywords that a component's name or its module would be.
const KEYWORDS: &[&str] = &[
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn",
    "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop",
    "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static",
    "struct", "super", "trait", "true", "try", "type", "typeof", "union", "unsafe", "unsized", "use",
    "virtual", "where", "while", "yield",
];

fn check_name(name: &str) -> Result<(), Failure> {
    let camel_case =
        name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    if !camel_case {
        let message =
            format!("error: {name:?} is not a component name; write it in CamelCase, such as `InfoNce`");
        return Err(Failure::new(2, message));
    }
    if KEYWORDS.contains(&snake_case(name).as_str()) {
        let message = format!(
            "error: `{}` is a keyword of Rust; choose another name, such as `My{name}`",
            snake_case(name)
        );
        return Err(Failure::new(2, message));
    }
    if let Some(known) = catalog().into_iter().find(|l| l.name == name) {
        let kind = known.kind;
        let message = format!("error: the {kind} `{name}` already exists; choose another name");
        return Err(Failure::new(2, message));
    }
    Ok(())
}

/// Writes a new file; it is an error if the file exists.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
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

/// Converts `MyLoss` to a module name.
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
        for (name, says) in [
            ("InfoNce", "contrastive loss `InfoNce` already exists"),
            ("warm loss", "CamelCase"),
            ("Self", "keyword"),
            ("Fn", "`MyFn`"),
        ] {
            let failure = check_name(name).unwrap_err();
            assert!(failure.code == 2 && failure.message.contains(says), "{}", failure.message);
        }
    }
}
