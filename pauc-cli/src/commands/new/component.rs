//! `new loss` and its like: the source file of a component.

use super::write_new;
use crate::Failure;
use crate::args::heading;
use clap::Args;
use pauc::traits::registry::catalog;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The component to write.
#[derive(Debug, Args)]
pub struct ComponentArgs {
    /// Its name, in CamelCase.
    name: String,
    /// The folder to write the file to.
    #[arg(long, default_value = ".", value_name = "DIR", help_heading = heading::OUTPUT)]
    out: PathBuf,
}

/// The kinds of components, with one template each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateKind {
    Loss,
    Regularizer,
    Encoder,
    Clusterer,
    Dataset,
    Augmentation,
    Probe,
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
        Template { text: include_str!(concat!("../../../templates/", $file)), placeholder: $placeholder }
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

    /// Returns the folder in pauc's repository that has the components of this kind.
    fn folder(self) -> &'static str {
        match self {
            TemplateKind::Loss => "pauc-losses/src/contrastive",
            TemplateKind::Regularizer => "pauc-losses/src/regularizers",
            TemplateKind::Encoder => "pauc-models/src/encoders_plain",
            TemplateKind::Clusterer => "pauc-cluster/src",
            TemplateKind::Dataset => "pauc-data/src/datasets",
            TemplateKind::Augmentation => "pauc-data/src/views",
            TemplateKind::Probe => "pauc-probes/src",
            TemplateKind::Optimizer => "pauc-models/src/optimizers",
        }
    }
}

/// Returns the file with the `mod` lines of a folder's modules, if there is one.
fn module_list(folder: &Path) -> Option<PathBuf> {
    let inside = ["mod.rs", "lib.rs", "main.rs"].map(|name| folder.join(name));
    let beside = folder.file_name().map(|name| {
        let mut name = name.to_os_string();
        name.push(".rs");
        folder.with_file_name(name)
    });
    inside.into_iter().chain(beside).find(|path| path.is_file())
}

impl ComponentArgs {
    /// Writes the component's file.
    pub fn execute(self, kind: TemplateKind) -> Result<ExitCode, Failure> {
        let name = &self.name;
        check_name(name)?;
        let module = snake_case(name);
        let path = self.out.join(format!("{module}.rs"));
        let template = kind.template();
        write_new(&path, &template.text.replace(template.placeholder, name))?;
        outln!("wrote {}", path.display());
        outln!("{}", self.what_next(kind, &module));
        Ok(ExitCode::SUCCESS)
    }

    /// Returns what is left to do with the module that was written.
    fn what_next(&self, kind: TemplateKind, module: &str) -> String {
        let Some(list) = module_list(&self.out) else {
            let folder = kind.folder();
            return format!(
                "add `mod {module};` to the file that lists the modules of this folder, such as lib.rs\n\
                 if it is to be a part of pauc itself, `--out {folder}` writes it to the right folder"
            );
        };
        let list = list.display();
        format!("add `mod {module};` to {list}; once it is built, `pauc-cli explain {}` shows it", self.name)
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

    const ALL: [TemplateKind; 8] = [
        TemplateKind::Loss,
        TemplateKind::Regularizer,
        TemplateKind::Encoder,
        TemplateKind::Clusterer,
        TemplateKind::Dataset,
        TemplateKind::Augmentation,
        TemplateKind::Probe,
        TemplateKind::Optimizer,
    ];

    #[test]
    fn names_become_modules() {
        assert_eq!(["InfoNce", "Dcl", "MyLoss2"].map(snake_case), ["info_nce", "dcl", "my_loss2"]);
    }

    #[test]
    fn every_template_declares_its_placeholder_once() {
        for kind in ALL {
            let Template { text, placeholder } = kind.template();
            assert_eq!(text.matches(&format!("pub struct {placeholder}: ")).count(), 1, "{kind:?}");
        }
    }

    #[test]
    fn every_kind_has_a_folder_with_a_list_of_its_modules() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for kind in ALL {
            let list = module_list(&root.join(kind.folder())).unwrap();
            assert!(std::fs::read_to_string(list).unwrap().contains("mod "), "{kind:?}");
        }
        assert_eq!(module_list(&root.join("docs")), None);
        assert_eq!(module_list(Path::new("/")), None);
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
