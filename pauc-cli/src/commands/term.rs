//! `term`.

use super::drawn;
use crate::Failure;
use crate::args::TermArgs;
use pauc::dfdx::prelude::Cpu;
use pauc::train::diagnostic::Diagnostic;
use pauc::train::recipe::Concentration;
use pauc::train::term;
use pauc::traits::component_ron::Term;
use std::process::ExitCode;

/// Evaluates one term.
pub fn term(args: TermArgs) -> Result<ExitCode, Failure> {
    let device = Cpu::default();
    let term = Term::parse(&args.term)
        .map_err(|e| drawn("the term", &args.term, Diagnostic::from_ron(&args.term, &e)))?;
    let concentration = Concentration::parse(&args.concentration).map_err(|e| {
        drawn("the concentration", &args.concentration, Diagnostic::from_ron(&args.concentration, &e))
    })?;
    let result = term::evaluate_file(&device, &term, &args.inputs, &concentration)?;
    if let Some(path) = &args.grads {
        term::write_gradients(&result, path)?;
    }
    if args.json {
        let norm = |g: &[f64]| g.iter().map(|v| v * v).sum::<f64>().sqrt();
        let norms: serde_json::Map<_, _> =
            result.gradients.iter().map(|(n, _, g)| (n.clone(), serde_json::json!(norm(g)))).collect();
        let json = serde_json::json!({
            "term": term.name(), "value": result.value, "chance": result.chance, "dtype": result.dtype,
            "skipped": result.skipped, "gradient_norms": norms, "concentration": result.concentration,
        });
        println!("{json}");
    } else {
        let chance = result.chance.map_or("none".to_string(), |c| format!("{c:.6}"));
        println!("{} = {} ({}, chance level {chance})", term.name(), result.value, result.dtype);
        if let Some(why) = &result.skipped {
            println!("skipped: {why}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
