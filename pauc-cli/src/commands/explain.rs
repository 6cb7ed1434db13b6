//! `explain`.

use super::device::{self, Job};
use super::plan;
use crate::Failure;
use crate::args::ExplainArgs;
use pauc::models::NetworkDevice;
use pauc::train::explain;
use std::path::Path;
use std::process::ExitCode;

/// Explains a name, a code or a recipe.
pub fn explain(args: ExplainArgs) -> Result<ExitCode, Failure> {
    let path = Path::new(&args.what);
    if args.what.ends_with(".ron") || path.is_file() {
        return device::on(&args.device.clone(), args);
    }
    name(&args.what)
}

impl Job for ExplainArgs {
    fn on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let plan = plan(device, Path::new(&self.what), &self.change.set, false)?;
        print!("{}", explain::plan(device, &plan)?);
        Ok(ExitCode::SUCCESS)
    }
}

fn name(what: &str) -> Result<ExitCode, Failure> {
    match explain::name(what) {
        Some(text) => {
            print!("{text}");
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let hint =
                explain::suggestion(what).map(|s| format!("; did you mean `{s}`?")).unwrap_or_default();
            let message =
                format!("error: nothing is called `{}`{hint}\n`pauc-cli list` prints all names", what);
            Err(Failure::new(2, message))
        }
    }
}
