//! `export`.

use crate::Failure;
use crate::args::ExportArgs;
use pauc::train::export;
use std::process::ExitCode;

/// Writes the encoder of a run.
pub fn export(args: ExportArgs) -> Result<ExitCode, Failure> {
    let checkpoint = args.run.join("checkpoints/last.safetensors");
    let checkpoint = if args.run.is_dir() { &checkpoint } else { &args.run };
    let file = export::encoder(checkpoint, args.momentum)?;
    file.save(&args.out)?;
    println!("{}: {} tensors", args.out.display(), file.names().count());
    Ok(ExitCode::SUCCESS)
}
