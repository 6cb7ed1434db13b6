//! `devices`.

use crate::args::JsonArg;
use crate::{Failure, device};
use clap::Args;
use std::process::ExitCode;

/// List the devices that this program can use.
///
/// Also prints the MPI library that the system finds, or why there is none.
///
/// Example: pauc-cli devices
#[derive(Debug, Args)]
pub struct DevicesArgs {
    #[command(flatten)]
    output: JsonArg,
}

impl DevicesArgs {
    /// Lists the devices of this machine that this build can use.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let cuda = device::cuda_devices();
        let instructions =
            pauc::kernels::simd::Simd::detect().map_or_else(|e| e.to_string(), |s| s.name().to_string());
        let threads = rayon::current_num_threads();
        // A CUDA build that finds no device says so. The default build is complete without one.
        let code = ExitCode::from(u8::from(cfg!(feature = "cuda") && cuda.unavailable.is_some()));
        let mpi = pauc::distributed::find(None);
        if self.output.json {
            let cpu =
                serde_json::json!({ "device": "cpu", "threads": threads, "instructions": instructions });
            let all: Vec<_> = std::iter::once(cpu).chain(cuda.usable.into_iter().map(|d| d.json)).collect();
            let mpi = match mpi {
                Ok(library) => serde_json::json!({ "file": library.file, "version": library.version }),
                Err(e) => serde_json::json!({ "unavailable": e.to_string() }),
            };
            outln!("{}", serde_json::json!({ "devices": all, "cuda": cuda.unavailable, "mpi": mpi }));
            return Ok(code);
        }
        outln!("cpu     {threads} thread{}, {instructions}", if threads == 1 { "" } else { "s" });
        cuda.usable.iter().for_each(|d| outln!("{}", d.line));
        if let Some(why) = cuda.unavailable {
            outln!("no CUDA: {why}");
        }
        match mpi {
            Ok(library) => outln!("mpi     {} ({})", library.version, library.file),
            Err(e) => outln!("no MPI: {e}"),
        }
        Ok(code)
    }
}
