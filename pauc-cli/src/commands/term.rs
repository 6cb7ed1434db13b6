//! `term`.

use crate::Failure;
use crate::args::{JsonArg, heading};
use crate::recipes::argument_failure;
use clap::Args;
use pauc::dfdx::prelude::Cpu;
use pauc::train::diagnostic::Diagnostic;
use pauc::train::recipe::Concentration;
use pauc::train::term;
use pauc::traits::atomic;
use pauc::traits::component_ron::Term;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compute a term's value, chance level and gradients from tensors.
///
/// Reads view0, view1, key0, key1, prediction0, prediction1, queue, labels, prototypes.M, assignments.M,
/// concentration.M, negatives.M, ln_temperature and centre from a safetensors file. Views, keys and
/// predictions are raw outputs of the heads, f32 or f64. If the file has features and clusters.M (the
/// clustered rows and their prototypes) instead of concentration.M, concentrations are computed from them and
/// printed with --json.
///
/// Example: pauc-cli term 'InfoNce(temperature: 0.2)' --inputs batch.safetensors --grads out.safetensors
#[derive(Debug, Args)]
pub struct TermArgs {
    /// The term, as a recipe writes it.
    term: String,
    /// The file with the tensors.
    #[arg(long, value_name = "FILE", help_heading = heading::INPUT)]
    inputs: PathBuf,
    /// How to compute concentrations if the file has `features` and `clusters.M` instead.
    #[arg(long, value_name = "RON", default_value = "(alpha: 10, temperature: 0.2)")]
    #[arg(help_heading = heading::INPUT)]
    concentration: String,
    /// The file to write the gradients to.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    grads: Option<PathBuf>,
    #[command(flatten)]
    output: JsonArg,
}

impl TermArgs {
    /// Evaluates one term.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let device = Cpu::default();
        let mistake = |argument, text, e| argument_failure(argument, text, Diagnostic::from_ron(text, &e));
        let term = Term::parse(&self.term).map_err(|e| mistake("the term", &self.term, e))?;
        let concentration = Concentration::parse(&self.concentration)
            .map_err(|e| mistake("the concentration", &self.concentration, e))?;
        let result = term::evaluate_file(&device, &term, &self.inputs, &concentration)?;
        if let Some(path) = &self.grads {
            atomic::remove_leftovers(path);
            term::write_gradients(&result, path).map_err(Failure::of_writing)?;
        }
        if self.output.json {
            let norm = |g: &[f64]| g.iter().map(|v| v * v).sum::<f64>().sqrt();
            let norms: serde_json::Map<_, _> =
                result.gradients.iter().map(|(n, _, g)| (n.clone(), serde_json::json!(norm(g)))).collect();
            let json = serde_json::json!({
                "term": term.name(), "value": result.value, "chance": result.chance, "dtype": result.dtype,
                "skipped": result.skipped, "gradient_norms": norms, "concentration": result.concentration,
            });
            outln!("{json}");
        } else {
            let chance = result.chance.map_or("none".to_string(), |c| format!("{c:.6}"));
            outln!("{} = {} ({}, chance level {chance})", term.name(), result.value, result.dtype);
            if let Some(why) = &result.skipped {
                outln!("skipped: {why}");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
