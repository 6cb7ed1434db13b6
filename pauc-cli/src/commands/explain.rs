//! `explain`.

use super::plan;
use crate::Failure;
use crate::args::ExplainArgs;
use pauc::dfdx::prelude::Cpu;
use pauc::train::explain;
use std::path::Path;
use std::process::ExitCode;

/// Explains a name, a code or a recipe.
pub fn explain(args: ExplainArgs) -> Result<ExitCode, Failure> {
    let path = Path::new(&args.what);
    if args.what.ends_with(".ron") || path.is_file() {
        let device = Cpu::default();
        let plan = plan(&device, path, &args.change.set, false)?;
        print!("{}", explain::plan(&device, &plan)?);
        return Ok(ExitCode::SUCCESS);
    }
    match explain::name(&args.what) {
        Some(text) => {
            print!("{text}");
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let hint =
                explain::suggestion(&args.what).map(|s| format!("; did you mean `{s}`?")).unwrap_or_default();
            let message =
                format!("error: nothing is called `{}`{hint}\n`pauc-cli list` prints all names", args.what);
            Err(Failure::new(2, message))
        }
    }
}
